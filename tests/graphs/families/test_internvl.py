"""InternVL: what is refused, the layout of its tokens, and features equal to those that transformers projects."""

import pytest
import torch
from rediprune.graphs.families import UnsupportedModelError, family_of, internvl
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    InternVLConfig,
    InternVLVisionConfig,
    Qwen2Config,
    Qwen3Config,
)

SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}


def config_of(vision=None, text=None, **settings):
    vision = {"image_size": [56, 56], "patch_size": [14, 14], **SMALL} | (vision or {})
    text = text or Qwen2Config(num_key_value_heads=1, vocab_size=64, **SMALL)
    return InternVLConfig(vision_config=InternVLVisionConfig(**vision), text_config=text, image_token_id=60, **settings)


def made(config):
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():  # ones and zeros when made: nothing would tell them apart
        if parameter.ndim == 1 or "position" in name or "cls_token" in name:
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


@pytest.mark.parametrize(
    ("vision", "settings"),
    [
        ({}, {}),
        ({"use_qk_norm": True, "norm_type": "rms_norm"}, {}),
        ({"use_mean_pooling": False}, {}),  # a norm behind the last layer
        ({"use_mean_pooling": False}, {"vision_feature_layer": -2}),
        ({"use_absolute_position_embeddings": False, "attention_bias": True}, {"vision_feature_layer": 2}),
        ({"image_size": 84}, {}),
        ({"image_size": 112}, {"downsample_ratio": 0.25}),
    ],
    ids=str,
)
def test_features_are_what_transformers_projects(vision, settings):
    model = made(config_of(vision, **settings))
    side = model.config.vision_config.image_size[0]
    pixels = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(1))
    seen = []
    projector = model.get_submodule("model.multi_modal_projector")
    handle = projector.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.inference_mode():
        model.get_image_features(pixels)
        stage = family_of(model.config).vision_stages(model)["vision"]
        features = stage(pixels)
    handle.remove()
    image = family_of(model.config).modalities(model.config)["image"]
    assert features.shape == (3, image.rows * image.columns, stage.channels)
    torch.testing.assert_close(features, seen[0], rtol=1e-5, atol=1e-6)


def test_layout():
    family = family_of(config_of(text=Qwen3Config(num_key_value_heads=1, vocab_size=64, head_dim=8, **SMALL)))
    assert family is internvl
    found = family.modalities(config_of())
    assert {kind: (m.stage, m.output, m.rows, m.columns, m.leading, m.tiled, m.token) for kind, m in found.items()} == {
        "image": ("vision", "features", 2, 2, 0, False, None),
        "video": ("vision", "features", 2, 2, 0, False, "image"),
    }
    real = family.modalities(config_of({"image_size": [448, 448]}))["image"]
    assert (real.rows, real.columns) == (16, 16)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (lambda: config_of({"image_size": [56, 84]}), "only square ones"),
        (lambda: config_of({"image_size": [42, 42]}), "is not a multiple"),
        (lambda: config_of(vision_feature_select_strategy="full"), "needs a square grid"),
        (lambda: config_of(vision_feature_layer=[-1, -2]), "needs a square grid of one layer"),
        (
            lambda: InternVLConfig(
                vision_config=CLIPVisionConfig(image_size=56, patch_size=14, **SMALL),
                text_config=Qwen2Config(num_key_value_heads=1, vocab_size=64, **SMALL),
            ),
            "vision tower 'clip_vision_model' is not supported; supported of InternVL is: internvl_vision",
        ),
    ],
    ids=["oblong", "odd grid", "class token", "layers", "tower"],
)
def test_refusals(config, says):
    with pytest.raises(UnsupportedModelError, match=says):
        family_of(config())
