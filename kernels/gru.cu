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
template <class T>
SER_FAST_DEVICE uint32_t packed_word(const T* at, int64_t stride, bool) {
  const uint32_t low = at[0].bits, high = at[stride].bits;
  return low | high << 16;
}
SER_FAST_DEVICE uint32_t packed_word(const float* at, int64_t, bool rounded) {
  return as_bits(rounded ? round_tf32(*at) : *at);
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
    const bool exists = row < H && column < H;  // H is even, and columns of a word begin at an even one
    fragment.a[i] = exists ? packed_word(w + row * across + column * along, along, a.rounded) : 0;
  }
  a.out[index] = fragment;
}

// A thread's data over all steps. A step reads ITEMS pairs of units for each of the thread's rows.
template <class C, int ITEMS>
struct Walk {
  using T = typename C::T;
  Place<C> place;
  int H;
  int64_t first_state;  // of this direction in a [D, B, H] tensor
  float* scratch;
  Exchange<C> exchange;
  Ring<C, ITEMS> ring;
  Weights<C> weights;

  // even, odd: number of arrays that an even and an odd exchange sends.
  template <class Args>
  SER_FAST_DEVICE Walk(const Args& a, const GruMemory& memory, int even, int odd)
      : place(a.shape, a.plan, a.packed, a.lengths),
        H(static_cast<int>(a.shape.hidden)),
        first_state(place.direction * a.shape.batch * H),
        scratch(reinterpret_cast<float*>(kept_shared(shared<unsigned char>() + memory.scratch))),
        ring(shared<unsigned char>() + memory.ring, a.plan.stages, C::threads(a.plan)) {
    constexpr int kBytes = static_cast<int>(sizeof(T)), kEach = C::kParts * C::kRows * C::kWidth * kBytes;
    unsigned char* base = kept_shared(shared<unsigned char>());
    exchange = {base, memory.buffer, reinterpret_cast<Mbarrier*>(base + memory.counted), a.plan.cluster, place.rank,
                even * kEach, odd * kEach, kept(place.column * C::kStride + place.unit * kBytes)};
    weights.load(a.weights, place.direction, place.group, reinterpret_cast<Fragment*>(base + memory.spare));
  }

  // Of a tensor whose frames have ``parts`` parts of H elements: at part 0 of frame ``step`` of the walk, to be moved
  // by ``turn`` steps (1 or -1) at a time. Rows whose frame does not exist must not be read there.
  template <class S>
  SER_FAST_DEVICE auto cursor(const GpuFrames<S>& tensor, int parts, int step, int turn) const {
    Cursor<C, std::conditional_t<std::is_const_v<S>, const Pair<T>, Pair<T>>> cursor;
    cursor.data = pair(tensor.data);
    SER_FAST_UNROLL
    for (int j = 0; j < C::kMine; ++j) {
      const int64_t frame = place.start[j] + (place.direction ? place.length[j] - 1 - step : step);
      const int64_t unit = place.direction * parts * H + place.unit;
      const int64_t row = (place.row + C::below(j)) * tensor.row_stride;
      cursor.at[j] = static_cast<uint32_t>((frame * tensor.frame_stride + row + unit) / 2);
    }
    const auto pace = static_cast<uint32_t>(tensor.frame_stride / 2);
    cursor.pace = kept((turn > 0) == place.direction ? 0 - pace : pace);
    cursor.part = kept(static_cast<uint32_t>(H / 2));
    return cursor;
  }
  static SER_FAST_DEVICE Pair<T>* pair(T* at) { return reinterpret_cast<Pair<T>*>(at); }
  static SER_FAST_DEVICE const Pair<T>* pair(const T* at) { return reinterpret_cast<const Pair<T>*>(at); }
  // This lane's pair of row j in a [D, B, H] tensor.
  template <class S>
  SER_FAST_DEVICE auto state(S* states, int j) const {
    return pair(states + first_state + static_cast<int64_t>(place.row + C::below(j)) * H + place.unit);
  }
  SER_FAST_DEVICE void load_state(const T* states, float (&out)[C::kMine][2]) const {
    SER_FAST_UNROLL
    for (int j = 0; j < C::kMine; ++j) {
      out[j][0] = out[j][1] = 0;
      if (states && place.exists(j)) widen(*state(states, j), out[j]);
    }
  }
  SER_FAST_DEVICE void store_state(T* states, const float (&in)[C::kMine][2]) const {
    SER_FAST_UNROLL
    for (int j = 0; j < C::kMine; ++j)
      if (place.exists(j)) *state(states, j) = narrowed<T>(in[j]);
  }
  // Stores the parts of a frame from ``first`` on for the rows that have one at this step.
  template <class... Parts>
  SER_FAST_DEVICE void store(const Cursor<C, Pair<T>>& cursor, int step, int first, const Parts&... parts) const {
    SER_FAST_UNROLL
    for (int j = 0; j < C::kMine; ++j) {
      int part = first;
      (gpu::store(narrowed<T>(parts[j]), cursor.in(j, part++), place.valid(j, step)), ...);
    }
  }
  // Stores zeros for the rows whose length this step is past. Padding frames have the same order in both directions.
  SER_FAST_DEVICE void clear(const GpuFrames<T>& tensor, int parts, int step) const {
    SER_FAST_UNROLL
    for (int j = 0; j < C::kMine; ++j) {
      if (!place.exists(j) || step < place.length[j]) continue;
      const int row = kept(place.row + C::below(j));  // or the compiler would keep its address in registers
      T* at = tensor.data + step * tensor.frame_stride + row * tensor.row_stride + place.direction * parts * H + place.unit;
      for (int part = 0; part < parts; ++part) *pair(at + part * H) = {};
    }
  }
};

