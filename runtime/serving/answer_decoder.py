"""What a served model needs of whatever decodes its answers: the bundle's own language stage, or one somewhere else."""

from collections.abc import Callable
from typing import Protocol

from ..prepared_request import PreparedRequest
from .answer_sink import Failure, Piece
from .translate import Translated

Deliver = Callable[[Piece | Failure], None]  # takes every piece of an answer; may be called from any thread


class AnswerJob(Protocol):
    """An answer under way.

    Attributes:
        prompt_tokens: positions of the prompt.
        reused: of these, whose KV cache was there.
        queued, started, prefilled: when it came, was taken up and had its prompt computed (`time.perf_counter`).
        times: when each token came.
    """

    @property
    def prompt_tokens(self) -> int: ...

    @property
    def reused(self) -> int: ...

    @property
    def queued(self) -> float: ...

    @property
    def started(self) -> float: ...

    @property
    def prefilled(self) -> float: ...

    @property
    def times(self) -> list[float]: ...

    def cancel(self) -> None:
        """Generate no further token."""
        ...


class AnswerDecoder(Protocol):
    """Decodes the answers of one bundle.

    Attributes:
        max_slots: requests decoded together at most.
        batches: whether these are more than one.
        waiting, running: requests that wait for their turn, and that are decoded.
        cache_usage: share of the KV cache in use, 0 to 1; 0 where it is not known.
    """

    @property
    def max_slots(self) -> int: ...

    @property
    def batches(self) -> bool: ...

    @property
    def waiting(self) -> int: ...

    @property
    def running(self) -> int: ...

    @property
    def cache_usage(self) -> float: ...

    def submit(self, asked: Translated, prepared: PreparedRequest, deliver: Deliver) -> AnswerJob:
        """Queue an encoded request; called by the event loop's thread.

        Raises:
            RedipruneError: it can never be answered here.
            QueueFullError, StoppedError: not now.
        """
        ...

    def fault(self) -> str | None:
        """Why no answer can be expected of it; None while all is well."""
        ...

    def stop(self) -> None:
        """Finish what runs, and take nothing more."""
        ...
