// GRU recurrence on CPU: a task is one direction of a few batch rows and walks all their frames, so no
// task ever waits for another.
#include "gru.h"

#include <algorithm>
#include <vector>

#include "simd.h"

namespace ser_fast {
namespace {

constexpr int64_t kRows = 4;  // batch rows of a task: 4 rows by 2 vectors of sums stay in registers

// A [depth, columns] matrix cut into panels of two vectors' width, each dense and read front to back.
template <class T>
class Panels {
 public:
  static constexpr int64_t kWidth = 2 * kLanes<T>;

  Panels(const T* source, int64_t depth, int64_t columns, int64_t depth_stride, int64_t column_stride)
      : depth_(depth), columns_(columns), data_(padded() * depth) {
    for (int64_t c = 0; c < columns; ++c)
      for (int64_t k = 0; k < depth; ++k)
        data_[(c / kWidth * depth + k) * kWidth + c % kWidth] = source[k * depth_stride + c * column_stride];
  }

  int64_t padded() const { return (columns_ + kWidth - 1) / kWidth * kWidth; }

  // out[row, :] = x[row, :] times the matrix, for kRows rows; out's rows are padded() wide.
  SER_FAST_INLINE void multiply(const T* x, int64_t x_stride, T* out) const {
    const int64_t width = padded();
    for (int64_t c = 0; c < width; c += kWidth) {
      const T* panel = data_.data() + c * depth_;
      Vec<T> sum[kRows][2] = {};
      for (int64_t k = 0; k < depth_; ++k) {
        const Vec<T> left = load(panel + k * kWidth), right = load(panel + k * kWidth + kLanes<T>);
        for (int64_t row = 0; row < kRows; ++row) {
          const T factor = x[row * x_stride + k];
          sum[row][0] += factor * left;
          sum[row][1] += factor * right;
        }
      }
      for (int64_t row = 0; row < kRows; ++row) {
        store(out + row * width + c, sum[row][0]);
        store(out + row * width + c + kLanes<T>, sum[row][1]);
      }
    }
  }

 private:
  int64_t depth_, columns_;
  std::vector<T> data_;
};

// The rows that one task walks, and where each is at a step.
struct Tile {
  int64_t direction, first, rows, steps = 0;
  int64_t length[kRows] = {};

  Tile(const GruShape& shape, const int64_t* lengths, int64_t task) {
    const int64_t tiles = (shape.batch + kRows - 1) / kRows;
    direction = task / tiles;
    first = task % tiles * kRows;
    rows = std::min(kRows, shape.batch - first);
    for (int64_t row = 0; row < rows; ++row) {
      length[row] = lengths ? lengths[first + row] : shape.frames;
      steps = std::max(steps, length[row]);
    }
  }

  int64_t frame(int64_t row, int64_t step) const { return direction ? length[row] - 1 - step : step; }
  int64_t previous(int64_t row, int64_t step) const { return frame(row, step - 1); }
};

int64_t task_count(const GruShape& shape) {
  return shape.directions * ((shape.batch + kRows - 1) / kRows);
}

template <class T>
void zero_tail(const Frames<T>& tensor, const GruShape& shape, const Tile& tile, int64_t width) {
  for (int64_t row = 0; row < tile.rows; ++row)
    for (int64_t t = tile.length[row]; t < shape.frames; ++t)
      std::fill_n(tensor.at(t, tile.first + row) + tile.direction * width, width, T(0));
}

template <class T>
struct ForwardWeights {
  Panels<T> gates;      // [H, 3H], or [H, 2H] (r, z) where the candidate has a product of its own
  Panels<T> candidate;  // [H, H], empty for reset_after

  ForwardWeights(const T* w, int64_t hidden, bool reset_after)
      : gates(w, hidden, (reset_after ? 3 : 2) * hidden, 1, hidden),
        candidate(w + 2 * hidden * hidden, hidden, reset_after ? 0 : hidden, 1, hidden) {}
};

// Scratch of one task: states, r h, and the two products; rows beyond the tile's stay zero.
template <class T>
struct ForwardScratch {
  std::vector<T> h, q, product, candidate, gates;

