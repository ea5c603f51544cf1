"""Made checkpoints load in plain transformers, and their answers depend on what they see."""

import filecmp
import json
from itertools import combinations

import numpy as np
import pytest
import torch
from PIL import Image
from rediprune.export.checkpoint.maker import make_checkpoint
from rediprune.graphs.selection.query_vector import pool_query
from rediprune.graphs.selection.reference import select_tokens
from safetensors import safe_open
from transformers import AutoModelForImageTextToText, AutoTokenizer, GenerationConfig

COMBINATIONS = [
    (family, tower, decoder)
    for family in ("llava", "llava_next", "llava_next_video", "video_llava")
    for tower in ("clip", "siglip")
    for decoder in ("llama", "mistral", "qwen2", "qwen3")
    if (family, tower) != ("video_llava", "siglip")
]
FILES = {
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def picture(model, seed):
    """A random smooth picture as pixel values [1, 3, H, W]."""
    side = model.config.vision_config.image_size
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    pixels = np.array(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))
    return torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1


def answer(model, inputs):
    with torch.inference_mode():
        ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    return ids[0].tolist()[-8:]


def prompt(tokenizer, placeholder, count):
    """Token ids [1, S] of a question with `count` placeholders in a row."""
    return tokenizer(f"{placeholder * count} What is this?", return_tensors="pt")


