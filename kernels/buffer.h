// Memory of a kernel's own, aligned to a cache line.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <new>
#include <utility>
#include <vector>

namespace ser_fast {

constexpr int64_t kAligned = 64;  // bytes; a load of a vector never touches two lines of the caches

struct Block {
  void* data = nullptr;
  size_t bytes = 0;
};

// Memory that the buffers of a thread gave back, for its next ones: the first write to a new page costs more than all
// work on it in a small call.
class Spare {
  static constexpr std::align_val_t kAlign{kAligned};
  static constexpr size_t kMost = 1 << 24;  // bytes kept by a thread

 public:
  static Spare& mine() {
    thread_local Spare spare;
    return spare;
  }

  ~Spare() {
    for (const Block& block : blocks_) ::operator delete(block.data, kAlign);
  }

  // The smallest kept block that is large enough, but not more than twice as large; a new one if there is none.
  Block take(size_t bytes) {
    auto best = blocks_.end();
    for (auto it = blocks_.begin(); it != blocks_.end(); ++it)
      if (it->bytes >= bytes && it->bytes <= 2 * bytes + 4096 && (best == blocks_.end() || it->bytes < best->bytes))
        best = it;
    if (best == blocks_.end()) return {::operator new(bytes, kAlign), bytes};
    const Block found = *best;
    kept_ -= found.bytes;
    blocks_.erase(best);
    return found;
  }

  void give(Block block) {
    blocks_.push_back(block);
    kept_ += block.bytes;
    for (; kept_ > kMost; blocks_.erase(blocks_.begin())) {
      kept_ -= blocks_.front().bytes;
      ::operator delete(blocks_.front().data, kAlign);
    }
  }

 private:
  std::vector<Block> blocks_;  // the latest last
  size_t kept_ = 0;
};

// Uninitialised unless a value is given.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t size) : size_(size), block_(Spare::mine().take(size * sizeof(T))) {}
  Buffer(int64_t size, T value) : Buffer(size) { std::fill_n(data(), size, value); }
  Buffer(Buffer&& other) noexcept : size_(other.size_), block_(std::exchange(other.block_, {})) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(size_, other.size_);
    std::swap(block_, other.block_);
    return *this;
  }
  ~Buffer() {
    if (block_.data) Spare::mine().give(block_);
  }

  int64_t size() const { return size_; }
  T* data() const { return static_cast<T*>(block_.data); }
  T& operator[](int64_t i) const { return data()[i]; }

 private:
  int64_t size_ = 0;
  Block block_;
};

template <class T>
struct Zeros : Buffer<T> {
  explicit Zeros(int64_t size) : Buffer<T>(size, T(0)) {}
};

}  // namespace ser_fast
