"""The Anthropic API behind the proxy: what each side sends is what the other side sees."""

from __future__ import annotations

import contextlib
import gzip
import json
import threading
import time

import pytest

from claude_proxy.exchange import Exchange
from claude_proxy.relay import RelayWatch
from tests.support import (
    HANG_UP,
    LAST,
    STREAM_HEAD,
    WAIT_FOR_CLOSE,
    Pause,
    RawClient,
    ScriptedUpstream,
    ask,
    http_answer,
    http_chunk,
    json_answer,
    message_body,
    messages_stream,
    request_bytes,
    running_proxy,
    wait_until,
)

pytestmark = pytest.mark.usefixtures("no_thread_left")

SECRET_TEXT = "the patient's name"
MESSAGE = {"id": "msg_up", "type": "message", "role": "assistant", "model": "claude-sonnet-5",
           "content": [{"type": "text", "text": SECRET_TEXT}], "stop_reason": "end_turn", "stop_sequence": None,
           "usage": {"input_tokens": 11, "output_tokens": 3, "cache_read_input_tokens": 5}}
OWN_KEY = ("x-api-key: client-key",)
WHOLE = json_answer(200, MESSAGE, "request-id: req_up")


@pytest.fixture
def start(form):
    """start(script, ..., environ=...) -> (proxy, upstream), both stopped afterwards."""
    with contextlib.ExitStack() as stack:
        def go(*scripts, environ=None, **changes):
            upstream = stack.enter_context(ScriptedUpstream(*scripts))
            settings = {"ANTHROPIC_FORWARD_URL": upstream.url, **(environ or {})}
            return stack.enter_context(running_proxy(form, settings, **changes)), upstream
        yield go


def log_line(proxy):
    wait_until(lambda: any(line["event"] == "request" for line in proxy.log_lines()))
    return [line for line in proxy.log_lines() if line["event"] == "request"][-1]


def frame(event):
    return f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()


def stream_of(*pieces, head=STREAM_HEAD):
    """Pieces of a body, as chunks of a stream; other steps stand between them as they are."""
    return [head, *(http_chunk(p) if isinstance(p, bytes) else p for p in pieces), LAST]


def folded(*events):
    return stream_of(*(e if isinstance(e, bytes) else frame(e) for e in events))


# --- requests: what travels --------------------------------------------------------------------

SAME = [
    ("anthropic-beta", "claude-code-20250219,unheard-of-2031-01-01"), ("anthropic-version", "2031-01-01"),
    ("anthropic-workspace-id", "w-1"), ("anthropic-dangerous-direct-browser-access", "true"),
    ("x-claude-code-session-id", "s-1"), ("x-claude-code-agent-id", "a0123456789abcdef"),
    ("user-agent", "claude-cli/2.1.197 (external, cli)"), ("x-stainless-retry-count", "0"),
    ("x-anything", "a  b, c;d=\"e\"\t f"), ("x-latin", "Z\xfcrich"), ("accept", "application/json"),
]


@pytest.mark.parametrize("name,value", SAME, ids=[name for name, _ in SAME])
def test_headers_that_pass(start, name, value):
    proxy, upstream = start(WHOLE)
    with RawClient(proxy.port) as client:
        head, _, body = request_bytes(message_body(), fields=OWN_KEY).partition(b"\r\n\r\n")
        client.send(head + f"\r\n{name}: {value}\r\n\r\n".encode("latin-1") + body)
        assert client.answer().status == 200
    assert upstream.requests[0].headers[name] == value


HOP = ["connection: keep-alive, x-for-this-hop", "x-for-this-hop: 1", "keep-alive: timeout=5", "te: trailers",
       "proxy-authorization: Basic eDp5", "proxy-connection: keep-alive", "trailer: x", "cookie: session=1",
       "x-proxy-notes: 1", "upgrade: h2c", "expect: 100-continue"]


@pytest.mark.parametrize("field", HOP, ids=[field.partition(":")[0] for field in HOP])
def test_headers_that_stay_here(start, field):
    proxy, upstream = start(WHOLE)
    assert ask(proxy.port, message_body(), fields=(*OWN_KEY, HOP[0], field) if field != HOP[0] else (*OWN_KEY, field)).status == 200
    assert field.partition(":")[0] not in upstream.requests[0].headers


def test_the_hops_own_headers_are_ours(start):
    proxy, upstream = start(WHOLE)
    ask(proxy.port, message_body(), fields=(*OWN_KEY, "accept-encoding: gzip, br"))
    sent = upstream.requests[0].headers
    assert (sent["host"], sent["accept-encoding"]) == (f"127.0.0.1:{upstream.port}", "identity")


def test_what_a_client_leaves_out(start):
    proxy, upstream = start(WHOLE, environ={"ANTHROPIC_VERSION": "2029-09-09"})
    ask(proxy.port, message_body(), fields=OWN_KEY)
    ask(proxy.port, message_body(), fields=(*OWN_KEY, "anthropic-version: 2023-06-01"))
    ask(proxy.port, path="/v1/models", method="GET", fields=OWN_KEY)
    assert [r.headers["anthropic-version"] for r in upstream.requests] == ["2029-09-09", "2023-06-01", "2029-09-09"]
    assert [r.headers.get("content-type") for r in upstream.requests] == ["application/json"] * 2 + [None]


KEY, BEARER = "x-api-key: client-key", "authorization: Bearer client-token"
GATE, GATE_BEARER = "x-api-key: gate", "authorization: Bearer gate"
BOTH_OWN = {"x-api-key": "client-key", "authorization": "Bearer client-token"}
REPLACED = {"CUSTOM_HEADER_AUTHORIZATION": "Bearer set-here"}
TOKEN = "0123456789abcdef0123456789ABCDEF"
REDCAP = {"UPSTREAM": "redcap", "REDCAP_API_URL": "http://127.0.0.1:9/api/", "MODEL_MAP": "claude-*=anthropic:c"}
# (settings, the client's headers, what the API sees; None: refused here with 401)
CREDENTIALS = [
    ({}, (KEY,), {"x-api-key": "client-key"}),
    ({}, (BEARER,), {"authorization": "Bearer client-token"}),
    ({}, (KEY, BEARER), BOTH_OWN),
    ({}, (), None),
    ({"ANTHROPIC_API_KEY": "gate"}, (GATE, BEARER), {"authorization": "Bearer client-token"}),
    ({"ANTHROPIC_API_KEY": "gate"}, (KEY, GATE_BEARER), {"x-api-key": "client-key"}),
    ({"ANTHROPIC_API_KEY": "gate"}, (KEY, "authorization: bearer  gate"), {"x-api-key": "client-key"}),
    ({"ANTHROPIC_API_KEY": "sk-ant-both"}, ("x-api-key: sk-ant-both",), {"x-api-key": "sk-ant-both"}),
    ({"ANTHROPIC_API_KEY": "gate"}, (GATE, GATE_BEARER), None),
    ({"ANTHROPIC_API_KEY": "gate"}, (GATE,), None),
    ({"ANTHROPIC_API_KEY": "gate"}, (KEY,), None),
    ({"ANTHROPIC_UPSTREAM_KEY": "proxy-key"}, (KEY, BEARER), {"x-api-key": "proxy-key"}),
    ({"ANTHROPIC_UPSTREAM_KEY": "proxy-key"}, (), {"x-api-key": "proxy-key"}),
    ({"ANTHROPIC_API_KEY": "gate", "ANTHROPIC_UPSTREAM_KEY": "proxy-key"}, (GATE,), {"x-api-key": "proxy-key"}),
    (REPLACED, (KEY, BEARER), {"authorization": "Bearer set-here"}),
    (REPLACED, (), {"authorization": "Bearer set-here"}),
    ({"CUSTOM_HEADER_X_API_KEY": "set-here"}, (KEY, BEARER), {"x-api-key": "set-here"}),
    (REDCAP, (f"x-api-key: {TOKEN}", BEARER), {"authorization": "Bearer client-token"}),
    (REDCAP, (f"authorization: Bearer {TOKEN}",), None),
]


