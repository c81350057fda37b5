// C functions that the tests call besides the ops.
#include <cstddef>

#include "../../kernels/attention_pool.h"
#include "../../kernels/gru.h"
#include "../../kernels/power_spectrogram.h"

namespace ser_fast {

size_t host_seed = 0;  // csrc/boundary.h passes it to the runner

// Limits of the simulated GPU, an H100; tests can lower them by gru_restrict.
int gru_limits(GruLimits* limits) {
  *limits = {227 * 1024, {132, 66, 32, 15}};
  return 0;
}

}  // namespace ser_fast

extern "C" {

void ser_fast_seed(size_t seed) { ser_fast::host_seed = seed; }

// Writes the plans of every H and B from 1 to ``most``, with two directions, to out [H, B].
void gru_plans(const int64_t* limits, int product, int backward, int reset_after, int most, ser_fast::GruPlan* out) {
  const ser_fast::GruLimits given = {limits[0], {limits[1], limits[2], limits[3], limits[4]}};
  for (int hidden = 1; hidden <= most; ++hidden)
    for (int batch = 1; batch <= most; ++batch)
      *out++ = ser_fast::gru_plan({1, batch, 2, hidden, reset_after != 0}, static_cast<ser_fast::GruProduct>(product),
                                  backward != 0, given);
}

void pool_plan(const ser_fast::PoolShape* shape, int bytes, int aligned, ser_fast::PoolPlan* plan) {
  *plan = ser_fast::pool_plan(*shape, bytes, aligned != 0);
}

void spectrogram_plan(const ser_fast::SpectrogramShape* shape, ser_fast::SpectrogramPlan* plan) {
  *plan = ser_fast::spectrogram_plan(*shape);
}
}