  ForwardScratch(int64_t hidden, const ForwardWeights<T>& weights)
      : h(kRows * hidden),
        q(kRows * hidden),
        product(kRows * weights.gates.padded()),
        candidate(kRows * weights.candidate.padded()),
        gates(kRows * 4 * hidden) {}
};

// Where a row's r, z, n and q of a step go: to the backward's tensor, or nowhere in particular.
template <class T>
SER_FAST_INLINE T* gates_at(const GruForward<T>& args, const Tile& tile, int64_t row, int64_t step,
                            ForwardScratch<T>& scratch) {
  const int64_t width = 4 * args.shape.hidden;
  if (!args.gates.data) return scratch.gates.data() + row * width;
  return args.gates.at(tile.frame(row, step), tile.first + row) + tile.direction * width;
}

template <class T>
SER_FAST_INLINE void step_reset_after(const GruForward<T>& args, const Tile& tile, const T* bias, int64_t step,
                                      const ForwardWeights<T>& weights, ForwardScratch<T>& scratch) {
  const int64_t H = args.shape.hidden;
  weights.gates.multiply(scratch.h.data(), H, scratch.product.data());
  for (int64_t row = 0; row < tile.rows; ++row) {
    if (step >= tile.length[row]) continue;
    const int64_t t = tile.frame(row, step), b = tile.first + row;
    const T* __restrict gx = args.gx.at(t, b) + tile.direction * 3 * H;
    const T* __restrict product = scratch.product.data() + row * weights.gates.padded();
    T* __restrict h = scratch.h.data() + row * H;
    T* __restrict y = args.y.at(t, b) + tile.direction * H;
    T* __restrict gates = gates_at(args, tile, row, step, scratch);
    SER_FAST_INDEPENDENT
    for (int64_t j = 0; j < H; ++j) {
      const T r = gates[j] = sigmoid(gx[j] + product[j] + bias[j]);
      const T z = gates[H + j] = sigmoid(gx[H + j] + product[H + j] + bias[H + j]);
      const T q = gates[3 * H + j] = product[2 * H + j] + bias[2 * H + j];
      const GruState<T> next = gru_cell(z, gx[2 * H + j] + r * q, h[j]);
      gates[2 * H + j] = next.n;
      h[j] = y[j] = next.h;
    }
  }
}

template <class T>
SER_FAST_INLINE void step_reset_before(const GruForward<T>& args, const Tile& tile, const T* bias, int64_t step,
                                       const ForwardWeights<T>& weights, ForwardScratch<T>& scratch) {
  const int64_t H = args.shape.hidden;
  weights.gates.multiply(scratch.h.data(), H, scratch.product.data());
  for (int64_t row = 0; row < tile.rows; ++row) {
    if (step >= tile.length[row]) continue;
    const int64_t t = tile.frame(row, step), b = tile.first + row;
    const T* __restrict gx = args.gx.at(t, b) + tile.direction * 3 * H;
    const T* __restrict product = scratch.product.data() + row * weights.gates.padded();
    const T* __restrict h = scratch.h.data() + row * H;
    T* __restrict q = scratch.q.data() + row * H;
    T* __restrict gates = gates_at(args, tile, row, step, scratch);
    SER_FAST_INDEPENDENT
    for (int64_t j = 0; j < H; ++j) {
      const T r = gates[j] = sigmoid(gx[j] + product[j] + bias[j]);
      gates[H + j] = sigmoid(gx[H + j] + product[H + j] + bias[H + j]);
      q[j] = gates[3 * H + j] = r * h[j];
    }
  }
  weights.candidate.multiply(scratch.q.data(), H, scratch.candidate.data());
  for (int64_t row = 0; row < tile.rows; ++row) {
    if (step >= tile.length[row]) continue;
    const int64_t t = tile.frame(row, step), b = tile.first + row;
    const T* __restrict gx = args.gx.at(t, b) + tile.direction * 3 * H;
    const T* __restrict product = scratch.candidate.data() + row * weights.candidate.padded();
    T* __restrict h = scratch.h.data() + row * H;
    T* __restrict y = args.y.at(t, b) + tile.direction * H;
    T* __restrict gates = gates_at(args, tile, row, step, scratch);
    SER_FAST_INDEPENDENT
    for (int64_t j = 0; j < H; ++j) {
      const GruState<T> next = gru_cell(gates[H + j], gx[2 * H + j] + product[j] + bias[2 * H + j], h[j]);
      gates[2 * H + j] = next.n;
      h[j] = y[j] = next.h;
    }
  }
}

template <class T>
SER_FAST_INLINE void forward_tile(const GruForward<T>& args, const ForwardWeights<T>& weights,
                                  const T* zeros, int64_t task) {
  const GruShape& shape = args.shape;
  const Tile tile(shape, args.lengths, task);
  const int64_t H = shape.hidden, states = (tile.direction * shape.batch + tile.first) * H;
  const T* bias = args.b_hh ? args.b_hh + tile.direction * 3 * H : zeros;
  ForwardScratch<T> scratch(H, weights);
  if (args.h0) std::copy_n(args.h0 + states, tile.rows * H, scratch.h.data());
  for (int64_t step = 0; step < tile.steps; ++step) {
    if (shape.reset_after) step_reset_after(args, tile, bias, step, weights, scratch);
    else step_reset_before(args, tile, bias, step, weights, scratch);
  }
  std::copy_n(scratch.h.data(), tile.rows * H, args.h_n + states);
  zero_tail(args.y, shape, tile, H);
  if (args.gates.data) zero_tail(args.gates, shape, tile, 4 * H);
}

SER_FAST_CLONES void forward_task(const GruForward<float>& args, const ForwardWeights<float>& weights,
                                  const float* zeros, int64_t task) {
  forward_tile(args, weights, zeros, task);
}

SER_FAST_CLONES void forward_task(const GruForward<double>& args, const ForwardWeights<double>& weights,
                                  const double* zeros, int64_t task) {
  forward_tile(args, weights, zeros, task);
}

// The products of the backward multiply by W itself where the forward's multiply by its transpose.
template <class T>
struct BackwardWeights {
  Panels<T> gates;      // [3H, H], or [2H, H] (r, z)
  Panels<T> candidate;  // [H, H], empty for reset_after