@pytest.mark.parametrize("environ,fields,expected", CREDENTIALS)
def test_credentials(start, environ, fields, expected):
    proxy, upstream = start(WHOLE, environ=environ)
    answer = ask(proxy.port, message_body(), fields=fields)
    if expected is None:
        assert answer.status == 401 and answer.json["error"]["type"] == "authentication_error"
        assert answer.headers["x-should-retry"] == "false" and not upstream.requests
        return
    sent = upstream.requests[0].headers
    assert answer.status == 200
    assert {name: sent[name] for name in ("x-api-key", "authorization") if name in sent} == expected


REQUESTS = [
    ("POST", "/v1/messages?beta=true", b'{"model":"m"}', "application/json"),
    ("POST", "/v1/messages?a=%20b&&c==d&beta", b'{"model":"m"}', "application/json"),
    ("POST", "/v1/messages/", b'{"model":"m"}', "application/json"),
    ("POST", "/v1/messages/count_tokens?beta=true", b'{ "model":"m","messages":[] }', "application/json"),
    ("POST", "/v1/messages/batches", b'{"requests":[]}', "application/json"),
    ("GET", "/v1/messages/batches?limit=2&after_id=x", None, None),
    ("GET", "/v1/models?limit=1000", None, None),
    ("GET", "/v1/models/claude-x%2Fy", None, None),
    ("DELETE", "/v1/files/file_1", None, None),
    ("PUT", "/v1/new//thing;v=1/~x", b"\x00\xff raw", "application/octet-stream"),
    ("PATCH", "/v1/x", b"", "text/plain"),
    ("POST", "/v1/files", b'--B\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n\x00\xfe\r\n--B--\r\n',
     "multipart/form-data; boundary=B"),
]


@pytest.mark.parametrize("method,path,body,kind", REQUESTS, ids=[f"{r[0]} {r[1]}" for r in REQUESTS])
def test_every_path_is_passed_on(start, method, path, body, kind):
    proxy, upstream = start(json_answer(200, {"fine": 1.50}, "request-id: req_up"))
    lines = [f"{method} {path} HTTP/1.1", "host: localhost", *OWN_KEY]
    lines += [f"content-type: {kind}", f"content-length: {len(body)}"] if kind else []
    with RawClient(proxy.port) as client:
        client.send("\r\n".join(lines).encode() + b"\r\n\r\n" + (body or b""))
        answer = client.answer()
    assert (answer.status, answer.json, answer.headers["request-id"]) == (200, {"fine": 1.5}, "req_up")
    sent = upstream.requests[0]
    assert (sent.line, sent.body) == (f"{method} {path} HTTP/1.1", body or b"")
    assert sent.headers.get("content-type") == kind and sent.headers["x-api-key"] == "client-key"
    assert answer.headers["x-proxy-route"].startswith("anthropic:")


def test_head_has_the_length_of_what_get_would_bring(start):
    head = b"HTTP/1.1 200 X\r\ncontent-type: application/json\r\ncontent-length: 1234\r\n\r\n"
    chunked = b"HTTP/1.1 200 X\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    proxy, upstream = start([head], [chunked], WHOLE)
    with RawClient(proxy.port) as client:
        for length in ("1234", None):
            client.send(request_bytes(path="/v1/models", method="HEAD", fields=OWN_KEY))
            answer = client.answer(head_only=True)
            assert (answer.status, answer.headers.get("content-length")) == (200, length)
        client.send(request_bytes(message_body(), fields=OWN_KEY))
        assert client.answer().json == MESSAGE
    assert [r.line.split()[0] for r in upstream.requests] == ["HEAD", "HEAD", "POST"]


def test_chunked_requests_arrive_whole(start):
    proxy, upstream = start(WHOLE)
    body = b'{"model":"claude-x", "messages": [ ] }'
    with RawClient(proxy.port) as client:
        client.send(b"POST /v1/messages HTTP/1.1\r\nhost: localhost\r\nx-api-key: k\r\ncontent-type: application/json\r\n"
                    b"transfer-encoding: chunked\r\n\r\n" + http_chunk(body[:9]) + http_chunk(body[9:]) + LAST)
        assert client.answer().status == 200
    assert upstream.requests[0].body == body
    assert upstream.requests[0].headers["content-length"] == str(len(body))


DEEP = b'{"model":"m","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
HUGE = b"9" * 6000
BODIES = [
    b"", b"not json", b"[1,2]", b"\xff\xfe", b'{"model":"a', b'"text"', b"5", b"{}", b"null", b'{"model":null}',
    b'{"model":5}', b'{"model":["x"],"messages":{}}', b'{"stream":"yes","model":"m"}',
    b'{"model":"m","t":NaN,"u":-Infinity,"v":1e999}', b'{"model":"m","n":' + HUGE + b',"f":0.10000000000000000001}',
    DEEP, b'\xef\xbb\xbf{"model":"m"}', b'{"model":"m","model":"m","a":1,"a":2}',
    b' \r\n{\t"model" : "m" ,"s":"\\u00e9\\/\\ud83d" }\n', b'{"model":"m","x":"a\nb"}',
    '{"model":"claude-\u00fc","x":"\u2028\U0001f600"}'.encode(),
    b'{"model":"m","system":[{"type":"text","text":"x-anthropic-billing-header: cc_version=2; cch=0;"},{"type":"text",'
    b'"text":"You are","cache_control":{"type":"ephemeral"}}],"messages":[]}',
]