@pytest.mark.parametrize(("family", "tower", "decoder"), COMBINATIONS)
def test_loads_and_generates_from_an_image(tmp_path, family, tower, decoder):
    folder = make_checkpoint(tmp_path / "made", family, tower, decoder)
    names = {file.name for file in folder.iterdir()}
    assert names >= FILES | {"model.safetensors"}
    assert ("video_preprocessor_config.json" in names) == ("video" in family)

    model = AutoModelForImageTextToText.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = model.config
    assert config.model_type == family
    assert tokenizer.convert_tokens_to_ids("<image>") == config.image_token_id
    assert len(tokenizer) <= config.text_config.vocab_size
    assert GenerationConfig.from_pretrained(folder).pad_token_id == tokenizer.pad_token_id

    patches = (config.vision_config.image_size // 14) ** 2
    answers = []
    for seed in range(3):
        pixels = picture(model, seed)
        if family.startswith("llava_next"):  # base tile and two tiles
            pixels = pixels[:, None].expand(-1, 3, -1, -1, -1)
            side = config.vision_config.image_size
            grid = side // 14
            # Twice as wide as high: two tiles without padding, and a newline after each of the grid's rows.
            inputs = prompt(tokenizer, "<image>", patches + grid * (2 * grid + 1))
            inputs |= {"image_sizes": torch.tensor([[side, 2 * side]])}
        else:
            inputs = prompt(tokenizer, "<image>", patches)
        answers.append(answer(model, dict(inputs) | {"pixel_values": pixels}))
    assert len({tuple(ids) for ids in answers}) == 3
    ends = {tokenizer.eos_token_id, tokenizer.pad_token_id}
    assert all(ids[0] not in ends for ids in answers)
    assert all(len(set(ids)) > 1 for ids in answers)


@pytest.mark.parametrize(
    ("family", "tower", "decoder"), [combination for combination in COMBINATIONS if "video" in combination[0]]
)
def test_generates_from_a_video(tmp_path, family, tower, decoder):
    folder = make_checkpoint(tmp_path, family, tower, decoder)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.convert_tokens_to_ids("<video>") == model.config.video_token_id
    grid = model.config.vision_config.image_size // 14
    per_frame = (grid // 2) ** 2 if family == "llava_next_video" else grid**2 + 1  # with CLS
    inputs = prompt(tokenizer, "<video>", 4 * per_frame)
    videos = [torch.stack([picture(model, 10 * v + f) for f in range(4)], dim=1) for v in range(2)]
    answers = [answer(model, dict(inputs) | {"pixel_values_videos": video}) for video in videos]
    assert answers[0] != answers[1]


@pytest.mark.parametrize(("tower", "decoder"), [("clip", "llama"), ("siglip", "qwen2"), ("clip", "qwen2")])
def test_answers_differ_between_keep_ratios(tmp_path, tower, decoder):
    folder = make_checkpoint(tmp_path, "llava", tower, decoder)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    ids = AutoTokenizer.from_pretrained(folder)("What is this?", return_tensors="pt").input_ids
    embeds = model.get_input_embeddings()(ids).detach()  # [1, S, D]
    with torch.inference_mode():
        states = model.model.vision_tower(picture(model, 1), output_hidden_states=True).hidden_states
        features = states[model.config.vision_feature_layer][0, 1 if tower == "clip" else 0 :]  # [P, C]
        answers = set()
        for keep in (1.0, 0.5, 0.15, 1):
            kept = features[select_tokens(features, pool_query(embeds[0]), keep)]
            joined = torch.cat([model.model.multi_modal_projector(kept)[None], embeds], dim=1)
            mask = torch.ones(joined.shape[:2], dtype=torch.long)
            answers.add(tuple(answer(model, {"inputs_embeds": joined, "attention_mask": mask})))
    assert len(answers) == 4


@pytest.mark.parametrize(("family", "tower", "decoder"), COMBINATIONS)
def test_legacy_names_and_shards_hold_the_same_weights(tmp_path, family, tower, decoder):
    plain = make_checkpoint(tmp_path / "plain", family, tower, decoder)
    legacy = make_checkpoint(tmp_path / "legacy", family, tower, decoder, legacy_names=True, shard_size=200_000)
    index = json.loads((legacy / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 1
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    for file in files:
        with safe_open(legacy / file, "pt") as shard:
            assert {index["weight_map"][name] for name in shard.keys()} == {file}  # noqa: SIM118
    assert "language_model.model.norm.weight" in index["weight_map"]
    tower_name = "image_tower" if family == "video_llava" else "vision_tower"
    assert any(name.startswith(f"{tower_name}.vision_model.encoder") for name in index["weight_map"])

    loaded = [AutoModelForImageTextToText.from_pretrained(folder).state_dict() for folder in (plain, legacy)]
    assert loaded[0].keys() == loaded[1].keys()
    assert all(torch.equal(loaded[0][name], loaded[1][name]) for name in loaded[0])


def test_same_arguments_same_bytes_and_seed_matters(tmp_path):
    folders = [make_checkpoint(tmp_path / str(i), "llava", seed=seed) for i, seed in enumerate((0, 0, 1))]
    names = [file.name for file in folders[0].iterdir()]
    assert filecmp.cmpfiles(folders[0], folders[1], names, shallow=False)[0] == names
    assert filecmp.cmpfiles(folders[0], folders[2], names, shallow=False)[1] == ["model.safetensors"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_dtype(tmp_path, dtype):
    folder = make_checkpoint(tmp_path, "llava", dtype=dtype)
    assert json.loads((folder / "config.json").read_text())["dtype"] == dtype
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto")
    assert model.dtype == getattr(torch, dtype)


def test_every_word_decodes_to_text(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(make_checkpoint(tmp_path, "llava", decoder="qwen2"))
    assert all(tokenizer.decode([index]).strip() for index in range(300, 1000))
    text = "What is left of the café? 日本\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("mllama",), "family"),
        (("video_llava", "siglip"), "tower"),
        (("llava", "clip", "gpt2"), "decoder"),
        (("internvl", "clip"), "tower"),
        (("qwen3_vl", "qwen", "qwen2"), "decoder"),
        (("qwen2_5_vl", "qwen", "qwen3"), "decoder"),
        (("internvl", "intern", "llama"), "decoder"),
        (("smolvlm", "smolvlm", "qwen2"), "decoder"),
        (("llava_onevision", "clip"), "tower"),
        (("llava", "clip", "mistral", "real"), "size"),
        (("llava", "clip", "llama", "huge"), "size"),
    ],
)
def test_unknown_choices_are_refused(tmp_path, arguments, told):
    with pytest.raises(ValueError, match=f"^{told} must be one of"):
        make_checkpoint(tmp_path / "made", *arguments)
    assert not (tmp_path / "made").exists()


@pytest.mark.slow
def test_real_geometry_loads_and_sees(tmp_path):
    folder = make_checkpoint(tmp_path, "llava", "clip", "qwen2", "real", dtype="bfloat16")
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    assert 0.75e9 < sum(weight.numel() for weight in model.parameters()) < 0.85e9
    inputs = dict(prompt(AutoTokenizer.from_pretrained(folder), "<image>", 576))
    with torch.inference_mode():
        seen = [model(**inputs, pixel_values=picture(model, seed), logits_to_keep=1).logits[0, -1] for seed in range(4)]
    for one, other in combinations(seen, 2):  # each picture is told from each, whichever token is then the likeliest
        assert (one - other).norm() > 0.05 * one.norm()


@pytest.mark.parametrize("decoder", ["qwen2", "qwen3"])
def test_internvl_loads_and_generates(tmp_path, decoder):
    folder = make_checkpoint(tmp_path / "made", "internvl", decoder=decoder)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = model.config
    assert config.model_type == "internvl"
    assert tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>") == config.image_token_id
    side = config.vision_config.image_size[0]
    answers = []
    for seed in range(3):
        coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        pixels = np.array(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))
        pixels = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1
        inputs = prompt(tokenizer, "<IMG_CONTEXT>", config.image_seq_length)
        answers.append(answer(model, dict(inputs) | {"pixel_values": pixels}))
    assert len({tuple(ids) for ids in answers}) == 3
    assert all(len(set(ids)) > 1 for ids in answers)


@pytest.mark.parametrize(("family", "side"), [("qwen2_vl", 14), ("qwen2_5_vl", 14), ("qwen3_vl", 16)])
def test_qwen_loads_and_generates(tmp_path, family, side):
    folder = make_checkpoint(tmp_path / "made", family)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.config.model_type == family
    assert tokenizer.convert_tokens_to_ids("<|image_pad|>") == model.config.image_token_id
    assert tokenizer.convert_tokens_to_ids("<|video_pad|>") == model.config.video_token_id
    inputs = dict(prompt(tokenizer, "<|image_pad|>", 6))
    types = (inputs["input_ids"] == model.config.image_token_id).long()
    grid = torch.tensor([[1, 4, 6]])
    answers = []
    for seed in range(3):
        rows = torch.randn(24, 3 * 2 * side * side, generator=torch.Generator().manual_seed(seed))
        answers.append(
            answer(model, inputs | {"mm_token_type_ids": types, "pixel_values": rows, "image_grid_thw": grid})
        )
    assert len({tuple(ids) for ids in answers}) == 3
    assert all(len(set(ids)) > 1 for ids in answers)
