// Relevance and cosine similarity of visual tokens, float32 results from float16, bfloat16 or float32 features.
//
// float16 and bfloat16 go through the tensor cores: a product of two halves is exact in float32, so nothing is
// lost before the sum, and partial sums of 32 products are added up in ordinary float32. float32 features use
// ordinary FMAs: TF32 would drop 13 bits of them.
//
// No includes, for NVRTC. Needs sm_80 (mma.sync with bfloat16, cp.async).

namespace rediprune {

struct Half {
    unsigned short bits;
};
struct BFloat {
    unsigned short bits;
};

__device__ inline float widen(float value) { return value; }
__device__ inline float widen(BFloat value) { return __uint_as_float(unsigned(value.bits) << 16); }
__device__ inline float widen(Half value) {
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value.bits));
    return wide;
}

constexpr float eps = 1e-12f;  // of torch.nn.functional.normalize in the reference

__device__ inline float warp_sum(float value) {
    for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
    return value;
}

// One warp per token: its inverse norm, and its cosine with the query. Every warp also sums q², which costs nothing
// beside its loads.
template <class T>
__device__ void token_scores(const T* __restrict__ features, const float* __restrict__ query, int tokens, int channels,
                             float* inverse_norm, float* relevance) {
    const int token = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
    if (token >= tokens) return;
    const T* row = features + (long long)token * channels;
    float xx = 0, xq = 0, qq = 0;
#pragma unroll 8
    for (int c = lane; c < channels; c += 32) {
        const float x = widen(row[c]), q = query[c];
        xx += x * x;
        xq += x * q;
        qq += q * q;
    }
    xx = warp_sum(xx), xq = warp_sum(xq), qq = warp_sum(qq);
    if (lane == 0) {
        const float inverse = 1.0f / fmaxf(sqrtf(xx), eps);
        inverse_norm[token] = inverse;
        relevance[token] = xq * inverse * (1.0f / fmaxf(sqrtf(qq), eps));
    }
}

constexpr int tile = 64;  // rows and columns of S one block computes

// S is symmetric: a block above the diagonal writes its tile and the mirrored one. The scale is a product of the two
// inverse norms, which commutes, so that S equals its transpose to the bit.
__device__ inline void store(float* similarity, const float* inverse_norm, int patches, int i, int j, float dot) {
    if (i >= patches || j >= patches) return;
    const float cosine = dot * (inverse_norm[i] * inverse_norm[j]);
    similarity[(long long)i * patches + j] = cosine;
    if (blockIdx.x != blockIdx.y) similarity[(long long)j * patches + i] = cosine;
}

