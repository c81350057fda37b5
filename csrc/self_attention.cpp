// self_attention and its backward on CPU: checks, allocation, dispatch.
#include "../kernels/self_attention.h"

#include <cmath>
#include <tuple>

#include "boundary.h"

#ifndef SER_FAST_HOST

namespace ser_fast {
namespace {

// Checked inputs, in the layout that the kernel requires. starts: first frame of each row of a packed call.
struct Operands {
  AttentionShape shape;
  Tensor qkv;
  std::optional<Tensor> lengths;
  Sizes starts, output;  // output: its shape
  const char* letters;   // the same in symbols
  Dropout dropout;

  const int64_t* firsts() const { return starts.empty() ? nullptr : starts.data(); }

  template <class T>
  Projections<const T> projections() const {
    const int64_t axis = starts.empty() ? 1 : 0;  // of the frames
    return {{pointer<T>(qkv), starts.empty() ? qkv.stride(0) : 0, qkv.stride(axis), firsts()},
            qkv.stride(axis + 1), qkv.stride(axis + 2)};
  }
};

Dropout checked(const Checks& checks, double dropout, const std::optional<Tensor>& seed) {
  checks.require(dropout >= 0 && dropout <= 1, "dropout is " + std::to_string(dropout), "in 0..1");
  if (seed) {
    checks.device("seed", *seed);
    checks.dtype("seed", *seed, {ScalarType::Long});
    checks.shape("seed", *seed, {}, "[]");
  }
  checks.require(seed || dropout == 0, "seed is None", "a torch.Tensor, for a dropout above 0");
  const auto dropped = static_cast<uint32_t>(std::lrint(256 * dropout));
  const uint64_t key = seed ? static_cast<uint64_t>(*seed->const_data_ptr<int64_t>()) : 0;
  if (dropped == 256) return {255, 0, key};
  return {dropped, 256.0 / (256 - dropped), key};
}

Operands checked(const Checks& checks, const Tensor& qkv, const std::optional<Tensor>& lengths, double dropout,
                 const std::optional<Tensor>& seed) {
  checks.dtype("qkv", qkv, {ScalarType::Float, ScalarType::Double});
  const Sizes sizes = sizes_of(qkv);
  const bool packed = sizes.size() == 4 && lengths;
  bool good = packed || sizes.size() == 5;
  for (const int64_t size : sizes) good = good && size > 0;
  good = good && (sizes[sizes.size() - 3] == 2 || sizes[sizes.size() - 3] == 3);
  checks.require(good, "qkv has shape " + text(sizes),
                 "[B, T, 2 or 3, heads, d] with no size 0, or packed with lengths");
  const int64_t heads = sizes[sizes.size() - 2], d = sizes.back(), frames = sizes[packed ? 0 : 1];
  const bool dense = d == 1 || qkv.stride(static_cast<int64_t>(sizes.size()) - 1) == 1;
  const bool mixes = sizes[sizes.size() - 3] == 3;
  if (packed) checks.require(lengths->dim() == 1, "lengths has shape " + text(sizes_of(*lengths)), "[B]");
  const int64_t batch = packed ? lengths->size(0) : sizes[0];
  Operands out{{batch, frames, heads, d, mixes}, dense ? qkv : checks.contiguous("qkv", qkv),
               checks.lengths(lengths, batch, frames), {}, {}, "", checked(checks, dropout, seed)};
  if (packed) {
    out.output = mixes ? Sizes{frames, heads, d} : Sizes{heads, frames};
    out.letters = mixes ? "[N, heads, d]" : "[heads, N]";
    int64_t total = 0;
    for (int64_t b = 0; b < batch; ++b) {
      out.starts.push_back(total);
      total += pointer<int64_t>(out.lengths)[b];
    }
    checks.require(total == frames, "lengths add up to " + std::to_string(total),
                   "the packed frames, " + std::to_string(frames));
  } else {
    out.output = mixes ? Sizes{batch, frames, heads, d} : Sizes{batch, heads, frames};
    out.letters = mixes ? "[B, T, heads, d]" : "[B, heads, T]";
  }
  return out;
}

template <class T>
void run_forward(const Operands& given, const Tensor& output) {
  self_attention_forward_cpu<T>({given.shape, given.projections<T>(), pointer<int64_t>(given.lengths), given.dropout,
                                 mutable_pointer<T>(output)},
                                torch_threads());
}

Tensor self_attention(const Tensor& qkv, const std::optional<Tensor>& lengths, double dropout,
                      const std::optional<Tensor>& seed) {
  const Checks checks("self_attention", "qkv", qkv);
  const Operands given = checked(checks, qkv, lengths, dropout, seed);
  const Tensor output = checks.empty("output", qkv, given.output);
  const auto run = qkv.scalar_type() == ScalarType::Float ? run_forward<float> : run_forward<double>;
  checks.run([&] { run(given, output); });
  return output;
}

template <class T>
void run_backward(const Operands& given, const Tensor& grad, const Tensor& grad_qkv) {
  self_attention_backward_cpu<T>({given.shape, pointer<T>(grad), given.projections<T>(),
                                  pointer<int64_t>(given.lengths), given.dropout, mutable_pointer<T>(grad_qkv),
                                  given.firsts()},
                                 torch_threads());
}

Tensor self_attention_backward(const Tensor& grad, const Tensor& qkv, const std::optional<Tensor>& lengths,
                               double dropout, const std::optional<Tensor>& seed) {
  const Checks checks("self_attention_backward", "qkv", qkv);
  const Operands given = checked(checks, qkv, lengths, dropout, seed);
  checks.operand("grad", grad, qkv.scalar_type(), given.output, given.letters);
  const Tensor dense = checks.contiguous("grad", grad), grad_qkv = checks.empty("grad_qkv", qkv, sizes_of(qkv));
  const auto run = qkv.scalar_type() == ScalarType::Float ? run_backward<float> : run_backward<double>;
  checks.run([&] { run(given, dense, grad_qkv); });
  return grad_qkv;
}

STABLE_TORCH_LIBRARY_IMPL(ser_fast, CPU, m) {
  m.impl("self_attention", TORCH_BOX(&self_attention));
  m.impl("self_attention_backward", TORCH_BOX(&self_attention_backward));
}

}  // namespace
}  // namespace ser_fast

#endif
