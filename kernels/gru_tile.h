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

#include "device.h"
#include "gru_plan.h"

namespace ser_fast {

using namespace gpu;

template <class Type, GruSize SIZE, bool BACKWARD>
struct GruCase {
  using T = Type;
  static constexpr GruSize kSize = SIZE;
  static constexpr int kWidth = SIZE.width, kSplit = SIZE.split, kRows = SIZE.rows, kParts = SIZE.parts;
  static constexpr int kSpare = SIZE.spare(BACKWARD), kGroups = kWidth / 16, kTiles = kRows / 8;
  // Products along a warp's K, rows per lane, and bytes of a row in shared memory, padded against bank conflicts.
  static constexpr int kSteps = kWidth * static_cast<int>(sizeof(T)) / 32 / kSplit;
  static constexpr int kMine = 2 * kTiles / kSplit;
  static constexpr int kStride = kWidth * static_cast<int>(sizeof(T)) + 32;
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

// sum[i] = W_gate x over this warp's K, for the COUNT gates from FIRST on; the operands of successive gates are
// ``apart`` bytes apart. A second accumulator, ``small``, takes the small products of tf32x3, otherwise every second
// product to shorten the dependent chains. Width 192 has none: three warps per scheduler hide the latency, and
// registers are scarce.
template <class C, int FIRST, int COUNT>
SER_FAST_DEVICE void products(const Weights<C>& w, const unsigned char* x, int apart,
                              float (&sum)[COUNT][C::kTiles][4]) {
  using T = typename C::T;
  constexpr bool kTwo = C::kWidth != 192;
  float small[COUNT][C::kTiles][4] = {};
  SER_FAST_UNROLL
  for (int g = 0; g < COUNT; ++g)
    SER_FAST_UNROLL
    for (int tile = 0; tile < C::kTiles; ++tile)
      SER_FAST_UNROLL
      for (int i = 0; i < 4; ++i) sum[g][tile][i] = 0;
  x += lane() / 4 * C::kStride + warp() % C::kSplit * (C::kSteps * 32) + lane() % 4 * 8;
  SER_FAST_UNROLL
  for (int k = 0; k < C::kSteps; ++k) {
    if (C::kSpare && k % 2 == 0) converge();  // keeps the compiler from reading operands too far ahead, which spills
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
  const bool second = C::kSplit == 2 && warp() % 2;
  float* given = scratch + warp() * (COUNT * C::kMine * 2 * 32) + lane();
  SER_FAST_UNROLL
  for (int g = 0; g < COUNT; ++g)
    SER_FAST_UNROLL
    for (int j = 0; j < C::kMine; ++j)
      SER_FAST_UNROLL
      for (int u = 0; u < 2; ++u) {
        const int other = C::kSplit == 2 ? j + C::kMine : j;
        const float low = sum[g][j / 2][j % 2 + 2 * u], high = sum[g][other / 2][other % 2 + 2 * u];
        own[g][j][u] = second ? high : low;
        if (C::kSplit == 2) given[((g * C::kMine + j) * 2 + u) * 32] = second ? low : high;
      }
  if (C::kSplit == 1) return;
  barrier_of(1 + warp() / 2, 64);
  const float* taken = scratch + (warp() ^ 1) * (COUNT * C::kMine * 2 * 32) + lane();
  SER_FAST_UNROLL
  for (int i = 0; i < COUNT * C::kMine * 2; ++i) own[i / 2 / C::kMine][i / 2 % C::kMine][i % 2] += taken[i * 32];
}

// The rows and units of this lane.
template <class C>
struct Place {
  int direction, rank, group, unit;  // rank: of the block in its cluster
  int row[C::kMine];                 // of the batch, -1 past its end
  int column[C::kMine];              // of the tile
  int length[C::kMine];
  int start[C::kMine];  // first frame of a packed row, else 0
  int steps;            // of the longest row
  int padded;           // frames of every row with padding; 0 if packed

  SER_FAST_DEVICE Place(const GruShape& shape, const GruPlan& plan, bool packed, const int64_t* lengths) {
    const int tile = block() / plan.cluster;
    const int first = tile % plan.tiles * C::kRows, B = static_cast<int>(shape.batch);
    rank = kClusters && !C::kSize.alone() && plan.cluster > 1 ? cluster_rank() : 0;
    direction = tile / plan.tiles;
    group = rank * (C::kGroups / plan.cluster) + warp() / C::kSplit;
    unit = group * 16 + lane() / 4 * 2;
    steps = 0;
    padded = packed ? 0 : static_cast<int>(shape.frames);
    int begin = 0;
    if (packed) {
      int64_t before = 0;
      for (int b = lane(); b < first; b += 32) before += lengths[b] > 0 ? lengths[b] : 0;
      before = warp_sum(before);
      begin = static_cast<int>(before < shape.frames ? before : shape.frames);
    }
    SER_FAST_UNROLL
    for (int j = 0; j < C::kMine; ++j) {
      const int i = C::kSplit == 2 ? warp() % 2 * C::kMine + j : j;
      column[j] = i / 2 * 8 + lane() % 4 * 2 + i % 2;
    }
    for (int n = 0; n < C::kRows; ++n) {
      const bool exists = first + n < B;
      const int64_t given = exists ? lengths ? lengths[first + n] : shape.frames : 0;
      const int room = static_cast<int>(shape.frames) - begin;
      const int kept = static_cast<int>(given < 0 || room < 0 ? 0 : given < room ? given : room);
      SER_FAST_UNROLL
      for (int j = 0; j < C::kMine; ++j)
        if (column[j] == n) {
          row[j] = exists ? first + n : -1;
          length[j] = kept;
          start[j] = begin;
        }
      steps = kept > steps ? kept : steps;
      if (packed) begin += kept;
    }
  }

  // True if row j has a frame at this step, valid or padding.
  SER_FAST_DEVICE bool written(int j, int step) const {
    return step < length[j] || (row[j] >= 0 && step < padded);
  }

  // Row j's frame at a step. Padding frames are in the same order in both directions.
  template <class T>
  SER_FAST_DEVICE T* frame(const GpuFrames<T>& frames, int j, int step) const {
    const int at = direction && step < length[j] ? length[j] - 1 - step : step;
    return frames.data + static_cast<int64_t>(start[j] + at) * frames.frame_stride + row[j] * frames.row_stride;
  }
};

template <class T>
SER_FAST_DEVICE void put(T* at, float a, float b, bool vector, bool both) {
  Pair<T> pair;
  narrow(a, &pair.value[0]);
  narrow(b, &pair.value[1]);
  if (vector) {
    *reinterpret_cast<Pair<T>*>(at) = pair;
  } else {
    at[0] = pair.value[0];
    if (both) at[1] = pair.value[1];
  }
}

// Ring buffer of the inputs of the next steps. Each thread fetches and reads its own, so that no barrier is needed.
template <class C, int ITEMS>
struct Ring {
  using T = typename C::T;
  Pair<T>* slots;
  int stages, threads, units;  // units that exist: 0, 1 or 2
  bool vector;

  SER_FAST_DEVICE Pair<T>* slot(int step, int item, int j) const {
    return slots + (((step & (stages - 1)) * ITEMS + item) * C::kMine + j) * threads + thread();
  }
  SER_FAST_DEVICE void fetch(int step, int item, int j, const T* from, bool valid) const {
    Pair<T>* to = slot(step, item, j);
    valid = valid && units;
    if (vector) {
      copy_async<sizeof(Pair<T>)>(to, valid ? from : nullptr, valid);
    } else {
      Pair<T> pair = {};
      if (valid) pair.value[0] = from[0];
      if (valid && units > 1) pair.value[1] = from[1];
      *to = pair;
    }
  }
  // Waits for a step's inputs. ``later`` is 1 if the fetch for step + stages - 1 has been committed already, else 0.
  SER_FAST_DEVICE void wait(int later) const {
    if (stages + later == 2) copy_wait<0>();
    else if (stages + later == 3) copy_wait<1>();
    else if (stages + later == 4) copy_wait<2>();
    else copy_wait<3>();
  }
  SER_FAST_DEVICE void read(int step, int item, int j, float (&out)[2]) const {
    const Pair<T> pair = *slot(step, item, j);
    out[0] = widen(pair.value[0]);
    out[1] = widen(pair.value[1]);
  }
};

// Exchange of operands between the blocks of a tile. Exchange e uses buffer e % 2.
template <class C>
struct Exchange {
  using T = typename C::T;
  unsigned char* buffers;
  int size;  // bytes of a buffer
  Mbarrier* counted;
  int blocks, rank, even, odd;  // even, odd: bytes that each block receives in an even and an odd exchange

  SER_FAST_DEVICE bool alone() const { return !kClusters || C::kSize.alone() || blocks == 1; }
  SER_FAST_DEVICE void begin() const {
    if (alone()) return;
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
    if (alone()) {
      barrier();
    } else {
      mbarrier_wait(&counted[e % 2], e / 2 % 2);
      converge();
    }
    return buffers + e % 2 * size;
  }
  // Starts counting the bytes of exchange e + 2. Called after the products, so as not to delay them.
  SER_FAST_DEVICE void renew(int e) const {
    if (alone()) return;
    if (thread() == 0) mbarrier_expect(&counted[e % 2], e % 2 ? odd : even);
    converge();
  }
  // Stores two neighbouring units of this lane's rows into ``array`` of exchange e, in every block of the tile.
  SER_FAST_DEVICE void push(int e, int array, const int (&columns)[C::kMine], int unit,
                            const float (&values)[C::kMine][2]) const {
    Pair<T> pairs[C::kParts][C::kMine];
    SER_FAST_UNROLL
    for (int j = 0; j < C::kMine; ++j)
      SER_FAST_UNROLL
      for (int u = 0; u < 2; ++u) {
        if constexpr (sizeof(T) == 4) {
          const float high = round_tf32(values[j][u]);
          pairs[0][j].value[u] = high;
          if (C::kParts == 2) pairs[C::kParts - 1][j].value[u] = round_tf32(values[j][u] - high);
        } else {
          narrow(values[j][u], &pairs[0][j].value[u]);
        }
      }
    unsigned char* to = buffers + e % 2 * size + array * (C::kParts * C::kRows * C::kStride) +
                        unit * static_cast<int>(sizeof(T));
    const auto send = [&](int other) {
      SER_FAST_UNROLL
      for (int part = 0; part < C::kParts; ++part)
        SER_FAST_UNROLL
        for (int j = 0; j < C::kMine; ++j) {
          auto* where = reinterpret_cast<Pair<T>*>(to + (part * C::kRows + columns[j]) * C::kStride);
          if (alone()) *where = pairs[part][j];
          else gpu::push(pairs[part][j], where, &counted[e % 2], rank ^ other);
        }
    };
    // At each turn every block sends to a different one; its own shared memory comes last.
    if (!alone()) {
      send(1);
      if (blocks > 2) send(2), send(3);
      if (blocks > 4) send(4), send(5), send(6), send(7);
    }
    send(0);
  }
};

}  // namespace ser_fast
