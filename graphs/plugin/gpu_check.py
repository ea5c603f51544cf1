"""Checks the selection kernels on a GPU against the eager reference, and times them beside the release's algorithm.

    python -m rediprune.graphs.plugin.gpu_check --json selection-kernel.json --markdown selection-kernel.md

Needs a GPU, torch with CUDA and cuda-core. Exit 0: all indices as they must be. 1: a difference.
"""

import argparse
import datetime
import json
import platform
import statistics
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..keep import num_kept
from ..selection import max_min_select, score_tokens, select_tokens
from .launcher import MAX_PATCHES, load_kernels
from .tensors import max_min_select_cuda, score_tokens_cuda, select_tokens_cuda

SHAPES = ((8, 144, 22), (8, 576, 86))  # frames, patches, kept
TARGETS_US = {144: 60.0, 576: 250.0}
CHANNELS = 1024
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
KINDS = ("random", "clustered", "duplicates", "zeros", "constant", "opposite", "ties", "excluded")


def features(kind: str, frames: int, patches: int, channels: int, random: torch.Generator) -> Tensor:
    """Random features [F, P, C] float32 of one kind; the kinds after "clustered" make ties and zero vectors."""
    device = random.device
    x = torch.randn(frames, patches, channels, device=device, generator=random)
    if kind == "clustered":  # neighbouring patches of real images are alike
        centres = torch.randn(frames, 8, channels, device=device, generator=random)
        choice = torch.randint(0, 8, (patches,), device=device, generator=random)
        return centres[:, choice] + 0.2 * x
    if kind == "duplicates":
        return x[:, torch.randint(0, -(-patches // 4), (patches,), device=device, generator=random)]
    if kind == "zeros":
        return x * (torch.rand(frames, patches, 1, device=device, generator=random) > 0.3)
    if kind == "constant":
        return torch.ones_like(x)
    if kind == "opposite":
        return x[:, :1] * torch.where(torch.rand(frames, patches, 1, device=device, generator=random) > 0.5, 1.0, -1.0)
    return x


def check_exact(random: torch.Generator, frames: int) -> dict[str, Any]:
    """The greedy kernel against `max_min_select` on the CPU, on identical float32 scores: every index must be equal."""
    small = [(patches, 64) for patches in (1, 2, 31, 32, 33, 100, 144, 196, 256)]
    large = [(576, 8), (577, 4), (1024, 2), (1025, 2), (2304, 1), (4096, 1)]
    checked = different = rounds = 0
    while checked < frames:
        for patches, batch in small + (large if rounds == 0 else []):
            for turn, kind in enumerate(KINDS, start=rounds):
                x = features(kind, batch, patches, 64, random)
                relevance, similarity = score_tokens(x, torch.randn(64, device=x.device, generator=random))
                if kind == "ties":
                    similarity, relevance = (similarity * 8).round() / 8, (relevance * 8).round() / 8
                counts = {1, num_kept(patches, 0.15), patches // 2, patches - 1} - {0, patches} or {1}
                count = sorted(counts)[turn % len(counts)]
                if kind == "excluded":
                    order = torch.rand(batch, patches, device=x.device, generator=random).argsort(dim=1)
                    relevance = relevance.masked_fill(order >= max(count, patches // 2), float("-inf"))
                alpha = (0.5, 0.0, 2.0)[turn % 3]
                picked = max_min_select_cuda(similarity, relevance, count, alpha).cpu()
                expected = max_min_select(similarity.cpu(), relevance.cpu(), count, alpha)
                different += int((picked != expected).any(dim=1).sum())
                checked += batch
        rounds += 1
    return {"frames": checked, "frames_different": different}


def first_divergence(relevance: Tensor, similarity: Tensor, picked: Tensor, alpha: float) -> Tensor:
    """Float64 score gap [F] at the first pick where the exact greedy choice leaves the set `picked`; 0 where never.

    relevance [F, P] and similarity [F, P, P] in float64. The gap is between the exact best and the best of `picked`.
    """
    frames, patches = relevance.shape
    member = torch.zeros(frames, patches, dtype=torch.bool, device=picked.device).scatter_(1, picked, True)
    gap = torch.zeros(frames, dtype=torch.float64, device=picked.device)
    nearest = torch.full_like(relevance, float("inf"))
    score = relevance
    for step in range(picked.shape[1]):
        best, pick = score.max(dim=1)
        among = score.masked_fill(~member, float("-inf")).amax(dim=1)
        gap = torch.where((gap == 0) & (best > among), best - among, gap)
        if step + 1 < picked.shape[1]:
            row = similarity.gather(1, pick[:, None, None].expand(-1, -1, patches))[:, 0]
            nearest = torch.minimum(nearest, 1 - row).scatter(1, pick[:, None], float("-inf"))
            score = nearest + alpha * relevance
    return gap


def check_features(random: torch.Generator, frames: int, alpha: float = 0.5) -> list[dict[str, Any]]:
    """Selection from features against float64, beside eager float32: agreement, score errors, gaps where they part."""
    rows = []
    for dtype in DTYPES:
        for kind in ("random", "clustered"):
            for patches in (144, 576):
                batch, total = (64, frames) if patches == 144 else (16, max(16, frames // 4))
                tally = {"kernel": [0, 0.0, 0.0, 0.0], "eager": [0, 0.0, 0.0, 0.0]}
                done = 0
                while done < total:
                    x = features(kind, batch, patches, CHANNELS, random).to(dtype)
                    query = torch.randn(CHANNELS, device=x.device, generator=random)
                    unit = F.normalize(x.double(), dim=-1, eps=1e-12)
                    exact_r = unit @ F.normalize(query.double(), dim=0, eps=1e-12)
                    exact_s = unit @ unit.transpose(1, 2)
                    count = num_kept(patches, 0.15)
                    for name, score, select in (
                        ("kernel", score_tokens_cuda, max_min_select_cuda),
                        ("eager", score_tokens, max_min_select),
                    ):
                        relevance, similarity = score(x, query)
                        picked = select(similarity, relevance, count, alpha)
                        gap = first_divergence(exact_r, exact_s, picked, alpha)
                        t = tally[name]
                        t[0] += int((gap > 0).sum())
                        t[1] = max(t[1], float(gap.max()))
                        t[2] = max(t[2], float((similarity - exact_s).abs().max()))
                        t[3] = max(t[3], float((relevance - exact_r).abs().max()))
                    done += batch
                keys = ("frames_different", "largest_gap", "similarity_error", "relevance_error")
                rows.append(
                    {"dtype": str(dtype)[6:], "kind": kind, "patches": patches, "frames": done}
                    | {name: dict(zip(keys, t, strict=True)) for name, t in tally.items()}
                )
    return rows


def check_odd_shapes(random: torch.Generator) -> dict[str, float]:
    """Largest error of similarity and relevance against float64 over odd sizes, zero vectors and large values."""
    worst = {"similarity_error": 0.0, "relevance_error": 0.0}
    asymmetric = 0
    for dtype in DTYPES:
        for frames, patches, channels in ((1, 1, 1), (2, 3, 7), (3, 65, 33), (1, 64, 8), (2, 129, 1152), (5, 63, 40)):
            for scale in (1.0, 100.0, 1e-3):
                x = (features("zeros", frames, patches, channels, random) * scale).to(dtype)
                query = torch.randn(channels, device=x.device, generator=random)
                unit = F.normalize(x.double(), dim=-1, eps=1e-12)
                relevance, similarity = score_tokens_cuda(x, query)
                exact_r = unit @ F.normalize(query.double(), dim=0, eps=1e-12)
                exact_s = unit @ unit.transpose(1, 2)
                worst["similarity_error"] = max(worst["similarity_error"], float((similarity - exact_s).abs().max()))
                worst["relevance_error"] = max(worst["relevance_error"], float((relevance - exact_r).abs().max()))
                asymmetric += int((similarity != similarity.transpose(1, 2)).sum())
    return worst | {"asymmetric_entries": asymmetric}


def release_select(features: Tensor, query: Tensor, count: int, alpha: float) -> Tensor:
    """The release's algorithm for one frame [P, C] (τ = 0), restated: the minimum is taken anew over all picks."""
    patches = features.shape[0]
    unit = F.normalize(features, dim=1)
    relevance = unit @ F.normalize(query, dim=0)
    dist = 1.0 - unit @ unit.T
    picks = torch.empty(count, dtype=torch.int64, device=features.device)
    picks[0] = relevance.argmax()
    for k in range(1, count):
        score = dist[picks[:k]].amin(dim=0) + alpha * relevance
        free = torch.ones(patches, dtype=torch.bool, device=features.device)
        free[picks[:k]] = False
        score[~free] = float("-inf")
        picks[k] = score.argmax()
    return picks.sort().values


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
    """Median time of one of `calls` in microseconds: all captured in one CUDA graph, its replays timed."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = [call() for call in calls]
    median = median_us(graph.replay, repeats) / len(calls)
    del kept
    return median


def time_selection(random: torch.Generator) -> list[dict[str, Any]]:
    """Times in microseconds for every shape and feature type, similarity included; inputs rotate over 10 sets."""
    rows = []
    for frames, patches, count in SHAPES:
        for dtype in DTYPES:
            sets = [features("clustered", frames, patches, CHANNELS, random).to(dtype) for _ in range(10)]
            query = torch.randn(CHANNELS, device=sets[0].device, generator=random)
            scores = [score_tokens_cuda(x, query) for x in sets]
            row: dict[str, Any] = {
                "frames": frames,
                "patches": patches,
                "kept": count,
                "dtype": str(dtype)[6:],
                "target_us": TARGETS_US[patches],
                "selection_us": graph_us([lambda x=x: select_tokens_cuda(x, query, count) for x in sets]),
                "selection_again_us": graph_us([lambda x=x: select_tokens_cuda(x, query, count) for x in sets]),
                "one_replay_us": graph_us([lambda x=sets[0]: select_tokens_cuda(x, query, count)]),
                "scores_us": graph_us([lambda x=x: score_tokens_cuda(x, query) for x in sets]),
                "greedy_us": graph_us([lambda s=s: max_min_select_cuda(s[1], s[0], count, 0.5) for s in scores]),
                "eager_us": median_us(lambda x=sets[0]: select_tokens(x, query, count), 10),
                "eager_graph_us": graph_us([lambda x=sets[0]: select_tokens(x, query, count)]),
            }
            q = query.to(dtype)
            row["release_us"] = median_us(
                lambda x=sets[0], q=q: [release_select(frame, q, count, 0.5) for frame in x], 5
            )
            row["times_faster"] = row["release_us"] / row["selection_us"]
            rows.append(row)
    return rows


def time_floor(random: torch.Generator) -> dict[str, Any]:
    """What the greedy kernel's time is made of: a launch, the cost of a pick (slope over K), an L2 fetch, a bf16 Gram."""
    device = random.device
    floor: dict[str, Any] = {"l2_latency_ns": l2_latency_ns(random)}
    for patches in (144, 576, 1024, 2304, 4096):
        frames = 8 if patches <= 1024 else 1
        x = features("clustered", frames, patches, 256, random)
        relevance, similarity = score_tokens(x, torch.randn(256, device=device, generator=random))
        low, high = patches // 8, patches // 2
        times = {
            k: graph_us([lambda k=k: max_min_select_cuda(similarity, relevance, k, 0.5)] * 10) for k in (1, low, high)
        }
        floor[f"patches_{patches}"] = {
            "one_pick_us": times[1],
            "us_per_further_pick": (times[high] - times[low]) / (high - low),
            "half_kept_us": times[high],
        }
    for frames, patches, _ in SHAPES:
        x = torch.randn(frames, patches, CHANNELS, device=device, dtype=torch.bfloat16, generator=random)
        y = x.float()
        floor[f"gram_{patches}_bfloat16_cublas_us"] = graph_us([lambda x=x: x @ x.transpose(1, 2)] * 10)
        floor[f"gram_{patches}_float32_cublas_us"] = graph_us([lambda y=y: y @ y.transpose(1, 2)] * 10)
    return floor


def l2_latency_ns(random: torch.Generator) -> float:
    """Time of one dependent load from L2: one thread follows a random cycle of 4 MiB."""
    from cuda.core import Program, ProgramOptions  # pyright: ignore[reportMissingImports]

    source = """extern "C" __global__ void chase(const int* next, int steps, int* out) {
        int at = 0;
        for (int i = 0; i < steps; ++i) at = __ldcg(next + at);
        *out = at;
    }"""
    import ctypes

    kernels = load_kernels()
    capability = torch.cuda.get_device_capability()
    options = ProgramOptions(std="c++17", arch=f"sm_{capability[0]}{capability[1]}")
    kernels._modules["chase"] = Program(source, "c++", options).compile("cubin")
    order = torch.randperm(1 << 20, device=random.device, generator=random)
    following = torch.empty_like(order, dtype=torch.int32)
    following[order] = order.roll(-1).int()
    out = torch.zeros(1, dtype=torch.int32, device=random.device)
    following.sum()  # brings it into L2

    def chase(steps: int) -> None:
        stream = torch.cuda.current_stream().cuda_stream
        arguments = (following.data_ptr(), ctypes.c_int32(steps), out.data_ptr())
        kernels._launch("chase", "chase", (1, 1, 1), 1, stream, arguments)

    return (median_us(lambda: chase(60000), 5) - median_us(lambda: chase(10000), 5)) / 50000 * 1e3


def sanitize(random: torch.Generator) -> None:
    """A short run over all kernels and odd sizes, for compute-sanitizer (with PYTORCH_NO_CUDA_MEMORY_CACHING=1)."""
    for dtype in DTYPES:
        for patches, channels in ((1, 8), (33, 40), (65, 33), (144, 64), (577, 32)):
            x = torch.randn(2, patches, channels, device=random.device, generator=random).to(dtype)
            query = torch.randn(channels, device=random.device, generator=random)
            for count in {1, -(-patches // 7), patches}:
                select_tokens_cuda(x, query, count)
    similarity = torch.eye(MAX_PATCHES // 4, device=random.device)[None]
    max_min_select_cuda(similarity, similarity[:, 0].clone(), 5, 0.5)
    torch.cuda.synchronize()


def machine() -> dict[str, str]:
    """What the numbers were taken on."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    core = __import__("cuda.core", fromlist=["__version__"])
    return {
        "date": datetime.date.today().isoformat(),
        "gpu": torch.cuda.get_device_name(),
        "driver": subprocess.run(query, capture_output=True, text=True).stdout.strip(),
        "cuda": torch.version.cuda or "",
        "torch": torch.__version__,
        "cuda_core": core.__version__,
        "python": platform.python_version(),
    }


def markdown(result: dict[str, Any]) -> Iterator[str]:
    """The page, line by line."""
    m = result["machine"]
    yield "# Selection kernel on a GPU"
    yield ""
    yield (
        f"{m['date']}, {m['gpu']}, driver {m['driver']}, CUDA {m['cuda']}, torch {m['torch']}, "
        f"cuda-core {m['cuda_core']}. Written by `python -m rediprune.graphs.plugin.gpu_check`; "
        "all numbers from one run, in the JSON beside this page."
    )
    exact = result["exact"]
    yield ""
    yield "## Correctness"
    yield ""
    yield (
        f"**Same scores.** Greedy kernel against `max_min_select` on the CPU, identical float32 S and r, "
        f"{exact['frames']} frames of 1 to 4096 tokens (random, clustered, duplicated, zero, constant, opposite, "
        f"heavily tied, with exclusions; K from 1 to P − 1): **{exact['frames_different']} differ**."
    )
    odd = result["odd_shapes"]
    yield ""
    yield (
        f"Scores at odd sizes, with zero vectors and scales 0.001 to 100: largest error of S "
        f"{odd['similarity_error']:.1e}, of r {odd['relevance_error']:.1e}; "
        f"entries where S differs from its transpose: {odd['asymmetric_entries']}."
    )
    yield ""
    yield (
        "**From features.** Kept sets (15 %) against a float64 greedy choice on the same features. Where a float32 "
        "route parts from float64, the gap is the difference of the two float64 scores at the first such pick: a "
        "near-tie, of the size of the score errors. Eager float32 parts from float64 as well."
    )
    yield ""
    yield "| features | kind | tokens | frames | kernel: differ | largest gap | error of S | eager: differ | largest gap | error of S |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for r in result["features"]:
        k, e = r["kernel"], r["eager"]
        yield (
            f"| {r['dtype']} | {r['kind']} | {r['patches']} | {r['frames']} "
            f"| {k['frames_different']} | {k['largest_gap']:.1e} | {k['similarity_error']:.1e} "
            f"| {e['frames_different']} | {e['largest_gap']:.1e} | {e['similarity_error']:.1e} |"
        )
    yield ""
    yield "## Time"
    yield ""
    yield (
        f"Microseconds, C = {CHANNELS}, similarity included, medians of CUDA-graph replays (ten calls on ten input "
        "sets in one graph; «one» is a graph of a single call). Eager and release: torch on the same GPU in the same "
        "run, timed by events without a graph; the release's algorithm is restated, one frame after another as there."
    )
    yield ""
    yield "| shape | features | selection | again | one | of it scores | of it greedy | target | eager | eager, as a graph | release | release / selection |"
    yield "|---|---|---|---|---|---|---|---|---|---|---|---|"
    for r in result["times"]:
        yield (
            f"| {r['frames']} × {r['patches']}, K = {r['kept']} | {r['dtype']} | **{r['selection_us']:.1f}** "
            f"| {r['selection_again_us']:.1f} | {r['one_replay_us']:.1f} | {r['scores_us']:.1f} | {r['greedy_us']:.1f} "
            f"| ≤ {r['target_us']:.0f} | {r['eager_us']:.0f} | {r['eager_graph_us']:.0f} | {r['release_us']:.0f} "
            f"| {r['times_faster']:.0f}× |"
        )
    floor = result["floor"]
    yield ""
    yield "## Against the floor"
    yield ""
    yield (
        "K picks depend on one another: each must fetch a row of S that the pick before it names, and find an argmax "
        f"over the frame. One dependent load from L2 takes {floor['l2_latency_ns']:.0f} ns here, so no version that "
        "keeps S in L2 can take less per pick. The Gram matrix is one batched product; cuBLAS's time for it stands beside."
    )
    yield ""
    yield "| tokens | K = 1 (launch and output) | per further pick | half kept |"
    yield "|---|---|---|---|"
    for patches in (144, 576, 1024, 2304, 4096):
        f = floor[f"patches_{patches}"]
        yield (
            f"| {patches} | {f['one_pick_us']:.1f} µs | {f['us_per_further_pick'] * 1e3:.0f} ns "
            f"| {f['half_kept_us']:.0f} µs |"
        )
    for frames, patches, count in SHAPES:
        picks = (count - 1) * floor["l2_latency_ns"] / 1e3
        yield ""
        yield (
            f"{frames} × {patches}, K = {count}: {count - 1} fetches make {picks:.0f} µs; cuBLAS's Gram takes "
            f"{floor[f'gram_{patches}_bfloat16_cublas_us']:.1f} µs in bfloat16 (with bfloat16 output) and "
            f"{floor[f'gram_{patches}_float32_cublas_us']:.1f} µs in float32."
        )


def main() -> int:
    """Run everything, write the JSON and the page; the exit code says whether all indices were as they must be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, help="write all numbers here")
    parser.add_argument("--markdown", type=Path, help="write the page here")
    parser.add_argument("--frames", type=int, default=10_000, help="frames of the exact check (default 10000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sanitize", action="store_true", help="only a short run, for compute-sanitizer")
    arguments = parser.parse_args()
    load_kernels()
    torch.backends.cuda.matmul.allow_tf32 = False
    random = torch.Generator("cuda").manual_seed(arguments.seed)
    if arguments.sanitize:
        sanitize(random)
        return 0
    result = {
        "machine": machine(),
        "exact": check_exact(random, arguments.frames),
        "odd_shapes": check_odd_shapes(random),
        "features": check_features(random, max(64, arguments.frames // 10)),
        "times": time_selection(random),
        "floor": time_floor(random),
    }
    page = "\n".join(markdown(result)) + "\n"
    print(page)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if arguments.markdown:
        arguments.markdown.write_text(page, encoding="utf-8")
    return int(result["exact"]["frames_different"] > 0 or result["odd_shapes"]["asymmetric_entries"] > 0)


if __name__ == "__main__":
    raise SystemExit(main())
