// Building blocks of the CUDA kernels of the GRU. W_hh stays in registers from a row's first step to its last.
//
// One block or one cluster of blocks computes a tile: 8 or 16 rows of the batch in one direction, over all steps.
// Tiles do not depend on each other. Each block owns some hidden units with all three gates and each warp 16 of them,
// so that one thread holds a unit's whole state. The operands of a step's products, h in forward and the gates'
// gradients in backward, are exchanged: their owners store them into the shared memory of every block of the cluster,
// where an mbarrier counts the bytes. Two buffers suffice: exchange e + 2 overwrites exchange e, a thread sends it
// only after it has received all of exchange e + 1, and every warp sends its part of e + 1 only after it has read
// exchange e, because each value sent depends on all values read.
//
// A tensor core product is [16 units, K] [K, 8 rows]. Row i < 8 of the 16 is unit 2i and row i + 8 is unit 2i + 1, so
// that a lane owns neighbouring units. Along K every lane reads 8 contiguous bytes, since the order of a sum is free.
#pragma once

#include "device_async.h"
#include "gru_plan.h"

namespace ser_fast {

using namespace gpu;

// What a kernel computes: the forward without or with the gates that the backward needs, or the backward.
enum class GruPass { kInference, kTraining, kBackward };

// ALONE: one block computes a tile, not a cluster.
template <class Type, GruSize SIZE, GruPass PASS, bool ALONE>
struct GruCase {
  using T = Type;
  static constexpr GruSize kSize = SIZE;
  static constexpr bool kBackward = PASS == GruPass::kBackward, kSaves = PASS == GruPass::kTraining, kAlone = ALONE;
  static constexpr int kWidth = SIZE.width, kSplit = SIZE.split, kRows = SIZE.rows, kParts = SIZE.parts;
  // A step's results are stored behind the next products if registers are free, else before. In a cluster they are
  // stored while the operands cross it.
  static constexpr bool kLate = ALONE && sizeof(Type) == 2 && SIZE.spare(kBackward) == 0;
  static constexpr int kSpare = SIZE.spare(kBackward), kGroups = kWidth / 16, kTiles = kRows / 8;
  // Products along a warp's K, rows per lane, and bytes of a row in shared memory, padded against bank conflicts.
  static constexpr int kSteps = kWidth * static_cast<int>(sizeof(T)) / 32 / kSplit;
  static constexpr int kMine = 2 * kTiles / kSplit;
  static constexpr int kStride = kWidth * static_cast<int>(sizeof(T)) + 32;

  static SER_FAST_DEVICE int threads(const GruPlan& plan) { return ALONE ? kGroups * kSplit * 32 : plan.threads; }
  static SER_FAST_DEVICE GruMemory memory(const GruPlan& plan, bool reset_after) {
    return {SIZE, sizeof(T), threads(plan), plan.stages, kBackward, reset_after};
  }

  // Errors stay below the rounding of the products' operands: 2^-8 in bfloat16, 2^-11 in float16 and tf32.
  static SER_FAST_DEVICE float tangent(float x) {
    if (std::is_same_v<T, Bfloat>) return rough_tangent(x);
    return kParts == 1 ? 2 * gpu::sigmoid(2 * x) - 1 : gpu::tangent(x);
  }
  static SER_FAST_DEVICE float sigmoid(float x) {
    return std::is_same_v<T, Bfloat> ? 0.5f * rough_tangent(0.5f * x) + 0.5f : gpu::sigmoid(x);
  }

  // Row j of a lane in the tile, from its first row on. Of each pair of warps that share K one has the even rows.
  static SER_FAST_BOTH constexpr int below(int j) { return kSplit == 2 ? j * 8 : j / 2 * 8 + j % 2; }
};

// 16 bytes of W_hh: one lane's operand of one tensor core product.
struct alignas(16) Fragment {
  uint32_t a[4];
};

// The warp's part of W_hh, [3 gates, kSteps] fragments per lane; the last kSpare are in shared memory.
template <class C>
struct Weights {
  static constexpr int kHeld = 3 * C::kSteps - C::kSpare;
  uint32_t held[kHeld][4];
  Fragment* spare;  // this lane's fragments in shared memory

  SER_FAST_DEVICE void load(const void* packed, int direction, int group, Fragment* shared) {
    const int part = warp() % C::kSplit;
    const auto* from = static_cast<const Fragment*>(packed) +
                       ((direction * C::kGroups + group) * C::kSplit + part) * (3 * C::kSteps * 32) + lane();
    SER_FAST_UNROLL
    for (int i = 0; i < kHeld; ++i) {
      const Fragment fragment = from[i * 32];
      SER_FAST_UNROLL
      for (int word = 0; word < 4; ++word) held[i][word] = fragment.a[word];
    }
    spare = shared + warp() * (C::kSpare * 32) + lane();
    for (int i = 0; i < C::kSpare; ++i) spare[i * 32] = from[(kHeld + i) * 32];
  }

