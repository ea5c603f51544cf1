// Relevance and cosine similarity of visual tokens, float32 results from float16, bfloat16 or float32 features.
//
// float16 and bfloat16 go through the tensor cores: a product of two halves is exact in float32, so nothing is
// lost before the sum, and partial sums of 64 products are added up in ordinary float32. float32 features use
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

// Four channels, fetched at once.
template <class T>
struct __align__(4 * sizeof(T)) Four {
    T values[4];
};

// One warp per token: its inverse norm, and its cosine with the query. Every warp also sums q², which costs nothing
// beside its loads.
template <class T>
__device__ void token_scores(const T* __restrict__ features, const float* __restrict__ query, int tokens, int channels,
                             float* inverse_norm, float* relevance) {
    const int token = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
    if (token >= tokens) return;
    const T* row = features + (long long)token * channels;
    float xx = 0, xq = 0, qq = 0;
    auto take = [&](float x, float q) {
        xx += x * x;
        xq += x * q;
        qq += q * q;
    };
    const unsigned long long addresses = (unsigned long long)features | (unsigned long long)query;
    if (channels % 4 == 0 && addresses % 16 == 0) {
        const auto* fours = reinterpret_cast<const Four<T>*>(row);
        const auto* queries = reinterpret_cast<const Four<float>*>(query);
#pragma unroll 8
        for (int c = lane; c < channels / 4; c += 32) {
            const Four<T> x = fours[c];
            const Four<float> q = queries[c];
#pragma unroll
            for (int n = 0; n < 4; ++n) take(widen(x.values[n]), q.values[n]);
        }
    } else {
        for (int c = lane; c < channels; c += 32) take(widen(row[c]), query[c]);
    }
    xx = warp_sum(xx), xq = warp_sum(xq), qq = warp_sum(qq);
    if (lane == 0) {
        const float inverse = 1.0f / fmaxf(sqrtf(xx), eps);
        inverse_norm[token] = inverse;
        relevance[token] = xq * inverse * (1.0f / fmaxf(sqrtf(qq), eps));
    }
}

// Rows and columns of S one block computes. FMAs take long: smaller tiles spread them over more multiprocessors.
constexpr int mma_tile = 64, fma_tile = 32;

// Cosines above this are those of one and the same token (selection.SAME_TOKEN).
constexpr float same_token = 1.0f - 1.0f / (1 << 20);

// S is symmetric: a block above the diagonal writes its tile and the mirrored one. The scale is a product of the two
// inverse norms, which commutes, so that S equals its transpose to the bit.
__device__ inline void store(float* similarity, const float* inverse_norm, int patches, int i, int j, float dot) {
    if (i >= patches || j >= patches) return;
    const float product = dot * (inverse_norm[i] * inverse_norm[j]);
    const float cosine = product > same_token ? 1.0f : product;
    similarity[(long long)i * patches + j] = cosine;
    if (blockIdx.x != blockIdx.y) similarity[(long long)j * patches + i] = cosine;
}

// The tile by float32 FMAs, any type and width. Block: 128 threads, two groups of 64 that take half of the channels
// each; a thread computes 4 × 4 dot products, over which the groups' halves are added up at the end.
template <class T>
__device__ void similarity_fma(const T* __restrict__ features, const float* __restrict__ inverse_norm, int patches,
                               int channels, float* __restrict__ similarity) {
    if (blockIdx.x < blockIdx.y) return;
    constexpr int tile = fma_tile, depth = 32, threads = 128, loads = tile * depth / threads;
    __shared__ __align__(16) float a[depth][tile + 4], b[depth][tile + 4];
    const long long frame = blockIdx.z;
    features += frame * patches * channels;
    inverse_norm += frame * patches;
    similarity += frame * patches * patches;
    const int row0 = blockIdx.y * tile, column0 = blockIdx.x * tile;
    const int group = threadIdx.x / 64, down = threadIdx.x % 64 / 8 * 4, right = threadIdx.x % 8 * 4;

    // A warp fetches 8 channels of 4 rows at a time: whole sectors of 32 bytes, stored to 32 distinct banks.
    const int row = threadIdx.x / 32 * 4 + threadIdx.x / 8 % 4, channel = threadIdx.x % 8;
    auto row_of = [&](int n) { return row + n % 2 * 16; };
    auto channel_of = [&](int n) { return channel + n / 2 * 8; };
    float next_a[loads], next_b[loads], dot[4][4] = {};
    auto fetch = [&](int channel0) {
#pragma unroll
        for (int n = 0; n < loads; ++n) {
            const long long i = row0 + row_of(n), j = column0 + row_of(n);
            const int c = channel0 + channel_of(n);
            next_a[n] = c < channels && i < patches ? widen(features[i * channels + c]) : 0.0f;
            next_b[n] = c < channels && j < patches ? widen(features[j * channels + c]) : 0.0f;
        }
    };
    fetch(0);
    for (int channel0 = 0; channel0 < channels; channel0 += depth) {
#pragma unroll
        for (int n = 0; n < loads; ++n) {
            a[channel_of(n)][row_of(n)] = next_a[n];
            b[channel_of(n)][row_of(n)] = next_b[n];
        }
        __syncthreads();
        fetch(channel0 + depth);  // zeros past the end
#pragma unroll 8
        for (int k = group * depth / 2; k < (group + 1) * depth / 2; ++k) {
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
    // a is free now: it carries the second group's sums to the first.
#pragma unroll
    for (int m = 0; m < 4; ++m)
#pragma unroll
        for (int n = 0; n < 4; ++n)
            if (group == 1) a[down + m][right + n] = dot[m][n];
    __syncthreads();
    if (group == 1) return;
#pragma unroll
    for (int m = 0; m < 4; ++m)
#pragma unroll
        for (int n = 0; n < 4; ++n)
            store(similarity, inverse_norm, patches, row0 + down + m, column0 + right + n,
                  dot[m][n] + a[down + m][right + n]);
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
__device__ void similarity_mma(const T* __restrict__ features, const float* __restrict__ inverse_norm, int patches,
                               int channels, float* __restrict__ similarity) {
    if (blockIdx.x < blockIdx.y) return;
    constexpr int tile = mma_tile, depth = 32, stages = 4, threads = 128;
    constexpr int piece = 8, copies = tile * depth / piece / threads;  // channels per copy; copies per thread
    constexpr int pitch = depth + 8;  // rows 20 words apart: eight rows of 16 bytes fall into distinct banks
    __shared__ __align__(16) T a[stages][tile][pitch], b[stages][tile][pitch];
    const long long frame = blockIdx.z;
    features += frame * patches * channels;
    inverse_norm += frame * patches;
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
// Grid: (⌈patches / tile⌉, ⌈patches / tile⌉, frames). Block: 128.
#define SIMILARITY(route, name, T)                                                                                    \
    extern "C" __global__ void __launch_bounds__(128, 1) similarity_##route##_##name(                                 \
        const T* features, const float* inverse_norm, int patches, int channels, float* similarity) {                 \
        rediprune::similarity_##route(features, inverse_norm, patches, channels, similarity);                         \
    }
SIMILARITY(mma, float16, rediprune::Half)
SIMILARITY(mma, bfloat16, rediprune::BFloat)
SIMILARITY(fma, float16, rediprune::Half)
SIMILARITY(fma, bfloat16, rediprune::BFloat)
SIMILARITY(fma, float32, float)
