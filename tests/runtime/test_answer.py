"""What an answer says of the time it took, and what it keeps."""

import time
from collections.abc import Generator
from typing import Any

import pytest
from rediprune.runtime.answer import Answer, Stream
from rediprune.runtime.detokenize import AnswerText, Detokenizer
from rediprune.runtime.stop_strings import StopStrings
from rediprune.runtime.timing import StageClock, Stopwatch

STEP = 0.02  # seconds that a token takes
PAUSE = 0.1  # seconds that the reader takes after a piece


def tokens(closed: list[bool]) -> Generator[int, None, None]:
    try:
        token = 0
        while True:
            time.sleep(STEP)
            yield token
            token += 1
    finally:
        closed.append(True)


def stream_of(count: int, stop_ids: Any = (), closed: list[bool] | None = None) -> Stream:
    text = AnswerText(
        Detokenizer(lambda ids: "".join(f"{token} " for token in ids)), StopStrings([], lambda token: None)
    )
    answer = Answer(timings=StageClock().seconds)
    return Stream(answer, tokens([] if closed is None else closed), text, stop_ids, count, Stopwatch())


def test_the_readers_pauses_do_not_count() -> None:
    stream = stream_of(5)
    time.sleep(PAUSE)  # before the first piece is asked for, too
    pieces = []
    for piece in stream:
        pieces.append(piece)
        time.sleep(PAUSE)
    seconds = stream.answer.timings
    assert pieces == ["0 ", "1 ", "2 ", "3 ", "4 "]
    assert STEP <= seconds["time_to_first_token"] < STEP + PAUSE
    assert 4 * STEP <= seconds["decode"] < 4 * STEP + PAUSE
    assert seconds["total"] == pytest.approx(seconds["time_to_first_token"] + seconds["decode"], abs=0.01)


def test_an_answer_is_complete_with_its_last_piece() -> None:
    stream = stream_of(3)
    assert [next(stream), next(stream), next(stream)] == ["0 ", "1 ", "2 "]
    assert stream.answer.text == "0 1 2 " and stream.answer.finish_reason == "length"
    assert stream.answer.timings["total"] > 0 and next(stream, None) is None
    stopped = stream_of(9, stop_ids={1})
    assert "".join(stopped) == "0 1 " and stopped.answer.finish_reason == "stop"
    assert stopped.answer.token_ids == [0, 1]


def test_what_is_read_so_far_is_in_the_answer() -> None:
    stream = stream_of(9)
    next(stream)
    assert (stream.answer.text, stream.answer.token_ids) == ("0 ", [0])
    assert iter(stream) is stream


@pytest.mark.parametrize("how", ["end", "close", "drop"])
def test_the_kv_cache_is_freed(how: str) -> None:
    """At the end, when the stream is closed, and when it is dropped, without waiting for the garbage collector."""
    closed: list[bool] = []
    stream = stream_of(3, closed=closed)
    next(stream)
    assert not closed
    if how == "end":
        list(stream)
    elif how == "close":
        stream.close()
        assert next(stream, None) is None
    else:
        del stream
    assert closed == [True]


def test_stopwatch() -> None:
    watch = Stopwatch()
    time.sleep(STEP)
    watch.pause()
    before = watch.seconds
    time.sleep(PAUSE)
    watch.pause()  # twice is once
    assert watch.seconds == before >= STEP
    watch.resume()
    watch.resume()
    time.sleep(STEP)
    assert before + STEP <= watch.seconds < before + PAUSE
