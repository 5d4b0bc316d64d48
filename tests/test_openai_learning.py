"""The openai upstream end to end: what it learns, asks in the background, watches for and remembers."""

from __future__ import annotations

import contextlib
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support import (
    HANG_UP,
    USAGE,
    WAIT_FOR_CLOSE,
    ScriptedUpstream,
    ask,
    chat_stream,
    delta,
    http_answer,
    json_answer,
    message_body,
    running_proxy,
    text_answer,
    upstream_environ,
    wait_until,
)

pytestmark = pytest.mark.usefixtures("no_thread_left")

READ = {"name": "Read", "input_schema": {"type": "object", "properties": {"path": {"type": "string"}}}}


@pytest.fixture
def start(form):
    with contextlib.ExitStack() as stack:
        def go(*scripts, **environ):
            upstream = stack.enter_context(ScriptedUpstream(*scripts))
            settings = {**upstream_environ(upstream), **environ}
            return stack.enter_context(running_proxy(form, settings)), upstream
        yield go


def refusal(message, **more):
    return json_answer(400, {"error": {"message": message, **more}})


def texts(answer):
    return "".join(b.get("text", "") for b in answer.json["content"])


def learned(proxy):
    return [line["learned"] for line in proxy.log_lines() if line.get("learned")]


LESSONS = [
    ("reasoning_effort with code and param", {"OPENAI_PROFILE": "openai", "BIG_MODEL": "gpt-5.2"},
     {"output_config": {"effort": "xhigh"}}, refusal(
         "Unsupported value: 'xhigh' is not supported with this model. Supported values are: 'low' and 'high'.",
         code="unsupported_value", param="reasoning_effort"), "reasoning_effort", "xhigh", "high"),
    ("schema", {}, {"tools": [{**READ, "input_schema": {"type": "object", "$schema": "x"}}]},
     refusal("Invalid schema for function 'Read'"), "tools", None, None),
    ("stop", {}, {"stop_sequences": ["X"]}, refusal("Unsupported parameter: 'stop' is not supported"), "stop", ["X"], None),
    ("user", {"OPENAI_PROFILE": "openrouter"}, {"metadata": {"user_id": "u"}}, refusal(
        "user: Extra inputs are not permitted"), "user", None, None),
]


@pytest.mark.parametrize("name,environ,members,refused,member,before,after", LESSONS, ids=[row[0] for row in LESSONS])
def test_one_refusal_teaches_for_good(start, name, environ, members, refused, member, before, after):
    proxy, upstream = start(refused, text_answer("fine"), text_answer("again"), **{"BIG_MODEL": "m", **environ})
    body = message_body(model="claude-opus-4-8", **members)
    assert texts(ask(proxy.port, body)) == "fine" and texts(ask(proxy.port, body)) == "again"
    sent = [request.json.get(member) for request in upstream.requests]
    assert len(sent) == 3 and sent[0] != sent[1] == sent[2]
    assert before is None or (sent[0], sent[1]) == (before, after)
    assert wait_until(lambda: len(learned(proxy)) == 1)


def test_a_model_without_tools_gets_them_as_text_from_then_on(start):
    called = 'Reading.\n<tool_call>\n{"name": "Read", "input": {"path": "a"}}\n</tool_call>'
    proxy, upstream = start(refusal("m does not support tools"), text_answer(called))
    for _ in range(2):
        answer = ask(proxy.port, message_body(tools=[READ]), fields=("x-proxy-notes: 1",))
        assert [block["type"] for block in answer.json["content"]] == ["text", "tool_use"]
        assert answer.json["stop_reason"] == "tool_use" and "tools=told" in answer.headers["x-proxy-notes"]
    assert ["tools" in request.json for request in upstream.requests] == [True, False, False]
    assert wait_until(lambda: learned(proxy) == ["tools=False"])
    assert texts(ask(proxy.port, message_body())) == called


@pytest.mark.parametrize("known", [False, True])
def test_tools_as_text_are_streamed_too(start, known):
    """Found out by this very request, or by an earlier one."""
    called = 'Reading.\n<tool_call>\n{"name": "Read", "input": {"path": "a"}}\n</tool_call>'
    proxy, upstream = start(refusal("m does not support tools"), text_answer(called))
    if known:
        ask(proxy.port, message_body(tools=[READ]))
    answer = ask(proxy.port, message_body(tools=[READ], stream=True))
    starts = [e["content_block"]["type"] for e in answer.events if e["type"] == "content_block_start"]
    assert starts == ["text", "tool_use"] and answer.events[-2]["delta"]["stop_reason"] == "tool_use"
    assert len(upstream.requests) == 2 + known


