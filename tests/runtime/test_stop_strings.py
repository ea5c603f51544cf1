"""Stop strings are found where transformers' criterion finds them, and the text before them is the answer."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rediprune.runtime.detokenize import AnswerText, Detokenizer
from rediprune.runtime.stop_strings import StopMatch, StopStrings, TokenBytes
from transformers.generation.stopping_criteria import StopStringCriteria

from ..support.tokenizers import tokenizer_case

FEW = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
# Of byte-level BPE, of SentencePiece with byte fallback and without, of WordPiece, and a trained checkpoint's.
KINDS = ["llama", "qwen2", "unigram", "wordpiece", "demo"]


def theirs(name: str, prompt: list[int], ids: list[int], strings: list[str]) -> int | None:
    """After how many of the ids transformers stops."""
    criterion = StopStringCriteria(tokenizer_case(name).tokenizer, strings)
    for count in range(1, len(ids) + 1):
        if criterion(torch.tensor([[*prompt, *ids[:count]]]), None)[0]:  # pyright: ignore[reportArgumentType]
            return count
    return None


def ours(name: str, prompt: list[int], ids: list[int], strings: list[str]) -> tuple[int | None, str]:
    """After how many the runtime does, and the text that it shows; what is shown is never taken back."""
    case = tokenizer_case(name)
    detokenizer = Detokenizer.for_processor(case)()  # pyright: ignore[reportArgumentType]
    answer = AnswerText(detokenizer, StopStrings(strings, TokenBytes(case.tokenizer), detokenizer.special, prompt))
    text = ""
    for count, token in enumerate(ids, 1):
        text += answer.add(token, count == len(ids))
        if answer.stopped:
            return count, text
    return None, text


def token_ids(name: str, data: st.DataObject, most: int) -> list[int]:
    """Special tokens and bytes lie at the ends of the vocabulary: half of the ids come from there."""
    size = tokenizer_case(name).size
    ends = st.one_of(st.integers(0, min(260, size - 1)), st.integers(max(0, size - 12), size - 1))
    return data.draw(st.lists(st.one_of(st.integers(0, size - 1), ends), max_size=most))


@pytest.mark.parametrize("name", KINDS)
@given(data=st.data())
@FEW
def test_as_transformers_whatever_the_ids(name: str, data: st.DataObject) -> None:
    """Stop strings are parts of what the ids spell, special tokens' names and the prompt's end included, or anything."""
    case = tokenizer_case(name)
    prompt, ids = token_ids(name, data, 4), token_ids(name, data, 12)
    token_bytes = TokenBytes(case.tokenizer)
    spelt = b"".join(token_bytes(token) or b"" for token in (*prompt, *ids)).decode(errors="ignore")
    at, size = data.draw(st.integers(0, max(0, len(spelt) - 1))), data.draw(st.integers(1, 9))
    some = st.text(" \na你e.<>/s", min_size=1, max_size=4)
    strings = [string for string in (spelt[at : at + size], data.draw(some)) if string]
    try:
        expected = theirs(name, prompt, ids, strings)
    except ValueError as error:
        assert "unable to identify tokens" in str(error)  # no token of this vocabulary can end any of them
        expected = None
    count, text = ours(name, prompt, ids, strings)
    assert count == expected
    if count is None:
        assert text == case.decode(ids).lstrip()


@pytest.mark.parametrize("name", ["llama", "qwen2", "demo"])
@given(data=st.data())
@FEW
def test_the_answer_is_the_text_before(name: str, data: st.DataObject) -> None:
    """Of written text, wherever the stop string begins in it."""
    case = tokenizer_case(name)
    written = data.draw(st.text(" \nab你é.🦊", min_size=1, max_size=12))
    ids = case.spell(written)
    whole = b"".join(TokenBytes(case.tokenizer)(token) or b"" for token in ids).decode()
    at = data.draw(st.integers(0, max(0, len(whole) - 1)))
    string = whole[at : at + data.draw(st.integers(1, 5))]
    count, text = ours(name, [], ids, [string] if string else [])
    if string:
        assert count == theirs(name, [], ids, [string])
        assert text.lstrip() == whole[: whole.index(string)].lstrip()
    else:
        assert text == case.decode(ids).lstrip()


SPOKEN = "What is this"


@pytest.mark.parametrize("name", ["llama", "qwen2", "demo"])
@pytest.mark.parametrize(
    ("opening", "string"),
    [("\n", "\n"), ("\n\n", "\n\n"), ("", " is"), ("", "his"), ("", "is th"), ("", " What"), ("\n", "\nWhat")],
)
def test_white_space_at_the_start(name: str, opening: str, string: str) -> None:
    """koboldcpp#182: the space at an answer's start is not shown, but a stop string meets it."""
    case = tokenizer_case(name)
    newline = case.tokenizer.convert_tokens_to_ids("<0x0A>")
    opened = [newline] * len(opening) if isinstance(newline, int) and newline != case.tokenizer.unk_token_id else None
    ids = [*(case.spell(opening) if opened is None else opened), *case.spell(SPOKEN)]
    expected = theirs(name, [], ids, [string])
    count, text = ours(name, [], ids, [string])
    assert count == expected and not text.startswith((" ", "\n"))
    if not string.strip():
        assert expected == len(opening) and text == ""


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_a_special_token_is_met_by_its_name(name: str) -> None:
    case = tokenizer_case(name)
    eos = case.tokenizer.eos_token
    ids = [*case.spell("a red ball"), case.tokenizer.eos_token_id, *case.spell("and")]
    count, text = ours(name, [], ids, [eos])
    assert count == theirs(name, [], ids, [eos]) == len(case.spell("a red ball")) + 1
    assert text == "a red ball"