template <class C, bool RESET_AFTER>
SER_FAST_DEVICE void walk(const GruForwardGpu<typename C::T>& a) {
  using T = typename C::T;
  constexpr int kMine = C::kMine, kFirst = RESET_AFTER ? 3 : 2;  // kFirst: gates that multiply h
  const Walk<C, 3> way(a, C::memory(a.plan, RESET_AFTER), 1, 1);
  const int steps = way.place.steps, stages = a.plan.stages, H = way.H;
  float h[kMine][2];
  float bias[3][4];  // as a fragment of the sums; of the warps that share K, one has it
  const bool biased = a.b_hh && way.place.unit < H && warp() % C::kSplit == 0;
  SER_FAST_UNROLL
  for (int g = 0; g < 3; ++g)
    SER_FAST_UNROLL
    for (int i = 0; i < 4; ++i)
      bias[g][i] = kept(biased ? widen(a.b_hh[(way.place.direction * 3 + g) * H + way.place.unit + i / 2]) : 0);
  way.load_state(a.h0, h);
  auto gx = way.cursor(a.gx, 3, 0, 1);
  auto y = way.cursor(a.y, 1, C::kLate ? -1 : 0, 1);
  Cursor<C, Pair<T>> gates = {};
  if (C::kSaves) gates = way.cursor(a.gates, 4, C::kLate ? -1 : 0, 1);
  const auto fetch = [&](int step) {
    SER_FAST_UNROLL
    for (int j = 0; j < kMine; ++j)
      SER_FAST_UNROLL
      for (int g = 0; g < 3; ++g) way.ring.fetch(step, g, j, gx.in(j, g), way.place.valid(j, step));
    copy_commit();
    gx.advance();
  };
  float r[kMine][2] = {}, z[kMine][2] = {}, q[kMine][2] = {}, n[kMine][2] = {};
  const auto clear = [&](int step) {
    way.clear(a.y, 1, step);
    if (C::kSaves) way.clear(a.gates, 4, step);
  };
  const auto store = [&](int step) {
    way.store(y, step, 0, h);
    y.advance();
    if (C::kSaves) {
      way.store(gates, step, 0, r, z, n, q);
      gates.advance();
    }
  };

  way.exchange.begin();
  if (steps > 0) way.exchange.push(0, 0, h);
  for (int step = 0; step < stages - 1; ++step) fetch(step);
  for (int step = 0; step < steps; ++step) {
    const int e = RESET_AFTER ? step : 2 * step;
    float inner[kMine][2];
    float sum[kFirst][C::kTiles][4], own[kFirst][kMine][2];
    if (!C::kLate) fetch(step + stages - 1);
    products<C, 0, kFirst>(way.weights, way.exchange.wait(e), 0, bias, sum);
    way.exchange.renew(e);
    if (C::kLate) store(step - 1);
    if (C::kLate) fetch(step + stages - 1);
    way.ring.template wait<1>();
    gather<C, kFirst>(sum, way.scratch, own);
    SER_FAST_UNROLL
    for (int j = 0; j < kMine; ++j) {
      float gx_r[2], gx_z[2];
      way.ring.read(step, 0, j, gx_r);
      way.ring.read(step, 1, j, gx_z);
      SER_FAST_UNROLL
      for (int u = 0; u < 2; ++u) {
        r[j][u] = C::sigmoid(gx_r[u] + own[0][j][u]);
        z[j][u] = C::sigmoid(gx_z[u] + own[1][j][u]);
        q[j][u] = RESET_AFTER ? own[kFirst - 1][j][u] : r[j][u] * h[j][u];
        inner[j][u] = r[j][u] * q[j][u];
      }
    }
    if constexpr (!RESET_AFTER) {
      way.exchange.push(e + 1, 0, q);
      float candidate[1][C::kTiles][4], last[1][kMine][2];
      products<C, 2, 1>(way.weights, way.exchange.wait(e + 1), 0, bias, candidate);
      way.exchange.renew(e + 1);
      gather<C, 1>(candidate, way.scratch, last);
      SER_FAST_UNROLL
      for (int i = 0; i < 2 * kMine; ++i) inner[i / 2][i % 2] = last[0][i / 2][i % 2];
    }
    SER_FAST_UNROLL
    for (int j = 0; j < kMine; ++j) {
      const bool valid = way.place.valid(j, step);
      float gx_n[2];
      way.ring.read(step, 2, j, gx_n);
      SER_FAST_UNROLL
      for (int u = 0; u < 2; ++u) {
        n[j][u] = C::tangent(gx_n[u] + inner[j][u]);
        const float next = gru_cell(z[j][u], n[j][u], h[j][u]);
        h[j][u] = valid ? next : h[j][u];
      }
    }
    if (C::kAlone || step + 1 < steps) way.exchange.push(RESET_AFTER ? e + 1 : e + 2, 0, h);
    if (!C::kLate) store(step);
    if (step >= way.place.shortest) [[unlikely]] clear(step);
  }
  if (C::kLate) store(steps - 1);
  way.store_state(a.h_n, h);
  for (int step = steps; step < way.place.padded; ++step) clear(step);
  copy_wait<0>();
}

