// power_spectrogram, ser_fast::* on CPU and ser_fast_cuda::* on CUDA: checks, allocation, dispatch on the dtype.
#include "../kernels/power_spectrogram.h"

#include <atomic>
#include <cmath>
#include <limits>

#include "boundary.h"

namespace ser_fast {
namespace {

Pad parse_pad(const Checks& checks, bool center, const std::string& mode) {
  checks.require(mode == "reflect" || mode == "constant" || mode == "replicate" || mode == "circular",
                 "pad_mode is '" + mode + "'", "'reflect', 'constant', 'replicate' or 'circular'");
  if (!center || mode == "constant") return Pad::kZero;
  return mode == "reflect" ? Pad::kReflect : mode == "replicate" ? Pad::kReplicate : Pad::kCircular;
}

void check_number(const Checks& checks, const char* name, int64_t value, int64_t low, int64_t high) {
  checks.require(value >= low && value <= high, std::string(name) + " is " + std::to_string(value),
                 "in " + std::to_string(low) + ".." + std::to_string(high));
}

// Checked inputs, in the layout that the kernels of both devices require.
struct Operands {
  SpectrogramShape shape;
  Tensor wave, window;
  std::optional<Tensor> lengths, mean, std;
  bool log;
  double floor;

  Sizes sizes() const { return {shape.batch, shape.frames, shape.bins}; }
};

Operands checked(const Checks& checks, const Tensor& wave, const Tensor& window, int64_t n_fft, int64_t hop_length,
                 int64_t bin_begin, int64_t bin_end, const std::optional<Tensor>& lengths,
                 const std::optional<Tensor>& mean, const std::optional<Tensor>& std, bool log, double floor,
                 bool center, const std::string& pad_mode) {
  constexpr int64_t kLongest = int64_t{1} << 30;
  if (checks.cuda()) checks.dtype("wave", wave, {ScalarType::Float, ScalarType::Short});
  else checks.dtype("wave", wave, {ScalarType::Float, ScalarType::Double, ScalarType::Short});
  const Sizes sizes = sizes_of(wave);
  checks.require(sizes.size() == 2 && sizes[0] > 0 && sizes[1] > 0, "wave has shape " + text(sizes),
                 "[B, N] with no size 0");
  check_number(checks, "n_fft", n_fft, 1, kLongest);
  check_number(checks, "hop_length", hop_length, 1, kLongest);
  check_number(checks, "bin_begin", bin_begin, 0, n_fft / 2);
  check_number(checks, "bin_end", bin_end, bin_begin + 1, n_fft / 2 + 1);
  checks.device("window", window);
  const ScalarType type = wave.scalar_type() == ScalarType::Short ? ScalarType::Float : wave.scalar_type();
  checks.dtype("window", window, {type});
  const Sizes window_sizes = sizes_of(window);
  checks.require(window_sizes.size() == 1 && window_sizes[0] > 0 && window_sizes[0] <= n_fft,
                 "window has shape " + text(window_sizes), "[W] with W in 1.." + std::to_string(n_fft));
  SpectrogramShape shape = {sizes[0], sizes[1], 0, n_fft, window_sizes[0], hop_length, bin_begin,
                            bin_end - bin_begin, center, parse_pad(checks, center, pad_mode)};
  shape.frames = shape.frame_count(shape.samples);
  if (mean) checks.operand("mean", *mean, type, {shape.bins}, "[F]");
  if (std) checks.operand("std", *std, type, {shape.bins}, "[F]");
  const bool single = type == ScalarType::Float;
  const double least = single ? std::numeric_limits<float>::min() : std::numeric_limits<double>::min();
  const double most = single ? std::numeric_limits<float>::max() : std::numeric_limits<double>::max();
  checks.require(!log || (floor >= least && floor <= most), "floor is " + std::to_string(floor),
                 "a normal positive number of the window's dtype, for a logarithm");
  const bool dense = sizes[1] == 1 || wave.stride(1) == 1;
  return {shape, dense ? wave : checks.contiguous("wave", wave), checks.contiguous("window", window),
          checks.lengths(lengths, shape.batch, shape.samples), checks.contiguous("mean", mean),
          checks.contiguous("std", std), log, floor};
}

void check_out(const Checks& checks, const Operands& given, const Tensor& out) {
  checks.operand("out", out, given.window.scalar_type(), given.sizes(), "[B, T, F]");
  checks.require(out.is_contiguous(), "out is strided", "contiguous");
  checks.apart("wave", given.wave, out);
  checks.apart("window", given.window, out);
  checks.apart("lengths", given.lengths, out);
  checks.apart("mean", given.mean, out);
  checks.apart("std", given.std, out);
}

#ifndef SER_FAST_HOST

// As in torch.stft, to pad p samples at each end reflect needs rows of more than p samples, circular of at least p.
void check_padding(const Checks& checks, const SpectrogramShape& shape, const int64_t* lengths) {
  const int64_t padding = shape.n_fft / 2;
  if (shape.pad != Pad::kReflect && shape.pad != Pad::kCircular) return;
  const int64_t shortest = shape.pad == Pad::kReflect ? padding + 1 : padding;
  for (int64_t b = 0; b < shape.batch; ++b) {
    const int64_t length = lengths ? lengths[b] : shape.samples;
    checks.require(length == 0 || length >= shortest, "row " + std::to_string(b) + " of wave has " +
                   std::to_string(length) + " samples", "empty or at least " + std::to_string(shortest) +
                   " samples long to be padded by n_fft / 2 at each end");
  }
}

template <class T>
void check_finite(const Checks& checks, const Tensor& wave, const int64_t* lengths) {
  std::atomic<int64_t> bad = wave.size(0);
  const T* rows = pointer<T>(wave);
  torch_threads().worth(wave.size(0) * wave.size(1) / 8.0)(wave.size(0), [&](int64_t b) {
    if (!finite_cpu(rows + b * wave.stride(0), lengths ? lengths[b] : wave.size(1))) bad = b;
  });
  if (bad == wave.size(0)) return;
  const T* row = rows + bad * wave.stride(0);
  int64_t n = 0;
  while (std::isfinite(row[n])) ++n;
  checks.require(false, "wave[" + std::to_string(bad) + ", " + std::to_string(n) + "] is " + std::to_string(row[n]),
                 "finite");
}

template <class Sample, class T>
void run_forward(const Operands& given, const Tensor& out) {
  power_spectrogram_forward_cpu<Sample, T>(
      {given.shape, pointer<Sample>(given.wave), given.wave.stride(0), pointer<T>(given.window),
       pointer<int64_t>(given.lengths), pointer<T>(given.mean), pointer<T>(given.std), given.log,
       static_cast<T>(given.floor), mutable_pointer<T>(out)},
      torch_threads());
}

// Checks the values, then runs the kernel.
void run(const Checks& checks, const Operands& given, const Tensor& out) {
  const int64_t* lengths = pointer<int64_t>(given.lengths);
  check_padding(checks, given.shape, lengths);
  const ScalarType type = given.wave.scalar_type();
  if (type == ScalarType::Float) check_finite<float>(checks, given.wave, lengths);
  if (type == ScalarType::Double) check_finite<double>(checks, given.wave, lengths);
  checks.run([&] {
    if (type == ScalarType::Short) run_forward<int16_t, float>(given, out);
    if (type == ScalarType::Float) run_forward<float, float>(given, out);
    if (type == ScalarType::Double) run_forward<double, double>(given, out);
  });
}

Tensor power_spectrogram(const Tensor& wave, const Tensor& window, int64_t n_fft, int64_t hop_length,
                         int64_t bin_begin, int64_t bin_end, const std::optional<Tensor>& lengths,
                         const std::optional<Tensor>& mean, const std::optional<Tensor>& std, bool log,
                         double floor, bool center, const std::string& pad_mode) {
  const Checks checks("power_spectrogram", "wave", wave);
  const Operands given = checked(checks, wave, window, n_fft, hop_length, bin_begin, bin_end, lengths, mean, std, log,
                                 floor, center, pad_mode);
  const Tensor out = checks.empty("the spectrogram", window, given.sizes());
  run(checks, given, out);
  return out;
}

void power_spectrogram_out(const Tensor& wave, const Tensor& window, int64_t n_fft, int64_t hop_length,
                           int64_t bin_begin, int64_t bin_end, const std::optional<Tensor>& lengths,
                           const std::optional<Tensor>& mean, const std::optional<Tensor>& std, bool log,
                           double floor, bool center, const std::string& pad_mode, const Tensor& out) {
  const Checks checks("power_spectrogram", "wave", wave);
  const Operands given = checked(checks, wave, window, n_fft, hop_length, bin_begin, bin_end, lengths, mean, std, log,
                                 floor, center, pad_mode);
  check_out(checks, given, out);
  run(checks, given, out);
}

STABLE_TORCH_LIBRARY_IMPL(ser_fast, CPU, m) {
  m.impl("power_spectrogram", TORCH_BOX(&power_spectrogram));
  m.impl("power_spectrogram_out", TORCH_BOX(&power_spectrogram_out));
}

#endif
#ifdef SER_FAST_WITH_CUDA

template <class Sample>
int run_cuda(const Operands& given, const SpectrogramPlan& plan, const Tensor& roots, const Tensor& out,
             void* stream) {
  return power_spectrogram_forward_cuda<Sample>(
      {given.shape, plan, pointer<Sample>(given.wave), given.wave.stride(0), pointer<float>(given.window),
       pointer<Root>(roots), pointer<int64_t>(given.lengths), pointer<float>(given.mean), pointer<float>(given.std),
       given.log, static_cast<float>(given.floor), mutable_pointer<float>(out)},
      stream);
}

void power_spectrogram_on_cuda(const Tensor& wave, const Tensor& window, int64_t n_fft, int64_t hop_length,
                               int64_t bin_begin, int64_t bin_end, const std::optional<Tensor>& lengths,
                               const std::optional<Tensor>& mean, const std::optional<Tensor>& std, bool log,
                               double floor, bool center, const std::string& pad_mode, const Tensor& roots,
                               const Tensor& out) {
  const Checks checks("power_spectrogram", "wave", wave, Side::kCuda);
  const Operands given = checked(checks, wave, window, n_fft, hop_length, bin_begin, bin_end, lengths, mean, std, log,
                                 floor, center, pad_mode);
  checks.operand("roots", roots, ScalarType::Float, {n_fft, 2}, "[n_fft, 2]");
  check_out(checks, given, out);
  checks.apart("roots", roots, out);
  const SpectrogramPlan plan = spectrogram_plan(given.shape);
  checks.require(plan.passes > 0, "n_fft is " + std::to_string(n_fft),
                 "a product of 2, 3 and 5 whose transform fits in a block's shared memory");
  const auto run = wave.scalar_type() == ScalarType::Short ? run_cuda<int16_t> : run_cuda<float>;
  const Tensor dense_roots = checks.contiguous("roots", roots);
  checks.require(reinterpret_cast<uintptr_t>(pointer<float>(dense_roots)) % alignof(Root) == 0,
                 "roots begins between two multiples of 8 bytes", "aligned to them");
  const Launch launch(checks, wave);
  launch.check(run(given, plan, dense_roots, out, launch.stream));
}

STABLE_TORCH_LIBRARY_IMPL(ser_fast_cuda, SER_FAST_CUDA_KEY, m) {
  m.impl("power_spectrogram", TORCH_BOX(&power_spectrogram_on_cuda));
}

#endif

}  // namespace
}  // namespace ser_fast
