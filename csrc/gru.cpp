// ser_fast::gru and ser_fast::gru_backward on CPU: checks, allocation, dispatch on the dtype.
#include "../kernels/gru.h"

#include <tuple>
#include <utility>

#include "../kernels/simd.h"
#include "boundary.h"

namespace ser_fast {
namespace {

// A [T, B, D, ...] tensor, or a packed [N, D, ...] one.
template <class T>
Frames<T> frames(const Tensor& tensor, const Sizes& starts) {
  T* data = static_cast<T*>(const_cast<void*>(tensor.const_data_ptr()));
  if (tensor.dim() == 3) return {data, tensor.stride(0), 0, starts.data()};
  return {data, tensor.stride(0), tensor.stride(1), nullptr};
}

// The kernels walk any strides of the frames but want the last two axes dense.
Tensor dense_inside(const Tensor& tensor) {
  const int64_t last = tensor.dim() - 1;
  const bool dense = (tensor.size(last) == 1 || tensor.stride(last) == 1) &&
                     (tensor.size(last - 1) == 1 || tensor.stride(last - 1) == tensor.size(last));
  return dense ? tensor : torch::stable::contiguous(tensor);
}

// A new tensor of `width` in the last axis, laid out batch-first in memory where `like` is.
Tensor empty_frames(const Tensor& like, int64_t width) {
  Sizes sizes = sizes_of(like);
  sizes.back() = width;
  if (like.dim() == 3 || like.stride(0) >= like.stride(1)) return torch::stable::new_empty(like, sizes);
  std::swap(sizes[0], sizes[1]);
  return torch::stable::transpose(torch::stable::new_empty(like, sizes), 0, 1);
}

// The sizes of a call, and where the rows of a packed one begin.
struct Call {
  GruShape shape;
  std::optional<Tensor> lengths;
  Sizes starts, frames;  // frames: the leading sizes of every tensor of frames, [T, B, D] or [N, D]
};

// `first` is gx, whose last axis is 3H wide, or y, whose last is H.
Call checked_call(const Checks& checks, const char* name, const Tensor& first, int64_t gates,
                  const std::optional<Tensor>& lengths, bool reset_after) {
  checks.dtype(name, first, {ScalarType::Float, ScalarType::Double, ScalarType::BFloat16});
  const Sizes sizes = sizes_of(first);
  const bool packed = sizes.size() == 3 && lengths;
  bool good = packed || sizes.size() == 4;
  for (const int64_t size : sizes) good = good && size > 0;
  good = good && sizes[sizes.size() - 2] <= 2 && sizes.back() % gates == 0;
  checks.require(good, std::string(name) + " has shape " + text(sizes),
                 std::string(gates == 3 ? "[T, B, D, 3H]" : "[T, B, D, H]") +
                     " with D 1 or 2 and no size 0, or packed with lengths");
  const int64_t D = sizes[sizes.size() - 2], H = sizes.back() / gates;
  Call call{{sizes[0], 0, D, H, reset_after}, {}, {}, Sizes(sizes.begin(), sizes.end() - 1)};
  if (!packed) {
    call.shape.batch = sizes[1];
    call.lengths = checks.lengths(lengths, sizes[1], sizes[0]);
    return call;
  }
  checks.require(lengths->dim() == 1, "lengths has shape " + text(sizes_of(*lengths)), "[B]");
  call.shape.batch = lengths->size(0);
  call.lengths = checks.lengths(lengths, call.shape.batch, sizes[0]);
  int64_t total = 0;
  for (int64_t b = 0; b < call.shape.batch; ++b) {
    call.starts.push_back(total);
    total += pointer<int64_t>(call.lengths)[b];
  }
  checks.require(total == sizes[0], "lengths add up to " + std::to_string(total),
                 "the packed frames, " + std::to_string(sizes[0]));
  return call;
}

Sizes with(Sizes sizes, int64_t width) {
  sizes.push_back(width);
  return sizes;
}

// Calls run with a value of the dtype's type.
template <class Run>
void dispatch(ScalarType type, const Run& run) {
  if (type == ScalarType::Float) run(float{});
  else if (type == ScalarType::Double) run(double{});
  else run(Bf16{});
}

std::tuple<Tensor, Tensor, Tensor> gru(const Tensor& gx, const Tensor& w_hh, const std::optional<Tensor>& b_hh,
                                       const std::optional<Tensor>& h0, const std::optional<Tensor>& lengths,
                                       bool reset_after, bool save_gates) {
  const Checks checks("gru", "gx", gx);
  const Call call = checked_call(checks, "gx", gx, 3, lengths, reset_after);
  const int64_t B = call.shape.batch, D = call.shape.directions, H = call.shape.hidden;
  const ScalarType type = gx.scalar_type();
  checks.operand("w_hh", w_hh, type, {D, 3 * H, H}, "[D, 3H, H]");
  if (b_hh) checks.operand("b_hh", *b_hh, type, {D, 3 * H}, "[D, 3H]");
  if (h0) checks.operand("h0", *h0, type, {D, B, H}, "[D, B, H]");

  const Tensor y = empty_frames(gx, H), h_n = torch::stable::new_empty(gx, Sizes{D, B, H});
  const Tensor gates = save_gates ? empty_frames(gx, 4 * H) : torch::stable::new_empty(gx, Sizes{0});
  const Tensor dense_gx = dense_inside(gx), dense_w = torch::stable::contiguous(w_hh);
  const std::optional<Tensor> dense_b = contiguous(b_hh), dense_h0 = contiguous(h0);
  dispatch(type, [&](auto zero) {
    using S = decltype(zero);
    gru_forward_cpu<S>({call.shape, frames<const S>(dense_gx, call.starts), pointer<S>(dense_w), pointer<S>(dense_b),
                        pointer<S>(dense_h0), pointer<int64_t>(call.lengths), frames<S>(y, call.starts),
                        mutable_pointer<S>(h_n), save_gates ? frames<S>(gates, call.starts) : Frames<S>{}},
                       torch_threads());
  });
  return {y, h_n, gates};
}

std::tuple<Tensor, Tensor, Tensor> gru_backward(const Tensor& grad_y, const Tensor& grad_h_n, const Tensor& y,
                                                const Tensor& gates, const Tensor& w_hh,
                                                const std::optional<Tensor>& h0,
                                                const std::optional<Tensor>& lengths, bool reset_after) {
  const Checks checks("gru_backward", "y", y);
  const Call call = checked_call(checks, "y", y, 1, lengths, reset_after);
  const int64_t B = call.shape.batch, D = call.shape.directions, H = call.shape.hidden;
  const ScalarType type = y.scalar_type();
  checks.operand("grad_y", grad_y, type, with(call.frames, H), "y's shape");
  checks.operand("grad_h_n", grad_h_n, type, {D, B, H}, "[D, B, H]");
  checks.operand("gates", gates, type, with(call.frames, 4 * H), "y's shape with 4H");
  checks.operand("w_hh", w_hh, type, {D, 3 * H, H}, "[D, 3H, H]");
  if (h0) checks.operand("h0", *h0, type, {D, B, H}, "[D, B, H]");

  const Tensor grad_gx = empty_frames(y, 3 * H), grad_h0 = torch::stable::new_empty(y, Sizes{D, B, H});
  const Tensor grad_q = reset_after ? empty_frames(y, H) : torch::stable::new_empty(y, Sizes{0});
  const Tensor dense_grad_y = dense_inside(grad_y), dense_grad_h_n = torch::stable::contiguous(grad_h_n);
  const Tensor dense_y = dense_inside(y), dense_gates = dense_inside(gates);
  const Tensor dense_w = torch::stable::contiguous(w_hh);
  const std::optional<Tensor> dense_h0 = contiguous(h0);
  dispatch(type, [&](auto zero) {
    using S = decltype(zero);
    gru_backward_cpu<S>({call.shape, frames<const S>(dense_grad_y, call.starts), pointer<S>(dense_grad_h_n),
                         frames<const S>(dense_y, call.starts), frames<const S>(dense_gates, call.starts),
                         pointer<S>(dense_w), pointer<S>(dense_h0), pointer<int64_t>(call.lengths),
                         frames<S>(grad_gx, call.starts), reset_after ? frames<S>(grad_q, call.starts) : Frames<S>{},
                         mutable_pointer<S>(grad_h0)},
                        torch_threads());
  });
  return {grad_gx, grad_q, grad_h0};
}

STABLE_TORCH_LIBRARY_IMPL(ser_fast, CPU, m) {
  m.impl("gru", TORCH_BOX(&gru));
  m.impl("gru_backward", TORCH_BOX(&gru_backward));
}

}  // namespace
}  // namespace ser_fast
