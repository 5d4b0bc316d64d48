"""Claude clients before SecureChatAI: whose token, what is sent how often, how the wait feels."""

from __future__ import annotations

import contextlib
import json
import threading
from urllib.parse import parse_qsl

import pytest

from tests.support import (
    HANG_UP,
    WAIT_FOR_CLOSE,
    Pause,
    RawClient,
    ScriptedUpstream,
    ask,
    http_answer,
    json_answer,
    message_body,
    read_request,
    request_bytes,
    running_proxy,
    wait_until,
)

pytestmark = pytest.mark.usefixtures("no_thread_left")

TOKEN, OTHER, SUPER = "0123456789abcdef" * 2, "FEDCBA9876543210" * 2, "0123456789abcdef" * 4
SHARED = {"REDCAP_API_TOKEN": TOKEN}
NO_ACTION = json_answer(400, {"error": "The requested action is not allowed."})
OLD_INFO = json_answer(200, {"name": "SecureChatAI", "auth-actions": {"callAI": "ask"}})
NEW_INFO = json_answer(200, {"name": "SecureChatAI", "module-version": "v1", "redcap-version": "15",
                             "auth-actions": {"callAI": "a", "messages": "m"}})
TOOLS = [{"name": "Bash", "description": "run", "input_schema": {"type": "object", "properties": {
    "command": {"type": "string"}}, "required": ["command"]}}]


def reply(text="hello", tokens=(10, 5)):
    return json_answer(200, {"id": "msg_6b0107acf1713", "type": "message", "content": [{"type": "text", "text": text}],
                             "usage": {"input_tokens": tokens[0], "output_tokens": tokens[1]}})


def call_ai_reply(content):
    usage = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}
    return json_answer(200, {"status": "success", "model": "m", "content": content, "usage": usage})


def call(**arguments):
    return "<tool_call>\n" + json.dumps({"name": "Bash", "input": arguments}) + "\n</tool_call>"


def logged(proxy, fact):
    """Whether a request's line has the fact; the line is written when the client has its answer."""
    return any(fact in line for line in proxy.log_lines())


def form_of(received):
    return dict(parse_qsl(received.body.decode(), keep_blank_values=True))


def bearer(token):
    return (f"authorization: Bearer {token}",)


@pytest.fixture
def start(form):
    """start(script, ..., NAME=value) -> (proxy, the server that stands for REDCap)."""
    with contextlib.ExitStack() as stack:
        def go(*scripts, **settings):
            redcap = stack.enter_context(ScriptedUpstream(*scripts))
            environ = {"REDCAP_API_URL": f"http://127.0.0.1:{redcap.port}/api/", **settings}
            return stack.enter_context(running_proxy(form, environ)), redcap
        yield go


# --- whose token ----------------------------------------------------------------------------------

# (settings, what the client shows, the token that REDCap gets, or None: refused here)
TOKENS = [
    ("per user, bearer", {}, bearer(TOKEN), TOKEN),
    ("per user, x-api-key", {}, (f"x-api-key: {OTHER}",), OTHER),
    ("per user, nothing", {}, (), None),
    ("per user, no token", {}, bearer("any-text"), None),
    ("per user, too short", {}, bearer(TOKEN[:-1]), None),
    ("per user, super token", {}, bearer(SUPER), None),
    ("per user beside the proxy's key", {"ANTHROPIC_API_KEY": "k" * 20}, ("x-api-key: " + "k" * 20, *bearer(TOKEN)), TOKEN),
    ("the proxy's key is no token", {"ANTHROPIC_API_KEY": OTHER}, bearer(OTHER), None),
    ("shared, the same", SHARED, bearer(TOKEN), TOKEN),
    ("shared, another", SHARED, bearer(OTHER), None),
    ("shared, nothing", SHARED, (), None),
    ("shared, by the proxy's key", {**SHARED, "ANTHROPIC_API_KEY": "k" * 20}, bearer("k" * 20), TOKEN),
]


@pytest.mark.parametrize("name,settings,shown,sent", TOKENS, ids=[row[0] for row in TOKENS])
def test_whose_token(start, name, settings, shown, sent):
    proxy, redcap = start(reply(), **settings)
    answer = ask(proxy.port, message_body(), fields=shown)
    assert [form_of(request)["token"] for request in redcap.requests] == ([sent] if sent else [])
    if sent is None:
        assert answer.status == 401 and answer.headers["x-should-retry"] == "false"
    else:
        assert answer.json["content"] == [{"type": "text", "text": "hello"}]
    told = proxy.log_text.getvalue() + answer.body.decode() + str(answer.headers)
    assert not any(secret in told for secret in (TOKEN, OTHER, SUPER, "k" * 20))


