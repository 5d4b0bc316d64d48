"""Serving until a signal says stop: what signals do, and how it ends."""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Callable, Dict, List

from claude_proxy.app import App
from claude_proxy.checks import EXIT_OK
from claude_proxy.errors import ProxyError
from claude_proxy.server import Server
from claude_proxy.settings import Config

# A connection that was waiting to be accepted has its request behind it.
LAST_REQUEST_SECONDS = 0.1
# After so long a thread that computes lets others go on. With 64 streams beside large requests a
# third less latency than with Python's 5 ms, for 2 % more CPU. But each thread that waits for its
# turn wakes up as often, to ask for it: where many answer at a time, it has to be rarer. With 512
# busy streams 20 ms are two thirds less CPU for an event than 0.5 ms.
SWITCH_SECONDS, LONGEST_SWITCH_SECONDS = 0.0005, 0.02
FEW_ANSWERS = 64


def serve_until_stopped(
    server: Server, reload: Callable[[], None], begun: Callable[[], Any] = bool
) -> int:
    """Until SIGTERM or SIGINT; SIGHUP has the settings read anew, where there is such a signal.
    `begun` is called when it listens to connections and to signals.

    Only the main thread runs handlers, and one may interrupt another: so they take no lock, and
    wake it through a socket, as does Python itself for a signal that another thread was given.
    """
    ends: List[int] = []
    hangups: List[int] = []
    woken, waker = socket.socketpair()
    waker.setblocking(False)

    def wake() -> None:
        try:
            waker.send(b"\0")
        except OSError:
            pass  # full: it will wake anyhow

    def on_end(number: int, frame: Any) -> None:
        ends.append(number)
        if len(ends) > 1:
            os._exit(128 + number)
        wake()

    def on_hangup(number: int, frame: Any) -> None:
        hangups.append(number)
        wake()

    handlers: Dict[int, Any] = {signal.SIGTERM: on_end, signal.SIGINT: on_end}
    # A terminal that is closed ends what runs in it, as ever.
    if hasattr(signal, "SIGHUP") and not (sys.stdin and sys.stdin.isatty()):
        handlers[signal.SIGHUP] = on_hangup
    with woken, waker, handling(handlers, waker):
        start_serving(server)
        begun()
        while not ends:
            woken.recv(4096)
            if hangups and not ends:
                hangups.clear()
                reload()
        drain(server, server.app, server.app.config)
    return EXIT_OK


@contextmanager
def handling(handlers: Dict[int, Any], waker: socket.socket) -> Iterator[None]:
    """In here these signals are handled so, and each wakes the other end of the socket."""
    woke = signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    previous: Dict[int, Any] = {
        number: signal.signal(number, handler) for number, handler in handlers.items()
    }
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(woke)


def switch_seconds(answers: int) -> float:
    """How long a thread may compute while so many answers are in the works."""
    many = max(answers / FEW_ANSWERS, 1.0)
    return min(SWITCH_SECONDS * many * many, LONGEST_SWITCH_SECONDS)


def share_interpreter(answers: int) -> None:
    sys.setswitchinterval(switch_seconds(answers))


def start_serving(server: Server) -> None:
    share_interpreter(0)
    server.inflight.crowd = share_interpreter
    server.inflight.start()
    # What is there by now stays: the collector need not look at it again each time.
    gc.freeze()
    gc.enable()
    thread = threading.Thread(target=server.serve_forever, name="accept", daemon=True)
    thread.start()


def drain(server: Server, app: App, config: Config) -> None:
    """Take no more connections, let the answers in flight finish, and cut those that do not."""
    waiting = len(server.inflight.exchanges())
    app.log.info(
        "draining",
        in_flight=waiting,
        seconds=config.drain_timeout,
        hint="a second signal ends at once" if waiting else None,
    )
    server.inflight.draining = True
    if config.drain_delay:
        time.sleep(config.drain_delay)
    server.shutdown()
    server.take_waiting()
    server.server_close()
    # What has been taken just now may not have sent its request yet.
    time.sleep(LAST_REQUEST_SECONDS if server.inflight.connections() else 0)
    if not server.inflight.drain(config.drain_timeout):
        server.inflight.cancel_all(ProxyError(503, "the proxy is shutting down"))
        server.inflight.drain(2.0)
    server.inflight.stop()
    app.transport.close()
    app.audit.end()
    app.telemetry.end()
    app.log.info("stopped")
