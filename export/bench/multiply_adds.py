"""What the model asks of the machine: multiply-adds of each stage, counted over shapes alone (no weights)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ...graphs.stages import Stage
from ..checkpoint.reader import Skeleton


def multiply_adds(
    skeleton: Skeleton, kind: str, frames: int, kept: int, prompt: int, grid: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Multiply-adds of matrix products, convolutions and attention.

    Args:
        skeleton: the checkpoint's model on the meta device.
        kind: "image" or "video".
        frames: F.
        kept: K tokens of each frame.
        prompt: text tokens.
        grid: sizes of inputs that follow from a picture's size, where it may have any.

    Returns:
        vision (F frames), project, prefill (prompt + F · K tokens, logits of the last) and decode (one token after).
    """
    stages = {stage.name: stage for stage in skeleton.stages}
    modality = skeleton.checkpoint.family.modalities(skeleton.checkpoint.config)[kind]
    vision, project, language = stages[modality.stage], stages["project"], stages["language"]
    tokens, projected = prompt + frames * kept, kept
    if modality.mixed_output is not None:  # each token is mixed of up to four patches, of which all are projected
        patches = next(port.shape[1] for port in vision.outputs if port.name == modality.mixed_output)
        projected = min(4 * kept, int(patches))

    def of_language(count: int, length: int) -> int:
        sizes = {"batch": 1, "tokens": count, "cache": length}
        return _count(language.module, *_empty(language, sizes))

    return {
        "vision": _count(vision.module, *_empty(vision, {"frames": frames, **(grid or {})})),
        "project": _count(project.module, *_empty(project, {"frames": frames, "kept": projected, **(grid or {})})),
        "prefill": of_language(tokens, tokens),
        "decode": of_language(1, tokens + 1),
    }


def _empty(stage: Stage, sizes: dict[str, int]) -> list[torch.Tensor]:
    """A stage's inputs of the given sizes, on the meta device."""
    shapes = [[sizes[d] if isinstance(d, str) else d for d in port.shape] for port in stage.inputs]
    types = [port.dtype or torch.float32 for port in stage.inputs]
    return [torch.empty(shape, dtype=dtype, device="meta") for shape, dtype in zip(shapes, types, strict=True)]


def _count(module: Any, *inputs: torch.Tensor) -> int:
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), counter:
        module(*inputs)
    return counter.get_total_flops() // 2
