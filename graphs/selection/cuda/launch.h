// Host side of the greedy kernel, for the TensorRT plugin.
#pragma once

#include <cstdint>

#include <cuda_runtime_api.h>

namespace rediprune {

// Whether the kernel takes frames of this many tokens.
bool fits(int patches) noexcept;

// Enqueues the selection of all frames on the stream. All pointers are device memory; alpha is one float32.
// cudaErrorInvalidValue if a size is out of range.
cudaError_t launch_maxmin_select(float const* similarity, float const* relevance, float const* alpha,
                                 std::int64_t* indices, int frames, int patches, int count,
                                 cudaStream_t stream) noexcept;

}  // namespace rediprune
