// The greedy max-min choice of one frame, written once for a team of threads: a thread block on the GPU
// (maxmin.cu), a few CPU threads in the tests. No includes, so that NVRTC compiles it without a header path.
//
// Arithmetic is that of the eager reference (graphs/selection/reference.py, max_min_select), one IEEE float32 operation at a
// time: dist = 1 − S[pick]; nearest = min(nearest, dist); weighted = α·r; score = nearest + weighted. The device
// intrinsics keep the compiler from contracting α·r + nearest into one FMA, which would round differently; host
// builds need -ffp-contract=off for the same.
#pragma once

#ifdef __CUDACC__
#define REDIPRUNE_FN __host__ __device__ inline
#define REDIPRUNE_UNROLL _Pragma("unroll")  // arrays indexed by constants stay in registers
#else
#define REDIPRUNE_FN inline
#define REDIPRUNE_UNROLL
#endif

namespace rediprune {

using index_t = long long;                // int64, the index type of ONNX and PyTorch
using candidate_t = unsigned long long;   // order of a score in the high half, ~index in the low half; 0 is "none"

REDIPRUNE_FN float multiply(float a, float b) {
#ifdef __CUDA_ARCH__
    return __fmul_rn(a, b);
#else
    return a * b;
#endif
}

REDIPRUNE_FN float add(float a, float b) {
#ifdef __CUDA_ARCH__
    return __fadd_rn(a, b);
#else
    return a + b;
#endif
}

REDIPRUNE_FN float distance(float similarity) {
    return add(1.0f, -similarity);
}

// NaN wins, as in torch.minimum.
REDIPRUNE_FN float nearer(float nearest, float dist) {
    return dist < nearest || dist != dist ? dist : nearest;
}

// −inf marks a token that may not be picked and stays −inf, also where α = 0 would make it NaN.
REDIPRUNE_FN float weigh(float alpha, float relevance) {
    constexpr float lowest = -3.4028234663852886e38f;
    return relevance < lowest ? relevance : multiply(alpha, relevance);
}

// Unsigned numbers in the order of the floats: −0 equals +0, and NaN ranks highest as in torch.argmax.
REDIPRUNE_FN unsigned order(float value) {
    if (value != value) return 0xffffffffu;
    if (value == 0.0f) return 0x80000000u;
    unsigned bits;
#ifdef __CUDA_ARCH__
    bits = __float_as_uint(value);
#else
    __builtin_memcpy(&bits, &value, sizeof bits);
#endif
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// The larger of two candidates has the higher score or, at equal scores, the lower index.
REDIPRUNE_FN candidate_t candidate(float score, int index) {
    return candidate_t(order(score)) << 32 | (0xffffffffu - unsigned(index));
}

REDIPRUNE_FN int index_of(candidate_t best) {
    return int(0xffffffffu - unsigned(best));
}

REDIPRUNE_FN candidate_t larger(candidate_t a, candidate_t b) {
    return a > b ? a : b;
}

REDIPRUNE_FN int count_bits(unsigned bits) {
#ifdef __CUDA_ARCH__
    return __popc(bits);
#else
    return __builtin_popcount(bits);
#endif
}

// Other threads of the team may set other bits of the same word.
REDIPRUNE_FN void set_bit(unsigned* bitmap, int bit) {
#ifdef __CUDA_ARCH__
    atomicOr(bitmap + bit / 32, 1u << bit % 32);
#else
    __atomic_fetch_or(bitmap + bit / 32, 1u << bit % 32, __ATOMIC_RELAXED);
#endif
}

// Selects `count` of `patches` tokens: argmax r, then argmax(min over picked of (1 − S) + α·r), lowest index at ties.
//
//   similarity [patches, patches], relevance [patches] (−inf: may not be picked), indices [count] ascending;
//   bitmap [⌈patches/32⌉], memory of the team.
//
// A Team has rank() and size(), sync(), and best(candidate), which returns the largest candidate of the whole team to
// every thread. Token i belongs to the thread of rank i mod size, which keeps what it knows of its tokens, at most
// Items of them, in registers: patches ≤ Items · size. All fetches of a row are thus in flight at once.
// If fewer than `count` tokens may be picked, the lowest of the others fill up: the output is always distinct.
template <int Items, class Team>
REDIPRUNE_FN void greedy_max_min(Team& team, unsigned* bitmap, const float* __restrict__ similarity,
                                 const float* __restrict__ relevance, float alpha, int patches, int count,
                                 index_t* __restrict__ indices) {
    const int rank = team.rank(), size = team.size(), words = (patches + 31) / 32;
    if (count >= patches) {  // everything is kept: no choice to make
        for (int i = rank; i < patches; i += size) indices[i] = i;
        return;
    }
    float nearest[Items], weighted[Items];  // distance to the nearest picked token; α·r
    bool open[Items];                       // neither picked nor past the end
    candidate_t best = 0;
    REDIPRUNE_UNROLL
    for (int n = 0; n < Items; ++n) {
        const int i = rank + n * size;
        open[n] = i < patches;
        const float r = open[n] ? relevance[i] : 0.0f;
        nearest[n] = 0.0f;
        weighted[n] = weigh(alpha, r);
        if (open[n]) best = larger(best, candidate(r, i));
    }
    for (int word = rank; word < words; word += size) bitmap[word] = 0;
    int pick = index_of(team.best(best));  // orders the zeroed bitmap before the first bit

    for (int picks = 1;; ++picks) {
        REDIPRUNE_UNROLL
        for (int n = 0; n < Items; ++n)
            if (rank + n * size == pick) {
                open[n] = false;
                set_bit(bitmap, pick);
            }
        if (picks == count) break;

        const float* __restrict__ row = similarity + index_t(pick) * patches;
        float dist[Items];
        REDIPRUNE_UNROLL
        for (int n = 0; n < Items; ++n) dist[n] = open[n] ? distance(row[rank + n * size]) : 0.0f;
        best = 0;
        REDIPRUNE_UNROLL
        for (int n = 0; n < Items; ++n) {
            nearest[n] = picks == 1 ? dist[n] : nearer(nearest[n], dist[n]);
            if (open[n]) best = larger(best, candidate(add(nearest[n], weighted[n]), rank + n * size));
        }
        pick = index_of(team.best(best));
    }
    team.sync();
    for (int word = rank; word < words; word += size) {  // the bitmap, read in order, is the ascending output
        int position = 0;
        for (int before = 0; before < word; ++before) position += count_bits(bitmap[before]);
        for (unsigned bits = bitmap[word]; bits != 0 && position < count; bits &= bits - 1)
            indices[position++] = 32 * word + count_bits((bits & -bits) - 1);
    }
}

}  // namespace rediprune
