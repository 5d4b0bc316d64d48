"""What is tried when a route fails, what each upstream and the client see of it, and what is logged."""

from __future__ import annotations

import contextlib
import json
import socket
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
    http_chunk,
    json_answer,
    message_body,
    messages_stream,
    request_bytes,
    running_proxy,
    sse,
    text_answer,
    wait_until,
)

pytestmark = pytest.mark.usefixtures("no_thread_left")

OPENAI_KEY, SECOND_KEY, CLIENT_KEY = "openai-key-111111", "openai-key-222222", "sk-ant-client-333333"
SHOWN = (f"x-api-key: {CLIENT_KEY}",)
MESSAGE = {"id": "msg_up", "type": "message", "role": "assistant", "model": "claude-up",
           "content": [{"type": "text", "text": "from anthropic"}], "stop_reason": "end_turn", "stop_sequence": None,
           "usage": {"input_tokens": 5, "output_tokens": 2}}
OPENAI_SAYS, ANTHROPIC_SAYS = "from openai", "from anthropic"


def frame(event):
    return http_chunk(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())


def anthropic_answer(request):
    """As the API: a stream to who asks for one."""
    return messages_stream(MESSAGE) if request.json.get("stream") else json_answer(200, MESSAGE)


def openai_first(first, second):
    return {"UPSTREAM": "openai", "OPENAI_API_KEY": OPENAI_KEY, "OPENAI_BASE_URL": first,
            "ANTHROPIC_FORWARD_URL": second, "FALLBACK_MODELS": "anthropic:claude-other"}


def anthropic_first(first, second):
    return {"UPSTREAM": "anthropic", "OPENAI_API_KEY": OPENAI_KEY, "OPENAI_BASE_URL": second,
            "ANTHROPIC_FORWARD_URL": first, "FALLBACK_MODELS": "openai:gpt-other"}


# Which is first -> (settings, what the second answers, its words, the second's model)
WAYS = {
    "openai": (openai_first, anthropic_answer, ANTHROPIC_SAYS, "claude-other"),
    "anthropic": (anthropic_first, text_answer(OPENAI_SAYS), OPENAI_SAYS, "gpt-other"),
}


class Bench:
    """Two scripted upstreams and a proxy that tries the second after the first."""

    def __init__(self, form, stack):
        self.form, self._stack = form, stack

    def start(self, way, first, second=None, **more):
        settings, usual, self.words, self.model = WAYS[way]
        self.first = self._stack.enter_context(ScriptedUpstream(*first if isinstance(first, tuple) else (first,)))
        self.second = self._stack.enter_context(ScriptedUpstream(usual if second is None else second))
        environ = {**settings(self.first.url, self.second.url), "MAX_RETRIES": "0", **more.pop("environ", {})}
        self.proxy = self._stack.enter_context(running_proxy(self.form, environ, **more))
        return self

    def ask(self, stream=False, fields=SHOWN, **more):
        return ask(self.proxy.port, message_body(stream=stream, **more), fields=fields)

    def lines(self, event="forward_failed"):
        wait_until(lambda: any(line["event"] == "request" for line in self.proxy.log_lines()))
        return [line for line in self.proxy.log_lines() if line["event"] == event]


@pytest.fixture
def bench(form):
    with contextlib.ExitStack() as stack:
        yield Bench(form, stack)


def said(answer):
    """The text of an answer, streamed or whole."""
    if not answer.headers["content-type"].startswith("text/event-stream"):
        return answer.json["content"][0]["text"]
    return "".join(e["delta"].get("text", "") for e in answer.events if e["type"] == "content_block_delta")


# --- the table of first failures ------------------------------------------------------------------

ERROR = {"error": {"message": "no luck", "type": "x"}}
API_ERROR = {"type": "error", "error": {"type": "overloaded_error", "message": "no luck"}}
FIRST_ERROR = {"openai": http_chunk(sse({"error": {"message": "busy", "code": 529}})), "anthropic": frame(API_ERROR)}

