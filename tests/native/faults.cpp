// Kernels with a fault each, which the runner must report.
#include <cmath>
#include <cstdio>
#include <stdexcept>

#include "../../kernels/device.h"

namespace {

using namespace ser_fast::gpu;

struct Args {
  float* out;
};

void half_a_warp(Args) {
  if (lane() < 16) warp_sum(1);
}

void two_barriers(Args) {
  if (warp() == 0) {
    barrier();
  } else {
    barrier();
  }
}

void left_early(Args) {
  if (thread() == 40) return;
  barrier();
}

void unwritten(Args args) {
  if (thread() < 63) shared<float>()[thread()] = 1;
  barrier();
  if (thread() == 0) *args.out = shared<float>()[63];
}

void racing(Args args) {
  shared<float>()[0] = static_cast<float>(thread());
  barrier();
  if (thread() == 0) *args.out = shared<float>()[0];
}

void outside(Args) { shared<float>()[128 + thread()] = 1; }

}  // namespace

// What the runner says of kernel ``which``, run by 64 threads, and what the kernel wrote.
extern "C" float fault(int which, size_t seed, char* error, size_t size) {
  void (*const kernels[])(Args) = {half_a_warp, two_barriers, left_early, unwritten, racing, outside};
  float out = 0;
  try {
    launch(kernels[which], 1, 64, 64 * sizeof(float), reinterpret_cast<Stream>(seed), Args{&out});
  } catch (const std::runtime_error& failed) {
    std::snprintf(error, size, "%s", failed.what());
  }
  return out;
}
