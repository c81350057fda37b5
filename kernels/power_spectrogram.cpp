// Power spectrogram on CPU: a mixed-radix FFT of any length transforms as many frames of a row together as a vector
// has lanes, one per lane. Scratch memory holds the spectra of these frames only.
#include "power_spectrogram.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>
#include <vector>

#include "activations.h"
#include "simd.h"

namespace ser_fast {
namespace {

template <class V>
struct Complex {
  V re, im;
};

template <class V>
SER_FAST_INLINE Complex<V> operator+(const Complex<V>& a, const Complex<V>& b) {
  return {a.re + b.re, a.im + b.im};
}
template <class V>
SER_FAST_INLINE Complex<V> operator-(const Complex<V>& a, const Complex<V>& b) {
  return {a.re - b.re, a.im - b.im};
}
template <class V>
SER_FAST_INLINE Complex<V> operator*(const Complex<V>& a, const Complex<Element<V>>& b) {
  return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}
// -i a = exp(-2 pi i / 4) a.
template <class V>
SER_FAST_INLINE Complex<V> quarter(const Complex<V>& a) {
  return {a.im, -a.re};
}

// exp(-2 pi i k / size), k < size.
template <class T>
std::vector<Complex<T>> roots_of(int64_t size) {
  std::vector<Complex<T>> roots(size);
  for (int64_t k = 0; k < size; ++k) {
    const double angle = -2.0 * M_PI * static_cast<double>(k) / static_cast<double>(size);
    roots[k] = {static_cast<T>(std::cos(angle)), static_cast<T>(std::sin(angle))};
  }
  return roots;
}

// Odd factors come first: the first pass, which skips the zeros past the window, then reads the fewest points.
std::vector<int64_t> radices(int64_t size) {
  std::vector<int64_t> factors;
  for (int64_t radix = 3; radix <= size; radix += 2)
    for (; size % radix == 0; size /= radix) factors.push_back(radix);
  for (int64_t radix : {8, 4, 2})
    for (; size % radix == 0; size /= radix) factors.push_back(radix);
  return factors;
}

// In-place DFT of R points.
template <int R, class V>
SER_FAST_INLINE void transform(Complex<V> (&x)[R]) {
  using T = Element<V>;
  if constexpr (R == 2) {
    const auto a = x[0];
    x[0] = a + x[1], x[1] = a - x[1];
  } else if constexpr (R == 3) {
    constexpr T sin = -0.86602540378443864676;
    const auto sum = x[1] + x[2], difference = x[1] - x[2];
    const Complex<V> even = {x[0].re - sum.re * T(0.5), x[0].im - sum.im * T(0.5)};
    const Complex<V> odd = {difference.im * -sin, difference.re * sin};
    x[0] = x[0] + sum, x[1] = even + odd, x[2] = even - odd;
  } else if constexpr (R == 4) {
    const auto a = x[0] + x[2], b = x[1] + x[3], c = x[0] - x[2], d = quarter(x[1] - x[3]);
    x[0] = a + b, x[1] = c + d, x[2] = a - b, x[3] = c - d;
  } else if constexpr (R == 5) {
    constexpr T cos1 = 0.30901699437494742410, cos2 = -0.80901699437494742410;
    constexpr T sin1 = -0.95105651629515357212, sin2 = -0.58778525229247312917;
    const auto a = x[1] + x[4], b = x[2] + x[3], c = x[1] - x[4], d = x[2] - x[3];
    const Complex<V> even1 = {x[0].re + a.re * cos1 + b.re * cos2, x[0].im + a.im * cos1 + b.im * cos2};
    const Complex<V> even2 = {x[0].re + a.re * cos2 + b.re * cos1, x[0].im + a.im * cos2 + b.im * cos1};
    const Complex<V> odd1 = {-(c.im * sin1 + d.im * sin2), c.re * sin1 + d.re * sin2};
    const Complex<V> odd2 = {-(c.im * sin2 - d.im * sin1), c.re * sin2 - d.re * sin1};
    x[0] = x[0] + a + b, x[1] = even1 + odd1, x[4] = even1 - odd1, x[2] = even2 + odd2, x[3] = even2 - odd2;
  } else {
    static_assert(R == 8);
    constexpr T half = 0.70710678118654752440;
    Complex<V> even[4] = {x[0], x[2], x[4], x[6]}, odd[4] = {x[1], x[3], x[5], x[7]};
    transform<4>(even), transform<4>(odd);
    odd[1] = {(odd[1].re + odd[1].im) * half, (odd[1].im - odd[1].re) * half};
    odd[2] = quarter(odd[2]);
    odd[3] = {(odd[3].im - odd[3].re) * half, (odd[3].re + odd[3].im) * -half};
    for (int k = 0; k < 4; ++k) x[k] = even[k] + odd[k], x[k + 4] = even[k] - odd[k];
  }
}

// Stockham's self-sorting FFT: a pass splits each transform of size / stride points into `radix` smaller ones.
template <class T>
class Fft {
 public:
  explicit Fft(int64_t size) : size_(size), radices_(radices(size)), roots_(roots_of<T>(size)) {}

