"""Stages of Qwen-VL: a tower over pictures of any size, and mergers that make one token of a group of 2 × 2 patches.

Pixels come as [F, G, m², X], a row of X numbers for each patch, so that the frames of a video, which have one grid, are
a batch. What depends on the grid alone (positions, the interpolation of learned ones) are inputs, computed without torch.
Selection and mergers work on groups, the tokens that the decoder sees.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ports import Port, Stage
from .base import UnsupportedModelError


class QwenVisionStage(nn.Module):
    """Qwen3-VL's tower.

    Args:
        tower: `model.visual` of a transformers model.
    """

    def __init__(self, tower: nn.Module):
        super().__init__()
        self.tower: Any = tower

    def forward(
        self, pixel_values: Tensor, positions: Tensor, interp_indices: Tensor, interp_weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Pixels and grid to the groups' features and rows.

        Args:
            pixel_values: [F, G, m², X], normalised.
            positions: [G, m², 2] int64, row and column of each patch.
            interp_indices, interp_weights: [G, m², 4], where the learned positions are looked up, and how much counts.

        Returns:
            features [F, G, C], the mean over a group's patches, by which groups are selected; and rows
            [F, 1 + T, G, m²·C], what the merger and those of the T tapped layers take.
        """
        tower = self.tower
        frames, groups = pixel_values.shape[:2]
        convolution = tower.patch_embed.proj  # covers each row of pixels exactly: a matrix product
        hidden = F.linear(pixel_values, convolution.weight.flatten(1), convolution.bias).flatten(1, 2)
        learned = tower.pos_embed(interp_indices.flatten(0, 1)) * interp_weights.flatten(0, 1)[:, :, None]
        hidden = hidden + learned.sum(1).to(hidden.dtype)  # [frames, patches, channels]
        rotary = tower.rotary_pos_emb(hidden, positions.flatten(0, 1))
        taps = []
        for number, layer in enumerate(tower.blocks):
            hidden = vision_block(layer, hidden, *rotary)
            if number in tower.deepstack_visual_indexes:
                taps.append(hidden)
        width = hidden.shape[2]
        features = hidden.reshape(frames, groups, -1, width).mean(2)
        rows = torch.stack([hidden, *taps], dim=1).reshape(frames, 1 + len(taps), groups, -1)
        return features, rows


def vision_block(layer: Any, hidden: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """A layer of the tower on [F, P, C]; transformers' own packs all frames into one row, and splits it by a list."""
    frames, patches, width = hidden.shape
    attention = layer.attn
    packed = attention.qkv(layer.norm1(hidden)).reshape(frames, patches, 3, attention.num_heads, -1)
    query, key, value = packed.permute(2, 0, 3, 1, 4).unbind(0)  # each [frames, heads, patches, head width]
    query, key = (_rotated(x.float(), cosines, sines).to(value.dtype) for x in (query, key))
    out = F.scaled_dot_product_attention(query, key, value, scale=attention.scaling)
    hidden = hidden + attention.proj(out.transpose(1, 2).reshape(frames, patches, width))
    return hidden + layer.mlp(layer.norm2(hidden))


def _rotated(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cosines + torch.cat((-second, first), dim=-1) * sines


class QwenProjectStage(nn.Module):
    """The kept groups' rows through the merger, and for tapped layers through theirs."""

    def __init__(self, tower: Any):
        super().__init__()
        self.mergers = nn.ModuleList([tower.merger, *tower.deepstack_merger_list])

    def forward(self, rows: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        """rows [F, 1 + T, G, m²·C], indices [F, K] → visual_embeds [F, K, D], deepstack [F, T, K, D]."""
        at = indices[:, :, None].expand(-1, -1, rows.shape[3])
        merged = [
            _merged(merger, rows[:, number].gather(1, at)) for number, merger in enumerate(self.mergers)
        ]  # each [frames, kept, width]
        return merged[0], torch.stack(merged[1:], dim=1)


def _merged(merger: Any, kept: Tensor) -> Tensor:
    """[F, K, m²·C] → [F, K, D]. transformers' own makes one row of all frames, whose products cannot be quantised."""
    frames, count, width = kept.shape
    normed = merger.norm(
        kept.reshape(frames, count, -1, merger.norm.normalized_shape[0])
    )  # a patch's or a group's norm
    return merger.linear_fc2(merger.act_fn(merger.linear_fc1(normed.reshape(frames, count, width))))


def qwen_stages(model: nn.Module) -> tuple[Stage, Stage]:
    """`vision` and `project` of a model of Qwen3-VL."""
    tower: Any = model.get_submodule("model.visual")
    config = tower.config
    patches, width, taps = config.spatial_merge_size**2, config.hidden_size, len(config.deepstack_visual_indexes)
    pixels = config.in_channels * config.temporal_patch_size * config.patch_size**2
    rows = Port("rows", ("frames", 1 + taps, "groups", patches * width))
    vision = Stage(
        "vision",
        QwenVisionStage(tower),
        (
            Port("pixel_values", ("frames", "groups", patches, pixels)),
            Port("positions", ("groups", patches, 2), torch.int64),
            Port("interp_indices", ("groups", patches, 4), torch.int64),
            Port("interp_weights", ("groups", patches, 4), torch.float32),
        ),
        (Port("features", ("frames", "groups", width)), rows),
    )
    project = Stage(
        "project",
        QwenProjectStage(tower),
        (rows, Port("indices", ("frames", "kept"), torch.int64)),
        (
            Port("visual_embeds", ("frames", "kept", config.out_hidden_size)),
            Port("deepstack", ("frames", taps, "kept", config.out_hidden_size)),
        ),
    )
    return vision, project


def check_qwen(config: Any) -> None:
    """Refuse a Qwen-VL whose sizes the stages do not take.

    Raises:
        UnsupportedModelError: no tapped layers, or rotary sections that do not take turns.
    """
    rope = getattr(config.text_config, "rope_parameters", None) or {}
    section = rope.get("mrope_section", [24, 20, 20])
    half = (getattr(config.text_config, "head_dim", None) or 0) // 2
    if len(section) != 3 or section[1] != section[2] or 3 * section[1] > half:
        raise UnsupportedModelError(f"rotary sections {section} of heads of {2 * half} channels are not supported")
    if not config.vision_config.deepstack_visual_indexes:
        raise UnsupportedModelError("a Qwen3-VL without tapped layers (deepstack_visual_indexes) is not supported")
