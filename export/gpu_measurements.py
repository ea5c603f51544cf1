"""The measurements that want a GPU, in one go: is every backend right, and how long is it to the first token?

    rediprune build BUNDLE --backend tensorrt
    python -m rediprune.export.gpu_measurements BUNDLE --json gpu-sessions.json --markdown gpu-sessions.md

Every backend is validated against eager PyTorch, then asked about one picture at each keep ratio. Contenders take turns;
beside them, in the same run, eager transformers on the same GPU, unpruned and with the release's selection. A backend
that does not run here is listed with its reason. The last line of stdout is the JSON document. Exit code 1: a backend
differs from eager PyTorch; 2: none ran.
"""

import argparse
import copy
import datetime
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ..graphs.families import family_of
from ..graphs.keep import num_kept, query_ids
from ..graphs.plugin.gpu_timing import release_select
from ..graphs.query import match_width, pool_query
from ..graphs.stages import stages_of
from ..runtime.bundle import Bundle
from ..runtime.eager import eager_model
from ..runtime.errors import RedipruneError
from ..runtime.pipeline import Pipeline
from ..runtime.preprocess import Processor, load_image
from ..runtime.prompt import render_prompt
from .samples import sample_picture
from .validate import validate

QUESTION = "Look at the picture closely and say in one sentence what is left of the person, and in which colours it is."
KEEPS = (1.0, 0.25, 0.15, 0.10)
KERNEL = "kernel"
BACKENDS = ("tensorrt", "tensorrt-rtx", "ort-cuda", KERNEL)
STAGES = ("preprocess", "vision", "select", "project", "embed", "prefill")
WARM_UP, TOKENS = 3, 33
PACKAGES = ("rediprune", "tensorrt", "tensorrt-rtx", "onnxruntime-gpu", "onnxruntime", "cuda-bindings", "cuda-core")

Timings = dict[str, float]


def measure(folder: Path, backends: list[str], image: Path | None, runs: int) -> dict[str, Any]:
    """The document: what it was measured on, every backend's validation, and medians in milliseconds."""
    manifest = Bundle.open(folder).manifest
    if manifest.modalities["image"].tiled:
        raise RedipruneError(f"{manifest.family_name} sees images in tiles, which are not pruned; take another bundle")
    picture = load_image(sample_picture() if image is None else image)
    checks = {backend: check(folder, backend) for backend in backends}
    contenders: dict[str, Callable[[], Timings]] = {}
    for backend in backends:
        # The kernel serves one stage: the first backend that runs has the others.
        rest = next((name for name in backends if name != KERNEL and "refused" not in checks[name]), None)
        if "refused" in checks[backend] or rest is None:
            continue
        chosen = {"default": rest, "select": KERNEL} if backend == KERNEL else backend
        name = f"{rest} + kernel" if backend == KERNEL else backend
        pipeline = Pipeline.load(folder, chosen, cache_bytes=0)
        contenders |= {f"{name}, keep {keep:g}": engine(pipeline, picture, keep) for keep in KEEPS}
    eager = Eager(folder)
    for keep in KEEPS:
        name = f"eager on {eager.device}, {f'keep {keep:g} as released' if keep < 1 else 'unpruned'}"
        contenders[name] = partial(eager.first_token, picture, keep)
    taken: dict[str, list[Timings]] = {name: [] for name in contenders}
    for turn in range(WARM_UP + runs):
        print(f"turn {turn + 1} of {WARM_UP + runs}", file=sys.stderr)
        for name, contender in contenders.items():
            timings = contender()
            if turn >= WARM_UP:
                taken[name].append(timings)
    milliseconds = {
        name: {key: statistics.median(t[key] for t in all_of) * 1e3 for key in all_of[0]}
        | {"slowest": max(t["time_to_first_token"] for t in all_of) * 1e3}
        for name, all_of in taken.items()
    }
    return {
        "machine": machine(),
        "model": f"{manifest.family_name}, {manifest.tower} + {manifest.language_model}, {manifest.precision}",
        "visual_tokens": manifest.modalities["image"].patches,
        "runs": runs,
        "checks": checks,
        "milliseconds": milliseconds,
    }


def check(folder: Path, backend: str) -> dict[str, Any]:
    """Whether a backend equals eager PyTorch, or why it does not run here."""
    try:
        report = validate(folder, backend, stages=["select"] if backend == KERNEL else [])
    except RedipruneError as error:
        return {"refused": str(error)}
    answers = [row.equal for row in report.stories]
    return {"passed": report.passed, "differ": report.failing_stages, "equal_answers": [sum(answers), len(answers)]}


def engine(pipeline: Pipeline, picture: Any, keep: float) -> Callable[[], Timings]:
    def run() -> Timings:
        answer = pipeline.generate(QUESTION, [picture], keep=keep, max_new_tokens=TOKENS, temperature=0.0)
        timings = {key: answer.timings[key] for key in (*STAGES, "time_to_first_token")}
        return timings | {"token": answer.timings["decode"] / max(len(answer.token_ids) - 1, 1)}

    return run


