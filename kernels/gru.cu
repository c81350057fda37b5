// GRU recurrence on CUDA: the kernels, W_hh's layout for them, and the launches. See gru_tile.h.
#include "gru.h"

#include <mutex>
#include <utility>

#include "gru_tile.h"

namespace ser_fast {

using namespace gpu;

namespace {

template <class T>
struct GruPacking {
  const T* w_hh;
  Fragment* out;  // [D, units / 16, SPLIT, 3, steps, 32 lanes]
  int hidden, groups, split, steps;
  int64_t count;
  bool transposed, rounded;
};

SER_FAST_DEVICE uint32_t as_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}

// Two neighbours along K, or one float, as the tensor cores take them. They are no further apart than ``stride``.
template <class T>
SER_FAST_DEVICE uint32_t packed_word(const T* at, int64_t stride, int valid, bool) {
  uint32_t low = valid > 0 ? at[0].bits : 0, high = valid > 1 ? at[stride].bits : 0;
  return low | high << 16;
}
SER_FAST_DEVICE uint32_t packed_word(const float* at, int64_t, int valid, bool rounded) {
  const float x = valid > 0 ? *at : 0;
  return as_bits(rounded ? round_tf32(x) : x);
}

template <class T>
SER_FAST_KERNEL void pack(GruPacking<T> a) {
  const int64_t index = static_cast<int64_t>(block()) * 256 + thread();
  if (index >= a.count) return;
  int64_t rest = index / 32;
  const int at = static_cast<int>(index % 32), step = static_cast<int>(rest % a.steps);
  rest /= a.steps;
  const int gate = static_cast<int>(rest % 3), part = static_cast<int>(rest / 3 % a.split);
  rest /= 3 * a.split;
  const int group = static_cast<int>(rest % a.groups), H = a.hidden;
  const T* w = a.w_hh + (rest / a.groups * 3 + gate) * H * H;
  constexpr int kWord = 4 / sizeof(T);
  const int unit = group * 16 + at / 4 * 2, k = ((part * a.steps + step) * 32 + at % 4 * 8) / static_cast<int>(sizeof(T));
  const int64_t across = a.transposed ? 1 : H, along = a.transposed ? H : 1;
  Fragment fragment;
  SER_FAST_UNROLL
  for (int i = 0; i < 4; ++i) {
    const int row = unit + i % 2, column = k + i / 2 * kWord;
    const int valid = row < H ? H - column : 0;
    fragment.a[i] = packed_word(w + row * across + column * along, along, valid, a.rounded);
  }
  a.out[index] = fragment;
}

template <class C, bool RESET_AFTER>
SER_FAST_DEVICE void walk(const GruForwardGpu<typename C::T>& a) {
  using T = typename C::T;
  constexpr int kMine = C::kMine;
  const int H = static_cast<int>(a.shape.hidden), T_ = static_cast<int>(a.shape.frames);
  const Place<C> place(a.shape, a.plan, a.packed, a.lengths);
  const int unit = place.unit, steps = place.steps, stages = a.plan.stages;
  constexpr GruSize size = C::kSize;
  const GruMemory memory(size, sizeof(T), a.plan.threads, stages, false, RESET_AFTER);
  unsigned char* base = shared<unsigned char>();
  float* scratch = reinterpret_cast<float*>(base + memory.scratch);
  const int each = C::kParts * C::kRows * C::kWidth * static_cast<int>(sizeof(T));
  const Exchange<C> exchange = {base, memory.buffer, reinterpret_cast<Mbarrier*>(base + memory.counted),
                                a.plan.cluster, each, each};
  const Ring<C, 3> ring = {reinterpret_cast<Pair<T>*>(base + memory.ring), stages, a.plan.threads,
                           unit + 1 < H ? 2 : unit < H, a.vector};
  Weights<C> weights;
  weights.load(a.weights, place.direction, place.group, reinterpret_cast<Fragment*>(base + memory.spare));
  float bias[3][2], h[kMine][2];
  SER_FAST_UNROLL
  for (int u = 0; u < 2; ++u) {
    const bool exists = unit + u < H;
    SER_FAST_UNROLL
    for (int g = 0; g < 3; ++g)
      bias[g][u] = exists && a.b_hh ? widen(a.b_hh[(place.direction * 3 + g) * H + unit + u]) : 0;
    SER_FAST_UNROLL
    for (int j = 0; j < kMine; ++j)
      h[j][u] = exists && a.h0 && place.row[j] >= 0
                    ? widen(a.h0[(place.direction * a.shape.batch + place.row[j]) * H + unit + u]) : 0;
  }
  const auto fetch = [&](int step) {
    SER_FAST_UNROLL
    for (int j = 0; j < kMine; ++j)
      SER_FAST_UNROLL
      for (int g = 0; g < 3; ++g)
        ring.fetch(step, g, j, place.frame(a.gx, j, step) + (place.direction * 3 + g) * H + unit, step < place.length[j]);
    copy_commit();
  };
  const auto push = [&](int e, const float (&values)[kMine][2]) {
    SER_FAST_UNROLL
    for (int j = 0; j < kMine; ++j) exchange.push(e, 0, place.column[j], unit, values[j][0], values[j][1]);
  };

  exchange.begin();
  if (steps > 0) push(0, h);
  for (int step = 0; step < stages - 1; ++step) fetch(step);
  for (int step = 0; step < steps; ++step) {
    const int e = RESET_AFTER ? step : 2 * step;
    fetch(step + stages - 1);
    ring.wait();
    const unsigned char* x = exchange.wait(e);
    constexpr int kFirst = RESET_AFTER ? 3 : 2;  // gates that multiply h
    float r[kMine][2], z[kMine][2], q[kMine][2], inner[kMine][2], sum[kFirst][C::kTiles][4], own[kFirst][kMine][2];
    products<C, 0, kFirst>(weights, x, 0, sum);
    gather<C, kFirst>(sum, scratch, own);
    SER_FAST_UNROLL
    for (int j = 0; j < kMine; ++j) {
      float gx[2][2];
      SER_FAST_UNROLL
      for (int g = 0; g < 2; ++g) ring.read(step, g, j, gx[g]);
      SER_FAST_UNROLL
      for (int u = 0; u < 2; ++u) {
        r[j][u] = sigmoid(gx[0][u] + own[0][j][u] + bias[0][u]);
        z[j][u] = sigmoid(gx[1][u] + own[1][j][u] + bias[1][u]);
        q[j][u] = RESET_AFTER ? own[kFirst - 1][j][u] + bias[2][u] : r[j][u] * h[j][u];
        inner[j][u] = r[j][u] * q[j][u];
      }
    }
    if constexpr (!RESET_AFTER) {
      push(e + 1, q);
      x = exchange.wait(e + 1);
      float candidate[1][C::kTiles][4], last[1][kMine][2];
      products<C, 2, 1>(weights, x, 0, candidate);
      gather<C, 1>(candidate, scratch, last);
      SER_FAST_UNROLL
      for (int i = 0; i < 2 * kMine; ++i) inner[i / 2][i % 2] = last[0][i / 2][i % 2] + bias[2][i % 2];
    }
    float n[kMine][2];
    SER_FAST_UNROLL
    for (int j = 0; j < kMine; ++j) {
      float gx[2];
      ring.read(step, 2, j, gx);
      const bool valid = step < place.length[j];
      SER_FAST_UNROLL
      for (int u = 0; u < 2; ++u) {
        n[j][u] = tangent(gx[u] + inner[j][u]);
        if (valid) h[j][u] = gru_cell(z[j][u], n[j][u], h[j][u]);
      }
    }
    if (step + 1 < steps) push(RESET_AFTER ? e + 1 : e + 2, h);
    SER_FAST_UNROLL
    for (int j = 0; j < kMine; ++j) {
      if (step >= place.until[j] || unit >= H) continue;
      const bool valid = step < place.length[j], both = unit + 1 < H;
      const auto shown = [&](T* at, const float (&pair)[2]) {
        put(at, valid ? pair[0] : 0, valid ? pair[1] : 0, a.vector, both);
      };
      shown(place.frame(a.y, j, step) + place.direction * H + unit, h[j]);
      if (!a.gates.data) continue;
      T* gates = place.frame(a.gates, j, step) + place.direction * 4 * H + unit;
      shown(gates, r[j]);
      shown(gates + H, z[j]);
      shown(gates + 2 * H, n[j]);
      shown(gates + 3 * H, q[j]);
    }
  }
  SER_FAST_UNROLL
  for (int j = 0; j < kMine; ++j) {
    if (place.row[j] < 0 || unit >= H) continue;
    put(a.h_n + (place.direction * a.shape.batch + place.row[j]) * H + unit, h[j][0], h[j][1], a.vector, unit + 1 < H);
    for (int step = steps; step < (a.packed ? 0 : T_); ++step) {
      put(place.frame(a.y, j, step) + place.direction * H + unit, 0, 0, a.vector, unit + 1 < H);
      for (int g = 0; a.gates.data && g < 4; ++g)
        put(place.frame(a.gates, j, step) + (place.direction * 4 + g) * H + unit, 0, 0, a.vector, unit + 1 < H);
    }
  }
  copy_wait<0>();
}

template <class C, bool RESET_AFTER>
SER_FAST_DEVICE void walk(const GruBackwardGpu<typename C::T>& a) {
  using T = typename C::T;
  constexpr int kMine = C::kMine;
  const int H = static_cast<int>(a.shape.hidden), T_ = static_cast<int>(a.shape.frames);
  const Place<C> place(a.shape, a.plan, a.packed, a.lengths);
  const int unit = place.unit, steps = place.steps, stages = a.plan.stages;
  constexpr GruSize size = C::kSize;
  const GruMemory memory(size, sizeof(T), a.plan.threads, stages, true, RESET_AFTER);
  unsigned char* base = shared<unsigned char>();
  float* scratch = reinterpret_cast<float*>(base + memory.scratch);
  constexpr int kArray = C::kParts * C::kRows * C::kStride;
  const int each = C::kParts * C::kRows * C::kWidth * static_cast<int>(sizeof(T));
  const Exchange<C> exchange = {base, memory.buffer, reinterpret_cast<Mbarrier*>(base + memory.counted),
                                a.plan.cluster, (RESET_AFTER ? 3 : 2) * each, (RESET_AFTER ? 3 : 1) * each};
  constexpr int kItems = RESET_AFTER ? 6 : 5;  // grad_y, the state before, r, z, n and, if it is not their product, q
  const Ring<C, kItems> ring = {reinterpret_cast<Pair<T>*>(base + memory.ring), stages, a.plan.threads,
                           unit + 1 < H ? 2 : unit < H, a.vector};
  Weights<C> weights;
  weights.load(a.weights, place.direction, place.group, reinterpret_cast<Fragment*>(base + memory.spare));
  const auto state = [&](auto* states, int j) {
    return states + (place.direction * a.shape.batch + place.row[j]) * H + unit;
  };
  float grad_h[kMine][2];
  SER_FAST_UNROLL
  for (int j = 0; j < kMine; ++j)
    SER_FAST_UNROLL
    for (int u = 0; u < 2; ++u)
      grad_h[j][u] = unit + u < H && place.row[j] >= 0 ? widen(state(a.grad_h_n, j)[u]) : 0;
  // In the order of the walk, ``turn`` 0 being the last step.
  const auto fetch = [&](int turn) {
    const int step = steps - 1 - turn;
    SER_FAST_UNROLL
    for (int j = 0; j < kMine; ++j) {
      const bool valid = step >= 0 && step < place.length[j];
      ring.fetch(turn, 0, j, place.frame(a.grad_y, j, step) + place.direction * H + unit, valid);
      const bool first = step == 0;
      ring.fetch(turn, 1, j, first ? state(a.h0, j) : place.frame(a.y, j, step - 1) + place.direction * H + unit,
                 valid && (!first || a.h0));
      SER_FAST_UNROLL
      for (int g = 0; g < kItems - 2; ++g)
        ring.fetch(turn, 2 + g, j, place.frame(a.gates, j, step) + (place.direction * 4 + g) * H + unit, valid);
    }
    copy_commit();
  };
  const auto push = [&](int e, int array, const float (&values)[kMine][2]) {
    SER_FAST_UNROLL
    for (int j = 0; j < kMine; ++j) exchange.push(e, array, place.column[j], unit, values[j][0], values[j][1]);
  };
  const auto store = [&](const GpuFrames<T>& frames, int parts, int part, int step, const float (&values)[kMine][2]) {
    SER_FAST_UNROLL
    for (int j = 0; j < kMine; ++j)
      if (step < place.until[j] && unit < H)
        put(place.frame(frames, j, step) + (place.direction * parts + part) * H + unit, values[j][0], values[j][1], a.vector,
            unit + 1 < H);
  };

  exchange.begin();
  for (int turn = 0; turn < stages - 1; ++turn) fetch(turn);
  for (int turn = 0; turn < steps; ++turn) {
    const int step = steps - 1 - turn, e = RESET_AFTER ? turn : 2 * turn;
    fetch(turn + stages - 1);
    ring.wait();
    float pre_r[kMine][2], pre_z[kMine][2], pre_n[kMine][2], passed[kMine][2], through[kMine][2];
    SER_FAST_UNROLL
    for (int j = 0; j < kMine; ++j) {
      const bool valid = step < place.length[j];
      float item[kItems][2];
      SER_FAST_UNROLL
      for (int i = 0; i < kItems; ++i) ring.read(turn, i, j, item[i]);
      SER_FAST_UNROLL
      for (int u = 0; u < 2; ++u) {
        const float grad = valid ? grad_h[j][u] + item[0][u] : 0, r = item[2][u], z = item[3][u];
        const auto pre = gru_cell_backward(grad, z, item[4][u], item[1][u]);
        pre_z[j][u] = pre.pre_z;
        pre_n[j][u] = pre.pre_n;
        pre_r[j][u] = RESET_AFTER ? pre.pre_n * item[kItems - 1][u] * r * (1 - r) : item[1][u] * r * (1 - r);
        through[j][u] = RESET_AFTER ? pre.pre_n * r : r;
        passed[j][u] = valid ? grad * z : grad_h[j][u];
      }
    }
    if constexpr (RESET_AFTER) {
      push(e, 0, pre_r);
      push(e, 1, pre_z);
      push(e, 2, through);
    } else {
      push(e, 0, pre_z);
      push(e, 1, pre_n);
    }
    store(a.grad_gx, 3, 1, step, pre_z);
    store(a.grad_gx, 3, 2, step, pre_n);
    const unsigned char* x = exchange.wait(e);
    float own[1][kMine][2];
    if constexpr (RESET_AFTER) {
      store(a.grad_gx, 3, 0, step, pre_r);
      store(a.grad_q, 1, 0, step, through);
      float sum[3][C::kTiles][4];
      products<C, 0, 3>(weights, x, kArray, sum);
      SER_FAST_UNROLL
      for (int i = 0; i < C::kTiles * 4; ++i) sum[0][i / 4][i % 4] += sum[1][i / 4][i % 4] + sum[2][i / 4][i % 4];
      float(&total)[1][C::kTiles][4] = reinterpret_cast<float(&)[1][C::kTiles][4]>(sum);
      gather<C, 1>(total, scratch, own);
    } else {
      // Of the update gate and of the candidate; the reset gate's gradient hangs on the second.
      float two[2][C::kTiles][4], both[2][kMine][2];
      products<C, 1, 2>(weights, x, kArray, two);
      gather<C, 2>(two, scratch, both);
      SER_FAST_UNROLL
      for (int j = 0; j < kMine; ++j)
        SER_FAST_UNROLL
        for (int u = 0; u < 2; ++u) {
          passed[j][u] += both[1][j][u] * through[j][u] + both[0][j][u];
          pre_r[j][u] *= both[1][j][u];
        }
      push(e + 1, 0, pre_r);
      store(a.grad_gx, 3, 0, step, pre_r);
      float sum[1][C::kTiles][4];
      products<C, 0, 1>(weights, exchange.wait(e + 1), 0, sum);
      gather<C, 1>(sum, scratch, own);
    }
    SER_FAST_UNROLL
    for (int j = 0; j < kMine; ++j)
      SER_FAST_UNROLL
      for (int u = 0; u < 2; ++u) grad_h[j][u] = passed[j][u] + own[0][j][u];
  }
  const float zero[kMine][2] = {};
  SER_FAST_UNROLL
  for (int j = 0; j < kMine; ++j)
    if (place.row[j] >= 0 && unit < H) put(state(a.grad_h0, j), grad_h[j][0], grad_h[j][1], a.vector, unit + 1 < H);
  for (int step = steps; step < (a.packed ? 0 : T_); ++step) {
    SER_FAST_UNROLL
    for (int g = 0; g < 3; ++g) store(a.grad_gx, 3, g, step, zero);
    if (RESET_AFTER) store(a.grad_q, 1, 0, step, zero);
  }
  copy_wait<0>();
}

// Kernels for clusters are empty on devices that have none.
template <class C, bool RESET_AFTER, class Args>
SER_FAST_KERNEL void SER_FAST_BOUNDS(C::kSize.threads()) run(Args args) {
  if constexpr (kClusters || C::kSplit == 1) walk<C, RESET_AFTER>(args);
}

template <class T>
constexpr const auto& sizes() {
  if constexpr (sizeof(T) == 2) return kGruHalf;
  else return kGruFloat;
}

template <class T, class Args>
int pack_weights(const Args& args, const GruSize& size, bool transposed, Stream stream) {
  const int bytes = sizeof(T);
  const int64_t count = gru_fragments(args.shape, bytes, size.width);
  const GruPacking<T> packing = {args.w_hh, static_cast<Fragment*>(args.weights), static_cast<int>(args.shape.hidden),
                                 size.width / 16, size.split, size.width * bytes / 32 / size.split, count, transposed,
                                 size.parts == 1};
  return launch(pack<T>, static_cast<int>((count + 255) / 256), 256, 0, stream, packing);
}

// Runs the kernel that is compiled for the plan.
template <class T, class Args, size_t... I>
int launch_planned(const Args& args, int parts, bool transposed, Stream stream, std::index_sequence<I...>) {
  int failed = -1;
  const auto with = [&]<GruSize SIZE>() {
    if (SIZE.width != args.plan.width || SIZE.rows != args.plan.rows || SIZE.parts != parts) return;
    failed = pack_weights<T>(args, SIZE, transposed, stream);
    if (failed) return;
    using C = GruCase<T, SIZE>;
    const auto kernel = args.shape.reset_after ? run<C, true, Args> : run<C, false, Args>;
    const int blocks = static_cast<int>(args.plan.tiles * args.shape.directions * args.plan.cluster);
    failed = launch(kernel, blocks, args.plan.threads, args.plan.shared, stream, args, args.plan.cluster);
  };
  (with.template operator()<sizes<T>()[I]>(), ...);
  return failed;
}

template <class T>
using Indices = std::make_index_sequence<sizeof(sizes<T>()) / sizeof(GruSize)>;

}  // namespace

