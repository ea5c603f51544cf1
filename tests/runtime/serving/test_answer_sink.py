"""What one request's tokens become."""

from typing import Any

import numpy as np
import pytest
from rediprune.runtime.sampling import Sampling
from rediprune.runtime.serving.answer_sink import AnswerSink, Failure, Piece, token_logprobs


class Text:
    """Text of tokens: each is its number; "7" ends an answer like a stop string."""

    stopped = False

    def add(self, token: int, last: bool) -> str:
        self.stopped = token == 7
        return "" if self.stopped else str(token)


def given(
    tokens: list[int], room: int, stop: tuple[int, ...] = (9,), logprobs: Any = None, at_once: bool = False
) -> tuple[list[Any], list[Any]]:
    """What a sink delivers and returns when its logits say these tokens."""
    pieces: list[Any] = []
    text: Any = Text()
    sink = AnswerSink(Sampling(), [1, 2, 3], 5, text, stop, room, logprobs, pieces.append, at_once)
    returned = []
    for token in tokens:
        returned.append(sink.token(np.eye(10, dtype=np.float32)[token]))
    assert sink.token_ids == tokens and len(sink.times) == len(tokens) and sink.times == sorted(sink.times)
    return pieces, returned


def test_a_stop_token_a_stop_string_and_the_length_end_an_answer() -> None:
    pieces, returned = given([4, 5, 9], 10)
    assert returned == [4, 5, None] and pieces[-1] == Piece("9", None, "stop")
    pieces, returned = given([4, 7], 10)
    assert returned == [4, None] and pieces == [Piece("4"), Piece("", None, "stop")]
    pieces, returned = given([4, 5], 2)
    assert returned == [4, None] and pieces == [Piece("4"), Piece("5", None, "length")]
    pieces, returned = given([4, 9], 2)  # the last that fits is a stop token
    assert returned[-1] is None and pieces[-1].finish_reason == "stop"


def test_without_stop_tokens_an_answer_goes_on() -> None:
    _, returned = given([9, 9, 4], 4, stop=())
    assert returned == [9, 9, 4]


def test_where_nobody_reads_along_the_answer_comes_in_one_piece() -> None:
    pieces, returned = given([4, 5, 6, 9], 10, at_once=True)
    assert returned == [4, 5, 6, None] and pieces == [Piece("4569", None, "stop")]
    assert given([4, 7], 10, at_once=True)[0] == [Piece("4", None, "stop")]
    pieces, _ = given([4, 5], 2, logprobs=lambda logits, token: {"token": token}, at_once=True)
    assert [piece.logprobs for piece in pieces] == [{"token": 4}, {"token": 5}]  # one piece for each


def test_a_fault_is_handed_on() -> None:
    pieces: list[Any] = []
    text: Any = Text()
    fault = ValueError("x")
    AnswerSink(Sampling(), [], 0, text, (), 4, None, pieces.append).failed(fault)
    assert pieces == [Failure(fault)]


def test_log_probabilities_are_the_models() -> None:
    logits = np.array([1.0, 3.0, 2.0, -1.0], np.float32)
    expected = logits.astype(float) - np.log(np.exp(logits.astype(float)).sum())
    got = token_logprobs(logits, 2, 3, lambda token: "aéc d"[token])
    assert got["logprob"] == pytest.approx(expected[2], abs=1e-12)
    assert [entry["token"] for entry in got["top_logprobs"]] == ["é", "c", "a"]
    assert got["top_logprobs"][0]["bytes"] == [0xC3, 0xA9]
    assert token_logprobs(logits, 2, 0, str)["top_logprobs"] == []
    ruled_out = np.array([0.0, -np.inf], np.float32)
    assert token_logprobs(ruled_out, 0, 2, str)["top_logprobs"][1]["logprob"] == -9999.0  # JSON has no −∞
