"""Proof: what a bundle computes beside the checkpoint in eager PyTorch, stage by stage and end to end.

The reference is float32 PyTorch, selection by `select_tokens`, greedy decoding. Its outputs are computed once and kept
in `<bundle>.reference` beside the bundle. Beside each error stands the noise of an eager run of the bundle's own
precision (for fp32: float32 against float64), so that breakage stands out from rounding. A quantised stage is held to
the error that was measured when it was calibrated.
"""

import copy
import hashlib
import json
import os
import time
import zipfile
import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from polygraphy.backend.base import BaseRunner
from polygraphy.common import TensorMetadata
from polygraphy.comparator import Comparator, IterationResult, SimpleCompareFunc
from polygraphy.logger import G_LOGGER

from ...calibration.evaluation.evaluate import tokens_alike
from ...calibration.evaluation.similarity import jaccard, nearness, stage_runner
from ...runtime.bundle import Bundle, CalibrationSpec
from ...runtime.errors import RedipruneError
from ...runtime.media.preprocess import load_image, load_video
from ...runtime.pipeline import Pipeline
from .sample_media import sample_clip, sample_picture

# A stage may be this many times as far from float32 as an eager run of its precision is: backends sum in another
# order, none of them loses digits. A broken weight or dimension is off by orders of magnitude.
NOISE_FACTOR = 6.0
# A quantised stage may be this many times as far from float32, in relative error, as it was from its source on the
# samples held out when it was calibrated: another picture is another error, a broken stage is off by orders.
FIDELITY_FACTOR = 3.0
QUESTION = "What is left of the red ball?"
KEEPS: tuple[float | int, ...] = (1.0, 0.5, 0.15, 1)
NEW_TOKENS = 12
_FORMAT = 2  # of the stored reference

Arrays = dict[str, np.ndarray]


@dataclass
class Case:
    """One input of a stage, what eager PyTorch gives for it, and what it gives in the other precision."""

    label: str
    feed: Arrays
    expected: Arrays
    noisy: Arrays


@dataclass
class Story:
    """One request end to end and the reference's answer."""

    label: str
    options: dict[str, Any]
    images: list[Any]
    videos: list[Any]
    token_ids: list[int]
    logits: np.ndarray
    kept: list[np.ndarray]


@dataclass
class StageRow:
    """A stage's output over one input."""

    stage: str
    case: str
    output: str
    max_abs: float
    max_rel: float
    cosine: float
    noise: float  # largest absolute error of the equal-precision eager run
    allowed: float  # of max_abs; of relative_error where the stage is quantised
    passed: bool
    note: str = ""
    relative_error: float = 0.0  # ‖difference‖ / ‖expected‖


@dataclass
class StoryRow:
    """A request end to end."""

    case: str
    tokens: int
    equal: bool
    first_divergence: int | None
    logit_gap: float | None  # at the divergence: how much the reference prefers its own token
    jaccard: float  # of the kept sets
    passed: bool


@dataclass
class Report:
    """The outcome of a validation."""

    bundle: str
    backend: str
    precision: str
    eager: list[str] = field(default_factory=list)
    stages: list[StageRow] = field(default_factory=list)
    stories: list[StoryRow] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return all(row.passed for row in (*self.stages, *self.stories))

    @property
    def failing_stages(self) -> list[str]:
        """Stages that differ from eager on the same inputs: the ones to look at."""
        return list(dict.fromkeys(row.stage for row in self.stages if not row.passed))

    def document(self) -> dict[str, Any]:
        return {"passed": self.passed, "failing_stages": self.failing_stages} | asdict(self)


