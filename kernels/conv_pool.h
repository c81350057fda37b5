// Convolution, maximum and ReLU of a padded batch: the contract between the torch boundary and the kernels.
//
//   z[p, t, f, o] = bias[o] + sum_{k, i, j} weight[o, k, i, j] x[t + i - kt / 2, f + j - kf / 2, p + k]
//   y[t, f, o]    = max(0, max_{p, r, s} z[p, 2 t + r, 2 f + s, o])        r, s in {0, 1}
//
// x is 0 outside the image and past a row's length; pixels z there are left out of the maximum, so an odd last frame
// or bin is kept. p counts the C - K + 1 positions of the filter along the channels. The winner of an output is
// 4 p + 2 r + s of its first largest pixel, or kNoWinner if none is above 0; it alone has a gradient.
#pragma once

#include <cstdint>

#include "parallel.h"

namespace ser_fast {

constexpr uint8_t kNoWinner = 255;
constexpr int64_t kMostPositions = 63;  // 4 p + 2 r + s stays below kNoWinner

struct ConvPoolShape {
  int64_t batch, frames, bins, channels;       // B, T (of the longest row), F, C
  int64_t filters, depth, kernel_t, kernel_f;  // O, K, kt, kf; kt and kf are odd

  int64_t positions() const { return channels - depth + 1; }
  int64_t pooled_frames() const { return (frames + 1) / 2; }
  int64_t pooled_bins() const { return (bins + 1) / 2; }
  int64_t row() const { return (kernel_f - 1) * channels + depth; }  // elements that a filter spans in a frame of x
  int64_t taps() const { return depth * kernel_t * kernel_f; }
  double products() const { return static_cast<double>(batch) * frames * bins * positions() * filters * taps(); }
};

// One row of the batch, which is padded to T frames or packed: one row after the other.
struct ConvPoolRow {
  int64_t x;               // elements before its first frame in x
  int64_t frame, pooled;   // frames before its first one in a contiguous x and in y
  int64_t frames, length;  // frames with padding, and valid ones
};

// Elements between two frames and two bins of x, whose channels are dense.
struct ImageStrides {
  int64_t frame, bin;
};

// Elements between two bins and two filters of a frame of y, [F', O] or [O, F'].
struct PooledStrides {
  int64_t bin, filter;
};

template <class T>
struct ConvPoolForward {
  ConvPoolShape shape;
  const ConvPoolRow* rows;  // [B]
  const T* x;
  ImageStrides strides;
  const T* weight;  // [O, K, kt, kf]
  const T* bias;    // [O] or null
  T* y;             // zero past each length
  PooledStrides pooled;
  uint8_t* winners;  // a frame is [F', O]
};

template <class T>
struct ConvPoolBackward {
  ConvPoolShape shape;
  const ConvPoolRow* rows;
  const T* grad;  // of y
  PooledStrides pooled;
  const T* x;
  ImageStrides strides;
  const T* weight;
  const uint8_t* winners;
  T* grad_x;       // like x, contiguous, zero past each length; or null
  T* grad_weight;  // [O, K, kt, kf]
  T* grad_bias;    // [O]
};

template <class T>
void conv_pool_forward_cpu(const ConvPoolForward<T>& args, const Parallel& parallel);

template <class T>
void conv_pool_backward_cpu(const ConvPoolBackward<T>& args, const Parallel& parallel);

}  // namespace ser_fast
