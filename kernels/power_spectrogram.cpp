// Power spectrogram on CPU: a task transforms as many frames of a row as a vector has lanes, one per lane,
// by a mixed-radix FFT of any length.
#include "power_spectrogram.h"

#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "simd.h"

namespace ser_fast {
namespace {

template <class T>
struct alignas(64) Complex {
  Vec<T> re, im;
};

// exp(-2 pi i k / size), k < size.
template <class T>
struct Roots {
  std::vector<T> re, im;

  explicit Roots(int64_t size) : re(size), im(size) {
    for (int64_t k = 0; k < size; ++k) {
      const double angle = -2.0 * M_PI * static_cast<double>(k) / static_cast<double>(size);
      re[k] = static_cast<T>(std::cos(angle));
      im[k] = static_cast<T>(std::sin(angle));
    }
  }
};

std::vector<int64_t> radices(int64_t size) {
  std::vector<int64_t> factors;
  for (int64_t radix : {4, 2, 3, 5})
    for (; size % radix == 0; size /= radix) factors.push_back(radix);
  for (int64_t radix = 7; size > 1; radix += 2)
    for (; size % radix == 0; size /= radix) factors.push_back(radix);
  return factors;
}

// Stockham's self-sorting transform: pass p takes n = size / stride points apart into n / radix.
template <class T>
class Fft {
 public:
  explicit Fft(int64_t size) : size_(size), radices_(radices(size)), roots_(size) {}

  int64_t size() const { return size_; }

  // Transforms x in place; spare is as long as x.
  SER_FAST_INLINE void run(std::vector<Complex<T>>& x, std::vector<Complex<T>>& spare) const {
    int64_t stride = 1;
    std::vector<Complex<T>> sums;
    for (const int64_t radix : radices_) {
      const Complex<T>* from = x.data();
      Complex<T>* to = spare.data();
      const int64_t parts = size_ / stride / radix;
      sums.resize(radix);
      for (int64_t j = 0; j < parts; ++j)
        for (int64_t q = 0; q < stride; ++q) {
          const Complex<T>* in = from + q + stride * j;
          Complex<T>* out = to + q + stride * radix * j;
          if (radix == 4) butterfly4(in, stride * parts, out, stride, j);
          else if (radix == 2) butterfly2(in, stride * parts, out, stride, j);
          else butterfly_odd(radix, in, stride * parts, out, stride, j, sums.data());
        }
      std::swap(x, spare);
      stride *= radix;
    }
  }

 private:
  // out = value * exp(-2 pi i stride j k / size)
  SER_FAST_INLINE void twist(Complex<T>& out, const Vec<T>& re, const Vec<T>& im, int64_t root) const {
    const T c = roots_.re[root], s = roots_.im[root];
    out.re = re * c - im * s;
    out.im = re * s + im * c;
  }

  SER_FAST_INLINE void butterfly2(const Complex<T>* in, int64_t step, Complex<T>* out, int64_t stride,
                                  int64_t j) const {
    const Complex<T>&a = in[0], &b = in[step];
    out[0] = {a.re + b.re, a.im + b.im};
    twist(out[stride], a.re - b.re, a.im - b.im, stride * j);
  }

  SER_FAST_INLINE void butterfly4(const Complex<T>* in, int64_t step, Complex<T>* out, int64_t stride,
                                  int64_t j) const {
    const Complex<T>&a = in[0], &b = in[step], &c = in[2 * step], &d = in[3 * step];
    const Vec<T> even_re = a.re + c.re, even_im = a.im + c.im, odd_re = b.re + d.re, odd_im = b.im + d.im;
    const Vec<T> left_re = a.re - c.re, left_im = a.im - c.im, right_re = b.re - d.re, right_im = b.im - d.im;
    out[0] = {even_re + odd_re, even_im + odd_im};
    twist(out[stride], left_re + right_im, left_im - right_re, stride * j);
    twist(out[2 * stride], even_re - odd_re, even_im - odd_im, 2 * stride * j);
    twist(out[3 * stride], left_re - right_im, left_im + right_re, 3 * stride * j);
  }

