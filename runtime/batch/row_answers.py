"""Answers the rows of a batch on one loaded bundle, many at once."""

import asyncio
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..serving.api_error import ApiError
from ..serving.chat_answer import Serving, begin_chat, whole_answer
from ..serving.request_body import check_body
from ..serving.served_model import timed_out
from .batch_rows import BadRowError, Row

_AGAIN = (429, 503)  # what passes by itself
_TRIES = 6


@dataclass(frozen=True)
class RowAnswers:
    """What answers rows.

    Attributes:
        serving: with one model.
        context: all that decides an answer besides its row (`batch_rows.context_of`).
    """

    serving: Serving
    context: str

    @property
    def model(self) -> str:
        """The name of the model."""
        return next(iter(self.serving.models))

    async def answer(self, row: Row, custom_id: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """One line of the output: the answer, or why there is none."""
        request_id = uuid.uuid4().hex
        try:
            status, told = 200, await self._ask(body, request_id)
        except ApiError as error:
            status, told = error.status, error.body()
        except Exception as error:  # a fault of ours must not cost the other rows
            status, told = 500, ApiError(500, f"a fault of the tool ({type(error).__name__})").body()
        line = self._line(row, custom_id)
        line["response"] = {"status_code": status, "request_id": request_id, "body": told}
        if status != 200:
            line["error"] = {"code": told["error"]["code"] or f"status_{status}", "message": told["error"]["message"]}
        return line

    def refusal(self, row: Row, error: BadRowError) -> dict[str, Any]:
        """The line of a row that is no request."""
        return self._line(row, error.custom_id) | {"error": {"code": error.code, "message": error.message}}

    def _line(self, row: Row, custom_id: str | None) -> dict[str, Any]:
        return {"id": row.identity(self.context), "custom_id": custom_id, "response": None, "error": None}

    async def _ask(self, body: Mapping[str, Any], request_id: str) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        checked = check_body(body)
        for attempt in range(_TRIES):
            deadline = loop.time() + self.serving.settings.timeout
            try:
                async with asyncio.timeout_at(deadline):
                    begun = await begin_chat(self.serving, checked, request_id, {})
                return await whole_answer(begun, deadline)
            except TimeoutError:
                raise timed_out() from None
            except ApiError as error:
                if error.status not in _AGAIN or attempt == _TRIES - 1:
                    raise
                await asyncio.sleep(min(0.2 * 2**attempt, 5))
        raise AssertionError
