"""How near calibrated bundles come to their baseline: their stages' outputs, and the visual tokens they keep."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import onnx_ir as ir

from ...runtime.backends.session import open_stage
from ...runtime.bundle import Bundle
from ...runtime.pipeline import Pipeline
from ...runtime.visual_tokens import Kept
from ..activations import collect
from ..bundle_graphs import load_graph
from ..progress_types import CountProgress
from ..quantize.float16 import HalfPrecisionPass
from ..stage_statistics import StageStatistics
from ..stage_writer import save_stage
from .evaluate import EvaluationOptions
from .question_dataset import Question, media_of
from .similarity import jaccard, stage_fidelity

Document = dict[str, Any]
KeptSets = dict[float, list[Kept]]  # keep ratio → indices for each image of each question


@dataclass(frozen=True)
class Comparison:
    """What comparing bundles gave.

    Attributes:
        stages: bundle → stage → cosine and relative error, the mean and the worst.
        overlaps: bundle → keep ratio → overlap (Jaccard) of its kept sets with the baseline's, the mean.
        noise: the overlap that fp16 alone leaves, of which no recipe can be asked more; {} for a baseline in fp16.
    """

    stages: dict[str, Document]
    overlaps: dict[str, dict[str, float]]
    noise: Document


def compare_bundles(
    baseline: Bundle,
    calibrated: Sequence[Bundle],
    questions: Sequence[Question],
    keep_ratios: Sequence[float],
    options: EvaluationOptions,
    progress: CountProgress,
) -> Comparison:
    """Compare calibrated bundles with their baseline.

    Args:
        baseline: what they were made of.
        calibrated: the bundles.
        questions: whose images and videos are looked at.
        keep_ratios: at which kept sets are compared.
        options: backend, frames and threads.
        progress: called with what is being done.
    """
    changed = [stage for stage in baseline.manifest.stages if any(stage in _recipe(bundle) for bundle in calibrated)]
    total = len(questions)
    cases = collect(
        baseline,
        [],
        changed,
        [],
        questions,
        options.threads,
        progress=lambda what, fraction: progress(what, int(fraction * total), total),
    )

    def kept_sets(pipeline: Pipeline, name: str) -> KeptSets:
        kept: KeptSets = {ratio: [] for ratio in keep_ratios}
        for at, question in enumerate(questions):
            progress(f"{name}: kept sets", at, total)
            images, videos = media_of(question, pipeline.bundle, options.frames)
            for ratio in keep_ratios:
                kept[ratio] += pipeline.select(question.question, images, videos, frames=options.frames, keep=ratio)
        return kept

    theirs = kept_sets(_pipeline(baseline, options.backend, options), baseline.folder.name)
    stages, overlaps = {}, {}
    for bundle in calibrated:
        name = bundle.folder.name
        stages[name] = _stage_fidelities(bundle, cases, options, progress)
        overlaps[name] = _overlaps(kept_sets(_pipeline(bundle, options.backend, options), name), theirs)
    noise: Document = {}
    if baseline.manifest.precision == "fp32":
        with TemporaryDirectory() as folder:
            pipeline = _pipeline(baseline, "ort", options)
            halved = {
                stage: open_stage("ort", _in_fp16(baseline, stage, Path(folder)), stage, options.threads)
                for stage in {modality.stage for modality in baseline.manifest.modalities.values()}
            }
            with pipeline.replaced(**halved):
                noise = {"precision": "fp16", "jaccard": _overlaps(kept_sets(pipeline, "fp16"), theirs)}
            del pipeline, halved  # their files go with the folder
    return Comparison(stages, overlaps, noise)


def _recipe(bundle: Bundle) -> dict[str, str]:
    record = bundle.manifest.calibration
    return {} if record is None else record.recipe


def _stage_fidelities(
    bundle: Bundle, cases: Mapping[str, StageStatistics], options: EvaluationOptions, progress: CountProgress
) -> Document:
    """Stage that was quantised → how near it comes; stages that no question reaches are left out."""
    stages: Document = {}
    for at, stage in enumerate(_recipe(bundle)):
        progress(f"{bundle.folder.name}: comparing {stage}", at, len(cases))
        compared = stage_fidelity(bundle, stage, cases[stage].held_out, options.backend, options.threads)
        if compared:
            stages[stage] = {
                "cosine": fmean(near.cosine for near in compared),
                "least_cosine": min(near.cosine for near in compared),
                "relative_error": fmean(near.relative_error for near in compared),
                "greatest_relative_error": max(near.relative_error for near in compared),
            }
    return stages


def _pipeline(bundle: Bundle, backend: str, options: EvaluationOptions) -> Pipeline:
    return Pipeline.load(bundle.folder, backend, threads=options.threads, cache_bytes=1 << 30, lazy=True)


def _in_fp16(baseline: Bundle, stage: str, folder: Path) -> Bundle:
    """A bundle with no more than this stage, in fp16: what rounding alone does to features."""
    model = load_graph(baseline, stage)
    HalfPrecisionPass(ir.DataType.FLOAT16)(model)
    spec = baseline.manifest.stages[stage]
    (folder / spec.file).parent.mkdir(parents=True, exist_ok=True)
    halved = save_stage(model, spec, "fp16", folder)
    return Bundle(folder, baseline.manifest.model_copy(update={"stages": {stage: halved}, "engines": {}}))


def _overlaps(ours: KeptSets, theirs: KeptSets) -> dict[str, float]:
    """Keep ratio → overlap of kept sets, the mean over images."""
    return {
        f"{ratio:g}": fmean(jaccard(a, b) for a, b in zip(ours[ratio], theirs[ratio], strict=True)) for ratio in theirs
    }
