"""Clips to select from: frames that differ, repeat each other, tie, or show nothing."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from rediprune.graphs.selection.query_vector import pool_query

CHANNELS = 16
DEPTH = 48  # three times the channels: the query is their mean
KINDS = ["random", "still", "ties", "duplicates", "zeros", "constant"]


@dataclass(frozen=True)
class ClipCase:
    """Features [F, P, C], a question's embeddings [L, D], and what is asked for."""

    features: np.ndarray = field(repr=False)
    embeds: np.ndarray = field(repr=False)
    count: int
    alpha: float
    least: int
    threshold: float

    @property
    def query(self) -> np.ndarray:
        return pool_query(torch.tensor(self.embeds)).numpy()

    @property
    def settings(self) -> tuple[int, float, int, float]:
        return self.count, self.alpha, self.least, self.threshold


def clip_cases(kind: str, number: int, largest: int) -> Iterator[ClipCase]:
    """`number` clips of a kind, of up to 5 frames and `largest` tokens each; all and one token kept often."""
    random = np.random.default_rng([KINDS.index(kind), largest])
    for case in range(number):
        frames = int(random.integers(1, 6))
        patches = 1 if case % 23 == 22 else int(random.integers(2, largest + 1))
        shape = (frames, patches, CHANNELS)
        features = random.standard_normal(shape, np.float32)
        if kind == "still":  # frames repeat the first but for a few tokens
            features = np.where(random.random((frames, patches, 1)) < 0.2, features, features[:1])
        if kind == "ties":  # of ±1: cosines are exact in every engine, and most of them equal others
            features = random.choice(np.array([-1, 1], np.float32), shape)
        if kind == "duplicates":
            rows = features.reshape(-1, CHANNELS)
            features = rows[random.integers(0, max(1, len(rows) // 3), len(rows))].reshape(shape)
        if kind == "zeros":
            features[random.random((frames, patches)) < 0.5] = 0
        if kind == "constant":
            features[:] = features[0, 0]
        embeds = random.standard_normal((int(random.integers(1, 9)), DEPTH), np.float32)
        if kind == "ties":
            embeds = np.repeat(random.choice(np.array([-1, 1], np.float32), (1, CHANNELS)), DEPTH // CHANNELS, axis=1)
        count = {0: 1, 1: patches}.get(case % 7, int(random.integers(1, patches + 1)))
        least = int(random.integers(1, count + 1))
        threshold = float(random.choice([-math.inf, -math.inf, -0.2, 0.31, 0.77]))
        yield ClipCase(features, embeds, count, float(random.choice([0.0, 0.5, 1.5])), least, threshold)
