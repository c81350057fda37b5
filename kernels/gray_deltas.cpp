// Gray image with deltas on CPU. A task is one row of the batch. Sums are of double: a row has tens of thousands of
// pixels.
#include "gray_deltas.h"

#include <algorithm>
#include <cmath>
#include <vector>

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

template <class I, class T>
SER_FAST_INLINE void task(I, const GrayDeltas<T>& args, int64_t b) {
  constexpr int64_t kLanesOfSums = 8;  // independent sums, for the vector registers
  const int64_t length = args.lengths ? args.lengths[b] : args.frames, bins = args.bins, size = length * bins;
  T* image = args.image + args.first[b] * bins * 3;
  if (!args.packed) std::fill_n(image + size * 3, (args.frames - length) * bins * 3, T(0));
  if (length == 0) return;
  std::vector<T> memory(3 * size);
  T *gray = memory.data(), *delta = gray + size, *second = delta + size;
  const T* x = args.x + b * args.row_stride;
  T peak = *x;
  for (int64_t t = 0; t < length; ++t)
    for (int64_t f = 0; f < bins; ++f) {
      const T value = x[t * args.frame_stride + f];
      peak = value > peak ? value : peak;
    }
  const T range = static_cast<T>(args.range);
  for (int64_t t = 0; t < length; ++t) {
    SER_FAST_INDEPENDENT
    for (int64_t f = 0; f < bins; ++f) {
      const T level = (x[t * args.frame_stride + f] - peak) / range + 1, positive = level < 0 ? T(0) : level;
      gray[t * bins + f] = positive > 1 ? T(1) : positive;
    }
  }
  const auto sum = [&](double mean, auto power) __attribute__((always_inline)) {
    double sums[kLanesOfSums] = {}, total = 0;
    int64_t i = 0;
    for (; i + kLanesOfSums <= size; i += kLanesOfSums)
      for (int64_t lane = 0; lane < kLanesOfSums; ++lane) sums[lane] += power(gray[i + lane] - mean);
    for (; i < size; ++i) total += power(gray[i] - mean);
    for (const double one : sums) total += one;
    return total;
  };
  const double mean = sum(0, [](double value) __attribute__((always_inline)) { return value; }) / size;
  const double squares = sum(mean, [](double value) __attribute__((always_inline)) { return value * value; });
  const double deviation = std::max(std::sqrt(squares / size), kLeastDeviation);
  SER_FAST_INDEPENDENT
  for (int64_t i = 0; i < size; ++i) gray[i] = static_cast<T>((gray[i] - mean) / deviation);
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
  with_isa<T>([&](auto isa) { parallel(args.batch, [&](int64_t b) { run(isa, args, b); }); });
}

template void gray_deltas_cpu(const GrayDeltas<float>&, const Parallel&);
template void gray_deltas_cpu(const GrayDeltas<double>&, const Parallel&);

}  // namespace ser_fast
