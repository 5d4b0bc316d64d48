"""A client, the proxy, a scripted upstream: what each of them sees, in good times and in bad."""

from __future__ import annotations

import json
import socket
import threading
import time

import pytest

from tests.support import (
    HANG_UP,
    LAST,
    RESET,
    STREAM_HEAD,
    USAGE,
    WAIT_FOR_CLOSE,
    Pause,
    RawClient,
    ScriptedUpstream,
    ask,
    chat_stream,
    delta,
    http_answer,
    http_chunk,
    json_answer,
    message_body,
    request_bytes,
    running_proxy,
    sse,
    text_answer,
    upstream_environ,
    wait_until,
)

pytestmark = pytest.mark.usefixtures("no_thread_left")


ASK_NOTES = ("x-proxy-notes: 1",)


def call_delta(index, call_id=None, name=None, arguments=None):
    function = {k: v for k, v in (("name", name), ("arguments", arguments)) if v is not None}
    return delta(tool_calls=[{"index": index, "function": function, **({"id": call_id} if call_id else {})}])


def kinds(answer):
    return [event["type"] for event in answer.events]


def text_of(answer):
    return "".join(e["delta"].get("text", "") for e in answer.events if e["type"] == "content_block_delta")


@pytest.fixture
def start(form):
    """start(script, ..., **changes) -> (proxy, upstream), both stopped afterwards."""
    import contextlib
    with contextlib.ExitStack() as stack:
        def go(*scripts, environ=None, **changes):
            upstream = stack.enter_context(ScriptedUpstream(*scripts))
            settings = {**upstream_environ(upstream), **(environ or {})}
            return stack.enter_context(running_proxy(form, settings, **changes)), upstream
        yield go


# --- answers ------------------------------------------------------------------------------------


def test_a_streamed_text(start):
    proxy, upstream = start(text_answer("Hel", "lo"))
    answer = ask(proxy.port, message_body(stream=True), path="/v1/messages?beta=true")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-accel-buffering"] == "no"
    assert answer.headers["transfer-encoding"] == "chunked"
    assert kinds(answer) == ["message_start", "content_block_start", "content_block_delta",
                             "content_block_delta", "content_block_stop", "message_delta", "message_stop"]
    assert [name for name, _ in answer.frames] == kinds(answer)
    assert text_of(answer) == "Hello"
    assert answer.events[0]["message"]["model"] == "claude-sonnet-5"
    assert answer.events[-2]["usage"]["input_tokens"] == 11
    sent = upstream.requests[0]
    assert sent.line == "POST /v1/chat/completions HTTP/1.1"
    assert sent.headers["authorization"] == "Bearer test-key-123456"
    assert sent.headers["accept-encoding"] == "identity"
    assert (sent.json["model"], sent.json["stream"]) == ("gpt-4o", True)


def test_the_same_text_not_streamed(start):
    proxy, upstream = start(text_answer("Hel", "lo"))
    answer = ask(proxy.port, message_body())
    message = answer.json
    assert (message["content"], message["stop_reason"]) == ([{"type": "text", "text": "Hello"}], "end_turn")
    assert message["usage"] == {**message["usage"], "input_tokens": 11, "output_tokens": 3}
    assert message["model"] == "claude-sonnet-5" and message["id"].startswith("msg_")
    assert answer.headers["request-id"].startswith("req_")
    assert upstream.requests[0].json["stream"] is True


def test_a_long_tool_argument_in_a_hundred_pieces_arrives_byte_for_byte(start):
    arguments = json.dumps({"file_path": "/tmp/x", "content": "Z\u00fcrich \u2603 \"quoted\" \\ \n" * 2500})
    size = len(arguments) // 100 + 1
    pieces = [arguments[i:i + size] for i in range(0, len(arguments), size)]
    script = chat_stream(call_delta(0, "call_1", "Write", ""),
                         *(call_delta(0, arguments=p) for p in pieces), delta("tool_calls"), USAGE)
    proxy, _ = start(script)
    answer = ask(proxy.port, message_body(stream=True))
    told = [e["delta"]["partial_json"] for e in answer.events
            if e["type"] == "content_block_delta" and e["delta"]["type"] == "input_json_delta"]
    assert len(arguments) > 60_000 and told == [p for p in pieces if p]
    assert answer.events[-2]["delta"]["stop_reason"] == "tool_use"


