// Portable vectors and the run-time choice of instruction set.
//
// Code is written once, as templates on an instruction set I and its Vec<I, T>. SER_FAST_EACH_ISA defines the few
// functions that are compiled once per set; every function that they call must be SER_FAST_INLINE, or it would be
// compiled for the baseline only. with_isa selects the set at run time.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#define SER_FAST_INLINE __attribute__((always_inline)) inline

#if defined(__x86_64__) && defined(__linux__)
#define SER_FAST_X86 1
#define SER_FAST_AVX2 __attribute__((target("arch=x86-64-v3")))
#define SER_FAST_AVX512 __attribute__((target("arch=x86-64-v4")))
#define SER_FAST_AVX512_BF16 __attribute__((target("arch=x86-64-v4,avx512bf16")))
#define SER_FAST_EACH_ISA(define) define(Portable, ) define(Avx2, SER_FAST_AVX2) define(Avx512, SER_FAST_AVX512)
#else
#define SER_FAST_X86 0
#define SER_FAST_EACH_ISA(define) define(Portable, )
#endif

// Before a loop: its iterations are independent, so the compiler need not assume that pointers alias.
#if defined(__clang__)
#define SER_FAST_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#define SER_FAST_UNROLL _Pragma("unroll")
#else
#define SER_FAST_INDEPENDENT _Pragma("GCC ivdep")
#define SER_FAST_UNROLL _Pragma("GCC unroll 16")
#endif

