"""The OpenAPI description of what is served, made from the table of endpoints. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable, Dict, Tuple

from claude_proxy.auth import OPEN_PATHS
from claude_proxy.config import VERSION

ApiDict = Dict[str, Any]

TEXT_TYPE: ApiDict = {"type": "string"}
COUNT_TYPE: ApiDict = {"type": "integer", "minimum": 0}
FLAG_TYPE: ApiDict = {"type": "boolean"}
NULLABLE_TEXT: ApiDict = {"type": ["string", "null"]}


def object_schema(properties: Mapping[str, ApiDict], *optional: str) -> ApiDict:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": dict(properties), "required": required}


USAGE_SCHEMA = {
    "type": "object",
    "properties": {"input_tokens": COUNT_TYPE, "output_tokens": COUNT_TYPE},
    "required": ["input_tokens", "output_tokens"],
}
MODEL_SCHEMA = object_schema(
    {
        "type": {"const": "model"},
        "id": TEXT_TYPE,
        "display_name": TEXT_TYPE,
        "created_at": TEXT_TYPE,
        "object": {"const": "model"},
        "created": COUNT_TYPE,
        "owned_by": TEXT_TYPE,
    }
)
# Upstream -> closed, open or half_open.
CIRCUIT_SCHEMA = {
    "type": "object",
    "additionalProperties": {"enum": ["closed", "open", "half_open"]},
}
SCHEMAS: Dict[str, ApiDict] = {
    "Message": object_schema(
        {
            "id": TEXT_TYPE,
            "type": {"const": "message"},
            "role": {"const": "assistant"},
            "model": TEXT_TYPE,
            "content": {"type": "array", "items": {"type": "object"}},
            "stop_reason": NULLABLE_TEXT,
            "stop_sequence": NULLABLE_TEXT,
            "usage": USAGE_SCHEMA,
        }
    ),
    "MessageRequest": object_schema(
        {
            "model": TEXT_TYPE,
            "max_tokens": COUNT_TYPE,
            "stream": FLAG_TYPE,
            "messages": {"type": "array", "items": {"type": "object"}},
        },
        "model",
        "max_tokens",
        "stream",
    ),
    "TokenCount": object_schema({"input_tokens": COUNT_TYPE}),
    "Model": MODEL_SCHEMA,
    "Models": object_schema(
        {
            "object": {"const": "list"},
            "data": {"type": "array", "items": MODEL_SCHEMA},
            "has_more": FLAG_TYPE,
            "first_id": NULLABLE_TEXT,
            "last_id": NULLABLE_TEXT,
        }
    ),
    "Health": object_schema(
        {
            "status": {"enum": ["ok", "draining"]},
            "version": TEXT_TYPE,
            "upstream": TEXT_TYPE,
            "circuit": CIRCUIT_SCHEMA,
        }
    ),
    "Readiness": object_schema(
        {"status": {"enum": ["ready", "draining", "upstreams_down"]}, "circuit": CIRCUIT_SCHEMA}
    ),
    "Livez": object_schema(
        {
            "status": TEXT_TYPE,
            "in_flight": COUNT_TYPE,
            "draining": FLAG_TYPE,
            "timestamp": TEXT_TYPE,
        }
    ),
    "Facts": object_schema(
        {
            "name": TEXT_TYPE,
            "version": TEXT_TYPE,
            "upstream": TEXT_TYPE,
            "upstream_is": TEXT_TYPE,
            "models": {"type": "object"},
            "client_key_required": FLAG_TYPE,
            "endpoints": {"type": "array", "items": TEXT_TYPE},
        }
    ),
    "Connection": object_schema({"status": TEXT_TYPE, "upstream": TEXT_TYPE}),
    "Error": object_schema(
        {
            "type": {"const": "error"},
            "request_id": TEXT_TYPE,
            "error": object_schema({"type": TEXT_TYPE, "message": TEXT_TYPE}),
        }
    ),
    "Document": object_schema(
        {"openapi": TEXT_TYPE, "info": {"type": "object"}, "paths": {"type": "object"}}
    ),
}

# (method, path) -> (status, schema) pairs; a schema's name, or a media type for what is no JSON.
ANSWERS: Dict[Tuple[str, str], Tuple[Tuple[int, str], ...]] = {
    ("POST", "/v1/messages"): ((200, "Message"),),
    ("POST", "/v1/messages/count_tokens"): ((200, "TokenCount"),),
    ("GET", "/v1/models"): ((200, "Models"),),
    ("GET", "/v1/models/{id}"): ((200, "Model"),),
    ("GET", "/health"): ((200, "Health"), (503, "Health")),
    ("GET", "/healthz"): ((200, "Health"), (503, "Health")),
    ("GET", "/livez"): ((200, "Livez"),),
    ("GET", "/readyz"): ((200, "Readiness"), (503, "Readiness")),
    ("GET", "/metrics"): ((200, "text/plain"),),
    ("GET", "/test-connection"): ((200, "Connection"),),
    ("GET", "/openapi.json"): ((200, "Document"),),
    ("GET", "/"): ((200, "Facts"),),
}


def openapi_document(endpoints: Mapping[Tuple[str, str], Callable[..., Any]]) -> ApiDict:
    """The description of these endpoints; what each does is the first line of its docstring."""
    paths: Dict[str, ApiDict] = {}
    for (method, path), endpoint in endpoints.items():
        summary = (endpoint.__doc__ or "").strip().splitlines()[0]
        paths.setdefault(path, {})[method.lower()] = describe_operation(method, path, summary)
    keys = {
        "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
        "bearer": {"type": "http", "scheme": "bearer"},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "claude_proxy", "version": VERSION},
        "security": [{"key": []}, {"bearer": []}],
        "paths": paths,
        "components": {"schemas": SCHEMAS, "securitySchemes": keys},
    }


def describe_operation(method: str, path: str, summary: str) -> ApiDict:
    answers = {
        str(status): describe_answer(schema) for status, schema in ANSWERS.get((method, path), ())
    }
    found: ApiDict = {
        "summary": summary,
        "responses": {**answers, "default": describe_answer("Error")},
    }
    if path == "/v1/messages":
        found["responses"]["200"]["content"]["text/event-stream"] = {"schema": TEXT_TYPE}
    if method == "POST":
        found["requestBody"] = {"required": True, **json_content("MessageRequest")}
    if "{id}" in path:
        found["parameters"] = [{"name": "id", "in": "path", "required": True, "schema": TEXT_TYPE}]
    if path in OPEN_PATHS:
        found["security"] = []
    return found


def describe_answer(schema: str) -> ApiDict:
    if "/" in schema:
        return {"description": schema, "content": {schema: {"schema": TEXT_TYPE}}}
    return {"description": schema, **json_content(schema)}


def json_content(schema: str) -> ApiDict:
    return {"content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}}