# (name, script, status that is noted)
MOVED = [
    ("429 with retry-after", json_answer(429, ERROR, "retry-after: 7"), 429),
    ("429", json_answer(429, ERROR), 429),
    ("429 not to be repeated", json_answer(429, ERROR, "x-should-retry: false"), 429),
    ("500", json_answer(500, ERROR), 500),
    ("501", json_answer(501, ERROR), 501),
    ("502", json_answer(502, ERROR), 502),
    ("503", json_answer(503, ERROR), 503),
    ("504", json_answer(504, ERROR), 504),
    ("529", json_answer(529, ERROR), 529),
    ("hangs up", [HANG_UP], 502),
    ("reset before the head", [RESET], 502),
    ("reset after the head", [STREAM_HEAD, Pause(0.02), RESET], 502),
    ("silent", [WAIT_FOR_CLOSE], 504),
    ("silent after the head", [STREAM_HEAD, WAIT_FOR_CLOSE], 504),
    ("error as the first event", None, 529),
]
TOLD = [
    ("400", json_answer(400, ERROR), 400), ("401", json_answer(401, ERROR), 401),
    ("403", json_answer(403, ERROR), 403), ("404", json_answer(404, ERROR), 404),
    ("413", json_answer(413, ERROR), 413),
]


def first_error(way):
    """A stream whose first event is an error; a whole answer of the API has no events."""
    streamed = [STREAM_HEAD, FIRST_ERROR[way], LAST]
    return lambda request: streamed if request.json.get("stream") else json_answer(529, API_ERROR)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name,script,status", MOVED, ids=[row[0] for row in MOVED])
def test_a_passing_failure_is_another_routes_turn(bench, name, script, status, way):
    bench.start(way, script or first_error(way), fallback_timeout=0.1)
    for count, stream in enumerate((True, False), 1):
        answer = bench.ask(stream)
        assert (answer.status, said(answer)) == (200, bench.words)
        assert len(bench.first.requests) == len(bench.second.requests) == count
        assert bench.second.requests[-1].json["model"] == bench.model
        route = answer.headers["x-proxy-route"]
        assert bench.model in route and "FALLBACK_MODELS" in route and f"tried {way}:" in route
        assert route.endswith(f" {status}")
        if stream:
            kinds = [event["type"] for event in answer.events]
            assert kinds[0] == "message_start" and kinds[-1] == "message_stop" and kinds.count("message_start") == 1
    assert wait_until(lambda: len(bench.lines()) == 2)
    for failed in bench.lines():
        assert (failed["attempt"], failed["status"], failed["upstream"]) == (1, status, way)
        assert failed["told"] == "nothing: another is tried" and failed["fault"] == "upstream"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name,script,status", TOLD, ids=[row[0] for row in TOLD])
def test_a_failure_that_another_would_have_too_is_told(bench, name, script, status, way):
    bench.start(way, script)
    for stream in (True, False):
        answer = bench.ask(stream)
        assert answer.status == status and b"no luck" in answer.body
        assert not bench.second.requests and "tried" not in answer.headers["x-proxy-route"]
    assert wait_until(lambda: len(bench.lines()) == 2)
    for failed in bench.lines():
        assert (failed["status"], failed["told"]) == (status, str(status))
        assert failed["fault"] == ("credential" if status in (401, 403) else "request")


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("way", WAYS)
def test_nothing_listens_at_the_first(bench, way, stream):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    name = "OPENAI_BASE_URL" if way == "openai" else "ANTHROPIC_FORWARD_URL"
    bench.start(way, [HANG_UP], environ={name: f"http://127.0.0.1:{port}"})
    answer = bench.ask(stream)
    assert said(answer) == bench.words and "502" in answer.headers["x-proxy-route"]
    assert "nothing listens there" in bench.lines()[0]["error"]


BEGUN = {
    "openai": [STREAM_HEAD, http_chunk(sse(delta(content="half")))],
    "anthropic": messages_stream(MESSAGE)[:3],
}
ENDINGS = {
    "cut": [Pause(0.02), HANG_UP],
    "reset": [Pause(0.02), RESET],
    "silent": [WAIT_FOR_CLOSE],
    "error": None,
}


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("way", WAYS)
def test_after_the_first_event_nothing_moves(bench, way, ending):
    steps = ENDINGS[ending]
    steps = [Pause(0.02), FIRST_ERROR[way], LAST] if steps is None else steps
    bench.start(way, [*BEGUN[way], *steps], stream_idle_timeout=0.1, fallback_timeout=0.05)
    with RawClient(bench.proxy.port) as client:
        client.send(request_bytes(message_body(stream=True), fields=SHOWN))
        body = client.read_to_end() if way == "anthropic" and ending != "error" else client.read_until(b"\r\n0\r\n\r\n")
    assert body.startswith(b"HTTP/1.1 200") and b"message_start" in body and b"message_stop" not in body
    assert bench.words.encode() not in body and not bench.second.requests
    if way == "openai":
        failed, = bench.lines()
        assert failed["told"] == "200, then an error" and failed["attempt"] == 1


