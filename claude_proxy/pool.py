"""Connections to upstreams: how they are made, and the pool of idle ones.

A connection goes straight to the upstream or by way of a web proxy: through a tunnel (CONNECT) to
an https upstream, with the whole URL in each request to an http one. What is said over it is
`transport`'s matter. Sockets block without timeouts of their own: the sweeper ends a wait by
`interrupt`. What goes wrong in connecting becomes a ProxyError that says where, why and what to do.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import lru_cache
from typing import Any, Callable, ContextManager, Dict, List, NamedTuple, Optional, Tuple, Union
from urllib.parse import urlsplit

from claude_proxy.config import ConfigError
from claude_proxy.errors import ProxyError
from claude_proxy.http1 import ResponseHead, encode_request_head, take_response_head
from claude_proxy.inflight import nothing_came
from claude_proxy.patterns import LazyPattern

IDLE_CONNECTIONS_KEPT = 64
IDLE_CONNECTION_SECONDS = 50.0
TUNNEL_RECEIVE_BYTES = 4096
TLS_RECEIVE_BYTES = 65536


class Target(NamedTuple):
    """Where an upstream listens. Equal targets share connections."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def authority(self) -> str:
        """Host and port as a URL has them."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class WebProxy(NamedTuple):
    """A proxy on the way to upstreams. `setting` is where it was named."""

    target: Target
    authorization: str  # the value of Proxy-Authorization, "" for none
    setting: str

    def __str__(self) -> str:
        return str(self.target)

    def __repr__(self) -> str:
        """Without the credentials, which a traceback must not show."""
        return f"WebProxy({self.target})"

    def fields(self) -> List[Tuple[str, str]]:
        """What a request to the proxy itself carries."""
        return [("proxy-authorization", self.authorization)] if self.authorization else []


@lru_cache(maxsize=64)
def split_url(url: str) -> Tuple[Target, str]:
    """(target, path with query) of an http or https URL."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(parts.scheme, parts.hostname or "", port), path


# --- TLS ---------------------------------------------------------------------------------------


class ClientCertificate(NamedTuple):
    """What is shown to those who ask who is there: files, what opens the key, and how the names of
    the settings begin that say so."""

    cert_file: str = ""
    key_file: str = ""
    passphrase: str = ""
    named: str = "CLIENT"

    def __repr__(self) -> str:
        return f"ClientCertificate({self.cert_file!r})"


def make_ssl_context(
    verify: bool,
    ca_file: str = "",
    ca_dir: str = "",
    client: ClientCertificate = ClientCertificate(),
) -> ssl.SSLContext:
    """The one TLS context of the process: system roots, and the given ones added to them."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if ca_file or ca_dir:
        context.load_verify_locations(ca_file or None, ca_dir or None)
    if client.cert_file:
        add_client_certificate(context, client)
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def add_client_certificate(context: ssl.SSLContext, client: ClientCertificate) -> None:
    """Raises ConfigError. Without a password OpenSSL would ask for one on the terminal."""
    asked: List[bool] = []

    def tell_passphrase() -> str:
        asked.append(True)
        return client.passphrase

    try:
        context.load_cert_chain(client.cert_file, client.key_file or None, tell_passphrase)
    except (OSError, ValueError) as error:
        raise ConfigError([client_certificate_problem(client, error, bool(asked))]) from None


def client_certificate_problem(client: ClientCertificate, error: Exception, locked: bool) -> str:
    reason = getattr(error, "reason", "") or getattr(error, "strerror", "") or "not usable"
    named = client.named
    if reason == "KEY_VALUES_MISMATCH":
        return f"{named}_KEY_FILE: this key does not belong to the certificate in {named}_CERT_FILE"
    if locked and client.passphrase:
        return f"{named}_KEY_PASSPHRASE: does not open the key"
    if locked:
        return f"{named}_KEY_PASSPHRASE: the key is encrypted; set what opens it"
    hint = "" if client.key_file else f" (if the key is in another file: {named}_KEY_FILE)"
    return f"{named}_CERT_FILE: cannot be used as a certificate and its key: {reason}{hint}"


class InnerTls:
    """TLS inside TLS, to an https upstream through an https proxy.

    The ssl module wraps a descriptor only, which here speaks the outer TLS already; so the inner
    one goes through memory. Has what `transport` needs of a socket.
    """

    def __init__(self, outer: ssl.SSLSocket, context: ssl.SSLContext, host: str) -> None:
        self.outer = outer
        self._came, self._goes = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._came, self._goes, server_hostname=host)
        self._run(self._tls.do_handshake)

    def _run(self, step: Callable[..., Any], *arguments: Any) -> Any:
        """Do a step of the inner TLS, with as much sending and receiving as it takes."""
        while True:
            try:
                result = step(*arguments)
            except ssl.SSLWantReadError:
                self._send_pending()
                self._receive()
            else:
                self._send_pending()
                return result

    def _send_pending(self) -> None:
        if self._goes.pending:
            self.outer.sendall(self._goes.read())

    def _receive(self) -> None:
        piece = self.outer.recv(TLS_RECEIVE_BYTES)
        if piece:
            self._came.write(piece)
        else:
            self._came.write_eof()

    def sendall(self, data: bytes) -> None:
        sent = 0
        while sent < len(data):
            sent += self._run(self._tls.write, data[sent : sent + TLS_RECEIVE_BYTES])

    def recv(self, size: int) -> bytes:
        try:
            return self._run(self._tls.read, size)
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
            return b""

    def settimeout(self, seconds: Optional[float]) -> None:
        self.outer.settimeout(seconds)

    def fileno(self) -> int:
        return self.outer.fileno()

    def close(self) -> None:
        self.outer.close()


Link = Union[socket.socket, InnerTls]


def wrap_tls(sock: socket.socket, context: Optional[ssl.SSLContext], host: str) -> Link:
    """The socket with TLS on it, handshake done."""
    context = context or make_ssl_context(True)
    if isinstance(sock, ssl.SSLSocket):
        return InnerTls(sock, context, host)
    return context.wrap_socket(sock, server_hostname=host)


# --- connecting --------------------------------------------------------------------------------


class ConnectError(ProxyError):
    """No connection: nothing has been sent."""


Watch = Callable[[socket.socket], ContextManager[None]]


def connect_socket(
    target: Target,
    timeout: float,
    context: Optional[ssl.SSLContext],
    watch: Watch = nullcontext,
    proxy: Optional[WebProxy] = None,
) -> Link:
    """A connected socket without a timeout of its own; ProxyError says what failed, and where.

    `watch` is given a handle of each socket while it connects, by which it can be shut down.
    Through a proxy it ends at the target if that is https, else at the proxy.
    """
    first = proxy.target if proxy else target
    sock: Any = None
    try:
        with ExitStack() as watching:
            with explained(target, proxy):
                sock = open_socket(watch, watching, (first.host, first.port), timeout or None)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if first.scheme == "https":
                    sock = wrap_tls(sock, context, first.host)
                if proxy and target.scheme == "https":
                    open_tunnel(sock, target, proxy, timeout)
            if proxy and target.scheme == "https":
                with explained(target):
                    sock = wrap_tls(sock, context, target.host)
            sock.settimeout(None)
    except BaseException:
        if sock is not None:
            sock.close()
        raise
    return sock


@contextmanager
def explained(target: Target, proxy: Optional[WebProxy] = None) -> Iterator[None]:
    """What fails in here becomes a ConnectError."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise connect_error(target, error, proxy) from error


