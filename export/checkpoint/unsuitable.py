"""Checkpoints that hold something else than a model's own weights, or a config that is damaged. Refused by name."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ...runtime.errors import RedipruneError

_ADVICE = (
    "quantised weights are not taken: give the original checkpoint, and quantise its bundle with rediprune calibrate"
)

# Where a config says that its weights are quantised; vision-language models may say it of their decoder alone.
_SETTINGS = ("quantization_config", "compression_config")
_PARTS = ("text_config", "vision_config")

# Tensors beside a packed weight (or in its place), and who stores them so.
_PACKED = {
    ".qweight": "AWQ or GPTQ",
    ".qzeros": "AWQ or GPTQ",
    ".g_idx": "GPTQ",
    ".absmax": "bitsandbytes",
    ".quant_map": "bitsandbytes",
    ".nested_absmax": "bitsandbytes",
    ".SCB": "bitsandbytes",
    ".weight_packed": "compressed-tensors",
    ".weight_scale": "FP8 or INT8",
    ".weight_scale_inv": "FP8",
    ".weight_scale_2": "NVFP4",
    ".weight_blocks": "MXFP4",
    ".W_q": "HQQ",
}


# Sizes of a model, and what they are at most. A model is built from its config before its weights are looked at, and with
# a damaged one that would not end.
_LARGEST = {
    "num_hidden_layers": 1_000,
    "num_attention_heads": 10_000,
    "num_key_value_heads": 10_000,
    "hidden_size": 1_000_000,
    "intermediate_size": 10_000_000,
    "projection_dim": 10_000_000,
    "head_dim": 100_000,
    "vocab_size": 100_000_000,
    "max_position_embeddings": 1_000_000_000,
    "image_size": 16_384,
    "patch_size": 16_384,
    "num_channels": 100,
}


def check_sizes(file: Path, config: Mapping[str, Any]) -> None:
    """Refuse a config whose parts are no objects, or whose sizes are none.

    Args:
        file: the config.json, named in the message.
        config: what it holds.

    Raises:
        RedipruneError: names the setting and its value.
    """
    for part in _PARTS:
        settings = config.get(part)
        if settings is not None and not isinstance(settings, Mapping):
            raise RedipruneError(f"{part} of '{file}' is no JSON object; download the checkpoint again")
        for name, most in _LARGEST.items():
            value = (settings or {}).get(name)
            sizes = value if isinstance(value, list) and value else [value]  # height and width, with some families
            if value is not None and not all(type(size) is int and 0 < size <= most for size in sizes):
                raise RedipruneError(
                    f"{part}.{name} of '{file}' is {value!r:.100}, which is no size; download the checkpoint again"
                )


def refuse_adapter(folder: Path) -> None:
    """Refuse a folder with a LoRA, whether the model that it belongs to is in it or not.

    Raises:
        RedipruneError: says how to merge it.
    """
    if (folder / "adapter_config.json").is_file():
        raise RedipruneError(
            f"checkpoint '{folder}' has an adapter (adapter_config.json), which would not be applied; merge it first: "
            "PeftModel.from_pretrained(model, folder).merge_and_unload().save_pretrained(merged), and export that"
        )


def refuse_quantized_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse a checkpoint whose config says that it is quantised.

    Args:
        folder: named in the message.
        config: of config.json.

    Raises:
        RedipruneError: names the method.
    """
    parts = [("", config), *((f"{part}.", config.get(part)) for part in _PARTS)]
    for where, part in parts:
        for setting in _SETTINGS:
            found = part.get(setting) if isinstance(part, Mapping) else None
            if found:
                method = found.get("quant_method") if isinstance(found, Mapping) else None
                raise RedipruneError(
                    f"checkpoint '{folder}' is quantised ({where}{setting} of config.json: "
                    f"{method or 'no method named'}); {_ADVICE}"
                )


def refuse_packed(folder: Path, keys: Iterable[str]) -> None:
    """Refuse weights of a packed form by what lies beside them, where no config tells it.

    Raises:
        RedipruneError: names the form and a tensor of it.
    """
    for key in keys:
        form = next((form for ending, form in _PACKED.items() if key.endswith(ending)), None)
        if form is not None:
            raise RedipruneError(f"checkpoint '{folder}' is quantised ({form}: it holds '{key}'); {_ADVICE}")
