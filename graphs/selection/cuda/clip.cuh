// The greedy choice over all frames of a clip (graphs/selection/clip_reference.py), one pick in two steps: `choose` says
// which token is next, `compare` brings every token's distance to its nearest pick up to date, a warp per token. No matrix
// of similarities is made. Ordinary C++ but for the words of CUDA, so that the tests run it on the CPU.
//
// Every token is compared with a pick in the same order of sums, so that identical tokens get identical numbers.
#pragma once

#include "greedy.cuh"
#include "scores.cuh"

namespace rediprune {

constexpr float lowest = -3.4028234663852886e38f;  // below it is −inf alone

__device__ inline float infinity() { return lowest * -2.0f; }

// What the steps of one clip share. `best` and `best_owed` are the next pick's candidates: of all tokens, and of those of
// frames that are still short of their least.
struct Clip {
    candidate_t best, best_owed;
    int made, debt, pick, ends;  // picks made; tokens still owed to frames; the last pick; whether the choice has ended
};

// One thread. Nothing is picked; the candidates are then the most relevant tokens (see `offer_relevance`).
__device__ inline void begin(Clip* clip, int* owed, int frames, int least) {
    for (int frame = 0; frame < frames; ++frame) owed[frame] = least;
    *clip = {0, 0, 0, frames * least, -1, 0};
}

// One thread per token: its distance to the nearest of no picks, and its relevance as the score of the first pick.
__device__ inline void offer_relevance(Clip* clip, const float* relevance, float* nearest, int tokens) {
    const int token = blockIdx.x * blockDim.x + threadIdx.x;
    if (token >= tokens) return;
    nearest[token] = infinity();
    atomicMax(&clip->best, candidate(relevance[token], token));
}

__device__ inline float score_of(const float* nearest, const float* relevance, float alpha, int token) {
    return add(nearest[token], multiply(alpha, relevance[token]));
}

// One thread: the next pick, `total` of them at most. Ends the choice where no token's score reaches the threshold and no
// frame is short of its least.
__device__ inline void choose(Clip* clip, int* owed, float* nearest, const float* relevance, float alpha,
                              float threshold, int patches, int total) {
    if (clip->ends || clip->made == total) {
        clip->ends = 1;
        return;
    }
    bool restricts = false;
    if (clip->made > 0) {
        const bool spent = score_of(nearest, relevance, alpha, index_of(clip->best)) < threshold;
        if (spent && clip->debt == 0) {
            clip->ends = 1;
            return;
        }
        restricts = spent || total - clip->made <= clip->debt;
    }
    const int pick = index_of(restricts ? clip->best_owed : clip->best), frame = pick / patches;
    if (owed[frame] > 0) {
        owed[frame] -= 1;
        clip->debt -= 1;
    }
    nearest[pick] = -infinity();  // it is picked
    clip->pick = pick;
    clip->made += 1;
    clip->best = clip->best_owed = 0;
}

// One warp per token: its distance to the last pick, and its score as a candidate for the next.
template <class T>
__device__ void compare(Clip* clip, const int* owed, float* nearest, const T* __restrict__ features, Tokens tokens,
                        float alpha, int patches, int channels, int count) {
    const int token = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
    if (token >= count || clip->ends || nearest[token] < lowest) return;
    const T* mine = features + (long long)token * channels;
    const T* picked = features + (long long)clip->pick * channels;
    float dot = 0;
    if (channels % 4 == 0 && (unsigned long long)features % 16 == 0) {
        const auto* ours = reinterpret_cast<const Four<T>*>(mine);
        const auto* theirs = reinterpret_cast<const Four<T>*>(picked);
#pragma unroll 8
        for (int c = lane; c < channels / 4; c += 32) {
            const Four<T> x = ours[c], y = theirs[c];
#pragma unroll
            for (int n = 0; n < 4; ++n) dot += widen(x.values[n]) * widen(y.values[n]);
        }
    } else {
        for (int c = lane; c < channels; c += 32) dot += widen(mine[c]) * widen(picked[c]);
    }
    dot = warp_sum(dot);
    if (lane != 0) return;
    nearest[token] = nearer(nearest[token], distance(cosine_of(tokens, token, clip->pick, dot)));
    const candidate_t offer = candidate(score_of(nearest, tokens.relevance, alpha, token), token);
    atomicMax(&clip->best, offer);
    if (owed[token / patches] > 0) atomicMax(&clip->best_owed, offer);
}

// One thread block: the picked tokens in ascending order. `before` [threads] is shared memory.
__device__ inline void collect(const float* nearest, int tokens, int* before, index_t* indices) {
    const int rank = threadIdx.x, size = blockDim.x, each = (tokens + size - 1) / size;
    const int start = rank * each, stop = start + each < tokens ? start + each : tokens;
    int found = 0;
    for (int token = start; token < stop; ++token) found += nearest[token] < lowest;
    before[rank] = found;
    __syncthreads();
    int position = 0;
    for (int other = 0; other < rank; ++other) position += before[other];
    for (int token = start; token < stop; ++token)
        if (nearest[token] < lowest) indices[position++] = token;
}

}  // namespace rediprune
