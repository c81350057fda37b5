// Philox4x32-7, the counter-based random generator of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3"
// (2011), with the fewest rounds that pass all their tests. Any thread can draw any number of the stream of a key.
#pragma once

#include <cstdint>

#include "simd.h"

namespace ser_fast {

template <class I>
struct PhiloxTypes {
  typedef uint64_t Counters __attribute__((vector_size(I::kBytes)));
  typedef uint32_t Words __attribute__((vector_size(I::kBytes)));
};

// The products of the lower 32 bits of each element.
template <class I>
SER_FAST_INLINE typename PhiloxTypes<I>::Counters low_product(typename PhiloxTypes<I>::Counters a, uint32_t b) {
#if SER_FAST_X86
  // Inline assembly, because the compiler multiplies all 64 bits, in up to ten instructions.
  if constexpr (I::kBytes > 16) {
    typename PhiloxTypes<I>::Counters out = {}, factor = out + b;
    if constexpr (I::kBytes == 64) asm("vpmuludq %2, %1, %0" : "=v"(out) : "v"(a), "v"(factor));
    else asm("vpmuludq %2, %1, %0" : "=x"(out) : "x"(a), "x"(factor));
    return out;
  }
#endif
  return (a & 0xFFFFFFFF) * b;
}

template <class I>
SER_FAST_INLINE typename PhiloxTypes<I>::Words interleaved(const typename PhiloxTypes<I>::Counters (&word)[2]) {
  return (typename PhiloxTypes<I>::Words)((word[0] & 0xFFFFFFFF) | word[1] << 32);
}

// GCC 12 takes the initialised arrays of vectors below for uninitialised.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

// Writes word w of the call with counter (i, second, third, fourth) to words[w * stride + i], for i in 0..count and
// up to a whole vector.
template <class I>
SER_FAST_INLINE void philox(uint64_t key, uint32_t second, uint32_t third, uint32_t fourth, int64_t count,
                            uint32_t* words, int64_t stride) {
  using Counters = typename PhiloxTypes<I>::Counters;
  constexpr int64_t lanes = I::kBytes / sizeof(uint32_t);
  Counters even = {};  // one element per two words, whose upper half is ignored: even and odd calls apart
  for (int64_t i = 0; i < lanes / 2; ++i) even[i] = 2 * i;
  for (int64_t i = 0; i < count; i += lanes) {
    const Counters zero = {};
    Counters a[2] = {even + i, even + (i + 1)}, b[2] = {zero + second, zero + second};
    Counters c[2] = {zero + third, zero + third}, d[2] = {zero + fourth, zero + fourth};
    uint32_t low = static_cast<uint32_t>(key), high = static_cast<uint32_t>(key >> 32);
    SER_FAST_UNROLL
    for (int round = 0; round < 7; ++round) {
      SER_FAST_UNROLL
      for (int odd = 0; odd < 2; ++odd) {
        const Counters from_a = low_product<I>(a[odd], 0xD2511F53), from_c = low_product<I>(c[odd], 0xCD9E8D57);
        a[odd] = (from_c >> 32) ^ b[odd] ^ (Counters{} + low);
        b[odd] = from_c;
        c[odd] = (from_a >> 32) ^ d[odd] ^ (Counters{} + high);
        d[odd] = from_a;
      }
      low += 0x9E3779B9;
      high += 0xBB67AE85;
    }
    store(words + i, interleaved<I>(a));
    store(words + stride + i, interleaved<I>(b));
    store(words + 2 * stride + i, interleaved<I>(c));
    store(words + 3 * stride + i, interleaved<I>(d));
  }
}

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

}  // namespace ser_fast