#ifdef __CUDACC__
int gru_limits(GruLimits* limits) {
  constexpr int kDevices = 64;
  static GruLimits known[kDevices];
  static std::mutex asking;
  int device = 0, blocks = 0, shared = 0, major = 0;
  if (const int failed = cudaGetDevice(&device)) return failed;
  const std::lock_guard lock(asking);
  if (device >= kDevices) return cudaErrorInvalidDevice;
  if (!known[device].shared) {
    for (const auto& [value, attribute] : {std::pair(&blocks, cudaDevAttrMultiProcessorCount),
                                           std::pair(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin),
                                           std::pair(&major, cudaDevAttrComputeCapabilityMajor)})
      if (const int failed = cudaDeviceGetAttribute(value, attribute, device)) return failed;
    GruLimits found = {shared, {blocks, 0, 0, 0}};
    // A block of any of these kernels takes nearly all of a multiprocessor's registers.
    const auto kernel = run<GruCase<Half, GruSize{512, 2, 8, 1, 4}>, true, GruForwardGpu<Half>>;
    for (int power = 1; power < 4 && major >= 9; ++power) {
      cudaLaunchAttribute attribute = {};
      attribute.id = cudaLaunchAttributeClusterDimension;
      attribute.val.clusterDim = {1u << power, 1, 1};
      cudaLaunchConfig_t config = {};
      config.gridDim = 1u << power;
      config.blockDim = 256;
      config.attrs = &attribute;
      config.numAttrs = 1;
      int clusters = 0;
      if (const int failed = cudaOccupancyMaxActiveClusters(&clusters, kernel, &config)) return failed;
      found.active[power] = clusters;
    }
    known[device] = found;
  }
  *limits = known[device];
  return 0;
}
#endif

template <class T>
int gru_forward_cuda(const GruForwardGpu<T>& args, GruProduct product, Stream stream) {
  return launch_planned<T>(args, product == GruProduct::kTf32x3 ? 2 : 1, false, stream, Indices<T>{});
}

template <class T>
int gru_backward_cuda(const GruBackwardGpu<T>& args, GruProduct product, Stream stream) {
  return launch_planned<T>(args, product == GruProduct::kTf32x3 ? 2 : 1, true, stream, Indices<T>{});
}

template int gru_forward_cuda<float>(const GruForwardGpu<float>&, GruProduct, Stream);
template int gru_forward_cuda<Half>(const GruForwardGpu<Half>&, GruProduct, Stream);
template int gru_forward_cuda<Bfloat>(const GruForwardGpu<Bfloat>&, GruProduct, Stream);
template int gru_backward_cuda<float>(const GruBackwardGpu<float>&, GruProduct, Stream);
template int gru_backward_cuda<Half>(const GruBackwardGpu<Half>&, GruProduct, Stream);
template int gru_backward_cuda<Bfloat>(const GruBackwardGpu<Bfloat>&, GruProduct, Stream);

}  // namespace ser_fast
