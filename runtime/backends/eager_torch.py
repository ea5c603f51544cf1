"""Eager PyTorch: the bundle's checkpoint as transformers loads it. The one module of the runtime that needs torch.

Any stage can run here (`Pipeline.load(…, eager={"vision"})`), to find the one that drifts.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np

from ..bundle import Bundle, file_sha256
from ..errors import RedipruneError
from ..memory import check_memory
from .arrays import Array
from .language_inputs import LanguageInputs

# One thread at a time: transformers' modules note what they pass on in themselves while they run.
_MODEL = RLock()


class EagerStage:
    """A stage's module in float32, its outputs in the bundle's dtypes."""

    batch = 1

    def __init__(self, bundle: Bundle, stage: str, threads: int):
        self.spec = bundle.manifest.stages[stage]
        self.stage = next(s for s in eager_stages(bundle, threads) if s.name == stage)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, np.ndarray]:
        import torch

        values = [_tensor(inputs[port.name]) for port in self.spec.inputs]
        with _MODEL, torch.inference_mode():
            outputs = self.stage.module(*values)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return {p.name: o.numpy().astype(p.dtype) for p, o in zip(self.spec.outputs, outputs, strict=True)}


class EagerLanguage:
    """The decoder in float32 with transformers' own cache."""

    def __init__(self, bundle: Bundle, threads: int):
        self.model = eager_model(bundle, threads)
        self.inputs = LanguageInputs(bundle.manifest.stages["language"])

    def start(self, length: int) -> EagerDecoding:
        return EagerDecoding(self.model, self.inputs)


class EagerDecoding:
    def __init__(self, model: Any, inputs: LanguageInputs):
        from transformers import DynamicCache

        from ...graphs.language import decoder_of

        self.model, self.inputs, self.used = model, inputs, 0
        self.decoder = decoder_of(model)
        self.cache = DynamicCache(config=model.config.text_config)

    def step(
        self, embeds: Array, positions: np.ndarray | None = None, deepstack: np.ndarray | None = None
    ) -> np.ndarray:
        import torch

        tokens = embeds.shape[1]
        given: dict[str, Any] = {
            name: torch.from_numpy(array)
            for name, array in self.inputs.feed([self.used], tokens, positions, deepstack).items()
        }
        added = given.pop("deepstack", None)
        if added is not None:
            given["visual_pos_masks"] = torch.ones(1, tokens, dtype=torch.bool)
            given["deepstack_visual_embeds"] = list(added[:, 0].float())
        self.used += tokens
        with _MODEL, torch.inference_mode():
            hidden = self.decoder(
                inputs_embeds=_tensor(embeds),
                # Without a mask positions with gaps are taken for several sequences packed into one.
                attention_mask=torch.ones(1, self.used, dtype=torch.int64),
                past_key_values=self.cache,
                use_cache=True,
                **given,
            ).last_hidden_state
            return self.model.lm_head(hidden[:, -1])[0].numpy()


def open_stage(bundle: Bundle, stage: str, threads: int) -> EagerStage:
    return EagerStage(bundle, stage, threads)


def open_language(bundle: Bundle, threads: int) -> EagerLanguage:
    return EagerLanguage(bundle, threads)


def eager_model(bundle: Bundle, threads: int = 0) -> Any:
    """The bundle's checkpoint in eager PyTorch, float32.

    Raises:
        RedipruneError: torch is not installed, the checkpoint is gone or no longer the one the bundle was made from, or
            there is too little memory for it.
    """
    try:
        import torch
    except ImportError as error:
        raise RedipruneError("backend 'eager' needs torch; install it with: pip install 'rediprune[export]'") from error
    folder = checkpoint_of(bundle)
    if threads:
        torch.set_num_threads(threads)
    stages = bundle.manifest.stages.values()
    with _MODEL:  # which is loaded once
        return _load(folder, sum(s.weight_bytes * (2 if s.precision == "fp16" else 1) for s in stages))


def checkpoint_of(bundle: Bundle) -> Path:
    """The folder of the checkpoint that a bundle was made from.

    Raises:
        RedipruneError: it is gone, or no longer the one.
    """
    source = bundle.manifest.source
    folder = Path(source.name)
    if not folder.is_dir():
        folder = _hub_folder(source.name, source.revision)
    config = folder / "config.json"
    if not config.is_file() or file_sha256(config) != source.config_sha256:
        raise RedipruneError(
            f"checkpoint '{source.name}' is gone or is not the one this bundle was made from; make the bundle again with: "
            f"{bundle.manifest.rebuild_command(bundle.folder)}"
        )
    return folder.resolve()


def eager_stages(bundle: Bundle, threads: int = 0) -> list[Any]:
    from ...graphs.families import family_of
    from ...graphs.stages import stages_of

    model = eager_model(bundle, threads)
    return stages_of(model, family_of(model.config))


@lru_cache(maxsize=1)
def _load(folder: Path, weights: int) -> Any:
    check_memory(f"'{folder}' in eager PyTorch, fp32,", weights, "leave eager PyTorch out")
    import torch
    from transformers import AutoModelForImageTextToText
    from transformers.utils import logging

    logging.disable_progress_bar()
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)


def _hub_folder(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except Exception as error:
        raise RedipruneError(
            f"checkpoint '{name}' is neither a local folder nor in the hub cache; download it"
        ) from error


def _tensor(array: Array) -> Any:
    import torch

    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.float() if tensor.is_floating_point() else tensor
