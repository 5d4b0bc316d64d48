"""Requests to upstreams and their answers: framing, deadlines, cancelling, retries.

Connections come from `pool`; requests are written, and answers read, with `http1`: the reader of
`http.client` hides a body that is cut short, and cannot be read again after a timeout. Sockets have
no timeouts of their own. Each wait is announced with `exchange.arm`, and the sweeper ends
it by `exchange.cancel`, which shuts the socket down from outside; the read then returns, and the
exchange says why. Foreign exceptions become ProxyErrors here.

A request is repeated only while nothing of an answer has been passed on, and only after a failed
connect, a lost connection, 429, 5xx or 529: see `should_retry` and `backoff`.
"""

from __future__ import annotations

import secrets
import socket
import ssl
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Callable, List, NamedTuple, Optional, Tuple

from claude_proxy.circuit import Circuits
from claude_proxy.errors import ProxyError, retry_after_seconds
from claude_proxy.events import CUT_SHORT
from claude_proxy.exchange import Exchange
from claude_proxy.http1 import (
    ResponseHead,
    UntilCloseBody,
    encode_request_head,
    keeps_alive,
    response_body,
    take_response_head,
)
from claude_proxy.pool import (
    ConnectError,
    Pool,
    Target,
    UpstreamConnection,
    connect_reason,
    connect_socket,
    shut_down,
    tls_remedy,
    wrong_credentials,
)
from claude_proxy.proxies import ProxySettings, proxy_for

RECEIVE_BYTES = 65536
LONGEST_ERROR_BODY = 65536
LAST_CHUNK_SECONDS = 0.02
LONGEST_INFLATED_PIECE = 1 << 20

BODILESS_METHODS = ("GET", "HEAD", "DELETE", "OPTIONS")
RETRIED_STATUSES = frozenset((408, 429, 500, 502, 503, 504, 529))
# A kept-alive connection that ends later than this after a request had one that was read.
STALE_SECONDS = 1.0
# A client that is told to wait longer than this waits by itself: it sees the status at once.
LONGEST_RETRY_WAIT = 8.0


class Timeouts(NamedTuple):
    """Longest waits in seconds, 0 for no limit: to connect, for the first byte, between bytes."""

    connect: float
    first_byte: float
    idle: float


class Call(NamedTuple):
    """One request to an upstream. `target_path` includes the query; headers have lower-case names.

    With `once` it is never sent twice, for each sending costs, and the time for the first byte is
    that for the whole answer.
    """

    method: str
    target: Target
    target_path: str
    headers: Tuple[Tuple[str, str], ...]
    body: bytes
    once: bool = False
    first_byte: float = 0  # seconds, if it is not the usual time
    retries: Optional[int] = None  # if it is not the usual number


class ConnectionLost(Exception):
    """The upstream closed the connection before it answered anything."""


def lost_connection(target: Target, cause: Optional[BaseException] = None) -> ProxyError:
    """In TLS 1.3 a server says only now that it does not like the client's certificate."""
    remedy = tls_remedy(cause) if isinstance(cause, ssl.SSLError) else ""
    if remedy:
        detail = remedy.format(reason=connect_reason(cause))
        return ProxyError(502, f"cannot reach the upstream {target}: {detail}")
    return ProxyError(502, f"the upstream {target} closed the connection without an answer")


@contextmanager
def watched(exchange: Exchange, sock: socket.socket) -> Iterator[None]:
    """While it connects, cancelling ends it."""
    interrupt = partial(shut_down, sock)
    exchange.on_cancel(interrupt)
    try:
        yield
    finally:
        exchange.off_cancel(interrupt)


def should_retry(status: int, headers: Mapping[str, str]) -> bool:
    """Whether an upstream's answer may be asked for again."""
    return status in RETRIED_STATUSES and headers.get("x-should-retry") != "false"


def backoff(attempt: int, retry_after: Optional[float], chance: float) -> float:
    """Seconds to wait before retry number `attempt` (0, 1, ...); `chance` is in [0, 1)."""
    if retry_after is not None:
        return retry_after
    return min(0.5 * 2**attempt, LONGEST_RETRY_WAIT) * (0.75 + chance / 2)


def random_chance() -> float:
    return secrets.randbelow(1000) / 1000


# --- one request and its answer ----------------------------------------------------------------


