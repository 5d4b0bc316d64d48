"""The endpoints, without a socket."""

from __future__ import annotations

import io
import json

import pytest

from claude_proxy.answering import header_text
from claude_proxy.app import App, endpoint_pattern, find_endpoint
from claude_proxy.assembly import build_app
from claude_proxy.config import VERSION
from claude_proxy.config_load import load_config
from claude_proxy.errors import ProxyError
from claude_proxy.exchange import Exchange
from claude_proxy.http1 import HttpRequest
from claude_proxy.inflight import Inflight
from claude_proxy.log import Log


def make(environ=None) -> App:
    log = Log(io.StringIO(), "debug")
    return build_app(load_config(environ or {}), log, Inflight(log))


APP = make()


def call(method, path, data=None, query="", app=APP, exchange=None):
    body = json.dumps(data).encode() if data is not None else b""
    return app.answer(HttpRequest(method, path, query, {}, body=body), exchange or Exchange())


def json_of(response):
    return json.loads(response.body)


@pytest.mark.parametrize("method,path,status", [
    ("GET", "/nothing", 404), ("POST", "/v1", 404), ("GET", "/v1/messages", 405), ("DELETE", "/", 405),
    ("POST", "/v1/models", 405), ("HEAD", "/v1/messages", 405), ("OPTIONS", "*", 404), ("GET", "/health/x", 404),
    ("get", "/", 405),
])
def test_what_is_not_there(method, path, status):
    with pytest.raises(ProxyError) as caught:
        find_endpoint(method, path)
    assert caught.value.status == status
    if status == 405:
        assert dict(caught.value.headers)["allow"]


@pytest.mark.parametrize("method,path", [("HEAD", "/"), ("GET", "/health/"), ("HEAD", "/v1/models"),
                                         ("GET", "/v1/models/a/b"), ("POST", "/v1/messages/")])
def test_what_is_there(method, path):
    assert callable(find_endpoint(method, path))


ANSWERED_BY = [
    # (upstream, method, path, the name of what answers)
    ("demo", "POST", "/v1/messages", "create_message"), ("demo", "POST", "/v1/messages/", "create_message"),
    ("demo", "POST", "/v1/messages/count_tokens", "count_tokens"), ("demo", "GET", "/v1/models", "list_models"),
    ("demo", "OPTIONS", "/v1/messages", "answer_preflight"), ("demo", "OPTIONS", "/nothing", "answer_preflight"),
    ("anthropic", "POST", "/v1/messages", "create_message"), ("anthropic", "POST", "/v1/messages/", "create_message"),
    ("anthropic", "POST", "/v1/messages/count_tokens", "count_tokens"), ("anthropic", "GET", "/v1/messages", "relay_other"),
    ("anthropic", "GET", "/v1/models", "relay_other"), ("anthropic", "POST", "/v1/messages/batches", "relay_other"),
    ("anthropic", "OPTIONS", "/v1/messages", "answer_preflight"), ("anthropic", "GET", "/health", "show_health"),
]


@pytest.mark.parametrize("upstream,method,path,name", ANSWERED_BY)
def test_what_answers(upstream, method, path, name):
    app = make({"UPSTREAM": upstream, "CORS_ALLOWED_ORIGINS": "https://app.example"})
    headers = {"origin": "https://app.example", "access-control-request-method": "POST"}
    assert app.endpoint(HttpRequest(method, path, "", headers)).__name__ == name


@pytest.mark.parametrize("path,pattern", [
    ("/v1/messages", "/v1/messages"), ("/v1/messages/", "/v1/messages"), ("/v1/models/a/b", "/v1/models/{id}"),
    ("/", "/"), ("//", "/"), ("", "/"), ("/v1/models/", "/v1/models"), ("/v1", ""), ("/V1/messages", ""),
])
def test_a_path_as_the_table_has_it(path, pattern):
    assert endpoint_pattern(path) == pattern


TOLD_HEADERS = [
    ("plain", "a:b; as named", "a:b; as named"), ("not of ASCII", "\u00fc:b", "?:b"), ("a line end", "a\r\nx: y", "a??x: y"),
    ("DEL and NUL", "a\x7f\0", "a??"), ("a blank that is none", "a\u00a0b", "a?b"), ("long", "x" * 2000, "x" * 1024),
]


@pytest.mark.parametrize("name,text,told", TOLD_HEADERS, ids=[row[0] for row in TOLD_HEADERS])
def test_text_in_a_header(name, text, told):
    assert header_text(text) == told