  // ``number`` is a constant after unrolling, so that ``held`` stays in registers.
  SER_FAST_DEVICE void at(int number, uint32_t (&a)[4]) const {
    const Fragment fragment = number < kHeld ? Fragment{} : spare[(number - kHeld) * 32];
    SER_FAST_UNROLL
    for (int word = 0; word < 4; ++word) a[word] = number < kHeld ? held[number < kHeld ? number : 0][word] : fragment.a[word];
  }
};

// sum[i] = bias + W_gate x over this warp's K, for the COUNT gates from FIRST on; the operands of successive gates are
// ``apart`` bytes apart. A second accumulator, ``small``, takes the small products of tf32x3, otherwise every second
// product where fewer than six chains of dependent products would not hide the latency. Width 192 has none: it has
// three warps per scheduler, and registers are scarce. Odd warps of those that share K swap neighbouring
// rows, so that of a fragment's sums 0 and 2 are of the lane's own row, 1 and 3 of the other warp's.
template <class C, int FIRST, int COUNT>
SER_FAST_DEVICE void products(const Weights<C>& w, const unsigned char* x, int apart, const float (&bias)[3][4],
                              float (&sum)[COUNT][C::kTiles][4]) {
  using T = typename C::T;
  constexpr bool kTwo = C::kParts == 2 || (C::kWidth != 192 && COUNT * C::kTiles < 6);
  float small[COUNT][C::kTiles][4] = {};
  SER_FAST_UNROLL
  for (int g = 0; g < COUNT; ++g)
    SER_FAST_UNROLL
    for (int tile = 0; tile < C::kTiles; ++tile)
      SER_FAST_UNROLL
      for (int i = 0; i < 4; ++i) sum[g][tile][i] = bias[FIRST + g][i];
  x += (lane() / 4 ^ warp() % C::kSplit) * C::kStride + warp() % C::kSplit * (C::kSteps * 32) + lane() % 4 * 8;
  SER_FAST_UNROLL
  for (int k = 0; k < C::kSteps; ++k) {
    if ((C::kSpare || C::kParts == 2) && k % 2 == 0) converge();  // keeps the compiler from reading operands too far ahead, which spills
    SER_FAST_UNROLL
    for (int g = 0; g < COUNT; ++g) {
      uint32_t a[4];
      w.at((FIRST + g) * C::kSteps + k, a);
      SER_FAST_UNROLL
      for (int tile = 0; tile < C::kTiles; ++tile) {
        const unsigned char* at = x + g * apart + tile * 8 * C::kStride + k * 32;
        uint32_t b[2];
        memcpy(b, __builtin_assume_aligned(at, 8), 8);
        if constexpr (C::kParts == 1) {
          multiply(T{}, kTwo && k % 2 ? small[g][tile] : sum[g][tile], a, b);
        } else {
          uint32_t low_b[2], high[4], low[4];
          memcpy(low_b, __builtin_assume_aligned(at + C::kRows * C::kStride, 8), 8);
          SER_FAST_UNROLL
          for (int i = 0; i < 4; ++i) {
            const Tf32Parts parts = split_tf32(a[i]);
            high[i] = parts.high;
            low[i] = parts.low;
          }
          multiply(T{}, sum[g][tile], high, b);
          multiply(T{}, small[g][tile], high, low_b);
          multiply(T{}, small[g][tile], low, b);
        }
      }
    }
  }
  SER_FAST_UNROLL
  for (int g = 0; g < COUNT; ++g)
    SER_FAST_UNROLL
    for (int tile = 0; tile < C::kTiles; ++tile)
      SER_FAST_UNROLL
      for (int i = 0; i < 4; ++i)
        if (kTwo) sum[g][tile][i] += small[g][tile][i];
}

// Sets own to the lane's rows of the sums, [row][unit]; warps that share K add theirs, each for half of the rows.
template <class C, int COUNT>
SER_FAST_DEVICE void gather(const float (&sum)[COUNT][C::kTiles][4], float* scratch, float (&own)[COUNT][C::kMine][2]) {
  using Two = Pair<float>;
  Two* given = reinterpret_cast<Two*>(scratch) + warp() * (COUNT * C::kMine * 32) + lane();
  SER_FAST_UNROLL
  for (int g = 0; g < COUNT; ++g)
    SER_FAST_UNROLL
    for (int j = 0; j < C::kMine; ++j) {
      const int tile = C::kSplit == 2 ? j : j / 2, column = C::kSplit == 2 ? 0 : j % 2;
      SER_FAST_UNROLL
      for (int u = 0; u < 2; ++u) own[g][j][u] = sum[g][tile][column + 2 * u];
      if (C::kSplit == 2) given[(g * C::kMine + j) * 32] = {{sum[g][tile][1], sum[g][tile][3]}};
    }
  if (C::kSplit == 1) return;
  barrier_of(1 + warp() / 2, 64);
  const Two* taken = reinterpret_cast<const Two*>(scratch) + (warp() ^ 1) * (COUNT * C::kMine * 32) + lane();
  SER_FAST_UNROLL
  for (int i = 0; i < COUNT * C::kMine; ++i) {
    const Two two = taken[i * 32];
    SER_FAST_UNROLL
    for (int u = 0; u < 2; ++u) own[i / C::kMine][i % C::kMine][u] += two.value[u];
  }
}

// The rows and units of this lane.
template <class C>
struct Place {
  int direction, rank, group, unit;  // rank: of the block in its cluster
  int column, row;                   // of the lane's first row: in the tile and in the batch
  int rows;                          // of the batch; 0 for a lane whose units are past H
  int length[C::kMine];              // frames of row j; 0 if it does not exist
  int start[C::kMine];               // first frame of a packed row, else 0
  int steps;                         // of the tile's longest row
  int padded;                        // frames of every row with padding; 0 if packed
  int shortest;                      // steps after which rows have padding only; none have if packed

