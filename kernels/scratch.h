// Memory of a kernel's own, aligned to a cache line.
#pragma once

#include <algorithm>
#include <cstdint>
#include <new>

namespace ser_fast {

constexpr int64_t kAligned = 64;  // bytes

// Uninitialised.
template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t size)
      : data_(static_cast<T*>(::operator new(size * sizeof(T), std::align_val_t(kAligned)))) {}
  Scratch(const Scratch&) = delete;
  ~Scratch() { ::operator delete(data_, std::align_val_t(kAligned)); }

  T* data() const { return data_; }

 private:
  T* data_;
};

template <class T>
struct Zeros : Scratch<T> {
  explicit Zeros(int64_t size) : Scratch<T>(size) { std::fill_n(this->data(), size, T(0)); }
};

}  // namespace ser_fast
