// Multi-head self-attention: the contract between the torch boundary and the CPU kernel.
//
//   P_ts = exp(q_t . k_s / sqrt(d)) / sum_u exp(q_t . k_u / sqrt(d))   over the row's valid frames, in each head
//   A_ts = m_ts P_ts / (1 - p)                                         dropout: m_ts is 0 with probability p, else 1
//
// With values, output_t = sum_s A_ts v_s. Without, the output is the mean of A over the queries, one weight per key:
// c_s = sum_t A_ts / T. It is all that the mean over frames needs, since mean_t(sum_s A_ts v_s) = sum_s c_s v_s.
//
// With G_ts the gradient of A_ts, which is grad_t . v_s or grad_s / T, the gradient of the scores is
//   dS_ts = A_ts G_ts - P_ts sum_u A_tu G_tu,   dq_t = sum_s dS_ts k_s / sqrt(d),   dk_s = sum_t dS_ts q_t / sqrt(d).
//
// Nothing of size T^2 is stored: the backward computes the weights again, and draws the same m.
#pragma once

#include <cstdint>

#include "parallel.h"

namespace ser_fast {

struct AttentionShape {
  int64_t batch, frames, heads, width;  // B, T (N if packed), heads, d
  bool mixes;                           // with values
};

// A [B, T, ...] tensor, or a packed one, [N, ...], whose rows follow one another: row b begins at frame starts[b].
template <class T>
struct Rows {
  T* data;
  int64_t row_stride, frame_stride;
  const int64_t* starts;  // null if not packed

  T* at(int64_t row) const { return data + (starts ? starts[row] * frame_stride : row * row_stride); }
};

// The projections [..., 2 or 3, heads, d]: queries, keys and values of each frame; the last axis is dense.
template <class T>
struct Projections : Rows<T> {
  int64_t part_stride, head_stride;
};

struct Dropout {
  uint32_t dropped;  // of 256 weights, 256 excluded
  double scale;      // of those that stay; 0 if none does
  uint64_t seed;
};

template <class T>
struct AttentionForward {
  AttentionShape shape;
  Projections<const T> qkv;
  const int64_t* lengths;  // [B], each in 0..T, or null for T
  Dropout dropout;
  // Values: [B, T, heads, d] or [N, heads, d]. Weights: [B, heads, T] or [heads, N]. Dense; zero past each length.
  T* output;
};

template <class T>
struct AttentionBackward {
  AttentionShape shape;
  const T* grad;  // like the output
  Projections<const T> qkv;
  const int64_t* lengths;
  Dropout dropout;
  T* grad_qkv;  // [B, T, 2 or 3, heads, d] or [N, 2 or 3, heads, d], dense; zero past each length
  const int64_t* starts;
};

template <class T>
void self_attention_forward_cpu(const AttentionForward<T>& args, const Parallel& parallel);

template <class T>
void self_attention_backward_cpu(const AttentionBackward<T>& args, const Parallel& parallel);

}  // namespace ser_fast