  SER_FAST_DEVICE Place(const GruShape& shape, const GruPlan& plan, bool packed, const int64_t* lengths) {
    const int cluster = C::kAlone ? 1 : plan.cluster, tile = block() / cluster;
    const int first = tile % plan.tiles * C::kRows, B = static_cast<int>(shape.batch);
    rank = C::kAlone ? 0 : cluster_rank();
    direction = tile / plan.tiles;
    group = rank * (C::kGroups / cluster) + warp() / C::kSplit;
    unit = group * 16 + lane() / 4 * 2;
    column = lane() % 4 * 2 + warp() % C::kSplit;
    row = first + column;
    rows = unit < shape.hidden ? B : 0;
    steps = 0;
    padded = packed ? 0 : static_cast<int>(shape.frames);
    shortest = static_cast<int>(shape.frames);
    int begin = 0;
    if (packed) {
      int64_t before = 0;
      for (int b = lane(); b < first; b += 32) before += lengths[b] > 0 ? lengths[b] : 0;
      before = warp_sum(before);
      begin = static_cast<int>(before < shape.frames ? before : shape.frames);
    }
    for (int n = 0; n < C::kRows; ++n) {
      const int64_t given = first + n < B ? lengths ? lengths[first + n] : shape.frames : 0;
      const int room = static_cast<int>(shape.frames) - begin;
      const int kept = static_cast<int>(given < 0 || room < 0 ? 0 : given < room ? given : room);
      SER_FAST_UNROLL
      for (int j = 0; j < C::kMine; ++j)
        if (column + C::below(j) == n) {
          length[j] = rows ? kept : 0;
          start[j] = begin;
        }
      steps = kept > steps ? kept : steps;
      if (!packed && first + n < B && kept < shortest) shortest = kept;
      if (packed) begin += kept;
    }
  }

  SER_FAST_DEVICE bool exists(int j) const { return row + C::below(j) < rows; }
  // True if row j has a frame at this step, which may be negative.
  SER_FAST_DEVICE bool valid(int j, int step) const {
    return static_cast<unsigned>(step) < static_cast<unsigned>(length[j]);
  }
};

// The lane's pair of units in each of its rows, in one frame of a tensor. The rows move by the same distance a step.
// Distances are in pairs and 32 bits, which half as many registers hold; a tensor has at most 2^33 elements.
template <class C, class P>
struct Cursor {
  P* data;
  uint32_t at[C::kMine];
  uint32_t pace, part;  // to the next step and between the parts of a frame, modulo 2^32

  SER_FAST_DEVICE P* in(int j, int number = 0) const { return data + (at[j] + part * number); }
  SER_FAST_DEVICE void advance() {
    SER_FAST_UNROLL
    for (int j = 0; j < C::kMine; ++j) at[j] += pace;
  }
};

// Ring buffer of the inputs of the next steps. Each thread fetches and reads its own, so that no barrier is needed. A
// row without a frame leaves what was there: its results are discarded, and no other row depends on them.
template <class C, int ITEMS>
struct Ring {
  using T = typename C::T;
  unsigned char* slots;  // [stages, warps, ITEMS, kMine, 32 lanes] pairs, from this lane's first on
  int stages, size;      // size: bytes of a stage

