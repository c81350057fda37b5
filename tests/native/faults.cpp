// Kernels with one fault each, which the runner must report.
#include <cmath>
#include <cstdio>
#include <stdexcept>

#include "../../kernels/device_async.h"

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

// Faults in clusters of two blocks of 64 threads.

void one_block_alone(Args) {
  if (cluster_rank() == 0) cluster_barrier();
}

Mbarrier* counter() { return shared<Mbarrier>(); }
Pair<float>* inbox() { return shared<Pair<float>>() + 1; }

// Each block's first thread sends a pair, 8 bytes, to the other block's inbox, which expects `expected` bytes.
void send(int expected) {
  if (thread() == 0) {
    mbarrier_init(counter(), 1);
    mbarrier_expect(counter(), expected);
  }
  cluster_barrier();
  if (thread() == 0) push(Pair<float>{{1, 2}}, inbox(), counter(), 1 - cluster_rank());
}

void bytes_that_never_come(Args) {
  send(16);
  mbarrier_wait(counter(), 0);
}

void read_too_early(Args args) {
  send(8);
  if (thread() == 0 && cluster_rank() == 0) *args.out = inbox()->value[1];
  mbarrier_wait(counter(), 0);
}

void left_before_it_comes(Args) { send(8); }

void uninitialised(Args) { mbarrier_wait(counter(), 0); }

void not_waited_for(Args args) {
  static const float kOne = 1;
  if (thread()) return;
  copy_async<4>(shared<float>(), &kOne);
  copy_commit();
  *args.out = *shared<float>();
}

}  // namespace

// Runs kernel ``which`` in blocks of 64 threads. Returns what it wrote; the runner's report goes to ``error``.
extern "C" float fault(int which, size_t seed, char* error, size_t size) {
  void (*const kernels[])(Args) = {half_a_warp,     two_barriers,          left_early,     unwritten,
                                   racing,          outside,               not_waited_for, one_block_alone,
                                   bytes_that_never_come, read_too_early, left_before_it_comes, uninitialised};
  const int blocks = which < 7 ? 1 : 2;
  float out = 0;
  try {
    launch(kernels[which], blocks, 64, 64 * sizeof(float), reinterpret_cast<Stream>(seed), Args{&out}, blocks);
  } catch (const std::runtime_error& failed) {
    std::snprintf(error, size, "%s", failed.what());
  }
  return out;
}