def test_the_super_token_is_named_as_the_reason(start):
    proxy, _ = start(reply())
    assert "super token" in ask(proxy.port, message_body(), fields=bearer(SUPER)).json["error"]["message"]


@pytest.mark.parametrize("path,method", [("/v1/models", "GET"), ("/", "GET"), ("/test-connection", "GET")])
def test_nothing_is_open_without_a_token(start, path, method):
    proxy, redcap = start(NEW_INFO)
    assert ask(proxy.port, path=path, method=method).status == 401 and not redcap.requests


def test_fifty_users_never_cross(start):
    tokens = [f"{n:032x}" for n in range(1, 51)]

    class Echo(ScriptedUpstream):
        """Answers with the token that came."""

        def _answer_one(self, sock, reader):
            request = read_request(reader)
            if request is None:
                return False
            return all(self._play(sock, step) for step in reply("owner " + form_of(request)["token"]))

    with Echo() as redcap:
        proxy, _ = start(reply(), REDCAP_API_URL=f"http://127.0.0.1:{redcap.port}/api/", REDCAP_MAX_CALLS="4")
        answers = {}

        def one(token):
            for turn in range(4):
                answers[token, turn] = ask(proxy.port, message_body(stream=turn % 2 == 0), fields=bearer(token))

        threads = [threading.Thread(target=one, args=(token,)) for token in tokens]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert len(answers) == 200
    for (token, turn), answer in answers.items():
        body = answer.body.decode()
        told = "".join(e["delta"].get("text", "") for e in answer.events if e["type"] == "content_block_delta") \
            if turn % 2 == 0 else answer.json["content"][0]["text"]
        assert told == f"owner {token}", body[:300]
    assert not any(token in proxy.log_text.getvalue() for token in tokens)


# --- what is sent, and how often -------------------------------------------------------------------


def test_one_form_in_the_body_and_nothing_in_the_url(start):
    proxy, redcap = start(reply(), **SHARED)
    ask(proxy.port, message_body("a&b", system="S", temperature=1), fields=bearer(TOKEN))
    (request,) = redcap.requests
    assert request.line == "POST /api/ HTTP/1.1"
    assert request.headers["content-type"] == "application/x-www-form-urlencoded"
    assert "authorization" not in request.headers and TOKEN not in str(request.headers)
    assert form_of(request) == {
        "token": TOKEN, "content": "externalModule", "prefix": "secure_chat_ai", "action": "messages", "format": "json",
        "returnFormat": "json", "model": "claude-sonnet-4.6", "system": "S", "max_tokens": "100", "temperature": "1",
        "messages": '[{"role":"user","content":"a&b"}]'}


