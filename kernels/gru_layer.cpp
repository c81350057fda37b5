// GRU layer on CPU. A task alternates between the projection of some steps of its rows, a product with
// panels of W_ih in register blocks, and the recurrence over these steps.
#include "gru_layer.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "gru_direct.h"
#include "gru_rows.h"
#include "gru_together.h"
#include "layouts.h"

namespace ser_fast {
namespace {

// One direction's weights W in the layout of the products; rows and biases are S. Those of int8 multiply the state in
// fixed point, but the input, which has no bound, as float32.
template <class I, class S, class W>
struct LayerWeights {
  using T = Wide<S>;
  using F = typename Factor<I, W>::Type;
  static constexpr int64_t kLane = kLanes<I, T>;

  int64_t depth;  // features in whole factors
  using Recurrent = ForwardWeights<I, std::conditional_t<std::is_same_v<W, int8_t>, Byte, W>, S>;
  Recurrent recurrent;
  Panels<I, W, 3> input;  // r, z and n of one vector of hidden units
  Buffer<T> bias, scale;  // of the projection, in the order of its panels

  SER_FAST_INLINE LayerWeights(const GruLayerWeights<S, W>& w, int64_t features, int64_t H, bool reset_after)
      : depth(round_up(features, Factor<I, W>::kPair)),
        recurrent(reinterpret_cast<const Recurrent::Weight*>(w.w_hh), w.b_hh, H, reset_after, w.s_hh),
        input(recurrent.blocks, features, w.w_ih, [=](int64_t p, int64_t v) { return v * H + p * kLane; },
              [=](int64_t, int64_t v) { return (v + 1) * H; }),
        bias(by_blocks<I>(w.b_ih, H, 3)),
        scale(by_blocks<I>(w.s_ih, H, 3)) {}

  // gx[frames, 3, apart] of x[frames, depth], whose frames are `stride` apart, for some vectors of units.
  SER_FAST_INLINE void project(const F* x, int64_t stride, int64_t frames, T* gx, int64_t apart, Units units) const {
    for (int64_t block = units.first; block < units.last; ++block) {
      int64_t frame = 0;
      const auto rows = [&](auto number) __attribute__((always_inline)) {
        for (; frame + number <= frames; frame += number)
          product<I, W, number, 3>(x + frame * stride, stride, input[block], 0, depth, bias.data() + block * 3 * kLane,
                                   gx + frame * 3 * apart + block * kLane, 3 * apart, apart,
                                   scale.data() + block * 3 * kLane);
      };
      rows(std::integral_constant<int, I::kRows>{});
      rows(std::integral_constant<int, 4>{});
      rows(std::integral_constant<int, 1>{});
    }
  }
};

// The same interface on the weights as they are.
template <class I, class S, class W>
struct DirectLayerWeights {
  using T = Wide<S>;
  using F = typename Factor<I, W>::Type;
  static constexpr int64_t kLane = kLanes<I, T>;

  int64_t features, depth;
  GruLayerWeights<S, W> w;
  using Recurrent = DirectWeights<I, W, S>;
  Recurrent recurrent;

  DirectLayerWeights(const GruLayerWeights<S, W>& w, int64_t features, int64_t H)
      : features(features), depth(features), w(w), recurrent(w.w_hh, w.b_hh, H, w.s_hh) {}

  SER_FAST_INLINE void project(const F* x, int64_t stride, int64_t frames, T* gx, int64_t apart, Units units) const {
    const int64_t H = recurrent.H;
    for (int64_t gate = 0; gate < 3; ++gate)
      for (int64_t j = units.first * kLane; j < std::min(H, units.last * kLane); j += kLane) {
        const int64_t at = gate * H + j, count = std::min(kLane, H - j);
        for (int64_t i = 0; i < frames; ++i) {
          const auto sum = dots<I>(w.w_ih + at * features, count, x + i * stride, features);
          store(gx + (i * 3 + gate) * apart + j, affine<I>(sum, w.b_ih, w.s_ih, at, count));
        }
      }
  }
};

// Frames that a task projects at a time: many, so that a panel is read once for all of them, in at most so many bytes
// for each thread that takes part.
constexpr int64_t kChunk = 1 << 18;

template <class I, class S, class Weights>
struct LayerScratch {
  using T = Wide<S>;