def test_three_parallel_calls_interleaved(start):
    script = chat_stream(
        *(call_delta(i, f"call_{i}", f"Tool{i}", "") for i in range(3)),
        *(call_delta(i, arguments=part) for part in ('{"n":', "1}") for i in (2, 0, 1)),
        delta("tool_calls"), USAGE)
    proxy, _ = start(script)
    content = ask(proxy.port, message_body()).json["content"]
    assert content == [{"type": "tool_use", "id": f"call_{i}", "name": f"Tool{i}", "input": {"n": 1}}
                       for i in range(3)]


def test_an_id_that_the_conversation_has_had_is_not_used_again(start):
    """Servers that count from 0 in every answer would give a client two results for one call."""
    proxy, _ = start(chat_stream(call_delta(0, "call_0", "Bash", "{}"), delta("tool_calls"), USAGE))
    earlier = [{"role": "user", "content": "hi"},
               {"role": "assistant", "content": [{"type": "tool_use", "id": "call_0", "name": "Bash", "input": {}}]},
               {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "call_0", "content": "done"}]}]
    answer = ask(proxy.port, message_body(messages=earlier))
    assert answer.json["content"] == [{"type": "tool_use", "id": "call_0_2", "name": "Bash", "input": {}}]


def test_each_piece_leaves_as_it_comes(start):
    """Nothing is held back: the client has a word before the upstream says the next."""
    gates = [threading.Event() for _ in range(3)]
    script = chat_stream(delta(content="one "), Pause(5, gates[0]), delta(content="two "),
                         Pause(5, gates[1]), delta("stop"), USAGE)
    proxy, _ = start(script)
    with RawClient(proxy.port) as client:
        client.send(request_bytes(message_body(stream=True)))
        assert b'"one "' in client.read_until(b'"one "')
        gates[0].set()
        client.read_until(b'"two "')
        gates[1].set()
        client.read_until(b"message_stop")


def test_one_upstream_connection_serves_many_requests(start):
    proxy, upstream = start(text_answer("again"))
    for _ in range(5):
        assert text_of(ask(proxy.port, message_body(stream=True))) == "again"
    assert (len(upstream.requests), upstream.connections) == (5, 1)


def test_a_connection_that_died_in_the_pool_is_replaced(start):
    proxy, upstream = start([*text_answer("first"), HANG_UP], text_answer("second"))
    assert ask(proxy.port, message_body()).status == 200
    assert ask(proxy.port, message_body()).json["content"][0]["text"] == "second"
    assert upstream.connections == 2


def test_an_answer_that_is_json_although_a_stream_was_asked_for(start):
    whole = {"choices": [{"message": {"content": "whole"}, "finish_reason": "stop"}],
             "usage": {"prompt_tokens": 2, "completion_tokens": 1}}
    proxy, _ = start(json_answer(200, whole))
    assert text_of(ask(proxy.port, message_body(stream=True))) == "whole"


def test_a_gzipped_answer(start):
    import gzip
    data = b"".join([sse(delta(content="small")), sse(delta("stop")), sse("[DONE]")])
    proxy, _ = start(http_answer(200, gzip.compress(data), "content-encoding: gzip"))
    assert text_of(ask(proxy.port, message_body(stream=True))) == "small"


# --- errors before the first byte ----------------------------------------------------------------

OPENAI_ERROR = {"error": {"message": "no luck", "type": "x", "code": None}}
OVERFLOW = {"error": {"message": "This model's maximum context length is 8192 tokens. However, your"
                                 " messages resulted in 9000 tokens.", "code": "context_length_exceeded"}}
