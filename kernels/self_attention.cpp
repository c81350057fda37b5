// Multi-head self-attention on CPU. A task is one head of one row of the batch. It packs the head's keys and values
// once, then takes tiles of queries over all keys: a tile's weights stay in the L2 cache for any length in use.
#include "self_attention.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>
#include <vector>

#include "activations.h"
#include "philox.h"
#include "simd.h"

namespace ser_fast {
namespace {

constexpr int64_t kTile = 16;    // queries of a tile
constexpr int64_t kChunk = 512;  // terms of a sum that are added one by one; longer sums are sums of the chunks' sums
constexpr int64_t kDraws = 16;   // bytes of one call of the generator, for as many queries

constexpr int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

template <class I, class T>
inline constexpr int64_t kPanel = 3 * kLanes<I, T>;  // columns of a panel

template <int64_t COUNT>
struct WordsOf {
  typedef uint32_t type __attribute__((vector_size(COUNT * sizeof(uint32_t))));
};
template <int64_t COUNT>
using Words = typename WordsOf<COUNT>::type;

template <class I, class T>
using Mask = decltype(Vec<I, T>{} < Vec<I, T>{});

// out[R][V] = (ADD ? out : 0) + left[R][depth] right[depth][V], V vectors of columns.
template <class I, int R, int V, bool ADD, class T>
SER_FAST_INLINE void product(const T* left, int64_t row_step, int64_t step, const T* right, int64_t right_step,
                             int64_t depth, T* out, int64_t out_step) {
  constexpr int64_t lanes = kLanes<I, T>;
  Vec<I, T> sum[R][V] = {};
  for (int64_t k = 0; k < depth; ++k) {
    Vec<I, T> column[V];
    SER_FAST_UNROLL
    for (int v = 0; v < V; ++v) column[v] = load<I>(right + k * right_step + v * lanes);
    SER_FAST_UNROLL
    for (int r = 0; r < R; ++r) {
      const T factor = left[r * row_step + k * step];
      SER_FAST_UNROLL
      for (int v = 0; v < V; ++v) sum[r][v] += factor * column[v];
    }
  }
  SER_FAST_UNROLL
  for (int r = 0; r < R; ++r)
    SER_FAST_UNROLL
    for (int v = 0; v < V; ++v) {
      T* to = out + r * out_step + v * lanes;
      store(to, ADD ? Vec<I, T>(load<I, T>(to) + sum[r][v]) : sum[r][v]);
    }
}

// A matrix by its first element and the distance of neighbours along its rows and columns.
template <class T>
struct Matrix {
  T* data;
  int64_t down, along;
};

// out = (ADD ? out : 0) + left right. Rows are a multiple of kRows; right and out have `vectors` dense vectors.
template <class I, bool ADD, class T>
SER_FAST_INLINE void multiply(int64_t rows, int64_t vectors, int64_t depth, Matrix<const T> left,
                              Matrix<const T> right, Matrix<T> out) {
  constexpr int64_t lanes = kLanes<I, T>;
  for (int64_t v = 0; v < vectors;) {
    const int64_t rest = vectors - v, width = rest == 4 ? 2 : std::min<int64_t>(rest, 3);
    for (int64_t r = 0; r < rows; r += I::kRows) {
      const T *from = left.data + r * left.down, *columns = right.data + v * lanes;
      T* to = out.data + r * out.down + v * lanes;
      if (width == 3)
        product<I, I::kRows, 3, ADD>(from, left.down, left.along, columns, right.down, depth, to, out.down);
      else if (width == 2)
        product<I, I::kRows, 2, ADD>(from, left.down, left.along, columns, right.down, depth, to, out.down);
      else
        product<I, I::kRows, 1, ADD>(from, left.down, left.along, columns, right.down, depth, to, out.down);
    }
    v += width;
  }
}

// The same for sums of any depth.
template <class I, class T>
SER_FAST_INLINE void multiply_long(int64_t rows, int64_t vectors, int64_t depth, Matrix<const T> left,
                                   Matrix<const T> right, Matrix<T> out) {
  multiply<I, false, T>(rows, vectors, std::min(depth, kChunk), left, right, out);
  for (int64_t k = kChunk; k < depth; k += kChunk)
    multiply<I, true, T>(rows, vectors, std::min(depth - k, kChunk),
                         {left.data + k * left.along, left.down, left.along},
                         {right.data + k * right.down, right.down, 1}, out);
}

// One head of one row, with its scratch memory. All sizes are padded to whole vectors, with zeros.
template <class I, class T>
struct Head {
  static constexpr int64_t lanes = kLanes<I, T>;
  static constexpr int64_t step = std::max<int64_t>(lanes, I::kRows);

