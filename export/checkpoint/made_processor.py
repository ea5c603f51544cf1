"""Processor files of a made checkpoint, as the hub's repositories have them."""

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from ...graphs.families.base import image_side, patch_side
from .made_tokenizer import sentencepiece

# Vicuna's dialogue, as LLaVA-1.5 and the video families use it: pictures first, then videos, then the words.
_VICUNA = """\
{%- for message in messages -%}
{%- if message['role'] != 'system' -%}{{ message['role'].upper() + ': ' }}{%- endif -%}
{%- if message['content'] is string -%}
{{ message['content'] + ' ' }}
{%- else -%}
{%- for content in message['content'] | selectattr('type', 'equalto', 'image') -%}
{{ '<image>\\n' }}
{%- endfor -%}
{%- for content in message['content'] | selectattr('type', 'equalto', 'video') -%}
{{ '<video>\\n' }}
{%- endfor -%}
{%- for content in message['content'] | selectattr('type', 'equalto', 'text') -%}
{{ content['text'] + ' ' }}
{%- endfor -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}
"""

# ChatML, as the Qwen variants use it.
_CHATML = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['content'] is string -%}
{{ message['content'] }}
{%- else -%}
{%- for content in message['content'] | selectattr('type', 'equalto', 'image') -%}
{{ '<image>\\n' }}
{%- endfor -%}
{%- for content in message['content'] | selectattr('type', 'equalto', 'video') -%}
{{ '<video>\\n' }}
{%- endfor -%}
{%- for content in message['content'] | selectattr('type', 'equalto', 'text') -%}
{{ content['text'] }}
{%- endfor -%}
{%- endif -%}
{{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""

# Qwen-VL's, without tools: images and videos stand where the dialogue has them.
_QWEN = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['content'] is string -%}
{{ message['content'] }}
{%- else -%}
{%- for content in message['content'] -%}
{%- if content['type'] == 'image' -%}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- elif content['type'] == 'video' -%}{{ '<|vision_start|><|video_pad|><|vision_end|>' }}
{%- elif 'text' in content -%}{{ content['text'] }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""

# SmolVLM's and Idefics3's.
_SMOLVLM = """\
{%- for message in messages -%}
{{ message['role'] | capitalize + ':' }}
{%- if message['content'] is string -%}
{{ ' ' + message['content'] }}
{%- else -%}
{%- if message['content'][0]['type'] != 'image' -%}{{ ' ' }}{%- endif -%}
{%- for content in message['content'] -%}
{{ '<image>' if content['type'] == 'image' else content['text'] }}
{%- endfor -%}
{%- endif -%}
{{ '<end_of_utterance>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'Assistant:' }}{%- endif -%}
"""

# Qwen2-VL and Qwen2.5-VL say who they are, unless the dialogue does.
_QWEN2 = (
    "{%- if messages[0]['role'] != 'system' -%}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}"
    "{%- endif -%}\n"
) + _QWEN

_CLIP_STATISTICS = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}

_CLASSES = {  # processor, image processor, video processor
    "llava": ("LlavaProcessor", "CLIPImageProcessor", None),
    "llava_next": ("LlavaNextProcessor", "LlavaNextImageProcessor", None),
    "llava_next_video": (
        "LlavaNextVideoProcessor",
        "LlavaNextImageProcessor",
        "LlavaNextVideoVideoProcessor",
    ),
    "llava_onevision": (
        "LlavaOnevisionProcessor",
        "LlavaOnevisionImageProcessor",
        "LlavaOnevisionVideoProcessor",
    ),
    "internvl": ("InternVLProcessor", "GotOcr2ImageProcessor", "InternVLVideoProcessor"),
    "smolvlm": ("SmolVLMProcessor", "SmolVLMImageProcessor", None),
    "idefics3": ("Idefics3Processor", "Idefics3ImageProcessor", None),
    "qwen2_vl": ("Qwen2VLProcessor", "Qwen2VLImageProcessor", None),
    "qwen2_5_vl": ("Qwen2_5_VLProcessor", "Qwen2VLImageProcessor", None),
    "qwen3_vl": ("Qwen3VLProcessor", "Qwen2VLImageProcessor", "Qwen3VLVideoProcessor"),
    "video_llava": ("VideoLlavaProcessor", "VideoLlavaImageProcessor", "VideoLlavaVideoProcessor"),
}