template <class C, bool RESET_AFTER>
SER_FAST_DEVICE void walk(const GruBackwardGpu<typename C::T>& a) {
  using T = typename C::T;
  // Items of a step: grad_y, the previous state, r, z, n and, with reset_after, q (else q is r times that state).
  constexpr int kMine = C::kMine, kItems = RESET_AFTER ? 6 : 5, kArray = C::kParts * C::kRows * C::kStride;
  const Walk<C, kItems> way(a, C::memory(a.plan, RESET_AFTER), RESET_AFTER ? 3 : 2, RESET_AFTER ? 3 : 1);
  const int steps = way.place.steps, stages = a.plan.stages;
  const float none[3][4] = {};  // no bias
  float grad_h[kMine][2];
  way.load_state(a.grad_h_n, grad_h);
  // Turns count the steps from the last one, turn 0, to the first.
  auto grad_y = way.cursor(a.grad_y, 1, steps - 1, -1);
  auto y = way.cursor(a.y, 1, steps - 2, -1);
  auto gates = way.cursor(a.gates, 4, steps - 1, -1);
  auto grad_gx = way.cursor(a.grad_gx, 3, steps - 1, -1);
  Cursor<C, Pair<T>> grad_q = {};
  if (RESET_AFTER) grad_q = way.cursor(a.grad_q, 1, steps - 1, -1);
  const auto fetch = [&](int turn) {
    const int step = steps - 1 - turn;
    SER_FAST_UNROLL
    for (int j = 0; j < kMine; ++j) {
      const bool valid = way.place.valid(j, step);
      way.ring.fetch(turn, 0, j, grad_y.in(j), valid);
      way.ring.fetch(turn, 1, j, y.in(j), way.place.valid(j, step - 1));
      SER_FAST_UNROLL
      for (int g = 0; g < kItems - 2; ++g) way.ring.fetch(turn, 2 + g, j, gates.in(j, g), valid);
    }
    if (step == 0) [[unlikely]]
      SER_FAST_UNROLL
      for (int j = 0; j < kMine; ++j)
        if (way.place.exists(j))
          *way.ring.slot(turn, 1, j) = a.h0 ? *way.state(a.h0, j) : Pair<T>{};
    copy_commit();
    grad_y.advance();
    y.advance();
    gates.advance();
  };
  const auto clear = [&](int step) {
    way.clear(a.grad_gx, 3, step);
    if (RESET_AFTER) way.clear(a.grad_q, 1, step);
  };

  way.exchange.begin();
  for (int turn = 0; turn < stages - 1; ++turn) fetch(turn);
  for (int turn = 0; turn < steps; ++turn) {
    const int step = steps - 1 - turn, e = RESET_AFTER ? turn : 2 * turn;
    way.ring.template wait<0>();
    float pre_r[kMine][2], pre_z[kMine][2], pre_n[kMine][2], passed[kMine][2], pre_q[kMine][2];
    SER_FAST_UNROLL
    for (int j = 0; j < kMine; ++j) {
      float item[kItems][2];
      SER_FAST_UNROLL
      for (int i = 0; i < kItems; ++i) way.ring.read(turn, i, j, item[i]);
      SER_FAST_UNROLL
      for (int u = 0; u < 2; ++u) {
        const float grad = grad_h[j][u] + item[0][u], before = item[1][u], r = item[2][u], z = item[3][u];
        const auto pre = gru_cell_backward(grad, z, item[4][u], before);
        pre_z[j][u] = pre.pre_z;
        pre_n[j][u] = pre.pre_n;
        if (RESET_AFTER) {
          pre_q[j][u] = pre.pre_n * r;
          pre_r[j][u] = pre_q[j][u] * item[kItems - 1][u] * (1 - r);
        }
        passed[j][u] = grad * z;
      }
    }
    const auto store = [&] {
      way.store(grad_gx, step, 0, pre_r, pre_z, pre_n);
      grad_gx.advance();
      if (RESET_AFTER) {
        way.store(grad_q, step, 0, pre_q);
        grad_q.advance();
      }
    };
    float sum[1][C::kTiles][4], own[1][kMine][2];
    if constexpr (RESET_AFTER) {
      way.exchange.push(e, 0, pre_r);
      way.exchange.push(e, 1, pre_z);
      way.exchange.push(e, 2, pre_q);
      if (!C::kLate) store();
      if (!C::kLate) fetch(turn + stages - 1);
      float each[3][C::kTiles][4];
      products<C, 0, 3>(way.weights, way.exchange.wait(e), kArray, none, each);
      way.exchange.renew(e);
      if (C::kLate) store();
      if (C::kLate) fetch(turn + stages - 1);
      SER_FAST_UNROLL
      for (int i = 0; i < C::kTiles * 4; ++i)
        sum[0][i / 4][i % 4] = each[0][i / 4][i % 4] + each[1][i / 4][i % 4] + each[2][i / 4][i % 4];
    } else {
      constexpr bool kEarly = C::kParts == 1 && !C::kLate;  // or two gradients would stay in registers
      way.exchange.push(e, 0, pre_z);
      way.exchange.push(e, 1, pre_n);
      if (kEarly) way.store(grad_gx, step, 1, pre_z, pre_n);
      float two[2][C::kTiles][4], both[2][kMine][2];  // products of the update gate and of the candidate
      products<C, 1, 2>(way.weights, way.exchange.wait(e), kArray, none, two);
      way.exchange.renew(e);
      if (C::kLate) fetch(turn + stages - 1);
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
      way.exchange.push(e + 1, 0, pre_r);
      if (kEarly) {
        way.store(grad_gx, step, 0, pre_r);
        grad_gx.advance();
      } else if (!C::kLate) {
        store();
      }
      if (!C::kLate) fetch(turn + stages - 1);
      products<C, 0, 1>(way.weights, way.exchange.wait(e + 1), 0, none, sum);
      way.exchange.renew(e + 1);
      if (C::kLate) store();
    }
    gather<C, 1>(sum, way.scratch, own);
    SER_FAST_UNROLL
    for (int j = 0; j < kMine; ++j) {
      const bool valid = way.place.valid(j, step);
      SER_FAST_UNROLL
      for (int u = 0; u < 2; ++u) grad_h[j][u] = valid ? passed[j][u] + own[0][j][u] : grad_h[j][u];
    }
    if (step >= way.place.shortest) [[unlikely]] clear(step);
  }
  way.store_state(a.grad_h0, grad_h);
  for (int step = steps; step < way.place.padded; ++step) clear(step);
  copy_wait<0>();
}

