"""Weights that the asked precision cannot hold, found before anything is exported, whatever the model's size."""

from collections.abc import Iterable

import torch

from ...runtime.errors import RedipruneError
from .weight_files import StoredTensor


def check_range(tensors: Iterable[StoredTensor], dtype: torch.dtype) -> None:
    """Refuse weights that are not finite, or would not be in `dtype`.

    Each tensor is read once, a few rows at a time.

    Args:
        tensors: those that are exported.
        dtype: what they are rounded to.

    Raises:
        RedipruneError: names the weight and its value.
    """
    for stored in dict.fromkeys(tensors):
        ends = [end for chunk in stored.chunks() if chunk.numel() for end in chunk.aminmax()]
        for end in ends:  # NaN is passed on by aminmax
            if not end.isfinite():
                raise RedipruneError(
                    f"weight '{stored.key}' in '{stored.file}' is {end.item():g} in places; the file is damaged, or its "
                    "training went wrong: download it again, or take another checkpoint"
                )
            if not end.to(dtype).isfinite():
                raise RedipruneError(
                    f"weight '{stored.key}' in '{stored.file}' has the value {end.item():g}, which "
                    f"{str(dtype).removeprefix('torch.')} cannot hold (at most {torch.finfo(dtype).max:g}); export the "
                    "checkpoint with --precision fp32, and take bf16 where half precision is wanted (rediprune calibrate "
                    "--recipe bf16)"
                )
