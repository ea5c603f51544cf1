"""What each part of a bundle costs where it alone is quantised: in features, kept sets and answers.

A part, a unit, is the layers that read one value (the three projections into attention, the one out of it, gate and up,
down): they share a range and a smoothing. The bundle answers the samples held out, one unit after another quantised in
memory, all else as it is; the answers' tokens are the source's, whatever the logits say, so that every number compares
the same step.
"""

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import onnxruntime as ort

from ..runtime.backends.ort import OrtLanguage
from ..runtime.backends.session import Decoding, LanguageSession, cast_inputs
from ..runtime.bundle import Bundle, Sensitivity
from ..runtime.errors import RedipruneError
from ..runtime.pipeline import Pipeline
from .activations import FRAMES, Activation, Copying, Held, ask
from .bundle_graphs import load_graph, open_graph
from .evaluation.evaluate import Question, media_of
from .evaluation.similarity import jaccard, nearness
from .quantize.apply import apply_form
from .quantize.linear_layers import linear_layers

KEEP = 0.15  # at which kept sets are compared
_CACHE = 1 << 30  # bytes of features

Progress = Callable[[str, float], None]  # what is being done, fraction done


@dataclass(frozen=True)
class Unit:
    """Linear layers of a stage that read one value."""

    stage: str
    name: str
    layers: tuple[str, ...]
    weights: int


def units_of(bundle: Bundle, stage: str, skipped: Sequence[str] = ()) -> list[Unit]:
    """The units of a stage in the order of its graph, without layers that are skipped anyway."""
    sharing: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for layer in linear_layers(load_graph(bundle, stage)):
        if layer.name not in skipped:
            sharing[str(layer.input.name)].append((layer.name, layer.shape[0] * layer.shape[1]))
    units = []
    for layers in sharing.values():
        names = tuple(name for name, _ in layers)
        units.append(Unit(stage, _common_name(names), names, sum(weights for _, weights in layers)))
    return units


def _common_name(names: Sequence[str]) -> str:
    """ "mlp.gate_proj", "mlp.up_proj" → "mlp.gate_proj+up_proj"."""
    parent = names[0].rpartition(".")[0]
    return "+".join([names[0], *(name.removeprefix(f"{parent}.") for name in names[1:])])


def measure(
    bundle: Bundle,
    forms: Mapping[str, str],
    units: Sequence[Unit],
    activations: Mapping[str, Mapping[str, Activation]],
    questions: Sequence[Question],
    place: Path,
    ranges: str = "minmax",
    alpha: float | None = None,
    force: bool = False,
    threads: int = 0,
    progress: Progress | None = None,
) -> list[Sensitivity]:
    """Quantise one unit after another and ask the samples held out.

    Args:
        bundle: the source, which fits into memory.
        forms: stage → form of `FORMS` that leaves single layers as they are.
        units: of these stages.
        activations: stage → of its layers' inputs, by name.
        questions: the samples held out.
        place: a folder for what was measured; what an earlier call measured there in the same way is not measured again.
        ranges, alpha: as in `calibrate`.
        force: measure again.
        threads: of ONNX Runtime.
        progress: told what is done and which fraction of it.

    Returns:
        For each unit what it costs.

    Raises:
        RedipruneError: a stage that no sample reaches.
    """
    say = progress or (lambda what, fraction: None)
    known: dict[Unit, Sensitivity] = {}
    stores = {stage: place / f"{stage}.sensitivity.{_key(form, ranges, alpha)}.json" for stage, form in forms.items()}
    stored = {stage: {} if force else _read(path) for stage, path in stores.items()}
    for unit in units:
        found = stored[unit.stage].get(unit.name)
        if found is not None and found.layers == list(unit.layers):
            known[unit] = found
    if len(known) < len(units):
        say("the source's answers", len(known) / len(units))
        samples = _Samples(bundle, list(dict.fromkeys(unit.stage for unit in units)), questions, threads)
        for at, unit in enumerate(units):
            if unit in known:
                continue
            say(f"{unit.name} alone ({at + 1} of {len(units)})", at / len(units))
            model = load_graph(bundle, unit.stage)
            layers = [layer for layer in linear_layers(model) if layer.name in unit.layers]
            apply_form(model, forms[unit.stage], layers, activations[unit.stage], ranges, alpha)
            known[unit] = samples.effect(unit, open_graph(bundle, unit.stage, model, threads))
            stored[unit.stage][unit.name] = known[unit]
            _write(stores[unit.stage], stored[unit.stage])
    say("done", 1.0)
    return [known[unit] for unit in units]


def _key(*settings: object) -> str:
    tools = [version(name) for name in ("rediprune", "onnxruntime", "numpy")]
    return hashlib.sha256(json.dumps([tools, KEEP, *settings]).encode()).hexdigest()[:12]


def _read(path: Path) -> dict[str, Sensitivity]:
    with suppress(OSError, ValueError):
        return {name: Sensitivity.model_validate(raw) for name, raw in json.loads(path.read_text("utf-8")).items()}
    return {}


def _write(path: Path, found: Mapping[str, Sensitivity]) -> None:
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(json.dumps({name: one.model_dump() for name, one in found.items()}), encoding="utf-8")
    os.replace(temporary, path)


@dataclass
class _Answers:
    """What the samples led to: of one stage its cases, logits [N, V] of each answer, token ids, kept sets."""

    cases: list[Held] = field(default_factory=list)
    logits: list[np.ndarray] = field(default_factory=list)
    token_ids: list[list[int]] = field(default_factory=list)
    kept: list[np.ndarray] = field(default_factory=list)


class _Samples:
    """The samples held out, the source's answers to them, and what a change of one stage does to these."""

    def __init__(self, bundle: Bundle, stages: Sequence[str], questions: Sequence[Question], threads: int):
        self.bundle, self.questions = bundle, questions
        self.pipeline = Pipeline(bundle, dict.fromkeys(bundle.manifest.stages, "ort"), threads, _CACHE)
        self.towers = {modality.stage for modality in bundle.manifest.modalities.values()}
        self.source = {stage: self._ask(stage, None) for stage in stages}

    def effect(self, unit: Unit, session: ort.InferenceSession) -> Sensitivity:
        """What is other where the session runs the unit's stage."""
        source = self.source[unit.stage]
        if not source.cases:
            raise RedipruneError(
                f"no sample held out reaches stage '{unit.stage}'; give more with --data, or leave the stage as it is: "
                f"{unit.stage}=keep"
            )
        ours = self._ask(unit.stage, session)
        pairs = zip(ours.cases, source.cases, strict=True)
        errors = [nearness(o.outputs[name], s.outputs[name]).relative_error for o, s in pairs for name in s.outputs]
        logits = list(zip(ours.logits, source.logits, strict=True))
        return Sensitivity(
            stage=unit.stage,
            unit=unit.name,
            layers=list(unit.layers),
            weights=unit.weights,
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
            copied: list[Held] = found.cases
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
                    question.question, images, videos, frames=FRAMES, keep=KEEP, prune_tiles=True
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

    def step(self, embeds: Any) -> np.ndarray:
        logits = np.full_like(self.decoding.step(embeds), -np.inf)
        logits[next(self.token_ids)] = 0.0
        return logits