@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
def test_bodies_are_passed_on_as_they_are(start, body, path):
    proxy, upstream = start(json_answer(400, {"type": "error", "error": {"type": "x", "message": "y"}}))
    answer = ask(proxy.port, body, path=path, fields=OWN_KEY)
    assert answer.status == 400 and answer.json["error"]["message"] == "y"
    assert upstream.requests[0].body == body


LONG = "x" * 5000


@pytest.mark.parametrize("environ,read", [({}, False), ({"FALLBACK_MODELS": "claude-b"}, False), ({"MODEL_MAP": "claude-b=claude-c"}, True),
                                          ({"BIG_MODEL": "claude-big"}, True), ({"ANTHROPIC_DEMOTE_NONSTREAMING": "true"}, True)],
                         ids=["plain", "fallback", "MODEL_MAP", "BIG_MODEL", "demotion"])
def test_a_long_body_is_read_only_where_a_setting_asks(start, environ, read):
    """Its middle is no JSON: whoever reads it knows no member of it."""
    body = b'{"model":"claude-a","messages":[%s],"stream":true}' % LONG.encode()
    proxy, upstream = start(WHOLE, environ=environ)
    assert ask(proxy.port, body, fields=OWN_KEY).status == 200
    assert upstream.requests[0].body == body
    assert log_line(proxy)["stream"] is not read


def test_what_a_rule_asks_of_a_long_body_is_read(start):
    body = json.dumps({"model": "claude-a", "system": [{"type": "text", "text": LONG}] * 2, "tools": [],
                       "messages": [{"role": "user", "content": "hi"}], "stream": True}).encode()
    proxy, upstream = start(WHOLE, environ={"BACKGROUND_MODEL": "claude-small"})
    assert ask(proxy.port, body, fields=OWN_KEY).status == 200
    assert upstream.requests[0].body == body.replace(b'"claude-a"', b'"claude-small"')


def test_unreadable_bodies_pass_where_models_are_mapped(start):
    environ = {"DEFAULT_MODEL": "claude-x", "ANTHROPIC_DEMOTE_NONSTREAMING": "true", "UPSTREAM": "anthropic"}
    proxy, upstream = start(json_answer(400, {"error": "no"}), environ=environ)
    for body in (b"not json", b"\xff", DEEP):
        assert ask(proxy.port, body, fields=OWN_KEY).json == {"error": "no"}
    assert [r.body for r in upstream.requests] == [b"not json", b"\xff", DEEP]


# --- requests: what is changed -----------------------------------------------------------------

ODD = '"n":%s,"f":1.50e+00,"a":1,"a":2,"s":"\\u00e9\\/","messages":[ {"role":"user","content":"hi"} ]' % ("1" * 40)
MAPPED = {"MODEL_MAP": "claude-sonnet-4=claude-sonnet-5,fast=claude-haiku-9"}
EDITED = [
    (MAPPED, '{"model":"claude-sonnet-4-20250514", %s}', '{"model":"claude-sonnet-5", %s}'),
    (MAPPED, '{ %s,\n "model" :\t"fast" }', '{ %s,\n "model" :\t"claude-haiku-9" }'),
    (MAPPED, '{"mod\\u0065l":"fast",%s,"model":"fast"}', '{"mod\\u0065l":"claude-haiku-9",%s,"model":"claude-haiku-9"}'),
    ({}, '{"model":"claude-opus-4-8[1m]",%s}', '{"model":"claude-opus-4-8",%s}'),
    ({}, '{"model":"anthropic:claude-opus-4-8",%s}', '{"model":"claude-opus-4-8",%s}'),
    ({"DEFAULT_MODEL": "claude-x"}, '{ %s}', '{"model": "claude-x",  %s}'),
    ({"DEFAULT_MODEL": "claude-x"}, '{%s,"model":"other"}', '{%s,"model":"claude-x"}'),
]


@pytest.mark.parametrize("environ,before,after", EDITED)
@pytest.mark.parametrize("path", ["/v1/messages?beta=true", "/v1/messages/count_tokens"])
def test_a_routed_model_is_the_only_change(start, environ, before, after, path):
    proxy, upstream = start(WHOLE, environ=environ)
    assert ask(proxy.port, (before % ODD).encode(), path=path, fields=OWN_KEY).status == 200
    assert upstream.requests[0].body.decode() == after % ODD


TEXT = '{"type":"text","text":"\\u00e9 1.0"}'
OURS = '{"type":"thinking","thinking":"x","signature":"cp1.abc"}'
EMPTY = '{ "thinking":"x", "signature" :\n"", "type":"thinking"}'
NULL = '{"type":"thinking","thinking":"x","signature":null}'
GENUINE = '{"type":"thinking","thinking":"x","signature":"EqQB"}'
CALL = '{"type":"tool_use","id":"t","name":"n","input":{"signature":"","x":%s,"y":1.50}}' % ("7" * 120)
CUTS = [
    (f"[{OURS},{TEXT}]", f"[{TEXT}]"), (f"[ {OURS} , {TEXT} ]", f"[ {TEXT} ]"), (f"[{TEXT},{EMPTY}]", f"[{TEXT}]"),
    (f"[{TEXT} ,\n{OURS},{CALL}]", f"[{TEXT} ,\n{CALL}]"), (f"[{OURS},{NULL},{TEXT},{EMPTY},{OURS}\n]", f"[{TEXT}\n]"),
    (f"[{GENUINE},{OURS},{CALL}]", f"[{GENUINE},{CALL}]"),
    (f"[{OURS}]", '[{"type":"text","text":"(no content)"}]'), (f"[{GENUINE},{CALL}]", f"[{GENUINE},{CALL}]"),
    ('"\\"cp1. is text"', '"\\"cp1. is text"'), ('[{"type":"text","text":"x","signature":""}]',) * 2, ("[]", "[]"),
    ('{"signature":""}',) * 2, ('[5,{"signature":""},[]]',) * 2,
]


@pytest.mark.parametrize("before,after", CUTS)
def test_thinking_that_others_have_signed_is_cut_out_and_nothing_else(start, before, after):
    proxy, upstream = start(WHOLE)
    rest = '{ "model":"m", "messages": [{"role":"user","content":"\\u00e9"},{"role":"assistant","content":%s },\n{"role":"user"}], "n":' + "1" * 50 + ' }'
    assert ask(proxy.port, (rest % before).encode(), fields=OWN_KEY).status == 200
    assert upstream.requests[0].body.decode() == rest % after


@pytest.mark.parametrize("body", [b'{"model":"m","x":{"signature":""}}', b'{"model":"m","messages":"cp1.","s":"cp1."}',
                                  b'"cp1.', b'{"messages":[{"content":[{"signature":""}'])