class Eager:
    """The checkpoint in eager PyTorch, on the GPU where torch has one, in the bundle's precision."""

    def __init__(self, folder: Path):
        bundle = Bundle.open(folder)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.dtype = {"fp32": torch.float32, "fp16": torch.float16}[bundle.manifest.precision]
        torch.backends.cuda.matmul.allow_tf32 = False
        self.model = copy.deepcopy(eager_model(bundle)).to(self.device, self.dtype)
        self.image = bundle.manifest.modalities["image"]
        self.vision = next(s for s in stages_of(self.model, family_of(self.model.config)) if s.name == self.image.stage)
        self.processor = Processor.load(bundle.path("processor"))
        self.token = -1  # the last answer's first token

    @torch.inference_mode()
    def first_token(self, picture: Any, keep: float) -> Timings:
        begin = time.perf_counter()
        model, table = self.model, self.model.get_input_embeddings()
        ids = self.processor.encode(render_prompt(self.processor, QUESTION, 1, 0))
        pixels = torch.from_numpy(self.processor.pixel_values([picture])).to(self.device, self.dtype)
        outputs = self.vision.module(pixels)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        features = dict(zip((port.name for port in self.vision.outputs), outputs, strict=True))[self.image.output]
        if keep < 1:
            tail = query_ids(ids, {self.image.placeholder})
            query = pool_query(table(torch.tensor(tail, device=self.device)).float())
            query = match_width(query, features.shape[2]).to(self.dtype)
            chosen = release_select(features, query, num_kept(features.shape[1], keep), 0.5)
            features = torch.stack([frame[rows] for frame, rows in zip(features, chosen, strict=True)])
        visual = model.model.multi_modal_projector(features).flatten(0, 1)
        at = ids.index(self.image.placeholder)
        embeds = table(torch.tensor([0 if i == at else token for i, token in enumerate(ids)], device=self.device))
        embeds = torch.cat([embeds[:at], visual, embeds[at + 1 :]])[None]
        hidden = model.model.language_model(inputs_embeds=embeds, use_cache=True).last_hidden_state
        self.token = int(model.lm_head(hidden[:, -1]).argmax())
        return {"time_to_first_token": time.perf_counter() - begin}


def machine() -> dict[str, str]:
    found = {"date": datetime.date.today().isoformat(), "Python": platform.python_version(), "torch": torch.__version__}
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        found["GPU, driver"] = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        found["GPU, driver"] = "none"
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def page(result: dict[str, Any]) -> Iterator[str]:
    """The results as Markdown."""
    yield f"""# GPU sessions

{", ".join(f"{key} {value}" for key, value in result["machine"].items())}. Written by
`python -m rediprune.export.gpu_measurements`.

{result["model"]}; one picture of {result["visual_tokens"]} visual tokens. Medians of {result["runs"]}, in turns.

## Against eager PyTorch

| backend | result |
|---|---|"""
    for name, outcome in result["checks"].items():
        if "refused" in outcome:
            said = f"does not run here: {outcome['refused']}"
        else:
            equal, asked = outcome["equal_answers"]
            said = "equal" if outcome["passed"] else f"**differs**: {', '.join(outcome['differ']) or 'answers'}"
            said += f"; {equal} of {asked} answers token for token" if asked else ""
        yield f"| {name} | {said} |"
    yield f"""
## Time to first token, ms

| | first token | slowest | {" | ".join(STAGES)} | per token |
|{"---|" * (len(STAGES) + 4)}"""
    for name, row in result["milliseconds"].items():
        stages = [f"{row[key]:.2f}" if "token" in row else "" for key in (*STAGES, "token")]
        yield f"| {name} | **{row['time_to_first_token']:.1f}** | {row['slowest']:.1f} | {' | '.join(stages)} |"


def main() -> int:
    """Measure, print and write; the exit code says whether what ran was right."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        epilog="example: python -m rediprune.export.gpu_measurements engines/llava --json gpu.json --markdown gpu.md",
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--backends", default=",".join(BACKENDS), help=f"of these (default {','.join(BACKENDS)})")
    parser.add_argument("--image", type=Path, help="ask about this picture; default is a made one")
    parser.add_argument("--runs", type=int, default=15, help="of every contender, after 3 to warm up (default 15)")
    parser.add_argument("--json", type=Path, help="write all numbers here")
    parser.add_argument("--markdown", type=Path, help="write the page here")
    arguments = parser.parse_args()
    try:
        result = measure(arguments.bundle, arguments.backends.split(","), arguments.image, arguments.runs)
    except RedipruneError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    text = "\n".join(page(result)) + "\n"
    print(text)
    if arguments.markdown:
        arguments.markdown.write_text(text, encoding="utf-8")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))
    ran = [outcome for outcome in result["checks"].values() if "refused" not in outcome]
    return int(not all(outcome["passed"] for outcome in ran)) if ran else 2


if __name__ == "__main__":
    raise SystemExit(main())
