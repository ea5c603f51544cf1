// The kernel's own greedy code (greedy.cuh), run by a team of CPU threads instead of a thread block.
#include <barrier>
#include <thread>
#include <vector>

#include "greedy.cuh"

namespace {

constexpr int items = 160;  // tokens a thread keeps: frames may have this many times the threads

struct Shared {
    explicit Shared(int threads) : barrier(threads), candidates(threads) {}
    std::barrier<> barrier;
    std::vector<rediprune::candidate_t> candidates;
};

struct ThreadTeam {
    Shared& shared;
    int thread;

    int rank() const { return thread; }
    int size() const { return int(shared.candidates.size()); }
    void sync() { shared.barrier.arrive_and_wait(); }
    rediprune::candidate_t best(rediprune::candidate_t mine) {
        shared.candidates[thread] = mine;
        sync();
        for (auto other : shared.candidates) mine = rediprune::larger(mine, other);
        sync();
        return mine;
    }
};

}  // namespace

// similarity [frames, patches, patches], relevance [frames, patches] → indices [frames, count].
extern "C" void host_select(const float* similarity, const float* relevance, float alpha, int frames, int patches,
                            int count, long long* indices, int threads) {
    std::vector<unsigned> bitmap(patches / 32 + 1, ~0u);  // the code must not rely on zeros
    Shared shared(threads);
    auto work = [&](int thread) {
        ThreadTeam team{shared, thread};
        for (long long frame = 0; frame < frames; ++frame) {
            rediprune::greedy_max_min<items>(team, bitmap.data(), similarity + frame * patches * patches,
                                             relevance + frame * patches, alpha, patches, count,
                                             indices + frame * count);
            team.sync();
        }
    };
    std::vector<std::thread> team;
    for (int thread = 1; thread < threads; ++thread) team.emplace_back(work, thread);
    work(0);
    for (auto& member : team) member.join();
}
