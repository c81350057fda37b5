// What the tests ask of the library besides its ops.
#include <cstddef>

#include "../../kernels/attention_pool.h"
#include "../../kernels/power_spectrogram.h"

namespace ser_fast {

size_t host_seed = 0;  // csrc/boundary.h hands it to the runner

}  // namespace ser_fast

extern "C" {

void ser_fast_seed(size_t seed) { ser_fast::host_seed = seed; }

void pool_plan(const ser_fast::PoolShape* shape, int bytes, int aligned, ser_fast::PoolPlan* plan) {
  *plan = ser_fast::pool_plan(*shape, bytes, aligned != 0);
}

void spectrogram_plan(const ser_fast::SpectrogramShape* shape, ser_fast::SpectrogramPlan* plan) {
  *plan = ser_fast::spectrogram_plan(*shape);
}
}