@pytest.mark.parametrize("ending", ["cut", "reset", "silent", "error"])
def test_the_same_where_the_client_waits_for_the_whole(bench, ending):
    """Half an answer may have been dear; the client decides whether it wants to ask again."""
    steps = ENDINGS[ending] or [Pause(0.02), FIRST_ERROR["openai"], LAST]
    bench.start("openai", [*BEGUN["openai"], *steps], stream_idle_timeout=0.1)
    answer = bench.ask()
    assert answer.status in (502, 504, 529) and not bench.second.requests
    assert answer.headers["x-proxy-route"].startswith("openai:")


def test_a_relayed_answer_is_passed_on_byte_for_byte_where_others_stand_behind(bench):
    """Its first event is looked at before it is; whatever the pieces' borders are."""
    whole = b"".join(frame(event).split(b"\r\n", 1)[1][:-2] for event in ({"type": "ping"}, {"type": "x", "y": 1}))
    sent = b": a comment\r\n\r\n" + whole + b"id: 5\nretry: 10\n\ndata: not json\n\ntail"
    script = [STREAM_HEAD, *(step for byte in sent for step in [http_chunk(bytes([byte]))]), LAST]
    bench.start("anthropic", script)
    answer = bench.ask(True)
    assert answer.body == sent and not bench.second.requests


def test_an_error_event_in_pieces_is_seen(bench):
    data = b"event: error\ndata: " + json.dumps(API_ERROR).encode() + b"\n\n"
    bench.start("anthropic", [STREAM_HEAD, http_chunk(data[:8]), Pause(0.02), http_chunk(data[8:30]), Pause(0.02),
                              http_chunk(data[30:]), LAST])
    assert said(bench.ask(True)) == OPENAI_SAYS


@pytest.mark.parametrize("kind,status", [("invalid_request_error", 400), ("authentication_error", 401)])
def test_an_error_event_that_another_would_have_too_is_relayed(bench, kind, status):
    error = {"type": "error", "error": {"type": kind, "message": "no luck"}}
    bench.start("anthropic", [STREAM_HEAD, frame(error), LAST])
    assert bench.ask(True).events == [error] and not bench.second.requests


def test_a_used_up_quota_is_another_routes_turn(bench):
    error = {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}
    bench.start("openai", json_answer(429, error))
    assert said(bench.ask()) == ANTHROPIC_SAYS


# --- what the client is told when all fail --------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("way", WAYS)
def test_the_last_failure_is_told_and_all_that_was_tried(bench, way, stream):
    bench.start(way, json_answer(503, ERROR), second=json_answer(429, ERROR, "retry-after: 3"))
    answer = bench.ask(stream)
    assert (answer.status, answer.headers["retry-after"]) == (429, "3")
    route = answer.headers["x-proxy-route"]
    assert bench.model in route and f"tried {way}:" in route and route.endswith(" 503")
    first, last = bench.lines()
    assert [line["attempt"] for line in (first, last)] == [1, 2]
    assert [line["told"] for line in (first, last)] == ["nothing: another is tried", "429"]
    request, = bench.lines("request")
    assert request["tried"].endswith("503") and request["status"] == 429


def test_three_routes_in_order(bench):
    bench.start("openai", (json_answer(503, ERROR), json_answer(500, ERROR), text_answer("third")),
                environ={"FALLBACK_MODELS": "openai:b,openai:c,anthropic:d"})
    answer = bench.ask(model="openai:a")
    assert said(answer) == "third" and not bench.second.requests
    assert [request.json["model"] for request in bench.first.requests] == ["a", "b", "c"]
    assert answer.headers["x-proxy-route"].endswith("tried openai:a 503, openai:b 500")