def test_marks_of_foreign_thinking_alone_change_nothing(start, body):
    proxy, upstream = start(WHOLE)
    assert ask(proxy.port, body, fields=OWN_KEY).status == 200
    assert upstream.requests[0].body == body


# --- whole answers -----------------------------------------------------------------------------

ERROR_BODY = b'{"type":"error","error":{"type":"rate_limit_error","message":"Number of tokens\\u2026"},"request_id":"req_9"} '
LIMITS = ("retry-after: 7", "request-id: req_up", "anthropic-ratelimit-requests-remaining: 0", "x-should-retry: true",
          "anthropic-ratelimit-unified-status: rejected", "content-type: application/json")
STATUSES = [(status, ERROR_BODY, LIMITS) for status in (400, 401, 402, 403, 404, 408, 409, 413, 422, 429, 500, 502, 503, 504, 529)]
STATUSES += [
    (404, b"<html><title>Not here</title></html>", ("content-type: text/html; charset=utf-8", "server: nginx")),
    (502, b"\xff\x00 bad gateway", ("content-type: text/plain",)), (500, b"", ("x-empty;: no", "x-e:")),
    (200, b"<html>", ("content-type: text/html",)), (307, b"", ("location: https://elsewhere/v1",)),
    (201, b'{"id":1.0}\n', ("content-type: application/json", "etag: \"x\"", "vary: a, b")),
    (200, json.dumps({**MESSAGE, "usage": "none"}).encode(), ("content-type: application/json",)),
    (200, json.dumps({**MESSAGE, "usage": ["x"], "stop_reason": {}}).encode(), ("content-type: application/json",)),
    (200, b'{"type":"message","n":%b}' % HUGE, ("content-type: application/json",)),
    (200, DEEP, ("content-type: application/json",)), (200, b"", ()), (200, b"x", ()),
]


@pytest.mark.parametrize("status,body,fields", STATUSES, ids=[f"{n}-{row[0]}" for n, row in enumerate(STATUSES)])
def test_answers_are_relayed_unchanged(start, status, body, fields):
    proxy, upstream = start(http_answer(status, body, *fields))
    answer = ask(proxy.port, message_body(), fields=OWN_KEY)
    assert (answer.status, answer.body) == (status, body)
    for name, _, value in (field.partition(":") for field in fields):
        assert answer.headers.get(name) == (value.strip() if name != "x-empty;" else None)
    line = log_line(proxy)
    assert len(upstream.requests) == 1 and line["status"] == status
    assert line.get("upstream_status") == (status if status >= 400 else None)
    assert line.get("failed_forward") is (True if status >= 400 else None)


ZIPPED = gzip.compress(json.dumps(MESSAGE).encode())


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/batches/b/results"])
def test_compressed_answers_stay_compressed(start, path):
    proxy, _ = start(http_answer(200, ZIPPED, "content-encoding: gzip", "content-type: application/json"))
    answer = ask(proxy.port, message_body(), path=path, fields=OWN_KEY)
    assert (answer.body, answer.headers["content-encoding"]) == (ZIPPED, "gzip")


def test_a_compressed_stream_stays_compressed(start):
    data = gzip.compress(frame({"type": "message_start", "message": MESSAGE}) * 50)
    head = STREAM_HEAD.replace(b"\r\n\r\n", b"\r\ncontent-encoding: gzip\r\n\r\n")
    proxy, _ = start(stream_of(data[:10], data[10:], head=head))
    answer = ask(proxy.port, message_body(stream=True), fields=OWN_KEY)
    assert (answer.body, answer.headers["content-encoding"]) == (data, "gzip")


@pytest.mark.parametrize("head", [b"HTTP/1.1 204 No Content\r\nrequest-id: req_1\r\n\r\n", b"HTTP/1.1 204\r\n\r\n",
                                  b"HTTP/1.1 304 Not Modified\r\netag: \"x\"\r\n\r\n",
                                  b"HTTP/1.1 204 X\r\ncontent-type: text/event-stream\r\n\r\n"])
def test_answers_without_a_body(start, head):
    proxy, upstream = start([head], WHOLE)
    with RawClient(proxy.port) as client:
        client.send(request_bytes(path="/v1/files/x", method="DELETE", fields=OWN_KEY))
        told = client.read_until(b"\r\n\r\n")
        assert told.split()[1] == head.split()[1]
        assert b"content-length" not in told and b"transfer-encoding" not in told and b"\r\n: " not in told
        client.send(request_bytes(message_body(), fields=OWN_KEY))
        assert client.answer().json == MESSAGE
    assert upstream.connections == 1


def test_response_headers_of_the_hop_and_cookies_stay_here(start):
    fields = ("connection: keep-alive, x-hop", "x-hop: 1", "keep-alive: timeout=5", "set-cookie: a=b", "x-kept: 1",
              "proxy-authenticate: Basic", "bad name: x", "x-nul: a\x00b", "x-colon: a:b")
    proxy, _ = start(http_answer(200, b"{}", *fields))
    answer = ask(proxy.port, message_body(), fields=OWN_KEY)
    assert not {"x-hop", "keep-alive", "set-cookie", "proxy-authenticate", "bad name"} & set(answer.headers)
    assert (answer.headers["x-kept"], answer.headers["x-nul"], answer.headers["x-colon"]) == ("1", "a b", "a:b")


@pytest.mark.parametrize("fields", [(), ("transfer-encoding: chunked",)])
def test_a_large_answer_is_not_held(start, fields):
    """It begins before it has ended, and it arrives as it was."""
    gate = threading.Event()
    block = bytes(range(256)) * 4096
    half = [block] * 9
    pieces = [http_chunk(p) for p in half] if fields else half
    head = "\r\n".join(["HTTP/1.1 200 X", "content-type: application/octet-stream", *(fields or (f"content-length: {18 << 20}",))])
    proxy, _ = start([head.encode() + b"\r\n\r\n", *pieces, Pause(5, gate), *pieces, *([LAST] if fields else [])])
    with RawClient(proxy.port) as client:
        client.send(request_bytes(path="/v1/files/x/content", method="GET", fields=OWN_KEY))
        client.read_until(b"\r\n\r\n")
        gate.set()
        assert client._chunked() == block * 18


def test_an_answer_that_is_cut_is_an_error_by_status(start):
    proxy, _ = start([b"HTTP/1.1 200 X\r\ncontent-length: 50\r\n\r\n{}", HANG_UP])
    assert ask(proxy.port, message_body(), fields=OWN_KEY).status == 502


@pytest.mark.parametrize("retries,asked", [("0", 1), ("2", 3)])
def test_retries_only_by_settings(start, retries, asked):
    scripts = [http_answer(529, ERROR_BODY, "retry-after: 0")] * 2 + [WHOLE]
    proxy, upstream = start(*scripts, environ={"ANTHROPIC_MAX_RETRIES": retries})
    answer = ask(proxy.port, message_body(), fields=OWN_KEY)
    assert (answer.status, len(upstream.requests)) == (200 if asked == 3 else 529, asked)


