"""Eager PyTorch over the inputs of every stage and over whole requests: what a bundle is held against."""

import copy
from typing import Any

import numpy as np
import torch

from ...graphs.stages import Stage
from ...runtime.backends.eager_torch import eager_model, eager_stages
from ...runtime.bundle import Bundle
from ...runtime.media.processor import Processor, load_image
from ...runtime.positions import POSITIONS
from .cases import QUESTION, Arrays, Cases, EndToEndCase, StageCase, StageInput
from .eager_reference import Reference, Request
from .references import reference_for
from .stage_inputs import stage_inputs

KEEPS: tuple[float | int, ...] = (1.0, 0.5, 0.15, 1)  # ratios, and one token of each frame
CLIP_KEEP = 0.25  # of a video with one budget for all frames
NEW_TOKENS = 12
FRAMES = 4

# The precision whose rounding is the noise of a comparison, by the bundle's own.
_NOISY = {"fp32": torch.float64, "fp16": torch.float16}


def make_cases(bundle: Bundle, image: Any, video: Any) -> Cases:
    """Run a bundle's checkpoint in eager PyTorch.

    Args:
        bundle: the bundle; its checkpoint must be at hand.
        image, video: what `load_image` and `load_video` take.

    Raises:
        RedipruneError: the checkpoint is gone or changed, or does not fit in memory.
    """
    reference = reference_for(eager_model(bundle), Processor.load(bundle.path("processor")))
    inputs = stage_inputs(bundle.manifest, reference, image)
    noisy_type = _NOISY[bundle.manifest.float_precision]
    stages = {
        stage.name: _stage_cases(stage, inputs[stage.name], noisy_type)
        for stage in eager_stages(bundle)
        if stage.name in bundle.manifest.stages
    }
    return Cases(stages, _end_to_end_cases(bundle, reference, image, video))


def _stage_cases(stage: Stage, inputs: list[StageInput], noisy_type: torch.dtype) -> list[StageCase]:
    expected = _run_stage(stage.module, stage, inputs, torch.float32)
    # `select` computes in float32 whatever it is given.
    noisy = _run_stage(copy.deepcopy(stage.module).to(noisy_type), stage, inputs, noisy_type)
    return [StageCase(*parts) for parts in zip(inputs, expected, noisy, strict=True)]


def _run_stage(module: torch.nn.Module, stage: Stage, inputs: list[StageInput], dtype: torch.dtype) -> list[Arrays]:
    """Outputs by name for every input; `module` is the stage's, with weights of `dtype`."""

    def tensor(array: np.ndarray) -> torch.Tensor:
        value = torch.from_numpy(np.ascontiguousarray(array))
        return value.to(dtype) if value.is_floating_point() else value

    outputs = []
    with torch.inference_mode():
        for one in inputs:
            if stage.name == "language":
                outputs.append(_run_language(module, {name: tensor(array) for name, array in one.feed.items()}))
                continue
            values = module(*(tensor(one.feed[port.name]) for port in stage.inputs))
            values = values if isinstance(values, tuple) else (values,)
            outputs.append({port.name: value.numpy() for port, value in zip(stage.outputs, values, strict=True)})
    return outputs


def _run_language(module: Any, feed: dict[str, torch.Tensor]) -> Arrays:
    """Logits [N + 1, V] after a prompt [1, S, D] and each of the steps [1, N, D], at positions [A, S + N].

    The whole input at once, with no cache and with transformers' own attention and rotary embedding: nothing of the traced
    decoder is used.
    """
    prompt, positions = feed["prompt"], feed["positions"]
    whole = torch.cat([prompt, feed["steps"]], dim=1)
    ids = positions if positions.shape[0] == 1 else positions[:, None]
    extra: dict[str, Any] = {}
    if "deepstack" in feed:  # of the prompt alone; text has zeros
        visual = torch.arange(whole.shape[1])[None] < prompt.shape[1]
        extra = {"visual_pos_masks": visual, "deepstack_visual_embeds": list(feed["deepstack"])}
    mask = torch.ones(whole.shape[:2], dtype=torch.int64)  # without it, gaps between positions are taken for packing
    hidden = module.decoder(
        inputs_embeds=whole, position_ids=ids, attention_mask=mask, use_cache=False, **extra
    ).last_hidden_state
    return {"logits": module.head(hidden[0, prompt.shape[1] - 1 :]).numpy()}


def _end_to_end_cases(bundle: Bundle, reference: Reference, image: Any, video: Any) -> list[EndToEndCase]:
    media: list[tuple[str, list[Any], list[Any]]] = [("text only", [], []), ("image", [image], [])]
    if "video" in bundle.manifest.modalities:
        media += [("video", [], [video]), ("image and video", [image], [video])]
    elif bundle.manifest.selects_clips:
        media.append(("two images", [image, image], []))
    cases = []
    for kind, images, videos in media:
        for keep, scope in _budgets(bundle, len(images), len(videos)):
            for positions in _positions(bundle, keep):
                options = {
                    "keep": keep,
                    "scope": scope,
                    "frames": FRAMES,
                    "max_new_tokens": NEW_TOKENS,
                    "prune_tiles": bool(images) and _prunes_tiles(bundle, reference, image),
                    "positions": positions,
                }
                answer = reference.answer(Request(QUESTION, images, videos, **options))
                label = f"{kind}, {'K' if isinstance(keep, int) else 'keep'} = {keep}"
                label += ", one budget" if scope == "clip" else ""
                label += ", original positions" if positions == "original" != bundle.manifest.defaults.positions else ""
                cases.append(EndToEndCase(label, options, images, videos, answer.token_ids, answer.logits, answer.kept))
    return cases


def _budgets(bundle: Bundle, images: int, videos: int) -> list[tuple[float | int, str]]:
    """How many tokens are kept, and of what: each frame, or the whole clip."""
    if not images + videos:
        return [(1.0, "frame")]
    over_clip: list[tuple[float | int, str]] = [(CLIP_KEEP, "clip")]
    if images > 1:
        return over_clip
    clips = videos > 0 and bundle.manifest.selects_clips and not bundle.manifest.modalities["video"].mixed_output
    return [(keep, "frame") for keep in KEEPS] + over_clip * clips


def _prunes_tiles(bundle: Bundle, reference: Reference, image: Any) -> bool:
    """Whether the picture is seen in tiles whose tokens can be dropped: not where they are scaled down behind the projector."""
    spec = bundle.manifest.modalities["image"]
    layout = reference.processor.layout([load_image(image)], False, spec.patches)
    return spec.tiled and (layout is None or layout.mix is None)


def _positions(bundle: Bundle, keep: float | int) -> tuple[str, ...]:
    """The kinds of positions to ask with: where nothing is dropped they are all the same."""
    if bundle.manifest.position_axes > 1:
        return ("original",)
    whole = isinstance(keep, float) and keep == 1
    return POSITIONS if bundle.manifest.takes_positions and not whole else ("compact",)
