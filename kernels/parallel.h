// Interface to the caller's thread pool, so that the kernels start no threads of their own.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>

// Marks functions that both CPU and CUDA kernels call.
#ifdef __CUDACC__
#define SER_FAST_BOTH __host__ __device__ inline
#else
#define SER_FAST_BOTH inline __attribute__((always_inline))
#endif

namespace ser_fast {

// A thread that waits for another's result, which may be suspended, then does the work itself.
constexpr int kPatience = 1000;  // pauses of the processor, some 20 us

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Whether the threads of a pool come in time. Where other processes keep the processors busy they come milliseconds
// late, and the pool returns only when all have come: short calls then stay out of it, of the next 1, 3, 7, ... 63 all.
class Turnout {
 public:
  bool is_good() {
    if (left_out_.load(std::memory_order_relaxed) <= 0) return true;
    left_out_.fetch_sub(1, std::memory_order_relaxed);
    return false;
  }

  // Adds a call whose leader worked and then waited for the others.
  void add(std::chrono::duration<double> worked, std::chrono::duration<double> waited) {
    const bool late = waited.count() > std::max(worked.count() / 2, 1e-4);
    const int64_t last = next_.load(std::memory_order_relaxed);
    const int64_t next = late ? std::min<int64_t>(2 * last + 1, 63) : last / 2;
    next_.store(next, std::memory_order_relaxed);
    left_out_.store(late ? next : 0, std::memory_order_relaxed);
  }

 private:
  std::atomic<int64_t> next_{0}, left_out_{0};
};

struct Parallel {
  int64_t threads;
  // Calls body(state, begin, end) on disjoint ranges that cover [0, count), possibly at the same time.
  void (*run)(int64_t count, void (*body)(void* state, int64_t begin, int64_t end), void* state);

  // Entering the pool takes 5 to 10 us, and milliseconds if other processes keep the processors busy: each thread must
  // have at least so many nanoseconds of work. A measurement on the machine at hand may change it.
  static inline std::atomic<double> share = 100000;

  // Returns as many threads as pay for work that would take one thread so long.
  Parallel worth(double nanoseconds) const {
    const double least = share.load(std::memory_order_relaxed);
    return {std::clamp<int64_t>(static_cast<int64_t>(std::min(nanoseconds / least, 1e6)), 1, threads), run};
  }

  static inline Turnout turnout;

  // Calls lead() in the thread that comes first and help(1), help(2), ... in the others. A pool that runs all of this in
  // one thread leaves the leader alone.
  template <class Lead, class Help>
  void led(int64_t members, const Lead& lead, const Help& help) const {
    using Clock = std::chrono::steady_clock;
    struct State {
      const Lead& lead;
      const Help& help;
      std::atomic<int64_t> arrived{0};
      Clock::time_point begun = {}, ended = {};
    } state{lead, help};
    run(
        members,
        [](void* shared, int64_t, int64_t) {
          State& state = *static_cast<State*>(shared);
          const int64_t member = state.arrived.fetch_add(1, std::memory_order_relaxed);
          if (member > 0) return state.help(member);
          state.begun = Clock::now();
          state.lead();
          state.ended = Clock::now();
        },
        &state);
    turnout.add(state.ended - state.begun, Clock::now() - state.ended);
  }

  // Calls body(i) for every i in [0, count). Threads take the i in ascending order, so put the longest tasks first.
  template <class Body>
  void operator()(int64_t count, const Body& body) const {
    if (std::min(count, threads) <= 1) {
      for (int64_t i = 0; i < count; ++i) body(i);
      return;
    }
    struct State {
      const Body& body;
      int64_t count;
      std::atomic<int64_t> next{0};
    } state{body, count};
    run(
        std::min(count, threads),
        [](void* shared, int64_t, int64_t) {
          State& state = *static_cast<State*>(shared);
          for (int64_t i; (i = state.next.fetch_add(1, std::memory_order_relaxed)) < state.count;) state.body(i);
        },
        &state);
  }
};

}  // namespace ser_fast
