// GRU layer on CPU. A task alternates between the projection of some steps of its rows, a product with
// panels of W_ih in register blocks, and the recurrence over these steps.
#include "gru_layer.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "gru_direct.h"
#include "gru_rows.h"
#include "gru_together.h"
#include "layouts.h"

namespace ser_fast {
namespace {

// One direction's weights in the layout of the products.
template <class I, class T>
struct LayerWeights {
  static constexpr int64_t kLane = kLanes<I, T>;

  int64_t features;
  ForwardWeights<I, T> recurrent;
  Panels<I, T, 3> input;  // r, z and n of one vector of hidden units
  Buffer<T> bias;         // of the projection, in the order of its panels

  SER_FAST_INLINE LayerWeights(const GruLayerWeights<T>& w, int64_t features, int64_t H, bool reset_after)
      : features(features),
        recurrent(w.w_hh, w.b_hh, H, reset_after),
        input(recurrent.blocks, features, w.w_ih, [=](int64_t p, int64_t v) { return v * H + p * kLane; },
              [=](int64_t, int64_t v) { return (v + 1) * H; }),
        bias(recurrent.blocks * 3 * kLane, T{}) {
    for (int64_t j = 0; w.b_ih && j < H; ++j)
      for (int64_t g = 0; g < 3; ++g) bias[(j / kLane * 3 + g) * kLane + j % kLane] = w.b_ih[g * H + j];
  }

  // gx[frames, 3, apart] of x[frames, features], whose frames are `stride` apart, for some vectors of units.
  SER_FAST_INLINE void project(const T* x, int64_t stride, int64_t frames, T* gx, int64_t apart, Units units) const {
    for (int64_t block = units.first; block < units.last; ++block) {
      int64_t frame = 0;
      const auto rows = [&](auto number) __attribute__((always_inline)) {
        for (; frame + number <= frames; frame += number)
          product<I, T, number, 3>(x + frame * stride, stride, input[block], 0, features,
                                   bias.data() + block * 3 * kLane, gx + frame * 3 * apart + block * kLane, 3 * apart,
                                   apart);
      };
      rows(std::integral_constant<int, I::kRows>{});
      rows(std::integral_constant<int, 4>{});
      rows(std::integral_constant<int, 1>{});
    }
  }
};

// The same interface on the weights as they are.
template <class I, class T>
struct DirectLayerWeights {
  static constexpr int64_t kLane = kLanes<I, T>;

  int64_t features;
  GruLayerWeights<T> w;
  DirectWeights<I, T> recurrent;

  DirectLayerWeights(const GruLayerWeights<T>& w, int64_t features, int64_t H)
      : features(features), w(w), recurrent(w.w_hh, w.b_hh, H) {}

  SER_FAST_INLINE void project(const T* x, int64_t stride, int64_t frames, T* gx, int64_t apart, Units units) const {
    const int64_t H = recurrent.H;
    for (int64_t gate = 0; gate < 3; ++gate)
      for (int64_t j = units.first * kLane; j < std::min(H, units.last * kLane); j += kLane) {
        const int64_t at = gate * H + j, count = std::min(kLane, H - j);
        const Vec<I, T> bias = w.b_ih ? load<I>(w.b_ih + at, count) : Vec<I, T>{};
        for (int64_t i = 0; i < frames; ++i)
          store(gx + (i * 3 + gate) * apart + j,
                bias + dots<I>(w.w_ih + at * features, count, x + i * stride, features));
      }
  }
};

// Frames that a task projects at a time: many, so that a panel is read once for all of them, in at most so many bytes
// for each thread that takes part.
constexpr int64_t kChunk = 1 << 18;

template <class I, class T>
struct LayerScratch {
  int64_t apart, steps;  // H in whole vectors; steps of a chunk
  Buffer<T> x, gx;       // [frames, features], [frames, 3, apart]
  ForwardScratch<I, T> forward;

