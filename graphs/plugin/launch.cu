#include "launch.h"

#include "maxmin.cu"

namespace rediprune {

namespace {
constexpr int shared_limit = 48 * 1024 - 1024;  // what every GPU gives a block, less the kernel's own and CUDA's
}

bool fits(int patches) noexcept {
    return patches >= 1 && patches <= shared_limit / 5 && Scratch::bytes(patches) <= shared_limit;
}

cudaError_t launch_maxmin_select(float const* similarity, float const* relevance, float const* alpha,
                                 std::int64_t* indices, int frames, int patches, int count,
                                 cudaStream_t stream) noexcept {
    if (frames < 1 || !fits(patches) || count < 1 || count > patches) return cudaErrorInvalidValue;
    int const warps = (patches + warp_size - 1) / warp_size;
    int const threads = warp_size * (warps < max_warps ? warps : max_warps);
    maxmin_select<<<frames, threads, Scratch::bytes(patches), stream>>>(
        similarity, relevance, alpha, 0.0f, patches, count, reinterpret_cast<index_t*>(indices));
    return cudaPeekAtLastError();
}

}  // namespace rediprune
