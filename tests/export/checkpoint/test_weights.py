"""Weights are those that transformers takes: which files, which of several names, tied or not. The rest is refused."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rediprune.export.checkpoint.maker import make_checkpoint
from rediprune.export.checkpoint.reader import Checkpoint
from rediprune.runtime import RedipruneError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForImageTextToText

Edit = Callable[[Path], object]

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
EMBED = "model.language_model.embed_tokens.weight"


def save(folder: Path, tensors: dict[str, Tensor], name: str = SINGLE) -> None:
    save_file({key: value.contiguous() for key, value in tensors.items()}, folder / name, metadata={"format": "pt"})


def change(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / SINGLE)
    edit(tensors)
    save(folder, tensors)


def edit_config(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    edit(config)
    path.write_text(json.dumps(config))


def shard(folder: Path, *parts: dict[str, Tensor], index: dict[str, str] | None = None) -> None:
    """Replace the single file by shards, with an index of what is in them unless another is given."""
    (folder / SINGLE).unlink()
    found = {}
    for number, tensors in enumerate(parts, 1):
        name = f"model-{number:05}-of-{len(parts):05}.safetensors"
        save(folder, tensors, name)
        found |= dict.fromkeys(tensors, name)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": found if index is None else index}))


def ours(folder: Path) -> dict[str, Tensor]:
    """Parameter → the value that an export takes."""
    skeleton = Checkpoint.open(str(folder)).skeleton("fp32")
    weights = skeleton.weights
    named = skeleton.model.named_parameters(remove_duplicate=False)
    return {name: weights.of(parameter).load().float() for name, parameter in named}


def theirs(folder: Path) -> dict[str, Tensor]:
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    return {name: parameter.detach() for name, parameter in model.named_parameters(remove_duplicate=False)}


def check(folder: Path) -> dict[str, Tensor]:
    """What is taken is what transformers takes; returns it."""
    expected, got = theirs(folder), ours(folder)
    assert got.keys() == expected.keys()
    different = [name for name in expected if not torch.equal(got[name], expected[name])]
    assert different == []
    return got


def refuse(folder: Path, word: str) -> None:
    with pytest.raises(RedipruneError, match=word) as error:
        _ = Checkpoint.open(str(folder)).skeleton("fp32").weights
    assert "\n" not in str(error.value)


@pytest.fixture
def tied(checkpoint_of: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of a checkpoint whose head is tied to its embeddings."""
    return Path(shutil.copytree(checkpoint_of("llava_qwen2"), tmp_path / "tied"))


