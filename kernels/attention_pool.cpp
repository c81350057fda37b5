// Frame attention pooling on CPU: a task is one row of the batch and reads its frames once.
#include "attention_pool.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "simd.h"

namespace ser_fast {
namespace {

template <class T>
SER_FAST_INLINE T dot(const T* a, const T* b, int64_t width) {
  Vec<T> sums = {};
  int64_t i = 0;
  for (; i + kLanes<T> <= width; i += kLanes<T>) sums += load(a + i) * load(b + i);
  T sum = 0;
  for (int64_t lane = 0; lane < kLanes<T>; ++lane) sum += sums[lane];
  for (; i < width; ++i) sum += a[i] * b[i];
  return sum;
}

// Softmax as it goes: `pooled` and `total` are relative to the largest score so far.
template <class T>
SER_FAST_INLINE void pool_row(const PoolForward<T>& args, int64_t b) {
  const auto [B, frames, width] = args.shape;
  const int64_t length = args.lengths ? args.lengths[b] : frames;
  T* __restrict pooled = args.pooled + b * width;
  T* weights = args.weights + b * frames;
  T largest = -std::numeric_limits<T>::infinity();
  double total = 0;  // thousands of float weights would lose digits in a float sum
  std::fill_n(pooled, width, T(0));
  for (int64_t t = 0; t < length; ++t) {
    const T* __restrict h = args.h + b * args.row_stride + t * args.frame_stride;
    const T score = weights[t] = dot(h, args.w, width);
    if (score > largest) {
      const T shrink = std::exp(largest - score);
      total *= shrink;
      for (int64_t d = 0; d < width; ++d) pooled[d] *= shrink;
      largest = score;
    }
    const T weight = score == largest ? T(1) : std::exp(score - largest);  // both may be -infinity
    total += weight;
    for (int64_t d = 0; d < width; ++d) pooled[d] += weight * h[d];
  }
  if (length > 0)
    for (int64_t d = 0; d < width; ++d) pooled[d] = static_cast<T>(pooled[d] / total);
  for (int64_t t = 0; t < length; ++t)
    weights[t] = static_cast<T>((weights[t] == largest ? T(1) : std::exp(weights[t] - largest)) / total);
  std::fill(weights + length, weights + frames, T(0));
}

template <class T>
SER_FAST_INLINE void pool_row_backward(const PoolBackward<T>& args, int64_t b) {
  const auto [B, frames, width] = args.shape;
  const int64_t length = args.lengths ? args.lengths[b] : frames;
  const T* __restrict grad = args.grad_pooled + b * width;
  const T* weights = args.weights + b * frames;
  const T* grad_weights = args.grad_weights ? args.grad_weights + b * frames : nullptr;
  T* __restrict grad_w = args.grad_w + b * width;
  T mean = dot(grad, args.pooled + b * width, width);
  if (grad_weights) mean += dot(grad_weights, weights, length);
  std::fill_n(grad_w, width, T(0));
  for (int64_t t = 0; t < length; ++t) {
    const T* __restrict h = args.h + b * args.row_stride + t * args.frame_stride;
    T* __restrict grad_h = args.grad_h + (b * frames + t) * width;
    const T along = dot(grad, h, width) + (grad_weights ? grad_weights[t] : T(0));
    const T score = weights[t] * (along - mean);
    for (int64_t d = 0; d < width; ++d) {
      grad_h[d] = weights[t] * grad[d] + score * args.w[d];
      grad_w[d] += score * h[d];
    }
  }
  std::fill(args.grad_h + (b * frames + length) * width, args.grad_h + (b + 1) * frames * width, T(0));
}

SER_FAST_CLONES void forward_task(const PoolForward<float>& args, int64_t b) { pool_row(args, b); }
SER_FAST_CLONES void forward_task(const PoolForward<double>& args, int64_t b) { pool_row(args, b); }
SER_FAST_CLONES void backward_task(const PoolBackward<float>& args, int64_t b) { pool_row_backward(args, b); }
SER_FAST_CLONES void backward_task(const PoolBackward<double>& args, int64_t b) { pool_row_backward(args, b); }

}  // namespace

template <class T>
void attention_pool_forward_cpu(const PoolForward<T>& args, const Parallel& parallel) {
  parallel(args.shape.batch, [&](int64_t b) { forward_task(args, b); });
}

template <class T>
void attention_pool_backward_cpu(const PoolBackward<T>& args, const Parallel& parallel) {
  parallel(args.shape.batch, [&](int64_t b) { backward_task(args, b); });
}

template void attention_pool_forward_cpu(const PoolForward<float>&, const Parallel&);
template void attention_pool_forward_cpu(const PoolForward<double>&, const Parallel&);
template void attention_pool_backward_cpu(const PoolBackward<float>&, const Parallel&);
template void attention_pool_backward_cpu(const PoolBackward<double>&, const Parallel&);

}  // namespace ser_fast
