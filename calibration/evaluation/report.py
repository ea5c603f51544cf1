"""What calibration cost and what it brought: every recipe beside the baseline it was made of.

Accuracy and agreement come from questions with answers, similarity of stages and kept sets from a few of them, time and
memory from the bench. What is measured of the stages is noted in the calibrated bundles (`tolerances`, of the backend that
ran them): `validate` holds them to it.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ...runtime.backend_choice import AUTO
from ...runtime.bundle import Bundle
from ...runtime.bundle.lock import changing
from ...runtime.errors import RedipruneError
from ...runtime.machine import processor_name
from ..data import choose
from ..progress_types import CountProgress, ignore_count
from .bundle_comparison import Comparison, compare_bundles
from .evaluate import EvaluationOptions, evaluate
from .question_dataset import Question
from .recommendation import recommend
from .scores import Score, paired_change

Document = dict[str, Any]

SCHEMA = 1
TOLERANCE_MARGIN = 1.5  # the next picture may be somewhat worse than the worst of those that were measured
_PATIENCE = 600.0  # seconds that another process may hold a bundle, as by building engines, before its note is given up
_TOOLS = ("rediprune", "onnxruntime", "numpy")
_TIMES = ("time_to_first_token", "fastest", "slowest", "stages", "decode_token", "end_to_end", "start_up")


@dataclass(frozen=True)
class ReportOptions:
    """What a report measures.

    Attributes:
        keep_ratios: of answers and times.
        kept_ratios: at which kept sets are compared.
        samples: number of questions on which stages and kept sets are compared.
        seed: selects them.
        tolerance: points of accuracy that a recommended bundle may lose at any keep ratio.
        evaluation: backend (one for all bundles, not "auto"), frames and threads.
    """

    keep_ratios: Sequence[float] = (1.0, 0.15)
    kept_ratios: Sequence[float] = (0.5, 0.25, 0.15, 0.1)
    samples: int = 32
    seed: int = 0
    tolerance: float = 1.0
    evaluation: EvaluationOptions = field(default_factory=lambda: EvaluationOptions("ort"))


def report(
    bundles: Sequence[Bundle],
    sets: Mapping[str, Sequence[Question]],
    options: ReportOptions | None = None,
    *,
    time_bundles: Callable[[Sequence[Path]], Document] | None = None,
    out: Path | None = None,
    progress: CountProgress | None = None,
) -> Document:
    """Measure calibrated bundles beside their baseline, and note in them how far their stages may be off.

    Args:
        bundles: from `find_bundles`, the baseline first.
        sets: questions by name of their set.
        options: what to measure.
        time_bundles: measures bundles beside each other (`export.bench`); None leaves times and memory out.
        out: a JSONL file of replies, from which an interrupted report goes on.
        progress: called with what is being done.

    Returns:
        The document: data, noise of the kept sets, a row for every bundle, a recommendation.

    Raises:
        RedipruneError: an unusable bundle, backend or question.
    """
    options, say = options or ReportOptions(), progress or ignore_count
    asking = options.evaluation
    if asking.backend == AUTO:
        raise RedipruneError("a report holds bundles against each other on one backend; name it with --backend")
    baseline, calibrated = bundles[0], list(bundles[1:])
    absent = {}
    for bundle in calibrated:
        record = bundle.manifest.calibration
        if record is not None and (refusal := record.refusal(asking.backend)) is not None:
            absent[bundle.folder.name] = refusal
    calibrated = [bundle for bundle in calibrated if bundle.folder.name not in absent]
    if not calibrated:
        raise RedipruneError(next(iter(absent.values())))
    for bundle in calibrated:
        with changing(bundle.folder):  # refused now, where it cannot be noted what takes long to measure
            pass
    measured = [baseline, *calibrated]
    scores = {bundle.folder.name: _ask(bundle, sets, options, out, say) for bundle in measured}
    selected = choose(
        [question for questions in sets.values() for question in questions], options.samples, options.seed
    )
    comparison = compare_bundles(baseline, calibrated, selected, options.kept_ratios, asking, say)
    timed: Document = {"rows": []}
    if time_bundles is not None:
        say("taking times", 0, 1)
        timed = time_bundles([bundle.folder for bundle in measured])
    rows = [
        _row(
            bundle,
            scores[bundle.folder.name],
            scores[baseline.folder.name],
            comparison,
            [row for row in timed["rows"] if row["contender"] == f"{bundle.folder.name} on {asking.backend}"],
        )
        for bundle in measured
    ]
    machine = {"processor": processor_name(), "threads": asking.threads or os.cpu_count()}
    document = {
        "schema": SCHEMA,
        "date": time.strftime("%Y-%m-%d"),
        "machine": timed.get("machine", machine),
        "versions": {name: version(name) for name in _TOOLS},
        "backend": asking.backend,
        "source": baseline.manifest.source.name,
        "questions": {name: len(questions) for name, questions in sets.items()},
        "samples": len(selected),
        "noise": comparison.noise,
        "bundles": rows,
        "absent": absent,
    }
    document["recommendation"] = recommend(document, options.tolerance)
    for bundle in calibrated:
        _note_tolerances(bundle.folder, asking.backend, comparison.stages[bundle.folder.name])
    return document


def _ask(
    bundle: Bundle,
    sets: Mapping[str, Sequence[Question]],
    options: ReportOptions,
    out: Path | None,
    say: CountProgress,
) -> list[Score]:
    """The bundle's scores, set by set."""
    return [
        score
        for name, questions in sets.items()
        for score in evaluate(
            bundle.folder,
            questions,
            options.keep_ratios,
            options=options.evaluation,
            data=name,
            out=out,
            progress=lambda what, at, total: say(f"{bundle.folder.name}: {what}", at, total),
        )
    ]


