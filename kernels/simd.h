// Portable 64-byte vectors and the run-time choice of instruction set.
//
// Code is written once on Vec<T>; a function marked SER_FAST_CLONES is compiled for AVX-512, AVX2+FMA and
// the baseline, and the loader picks one by what the processor has. Whatever it calls must be
// SER_FAST_INLINE, or it would be compiled for the baseline alone.
#pragma once

#include <cstdint>
#include <cstring>

#define SER_FAST_INLINE __attribute__((always_inline)) inline

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define SER_FAST_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define SER_FAST_CLONES
#endif

// Before a loop: its iterations do not depend on each other, whatever their pointers look like to the compiler.
#if defined(__clang__)
#define SER_FAST_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define SER_FAST_INDEPENDENT _Pragma("GCC ivdep")
#endif

namespace ser_fast {

template <class T>
using Vec __attribute__((vector_size(64))) = T;

template <class T>
inline constexpr int64_t kLanes = 64 / sizeof(T);

template <class T>
SER_FAST_INLINE Vec<T> load(const T* p) {
  Vec<T> v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

template <class T, class V>
SER_FAST_INLINE void store(T* p, const V& v) {
  std::memcpy(p, &v, sizeof(v));
}

}  // namespace ser_fast
