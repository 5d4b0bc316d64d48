"""One client connection, and the answer to one request on it.

`Wire` belongs to its thread, which alone reads from it. Writes happen under its lock, one send for
each piece, since the sweeper may write a ping between two of them. Waits have deadlines that the
sweeper enforces (see `inflight`), so the socket has no timeout.

The status line is a promise, so it is made late: with the first piece of the answer, or when a
silent upstream has used up the client's patience. `Reply` knows which of the two it was, and with
that whether an error can still be a status or has to be the last piece of the body.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Iterable
from email.utils import formatdate
from functools import lru_cache
from typing import Any, BinaryIO, Callable, List, Optional, Tuple

from claude_proxy.errors import ProxyError, error_body
from claude_proxy.exchange import NEVER, Exchange, client_gone
from claude_proxy.http1 import (
    LAST_CHUNK,
    Body,
    HttpRequest,
    HttpResponse,
    bad_request,
    encode_chunk,
    encode_response_head,
    keeps_alive,
    parse_head,
    take_head,
)
from claude_proxy.sse import encode_json

JSON_HEADERS = (("content-type", "application/json"),)
BODILESS_STATUSES = (204, 304)
READ_BYTES = 65536
SEND_AT_ONCE = getattr(socket, "MSG_DONTWAIT", 0)
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

# A body that comes slower than this, once READ_TIMEOUT is used up, is given up.
SLOWEST_BODY = 1024.0
# How long, and how much, is read of a request that was refused before its end, so that the client
# reads the answer rather than a reset.
LINGER_SECONDS = 2.0
LINGER_BYTES = 4 * 1024 * 1024
# So much of an answer is held at most, while there is more that needs no waiting for.
MOST_HELD = 65536
# Real events in a long silence, well within the 300 s that Claude Code allows between them.
NUDGE_SECONDS = 100.0


def json_response(
    status: int, data: Any, headers: Tuple[Tuple[str, str], ...] = ()
) -> HttpResponse:
    return HttpResponse(status, JSON_HEADERS + headers, encode_json(data).encode("ascii"))


def error_response(error: ProxyError, exchange: Exchange) -> HttpResponse:
    return json_response(error.status, error_body(error, exchange.id), error.headers)


@lru_cache(maxsize=1)
def http_date(second: int) -> str:
    return formatdate(second, usegmt=True)


def has_room(sock: socket.socket) -> bool:
    """Whether a few hundred bytes can be sent without waiting."""
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(sock, select.POLLOUT)
        return bool(poll.poll(0))
    return bool(select.select([], [sock], [], 0)[1])


def body_too_large(limit: int) -> ProxyError:
    return ProxyError(413, f"the request body has more than {limit} bytes (MAX_BODY_BYTES)")


class Wire:
    """One client connection."""

    def __init__(
        self,
        sock: socket.socket,
        out: BinaryIO,
        write_timeout: float = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.deadline = NEVER
        self.idle = False  # no request has begun, and it has not been ended for that
        self.exchange: Optional[Exchange] = None
        self.reply: Optional[Reply] = None
        self.clock = clock
        self._sock = sock
        self._out = out
        self._write_timeout = write_timeout or NEVER
        self._buffer = b""
        self._expired = False
        self._writing = False
        self._lock = threading.Lock()

    # --- for the sweeper ------------------------------------------------------------------------

    def socket(self) -> socket.socket:
        return self._sock

    def expire(self) -> None:
        """End the wait that has gone on for too long: of a reader, so that it can still answer."""
        self._expired = True
        self.idle = False
        self.deadline = NEVER
        how = socket.SHUT_RDWR if self._writing else socket.SHUT_RD
        try:
            self._sock.shutdown(how)
        except OSError:
            pass

    def keep_alive(self, now: float) -> None:
        reply = self.reply
        if (
            reply is None
            or not reply.silent_too_long(now)
            or not self._lock.acquire(blocking=False)
        ):
            return
        try:
            # Whoever does not read has no use for a ping, and the sweeper must never block.
            if has_room(self._sock):
                reply.keep_alive(now, self._put_at_once)
        except OSError:
            pass  # the thread that owns the connection will find out
        finally:
            self._lock.release()

    # --- for its thread -------------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        """Send all of the data at once; OSError when the client is gone or does not read."""
        with self._lock:
            self._put(data)

    def send_locked(self, make: Callable[[], bytes]) -> None:
        """Send what `make` says when nobody else can be sending."""
        with self._lock:
            data = make()
            if data:
                self._put(data)

    def _put(self, data: bytes) -> None:
        self._writing = True
        self.deadline = self.clock() + self._write_timeout
        try:
            self._out.write(data)
            self._out.flush()
        finally:
            self.deadline = NEVER
            self._writing = False

    def _put_at_once(self, data: bytes) -> None:
        """Send without waiting; a client that does not even take this is given up."""
        if self._sock.send(data, SEND_AT_ONCE) < len(data):
            self._sock.shutdown(socket.SHUT_RDWR)

    def _receive(self, seconds: float) -> bytes:
        """The next piece, b"" at the end of input; ProxyError(408) if it takes too long."""
        self.deadline = self.clock() + seconds if seconds else NEVER
        try:
            piece = self._sock.recv(READ_BYTES)
        except OSError:
            piece = b""
        self.deadline = NEVER
        if self._expired and not piece:
            raise ProxyError(408, "the request took too long to arrive", "invalid_request_error")
        return piece

    def read_head(
        self, idle_timeout: float, head_timeout: float, peer: str
    ) -> Optional[HttpRequest]:
        """The next request's head, or None when the client sends no more."""
        if not self._buffer:
            self.idle = not self._expired
            try:
                self._buffer = self._receive(idle_timeout)
            except ProxyError:
                return None
            finally:
                self.idle = False
        end, scanned = self.clock() + head_timeout, 0
        while True:
            # An empty line before a request is passed over (RFC 9112, 2.2).
            self._buffer = self._buffer[2:] if self._buffer.startswith(b"\r\n") else self._buffer
            taken = take_head(self._buffer, scanned)
            if taken is not None:
                head, self._buffer = taken
                return parse_head(head, peer)
            piece = self._receive(max(end - self.clock(), 0.001))
            if not piece:
                if self._buffer:
                    raise bad_request("the connection ended within the header")
                return None
            scanned = len(self._buffer)
            self._buffer += piece

    def read_body(self, request: HttpRequest, body: Body, limit: int, timeout: float) -> bytes:
        """The whole body, at most `limit` bytes; asks for it if the client waits to be asked.

        `body` is the decoder that `request_body` gave for this request.
        """
        if body.done:
            return b""
        if int(request.headers.get("content-length", 0)) > limit:
            raise body_too_large(limit)
        if "expect" in request.headers:
            self._meet_expectation(request)
        parts: List[bytes] = []
        size, start = 0, self.clock()
        piece = self._buffer
        while True:
            data = body.feed(piece)
            parts.append(data)
            size += len(data)
            if size > limit:
                raise body_too_large(limit)
            if body.done:
                self._buffer = body.rest
                return b"".join(parts)
            allowed = start + timeout + size / SLOWEST_BODY - self.clock()
            piece = self._receive(max(min(timeout, allowed), 0.001) if timeout else 0)
            if not piece:
                raise bad_request("the connection ended within the body")

    def _meet_expectation(self, request: HttpRequest) -> None:
        expectation = request.headers.get("expect", "").lower()
        if expectation == "100-continue" and request.version == "HTTP/1.1":
            self.send(CONTINUE)
        elif expectation:
            raise ProxyError(417, "the only expectation understood is 100-continue")

    def linger(self) -> None:
        """Close so that the client can read the answer although it is still sending."""
        size, end = 0, self.clock() + LINGER_SECONDS
        try:
            self._sock.shutdown(socket.SHUT_WR)
            while size < LINGER_BYTES and self.clock() < end:
                piece = self._receive(end - self.clock())
                if not piece:
                    return
                size += len(piece)
        except (OSError, ProxyError):
            pass


