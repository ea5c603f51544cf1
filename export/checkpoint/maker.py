"""Made checkpoints: a Hugging Face LLaVA-type repository with seeded random weights and a real tokenizer.

For tests, demonstrations and measurements at real geometry where no trained weights are at hand. Answers
mean nothing, but depend on the picture, the question and the kept tokens, as a trained model's do.
"""

import json
import math
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    GenerationConfig,
    LlavaConfig,
    LlavaNextConfig,
    LlavaNextVideoConfig,
    LlavaOnevisionConfig,
    PreTrainedConfig,
    VideoLlavaConfig,
)

from .made_decoders import DECODERS, text_settings
from .made_internvl import internvl_config
from .made_processor import write_processor
from .made_qwen import FAMILIES as QWEN
from .made_qwen import qwen_config
from .made_smolvlm import FAMILIES as SMOLVLM
from .made_smolvlm import smolvlm_config
from .made_tokenizer import make_tokenizer, sentencepiece

# The towers of a family, and its decoders where it has not all of them; the first of each by default.
_PARTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "video_llava": (("clip",), ()),
    "llava_onevision": (("siglip",), ("qwen2", "qwen3")),
    "internvl": (("intern",), ("qwen2", "qwen3")),
    "smolvlm": (("smolvlm",), ("llama",)),
    "idefics3": (("smolvlm",), ("llama",)),
    "qwen2_vl": (("qwen",), ("qwen2",)),
    "qwen2_5_vl": (("qwen",), ("qwen2",)),
    "qwen3_vl": (("qwen",), ("qwen3",)),
}
_CONFIGS: dict[str, Callable[..., PreTrainedConfig]] = {
    "llava": LlavaConfig,
    "llava_next": LlavaNextConfig,
    "llava_next_video": LlavaNextVideoConfig,
    "llava_onevision": LlavaOnevisionConfig,
    "video_llava": VideoLlavaConfig,
}
FAMILIES = (*_CONFIGS, "internvl", *QWEN, *SMOLVLM)
TILED = ("llava_next", "llava_next_video", "llava_onevision")
VIDEO = ("llava_next_video", "llava_onevision", "video_llava")

# [hidden, layers, heads, FFN]. The tiny widths let query pooling meet every case: decoder width a multiple of
# the tower's (32 → 64), larger but no multiple (32 → 48), smaller (72 → 64, 72 → 48).
TOWERS = {
    ("clip", "tiny"): (32, 3, 2, 64),
    ("clip", "real"): (1024, 24, 16, 4096),
    ("siglip", "tiny"): (72, 3, 4, 96),
    ("siglip", "real"): (1152, 26, 16, 4304),
}
_PATCH = 14


