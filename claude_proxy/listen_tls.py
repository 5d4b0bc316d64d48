"""TLS to clients: the listening context of the settings, and a client's connection with TLS on it.

The ssl module's socket is for one thread at a time, knows no flags, and goes on in plain text after
its `shutdown`; but here a sweeper looks at connections, pings and ends waits. So `TlsLink` stands
between: it never waits within OpenSSL, only for the descriptor, and shuts down below TLS.
"""

from __future__ import annotations

import select
import socket
import ssl
import threading
from contextlib import suppress
from typing import Any, Callable, Optional

from claude_proxy.config import ConfigError
from claude_proxy.pool import ClientCertificate, add_client_certificate
from claude_proxy.settings import Config

RAW_BYTES = 65536
# So much of what a client has still sent is read before the end, or the end would be a reset.
LAST_READS = 16
# An end of input is an end, as without TLS: HTTP itself knows whether a request was whole, and its
# sender is still to be answered. (OpenSSL 1.1 needs no word for it; Python 3.9 may have none.)
IGNORE_EOF = getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)


def listening_context(config: Config) -> Optional[ssl.SSLContext]:
    """The context of the settings, None without a certificate. Reads files; ConfigError names the
    setting that is wrong."""
    if not config.tls_cert_file:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | IGNORE_EOF
    context.set_alpn_protocols(["http/1.1"])
    files = (config.tls_cert_file, config.tls_key_file, config.tls_key_passphrase)
    add_client_certificate(context, ClientCertificate(*files, "TLS"))
    if config.tls_client_ca_file:
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(config.tls_client_ca_file)
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", "") or getattr(error, "strerror", "") or "not usable"
            problem = f"TLS_CLIENT_CA_FILE: cannot be used as certificates: {reason}"
            raise ConfigError([problem]) from None
    return context


def wait_for(sock: socket.socket, writing: bool) -> None:
    """Until there is something to read, or room to write; or until it is shut down."""
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(sock, select.POLLOUT if writing else select.POLLIN)
        poll.poll()
    else:
        lists = ([], [sock]) if writing else ([sock], [])
        select.select(*lists, [])


class TlsLink:
    """A client's connection with TLS: what `Wire` and the sweeper need of a socket.

    The thread that owns the connection reads, writes and closes; the sweeper may send a ping, peek,
    and shut down.
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        """Takes the socket over; nothing is said yet. OSError if it is gone."""
        sock.settimeout(0)
        self._tls = context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        self._lock = threading.Lock()
        self._ending = False
        self.ready = False

    def handshake(self) -> None:
        self._run(self._tls.do_handshake)
        self.ready = True

    def _run(self, step: Callable[..., Any], *arguments: Any) -> Any:
        """Do a step of TLS, with as much waiting as it takes; none of it under the lock."""
        while True:
            try:
                with self._lock:
                    return step(*arguments)
            except (ssl.SSLWantReadError, BlockingIOError):
                writing = False
            except ssl.SSLWantWriteError:
                writing = True
            wait_for(self._tls, writing)

    # --- as a socket and as a file --------------------------------------------------------------

    def fileno(self) -> int:
        return self._tls.fileno()

    def recv(self, size: int, flags: int = 0) -> bytes:
        """The next piece. With flags, or once the end has begun, of what is below TLS."""
        if flags:
            return socket.socket.recv(self._tls, size, flags)
        if self._ending:
            return self._run(socket.socket.recv, self._tls, size)
        return self._run(self._tls.recv, size)

    def send(self, data: bytes, flags: int = 0) -> int:
        """Send at once: all of it, or nothing and 0 if there is no room."""
        with self._lock:
            if self._ending:
                raise BrokenPipeError("TLS has ended")
            try:
                return self._tls.send(data)
            except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
                return 0

    def write(self, data: bytes) -> int:
        sent = 0
        with memoryview(data) as view:
            while sent < len(view):
                sent += self._run(self._tls.send, view[sent:])
        return sent

    def flush(self) -> None:
        pass

    def shutdown(self, how: int) -> None:
        """Shut the connection down; TLS is ended in its own way where only writing ends."""
        if how == socket.SHUT_WR:
            self._say_end()
        socket.socket.shutdown(self._tls, how)

    def _say_end(self) -> None:
        """Send close_notify, once. The client's own is not waited for."""
        with self._lock:
            begun, self._ending = self._ending, True
            if not begun:
                with suppress(OSError, ValueError):
                    self._tls.unwrap()

    def close(self) -> None:
        """End the connection without a reset, so that the client reads what was said last."""
        with suppress(OSError):
            self.shutdown(socket.SHUT_WR)
            for _ in range(LAST_READS):
                if not socket.socket.recv(self._tls, RAW_BYTES):
                    break
        self._tls.close()
