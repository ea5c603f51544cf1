"""The range of a quantised activation: the largest magnitude that its integers stand for."""

from collections.abc import Callable

import numpy as np

PERCENTILE = 99.99
_BINS = 2048  # of the histogram that the entropy search cuts
_LEVELS = 128  # magnitudes that INT8 tells apart


def minmax(largest: np.ndarray, rows: np.ndarray) -> float:
    """The largest magnitude of all."""
    return float(largest.max())


def percentile(largest: np.ndarray, rows: np.ndarray) -> float:
    """The magnitude that all but 0.01 % of the values stay below."""
    return float(np.percentile(np.abs(rows), PERCENTILE))


def entropy(largest: np.ndarray, rows: np.ndarray) -> float:
    """The cut at which the quantised distribution of magnitudes diverges least from the true one (KL).

    The method of TensorRT's entropy calibration
    (https://on-demand.gputechconf.com/gtc/2017/presentation/s7310-8-bit-inference-with-tensorrt.pdf). ONNX Runtime has
    it as `onnxruntime.quantization.calibrate.HistogramCollector`, whose Python loops take minutes for each tensor of
    this many bins.
    """
    top = minmax(largest, rows)
    counts = np.histogram(np.abs(rows), _BINS, (0.0, top or 1.0))[0].astype(np.float64)
    best, found = np.inf, top
    for width in range(_LEVELS, _BINS + 1, 8):
        true = counts[:width].copy()
        true[-1] += counts[width:].sum()  # what is cut off falls onto the edge
        level = np.arange(width) * _LEVELS // width
        present = counts[:width] > 0
        share = np.bincount(level, counts[:width], _LEVELS) / np.maximum(np.bincount(level, present, _LEVELS), 1)
        quantised = np.where(present, share[level], 0.0)
        if not quantised.any():
            continue
        p, q = true / true.sum(), quantised / quantised.sum()
        seen = p > 0
        divergence = float((p[seen] * np.log(p[seen] / np.maximum(q[seen], 1e-12))).sum())
        if divergence < best:
            best, found = divergence, top * width / _BINS
    return found


# Name → range of an input, from the largest |x| per channel [C] over all tokens and sampled rows [R, C].
RANGES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "minmax": minmax,
    "percentile": percentile,
    "entropy": entropy,
}
