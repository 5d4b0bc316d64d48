"""Many mixed exchanges through the relay: bodies and streams have the same SHA-256 on both sides.

RELAY_EXCHANGES says how many; the seed is fixed, so a failure comes again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import socket
import threading

import pytest

from tests.support import (
    HANG_UP,
    LAST,
    RawClient,
    ScriptedUpstream,
    http_chunk,
    running_proxy,
)
from tests.test_json_edit import odd_json

pytestmark = pytest.mark.usefixtures("no_thread_left")

EXCHANGES = int(os.environ.get("RELAY_EXCHANGES", "300"))
CLIENTS = 4
FRAMINGS = ["chunked"] * 4 + ["length"] * 4 + ["close"]
LINE_ENDS = ["\n", "\n", "\n", "\r\n", "\r"]
PATHS = ["/v1/messages?beta=true", "/v1/messages", "/v1/messages/count_tokens", "/v1/messages/batches", "/v1/new/thing?x=%20"]
KINDS = ["application/json", "application/json; charset=utf-8", "text/html", "application/x-jsonl"]


def sha(data):
    return hashlib.sha256(data).hexdigest()


# --- what is said ------------------------------------------------------------------------------


def odd_body(dice):
    """A request: mostly odd but legal JSON, at times no JSON at all."""
    if dice.random() < 0.1:
        return dice.choice([b"", b"{", b"\xff\x00{}", b"[]", b'{"a":NaN}', dice.randbytes(dice.randrange(300))])
    members = [f'"k{n}":{odd_json(dice)}' for n in range(dice.randrange(6))]
    members += [f'"stream":{dice.choice(["true", "false", " true", "null"])}'] * dice.randrange(3)
    members += ['"big":' + "9" * dice.randrange(1, 5000), '"model":"claude-a"', '"model" : "claude-b"'][: dice.randrange(4)]
    members += ['"messages": [{"role":"user","content":[{"type":"text","text":"\\u00e9 cp1. \\"signature\\":\\"\\""}]} ]']
    dice.shuffle(members)
    blank = dice.choice(["", " ", "\r\n\t"])
    text = dice.choice(["", "", "\ufeff"]) + blank + "{" + f"{blank},{blank}".join(members) + "}" + blank
    return text.encode("utf-8", "surrogatepass")


def odd_event(dice):
    kind = dice.choice(["message_start", "message_delta", "content_block_delta", "content_block_start", "ping", "error", "unheard_of"])
    inner = dice.choice(['{"usage":{"input_tokens":1}}', '"usage"', "5", "[]", '{"stop_reason":"end_turn","type":"x"}'])
    more = f',"usage":{odd_json(dice)}' if dice.random() < 0.3 else ""
    member = dice.choice(["message", "delta", "content_block", "error", "index"])
    return kind, (f'{{"type":"{kind}","{member}":{inner}{more}}}').replace("\n", " ").replace("\r", " ")


def odd_frame(dice):
    """Lines of a frame, of every kind that there is."""
    end = dice.choice(LINE_ENDS)
    kind, data = odd_event(dice)
    lines = [f"event: {kind}", f"data: {data}"]
    extra = [": comment", ":", "id: 7", "retry: 10", "data:no blank", "nofield", "data: not json {", "data", "x: y", "error: {}"]
    lines += dice.sample(extra, dice.randrange(3))
    if dice.random() < 0.3:
        dice.shuffle(lines)
    frame = end.join(lines) + end + dice.choice([end, end, end, dice.choice(LINE_ENDS), end * 3, ""])
    return frame.encode("utf-8", "surrogatepass")


def odd_stream(dice):
    start = dice.choice([b"", b"", b"\xef\xbb\xbf", b"\r\n"])
    frames = [odd_frame(dice) for _ in range(dice.randrange(1, 30))]
    if dice.random() < 0.1:
        frames.append(b"data: " + dice.randbytes(dice.randrange(70_000)) + b"\n\n")
    return start + b"".join(frames)


# --- how it travels ----------------------------------------------------------------------------


def splits(dice, data):
    """The data in pieces of random sizes, none empty."""
    longest = dice.choice([3, 40, 500, 100_000]) if len(data) < 5000 else 100_000
    pieces, at = [], 0
    while at < len(data):
        size = dice.randrange(1, longest + 1)
        pieces.append(data[at:at + size])
        at += size
    return pieces


def framed(dice, head, body):
    """An answer's bytes, in sends that are cut anywhere."""
    framing = dice.choice(FRAMINGS)
    if framing == "chunked":
        raw = head + b"transfer-encoding: chunked\r\n\r\n" + b"".join(map(http_chunk, splits(dice, body))) + LAST
    elif framing == "length":
        raw = head + b"content-length: %d\r\n\r\n" % len(body) + body
    else:
        raw = head + b"connection: close\r\n\r\n" + body
    return [*splits(dice, raw), *([HANG_UP] if framing == "close" else [])]


