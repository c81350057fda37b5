// GRU layer on CPU: the input's projection and the recurrence of gru.h in one call, and all gradients in another.
//
//   gx = W_ih x + b_ih
//
// gx is computed for some steps of a few rows at a time and stays in the cache; it is never stored whole.
#pragma once

#include <cstdint>

#include "gru.h"
#include "simd.h"

namespace ser_fast {

// One direction's weights; the biases are null if there are none. Each row of int8 weights is times its scale.
template <class T, class W = T>
struct GruLayerWeights {
  const W *w_ih, *w_hh;          // [3H, I], [3H, H]
  const T *b_ih, *b_hh;          // [3H]
  const Wide<W> *s_ih, *s_hh;    // [3H]; null unless W is int8_t
};

// T is float, double or Bf16, W the same or int8_t. All sums and the state between the steps are in Wide<T>.
template <class T, class W = T>
struct GruLayer {
  GruShape shape;
  int64_t features;           // I
  Frames<const T> x;          // [T, B, I]
  GruLayerWeights<T, W> weights[2];
  const T* h0;                // [D, B, H] or null for zeros
  const int64_t* lengths;     // [B], each in 0..T, or null for T
  Frames<T> y;                // [T, B, D, H]
  T* h_n;                     // [D, B, H]
  Frames<T> gates, states;    // for the backward, [T, B, D, 4H] and [T, B, D, H]; packed if there are lengths. Or null.
};

// Null for gradients that are not wanted.
template <class T>
struct GruLayerGradients {
  T *w_ih, *w_hh, *b_ih, *b_hh;  // as the weights
};

template <class T>
struct GruLayerBackward {
  GruShape shape;
  int64_t features;                  // I
  Frames<const T> x, grad_y;         // [T, B, I], [T, B, D, H]
  const T* grad_h_n;                 // [D, B, H]
  GruLayerWeights<T> weights[2];     // the biases are not read
  const T* h0;                       // [D, B, H] or null
  const int64_t* lengths;            // [B] or null
  Frames<const T> gates, states;     // of the forward, N frames one after the other
  Frames<T> grad_x;                  // [T, B, I], zero past each length; null if not wanted
  GruLayerGradients<T> gradients[2];
  T* grad_h0;                        // [D, B, H]
  T *grad_gx, *grad_q;               // scratch memory, [N, D, 3H] and, with reset_after, [N, D, H]
};

template <class T, class W>
void gru_layer_cpu(const GruLayer<T, W>& args, const Parallel& parallel);

template <class T>
void gru_layer_backward_cpu(const GruLayerBackward<T>& args, const Parallel& parallel);

}  // namespace ser_fast