# --- streams -----------------------------------------------------------------------------------

LINES = b"".join([
    b"\xef\xbb\xbf: hello\n\n", b"id: 7\r\nretry: 10\r\nevent: message_start\r\ndata: " + json.dumps(
        {"type": "message_start", "message": MESSAGE}).encode() + b"\r\n\r\n",
    b"event: ping\ndata: {\"type\": \"ping\"}\n\n", b"\n\n\r\n", b": keep-alive\n", b":\n\n", b"data:no blank\ndata: two lines\n\n",
    b"event: unheard_of\ndata: {\"type\":\"unheard_of\",\"x\":1.50}\n\n", b"data: not json {\n\n", b"nofield\n\n", b"\xff\xfe\x00\n\n",
    b"event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"delta\":{\"text\":\"\xf0\x9f\x98\x80\"}}\n\n",
    b"data: {\"type\":\"message_start\",\"message\":\"usage\",\"usage\":[\"usage\"]}\n\n", b"data: [\"usage\"]\n\n",
    b"data: {\"type\":\"error\",\"x\":\"usage\"}\n\n", b"data: {\"type\":\"message_delta\",\"usage\":1,\"delta\":\"x\"}\n\n",
    b"event: message_delta\rdata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":9}}\r\r",
    b"event: message_stop\ndata: {\"type\":\"message_stop\"}",
])
FRAMINGS = ["chunked", "length", "close"]


