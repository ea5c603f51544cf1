"""Lines of the log."""

import json
import logging
import logging.config

import pytest
from rediprune.runtime.serving.log import JsonFormatter, TextFormatter, log_config


def record(message: str, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("rediprune.serve", logging.INFO, __file__, 1, message, (), None)
    made.__dict__.update(extra)
    return made


def test_a_request_as_text_and_as_json() -> None:
    told = record("GET /x 200", request_id="abc", seconds=0.0123)
    assert TextFormatter().format(told).endswith("INFO GET /x 200 12 ms abc")
    document = json.loads(JsonFormatter().format(told))
    assert document["message"] == "GET /x 200" and document["request_id"] == "abc" and document["seconds"] == 0.0123
    assert "\n" not in JsonFormatter().format(record("two\nlines"))
    assert TextFormatter().format(record("plain")).endswith("INFO plain")


@pytest.mark.parametrize("form", ["text", "json"])
def test_the_configuration_is_one(form: str) -> None:
    config = log_config(form)
    logging.config.DictConfigurator(config | {"loggers": {}, "handlers": {}})
    assert "rediprune" in config["loggers"]
