// Rows of a GRU on CPU: weights in panels, their products with a few rows, and one step of the recurrence. A task
// computes all frames of a few batch rows in one direction, so tasks never wait for each other.
#pragma once

#include <algorithm>
#include <array>
#include <numeric>
#include <vector>

#include "activations.h"
#include "buffer.h"
#include "gru.h"
#include "simd.h"

namespace ser_fast {

constexpr int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// Operands of a product with weights W: the type of the rows; the type of the weights in panels, narrow if expanding
// them costs less than reading wide ones; how many along the depth lie together, and how many are multiplied at once.
template <class I, class W>
struct Factor {
  using Type = Wide<W>;
  using Stored = Wide<W>;
  static constexpr int64_t kPair = 1, kStep = 1;
};
template <>
struct Factor<Avx512, Bf16> {
  using Type = float;
  using Stored = Bf16;
  static constexpr int64_t kPair = 2, kStep = 1;
};
template <>
struct Factor<Avx512Bf16, Bf16> {
  using Type = Bf16;
  using Stored = Bf16;
  static constexpr int64_t kPair = 2, kStep = 2;
};

// Integer products of rows in fixed point are exact and take two weights at once.
template <class I>
struct Factor<I, Byte> {
  using Type = Fixed;
  using Stored = Byte;
  static constexpr int64_t kPair = 2, kStep = 2;
};

// sum + left * right; `place` is that of the factor among those that lie together.
template <class I, int place, class V, class T, class W>
SER_FAST_INLINE V multiply_add(V sum, const T* left, const W* right) {
  return sum + *left * load<I>(right);
}

template <class I, int place, class V>
SER_FAST_INLINE V multiply_add(V sum, const float* left, const Bf16* right) {
  typedef uint32_t Pairs __attribute__((vector_size(sizeof(V))));
  Pairs w;
  std::memcpy(&w, right, sizeof(w));
  return sum + *left * (V)(place ? w & 0xffff0000 : w << 16);
}

// Every processor with AVX512-BF16 has AVX512-VNNI.
template <class I, int place, class V>
SER_FAST_INLINE V multiply_add(V sum, const Fixed* left, const Byte* right) {
  typedef int8_t Half __attribute__((vector_size(sizeof(V) / 2), aligned(1), may_alias));
  typedef int32_t Pair __attribute__((aligned(2), may_alias));
  const Half& half = *reinterpret_cast<const Half*>(right);
  const Pair& pair = *reinterpret_cast<const Pair*>(left);
#if SER_FAST_X86
  if constexpr (I::kBytes >= 32) {
    V w, products;
    asm("vpmovsxbw %1, %0" : "=v"(w) : "m"(half));
    if constexpr (std::is_same_v<I, Avx512Bf16>) {
      asm("vpdpwssd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(w), "m"(pair));
      return sum;
    }
    asm("vpmaddwd %2, %1, %0" : "=v"(products) : "v"(w), "v"(V{} + pair));
    return sum + products;
  }
#endif
  const V w = (V)__builtin_convertvector(half, Vec<I, int16_t>);
  return sum + (w << 16 >> 16) * left[0].units + (w >> 16) * left[1].units;
}

#if SER_FAST_X86
// Inline assembly, because the compiler rejects the builtin in a function that all instruction sets share.
template <class I, int place, class V>
SER_FAST_INLINE V multiply_add(V sum, const Bf16* left, const Bf16* right) {
  typedef int Pair __attribute__((may_alias));
  V w;
  std::memcpy(&w, right, sizeof(w));
  asm("vdpbf16ps %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(w), "m"(*reinterpret_cast<const Pair*>(left)));
  return sum;
}
#endif

// A weight matrix in panels of V vectors of columns, each dense and read in order: [depth, V, lanes].
template <class I, class S, int V>
class Panels {
 public:
  using T = typename Factor<I, S>::Stored;
  static constexpr int64_t kLane = kLanes<I, Wide<S>>, kPair = Factor<I, S>::kPair;

  Panels() = default;

  // The depth has `parts` parts of H elements, padded to `part` each. column(p, v, lane) returns a column's first
  // element, or null for padding; the column's elements are `stride` apart, its parts H * H.
  template <class Column>
  Panels(int64_t count, int64_t parts, int64_t part, int64_t H, int64_t stride, const Column& column)
      : size_(parts * part * V * kLane), data_(count * size_, T{}) {
    constexpr int64_t block = 16;  // of the depth: both sides of the copy stay in the L1 cache
    for (int64_t p = 0; p < count; ++p)
      for (int64_t i = 0; i < parts; ++i)
        for (int64_t first = 0; first < H; first += block)
          for (int64_t v = 0; v < V; ++v)
            for (int64_t lane = 0; lane < kLane; ++lane) {
              const S* from = column(p, v, lane);
              if (!from) continue;
              T* to = data_.data() + p * size_ + (v * kLane + lane) * kPair;
              for (int64_t unit = first; unit < std::min(first + block, H); ++unit) {
                const int64_t k = i * part + unit;
                to[k / kPair * V * kLane * kPair + k % kPair] = convert<T>(from[i * H * H + unit * stride]);
              }
            }
  }

  // The columns are the rows of a dense [.., depth] matrix. column(p, v) returns the number of the vector's first row
  // there; rows from `past(p, v)` on are padding.
  template <class Row, class Past>
  SER_FAST_INLINE Panels(int64_t count, int64_t depth, const S* w, const Row& row, const Past& past)
      : size_(round_up(depth, kPair) * V * kLane), data_(count * size_) {
    if constexpr (std::is_same_v<T, Wide<S>>) {
      for (int64_t p = 0; p < count; ++p)
        for (int64_t v = 0; v < V; ++v)
          turn(w + row(p, v) * depth, past(p, v) - row(p, v), depth, data_.data() + p * size_ + v * kLane);
    } else {
      *this = Panels(count, 1, round_up(depth, kPair), depth, 1, [&](int64_t p, int64_t v, int64_t lane) {
        return row(p, v) + lane < past(p, v) ? w + (row(p, v) + lane) * depth : nullptr;
      });
    }
  }

  const T* operator[](int64_t p) const { return data_.data() + p * size_; }
  int64_t size() const { return size_; }

 private:
  // Transposes `rows` dense rows, at most one vector of them, to a column of vectors that are V vectors apart.
  SER_FAST_INLINE static void turn(const S* from, int64_t rows, int64_t depth, T* to) {
    for (int64_t k = 0; k < depth; k += kLane) {
      Vec<I, T> block[kLane];
      SER_FAST_UNROLL
      for (int64_t lane = 0; lane < kLane; ++lane)
        block[lane] = lane < rows ? load<I>(from + lane * depth + k, depth - k) : Vec<I, T>{};
      transpose(block);
      SER_FAST_UNROLL
      for (int64_t i = 0; i < kLane; ++i)
        if (k + i < depth) store(to + (k + i) * V * kLane, block[i]);
    }
  }

  int64_t size_ = 0;
  Buffer<T> data_;
};

// out[R][N * V] = first[N * V] + left[R, depth] times N panels, `size` apart; the rows of out are `apart`, its vectors
// `between` elements apart. Sums of integers are multiplied by `scale`[N * V].
template <class I, class S, int R, int V, int N = 1>
SER_FAST_INLINE void product(const typename Factor<I, S>::Type* left, int64_t stride,
                             const typename Factor<I, S>::Stored* panel, int64_t size, int64_t depth,
                             const Wide<S>* first, Wide<S>* out, int64_t apart = N * V * kLanes<I, Wide<S>>,
                             int64_t between = kLanes<I, Wide<S>>, const Wide<S>* scale = nullptr) {
  constexpr int64_t lanes = kLanes<I, Wide<S>>, pair = Factor<I, S>::kPair;
  constexpr bool fixed = std::is_same_v<S, Byte>, scaled = fixed || std::is_same_v<S, int8_t>;
  const int64_t most = fixed ? 512 : depth;  // products of 2^14 units with 128 whose sum stays below 2^31
  int64_t begin = 0;
  do {
    using Sum = std::conditional_t<fixed, Vec<I, int32_t>, Vec<I, Wide<S>>>;
    Sum sum[R][N * V];
    SER_FAST_UNROLL
    for (int v = 0; v < N * V; ++v) {
      sum[0][v] = Sum{};
      if constexpr (!scaled)
        if (first) sum[0][v] = load<I>(first + v * lanes);
      SER_FAST_UNROLL
      for (int row = 1; row < R; ++row) sum[row][v] = sum[0][v];
    }
    for (int64_t k = begin; k < std::min(begin + most, depth); k += pair) {
      const auto step = [&](auto place) __attribute__((always_inline)) {
        SER_FAST_UNROLL
        for (int row = 0; row < R; ++row)
          SER_FAST_UNROLL
          for (int v = 0; v < N * V; ++v)
            sum[row][v] = multiply_add<I, place>(sum[row][v], left + row * stride + k + place,
                                                 panel + v / V * size + (k * V + v % V * pair) * lanes);
      };
      step(std::integral_constant<int, 0>{});
      if constexpr (Factor<I, S>::kStep < pair) step(std::integral_constant<int, 1>{});
    }
    SER_FAST_UNROLL
    for (int row = 0; row < R; ++row)
      SER_FAST_UNROLL
      for (int v = 0; v < N * V; ++v) {
        Wide<S>* to = out + row * apart + v * between;
        if constexpr (scaled)
          store(to, load<I>(begin ? to : first + v * lanes) +
                        load<I>(scale + v * lanes) * __builtin_convertvector(sum[row][v], Vec<I, Wide<S>>));
        else store(to, sum[row][v]);
      }
    begin += most;
  } while (fixed && begin < depth);
}

// Some vectors of hidden units.
struct Units {
  int64_t first, last;
};

// The rows of one task, the longest first.
struct Tile {
  static constexpr int64_t kMost = 8;
  int64_t direction, rows;
  std::array<int64_t, kMost> row = {}, length = {};

  int64_t frame(int64_t i, int64_t step) const { return direction ? length[i] - 1 - step : step; }
};

// Splits all rows into tiles, sorted by descending work.
inline std::vector<Tile> tiles_of(const GruShape& shape, const int64_t* lengths, int64_t most_rows, int64_t threads) {
  std::vector<int64_t> order(shape.batch);
  std::iota(order.begin(), order.end(), 0);
  const auto length = [&](int64_t row) { return lengths ? lengths[row] : shape.frames; };
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return length(a) > length(b); });
  while (most_rows > 1 && shape.directions * ((shape.batch + most_rows - 1) / most_rows) < threads) most_rows /= 2;
  std::vector<Tile> tiles;
  for (int64_t first = 0; first < shape.batch; first += most_rows)
    for (int64_t direction = 0; direction < shape.directions; ++direction) {
      Tile tile{direction, std::min(most_rows, shape.batch - first)};
      for (int64_t i = 0; i < tile.rows; ++i) {
        tile.row[i] = order[first + i];
        tile.length[i] = length(tile.row[i]);
      }
      tiles.push_back(tile);
    }
  return tiles;
}

template <class S>
void zero_tail(const Frames<S>& tensor, const GruShape& shape, const Tile& tile, int64_t width) {
  if (tensor.starts) return;  // packed rows have no padding
  for (int64_t i = 0; i < tile.rows; ++i)
    for (int64_t t = tile.length[i]; t < shape.frames; ++t)
      std::fill_n(tensor.at(t, tile.row[i]) + tile.direction * width, width, S{});
}

// Vectors of [blocks, gates, lanes] from a tensor [.., H] of which `gates` rows count; zeros without one.
template <class I, class S>
Buffer<Wide<S>> by_blocks(const S* from, int64_t H, int64_t gates) {
  constexpr int64_t lanes = kLanes<I, Wide<S>>;
  Buffer<Wide<S>> out(round_up(H, lanes) * gates, Wide<S>{});
  for (int64_t j = 0; from && j < H; ++j)
    for (int64_t g = 0; g < gates; ++g)
      out[(j / lanes * gates + g) * lanes + j % lanes] = convert<Wide<S>>(from[g * H + j]);
  return out;
}

// One direction's W_hh and b_hh in the layout of the products. Columns are zero-padded to whole vectors. S is the type
// of the weights, B that of the bias; integers have a `scale` for each row of W_hh.
template <class I, class S, class B = S>
struct ForwardWeights {
  using T = Wide<S>;
  using F = typename Factor<I, S>::Type;
  using Weight = S;
  static constexpr int64_t kLane = kLanes<I, T>;
  static constexpr int kMost = I::kRows;  // rows of a step

