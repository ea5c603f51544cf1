"""OpenVINO with products in bfloat16, on CPUs that have it."""

from functools import partial

from . import openvino

open_stage = partial(openvino.open_stage, precision="bf16")
open_language = partial(openvino.open_language, precision="bf16")
