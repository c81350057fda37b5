// GRU recurrence on CPU. A task computes all frames of a few batch rows in one direction, so tasks never wait for
// each other. The rows of a task are of similar length; each leaves the loop after its own last frame.
#include "gru.h"

#include <algorithm>
#include <array>
#include <numeric>
#include <vector>

#include "activations.h"
#include "simd.h"

namespace ser_fast {
namespace {

constexpr int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// Operand type of the recurrent products: the compute type, or with AVX512-BF16 pairs of bfloat16 along the depth.
template <class I, class S>
struct Factor {
  using Type = Wide<S>;
  static constexpr int64_t kPair = 1;
};
template <>
struct Factor<Avx512Bf16, Bf16> {
  using Type = Bf16;
  static constexpr int64_t kPair = 2;
};

template <class T, class V>
SER_FAST_INLINE V multiply_add(V sum, const T* left, const T* right) {
  V w;
  std::memcpy(&w, right, sizeof(w));
  return sum + *left * w;
}

#if SER_FAST_X86
// Inline assembly, because the compiler rejects the builtin in a function that all instruction sets share.
SER_FAST_INLINE Vec<Avx512, float> multiply_add(Vec<Avx512, float> sum, const Bf16* left, const Bf16* right) {
  typedef int Pair __attribute__((may_alias));
  Vec<Avx512, float> w;
  std::memcpy(&w, right, sizeof(w));
  asm("vdpbf16ps %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(w), "m"(*reinterpret_cast<const Pair*>(left)));
  return sum;
}
#endif

// A recurrent weight matrix in panels of V vectors of columns, each dense and read in order: [depth, V, lanes].
template <class I, class S, int V>
class Panels {
 public:
  using T = typename Factor<I, S>::Type;
  static constexpr int64_t kLane = kLanes<I, Wide<S>>, kPair = Factor<I, S>::kPair;

  Panels() = default;

  // The depth has `parts` parts of H elements, padded to `part` each. column(p, v, lane) returns a column's first
  // element, or null for padding; the column's elements are `stride` apart, its parts H * H.
  template <class Column>
  Panels(int64_t count, int64_t parts, int64_t part, int64_t H, int64_t stride, const Column& column)
      : size_(parts * part * V * kLane), data_(count * size_) {
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

  const T* operator[](int64_t p) const { return data_.data() + p * size_; }

 private:
  int64_t size_ = 0;
  std::vector<T> data_;
};

// out[R][V] = first[V] + left[R, depth] times a panel.
template <class I, class S, int R, int V>
SER_FAST_INLINE void product(const typename Factor<I, S>::Type* left, int64_t stride,
                             const typename Factor<I, S>::Type* panel, int64_t depth, const Wide<S>* first,
                             Wide<S>* out) {
  constexpr int64_t lanes = kLanes<I, Wide<S>>, pair = Factor<I, S>::kPair;
  Vec<I, Wide<S>> sum[R][V];
  SER_FAST_UNROLL
  for (int v = 0; v < V; ++v) {
    const Vec<I, Wide<S>> start = first ? load<I>(first + v * lanes) : Vec<I, Wide<S>>{};
    SER_FAST_UNROLL
    for (int row = 0; row < R; ++row) sum[row][v] = start;
  }
  for (int64_t k = 0; k < depth; k += pair) {
    SER_FAST_UNROLL
    for (int row = 0; row < R; ++row)
      SER_FAST_UNROLL
      for (int v = 0; v < V; ++v)
        sum[row][v] = multiply_add(sum[row][v], left + row * stride + k, panel + (k * V + v * pair) * lanes);
  }
  SER_FAST_UNROLL
  for (int row = 0; row < R; ++row)
    SER_FAST_UNROLL
    for (int v = 0; v < V; ++v) store(out + (row * V + v) * lanes, sum[row][v]);
}

// The rows of one task, the longest first.
struct Tile {
  static constexpr int64_t kMost = 8;
  int64_t direction, rows;
  std::array<int64_t, kMost> row = {}, length = {};

  int64_t frame(int64_t i, int64_t step) const { return direction ? length[i] - 1 - step : step; }
};

// Splits all rows into tiles, sorted by descending work.
std::vector<Tile> tiles_of(const GruShape& shape, const int64_t* lengths, int64_t most_rows, int64_t threads) {
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

// One direction's W_hh and b_hh in the layout of the products. Depths and columns are zero-padded to whole vectors.
template <class I, class S>
struct ForwardWeights {
  using T = Wide<S>;
  static constexpr int64_t kLane = kLanes<I, T>;

  int64_t depth, blocks, pairs;  // H padded; vectors of hidden units; pairs of them
  Panels<I, S, 3> all;           // reset_after: r, z and n of one vector of hidden units
  Panels<I, S, 2> gates;         // otherwise: r and z of one vector
  Panels<I, S, 2> candidate;     // otherwise: n of two vectors
  std::vector<T> gate_bias;      // [blocks, 3, lanes]; without reset_after the third is unused
  std::vector<T> candidate_bias;  // [2 * pairs, lanes]; unused with reset_after

  ForwardWeights(const S* w, const S* b, int64_t H, bool reset_after)
      : depth(round_up(H, kLane)),
        blocks(depth / kLane),
        pairs((blocks + 1) / 2),
        gate_bias(blocks * 3 * kLane),
        candidate_bias(pairs * 2 * kLane) {
    const auto at = [=](int64_t gate, int64_t unit) { return unit < H ? w + (gate * H + unit) * H : nullptr; };
    const auto gate = [=](int64_t p, int64_t v, int64_t lane) { return at(v, p * kLane + lane); };
    const auto last = [=](int64_t p, int64_t v, int64_t lane) { return at(2, (2 * p + v) * kLane + lane); };
    if (reset_after) all = {blocks, 1, depth, H, 1, gate};
    else gates = {blocks, 1, depth, H, 1, gate}, candidate = {pairs, 1, depth, H, 1, last};
    for (int64_t j = 0; b && j < H; ++j) {
      for (int64_t g = 0; g < 3; ++g) gate_bias[(j / kLane * 3 + g) * kLane + j % kLane] = convert<T>(b[g * H + j]);
      candidate_bias[j] = convert<T>(b[2 * H + j]);
    }
  }
};

// Left operands of a product: the values themselves or, for bfloat16 pairs, their rounded copies.
template <class I, class S>
struct Left {
  using F = typename Factor<I, S>::Type;
  int64_t stride;
  std::vector<F> data;

  Left(int64_t rows, int64_t width) : stride(width), data(rows * width) {}

  SER_FAST_INLINE F* row(int64_t i) { return data.data() + i * stride; }
};

template <class I, class S>
struct ForwardScratch {
  using T = Wide<S>;
  int64_t width;
  std::vector<T> state, next, sums;  // [rows, width] twice; [rows, 3, lanes]
  std::vector<T> update;             // z, kept until after the second product
  Left<I, S> h, h_next, q;           // operands of the products: h, the next h, r h

  explicit ForwardScratch(const ForwardWeights<I, S>& weights)
      : width(weights.pairs * 2 * kLanes<I, T>),
        state(I::kRows * width),
        next(I::kRows * width),
        sums(I::kRows * 3 * kLanes<I, T>),
        update(I::kRows * width),
        h(I::kRows, width),
        h_next(I::kRows, width),
        q(I::kRows, width) {}
};

// A row's data at one step; gates is null if none are saved.
template <class S>
struct ForwardRow {
  const S* gx;
  S *y, *gates;
};

template <class S>
SER_FAST_INLINE ForwardRow<S> row_at(const GruForward<S>& args, const Tile& tile, int64_t i, int64_t step) {
  const int64_t t = tile.frame(i, step), b = tile.row[i], d = tile.direction, H = args.shape.hidden;
  return {args.gx.at(t, b) + d * 3 * H, args.y.at(t, b) + d * H,
          args.gates.data ? args.gates.at(t, b) + d * 4 * H : nullptr};
}

template <int R, class I, class S>
SER_FAST_INLINE void step_reset_after(int64_t H, const ForwardWeights<I, S>& weights, const ForwardRow<S>* rows,
                                      int64_t walking, ForwardScratch<I, S>& scratch) {
  constexpr int64_t lanes = kLanes<I, Wide<S>>;
  const int64_t width = scratch.width;
  for (int64_t block = 0, j = 0; j < H; ++block, j += lanes) {
    const int64_t count = std::min(lanes, H - j);
    product<I, S, R, 3>(scratch.h.row(0), width, weights.all[block], weights.depth,
                        weights.gate_bias.data() + block * 3 * lanes, scratch.sums.data());
    for (int64_t i = 0; i < walking; ++i) {
      const ForwardRow<S>& row = rows[i];
      const Wide<S>* sum = scratch.sums.data() + i * 3 * lanes;
      const auto r = sigmoid(load<I>(row.gx + j, count) + load<I>(sum));
      const auto z = sigmoid(load<I>(row.gx + H + j, count) + load<I>(sum + lanes));
      const auto q = load<I>(sum + 2 * lanes);
      const auto n = tangent(load<I>(row.gx + 2 * H + j, count) + r * q);
      const auto h = gru_cell(z, n, load<I, Wide<S>>(scratch.state.data() + i * width + j));
      store(scratch.next.data() + i * width + j, h);
      store(scratch.h_next.row(i) + j, h);
      store(row.y + j, h, count);
      if (!row.gates) continue;
      store(row.gates + j, r, count);
      store(row.gates + H + j, z, count);
      store(row.gates + 2 * H + j, n, count);
      store(row.gates + 3 * H + j, q, count);
    }
  }
}

template <int R, class I, class S>
SER_FAST_INLINE void step_reset_before(int64_t H, const ForwardWeights<I, S>& weights, const ForwardRow<S>* rows,
                                       int64_t walking, ForwardScratch<I, S>& scratch) {
  constexpr int64_t lanes = kLanes<I, Wide<S>>;
  const int64_t width = scratch.width;
  for (int64_t block = 0, j = 0; j < H; ++block, j += lanes) {
    const int64_t count = std::min(lanes, H - j);
    product<I, S, R, 2>(scratch.h.row(0), width, weights.gates[block], weights.depth,
                        weights.gate_bias.data() + block * 3 * lanes, scratch.sums.data());
    for (int64_t i = 0; i < walking; ++i) {
      const ForwardRow<S>& row = rows[i];
      const Wide<S>* sum = scratch.sums.data() + i * 2 * lanes;
      const auto r = sigmoid(load<I>(row.gx + j, count) + load<I>(sum));
      const auto z = sigmoid(load<I>(row.gx + H + j, count) + load<I>(sum + lanes));
      const auto q = r * load<I, Wide<S>>(scratch.state.data() + i * width + j);
      store(scratch.update.data() + i * width + j, z);
      store(scratch.q.row(i) + j, q);
      if (!row.gates) continue;
      store(row.gates + j, r, count);
      store(row.gates + H + j, z, count);
      store(row.gates + 3 * H + j, q, count);
    }
  }
  for (int64_t pair = 0, first = 0; first < H; ++pair, first += 2 * lanes) {
    product<I, S, R, 2>(scratch.q.row(0), width, weights.candidate[pair], weights.depth,
                        weights.candidate_bias.data() + first, scratch.sums.data());
    for (int64_t i = 0; i < walking; ++i) {
      const ForwardRow<S>& row = rows[i];
      for (int64_t j = first; j < std::min(H, first + 2 * lanes); j += lanes) {
        const int64_t count = std::min(lanes, H - j);
        const auto sum = load<I, Wide<S>>(scratch.sums.data() + i * 2 * lanes + j - first);
        const auto n = tangent(load<I>(row.gx + 2 * H + j, count) + sum);
        const auto h = gru_cell(load<I, Wide<S>>(scratch.update.data() + i * width + j), n,
                                load<I, Wide<S>>(scratch.state.data() + i * width + j));
        store(scratch.next.data() + i * width + j, h);
        store(scratch.h_next.row(i) + j, h);
        store(row.y + j, h, count);
        if (row.gates) store(row.gates + 2 * H + j, n, count);
      }
    }
  }
}

template <int R, class I, class S>
SER_FAST_INLINE void forward_step(const GruForward<S>& args, const ForwardWeights<I, S>& weights, const Tile& tile,
                                  int64_t step, int64_t walking, ForwardScratch<I, S>& scratch) {
  ForwardRow<S> rows[R] = {};
  for (int64_t i = 0; i < walking; ++i) rows[i] = row_at(args, tile, i, step);
  if (args.shape.reset_after) step_reset_after<R>(args.shape.hidden, weights, rows, walking, scratch);
  else step_reset_before<R>(args.shape.hidden, weights, rows, walking, scratch);
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

template <class I, class S>
SER_FAST_INLINE void forward_tile(const GruForward<S>& args, const ForwardWeights<I, S>& weights, const Tile& tile) {
  const GruShape& shape = args.shape;
  ForwardScratch<I, S> scratch(weights);
  for (int64_t i = 0; args.h0 && i < tile.rows; ++i) {
    copy<I, S>(state_at(args.h0, shape, tile, i), scratch.state.data() + i * scratch.width, shape.hidden);
    copy<I, S>(state_at(args.h0, shape, tile, i), scratch.h.row(i), shape.hidden);
  }
  int64_t walking = tile.rows;
  for (int64_t step = 0;; ++step) {
    for (; walking > 0 && tile.length[walking - 1] == step; --walking)
      copy<I, S>(scratch.state.data() + (walking - 1) * scratch.width, state_at(args.h_n, shape, tile, walking - 1),
                 shape.hidden);
    if (walking == 0) break;
    if (walking > 4) forward_step<I::kRows>(args, weights, tile, step, walking, scratch);
    else if (walking > 2) forward_step<4>(args, weights, tile, step, walking, scratch);
    else if (walking > 1) forward_step<2>(args, weights, tile, step, walking, scratch);
    else forward_step<1>(args, weights, tile, step, walking, scratch);
    std::swap(scratch.state, scratch.next);
    std::swap(scratch.h.data, scratch.h_next.data);
  }
  zero_tail(args.y, shape, tile, shape.hidden);
  if (args.gates.data) zero_tail(args.gates, shape, tile, 4 * shape.hidden);
}

// Backward multiplies by W, forward by its transpose. Each gate's part of the depth is padded to whole vectors.
template <class I, class S>
struct BackwardWeights {
  static constexpr int64_t kLane = kLanes<I, Wide<S>>;

  int64_t part, pairs;           // H padded to one vector; pairs of vectors of hidden units
  Panels<I, S, 2> gates;         // [3 part, H], or [2 part, H] (r, z)
  Panels<I, S, 2> candidate;     // [part, H], without reset_after only

  BackwardWeights(const S* w, const S*, int64_t H, bool reset_after)
      : part(round_up(H, kLane)), pairs(round_up(H, 2 * kLane) / (2 * kLane)) {
    const auto at = [=](int64_t first, int64_t column) {
      return column < H ? w + first * H * H + column : nullptr;
    };
    const auto all = [=](int64_t p, int64_t v, int64_t lane) { return at(0, (2 * p + v) * kLane + lane); };
    const auto last = [=](int64_t p, int64_t v, int64_t lane) { return at(2, (2 * p + v) * kLane + lane); };
    gates = {pairs, reset_after ? 3 : 2, part, H, H, all};
    if (!reset_after) candidate = {pairs, 1, part, H, H, last};
  }
};

template <class I, class S>
struct BackwardScratch {
  using T = Wide<S>;
  int64_t width;
  std::vector<T> grad_h, sums;  // [rows, width]; [rows, 2, lanes]
  Left<I, S> gates, candidate;  // gradients that the products read: r, z and, with reset_after, q; n

  BackwardScratch(const BackwardWeights<I, S>& weights, bool reset_after)
      : width(weights.pairs * 2 * kLanes<I, T>),
        grad_h(I::kRows * width),
        sums(I::kRows * 2 * kLanes<I, T>),
        gates(I::kRows, (reset_after ? 3 : 2) * weights.part),
        candidate(I::kRows, weights.part) {}
};

template <class S>
struct BackwardRow {
  const S *before, *gates, *grad_y;  // before: the previous state, null for zeros
  S *grad_gx, *grad_q;
};

template <class S>
SER_FAST_INLINE BackwardRow<S> row_at(const GruBackward<S>& args, const Tile& tile, int64_t i, int64_t step) {
  const int64_t t = tile.frame(i, step), b = tile.row[i], d = tile.direction, H = args.shape.hidden;
  const S* before = step > 0  ? args.y.at(tile.frame(i, step - 1), b) + d * H
                    : args.h0 ? state_at(args.h0, args.shape, tile, i)
                              : nullptr;
  return {before, args.gates.at(t, b) + d * 4 * H, args.grad_y.at(t, b) + d * H, args.grad_gx.at(t, b) + d * 3 * H,
          args.shape.reset_after ? args.grad_q.at(t, b) + d * H : nullptr};
}

template <class I, class S>
SER_FAST_INLINE Vec<I, Wide<S>> state_before(const BackwardRow<S>& row, int64_t j, int64_t count) {
  return row.before ? load<I>(row.before + j, count) : Vec<I, Wide<S>>{};
}

// grad_h += left times the panels.
template <int R, class I, class S>
SER_FAST_INLINE void add_product(int64_t H, Left<I, S>& left, const Panels<I, S, 2>& panels, int64_t walking,
                                 BackwardScratch<I, S>& scratch) {
  constexpr int64_t lanes = kLanes<I, Wide<S>>;
  for (int64_t pair = 0, j = 0; j < H; ++pair, j += 2 * lanes) {
    product<I, S, R, 2>(left.row(0), left.stride, panels[pair], left.stride, nullptr, scratch.sums.data());
    for (int64_t i = 0; i < walking; ++i)
      for (int64_t v = 0; v < 2; ++v) {
        Wide<S>* grad = scratch.grad_h.data() + i * scratch.width + j + v * lanes;
        const Wide<S>* sum = scratch.sums.data() + (i * 2 + v) * lanes;
        store(grad, load<I, Wide<S>>(grad) + load<I>(sum));
      }
  }
}

template <int R, class I, class S>
SER_FAST_INLINE void back_reset_after(int64_t H, const BackwardWeights<I, S>& weights, const BackwardRow<S>* rows,
                                      int64_t walking, BackwardScratch<I, S>& scratch) {
  constexpr int64_t lanes = kLanes<I, Wide<S>>;
  for (int64_t i = 0; i < walking; ++i) {
    const BackwardRow<S>& row = rows[i];
    auto* left = scratch.gates.row(i);
    for (int64_t j = 0; j < H; j += lanes) {
      const int64_t count = std::min(lanes, H - j);
      Wide<S>* grad_h = scratch.grad_h.data() + i * scratch.width + j;
      const auto r = load<I>(row.gates + j, count), z = load<I>(row.gates + H + j, count),
                 n = load<I>(row.gates + 2 * H + j, count), q = load<I>(row.gates + 3 * H + j, count);
      const auto grad = load<I, Wide<S>>(grad_h) + load<I>(row.grad_y + j, count);
      const auto [pre_z, pre_n] = gru_cell_backward(grad, z, n, state_before<I>(row, j, count));
      const auto pre_r = pre_n * q * r * (1 - r), pre_q = pre_n * r;
      store(row.grad_gx + j, pre_r, count);
      store(row.grad_gx + H + j, pre_z, count);
      store(row.grad_gx + 2 * H + j, pre_n, count);
      store(row.grad_q + j, pre_q, count);
      store(left + j, pre_r);
      store(left + weights.part + j, pre_z);
      store(left + 2 * weights.part + j, pre_q);
      store(grad_h, grad * z);
    }
  }
  add_product<R>(H, scratch.gates, weights.gates, walking, scratch);
}

template <int R, class I, class S>
SER_FAST_INLINE void back_reset_before(int64_t H, const BackwardWeights<I, S>& weights, const BackwardRow<S>* rows,
                                       int64_t walking, BackwardScratch<I, S>& scratch) {
  constexpr int64_t lanes = kLanes<I, Wide<S>>;
  for (int64_t i = 0; i < walking; ++i) {
    const BackwardRow<S>& row = rows[i];
    for (int64_t j = 0; j < H; j += lanes) {
      const int64_t count = std::min(lanes, H - j);
      Wide<S>* grad_h = scratch.grad_h.data() + i * scratch.width + j;
      const auto z = load<I>(row.gates + H + j, count), n = load<I>(row.gates + 2 * H + j, count);
      const auto grad = load<I, Wide<S>>(grad_h) + load<I>(row.grad_y + j, count);
      const auto [pre_z, pre_n] = gru_cell_backward(grad, z, n, state_before<I>(row, j, count));
      store(row.grad_gx + H + j, pre_z, count);
      store(row.grad_gx + 2 * H + j, pre_n, count);
      store(scratch.gates.row(i) + weights.part + j, pre_z);
      store(scratch.candidate.row(i) + j, pre_n);
      store(grad_h, grad * z);
    }
  }
  for (int64_t pair = 0, first = 0; first < H; ++pair, first += 2 * lanes) {
    product<I, S, R, 2>(scratch.candidate.row(0), weights.part, weights.candidate[pair], weights.part, nullptr,
                        scratch.sums.data());
    for (int64_t i = 0; i < walking; ++i) {
      const BackwardRow<S>& row = rows[i];
      for (int64_t j = first; j < std::min(H, first + 2 * lanes); j += lanes) {
        const int64_t count = std::min(lanes, H - j);
        Wide<S>* grad_h = scratch.grad_h.data() + i * scratch.width + j;
        const Wide<S>* sum = scratch.sums.data() + i * 2 * lanes + j - first;
        const auto r = load<I>(row.gates + j, count), grad_q = load<I>(sum);
        const auto pre_r = grad_q * state_before<I>(row, j, count) * r * (1 - r);
        store(row.grad_gx + j, pre_r, count);
        store(scratch.gates.row(i) + j, pre_r);
        store(grad_h, load<I, Wide<S>>(grad_h) + grad_q * r);
      }
    }
  }
  add_product<R>(H, scratch.gates, weights.gates, walking, scratch);
}

template <int R, class I, class S>
SER_FAST_INLINE void backward_step(const GruBackward<S>& args, const BackwardWeights<I, S>& weights,
                                   const Tile& tile, int64_t step, int64_t walking, BackwardScratch<I, S>& scratch) {
  BackwardRow<S> rows[R] = {};
  for (int64_t i = 0; i < walking; ++i) rows[i] = row_at(args, tile, i, step);
  if (args.shape.reset_after) back_reset_after<R>(args.shape.hidden, weights, rows, walking, scratch);
  else back_reset_before<R>(args.shape.hidden, weights, rows, walking, scratch);
}

template <class I, class S>
SER_FAST_INLINE void backward_tile(const GruBackward<S>& args, const BackwardWeights<I, S>& weights,
                                   const Tile& tile) {
  const GruShape& shape = args.shape;
  BackwardScratch<I, S> scratch(weights, shape.reset_after);
  for (int64_t i = 0; i < tile.rows; ++i)
    copy<I, S>(state_at(args.grad_h_n, shape, tile, i), scratch.grad_h.data() + i * scratch.width, shape.hidden);
  for (int64_t step = tile.length[0] - 1, walking = 0; step >= 0; --step) {
    while (walking < tile.rows && tile.length[walking] > step) ++walking;
    if (walking > 4) backward_step<I::kRows>(args, weights, tile, step, walking, scratch);
    else if (walking > 2) backward_step<4>(args, weights, tile, step, walking, scratch);
    else if (walking > 1) backward_step<2>(args, weights, tile, step, walking, scratch);
    else backward_step<1>(args, weights, tile, step, walking, scratch);
  }
  for (int64_t i = 0; i < tile.rows; ++i)
    copy<I, S>(scratch.grad_h.data() + i * scratch.width, state_at(args.grad_h0, shape, tile, i), shape.hidden);
  zero_tail(args.grad_gx, shape, tile, 3 * shape.hidden);
  if (shape.reset_after) zero_tail(args.grad_q, shape, tile, shape.hidden);
}

#define SER_FAST_GRU_TASKS(I, S, target)                                                                        \
  target void task(const GruForward<S>& args, const ForwardWeights<I, S>& weights, const Tile& tile) {          \
    forward_tile(args, weights, tile);                                                                          \
  }                                                                                                             \
  target void task(const GruBackward<S>& args, const BackwardWeights<I, S>& weights, const Tile& tile) {        \
    backward_tile(args, weights, tile);                                                                         \
  }
#define SER_FAST_GRU(I, target) \
  SER_FAST_GRU_TASKS(I, float, target) SER_FAST_GRU_TASKS(I, double, target) SER_FAST_GRU_TASKS(I, Bf16, target)

SER_FAST_EACH_ISA(SER_FAST_GRU)
#if SER_FAST_X86
SER_FAST_GRU_TASKS(Avx512Bf16, Bf16, SER_FAST_AVX512_BF16)
#endif

template <class I, template <class, class> class Weights, class S, class Args>
void run(const Args& args, const S* b_hh, const Parallel& parallel) {
  const GruShape& shape = args.shape;
  const int64_t H = shape.hidden;
  std::vector<Weights<I, S>> weights;
  for (int64_t d = 0; d < shape.directions; ++d)
    weights.emplace_back(args.w_hh + d * 3 * H * H, b_hh ? b_hh + d * 3 * H : nullptr, H, shape.reset_after);
  const std::vector<Tile> tiles = tiles_of(shape, args.lengths, I::kRows, parallel.threads);
  parallel(tiles.size(), [&](int64_t i) { task(args, weights[tiles[i].direction], tiles[i]); });
}

}  // namespace

template <class S>
void gru_forward_cpu(const GruForward<S>& args, const Parallel& parallel) {
  with_isa<S>([&](auto isa) { run<decltype(isa), ForwardWeights, S>(args, args.b_hh, parallel); });
}

template <class S>
void gru_backward_cpu(const GruBackward<S>& args, const Parallel& parallel) {
  with_isa<S>([&](auto isa) { run<decltype(isa), BackwardWeights, S>(args, static_cast<const S*>(nullptr), parallel); });
}

template void gru_forward_cpu(const GruForward<float>&, const Parallel&);
template void gru_forward_cpu(const GruForward<double>&, const Parallel&);
template void gru_forward_cpu(const GruForward<Bf16>&, const Parallel&);
template void gru_backward_cpu(const GruBackward<float>&, const Parallel&);
template void gru_backward_cpu(const GruBackward<double>&, const Parallel&);
template void gru_backward_cpu(const GruBackward<Bf16>&, const Parallel&);

}  // namespace ser_fast
