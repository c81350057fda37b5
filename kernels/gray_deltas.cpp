// Gray image with deltas on CPU. A task is one row of the batch.
#include "gray_deltas.h"

#include <algorithm>
#include <cmath>
#include <memory>

#include "simd.h"

namespace ser_fast {
namespace {

// out[t] = the slope of x around frame t.
template <class T>
SER_FAST_INLINE void slopes(const T* x, int64_t frames, int64_t bins, T* out) {
  const auto frame = [&](int64_t t) __attribute__((always_inline)) {
    return x + std::clamp<int64_t>(t, 0, frames - 1) * bins;
  };
  for (int64_t t = 0; t < frames; ++t, out += bins) {
    const T *before = frame(t - 1), *after = frame(t + 1), *first = frame(t - 2), *last = frame(t + 2);
    SER_FAST_INDEPENDENT
    for (int64_t f = 0; f < bins; ++f) out[f] = (2 * (last[f] - first[f]) + after[f] - before[f]) / 10;
  }
}

// The sum over all frames of a vector function of their pixels, 0 beyond the last bin. Each frame is added up by itself:
// one by one, tens of thousands of pixels would lose digits of a float.
template <class I, class T, class Of>
SER_FAST_INLINE double total(int64_t frames, int64_t bins, const Of& of) {
  constexpr int64_t lanes = kLanes<I, T>;
  double sum = 0;
  for (int64_t t = 0; t < frames; ++t) {
    Vec<I, T> part = {};
    for (int64_t f = 0; f < bins; f += lanes) part += of(t, f);
    sum += sum_lanes(part);
  }
  return sum;
}

template <class I, class T>
SER_FAST_INLINE void task(I, const GrayDeltas<T>& args, int64_t b) {
  constexpr int64_t lanes = kLanes<I, T>;
  const int64_t length = args.lengths ? args.lengths[b] : args.frames, bins = args.bins, size = length * bins;
  T* image = args.image + args.first[b] * bins * 3;
  if (!args.packed) std::fill_n(image + size * 3, (args.frames - length) * bins * 3, T(0));
  if (length == 0) return;
  const std::unique_ptr<T[]> memory(new T[3 * size]);
  T *gray = memory.get(), *delta = gray + size, *second = delta + size;
  const T* x = args.x + b * args.row_stride;
  T peak = *x;
  Vec<I, T> most = Vec<I, T>{} + peak;
  for (int64_t t = 0; t < length; ++t) {
    const T* frame = x + t * args.frame_stride;
    int64_t f = 0;
    for (; f + lanes <= bins; f += lanes) {
      const auto value = load<I>(frame + f);
      most = most < value ? value : most;
    }
    for (; f < bins; ++f) peak = std::max(peak, frame[f]);
  }
  for (int64_t lane = 0; lane < lanes; ++lane) peak = std::max(peak, most[lane]);
  const T range = static_cast<T>(args.range);
  const Vec<I, T> zero = {}, one = zero + 1;
  const double count = static_cast<double>(size);
  const double mean = total<I, T>(length, bins, [&](int64_t t, int64_t f) __attribute__((always_inline)) {
    Vec<I, T> level = (load<I>(x + t * args.frame_stride + f, bins - f) - peak) / range + 1;
    level = level < zero ? zero : level > one ? one : level;  // NaN stays
    store(gray + t * bins + f, level, bins - f);
    return load<I>(gray + t * bins + f, bins - f);  // 0 beyond the last bin
  }) / count;
  const T centre = static_cast<T>(mean);
  const double squares = total<I, T>(length, bins, [&](int64_t t, int64_t f) __attribute__((always_inline)) {
    const Vec<I, T> level = load<I>(gray + t * bins + f, bins - f) - centre;
    store(gray + t * bins + f, level, bins - f);
    const Vec<I, T> valid = load<I>(gray + t * bins + f, bins - f);
    return Vec<I, T>(valid * valid);
  });
  const T deviation = static_cast<T>(std::max(std::sqrt(squares / count), kLeastDeviation));
  SER_FAST_INDEPENDENT
  for (int64_t i = 0; i < size; ++i) gray[i] /= deviation;
  slopes(gray, length, bins, delta);
  slopes(delta, length, bins, second);
  SER_FAST_INDEPENDENT
  for (int64_t i = 0; i < size; ++i) {
    image[3 * i] = gray[i];
    image[3 * i + 1] = delta[i];
    image[3 * i + 2] = second[i];
  }
}

#define SER_FAST_GRAY(I, target)                                                              \
  target void run(I isa, const GrayDeltas<float>& args, int64_t b) { task(isa, args, b); }    \
  target void run(I isa, const GrayDeltas<double>& args, int64_t b) { task(isa, args, b); }
SER_FAST_EACH_ISA(SER_FAST_GRAY)

}  // namespace

template <class T>
void gray_deltas_cpu(const GrayDeltas<T>& args, const Parallel& parallel) {
  const double work = static_cast<double>(args.batch) * args.frames * args.bins;
  with_isa<T>([&](auto isa) { parallel.worth(work)(args.batch, [&](int64_t b) { run(isa, args, b); }); });
}

template void gray_deltas_cpu(const GrayDeltas<float>&, const Parallel&);
template void gray_deltas_cpu(const GrayDeltas<double>&, const Parallel&);

}  // namespace ser_fast
