"""The server's log on stderr: a line per request, as text or as JSON."""

import json
import logging
from typing import Any

log = logging.getLogger("rediprune.serve")

_FIELDS = ("request_id", "seconds")


class JsonFormatter(logging.Formatter):
    """A JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        document: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        document |= {name: getattr(record, name) for name in _FIELDS if hasattr(record, name)}
        if record.exc_info:
            document["exception"] = self.formatException(record.exc_info)
        return json.dumps(document)


class TextFormatter(logging.Formatter):
    """Time, level and message; of a request also its seconds and id."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        line = super().formatMessage(record)
        told = vars(record)  # with what the log call gave as `extra`
        if "seconds" in told:
            line += f" {told['seconds'] * 1e3:.0f} ms {told['request_id']}"
        return line


def log_config(form: str) -> dict[str, Any]:
    """The logging configuration, in the form of `logging.config.dictConfig`; `form` is "text" or "json"."""
    formatter = JsonFormatter if form == "json" else TextFormatter
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"()": formatter}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
        "loggers": {
            name: {"handlers": ["stderr"], "level": "INFO", "propagate": False}
            for name in ("uvicorn", "uvicorn.error", "rediprune")
        },
    }
