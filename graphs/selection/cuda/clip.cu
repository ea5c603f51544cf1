// The kernels of the choice over a whole clip (clip.cuh): `clip_begin`, `clip_offer`, then for each pick `clip_choose` and
// `clip_compare_…`, at last `clip_collect`. Launches are in order on one stream, and need no answer in between: those
// behind the end of the choice return at once.
//
// No includes but our own, for NVRTC. Needs sm_80.

#include "half.cuh"

#include "clip.cuh"

// Grid: 1. Block: 1. owed [frames] int32.
extern "C" __global__ void clip_begin(rediprune::Clip* clip, int* owed, int frames, int least) {
    rediprune::begin(clip, owed, frames, least);
}

// Grid: ⌈tokens / 256⌉. Block: 256. relevance, nearest [tokens].
extern "C" __global__ void clip_offer(rediprune::Clip* clip, const float* relevance, float* nearest, int tokens) {
    rediprune::offer_relevance(clip, relevance, nearest, tokens);
}

// Grid: 1. Block: 1.
extern "C" __global__ void clip_choose(rediprune::Clip* clip, int* owed, float* nearest, const float* relevance,
                                       float alpha, float threshold, int patches, int total) {
    rediprune::choose(clip, owed, nearest, relevance, alpha, threshold, patches, total);
}

// Grid: ⌈tokens / 8⌉. Block: 256 (one warp per token). features [tokens, channels]; inverse_norm, relevance, fingerprint
// [tokens] of token_scores.
#define CLIP_COMPARE(name, T)                                                                                         \
    extern "C" __global__ void clip_compare_##name(                                                                   \
        rediprune::Clip* clip, const int* owed, float* nearest, const T* features, const float* inverse_norm,         \
        const float* relevance, const float* fingerprint, float alpha, int patches, int channels, int tokens) {       \
        rediprune::compare(clip, owed, nearest, features, {inverse_norm, relevance, fingerprint}, alpha, patches,     \
                           channels, tokens);                                                                         \
    }
CLIP_COMPARE(float16, rediprune::Half)
CLIP_COMPARE(bfloat16, rediprune::BFloat)
CLIP_COMPARE(float32, float)

// Grid: 1. Block: 1024. indices [picks made], ascending.
extern "C" __global__ void __launch_bounds__(1024, 1)
clip_collect(const float* nearest, int tokens, long long* indices) {
    __shared__ int before[1024];
    rediprune::collect(nearest, tokens, before, indices);
}
