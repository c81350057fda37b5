// Runs a CUDA kernel on the host: a fiber for every thread of a block, blocks one after the other. Fibers run in an
// order drawn by seed, so that a result which depends on it shows; a barrier or an exchange that only some reach is a
// deadlock and is reported; shared memory is NaN until it is written.
#include "../../kernels/device.h"

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

namespace ser_fast::gpu::host {
namespace {

constexpr size_t kStack = 64 * 1024;
constexpr const char *kBarrier = "barrier", *kExchange = "exchange between lanes";

struct Fiber {
  ucontext_t context;
  int thread = 0;
  bool done = false;
  const char* waits = nullptr;  // for what, if it does
  int line = 0;                 // of the kernel's source
  uint32_t given = 0, taken = 0;
  int from = 0;
};

struct Block {
  const std::function<void()>& kernel;
  std::vector<Fiber> fibers;
  std::vector<float> shared;  // NaN until it is written
  int number;
  ucontext_t scheduler = {};
  Fiber* current = nullptr;
};

Block* running = nullptr;

void enter() {
  running->kernel();
  running->current->done = true;
  swapcontext(&running->current->context, &running->scheduler);
}

void wait(const char* what, int line) {
  Fiber* self = running->current;
  self->waits = what;
  self->line = line;
  swapcontext(&self->context, &running->scheduler);
}

// All of these wait for the same, at the same line.
bool meet(const std::vector<Fiber*>& group, const char* what) {
  return std::all_of(group.begin(), group.end(), [&](const Fiber* fiber) {
    return !fiber->done && fiber->waits == what && fiber->line == group[0]->line;
  });
}

std::string stuck(const Block& block) {
  std::map<std::string, std::string> who;
  for (const Fiber& fiber : block.fibers)
    who[fiber.done ? "ended" : std::string(fiber.waits) + ", line " + std::to_string(fiber.line)] +=
        " " + std::to_string(fiber.thread);
  std::string out = "deadlock in block " + std::to_string(block.number);
  for (const auto& [where, threads] : who) out += "; " + where + ": threads" + threads;
  return out;
}

}  // namespace

int thread() { return running->current->thread; }
int block() { return running->number; }
void* shared() { return running->shared.data(); }
void barrier(int line) { wait(kBarrier, line); }

uint32_t exchange(uint32_t bits, int from, int line) {
  Fiber* self = running->current;
  self->given = bits;
  self->from = from;
  wait(kExchange, line);
  return self->taken;
}

namespace {

void start(Fiber& fiber, int thread, char* stack) {
  fiber.thread = thread;
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = stack;
  fiber.context.uc_stack.ss_size = kStack;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, enter, 0);
}

// Every fiber that can, in an order of its own, up to where it waits or ends.
bool advance(Block& block, std::mt19937_64& random) {
  std::vector<Fiber*> ready;
  for (Fiber& fiber : block.fibers)
    if (!fiber.done && !fiber.waits) ready.push_back(&fiber);
  std::shuffle(ready.begin(), ready.end(), random);
  for (Fiber* fiber : ready) {
    block.current = fiber;
    swapcontext(&block.scheduler, &fiber->context);
  }
  return !ready.empty();
}

// Warps whose lanes have all come to the same exchange, and a block whose threads have all come to a barrier, go on.
bool release(Block& block) {
  bool moved = false;
  std::vector<Fiber*> all;
  for (size_t first = 0; first < block.fibers.size(); first += 32) {
    std::vector<Fiber*> warp;
    for (size_t i = first; i < std::min(first + 32, block.fibers.size()); ++i) warp.push_back(&block.fibers[i]);
    all.insert(all.end(), warp.begin(), warp.end());
    if (!meet(warp, kExchange)) continue;
    for (Fiber* fiber : warp) fiber->taken = warp[fiber->from]->given;
    for (Fiber* fiber : warp) fiber->waits = nullptr;
    moved = true;
  }
  if (!meet(all, kBarrier)) return moved;
  for (Fiber* fiber : all) fiber->waits = nullptr;
  return true;
}

}  // namespace

void run(int blocks, int threads, size_t shared, uint64_t seed, const std::function<void()>& kernel) {
  std::mt19937_64 random(seed);
  const auto stacks = std::make_unique_for_overwrite<char[]>(kStack * threads);
  for (int number = 0; number < blocks; ++number) {
    Block block{kernel, std::vector<Fiber>(threads), std::vector<float>(shared / 4 + 4, NAN), number};
    running = &block;
    for (int i = 0; i < threads; ++i) start(block.fibers[i], i, stacks.get() + kStack * i);
    const auto done = [](const Fiber& fiber) { return fiber.done; };
    while (!std::all_of(block.fibers.begin(), block.fibers.end(), done)) {
      const bool ran = advance(block, random);
      if (!release(block) && !ran) throw std::runtime_error(stuck(block));
    }
  }
  running = nullptr;
}

}  // namespace ser_fast::gpu::host
