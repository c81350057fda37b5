// GRU recurrence: the contract between the torch boundary and every backend, and the cell's mathematics.
//
//   r = sigmoid(gx_r + W_hr h + b_hr)        z = sigmoid(gx_z + W_hz h + b_hz)
//   reset_after:  q = W_hn h + b_hn          n = tanh(gx_n + r q)
//   otherwise:    q = r h                    n = tanh(gx_n + W_hn q + b_hn)
//   h' = z h + (1 - z) n
//
// gx is the input's projection with its bias. Gates are ordered r, z, n. Direction 1 walks each row from
// its own last frame to its first. Past a row's length y is 0 and h stays.
#pragma once

#include <cstddef>
#include <cstdint>

#include "parallel.h"

namespace ser_fast {

struct GruShape {
  int64_t frames, batch, directions, hidden;  // T, B, D, H
  bool reset_after;

  // Nanoseconds of `all` frames on one thread, roughly, with `products` multiplications for each unit.
  double work(int64_t all, int64_t products) const {
    return static_cast<double>(all) * directions * hidden * (products / 32.0 + 2);
  }
};

// A [T, B, D, ...] tensor whose last two axes are dense; strides are in elements. Or a packed tensor, [N, D, ...],
// whose rows follow one another without padding: row b's frames begin at starts[b].
template <class T>
struct Frames {
  T* data;
  int64_t frame_stride, row_stride;
  const int64_t* starts;

  T* at(int64_t frame, int64_t row) const {
    return data + (starts ? (starts[row] + frame) * frame_stride : frame * frame_stride + row * row_stride);
  }
};

// Backward reads the gates that forward saved. Saving them adds a fifth to the forward (9.8 instead of 8.2 ms at
// T=200, B=64, H=128); recomputing them would cost a second forward.
template <class T>
struct GruForward {
  GruShape shape;
  Frames<const T> gx;      // [T, B, D, 3H]
  const T* w_hh;           // [D, 3H, H]
  const T* b_hh;           // [D, 3H] or null
  const T* h0;             // [D, B, H] or null for zeros
  const int64_t* lengths;  // [B], each in 0..T, or null for T
  Frames<T> y;             // [T, B, D, H]
  T* h_n;                  // [D, B, H]
  Frames<T> gates;         // [T, B, D, 4H]: r, z, n, q for the backward; data is null if none is wanted
};

template <class T>
struct GruBackward {
  GruShape shape;
  Frames<const T> grad_y;  // [T, B, D, H]
  const T* grad_h_n;       // [D, B, H]
  Frames<const T> y;       // [T, B, D, H]
  Frames<const T> gates;   // [T, B, D, 4H]
  const T* w_hh;           // [D, 3H, H]
  const T* h0;             // [D, B, H] or null
  const int64_t* lengths;  // [B] or null
  Frames<T> grad_gx;       // [T, B, D, 3H], zero past each length
  Frames<T> grad_q;        // [T, B, D, H], reset_after only: the gradient of q = W_hn h + b_hn
  T* grad_h0;              // [D, B, H]
};

template <class T>
void gru_forward_cpu(const GruForward<T>& args, const Parallel& parallel);

template <class T>
void gru_backward_cpu(const GruBackward<T>& args, const Parallel& parallel);

// The new state.
template <class T>
SER_FAST_BOTH T gru_cell(T z, T n, T h) {
  return n + z * (h - n);
}

template <class T>
struct GruCellGrad {
  T pre_z, pre_n;
};

// From the new state's gradient to those of the update gate's and the candidate's pre-activations.
template <class T>
SER_FAST_BOTH GruCellGrad<T> gru_cell_backward(T grad_h, T z, T n, T h) {
  return {grad_h * (h - n) * z * (1 - z), grad_h * (1 - z) * (1 - n * n)};
}

// On a GPU one block, or a cluster of blocks that share W_hh, computes all steps of a tile of 8 or 16 rows of the
// batch. W_hh stays on chip from the first step to the last, in the layout of the tensor cores.
enum class GruProduct {
  kHalf,     // of float16 or bfloat16
  kTf32,     // of float32, rounded to tf32
  kTf32x3,   // of float32, as three products of tf32
};

// The limits of a device that a plan depends on.
struct GruLimits {
  int64_t shared;     // bytes of shared memory that a block may use
  int64_t active[4];  // clusters of 1, 2, 4 and 8 blocks that run at once; 0 if the device does not support them
};

struct GruPlan {
  int width;    // H, padded to what a kernel is compiled for; 0 if W_hh does not fit on chip
  int rows;     // per tile: 8 or 16
  int cluster;  // blocks per tile
  int threads;  // per block
  int stages;   // steps whose inputs are in shared memory or in flight: 2 or 4
  int tiles;    // per direction
  int waves;    // rounds of clusters that run one after the other
  int shared;   // bytes of shared memory per block
  float step;   // estimated floor of a step in microseconds, all waves together
};

// Reads the limits of the current device. Returns 0 or the CUDA error.
int gru_limits(GruLimits* limits);

// gru_restrict caps the limits of all later plans, for tests and benchmarks; gru_restricted applies the cap.
void gru_restrict(const GruLimits& most);
GruLimits gru_restricted(const GruLimits& limits);

// Leaves so many multiprocessors to kernels that run beside the GRU, such as NCCL's, in all later plans.
void gru_spare(int multiprocessors);

GruPlan gru_plan(const GruShape& shape, GruProduct product, bool backward, const GruLimits& limits);

// Bytes of W_hh as the kernels of this width read it.
int64_t gru_packed_bytes(const GruShape& shape, GruProduct product, int width);

// As Frames, for a GPU: the kernels compute where packed rows begin from the lengths.
template <class T>
struct GpuFrames {
  T* data;
  int64_t frame_stride, row_stride;
};

// H is even, and in every tensor the pairs of units lie at multiples of a pair's size.
template <class T>
struct GruForwardGpu {
  GruShape shape;          // frames: T, or N if packed
  GruPlan plan;
  bool packed;
  GpuFrames<const T> gx;
  const T* w_hh;
  void* weights;           // scratch of gru_packed_bytes
  const T* b_hh;           // or null
  const T* h0;             // or null
  const int64_t* lengths;  // clamped by the kernel to the existing frames; null only if not packed
  GpuFrames<T> y;
  T* h_n;
  GpuFrames<T> gates;      // data is null if none is wanted
};

// Returns 0 or the CUDA error.
template <class T>
int gru_forward_cuda(const GruForwardGpu<T>& args, GruProduct product, void* stream);

template <class T>
struct GruBackwardGpu {
  GruShape shape;
  GruPlan plan;
  bool packed;
  GpuFrames<const T> grad_y;
  const T* grad_h_n;
  GpuFrames<const T> y, gates;
  const T* w_hh;
  void* weights;
  const T* h0;
  const int64_t* lengths;
  GpuFrames<T> grad_gx, grad_q;
  T* grad_h0;
};

template <class T>
int gru_backward_cuda(const GruBackwardGpu<T>& args, GruProduct product, void* stream);

}  // namespace ser_fast
