// The sizes that the CUDA kernels of the GRU are compiled for, and the layout of a block's shared memory.
#pragma once

#include "gru.h"

namespace ser_fast {

// The sizes of a compiled kernel. width: H, padded; split: warps that share the K of 16 units; rows: of a tile;
// parts: 2 if a float is multiplied as the sum of two tf32 numbers, else 1; spare: fragments of a warp's W_hh that
// are kept in shared memory, the smallest number for which no register spills.
struct GruSize {
  int width, split, rows, parts, spare_forward, spare_backward;

  SER_FAST_BOTH constexpr int spare(bool backward) const { return backward ? spare_backward : spare_forward; }
  // Maximum threads of a block.
  SER_FAST_BOTH constexpr int threads() const { return width == 64 ? 128 : width == 192 ? 384 : 256; }
  // True if one block has enough threads for a tile, and if a cluster of them may compute one.
  SER_FAST_BOTH constexpr bool alone() const { return width / 16 * split * 32 <= threads(); }
  SER_FAST_BOTH constexpr bool clusters() const { return width != 192; }
};

constexpr GruSize kGruHalf[] = {
    {64, 1, 8, 1, 0, 0},   {128, 1, 8, 1, 0, 0}, {192, 1, 8, 1, 19, 17},   {256, 2, 8, 1, 0, 0},
    {256, 2, 16, 1, 0, 0}, {512, 2, 8, 1, 5, 4}, {512, 2, 16, 1, 8, 10},
};
constexpr GruSize kGruFloat[] = {
    {64, 1, 8, 1, 0, 0}, {128, 1, 8, 1, 11, 6},  {256, 2, 8, 1, 6, 4},   {256, 2, 16, 1, 10, 14},
    {64, 1, 8, 2, 6, 1}, {128, 1, 8, 2, 15, 15}, {256, 2, 8, 2, 12, 12}, {256, 2, 16, 2, 25, 20},
};

// Byte offsets in a block's shared memory. The two exchange buffers, of ``buffer`` bytes each, begin at 0.
struct GruMemory {
  int buffer, scratch, ring, spare, counted, end;

  SER_FAST_BOTH GruMemory(const GruSize& size, int bytes, int threads, int stages, bool backward, bool reset_after) {
    // arrays: in one exchange; items: inputs of one step.
    const int arrays = !backward ? 1 : reset_after ? 3 : 2, items = !backward ? 3 : reset_after ? 6 : 5;
    const int mine = size.rows / 4 / size.split;
    buffer = arrays * size.parts * size.rows * (size.width * bytes + 32);
    scratch = 2 * buffer;
    ring = scratch + (size.split == 2 ? threads * 3 * mine * 2 * 4 : 0);
    spare = ring + stages * items * mine * threads * 2 * bytes;
    counted = spare + size.spare(backward) * threads * 16;
    const bool alone = threads == size.width / 16 * size.split * 32;
    end = counted + (alone ? 0 : 2 * 8);
  }
};

// Number of 16-byte fragments of W_hh padded to ``width``.
SER_FAST_BOTH int64_t gru_fragments(const GruShape& shape, int bytes, int width) {
  return shape.directions * (width / 16) * 3 * (width * bytes / 32) * 32;
}

}  // namespace ser_fast
