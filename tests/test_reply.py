"""Wire and Reply with a clock of the test's own: the late opening, pings, nudges, errors."""

from __future__ import annotations

import contextlib
import io
import json
import socket

import pytest

from claude_proxy.answering import answer_form
from claude_proxy.dialects.anthropic import MESSAGES_DIALECT
from claude_proxy.errors import ProxyError
from claude_proxy.exchange import Exchange
from claude_proxy.http1 import ChunkedBody, HttpRequest, HttpResponse
from claude_proxy.wire import NUDGE_SECONDS, Reply, Wire, has_room


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


class Seen:
    """What has come out at the other end of a socket so far."""

    def __init__(self, sock):
        self._sock, self._bytes = sock, b""
        sock.setblocking(False)

    def getvalue(self):
        with contextlib.suppress(BlockingIOError):
            while True:
                piece = self._sock.recv(65536)
                if not piece:
                    break
                self._bytes += piece
        return self._bytes


class Rig:
    """A wire over a socket pair, an exchange that is being answered on it, and a clock."""

    def __init__(self, streaming=True, version="HTTP/1.1"):
        self.clock = Clock()
        self.ours, self.theirs = socket.socketpair()
        self.out = Seen(self.theirs)
        self.wire = Wire(self.ours, self.ours.sendall, 0, self.clock)
        self.exchange = Exchange(self.clock)
        self.exchange.model = "claude-x"
        self.exchange.form = answer_form(self.exchange, MESSAGES_DIALECT, streaming, 10.0)
        self.reply = Reply(self.wire, self.exchange, HttpRequest("POST", "/v1/messages", "", {}, version))
        self.wire.exchange, self.wire.reply = self.exchange, self.reply

    def wait(self, seconds):
        """Let time pass, sweeping every second; the bytes that went out."""
        start = len(self.out.getvalue())
        for _ in range(int(seconds)):
            self.clock.now += 1
            self.wire.keep_alive(self.clock.now)
        return self.out.getvalue()[start:]

    def close(self):
        self.ours.close()
        self.theirs.close()

    def body(self):
        head, _, body = self.out.getvalue().partition(b"\r\n\r\n")
        return head, ChunkedBody().feed(body).decode()


@pytest.fixture
def rig():
    made = []

    def make(**options):
        made.append(Rig(**options))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_nothing_goes_out_while_the_client_has_patience(rig):
    assert rig().wait(9) == b""


def test_then_the_answer_is_opened_and_pings_follow(rig):
    r = rig()
    assert b"HTTP/1.1 200" in r.wait(10)
    r.wait(35)
    head, body = r.body()
    assert b"text/event-stream" in head
    assert body.count("event: message_start") == 1 and body.count("event: ping") == 3


@pytest.mark.parametrize("block,expected", [((-1, ""), "message_delta"), ((0, "thinking"), "content_block_delta")])
def test_a_long_silence_brings_a_real_event(rig, block, expected):
    r = rig()
    r.exchange.open_block = block
    r.wait(10 + NUDGE_SECONDS + 10)
    _, body = r.body()
    assert body.count(f"event: {expected}") == 1
    r.wait(NUDGE_SECONDS + 10)
    assert r.body()[1].count(f"event: {expected}") == 2


def test_an_answer_that_opened_early_is_not_opened_again(rig):
    r = rig()
    r.wait(12)
    r.reply.send(HttpResponse(200, (("x-late", "1"),), iter([b"START", b"one", b"two"])))
    _, body = r.body()
    assert body.endswith("onetwo") and "START" not in body
    assert r.out.getvalue().count(b"HTTP/1.1") == 1 and r.out.getvalue().endswith(b"0\r\n\r\n")


def test_an_error_after_the_opening_is_the_last_event(rig):
    r = rig()
    r.wait(12)
    r.reply.fail(ProxyError(429, "slow down"))
    assert r.body()[1].rstrip().splitlines()[-2] == "event: error"
    assert r.reply.status == 200


def test_an_error_before_the_opening_is_a_status(rig):
    r = rig()
    r.wait(5)
    r.reply.fail(ProxyError(429, "slow down", headers=[("retry-after", "3")]))
    assert r.out.getvalue().startswith(b"HTTP/1.1 429 ") and b"retry-after: 3" in r.out.getvalue()
    assert r.wait(100) == b"", "a ping behind the end of the answer"


@pytest.mark.parametrize("finish", ["message", "error"])
def test_a_client_that_does_not_stream_gets_blanks_and_then_json(rig, finish):
    r = rig(streaming=False)
    assert r.wait(59) == b"" and b"200" in r.wait(2)
    r.wait(30)
    if finish == "message":
        r.reply.send(HttpResponse(200, (), b'{"type":"message"}'))
    else:
        r.reply.fail(ProxyError(502, "broken"))
    head, body = r.body()
    assert b"application/json" in head and body.startswith("  ")
    assert json.loads(body)["type"] == finish


def test_http_10_is_told_without_chunks(rig):
    r = rig(version="HTTP/1.0")
    out = r.wait(25)
    assert b"transfer-encoding" not in out and b"connection: close" in out
    assert out.endswith(b'event: ping\ndata: {"type":"ping"}\n\n')


