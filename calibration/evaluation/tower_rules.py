"""Rules that need more of the vision tower than its features: they run it in eager PyTorch, from the bundle's checkpoint."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from ...runtime.backends.arrays import Array
from ...runtime.backends.eager_torch import eager_model
from ...runtime.backends.session import StageSession
from ...runtime.bundle import Bundle
from ...runtime.errors import RedipruneError

_FAMILY = "llava"  # one CLIP or SigLIP tower, images of one size, nothing pooled
_CLIP = "clip_vision_model"


class ClassAttention:
    """The vision stage, which also notes how much the class token attends to each patch in the layer that features are of.

    Source: VisionZip, arXiv 2412.04467, section 3.2: its dominant tokens are the patches that the class token attends to
    most, summed over the heads. Its contextual tokens, merged from what is left, are no part of this.
    """

    def __init__(self, bundle: Bundle, inner: StageSession):
        model = _llava(bundle, "visionzip")
        if model.config.vision_config.model_type != _CLIP:
            raise RedipruneError(f"rule 'visionzip' needs a CLIP tower, which has a class token; {_LEAVE_OUT}")
        self.model, self.inner, self.batch = model, inner, 1
        self.seen: dict[bytes, np.ndarray] = {}  # hash of a frame's features → attention [P]

    def run(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        import torch

        outputs = self.inner.run(inputs)
        with torch.inference_mode():
            attention = class_attention(self.model, torch.from_numpy(np.array(inputs["pixel_values"], np.float32)))
        for frame, weights in zip(np.asarray(outputs["features"]), attention.numpy(), strict=True):
            self.seen[_digest(frame)] = weights
        return outputs

    def choose(self, features: np.ndarray, count: int) -> np.ndarray:
        """The `count` patches of each frame of features [F,P,C] that are attended to most: [F,K] ascending."""
        rows = [np.argsort(-self.seen[_digest(frame)], kind="stable")[:count] for frame in features]
        return np.sort(np.stack(rows), axis=1)


def class_attention(model: Any, pixels: Any) -> Any:
    """Attention of the class token to each patch, summed over the heads.

    Args:
        model: a LLaVA model with a CLIP tower.
        pixels: [F, 3, H, W].

    Returns:
        [F, P], in the layer whose output are the features.
    """
    tower = model.model.vision_tower
    hidden = tower(pixels, output_hidden_states=True).hidden_states
    at = range(len(hidden))[model.config.vision_feature_layer]
    layer = tower.encoder.layers[at - 1]
    attention, normed = layer.self_attn, layer.layer_norm1(hidden[at - 1])
    heads, width = attention.num_heads, attention.head_dim
    query = attention.q_proj(normed[:, :1]).unflatten(-1, (heads, width)).transpose(1, 2)  # [F, heads, 1, width]
    keys = attention.k_proj(normed).unflatten(-1, (heads, width)).transpose(1, 2)  # [F, heads, 1 + P, width]
    weights = (query @ keys.transpose(2, 3) * width**-0.5).softmax(dim=-1)
    return weights[:, :, 0, 1:].sum(dim=1)


class DownsampledVision:
    """The vision stage on a picture made so small that it has K patches: the baseline that needs no pruning at all.

    The grid has the most columns for the rows ⌊√K⌋, K tokens at most; position embeddings are interpolated, as transformers
    does. Source: the comparison of VTC-Bench, arXiv 2510.07143, in which it beats many ways of pruning.
    """

    def __init__(self, bundle: Bundle, count: int):
        self.model, self.batch = _llava(bundle, "downsample"), 1
        rows = int(count**0.5)
        patch = self.model.config.vision_config.patch_size
        self.size = rows * patch, count // rows * patch

    def run(self, inputs: Mapping[str, Array]) -> dict[str, np.ndarray]:
        import torch
        from torch.nn.functional import interpolate

        pixels = torch.from_numpy(np.array(inputs["pixel_values"], np.float32))
        small = interpolate(pixels, self.size, mode="bicubic", antialias=True)
        config = self.model.config
        with torch.inference_mode():
            out = self.model.model.vision_tower(small, output_hidden_states=True, interpolate_pos_encoding=True)
        features = out.hidden_states[config.vision_feature_layer]
        first = int(config.vision_feature_select_strategy == "default")
        return {"features": features[:, first:].numpy()}


_LEAVE_OUT = "leave it out of --rules"


def _llava(bundle: Bundle, rule: str) -> Any:
    if bundle.manifest.family != _FAMILY:
        raise RedipruneError(
            f"rule '{rule}' runs the tower of LLaVA-1.5 in eager PyTorch, not that of {bundle.manifest.family_name}; {_LEAVE_OUT}"
        )
    return eager_model(bundle)


def _digest(frame: np.ndarray) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(frame).tobytes()).digest()
