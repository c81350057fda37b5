// Frame attention pooling on CPU. A task is one row of the batch; it reads the frames in chunks, so that the second
// loop over a chunk finds it in the L1 cache. Sums over frames are sums of the chunks' sums: one by one, thousands of
// frames would lose four digits of a float.
#include "attention_pool.h"

#include <algorithm>
#include <limits>

#include "activations.h"
#include "simd.h"

namespace ser_fast {
namespace {

constexpr int64_t kChunk = 16;  // frames

template <class I, class T>
SER_FAST_INLINE T dot(const T* a, const T* b, int64_t width) {
  constexpr int64_t lanes = kLanes<I, T>;
  Vec<I, T> sum = {}, other = {};
  int64_t i = 0;
  for (; i + 2 * lanes <= width; i += 2 * lanes) {
    sum += load<I>(a + i) * load<I>(b + i);
    other += load<I>(a + i + lanes) * load<I>(b + i + lanes);
  }
  for (; i < width; i += lanes) sum += load<I>(a + i, width - i) * load<I>(b + i, width - i);
  return sum_lanes(Vec<I, T>(sum + other));
}

// Sets out[i] = exp(x[i] - base) and returns the sum. Powers below exp(-87), about the smallest normal float, are 0.
template <class I, class T>
SER_FAST_INLINE double exponentials(const T* x, T base, T* out, int64_t size) {
  constexpr int64_t lanes = kLanes<I, T>;
  double total = 0;  // thousands of float weights would lose digits in a float sum
  for (int64_t i = 0; i < size; i += lanes) {
    const Vec<I, T> below = load<I>(x + i, size - i) - base, zero = {};
    store(out + i, Vec<I, T>(below < T(-87) ? zero : exponential(below)), size - i);
    for (int64_t j = i; j < std::min(i + lanes, size); ++j) total += out[j];
  }
  return total;
}

// Online softmax: `pooled` and `total` are relative to `base`, the largest score so far, or 0 while all are -infinity,
// which weigh nothing. As with torch.softmax, +infinity or nothing but -infinity gives NaN.
template <class I, class T>
SER_FAST_INLINE void task(I, const PoolForward<T>& args, int64_t b) {
  constexpr int64_t lanes = kLanes<I, T>;
  const auto [B, frames, width] = args.shape;
  const int64_t length = args.lengths ? args.lengths[b] : frames;
  T *pooled = args.pooled + b * width, *scores = args.weights + b * frames, chunk[kChunk];
  constexpr T kLowest = -std::numeric_limits<T>::infinity();
  T largest = kLowest, base = 0;
  double total = 0;
  std::fill_n(pooled, width, T(0));
  for (int64_t first = 0; first < length; first += kChunk) {
    const int64_t count = std::min(kChunk, length - first);
    const T* h = args.h + b * args.row_stride + first * args.frame_stride;
    T before = largest;
    for (int64_t t = 0; t < count; ++t) {
      scores[first + t] = dot<I>(h + t * args.frame_stride, args.w, width);
      largest = std::max(largest, scores[first + t]);
    }
    T shrink;
    base = largest == kLowest ? T(0) : largest;
    exponentials<I>(&before, base, &shrink, 1);
    total = total * shrink + exponentials<I>(scores + first, base, chunk, count);
    for (int64_t d = 0; d < width; d += lanes) {
      Vec<I, T> sum = {};
      for (int64_t t = 0; t < count; ++t) sum += load<I>(h + t * args.frame_stride + d, width - d) * chunk[t];
      store(pooled + d, Vec<I, T>(load<I>(pooled + d, width - d) * shrink + sum), width - d);
    }
  }
  const T share = length > 0 ? static_cast<T>(1 / total) : T(0);
  for (int64_t d = 0; d < width; ++d) pooled[d] *= share;
  exponentials<I>(scores, base, scores, length);
  for (int64_t t = 0; t < length; ++t) scores[t] *= share;
  std::fill(scores + length, scores + frames, T(0));
}

template <class I, class T>
SER_FAST_INLINE void task(I, const PoolBackward<T>& args, int64_t b) {
  constexpr int64_t lanes = kLanes<I, T>;
  const auto [B, frames, width] = args.shape;
  const int64_t length = args.lengths ? args.lengths[b] : frames;
  const T *grad = args.grad_pooled + b * width, *weights = args.weights + b * frames;
  const T* grad_weights = args.grad_weights ? args.grad_weights + b * frames : nullptr;
  T *grad_w = args.grad_w + b * width, slopes[kChunk];
  T mean = dot<I>(grad, args.pooled + b * width, width);
  if (grad_weights) mean += dot<I>(grad_weights, weights, length);
  std::fill_n(grad_w, width, T(0));
  for (int64_t first = 0; first < length; first += kChunk) {
    const int64_t count = std::min(kChunk, length - first);
    const T* h = args.h + b * args.row_stride + first * args.frame_stride;
    T* grad_h = args.grad_h + (b * frames + first) * width;
    for (int64_t t = 0; t < count; ++t) {
      const T along = dot<I>(grad, h + t * args.frame_stride, width) + (grad_weights ? grad_weights[first + t] : T(0));
      slopes[t] = weights[first + t] * (along - mean);
    }
    for (int64_t d = 0; d < width; d += lanes) {
      const auto g = load<I>(grad + d, width - d), w = load<I>(args.w + d, width - d);
      Vec<I, T> sum = {};
      for (int64_t t = 0; t < count; ++t) {
        store(grad_h + t * width + d, Vec<I, T>(weights[first + t] * g + slopes[t] * w), width - d);
        sum += slopes[t] * load<I>(h + t * args.frame_stride + d, width - d);
      }
      store(grad_w + d, Vec<I, T>(load<I, T>(grad_w + d, width - d) + sum), width - d);
    }
  }
  std::fill(args.grad_h + (b * frames + length) * width, args.grad_h + (b + 1) * frames * width, T(0));
}

#define SER_FAST_POOL_TASKS(I, T, target)                                                              \
  target void run(I isa, const PoolForward<T>& args, int64_t b) { task(isa, args, b); }                \
  target void run(I isa, const PoolBackward<T>& args, int64_t b) { task(isa, args, b); }
#define SER_FAST_POOL(I, target) SER_FAST_POOL_TASKS(I, float, target) SER_FAST_POOL_TASKS(I, double, target)
SER_FAST_EACH_ISA(SER_FAST_POOL)

}  // namespace

template <class T>
void attention_pool_forward_cpu(const PoolForward<T>& args, const Parallel& parallel) {
  const double work = static_cast<double>(args.shape.batch) * args.shape.frames * args.shape.width / 8;
  with_isa<T>([&](auto isa) { parallel.worth(work)(args.shape.batch, [&](int64_t b) { run(isa, args, b); }); });
}

template <class T>
void attention_pool_backward_cpu(const PoolBackward<T>& args, const Parallel& parallel) {
  const double work = static_cast<double>(args.shape.batch) * args.shape.frames * args.shape.width / 4;
  with_isa<T>([&](auto isa) { parallel.worth(work)(args.shape.batch, [&](int64_t b) { run(isa, args, b); }); });
}

template void attention_pool_forward_cpu(const PoolForward<float>&, const Parallel&);
template void attention_pool_forward_cpu(const PoolForward<double>&, const Parallel&);
template void attention_pool_backward_cpu(const PoolBackward<float>&, const Parallel&);
template void attention_pool_backward_cpu(const PoolBackward<double>&, const Parallel&);

}  // namespace ser_fast