def framed_stream(body, framing, size):
    pieces = [body[i:i + size] for i in range(0, len(body), size)]
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\nrequest-id: req_up\r\n"
    if framing == "chunked":
        return [head + b"transfer-encoding: chunked\r\n\r\n", *map(http_chunk, pieces), LAST]
    if framing == "length":
        return [head + b"content-length: %d\r\n\r\n" % len(body), *pieces]
    return [head + b"\r\n", *pieces, HANG_UP]


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("size", [1, 7, 64, 100_000])
def test_a_stream_is_the_same_byte_for_byte(start, framing, size):
    proxy, _ = start(framed_stream(LINES, framing, size))
    answer = ask(proxy.port, message_body(stream=True), fields=OWN_KEY)
    assert answer.body == LINES
    assert (answer.status, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert (answer.headers["request-id"], answer.headers["transfer-encoding"]) == ("req_up", "chunked")
    line = log_line(proxy)
    assert (line["stop_reason"], line["input_tokens"], line["output_tokens"]) == ("end_turn", 11, 9)


def test_a_stream_to_a_client_of_http_1_0(start):
    proxy, _ = start(framed_stream(LINES, "chunked", 50))
    with RawClient(proxy.port) as client:
        client.send(request_bytes(message_body(stream=True), fields=OWN_KEY).replace(b"HTTP/1.1", b"HTTP/1.0"))
        assert client.read_to_end().partition(b"\r\n\r\n")[2] == LINES


def test_each_piece_leaves_as_it_comes(start):
    gates = [threading.Event(), threading.Event()]
    proxy, _ = start(stream_of(b"data: 1", Pause(5, gates[0]), b"\n\n: half", Pause(5, gates[1]), b"\n\n"))
    with RawClient(proxy.port) as client:
        client.send(request_bytes(message_body(stream=True), fields=OWN_KEY))
        client.read_until(b"data: 1")
        gates[0].set()
        client.read_until(b": half")
        gates[1].set()
        client.read_until(LAST)


@pytest.mark.parametrize("end", [[HANG_UP], [b"5\r\nab", HANG_UP], [b"zz\r\n", HANG_UP]])
def test_a_stream_that_is_cut_has_no_end(start, end):
    """No last chunk, and not a byte that the API has not sent."""
    piece = frame({"type": "message_start", "message": MESSAGE}) + b"event: content_blo"
    proxy, _ = start([STREAM_HEAD, http_chunk(piece), Pause(0.05), *end])
    with RawClient(proxy.port) as client:
        client.send(request_bytes(message_body(stream=True), fields=OWN_KEY))
        body = client.read_to_end().partition(b"\r\n\r\n")[2]
    sent = b"".join(part.partition(b"\r\n")[2][:-2] for part in [http_chunk(piece)])
    assert body in (http_chunk(piece), http_chunk(piece) + http_chunk(b"ab")) and sent == piece
    assert log_line(proxy)["error"].startswith("the upstream")


def test_a_stream_that_is_cut_before_its_first_byte_is_an_error_by_status(start):
    proxy, upstream = start([STREAM_HEAD, HANG_UP])
    assert ask(proxy.port, message_body(stream=True), fields=OWN_KEY).status == 502
    assert wait_until(lambda: not proxy.inflight.exchanges())


def test_a_stream_without_a_byte(start):
    proxy, _ = start([STREAM_HEAD, LAST])
    answer = ask(proxy.port, message_body(stream=True), fields=OWN_KEY)
    assert (answer.status, answer.body) == (200, b"")


OVERLOADED = {"type": "error", "error": {"type": "overloaded_error", "message": SECRET_TEXT}, "request_id": "r"}


def test_an_error_event_passes_and_is_in_the_log_without_its_words(start):
    events = [frame({"type": "message_start", "message": MESSAGE}), frame(OVERLOADED)]
    proxy, _ = start(stream_of(*events))
    answer = ask(proxy.port, message_body(stream=True), fields=OWN_KEY)
    assert answer.body == b"".join(events)
    assert (log_line(proxy)["error"], log_line(proxy)["status"]) == ("overloaded_error", 200)
    assert SECRET_TEXT not in proxy.log_text.getvalue()


def test_words_of_an_answer_are_not_taken_for_usage(start):
    said = json.dumps({"usage": {"input_tokens": 999}, "stop_reason": "said", "type": "error", "error": "said"})
    spoken = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": said}}
    proxy, _ = start(folded({"type": "message_start", "message": MESSAGE}, spoken))
    ask(proxy.port, message_body(stream=True), fields=OWN_KEY)
    line = log_line(proxy)
    assert line["input_tokens"] == 11 and "said" not in json.dumps(line) and not line.get("error")


@pytest.mark.parametrize("streaming", [True, False])
def test_the_log_has_figures_and_no_content(start, streaming):
    proxy, _ = start(messages_stream(MESSAGE) if streaming else WHOLE)
    ask(proxy.port, message_body("a private question", stream=streaming), fields=OWN_KEY)
    line = log_line(proxy)
    figures = {"input_tokens": 11, "output_tokens": 3, "cache_read_input_tokens": 5, "stop_reason": "end_turn",
               "upstream": "anthropic", "model": "claude-sonnet-5", "stream": streaming, "status": 200}
    assert {key: line[key] for key in figures} == figures
    text = proxy.log_text.getvalue()
    assert not any(secret in text for secret in (SECRET_TEXT, "private", "client-key"))


def test_figures_are_found_wherever_a_stream_is_cut():
    told = [frame(FIRST), b": " + b"x" * 100_000 + b"\n\n", frame(END), frame(STOP)]
    for blank in (b"\n", b"\r\n", b"\r"):
        body = b"".join(told).replace(b"\n", blank)
        for size in (*range(1, 40), 1000, 70_000, len(body)):
            exchange = Exchange()
            watch = RelayWatch(exchange)
            small = body.replace(b"x" * 100_000, b"x") if size < 40 else body
            for at in range(0, len(small), size):
                watch.see(small[at:at + size])
            watch.end()
            assert (exchange.usage["output_tokens"], exchange.facts["stop_reason"]) == (77, "tool_use"), (blank, size)


def test_a_frame_too_large_to_be_held_is_let_go():
    watch = RelayWatch(Exchange())
    for _ in range(200):
        watch.see(b"x" * 65536)
    watch.end()


def test_no_ping_of_ours_in_a_relayed_stream(start):
    pieces = [frame({"type": "message_start", "message": MESSAGE}), Pause(0.1), b"data: x\n\n", Pause(0.1), b": end\n\n"]
    proxy, _ = start(stream_of(*pieces), ping_interval=0.02)
    body = ask(proxy.port, message_body(stream=True), fields=OWN_KEY).body
    assert body == b"".join(p for p in pieces if isinstance(p, bytes))


def test_no_early_head_while_the_api_is_silent(start):
    proxy, _ = start([Pause(0.1), *http_answer(429, ERROR_BODY)], ping_interval=0.02)
    answer = ask(proxy.port, message_body(stream=True), fields=OWN_KEY)
    assert (answer.status, answer.body) == (429, ERROR_BODY)


@pytest.mark.parametrize("streaming", [True, False])
def test_a_silent_upstream(start, streaming):
    proxy, upstream = start([WAIT_FOR_CLOSE], anthropic_response_header_timeout=0.1)
    answer = ask(proxy.port, message_body(stream=streaming), fields=OWN_KEY)
    assert (answer.status, answer.json["error"]["type"]) == (504, "timeout_error")
    assert upstream.closed_by_peer.wait(2) and len(upstream.requests) == 1


def test_the_time_for_the_first_byte_is_not_that_for_the_rest(start):
    proxy, _ = start(stream_of(b"data: 1\n\n", Pause(0.3), b"data: 2\n\n"), anthropic_response_header_timeout=0.1)
    assert ask(proxy.port, message_body(stream=True), fields=OWN_KEY).body == b"data: 1\n\ndata: 2\n\n"


@pytest.mark.parametrize("begun", [True, False])
def test_a_client_that_leaves_ends_the_upstreams_work(start, begun):
    proxy, upstream = start([*([STREAM_HEAD, http_chunk(b"data: 1\n\n")] if begun else []), WAIT_FOR_CLOSE])
    with RawClient(proxy.port) as client:
        client.send(request_bytes(message_body(stream=True), fields=OWN_KEY))
        wait_until(lambda: upstream.requests)
        if begun:
            client.read_until(b"data: 1\n\n")
        left = time.monotonic()
    assert upstream.closed_by_peer.wait(2) and upstream.closed_at - left < 1
    assert log_line(proxy)["status"] == 499


def test_connections_are_kept_on_both_sides(start):
    proxy, upstream = start(messages_stream(MESSAGE), WHOLE, http_answer(404, b"<html>"), messages_stream(MESSAGE))
    with RawClient(proxy.port) as client:
        for status, streaming in ((200, True), (200, False), (404, False), (200, True)):
            client.send(request_bytes(message_body(stream=streaming), fields=OWN_KEY))
            assert client.answer().status == status
    assert (len(upstream.requests), upstream.connections) == (4, 1)


# --- demotion ----------------------------------------------------------------------------------

DEMOTE = {"ANTHROPIC_DEMOTE_NONSTREAMING": "true"}
FIRST = {"type": "message_start", "message": {**MESSAGE, "content": [], "stop_reason": None, "usage": {
    "input_tokens": 11, "output_tokens": 1, "cache_read_input_tokens": 5, "service_tier": "standard"}}}
END = {"type": "message_delta", "delta": {"stop_reason": "tool_use", "stop_sequence": None, "container": {"id": "c_1"}},
       "usage": {"output_tokens": 77, "input_tokens": None, "server_tool_use": {"web_search_requests": 2}},
       "context_management": {"applied_edits": [{"type": "clear", "n": 2}]}}
STOP = {"type": "message_stop"}
BIG = 12345678901234567890123456789012345678901234567890


def block(index, start, *deltas):
    yield {"type": "content_block_start", "index": index, "content_block": start}
    for one in deltas:
        yield {"type": "content_block_delta", "index": index, "delta": one}
    yield {"type": "content_block_stop", "index": index}


def deltas(kind, member, *values):
    return [{"type": kind, member: value} for value in values]


TOOL_START = {"type": "tool_use", "id": "t", "name": "n", "input": {}}
CITED = [{"type": "char_location", "cited_text": "a"}, {"type": "page_location", "cited_text": "b", "n": BIG}]
# (a block's events, the block that they tell)
FOLDS = [
    (block(0, {"type": "text", "text": ""}, *deltas("text_delta", "text", "Gr\u00fc", "", "\U0001f600")),
     {"type": "text", "text": "Gr\u00fc\U0001f600"}),
    (block(0, {"type": "text", "text": "be"}, *deltas("text_delta", "text", "gun")), {"type": "text", "text": "begun"}),
    (block(0, {"type": "thinking", "thinking": "", "signature": ""}, {"type": "thinking_delta", "thinking": "a", "estimated_tokens": 5},
           *deltas("thinking_delta", "thinking", "b"), *deltas("signature_delta", "signature", "EqQ", "B==")),
     {"type": "thinking", "thinking": "ab", "signature": "EqQB=="}),
    (block(0, TOOL_START, *deltas("input_json_delta", "partial_json", "", '{"n": ', str(BIG), ', "f": 1.5, "s": "\\u00e9"}')),
     {**TOOL_START, "input": {"n": BIG, "f": 1.5, "s": "\u00e9"}}),
    (block(0, TOOL_START), TOOL_START),
    (block(0, TOOL_START, *deltas("input_json_delta", "partial_json", "")), TOOL_START),
    (block(0, {**TOOL_START, "type": "server_tool_use", "input": {"query": "q"}}, *deltas("input_json_delta", "partial_json", "")),
     {**TOOL_START, "type": "server_tool_use", "input": {"query": "q"}}),
    (block(0, {"type": "text", "text": "", "citations": []}, *deltas("citations_delta", "citation", *CITED)),
     {"type": "text", "text": "", "citations": CITED}),
    (block(0, {"type": "text", "text": "", "citations": None}, *deltas("citations_delta", "citation", CITED[0])),
     {"type": "text", "text": "", "citations": CITED[:1]}),
    (block(0, {"type": "redacted_thinking", "data": "opaque"}), {"type": "redacted_thinking", "data": "opaque"}),
    (block(0, {"type": "web_search_tool_result", "tool_use_id": "t", "content": [{"x": BIG}]}),
     {"type": "web_search_tool_result", "tool_use_id": "t", "content": [{"x": BIG}]}),
    (block(0, {"type": "compaction", "content": None}, *deltas("compaction_delta", "content", "sum", "mary")),
     {"type": "compaction", "content": "summary"}),
    (block(0, {"type": "rune", "glow": 1, "marks": ["a"]}, {"type": "rune_delta", "glow": 2, "marks": ["b"], "name": "x", "none": None},
           {"type": "rune_delta", "name": "y", "at": {"z": BIG}}),
     {"type": "rune", "glow": 2, "marks": ["a", "b"], "name": "xy", "at": {"z": BIG}}),
    (block(0, {"type": "rune"}, {"type": ["odd"], "x": "y"}), {"type": "rune", "x": "y"}),
]


@pytest.mark.parametrize("events,expected", [(list(events), expected) for events, expected in FOLDS])
def test_a_demoted_block(start, events, expected):
    proxy, _ = start(folded(FIRST, {"type": "ping"}, *events, END, STOP), environ=DEMOTE)
    assert ask(proxy.port, message_body(), fields=OWN_KEY).json["content"] == [expected]


def test_a_demoted_message(start):
    """All that the stream told, and nothing of the stream in its headers."""
    unknown = [{"type": "unheard_of", "delta": "x", "usage": 5, "message": []}, b": comment\r\n\r\n", b"data: [1]\n\n",
               b"data: {\"no\":\"type\"}\n\n", b"id: 5\nretry: 3\n\n"]
    head = STREAM_HEAD.replace(b"\r\n\r\n", b"\r\nrequest-id: req_up\r\nanthropic-ratelimit-tokens-remaining: 5\r\n"
                               b"cache-control: no-cache\r\nx-accel-buffering: no\r\n\r\n")
    script = folded(FIRST, *unknown, *block(0, {"type": "text", "text": ""}, *deltas("text_delta", "text", "a")),
                    *block(2, TOOL_START, *deltas("input_json_delta", "partial_json", "{}")), END, STOP)
    proxy, upstream = start([head, *script[1:]], environ=DEMOTE)
    answer = ask(proxy.port, message_body(), path="/v1/messages?beta=true", fields=OWN_KEY)
    assert answer.json == {
        **MESSAGE, "content": [{"type": "text", "text": "a"}, TOOL_START], "stop_reason": "tool_use", "container": {"id": "c_1"},
        "context_management": END["context_management"],
        "usage": {"input_tokens": 11, "output_tokens": 77, "cache_read_input_tokens": 5, "service_tier": "standard",
                  "server_tool_use": {"web_search_requests": 2}}}
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["content-length"] == str(len(answer.body))
    assert (answer.headers["request-id"], answer.headers["anthropic-ratelimit-tokens-remaining"]) == ("req_up", "5")
    assert not {"cache-control", "x-accel-buffering", "transfer-encoding"} & set(answer.headers)
    line = log_line(proxy)
    assert (line["demoted"], line["output_tokens"], line["stop_reason"], line["stream"]) == (True, 77, "tool_use", False)
    assert upstream.requests[0].line == "POST /v1/messages?beta=true HTTP/1.1"


FINE = folded(FIRST, *block(0, {"type": "text", "text": "a"}), END, STOP)
DEMOTED_BODIES = [
    ("{%s}", '{"stream": true, %s}'), ('{"stream":false,%s}', '{"stream":true,%s}'), ('{%s, "stream" : null }', '{%s, "stream" : true }'),
    ('{"stream":false,%s,"stream":false}', '{"stream":true,%s,"stream":true}'),
]
NOT_DEMOTED_BODIES = ['{"stream":true,%s}', '{"stream":"yes",%s}', '{"stream":0,%s}', '{"stream":1,%s}', "{%s", "[{%s}]"]


@pytest.mark.parametrize("before,after", DEMOTED_BODIES)
def test_demotion_changes_stream_alone(start, before, after):
    proxy, upstream = start(FINE, environ=DEMOTE)
    assert ask(proxy.port, (before % ODD).encode(), fields=OWN_KEY).json["content"] == [{"type": "text", "text": "a"}]
    assert upstream.requests[0].body.decode() == after % ODD


@pytest.mark.parametrize("body", NOT_DEMOTED_BODIES)
def test_what_is_not_demoted(start, body):
    proxy, upstream = start(FINE, environ=DEMOTE)
    assert "event-stream" in ask(proxy.port, (body % ODD).encode(), fields=OWN_KEY).headers["content-type"]
    assert upstream.requests[0].body.decode() == body % ODD


@pytest.mark.parametrize("path", ["/v1/messages/count_tokens", "/v1/messages/count_tokens/", "/v1/messages/batches"])
def test_other_endpoints_are_not_demoted(start, path):
    proxy, upstream = start(json_answer(200, {"input_tokens": 5}), environ=DEMOTE)
    body = b'{"model": "claude-x", "messages": []}'
    assert ask(proxy.port, body, path=path, fields=OWN_KEY).json == {"input_tokens": 5}
    assert upstream.requests[0].body == body


def test_demotion_with_a_routed_model(start):
    proxy, upstream = start(FINE, environ={**DEMOTE, **MAPPED})
    ask(proxy.port, ("{" + ODD + ',"model":"fast"}').encode(), fields=OWN_KEY)
    assert upstream.requests[0].body.decode() == '{"stream": true, ' + ODD + ',"model":"claude-haiku-9"}'


def test_a_demoted_call_that_is_answered_whole(start):
    """A server that does not stream although it was asked to."""
    proxy, _ = start(WHOLE, environ=DEMOTE)
    answer = ask(proxy.port, message_body(), fields=OWN_KEY)
    assert (answer.json, answer.headers["request-id"]) == (MESSAGE, "req_up")


@pytest.mark.parametrize("status", [400, 401, 429, 529])
def test_a_demoted_call_that_is_refused(start, status):
    proxy, _ = start(http_answer(status, ERROR_BODY, *LIMITS), environ=DEMOTE)
    answer = ask(proxy.port, message_body(), fields=OWN_KEY)
    assert (answer.status, answer.body, answer.headers["retry-after"]) == (status, ERROR_BODY, "7")


def stream_error(kind):
    return {"type": "error", "error": {"type": kind, "message": "as told", "details": {"n": 1}}, "request_id": "req_x"}


ERROR_KINDS = [("overloaded_error", 529), ("rate_limit_error", 429), ("api_error", 500), ("unheard_of", 500),
               ("invalid_request_error", 400)]


@pytest.mark.parametrize("kind,status", ERROR_KINDS)
@pytest.mark.parametrize("before", [(), (FIRST, *block(0, {"type": "text", "text": "a"}))])
def test_an_error_event_becomes_a_status_with_its_own_json(start, kind, status, before):
    proxy, _ = start(folded(*before, stream_error(kind)), environ=DEMOTE)
    answer = ask(proxy.port, message_body(), fields=OWN_KEY)
    assert (answer.status, answer.json) == (status, stream_error(kind))
    assert answer.headers["content-type"] == "application/json"
    line = log_line(proxy)
    assert (line["error"], line["upstream_status"], line["failed_forward"]) == (kind, 200, True)


BROKEN = [
    ("cut", [*folded(FIRST, *block(0, {"type": "text", "text": "a"}))[:-1], HANG_UP]),
    ("no message_stop", folded(FIRST, *block(0, {"type": "text", "text": "a"}), END)),
    ("nothing", folded()),
    ("only pings", folded({"type": "ping"})),
    ("arguments", folded(FIRST, *block(0, TOOL_START, *deltas("input_json_delta", "partial_json", '{"a":')), END, STOP)),
    ("not JSON", folded(FIRST, b"data: {oops\n\n", END, STOP)),
    ("usage", folded({**FIRST, "message": {**MESSAGE, "usage": "x"}}, END, STOP)),
    ("message", folded({"type": "message_start", "message": 5}, END, STOP)),
    ("delta", folded(FIRST, {**END, "delta": "x"}, STOP)),
    ("no block", folded(FIRST, {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "a"}}, END, STOP)),
]


