"""The sessions of a bundle's stages: each is opened once, by whoever needs it first."""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from threading import Lock
from typing import Any

from . import background
from .backends.session import LanguageSession, StageSession
from .bundle import Bundle
from .errors import RedipruneError
from .feature_cache import FeatureCache

_PREFETCH_THREADS = 2  # one works while the other waits for the disk

_ON_CPU = ("ort", "openvino", "openvino-bf16")  # what a GPU loads stays with the thread that runs it


class StageSessions:
    """Opens stages when they are needed, or sooner in the background. May be shared between threads.

    Args:
        stages: names of the bundle's stages.
        open_stage: opens one; called once for each, unless it fails: then whoever asks next tries again.
    """

    def __init__(self, stages: Iterable[str], open_stage: Callable[[str], Any]):
        self._locks = {stage: Lock() for stage in stages}
        self._open = open_stage
        self._opened: dict[str, Any] = {}
        self._wanted: deque[str] = deque()

    def __getitem__(self, stage: str) -> Any:
        """The session of a stage; waits while another thread opens it.

        Raises:
            RedipruneError: the bundle has no such stage.
        """
        if stage not in self._locks:
            raise RedipruneError(
                f"this bundle has no stage '{stage}': it was exported with --stages, for a server whose answers are decoded "
                "elsewhere (rediprune serve --decoder); export the checkpoint without --stages to answer here"
            )
        with self._locks[stage]:
            if stage not in self._opened:
                self._opened[stage] = self._open(stage)
            return self._opened[stage]

    def prefetch(self, stages: Iterable[str]) -> None:
        """Begin to open stages in the background, in this order. What fails is tried again, and told, when it is needed."""
        self._wanted.extend(stages)
        for _ in range(min(_PREFETCH_THREADS, len(self._wanted))):
            background.start(self._open_wanted)

    def stop_prefetch(self) -> None:
        """Open no further stage in the background."""
        self._wanted.clear()

    def _open_wanted(self) -> None:
        with suppress(IndexError):  # nothing left
            while True:
                stage = self._wanted.popleft()
                with suppress(Exception):
                    self[stage]


class RequestSessions:
    """The sessions that one request runs on: the pipeline's own, but for those replaced when it began.

    Attributes:
        cache: features that the vision stages among them made.
    """

    def __init__(self, sessions: StageSessions, replaced: Mapping[str, Any], cache: FeatureCache):
        self._sessions, self._replaced, self.cache = sessions, replaced, cache

    def stage(self, name: str) -> StageSession:
        """The session of a stage other than `language`."""
        return self._replaced[name] if name in self._replaced else self._sessions[name]

    @property
    def language(self) -> LanguageSession:
        return self._replaced["language"] if "language" in self._replaced else self._sessions["language"]


def prefetch_order(bundle: Bundle, backends: Mapping[str, str]) -> list[str]:
    """The CPU's stages, the large ones first: all but the towers of a family that has several."""
    stages = bundle.manifest.stages
    towers = {modality.stage for modality in bundle.manifest.modalities.values()}
    wanted = [s for s in stages if s != "select_clip" and (s not in towers or len(towers) == 1)]  # seldom asked for
    wanted.sort(key=lambda stage: -stages[stage].weight_bytes)
    return [stage for stage in wanted if backends[stage] in _ON_CPU]
