"""What calibration cost and what it brought: every recipe beside the bundle it was made of.

Accuracy and agreement come from questions with answers, nearness of stages and kept sets from a few of them, time and
memory from the bench. What is measured of the stages is noted in the calibrated bundles (`tolerances`, of the backend that
ran them): `validate` holds them to it.
"""

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx_ir as ir

from ...runtime.backends.session import open_stage
from ...runtime.bundle import Bundle
from ...runtime.bundle.lock import changing
from ...runtime.errors import RedipruneError
from ...runtime.machine import processor_name
from ...runtime.pipeline import Pipeline
from ..activations import collect
from ..bundle_graphs import load_graph
from ..data import choose
from ..quantize.float16 import HalfPrecisionPass
from ..stage_writer import save_stage
from .evaluate import Question, Score, evaluate, media_of
from .similarity import compare_stage, jaccard

Progress = Callable[[str, int, int], None]  # what is being done, number, of how many
Document = dict[str, Any]

SCHEMA = 1
TOLERANCE_MARGIN = 1.5  # the next picture may be somewhat worse than the worst of those that were measured
_PATIENCE = 600.0  # seconds that another process may hold a bundle, as by building engines, before its note is given up
_TOOLS = ("rediprune", "onnxruntime", "numpy")


def find_bundles(folders: Sequence[Path]) -> list[Bundle]:
    """The bundles to report on, first the one that the others were made of.

    Args:
        folders: that bundle, calibrated ones, or both. Alone, it is followed by those beside it that were made of it; in
            its absence it is looked for where it was when they were made.

    Raises:
        RedipruneError: no calibrated bundle, or one of another source.
    """
    opened = [Bundle.open(folder) for folder in folders]
    sources = [bundle for bundle in opened if bundle.manifest.calibration is None]
    made = [bundle for bundle in opened if bundle.manifest.calibration is not None]
    if len(sources) > 1:
        raise RedipruneError(
            f"'{sources[0].folder}' and '{sources[1].folder}' are both uncalibrated; a report is on one bundle and those "
            "made of it"
        )
    if not sources and made and made[0].manifest.calibration is not None:
        sources = [Bundle.open(made[0].manifest.calibration.source)]
    source = sources[0]
    if not made:
        for path in sorted(source.folder.resolve().parent.glob("[!.]*/manifest.json")):
            try:
                bundle = Bundle.open(path.parent)
            except RedipruneError:
                continue  # whatever lies there, it was not asked for
            if _made_of(bundle, source):
                made.append(bundle)
    if not made:
        raise RedipruneError(
            f"nothing beside '{source.folder}' was calibrated from it; make something with: rediprune calibrate "
            f"{source.folder} -o {source.folder}-int8"
        )
    for bundle in made:
        if not _made_of(bundle, source):
            raise RedipruneError(
                f"'{bundle.folder}' was not made of '{source.folder}' as it is; make it again with: "
                f"{bundle.manifest.rebuild_command(bundle.folder)}"
            )
    return [source, *made]


def _made_of(bundle: Bundle, source: Bundle) -> bool:
    """Whether the bundle was calibrated from this one: building engines changes its digest, its model stays the same."""
    made, theirs = bundle.manifest.calibration, source.manifest
    if made is None:
        return False
    return bundle.manifest.source == theirs.source and made.source_precision == theirs.precision


