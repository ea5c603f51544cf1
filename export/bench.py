"""Time to first token of a bundle beside eager transformers on the same checkpoint, picture, prompt and machine.

Contenders take turns (interleaved), so that a slow moment of the machine hits all of them; figures are medians.
"""

import gc
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ..graphs.keep import num_kept, query_ids
from ..graphs.query import match_width, pool_query
from ..graphs.selection import score_tokens
from ..runtime.bundle import Bundle
from ..runtime.eager import eager_model
from ..runtime.errors import RedipruneError
from ..runtime.pipeline import Pipeline, peak_memory
from ..runtime.preprocess import load_image
from ..runtime.prompt import render_prompt
from .samples import sample_picture

QUESTION = "Look at the picture closely and say in one sentence what is left of the person, and in which colours it is."
_STAGES = ("preprocess", "vision", "select", "project", "embed", "prefill")

Timings = dict[str, float]  # seconds by stage, and time_to_first_token


def bench(
    folder: Path, image: Path | None, runs: int, threads: int, keeps: Sequence[float], console: Console
) -> dict[str, Any]:
    """Measure and print a table.

    Args:
        folder: the bundle; its checkpoint must be at hand.
        image: what to ask about; None is a made picture.
        runs: of every contender, after one to warm up.
        threads: of every contender; 0 is all cores.
        keeps: keep ratios of the bundle.

    Returns:
        The document: machine, versions, and for every contender medians and spread, and the speed-ups.

    Raises:
        RedipruneError: the bundle or its checkpoint cannot be used.
    """
    threads = threads or os.cpu_count() or 1
    torch.set_num_threads(threads)
    bundle = Bundle.open(folder)
    if bundle.manifest.modalities["image"].tiled:
        raise RedipruneError(
            f"{bundle.manifest.family_name} sees images in tiles, which are not pruned; bench another bundle"
        )
    picture = load_image(sample_picture() if image is None else image)
    begin = time.perf_counter()
    pipeline = Pipeline.load(folder, threads=threads, cache_bytes=0)
    pipeline.generate(QUESTION, [picture], max_new_tokens=1, temperature=0.0)
    start_up = time.perf_counter() - begin
    ours_memory = peak_memory()

    single = eager_model(bundle, threads)
    half = type(single).from_pretrained(bundle.manifest.source.name, dtype=torch.bfloat16).eval().requires_grad_(False)
    contenders: dict[str, Callable[[], Timings]] = {}
    for keep in keeps:
        contenders[f"engine fp32 keep {keep:g}".replace("fp32", bundle.manifest.precision)] = _engine(
            pipeline, picture, keep
        )
    eager = _Eager(single, pipeline)
    contenders["eager fp32 unpruned"] = eager.run(picture, 1.0)
    contenders["eager bf16 unpruned"] = _Eager(half, pipeline).run(picture, 1.0)
    for keep in keeps:
        if keep < 1:
            contenders[f"eager fp32 keep {keep:g}, selection as released"] = eager.run(picture, keep)

    times: dict[str, list[Timings]] = {name: [] for name in contenders}
    for turn in track(range(runs + 1), "measuring", console=Console(stderr=True), transient=True):
        for name, contender in contenders.items():
            gc.collect()
            took = contender()
            if turn:  # the first turn warms up
                times[name].append(took)
    document = _document(bundle, pipeline, times, threads, runs, start_up, ours_memory)
    _print(console, document)
    return document


def _engine(pipeline: Pipeline, picture: Any, keep: float) -> Callable[[], Timings]:
    def run() -> Timings:
        answer = pipeline.generate(QUESTION, [picture], keep=keep, max_new_tokens=9, temperature=0.0)
        return answer.timings | {"decode_token": answer.timings["decode"] / max(len(answer.token_ids) - 1, 1)}

    return run


class _Eager:
    """transformers' modules, timed stage by stage."""

    def __init__(self, model: Any, pipeline: Pipeline):
        self.model = model
        self.processor = pipeline.processor
        self.spec = pipeline.bundle.manifest.modalities["image"]

    def run(self, picture: Any, keep: float) -> Callable[[], Timings]:
        return lambda: self._first_token(picture, keep)

    @torch.inference_mode()
    def _first_token(self, picture: Any, keep: float) -> Timings:
        took: Timings = {}
        model, inner = self.model, self.model.model
        begin = clock = time.perf_counter()

        def lap(name: str) -> None:
            nonlocal clock
            now = time.perf_counter()
            took[name], clock = now - clock, now

        ids = self.processor.encode(render_prompt(self.processor, QUESTION, 1, 0))
        pixels = torch.from_numpy(self.processor.pixel_values([picture])).to(model.dtype)
        lap("preprocess")
        if keep == 1:  # transformers' own path
            visual = inner.get_image_features(pixel_values=pixels).pooler_output
            visual = torch.cat(list(visual)) if not isinstance(visual, torch.Tensor) else visual.flatten(0, 1)
            lap("vision")
        else:
            tower = getattr(inner, "vision_tower", None) or inner.image_tower
            states = tower(pixels, output_hidden_states=True).hidden_states
            features = states[model.config.vision_feature_layer]
            if model.config.vision_feature_select_strategy == "default":
                features = features[:, 1:]
            lap("vision")
            tail = query_ids(ids, {self.spec.placeholder})
            query = pool_query(model.get_input_embeddings()(torch.tensor(tail)))
            indices = select_as_released(features, query, keep)
            kept = torch.stack([frame[chosen] for frame, chosen in zip(features, indices, strict=True)])
            lap("select")
            visual = inner.multi_modal_projector(kept).flatten(0, 1)
            lap("project")
        embeds = model.get_input_embeddings()(torch.tensor(ids))
        at = ids.index(self.spec.placeholder)
        embeds = torch.cat([embeds[:at], visual, embeds[at + 1 :]])[None]
        lap("embed")
        hidden = inner.language_model(inputs_embeds=embeds, use_cache=True).last_hidden_state
        int(model.lm_head(hidden[:, -1]).argmax())
        lap("prefill")
        took["time_to_first_token"] = time.perf_counter() - begin
        return took


