// Frame attention pooling: the contract between the torch boundary and every backend.
//
//   a_t = exp(w . h_t) / sum_s exp(w . h_s)     over the row's valid frames; 0 past them
//   pooled = sum_t a_t h_t                      a row of length 0 pools to 0
//
// With g and e the gradients of pooled and of the weights, the score's gradient is
//   ds_t = a_t (g . h_t - g . pooled + e_t - sum_s a_s e_s),   dh_t = a_t g + ds_t w,   dw = sum_t ds_t h_t.
#pragma once

#include <cstddef>
#include <cstdint>

#include "parallel.h"

namespace ser_fast {

struct PoolShape {
  int64_t batch, frames, width;  // B, T, D
};

template <class T>
struct PoolForward {
  PoolShape shape;
  const T* h;  // [B, T, D], the last axis dense
  int64_t row_stride, frame_stride;
  const T* w;              // [D]
  const int64_t* lengths;  // [B], each in 0..T, or null for T
  T* pooled;               // [B, D]
  T* weights;              // [B, T]
};

template <class T>
struct PoolBackward {
  PoolShape shape;
  const T* grad_pooled;   // [B, D]
  const T* grad_weights;  // [B, T] or null
  const T* h;
  int64_t row_stride, frame_stride;
  const T* w;
  const T* pooled;
  const T* weights;
  const int64_t* lengths;
  T* grad_h;  // [B, T, D], zero past each length
  T* grad_w;  // [B, D], one row of the batch each: their sum is the gradient of w
};

template <class T>
void attention_pool_forward_cpu(const PoolForward<T>& args, const Parallel& parallel);

template <class T>
void attention_pool_backward_cpu(const PoolBackward<T>& args, const Parallel& parallel);

// On a GPU a row's frames are split into runs, one block each; ``scores`` and ``partial`` are float32 scratch.
// kPoolWidest is the largest D that the lanes of a block can hold.
constexpr int64_t kPoolWidest = 8192;

struct PoolPlan {
  int64_t run;  // frames of a run
  int runs;     // per row
  int group;    // warps that hold a frame: 1, 2, 4 or 8
  int packs;    // packs of 16 bytes per lane: 1, 2, 4 or 8; 0 if a frame is too wide
  int vector;   // 1 if every frame begins at a multiple of 16 bytes
  int parts;    // blocks that merge a row
  size_t shared;  // bytes of shared memory
};

PoolPlan pool_plan(const PoolShape& shape, int bytes, bool aligned);

template <class T>
struct PoolForwardGpu {
  PoolShape shape;
  PoolPlan plan;
  const T* h;
  int64_t row_stride, frame_stride;
  const T* w;
  const int64_t* lengths;
  float* scores;   // [B, T]
  float* partial;  // [B, runs, 2 + D]: the scores' maximum, the sum of exponentials, the weighted sum of frames
  T* pooled;
  T* weights;
};

template <class T>
struct PoolBackwardGpu {
  PoolShape shape;
  PoolPlan plan;
  const T* grad_pooled;
  const T* grad_weights;  // [B, T] or null
  const T* h;
  int64_t row_stride, frame_stride;
  const T* w;
  const T* pooled;
  const T* weights;
  const int64_t* lengths;
  T* grad_h;
  float* partial;  // [B, runs, D]: their sum is the gradient of w
};

// T is float, gpu::Half or gpu::Bfloat; stream is a cudaStream_t. Returns 0 or the CUDA error.
template <class T>
int attention_pool_forward_cuda(const PoolForwardGpu<T>& args, void* stream);

template <class T>
int attention_pool_backward_cuda(const PoolBackwardGpu<T>& args, void* stream);

}  // namespace ser_fast