ERRORS = [
    ("bad request", json_answer(400, OPENAI_ERROR), 400, "invalid_request_error", "no luck", {}),
    ("key", json_answer(401, OPENAI_ERROR), 401, "authentication_error", "no luck", {"x-should-retry": "false"}),
    ("forbidden", json_answer(403, OPENAI_ERROR), 403, "permission_error", "no luck", {}),
    ("no model", json_answer(404, OPENAI_ERROR), 404, "not_found_error", "gpt-4o", {}),
    ("rate", json_answer(429, OPENAI_ERROR, "retry-after: 7"), 429, "rate_limit_error", "no luck",
     {"retry-after": "7"}),
    ("rate in ms", json_answer(429, OPENAI_ERROR, "retry-after-ms: 1500"), 429, "rate_limit_error", "",
     {"retry-after": "2"}),
    ("server", json_answer(500, OPENAI_ERROR), 500, "api_error", "no luck", {}),
    ("overloaded", json_answer(529, OPENAI_ERROR), 529, "overloaded_error", "no luck", {}),
    ("overflow", json_answer(400, OVERFLOW), 400, "invalid_request_error",
     "prompt is too long: 9000 tokens > 8192 maximum", {}),
    ("error inside a 200", chat_stream({"error": {"message": "busy", "code": 429}}), 429, "rate_limit_error",
     "busy", {}),
    ("web page", http_answer(200, b"<html><title>Log in</title>"), 502, "api_error", "", {}),
    ("web page with status", http_answer(502, b"<html><title>Bad &amp; ugly</title>"), 502, "api_error",
     "Bad & ugly", {}),
    ("redirect", http_answer(302, b"", "location: http://127.0.0.1:1/"), 502, "api_error", "redirect", {}),
    ("empty stream", chat_stream(), 502, "api_error", "before the answer was complete", {}),
    ("no answer", [HANG_UP], 502, "api_error", "without an answer", {}),
    ("reset", [RESET], 502, "api_error", "without an answer", {}),
    ("not http", [b"SSH-2.0-OpenSSH\r\n\r\n"], 502, "api_error", "HTTP/1.1", {}),
]


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("name,script,status,kind,words,fields", ERRORS, ids=[row[0] for row in ERRORS])
def test_an_early_error_is_a_status(start, name, script, status, kind, words, fields, stream):
    proxy, _ = start(script)
    answer = ask(proxy.port, message_body(stream=stream))
    assert (answer.status, answer.json["error"]["type"]) == (status, kind)
    assert words in answer.json["error"]["message"]
    assert {key: answer.headers.get(key) for key in fields} == fields
    assert answer.json["request_id"] == answer.headers["request-id"]


def test_a_key_in_an_upstream_error_is_not_passed_on(start):
    proxy, _ = start(json_answer(401, {"error": {"message": "Incorrect API key provided: test-key-123456."}}))
    answer = ask(proxy.port, message_body())
    assert answer.status == 401 and b"test-key-123456" not in answer.body
    assert "test-key-123456" not in proxy.log_text.getvalue()


def test_nothing_listens(form):
    import socket
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    environ = {"OPENAI_API_KEY": "k", "OPENAI_BASE_URL": f"http://127.0.0.1:{port}", "MAX_RETRIES": "0"}
    with running_proxy(form, environ) as proxy:
        answer = ask(proxy.port, message_body(stream=True))
    assert answer.status == 502
    assert f"127.0.0.1:{port}" in answer.json["error"]["message"]


# --- retries --------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [
    json_answer(429, OPENAI_ERROR, "retry-after: 0"),
    json_answer(503, OPENAI_ERROR, "retry-after: 0"),
    json_answer(529, OPENAI_ERROR, "retry-after-ms: 5"),
    json_answer(500, OPENAI_ERROR, "retry-after: 0"),
])
def test_a_passing_trouble_is_tried_again(start, first):
    proxy, upstream = start(first, text_answer("there"), environ={"MAX_RETRIES": "2"})
    assert text_of(ask(proxy.port, message_body(stream=True))) == "there"
    assert len(upstream.requests) == 2
    assert upstream.requests[0].body == upstream.requests[1].body


@pytest.mark.parametrize("first,tries", [
    (json_answer(400, OPENAI_ERROR), 1),
    (json_answer(401, OPENAI_ERROR), 1),
    (json_answer(429, OPENAI_ERROR, "retry-after: 60"), 1),
    (json_answer(500, OPENAI_ERROR, "x-should-retry: false"), 1),
    (json_answer(500, OPENAI_ERROR, "retry-after: 0"), 3),
    (chat_stream(delta(content="a"), HANG_UP), 1),
])
def test_how_often_is_tried(start, first, tries):
    proxy, upstream = start(first, environ={"MAX_RETRIES": "2"})
    ask(proxy.port, message_body(stream=True))
    assert len(upstream.requests) == tries


# --- learning -------------------------------------------------------------------------------------

TOO_LARGE = {"error": {"message": "max_tokens is too large: 64000. This model supports at most 16384 completion"
                                  " tokens, whereas you provided 64000."}}
OTHER_KEY = {"error": {"message": "Unsupported parameter: 'max_tokens' is not supported with this model. Use"
                                  " 'max_completion_tokens' instead."}}


