// What every op's boundary shares: checks that name the argument, its value and what is allowed, and torch's
// threads. ser_fast/checks.py says the same for the backends without compiled code.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "../kernels/parallel.h"

namespace ser_fast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Sizes = std::vector<int64_t>;

inline Parallel torch_threads() {
  return {torch::stable::get_num_threads(), [](int64_t count, void (*body)(void*, int64_t, int64_t), void* state) {
    torch::stable::parallel_for(0, count, 1, [=](int64_t begin, int64_t end) { body(state, begin, end); });
  }};
}

inline std::string text(const Sizes& sizes) {
  std::string out = "[";
  for (size_t i = 0; i < sizes.size(); ++i) out += (i ? ", " : "") + std::to_string(sizes[i]);
  return out + "]";
}

inline Sizes sizes_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return Sizes(sizes.begin(), sizes.end());
}

inline std::string text(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float: return "float32";
    case ScalarType::Double: return "float64";
    case ScalarType::Half: return "float16";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Short: return "int16";
    case ScalarType::Int: return "int32";
    case ScalarType::Long: return "int64";
    default: return std::string("another type, ") + torch::headeronly::toString(dtype);
  }
}

// The checks of one op: each throws a sentence that begins with the op's name.
class Checks {
 public:
  explicit Checks(const char* op) : op_(op) {}

  void require(bool good, const std::string& found, const std::string& allowed) const {
    if (!good) throw std::runtime_error(op_ + ": " + found + "; it must be " + allowed);
  }

  void shape(const char* name, const Tensor& tensor, const Sizes& wanted, const char* letters) const {
    require(sizes_of(tensor) == wanted, std::string(name) + " has shape " + text(sizes_of(tensor)),
            std::string(letters) + " = " + text(wanted));
  }

  void dtype(const char* name, const Tensor& tensor, ScalarType wanted) const {
    require(tensor.scalar_type() == wanted, std::string(name) + " has dtype " + text(tensor.scalar_type()),
            text(wanted));
  }

  void floating(const char* name, const Tensor& tensor) const {
    const ScalarType found = tensor.scalar_type();
    require(found == ScalarType::Float || found == ScalarType::Double,
            std::string(name) + " has dtype " + text(found), "float32 or float64");
  }

  void cpu(const char* name, const Tensor& tensor) const {
    require(tensor.is_cpu(), std::string(name) + " is on another device", "on cpu");
  }

  // An operand that goes with a first one: its device, dtype and shape are fixed.
  void operand(const char* name, const Tensor& tensor, ScalarType type, const Sizes& wanted,
               const char* letters) const {
    cpu(name, tensor);
    dtype(name, tensor, type);
    shape(name, tensor, wanted, letters);
  }

  // int64 lengths [batch], each in 0..limit; none given stays none.
  std::optional<Tensor> lengths(const std::optional<Tensor>& given, int64_t batch, int64_t limit) const {
    if (!given) return std::nullopt;
    const ScalarType found = given->scalar_type();
    require(found == ScalarType::Long || found == ScalarType::Int, "lengths has dtype " + text(found),
            "int64 or int32");
    cpu("lengths", *given);
    shape("lengths", *given, {batch}, "[B]");
    Tensor whole = torch::stable::contiguous(torch::stable::to(*given, ScalarType::Long));
    const int64_t* values = whole.const_data_ptr<int64_t>();
    for (int64_t b = 0; b < batch; ++b)
      require(values[b] >= 0 && values[b] <= limit,
              "lengths[" + std::to_string(b) + "] is " + std::to_string(values[b]),
              "in 0.." + std::to_string(limit));
    return whole;
  }

 private:
  std::string op_;
};

inline std::optional<Tensor> contiguous(const std::optional<Tensor>& tensor) {
  if (!tensor) return std::nullopt;
  return torch::stable::contiguous(*tensor);
}

template <class T>
const T* pointer(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <class T>
const T* pointer(const std::optional<Tensor>& tensor) {
  return tensor ? pointer<T>(*tensor) : nullptr;
}

template <class T>
T* mutable_pointer(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

}  // namespace ser_fast
