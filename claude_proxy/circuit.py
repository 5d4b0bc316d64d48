"""Whether an upstream is down: after some failures in a row it is left alone for a while.

    closed --failures in a row--> open --its time is over--> half-open: one request goes
       ^                            ^                            |
       |                            '--------- it fails ---------|
       '----------------------------------- it is answered ------'

A failure is what says that the upstream itself is down: no connection, no TLS, no byte of an answer
in time, a gateway's page where an answer should be. An API that refuses, or asks for patience, is
up; a client that goes away says nothing. An answer that has begun is a success. It costs a request
a look at a flag; the clock is given, and nothing waits here.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping
from typing import Any, Callable, Dict, List, Optional, Protocol, TypeVar

from claude_proxy.errors import ProxyError
from claude_proxy.exchange import Exchange
from claude_proxy.log import Log
from claude_proxy.pool import ConnectError, Target, split_url
from claude_proxy.settings import Config

DOWN_STATUSES = frozenset((502, 503, 520, 521, 522, 523, 525, 526, 530))
# That a gateway has waited too long.
LATE_STATUSES = frozenset((504, 524))
# How an exchange's own deadline is told (`Exchange.overdue`), other than that of TOTAL_TIMEOUT,
# which an upstream may not have had for itself.
WAITED_IN_VAIN = "timed out waiting for "

CIRCUIT_CLOSED, CIRCUIT_OPEN, CIRCUIT_HALF_OPEN = "closed", "open", "half_open"


class BegunAnswer(Protocol):
    """What is looked at of an answer."""

    status: int
    headers: Dict[str, str]


AnswerKind = TypeVar("AnswerKind", bound=BegunAnswer)
# The event's name, and its facts.
TellCircuit = Callable[..., Any]


class Circuit:
    """Counts the failures of one upstream. Safe to call from any thread.

    A request belongs to the era that it began in. One that fails in a later era says nothing of
    that: it began before the upstream was given up, or before it was found to be back. One that is
    answered tells of now, whenever it began.
    """

    def __init__(
        self,
        name: str,
        most: int,
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
        tell: Optional[TellCircuit] = None,
    ) -> None:
        self._name = name
        self._most, self._seconds = most, seconds
        self._clock, self._tell = clock, tell
        self._open = False
        self._era = 0  # another one with each opening, probe and closing
        self._failures = 0  # in a row
        self._why = ""  # the last of them
        self._opened = 0.0
        self._next = 0.0  # when the next probe may go, while it is open
        self._probe: Optional[float] = None  # since when one is under way
        self._lock = threading.Lock()

    def guard(self, exchange: Exchange, slow: bool, send: Callable[[], AnswerKind]) -> AnswerKind:
        """What `send` gives, or ProxyError(529) if nothing is sent now.

        An upstream that is `slow`, for it tells an answer when it has all of it, is not down
        because it has not answered in time.
        """
        turn = self.enter()
        failure: Optional[str] = None
        try:
            answer = send()
            failure = answer_failure(answer.status, answer.headers, slow)
            return answer
        except ProxyError as error:
            failure = raised_failure(error, exchange.cancelled, slow)
            raise
        finally:
            self.leave(turn, failure)

    def enter(self) -> int:
        """A request's era, for `leave`; ProxyError(529) if none may go now."""
        era = self._era  # first of all: if it opens now, the request began before that
        if not self._open:
            return era
        with self._lock:
            now = self._clock()
            if self._open and now < self._next:
                raise self._refusal(now)
            if self._open:
                # Another may go before this one has an outcome: an answer can take minutes.
                self._era += 1
                self._probe, self._next = now, now + self._seconds
            return self._era

    def leave(self, era: int, failure: Optional[str]) -> None:
        """A request's outcome: why it failed, "" if it was answered, None if that says nothing."""
        if failure == "" and not self._open and not self._failures:
            return
        event = ""
        with self._lock:
            now = self._clock()
            down = now - self._opened
            if failure == "":
                event = self._answered()
            elif era == self._era and failure is None:
                self._probe, self._next = None, now
            elif era == self._era and failure is not None:
                event = self._failed(failure, now)
            facts = {"failures": self._failures, "error": self._why, "seconds": self._seconds}
        if event and self._tell is not None:
            facts = facts if event == "circuit_opened" else {"seconds": round(down, 1)}
            self._tell(event, upstream=self._name, **facts)

    def _answered(self) -> str:
        was_open, self._open = self._open, False
        self._failures, self._probe = 0, None
        self._era += was_open
        return "circuit_closed" if was_open else ""

    def _failed(self, why: str, now: float) -> str:
        self._failures += 1
        self._why = why
        if not self._open and self._failures < self._most:
            return ""
        opened, self._open = not self._open, True
        self._opened = now if opened else self._opened
        self._probe, self._next = None, now + self._seconds
        self._era += 1
        return "circuit_opened" if opened else ""

    def _refusal(self, now: float) -> ProxyError:
        seconds, when = self._next - now, "in {} s"
        if self._probe is not None:
            # The longer the probe takes, the later it is worth asking what came of it.
            seconds, when = min(seconds, now - self._probe + 1), "just now"
        whole = max(1, math.ceil(seconds))
        message = (
            f"the upstream {self._name} is down: it has failed {self._failures} times in a row, the"
            f" last time with: {self._why}; it is tried again {when.format(whole)}"
        )
        return ConnectError(529, message, headers=[("retry-after", str(whole))])

    # --- to be shown ----------------------------------------------------------------------------

    def state(self) -> str:
        """closed; open; or half_open, where a probe is under way or may go."""
        if not self._open:
            return CIRCUIT_CLOSED
        waits = self._probe is None and self._clock() < self._next
        return CIRCUIT_OPEN if waits else CIRCUIT_HALF_OPEN

    def refuses(self) -> bool:
        return self._open and self._clock() < self._next


