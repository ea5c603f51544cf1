"""What a bench measures, and how often."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class BenchSettings:
    """How bundles are measured.

    Attributes:
        image, video: what to ask about; neither is a made picture.
        frames: of the video.
        keeps: keep ratios, each in (0, 1].
        backends: what runs every bundle.
        peers: keys of `contenders.PEERS`.
        runs: turns of every contender, each a fresh process that answers every request `bench.REPEATS` times.
        threads: of every contender; 0 is all cores.
        new_tokens: to answer with.
        limit: seconds that a turn may take; a contender that takes longer or fails is left out, and said so.
        grow: measure how the first bundle's time grows, too.
        peers_python: interpreter of the peers that have an environment of their own (`make bench-peers`). What they
            read is made of the checkpoint once, in `peers/` beside the first bundle.
    """

    image: Path | None = None
    video: Path | None = None
    frames: int = 8
    keeps: Sequence[float] = (1.0, 0.25, 0.15, 0.1)
    backends: Sequence[str] = ("auto",)
    peers: Sequence[str] = ()
    runs: int = 3
    threads: int = 0
    new_tokens: int = 9
    limit: float = 600
    grow: bool = False
    peers_python: str = sys.executable

    @property
    def kind(self) -> str:
        """The modality asked about: "image" or "video"."""
        return "image" if self.video is None else "video"

    @property
    def cores(self) -> int:
        """Threads of every contender, a number above 0."""
        return self.threads or os.cpu_count() or 1
