"""The stages of a model: eager modules with the names, dtypes and dynamic dimensions of what goes in and out."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .families import Family
from .families.base import hidden_indices
from .language import LanguageStage, cache_names, cache_shape
from .selection.query_vector import pool_query
from .selection.reference import select_tokens


@dataclass(frozen=True)
class Port:
    """One input or output. dtype None follows the precision; a dimension is a size, or a symbol where it is dynamic."""

    name: str
    shape: tuple[int | str, ...]
    dtype: torch.dtype | None = None


@dataclass(frozen=True)
class Stack:
    """Layers that a module runs one after the other, each on what the one before gave: the first so many at `path`."""

    path: str
    layers: int


@dataclass(frozen=True)
class Stage:
    """An eager module and its ports. Symbols of the same name are equal within a stage."""

    name: str
    module: nn.Module
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    stack: Stack | None = None

    def symbols(self) -> set[str]:
        return {dim for port in self.inputs for dim in port.shape if isinstance(dim, str)}

    def random_inputs(self, sizes: dict[str, int], dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
        """Inputs of the given sizes: tensors normal, scalars in (0, 1), integers 1 or 2 (ids, positions and counts)."""
        generator = torch.Generator().manual_seed(seed)
        tensors = []
        for port in self.inputs:
            shape = [sizes[dim] if isinstance(dim, str) else dim for dim in port.shape]
            kind = port.dtype or dtype
            if not kind.is_floating_point:
                tensors.append(torch.randint(1, 3, shape, generator=generator, dtype=kind))
            elif shape:
                tensors.append(torch.randn(shape, generator=generator).to(kind))
            else:
                tensors.append(torch.rand(shape, generator=generator).to(kind))
        return tensors


class SelectStage(nn.Module):
    """features [F,P,C], text_embeds [L,D], num_keep, alpha, tau → indices [F,K], kept [F,K,C]."""

    def forward(
        self, features: Tensor, text_embeds: Tensor, num_keep: Tensor, alpha: Tensor, tau: Tensor
    ) -> tuple[Tensor, Tensor]:
        query = pool_query(text_embeds)
        indices = select_tokens(features, query, int(num_keep), float(alpha), float(tau))
        kept = features.gather(1, indices[:, :, None].expand(-1, -1, features.shape[2]))
        return indices, kept


def stages_of(model: nn.Module, family: Family) -> list[Stage]:
    """The stages of a transformers model, in the order data flows through them.

    `vision` (and, for families with a tower of its own for videos, `vision_video`), `select`, `project`, `embed`,
    `language`.
    """
    config: Any = model.config
    text, vision = config.text_config, config.vision_config
    modalities = family.modalities(config)
    layers = (
        [config.vision_feature_layer] if isinstance(config.vision_feature_layer, int) else config.vision_feature_layer
    )
    channels, depth = vision.hidden_size * len(layers), text.hidden_size
    size = vision.image_size

    stages = []
    for name, module in family.vision_stages(model).items():
        outputs = {m.output: m.leading + m.rows * m.columns for m in modalities.values() if m.stage == name}
        chosen = hidden_indices(module.get_submodule("tower"), config.vision_feature_layer)
        if getattr(module, "pool", None) is not None:  # both outputs exist, whatever the modalities use
            outputs = {key: outputs[key] for key in ("features", "pooled_features")}
        stages.append(
            Stage(
                name,
                module,
                (Port("pixel_values", ("frames", 3, size, size)),),
                tuple(Port(output, ("frames", patches, channels)) for output, patches in outputs.items()),
                Stack("tower.encoder.layers", chosen[0]) if len(chosen) == 1 else None,
            )
        )
    stages.append(
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
        )
    )
    stages.append(
        Stage(
            "project",
            model.get_submodule("model.multi_modal_projector"),
            (Port("kept", ("frames", "kept", channels)),),
            (Port("visual_embeds", ("frames", "kept", depth)),),
        )
    )
    stages.append(
        Stage(
            "embed",
            model.get_submodule("model.language_model.embed_tokens"),
            (Port("input_ids", ("batch", "tokens"), torch.int64),),
            (Port("embeds", ("batch", "tokens", depth)),),
        )
    )
    _, heads, _, width = cache_shape(text, 1, 1)
    names = cache_names(text.num_hidden_layers)
    cache = ("batch", heads, "cache", width)
    stages.append(
        Stage(
            "language",
            LanguageStage(model),
            (
                Port("inputs_embeds", ("batch", "tokens", depth)),
                Port("write_index", ("batch",), torch.int64),
                *(Port(f"past.{name}", cache) for name in names),
            ),
            (
                Port("logits", ("batch", 1, text.vocab_size)),
                *(Port(f"present.{name}", cache) for name in names),
            ),
            Stack("decoder.layers", text.num_hidden_layers),
        )
    )
    return stages
