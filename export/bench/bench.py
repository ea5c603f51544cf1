"""The measurement: contenders take turns, figures are medians with their spread."""

import hashlib
import platform
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from PIL import Image

from ...graphs.selection.counts import num_kept
from ...runtime.bundle import Bundle
from ...runtime.cli.progress import one_bar, waiting
from ...runtime.errors import RedipruneError
from ...runtime.machine import processes_waiting, processor_name
from ...runtime.media.processor import Processor, load_image
from ...runtime.media.video import load_video
from ...runtime.prompt import prompt_ids
from ..checkpoint.reader import Checkpoint
from ..validate.sample_media import sample_picture
from .bench_rows import Document, contender_rows, speed_ups
from .bench_settings import BenchSettings
from .contenders import Contender, TurnError, our_contenders, peer_contenders, take_turn
from .multiply_adds import multiply_adds
from .roofline import measure_roofline
from .scaling import scaling_sweep
from .verdicts import verdicts

QUESTION = "Look at the picture closely and say in one sentence what is left of the person, and in which colours it is."
REPEATS = 2  # of every request within a turn
SCHEMA = 2
_PACKAGES = ("torch", "transformers", "onnxruntime", "numpy", "rediprune", "openvino")


def bench(folders: Sequence[Path], settings: BenchSettings | None = None) -> Document:
    """Measure bundles of one checkpoint, and what a user would take instead.

    Args:
        folders: bundles; their checkpoint must be at hand.
        settings: what is measured and how.

    Returns:
        The document: machine, versions, model, what the machine can do (`ceilings`), for every contender and keep ratio
        medians and spread (`rows`; `decoders` for decoders alone), speed-ups, and who was left out and why.

    Raises:
        RedipruneError: a bundle, its checkpoint or a name cannot be used, or no bundle runs on any backend.
    """
    settings = settings or BenchSettings()
    subject = _Subject.open(folders, settings)
    busy = processes_waiting()
    with tempfile.TemporaryDirectory() as scratch:
        request = {
            "question": QUESTION,
            "images": [] if settings.video else [str(_picture(settings.image, Path(scratch)))],
            "videos": [str(_video(settings.video))] if settings.video else [],
            "frames": settings.frames,
            "new_tokens": settings.new_tokens,
        }
        contenders, absent = _contenders(subject, settings)
        measured = _take_turns(contenders, absent, request, subject, settings)
        present = [contender for contender in contenders if contender.name not in absent]
        sweep = None
        if settings.grow:
            geometry = (subject.pictures, subject.patches)
            sweep = scaling_sweep(present[0], subject.bundles[0], geometry, request, settings)
    document = _document(subject, settings, present, measured)
    document["machine"] = {"processor": processor_name(), "threads": settings.cores, "load_before": busy}
    return document | {"absent": absent} | ({"growth": sweep} if sweep is not None else {})


@dataclass
class _Subject:
    """Bundles of one checkpoint and the request's geometry.

    Text tokens of the prompt; frames or tiles that the model sees, and visual tokens of each; and the sizes of the vision
    stage's inputs that follow from a picture's, where it may have any.
    """

    bundles: list[Bundle]
    checkpoint: Checkpoint
    prompt_tokens: int
    pictures: int
    patches: int
    grid: dict[str, int]

    @classmethod
    def open(cls, folders: Sequence[Path], settings: BenchSettings) -> "_Subject":
        """Open the bundles; refuse those that cannot be measured together or do not take the medium."""
        bundles = [Bundle.open(folder) for folder in folders]
        for bundle in bundles:
            bundle.check_complete()
        first, kind = bundles[0].manifest, settings.kind
        if any(bundle.manifest.source != first.source for bundle in bundles):
            raise RedipruneError("the bundles are not of one checkpoint; bench those of another apart")
        if kind not in first.modalities:
            raise RedipruneError(f"{first.family_name} answers about images only; leave --video out")
        if first.modalities[kind].tiled:
            raise RedipruneError(f"{first.family_name} sees images in tiles, which are not pruned; give a --video")
        checkpoint = Checkpoint.open(first.source.name, first.source.revision)
        processor = Processor.load(bundles[0].path("processor"))
        frames = _frames(settings)
        if processor.expand(processor.placeholders[kind], [(kind, frames)])[1] != [1]:
            raise RedipruneError(
                f"bench measures {first.family_name} with pictures only, for its prompt has words between a video's frames; "
                "leave --video out"
            )
        ids = prompt_ids(processor, QUESTION, int(kind == "image"), int(kind == "video"))
        inputs = processor.vision_inputs(frames, kind == "video")
        grid = {}
        if first.modalities[kind].dynamic:
            grid = {"groups": inputs["pixel_values"].shape[1]}
            grid |= {"windows": len(inputs["window_lengths"])} if "window_lengths" in inputs else {}
        patches = grid.get("groups", first.modalities[kind].patches)
        return cls(bundles, checkpoint, len(ids) - 1, len(inputs["pixel_values"]), patches, grid)

    @property
    def peer_folder(self) -> Path:
        """Where the forms of the checkpoint that peers want are kept, named after its content."""
        source, folder = self.bundles[0].manifest.source, self.bundles[0].folder
        digest = hashlib.sha256("".join([source.config_sha256, *sorted(source.weights.values())]).encode()).hexdigest()
        return folder.resolve().parent / "peers" / f"{Path(source.name).name}-{digest[:12]}"


