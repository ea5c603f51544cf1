#include "launch.h"

#include "maxmin.cu"

namespace rediprune {

bool fits(int patches) noexcept {
    return patches >= 1 && patches <= max_patches;
}

cudaError_t launch_maxmin_select(float const* similarity, float const* relevance, float const* alpha,
                                 std::int64_t* indices, int frames, int patches, int count,
                                 cudaStream_t stream) noexcept {
    if (frames < 1 || !fits(patches) || count < 1 || count > patches) return cudaErrorInvalidValue;
    int const warps = (patches + warp_size - 1) / warp_size;
    int const threads = warp_size * (warps < max_warps ? warps : max_warps);
    maxmin_select<<<frames, threads, 0, stream>>>(
        similarity, relevance, alpha, 0.0f, patches, count, reinterpret_cast<index_t*>(indices));
    return cudaPeekAtLastError();
}

}  // namespace rediprune
