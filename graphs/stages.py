"""The stages of a model: eager modules, with the names, dtypes and dynamic dimensions of their inputs and outputs."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from .families import Family, TowerFamily
from .families.base import image_side
from .language import LanguageStage, cache_names, cache_shape, decoder_of
from .ports import Port, Stack, Stage
from .selection.clip_reference import select_clip_tokens
from .selection.query_vector import pool_query
from .selection.reference import select_tokens


class SelectStage(nn.Module):
    """The selection as a stage: `pool_query`, `select_tokens`, and the rows that they choose."""

    def forward(
        self, features: Tensor, text_embeds: Tensor, num_keep: Tensor, alpha: Tensor, tau: Tensor
    ) -> tuple[Tensor, Tensor]:
        """features [F, P, C], text_embeds [L, D] and scalars → indices [F, K] int64, kept [F, K, C]."""
        query = pool_query(text_embeds)
        indices = select_tokens(features, query, int(num_keep), float(alpha), float(tau))
        kept = features.gather(1, indices[:, :, None].expand(-1, -1, features.shape[2]))
        return indices, kept


class SelectClipStage(nn.Module):
    """The selection over a whole clip as a stage: `pool_query`, `select_clip_tokens`, and the rows that they choose."""

    def forward(
        self,
        features: Tensor,
        text_embeds: Tensor,
        num_keep: Tensor,
        alpha: Tensor,
        min_per_frame: Tensor,
        threshold: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """features [F, P, C], text_embeds [L, D] and scalars → indices [K] int64, kept [K, C]."""
        count = min(int(num_keep), features.shape[1])
        least = min(int(min_per_frame), count)
        query = pool_query(text_embeds)
        indices = select_clip_tokens(features, query, count, float(alpha), least, float(threshold))
        return indices, features.flatten(0, 1)[indices]


def stages_of(model: nn.Module, family: Family) -> list[Stage]:
    """The stages of a transformers model.

    Args:
        model: on any device, the meta device included.
        family: of the model's config.

    Returns:
        In the order in which data flows through them: `vision` (and `vision_video`, where videos have a tower of their
        own), `select`, `select_clip`, `project`, `embed`, `language`.
    """
    config: Any = model.config
    text = config.text_config
    depth, own = text.hidden_size, getattr(family, "own_stages", None)
    *vision, project = own(model) if own else _tower_stages(model, cast(TowerFamily, family))
    channels = vision[0].outputs[0].shape[2]
    return [
        *vision,
        Stage(
            "select",
            SelectStage(),
            (
                Port("features", ("frames", "patches", channels)),
                Port("text_embeds", ("question", depth)),
                Port("num_keep", (), torch.int64),
                Port("alpha", (), torch.float32),
                Port("tau", (), torch.float32),
            ),
            (Port("indices", ("frames", "kept"), torch.int64), Port("kept", ("frames", "kept", channels))),
        ),
        Stage(
            "select_clip",
            SelectClipStage(),
            (
                Port("features", ("frames", "patches", channels)),
                Port("text_embeds", ("question", depth)),
                Port("num_keep", (), torch.int64),
                Port("alpha", (), torch.float32),
                Port("min_per_frame", (), torch.int64),
                Port("threshold", (), torch.float32),
            ),
            (Port("indices", ("kept",), torch.int64), Port("kept", ("kept", channels))),
        ),
        project,
        Stage(
            "embed",
            decoder_of(model).embed_tokens,
            (Port("input_ids", ("batch", "tokens"), torch.int64),),
            (Port("embeds", ("batch", "tokens", depth)),),
        ),
        _language_stage(model, text),
    ]


def _vision_stages(model: nn.Module, family: TowerFamily) -> list[Stage]:
    """One stage for each tower, with an output for each kind of input that the family encodes by it."""
    config: Any = model.config
    modalities, size = family.modalities(config), image_side(config.vision_config)
    stages = []
    for name, module in family.vision_stages(model).items():
        outputs = {m.output: m.leading + m.rows * m.columns for m in modalities.values() if m.stage == name}
        if module.pool is not None:  # both outputs exist, in this order
            outputs = {key: outputs[key] for key in ("features", "pooled_features")}
        stages.append(
            Stage(
                name,
                module,
                (Port("pixel_values", ("frames", 3, size, size)),),
                tuple(Port(output, ("frames", patches, module.channels)) for output, patches in outputs.items()),
                module.stack,
            )
        )
    return stages


def _tower_stages(model: nn.Module, family: TowerFamily) -> list[Stage]:
    """Towers and projector."""
    vision = _vision_stages(model, family)
    channels = vision[0].outputs[0].shape[2]
    assert isinstance(channels, int)
    return [*vision, _project_stage(model, channels)]


def _project_stage(model: nn.Module, channels: int) -> Stage:
    """The projector of a family that has one module for it."""
    config: Any = model.config
    return Stage(
        "project",
        model.get_submodule("model.multi_modal_projector"),
        (Port("kept", ("frames", "kept", channels)),),
        (Port("visual_embeds", ("frames", "kept", config.text_config.hidden_size)),),
    )


def _language_stage(model: nn.Module, text_config: Any) -> Stage:
    """The decoder with its KV cache as inputs `past.…` and outputs `present.…`."""
    _, heads, _, width = cache_shape(text_config, 1, 1)
    names, cache = cache_names(text_config.num_hidden_layers), ("batch", heads, "cache", width)
    module, depth = LanguageStage(model), text_config.hidden_size
    positions = ("batch", "tokens") if module.axes == 1 else (module.axes, "batch", "tokens")
    deepstack = [Port("deepstack", (module.taps, "batch", "tokens", depth))] if module.taps else []
    return Stage(
        "language",
        module,
        (
            Port("inputs_embeds", ("batch", "tokens", depth)),
            Port("position_ids", positions, torch.int64),
            Port("write_index", ("batch",), torch.int64),
            *deepstack,
            *(Port(f"past.{name}", cache) for name in names),
        ),
        (
            Port("logits", ("batch", 1, text_config.vocab_size)),
            *(Port(f"present.{name}", cache) for name in names),
        ),
        Stack("decoder.layers", text_config.num_hidden_layers, unlike=module.taps),  # something is added behind those
    )