def test_a_refusal_that_names_the_parameter_is_learned_from_once(start):
    proxy, upstream = start(json_answer(400, TOO_LARGE), json_answer(400, OTHER_KEY), text_answer("there"))
    first = ask(proxy.port, message_body(stream=True, max_tokens=64000), fields=ASK_NOTES)
    assert text_of(first) == "there"
    assert "max_tokens=64000>16384" in first.headers["x-proxy-notes"]
    assert text_of(ask(proxy.port, message_body(stream=True, max_tokens=64000))) == "there"
    assert [(r.json.get("max_tokens"), r.json.get("max_completion_tokens")) for r in upstream.requests] == [
        (64000, None), (16384, None), (None, 16384), (None, 16384)]
    # The line is written when the client has its answer already.
    assert wait_until(lambda: any("max_completion_tokens" in line.get("learned", "") for line in proxy.log_lines()))


def test_a_refusal_that_goes_on_is_told(start):
    proxy, upstream = start(json_answer(400, OTHER_KEY))
    answer = ask(proxy.port, message_body())
    assert answer.status == 400 and "max_completion_tokens" in answer.json["error"]["message"]
    assert len(upstream.requests) == 2


def test_what_did_not_help_is_not_remembered(start):
    other = {"error": {"message": "'temperature' is not supported"}}
    proxy, upstream = start(json_answer(400, other), json_answer(400, {"error": {"message": "Bad image"}}),
                            text_answer("there"))
    assert ask(proxy.port, message_body(temperature=1)).json["error"]["message"] == "Bad image"
    assert ask(proxy.port, message_body(temperature=1)).status == 200
    assert [r.json.get("temperature") for r in upstream.requests] == [1, None, 1]


def test_two_refusals_that_contradict_each_other_end(start):
    swap = {"error": {"message": "max_completion_tokens is not supported, use max_tokens"}}
    proxy, upstream = start(json_answer(400, OTHER_KEY), json_answer(400, swap))
    for _ in range(2):
        assert ask(proxy.port, message_body()).status == 400
    assert len(upstream.requests) <= 4


# --- errors in mid-stream -------------------------------------------------------------------------

LATE_ERRORS = [
    ("hang up", [HANG_UP], "api_error", "before the answer was complete"),
    ("reset", [RESET], "api_error", "before the answer was complete"),
    ("clean end without a finish", [LAST], "api_error", "before the answer was complete"),
    ("error chunk", [http_chunk(sse({"error": {"message": "gone bad", "code": 502}}))], "api_error", "gone bad"),
    ("overload chunk", [http_chunk(sse({"error": {"message": "overloaded", "code": 529}}))],
     "overloaded_error", "overloaded"),
    ("damaged chunk", [Pause(0.03), b"zz\r\n"], "api_error", "malformed"),
    ("not JSON", [http_chunk(b"data: {oops\n\n")], "api_error", ""),
    ("overflow", [http_chunk(sse(OVERFLOW))], "invalid_request_error", "prompt is too long"),
]


@pytest.mark.parametrize("name,end,kind,words", LATE_ERRORS, ids=[row[0] for row in LATE_ERRORS])
def test_a_late_error_is_an_event_and_nothing_looks_whole(start, name, end, kind, words):
    script = [STREAM_HEAD, http_chunk(sse(delta(content="half of"))), *end]
    proxy, _ = start(script)
    answer = ask(proxy.port, message_body(stream=True))
    assert answer.status == 200 and text_of(answer) == "half of"
    last = answer.events[-1]
    assert (last["type"], last["error"]["type"]) == ("error", kind)
    assert words in last["error"]["message"]
    assert answer.frames[-1][0] == "error"
    assert not {"content_block_stop", "message_delta", "message_stop"} & set(kinds(answer))


@pytest.mark.parametrize("name,end,kind,words", LATE_ERRORS, ids=[row[0] for row in LATE_ERRORS])
def test_a_late_error_for_a_client_that_does_not_stream_is_a_status(start, name, end, kind, words):
    proxy, _ = start([STREAM_HEAD, http_chunk(sse(delta(content="half of"))), *end])
    answer = ask(proxy.port, message_body())
    assert answer.status >= 400 and answer.json["error"]["type"] == kind


# --- silence --------------------------------------------------------------------------------------