  // An odd radix's roots come in conjugate pairs, which halves the products. sums[r] holds in[r] + in[p - r]
  // and sums[p - r] their difference.
  SER_FAST_INLINE void butterfly_odd(int64_t radix, const Complex<T>* in, int64_t step, Complex<T>* out,
                                     int64_t stride, int64_t j, Complex<T>* sums) const {
    const int64_t half = radix / 2, root = size_ / radix;
    Complex<T> total = in[0];
    for (int64_t r = 1; r <= half; ++r) {
      const Complex<T>&a = in[r * step], &b = in[(radix - r) * step];
      sums[r] = {a.re + b.re, a.im + b.im};
      sums[radix - r] = {a.re - b.re, a.im - b.im};
      total = {total.re + sums[r].re, total.im + sums[r].im};
    }
    out[0] = total;
    for (int64_t k = 1; k <= half; ++k) {
      Complex<T> even = in[0], odd = {};
      for (int64_t r = 1, turn = k; r <= half; ++r, turn = (turn + k) % radix) {
        const T c = roots_.re[turn * root], s = roots_.im[turn * root];
        even = {even.re + sums[r].re * c, even.im + sums[r].im * c};
        odd = {odd.re - sums[radix - r].im * s, odd.im + sums[radix - r].re * s};
      }
      twist(out[k * stride], even.re + odd.re, even.im + odd.im, k * stride * j);
      twist(out[(radix - k) * stride], even.re - odd.re, even.im - odd.im, (radix - k) * stride * j);
    }
  }

  int64_t size_;
  std::vector<int64_t> radices_;
  Roots<T> roots_;
};

// An even number of real samples is transformed as half as many complex ones, taken apart afterwards.
template <class T>
struct Plan {
  bool halved;
  Fft<T> fft;
  Roots<T> roots;

  explicit Plan(int64_t n_fft) : halved(n_fft % 2 == 0), fft(halved ? n_fft / 2 : n_fft), roots(n_fft) {}

  SER_FAST_INLINE Vec<T> power(const std::vector<Complex<T>>& z, int64_t k) const {
    if (!halved) {
      const Complex<T>& bin = z[k];
      return bin.re * bin.re + bin.im * bin.im;
    }
    const Complex<T>&a = z[k % fft.size()], &b = z[(fft.size() - k) % fft.size()];
    const T c = roots.re[k], s = roots.im[k];
    const Vec<T> sum_re = a.re + b.re, sum_im = a.im - b.im, diff_re = a.im + b.im, diff_im = b.re - a.re;
    const Vec<T> re = sum_re + diff_re * c - diff_im * s, im = sum_im + diff_re * s + diff_im * c;
    return (re * re + im * im) * T(0.25);
  }
};

inline float amplitude(int16_t sample) { return static_cast<float>(sample) / 32768.0f; }
inline float amplitude(float sample) { return sample; }
inline double amplitude(double sample) { return sample; }

// The sample at index i of a row of `length` samples that goes on beyond its ends as `pad` says.
template <class T, class Sample>
T padded_sample(const Sample* row, int64_t length, int64_t i, Pad pad) {
  if (i >= 0 && i < length) return amplitude(row[i]);
  switch (pad) {
    case Pad::kZero:
      return 0;
    case Pad::kReplicate:
      return amplitude(row[i < 0 ? 0 : length - 1]);
    case Pad::kCircular:
      return amplitude(row[(i % length + length) % length]);
    case Pad::kReflect: {
      const int64_t period = std::max<int64_t>(2 * (length - 1), 1);
      const int64_t turn = (i % period + period) % period;
      return amplitude(row[std::min(turn, period - turn)]);
    }
  }
  return 0;
}

template <class T>
struct Scratch {
  std::vector<Complex<T>> z, spare;
  std::vector<T> power;  // [F, lanes]

