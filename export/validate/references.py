"""The eager reference of a checkpoint's family."""

from typing import Any

from ...runtime.media.processor import Processor
from .eager_reference import Reference
from .qwen_reference import QwenReference


def reference_for(model: Any, processor: Processor) -> Reference:
    """What answers in eager PyTorch for a transformers model with its processor."""
    return (QwenReference if processor.qwen is not None else Reference)(model, processor)
