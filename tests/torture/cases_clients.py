"""Clients that misbehave."""

from __future__ import annotations

import gzip
import json
import threading
import time
from typing import Callable, Dict, List, Tuple

from tests.support import RawClient, message_body, request_bytes
from tests.torture.rig import (
    MEGABYTE,
    Rig,
    all_told,
    close_all,
    counted,
    message_request,
    send_all,
    swallow,
    told,
    wait_for,
)
from tests.torture.upstream import GIGABYTE, reset

HEAD = b"POST /v1/messages HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"


# --- slow senders --------------------------------------------------------------------------------


def drip(clients: List[RawClient], byte: Callable[[int], bytes], pause: float, seconds: float) -> None:
    """A byte of each client in turn, until the time is up."""
    end, number = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        for client in clients:
            send_all(client, byte(number))
        number += 1
        time.sleep(pause)


def timed(action: Callable[[], str], begun: float) -> str:
    words = action()
    return f"{words} after {time.monotonic() - begun:.1f} s"


def slow_heads(rig: Rig) -> str:
    """A head a byte at a time: HEADER_TIMEOUT counts from its first byte."""
    clients, begun = rig.clients(200), time.monotonic()
    raw = message_request("fine")
    drip(clients, lambda n: raw[n:n + 1], 0.1, 4)
    assert rig.fine(), "a normal request did not work meanwhile"
    return timed(lambda: all_told(clients, "408"), begun)


def slow_bodies(rig: Rig) -> str:
    clients, begun = rig.clients(100), time.monotonic()
    for client in clients:
        client.send(HEAD + b"content-length: 10000\r\n\r\n")
    drip(clients, lambda n: b" ", 0.1, 4)
    assert rig.fine(), "a normal request did not work meanwhile"
    return timed(lambda: all_told(clients, "408"), begun)


def stopped_bodies(rig: Rig) -> str:
    clients, begun = rig.clients(200), time.monotonic()
    for client in clients:
        client.send(message_request("fine")[:-1])
    assert rig.fine(), "a normal request did not work meanwhile"
    return timed(lambda: all_told(clients, "408"), begun)


# --- too much ------------------------------------------------------------------------------------


def huge_heads(rig: Rig) -> str:
    heads = [(HEAD.replace(b"messages", b"messages?" + b"x" * 65536), "414"), (HEAD + b"x-a: " + b"x" * 65536, "431"),
             (HEAD + b"x-a: b\r\n" * 10_000, "431")]
    words = []
    for raw, status in heads:
        clients = rig.clients(50)
        for client in clients:
            send_all(client, raw + b"\r\n\r\n")
        words.append(all_told(clients, status))
    return ", ".join(words)


def sent_while_read(client: RawClient, data: bytes, times: int) -> str:
    """What is answered while all of this is still being sent."""
    sender = threading.Thread(target=send_all, args=(client, data, times), daemon=True)
    sender.start()
    word = told(client)
    client.sock.close()
    return word


