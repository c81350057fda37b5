// ser_fast::gru and ser_fast::gru_backward on CPU: checks, allocation, dispatch on the dtype.
#include "../kernels/gru.h"

#include <tuple>

#include "boundary.h"

namespace ser_fast {
namespace {

template <class T>
Frames<const T> frames(const Tensor& tensor) {
  return {pointer<T>(tensor), tensor.stride(0), tensor.stride(1)};
}

template <class T>
Frames<T> mutable_frames(const Tensor& tensor) {
  return {mutable_pointer<T>(tensor), tensor.stride(0), tensor.stride(1)};
}

// The kernels walk any [T, B] strides but want the last two axes dense.
Tensor dense_inside(const Tensor& tensor) {
  const bool dense = (tensor.size(3) == 1 || tensor.stride(3) == 1) &&
                     (tensor.size(2) == 1 || tensor.stride(2) == tensor.size(3));
  return dense ? tensor : torch::stable::contiguous(tensor);
}

// A new [T, B, D, width] tensor, laid out batch-first in memory where `like` is.
Tensor empty_frames(const Tensor& like, int64_t width) {
  const int64_t T = like.size(0), B = like.size(1), D = like.size(2);
  if (like.stride(0) >= like.stride(1)) return torch::stable::new_empty(like, Sizes{T, B, D, width});
  return torch::stable::transpose(torch::stable::new_empty(like, Sizes{B, T, D, width}), 0, 1);
}

GruShape checked_shape(const Checks& checks, const Tensor& gx, bool reset_after) {
  checks.cpu("gx", gx);
  checks.floating("gx", gx);
  const Sizes sizes = sizes_of(gx);
  checks.require(sizes.size() == 4 && sizes[0] > 0 && sizes[1] > 0 && (sizes[2] == 1 || sizes[2] == 2) &&
                     sizes[3] > 0 && sizes[3] % 3 == 0,
                 "gx has shape " + text(sizes), "[T, B, D, 3H] with D 1 or 2 and no size 0");
  return {sizes[0], sizes[1], sizes[2], sizes[3] / 3, reset_after};
}

template <class T>
void run_forward(const GruShape& shape, const Tensor& gx, const Tensor& w_hh, const std::optional<Tensor>& b_hh,
                 const std::optional<Tensor>& h0, const std::optional<Tensor>& lengths, const Tensor& y,
                 const Tensor& h_n, const std::optional<Tensor>& gates) {
  gru_forward_cpu<T>({shape, frames<T>(gx), pointer<T>(w_hh), pointer<T>(b_hh), pointer<T>(h0),
                      pointer<int64_t>(lengths), mutable_frames<T>(y), mutable_pointer<T>(h_n),
                      gates ? mutable_frames<T>(*gates) : Frames<T>{}},
                     torch_threads());
}

std::tuple<Tensor, Tensor, Tensor> gru(const Tensor& gx, const Tensor& w_hh, const std::optional<Tensor>& b_hh,
                                       const std::optional<Tensor>& h0, const std::optional<Tensor>& lengths,
                                       bool reset_after, bool save_gates) {
  const Checks checks("gru");
  const GruShape shape = checked_shape(checks, gx, reset_after);
  const auto [T, B, D, H, after] = shape;
  const ScalarType type = gx.scalar_type();
  checks.operand("w_hh", w_hh, type, {D, 3 * H, H}, "[D, 3H, H]");
  if (b_hh) checks.operand("b_hh", *b_hh, type, {D, 3 * H}, "[D, 3H]");
  if (h0) checks.operand("h0", *h0, type, {D, B, H}, "[D, B, H]");
  const std::optional<Tensor> whole_lengths = checks.lengths(lengths, B, T);

  const Tensor y = empty_frames(gx, H);
  const Tensor h_n = torch::stable::new_empty(gx, Sizes{D, B, H});
  std::optional<Tensor> gates;
  if (save_gates) gates = empty_frames(gx, 4 * H);
  const auto run = type == ScalarType::Float ? run_forward<float> : run_forward<double>;
  run(shape, dense_inside(gx), torch::stable::contiguous(w_hh), contiguous(b_hh), contiguous(h0), whole_lengths,
      y, h_n, gates);
  return {y, h_n, gates ? *gates : torch::stable::new_empty(gx, Sizes{0})};
}

template <class T>
void run_backward(const GruShape& shape, const Tensor& grad_y, const Tensor& grad_h_n, const Tensor& y,
                  const Tensor& gates, const Tensor& w_hh, const std::optional<Tensor>& h0,
                  const std::optional<Tensor>& lengths, const Tensor& grad_gx, const Tensor& grad_q,
                  const Tensor& grad_h0) {
  gru_backward_cpu<T>({shape, frames<T>(grad_y), pointer<T>(grad_h_n), frames<T>(y), frames<T>(gates),
                       pointer<T>(w_hh), pointer<T>(h0), pointer<int64_t>(lengths), mutable_frames<T>(grad_gx),
                       shape.reset_after ? mutable_frames<T>(grad_q) : Frames<T>{}, mutable_pointer<T>(grad_h0)},
                      torch_threads());
}

std::tuple<Tensor, Tensor, Tensor> gru_backward(const Tensor& grad_y, const Tensor& grad_h_n, const Tensor& y,
                                                const Tensor& gates, const Tensor& w_hh,
                                                const std::optional<Tensor>& h0,
                                                const std::optional<Tensor>& lengths, bool reset_after) {
  const Checks checks("gru_backward");
  checks.cpu("y", y);
  checks.floating("y", y);
  const Sizes sizes = sizes_of(y);
  checks.require(sizes.size() == 4 && sizes[0] > 0 && sizes[1] > 0 && (sizes[2] == 1 || sizes[2] == 2) &&
                     sizes[3] > 0,
                 "y has shape " + text(sizes), "[T, B, D, H] with D 1 or 2 and no size 0");
  const int64_t T = sizes[0], B = sizes[1], D = sizes[2], H = sizes[3];
  const ScalarType type = y.scalar_type();
  checks.operand("grad_y", grad_y, type, {T, B, D, H}, "[T, B, D, H]");
  checks.operand("grad_h_n", grad_h_n, type, {D, B, H}, "[D, B, H]");
  checks.operand("gates", gates, type, {T, B, D, 4 * H}, "[T, B, D, 4H]");
  checks.operand("w_hh", w_hh, type, {D, 3 * H, H}, "[D, 3H, H]");
  if (h0) checks.operand("h0", *h0, type, {D, B, H}, "[D, B, H]");
  const std::optional<Tensor> whole_lengths = checks.lengths(lengths, B, T);

  const Tensor grad_gx = empty_frames(y, 3 * H);
  const Tensor grad_q = reset_after ? empty_frames(y, H) : torch::stable::new_empty(y, Sizes{0});
  const Tensor grad_h0 = torch::stable::new_empty(y, Sizes{D, B, H});
  const auto run = type == ScalarType::Float ? run_backward<float> : run_backward<double>;
  run({T, B, D, H, reset_after}, dense_inside(grad_y), torch::stable::contiguous(grad_h_n), dense_inside(y),
      dense_inside(gates), torch::stable::contiguous(w_hh), contiguous(h0), whole_lengths, grad_gx, grad_q,
      grad_h0);
  return {grad_gx, grad_q, grad_h0};
}

STABLE_TORCH_LIBRARY_IMPL(ser_fast, CPU, m) {
  m.impl("gru", TORCH_BOX(&gru));
  m.impl("gru_backward", TORCH_BOX(&gru_backward));
}

}  // namespace
}  // namespace ser_fast
