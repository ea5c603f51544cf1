"""The method: which visual tokens are kept. One file per technology, side by side.

counts            how many are kept, which prompt tokens make the query (plain Python)
identical_tokens  when two tokens count as one and the same
query_vector      the query vector, in torch
reference         the selection in eager PyTorch: what every engine is held to
clip_reference    the same over a whole clip, with one budget for all frames
numpy_selection   the query vector and the selection, in numpy
clip_numpy        the selection over a whole clip, in numpy
onnx_graph        the `select` stage as an ONNX graph
onnx_clip_graph   the `select_clip` stage as an ONNX graph
onnx_lines        what both graphs begin with
as_released       the authors' own loop, restated, to compare with
cuda/             the selection as CUDA kernels
tensorrt_plugin/  the greedy step as a TensorRT plugin

docs/method.md says what is computed, to the letter.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .reference import max_min_select, score_tokens, select_tokens

__all__ = ["max_min_select", "score_tokens", "select_tokens"]


def __getattr__(name: str) -> object:
    """Import on first use: the runtime takes `counts` from here and has no torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(".reference", __name__), name)
