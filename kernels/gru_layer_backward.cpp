// Gradients of a GRU layer on CPU: the recurrence backwards, then the products with its gate gradients G.
//
//   dx = G W_ih        dW_ih = G^T x        dW_hh = G^T h (the candidate's rows: without reset_after G^T (r h))
//
// A product over frames is computed for all gates of a vector of hidden units at a time, so the order of every sum is
// the same for any number of threads. x and h are read where they lie, by a pointer for each frame.
#include <algorithm>
#include <vector>

#include "gru_layer.h"
#include "gru_rows.h"

namespace ser_fast {
namespace {

// The rows of the left factors of all N frames.
template <class T>
struct LeftRows {
  std::vector<const T*> x, before[2], reset[2];  // reset: r h, the candidate's factor without reset_after
  Buffer<T> zeros;                               // the state before the first step

  explicit LeftRows(const GruLayerBackward<T>& args, int64_t N) : x(N), zeros(args.shape.hidden, T{}) {
    const GruShape& shape = args.shape;
    const int64_t H = shape.hidden, D = shape.directions;
    for (int64_t d = 0; d < D; ++d) before[d].resize(N), reset[d].resize(shape.reset_after ? 0 : N);
    for (int64_t b = 0; b < shape.batch; ++b) {
      const int64_t length = args.lengths ? args.lengths[b] : shape.frames;
      for (int64_t t = 0; t < length; ++t) {
        const int64_t n = (args.states.at(t, b) - args.states.data) / (D * H);
        x[n] = args.x.at(t, b);
        for (int64_t d = 0; d < D; ++d) {
          const int64_t last = d ? t + 1 : t - 1;
          before[d][n] = last >= 0 && last < length ? args.states.at(last, b) + d * H
                         : args.h0                  ? args.h0 + (d * shape.batch + b) * H
                                                    : zeros.data();
          if (!shape.reset_after) reset[d][n] = args.gates.at(t, b) + d * 4 * H + 3 * H;
        }
      }
    }
  }
};

// Frames of a block of the products over frames: their panel stays in the L1 cache, and sums of sums are more exact.
constexpr int64_t kDeep = 128;

// sums[R][3, lanes] += the products over `count` frames of R features with 3 vectors of a panel [count, W, lanes]:
// the first two and number `third`, which has left rows of its own if Two. The first block of frames sets the sums.
template <class I, class T, int R, bool Two>
SER_FAST_INLINE void add_outer(const T* const* left, const T* const* other, int64_t at, int64_t count, const T* panel,
                               int64_t width, int64_t third, bool set, T* sums) {
  constexpr int64_t lanes = kLanes<I, T>;
  Vec<I, T> sum[R][3] = {};
  for (int64_t k = 0; k < count; ++k, panel += width * lanes) {
    const T *a = left[k] + at, *b = Two ? other[k] + at : a;
    const Vec<I, T> first = in_register(load<I>(panel)), second = in_register(load<I>(panel + lanes)),
                    last = in_register(load<I>(panel + third * lanes));
    SER_FAST_UNROLL
    for (int row = 0; row < R; ++row) {
      sum[row][0] += a[row] * first;
      sum[row][1] += a[row] * second;
      sum[row][2] += b[row] * last;
    }
  }
  SER_FAST_UNROLL
  for (int row = 0; row < R; ++row)
    SER_FAST_UNROLL
    for (int v = 0; v < 3; ++v, sums += lanes) store(sums, set ? sum[row][v] : load<I, T>(sums) + sum[row][v]);
}

struct Range {
  int64_t begin, end;

  int64_t size() const { return end - begin; }
};

// The weights' gradients for some vectors of hidden units, all gates, and some of the I + H factors, those of x first.
template <class I, class T>
struct WeightTask {
  static constexpr int64_t kLane = kLanes<I, T>;

  const GruLayerBackward<T>& args;
  const LeftRows<T>& rows;
  int64_t N, direction, first, last;  // vectors of hidden units
  int64_t begin, end;                 // factors

