"""The OpenAPI description: every endpoint is in it, and live answers fit it."""

from __future__ import annotations

import json

import pytest

from claude_proxy.app import ENDPOINTS
from claude_proxy.openapi import ANSWERS, SCHEMAS, openapi_document
from tests.support import (
    ScriptedUpstream,
    ask,
    message_body,
    running_proxy,
    text_answer,
    upstream_environ,
)

TYPES = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool, "null": type(None)}


def misfits(value, schema, place="$"):
    """Where a value does not fit a schema of the kinds that are used here."""
    if "$ref" in schema:
        schema = SCHEMAS[schema["$ref"].rpartition("/")[2]]
    if "const" in schema and value != schema["const"]:
        return [place]
    if "enum" in schema and value not in schema["enum"]:
        return [place]
    kinds = schema.get("type", [])
    kinds = kinds if isinstance(kinds, list) else [kinds]
    if kinds and not any(isinstance(value, TYPES[kind]) for kind in kinds):
        return [place]
    found = [f"{place}.{name}" for name in schema.get("required", ()) if name not in value]
    if isinstance(value, dict):
        for name, inner in schema.get("properties", {}).items():
            found += misfits(value[name], inner, f"{place}.{name}") if name in value else []
    if isinstance(value, list):
        for item in value:
            found += misfits(item, schema.get("items", {}), f"{place}[]")
    return found


def test_every_endpoint_is_described_and_no_other():
    document = openapi_document(ENDPOINTS)
    described = {(m.upper(), path) for path, operations in document["paths"].items() for m in operations}
    assert described == set(ENDPOINTS) == set(ANSWERS)
    for operations in document["paths"].values():
        for operation in operations.values():
            assert operation["summary"] and "default" in operation["responses"]
    used = set(json.dumps(document["paths"]).split("#/components/schemas/"))
    assert {part.split('"')[0] for part in used if not part.startswith("{")} <= set(SCHEMAS)


LIVE = [(method, path, schema) for (method, path), answers in ANSWERS.items()
        for status, schema in answers if status == 200 and schema in SCHEMAS]


@pytest.mark.parametrize("method,path,schema", LIVE, ids=[f"{row[0]} {row[1]}" for row in LIVE])
def test_live_answers_fit(form, method, path, schema):
    with ScriptedUpstream(text_answer("fine")) as upstream, running_proxy(form, upstream_environ(upstream)) as proxy:
        where = path.replace("{id}", "claude-opus-4-8")
        answer = ask(proxy.port, message_body() if method == "POST" else None, path=where, method=method)
        assert answer.status == 200
        assert misfits(answer.json, SCHEMAS[schema]) == []


def test_live_errors_fit(form):
    with running_proxy(form) as proxy:
        for path, method in (("/nowhere", "GET"), ("/v1/messages", "GET"), ("/v1/models/none", "GET")):
            answer = ask(proxy.port, path=path, method=method)
            assert answer.status in (404, 405) and misfits(answer.json, SCHEMAS["Error"]) == []


def test_a_misfit_is_seen():
    assert misfits({"input_tokens": "5"}, SCHEMAS["TokenCount"]) == ["$.input_tokens"]
    assert misfits({}, SCHEMAS["Livez"]) == ["$.status", "$.in_flight", "$.draining", "$.timestamp"]