namespace ser_fast {

enum class Isa { kPortable, kAvx2, kAvx512, kAvx512Bf16 };

// The instruction set in use: the best of the processor, or SER_FAST_CPU if it is set. Determined once per process.
Isa isa();
const char* isa_name();

// kRows: the kRows x 3 vectors of sums, 3 of weights and 1 factor of a product fit in the vector registers.
struct Portable {
  static constexpr int kBytes = 16, kRows = 4;
};
struct Avx2 {
  static constexpr int kBytes = 32, kRows = 4;
};
struct Avx512 {
  static constexpr int kBytes = 64, kRows = 8;
};
struct Avx512Bf16 : Avx512 {};

template <class I, class T>
struct VecOf {
  typedef T type __attribute__((vector_size(I::kBytes)));
};
template <class I, class T>
using Vec = typename VecOf<I, T>::type;

template <class I, class T>
inline constexpr int64_t kLanes = I::kBytes / sizeof(T);

// bfloat16: the upper half of a float.
struct Bf16 {
  uint16_t bits;
};

// A value of -1..1 in fixed point, and a weight that multiplies it.
struct Fixed {
  static constexpr float kUnit = 0x1p-14f;
  int16_t units;
};
struct Byte {
  int8_t value;
};

// The type in which values stored as S are computed.
template <class S>
using Wide = std::conditional_t<sizeof(S) < 4, float, S>;

template <class T, class S>
SER_FAST_INLINE T convert(S value) {
  if constexpr (std::is_same_v<S, Bf16> && !std::is_same_v<T, Bf16>)
    return std::bit_cast<float>(static_cast<uint32_t>(value.bits) << 16);
  else return value;
}

template <class I, class S>
SER_FAST_INLINE Vec<I, Wide<S>> load(const S* p) {
  if constexpr (std::is_same_v<S, Bf16>) {
    typedef uint16_t Half __attribute__((vector_size(I::kBytes / 2)));
    Half half;
    std::memcpy(&half, p, sizeof(half));
    return (Vec<I, float>)(__builtin_convertvector(half, Vec<I, uint32_t>) << 16);
  } else if constexpr (std::is_same_v<S, int8_t>) {
    typedef int8_t Quarter __attribute__((vector_size(I::kBytes / 4), aligned(1), may_alias));
    const Quarter& quarter = *reinterpret_cast<const Quarter*>(p);
    Vec<I, int32_t> whole;
#if SER_FAST_X86
    if constexpr (I::kBytes >= 32) asm("vpmovsxbd %1, %0" : "=v"(whole) : "m"(quarter));  // GCC takes many more
    else
#endif
      whole = __builtin_convertvector(quarter, Vec<I, int32_t>);
    return __builtin_convertvector(whole, Vec<I, float>);
  } else {
    Vec<I, S> v;
    std::memcpy(&v, p, sizeof(v));
    return v;
  }
}

template <class T, class V>
SER_FAST_INLINE void store(T* p, const V& v) {
  static_assert(sizeof(v[0]) == sizeof(T));
  std::memcpy(p, &v, sizeof(v));
}

// Rounded to the nearest, ties to even.
template <class V>
SER_FAST_INLINE void store(Bf16* p, const V& v) {
  typedef uint32_t Bits __attribute__((vector_size(sizeof(V))));
  typedef uint16_t Half __attribute__((vector_size(sizeof(V) / 2)));
  const Bits bits = (Bits)v, rounded = bits + 0x7fff + ((bits >> 16) & 1);
  const Half half = __builtin_convertvector((v == v ? rounded : (bits | 0x400000)) >> 16, Half);
  std::memcpy(p, &half, sizeof(half));
}

template <class V>
SER_FAST_INLINE void store(Fixed* p, const V& v) {
  typedef int16_t Half __attribute__((vector_size(sizeof(V) / 2)));
  const auto bits = (decltype(v < v))(v * (1 / Fixed::kUnit) + 12582912.0f);  // the integer is in the low half
  const Half half = __builtin_convertvector(bits, Half);
  std::memcpy(p, &half, sizeof(half));
}

// The first `count` elements of a vector. load sets the others to 0; store leaves them unchanged in memory.
template <class I, class S>
SER_FAST_INLINE Vec<I, Wide<S>> load(const S* p, int64_t count) {
  constexpr int64_t lanes = kLanes<I, Wide<S>>;
  if (count >= lanes) return load<I>(p);
  S some[lanes] = {};
  std::memcpy(some, p, count * sizeof(S));
  return load<I, S>(some);
}

template <class S, class V>
SER_FAST_INLINE void store(S* p, const V& v, int64_t count) {
  constexpr int64_t lanes = sizeof(V) / sizeof(Wide<S>);
  if (count >= lanes) return store(p, v);
  S some[lanes];
  store(static_cast<S*>(some), v);
  std::memcpy(p, some, count * sizeof(S));
}

// Keeps a vector in a register. GCC otherwise reads some from memory again for each of their products.
template <class V>
SER_FAST_INLINE V in_register(V v) {
#if SER_FAST_X86
  asm("" : "+v"(v));
#endif
  return v;
}

template <class V>
using Element = std::remove_cvref_t<decltype(V{}[0])>;

template <class V>
SER_FAST_INLINE Element<V> sum_lanes(V v) {
  if constexpr (sizeof(V) > 16) {
    typedef Element<V> Half __attribute__((vector_size(sizeof(V) / 2)));
    Half low, high;
    std::memcpy(&low, &v, sizeof(low));
    std::memcpy(&high, reinterpret_cast<const char*>(&v) + sizeof(low), sizeof(high));
    return sum_lanes(Half(low + high));
  } else if constexpr (sizeof(V) / sizeof(v[0]) == 4) {
    return (v[0] + v[2]) + (v[1] + v[3]);
  } else {
    return v[0] + v[1];
  }
}

template <class V>
SER_FAST_INLINE Element<V> largest_lane(V v) {
  if constexpr (sizeof(V) > 16) {
    typedef Element<V> Half __attribute__((vector_size(sizeof(V) / 2)));
    Half low, high;
    std::memcpy(&low, &v, sizeof(low));
    std::memcpy(&high, reinterpret_cast<const char*>(&v) + sizeof(low), sizeof(high));
    return largest_lane(Half(low > high ? low : high));
  } else {
    Element<V> largest = v[0];
    for (size_t i = 1; i < sizeof(V) / sizeof(v[0]); ++i) largest = std::max<Element<V>>(largest, v[i]);
    return largest;
  }
}

// Exchanges the lanes of a with bit `bit` of their number set with the lanes of b that have it not. Over all bits it
// transposes as many vectors as they have lanes.
template <int bit, class V, size_t... lane>
SER_FAST_INLINE void exchange(V& a, V& b, std::index_sequence<lane...>) {
  constexpr int lanes = sizeof...(lane);
  using Ints = decltype(a < a);
  const V low = a;
#if defined(__clang__)
  a = __builtin_shufflevector(low, b, (lane & bit ? lanes + lane - bit : lane)...);
  b = __builtin_shufflevector(low, b, (lane & bit ? lanes + lane : lane + bit)...);
#else
  a = __builtin_shuffle(low, b, Ints{(lane & bit ? lanes + lane - bit : lane)...});
  b = __builtin_shuffle(low, b, Ints{(lane & bit ? lanes + lane : lane + bit)...});
#endif
}

// Transposes rows[lanes] in place.
template <int bit = 1, class V>
SER_FAST_INLINE void transpose(V* rows) {
  constexpr int lanes = sizeof(V) / sizeof(Element<V>);
  if constexpr (bit < lanes) {
    SER_FAST_UNROLL
    for (int i = 0; i < lanes; ++i)
      if (!(i & bit)) exchange<bit>(rows[i], rows[i | bit], std::make_index_sequence<lanes>{});
    transpose<bit * 2>(rows);
  }
}

// Returns the sums over the lanes of rows[lanes], the i-th in lane i; overwrites rows.
template <int bit = 1, class V>
SER_FAST_INLINE V sums_of(V* rows) {
  constexpr int lanes = sizeof(V) / sizeof(Element<V>);
  if constexpr (bit < lanes) {
    SER_FAST_UNROLL
    for (int i = 0; i < lanes; i += 2 * bit) {
      exchange<bit>(rows[i], rows[i + bit], std::make_index_sequence<lanes>{});
      rows[i] += rows[i + bit];
    }
    return sums_of<bit * 2>(rows);
  }
  return rows[0];
}

// Calls call(I{}) with the instruction set to use for tensors of S.
template <class S, class Call>
void with_isa(const Call& call) {
#if SER_FAST_X86
  if (isa() == Isa::kAvx512Bf16) {
    if constexpr (std::is_same_v<S, Bf16>) return call(Avx512Bf16{});
    else return call(Avx512{});
  }
  if (isa() == Isa::kAvx512) return call(Avx512{});
  if (isa() == Isa::kAvx2) return call(Avx2{});
#endif
  return call(Portable{});
}

}  // namespace ser_fast
