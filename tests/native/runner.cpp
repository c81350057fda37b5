// Runs a CUDA kernel on the host: one fiber per thread of a cluster, one cluster after the other.
//
// Fibers run in an order drawn from the seed, stores into other blocks arrive at times drawn from it, and
// asynchronous copies arrive only when they are waited for, so that results that depend on timing differ between
// seeds. A barrier, shuffle or product that only some threads reach, and an mbarrier whose bytes never arrive, are
// reported as deadlocks. Shared memory is NaN until it is written.
#include "../../kernels/device.h"

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

namespace ser_fast::gpu::host {
namespace {

constexpr size_t kStack = 64 * 1024;

enum class Wait { kNothing, kBarrier, kSomeBarrier, kCluster, kTogether, kMbarrier, kEnd };

struct Copy {
  void* to;
  const void* from;
  int bytes;
};

struct Fiber {
  ucontext_t context;
  int thread = 0, block = 0;  // block: in the cluster
  Wait waits = Wait::kNothing;
  int line = 0;            // of the kernel's source
  int id = 0, count = 0;   // of a barrier of some threads
  void* mine = nullptr;    // the lane's argument of together
  void (*work)(void* const*) = nullptr;
  void* barrier = nullptr;  // the mbarrier waited for, with the parity
  int parity = 0;
  std::deque<std::vector<Copy>> groups;  // committed, oldest first
  std::vector<Copy> open;
};

// State of an mbarrier, kept outside shared memory; its address there only identifies it.
struct Counter {
  int arrivals, pending, bytes = 0, phase = 0;
};

struct Store {
  std::vector<char> value;
  char* to;
  void* counted;
  int block;
};

struct Cluster {
  const std::function<void()>& kernel;
  int first, threads;  // index of the first block, threads per block
  std::vector<Fiber> fibers;
  std::vector<std::vector<float>> shared = {};  // NaN until it is written
  std::map<void*, Counter> counters = {};
  std::vector<Store> stores = {};  // in flight
  ucontext_t scheduler = {};
  Fiber* current = nullptr;
  std::string failure = {};
};

Cluster* running = nullptr;

Fiber& self() { return *running->current; }

void leave() { swapcontext(&self().context, &running->scheduler); }

// Exceptions do not cross fibers: the first failure ends the run.
void fail(const std::string& what) {
  Fiber& fiber = self();
  running->failure = what + ", block " + std::to_string(running->first + fiber.block) + ", thread " + std::to_string(fiber.thread);
  leave();
}

void enter() {
  running->kernel();
  self().waits = Wait::kEnd;
  leave();
}

void wait(Wait what, int line) {
  Fiber& fiber = self();
  fiber.waits = what;
  fiber.line = line;
  leave();
}

Counter& counter_at(void* barrier) {
  const auto found = running->counters.find(barrier);
  if (found == running->counters.end()) fail("an mbarrier is used before it is initialised");
  return found->second;
}

void settle(Counter& counter) {
  if (counter.pending || counter.bytes) return;
  counter.pending = counter.arrivals;
  counter.phase ^= 1;
}

void do_copy(const Copy& copy) { std::memcpy(copy.to, copy.from, copy.bytes); }

}  // namespace

int thread() { return self().thread; }
int block() { return running->first + self().block; }
int rank() { return self().block; }
void* shared() { return running->shared[self().block].data(); }
void barrier(int line) { wait(Wait::kBarrier, line); }
void cluster_barrier(int line) { wait(Wait::kCluster, line); }

void barrier_of(int id, int threads, int line) {
  self().id = id;
  self().count = threads;
  wait(Wait::kSomeBarrier, line);
}

void together(void* mine, void (*work)(void* const*), int line) {
  self().mine = mine;
  self().work = work;
  wait(Wait::kTogether, line);
}

void mbarrier_init(void* barrier, int arrivals) { running->counters[barrier] = {arrivals, arrivals}; }

void mbarrier_expect(void* barrier, int bytes) {
  Counter& counter = counter_at(barrier);
  counter.bytes += bytes;
  --counter.pending;
  settle(counter);
}

void mbarrier_wait(void* barrier, int parity, int line) {
  if (counter_at(barrier).phase != parity) return;
  self().barrier = barrier;
  self().parity = parity;
  wait(Wait::kMbarrier, line);
}

void push(const void* value, int bytes, void* where, void* counted, int rank) {
  auto& mine = running->shared[self().block];
  auto& other = running->shared.at(rank);
  const auto mapped = [&](void* at) {
    return reinterpret_cast<char*>(other.data()) + (static_cast<char*>(at) - reinterpret_cast<char*>(mine.data()));
  };
  const char* from = static_cast<const char*>(value);
  running->stores.push_back({{from, from + bytes}, mapped(where), mapped(counted), rank});
}

void copy_async(void* to, const void* from, int bytes) { self().open.push_back({to, from, bytes}); }

void copy_commit() {
  self().groups.push_back(std::move(self().open));
  self().open.clear();
}

void copy_wait(int pending) {
  for (auto& groups = self().groups; static_cast<int>(groups.size()) > pending; groups.pop_front())
    std::for_each(groups.front().begin(), groups.front().end(), do_copy);
}

namespace {

void start(Fiber& fiber, int index, int threads, char* stack) {
  fiber.thread = index % threads;
  fiber.block = index / threads;
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = stack;
  fiber.context.uc_stack.ss_size = kStack;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, enter, 0);
}

// Runs every ready fiber, in random order, until it waits or ends. Returns whether there was one.
bool advance(Cluster& cluster, std::mt19937_64& random) {
  std::vector<Fiber*> ready;
  for (Fiber& fiber : cluster.fibers)
    if (fiber.waits == Wait::kNothing) ready.push_back(&fiber);
  std::shuffle(ready.begin(), ready.end(), random);
  for (Fiber* fiber : ready) {
    cluster.current = fiber;
    swapcontext(&cluster.scheduler, &fiber->context);
    if (!cluster.failure.empty()) throw std::runtime_error(cluster.failure);
  }
  return !ready.empty();
}

// Delivers stores in random order: each with probability 1/2, or all of them. Returns whether one was delivered.
bool deliver(Cluster& cluster, std::mt19937_64& random, bool all) {
  std::shuffle(cluster.stores.begin(), cluster.stores.end(), random);
  bool moved = false;
  for (size_t left = cluster.stores.size(); left--;) {
    if (!all && random() % 2) continue;
    const Store store = std::move(cluster.stores[left]);
    cluster.stores.erase(cluster.stores.begin() + static_cast<std::ptrdiff_t>(left));
    const Fiber& owner = cluster.fibers[static_cast<size_t>(store.block) * cluster.threads];
    if (owner.waits == Wait::kEnd)
      throw std::runtime_error("a store arrives in block " + std::to_string(cluster.first + store.block) + ", which has ended");
    const auto found = cluster.counters.find(store.counted);
    if (found == cluster.counters.end()) throw std::runtime_error("a store is counted by an mbarrier that is not initialised");
    std::memcpy(store.to, store.value.data(), store.value.size());
    found->second.bytes -= static_cast<int>(store.value.size());
    settle(found->second);
    moved = true;
  }
  return moved;
}

// True if all fibers of the group wait for `what` at the same line.
bool meet(const std::vector<Fiber*>& group, Wait what) {
  return std::all_of(group.begin(), group.end(), [&](const Fiber* fiber) {
    return fiber->waits == what && fiber->line == group[0]->line;
  });
}

bool free(const std::vector<Fiber*>& group) {
  for (Fiber* fiber : group) fiber->waits = Wait::kNothing;
  return true;
}

// Releases the barriers of part of a block that the required number of threads has reached.
bool release_some(const std::vector<Fiber*>& block) {
  bool moved = false;
  std::map<int, std::vector<Fiber*>> waiting;
  for (Fiber* fiber : block)
    if (fiber->waits == Wait::kSomeBarrier) waiting[fiber->id].push_back(fiber);
  for (const auto& [id, group] : waiting)
    if (static_cast<int>(group.size()) == group[0]->count && meet(group, Wait::kSomeBarrier)) moved = free(group);
  return moved;
}

// Releases every fiber whose wait is over. Returns whether there was one.
bool release(Cluster& cluster) {
  bool moved = false;
  std::vector<Fiber*> all, block;
  for (size_t first = 0; first < cluster.fibers.size(); first += 32) {
    if (first % cluster.threads == 0) block.clear();
    std::vector<Fiber*> warp;
    const size_t end = std::min(first + 32, (first / cluster.threads + 1) * cluster.threads);
    for (size_t i = first; i < end; ++i) warp.push_back(&cluster.fibers[i]);
    block.insert(block.end(), warp.begin(), warp.end());
    all.insert(all.end(), warp.begin(), warp.end());
    if (meet(warp, Wait::kTogether)) {
      std::vector<void*> given;
      for (const Fiber* fiber : warp) given.push_back(fiber->mine);
      warp[0]->work(given.data());
      moved = free(warp);
    }
    if (end % cluster.threads) continue;
    if (meet(block, Wait::kBarrier)) moved = free(block);
    moved |= release_some(block);
  }
  if (meet(all, Wait::kCluster)) moved = free(all);
  for (Fiber* fiber : all)
    if (fiber->waits == Wait::kMbarrier && cluster.counters.at(fiber->barrier).phase != fiber->parity) moved = free({fiber});
  return moved;
}

std::string stuck(const Cluster& cluster) {
  static const char* const kNames[] = {"", "barrier", "barrier of some threads", "barrier of the cluster",
                                       "shuffle or product", "mbarrier", "ended"};
  std::map<std::string, std::string> who;
  for (const Fiber& fiber : cluster.fibers) {
    std::string where = kNames[static_cast<int>(fiber.waits)];
    if (fiber.waits != Wait::kEnd) where += ", line " + std::to_string(fiber.line);
    if (fiber.waits == Wait::kMbarrier) {
      const Counter& counter = cluster.counters.at(fiber.barrier);
      where += ", parity " + std::to_string(fiber.parity) + ", " + std::to_string(counter.bytes) + " bytes and " +
               std::to_string(counter.pending) + " arrivals missing";
    }
    std::string& text = who["block " + std::to_string(cluster.first + fiber.block) + ", " + where];
    text += " " + std::to_string(fiber.thread);
  }
  std::string out = "deadlock";
  for (const auto& [where, threads] : who) out += "; " + where + ": threads" + threads;
  return out;
}

struct Running {
  explicit Running(Cluster& cluster) { running = &cluster; }
  ~Running() { running = nullptr; }
};

}  // namespace

void run(int blocks, int threads, int cluster_size, size_t shared, uint64_t seed, const std::function<void()>& kernel) {
  std::mt19937_64 random(seed);
  const size_t count = static_cast<size_t>(threads) * cluster_size;
  const auto stacks = std::make_unique_for_overwrite<char[]>(kStack * count);
  for (int first = 0; first < blocks; first += cluster_size) {
    Cluster cluster{kernel, first, threads, std::vector<Fiber>(count)};
    cluster.shared.assign(cluster_size, std::vector<float>(shared / 4 + 4, NAN));
    const Running here(cluster);
    for (size_t i = 0; i < count; ++i) start(cluster.fibers[i], static_cast<int>(i), threads, stacks.get() + kStack * i);
    const auto ended = [](const Fiber& fiber) { return fiber.waits == Wait::kEnd; };
    while (!std::all_of(cluster.fibers.begin(), cluster.fibers.end(), ended)) {
      bool moved = advance(cluster, random);
      moved |= deliver(cluster, random, false);
      moved |= release(cluster);
      if (!moved && !deliver(cluster, random, true)) throw std::runtime_error(stuck(cluster));
    }
    deliver(cluster, random, true);
  }
}

}  // namespace ser_fast::gpu::host