def test_the_room_beside_a_long_prompt_is_found_each_time(start):
    message = ("This model's maximum context length is 8192 tokens. However, you requested 36000 tokens"
               " (4000 in the messages, 32000 in the completion).")
    proxy, upstream = start(refusal(message), text_answer("fine"))
    assert texts(ask(proxy.port, message_body(max_tokens=32000))) == "fine"
    assert texts(ask(proxy.port, message_body(max_tokens=32000))) == "fine"
    assert [request.json["max_tokens"] for request in upstream.requests] == [32000, 4128, 32000]


def test_a_refusal_that_teaches_nothing_is_the_clients(start):
    proxy, upstream = start(refusal("I do not like it"))
    answer = ask(proxy.port, message_body())
    assert answer.status == 400 and answer.json["error"]["message"] == "I do not like it"
    assert len(upstream.requests) == 1


def test_four_lessons_are_enough_for_one_request(start):
    members = ("temperature", "top_p", "stop", "parallel_tool_calls", "response_format")
    scripts = [refusal(f"Unsupported parameter: '{name}'") for name in members]
    proxy, upstream = start(*scripts)
    body = message_body(temperature=1, top_p=1, stop_sequences=["X"], tools=[READ],
                        tool_choice={"type": "auto", "disable_parallel_tool_use": True},
                        output_config={"format": {"type": "json_schema", "schema": {}}})
    answer = ask(proxy.port, body)
    assert answer.status == 400 and "response_format" in answer.json["error"]["message"]
    assert len(upstream.requests) == 5


# --- stop sequences -----------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
def test_a_stop_sequence_ends_the_answer_and_the_upstream(start, stream):
    script = chat_stream(delta(content="one <"), delta(content="/stop> two"), WAIT_FOR_CLOSE)
    proxy, upstream = start(script)
    answer = ask(proxy.port, message_body(stop_sequences=["</stop>"], stream=stream))
    if stream:
        assert answer.events[-2]["delta"] == {"stop_reason": "stop_sequence", "stop_sequence": "</stop>"}
        assert answer.events[-1] == {"type": "message_stop"}
    else:
        assert (texts(answer), answer.json["stop_sequence"]) == ("one ", "</stop>")
        assert answer.json["usage"]["input_tokens"] > 0
    assert upstream.requests[0].json["stop"] == ["</stop>"]


# --- limits -------------------------------------------------------------------------------------


MODELS = {"data": [{"id": "m", "max_model_len": 8192, "top_provider": {"max_completion_tokens": 6000}}]}


def limits_known(proxy):
    catalog = proxy.app.upstreams["openai"].catalog
    catalog.look_up("m")
    catalog.wait(5)
    return bool(catalog.look_up("m").window)


def test_limits_are_read_in_the_background_and_kept_to(start):
    proxy, upstream = start(
        lambda request: json_answer(200, MODELS) if request.line.startswith("GET") else text_answer("fine"),
        BIG_MODEL="m", MODEL_LIMITS="true")
    assert limits_known(proxy)
    body = message_body(model="claude-opus-4-8", max_tokens=64000)
    answer = ask(proxy.port, body, fields=("x-proxy-notes: 1",))
    asked = [request for request in upstream.requests if request.line.startswith("POST")]
    assert asked[-1].json["max_tokens"] == 6000 and "max_tokens=64000>6000" in answer.headers["x-proxy-notes"]
    long = message_body("word " * 4600, model="claude-opus-4-8", max_tokens=64000)
    assert texts(ask(proxy.port, long)) == "fine"
    asked = [request for request in upstream.requests if request.line.startswith("POST")]
    assert 1024 <= asked[-1].json["max_tokens"] < 6000
    listing = next(request for request in upstream.requests if request.line.startswith("GET"))
    assert listing.line.startswith("GET /v1/models ") and listing.headers["authorization"].startswith("Bearer ")


def test_a_server_that_cuts_silently_is_not_asked(start):
    window = {"models": [{"name": "m", "model": "m", "context_length": 4096}]}
    proxy, upstream = start(
        lambda request: json_answer(200, window) if request.line.startswith("GET") else text_answer("fine"),
        BIG_MODEL="m", MODEL_LIMITS="true", OPENAI_PROFILE="ollama")
    assert limits_known(proxy)
    answer = ask(proxy.port, message_body("word " * 9000, model="claude-opus-4-8"))
    assert answer.status == 400 and answer.headers["x-should-retry"] == "false"
    assert answer.json["error"]["message"].startswith("prompt is too long: ")
    assert " tokens > 4096 maximum" in answer.json["error"]["message"]
    assert not [request for request in upstream.requests if request.line.startswith("POST")]