  SER_FAST_INLINE void operator()() const {
    const GruShape& shape = args.shape;
    const GruLayerGradients<T>& to = args.gradients[direction];
    const int64_t H = shape.hidden, width = shape.reset_after ? 4 : 3, panels = last - first;
    const int64_t border = std::clamp(args.features, begin, end);
    const Range inputs{begin, to.w_ih ? border : begin};
    const Range states{border - args.features, to.w_hh ? end - args.features : border - args.features};
    const int64_t size = (inputs.size() + states.size()) * 3 * kLane;
    Buffer<T> panel(kDeep * width * kLane), biases(panels * 4 * kLane, T{}), sums(panels * size);
    if (N == 0) std::fill_n(sums.data(), sums.size(), T{});
    for (int64_t frame = 0; frame < N; frame += kDeep) {
      const int64_t count = std::min(kDeep, N - frame);
      for (int64_t p = 0; p < panels; ++p) {
        pack(frame, count, first + p, panel.data(), biases.data() + p * 4 * kLane);
        T* out = sums.data() + p * size;
        add<false>(rows.x.data() + frame, nullptr, inputs, count, panel.data(), width, 2, frame == 0, out);
        out += inputs.size() * 3 * kLane;
        const T* const* before = rows.before[direction].data() + frame;
        const T* const* reset = rows.reset[direction].data() + frame;
        if (shape.reset_after) add<false>(before, nullptr, states, count, panel.data(), width, 3, frame == 0, out);
        else add<true>(before, reset, states, count, panel.data(), width, 2, frame == 0, out);
      }
    }
    for (int64_t p = 0; p < panels; ++p) {
      const T* from = sums.data() + p * size;
      spread(from, inputs, first + p, args.features, to.w_ih);
      spread(from + inputs.size() * 3 * kLane, states, first + p, H, to.w_hh);
      for (int64_t v = 0; v < 3 && begin == 0; ++v) {
        const int64_t j = (first + p) * kLane, own = v == 2 && shape.reset_after ? 3 : v;
        const T* bias = biases.data() + p * 4 * kLane;
        if (to.b_ih) store(to.b_ih + v * H + j, load<I>(bias + v * kLane), H - j);
        if (to.b_hh) store(to.b_hh + v * H + j, load<I>(bias + own * kLane), H - j);
      }
    }
  }

 private:
  // panel[count, width, lanes] = the gate gradients of one vector of units; adds their sums to those of the biases.
  SER_FAST_INLINE void pack(int64_t frame, int64_t count, int64_t vector, T* panel, T* biases) const {
    const int64_t H = args.shape.hidden, D = args.shape.directions, j = vector * kLane;
    const bool own = args.shape.reset_after;
    Vec<I, T> all[4] = {};
    for (int64_t begin = 0; begin < count; begin += 16) {
      Vec<I, T> sum[4] = {};
      for (int64_t k = begin; k < std::min<int64_t>(begin + 16, count); ++k) {
        const int64_t at = (frame + k) * D + direction;
        SER_FAST_UNROLL
        for (int64_t v = 0; v < 4; ++v) {
          if (v == 3 && !own) continue;
          const auto value = load<I>(v < 3 ? args.grad_gx + (at * 3 + v) * H + j : args.grad_q + at * H + j, H - j);
          sum[v] += value;
          store(panel, value);
          panel += kLane;
        }
      }
      for (int64_t v = 0; v < 4; ++v) all[v] += sum[v];
    }
    for (int64_t v = 0; v < 4; ++v) store(biases + v * kLane, load<I, T>(biases + v * kLane) + all[v]);
  }

  template <bool Two>
  SER_FAST_INLINE static void add(const T* const* left, const T* const* other, Range range, int64_t count,
                                  const T* panel, int64_t width, int64_t third, bool set, T* sums) {
    int64_t i = range.begin;
    const auto some = [&](auto number) __attribute__((always_inline)) {
      for (; i + number <= range.end; i += number, sums += number * 3 * kLane)
        add_outer<I, T, number, Two>(left, other, i, count, panel, width, third, set, sums);
    };
    some(std::integral_constant<int, I::kRows>{});
    some(std::integral_constant<int, 4>{});
    some(std::integral_constant<int, 1>{});
  }

