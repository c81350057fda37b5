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

// One 32-bit operand of the tensor cores: two 16-bit neighbours along K, ``stride`` elements apart, or one float.
// Only the first ``valid`` of them exist; the others are 0.
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

// A thread's data over all steps. A step reads ITEMS pairs of units for each of the thread's rows.
template <class C, int ITEMS>
struct Walk {
  using T = typename C::T;
  Place<C> place;
  int H, steps, unit;
  int64_t first_state;  // of this direction in a [D, B, H] tensor
  float* scratch;
  Exchange<C> exchange;
  Ring<C, ITEMS> ring;
  Weights<C> weights;

  // even, odd: number of arrays that an even and an odd exchange sends.
  template <class Args>
  SER_FAST_DEVICE Walk(const Args& a, bool backward, int even, int odd)
      : place(a.shape, a.plan, a.packed, a.lengths),
        H(static_cast<int>(a.shape.hidden)),
        steps(place.steps),
        unit(place.unit),
        first_state(place.direction * a.shape.batch * H) {
    constexpr GruSize size = C::kSize;
    const GruMemory memory(size, sizeof(T), a.plan.threads, a.plan.stages, backward, a.shape.reset_after);
    constexpr int kEach = C::kParts * C::kRows * C::kWidth * static_cast<int>(sizeof(T));
    unsigned char* base = shared<unsigned char>();
    scratch = reinterpret_cast<float*>(base + memory.scratch);
    exchange = {base, memory.buffer, reinterpret_cast<Mbarrier*>(base + memory.counted), a.plan.cluster, place.rank,
                even * kEach, odd * kEach};
    ring = {reinterpret_cast<Pair<T>*>(base + memory.ring), a.plan.stages, a.plan.threads,
            unit + 1 < H ? 2 : unit < H, a.vector};
    weights.load(a.weights, place.direction, place.group, reinterpret_cast<Fragment*>(base + memory.spare));
  }

  // This lane's pair of row j in a [D, B, H] tensor.
  template <class S>
  SER_FAST_DEVICE S* state(S* states, int j) const {
    return states + first_state + static_cast<int64_t>(place.row[j]) * H + unit;
  }
  // The same in part ``part`` of a frame of ``parts`` parts of H elements.
  template <class S>
  SER_FAST_DEVICE S* at(const GpuFrames<S>& tensor, int j, int step, int parts, int part) const {
    return place.frame(tensor, j, step) + (place.direction * parts + part) * H + unit;
  }
  SER_FAST_DEVICE void load_state(const T* states, float (&out)[C::kMine][2]) const {
    SER_FAST_UNROLL
    for (int j = 0; j < C::kMine; ++j)
      SER_FAST_UNROLL
      for (int u = 0; u < 2; ++u)
        out[j][u] = states && unit + u < H && place.row[j] >= 0 ? widen(state(states, j)[u]) : 0;
  }
  SER_FAST_DEVICE void store_state(T* states, const float (&in)[C::kMine][2]) const {
    SER_FAST_UNROLL
    for (int j = 0; j < C::kMine; ++j)
      if (place.row[j] >= 0 && unit < H) put(state(states, j), in[j][0], in[j][1], ring.vector, unit + 1 < H);
  }
  // Stores zeros past a row's length.
  SER_FAST_DEVICE void store(const GpuFrames<T>& tensor, int parts, int part, int step,
                             const float (&in)[C::kMine][2]) const {
    SER_FAST_UNROLL
    for (int j = 0; j < C::kMine; ++j) {
      const bool valid = step < place.length[j];
      if (place.written(j, step) && unit < H)
        put(at(tensor, j, step, parts, part), valid ? in[j][0] : 0, valid ? in[j][1] : 0, ring.vector, unit + 1 < H);
    }
  }
  SER_FAST_DEVICE void push(int e, int array, const float (&values)[C::kMine][2]) const {
    exchange.push(e, array, place.column, unit, values);
  }
};

