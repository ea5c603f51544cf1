"""Architecture, tokenizer and processor of the demo checkpoint: LLaVA-1.5 in small, in its own layout.

A CLIP tower of 14 × 14 patches whose last but one layer is read, a 2-layer GELU projector, a Llama decoder
with grouped key/value heads, and LLaVA-1.5's prompt. A clip is a prompt with one `<image>` for each frame.
"""

import copy
from functools import cache
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from ...calibration.tasks.drawn_task import samples
from ...calibration.tasks.questions import PLURAL
from ...calibration.tasks.scenes import COLOURS, DIGITS, LETTERS, SHAPES, SIDE

PATCH = 16  # pixels
TOKENS = (SIDE // PATCH) ** 2  # visual tokens of one picture, P = 196
WIDTH = 192  # of the tower, C, and of the decoder, D
FEATURE_LAYER = -2  # the tower's hidden state that is read
VOCABULARY = 520
SPECIAL = ("<pad>", "<s>", "</s>", "<image>")
PAD, BOS, EOS, IMAGE = range(len(SPECIAL))

# LLaVA-1.5's prompt: every image is followed by a line break; then the text.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] != 'system' -%}{{ message['role'].upper() + ': ' }}{%- endif -%}
{%- if message['content'] is string -%}{{ message['content'] + ' ' }}{%- else -%}
{%- for item in message['content'] | selectattr('type', 'equalto', 'image') -%}
{{ '<image>\\n' }}
{%- endfor -%}
{%- for item in message['content'] | selectattr('type', 'equalto', 'text') -%}
{{ item['text'] + ' ' }}
{%- endfor -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}
"""


def config() -> LlavaConfig:
    """5.6 M parameters. The tower's last layer is there as in every CLIP, though LLaVA does not read it."""
    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=7,
        num_attention_heads=6,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=WIDTH,
        hidden_act="quick_gelu",
    )
    text = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=576,
        num_hidden_layers=5,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
        tie_word_embeddings=True,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        image_seq_length=TOKENS,
        vision_feature_layer=FEATURE_LAYER,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )


def new_model(seed: int) -> LlavaForConditionalGeneration:
    """An untrained model, float32, the same for the same seed."""
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config())
    assert isinstance(model, LlavaForConditionalGeneration)
    return model


def _corpus() -> list[str]:
    """Text the tokenizer learns its merges from: questions and answers, each word several times."""
    asked = [f"\n{s.question} ASSISTANT: {s.answer}" for s in samples("train", 0, 400, 400)]
    words = [*COLOURS, *SHAPES, *PLURAL.values(), "left", "right", "up", "down", "top", "bottom", "yes", "no"]
    listed = [f"USER: Describe the picture. ASSISTANT: {word} {word}, {word} with" for word in words] * 20
    return [*asked, *listed, *(f" {glyph}" for glyph in DIGITS + LETTERS)]


@cache
def tokenizer() -> Tokenizer:
    """Byte-level BPE: any text can be encoded, and the task's words are one token each."""
    built = Tokenizer(models.BPE())
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    built.train_from_iterator(_corpus(), trainer)
    built.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", BOS)]
    )
    return built


def processor() -> LlavaProcessor:
    """Tokenizer, image processor and prompt. A picture of the native size is only rescaled and normalised."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer(),
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
    )
    images = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    return LlavaProcessor(
        image_processor=images,
        tokenizer=fast,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
        image_token="<image>",
    )


def save(model: LlavaForConditionalGeneration, folder: Path, dtype: torch.dtype = torch.float16) -> None:
    """Write the checkpoint folder that `AutoModelForImageTextToText` and `AutoProcessor` load."""
    folder.mkdir(parents=True, exist_ok=True)
    model.generation_config = GenerationConfig(
        do_sample=False, max_new_tokens=32, pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS
    )
    half = copy.deepcopy(model)
    nn.Module.to(half, dtype)
    half.save_pretrained(folder)
    whole = processor()
    whole.save_pretrained(folder)
    whole.image_processor.save_pretrained(folder)  # preprocessor_config.json, where older readers look for it
