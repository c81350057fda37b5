// Runs kernels/team.h, kernels/pipeline.h and the layer on both with threads that come late, sleep within their work or
// never come, and compares with one thread alone.
#include "../../kernels/pipeline.h"

#include <chrono>
#include <cstdio>
#include <random>
#include <thread>
#include <vector>

#include "../../kernels/gru_layer.h"
#include "../../kernels/team.h"

using namespace ser_fast;

namespace {

enum Pool { kPunctual, kLate, kAlone };
Pool pool;

void sleep_some(int64_t most_us) {
  thread_local std::minstd_rand random(std::hash<std::thread::id>{}(std::this_thread::get_id()));
  std::this_thread::sleep_for(std::chrono::microseconds(random() % most_us));
}

void run_threads(int64_t count, void (*body)(void*, int64_t, int64_t), void* state) {
  if (pool == kAlone) return body(state, 0, count);
  std::vector<std::thread> threads;
  for (int64_t i = 1; i < count; ++i)
    threads.emplace_back([=] {
      if (pool == kLate) sleep_some(3000);
      body(state, i, i + 1);
    });
  body(state, 0, 1);
  for (std::thread& thread : threads) thread.join();
}

constexpr int64_t kMembers = 3, kSteps = 300, kSize = 12;
using State = std::vector<uint32_t>;

// Each element of a step depends on all of the step before.
struct Mixing {
  bool sleeping;
  std::vector<State> states{kSteps + 1, State(kSize, 1)};
  State helpers = State(kSize);
  int64_t taken = 0, prepared[2][kMembers] = {};

  void prepare(int64_t member, bool helping) { ++prepared[helping][member]; }

  void compute(int64_t member, int64_t step, bool helping) {
    if (sleeping && helping) sleep_some(100);
    if (pool == kPunctual && !sleeping && !helping) std::this_thread::sleep_for(std::chrono::microseconds(100));
    const int64_t each = kSize / kMembers;
    for (int64_t i = member * each; i < (member + 1) * each; ++i) {
      uint32_t sum = i;
      for (const uint32_t value : states[step]) sum = sum * 31 + value;
      (helping ? helpers : states[step + 1])[i] = sum;
    }
  }

  void take(int64_t member, int64_t step) {
    ++taken;
    const int64_t each = kSize / kMembers;
    std::copy_n(&helpers[member * each], each, &states[step + 1][member * each]);
  }
};

int failures = 0, remade = 0;

void expect(bool good, const char* what, int which, bool sleeping) {
  if (!good) std::printf("%s: pool %d, sleeping %d\n", what, which, sleeping), ++failures;
}

State mixed(Pool which, bool sleeping) {
  pool = which;
  Mixing work{sleeping};
  Team<Mixing>(work, kMembers, kSteps).walk({kMembers, run_threads});
  for (int64_t member = 0; member < kMembers; ++member)
    expect(work.prepared[0][member] <= 1 && work.prepared[1][member] <= 1, "prepared twice", which, sleeping);
  expect(which != kAlone || work.taken == 0, "a part was taken from nobody", which, sleeping);
  expect(which != kPunctual || sleeping || work.taken > 0, "no helper's part was taken", which, sleeping);
  return work.states.back();
}

constexpr int64_t kParts = 40;

// Part i is 1, 2, ... times i + 1; each use depends on all before.
struct Chaining {
  bool sleeping;
  std::vector<State> parts{kParts + 1, State(kSize)};
  uint32_t sum = 1;
  int64_t used = 0, again = 0;
  std::array<std::atomic<int64_t>, kParts> made = {};

  void make(int64_t part, bool is_again) {
    if (sleeping) sleep_some(part % 7 == 3 ? 3000 : 100);
    if (!is_again) made[part].fetch_add(1, std::memory_order_relaxed);
    for (int64_t i = 0; i < kSize; ++i) parts[is_again ? kParts : part][i] = (part + 1) * (i + 1);
  }