class Reply:
    """The answer to one request: opened once, early or not, then piece by piece to its end.

    Pieces that are there together leave together, in one send: they are held until the exchange is
    about to wait for something (`Exchange.before_wait`), and never while it waits.
    """

    def __init__(self, wire: Wire, exchange: Exchange, request: Optional[HttpRequest]) -> None:
        self.status = 0
        self.close = request is None or not keeps_alive(request.version, request.headers)
        self._wire = wire
        self._exchange = exchange
        self._chunked = request is None or request.version == "HTTP/1.1"
        self._head_only = request is not None and request.method == "HEAD"
        self._opened = False
        self._last_sent = self._last_event = wire.clock()
        self._unsent = b""  # the head and the opening, as they are sent
        self._held: List[bytes] = []  # pieces behind them
        self._over = False
        exchange.before_wait = self._before_wait

    # --- for the sweeper, under the wire's lock -------------------------------------------------

    def silent_too_long(self, now: float) -> bool:
        form = self._exchange.form
        if form is None:
            return False
        return now - self._last_sent >= (form.interval if self._opened else form.patience)

    def keep_alive(self, now: float, put: Callable[[bytes], None]) -> None:
        """Say something: the answer's opening, or that it is still being worked on."""
        form = self._exchange.form
        begun = self._unsent or self._held or self._over
        if form is None or begun or self.status and not self._opened:
            return
        if not self._opened:
            put(self._open(200, form.headers, form.opening()))
        elif now - self._last_event >= NUDGE_SECONDS:
            put(self._frame(form.nudge()))
            self._last_event = now
        else:
            put(self._frame(form.ping))
        self._last_sent = now

    # --- for the wire's thread ------------------------------------------------------------------

    def send(self, response: HttpResponse) -> None:
        """Send an answer to its end. ProxyError if its pieces fail, OSError if the client has."""
        if isinstance(response.body, bytes):
            self._send_whole(response, response.body)
        else:
            self._send_pieces(response, response.body)

    def fail(self, error: ProxyError) -> None:
        """Tell of an error, by status if that is still possible."""
        form = self._exchange.form
        if self._opened and form is None:
            self.close = True  # relayed bytes: that they are cut is seen by the missing end
            self._wire.send_locked(self._take_held)
        elif self._opened and form is not None:
            self._held.append(form.error(error))
            self._wire.send_locked(self._last_piece)
        else:
            self.send(error_response(error, self._exchange))

    def _send_whole(self, response: HttpResponse, body: bytes) -> None:
        def make() -> bytes:
            self._over = True
            if self._opened:
                return self._frame(body) + self._end()
            self.status = response.status
            head = self._head(response.status, (*response.headers, *self._length(response, body)))
            self._exchange.bytes_out += 0 if self._head_only else len(body)
            return head if self._head_only else head + body

        self._wire.send_locked(make)

    def _length(self, response: HttpResponse, body: bytes) -> Tuple[Tuple[str, str], ...]:
        """How long the body is, except where none can be (RFC 9110, 8.6) or it stays unknown."""
        told = "content-length" in dict(response.headers)
        unknown = self._head_only and not body
        if told or unknown or response.status in BODILESS_STATUSES:
            return ()
        return (("content-length", str(len(body))),)

    def _send_pieces(self, response: HttpResponse, pieces: Iterable[bytes]) -> None:
        pieces, hold, size = iter(pieces), self._held.append, 0
        try:
            opening = next(pieces)
            self._wire.send_locked(lambda: self._begin(response, opening))
            for piece in pieces:
                size = size + len(piece) if self._held else len(piece)
                hold(piece)
                if size > MOST_HELD:
                    self._wire.send_locked(self._take_held)
        finally:
            # Closing the generator closes the upstream's connection, whatever ended the loop.
            getattr(pieces, "close", bool)()
        self._wire.send_locked(self._last_piece)

    def _begin(self, response: HttpResponse, opening: bytes) -> bytes:
        """Hold the opening, unless the sweeper has been here; nothing is sent yet."""
        if not self._opened:
            self._unsent = self._open(response.status, response.headers, opening)
        return b""

    def _take_held(self) -> bytes:
        data = self._unsent + self._frame(b"".join(self._held))
        self._unsent = b""
        self._held.clear()
        self._last_sent = self._last_event = self._wire.clock()
        return data

    def _last_piece(self) -> bytes:
        self._over = True
        return self._take_held() + self._end()

    def _before_wait(self) -> None:
        if self._held or self._unsent:
            try:
                self._wire.send_locked(self._take_held)
            except OSError:
                self._exchange.cancel(client_gone())

    def _open(self, status: int, headers: Tuple[Tuple[str, str], ...], opening: bytes) -> bytes:
        self._opened = True
        self.status = status
        self._last_sent = self._last_event = self._wire.clock()
        framing = (("transfer-encoding", "chunked"),) if self._chunked else ()
        self.close = self.close or not self._chunked
        return self._head(status, (*headers, *framing)) + self._frame(opening)

    def _frame(self, piece: bytes) -> bytes:
        self._exchange.bytes_out += len(piece)
        # An empty chunk would be the last one.
        return encode_chunk(piece) if self._chunked and piece else piece

    def _end(self) -> bytes:
        return LAST_CHUNK if self._chunked else b""

    def _head(self, status: int, headers: Tuple[Tuple[str, str], ...]) -> bytes:
        fields, named = list(headers), dict(headers)
        if "date" not in named:
            fields.append(("date", http_date(int(time.time()))))
        if "request-id" not in named:
            fields.append(("request-id", self._exchange.id))
        fields += [pair for pair in self._exchange.answer_headers if pair[0] not in named]
        if self.close:
            fields.append(("connection", "close"))
        return encode_response_head(status, fields)
