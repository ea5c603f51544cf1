"""The checkpoint to export: a local folder or a hub id, its config, its family and its architecture without weights."""

import json
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText

from ...graphs.families import Family, UnsupportedModelError, family_of
from ...graphs.stages import Stage, stages_of
from ...runtime.bundle import Source, file_sha256
from ...runtime.errors import RedipruneError
from ..trace.replicate_layers import shallow_config
from .unsuitable import check_sizes, refuse_adapter, refuse_quantized_config
from .weight_files import weight_files
from .weights import Weights, stored_weights, untie

DTYPES = {"fp32": torch.float32, "fp16": torch.float16}

# What a hub download needs: everything but other frameworks' weights.
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]


@dataclass
class Checkpoint:
    """A checkpoint whose config was read and found supported. Its weights are read only through `Skeleton.weights`."""

    name: str
    folder: Path
    revision: str | None
    config: Any
    family: Family

    @classmethod
    def open(cls, name: str, revision: str | None = None) -> "Checkpoint":
        """Find a checkpoint and read its config.

        Args:
            name: a local folder, or a hub id (`org/model`), downloaded to the hub cache unless it is there.
            revision: of the hub id.

        Raises:
            RedipruneError: there is no such checkpoint, it is not one, or its family is not supported.
        """
        folder = Path(name)
        if not folder.is_dir():
            folder = _download(name, revision)
        refuse_adapter(folder)
        path = folder / "config.json"
        if not path.is_file():
            raise RedipruneError(
                f"'{folder}' is not a checkpoint: it has no config.json; give the folder that holds config.json and the "
                "weights"
            )
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            model_type = raw["model_type"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise RedipruneError(
                f"'{path}' is damaged or names no model_type; download the checkpoint again"
            ) from error
        refuse_quantized_config(folder, raw)
        check_sizes(path, raw)
        if raw.get("auto_map"):
            raise RedipruneError(
                f"checkpoint '{folder}' asks for code of its own (auto_map in config.json), which is never run; if "
                f"transformers' own '{model_type}' serves it, remove auto_map from config.json"
            )
        try:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        except Exception as error:
            if model_type in str(error):  # transformers does not know it: our list of families is the better answer
                config = type("Unknown", (), raw)
            else:
                raise RedipruneError(
                    f"'{path}' cannot be read ({_line(error)}); download the checkpoint again"
                ) from error
        try:
            family = family_of(config)
            family.modalities(config)
        except UnsupportedModelError as error:
            raise RedipruneError(f"checkpoint '{folder}': {error}") from error
        except Exception as error:  # whatever a config of other types makes of the arithmetic
            raise RedipruneError(f"'{path}' is damaged ({_line(error)}); download the checkpoint again") from error
        return cls(name, folder, revision, config, family)

    @property
    def source_name(self) -> str:
        """What finds the checkpoint again from anywhere on this machine."""
        return str(self.folder.resolve()) if Path(self.name).is_dir() else self.name

    def source(self, weights: dict[str, str]) -> Source:
        """The checkpoint as a manifest names it; `weights` is each weight file's sha256."""
        return Source(
            name=self.source_name,
            revision=self.revision,
            config_sha256=file_sha256(self.folder / "config.json"),
            weights=weights,
        )

    def weight_files(self) -> list[Path]:
        """The files that hold its weights; raises as `weight_files.weight_files`."""
        return weight_files(self.folder, getattr(self.config, "transformers_weights", None))

    def skeleton(self, precision: str) -> "Skeleton":
        """The model on the meta device: every parameter a shape, every buffer computed.

        Parameters that are stored apart are apart, whatever the config says; without weights the config decides.
        """
        dtype = DTYPES[precision]
        try:
            with init_empty_weights(include_buffers=False):
                model = AutoModelForImageTextToText.from_config(self.config, dtype=dtype, trust_remote_code=False)
        except Exception as error:  # whatever transformers makes of settings that do not fit together
            raise RedipruneError(
                f"'{self.folder / 'config.json'}' describes no model that transformers builds ({_line(error)}); download the "
                "checkpoint again"
            ) from error
        model = model.eval().requires_grad_(False)
        real = dict(model.named_buffers())
        model = model.to("meta")
        model.tie_weights()  # undone by init_empty_weights, which makes every parameter anew
        if model.all_tied_weights_keys:
            with suppress(RedipruneError):  # told when weights are asked for; a model can be looked at without
                untie(model, stored_weights(model, self.weight_files()))
        buffers = {id(buffer): real[name].clone() for name, buffer in model.named_buffers()}
        return Skeleton(self, model, buffers, dtype)


@dataclass
class Skeleton:
    """A checkpoint's model without weights, and what is needed to fill it stage by stage."""

    checkpoint: Checkpoint
    model: nn.Module
    buffers: dict[int, Tensor]
    dtype: torch.dtype

    @cached_property
    def stages(self) -> list[Stage]:
        return stages_of(self.model, self.checkpoint.family)

    @cached_property
    def shallow(self) -> "Skeleton":
        """The same model with only the first layers of its tower and its decoder (`replicate_layers`)."""
        precision = next(name for name, dtype in DTYPES.items() if dtype == self.dtype)
        return replace(self.checkpoint, config=shallow_config(self.checkpoint.config)).skeleton(precision)

    def stage(self, name: str) -> Stage:
        return next(stage for stage in self.stages if stage.name == name)

    @cached_property
    def newline(self) -> Tensor | None:
        """The newline embedding's parameter, where images are tiled."""
        return getattr(self.model.get_submodule("model"), "image_newline", None)

    @cached_property
    def weights(self) -> Weights:
        needed: list[Tensor] = [p for stage in self.stages for p in stage.module.parameters()]
        if self.newline is not None:
            needed.append(self.newline)
        return Weights(self.checkpoint.folder, self.model, needed, self.checkpoint.weight_files())

    def parameters(self, stage: Stage) -> int:
        return sum(p.numel() for p in stage.module.parameters())

    def parameter_bytes(self, stage: Stage) -> int:
        return self.parameters(stage) * self.dtype.itemsize


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    missing = f"checkpoint '{name}' is neither a local folder nor a hub repository"
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_HUB_FILES))
    except HFValidationError as error:
        raise RedipruneError(f"{missing}: check the path") from error
    except Exception as error:
        raise RedipruneError(
            f"{missing} that can be reached ({_line(error)}); check the path, the id and the network, or download it "
            "elsewhere and give its folder"
        ) from error


def _line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
