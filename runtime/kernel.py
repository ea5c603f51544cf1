"""The selection by its CUDA kernels, launched directly: for the `select` stage where TensorRT plugins cannot be.

`Pipeline.load(bundle, {"default": "tensorrt-rtx", "select": "kernel"})`
"""

from collections.abc import Mapping

import numpy as np

from .bundle import Bundle
from .device import Buffers, Stream
from .errors import RedipruneError
from .gpu import compute_capability
from .session import cast_inputs

BACKEND = "kernel"


class KernelSelect:
    """The `select` stage: scores and greedy choice on the GPU, the query pooled here."""

    batch = 8

    def __init__(self, bundle: Bundle):
        compute_capability(BACKEND, "leave 'select' to --backend ort")
        from ..graphs.plugin.launcher import GpuUnavailable, load_kernels

        self.spec = bundle.manifest.stages["select"]
        self.stream = Stream(BACKEND)
        self.buffers = Buffers(self.stream)
        try:
            self.kernels = load_kernels()
        except GpuUnavailable as error:
            raise RedipruneError(" ".join(str(error).split())) from error

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        feed = cast_inputs(self.spec, inputs)
        features = feed["features"]
        frames, patches, channels = features.shape
        count, tau = min(int(feed["num_keep"]), patches), float(feed["tau"])
        query = match_width(pool_query(feed["text_embeds"].astype(np.float32)), channels)
        tokens = frames * patches * 4
        space = {"features": features.nbytes, "query": query.nbytes, "norms": tokens, "relevance": tokens}
        space |= {"similarity": tokens * patches, "indices": frames * count * 8}
        memory = {name: self.buffers.of(name, size) for name, size in space.items()}
        at = {name: piece.address for name, piece in memory.items()}
        self.stream.upload(features, memory["features"])
        self.stream.upload(query, memory["query"])
        self.kernels.score(
            at["features"],
            at["query"],
            at["norms"],
            at["relevance"],
            at["similarity"],
            frames=frames,
            patches=patches,
            channels=channels,
            dtype=str(features.dtype),
            stream=self.stream.handle,
        )
        if tau > 0:
            relevance = self.stream.download(memory["relevance"], np.empty((frames, patches), np.float32))
            self.stream.upload(drop_below(relevance, count, tau), memory["relevance"])
        self.kernels.select(
            at["similarity"],
            at["relevance"],
            at["indices"],
            frames=frames,
            patches=patches,
            count=count,
            alpha=float(feed["alpha"]),
            stream=self.stream.handle,
        )
        indices = self.stream.download(memory["indices"], np.empty((frames, count), np.int64))
        return {"indices": indices, "kept": np.take_along_axis(features, indices[:, :, None], axis=1)}


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
    parts = [query[i * depth // channels : -(-(i + 1) * depth // channels)] for i in range(channels)]
    return np.array([part.mean() for part in parts], np.float32)


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
