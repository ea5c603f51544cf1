"""Checks the selection kernels on a GPU against the eager reference, and times them beside the release.

    python -m rediprune.export.bench.gpu.gpu_check --json selection-kernel.json --markdown selection-kernel.md

Needs a GPU, torch with CUDA, and cuda-core. Exit 0: all indices as they must be; 1: a difference; 2: no usable GPU.
"""

import argparse
from collections.abc import Iterator
from typing import Any

import torch

from ....graphs.selection.cuda.launcher import GpuUnavailable, load_kernels
from .gpu_correctness import CHANNELS, check_features, check_greedy, check_odd_shapes, sanitize
from .gpu_report import add_output_options, environment, in_one_line, refuse, table_head, write_report
from .gpu_timing import FLOOR_PATCHES, SHAPES, time_floor, time_selection


def page(result: dict[str, Any]) -> Iterator[str]:
    """The results as Markdown."""
    yield f"""# Selection kernels on a GPU

{in_one_line(result["machine"])}. Written by
`python -m rediprune.export.bench.gpu.gpu_check`: all numbers are of one run, and in the JSON beside this page.
"""
    yield from correctness(result)
    yield from times(result)
    yield from lower_bounds(result)


def correctness(result: dict[str, Any]) -> Iterator[str]:
    """The section on correctness."""
    exact, odd = result["greedy"], result["odd_shapes"]
    yield f"""## Correctness

**Same scores.** The greedy kernel against `max_min_select` on the CPU, on identical float32 S and r: of
{exact["frames"]} frames with 1 to 4096 tokens (random, clustered, duplicated, zero, constant and opposite
features, heavy ties, exclusions; K from 1 to P − 1) **{exact["frames_different"]} differ**.

**Scores** at odd sizes, with zero vectors, scaled by 0.001 to 100, against float64: largest error of S
{odd["similarity_error"]:.1e}, of r {odd["relevance_error"]:.1e}; {odd["asymmetric_entries"]:.0f} entries of S
differ from its transpose.

**From features.** Kept sets at 15 % against a greedy choice in float64 on the same features. Where a route
parts from float64, the gap is how much better the float64 choice scores at the first such pick: a near-tie,
of the order of the scores' errors. Eager float32 parts from float64 in the same way.
"""
    yield table_head(
        "features",
        "kind",
        "tokens",
        "frames",
        "kernels differ",
        "largest gap",
        "error of S",
        "eager differs",
        "largest gap",
        "error of S",
    )
    for r in result["features"]:
        cells = [r["dtype"], r["kind"], r["patches"], r["frames"]]
        for route in (r["kernel"], r["eager"]):
            cells.append(f"{route['frames_different']:.0f}")
            cells += [f"{route[name]:.1e}" for name in ("largest_gap", "similarity_error")]
        yield f"| {' | '.join(map(str, cells))} |"


def times(result: dict[str, Any]) -> Iterator[str]:
    """The section on time."""
    yield f"""
## Time

Microseconds, C = {CHANNELS}, scores and similarity included, medians. «Alone»: a CUDA graph of one call. «In
a row»: one call of ten in a graph, on ten sets of features, taken twice. Eager and release run in torch on
the same GPU in the same run; the release's algorithm is restated, works in the features' precision and takes
one frame after another, as it does there. The ratio is that of the release to the kernels alone.
"""
    yield table_head(
        "shape",
        "features",
        "target",
        "**alone**",
        "in a row",
        "again",
        "of it scores",
        "of it greedy",
        "eager",
        "eager in a graph",
        "release",
        "release / alone",
    )
    for r in result["times"]:
        kernels = [r[f"{name}_us"] for name in ("selection", "selection_again", "scores", "greedy")]
        others = [r[f"{name}_us"] for name in ("eager", "eager_graph", "release")]
        yield (
            f"| {r['frames']} × {r['patches']}, K = {r['kept']} | {r['dtype']} | ≤ {r['target_us']:.0f} "
            f"| **{r['one_replay_us']:.1f}** | {' | '.join(f'{t:.1f}' for t in kernels)} "
            f"| {' | '.join(f'{t:.0f}' for t in others)} | {r['times_faster']:.0f} × |"
        )


def lower_bounds(result: dict[str, Any]) -> Iterator[str]:
    """The section on what cannot be avoided."""
    floor = result["floor"]
    yield f"""
## Against the floor

The K picks depend on one another: each fetches the row of S that the pick before it names, and finds an
argmax over the frame. A dependent load from L2 takes {floor["l2_latency_ns"]:.0f} ns on this GPU, so no
version that leaves S in L2 can take less per pick. The Gram matrix is one batched product; cuBLAS's time for
it is below. Its bfloat16 result is rounded to bfloat16, which the selection may not do.
"""
    yield table_head(
        "tokens", "frames", "K = 1: launch, argmax, output", "each further pick", "half of the tokens kept"
    )
    for patches in FLOOR_PATCHES:
        f = floor[f"patches_{patches}"]
        yield (
            f"| {patches} | {f['frames']} | {f['one_pick_us']:.1f} µs "
            f"| {f['further_pick_us'] * 1e3:.0f} ns | {f['half_kept_us']:.0f} µs |"
        )
    for frames, patches, count, _ in SHAPES:
        fetches = (count - 1) * floor["l2_latency_ns"] / 1e3
        grams = [floor[f"gram_{patches}_{dtype}_us"] for dtype in ("bfloat16", "float32")]
        yield f"""
{frames} × {patches}, K = {count}: {count - 1} dependent fetches take {fetches:.1f} µs; cuBLAS's Gram matrices
{grams[0]:.1f} µs in bfloat16, {grams[1]:.1f} µs in float32."""


def main() -> int:
    """Run everything and write the results; the exit code says whether all indices were as they must be."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_output_options(parser)
    parser.add_argument("--frames", type=int, default=10_000, help="number of frames to check exactly (default 10000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random features (default 0)")
    parser.add_argument("--sanitize", action="store_true", help="do only a short run, for compute-sanitizer")
    arguments = parser.parse_args()
    try:
        load_kernels()
    except GpuUnavailable as error:
        return refuse(error)
    torch.backends.cuda.matmul.allow_tf32 = False
    random = torch.Generator("cuda").manual_seed(arguments.seed)
    if arguments.sanitize:
        sanitize(random)
        return 0
    result = {
        "machine": environment("cuda-core"),
        "greedy": check_greedy(random, arguments.frames),
        "odd_shapes": check_odd_shapes(random),
        "features": check_features(random, max(64, arguments.frames // 10)),
        "times": time_selection(random),
        "floor": time_floor(random),
    }
    write_report(result, page(result), arguments)
    return int(result["greedy"]["frames_different"] > 0 or result["odd_shapes"]["asymmetric_entries"] > 0)


if __name__ == "__main__":
    raise SystemExit(main())