ONCE = [
    ("500", http_answer(500, b"")), ("503", http_answer(503, b"<html>")), ("429", http_answer(429, b"")),
    ("hangs up", [HANG_UP]), ("half a body", [b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n{", HANG_UP]),
    ("half a head", [b"HTTP/1.1 200 OK\r\ncont", HANG_UP]), ("apology", reply("I apologize", (0, 0))),
    ("redirect", http_answer(301, b"", "location: http://127.0.0.1:9/")), ("no JSON", http_answer(200, b"<html>login")),
    ("empty", http_answer(200, b"")),
]


@pytest.mark.parametrize("name,script", ONCE, ids=[row[0] for row in ONCE])
@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_was_sent_is_never_repeated(start, name, script, stream):
    proxy, redcap = start(script, MAX_RETRIES="3", **SHARED)
    answer = ask(proxy.port, message_body(stream=stream), fields=bearer(TOKEN))
    assert answer.status >= 400 and answer.json["error"]["message"] and len(redcap.requests) == 1
    assert TOKEN not in answer.body.decode() + proxy.log_text.getvalue()


def test_kept_connections_are_not_used_for_calls(start):
    """One that REDCap has just given up would be a call of unknown fate."""
    proxy, redcap = start(reply(), **SHARED)
    for _ in range(3):
        assert ask(proxy.port, message_body(), fields=bearer(TOKEN)).status == 200
    assert redcap.connections == 3


@pytest.mark.parametrize("model,words", [("gpt-9", "gpt-9"), ("redcap:grok-9", "grok-9")])
def test_unknown_aliases_are_refused_here_with_the_list(start, model, words):
    proxy, redcap = start(reply(), **SHARED)
    answer = ask(proxy.port, {**message_body(), "model": model}, fields=bearer(TOKEN))
    assert answer.status == 404 and not redcap.requests
    assert words in answer.json["error"]["message"] and "claude-sonnet-4.6" in answer.json["error"]["message"]


ALIASES = [
    ({}, "claude-opus-4-8", "claude-opus-4-7"), ({}, "claude-nobody-knows", "claude-opus-4-7"), ({}, "claude-sonnet-5", "claude-sonnet-4.6"),
    ({}, "claude-haiku-4-5-20251001", "claude-haiku-4.5"), ({}, "claude-opus-4-6", "claude-opus-4-6"),
    ({}, "gpt-4.1", "gpt-4-1"), ({}, "gemini-2.5-pro", "gemini-2.5-pro"), ({}, "deepseek", "deepseek-r1"),
    ({"SMALL_MODEL": "gpt-4-1-nano"}, "claude-haiku-4-5-20251001", "gpt-4-1-nano"),
    ({"BIG_MODEL": "own-alias"}, "claude-opus-4-8", "own-alias"),
    ({"REDCAP_ALIASES": "mine, yours"}, "yours", "yours"),
    ({"REDCAP_ERA": "2026-01"}, "claude-haiku-4-5-20251001", "gpt-4o"),
    ({"REDCAP_ERA": "2026-01"}, "claude-3-7-sonnet-20250219", "claude"),
    ({"REDCAP_ERA": "2026-01"}, "claude-sonnet-4", "claude"),
    ({"REDCAP_ERA": "2026-01"}, "o3-mini", "o3-mini"), ({"REDCAP_ERA": "2026-01"}, "gpt-4.1", "gpt-4.1"),
]


@pytest.mark.parametrize("settings,asked,sent", ALIASES)
def test_aliases(start, settings, asked, sent):
    proxy, redcap = start(reply(), **SHARED, **settings)
    answer = ask(proxy.port, {**message_body(), "model": asked}, fields=bearer(TOKEN))
    assert form_of(redcap.requests[0])["model"] == sent and answer.json["model"] == asked


def test_a_prompt_that_is_too_long_is_refused_in_the_words_that_make_claude_code_compact(start):
    proxy, redcap = start(reply(), **SHARED)
    answer = ask(proxy.port, message_body("some words " * 120_000), fields=bearer(TOKEN))
    assert answer.status == 400 and not redcap.requests
    assert answer.json["error"]["message"].startswith("prompt is too long: ")
    assert answer.json["error"]["message"].endswith("tokens > 183616 maximum")


def test_a_form_that_is_too_large_is_refused_here(start):
    proxy, redcap = start(reply(), REDCAP_MAX_BYTES="2000", **SHARED)
    answer = ask(proxy.port, message_body("&" * 900), fields=bearer(TOKEN))
    assert (answer.status, answer.json["error"]["type"]) == (413, "request_too_large") and not redcap.requests


def test_two_megabytes_arrive_whole(start):
    proxy, redcap = start(reply(), **SHARED)
    words = "some more words \u00fc&\n" * 100_000
    answer = ask(proxy.port, {**message_body(words), "model": "gpt-4.1"}, fields=bearer(TOKEN))
    assert answer.status == 200 and json.loads(form_of(redcap.requests[0])["messages"])[0]["content"] == words


def test_after_a_ban_calls_pause(start):
    proxy, redcap = start(http_answer(200, b"Your IP has been banned due to suspected abuse."), **SHARED)
    for _ in range(3):
        answer = ask(proxy.port, message_body(), fields=bearer(TOKEN))
        assert answer.status == 429 and answer.headers["x-should-retry"] == "false"
    assert len(redcap.requests) == 1


# --- older modules, schema mode, looking ------------------------------------------------------------


def test_an_older_module_is_found_out_once_and_asked_by_call_ai(start):
    proxy, redcap = start(NO_ACTION, OLD_INFO, call_ai_reply("hello"), **SHARED)
    for _ in range(2):
        answer = ask(proxy.port, message_body("q", system="S"), fields=bearer(TOKEN))
        assert answer.json["content"] == [{"type": "text", "text": "hello"}]
    forms = [form_of(request) for request in redcap.requests]
    assert [form["action"] for form in forms] == ["messages", "__info", "callAI", "callAI"]
    assert forms[2]["prompt"] == "System: S\n\nUser: q\n\nAssistant:" and "messages" not in forms[2]


def test_a_refusal_by_a_new_module_stays_one(start):
    proxy, redcap = start(NO_ACTION, NEW_INFO, **SHARED)
    answer = ask(proxy.port, message_body(), fields=bearer(TOKEN))
    assert answer.status == 400 and "not allowed" in answer.json["error"]["message"]
    assert [form_of(request)["action"] for request in redcap.requests] == ["messages", "__info"]


def test_schema_mode(start):
    answer = {"text": "Look:", "calls": [{"name": "Bash", "arguments": '{"command": "ls"}'}]}
    proxy, redcap = start(call_ai_reply(answer), REDCAP_SCHEMA_ALIASES="gpt-4-1*", **SHARED)
    body = {**message_body(tools=TOOLS), "model": "gpt-4-1"}
    content = ask(proxy.port, body, fields=bearer(TOKEN)).json["content"]
    assert content[0] == {"type": "text", "text": "Look:"}
    assert (content[1]["name"], content[1]["input"]) == ("Bash", {"command": "ls"})
    assert form_of(redcap.requests[0])["action"] == "callAI" and "json_schema" in form_of(redcap.requests[0])


def test_looking_costs_nothing(start):
    proxy, redcap = start(NEW_INFO, **SHARED)
    answer = ask(proxy.port, path="/test-connection", method="GET", fields=bearer(TOKEN))
    assert (answer.status, answer.json["actions"], answer.json["served_by"]) == (200, ["callAI", "messages"], "messages")
    assert [form_of(request)["action"] for request in redcap.requests] == ["__info"]


# --- tools ------------------------------------------------------------------------------------------


def test_tools_in_text(start):
    text = "I look.\n\n" + call(command="ls \u0026\u0026 echo \"x\"") + "\n" + call(command="pwd") + "\n<tool_result id=1>no"
    proxy, redcap = start(reply(text), **SHARED)
    answer = ask(proxy.port, message_body(tools=TOOLS, stream=True), fields=bearer(TOKEN))
    starts = [e["content_block"] for e in answer.events if e["type"] == "content_block_start"]
    assert [block["type"] for block in starts] == ["text", "tool_use", "tool_use"]
    assert answer.events[-2]["delta"]["stop_reason"] == "tool_use"
    form = form_of(redcap.requests[0])
    assert "=== Bash ===" in form["system"] and "tools" not in form and form["stop[0]"] == "\n<tool_result"
    assert wait_until(lambda: logged(proxy, "tool_results_invented"))


def test_the_conversation_goes_back_as_text(start):
    proxy, redcap = start(reply(), **SHARED)
    messages = [
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "Bash", "input": {"command": "a && b"}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "is_error": True,
                                      "content": [{"type": "text", "text": "no <b>"}]}]}]
    ask(proxy.port, message_body(tools=TOOLS, messages=messages), fields=bearer(TOKEN))
    sent = json.loads(form_of(redcap.requests[0])["messages"])
    assert sent == [
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": '<tool_call>\n{"name":"Bash","input":{"command":"a \\u0026\\u0026 b"},"id":"t1"}\n</tool_call>'},
        {"role": "user", "content": '<tool_result id="t1" error="true">\nno <b>\n</tool_result>'}]


