"""Sensitivities: what each group of layers costs where it alone is quantised, in features, kept sets and answers.

A layer group is the layers that read one value (the three projections into attention, the one out of it, gate and up,
down): they share a range and a smoothing. The bundle answers the held-out samples with one group after another quantised
in memory, all else as it is. The answers' tokens are the baseline's, whatever the logits say, so that every number
compares the same step.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import onnxruntime as ort

from ..runtime.backends.ort_kv_cache import OrtLanguage
from ..runtime.backends.session import Decoding, LanguageSession, cast_inputs
from ..runtime.bundle import Bundle, Sensitivity
from ..runtime.bundle.atomic_file import replacing
from ..runtime.bundle.lock import making
from ..runtime.errors import RedipruneError
from ..runtime.pipeline import Pipeline
from ..runtime.visual_tokens import Kept
from .activations import FRAMES, Copying, ask
from .bundle_graphs import load_graph, open_graph
from .evaluation.question_dataset import Question, media_of
from .evaluation.similarity import jaccard, nearness
from .observations import Observations, cache_folder, observe, read_data
from .plan import CalibrationPlan, plan_calibration
from .progress_types import StageProgress, ignore_stage
from .quantize.linear_layers import linear_layers
from .quantize.schemes import SCHEMES, PassInputs
from .settings import CalibrationSettings
from .stage_statistics import HeldOutCase

KEEP_RATIO = 0.15  # at which kept sets are compared
_CACHE_BYTES = 1 << 30  # of features


@dataclass(frozen=True)
class LayerGroup:
    """Linear layers of a stage that read one value.

    Attributes:
        stage: where they are.
        name: the first layer's, with the last parts of the others': "mlp.gate_proj+up_proj".
        layers: their names.
        weights: how many numbers they multiply with.
    """

    stage: str
    name: str
    layers: tuple[str, ...]
    weights: int


def layer_groups(bundle: Bundle, stage: str, excluded: Sequence[str] = ()) -> list[LayerGroup]:
    """The layer groups of a stage in the order of its graph, without layers that are excluded anyway."""
    sharing: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for layer in linear_layers(load_graph(bundle, stage)):
        if layer.name not in excluded:
            sharing[str(layer.input.name)].append((layer.name, layer.shape[0] * layer.shape[1]))
    groups = []
    for layers in sharing.values():
        names = tuple(name for name, _ in layers)
        groups.append(LayerGroup(stage, _common_name(names), names, sum(weights for _, weights in layers)))
    return groups


def _common_name(names: Sequence[str]) -> str:
    """ "mlp.gate_proj", "mlp.up_proj" → "mlp.gate_proj+up_proj"."""
    parent = names[0].rpartition(".")[0]
    return "+".join([names[0], *(name.removeprefix(f"{parent}.") for name in names[1:])])


def sensitivity(
    source: str | Path,
    settings: CalibrationSettings | str = "int8",
    *,
    force: bool = False,
    progress: StageProgress | None = None,
) -> list[Sensitivity]:
    """Measure what each layer group costs; what was measured serves `calibrate` too. No bundle is made.

    Args:
        source: the baseline, in fp32 or fp16.
        settings: as `calibrate` takes them, without a budget; a text is a recipe, all else by default.
        force: measure again what an earlier call measured.
        progress: called with what is being done.

    Returns:
        The sensitivities, stage by stage in the order of their graphs.

    Raises:
        RedipruneError: what `calibrate` raises, or a scheme that takes whole stages.
    """
    settings = CalibrationSettings(recipe=settings) if isinstance(settings, str) else settings
    report = progress or ignore_stage
    plan = plan_calibration(Bundle.open(source), settings)
    plan.check_layers_can_stay()
    folder = plan.baseline.folder.resolve()
    with making(folder.with_name(f"{folder.name}.sensitivity")):
        plan.can_run(list(plan.schemes))
        cache = cache_folder(plan.baseline, folder)
        observations = observe(plan, read_data(plan, cache, report), cache, report)
        return measure_sensitivities(plan, observations, list(plan.schemes), force=force, progress=report)


def measure_sensitivities(
    plan: CalibrationPlan,
    observations: Observations,
    stages: Sequence[str],
    *,
    force: bool = False,
    threads: int = 0,
    progress: StageProgress = ignore_stage,
) -> list[Sensitivity]:
    """Quantise one layer group after another and ask the held-out samples.

    Args:
        plan: whose baseline fits into memory, with schemes that can leave single layers out.
        observations: of the baseline; beside them is kept what is measured, so that it is not measured again.
        stages: whose layer groups are measured, without the layers that the plan excludes.
        force: measure again what is kept.
        threads: of ONNX Runtime.
        progress: called with what is being done.

    Returns:
        What each group costs, in the order of the stages' graphs.

    Raises:
        RedipruneError: a stage that no held-out sample reaches.
    """
    groups = [group for stage in stages for group in layer_groups(plan.baseline, stage, plan.excluded.get(stage, []))]
    stores = {stage: observations.folder / f"{stage}.sensitivity.{_key(plan, stage)}.json" for stage in stages}
    stored = {stage: {} if force else _read(path) for stage, path in stores.items()}
    known: dict[LayerGroup, Sensitivity] = {}
    for group in groups:
        kept = stored[group.stage].get(group.name)
        if kept is not None and kept.layers == list(group.layers):
            known[group] = kept
    if len(known) < len(groups):
        progress("sensitivity", "the baseline's answers", len(known) / len(groups))
        probe = _Samples(plan.baseline, stages, observations.data.held_out, threads)
        for at, group in enumerate(groups):
            if group in known:
                continue
            progress("sensitivity", f"{group.name} alone ({at + 1} of {len(groups)})", at / len(groups))
            known[group] = probe.effect(group, _quantised_alone(plan, observations, group, threads))
            stored[group.stage][group.name] = known[group]
            _write(stores[group.stage], stored[group.stage])
    progress("sensitivity", "done", 1.0)
    return [known[group] for group in groups]


def _quantised_alone(
    plan: CalibrationPlan, observations: Observations, group: LayerGroup, threads: int
) -> ort.InferenceSession:
    """The group's stage with no other layer quantised."""
    settings, model = plan.settings, load_graph(plan.baseline, group.stage)
    activations = observations.statistics[group.stage].activations
    given = PassInputs(activations, settings.ranges, settings.smoothing, group.layers)
    SCHEMES[plan.schemes[group.stage]].make_pass(given)(model)
    return open_graph(plan.baseline, group.stage, model, threads)


