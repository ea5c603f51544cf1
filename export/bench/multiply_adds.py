"""What the model asks of the machine: multiply-adds of each stage, counted over shapes alone (no weights)."""

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ...graphs.language import cache_shape
from ..checkpoint.reader import Skeleton


def multiply_adds(skeleton: Skeleton, kind: str, frames: int, kept: int, prompt: int) -> dict[str, int]:
    """Multiply-adds of matrix products, convolutions and attention.

    Args:
        skeleton: the checkpoint's model on the meta device.
        kind: "image" or "video".
        frames: F. kept: K tokens of each frame. prompt: text tokens.

    Returns:
        vision (F frames), project, prefill (prompt + F · K tokens, logits of the last) and decode (one token after).
    """
    stages = {stage.name: stage for stage in skeleton.stages}
    modality = skeleton.checkpoint.family.modalities(skeleton.checkpoint.config)[kind]
    vision, project, language = stages[modality.stage], stages["project"], stages["language"]
    text, size = skeleton.checkpoint.config.text_config, skeleton.checkpoint.config.vision_config.image_size
    tokens = prompt + frames * kept

    def of_language(count: int, length: int) -> int:
        caches = [port for port in language.inputs if port.name.startswith("past.")]
        cache = [torch.empty(cache_shape(text, 1, length), device="meta") for _ in caches]
        positions = torch.empty(1, count, dtype=torch.int64, device="meta")
        index = torch.empty(1, dtype=torch.int64, device="meta")
        embeds = torch.empty(1, count, text.hidden_size, device="meta")
        return _count(language.module, embeds, positions, index, *cache)

    channels: Any = project.inputs[0].shape[2]
    return {
        "vision": _count(vision.module, torch.empty(frames, 3, size, size, device="meta")),
        "project": _count(project.module, torch.empty(frames, kept, channels, device="meta")),
        "prefill": of_language(tokens, tokens),
        "decode": of_language(1, tokens + 1),
    }


def _count(module: Any, *inputs: torch.Tensor) -> int:
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), counter:
        module(*inputs)
    return counter.get_total_flops() // 2
