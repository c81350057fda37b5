// Weights in the layout of a kernel, kept from earlier calls.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <vector>

#include "simd.h"

namespace ser_fast {

// 128 bits of a weight's content. Two differing contents have one digest with a probability of some 2^-64.
struct Digest {
  uint64_t low = 0, high = 0;

  bool operator==(const Digest&) const = default;

  void add(uint64_t word) {
    low = (low ^ word) * 0x9e3779b97f4a7c15;
    low ^= low >> 29;
    high = (high + word) * 0xc2b2ae3d27d4eb4f;
    high ^= high >> 32;
  }

  // Two sums of each lane; a step of either is a bijection of the sum and of the word, so one changed word shows.
  template <class I>
  SER_FAST_INLINE void add(const void* data, int64_t bytes) {
    using V = Vec<I, uint32_t>;
    constexpr int64_t count = 4, step = count * sizeof(V);
    V first[count], second[count];
    for (uint32_t i = 0; i < count; ++i) first[i] = V{} + (0x9e3779b1 + i), second[i] = V{} + (0x85ebca77 + i);
    const char* from = static_cast<const char*>(data);
    int64_t at = 0;
    for (; at + step <= bytes; at += step) {
      SER_FAST_UNROLL
      for (int64_t i = 0; i < count; ++i) {
        const V word = load<I>(reinterpret_cast<const uint32_t*>(from + at + i * sizeof(V)));
        const V x = first[i] ^ word;
        first[i] = (x << 13 | x >> 19) * 0x9e3779b1;
        second[i] = (second[i] << 17 | second[i] >> 15) + word;
      }
    }
    for (int64_t i = 0; i < count; ++i)
      for (int64_t lane = 0; lane < kLanes<I, uint32_t>; ++lane)
        add(static_cast<uint64_t>(first[i][lane]) << 32 | second[i][lane]);
    for (; at < bytes; at += 4) {
      uint32_t word = 0;
      std::memcpy(&word, from + at, std::min<int64_t>(bytes - at, sizeof(word)));
      add(word);
    }
    add(bytes);
  }
};

// The latest layouts of one type, found by the content of the weights: so no change of them goes unnoticed, in whatever
// way, and nothing has to be invalidated, copied or pickled with a module. Never waits: while another thread looks
// something up, and for ever in a process forked meanwhile, nothing is found and nothing kept.
template <class Layout>
class Layouts {
  static constexpr int64_t kMost = 1 << 26;  // bytes

  struct Entry {
    Digest digest;
    int64_t bytes;
    std::shared_ptr<const Layout> layout;
  };

 public:
  // Lives until the process ends: threads may outlive static objects.
  static Layouts& all() {
    static Layouts& layouts = *new Layouts;
    return layouts;
  }

  std::shared_ptr<const Layout> find(const Digest& digest) {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock) return nullptr;
    const auto found =
        std::find_if(entries_.begin(), entries_.end(), [&](const Entry& entry) { return entry.digest == digest; });
    if (found == entries_.end()) return nullptr;
    std::rotate(found, found + 1, entries_.end());
    return entries_.back().layout;
  }

  void keep(const Digest& digest, int64_t bytes, const std::shared_ptr<const Layout>& layout) {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock || bytes > kMost) return;
    entries_.push_back({digest, bytes, layout});
    for (kept_ += bytes; kept_ > kMost; entries_.erase(entries_.begin())) kept_ -= entries_.front().bytes;
  }

 private:
  std::mutex mutex_;
  std::vector<Entry> entries_;  // the latest last
  int64_t kept_ = 0;
};

}  // namespace ser_fast