def make_checkpoint(
    folder: str | Path,
    family: str,
    tower: str | None = None,
    decoder: str | None = None,
    size: str = "tiny",
    seed: int = 0,
    *,
    dtype: str | None = None,
    legacy_names: bool = False,
    shard_size: int = 1_000_000_000,
) -> Path:
    """Write a checkpoint that `AutoModelForImageTextToText.from_pretrained` loads.

    The same arguments give the same bytes. Weights are made and written one shard after another, so memory
    is bounded by a shard, not by the model. `config.json` comes last: without it a folder is no checkpoint.

    Args:
        folder: where to; made if missing.
        family: "llava" (LLaVA-1.5), "llava_next", "llava_next_video", "llava_onevision", "video_llava",
            "internvl", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "smolvlm" or "idefics3".
        tower: "clip", the default, or "siglip" (no CLS token; not for video_llava); OneVision has
            "siglip"; InternVL and Qwen-VL have their own, "intern" and "qwen".
        decoder: "llama" (Vicuna), the default, "mistral", "qwen2" or "qwen3"; all with grouped KV heads, save llama at
            7b. Of OneVision and InternVL "qwen2", the default, or "qwen3"; of Qwen2-VL and Qwen2.5-VL "qwen2", of Qwen3-VL "qwen3".
        size: "tiny" (tests; 1 MB), "real" (CLIP-L/336 or SigLIP-so400m, TinyLlama-1.1B, Qwen2-0.5B or
            Qwen3-0.6B) or "7b" (the same towers, Vicuna-7B, Mistral-7B or Qwen2-7B): the geometry of these models. Qwen-VL
            has that of its 2B or (Qwen2.5-VL) 3B at "real".
        seed: of the weights.
        dtype: "float32", "float16" or "bfloat16"; by default float32, bfloat16 at 7b and of Qwen-VL at its real size.
        legacy_names: weight names of the hub's repositories (`language_model.model.…`,
            `vision_tower.vision_model.…`) in place of those of today's modules.
        shard_size: most bytes of one weights file, save where a single tensor is larger.

    Returns:
        The folder.

    Raises:
        ValueError: a family, tower, decoder or size that does not exist, or a combination of them.
    """
    _check("family", family, FAMILIES)
    towers, decoders = _PARTS.get(family, (("clip", "siglip"), ()))
    decoders = decoders or tuple(dict.fromkeys(name for name, _ in DECODERS))
    tower, decoder = tower or towers[0], decoder or decoders[0]
    _check("tower", tower, towers)
    _check("decoder", decoder, decoders)
    _check("size", size, ("tiny", "real", "7b"))
    _check("size", size, tuple(known for name, known in DECODERS if name == decoder))
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)

    geometry = DECODERS[decoder, size]
    words = geometry.words
    tokenizer = make_tokenizer(decoder, family, words, geometry.context)
    config = _config_of(family, tower, decoder, size, tokenizer)
    large = size == "7b" or (family in QWEN and size == "real")
    dtype = dtype or ("bfloat16" if large else "float32")
    config.dtype = dtype
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, trust_remote_code=False)
    config.architectures = [type(model).__name__]

    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        del shapes["lm_head.weight"]
    plain = range(259 if sentencepiece(decoder) else 256, words)  # behind the control and byte tokens
    make = partial(_weight, plain=plain, seed=seed)
    rename = _legacy_name if legacy_names else str
    _write_weights(folder, shapes, make, getattr(torch, dtype), rename, shard_size)
    write_processor(folder, config, tokenizer)
    ends = [tokenizer.eos_token_id] + ([tokenizer.pad_token_id] if not sentencepiece(decoder) else [])
    GenerationConfig(
        bos_token_id=config.text_config.bos_token_id,
        eos_token_id=ends if len(ends) > 1 else ends[0],
        pad_token_id=tokenizer.pad_token_id,
    ).save_pretrained(folder)
    config.save_pretrained(folder)
    return folder


