"""Connections to upstreams: how they are made, and the pool of idle ones.

`http.client` connects and does TLS; what is said over a connection is `transport`'s matter. Sockets
block without timeouts of their own: the sweeper ends a wait by `interrupt`. What goes wrong in
connecting becomes a ProxyError that says where, why and what to do.
"""

from __future__ import annotations

import http.client
import select
import socket
import ssl
import threading
import time
from contextlib import ExitStack, nullcontext
from functools import partial
from typing import Any, Callable, ContextManager, Dict, List, NamedTuple, Optional, Tuple
from urllib.parse import urlsplit

from claude_proxy.errors import ProxyError

IDLE_CONNECTIONS_KEPT = 64
IDLE_CONNECTION_SECONDS = 50.0


class Target(NamedTuple):
    """Where an upstream listens. Equal targets share connections."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def split_url(url: str) -> Tuple[Target, str]:
    """(target, path with query) of an http or https URL."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(parts.scheme, parts.hostname or "", port), path


def make_ssl_context(verify: bool, ca_file: str = "", ca_dir: str = "") -> ssl.SSLContext:
    """The one TLS context of the process: system roots, and the given ones added to them."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if ca_file or ca_dir:
        context.load_verify_locations(ca_file or None, ca_dir or None)
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


class ConnectError(ProxyError):
    """No connection: nothing has been sent."""


Watch = Callable[[socket.socket], ContextManager[None]]


def connect_socket(
    target: Target, timeout: float, context: Optional[ssl.SSLContext], watch: Watch = nullcontext
) -> socket.socket:
    """A connected socket without a timeout of its own; ProxyError says what failed, and where.

    `watch` is given a handle of each socket while it connects, by which it can be shut down.
    """
    options = {"timeout": timeout or None}
    if target.scheme == "https":
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            target.host, target.port, context=context, **options
        )
    else:
        connection = http.client.HTTPConnection(target.host, target.port, **options)
    try:
        with ExitStack() as watching:
            connection._create_connection = partial(open_socket, watch, watching)
            connection.connect()
    except (OSError, http.client.HTTPException, ValueError) as error:
        connection.close()
        raise connect_error(target, error) from error
    connection.sock.settimeout(None)
    return connection.sock


def open_socket(
    watch: Watch, watching: ExitStack, address: Tuple[str, int], timeout: Any, *source: Any
) -> socket.socket:
    """As `socket.create_connection`, but watched. TLS takes the descriptor away from the socket
    that it wraps, so what is watched is a second one of the same connection."""
    problem = OSError("the name has no address")
    for family, kind, number, _, place in socket.getaddrinfo(*address, type=socket.SOCK_STREAM):
        sock = socket.socket(family, kind, number)
        handle = watching.enter_context(sock.dup())
        watching.enter_context(watch(handle))
        sock.settimeout(timeout)
        try:
            sock.connect(place)
            return sock
        except OSError as error:
            sock.close()
            problem = error
    raise problem


def shut_down(sock: socket.socket) -> None:
    """Wake a thread that waits on a socket. For other threads; also below TLS."""
    try:
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
    except OSError:
        pass


def connect_error(target: Target, error: Exception) -> ConnectError:
    """What a person needs to know about a failed connect: host, port, cause, remedy."""
    for kind, remedy in CONNECT_REMEDIES:
        if isinstance(error, kind):
            detail = remedy.format(reason=getattr(error, "verify_message", "") or error)
            return ConnectError(502, f"cannot reach the upstream {target}: {detail}")
    return ConnectError(502, f"cannot reach the upstream {target}: {error}")


CONNECT_REMEDIES = (
    (
        ssl.SSLCertVerificationError,
        "its certificate is not trusted ({reason}); name your organisation's root in CA_FILE",
    ),
    (ssl.SSLError, "the TLS handshake failed ({reason}); does it speak https there?"),
    (socket.gaierror, "its name is not known here; check the base URL and the network"),
    (ConnectionRefusedError, "nothing listens there; is it running, and is the port right?"),
    (socket.timeout, "no answer within CONNECT_TIMEOUT; a firewall may drop the packets"),
)


class UpstreamConnection:
    """A socket to an upstream, and the bytes read ahead from it."""

    def __init__(self, target: Target, sock: socket.socket) -> None:
        self.target = target
        self.sock = sock
        self.ahead = b""
        self.reused = False
        self.idle_since = 0.0

    def interrupt(self) -> None:
        """Wake a thread that reads or writes here. For other threads."""
        shut_down(self.sock)

    def usable(self) -> bool:
        """Whether an idle connection is still silent and open."""
        if hasattr(select, "poll"):
            poll = select.poll()
            poll.register(self.sock, select.POLLIN)
            return not poll.poll(0)
        return not select.select([self.sock], [], [], 0)[0]

    def close(self) -> None:
        self.sock.close()


class Pool:
    """Idle connections by target; the one used last is taken first."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._idle: Dict[Target, List[UpstreamConnection]] = {}
        self._closed = False
        self._lock = threading.Lock()

    def take(self, target: Target) -> Optional[UpstreamConnection]:
        while True:
            with self._lock:
                connections = self._idle.get(target)
                connection = connections.pop() if connections else None
            if connection is None:
                return None
            fresh = self._clock() - connection.idle_since < IDLE_CONNECTION_SECONDS
            if fresh and connection.usable():
                connection.reused = True
                return connection
            connection.close()

    def give(self, connection: UpstreamConnection) -> None:
        connection.idle_since = self._clock()
        with self._lock:
            connections = self._idle.setdefault(connection.target, [])
            connections.append(connection)
            old = connection.idle_since - IDLE_CONNECTION_SECONDS
            kept = [c for c in connections if c.idle_since > old][-IDLE_CONNECTIONS_KEPT:]
            kept = [] if self._closed else kept
            dropped = [c for c in connections if c not in kept]
            self._idle[connection.target] = kept
        for stale in dropped:
            stale.close()

    def close(self) -> None:
        """Close what is idle, and what comes back later."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, {}
        for connections in idle.values():
            for connection in connections:
                connection.close()
