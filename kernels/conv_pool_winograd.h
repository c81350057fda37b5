// Winograd's minimal filtering for the forward of conv_pool in float: a window's 2 x 2 pixels from fewer products.
//
// Along an axis, n taps g on n + 1 inputs d give two neighbouring pixels z, for odd n >= 3, as
//
//   z0 = s0 + s1 + s2    s0 = (d0 - d2) g0                  + sum_o (d[o] - d[o+1]) g[o]
//   z1 = s1 - s2 - s3    s1 = (d1 + d2) (g0 + g1 + g2) / 2  + sum_o d[o+1] (g[o] + g[o+1])
//                        s2 = (d2 - d1) (g0 - g1 + g2) / 2
//                        s3 = (d1 - d3) g2                  + sum_o (d[o+1] - d[o+2]) g[o+1]   o = 3, 5, .., n - 2
//
// F(2, 3), and F(2, 2) for every two taps more, whose products add to the same sums: 4 and 3 products for 6 and 4. A
// filter of 5 x 3 takes 28 products for the 60 of the direct form. Inputs are only added and subtracted, so the error
// stays as small as the direct form's on inputs of one scale, and equal inputs along an axis give exactly equal pixels.
// With X_c the largest input of channel c in the window's field and W_c the sum of |weight| over that channel,
//
//   |error of y| <= 2^-24 (K kt + 9) (16 sum_c X_c W_c + |bias|)
//
// from at most K kt + 9 roundings on any path; each axis at most quadruples the sum of the absolute products.
//
// Two kinds of filters of three bins take it: over `Many` channels with one position, in both axes; and over a `Pair`
// of neighbours of three channels, with F(2, 3) along the bins and F(2, 2) along the two positions, whose window takes
// 120 products for 240.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <optional>
#include <vector>

#include "buffer.h"
#include "conv_pool.h"
#include "simd.h"

namespace ser_fast::winograd {

constexpr int kSums = 4;             // s0, .., s3
constexpr int64_t kGroup = 16;       // channels that are transformed together
constexpr int64_t kBlock = 18;       // windows whose transformed inputs and sums stay in the L1 cache
constexpr float kLargest = 0x1p40f;  // smaller values cannot overflow: sums of products are below 2^88 K kt
constexpr double kBins[kSums][3] = {{1, 0, 0}, {0.5, 0.5, 0.5}, {0.5, -0.5, 0.5}, {0, 0, 1}};  // of g along the bins

// Windows of a tile, whose four sums along the bins are in registers; smaller tiles have kLeast.
template <class I>
inline constexpr int kTile = I::kBytes == 64 ? 6 : 3;
constexpr int kLeast = 3;

inline int64_t whole(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }

// Whether all are finite and smaller than kLargest: the bits of NaN and infinity are the largest.
template <class I>
SER_FAST_INLINE bool moderate(const float* values, int64_t count) {
  using Bits = decltype(Vec<I, float>{} < Vec<I, float>{});
  Bits largest = {};
  for (int64_t i = 0; i < count; i += kLanes<I, float>) {
    const Bits bits = (Bits)load<I>(values + i, count - i) & INT32_MAX;
    largest = bits > largest ? bits : largest;
  }
  return largest_lane(largest) < std::bit_cast<int32_t>(kLargest);
}

// The transformed filters [vectors, products, kSums, lanes] and the biases [vectors, lanes], with filters as lanes.
struct Filters {
  int64_t lanes, vectors, size;  // size: elements of a vector's filters
  Zeros<float> weight, bias;

  Filters(const ConvPoolForward<float>& args, int64_t lanes, int64_t products)
      : lanes(lanes),
        vectors(whole(args.shape.filters, lanes) / lanes),
        size(products * kSums * lanes),
        weight(vectors * size),
        bias(vectors * lanes) {
    if (args.bias) std::copy_n(args.bias, args.shape.filters, bias.data());
  }

  float* of(int64_t filter) const { return weight.data() + filter / lanes * size + filter % lanes; }

  // Writes a product with three taps along the bins; returns the place of the next.
  float* put(float* to, const double (&g)[3]) const {
    for (int s = 0; s < kSums; ++s, to += lanes)
      *to = static_cast<float>(kBins[s][0] * g[0] + kBins[s][1] * g[1] + kBins[s][2] * g[2]);
    return to;
  }
};

// A product along time: (d[first] + sign d[second]) (sum_i factor[i] g[tap + i]).
struct Term {
  int64_t first, second;
  float sign;
  int64_t tap;
  double factor[3];
};

struct Many {
  std::array<std::vector<Term>, kSums> terms;
  Filters filters;