def test_a_stop_string_may_begin_in_the_prompt() -> None:
    case = tokenizer_case("llama")
    prompt, ids = case.spell("USER: what ASSISTANT:"), case.spell("yes no")
    assert ours("llama", prompt, ids, ["ASSISTANT: yes"]) == (theirs("llama", prompt, ids, ["ASSISTANT: yes"]), "")
    assert ours("llama", prompt, ids, ["ASSISTANT:"])[0] is None  # what the prompt holds by itself does not count


def test_a_token_that_is_not_known_parts() -> None:
    known = {1: b"##", 2: b"#"}
    stops = StopStrings(["###"], known.get)
    assert [stops.add(token) for token in (1, 9, 2)] == [None, None, None]
    assert stops.add(1) == StopMatch(2, b"", b"###")


@pytest.mark.parametrize(
    ("tokens", "held"),
    [
        ([], 0), (["red"], 0), (["red #"], 1), (["red ", "##"], 2), (["red ## "], 0), (["red <"], 1), (["red <", "/"], 2),
        (["#"], 1), (["</", "s"], 3), (["<##"], 2), (["##<"], 1), (["!</", "s"], 1),
    ],
)  # fmt: skip
def test_what_may_be_the_beginning_is_held(tokens: list[str], held: int) -> None:
    """Tokens of the vocabulary by number; what begins with ! is special and not shown."""
    stops = StopStrings(["###", "</s>"], lambda at: tokens[at].lstrip("!").encode(), [0] if "!</" in tokens else [])
    assert all(stops.add(at) is None for at in range(len(tokens)))
    assert stops.held == held


def test_of_several_that_which_begins_first() -> None:
    pieces = [b"yes", b"\nUser: and</s>", b"</s>"]
    for strings, expected in (
        (["</s>", "\nUser:", "User"], (1, b"")),
        (["User"], (1, b"\n")),
        (["s"], (0, b"ye")),
        (["es\n"], (0, b"y")),
    ):
        stops = StopStrings(strings, lambda at: pieces[at])
        match = next(found for found in map(stops.add, range(3)) if found)
        assert (match.tokens, match.before) == expected


def test_no_stop_string_looks_at_no_token() -> None:
    stops = StopStrings([], lambda token: pytest.fail("looked at"), prompt=[1, 2])
    assert stops.add(3) is None and stops.held == 0


def test_the_cost_per_token_does_not_grow() -> None:
    """What lies behind the longest stop string is forgotten."""
    stops = StopStrings(["\nUSER:"], lambda token: b"word ")
    for _ in range(10_000):
        stops.add(1)
    assert len(stops._seen) <= 2


@pytest.mark.parametrize("name", ["llama", "qwen2", "demo"])
def test_bytes_are_those_of_the_criterion(name: str) -> None:
    tokenizer = tokenizer_case(name).tokenizer
    mode = StopStringCriteria._get_stop_string_matching_mode(tokenizer)
    clean, ids = StopStringCriteria.clean_tokenizer_vocab(tokenizer, stop_string_matching_mode=mode)
    token_bytes = TokenBytes(tokenizer)
    assert [token_bytes(token) for token in ids] == list(clean)
