"""What the pieces of the hot path cost, in microseconds, on the Python that runs this.

    python3.13 tests/bench/micro.py [WORD ...]

With words, only the pieces with one of them in their name. Each is the best of seven runs: what is
slower was somebody else. The package's own functions are called as the proxy calls them.
"""

from __future__ import annotations

import io
import pathlib
import socket
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Callable, Dict, List, NamedTuple, Tuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from claude_proxy.app import App
from claude_proxy.assembly import build_app
from claude_proxy.config_load import load_config
from claude_proxy.dialects.anthropic import MESSAGES_DIALECT
from claude_proxy.dialects.chat_options import ChatOptions
from claude_proxy.dialects.chat_request import messages_to_chat
from claude_proxy.dialects.chat_stream import ChatAsked, chat_chunks, chunks_to_events
from claude_proxy.dialects.dialect import parse_json_object
from claude_proxy.events import EventWriter, check_grammar
from claude_proxy.exchange import Exchange
from claude_proxy.http1 import (
    HttpRequest,
    encode_chunk,
    parse_head,
    response_body,
    take_head,
    take_response_head,
)
from claude_proxy.inflight import Inflight
from claude_proxy.log import Log
from claude_proxy.pool import Pool, Target, UpstreamConnection
from claude_proxy.sse import FrameSplitter, encode_json
from claude_proxy.tokens import count_input_tokens
from claude_proxy.upstreams.openai import OpenAIUpstream
from tests.bench.prompts import HEADERS, encoded, large_request, small_request

RUNS, RUN_SECONDS = 7, 0.03
CHUNKS = 1000
BLOCK_BYTES = 65536
SWEPT = 1000

Work = Callable[[], Any]


class Piece(NamedTuple):
    """A piece of the path. `make` prepares what one call does; it does so many units."""

    name: str
    make: Callable[[], Work]
    units: int = 1


def microseconds(work: Work, units: int = 1, runs: int = RUNS, seconds: float = RUN_SECONDS) -> float:
    """The best of some runs, each long enough for the clock."""
    begun = time.perf_counter()
    work()
    once = time.perf_counter() - begun
    count = max(1, int(seconds / max(once, 1e-7)))
    best = min(timed(work, count) for _ in range(runs))
    return best / count / units * 1e6


def timed(work: Work, count: int) -> float:
    begun = time.perf_counter()
    for _ in range(count):
        work()
    return time.perf_counter() - begun


# --- what goes in ----------------------------------------------------------------------------------

REQUEST_HEAD = (
    "POST /v1/messages?beta=true HTTP/1.1\r\nHost: 127.0.0.1:8765\r\n" + "".join(f"{line}\r\n" for line in HEADERS)
    + "Connection: keep-alive\r\nContent-Length: 141000\r\n\r\n"
).encode()
RESPONSE_HEAD = (
    b"HTTP/1.1 200 OK\r\nDate: Thu, 01 Jan 2026 00:00:00 GMT\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
    b"Cache-Control: no-cache\r\nX-Request-Id: req_bench\r\nTransfer-Encoding: chunked\r\n\r\n"
)
WORDS = (" the", " function", "\n", " returns", ' "name"', " café", ",", " unless")

WRITE: Dict[str, Any] = {"name": "Write", "input_schema": {"type": "object", "properties": {"content": {"type": "string"}}}}


def chat_chunk(delta: Dict[str, Any], finish: Any = None) -> Dict[str, Any]:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    return {"id": "chatcmpl-bench", "object": "chat.completion.chunk", "created": 1760000000, "model": "bench",
            "system_fingerprint": "fp_bench", "choices": [choice]}


def arguments(text: str) -> Dict[str, Any]:
    return {"tool_calls": [{"index": 0, "function": {"arguments": text}}]}


def text_chunks() -> List[Dict[str, Any]]:
    told = [chat_chunk({"content": WORDS[i % len(WORDS)]}) for i in range(CHUNKS)]
    return [chat_chunk({"role": "assistant", "content": ""}), *told, chat_chunk({}, "stop")]


def tool_chunks() -> List[Dict[str, Any]]:
    call = {"index": 0, "id": "call_bench", "type": "function", "function": {"name": "Write", "arguments": ""}}
    inner = [encode_json(word)[1:-1] for word in WORDS]
    told = [chat_chunk(arguments(inner[i % len(inner)])) for i in range(CHUNKS)]
    opening = [chat_chunk({"role": "assistant", "tool_calls": [call]}), chat_chunk(arguments('{"content": "'))]
    return [*opening, *told, chat_chunk(arguments('"}')), chat_chunk({}, "tool_calls")]