  // gradient[3H, width] of one vector of units = sums[columns, 3, lanes].
  SER_FAST_INLINE void spread(const T* sums, Range columns, int64_t vector, int64_t width, T* gradient) const {
    const int64_t H = args.shape.hidden, j = vector * kLane, units = std::min(kLane, H - j);
    for (int64_t i = columns.begin; i < columns.end; i += kLane, sums += kLane * 3 * kLane)
      for (int64_t v = 0; v < 3; ++v) {
        Vec<I, T> block[kLane];
        SER_FAST_UNROLL
        for (int64_t k = 0; k < kLane; ++k)
          block[k] = i + k < columns.end ? load<I>(sums + (k * 3 + v) * kLane) : Vec<I, T>{};
        transpose(block);
        SER_FAST_UNROLL
        for (int64_t unit = 0; unit < kLane; ++unit)
          if (unit < units) store(gradient + (v * H + j + unit) * width + i, block[unit], columns.end - i);
      }
  }
};

// W_ih of all directions in panels of 1 to 3 vectors of features, as even as possible: [D 3H, V, lanes] each.
template <class I, class T>
struct InputPanels {
  static constexpr int64_t kLane = kLanes<I, T>;

  int64_t depth, vectors, count;
  Buffer<T> data;

  SER_FAST_INLINE explicit InputPanels(const GruLayerBackward<T>& args)
      : depth(args.shape.directions * 3 * args.shape.hidden),
        vectors((args.features + kLane - 1) / kLane),
        count((vectors + 2) / 3),
        data(vectors * depth * kLane) {
    for (int64_t k = 0; k < depth; ++k) {
      const int64_t one = 3 * args.shape.hidden;
      const T* from = args.weights[k / one].w_ih + k % one * args.features;
      for (int64_t p = 0; p < count; ++p)
        for (int64_t v = first(p); v < first(p + 1); ++v)
          store(panel(p) + (k * (first(p + 1) - first(p)) + v - first(p)) * kLane,
                load<I>(from + v * kLane, args.features - v * kLane));
    }
  }

