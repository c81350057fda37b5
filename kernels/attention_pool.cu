// Frame attention pooling on CUDA: an online softmax over time, split over blocks and merged. See attention_pool.h.
//
// A group of 1 to 8 warps holds a frame, up to 32 elements per lane, and prefetches the next one. Forward reads h
// once; backward reads h once and writes its gradient once. No atomics: every sum has a fixed order.
#include "attention_pool.h"
#include "device.h"

namespace ser_fast {
namespace {

using namespace gpu;

constexpr int kWarps = 8;  // of a block
constexpr int kThreads = 32 * kWarps;

// The part of a row of D elements that one lane of a group holds: PACKS times 16 bytes.
template <class T, int PACKS, bool VECTOR>
struct Lane {
  static constexpr int kPack = 16 / sizeof(T), kSize = PACKS * kPack;
  int column, stride, width;  // column of the first pack, distance between packs, D

  SER_FAST_DEVICE Lane(int group, int64_t width) : width(static_cast<int>(width)) {
    column = (warp() % group * 32 + lane()) * kPack;
    stride = group * 32 * kPack;
  }

  SER_FAST_DEVICE void load(const T* row, bool valid, float (&out)[kSize]) const {
    SER_FAST_UNROLL
    for (int p = 0; p < PACKS; ++p) {
      const int at = column + p * stride;
      Pack<T> pack = {};
      if (VECTOR) {
        if (valid && at < width) pack = *reinterpret_cast<const Pack<T>*>(row + at);
      } else {
        SER_FAST_UNROLL
        for (int i = 0; i < kPack; ++i)
          if (valid && at + i < width) pack.value[i] = row[at + i];
      }
      SER_FAST_UNROLL
      for (int i = 0; i < kPack; ++i) out[p * kPack + i] = widen(pack.value[i]);
    }
  }

  SER_FAST_DEVICE void store(T* row, const float (&in)[kSize]) const {
    SER_FAST_UNROLL
    for (int p = 0; p < PACKS; ++p) {
      const int at = column + p * stride;
      Pack<T> pack;
      SER_FAST_UNROLL
      for (int i = 0; i < kPack; ++i) narrow(in[p * kPack + i], &pack.value[i]);
      if (VECTOR) {
        if (at < width) *reinterpret_cast<Pack<T>*>(row + at) = pack;
      } else {
        SER_FAST_UNROLL
        for (int i = 0; i < kPack; ++i)
          if (at + i < width) row[at + i] = pack.value[i];
      }
    }
  }