def select_as_released(features: torch.Tensor, query: torch.Tensor, keep: float, alpha: float = 0.5) -> torch.Tensor:
    """The release's way of computing the same choice: frame by frame, the minimum recomputed for every pick.

    Source: `_select_text_cond` of the authors' release, restated.
    """
    chosen = []
    count = num_kept(features.shape[1], keep)
    for frame in features:
        relevance, similarity = score_tokens(frame[None], match_width(query, frame.shape[1]))
        distance = 1.0 - similarity[0]
        picks = [int(relevance[0].argmax())]
        for _ in range(count - 1):
            score = distance[picks].min(dim=0).values + alpha * relevance[0]
            score[picks] = -torch.inf
            picks.append(int(score.argmax()))
        chosen.append(torch.tensor(sorted(picks)))
    return torch.stack(chosen)


def _document(
    bundle: Bundle,
    pipeline: Pipeline,
    times: dict[str, list[Timings]],
    threads: int,
    runs: int,
    start_up: float,
    memory: int,
) -> dict[str, Any]:
    rows = {}
    for name, taken in times.items():
        stages = {key: statistics.median(t[key] for t in taken) for key in _STAGES if key in taken[0]}
        first = [t["time_to_first_token"] for t in taken]
        rows[name] = {
            "time_to_first_token": statistics.median(first),
            "fastest": min(first),
            "slowest": max(first),
            "stages": stages,
            "selector_share": stages.get("select", 0.0) / statistics.median(first),
        }
        if "decode_token" in taken[0]:
            rows[name]["decode_token"] = statistics.median(t["decode_token"] for t in taken)
    ratios = {
        ours: {
            theirs: rows[theirs]["time_to_first_token"] / rows[ours]["time_to_first_token"]
            for theirs in rows
            if theirs.startswith("eager")
        }
        for ours in rows
        if ours.startswith("engine")
    }
    packages = ("torch", "transformers", "onnxruntime", "numpy", "rediprune")
    manifest = bundle.manifest
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": {"processor": _processor(), "threads": threads},
        "versions": {name: version(name) for name in packages} | {"python": platform.python_version()},
        "model": {
            "family": manifest.family,
            "precision": manifest.precision,
            "visual_tokens": manifest.modalities["image"].patches,
            "prompt_tokens": len(pipeline.processor.encode(render_prompt(pipeline.processor, QUESTION, 1, 0))) - 1,
            "parameters": _parameters(bundle),
        },
        "runs": runs,
        "seconds": rows,
        "speed_up": ratios,
        "start_to_first_token": start_up,
        "peak_memory_bytes": memory,
    }


def _parameters(bundle: Bundle) -> int:
    size = {"fp32": 4, "fp16": 2}[bundle.manifest.precision]
    stages = bundle.manifest.stages.values()
    return sum(bundle.path(f).stat().st_size for s in stages for f in s.files if f.endswith(".data")) // size


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _print(console: Console, document: dict[str, Any]) -> None:
    rows, ratios = document["seconds"], document["speed_up"]
    base = "eager fp32 unpruned"
    table = Table("", "first token", *_STAGES, "selector", "per token", "× eager fp32", title="time to first token, ms")
    for name, row in rows.items():
        ratio = ratios[name][base] if name in ratios else rows[base]["time_to_first_token"] / row["time_to_first_token"]
        table.add_row(
            name,
            f"{row['time_to_first_token'] * 1e3:.0f}",
            *(f"{row['stages'][key] * 1e3:.1f}" if key in row["stages"] else "" for key in _STAGES),
            f"{row['selector_share']:.2%}" if "select" in row["stages"] else "",
            f"{row['decode_token'] * 1e3:.1f}" if "decode_token" in row else "",
            f"{ratio:.2f}",
        )
    console.print(table)
    console.print(
        f"medians of {document['runs']} interleaved runs, {document['machine']['threads']} threads; from start to first "
        f"token {document['start_to_first_token']:.2f} s; peak memory {document['peak_memory_bytes'] / 1e9:.2f} GB",
        highlight=False,
    )
