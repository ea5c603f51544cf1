"""The answers of a batch on disk: whole lines in the order of the rows, each once, whenever the process ends.

A line is written by one call and synchronized to the disk; what a killed process left of its last line is cut when the next
one goes on, and nothing else is. Every line has the hash of its row as its `id`, so that answers to another input are never continued.
"""

import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import RedipruneError
from .batch_rows import ID_PREFIX, Row

_START = f'{{"id":"{ID_PREFIX}'.encode()  # of every line that `BatchOutput.write` writes


@dataclass
class Tally:
    """What the answers so far add up to."""

    requests: int = 0
    errors: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    visual_tokens: int = 0
    kept_tokens: int = 0

    def add(self, line: Mapping[str, Any]) -> None:
        """Count one line of the output."""
        self.requests += 1
        self.errors += line.get("error") is not None
        body = (line.get("response") or {}).get("body") or {}
        usage, own = body.get("usage") or {}, body.get("rediprune") or {}
        self.prompt_tokens += usage.get("prompt_tokens", 0)
        self.completion_tokens += usage.get("completion_tokens", 0)
        self.visual_tokens += own.get("visual_tokens", 0)
        self.kept_tokens += own.get("kept_tokens", 0)


class BatchOutput:
    """An output file, held by one process.

    Args:
        path: of the file; it may hold answers of an earlier run.

    Raises:
        RedipruneError: it cannot be written, or another process writes it.
    """

    def __init__(self, path: Path):
        self.path, self.found, self.total = path, Tally(), Tally()
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        except OSError as error:
            raise RedipruneError(f"'{path}' cannot be written ({error.strerror}); give -o another file") from None
        try:
            _lock(self._file)
        except OSError:
            os.close(self._file)
            raise RedipruneError(f"another process writes '{path}'; wait for it, or give -o another file") from None
        self._error: OSError | None = None
        self._written = threading.Condition()
        self._dirty = self._closing = False
        self._syncing = threading.Thread(target=self._sync, name="rediprune-sync", daemon=True)
        self._syncing.start()

    def resume(self, rows: Iterator[Row], context: str, note: Callable[[Row], object]) -> None:
        """Take the answers that are there, and leave `rows` at the first without one.

        Args:
            rows: of the input, from the first on.
            context: what answers them (`batch_rows.context_of`).
            note: is told every row that has an answer.

        Raises:
            RedipruneError: they are not answers to these rows by this bundle.
        """
        end, number = 0, 0
        with os.fdopen(os.dup(self._file), "rb") as file:
            file.seek(0)
            for line in file:
                if line[-1:] != b"\n" and line[: len(_START)] == _START[: len(line)]:
                    break  # a process ended here
                number += 1
                row = next(rows, None)
                told: Any = None
                with suppress(ValueError, RecursionError):
                    told = json.loads(line)
                if row is None or not isinstance(told, dict) or told.get("id") != row.identity(context):
                    raise RedipruneError(
                        f"'{self.path}' is not empty, and line {number} is not the answer to row {number} by this "
                        "bundle with these settings; give -o another file, or remove it"
                    )
                note(row)
                self.found.add(told)
                self.total.add(told)
                end += len(line)
        os.ftruncate(self._file, end)
        os.lseek(self._file, end, os.SEEK_SET)

    def write(self, line: Mapping[str, Any]) -> None:
        """Append one answer.

        Raises:
            RedipruneError: the disk is full, or fails.
        """
        data = memoryview(
            json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n"
        )
        try:
            if self._error is not None:
                raise self._error
            while data:  # a call may write a part: what is left of a line is cut by the next run
                data = data[os.write(self._file, data) :]
        except OSError as error:
            raise RedipruneError(
                f"'{self.path}' cannot be written ({error.strerror}); make room, and run the same command again: it goes on"
            ) from None
        self.total.add(line)
        with self._written:
            self._dirty = True
            self._written.notify()

    def close(self) -> None:
        """Synchronize what was written, and let the file go.

        Raises:
            RedipruneError: the disk is full, or fails.
        """
        with self._written:
            self._closing = True
            self._written.notify()
        self._syncing.join()
        os.close(self._file)
        if self._error is not None:
            raise RedipruneError(
                f"'{self.path}' cannot be written ({self._error.strerror}); run the same command again: it goes on"
            )

    def _sync(self) -> None:
        """Synchronize to the disk beside the work: one call for all lines that came meanwhile."""
        while True:
            with self._written:
                self._written.wait_for(lambda: self._dirty or self._closing)
                dirty, closing, self._dirty = self._dirty, self._closing, False
            if dirty:
                try:
                    os.fsync(self._file)
                except OSError as error:
                    self._error = error
                    return
            if closing:
                return


def _lock(file: int) -> None:
    """Hold a file until it is closed, or the process ends; raises OSError where another process does."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)  # pyright: ignore[reportAttributeAccessIssue]
    else:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
