"""Several keys for one upstream: turns, rests, and what a client is told when all of them rest."""

from __future__ import annotations

import threading
from collections import Counter
from types import SimpleNamespace

import pytest

from claude_proxy.errors import ProxyError
from claude_proxy.exchange import Exchange
from claude_proxy.keys import COOLING_STATUSES, LONGEST_REST, KeyRing, ask_with_keys, parse_keys


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


class Response:
    """An upstream's answer, as far as a ring looks at it."""

    def __init__(self, status, **headers):
        self.status = status
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}
        self.closed = False

    def close(self):
        self.closed = True


def ring_of(*keys, seconds=60.0):
    clock = Clock()
    return KeyRing(keys, clock, seconds), clock


def asker(ring, answers):
    """(ask, keys that were used): `answers` has the response of each key."""
    used = []

    def send(key):
        used.append(key)
        return answers[key]

    exchange = Exchange()
    return SimpleNamespace(ask=lambda: ask_with_keys(ring, send, exchange), used=used, exchange=exchange)


@pytest.mark.parametrize("text,keys", [
    ("", ()), (" , ,", ()), ("a", ("a",)), ("a,b", ("a", "b")), (" a , b ,", ("a", "b")),
])
def test_keys_in_a_setting(text, keys):
    assert parse_keys(text) == keys


def test_each_in_turn():
    ring, _ = ring_of("a", "b", "c")
    assert [ring.take() for _ in range(7)] == ["a", "b", "c", "a", "b", "c", "a"]


def test_a_key_that_is_there_twice_is_one():
    ring, _ = ring_of("a", "b", "a")
    assert len(ring) == 2 and [ring.take() for _ in range(3)] == ["a", "b", "a"]


def test_none_at_all():
    ring, _ = ring_of()
    assert ring.take() is None and len(ring) == 0 and ring.seconds_left() == 1


@pytest.mark.parametrize("told,rest", [(None, 60.0), (5, 5.0), (0, 0.0), (10**9, LONGEST_REST)])
def test_how_long_a_key_rests(told, rest):
    ring, clock = ring_of("a", "b")
    assert ring.take() == "a"
    ring.cool("a", told)
    clock.now += max(0.0, rest - 0.5)
    assert [ring.take(), ring.take()] == (["b", "b"] if rest else ["b", "a"])
    clock.now += 0.6
    assert {ring.take(), ring.take()} == {"a", "b"}


def test_a_single_key_never_rests():
    ring, _ = ring_of("a")
    ring.cool("a", 500)
    assert ring.take() == "a"


@pytest.mark.parametrize("rests,left", [((5, 9), 5), ((9, 5.2), 6), ((0.1, 9), 1), ((3, None), 3)])
def test_when_the_first_may_be_used_again(rests, left):
    ring, _ = ring_of("a", "b")
    for key, seconds in zip("ab", rests):
        ring.cool(key, seconds)
    assert ring.seconds_left() == left


def test_numbers_for_logs():
    ring, _ = ring_of("a", "b")
    assert [ring.number(key) for key in ("a", "b", "x")] == ["1/2", "2/2", "none"]


# --- asking ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", sorted(COOLING_STATUSES))
def test_a_refused_key_gives_way_to_the_next_and_rests(status):
    ring, clock = ring_of("a", "b")
    refused, answered = Response(status), Response(200)
    asked = asker(ring, {"a": refused, "b": answered})
    assert asked.ask() is answered
    assert asked.used == ["a", "b"] and refused.closed and not answered.closed
    assert asked.exchange.facts["key"] == "2/2"
    assert asked.ask() is answered and asked.used == ["a", "b", "b"]  # a rests
    clock.now += 61
    asked.ask()
    assert asked.used[3:] == ["a", "b"]


@pytest.mark.parametrize("status", [200, 400, 401, 403, 404, 500, 503])
def test_other_answers_are_the_answer(status):
    ring, _ = ring_of("a", "b")
    asked = asker(ring, {"a": Response(status), "b": Response(200)})
    assert asked.ask().status == status and asked.used == ["a"]
    assert {ring.take(), ring.take()} == {"a", "b"}


def test_the_last_refusal_comes_back_as_it_is():
    ring, _ = ring_of("a", "b")
    first, last = Response(429), Response(429, retry_after="7")
    asked = asker(ring, {"a": first, "b": last})
    assert asked.ask() is last and first.closed and not last.closed


def test_all_resting_is_a_429_that_says_when():
    ring, _ = ring_of("a", "b")
    asked = asker(ring, {"a": Response(429, retry_after="30"), "b": Response(529, retry_after="12")})
    asked.ask()
    with pytest.raises(ProxyError) as raised:
        asked.ask()
    assert raised.value.status == 429 and ("retry-after", "12") in raised.value.headers
    assert asked.used == ["a", "b"]


@pytest.mark.parametrize("answers", [
    {"a": Response(429, retry_after="0"), "b": Response(429, retry_after="0")},
    {"a": Response(429, retry_after="0"), "b": Response(429)},
])
def test_none_is_asked_twice_for_one_request(answers):
    """`retry-after: 0` lets a key be used again at once, but not for the same request."""
    ring, _ = ring_of("a", "b", "c")
    ring.cool("c")
    asked = asker(ring, answers)
    assert asked.ask().status == 429 and sorted(asked.used) == ["a", "b"]


def test_another_thread_that_moves_the_turn_on_does_not_bring_a_key_back():
    ring, _ = ring_of("a", "b", "c")
    used = []

    def send(key):
        used.append(key)
        ring.take(), ring.take()  # others, meanwhile
        return Response(429, retry_after="0")

    assert ask_with_keys(ring, send, Exchange()).status == 429
    assert sorted(used) == ["a", "b", "c"]


def test_what_fails_otherwise_is_not_asked_with_the_next():
    ring, _ = ring_of("a", "b")
    used = []

    def send(key):
        used.append(key)
        raise ProxyError(502, "no connection")

    with pytest.raises(ProxyError):
        ask_with_keys(ring, send, Exchange())
    assert used == ["a"]


@pytest.mark.parametrize("keys,repeated", [(("a",), True), (("a", "b"), False)])
def test_a_refusal_is_worth_repeating_only_without_another_key(keys, repeated):
    ring, _ = ring_of(*keys)
    asked = asker(ring, {key: Response(200) for key in keys})
    asked.ask()
    assert (429 not in asked.exchange.not_repeated) is repeated
    assert 503 not in asked.exchange.not_repeated


def test_many_threads_share_a_ring():
    ring, _ = ring_of("a", "b", "c", "d")
    taken, start = [], threading.Barrier(8)

    def work():
        start.wait()
        for _ in range(500):
            taken.append(ring.take())

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(taken) == dict.fromkeys("abcd", 1000)


def test_many_threads_that_cool_keys_never_take_a_resting_one():
    ring, _ = ring_of("a", "b", "c")
    ring.cool("b")
    wrong = []

    def work():
        for _ in range(300):
            if ring.take() == "b":
                wrong.append(1)
            ring.cool("a", 0)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
