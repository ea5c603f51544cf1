"""Every setting that transformers' generation config has, and what becomes of it here; docs/generation.md is its table.

Obeyed are the settings that choose a token or end an answer, refused those that would and are not built, and left out
those that change nothing but how transformers computes, or that belong to what is refused.
"""

from collections.abc import Callable, Collection, Mapping
from math import isfinite
from numbers import Integral, Real
from typing import Any

from .errors import RedipruneError

Check = tuple[Callable[[Any], bool], str]


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 0


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and isfinite(value)


def _is_id(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _are_ids(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(map(_is_id, value))


def _is_sequence(value: Any) -> bool:
    """Token ids of which the last is looked up."""
    return _are_ids(value) and bool(value) and min(value) >= 0


def _are_biases(value: Any) -> bool:
    if not isinstance(value, Mapping | list | tuple):
        return False
    pairs = value.items() if isinstance(value, Mapping) else value
    return all(
        isinstance(pair, list | tuple) and len(pair) == 2 and _is_sequence(pair[0]) and _is_number(pair[1])
        for pair in pairs
    )


_WHOLE: Check = (_is_whole, "a whole number, at least 0")
_FRACTION: Check = (lambda value: _is_number(value) and 0 <= value <= 1, "from 0 to 1")
_ID: Check = (lambda value: _is_id(value) and value >= 0, "a token id")
_IDS: Check = (_are_ids, "a list of token ids")
_ID_OR_IDS: Check = (lambda value: _is_id(value) or _are_ids(value), "a token id or a list of them")

# What a token is chosen by, and what ends an answer, with the form that each must have.
OBEYED: dict[str, Check] = {
    "do_sample": (lambda value: isinstance(value, bool), "true or false"),
    "temperature": (lambda value: _is_number(value) and value >= 0, "a number ≥ 0 (0 is greedy)"),
    "top_k": _WHOLE,
    "top_p": _FRACTION,
    "min_p": _FRACTION,
    "typical_p": _FRACTION,
    "epsilon_cutoff": _FRACTION,
    "eta_cutoff": _FRACTION,
    "repetition_penalty": (lambda value: _is_number(value) and value > 0, "a number > 0"),
    "sequence_bias": (_are_biases, "a list of pairs, token ids and their bias"),
    "no_repeat_ngram_size": _WHOLE,
    "bad_words_ids": (
        lambda value: isinstance(value, list | tuple) and all(map(_is_sequence, value)),
        "a list of lists of token ids",
    ),
    "min_length": _WHOLE,
    "min_new_tokens": _WHOLE,
    "forced_bos_token_id": _ID,
    "forced_eos_token_id": (lambda value: _ID[0](value) or _is_sequence(value), "a token id or a list of them"),
    "exponential_decay_length_penalty": (
        lambda value: isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_number, value)),
        "a pair of numbers, where it begins and its factor",
    ),
    "suppress_tokens": _IDS,
    "begin_suppress_tokens": _IDS,
    "eos_token_id": _ID_OR_IDS,
    "stop_strings": (
        lambda value: (
            isinstance(value, str)
            or (isinstance(value, list | tuple) and all(isinstance(string, str) for string in value))
        ),
        "a text or a list of texts",
    ),
}

# Settings that are no rule on logits, with the value that leaves them off. Set otherwise they are refused by name.
REFUSED: dict[str, Collection[Any]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "num_return_sequences": (1,),
    "guidance_scale": (1, 1.0),
    "penalty_alpha": (0, 0.0),
    "encoder_repetition_penalty": (1, 1.0),
    "encoder_no_repeat_ngram_size": (0,),
    "prompt_lookup_num_tokens": (0,),
    "token_healing": (False,),
    "dola_layers": (),
    "force_words_ids": (),
    "constraints": (),
    "forced_decoder_ids": (),
    "watermarking_config": (),
    "top_h": (),
    "max_time": (),
}

# Settings that choose no token here, and why not.
LEFT_OUT: dict[str, tuple[str, ...]] = {
    "the request says it (`max_new_tokens`, 128 unless given)": (
        "max_length",
        "max_new_tokens",
    ),
    "belongs to beams, which are refused": ("diversity_penalty", "early_stopping", "length_penalty", "low_memory"),
    "changes transformers' speed, not its tokens": (
        "assistant_confidence_threshold",
        "assistant_early_exit",
        "assistant_ensemble_weight",
        "assistant_lookbehind",
        "cache_config",
        "cache_implementation",
        "compile_config",
        "continuous_batching_config",
        "disable_compile",
        "is_assistant",
        "max_cache_len",
        "max_matching_ngram_size",
        "num_assistant_tokens",
        "num_assistant_tokens_schedule",
        "prefill_chunk_size",
        "speculation_type",
        "target_lookbehind",
        "use_cache",
        "use_mtp",
    ),
    "says what `generate` returns": (
        "output_attentions",
        "output_hidden_states",
        "output_logits",
        "output_scores",
        "return_dict_in_generate",
    ),
    "the order of tokens stays what it is": ("renormalize_logits",),
    "logits that are no numbers are an error in any case": ("remove_invalid_values",),
    "a prompt is encoded by the tokenizer, and one at a time": (
        "bos_token_id",
        "decoder_start_token_id",
        "pad_token_id",
    ),
}


def check_forms(config: dict[str, Any], file: str) -> dict[str, Any]:
    """Refuse a generation config whose settings are not of the form that they must have.

    Args:
        config: the settings by name.
        file: where they were read, for the message.

    Returns:
        The same.

    Raises:
        RedipruneError: names the setting, what it must be and what it is.
    """
    for name, (good, form) in OBEYED.items():
        value = config.get(name)
        if value is not None and not good(value):
            raise RedipruneError(f"{name} in {file} must be {form}, not {value!r}"[:300])
    return config


def refuse_unsupported(config: dict[str, Any]) -> None:
    """Refuse a generation config that asks for what is not done here.

    Raises:
        RedipruneError: names the setting, and how to go without it.
    """
    for name, off in REFUSED.items():
        value = config.get(name)
        if value is not None and value not in off:
            raise RedipruneError(
                f"the checkpoint's generation config asks for {name} = {value}, which is not supported; remove {name} from "
                "its generation_config.json and export it again"
            )