  int64_t depth, blocks, pairs;   // H in whole factors; vectors of hidden units; pairs of them
  Panels<I, S, 3> all;            // reset_after: r, z and n of one vector of hidden units
  Panels<I, S, 2> update_reset;   // otherwise: r and z of one vector
  Panels<I, S, 2> last;           // otherwise: n of two vectors
  Buffer<T> gate_bias;            // [blocks, 3 (2 without reset_after), lanes]
  Buffer<T> candidate_bias;       // [2 * pairs, lanes]; unused with reset_after
  Buffer<T> gate_scale, candidate_scale;  // as the biases; of integers only

  SER_FAST_INLINE ForwardWeights(const S* w, const B* b, int64_t H, bool reset_after, const T* scale = nullptr)
      : depth(round_up(H, Factor<I, S>::kPair)),
        blocks(round_up(H, kLane) / kLane),
        pairs((blocks + 1) / 2),
        gate_bias(by_blocks<I>(b, H, reset_after ? 3 : 2)),
        candidate_bias(by_pairs(b, H)) {
    if (scale) gate_scale = by_blocks<I>(scale, H, reset_after ? 3 : 2), candidate_scale = by_pairs(scale, H);
    if constexpr (std::is_same_v<S, Byte>)
      for (const Buffer<T>* one : {&gate_scale, &candidate_scale})
        for (int64_t i = 0; i < one->size(); ++i) (*one)[i] *= Fixed::kUnit;
    const auto gate = [=](int64_t p, int64_t v) { return v * H + p * kLane; };
    const auto end = [=](int64_t, int64_t v) { return (v + 1) * H; };
    const auto third = [=](int64_t p, int64_t v) { return 2 * H + (2 * p + v) * kLane; };
    const auto third_end = [=](int64_t, int64_t) { return 3 * H; };
    if (reset_after) all = {blocks, H, w, gate, end};
    else update_reset = {blocks, H, w, gate, end}, last = {pairs, H, w, third, third_end};
  }

