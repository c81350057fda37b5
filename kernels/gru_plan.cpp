// Selects the compiled GRU kernel and its launch configuration from the shape and the device's limits alone.
#include "gru_plan.h"

#include <algorithm>
#include <atomic>
#include <limits>

namespace ser_fast {
namespace {

constexpr int64_t kAny = std::numeric_limits<int64_t>::max();
std::atomic<int64_t> most_shared = kAny, most_active[4] = {kAny, kAny, kAny, kAny};
std::atomic<int> spared = 0;

// Instructions of a warp in a step besides its tensor core products: those on the way from one exchange to the next,
// and the stores and fetches that need not be. Fitted to counts of the machine code for 9.0 (benchmarks/NOTES.md).
struct Instructions {
  float critical, rest;
};

Instructions instructions(const GruSize& size, int steps, int tiles, int cluster, bool backward) {
  const int mine = 2 * tiles / size.split, arrays = backward ? 3 : 1;
  const float reads = steps * tiles * size.parts * arrays + size.spare(backward);
  const float sends = cluster == 1 ? 0 : 9 + 4 * arrays * size.parts * mine * (cluster - 1);
  const float gather = size.split == 2 ? 30 : 0, split_weights = size.parts == 2 ? 3 * steps * 8 : 0;
  const float cell = size.parts == 2 ? 100 : 0;  // tanhf
  return {reads + sends + gather + split_weights + cell + 42 + mine * (backward ? 66.0f : 45.0f),
          mine * (backward ? 30.0f : 25.0f)};
}

// Estimate of the clock cycles of a step. The constants are cycles: issue and latency of a tensor core product, latency
// of the cell's arithmetic, a barrier, and a store into another block. A scheduler issues one instruction a cycle.
float clocks(const GruSize& size, int bytes, int cluster, bool backward, bool reset_after) {
  constexpr float kIssue = 8, kLatency = 24, kCell = 200, kBarrier = 60, kCrossing = 600;
  const int steps = size.width * bytes / 32 / size.split, tiles = size.rows / 8, each = size.parts == 2 ? 3 : 1;
  const int warps = size.width / 16 * size.split / cluster, busiest = (warps + 3) / 4;
  const float issue = busiest * 3 * steps * tiles * each * kIssue;
  const float chain = steps * (size.parts == 2 ? 2 : 0.5f) * kLatency * (reset_after ? 1 : 2);
  const float read = warps * (size.spare(backward) * 4 + steps * tiles * size.parts * (backward ? 3 : 1) * 2);
  const auto [critical, rest] = instructions(size, steps, tiles, cluster, backward);
  const float tensor = std::max(issue, chain) + read, cell = std::max(kCell, busiest * critical);
  const float exchanges = reset_after ? 1 : 2;
  if (cluster == 1) return tensor + cell + busiest * rest + kBarrier * exchanges;
  // Stores and fetches go on while an exchange crosses the cluster.
  const float crossing = kCrossing + 8 * cluster;
  return tensor + cell + std::max(crossing, busiest * rest) + crossing * (exchanges - 1);
}

}  // namespace

void gru_restrict(const GruLimits& most) {
  most_shared = most.shared;
  for (int power = 0; power < 4; ++power) most_active[power] = most.active[power];
}

GruLimits gru_restricted(const GruLimits& limits) {
  GruLimits found = {std::min(limits.shared, most_shared.load()), {}};
  for (int power = 0; power < 4; ++power) found.active[power] = std::min(limits.active[power], most_active[power].load());
  return found;
}

void gru_spare(int multiprocessors) { spared = multiprocessors; }

GruPlan gru_plan(const GruShape& shape, GruProduct product, bool backward, const GruLimits& limits) {
  constexpr float kClocks = 1700;  // per microsecond
  const bool half = product == GruProduct::kHalf;
  const int bytes = half ? 2 : 4, parts = product == GruProduct::kTf32x3 ? 2 : 1;
  GruPlan best = {};
  const auto consider = [&](const GruSize& size) {
    if (size.width < shape.hidden || size.parts != parts) return;
    for (int power = 0; power < 4; ++power) {
      const int cluster = 1 << power, groups = size.width / 16, threads = groups * size.split * 32 / cluster;
      if (limits.active[power] < 1 || groups % cluster || threads > size.threads()) continue;
      if (!size.clusters() && cluster > 1) continue;
      GruPlan plan = {};
      plan.stages = 4;
      const auto end = [&] { return GruMemory(size, bytes, threads, plan.stages, backward, shape.reset_after).end; };
      if (end() > limits.shared) plan.stages = 2;
      plan.shared = end();
      if (plan.shared > limits.shared) continue;
      plan.width = size.width;
      plan.rows = size.rows;
      plan.cluster = cluster;
      plan.threads = threads;
      plan.tiles = static_cast<int>((shape.batch + size.rows - 1) / size.rows);
      // A multiprocessor that is spared may break up one cluster.
      const int64_t active = std::max<int64_t>(1, limits.active[power] - spared);
      plan.waves = static_cast<int>((plan.tiles * shape.directions + active - 1) / active);
      plan.step = plan.waves * clocks(size, bytes, cluster, backward, shape.reset_after) / kClocks;
      if (!best.width || plan.step < best.step) best = plan;
    }
  };
  if (half)
    for (const GruSize& size : kGruHalf) consider(size);
  else
    for (const GruSize& size : kGruFloat) consider(size);
  return best;
}

int64_t gru_packed_bytes(const GruShape& shape, GruProduct product, int width) {
  return gru_fragments(shape, product == GruProduct::kHalf ? 2 : 4, width) * 16;
}

}  // namespace ser_fast
