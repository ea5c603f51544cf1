"""Times of the selection kernels, of eager selection and of the release on one GPU, and the floor."""

import ctypes
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from ....graphs.selection.as_released import release_select
from ....graphs.selection.cuda.launcher import cuda_core
from ....graphs.selection.cuda.tensors import max_min_select_cuda, score_tokens_cuda, select_tokens_cuda
from ....graphs.selection.reference import score_tokens, select_tokens
from .gpu_correctness import CHANNELS, DTYPES, features

SHAPES = ((8, 144, 22, 60.0), (8, 576, 86, 250.0))  # frames, patches, kept, target in µs
FLOOR_PATCHES = (144, 576, 1024, 2304, 4096)


def median_us(call: Callable[[], object], repeats: int) -> float:
    """Median time of one call in microseconds, by CUDA events, after a warm-up."""
    call()
    torch.cuda.synchronize()
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3)
    return statistics.median(times)


def graph_us(calls: list[Callable[[], object]], repeats: int = 50) -> float:
    """Median time of one of `calls` in microseconds: all in a row in one CUDA graph, replayed."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = [call() for call in calls]  # kept alive, so that no two calls write the same memory
    median = median_us(graph.replay, repeats) / len(calls)
    del outputs
    return median


def time_selection(random: torch.Generator) -> list[dict[str, Any]]:
    """Microseconds for every shape and feature type, similarity included; inputs rotate over ten sets."""
    return [
        {"frames": frames, "patches": patches, "kept": count, "dtype": str(dtype)[6:], "target_us": target}
        | _time_one(frames, patches, count, dtype, random)
        for frames, patches, count, target in SHAPES
        for dtype in DTYPES
    ]


def _time_one(frames: int, patches: int, count: int, dtype: torch.dtype, random: torch.Generator) -> dict[str, float]:
    sets = [features("clustered", frames, patches, CHANNELS, random).to(dtype) for _ in range(10)]
    query = torch.randn(CHANNELS, device=random.device, generator=random)
    scores = [score_tokens_cuda(x, query) for x in sets]
    select: list[Callable[[], object]] = [partial(select_tokens_cuda, x, query, count) for x in sets]
    eager = partial(select_tokens, sets[0], query, count)
    times = {
        "selection_us": graph_us(select),
        "selection_again_us": graph_us(select),
        "one_replay_us": graph_us(select[:1]),
        "scores_us": graph_us([partial(score_tokens_cuda, x, query) for x in sets]),
        "greedy_us": graph_us([partial(max_min_select_cuda, s, r, count, 0.5) for r, s in scores]),
        "eager_us": median_us(eager, 10),
        "eager_graph_us": graph_us([eager]),
        "release_us": median_us(partial(release_select, sets[0], query.to(dtype), count, 0.5), 5),
    }
    return times | {"times_faster": times["release_us"] / times["one_replay_us"]}


def time_floor(random: torch.Generator) -> dict[str, Any]:
    """What the time is made of: a launch, a further pick (slope over K), an L2 fetch, a Gram matrix."""
    floor: dict[str, Any] = {"l2_latency_ns": l2_latency_ns(random)}
    for patches in FLOOR_PATCHES:
        x = features("clustered", 8 if patches <= 1024 else 1, patches, 256, random)
        relevance, similarity = score_tokens(x, torch.randn(256, device=x.device, generator=random))
        times = {
            count: graph_us([partial(max_min_select_cuda, similarity, relevance, count, 0.5)] * 10)
            for count in (1, patches // 8, patches // 2)
        }
        further = (times[patches // 2] - times[patches // 8]) / (patches // 2 - patches // 8)
        floor[f"patches_{patches}"] = {
            "frames": x.shape[0],
            "one_pick_us": times[1],
            "further_pick_us": further,
            "half_kept_us": times[patches // 2],
        }
    for frames, patches, _, _ in SHAPES:
        for dtype in (torch.bfloat16, torch.float32):
            x = torch.randn(frames, patches, CHANNELS, device=random.device, generator=random).to(dtype)
            gram = partial(torch.matmul, x, x.transpose(1, 2))
            floor[f"gram_{patches}_{str(dtype)[6:]}_us"] = graph_us([gram] * 10)
    return floor


def l2_latency_ns(random: torch.Generator) -> float:
    """Time of one dependent load from L2: one thread follows a random cycle through 4 MiB."""
    core = cuda_core()
    source = """extern "C" __global__ void chase(const int* next, int steps, int* out) {
        int at = 0;
        for (int i = 0; i < steps; ++i) at = __ldcg(next + at);
        *out = at;
    }"""
    device = core.Device()
    device.set_current()
    options = core.ProgramOptions(std="c++17", arch=f"sm_{device.arch}")
    chase = core.Program(source, "c++", options).compile("cubin").get_kernel("chase")
    order = torch.randperm(1 << 20, device=random.device, generator=random)
    following = torch.empty_like(order, dtype=torch.int32)
    following[order] = order.roll(-1).int()
    end = torch.zeros(1, dtype=torch.int32, device=random.device)
    stream = core.Stream.from_handle(torch.cuda.current_stream().cuda_stream)
    one = core.LaunchConfig(grid=1, block=1)

    def follow(steps: int) -> None:
        core.launch(stream, one, chase, following.data_ptr(), ctypes.c_int32(steps), end.data_ptr())

    return (median_us(partial(follow, 60_000), 5) - median_us(partial(follow, 10_000), 5)) / 50_000 * 1e3
