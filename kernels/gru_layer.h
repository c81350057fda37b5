// GRU layer in inference on CPU: the input's projection and the recurrence of gru.h in one call.
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
};

template <class T, class W>
void gru_layer_cpu(const GruLayer<T, W>& args, const Parallel& parallel);

}  // namespace ser_fast