def frames(chunks: Sequence[Dict[str, Any]]) -> List[bytes]:
    return [*(f"data: {encode_json(chunk)}\n\n".encode() for chunk in chunks), b"data: [DONE]\n\n"]


def blocks(pieces: Sequence[bytes]) -> List[bytes]:
    """The same bytes as they come when they come fast."""
    whole = b"".join(pieces)
    return [whole[at : at + BLOCK_BYTES] for at in range(0, len(whole), BLOCK_BYTES)]


def http_chunks(pieces: Sequence[bytes]) -> List[bytes]:
    return [*(encode_chunk(piece) for piece in pieces), b"0\r\n\r\n"]


# --- the pieces ------------------------------------------------------------------------------------


def exhausted(items: Iterable[Any]) -> None:
    for _ in items:
        pass


def request_head() -> Work:
    return lambda: parse_head(take_head(REQUEST_HEAD)[0])  # type: ignore[index]


def response_head() -> Work:
    return lambda: take_response_head(RESPONSE_HEAD)


def dechunking(cut: Callable[[Sequence[bytes]], Sequence[bytes]]) -> Callable[[], Work]:
    def make() -> Work:
        head, pieces = take_response_head(RESPONSE_HEAD)[0], cut(http_chunks(frames(text_chunks())))  # type: ignore[index]

        def work() -> None:
            feed = response_body(head).feed
            exhausted(map(feed, pieces))

        return work

    return make


def framing(cut: Callable[[Sequence[bytes]], Sequence[bytes]]) -> Callable[[], Work]:
    def make() -> Work:
        pieces = cut(frames(text_chunks()))
        return lambda: exhausted(map(FrameSplitter().feed, pieces))

    return make


def retelling(make_chunks: Callable[[], List[Dict[str, Any]]]) -> Callable[[], Work]:
    """Frames -> events -> the client's frames."""

    def make() -> Work:
        pieces, encode = blocks(frames(make_chunks())), MESSAGES_DIALECT.encode_event
        asked = ChatAsked(tool_names={WRITE["name"]: WRITE["name"]})

        def work() -> None:
            events = chunks_to_events(chat_chunks(iter(pieces)), EventWriter("msg_bench", "bench", {}), asked)
            exhausted(map(encode, events))

        return work

    return make


def grammar() -> Work:
    events = list(chunks_to_events(iter(text_chunks()), EventWriter("msg_bench", "bench", {})))
    return lambda: exhausted(check_grammar(events))


def encoding() -> Work:
    event = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": ' "name"'}}
    return lambda: MESSAGES_DIALECT.encode_event(event)


class CannedTransport:
    """Answers every call with the same stream, in pieces as they come from a socket."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = pieces

    def request(self, exchange: Exchange, call: Any) -> CannedResponse:
        return CannedResponse(self._pieces)


class CannedResponse:
    status = 200

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._head = take_response_head(RESPONSE_HEAD)[0]  # type: ignore[index]
        self.headers = self._head.headers
        self._pieces = pieces

    def pieces(self) -> Iterator[bytes]:
        feed = response_body(self._head).feed
        return filter(None, map(feed, self._pieces))

    def close(self) -> None:
        pass


def canned_app(chunks: List[Dict[str, Any]], cut: Callable[[Sequence[bytes]], Sequence[bytes]]) -> App:
    environ = {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1", "OPENAI_API_KEY": "bench", "MODEL_LIMITS": "false"}
    config, log = load_config(environ), Log(io.StringIO(), "error")
    app = build_app(config, log, Inflight(log))
    transport: Any = CannedTransport(cut(http_chunks(frames(chunks))))
    app.upstreams["openai"] = OpenAIUpstream(config, transport)
    return app


def messages_request(body: bytes) -> HttpRequest:
    return parse_head(take_head(REQUEST_HEAD)[0], "127.0.0.1")._replace(body=body)  # type: ignore[index]


def whole_chain(
    make_chunks: Callable[[], List[Dict[str, Any]]], cut: Callable[[Sequence[bytes]], Sequence[bytes]]
) -> Callable[[], Work]:
    """From the upstream's bytes to the client's: all but the sockets, with a small request's share."""

    def make() -> Work:
        app, http = canned_app(make_chunks(), cut), messages_request(encoded({**small_request("hello"), "tools": [WRITE]}))

        def work() -> None:
            response = app.answer(http, Exchange())
            exhausted(map(encode_chunk, response.body))  # type: ignore[arg-type]

        return work

    return make


