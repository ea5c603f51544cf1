// The greedy max-min kernel: one launch for all frames, one thread block per frame.
//
// K picks depend on one another, so the floor is K − 1 times the latency of one step: fetch the row of S that the last
// pick names (it lies in L2), update the running minimum, find the argmax of the block. On an H200 a dependent fetch
// from L2 takes 145 ns and a whole step 410 ns with 144 tokens, 470 with 576 (docs/measurements/selection-kernel.md);
// the rest is the argmax: four warp reductions around one barrier, which two alternating rows of shared memory spare
// a second one. One token per thread was fastest, from 1 to 8 tried. Several blocks per frame would put a cluster
// barrier into every step.
//
// No includes, for NVRTC. Needs sm_80 (redux.sync).
#include "greedy.cuh"

namespace rediprune {

constexpr int warp_size = 32;
constexpr int max_warps = 32;  // a block has at most 1024 threads
constexpr int max_patches = 8192;

__device__ inline candidate_t warp_best(candidate_t mine) {
    constexpr unsigned everyone = 0xffffffffu;
    const unsigned score = unsigned(mine >> 32);
    const unsigned top = __reduce_max_sync(everyone, score);
    const unsigned low = __reduce_max_sync(everyone, score == top ? unsigned(mine) : 0u);
    return candidate_t(top) << 32 | low;
}

// A thread block, a multiple of 32 threads in x.
class BlockTeam {
  public:
    __device__ BlockTeam(candidate_t (*rows)[max_warps]) : rows_(rows) {}
    __device__ int rank() const { return threadIdx.x; }
    __device__ int size() const { return blockDim.x; }
    __device__ void sync() const { __syncthreads(); }

    // The rows alternate: a warp writes a row again only after the barrier of the call in between, which every
    // warp reaches only after having read that row.
    __device__ candidate_t best(candidate_t mine) {
        if (size() == warp_size) {
            __syncwarp();
            return warp_best(mine);
        }
        candidate_t* row = rows_[turn_];
        turn_ ^= 1;
        const int lane = rank() % warp_size;
        mine = warp_best(mine);
        if (lane == 0) row[rank() / warp_size] = mine;
        sync();
        return warp_best(lane < size() / warp_size ? row[lane] : 0);
    }

  private:
    candidate_t (*rows_)[max_warps];
    int turn_ = 0;
};

}  // namespace rediprune

// similarity [frames, patches, patches], relevance [frames, patches] float32; indices [frames, count] int64, ascending.
// Grid: frames. Block: a multiple of 32, at least patches / 8. count ≤ patches ≤ max_patches.
// α is read from device memory where a graph feeds it as a tensor, else (alpha_tensor null) taken from the argument.
extern "C" __global__ void __launch_bounds__(1024, 1)
maxmin_select(const float* similarity, const float* relevance, const float* alpha_tensor, float alpha, int patches,
              int count, long long* indices) {
    __shared__ rediprune::candidate_t rows[2][rediprune::max_warps];
    __shared__ unsigned bitmap[rediprune::max_patches / 32];
    const long long frame = blockIdx.x;
    similarity += frame * patches * patches;
    relevance += frame * patches;
    indices += frame * count;
    if (alpha_tensor) alpha = *alpha_tensor;
    rediprune::BlockTeam team(rows);
    const int items = (patches + blockDim.x - 1) / blockDim.x;
    if (items <= 1)
        rediprune::greedy_max_min<1>(team, bitmap, similarity, relevance, alpha, patches, count, indices);
    else if (items <= 2)
        rediprune::greedy_max_min<2>(team, bitmap, similarity, relevance, alpha, patches, count, indices);
    else if (items <= 4)
        rediprune::greedy_max_min<4>(team, bitmap, similarity, relevance, alpha, patches, count, indices);
    else
        rediprune::greedy_max_min<8>(team, bitmap, similarity, relevance, alpha, patches, count, indices);
}
