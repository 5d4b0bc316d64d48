"""Abuse, scaled down: what `make torture` does with gigabytes and thousands, for a few cases."""

from __future__ import annotations

import gc
import gzip
from contextlib import ExitStack
from itertools import repeat

import pytest

from claude_proxy.agents import AgentCalls, CallListener
from claude_proxy.dialects.chat_stream import ChatAsked, chunks_to_events
from claude_proxy.dialects.text_calls import CallSplitter
from claude_proxy.dialects.text_turns import text_tool_events
from claude_proxy.dialects.think_tags import ThinkSplitter
from claude_proxy.errors import ProxyError
from claude_proxy.events import EventWriter, Ration, events_to_message, message_start
from tests.support import (
    WAIT_FOR_CLOSE,
    RawClient,
    ScriptedUpstream,
    ask,
    delta,
    http_chunk,
    message_body,
    request_bytes,
    running_proxy,
    text_answer,
    upstream_environ,
    wait_until,
)

BIG = "x" * (8 << 20)  # one object, however often it is sent
TOO_LARGE = "larger than any model's"
TOOL = {"name": "t", "input_schema": {"type": "object"}}


# --- answers that never end ----------------------------------------------------------------------

CALL = delta(tool_calls=[{"index": 0, "id": "c", "function": {"name": "t", "arguments": '{"a":"'}}])
ENDLESS_CHUNKS = {
    "a call's arguments": (CALL, delta(tool_calls=[{"index": 0, "function": {"arguments": BIG}}])),
    "text amid a call": (CALL, delta(content=BIG)),
    "a refusal": (delta(content=""), delta(refusal=BIG)),
    "reasoning that has to come back": (delta(content=""), delta(reasoning_details=[{"type": "reasoning.text", "text": BIG}])),
}


@pytest.mark.parametrize("name", ENDLESS_CHUNKS)
def test_what_is_kept_of_a_stream_has_an_end(name):
    first, more = ENDLESS_CHUNKS[name]
    chunks = iter([first, *repeat(more, 20)])
    events = chunks_to_events(chunks, EventWriter("msg_1", "m"), ChatAsked(carry="reasoning_details"))
    with pytest.raises(ProxyError, match=TOO_LARGE):
        for _ in events:
            pass


def test_text_that_is_only_passed_on_has_none():
    chunks = [*repeat(delta(content=BIG), 20), delta("stop")]
    events = chunks_to_events(iter(chunks), EventWriter("msg_1", "m"))
    assert sum(len(e["delta"].get("text", "")) for e in events if e["type"] == "content_block_delta") == 20 * len(BIG)


