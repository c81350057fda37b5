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

// Lower bound on the clock cycles of a step. The constants are estimates, in cycles: issue and latency of a tensor
// core product, the cell's arithmetic, a barrier, and a store into another block.
float clocks(const GruSize& size, int bytes, int cluster, bool backward, bool reset_after) {
  constexpr float kIssue = 8, kLatency = 24, kCell = 200, kBarrier = 60, kCrossing = 600;
  const int steps = size.width * bytes / 32 / size.split, tiles = size.rows / 8, each = size.parts == 2 ? 3 : 1;
  const int warps = size.width / 16 * size.split / cluster, busiest = (warps + 3) / 4;
  const float issue = busiest * 3 * steps * tiles * each * kIssue;
  const float chain = steps * (size.parts == 2 ? 2 : 0.5f) * kLatency * (reset_after ? 1 : 2);
  const float read = warps * (size.spare(backward) * 4 + steps * tiles * size.parts * (backward ? 3 : 1) * 2);
  const float exchange = (cluster == 1 ? kBarrier : kCrossing + 8 * cluster) * (reset_after ? 1 : 2);
  return (issue > chain ? issue : chain) + read + exchange + kCell;
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
