"""Text that comes token by token is the text of all tokens at once."""

import time
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rediprune.runtime.detokenize import AnswerText, Detokenizer
from rediprune.runtime.stop_strings import StopStrings, TokenBytes

from ..support.tokenizers import TOKENIZERS, WORDS, TokenizerCase, tokenizer_case

CASES = {name: tokenizer_case(name) for name in TOKENIZERS}


def pieces_of(case: TokenizerCase, ids: list[int]) -> list[str]:
    detokenizer = Detokenizer.for_processor(case)()  # pyright: ignore[reportArgumentType]
    return [*[detokenizer.add(token) for token in ids], detokenizer.finish()]


@pytest.mark.parametrize("name", CASES)
@given(data=st.data())
@settings(max_examples=300, deadline=None, derandomize=True)
def test_pieces_are_the_text_of_all_ids(name: str, data: st.DataObject) -> None:
    """Whatever the ids: special tokens, bytes that are no characters, spaces alone."""
    case = CASES[name]
    anything = st.integers(0, case.size - 1)
    # Bytes and special tokens lie at the ends of the vocabulary: half of the ids come from there.
    ends = st.one_of(st.integers(0, min(260, case.size - 1)), st.integers(max(0, case.size - 12), case.size - 1))
    ids = data.draw(st.lists(st.one_of(anything, ends), max_size=30))
    assert "".join(pieces_of(case, ids)) == case.decode(ids)


SPOKEN = ["a 你 🦊.", "  two  spaces", "é", "👩‍👩‍👧‍👦 done", "你好，世界", "The red ball.\n\n- one\n- two", "", " "]


@pytest.mark.parametrize("name", ["llama", "qwen2"])
@pytest.mark.parametrize("spoken", SPOKEN)
def test_pieces_of_written_text(name: str, spoken: str) -> None:
    case = CASES[name]
    ids = case.tokenizer.encode(spoken, add_special_tokens=False)
    pieces = pieces_of(case, ids)
    assert "".join(pieces) == case.decode(ids)
    assert "\ufffd" not in "".join(pieces)


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_text_comes_with_its_token(name: str) -> None:
    case = CASES[name]
    ids = case.tokenizer.encode("The cat is looking to the left.", add_special_tokens=False)
    *pieces, rest = pieces_of(case, ids)
    assert all(pieces) and rest == ""


def test_a_run_of_bytes_waits_for_its_end() -> None:
    """<0x41> alone is an A; with <0xE4> behind it the run is no UTF-8, and neither byte is a character."""
    case = CASES["llama"]
    a, e4, word = (case.tokenizer.convert_tokens_to_ids(token) for token in ("<0x41>", "<0xE4>", "▁red"))
    assert case.decode([a, word]) == "A red" and case.decode([a, e4, word]) == "\ufffd\ufffd red"
    assert pieces_of(case, [a, word]) == ["", "A red", ""]
    assert pieces_of(case, [a, e4, word]) == ["", "", "\ufffd\ufffd red", ""]


def test_the_cost_per_token_does_not_grow() -> None:
    """A token's window holds a few tokens, however long the answer."""
    case = CASES["llama"]
    widths: list[int] = []

    def decode(ids: list[int]) -> str:
        widths.append(len(ids))
        return case.decode(ids)

    ids = case.tokenizer.encode("The cat 你 is looking to the left. " * 60, add_special_tokens=False)
    detokenizer = Detokenizer(decode, case.tokenizer.all_special_ids)
    text = "".join(map(detokenizer.add, ids)) + detokenizer.finish()
    assert len(ids) > 500 and text == case.decode(ids)
    assert max(widths) < 12 and len(widths) <= 2 * len(ids)


# ------------------------------------------------------------------------------------------------------ answer text


def spell(text: str, name: str = "llama") -> list[int]:
    return CASES[name].tokenizer.encode(text, add_special_tokens=False)


def answer_of(ids: list[int], stop: list[str], name: str = "llama") -> tuple[list[str], AnswerText]:
    case = CASES[name]
    detokenizer = Detokenizer.for_processor(case)()  # pyright: ignore[reportArgumentType]
    answer = AnswerText(detokenizer, StopStrings(stop, TokenBytes(case.tokenizer), detokenizer.special))
    pieces = []
    for at, token in enumerate(ids):
        pieces.append(answer.add(token, at == len(ids) - 1))
        if answer.stopped:
            break
    return pieces, answer


@given(
    ids=st.lists(st.integers(3, WORDS - 1), min_size=1, max_size=20),
    at=st.integers(0, 30),
    size=st.integers(1, 6),
    name=st.sampled_from(["llama", "qwen2"]),
)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_answer_text_is_that_of_decoding_everything_at_every_token(
    ids: list[int], at: int, size: int, name: str
) -> None:
    whole = CASES[name].decode(ids).lstrip()
    stop = [whole[at : at + size]] if whole[at : at + size] and "\ufffd" not in whole[at : at + size] else []
    expected, stopped, needed = whole, False, len(ids)
    for n in range(1, len(ids) + 1):
        text = CASES[name].decode(ids[:n]).lstrip()
        if stop and stop[0] in text:
            expected, stopped, needed = text[: text.index(stop[0])], True, n
            break
    pieces, answer = answer_of(ids, stop, name)
    assert ("".join(pieces), answer.stopped, len(pieces)) == (expected, stopped, needed)


def test_a_stop_string_is_seen_with_its_last_token() -> None:
    ids = spell("The red ball.### More")
    pieces, answer = answer_of(ids, ["###"])
    assert "".join(pieces) == "The red ball." and answer.stopped
    needed = next(n for n in range(len(ids)) if "###" in CASES["llama"].decode(ids[:n]))
    assert len(pieces) == needed
    ids = spell("你 red")  # three bytes, which the detokenizer holds until the run ends
    pieces, answer = answer_of(ids, ["你"])
    assert "".join(pieces) == "" and answer.stopped and len(pieces) < len(ids)


def test_what_may_become_a_stop_string_is_shown_when_it_does_not() -> None:
    pieces, answer = answer_of(spell("a # b"), ["###"])
    assert "".join(pieces) == "a # b" and not answer.stopped
    assert not any(piece.endswith("#") for piece in pieces)


def test_a_long_answer_is_written_in_no_time() -> None:
    """2,000 tokens; decoding all of them at every step took 40 times as long."""
    ids = spell("The cat is looking to the left. " * 250)[:2000]
    begin = time.process_time()
    pieces, _ = answer_of(ids, ["</s>", "\nUSER:"])
    incremental = time.process_time() - begin
    begin = time.process_time()
    for at in range(0, len(ids), 20):
        CASES["llama"].decode(ids[: at + 1])
    whole = 20 * (time.process_time() - begin)
    assert len(ids) == 2000 and "".join(pieces) == CASES["llama"].decode(ids)
    assert incremental < whole / 2, (incremental, whole)


def test_of_reads_the_tokenizer() -> None:
    processor = SimpleNamespace(tokenizer=CASES["llama"].tokenizer, decode=CASES["llama"].decode)
    detokenizer = Detokenizer.for_processor(processor)()  # pyright: ignore[reportArgumentType]
    eos = CASES["llama"].tokenizer.eos_token_id
    assert detokenizer.add(eos) == "" and detokenizer.tail == ""