def test_the_last_route_has_the_usual_time(bench):
    """FALLBACK_TIMEOUT is for those that others stand behind."""
    bench.start("openai", json_answer(503, ERROR), environ={"FALLBACK_MODELS": "openai:b"},
                second=anthropic_answer, fallback_timeout=0.05)
    bench.first.scripts = (json_answer(503, ERROR), [Pause(0.15), *text_answer("late")])
    assert said(bench.ask()) == "late"


def test_without_a_limit_the_first_is_waited_for(bench):
    bench.start("openai", [Pause(0.15), *text_answer("late")])
    assert said(bench.ask(True)) == "late" and not bench.second.requests


def test_notes_and_facts_of_a_failed_route_are_not_the_answers(bench):
    keys = f"{OPENAI_KEY},{SECOND_KEY}"
    bench.start("openai", json_answer(429, ERROR), environ={"OPENAI_API_KEY": keys})
    answer = bench.ask(fields=(*SHOWN, "x-proxy-notes: 1"), top_k=5)
    assert said(answer) == ANTHROPIC_SAYS and answer.headers["x-proxy-notes"] == "none"
    request, = bench.lines("request")
    assert "key" not in request and request["upstream"] == "anthropic"
    failed, = bench.lines()
    assert failed["key"] == "2/2"


def test_a_request_that_cannot_be_converted_is_no_failed_forward(bench):
    bench.start("openai", text_answer("x"))
    answer = ask(bench.proxy.port, {"model": "m", "messages": []})
    assert answer.status == 400 and not bench.first.requests
    assert bench.lines() == []


# --- keys -----------------------------------------------------------------------------------------


def key_script(answers):
    """Each key's own answers: those in the list one after the other, the last again and again."""
    left = {key: list(rows) for key, rows in answers.items()}

    def script(request):
        rows = left[request.headers["authorization"].partition(" ")[2]]
        return rows.pop(0) if len(rows) > 1 else rows[0]

    return script


def keys_used(upstream):
    names = {OPENAI_KEY: "a", SECOND_KEY: "b"}
    return "".join(names[request.headers["authorization"].partition(" ")[2]] for request in upstream.requests)


REFUSED, GOOD = json_answer(429, ERROR), text_answer("good")
# (name, answers of a, answers of b, statuses, keys asked, whether the second upstream answered)
KEY_ROWS = [
    ("in turn", [GOOD], [GOOD], [200] * 4, "abab", 0),
    ("a rests", [REFUSED], [GOOD], [200] * 3, "abbb", 0),
    ("529 rests too", [json_answer(529, ERROR)], [GOOD], [200] * 3, "abbb", 0),
    ("a may be asked again at once", [json_answer(429, ERROR, "retry-after: 0"), GOOD], [GOOD], [200] * 3, "abab", 0),
    ("both rest", [REFUSED], [REFUSED], [200] * 3, "ab", 3),
    ("500 is no rest", [json_answer(500, ERROR)], [GOOD], [200] * 4, "abab", 2),
    ("401 is told", [json_answer(401, ERROR)], [GOOD], [401, 200, 401, 200], "abab", 0),
]


# A refused key is not repeated, whatever MAX_RETRIES says; a server's error is, with the same key.
KEY_CASES = [(*row, retries) for row in KEY_ROWS for retries in ("0", "3") if row[0] != "500 is no rest" or retries == "0"]


@pytest.mark.parametrize("name,a,b,statuses,asked,moved,retries", KEY_CASES, ids=[f"{row[0]}-{row[-1]}" for row in KEY_CASES])
def test_which_keys_are_asked(bench, name, a, b, statuses, asked, moved, retries):
    bench.start("openai", key_script({OPENAI_KEY: a, SECOND_KEY: b}),
                environ={"OPENAI_API_KEY": f"{OPENAI_KEY},{SECOND_KEY}", "MAX_RETRIES": retries})
    begun = time.monotonic()
    assert [bench.ask().status for _ in statuses] == statuses
    assert (keys_used(bench.first), len(bench.second.requests)) == (asked, moved)
    assert time.monotonic() - begun < 2


