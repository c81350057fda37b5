// A few rows of a GRU layer by several threads, each of which computes some units of every step. One thread alone would
// read all of W_hh at every step, more than its own caches hold.
#pragma once

#include <algorithm>
#include <cstdint>

#include "gru_layer.h"
#include "gru_rows.h"
#include "team.h"

namespace ser_fast {

// One step of all rows.
template <class T>
struct StepTogether {
  int64_t hidden, rows;
  const T* gx;                  // [rows, 3, apart], the rows gx_stride apart
  int64_t gx_stride, apart;
  const T* before;              // the states before, of H elements
  int64_t before_stride;
  T* to;                        // the states after
  int64_t to_stride;
};

template <int R, class I, class T, class Weights>
SER_FAST_INLINE void step_together(const Weights& weights, Units units, int64_t step, const StepTogether<T>& data) {
  constexpr int64_t lanes = kLanes<I, T>;
  T sums[R * 2 * 3 * lanes];
  each_panel<Weights::template kTogether<R>>(units.last - units.first, step, [&](int64_t block, auto number)
                                                                                 __attribute__((always_inline)) {
    constexpr int N = number;
    weights.template gates<3, R, N>(units.first + block, R, data.before, data.before_stride, sums);
    for (int64_t i = 0; i < R * N; ++i) {
      const int64_t j = (units.first + block + i % N) * lanes, count = std::min(lanes, data.hidden - j);
      const T *sum = sums + i * 3 * lanes, *gx = data.gx + i / N * data.gx_stride + j;
      const auto r = sigmoid(load<I>(gx) + load<I>(sum));
      const auto z = sigmoid(load<I>(gx + data.apart) + load<I>(sum + lanes));
      const auto n = tangent(load<I>(gx + 2 * data.apart) + r * load<I>(sum + 2 * lanes));
      const auto h = load<I>(data.before + i / N * data.before_stride + j, count);
      store(data.to + i / N * data.to_stride + j, gru_cell(z, n, h), count);
    }
  });
}

template <class I, class T, class Weights>
SER_FAST_INLINE void step_together(const Weights& weights, Units units, int64_t step, const StepTogether<T>& data) {
  if (data.rows == 8) step_together<8, I>(weights, units, step, data);
  else if (data.rows == 4) step_together<4, I>(weights, units, step, data);
  else if (data.rows == 2) step_together<2, I>(weights, units, step, data);
  else step_together<1, I>(weights, units, step, data);
}

// Bytes of W_hh that a thread must have to itself: reading fewer takes no longer than an exchange between threads.
constexpr int64_t kPart = 96 << 10;

// Returns whether threads share each step of a call. Where there are rows or directions for all of them, that pays only
// if W_hh does not fit a processor's own cache. Rows of differing lengths, and training, are not so taken.
template <class I, class T>
bool is_shared(const GruLayer<T>& args, const Parallel& parallel) {
  const GruShape& shape = args.shape;
  const int64_t bytes = 3 * shape.hidden * shape.hidden * sizeof(T), rows = shape.batch;
  if (parallel.threads == 1 || !shape.reset_after || args.gates.data) return false;
  const int64_t units = rows * shape.directions;  // of work that threads could take each alone
  if (bytes < (units == 1 ? 2 * kPart : 1 << 20)) return false;
  return rows == 1 || (!args.lengths && !args.x.starts && (rows & (rows - 1)) == 0 && rows <= I::kRows);
}

// The work of a team: gx of each member's units for a number of steps, then these units step by step.
template <class I, class T, class Weights>
class StepsTogether {
 public:
  int64_t first = 0, count = 0;  // the steps

  StepsTogether(const GruLayer<T>& args, const Weights& weights, const Tile& tile, int64_t members, int64_t most)
      : args_(args),
        weights_(weights),
        tile_(tile),
        members_(members),
        apart_(weights.recurrent.blocks * kLanes<I, T>),
        per_row_(most * 3 * apart_),
        own_gx_(tile.rows * per_row_),
        helpers_gx_(tile.rows * per_row_),
        helpers_y_(tile.rows * apart_),
        zeros_(args.shape.hidden) {}

