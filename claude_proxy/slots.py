"""A cap on calls at a time, with a fair queue: users take turns, and each user's calls their order.

One user with twenty subagents does not keep another waiting for more than one call. Whoever waits
can be cancelled; a slot that was on its way to somebody who left goes to the next.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Deque, Hashable

from claude_proxy.exchange import Exchange


class FairSlots:
    """So many slots; `hold` waits for one and gives it back."""

    def __init__(self, slots: int) -> None:
        self._free = slots
        self._queues: OrderedDict[Hashable, Deque[threading.Event]] = OrderedDict()
        self._lock = threading.Lock()

    def waiting(self) -> int:
        with self._lock:
            return sum(map(len, self._queues.values()))

    @contextmanager
    def hold(self, exchange: Exchange, user: Hashable) -> Iterator[None]:
        """Hold a slot for `user`; raises the exchange's reason if it is cancelled meanwhile."""
        turn = self._enter(user)
        # Cancelling sets the same event that a free slot does: afterwards it is asked which it was.
        exchange.on_cancel(turn.set)
        turn.wait()
        exchange.off_cancel(turn.set)
        try:
            exchange.raise_if_cancelled()
            yield
        finally:
            self._leave(user, turn)

    def _enter(self, user: Hashable) -> threading.Event:
        turn = threading.Event()
        with self._lock:
            if self._free:
                self._free -= 1
                turn.set()
            else:
                self._queues.setdefault(user, deque()).append(turn)
        return turn

    def _leave(self, user: Hashable, turn: threading.Event) -> None:
        """Give up the turn, or the place in the queue."""
        with self._lock:
            queue = self._queues.get(user, ())
            if turn in queue:
                queue.remove(turn)
                self._drop_if_empty(user)
            elif self._queues:
                following, queue = self._queues.popitem(last=False)
                queue.popleft().set()
                if queue:
                    self._queues[following] = queue  # behind the others
            else:
                self._free += 1

    def _drop_if_empty(self, user: Hashable) -> None:
        if not self._queues[user]:
            del self._queues[user]
