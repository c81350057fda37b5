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
#include "pipeline.h"

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

// Bytes of x and gx that a task on one thread projects at a time: many frames, so that a panel is read once for all.
constexpr int64_t kChunk = 1 << 18;
// Steps of a part where threads share a task, and bytes of all parts that they make on entering the pool once.
constexpr int64_t kSteps = 16, kAhead = 1 << 21;

// The steps of a tile in parts: any thread may make gx of a part, and one thread walks through all parts in order.
template <class I, class S, class W, class Weights>
class LayerSteps {
  using T = Wide<S>;
  using F = typename Weights::F;

 public:
  LayerSteps(const GruLayer<S, W>& args, const Weights& weights, const Tile& tile, int64_t threads)
      : args_(args),
        weights_(weights),
        tile_(tile),
        apart_(weights.recurrent.blocks * kLanes<I, T>),
        walking_(tile.rows),
        forward_(weights.recurrent.pairs) {
    const int64_t bytes = tile.rows * (3 * apart_ + weights.depth) * sizeof(T);  // of a step
    const int64_t most = threads > 1 ? kSteps : std::max<int64_t>(1, kChunk / bytes);
    steps_ = std::clamp<int64_t>(tile.length[0], 1, most);
    if (threads > 1)
      places_ = std::clamp<int64_t>(kAhead / (bytes * steps_), 1, std::min(parts(), Pipeline<LayerSteps>::kMost));
    const int64_t frames = (places_ + (threads > 1)) * steps_ * tile.rows;
    x_ = Buffer<F>(frames * weights.depth);
    gx_ = Buffer<T>(frames * 3 * apart_);
  }

  void walk_all(const Parallel& parallel) {
    do Pipeline(*this, std::min(places_, parts())).run(parallel);
    while ((first_ += places_ * steps_) < tile_.length[0]);
  }

  // A part that is made again has a place of its own.
  void make(int64_t part, bool again) { project_part(*this, part, again ? places_ : part); }
  void use(int64_t part, bool again) { walk_part(*this, part, again ? places_ : part); }

  SER_FAST_INLINE void project(int64_t part, int64_t place) const {
    const int64_t begin = first_ + part * steps_, end = std::min(begin + steps_, tile_.length[0]);
    const int64_t depth = weights_.depth, features = args_.features;
    F *const x = x_.data() + place * steps_ * tile_.rows * depth, *to = x;
    for (int64_t step = begin; step < end; ++step)
      for (int64_t i = 0; i < tile_.rows && tile_.length[i] > step; ++i, to += depth) {
        copy<I, S>(args_.x.at(tile_.frame(i, step), tile_.row[i]), to, features);
        if (depth > features) to[features] = {};
      }
    weights_.project(x, depth, (to - x) / depth, gx(place), apart_, {0, weights_.recurrent.blocks});
  }

  SER_FAST_INLINE void walk(int64_t part, int64_t place) {
    const GruShape& shape = args_.shape;
    const int64_t begin = first_ + part * steps_, end = std::min(begin + steps_, tile_.length[0]);
    for (int64_t i = 0; begin == 0 && args_.h0 && i < tile_.rows; ++i) {
      copy<I, S>(state_at(args_.h0, shape, tile_, i), forward_.state.data() + i * forward_.width, shape.hidden);
      copy<I, S>(state_at(args_.h0, shape, tile_, i), forward_.h.row(i), shape.hidden);
    }
    const T* gx_of_step = gx(place);
    for (int64_t step = begin; step < end; ++step) {
      while (tile_.length[walking_ - 1] == step) end_row();
      const auto row = [&](int64_t i) __attribute__((always_inline)) {
        const int64_t t = tile_.frame(i, step), b = tile_.row[i], at = tile_.direction * shape.hidden;
        const T* own_gx = gx_of_step + i * 3 * apart_;
        S* y = args_.y.at(t, b) + at;
        if (!args_.gates.data) return ForwardRow<S, T>{own_gx, apart_, y, nullptr, nullptr};
        return ForwardRow<S, T>{own_gx, apart_, y, args_.gates.at(t, b) + 4 * at, args_.states.at(t, b) + at};
      };
      forward_step(shape, weights_.recurrent, step, walking_, row, forward_);
      gx_of_step += walking_ * 3 * apart_;
    }
    if (end < tile_.length[0]) return;
    while (walking_ > 0) end_row();
    zero_tail(args_.y, shape, tile_, shape.hidden);
  }

