"""Inputs for every stage: real ones, as they flow through the eager model, and seeded random ones of other sizes."""

from typing import Any

import numpy as np
import torch
from PIL import Image

from ...graphs.selection.counts import query_ids
from ...runtime.backends.language_inputs import LanguageInputs
from ...runtime.bundle import Manifest
from ...runtime.media.processor import Processor, load_image
from ...runtime.prompt import prompt_ids
from .cases import QUESTION, Arrays, StageInput
from .eager_reference import Reference

_SPREAD = 0.05  # standard deviation of the embeddings that are drawn at random


def stage_inputs(manifest: Manifest, reference: Reference, image: Any) -> dict[str, list[StageInput]]:
    """Inputs of every stage, the first of each made of a real picture and question.

    Args:
        manifest: of the bundle.
        reference: the checkpoint in eager PyTorch, float32.
        image: what `load_image` takes.

    Returns:
        Stage → its inputs, at least two of different sizes.
    """
    return _StageInputs(manifest, reference, image).all()


class _StageInputs:
    """The picture's and the question's tensors, and the inputs that are made of them."""

    def __init__(self, manifest: Manifest, reference: Reference, image: Any):
        self.manifest, self.reference = manifest, reference
        self.random = np.random.default_rng(0)
        processor, placeholders = reference.processor, reference.placeholders
        ids = prompt_ids(processor, QUESTION, 1, 0)
        picture = load_image(image)
        self.language = LanguageInputs(manifest.stages["language"])
        self.vision = {kind: self._pixels(processor, picture, kind) for kind in manifest.modalities}
        # Without its pictures the prompt is text alone: a placeholder's own row of the table is never read.
        self.prompt_ids = [0 if token in placeholders else token for token in ids]
        with torch.inference_mode():
            table = reference.model.get_input_embeddings()
            self.question = self._rounded(table(torch.tensor(query_ids(ids, placeholders))).numpy())  # [L, D]
            self.prompt = self._rounded(table(torch.tensor([self.prompt_ids])).numpy())  # [1, S, D]
            self.features = self._rounded(reference.features_of([picture], "image")[:1].numpy())  # [1, P, C]

    def all(self) -> dict[str, list[StageInput]]:
        vision = {modality.stage: kind for kind, modality in reversed(self.manifest.modalities.items())}
        return {stage: self._vision(kind) for stage, kind in vision.items()} | {
            "select": self._select(),
            "select_clip": self._select_clip(),
            "project": self._project(),
            "embed": self._embed(),
            "language": self._language(),
        }

    def _pixels(self, processor: Processor, picture: Image.Image, kind: str) -> Arrays:
        """The vision stage's inputs for one frame or tile of a picture."""
        dynamic = self.manifest.modalities[kind].dynamic
        inputs = processor.vision_inputs([picture], kind == "video" and not dynamic)
        return inputs | {"pixel_values": inputs["pixel_values"][:1]}

    def _vision(self, kind: str) -> list[StageInput]:
        inputs = self.vision[kind]
        shape = inputs["pixel_values"].shape[1:]
        picture = inputs | {"pixel_values": self._rounded(inputs["pixel_values"])}
        drawn = inputs | {"pixel_values": self._normal(3, *shape)}
        return [StageInput("picture", picture, real=True), StageInput("3 × random", drawn)]

    def _select(self) -> list[StageInput]:
        real, patches = self.features, self.features.shape[1]
        return [
            _select_input(real, self.question, max(1, round(0.5 * patches)), real=True),
            _select_input(real, self.question, max(1, round(0.15 * patches)), real=True),
            _select_input(self._normal(5, 36, self.manifest.channels), self.question, 9, tau=0.05),
            _select_input(real, self.question[-1:], 1, real=True),
        ]

    def _select_clip(self) -> list[StageInput]:
        real, drawn = self.features, self._normal(5, 36, self.manifest.channels)
        still = np.where(
            self.random.random((4, 25, 1)) < 0.2, self._normal(4, 25, self.manifest.channels), drawn[:1, :25]
        )
        return [
            _clip_input(real, self.question, max(1, round(0.15 * real.shape[1])), real=True),
            _clip_input(drawn, self.question, 9, least=4),
            _clip_input(self._rounded(still), self.question, 8, least=2),
            _clip_input(drawn, self.question, 20, threshold=0.9),
        ]

    def _project(self) -> list[StageInput]:
        rows = next((port for port in self.manifest.stages["project"].inputs if port.name == "rows"), None)
        if rows is not None:
            _, taps, _, width = (size if isinstance(size, int) else 1 for size in rows.shape)
            one, several = (
                np.arange(0, 20, 3)[None],
                np.sort(self.random.permuted(np.tile(np.arange(9), (3, 1)), axis=1)[:, :5]),
            )
            return [
                StageInput("1 × 7 of 20", {"rows": self._normal(1, taps, 20, width), "indices": one}),
                StageInput("3 × 5 of 9", {"rows": self._normal(3, taps, 9, width), "indices": several}),
            ]
        return [
            StageInput("picture", {"kept": self.features[:, ::3].copy()}, real=True),
            StageInput("3 × 5 random", {"kept": self._normal(3, 5, self.manifest.channels)}),
        ]

    def _embed(self) -> list[StageInput]:
        words = len(self.reference.processor.tokenizer)
        return [
            StageInput("prompt", {"input_ids": np.array([self.prompt_ids])}, real=True),
            StageInput("2 × 3 tokens", {"input_ids": self.random.integers(0, words, (2, 3))}),
        ]

    def _language(self) -> list[StageInput]:
        width = self.manifest.decoder.width
        real = {"prompt": self.prompt, "steps": self.prompt[:, -4:].copy()}
        drawn = {"prompt": self._normal(1, 70, width) * _SPREAD, "steps": self._normal(1, 2, width) * _SPREAD}
        drawn = {name: self._rounded(array) for name, array in drawn.items()}
        tokens = self.prompt.shape[1]
        apart = np.sort(self.random.choice(400, 72, replace=False))[None]  # positions with gaps, as of pruned pictures
        inputs = [
            StageInput(f"{tokens} tokens + 4", real | self._places(np.arange(tokens + 4)), real=True),
            StageInput("70 tokens + 2", drawn | self._places(np.arange(72))),
        ]
        with_gaps = StageInput("70 tokens + 2, positions with gaps", drawn | self._places(apart[0], apart=True))
        return [*inputs, with_gaps] if self.manifest.takes_positions else inputs

    def _places(self, positions: np.ndarray, apart: bool = False) -> Arrays:
        """Positions [A, S + N], of different axes unlike where they are `apart`; and deepstack, drawn in that case."""
        axes, taps = max(self.language.axes, 1), self.language.taps
        found: Arrays = {"positions": np.stack([positions * (1 + axis * apart) for axis in range(axes)])}
        if taps:
            shape = (taps, 70, self.manifest.decoder.width)
            zeros = np.zeros((taps, self.prompt.shape[1], shape[2]), np.float32)
            found["deepstack"] = self._normal(*shape) * _SPREAD if len(positions) == 72 else zeros
        return found

    def _normal(self, *shape: int) -> np.ndarray:
        return self._rounded(self.random.standard_normal(shape))

    def _rounded(self, array: np.ndarray) -> np.ndarray:
        """In float32, rounded to what the stage's own dtype can hold: both sides then see the same numbers."""
        half = self.manifest.float_precision == "fp16"
        return (array.astype(np.float16) if half else array).astype(np.float32)


