// gray_deltas, ser_fast::* on CPU: checks, allocation, dispatch.
#include "../kernels/gray_deltas.h"

#include <string>
#include <vector>

#include "boundary.h"

#ifndef SER_FAST_HOST

namespace ser_fast {
namespace {

Tensor gray_deltas(const Tensor& x, double range, const std::optional<Tensor>& lengths,
                   std::optional<int64_t> packed_frames) {
  const Checks checks("gray_deltas", "x", x);
  checks.dtype("x", x, {ScalarType::Float, ScalarType::Double});
  const Sizes sizes = sizes_of(x);
  checks.require(sizes.size() == 3 && sizes[0] > 0 && sizes[1] > 0 && sizes[2] > 0, "x has shape " + text(sizes),
                 "[B, T, F] with no size 0");
  checks.require(range > 0, "range is " + std::to_string(range), "above 0");
  const int64_t B = sizes[0], T = sizes[1], F = sizes[2];
  const std::optional<Tensor> whole = checks.lengths(lengths, B, T);
  const int64_t* valid = pointer<int64_t>(whole);
  int64_t total = valid ? 0 : B * T;
  if (valid)
    for (int64_t b = 0; b < B; ++b) total += valid[b];
  if (packed_frames)
    checks.require(*packed_frames == total, "packed_frames is " + std::to_string(*packed_frames),
                   "the sum of the lengths, " + std::to_string(total));
  const Tensor given = F == 1 || x.stride(2) == 1 ? x : checks.contiguous("x", x);
  const Tensor image = checks.empty("image", x, packed_frames ? Sizes{total, F, 3} : Sizes{B, T, F, 3});
  const auto run = [&](auto zero) {
    using S = decltype(zero);
    std::vector<int64_t> first(B);
    for (int64_t b = 1; b < B; ++b) first[b] = first[b - 1] + (packed_frames && valid ? valid[b - 1] : T);
    gray_deltas_cpu<S>({B, T, F, pointer<S>(given), given.stride(0), given.stride(1), range, valid, first.data(),
                        packed_frames.has_value(), mutable_pointer<S>(image)},
                       torch_threads());
  };
  checks.run([&] { x.scalar_type() == ScalarType::Float ? run(0.0f) : run(0.0); });
  return image;
}

STABLE_TORCH_LIBRARY_IMPL(ser_fast, CPU, m) { m.impl("gray_deltas", TORCH_BOX(&gray_deltas)); }

}  // namespace
}  // namespace ser_fast

#endif