  static bool fits(const ConvPoolShape& shape) { return shape.positions() == 1 && shape.channels >= kGroup / 2; }

  Many(const ConvPoolForward<float>& args, int64_t lanes)
      : filters(args, lanes, args.shape.depth * (4 + 3 * (args.shape.kernel_t - 3) / 2)) {
    const auto& shape = args.shape;
    terms = {{{{0, 2, -1, 0, {1, 0, 0}}},
              {{1, 2, 1, 0, {0.5, 0.5, 0.5}}},
              {{2, 1, -1, 0, {0.5, -0.5, 0.5}}},
              {{1, 3, -1, 0, {0, 0, 1}}}}};
    for (int64_t o = 3; o < shape.kernel_t; o += 2) {
      terms[0].push_back({o, o + 1, -1, o, {1, 0}});
      terms[1].push_back({o + 1, o + 1, 0, o, {1, 1}});
      terms[3].push_back({o + 1, o + 2, -1, o, {0, 1}});
    }
    for (int64_t o = 0; o < shape.filters; ++o) {
      float* to = filters.of(o);
      for (const auto& sum : terms)
        for (const Term& term : sum)
          for (int64_t k = 0; k < shape.depth; ++k) {
            const float* from = args.weight + ((o * shape.depth + k) * shape.kernel_t + term.tap) * 3;
            double g[3] = {};
            for (int i = 0; i < (term.tap ? 2 : 3); ++i)
              for (int j = 0; j < 3; ++j) g[j] += term.factor[i] * from[i * 3 + j];
            to = filters.put(to, g);
          }
    }
  }
};

// Products: the middle channel with the sum of the filter's two, and the outer channels' differences to it with one.
struct Pair {
  static constexpr int kProducts = 3, kChannel[kProducts] = {1, 0, 2};
  Filters filters;

  static bool fits(const ConvPoolShape& shape) { return shape.channels == 3 && shape.depth == 2; }

  Pair(const ConvPoolForward<float>& args, int64_t lanes) : filters(args, lanes, kProducts * args.shape.kernel_t) {
    const int64_t taps = args.shape.kernel_t;
    for (int64_t o = 0; o < args.shape.filters; ++o) {
      float* to = filters.of(o);
      for (int n = 0; n < kProducts; ++n)
        for (int64_t i = 0; i < taps; ++i) {
          const float *first = args.weight + (o * 2 * taps + i) * 3, *second = first + taps * 3;
          double g[3];
          for (int j = 0; j < 3; ++j) g[j] = (n == 2 ? 0.0 : first[j]) + (n == 1 ? 0.0 : second[j]);
          to = filters.put(to, g);
        }
    }
  }
};

// Adds `count` products to the sums along the bins at W windows for a vector of filters; returns the next weights.
// kSum and kWindow are the elements of x between two sums and two windows, `step` between two products.
template <class I, int64_t kSum, int64_t kWindow, int W>
SER_FAST_INLINE const float* accumulate(const float* x, int64_t step, int64_t count, const float* weight,
                                        Vec<I, float> (&sum)[kSums][W]) {
  for (; count > 0; --count, x += step) {
    SER_FAST_UNROLL
    for (int s = 0; s < kSums; ++s, weight += kLanes<I, float>) {
      const Vec<I, float> filter = in_register(load<I>(weight));
      SER_FAST_UNROLL
      for (int w = 0; w < W; ++w) sum[s][w] += filter * x[s * kSum + w * kWindow];
    }
  }
  return weight;
}

// z0 and z1.
template <class V>
SER_FAST_INLINE std::array<V, 2> pixels(const V& s0, const V& s1, const V& s2, const V& s3) {
  return {s0 + s1 + s2, s1 - s2 - s3};
}

// The largest pixel of a window so far, or 0, and the winner. All pixels are finite.
template <class I>
struct Best {
  using F = Vec<I, float>;
  using Whole = decltype(F{} < F{});
  F value = {};
  Whole winner = Whole{} + kNoWinner;

