"""What is observed of a baseline on samples, kept beside its calibrated bundles: no recipe has to run it again."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..runtime.bundle import Bundle
from ..runtime.errors import RedipruneError
from .activations import collect
from .data import Data, open_data
from .plan import CalibrationPlan
from .progress_types import StageProgress
from .stage_statistics import StageStatistics


@dataclass(frozen=True)
class Observations:
    """What was seen of a baseline.

    Attributes:
        data: the samples it was shown.
        statistics: stage → its activations and held-out cases.
        folder: where they are kept, and what is measured of the same bundle on the same data.
    """

    data: Data
    statistics: Mapping[str, StageStatistics]
    folder: Path


def cache_folder(baseline: Bundle, beside: Path) -> Path:
    """Where is kept what was observed of a bundle, for calibrated bundles `beside` which it lies."""
    return beside.parent / f".{baseline.folder.resolve().name}.activations"


def read_data(plan: CalibrationPlan, cache: Path, report: StageProgress) -> Data:
    """Open the samples that the settings ask for.

    Raises:
        RedipruneError: none there, or one that cannot be read.
    """
    settings = plan.settings
    report("data", "reading", 0.0)
    videos = "video" in plan.baseline.manifest.modalities
    data = open_data(settings.data, settings.samples, settings.seed, videos, cache)
    report("data", f"{len(data.samples)} samples, {len(data.held_out)} held out", 1.0)
    return data


def observe(plan: CalibrationPlan, data: Data, cache: Path, report: StageProgress) -> Observations:
    """Show the baseline the samples, or take what an earlier calibration saw of it on the same ones.

    Activations are taken of stages whose schemes use them; held-out cases of all that change. A file of the cache that
    is missing or damaged is made again.

    Args:
        plan: whose baseline fits into memory.
        data: the samples.
        cache: from `cache_folder`.
        report: called with what is being done.

    Raises:
        RedipruneError: a value that is not finite, or a stage that needs activations and that no sample reaches.
    """
    content = f"{plan.baseline.manifest.digest} {data.sha256}"
    folder = cache / hashlib.sha256(content.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    statistics: dict[str, StageStatistics] = {}
    for stage in plan.schemes:
        stored = StageStatistics.load(folder / f"{stage}.npz")
        if stored is not None and (stored.activations or stage not in plan.observed):
            statistics[stage] = stored
    missing = [stage for stage in plan.schemes if stage not in statistics]
    if missing:
        collected = collect(
            plan.baseline,
            [stage for stage in missing if stage in plan.observed],
            missing,
            data.samples,
            data.held_out,
            progress=lambda what, fraction: report("activations", what, fraction),
        )
        for stage, seen in collected.items():
            seen.save(folder / f"{stage}.npz")
        statistics |= collected
    report("activations", "done", 1.0)
    for stage in plan.needs_activations:
        if not statistics[stage].activations:
            raise RedipruneError(plan.says_unreached(stage))
    return Observations(data, statistics, folder)
