// The CUDA kernels of attention pooling as functions of the host: see device.h.
#include "../../kernels/attention_pool.cu"

#include <cstdio>

namespace ser_fast {
namespace {

template <class T>
int forward_of(const void* args, size_t seed) {
  return attention_pool_forward_cuda(*static_cast<const PoolForwardGpu<T>*>(args), reinterpret_cast<Stream>(seed));
}
template <class T>
int backward_of(const void* args, size_t seed) {
  return attention_pool_backward_cuda(*static_cast<const PoolBackwardGpu<T>*>(args), reinterpret_cast<Stream>(seed));
}

// The error's text, or nothing: exceptions do not cross into Python.
template <class Call>
int guarded(char* error, size_t size, Call call) {
  try {
    return call();
  } catch (const std::exception& failed) {
    std::snprintf(error, size, "%s", failed.what());
    return -1;
  }
}

}  // namespace
}  // namespace ser_fast

extern "C" {

void pool_plan(const ser_fast::PoolShape* shape, int bytes, int aligned, ser_fast::PoolPlan* plan) {
  *plan = ser_fast::pool_plan(*shape, bytes, aligned != 0);
}

// kind: 0 float32, 1 float16, 2 bfloat16.
int pool_forward(int kind, const void* args, size_t seed, char* error, size_t size) {
  using namespace ser_fast;
  const auto run = kind == 0 ? forward_of<float> : kind == 1 ? forward_of<gpu::Half> : forward_of<gpu::Bfloat>;
  return guarded(error, size, [&] { return run(args, seed); });
}

int pool_backward(int kind, const void* args, size_t seed, char* error, size_t size) {
  using namespace ser_fast;
  const auto run = kind == 0 ? backward_of<float> : kind == 1 ? backward_of<gpu::Half> : backward_of<gpu::Bfloat>;
  return guarded(error, size, [&] { return run(args, seed); });
}
}