template <class C, bool RESET_AFTER>
SER_FAST_DEVICE void walk(const GruForwardGpu<typename C::T>& a) {
  constexpr int kMine = C::kMine, kFirst = RESET_AFTER ? 3 : 2;  // kFirst: gates that multiply h
  const Walk<C, 3> way(a, false, 1, 1);
  const int steps = way.steps, stages = a.plan.stages;
  float bias[3][2], h[kMine][2];
  SER_FAST_UNROLL
  for (int g = 0; g < 3; ++g)
    SER_FAST_UNROLL
    for (int u = 0; u < 2; ++u)
      bias[g][u] = a.b_hh && way.unit + u < way.H
                       ? widen(a.b_hh[(way.place.direction * 3 + g) * way.H + way.unit + u]) : 0;
  way.load_state(a.h0, h);
  const auto fetch = [&](int step) {
    SER_FAST_UNROLL
    for (int j = 0; j < kMine; ++j)
      SER_FAST_UNROLL
      for (int g = 0; g < 3; ++g) way.ring.fetch(step, g, j, way.at(a.gx, j, step, 3, g), step < way.place.length[j]);
    copy_commit();
  };

  way.exchange.begin();
  if (steps > 0) way.push(0, 0, h);
  for (int step = 0; step < stages - 1; ++step) fetch(step);
  for (int step = 0; step < steps; ++step) {
    const int e = RESET_AFTER ? step : 2 * step;
    fetch(step + stages - 1);
    way.ring.wait(1);
    float r[kMine][2], z[kMine][2], q[kMine][2], n[kMine][2], inner[kMine][2];
    float sum[kFirst][C::kTiles][4], own[kFirst][kMine][2];
    products<C, 0, kFirst>(way.weights, way.exchange.wait(e), 0, sum);
    way.exchange.renew(e);
    float gx[2][kMine][2];
    const auto read = [&] {
      SER_FAST_UNROLL
      for (int g = 0; g < 2; ++g)
        SER_FAST_UNROLL
        for (int j = 0; j < kMine; ++j) way.ring.read(step, g, j, gx[g][j]);
    };
    if (C::kSplit == 2) read();  // before the barrier in gather, which would delay it
    gather<C, kFirst>(sum, way.scratch, own);
    if (C::kSplit == 1) read();
    SER_FAST_UNROLL
    for (int j = 0; j < kMine; ++j)
      SER_FAST_UNROLL
      for (int u = 0; u < 2; ++u) {
        r[j][u] = sigmoid(gx[0][j][u] + own[0][j][u] + bias[0][u]);
        z[j][u] = sigmoid(gx[1][j][u] + own[1][j][u] + bias[1][u]);
        q[j][u] = RESET_AFTER ? own[kFirst - 1][j][u] + bias[2][u] : r[j][u] * h[j][u];
        inner[j][u] = r[j][u] * q[j][u];
      }
    if constexpr (!RESET_AFTER) {
      way.push(e + 1, 0, q);
      float candidate[1][C::kTiles][4], last[1][kMine][2];
      products<C, 2, 1>(way.weights, way.exchange.wait(e + 1), 0, candidate);
      way.exchange.renew(e + 1);
      gather<C, 1>(candidate, way.scratch, last);
      SER_FAST_UNROLL
      for (int i = 0; i < 2 * kMine; ++i) inner[i / 2][i % 2] = last[0][i / 2][i % 2] + bias[2][i % 2];
    }
    SER_FAST_UNROLL
    for (int j = 0; j < kMine; ++j) {
      float gx[2];
      way.ring.read(step, 2, j, gx);
      const bool valid = step < way.place.length[j];
      SER_FAST_UNROLL
      for (int u = 0; u < 2; ++u) {
        n[j][u] = tangent(gx[u] + inner[j][u]);
        if (valid) h[j][u] = gru_cell(z[j][u], n[j][u], h[j][u]);
      }
    }
    if (step + 1 < steps) way.push(RESET_AFTER ? e + 1 : e + 2, 0, h);
    way.store(a.y, 1, 0, step, h);
    if (!a.gates.data) continue;
    way.store(a.gates, 4, 0, step, r);
    way.store(a.gates, 4, 1, step, z);
    way.store(a.gates, 4, 2, step, n);
    way.store(a.gates, 4, 3, step, q);
  }
  way.store_state(a.h_n, h);
  for (int step = steps; step < way.place.padded; ++step) {
    way.store(a.y, 1, 0, step, h);
    for (int g = 0; a.gates.data && g < 4; ++g) way.store(a.gates, 4, g, step, h);
  }
  copy_wait<0>();
}