 private:
  int64_t parts() const { return std::max<int64_t>(1, (tile_.length[0] - first_ + steps_ - 1) / steps_); }
  T* gx(int64_t place) const { return gx_.data() + place * steps_ * tile_.rows * 3 * apart_; }

  SER_FAST_INLINE void end_row() {
    const int64_t last = --walking_;
    copy<I, S>(forward_.state.data() + last * forward_.width, state_at(args_.h_n, args_.shape, tile_, last),
               args_.shape.hidden);
  }

  const GruLayer<S, W>& args_;
  const Weights& weights_;
  const Tile& tile_;
  const int64_t apart_;             // H in whole vectors
  int64_t steps_, places_ = 1;      // steps of a part; parts that there is room for
  int64_t first_ = 0, walking_;     // the first step of these parts; rows that have not ended
  Buffer<F> x_;                     // [places, frames, depth]
  Buffer<T> gx_;                    // [places, frames, 3, apart]
  ForwardScratch<I, S, typename Weights::Recurrent::F> forward_;
};

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
  target void project_part(const LayerSteps<I, S, W, Weights<I, S, W>>& steps, int64_t part, int64_t place) {       \
    steps.project(part, place);                                                                                     \
  }                                                                                                                 \
  target void walk_part(LayerSteps<I, S, W, Weights<I, S, W>>& steps, int64_t part, int64_t place) {                \
    steps.walk(part, place);                                                                                        \
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
  target void project_frames(const LayerWeights<I, T, T>& weights, const T* x, int64_t stride, int64_t frames,      \
                             T* gx, int64_t apart, Units units) {                                                   \
    weights.project(x, stride, frames, gx, apart, units);                                                           \
  }                                                                                                                 \
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
  const double work = shape.work(frames, 3 * (H + features));
  const Parallel alone{1, all.run};
  const auto run = [&]<class I>(I, int64_t most_rows, const auto& weights, const Parallel& pool) {
    const Parallel parallel = pool.worth(work);
    const std::vector<Tile> tiles = tiles_of(shape, args.lengths, most_rows, parallel.threads);
    // Threads that only make gx ahead of the recurrence are not waited for at every step: less work pays for them.
    const Parallel ahead = tiles.size() == 1 ? pool.worth(2 * work) : alone;
    const Parallel inner = ahead.threads > 1 && Parallel::turnout.is_good() ? ahead : alone;
    parallel(tiles.size(), [&](int64_t i) {
      const auto& its = *weights[tiles[i].direction];
      LayerSteps<I, T, W, std::remove_cvref_t<decltype(its)>>(args, its, tiles[i], inner.threads).walk_all(inner);
    });
  };
  using Kind = std::conditional_t<std::is_same_v<W, int8_t>, Bf16, T>;  // AVX512-VNNI comes with AVX512-BF16
  with_isa<Kind>([&](auto isa) {
    using I = decltype(isa);
    if constexpr (!std::is_same_v<W, Bf16>)
      if (frames <= kFew<W> || !fits(args)) {
        using Direct = DirectLayerWeights<I, T, W>;
        const auto direct = [&](int64_t d) { return Direct(args.weights[d], features, H); };
        const Direct each[] = {direct(0), direct(D - 1)}, *const weights[] = {each, each + 1};
        return run(isa, DirectWeights<I, W, T>::kMost, weights, all);
      }
    Shared<I, T, W> weights[2];  // not kept in training, which changes them after every call
    for (int64_t d = 0; d < D; ++d)
      weights[d] = layer_weights(isa, args.weights[d], features, H, shape.reset_after, !args.gates.data);
    if constexpr (std::is_same_v<T, W> && !std::is_same_v<W, Bf16>)
      if (const Parallel parallel = all.worth(work); is_shared<I>(args, parallel)) {
        if (!Parallel::turnout.is_good()) return run(isa, I::kRows, weights, alone);
        for (const Tile& tile : tiles_of(shape, args.lengths, shape.batch, 1))
          layer_together<I>(args, *weights[tile.direction], tile, parallel);
        return;
      }
    run(isa, I::kRows, weights, all);
  });
}

template void gru_layer_cpu(const GruLayer<float>&, const Parallel&);
template void gru_layer_cpu(const GruLayer<double>&, const Parallel&);
template void gru_layer_cpu(const GruLayer<Bf16>&, const Parallel&);
template void gru_layer_cpu(const GruLayer<float, int8_t>&, const Parallel&);

}  // namespace ser_fast