def test_all_keys_resting_without_another_route(bench):
    bench.start("openai", key_script({OPENAI_KEY: [json_answer(429, ERROR, "retry-after: 30")],
                                      SECOND_KEY: [json_answer(429, ERROR, "retry-after: 20")]}),
                environ={"OPENAI_API_KEY": f"{OPENAI_KEY},{SECOND_KEY}", "FALLBACK_MODELS": ""})
    assert bench.ask().headers["retry-after"] == "20"
    answer = bench.ask()
    assert answer.status == 429 and answer.headers["retry-after"] in ("19", "20")
    assert "resting" in answer.json["error"]["message"] and keys_used(bench.first) == "ab"


def test_keys_of_settings_for_anthropic_in_turn(bench):
    def script(request):
        return json_answer(529, API_ERROR) if request.headers["x-api-key"] == "key-one" else anthropic_answer(request)

    bench.start("anthropic", script, environ={"ANTHROPIC_UPSTREAM_KEY": "key-one,key-two"})
    assert [said(bench.ask()) for _ in range(3)] == [ANTHROPIC_SAYS] * 3
    assert [r.headers["x-api-key"] for r in bench.first.requests] == ["key-one", "key-two", "key-two", "key-two"]
    assert not bench.second.requests


# --- credentials ----------------------------------------------------------------------------------


def everything(upstream):
    return b"".join(f"{r.line}{r.headers}".encode() + r.body for r in upstream.requests)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("fields", [
    SHOWN, (f"authorization: Bearer {CLIENT_KEY}",), (*SHOWN, f"authorization: Bearer {CLIENT_KEY}", "cookie: c=1"),
])
def test_a_clients_credential_goes_where_it_is_meant_for_alone(bench, fields, stream):
    bench.start("anthropic", json_answer(529, API_ERROR))
    assert said(bench.ask(stream, fields)) == OPENAI_SAYS
    assert CLIENT_KEY.encode() in everything(bench.first) and OPENAI_KEY.encode() not in everything(bench.first)
    second = everything(bench.second)
    assert CLIENT_KEY.encode() not in second and OPENAI_KEY.encode() in second and b"cookie" not in second
    assert not {"x-api-key", "anthropic-beta", "anthropic-version"} & set(bench.second.requests[0].headers)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_settings_keys_go_to_their_own_upstream(bench, stream):
    bench.start("openai", json_answer(503, ERROR), environ={"ANTHROPIC_UPSTREAM_KEY": "anthropic-key-444444"})
    assert said(bench.ask(stream)) == ANTHROPIC_SAYS
    first, second = everything(bench.first), everything(bench.second)
    assert OPENAI_KEY.encode() in first and b"anthropic-key" not in first and CLIENT_KEY.encode() not in first
    assert b"anthropic-key-444444" in second
    assert OPENAI_KEY.encode() not in second and CLIENT_KEY.encode() not in second


def test_the_proxys_own_key_goes_nowhere(bench):
    bench.start("openai", json_answer(503, ERROR), environ={"ANTHROPIC_API_KEY": "opens-the-proxy"})
    answer = bench.ask(fields=("x-api-key: opens-the-proxy",))
    assert answer.status == 401 and not bench.second.requests  # nothing is left to show there
    answer = bench.ask(fields=("x-api-key: opens-the-proxy", f"authorization: Bearer {CLIENT_KEY}"))
    assert said(answer) == ANTHROPIC_SAYS
    assert b"opens-the-proxy" not in everything(bench.first) + everything(bench.second)


REDCAP_TOKEN = "0123456789ABCDEF0123456789ABCDEF"


@pytest.mark.parametrize("fields", [(f"x-api-key: {REDCAP_TOKEN}",), (f"authorization: Bearer {REDCAP_TOKEN}",)])
def test_a_redcap_token_is_not_shown_to_anybody_else(form, fields):
    with ScriptedUpstream(json_answer(500, {"error": "no"})) as redcap, ScriptedUpstream(anthropic_answer) as api:
        environ = {"REDCAP_API_URL": redcap.url.replace("/v1", "/api/"), "ANTHROPIC_FORWARD_URL": api.url,
                   "UPSTREAM": "redcap", "FALLBACK_MODELS": "anthropic:claude-other"}
        with running_proxy(form, environ) as proxy:
            for path in ("/v1/messages", "/v1/messages/count_tokens"):
                named = message_body(model="anthropic:claude-other")
                for body in (message_body(), named):
                    ask(proxy.port, body, fields=fields, path=path)
        assert redcap.requests and REDCAP_TOKEN.encode() in everything(redcap)
        assert REDCAP_TOKEN.encode() not in everything(api)


