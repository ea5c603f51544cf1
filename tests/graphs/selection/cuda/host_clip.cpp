// The kernels of the choice over a whole clip on the CPU, launched as launcher.SelectionKernels.select_clip does.
#include "host_block.h"

#include "clip.cuh"

// features [frames, patches, channels], query [channels] → indices [returned number].
extern "C" int host_select_clip(const float* features, const float* query, int frames, int patches, int channels,
                                int count, float alpha, int least, float threshold, long long* indices) {
    const int tokens = frames * patches, total = frames * count;
    std::vector<float> inverse_norm(tokens), relevance(tokens), fingerprint(tokens), nearest(tokens);
    std::vector<int> owed(frames);
    rediprune::Clip clip;
    Block thread(1), warp(32), block(64);
    static int before[64];
    for (unsigned token = 0; token < unsigned(tokens); ++token)
        warp.run({token, 0, 0}, [&] {
            rediprune::token_scores(features, query, tokens, channels, inverse_norm.data(), relevance.data(),
                                    fingerprint.data());
        });
    thread.run({0, 0, 0}, [&] { rediprune::begin(&clip, owed.data(), frames, least); });
    for (unsigned token = 0; token < unsigned(tokens); ++token)
        thread.run({token, 0, 0},
                   [&] { rediprune::offer_relevance(&clip, relevance.data(), nearest.data(), tokens); });
    for (int pick = 0; pick <= total; ++pick) {  // once more than there are picks: the rest must do no harm
        thread.run({0, 0, 0}, [&] {
            rediprune::choose(&clip, owed.data(), nearest.data(), relevance.data(), alpha, threshold, patches, total);
        });
        for (unsigned token = 0; token < unsigned(tokens); ++token)
            warp.run({token, 0, 0}, [&] {
                rediprune::compare(&clip, owed.data(), nearest.data(), features,
                                   rediprune::Tokens{inverse_norm.data(), relevance.data(), fingerprint.data()}, alpha,
                                   patches, channels, tokens);
            });
    }
    block.run({0, 0, 0}, [&] { rediprune::collect(nearest.data(), tokens, before, indices); });
    return clip.made;
}