// Kernels that need clusters are empty on architectures without them.
template <class C, bool RESET_AFTER, class Args>
SER_FAST_KERNEL void SER_FAST_BOUNDS(C::kSize.threads()) run(Args args) {
  if constexpr (kClusters || C::kAlone) walk<C, RESET_AFTER>(args);
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
template <class T, GruPass PASS, class Args, size_t... I>
int launch_planned(const Args& args, int parts, Stream stream, std::index_sequence<I...>) {
  int failed = -1;
  const auto run_as = [&]<GruSize SIZE, bool ALONE>() {
    using C = GruCase<T, SIZE, PASS, ALONE>;
    const auto kernel = args.shape.reset_after ? run<C, true, Args> : run<C, false, Args>;
    const int blocks = static_cast<int>(args.plan.tiles * args.shape.directions * args.plan.cluster);
    failed = launch(kernel, blocks, args.plan.threads, args.plan.shared, stream, args, args.plan.cluster);
  };
  const auto with = [&]<GruSize SIZE>() {
    if (SIZE.width != args.plan.width || SIZE.rows != args.plan.rows || SIZE.parts != parts) return;
    failed = pack_weights<T>(args, SIZE, PASS == GruPass::kBackward, stream);
    if (failed) return;
    if constexpr (SIZE.alone()) {
      if (args.plan.cluster == 1) run_as.template operator()<SIZE, true>();
    }
    if constexpr (SIZE.clusters()) {
      if (args.plan.cluster > 1) run_as.template operator()<SIZE, false>();
    }
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
    const auto kernel = run<GruCase<Half, kGruHalf[5], GruPass::kTraining, false>, true, GruForwardGpu<Half>>;
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
  const int parts = product == GruProduct::kTf32x3 ? 2 : 1;
  if (args.gates.data) return launch_planned<T, GruPass::kTraining>(args, parts, stream, Indices<T>{});
  return launch_planned<T, GruPass::kInference>(args, parts, stream, Indices<T>{});
}

template <class T>
int gru_backward_cuda(const GruBackwardGpu<T>& args, GruProduct product, Stream stream) {
  const int parts = product == GruProduct::kTf32x3 ? 2 : 1;
  return launch_planned<T, GruPass::kBackward>(args, parts, stream, Indices<T>{});
}

template int gru_forward_cuda<float>(const GruForwardGpu<float>&, GruProduct, Stream);
template int gru_forward_cuda<Half>(const GruForwardGpu<Half>&, GruProduct, Stream);
template int gru_forward_cuda<Bfloat>(const GruForwardGpu<Bfloat>&, GruProduct, Stream);
template int gru_backward_cuda<float>(const GruBackwardGpu<float>&, GruProduct, Stream);
template int gru_backward_cuda<Half>(const GruBackwardGpu<Half>&, GruProduct, Stream);
template int gru_backward_cuda<Bfloat>(const GruBackwardGpu<Bfloat>&, GruProduct, Stream);

}  // namespace ser_fast