def report(
    bundles: Sequence[Bundle],
    sets: Mapping[str, Sequence[Question]],
    *,
    keeps: Sequence[float] = (1.0, 0.15),
    kept: Sequence[float] = (0.5, 0.25, 0.15, 0.1),
    samples: int = 32,
    backend: str = "ort",
    frames: int = 8,
    threads: int = 0,
    seed: int = 0,
    time_bundles: Callable[[Sequence[Path]], Document] | None = None,
    tolerance: float = 1.0,
    out: Path | None = None,
    progress: Progress | None = None,
) -> Document:
    """Measure calibrated bundles beside their source, and note in them how far their stages may be off.

    Args:
        bundles: from `find_bundles`.
        sets: questions by name of their set.
        keeps: keep ratios of answers and times. kept: of the kept sets.
        samples: questions on which stages and kept sets are compared.
        backend: what runs the stages.
        frames: of a video.
        threads: for every stage; 0 leaves it to the backend.
        seed: of the choice of samples.
        time_bundles: measures bundles beside each other (`export.bench`); None leaves times and memory out.
        tolerance: points of accuracy that a recommended bundle may lose at any keep.
        out: a JSONL file of replies, from which an interrupted report goes on.
        progress: told what is done.

    Returns:
        The document: data, noise of the kept sets, a row for every bundle, a recommendation.

    Raises:
        RedipruneError: an unusable bundle, backend or question.
    """
    say = progress or (lambda what, at, total: None)
    source, made = bundles[0], list(bundles[1:])
    absent = {}
    for bundle in made:
        record = bundle.manifest.calibration
        if record is not None and (refusal := record.refusal(backend)) is not None:
            absent[bundle.folder.name] = refusal
    made = [bundle for bundle in made if bundle.folder.name not in absent]
    if not made:
        raise RedipruneError(next(iter(absent.values())))
    for bundle in made:
        with changing(bundle.folder):  # refused now, where it cannot be noted what takes long to measure
            pass
    scores = {}
    for bundle in (source, *made):
        scores[bundle.folder.name] = [
            score
            for name, questions in sets.items()
            for score in evaluate(
                bundle.folder,
                questions,
                keeps,
                backend=backend,
                out=out,
                frames=frames,
                threads=threads,
                data=name,
                progress=lambda what, at, total, which=bundle.folder.name: say(f"{which}: {what}", at, total),
            )
        ]
    chosen = choose([question for questions in sets.values() for question in questions], samples, seed)
    stages, sets_kept, noise = _compare(source, made, chosen, kept, backend, frames, threads, say)
    times: dict[str, list[Document]] = {}
    measured: Document = {}
    if time_bundles is not None:
        say("taking times", 0, 1)
        folders = [bundle.folder for bundle in (source, *made)]
        measured = time_bundles(folders)
        for folder in folders:
            times[folder.name] = [row for row in measured["rows"] if row["contender"] == f"{folder.name} on {backend}"]
    document = {
        "schema": SCHEMA,
        "date": time.strftime("%Y-%m-%d"),
        "machine": measured.get("machine", {"processor": processor_name(), "threads": threads or os.cpu_count()}),
        "versions": {name: version(name) for name in _TOOLS},
        "backend": backend,
        "source": source.manifest.source.name,
        "questions": {name: len(questions) for name, questions in sets.items()},
        "samples": len(chosen),
        "noise": noise,
        "bundles": [
            _row(
                bundle,
                scores[bundle.folder.name],
                scores[source.folder.name],
                stages.get(bundle.folder.name, {}),
                sets_kept.get(bundle.folder.name, {}),
                times.get(bundle.folder.name, []),
            )
            for bundle in (source, *made)
        ],
        "absent": absent,
    }
    document["recommendation"] = recommend(document, tolerance)
    for bundle in made:
        _note_tolerances(bundle.folder, backend, stages[bundle.folder.name])
    return document


def _compare(
    source: Bundle,
    made: Sequence[Bundle],
    questions: Sequence[Question],
    ratios: Sequence[float],
    backend: str,
    frames: int,
    threads: int,
    say: Progress,
) -> tuple[dict[str, Document], dict[str, dict[str, float]], Document]:
    """By bundle its stages' nearness and the overlap of its kept sets with the source's; and that of the source in fp16."""
    changed = [
        stage
        for stage in source.manifest.stages
        if any(bundle.manifest.calibration and stage in bundle.manifest.calibration.recipe for bundle in made)
    ]
    cases = collect(
        source,
        [],
        changed,
        [],
        questions,
        threads,
        progress=lambda what, fraction: say(what, int(fraction * len(questions)), len(questions)),
    )
    theirs = _kept(_pipeline(source, backend, threads), questions, ratios, frames, say, source.folder.name)
    stages, overlaps = {}, {}
    for bundle in made:
        name, record = bundle.folder.name, bundle.manifest.calibration
        stages[name] = {}
        for at, stage in enumerate(record.recipe if record else ()):
            say(f"{name}: comparing {stage}", at, len(changed))
            found = compare_stage(bundle, stage, cases[stage].held_out, backend, threads)
            if found:
                stages[name][stage] = {
                    "cosine": fmean(near.cosine for near in found),
                    "least_cosine": min(near.cosine for near in found),
                    "relative_error": fmean(near.relative_error for near in found),
                    "greatest_relative_error": max(near.relative_error for near in found),
                }
        ours = _kept(_pipeline(bundle, backend, threads), questions, ratios, frames, say, name)
        overlaps[name] = _overlaps(ours, theirs)
    noise: Document = {}
    if source.manifest.precision == "fp32":
        with TemporaryDirectory() as folder:
            pipeline = _pipeline(source, "ort", threads)
            halved = {
                stage: open_stage("ort", _in_fp16(source, stage, Path(folder)), stage, threads)
                for stage in {modality.stage for modality in source.manifest.modalities.values()}
            }
            with pipeline.replaced(**halved):
                ours = _kept(pipeline, questions, ratios, frames, say, "fp16")
            noise = {"precision": "fp16", "jaccard": _overlaps(ours, theirs)}
            del pipeline, halved
    return stages, overlaps, noise


