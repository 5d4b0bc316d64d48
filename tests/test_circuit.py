"""The circuit breaker: by a table with a clock of its own, then in a whole proxy before failing upstreams."""

from __future__ import annotations

import io
import socket
import threading

import pytest

from claude_proxy.assembly import build_app
from claude_proxy.circuit import Circuit, Circuits, answer_failure, raised_failure
from claude_proxy.config import ConfigError
from claude_proxy.config_load import load_config
from claude_proxy.errors import ProxyError
from claude_proxy.exchange import Exchange, client_gone
from claude_proxy.inflight import Inflight
from claude_proxy.log import Log
from claude_proxy.pool import ConnectError, Target
from claude_proxy.transport import Call, Timeouts, Transport
from tests.support import (
    HANG_UP,
    RESET,
    WAIT_FOR_CLOSE,
    Pause,
    RawClient,
    ScriptedUpstream,
    ask,
    chat_stream,
    delta,
    http_answer,
    json_answer,
    load_form,
    message_body,
    messages_stream,
    request_bytes,
    running_proxy,
    text_answer,
    upstream_environ,
    wait_until,
)

PACKAGE = load_form("package")

# --- the rules -----------------------------------------------------------------------------------

FINE, GAVE_UP = "", None
OPENED, CLOSED = "circuit_opened", "circuit_closed"


class Bench:
    """A circuit of three failures and ten seconds; requests have names."""

    def __init__(self):
        self.now, self.told, self.eras = 100.0, [], {}
        self.circuit = Circuit("openai", 3, 10, lambda: self.now, lambda event, **facts: self.told.append((event, facts)))

    def enter(self, name):
        """"in", or the seconds that the refusal says."""
        try:
            self.eras[name] = self.circuit.enter()
        except ProxyError as error:
            assert (error.status, error.error_type) == (529, "overloaded_error")
            return int(dict(error.headers)["retry-after"])
        return "in"

    def do(self, what, *arguments):
        if what == "wait":
            self.now += arguments[0]
        elif what == "enter":
            assert self.enter(arguments[0]) == arguments[1]
        elif what == "fail":
            self.circuit.leave(self.eras[arguments[0]], "broken")
        elif what == "answer":
            self.circuit.leave(self.eras[arguments[0]], FINE)
        elif what == "cancel":
            self.circuit.leave(self.eras[arguments[0]], GAVE_UP)
        elif what == "state":
            assert (self.circuit.state(), self.circuit.refuses()) == arguments
        elif what == "told":
            assert [event for event, _ in self.told] == list(arguments)


def failures(count):
    return [step for n in range(count) for step in (("enter", f"f{n}", "in"), ("fail", f"f{n}"))]


def answered(name):
    return [("enter", name, "in"), ("answer", name)]