  // The second frame or bin may be past the end.
  SER_FAST_INLINE void add(F (&pixel)[4], int32_t position, bool frame, bool bin) {
    if (!frame) pixel[2] = pixel[3] = F{};  // 0 never wins
    if (!bin) pixel[1] = pixel[3] = F{};
    const F above = pixel[0] > pixel[1] ? pixel[0] : pixel[1], below = pixel[2] > pixel[3] ? pixel[2] : pixel[3];
    const F largest = above > below ? above : below;
    Whole place = Whole{} + (4 * position + 3);
    SER_FAST_UNROLL
    for (int i = 2; i >= 0; --i) place = pixel[i] == largest ? Whole{} + (4 * position + i) : place;
    winner = largest > value ? place : winner;
    value = largest > value ? largest : value;
  }

  // Writes the vector that begins with filter o, into a window's part of a frame of y and winners.
  SER_FAST_INLINE void write(const ConvPoolForward<float>& args, int64_t o, float* y, uint8_t* winners) const {
    constexpr int64_t lanes = kLanes<I, float>;
    typedef uint8_t Bytes __attribute__((vector_size(lanes)));
    const int64_t count = std::min(lanes, args.shape.filters - o), stride = args.pooled.filter;
    if (stride == 1) {
      store(y + o, value, count);
    } else {
      float values[lanes];
      store(static_cast<float*>(values), value);
      for (int64_t lane = 0; lane < count; ++lane) y[(o + lane) * stride] = values[lane];
    }
    const Bytes bytes = __builtin_convertvector(winner, Bytes);
    std::memcpy(winners + o, &bytes, count);
  }
};

// Zero-padded frames of a row, channels last in whole groups; a frame begins with the bin before the first.
struct Strip {
  int64_t pixel, frame, first, frames;  // elements of a pixel and of a frame; first frame of the row; frames
  Zeros<float> memory;

  Strip(const ConvPoolShape& shape, int64_t begin, int64_t end)
      : pixel(whole(shape.channels, kGroup)),
        frame(2 * (shape.pooled_bins() + kLeast) * pixel),
        first(2 * begin - shape.kernel_t / 2),
        frames(2 * (end - begin) + shape.kernel_t - 1),
        memory(frames * frame) {}