  int64_t row, head, length, width;
  int64_t depth, keys;  // width and length, padded
  int64_t stride;       // of a tile's rows; a power of two would map all rows to the same part of the cache
  int64_t calls;        // of the generator for kDraws queries, one a key, padded
  T root;               // 1 / sqrt(d)
  Dropout dropout;
  std::unique_ptr<T[]> memory;
  std::unique_ptr<uint32_t[]> words;  // [kTile / kDraws][4][calls]
  T *transposed, *key, *value, *transposed_value, *query, *weights, *slopes, *dropped, *out, *grad;
  T *key_sums, *value_sums, *columns, *lost;

  Head(const AttentionShape& shape, const Dropout& dropout, int64_t row, int64_t head, int64_t length, bool backward)
      : row(row),
        head(head),
        length(length),
        width(shape.width),
        depth(round_up(width, lanes)),
        keys(round_up(length, step)),
        stride(keys + lanes),
        calls(round_up(keys, I::kBytes / sizeof(uint32_t))),
        root(T(1) / std::sqrt(T(width))),
        dropout(dropout) {
    const int64_t panels = round_up(keys, kPanel<I, T>) * depth, matrix = keys * depth, tile = kTile * stride;
    const bool mixes = shape.mixes, both = mixes && backward;
    const std::array<std::pair<T**, int64_t>, 14> parts = {{
        {&transposed, panels}, {&key, backward ? matrix : 0}, {&value, mixes && !backward ? matrix : 0},
        {&transposed_value, both ? panels : 0}, {&query, kTile * depth}, {&weights, tile},
        {&slopes, backward ? tile : 0}, {&dropped, both ? tile : 0}, {&out, kTile * depth},
        {&grad, both ? kTile * depth : 0}, {&key_sums, backward ? matrix : 0}, {&value_sums, both ? matrix : 0},
        {&columns, mixes ? 0 : keys}, {&lost, mixes || backward ? 0 : keys},
    }};  // fmt: skip
    int64_t size = 0;
    for (const auto& part : parts) size += part.second;
    memory.reset(new T[size]);
    T* next = memory.get();
    for (const auto& [place, count] : parts) *place = next, next += count;
    if (dropout.dropped) words.reset(new uint32_t[kTile / kDraws * 4 * calls]);
  }

  // Fetches a frame that is read 16 frames later: heads lie too far apart for the processor to fetch them in time.
  SER_FAST_INLINE void fetch(const T* frame, int64_t frame_stride) const {
    for (int64_t k = 0; k < width; k += 64 / sizeof(T)) __builtin_prefetch(frame + kTile * frame_stride + k);
  }

  // Copies frames of `width`, times a factor, into dense rows of `depth`; `rows` of them, zero from `count` on.
  SER_FAST_INLINE void pack(const T* from, int64_t frame_stride, int64_t count, int64_t rows, T factor, T* to) const {
    for (int64_t t = 0; t < count; ++t) {
      fetch(from + t * frame_stride, frame_stride);
      for (int64_t k = 0; k < depth; k += lanes)
        store(to + t * depth + k, Vec<I, T>(load<I>(from + t * frame_stride + k, width - k) * factor));
    }
    std::fill(to + count * depth, to + rows * depth, T(0));
  }

  // Copies frames into panels [depth][kPanel] of their transpose.
  SER_FAST_INLINE void transpose(const T* from, int64_t frame_stride, T* to) const {
    constexpr int64_t panel = kPanel<I, T>;
    for (int64_t first = 0; first < keys; first += panel, to += depth * panel) {
      const int64_t count = std::min(panel, length - first);
      if (count < panel || width < depth) std::fill(to, to + depth * panel, T(0));
      for (int64_t s = 0; s < count; ++s) {
        const T* frame = from + (first + s) * frame_stride;
        fetch(frame, frame_stride);
        for (int64_t k = 0; k < width; ++k) to[k * panel + s] = frame[k];
      }
    }
  }

  // to[kTile][keys] = left[kTile][depth] times the panels.
  SER_FAST_INLINE void across_keys(const T* left, int64_t rows, const T* panels, T* to) const {
    constexpr int64_t panel = kPanel<I, T>;
    for (int64_t first = 0; first < keys; first += panel)
      multiply<I, false, T>(rows, std::min(panel, keys - first) / lanes, depth, {left, depth, 1},
                            {panels + first * depth, panel, 1}, {to + first, stride, 1});
  }