class Script:
    """What is answered to the request that has this number in a header."""

    def __init__(self, count):
        self.count = count
        self.received = {}
        self.sent = {}

    def __call__(self, request):
        number = int(request.headers["x-number"])
        self.received[number] = sha(request.body)
        dice = random.Random(f"answer {number}")
        streamed = dice.random() < 0.6
        status = 200 if streamed else dice.choice([200, 200, 400, 429, 529])
        body = odd_stream(dice) if streamed else odd_body(dice)
        kind = "text/event-stream" if streamed else dice.choice(KINDS)
        self.sent[number] = (status, kind, sha(body))
        head = f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\nrequest-id: req_{number}\r\n".encode()
        return framed(dice, head, body)


def request_of(dice, number, body):
    head = f"POST {dice.choice(PATHS)} HTTP/1.1\r\nhost: localhost\r\nx-api-key: k\r\nx-number: {number}\r\ncontent-type: application/json\r\n"
    if dice.random() < 0.5:
        return head.encode() + b"content-length: %d\r\n\r\n" % len(body) + body
    return head.encode() + b"transfer-encoding: chunked\r\n\r\n" + b"".join(map(http_chunk, splits(dice, body))) + LAST


def converse(port, numbers, asked, answered):
    """Ask one after the other on one connection, and note what went out and what came."""
    with RawClient(port, timeout=20) as client:
        client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for number in numbers:
            dice = random.Random(f"request {number}")
            body = odd_body(dice)
            asked[number] = sha(body)
            for piece in splits(dice, request_of(dice, number, body)):
                client.send(piece)
            answer = client.answer()
            assert answer.headers["request-id"] == f"req_{number}"
            answered[number] = (answer.status, answer.headers["content-type"], sha(answer.body))


def test_both_sides_have_the_same_bytes(form):
    script = Script(EXCHANGES)
    asked, answered = {}, {}
    with contextlib.ExitStack() as stack:
        upstream = stack.enter_context(ScriptedUpstream(script))
        proxy = stack.enter_context(running_proxy(form, {"ANTHROPIC_FORWARD_URL": upstream.url}))
        threads = [threading.Thread(target=converse, args=(proxy.port, range(n, EXCHANGES, CLIENTS), asked, answered))
                   for n in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(answered) == len(upstream.requests) == EXCHANGES
        assert not [line for line in proxy.log_lines() if line["event"] in ("defect", "observer_failed")]
        assert upstream.connections < EXCHANGES / 2
    assert script.received == asked
    assert answered == script.sent


def test_the_bodies_are_odd_enough():
    """What the other test rests on: legal JSON in most bodies, and hardly one as it would be written again."""
    bodies = [odd_body(random.Random(f"request {n}")) for n in range(200)]
    read = []
    for body in bodies:
        with contextlib.suppress(ValueError):
            read.append((body, json.loads(body.decode("utf-8-sig"), parse_int=str)))
    assert len(read) > 120
    assert sum(json.dumps(value).encode() == body for body, value in read) < 10
