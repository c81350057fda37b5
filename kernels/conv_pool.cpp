// Convolution with max-pooling on CPU. Work goes through strips: zero-padded copies of the few input frames that the
// filter spans, which stay in the cache and need no tests at the edges.
//
// Forward, lanes are filters: a block of whole 2 x 2 windows is summed over all taps in registers and pooled there.
// In float, filters of three bins over at least 8 channels, or over two of three, take Winograd's form with half of
// the products (conv_pool_winograd.h); a chunk with values that are huge or not finite takes the direct form.
// Backward, lanes run along the filter's bins and channels, which are contiguous in a strip: only the winners, a
// quarter of the pixels or fewer, are multiplied. The weights' gradient keeps one filter in registers over the
// winners of a frame, as does the input's with the filter itself.
#include "conv_pool.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>

#include "buffer.h"
#include "conv_pool_winograd.h"
#include "simd.h"

namespace ser_fast {
namespace {

constexpr int64_t kChunk = 8;  // pooled frames of a forward task

// Windows of a block of two vectors of filters; a block of one vector has twice as many. Sums, weights and one input
// value fit in the vector registers.
template <class I>
inline constexpr int kWindows = I::kBytes == 64 ? 3 : 1;

// Vectors of a filter that the backward keeps in registers, at most.
template <class I>
inline constexpr int kHeld = I::kBytes == 64 ? 15 : 10;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Frames of one row of x or of its gradient, channels last, with zeros around the bins and room for whole vectors.
template <class T>
struct Strip {
  int64_t stride, frames, margin, size;  // elements of a frame; frames; zeros before bin 0; elements of the bins
  Zeros<T> memory;

  static int64_t stride_of(const ConvPoolShape& shape) {
    const int64_t unit = kAligned / sizeof(T);
    return (ceil_div((2 * shape.pooled_bins() + shape.kernel_f) * shape.channels, unit) + 1) * unit;
  }

  Strip(const ConvPoolShape& shape, int64_t frames)
      : stride(stride_of(shape)),
        frames(frames),
        margin(shape.kernel_f / 2 * shape.channels),
        size(shape.bins * shape.channels),
        memory(frames * stride) {}

  T* at(int64_t frame) const { return memory.data() + frame * stride; }

  // Copies frame t of a row of x, or zeros if it is not valid.
  void copy(int64_t frame, const ConvPoolBackward<T>& args, const ConvPoolRow& row, int64_t t) const {
    T* to = at(frame) + margin;
    if (t < 0 || t >= row.length) {
      std::fill_n(to, size, T(0));
      return;
    }
    const T* from = args.x + row.x + t * args.strides.frame;
    const int64_t channels = args.shape.channels;
    if (args.strides.bin == channels) {
      std::copy_n(from, size, to);
      return;
    }
    for (int64_t f = 0; f < args.shape.bins; ++f) std::copy_n(from + f * args.strides.bin, channels, to + f * channels);
  }

  // Drops the first two frames; the last two are then free.
  void advance() const { std::memmove(at(0), at(2), (frames - 2) * stride * sizeof(T)); }
};

// Frames of one row of x, one plane per channel, with zeros around the bins: neighbouring pixels of a channel are
// neighbours in memory.
template <class T>
struct Planes {
  int64_t stride, frames;    // elements of a frame
  Zeros<T> memory;           // [C, frames, stride]
  std::vector<int64_t> tap;  // place of each tap, in the order of the weights

  Planes(const ConvPoolShape& shape, int64_t frames, int64_t windows)
      : stride(2 * ceil_div(shape.pooled_bins(), windows) * windows + shape.kernel_f - 1),
        frames(frames),
        memory(shape.channels * frames * stride) {
    for (int64_t k = 0; k < shape.depth; ++k)
      for (int64_t i = 0; i < shape.kernel_t; ++i)
        for (int64_t j = 0; j < shape.kernel_f; ++j) tap.push_back((k * frames + i) * stride + j);
  }

  const T* at(int64_t frame) const { return memory.data() + frame * stride; }

