"""The selection by its CUDA kernels, launched directly: for the `select` stage where TensorRT plugins cannot be.

`Pipeline.load(bundle, {"default": "tensorrt-rtx", "select": "kernel"})`
"""

from collections.abc import Mapping

import numpy as np

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

    def __init__(self, bundle: Bundle):
        compute_capability(BACKEND, "leave 'select' to --backend ort")
        from ...graphs.selection.cuda.launcher import GpuUnavailable, load_kernels

        self.spec = bundle.manifest.stages["select"]
        self.stream = open_stream(BACKEND)
        try:
            self.kernels = load_kernels()
        except GpuUnavailable as error:
            raise RedipruneError(" ".join(str(error).split())) from error

    def run(self, inputs: Mapping[str, Array]) -> dict[str, DeviceArray]:
        feed, stream = fit_inputs(self.spec, inputs), self.stream
        features = stream.place(feed["features"])
        frames, patches, channels = features.shape
        count, tau = min(int(np.asarray(feed["num_keep"])), patches), float(np.asarray(feed["tau"]))
        question = np.asarray(feed["text_embeds"], np.float32)  # at most 128 tokens
        query = stream.place(match_width(pool_query(question), channels))
        norms, relevance = (stream.empty((frames, patches), np.float32) for _ in range(2))
        similarity = stream.empty((frames, patches, patches), np.float32)
        self.kernels.score(
            features.address,
            query.address,
            norms.address,
            relevance.address,
            similarity.address,
            frames=frames,
            patches=patches,
            channels=channels,
            dtype=str(features.dtype),
            stream=stream.handle,
        )
        if tau > 0:
            relevance = stream.place(drop_below(np.asarray(relevance), count, tau))
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
        self.kernels.gather(
            features.address,
            indices.address,
            kept.address,
            frames=frames,
            patches=patches,
            count=count,
            row_bytes=channels * features.dtype.itemsize,
            stream=stream.handle,
        )
        stream.synchronize()
        return {"indices": indices, "kept": kept}


def open_stage(bundle: Bundle, stage: str, threads: int) -> KernelSelect:
    if stage != "select":
        raise RedipruneError(f"backend 'kernel' runs the stage 'select' only; run '{stage}' on another, e.g. ort")
    return KernelSelect(bundle)


def open_language(bundle: Bundle, threads: int) -> KernelSelect:
    return open_stage(bundle, "language", threads)


def pool_query(embeds: np.ndarray) -> np.ndarray:
    """[L, D] → [D], `graphs.query.pool_query` without torch."""
    unit = embeds / np.maximum(np.linalg.norm(embeds, axis=-1, keepdims=True), 1e-12)
    alike = np.exp(unit @ unit.T)
    mixed = (alike / alike.sum(-1, keepdims=True)) @ embeds
    steps = np.arange(len(embeds), dtype=np.float32) / max(len(embeds) - 1, 1)
    weight = np.exp(3 * steps)
    return (weight / weight.sum()) @ mixed


def match_width(query: np.ndarray, channels: int) -> np.ndarray:
    """[D] → [C], `graphs.query.match_width` without torch."""
    depth = len(query)
    if depth < channels:
        return np.tile(query, -(-channels // depth))[:channels]
    edges = np.arange(channels + 1) * depth
    starts, ends = edges[:-1] // channels, -(-edges[1:] // channels)  # windows may overlap by one
    sums = np.add.reduceat(np.append(query, 0), np.stack([starts, ends], axis=1).ravel())[::2]
    return (sums / (ends - starts)).astype(np.float32)


def drop_below(relevance: np.ndarray, count: int, tau: float) -> np.ndarray:
    """Relevance [F, P] with −inf at tokens that τ bars: `graphs.selection.candidate_counts` and `drop_below`."""
    patches = relevance.shape[1]
    candidates = np.maximum((relevance >= tau).sum(1), count)
    if count < patches // 2:
        candidates[:] = min(max(3 * count, count + 1), patches)
    order = np.argsort(-relevance, axis=1, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.broadcast_to(np.arange(patches), order.shape), axis=1)
    return np.where(rank < candidates[:, None], relevance, -np.inf).astype(np.float32)