  // Vectors of units whose sums are computed at once: those of one alone wait for each other if the row is alone.
  template <int R>
  static constexpr int kTogether =
      R == 1 && (I::kBytes < 64 || Factor<I, S>::kStep < Factor<I, S>::kPair || std::is_same_v<S, Byte>) ? 2 : 1;

  // out[R][N, V] = sums of V gates for N vectors of units, of which the first `rows` are used.
  template <int V, int R, int N>
  SER_FAST_INLINE void gates(int64_t block, int64_t, const F* left, int64_t stride, T* out) const {
    const auto& panels = [this]() -> auto& {
      if constexpr (V == 3) return all;
      else return update_reset;
    }();
    const int64_t at = block * V * kLane;
    product<I, S, R, V, N>(left, stride, panels[block], panels.size(), depth, gate_bias.data() + at, out,
                           N * V * kLane, kLane, scale_at(gate_scale, at));
  }

  // out[R][2] = sums of the candidate for two vectors of units.
  template <int R>
  SER_FAST_INLINE void candidate(int64_t pair, int64_t, const F* left, int64_t stride, T* out) const {
    const int64_t at = pair * 2 * kLane;
    product<I, S, R, 2>(left, stride, last[pair], 0, depth, candidate_bias.data() + at, out, 2 * kLane, kLane,
                        scale_at(candidate_scale, at));
  }