def open_socket(
    watch: Watch, watching: ExitStack, address: Tuple[str, int], timeout: Optional[float]
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


def open_tunnel(sock: socket.socket, target: Target, proxy: WebProxy, timeout: float) -> None:
    """Ask the proxy for a connection to the target (RFC 9110, 9.3.6); after it, TLS can begin."""
    fields = [("host", target.authority), *proxy.fields()]
    sock.sendall(encode_request_head("CONNECT", target.authority, fields))
    try:
        head, rest = read_tunnel_head(sock, timeout)
    except ProxyError:
        raise ConnectError(
            502, f"the proxy {proxy} does not speak HTTP/1.1: check {proxy.setting}"
        ) from None
    sock.settimeout(timeout or None)
    if head.status // 100 != 2:
        raise tunnel_refused(target, proxy, head.status)
    if rest:
        raise ConnectError(502, f"the proxy {proxy} sent data of its own into the connection")


def read_tunnel_head(sock: socket.socket, timeout: float) -> Tuple[ResponseHead, bytes]:
    """(final head, what came behind it); interim ones are passed over."""
    end = time.monotonic() + timeout
    ahead, taken = b"", None
    for _ in range(10):
        taken = take_response_head(ahead)
        while taken is None:
            if timeout:
                sock.settimeout(max(end - time.monotonic(), 0.001))
            piece = sock.recv(TUNNEL_RECEIVE_BYTES)
            if not piece:
                raise OSError("it closed the connection")
            ahead += piece
            taken = take_response_head(ahead)
        if taken[0].status >= 200:
            return taken
        ahead = taken[1]
    raise OSError("it sent nothing but interim responses")


def tunnel_refused(target: Target, proxy: WebProxy, status: int) -> ConnectError:
    if status == 407:
        return ConnectError(502, wrong_credentials(proxy))
    return ConnectError(
        502,
        f"the proxy {proxy} refused to connect to {target} (status {status}); if no proxy is "
        f"needed for it, name it in NO_PROXY, else check {proxy.setting}",
    )


def wrong_credentials(proxy: WebProxy) -> str:
    kind = "other credentials" if proxy.authorization else "credentials (http://user:password@...)"
    return f"the proxy {proxy} wants {kind} ({proxy.setting}); only Basic ones can be sent"


def shut_down(sock: Any) -> None:
    """Wake a thread that waits on a socket. For other threads; also below TLS."""
    try:
        socket.socket.shutdown(getattr(sock, "outer", sock), socket.SHUT_RDWR)
    except OSError:
        pass


# --- what failed, for people -------------------------------------------------------------------


def connect_error(
    target: Target, error: Exception, proxy: Optional[WebProxy] = None
) -> ConnectError:
    """What a person needs to know about a failed connect: host, port, cause, remedy."""
    setting = proxy.setting if proxy else "the base URL"
    detail = connect_remedy(error).format(setting=setting, reason=connect_reason(error))
    if proxy:
        return ConnectError(502, f"cannot reach the proxy {proxy} of {setting}: {detail}")
    return ConnectError(502, f"cannot reach the upstream {target}: {detail}")


def connect_reason(error: BaseException) -> str:
    """OpenSSL's own words, without its code and the place in the ssl module's source."""
    words = getattr(error, "verify_message", "").rstrip(".") or str(error)
    return SSL_PLACE.sub("", words)


def connect_remedy(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return VERIFY_REMEDIES.get(getattr(error, "verify_code", 0), NOT_TRUSTED)
    if isinstance(error, ssl.SSLError):
        return tls_remedy(error) or HANDSHAKE_FAILED
    fitting = (remedy for kind, remedy in CONNECT_REMEDIES if isinstance(error, kind))
    return next(fitting, "{reason}")


def tls_remedy(error: BaseException) -> str:
    """What to do about an alert of the other side, "" if it is none that is known."""
    text = str(error).upper().replace(" ", "_")
    return next((remedy for mark, remedy in TLS_REMEDIES if mark in text), "")


NOT_TRUSTED = "its certificate is not trusted ({reason}); name your organisation's root in CA_FILE"
OUT_OF_DATE = (
    "its certificate is not valid at this time ({reason}); has it been renewed, and is this "
    "machine's clock right?"
)
OTHER_NAME = "its certificate is for another name ({reason}); check {setting}"
SSL_PLACE = LazyPattern(r"^\[[A-Z]+: \w+\] | \(_ssl\.c:[0-9]+\)$")
# By the numbers that OpenSSL has for them.
VERIFY_REMEDIES = {9: OUT_OF_DATE, 10: OUT_OF_DATE, 62: OTHER_NAME, 64: OTHER_NAME}

HANDSHAKE_FAILED = "the TLS handshake failed ({reason}); does it speak https there?"
TOO_OLD = "it speaks no TLS of version 1.2 or later ({reason}); it has to be brought up to date"
NOT_SHOWN = "it wants a client certificate ({reason}); set CLIENT_CERT_FILE"
NOT_LIKED = "it does not accept the client certificate ({reason}); check CLIENT_CERT_FILE"
# Words of OpenSSL's reasons, first to look for first.
TLS_REMEDIES = (
    ("CERTIFICATE_REQUIRED", NOT_SHOWN),
    ("ALERT_UNKNOWN_CA", NOT_LIKED),
    ("ALERT_BAD_CERTIFICATE", NOT_LIKED),
    ("ALERT_CERTIFICATE_", NOT_LIKED),
    ("ALERT_UNSUPPORTED_CERTIFICATE", NOT_LIKED),
    ("UNSUPPORTED_PROTOCOL", TOO_OLD),
    ("ALERT_PROTOCOL_VERSION", TOO_OLD),
    ("VERSION_TOO_LOW", TOO_OLD),
    ("ALERT_HANDSHAKE_FAILURE",
     "it ended the TLS handshake ({reason}); does it want a client certificate "
     "(CLIENT_CERT_FILE)?"),
)  # fmt: skip

CONNECT_REMEDIES = (
    (socket.gaierror, "its name is not known here; check {setting} and the network"),
    (ConnectionRefusedError, "nothing listens there; is it running, and is the port right?"),
    (socket.timeout, "no answer within CONNECT_TIMEOUT; a firewall may drop the packets"),
)


# --- the pool ----------------------------------------------------------------------------------


class UpstreamConnection:
    """A socket to an upstream, and the bytes read ahead from it.

    `proxy` is who gets the requests, if not the upstream itself or a tunnel to it.
    """

    def __init__(self, target: Target, sock: Link, proxy: Optional[WebProxy] = None) -> None:
        self.target = target
        self.sock = sock
        self.proxy = proxy
        self.ahead = b""
        self.reused = False
        self.idle_since = 0.0

    def interrupt(self) -> None:
        """Wake a thread that reads or writes here. For other threads."""
        shut_down(self.sock)

    def usable(self) -> bool:
        """Whether an idle connection is still silent and open."""
        return nothing_came(self.sock)

    def close(self) -> None:
        self.sock.close()


class Pool:
    """Idle connections by target; the one used last is taken first."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._idle: Dict[Target, deque[UpstreamConnection]] = {}
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
            connections = self._idle.get(connection.target)
            if connections is None:
                connections = self._idle[connection.target] = deque()
            connections.append(connection)
            # The oldest stand in front.
            old = connection.idle_since - IDLE_CONNECTION_SECONDS
            dropped = []
            while connections and (
                self._closed
                or len(connections) > IDLE_CONNECTIONS_KEPT
                or connections[0].idle_since <= old
            ):
                dropped.append(connections.popleft())
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
