"""Qwen2-VL and Qwen2.5-VL: what is refused, and stages that give what transformers' tower, merger and decoder give."""

import numpy as np
import pytest
import torch
from rediprune.graphs.families import UnsupportedModelError, family_of, qwen2_5_vl, qwen2_vl
from rediprune.graphs.language import cache_names, cache_shape
from rediprune.graphs.stages import stages_of
from rediprune.runtime.media.qwen_grids import block_order, windows
from transformers import AutoModelForImageTextToText, Qwen2_5_VLConfig, Qwen2VLConfig
from transformers.vision_utils import get_vision_window_index

FAMILIES = {"qwen2_vl": qwen2_vl, "qwen2_5_vl": qwen2_5_vl}
WIDTH, GROUP = 64, 2  # of the tower; groups along a window's side


def config_of(family, section=(2, 3, 3), **vision):
    text = {
        "vocab_size": 160,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "mrope_section": list(section), "rope_theta": 1e4},
    }
    tower = {"depth": 4, "num_heads": 4, "patch_size": 4}
    if family == "qwen2_vl":
        kind, tower = Qwen2VLConfig, tower | {"embed_dim": WIDTH, "hidden_size": 64, "mlp_ratio": 2}
    else:
        own = {"window_size": GROUP * 8, "fullatt_block_indexes": [1, 3], "intermediate_size": 96}
        kind, tower = Qwen2_5_VLConfig, tower | own | {"hidden_size": WIDTH, "out_hidden_size": 64}
    return kind(text_config=text, vision_config=tower | vision, image_token_id=150, video_token_id=151)


@pytest.fixture(scope="module", params=list(FAMILIES))
def model(request):
    return made(config_of(request.param))


def made(config):
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.copy_(
            torch.randn_like(parameter) * 0.15 + (parameter.ndim == 1 and ("norm" in name or "ln_q" in name))
        )
    return model


@pytest.fixture(scope="module")
def stages(model):
    return stages_by_name(model)


def stages_by_name(model):
    return {stage.name: stage.module for stage in stages_of(model, family_of(model.config))}


def grid_inputs(model, rows, columns):
    positions = np.stack(block_order(rows, columns, 2), axis=-1).reshape(-1, 4, 2)
    found = [positions]
    if model.config.model_type == "qwen2_5_vl":
        patches, lengths, slots = windows(rows, columns, 2, GROUP)
        found += [patches, lengths, slots.reshape(-1, 4)]
    return [torch.from_numpy(part) for part in found]


def theirs_of(model, pixels, grid):
    """What transformers' merger takes, [groups, m² · C] in the order of the picture, and what it gives."""
    tower, seen = model.model.visual, []
    handle = tower.merger.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    out = tower(pixels.reshape(-1, pixels.shape[-1]), torch.tensor([grid]))
    handle.remove()
    rows = seen[0].reshape(-1, 4, WIDTH)
    if model.config.model_type == "qwen2_5_vl":
        order, _ = get_vision_window_index(torch.tensor([grid]), 2, tower.window_size, tower.patch_size)
        rows = rows[torch.argsort(order)]
    return rows, out.pooler_output


@pytest.mark.parametrize(("frames", "rows", "columns"), [(1, 2, 2), (1, 8, 8), (1, 6, 14), (3, 10, 4)])
@torch.inference_mode()
def test_vision_and_project_are_transformers(model, stages, frames, rows, columns):
    compare_vision(model, stages, frames, rows, columns)


def compare_vision(model, stages, frames, rows, columns):
    groups = rows * columns // 4
    pixels = torch.randn(frames, groups, 4, 96, generator=torch.Generator().manual_seed(1))
    theirs, merged = theirs_of(model, pixels, [frames, rows, columns])
    features, source = stages["vision"](pixels, *grid_inputs(model, rows, columns))
    torch.testing.assert_close(features, theirs.mean(1).reshape(frames, groups, WIDTH), rtol=1e-4, atol=1e-5)
    everything = torch.arange(groups).expand(frames, -1)
    for kept in (everything, everything[:, ::3]):
        embeds = stages["project"](source, kept)
        torch.testing.assert_close(embeds, merged.reshape(frames, groups, -1)[:, kept[0]], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("whole", [[], [0], [0, 1, 2, 3], [2]])
@torch.inference_mode()
def test_wherever_layers_attend_to_all(whole):
    model = made(config_of("qwen2_5_vl", fullatt_block_indexes=whole))
    compare_vision(model, stages_by_name(model), 2, 6, 10)


@torch.inference_mode()
def test_the_decoder_with_positions_is_transformers(model, stages):
    generator = torch.Generator().manual_seed(2)
    embeds = torch.randn(1, 9, 64, generator=generator)
    positions = torch.randint(0, 40, (3, 1, 9), generator=generator)
    mask = torch.ones(1, 9, dtype=torch.int64)
    hidden = model.model.language_model(inputs_embeds=embeds, position_ids=positions, attention_mask=mask)
    expected = model.lm_head(hidden.last_hidden_state[:, -1:])
    text = model.config.text_config
    cache = [torch.randn(cache_shape(text, 1, 12)) for _ in cache_names(text.num_hidden_layers)]
    logits, *_ = stages["language"](embeds, positions, torch.tensor([0]), *cache)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_layout(name):
    config = config_of(name)
    family = family_of(config)
    assert family is FAMILIES[name]
    modalities = family.modalities(config)
    assert set(modalities) == {"image", "video"}
    for modality in modalities.values():
        assert (modality.output, modality.dynamic, modality.rows_output) == ("features", True, "rows")


@pytest.mark.parametrize(
    ("family", "settings", "says"),
    [
        ("qwen2_vl", {"section": (2, 3, 2)}, "rotary sections .* of heads of 16 channels"),
        ("qwen2_5_vl", {"section": (4, 4)}, "rotary sections"),
        ("qwen2_5_vl", {"window_size": 20}, "windows of 20 pixels are not supported: they must be a multiple of 8"),
        ("qwen2_5_vl", {"window_size": 4}, "windows of 4 pixels"),
    ],
)
def test_refusals(family, settings, says):
    with pytest.raises(UnsupportedModelError, match=says):
        family_of(config_of(family, **settings))


@pytest.mark.parametrize("family", FAMILIES)
def test_another_tower_is_refused(family):
    config = config_of(family)
    config.vision_config.model_type = "clip_vision_model"
    with pytest.raises(UnsupportedModelError, match=rf"'clip_vision_model' is not supported; .* {family}_vision"):
        family_of(config)
    config = config_of(family)
    config.text_config.model_type = "llama"
    with pytest.raises(UnsupportedModelError, match=f"'llama' is not supported; supported are: {family}_text"):
        family_of(config)
