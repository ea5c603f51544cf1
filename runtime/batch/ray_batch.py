"""A batch on a Ray cluster: processes that load the bundle once answer blocks of rows, and this one writes them in order.

Ray Data hands the blocks out, gives those of a process that died to another one, and keeps their order. What is written is
what makes a row answered: a driver that is killed goes on from the file, as on one machine.
"""

import asyncio
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext

from ..errors import RedipruneError
from ..serving.cluster.ray_cluster import ray_cluster
from .batch_job import Answering
from .batch_output import BatchOutput
from .batch_rows import BadRowError, Row, RowReader
from .local_batch import Progress, told_of


class RowWorker:
    """A process that answers blocks of rows; it loads the bundle when it starts.

    Args:
        answering: what answers rows.
    """

    def __init__(self, answering: Answering):
        self._stack, self._window = ExitStack(), answering.window
        self._answers = self._stack.enter_context(answering.opened())
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def __call__(self, block: dict[str, Any]) -> dict[str, Any]:
        """The lines of the output for a block of rows: columns `number`, `text`, `too_long`, `code`, `message`, `custom_id`."""
        names = ("number", "text", "too_long", "code", "message", "custom_id")
        rows = zip(*(block[name].tolist() for name in names), strict=True)
        return {"line": asyncio.run_coroutine_threadsafe(self._lines(list(rows)), self._loop).result()}

    async def _lines(self, rows: list[tuple[Any, ...]]) -> list[str]:
        gate = asyncio.Semaphore(self._window)

        async def line(number: int, text: bytes, too_long: bool, code: str, message: str, custom_id: str) -> str:
            row = Row(number, text, too_long)
            if code:
                return json.dumps(self._answers.refusal(row, BadRowError(code, message, custom_id or None)))
            async with gate:
                own, body = RowReader().request(row, self._answers.model)
                return json.dumps(await self._answers.answer(row, own, body))

        return list(await asyncio.gather(*(line(*each) for each in rows)))


def spread_over(address: str | None, workers: int, cpus: float) -> Callable[..., float]:
    """What answers rows on a cluster.

    Args:
        address: of the cluster (`ray_cluster`).
        workers: processes that load the bundle.
        cpus: cores that each of them takes.
    """

    def spread(
        rows: Iterator[Row],
        reader: RowReader,
        answering: Answering,
        output: BatchOutput,
        total: int,
        strict: bool,
        told: Progress,
    ) -> float:
        """Answer rows as `local_batch.answer_rows` does; when the first answer came (`time.perf_counter`).

        Raises:
            RedipruneError: the cluster has too few cores or is not there; what `answer_rows` raises.
        """
        with ray_cluster(address, torch=answering.loading.backend == "eager"):
            there = ray.cluster_resources().get("CPU", 0)
            if there < workers * cpus:
                raise RedipruneError(
                    f"{workers} workers of {cpus:g} cores need {workers * cpus:g}, and the cluster has {there:g}; lower "
                    "--workers or --worker-cpus, or add machines"
                )
            ready, number = 0.0, output.total.requests
            for line in _lines(rows, reader, answering, workers, cpus):
                ready, number = ready or time.perf_counter(), number + 1
                if strict and line["error"] is not None:
                    raise RedipruneError(told_of(number, line))
                output.write(line)
                told()
            return ready or time.perf_counter()

    return spread


def _lines(
    rows: Iterator[Row], reader: RowReader, answering: Answering, workers: int, cpus: float
) -> Iterator[dict[str, Any]]:
    """The lines of the output, in order."""
    context = DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    items = [_item(row, reader) for row in rows]
    if not items:
        return
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    block = max(1, min(2 * answering.settings.max_batch, -(-len(items) // workers)))
    data = ray.data.from_items(items, override_num_blocks=-(-len(items) // block))
    answered = data.map_batches(
        RowWorker,
        fn_constructor_args=(answering,),
        batch_size=block,
        num_cpus=cpus,
        compute=ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=2),
    )
    for found in answered.iter_rows():
        yield json.loads(found["line"])


def _item(row: Row, reader: RowReader) -> dict[str, Any]:
    """A row as it travels, with what is wrong with it."""
    item = {
        "number": row.number,
        "text": row.text,
        "too_long": row.too_long,
        "code": "",
        "message": "",
        "custom_id": "",
    }
    try:
        reader.request(row, "")
    except BadRowError as error:
        item |= {"code": error.code, "message": error.message, "custom_id": error.custom_id or ""}
    return item
