"""Families: what is refused, how visual tokens are laid out, and features equal to those transformers projects."""

from types import SimpleNamespace

import pytest
import torch
from rediprune.graphs.families import FAMILIES, UnsupportedModelError, family_of
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    GemmaConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaNextConfig,
    LlavaNextVideoConfig,
    MistralConfig,
    PhiConfig,
    PixtralVisionConfig,
    Qwen2Config,
    Qwen3Config,
    SiglipVisionConfig,
    VideoLlavaConfig,
)

PATCH, SIDE = 14, 4  # a grid of 4 × 4 patches
SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
TOWERS = {"clip": CLIPVisionConfig, "siglip": SiglipVisionConfig}
CONFIGS = {
    "llava": LlavaConfig,
    "llava_next": LlavaNextConfig,
    "llava_next_video": LlavaNextVideoConfig,
    "video_llava": VideoLlavaConfig,
}


def tower(kind, side=SIDE):
    return TOWERS[kind](image_size=side * PATCH, patch_size=PATCH, **SMALL)


def decoder(kind=LlamaConfig, **settings):
    return kind(num_key_value_heads=1, vocab_size=64, **SMALL, **settings)


def config_of(family, vision="clip", strategy=None, layer=-2, text=None, side=SIDE, **settings):
    if family.startswith("llava_next"):
        tile = side * PATCH
        settings = {"image_grid_pinpoints": [[tile, 2 * tile], [2 * tile, tile]]} | settings
    if family == "llava_next_video":
        settings = {"spatial_pool_stride": 2} | settings
    return CONFIGS[family](
        vision_config=tower(vision, side) if isinstance(vision, str) else vision,
        text_config=text or decoder(),
        vision_feature_layer=layer,
        vision_feature_select_strategy=strategy or ("default" if vision == "clip" else "full"),
        image_token_index=60,
        **({"video_token_index": 61} if "video" in family else {}),
        **settings,
    )


# ------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("model_type", ["qwen2_5_omni", "vipllava", "bert", "", None])
def test_refuses_other_model_types_with_the_list(model_type):
    with pytest.raises(UnsupportedModelError, match=f"model_type '{model_type}' is not supported") as caught:
        family_of(SimpleNamespace(model_type=model_type))
    for name, family in FAMILIES.items():
        assert f"{name} ({family.NAME})" in str(caught.value)


def test_refuses_a_pool_after_the_projector():
    original = SimpleNamespace(model_type="llava_llama", mm_pooling_position="after", mm_spatial_pool_stride=2)
    with pytest.raises(UnsupportedModelError, match="pools visual tokens after the projector"):
        family_of(original)
    supported = config_of("llava")
    supported.mm_pooling_position, supported.mm_spatial_pool_stride = "after", 2
    with pytest.raises(UnsupportedModelError, match="pools visual tokens after the projector"):
        family_of(supported)
    supported.mm_spatial_pool_stride = 1  # no pool at all
    assert family_of(supported).MODEL_TYPE == "llava"
    supported.mm_pooling_position, supported.mm_spatial_pool_stride = "before", 2
    assert family_of(supported).MODEL_TYPE == "llava"


@pytest.mark.parametrize("family", CONFIGS)
def test_refuses_other_towers(family):
    vision = PixtralVisionConfig(image_size=56, patch_size=14, **SMALL)
    with pytest.raises(UnsupportedModelError, match=r"'pixtral' is not supported.* clip_vision_model, siglip_vision"):
        family_of(config_of(family, vision=vision))


@pytest.mark.parametrize("kind", [PhiConfig, GemmaConfig])
@pytest.mark.parametrize("family", CONFIGS)
def test_refuses_other_decoders(family, kind):
    with pytest.raises(
        UnsupportedModelError, match=f"'{kind.model_type}' is not supported.* llama, mistral, qwen2, qwen3"
    ):
        family_of(config_of(family, text=decoder(kind)))


def test_refuses_a_sliding_window():
    windowed = decoder(Qwen2Config, use_sliding_window=True, sliding_window=8, max_window_layers=1)
    with pytest.raises(UnsupportedModelError, match="sliding-window"):
        family_of(config_of("llava", text=windowed))
    with pytest.raises(UnsupportedModelError, match="sliding-window"):
        family_of(config_of("llava", text=decoder(MistralConfig, sliding_window=8)))
    # No window, or one that no position is outside of: Mistral from v0.2 on.
    assert family_of(config_of("llava", text=decoder(MistralConfig, sliding_window=None)))
    assert family_of(config_of("llava", text=decoder(MistralConfig, sliding_window=64, max_position_embeddings=64)))
    # Qwen2 checkpoints carry a window that is switched off.
    assert family_of(config_of("llava", text=decoder(Qwen2Config, use_sliding_window=False, sliding_window=8)))


