"""The measurements that want a GPU, in one go: is every backend right, and how long is it to the first token?

    rediprune build BUNDLE --backend tensorrt
    python -m rediprune.export.bench.gpu.gpu_measurements BUNDLE --json gpu-sessions.json --markdown gpu-sessions.md

Every backend is validated against eager PyTorch, then asked about one picture at each keep ratio. Contenders take turns;
beside them, in the same run, eager transformers on the same GPU, unpruned and with the release's selection. A backend
that does not run here is listed with its reason. The last line of stdout is the JSON document. Exit code 1: a backend
differs from eager PyTorch; 2: none ran.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnxruntime
import torch

from ....calibration.evaluation.scores import tokens_alike
from ....runtime.backends.eager_torch import checkpoint_of
from ....runtime.backends.session import open_session
from ....runtime.bundle import Bundle
from ....runtime.errors import RedipruneError
from ....runtime.media.processor import load_image
from ....runtime.pipeline import Pipeline
from ....runtime.timing import TIMED_STAGES
from ...validate.sample_media import sample_picture
from ...validate.validate import validate
from ..peers.eager_peer import Eager
from .gpu_report import add_output_options, environment, in_one_line, write_report

QUESTION = "Look at the picture closely and say in one sentence what is left of the person, and in which colours it is."
KEEPS = (1.0, 0.25, 0.15, 0.10)
KERNEL = "kernel"
BACKENDS = ("tensorrt", "tensorrt-rtx", "ort-cuda", KERNEL)
WARM_UP, TOKENS = 3, 33
PACKAGES = ("rediprune", "tensorrt", "tensorrt-rtx", "cuda-bindings", "cuda-core")

Timings = dict[str, float]
Turn = tuple[Timings, list[int]]  # seconds by stage, and the answer's tokens
Contenders = dict[tuple[str, float], Callable[[], Turn]]  # by name and keep ratio


def measure(folder: Path, backends: list[str], image: Path | None, runs: int, proof: bool = True) -> dict[str, Any]:
    """Validate and time the backends and eager transformers on one picture.

    Args:
        folder: of the bundle.
        backends: names of `BACKENDS`.
        image: the picture; None for a generated one.
        runs: timed runs of every contender.
        proof: whether every backend is validated against eager PyTorch first.

    Returns:
        The JSON document: the machine, every backend's validation, and medians in milliseconds.

    Raises:
        RedipruneError: the bundle cannot be measured: its images are seen in tiles.
    """
    bundle = Bundle.open(folder)
    manifest = bundle.manifest
    if manifest.modalities["image"].tiled:
        raise RedipruneError(f"{manifest.family_name} sees images in tiles, which are not pruned; take another bundle")
    picture = load_image(sample_picture() if image is None else image)
    checks = {backend: check(bundle, backend, proof) for backend in backends}
    contenders = engine_contenders(folder, checks, picture)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = {"fp32": "float32", "fp16": "float16"}[manifest.float_precision]
    peer, baseline = Eager(checkpoint_of(bundle), dtype, device), f"eager on {device}"
    contenders |= {(baseline, keep): eager(peer, picture, keep) for keep in KEEPS}
    return {
        "machine": environment(*PACKAGES) | {"onnxruntime": onnxruntime.__version__},  # the one of two that was loaded
        "model": f"{manifest.family_name}, {manifest.tower} + {manifest.language_model}, {manifest.precision}",
        "visual_tokens": manifest.modalities["image"].patches,
        "runs": runs,
        "checks": checks,
        "milliseconds": take_turns(contenders, baseline, runs),
    }


def engine_contenders(folder: Path, checks: dict[str, dict[str, Any]], picture: Any) -> Contenders:
    """A pipeline of every backend that runs here, at every keep ratio.

    Args:
        folder: of the bundle.
        checks: by backend, what `check` gave.
        picture: as `Pipeline.generate` takes it.
    """
    running = [backend for backend, outcome in checks.items() if "refused" not in outcome]
    # The kernel serves one stage: the first other backend that runs has the rest.
    rest = next((backend for backend in running if backend != KERNEL), None)
    if rest is None:
        return {}
    contenders: Contenders = {}
    for backend in running:
        chosen = {"default": rest, "select": KERNEL} if backend == KERNEL else backend
        name = f"{rest} + kernel" if backend == KERNEL else backend
        pipeline = Pipeline.load(folder, chosen, cache_bytes=0)
        contenders |= {(name, keep): engine(pipeline, picture, keep) for keep in KEEPS}
    return contenders


def take_turns(contenders: Contenders, baseline: str, runs: int) -> list[dict[str, Any]]:
    """Run all contenders in turns.

    Args:
        contenders: what to run.
        baseline: name of the contender whose answers the others' are compared with.
        runs: timed turns, after `WARM_UP`.

    Returns:
        For each contender medians in milliseconds, the slowest first token, and how much of the answer is the
        baseline's.
    """
    timings_of: dict[tuple[str, float], list[Timings]] = {name: [] for name in contenders}
    answers: dict[tuple[str, float], list[int]] = {}
    for turn in range(WARM_UP + runs):
        print(f"turn {turn + 1} of {WARM_UP + runs}", file=sys.stderr)
        for name, contender in contenders.items():
            timings, answers[name] = contender()
            if turn >= WARM_UP:
                timings_of[name].append(timings)
    rows = []
    for (name, keep), timings in timings_of.items():
        medians = {key: statistics.median(t[key] for t in timings) * 1e3 for key in timings[0]}
        slowest = max(t["time_to_first_token"] for t in timings) * 1e3
        as_eager = tokens_alike(answers[name, keep], answers[baseline, keep])
        rows.append({"contender": name, "keep": keep} | medians | {"slowest": slowest, "tokens_as_eager": as_eager})
    return rows


def check(bundle: Bundle, backend: str, proof: bool) -> dict[str, Any]:
    """Whether a backend equals eager PyTorch, or why it does not run here; without proof only the latter."""
    try:
        if not proof:
            open_session(backend, bundle, "select", 0)
            return {}
        report = validate(bundle.folder, backend, stages=["select"] if backend == KERNEL else [])
    except RedipruneError as error:
        return {"refused": str(error)}
    answers = [row.equal for row in report.end_to_end]
    return {"passed": report.passed, "differ": report.failing_stages, "equal_answers": [sum(answers), len(answers)]}


def engine(pipeline: Pipeline, picture: Any, keep: float) -> Callable[[], Turn]:
    """One request to a pipeline, to be run again and again."""

    def run() -> Turn:
        answer = pipeline.generate(QUESTION, [picture], keep=keep, max_new_tokens=TOKENS, temperature=0.0)
        timings = {key: answer.timings[key] for key in (*TIMED_STAGES, "time_to_first_token")}
        return timings | {"token": answer.timings["decode"] / max(len(answer.token_ids) - 1, 1)}, answer.token_ids

    return run


def eager(peer: Eager, picture: Any, keep: float) -> Callable[[], Turn]:
    """One request to eager transformers, to be run again and again."""
    request = {"question": QUESTION, "images": [picture], "videos": [], "frames": 1, "keep": keep, "new_tokens": TOKENS}

    def run() -> Turn:
        seconds = peer.ask(request)
        return {"time_to_first_token": seconds["time_to_first_token"], "token": seconds["decode_token"]}, peer.token_ids

    return run


def page(result: dict[str, Any]) -> Iterator[str]:
    """The results as Markdown."""
    yield f"""# GPU sessions