  SER_FAST_INLINE void copy(int64_t frame, const ConvPoolForward<T>& args, const ConvPoolRow& row, int64_t t) const {
    const auto& shape = args.shape;
    const T* from = args.x + row.x + t * args.strides.frame;
    T* to = memory.data() + frame * stride + shape.kernel_f / 2;
    for (int64_t c = 0; c < shape.channels; ++c)
      for (int64_t f = 0; f < shape.bins; ++f) to[c * frames * stride + f] = from[f * args.strides.bin + c];
  }
};

// The weights [vectors, taps, lanes] and the biases [vectors, lanes], with the filters as lanes; and transformed.
template <class T>
struct Packed {
  int64_t vectors, taps;
  Zeros<T> weight, bias;
  winograd::Minimal minimal;

  Packed(const ConvPoolForward<T>& args, int64_t lanes)
      : vectors(ceil_div(args.shape.filters, lanes)),
        taps(args.shape.taps()),
        weight(vectors * taps * lanes),
        bias(vectors * lanes),
        minimal(args, lanes) {
    const T* from = args.weight;
    for (int64_t o = 0; o < args.shape.filters; ++o)
      for (int64_t tap = 0; tap < taps; ++tap)
        weight.data()[(o / lanes * taps + tap) * lanes + o % lanes] = *from++;
    if (args.bias) std::copy_n(args.bias, args.shape.filters, bias.data());
  }
};

// Sums over all taps of W windows, each of 2 x 2 pixels, and V vectors of filters; x is the first tap of the first
// pixel. The taps' places come from memory, so the compiler does not carry values of x from tap to tap, which spills.
template <class I, class T, int W, int V>
SER_FAST_INLINE void convolve(const Packed<T>& packed, const Planes<T>& planes, const T* x, const T* weight,
                              const T* bias, Vec<I, T> (&sum)[2][2 * W][V]) {
  constexpr int64_t lanes = kLanes<I, T>;
  for (int r = 0; r < 2; ++r)
    for (int s = 0; s < 2 * W; ++s)
      for (int v = 0; v < V; ++v) sum[r][s][v] = load<I>(bias + v * lanes);
  for (int64_t tap = 0; tap < packed.taps; ++tap, weight += lanes) {
    const T *at = x + planes.tap[tap], *below = at + planes.stride;
    Vec<I, T> w[V];
    SER_FAST_UNROLL
    for (int v = 0; v < V; ++v) w[v] = load<I>(weight + v * packed.taps * lanes);
    SER_FAST_UNROLL
    for (int r = 0; r < 2; ++r)
      SER_FAST_UNROLL
      for (int s = 0; s < 2 * W; ++s)
        SER_FAST_UNROLL
        for (int v = 0; v < V; ++v) sum[r][s][v] += w[v] * (r ? below : at)[s];
  }
}

// W windows from window `first` on, of frame t of the planes, and the filters from vector `v0` on. `frames` of the
// two frames are valid.
template <class I, class T, int W, int V>
SER_FAST_INLINE void block(const ConvPoolForward<T>& args, const Packed<T>& packed, const Planes<T>& planes,
                           int64_t t, int64_t first, int64_t v0, int64_t frames, T* y, uint8_t* winners) {
  constexpr int64_t lanes = kLanes<I, T>;
  const auto& shape = args.shape;
  const int64_t bins = shape.bins - 2 * first;
  Vec<I, T> best[W][V] = {}, winner[W][V];
  for (int w = 0; w < W; ++w)
    for (int v = 0; v < V; ++v) winner[w][v] = Vec<I, T>{} + T(kNoWinner);
  for (int64_t p = 0; p < shape.positions(); ++p) {
    Vec<I, T> sum[2][2 * W][V];
    convolve<I, T, W, V>(packed, planes, planes.at(p * planes.frames + t) + 2 * first,
                         packed.weight.data() + v0 * packed.taps * lanes, packed.bias.data() + v0 * lanes, sum);
    if (frames < 2 || bins < 2 * W) {  // pixels past the end: 0 never wins
      SER_FAST_UNROLL
      for (int s = 0; s < 2 * W; ++s)
        SER_FAST_UNROLL
        for (int v = 0; v < V; ++v) {
          if (s >= bins) sum[0][s][v] = Vec<I, T>{};
          if (s >= bins || frames < 2) sum[1][s][v] = Vec<I, T>{};
        }
    }
    SER_FAST_UNROLL
    for (int place = 0; place < 4; ++place) {
      const Vec<I, T> candidate = Vec<I, T>{} + static_cast<T>(4 * p + place);
      SER_FAST_UNROLL
      for (int w = 0; w < W; ++w)
        SER_FAST_UNROLL
        for (int v = 0; v < V; ++v) {
          const Vec<I, T> pixel = sum[place / 2][2 * w + place % 2][v], before = best[w][v];
          // A NaN is not below anything, so it wins, and stays.
          const Vec<I, T> larger = pixel <= before ? before : pixel;
          winner[w][v] = larger == before ? winner[w][v] : candidate;
          best[w][v] = before == before ? larger : before;
        }
    }
  }
  using Whole = decltype(Vec<I, T>{} < Vec<I, T>{});
  typedef uint8_t Bytes __attribute__((vector_size(lanes)));
  for (int w = 0; w < W && 2 * w < bins; ++w)
    SER_FAST_UNROLL
    for (int v = 0; v < V; ++v) {
      const int64_t o = (v0 + v) * lanes, count = std::min(lanes, shape.filters - o);
      T* to = y + (first + w) * args.pooled.bin + o * args.pooled.filter;
      if (args.pooled.filter == 1) {
        store(to, best[w][v], count);
      } else {
        T values[lanes];
        store(static_cast<T*>(values), best[w][v]);
        for (int64_t lane = 0; lane < count; ++lane) to[lane * args.pooled.filter] = values[lane];
      }
      const Whole whole = __builtin_convertvector(winner[w][v], Whole);
      const Bytes bytes = __builtin_convertvector(whole, Bytes);
      std::memcpy(winners + (first + w) * shape.filters + o, &bytes, count);
    }
}

// One chunk of the pooled frames of a row.
template <class I, class T>
SER_FAST_INLINE void task(I isa, const ConvPoolForward<T>& args, const Packed<T>& packed, int64_t chunks,
                          int64_t index) {
  constexpr int W = kWindows<I>;
  const auto& shape = args.shape;
  const ConvPoolRow& row = args.rows[index / chunks];
  const int64_t begin = index % chunks * kChunk, end = std::min(begin + kChunk, (row.frames + 1) / 2);
  if (begin >= end) return;
  const int64_t valid = std::clamp((row.length + 1) / 2, begin, end), size = shape.pooled_bins() * shape.filters;
  T* y = args.y + (row.pooled + begin) * size;
  uint8_t* winners = args.winners + (row.pooled + begin) * size;
  std::fill_n(y + (valid - begin) * size, (end - valid) * size, T(0));
  std::fill_n(winners + (valid - begin) * size, (end - valid) * size, kNoWinner);
  if (valid == begin) return;
  if (winograd::compute(isa, packed.minimal, args, row, begin, valid, y, winners)) return;
  const Planes<T> planes(shape, 2 * (valid - begin) + shape.kernel_t - 1, 2 * W);
  const int64_t before = 2 * begin - shape.kernel_t / 2;  // frame of x in the planes' first
  for (int64_t t = std::max<int64_t>(before, 0); t < std::min(before + planes.frames, row.length); ++t)
    planes.copy(t - before, args, row, t);
  for (int64_t t = 0; t < valid - begin; ++t, y += size, winners += size) {
    const int64_t frames = row.length - 2 * (begin + t);
    int64_t v = 0;
    for (; v + 2 <= packed.vectors; v += 2)
      for (int64_t f = 0; f < shape.pooled_bins(); f += W)
        block<I, T, W, 2>(args, packed, planes, 2 * t, f, v, frames, y, winners);
    if (v < packed.vectors)
      for (int64_t f = 0; f < shape.pooled_bins(); f += 2 * W)
        block<I, T, 2 * W, 1>(args, packed, planes, 2 * t, f, v, frames, y, winners);
  }
}

// A filter in vectors along its bins and channels. Where it has fewer channels than x the others are 0; `passes` times
// `held` vectors cover it.
template <class T>
struct Filter {
  int64_t lanes, row, passes, held;  // row: vectors of one of the kt frames
  std::vector<int64_t> offset;       // of every vector in a strip