def test_a_window_that_no_layer_has():
    """vllm#15705: the flag is on, but windows begin behind the last layer."""
    layers = decoder(Qwen2Config).num_hidden_layers
    flagged = {"use_sliding_window": True, "sliding_window": 8}
    assert family_of(config_of("llava", text=decoder(Qwen2Config, **flagged, max_window_layers=layers)))
    full = ["full_attention"] * layers
    assert family_of(config_of("llava", text=decoder(Qwen2Config, **flagged, layer_types=full)))
    for windowed in ([*full[1:], "sliding_attention"], ["chunked_attention", *full[1:]]):
        text = decoder(Qwen2Config, **flagged, layer_types=windowed)
        with pytest.raises(UnsupportedModelError, match=rf"sliding-window .*: 1 of its {layers} layers"):
            family_of(config_of("llava", text=text))


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
        {
            "rope_type": "longrope",
            "factor": 2.0,
            "short_factor": [1.0] * 4,
            "long_factor": [1.0] * 4,
            "original_max_position_embeddings": 64,
            "rope_theta": 1e4,
        },
    ],
    ids=lambda scaling: scaling["rope_type"],
)
def test_refuses_rotary_scaling_that_changes_with_length(scaling):
    with pytest.raises(UnsupportedModelError, match=f"rotary scaling '{scaling['rope_type']}'"):
        family_of(config_of("llava", text=decoder(rope_parameters=scaling)))


def test_takes_fixed_rotary_scaling():
    linear = decoder(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4})
    assert family_of(config_of("llava", text=linear)).MODEL_TYPE == "llava"


@pytest.mark.parametrize("family", CONFIGS)
def test_refuses_to_drop_a_class_token_that_is_not_there(family):
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config_of(family, "siglip", strategy="default"))
    with pytest.raises(UnsupportedModelError, match="drops a class token, but the tower has none; set it to 'full'"):
        family_of(model.config).vision_stages(model)


@pytest.mark.parametrize("family", CONFIGS)
def test_layout_refuses_to_drop_a_class_token_that_is_not_there(family):
    config = config_of(family, "siglip", strategy="default")
    with pytest.raises(UnsupportedModelError, match="drops a class token"):
        family_of(config).modalities(config)


@pytest.mark.parametrize("family", ["llava_next", "llava_next_video"])
def test_tiles_refuse_a_class_token_in_the_grid(family):
    with pytest.raises(UnsupportedModelError, match=r"need a square grid.*'default'"):
        family_of(config_of(family, strategy="full"))


# ------------------------------------------------------------------------------------------------------ modalities


def layout(family, *args, **settings):
    config = config_of(family, *args, **settings)
    return {
        kind: (m.stage, m.output, m.rows, m.columns, m.leading, m.tiled)
        for kind, m in family_of(config).modalities(config).items()
    }


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize(
    ("kind", "settings"),
    [(LlamaConfig, {}), (MistralConfig, {"sliding_window": None}), (Qwen2Config, {}), (Qwen3Config, {"head_dim": 8})],
)
def test_supported(family, kind, settings):
    assert family_of(config_of(family, text=decoder(kind, **settings))) is FAMILIES[family]
    assert family == FAMILIES[family].MODEL_TYPE


def test_modalities_of_llava():
    assert layout("llava") == {"image": ("vision", "features", 4, 4, 0, False)}
    assert layout("llava", strategy="full") == {"image": ("vision", "features", 4, 4, 1, False)}
    assert layout("llava", "siglip") == {"image": ("vision", "features", 4, 4, 0, False)}


@pytest.mark.parametrize("vision", TOWERS)
def test_modalities_of_next(vision):
    assert layout("llava_next", vision) == {"image": ("vision", "features", 4, 4, 0, True)}


@pytest.mark.parametrize("vision", TOWERS)
def test_modalities_of_next_video(vision):
    assert layout("llava_next_video", vision) == {
        "image": ("vision", "features", 4, 4, 0, True),
        "video": ("vision", "pooled_features", 2, 2, 0, False),
    }
    assert layout("llava_next_video", vision, side=5)["video"][2:4] == (2, 2)


def test_modalities_of_video_llava():
    video = ("vision_video", "features", 4, 4, 1, False)
    assert layout("video_llava") == {"image": ("vision", "features", 4, 4, 0, False), "video": video}
    assert layout("video_llava", strategy="full") == {"image": ("vision", "features", 4, 4, 1, False), "video": video}


def test_modalities_at_real_geometry():
    assert layout("llava", side=24)["image"][2:4] == (24, 24)
    assert layout("llava_next_video", side=24)["video"][2:4] == (12, 12)


