"""SmolVLM and Idefics3: a stage that gives what transformers projects; sizes that do not fit are refused."""

import pytest
import torch
from rediprune.graphs.families import UnsupportedModelError, family_of
from rediprune.graphs.stages import stages_of
from transformers import AutoModelForImageTextToText, Idefics3Config, SmolVLMConfig

CONFIGS = {"smolvlm": SmolVLMConfig, "idefics3": Idefics3Config}
SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


def config_of(family="smolvlm", side=56, scale=2, **settings):
    text = SMALL | {"model_type": "llama", "num_key_value_heads": 1, "vocab_size": 64, "pad_token_id": 0}
    vision = SMALL | {"image_size": side, "patch_size": 14} | settings
    return CONFIGS[family](text_config=text, vision_config=vision, scale_factor=scale, image_token_id=60)


@pytest.mark.parametrize("family", CONFIGS)
@torch.inference_mode()
def test_features_and_projection_are_transformers(family):
    model = AutoModelForImageTextToText.from_config(config_of(family)).eval()
    stages = {stage.name: stage for stage in stages_of(model, family_of(model.config))}
    vision, project = stages["vision"], stages["project"]
    pixels = torch.randn(3, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    features = vision.module(pixels)
    assert features.shape == (3, 4, 64) == (3, *vision.outputs[0].shape[1:])
    (expected,) = model.model.get_image_features(pixels[None]).pooler_output
    torch.testing.assert_close(project.module(features).flatten(0, 1), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", CONFIGS)
def test_layout(family):
    config = config_of(family, side=112, scale=4)
    assert family == family_of(config).MODEL_TYPE
    (image,) = family_of(config).modalities(config).values()
    assert (image.rows, image.columns, image.tiled, image.dynamic) == (2, 2, False, False)


def test_refusals():
    with pytest.raises(UnsupportedModelError, match="a grid of 4 × 4 patches cannot be shuffled by 3"):
        family_of(config_of(scale=3))
    config = config_of()
    config.vision_config.model_type = "clip_vision_model"
    with pytest.raises(
        UnsupportedModelError, match="'clip_vision_model' is not supported; supported is: smolvlm_vision"
    ):
        family_of(config)
    config = config_of()
    config.text_config.model_type = "qwen2"
    with pytest.raises(UnsupportedModelError, match="'qwen2' is not supported; supported are: llama"):
        family_of(config)


def test_positions_that_transformers_looks_up_out_of_order_are_refused(monkeypatch):
    monkeypatch.setattr(
        torch, "bucketize", lambda values, boundaries, right: torch.zeros(len(values), dtype=torch.int64)
    )
    with pytest.raises(UnsupportedModelError, match="not looked up in their order"):
        family_of(config_of())