@pytest.mark.parametrize("script", [script for _, script in BROKEN], ids=[name for name, _ in BROKEN])
def test_half_a_demoted_answer_is_never_a_short_200(start, script):
    proxy, _ = start(script, environ=DEMOTE)
    answer = ask(proxy.port, message_body(), fields=OWN_KEY)
    assert (answer.status, answer.json["error"]["type"]) == (502, "api_error")
    assert not [line for line in proxy.log_lines() if line["event"] == "defect"]


def test_a_client_that_leaves_ends_a_demoted_answer(start):
    proxy, upstream = start([*folded(FIRST)[:-1], WAIT_FOR_CLOSE], environ=DEMOTE)
    with RawClient(proxy.port) as client:
        client.send(request_bytes(message_body(), fields=OWN_KEY))
        wait_until(lambda: upstream.requests)
    assert upstream.closed_by_peer.wait(2)


def test_a_compressed_stream_is_demoted(start):
    data = gzip.compress(b"".join(frame(e) for e in (FIRST, *block(0, {"type": "text", "text": "a"}), END, STOP)))
    head = STREAM_HEAD.replace(b"\r\n\r\n", b"\r\ncontent-encoding: gzip\r\n\r\n")
    proxy, _ = start(stream_of(data, head=head), environ=DEMOTE)
    answer = ask(proxy.port, message_body(), fields=OWN_KEY)
    assert answer.json["content"] == [{"type": "text", "text": "a"}] and "content-encoding" not in answer.headers