@pytest.fixture
def apart(checkpoint_of: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of a checkpoint with a head of its own."""
    return Path(shutil.copytree(checkpoint_of("llava"), tmp_path / "apart"))


# ------------------------------------------------------------------------------------------------------------ ties


def rolled(tensors: dict[str, Tensor]) -> Tensor:
    return torch.roll(tensors[EMBED], 3, 0)


def test_a_tied_checkpoint(tied: Path) -> None:
    got = check(tied)
    assert torch.equal(got["lm_head.weight"], got[EMBED])


@pytest.mark.parametrize("key", ["lm_head.weight", "language_model.lm_head.weight"])
def test_tied_by_config_but_another_head_is_stored(tied: Path, key: str) -> None:
    """vllm#51665: transformers takes the config for wrong, and each its own."""
    change(tied, lambda tensors: tensors.update({key: rolled(tensors)}))
    got = check(tied)
    assert not torch.equal(got["lm_head.weight"], got[EMBED])


def test_tied_and_stored_twice_with_the_same_values(tied: Path) -> None:
    change(tied, lambda tensors: tensors.update({"lm_head.weight": tensors[EMBED].clone()}))
    check(tied)
    model = Checkpoint.open(str(tied)).skeleton("fp32").model
    assert model.get_parameter("lm_head.weight") is model.get_parameter(EMBED)


@pytest.mark.parametrize("differ", [False, True])
def test_tied_and_stored_in_two_types(tied: Path, differ: bool) -> None:
    def edit(tensors: dict[str, Tensor]) -> None:
        tensors[EMBED] = tensors[EMBED].bfloat16()
        tensors["lm_head.weight"] = (rolled(tensors) if differ else tensors[EMBED]).float()

    change(tied, edit)
    assert torch.equal((got := check(tied))["lm_head.weight"], got[EMBED]) is not differ


def test_only_the_head_of_a_tied_pair_is_stored(tied: Path) -> None:
    change(tied, lambda tensors: tensors.update({"lm_head.weight": tensors.pop(EMBED)}))
    check(tied)


@pytest.mark.parametrize("top", [True, False, None])
@pytest.mark.parametrize("text", [True, False, None])
@pytest.mark.parametrize("stored", [False, True])
def test_what_either_config_says_of_ties(tied: Path, top: bool | None, text: bool | None, stored: bool) -> None:
    def edit(config: dict[str, Any]) -> None:
        for part, value in ((config, top), (config["text_config"], text)):
            part.pop("tie_word_embeddings", None)
            part.update({} if value is None else {"tie_word_embeddings": value})

    edit_config(tied, edit)
    if stored:
        change(tied, lambda tensors: tensors.update({"lm_head.weight": rolled(tensors)}))
        check(tied)
    elif top or text:
        check(tied)
    else:  # transformers would make up a head
        refuse(
            tied, r"lacks 1 weights of its config, the first being 'lm_head.weight'.*set tie_word_embeddings to true"
        )


def test_a_missing_head(apart: Path) -> None:
    change(apart, lambda tensors: tensors.pop("lm_head.weight"))
    refuse(apart, r"'lm_head.weight'.*tie_word_embeddings")


def test_a_missing_layer(apart: Path) -> None:
    change(apart, lambda tensors: tensors.pop("model.language_model.layers.1.mlp.up_proj.weight"))
    refuse(apart, r"lacks 1 weights .*layers.1.mlp.up_proj.weight'; download it again")


# ----------------------------------------------------------------------------------------------------------- files


def other(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value + 1 for key, value in tensors.items()}


def test_a_stale_index_beside_a_single_file(apart: Path) -> None:
    whole = load_file(apart / SINGLE)
    save(apart, other(whole), "model-00001-of-00001.safetensors")
    names = dict.fromkeys(whole, "model-00001-of-00001.safetensors")
    (apart / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": names}))
    assert torch.equal(check(apart)["lm_head.weight"], whole["lm_head.weight"])
    (apart / INDEX).write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
    check(apart)


def test_shards_that_no_index_names(apart: Path) -> None:
    save(apart, other(load_file(apart / SINGLE)), "model-00002-of-00002.safetensors")
    check(apart)


def halves(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    whole = load_file(folder / SINGLE)
    first = dict(list(whole.items())[: len(whole) // 2])
    return first, {key: value for key, value in whole.items() if key not in first}


def test_shards(apart: Path) -> None:
    shard(apart, *halves(apart))
    check(apart)


def test_a_shard_holds_more_than_the_index_says(tied: Path) -> None:
    """A head that only the shard knows counts."""
    first, second = halves(tied)
    whole = first | second
    names = dict.fromkeys(first, "model-00001-of-00002.safetensors")
    names |= dict.fromkeys(second, "model-00002-of-00002.safetensors")
    shard(tied, first, second | {"lm_head.weight": rolled(whole)}, index=names)
    got = check(tied)
    assert not torch.equal(got["lm_head.weight"], got[EMBED])


def test_a_tensor_in_two_shards(apart: Path) -> None:
    first, second = halves(apart)
    key = next(iter(first))
    names = dict.fromkeys(first, "model-00001-of-00002.safetensors")
    names |= dict.fromkeys(second, "model-00002-of-00002.safetensors")
    shard(apart, first, second | {key: first[key] + 1}, index=names)
    check(apart)


def test_an_index_into_another_form_is_damaged(apart: Path) -> None:
    (apart / SINGLE).unlink()
    (apart / INDEX).write_text(json.dumps({"weight_map": {"lm_head.weight": "pytorch_model.bin"}}))
    refuse(apart, "is damaged")


def test_a_missing_shard(apart: Path) -> None:
    shard(apart, *halves(apart))
    (apart / "model-00002-of-00002.safetensors").unlink()
    refuse(apart, r"lacks 1 of 2 weight files, the first being 'model-00002-of-00002.safetensors'; download the rest")


def test_shards_without_their_index(apart: Path) -> None:
    shard(apart, *halves(apart))
    (apart / INDEX).unlink()
    refuse(apart, r"has 'model-00001-of-00002.safetensors', but neither .*download the missing one")


def test_bin_files(apart: Path) -> None:
    torch.save(other(load_file(apart / SINGLE)), apart / "pytorch_model.bin")
    check(apart)
    (apart / SINGLE).unlink()
    refuse(apart, r"\.bin files; convert them once")


def test_the_file_that_the_config_names(apart: Path) -> None:
    save(apart, other(load_file(apart / SINGLE)), "own.safetensors")
    edit_config(apart, lambda config: config.update(transformers_weights="own.safetensors"))
    check(apart)
    edit_config(apart, lambda config: config.update(transformers_weights="gone.safetensors"))
    refuse(apart, "lacks 'gone.safetensors', which its config names")
    edit_config(apart, lambda config: config.update(transformers_weights="../own.safetensors"))
    refuse(apart, "must be a file of the checkpoint's folder")


def test_gguf(apart: Path) -> None:
    (apart / SINGLE).rename(apart / "model-Q4_K_M.gguf")
    refuse(apart, "GGUF, a quantised form; give the original checkpoint")


# ----------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize("family", ["llava", "llava_next_video", "video_llava"])
@pytest.mark.parametrize("decoder", ["llama", "qwen2"])
def test_names_of_old_releases(tmp_path: Path, family: str, decoder: str) -> None:
    folder = make_checkpoint(tmp_path / "old", family, decoder=decoder, legacy_names=True)
    assert any(key.startswith("language_model.model.") for key in load_file(folder / SINGLE))
    check(folder)


@pytest.mark.parametrize("key", ["lm_head.weight", "model.language_model.layers.0.mlp.up_proj.weight"])
def test_a_weight_under_its_old_and_its_new_name(apart: Path, key: str) -> None:
    old = key.replace("model.language_model.", "language_model.model.") if "layers" in key else f"language_model.{key}"
    change(apart, lambda tensors: tensors.update({old: tensors[key] + 1}))
    check(apart)


def test_what_the_model_does_not_have_is_left_out(apart: Path) -> None:
    extra = {
        "model.language_model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        "value_head.weight": torch.ones(2),
    }
    change(apart, lambda tensors: tensors.update(extra))
    check(apart)


# ------------------------------------------------------------------------------------------------- other than weights

METHODS = ["bitsandbytes", "awq", "gptq", "compressed-tensors", "fp8", "hqq", "torchao", "no_such_method"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("part", [None, "text_config", "vision_config"])
def test_a_quantized_checkpoint_is_refused_by_its_config(apart: Path, method: str, part: str | None) -> None:
    setting = {"quantization_config": {"quant_method": method, "bits": 4}}
    edit_config(apart, lambda config: (config if part is None else config[part]).update(setting))
    where = f"{part}." if part else ""
    refuse(
        apart, rf"is quantised \({re.escape(where)}quantization_config of config.json: {method}\).*original checkpoint"
    )


@pytest.mark.parametrize("config", [None, {}])
def test_a_config_that_says_nothing_of_quantization(apart: Path, config: dict | None) -> None:
    edit_config(apart, lambda found: found.update(quantization_config=config))
    check(apart)


def packed(*endings: str) -> Edit:
    def edit(folder: Path) -> None:
        def pack(tensors: dict[str, Tensor]) -> None:
            for key in [key for key in tensors if "language_model" in key and key.endswith("_proj.weight")]:
                base = key.removesuffix(".weight")
                if ".weight" not in endings:
                    del tensors[key]
                for ending in endings:
                    tensors[base + ending] = torch.zeros(4, 8, dtype=torch.int32)

        change(folder, pack)

    return edit


def typed(dtype: torch.dtype, *endings: str) -> Edit:
    def edit(folder: Path) -> None:
        def retype(tensors: dict[str, Tensor]) -> None:
            for key in [key for key in tensors if "language_model" in key and key.endswith("_proj.weight")]:
                tensors[key] = tensors[key].to(dtype)
                tensors.update({key.removesuffix(".weight") + ending: torch.ones(1) for ending in endings})

        change(folder, retype)

    return edit


@pytest.mark.parametrize(
    ("edit", "word"),
    [
        (packed(".qweight", ".qzeros", ".scales"), "AWQ or GPTQ"),
        (packed(".qweight", ".qzeros", ".scales", ".g_idx"), "GPTQ"),
        (packed(".weight", ".weight.absmax", ".weight.quant_map"), "bitsandbytes"),
        (packed(".weight_packed", ".weight_scale", ".weight_shape"), "compressed-tensors"),
        (packed(".W_q", ".scale"), "HQQ"),
        (typed(torch.int8, ".SCB"), "bitsandbytes"),
        (typed(torch.float8_e4m3fn, ".weight_scale"), "FP8"),
        (typed(torch.float8_e4m3fn, ".weight_scale_inv"), "FP8"),
        (typed(torch.float8_e4m3fn), "stored as F8_E4M3; weights must be"),
        (typed(torch.uint8), "stored as U8; weights must be"),
    ],
)
def test_a_quantized_checkpoint_is_refused_by_its_tensors(apart: Path, edit: Edit, word: str) -> None:
    edit(apart)
    refuse(apart, rf"(?s)(is quantised .*)?{word}.*(original checkpoint|before it was quantised)")


def test_an_adapter_is_to_be_merged(apart: Path, tmp_path: Path) -> None:
    """With the base model in the folder transformers applies it; without, it is no checkpoint at all."""
    alone = tmp_path / "adapter"
    alone.mkdir()
    for folder in (apart, alone):
        (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "org/model"}')
        (folder / "adapter_model.safetensors").touch()
        with pytest.raises(RedipruneError, match="merge it first"):
            Checkpoint.open(str(folder))


def test_of_a_table_the_rows_that_are_looked_up_are_read(apart: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    skeleton = Checkpoint.open(str(apart)).skeleton("fp16")
    stage = skeleton.stage("embed")
    stored = skeleton.weights.of(next(iter(stage.module.parameters())))
    ids = torch.tensor([[5, 2, 5], [0, 9, 2]])
    expected = stored.load()[ids]
    assert torch.equal(stored.rows(ids), expected)
    monkeypatch.setattr(type(stored), "load", lambda self: pytest.fail("the whole table was read"))
    with torch.no_grad(), skeleton.weights.supplied(stage.module, skeleton.buffers, skeleton.dtype):
        rows = stage.module(ids)
    assert rows.dtype == torch.float32 and torch.equal(rows, expected.half().float())
