// gru_layer, gru_layer_forward and gru_cell on CPU: checks, allocation, dispatch on the dtype.
#include "gru_layer.h"

#include <tuple>

namespace ser_fast {
namespace {

#ifndef SER_FAST_HOST

// Calls gru_layer_cpu on dense weights; `args` lacks these.
template <class T>
void run(const Checks& checks, GruLayer<T> args, const Weights& dense, bool biased) {
  for (int64_t d = 0; d < args.shape.directions; ++d) args.weights[d] = weights_at<T>(dense, biased, d);
  checks.run([&] { gru_layer_cpu<T>(args, torch_threads()); });
}

// `saved`: gates [N, D, 4H] and states [N, D, H], or none.
std::tuple<Tensor, Tensor> layer(const Checks& checks, const LayerCall& call, const std::vector<Tensor>& saved,
                                 bool biased) {
  const int64_t B = call.shape.batch, D = call.shape.directions, H = call.shape.hidden;
  const Tensor y = checks.empty("y", call.x, call.sizes(D * H));
  const Tensor h_n = checks.empty("h_n", call.x, Sizes{D, B, H});
  with_type(call.x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    Frames<T> gates = {}, states = {};
    if (!saved.empty()) gates = call.saved<T>(saved[0], D * 4 * H), states = call.saved<T>(saved[1], D * H);
    run<T>(checks, {call.shape, call.features, call.frames<const T>(call.x), {}, pointer<T>(call.h0),
                    pointer<int64_t>(call.lengths), call.frames<T>(y), mutable_pointer<T>(h_n), gates, states},
           call.weights, biased);
  });
  return {y, h_n};
}

std::tuple<Tensor, Tensor> gru_layer(const Tensor& x, const std::vector<Tensor>& weights,
                                     const std::optional<Tensor>& h0, const std::optional<Tensor>& lengths,
                                     bool biased, bool reset_after, bool batch_first) {
  const Checks checks("gru_layer", "x", x);
  return layer(checks, checked_layer(checks, x, weights, h0, lengths, biased, reset_after, batch_first), {}, biased);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> gru_layer_forward(const Tensor& x, const std::vector<Tensor>& weights,
                                                             const std::optional<Tensor>& h0,
                                                             const std::optional<Tensor>& lengths, int64_t total,
                                                             bool biased, bool reset_after, bool batch_first) {
  const Checks checks("gru_layer_forward", "x", x);
  const LayerCall call = checked_layer(checks, x, weights, h0, lengths, biased, reset_after, batch_first);
  checks.require(total == call.total, "total is " + std::to_string(total),
                 "the number of valid frames, " + std::to_string(call.total));
  const int64_t D = call.shape.directions, H = call.shape.hidden;
  const Tensor gates = checks.empty("gates", x, Sizes{total, D, 4 * H});
  const Tensor states = checks.empty("states", x, Sizes{total, D, H});
  const auto [y, h_n] = layer(checks, call, {gates, states}, biased);
  return {y, h_n, gates, states};
}

Tensor gru_cell(const Tensor& x, const std::vector<Tensor>& weights, const std::optional<Tensor>& h, bool biased,
                bool reset_after) {
  const Checks checks("gru_cell", "x", x);
  checks.dtype("x", x, {ScalarType::Float, ScalarType::Double});
  if (x.dim() != 2 || x.size(0) == 0 || x.size(1) == 0)
    checks.refuse("x has shape " + text(sizes_of(x)), "[B, I] with no size 0");
  const int64_t features = x.size(1);
  const Weights dense = checked_weights(checks, weights, x.scalar_type(), features, biased, 1);
  const GruShape shape{1, x.size(0), 1, dense[1].size(1), reset_after};
  if (h) checks.operand("h", *h, x.scalar_type(), {shape.batch, shape.hidden}, "[B, H]");
  const Tensor in = dense_frames(checks, "x", x);
  const std::optional<Tensor> first = checks.contiguous("h", h);
  const Tensor next = checks.empty("the new state", x, Sizes{shape.batch, shape.hidden});
  with_type(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    T* out = mutable_pointer<T>(next);  // y and h_n are one
    run<T>(checks, {shape, features, {pointer<T>(in), 0, in.stride(0), nullptr}, {}, pointer<T>(first), nullptr,
                    {out, 0, shape.hidden, nullptr}, out, {}, {}}, dense, biased);
  });
  return next;
}

STABLE_TORCH_LIBRARY_IMPL(ser_fast, CPU, m) {
  m.impl("gru_layer", TORCH_BOX(&gru_layer));
  m.impl("gru_layer_forward", TORCH_BOX(&gru_layer_forward));
  m.impl("gru_cell", TORCH_BOX(&gru_cell));
}

#endif

}  // namespace
}  // namespace ser_fast