def write_processor(folder: Path, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write tokenizer, chat template and the processors' settings into the folder."""
    processor, image_processor, video_processor = _CLASSES[config.model_type]
    if config.model_type.startswith("qwen"):
        _save_tokenizer(folder, tokenizer, _QWEN if config.model_type == "qwen3_vl" else _QWEN2)
        _write_qwen(folder, config)
        return
    if config.model_type in ("smolvlm", "idefics3"):
        _save_tokenizer(folder, tokenizer, _SMOLVLM)
        _write_split(folder, config)
        return
    siglip = config.vision_config.model_type.startswith("siglip")
    intern = config.model_type == "internvl"
    pictures = _picture_settings(image_side(config.vision_config), siglip or intern)
    if intern:
        pictures |= {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    if siglip and config.model_type == "llava":
        image_processor = "SiglipImageProcessor"

    template = _VICUNA if sentencepiece(config.text_config.model_type) else _CHATML
    _save_tokenizer(folder, tokenizer, template.replace("<image>", "<IMG_CONTEXT>") if intern else template)
    settings = pictures | {"image_processor_type": image_processor, "processor_class": processor}
    if hasattr(config, "image_grid_pinpoints"):
        settings |= {"image_grid_pinpoints": config.image_grid_pinpoints, "do_pad": True}
    if intern:
        settings |= {"crop_to_patches": True, "min_patches": 1, "max_patches": 12}
    _write(folder / "preprocessor_config.json", settings)
    if video_processor:
        settings = pictures | {"video_processor_type": video_processor, "processor_class": processor}
        settings |= {"do_sample_frames": False, "num_frames": 8}
        _write(folder / "video_preprocessor_config.json", settings)

    settings = {
        "processor_class": processor,
        "patch_size": patch_side(config.vision_config),
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
        "num_additional_image_tokens": 0 if siglip else 1,
        "image_token": "<image>",
    }
    if video_processor:
        settings["video_token"] = "<video>"
    if config.model_type == "llava_onevision":
        side = image_side(config.vision_config) // patch_side(config.vision_config)
        settings |= {"num_image_tokens": side**2, "vision_aspect_ratio": config.vision_aspect_ratio}
    if intern:
        settings = {"processor_class": processor, "image_seq_length": config.image_seq_length}
    _write(folder / "processor_config.json", settings)


def _save_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerBase, template: str) -> None:
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)  # writes chat_template.jinja too
    names = ("bos_token", "eos_token", "unk_token", "pad_token")
    special = {name: token for name in names if (token := getattr(tokenizer, name))}
    _write(folder / "special_tokens_map.json", special)


def _write_qwen(folder: Path, config: PreTrainedConfig) -> None:
    """Pictures of any size within bounds of pixels, small ones where the tower is tiny.

    The bounds are as the hub's files have them: of Qwen2-VL and Qwen2.5-VL one file is for pictures and videos.
    """
    processor, image_processor, video_processor = _CLASSES[config.model_type]
    vision: Any = config.vision_config
    group = (vision.patch_size * vision.spatial_merge_size) ** 2  # pixels
    tiny = vision.hidden_size < 100
    own = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]} if video_processor else _CLIP_STATISTICS
    settings = own | {
        "do_convert_rgb": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "do_resize": True,
        "resample": 3,
        "patch_size": vision.patch_size,
        "merge_size": vision.spatial_merge_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "processor_class": processor,
    }
    pictures = settings | {"image_processor_type": image_processor}
    least, most = (4, 40) if tiny else (64 if video_processor else 4, 16384)  # groups
    if video_processor:
        pictures |= {"size": {"shortest_edge": least * group, "longest_edge": most * group}}
        least, most = (8, 96) if tiny else (4, 24576)
        size = {"shortest_edge": least * group, "longest_edge": most * group}
        videos = settings | {"video_processor_type": video_processor, "size": size}
        _write(folder / "video_preprocessor_config.json", videos)
    else:
        pictures |= {"min_pixels": least * group, "max_pixels": most * group}
    _write(folder / "preprocessor_config.json", pictures)
    _write(folder / "processor_config.json", {"processor_class": processor})


def _write_split(folder: Path, config: PreTrainedConfig) -> None:
    """Pictures cut into up to 3 × 3 tiles, 4 × 4 at real size."""
    processor, image_processor, _ = _CLASSES[config.model_type]
    vision: Any = config.vision_config
    side = image_side(vision)
    settings = _picture_settings(side, True) | {
        "image_processor_type": image_processor,
        "processor_class": processor,
        "resample": 1,
        "do_image_splitting": True,
        "do_pad": True,
        "size": {"longest_edge": side * (3 if vision.hidden_size < 100 else 4)},
        "max_image_size": {"longest_edge": side},
    }
    del settings["crop_size"], settings["do_center_crop"]
    _write(folder / "preprocessor_config.json", settings)
    tokens = (side // patch_side(vision) // config.scale_factor) ** 2  # type: ignore[attr-defined]
    _write(folder / "processor_config.json", {"processor_class": processor, "image_seq_len": tokens})


def _picture_settings(side: int, siglip: bool) -> dict:
    """CLIP: shortest edge to `side`, centre crop, CLIP's statistics. SigLIP: squeezed to a square, −1 … 1."""
    square = {"height": side, "width": side}
    settings = {"do_convert_rgb": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}
    settings |= {"do_resize": True, "resample": 3, "crop_size": square}
    if siglip:
        return settings | {
            "size": square,
            "do_center_crop": False,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
        }
    return settings | {
        "size": {"shortest_edge": side},
        "do_center_crop": True,
        **_CLIP_STATISTICS,
    }


def _write(file: Path, document: dict) -> None:
    file.write_text(json.dumps(document, indent=2) + "\n")