  int64_t apart, steps;                 // H in whole vectors; steps of a chunk
  Buffer<typename Weights::F> x;        // [frames, depth]
  Buffer<T> gx;                         // [frames, 3, apart]
  ForwardScratch<I, S, typename Weights::Recurrent::F> forward;

  LayerScratch(int64_t depth, int64_t pairs, int64_t blocks, const Tile& tile, int64_t threads)
      : apart(blocks * kLanes<I, T>),
        steps(std::max<int64_t>(1, std::min<int64_t>(threads * kChunk / sizeof(T) / (3 * apart + depth) / tile.rows,
                                                     tile.length[0]))),
        x(steps * tile.rows * depth),
        gx(steps * tile.rows * 3 * apart),
        forward(pairs) {}
};

// project(first, count) computes gx of some frames of the scratch memory. Threads share them only if that is long work:
// the recurrence goes on alone, and has to wait for all of them.
template <class Project>
void project_all(int64_t frames, double nanoseconds, const Parallel& parallel, const Project& project) {
  const Parallel threads = parallel.worth(nanoseconds / 16);
  const int64_t each = round_up((frames + threads.threads - 1) / threads.threads, 8);
  threads((frames + each - 1) / each, [&](int64_t i) { project(i * each, std::min(each, frames - i * each)); });
}

template <class I, class S, class W, class Weights>
SER_FAST_INLINE void layer_tile(const GruLayer<S, W>& args, const Weights& weights, const Tile& tile,
                                const Parallel& parallel) {
  using T = Wide<S>;
  const GruShape& shape = args.shape;
  const int64_t features = args.features, depth = weights.depth;
  LayerScratch<I, S, Weights> scratch(depth, weights.recurrent.pairs, weights.recurrent.blocks, tile,
                                      parallel.threads);
  auto& forward = scratch.forward;
  for (int64_t i = 0; args.h0 && i < tile.rows; ++i) {
    copy<I, S>(state_at(args.h0, shape, tile, i), forward.state.data() + i * forward.width, shape.hidden);
    copy<I, S>(state_at(args.h0, shape, tile, i), forward.h.row(i), shape.hidden);
  }
  int64_t walking = tile.rows;
  for (int64_t first = 0; first < tile.length[0]; first += scratch.steps) {
    const int64_t last = std::min(first + scratch.steps, tile.length[0]);
    int64_t frames = 0;
    for (int64_t step = first; step < last; ++step)
      for (int64_t i = 0; i < tile.rows && tile.length[i] > step; ++i) {
        auto* to = scratch.x.data() + frames++ * depth;
        copy<I, S>(args.x.at(tile.frame(i, step), tile.row[i]), to, features);
        if (depth > features) to[features] = {};
      }
    const auto project = [&](int64_t at, int64_t count) {
      project_frames(weights, scratch.x.data() + at * depth, depth, count,
                     scratch.gx.data() + at * 3 * scratch.apart, scratch.apart, {0, weights.recurrent.blocks});
    };
    project_all(frames, frames * 3.0 * shape.hidden * features / 32, parallel, project);
    const T* gx = scratch.gx.data();
    for (int64_t step = first; step < last; ++step) {
      for (; tile.length[walking - 1] == step; --walking)
        copy<I, S>(forward.state.data() + (walking - 1) * forward.width, state_at(args.h_n, shape, tile, walking - 1),
                   shape.hidden);
      const auto row = [&](int64_t i) __attribute__((always_inline)) {
        const int64_t t = tile.frame(i, step), b = tile.row[i], at = tile.direction * shape.hidden;
        S* y = args.y.at(t, b) + at;
        if (!args.gates.data) return ForwardRow<S, T>{gx + i * 3 * scratch.apart, scratch.apart, y, nullptr, nullptr};
        return ForwardRow<S, T>{gx + i * 3 * scratch.apart, scratch.apart, y, args.gates.at(t, b) + 4 * at,
                                args.states.at(t, b) + at};
      };
      forward_step(shape, weights.recurrent, step, walking, row, forward);
      gx += walking * 3 * scratch.apart;
    }
  }
  for (int64_t i = 0; i < walking; ++i)
    copy<I, S>(forward.state.data() + i * forward.width, state_at(args.h_n, shape, tile, i), shape.hidden);
  zero_tail(args.y, shape, tile, shape.hidden);
}

template <class I, class S, class W>
SER_FAST_INLINE Digest digest_of(const GruLayerWeights<S, W>& w, int64_t features, int64_t H, bool reset_after) {
  Digest digest;
  for (const int64_t part : {features, H, int64_t(reset_after), int64_t(w.b_ih != nullptr)}) digest.add(part);
  const int64_t rows = 3 * H;
  digest.add<I>(w.w_ih, rows * features * sizeof(W));
  digest.add<I>(w.w_hh, rows * H * sizeof(W));
  if (w.b_ih) digest.add<I>(w.b_ih, rows * sizeof(S)), digest.add<I>(w.b_hh, rows * sizeof(S));
  if (w.s_ih) digest.add<I>(w.s_ih, rows * sizeof(Wide<W>)), digest.add<I>(w.s_hh, rows * sizeof(Wide<W>));
  return digest;
}

template <class I, class S, class W>
using Shared = std::shared_ptr<const LayerWeights<I, S, W>>;

// The weights' layout, kept for later calls unless another thread changed them meanwhile.
template <class I, class S, class W>
SER_FAST_INLINE Shared<I, S, W> layout_of(const GruLayerWeights<S, W>& w, int64_t features, int64_t H,
                                          bool reset_after) {
  using Layout = LayerWeights<I, S, W>;
  auto& kept = Layouts<Layout>::all();
  const Digest digest = digest_of<I>(w, features, H, reset_after);
  if (auto found = kept.find(digest)) return found;
  const Shared<I, S, W> made(new Layout(w, features, H, reset_after));
  const int64_t bytes = 3 * H * (features + H) * sizeof(typename Factor<I, W>::Stored);
  if (digest_of<I>(w, features, H, reset_after) == digest) kept.keep(digest, bytes, made);
  return made;
}

#define SER_FAST_GRU_LAYER_TASK(I, S, W, Weights, target)                                                           \
  target void project_frames(const Weights<I, S, W>& weights, const Factor<I, W>::Type* x, int64_t stride,          \
                             int64_t frames, Wide<S>* gx, int64_t apart, Units units) {                             \
    weights.project(x, stride, frames, gx, apart, units);                                                           \
  }                                                                                                                 \
  target void task(const GruLayer<S, W>& args, const Weights<I, S, W>& weights, const Tile& tile,                   \
                   const Parallel& all) {                                                                           \
    layer_tile<I>(args, weights, tile, all);                                                                        \
  }
#define SER_FAST_GRU_LAYER_TASKS(I, S, W, target)                                                                   \
  target Shared<I, S, W> layer_weights(I, const GruLayerWeights<S, W>& w, int64_t features, int64_t H,              \
                                       bool reset_after, bool keep) {                                               \
    if (keep) return layout_of<I, S, W>(w, features, H, reset_after);                                               \
    return Shared<I, S, W>(new LayerWeights<I, S, W>(w, features, H, reset_after));                                 \
  }                                                                                                                 \
  SER_FAST_GRU_LAYER_TASK(I, S, W, LayerWeights, target)
#define SER_FAST_GRU_LAYER_BOTH(I, S, W, target) \
  SER_FAST_GRU_LAYER_TASKS(I, S, W, target) SER_FAST_GRU_LAYER_TASK(I, S, W, DirectLayerWeights, target)
#define SER_FAST_GRU_LAYER_SHARED(I, T, target)                                                                     \
  target void step_of_units(const LayerWeights<I, T, T>& weights, Units units, int64_t step,                        \
                            const StepTogether<T>& data) {                                                          \
    step_together<I>(weights.recurrent, units, step, data);                                                         \
  }                                                                                                                 \
  SER_FAST_GRU_LAYER_BOTH(I, T, T, target)
#define SER_FAST_GRU_LAYER(I, target)                                                             \
  SER_FAST_GRU_LAYER_SHARED(I, float, target) SER_FAST_GRU_LAYER_BOTH(I, float, int8_t, target)   \
  SER_FAST_GRU_LAYER_SHARED(I, double, target) SER_FAST_GRU_LAYER_TASKS(I, Bf16, Bf16, target)

SER_FAST_EACH_ISA(SER_FAST_GRU_LAYER)
#if SER_FAST_X86
SER_FAST_GRU_LAYER_TASKS(Avx512Bf16, Bf16, Bf16, SER_FAST_AVX512_BF16)
SER_FAST_GRU_LAYER_BOTH(Avx512Bf16, float, int8_t, SER_FAST_AVX512_BF16)
#endif

}  // namespace

// Frames up to which the weights' layout costs more than it saves: narrow weights are found sooner, and take longer to
// expand as they lie.
template <class W>
constexpr int64_t kFew = sizeof(W) < 4 ? 0 : 8;

// Whether the states are in -1..1, which the recurrence does not leave, if that is needed.
template <class T, class W>
bool fits(const GruLayer<T, W>& args) {
  if constexpr (std::is_same_v<W, int8_t>) {
    const int64_t count = args.h0 ? args.shape.directions * args.shape.batch * args.shape.hidden : 0;
    return std::all_of(args.h0, args.h0 + count, [](T h) { return std::abs(h) <= 1; });
  }
  return true;
}

template <class T, class W>
void gru_layer_cpu(const GruLayer<T, W>& args, const Parallel& all) {
  const GruShape& shape = args.shape;
  const int64_t features = args.features, H = shape.hidden, D = shape.directions;
  const int64_t frames = args.x.starts ? shape.frames : shape.frames * shape.batch;
  const Parallel parallel = all.worth(shape.work(frames, 3 * (H + features)));
  const auto run = [&](int64_t most_rows, const auto& weights) {
    const std::vector<Tile> tiles = tiles_of(shape, args.lengths, most_rows, parallel.threads);
    const Parallel inner{tiles.size() == 1 ? parallel.threads : 1, parallel.run};
    parallel(tiles.size(), [&](int64_t i) { task(args, *weights[tiles[i].direction], tiles[i], inner); });
  };
  using Kind = std::conditional_t<std::is_same_v<W, int8_t>, Bf16, T>;  // AVX512-VNNI comes with AVX512-BF16
  with_isa<Kind>([&](auto isa) {
    using I = decltype(isa);
    if constexpr (!std::is_same_v<W, Bf16>)
      if (frames <= kFew<W> || !fits(args)) {
        using Direct = DirectLayerWeights<I, T, W>;
        const auto direct = [&](int64_t d) { return Direct(args.weights[d], features, H); };
        const Direct each[] = {direct(0), direct(D - 1)}, *const weights[] = {each, each + 1};
        return run(DirectWeights<I, W, T>::kMost, weights);
      }
    Shared<I, T, W> weights[2];  // not kept in training, which changes them after every call
    for (int64_t d = 0; d < D; ++d)
      weights[d] = layer_weights(isa, args.weights[d], features, H, shape.reset_after, !args.gates.data);
    if constexpr (std::is_same_v<T, W> && !std::is_same_v<W, Bf16>)
      if (is_shared<I>(args, parallel)) {
        for (const Tile& tile : tiles_of(shape, args.lengths, shape.batch, 1))
          layer_together<I>(args, *weights[tile.direction], tile, parallel);
        return;
      }
    run(I::kRows, weights);
  });
}

template void gru_layer_cpu(const GruLayer<float>&, const Parallel&);
template void gru_layer_cpu(const GruLayer<double>&, const Parallel&);
template void gru_layer_cpu(const GruLayer<Bf16>&, const Parallel&);
template void gru_layer_cpu(const GruLayer<float, int8_t>&, const Parallel&);

}  // namespace ser_fast