@dataclass
class _Measured:
    """What the turns gave: by contender's name its turns, and the best of the machine in any of them."""

    turns: Mapping[str, list[Document]]
    roofline: Mapping[str, float]


def _frames(settings: BenchSettings) -> list[Image.Image]:
    """The picture that is asked about, or the frames of the video."""
    if settings.video is not None:
        return load_video(settings.video, settings.frames)
    return [sample_picture() if settings.image is None else load_image(settings.image)]


def _picture(image: Path | None, scratch: Path) -> Path:
    """The picture that every contender is shown: the one given, after a look whether it is one, or a made one."""
    if image is not None:
        load_image(image)
        return image.resolve()
    made = scratch / "sample.png"
    sample_picture().save(made)
    return made


def _video(video: Path) -> Path:
    load_video(video, 1)  # refuses what is none
    return video.resolve()


def _contenders(subject: _Subject, settings: BenchSettings) -> tuple[list[Contender], dict[str, str]]:
    """Who takes part, ours first, and which peers cannot, with the reason."""
    with waiting("making what the peers read", silent=False):
        peers, absent = peer_contenders(settings, subject.checkpoint.folder, subject.peer_folder)
    return our_contenders(subject.bundles, settings) + peers, absent


def _take_turns(
    contenders: Sequence[Contender],
    absent: dict[str, str],
    request: Document,
    subject: _Subject,
    settings: BenchSettings,
) -> _Measured:
    """Let everyone take turns; who fails is added to `absent` with the reason, and asked no more."""
    turns: dict[str, list[Document]] = {contender.name: [] for contender in contenders}
    roofline: dict[str, float] = {}
    requests = {contender.name: _requests(contender, request, subject) for contender in contenders}
    steps = settings.runs * (1 + len(contenders))
    with one_bar(hidden=False) as report:
        for turn in range(settings.runs):
            done = turn * (1 + len(contenders))
            report(f"turn {turn + 1}, what the machine can do", done, steps)
            best = measure_roofline(settings.cores)
            roofline = {key: max(value, roofline.get(key, 0.0)) for key, value in best.items()}
            for at, contender in enumerate(contenders, done + 1):
                if contender.name in absent:
                    continue
                report(f"turn {turn + 1}, {contender.name}", at, steps)
                try:
                    turns[contender.name].append(
                        take_turn(contender, requests[contender.name], REPEATS, settings.limit)
                    )
                except TurnError as error:
                    absent[contender.name] = str(error)
            if all(contender.name in absent for contender in contenders if contender.ours):
                raise RedipruneError(f"no bundle runs on {', '.join(settings.backends)}: {absent[contenders[0].name]}")
    return _Measured(turns, roofline)


def _requests(contender: Contender, request: Document, subject: _Subject) -> list[Document]:
    """The request at each ratio that the contender is asked for, with the positions that its prompt then takes."""
    return [
        request
        | {"keep": keep, "positions": subject.prompt_tokens + subject.pictures * num_kept(subject.patches, keep)}
        for keep in contender.keeps
    ]


def _document(
    subject: _Subject, settings: BenchSettings, present: Sequence[Contender], measured: _Measured
) -> Document:
    meta, count = subject.checkpoint.skeleton("fp32"), subject.pictures
    work = {
        keep: multiply_adds(
            meta, settings.kind, count, num_kept(subject.patches, keep), subject.prompt_tokens, subject.grid
        )
        for keep in sorted({keep for contender in present for keep in contender.keeps})
    }
    rows = [row for contender in present for row in contender_rows(contender, measured.turns[contender.name], work)]
    whole = [row for row in rows if "time_to_first_token" in row]
    return {
        "schema": SCHEMA,
        "date": time.strftime("%Y-%m-%d"),
        "versions": _versions(),
        "model": {
            "family": subject.bundles[0].manifest.family,
            "kind": settings.kind,
            "frames": count,
            "visual_tokens": count * subject.patches,
            "prompt_tokens": subject.prompt_tokens,
            "parameters": sum(parameter.numel() for parameter in meta.model.parameters()),
        },
        "runs": settings.runs * REPEATS,
        "turns": settings.runs,
        "ceilings": dict(measured.roofline),
        "multiply_adds": {f"{keep:g}": stages for keep, stages in work.items()},
        "rows": whole,
        "decoders": [row for row in rows if "time_to_first_token" not in row],
        "speed_up": speed_ups(whole),
        "verdicts": verdicts(whole),
    }


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found | {"python": platform.python_version()}