  int64_t size() const { return size_; }

  // Transforms x; points from `filled` on are not read and count as 0. Returns the buffer that holds the result.
  template <class V>
  SER_FAST_INLINE Complex<V>* run(Complex<V>* x, Complex<V>* spare, int64_t filled) const {
    int64_t stride = 1;
    for (const int64_t radix : radices_) {
      if (stride == 1) pass<true>(radix, x, spare, stride, filled);
      else pass<false>(radix, x, spare, stride, size_);
      std::swap(x, spare);
      stride *= radix;
    }
    return x;
  }

 private:
  template <bool Sparse, class V>
  SER_FAST_INLINE void pass(int64_t radix, const Complex<V>* from, Complex<V>* to, int64_t stride, int64_t set) const {
    if (radix == 8) pass_of<8, Sparse>(from, to, stride, set);
    else if (radix == 5) pass_of<5, Sparse>(from, to, stride, set);
    else if (radix == 4) pass_of<4, Sparse>(from, to, stride, set);
    else if (radix == 3) pass_of<3, Sparse>(from, to, stride, set);
    else if (radix == 2) pass_of<2, Sparse>(from, to, stride, set);
    else pass_of_any(radix, from, to, stride, set);
  }

  template <int R, bool Sparse, class V>
  SER_FAST_INLINE void pass_of(const Complex<V>* from, Complex<V>* to, int64_t stride, int64_t set) const {
    const int64_t parts = size_ / stride / R, step = stride * parts;
    for (int64_t j = 0; j < parts; ++j) {
      Complex<T> turn[R];
      for (int k = 1; k < R; ++k) turn[k] = roots_[stride * j * k];
      for (int64_t q = 0; q < stride; ++q) {
        const int64_t first = q + stride * j;
        Complex<V> x[R];
        SER_FAST_UNROLL
        for (int k = 0; k < R; ++k) x[k] = !Sparse || first + k * step < set ? from[first + k * step] : Complex<V>{};
        transform<R>(x);
        Complex<V>* out = to + q + stride * R * j;
        out[0] = x[0];
        SER_FAST_UNROLL
        for (int k = 1; k < R; ++k) out[k * stride] = x[k] * turn[k];
      }
    }
  }

  // An odd radix's roots come in conjugate pairs, which halves the products.
  template <class V>
  SER_FAST_INLINE void pass_of_any(int64_t radix, const Complex<V>* from, Complex<V>* to, int64_t stride,
                                   int64_t set) const {
    const int64_t parts = size_ / stride / radix, step = stride * parts, half = radix / 2, root = size_ / radix;
    const std::unique_ptr<Complex<V>[]> pairs(new Complex<V>[radix]);  // sums from 1 on, differences from radix - 1 down
    for (int64_t j = 0; j < parts; ++j)
      for (int64_t q = 0; q < stride; ++q) {
        const int64_t first = q + stride * j;
        Complex<V>* out = to + q + stride * radix * j;
        const Complex<V> start = first < set ? from[first] : Complex<V>{};
        Complex<V> total = start;
        for (int64_t r = 1; r <= half; ++r) {
          const int64_t low = first + r * step, high = first + (radix - r) * step;
          const Complex<V> a = low < set ? from[low] : Complex<V>{}, b = high < set ? from[high] : Complex<V>{};
          pairs[r] = a + b, pairs[radix - r] = a - b;
          total = total + pairs[r];
        }
        out[0] = total;
        for (int64_t k = 1; k <= half; ++k) {
          Complex<V> even = start, odd = {};
          for (int64_t r = 1, turn = k; r <= half; ++r, turn = (turn + k) % radix) {
            const Complex<T> w = roots_[turn * root];
            const Complex<V>&sum = pairs[r], &difference = pairs[radix - r];
            even = {even.re + sum.re * w.re, even.im + sum.im * w.re};
            odd = {odd.re - difference.im * w.im, odd.im + difference.re * w.im};
          }
          out[k * stride] = (even + odd) * roots_[k * stride * j];
          out[(radix - k) * stride] = (even - odd) * roots_[(radix - k) * stride * j];
        }
      }
  }

