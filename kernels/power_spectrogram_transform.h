// Power spectrogram on CUDA: complex arithmetic, transforms in registers, and the samples of extended rows.
#pragma once

#include "device.h"
#include "power_spectrogram.h"

namespace ser_fast::gpu {

struct alignas(16) RootPair {
  Root value[2];
};

SER_FAST_DEVICE Root operator+(Root a, Root b) { return {a.re + b.re, a.im + b.im}; }
SER_FAST_DEVICE Root operator-(Root a, Root b) { return {a.re - b.re, a.im - b.im}; }
SER_FAST_DEVICE Root operator*(Root a, Root b) { return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re}; }
SER_FAST_DEVICE Root operator*(float s, Root a) { return {s * a.re, s * a.im}; }
// -i a.
SER_FAST_DEVICE Root quarter(Root a) { return {a.im, -a.re}; }

// In-place DFT of R points.
SER_FAST_DEVICE void transform(Root (&)[1]) {}

SER_FAST_DEVICE void transform(Root (&x)[2]) {
  const Root a = x[0];
  x[0] = a + x[1];
  x[1] = a - x[1];
}

SER_FAST_DEVICE void transform(Root (&x)[3]) {
  const Root sum = x[1] + x[2], turned = quarter(0.866025404f * (x[1] - x[2]));
  const Root middle = x[0] - 0.5f * sum;
  x[0] = x[0] + sum;
  x[1] = middle + turned;
  x[2] = middle - turned;
}

SER_FAST_DEVICE void transform(Root (&x)[4]) {
  const Root a = x[0] + x[2], b = x[0] - x[2], c = x[1] + x[3], d = quarter(x[1] - x[3]);
  x[0] = a + c;
  x[1] = b + d;
  x[2] = a - c;
  x[3] = b - d;
}

SER_FAST_DEVICE void transform(Root (&x)[5]) {
  const Root a = x[1] + x[4], b = x[2] + x[3], c = x[1] - x[4], d = x[2] - x[3];
  const Root e = x[0] + 0.309016994f * a - 0.809016994f * b, f = x[0] - 0.809016994f * a + 0.309016994f * b;
  const Root g = quarter(0.951056516f * c + 0.587785252f * d), h = quarter(0.587785252f * c - 0.951056516f * d);
  x[0] = x[0] + a + b;
  x[1] = e + g;
  x[2] = f + h;
  x[3] = f - h;
  x[4] = e - g;
}

// The same of five points whose last three are 0.
SER_FAST_DEVICE void transform_two(Root (&x)[5]) {
  const Root a = x[0], b = x[1], turned = quarter(b);
  const Root e = a + 0.309016994f * b, f = a - 0.809016994f * b;
  x[0] = a + b;
  x[1] = e + 0.951056516f * turned;
  x[2] = f + 0.587785252f * turned;
  x[3] = f - 0.587785252f * turned;
  x[4] = e - 0.951056516f * turned;
}

SER_FAST_DEVICE void transform(Root (&x)[8]) {
  Root even[4] = {x[0], x[2], x[4], x[6]}, odd[4] = {x[1], x[3], x[5], x[7]};
  transform(even);
  transform(odd);
  constexpr float kHalf = 0.707106781f;
  odd[1] = kHalf * (odd[1] + quarter(odd[1]));
  odd[2] = quarter(odd[2]);
  odd[3] = kHalf * (quarter(odd[3]) - odd[3]);
  SER_FAST_UNROLL
  for (int k = 0; k < 4; ++k) {
    x[k] = even[k] + odd[k];
    x[k + 4] = even[k] - odd[k];
  }
}

// exp(-2 pi i k / N) for every k, computed by the compiler.
template <int N>
struct Turns {
  Root value[N];

  constexpr Turns() : value() {
    for (int k = 0; k < N; ++k) {
      // The Taylor series, of an angle within half a turn: its terms after the 40th are below float's rounding.
      const double angle = -2 * 3.14159265358979323846 * (2 * k > N ? k - N : k) / N;
      double re = 0, im = 0, term = 1;
      for (int n = 0; n < 40; term *= angle / ++n) (n % 2 ? im : re) += n % 4 < 2 ? term : -term;
      value[k] = {static_cast<float>(re), static_cast<float>(im)};
    }
  }
};

// DFT of A B points, of which those from KEPT on are 0: B transforms of A points, then A of B points.
template <int KEPT, int A, int B>
SER_FAST_DEVICE void transform_by(Root (&x)[A * B]) {
  constexpr Turns<A * B> kTurns;
  Root y[A][B];
  SER_FAST_UNROLL
  for (int b = 0; b < B; ++b) {
    Root column[A];
    SER_FAST_UNROLL
    for (int a = 0; a < A; ++a) column[a] = x[B * a + b];
    if constexpr (KEPT == 2 * B) transform_two(column);
    else transform(column);
    SER_FAST_UNROLL
    for (int k = 0; k < A; ++k) {
      const int turn = b * k;
      y[k][b] = turn == 0 ? column[k] : 4 * turn == A * B ? quarter(column[k]) : kTurns.value[turn] * column[k];
    }
  }
  SER_FAST_UNROLL
  for (int k = 0; k < A; ++k) {
    transform(y[k]);
    SER_FAST_UNROLL
    for (int b = 0; b < B; ++b) x[k + A * b] = y[k][b];
  }
}

template <int KEPT>
SER_FAST_DEVICE void transform_rows(Root (&x)[16]) { transform_by<KEPT, 4, 4>(x); }
template <int KEPT>
SER_FAST_DEVICE void transform_rows(Root (&x)[25]) { transform_by<KEPT, 5, 5>(x); }
template <int KEPT>
SER_FAST_DEVICE void transform_rows(Root (&x)[32]) { transform_by<KEPT, 4, 8>(x); }

// Factor from the stored samples to the wave's.
template <class Sample>
constexpr float kScale = sizeof(Sample) == 2 ? 1.0f / 32768 : 1;

// Sample `at` of a row, extended beyond its ends by `pad`, as stored.
template <class Sample>
SER_FAST_DEVICE float sample_at(const Sample* row, int64_t at, int64_t length, Pad pad) {
  if (at < 0 || at >= length) {
    if (pad == Pad::kZero) return 0;
    if (pad == Pad::kCircular) at += at < 0 ? length : -length;
    if (pad == Pad::kReflect) at = at < 0 ? -at : 2 * (length - 1) - at;
    // A row too short for its padding gives wrong values but no access out of bounds.
    at = at < 0 ? 0 : at >= length ? length - 1 : at;
  }
  return row[at];
}

// The length of row b, clamped to 0..N.
template <class Sample>
SER_FAST_DEVICE int64_t row_length(const SpectrogramGpu<Sample>& a, int64_t b) {
  const int64_t length = a.lengths ? a.lengths[b] : a.shape.samples;
  return length < 0 ? 0 : length < a.shape.samples ? length : a.shape.samples;
}

// |2 X_k|^2 of a real transform from the complex one's Z_k, the conjugate of Z_(N-k) and exp(-2 pi i k / n_fft).
SER_FAST_DEVICE float doubled_power(Root a, Root b, Root root) {
  const Root x = a + b + root * quarter(a - b);
  return x.re * x.re + x.im * x.im;
}

}  // namespace ser_fast::gpu
