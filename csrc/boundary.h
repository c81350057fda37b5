// Shared by the boundary of every op: argument checks, torch's thread pool and torch's CUDA streams. The checks have
// the same wording as ser_fast/ops/checks.py, which serves the backends without compiled code.
//
// SER_FAST_WITH_CUDA adds the CUDA kernels as the ops ser_fast_cuda::*. SER_FAST_HOST compiles them for CPU tensors,
// run by tests/native/runner.cpp, and leaves the CPU kernels out.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <initializer_list>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "../kernels/parallel.h"

// Weak: torch has it since 2.13.
extern "C" __attribute__((weak)) const char* torch_exception_get_what_without_backtrace();

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
    std::atomic<bool> exhausted = false;  // torch's threads do not pass on the type of an exception
    torch::stable::parallel_for(0, count, 1, [=, &exhausted](int64_t begin, int64_t end) {
      try {
        body(state, begin, end);
      } catch (const std::bad_alloc&) {
        exhausted = true;
      }
    });
    if (exhausted) throw std::bad_alloc();
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
    case ScalarType::Char: return "int8";
    case ScalarType::Short: return "int16";
    case ScalarType::Int: return "int32";
    case ScalarType::Long: return "int64";
    default: return std::string("another type, ") + torch::headeronly::toString(dtype);
  }
}

inline std::string device_of(const Tensor& tensor) {
  if (!tensor.defined()) return "no device, it is None";
  if (tensor.is_cpu()) return "cpu";
  return tensor.is_cuda() ? "cuda:" + std::to_string(tensor.get_device_index()) : "another device";
}

// Bytes from a tensor's first element to the end of its last.
inline int64_t extent(const Tensor& tensor) {
  int64_t last = 0;
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  for (size_t axis = 0; axis < sizes.size(); ++axis) {
    if (sizes[axis] == 0) return 0;
    last += (sizes[axis] - 1) * strides[axis];
  }
  return (last + 1) * static_cast<int64_t>(tensor.element_size());
}

// Asks Linux to back a large new tensor with huge pages: the first write to each of its 4 KB pages would cost ten
// times as much as the write itself. Without effect where they are not to be had.
inline Tensor on_huge_pages(const Tensor& tensor) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t kPage = 1 << 21;
  const auto begin = (reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) + kPage - 1) / kPage * kPage;
  const auto end = (reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) + extent(tensor)) / kPage * kPage;
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
  return tensor;
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
    const bool good = first.defined() && first.is_cpu();
#else
    const bool good = first.defined() && (cuda() ? first.is_cuda() : first.is_cpu());
