// What a CUDA kernel asks of the hardware: one body for the device, one for the host.
//
// nvcc sees the intrinsics themselves. A host compiler sees calls of a runner (tests/native/runner.cpp) that gives
// every thread of a block a fiber, so that the same kernel source runs, and is tested, where there is no GPU. What the
// host cannot show: memory ordering, real timing.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#ifndef __CUDACC__
#include <functional>
#endif

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#define SER_FAST_KERNEL __global__
#define SER_FAST_DEVICE __device__ __forceinline__
#define SER_FAST_UNROLL _Pragma("unroll")
#else
#define SER_FAST_KERNEL inline
#define SER_FAST_DEVICE inline
#define SER_FAST_UNROLL
#endif

namespace ser_fast::gpu {

// float16 and bfloat16 as they lie in memory.
struct Half {
  uint16_t bits;
};
struct Bfloat {
  uint16_t bits;
};

#ifndef __CUDACC__
// Provided by the runner, for the fiber that asks.
namespace host {
int thread();
int block();
void* shared();
void barrier(int line);
uint32_t exchange(uint32_t bits, int from, int line);
// Runs a grid block by block. Throws std::runtime_error naming who waits where if no thread can go on.
void run(int blocks, int threads, size_t shared, uint64_t seed, const std::function<void()>& kernel);
}  // namespace host
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

// Every thread of the block comes to a barrier, every lane of the warp to a shuffle: the same one, which the host
// checks by the caller's line.
#ifdef __CUDACC__
SER_FAST_DEVICE void barrier() { __syncthreads(); }
// The value of the lane whose number differs in these bits.
SER_FAST_DEVICE float shuffle_xor(float x, int bits) { return __shfl_xor_sync(0xffffffffu, x, bits); }
#else
inline void barrier(int line = __builtin_LINE()) { host::barrier(line); }
inline float shuffle_xor(float x, int bits, int line = __builtin_LINE()) {
  uint32_t raw;
  std::memcpy(&raw, &x, 4);
  raw = host::exchange(raw, lane() ^ bits, line);
  std::memcpy(&x, &raw, 4);
  return x;
}
#endif

SER_FAST_DEVICE float warp_sum(float x) {
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

// What one thread reads or writes at once: 16 bytes.
template <class T>
struct alignas(16) Pack {
  T value[16 / sizeof(T)];
};

// 0, or the driver's error. On the host the stream is the seed of the order in which threads run.
using Stream = void*;

template <class Args>
int launch(void (*kernel)(Args), int blocks, int threads, size_t shared, Stream stream, const Args& args) {
#ifdef __CUDACC__
  if (shared > 48 * 1024) {
    const auto failed = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
    if (failed != cudaSuccess) return failed;
  }
  kernel<<<blocks, threads, shared, static_cast<cudaStream_t>(stream)>>>(args);
  return cudaGetLastError();
#else
  host::run(blocks, threads, shared, reinterpret_cast<uintptr_t>(stream), [&] { kernel(args); });
  return 0;
#endif
}

}  // namespace ser_fast::gpu