  int64_t size_;
  std::vector<int64_t> radices_;
  std::vector<Complex<T>> roots_;
};

// An even n_fft is computed as n_fft / 2 complex points; `power` recovers the bins of the real samples.
template <class T>
struct Plan {
  bool halved;
  Fft<T> fft;
  std::vector<Complex<T>> roots;

  explicit Plan(int64_t n_fft) : halved(n_fft % 2 == 0), fft(halved ? n_fft / 2 : n_fft), roots(roots_of<T>(n_fft)) {}

  template <class V>
  SER_FAST_INLINE V power(const Complex<V>* z, int64_t k) const {
    if (!halved) return z[k].re * z[k].re + z[k].im * z[k].im;
    const int64_t size = fft.size(), mirror = k == 0 || k == size ? 0 : size - k;
    const Complex<V>&a = z[k == size ? 0 : k], &b = z[mirror];
    const Complex<V> sum = {a.re + b.re, a.im - b.im}, difference = {a.im + b.im, b.re - a.re};
    const Complex<V> bin = sum + difference * roots[k];
    return (bin.re * bin.re + bin.im * bin.im) * T(0.25);
  }
};

template <class T, class Sample>
SER_FAST_INLINE T amplitude(Sample sample) {
  if constexpr (std::is_same_v<Sample, int16_t>) return static_cast<T>(sample) / 32768;
  else return sample;
}

template <class I, class T, class Sample>
SER_FAST_INLINE Vec<I, T> amplitudes(const Sample* samples, int64_t count) {
  if constexpr (std::is_same_v<Sample, int16_t>) {
    typedef int16_t Short __attribute__((vector_size(I::kBytes / 2)));
    Short values = {};
    std::memcpy(&values, samples, count >= kLanes<I, T> ? sizeof(values) : count * sizeof(int16_t));
    return __builtin_convertvector(values, Vec<I, T>) / 32768;
  } else {
    return load<I>(samples, count);
  }
}

// Sample i of a row of `length` samples, extended beyond its ends by `pad`.
template <class T, class Sample>
T padded_sample(const Sample* row, int64_t length, int64_t i, Pad pad) {
  if (i >= 0 && i < length) return amplitude<T>(row[i]);
  switch (pad) {
    case Pad::kZero:
      return 0;
    case Pad::kReplicate:
      return amplitude<T>(row[i < 0 ? 0 : length - 1]);
    case Pad::kCircular:
      return amplitude<T>(row[(i % length + length) % length]);
    case Pad::kReflect: {
      const int64_t period = std::max<int64_t>(2 * (length - 1), 1);
      const int64_t turn = (i % period + period) % period;
      return amplitude<T>(row[std::min(turn, period - turn)]);
    }
  }
  return 0;
}

// Step of a transpose, lane by lane. Second false: a[lane], or b[lane - D] if the lane has bit D; Second true:
// a[lane + D], or b[lane] if it has.
template <bool Second, int D, class V, size_t... lane>
SER_FAST_INLINE V exchange(V a, V b, std::index_sequence<lane...>) {
  constexpr int lanes = sizeof...(lane);
  return __builtin_shufflevector(a, b, (static_cast<int>(lane) & D ? lanes + static_cast<int>(lane) - (Second ? 0 : D)
                                                                  : static_cast<int>(lane) + (Second ? D : 0))...);
}

// Transposes the tile in log2(lanes) rounds; each exchanges blocks of D x D elements and doubles D.
template <int D, class V, size_t lanes>
SER_FAST_INLINE void transpose(V (&tile)[lanes]) {
  SER_FAST_UNROLL
  for (size_t i = 0; i < lanes; ++i)
    if (!(i & D)) {
      const V a = tile[i], b = tile[i + D];
      tile[i] = exchange<false, D>(a, b, std::make_index_sequence<lanes>{});
      tile[i + D] = exchange<true, D>(a, b, std::make_index_sequence<lanes>{});
    }
  if constexpr (2 * D < static_cast<int>(lanes)) transpose<2 * D>(tile);
}

template <class I, class T>
struct Scratch {
  using V = Vec<I, T>;
  static constexpr int64_t kLane = kLanes<I, T>;
  std::unique_ptr<Complex<V>[]> z, spare;
  std::unique_ptr<T[]> staging;  // [lanes, W], the samples of frames that reach beyond their row

