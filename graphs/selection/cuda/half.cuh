// float16 and bfloat16 as bits, and widened to float32 without loss. No includes, for NVRTC.
#pragma once

namespace rediprune {

struct Half {
    unsigned short bits;
};
struct BFloat {
    unsigned short bits;
};

__device__ inline float widen(BFloat value) { return __uint_as_float(unsigned(value.bits) << 16); }
__device__ inline float widen(Half value) {
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value.bits));
    return wide;
}

}  // namespace rediprune