def test_a_redcap_that_fails_gives_way(form):
    with ScriptedUpstream(json_answer(500, {"error": "no"})) as redcap, ScriptedUpstream(GOOD) as other:
        environ = {"REDCAP_API_URL": redcap.url.replace("/v1", "/api/"), "OPENAI_BASE_URL": other.url,
                   "UPSTREAM": "redcap", "FALLBACK_MODELS": "openai:gpt-other"}
        with running_proxy(form, environ) as proxy:
            for stream in (True, False):
                answer = ask(proxy.port, message_body(stream=stream), fields=(f"x-api-key: {REDCAP_TOKEN}",))
                assert said(answer) == "good" and "tried redcap:" in answer.headers["x-proxy-route"]
        assert REDCAP_TOKEN.encode() not in everything(other)


def test_redcap_as_the_second_takes_only_a_token_of_its_own(form):
    """The client's key for the API is none."""
    with ScriptedUpstream(json_answer(529, API_ERROR)) as api, ScriptedUpstream(GOOD) as redcap:
        environ = {"REDCAP_API_URL": redcap.url.replace("/v1", "/api/"), "ANTHROPIC_FORWARD_URL": api.url,
                   "UPSTREAM": "anthropic", "FALLBACK_MODELS": "redcap:claude-sonnet-4.6"}
        with running_proxy(form, environ) as proxy:
            assert ask(proxy.port, message_body(), fields=SHOWN).status == 401
        assert api.requests and not redcap.requests


# --- answers that begin early ---------------------------------------------------------------------


@pytest.mark.parametrize("second", ["anthropic", "openai"])
def test_an_answer_that_began_with_pings_goes_on_from_another_route(bench, second):
    other = {"anthropic": "anthropic:claude-other", "openai": "openai:gpt-other"}[second]
    bench.start("openai", ([WAIT_FOR_CLOSE], GOOD), fallback_timeout=0.25, ping_interval=0.05,
                environ={"FALLBACK_MODELS": other})
    answer = bench.ask(True)
    kinds = [event["type"] for event in answer.events]
    assert "ping" in kinds and answer.status == 200
    assert [kind for kind in kinds if kind != "ping"] == [
        "message_start", "content_block_start", *["content_block_delta"] * kinds.count("content_block_delta"),
        "content_block_stop", "message_delta", "message_stop"]
    assert said(answer) == (ANTHROPIC_SAYS if second == "anthropic" else "good")
    assert answer.events[0]["message"]["model"] == "claude-sonnet-5"
    failed, = bench.lines()
    assert failed["status"] == 504 and failed["ms"] >= 200


def test_one_that_began_and_finds_no_route_ends_with_an_error_event(bench):
    bench.start("openai", [WAIT_FOR_CLOSE], second=json_answer(529, API_ERROR), fallback_timeout=0.2,
                ping_interval=0.05)
    answer = bench.ask(True)
    assert answer.status == 200 and answer.events[-1]["error"]["type"] == "overloaded_error"
    assert [line["told"] for line in bench.lines()] == ["nothing: another is tried", "200, then an error"]


# --- the end of all trying ------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("script", [[WAIT_FOR_CLOSE], [STREAM_HEAD, WAIT_FOR_CLOSE]], ids=["head", "event"])
def test_total_timeout_ends_it_at_once(bench, script, way):
    bench.start(way, script, total_timeout=0.1)
    begun = time.monotonic()
    answer = bench.ask(True)
    assert answer.status == 504 and "TOTAL_TIMEOUT" in answer.json["error"]["message"]
    assert not bench.second.requests and time.monotonic() - begun < 1


