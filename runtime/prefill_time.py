"""How many visual tokens can be kept so that the first token comes in time: the language model's latency, measured here.

`prompt_encoder` makes a number of tokens for each frame of it.
"""

import time
from bisect import bisect_left
from collections.abc import Callable
from threading import Lock
from typing import Any

import numpy as np

from .bundle import Manifest

SHORTEST = 32  # tokens of the shortest prefill that is measured; each further one is twice as long
_RUNS = 3  # of which the fastest counts; the first of all is thrown away, as memory is got in it
_SPREAD = 0.05  # standard deviation of embeddings drawn at random
_QUICK = 0.5  # seconds; what takes longer is measured once


def any_prefill(manifest: Manifest, stage: Callable[[str], Any]) -> Callable[[int], None]:
    """What takes a number of tokens, drawn at random, through the projector and the language stage of a bundle.

    Args:
        manifest: the bundle's.
        stage: gives the session of a stage.
    """
    grids = [spec.patches for spec in manifest.modalities.values() if not spec.dynamic]

    def prefill(tokens: int) -> None:
        random = np.random.default_rng(0)
        if grids:
            shape = -(-tokens // max(grids)), min(tokens, max(grids)), manifest.channels
            stage("project").run({"kept": random.standard_normal(shape, np.float32)})
        embeds = random.standard_normal((1, tokens, manifest.decoder.width), np.float32) * _SPREAD
        stage("language").start(tokens + 1).step(embeds)

    return prefill


class PrefillTime:
    """Seconds that the prefill of a prompt takes, by its length: measured at some, a straight line between these.

    It may be shared between threads; one measures, the others wait.

    Args:
        prefill: takes a prompt of so many tokens through the projector and the language stage.
        longest: positions of the model.
    """

    def __init__(self, prefill: Callable[[int], object], longest: int):
        self._prefill, self._longest = prefill, longest
        self._measured: dict[int, float] = {}  # tokens → seconds
        self._lock = Lock()

    def longest_within(self, seconds: float, most: int) -> int:
        """The longest prompt, of `most` tokens at most, that is prefilled within the time; 0 where none is.

        Lengths that were not timed yet are prefilled for it, which takes as long as they do.
        """
        most = min(most, self._longest)
        lengths, length = [], min(SHORTEST, most)
        while True:
            lengths.append(length)
            if self.seconds_of(length) > seconds or length >= most:
                break
            length = min(2 * length, most)
        times = np.maximum.accumulate([self.seconds_of(length) for length in lengths])
        at = bisect_left(times.tolist(), seconds)
        if at == len(lengths):
            return lengths[-1]
        if at == 0:
            return int(lengths[0] * seconds / times[0]) if times[0] > seconds else lengths[0]
        share = (seconds - times[at - 1]) / (times[at] - times[at - 1])
        return int(lengths[at - 1] + share * (lengths[at] - lengths[at - 1]))

    def seconds_of(self, tokens: int) -> float:
        """Seconds of a prefill of so many tokens, measured once."""
        with self._lock:
            if not self._measured:
                self._run(min(SHORTEST, tokens))
            if tokens not in self._measured:
                fastest = self._run(tokens)
                if fastest < _QUICK:
                    fastest = min(fastest, *(self._run(tokens) for _ in range(_RUNS - 1)))
                self._measured[tokens] = fastest
            return self._measured[tokens]

    def _run(self, tokens: int) -> float:
        begin = time.perf_counter()
        self._prefill(tokens)
        return time.perf_counter() - begin