def test_a_silent_upstream_leads_to_pings_and_then_an_error(start):
    proxy, upstream = start([STREAM_HEAD, WAIT_FOR_CLOSE], ping_interval=0.05, stream_idle_timeout=0.4)
    started = time.monotonic()
    answer = ask(proxy.port, message_body(stream=True))
    assert 0.3 < time.monotonic() - started < 2
    assert kinds(answer)[0] == "message_start" and kinds(answer)[1:-1].count("ping") >= 3
    assert set(kinds(answer)[1:-1]) == {"ping"}
    assert answer.events[-1]["error"]["type"] == "timeout_error"
    assert upstream.closed_by_peer.wait(2)


def test_no_first_byte_is_a_gateway_timeout(start):
    proxy, upstream = start([WAIT_FOR_CLOSE], request_timeout=0.1, environ={"MAX_RETRIES": "2"})
    answer = ask(proxy.port, message_body(stream=True))
    assert (answer.status, answer.json["error"]["type"]) == (504, "timeout_error")
    assert upstream.closed_by_peer.wait(2) and len(upstream.requests) == 1


def test_the_whole_exchange_may_have_a_limit(start):
    words = [step for _ in range(200) for step in (delta(content="on "), Pause(0.02))]
    proxy, _ = start(chat_stream(*words), total_timeout=0.2)
    answer = ask(proxy.port, message_body(stream=True))
    assert "TOTAL_TIMEOUT" in answer.events[-1]["error"]["message"]


def test_an_answer_that_comes_after_pings_is_whole(start):
    proxy, _ = start([Pause(0.2), *text_answer("late")], ping_interval=0.05)
    answer = ask(proxy.port, message_body(stream=True))
    assert [k for k in kinds(answer) if k != "ping"] == [
        "message_start", "content_block_start", "content_block_delta",
        "content_block_stop", "message_delta", "message_stop"]
    assert "ping" in kinds(answer) and text_of(answer) == "late"


def test_an_error_that_comes_after_pings_is_an_event(start):
    proxy, _ = start([Pause(0.2), *json_answer(429, OPENAI_ERROR)], ping_interval=0.05)
    answer = ask(proxy.port, message_body(stream=True))
    assert answer.status == 200
    assert answer.events[-1]["error"] == {"type": "rate_limit_error", "message": "no luck"}


# --- clients that leave ---------------------------------------------------------------------------

PHASES = [
    ("waiting for the head", [WAIT_FOR_CLOSE], True),
    ("waiting for the first event", [STREAM_HEAD, WAIT_FOR_CLOSE], True),
    ("streaming", [STREAM_HEAD, http_chunk(sse(delta(content="a"))), WAIT_FOR_CLOSE], True),
    ("not streaming", [STREAM_HEAD, http_chunk(sse(delta(content="a"))), WAIT_FOR_CLOSE], False),
]


@pytest.mark.parametrize("name,script,stream", PHASES, ids=[row[0] for row in PHASES])
def test_a_client_that_leaves_frees_the_upstream(start, name, script, stream):
    proxy, upstream = start(script)
    with RawClient(proxy.port) as client:
        client.send(request_bytes(message_body(stream=stream)))
        assert wait_until(lambda: upstream.requests)
        if name == "streaming":
            client.read_until(b'"a"')
        left = time.monotonic()
    assert upstream.closed_by_peer.wait(1.0)
    assert upstream.closed_at - left < 1.0
    assert wait_until(lambda: any(line.get("status") == 499 for line in proxy.log_lines()))


def test_a_client_that_leaves_between_retries_ends_them(start):
    proxy, upstream = start(json_answer(503, OPENAI_ERROR, "retry-after: 5"), environ={"MAX_RETRIES": "3"})
    with RawClient(proxy.port) as client:
        client.send(request_bytes(message_body()))
        assert wait_until(lambda: upstream.requests)
    assert wait_until(lambda: not proxy.inflight.exchanges(), 1)
    assert len(upstream.requests) == 1


def test_a_client_that_does_not_read_is_given_up(start):
    words = [delta(content="x" * 50_000)] * 400
    proxy, _ = start(chat_stream(*words), write_timeout=0.2)
    with RawClient(proxy.port) as client:
        client.send(request_bytes(message_body(stream=True)))
        assert wait_until(lambda: proxy.inflight.exchanges(), 1)
        assert wait_until(lambda: not proxy.inflight.exchanges(), 3)


