"""Exchanges and the sweeper, without sockets where none are needed."""

from __future__ import annotations

import io
import socket
import threading

import pytest

from claude_proxy.errors import ProxyError
from claude_proxy.events import EventWriter
from claude_proxy.exchange import Exchange, client_gone
from claude_proxy.inflight import Inflight, hung_up
from claude_proxy.log import Log


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class FakeConnection:
    """What the sweeper sees of a client connection."""

    def __init__(self, exchange=None, sock=None, fails=False) -> None:
        self.deadline = float("inf")
        self.exchange = exchange
        self.sock = sock
        self.fails = fails
        self.did = []

    def socket(self):
        return self.sock

    def expire(self):
        self.did.append("expire")

    def keep_alive(self, now):
        if self.fails:
            raise RuntimeError("no")
        self.did.append("keep_alive")


@pytest.fixture
def inflight():
    clock = Clock()
    return Inflight(Log(io.StringIO(), "debug"), clock=clock), clock


def test_the_first_reason_stays():
    exchange = Exchange()
    exchange.cancel(ProxyError(504, "late"))
    exchange.cancel(client_gone())
    with pytest.raises(ProxyError, match="late"):
        exchange.raise_if_cancelled()


def test_callbacks_run_once_cancelled_and_not_when_taken_back():
    exchange, called = Exchange(), []
    kept, dropped = (lambda: called.append("kept")), (lambda: called.append("dropped"))
    exchange.on_cancel(kept)
    exchange.on_cancel(dropped)
    exchange.off_cancel(dropped)
    assert exchange.cancellable()
    exchange.cancel(client_gone())
    exchange.on_cancel(lambda: called.append("late"))
    assert called == ["kept", "late"]


def test_sleep_ends_with_the_cancel():
    exchange = Exchange()
    threading.Timer(0.02, exchange.cancel, [client_gone()]).start()
    with pytest.raises(ProxyError, match="closed its connection"):
        exchange.sleep(10)
    assert not exchange.cancellable()


def test_deadlines():
    clock = Clock()
    exchange = Exchange(clock, total_timeout=50)
    assert exchange.overdue(clock.now) is None
    exchange.arm(5, "the first byte")
    assert exchange.overdue(104.9) is None
    assert exchange.overdue(105.1).status == 504 and "first byte" in exchange.overdue(105.1).message
    exchange.arm(0, "ever")
    assert exchange.overdue(149.9) is None
    assert "TOTAL_TIMEOUT" in exchange.overdue(150.1).message


def test_observing_notes_usage_and_the_open_block_only_after_it_was_passed_on():
    exchange, write = Exchange(), EventWriter("m", "x", {"input_tokens": 5, "output_tokens": 1})
    events = [*write.text("a"), *write.tool_use("t", "n"), *write.finish("tool_use", {"output_tokens": 7})]
    seen = [(event["type"], exchange.open_block) for event in exchange.observe(events)]
    assert seen == [
        ("message_start", (-1, "")), ("content_block_start", (-1, "")), ("content_block_delta", (0, "text")),
        ("content_block_stop", (0, "text")), ("content_block_start", (-1, "")),
        ("content_block_stop", (1, "tool_use")), ("message_delta", (-1, "")), ("message_stop", (-1, ""))]
    assert exchange.usage == {"input_tokens": 5, "output_tokens": 7}
    assert exchange.facts["stop_reason"] == "tool_use" and exchange.first_event is not None


def test_the_sweeper_expires_cancels_and_keeps_alive(inflight):
    table, clock = inflight
    late, fine, slow = FakeConnection(), FakeConnection(Exchange(clock)), FakeConnection(Exchange(clock))
    late.deadline = clock.now - 1
    slow.exchange.arm(1, "it")
    clock.now += 2
    table.sweep([late, fine, slow], clock.now)
    assert (late.did, fine.did, slow.did) == (["expire"], ["keep_alive"], [])
    assert slow.exchange.cancelled.status == 504 and fine.exchange.cancelled is None


def test_the_sweeper_tells_how_many_exchanges_there_are(inflight):
    table, clock = inflight
    told = []
    table.crowd = told.append
    busy = [FakeConnection(Exchange(clock)) for _ in range(3)]
    table.sweep([FakeConnection(), *busy], clock.now)
    table.sweep([FakeConnection()], clock.now)
    assert told == [3, 0]


def test_one_connections_trouble_is_not_the_others(inflight):
    table, clock = inflight
    bad, good = FakeConnection(Exchange(clock), fails=True), FakeConnection(Exchange(clock))
    table.sweep([bad, good], clock.now)
    assert good.did == ["keep_alive"]


@pytest.mark.parametrize("how,waits,gone", [
    ("close", True, True), ("half-close", True, True), ("stays", True, False), ("close", False, False),
    ("sends more", True, False),
])
def test_who_is_gone(inflight, how, waits, gone):
    table, clock = inflight
    ours, theirs = socket.socketpair()
    with ours, theirs:
        exchange = Exchange(clock)
        if waits:
            exchange.on_cancel(lambda: None)
        if how == "close":
            theirs.close()
        elif how == "half-close":
            theirs.shutdown(socket.SHUT_WR)
        elif how == "sends more":
            theirs.send(b"GET /")
        table.sweep([FakeConnection(exchange, ours)], clock.now)
        assert (exchange.cancelled is not None) is gone


def test_closed_sockets_of_our_own_are_passed_over():
    ours, theirs = socket.socketpair()
    ours.close()
    assert hung_up([ours]) == []
    theirs.close()


def test_the_sweeper_thread_comes_and_goes():
    table = Inflight(Log(io.StringIO()), interval=0.01)
    table.start()
    connection = FakeConnection(Exchange())
    table.add(connection)
    for _ in range(300):
        if connection.did:
            break
        threading.Event().wait(0.01)
    table.remove(connection)
    assert connection.did and table.connections() == 0
    table.stop()
    assert "sweeper" not in [thread.name for thread in threading.enumerate()]


def test_draining_waits_for_the_exchanges():
    table = Inflight(Log(io.StringIO()), interval=0.01)
    connection = FakeConnection(Exchange())
    table.add(connection)
    assert table.drain(0.03) is False
    connection.exchange = None
    assert table.drain(1) is True and table.draining
