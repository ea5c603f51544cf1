"""What makes tracing slow in the libraries that do it, and is not needed: the graphs are the same without.

References: onnxscript 0.7, `_internal/values.py` and `_framework_apis/torch_2_5.py`; PyTorch 2.13,
`_subclasses/fake_tensor.py`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch._dynamo.config
from onnxscript.values import TracedOnnxFunction


@contextmanager
def fast_tracing(symbols: int) -> Iterator[None]:
    """Trace faster within the block: a stage with few layers takes a fifth less time.

    - For each graph anew, onnxscript parses the source of its 500 functions to learn one word of each, its domain
      (0.3 s). Here they are parsed once.
    - PyTorch keeps what operators do to shapes. With several dynamic dimensions an entry costs more than it saves.

    Args:
        symbols: how many dynamic dimensions the stage has.
    """
    cached = torch._dynamo.config.fake_tensor_cache_enabled and symbols < 2
    TracedOnnxFunction.function_ir = property(_parsed_once)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        with torch._dynamo.config.patch(fake_tensor_cache_enabled=cached):
            yield
    finally:
        TracedOnnxFunction.function_ir = _PARSING  # pyright: ignore[reportAttributeAccessIssue]


_PARSING: Any = TracedOnnxFunction.function_ir
_parsed: dict[TracedOnnxFunction, Any] = {}


def _parsed_once(function: TracedOnnxFunction) -> Any:
    if function not in _parsed:
        _parsed[function] = _PARSING.fget(function)
    return _parsed[function]