  SER_FAST_DEVICE Ring(unsigned char* memory, int stages, int threads)
      : slots(kept_shared(memory + (warp() * (ITEMS * C::kMine * 32) + lane()) * sizeof(Pair<T>))),
        stages(stages),
        size(kept(threads * ITEMS * C::kMine * static_cast<int>(sizeof(Pair<T>)))) {
    // Units past H read these zeros at every step. They must be finite: their columns of W_hh are 0.
    for (int step = 0; step < stages; ++step)
      for (int item = 0; item < ITEMS; ++item)
        for (int j = 0; j < C::kMine; ++j) *slot(step, item, j) = {};
  }
  SER_FAST_DEVICE Pair<T>* slot(int step, int item, int j) const {
    return reinterpret_cast<Pair<T>*>(slots + (step & (stages - 1)) * size) + (item * C::kMine + j) * 32;
  }
  SER_FAST_DEVICE void fetch(int step, int item, int j, const Pair<T>* from, bool valid) const {
    copy_async<sizeof(Pair<T>)>(slot(step, item, j), from, valid);
  }
  // Waits for a step's inputs. LATER is 1 if the fetch for step + stages - 1 has been committed already, else 0.
  template <int LATER>
  SER_FAST_DEVICE void wait() const {
    if (stages == 2) copy_wait<LATER>();
    else copy_wait<2 + LATER>();
  }
  SER_FAST_DEVICE void read(int step, int item, int j, float (&out)[2]) const { widen(*slot(step, item, j), out); }
};

// Exchange of operands between the blocks of a tile. Exchange e uses buffer e % 2.
template <class C>
struct Exchange {
  using T = typename C::T;
  unsigned char* buffers;
  int size;  // bytes of a buffer
  Mbarrier* counted;
  int blocks, rank, even, odd;  // even, odd: bytes that each block receives in an even and an odd exchange
  int place;  // offset of this lane's first pair in an array

  SER_FAST_DEVICE void begin() const {
    if (C::kAlone) return;
    if (thread() == 0) {
      for (int i = 0; i < 2; ++i) {
        mbarrier_init(&counted[i], 1);
        mbarrier_expect(&counted[i], i ? odd : even);
      }
      async_fence();
    }
    cluster_barrier();
  }
  SER_FAST_DEVICE const unsigned char* wait(int e) const {
    if (C::kAlone) {
      barrier();
    } else {
      mbarrier_wait(&counted[e % 2], e / 2 % 2);
      converge();
    }
    return buffers + e % 2 * size;
  }
  // Starts counting the bytes of exchange e + 2. Called after the products, so as not to delay them.
  SER_FAST_DEVICE void renew(int e) const {
    if (C::kAlone) return;
    if (thread() == 0) mbarrier_expect(&counted[e % 2], e % 2 ? odd : even);
    converge();
  }
  // Stores two neighbouring units of this lane's rows into ``array`` of exchange e, in every block of the tile.
  SER_FAST_DEVICE void push(int e, int array, const float (&values)[C::kMine][2]) const {
    Pair<T> pairs[C::kParts][C::kMine];
    SER_FAST_UNROLL
    for (int j = 0; j < C::kMine; ++j) {
      if constexpr (sizeof(T) == 4) {
        SER_FAST_UNROLL
        for (int u = 0; u < 2; ++u) {
          const float high = round_tf32(values[j][u]);
          pairs[0][j].value[u] = high;
          if (C::kParts == 2) pairs[C::kParts - 1][j].value[u] = round_tf32(values[j][u] - high);
        }
      } else {
        pairs[0][j] = narrowed<T>(values[j]);
      }
    }
    unsigned char* to = buffers + e % 2 * size + array * (C::kParts * C::kRows * C::kStride) + place;
    const auto send = [&](int other) {
      SER_FAST_UNROLL
      for (int part = 0; part < C::kParts; ++part)
        SER_FAST_UNROLL
        for (int j = 0; j < C::kMine; ++j) {
          auto* where = reinterpret_cast<Pair<T>*>(to + (part * C::kRows + C::below(j)) * C::kStride);
          if (C::kAlone) *where = pairs[part][j];
          else gpu::push(pairs[part][j], where, &counted[e % 2], rank ^ other);
        }
    };
    // At each turn every block sends to a different one; its own shared memory comes last.
    if (!C::kAlone) {
      send(1);
      if (blocks > 2) send(2), send(3);
      if (blocks > 4) send(4), send(5), send(6), send(7);
    }
    send(0);
  }
};

}  // namespace ser_fast
