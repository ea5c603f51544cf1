"""Qwen3-VL: what is refused, and stages that give what transformers' tower, mergers and decoder give."""

import numpy as np
import pytest
import torch
from rediprune.graphs.families import UnsupportedModelError, family_of, qwen3_vl
from rediprune.graphs.language import cache_names, cache_shape
from rediprune.graphs.multi_axis_rotary import MultiAxisRotary
from rediprune.graphs.stages import stages_of
from rediprune.runtime.media.qwen_grids import block_order, interpolation
from transformers import AutoModelForImageTextToText, Qwen3VLConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRotaryEmbedding

TAPS = [0, 2]


def config_of(section=(8, 4, 4), taps=TAPS, head=32, **vision):
    text = {
        "vocab_size": 160,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": head,
        "rope_parameters": {"rope_type": "default", "mrope_section": list(section), "rope_theta": 1e4},
    }
    tower = {
        "depth": 4,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_heads": 4,
        "patch_size": 4,
        "out_hidden_size": 64,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": taps,
    }
    return Qwen3VLConfig(text_config=text, vision_config=tower | vision, image_token_id=150, video_token_id=151)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    made = AutoModelForImageTextToText.from_config(config_of()).eval().requires_grad_(False)
    for name, parameter in made.named_parameters():
        parameter.copy_(torch.randn_like(parameter) * 0.15 + (parameter.ndim == 1 and "norm" in name))
    return made


@pytest.fixture(scope="module")
def stages(model):
    return {stage.name: stage.module for stage in stages_of(model, family_of(model.config))}


def grid_inputs(rows, columns):
    indices, weights = interpolation(rows, columns, 2, 8)
    parts = [np.stack(block_order(rows, columns, 2), axis=-1), indices, weights]
    return [torch.from_numpy(part.reshape(rows * columns // 4, 4, -1)) for part in parts]


@pytest.mark.parametrize(("frames", "rows", "columns"), [(1, 2, 2), (1, 8, 8), (1, 6, 14), (3, 10, 4)])
@torch.inference_mode()
def test_vision_and_project_are_transformers(model, stages, frames, rows, columns):
    pixels = torch.randn(frames, rows * columns // 4, 4, 96, generator=torch.Generator().manual_seed(1))
    tower = model.model.visual
    seen = []
    handle = tower.merger.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    expected = tower(pixels.reshape(-1, 96), torch.tensor([[frames, rows, columns]]))
    handle.remove()
    features, source = stages["vision"](pixels, *grid_inputs(rows, columns))
    groups = rows * columns // 4
    torch.testing.assert_close(features, seen[0].reshape(frames, groups, 4, 64).mean(2), rtol=1e-4, atol=1e-5)
    everything = torch.arange(groups).expand(frames, -1)
    for kept in (everything, everything[:, ::3]):
        embeds, deepstack = stages["project"](source, kept)
        whole = expected.pooler_output.reshape(frames, groups, -1)
        torch.testing.assert_close(embeds, whole[:, kept[0]], rtol=1e-4, atol=1e-5)
        assert deepstack.shape[1] == len(TAPS)
        for tap, theirs in enumerate(expected.deepstack_features):
            whole = theirs.reshape(frames, groups, -1)
            torch.testing.assert_close(deepstack[:, tap], whole[:, kept[0]], rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_the_decoder_with_positions_and_deepstack_is_transformers(model, stages):
    generator = torch.Generator().manual_seed(2)
    embeds = torch.randn(1, 9, 64, generator=generator)
    positions = torch.randint(0, 40, (3, 1, 9), generator=generator)
    deepstack = torch.randn(2, 1, 9, 64, generator=generator)
    visual = torch.tensor([[False, True, True, False, True, False, True, False, False]])
    deepstack[:, ~visual] = 0
    decoder, head = model.model.language_model, model.lm_head
    expected = head(
        decoder(
            inputs_embeds=embeds,
            position_ids=positions,
            visual_pos_masks=visual,
            deepstack_visual_embeds=list(deepstack[:, visual]),
        ).last_hidden_state[:, -1:]
    )
    text = model.config.text_config
    cache = [torch.randn(cache_shape(text, 1, 12)) for _ in cache_names(text.num_hidden_layers)]
    logits, *_ = stages["language"](embeds, positions, torch.tensor([0]), deepstack, *cache)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    assert not torch.isclose(
        logits, stages["language"](embeds, positions, torch.tensor([0]), 0 * deepstack, *cache)[0]
    ).all()
    assert not decoder.layers[0]._forward_hooks and isinstance(decoder.rotary_emb, Qwen3VLTextRotaryEmbedding)


@pytest.mark.parametrize("section", [(8, 4, 4), (6, 5, 5), (16, 0, 0)])
def test_rotary_over_three_axes_is_transformers(section):
    text = config_of(section).text_config
    theirs = Qwen3VLTextRotaryEmbedding(text)
    positions = torch.randint(0, 999, (3, 2, 7), generator=torch.Generator().manual_seed(3))
    x = torch.zeros(1)
    for ours, expected in zip(MultiAxisRotary(theirs, True)(x, positions), theirs(x, positions), strict=True):
        assert torch.equal(ours, expected)


def test_layout():
    family = family_of(config_of())
    assert family is qwen3_vl
    for modality in family.modalities(config_of()).values():
        assert (modality.stage, modality.output, modality.dynamic, modality.rows_output) == (
            "vision",
            "features",
            True,
            "rows",
        )


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"section": (8, 5, 3)}, "rotary sections"),
        ({"section": (4, 6, 6)}, "rotary sections"),
        ({"taps": []}, "without tapped layers"),
    ],
)
def test_refusals(settings, says):
    with pytest.raises(UnsupportedModelError, match=says):
        family_of(config_of(**settings))


def test_other_decoders_and_relatives_are_refused():
    config = config_of()
    config.text_config.model_type = "qwen3_vl_moe_text"
    with pytest.raises(
        UnsupportedModelError, match="'qwen3_vl_moe_text' is not supported; supported are: qwen3_vl_text"
    ):
        family_of(config)
    config.model_type = "qwen3_vl_moe"
    with pytest.raises(UnsupportedModelError, match="model_type 'qwen3_vl_moe' is not supported; supported are: llava"):
        family_of(config)
