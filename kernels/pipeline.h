// A pipeline of two stages: several threads make parts, and one of them uses these in order.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>

#include "parallel.h"

namespace ser_fast {

// Threads begin the parts in ascending order. The thread that comes first leads: it uses each part, and makes others
// only while the one that it needs is not made. If all parts are begun and that one is still not made, its thread may be
// suspended: after kPatience the leader makes it again, apart from the first time.
//
// Work has two functions: make(part, again) and use(part, again), where a part made again lies in a place of its own.
template <class Work>
class Pipeline {
 public:
  static constexpr int64_t kMost = 64;  // parts

  Pipeline(Work& work, int64_t parts) : work_(work), parts_(parts) {}  // at most kMost

  void run(const Parallel& parallel) {
    const int64_t members = std::min(parallel.threads, parts_);
    if (members <= 1) return lead();
    parallel.led(members, [this] { lead(); }, [this](int64_t) { while (make_next()) continue; });
  }

 private:
  bool is_made(int64_t part) const { return made_[part].load(std::memory_order_acquire); }

  bool make_next() {
    const int64_t part = begun_.fetch_add(1, std::memory_order_relaxed);
    if (part >= parts_) return false;
    work_.make(part, false);
    made_[part].store(true, std::memory_order_release);
    return true;
  }

  void lead() {
    for (int64_t part = 0; part < parts_; ++part) {
      while (!is_made(part) && make_next()) continue;
      for (int i = 0; i < kPatience && !is_made(part); ++i) pause();
      const bool again = !is_made(part);
      if (again) work_.make(part, true);
      work_.use(part, again);
    }
  }

  Work& work_;
  const int64_t parts_;
  std::atomic<int64_t> begun_{0};
  std::array<std::atomic<bool>, kMost> made_ = {};
};

}  // namespace ser_fast
