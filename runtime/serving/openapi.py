"""What the API says of itself at /openapi.json: the chat route reads its body by itself, so FastAPI does not know it."""

from typing import Any

from .protocol import ChatRequest

_ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}

_COMPLETION: dict[str, Any] = {
    "type": "object",
    "required": ["id", "object", "created", "model", "choices", "usage", "rediprune"],
    "properties": {
        "id": {"type": "string"},
        "object": {"const": "chat.completion"},
        "created": {"type": "integer"},
        "model": {"type": "string"},
        "choices": {"type": "array", "minItems": 1, "maxItems": 1, "items": {"type": "object"}},
        "usage": {"type": "object"},
        "rediprune": {"type": "object"},
    },
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Responses that are errors, for a route's `responses`."""
    what = {
        401: "The API key is missing or wrong.",
        404: "There is no such model.",
        408: "The body did not arrive in time.",
        413: "The body, a picture or a clip is too large.",
        415: "The body is not JSON.",
        421: "The server does not answer for that host name.",
        429: "Too many requests wait; Retry-After says when to try again.",
        503: "The server is stopping.",
        504: "The request took too long.",
    }
    described = {status: what.get(status, "A field cannot be obeyed; `param` names it.") for status in statuses}
    return {
        status: {"description": text, "content": {"application/json": {"schema": _ERROR}}}
        for status, text in described.items()
    }


def chat_operation() -> dict[str, Any]:
    """Body and answers of the chat route."""
    schema = ChatRequest.model_json_schema(ref_template="#/components/schemas/{model}")
    definitions = schema.pop("$defs")
    answer = {
        "application/json": {"schema": _COMPLETION},
        "text/event-stream": {"schema": {"type": "string"}},
    }
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": _inlined(schema, definitions)}}},
        "responses": {"200": {"description": "The answer, whole or as server-sent events.", "content": answer}},
    }


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    """A schema with what it refers to in place of the references."""
    if isinstance(schema, list):
        return [_inlined(part, definitions) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(definitions[schema["$ref"].rsplit("/", 1)[-1]], definitions)
    return {name: _inlined(part, definitions) for name, part in schema.items() if name != "discriminator"}