def test_total_timeout_counts_for_all_routes_together(bench):
    bench.start("openai", [WAIT_FOR_CLOSE], second=[WAIT_FOR_CLOSE], total_timeout=0.25, fallback_timeout=0.1)
    answer = bench.ask()
    assert answer.status == 504 and "TOTAL_TIMEOUT" in answer.json["error"]["message"]
    assert len(bench.second.requests) == 1


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("script", [[WAIT_FOR_CLOSE], [STREAM_HEAD, WAIT_FOR_CLOSE]], ids=["head", "event"])
def test_a_client_that_leaves_ends_it_at_once(bench, script, way):
    bench.start(way, script)
    with RawClient(bench.proxy.port) as client:
        client.send(request_bytes(message_body(stream=True), fields=SHOWN))
        assert wait_until(lambda: bench.first.requests)
    assert bench.first.closed_by_peer.wait(1)
    failed, = bench.lines()
    assert (failed["fault"], failed["status"], failed["told"]) == ("client", 499, "nothing: it has gone")
    assert not bench.second.requests


def test_a_proxy_that_is_stopped_tries_no_further(bench):
    bench.start("openai", [WAIT_FOR_CLOSE])
    with RawClient(bench.proxy.port) as client:
        client.send(request_bytes(message_body(), fields=SHOWN))
        assert wait_until(lambda: bench.first.requests)
        bench.proxy.inflight.cancel_all(bench.form.ProxyError(503, "the proxy is shutting down"))
        assert client.answer().status == 503
    assert not bench.second.requests and bench.lines()[0]["fault"] == "proxy"


# --- the log line ---------------------------------------------------------------------------------


def test_the_line_of_a_failed_forward(bench):
    bench.start("anthropic", json_answer(529, {"error": {"message": "PATIENTCANARY"}}))
    body = message_body("CANARY prompt", stream=True, thinking={"type": "adaptive"})
    answer = ask(bench.proxy.port, body, path="/v1/messages?beta=true&x=1",
                 fields=(*SHOWN, "anthropic-beta: a-2025,b-2026"))
    failed, = bench.lines()
    assert {name: failed[name] for name in failed if name not in ("time", "ms")} == {
        "level": "warning", "event": "forward_failed", "id": answer.headers["request-id"], "attempt": 1,
        "upstream": "anthropic", "upstream_model": "claude-sonnet-5", "route": "as named", "model": "claude-sonnet-5",
        "stream": True, "body_bytes": len(json.dumps(body)), "thinking": True, "beta": "a-2025,b-2026",
        "query": "?beta=true&x=1", "status": 529, "upstream_status": 529, "fault": "upstream",
        "error": "overloaded_error", "told": "nothing: another is tried",
    }
    assert 0 <= failed["ms"] < 1000
    log = bench.proxy.log_text.getvalue()
    assert "CANARY" not in log and CLIENT_KEY not in log and OPENAI_KEY not in log


@pytest.mark.parametrize("thinking,has", [
    (None, False), ({"type": "enabled", "budget_tokens": 1024}, True), ({"type": "disabled"}, False), ("odd", False),
])
def test_whether_a_request_thinks(bench, thinking, has):
    bench.start("openai", json_answer(500, ERROR))
    bench.ask(**({"thinking": thinking} if thinking else {}))
    assert bench.lines()[0]["thinking"] is has


def test_a_good_answer_has_no_such_line(bench):
    bench.start("openai", GOOD)
    bench.ask(True)
    bench.ask()
    assert bench.lines() == [] and "tried" not in bench.lines("request")[0]


def test_a_relayed_failure_has_one_too(bench):
    bench.start("anthropic", json_answer(529, API_ERROR), environ={"FALLBACK_MODELS": ""})
    answer = bench.ask()
    assert answer.status == 529 and answer.json == API_ERROR
    failed, = bench.lines()
    assert (failed["status"], failed["fault"], failed["told"]) == (529, "upstream", "529")


# --- agents and windows, end to end ---------------------------------------------------------------


def agent_message(*calls):
    content = [{"type": "tool_use", "id": f"toolu_{n}", "name": "Agent",
                "input": {"description": "d", "prompt": prompt, "subagent_type": name}}
               for n, (name, prompt) in enumerate(calls)]
    return {**MESSAGE, "content": content, "stop_reason": "tool_use"}


