// gru_layer, gru_layer_forward, gru_layer_int8 and gru_cell on CPU: checks, allocation, dispatch on the dtype.
#include "gru_layer.h"

#include <tuple>

namespace ser_fast {
namespace {

#ifndef SER_FAST_HOST

// As with_type, for inference also bfloat16.
template <class Call>
void with_any_type(ScalarType type, const Call& call) {
  if (type == ScalarType::BFloat16) call(Bf16{});
  else with_type(type, call);
}

// Calls gru_layer_cpu on dense weights; `args` lacks these.
template <class T>
void run(const Checks& checks, GruLayer<T> args, const Weights& dense, bool biased) {
  for (int64_t d = 0; d < args.shape.directions; ++d) args.weights[d] = weights_at<T>(dense, biased, d);
  checks.run([&] { gru_layer_cpu<T>(args, torch_threads()); });
}

// Allocates the results and calls kernel(args): args(T{}, W{}) is the kernel's argument for rows of T and weights of W,
// without the weights. `saved`: gates [N, D, 4H] and states [N, D, H], or none.
template <class Kernel>
std::tuple<Tensor, Tensor> layer(const Checks& checks, const LayerCall& call, const std::vector<Tensor>& saved,
                                 const Kernel& kernel) {
  const int64_t B = call.shape.batch, D = call.shape.directions, H = call.shape.hidden;
  const Tensor y = checks.empty("y", call.x, call.sizes(D * H));
  const Tensor h_n = checks.empty("h_n", call.x, Sizes{D, B, H});
  kernel([&](auto row, auto weight) -> GruLayer<decltype(row), decltype(weight)> {
    using T = decltype(row);
    Frames<T> gates = {}, states = {};
    if (!saved.empty()) gates = call.saved<T>(saved[0], D * 4 * H), states = call.saved<T>(saved[1], D * H);
    return {call.shape, call.features, call.frames<const T>(call.x), {}, pointer<T>(call.h0),
            pointer<int64_t>(call.lengths), call.frames<T>(y), mutable_pointer<T>(h_n), gates, states};
  });
  return {y, h_n};
}

std::tuple<Tensor, Tensor> gru_layer(const Tensor& x, const std::vector<Tensor>& weights,
                                     const std::optional<Tensor>& h0, const std::optional<Tensor>& lengths,
                                     bool biased, bool reset_after, bool batch_first) {
  const Checks checks("gru_layer", "x", x);
  checks.dtype("x", x, {ScalarType::Float, ScalarType::Double, ScalarType::BFloat16});
  const LayerCall call = checked_layer(checks, x, weights, h0, lengths, biased, reset_after, batch_first);
  return layer(checks, call, {}, [&](const auto& args) {
    with_any_type(x.scalar_type(), [&](auto zero) { run(checks, args(zero, zero), call.weights, biased); });
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> gru_layer_forward(const Tensor& x, const std::vector<Tensor>& weights,
                                                             const std::optional<Tensor>& h0,
                                                             const std::optional<Tensor>& lengths, int64_t total,
                                                             bool biased, bool reset_after, bool batch_first) {
  const Checks checks("gru_layer_forward", "x", x);
  checks.dtype("x", x, {ScalarType::Float, ScalarType::Double});
  const LayerCall call = checked_layer(checks, x, weights, h0, lengths, biased, reset_after, batch_first);
  checks.require(total == call.total, "total is " + std::to_string(total),
                 "the number of valid frames, " + std::to_string(call.total));
  const int64_t D = call.shape.directions, H = call.shape.hidden;
  const Tensor gates = checks.empty("gates", x, Sizes{total, D, 4 * H});
  const Tensor states = checks.empty("states", x, Sizes{total, D, H});
  const auto [y, h_n] = layer(checks, call, {gates, states}, [&](const auto& args) {
    with_type(x.scalar_type(), [&](auto zero) { run(checks, args(zero, zero), call.weights, biased); });
  });
  return {y, h_n, gates, states};
}

// Checks that there are `count` tensors, of one shape at even places and another at odd ones; returns them dense.
// `names` are those of the list and of its tensors.
Weights checked_parts(const Checks& checks, const std::array<const char*, 5>& names, const std::vector<Tensor>& given,
                      size_t count, ScalarType type, const Sizes& even, const Sizes& odd, const char* of_even,
                      const char* of_odd) {
  if (given.size() != count)
    checks.refuse(names[0] + (" has " + std::to_string(given.size()) + " tensors"), std::to_string(count));
  Weights dense;
  for (size_t i = 0; i < count; ++i) {
    checks.operand(names[i + 1], given[i], type, i % 2 ? odd : even, i % 2 ? of_odd : of_even);
    dense.push_back(checks.contiguous(names[i + 1], given[i]));
  }
  return dense;
}

std::tuple<Tensor, Tensor> gru_layer_int8(const Tensor& x, const std::vector<Tensor>& weights,
                                          const std::vector<Tensor>& scales, const std::vector<Tensor>& biases,
                                          const std::optional<Tensor>& h0, const std::optional<Tensor>& lengths,
                                          bool reset_after, bool batch_first) {
  const Checks checks("gru_layer_int8", "x", x);
  checks.dtype("x", x, {ScalarType::Float});
  const int64_t features = checked_features(checks, x, lengths, batch_first);
  const size_t count = weights.size();
  if (count != 2 && count != 4)
    checks.refuse("weights has " + std::to_string(count) + " tensors", "w_ih and w_hh of 1 or 2 directions");
  if (weights[1].dim() != 2 || weights[1].size(1) == 0)
    checks.refuse("weights[1] has shape " + text(sizes_of(weights[1])), "[3H, H] with no size 0");
  const int64_t H = weights[1].size(1);
  const Sizes vector{3 * H};
  const auto vectors = [&](const std::array<const char*, 5>& names, const std::vector<Tensor>& given, size_t number) {
    return checked_parts(checks, names, given, number, ScalarType::Float, vector, vector, "[3H]", "[3H]");
  };
  const Weights w = checked_parts(checks, {"weights", "weights[0]", "weights[1]", "weights[2]", "weights[3]"}, weights,
                                  count, ScalarType::Char, {3 * H, features}, {3 * H, H}, "[3H, I]", "[3H, H]");
  const Weights s = vectors({"scales", "scales[0]", "scales[1]", "scales[2]", "scales[3]"}, scales, count);
  const Weights b = vectors({"biases", "biases[0]", "biases[1]", "biases[2]", "biases[3]"}, biases,
                            biases.empty() ? 0 : count);
  const auto D = static_cast<int64_t>(count / 2);
  const LayerCall call = checked_call(checks, x, w, D, H, h0, lengths, reset_after, batch_first);
  return layer(checks, call, {}, [&](const auto& args_of) {
    auto args = args_of(float{}, int8_t{});
    for (int64_t d = 0; d < D; ++d)
      args.weights[d] = {pointer<int8_t>(w[2 * d]), pointer<int8_t>(w[2 * d + 1]),
                         b.empty() ? nullptr : pointer<float>(b[2 * d]),
                         b.empty() ? nullptr : pointer<float>(b[2 * d + 1]), pointer<float>(s[2 * d]),
                         pointer<float>(s[2 * d + 1])};
    checks.run([&] { gru_layer_cpu(args, torch_threads()); });
  });
}

Tensor gru_cell(const Tensor& x, const std::vector<Tensor>& weights, const std::optional<Tensor>& h, bool biased,
                bool reset_after) {
  const Checks checks("gru_cell", "x", x);
  checks.dtype("x", x, {ScalarType::Float, ScalarType::Double, ScalarType::BFloat16});
  if (x.dim() != 2 || x.size(0) == 0 || x.size(1) == 0)
    checks.refuse("x has shape " + text(sizes_of(x)), "[B, I] with no size 0");
  const int64_t features = x.size(1);
  const Weights dense = checked_weights(checks, weights, x.scalar_type(), features, biased, 1);
  const GruShape shape{1, x.size(0), 1, dense[1].size(1), reset_after};
  if (h) checks.operand("h", *h, x.scalar_type(), {shape.batch, shape.hidden}, "[B, H]");
  const Tensor in = dense_frames(checks, "x", x);
  const std::optional<Tensor> first = checks.contiguous("h", h);
  const Tensor next = checks.empty("the new state", x, Sizes{shape.batch, shape.hidden});
  with_any_type(x.scalar_type(), [&](auto zero) {
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
  m.impl("gru_layer_int8", TORCH_BOX(&gru_layer_int8));
  m.impl("gru_cell", TORCH_BOX(&gru_cell));
}

#endif

}  // namespace
}  // namespace ser_fast
