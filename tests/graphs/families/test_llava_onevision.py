"""LLaVA-OneVision: cells of a video are scaled down features; towers whose tokens form no square grid are refused."""

import pytest
import torch
from rediprune.graphs.families import UnsupportedModelError, family_of, llava_onevision
from rediprune.graphs.families.llava_onevision import CellPool
from rediprune.graphs.stages import stages_of
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    LlavaOnevisionConfig,
    Qwen2Config,
    SiglipVisionConfig,
)

SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


def config_of(vision=None, **settings):
    return LlavaOnevisionConfig(
        vision_config=vision or SiglipVisionConfig(image_size=70, patch_size=14, vision_use_head=False, **SMALL),
        text_config=Qwen2Config(num_key_value_heads=1, vocab_size=64, **SMALL),
        image_grid_pinpoints=[[70, 140], [140, 70]],
        **settings,
    )


@torch.inference_mode()
def test_features_of_patches_and_cells_are_transformers():
    model = AutoModelForImageTextToText.from_config(config_of()).eval()
    vision = stages_of(model, family_of(model.config))[0]
    assert [(port.name, port.shape[1]) for port in vision.outputs] == [("features", 25), ("pooled_features", 9)]
    pixels = torch.randn(2, 3, 70, 70, generator=torch.Generator().manual_seed(0))
    features, cells = vision.module(pixels)
    hidden = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(features, hidden, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(cells, model.model.apply_pooling(hidden), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("side", "cells"), [(27, 14), (5, 3), (4, 2), (1, 1)])
def test_cells_are_half_as_many_along_a_side(side, cells):
    assert CellPool(side)(torch.zeros(2, side**2, 3)).shape == (2, cells**2, 3)


def test_layout():
    config = config_of()
    assert family_of(config) is llava_onevision
    image, video = (llava_onevision.modalities(config)[kind] for kind in ("image", "video"))
    assert (image.rows, image.tiled, image.mixed_output) == (5, True, None)
    assert (video.output, video.rows, video.columns, video.mixed_output) == ("pooled_features", 3, 3, "features")


def test_a_class_token_between_tiles_is_refused():
    clip = CLIPVisionConfig(image_size=70, patch_size=14, **SMALL)
    with pytest.raises(UnsupportedModelError, match="tiles need a square grid"):
        family_of(config_of(clip, vision_feature_select_strategy="full"))
