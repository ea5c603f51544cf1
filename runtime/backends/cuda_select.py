"""The selection by its CUDA kernels, launched directly: for `select` and `select_clip` where TensorRT plugins cannot be.

`Pipeline.load(bundle, {"default": "tensorrt-rtx", "select": "kernel"})`
"""

from collections.abc import Mapping

import numpy as np

from ...graphs.selection.numpy_selection import candidate_counts, drop_below, match_width, pool_query
from ..bundle import Bundle
from ..errors import RedipruneError
from .arrays import Array
from .device import DeviceArray, open_stream
from .gpu import compute_capability
from .session import fit_inputs

BACKEND = "kernel"


class KernelSelect:
    """The `select` stage: scores, greedy choice and kept tokens on the GPU; only the query is pooled here."""

    batch = 8

    def __init__(self, bundle: Bundle, stage: str):
        compute_capability(BACKEND, "leave 'select' to --backend ort")
        from ...graphs.selection.cuda.launcher import GpuUnavailable, load_kernels

        self.spec = bundle.manifest.stages[stage]
        self.stream = open_stream(BACKEND)
        try:
            self.kernels = load_kernels()
        except GpuUnavailable as error:
            raise RedipruneError(" ".join(str(error).split())) from error

    def run(self, inputs: Mapping[str, Array]) -> dict[str, DeviceArray]:
        with self.stream.lock:  # a stream takes one thread's work at a time
            return self._run(fit_inputs(self.spec, inputs))

    def _run(self, feed: Mapping[str, Array]) -> dict[str, DeviceArray]:
        stream = self.stream
        features = stream.place(feed["features"])
        frames, patches, channels = features.shape
        count, tau = min(int(np.asarray(feed["num_keep"])), patches), float(np.asarray(feed["tau"]))
        query = self._query(feed, channels)
        workspace = stream.empty((2, frames, patches), np.float32)
        relevance = stream.empty((frames, patches), np.float32)
        similarity = stream.empty((frames, patches, patches), np.float32)
        self.kernels.score(
            features.address,
            query.address,
            workspace.address,
            relevance.address,
            similarity.address,
            frames=frames,
            patches=patches,
            channels=channels,
            dtype=str(features.dtype),
            stream=stream.handle,
        )
        if tau > 0:
            scores = np.asarray(relevance)  # few numbers: they are ranked on the CPU
            relevance = stream.place(drop_below(scores, candidate_counts(scores, count, tau)))
        indices = stream.empty((frames, count), np.int64)
        self.kernels.select(
            similarity.address,
            relevance.address,
            indices.address,
            frames=frames,
            patches=patches,
            count=count,
            alpha=float(np.asarray(feed["alpha"])),
            stream=stream.handle,
        )
        kept = stream.empty((frames, count, channels), features.dtype)
        self._gather(features, indices, kept, (frames, patches, count))
        return {"indices": indices, "kept": kept}

    def _query(self, feed: Mapping[str, Array], channels: int) -> DeviceArray:
        """[C], pooled here of at most 128 tokens."""
        question = np.asarray(feed["text_embeds"], np.float32)
        return self.stream.place(match_width(pool_query(question), channels))

    def _gather(
        self, features: DeviceArray, indices: DeviceArray, kept: DeviceArray, sizes: tuple[int, int, int]
    ) -> None:
        """Copy the tokens at `indices` to `kept`, of so many (frames, patches, kept of each), and wait for all before."""
        frames, patches, count = sizes
        self.kernels.gather(
            features.address,
            indices.address,
            kept.address,
            frames=frames,
            patches=patches,
            count=count,
            row_bytes=features.shape[-1] * features.dtype.itemsize,
            stream=self.stream.handle,
        )
        self.stream.synchronize()


class KernelSelectClip(KernelSelect):
    """The `select_clip` stage: the whole choice on the GPU, without a matrix of similarities."""

    def _run(self, feed: Mapping[str, Array]) -> dict[str, DeviceArray]:
        from ...graphs.selection.cuda.launcher import CLIP_MADE, ClipSettings, clip_workspace

        stream = self.stream
        features = stream.place(feed["features"])
        frames, patches, channels = features.shape
        count = min(int(np.asarray(feed["num_keep"])), patches)
        settings = ClipSettings(
            count,
            float(np.asarray(feed["alpha"])),
            min(int(np.asarray(feed["min_per_frame"])), count),
            float(np.asarray(feed["threshold"])),
        )
        query = self._query(feed, channels)
        workspace = stream.empty((clip_workspace(frames, patches) // 4,), np.int32)
        indices = stream.empty((frames * count,), np.int64)
        self.kernels.select_clip(
            features.address,
            query.address,
            workspace.address,
            indices.address,
            frames=frames,
            patches=patches,
            channels=channels,
            dtype=str(features.dtype),
            settings=settings,
            stream=stream.handle,
        )
        made = int(np.asarray(workspace[: CLIP_MADE // 4 + 1])[-1])  # waits for the choice
        kept = stream.empty((made, channels), features.dtype)
        self._gather(features, indices, kept, (1, frames * patches, made))
        return {"indices": indices[:made], "kept": kept}


_SESSIONS = {"select": KernelSelect, "select_clip": KernelSelectClip}


def open_stage(bundle: Bundle, stage: str, threads: int) -> KernelSelect:
    if stage not in _SESSIONS:
        raise RedipruneError(
            f"backend 'kernel' runs the stages 'select' and 'select_clip' only; run '{stage}' on another, e.g. ort"
        )
    return _SESSIONS[stage](bundle, stage)


def open_language(bundle: Bundle, threads: int) -> KernelSelect:
    return open_stage(bundle, "language", threads)
