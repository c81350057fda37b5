// conv_pool and its backward, ser_fast::* on CPU: checks, allocation, dispatch.
#include "../kernels/conv_pool.h"

#include <algorithm>
#include <string>
#include <tuple>
#include <vector>

#include "boundary.h"

#ifndef SER_FAST_HOST

namespace ser_fast {
namespace {

// Checked inputs, in the layout that the kernels require.
struct Operands {
  ConvPoolShape shape;
  PooledStrides pooled;
  ImageStrides strides;
  Tensor x, weight;
  std::optional<Tensor> lengths;
  bool packed;
  Sizes frames;  // sizes of y before a frame's: [B, T'] or packed [N']

  // Sizes of y, or of the winners.
  Sizes output(bool channels_last) const {
    Sizes sizes = frames;
    sizes.push_back(channels_last ? shape.pooled_bins() : shape.filters);
    sizes.push_back(channels_last ? shape.filters : shape.pooled_bins());
    return sizes;
  }
};

Operands checked(const Checks& checks, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& lengths,
                 bool channels_last, std::optional<int64_t> pooled_frames) {
  checks.dtype("x", x, {ScalarType::Float, ScalarType::Double});
  const Sizes image = sizes_of(x);
  const bool packed = image.size() == 3 && lengths;
  bool good = packed || image.size() == 4;
  for (const int64_t size : image) good = good && size > 0;
  checks.require(good, "x has shape " + text(image), "[B, T, F, C], or packed [N, F, C] with lengths, with no size 0");
  const int64_t last = static_cast<int64_t>(image.size()) - 1, C = image[last];
  checks.device("weight", weight);
  checks.dtype("weight", weight, {x.scalar_type()});
  const Sizes filter = sizes_of(weight);
  const int64_t fewest = C < kMostPositions ? 1 : C - kMostPositions + 1;
  checks.require(filter.size() == 4 && filter[0] > 0 && filter[1] >= fewest && filter[1] <= C && filter[2] % 2 == 1 &&
                     filter[3] % 2 == 1,
                 "weight has shape " + text(filter),
                 "[O, K, kt, kf] with K in " + std::to_string(fewest) + ".." + std::to_string(C) +
                     " and kt and kf odd");
  if (packed) checks.require(lengths->dim() == 1, "lengths has shape " + text(sizes_of(*lengths)), "[B]");
  const int64_t B = packed ? lengths->size(0) : image[0], T = image[packed ? 0 : 1];
  const std::optional<Tensor> whole = checks.lengths(lengths, B, T);
  const int64_t* valid = pointer<int64_t>(whole);

  Operands given = {{B, T, image[last - 1], C, filter[0], filter[1], filter[2], filter[3]},
                    {},
                    {},
                    C == 1 || x.stride(last) == 1 ? x : checks.contiguous("x", x),
                    checks.contiguous("weight", weight),
                    whole,
                    packed,
                    {B, (T + 1) / 2}};
  given.pooled = channels_last ? PooledStrides{given.shape.filters, 1} : PooledStrides{1, given.shape.pooled_bins()};
  given.strides = {given.x.stride(last - 2), given.x.stride(last - 1)};
  if (!packed) {
    checks.require(!pooled_frames, "pooled_frames is " + std::to_string(pooled_frames.value_or(0)),
                   "None, since x is padded");
    return given;
  }
  int64_t frames = 0, pooled = 0, longest = 0;
  for (int64_t b = 0; b < B; ++b) {
    frames += valid[b];
    pooled += (valid[b] + 1) / 2;
    longest = std::max(longest, valid[b]);
  }
  checks.require(frames == T, "lengths add up to " + std::to_string(frames),
                 "the packed frames, " + std::to_string(T));
  checks.require(pooled_frames == pooled,
                 "pooled_frames is " + (pooled_frames ? std::to_string(*pooled_frames) : "None"),
                 "the sum of ceil(lengths / 2), " + std::to_string(pooled));
  given.shape.frames = longest;
  given.frames = {pooled};
  return given;
}

// The rows' places; made when the outputs have been allocated, which fails for an absurd B.
std::vector<ConvPoolRow> rows_of(const Operands& given) {
  const auto& shape = given.shape;
  const int64_t* valid = pointer<int64_t>(given.lengths);
  std::vector<ConvPoolRow> rows(shape.batch);
  int64_t frame = 0, pooled = 0;
  for (int64_t b = 0; b < shape.batch; ++b) {
    const int64_t length = valid ? valid[b] : shape.frames, frames = given.packed ? length : shape.frames;
    rows[b] = {given.packed ? frame * given.strides.frame : b * given.x.stride(0), frame, pooled, frames, length};
    frame += frames;
    pooled += (frames + 1) / 2;
  }
  return rows;
}

template <class T>
void run_forward(const Operands& given, const std::optional<Tensor>& bias, const Tensor& y, const Tensor& winners) {
  const std::vector<ConvPoolRow> rows = rows_of(given);
  conv_pool_forward_cpu<T>({given.shape, rows.data(), pointer<T>(given.x), given.strides,
                            pointer<T>(given.weight), pointer<T>(bias), mutable_pointer<T>(y), given.pooled,
                            mutable_pointer<uint8_t>(winners)},
                           torch_threads());
}

std::tuple<Tensor, Tensor> conv_pool(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                                     const std::optional<Tensor>& lengths, bool channels_last,
                                     std::optional<int64_t> pooled_frames) {
  const Checks checks("conv_pool", "x", x);
  const Operands given = checked(checks, x, weight, lengths, channels_last, pooled_frames);
  if (bias) checks.operand("bias", *bias, x.scalar_type(), {given.shape.filters}, "[O]");
  const Tensor winners = checks.empty("winners", x, given.output(true), ScalarType::Byte);
  const Tensor y = checks.empty("y", x, given.output(channels_last));
  const auto run = x.scalar_type() == ScalarType::Float ? run_forward<float> : run_forward<double>;
  checks.run([&] { run(given, checks.contiguous("bias", bias), y, winners); });
  return {y, winners};
}

template <class T>
void run_backward(const Operands& given, const Tensor& grad, const Tensor& winners,
                  const std::optional<Tensor>& grad_x, const Tensor& grad_weight, const Tensor& grad_bias) {
  const std::vector<ConvPoolRow> rows = rows_of(given);
  conv_pool_backward_cpu<T>({given.shape, rows.data(), pointer<T>(grad), given.pooled,
                             pointer<T>(given.x), given.strides, pointer<T>(given.weight),
                             pointer<uint8_t>(winners), grad_x ? mutable_pointer<T>(*grad_x) : nullptr,
                             mutable_pointer<T>(grad_weight), mutable_pointer<T>(grad_bias)},
                            torch_threads());
}

std::tuple<Tensor, Tensor, Tensor> conv_pool_backward(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                                      const Tensor& winners, const std::optional<Tensor>& lengths,
                                                      bool channels_last, std::optional<int64_t> pooled_frames,
                                                      bool needs_grad_x) {
  const Checks checks("conv_pool_backward", "x", x);
  const Operands given = checked(checks, x, weight, lengths, channels_last, pooled_frames);
  const std::string frames = x.dim() == 3 ? "[N', " : "[B, T', ";
  checks.operand("winners", winners, ScalarType::Byte, given.output(true), (frames + "F', O]").c_str());
  checks.operand("grad", grad, x.scalar_type(), given.output(channels_last),
                 (frames + (channels_last ? "F', O]" : "O, F']")).c_str());
  const Tensor grad_x = checks.empty("grad_x", x, needs_grad_x ? sizes_of(x) : Sizes{0});
  const Tensor grad_weight = checks.empty("grad_weight", x, sizes_of(weight));
  const Tensor grad_bias = checks.empty("grad_bias", x, Sizes{given.shape.filters});
  const auto run = x.scalar_type() == ScalarType::Float ? run_backward<float> : run_backward<double>;
  checks.run([&] {
    run(given, checks.contiguous("grad", grad), checks.contiguous("winners", winners),
        needs_grad_x ? std::optional(grad_x) : std::nullopt, grad_weight, grad_bias);
  });
  return {grad_x, grad_weight, grad_bias};
}

STABLE_TORCH_LIBRARY_IMPL(ser_fast, CPU, m) {
  m.impl("conv_pool", TORCH_BOX(&conv_pool));
  m.impl("conv_pool_backward", TORCH_BOX(&conv_pool_backward));
}

}  // namespace
}  // namespace ser_fast

#endif
