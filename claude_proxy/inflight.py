"""Everything that is being answered, and the one thread that looks after it.

A few times a second the sweeper goes through the client connections. It ends those that are past
their deadline (a slow sender, an idle one, a reader that does not read), cancels the exchanges
whose client has gone or whose time is up, and pings the clients that have heard nothing for a
while. It never waits for a lock and never blocks in a send; an error with one connection is logged
and does not touch the others. With no connection open it sleeps.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any, Callable, Dict, List, Optional, Protocol, Set

from claude_proxy.errors import ProxyError
from claude_proxy.exchange import Exchange, client_gone
from claude_proxy.log import Log

SWEEP_SECONDS = 0.25


class Connection(Protocol):
    """What the sweeper needs of a client connection."""

    deadline: float
    idle: bool
    exchange: Optional[Exchange]

    def socket(self) -> socket.socket: ...

    def expire(self) -> None: ...

    def keep_alive(self, now: float) -> None: ...


def hung_up(sockets: Sequence[socket.socket]) -> List[socket.socket]:
    """Those of the sockets whose other side has closed, without waiting or reading."""
    by_number = {s.fileno(): s for s in sockets if s.fileno() >= 0}
    if not by_number:
        return []
    if not hasattr(select, "poll"):
        readable = select.select(list(by_number), [], [], 0)[0]
        return [by_number[number] for number in readable if at_end(by_number[number])]
    poll = select.poll()
    # Without POLLRDHUP (macOS) an end of input shows as readable: then a look at the next byte.
    mask = getattr(select, "POLLRDHUP", select.POLLIN)
    for number in by_number:
        poll.register(number, mask)
    return [
        by_number[number]
        for number, flags in poll.poll(0)
        if flags & ~select.POLLIN or at_end(by_number[number])
    ]


def nothing_came(sock: Any) -> bool:
    """Whether there is nothing to read, not even an end."""
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        return not poll.poll(0)
    return not select.select([sock], [], [], 0)[0]


def at_end(sock: socket.socket) -> bool:
    try:
        return sock.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


class Inflight:
    """The table of client connections and of the exchanges on them."""

    def __init__(
        self,
        log: Log,
        interval: float = SWEEP_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.draining = False
        # Told in each sweep how many exchanges there are.
        self.crowd: Callable[[int], Any] = bool
        self._log = log
        self._interval = interval
        self._clock = clock
        self._connections: Set[Any] = set()
        self._changed = threading.Condition()
        self._stopped = False
        self._asleep = False
        self._thread: Optional[threading.Thread] = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="sweeper", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        if self._thread:
            self._thread.join()

    def add(self, connection: Connection) -> None:
        with self._changed:
            self._connections.add(connection)
            if self._asleep:
                self._changed.notify_all()

    def remove(self, connection: Connection) -> None:
        with self._changed:
            self._connections.discard(connection)

    def connections(self) -> int:
        return len(self._connections)

    def admit(self, connection: Connection, most: int) -> bool:
        """Add a connection, beyond so many in the place of an idle one; False if none is idle."""
        with self._changed:
            room = len(self._connections) < most or self.make_room()
            self.add(connection)
        return room

    def make_room(self) -> bool:
        """End the idle connection whose time is up first; False if each has a request begun."""
        with self._changed:
            idle = [connection for connection in self._connections if connection.idle]
            idle.sort(key=lambda connection: connection.deadline)
            chosen = next((c for c in idle if nothing_came(c.socket())), None)
            if chosen is not None:
                chosen.expire()
                self._connections.discard(chosen)  # it leaves at once: its place is free now
        return chosen is not None

    def exchanges(self) -> List[Exchange]:
        """The exchanges that are being answered now."""
        with self._changed:
            current = [connection.exchange for connection in self._connections]
        return [exchange for exchange in current if exchange is not None]

    def drain(self, seconds: float) -> bool:
        """Wait until nothing is being answered; end the idle connections. False if time ran out."""
        self.draining = True
        end = self._clock() + seconds
        while self._clock() < end:
            if not self.exchanges():
                return True
            time.sleep(min(self._interval, 0.05))
        return not self.exchanges()

    def cancel_all(self, reason: ProxyError) -> None:
        for exchange in self.exchanges():
            exchange.cancel(reason)

    # --- the sweeper ----------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._connections and not self._stopped:
                    self._asleep = True
                    self._changed.wait()
                self._asleep = False
                if not self._stopped:
                    self._changed.wait(self._interval)
                if self._stopped:
                    return
                connections = list(self._connections)
            self.sweep(connections, self._clock())

    def sweep(self, connections: Sequence[Connection], now: float) -> None:
        """Look after each connection once."""
        waiting: Dict[socket.socket, Exchange] = {}
        self.crowd(sum(connection.exchange is not None for connection in connections))
        for connection in connections:
            try:
                self._tend(connection, now)
                exchange = connection.exchange
                if exchange is not None and exchange.cancellable():
                    waiting[connection.socket()] = exchange
            except Exception as error:  # one connection's trouble is not the others'
                self._log.error("sweep_failed", error=type(error).__name__)
        for sock in hung_up(list(waiting)):
            waiting[sock].cancel(client_gone())

    def _tend(self, connection: Connection, now: float) -> None:
        if now > connection.deadline:
            connection.expire()
        exchange = connection.exchange
        if exchange is None:
            return
        timeout = exchange.overdue(now)
        if timeout is not None:
            exchange.cancel(timeout)
        else:
            connection.keep_alive(now)