@pytest.mark.parametrize("script", [json_answer(404, {"error": "no"}), json_answer(200, {"data": []}), [HANG_UP]])
def test_without_limits_everything_goes_on(start, script):
    proxy, upstream = start(
        lambda request: script if request.line.startswith("GET") else text_answer("fine"),
        BIG_MODEL="m", MODEL_LIMITS="true")
    assert texts(ask(proxy.port, message_body(model="claude-opus-4-8"))) == "fine"
    proxy.app.upstreams["openai"].catalog.wait(5)
    assert texts(ask(proxy.port, message_body(model="claude-opus-4-8", max_tokens=9))) == "fine"


# --- providers' ways ----------------------------------------------------------------------------


def test_a_profile_shapes_the_request(start):
    proxy, upstream = start(text_answer("fine"), OPENAI_PROFILE="mistral", BIG_MODEL="m")
    use = {"type": "tool_use", "id": "toolu_1", "name": "Read", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": ""}
    messages = [{"role": "user", "content": "go"}, {"role": "assistant", "content": [use]},
                {"role": "user", "content": [result]}]
    ask(proxy.port, message_body(messages=messages, tools=[READ], tool_choice={"type": "any"}))
    sent = upstream.requests[0].json
    assert sent["tool_choice"] == "any" and sent["messages"][2]["content"] == "(no output)"
    assert len(sent["messages"][2]["tool_call_id"]) == 9
    assert proxy.app.upstreams["openai"].describe().endswith("(mistral)")


def test_no_note_or_log_line_holds_what_was_written(start):
    proxy, _ = start(text_answer("fine"))
    body = message_body("CANARY", thinking={"type": "CANARY"}, output_config={"effort": "CANARY"}, top_k=1,
                        stop_sequences=["CANARY"], metadata={"user_id": "CANARY"})
    answer = ask(proxy.port, body, fields=("x-proxy-notes: 1",))
    wait_until(lambda: any(line["event"] == "request" for line in proxy.log_lines()))
    assert "CANARY" not in proxy.log_text.getvalue() + json.dumps(answer.headers) + USAGE["id"]


@pytest.mark.parametrize("body", [b"404 page not found", b"<html><title>404</title></html>", b'{"detail":"Not Found"}', b""])
def test_a_base_url_without_v1_is_found_out_once(form, body):
    def script(request):
        return text_answer("fine") if "/v1/" in request.line else http_answer(404, body)

    with ScriptedUpstream(script) as upstream:
        environ = {**upstream_environ(upstream), "OPENAI_BASE_URL": upstream.url[: -len("/v1")]}
        with running_proxy(form, environ) as proxy:
            assert [texts(ask(proxy.port, message_body())) for _ in range(2)] == ["fine", "fine"]
    assert [request.line.split()[1] for request in upstream.requests] == [
        "/chat/completions", "/v1/chat/completions", "/v1/chat/completions"]


def test_requests_that_start_together_all_find_the_path(form):
    """Each has asked at the wrong place before any has found the right one."""
    together = threading.Barrier(3)

    def script(request):
        if "/v1/" in request.line:
            return text_answer("fine")
        together.wait(5)
        return http_answer(404, b"404 page not found")

    with ScriptedUpstream(script) as upstream:
        environ = {**upstream_environ(upstream), "OPENAI_BASE_URL": upstream.url[: -len("/v1")]}
        with running_proxy(form, environ) as proxy, ThreadPoolExecutor(3) as pool:
            answers = list(pool.map(lambda _: ask(proxy.port, message_body()), range(3)))
    assert [texts(answer) for answer in answers] == ["fine"] * 3


def test_lessons_that_come_together_are_all_kept(start):
    members = {"temperature": {"temperature": 1}, "top_p": {"top_p": 0.5}, "stop": {"stop_sequences": ["X"]}}
    together = threading.Barrier(3)

    def script(request):
        name = next((name for name in members if name in request.json), "")
        if name and not learnt.is_set():
            together.wait(5)
        return refusal(f"Unsupported parameter: '{name}'") if name else text_answer("fine")

    learnt = threading.Event()
    proxy, upstream = start(script)
    with ThreadPoolExecutor(3) as pool:
        bodies = [message_body(**member) for member in members.values()]
        answers = list(pool.map(lambda body: ask(proxy.port, body), bodies))
    learnt.set()
    assert [texts(answer) for answer in answers] == ["fine"] * 3
    before = len(upstream.requests)
    everything = {name: value for member in members.values() for name, value in member.items()}
    assert texts(ask(proxy.port, message_body(**everything))) == "fine" and len(upstream.requests) == before + 1


@pytest.mark.parametrize("message", ["The model `x` does not exist", "no such thing"])
def test_a_404_behind_v1_is_told(start, message):
    proxy, upstream = start(json_answer(404, {"error": {"message": message}}))
    assert ask(proxy.port, message_body()).status == 404 and len(upstream.requests) == 1