 private:
  static const T* scale_at(const Buffer<T>& scale, int64_t at) { return scale.size() ? scale.data() + at : nullptr; }

  // Vectors of [2 * pairs, lanes] from the candidate's third of a tensor [3, H].
  template <class From>
  Buffer<T> by_pairs(const From* from, int64_t H) const {
    Buffer<T> out(pairs * 2 * kLane, T{});
    for (int64_t j = 0; from && j < H; ++j) out[j] = convert<T>(from[2 * H + j]);
    return out;
  }
};

// Left operands of a product: the values themselves or their copies rounded to F.
template <class F>
struct Left {
  int64_t stride;
  Buffer<F> data;

  Left(int64_t rows, int64_t width) : stride(width), data(rows * width, F{}) {}

  SER_FAST_INLINE F* row(int64_t i) { return data.data() + i * stride; }
};

template <class I, class S, class F = typename Factor<I, S>::Type>
struct ForwardScratch {
  using T = Wide<S>;
  int64_t width;
  Buffer<T> state, next, sums;  // [rows, width] twice; [rows, 3, lanes]
  Buffer<T> update;             // z, kept until after the second product
  Left<F> h, h_next, q;      // operands of the products: h, the next h, r h

  explicit ForwardScratch(int64_t pairs)
      : width(pairs * 2 * kLanes<I, T>),
        state(I::kRows * width, T{}),
        next(I::kRows * width, T{}),
        sums(I::kRows * 3 * kLanes<I, T>),
        update(I::kRows * width),
        h(I::kRows, width),
        h_next(I::kRows, width),
        q(I::kRows, width) {}