# -------------------------------------------------------------------------------------- features as transformers'


def made(config, seed=0):
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(config).eval().requires_grad_(False)
    for parameter in model.parameters():  # norms and biases are ones and zeros when made: nothing would tell them apart
        if parameter.ndim == 1:
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def projected_input(model, call):
    """What transformers hands to the projector while `call` runs."""
    seen = []
    projector = model.get_submodule("model.multi_modal_projector")
    handle = projector.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.inference_mode():
        call()
    handle.remove()
    (features,) = seen
    return features


def check_features(model, kind, features, expected):
    modality = family_of(model.config).modalities(model.config)[kind]
    width = 16 * (1 if isinstance(model.config.vision_feature_layer, int) else len(model.config.vision_feature_layer))
    assert features.shape == (3, modality.leading + modality.rows * modality.columns, width)
    # The same operations in the same order; only transformers' choice of attention kernel may differ.
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-6)


PIXELS = torch.randn(3, 3, SIDE * PATCH, SIDE * PATCH, generator=torch.Generator().manual_seed(1))
LAYERS = [-2, -1, 1, 3, [-2, -1], [1, 3, -2]]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize(("vision", "strategy"), [("clip", "default"), ("clip", "full"), ("siglip", "full")])
def test_llava_features(vision, strategy, layer):
    model = made(config_of("llava", vision, strategy, layer))
    stages = family_of(model.config).vision_stages(model)
    assert list(stages) == ["vision"]
    expected = projected_input(model, lambda: model.get_image_features(PIXELS))
    with torch.inference_mode():
        check_features(model, "image", stages["vision"](PIXELS), expected)


@pytest.mark.parametrize("layer", [-2, -1, [-2, -1]], ids=str)
@pytest.mark.parametrize("vision", TOWERS)
def test_next_features(vision, layer):
    model = made(config_of("llava_next", vision, layer=layer))
    stages = family_of(model.config).vision_stages(model)
    assert list(stages) == ["vision"]
    sizes = torch.tensor([[SIDE * PATCH, 2 * SIDE * PATCH]])  # two tiles and the whole
    expected = projected_input(model, lambda: model.get_image_features(PIXELS[None], sizes))
    with torch.inference_mode():
        check_features(model, "image", stages["vision"](PIXELS), expected)


@pytest.mark.parametrize("layer", [-2, -1, [-2, -1]], ids=str)
@pytest.mark.parametrize("vision", TOWERS)
def test_next_video_features(vision, layer):
    model = made(config_of("llava_next_video", vision, layer=layer))
    stages = family_of(model.config).vision_stages(model)
    assert list(stages) == ["vision"]
    with torch.inference_mode():
        features, pooled = stages["vision"](PIXELS)
    sizes = torch.tensor([[SIDE * PATCH, 2 * SIDE * PATCH]])  # two tiles and the whole
    image = projected_input(model, lambda: model.get_image_features(PIXELS[None], sizes))
    check_features(model, "image", features, image)
    video = projected_input(model, lambda: model.get_video_features(PIXELS[None]))
    check_features(model, "video", pooled, video)


@pytest.mark.parametrize("mode", ["average", "max"])
def test_next_video_pools(mode):
    model = made(config_of("llava_next_video", spatial_pool_mode=mode))
    with torch.inference_mode():
        _, pooled = family_of(model.config).vision_stages(model)["vision"](PIXELS)
    check_features(model, "video", pooled, projected_input(model, lambda: model.get_video_features(PIXELS[None])))


@pytest.mark.parametrize("layer", [-2, -1, [-2, -1]], ids=str)
@pytest.mark.parametrize("strategy", ["default", "full"])
def test_video_llava_features(strategy, layer):
    model = made(config_of("video_llava", strategy=strategy, layer=layer))
    stages = family_of(model.config).vision_stages(model)
    assert list(stages) == ["vision", "vision_video"]
    with torch.inference_mode():
        image, video = stages["vision"](PIXELS), stages["vision_video"](PIXELS)
    check_features(model, "image", image, projected_input(model, lambda: model.get_image_features(PIXELS)))
    expected = projected_input(model, lambda: model.get_submodule("model").get_video_features(PIXELS[None]))
    check_features(model, "video", video, expected)
    if strategy == "full":
        assert not torch.allclose(image, video)  # two towers, each with weights of its own


def test_layers_above_the_chosen_one_do_not_run():
    model = made(config_of("llava", layer=-2))
    model.get_submodule("model.vision_tower").encoder.layers[-1].register_forward_pre_hook(
        lambda *_: pytest.fail("the last layer is not needed")
    )
    with torch.inference_mode():
        family_of(model.config).vision_stages(model)["vision"](PIXELS)
