// Products of a few rows with weights as they lie in memory: for so few frames a layout of their own does not pay.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

#include "gru_rows.h"
#include "simd.h"

namespace ser_fast {

template <class V, size_t... lane>
SER_FAST_INLINE auto lane_numbers(std::index_sequence<lane...>) {
  return decltype(V{} < V{}){lane...};
}

// Returns the products of x[depth] with `count` dense rows of w, at most a vector of them; other lanes repeat the last.
template <class I, class W, class X>
SER_FAST_INLINE Vec<I, Wide<W>> dots(const W* w, int64_t count, const X* x, int64_t depth) {
  using V = Vec<I, Wide<W>>;
  using Bits = decltype(V{} < V{});
  constexpr int64_t lanes = kLanes<I, Wide<W>>;
  const W* rows[lanes];
  SER_FAST_UNROLL
  for (int64_t i = 0; i < lanes; ++i) rows[i] = w + std::min(i, count - 1) * depth;
  V sum[lanes] = {};
  const int64_t whole = depth / lanes * lanes;
  for (int64_t k = 0; k < whole; k += lanes) {
    const V left = load<I>(x + k);
    SER_FAST_UNROLL
    for (int64_t i = 0; i < lanes; ++i) sum[i] += left * load<I>(rows[i] + k);
  }
  if (whole > 0 && whole < depth) {  // the last vector again, without the lanes that are already in the sums
    const auto known = static_cast<Element<Bits>>(lanes - (depth - whole));
    const Bits rest = lane_numbers<V>(std::make_index_sequence<lanes>{}) >= known;
    const V left = (V)((Bits)load<I>(x + depth - lanes) & rest);
    SER_FAST_UNROLL
    for (int64_t i = 0; i < lanes; ++i) sum[i] += left * (V)((Bits)load<I>(rows[i] + depth - lanes) & rest);
  } else if (whole < depth) {
    const V left = load<I>(x, depth);
    SER_FAST_UNROLL
    for (int64_t i = 0; i < lanes; ++i) sum[i] += left * load<I>(rows[i], depth);
  }
  return sums_of(sum);
}

// Returns scale * sum + bias of `count` rows from `at` on; either is left out if null.
template <class I, class V, class B>
SER_FAST_INLINE V affine(V sum, const B* bias, const Element<V>* scale, int64_t at, int64_t count) {
  if (scale) sum *= load<I>(scale + at, count);
  return bias ? load<I>(bias + at, count) + sum : sum;
}

// The interface of ForwardWeights on W_hh and b_hh as they are.
template <class I, class S, class B = S>
struct DirectWeights {
  using T = Wide<S>;
  using F = typename Factor<I, S>::Type;
  static constexpr int64_t kLane = kLanes<I, T>;
  static constexpr int kMost = 4;  // rows of a step
  template <int R>
  static constexpr int kTogether = 1;

  const S* w;
  const B* b;
  const T* scale;
  int64_t H, blocks, pairs;

  DirectWeights(const S* w, const B* b, int64_t H, const T* scale = nullptr)
      : w(w), b(b), scale(scale), H(H), blocks((H + kLane - 1) / kLane), pairs((blocks + 1) / 2) {}

  // out[rows][V] = sums of V gates for one vector of units.
  template <int V, int R, int N>
  SER_FAST_INLINE void gates(int64_t block, int64_t rows, const F* left, int64_t stride, T* out) const {
    for (int64_t v = 0; v < V; ++v) sums(v, block * kLane, rows, left, stride, out + v * kLane, V * kLane);
  }

  // out[rows][2] = sums of the candidate for two vectors of units.
  template <int R>
  SER_FAST_INLINE void candidate(int64_t pair, int64_t rows, const F* left, int64_t stride, T* out) const {
    for (int64_t v = 0; v < 2; ++v)
      if ((2 * pair + v) * kLane < H) sums(2, (2 * pair + v) * kLane, rows, left, stride, out + v * kLane, 2 * kLane);
  }

 private:
  SER_FAST_INLINE void sums(int64_t gate, int64_t first, int64_t rows, const F* left, int64_t stride, T* out,
                            int64_t apart) const {
    const int64_t at = gate * H + first, count = std::min(kLane, H - first);
    for (int64_t i = 0; i < rows; ++i)
      store(out + i * apart, affine<I>(dots<I>(w + at * H, count, left + i * stride, H), b, scale, at, count));
  }
};

}  // namespace ser_fast
