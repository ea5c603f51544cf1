// The score kernels of float32 features on the CPU: the threads of a block are fibers, which take turns at every barrier.
#include <math.h>
#include <ucontext.h>

#include <functional>
#include <vector>

struct Place {
    unsigned x, y, z;
};
static Place blockIdx, blockDim, threadIdx;
struct float4 {
    float x, y, z, w;
};
#define __device__
#define __shared__ static
#define __align__(bytes) __attribute__((aligned(bytes)))
static void wait_for_the_block();
static float __shfl_xor_sync(unsigned, float value, int step);
static void __syncthreads() { wait_for_the_block(); }
#define __cosf cosf

#include "scores.cuh"

namespace {

class Block {
  public:
    explicit Block(unsigned threads) : fibers_(threads), stacks_(threads, std::vector<char>(1 << 16)) {}

    // Runs the kernel in every thread of one block.
    void run(Place place, const std::function<void()>& kernel) {
        kernel_ = &kernel;
        current = this;
        blockIdx = place;
        blockDim = {unsigned(fibers_.size()), 1, 1};
        running_ = std::vector<bool>(fibers_.size(), true);
        for (unsigned thread = 0; thread < fibers_.size(); ++thread) {
            getcontext(&fibers_[thread]);
            fibers_[thread].uc_stack.ss_sp = stacks_[thread].data();
            fibers_[thread].uc_stack.ss_size = stacks_[thread].size();
            fibers_[thread].uc_link = &main_;
            makecontext(&fibers_[thread], enter, 0);
        }
        for (bool any = true; any;) {
            any = false;
            for (unsigned thread = 0; thread < fibers_.size(); ++thread) {
                if (!running_[thread]) continue;
                any = true;
                threadIdx = {thread, 0, 0};
                swapcontext(&main_, &fibers_[thread]);
            }
        }
    }

    void wait() { swapcontext(&fibers_[threadIdx.x], &main_); }

    static Block* current;
    float slots[1024];

  private:
    static void enter() {
        (*current->kernel_)();
        current->running_[threadIdx.x] = false;
    }

    std::vector<ucontext_t> fibers_;
    std::vector<std::vector<char>> stacks_;
    std::vector<bool> running_;
    ucontext_t main_;
    const std::function<void()>* kernel_ = nullptr;
};
Block* Block::current = nullptr;

}  // namespace

static void wait_for_the_block() {
    Block::current->wait();
}

static float __shfl_xor_sync(unsigned, float value, int step) {
    float* slots = Block::current->slots;
    slots[threadIdx.x] = value;
    wait_for_the_block();
    value = slots[threadIdx.x ^ step];
    wait_for_the_block();
    return value;
}

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