template <class C, bool RESET_AFTER>
SER_FAST_DEVICE void walk(const GruBackwardGpu<typename C::T>& a) {
  using T = typename C::T;
  // Items of a step: grad_y, the previous state, r, z, n and, with reset_after, q (else q is r times that state).
  constexpr int kMine = C::kMine, kItems = RESET_AFTER ? 6 : 5, kArray = C::kParts * C::kRows * C::kStride;
  constexpr bool kLate = C::kSplit == 2;  // fetch the inputs while the gradients cross the cluster
  const Walk<C, kItems> way(a, true, RESET_AFTER ? 3 : 2, RESET_AFTER ? 3 : 1);
  const int steps = way.steps, stages = a.plan.stages;
  float grad_h[kMine][2];
  way.load_state(a.grad_h_n, grad_h);
  // Turns count the steps from the last one, turn 0, to the first.
  const auto fetch = [&](int turn) {
    const int step = steps - 1 - turn;
    SER_FAST_UNROLL
    for (int j = 0; j < kMine; ++j) {
      const bool valid = step >= 0 && step < way.place.length[j], first = step == 0;
      way.ring.fetch(turn, 0, j, way.at(a.grad_y, j, step, 1, 0), valid);
      const T* before = !first ? way.at(a.y, j, step - 1, 1, 0) : a.h0 ? way.state(a.h0, j) : nullptr;
      way.ring.fetch(turn, 1, j, before, valid && before);
      SER_FAST_UNROLL
      for (int g = 0; g < kItems - 2; ++g) way.ring.fetch(turn, 2 + g, j, way.at(a.gates, j, step, 4, g), valid);
    }
    copy_commit();
  };

  way.exchange.begin();
  for (int turn = 0; turn < stages - 1; ++turn) fetch(turn);
  for (int turn = 0; turn < steps; ++turn) {
    const int step = steps - 1 - turn, e = RESET_AFTER ? turn : 2 * turn;
    if (!kLate) fetch(turn + stages - 1);
    way.ring.wait(!kLate);
    float pre_r[kMine][2], pre_z[kMine][2], pre_n[kMine][2], passed[kMine][2], pre_q[kMine][2];
    SER_FAST_UNROLL
    for (int j = 0; j < kMine; ++j) {
      const bool valid = step < way.place.length[j];
      float item[kItems][2];
      SER_FAST_UNROLL
      for (int i = 0; i < kItems; ++i) way.ring.read(turn, i, j, item[i]);
      SER_FAST_UNROLL
      for (int u = 0; u < 2; ++u) {
        const float grad = valid ? grad_h[j][u] + item[0][u] : 0, before = item[1][u], r = item[2][u], z = item[3][u];
        const auto pre = gru_cell_backward(grad, z, item[4][u], before);
        pre_z[j][u] = pre.pre_z;
        pre_n[j][u] = pre.pre_n;
        if (RESET_AFTER) {
          pre_r[j][u] = pre.pre_n * item[kItems - 1][u] * r * (1 - r);
          pre_q[j][u] = pre.pre_n * r;
        }
        passed[j][u] = valid ? grad * z : grad_h[j][u];
      }
    }
    float sum[1][C::kTiles][4], own[1][kMine][2];
    if constexpr (RESET_AFTER) {
      way.push(e, 0, pre_r);
      way.push(e, 1, pre_z);
      way.push(e, 2, pre_q);
      way.store(a.grad_gx, 3, 0, step, pre_r);
      way.store(a.grad_gx, 3, 1, step, pre_z);
      way.store(a.grad_gx, 3, 2, step, pre_n);
      way.store(a.grad_q, 1, 0, step, pre_q);
      if (kLate) fetch(turn + stages - 1);
      float each[3][C::kTiles][4];
      products<C, 0, 3>(way.weights, way.exchange.wait(e), kArray, each);
      way.exchange.renew(e);
      SER_FAST_UNROLL
      for (int i = 0; i < C::kTiles * 4; ++i)
        sum[0][i / 4][i % 4] = each[0][i / 4][i % 4] + each[1][i / 4][i % 4] + each[2][i / 4][i % 4];
    } else {
      way.push(e, 0, pre_z);
      way.push(e, 1, pre_n);
      way.store(a.grad_gx, 3, 1, step, pre_z);
      way.store(a.grad_gx, 3, 2, step, pre_n);
      if (kLate) fetch(turn + stages - 1);
      float two[2][C::kTiles][4], both[2][kMine][2];  // products of the update gate and of the candidate
      products<C, 1, 2>(way.weights, way.exchange.wait(e), kArray, two);
      way.exchange.renew(e);
      gather<C, 2>(two, way.scratch, both);
      SER_FAST_UNROLL
      for (int j = 0; j < kMine; ++j) {
        float before[2], r[2];  // read again to save registers
        way.ring.read(turn, 1, j, before);
        way.ring.read(turn, 2, j, r);
        SER_FAST_UNROLL
        for (int u = 0; u < 2; ++u) {
          passed[j][u] += both[1][j][u] * r[u] + both[0][j][u];
          pre_r[j][u] = both[1][j][u] * before[u] * r[u] * (1 - r[u]);
        }
      }
      way.push(e + 1, 0, pre_r);
      way.store(a.grad_gx, 3, 0, step, pre_r);
      products<C, 0, 1>(way.weights, way.exchange.wait(e + 1), 0, sum);
      way.exchange.renew(e + 1);
    }
    gather<C, 1>(sum, way.scratch, own);
    SER_FAST_UNROLL
    for (int j = 0; j < kMine; ++j)
      SER_FAST_UNROLL
      for (int u = 0; u < 2; ++u) grad_h[j][u] = passed[j][u] + own[0][j][u];
  }
  way.store_state(a.grad_h0, grad_h);
  for (int step = steps; step < way.place.padded; ++step) {
    SER_FAST_UNROLL
    for (int g = 0; g < 3; ++g) way.store(a.grad_gx, 3, g, step, grad_h);
    if (RESET_AFTER) way.store(a.grad_q, 1, 0, step, grad_h);
  }
  copy_wait<0>();
}

