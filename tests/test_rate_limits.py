"""Buckets by a clock of the test's own; then the gate, without and with a socket."""

from __future__ import annotations

import calendar
import contextlib
import io
import threading
import time

import pytest

from claude_proxy.app import meet_client
from claude_proxy.assembly import build_app
from claude_proxy.auth import Client
from claude_proxy.config_load import load_config
from claude_proxy.errors import ProxyError
from claude_proxy.exchange import Exchange, client_gone
from claude_proxy.http1 import HttpRequest
from claude_proxy.inflight import Inflight
from claude_proxy.log import Log
from claude_proxy.rate_limits import (
    FREE_GUESSES,
    MOST_SLEEPERS,
    SLOW_GUESSES,
    Bucket,
    Gate,
    GuessWatch,
    Limits,
    RateLimiter,
    address_name,
    charged_tokens,
    drop_doubled,
    limit_names,
    retry_seconds,
)
from tests.support import (
    HANG_UP,
    STREAM_HEAD,
    USAGE,
    WAIT_FOR_CLOSE,
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
    upstream_environ,
    wait_until,
)

WALL = calendar.timegm((2026, 1, 2, 3, 4, 5))


class Hands:
    """A clock that is moved by hand."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def hands():
    return Hands()


def make_limiter(clock, most=10_000, **limits):
    return RateLimiter(Limits(**limits), clock, lambda: WALL, most)


def admitted(limiter, count, *names):
    """How many of so many requests at the same moment are let in; all are over at once."""
    answers = [limiter.enter(names or ("a",)) for _ in range(count)]
    for answer in answers:
        limiter.leave(answer.held, 0)
    return sum(1 for answer in answers if not answer.refused)


# --- buckets ------------------------------------------------------------------------------------


@pytest.mark.parametrize("capacity,rate,charged,after,level,wait", [
    (10, 1, 0, 0, 10, 0), (10, 1, 0, 100, 10, 0), (10, 1, 10, 0, 0, 1), (10, 1, 10, 0.5, 0.5, 0.5), (10, 1, 10, 1, 1, 0),
    (10, 1, 10, 100, 10, 0), (10, 2, 25, 0, -15, 8), (10, 2, 25, 8, 1, 0), (10, 2, 25, 7, -1, 1), (10, 1, 3, -5, 7, 0),
])
def test_a_bucket(capacity, rate, charged, after, level, wait):
    bucket = Bucket(capacity, rate, 0.0)
    bucket.level -= charged
    bucket.fill(after)
    assert (bucket.level, bucket.wait()) == (level, wait)
    assert bucket.full_in() == (capacity - level) / rate


def test_a_burst_and_then_a_steady_rate(hands):
    limiter = make_limiter(hands, rpm=60, burst=5)
    assert admitted(limiter, 8) == 5
    for seconds, expected in ((0.5, 0), (0.5, 1), (1.0, 1), (2.0, 2), (3600.0, 5)):
        hands.now += seconds
        assert admitted(limiter, 8) == expected, seconds


@pytest.mark.parametrize("rpm,seconds", [(60, 1), (7, 60 / 7), (1000, 0.06), (1, 60)])
def test_whoever_waits_as_long_as_told_is_let_in(hands, rpm, seconds):
    limiter = make_limiter(hands, rpm=rpm, burst=1)
    for _ in range(50):
        assert not limiter.enter(("a",)).refused
        refused = limiter.enter(("a",))
        assert refused.seconds == pytest.approx(seconds) and f"{rpm} requests a minute" in refused.refused
        hands.now += refused.seconds


def test_a_minutes_requests_may_come_at_once_where_no_burst_is_set(hands):
    limiter = make_limiter(hands, rpm=30)
    assert admitted(limiter, 40) == 30


def test_refused_requests_cost_nothing(hands):
    limiter = make_limiter(hands, rpm=60, burst=1)
    assert admitted(limiter, 1000) == 1
    hands.now += 1
    assert admitted(limiter, 1) == 1


def test_a_debt_of_tokens_has_to_be_paid(hands):
    limiter = make_limiter(hands, tpm=600)  # ten a second
    limiter.leave(limiter.enter(("a",)).held, 500)
    limiter.leave(limiter.enter(("a",)).held, 500)
    refused = limiter.enter(("a",))
    assert "600 tokens a minute" in refused.refused and refused.seconds == pytest.approx(40.1)
    hands.now += 40
    assert limiter.enter(("a",)).refused
    hands.now += 0.1
    assert not limiter.enter(("a",)).refused
    assert not limiter.enter(("b",)).refused


def test_requests_at_a_time(hands):
    limiter = make_limiter(hands, concurrent=2)
    first, second = limiter.enter(("a",)), limiter.enter(("a",))
    third = limiter.enter(("a",))
    assert "2 requests at a time" in third.refused and third.seconds == 1 and third.held == ()
    assert not limiter.enter(("b",)).refused
    limiter.leave(first.held, 0)
    assert not limiter.enter(("a",)).refused
    limiter.leave(second.held, 0)
    assert third.headers == ()


def test_two_names_have_both_room_or_none_is_charged(hands):
    limiter = make_limiter(hands, rpm=60, burst=2, concurrent=9)
    assert admitted(limiter, 3, "key", "address") == 2
    assert admitted(limiter, 3, "key 2", "address") == 0
    assert admitted(limiter, 3, "key 2") == 2


# --- what a client is told ----------------------------------------------------------------------


def test_the_headers(hands):
    limiter = make_limiter(hands, rpm=60, burst=10, tpm=6000)
    admission = limiter.enter(("a",))
    assert dict(admission.headers) == {
        "anthropic-ratelimit-requests-limit": "60", "anthropic-ratelimit-requests-remaining": "9",
        "anthropic-ratelimit-requests-reset": "2026-01-02T03:04:06Z",
        "anthropic-ratelimit-tokens-limit": "6000", "anthropic-ratelimit-tokens-remaining": "6000",
        "anthropic-ratelimit-tokens-reset": "2026-01-02T03:04:05Z"}
    limiter.leave(admission.held, 12000)
    headers = dict(limiter.enter(("a",)).headers)
    assert headers["anthropic-ratelimit-tokens-remaining"] == "0"
    assert headers["anthropic-ratelimit-tokens-reset"] == "2026-01-02T03:06:05Z"
    assert headers["anthropic-ratelimit-requests-remaining"] == "9"


def test_of_two_names_the_one_with_less_left_is_told(hands):
    limiter = make_limiter(hands, rpm=60)
    admitted(limiter, 5, "b")
    assert dict(limiter.enter(("a", "b")).headers)["anthropic-ratelimit-requests-remaining"] == "54"


@pytest.mark.parametrize("seconds,told", [(0.001, "1"), (1, "1"), (1.1, "2"), (59.5, "60"), (60, "60"), (4000, "60")])
def test_retry_after_is_what_clients_heed(seconds, told):
    assert retry_seconds(seconds) == told


@pytest.mark.parametrize("usage,tokens", [
    ({}, 0), ({"input_tokens": 10, "output_tokens": 5}, 15),
    ({"input_tokens": 1, "output_tokens": 2, "cache_creation_input_tokens": 4, "cache_read_input_tokens": 8}, 7),
    ({"input_tokens": None, "output_tokens": "5"}, 0), ({"input_tokens": -5, "output_tokens": 3}, 3),
])
def test_charged_tokens(usage, tokens):
    assert charged_tokens(usage) == tokens


OURS = [("vary", "Origin"), ("anthropic-ratelimit-requests-limit", "1")]


@pytest.mark.parametrize("theirs,kept", [
    ((), OURS), ((("content-type", "x"),), OURS), ((("anthropic-ratelimit-tokens-limit", "9"),), OURS[:1]),
    ((("anthropic-ratelimit-unified-status", "allowed"),), OURS[:1]),
])
def test_an_answer_that_is_passed_on_keeps_its_own_figures(theirs, kept):
    exchange = Exchange()
    exchange.answer_headers = list(OURS)
    drop_doubled(exchange, theirs)
    assert exchange.answer_headers == kept


# --- whose limits -------------------------------------------------------------------------------


@pytest.mark.parametrize("peer,name", [
    ("10.0.0.1", "10.0.0.1"), ("::ffff:10.0.0.1", "10.0.0.1"), ("::1", "0/64"), ("nonsense:", "nonsense:"), ("", ""),
    ("2001:db8::1", "20010db800000000/64"), ("2001:db8::ffff:2", "20010db800000000/64"), ("2001:db8:0:1::1", "20010db800000001/64"),
    ("fe80::1%eth0", "fe80000000000000/64"),
])
def test_address_name(peer, name):
    assert address_name(peer) == name


KNOWN, UNKNOWN = Client("ci", "ci"), Client()


@pytest.mark.parametrize("by,client,names", [
    ("key", KNOWN, ("key ci",)), ("address", KNOWN, ("address 1.2.3.4",)), ("both", KNOWN, ("key ci", "address 1.2.3.4")),
    ("key", UNKNOWN, ("address 1.2.3.4",)), ("address", UNKNOWN, ("address 1.2.3.4",)), ("both", UNKNOWN, ("address 1.2.3.4",)),
])
def test_limit_names(by, client, names):
    assert limit_names(by, client, "1.2.3.4") == names


# --- bounds, and threads ------------------------------------------------------------------------


def test_the_table_is_bounded(hands):
    limiter = make_limiter(hands, most=10, rpm=1)
    for number in range(1000):
        assert not limiter.enter((f"n{number}",)).refused
        assert len(limiter) <= 10
    assert limiter.enter(("n999",)).refused and not limiter.enter(("n0",)).refused


def test_what_is_full_again_is_dropped_but_nobody_who_is_inside(hands):
    limiter = make_limiter(hands, rpm=60, burst=2)
    inside = limiter.enter(("inside",))
    for number in range(100):
        admitted(limiter, 1, f"n{number}")
    assert len(limiter) == 101
    hands.now += 60
    limiter.leave(inside.held, 0)
    for _ in range(60):
        admitted(limiter, 1, "one")
    assert len(limiter) == 1


def test_a_count_that_was_crowded_out_can_still_be_given_back(hands):
    limiter = make_limiter(hands, most=1, concurrent=1)
    lost = limiter.enter(("a",))
    limiter.enter(("b",))
    limiter.leave(lost.held, 5)
    assert not limiter.enter(("a",)).refused


def test_from_many_threads_no_more_get_in_than_may(hands):
    limiter = make_limiter(hands, rpm=500, concurrent=50, tpm=10**6)
    admissions = []

    def rush():
        for _ in range(200):
            admission = limiter.enter(("a",))
            admissions.append(bool(admission.refused))
            limiter.leave(admission.held, 1)

    threads = [threading.Thread(target=rush) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(admissions) == 1600 and admissions.count(False) == 500
    hands.now += 60
    assert admitted(limiter, 600) == 50, "nobody is counted as inside any more"


# --- keys that are guessed ----------------------------------------------------------------------

DELAYS = [0.25, 0.5, 1.0, *[2.0] * (SLOW_GUESSES - 3)]


def test_the_schedule_of_wrong_keys(hands):
    watch = GuessWatch(hands)
    assert [watch.note("a") for _ in range(FREE_GUESSES)] == [(0.0, 0.0)] * FREE_GUESSES
    assert [watch.note("a") for _ in range(SLOW_GUESSES)] == [(delay, 0.0) for delay in DELAYS]
    for _ in range(50):
        delay, away = watch.note("a")
        assert delay == 2.0 and away == pytest.approx(72)
    assert watch.note("b") == (0.0, 0.0)
    hands.now += 60
    assert watch.note("a")[1] == 0.0, "a minute later it is answered again"
    hands.now += 120
    assert watch.note("a") == (0.0, 0.0)


def test_the_addresses_of_guessers_are_bounded(hands):
    watch = GuessWatch(hands, most=20)
    for number in range(500):
        watch.note(f"n{number}")
    assert len(watch) == 20
    hands.now += 60
    for _ in range(20):
        watch.note("one")
    assert len(watch) == 1


KEYED = {"ANTHROPIC_API_KEY": "right,ci:robot"}


def head(key=None, peer="10.0.0.1", method="POST", path="/v1/messages", **fields):
    headers = {name.replace("_", "-"): value for name, value in fields.items()}
    headers.update({"x-api-key": key} if key else {}, **{"content-type": "application/json"})
    return HttpRequest(method, path, "", headers, host="localhost", peer=peer)


def make_gate(hands, environ, pauses=None):
    log = pauses if pauses is not None else []
    return Gate(load_config(environ), hands, lambda: WALL, lambda exchange, seconds: log.append(seconds))


def refusal(gate, request, exchange=None):
    try:
        gate.enter(request, exchange or Exchange())
    except ProxyError as error:
        return error
    return None


def test_wrong_keys_are_answered_slowly_and_the_right_one_never(hands):
    pauses = []
    gate = make_gate(hands, KEYED, pauses)
    statuses = []
    for number in range(FREE_GUESSES + SLOW_GUESSES + 3):
        statuses.append(refusal(gate, head(f"wrong{number}")).status)
        assert refusal(gate, head("right")) is None
    assert statuses == [401] * (FREE_GUESSES + SLOW_GUESSES) + [429] * 3
    assert pauses == [*DELAYS, 2.0, 2.0, 2.0]
    last = refusal(gate, head("wrong"))
    assert dict(last.headers)["retry-after"] == "60" and last.error_type == "rate_limit_error"
    assert refusal(gate, head("wrong", peer="10.0.0.2")).status == 401


def test_no_key_at_all_is_no_guess(hands):
    pauses = []
    gate = make_gate(hands, KEYED, pauses)
    assert {refusal(gate, head()).status for _ in range(50)} == {401} and pauses == []


def test_only_so_many_guessers_are_kept_waiting(hands):
    config, go, waiting, errors = load_config(KEYED), threading.Event(), [], []

    def pause(exchange, seconds):
        waiting.append(seconds)
        go.wait(5)

    gate = Gate(config, hands, lambda: WALL, pause)
    for _ in range(FREE_GUESSES):
        refusal(gate, head("wrong"))
    threads = [threading.Thread(target=lambda: errors.append(refusal(gate, head("wrong")))) for _ in range(MOST_SLEEPERS + 5)]
    for thread in threads:
        thread.start()
    assert wait_until(lambda: len(waiting) == MOST_SLEEPERS and len(errors) == 5)
    go.set()
    for thread in threads:
        thread.join()
    assert len(waiting) == MOST_SLEEPERS and len(errors) == MOST_SLEEPERS + 5
    refusal(gate, head("wrong"))
    assert len(waiting) == MOST_SLEEPERS + 1, "places are given back"


def test_a_guesser_that_hangs_up_is_not_waited_for(hands):
    gate = Gate(load_config(KEYED), hands)
    for _ in range(FREE_GUESSES):
        refusal(gate, head("wrong"))
    exchange = Exchange()
    exchange.cancel(client_gone())
    before = time.monotonic()
    assert refusal(gate, head("wrong"), exchange) is exchange.cancelled
    assert time.monotonic() - before < 0.2


# --- the gate -----------------------------------------------------------------------------------


def test_nothing_is_counted_where_nothing_is_limited(hands):
    gate, exchange = make_gate(hands, {}), Exchange()
    gate.enter(head(), exchange)
    assert gate.limiter is None and len(gate) == 0 and exchange.answer_headers == [] and exchange.facts == {}
    gate.leave(exchange)


def test_what_is_shown_in_a_header_of_ones_choice_is_known_to_upstreams(hands):
    gate, exchange = make_gate(hands, {"AUTH_API_KEY_HEADER": "X-Team-Key"}), Exchange()
    request = head("first", x_team_key="second")
    gate.enter(request, exchange)
    meet_client(request, exchange)
    assert exchange.keys == ("first", "second")


def test_each_label_has_limits_of_its_own(hands):
    gate = make_gate(hands, {**KEYED, "RATE_LIMIT_RPM": "1"})
    exchange = Exchange()
    assert refusal(gate, head("right"), exchange) is None and exchange.facts == {"key_label": "key-1"}
    assert dict(exchange.answer_headers)["anthropic-ratelimit-requests-remaining"] == "0"
    exchange = Exchange()
    error = refusal(gate, head("right"), exchange)
    assert (error.status, error.error_type) == (429, "rate_limit_error")
    assert dict(error.headers)["retry-after"] == "60" and "RATE_LIMIT_RPM" in error.message
    assert dict(exchange.answer_headers)["anthropic-ratelimit-requests-remaining"] == "0"
    assert refusal(gate, head("robot")) is None and refusal(gate, head("robot")).status == 429


def test_a_made_up_key_has_no_limits_of_its_own(hands):
    gate = make_gate(hands, {"RATE_LIMIT_RPM": "2"})
    found = [refusal(gate, head(f"new{number}")) for number in range(4)]
    assert [error and error.status for error in found] == [None, None, 429, 429]


@pytest.mark.parametrize("probe", [
    {"method": "GET", "path": "/health"}, {"method": "GET", "path": "/livez"}, {"method": "HEAD", "path": "/"},
    {"method": "OPTIONS", "origin": "https://a.example", "access_control_request_method": "POST"},
])
def test_probes_are_not_counted(hands, probe):
    gate = make_gate(hands, {"RATE_LIMIT_RPM": "1", "CORS_ALLOWED_ORIGINS": "https://a.example"})
    assert [refusal(gate, head(**probe)) for _ in range(5)] == [None] * 5 and len(gate) == 0
    assert refusal(gate, head()) is None and refusal(gate, head()).status == 429


def test_usage_is_charged_once(hands):
    gate, exchange = make_gate(hands, {"RATE_LIMIT_TPM": "60"}), Exchange()
    gate.enter(head(), exchange)
    exchange.usage.update(input_tokens=50, output_tokens=40)
    gate.leave(exchange)
    gate.leave(exchange)
    error = refusal(gate, head())
    assert error.status == 429 and dict(error.headers)["retry-after"] == "31"


@pytest.mark.parametrize("fields,status", [({"content_type": "text/plain"}, 415), ({"path": "/nothing"}, 404)])
def test_what_is_refused_after_it_was_counted_is_given_back(hands, fields, status):
    config = load_config({"RATE_LIMIT_CONCURRENT": "1"})
    log = Log(io.StringIO())
    app, exchange = build_app(config, log, Inflight(log)), Exchange()
    request = head(path=fields.get("path", "/v1/messages"))
    request.headers.update({"content-type": fields.get("content_type", "application/json")})
    with pytest.raises(ProxyError) as caught:
        app.check(request, exchange)
    assert caught.value.status == status and len(app.gate) == 1
    app.finish(exchange, request, status)
    assert len(app.gate) == 0


# --- with a socket ------------------------------------------------------------------------------

pytestmark = pytest.mark.usefixtures("no_thread_left")
KEY = ("x-api-key: right",)
ONE_AT_A_TIME = {**KEYED, "RATE_LIMIT_CONCURRENT": "1", "RATE_LIMIT_RPM": "100", "RATE_LIMIT_TPM": "100000"}
FIGURES = ("requests-limit", "requests-remaining", "requests-reset", "tokens-limit", "tokens-remaining", "tokens-reset")


@pytest.fixture
def start(form):
    with contextlib.ExitStack() as stack:
        def go(*scripts, environ=None, **changes):
            upstream = stack.enter_context(ScriptedUpstream(*scripts))
            settings = {**upstream_environ(upstream), **(environ or {})}
            return stack.enter_context(running_proxy(form, settings, **changes)), upstream
        yield go


ENDS = [
    ("whole", text_answer("x"), {}, 200),
    ("streamed", text_answer("x"), {"stream": True}, 200),
    ("refused upstream", json_answer(400, {"error": {"message": "no"}}), {}, 400),
    ("failed upstream", json_answer(500, {"error": {"message": "no"}}), {}, 500),
    ("cut before the answer", [HANG_UP], {}, None),
    ("cut within the answer", chat_stream(delta(content="x"), HANG_UP), {"stream": True}, 200),
    ("no request", text_answer("x"), {"messages": "none"}, 400),
]


@pytest.mark.parametrize("name,script,more,status", ENDS, ids=[row[0] for row in ENDS])
def test_every_end_gives_the_place_back(start, name, script, more, status):
    proxy, _ = start(script, environ=ONE_AT_A_TIME)
    for left in ("99", "98"):
        answer = ask(proxy.port, message_body(**more), fields=KEY)
        assert answer.status == (status or answer.status) and answer.status != 429
        assert all(f"anthropic-ratelimit-{figure}" in answer.headers for figure in FIGURES)
        assert answer.headers["anthropic-ratelimit-requests-remaining"] == left
        assert wait_until(lambda: len(proxy.app.gate) == 0)


def test_a_client_that_leaves_gives_its_place_back(start):
    script = [STREAM_HEAD, http_chunk(sse(delta(content="x"))), WAIT_FOR_CLOSE]
    proxy, upstream = start(script, text_answer("y"), environ=ONE_AT_A_TIME)
    with RawClient(proxy.port) as client:
        client.send(request_bytes(message_body(stream=True), fields=KEY))
        client.read_until(b"content_block_delta")
        second = ask(proxy.port, message_body(), fields=KEY)
        assert second.status == 429 and second.json["error"]["type"] == "rate_limit_error"
        assert second.headers["retry-after"] == "1" and "RATE_LIMIT_CONCURRENT" in second.json["error"]["message"]
        assert ask(proxy.port, message_body(), fields=("x-api-key: robot",)).status == 200
    assert wait_until(lambda: len(proxy.app.gate) == 0)
    assert ask(proxy.port, message_body(), fields=KEY).status == 200


def test_a_body_that_never_comes_gives_its_place_back(start):
    proxy, _ = start(text_answer("x"), environ=ONE_AT_A_TIME)
    with RawClient(proxy.port) as client:
        client.send(request_bytes(message_body(), fields=KEY)[:-5])
        assert wait_until(lambda: len(proxy.app.gate) == 1)
    assert wait_until(lambda: len(proxy.app.gate) == 0)


def test_a_defect_gives_its_place_back(start):
    proxy, _ = start(text_answer("x"), environ=ONE_AT_A_TIME)
    proxy.app.upstreams["openai"].stream = None
    assert ask(proxy.port, message_body(), fields=KEY).status == 500
    assert wait_until(lambda: len(proxy.app.gate) == 0)


def test_tokens_are_charged_as_the_upstream_tells_them(start):
    proxy, _ = start(text_answer("x"), environ={"RATE_LIMIT_TPM": "20"})
    assert USAGE["usage"] == {"prompt_tokens": 11, "completion_tokens": 3}
    statuses, left = [], []
    with RawClient(proxy.port) as client:
        for _ in range(3):
            client.send(request_bytes(message_body()))
            answer = client.answer()
            statuses.append(answer.status)
            left.append(answer.headers["anthropic-ratelimit-tokens-remaining"])
            assert wait_until(lambda: len(proxy.app.gate) == 0)
            if answer.status == 429:
                break
    assert statuses == [200, 200, 429] and left == ["20", "6", "0"]
    assert 20 < int(answer.headers["retry-after"]) <= 60


def test_logs_tell_the_label_and_no_key(start):
    proxy, _ = start(text_answer("x"), environ={**KEYED, "AUTH_API_KEY_HEADER": "x-team-key"})
    assert ask(proxy.port, message_body(), fields=("x-team-key: robot",)).status == 200
    assert wait_until(lambda: any(line["event"] == "request" for line in proxy.log_lines()))
    assert [line["key_label"] for line in proxy.log_lines() if line["event"] == "request"] == ["ci"]
    assert "robot" not in proxy.log_text.getvalue()


def test_cors_on_answers_on_errors_and_before_them(start):
    environ = {**KEYED, "CORS_ALLOWED_ORIGINS": "https://app.example"}
    proxy, _ = start(text_answer("x"), environ=environ)
    page = ("origin: https://app.example", "sec-fetch-site: cross-site")
    asked = ("access-control-request-method: POST", "access-control-request-headers: x-api-key,content-type")
    first = ask(proxy.port, method="OPTIONS", fields=page + asked)
    assert (first.status, first.body) == (200, b"")
    assert first.headers["access-control-allow-headers"] == "x-api-key, content-type"
    answers = [first, *(ask(proxy.port, message_body(**more), fields=page + key)
                        for more in ({}, {"stream": True}) for key in (KEY, ()))]
    assert [answer.status for answer in answers] == [200, 200, 401, 200, 401]
    for answer in answers:
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        assert answer.headers["vary"] == "Origin"
    assert ask(proxy.port, method="OPTIONS", fields=("origin: https://evil.example", *asked)).status == 403
    plain, _ = start(text_answer("x"))
    answer = ask(plain.port, method="OPTIONS", fields=("origin: http://localhost", *asked))
    assert answer.status == 405 and not [name for name in answer.headers if name.startswith("access-control")]


MESSAGE = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "stop_reason": "end_turn",
           "stop_sequence": None, "content": [{"type": "text", "text": "x"}],
           "usage": {"input_tokens": 5, "output_tokens": 2}}


@pytest.fixture
def relay(form):
    with contextlib.ExitStack() as stack:
        def go(script, **environ):
            upstream = stack.enter_context(ScriptedUpstream(script))
            settings = {"ANTHROPIC_FORWARD_URL": upstream.url, "ANTHROPIC_MAX_RETRIES": "0", **environ}
            return stack.enter_context(running_proxy(form, settings)), upstream
        yield go


def test_a_relayed_answer_has_the_apis_own_figures_and_no_cors_of_it(relay):
    script = json_answer(200, MESSAGE, "anthropic-ratelimit-tokens-limit: 7", "access-control-allow-origin: *")
    proxy, _ = relay(script, RATE_LIMIT_RPM="100", RATE_LIMIT_TPM="1000")
    answer = ask(proxy.port, message_body(), fields=("x-api-key: own",))
    figures = {name: value for name, value in answer.headers.items() if name.startswith(("anthropic-r", "access"))}
    assert figures == {"anthropic-ratelimit-tokens-limit": "7"}
    assert ask(proxy.port, path="/health", method="GET").status == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_relayed_answer_is_charged(relay, stream):
    proxy, _ = relay(messages_stream(MESSAGE) if stream else json_answer(200, MESSAGE), RATE_LIMIT_TPM="7")
    answer = ask(proxy.port, message_body(stream=stream), fields=("x-api-key: own",))
    assert (answer.status, answer.headers["anthropic-ratelimit-tokens-remaining"]) == (200, "7")
    assert wait_until(lambda: len(proxy.app.gate) == 0)
    assert ask(proxy.port, message_body(), fields=("x-api-key: own",)).status == 429


@pytest.mark.parametrize("shown,passed_on", [
    (("x-team-key: robot", "x-api-key: theirs"), {"x-api-key": "theirs"}),
    (("x-team-key: right", "authorization: Bearer theirs"), {"authorization": "Bearer theirs"}),
    (("x-api-key: robot", "authorization: Bearer theirs"), {"authorization": "Bearer theirs"}),
    (("x-api-key: third", "authorization: Bearer robot"), None),
    (("authorization: Bearer third",), None),
    (("x-team-key: robot",), None),
])
def test_no_key_of_this_proxy_is_passed_on(relay, shown, passed_on):
    proxy, upstream = relay(json_answer(200, MESSAGE), AUTH_API_KEY_HEADER="X-Team-Key", AUTH_TOKEN="third", **KEYED)
    answer = ask(proxy.port, message_body(), fields=shown)
    if passed_on is None:
        assert answer.status == 401 and upstream.requests == []
        return
    (received,) = upstream.requests
    names = ("x-api-key", "authorization", "x-team-key")
    assert {name: received.headers[name] for name in names if name in received.headers} == passed_on
    assert not {"right", "robot", "third"} & set(" ".join(received.headers.values()).split())
