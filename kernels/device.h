// Hardware primitives of the CUDA kernels, each with a body for the device and one for the host.
//
// nvcc compiles intrinsics and PTX. A host compiler compiles calls of a runner (tests/native/runner.cpp) that runs
// every thread of a cluster as a fiber, so that the same kernel source can be tested without a GPU. The host does not
// model memory ordering and fences, the rounding of the tensor cores, or timing.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#ifndef __CUDACC__
#include <functional>
#endif

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#define SER_FAST_KERNEL __global__
#define SER_FAST_BOUNDS(threads) __launch_bounds__(threads, 1)
#define SER_FAST_BLOCKS(threads, blocks) __launch_bounds__(threads, blocks)  // blocks at once on a multiprocessor
#define SER_FAST_DEVICE __device__ __forceinline__
#define SER_FAST_UNROLL _Pragma("unroll")
#define SER_FAST_ROLL _Pragma("unroll 1")
#else
#define SER_FAST_KERNEL inline
#define SER_FAST_BOUNDS(threads)
#define SER_FAST_BLOCKS(threads, blocks)
#define SER_FAST_DEVICE inline
#define SER_FAST_UNROLL
#define SER_FAST_ROLL
#endif

namespace ser_fast::gpu {

// float16 and bfloat16 as bits.
struct Half {
  uint16_t bits;
};
struct Bfloat {
  uint16_t bits;
};

#ifndef __CUDACC__
// Defined by the runner; all but run refer to the calling fiber.
namespace host {
int thread();
int block();
int rank();  // of the block in the cluster
void* shared();
void barrier(int line);
void barrier_of(int id, int threads, int line);
void cluster_barrier(int line);
// Waits until every lane of the warp has called this at the same line, then runs work once on their values of mine.
void together(void* mine, void (*work)(void* const* all), int line);
void mbarrier_init(void* barrier, int arrivals);
void mbarrier_expect(void* barrier, int bytes);
void mbarrier_wait(void* barrier, int parity, int line);
void push(const void* value, int bytes, void* where, void* counted, int rank);
void copy_async(void* to, const void* from, int bytes);
void copy_commit();
void copy_wait(int pending);
// Runs a grid cluster by cluster. Throws std::runtime_error if no thread can continue, with the line each waits at.
void run(int blocks, int threads, int cluster, size_t shared, uint64_t seed, const std::function<void()>& kernel);
}  // namespace host
#endif

// Clusters of blocks, with barriers and stores into each other's shared memory, need compute capability 9.0 or later.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr bool kClusters = false;
#else
constexpr bool kClusters = true;
#endif

SER_FAST_DEVICE int thread() {
#ifdef __CUDACC__
  return threadIdx.x;
#else
  return host::thread();
#endif
}
SER_FAST_DEVICE int lane() { return thread() & 31; }
SER_FAST_DEVICE int warp() { return thread() >> 5; }
SER_FAST_DEVICE int block() {
#ifdef __CUDACC__
  return blockIdx.x;
#else
  return host::block();
#endif
}

template <class T>
SER_FAST_DEVICE T* shared() {
#ifdef __CUDACC__
  extern __shared__ __align__(16) unsigned char memory[];
  return reinterpret_cast<T*>(memory);
#else
  return static_cast<T*>(host::shared());
#endif
}

// Returns x, whose origin is hidden from the compiler, so that it is not computed anew at every use.
template <class T>
SER_FAST_DEVICE T kept(T x) {
#ifdef __CUDACC__
  if constexpr (std::is_same_v<T, float>) asm volatile("" : "+f"(x));
  else if constexpr (sizeof(T) == 8) asm volatile("" : "+l"(x));
  else asm volatile("" : "+r"(x));
#endif
  return x;
}

// The same for a pointer to shared memory, which the compiler still knows to be one.
template <class T>
SER_FAST_DEVICE T* kept_shared(T* at) {
#ifdef __CUDACC__
  return static_cast<T*>(__cvta_shared_to_generic(kept(static_cast<uint32_t>(__cvta_generic_to_shared(at)))));
#else
  return at;
#endif
}

// All threads of the block must reach the same barrier, and all lanes of the warp the same shuffle. The host checks
// this by the caller's line.
#ifdef __CUDACC__
SER_FAST_DEVICE void barrier() { __syncthreads(); }
// Barrier of ``threads`` threads of the block; id in 1..15.
SER_FAST_DEVICE void barrier_of(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }
// Returns the x of lane ``lane() ^ bits``.
template <class T>
SER_FAST_DEVICE T shuffle_xor(T x, int bits) {
  return __shfl_xor_sync(0xffffffffu, x, bits);
}
#else
inline void barrier(int line = __builtin_LINE()) { host::barrier(line); }
inline void barrier_of(int id, int threads, int line = __builtin_LINE()) { host::barrier_of(id, threads, line); }
template <class T>
T shuffle_xor(T x, int bits, int line = __builtin_LINE()) {
  struct Mine {
    T given, taken;
    int from;
  } mine = {x, x, lane() ^ bits};
  host::together(&mine, [](void* const* all) {
    for (int i = 0; i < 32; ++i) {
      Mine* one = static_cast<Mine*>(all[i]);
      one->taken = static_cast<Mine*>(all[one->from])->given;
    }
  }, line);
  return mine.taken;
}
#endif

// Barrier of a warp's lanes, after which each sees what the others stored.
#ifdef __CUDACC__
SER_FAST_DEVICE void warp_barrier() { __syncwarp(); }
#else
inline void warp_barrier(int line = __builtin_LINE()) { host::together(nullptr, [](void* const*) {}, line); }
#endif

// Reconverges the lanes of a warp after a branch, as tensor core products require.
SER_FAST_DEVICE void converge() {
#ifdef __CUDACC__
  __syncwarp();
#endif
}

template <class T>
SER_FAST_DEVICE T warp_sum(T x) {
  for (int bits = 16; bits; bits /= 2) x += shuffle_xor(x, bits);
  return x;
}

SER_FAST_DEVICE float maximum(float a, float b) { return a > b ? a : b; }

SER_FAST_DEVICE float exponential(float x) {
#ifdef __CUDACC__
  return expf(x);
#else
  return std::exp(x);
#endif
}

SER_FAST_DEVICE float logarithm(float x) {
#ifdef __CUDACC__
  return logf(x);
#else
  return std::log(x);
#endif
}

// 1 / (1 + exp(-x)), with an error below 2^-21. Subnormal intermediate results may be 0.
SER_FAST_DEVICE float sigmoid(float x) {
#ifdef __CUDACC__
  float power, inverse;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x * -1.44269504f));
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(1 + power));
  return inverse;
