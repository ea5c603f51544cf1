// Relevance and cosine similarity of visual tokens, float32 results from float16, bfloat16 or float32 features.
//
// float16 and bfloat16 go through the tensor cores: a product of two halves is exact in float32, so nothing is
// lost before the sum, and partial sums of 64 products are added up in ordinary float32. float32 features use
// ordinary FMAs: TF32 would drop 13 bits of them.
//
// No includes but our own, for NVRTC. Needs sm_80 (mma.sync with bfloat16, cp.async).

#include "half.cuh"

#include "scores.cuh"

namespace rediprune {

constexpr int mma_tile = 64;  // rows and columns of S one block computes

// d [16, 8] += a [16, 16] · b [8, 16]ᵀ, the fragments of one warp as PTX lays them out.
__device__ inline void multiply_add(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], Half) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ inline void multiply_add(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], BFloat) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// 16 bytes from global to shared memory, zeros where there is nothing to copy.
__device__ inline void copy16(void* to, const void* from, bool inside) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(unsigned(__cvta_generic_to_shared(to))),
                 "l"(from), "r"(inside ? 16 : 0));
}

// Four 8 × 8 matrices of halves from shared memory into the registers of one warp; lane 8m + r points at row r of
// matrix m.
__device__ inline void load_matrices(unsigned (&to)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(unsigned(__cvta_generic_to_shared(row))));
}

// The tile by tensor cores. channels must be a multiple of 8 and features 16-byte aligned (copies of 16 bytes).
// Block: 128 threads; each of the 4 warps computes 32 × 32 dot products. Four stages of copies are in flight.
template <class T>
__device__ void similarity_mma(const T* __restrict__ features, Tokens tokens, int patches, int channels,
                               float* __restrict__ similarity) {
    if (blockIdx.x < blockIdx.y) return;
    constexpr int tile = mma_tile, depth = 32, stages = 4, threads = 128;
    constexpr int piece = 8, copies = tile * depth / piece / threads;  // channels per copy; copies per thread
    constexpr int pitch = depth + 8;  // rows 20 words apart: eight rows of 16 bytes fall into distinct banks
    __shared__ __align__(16) T a[stages][tile][pitch], b[stages][tile][pitch];
    const long long frame = blockIdx.z;
    features += frame * patches * channels;
    tokens = tokens.of_frame(frame, patches);
    similarity += frame * patches * patches;
    const int row0 = blockIdx.y * tile, column0 = blockIdx.x * tile;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int down = warp % 2 * 32, right = warp / 2 * 32;

    const int row = threadIdx.x / (depth / piece), offset = threadIdx.x % (depth / piece) * piece;
    constexpr int rows_apart = tile / copies;
    auto fetch = [&](int step) {
        const int channel = step * depth + offset, stage = step % stages;
#pragma unroll
        for (int n = 0; n < copies; ++n) {
            const long long i = row0 + row + n * rows_apart, j = column0 + row + n * rows_apart;
            const bool has_i = channel < channels && i < patches, has_j = channel < channels && j < patches;
            copy16(&a[stage][row + n * rows_apart][offset], features + (has_i ? i * channels + channel : 0), has_i);
            copy16(&b[stage][row + n * rows_apart][offset], features + (has_j ? j * channels + channel : 0), has_j);
        }
        asm volatile("cp.async.commit_group;");
    };

    float dot[2][4][4] = {}, part[2][4][4] = {};
    const int steps = (channels + depth - 1) / depth;
    for (int step = 0; step < stages - 1; ++step) fetch(step);
    for (int step = 0; step < steps; ++step) {
        asm volatile("cp.async.wait_group %0;" ::"n"(stages - 2) : "memory");
        __syncthreads();  // this stage has arrived, and everyone has left the one that is filled next
        fetch(step + stages - 1);
        const auto& x = a[step % stages];
        const auto& y = b[step % stages];
#pragma unroll
        for (int k = 0; k < depth; k += 16) {
            unsigned xs[2][4], ys[2][4];
#pragma unroll
            for (int m = 0; m < 2; ++m) load_matrices(xs[m], &x[down + 16 * m + lane % 16][k + lane / 16 * 8]);
#pragma unroll
            for (int n = 0; n < 2; ++n)
                load_matrices(ys[n], &y[right + 16 * n + lane / 16 * 8 + lane % 8][k + lane / 8 % 2 * 8]);
#pragma unroll
            for (int m = 0; m < 2; ++m)
#pragma unroll
                for (int n = 0; n < 4; ++n) {
                    const unsigned columns[2] = {ys[n / 2][n % 2 * 2], ys[n / 2][n % 2 * 2 + 1]};
                    multiply_add(part[m][n], xs[m], columns, T{});
                }
        }
        if (step % 2 == 0 && step + 1 < steps) continue;
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
            for (int n = 0; n < 4; ++n)
#pragma unroll
                for (int v = 0; v < 4; ++v) {
                    dot[m][n][v] += part[m][n][v];
                    part[m][n][v] = 0;
                }
    }
    asm volatile("cp.async.wait_all;");
    const int group = lane / 4, quad = lane % 4;
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int n = 0; n < 4; ++n)
#pragma unroll
            for (int v = 0; v < 4; ++v)
                store(similarity, tokens, patches, row0 + down + 16 * m + group + v / 2 * 8,
                      column0 + right + 8 * n + 2 * quad + v % 2, dot[m][n][v]);
}

}  // namespace rediprune

// features [tokens, channels], query [channels] float32 → inverse_norm, relevance, fingerprint [tokens] float32.
// Grid: ⌈tokens / 8⌉. Block: 256 (one warp per token).
#define TOKEN_SCORES(name, T)                                                                                         \
    extern "C" __global__ void token_scores_##name(const T* features, const float* query, int tokens, int channels,   \
                                                   float* inverse_norm, float* relevance, float* fingerprint) {       \
        rediprune::token_scores(features, query, tokens, channels, inverse_norm, relevance, fingerprint);             \
    }
TOKEN_SCORES(float16, rediprune::Half)
TOKEN_SCORES(bfloat16, rediprune::BFloat)
TOKEN_SCORES(float32, float)

// features [frames, patches, channels]; inverse_norm, relevance, fingerprint [frames, patches] float32 → similarity
// [frames, patches, patches] float32.
// Grid: (⌈patches / tile⌉, ⌈patches / tile⌉, frames). Block: 128.
#define SIMILARITY(route, name, T)                                                                                    \
    extern "C" __global__ void __launch_bounds__(128, 1) similarity_##route##_##name(                                 \
        const T* features, const float* inverse_norm, const float* relevance, const float* fingerprint, int patches,  \
        int channels, float* similarity) {                                                                            \
        const rediprune::Tokens tokens{inverse_norm, relevance, fingerprint};                                         \
        rediprune::similarity_##route(features, tokens, patches, channels, similarity);                               \
    }
SIMILARITY(mma, float16, rediprune::Half)
SIMILARITY(mma, bfloat16, rediprune::BFloat)
SIMILARITY(fma, float16, rediprune::Half)
SIMILARITY(fma, bfloat16, rediprune::BFloat)
SIMILARITY(fma, float32, float)