def test_many_streams_at_once_and_no_thread_stays(start):
    gate = threading.Event()
    proxy, _ = start(chat_stream(delta(content="a"), Pause(10, gate), delta("stop"), USAGE))
    clients = [RawClient(proxy.port) for _ in range(100)]
    for client in clients:
        client.send(request_bytes(message_body(stream=True)))
    for client in clients:
        client.read_until(b'"a"')
    assert len(proxy.inflight.exchanges()) == 100
    gate.set()
    for client in clients:
        client.read_until(b"message_stop")
        client.sock.close()
    assert wait_until(lambda: proxy.inflight.connections() == 0)


# --- what is asked of whom ------------------------------------------------------------------------


def test_custom_headers_replace_ours(start):
    environ = {"CUSTOM_HEADER_AUTHORIZATION": "Basic abc", "CUSTOM_HEADER_X_CLIENT_ID": "ward-7"}
    proxy, upstream = start(text_answer("ok"), environ=environ)
    ask(proxy.port, message_body())
    headers = upstream.requests[0].headers
    assert (headers["authorization"], headers["x-client-id"]) == ("Basic abc", "ward-7")


def test_client_headers_stay_here(start):
    proxy, upstream = start(text_answer("ok"))
    ask(proxy.port, message_body(), fields=("x-api-key: client-secret", "anthropic-beta: x",
                                            "cookie: a=b", "x-claude-code-session-id: 1"))
    assert not {"x-api-key", "anthropic-beta", "cookie", "x-claude-code-session-id"} & set(
        upstream.requests[0].headers)


@pytest.mark.parametrize("fields,status", [
    ((), 401),
    (("x-api-key: wrong",), 401),
    (("x-api-key: the-client-key",), 200),
    (("authorization: Bearer the-client-key",), 200),
    (("authorization: bearer the-client-key",), 200),
    (("authorization: Basic the-client-key",), 401),
    (("x-api-key: wrong", "authorization: Bearer the-client-key"), 200),
    (("x-api-key: the-client-key-and-more",), 401),
    (("x-api-key: \u00fc",), 401),
])
def test_the_client_key(start, fields, status):
    proxy, upstream = start(text_answer("ok"), environ={"ANTHROPIC_API_KEY": "the-client-key"})
    answer = ask(proxy.port, message_body(), fields=fields)
    assert answer.status == status
    assert answer.headers.get("x-should-retry") == ("false" if status == 401 else None)
    assert len(upstream.requests) == (1 if status == 200 else 0)
    assert ask(proxy.port, path="/health", method="GET").status == 200


def test_azure(start):
    proxy, upstream = start(text_answer("ok"), environ={"AZURE_API_VERSION": "2024-12-01-preview"})
    ask(proxy.port, message_body())
    sent = upstream.requests[0]
    assert sent.headers["api-key"] == "test-key-123456" and "authorization" not in sent.headers


# --- logs -----------------------------------------------------------------------------------------


def test_an_upstreams_words_go_to_the_client_and_not_into_the_log(start):
    """They may quote what the user wrote."""
    error = {"error": {"message": "bad value: PATIENTCANARY", "type": "x"}}
    for script in (json_answer(400, error), [STREAM_HEAD, http_chunk(sse(delta(content="a"))),
                                             Pause(0.03), http_chunk(sse(error))]):
        proxy, _ = start(script)
        assert b"PATIENTCANARY" in ask(proxy.port, message_body(stream=True)).body
        log_text = proxy.log_text
        assert wait_until(lambda text=log_text: '"error"' in text.getvalue())
        assert "CANARY" not in log_text.getvalue()


def test_what_could_not_be_carried_is_told(start):
    proxy, _ = start(text_answer("ok"))
    odd = {"type": "odd\r\nx-evil: 1 \u2603"}
    body = message_body(top_k=5, tools=[{"type": "web_search_20250305", "name": "web_search"}])
    body["messages"][0]["content"] = [{"type": "text", "text": "hi"}, odd]
    answer = ask(proxy.port, body, fields=ASK_NOTES)
    assert answer.status == 200 and "x-evil" not in answer.headers
    assert "top_k=dropped" in answer.headers["x-proxy-notes"]
    assert "web_search_20250305=dropped" in answer.headers["x-proxy-notes"]
    assert wait_until(lambda: any("top_k=dropped" in line.get("notes", "") for line in proxy.log_lines()))


@pytest.mark.parametrize("fields,told", [
    ((), None), (("x-proxy-notes: 0",), None), (("x-proxy-notes: false",), None), (ASK_NOTES, "none")])
