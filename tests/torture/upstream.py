"""An upstream that misbehaves as it is told: the name of the model that is asked for says how.

Runs as a process of its own (`python3 -m tests.torture.upstream PORT`), so that it can be killed.
It speaks Chat Completions and Messages over a raw socket. `GET /stats` tells how many bytes each
kind of misbehaviour has sent, and how many connections are open.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from typing import Any, Callable, Dict, List, NamedTuple

from tests.support import STREAM_HEAD, delta, http_chunk, read_request, sse

GIGABYTE = 1 << 30
BLOCK = 1 << 20
PIECES = 10  # of a small answer
SLOW_PIECES, SLOW_SECONDS = 50, 0.05
JSON_HEAD = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
SSE_CLOSE_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n"


class Asked(NamedTuple):
    """One request: its model, whether it is for Messages, and whether it wants a stream."""

    model: str
    messages: bool
    stream: bool


# --- what is said --------------------------------------------------------------------------------


def event(kind: str, **members: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **members})}\n\n".encode()


def message(text: str) -> Dict[str, Any]:
    return {"id": "msg_1", "type": "message", "role": "assistant", "model": "m",
            "content": [{"type": "text", "text": text}] if text else [], "stop_reason": "end_turn" if text else None,
            "stop_sequence": None, "usage": {"input_tokens": 5, "output_tokens": 5}}


def opening(asked: Asked) -> bytes:
    if not asked.messages:
        return sse(delta(role="assistant", content=""))
    block = {"type": "text", "text": ""}
    return event("message_start", message=message("")) + event("content_block_start", index=0, content_block=block)


def piece(asked: Asked, text: str) -> bytes:
    if not asked.messages:
        return sse(delta(content=text))
    return event("content_block_delta", index=0, delta={"type": "text_delta", "text": text})


def ending(asked: Asked) -> bytes:
    if not asked.messages:
        return sse(delta("stop")) + sse("[DONE]")
    told = {"stop_reason": "end_turn", "stop_sequence": None}
    return (event("content_block_stop", index=0) + event("message_delta", delta=told, usage={"output_tokens": 5})
            + event("message_stop"))


def call_piece(arguments: str, **head: Any) -> bytes:
    return sse(delta(tool_calls=[{"index": 0, "function": {"arguments": arguments}, **head}]))


CALL_BEGUN = call_piece("", id="call_1", type="function", function={"name": "t", "arguments": '{"a":"'})


# --- the plays: each sends an answer, in blocks; what it yields is sent ---------------------------

Play = Callable[[Asked], Iterator[bytes]]


def fine(asked: Asked) -> Iterator[bytes]:
    """A small answer, sound in every way."""
    if asked.messages and not asked.stream:
        body = json.dumps(message("fine " * PIECES)).encode()
        yield f"{JSON_HEAD}content-length: {len(body)}\r\n\r\n".encode() + body
        return
    pieces = [piece(asked, "fine ") for _ in range(PIECES)]
    yield STREAM_HEAD + b"".join(map(http_chunk, (opening(asked), *pieces, ending(asked)))) + b"0\r\n\r\n"


def slow(asked: Asked) -> Iterator[bytes]:
    """A sound answer that takes its time; each piece has the model's name."""
    yield STREAM_HEAD + http_chunk(opening(asked))
    for number in range(SLOW_PIECES):
        yield http_chunk(piece(asked, f"{asked.model}.{number} "))
        time.sleep(SLOW_SECONDS)
    yield http_chunk(ending(asked)) + b"0\r\n\r\n"


