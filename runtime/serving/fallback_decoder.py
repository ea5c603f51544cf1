"""Answers from somewhere else, and from the bundle's own language stage where that fails before its first token."""

from ..errors import RedipruneError
from ..prepared_request import PreparedRequest
from .answer_decoder import AnswerDecoder, AnswerJob, Deliver
from .answer_sink import Failure, Piece
from .api_error import ApiError
from .log import log
from .translate import Translated


class FallbackJob:
    """An `AnswerJob` of whichever decoder has it now."""

    def __init__(self) -> None:
        self.current: AnswerJob | None = None

    def _now(self) -> AnswerJob:
        assert self.current is not None
        return self.current

    @property
    def prompt_tokens(self) -> int:
        return self._now().prompt_tokens

    @property
    def reused(self) -> int:
        return self._now().reused

    @property
    def queued(self) -> float:
        return self._now().queued

    @property
    def started(self) -> float:
        return self._now().started

    @property
    def prefilled(self) -> float:
        return self._now().prefilled

    @property
    def times(self) -> list[float]:
        return self._now().times

    def cancel(self) -> None:
        self._now().cancel()


class FallbackDecoder:
    """An `AnswerDecoder` of two.

    Args:
        first: asked first.
        second: asked where the first cannot take a request, or fails with 502 or 503 before a token.
    """

    def __init__(self, first: AnswerDecoder, second: AnswerDecoder):
        self._first, self._second = first, second

    @property
    def batches(self) -> bool:
        return self._second.batches

    @property
    def max_slots(self) -> int:
        return self._first.max_slots

    @property
    def waiting(self) -> int:
        return self._first.waiting + self._second.waiting

    @property
    def running(self) -> int:
        return self._first.running + self._second.running

    @property
    def cache_usage(self) -> float:
        return self._second.cache_usage

    def submit(self, asked: Translated, prepared: PreparedRequest, deliver: Deliver) -> AnswerJob:
        job, begun = FallbackJob(), False

        def hand_on(piece: Piece | Failure) -> None:
            nonlocal begun
            if isinstance(piece, Failure) and not begun and _elsewhere(piece.error):
                log.warning("%s; answered here", piece.error)
                try:
                    job.current = self._second.submit(asked, prepared, deliver)
                except Exception:  # nor here: what failed first is told
                    deliver(piece)
                return
            begun = True
            deliver(piece)

        try:
            job.current = self._first.submit(asked, prepared, hand_on)
        except RedipruneError:  # such as videos, which are never handed on
            return self._second.submit(asked, prepared, deliver)
        return job

    def fault(self) -> str | None:
        return self._second.fault()

    def stop(self) -> None:
        self._first.stop()
        self._second.stop()


def _elsewhere(error: Exception) -> bool:
    return isinstance(error, ApiError) and error.status in (502, 503)