def test_notes_are_a_header_for_those_who_ask(start, fields, told):
    proxy, _ = start(text_answer("ok"))
    for stream in (True, False):
        answer = ask(proxy.port, message_body(stream=stream), fields=fields)
        assert answer.headers.get("x-proxy-notes") == told


def test_logs_tell_facts_and_no_content(start):
    proxy, _ = start(text_answer("UPSTREAMCANARY"))
    body = message_body("PROMPTCANARY", system="SYSTEMCANARY", stream=True)
    ask(proxy.port, body, fields=("x-api-key: KEYCANARY", "x-other: HEADERCANARY"))
    assert wait_until(lambda: any(line["event"] == "request" for line in proxy.log_lines()))
    line = next(line for line in proxy.log_lines() if line["event"] == "request")
    assert line["status"] == 200 and line["model"] == "claude-sonnet-5"
    assert line["upstream_model"] == "gpt-4o" and line["input_tokens"] == 11
    assert "CANARY" not in proxy.log_text.getvalue()


# --- tools in text ----------------------------------------------------------------------------------

BASH = {"name": "Bash", "description": "run", "input_schema": {"type": "object", "properties": {
    "command": {"type": "string"}}}}


@pytest.mark.parametrize("models", ["local-*", "openai:local-*", "other, local-7b"])
def test_a_model_that_cannot_call_tools_is_told_of_them_and_calls_in_text(start, models):
    words = ["I lo", "ok. ", "\n<too", "l_call>\n", '{"name": "Bash", "in', 'put": {"command": "ls"}}\n</tool', "_call>\n"]
    proxy, upstream = start(chat_stream(*(delta(content=word) for word in words), delta("stop"), USAGE),
                            environ={"TEXT_TOOLS_MODELS": models})
    answer = ask(proxy.port, {**message_body(tools=[BASH], stream=True), "model": "local-7b"})
    starts = [e["content_block"] for e in answer.events if e["type"] == "content_block_start"]
    assert [block["type"] for block in starts] == ["text", "tool_use"] and text_of(answer) == "I look."
    assert answer.events[-2]["delta"]["stop_reason"] == "tool_use"
    assert answer.events[-2]["usage"]["output_tokens"] == 3
    sent = upstream.requests[0].json
    assert "tools" not in sent and "=== Bash ===" in sent["messages"][0]["content"]


def test_text_before_a_call_leaves_as_it_comes(start):
    go = threading.Event()
    script = chat_stream(delta(content="At once, "), Pause(5, go), delta(content="then."), delta("stop"), USAGE)
    proxy, _ = start(script, environ={"TEXT_TOOLS_MODELS": "*"})
    with RawClient(proxy.port) as client:
        client.send(request_bytes(message_body(tools=[BASH], stream=True)))
        assert b'"At once,"' in client.read_until(b'"At once,"')
        go.set()
        assert b'" then."' in client.read_until(b"message_stop")


# --- found by looking for trouble ---------------------------------------------------------------------


@pytest.mark.parametrize("status", [201, 202, 204, 206, 302])
def test_a_failure_is_never_told_with_a_status_of_success(start, status):
    proxy, _ = start(http_answer(status, b"" if status == 204 else b'{"error": {"message": "no"}}'))
    answer = ask(proxy.port, message_body())
    assert answer.status == 502 and answer.json["type"] == "error"


def test_words_of_a_request_are_in_no_note(start):
    proxy, _ = start(text_answer("fine"))
    blocks = [{"type": "CANARY John Doe", "source": {}}, {"type": "text", "text": "hi"}]
    tools = [{"name": "CANARY", "type": "CANARY tool"}]
    messages = [{"role": "user", "content": blocks}, {"role": "assistant", "content": blocks[:1]}]
    answer = ask(proxy.port, message_body(messages=messages, tools=tools), fields=ASK_NOTES)
    assert answer.status == 200 and "block=dropped" in answer.headers["x-proxy-notes"]
    wait_until(lambda: any(line["event"] == "request" for line in proxy.log_lines()))
    assert "CANARY" not in proxy.log_text.getvalue() + str(answer.headers)


@pytest.mark.parametrize("body", [
    b'{"error": {"message": "wrong key canarykey1 and header canaryheader1"}}',
    b"<html><title>wrong key canarykey1, header canaryheader1</title></html>"])