class Transport:
    """Sends requests to upstreams. One for the process; any thread may use it."""

    def __init__(
        self,
        timeouts: Timeouts,
        max_retries: int = 1,
        context: Optional[ssl.SSLContext] = None,
        chance: Callable[[], float] = random_chance,
        proxies: ProxySettings = ProxySettings(),
        circuits: Optional[Circuits] = None,
    ) -> None:
        self._timeouts = timeouts
        self._max_retries = max_retries
        self._context = context
        self._chance = chance
        self._proxies = proxies
        self._circuits = circuits or Circuits()
        self._pool = Pool()

    def close(self) -> None:
        self._pool.close()

    def request(self, exchange: Exchange, call: Call) -> UpstreamResponse:
        """As `_request`; ProxyError(529) at once while what asks a model is not sent there."""
        circuit = self._circuits.at(call.target) if call.method == "POST" else None
        if circuit is None:
            return self._request(exchange, call)
        return circuit.guard(exchange, call.once, partial(self._request, exchange, call))

    def _request(self, exchange: Exchange, call: Call) -> UpstreamResponse:
        """Send the call and read the answer's head, with retries; the caller closes the answer.

        Any status comes back as an answer, redirects too: they are never followed.
        """
        attempt = 0
        while True:
            allowed = self._max_retries if call.retries is None else call.retries
            last = attempt >= allowed
            try:
                response = self._attempt(exchange, call)
            except ProxyError as error:
                sent = call.once and not isinstance(error, ConnectError)
                if last or sent or exchange.cancelled is not None:
                    raise
                wait = backoff(attempt, None, self._chance())
            else:
                last = last or call.once or response.status in exchange.not_repeated
                wait = self._retry_wait(response, attempt)
                if last or wait > LONGEST_RETRY_WAIT:
                    return response
                response.close()
            attempt += 1
            exchange.facts["retries"] = attempt
            exchange.sleep(wait)

    def _retry_wait(self, response: UpstreamResponse, attempt: int) -> float:
        if response.status < 400 or not should_retry(response.status, response.headers):
            return LONGEST_RETRY_WAIT + 1
        after = retry_after_seconds(response.headers, time.time())
        return backoff(attempt, after, self._chance())

    def _attempt(self, exchange: Exchange, call: Call) -> UpstreamResponse:
        exchange.raise_if_cancelled()
        connection = None if call.once else self._pool.take(call.target)
        if connection is not None:
            begun = exchange.clock()
            try:
                return self._send(exchange, call, connection)
            except ConnectionLost:
                exchange.raise_if_cancelled()
                if connection.ahead or exchange.clock() - begun > STALE_SECONDS:
                    raise lost_connection(call.target) from None
                # A kept-alive connection that the other side had just given up: nobody has read it.
        connection = self._connect(exchange, call.target)
        try:
            return self._send(exchange, call, connection)
        except ConnectionLost as lost:
            exchange.raise_if_cancelled()
            raise lost_connection(call.target, lost.__cause__) from None

    def _connect(self, exchange: Exchange, target: Target) -> UpstreamConnection:
        watch = partial(watched, exchange)
        proxy = proxy_for(target, self._proxies)
        try:
            sock = connect_socket(target, self._timeouts.connect, self._context, watch, proxy)
        except ProxyError:
            exchange.raise_if_cancelled()
            raise
        return UpstreamConnection(target, sock, proxy if target.scheme == "http" else None)

    def _send(
        self, exchange: Exchange, call: Call, connection: UpstreamConnection
    ) -> UpstreamResponse:
        exchange.on_cancel(connection.interrupt)
        seconds = call.first_byte or self._timeouts.first_byte
        exchange.arm(seconds, first_byte_of(call.target))
        try:
            path, fields = call.target_path, request_fields(call)
            if connection.proxy is not None:
                path = f"http://{host_field(call.target)}{path}"
                fields += connection.proxy.fields()
            head = encode_request_head(call.method, path, fields)
            try:
                connection.sock.sendall(head + call.body)
            except OSError:
                pass  # it may have answered before it had read all: too large, for instance
            response_head = read_response_head(connection)
            if response_head.status == 407 and connection.proxy is not None:
                raise ProxyError(502, wrong_credentials(connection.proxy))
        except BaseException as error:
            exchange.off_cancel(connection.interrupt)
            exchange.disarm()
            connection.close()
            if isinstance(error, OSError):
                raise ConnectionLost from error
            raise
        idle = None if call.once else self._timeouts.idle
        if not call.once:
            exchange.disarm()
        return UpstreamResponse(exchange, connection, response_head, idle, self._pool)


def request_fields(call: Call) -> List[Tuple[str, str]]:
    """A call's headers and ours; those of the call replace ours, but for the length."""
    own = [("host", host_field(call.target)), ("accept-encoding", "identity")]
    named = dict(call.headers)
    fields = [pair for pair in own if pair[0] not in named]
    if call.body or call.method not in BODILESS_METHODS:
        fields.append(("content-length", str(len(call.body))))
    if "content-length" in named:
        fields += [pair for pair in call.headers if pair[0] != "content-length"]
    else:
        fields += call.headers
    return fields


@lru_cache(maxsize=64)
def first_byte_of(target: Target) -> str:
    """What is waited for, in words."""
    return f"the first byte from {target}"


@lru_cache(maxsize=64)
def host_field(target: Target) -> str:
    """Host and port of a target, the port only if it is not the scheme's own."""
    if target.port != (443 if target.scheme == "https" else 80):
        return target.authority
    return f"[{target.host}]" if ":" in target.host else target.host


