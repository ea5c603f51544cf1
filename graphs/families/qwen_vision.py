"""What the towers of Qwen-VL share: pictures of any size, and mergers that make one token of a group of 2 × 2 patches.

Pixels come as [F, G, m², X], a row of X numbers for each patch, so that the frames of a video, which have one grid, are
a batch. What depends on the grid alone (positions, windows, the interpolation of learned positions) are inputs, computed
without torch. Selection and mergers work on groups, the tokens that the decoder sees.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ports import Port, Stack, Stage
from .base import Modality, UnsupportedModelError

_SIDE = 32  # groups along a side of a picture of usual size; a picture has the grid that fits it


def qwen_modalities() -> dict[str, Modality]:
    """Layout of the visual tokens by kind of input, see `Family.modalities`."""
    modality = Modality("vision", "features", _SIDE, _SIDE, dynamic=True, rows_output="rows")
    return {"image": modality, "video": modality}


def embedded(patch_embed: Any, pixel_values: Tensor) -> Tensor:
    """[F, G, m², X] → [F, P, C]. The convolution covers each row of pixels exactly: a matrix product."""
    convolution = patch_embed.proj
    return F.linear(pixel_values, convolution.weight.flatten(1), convolution.bias).flatten(1, 2)


class QwenBlock(nn.Module):
    """A layer of a tower, frame by frame; transformers' own packs all frames into one row, and splits it by a list.

    Args:
        layer: transformers' own.
    """

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer: Any = layer

    def forward(self, hidden: Tensor, cosines: Tensor, sines: Tensor, mask: Tensor | None = None) -> Tensor:
        """[F, P, C], attending to what is True in the mask [F, 1, P, P]."""
        layer, (frames, patches, width) = self.layer, hidden.shape
        attention = layer.attn
        packed = attention.qkv(layer.norm1(hidden)).reshape(frames, patches, 3, attention.num_heads, -1)
        query, key, value = packed.permute(2, 0, 3, 1, 4).unbind(0)  # each [frames, heads, patches, head width]
        query, key = (_rotated(x.float(), cosines, sines).to(value.dtype) for x in (query, key))
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=attention.scaling)
        hidden = hidden + attention.proj(out.transpose(1, 2).reshape(frames, patches, width))
        return hidden + layer.mlp(layer.norm2(hidden))


def _rotated(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    return x * cosines + torch.cat((-second, first), dim=-1) * sines


def grouped(hidden: Tensor, groups: int, taps: Sequence[Tensor] = ()) -> tuple[Tensor, Tensor]:
    """What a tower's layers give, as the stage gives it.

    Args:
        hidden: [F, P, C], of the last layer.
        groups: G.
        taps: of T tapped layers, each like `hidden`.

    Returns:
        features [F, G, C], the mean over a group's patches, by which groups are selected; and rows
        [F, 1 + T, G, m²·C], what the merger and those of the tapped layers take.
    """
    frames, _, width = hidden.shape
    features = hidden.reshape(frames, groups, -1, width).mean(2)
    rows = [each.reshape(frames, 1, groups, -1) for each in (hidden, *taps)]
    return features, torch.cat(rows, dim=1) if taps else rows[0]


class QwenProjectStage(nn.Module):
    """The kept groups' rows through the merger, and for tapped layers through theirs."""

    def __init__(self, tower: Any):
        super().__init__()
        self.mergers = nn.ModuleList([tower.merger, *getattr(tower, "deepstack_merger_list", ())])

    def forward(self, rows: Tensor, indices: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """rows [F, 1 + T, G, m²·C], indices [F, K] → visual_embeds [F, K, D] and, with taps, deepstack [F, T, K, D]."""
        at = indices[:, :, None].expand(-1, -1, rows.shape[3])
        merged = [
            _merged(merger, rows[:, number].gather(1, at)) for number, merger in enumerate(self.mergers)
        ]  # each [frames, kept, width]
        return merged[0] if len(merged) == 1 else (merged[0], torch.stack(merged[1:], dim=1))


def _merged(merger: Any, kept: Tensor) -> Tensor:
    """[F, K, m²·C] → [F, K, D]. transformers' own makes one row of all frames, whose products cannot be quantised."""
    frames, count, width = kept.shape
    norm = merger.norm if hasattr(merger, "norm") else merger.ln_q
    normed = norm(kept.reshape(frames, count, -1, norm.weight.shape[0]))  # a patch's or a group's norm
    groups = normed.reshape(frames, count, width)
    if hasattr(merger, "mlp"):
        return merger.mlp(groups)
    return merger.linear_fc2(merger.act_fn(merger.linear_fc1(groups)))


class QwenVisionStage(nn.Module):
    """What the vision stages of all have: the tower's parts.

    Args:
        tower: `model.visual` of a transformers model.

    Attributes:
        stack: its layers, where all are alike.
    """

    stack: Stack | None = None

    def __init__(self, tower: Any):
        super().__init__()
        self.patch_embed, self.rotary_pos_emb = tower.patch_embed, tower.rotary_pos_emb
        self.blocks = nn.ModuleList([QwenBlock(layer) for layer in tower.blocks])


def qwen_stages(
    tower: Any, vision: QwenVisionStage, grid: Sequence[Port], channels: int, width: int
) -> tuple[Stage, Stage]:
    """`vision` and `project` of a Qwen-VL.

    Args:
        tower: `model.visual` of a transformers model.
        vision: takes pixels, positions and `grid`, and gives what `grouped` does.
        grid: inputs that depend on the grid alone, besides the positions.
        channels: C, of the tower.
        width: D, of the decoder.
    """
    config = tower.config
    patches, taps = config.spatial_merge_size**2, len(getattr(config, "deepstack_visual_indexes", ()))
    pixels = config.in_channels * config.temporal_patch_size * config.patch_size**2
    tapped = 0 if vision.stack is None else len(vision.stack.taps)
    positions = Port("positions", ("groups", patches, 2), torch.int64)  # row and column of each patch
    deepstack = (Port("deepstack", ("frames", taps, "kept", width)),) if taps else ()
    return (
        Stage(
            "vision",
            vision,
            (Port("pixel_values", ("frames", "groups", patches, pixels)), positions, *grid),
            (Port("features", ("frames", "groups", channels)), _rows(tapped, patches * channels)),
            vision.stack,
        ),
        Stage(
            "project",
            QwenProjectStage(tower),
            (_rows(taps, patches * channels), Port("indices", ("frames", "kept"), torch.int64)),
            (Port("visual_embeds", ("frames", "kept", width)), *deepstack),
        ),
    )


def _rows(taps: int, width: int) -> Port:
    return Port("rows", ("frames", 1 + taps, "groups", width))


def check_qwen_tower(config: Any, name: str, towers: Sequence[str]) -> None:
    """Refuse a tower of another kind.

    Args:
        config: of the checkpoint.
        name: of the family.
        towers: `model_type` of those that it takes, as configs of any age write them; the first is today's.

    Raises:
        UnsupportedModelError: the tower is none of them.
    """
    if config.vision_config.model_type not in towers:
        raise UnsupportedModelError(
            f"vision tower '{config.vision_config.model_type}' is not supported; supported of {name} is: {towers[0]}"
        )


def sections_of(config: Any, usual: Sequence[int]) -> tuple[list[int], int]:
    """Channels of a head's half that turn by time, row and column, and how many the half has."""
    text = config.text_config
    rope = getattr(text, "rope_parameters", None) or {}
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return list(rope.get("mrope_section", usual)), width // 2


def check_runs_of_sections(config: Any) -> None:
    """Refuse rotary sections that do not fill a head's half, one run of channels for each axis (Qwen2-VL, Qwen2.5-VL).

    Raises:
        UnsupportedModelError: they do not.
    """
    section, half = sections_of(config, [16, 24, 24])
    if len(section) != 3 or min(section) < 1 or sum(section) != half:
        raise UnsupportedModelError(f"rotary sections {section} of heads of {2 * half} channels are not supported")
