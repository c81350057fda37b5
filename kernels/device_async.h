// Asynchronous primitives of the CUDA kernels: copies into shared memory, and stores between the blocks of a cluster.
// See device.h.
#pragma once

#include "device.h"

namespace ser_fast::gpu {

// Asynchronous copy from global to shared memory if valid, waited for in groups by the same thread.
template <int BYTES>
SER_FAST_DEVICE void copy_async(void* to, const void* from, bool valid = true) {
#ifdef __CUDACC__
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %3, 0;\n@p cp.async.ca.shared.global [%0], [%1], %2;\n}" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(to))),
               "l"(from), "n"(BYTES), "r"(static_cast<int>(valid))
               : "memory");
#else
  if (valid) host::copy_async(to, from, BYTES);
#endif
}
SER_FAST_DEVICE void copy_commit() {
#ifdef __CUDACC__
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  host::copy_commit();
#endif
}
// Waits until at most the PENDING youngest groups are in flight.
template <int PENDING>
SER_FAST_DEVICE void copy_wait() {
#ifdef __CUDACC__
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#else
  host::copy_wait(PENDING);
#endif
}

// The blocks of a cluster store into each other's shared memory; an mbarrier there counts the bytes received.
using Mbarrier = uint64_t;

#ifdef __CUDACC__
SER_FAST_DEVICE uint32_t shared_address(const void* at) { return static_cast<uint32_t>(__cvta_generic_to_shared(at)); }

SER_FAST_DEVICE int cluster_rank() {
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
// Releases and acquires the cluster's memory.
SER_FAST_DEVICE void cluster_barrier() { asm volatile("barrier.cluster.arrive;\nbarrier.cluster.wait;" ::: "memory"); }
// Orders this thread's accesses to shared memory before later asynchronous ones.
SER_FAST_DEVICE void async_fence() { asm volatile("fence.proxy.async;" ::: "memory"); }
SER_FAST_DEVICE void mbarrier_init(Mbarrier* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\nfence.mbarrier_init.release.cluster;" ::"r"(shared_address(barrier)),
               "r"(arrivals)
               : "memory");
}
SER_FAST_DEVICE void mbarrier_expect(Mbarrier* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}
// Acquires the cluster's shared memory only: a wait that acquires all memory would invalidate the L1 cache.
#if __CUDACC_VER_MAJOR__ * 100 + __CUDACC_VER_MINOR__ >= 1208
#define SER_FAST_TRY_WAIT "mbarrier.try_wait.parity.relaxed.cluster.shared::cta.b64"
#define SER_FAST_ACQUIRE "fence.acquire.sync_restrict::shared::cluster.cluster;"
#else
#define SER_FAST_TRY_WAIT "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64"
#define SER_FAST_ACQUIRE ""
#endif
SER_FAST_DEVICE void mbarrier_wait(Mbarrier* barrier, int parity) {
  uint32_t done = 0;
  while (!done)
    asm volatile("{\n.reg .pred done;\n" SER_FAST_TRY_WAIT " done, [%1], %2;\nselp.u32 %0, 1, 0, done;\n}"
                 : "=r"(done)
                 : "r"(shared_address(barrier)), "r"(parity)
                 : "memory");
  asm volatile(SER_FAST_ACQUIRE ::: "memory");
}
// Stores value at the address of `where` in the block of this rank, whose mbarrier `counted` counts the bytes.
template <class T>
SER_FAST_DEVICE void push(const Pair<T>& value, Pair<T>* where, Mbarrier* counted, int rank) {
  uint32_t to, barrier;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(to) : "r"(shared_address(where)), "r"(rank));
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(barrier) : "r"(shared_address(counted)), "r"(rank));
  if constexpr (sizeof(value) == 8) {
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b64 [%0], %1, [%2];" ::"r"(to),
                 "l"(*reinterpret_cast<const uint64_t*>(&value)), "r"(barrier)
                 : "memory");
  } else {
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(to),
                 "r"(*reinterpret_cast<const uint32_t*>(&value)), "r"(barrier)
                 : "memory");
  }
}
#else
inline int cluster_rank() { return host::rank(); }
inline void cluster_barrier(int line = __builtin_LINE()) { host::cluster_barrier(line); }
inline void async_fence() {}
inline void mbarrier_init(Mbarrier* barrier, int arrivals) { host::mbarrier_init(barrier, arrivals); }
// Arrives, and adds `bytes` to those that must arrive before the phase ends.
inline void mbarrier_expect(Mbarrier* barrier, int bytes) { host::mbarrier_expect(barrier, bytes); }
// Waits until the phase of this parity has ended.
inline void mbarrier_wait(Mbarrier* barrier, int parity, int line = __builtin_LINE()) {
  host::mbarrier_wait(barrier, parity, line);
}
template <class T>
void push(const Pair<T>& value, Pair<T>* where, Mbarrier* counted, int rank) {
  host::push(&value, sizeof(value), where, counted, rank);
}
#endif

}  // namespace ser_fast::gpu