#else
  return 1 / (1 + std::exp(-x));
#endif
}

SER_FAST_DEVICE float tangent(float x) {
#ifdef __CUDACC__
  return tanhf(x);
#else
  return std::tanh(x);
#endif
}

// tanh with a relative error of at most 2^-11, in one instruction.
SER_FAST_DEVICE float rough_tangent(float x) {
#ifdef __CUDACC__
  asm("tanh.approx.f32 %0, %0;" : "+f"(x));
  return x;
#else
  // Cut to 11 fraction bits, the error that the device may have.
  const float exact = std::tanh(x);
  uint32_t bits;
  std::memcpy(&bits, &exact, 4);
  bits &= 0xfffff000;
  std::memcpy(&x, &bits, 4);
  return x;
#endif
}

SER_FAST_DEVICE float widen(float x) { return x; }
SER_FAST_DEVICE float widen(Half x) {
#ifdef __CUDACC__
  return __half2float(__ushort_as_half(x.bits));
#else
  _Float16 value;
  std::memcpy(&value, &x, 2);
  return value;
#endif
}
SER_FAST_DEVICE float widen(Bfloat x) {
#ifdef __CUDACC__
  return __bfloat162float(__ushort_as_bfloat16(x.bits));
#else
  const uint32_t raw = static_cast<uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &raw, 4);
  return value;
#endif
}