  int64_t first(int64_t p) const { return p * vectors / count; }
  T* panel(int64_t p) const { return data.data() + first(p) * depth * kLane; }
};

// Some vectors V of the input's gradient of some frames; to[N]: its rows.
template <int V, class I, class T>
SER_FAST_INLINE void input_vectors(const GruLayerBackward<T>& args, const InputPanels<I, T>& panels, int64_t p,
                                int64_t first, int64_t last, T* const* to) {
  constexpr int64_t width = V * kLanes<I, T>;
  T sums[I::kRows * width];
  const int64_t i = panels.first(p) * kLanes<I, T>;
  const auto rows = [&](auto number) __attribute__((always_inline)) {
    for (; first + number <= last; first += number) {
      product<I, T, number, V>(args.grad_gx + first * panels.depth, panels.depth, panels.panel(p), 0, panels.depth,
                               nullptr, static_cast<T*>(sums));
      for (int64_t row = 0; row < number; ++row)
        copy<I, T>(static_cast<const T*>(sums + row * width), to[first + row] + i, std::min(width, args.features - i));
    }
  };
  rows(std::integral_constant<int, I::kRows>{});
  rows(std::integral_constant<int, 4>{});
  rows(std::integral_constant<int, 1>{});
}

template <class I, class T>
SER_FAST_INLINE void input_task(const GruLayerBackward<T>& args, const InputPanels<I, T>& panels, int64_t first,
                                int64_t last, T* const* to) {
  for (int64_t p = 0; p < panels.count; ++p) {
    const int64_t vectors = panels.first(p + 1) - panels.first(p);
    if (vectors == 3) input_vectors<3>(args, panels, p, first, last, to);
    else if (vectors == 2) input_vectors<2>(args, panels, p, first, last, to);
    else input_vectors<1>(args, panels, p, first, last, to);
  }
}

#define SER_FAST_GRU_LAYER_TASK(I, T, target)                                                                       \
  target void task(const WeightTask<I, T>& task) { task(); }                                                        \
  target InputPanels<I, T> input_panels(I, const GruLayerBackward<T>& args) { return InputPanels<I, T>(args); }     \
  target void task(const GruLayerBackward<T>& args, const InputPanels<I, T>& panels, int64_t first, int64_t last,   \
                   T* const* to) {                                                                                  \
    input_task<I>(args, panels, first, last, to);                                                                   \
  }
#define SER_FAST_GRU_LAYER(I, target) \
  SER_FAST_GRU_LAYER_TASK(I, float, target) SER_FAST_GRU_LAYER_TASK(I, double, target)

SER_FAST_EACH_ISA(SER_FAST_GRU_LAYER)

// Bytes of gate gradients of the frames of one task: a panel of W_ih is read once for all of them.
constexpr int64_t kChunk = 1 << 18;

template <class I, class T>
void input_gradients(const GruLayerBackward<T>& args, int64_t N, const Parallel& all) {
  const GruShape& shape = args.shape;
  std::vector<T*> to(N);
  for (int64_t b = 0; b < shape.batch; ++b) {
    const int64_t length = args.lengths ? args.lengths[b] : shape.frames;
    for (int64_t t = 0; t < length; ++t)
      to[(args.states.at(t, b) - args.states.data) / (shape.directions * shape.hidden)] = args.grad_x.at(t, b);
    for (int64_t t = length; t < shape.frames && !args.grad_x.starts; ++t)
      std::fill_n(args.grad_x.at(t, b), args.features, T{});
  }
  const auto panels = input_panels(I{}, args);
  const Parallel parallel = all.worth(shape.work(N, 3 * args.features));
  const int64_t most = std::max<int64_t>(8, kChunk / sizeof(T) / panels.depth / 8 * 8);
  const int64_t each = std::clamp<int64_t>(round_up((N + parallel.threads - 1) / parallel.threads, 8), 8, most);
  parallel((N + each - 1) / each,
           [&](int64_t i) { task(args, panels, i * each, std::min(N, (i + 1) * each), to.data()); });
}

template <class T>
bool wanted(const GruLayerGradients<T>& to) {
  return to.w_ih || to.w_hh || to.b_ih || to.b_hh;
}

template <class I, class T>
void weight_gradients(const GruLayerBackward<T>& args, int64_t N, const Parallel& all) {
  if (!wanted(args.gradients[0]) && !wanted(args.gradients[1])) return;
  const GruShape& shape = args.shape;
  const LeftRows<T> rows(args, N);
  const int64_t blocks = (shape.hidden + kLanes<I, T> - 1) / kLanes<I, T>;
  const Parallel parallel = all.worth(shape.work(N, 3 * (args.features + shape.hidden)));
  const int64_t each = std::min(blocks, (shape.directions * blocks + parallel.threads - 1) / parallel.threads);
  // More threads than vectors of units share the factors of each.
  const int64_t factors = args.features + shape.hidden;
  const int64_t shares = (parallel.threads - 1) / (shape.directions * blocks) + 1;
  const int64_t share = round_up((factors + shares - 1) / shares, 8);
  std::vector<WeightTask<I, T>> tasks;
  for (int64_t d = 0; d < shape.directions; ++d)
    for (int64_t first = 0; wanted(args.gradients[d]) && first < blocks; first += each)
      for (int64_t begin = 0; begin < factors; begin += share)
        tasks.push_back(
            {args, rows, N, d, first, std::min(first + each, blocks), begin, std::min(begin + share, factors)});
  parallel(tasks.size(), [&](int64_t i) { task(tasks[i]); });
}

}  // namespace

template <class T>
void gru_layer_backward_cpu(const GruLayerBackward<T>& args, const Parallel& parallel) {
  const GruShape& shape = args.shape;
  const int64_t D = shape.directions, H = shape.hidden;
  int64_t N = 0;
  for (int64_t b = 0; b < shape.batch; ++b) N += args.lengths ? args.lengths[b] : shape.frames;
  const auto alike = [&](T* data, int64_t width) -> Frames<T> {  // frames in the order of the states
    return {data, args.states.frame_stride / (D * H) * width, args.states.row_stride / (D * H) * width,
            args.states.starts};
  };
  Buffer<T> both(D == 2 ? 2 * 3 * H * H : 0);
  for (int64_t d = 0; d < D && D == 2; ++d) std::copy_n(args.weights[d].w_hh, 3 * H * H, both.data() + d * 3 * H * H);
  gru_backward_cpu<T>({shape, args.grad_y, args.grad_h_n, args.states, args.gates,
                       D == 2 ? both.data() : args.weights[0].w_hh, args.h0, args.lengths,
                       alike(args.grad_gx, 3 * D * H), alike(args.grad_q, D * H), args.grad_h0},
                      parallel);
  with_isa<T>([&](auto isa) {
    if (args.grad_x.data) input_gradients<decltype(isa)>(args, N, parallel);
    weight_gradients<decltype(isa)>(args, N, parallel);
  });
}

template void gru_layer_backward_cpu(const GruLayerBackward<float>&, const Parallel&);
template void gru_layer_backward_cpu(const GruLayerBackward<double>&, const Parallel&);

}  // namespace ser_fast
