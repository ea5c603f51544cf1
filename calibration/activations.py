"""What flows into the linear layers of a bundle, seen on samples: the basis of every static scale.

The bundle answers the samples on ONNX Runtime, its graphs extended by outputs for the layers' inputs. Of each input are
kept the largest magnitude per channel, over every token, and a few whole rows per run, from which percentiles, entropy
and errors are computed at leisure. So what is held does not grow with the number of samples.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from ..runtime.backends.arrays import Array
from ..runtime.backends.ort_kv_cache import OrtDecoding, OrtLanguage
from ..runtime.backends.session import Decoding, cast_inputs
from ..runtime.bundle import Bundle
from ..runtime.errors import RedipruneError
from ..runtime.pipeline import Answer, Pipeline
from .bundle_graphs import load_graph, open_graph
from .evaluation.question_dataset import Question, media_of
from .quantize.activation_ranges import Activation
from .quantize.linear_layers import LinearLayer, linear_layers
from .stage_statistics import Arrays, HeldOutCase, StageStatistics

KEEPS = (1.0, 0.15)  # what the language stage sees: all visual tokens, and few
NEW_TOKENS = 5  # the prefill and four decoded tokens
FRAMES = 8
_ROWS = 2048  # rows kept per input from all prefills (or frames) together; each decoded token gives one more
_ROWS_SIZE = 1 << 30  # bytes of all of them at most, which for large models are fewer rows
_AT_ONCE = 1 << 30  # bytes of extra outputs in one run
_CACHE = 1 << 30  # bytes of features

Take = Callable[[str, np.ndarray], None]  # name of a value, the value


def collect(
    bundle: Bundle,
    tapped: Sequence[str],
    compared: Sequence[str],
    samples: Sequence[Question],
    held_out: Sequence[Question],
    threads: int = 0,
    progress: Callable[[str, float], None] | None = None,
) -> dict[str, StageStatistics]:
    """Show a bundle samples and keep what its linear layers get.

    Args:
        bundle: in fp32 or fp16.
        tapped: stages whose linear layers' inputs are wanted; shown the `samples`.
        compared: stages of which is wanted what goes in and out; shown those `held_out`.
        threads: of ONNX Runtime.
        progress: called with what is being done and the share that is done.

    Raises:
        RedipruneError: a value that is not finite, with the layer it goes into.
    """
    pipeline = Pipeline(bundle, dict.fromkeys(bundle.manifest.stages, "ort"), threads, _CACHE)
    readers: dict[str, dict[str, LinearLayer]] = {}  # stage → input of linear layers → the first of them
    for stage in tapped:
        first = readers.setdefault(stage, {})
        for layer in linear_layers(load_graph(bundle, stage)):
            first.setdefault(str(layer.input.name), layer)
    width = sum(layer.shape[0] for layers in readers.values() for layer in layers.values())
    rows = max(1, min(_ROWS, _ROWS_SIZE // (4 * max(width, 1))) // max(len(samples), 1))
    seen = {stage: _Seen({name: layer.name for name, layer in readers[stage].items()}, rows) for stage in tapped}
    groups = _groups(bundle, readers)
    total = len(groups) * len(samples) + len(held_out)
    at = 0
    for group in groups:
        sessions = {stage: _tapped(bundle, stage, names, threads, seen[stage].take) for stage, names in group.items()}
        with pipeline.replaced(**sessions):
            for number, sample in enumerate(samples):
                if progress is not None:
                    progress(f"sample {number + 1} of {len(samples)}", at / total)
                try:
                    ask(pipeline, sample, number)
                except _NotFinite as error:
                    raise RedipruneError(
                        f"{error} for '{sample.media.name}'; the model overflows there: leave the sample out, or "
                        "calibrate a bundle exported in fp32"
                    ) from error
                at += 1
    held: dict[str, list[HeldOutCase]] = {stage: [] for stage in compared}
    with pipeline.replaced(**{stage: Copying(pipeline.stage(stage), held[stage]) for stage in compared}):
        for number, sample in enumerate(held_out):
            if progress is not None:
                progress(f"held-out sample {number + 1} of {len(held_out)}", at / total)
            ask(pipeline, sample, number)
            at += 1
    for cases in held.values():  # frames of a clip are many alike
        del cases[2 * len(held_out) :]
    return {
        stage: StageStatistics(seen[stage].activations() if stage in seen else {}, held[stage]) for stage in compared
    }


def tap(bundle: Bundle, stage: str, names: Iterable[str], threads: int = 0) -> tuple[ort.InferenceSession, list[str]]:
    """A stage's graph with values in it as further outputs: the session, and which of `names` it has for outputs.

    An input of the stage cannot be an output; whoever runs the stage has it at hand.
    """
    path = bundle.path(bundle.manifest.stages[stage].file)
    model = ir.load(path)  # with its references as they are
    values = {value.name: value for node in model.graph for value in node.outputs}
    added = [name for name in names if name in values]
    model.graph.outputs.extend(values[name] for name in added if values[name] not in model.graph.outputs)
    return open_graph(bundle, stage, model, threads), added


class _NotFinite(Exception):
    pass


class _Seen:
    """Gathers a stage's activations."""

    def __init__(self, readers: Mapping[str, str], rows: int):
        self.readers = readers
        self.count = rows
        self.random = np.random.default_rng(0)
        self.largest: Arrays = {}
        self.rows: dict[str, list[np.ndarray]] = {}

    def take(self, name: str, value: np.ndarray) -> None:
        flat = value.reshape(-1, value.shape[-1])
        largest = np.abs(flat).max(axis=0).astype(np.float32)
        if not np.isfinite(largest).all():
            raise _NotFinite(f"what layer '{self.readers[name]}' gets is not finite")
        self.largest[name] = np.maximum(self.largest[name], largest) if name in self.largest else largest
        count = min(self.count, len(flat))
        chosen = self.random.choice(len(flat), count, replace=False, shuffle=False)
        self.rows.setdefault(name, []).append(flat[chosen].astype(np.float32))

    def activations(self) -> dict[str, Activation]:
        return {name: Activation(self.largest[name], np.concatenate(rows)) for name, rows in self.rows.items()}


