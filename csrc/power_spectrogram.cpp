// ser_fast::power_spectrogram on CPU: checks, allocation, dispatch on the dtype.
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

SpectrogramShape checked_shape(const Checks& checks, const Tensor& wave, const Tensor& window, int64_t n_fft,
                               int64_t hop_length, int64_t bin_begin, int64_t bin_end, bool center,
                               const std::string& pad_mode) {
  constexpr int64_t kLongest = int64_t{1} << 30;
  const ScalarType type = wave.scalar_type();
  checks.cpu("wave", wave);
  checks.require(type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::Short,
                 "wave has dtype " + text(type), "float32, float64 or int16");
  const Sizes sizes = sizes_of(wave);
  checks.require(sizes.size() == 2 && sizes[0] > 0 && sizes[1] > 0, "wave has shape " + text(sizes),
                 "[B, N] with no size 0");
  check_number(checks, "n_fft", n_fft, 1, kLongest);
  check_number(checks, "hop_length", hop_length, 1, kLongest);
  check_number(checks, "bin_begin", bin_begin, 0, n_fft / 2);
  check_number(checks, "bin_end", bin_end, bin_begin + 1, n_fft / 2 + 1);
  checks.cpu("window", window);
  checks.dtype("window", window, type == ScalarType::Short ? ScalarType::Float : type);
  const Sizes window_sizes = sizes_of(window);
  checks.require(window_sizes.size() == 1 && window_sizes[0] > 0 && window_sizes[0] <= n_fft,
                 "window has shape " + text(window_sizes), "[W] with W in 1.." + std::to_string(n_fft));
  SpectrogramShape shape = {sizes[0], sizes[1], 0, n_fft, window_sizes[0], hop_length, bin_begin,
                            bin_end - bin_begin, center, parse_pad(checks, center, pad_mode)};
  shape.frames = shape.frame_count(shape.samples);
  return shape;
}

// torch.stft refuses to reflect or wrap more samples than there are; so does this, row by row.
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
  torch_threads()(wave.size(0), [&](int64_t b) {
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
void run_forward(const SpectrogramShape& shape, const Tensor& wave, const Tensor& window,
                 const std::optional<Tensor>& lengths, const std::optional<Tensor>& mean,
                 const std::optional<Tensor>& std, bool log, double floor, const Tensor& out) {
  power_spectrogram_forward_cpu<Sample, T>(
      {shape, pointer<Sample>(wave), wave.stride(0), pointer<T>(window), pointer<int64_t>(lengths),
       pointer<T>(mean), pointer<T>(std), log, static_cast<T>(floor), mutable_pointer<T>(out)},
      torch_threads());
}

// Into `given`, or a new tensor without one.
Tensor compute(const Tensor& wave, const Tensor& window, int64_t n_fft, int64_t hop_length,
               int64_t bin_begin, int64_t bin_end, const std::optional<Tensor>& lengths,
               const std::optional<Tensor>& mean, const std::optional<Tensor>& std, bool log, double floor, bool center,
               const std::string& pad_mode, const Tensor* given) {
  const Checks checks("power_spectrogram");
  const SpectrogramShape shape =
      checked_shape(checks, wave, window, n_fft, hop_length, bin_begin, bin_end, center, pad_mode);
  const ScalarType type = window.scalar_type();
  if (mean) checks.operand("mean", *mean, type, {shape.bins}, "[F]");
  if (std) checks.operand("std", *std, type, {shape.bins}, "[F]");
  const double least = type == ScalarType::Float ? std::numeric_limits<float>::min() : std::numeric_limits<double>::min();
  checks.require(!log || floor >= least, "floor is " + std::to_string(floor),
                 "a normal positive number of the window's dtype, for a logarithm");
  const std::optional<Tensor> whole_lengths = checks.lengths(lengths, shape.batch, shape.samples);
  const int64_t* length_values = pointer<int64_t>(whole_lengths);
  check_padding(checks, shape, length_values);
  const Sizes sizes = {shape.batch, shape.frames, shape.bins};
  if (given) {
    checks.operand("out", *given, type, sizes, "[B, T, F]");
    checks.require(given->is_contiguous(), "out is strided", "contiguous");
  }
  const Tensor dense = wave.size(1) == 1 || wave.stride(1) == 1 ? wave : torch::stable::contiguous(wave);
  if (wave.scalar_type() == ScalarType::Float) check_finite<float>(checks, dense, length_values);
  if (wave.scalar_type() == ScalarType::Double) check_finite<double>(checks, dense, length_values);

  const Tensor out = given ? *given : torch::stable::new_empty(window, sizes);
  const auto run = wave.scalar_type() == ScalarType::Short ? run_forward<int16_t, float>
                   : type == ScalarType::Float             ? run_forward<float, float>
                                                           : run_forward<double, double>;
  run(shape, dense, torch::stable::contiguous(window), whole_lengths, contiguous(mean), contiguous(std), log,
      floor, out);
  return out;
}

Tensor power_spectrogram(const Tensor& wave, const Tensor& window, int64_t n_fft, int64_t hop_length,
                         int64_t bin_begin, int64_t bin_end, const std::optional<Tensor>& lengths,
                         const std::optional<Tensor>& mean, const std::optional<Tensor>& std, bool log,
                         double floor, bool center, const std::string& pad_mode) {
  return compute(wave, window, n_fft, hop_length, bin_begin, bin_end, lengths, mean, std, log,
                 floor, center, pad_mode, nullptr);
}

void power_spectrogram_out(const Tensor& wave, const Tensor& window, int64_t n_fft, int64_t hop_length,
                           int64_t bin_begin, int64_t bin_end, const std::optional<Tensor>& lengths,
                           const std::optional<Tensor>& mean, const std::optional<Tensor>& std, bool log,
                           double floor, bool center, const std::string& pad_mode, const Tensor& out) {
  compute(wave, window, n_fft, hop_length, bin_begin, bin_end, lengths, mean, std, log, floor,
          center, pad_mode, &out);
}

STABLE_TORCH_LIBRARY_IMPL(ser_fast, CPU, m) {
  m.impl("power_spectrogram", TORCH_BOX(&power_spectrogram));
  m.impl("power_spectrogram_out", TORCH_BOX(&power_spectrogram_out));
}

}  // namespace
}  // namespace ser_fast