def test_the_facts_have_no_secret():
    app = make({"OPENAI_API_KEY": "sk-secretsecret", "OPENAI_BASE_URL": "http://127.0.0.1:1/v1",
                "ANTHROPIC_API_KEY": "client-secret"})
    facts = call("GET", "/", app=app).body.decode()
    assert "secret" not in facts
    assert json.loads(facts)["client_key_required"] is True
    assert "POST /v1/messages" in json.loads(facts)["endpoints"]


def test_health_and_livez():
    app = make()
    for path in ("/health", "/healthz"):
        facts = {"status": "ok", "version": VERSION, "upstream": "demo", "circuit": {}}
        assert json_of(call("GET", path, app=app)) == facts
    assert json_of(call("GET", "/readyz", app=app)) == {"status": "ready", "circuit": {}}
    assert json_of(call("GET", "/livez", app=app)).keys() == {"status", "in_flight", "draining", "timestamp"}
    app.inflight.draining = True
    for path in ("/health", "/healthz", "/readyz"):
        assert call("GET", path, app=app).status == 503
    assert json_of(call("GET", "/livez", app=app))["draining"] is True


def test_models_have_the_keys_of_both_families():
    page = json_of(call("GET", "/v1/models", query="limit=1000"))
    assert page.keys() == {"object", "data", "has_more", "first_id", "last_id"}
    row = page["data"][0]
    assert (row["type"], row["object"]) == ("model", "model")
    assert {"id", "display_name", "created_at", "created", "owned_by"} <= row.keys()
    assert json_of(call("GET", f"/v1/models/{row['id']}")) == row


PAGES = [
    ("limit=2", [0, 1], True), ("limit=100", [0, 1, 2, 3], False), ("after_id=ID0", [1, 2, 3], False),
    ("after_id=ID0&limit=1", [1], True), ("before_id=ID2&limit=1", [1], False), ("after_id=unknown", [0, 1, 2, 3], False),
]


@pytest.mark.parametrize("query,rows,more", PAGES)
def test_pages_of_models(query, rows, more):
    ids = [row["id"] for row in json_of(call("GET", "/v1/models"))["data"]]
    for index, model_id in enumerate(ids):
        query = query.replace(f"ID{index}", model_id)
    page = json_of(call("GET", "/v1/models", query=query))
    assert [row["id"] for row in page["data"]] == [ids[row] for row in rows]
    assert page["has_more"] is more


@pytest.mark.parametrize("path,query,status", [
    ("/v1/models/none", "", 404), ("/v1/models", "limit=0", 400), ("/v1/models", "limit=x", 400)])
def test_models_that_are_not_there(path, query, status):
    with pytest.raises(ProxyError) as caught:
        call("GET", path, query=query)
    assert caught.value.status == status


def test_a_model_id_may_be_escaped():
    app = make({"OPENAI_API_KEY": "k", "OPENAI_BASE_URL": "http://127.0.0.1:1", "BIG_MODEL": "openai/gpt-x"})
    for path in ("/v1/models/openai/gpt-x", "/v1/models/openai%2Fgpt-x"):
        assert json_of(call("GET", path, app=app))["id"] == "openai/gpt-x"


@pytest.mark.parametrize("data", [
    {"messages": [{"role": "user", "content": "hello there"}]},
    {"model": "claude-sonnet-5", "system": "s", "messages": [{"role": "user", "content": []}], "tools": []},
])
def test_count_tokens(data):
    count = json_of(call("POST", "/v1/messages/count_tokens", data))
    assert list(count) == ["input_tokens"] and count["input_tokens"] > 0


def test_the_connection_test_tells_the_model():
    told = json_of(call("GET", "/test-connection"))
    assert (told["status"], told["upstream"], told["model"]) == ("ok", "demo", "demo")


def test_a_model_of_an_upstream_that_is_not_set_up():
    with pytest.raises(ProxyError) as caught:
        call("POST", "/v1/messages", {"model": "openai:gpt-4o", "messages": [{"role": "user", "content": "x"}]})
    assert caught.value.status == 404 and "openai" in caught.value.message


def test_deep_nesting_is_the_clients_mistake():
    deep = current = {}
    for _ in range(400):
        current["properties"] = {}
        current = current["properties"]
    tools = [{"name": "t", "input_schema": deep}]
    data = {"model": "m", "messages": [{"role": "user", "content": "x"}], "tools": tools}
    try:
        assert call("POST", "/v1/messages", data).status == 200
    except ProxyError as error:
        assert error.status == 400