def _tapped(
    bundle: Bundle, stage: str, names: Sequence[str], threads: int, take: Take
) -> "_TappedStage | _TappedLanguage":
    """A session of a stage whose values of these names go to `take`."""
    if stage == "language":
        return _TappedLanguage(bundle, names, threads, take)
    return _TappedStage(bundle, stage, names, threads, take)


class _TappedStage:
    """A stage whose values, and inputs that are asked for, go to `take`."""

    batch = 1

    def __init__(self, bundle: Bundle, stage: str, names: Sequence[str], threads: int, take: Take):
        self.spec, self.names, self.take = bundle.manifest.stages[stage], names, take
        self.session, added = tap(bundle, stage, names, threads)
        self.outputs = [port.name for port in self.spec.outputs] + added

    def run(self, inputs: Mapping[str, Array]) -> Arrays:
        feed = cast_inputs(self.spec, inputs)
        values = dict(zip(self.outputs, map(np.asarray, self.session.run(self.outputs, feed)), strict=True))
        for name in self.names:
            self.take(name, np.asarray(values[name] if name in values else feed[name]))
        return {port.name: values[port.name] for port in self.spec.outputs}


class _TappedLanguage(OrtLanguage):
    def __init__(self, bundle: Bundle, names: Sequence[str], threads: int, take: Take):
        session, self.names = tap(bundle, "language", names, threads)
        super().__init__(bundle, session)
        self.take = take

    def start(self, length: int) -> OrtDecoding:
        return _TappedDecoding(self, length)


class _TappedDecoding(OrtDecoding):
    def __init__(self, language: _TappedLanguage, length: int):
        super().__init__(language, length)
        self.tapped = language

    def step(
        self, embeds: Array, positions: np.ndarray | None = None, deepstack: np.ndarray | None = None
    ) -> np.ndarray:
        for name in self.tapped.names:  # anew for each step, whose number of tokens is another
            self.binding.bind_output(name, "cpu")
        logits = super().step(embeds, positions, deepstack)
        names, values = self.tapped.names, self.binding.get_outputs()
        for name, value in zip(names, values[len(values) - len(names) :], strict=True):
            self.tapped.take(name, value.numpy())
        return logits


class Copying:
    """A session, of a stage or of the language model, that keeps what goes in and out."""

    batch = 1

    def __init__(self, session: Any, kept: list[HeldOutCase]):
        self.session, self.kept = session, kept

    def run(self, inputs: Mapping[str, Array]) -> Arrays:
        outputs = self.session.run(inputs)
        self.kept.append(HeldOutCase({name: np.asarray(array) for name, array in inputs.items()}, outputs))
        return outputs

    def start(self, length: int) -> "_CopyingDecoding":
        return _CopyingDecoding(self.session.start(length), self.kept)


class _CopyingDecoding:
    def __init__(self, decoding: Decoding, kept: list[HeldOutCase]):
        self.decoding, self.kept = decoding, kept
        self.case: HeldOutCase | None = None

    def step(
        self, embeds: Array, positions: np.ndarray | None = None, deepstack: np.ndarray | None = None
    ) -> np.ndarray:
        logits = self.decoding.step(embeds, positions, deepstack)
        embeds = np.asarray(embeds)
        others = {"positions": positions, "deepstack": deepstack}
        if self.case is None:
            feed = {"prompt": embeds, "steps": embeds[:, :0]}
            feed |= {name: array for name, array in others.items() if array is not None}
            self.case = HeldOutCase(feed, {"logits": logits[None]})
            self.kept.append(self.case)
        else:
            self.case.feed["steps"] = np.concatenate([self.case.feed["steps"], embeds], axis=1)
            for name, array in others.items():
                if array is not None:
                    self.case.feed[name] = np.concatenate([self.case.feed[name], array], axis=1)
            self.case.outputs["logits"] = np.concatenate([self.case.outputs["logits"], logits[None]])
        return logits


def ask(pipeline: Pipeline, sample: Question, number: int) -> Answer:
    """Ask about a sample, at a keep ratio that goes with its number."""
    images, videos = media_of(sample, pipeline.bundle, FRAMES)
    return pipeline.generate(
        sample.question,
        images,
        videos,
        frames=FRAMES,
        keep=KEEPS[number % len(KEEPS)],
        max_new_tokens=NEW_TOKENS,
        temperature=0.0,
    )


def _groups(bundle: Bundle, readers: Mapping[str, Mapping[str, LinearLayer]]) -> list[dict[str, list[str]]]:
    """Stage → inputs of its layers, in portions whose values in one run together stay small."""
    modalities = bundle.manifest.modalities
    patches = max(modality.patches for modality in modalities.values())
    groups: list[dict[str, list[str]]] = []
    size = 0
    for stage, layers in readers.items():
        tokens = patches * FRAMES if stage == "language" and "video" in modalities else patches
        for name, layer in layers.items():
            needed = 4 * tokens * layer.shape[0]
            if not groups or size + needed > _AT_ONCE:
                groups.append({})
                size = 0
            groups[-1].setdefault(stage, []).append(name)
            size += needed
    return groups
