// Selection of the instruction set.
#include "simd.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace ser_fast {
namespace {

constexpr const char* kNames[] = {"portable", "avx2", "avx512", "avx512_bf16"};

Isa best() {
#if SER_FAST_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512cd");
  if (avx512) return __builtin_cpu_supports("avx512bf16") ? Isa::kAvx512Bf16 : Isa::kAvx512;
  if (avx2) return Isa::kAvx2;
#endif
  return Isa::kPortable;
}

Isa chosen() {
  const Isa most = best();
  const char* wanted = std::getenv("SER_FAST_CPU");
  if (!wanted || !*wanted) return most;
  std::string allowed;
  for (int i = 0; i <= static_cast<int>(most); ++i) {
    if (kNames[i] == std::string(wanted)) return static_cast<Isa>(i);
    allowed += (i ? ", " : "") + std::string(kNames[i]);
  }
  throw std::runtime_error("SER_FAST_CPU is '" + std::string(wanted) + "'; on this processor it must be one of " +
                           allowed);
}

}  // namespace

Isa isa() {
  static const Isa choice = chosen();
  return choice;
}

const char* isa_name() { return kNames[static_cast<int>(isa())]; }

}  // namespace ser_fast