def _select_input(
    features: np.ndarray, question: np.ndarray, count: int, tau: float = 0.0, real: bool = False
) -> StageInput:
    """`select` over features [F, P, C] for the question's embeddings [L, D]: `count` of P tokens in each frame."""
    frames, patches, _ = features.shape
    feed: Arrays = {
        "features": features,
        "text_embeds": question,
        "num_keep": np.array(count),
        "alpha": np.array(0.5, np.float32),
        "tau": np.array(tau, np.float32),
    }
    return StageInput(f"{count} of {frames} × {patches}{', τ > 0' * (tau > 0)}", feed, real)


def _clip_input(
    features: np.ndarray,
    question: np.ndarray,
    count: int,
    least: int = 1,
    threshold: float = -np.inf,
    real: bool = False,
) -> StageInput:
    """`select_clip` over features [F, P, C]: `count` of P tokens of each frame on average, `least` of each."""
    frames, patches, _ = features.shape
    feed: Arrays = {
        "features": features,
        "text_embeds": question,
        "num_keep": np.array(count),
        "alpha": np.array(0.5, np.float32),
        "min_per_frame": np.array(least),
        "threshold": np.array(threshold, np.float32),
    }
    ends = "" if np.isneginf(threshold) else f", from {threshold:g} on"
    return StageInput(f"{count * frames} of {frames} × {patches}, {least} of each{ends}", feed, real)
