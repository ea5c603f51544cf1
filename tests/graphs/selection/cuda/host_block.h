// The words of CUDA on the CPU: the threads of a block are fibers, which take turns at every barrier. Included before the
// kernels' code.
#pragma once

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
#define __cosf cosf

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

static inline void wait_for_the_block() {
    Block::current->wait();
}

static inline float __shfl_xor_sync(unsigned, float value, int step) {
    float* slots = Block::current->slots;
    slots[threadIdx.x] = value;
    wait_for_the_block();
    value = slots[threadIdx.x ^ step];
    wait_for_the_block();
    return value;
}

static inline void __syncthreads() {
    wait_for_the_block();
}

// Fibers are not interrupted.
static inline unsigned long long atomicMax(unsigned long long* address, unsigned long long value) {
    const unsigned long long before = *address;
    if (value > before) *address = value;
    return before;
}
