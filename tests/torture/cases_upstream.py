"""Upstreams that misbehave."""

from __future__ import annotations

import time
from functools import partial
from typing import Callable, Dict, Tuple

from tests.torture.rig import MEGABYTE, Rig, all_told, close_all, counted, swallow, wait_for

# After five failures the upstream would not be asked at all.
NO_CIRCUIT = {"CIRCUIT_FAILURES": "0"}
RELAY = {"UPSTREAM": "anthropic"}
DEMOTE = {**RELAY, "ANTHROPIC_DEMOTE_NONSTREAMING": "true"}


def ends_in(mark: bytes, model: str, rig: Rig, stream: bool = True, count: int = 1) -> str:
    """An answer of any size, of which only the end is looked at, and how much the upstream sent."""
    clients, begun = rig.asking(count, model, stream=stream), time.monotonic()
    size = 0
    for client in clients:
        came, tail = swallow(client)
        size += came
        assert mark in tail, tail
    close_all(clients)
    sent = rig.stats()["sent"].get(model, 0)
    seconds = time.monotonic() - begun
    return (f"{mark.decode()}; upstream sent {sent / MEGABYTE:.0f} MB, client got {size / MEGABYTE:.0f} MB"
            f" in {seconds:.1f} s")


def refused(word: str, model: str, rig: Rig, stream: bool = True, count: int = 1) -> str:
    """An error by status."""
    begun = time.monotonic()
    words = all_told(rig.asking(count, model, stream=stream), word)
    sent = rig.stats()["sent"].get(model, 0)
    return f"{words}; upstream sent {sent / MEGABYTE:.0f} MB; {time.monotonic() - begun:.1f} s"


def killed(relayed: bool, rig: Rig) -> str:
    """kill -9 of the upstream amid 200 streams: each is told, none looks whole."""
    clients = rig.asking(200, "slow", stream=True)
    for client in clients:
        client.read_until(b"slow.1 ")
    rig.upstream.kill()
    rig.upstream.wait()
    rig.upstream.stdout.close()
    rests = [client.read_to_end() if relayed else client.read_until(b"\r\n0\r\n\r\n") for client in clients]
    close_all(clients)
    assert not any(b"message_stop" in rest for rest in rests)
    ends = ["cut" if relayed and not rest.endswith(b"0\r\n\r\n") else "error event" for rest in rests]
    assert relayed or all(b"event: error" in rest for rest in rests)
    rig.start_upstream()
    return counted(ends)


def left_again(rig: Rig) -> str:
    """Signs of life and nothing else, for as long as the client stays: then the upstream is left."""
    [client] = rig.asking(1, "endless-comment", stream=True)
    time.sleep(2)
    client.sock.close()
    assert wait_for(lambda: rig.stats()["open"] < 3, 5), rig.stats()
    return f"upstream left after {rig.stats()['sent']['endless-comment'] / MEGABYTE:.0f} MB"


ERROR, STOP = b"event: error", b"message_stop"
UPSTREAM_CASES: Dict[str, Tuple[Callable[[Rig], str], Dict[str, str], int]] = {
    "1 GB of tiny events": (partial(ends_in, STOP, "tiny"), {}, 16),
    "1 GB of tiny events, relayed": (partial(ends_in, STOP, "tiny"), RELAY, 16),
    "1 GB of tiny events, not streamed": (partial(refused, "502", "tiny", stream=False), {}, 400),
    "1 GB of tiny events, demoted": (partial(refused, "502", "tiny", stream=False), DEMOTE, 400),
    "1 GB of a call's arguments": (partial(ends_in, ERROR, "tiny-call"), {}, 400),
    "1 GB of text amid a call": (partial(ends_in, ERROR, "amid-call"), {}, 400),
    "128 MB of line ends": (partial(ends_in, STOP, "blanks"), {}, 16),
    "1 GB without an event's end": (partial(ends_in, ERROR, "endless-event"), {}, 60),
    "1 GB of a first event": (partial(refused, "502", "endless-first-event"), {}, 60),
    "1 GB without an event's end, relayed": (partial(ends_in, b"xxxx", "endless-event"), RELAY, 60),
    "signs of life alone": (left_again, {}, 16),
    "1 GB as a whole body": (partial(refused, "502", "whole-gigabyte"), {}, 200),
    "1 GB as a whole body, relayed": (partial(ends_in, b'"}', "whole-gigabyte", stream=False), RELAY, 40),
    "gzip bomb: JSON": (partial(refused, "502", "bomb-json"), {}, 200),
    "gzip bomb: an event": (partial(ends_in, ERROR, "bomb-event"), {}, 60),
    "gzip bomb: an error": (partial(refused, "400", "bomb-error"), {}, 40),
    "gzip bomb, demoted": (partial(refused, "502", "bomb-event", stream=False), DEMOTE, 60),
    "a head without an end x 50": (partial(refused, "502", "endless-head", count=50), NO_CIRCUIT, 60),
    "interim answers without an end x 50": (partial(refused, "502", "interim", count=50), NO_CIRCUIT, 60),
    "accepts and never answers x 200": (partial(refused, "504", "never", stream=False, count=200), {"REQUEST_TIMEOUT": "3", **NO_CIRCUIT}, 60),
    "closes at once x 200": (partial(refused, "502", "closes", count=200), {"MAX_RETRIES": "1", **NO_CIRCUIT}, 60),
    "kill -9 amid 200 streams": (partial(killed, False), {}, 60),
    "kill -9 amid 200 streams, relayed": (partial(killed, True), RELAY, 60),
}