// Kernels that need clusters are empty on architectures without them.
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
template <class T, bool BACKWARD, class Args, size_t... I>
int launch_planned(const Args& args, int parts, Stream stream, std::index_sequence<I...>) {
  int failed = -1;
  const auto with = [&]<GruSize SIZE>() {
    if (SIZE.width != args.plan.width || SIZE.rows != args.plan.rows || SIZE.parts != parts) return;
    failed = pack_weights<T>(args, SIZE, BACKWARD, stream);
    if (failed) return;
    using C = GruCase<T, SIZE, BACKWARD>;
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
  int device = 0, blocks = 0, shared = 0, clusters = 0;
  if (const int failed = cudaGetDevice(&device)) return failed;
  const std::lock_guard lock(asking);
  if (device >= kDevices) return cudaErrorInvalidDevice;
  if (!known[device].shared) {
    for (const auto& [value, attribute] : {std::pair(&blocks, cudaDevAttrMultiProcessorCount),
                                           std::pair(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin),
                                           std::pair(&clusters, cudaDevAttrClusterLaunch)})
      if (const int failed = cudaDeviceGetAttribute(value, attribute, device)) return failed;
    GruLimits found = {shared, {blocks, 0, 0, 0}};
    // One kernel stands for all: a block of each takes nearly all registers of a multiprocessor.
    const auto kernel = run<GruCase<Half, kGruHalf[5], false>, true, GruForwardGpu<Half>>;
    for (int power = 1; power < 4 && clusters; ++power) {
      cudaLaunchAttribute attribute = {};
      attribute.id = cudaLaunchAttributeClusterDimension;
      attribute.val.clusterDim = {1u << power, 1, 1};
      cudaLaunchConfig_t config = {};
      config.gridDim = 1u << power;
      config.blockDim = 256;
      config.attrs = &attribute;
      config.numAttrs = 1;
      int at_once = 0;
      // A cluster size that the device rejects counts as 0.
      if (cudaOccupancyMaxActiveClusters(&at_once, kernel, &config) != cudaSuccess) at_once = 0;
      found.active[power] = at_once;
    }
    cudaGetLastError();
    known[device] = found;
  }
  *limits = known[device];
  return 0;
}
#endif

template <class T>
int gru_forward_cuda(const GruForwardGpu<T>& args, GruProduct product, Stream stream) {
  return launch_planned<T, false>(args, product == GruProduct::kTf32x3 ? 2 : 1, stream, Indices<T>{});
}

template <class T>
int gru_backward_cuda(const GruBackwardGpu<T>& args, GruProduct product, Stream stream) {
  return launch_planned<T, true>(args, product == GruProduct::kTf32x3 ? 2 : 1, stream, Indices<T>{});
}

template int gru_forward_cuda<float>(const GruForwardGpu<float>&, GruProduct, Stream);
template int gru_forward_cuda<Half>(const GruForwardGpu<Half>&, GruProduct, Stream);
template int gru_forward_cuda<Bfloat>(const GruForwardGpu<Bfloat>&, GruProduct, Stream);
template int gru_backward_cuda<float>(const GruBackwardGpu<float>&, GruProduct, Stream);
template int gru_backward_cuda<Half>(const GruBackwardGpu<Half>&, GruProduct, Stream);
template int gru_backward_cuda<Bfloat>(const GruBackwardGpu<Bfloat>&, GruProduct, Stream);

}  // namespace ser_fast