def at_once(rig: Rig, count: int, head: bytes, data: bytes, times: int) -> str:
    words: List[str] = []

    def one() -> None:
        client = RawClient(rig.port, 60)
        client.send(head)
        words.append(sent_while_read(client, data, times))

    threads = [threading.Thread(target=one) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(words) == {"413"}, counted(words)
    return counted(words)


def large_bodies(rig: Rig) -> str:
    """200 MB each, said beforehand: refused by the head."""
    head = HEAD + b"content-length: %d\r\n\r\n" % (200 * MEGABYTE)
    return at_once(rig, 20, head, b" " * MEGABYTE, 200)


def large_chunked(rig: Rig) -> str:
    """200 MB each, in chunks: refused beyond MAX_BODY_BYTES, of each."""
    head = HEAD + b"transfer-encoding: chunked\r\n\r\n"
    return at_once(rig, 4, head, b"100000\r\n" + b" " * MEGABYTE + b"\r\n", 200)


def gzip_body(rig: Rig) -> str:
    """A gigabyte that comes as one megabyte: it is never unpacked."""
    packed = gzip.compress(b" " * (64 * MEGABYTE)) * 16
    clients = rig.clients(10)
    for client in clients:
        client.send(request_bytes(packed, fields=("content-encoding: gzip",)))
    return all_told(clients, "400")


# --- odd JSON ------------------------------------------------------------------------------------


def fill(template: str, *texts: str) -> str:
    """The template with these texts for its marks."""
    parts = template.split("@")
    return "".join(part + text for part, text in zip(parts, (*texts, "")))


def raw_body(insert: str = '"hi"', **more: str) -> bytes:
    """A message whose content is this JSON text; `more` are members as JSON texts."""
    members = {"model": '"fine"', "messages": fill('[{"role": "user", "content": @}]', insert), **more}
    return ("{" + ", ".join(f'"{name}": {value}' for name, value in members.items()) + "}").encode()


def tool_input(value: str) -> bytes:
    use = fill('{"type": "tool_use", "id": "toolu_1", "name": "t", "input": {"a": @}}', value)
    result = '{"type": "tool_result", "tool_use_id": "toolu_1", "content": "x"}'
    return raw_body(messages=fill('[{"role": "user", "content": "x"}, {"role": "assistant", "content": [@]},'
                                  ' {"role": "user", "content": [@]}]', use, result))


def nested(depth: int, opening: str = "[", closing: str = "]") -> str:
    return opening * depth + "1" * (opening != "[") + closing * depth


HALF = '"\\ud800 \\udfff"'
ODD_BODIES: List[Tuple[str, bytes, Tuple[int, ...]]] = [
    ("arrays 100,000 deep", raw_body(nested(100_000)), (400,)),
    ("arrays that never close", b"[" * 30_000_000, (400,)),
    ("objects 100,000 deep", raw_body(nested(100_000, '{"a":', "}")), (400,)),
    ("a tool's input 100,000 deep", tool_input(nested(100_000)), (400,)),
    ("an integer of 400,000 digits", raw_body(max_tokens="1" * 400_000), (400,)),
    ("a float of 400,000 digits", raw_body(temperature="0." + "1" * 400_000), (400,)),
    ("NaN", raw_body(temperature="NaN"), (400,)),
    ("Infinity", raw_body(temperature="-Infinity"), (400,)),
    ("half an emoji as text", raw_body(HALF), (200,)),
    ("half an emoji in the system prompt", raw_body(system=HALF), (200,)),
    ("half an emoji in a tool's input", tool_input(HALF), (200,)),
    ("half an emoji as the model", raw_body(model=HALF), (200,)),
    ("half an emoji as a user", raw_body(metadata=fill('{"user_id": @}', HALF)), (200,)),
    ("half an emoji as an id and a name", tool_input("1").replace(b'"toolu_1"', HALF.encode()).replace(b'"t"', HALF.encode()), (200,)),
    ("half an emoji as a member", raw_body(**{"\\ud800": "1"}), (200,)),
    ("a million empty lists", raw_body("[" + "[]," * 1_000_000 + "[]]"), (200, 400)),
    ("a thousand of one name", raw_body(model='"fine", ' + ", ".join(['"model": "fine"'] * 1000)), (200,)),
]
# What can be read, and is deeper than what walks through it can go.
DEPTHS = (*range(20, 1000, 20), *range(1000, 1100, 10), 2000, 5000, 10_000)


def odd_json(rig: Rig) -> str:
    words = []
    for name, body, statuses in ODD_BODIES:
        with RawClient(rig.port, 20) as client:
            client.send(request_bytes(body))
            word = told(client)
        assert word in map(str, statuses), f"{name}: {word}"
        words.append(word)
    for depth in DEPTHS:
        for body in (tool_input(nested(depth)), tool_input(nested(depth, '{"a":', "}")),
                     raw_body(tools=fill('[{"name": "t", "input_schema": @}]', nested(depth, '{"items":', "}"))),
                     raw_body(fill('[{"type": "text", "text": "x", "x": @}]', nested(depth)))):
            for stream in (b"false", b"true"):
                with RawClient(rig.port, 20) as client:
                    client.send(request_bytes(body[:-1] + b', "stream": %b}' % stream))
                    word = told(client)
                assert word in ("200", "200 ... message_stop", "400"), f"depth {depth}: {word}"
                words.append(word)
    return counted(words)


def odd_json_relayed(rig: Rig) -> str:
    """The Anthropic API says itself what it does not like: everything passes, byte for byte."""
    words = []
    for name, body, _ in ODD_BODIES:
        with RawClient(rig.port, 20) as client:
            client.send(request_bytes(body))
            word = told(client)
        assert word in ("200", "400"), f"{name}: {word}"
        words.append(word)
    return counted(words)


# --- many ----------------------------------------------------------------------------------------


def with_many(rig: Rig, sent: bytes) -> str:
    clients = rig.clients(1000)
    for client in clients:
        send_all(client, sent)
    time.sleep(0.5)
    meanwhile = ask_meanwhile(rig)
    close_all(clients)
    wait_for(rig.fine, 5)
    return f"meanwhile {meanwhile}"


def ask_meanwhile(rig: Rig) -> str:
    with RawClient(rig.port, 5) as client:
        client.send(message_request("fine"))
        word = told(client)
    with RawClient(rig.port, 5) as client:
        client.send(request_bytes(path="/health", method="GET"))
        return f"{word}, health {told(client)}"


def idle(rig: Rig) -> str:
    """As many as MAX_CONNECTIONS allows, all of them silent."""
    words = with_many(rig, b"")
    assert words == "meanwhile 200, health 200", words
    return words


def half_heads(rig: Rig) -> str:
    """The same with half a head: they count as work, until HEADER_TIMEOUT."""
    clients = rig.clients(1000)
    for client in clients:
        send_all(client, HEAD)
    time.sleep(0.5)
    words = ask_meanwhile(rig)
    assert words == "503, health 200", words
    return f"{all_told(clients, '408')}, meanwhile {words}"


def beyond_the_cap(rig: Rig) -> str:
    """Three times as many as are let in."""
    clients = rig.clients(3000)
    for client in clients:
        send_all(client, HEAD)
    time.sleep(1)
    words = [told(client) for client in clients]
    close_all(clients)
    assert set(words) <= {"408", "503", "AssertionError"}, counted(words)
    return counted(words).replace("AssertionError", "closed without a word")


# --- slow readers, and those who leave -----------------------------------------------------------


def no_reading(rig: Rig) -> str:
    """A client that reads nothing: the upstream has to stop, and at WRITE_TIMEOUT the thread ends."""
    clients, begun = rig.asking(10, "tiny", stream=True), time.monotonic()
    seconds = float(rig.settings["WRITE_TIMEOUT"])
    time.sleep(seconds / 2)
    before = sum(rig.stats()["sent"].values())
    assert rig.fine(), "a normal request did not work meanwhile"
    time.sleep(seconds / 4)
    sent = {name: count for name, count in rig.stats()["sent"].items() if name != "fine"}
    assert sum(sent.values()) <= before < GIGABYTE, (before, sent)
    open_before = rig.stats()["open"]
    freed = wait_for(lambda: rig.stats()["open"] <= max(0, open_before - len(clients)), seconds)
    assert freed, f"the upstream's connections stayed open: {rig.stats()}"
    ended = time.monotonic() - begun
    close_all(clients)
    each = sum(sent.values()) / MEGABYTE / len(clients)
    return f"upstream stopped at {each:.1f} MB of 1024 each, cut after {ended:.1f} s"


def late_reading(rig: Rig) -> str:
    """A client that does not read for a while, and then all: nothing is lost."""
    [client] = rig.asking(1, "tiny", stream=True)
    time.sleep(float(rig.settings["WRITE_TIMEOUT"]) / 2)
    stopped = rig.stats()["sent"].get("tiny", 0)
    size, tail = swallow(client)
    client.sock.close()
    assert b"message_stop" in tail, tail
    sent = rig.stats()["sent"]["tiny"]
    return f"upstream stopped at {stopped / MEGABYTE:.1f} MB, then {sent / MEGABYTE:.0f} MB came whole"


def resets(rig: Rig) -> str:
    """200 clients that reset their connection amid a stream, again and again: memory goes up no further."""
    sizes = []
    for _ in range(5):
        clients = rig.asking(200, "slow", stream=True)
        for client in clients:
            client.read_until(b"slow.1 ")
        assert rig.stats()["open"] >= 200
        for client in clients:
            reset(client.sock)
        assert wait_for(lambda: rig.stats()["open"] < 5, 10), rig.stats()
        assert wait_for(lambda: rig.see().threads < 10, 10), rig.see()
        sizes.append(rig.see().rss)
    assert sizes[-1] - sizes[2] < 5, sizes
    return "each time all upstream connections closed; RSS after each " + ", ".join(f"{size:.1f}" for size in sizes)


def left_before(rig: Rig) -> str:
    """200 clients that leave while nothing has been answered."""
    clients = rig.asking(100, "never", stream=True) + rig.asking(100, "never")
    assert wait_for(lambda: rig.stats()["open"] >= 200, 10)
    begun = time.monotonic()
    close_all(clients)
    assert wait_for(lambda: rig.stats()["open"] < 5, 10), rig.stats()
    return f"200 upstream connections closed within {time.monotonic() - begun:.1f} s"


def counted_tokens(rig: Rig) -> str:
    """Large prompts, counted: 30 MB of text, and of one word."""
    words = []
    for text in ("word " * 6_000_000, "x" * 30_000_000):
        with RawClient(rig.port, 60) as client:
            client.send(request_bytes(json.dumps(message_body(text)).encode(), path="/v1/messages/count_tokens"))
            words.append(told(client))
    assert set(words) == {"200"}, words
    return counted(words)


Settings = Dict[str, str]
RELAY = {"UPSTREAM": "anthropic"}
CLIENT_CASES: Dict[str, Tuple[Callable[[Rig], str], Settings, int]] = {
    "200 heads, a byte at a time": (slow_heads, {}, 40),
    "100 bodies, a byte at a time": (slow_bodies, {"READ_TIMEOUT": "5"}, 40),
    "200 bodies that stop": (stopped_bodies, {"READ_TIMEOUT": "5"}, 40),
    "heads of 64 KB and of 10,000 fields": (huge_heads, {}, 40),
    "20 bodies of 200 MB with a length": (large_bodies, {}, 40),
    "4 bodies of 200 MB in chunks": (large_chunked, {}, 250),
    "10 gzip bombs as bodies": (gzip_body, {}, 60),
    "odd JSON: depths, digits, halves": (odd_json, {}, 500),
    "odd JSON, relayed": (odd_json_relayed, RELAY, 500),
    "30 MB of tokens counted": (counted_tokens, {}, 500),
    "1,000 idle connections": (idle, {}, 100),
    "1,000 halves of a head": (half_heads, {}, 100),
    "3,000 halves of a head": (beyond_the_cap, {}, 100),
    "clients that do not read": (no_reading, {"WRITE_TIMEOUT": "60"}, 30),
    "clients that do not read, relayed": (no_reading, {"WRITE_TIMEOUT": "60", **RELAY}, 30),
    "a client that reads late, 1 GB relayed": (late_reading, {"WRITE_TIMEOUT": "8", **RELAY}, 20),
    "200 clients reset a stream, 5 times": (resets, {}, 60),
    "200 clients leave before an answer": (left_before, {}, 60),
}
