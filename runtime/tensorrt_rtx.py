"""TensorRT-RTX: TensorRT's sessions, which serve both packages."""

from functools import partial

from . import tensorrt

open_stage = partial(tensorrt.open_stage, backend="tensorrt-rtx")
open_language = partial(tensorrt.open_language, backend="tensorrt-rtx")