UP, DOWN, TRYING, DUE = ("state", "closed", False), ("state", "open", True), ("state", "half_open", True), ("state", "half_open", False)
STORIES = {
    "closed": [UP, *answered("a"), UP, ("told",)],
    "two are too few": [*failures(2), UP, ("enter", "a", "in")],
    "three open it": [*failures(3), DOWN, ("told", OPENED), ("enter", "a", 10), ("wait", 4.5), ("enter", "a", 6)],
    "at least a second": [*failures(3), ("wait", 9.9), ("enter", "a", 1)],
    "in a row": [*failures(2), *answered("a"), *failures(2), UP, ("told",)],
    "a cancel is no success": [*failures(2), ("enter", "a", "in"), ("cancel", "a"), *failures(1), DOWN],
    "a cancel is no failure": [*failures(2), ("enter", "a", "in"), ("cancel", "a"), UP],
    "then one goes": [*failures(3), ("wait", 10), DUE, ("enter", "probe", "in"), TRYING, ("enter", "a", 1)],
    "its answer closes": [*failures(3), ("wait", 10), *answered("probe"), UP, ("enter", "a", "in"), ("told", OPENED, CLOSED)],
    "and begins to count anew": [*failures(3), ("wait", 10), *answered("probe"), *failures(2), UP],
    "its failure opens": [*failures(3), ("wait", 12), ("enter", "probe", "in"), ("fail", "probe"), DOWN, ("enter", "a", 10),
                          ("wait", 10), *answered("b"), UP, ("told", OPENED, CLOSED)],
    "its cancel leaves it to the next": [*failures(3), ("wait", 10), ("enter", "probe", "in"), ("cancel", "probe"), DUE,
                                         ("enter", "next", "in"), ("answer", "next"), UP],
    "a long one keeps the others waiting": [*failures(3), ("wait", 10), ("enter", "probe", "in"), ("wait", 2.5), ("enter", "a", 4),
                                            ("wait", 5), ("enter", "a", 3)],
    "but not for ever": [*failures(3), ("wait", 10), ("enter", "probe", "in"), ("wait", 10), DUE, ("enter", "second", "in"),
                         ("enter", "a", 1), ("answer", "second"), UP, ("fail", "probe"), *failures(2), UP],
    "and may be answered after all": [*failures(3), ("wait", 10), ("enter", "probe", "in"), ("wait", 10), ("enter", "second", "in"),
                                      ("fail", "probe"), TRYING, ("answer", "probe"), UP, ("fail", "second"), *failures(2), UP],
    "failures of one moment": [("enter", "a", "in"), ("enter", "b", "in"), ("enter", "c", "in"), ("enter", "d", "in"), ("fail", "a"),
                               ("fail", "b"), ("fail", "c"), ("wait", 5), ("fail", "d"), ("enter", "e", 5), ("told", OPENED)],
    "a failure from before says nothing": [("enter", "old", "in"), *failures(3), ("wait", 10), *answered("probe"), *failures(2),
                                           ("fail", "old"), UP, *failures(1), DOWN],
    "nor of the probe": [("enter", "old", "in"), *failures(3), ("wait", 10), ("enter", "probe", "in"), ("fail", "old"), TRYING,
                         ("answer", "probe"), UP],
    "nor does a cancel from before": [("enter", "old", "in"), *failures(3), ("wait", 3), ("cancel", "old"), DOWN, ("enter", "a", 7)],
    "an answer from before closes": [("enter", "old", "in"), *failures(3), ("wait", 3), ("answer", "old"), UP, ("told", OPENED, CLOSED)],
    "and the probe's failure is of the past then": [
        ("enter", "old", "in"), *failures(3), ("wait", 10), ("enter", "probe", "in"), ("answer", "old"), UP, ("fail", "probe"),
        *failures(2), UP],
}


@pytest.mark.parametrize("name", list(STORIES))
def test_what_the_circuit_does(name):
    bench = Bench()
    for step in STORIES[name]:
        bench.do(*step)


def test_what_is_told():
    bench = Bench()
    for step in [*failures(3), ("wait", 12), *answered("probe")]:
        bench.do(*step)
    assert bench.told == [(OPENED, {"upstream": "openai", "failures": 3, "error": "broken", "seconds": 10}),
                          (CLOSED, {"upstream": "openai", "seconds": 12.0})]
    for step in failures(3):
        bench.do(*step)
    for wait, words in ((0, "is tried again in 10 s"), (10, None), (0, "is tried again just now")):
        bench.now += wait
        if words is None:
            bench.circuit.enter()
            continue
        with pytest.raises(ProxyError) as caught:
            bench.circuit.enter()
        assert "the upstream openai is down: it has failed 3 times in a row, the last time with: broken" in caught.value.message
        assert words in caught.value.message