def _check(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{what} must be one of {', '.join(known)}, not {value!r}")


def _config_of(family: str, tower: str, decoder: str, size: str, tokenizer) -> PreTrainedConfig:
    if family in QWEN:
        return qwen_config(family, decoder, size, tokenizer)
    if family in SMOLVLM:
        return smolvlm_config(family, decoder, size, tokenizer)
    if family == "internvl":
        return internvl_config(decoder, size, tokenizer)
    return _config(family, tower, decoder, size, tokenizer)


def _config(family: str, tower: str, decoder: str, size: str, tokenizer) -> PreTrainedConfig:
    """The checkpoint's config, with ids taken from the tokenizer."""
    hidden, layers, heads, ffn = TOWERS[tower, "tiny" if size == "tiny" else "real"]
    image = _image_size(family, tower, size)
    vision = {
        "model_type": f"{tower}_vision_model",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": ffn,
        "image_size": image,
        "patch_size": _PATCH,
    }
    vision |= {"vision_use_head": False} if tower == "siglip" else {"projection_dim": 768}

    patches = (image // _PATCH) ** 2
    settings = {
        "vision_config": vision,
        "text_config": text_settings(decoder, size, tokenizer),
        "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
        "image_seq_length": patches,
        "tie_word_embeddings": DECODERS[decoder, size].tied,
        # As on the hub: CLIP from its last layer but one without CLS; SigLIP, which has none, from its last.
        "vision_feature_layer": -2 if tower == "clip" else -1,
        "vision_feature_select_strategy": "default" if tower == "clip" else "full",
    }
    if family in VIDEO:
        settings["video_token_index"] = tokenizer.convert_tokens_to_ids("<video>")
    if family == "llava_next_video":
        settings["video_seq_length"] = patches // 4 * 8
    if family in TILED:
        grid = [(1, 2), (2, 1), (2, 2), (3, 1), (1, 3)]
        if family == "llava_onevision":
            grid = list(product(range(1, 7), repeat=2))
        settings["image_grid_pinpoints"] = [[image * rows, image * columns] for rows, columns in grid]
    if family == "video_llava":
        settings["video_seq_length"] = (patches + 1) * 8
    return _CONFIGS[family](**settings)


def _image_size(family: str, tower: str, size: str) -> int:
    """Side of the model's picture in pixels; llava_next_video pools with stride 2: its patch grid is even."""
    if size == "tiny":
        return {"llava": 112, "llava_onevision": 70}.get(family, 56)
    if family == "video_llava":
        return 224
    if tower == "clip":
        return 336
    return 392 if family == "llava_next_video" else 384


def _write_weights(
    folder: Path,
    shapes: dict[str, torch.Size],
    make: Callable[[str, torch.Size], Tensor],
    dtype: torch.dtype,
    rename: Callable[[str], str],
    shard_size: int,
) -> None:
    shards = list(_shards(shapes, dtype.itemsize, shard_size))
    index: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        part = f"-{number:05}-of-{len(shards):05}" if len(shards) > 1 else ""
        file = f"model{part}.safetensors"
        tensors = {rename(name): make(name, shapes[name]).to(dtype) for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(tensors, file)
    if len(shards) > 1:
        total = dtype.itemsize * sum(shape.numel() for shape in shapes.values())
        document = {"metadata": {"total_size": total}, "weight_map": dict(sorted(index.items()))}
        (folder / "model.safetensors.index.json").write_text(json.dumps(document, indent=2) + "\n")


def _shards(shapes: dict[str, torch.Size], itemsize: int, limit: int) -> Iterator[list[str]]:
    names: list[str] = []
    filled = 0
    for name, shape in shapes.items():
        size = shape.numel() * itemsize
        if names and filled + size > limit:
            yield names
            names, filled = [], 0
        names.append(name)
        filled += size
    yield names


def _legacy_name(name: str) -> str:
    """Name of a weight in the hub's repositories, from its name in today's modules."""
    if name.startswith("lm_head."):
        return f"language_model.{name}"
    name = name.removeprefix("model.")
    part, rest = name.split(".", 1) if "." in name else (name, "")
    inner = {"language_model": "model.", "vision_tower": "vision_model.", "image_tower": "vision_model.",
             "video_tower": "vision_model."}  # fmt: skip
    return f"{part}.{inner[part]}{rest}" if part in inner else name


def _weight(name: str, shape: torch.Size, plain: range, seed: int) -> Tensor:
    """One random weight, float32, the same whatever shard it lies in.

    Queries and keys are scaled up so that attention picks out positions rather than averaging over all of
    them: the answer then depends on single visual tokens. The decoder's feed-forward layers outweigh both the
    embeddings, which where tied would repeat the last word, and attention, which in a deep random model would
    make all positions alike.
    """
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}".encode()))
    weight = torch.empty(shape).normal_(generator=generator)
    if name.endswith("bias"):
        return weight.mul_(0.05)
    if name.endswith(("q_norm.weight", "k_norm.weight")):  # which undo the gain of queries and keys
        return weight.mul_(0.1).add_(2)
    if any(part in name for part in ("norm", ".ln_q.", ".lambda_")):
        return weight.mul_(0.1).add_(1)
    if "position_embedding" in name or name.endswith(("class_embedding", "cls_token")):
        return weight.mul_(0.3)
    if name.endswith("image_newline"):
        return weight
    if name.endswith(("embed_tokens.weight", "lm_head.weight")):
        # Rows of special, byte and unused tokens are short, so that they are not the greedy answer.
        weight[: plain.start] *= 0.1
        weight[plain.stop :] *= 0.1
        return weight.mul_(2 / math.sqrt(shape[1]))
    gain = 1.0
    if name.endswith(("q_proj.weight", "k_proj.weight")):
        gain = 1.5
    elif name.endswith("o_proj.weight"):
        gain = 2.0
    elif name.endswith("down_proj.weight"):
        gain = 3.0
    return weight.mul_(gain / math.sqrt(shape[1:].numel()))
