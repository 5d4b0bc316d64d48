"""Failures that could not be told by status, because the answer had already begun.

Claude Code (2.1.197) repeats a stream that failed late, once, without `stream`. Where a call takes
minutes and has been tried three times already, the repeat is answered with the failure itself.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Callable, Optional, Tuple

from claude_proxy.errors import ProxyError

MOST_LATE_FAILURES = 256
LATE_SECONDS = 60.0


class LateFailures:
    """What the repeats of failed streams are told; each once, and not for long."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._failures: OrderedDict[bytes, Tuple[float, ProxyError]] = OrderedDict()
        self._lock = threading.Lock()

    def remember(self, key: bytes, error: ProxyError) -> None:
        with self._lock:
            self._failures[key] = (self._clock() + LATE_SECONDS, error)
            while len(self._failures) > MOST_LATE_FAILURES:
                self._failures.popitem(last=False)

    def take(self, key: bytes) -> Optional[ProxyError]:
        """The failure that the same request has just had, the first time it is asked for."""
        with self._lock:
            until, error = self._failures.pop(key, (0.0, None))
        return error if self._clock() < until else None