// The tile by float32 FMAs, any type and width. Block: 256 threads, 4 × 4 dot products each.
template <class T>
__device__ void similarity_fma(const T* __restrict__ features, const float* __restrict__ inverse_norm, int patches,
                               int channels, float* __restrict__ similarity) {
    if (blockIdx.x < blockIdx.y) return;
    constexpr int depth = 16, threads = 256, loads = tile * depth / threads;
    __shared__ __align__(16) float a[depth][tile + 4], b[depth][tile + 4];
    const long long frame = blockIdx.z;
    features += frame * patches * channels;
    inverse_norm += frame * patches;
    similarity += frame * patches * patches;
    const int row0 = blockIdx.y * tile, column0 = blockIdx.x * tile;
    const int down = threadIdx.x / 16 * 4, right = threadIdx.x % 16 * 4;

    float next_a[loads], next_b[loads], dot[4][4] = {};
    auto fetch = [&](int channel0) {
#pragma unroll
        for (int n = 0; n < loads; ++n) {
            const int at = threadIdx.x + n * threads, row = at / depth, channel = channel0 + at % depth;
            const bool inside = channel < channels;
            const long long i = row0 + row, j = column0 + row;
            next_a[n] = inside && i < patches ? widen(features[i * channels + channel]) : 0.0f;
            next_b[n] = inside && j < patches ? widen(features[j * channels + channel]) : 0.0f;
        }
    };
    fetch(0);
    for (int channel0 = 0; channel0 < channels; channel0 += depth) {
#pragma unroll
        for (int n = 0; n < loads; ++n) {
            const int at = threadIdx.x + n * threads;
            a[at % depth][at / depth] = next_a[n];
            b[at % depth][at / depth] = next_b[n];
        }
        __syncthreads();
        fetch(channel0 + depth);  // zeros past the end
#pragma unroll
        for (int k = 0; k < depth; ++k) {
            const float4 x = *reinterpret_cast<const float4*>(&a[k][down]);
            const float4 y = *reinterpret_cast<const float4*>(&b[k][right]);
            const float xs[4] = {x.x, x.y, x.z, x.w}, ys[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
            for (int m = 0; m < 4; ++m)
#pragma unroll
                for (int n = 0; n < 4; ++n) dot[m][n] = fmaf(xs[m], ys[n], dot[m][n]);
        }
        __syncthreads();
    }
#pragma unroll
    for (int m = 0; m < 4; ++m)
#pragma unroll
        for (int n = 0; n < 4; ++n)
            store(similarity, inverse_norm, patches, row0 + down + m, column0 + right + n, dot[m][n]);
}

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

// The tile by tensor cores. channels must be a multiple of 8 and features 16-byte aligned (copies of 16 bytes).
// Block: 128 threads; each of the 4 warps computes 32 × 32 dot products. Four stages of copies are in flight.
template <class T>
__device__ void similarity_mma(const T* __restrict__ features, const float* __restrict__ inverse_norm, int patches,
                               int channels, float* __restrict__ similarity) {
    if (blockIdx.x < blockIdx.y) return;
    constexpr int depth = 32, stages = 4, threads = 128, piece = 8;  // channels per stage, and per copy
    constexpr int pitch = depth + 8;  // rows 20 words apart: the eight rows of a fragment fall into distinct banks
    __shared__ __align__(16) T a[stages][tile][pitch], b[stages][tile][pitch];
    const long long frame = blockIdx.z;
    features += frame * patches * channels;
    inverse_norm += frame * patches;
    similarity += frame * patches * patches;
    const int row0 = blockIdx.y * tile, column0 = blockIdx.x * tile;
    const int warp = threadIdx.x / 32, group = threadIdx.x % 32 / 4, quad = threadIdx.x % 4;
    const int down = warp % 2 * 32, right = warp / 2 * 32;

    auto fetch = [&](int step) {
#pragma unroll
        for (int at = threadIdx.x; at < tile * depth / piece; at += threads) {
            const int row = at / (depth / piece), offset = at % (depth / piece) * piece;
            const int channel = step * depth + offset, stage = step % stages;
            const long long i = row0 + row, j = column0 + row;
            const bool has_i = channel < channels && i < patches, has_j = channel < channels && j < patches;
            copy16(&a[stage][row][offset], features + (has_i ? i * channels + channel : 0), has_i);
            copy16(&b[stage][row][offset], features + (has_j ? j * channels + channel : 0), has_j);
        }
        asm volatile("cp.async.commit_group;");
    };
    auto pair = [](const T* at) { return *reinterpret_cast<const unsigned*>(at); };

    float dot[2][4][4] = {};
    const int steps = (channels + depth - 1) / depth;
    for (int step = 0; step < stages - 1; ++step) fetch(step);
    for (int step = 0; step < steps; ++step) {
        asm volatile("cp.async.wait_group %0;" ::"n"(stages - 2));
        __syncthreads();  // this stage has arrived, and everyone has left the one that is filled next
        fetch(step + stages - 1);
        float part[2][4][4] = {};
        const auto& x = a[step % stages];
        const auto& y = b[step % stages];
#pragma unroll
        for (int k0 = 0; k0 < depth; k0 += 16) {
            const int k = k0 + 2 * quad;
            unsigned xs[2][4], ys[4][2];
#pragma unroll
            for (int m = 0; m < 2; ++m) {
                const int i = down + 16 * m + group;
                xs[m][0] = pair(&x[i][k]), xs[m][1] = pair(&x[i + 8][k]);
                xs[m][2] = pair(&x[i][k + 8]), xs[m][3] = pair(&x[i + 8][k + 8]);
            }
#pragma unroll
            for (int n = 0; n < 4; ++n) {
                const int j = right + 8 * n + group;
                ys[n][0] = pair(&y[j][k]), ys[n][1] = pair(&y[j][k + 8]);
            }
#pragma unroll
            for (int m = 0; m < 2; ++m)
#pragma unroll
                for (int n = 0; n < 4; ++n) multiply_add(part[m][n], xs[m], ys[n], T{});
        }
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
            for (int n = 0; n < 4; ++n)
#pragma unroll
                for (int v = 0; v < 4; ++v) dot[m][n][v] += part[m][n][v];
    }
    asm volatile("cp.async.wait_all;");
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int n = 0; n < 4; ++n)
#pragma unroll
            for (int v = 0; v < 4; ++v)
                store(similarity, inverse_norm, patches, row0 + down + 16 * m + group + v / 2 * 8,
                      column0 + right + 8 * n + 2 * quad + v % 2, dot[m][n][v]);
}

}  // namespace rediprune

// features [tokens, channels], query [channels] float32 → inverse_norm, relevance [tokens] float32.
// Grid: ⌈tokens / 8⌉. Block: 256 (one warp per token).
#define TOKEN_SCORES(name, T)                                                                                         \
    extern "C" __global__ void token_scores_##name(const T* features, const float* query, int tokens, int channels,   \
                                                   float* inverse_norm, float* relevance) {                           \
        rediprune::token_scores(features, query, tokens, channels, inverse_norm, relevance);                          \
    }
TOKEN_SCORES(float16, rediprune::Half)
TOKEN_SCORES(bfloat16, rediprune::BFloat)
TOKEN_SCORES(float32, float)

// features [frames, patches, channels], inverse_norm [frames, patches] → similarity [frames, patches, patches] float32.
// Grid: (⌈patches / 64⌉, ⌈patches / 64⌉, frames). Block: 128 for mma, 256 for fma.
#define SIMILARITY(route, name, T, threads)                                                                           \
    extern "C" __global__ void __launch_bounds__(threads, 1) similarity_##route##_##name(                             \
        const T* features, const float* inverse_norm, int patches, int channels, float* similarity) {                 \
        rediprune::similarity_##route(features, inverse_norm, patches, channels, similarity);                         \
    }
SIMILARITY(mma, float16, rediprune::Half, 128)
SIMILARITY(mma, bfloat16, rediprune::BFloat, 128)
SIMILARITY(fma, float16, rediprune::Half, 256)
SIMILARITY(fma, bfloat16, rediprune::BFloat, 256)
SIMILARITY(fma, float32, float, 256)