def answer_failure(status: int, headers: Mapping[str, str], slow: bool) -> str:
    """Why an answer says that the upstream is down, "" if it does not. An API's own error is JSON;
    what a gateway says where there is no upstream is a page, or nothing."""
    down = status in DOWN_STATUSES or status in LATE_STATUSES and not slow
    if not down or "json" in headers.get("content-type", "").lower():
        return ""
    return f"status {status} without an error of its API"


def raised_failure(error: ProxyError, cancelled: Optional[ProxyError], slow: bool) -> Optional[str]:
    """The same where there is no answer; None if somebody else has ended the wait for it."""
    if cancelled is None:
        return error.message
    return error.message if error.message.startswith(WAITED_IN_VAIN) and not slow else None


def upstream_targets(config: Config) -> Dict[str, Target]:
    """Where the upstreams listen that are configured, by name."""
    urls = {
        "openai": config.openai_base_url,
        "redcap": config.redcap_api_url,
        "anthropic": config.anthropic_forward_url,
    }
    return {name: split_url(url)[0] for name, url in urls.items() if url}


def make_circuits(config: Config, log: Log) -> Circuits:
    def tell(event: str, **facts: Any) -> None:
        log.write("warning", event, facts)

    targets = upstream_targets(config)
    return Circuits(targets, config.circuit_failures, config.circuit_open_seconds, tell=tell)


class Circuits:
    """The circuits of all upstreams. Those that listen at one place have one together."""

    def __init__(
        self,
        targets: Mapping[str, Target] = {},
        failures: int = 0,
        seconds: float = 0,
        clock: Callable[[], float] = time.monotonic,
        tell: Optional[TellCircuit] = None,
    ) -> None:
        """`targets` is where each upstream listens, by its name; no failures, no circuits."""
        self._targets = dict(targets) if failures else {}
        named: Dict[Target, List[str]] = {}
        for name, target in self._targets.items():
            named.setdefault(target, []).append(name)
        self._circuits = {
            target: Circuit(" and ".join(names), failures, seconds, clock, tell)
            for target, names in named.items()
        }

    def at(self, target: Target) -> Optional[Circuit]:
        return self._circuits.get(target)

    def states(self) -> Dict[str, str]:
        """Upstream -> closed, open or half_open."""
        return {name: self._circuits[target].state() for name, target in self._targets.items()}

    def all_refuse(self) -> bool:
        """Whether nothing would be sent to any upstream now. Where a probe may go, one has to come:
        so that is no state to be taken out of service in."""
        circuits = self._circuits.values()
        return bool(circuits) and all(circuit.refuses() for circuit in circuits)