def validate(
    folder: str | Path,
    backend: str = "ort",
    stages: Collection[str] = (),
    eager: Collection[str] = (),
    image: Any = None,
    video: Any = None,
    end_to_end: bool = True,
    threads: int = 0,
    refresh: bool = False,
) -> Report:
    """Hold a bundle against eager PyTorch.

    Args:
        folder: the bundle.
        backend: what runs its stages.
        stages: only these; empty is all of them.
        eager: stages that run eagerly in the end-to-end part, to find the one that drifts.
        image, video: what to ask about, anything `Pipeline.generate` takes; None is a made picture and clip.
        end_to_end: compare whole answers too.
        refresh: compute the reference anew.

    Raises:
        RedipruneError: an unusable bundle, or a stage that is not one of it.
    """
    bundle = Bundle.open(folder, remember=False)
    names = list(bundle.manifest.stages)
    unknown = sorted(set(stages) - set(names))
    if unknown:
        raise RedipruneError(f"stage '{unknown[0]}' is not one of this bundle's: {', '.join(names)}")
    if image is not None:
        load_image(image)  # refuses what is no picture
    if video is not None and "video" not in bundle.manifest.modalities:
        raise RedipruneError(f"{bundle.manifest.family_name} answers about images only; leave the video out")
    if video is not None:
        load_video(video, 1)
    pipeline = Pipeline.load(folder, backend, eager=eager, threads=threads, lazy=True)
    reference = _stored_reference(bundle, image, video, refresh)
    report = Report(str(folder), backend, bundle.manifest.precision, sorted(eager))
    for name in names:
        if not stages or name in stages:
            report.stages += _compare_stage(bundle, backend, name, reference.stages[name], threads)
    if end_to_end and not stages:
        exact = bundle.manifest.precision == "fp32"
        report.stories = [_compare_story(pipeline, story, exact) for story in reference.stories]
    return report


# -- stages ------------------------------------------------------------------------------------------------------------


class _SessionRunner(BaseRunner):
    """A stage of the bundle as Polygraphy runs it."""

    def __init__(self, bundle: Bundle, backend: str, stage: str, threads: int, inputs: TensorMetadata):
        super().__init__(name=backend)
        self.inputs = inputs
        self.open = (backend, bundle, stage, threads)

    def activate_impl(self) -> None:
        self.run = stage_runner(*self.open)

    def deactivate_impl(self) -> None:
        del self.run

    def get_input_metadata_impl(self) -> TensorMetadata:
        return self.inputs

    def infer_impl(self, feed_dict: Arrays) -> Arrays:
        start = time.perf_counter()
        outputs = self.run(feed_dict)
        self.inference_time = time.perf_counter() - start
        return {name: np.asarray(array) for name, array in outputs.items()}  # some lie on the GPU


class _StoredRunner(BaseRunner):
    """The reference's outputs as Polygraphy runs them."""

    def __init__(self, cases: Sequence[Case], inputs: TensorMetadata):
        super().__init__(name="eager")
        self.inputs = inputs
        self.cases = iter(cases)

    def get_input_metadata_impl(self) -> TensorMetadata:
        return self.inputs

    def infer_impl(self, feed_dict: Arrays) -> Arrays:
        self.inference_time = 0.0  # it was computed when the reference was made
        return next(self.cases).expected


def _compare_stage(bundle: Bundle, backend: str, stage: str, cases: list[Case], threads: int) -> list[StageRow]:
    inputs = TensorMetadata()
    for name, array in cases[0].feed.items():
        inputs.add(name, array.dtype, (None,) * array.ndim)  # the cases differ in shape
    runners = [_SessionRunner(bundle, backend, stage, threads, inputs), _StoredRunner(cases, inputs)]
    with _quiet_polygraphy():
        try:
            results = Comparator.run(runners, data_loader=[case.feed for case in cases])
        except RedipruneError:
            raise
        except Exception as error:
            return [_failed(stage, "all", f"does not run: {str(error).splitlines()[0]}")]
        rows = []
        made = bundle.manifest.calibration
        for index, case in enumerate(cases):
            ours, theirs = (dict(result[index]) for _, result in results)
            for name, expected in case.expected.items():
                row = _compare_output(stage, case, name, np.asarray(ours[name]), np.asarray(theirs[name]), expected)
                if made is not None and stage in made.recipe and row.cosine:  # it ran, and gave numbers
                    _judge_quantised(row, made, real=index == 0)
                rows.append(row)
    return rows


def _judge_quantised(row: StageRow, made: CalibrationSpec, real: bool) -> None:
    """Hold a quantised stage to what was measured of it: rounding to a few bits is no fault, more than that is one.

    Ranges are taken from real inputs, so only those are judged (the first case of every stage is one).
    """
    near = made.fidelity.get(row.stage)
    measured = None if near is None else FIDELITY_FACTOR * near.relative_error
    allowed = (made.floors or {}).get(row.stage, measured)
    row.allowed = float("inf") if allowed is None or not real else allowed
    row.passed = row.relative_error <= row.allowed