  // Replaces the scores of a query by exp(score - maximum), 0 past the length; returns 1 / sum. As with
  // torch.softmax, a score of +infinity or none but -infinity gives NaN.
  SER_FAST_INLINE T softmax(T* scores) const {
    constexpr T kLowest = -std::numeric_limits<T>::infinity();
    std::fill(scores + length, scores + keys, kLowest);
    Vec<I, T> most = Vec<I, T>{} + kLowest, sum = {}, zero = {};
    for (int64_t s = 0; s < keys; s += lanes) {
      const auto score = load<I, T>(scores + s);
      most = most < score ? score : most;
    }
    const T maximum = largest_lane(most);
    for (int64_t s = 0; s < keys; s += lanes) {
      const Vec<I, T> below = load<I, T>(scores + s) - maximum;
      // exp(-87) is about the smallest normal float.
      const Vec<I, T> power = below < T(-87) ? zero : exponential_in_range(below);
      store(scores + s, power);
      sum += power;
    }
    return 1 / sum_lanes(sum);
  }

  // Draws the bytes of the tile's queries: 16 by each call, with counter (key, query / 16, head, row), one per query.
  SER_FAST_INLINE void draw(int64_t first, int64_t count) {
    for (int64_t t = 0; t < count; t += kDraws)
      philox<I>(dropout.seed, static_cast<uint32_t>((first + t) / kDraws), static_cast<uint32_t>(head),
                static_cast<uint32_t>(row), keys, words.get() + t / kDraws * 4 * calls, calls);
  }

  // Weights of query t for the keys from s on, 0 where they are dropped.
  template <bool DROPS>
  SER_FAST_INLINE Vec<I, T> kept(int64_t t, int64_t s, Vec<I, T> weight) const {
    if constexpr (DROPS) {
      Words<lanes> word;
      std::memcpy(&word, words.get() + t / 4 * calls + s, sizeof(word));
      word <<= 24 - 8 * (t % 4);
      const Vec<I, T> zero = {};
      return __builtin_convertvector(word < Words<lanes>{} + (dropout.dropped << 24), Mask<I, T>) ? zero : weight;
    }
    return weight;
  }

  // Adds the tile's weights to the sums of each key over the queries. Two sums, of even and odd queries, hide
  // latency; Kahan's method keeps the digits that a sum over thousands of queries would lose.
  template <bool DROPS>
  SER_FAST_INLINE void add_columns(int64_t count, const T* shares) const {
    for (int64_t s = 0; s < keys; s += lanes) {
      Vec<I, T> sum[2] = {};
      for (int64_t t = 0; t < count; t += 2)
        for (int64_t odd = 0; odd < std::min<int64_t>(2, count - t); ++odd)
          sum[odd] += kept<DROPS>(t + odd, s, load<I, T>(weights + (t + odd) * stride + s)) * shares[t + odd];
      const Vec<I, T> before = load<I, T>(columns + s), added = sum[0] + sum[1] - load<I, T>(lost + s);
      const Vec<I, T> after = before + added;
      store(lost + s, Vec<I, T>((after - before) - added));
      store(columns + s, after);
    }
  }

