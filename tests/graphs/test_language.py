"""The decoder stage equals transformers' decoder with its own cache: prefill, steps, rows of unequal length."""

import pytest
import torch
from rediprune.graphs.language import LanguageStage, attention_of, cache_names, cache_shape, write_cache
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    DynamicCache,
    LlamaConfig,
    LlavaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

KINDS = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
CACHE = 24
# The stage attends over the whole cache, transformers over the tokens so far: other sums, rounded in float32.
CLOSE = {"rtol": 1e-4, "atol": 2e-6}


@pytest.fixture(scope="module", params=[(k, h) for k in KINDS for h in (4, 2, 1)], ids=lambda p: f"{p[0]}-{p[1]}kv")
def model(request):
    kind, kv_heads = request.param
    text = KINDS[kind](
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        vocab_size=97,
        **({"sliding_window": None} if kind == "mistral" else {"head_dim": 8} if kind == "qwen3" else {}),
    )
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision = CLIPVisionConfig(image_size=28, patch_size=14, **tower)
    torch.manual_seed(kv_heads)
    made = AutoModelForImageTextToText.from_config(LlavaConfig(vision_config=vision, text_config=text))
    for name, parameter in made.named_parameters():  # larger than made: attention that is far from uniform
        parameter.requires_grad_(False).copy_(torch.randn_like(parameter) * 0.15 + ("norm" in name))
    return made.eval()


def embeds_of(model, rows, tokens, seed=0):
    return torch.randn(
        rows, tokens, model.config.text_config.hidden_size, generator=torch.Generator().manual_seed(seed)
    )


def step(stage, embeds, starts, *cache, positions=None):
    """A step of the stage; positions are the tokens' slots unless they are given."""
    slots = starts[:, None] + torch.arange(embeds.shape[1])
    return stage(embeds, slots if positions is None else positions, starts, *cache)


def rubbish(model, rows, length=CACHE):
    """A cache full of numbers that must not matter."""
    shape = cache_shape(model.config.text_config, rows, length)
    generator = torch.Generator().manual_seed(5)
    names = cache_names(model.config.text_config.num_hidden_layers)
    return tuple(torch.randn(shape, generator=generator) * 50 for _ in names)


