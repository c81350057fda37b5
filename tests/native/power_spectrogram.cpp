// The CUDA kernel of the power spectrogram as functions of the host: see device.h.
#include "../../kernels/power_spectrogram.cu"

#include <cstdio>
#include <stdexcept>

extern "C" {

void spectrogram_plan(const ser_fast::SpectrogramShape* shape, ser_fast::SpectrogramPlan* plan) {
  *plan = ser_fast::spectrogram_plan(*shape);
}

// kind: 0 float32, 1 int16 samples.
int spectrogram_forward(int kind, const void* args, size_t seed, char* error, size_t size) {
  using namespace ser_fast;
  const auto stream = reinterpret_cast<gpu::Stream>(seed);
  try {
    return kind ? power_spectrogram_forward_cuda(*static_cast<const SpectrogramGpu<int16_t>*>(args), stream)
                : power_spectrogram_forward_cuda(*static_cast<const SpectrogramGpu<float>*>(args), stream);
  } catch (const std::exception& failed) {
    std::snprintf(error, size, "%s", failed.what());
    return -1;
  }
}
}
