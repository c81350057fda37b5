// gru_layer_backward on CPU: checks, allocation, dispatch on the dtype.
#include "gru_layer.h"

#include <tuple>

namespace ser_fast {
namespace {

#ifndef SER_FAST_HOST

// Gradients that are not wanted have shape [0].
std::tuple<Tensor, std::vector<Tensor>, Tensor> gru_layer_backward(
    const Tensor& grad_y, const Tensor& grad_h_n, const Tensor& x, const std::vector<Tensor>& weights,
    const std::optional<Tensor>& h0, const std::optional<Tensor>& lengths, const Tensor& gates, const Tensor& states,
    bool biased, bool reset_after, bool batch_first, bool needs_x, const std::vector<bool>& needs_weights) {
  const Checks checks("gru_layer_backward", "x", x);
  checks.dtype("x", x, {ScalarType::Float, ScalarType::Double});
  const LayerCall call = checked_layer(checks, x, weights, h0, lengths, biased, reset_after, batch_first);
  const int64_t B = call.shape.batch, D = call.shape.directions, H = call.shape.hidden, N = call.total;
  const ScalarType type = x.scalar_type();
  checks.operand("grad_y", grad_y, type, call.sizes(D * H), "y's shape");
  checks.operand("grad_h_n", grad_h_n, type, {D, B, H}, "[D, B, H]");
  checks.operand("gates", gates, type, {N, D, 4 * H}, "[N, D, 4H]");
  checks.operand("states", states, type, {N, D, H}, "[N, D, H]");
  checks.require(needs_weights.size() == weights.size(),
                 "needs_weights has " + std::to_string(needs_weights.size()) + " values",
                 "one for each weight, " + std::to_string(weights.size()));
  const Tensor dense_grad = dense_frames(checks, "grad_y", grad_y), dense_h_n = checks.contiguous("grad_h_n", grad_h_n);
  const Tensor dense_gates = checks.contiguous("gates", gates), dense_states = checks.contiguous("states", states);
  const Tensor grad_x = checks.empty("grad_x", x, needs_x ? sizes_of(x) : Sizes{0});
  const Tensor grad_h0 = checks.empty("grad_h0", x, Sizes{D, B, H});
  std::vector<Tensor> grads;
  for (size_t i = 0; i < weights.size(); ++i)
    grads.push_back(checks.empty("a weight's gradient", x, needs_weights[i] ? sizes_of(weights[i]) : Sizes{0}));
  const Tensor scratch = checks.empty("the gates' gradients", x, Sizes{N, D, reset_after ? 4 * H : 3 * H});
  with_type(type, [&](auto zero) {
    using T = decltype(zero);
    GruLayerBackward<T> args = {
        call.shape, call.features, call.frames<const T>(call.x), call.frames<const T>(dense_grad),
        pointer<T>(dense_h_n), {}, pointer<T>(call.h0), pointer<int64_t>(call.lengths),
        call.saved<const T>(dense_gates, D * 4 * H), call.saved<const T>(dense_states, D * H),
        needs_x ? call.frames<T>(grad_x) : Frames<T>{}, {}, mutable_pointer<T>(grad_h0), mutable_pointer<T>(scratch),
        mutable_pointer<T>(scratch) + (reset_after ? N * D * 3 * H : 0)};
    const int64_t each = biased ? 4 : 2;
    for (int64_t d = 0; d < D; ++d) {
      const auto part = [&](int64_t i) {
        return i < each && needs_weights[d * each + i] ? mutable_pointer<T>(grads[d * each + i]) : nullptr;
      };
      args.weights[d] = weights_at<T>(call.weights, biased, d);
      args.gradients[d] = {part(0), part(1), part(2), part(3)};
    }
    checks.run([&] { gru_layer_backward_cpu<T>(args, torch_threads()); });
  });
  return {grad_x, grads, grad_h0};
}

STABLE_TORCH_LIBRARY_IMPL(ser_fast, CPU, m) { m.impl("gru_layer_backward", TORCH_BOX(&gru_layer_backward)); }

#endif

}  // namespace
}  // namespace ser_fast