SER_FAST_DEVICE void narrow(float x, float* out) { *out = x; }
SER_FAST_DEVICE void narrow(float x, Half* out) {
#ifdef __CUDACC__
  out->bits = __half_as_ushort(__float2half_rn(x));
#else
  const _Float16 value = x;
  std::memcpy(out, &value, 2);
#endif
}
SER_FAST_DEVICE void narrow(float x, Bfloat* out) {
#ifdef __CUDACC__
  out->bits = __bfloat16_as_ushort(__float2bfloat16_rn(x));
#else
  uint32_t raw;
  std::memcpy(&raw, &x, 4);
  // To the nearest, ties to even; a NaN stays one.
  out->bits = x != x ? 0x7fff : static_cast<uint16_t>((raw + 0x7fff + (raw >> 16 & 1)) >> 16);
#endif
}

// 16 bytes, read or written in one access.
template <class T>
struct alignas(16) Pack {
  T value[16 / sizeof(T)];
};

// Two neighbouring elements, read and written in one access.
template <class T>
struct alignas(2 * sizeof(T)) Pair {
  T value[2];
};

// Both elements of a pair, read in one access and rounded in one conversion.
SER_FAST_DEVICE void widen(const Pair<float>& from, float (&to)[2]) {
  to[0] = from.value[0];
  to[1] = from.value[1];
}
template <class T>
SER_FAST_DEVICE void widen(const Pair<T>& from, float (&to)[2]) {
  uint32_t bits;
  memcpy(&bits, __builtin_assume_aligned(&from, 4), 4);
  if constexpr (std::is_same_v<T, Half>) {
    to[0] = widen(T{static_cast<uint16_t>(bits)});
    to[1] = widen(T{static_cast<uint16_t>(bits >> 16)});
  } else {
    const uint32_t wide[] = {bits << 16, bits & 0xffff0000};
    memcpy(to, wide, 8);
  }
}
template <class T>
SER_FAST_DEVICE Pair<T> narrowed(const float (&from)[2]) {
  Pair<T> to;
#ifdef __CUDACC__
  if constexpr (sizeof(T) == 2) {
    uint32_t bits;
    if constexpr (std::is_same_v<T, Half>) asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(from[1]), "f"(from[0]));
    else asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(from[1]), "f"(from[0]));
    memcpy(&to, &bits, 4);
    return to;
  }
#endif
  narrow(from[0], &to.value[0]);
  narrow(from[1], &to.value[1]);
  return to;
}

// Rounds to the nearest tf32 number (10 fraction bits), ties away from zero.
SER_FAST_DEVICE float round_tf32(float x) {
  uint32_t bits;
#ifdef __CUDACC__
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return __uint_as_float(bits);
#else
  std::memcpy(&bits, &x, 4);
  if ((bits & 0x7f800000) != 0x7f800000) bits = (bits + 0x1000) & 0xffffe000;
  std::memcpy(&x, &bits, 4);
  return x;
#endif
}

// x truncated to tf32 and the remainder, both as the bits of a float.
struct Tf32Parts {
  uint32_t high, low;
};
SER_FAST_DEVICE Tf32Parts split_tf32(uint32_t x) {
#ifdef __CUDACC__
  uint32_t high;  // volatile: recomputed at every use, or hoisted parts of loop constants would fill the registers
  asm volatile("and.b32 %0, %1, 0xffffe000;" : "=r"(high) : "r"(x));
  return {high, __float_as_uint(__uint_as_float(x) - __uint_as_float(high))};
#else
  const uint32_t high = x & 0xffffe000;
  float whole, part;
  std::memcpy(&whole, &x, 4);
  std::memcpy(&part, &high, 4);
  whole -= part;
  uint32_t low;
  std::memcpy(&low, &whole, 4);
  return {high, low};
#endif
}

