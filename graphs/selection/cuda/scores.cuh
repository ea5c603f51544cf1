// Relevance and cosine similarity of visual tokens, float32: the parts that need no tensor cores. Ordinary C++ but for
// the words of CUDA, so that the tests run them on the CPU.
//
// No includes, for NVRTC.
#pragma once

namespace rediprune {

__device__ inline float widen(float value) { return value; }

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

// One warp per token: its inverse norm, its cosine with the query, and its fingerprint, the weighted sum of the first 32
// channels of its unit vector (identical_tokens.py). Equal tokens give equal numbers, as each is summed in one order.
// Every warp also sums q², which costs nothing beside its loads.
template <class T>
__device__ void token_scores(const T* __restrict__ features, const float* __restrict__ query, int tokens, int channels,
                             float* inverse_norm, float* relevance, float* fingerprint) {
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
    const float weighted = lane < channels ? widen(row[lane]) * __cosf(float(lane)) : 0.0f;
    xx = warp_sum(xx), xq = warp_sum(xq), qq = warp_sum(qq);
    const float xf = warp_sum(weighted);
    if (lane == 0) {
        const float inverse = 1.0f / fmaxf(sqrtf(xx), eps);
        inverse_norm[token] = inverse;
        relevance[token] = xq * inverse * (1.0f / fmaxf(sqrtf(qq), eps));
        fingerprint[token] = xf * inverse;
    }
}

// What token_scores knows of the tokens of one frame, [patches] each.
struct Tokens {
    const float* inverse_norm;
    const float* relevance;
    const float* fingerprint;

    __device__ Tokens of_frame(long long frame, int patches) const {
        const long long first = frame * patches;
        return {inverse_norm + first, relevance + first, fingerprint + first};
    }
};

// Cosine above which two tokens may be identical (identical_tokens.IDENTICAL_COSINE).
constexpr float identical_cosine = 1.0f - 1.0f / (1 << 20);

// The cosine of tokens i and j from their dot product: at most 1, and exactly 1 if they are identical, so that rounding
// does not decide between identical tokens. The scale is a product of the two inverse norms, which commutes, so that S
// equals its transpose to the bit.
__device__ inline float cosine_of(const Tokens& tokens, int i, int j, float dot) {
    const float cosine = dot * (tokens.inverse_norm[i] * tokens.inverse_norm[j]);
    if (!(cosine > identical_cosine)) return cosine;
    if (cosine > 1.0f) return 1.0f;
    const bool same_sums =
        tokens.relevance[i] == tokens.relevance[j] && tokens.fingerprint[i] == tokens.fingerprint[j];
    return same_sums ? 1.0f : cosine;
}

// S is symmetric: a block above the diagonal writes its tile and the mirrored one.
__device__ inline void store(float* similarity, const Tokens& tokens, int patches, int i, int j, float dot) {
    if (i >= patches || j >= patches) return;
    const float cosine = cosine_of(tokens, i, j, dot);
    similarity[(long long)i * patches + j] = cosine;
    if (blockIdx.x != blockIdx.y) similarity[(long long)j * patches + i] = cosine;
}

constexpr int fma_tile = 32;  // rows and columns of S one block computes; FMAs take long: small tiles spread them

// The tile by float32 FMAs, any type and width. Block: 128 threads, two groups of 64 that take half of the channels
// each; a thread computes 4 × 4 dot products, over which the groups' halves are added up at the end.
template <class T>
__device__ void similarity_fma(const T* __restrict__ features, Tokens tokens, int patches, int channels,
                               float* __restrict__ similarity) {
    if (blockIdx.x < blockIdx.y) return;
    constexpr int tile = fma_tile, depth = 32, threads = 128, loads = tile * depth / threads;
    __shared__ __align__(16) float a[depth][tile + 4], b[depth][tile + 4];
    const long long frame = blockIdx.z;
    features += frame * patches * channels;
    tokens = tokens.of_frame(frame, patches);
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
            store(similarity, tokens, patches, row0 + down + m, column0 + right + n,
                  dot[m][n] + a[down + m][right + n]);
}

}  // namespace rediprune
