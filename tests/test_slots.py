"""The cap on calls, and whose turn it is."""

from __future__ import annotations

import threading

import pytest

from claude_proxy.errors import ProxyError
from claude_proxy.exchange import Exchange, client_gone
from claude_proxy.slots import FairSlots
from tests.support import wait_until


class Caller:
    """Holds a slot in a thread of its own until it is let go."""

    def __init__(self, slots, user, order):
        self.exchange, self.done = Exchange(), threading.Event()
        self.error = None
        self._args = slots, user, order
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        slots, user, order = self._args
        try:
            with slots.hold(self.exchange, user):
                order.append((user, self))
                self.done.wait(5)
        except ProxyError as error:
            self.error = error


@pytest.mark.parametrize("users,served", [
    ("haab", "haba"),  # a has two waiting, b comes in between
    ("haaabbc", "habcaba"),
    ("habc", "habc"),
])
def test_users_take_turns_and_keep_their_own_order(users, served):
    slots, order = FairSlots(1), []
    wait_until(lambda: slots.waiting() == 0)
    first = Caller(slots, users[0], order)
    wait_until(lambda: order)
    rest = []
    for count, user in enumerate(users[1:], 1):
        rest.append(Caller(slots, user, order))
        wait_until(lambda count=count: slots.waiting() == count)
    for count in range(1, len(users) + 1):
        wait_until(lambda count=count: len(order) == count)
        order[-1][1].done.set()
    for caller in [first, *rest]:
        caller.thread.join(5)
    assert "".join(user for user, _ in order) == served
    own = [caller for user, caller in order if user == "a"]
    assert own == [caller for caller in rest if caller in own]


def test_so_many_at_a_time_and_all_come_back():
    slots, order = FairSlots(3), []
    callers = [Caller(slots, n % 2, order) for n in range(10)]
    wait_until(lambda: len(order) == 3 and slots.waiting() == 7)
    for caller in callers:
        caller.done.set()
    for caller in callers:
        caller.thread.join(5)
    assert len(order) == 10 and slots.waiting() == 0
    with slots.hold(Exchange(), "x"), slots.hold(Exchange(), "x"), slots.hold(Exchange(), "x"):
        assert slots.waiting() == 0


def test_who_is_cancelled_leaves_the_queue_and_the_next_one_comes():
    slots, order = FairSlots(1), []
    first = Caller(slots, "a", order)
    wait_until(lambda: order)
    gone, last = Caller(slots, "b", order), Caller(slots, "c", order)
    wait_until(lambda: slots.waiting() == 2)
    gone.exchange.cancel(client_gone())
    gone.thread.join(5)
    assert gone.error.status == 499 and slots.waiting() == 1
    first.done.set()
    wait_until(lambda: len(order) == 2)
    last.done.set()
    last.thread.join(5)
    assert [user for user, _ in order] == ["a", "c"]


def test_a_cancelled_one_takes_no_free_slot():
    slots, exchange = FairSlots(1), Exchange()
    exchange.cancel(client_gone())
    with pytest.raises(ProxyError), slots.hold(exchange, "a"):
        raise AssertionError("it was let in")
    with slots.hold(Exchange(), "b"):
        pass
