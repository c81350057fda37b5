// GRU recurrence: the contract between the torch boundary and every backend, and the cell's mathematics.
//
//   r = sigmoid(gx_r + W_hr h + b_hr)        z = sigmoid(gx_z + W_hz h + b_hz)
//   reset_after:  q = W_hn h + b_hn          n = tanh(gx_n + r q)
//   otherwise:    q = r h                    n = tanh(gx_n + W_hn q + b_hn)
//   h' = z h + (1 - z) n
//
// gx is the input's projection with its bias. Gates are ordered r, z, n. Direction 1 walks each row from
// its own last frame to its first. Past a row's length y is 0 and h stays.
#pragma once

#include <cstdint>

#include "activations.h"
#include "parallel.h"

namespace ser_fast {

struct GruShape {
  int64_t frames, batch, directions, hidden;  // T, B, D, H
  bool reset_after;
};

// A [T, B, D, ...] tensor whose last two axes are dense; strides are in elements. Or a packed one, [N, D, ...], whose
// rows lie one after the other without padding: row b's frames begin at starts[b].
template <class T>
struct Frames {
  T* data;
  int64_t frame_stride, row_stride;
  const int64_t* starts;

  T* at(int64_t frame, int64_t row) const {
    return data + (starts ? (starts[row] + frame) * frame_stride : frame * frame_stride + row * row_stride);
  }
};

// The backward reads the gates that the forward saved: writing them costs a fifth of the forward (8.2 against 9.8 ms at
// T=200 B=64 H=128), while computing them again would cost a second forward.
template <class T>
struct GruForward {
  GruShape shape;
  Frames<const T> gx;      // [T, B, D, 3H]
  const T* w_hh;           // [D, 3H, H]
  const T* b_hh;           // [D, 3H] or null
  const T* h0;             // [D, B, H] or null for zeros
  const int64_t* lengths;  // [B], each in 0..T, or null for T
  Frames<T> y;             // [T, B, D, H]
  T* h_n;                  // [D, B, H]
  Frames<T> gates;         // [T, B, D, 4H]: r, z, n, q for the backward; data is null if none is wanted
};

template <class T>
struct GruBackward {
  GruShape shape;
  Frames<const T> grad_y;  // [T, B, D, H]
  const T* grad_h_n;       // [D, B, H]
  Frames<const T> y;       // [T, B, D, H]
  Frames<const T> gates;   // [T, B, D, 4H]
  const T* w_hh;           // [D, 3H, H]
  const T* h0;             // [D, B, H] or null
  const int64_t* lengths;  // [B] or null
  Frames<T> grad_gx;       // [T, B, D, 3H], zero past each length
  Frames<T> grad_q;        // [T, B, D, H], reset_after only: the gradient of q = W_hn h + b_hn
  T* grad_h0;              // [D, B, H]
};

template <class T>
void gru_forward_cpu(const GruForward<T>& args, const Parallel& parallel);

template <class T>
void gru_backward_cpu(const GruBackward<T>& args, const Parallel& parallel);

template <class T>
struct GruState {
  T n, h;
};

// From the gates to the new state; pre_n is the candidate's whole pre-activation.
template <class T>
SER_FAST_INLINE GruState<T> gru_cell(T z, T pre_n, T h) {
  const T n = tangent(pre_n);
  return {n, n + z * (h - n)};
}

template <class T>
struct GruCellGrad {
  T pre_z, pre_n;
};

// From the new state's gradient to those of the update gate's and the candidate's pre-activations.
template <class T>
SER_FAST_INLINE GruCellGrad<T> gru_cell_backward(T grad_h, T z, T n, T h) {
  return {grad_h * (h - n) * z * (1 - z), grad_h * (1 - z) * (1 - n * n)};
}

}  // namespace ser_fast