def repeated(part: bytes, size: int = GIGABYTE) -> Iterator[bytes]:
    """So many bytes of the same, in blocks."""
    block = part * (BLOCK // len(part) or 1)
    for _ in range(size // len(block)):
        yield block


def until_close(head: bytes, *parts: Iterator[bytes]) -> Iterator[bytes]:
    yield head + b"\r\n"
    for part in parts:
        yield from part


def tiny(asked: Asked) -> Iterator[bytes]:
    """A gigabyte of one legal stream's small events, such as a model sends but for their number."""
    middle = repeated(piece(asked, "x" if asked.messages else "x" * 400))
    return until_close(SSE_CLOSE_HEAD, iter([opening(asked)]), middle, iter([ending(asked)]))


def tiny_call(asked: Asked) -> Iterator[bytes]:
    """The same, all of it one call's arguments."""
    return until_close(SSE_CLOSE_HEAD, iter([CALL_BEGUN]), repeated(call_piece("x" * 400)), iter([ending(asked)]))


def amid_call(asked: Asked) -> Iterator[bytes]:
    """Text without an end amid a call that is never complete."""
    return until_close(SSE_CLOSE_HEAD, iter([CALL_BEGUN]), repeated(piece(asked, "x" * 400)), iter([ending(asked)]))


def blanks(asked: Asked) -> Iterator[bytes]:
    """A model that says line ends and nothing else."""
    return until_close(SSE_CLOSE_HEAD, repeated(piece(asked, "\n" * 200), GIGABYTE // 8), iter([ending(asked)]))


def endless_event(asked: Asked) -> Iterator[bytes]:
    """A gigabyte without an event's end, behind a sound beginning."""
    return until_close(SSE_CLOSE_HEAD, iter([opening(asked) + piece(asked, "x") + b"data: "]), repeated(b"x"))


def endless_first_event(asked: Asked) -> Iterator[bytes]:
    return until_close(SSE_CLOSE_HEAD, iter([b"data: "]), repeated(b"x"))


def endless_comment(asked: Asked) -> Iterator[bytes]:
    """Signs of life, and nothing else."""
    return until_close(SSE_CLOSE_HEAD, repeated(b": x\n\n"))


def whole_gigabyte(asked: Asked) -> Iterator[bytes]:
    head = f"{JSON_HEAD}content-length: {GIGABYTE + 9}\r\n"
    return until_close(head.encode(), iter([b'{"x": "']), repeated(b"x"), iter([b'"}']))


def gzipped(head: bytes, begin: bytes, part: bytes, end: bytes = b"") -> Iterator[bytes]:
    """A gigabyte, or a thousandth of it on the way."""
    yield head + b"content-encoding: gzip\r\nconnection: close\r\n\r\n"
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    yield packer.compress(begin)
    for block in repeated(part):
        yield packer.compress(block)
    yield packer.compress(end) + packer.flush()


def bomb_json(asked: Asked) -> Iterator[bytes]:
    return gzipped(JSON_HEAD.encode(), b'{"x": "', b"x", b'"}')


def bomb_event(asked: Asked) -> Iterator[bytes]:
    return gzipped(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n", opening(asked) + piece(asked, "x") + b"data: ", b"x")


def bomb_error(asked: Asked) -> Iterator[bytes]:
    return gzipped(b"HTTP/1.1 400 No\r\ncontent-type: application/json\r\n", b'{"error": {"message": "', b"x", b'"}}')


def endless_head(asked: Asked) -> Iterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\n"
    yield from repeated(b"x-more: of the same\r\n")


def interim(asked: Asked) -> Iterator[bytes]:
    """Interim answers without an end."""
    return repeated(b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n")


def never(asked: Asked) -> Iterator[bytes]:
    yield b""


def closes(asked: Asked) -> Iterator[bytes]:
    raise OSError("closed at once")
    yield b""


PLAYS: Dict[str, Play] = {
    play.__name__.replace("_", "-"): play
    for play in (fine, slow, tiny, tiny_call, amid_call, blanks, endless_event, endless_first_event, endless_comment,
                 whole_gigabyte, bomb_json, bomb_event, bomb_error, endless_head, interim, never, closes)
}
KEPT = (fine, slow)  # these have an end that both sides see


def play_of(model: str) -> Play:
    """`slow-a` plays `slow`; what is not known plays `fine`."""
    return PLAYS.get(model) or (slow if model.startswith("slow") else fine)


# --- the server ----------------------------------------------------------------------------------


class Upstream:
    """Accepts, and plays, a thread for each connection."""

    def __init__(self, port: int) -> None:
        self.sent: Dict[str, int] = {}
        self.requests = 0
        self.open = 0
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", port), backlog=1024)
        self.port: int = self._listener.getsockname()[1]

    def serve(self) -> None:
        while True:
            sock, _ = self._listener.accept()
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._connection, args=(sock,), daemon=True).start()

    def _connection(self, sock: socket.socket) -> None:
        with self._lock:
            self.open += 1
        try:
            with sock, contextlib.suppress(OSError), sock.makefile("rb") as reader:
                while self._answer(sock, reader):
                    pass
        finally:
            with self._lock:
                self.open -= 1

    def _answer(self, sock: socket.socket, reader: Any) -> bool:
        request = read_request(reader)
        if request is None:
            return False
        if " /stats " in request.line:
            # The connection that asks is none of the proxy's.
            body = json.dumps({"sent": self.sent, "open": self.open - 1, "requests": self.requests}).encode()
            sock.sendall(f"{JSON_HEAD}content-length: {len(body)}\r\n\r\n".encode() + body)
            return True
        with self._lock:
            self.requests += 1
        asked = asked_of(request)
        play = play_of(asked.model)
        for block in play(asked):
            sock.sendall(block)
            self.sent[asked.model] = self.sent.get(asked.model, 0) + len(block)
        if play is never:
            sock.recv(1)  # until the other side closes
        return play in KEPT


def asked_of(request: Any) -> Asked:
    messages = "/messages" in request.line
    try:
        body = json.loads(request.body)
    except (ValueError, RecursionError):
        return Asked("", messages, False)
    return Asked(str(body.get("model")), messages, body.get("stream") is True)


def reset(sock: socket.socket) -> None:
    """Close so that the other side gets a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def main(arguments: List[str]) -> None:
    upstream = Upstream(int(arguments[0]))
    print(upstream.port, flush=True)
    upstream.serve()


if __name__ == "__main__":
    main(sys.argv[1:])