  Scratch(int64_t size, int64_t bins) : z(size), spare(size), power(bins * kLanes<T>) {}
};

// Windowed samples of the frames from `first` on, one a lane, as the transform wants them.
template <class Sample, class T>
SER_FAST_INLINE void gather(const SpectrogramForward<Sample, T>& args, bool halved, int64_t b, int64_t length,
                            int64_t first, int64_t count, Scratch<T>& scratch) {
  const SpectrogramShape& shape = args.shape;
  const Sample* row = args.wave + b * args.row_stride;
  std::fill(scratch.z.begin(), scratch.z.end(), Complex<T>{});
  for (int64_t lane = 0; lane < count; ++lane) {
    const int64_t start = (first + lane) * shape.hop + shape.origin();
    const bool inside = start >= 0 && start + shape.window_length <= length;
    for (int64_t n = 0; n < shape.window_length; ++n) {
      const T sample = inside ? static_cast<T>(amplitude(row[start + n]))
                              : padded_sample<T>(row, length, start + n, shape.pad);
      const T value = sample * args.window[n];
      if (!halved) scratch.z[n].re[lane] = value;
      else if (n % 2 == 0) scratch.z[n / 2].re[lane] = value;
      else scratch.z[n / 2].im[lane] = value;
    }
  }
}

template <class Sample, class T>
SER_FAST_INLINE void transform(const SpectrogramForward<Sample, T>& args, const Plan<T>& plan, int64_t task) {
  const SpectrogramShape& shape = args.shape;
  const int64_t tiles = (shape.frames + kLanes<T> - 1) / kLanes<T>;
  const int64_t b = task / tiles, first = task % tiles * kLanes<T>;
  const int64_t last = std::min(first + kLanes<T>, shape.frames);
  const int64_t length = args.lengths ? args.lengths[b] : shape.samples;
  const int64_t count = std::min(last, std::max(first, shape.frame_count(length))) - first;
  T* out = args.out + (b * shape.frames + first) * shape.bins;
  std::fill(out + count * shape.bins, out + (last - first) * shape.bins, T(0));
  if (count == 0) return;

  Scratch<T> scratch(plan.fft.size(), shape.bins);
  gather(args, plan.halved, b, length, first, count, scratch);
  plan.fft.run(scratch.z, scratch.spare);
  for (int64_t k = 0; k < shape.bins; ++k)
    store(scratch.power.data() + k * kLanes<T>, plan.power(scratch.z, shape.first_bin + k));
  for (int64_t lane = 0; lane < count; ++lane)
    for (int64_t k = 0; k < shape.bins; ++k) {
      T value = scratch.power[k * kLanes<T> + lane];
      if (args.log) value = std::log(std::max(value, args.floor));
      if (args.mean) value -= args.mean[k];
      if (args.std) value /= args.std[k];
      out[lane * shape.bins + k] = value;
    }
}

SER_FAST_CLONES void forward_task(const SpectrogramForward<int16_t, float>& args, const Plan<float>& plan,
                                  int64_t task) {
  transform(args, plan, task);
}

SER_FAST_CLONES void forward_task(const SpectrogramForward<float, float>& args, const Plan<float>& plan,
                                  int64_t task) {
  transform(args, plan, task);
}

SER_FAST_CLONES void forward_task(const SpectrogramForward<double, double>& args, const Plan<double>& plan,
                                  int64_t task) {
  transform(args, plan, task);
}

}  // namespace

template <class Sample, class T>
void power_spectrogram_forward_cpu(const SpectrogramForward<Sample, T>& args, const Parallel& parallel) {
  const Plan<T> plan(args.shape.n_fft);
  const int64_t tiles = (args.shape.frames + kLanes<T> - 1) / kLanes<T>;
  parallel(args.shape.batch * tiles, [&](int64_t task) { forward_task(args, plan, task); });
}

template void power_spectrogram_forward_cpu(const SpectrogramForward<int16_t, float>&, const Parallel&);
template void power_spectrogram_forward_cpu(const SpectrogramForward<float, float>&, const Parallel&);
template void power_spectrogram_forward_cpu(const SpectrogramForward<double, double>&, const Parallel&);

}  // namespace ser_fast