def told_events(*more):
    yield message_start("msg_1", "m", {})
    yield {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    for event, times in more:
        yield from repeat(event, times)


def text_delta(text):
    return {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}


@pytest.mark.parametrize("event,times", [
    (text_delta(BIG), 20),
    ({"type": "content_block_delta", "index": 0, "delta": {"type": "citations_delta", "citation": {"cited_text": BIG}}}, 20),
    ({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": BIG}}, 20),
], ids=["texts", "citations", "blocks"])
def test_a_whole_answer_has_an_end(event, times):
    with pytest.raises(ProxyError, match=TOO_LARGE) as raised:
        events_to_message(told_events((event, times)))
    assert raised.value.status == 502


def test_small_parts_cost_more_than_their_size():
    kept = Ration(1000)
    for _ in range(10):
        kept.take(1)
    with pytest.raises(ProxyError, match=TOO_LARGE):
        for _ in range(10):
            kept.take(1)


def test_an_answer_with_tools_in_text_has_an_end():
    request = {"messages": [{"role": "user", "content": "x"}], "tools": [TOOL]}
    events = text_tool_events(request, lambda asked: told_events((text_delta(BIG), 20)), "msg_1", {})
    with pytest.raises(ProxyError, match=TOO_LARGE):
        for _ in events:
            pass


def test_a_listener_forgets_what_is_too_long_for_a_call():
    listener = CallListener(AgentCalls(), "session")
    block = {"type": "tool_use", "id": "toolu_1", "name": "Task", "input": {}}
    listener.hear({"type": "content_block_start", "index": 0, "content_block": block})
    for _ in range(20):
        assert listener.listening or _
        listener.hear({"type": "content_block_delta", "index": 0, "delta": {"partial_json": BIG}})
    assert not listener.listening
    listener.hear({"type": "content_block_stop", "index": 0})


def test_blanks_without_an_end_are_let_go():
    """A model that says nothing but line ends: looking at all of them for each one takes for ever."""
    splitter = ThinkSplitter()
    told = [splitter.feed("\n" * 1000)[1] for _ in range(1000)]
    assert any(told) and "".join(told) + splitter.end()[1] == "\n" * 1_000_000


def test_blanks_without_an_end_are_no_call():
    splitter = CallSplitter(["t"])
    splitter.feed("<tool_call>")
    for _ in range(1000):
        splitter.feed("\n" * 1000)
    assert splitter.complaint


# --- connections ---------------------------------------------------------------------------------


def begun(client):
    """With a request begun: it is no idle connection."""
    client.send(b"POST /v1/messages HTTP/1.1\r\n")


def test_idle_connections_make_room_for_work(form):
    with running_proxy(form, max_connections=20) as proxy, ExitStack() as stack:
        idle = [stack.enter_context(RawClient(proxy.port)) for _ in range(20)]
        assert wait_until(lambda: proxy.inflight.connections() == 20)
        clients = [stack.enter_context(RawClient(proxy.port)) for _ in range(15)]
        for client in clients:
            client.send(request_bytes(message_body("Hello")))
        assert [client.answer().status for client in clients] == [200] * 15
        assert idle[0].read_to_end() == b"", "the one that waited longest goes first"
        assert wait_until(lambda: proxy.inflight.connections() <= 20)


def test_a_request_that_has_begun_makes_no_room(form):
    with running_proxy(form, max_connections=2) as proxy, RawClient(proxy.port) as first, RawClient(proxy.port) as second:
        for client in (first, second):
            begun(client)
        assert wait_until(lambda: proxy.inflight.connections() == 2)
        assert ask(proxy.port, message_body()).status == 503
        for client in (first, second):
            client.send(request_bytes(message_body("Hello")).partition(b"\r\n")[2])
            assert client.answer().status == 200


# --- upstreams -----------------------------------------------------------------------------------

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
ZIPPED = HEAD + b"content-encoding: gzip\r\n"
BAD_UPSTREAMS = [
    ("a head without an end", [HEAD, b"x-more: of the same\r\n" * 5000, WAIT_FOR_CLOSE], "header fields are too long"),
    ("interim answers without an end", [b"HTTP/1.1 103 Early\r\n\r\n" * 5000, WAIT_FOR_CLOSE], "nothing but interim"),
    ("a bomb in an event", [ZIPPED + b"\r\n" + gzip.compress(b"data: " + b"x" * (9 << 20)), WAIT_FOR_CLOSE], "an event of more than"),
    ("a bomb as JSON", [ZIPPED + b"\r\n" + gzip.compress(b'{"x": "' + b"x" * (65 << 20), 1), WAIT_FOR_CLOSE], TOO_LARGE),
    ("a bomb as an error", [ZIPPED.replace(b"200 OK", b"400 No") + b"\r\n" + gzip.compress(b'{"x": "' + b"x" * (9 << 20)), WAIT_FOR_CLOSE], ""),
]


@pytest.mark.parametrize("name,script,words", BAD_UPSTREAMS, ids=[row[0] for row in BAD_UPSTREAMS])
def test_an_upstream_that_never_ends_is_left(form, name, script, words):
    with ScriptedUpstream(script, text_answer("fine")) as upstream, running_proxy(form, upstream_environ(upstream)) as proxy:
        answer = ask(proxy.port, message_body())
        assert answer.status == (502 if words else 400) and words in answer.json["error"]["message"]
        assert upstream.closed_by_peer.wait(2)
        assert ask(proxy.port, message_body()).status == 200


# --- memory --------------------------------------------------------------------------------------


def too_large(client):
    client.send(b"POST /v1/messages HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
                b"transfer-encoding: chunked\r\n\r\n" + http_chunk(b"x" * 3000))
    assert client.answer().status == 413


def timed_out(client):
    client.send(request_bytes(message_body()))
    assert client.answer().status == 504


def left(client):
    client.send(request_bytes(message_body(stream=True)))


def answered(client):
    client.send(request_bytes(message_body(), path="/v1/messages/count_tokens"))
    assert client.answer().status == 200


@pytest.fixture
def no_collector():
    gc.collect()
    gc.disable()
    yield alive()  # other tests' own
    gc.enable()


def alive(others=()):
    """The requests, with their bodies, and the exchanges that are not let go yet."""
    known = set(map(id, others))
    found = [o for o in gc.get_objects() if type(o).__name__ in ("HttpRequest", "Exchange") and id(o) not in known]
    return [o for o in found if getattr(o, "path", "/v1/").startswith("/v1/")]


@pytest.mark.parametrize("act", [too_large, timed_out, left, answered])
def test_a_request_is_let_go_at_once(form, no_collector, act):
    """A ring of an error, its traceback and what it passed through would hold it until the collector comes."""
    with ScriptedUpstream([WAIT_FOR_CLOSE]) as upstream:
        with running_proxy(form, upstream_environ(upstream), max_body_bytes=2000, request_timeout=0.1) as proxy:
            with RawClient(proxy.port) as client:
                act(client)
            assert wait_until(lambda: not proxy.inflight.connections())
            assert wait_until(lambda: not alive(no_collector), 1), alive(no_collector)
