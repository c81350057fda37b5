// ser_fast::attention_pool and its backward on CPU: checks, allocation, dispatch on the dtype.
#include "../kernels/attention_pool.h"

#include <tuple>

#include "boundary.h"

namespace ser_fast {
namespace {

Tensor dense_inside(const Tensor& h) {
  return h.size(2) == 1 || h.stride(2) == 1 ? h : torch::stable::contiguous(h);
}

PoolShape checked_shape(const Checks& checks, const Tensor& h) {
  checks.cpu("h", h);
  checks.floating("h", h);
  const Sizes sizes = sizes_of(h);
  checks.require(sizes.size() == 3 && sizes[0] > 0 && sizes[1] > 0 && sizes[2] > 0, "h has shape " + text(sizes),
                 "[B, T, D] with no size 0");
  return {sizes[0], sizes[1], sizes[2]};
}

template <class T>
void run_forward(const PoolShape& shape, const Tensor& h, const Tensor& w, const std::optional<Tensor>& lengths,
                 const Tensor& pooled, const Tensor& weights) {
  attention_pool_forward_cpu<T>({shape, pointer<T>(h), h.stride(0), h.stride(1), pointer<T>(w),
                                 pointer<int64_t>(lengths), mutable_pointer<T>(pooled),
                                 mutable_pointer<T>(weights)},
                                torch_threads());
}

std::tuple<Tensor, Tensor> attention_pool(const Tensor& h, const Tensor& w, const std::optional<Tensor>& lengths) {
  const Checks checks("attention_pool");
  const PoolShape shape = checked_shape(checks, h);
  const auto [B, T, D] = shape;
  checks.operand("w", w, h.scalar_type(), {D}, "[D]");
  const std::optional<Tensor> whole_lengths = checks.lengths(lengths, B, T);

  const Tensor pooled = torch::stable::new_empty(h, Sizes{B, D});
  const Tensor weights = torch::stable::new_empty(h, Sizes{B, T});
  const auto run = h.scalar_type() == ScalarType::Float ? run_forward<float> : run_forward<double>;
  run(shape, dense_inside(h), torch::stable::contiguous(w), whole_lengths, pooled, weights);
  return {pooled, weights};
}

template <class T>
void run_backward(const PoolShape& shape, const Tensor& grad_pooled, const std::optional<Tensor>& grad_weights,
                  const Tensor& h, const Tensor& w, const Tensor& pooled, const Tensor& weights,
                  const std::optional<Tensor>& lengths, const Tensor& grad_h, const Tensor& grad_w) {
  attention_pool_backward_cpu<T>({shape, pointer<T>(grad_pooled), pointer<T>(grad_weights), pointer<T>(h),
                                  h.stride(0), h.stride(1), pointer<T>(w), pointer<T>(pooled),
                                  pointer<T>(weights), pointer<int64_t>(lengths), mutable_pointer<T>(grad_h),
                                  mutable_pointer<T>(grad_w)},
                                 torch_threads());
}

std::tuple<Tensor, Tensor> attention_pool_backward(const Tensor& grad_pooled,
                                                   const std::optional<Tensor>& grad_weights, const Tensor& h,
                                                   const Tensor& w, const Tensor& pooled, const Tensor& weights,
                                                   const std::optional<Tensor>& lengths) {
  const Checks checks("attention_pool_backward");
  const PoolShape shape = checked_shape(checks, h);
  const auto [B, T, D] = shape;
  const ScalarType type = h.scalar_type();
  checks.operand("grad_pooled", grad_pooled, type, {B, D}, "[B, D]");
  if (grad_weights) checks.operand("grad_weights", *grad_weights, type, {B, T}, "[B, T]");
  checks.operand("w", w, type, {D}, "[D]");
  checks.operand("pooled", pooled, type, {B, D}, "[B, D]");
  checks.operand("weights", weights, type, {B, T}, "[B, T]");
  const std::optional<Tensor> whole_lengths = checks.lengths(lengths, B, T);

  const Tensor grad_h = torch::stable::new_empty(h, Sizes{B, T, D});
  const Tensor grad_w = torch::stable::new_empty(h, Sizes{B, D});
  const auto run = type == ScalarType::Float ? run_backward<float> : run_backward<double>;
  using torch::stable::contiguous;
  run(shape, contiguous(grad_pooled), ser_fast::contiguous(grad_weights), dense_inside(h), contiguous(w),
      contiguous(pooled), contiguous(weights), whole_lengths, grad_h, grad_w);
  const Sizes rows = {0};
  return {grad_h, torch::stable::sum(grad_w, rows)};
}

STABLE_TORCH_LIBRARY_IMPL(ser_fast, CPU, m) {
  m.impl("attention_pool", TORCH_BOX(&attention_pool));
  m.impl("attention_pool_backward", TORCH_BOX(&attention_pool_backward));
}

}  // namespace
}  // namespace ser_fast