def _row(
    bundle: Bundle,
    scores: Sequence[Score],
    baseline: Sequence[Score],
    comparison: Comparison,
    times: Sequence[Document],
) -> Document:
    """All that was measured of a bundle."""
    record, name = bundle.manifest.calibration, bundle.folder.name
    return {
        "name": name,
        "recipe": record.recipe if record is not None else {},
        "precision": bundle.manifest.precision,
        "disk_bytes": sum(bundle.path(file).stat().st_size for file in bundle.expected_files()),
        "weight_bytes": {stage: spec.weight_bytes for stage, spec in bundle.manifest.stages.items()},
        "stages": comparison.stages.get(name, {}),
        "jaccard": comparison.overlaps.get(name, {}),
        "answers": {f"{keep:g}": _answers(scores, baseline, keep) for keep in sorted({s.keep for s in scores})[::-1]},
        "times": {f"{row['keep']:g}": {key: row[key] for key in _TIMES} for row in times},
        "peak_memory_bytes": max((row["peak_memory_bytes"] for row in times), default=None),
    }


def _answers(scores: Sequence[Score], baseline: Sequence[Score], keep: float) -> Document:
    """At a keep ratio, over all sets: correct answers, and how they differ from the baseline's."""
    pairs = [(s, r) for s, r in zip(scores, baseline, strict=True) if s.keep == keep]
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


def _note_tolerances(folder: Path, backend: str, stages: Mapping[str, Mapping[str, float]]) -> None:
    """Note how far the stages may be off on a backend, in the manifest as it is now: it took long to measure."""
    with changing(folder, _PATIENCE) as bundle:
        record = bundle.manifest.calibration
        assert record is not None
        measured = {stage: TOLERANCE_MARGIN * near["greatest_relative_error"] for stage, near in stages.items()}
        record = record.with_tolerances(backend, measured)
        bundle.manifest = bundle.manifest.model_copy(update={"calibration": record})
        bundle.write_manifest()
