// The greedy max-min choice of one frame, written once for a team of threads: a thread block on the GPU
// (maxmin.cu), a few CPU threads in the tests. No includes, so that NVRTC compiles it without a header path.
//
// Arithmetic is that of the eager reference (graphs/selection.py, max_min_select), one IEEE float32 operation at a
// time: dist = 1 − S[pick]; nearest = min(nearest, dist); weighted = α·r; score = nearest + weighted. The device
// intrinsics keep the compiler from contracting α·r + nearest into one FMA, which would round differently; host
// builds need -ffp-contract=off for the same.
#pragma once

#ifdef __CUDACC__
#define REDIPRUNE_FN __host__ __device__ inline
#else
#define REDIPRUNE_FN inline
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

// What a team keeps of one frame in shared memory. Token i belongs to the thread of rank i mod size, which alone
// touches nearest[i] and taken[i] until the picks are all made.
struct Scratch {
    float* nearest;        // [patches] distance to the nearest picked token
    unsigned* picked;      // [⌈patches/32⌉] the picks as a bitmap, for the ascending output
    unsigned char* taken;  // [patches] 1 once picked

    REDIPRUNE_FN Scratch(void* memory, int patches)
        : nearest(static_cast<float*>(memory)), picked(reinterpret_cast<unsigned*>(nearest + patches)),
          taken(reinterpret_cast<unsigned char*>(picked + (patches + 31) / 32)) {}

    REDIPRUNE_FN static int bytes(int patches) {
        return 4 * patches + 4 * ((patches + 31) / 32) + patches;
    }
};

REDIPRUNE_FN int count_bits(unsigned bits) {
#ifdef __CUDA_ARCH__
    return __popc(bits);
#else
    return __builtin_popcount(bits);
#endif
}

// Writes the positions of the bytes set in `taken` to indices [count], ascending.
template <class Team>
REDIPRUNE_FN void emit_ascending(Team& team, Scratch s, int patches, int count, index_t* indices) {
    const int words = (patches + 31) / 32;
    for (int word = team.rank(); word < words; word += team.size()) {
        unsigned bits = 0;
        for (int i = 32 * word; i < patches && i < 32 * word + 32; ++i) bits |= unsigned(s.taken[i]) << (i % 32);
        s.picked[word] = bits;
    }
    team.sync();
    for (int word = team.rank(); word < words; word += team.size()) {
        int position = 0;
        for (int before = 0; before < word; ++before) position += count_bits(s.picked[before]);
        for (int bit = 0; bit < 32; ++bit)
            if (s.picked[word] >> bit & 1u && position < count) indices[position++] = 32 * word + bit;
    }
}

// Selects `count` of `patches` tokens: argmax r, then argmax(min over picked of (1 − S) + α·r), lowest index at ties.
//
//   similarity [patches, patches], relevance [patches] (−inf: may not be picked), indices [count] ascending.
//
// A Team has rank() and size(), sync(), and best(candidate), which returns the largest candidate of the whole team
// to every thread and orders the memory of the team before and after it.
// If fewer than `count` tokens may be picked, the lowest of the others fill up: the output is always distinct.
template <class Team>
REDIPRUNE_FN void greedy_max_min(Team& team, Scratch s, const float* __restrict__ similarity,
                                 const float* __restrict__ relevance, float alpha, int patches, int count,
                                 index_t* __restrict__ indices) {
    if (count >= patches) {  // everything is kept: no greedy choice to make
        for (int i = team.rank(); i < patches; i += team.size()) indices[i] = i;
        return;
    }
    candidate_t best = 0;
    for (int i = team.rank(); i < patches; i += team.size()) {
        s.taken[i] = 0;
        best = larger(best, candidate(relevance[i], i));
    }
    int pick = index_of(team.best(best));
    for (int picks = 1; picks < count; ++picks) {
        const float* __restrict__ row = similarity + index_t(pick) * patches;
        best = 0;
#ifdef __CUDA_ARCH__
#pragma unroll 4
#endif
        for (int i = team.rank(); i < patches; i += team.size()) {
            const float dist = distance(row[i]);
            const float nearest = picks == 1 ? dist : nearer(s.nearest[i], dist);
            s.nearest[i] = nearest;
            if (i == pick) s.taken[i] = 1;
            if (!s.taken[i]) best = larger(best, candidate(add(nearest, weigh(alpha, relevance[i])), i));
        }
        pick = index_of(team.best(best));
    }
    if (pick % team.size() == team.rank()) s.taken[pick] = 1;
    team.sync();
    emit_ascending(team, s, patches, count, indices);
}

}  // namespace rediprune