  void prepare(int64_t member, bool helping) {
    const int64_t stride = tile_.direction ? -args_.x.frame_stride : args_.x.frame_stride;
    for (int64_t i = 0; i < tile_.rows; ++i)
      project_frames(weights_, args_.x.at(tile_.frame(i, first), tile_.row[i]), stride, count,
                     gx(helping) + i * per_row_, apart_, units(member));
  }

  void compute(int64_t member, int64_t step, bool helping) {
    const bool start = first + step == 0;
    const T* before = !start ? y(0, step - 1) : args_.h0 ? state_at(args_.h0, args_.shape, tile_, 0) : zeros_.data();
    step_of_units(weights_, units(member), step,
                  {args_.shape.hidden, tile_.rows, gx(helping) + step * 3 * apart_, per_row_, apart_, before,
                   !start ? args_.y.row_stride : args_.h0 ? args_.shape.hidden : 0,
                   helping ? helpers_y_.data() : y(0, step), helping ? apart_ : args_.y.row_stride});
  }

  void take(int64_t member, int64_t step) {
    const int64_t lanes = kLanes<I, T>, begin = units(member).first * lanes;
    const int64_t end = std::min(args_.shape.hidden, units(member).last * lanes);
    for (int64_t i = 0; i < tile_.rows; ++i)
      std::copy(helpers_y_.data() + i * apart_ + begin, helpers_y_.data() + i * apart_ + end, y(i, step) + begin);
  }

  T* y(int64_t i, int64_t step) const {
    return args_.y.at(tile_.frame(i, first + step), tile_.row[i]) + tile_.direction * args_.shape.hidden;
  }

 private:
  Units units(int64_t member) const {
    const int64_t blocks = weights_.recurrent.blocks;
    return {member * blocks / members_, (member + 1) * blocks / members_};
  }

  T* gx(bool helping) const { return (helping ? helpers_gx_ : own_gx_).data(); }

  const GruLayer<T>& args_;
  const Weights& weights_;
  const Tile& tile_;
  const int64_t members_, apart_, per_row_;     // elements of gx from one gate to the next, from one row to the next
  Buffer<T> own_gx_, helpers_gx_, helpers_y_;   // [rows, steps, 3, apart], [rows, apart]
  Zeros<T> zeros_;
};

template <class I, class T, class Weights>
void layer_together(const GruLayer<T>& args, const Weights& weights, const Tile& tile, const Parallel& parallel) {
  using Work = StepsTogether<I, T, Weights>;
  const int64_t H = args.shape.hidden, parts = 3 * H * H * static_cast<int64_t>(sizeof(T)) / kPart;
  constexpr int64_t bytes = 1 << 21;  // of gx: many steps, since threads wait for each other after the last
  const int64_t step = tile.rows * 3 * H * sizeof(T);
  const int64_t most = std::clamp<int64_t>(bytes / step, 1, std::max<int64_t>(1, tile.length[0]));
  const int64_t members = std::min({parallel.threads, weights.recurrent.blocks, parts, Team<Work>::kMost});
  Work work(args, weights, tile, members, most);
  for (; work.first < tile.length[0]; work.first += work.count) {
    work.count = std::min(most, tile.length[0] - work.first);
    Team<Work>(work, members, work.count).walk(parallel);
  }
  work.first = tile.length[0] - 1;
  for (int64_t i = 0; i < tile.rows; ++i) {
    T* last = state_at(args.h_n, args.shape, tile, i);
    if (tile.length[i] > 0) std::copy_n(work.y(i, 0), H, last);
    else if (args.h0) std::copy_n(state_at(args.h0, args.shape, tile, i), H, last);
    else std::fill_n(last, H, T{});
  }
  zero_tail(args.y, args.shape, tile, H);
}

}  // namespace ser_fast
