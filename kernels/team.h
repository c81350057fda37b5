// Threads that walk through the steps of one recurrence together.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <thread>

#include "buffer.h"
#include "parallel.h"

namespace ser_fast {

// Each member computes its part of every step; a step needs all parts of the one before. Member 0, the leader, waits for
// the others' parts only while they keep up: what a suspended thread would compute it computes itself. So a busy machine
// costs a step at most kPatience, where a barrier would cost the time until the system resumes the thread.
//
// Work has three functions. prepare(member, helping) comes before a member's first part; compute(member, step, helping)
// computes a part; take(member, step) adds a helper's part to the results of the step. What helpers write must lie apart
// until it is taken: one that was suspended ends late, and then nobody reads it.
template <class Work>
class Team {
 public:
  static constexpr int64_t kMost = 16;

  Team(Work& work, int64_t members, int64_t steps) : work_(work), members_(std::min(members, kMost)), steps_(steps) {}

  void walk(const Parallel& parallel) {
    parallel.led(members_, [this] { lead(); }, [this](int64_t member) { help(member); });
  }

 private:
  struct alignas(2 * kAligned) Counter {  // two lines: a processor fetches them in pairs
    std::atomic<int64_t> value{-1};
  };

  void lead() {
    std::array<bool, kMost> prepared = {};
    const auto compute = [&](int64_t member, int64_t step) {
      if (!prepared[member]) work_.prepare(member, false);
      prepared[member] = true;
      work_.compute(member, step, false);
    };
    for (int64_t step = 0; step < steps_; ++step) {
      step_.value.store(step, std::memory_order_release);
      compute(0, step);
      for (int64_t member = 1; member < members_; ++member) {
        if (has_done(member, step)) work_.take(member, step);
        else compute(member, step);
      }
    }
    step_.value.store(steps_, std::memory_order_release);
  }

  bool has_done(int64_t member, int64_t step) const {
    const std::atomic<int64_t>& done = done_[member].value;
    int64_t last = done.load(std::memory_order_acquire);
    if (last < step - 1) return false;  // not there yet, or behind
    for (int i = 0; i < kPatience && last != step; ++i) {
      pause();
      last = done.load(std::memory_order_acquire);
    }
    return last == step;
  }

  void help(int64_t member) {
    work_.prepare(member, true);
    int64_t last = -1, step;
    for (int spins = 0; (step = step_.value.load(std::memory_order_acquire)) != steps_;) {
      if (step == last) {
        if (++spins < kPatience) pause();
        else std::this_thread::yield();
        continue;
      }
      work_.compute(member, step, true);
      done_[member].value.store(last = step, std::memory_order_release);
      spins = 0;
    }
  }

  Work& work_;
  const int64_t members_, steps_;
  Counter step_;                     // the one to compute
  std::array<Counter, kMost> done_;  // the last step of each member
};

}  // namespace ser_fast
