"""The stages of a model: eager modules, with the names, dtypes and dynamic dimensions of their inputs and outputs."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .families import Family
from .families.base import image_side
from .language import LanguageStage, cache_names, cache_shape
from .ports import Port, Stack
from .selection.query_vector import pool_query
from .selection.reference import select_tokens


@dataclass(frozen=True)
class Stage:
    """An eager module and its inputs and outputs.

    Attributes:
        name: "vision", "select", "project", "embed" or "language"; "vision_video" where videos have their own tower.
        module: takes the inputs in their order.
        inputs, outputs: symbols of one name stand for one size within a stage.
        stack: the module's layers, if it is a stack of them.
    """

    name: str
    module: nn.Module
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    stack: Stack | None = None

    def symbols(self) -> set[str]:
        """Names of the dynamic dimensions of the inputs."""
        return {dim for port in self.inputs for dim in port.shape if isinstance(dim, str)}

    def random_inputs(self, sizes: dict[str, int], dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
        """Random inputs of the given sizes.

        Args:
            sizes: a size for each symbol.
            dtype: of inputs that follow the precision.
            seed: of the generator; equal seeds give equal inputs.

        Returns:
            One tensor for each input: normal numbers, scalars in (0, 1), and integers 1 or 2, which are valid as ids,
            positions and counts alike.
        """
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
    """The selection as a stage: `pool_query`, `select_tokens`, and the rows that they choose."""

    def forward(
        self, features: Tensor, text_embeds: Tensor, num_keep: Tensor, alpha: Tensor, tau: Tensor
    ) -> tuple[Tensor, Tensor]:
        """features [F, P, C], text_embeds [L, D] and scalars → indices [F, K] int64, kept [F, K, C]."""
        query = pool_query(text_embeds)
        indices = select_tokens(features, query, int(num_keep), float(alpha), float(tau))
        kept = features.gather(1, indices[:, :, None].expand(-1, -1, features.shape[2]))
        return indices, kept


def stages_of(model: nn.Module, family: Family) -> list[Stage]:
    """The stages of a transformers model.

    Args:
        model: on any device, the meta device included.
        family: of the model's config.

    Returns:
        In the order in which data flows through them: `vision` (and `vision_video`, where videos have a tower of their
        own), `select`, `project`, `embed`, `language`.
    """
    config: Any = model.config
    text = config.text_config
    depth, vision = text.hidden_size, _vision_stages(model, family)
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
            "project",
            model.get_submodule("model.multi_modal_projector"),
            (Port("kept", ("frames", "kept", channels)),),
            (Port("visual_embeds", ("frames", "kept", depth)),),
        ),
        Stage(
            "embed",
            model.get_submodule("model.language_model.embed_tokens"),
            (Port("input_ids", ("batch", "tokens"), torch.int64),),
            (Port("embeds", ("batch", "tokens", depth)),),
        ),
        _language_stage(model, text),
    ]


def _vision_stages(model: nn.Module, family: Family) -> list[Stage]:
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


def _language_stage(model: nn.Module, text_config: Any) -> Stage:
    """The decoder with its KV cache as inputs `past.…` and outputs `present.…`."""
    _, heads, _, width = cache_shape(text_config, 1, 1)
    names, cache = cache_names(text_config.num_hidden_layers), ("batch", heads, "cache", width)
    return Stage(
        "language",
        LanguageStage(model),
        (
            Port("inputs_embeds", ("batch", "tokens", text_config.hidden_size)),
            Port("position_ids", ("batch", "tokens"), torch.int64),
            Port("write_index", ("batch",), torch.int64),
            *(Port(f"past.{name}", cache) for name in names),
        ),
        (
            Port("logits", ("batch", 1, text_config.vocab_size)),
            *(Port(f"present.{name}", cache) for name in names),
        ),
        Stack("decoder.layers", text_config.num_hidden_layers),
    )