#endif
    if (!good) refuse(std::string(name) + " is on " + device_, cuda() ? "on a CUDA device" : "on cpu");
    stored(name, first);
  }

  bool cuda() const { return side_ == Side::kCuda; }

  [[noreturn]] void fail(const std::string& sentence) const { throw std::runtime_error(op_ + ": " + sentence); }

  [[noreturn]] void refuse(const std::string& found, const std::string& allowed) const {
    fail(found + "; it must be " + allowed);
  }

  // Composing the sentence takes longer than most checks, so those of every call refuse only what is not good.
  void require(bool good, const std::string& found, const std::string& allowed) const {
    if (!good) refuse(found, allowed);
  }

  void shape(const char* name, const Tensor& tensor, const Sizes& wanted, const char* letters) const {
    const auto found = tensor.sizes();
    if (std::equal(found.begin(), found.end(), wanted.begin(), wanted.end())) return;
    refuse(std::string(name) + " has shape " + text(sizes_of(tensor)), std::string(letters) + " = " + text(wanted));
  }

  void dtype(const char* name, const Tensor& tensor, std::initializer_list<ScalarType> allowed) const {
    const ScalarType found = tensor.scalar_type();
    if (std::find(allowed.begin(), allowed.end(), found) != allowed.end()) return;
    std::string listed;
    for (const ScalarType& one : allowed)
      listed += (&one == allowed.begin() ? "" : &one + 1 == allowed.end() ? " or " : ", ") + text(one);
    refuse(std::string(name) + " has dtype " + text(found), listed);
  }

  // Checks that the storage still holds every element: it may have been freed or resized under the tensor.
  void stored(const char* name, const Tensor& tensor) const {
    int64_t bytes = 0;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(tensor.get(), &bytes));
    const int64_t span = extent(tensor);
    const int64_t needed = span + tensor.storage_offset() * static_cast<int64_t>(tensor.element_size());
    if (span == 0 || bytes >= needed) return;
    fail(std::string(name) + " has a storage of " + std::to_string(bytes) + " bytes; it must be of at least " +
         std::to_string(needed) + " bytes for shape " + text(sizes_of(tensor)) + ": was it freed or resized?");
  }

  // Checks a tensor's device and its storage.
  void device(const char* name, const Tensor& tensor) const {
    const bool on_cpu = !cuda() && tensor.defined() && tensor.is_cpu();  // as the first operand
    if (!on_cpu && device_of(tensor) != device_)
      refuse(std::string(name) + " is on " + device_of(tensor), "on " + device_);
    stored(name, tensor);
  }

  // Checks, in torch's words for out=, that an input lies outside the addresses of `out`.
  void apart(const char* name, const std::optional<Tensor>& input, const Tensor& out) const {
    if (!input) return;
    const auto* from = static_cast<const char*>(input->const_data_ptr());
    const auto* to = static_cast<const char*>(out.const_data_ptr());
    if (from + extent(*input) <= to || to + extent(out) <= from) return;
    fail(std::string("unsupported operation: some elements of the input tensor ") + name +
         " and the written-to tensor out refer to a single memory location. Please clone() the tensor before "
         "performing the operation.");
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
    const Tensor whole = contiguous("lengths", torch::stable::to(*given, ScalarType::Long));
    if (cuda()) return whole;
    const int64_t* values = whole.const_data_ptr<int64_t>();
    for (int64_t b = 0; b < batch; ++b)
      if (values[b] < 0 || values[b] > limit)
        refuse("lengths[" + std::to_string(b) + "] is " + std::to_string(values[b]), "in 0.." + std::to_string(limit));
    return whole;
  }

  // Returns an uninitialised tensor on the device of `like`, of its dtype if none is given; on huge pages if possible.
  Tensor empty(const char* name, const Tensor& like, const Sizes& sizes, std::optional<ScalarType> type = {}) const {
    try {
      const Tensor tensor = torch::stable::new_empty(like, sizes, type);
      return cuda() ? tensor : on_huge_pages(tensor);
    } catch (const std::exception&) {
      exhausted(name, sizes, type.value_or(like.scalar_type()));
    }
  }

  Tensor contiguous(const char* name, const Tensor& tensor) const {
    if (tensor.is_contiguous()) return tensor;
    try {
      return torch::stable::contiguous(tensor);
    } catch (const std::exception&) {
      exhausted(name, sizes_of(tensor), tensor.scalar_type());
    }
  }

  std::optional<Tensor> contiguous(const char* name, const std::optional<Tensor>& tensor) const {
    if (!tensor) return std::nullopt;
    return contiguous(name, *tensor);
  }

  // Runs a kernel, whose scratch memory may not be available either.
  template <class Run>
  void run(const Run& kernel) const {
    try {
      kernel();
    } catch (const std::bad_alloc&) {
      fail("can't allocate memory: " + op_ + " needs more for its scratch memory");
    }
  }

 private:
  // torch's exception does not say, before 2.13, why a tensor was not allocated.
  [[noreturn]] void exhausted(const char* name, const Sizes& sizes, ScalarType type) const {
    const auto code = torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
    double bytes = static_cast<double>(aoti_torch_dtype_element_size(code));
    for (const int64_t size : sizes) bytes *= static_cast<double>(size);
    char count[64];
    std::snprintf(count, sizeof count, "%.0f", bytes);
    const auto cause = torch_exception_get_what_without_backtrace;
    fail("can't allocate memory: " + op_ + " needs " + count + " bytes for " + name + " of shape " + text(sizes) +
         (cause ? std::string(" (") + cause() + ")" : ""));
  }

  std::string op_;
  Side side_;
  std::string device_;
};

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