def _key(plan: CalibrationPlan, stage: str) -> str:
    """What a sensitivity depends on besides the bundle and the data."""
    tools = [version(name) for name in ("rediprune", "onnxruntime", "numpy")]
    asked = [plan.schemes[stage], plan.settings.ranges, plan.settings.smoothing]
    return hashlib.sha256(json.dumps([tools, KEEP_RATIO, *asked]).encode()).hexdigest()[:12]


def _read(path: Path) -> dict[str, Sensitivity]:
    """What an earlier call measured; nothing where the file is missing or damaged."""
    try:
        return {name: Sensitivity.model_validate(raw) for name, raw in json.loads(path.read_text("utf-8")).items()}
    except (OSError, ValueError, AttributeError):  # no file, no text or JSON or other fields, no object
        return {}


def _write(path: Path, measured: Mapping[str, Sensitivity]) -> None:
    known = {**_read(path), **measured}  # with what another process measured of the same bundle in the meantime
    with replacing(path) as temporary:
        temporary.write_text(json.dumps({name: one.model_dump() for name, one in known.items()}), encoding="utf-8")


@dataclass
class _Answers:
    """What the samples led to: of one stage its cases, logits [N, V] of each answer, token ids, kept sets."""

    cases: list[HeldOutCase] = field(default_factory=list)
    logits: list[np.ndarray] = field(default_factory=list)
    token_ids: list[list[int]] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)