def read_response_head(connection: UpstreamConnection) -> ResponseHead:
    """Read up to the end of the final response's head; interim (1xx) ones are passed over."""
    for _ in range(10):
        taken = take_response_head(connection.ahead) if connection.ahead else None
        while taken is None:
            piece = connection.sock.recv(RECEIVE_BYTES)
            if not piece:
                raise ConnectionLost
            connection.ahead += piece
            taken = take_response_head(connection.ahead)
        head, connection.ahead = taken
        if head.status >= 200:
            return head
    raise ProxyError(502, "the upstream sent nothing but interim responses")


class UpstreamResponse:
    """An upstream's answer: status, headers, and the body as it comes.

    Belongs to one thread. Closing it after the whole body was read keeps the connection for the
    next request; otherwise the connection is closed, and the upstream learns that it may stop.
    """

    def __init__(
        self,
        exchange: Exchange,
        connection: UpstreamConnection,
        head: ResponseHead,
        idle_timeout: Optional[float],  # None: the deadline that is armed stays
        pool: Pool,
    ) -> None:
        self.status = head.status
        self.headers = head.headers
        self._exchange = exchange
        self._connection = connection
        self._head = head
        self._idle_timeout = idle_timeout
        self._pool = pool
        self._body = response_body(head)
        self._closed = False

    def raw_pieces(self) -> Iterator[bytes]:
        """The body in pieces as it came, compressed or not; otherwise like `pieces`."""
        return self._plain_pieces()

    def pieces(self) -> Iterator[bytes]:
        """The body in pieces, decoded, each as soon as it is here.

        Raises ProxyError: 502 if the body is cut short, the exchange's reason if it is cancelled.
        """
        coding = self.headers.get("content-encoding", "").lower()
        if coding in ("gzip", "x-gzip", "deflate"):
            return inflate(self._plain_pieces())
        return self._plain_pieces()

    def read(self, limit: int = LONGEST_ERROR_BODY) -> bytes:
        """The body's first `limit` bytes, or what there is of them: for error messages."""
        parts: List[bytes] = []
        size = 0
        try:
            for piece in self.pieces():
                parts.append(piece)
                size += len(piece)
                if size >= limit:
                    break
        except ProxyError:
            self._exchange.raise_if_cancelled()
        return b"".join(parts)[:limit]

    def _plain_pieces(self) -> Iterator[bytes]:
        connection, body, exchange = self._connection, self._body, self._exchange
        receive = connection.sock.recv
        piece, connection.ahead = connection.ahead, b""
        while True:
            if piece:
                data = self._decode(piece)
                if data:
                    yield data
            if body.done:
                return
            if self._idle_timeout is not None:
                exchange.arm(self._idle_timeout, "more of the upstream's answer")
            else:
                exchange.before_wait()
            # A socket that was shut down still gives what has come to it, and what still comes.
            exchange.raise_if_cancelled()
            try:
                piece = receive(RECEIVE_BYTES)
            except OSError:
                piece = b""
            if self._idle_timeout is not None:
                exchange.disarm()  # the client's time to read is not the upstream's
            if not piece:
                exchange.raise_if_cancelled()
                if body.end_of_input():
                    return
                raise ProxyError(502, CUT_SHORT)

    def _decode(self, piece: bytes) -> bytes:
        try:
            return self._body.feed(piece)
        except ProxyError as error:
            detail = error.message.partition(": ")[2]
            raise ProxyError(502, f"the upstream's answer is malformed: {detail}") from None

    def close(self) -> None:
        """Give the connection back if nothing of the body is left on it."""
        if self._closed:
            return
        self._closed = True
        self._exchange.disarm()
        self._exchange.off_cancel(self._connection.interrupt)
        if self._at_end() and keeps_alive(self._head.version, self.headers):
            self._pool.give(self._connection)
        else:
            self._connection.close()

    def _at_end(self) -> bool:
        """Whether the body is complete, after a short wait for its last bytes.

        The last chunk comes just behind the data that told the reader to stop, but not always in
        the same packet. A body that ends with the connection leaves nothing to keep.
        """
        body, connection = self._body, self._connection
        if self._exchange.cancelled is not None or isinstance(body, UntilCloseBody):
            return False
        try:
            if not body.done:
                self._exchange.before_wait()
                connection.sock.settimeout(LAST_CHUNK_SECONDS)
                body.feed(connection.ahead or connection.sock.recv(RECEIVE_BYTES))
                connection.ahead = b""
                connection.sock.settimeout(None)
        except (OSError, ProxyError):
            return False
        return body.done and not body.rest and not connection.ahead


def inflate(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Decode a gzip or deflate body that came although identity was asked for.

    What comes out of one piece is handed on in bounded parts, so that a bomb costs no memory.
    """
    decoder = zlib.decompressobj(47)
    for piece in pieces:
        while piece:
            try:
                data = decoder.decompress(piece, LONGEST_INFLATED_PIECE)
            except zlib.error:
                raise ProxyError(502, "the upstream's answer is compressed and damaged") from None
            if data:
                yield data
            piece = decoder.unconsumed_tail