# --- other places to go ------------------------------------------------------------------------

FALLBACK = {"FALLBACK_MODELS": "claude-other"}


@pytest.mark.parametrize("first", [http_answer(529, ERROR_BODY), [STREAM_HEAD, HANG_UP], [HANG_UP]])
@pytest.mark.parametrize("streaming", [True, False])
def test_the_next_model_is_asked_while_nothing_has_been_said(start, first, streaming):
    body = message_body(stream=streaming)
    proxy, upstream = start(first, messages_stream(MESSAGE), environ=FALLBACK)
    answer = ask(proxy.port, body, fields=OWN_KEY)
    assert answer.status == 200 and "tried anthropic:claude-sonnet-5" in answer.headers["x-proxy-route"]
    assert [r.json["model"] for r in upstream.requests] == ["claude-sonnet-5", "claude-other"]


def test_an_overloaded_event_in_a_demoted_answer_moves_on(start):
    proxy, upstream = start(folded(stream_error("overloaded_error")), FINE, environ={**DEMOTE, **FALLBACK})
    answer = ask(proxy.port, message_body(), fields=OWN_KEY)
    assert (answer.status, answer.json["content"]) == (200, [{"type": "text", "text": "a"}])
    assert len(upstream.requests) == 2


def test_one_that_comes_after_the_first_event_does_not(start):
    proxy, upstream = start(folded(FIRST, stream_error("overloaded_error")), FINE, environ={**DEMOTE, **FALLBACK})
    answer = ask(proxy.port, message_body(), fields=OWN_KEY)
    assert (answer.status, answer.json) == (529, stream_error("overloaded_error"))
    assert len(upstream.requests) == 1


def test_one_key_rests_and_the_next_is_taken(start):
    proxy, upstream = start(http_answer(429, ERROR_BODY), WHOLE, environ={"ANTHROPIC_UPSTREAM_KEY": "key-a1,key-b2"})
    assert ask(proxy.port, message_body()).json == MESSAGE
    assert [r.headers["x-api-key"] for r in upstream.requests] == ["key-a1", "key-b2"]


AGENTS = {"SUBAGENT_MAPPINGS": "reviewer:claude-haiku-9"}
SPAWN = {"type": "tool_use", "id": "t", "name": "Task", "input": {"subagent_type": "reviewer", "prompt": "Look at this diff, please."}}


@pytest.mark.parametrize("environ,streaming", [(AGENTS, True), (AGENTS, False), ({**AGENTS, **DEMOTE}, False)])
def test_an_agent_is_known_by_the_call_that_was_relayed(start, environ, streaming):
    called = {**MESSAGE, "content": [{"type": "text", "text": "x"}, SPAWN]}
    whole = not streaming and environ is AGENTS
    proxy, upstream = start(json_answer(200, called) if whole else messages_stream(called), WHOLE, environ=environ)
    session = ("x-claude-code-session-id: s-1",)
    ask(proxy.port, message_body(stream=streaming), fields=(*OWN_KEY, *session))
    agent = message_body("Look at this diff, please.", stream=True)
    ask(proxy.port, agent, fields=(*OWN_KEY, *session, "x-claude-code-agent-id: a1"))
    assert upstream.requests[1].json["model"] == "claude-haiku-9"
