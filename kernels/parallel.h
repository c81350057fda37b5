// How a kernel asks its host for threads, so that it shares the host's pool instead of starting its own.
#pragma once

#include <cstdint>

namespace ser_fast {

struct Parallel {
  // Calls body(state, begin, end) on disjoint ranges that cover [0, count), possibly at the same time.
  void (*run)(int64_t count, void (*body)(void* state, int64_t begin, int64_t end), void* state);

  template <class Body>
  void operator()(int64_t count, const Body& body) const {
    run(
        count,
        [](void* state, int64_t begin, int64_t end) {
          const Body& body = *static_cast<const Body*>(state);
          for (int64_t i = begin; i < end; ++i) body(i);
        },
        const_cast<Body*>(&body));
  }
};

}  // namespace ser_fast
