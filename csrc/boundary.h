// Shared by the boundary of every op: argument checks, torch's thread pool and torch's CUDA streams. The checks have
// the same wording as ser_fast/ops/checks.py, which serves the backends without compiled code.
//
// SER_FAST_WITH_CUDA adds the CUDA kernels as the ops ser_fast_cuda::*. SER_FAST_HOST compiles them for CPU tensors,
// run by tests/native/runner.cpp, and leaves the CPU kernels out.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "../kernels/parallel.h"

#if defined(SER_FAST_WITH_CUDA) && !defined(SER_FAST_HOST)
#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>

// Weak: a torch without CUDA does not define it, and the same shared object loads with both.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream);
#endif

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

inline std::string device_of(const Tensor& tensor) {
  if (tensor.is_cpu()) return "cpu";
  return tensor.is_cuda() ? "cuda:" + std::to_string(tensor.get_device_index()) : "another device";
}

// Device type of an op's kernels. Values of CUDA tensors are not checked here; the kernels clamp them.
enum class Side { kCpu, kCuda };

// The checks of one op. A failed check throws std::runtime_error; its message begins with the op's name.
class Checks {
 public:
  // `first` is the argument `name`; all other tensors must be on its device.
  Checks(const char* op, const char* name, const Tensor& first, Side side = Side::kCpu)
      : op_(op), side_(side), device_(device_of(first)) {
#ifdef SER_FAST_HOST
    const bool good = first.is_cpu();
#else
    const bool good = cuda() ? first.is_cuda() : first.is_cpu();
#endif
    require(good, std::string(name) + " is on " + device_, cuda() ? "on a CUDA device" : "on cpu");
  }

  bool cuda() const { return side_ == Side::kCuda; }

  [[noreturn]] void fail(const std::string& sentence) const { throw std::runtime_error(op_ + ": " + sentence); }

  void require(bool good, const std::string& found, const std::string& allowed) const {
    if (!good) fail(found + "; it must be " + allowed);
  }

  void shape(const char* name, const Tensor& tensor, const Sizes& wanted, const char* letters) const {
    require(sizes_of(tensor) == wanted, std::string(name) + " has shape " + text(sizes_of(tensor)),
            std::string(letters) + " = " + text(wanted));
  }

  void dtype(const char* name, const Tensor& tensor, std::initializer_list<ScalarType> allowed) const {
    const ScalarType found = tensor.scalar_type();
    std::string listed;
    for (const ScalarType& one : allowed) {
      if (one == found) return;
      listed += (&one == allowed.begin() ? "" : &one + 1 == allowed.end() ? " or " : ", ") + text(one);
    }
    fail(std::string(name) + " has dtype " + text(found) + "; it must be " + listed);
  }

  void device(const char* name, const Tensor& tensor) const {
    require(device_of(tensor) == device_, std::string(name) + " is on " + device_of(tensor), "on " + device_);
  }

  // Checks device, dtype and shape; `letters` is the shape in symbols for the message.
  void operand(const char* name, const Tensor& tensor, ScalarType type, const Sizes& wanted,
               const char* letters) const {
    device(name, tensor);
    dtype(name, tensor, {type});
    shape(name, tensor, wanted, letters);
  }

  // Returns lengths as int64 [batch], or nullopt if none are given. On CPU each must be in 0..limit.
  std::optional<Tensor> lengths(const std::optional<Tensor>& given, int64_t batch, int64_t limit) const {
    if (!given) return std::nullopt;
    dtype("lengths", *given, {ScalarType::Long, ScalarType::Int});
    device("lengths", *given);
    shape("lengths", *given, {batch}, "[B]");
    Tensor whole = torch::stable::contiguous(torch::stable::to(*given, ScalarType::Long));
    if (cuda()) return whole;
    const int64_t* values = whole.const_data_ptr<int64_t>();
    for (int64_t b = 0; b < batch; ++b)
      require(values[b] >= 0 && values[b] <= limit,
              "lengths[" + std::to_string(b) + "] is " + std::to_string(values[b]),
              "in 0.." + std::to_string(limit));
    return whole;
  }

 private:
  std::string op_;
  Side side_;
  std::string device_;
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

#ifdef SER_FAST_WITH_CUDA

// Defined in kernels/device.h; only pointers to them are used here.
namespace gpu {
struct Half;
struct Bfloat;
}  // namespace gpu

#ifdef SER_FAST_HOST
#define SER_FAST_CUDA_KEY CPU
// Seed of the order in which the runner runs the kernel's threads.
extern size_t host_seed;
#else
#define SER_FAST_CUDA_KEY CUDA
#endif

// Makes the device of an op's first tensor current and provides torch's current stream on it.
#ifdef SER_FAST_HOST
struct Launch {
  Launch(const Checks&, const Tensor&) {}
  void check(int) const {}  // the runner throws on errors

  void* stream = reinterpret_cast<void*>(host_seed);
};
#else
class Launch {
 public:
  Launch(const Checks& checks, const Tensor& first) : checks_(checks), guard_(first.get_device_index()) {
    if (!aoti_torch_get_current_cuda_stream) checks.fail("this torch has no CUDA streams; it must be built for CUDA");
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(first.get_device_index(), &stream));
  }

  // Throws if a launcher returned an error.
  void check(int error) const {
    if (error == cudaSuccess) return;
    const std::string why = cudaGetErrorString(static_cast<cudaError_t>(error));
    checks_.fail("its CUDA kernel was not launched: " + why + "; `ser-fast info` shows what it was built for");
  }

  void* stream = nullptr;

 private:
  const Checks& checks_;
  torch::stable::accelerator::DeviceGuard guard_;
};
#endif

// Calls run with the std::type_identity of the CUDA kernels' type for float32, float16 or bfloat16.
template <class Run>
int with_cuda_type(ScalarType type, const Run& run) {
  if (type == ScalarType::Float) return run(std::type_identity<float>{});
  if (type == ScalarType::Half) return run(std::type_identity<gpu::Half>{});
  return run(std::type_identity<gpu::Bfloat>{});
}

#endif

}  // namespace ser_fast