  Filter(const ConvPoolShape& shape, int64_t lanes, int64_t most, int64_t stride)
      : lanes(lanes), row(ceil_div(shape.row(), lanes)) {
    const int64_t count = shape.kernel_t * row;
    passes = ceil_div(count, most);
    held = ceil_div(count, passes);
    held = most == 5 ? 5 : held <= 2 ? 2 : held <= 5 ? 5 : held <= 10 ? 10 : 15;  // those that are compiled
    offset.resize(vectors());  // the vectors beyond the last row lie on the first
    for (int64_t i = 0; i < count; ++i) offset[i] = i / row * stride + i % row * lanes;
  }

  int64_t vectors() const { return passes * held; }
  int64_t size() const { return vectors() * lanes; }

  int64_t at(const ConvPoolShape& shape, int64_t k, int64_t i, int64_t j) const {
    return i * row * lanes + j * shape.channels + k;
  }
};

// A winner: its gradient, and the place of its patch in a strip.
template <class T>
struct Winner {
  int64_t place;
  T grad;
};

// Adds sum_i grad_i patch_i to N vectors of a filter's gradient. Returns sum_i grad_i.
template <class I, class T, int N>
SER_FAST_INLINE T add_patches(const Winner<T>* winners, int64_t count, const T* strip, const int64_t* offset,
                              T* filter) {
  constexpr int64_t lanes = kLanes<I, T>;
  Vec<I, T> sum[N] = {};
  T total = 0;
  for (int64_t i = 0; i < count; ++i) {
    const T* patch = strip + winners[i].place;
    total += winners[i].grad;
    SER_FAST_UNROLL
    for (int n = 0; n < N; ++n) sum[n] += load<I>(patch + offset[n]) * winners[i].grad;
  }
  SER_FAST_UNROLL
  for (int n = 0; n < N; ++n) store(filter + n * lanes, Vec<I, T>(load<I>(filter + n * lanes) + sum[n]));
  return total;
}

// Adds grad_i times N vectors of a filter to every patch.
template <class I, class T, int N>
SER_FAST_INLINE void add_filter(const Winner<T>* winners, int64_t count, const T* filter, const int64_t* offset,
                                T* strip) {
  constexpr int64_t lanes = kLanes<I, T>;
  Vec<I, T> weight[N];
  SER_FAST_UNROLL
  for (int n = 0; n < N; ++n) weight[n] = load<I>(filter + n * lanes);
  for (int64_t i = 0; i < count; ++i) {
    T* patch = strip + winners[i].place;
    SER_FAST_UNROLL
    for (int n = 0; n < N; ++n)
      store(patch + offset[n], Vec<I, T>(load<I>(patch + offset[n]) + weight[n] * winners[i].grad));
  }
}

// What all rows share: the filters in vectors, the places of candidates, and each row's sums.
template <class T>
struct Backward {
  Filter<T> filter;
  Zeros<T> weight;           // [O, filter]
  int64_t candidates;
  int64_t place[256] = {};   // of a candidate's patch in its window
  Zeros<T> sums, bias_sums;  // [B, O, filter], [B, O]

