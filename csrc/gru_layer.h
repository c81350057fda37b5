// Checked arguments of gru_layer, its training forms and gru_cell.
#pragma once

#include "../kernels/gru_layer.h"

#include <array>

#include "boundary.h"

namespace ser_fast {

// The kernel accepts any strides of frames and rows but requires dense features.
inline Tensor dense_frames(const Checks& checks, const char* name, const Tensor& x) {
  const int64_t last = x.dim() - 1;
  return x.size(last) == 1 || x.stride(last) == 1 ? x : checks.contiguous(name, x);
}

// The weights of all directions, checked and dense, in the order of the argument.
using Weights = std::vector<Tensor>;

inline Weights checked_weights(const Checks& checks, const std::vector<Tensor>& given, ScalarType type,
                               int64_t features, bool biased, size_t directions) {
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

template <class T>
GruLayerWeights<T> weights_at(const Weights& dense, bool biased, int64_t direction) {
  const auto part = [&](int64_t i) { return pointer<T>(dense[direction * (biased ? 4 : 2) + i]); };
  return {part(0), part(1), biased ? part(2) : nullptr, biased ? part(3) : nullptr, nullptr, nullptr};
}

// The checked arguments of a layer, in the layout of the kernels.
struct LayerCall {
  GruShape shape;
  int64_t features, total;        // I; N, the valid frames
  bool packed, batch_first;
  std::optional<Tensor> lengths;
  Sizes starts;                   // with lengths: the first of each row's frames among all N
  Weights weights;
  Tensor x;
  std::optional<Tensor> h0;

  // A tensor shaped like x: [T, B, ...], [B, T, ...] or packed.
  template <class T>
  Frames<T> frames(const Tensor& tensor) const {
    T* data = static_cast<T*>(const_cast<void*>(tensor.const_data_ptr()));
    if (packed) return {data, tensor.stride(0), 0, starts.data()};
    return {data, tensor.stride(batch_first), tensor.stride(!batch_first), nullptr};
  }

  // A dense [N, ...] tensor of rows of `width`: packed with lengths, else in the order of x.
  template <class T>
  Frames<T> saved(const Tensor& tensor, int64_t width) const {
    T* data = static_cast<T*>(const_cast<void*>(tensor.const_data_ptr()));
    if (lengths) return {data, width, 0, starts.data()};
    return {data, batch_first ? width : shape.batch * width, batch_first ? shape.frames * width : width, nullptr};
  }

  Sizes sizes(int64_t width) const {
    Sizes like = sizes_of(x);
    like.back() = width;
    return like;
  }
};

// Checks x; returns I.
inline int64_t checked_features(const Checks& checks, const Tensor& x, const std::optional<Tensor>& lengths,
                                bool batch_first) {
  bool good = x.dim() == 3 || (x.dim() == 2 && lengths);
  for (const int64_t size : x.sizes()) good = good && size > 0;
  if (!good)
    checks.refuse("x has shape " + text(sizes_of(x)),
                  std::string(batch_first ? "[B, T, I]" : "[T, B, I]") + " with no size 0, or packed with lengths");
  return x.size(x.dim() - 1);
}

// Checks what depends on D and H.
inline LayerCall checked_call(const Checks& checks, const Tensor& x, const Weights& weights, int64_t D, int64_t H,
                              const std::optional<Tensor>& h0, const std::optional<Tensor>& lengths, bool reset_after,
                              bool batch_first) {
  const bool packed = x.dim() == 2;
  const int64_t features = x.size(x.dim() - 1), frame = packed || !batch_first ? 0 : 1;
  GruShape shape{x.size(frame), 0, D, H, reset_after};
  if (packed && lengths->dim() != 1) checks.refuse("lengths has shape " + text(sizes_of(*lengths)), "[B]");
  shape.batch = packed ? lengths->size(0) : x.size(1 - frame);
  const std::optional<Tensor> valid = checks.lengths(lengths, shape.batch, shape.frames);
  Sizes starts;
  int64_t total = valid ? 0 : shape.frames * shape.batch;
  for (int64_t b = 0; valid && b < shape.batch; ++b) {
    starts.push_back(total);
    total += pointer<int64_t>(valid)[b];
  }
  if (packed && total != shape.frames)
    checks.refuse("lengths add up to " + std::to_string(total), "the packed frames, " + std::to_string(shape.frames));
  if (h0) checks.operand("h0", *h0, x.scalar_type(), {D, shape.batch, H}, "[D, B, H]");
  return {shape,  features, total, packed, batch_first, valid, starts, weights, dense_frames(checks, "x", x),
          checks.contiguous("h0", h0)};
}

inline LayerCall checked_layer(const Checks& checks, const Tensor& x, const std::vector<Tensor>& weights,
                               const std::optional<Tensor>& h0, const std::optional<Tensor>& lengths, bool biased,
                               bool reset_after, bool batch_first) {
  const int64_t features = checked_features(checks, x, lengths, batch_first);
  const Weights dense = checked_weights(checks, weights, x.scalar_type(), features, biased, 2);
  const int64_t D = static_cast<int64_t>(dense.size()) / (biased ? 4 : 2);
  return checked_call(checks, x, dense, D, dense[1].size(1), h0, lengths, reset_after, batch_first);
}

// Calls `call` with a zero of the C++ type of float32 or float64.
template <class Call>
void with_type(ScalarType type, const Call& call) {
  if (type == ScalarType::Float) call(float{});
  else call(double{});
}

}  // namespace ser_fast
