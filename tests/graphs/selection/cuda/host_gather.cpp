// The gather kernel on the CPU, thread after thread.

struct Place {
    int x, y;
};
static Place blockIdx, threadIdx, blockDim;
struct int4 {
    int x, y, z, w;
};
#define __global__

#include "gather.cu"

extern "C" void host_gather(const char* source, const long long* indices, int frames, int patches, int count,
                            int row_bytes, int threads, char* out) {
    blockDim = {threads, 1};
    for (blockIdx.y = 0; blockIdx.y < frames; ++blockIdx.y)
        for (blockIdx.x = 0; blockIdx.x < count; ++blockIdx.x)
            for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x)
                gather_rows(source, indices, patches, count, row_bytes, out);
}
