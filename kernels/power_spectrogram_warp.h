// Power spectrogram of the models' sizes: FIRST lanes or more of a warp hold a frame's points in registers.
//
// With N = FIRST * LANES complex points, lane l takes points l + LANES r, transforms them over r, turns them, and
// hands them on through shared memory; lane l then transforms over the lanes and holds Z at k = l + FIRST d. Every Z_k
// meets Z_(N-k) through shared memory once more, which gives the bins 0..N/2. See power_spectrogram.cu.
#pragma once

#include "power_spectrogram_transform.h"

namespace ser_fast::gpu {

// Frames of n_fft = 2 FIRST LANES whose window ends among the last two LANES samples of ROWS of them.
template <int FIRST, int LANES, int ROWS>
struct WarpSize {
  static constexpr int kFirst = FIRST, kLanes = LANES, kRows = ROWS;
  static constexpr int kPoints = FIRST * LANES, kBins = kPoints / 2 + 1, kFrames = 32 / LANES;
  // A row of the exchange is two values longer: lanes that read 16 bytes each of their own rows use different banks.
  static constexpr int kRow = LANES + 2, kExchange = FIRST * kRow;
  static constexpr int kWarps = 4, kThreads = 32 * kWarps;
  static_assert(FIRST <= LANES && LANES % 4 == 0 && kRow / 2 % 2 == 1);

