"""Listens, and serves each connection in a thread of its own: one request after the other."""

from __future__ import annotations

import errno
import select
import socket
import socketserver
import threading
import time
from http.server import ThreadingHTTPServer
from typing import Any, Optional

from claude_proxy.app import App
from claude_proxy.auth import OPEN_PATHS
from claude_proxy.crashes import place_of
from claude_proxy.errors import CLIENT_GONE_STATUS, ProxyError
from claude_proxy.exchange import NEVER, Exchange, client_gone
from claude_proxy.http1 import HttpRequest, bad_request, request_body
from claude_proxy.inflight import Inflight
from claude_proxy.listen_tls import TlsLink
from claude_proxy.pool import connect_reason
from claude_proxy.wire import Reply, Wire

# Beyond MAX_CONNECTIONS a few more are let in, to be told 503 or to ask for /health.
SPARE_CONNECTIONS = 64
LISTEN_BACKLOG = 1024
OVERLOAD_RETRY_SECONDS = 5


class Handler(socketserver.StreamRequestHandler):
    """Serves the requests of one connection, one after the other."""

    wbufsize = 0
    disable_nagle_algorithm = True
    server: Server

    def handle(self) -> None:
        config, tls = self.server.app.config, self.server.app.tls
        self.peer = str(self.client_address[0])
        try:
            link: Any = TlsLink(self.connection, tls) if tls else None
        except OSError:
            return  # the client has gone already
        self.wire = Wire(link or self.connection, link or self.wfile, config.write_timeout)
        self.overload = not self.server.inflight.admit(self.wire, config.max_connections)
        try:
            while (link is None or link.ready or self.begin_tls(link)) and self.serve():
                pass
        finally:
            self.server.inflight.remove(self.wire)
            if link is not None:
                link.close()

    def begin_tls(self, link: TlsLink) -> bool:
        """Shake hands within the time that a head has; whether that went well."""
        self.wire.deadline = self.wire.clock() + self.server.app.config.header_timeout
        try:
            link.handshake()
        except OSError as error:
            facts = {"client": self.peer, "reason": connect_reason(error)}
            self.server.app.log.debug("tls_not_begun", **facts)
            self.wire.linger()
        self.wire.deadline = NEVER
        return link.ready

    def serve(self) -> bool:
        """Answer one request; whether there may be another."""
        app, config = self.server.app, self.server.app.config
        request: Optional[HttpRequest] = None
        try:
            request = self.wire.read_head(config.idle_timeout, config.header_timeout, self.peer)
        except ProxyError as error:
            self.answer(app, None, error)
            return False
        return request is not None and self.answer(app, request, None)

    def answer(self, app: App, request: Optional[HttpRequest], error: Optional[ProxyError]) -> bool:
        """Answer a request, or a head that was none; whether the connection stays."""
        exchange = Exchange(total_timeout=app.config.total_timeout)
        reply = Reply(self.wire, exchange, request)
        reply.close = reply.close or self.server.inflight.draining
        self.wire.exchange, self.wire.reply = exchange, reply
        try:
            whole = self.respond(app, request, exchange, reply, error)
        finally:
            self.wire.reply = None
            status = CLIENT_GONE_STATUS if is_client_gone(exchange) else reply.status
            app.finish(exchange, request, status)
            self.wire.exchange = None  # only now: a drain waits for the observers too
            exchange.let_go()
        if not whole:
            self.wire.linger()
        return whole and not reply.close and not self.server.inflight.draining

    def respond(
        self,
        app: App,
        request: Optional[HttpRequest],
        exchange: Exchange,
        reply: Reply,
        error: Optional[ProxyError],
    ) -> bool:
        """Send the answer or the error; whether the request had been read to its end."""
        whole = False
        try:
            if error is not None or request is None:
                raise error or bad_request("no request")
            # The framing comes first: where it is ambiguous, nothing else can be trusted.
            framing, config = request_body(request), app.config
            self.check_load(request)
            app.check(request, exchange)
            body = self.wire.read_body(request, framing, config.max_body_bytes, config.read_timeout)
            whole = True
            reply.send(app.answer(request.with_body(body), exchange))
        except ProxyError as failure:
            self.tell(reply, exchange, failure, whole)
            # What the error passed through holds the request, and often the error: a ring.
            failure.__traceback__ = failure.__context__ = None
        except OSError:
            exchange.cancel(client_gone())
        except Exception as failure:  # a defect of ours: the client is told, without details
            app.log.error(
                "defect", id=exchange.id, error=type(failure).__name__, at=place_of(failure)
            )
            self.tell(reply, exchange, ProxyError(500, "the proxy failed; its log has more"), whole)
        return whole and not is_client_gone(exchange)

    def tell(self, reply: Reply, exchange: Exchange, error: ProxyError, whole: bool) -> None:
        error.message = self.server.app.log.redact(error.message, exchange.credentials())
        exchange.facts["error"] = error.logged
        exchange.facts["upstream_status"] = error.upstream_status
        reply.close = reply.close or not whole
        if is_client_gone(exchange):
            return
        try:
            reply.fail(error)
        except OSError:
            exchange.cancel(client_gone())

    def check_load(self, request: HttpRequest) -> None:
        if self.overload and request.path not in OPEN_PATHS:
            retry = [("retry-after", str(OVERLOAD_RETRY_SECONDS))]
            raise ProxyError(503, "too many connections (MAX_CONNECTIONS)", headers=retry)