  // Adds up the sums of all groups through shared memory and writes them to out [D].
  SER_FAST_DEVICE void add_groups(const float (&sums)[kSize], int groups, float* out) const {
    float* rows = shared<float>() + 4 * kWarps;
    const int mine = warp() / (kWarps / groups);
    SER_FAST_UNROLL
    for (int p = 0; p < PACKS; ++p)
      for (int i = 0; i < kPack; ++i)
        if (column + p * stride + i < width) rows[mine * width + column + p * stride + i] = sums[p * kPack + i];
    barrier();
    for (int d = thread(); d < width; d += kThreads) {
      float sum = 0;
      for (int g = 0; g < groups; ++g) sum += rows[g * width + d];
      out[d] = sum;
    }
  }
};

template <int SIZE>
SER_FAST_DEVICE float dot(const float (&a)[SIZE], const float (&b)[SIZE]) {
  float sum = 0;
  SER_FAST_UNROLL
  for (int i = 0; i < SIZE; ++i) sum += a[i] * b[i];
  return sum;
}

// Sum over the group's lanes. Contains a barrier: all warps of the block must call it equally often, and `turn` must
// alternate between calls, because it selects one of two buffers.
SER_FAST_DEVICE float group_sum(float x, int group, int turn) {
  x = warp_sum(x);
  if (group == 1) return x;
  float* sums = shared<float>() + turn % 2 * kWarps;
  if (lane() == 0) sums[warp()] = x;
  barrier();
  x = 0;
  for (int i = 0, first = warp() / group * group; i < group; ++i) x += sums[first + i];
  return x;
}

SER_FAST_DEVICE int64_t row_length(const int64_t* lengths, int64_t b, int64_t frames) {
  if (!lengths) return frames;
  const int64_t length = lengths[b];
  return length < 0 ? 0 : length < frames ? length : frames;
}

template <class T, int PACKS, bool VECTOR>
SER_FAST_KERNEL void forward(PoolForwardGpu<T> a) {
  const auto [B, T_, D] = a.shape;
  const int64_t b = block() / a.plan.runs, run = block() % a.plan.runs;
  const int64_t length = row_length(a.lengths, b, T_), begin = run * a.plan.run;
  const int64_t end = begin + a.plan.run < length ? begin + a.plan.run : length;
  const int group = a.plan.group, groups = kWarps / group, mine = warp() / group;
  const Lane<T, PACKS, VECTOR> lane_of(group, D);
  constexpr int kSize = Lane<T, PACKS, VECTOR>::kSize;
  float w[kSize], now[kSize], next[kSize], sum[kSize] = {};
  lane_of.load(a.w, true, w);
  const T* h = a.h + b * a.row_stride;
  lane_of.load(h + (begin + mine) * a.frame_stride, begin + mine < end, next);
  float top = -INFINITY, total = 0;
  for (int64_t first = begin, turn = 0; first < end; first += groups, ++turn) {
    const int64_t t = first + mine, coming = t + groups;
    SER_FAST_UNROLL
    for (int i = 0; i < kSize; ++i) now[i] = next[i];
    lane_of.load(h + coming * a.frame_stride, coming < end, next);
    const float score = group_sum(dot(now, w), group, static_cast<int>(turn));
    if (t >= end) continue;
    if (lane() == 0 && warp() % group == 0) a.scores[b * T_ + t] = score;
    const float highest = maximum(top, score), base = highest == -INFINITY ? 0 : highest;
    const float scale = exponential(top - base), weight = exponential(score - base);
    total = total * scale + weight;
    SER_FAST_UNROLL
    for (int i = 0; i < kSize; ++i) sum[i] = sum[i] * scale + weight * now[i];
    top = highest;
  }

  float* tops = shared<float>() + 2 * kWarps;
  float* totals = shared<float>() + 3 * kWarps;
  if (lane() == 0 && warp() % group == 0) tops[mine] = top, totals[mine] = total;
  barrier();
  float highest = -INFINITY, all = 0;
  for (int g = 0; g < groups; ++g) highest = maximum(highest, tops[g]);
  const float base = highest == -INFINITY ? 0 : highest;
  for (int g = 0; g < groups; ++g) all += totals[g] * exponential(tops[g] - base);
  const float scale = exponential(top - base);
  SER_FAST_UNROLL
  for (int i = 0; i < kSize; ++i) sum[i] *= scale;
  float* partial = a.partial + (b * a.plan.runs + run) * (2 + D);
  if (thread() == 0) partial[0] = highest, partial[1] = all;
  lane_of.add_groups(sum, groups, partial + 2);
}

// Merges the runs of a row; each block writes kThreads of its weights and kThreads columns of pooled.
template <class T>
SER_FAST_KERNEL void merge(PoolForwardGpu<T> a) {
  const auto [B, T_, D] = a.shape;
  const int64_t b = block() / a.plan.parts, at = block() % a.plan.parts * kThreads + thread();
  const int64_t length = row_length(a.lengths, b, T_);
  const float* partial = a.partial + b * a.plan.runs * (2 + D);
  float highest = -INFINITY, total = 0;
  for (int64_t run = 0; run < a.plan.runs; ++run) highest = maximum(highest, partial[run * (2 + D)]);
  const float base = highest == -INFINITY ? 0 : highest;
  for (int64_t run = 0; run < a.plan.runs; ++run)
    total += partial[run * (2 + D) + 1] * exponential(partial[run * (2 + D)] - base);
  const float inverse = length > 0 ? 1 / total : 0;
  if (at < D) {
    float sum = 0;
    for (int64_t run = 0; run < a.plan.runs; ++run)
      sum += partial[run * (2 + D) + 2 + at] * exponential(partial[run * (2 + D)] - base);
    narrow(sum * inverse, &a.pooled[b * D + at]);
  }
  if (at < T_) narrow(at < length ? exponential(a.scores[b * T_ + at] - base) * inverse : 0, &a.weights[b * T_ + at]);
}

template <class T, int PACKS, bool VECTOR>
SER_FAST_KERNEL void backward(PoolBackwardGpu<T> a) {
  const auto [B, T_, D] = a.shape;
  const int64_t b = block() / a.plan.runs, run = block() % a.plan.runs;
  const int64_t length = row_length(a.lengths, b, T_), begin = run * a.plan.run;
  const int64_t end = begin + a.plan.run < T_ ? begin + a.plan.run : T_;
  const int group = a.plan.group, groups = kWarps / group, mine = warp() / group;
  const Lane<T, PACKS, VECTOR> lane_of(group, D);
  constexpr int kSize = Lane<T, PACKS, VECTOR>::kSize;
  float w[kSize], g[kSize], now[kSize], next[kSize], sum[kSize] = {};
  lane_of.load(a.w, true, w);
  lane_of.load(a.grad_pooled + b * D, true, g);
  lane_of.load(a.pooled + b * D, true, now);
  float mean = 0;  // weighted mean of grad_weights over the whole row
  if (a.grad_weights) {
    for (int64_t t = thread(); t < length; t += kThreads)
      mean += widen(a.weights[b * T_ + t]) * widen(a.grad_weights[b * T_ + t]);
    mean = group_sum(mean, kWarps, 0);
  }
  const float center = group_sum(dot(g, now), group, 1) + mean;
  const T* h = a.h + b * a.row_stride;
  const int64_t last = end < length ? end : length;  // later frames have zero gradient and are not read
  lane_of.load(h + (begin + mine) * a.frame_stride, begin + mine < last, next);
  for (int64_t first = begin, turn = 0; first < end; first += groups, ++turn) {
    const int64_t t = first + mine, coming = t + groups;
    SER_FAST_UNROLL
    for (int i = 0; i < kSize; ++i) now[i] = next[i];
    lane_of.load(h + coming * a.frame_stride, coming < last, next);
    const float along = group_sum(dot(now, g), group, static_cast<int>(turn));
    if (t >= end) continue;
    const bool valid = t < length;
    const float weight = valid ? widen(a.weights[b * T_ + t]) : 0;
    const float e = valid && a.grad_weights ? widen(a.grad_weights[b * T_ + t]) : 0;
    const float score = valid ? weight * (along + e - center) : 0;
    SER_FAST_UNROLL
    for (int i = 0; i < kSize; ++i) {
      sum[i] += score * now[i];
      now[i] = weight * g[i] + score * w[i];
    }
    lane_of.store(a.grad_h + (b * T_ + t) * D, now);
  }
  lane_of.add_groups(sum, groups, a.partial + (b * a.plan.runs + run) * D);
}

}  // namespace

PoolPlan pool_plan(const PoolShape& shape, int bytes, bool aligned) {
  // Maximum elements per lane, minimum frames per run, maximum runs per row.
  constexpr int64_t kElements = 32, kRun = 64, kRuns = 64;
  PoolPlan plan = {};
  for (plan.group = 1; plan.group < kWarps && 32 * kElements * plan.group < shape.width;) plan.group *= 2;
  const int64_t lanes = 32 * plan.group, pack = 16 / bytes;
  static_assert(kPoolWidest == 32 * kWarps * kElements);
  if (shape.width > kPoolWidest) return plan;
  for (plan.packs = 1; lanes * plan.packs * pack < shape.width;) plan.packs *= 2;
  const int64_t groups = kWarps / plan.group, least = (shape.frames + kRuns - 1) / kRuns;
  plan.run = ((least > kRun ? least : kRun) + groups - 1) / groups * groups;
  plan.runs = static_cast<int>((shape.frames + plan.run - 1) / plan.run);
  plan.vector = aligned;
  const int64_t longest = shape.frames > shape.width ? shape.frames : shape.width;
  plan.parts = static_cast<int>((longest + kThreads - 1) / kThreads);
  plan.shared = sizeof(float) * (4 * kWarps + groups * shape.width);
  return plan;
}

namespace {

template <class T, class Args>
using Kernel = void (*)(Args);

// Selects the kernel for the plan's packs and vector; Choice is Forward or Backward.
template <template <class, int, bool> class Choice, class T, class Args>
Kernel<T, Args> choose(const PoolPlan& plan) {
  switch (plan.packs * 2 + plan.vector) {
    case 2: return Choice<T, 1, false>::kernel;
    case 3: return Choice<T, 1, true>::kernel;
    case 4: return Choice<T, 2, false>::kernel;
    case 5: return Choice<T, 2, true>::kernel;
    case 8: return Choice<T, 4, false>::kernel;
    case 9: return Choice<T, 4, true>::kernel;
    case 16: return Choice<T, 16 / sizeof(T) == 4 ? 8 : 4, false>::kernel;
    default: return Choice<T, 16 / sizeof(T) == 4 ? 8 : 4, true>::kernel;
  }
}

template <class T, int PACKS, bool VECTOR>
struct Forward {
  static constexpr Kernel<T, PoolForwardGpu<T>> kernel = forward<T, PACKS, VECTOR>;
};
template <class T, int PACKS, bool VECTOR>
struct Backward {
  static constexpr Kernel<T, PoolBackwardGpu<T>> kernel = backward<T, PACKS, VECTOR>;
};

}  // namespace

template <class T>
int attention_pool_forward_cuda(const PoolForwardGpu<T>& args, Stream stream) {
  const int blocks = static_cast<int>(args.shape.batch * args.plan.runs);
  const auto kernel = choose<Forward, T, PoolForwardGpu<T>>(args.plan);
  if (const int failed = launch(kernel, blocks, kThreads, args.plan.shared, stream, args)) return failed;
  const int merging = static_cast<int>(args.shape.batch * args.plan.parts);
  return launch(merge<T>, merging, kThreads, 0, stream, args);
}

template <class T>
int attention_pool_backward_cuda(const PoolBackwardGpu<T>& args, Stream stream) {
  const int blocks = static_cast<int>(args.shape.batch * args.plan.runs);
  const auto kernel = choose<Backward, T, PoolBackwardGpu<T>>(args.plan);
  return launch(kernel, blocks, kThreads, args.plan.shared, stream, args);
}

#define SER_FAST_POOL(T)                                                          \
  template int attention_pool_forward_cuda<T>(const PoolForwardGpu<T>&, Stream); \
  template int attention_pool_backward_cuda<T>(const PoolBackwardGpu<T>&, Stream);
SER_FAST_POOL(float)
SER_FAST_POOL(gpu::Half)
SER_FAST_POOL(gpu::Bfloat)

}  // namespace ser_fast