@pytest.mark.parametrize("status", [200, 401])
def test_our_own_secrets_do_not_come_back(form, status, body):
    with ScriptedUpstream(http_answer(status, body)) as upstream:
        environ = {**upstream_environ(upstream), "OPENAI_API_KEY": "canarykey1", "CUSTOM_HEADER_X_T": "canaryheader1"}
        with running_proxy(form, environ) as proxy:
            answer = ask(proxy.port, message_body())
    assert answer.status in (401, 502) and b"canary" not in answer.body and b"wrong key" in answer.body


def test_odd_pages_take_no_time(start):
    proxy, _ = start(http_answer(200, b"<" + b"<title" * 50_000))
    assert ask(proxy.port, message_body()).status == 502


def test_endless_blanks_are_not_kept(start):
    blanks = [http_chunk(b" \n" * 50_000)] * 60
    proxy, _ = start([STREAM_HEAD, *blanks, *text_answer("fine")[1:]])
    assert ask(proxy.port, message_body()).json["content"][0]["text"] == "fine"


def test_an_answer_that_comes_before_the_request_is_sent_is_read(start):
    """Too large, says the upstream, and reads no more."""

    class Hasty(ScriptedUpstream):
        def _serve(self, sock):
            with sock:
                sock.recv(65536)
                sock.sendall(json_answer(413, {"error": {"message": "too large"}}, "connection: close")[0])
                sock.shutdown(socket.SHUT_RD)
                sock.recv(1)

    with Hasty() as upstream:
        proxy, _ = start(text_answer(""), environ=upstream_environ(upstream))
        answer = ask(proxy.port, message_body("x" * 8_000_000))
    assert answer.status in (413, 502)


@pytest.mark.parametrize("second", [
    [Pause(1.2), HANG_UP], [b"HTTP/1.1 200 OK\r\ncontent-ty", HANG_UP]], ids=["late", "half a head"])
def test_what_a_kept_connection_has_read_is_not_sent_again(start, second):
    proxy, upstream = start(text_answer("one"), second)
    assert ask(proxy.port, message_body()).status == 200
    assert ask(proxy.port, message_body()).status == 502
    assert len(upstream.requests) == 2


def test_a_client_that_reads_slowly_is_not_the_upstreams_fault(form):
    words = [http_chunk(sse(delta(content="word " * 4000))) for _ in range(400)]
    script = [STREAM_HEAD, *words, http_chunk(sse(delta("stop"))), http_chunk(sse("[DONE]")), LAST]
    with ScriptedUpstream(script) as upstream:
        environ = {**upstream_environ(upstream), "STREAM_IDLE_TIMEOUT": "0.2"}
        with running_proxy(form, environ) as proxy, RawClient(proxy.port) as client:
            client.send(request_bytes(message_body(stream=True)))
            client.read_until(b"word")
            threading.Event().wait(0.6)
            rest = client.read_until(b"0\r\n\r\n")
    assert b"message_stop" in rest and b"event: error" not in rest


def test_leaving_while_it_connects_ends_the_wait(form):
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for sock in waiting:
            sock.setblocking(False)
            sock.connect_ex(full.getsockname())
        environ = {"OPENAI_BASE_URL": f"http://127.0.0.1:{full.getsockname()[1]}/v1", "CONNECT_TIMEOUT": "5"}
        with running_proxy(form, environ) as proxy:
            with RawClient(proxy.port) as client:
                client.send(request_bytes(message_body()))
                wait_until(lambda: proxy.inflight.exchanges())
            assert wait_until(lambda: not proxy.inflight.exchanges(), 2)
            assert wait_until(lambda: any(line.get("status") == 499 for line in proxy.log_lines()))
        for sock in waiting:
            sock.close()


@pytest.mark.parametrize("model", ["x" * 257, "x" * 1_000_000])
def test_a_models_name_has_an_end(start, model):
    proxy, _ = start(text_answer("fine"))
    assert ask(proxy.port, {**message_body(), "model": model}).status == 400


def test_metrics_tell_of_what_was_answered(start):
    proxy, _ = start(text_answer("fine"), environ={"BIG_MODEL": "m"})
    ask(proxy.port, message_body(model="claude-opus-4-8"))
    wait_until(lambda: any(line["event"] == "request" for line in proxy.log_lines()))
    answer = ask(proxy.port, path="/metrics", method="GET")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    text = answer.body.decode()
    assert 'claude_proxy_requests_total{path="/v1/messages",status="200",upstream="openai"} 1' in text
    assert 'gen_ai_client_token_usage_sum{upstream="openai",model="m",gen_ai_token_type="input"} 11' in text