  void copy(const ConvPoolForward<float>& args, const ConvPoolRow& row) const {
    const int64_t channels = args.shape.channels, bins = args.shape.bins;
    for (int64_t t = std::max<int64_t>(first, 0); t < std::min(first + frames, row.length); ++t) {
      const float* from = args.x + row.x + t * args.strides.frame;
      float* to = memory.data() + (t - first) * frame + pixel;
      if (channels == pixel && args.strides.bin == channels) std::copy_n(from, bins * channels, to);
      else
        for (int64_t f = 0; f < bins; ++f) std::copy_n(from + f * args.strides.bin, channels, to + f * pixel);
    }
  }
};

// The inputs [groups, kSums, kBlock, kGroup] of one product along time and all along the bins, at `count` windows, from
// the first input of the first window on. Returns their end.
template <class I>
SER_FAST_INLINE float* transform(const Strip& strip, const float* x, const Term& term, int64_t count, float* to) {
  using F = Vec<I, float>;
  constexpr int64_t size = kBlock * kGroup;
  const int64_t pixel = strip.pixel;
  const F sign = F{} + term.sign;
  for (int64_t g = 0; g < pixel; g += kGroup, to += kSums * size)
    for (int64_t w = 0; w < count; ++w)
      SER_FAST_UNROLL
      for (int64_t i = 0; i < kGroup; i += kLanes<I, float>) {
        const float* first = x + term.first * strip.frame + 2 * w * pixel + g + i;
        const float* second = x + term.second * strip.frame + 2 * w * pixel + g + i;
        F d[4];
        SER_FAST_UNROLL
        for (int j = 0; j < 4; ++j) d[j] = load<I>(first + j * pixel) + load<I>(second + j * pixel) * sign;
        float* at = to + w * kGroup + i;
        store(at, F(d[0] - d[2]));
        store(at + size, F(d[1] + d[2]));
        store(at + 2 * size, F(d[2] - d[1]));
        store(at + 3 * size, F(d[1] - d[3]));
      }
  return to;
}

// One sum along time at W windows for a vector of filters: to[2 w + s] for both bins s.
template <class I, int W>
SER_FAST_INLINE void multiply(const float* x, int64_t terms, int64_t channels, const float* weight,
                              const Vec<I, float>& start, Vec<I, float>* to) {
  Vec<I, float> sum[kSums][W] = {};
  for (int w = 0; w < W; ++w) sum[1][w] = start;
  for (; terms > 0; --terms)
    for (int64_t c = 0; c < channels; c += kGroup, x += kSums * kBlock * kGroup)
      weight = accumulate<I, kBlock * kGroup, kGroup>(x, 1, std::min(kGroup, channels - c), weight, sum);
  SER_FAST_UNROLL
  for (int w = 0; w < W; ++w) {
    const auto z = pixels(sum[0][w], sum[1][w], sum[2][w], sum[3][w]);
    to[2 * w] = z[0], to[2 * w + 1] = z[1];
  }
}

// False, and nothing is written, if values might overflow.
template <class I>
SER_FAST_INLINE bool compute(const Many& many, const ConvPoolForward<float>& args, const ConvPoolRow& row,
                             int64_t begin, int64_t end, float* y, uint8_t* winners) {
  using F = Vec<I, float>;
  constexpr int64_t lanes = kLanes<I, float>;
  const auto& shape = args.shape;
  const auto& filters = many.filters;
  const int64_t bins = shape.pooled_bins();
  const Strip strip(shape, begin, end);
  strip.copy(args, row);
  if (!moderate<I>(strip.memory.data(), strip.frames * strip.frame)) return false;
  const Buffer<float> inputs(many.terms[0].size() * strip.pixel * kSums * kBlock);
  const Buffer<F> sums(filters.vectors * kSums * kBlock * 2);
  for (int64_t t = begin; t < end; ++t, y += bins * shape.filters, winners += bins * shape.filters)
    for (int64_t first = 0; first < bins; first += kBlock) {
      const int64_t count = std::min(kBlock, bins - first), rounded = whole(count, kLeast);
      const float* weight = filters.weight.data();
      for (int s = 0; s < kSums; ++s) {
        const int64_t terms = many.terms[s].size();
        float* to = inputs.data();
        for (const Term& term : many.terms[s])
          to = transform<I>(strip, strip.memory.data() + 2 * ((t - begin) * strip.frame + first * strip.pixel), term,
                            rounded, to);
        for (int64_t v = 0; v < filters.vectors; ++v) {
          const F start = s == 1 ? load<I>(filters.bias.data() + v * lanes) : F{};  // s1 is in all four pixels
          const auto tile = [&](auto windows, int64_t w) __attribute__((always_inline)) {
            multiply<I, windows>(inputs.data() + w * kGroup, terms, shape.channels, weight + v * filters.size, start,
                                 sums.data() + ((v * kSums + s) * kBlock + w) * 2);
          };
          int64_t w = 0;
          for (; w + kTile<I> <= rounded; w += kTile<I>) tile(std::integral_constant<int, kTile<I>>{}, w);
          if (w < rounded) tile(std::integral_constant<int, kLeast>{}, w);
        }
        weight += terms * shape.depth * kSums * lanes;
      }
      for (int64_t v = 0; v < filters.vectors; ++v)
        for (int64_t w = 0; w < count; ++w) {
          const F* sum = sums.data() + (v * kSums * kBlock + w) * 2;
          F pixel[4];
          SER_FAST_UNROLL
          for (int s = 0; s < 2; ++s) {
            const auto z = pixels(sum[s], sum[2 * kBlock + s], sum[4 * kBlock + s], sum[6 * kBlock + s]);
            pixel[s] = z[0], pixel[2 + s] = z[1];
          }
          Best<I> best;
          best.add(pixel, 0, 2 * t + 1 < row.length, 2 * (first + w) + 1 < shape.bins);
          best.write(args, v * lanes, y + (first + w) * args.pooled.bin, winners + (first + w) * shape.filters);
        }
    }
  return true;
}

template <class I>
SER_FAST_INLINE bool compute(const Pair& pair, const ConvPoolForward<float>& args, const ConvPoolRow& row,
                             int64_t begin, int64_t end, float* y, uint8_t* winners) {
  using F = Vec<I, float>;
  using Four = Vec<Portable, float>;
  constexpr int64_t lanes = kLanes<I, float>, kWindow = kSums * 3;
  constexpr int W = kTile<I>;
  const auto& shape = args.shape;
  const auto& filters = pair.filters;
  const int64_t taps = shape.kernel_t, bins = shape.pooled_bins(), before = 2 * begin - taps / 2;
  const int64_t frames = 2 * (end - begin) + taps - 1, windows = whole(bins, W), frame = windows * kWindow + kSums;
  const Buffer<float> inputs(frames * frame);  // [frames, windows, kSums, 3]
  const Zeros<float> padded((2 * windows + 3) * 3);
  for (int64_t t = before; t < before + frames; ++t) {
    float* to = inputs.data() + (t - before) * frame;
    if (t < 0 || t >= row.length) {
      std::fill_n(to, frame, 0.0f);
      continue;
    }
    const float* from = args.x + row.x + t * args.strides.frame;
    float* x = padded.data() + 3;
    for (int64_t f = 0; f < shape.bins; ++f, from += args.strides.bin, x += 3) {
      const float middle = from[1];
      x[0] = from[0] - middle, x[1] = middle, x[2] = from[2] - middle;
    }
    if (!moderate<I>(padded.data(), (2 * windows + 3) * 3)) return false;
    x = padded.data();
    for (int64_t w = 0; w < windows; ++w, x += 6, to += kWindow) {  // a fourth element is overwritten by the next
      const auto d0 = load<Portable>(x), d1 = load<Portable>(x + 3), d2 = load<Portable>(x + 6);
      const auto d3 = load<Portable>(x + 9);
      store(to, Four(d0 - d2));
      store(to + 3, Four(d1 + d2));
      store(to + 6, Four(d2 - d1));
      store(to + 9, Four(d1 - d3));
    }
  }
  for (int64_t t = begin; t < end; ++t, y += bins * shape.filters, winners += bins * shape.filters)
    for (int64_t v = 0; v < filters.vectors; ++v)
      for (int64_t first = 0; first < bins; first += W) {
        F pixel[2][W][4];
        for (int r = 0; r < 2; ++r) {
          F sum[kSums][W], shared[kSums][W] = {};  // of the middle channel, which is in both positions
          for (int w = 0; w < W; ++w) shared[1][w] = load<I>(filters.bias.data() + v * lanes);
          const float* x = inputs.data() + (2 * (t - begin) + r) * frame + first * kWindow;
          const float* weight = filters.weight.data() + v * filters.size;
          for (int n = 0; n < Pair::kProducts; ++n) {
            std::memcpy(&sum, &shared, sizeof(sum));
            weight = accumulate<I, 3, kWindow>(x + Pair::kChannel[n], frame, taps, weight, sum);
            if (n == 0) std::memcpy(&shared, &sum, sizeof(sum));
            else
              for (int w = 0; w < W; ++w) {
                const auto z = pixels(sum[0][w], sum[1][w], sum[2][w], sum[3][w]);
                pixel[n - 1][w][2 * r] = z[0], pixel[n - 1][w][2 * r + 1] = z[1];
              }
          }
        }
        for (int64_t w = 0; w < W && first + w < bins; ++w) {
          Best<I> best;
          for (int p = 0; p < 2; ++p)
            best.add(pixel[p][w], p, 2 * t + 1 < row.length, 2 * (first + w) + 1 < shape.bins);
          best.write(args, v * lanes, y + (first + w) * args.pooled.bin, winners + (first + w) * shape.filters);
        }
      }
  return true;
}

// The form of a shape and its filters, if any.
struct Minimal {
  std::optional<Many> many;
  std::optional<Pair> pair;

