"""A batch on this machine: rows are read, asked and written in order, with as many under way as keep the decoder busy."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from ..errors import RedipruneError
from .batch_output import BatchOutput
from .batch_rows import BadRowError, Row, RowReader
from .row_answers import RowAnswers

Progress = Callable[[], object]  # called after every answer


async def answer_rows(
    rows: Iterator[Row],
    reader: RowReader,
    answers: RowAnswers,
    output: BatchOutput,
    window: int,
    strict: bool,
    progress: Progress,
) -> None:
    """Answer rows and write the answers in their order.

    Args:
        rows: those without an answer.
        reader: that saw the rows before these.
        answers: what answers them.
        output: where the answers go.
        window: rows under way at once.
        strict: end at the first row without an answer; it is not written.
        progress: called after every answer.

    Raises:
        RedipruneError: the output cannot be written; where it is strict, a row has no answer.
    """
    under_way: deque[asyncio.Task[dict[str, Any]]] = deque()
    number = output.total.requests
    try:
        while True:
            while len(under_way) < window and (row := next(rows, None)) is not None:
                under_way.append(asyncio.create_task(_line(row, reader, answers)))
            if not under_way:
                return
            line = await under_way[0]
            under_way.popleft()
            number += 1
            if strict and line["error"] is not None:
                raise RedipruneError(told_of(number, line))
            output.write(line)
            progress()
    finally:
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)


def told_of(number: int, line: dict[str, Any]) -> str:
    """Why a row has no answer, in one line."""
    own = f" ({line['custom_id']})" if line["custom_id"] else ""
    return f"row {number}{own}: {line['error']['message']}; the rows before it are answered, mend it and run this again"


async def _line(row: Row, reader: RowReader, answers: RowAnswers) -> dict[str, Any]:
    try:
        custom_id, body = reader.request(row, answers.model)
    except BadRowError as error:
        return answers.refusal(row, error)
    return await answers.answer(row, custom_id, body)