def _compare_output(
    stage: str, case: Case, name: str, ours: np.ndarray, theirs: np.ndarray, expected: np.ndarray
) -> StageRow:
    if ours.shape != expected.shape:
        return _failed(stage, case.label, f"output '{name}' has shape {ours.shape}, eager has {expected.shape}")
    if not np.isfinite(ours).all():
        return _failed(stage, case.label, f"output '{name}' is not finite")
    if expected.dtype.kind in "iu":
        equal = bool(np.array_equal(ours, expected))
        note = "" if equal else f"{int((ours != expected).sum())} of {ours.size} indices differ"
        return StageRow(stage, case.label, name, 0.0, 0.0, 1.0, 0.0, 0.0, equal, note)
    exact = expected.astype(np.float64)
    noise = float(np.abs(case.noisy[name].astype(np.float64) - exact).max())
    # Rounding the result itself is allowed: a stage that only copies has no noise of its own.
    unit = float(np.finfo(case.noisy[name].dtype if case.noisy[name].dtype != np.float64 else np.float32).eps)
    allowed = NOISE_FACTOR * max(noise, unit * float(np.abs(exact).max()))
    compare = SimpleCompareFunc(atol=allowed, rtol=0.0, check_error_stat="max", check_shapes=True)
    outcome = compare(_result(name, ours), _result(name, theirs))[name]
    near = nearness(ours, expected)
    return StageRow(
        stage,
        case.label,
        name,
        float(outcome.max_absdiff),
        float(outcome.max_reldiff),
        near.cosine,
        noise,
        allowed,
        bool(outcome),
        relative_error=near.relative_error,
    )


def _result(name: str, array: np.ndarray) -> Any:
    return IterationResult({name: array.astype(np.float64)}, runner_name=name)


def _failed(stage: str, case: str, note: str) -> StageRow:
    worst = float("inf")
    return StageRow(stage, case, "", worst, worst, 0.0, 0.0, 0.0, False, note)


# -- end to end --------------------------------------------------------------------------------------------------------


def _compare_story(pipeline: Pipeline, story: Story, exact: bool) -> StoryRow:
    answer = pipeline.generate(QUESTION, story.images, story.videos, temperature=0.0, **story.options)
    equal = answer.token_ids == story.token_ids
    at = gap = None
    if not equal:
        alike = tokens_alike(answer.token_ids, story.token_ids)
        if alike < min(len(answer.token_ids), len(story.token_ids)):  # else one goes on where the other ends
            at = alike
            gap = float(story.logits[at, story.token_ids[at]] - story.logits[at, answer.token_ids[at]])
    overlap = jaccard(chain(*answer.kept), chain(*story.kept)) if story.kept else 1.0
    # In lower precision a divergence is reported with its gap; what is broken shows in the stages.
    passed = (equal and overlap == 1.0) if exact else True
    return StoryRow(story.label, len(answer.token_ids), equal, at, gap, overlap, passed)


# -- the reference -----------------------------------------------------------------------------------------------------


@dataclass
class StoredReference:
    """What eager PyTorch gives: for every stage its cases, and whole answers."""

    stages: dict[str, list[Case]]
    stories: list[Story]


def _stored_reference(bundle: Bundle, image: Any, video: Any, refresh: bool) -> StoredReference:
    """The reference's inputs and outputs, computed once per checkpoint, precision and media."""
    pictures = [sample_picture() if image is None else image]
    clips = [sample_clip() if video is None else video]
    seen = [item.read_bytes() if isinstance(item, Path) else str(item).encode() for item in (image, video)]
    key = json.dumps([_FORMAT, bundle.manifest.source.model_dump(), bundle.manifest.float_precision, QUESTION, KEEPS])
    digest = hashlib.sha256(key.encode() + b"".join(seen)).hexdigest()[:16]
    path = bundle.folder.parent / f".{bundle.folder.name}.reference" / f"{digest}.npz"
    if path.is_file() and not refresh:
        try:
            return _load_reference(path, pictures, clips)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
            path.unlink()  # damaged: made anew
    made = _make_reference(bundle, pictures, clips)
    path.parent.mkdir(exist_ok=True)
    _save_reference(path, made)
    return made


