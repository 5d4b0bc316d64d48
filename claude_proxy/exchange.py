"""One client request and all that became of it: what was asked, what came, how to stop it.

The thread that answers the request owns its exchange and everything it reads from. Other threads
may do one thing only: `cancel`. That runs the registered callbacks, which shut down the upstream's
socket or end a sleep, so that the owner wakes up and finds the reason. A wait is bounded by `arm`:
the sweeper cancels an exchange whose deadline has passed, so no socket needs a timeout of its own.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any, Callable, Dict, FrozenSet, List, NamedTuple, Optional, Tuple

from claude_proxy.errors import CLIENT_GONE_STATUS, ProxyError
from claude_proxy.events import Event
from claude_proxy.names import UNTOLD, plain_word

NEVER = float("inf")
NO_STATUSES: FrozenSet[int] = frozenset()
USUAL_STOPS = ("end_turn", "tool_use", "max_tokens")
# Where an event may tell of its usage or of the end.
USAGE_PLACES = frozenset(("usage", "message", "delta"))
DIGITS_MADE_AT_ONCE = 64
# Threads may take from it and add to it at any time.
random_stock: List[str] = []


def random_digits() -> str:
    """48 hexadecimal digits that nobody has had. The system is asked for many at a time: each time
    is a system call, at which another thread may go on."""
    try:
        return random_stock.pop()
    except IndexError:
        made = secrets.token_hex(24 * DIGITS_MADE_AT_ONCE)
        digits, *more = (made[place : place + 48] for place in range(0, len(made), 48))
        random_stock.extend(more)
        return digits


class AnswerForm(NamedTuple):
    """How the answer to one request looks on the wire, so that it can begin before it is known.

    `opening` is the first piece of the body; the server sends it once, early if the upstream is
    silent for `patience` seconds. `ping` goes out after every further `interval` of silence,
    `nudge` instead of it in a long one: Claude Code drops a stream that brings nothing but pings
    for 300 s. `error` is the body's last piece when the status line is gone already.
    """

    headers: Tuple[Tuple[str, str], ...]
    patience: float
    interval: float
    opening: Callable[[], bytes]
    ping: bytes
    nudge: Callable[[], bytes]
    error: Callable[[ProxyError], bytes]


class Exchange:
    """One request in the works. Times are seconds of `clock`, a monotonic one."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, total_timeout: float = 0
    ) -> None:
        digits = random_digits()
        # Like those of the API: prefix, underscore, 24 hexadecimal digits.
        self.id = f"req_{digits[:24]}"
        self.message_id = f"msg_{digits[24:]}"
        self.clock = clock
        self.started = clock()
        self.deadline = NEVER
        self.cancelled: Optional[ProxyError] = None
        self.form: Optional[AnswerForm] = None
        self.model = ""
        self.keys: Tuple[str, ...] = ()  # the credentials that the client showed
        self.headers: Dict[str, str] = {}  # of the client's request
        self.endpoint = ""  # the path of the table that answers it
        self.answer_headers: List[Tuple[str, str]] = []  # on whatever is answered, errors too
        self.move_at = NEVER  # when another route is tried if nothing of an answer has come
        self.not_repeated = NO_STATUSES  # those that another key may not get
        self.forward: Dict[str, Any] = {}  # what a log has to know of the request to an upstream
        self.failures: List[Dict[str, Any]] = []  # of requests to upstreams, a log line each
        self.bytes_out = 0  # of the body, as it was given to the connection
        self.first_event: Optional[float] = None
        self.clean: Callable[[bytes], bytes] = bytes  # takes secrets out of what is passed on
        self.open_block: Tuple[int, str] = (-1, "")
        self.usage: Dict[str, Any] = {}
        self.facts: Dict[str, Any] = {}
        self.notes: List[str] = []  # what was dropped or changed for the upstream
        self.wants_notes = False
        # Called by its own thread before it waits for anything: what is made has to leave first.
        self.before_wait: Callable[[], Any] = bool
        self._total_deadline = self.started + total_timeout if total_timeout else NEVER
        self._waiting_for = ""
        self._callbacks: List[Callable[[], None]] = []
        self._lock = threading.Lock()

    # --- waiting, and being stopped ---------------------------------------------------------

    def arm(self, seconds: float, waiting_for: str) -> None:
        """Allow `seconds` from now for what comes next; 0 means no limit."""
        self.before_wait()
        self._waiting_for = waiting_for
        end = self.clock() + seconds if seconds else NEVER
        self.deadline = end if self.first_event is not None or end < self.move_at else self.move_at

    def disarm(self) -> None:
        self.deadline = NEVER

    def overdue(self, now: float) -> Optional[ProxyError]:
        """The error to cancel with, if a deadline has passed."""
        if now > self.deadline:
            return ProxyError(504, f"timed out waiting for {self._waiting_for}")
        if now > self._total_deadline:
            return ProxyError(504, "the answer took longer than TOTAL_TIMEOUT allows")
        return None

    def cancellable(self) -> bool:
        """Whether it waits for something that `cancel` can end."""
        return bool(self._callbacks)

    def cancel(self, reason: ProxyError) -> None:
        """Stop the exchange, from any thread; the first reason stays."""
        with self._lock:
            if self.cancelled is None:
                self.cancelled = reason
            for callback in self._callbacks:
                callback()

    def on_cancel(self, callback: Callable[[], None]) -> None:
        """Register what ends the wait that begins now; it runs at once if it is too late.

        Callbacks run under the lock: once `off_cancel` has returned, a socket may be used by
        another exchange, and no callback of this one is still on its way to it. So they must be
        quick and may not call the exchange.
        """
        self.before_wait()
        with self._lock:
            self._callbacks.append(callback)
            if self.cancelled is not None:
                callback()

    def renew(self) -> bool:
        """Go on after a wait that was too long, if nothing else has ended the exchange."""
        with self._lock:
            ended = self.cancelled is not None and self.cancelled.status != 504
            if ended or self.clock() > self._total_deadline:
                return False
            self.cancelled, self.deadline = None, NEVER
        return True

    def off_cancel(self, callback: Callable[[], None]) -> None:
        with self._lock:
            if callback in self._callbacks:
                self._callbacks.remove(callback)

    def raise_if_cancelled(self) -> None:
        if self.cancelled is not None:
            raise self.cancelled

    def sleep(self, seconds: float) -> None:
        """Wait, unless the exchange is cancelled: then raise its reason at once."""
        wake = threading.Event()
        self.on_cancel(wake.set)
        try:
            wake.wait(seconds)
        finally:
            self.off_cancel(wake.set)
        self.raise_if_cancelled()

    def let_go(self) -> None:
        """When all is over: of functions that hold the exchange, which would be rings."""
        self.form, self.before_wait, self.clean = None, bool, bytes

    def credentials(self) -> Tuple[str, ...]:
        """What the client has shown, of whatever scheme."""
        value = self.headers.get("authorization", "")
        return (*self.keys, value, value.partition(" ")[2].strip())

    # --- what came ----------------------------------------------------------------------------

    def observe(self, events: Iterable[Event]) -> Iterator[Event]:
        """Pass events on and remember what logs and pings need.

        The block that is open is noted after its event has been passed on: a consumer asks for the
        next event when it has sent, or holds, the last, and while it holds one no other thread
        writes. So a ping never runs ahead.
        """
        for event in events:
            kind = event["type"]
            if kind == "content_block_delta":
                yield event
                continue
            if self.first_event is None:
                self.first_event = self.clock()
            if not USAGE_PLACES.isdisjoint(event):
                self.note_usage(event)
            yield event
            if kind == "content_block_start":
                self.open_block = (event["index"], event["content_block"].get("type", ""))
            elif kind == "content_block_stop":
                self.open_block = (-1, "")

    def note_usage(self, event: Event) -> None:
        message, delta = event.get("message"), event.get("delta")
        usage = event.get("usage") or (message.get("usage") if isinstance(message, dict) else None)
        if isinstance(usage, dict):
            self.usage.update({key: n for key, n in usage.items() if type(n) is int})
        stop_reason = delta.get("stop_reason") if isinstance(delta, dict) else None
        if stop_reason:
            usual = stop_reason in USUAL_STOPS
            self.facts["stop_reason"] = stop_reason if usual else plain_word(stop_reason) or UNTOLD


def client_gone() -> ProxyError:
    """The reason of an exchange whose client has closed its connection."""
    return ProxyError(CLIENT_GONE_STATUS, "the client closed its connection", "client_gone")