class _Samples:
    """The samples held out, the source's answers to them, and what a change of one stage does to these."""

    def __init__(self, bundle: Bundle, stages: Sequence[str], questions: Sequence[Question], threads: int):
        self.bundle, self.questions = bundle, questions
        self.pipeline = Pipeline(bundle, dict.fromkeys(bundle.manifest.stages, "ort"), threads, _CACHE_BYTES)
        self.towers = {modality.stage for modality in bundle.manifest.modalities.values()}
        self.source = {stage: self._ask(stage, None) for stage in stages}

    def effect(self, group: LayerGroup, session: ort.InferenceSession) -> Sensitivity:
        """What is other where the session runs the group's stage."""
        source = self.source[group.stage]
        if not source.cases:
            raise RedipruneError(
                f"no held-out sample reaches stage '{group.stage}'; give more with --data, or leave the stage as it is: "
                f"{group.stage}=unchanged"
            )
        ours = self._ask(group.stage, session)
        pairs = zip(ours.cases, source.cases, strict=True)
        errors = [nearness(o.outputs[name], s.outputs[name]).relative_error for o, s in pairs for name in s.outputs]
        logits = list(zip(ours.logits, source.logits, strict=True))
        return Sensitivity(
            stage=group.stage,
            unit=group.name,
            layers=list(group.layers),
            weights=group.weights,
            error=max(errors),
            kept=fmean(jaccard(o, s) for o, s in zip(ours.kept, source.kept, strict=True)) if source.kept else None,
            logits=fmean(nearness(o, s).relative_error for o, s in logits),
            tokens=fmean(float((o.argmax(axis=1) == s.argmax(axis=1)).mean()) for o, s in logits),
        )

    def _ask(self, stage: str, session: ort.InferenceSession | None) -> _Answers:
        """Ask every sample, the stage in a session of its own or, with none, as it is in the source."""
        found, pipeline = _Answers(), self.pipeline
        language: Any = pipeline.stage("language")
        sessions: dict[str, Any] = {}
        if stage == "language":
            copied: list[HeldOutCase] = found.cases
            language = Copying(language if session is None else OrtLanguage(self.bundle, session), copied)
        else:
            copied = []
            inner = pipeline.stage(stage) if session is None else _Rewritten(self.bundle, stage, session)
            sessions[stage] = Copying(inner, found.cases)
            language = Copying(language, copied)
        with pipeline.replaced(**sessions):
            for number, question in enumerate(self.questions):
                forced = [] if session is None else self.source[stage].token_ids[number]
                with pipeline.replaced(language=_Forcing(language, forced) if forced else language):
                    found.token_ids.append(ask(pipeline, question, number).token_ids)
            cases = len(found.cases)
            for question in self.questions if stage in self.towers else ():
                images, videos = media_of(question, self.bundle, FRAMES)
                found.kept += pipeline.select(
                    question.question, images, videos, frames=FRAMES, keep=KEEP_RATIO, prune_tiles=True
                )
            del found.cases[cases:]
        found.logits = [case.outputs["logits"] for case in copied]
        return found


class _Rewritten:
    """A stage other than `language` in a session of a rewritten graph."""

    batch = 1

    def __init__(self, bundle: Bundle, stage: str, session: ort.InferenceSession):
        self.spec, self.session = bundle.manifest.stages[stage], session
        self.outputs = [port.name for port in self.spec.outputs]

    def run(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        values = self.session.run(self.outputs, cast_inputs(self.spec, inputs))
        return dict(zip(self.outputs, map(np.asarray, values), strict=True))


class _Forcing:
    """A language model that says given tokens, whatever its logits are."""

    def __init__(self, language: LanguageSession, token_ids: Sequence[int]):
        self.language, self.token_ids = language, token_ids

    def start(self, length: int) -> "_ForcingDecoding":
        return _ForcingDecoding(self.language.start(length), iter(self.token_ids))


class _ForcingDecoding:
    def __init__(self, decoding: Decoding, token_ids: Any):
        self.decoding, self.token_ids = decoding, token_ids

    def step(self, embeds: Any, positions: np.ndarray | None = None, deepstack: np.ndarray | None = None) -> np.ndarray:
        logits = np.full_like(self.decoding.step(embeds, positions, deepstack), -np.inf)
        logits[next(self.token_ids)] = 0.0
        return logits
