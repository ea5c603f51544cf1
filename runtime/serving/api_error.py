"""The one error that a client sees, in the form that OpenAI's clients read."""

from typing import Any


class ApiError(Exception):
    """A request that is answered with an error status.

    Attributes:
        status: HTTP status, 4xx where the client can mend it.
        param: the field of the request that is wrong, None where it is none.
        code: a short machine-readable name.
        headers: further headers, e.g. Retry-After.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        """`{"error": {"message", "type", "param", "code"}}`."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        if self.status == 401:
            kind = "authentication_error"
        elif self.status == 429:
            kind = "rate_limit_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def too_many() -> ApiError:
    """The queue is full; OpenAI's clients try again after the time that is said."""
    return ApiError(429, "too many requests wait; try again", code="queue_full", headers={"Retry-After": "1"})


def timed_out() -> ApiError:
    """The deadline passed."""
    return ApiError(504, "the request took too long", code="timeout")


def refuse(param: str, message: str, status: int = 400) -> ApiError:
    """A field that cannot be obeyed, named."""
    return ApiError(status, message, param=param, code="invalid_value")