def _pipeline(bundle: Bundle, backend: str, threads: int) -> Pipeline:
    return Pipeline.load(bundle.folder, backend, threads=threads, cache_bytes=1 << 30, lazy=True)


def _in_fp16(source: Bundle, stage: str, folder: Path) -> Bundle:
    """A bundle with no more than this stage, in fp16: what rounding alone does to features."""
    model = load_graph(source, stage)
    HalfPrecisionPass(ir.DataType.FLOAT16)(model)
    spec = source.manifest.stages[stage]
    (folder / spec.file).parent.mkdir(parents=True, exist_ok=True)
    halved = save_stage(model, spec, "fp16", folder)
    return Bundle(folder, source.manifest.model_copy(update={"stages": {stage: halved}, "engines": {}}))


def _kept(
    pipeline: Pipeline, questions: Sequence[Question], ratios: Sequence[float], frames: int, say: Progress, name: str
) -> dict[float, list[np.ndarray]]:
    """Keep ratio → kept sets [F, K], one for each picture of each question."""
    found: dict[float, list[np.ndarray]] = {ratio: [] for ratio in ratios}
    for at, question in enumerate(questions):
        say(f"{name}: kept sets", at, len(questions))
        images, videos = media_of(question, pipeline.bundle, frames)
        for ratio in ratios:
            found[ratio] += pipeline.select(question.question, images, videos, frames=frames, keep=ratio)
    return found


def _overlaps(ours: Mapping[float, list[np.ndarray]], theirs: Mapping[float, list[np.ndarray]]) -> dict[str, float]:
    return {
        f"{ratio:g}": fmean(jaccard(a, b) for a, b in zip(ours[ratio], theirs[ratio], strict=True)) for ratio in theirs
    }


def _row(
    bundle: Bundle,
    scores: Sequence[Score],
    reference: Sequence[Score],
    stages: Document,
    kept: dict[str, float],
    times: Sequence[Document],
) -> Document:
    record = bundle.manifest.calibration
    files = {name: spec.files for name, spec in bundle.manifest.stages.items()}
    return {
        "name": bundle.folder.name,
        "recipe": record.recipe if record is not None else {},
        "precision": bundle.manifest.precision,
        "disk_bytes": sum(bundle.path(file).stat().st_size for file in bundle.expected_files()),
        "weight_bytes": {name: bundle.manifest.stages[name].weight_bytes for name in files},
        "stages": stages,
        "jaccard": kept,
        "answers": {f"{keep:g}": _answers(scores, reference, keep) for keep in sorted({s.keep for s in scores})[::-1]},
        "times": {
            f"{row['keep']:g}": {
                key: row[key]
                for key in (
                    "time_to_first_token",
                    "fastest",
                    "slowest",
                    "stages",
                    "decode_token",
                    "end_to_end",
                    "start_up",
                )
            }
            for row in times
        },
        "peak_memory_bytes": max((row["peak_memory_bytes"] for row in times), default=None),
    }