  void use(int64_t part, bool is_again) {
    expect(part == used++, "a part out of turn", pool, sleeping);
    again += is_again;
    for (const uint32_t value : parts[is_again ? kParts : part]) sum = sum * 31 + value;
  }
};

uint32_t chained(Pool which, bool sleeping) {
  pool = which;
  Chaining work{sleeping};
  Pipeline(work, kParts).run({kMembers, run_threads});
  expect(work.used == kParts, "parts were left out", which, sleeping);
  for (const auto& times : work.made) expect(times == 1, "a part was not made once", which, sleeping);
  expect(which != kAlone || work.again == 0, "a part was made again alone", which, sleeping);
  remade += work.again;
  return work.sum;
}

// How many calls stay out of the pool after one whose threads came so late.
int64_t left_out(Turnout& turnout, double worked, double waited) {
  turnout.add(std::chrono::duration<double>(worked), std::chrono::duration<double>(waited));
  int64_t calls = 0;
  while (!turnout.is_good()) ++calls;
  return calls;
}

void check_turnout() {
  Turnout turnout;
  expect(turnout.is_good() && turnout.is_good(), "the first calls stay out", kPunctual, false);
  expect(left_out(turnout, 1e-4, 9e-5) == 0, "a short wait is late", kPunctual, false);
  expect(left_out(turnout, 1e-2, 4e-3) == 0, "a small part of the work is late", kPunctual, false);
  for (const int64_t calls : {1, 3, 7, 15, 31, 63, 63})
    expect(left_out(turnout, 1e-4, 2e-3) == calls, "another number of calls", kLate, false);
  expect(left_out(turnout, 1e-4, 0) == 0, "a call in time is late", kPunctual, false);
  expect(left_out(turnout, 1e-4, 2e-3) == 63, "one call in time resets all", kLate, false);
}

struct Sizes {
  int64_t frames, rows, directions, hidden, features;
  bool reset_after;
};

std::vector<float> layer(Pool which, int64_t threads, const Sizes& sizes) {
  pool = which;
  const auto [T, rows, directions, H, features, reset_after] = sizes;
  std::minstd_rand random(1);
  const auto draw = [&](int64_t size, float scale) {
    std::vector<float> values(size);
    for (float& value : values) value = scale * (random() % 2001 / 1000.0f - 1);
    return values;
  };
  const auto x = draw(T * rows * features, 1), w_ih = draw(3 * H * features, 0.3f), w_hh = draw(3 * H * H, 0.1f),
             b = draw(3 * H, 0.1f), h0 = draw(directions * rows * H, 1);
  std::vector<float> y(T * rows * directions * H), h_n(directions * rows * H);
  const GruLayerWeights<float> weights{w_ih.data(), w_hh.data(), b.data(), b.data(), nullptr, nullptr};
  const GruLayer<float> args{{T, rows, directions, H, reset_after}, features, {x.data(), rows * features, features, nullptr},
                             {weights, weights}, h0.data(), nullptr,
                             {y.data(), rows * directions * H, directions * H, nullptr}, h_n.data(), {}, {}};
  gru_layer_cpu(args, {threads, run_threads});
  y.insert(y.end(), h_n.begin(), h_n.end());
  return y;
}

}  // namespace

int main() {
  check_turnout();
  const State truth = mixed(kAlone, false);
  const uint32_t sum = chained(kAlone, false);
  for (const Pool which : {kPunctual, kLate})
    for (const bool sleeping : {false, true})
      for (int i = 0; i < 5; ++i) {
        expect(mixed(which, sleeping) == truth, "another result", which, sleeping);
        expect(chained(which, sleeping) == sum, "another sum", which, sleeping);
      }
  expect(remade > 0, "no part was made again", kLate, true);
  const Sizes cases[] = {{40, 1, 1, 190, 17, true}, {40, 4, 1, 300, 17, true}, {40, 1, 2, 300, 17, true},
                         {40, 2, 2, 300, 17, true}, {150, 1, 1, 61, 83, true}, {70, 1, 1, 150, 7, false},
                         {2500, 1, 1, 33, 5, true}};
  for (const Sizes& sizes : cases)
    for (const Pool which : {kPunctual, kLate, kAlone})
      expect(layer(which, 3, sizes) == layer(which, 1, sizes), "another layer", which, sizes.rows > 1);
  std::puts(failures ? "failed" : "equal");
  return failures > 0;
}