  Backward(const ConvPoolBackward<T>& args, int64_t lanes, int64_t most, int64_t stride)
      : filter(args.shape, lanes, most, stride),
        weight(args.shape.filters * filter.size()),
        candidates(4 * args.shape.positions()),
        sums(args.shape.batch * args.shape.filters * filter.size()),
        bias_sums(args.shape.batch * args.shape.filters) {
    const auto& shape = args.shape;
    const T* from = args.weight;
    for (int64_t o = 0; o < shape.filters; ++o)
      for (int64_t k = 0; k < shape.depth; ++k)
        for (int64_t i = 0; i < shape.kernel_t; ++i)
          for (int64_t j = 0; j < shape.kernel_f; ++j)
            weight.data()[o * filter.size() + filter.at(shape, k, i, j)] = *from++;
    for (int64_t c = 0; c < candidates; ++c) place[c] = c / 2 % 2 * stride + c % 2 * shape.channels + c / 4;
  }
};

// Lists the winners of a filter in a frame and returns their number. Without branches, which could not be predicted;
// not inlined, so that what the loop needs stays in registers.
template <class T>
__attribute__((noinline)) int64_t list_winners(const uint8_t* winners, int64_t filters, const T* grad, int64_t stride,
                                               const Backward<T>& common, int64_t step, int64_t bins,
                                               Winner<T>* list) {
  const auto candidates = static_cast<uint64_t>(common.candidates);
  int64_t count = 0;
  for (int64_t at = 0; bins > 0; --bins, at += step, winners += filters, grad += stride) {
    const uint64_t winner = *winners;
    list[count] = {common.place[winner] + at, *grad};
    count += winner < candidates;
  }
  return count;
}

// One row; N vectors of a filter are in registers.
template <class I, class T, int N>
SER_FAST_INLINE void compute(const ConvPoolBackward<T>& args, const Backward<T>& common, int64_t b) {
  const auto& shape = args.shape;
  const auto& filter = common.filter;
  const ConvPoolRow& row = args.rows[b];
  const int64_t filters = shape.filters, bins = shape.pooled_bins(), length = row.length;
  const int64_t before = shape.kernel_t / 2, size = bins * filters;
  const Strip<T> x(shape, shape.kernel_t + 1), grad_x(shape, args.grad_x ? shape.kernel_t + 1 : 0);
  std::vector<Winner<T>> of_filter(size);
  std::vector<int64_t> counts(filters);
  T* sums = common.sums.data() + b * filters * filter.size();
  T* bias_sums = common.bias_sums.data() + b * filters;
  const T* grad = args.grad + row.pooled * size;
  const uint8_t* winners = args.winners + row.pooled * size;
  // Writes frame t of grad_x from a frame of the strip.
  const auto write = [&](int64_t frame, int64_t t) __attribute__((always_inline)) {
    if (t < 0 || t >= length) return;
    std::copy_n(grad_x.at(frame) + grad_x.margin, grad_x.size, args.grad_x + (row.frame + t) * grad_x.size);
  };
  for (int64_t i = 2; i < x.frames; ++i) x.copy(i, args, row, i - 2 - before);
  for (int64_t t = 0; 2 * t < length; ++t, grad += size, winners += size) {
    x.advance();
    for (int64_t i = x.frames - 2; i < x.frames; ++i) x.copy(i, args, row, 2 * t + i - before);
    for (int64_t o = 0; o < filters; ++o) {
      Winner<T>* list = &of_filter[o * bins];
      counts[o] = list_winners(winners + o, filters, grad + o * args.pooled.filter, args.pooled.bin, common,
                               2 * shape.channels, bins, list);
      T total = 0;  // the same in every pass
      for (int64_t n = 0; n < filter.vectors(); n += N)
        total = add_patches<I, T, N>(list, counts[o], x.at(0), &filter.offset[n],
                                     sums + o * filter.size() + n * filter.lanes);
      bias_sums[o] += total;
    }
    if (!args.grad_x) continue;
    for (int64_t o = 0; o < filters; ++o)  // in a loop of its own: one strip at a time stays in the L1 cache
      for (int64_t n = 0; n < filter.vectors(); n += N)
        add_filter<I, T, N>(&of_filter[o * bins], counts[o],
                            common.weight.data() + o * filter.size() + n * filter.lanes, &filter.offset[n],
                            grad_x.at(0));
    for (int64_t i = 0; i < 2; ++i) write(i, 2 * t + i - before);
    grad_x.advance();
    std::fill_n(grad_x.at(grad_x.frames - 2), 2 * grad_x.stride, T(0));
  }
  if (!args.grad_x) return;
  const int64_t done = length > 0 ? (length + 1) / 2 * 2 - before : 0;
  for (int64_t i = 0; i < before; ++i) write(i, done + i);
  std::fill_n(args.grad_x + (row.frame + length) * grad_x.size, (row.frames - length) * grad_x.size, T(0));
}

template <class I, class T>
SER_FAST_INLINE void task(I, const ConvPoolBackward<T>& args, const Backward<T>& common, int64_t b) {
  const int64_t held = common.filter.held;
  if constexpr (I::kBytes == 64)
    if (common.filter.lanes == kLanes<Avx2, T>) return compute<Avx2, T, 5>(args, common, b);
  if (held == 2) compute<I, T, 2>(args, common, b);
  else if (held == 5) compute<I, T, 5>(args, common, b);
  else if (held == 10) compute<I, T, 10>(args, common, b);
  else if constexpr (kHeld<I> == 15) compute<I, T, 15>(args, common, b);
}

// Adds up the rows' sums of filter o, always in the same order.
template <class T>
void reduce(const ConvPoolBackward<T>& args, const Backward<T>& common, int64_t o) {
  const auto& shape = args.shape;
  const auto total = [&](const Zeros<T>& sums, int64_t size, int64_t at) {
    double sum = 0;
    for (int64_t b = 0; b < shape.batch; ++b) sum += sums.data()[(b * shape.filters + o) * size + at];
    return static_cast<T>(sum);
  };
  args.grad_bias[o] = total(common.bias_sums, 1, 0);
  T* to = args.grad_weight + o * shape.taps();
  for (int64_t k = 0; k < shape.depth; ++k)
    for (int64_t i = 0; i < shape.kernel_t; ++i)
      for (int64_t j = 0; j < shape.kernel_f; ++j)
        *to++ = total(common.sums, common.filter.size(), common.filter.at(shape, k, i, j));
}

#define SER_FAST_CONV_POOL_TASKS(I, T, target)                                                                     \
  target void run(I isa, const ConvPoolForward<T>& args, const Packed<T>& packed, int64_t chunks, int64_t index) { \
    task(isa, args, packed, chunks, index);                                                                        \
  }                                                                                                                \
  target void run(I isa, const ConvPoolBackward<T>& args, const Backward<T>& common, int64_t b) {                  \
    task(isa, args, common, b);                                                                                    \
  }
#define SER_FAST_CONV_POOL(I, target) \
  SER_FAST_CONV_POOL_TASKS(I, float, target) SER_FAST_CONV_POOL_TASKS(I, double, target)
SER_FAST_EACH_ISA(SER_FAST_CONV_POOL)

}  // namespace

template <class T>
void conv_pool_forward_cpu(const ConvPoolForward<T>& args, const Parallel& parallel) {
  with_isa<T>([&](auto isa) {
    using I = decltype(isa);
    const Packed<T> packed(args, kLanes<I, T>);
    const int64_t chunks = ceil_div(args.shape.pooled_frames(), kChunk);
    const Parallel threads = parallel.worth(args.shape.products() / 32);
    threads(args.shape.batch * chunks, [&](int64_t index) { run(isa, args, packed, chunks, index); });
  });
}

template <class T>
void conv_pool_backward_cpu(const ConvPoolBackward<T>& args, const Parallel& parallel) {
  with_isa<T>([&](auto isa) {
    using I = decltype(isa);
    // Vectors of 64 bytes that are half empty are slower than of 32: most of them cross a cache line.
    const bool narrow = I::kBytes == 64 && args.shape.row() <= kLanes<Avx2, T>;
    const Backward<T> common(args, narrow ? kLanes<Avx2, T> : kLanes<I, T>, narrow ? 5 : kHeld<I>,
                             Strip<T>::stride_of(args.shape));
    std::vector<int64_t> order(args.shape.batch);  // the longest rows first
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return args.rows[a].length > args.rows[b].length; });
    const Parallel threads = parallel.worth(args.shape.products() / 32);
    threads(args.shape.batch, [&](int64_t i) { run(isa, args, common, order[i]); });
    threads(args.shape.filters, [&](int64_t o) { reduce(args, common, o); });
  });
}

template void conv_pool_forward_cpu(const ConvPoolForward<float>&, const Parallel&);
template void conv_pool_forward_cpu(const ConvPoolForward<double>&, const Parallel&);
template void conv_pool_backward_cpu(const ConvPoolBackward<float>&, const Parallel&);
template void conv_pool_backward_cpu(const ConvPoolBackward<double>&, const Parallel&);

}  // namespace ser_fast