def _answers(scores: Sequence[Score], reference: Sequence[Score], keep: float) -> Document:
    """At a keep ratio, over all sets: right answers, and how they differ from the source's."""
    pairs = [(s, r) for s, r in zip(scores, reference, strict=True) if s.keep == keep]
    both = [(ours.right, theirs.right) for s, r in pairs for ours, theirs in zip(s.replies, r.replies, strict=True)]
    asked = len(both)
    lost = sum(theirs and not ours for ours, theirs in both)
    gained = sum(ours and not theirs for ours, theirs in both)
    change, spread = paired_change(lost, gained, asked)
    return {
        "asked": asked,
        "right": sum(ours for ours, _ in both),
        "accuracy": sum(ours for ours, _ in both) / asked,
        "lost": lost,
        "gained": gained,
        "change": change,
        "change_interval": [change - spread, change + spread],
        "same_answers": sum(s.same_answers(r) for s, r in pairs) / asked,
        "same_ids": sum(s.same_ids(r) * len(s.replies) for s, r in pairs) / asked,
        "sets": {
            s.data: {"right": sum(s.right.values()), "asked": len(s.replies), "interval": s.interval()}
            | {"kinds": {kind: [s.right[kind], s.asked[kind]] for kind in sorted(s.asked)}}
            for s, _ in pairs
        },
    }


def paired_change(lost: int, gained: int, asked: int) -> tuple[float, float]:
    """Change of accuracy on the same questions, and half its 95 % interval (Wald's for paired proportions)."""
    change = (gained - lost) / asked
    return change, 1.959964 * math.sqrt(max(0.0, lost + gained - (gained - lost) ** 2 / asked)) / asked


def recommend(document: Document, tolerance: float) -> str:
    """A sentence: which bundle to take, and why.

    Of those that lose at most `tolerance` points at every keep ratio the one that answers soonest at the lowest; without
    times the smallest. Where the source answers nothing right, its answers take the place of the right ones.
    """
    source, *made = document["bundles"]
    lowest = min(source["answers"], key=float)
    knows = all(answers["right"] for answers in source["answers"].values())

    def loss(row: Document) -> float:
        """Points lost at the ratio where most are."""
        answers = row["answers"].values()
        return 100 * max(-a["change"] if knows else 1 - a["same_answers"] for a in answers)

    def cost(row: Document) -> float:
        return row["times"][lowest]["end_to_end"] if row["times"] else row["disk_bytes"]

    good = [row for row in made if loss(row) <= tolerance]
    measure = "points" if knows else "points of agreement (the source answers no question right)"
    if not good:
        nearest = min(made, key=loss)
        return (
            f"Stay with {source['name']}: every calibrated bundle loses more than {tolerance:g} {measure}; the nearest, "
            f"{nearest['name']}, loses {loss(nearest):.1f}."
        )
    best = min(good, key=cost)
    size = best["disk_bytes"] / source["disk_bytes"]
    change = "loses nothing" if loss(best) <= 0 else f"loses {loss(best):.1f} {measure} at most"
    if not best["times"]:
        return f"Take {best['name']}: it {change} and has {size:.2f} of the size."
    first, whole = (
        source["times"][lowest][key] / best["times"][lowest][key] for key in ("time_to_first_token", "end_to_end")
    )
    if whole < 1:
        return (
            f"Stay with {source['name']} for speed: {best['name']} {change} and has {size:.2f} of the size, but answers "
            f"only {whole:.2f} times as fast at keep {lowest}."
        )
    return (
        f"Take {best['name']}: it {change}, has {size:.2f} of the size, and at keep {lowest} its first token comes "
        f"{first:.2f} times and its whole answer {whole:.2f} times as fast as {source['name']}'s."
    )


def _note_tolerances(folder: Path, backend: str, stages: Mapping[str, Mapping[str, float]]) -> None:
    """Note how far the stages may be off on a backend, in the manifest as it is now: it took long to measure."""
    with changing(folder, _PATIENCE) as bundle:
        record = bundle.manifest.calibration
        assert record is not None
        measured = {stage: TOLERANCE_MARGIN * near["greatest_relative_error"] for stage, near in stages.items()}
        record = record.with_tolerances(backend, measured)
        bundle.manifest = bundle.manifest.model_copy(update={"calibration": record})
        bundle.write_manifest()
