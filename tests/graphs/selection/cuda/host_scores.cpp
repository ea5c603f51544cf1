// The score kernels of float32 features on the CPU.
#include "host_block.h"
#include "scores.cuh"

// features [frames, patches, channels], query [channels] → relevance [frames, patches], similarity [frames, patches,
// patches], by the kernels of launcher.SelectionKernels.score.
extern "C" void host_score(const float* features, const float* query, int frames, int patches, int channels,
                           float* relevance, float* similarity) {
    const unsigned tokens = frames * patches;
    std::vector<float> inverse_norm(tokens), fingerprint(tokens);
    Block warp(32);
    for (unsigned token = 0; token < tokens; ++token)
        warp.run({token, 0, 0}, [&] {
            rediprune::token_scores(features, query, int(tokens), channels, inverse_norm.data(), relevance,
                                    fingerprint.data());
        });
    Block block(128);
    const unsigned tiles = (patches + rediprune::fma_tile - 1) / rediprune::fma_tile;
    for (unsigned frame = 0; frame < unsigned(frames); ++frame)
        for (unsigned row = 0; row < tiles; ++row)
            for (unsigned column = 0; column < tiles; ++column)
                block.run({column, row, frame}, [&] {
                    rediprune::similarity_fma(
                        features, rediprune::Tokens{inverse_norm.data(), relevance, fingerprint.data()}, patches,
                        channels, similarity);
                });
}
