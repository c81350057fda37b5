// gru and its backward, ser_fast::* on CPU and ser_fast_cuda::* on CUDA: checks, allocation, dispatch on the dtype.
#include "../kernels/gru.h"

#include <algorithm>
#include <limits>
#include <tuple>
#include <utility>

#include "../kernels/simd.h"
#include "boundary.h"

namespace ser_fast {
namespace {

// The kernels accept any strides of frames and rows but require the last two axes to be dense.
Tensor dense_inside(const Checks& checks, const char* name, const Tensor& tensor) {
  const int64_t last = tensor.dim() - 1;
  const bool dense = (tensor.size(last) == 1 || tensor.stride(last) == 1) &&
                     (tensor.size(last - 1) == 1 || tensor.stride(last - 1) == tensor.size(last));
  return dense ? tensor : checks.contiguous(name, tensor);
}

// Returns an uninitialised tensor like `like` with last size `width`, batch-first in memory if `like` is.
Tensor empty_frames(const Checks& checks, const char* name, const Tensor& like, int64_t width) {
  Sizes sizes = sizes_of(like);
  sizes.back() = width;
  if (like.dim() == 3 || like.stride(0) >= like.stride(1)) return checks.empty(name, like, sizes);
  std::swap(sizes[0], sizes[1]);
  return torch::stable::transpose(checks.empty(name, like, sizes), 0, 1);
}

// The sizes of a call. starts: first frame of each row of a packed call, on CPU only.
struct Call {
  GruShape shape;
  std::optional<Tensor> lengths;
  Sizes starts, frames;  // frames: the leading sizes of every tensor of frames, [T, B, D] or [N, D]
};

// `first` is gx, with last size 3H and `gates` 3, or y, with last size H and `gates` 1.
Call checked_call(const Checks& checks, const char* name, const Tensor& first, int64_t gates,
                  const std::optional<Tensor>& lengths, bool reset_after) {
  const ScalarType third = checks.cuda() ? ScalarType::Half : ScalarType::Double;
  checks.dtype(name, first, {ScalarType::Float, ScalarType::BFloat16, third});
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
  if (checks.cuda()) return call;
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

// Checked inputs, in the layout that the kernels of both devices require.
struct Operands {
  Call call;
  Tensor gx, w_hh;
  std::optional<Tensor> b_hh, h0;
};

struct BackwardOperands {
  Call call;
  Tensor grad_y, grad_h_n, y, gates, w_hh;
  std::optional<Tensor> h0;
};

struct Outputs {
  Tensor y, h_n, gates;
};

struct Gradients {
  Tensor grad_gx, grad_q, grad_h0;
};

Operands checked(const Checks& checks, const Tensor& gx, const Tensor& w_hh, const std::optional<Tensor>& b_hh,
                 const std::optional<Tensor>& h0, const std::optional<Tensor>& lengths, bool reset_after) {
  const Call call = checked_call(checks, "gx", gx, 3, lengths, reset_after);
  const int64_t B = call.shape.batch, D = call.shape.directions, H = call.shape.hidden;
  const ScalarType type = gx.scalar_type();
  checks.operand("w_hh", w_hh, type, {D, 3 * H, H}, "[D, 3H, H]");
  if (b_hh) checks.operand("b_hh", *b_hh, type, {D, 3 * H}, "[D, 3H]");
  if (h0) checks.operand("h0", *h0, type, {D, B, H}, "[D, B, H]");
  return {call, dense_inside(checks, "gx", gx), checks.contiguous("w_hh", w_hh), checks.contiguous("b_hh", b_hh),
          checks.contiguous("h0", h0)};
}

Outputs outputs(const Checks& checks, const Call& call, const Tensor& gx, bool save_gates) {
  const int64_t B = call.shape.batch, D = call.shape.directions, H = call.shape.hidden;
  return {empty_frames(checks, "y", gx, H), checks.empty("h_n", gx, Sizes{D, B, H}),
          save_gates ? empty_frames(checks, "gates", gx, 4 * H) : checks.empty("gates", gx, Sizes{0})};
}

BackwardOperands checked(const Checks& checks, const Tensor& grad_y, const Tensor& grad_h_n, const Tensor& y,
                         const Tensor& gates, const Tensor& w_hh, const std::optional<Tensor>& h0,
                         const std::optional<Tensor>& lengths, bool reset_after) {
  const Call call = checked_call(checks, "y", y, 1, lengths, reset_after);
  const int64_t B = call.shape.batch, D = call.shape.directions, H = call.shape.hidden;
  const ScalarType type = y.scalar_type();
  checks.operand("grad_y", grad_y, type, with(call.frames, H), "y's shape");
  checks.operand("grad_h_n", grad_h_n, type, {D, B, H}, "[D, B, H]");
  checks.operand("gates", gates, type, with(call.frames, 4 * H), "y's shape with 4H");
  checks.operand("w_hh", w_hh, type, {D, 3 * H, H}, "[D, 3H, H]");
  if (h0) checks.operand("h0", *h0, type, {D, B, H}, "[D, B, H]");
  return {call, dense_inside(checks, "grad_y", grad_y), checks.contiguous("grad_h_n", grad_h_n),
          dense_inside(checks, "y", y), dense_inside(checks, "gates", gates), checks.contiguous("w_hh", w_hh),
          checks.contiguous("h0", h0)};
}

constexpr int64_t kMost = std::numeric_limits<int32_t>::max();

// Checks the sizes and returns the plan of a shape, all zero if W_hh does not fit on the chip.
GruPlan planned(const Checks& checks, const GruShape& shape, GruProduct product, bool backward,
                const GruLimits& limits) {
  const auto positive = [&](const char* name, int64_t size, int64_t most) {
    checks.require(size >= 1 && size <= most, std::string(name) + " is " + std::to_string(size),
                   "in 1.." + std::to_string(most));
  };
  positive("batch", shape.batch, kMost);
  positive("directions", shape.directions, 2);
  positive("hidden", shape.hidden, kMost);
  return gru_plan(shape, product, backward, limits);
}

// Checks and reads limits, int64 [5] on CPU: bytes of shared memory per block and the number of clusters of 1, 2, 4
// and 8 blocks that run at once.
GruLimits limits_in(const char* op, const char* name, const Tensor& limits) {
  const Checks checks(op, name, limits, Side::kCpu);
  checks.operand(name, limits, ScalarType::Long, {5}, "[5]");
  const Tensor dense = checks.contiguous(name, limits);
  const int64_t* values = pointer<int64_t>(dense);
  int64_t capped[5];  // no GPU has more than 2^31, and larger numbers would overflow the plan's sums
  for (int i = 0; i < 5; ++i) {
    checks.require(values[i] >= 0, std::string(name) + "[" + std::to_string(i) + "] is " + std::to_string(values[i]),
                   "at least 0");
    capped[i] = std::min(values[i], kMost);
  }
  return {capped[0], {capped[1], capped[2], capped[3], capped[4]}};
}

Gradients gradients(const Checks& checks, const Call& call, const Tensor& y) {
  const int64_t B = call.shape.batch, D = call.shape.directions, H = call.shape.hidden;
  return {empty_frames(checks, "grad_gx", y, 3 * H),
          call.shape.reset_after ? empty_frames(checks, "grad_q", y, H) : checks.empty("grad_q", y, Sizes{0}),
          checks.empty("grad_h0", y, Sizes{D, B, H})};
}

#ifndef SER_FAST_HOST

// A [T, B, D, ...] or packed [N, D, ...] tensor; null data for the [0] tensor of an output that is not wanted.
template <class T>
Frames<T> frames(const Tensor& tensor, const Sizes& starts) {
  if (tensor.dim() < 3) return {};
  T* data = static_cast<T*>(const_cast<void*>(tensor.const_data_ptr()));
  if (tensor.dim() == 3) return {data, tensor.stride(0), 0, starts.data()};
  return {data, tensor.stride(0), tensor.stride(1), nullptr};
}

// Calls kernel with a zero of the dtype's C++ type.
template <class Kernel>
void run(const Checks& checks, ScalarType type, const Kernel& kernel) {
  checks.run([&] {
    if (type == ScalarType::Float) kernel(float{});
    else if (type == ScalarType::Double) kernel(double{});
    else kernel(Bf16{});
  });
}

std::tuple<Tensor, Tensor, Tensor> gru(const Tensor& gx, const Tensor& w_hh, const std::optional<Tensor>& b_hh,
                                       const std::optional<Tensor>& h0, const std::optional<Tensor>& lengths,
                                       bool reset_after, bool save_gates) {
  const Checks checks("gru", "gx", gx);
  const Operands given = checked(checks, gx, w_hh, b_hh, h0, lengths, reset_after);
  const Call& call = given.call;
  const Outputs out = outputs(checks, call, gx, save_gates);
  run(checks, gx.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    gru_forward_cpu<S>({call.shape, frames<const S>(given.gx, call.starts), pointer<S>(given.w_hh),
                        pointer<S>(given.b_hh), pointer<S>(given.h0), pointer<int64_t>(call.lengths),
                        frames<S>(out.y, call.starts), mutable_pointer<S>(out.h_n), frames<S>(out.gates, call.starts)},
                       torch_threads());
  });
  return {out.y, out.h_n, out.gates};
}

std::tuple<Tensor, Tensor, Tensor> gru_backward(const Tensor& grad_y, const Tensor& grad_h_n, const Tensor& y,
                                                const Tensor& gates, const Tensor& w_hh,
                                                const std::optional<Tensor>& h0,
                                                const std::optional<Tensor>& lengths, bool reset_after) {
  const Checks checks("gru_backward", "y", y);
  const BackwardOperands given = checked(checks, grad_y, grad_h_n, y, gates, w_hh, h0, lengths, reset_after);
  const Call& call = given.call;
  const Gradients out = gradients(checks, call, y);
  run(checks, y.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    gru_backward_cpu<S>({call.shape, frames<const S>(given.grad_y, call.starts), pointer<S>(given.grad_h_n),
                         frames<const S>(given.y, call.starts), frames<const S>(given.gates, call.starts),
                         pointer<S>(given.w_hh), pointer<S>(given.h0), pointer<int64_t>(call.lengths),
                         frames<S>(out.grad_gx, call.starts), frames<S>(out.grad_q, call.starts),
                         mutable_pointer<S>(out.grad_h0)},
                        torch_threads());
  });
  return {out.grad_gx, out.grad_q, out.grad_h0};
}

// Returns the plan of a shape as float64 [9], in the order of GruPlan. product: a GruProduct as an integer.
Tensor gru_plan_of(const Tensor& limits, int64_t batch, int64_t directions, int64_t hidden, bool reset_after,
                   int64_t product, bool backward) {
  const Checks checks("gru_plan", "limits", limits);
  const GruLimits given = limits_in("gru_plan", "limits", limits);
  checks.require(product >= 0 && product <= 2, "product is " + std::to_string(product), "0, 1 or 2");
  const GruPlan plan = planned(checks, {1, batch, directions, hidden, reset_after}, static_cast<GruProduct>(product),
                               backward, given);
  const Tensor out = checks.empty("the plan", limits, Sizes{9}, ScalarType::Double);
  double* to = mutable_pointer<double>(out);
  for (const double value : {double(plan.width), double(plan.rows), double(plan.cluster), double(plan.threads),
                             double(plan.stages), double(plan.tiles), double(plan.waves), double(plan.shared),
                             double(plan.step)})
    *to++ = value;
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(ser_fast, CPU, m) {
  m.impl("gru", TORCH_BOX(&gru));
  m.impl("gru_backward", TORCH_BOX(&gru_backward));
  m.impl("gru_plan", TORCH_BOX(&gru_plan_of));
}

#endif
#ifdef SER_FAST_WITH_CUDA

// The kernels count pairs of units in 32 bits.
template <class T>
GpuFrames<T> gpu_frames(const Checks& checks, const char* name, const Tensor& tensor) {
  if (tensor.dim() < 3) return {};
  const int64_t span = extent(tensor) / static_cast<int64_t>(tensor.element_size()), most = int64_t{1} << 33;
  checks.require(span <= most, std::string(name) + " spans " + std::to_string(span) + " elements",
                 "at most " + std::to_string(most));
  return {static_cast<T*>(const_cast<void*>(tensor.const_data_ptr())), tensor.stride(0),
          tensor.dim() == 4 ? tensor.stride(1) : 0};
}

// Returns a copy of a [..., parts * from] tensor as [..., parts * to]: each part cut or padded with zeros.
Tensor resized(const Checks& checks, const char* name, const Tensor& tensor, int64_t parts, int64_t from, int64_t to) {
  const auto units = [&](const Tensor& whole, int64_t width) {
    Sizes sizes = sizes_of(whole);
    sizes.back() = parts;
    Tensor split = torch::stable::view(whole, with(sizes, width));
    return torch::stable::narrow(split, split.dim() - 1, 0, std::min(from, to));
  };
  Tensor out = empty_frames(checks, name, tensor, parts * to);
  if (to > from) torch::stable::zero_(out);
  Tensor target = units(out, to);
  torch::stable::copy_(target, units(tensor, from));
  return out;
}

// The kernels move units in pairs: an odd H is padded by a unit that stays 0, and the results are cut.
struct Pairs {
  const Checks& checks;
  int64_t H, even;

  Pairs(const Checks& checks, Call& call) : checks(checks), H(call.shape.hidden), even(H + H % 2) {
    call.shape.hidden = even;
  }

  // A [..., parts * H] tensor whose pairs of units lie at multiples of a pair's size.
  Tensor in(const char* name, const Tensor& tensor, int64_t parts) const {
    bool good = H == even && reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % (2 * tensor.element_size()) == 0;
    for (int64_t axis = 0; axis + 2 < tensor.dim(); ++axis)
      good = good && (tensor.size(axis) == 1 || tensor.stride(axis) % 2 == 0);
    return good ? tensor : resized(checks, name, tensor, parts, H, even);
  }
  std::optional<Tensor> in(const char* name, const std::optional<Tensor>& tensor, int64_t parts) const {
    if (!tensor) return std::nullopt;
    return in(name, *tensor, parts);
  }
  // W_hh [D, 3H, H], padded in rows and columns.
  Tensor weights(const Tensor& w_hh) const {
    if (H == even) return w_hh;
    const Tensor wide = resized(checks, "w_hh", w_hh, 1, H, even);
    const Tensor flat = torch::stable::view(wide, Sizes{w_hh.size(0), 3 * H * even});
    return resized(checks, "w_hh", flat, 3, H * even, even * even);
  }
  // An output of a kernel; one that is not wanted is [0].
  Tensor out(const char* name, const Tensor& tensor, int64_t parts) const {
    return H == even || tensor.dim() < 3 ? tensor : resized(checks, name, tensor, parts, even, H);
  }
};

GruProduct product_of(ScalarType type, bool tf32) {
  if (type != ScalarType::Float) return GruProduct::kHalf;
  return tf32 ? GruProduct::kTf32 : GruProduct::kTf32x3;
}

GruPlan plan_of(const Checks& checks, const Launch& launch, const GruShape& shape, GruProduct product, bool backward) {
  GruLimits limits = {};
  launch.check(gru_limits(&limits));
  const GruPlan plan = planned(checks, shape, product, backward, gru_restricted(limits));
  checks.require(plan.width > 0, "H is " + std::to_string(shape.hidden),
                 "so small that W_hh fits on this GPU's chip; `ser-fast info --shape` shows what does");
  return plan;
}

// Scratch memory for W_hh in the layout of the tensor cores.
Tensor scratch(const Checks& checks, const GruShape& shape, GruProduct product, const GruPlan& plan,
               const Tensor& like) {
  return checks.empty("W_hh's scratch memory", like, Sizes{gru_packed_bytes(shape, product, plan.width)},
                      ScalarType::Byte);
}

// Packed lengths on CUDA may add up to less than N; the kernels do not write the frames after the last row.
void clear(std::initializer_list<Tensor> tensors) {
  for (Tensor tensor : tensors) torch::stable::zero_(tensor);
}

std::tuple<Tensor, Tensor, Tensor> gru_on_cuda(const Tensor& gx, const Tensor& w_hh, const std::optional<Tensor>& b_hh,
                                               const std::optional<Tensor>& h0, const std::optional<Tensor>& lengths,
                                               bool reset_after, bool save_gates, bool tf32) {
  const Checks checks("gru", "gx", gx, Side::kCuda);
  const Operands given = checked(checks, gx, w_hh, b_hh, h0, lengths, reset_after);
  Call call = given.call;
  const Launch launch(checks, gx);
  const GruProduct product = product_of(gx.scalar_type(), tf32);
  const GruPlan plan = plan_of(checks, launch, call.shape, product, false);
  const Pairs pairs(checks, call);
  const Outputs out = outputs(checks, call, gx, save_gates);
  const bool packed = gx.dim() == 3;
  if (packed) clear({out.y, out.gates});
  const Tensor input = pairs.in("gx", given.gx, 3), recurrent = pairs.weights(given.w_hh);
  const std::optional<Tensor> bias = pairs.in("b_hh", given.b_hh, 3), first = pairs.in("h0", given.h0, 1);
  const Tensor weights = scratch(checks, call.shape, product, plan, gx);
  launch.check(with_cuda_type(gx.scalar_type(), [&](auto type) {
    using S = typename decltype(type)::type;
    return gru_forward_cuda<S>({call.shape, plan, packed, gpu_frames<const S>(checks, "gx", input),
                                pointer<S>(recurrent), mutable_pointer<void>(weights), pointer<S>(bias), pointer<S>(first),
                                pointer<int64_t>(call.lengths), gpu_frames<S>(checks, "y", out.y),
                                mutable_pointer<S>(out.h_n), gpu_frames<S>(checks, "gates", out.gates)},
                               product, launch.stream);
  }));
  return {pairs.out("y", out.y, 1), pairs.out("h_n", out.h_n, 1), pairs.out("gates", out.gates, 4)};
}

std::tuple<Tensor, Tensor, Tensor> gru_backward_on_cuda(const Tensor& grad_y, const Tensor& grad_h_n, const Tensor& y,
                                                        const Tensor& gates, const Tensor& w_hh,
                                                        const std::optional<Tensor>& h0,
                                                        const std::optional<Tensor>& lengths, bool reset_after,
                                                        bool tf32) {
  const Checks checks("gru_backward", "y", y, Side::kCuda);
  const BackwardOperands given = checked(checks, grad_y, grad_h_n, y, gates, w_hh, h0, lengths, reset_after);
  Call call = given.call;
  const Launch launch(checks, y);
  const GruProduct product = product_of(y.scalar_type(), tf32);
  const GruPlan plan = plan_of(checks, launch, call.shape, product, true);
  const Pairs pairs(checks, call);
  const Gradients out = gradients(checks, call, y);
  const bool packed = y.dim() == 3;
  if (packed) clear({out.grad_gx, out.grad_q});
  const Tensor above = pairs.in("grad_y", given.grad_y, 1), last = pairs.in("grad_h_n", given.grad_h_n, 1);
  const Tensor states = pairs.in("y", given.y, 1), saved = pairs.in("gates", given.gates, 4);
  const Tensor recurrent = pairs.weights(given.w_hh);
  const std::optional<Tensor> first = pairs.in("h0", given.h0, 1);
  const Tensor weights = scratch(checks, call.shape, product, plan, y);
  launch.check(with_cuda_type(y.scalar_type(), [&](auto type) {
    using S = typename decltype(type)::type;
    return gru_backward_cuda<S>({call.shape, plan, packed, gpu_frames<const S>(checks, "grad_y", above),
                                 pointer<S>(last), gpu_frames<const S>(checks, "y", states),
                                 gpu_frames<const S>(checks, "gates", saved), pointer<S>(recurrent),
                                 mutable_pointer<void>(weights), pointer<S>(first), pointer<int64_t>(call.lengths),
                                 gpu_frames<S>(checks, "grad_gx", out.grad_gx),
                                 gpu_frames<S>(checks, "grad_q", out.grad_q), mutable_pointer<S>(out.grad_h0)},
                                product, launch.stream);
  }));
  return {pairs.out("grad_gx", out.grad_gx, 3), pairs.out("grad_q", out.grad_q, 1), pairs.out("grad_h0", out.grad_h0, 1)};
}

// Returns the limits of the GPU that a tensor is on, in the form that gru_plan takes.
Tensor gru_limits_of(const Tensor& like) {
  const Checks checks("gru_limits", "like", like, Side::kCuda);
  const Launch launch(checks, like);
  GruLimits limits = {};
  launch.check(gru_limits(&limits));
  limits = gru_restricted(limits);
  const Tensor out = torch::stable::empty(Sizes{5}, ScalarType::Long);
  int64_t* to = mutable_pointer<int64_t>(out);
  *to++ = limits.shared;
  for (const int64_t active : limits.active) *to++ = active;
  return out;
}

// Caps the limits of all later plans at `most`, in the form of gru_limits. Returns the capped limits.
Tensor gru_restrict_to(const Tensor& like, const Tensor& most) {
  gru_restrict(limits_in("gru_restrict", "most", most));
  return gru_limits_of(like);
}

STABLE_TORCH_LIBRARY_IMPL(ser_fast_cuda, SER_FAST_CUDA_KEY, m) {
  m.impl("gru_restrict", TORCH_BOX(&gru_restrict_to));
  m.impl("gru_limits", TORCH_BOX(&gru_limits_of));
  m.impl("gru", TORCH_BOX(&gru_on_cuda));
  m.impl("gru_backward", TORCH_BOX(&gru_backward_on_cuda));
}

#endif

}  // namespace
}  // namespace ser_fast
