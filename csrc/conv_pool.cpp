// conv_pool and its backward, ser_fast::* on CPU: checks, allocation, dispatch.
#include "../kernels/conv_pool.h"

#include <tuple>

#include "boundary.h"

#ifndef SER_FAST_HOST

namespace ser_fast {
namespace {

// Checked inputs, in the layout that the kernels require.
struct Operands {
  ConvPoolShape shape;
  PooledStrides pooled;
  Tensor x, weight;
  std::optional<Tensor> lengths;

  Sizes output() const { return {shape.batch, shape.pooled_frames(), shape.pooled_bins(), shape.filters}; }
  ImageStrides strides() const { return {x.stride(0), x.stride(1), x.stride(2)}; }
};

Operands checked(const Checks& checks, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& lengths,
                 bool channels_last) {
  checks.dtype("x", x, {ScalarType::Float, ScalarType::Double});
  const Sizes image = sizes_of(x);
  checks.require(image.size() == 4 && image[0] > 0 && image[1] > 0 && image[2] > 0 && image[3] > 0,
                 "x has shape " + text(image), "[B, T, F, C] with no size 0");
  checks.device("weight", weight);
  checks.dtype("weight", weight, {x.scalar_type()});
  const Sizes filter = sizes_of(weight);
  const int64_t C = image[3], fewest = C < kMostPositions ? 1 : C - kMostPositions + 1;
  checks.require(filter.size() == 4 && filter[0] > 0 && filter[1] >= fewest && filter[1] <= C && filter[2] % 2 == 1 &&
                     filter[3] % 2 == 1,
                 "weight has shape " + text(filter),
                 "[O, K, kt, kf] with K in " + std::to_string(fewest) + ".." + std::to_string(C) +
                     " and kt and kf odd");
  const ConvPoolShape shape = {image[0], image[1], image[2], C, filter[0], filter[1], filter[2], filter[3]};
  const bool dense = C == 1 || x.stride(3) == 1;
  return {shape, channels_last ? PooledStrides{shape.filters, 1} : PooledStrides{1, shape.pooled_bins()},
          dense ? x : checks.contiguous("x", x), checks.contiguous("weight", weight),
          checks.lengths(lengths, shape.batch, shape.frames)};
}

template <class T>
void run_forward(const Operands& given, const std::optional<Tensor>& bias, const Tensor& y, const Tensor& winners) {
  conv_pool_forward_cpu<T>({given.shape, pointer<T>(given.x), given.strides(), pointer<T>(given.weight),
                            pointer<T>(bias), pointer<int64_t>(given.lengths), mutable_pointer<T>(y), given.pooled,
                            mutable_pointer<uint8_t>(winners)},
                           torch_threads());
}

std::tuple<Tensor, Tensor> conv_pool(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                                     const std::optional<Tensor>& lengths, bool channels_last) {
  const Checks checks("conv_pool", "x", x);
  const Operands given = checked(checks, x, weight, lengths, channels_last);
  if (bias) checks.operand("bias", *bias, x.scalar_type(), {given.shape.filters}, "[O]");
  Sizes sizes = given.output();
  const Tensor winners = checks.empty("winners", x, sizes, ScalarType::Byte);
  if (!channels_last) std::swap(sizes[2], sizes[3]);
  const Tensor y = checks.empty("y", x, sizes);
  const auto run = x.scalar_type() == ScalarType::Float ? run_forward<float> : run_forward<double>;
  checks.run([&] { run(given, checks.contiguous("bias", bias), y, winners); });
  return {y, winners};
}

template <class T>
void run_backward(const Operands& given, const Tensor& grad, const Tensor& winners,
                  const std::optional<Tensor>& grad_x, const Tensor& grad_weight, const Tensor& grad_bias) {
  conv_pool_backward_cpu<T>({given.shape, pointer<T>(grad), given.pooled, pointer<T>(given.x), given.strides(),
                             pointer<T>(given.weight), pointer<uint8_t>(winners), pointer<int64_t>(given.lengths),
                             grad_x ? mutable_pointer<T>(*grad_x) : nullptr, mutable_pointer<T>(grad_weight),
                             mutable_pointer<T>(grad_bias)},
                            torch_threads());
}

std::tuple<Tensor, Tensor, Tensor> conv_pool_backward(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                                      const Tensor& winners, const std::optional<Tensor>& lengths,
                                                      bool channels_last, bool needs_grad_x) {
  const Checks checks("conv_pool_backward", "x", x);
  const Operands given = checked(checks, x, weight, lengths, channels_last);
  Sizes sizes = given.output();
  checks.operand("winners", winners, ScalarType::Byte, sizes, "[B, T', F', O]");
  if (!channels_last) std::swap(sizes[2], sizes[3]);
  checks.operand("grad", grad, x.scalar_type(), sizes, channels_last ? "[B, T', F', O]" : "[B, T', O, F']");
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
