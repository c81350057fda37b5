// Gray image of a log power spectrogram with its deltas: the contract between the torch boundary and the kernel.
//
//   g = clamp((x - max x) / range + 1, 0, 1)            over the row's valid frames; 0 past them
//   v = (g - mean g) / max(std g, kLeastDeviation)      over its valid frames and bins together
//   delta(v)[t] = (2 (v[t + 2] - v[t - 2]) + v[t + 1] - v[t - 1]) / 10      edge frames repeated beyond the ends
//   image = (v, delta(v), delta(delta(v)))
#pragma once

#include <cstdint>

#include "parallel.h"

namespace ser_fast {

constexpr double kLeastDeviation = 1e-3;

template <class T>
struct GrayDeltas {
  int64_t batch, frames, bins;  // B, T, F
  const T* x;                   // [B, T, F], the last axis dense
  int64_t row_stride, frame_stride;
  double range;
  const int64_t* lengths;  // [B], each in 0..T, or null for T
  const int64_t* first;    // [B], frames before each row's first in image
  bool packed;             // image holds the valid frames only, [N, F, 3]; else [B, T, F, 3], zero past each length
  T* image;
};

template <class T>
void gray_deltas_cpu(const GrayDeltas<T>& args, const Parallel& parallel);

}  // namespace ser_fast
