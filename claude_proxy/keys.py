"""Several keys for one upstream: each in turn, and none that has just been refused for its rate."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Sequence
from typing import Callable, Dict, List, Optional, Tuple

from claude_proxy.errors import ProxyError, retry_after_seconds
from claude_proxy.exchange import Exchange
from claude_proxy.transport import UpstreamResponse

COOLING_STATUSES = frozenset((429, 529))
# However long an upstream says: it may have meant milliseconds, or have changed its mind.
LONGEST_REST = 3600.0


class KeyRing:
    """Hands out the keys in turn. A single key is never put aside: there is no other to take."""

    def __init__(
        self, keys: Sequence[str], clock: Callable[[], float], seconds: float = 60.0
    ) -> None:
        self._keys = tuple(dict.fromkeys(keys))
        self._clock = clock
        self._seconds = seconds
        self._next = 0
        self._cool_until: Dict[str, float] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._keys)

    def take(self, passed_over: Collection[str] = ()) -> Optional[str]:
        """The next key that may be used; None if there is none, or all of them are cooling."""
        if len(self._keys) == 1:
            return None if self._keys[0] in passed_over else self._keys[0]
        with self._lock:
            now = self._clock()
            for step in range(len(self._keys)):
                index = (self._next + step) % len(self._keys)
                key = self._keys[index]
                if self._cool_until.get(key, 0.0) <= now and key not in passed_over:
                    self._next = index + 1
                    return key
        return None

    def cool(self, key: str, seconds: Optional[float] = None) -> None:
        """Put a key aside, for as long as its upstream says or else for the usual time."""
        if len(self._keys) > 1:
            with self._lock:
                wait = self._seconds if seconds is None else seconds
                self._cool_until[key] = self._clock() + min(wait, LONGEST_REST)

    def seconds_left(self) -> int:
        """Until the first key may be used again, at least 1."""
        with self._lock:
            ends = [self._cool_until.get(key, 0.0) for key in self._keys]
        return max(1, int(min(ends, default=0.0) - self._clock() + 0.999))

    def number(self, key: str) -> str:
        """Which key it is, for logs: its place among them."""
        return f"{self._keys.index(key) + 1}/{len(self._keys)}" if key in self._keys else "none"


def ask_with_keys(
    ring: KeyRing, send: Callable[[str], UpstreamResponse], exchange: Exchange
) -> UpstreamResponse:
    """Ask with one key after the other while they are refused for their rate; none twice.

    The last refusal comes back as it is. ProxyError(429) if all keys are resting. Where there is
    another key, to repeat such a request with the same one would be a waste.
    """
    refused: Optional[UpstreamResponse] = None
    asked: List[str] = []
    exchange.not_repeated = COOLING_STATUSES if len(ring) > 1 else frozenset()
    while True:
        key = ring.take(asked)
        if key is None:
            break
        if refused is not None:
            refused.close()
        asked.append(key)
        exchange.facts["key"] = ring.number(key)
        refused = send(key)
        if refused.status not in COOLING_STATUSES:
            return refused
        ring.cool(key, retry_after_seconds(refused.headers, time.time()))
    if refused is not None:
        return refused
    wait = [("retry-after", str(ring.seconds_left()))]
    raise ProxyError(429, "every key for this upstream is resting", headers=wait)


def parse_keys(text: str) -> Tuple[str, ...]:
    return tuple(key.strip() for key in text.split(",") if key.strip())