def test_one_silent_repair(start):
    proxy, redcap = start(reply('Yes.\n<tool_call>\n{"name": "Bash", "input": {"command": "say "hi""}}\n</tool_call>'),
                          reply(call(command='say "hi"')), **SHARED)
    content = ask(proxy.port, message_body(tools=TOOLS), fields=bearer(TOKEN)).json["content"]
    assert [block.get("text") or block["input"] for block in content] == ["Yes.", {"command": 'say "hi"'}]
    again = json.loads(form_of(redcap.requests[1])["messages"])
    assert [turn["role"] for turn in again] == ["user", "assistant", "user"]
    assert "not a valid tool call" in again[2]["content"]
    assert wait_until(lambda: logged(proxy, "tool_repairs"))


# --- the wait ---------------------------------------------------------------------------------------


def test_a_quick_failure_keeps_its_status_though_a_stream_was_asked_for(start):
    proxy, _ = start(json_answer(403, {"error": "no rights"}), **SHARED)
    assert ask(proxy.port, message_body(stream=True), fields=bearer(TOKEN)).status == 401


def test_a_slow_answer_is_announced_and_pinged_for_and_a_late_failure_is_an_event(form):
    go = threading.Event()
    with ScriptedUpstream([Pause(5, go), *reply("I apologize", (0, 0))]) as redcap:
        environ = {"REDCAP_API_URL": f"http://127.0.0.1:{redcap.port}/api/", **SHARED}
        with running_proxy(form, environ, ping_interval=0.05) as proxy, RawClient(proxy.port) as client:
            client.send(request_bytes(message_body(stream=True), fields=bearer(TOKEN)))
            seen = client.read_until(b"event: ping")
            assert b"HTTP/1.1 200" in seen and b"message_start" in seen
            client.read_until(b"event: ping")
            go.set()
            assert b"no tokens" in client.read_until(b"0\r\n\r\n")