def test_a_client_that_does_not_read_is_not_pinged(rig):
    r = rig()
    r.ours.setblocking(False)
    with pytest.raises(BlockingIOError):
        while True:
            r.ours.send(b"x" * 65536)
    assert not has_room(r.ours)
    r.clock.now += 30
    r.wire.keep_alive(r.clock.now)
    assert not r.reply.status and set(r.out.getvalue()) == {ord("x")}


def test_the_sweeper_never_waits_for_the_lock(rig):
    r = rig()
    with r.wire._lock:
        assert r.wait(30) == b""
    assert r.wait(1)


def test_the_upstream_is_closed_whatever_ends_the_answer(rig):
    closed = []

    def pieces():
        try:
            yield b"a"
            yield b"b"
        finally:
            closed.append(True)

    class Broken(io.BytesIO):
        def write(self, data):
            raise BrokenPipeError

    r = rig()
    r.wire._send_all = Broken().write
    with pytest.raises(OSError):
        r.reply.send(HttpResponse(200, (), pieces()))
    assert closed == [True]


def test_head_gets_the_head_only(rig):
    r = rig()
    reply = Reply(r.wire, Exchange(r.clock), HttpRequest("HEAD", "/", "", {}))
    reply.send(HttpResponse(200, (), b"body"))
    assert b"content-length: 4" in r.out.getvalue() and r.out.getvalue().endswith(b"\r\n\r\n")


def test_a_client_that_takes_no_more_never_holds_the_sweeper_up(rig):
    """One reader that does not read would otherwise end all deadlines and pings."""
    r = rig()
    r.ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    r.exchange.model = "x" * 1_000_000
    r.clock.now += 20
    r.wire.keep_alive(r.clock.now)
    with pytest.raises(OSError):
        r.ours.sendall(b"more")


class CountedWrites(io.RawIOBase):
    """A connection's file that remembers each write."""

    def __init__(self, fails_at=99):
        self.writes, self._fails_at = [], fails_at

    def write(self, data):
        if len(self.writes) >= self._fails_at:
            raise BrokenPipeError
        self.writes.append(bytes(data))
        return len(data)


def counted_reply(fails_at=99):
    out, exchange = CountedWrites(fails_at), Exchange()
    wire = Wire(socket.socket(), out.write)
    return out, exchange, Reply(wire, exchange, HttpRequest("POST", "/v1/messages", "", {}))


def sent_together(waits):
    """The bodies of the sends for the pieces of a source that waits before those of these numbers."""
    out, exchange, reply = counted_reply()

    def pieces():
        for number in range(6):
            if number in waits:
                exchange.arm(1, "more")
            yield b"%d" % number

    reply.send(HttpResponse(200, (), pieces()))
    first, *others = out.writes
    whole = first.partition(b"\r\n\r\n")[2] + b"".join(others)
    assert ChunkedBody().feed(whole) == b"012345"
    return [ChunkedBody().feed(part).decode() for part in (first.partition(b"\r\n\r\n")[2], *others)]


TOGETHER = [
    ("never", (), ["012345"]),
    ("before the first", (0,), ["012345"]),
    ("once", (3,), ["012", "345"]),
    ("before the last", (5,), ["01234", "5"]),
    ("each time", range(6), list("012345")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "waits", "sends"), TOGETHER, ids=[row[0] for row in TOGETHER])
def test_what_is_there_together_leaves_together_and_before_any_wait(name, waits, sends):
    assert sent_together(waits) == sends


def test_no_more_is_held_than_a_bounded_size():
    out, _, reply = counted_reply()
    reply.send(HttpResponse(200, (), iter([b"x" * 50_000] * 6)))
    assert len(out.writes) >= 3 and max(map(len, out.writes)) < 160_000


def broken_off():
    yield b"first"
    yield b"second"
    raise ProxyError(502, "broken off")


def test_what_is_held_is_told_before_an_error():
    out, exchange, reply = counted_reply()
    exchange.form = answer_form(exchange, MESSAGES_DIALECT, True, 10.0)
    with pytest.raises(ProxyError):
        reply.send(HttpResponse(200, (), broken_off()))
    reply.fail(ProxyError(502, "broken off"))
    body = ChunkedBody().feed(b"".join(out.writes).partition(b"\r\n\r\n")[2])
    assert body.startswith(b"firstsecondevent: error\n") and b"broken off" in body


def test_a_relayed_answer_that_breaks_off_is_sent_as_far_as_it_came():
    out, _, reply = counted_reply()
    with pytest.raises(ProxyError):
        reply.send(HttpResponse(200, (), broken_off()))
    reply.fail(ProxyError(502, "broken off"))
    assert b"".join(out.writes).endswith(b"5\r\nfirst\r\n6\r\nsecond\r\n") and reply.close


def test_a_client_that_is_gone_when_it_is_sent_to_cancels_the_exchange():
    _, exchange, reply = counted_reply(fails_at=0)

    def pieces():
        yield b"first"
        exchange.arm(1, "more")
        exchange.raise_if_cancelled()
        yield b"never"

    with pytest.raises(ProxyError) as gone:
        reply.send(HttpResponse(200, (), pieces()))
    assert gone.value.status == 499


def test_no_ping_comes_between_what_is_held(rig):
    r = rig()

    def pieces():
        yield b"first"
        r.clock.now += 100
        r.wire.keep_alive(r.clock.now)
        yield b"second"

    r.reply.send(HttpResponse(200, (), pieces()))
    assert r.body()[1] == "firstsecond"
