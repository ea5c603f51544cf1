"""What is compared: one input of a stage, or one request end to end, with what eager PyTorch gives for it."""

from dataclasses import dataclass
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]

QUESTION = "What is left of the red ball?"


@dataclass
class StageInput:
    """One input of a stage.

    Attributes:
        label: what the tables call it.
        feed: the stage's inputs by name, float32 and rounded to what the stage's own dtype holds; of `language`
            `prompt` [1, S, D] and `steps` [1, N, D], the embeddings of a prompt and of tokens decoded after it, and
            `positions` [A, S + N] int64 and, where the family has it, the prompt's `deepstack` [T, S, D].
        real: made of a picture and a question, not drawn at random. Ranges of quantised activations are taken from
            real inputs, so a quantised stage is judged on these alone.
    """

    label: str
    feed: Arrays
    real: bool = False


@dataclass
class StageCase:
    """An input of a stage with what eager PyTorch gives for it.

    Attributes:
        input: the input.
        expected: outputs in float32, by name; of `language` `logits` [N + 1, V].
        noisy: the same outputs from an eager run that rounds otherwise, in the bundle's own precision (float64 where
            that is fp32). How far they are from `expected` is the noise beside which an error is judged.
    """

    input: StageInput
    expected: Arrays
    noisy: Arrays


@dataclass
class EndToEndCase:
    """One request and eager PyTorch's greedy answer, float32.

    Attributes:
        label: what the tables call it.
        options: of `Pipeline.generate`, JSON types only.
        images, videos: what is asked about.
        token_ids: the answer.
        logits: [tokens, V] float32, what each token was chosen from.
        kept: [F, K] int64 for each picture and video; empty where all is kept.
    """

    label: str
    options: dict[str, Any]
    images: list[Any]
    videos: list[Any]
    token_ids: list[int]
    logits: np.ndarray
    kept: list[np.ndarray]


@dataclass
class Cases:
    """All that a bundle is held against: for every stage its cases, and whole requests."""

    stages: dict[str, list[StageCase]]
    requests: list[EndToEndCase]
