"""Rules that run the vision tower: attention is transformers' own, a smaller picture gives as many tokens as asked for."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from rediprune.calibration.evaluation.selection_rules import using_rule
from rediprune.calibration.evaluation.tower_rules import class_attention
from rediprune.runtime import Pipeline, RedipruneError
from rediprune.runtime.backends.eager_torch import eager_model

pytestmark = pytest.mark.calibration

QUESTION = "What is red?"


def test_attention_is_that_of_transformers(bundle_of: Callable[[str], Path]) -> None:
    model = eager_model(Pipeline.load(bundle_of("llava"), lazy=True).bundle)
    size = model.config.vision_config.image_size
    pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    tower = model.model.vision_tower
    chosen = tower.config._attn_implementation
    tower.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            everything = tower(pixels, output_attentions=True).attentions
    finally:
        tower.set_attn_implementation(chosen)
    expected = everything[model.config.vision_feature_layer][:, :, 0, 1:].sum(dim=1)
    with torch.no_grad():
        assert torch.allclose(class_attention(model, pixels), expected, atol=1e-5)


def test_visionzip_keeps_the_patches_attended_to_most(bundle_of: Callable[[str], Path], photo: Path) -> None:
    pipeline = Pipeline.load(bundle_of("llava"))
    with using_rule(pipeline, "visionzip") as settings:
        answer = pipeline.generate(QUESTION, [photo], keep=7, max_new_tokens=1, **settings)
    pixels = pipeline.processor.vision_inputs(pipeline.generate(
        QUESTION, [photo], max_new_tokens=1, return_visuals=True
    ).visuals[0].frames, False)["pixel_values"]  # fmt: skip
    with torch.no_grad():
        attention = class_attention(eager_model(pipeline.bundle), torch.from_numpy(pixels))[0]
    assert answer.kept[0][0].tolist() == sorted(attention.topk(7).indices.tolist())


@pytest.mark.parametrize(("keep", "tokens"), [(0.15, 9), (0.5, 30), (0.02, 1)])  # of 64: 10, 32 and 1
def test_a_smaller_picture_has_as_many_tokens(
    bundle_of: Callable[[str], Path], photo: Path, keep: float, tokens: int
) -> None:
    pipeline = Pipeline.load(bundle_of("llava"))
    with using_rule(pipeline, "downsample", keep=keep) as settings:
        answer = pipeline.generate(QUESTION, [photo], max_new_tokens=1, **settings)
    assert answer.kept_tokens == answer.visual_tokens == tokens


def test_a_picture_of_the_towers_own_size_has_the_towers_own_features(
    bundle_of: Callable[[str], Path], photo: Path
) -> None:
    pipeline = Pipeline.load(bundle_of("llava"))
    with using_rule(pipeline, "downsample", keep=1.0):
        ours = pipeline.generate(QUESTION, [photo], keep=1.0, max_new_tokens=1, return_visuals=True).visuals[0]
    theirs = pipeline.generate(QUESTION, [photo], keep=1.0, max_new_tokens=1, return_visuals=True).visuals[0]
    assert np.allclose(np.asarray(ours.features), np.asarray(theirs.features), atol=1e-4)


@pytest.mark.parametrize("rule", ["visionzip", "downsample"])
def test_other_families_are_refused(bundle_of: Callable[[str], Path], rule: str) -> None:
    pipeline = Pipeline.load(bundle_of("qwen3_vl"), lazy=True)
    with (
        pytest.raises(RedipruneError, match=f"rule '{rule}' runs the tower of LLaVA-1.5"),
        using_rule(pipeline, rule, keep=0.5),
    ):
        pass


def test_a_tower_without_a_class_token_is_refused(bundle_of: Callable[[str], Path]) -> None:
    pipeline = Pipeline.load(bundle_of("llava_siglip"), lazy=True)
    with pytest.raises(RedipruneError, match="needs a CLIP tower"), using_rule(pipeline, "visionzip"):
        pass