def _save_reference(path: Path, reference: "StoredReference") -> None:
    """One .npz: arrays under `stage/index/part/name`, and what is no array as JSON."""
    arrays: Arrays = {}
    for stage, cases in reference.stages.items():
        for index, case in enumerate(cases):
            for part in ("feed", "expected", "noisy"):
                for name, array in getattr(case, part).items():
                    arrays[f"{stage}/{index}/{part}/{name}"] = array
    stories = []
    for index, story in enumerate(reference.stories):
        arrays[f"story/{index}/logits"] = story.logits
        for at, kept in enumerate(story.kept):
            arrays[f"story/{index}/kept/{at}"] = kept
        stories.append([story.label, story.options, bool(story.images), bool(story.videos), story.token_ids])
    labels = {stage: [case.label for case in cases] for stage, cases in reference.stages.items()}
    document = json.dumps({"labels": labels, "stories": stories})
    temporary = path.with_name(path.name + ".new")
    with open(temporary, "wb") as file:
        np.savez_compressed(file, allow_pickle=False, document=np.array(document), **arrays)
    os.replace(temporary, path)


def _load_reference(path: Path, pictures: list[Any], clips: list[Any]) -> "StoredReference":
    with np.load(path) as stored:
        document = json.loads(str(stored["document"]))

        def part(prefix: str) -> Arrays:
            return {name.removeprefix(prefix): stored[name] for name in stored.files if name.startswith(prefix)}

        stages = {
            stage: [
                Case(label, *(part(f"{stage}/{index}/{kind}/") for kind in ("feed", "expected", "noisy")))
                for index, label in enumerate(labels)
            ]
            for stage, labels in document["labels"].items()
        }
        stories = [
            Story(
                label,
                options,
                pictures if with_images else [],
                clips if with_videos else [],
                token_ids,
                stored[f"story/{index}/logits"],
                [array for _, array in sorted(part(f"story/{index}/kept/").items())],
            )
            for index, (label, options, with_images, with_videos, token_ids) in enumerate(document["stories"])
        ]
    return StoredReference(stages, stories)


def _make_reference(bundle: Bundle, pictures: list[Any], clips: list[Any]) -> StoredReference:
    from ...runtime.backends.eager_torch import eager_model, eager_stages
    from .eager_reference import Reference, Request

    model = eager_model(bundle)
    stages = {stage.name: stage for stage in eager_stages(bundle)}
    reference = Reference(model, Pipeline.load(bundle.folder, "eager", verify=False).processor)
    feeds = _feeds(bundle, reference, pictures)
    noisy_type = {"fp32": "float64", "fp16": "float16"}[bundle.manifest.float_precision]
    cases = {}
    for name, stage in stages.items():
        outputs = _eager_outputs(stage, feeds[name], "float32")
        noisy = _eager_outputs(stage, feeds[name], noisy_type)
        cases[name] = [
            Case(label, feed, expected, rough)
            for (label, feed), expected, rough in zip(feeds[name], outputs, noisy, strict=True)
        ]
    stories = []
    media: list[tuple[str, list[Any], list[Any]]] = [("text only", [], []), ("image", pictures, [])]
    if "video" in bundle.manifest.modalities:
        media += [("video", [], clips), ("image and video", pictures, clips)]
    for kind, images, videos in media:
        for keep in KEEPS if images or videos else (1.0,):
            tiled = bool(images) and bundle.manifest.modalities["image"].tiled
            options = {"keep": keep, "frames": 4, "max_new_tokens": NEW_TOKENS, "prune_tiles": tiled}
            answer = reference.answer(Request(QUESTION, images, videos, **options))
            label = f"{kind}, {'K' if isinstance(keep, int) else 'keep'} = {keep}"
            stories.append(Story(label, options, images, videos, answer.token_ids, answer.logits, answer.kept))
    return StoredReference(cases, stories)