def small_answer() -> Work:
    """A small request from its head to the end of its short answer, without sockets."""
    app, body = canned_app(text_chunks()[:2] + text_chunks()[-1:], blocks), encoded(small_request("hello"))

    def work() -> None:
        http, exchange = messages_request(body), Exchange()
        app.check(http, exchange)
        exhausted(map(encode_chunk, app.answer(http, exchange).body))  # type: ignore[arg-type]
        app.finish(exchange, http, 200)

    return work


LARGE = encoded(large_request("hello"))


def large_parsed() -> Dict[str, Any]:
    return MESSAGES_DIALECT.decode_request(parse_json_object(LARGE))


def parsing() -> Work:
    return large_parsed


def converting() -> Work:
    request = large_parsed()
    return lambda: messages_to_chat(request, ChatOptions(), [])


def writing() -> Work:
    chat = messages_to_chat(large_parsed(), ChatOptions(), [])
    return lambda: encode_json(chat).encode("ascii")


def large_whole() -> Work:
    return lambda: encode_json(messages_to_chat(large_parsed(), ChatOptions(), [])).encode("ascii")


def estimating() -> Work:
    request = large_parsed()
    return lambda: count_input_tokens(request)


def pooling() -> Work:
    """With sockets that live, which are looked at before they are used again."""
    pool, target = Pool(), Target("http", "127.0.0.1", 9)
    ends = [socket.socketpair() for _ in range(8)]
    for ours, _ in ends:
        pool.give(UpstreamConnection(target, ours))

    def work() -> Tuple[Any, Any]:
        pool.give(pool.take(target))  # type: ignore[arg-type]
        return pool, ends  # which must outlive this

    return work


class SweptConnection:
    """A client that waits, as the sweeper sees it: nothing is to be done for it."""

    deadline = float("inf")

    def __init__(self, sock: socket.socket) -> None:
        self.exchange = Exchange()
        self.exchange.arm(600, "more of the upstream's answer")
        self.exchange.on_cancel(int)
        self._sock = sock

    def socket(self) -> socket.socket:
        return self._sock

    def expire(self) -> None:
        raise AssertionError("it is not late")

    def keep_alive(self, now: float) -> None:
        pass


def sweeping() -> Work:
    raise_file_limit(2 * SWEPT)
    ours, other = socket.socketpair()
    ours.setblocking(False)
    connections = [SweptConnection(ours.dup()) for _ in range(SWEPT)]
    inflight = Inflight(Log(io.StringIO(), "error"))

    def work() -> socket.socket:
        inflight.sweep(connections, time.monotonic())
        return other  # which must outlive this

    return work


def raise_file_limit(wanted: int) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))


PIECES: Tuple[Piece, ...] = (
    Piece(f"request head, {len(HEADERS) + 3} fields", request_head),
    Piece("upstream's response head, 5 fields", response_head),
    Piece("HTTP chunk off, one a piece", dechunking(list), CHUNKS),
    Piece("HTTP chunk off, 64 kB a piece", dechunking(blocks), CHUNKS),
    Piece("SSE frame cut, one a piece", framing(list), CHUNKS),
    Piece("SSE frame cut, 64 kB a piece", framing(blocks), CHUNKS),
    Piece("SSE frame -> event -> client's frame, text", retelling(text_chunks), CHUNKS),
    Piece("SSE frame -> event -> client's frame, tool arguments", retelling(tool_chunks), CHUNKS),
    Piece("client's frame of an event", encoding),
    Piece("grammar check, an event", grammar, CHUNKS),
    Piece("whole chain an event, text, one a piece", whole_chain(text_chunks, list), CHUNKS),
    Piece("whole chain an event, text, 64 kB a piece", whole_chain(text_chunks, blocks), CHUNKS),
    Piece("whole chain an event, tool arguments, 64 kB a piece", whole_chain(tool_chunks, blocks), CHUNKS),
    Piece("small request, head to end of a short answer", small_answer),
    Piece("141 kB request: parse and check", parsing),
    Piece("141 kB request: convert", converting),
    Piece("141 kB request: write JSON", writing),
    Piece("141 kB request: all three", large_whole),
    Piece("141 kB request: count tokens", estimating),
    Piece("pool: take and give back", pooling),
    Piece(f"sweep of {SWEPT} exchanges", sweeping),
)


def main(words: List[str]) -> int:
    print(f"Python {sys.version.split()[0]}, µs, best of {RUNS}\n\n| | µs |\n| --- | ---: |")
    for piece in PIECES:
        if not words or any(word in piece.name for word in words):
            cost = microseconds(piece.make(), piece.units)
            print(f"| {piece.name} | {cost:,.2f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