{in_one_line(result["machine"])}. Written by
`python -m rediprune.export.bench.gpu.gpu_measurements`.

{result["model"]}; one picture of {result["visual_tokens"]} visual tokens. Medians of {result["runs"]}, in turns.

## Against eager PyTorch

| backend | result |
|---|---|"""
    for name, outcome in result["checks"].items():
        if "refused" in outcome:
            result_text = f"does not run here: {outcome['refused']}"
        elif not outcome:
            result_text = "runs; not validated in this run"
        else:
            equal, asked = outcome["equal_answers"]
            result_text = "equal" if outcome["passed"] else f"**differs**: {', '.join(outcome['differ']) or 'answers'}"
            result_text += f"; {equal} of {asked} answers token for token" if asked else ""
        yield f"| {name} | {result_text} |"
    yield f"""
## Time to first token, ms

Eager keeps what the release's own loop chooses. «As eager»: how many of the {TOKENS} tokens of the answer come before the
first that is not eager's, which is in the same precision and rounds in another order.

| | keep | first token | slowest | {" | ".join(TIMED_STAGES)} | per token | as eager |
|{"---|" * (len(TIMED_STAGES) + 6)}"""
    for row in result["milliseconds"]:
        stages = [f"{row[key]:.2f}" if key in row else "" for key in (*TIMED_STAGES, "token")]
        first = f"{row['contender']} | {row['keep']:g} | **{row['time_to_first_token']:.1f}** | {row['slowest']:.1f}"
        yield f"| {first} | {' | '.join(stages)} | {row['tokens_as_eager']} |"


def main() -> int:
    """Measure, print and write; the exit code says whether what ran was right."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        epilog="example: python -m rediprune.export.bench.gpu.gpu_measurements engines/llava --json gpu.json --markdown gpu.md",
    )
    parser.add_argument("bundle", type=Path, help="the folder of the bundle to measure")
    parser.add_argument(
        "--backends", default=",".join(BACKENDS), help=f"measure these backends (default {','.join(BACKENDS)})"
    )
    parser.add_argument("--image", type=Path, help="ask about this picture instead of a generated one")
    parser.add_argument("--runs", type=int, default=15, help="time every contender so often, after 3 runs to warm up")
    parser.add_argument(
        "--no-check", action="store_true", help="do not validate (eager PyTorch on the CPU: long at 7B)"
    )
    add_output_options(parser)
    arguments = parser.parse_args()
    try:
        backends, proof = arguments.backends.split(","), not arguments.no_check
        result = measure(arguments.bundle, backends, arguments.image, arguments.runs, proof)
    except RedipruneError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write_report(result, page(result), arguments)
    print(json.dumps(result))
    ran = [outcome for outcome in result["checks"].values() if "refused" not in outcome]
    return int(not all(outcome.get("passed", True) for outcome in ran)) if ran else 2


if __name__ == "__main__":
    raise SystemExit(main())