  // Computes the weights of the tile's queries, without their common factor 1 / sum, which it stores in `shares`.
  SER_FAST_INLINE void attend(const T* from, int64_t frame_stride, int64_t first, int64_t count, T* shares) {
    const int64_t rows = round_up(count, I::kRows);
    pack(from + first * frame_stride, frame_stride, count, rows, root, query);
    across_keys(query, rows, transposed, weights);
    for (int64_t t = 0; t < count; ++t) shares[t] = softmax(weights + t * stride);
    if (dropout.dropped) draw(first, count);
  }
};

template <class I, class T, bool DROPS>
SER_FAST_INLINE void forward(const AttentionForward<T>& args, int64_t row, int64_t head) {
  constexpr int64_t lanes = kLanes<I, T>;
  const auto [B, frames, heads, width, mixes] = args.shape;
  const int64_t padded = args.qkv.starts ? 0 : frames, length = args.lengths ? args.lengths[row] : frames;
  const int64_t start = args.qkv.starts ? args.qkv.starts[row] : row * frames;
  T* weights = args.output + (args.qkv.starts ? head * frames + start : (row * heads + head) * frames);
  T* mixed = args.output + (start * heads + head) * width;
  if (mixes)
    for (int64_t t = length; t < padded; ++t) std::fill_n(mixed + t * heads * width, width, T(0));
  else if (padded) std::fill(weights + length, weights + frames, T(0));
  if (length == 0) return;
  Head<I, T> own(args.shape, args.dropout, row, head, length, false);
  const T* query = args.qkv.at(row) + head * args.qkv.head_stride;
  const int64_t part = args.qkv.part_stride, stride = args.qkv.frame_stride;
  own.transpose(query + part, stride, own.transposed);
  if (mixes) own.pack(query + 2 * part, stride, length, own.keys, 1, own.value);
  else std::fill_n(own.columns, own.keys, T(0)), std::fill_n(own.lost, own.keys, T(0));
  T shares[kTile];
  for (int64_t first = 0; first < length; first += kTile) {
    const int64_t count = std::min(kTile, length - first);
    own.attend(query, stride, first, count, shares);
    if (!mixes) {
      own.template add_columns<DROPS>(count, shares);
      continue;
    }
    if constexpr (DROPS)
      for (int64_t t = 0; t < count; ++t)
        for (int64_t s = 0; s < own.keys; s += lanes) {
          T* weight = own.weights + t * own.stride + s;
          store(weight, own.template kept<DROPS>(t, s, load<I, T>(weight)));
        }
    multiply_long<I, T>(round_up(count, I::kRows), own.depth / lanes, length, {own.weights, own.stride, 1},
                        {own.value, own.depth, 1}, {own.out, own.depth, 1});
    for (int64_t t = 0; t < count; ++t) {
      const T factor = shares[t] * static_cast<T>(args.dropout.scale);
      T* to = mixed + (first + t) * heads * width;
      for (int64_t k = 0; k < width; ++k) to[k] = own.out[t * own.depth + k] * factor;
    }
  }
  const T factor = static_cast<T>(args.dropout.scale / static_cast<double>(length));
  if (!mixes)
    for (int64_t s = 0; s < length; ++s) weights[s] = own.columns[s] * factor;
}

template <class I, class T, bool DROPS>
SER_FAST_INLINE void backward(const AttentionBackward<T>& args, int64_t row, int64_t head) {
  constexpr int64_t lanes = kLanes<I, T>;
  const auto [B, frames, heads, width, mixes] = args.shape;
  const int64_t padded = args.starts ? 0 : frames, length = args.lengths ? args.lengths[row] : frames;
  const int64_t start = args.starts ? args.starts[row] : row * frames, parts = mixes ? 3 : 2;
  const int64_t across = heads * width, grad_stride = parts * across;  // of parts and frames in grad_qkv
  T* to = args.grad_qkv + start * grad_stride + head * width;
  for (int64_t t = length; t < padded; ++t)
    for (int64_t part = 0; part < parts; ++part) std::fill_n(to + t * grad_stride + part * across, width, T(0));
  if (length == 0) return;
  Head<I, T> own(args.shape, args.dropout, row, head, length, true);
  const T* query = args.qkv.at(row) + head * args.qkv.head_stride;
  const int64_t part = args.qkv.part_stride, stride = args.qkv.frame_stride, matrix = own.keys * own.depth;
  const T *key = query + part, *value = query + 2 * part;
  own.transpose(key, stride, own.transposed);
  own.pack(key, stride, length, own.keys, 1, own.key);
  std::fill_n(own.key_sums, matrix, T(0));
  const T* grad = args.grad + (start * heads + head) * width;
  if (mixes) {
    own.transpose(value, stride, own.transposed_value);
    std::fill_n(own.value_sums, matrix, T(0));
  } else {
    grad = args.grad + (args.starts ? head * frames + start : (row * heads + head) * frames);
    const T factor = static_cast<T>(args.dropout.scale / static_cast<double>(length));
    for (int64_t s = 0; s < own.keys; ++s) own.columns[s] = s < length ? grad[s] * factor : T(0);
  }
  const T scale = mixes ? static_cast<T>(args.dropout.scale) : T(1);
  T shares[kTile];
  for (int64_t first = 0; first < length; first += kTile) {
    const int64_t count = std::min(kTile, length - first), rows = round_up(count, I::kRows);
    own.attend(query, stride, first, count, shares);
    if (mixes) {
      own.pack(grad + first * across, across, count, rows, scale, own.grad);
      own.across_keys(own.grad, rows, own.transposed_value, own.slopes);
    }
    for (int64_t t = 0; t < count; ++t) {
      T *weights = own.weights + t * own.stride, *slopes = own.slopes + t * own.stride;
      const T* along = mixes ? slopes : own.columns;
      Vec<I, T> sum = {};
      for (int64_t s = 0; s < own.keys; s += lanes) {
        const Vec<I, T> weight = load<I, T>(weights + s) * shares[t], left = own.template kept<DROPS>(t, s, weight);
        const Vec<I, T> slope = left * load<I, T>(along + s);
        if (mixes) store(own.dropped + t * own.stride + s, left);
        store(weights + s, weight);
        store(slopes + s, slope);
        sum += slope;
      }
      const T mean = sum_lanes(sum);
      for (int64_t s = 0; s < own.keys; s += lanes)
        store(slopes + s, Vec<I, T>(load<I, T>(slopes + s) - load<I, T>(weights + s) * mean));
    }
    const int64_t vectors = own.depth / lanes;
    multiply_long<I, T>(rows, vectors, length, {own.slopes, own.stride, 1}, {own.key, own.depth, 1},
                        {own.out, own.depth, 1});
    for (int64_t t = 0; t < count; ++t)
      for (int64_t k = 0; k < width; ++k) to[(first + t) * grad_stride + k] = own.out[t * own.depth + k] * own.root;
    multiply<I, true, T>(own.keys, vectors, count, {own.slopes, 1, own.stride}, {own.query, own.depth, 1},
                         {own.key_sums, own.depth, 1});
    if (mixes)
      multiply<I, true, T>(own.keys, vectors, count, {own.dropped, 1, own.stride}, {own.grad, own.depth, 1},
                           {own.value_sums, own.depth, 1});
  }
  for (int64_t s = 0; s < length; ++s)
    for (int64_t k = 0; k < width; ++k) {
      to[s * grad_stride + across + k] = own.key_sums[s * own.depth + k];
      if (mixes) to[s * grad_stride + 2 * across + k] = own.value_sums[s * own.depth + k];
    }
}

#define SER_FAST_ATTENTION_TASKS(I, T, target)                                          \
  target void run(I, const AttentionForward<T>& args, int64_t row, int64_t head) {      \
    if (args.dropout.dropped) forward<I, T, true>(args, row, head);                     \
    else forward<I, T, false>(args, row, head);                                         \
  }                                                                                     \
  target void run(I, const AttentionBackward<T>& args, int64_t row, int64_t head) {     \
    if (args.dropout.dropped) backward<I, T, true>(args, row, head);                    \
    else backward<I, T, false>(args, row, head);                                        \
  }
#define SER_FAST_ATTENTION(I, target) \
  SER_FAST_ATTENTION_TASKS(I, float, target) SER_FAST_ATTENTION_TASKS(I, double, target)
SER_FAST_EACH_ISA(SER_FAST_ATTENTION)

// Runs every head of every row, the longest rows first.
template <class T, class Args>
void each_head(const Args& args, const Parallel& parallel) {
  std::vector<int64_t> order(args.shape.batch);
  std::iota(order.begin(), order.end(), 0);
  const int64_t* lengths = args.lengths;
  if (lengths)
    std::stable_sort(order.begin(), order.end(), [=](int64_t a, int64_t b) { return lengths[a] > lengths[b]; });
  const int64_t heads = args.shape.heads;
  double pairs = 0;  // of a query and a key
  for (int64_t row = 0; row < args.shape.batch; ++row) {
    const double length = lengths ? lengths[row] : args.shape.frames;
    pairs += length * length;
  }
  const Parallel threads = parallel.worth(pairs * heads * args.shape.width / 8);
  with_isa<T>([&](auto isa) {
    threads(args.shape.batch * heads, [&](int64_t i) { run(isa, args, order[i / heads], i % heads); });
  });
}

}  // namespace

template <class T>
void self_attention_forward_cpu(const AttentionForward<T>& args, const Parallel& parallel) {
  each_head<T>(args, parallel);
}

template <class T>
void self_attention_backward_cpu(const AttentionBackward<T>& args, const Parallel& parallel) {
  each_head<T>(args, parallel);
}

template void self_attention_forward_cpu(const AttentionForward<float>&, const Parallel&);
template void self_attention_forward_cpu(const AttentionForward<double>&, const Parallel&);
template void self_attention_backward_cpu(const AttentionBackward<float>&, const Parallel&);
template void self_attention_backward_cpu(const AttentionBackward<double>&, const Parallel&);

}  // namespace ser_fast
