// GRU recurrence on CPU. The rows of a task are of similar length; each leaves the loop after its own last frame.
#include "gru.h"

#include <algorithm>
#include <vector>

#include "gru_rows.h"

namespace ser_fast {
namespace {

template <class I, class S>
SER_FAST_INLINE void forward_tile(const GruForward<S>& args, const ForwardWeights<I, S>& weights, const Tile& tile) {
  const GruShape& shape = args.shape;
  ForwardScratch<I, S> scratch(weights.pairs);
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
    const auto row = [&](int64_t i) __attribute__((always_inline)) {
      const int64_t t = tile.frame(i, step), b = tile.row[i], d = tile.direction, H = shape.hidden;
      return ForwardRow<S>{args.gx.at(t, b) + d * 3 * H, H, args.y.at(t, b) + d * H,
                           args.gates.data ? args.gates.at(t, b) + d * 4 * H : nullptr, nullptr};
    };
    forward_step(shape, weights, step, walking, row, scratch);
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

  BackwardWeights(const S* w, int64_t H, bool reset_after)
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
  Buffer<T> grad_h, sums;       // [rows, width]; [rows, 2, lanes]
  // Gradients that the products read: r, z and, with reset_after, q; n.
  Left<typename Factor<I, S>::Type> gates, candidate;

  BackwardScratch(const BackwardWeights<I, S>& weights, bool reset_after)
      : width(weights.pairs * 2 * kLanes<I, T>),
        grad_h(I::kRows * width, T{}),
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
SER_FAST_INLINE void add_product(int64_t H, Left<typename Factor<I, S>::Type>& left, const Panels<I, S, 2>& panels,
                                 int64_t walking, BackwardScratch<I, S>& scratch) {
  constexpr int64_t lanes = kLanes<I, Wide<S>>;
  for (int64_t pair = 0, j = 0; j < H; ++pair, j += 2 * lanes) {
    product<I, S, R, 2>(left.row(0), left.stride, panels[pair], 0, left.stride, nullptr, scratch.sums.data());
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
    product<I, S, R, 2>(scratch.candidate.row(0), weights.part, weights.candidate[pair], 0, weights.part, nullptr,
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
  target ForwardWeights<I, S> forward_weights(I, const S* w, const S* b, int64_t H, bool reset_after) {         \
    return {w, b, H, reset_after};                                                                              \
  }                                                                                                             \
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

// weights: of each direction.
template <class I, class Weights, class Args>
void run(const Args& args, const std::vector<Weights>& weights, const Parallel& all) {
  const GruShape& shape = args.shape;
  const int64_t frames = args.y.starts ? shape.frames : shape.frames * shape.batch;
  const Parallel parallel = all.worth(shape.work(frames, 3 * shape.hidden));
  const std::vector<Tile> tiles = tiles_of(args.shape, args.lengths, I::kRows, parallel.threads);
  parallel(tiles.size(), [&](int64_t i) { task(args, weights[tiles[i].direction], tiles[i]); });
}

}  // namespace

template <class S>
void gru_forward_cpu(const GruForward<S>& args, const Parallel& parallel) {
  const GruShape& shape = args.shape;
  const int64_t H = shape.hidden;
  with_isa<S>([&](auto isa) {
    std::vector<ForwardWeights<decltype(isa), S>> weights;
    for (int64_t d = 0; d < shape.directions; ++d)
      weights.push_back(forward_weights(isa, args.w_hh + d * 3 * H * H, args.b_hh ? args.b_hh + d * 3 * H : nullptr, H,
                                        shape.reset_after));
    run<decltype(isa)>(args, weights, parallel);
  });
}

template <class S>
void gru_backward_cpu(const GruBackward<S>& args, const Parallel& parallel) {
  const GruShape& shape = args.shape;
  const int64_t H = shape.hidden;
  with_isa<S>([&](auto isa) {
    std::vector<BackwardWeights<decltype(isa), S>> weights;
    for (int64_t d = 0; d < shape.directions; ++d)
      weights.emplace_back(args.w_hh + d * 3 * H * H, H, shape.reset_after);
    run<decltype(isa)>(args, weights, parallel);
  });
}

template void gru_forward_cpu(const GruForward<float>&, const Parallel&);
template void gru_forward_cpu(const GruForward<double>&, const Parallel&);
template void gru_forward_cpu(const GruForward<Bf16>&, const Parallel&);
template void gru_backward_cpu(const GruBackward<float>&, const Parallel&);
template void gru_backward_cpu(const GruBackward<double>&, const Parallel&);
template void gru_backward_cpu(const GruBackward<Bf16>&, const Parallel&);

}  // namespace ser_fast