  BackwardWeights(const T* w, int64_t hidden, bool reset_after)
      : gates(w, (reset_after ? 3 : 2) * hidden, hidden, hidden, 1),
        candidate(w + 2 * hidden * hidden, hidden, reset_after ? 0 : hidden, hidden, 1) {}
};

template <class T>
struct BackwardScratch {
  std::vector<T> grad_h, grad_gates, grad_n, product, candidate;

  BackwardScratch(int64_t hidden, const BackwardWeights<T>& weights)
      : grad_h(kRows * hidden),
        grad_gates(kRows * 3 * hidden),
        grad_n(kRows * hidden),
        product(kRows * weights.gates.padded()),
        candidate(kRows * weights.candidate.padded()) {}
};

// Where the state before this step lies: the previous y, the given h0, or zeros.
template <class T>
SER_FAST_INLINE const T* state_before(const GruBackward<T>& args, const Tile& tile, int64_t row, int64_t step,
                                      const T* zeros) {
  const int64_t H = args.shape.hidden, b = tile.first + row;
  if (step > 0) return args.y.at(tile.previous(row, step), b) + tile.direction * H;
  return args.h0 ? args.h0 + (tile.direction * args.shape.batch + b) * H : zeros;
}

// grad_h += grad_gates times the gates' weights, for the rows that are still walking.
template <class T>
SER_FAST_INLINE void add_through_gates(const Tile& tile, int64_t H, int64_t depth, int64_t step,
                                       const BackwardWeights<T>& weights, BackwardScratch<T>& scratch) {
  weights.gates.multiply(scratch.grad_gates.data(), depth, scratch.product.data());
  for (int64_t row = 0; row < tile.rows; ++row) {
    if (step >= tile.length[row]) continue;
    const T* __restrict product = scratch.product.data() + row * weights.gates.padded();
    T* __restrict grad_h = scratch.grad_h.data() + row * H;
    SER_FAST_INDEPENDENT
    for (int64_t j = 0; j < H; ++j) grad_h[j] += product[j];
  }
}

template <class T>
SER_FAST_INLINE void back_reset_after(const GruBackward<T>& args, const Tile& tile, const T* zeros, int64_t step,
                                      const BackwardWeights<T>& weights, BackwardScratch<T>& scratch) {
  const int64_t H = args.shape.hidden;
  for (int64_t row = 0; row < tile.rows; ++row) {
    if (step >= tile.length[row]) continue;
    const int64_t t = tile.frame(row, step), b = tile.first + row;
    const T* __restrict h = state_before(args, tile, row, step, zeros);
    const T* __restrict gates = args.gates.at(t, b) + tile.direction * 4 * H;
    const T* __restrict grad_y = args.grad_y.at(t, b) + tile.direction * H;
    T* __restrict grad_gx = args.grad_gx.at(t, b) + tile.direction * 3 * H;
    T* __restrict grad_q = args.grad_q.at(t, b) + tile.direction * H;
    T* __restrict grad_gates = scratch.grad_gates.data() + row * 3 * H;
    T* __restrict grad_h = scratch.grad_h.data() + row * H;
    SER_FAST_INDEPENDENT
    for (int64_t j = 0; j < H; ++j) {
      const T r = gates[j], z = gates[H + j], n = gates[2 * H + j], q = gates[3 * H + j];
      const T grad = grad_h[j] + grad_y[j];
      const GruCellGrad<T> cell = gru_cell_backward(grad, z, n, h[j]);
      grad_gates[j] = grad_gx[j] = cell.pre_n * q * r * (1 - r);
      grad_gates[H + j] = grad_gx[H + j] = cell.pre_z;
      grad_gates[2 * H + j] = grad_q[j] = cell.pre_n * r;
      grad_gx[2 * H + j] = cell.pre_n;
      grad_h[j] = grad * z;
    }
  }
  add_through_gates(tile, H, 3 * H, step, weights, scratch);
}

template <class T>
SER_FAST_INLINE void back_reset_before(const GruBackward<T>& args, const Tile& tile, const T* zeros, int64_t step,
                                       const BackwardWeights<T>& weights, BackwardScratch<T>& scratch) {
  const int64_t H = args.shape.hidden;
  for (int64_t row = 0; row < tile.rows; ++row) {
    if (step >= tile.length[row]) continue;
    const int64_t t = tile.frame(row, step), b = tile.first + row;
    const T* __restrict h = state_before(args, tile, row, step, zeros);
    const T* __restrict gates = args.gates.at(t, b) + tile.direction * 4 * H;
    const T* __restrict grad_y = args.grad_y.at(t, b) + tile.direction * H;
    T* __restrict grad_gx = args.grad_gx.at(t, b) + tile.direction * 3 * H;
    T* __restrict grad_gates = scratch.grad_gates.data() + row * 2 * H;
    T* __restrict grad_n = scratch.grad_n.data() + row * H;
    T* __restrict grad_h = scratch.grad_h.data() + row * H;
    SER_FAST_INDEPENDENT
    for (int64_t j = 0; j < H; ++j) {
      const T z = gates[H + j], n = gates[2 * H + j];
      const T grad = grad_h[j] + grad_y[j];
      const GruCellGrad<T> cell = gru_cell_backward(grad, z, n, h[j]);
      grad_gates[H + j] = grad_gx[H + j] = cell.pre_z;
      grad_n[j] = grad_gx[2 * H + j] = cell.pre_n;
      grad_h[j] = grad * z;
    }
  }
  weights.candidate.multiply(scratch.grad_n.data(), H, scratch.candidate.data());
  for (int64_t row = 0; row < tile.rows; ++row) {
    if (step >= tile.length[row]) continue;
    const int64_t t = tile.frame(row, step), b = tile.first + row;
    const T* __restrict h = state_before(args, tile, row, step, zeros);
    const T* __restrict reset = args.gates.at(t, b) + tile.direction * 4 * H;
    const T* __restrict grad_q = scratch.candidate.data() + row * weights.candidate.padded();
    T* __restrict grad_gx = args.grad_gx.at(t, b) + tile.direction * 3 * H;
    T* __restrict grad_gates = scratch.grad_gates.data() + row * 2 * H;
    T* __restrict grad_h = scratch.grad_h.data() + row * H;
    SER_FAST_INDEPENDENT
    for (int64_t j = 0; j < H; ++j) {
      const T r = reset[j];
      grad_gates[j] = grad_gx[j] = grad_q[j] * h[j] * r * (1 - r);
      grad_h[j] += grad_q[j] * r;
    }
  }
  add_through_gates(tile, H, 2 * H, step, weights, scratch);
}

template <class T>
SER_FAST_INLINE void backward_tile(const GruBackward<T>& args, const BackwardWeights<T>& weights,
                                   const T* zeros, int64_t task) {
  const GruShape& shape = args.shape;
  const Tile tile(shape, args.lengths, task);
  const int64_t H = shape.hidden, states = (tile.direction * shape.batch + tile.first) * H;
  BackwardScratch<T> scratch(H, weights);
  std::copy_n(args.grad_h_n + states, tile.rows * H, scratch.grad_h.data());
  for (int64_t step = tile.steps - 1; step >= 0; --step) {
    if (shape.reset_after) back_reset_after(args, tile, zeros, step, weights, scratch);
    else back_reset_before(args, tile, zeros, step, weights, scratch);
  }
  std::copy_n(scratch.grad_h.data(), tile.rows * H, args.grad_h0 + states);
  zero_tail(args.grad_gx, shape, tile, 3 * H);
  if (shape.reset_after) zero_tail(args.grad_q, shape, tile, H);
}

SER_FAST_CLONES void backward_task(const GruBackward<float>& args, const BackwardWeights<float>& weights,
                                   const float* zeros, int64_t task) {
  backward_tile(args, weights, zeros, task);
}

SER_FAST_CLONES void backward_task(const GruBackward<double>& args, const BackwardWeights<double>& weights,
                                   const double* zeros, int64_t task) {
  backward_tile(args, weights, zeros, task);
}

template <class Weights, class T>
std::vector<Weights> pack(const T* w_hh, const GruShape& shape) {
  std::vector<Weights> packed;
  for (int64_t d = 0; d < shape.directions; ++d)
    packed.emplace_back(w_hh + d * 3 * shape.hidden * shape.hidden, shape.hidden, shape.reset_after);
  return packed;
}

}  // namespace

template <class T>
void gru_forward_cpu(const GruForward<T>& args, const Parallel& parallel) {
  const auto weights = pack<ForwardWeights<T>>(args.w_hh, args.shape);
  const std::vector<T> zeros(3 * args.shape.hidden);
  const int64_t tasks = task_count(args.shape);
  parallel(tasks, [&](int64_t task) {
    forward_task(args, weights[task * args.shape.directions / tasks], zeros.data(), task);
  });
}

template <class T>
void gru_backward_cpu(const GruBackward<T>& args, const Parallel& parallel) {
  const auto weights = pack<BackwardWeights<T>>(args.w_hh, args.shape);
  const std::vector<T> zeros(args.shape.hidden);
  const int64_t tasks = task_count(args.shape);
  parallel(tasks, [&](int64_t task) {
    backward_task(args, weights[task * args.shape.directions / tasks], zeros.data(), task);
  });
}

template void gru_forward_cpu(const GruForward<float>&, const Parallel&);
template void gru_forward_cpu(const GruForward<double>&, const Parallel&);
template void gru_backward_cpu(const GruBackward<float>&, const Parallel&);
template void gru_backward_cpu(const GruBackward<double>&, const Parallel&);

}  // namespace ser_fast
