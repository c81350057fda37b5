// Power spectrogram on CUDA: a block windows some frames of a row into shared memory and transforms them there by a
// mixed-radix FFT in float32; only samples are read and only the wanted bins are written.
#include "power_spectrogram.h"

#include "device.h"

namespace ser_fast {
namespace {

using namespace gpu;

SER_FAST_DEVICE Root operator+(Root a, Root b) { return {a.re + b.re, a.im + b.im}; }
SER_FAST_DEVICE Root operator-(Root a, Root b) { return {a.re - b.re, a.im - b.im}; }
SER_FAST_DEVICE Root operator*(Root a, Root b) { return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re}; }
SER_FAST_DEVICE Root operator*(float s, Root a) { return {s * a.re, s * a.im}; }
// -i a.
SER_FAST_DEVICE Root quarter(Root a) { return {a.im, -a.re}; }

// x becomes its transform of R points.
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

// One Stockham pass of radix R over every frame; ``done`` is the product of the radices before it.
template <int R>
SER_FAST_DEVICE void pass(const Root* in, Root* out, const Root* roots, const SpectrogramPlan& plan, int done,
                          int step) {
  const int count = plan.points / R;
  for (int task = thread(); task < plan.frames * count; task += plan.threads) {
    const int frame = task / count * plan.points, j = task % count, k = j % done;
    Root x[R];
    SER_FAST_UNROLL
    for (int r = 0; r < R; ++r) x[r] = in[frame + j + r * count];
    const int turn = k * (count / done) * step;
    SER_FAST_UNROLL
    for (int r = 1; r < R; ++r) x[r] = x[r] * roots[r * turn];
    transform(x);
    SER_FAST_UNROLL
    for (int r = 0; r < R; ++r) out[frame + j / done * done * R + k + r * done] = x[r];
  }
}

// A row's sample, or what stands for it before the first and after the last.
template <class Sample>
SER_FAST_DEVICE float sample_at(const Sample* row, int64_t at, int64_t length, Pad pad) {
  if (at < 0 || at >= length) {
    if (pad == Pad::kZero) return 0;
    if (pad == Pad::kCircular) at += at < 0 ? length : -length;
    if (pad == Pad::kReflect) at = at < 0 ? -at : 2 * (length - 1) - at;
    // A row too short to be padded is wrong, but stays in memory.
    at = at < 0 ? 0 : at >= length ? length - 1 : at;
  }
  return sizeof(Sample) == 2 ? row[at] * (1.0f / 32768) : row[at];
}

// |X_k|^2 of one frame's complex transform.
SER_FAST_DEVICE float power(const Root* z, int k, int points, bool halved, const Root* roots) {
  const Root a = z[k < points ? k : 0];
  if (!halved) return a.re * a.re + a.im * a.im;
  const Root other = z[k == 0 || k == points ? 0 : points - k], b = {other.re, -other.im};
  const Root x = a + b, y = roots[k] * quarter(a - b);
  const Root sum = 0.5f * (x + y);
  return sum.re * sum.re + sum.im * sum.im;
}

template <class Sample>
SER_FAST_KERNEL void spectrogram(SpectrogramGpu<Sample> a) {
  const SpectrogramShape& shape = a.shape;
  const SpectrogramPlan& plan = a.plan;
  const int64_t b = block() / plan.tiles, first = block() % plan.tiles * static_cast<int64_t>(plan.frames);
  int64_t length = a.lengths ? a.lengths[b] : shape.samples;
  length = length < 0 ? 0 : length < shape.samples ? length : shape.samples;
  const int64_t count = shape.frame_count(length);
  const bool halved = shape.n_fft % 2 == 0;
  const int step = halved ? 2 : 1, window = static_cast<int>(shape.window_length);
  Root* in = shared<Root>();
  Root* out = in + plan.frames * plan.points;
  const Sample* row = a.wave + b * a.row_stride;
  const Pad pad = shape.center ? shape.pad : Pad::kZero;

  if (first < count) {  // the same for the whole block
    for (int task = thread(); task < plan.frames * plan.points; task += plan.threads) {
      const int64_t frame = first + task / plan.points;
      const int n = task % plan.points * step;
      const int64_t at = frame * shape.hop + shape.origin() + n;
      const bool valid = frame < count;
      Root x = {0, 0};
      if (valid && n < window) x.re = a.window[n] * sample_at(row, at, length, pad);
      if (halved && valid && n + 1 < window) x.im = a.window[n + 1] * sample_at(row, at + 1, length, pad);
      in[task] = x;
    }
    barrier();
    for (int p = 0, done = 1; p < plan.passes; ++p) {
      const int radix = plan.radix[p];
      if (radix == 1) pass<1>(in, out, a.roots, plan, done, step);
      if (radix == 2) pass<2>(in, out, a.roots, plan, done, step);
      if (radix == 3) pass<3>(in, out, a.roots, plan, done, step);
      if (radix == 4) pass<4>(in, out, a.roots, plan, done, step);
      if (radix == 5) pass<5>(in, out, a.roots, plan, done, step);
      if (radix == 8) pass<8>(in, out, a.roots, plan, done, step);
      barrier();
      Root* swapped = in;
      in = out;
      out = swapped;
      done *= radix;
    }
  }
  const int bins = static_cast<int>(shape.bins);
  for (int task = thread(); task < plan.frames * bins; task += plan.threads) {
    const int f = task / bins, bin = task % bins;
    const int64_t frame = first + f;
    if (frame >= shape.frames) break;
    float value = 0;
    if (frame < count) {
      value = power(in + f * plan.points, static_cast<int>(shape.first_bin) + bin, plan.points, halved, a.roots);
      if (a.log) value = logarithm(value < a.floor ? a.floor : value);
      if (a.mean) value -= a.mean[bin];
      if (a.std) value /= a.std[bin];
    }
    a.out[(b * shape.frames + frame) * bins + bin] = value;
  }
}

}  // namespace

SpectrogramPlan spectrogram_plan(const SpectrogramShape& shape) {
  constexpr int64_t kShared = 48 * 1024, kFrames = 8;
  SpectrogramPlan plan = {};
  const int64_t points = shape.n_fft % 2 ? shape.n_fft : shape.n_fft / 2;
  const int64_t bytes = 2 * points * static_cast<int64_t>(sizeof(Root));  // of a frame
  if (bytes > kShared) return plan;
  int64_t rest = points;
  for (const int radix : {5, 3, 8, 4, 2})
    for (; rest % radix == 0; rest /= radix) plan.radix[plan.passes++] = radix;
  if (rest != 1) return SpectrogramPlan{};
  if (points == 1) plan.radix[plan.passes++] = 1;
  plan.points = static_cast<int>(points);
  plan.frames = static_cast<int>(kShared / bytes < kFrames ? kShared / bytes : kFrames);
  if (plan.frames > shape.frames) plan.frames = static_cast<int>(shape.frames);
  plan.tiles = static_cast<int>((shape.frames + plan.frames - 1) / plan.frames);
  plan.threads = 256;
  plan.shared = plan.frames * bytes;
  return plan;
}

template <class Sample>
int power_spectrogram_forward_cuda(const SpectrogramGpu<Sample>& args, Stream stream) {
  const int blocks = static_cast<int>(args.shape.batch * args.plan.tiles);
  return launch(spectrogram<Sample>, blocks, args.plan.threads, args.plan.shared, stream, args);
}

template int power_spectrogram_forward_cuda<float>(const SpectrogramGpu<float>&, Stream);
template int power_spectrogram_forward_cuda<int16_t>(const SpectrogramGpu<int16_t>&, Stream);

}  // namespace ser_fast
