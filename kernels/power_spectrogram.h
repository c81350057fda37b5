// Power spectrogram: the contract between the torch boundary and every backend.
//
//   P[t, k] = | sum_n window[n] wave[t hop + origin + n] exp(-2 pi i k n / n_fft) |^2
//   out     = P, or log(max(P, floor)); then (. - mean[k]) / std[k] where they are given
//
// Only |.|^2 is wanted, so the phase's time origin is free and the window is never moved inside n_fft.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "parallel.h"

namespace ser_fast {

// Values of the samples before a row's first and after its last.
enum class Pad { kZero, kReflect, kReplicate, kCircular };

struct SpectrogramShape {
  int64_t batch, samples, frames;          // B, N, T
  int64_t n_fft, window_length, hop;       // W <= n_fft
  int64_t first_bin, bins;                 // F bins from first_bin on
  bool center;
  Pad pad;

  // The wave index of a row's first window sample: torch.stft centres the window inside n_fft.
  SER_FAST_BOTH int64_t origin() const { return center ? (n_fft - window_length) / 2 - n_fft / 2 : 0; }

  // A row shorter than one window is one frame, padded with zeros; an empty row has none.
  SER_FAST_BOTH int64_t frame_count(int64_t length) const {
    if (length == 0) return 0;
    const int64_t whole = length > window_length ? length - window_length : 0;
    const int64_t spare = center ? length + n_fft / 2 * 2 - n_fft : whole;
    return 1 + spare / hop;
  }
};

// Frames that one task transforms on a CPU, so that they share its scratch. A measurement may change it.
inline std::atomic<int64_t> frames_per_task = 256;

template <class Sample, class T>
struct SpectrogramForward {
  SpectrogramShape shape;
  const Sample* wave;  // [B, N], the last axis dense; int16 stands for sample / 32768
  int64_t row_stride;
  const T* window;         // [W]
  const int64_t* lengths;  // [B] in samples, each in 0..N, or null for N
  const T* mean;           // [F] or null
  const T* std;            // [F] or null
  bool log;
  T floor;
  T* out;  // [B, T, F], zero past each row's frames
};

// Returns whether no sample is NaN or infinite.
template <class T>
bool finite_cpu(const T* samples, int64_t count);

template <class Sample, class T>
void power_spectrogram_forward_cpu(const SpectrogramForward<Sample, T>& args, const Parallel& parallel);

// Divides x by a constant, both below 2^16, without a division. Exact: the reciprocal's error is below 2^-32.
struct Divisor {
  uint32_t by, reciprocal;  // 2^32 / by, rounded up; unused if by is 1

  SER_FAST_BOTH int operator()(int x) const {
    return by == 1 ? x : static_cast<int>(static_cast<uint64_t>(x) * reciprocal >> 32);
  }
};

// On a GPU a block transforms several frames of a row in shared memory; an even n_fft takes n_fft / 2 complex points.
// The models' sizes have kernels of their own, in which a warp or half of one holds a frame in registers.
struct SpectrogramPlan {
  int size;         // 1 + the place of the own kernel's size, or 0
  int points;       // of the complex transform: n_fft / 2, or n_fft if it is odd
  int passes;       // 0 if n_fft has a factor above 5, or does not fit
  int radix[24];    // of each pass: 2, 3, 4, 5 or 8; 1 alone for a single point
  int frames;       // per block
  int tiles;        // blocks per row
  int threads;      // per block
  Divisor count[24];  // by points / radix of each pass
  Divisor done[24];   // by the product of the radices before each pass
  Divisor bins;
  size_t shared;    // bytes
};

SpectrogramPlan spectrogram_plan(const SpectrogramShape& shape);

struct alignas(8) Root {  // read and written in one access
  float re, im;
};

template <class Sample>
struct SpectrogramGpu {
  SpectrogramShape shape;
  SpectrogramPlan plan;
  const Sample* wave;
  int64_t row_stride;
  const float* window;
  const Root* roots;       // [n_fft]: exp(-2 pi i k / n_fft)
  const int64_t* lengths;  // clamped to 0..N
  const float* mean;
  const float* std;
  bool log;
  float floor;
  float* out;
};

// Sample is float or int16_t; stream is a cudaStream_t. Returns 0 or the CUDA error.
template <class Sample>
int power_spectrogram_forward_cuda(const SpectrogramGpu<Sample>& args, void* stream);

}  // namespace ser_fast