  LayerScratch(int64_t features, int64_t pairs, int64_t blocks, const Tile& tile, int64_t threads)
      : apart(blocks * kLanes<I, T>),
        steps(std::max<int64_t>(1, std::min<int64_t>(threads * kChunk / sizeof(T) / (3 * apart + features) / tile.rows,
                                                     tile.length[0]))),
        x(steps * tile.rows * features),
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

template <class I, class T, class Weights>
SER_FAST_INLINE void layer_tile(const GruLayer<T>& args, const Weights& weights, const Tile& tile,
                                const Parallel& parallel) {
  const GruShape& shape = args.shape;
  const int64_t features = args.features;
  LayerScratch<I, T> scratch(features, weights.recurrent.pairs, weights.recurrent.blocks, tile,
                             parallel.threads);
  ForwardScratch<I, T>& forward = scratch.forward;
  for (int64_t i = 0; args.h0 && i < tile.rows; ++i) {
    copy<I, T>(state_at(args.h0, shape, tile, i), forward.state.data() + i * forward.width, shape.hidden);
    copy<I, T>(state_at(args.h0, shape, tile, i), forward.h.row(i), shape.hidden);
  }
  int64_t walking = tile.rows;
  for (int64_t first = 0; first < tile.length[0]; first += scratch.steps) {
    const int64_t last = std::min(first + scratch.steps, tile.length[0]);
    int64_t frames = 0;
    for (int64_t step = first; step < last; ++step)
      for (int64_t i = 0; i < tile.rows && tile.length[i] > step; ++i)
        copy<I, T>(args.x.at(tile.frame(i, step), tile.row[i]), scratch.x.data() + frames++ * features, features);
    const auto project = [&](int64_t at, int64_t count) {
      project_frames(weights, scratch.x.data() + at * features, features, count,
                     scratch.gx.data() + at * 3 * scratch.apart, scratch.apart, {0, weights.recurrent.blocks});
    };
    project_all(frames, frames * 3.0 * shape.hidden * features / 32, parallel, project);
    const T* gx = scratch.gx.data();
    for (int64_t step = first; step < last; ++step) {
      for (; tile.length[walking - 1] == step; --walking)
        copy<I, T>(forward.state.data() + (walking - 1) * forward.width, state_at(args.h_n, shape, tile, walking - 1),
                   shape.hidden);
      const auto row = [&](int64_t i) __attribute__((always_inline)) {
        const int64_t t = tile.frame(i, step), b = tile.row[i], at = tile.direction * shape.hidden;
        T* y = args.y.at(t, b) + at;
        if (!args.gates.data) return ForwardRow<T>{gx + i * 3 * scratch.apart, scratch.apart, y, nullptr, nullptr};
        return ForwardRow<T>{gx + i * 3 * scratch.apart, scratch.apart, y, args.gates.at(t, b) + 4 * at,
                             args.states.at(t, b) + at};
      };
      forward_step(shape, weights.recurrent, step, walking, row, forward);
      gx += walking * 3 * scratch.apart;
    }
  }
  for (int64_t i = 0; i < walking; ++i)
    copy<I, T>(forward.state.data() + i * forward.width, state_at(args.h_n, shape, tile, i), shape.hidden);
  zero_tail(args.y, shape, tile, shape.hidden);
}

template <class I, class T>
SER_FAST_INLINE Digest digest_of(const GruLayerWeights<T>& w, int64_t features, int64_t H, bool reset_after) {
  Digest digest;
  for (const int64_t part : {features, H, int64_t(reset_after), int64_t(w.b_ih != nullptr)}) digest.add(part);
  const int64_t rows = 3 * H * sizeof(T);
  digest.add<I>(w.w_ih, rows * features);
  digest.add<I>(w.w_hh, rows * H);
  if (w.b_ih) digest.add<I>(w.b_ih, rows), digest.add<I>(w.b_hh, rows);
  return digest;
}

template <class I, class T>
using Shared = std::shared_ptr<const LayerWeights<I, T>>;

// The weights' layout, kept for later calls unless another thread changed them meanwhile.
template <class I, class T>
SER_FAST_INLINE Shared<I, T> layout_of(const GruLayerWeights<T>& w, int64_t features, int64_t H, bool reset_after) {
  auto& kept = Layouts<LayerWeights<I, T>>::all();
  const Digest digest = digest_of<I>(w, features, H, reset_after);
  if (auto found = kept.find(digest)) return found;
  const Shared<I, T> made(new LayerWeights<I, T>(w, features, H, reset_after));
  if (digest_of<I>(w, features, H, reset_after) == digest) kept.keep(digest, 3 * H * (features + H) * sizeof(T), made);
  return made;
}

#define SER_FAST_GRU_LAYER_TASK(I, T, Weights, target)                                                               \
  target void project_frames(const Weights<I, T>& weights, const T* x, int64_t stride, int64_t frames, T* gx,        \
                             int64_t apart, Units units) {                                                           \
    weights.project(x, stride, frames, gx, apart, units);                                                            \
  }                                                                                                                  \
  target void task(const GruLayer<T>& args, const Weights<I, T>& weights, const Tile& tile, const Parallel& all) {   \
    layer_tile<I>(args, weights, tile, all);                                                                         \
  }
#define SER_FAST_GRU_LAYER_TASKS(I, T, target)                                                                       \
  target Shared<I, T> layer_weights(I, const GruLayerWeights<T>& w, int64_t features, int64_t H, bool reset_after,   \
                                    bool keep) {                                                                     \
    if (keep) return layout_of<I, T>(w, features, H, reset_after);                                                   \
    return Shared<I, T>(new LayerWeights<I, T>(w, features, H, reset_after));                                        \
  }                                                                                                                  \
  target void step_of_units(const LayerWeights<I, T>& weights, Units units, int64_t step,                            \
                            const StepTogether<T>& data) {                                                           \
    step_together<I>(weights.recurrent, units, step, data);                                                          \
  }                                                                                                                  \
  SER_FAST_GRU_LAYER_TASK(I, T, LayerWeights, target) SER_FAST_GRU_LAYER_TASK(I, T, DirectLayerWeights, target)
#define SER_FAST_GRU_LAYER(I, target) \
  SER_FAST_GRU_LAYER_TASKS(I, float, target) SER_FAST_GRU_LAYER_TASKS(I, double, target)

SER_FAST_EACH_ISA(SER_FAST_GRU_LAYER)

}  // namespace

// Frames up to which the weights' layout costs more than it saves.
constexpr int64_t kFew = 8;

template <class T>
void gru_layer_cpu(const GruLayer<T>& args, const Parallel& all) {
  const GruShape& shape = args.shape;
  const int64_t features = args.features, H = shape.hidden, D = shape.directions;
  const int64_t frames = args.x.starts ? shape.frames : shape.frames * shape.batch;
  const Parallel parallel = all.worth(shape.work(frames, 3 * (H + features)));
  const auto run = [&](int64_t most_rows, const auto& weights) {
    const std::vector<Tile> tiles = tiles_of(shape, args.lengths, most_rows, parallel.threads);
    const Parallel inner{tiles.size() == 1 ? parallel.threads : 1, parallel.run};
    parallel(tiles.size(), [&](int64_t i) { task(args, *weights[tiles[i].direction], tiles[i], inner); });
  };
  with_isa<T>([&](auto isa) {
    using I = decltype(isa);
    if (frames <= kFew) {
      const auto direct = [&](int64_t d) { return DirectLayerWeights<I, T>(args.weights[d], features, H); };
      const DirectLayerWeights<I, T> each[] = {direct(0), direct(D - 1)}, *const weights[] = {each, each + 1};
      run(DirectWeights<I, T>::kMost, weights);
    } else {
      Shared<I, T> weights[2];  // not kept in training, which changes them after every call
      for (int64_t d = 0; d < D; ++d)
        weights[d] = layer_weights(isa, args.weights[d], features, H, shape.reset_after, !args.gates.data);
      if (is_shared<I>(args, parallel)) {
        for (const Tile& tile : tiles_of(shape, args.lengths, shape.batch, 1))
          layer_together<I>(args, *weights[tile.direction], tile, parallel);
        return;
      }
      run(I::kRows, weights);
    }
  });
}

template void gru_layer_cpu(const GruLayer<float>&, const Parallel&);
template void gru_layer_cpu(const GruLayer<double>&, const Parallel&);

}  // namespace ser_fast
