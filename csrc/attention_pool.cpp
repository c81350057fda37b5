// attention_pool and its backward, ser_fast::* on CPU and ser_fast_cuda::* on CUDA: checks, allocation, dispatch.
#include "../kernels/attention_pool.h"

#include <tuple>

#include "boundary.h"

namespace ser_fast {
namespace {

// Checked inputs, in the layout that the kernels of both devices require.
struct Operands {
  PoolShape shape;
  Tensor h, w;
  std::optional<Tensor> lengths;
};

struct BackwardOperands : Operands {
  Tensor grad_pooled, pooled, weights;
  std::optional<Tensor> grad_weights;
};

Operands checked(const Checks& checks, const Tensor& h, const Tensor& w, const std::optional<Tensor>& lengths) {
  if (checks.cuda()) checks.dtype("h", h, {ScalarType::Float, ScalarType::Half, ScalarType::BFloat16});
  else checks.dtype("h", h, {ScalarType::Float, ScalarType::Double});
  const Sizes sizes = sizes_of(h);
  checks.require(sizes.size() == 3 && sizes[0] > 0 && sizes[1] > 0 && sizes[2] > 0, "h has shape " + text(sizes),
                 "[B, T, D] with no size 0");
  const auto [B, T, D] = PoolShape{sizes[0], sizes[1], sizes[2]};
  checks.operand("w", w, h.scalar_type(), {D}, "[D]");
  const bool dense = D == 1 || h.stride(2) == 1;
  return {{B, T, D}, dense ? h : checks.contiguous("h", h), checks.contiguous("w", w),
          checks.lengths(lengths, B, T)};
}

BackwardOperands checked(const Checks& checks, const Tensor& grad_pooled, const std::optional<Tensor>& grad_weights,
                         const Tensor& h, const Tensor& w, const Tensor& pooled, const Tensor& weights,
                         const std::optional<Tensor>& lengths) {
  const Operands forward = checked(checks, h, w, lengths);
  const auto [B, T, D] = forward.shape;
  const ScalarType type = h.scalar_type();
  checks.operand("grad_pooled", grad_pooled, type, {B, D}, "[B, D]");
  if (grad_weights) checks.operand("grad_weights", *grad_weights, type, {B, T}, "[B, T]");
  checks.operand("pooled", pooled, type, {B, D}, "[B, D]");
  checks.operand("weights", weights, type, {B, T}, "[B, T]");
  return {forward, checks.contiguous("grad_pooled", grad_pooled), checks.contiguous("pooled", pooled),
          checks.contiguous("weights", weights), checks.contiguous("grad_weights", grad_weights)};
}

#ifndef SER_FAST_HOST

template <class T>
void run_forward(const Operands& given, const Tensor& pooled, const Tensor& weights) {
  attention_pool_forward_cpu<T>({given.shape, pointer<T>(given.h), given.h.stride(0), given.h.stride(1),
                                 pointer<T>(given.w), pointer<int64_t>(given.lengths), mutable_pointer<T>(pooled),
                                 mutable_pointer<T>(weights)},
                                torch_threads());
}

std::tuple<Tensor, Tensor> attention_pool(const Tensor& h, const Tensor& w, const std::optional<Tensor>& lengths) {
  const Checks checks("attention_pool", "h", h);
  const Operands given = checked(checks, h, w, lengths);
  const auto [B, T, D] = given.shape;
  const Tensor pooled = checks.empty("pooled", h, Sizes{B, D});
  const Tensor weights = checks.empty("weights", h, Sizes{B, T});
  const auto run = h.scalar_type() == ScalarType::Float ? run_forward<float> : run_forward<double>;
  checks.run([&] { run(given, pooled, weights); });
  return {pooled, weights};
}

template <class T>
void run_backward(const BackwardOperands& given, const Tensor& grad_h, const Tensor& grad_w) {
  attention_pool_backward_cpu<T>({given.shape, pointer<T>(given.grad_pooled), pointer<T>(given.grad_weights),
                                  pointer<T>(given.h), given.h.stride(0), given.h.stride(1), pointer<T>(given.w),
                                  pointer<T>(given.pooled), pointer<T>(given.weights),
                                  pointer<int64_t>(given.lengths), mutable_pointer<T>(grad_h),
                                  mutable_pointer<T>(grad_w)},
                                 torch_threads());
}

std::tuple<Tensor, Tensor> attention_pool_backward(const Tensor& grad_pooled,
                                                   const std::optional<Tensor>& grad_weights, const Tensor& h,
                                                   const Tensor& w, const Tensor& pooled, const Tensor& weights,
                                                   const std::optional<Tensor>& lengths) {
  const Checks checks("attention_pool_backward", "h", h);
  const BackwardOperands given = checked(checks, grad_pooled, grad_weights, h, w, pooled, weights, lengths);
  const auto [B, T, D] = given.shape;
  const Tensor grad_h = checks.empty("grad_h", h, Sizes{B, T, D});
  const Tensor grad_w = checks.empty("grad_w", h, Sizes{B, D});
  const auto run = h.scalar_type() == ScalarType::Float ? run_backward<float> : run_backward<double>;
  checks.run([&] { run(given, grad_h, grad_w); });
  const Sizes rows = {0};
  return {grad_h, torch::stable::sum(grad_w, rows)};
}

STABLE_TORCH_LIBRARY_IMPL(ser_fast, CPU, m) {
  m.impl("attention_pool", TORCH_BOX(&attention_pool));
  m.impl("attention_pool_backward", TORCH_BOX(&attention_pool_backward));
}

#endif
#ifdef SER_FAST_WITH_CUDA

// 16-byte loads require that every frame and every tensor in `along` begins at a multiple of 16 bytes.
PoolPlan plan_of(const Checks& checks, const Operands& given, std::initializer_list<Tensor> along) {
  const Tensor& h = given.h;
  const int64_t bytes = static_cast<int64_t>(h.element_size());
  bool aligned = true;
  for (const int64_t step : {h.stride(0), h.stride(1), given.shape.width})
    aligned = aligned && step * bytes % 16 == 0;
  for (const Tensor& tensor : along)
    aligned = aligned && reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0;
  const PoolPlan plan = pool_plan(given.shape, static_cast<int>(bytes), aligned);
  checks.require(plan.packs > 0, "h has shape " + text(sizes_of(h)),
                 "[B, T, D] with D at most " + std::to_string(kPoolWidest));
  return plan;
}

std::tuple<Tensor, Tensor> attention_pool_on_cuda(const Tensor& h, const Tensor& w,
                                                  const std::optional<Tensor>& lengths) {
  const Checks checks("attention_pool", "h", h, Side::kCuda);
  const Operands given = checked(checks, h, w, lengths);
  const auto [B, T, D] = given.shape;
  const PoolPlan plan = plan_of(checks, given, {given.h, given.w});
  const Tensor pooled = checks.empty("pooled", h, Sizes{B, D});
  const Tensor weights = checks.empty("weights", h, Sizes{B, T});
  const Tensor scores = checks.empty("scores", h, Sizes{B, T}, ScalarType::Float);
  const Tensor partial = checks.empty("partial", h, Sizes{B, plan.runs, 2 + D}, ScalarType::Float);
  const Launch launch(checks, h);
  launch.check(with_cuda_type(h.scalar_type(), [&](auto type) {
    using S = typename decltype(type)::type;
    return attention_pool_forward_cuda<S>({given.shape, plan, pointer<S>(given.h), given.h.stride(0),
                                           given.h.stride(1), pointer<S>(given.w), pointer<int64_t>(given.lengths),
                                           mutable_pointer<float>(scores), mutable_pointer<float>(partial),
                                           mutable_pointer<S>(pooled), mutable_pointer<S>(weights)},
                                          launch.stream);
  }));
  return {pooled, weights};
}

std::tuple<Tensor, Tensor> attention_pool_backward_on_cuda(const Tensor& grad_pooled,
                                                           const std::optional<Tensor>& grad_weights, const Tensor& h,
                                                           const Tensor& w, const Tensor& pooled,
                                                           const Tensor& weights,
                                                           const std::optional<Tensor>& lengths) {
  const Checks checks("attention_pool_backward", "h", h, Side::kCuda);
  const BackwardOperands given = checked(checks, grad_pooled, grad_weights, h, w, pooled, weights, lengths);
  const auto [B, T, D] = given.shape;
  const PoolPlan plan = plan_of(checks, given, {given.h, given.w, given.grad_pooled, given.pooled});
  const Tensor grad_h = checks.empty("grad_h", h, Sizes{B, T, D});
  const Tensor partial = checks.empty("partial", h, Sizes{B, plan.runs, D}, ScalarType::Float);
  const Launch launch(checks, h);
  launch.check(with_cuda_type(h.scalar_type(), [&](auto type) {
    using S = typename decltype(type)::type;
    return attention_pool_backward_cuda<S>({given.shape, plan, pointer<S>(given.grad_pooled),
                                            pointer<S>(given.grad_weights), pointer<S>(given.h), given.h.stride(0),
                                            given.h.stride(1), pointer<S>(given.w), pointer<S>(given.pooled),
                                            pointer<S>(given.weights), pointer<int64_t>(given.lengths),
                                            mutable_pointer<S>(grad_h), mutable_pointer<float>(partial)},
                                           launch.stream);
  }));
  const Sizes parts = {0, 1};
  return {grad_h, torch::stable::to(torch::stable::sum(partial, parts), h.scalar_type())};
}

STABLE_TORCH_LIBRARY_IMPL(ser_fast_cuda, SER_FAST_CUDA_KEY, m) {
  m.impl("attention_pool", TORCH_BOX(&attention_pool_on_cuda));
  m.impl("attention_pool_backward", TORCH_BOX(&attention_pool_backward_on_cuda));
}

#endif

}  // namespace
}  // namespace ser_fast