SESSION_FIELD = "x-claude-code-session-id: 11111111-2222-3333-4444-555555555555"


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_named_agents_go_elsewhere_and_the_conversation_stays(bench, stream):
    """Parallel agents of one answer, and one that an agent elsewhere has called."""
    parent = agent_message(("reviewer", "Review it."), ("tester", "Test it."), ("planner", "Plan it."))
    nested = chat_stream(delta(tool_calls=[{"index": 0, "id": "c1", "function": {"name": "Agent", "arguments": json.dumps(
        {"description": "d", "prompt": "Review the plan.", "subagent_type": "reviewer"})}}]), delta("tool_calls"), USAGE)

    def api(request):
        if not request.json.get("stream"):
            return json_answer(200, parent)
        return messages_stream(parent)

    bench.start("anthropic", api, second=nested, environ={
        "FALLBACK_MODELS": "", "SUBAGENT_MAPPINGS": "reviewer:openai:gpt-r,planner:gpt-p,haiku-one:gpt-h"})

    def where(text, agent=None, **more):
        fields = (*SHOWN, SESSION_FIELD, *([f"x-claude-code-agent-id: {agent}"] if agent else []))
        tools = [{"name": "Agent", "input_schema": {"type": "object"}}]
        return bench.ask(stream, fields, messages=[{"role": "user", "content": text}], tools=tools,
                         **more).headers["x-proxy-route"]

    assert where("Review the plan.", "a0") == "anthropic:claude-sonnet-5; as named"  # nobody has called it yet
    assert where("Do it all.") == "anthropic:claude-sonnet-5; as named"
    assert where("Review it.", "a1") == "openai:gpt-r; agent reviewer by agent call"
    assert where("Test it.", "a2") == "anthropic:claude-sonnet-5; as named"
    assert where("Plan it.", "a3") == "openai:gpt-p; agent planner by agent call"
    assert where("Review the plan.", "a4") == "openai:gpt-r; agent reviewer by agent call"
    assert where("Review it.") == "anthropic:claude-sonnet-5; as named"  # the user's own words
    assert where("Whatever.", "a5", model="haiku-one") == "openai:gpt-h; agent haiku-one by model name"


def test_an_upstreams_own_window_decides_once_it_is_known(bench):
    models = json_answer(200, {"data": [{"id": "small-one", "context_length": 300}]})

    def script(request):
        return models if request.line.startswith("GET") else GOOD

    bench.start("openai", script, environ={"FALLBACK_MODELS": "", "MODEL_LIMITS": "true",
                                           "LONG_CONTEXT_MODEL": "anthropic:claude-long", "MIDDLE_MODEL": "small-one"})
    bench.ask()
    catalog = bench.proxy.app.upstreams["openai"].catalog
    catalog.wait(3)
    assert wait_until(lambda: catalog.look_up("small-one").window == 300)
    assert bench.ask(max_tokens=100).headers["x-proxy-route"] == "openai:small-one; family"
    answer = bench.ask(max_tokens=300)
    assert answer.headers["x-proxy-route"] == "anthropic:claude-long; family, over 300 tokens"


def test_model_limits_false_asks_for_no_window(bench):
    bench.start("openai", GOOD, environ={"FALLBACK_MODELS": "", "LONG_CONTEXT_MODEL": "anthropic:claude-long"})
    bench.ask()
    bench.proxy.app.upstreams["openai"].catalog.wait(3)
    assert [request.line.split()[0] for request in bench.first.requests] == ["POST"]


def test_redcaps_window_is_known(form):
    with ScriptedUpstream(GOOD) as other:
        environ = {"REDCAP_API_URL": "http://127.0.0.1:9/api/", "OPENAI_BASE_URL": other.url, "UPSTREAM": "redcap",
                   "LONG_CONTEXT_MODEL": "openai:long", "MIDDLE_MODEL": "gpt-4-1-nano"}
        with running_proxy(form, environ) as proxy:
            from claude_proxy.upstreams.redcap_form import redcap_window
            words = "word " * int(redcap_window("gpt-4-1-nano") * 1.1)
            answer = ask(proxy.port, message_body(words), fields=(f"x-api-key: {REDCAP_TOKEN}",))
            assert answer.headers["x-proxy-route"].startswith("openai:long; ")