  Scratch(int64_t size, int64_t window_length)
      : z(new Complex<V>[size]), spare(new Complex<V>[size]), staging(new T[kLane * window_length]) {}
};

// Windowed samples, one frame per lane: x[n * jump] holds sample n of every frame.
template <class I, class T, class From>
SER_FAST_INLINE void gather(const From* const* frames, const T* window, int64_t size, Vec<I, T>* x, int64_t jump) {
  constexpr int64_t lanes = kLanes<I, T>;
  for (int64_t n = 0; n < size; n += lanes) {
    Vec<I, T> tile[lanes];
    SER_FAST_UNROLL
    for (int64_t lane = 0; lane < lanes; ++lane) tile[lane] = amplitudes<I, T>(frames[lane] + n, size - n);
    transpose<1>(tile);
    const int64_t count = std::min(lanes, size - n);
    for (int64_t i = 0; i < count; ++i) x[(n + i) * jump] = tile[i] * window[n + i];
  }
}

// Computes `count` frames of row b from `first` on.
template <class I, class Sample, class T>
SER_FAST_INLINE void transform_frames(const SpectrogramForward<Sample, T>& args, const Plan<T>& plan, int64_t b,
                                      int64_t first, int64_t count, Scratch<I, T>& scratch) {
  using V = Vec<I, T>;
  constexpr int64_t lanes = kLanes<I, T>;
  const SpectrogramShape& shape = args.shape;
  const int64_t length = args.lengths ? args.lengths[b] : shape.samples, size = shape.window_length;
  const Sample* row = args.wave + b * args.row_stride;
  const int64_t start = first * shape.hop + shape.origin();
  const int64_t filled = plan.halved ? (size + 1) / 2 : size, jump = plan.halved ? 1 : 2;
  // If halved, the samples fill the real and imaginary parts of the complex points in turn, else only the real parts.
  V* x = &scratch.z[0].re;
  if (plan.halved) scratch.z[filled - 1].im = V{};
  else for (int64_t n = 0; n < filled; ++n) scratch.z[n].im = V{};
  if (start >= 0 && start + (count - 1) * shape.hop + size <= length) {
    const Sample* frames[lanes];
    for (int64_t lane = 0; lane < lanes; ++lane) frames[lane] = row + start + std::min(lane, count - 1) * shape.hop;
    gather<I, T>(frames, args.window, size, x, jump);
  } else {
    const T* frames[lanes];
    for (int64_t lane = 0; lane < lanes; ++lane) {
      T* staged = scratch.staging.get() + lane * size;
      frames[lane] = staged;
      if (lane < count)
        for (int64_t n = 0; n < size; ++n)
          staged[n] = padded_sample<T>(row, length, start + lane * shape.hop + n, shape.pad);
      else std::fill_n(staged, size, T(0));
    }
    gather<I, T>(frames, args.window, size, x, jump);
  }
  const Complex<V>* z = plan.fft.run(scratch.z.get(), scratch.spare.get(), filled);
  T* out = args.out + (b * shape.frames + first) * shape.bins;
  for (int64_t k = 0; k < shape.bins; k += lanes) {
    const int64_t bins = std::min(lanes, shape.bins - k);
    V tile[lanes] = {};
    for (int64_t i = 0; i < bins; ++i) {
      V value = plan.power(z, shape.first_bin + k + i);
      if (args.log) value = logarithm(V(value < args.floor ? V{} + args.floor : value));
      if (args.mean) value -= args.mean[k + i];
      if (args.std) value /= args.std[k + i];
      tile[i] = value;
    }
    transpose<1>(tile);
    for (int64_t lane = 0; lane < count; ++lane) store(out + lane * shape.bins + k, tile[lane], bins);
  }
}

// Computes frames [first, last) of row b; those past the row's length are 0.
template <class I, class Sample, class T>
SER_FAST_INLINE void transform_run(const SpectrogramForward<Sample, T>& args, const Plan<T>& plan, int64_t b,
                                   int64_t first, int64_t last) {
  const SpectrogramShape& shape = args.shape;
  const int64_t length = args.lengths ? args.lengths[b] : shape.samples;
  const int64_t end = std::clamp(shape.frame_count(length), first, last);
  T* rows = args.out + b * shape.frames * shape.bins;
  std::fill(rows + end * shape.bins, rows + last * shape.bins, T(0));
  if (end == first) return;
  Scratch<I, T> scratch(plan.fft.size(), shape.window_length);
  for (int64_t t = first; t < end; t += kLanes<I, T>)
    transform_frames<I>(args, plan, b, t, std::min(kLanes<I, T>, end - t), scratch);
}

// True if all samples are finite: NaN and infinity times 0 give NaN.
template <class I, class T>
SER_FAST_INLINE bool all_finite(I, const T* samples, int64_t count) {
  Vec<I, T> sum = {};
  for (int64_t i = 0; i < count; i += kLanes<I, T>) sum += load<I>(samples + i, count - i) * T(0);
  return sum_lanes(sum) == 0;
}

#define SER_FAST_SPECTROGRAM_TASKS(I, Sample, T, target)                                                          \
  target void task(I, const SpectrogramForward<Sample, T>& args, const Plan<T>& plan, int64_t b, int64_t first,   \
                   int64_t last) {                                                                                \
    transform_run<I>(args, plan, b, first, last);                                                                 \
  }
#define SER_FAST_SPECTROGRAM(I, target)                                                                    \
  SER_FAST_SPECTROGRAM_TASKS(I, int16_t, float, target)                                                    \
  SER_FAST_SPECTROGRAM_TASKS(I, float, float, target)                                                      \
  SER_FAST_SPECTROGRAM_TASKS(I, double, double, target)                                                    \
  target bool finite(I isa, const float* samples, int64_t count) { return all_finite(isa, samples, count); } \
  target bool finite(I isa, const double* samples, int64_t count) { return all_finite(isa, samples, count); }
SER_FAST_EACH_ISA(SER_FAST_SPECTROGRAM)

}  // namespace

template <class Sample, class T>
void power_spectrogram_forward_cpu(const SpectrogramForward<Sample, T>& args, const Parallel& all) {
  const Plan<T> plan(args.shape.n_fft);
  const int64_t frames = args.shape.frames, batch = args.shape.batch;
  const Parallel parallel = all.worth(0.8 * batch * frames * args.shape.n_fft);
  // Runs of frames, rounded up to whole vectors; the aim is 4 per thread.
  const int64_t most = frames_per_task.load(std::memory_order_relaxed);
  const int64_t runs = std::max((frames - 1) / most + 1, std::min(frames, (4 * parallel.threads + batch - 1) / batch));
  const int64_t run = (frames + runs - 1) / runs;
  with_isa<T>([&](auto isa) {
    const int64_t lanes = kLanes<decltype(isa), T>, whole = (run + lanes - 1) / lanes * lanes;
    const int64_t parts = (frames + whole - 1) / whole;
    parallel(batch * parts, [&](int64_t i) {
      const int64_t first = i % parts * whole;
      task(isa, args, plan, i / parts, first, std::min(frames, first + whole));
    });
  });
}

template <class T>
bool finite_cpu(const T* samples, int64_t count) {
  bool good = true;
  with_isa<T>([&](auto isa) { good = finite(isa, samples, count); });
  return good;
}

template void power_spectrogram_forward_cpu(const SpectrogramForward<int16_t, float>&, const Parallel&);
template void power_spectrogram_forward_cpu(const SpectrogramForward<float, float>&, const Parallel&);
template void power_spectrogram_forward_cpu(const SpectrogramForward<double, double>&, const Parallel&);
template bool finite_cpu(const float*, int64_t);
template bool finite_cpu(const double*, int64_t);

}  // namespace ser_fast
