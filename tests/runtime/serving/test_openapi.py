"""The API held against what it says of itself, with bodies that schemathesis makes of the schema."""

from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, seed, settings
from schemathesis import openapi
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from .conftest import Running

pytestmark = pytest.mark.server

CHAT = "/v1/chat/completions"
CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance, status_code_conformance]


def test_the_schema_has_the_chat_bodys_fields(tiny: Running) -> None:
    schema = httpx.get(f"{tiny.url}/openapi.json").json()
    body = schema["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"model", "messages", "keep", "max_tokens", "rediprune"} <= set(body["properties"])
    assert "$ref" not in str(body)


def held(operation: Any, mode: GenerationMode, examples: int) -> set[int]:
    """Send what schemathesis makes of an operation's schema; the statuses that came back, each as the schema says."""
    statuses = set()

    @seed(0)
    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(operation.as_strategy(generation_mode=mode))
    def answered(case: Any) -> None:
        if isinstance(case.body, dict):  # else none would be answered, and every answer be long
            case.body |= {"model": "tiny"}
            if isinstance(case.body.get("max_tokens"), int):
                case.body["max_tokens"] = min(case.body["max_tokens"], 3)
        statuses.add(case.call_and_validate(checks=CHECKS, timeout=60).status_code)

    answered()
    return statuses


@pytest.fixture(scope="module")
def operations(tiny: Running) -> dict[str, Any]:
    """By path."""
    schema = openapi.from_url(f"{tiny.url}/openapi.json")
    return {operation.path: operation for operation in (result.ok() for result in schema.get_all_operations())}


def test_every_route_answers_as_the_schema_says(operations: dict[str, Any]) -> None:
    simple = [path for path in operations if path != CHAT]
    assert {"/health", "/version", "/metrics", "/v1/models"} <= set(simple)
    for path in simple:
        assert held(operations[path], GenerationMode.POSITIVE, 10) <= {200, 404}


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(GenerationMode))
def test_every_body_is_answered_as_the_schema_says(operations: dict[str, Any], mode: GenerationMode) -> None:
    statuses = held(operations[CHAT], mode, 200)
    assert 400 in statuses and statuses <= {200, 400, 404, 413, 415}