  static bool fits(const SpectrogramShape& shape) {
    return shape.n_fft == 2 * kPoints && shape.first_bin == 0 && shape.bins == kBins && shape.window_length % 2 == 0 &&
           shape.window_length > 2 * LANES * (ROWS - 1) && shape.window_length <= 2 * LANES * ROWS;
  }
};

template <class Size>
struct WarpMemory {
  Root exchange[Size::kWarps][Size::kFrames][Size::kExchange];
  Root turns[Size::kFirst - 1][Size::kLanes];  // of rows 1 and later
  Root window[Size::kRows][Size::kLanes];  // pairs of values, 0 past the window
  Root norm[Size::kBins];                  // mean and 1 / std
};

// What the values between the two transforms are multiplied with: half of the real transform's sum, and the samples'
// scale. A power of two, so it costs no rounding.
template <class Sample>
constexpr float kHalved = 0.5f * kScale<Sample>;

template <class Size, class Sample>
SER_FAST_DEVICE void fill(WarpMemory<Size>& memory, const SpectrogramGpu<Sample>& a) {
  const int lane_of = thread() % Size::kLanes, group = thread() / Size::kLanes;
  constexpr int kGroups = Size::kThreads / Size::kLanes;
  const int window = static_cast<int>(a.shape.window_length);
  for (int r = 1 + group; r < Size::kFirst; r += kGroups)
    memory.turns[r - 1][lane_of] = kHalved<Sample> * a.roots[2 * r * lane_of];
  for (int r = group; r < Size::kRows; r += kGroups) {
    const int n = 2 * (r * Size::kLanes + lane_of);
    memory.window[r][lane_of] = n < window ? Root{a.window[n], a.window[n + 1]} : Root{0, 0};
  }
  for (int k = thread(); k < Size::kBins; k += Size::kThreads)
    memory.norm[k] = {a.mean ? a.mean[k] : 0, a.std ? 1 / a.std[k] : 1};
}

// Pairs l + LANES r of a frame's samples; `from` is the lane's first. Samples past the window are not read.
template <class Size, class Sample>
SER_FAST_DEVICE void load(const Sample* from, int lane_of, int window, bool aligned, Root (&x)[Size::kFirst]) {
  SER_FAST_UNROLL
  for (int r = 0; r < Size::kRows; ++r) {
    const int n = 2 * r * Size::kLanes;
    Pair<Sample> pair = {};
    if (r < Size::kRows - 1 || n + 2 * lane_of < window) {
      if (aligned) pair = *reinterpret_cast<const Pair<Sample>*>(from + n);
      else pair = {from[n], from[n + 1]};
    }
    x[r] = {static_cast<float>(pair.value[0]), static_cast<float>(pair.value[1])};
  }
}

// The same of a frame that reaches beyond its row, through shared memory, because a rolled loop cannot index registers.
template <class Size, class Sample>
SER_FAST_DEVICE void load_extended(const Sample* row, int64_t at, int64_t length, Pad pad, int lane_of, int window,
                                   Root* mine, Root (&x)[Size::kFirst]) {
  SER_FAST_ROLL
  for (int r = 0; r < Size::kRows; ++r) {
    const int n = 2 * (r * Size::kLanes + lane_of);
    Root pair = {0, 0};
    if (n < window) pair = {sample_at(row, at + n, length, pad), sample_at(row, at + n + 1, length, pad)};
    mine[r * Size::kLanes + lane_of] = pair;
  }
  SER_FAST_UNROLL
  for (int r = 0; r < Size::kRows; ++r) x[r] = mine[r * Size::kLanes + lane_of];
  warp_barrier();
}

template <class Sample, class Size, bool LOG>
SER_FAST_KERNEL void SER_FAST_BLOCKS(Size::kThreads, 4) spectrogram_by_warps(SpectrogramGpu<Sample> a) {
  constexpr int kFirst = Size::kFirst, kLanes = Size::kLanes, kHalf = Size::kPoints / 2;
  const SpectrogramShape& shape = a.shape;
  const int64_t b = block() / a.plan.tiles, first = block() % a.plan.tiles * static_cast<int64_t>(a.plan.frames);
  const int64_t length = row_length(a, b), count = shape.frame_count(length);
  const int lane_of = lane() % kLanes, part = lane() / kLanes, window = static_cast<int>(shape.window_length);
  const Sample* row = a.wave + b * a.row_stride;
  const Pad pad = shape.center ? shape.pad : Pad::kZero;
  WarpMemory<Size>& memory = *shared<WarpMemory<Size>>();
  Root* exchange = memory.exchange[warp()][part];
  if (first < count) fill(memory, a);
  barrier();

  const int64_t end = first + a.plan.frames < shape.frames ? first + a.plan.frames : shape.frames;
  for (int64_t begin = first + warp() * Size::kFrames; begin < end; begin += Size::kWarps * Size::kFrames) {
    const int64_t t = begin + part, at = t * shape.hop + shape.origin();
    float* to = a.out + (b * shape.frames + t) * Size::kBins;
    if (begin >= count) {  // uniform over the warp, as is `inside`
      SER_FAST_ROLL
      for (int k = lane_of; k < Size::kBins && t < end; k += kLanes) to[k] = 0;
      continue;
    }
    const int64_t last = (begin + Size::kFrames - 1) * shape.hop + shape.origin() + window;
    const bool inside = begin * shape.hop + shape.origin() >= 0 && last <= length;
    Root x[kFirst] = {};
    const Sample* from = row + at + 2 * lane_of;
    if (!inside)
      load_extended<Size>(row, at, length, pad, lane_of, t < count ? window : 0, exchange, x);
    else if (reinterpret_cast<uintptr_t>(from) % sizeof(Pair<Sample>) == 0)
      load<Size>(from, lane_of, window, true, x);
    else
      load<Size>(from, lane_of, window, false, x);
    SER_FAST_UNROLL
    for (int r = 0; r < Size::kRows; ++r) {
      const Root w = memory.window[r][lane_of];
      x[r] = {w.re * x[r].re, w.im * x[r].im};
    }
    transform_rows<Size::kRows>(x);
    SER_FAST_UNROLL
    for (int r = 0; r < kFirst; ++r)
      exchange[r * Size::kRow + lane_of] = r == 0 ? kHalved<Sample> * x[0] : memory.turns[r - 1][lane_of] * x[r];
    warp_barrier();

    const bool mine = lane_of < kFirst && t < count;
    Root z[kLanes];
    if (mine) {
      SER_FAST_UNROLL
      for (int j = 0; j < kLanes; j += 2) {
        const RootPair pair = *reinterpret_cast<const RootPair*>(&exchange[lane_of * Size::kRow + j]);
        z[j] = pair.value[0];
        z[j + 1] = pair.value[1];
      }
      transform_rows<kLanes>(z);
    }
    warp_barrier();
    // Z at N/2..N, where Z_N = Z_0.
    if (mine) {
      SER_FAST_UNROLL
      for (int d = kLanes / 2; d < kLanes; ++d) exchange[lane_of + kFirst * d - kHalf] = z[d];
      if (lane_of == 0) exchange[kHalf] = z[0];
    }
    warp_barrier();
    const auto write = [&](int k, float power) {
      if (LOG) power = logarithm(power < a.floor ? a.floor : power);
      const Root norm = memory.norm[k];
      to[k] = (power - norm.re) * norm.im;
    };
    if (mine) {
      SER_FAST_UNROLL
      for (int d = 0; d < kLanes / 2; ++d) {
        const int k = lane_of + kFirst * d;
        const Root other = exchange[kHalf - k];
        write(k, doubled_power(z[d], {other.re, -other.im}, a.roots[k]));
      }
      const Root middle = z[kLanes / 2];
      if (lane_of == 0) write(kHalf, 4 * (middle.re * middle.re + middle.im * middle.im));
    } else if (lane_of < kFirst && t < end) {
      SER_FAST_ROLL
      for (int k = lane_of; k < Size::kBins; k += kFirst) to[k] = 0;
    }
    warp_barrier();
  }
}

}  // namespace ser_fast::gpu