def test_many_at_once_are_all_accounted_for():
    """Whatever the order, one probe at a time goes, and the state at the end is that of the last era."""
    bench = Bench()
    for step in failures(3):
        bench.do(*step)
    bench.now += 10
    barrier, seen = threading.Barrier(8), []

    def request(number):
        barrier.wait()
        seen.append(bench.enter(number))

    threads = [threading.Thread(target=request, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen.count("in") == 1 and seen.count(1) == 7


# (status, content type, whether it says that the upstream is down, whether so of a slow one)
ANSWERS = [
    (200, "text/html", False, False), (400, "text/html", False, False), (404, "", False, False), (429, "text/html", False, False),
    (500, "text/html", False, False), (502, "text/html", True, True), (502, "", True, True), (502, "application/json", False, False),
    (503, "text/plain", True, True), (503, "application/problem+json", False, False), (504, "text/html", True, False),
    (504, "application/json; charset=utf-8", False, False), (521, "text/html", True, True), (524, "text/html", True, False),
    (529, "text/html", False, False), (501, "text/html", False, False),
]


@pytest.mark.parametrize("status,kind,down,slow_down", ANSWERS)
def test_which_answers_are_failures(status, kind, down, slow_down):
    headers = {"content-type": kind} if kind else {}
    assert [bool(answer_failure(status, headers, slow)) for slow in (False, True)] == [down, slow_down]


LATE = Exchange(lambda: 9.0)
LATE.deadline, LATE._waiting_for = 8.0, "the first byte from up:1"
TOO_LONG = Exchange(lambda: 9.0, total_timeout=-1)
# (what was raised, by what it was cancelled, what it says, and of a slow one)
RAISED = [
    (ConnectError(502, "nothing listens there"), None, "nothing listens there", "nothing listens there"),
    (ProxyError(502, "closed"), None, "closed", "closed"),
    (LATE.overdue(9.0), LATE.overdue(9.0), "timed out waiting for the first byte from up:1", None),
    (TOO_LONG.overdue(99.0), TOO_LONG.overdue(99.0), None, None),
    (client_gone(), client_gone(), None, None),
    (ConnectError(502, "interrupted"), client_gone(), "interrupted", "interrupted"),
    (ProxyError(503, "the proxy is shutting down"), ProxyError(503, "the proxy is shutting down"), None, None),
]


@pytest.mark.parametrize("error,cancelled,said,said_of_slow", RAISED)
def test_which_errors_are_failures(error, cancelled, said, said_of_slow):
    if error.message == "interrupted":
        said = said_of_slow = None  # it was not the upstream that ended it
    assert [raised_failure(error, cancelled, slow) for slow in (False, True)] == [said, said_of_slow]


# --- those of all upstreams ----------------------------------------------------------------------

ONE, OTHER = Target("https", "one.test", 443), Target("https", "other.test", 443)


def broken(circuit):
    circuit.leave(circuit.enter(), "broken")


def test_upstreams_at_one_place_have_one():
    circuits = Circuits({"openai": ONE, "anthropic": ONE, "redcap": OTHER}, 1, 10, lambda: 0.0)
    assert circuits.at(ONE) is not circuits.at(OTHER) and circuits.at(Target("http", "one.test", 80)) is None
    broken(circuits.at(ONE))
    assert circuits.states() == {"openai": "open", "anthropic": "open", "redcap": "closed"}
    assert not circuits.all_refuse()
    broken(circuits.at(OTHER))
    assert circuits.all_refuse()
    with pytest.raises(ProxyError, match="openai and anthropic is down"):
        circuits.at(ONE).enter()


def test_none_failures_mean_no_circuit():
    circuits = Circuits({"openai": ONE}, 0, 10)
    assert circuits.at(ONE) is None and circuits.states() == {} and not circuits.all_refuse()


# --- before real sockets -------------------------------------------------------------------------


def closed_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Line:
    """A transport to one upstream, with a circuit of two failures."""

    def __init__(self, port, first_byte=5.0):
        self.target = Target("http", "127.0.0.1", port)
        self.now = 0.0
        self.circuits = Circuits({"openai": self.target}, 2, 10, lambda: self.now)
        self.transport = Transport(Timeouts(1, first_byte, 5), 0, circuits=self.circuits)

    def state(self):
        return self.circuits.states()["openai"]

    def send(self, exchange=None, method="POST", once=False):
        call = Call(method, self.target, "/x", (), b"{}" if method == "POST" else b"", once)
        response = self.transport.request(exchange or Exchange(), call)
        with_body = b"".join(response.pieces())
        response.close()
        return response.status, with_body

    def fail(self, count=2, **options):
        for _ in range(count):
            with pytest.raises(ProxyError):
                self.send(**options)


PAGE = http_answer(503, b"<html>", "content-type: text/html")
# What an upstream does -> whether that opens the circuit
SCRIPTS = {
    "hangs up": ([HANG_UP], True),
    "resets": ([RESET], True),
    "speaks no HTTP": ([b"SSH-2.0-OpenSSH\r\n\r\n"], True),
    "a page": (PAGE, True),
    "a gateway's 504": (http_answer(504, b"", "content-type: text/html"), True),
    "its own 503": (json_answer(503, {"error": {"message": "loading"}}), False),
    "too many": (http_answer(429, b"slowly", "retry-after: 9"), False),
    "overloaded": (json_answer(529, {"type": "error"}), False),
    "refused": (json_answer(401, {}), False),
    "failed": (http_answer(500, b"<html>", "content-type: text/html"), False),
    "cut short": ([b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc", HANG_UP], False),
}


@pytest.mark.parametrize("name", list(SCRIPTS))
def test_what_opens_it(name):
    script, opens = SCRIPTS[name]
    with ScriptedUpstream(script) as upstream:
        line = Line(upstream.port)
        for _ in range(2):
            try:
                line.send()
            except ProxyError as error:
                assert error.status == 502
        assert line.state() == ("open" if opens else "closed")


@pytest.mark.parametrize("once", [False, True])
def test_nothing_listens(once):
    line = Line(closed_port())
    line.fail(once=once)
    assert line.state() == "open"
    with pytest.raises(ProxyError) as caught:
        line.send()
    assert caught.value.status == 529 and "nothing listens there" in caught.value.message


def cancel_when_overdue(exchange):
    assert wait_until(lambda: exchange.overdue(exchange.clock()))
    exchange.cancel(exchange.overdue(exchange.clock()))


@pytest.mark.parametrize("once,state", [(False, "open"), (True, "closed")])
def test_no_byte_in_time(once, state):
    """A server that tells its answer whole is not down because that takes long."""
    with ScriptedUpstream([WAIT_FOR_CLOSE]) as upstream:
        line = Line(upstream.port, first_byte=0.01)
        for _ in range(2):
            exchange = Exchange()
            sweeper = threading.Thread(target=cancel_when_overdue, args=(exchange,))
            sweeper.start()
            line.fail(1, exchange=exchange, once=once)
            sweeper.join()
        assert line.state() == state


def test_a_client_that_goes_away_says_nothing():
    with ScriptedUpstream([WAIT_FOR_CLOSE]) as upstream:
        line = Line(upstream.port)
        for _ in range(3):
            exchange = Exchange()
            timer = threading.Timer(0.02, exchange.cancel, [client_gone()])
            timer.start()
            line.fail(1, exchange=exchange)
        assert line.state() == "closed"


def test_while_it_is_open_nothing_is_sent_and_then_one_request():
    with ScriptedUpstream([HANG_UP], [HANG_UP], http_answer(200, b"fine")) as upstream:
        line = Line(upstream.port)
        line.fail()
        line.fail(3)
        assert len(upstream.requests) == 2
        assert line.send(method="GET") == (200, b"fine")  # no model is asked by these: nothing is held back
        assert line.state() == "open"
        line.now += 10
        assert line.send() == (200, b"fine") and line.state() == "closed"


# --- in a whole proxy ----------------------------------------------------------------------------

TWO = {"CIRCUIT_FAILURES": "2", "CIRCUIT_OPEN_SECONDS": "30"}
MESSAGE = {"id": "msg_up", "type": "message", "role": "assistant", "model": "claude-up", "content": [{"type": "text", "text": "other"}],
           "stop_reason": "end_turn", "stop_sequence": None, "usage": {"input_tokens": 5, "output_tokens": 2}}


def get(proxy, path):
    return ask(proxy.port, path=path, method="GET")


def clock_of(proxy):
    """The moment that the circuits think it is can be set from here."""
    moment = [0.0]
    for circuit in proxy.app.circuits._circuits.values():
        circuit._clock = lambda: moment[0]
    return moment


@pytest.mark.parametrize("stream", [False, True])
def test_a_proxy_before_an_upstream_that_is_down_and_back(stream):
    with ScriptedUpstream([HANG_UP], PAGE, text_answer("back")) as upstream, \
            running_proxy(PACKAGE, {**upstream_environ(upstream), **TWO}) as proxy:
        moment = clock_of(proxy)
        assert get(proxy, "/readyz").json == {"status": "ready", "circuit": {"openai": "closed"}}
        assert [ask(proxy.port, message_body(stream=stream)).status for _ in range(2)] == [502, 503]
        moment[0] += 7.5
        refused = ask(proxy.port, message_body(stream=stream))
        assert (refused.status, refused.headers["retry-after"]) == (529, "23") and "x-should-retry" not in refused.headers
        assert refused.json["type"] == "error" and refused.json["error"]["type"] == "overloaded_error"
        assert "the upstream openai is down" in refused.json["error"]["message"]
        assert "it is tried again in 23 s" in refused.json["error"]["message"]
        assert len(upstream.requests) == 2
        health, ready = get(proxy, "/health"), get(proxy, "/readyz")
        assert (health.status, health.json["circuit"]) == (200, {"openai": "open"})
        assert (ready.status, ready.json["status"]) == (503, "upstreams_down")
        assert b'claude_proxy_circuit_open{upstream="openai"} 1\n' in get(proxy, "/metrics").body
        moment[0] += 22.5
        assert get(proxy, "/readyz").status == 200  # somebody has to try it
        back = ask(proxy.port, message_body(stream=stream))
        assert back.status == 200 and b"back" in back.body
        assert b'claude_proxy_circuit_open{upstream="openai"} 0\n' in get(proxy, "/metrics").body
        lines = [line for line in proxy.log_lines() if line["event"].startswith("circuit")]
    assert [(line["event"], line["upstream"]) for line in lines] == [("circuit_opened", "openai"), ("circuit_closed", "openai")]
    assert lines[0]["failures"] == 2 and lines[0]["seconds"] == 30 and lines[1]["seconds"] == 30


def test_it_can_be_switched_off():
    with ScriptedUpstream([HANG_UP]) as upstream:
        with running_proxy(PACKAGE, {**upstream_environ(upstream), "CIRCUIT_FAILURES": "0"}) as proxy:
            assert [ask(proxy.port, message_body()).status for _ in range(7)] == [502] * 7
            assert get(proxy, "/health").json["circuit"] == {}
            assert b"circuit_open" not in get(proxy, "/metrics").body


def test_the_other_route_is_taken_at_once():
    with ScriptedUpstream([HANG_UP]) as down, ScriptedUpstream(messages_stream(MESSAGE)) as other:
        environ = {**upstream_environ(down), **TWO, "ANTHROPIC_FORWARD_URL": f"http://127.0.0.1:{other.port}",
                   "ANTHROPIC_UPSTREAM_KEY": "sk-ant-test-1", "UPSTREAM": "openai", "FALLBACK_MODELS": "anthropic:claude-other"}
        with running_proxy(PACKAGE, environ) as proxy:
            answers = [ask(proxy.port, message_body(stream=True)) for _ in range(4)]
            assert get(proxy, "/readyz").json == {"status": "ready", "circuit": {"openai": "open", "anthropic": "closed"}}
    assert all(answer.status == 200 and b"other" in answer.body for answer in answers)
    assert [answer.headers["x-proxy-route"].rpartition(" ")[2] for answer in answers] == ["502", "502", "529", "529"]
    assert (len(down.requests), len(other.requests)) == (2, 4)


def test_the_relay_to_anthropic_has_one_too():
    with ScriptedUpstream(PAGE) as upstream:
        environ = {"UPSTREAM": "anthropic", "ANTHROPIC_FORWARD_URL": f"http://127.0.0.1:{upstream.port}", **TWO}
        with running_proxy(PACKAGE, environ) as proxy:
            shown = ("x-api-key: sk-ant-client-1",)
            answers = [ask(proxy.port, message_body(), fields=shown) for _ in range(3)]
            assert [answer.status for answer in answers] == [503, 503, 529]
            assert answers[0].body == b"<html>" and answers[2].json["error"]["type"] == "overloaded_error"
            listed = ask(proxy.port, path="/v1/models", method="GET", fields=shown)
            assert (listed.status, listed.body) == (503, b"<html>")  # its own, for it was asked
    assert len(upstream.requests) == 3


def test_a_stream_that_has_begun_counts_as_answered():
    go = threading.Event()
    begun = chat_stream(delta(content="be"), Pause(5, go), HANG_UP)
    with ScriptedUpstream([HANG_UP], begun, [HANG_UP]) as upstream:
        with running_proxy(PACKAGE, {**upstream_environ(upstream), **TWO}) as proxy, RawClient(proxy.port) as client:
            assert ask(proxy.port, message_body()).status == 502
            client.send(request_bytes(message_body(stream=True)))
            client.read_until(b'"be"')
            assert ask(proxy.port, message_body()).status == 502
            go.set()
            assert b"event: error" in client.read_until(b"\r\n0\r\n\r\n")  # which is not the circuit's matter
            assert get(proxy, "/health").json["circuit"] == {"openai": "closed"}


def test_a_probe_whose_client_goes_away_leaves_it_to_the_next():
    with ScriptedUpstream([HANG_UP], [HANG_UP], [WAIT_FOR_CLOSE], text_answer("back")) as upstream:
        with running_proxy(PACKAGE, {**upstream_environ(upstream), **TWO}) as proxy:
            moment = clock_of(proxy)
            assert [ask(proxy.port, message_body()).status for _ in range(2)] == [502] * 2
            moment[0] += 30
            with RawClient(proxy.port) as client:
                client.send(request_bytes(message_body()))
                assert wait_until(lambda: len(upstream.requests) == 3)
                waiting = ask(proxy.port, message_body())
                assert (waiting.status, waiting.headers["retry-after"]) == (529, "1")
            assert wait_until(lambda: not proxy.app.circuits.all_refuse())
            assert ask(proxy.port, message_body()).status == 200


def test_redcap_is_not_asked_while_it_is_down():
    token = "0123456789abcdef" * 2
    with ScriptedUpstream(PAGE) as redcap:
        environ = {"REDCAP_API_URL": f"http://127.0.0.1:{redcap.port}/api/", **TWO}
        with running_proxy(PACKAGE, environ) as proxy:
            answers = [ask(proxy.port, message_body(), fields=(f"x-api-key: {token}",)) for _ in range(4)]
    assert [answer.status for answer in answers] == [529] * 4 and len(redcap.requests) == 2
    # What was sent is not to be repeated; what was not, may be.
    assert [answer.headers.get("x-should-retry") for answer in answers] == ["false", "false", None, None]
    assert [answer.headers.get("retry-after") for answer in answers] == [None, None, "30", "30"]


def test_a_ban_by_redcap_has_its_own_pause():
    page = http_answer(403, b"Your IP has been banned due to suspected abuse", "content-type: text/html")
    with ScriptedUpstream(page) as redcap:
        environ = {"REDCAP_API_URL": f"http://127.0.0.1:{redcap.port}/api/", **TWO}
        with running_proxy(PACKAGE, environ) as proxy:
            fields = ("x-api-key: " + "0123456789abcdef" * 2,)
            answers = [ask(proxy.port, message_body(), fields=fields) for _ in range(4)]
            assert get(proxy, "/health").json["circuit"] == {"redcap": "closed"}
    assert [answer.status for answer in answers] == [429] * 4 and len(redcap.requests) == 1


# --- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name,text", [("CIRCUIT_FAILURES", "-1"), ("CIRCUIT_FAILURES", "many"), ("CIRCUIT_OPEN_SECONDS", "0"),
                                       ("CIRCUIT_OPEN_SECONDS", "5000")])
def test_wrong_settings(name, text):
    with pytest.raises(ConfigError) as caught:
        load_config({name: text})
    assert caught.value.problems[0].startswith(name)


def test_every_upstream_that_is_configured_has_one():
    environ = {"OPENAI_BASE_URL": "http://127.0.0.1:1/v1", "REDCAP_API_URL": "https://redcap.test/api/", "UPSTREAM": "redcap",
               "ANTHROPIC_FORWARD_URL": "https://api.test"}
    log = Log(io.StringIO())
    assert set(build_app(load_config(environ), log, Inflight(log)).circuits.states()) == {"openai", "redcap", "anthropic"}
    assert build_app(load_config({}), log, Inflight(log)).circuits.states() == {}