def _feeds(bundle: Bundle, reference: Any, pictures: list[Any]) -> dict[str, list[tuple[str, Arrays]]]:
    """Inputs for every stage: real ones, as they flow through the eager model, and seeded random ones."""
    import torch

    from ...graphs.selection.counts import query_ids
    from ...runtime.prompt import render_prompt

    random = np.random.default_rng(0)
    manifest, processor, model = bundle.manifest, reference.processor, reference.model
    half = manifest.float_precision == "fp16"

    def rounded(array: np.ndarray) -> np.ndarray:  # what the stage's own dtype can hold, in float32
        return array.astype(np.float16).astype(np.float32) if half else array.astype(np.float32)

    def normal(*shape: int) -> np.ndarray:
        return rounded(random.standard_normal(shape))

    image = load_image(pictures[0])
    ids = processor.encode(render_prompt(processor, QUESTION, 1, 0))
    question = query_ids(ids, reference.placeholders)
    size, channels, width = manifest.image_size, manifest.channels, manifest.decoder.width
    with torch.inference_mode():
        table = model.get_input_embeddings()
        asked = rounded(table(torch.tensor(question)).numpy())
        plain = [0 if token in reference.placeholders else token for token in ids]
        prompt = rounded(table(torch.tensor([plain])).numpy())
        steps = rounded(table(torch.tensor([plain[-4:]])).numpy())
    feeds: dict[str, list[tuple[str, Arrays]]] = {}
    features = normal(1, manifest.modalities["image"].patches, channels)
    for kind, modality in manifest.modalities.items():
        pixels = processor.pixel_values([image], kind == "video")
        feeds.setdefault(
            modality.stage,
            [
                ("picture", {"pixel_values": rounded(pixels[:1])}),
                ("3 × random", {"pixel_values": normal(3, 3, size, size)}),
            ],
        )
        if kind == "image":
            with torch.inference_mode():
                features = rounded(reference.features(torch.from_numpy(pixels[:1]), kind).numpy())
    patches = features.shape[1]
    select = []
    for keep, frames, tau in ((0.5, features, 0.0), (0.15, features, 0.0), (0.25, normal(5, 36, channels), 0.05)):
        count = max(1, round(frames.shape[1] * keep))
        label = f"{count} of {len(frames)} × {frames.shape[1]}{', τ > 0' * (tau > 0)}"
        select.append((label, _select_feed(frames, asked, count, tau)))
    select.append((f"1 of 1 × {patches}", _select_feed(features, asked[-1:], 1, 0.0)))
    feeds["select"] = select
    feeds["project"] = [
        ("picture", {"kept": features[:, ::3].copy()}),
        ("3 × 5 random", {"kept": normal(3, 5, channels)}),
    ]
    feeds["embed"] = [
        ("prompt", {"input_ids": np.array([plain])}),
        ("2 × 3 tokens", {"input_ids": random.integers(0, len(processor.tokenizer), (2, 3))}),
    ]
    feeds["language"] = [
        (f"{len(plain)} tokens + 4", {"prompt": prompt, "steps": steps}),
        ("70 tokens + 2", {"prompt": normal(1, 70, width) * 0.05, "steps": normal(1, 2, width) * 0.05}),
    ]
    return feeds


def _select_feed(features: np.ndarray, question: np.ndarray, count: int, tau: float) -> Arrays:
    return {
        "features": features,
        "text_embeds": question,
        "num_keep": np.array(count),
        "alpha": np.array(0.5, np.float32),
        "tau": np.array(tau, np.float32),
    }


def _eager_outputs(stage: Any, feeds: list[tuple[str, Arrays]], dtype: str) -> list[Arrays]:
    """A stage's eager outputs with weights and inputs of a dtype."""
    import torch

    kind = getattr(torch, dtype)
    # `select` computes in float32 whatever it is given.
    module = stage.module if dtype == "float32" else copy.deepcopy(stage.module).to(kind)

    def tensor(array: np.ndarray) -> torch.Tensor:
        value = torch.from_numpy(np.ascontiguousarray(array))
        return value.to(kind) if value.is_floating_point() else value

    outputs = []
    with torch.inference_mode():
        for _, feed in feeds:
            if stage.name == "language":
                outputs.append(_eager_language(module, tensor(feed["prompt"]), tensor(feed["steps"])))
                continue
            values = module(*(tensor(feed[port.name]) for port in stage.inputs))
            values = values if isinstance(values, tuple) else (values,)
            outputs.append({p.name: v.numpy() for p, v in zip(stage.outputs, values, strict=True)})
    return outputs


def _eager_language(module: Any, prompt: Any, steps: Any) -> Arrays:
    """The decoder over its whole input at once, with no cache and with transformers' own attention."""
    import torch

    whole = torch.cat([prompt, steps], dim=1)
    hidden = module.decoder(inputs_embeds=whole, use_cache=False).last_hidden_state
    return {"logits": module.head(hidden[0, prompt.shape[1] - 1 :]).numpy()}


@contextmanager
def _quiet_polygraphy() -> Iterator[None]:
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        yield