  Minimal(const ConvPoolForward<double>&, int64_t) {}
  Minimal(const ConvPoolForward<float>& args, int64_t lanes) {
    const auto& shape = args.shape;
    // With fewer bins than a tile has, or without taps along time, the transforms cost more than they save.
    if (shape.kernel_f != 3 || shape.kernel_t < 3 || shape.pooled_bins() < kLeast) return;
    if (!moderate<Portable>(args.weight, shape.filters * shape.taps())) return;
    if (args.bias && !moderate<Portable>(args.bias, shape.filters)) return;
    if (Many::fits(shape)) many.emplace(args, lanes);
    if (Pair::fits(shape)) pair.emplace(args, lanes);
  }
};

// Pooled frames begin..end of a row. False, and nothing is written, if the direct form has to compute them.
template <class I, class T>
SER_FAST_INLINE bool compute(I, const Minimal& minimal, const ConvPoolForward<T>& args, const ConvPoolRow& row,
                             int64_t begin, int64_t end, T* y, uint8_t* winners) {
  if constexpr (std::is_same_v<T, float>) {
    if (minimal.many) return compute<I>(*minimal.many, args, row, begin, end, y, winners);
    if (minimal.pair) return compute<I>(*minimal.pair, args, row, begin, end, y, winners);
  }
  return false;
}

}  // namespace ser_fast::winograd