  // Makes the next state the present one.
  void advance() {
    std::swap(state, next);
    std::swap(h.data, h_next.data);
  }
};

// A row's data at one step; gates is null if none are saved, states if y is all that is to keep of them.
template <class S, class G = S>
struct ForwardRow {
  const G* gx;
  int64_t apart;  // from one gate of gx to the next
  S *y, *gates, *states;
};

// Calls body(first, number) for all panels of a step, N at once as far as there are. Odd steps go backwards: they begin
// with the panels that the step before left in the L1 cache.
template <int N, class Body>
SER_FAST_INLINE void each_panel(int64_t count, int64_t step, const Body& body) {
  const int64_t turns = (count + N - 1) / N;
  for (int64_t turn = 0; turn < turns; ++turn) {
    const int64_t first = (step % 2 ? turns - 1 - turn : turn) * N;
    if (N == 1 || first + N <= count) body(first, std::integral_constant<int, N>{});
    else body(first, std::integral_constant<int, 1>{});
  }
}

template <int R, class I, class S, class F, class G, class Weights>
SER_FAST_INLINE void step_reset_after(int64_t H, const Weights& weights, const ForwardRow<S, G>* rows,
                                      int64_t step, int64_t walking, ForwardScratch<I, S, F>& scratch) {
  constexpr int64_t lanes = kLanes<I, Wide<S>>;
  each_panel<Weights::template kTogether<R>>(weights.blocks, step, [&](int64_t first, auto number)
                                                                        __attribute__((always_inline)) {
    constexpr int N = number;
    weights.template gates<3, R, N>(first, walking, scratch.h.row(0), scratch.width, scratch.sums.data());
    for (int64_t i = 0; i < walking * N; ++i) {
      const ForwardRow<S, G>& row = rows[i / N];
      const Wide<S>* sum = scratch.sums.data() + i * 3 * lanes;
      const int64_t j = (first + i % N) * lanes, count = std::min(lanes, H - j), at = i / N * scratch.width + j;
      const auto r = sigmoid(load<I>(row.gx + j, count) + load<I>(sum));
      const auto z = sigmoid(load<I>(row.gx + row.apart + j, count) + load<I>(sum + lanes));
      const auto q = load<I>(sum + 2 * lanes);
      const auto n = tangent(load<I>(row.gx + 2 * row.apart + j, count) + r * q);
      const auto h = gru_cell(z, n, load<I, Wide<S>>(scratch.state.data() + at));
      store(scratch.next.data() + at, h);
      store(scratch.h_next.data.data() + at, h);
      store(row.y + j, h, count);
      if (!row.gates) continue;
      store(row.gates + j, r, count);
      store(row.gates + H + j, z, count);
      store(row.gates + 2 * H + j, n, count);
      store(row.gates + 3 * H + j, q, count);
      if (row.states) store(row.states + j, h, count);
    }
  });
}

template <int R, class I, class S, class F, class G, class Weights>
SER_FAST_INLINE void step_reset_before(int64_t H, const Weights& weights, const ForwardRow<S, G>* rows,
                                       int64_t step, int64_t walking, ForwardScratch<I, S, F>& scratch) {
  constexpr int64_t lanes = kLanes<I, Wide<S>>;
  each_panel<Weights::template kTogether<R>>(weights.blocks, step, [&](int64_t first, auto number)
                                                                        __attribute__((always_inline)) {
    constexpr int N = number;
    weights.template gates<2, R, N>(first, walking, scratch.h.row(0), scratch.width, scratch.sums.data());
    for (int64_t i = 0; i < walking * N; ++i) {
      const ForwardRow<S, G>& row = rows[i / N];
      const Wide<S>* sum = scratch.sums.data() + i * 2 * lanes;
      const int64_t j = (first + i % N) * lanes, count = std::min(lanes, H - j), at = i / N * scratch.width + j;
      const auto r = sigmoid(load<I>(row.gx + j, count) + load<I>(sum));
      const auto z = sigmoid(load<I>(row.gx + row.apart + j, count) + load<I>(sum + lanes));
      const auto q = r * load<I, Wide<S>>(scratch.state.data() + at);
      store(scratch.update.data() + at, z);
      store(scratch.q.data.data() + at, q);
      if (!row.gates) continue;
      store(row.gates + j, r, count);
      store(row.gates + H + j, z, count);
      store(row.gates + 3 * H + j, q, count);
    }
  });
  each_panel<1>(weights.pairs, step, [&](int64_t pair, auto) __attribute__((always_inline)) {
    const int64_t first = pair * 2 * lanes;
    weights.template candidate<R>(pair, walking, scratch.q.row(0), scratch.width, scratch.sums.data());
    for (int64_t i = 0; i < walking; ++i) {
      const ForwardRow<S, G>& row = rows[i];
      for (int64_t j = first; j < std::min(H, first + 2 * lanes); j += lanes) {
        const int64_t count = std::min(lanes, H - j), at = i * scratch.width + j;
        const auto sum = load<I, Wide<S>>(scratch.sums.data() + i * 2 * lanes + j - first);
        const auto n = tangent(load<I>(row.gx + 2 * row.apart + j, count) + sum);
        const auto h = gru_cell(load<I, Wide<S>>(scratch.update.data() + at), n,
                                load<I, Wide<S>>(scratch.state.data() + at));
        store(scratch.next.data() + at, h);
        store(scratch.h_next.data.data() + at, h);
        store(row.y + j, h, count);
        if (row.gates) store(row.gates + 2 * H + j, n, count);
        if (row.states) store(row.states + j, h, count);
      }
    }
  });
}

// One step of the first `walking` rows of a tile; row(i) returns their data.
template <class I, class S, class F, class Weights, class Row>
SER_FAST_INLINE void forward_step(const GruShape& shape, const Weights& weights, int64_t step, int64_t walking,
                                  const Row& row, ForwardScratch<I, S, F>& scratch) {
  const auto run = [&](auto number) __attribute__((always_inline)) {
    constexpr int R = number;
    decltype(row(0)) rows[R] = {};
    for (int64_t i = 0; i < walking; ++i) rows[i] = row(i);
    if (shape.reset_after) step_reset_after<R>(shape.hidden, weights, rows, step, walking, scratch);
    else step_reset_before<R>(shape.hidden, weights, rows, step, walking, scratch);
  };
  if (walking > 4) run(std::integral_constant<int, Weights::kMost>{});
  else if (walking > 2) run(std::integral_constant<int, 4>{});
  else if (walking > 1) run(std::integral_constant<int, 2>{});
  else run(std::integral_constant<int, 1>{});
  scratch.advance();
}

// Row i of a tile in a [D, B, H] tensor.
template <class S>
SER_FAST_INLINE S* state_at(S* states, const GruShape& shape, const Tile& tile, int64_t i) {
  return states + (tile.direction * shape.batch + tile.row[i]) * shape.hidden;
}

template <class I, class S, class From, class To>
SER_FAST_INLINE void copy(From* from, To* to, int64_t size) {
  constexpr int64_t lanes = kLanes<I, Wide<S>>;
  for (int64_t j = 0; j < size; j += lanes) store(to + j, load<I, std::remove_const_t<From>>(from + j, size - j), size - j);
}

}  // namespace ser_fast
