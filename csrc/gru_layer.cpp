// gru_layer, gru_cell and gru_layer_int8 on CPU: checks, allocation, dispatch on the dtype.
#include "../kernels/gru_layer.h"

#include <array>
#include <tuple>

#include "../kernels/simd.h"
#include "boundary.h"

namespace ser_fast {
namespace {

#ifndef SER_FAST_HOST

// Calls call with a value of the kernel's type.
template <class Call>
void with_type(ScalarType type, const Call& call) {
  if (type == ScalarType::Float) call(float{});
  else if (type == ScalarType::Double) call(double{});
  else call(Bf16{});
}

// The kernel accepts any strides of frames and rows but requires dense features.
Tensor dense_frames(const Checks& checks, const Tensor& x) {
  const int64_t last = x.dim() - 1;
  return x.size(last) == 1 || x.stride(last) == 1 ? x : checks.contiguous("x", x);
}

// The weights of all directions, checked and dense, in the order of the argument.
using Weights = std::vector<Tensor>;

Weights checked_weights(const Checks& checks, const std::vector<Tensor>& given, ScalarType type, int64_t features,
                        bool biased, size_t directions) {
  const size_t each = biased ? 4 : 2;
  if (given.size() != each && (directions == 1 || given.size() != directions * each))
    checks.refuse("weights has " + std::to_string(given.size()) + " tensors",
                  std::string(biased ? "w_ih, w_hh, b_ih and b_hh" : "w_ih and w_hh") +
                      (directions == 1 ? "" : " of 1 or 2 directions"));
  if (given[1].dim() != 2 || given[1].size(1) == 0)
    checks.refuse("weights[1] has shape " + text(sizes_of(given[1])), "[3H, H] with no size 0");
  const int64_t H = given[1].size(1);
  const std::array<Sizes, 4> wanted = {Sizes{3 * H, features}, Sizes{3 * H, H}, Sizes{3 * H}, Sizes{3 * H}};
  constexpr const char* letters[] = {"[3H, I]", "[3H, H]", "[3H]", "[3H]"};
  constexpr const char* names[] = {"weights[0]", "weights[1]", "weights[2]", "weights[3]",
                                   "weights[4]", "weights[5]", "weights[6]", "weights[7]"};
  Weights dense;
  for (size_t i = 0; i < given.size(); ++i) {
    checks.operand(names[i], given[i], type, wanted[i % each], letters[i % each]);
    dense.push_back(checks.contiguous(names[i], given[i]));
  }
  return dense;
}

// Calls gru_layer_cpu on dense weights; `args` lacks these.
template <class T>
void run(const Checks& checks, GruLayer<T> args, const Weights& dense, bool biased) {
  const int64_t each = biased ? 4 : 2;
  for (int64_t d = 0; d < args.shape.directions; ++d)
    args.weights[d] = {pointer<T>(dense[d * each]), pointer<T>(dense[d * each + 1]),
                       biased ? pointer<T>(dense[d * each + 2]) : nullptr,
                       biased ? pointer<T>(dense[d * each + 3]) : nullptr, nullptr, nullptr};
  checks.run([&] { gru_layer_cpu<T>(args, torch_threads()); });
}

// Checks x; returns I.
int64_t checked_features(const Checks& checks, const Tensor& x, const std::optional<Tensor>& lengths,
                         bool batch_first) {
  bool good = x.dim() == 3 || (x.dim() == 2 && lengths);
  for (const int64_t size : x.sizes()) good = good && size > 0;
  if (!good)
    checks.refuse("x has shape " + text(sizes_of(x)),
                  std::string(batch_first ? "[B, T, I]" : "[T, B, I]") + " with no size 0, or packed with lengths");
  return x.size(x.dim() - 1);
}

// Checks the other arguments, allocates the results and calls kernel(args): args(T{}, W{}) is the kernel's argument for
// rows of T and weights of W, without the weights.
template <class Kernel>
std::tuple<Tensor, Tensor> layer(const Checks& checks, const Tensor& x, const std::optional<Tensor>& h0,
                                 const std::optional<Tensor>& lengths, int64_t D, int64_t H, bool reset_after,
                                 bool batch_first, const Kernel& kernel) {
  const bool packed = x.dim() == 2;
  const int64_t features = x.size(x.dim() - 1), frame = packed || !batch_first ? 0 : 1;
  GruShape shape{x.size(frame), 0, D, H, reset_after};
  if (packed && lengths->dim() != 1) checks.refuse("lengths has shape " + text(sizes_of(*lengths)), "[B]");
  shape.batch = packed ? lengths->size(0) : x.size(1 - frame);
  const std::optional<Tensor> valid = checks.lengths(lengths, shape.batch, shape.frames);
  Sizes starts, sizes = sizes_of(x);
  if (packed) {
    int64_t total = 0;
    for (int64_t b = 0; b < shape.batch; ++b) {
      starts.push_back(total);
      total += pointer<int64_t>(valid)[b];
    }
    if (total != shape.frames)
      checks.refuse("lengths add up to " + std::to_string(total), "the packed frames, " + std::to_string(shape.frames));
  }
  if (h0) checks.operand("h0", *h0, x.scalar_type(), {D, shape.batch, H}, "[D, B, H]");
  const Tensor in = dense_frames(checks, x);
  const std::optional<Tensor> first = checks.contiguous("h0", h0);
  sizes.back() = D * H;
  const Tensor y = checks.empty("y", x, sizes);
  const Tensor h_n = checks.empty("h_n", x, Sizes{D, shape.batch, H});
  kernel([&](auto row, auto weight) -> GruLayer<decltype(row), decltype(weight)> {
    using T = decltype(row);
    const auto frames = [&](const Tensor& tensor, auto* data) -> Frames<std::remove_pointer_t<decltype(data)>> {
      if (packed) return {data, tensor.stride(0), 0, starts.data()};
      return {data, tensor.stride(frame), tensor.stride(1 - frame), nullptr};
    };
    return {shape, features, frames(in, pointer<T>(in)), {}, pointer<T>(first), pointer<int64_t>(valid),
            frames(y, mutable_pointer<T>(y)), mutable_pointer<T>(h_n)};
  });
  return {y, h_n};
}

std::tuple<Tensor, Tensor> gru_layer(const Tensor& x, const std::vector<Tensor>& weights,
                                     const std::optional<Tensor>& h0, const std::optional<Tensor>& lengths,
                                     bool biased, bool reset_after, bool batch_first) {
  const Checks checks("gru_layer", "x", x);
  checks.dtype("x", x, {ScalarType::Float, ScalarType::Double, ScalarType::BFloat16});
  const int64_t features = checked_features(checks, x, lengths, batch_first);
  const Weights dense = checked_weights(checks, weights, x.scalar_type(), features, biased, 2);
  const int64_t D = static_cast<int64_t>(dense.size()) / (biased ? 4 : 2), H = dense[1].size(1);
  return layer(checks, x, h0, lengths, D, H, reset_after, batch_first, [&](const auto& args) {
    with_type(x.scalar_type(), [&](auto zero) { run(checks, args(zero, zero), dense, biased); });
  });
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
  return layer(checks, x, h0, lengths, D, H, reset_after, batch_first, [&](const auto& args_of) {
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
  const Tensor in = dense_frames(checks, x);
  const std::optional<Tensor> first = checks.contiguous("h", h);
  const Tensor next = checks.empty("the new state", x, Sizes{shape.batch, shape.hidden});
  const auto call = [&](auto zero) {
    using T = decltype(zero);
    T* out = mutable_pointer<T>(next);  // y and h_n are one
    run<T>(checks, {shape, features, {pointer<T>(in), 0, in.stride(0), nullptr}, {}, pointer<T>(first), nullptr,
                    {out, 0, shape.hidden, nullptr}, out}, dense, biased);
  };
  with_type(x.scalar_type(), call);
  return next;
}

STABLE_TORCH_LIBRARY_IMPL(ser_fast, CPU, m) {
  m.impl("gru_layer", TORCH_BOX(&gru_layer));
  m.impl("gru_cell", TORCH_BOX(&gru_cell));
  m.impl("gru_layer_int8", TORCH_BOX(&gru_layer_int8));
}

#endif

}  // namespace
}  // namespace ser_fast
