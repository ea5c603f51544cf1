"""Hold a bundle against the checkpoint in eager PyTorch, stage by stage and end to end.

The reference is float32 PyTorch, selection by `select_tokens`, greedy decoding.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from ...runtime.backend_choice import AUTO, choose_backends, describe_backends
from ...runtime.bundle import Bundle
from ...runtime.errors import RedipruneError
from ...runtime.media.processor import load_image
from ...runtime.media.video import load_video
from ...runtime.pipeline import Pipeline
from .end_to_end_comparison import compare_request
from .polygraphy_files import make_folder, save_cases_for_polygraphy
from .sample_media import sample_clip, sample_picture
from .stage_comparison import compare_stage
from .stored_cases import stored_cases
from .validation_report import ValidationReport


def validate(
    folder: str | Path,
    backend: str = AUTO,
    stages: Collection[str] = (),
    eager: Collection[str] = (),
    image: Any = None,
    video: Any = None,
    end_to_end: bool = True,
    threads: int = 0,
    refresh: bool = False,
    save_inputs: Path | None = None,
) -> ValidationReport:
    """Hold a bundle against eager PyTorch.

    Args:
        folder: the bundle.
        backend: what runs its stages.
        stages: only these, and no whole answers; empty is all of them.
        eager: stages that run eagerly in the end-to-end part, to find the one that drifts.
        image, video: what to ask about, anything `Pipeline.generate` takes; None is a made picture and clip.
        end_to_end: compare whole answers too.
        threads: of each stage; 0 leaves it to the backend.
        refresh: run eager PyTorch again, instead of reading what it gave before.
        save_inputs: write every compared stage's inputs and expected outputs to this folder, for Polygraphy.

    Raises:
        RedipruneError: an unusable bundle, picture or video, a stage that is not one of the bundle's, or a backend that
            does not run here.
    """
    bundle = Bundle.open(folder, remember=False)
    bundle.check_complete()
    chosen = _chosen_stages(bundle, stages)
    _check_media(bundle, image, video)
    if save_inputs is not None:
        make_folder(save_inputs)
    pipeline = Pipeline.load(folder, backend, eager=eager, threads=threads, lazy=True)
    image = sample_picture() if image is None else image
    video = sample_clip() if video is None else video
    cases = stored_cases(bundle, image, video, refresh)
    precision = bundle.manifest.precision
    report = ValidationReport(str(folder), describe_backends(pipeline.backends), precision, sorted(eager))
    report.backends = dict(pipeline.backends)
    backends = choose_backends(bundle, backend)  # of the stages that run eagerly in whole answers too
    for stage in chosen:
        if save_inputs is not None:
            save_cases_for_polygraphy(bundle, stage, cases.stages[stage], save_inputs)
        report.stages += compare_stage(bundle, backends[stage].backend, stage, cases.stages[stage], threads)
    if end_to_end and not stages:
        report.end_to_end = [compare_request(pipeline, case, precision) for case in cases.requests]
    return report


def _chosen_stages(bundle: Bundle, stages: Collection[str]) -> list[str]:
    names = list(bundle.manifest.stages)
    unknown = sorted(set(stages) - set(names))
    if unknown:
        raise RedipruneError(f"stage '{unknown[0]}' is not one of this bundle's: {', '.join(names)}")
    return [name for name in names if not stages or name in stages]


def _check_media(bundle: Bundle, image: Any, video: Any) -> None:
    """Refuse what is no picture or no video, or a video that the model cannot see, before any model is loaded."""
    if image is not None:
        load_image(image)
    if video is not None and "video" not in bundle.manifest.modalities:
        raise RedipruneError(f"{bundle.manifest.family_name} answers about images only; leave the video out")
    if video is not None:
        load_video(video, 1)
