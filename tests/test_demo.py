"""The demo upstream: what a user can try before any credential exists."""

from __future__ import annotations

import threading

import pytest

from claude_proxy.errors import ProxyError
from claude_proxy.events import check_grammar, events_to_message
from claude_proxy.exchange import Exchange, client_gone
from claude_proxy.upstreams.demo import DemoUpstream

TOOLS = [{"name": "Bash", "input_schema": {"type": "object"}}]


def ask_demo(text, tools=TOOLS, messages=None, exchange=None):
    request = {"model": "demo", "messages": messages or [{"role": "user", "content": text}], "tools": tools}
    exchange = exchange or Exchange()
    exchange.model = exchange.model or "claude-sonnet-5"
    return events_to_message(check_grammar(DemoUpstream().stream(request, exchange)))


def test_the_first_answer_says_what_arrived_and_what_to_do():
    message = ask_demo("Hello")
    text = message["content"][0]["text"]
    for words in ("claude-sonnet-5", "1 message", "1 tool", "OPENAI_API_KEY", "OPENAI_BASE_URL", "demo: tool"):
        assert words in text
    assert (message["stop_reason"], message["model"]) == ("end_turn", "claude-sonnet-5")
    assert message["usage"]["input_tokens"] > 0 and message["usage"]["output_tokens"] > 50


def test_equal_requests_get_equal_answers():
    assert ask_demo("Hello")["content"] == ask_demo("Hello")["content"]


CALL = 'demo: tool Bash {"command": "date", "n": [1, 2]}'
SCRIPTS = [
    (CALL, ["tool_use"], "tool_use"),
    ("please\n  " + CALL + "  \nthanks", ["tool_use"], "tool_use"),
    (CALL + "\n" + CALL, ["tool_use", "tool_use"], "tool_use"),
    ("demo: think\n" + CALL, ["thinking", "tool_use"], "tool_use"),
    ("demo: think", ["thinking", "text"], "end_turn"),
    ("demo: text hello you", ["text"], "end_turn"),
    ("demo: text first\n" + CALL, ["text", "tool_use"], "tool_use"),
    ("demo: slow 0.01", ["text"], "end_turn"),
    ("demo: tool Bash", ["tool_use"], "tool_use"),
    ("demo: dance", ["text"], "end_turn"),
    ("a demo: tool Bash {}", ["text"], "end_turn"),
]


@pytest.mark.parametrize("text,blocks,reason", SCRIPTS)
def test_scripts(text, blocks, reason):
    message = ask_demo(text)
    assert ([block["type"] for block in message["content"]], message["stop_reason"]) == (blocks, reason)
    ids = [block["id"] for block in message["content"] if block["type"] == "tool_use"]
    assert len(set(ids)) == len(ids)


def test_the_tool_gets_its_input():
    [block] = ask_demo(CALL)["content"]
    assert (block["name"], block["input"]) == ("Bash", {"command": "date", "n": [1, 2]})


def test_without_tools_none_is_called():
    """Clients quote the user's text in side calls that offer no tools."""
    assert [block["type"] for block in ask_demo(CALL, tools=[])["content"]] == ["text"]


def test_a_tools_answer_ends_the_turn():
    history = [
        {"role": "user", "content": CALL},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "Bash", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "Sat"}]},
        {"role": "system", "content": "demo: error 500"},
    ]
    message = ask_demo("", messages=history)
    assert "1 tool result" in message["content"][0]["text"] and message["stop_reason"] == "end_turn"


@pytest.mark.parametrize("text,status", [
    ("demo: error 429", 429), ("demo: error 529", 529), ("demo: error", 500), ("demo: error 999", 500),
    ("demo: error 200", 500), ("demo: tool", 400), ("demo: slow x", 400), ("demo: cut", 502),
])
def test_failing(text, status):
    with pytest.raises(ProxyError) as caught:
        ask_demo(text)
    assert caught.value.status == status


def test_errors_come_before_the_first_event_and_the_cut_comes_after():
    stream = DemoUpstream().stream({"messages": [{"role": "user", "content": "demo: cut"}]}, Exchange())
    assert next(stream)["type"] == "message_start"


def test_a_slow_answer_can_be_cancelled():
    exchange = Exchange()
    threading.Timer(0.02, exchange.cancel, [client_gone()]).start()
    with pytest.raises(ProxyError) as caught:
        ask_demo("demo: slow 60", exchange=exchange)
    assert caught.value.status == 499


@pytest.mark.parametrize("messages", [
    [{"role": "user"}], [{"role": "user", "content": 5}], ["x"], [{"role": "assistant", "content": "a"}],
    [{"role": "user", "content": [None, {"type": "text"}, {"type": "text", "text": 5}]}],
])
def test_odd_requests_get_an_answer_too(messages):
    assert ask_demo("", messages=messages)["content"][0]["type"] == "text"
