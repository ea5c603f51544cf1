"""The order of visual tokens equals transformers' own packing."""

import numpy as np
import pytest
import torch
from rediprune.runtime.media.tiles import NEWLINE, anyres_layout, ended_layout
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextVideoConfig,
    LlavaNextVideoModel,
    LlavaOnevisionConfig,
    LlavaOnevisionModel,
)

SIZES = [(480, 640), (640, 480), (336, 336), (1, 1), (1, 200), (200, 1), (1000, 333), (333, 1000), (57, 113),
         (512, 512), (2160, 3840), (427, 640), (671, 673), (673, 671), (300, 451), (451, 300)]  # fmt: skip


def pack(sizes, pinpoints, tile, patch):
    """transformers' packing of features whose value is their own index, −1 for the newline."""
    config = LlavaNextVideoConfig(
        vision_config=CLIPVisionConfig(
            image_size=tile, patch_size=patch, hidden_size=8, num_hidden_layers=1, num_attention_heads=1
        ),
        text_config=LlamaConfig(
            hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=8
        ),
        image_grid_pinpoints=pinpoints,
    )
    with torch.device("meta"):
        model = LlavaNextVideoModel(config)
    from transformers.models.llava_next_video.modeling_llava_next_video import image_size_to_num_patches

    patches = (tile // patch) ** 2
    features = [
        torch.arange(patches * image_size_to_num_patches(size, pinpoints, tile)).reshape(-1, patches, 1)
        for size in sizes
    ]
    newline = torch.tensor([NEWLINE])
    packed, _ = model.pack_image_features(features, [list(size) for size in sizes], "default", newline)
    return [tokens[:, 0].numpy() for tokens in packed]


@pytest.mark.parametrize(
    ("pinpoints", "tile", "patch"),
    [
        ([[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]], 336, 14),
        ([[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]], 56, 14),
        ([[384, 384], [384, 768], [768, 384]], 384, 14),
        ([[56, 56]], 56, 14),
    ],
)
def test_equals_transformers(pinpoints, tile, patch):
    random = np.random.default_rng(0).integers(1, 2000, (40, 2)).tolist()
    sizes = SIZES + [(height, width) for height, width in random if max(height, width) < 200 * min(height, width)]
    for size, expected in zip(sizes, pack(sizes, pinpoints, tile, patch), strict=True):
        layout = anyres_layout(size, pinpoints, tile, patch)
        assert layout.slots.dtype == np.int64 and layout.mix is None
        assert np.array_equal(layout.slots, expected), size


def test_a_small_grid_by_hand():
    # Two tiles of 2 × 2 patches beside each other, filled by a picture twice as wide as high.
    layout = anyres_layout((28, 56), [[28, 56]], 28, 14)
    base, upper, lower = [0, 1, 2, 3], [4, 5, 8, 9], [6, 7, 10, 11]
    assert layout.slots.tolist() == [*base, *upper, NEWLINE, *lower, NEWLINE]


def test_large_pictures_are_scaled_down_as_transformers_does():
    tile, patch, most = 70, 14, 9
    pinpoints = [[tile * rows, tile * columns] for rows in range(1, 7) for columns in range(1, 7)]
    config = LlavaOnevisionConfig(
        vision_config={"model_type": "siglip_vision_model", "image_size": tile, "patch_size": patch},
        text_config={"model_type": "qwen2", "num_hidden_layers": 1, "vocab_size": 8},
        image_grid_pinpoints=pinpoints,
    )
    with torch.device("meta"):
        model = LlavaOnevisionModel(config)
    scaled = []
    for size in [(60, 90), (427, 640), (2000, 1500), (31, 400), (210, 210), (420, 210), (300, 299)]:
        layout = anyres_layout(size, pinpoints, tile, patch, most)
        from transformers.models.llava_onevision.modeling_llava_onevision import image_size_to_num_patches

        tiles = image_size_to_num_patches(size, pinpoints, tile)
        tokens = torch.randn(tiles, 25, 3, generator=torch.Generator().manual_seed(0))
        newline = torch.full((3,), 7.0)
        (expected,), _ = model.pack_image_features([tokens], [list(size)], newline, f"anyres_max_{most}")
        flat = tokens.flatten(0, 1).numpy()
        rows = [flat] if layout.mix is None else [flat, layout.mix.of(flat)]
        table = np.concatenate([*rows, newline[None].numpy()])
        np.testing.assert_allclose(table[layout.slots], expected, atol=1e-5)
        scaled.append(layout.mix is not None)
    assert True in scaled and False in scaled


def test_a_newline_behind_all_tokens():
    assert ended_layout(3).slots.tolist() == [0, 1, 2, NEWLINE]