// Tensor core product of one warp: sum [16, 8] += a [16, K] b [K, 8], with K = 32 bytes of T; float is read as tf32.
// With g = lane / 4 and t = lane % 4, a lane holds sum at rows g, g + 8 and columns 2t, 2t + 1, a at rows g, g + 8
// and b at column g; a and b each at two places K / 2 apart: elements 2t, 2t + 1 of 16 bits, or float t. Volatile, so
// that the compiler does not move it into divergent code.
#ifdef __CUDACC__
#define SER_FAST_MMA(T, KIND)                                                                                       \
  SER_FAST_DEVICE void multiply(T, float(&sum)[4], const uint32_t(&a)[4], const uint32_t(&b)[2]) {                  \
    asm volatile("mma.sync.aligned." KIND ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"    \
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])                                                    \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                                        \
  }
SER_FAST_MMA(Half, "m16n8k16.row.col.f32.f16.f16")
SER_FAST_MMA(Bfloat, "m16n8k16.row.col.f32.bf16.bf16")
SER_FAST_MMA(float, "m16n8k8.row.col.f32.tf32.tf32")
#undef SER_FAST_MMA
#else
namespace host {
// Value i of a 32-bit operand, widened: one of two halves, or a float truncated to tf32.
inline float part(Half, uint32_t bits, int i) { return widen(Half{static_cast<uint16_t>(bits >> 16 * i)}); }
inline float part(Bfloat, uint32_t bits, int i) { return widen(Bfloat{static_cast<uint16_t>(bits >> 16 * i)}); }
inline float part(float, uint32_t bits, int) {
  bits &= 0xffffe000;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
}  // namespace host

template <class T>
void multiply(T, float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], int line = __builtin_LINE()) {
  struct Mine {
    float* sum;
    const uint32_t *a, *b;
  } mine = {sum, a, b};
  host::together(&mine, [](void* const* all) {
    const auto lane_at = [&](int lane) { return static_cast<Mine*>(all[lane]); };
    constexpr int kParts = 4 / sizeof(T);
    for (int lane = 0; lane < 32; ++lane)
      for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        float total = lane_at(lane)->sum[i];
        for (int t = 0; t < 4; ++t)
          for (int half = 0; half < 2; ++half)
            for (int p = 0; p < kParts; ++p)
              total += host::part(T{}, lane_at(row % 8 * 4 + t)->a[row / 8 + 2 * half], p) *
                       host::part(T{}, lane_at(column * 4 + t)->b[half], p);
        lane_at(lane)->sum[i] = total;
      }
  }, line);
}
#endif

// Stores a pair in global memory if valid. By a predicate: for several stores the compiler would branch.
template <class T>
SER_FAST_DEVICE void store(const Pair<T>& pair, Pair<T>* to, bool valid) {
#ifdef __CUDACC__
  std::conditional_t<sizeof(pair) == 8, uint64_t, uint32_t> bits;
  memcpy(&bits, &pair, sizeof(pair));
  if constexpr (sizeof(pair) == 8)
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %2, 0;\n@p st.global.b64 [%0], %1;\n}" ::"l"(to), "l"(bits),
                 "r"(static_cast<int>(valid))
                 : "memory");
  else
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %2, 0;\n@p st.global.b32 [%0], %1;\n}" ::"l"(to), "r"(bits),
                 "r"(static_cast<int>(valid))
                 : "memory");
#else
  if (valid) *to = pair;
#endif
}

// A cudaStream_t; on the host, the seed of the order in which threads run.
using Stream = void*;

// Returns 0 or the CUDA error.
template <class Args>
int launch(void (*kernel)(Args), int blocks, int threads, size_t shared, Stream stream, const Args& args, int cluster = 1) {
#ifdef __CUDACC__
  if (shared > 48 * 1024) {
    // The device's maximum, because the attribute belongs to the kernel and another host thread may need more memory.
    int device = 0, most = 0;
    cudaError_t failed = cudaGetDevice(&device);
    if (!failed) failed = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    if (!failed) failed = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
    if (failed) return failed;
  }
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = blocks;
  config.blockDim = threads;
  config.dynamicSmemBytes = shared;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &attribute;
  config.numAttrs = cluster > 1;
  return cudaLaunchKernelEx(&config, kernel, args);
#else
  host::run(blocks, threads, cluster, shared, reinterpret_cast<uintptr_t>(stream), [&] { kernel(args); });
  return 0;
#endif
}

}  // namespace ser_fast::gpu