def test_the_whole_answer_has_one_deadline(form):
    """However busily the bytes drip."""
    drip = [Pause(0.04), b" "] * 50
    head = b"HTTP/1.1 200 OK\r\ncontent-length: 5000\r\n\r\n"
    with ScriptedUpstream([head, *drip]) as redcap:
        environ = {"REDCAP_API_URL": f"http://127.0.0.1:{redcap.port}/api/", **SHARED}
        with running_proxy(form, {**environ, "REQUEST_TIMEOUT": "0.3"}) as proxy:
            answer = ask(proxy.port, message_body(), fields=bearer(TOKEN))
    assert answer.status == 504 and len(redcap.requests) == 1


def test_a_client_that_leaves_ends_the_call_and_frees_its_slot(start):
    proxy, redcap = start([WAIT_FOR_CLOSE], reply(), REDCAP_MAX_CALLS="1", **SHARED)
    with RawClient(proxy.port) as client:
        client.send(request_bytes(message_body(stream=True), fields=bearer(TOKEN)))
        wait_until(lambda: redcap.requests)
    assert redcap.closed_by_peer.wait(2)
    assert ask(proxy.port, message_body(), fields=bearer(TOKEN)).status == 200


def test_answers_are_told_in_small_pieces(start):
    words = "word " * 400
    proxy, _ = start(reply(words), **SHARED)
    answer = ask(proxy.port, message_body(stream=True), fields=bearer(TOKEN))
    told = [e["delta"]["text"] for e in answer.events if e["type"] == "content_block_delta"]
    assert "".join(told) == words and len(told) >= 20


STOPS = [
    ("claude-opus-4-8", (10, 16384), {}, ("max_tokens", None, "hello")),
    ("claude-opus-4-8", (10, 16383), {}, ("end_turn", None, "hello")),
    ("gpt-4.1", (10, 99999), {}, ("end_turn", None, "hello")),
    ("gpt-4.1", (10, 5), {"stop_sequences": ["zz", "ll"]}, ("stop_sequence", "ll", "he")),
]


@pytest.mark.parametrize("model,tokens,more,expected", STOPS)
def test_stop_reasons_are_made_here(start, model, tokens, more, expected):
    proxy, _ = start(reply("hello", tokens), **SHARED)
    message = ask(proxy.port, {**message_body(**more), "model": model}, fields=bearer(TOKEN)).json
    assert (message["stop_reason"], message["stop_sequence"], message["content"][0]["text"]) == expected


def test_the_repeat_of_a_stream_that_failed_late_is_told_and_not_asked_again(form):
    """Claude Code asks once more without `stream`, which would cost minutes and three calls."""
    with ScriptedUpstream([Pause(0.3), *reply("I apologize", (0, 0))]) as redcap:
        environ = {"REDCAP_API_URL": f"http://127.0.0.1:{redcap.port}/api/", **SHARED}
        with running_proxy(form, environ, ping_interval=0.05) as proxy:
            late = ask(proxy.port, message_body(stream=True), fields=bearer(TOKEN))
            other = ask(proxy.port, message_body("another"), fields=bearer(TOKEN))
            repeat = ask(proxy.port, message_body(max_tokens=7), fields=bearer(TOKEN))
            anew = ask(proxy.port, message_body(), fields=bearer(TOKEN))
    assert (late.status, late.events[-1]["type"]) == (200, "error")
    assert (other.status, repeat.status, anew.status) == (502, 502, 502)
    assert repeat.json["error"] == late.events[-1]["error"] and repeat.headers["x-should-retry"] == "false"
    assert len(redcap.requests) == 3