class Transformers:
    """The model as transformers runs it."""

    def __init__(self, model):
        self.model = model
        self.cache = DynamicCache(config=model.config.text_config)

    def step(self, embeds, positions=None):
        decoder = self.model.get_submodule("model.language_model")
        length = self.cache.get_seq_length() + embeds.shape[1]
        hidden = decoder(
            inputs_embeds=embeds,
            position_ids=positions,
            attention_mask=torch.ones(len(embeds), length, dtype=torch.int64),  # else gaps are taken for packing
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state
        return self.model.get_submodule("lm_head")(hidden[:, -1:])

    def tensors(self):
        return [tensor for layer in self.cache.layers for tensor in (layer.keys, layer.values)]


@torch.inference_mode()
def test_prefill_and_steps(model):
    stage, reference = LanguageStage(model), Transformers(model)
    cache, start = rubbish(model, 1), 0
    for number, tokens in enumerate([7, 1, 1, 4, 1]):
        embeds = embeds_of(model, 1, tokens, number)
        logits, *cache = step(stage, embeds, torch.tensor([start]), *cache)
        start += tokens
        assert logits.shape == (1, 1, 97)
        expected = reference.step(embeds)
        assert expected.abs().max() > 0.1  # not zeros against zeros
        torch.testing.assert_close(logits, expected, **CLOSE)
        for ours, theirs in zip(cache, reference.tensors(), strict=True):
            torch.testing.assert_close(ours[:, :, :start], theirs, **CLOSE)


@torch.inference_mode()
def test_only_the_new_positions_of_the_cache_change(model):
    stage, before = LanguageStage(model), rubbish(model, 2)
    given = [tensor.clone() for tensor in before]
    _, *after = step(stage, embeds_of(model, 2, 3), torch.tensor([4, 10]), *before)
    assert len(after) == len(before) == 6
    for old, kept, new in zip(given, before, after, strict=True):
        assert torch.equal(old, kept)  # the stage itself is pure; writing in place is the engine's matter
        for row, start in enumerate((4, 10)):
            assert torch.equal(new[row, :, :start], old[row, :, :start])
            assert not torch.isclose(new[row, :, start : start + 3], old[row, :, start : start + 3]).any()
            assert torch.equal(new[row, :, start + 3 :], old[row, :, start + 3 :])


@torch.inference_mode()
def test_rows_of_unequal_length(model):
    stage = LanguageStage(model)
    lengths = [3, 9]
    references = [Transformers(model) for _ in lengths]
    cache = rubbish(model, 2)
    for row, (reference, length) in enumerate(zip(references, lengths, strict=True)):
        prompt = embeds_of(model, 1, length, 10 + row)
        reference.step(prompt)
        _, *filled = step(stage, prompt, torch.tensor([0]), *(tensor[row : row + 1] for tensor in cache))
        for tensor, new in zip(cache, filled, strict=True):
            tensor[row] = new[0]
    index = torch.tensor(lengths)
    for number, tokens in enumerate([1, 3, 1]):
        embeds = embeds_of(model, 2, tokens, 20 + number)
        logits, *cache = step(stage, embeds, index, *cache)
        index = index + tokens
        for row, reference in enumerate(references):
            torch.testing.assert_close(logits[row : row + 1], reference.step(embeds[row : row + 1]), **CLOSE)


@torch.inference_mode()
def test_positions_with_gaps(model):
    stage, reference, cache = LanguageStage(model), Transformers(model), rubbish(model, 1)
    embeds, positions = embeds_of(model, 1, 5), torch.tensor([[0, 1, 7, 30, 31]])
    logits, *cache = step(stage, embeds, torch.tensor([0]), *cache, positions=positions)
    torch.testing.assert_close(logits, reference.step(embeds, positions), **CLOSE)
    assert not torch.isclose(logits, step(stage, embeds, torch.tensor([0]), *rubbish(model, 1))[0]).all()
    for at, position in ((5, 32), (6, 33)):
        one, place = embeds_of(model, 1, 1, at), torch.tensor([[position]])
        logits, *cache = step(stage, one, torch.tensor([at]), *cache, positions=place)
        torch.testing.assert_close(logits, reference.step(one, place), **CLOSE)


@torch.inference_mode()
def test_what_lies_behind_the_last_token_does_not_matter(model):
    stage = LanguageStage(model)
    embeds = embeds_of(model, 2, 5)
    zeros = tuple(torch.zeros_like(tensor) for tensor in rubbish(model, 2))
    index = torch.zeros(2, dtype=torch.int64)
    assert torch.equal(step(stage, embeds, index, *zeros)[0], step(stage, embeds, index, *rubbish(model, 2))[0])


@torch.inference_mode()
def test_a_cache_filled_to_the_brim(model):
    embeds = embeds_of(model, 1, CACHE)
    logits, *_ = step(LanguageStage(model), embeds, torch.tensor([0]), *rubbish(model, 1))
    torch.testing.assert_close(logits, Transformers(model).step(embeds), **CLOSE)


@torch.inference_mode()
def test_the_model_keeps_its_own_attention(model):
    decoder = model.get_submodule("model.language_model")
    before = decoder.config._attn_implementation
    step(LanguageStage(model), embeds_of(model, 1, 2), torch.tensor([0]), *rubbish(model, 1))
    assert decoder.config._attn_implementation == before
    with pytest.raises(RuntimeError, match="inside"), attention_of(decoder, "eager"):
        assert decoder.config._attn_implementation == "eager"
        raise RuntimeError("inside")
    assert decoder.config._attn_implementation == before


def test_write_cache():
    cache, update = torch.zeros(2, 1, 5, 1), torch.tensor([1.0, 2.0]).view(1, 1, 2, 1).expand(2, 1, 2, 1)
    written = write_cache(cache, update, torch.tensor([0, 3]))
    assert written[:, 0, :, 0].tolist() == [[1, 2, 0, 0, 0], [0, 0, 0, 1, 2]]
    assert not cache.any()


def test_cache_names_and_shape():
    assert cache_names(2) == ["key.0", "value.0", "key.1", "value.1"]
    text = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    assert cache_shape(LlamaConfig(**text), 3, 7) == (3, 2, 7, 8)
    assert cache_shape(LlamaConfig(**text, head_dim=16), 3, 7) == (3, 2, 7, 16)
