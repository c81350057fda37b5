// Power spectrogram on CUDA: a block windows several frames of a row into shared memory and transforms them there by
// a mixed-radix FFT in float32. Only the requested bins are written. The models' sizes have kernels of their own.
#include "power_spectrogram.h"

#include <tuple>

#include "power_spectrogram_warp.h"

namespace ser_fast {
namespace {

using namespace gpu;

// The windowed samples of one frame of a row, as the complex points of its transform.
template <class Sample>
struct Windowed {
  const Sample* row;
  const float* window;
  int64_t at, length;  // index of the frame's first sample, samples of the row
  int width;           // of the window; 0 if the frame does not exist
  Pad pad;
  bool halved;

  SER_FAST_DEVICE Root operator[](int point) const {
    const int n = halved ? 2 * point : point;
    Root x = {0, 0};
    if (n < width) x.re = window[n] * sample_at(row, at + n, length, pad);
    if (halved && n + 1 < width) x.im = window[n + 1] * sample_at(row, at + n + 1, length, pad);
    return kScale<Sample> * x;
  }
};

// The first Stockham pass, of radix R, reads the windowed samples directly and skips those past the window.
template <int R, class Frames>
SER_FAST_DEVICE void first_pass(const Frames& frames, Root* out, const SpectrogramPlan& plan) {
  const int count = plan.points / R;
  for (int task = thread(); task < plan.frames * count; task += plan.threads) {
    const int frame = plan.count[0](task), j = task - frame * count;
    const auto points = frames(frame);
    Root x[R];
    SER_FAST_UNROLL
    for (int r = 0; r < R; ++r) x[r] = points[j + r * count];
    transform(x);
    SER_FAST_UNROLL
    for (int r = 0; r < R; ++r) out[frame * plan.points + j * R + r] = x[r];
  }
}

// Pass p, of radix R, over every frame; ``done`` is the product of the radices before it.
template <int R>
SER_FAST_DEVICE void pass(const Root* in, Root* out, const Root* roots, const SpectrogramPlan& plan, int p, int step) {
  const int count = plan.points / R, done = static_cast<int>(plan.done[p].by), turns = plan.done[p](count) * step;
  for (int task = thread(); task < plan.frames * count; task += plan.threads) {
    const int row = plan.count[p](task), frame = row * plan.points, j = task - row * count;
    const int whole = plan.done[p](j), k = j - whole * done, turn = k * turns;
    Root x[R];
    SER_FAST_UNROLL
    for (int r = 0; r < R; ++r) x[r] = in[frame + j + r * count];
    SER_FAST_UNROLL
    for (int r = 1; r < R; ++r) x[r] = x[r] * roots[r * turn];
    transform(x);
    SER_FAST_UNROLL
    for (int r = 0; r < R; ++r) out[frame + whole * done * R + k + r * done] = x[r];
  }
}

// |X_k|^2 of one frame's complex transform.
SER_FAST_DEVICE float power(const Root* z, int k, int points, bool halved, const Root* roots) {
  const Root a = z[k < points ? k : 0];
  if (!halved) return a.re * a.re + a.im * a.im;
  const Root other = z[k == 0 || k == points ? 0 : points - k];
  return 0.25f * doubled_power(a, {other.re, -other.im}, roots[k]);
}

template <class Sample>
SER_FAST_KERNEL void spectrogram(SpectrogramGpu<Sample> a) {
  const SpectrogramShape& shape = a.shape;
  const SpectrogramPlan& plan = a.plan;
  const int64_t b = block() / plan.tiles, first = block() % plan.tiles * static_cast<int64_t>(plan.frames);
  const int64_t length = row_length(a, b), count = shape.frame_count(length);
  const bool halved = shape.n_fft % 2 == 0;
  const int step = halved ? 2 : 1, window = static_cast<int>(shape.window_length);
  Root* in = shared<Root>();
  Root* out = in + plan.frames * plan.points;
  const Sample* row = a.wave + b * a.row_stride;
  const Pad pad = shape.center ? shape.pad : Pad::kZero;

  if (first < count) {  // uniform over the block
    const auto frames = [&](int frame) {
      return Windowed<Sample>{row, a.window, (first + frame) * shape.hop + shape.origin(), length,
                              first + frame < count ? window : 0, pad, halved};
    };
    const int radix = plan.radix[0];
    if (radix == 1) first_pass<1>(frames, in, plan);
    if (radix == 2) first_pass<2>(frames, in, plan);
    if (radix == 3) first_pass<3>(frames, in, plan);
    if (radix == 4) first_pass<4>(frames, in, plan);
    if (radix == 5) first_pass<5>(frames, in, plan);
    if (radix == 8) first_pass<8>(frames, in, plan);
    barrier();
    for (int p = 1; p < plan.passes; ++p) {
      if (plan.radix[p] == 2) pass<2>(in, out, a.roots, plan, p, step);
      if (plan.radix[p] == 3) pass<3>(in, out, a.roots, plan, p, step);
      if (plan.radix[p] == 4) pass<4>(in, out, a.roots, plan, p, step);
      if (plan.radix[p] == 5) pass<5>(in, out, a.roots, plan, p, step);
      if (plan.radix[p] == 8) pass<8>(in, out, a.roots, plan, p, step);
      barrier();
      Root* swapped = in;
      in = out;
      out = swapped;
    }
  }

  const int bins = static_cast<int>(shape.bins), first_bin = static_cast<int>(shape.first_bin);
  const auto value = [&](int at) {
    const int f = plan.bins(at), bin = at - f * bins;
    if (first + f >= count) return 0.0f;
    float x = power(in + f * plan.points, first_bin + bin, plan.points, halved, a.roots);
    if (a.log) x = logarithm(x < a.floor ? a.floor : x);
    if (a.mean) x -= a.mean[bin];
    return a.std ? x / a.std[bin] : x;
  };
  // The block's output is contiguous: 16-byte stores between its first and last multiple of 16 bytes, single values
  // outside.
  const int64_t left = shape.frames - first;
  const int whole = static_cast<int>(left < plan.frames ? left : plan.frames) * bins;
  float* to = a.out + (b * shape.frames + first) * bins;
  const int misplaced = static_cast<int>(reinterpret_cast<uintptr_t>(to) / sizeof(float) % 4);
  const int head = misplaced ? (whole < 4 - misplaced ? whole : 4 - misplaced) : 0, tail = head + (whole - head) / 4 * 4;
  for (int at = head + 4 * thread(); at < tail; at += 4 * plan.threads)
    *reinterpret_cast<Pack<float>*>(to + at) = {{value(at), value(at + 1), value(at + 2), value(at + 3)}};
  if (thread() < head) to[thread()] = value(thread());
  if (tail + thread() < whole) to[tail + thread()] = value(tail + thread());
}

// The sizes with kernels of their own: the papers' and CGRU's.
using Sizes = std::tuple<WarpSize<25, 32, 10>, WarpSize<16, 16, 13>>;

// Calls with(Size, number) for each size, numbers from 1 on.
template <class With, size_t... I>
void for_sizes(const With& with, std::index_sequence<I...>) {
  (with(std::tuple_element_t<I, Sizes>(), static_cast<int>(I) + 1), ...);
}
constexpr auto kSizes = std::make_index_sequence<std::tuple_size_v<Sizes>>();

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
  const auto divisor = [](int64_t by) {
    return Divisor{static_cast<uint32_t>(by), static_cast<uint32_t>(((int64_t{1} << 32) + by - 1) / by)};
  };
  for (int64_t p = 0, done = 1; p < plan.passes; done *= plan.radix[p++]) {
    plan.count[p] = divisor(points / plan.radix[p]);
    plan.done[p] = divisor(done);
  }
  plan.bins = divisor(shape.bins);
  plan.shared = plan.frames * bytes;
  for_sizes([&]<class Size>(Size, int number) {
    if (!Size::fits(shape)) return;
    // Up to 8 frames for each warp, fewer where a large GPU would have too few blocks.
    constexpr int64_t kBlocks = 1024, kMost = 8;
    const int64_t turn = Size::kWarps * Size::kFrames, turns = (shape.frames + turn - 1) / turn;
    int64_t each = turns < kMost ? turns : kMost;
    while (each > 1 && shape.batch * ((turns + each - 1) / each) < kBlocks) each /= 2;
    plan.size = number;
    plan.frames = static_cast<int>(turn * each);
    plan.tiles = static_cast<int>((shape.frames + plan.frames - 1) / plan.frames);
    plan.threads = Size::kThreads;
    plan.shared = sizeof(WarpMemory<Size>);
  }, kSizes);
  return plan;
}

template <class Sample>
int power_spectrogram_forward_cuda(const SpectrogramGpu<Sample>& args, Stream stream) {
  const int blocks = static_cast<int>(args.shape.batch * args.plan.tiles);
  auto kernel = spectrogram<Sample>;
  for_sizes([&]<class Size>(Size, int number) {
    if (args.plan.size == number)
      kernel = args.log ? spectrogram_by_warps<Sample, Size, true> : spectrogram_by_warps<Sample, Size, false>;
  }, kSizes);
  return launch(kernel, blocks, args.plan.threads, args.plan.shared, stream, args);
}

template int power_spectrogram_forward_cuda<float>(const SpectrogramGpu<float>&, Stream);
template int power_spectrogram_forward_cuda<int16_t>(const SpectrogramGpu<int16_t>&, Stream);

}  // namespace ser_fast