def is_client_gone(exchange: Exchange) -> bool:
    return exchange.cancelled is not None and exchange.cancelled.status == CLIENT_GONE_STATUS


class Server(ThreadingHTTPServer):
    """Listens. Threads are daemons: the drain decides how long they are waited for."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = LISTEN_BACKLOG

    def __init__(self, app: App, inflight: Inflight) -> None:
        self.app = app
        self.inflight = inflight
        self._quiet_until = 0.0
        address = app.config.listen_host, app.config.listen_port
        if ":" in app.config.listen_host:
            self.address_family = socket.AF_INET6
        self._woken, self._waker = socket.socketpair()
        self._stopping = False
        self._served = threading.Event()
        self._served.set()
        try:
            super().__init__(address, Handler)
        except BaseException:
            self.close_wakers()
            raise

    def serve_forever(self, poll_interval: float = 0) -> None:
        """Accept connections until `shutdown`. Never wakes up for anything else: the library's own
        looks several times a second whether it is to stop."""
        self._served.clear()
        try:
            while not self._stopping:
                ready = select.select([self.socket, self._woken], [], [])[0]
                if self.socket in ready and not self._stopping:
                    self._handle_request_noblock()
        finally:
            self._served.set()

    def shutdown(self) -> None:
        """End `serve_forever`, and wait until it has; the listener stays open."""
        self._stopping = True
        self._waker.send(b"\0")
        self._served.wait()

    def server_close(self) -> None:
        super().server_close()
        self.close_wakers()

    def close_wakers(self) -> None:
        self._woken.close()
        self._waker.close()

    def get_request(self) -> Any:
        try:
            return super().get_request()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self.say_no_files_left()
            raise

    def take_waiting(self) -> None:
        """Serve the connections that wait to be accepted: closing the listener would reset them."""
        while select.select([self.socket], [], [], 0)[0]:
            self._handle_request_noblock()

    def say_no_files_left(self) -> None:
        """Once in a while, and without spinning: the connection still waits to be accepted."""
        now = time.monotonic()
        if now > self._quiet_until:
            self._quiet_until = now + 60
            self.app.log.error("no_files_left", meaning="lower MAX_CONNECTIONS or raise ulimit -n")
        time.sleep(0.1)

    def server_bind(self) -> None:
        if self.app.config.listen_reuse_port:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        # HTTPServer's own asks DNS for the host's name, which can hang for seconds.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]

    def verify_request(self, request: Any, client_address: Any) -> bool:
        most = self.app.config.max_connections + SPARE_CONNECTIONS
        return self.inflight.connections() < most or self.inflight.make_room()

    def handle_error(self, request: Any, client_address: Any) -> None:
        self.app.log.error("connection_failed")

    @property
    def port(self) -> int:
        return self.server_address[1]
