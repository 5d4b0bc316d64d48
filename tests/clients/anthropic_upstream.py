"""A scripted Anthropic API, and taps that keep every byte on both sides of a relay.

The API's answers are decided by what it is asked, streamed or whole as it is asked. Its frames are
written here, in the API's own manner and by none of the proxy's code: no blanks in the JSON, padding
behind some objects, characters as they are.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import socket
import threading
from collections.abc import Iterable
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

from tests.clients.upstream import PlayingUpstream, cut
from tests.support import LAST, Received, Step, http_answer, http_chunk, read_request

Block = Dict[str, Any]
COUNTING = "/v1/messages/count_tokens"
# Claude Code takes answers with one id for parts of one answer.
MESSAGE_NUMBERS = itertools.count(1)
USAGE = {"input_tokens": 21, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 1000}
# What the API says beside an answer. The last is one that nobody has heard of.
ANSWER_FIELDS = (
    "request-id: req_011CScriptedRequest",
    "anthropic-organization-id: 00000000-1111-2222-3333-444444444444",
    "anthropic-ratelimit-unified-status: allowed",
    "x-unheard-of: kept",
)

# --- what is asked ------------------------------------------------------------------------------


class Asked:
    """A Messages request, as the plays read it."""

    def __init__(self, received: Received) -> None:
        self.received = received
        self.headers = received.headers
        self.body: Dict[str, Any] = received.json
        self.messages: List[Dict[str, Any]] = self.body["messages"]
        self.streaming = self.body.get("stream") is True

    @property
    def model(self) -> str:
        return self.body["model"]

    @property
    def from_agent(self) -> bool:
        return "x-claude-code-agent-id" in self.headers

    @property
    def roles(self) -> List[str]:
        return [message["role"] for message in self.messages]

    @property
    def tool_names(self) -> List[str]:
        return [tool["name"] for tool in self.body.get("tools", [])]

    @property
    def agent_tool(self) -> str:
        return next(name for name in ("Agent", "Task") if name in self.tool_names)

    def blocks(self, kind: str) -> List[Block]:
        """Every block of this type in the conversation, in order."""
        contents = (message["content"] for message in self.messages)
        return [
            block for content in contents if isinstance(content, list)
            for block in content if block["type"] == kind
        ]  # fmt: skip

    @property
    def results(self) -> List[str]:
        """What each tool result says, in order."""
        return [content_text(block["content"]) for block in self.blocks("tool_result")]

    @property
    def user_text(self) -> str:
        users = (message["content"] for message in self.messages if message["role"] == "user")
        return "\n".join(map(content_text, users))


def content_text(content: Any) -> str:
    return content if isinstance(content, str) else json.dumps(content)


Play = Callable[[Asked], List[Step]]


class PlayingApi(PlayingUpstream):
    """Answers each Messages request as its play decides; counts tokens by itself."""

    def __init__(self, play: Play) -> None:
        super().__init__(lambda chat: [])
        self._answer = play
        self.counts = True  # or it does not know how

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def asked(self) -> List[Asked]:
        return [Asked(received) for received in self.requests if COUNTING not in received.line]

    def _script(self, received: Received) -> List[Step]:
        if COUNTING in received.line:
            counted = api_json(200, {"input_tokens": 12})
            return counted if self.counts else api_error(404, "there is no such path")
        try:
            return self._answer(Asked(received))
        except Exception as error:
            self.mistakes.append(f"{received.line}: {error!r}")
            return api_error(400, "the play has no answer to this")


# --- blocks -------------------------------------------------------------------------------------


def text(words: str, **more: Any) -> Block:
    return {"type": "text", "text": words, **more}


def thinking(thought: str, signature: str) -> Block:
    return {"type": "thinking", "thinking": thought, "signature": signature}


def tool_use(call_id: str, name: str, kind: str = "tool_use", **arguments: Any) -> Block:
    return {"type": kind, "id": call_id, "name": name, "input": arguments}


def block_start(block: Block) -> Block:
    """The block as its first event has it: what comes in deltas is empty."""
    kind = block["type"]
    empty: Dict[str, Block] = {
        "text": {"text": ""},
        "thinking": {"thinking": "", "signature": ""},
        "tool_use": {"input": {}},
        "server_tool_use": {"input": {}},
    }
    kept = {name: value for name, value in block.items() if name != "citations"}
    return {**kept, **empty.get(kind, {})}


def block_deltas(block: Block) -> List[Block]:
    kind = block["type"]
    if kind == "text":
        cited = [{"type": "citations_delta", "citation": one} for one in block.get("citations", [])]
        return [*cited, *({"type": "text_delta", "text": piece} for piece in cut(block["text"], 3))]
    if kind == "thinking":
        pieces = cut(block["thinking"], 2)
        thoughts = [{"type": "thinking_delta", "thinking": piece} for piece in pieces]
        return [*thoughts, {"type": "signature_delta", "signature": block["signature"]}]
    if kind in ("tool_use", "server_tool_use"):
        pieces = ["", *cut(api_text(block["input"]), 4)]
        return [{"type": "input_json_delta", "partial_json": piece} for piece in pieces]
    return []


# --- answers ------------------------------------------------------------------------------------


def api_text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def frame(kind: str, padding: int = 0, **members: Any) -> bytes:
    """One event; the API pads some of them with blanks before the last brace."""
    data = api_text({"type": kind, **members})
    return f"event: {kind}\ndata: {data[:-1]}{' ' * padding}}}\n\n".encode()


def message_frames(message: Dict[str, Any]) -> List[bytes]:
    """The frames of a whole message, with a ping and an event that is not known yet."""
    first = {**message, "content": [], "stop_reason": None}
    frames = [frame("message_start", 7, message=first), frame("ping", 3), b": a comment\n\n"]
    for index, block in enumerate(message["content"]):
        start = block_start(block)
        frames.append(frame("content_block_start", 5, index=index, content_block=start))
        frames += [frame("content_block_delta", index=index, delta=d) for d in block_deltas(block)]
        frames.append(frame("content_block_stop", 9, index=index))
    frames.append(frame("not_known_yet", 2, number=1.50, much=10**30, text="\u00e9\u20ac\U0001f600"))
    ending = {"stop_reason": message["stop_reason"], "stop_sequence": None}
    frames.append(frame("message_delta", 4, delta=ending, usage=message["usage"]))
    return [*frames, frame("message_stop", 12)]


def message_of(asked: Asked, blocks: Iterable[Block], **more: Any) -> Dict[str, Any]:
    content = list(blocks)
    calls = any(block["type"] == "tool_use" for block in content)
    return {
        "model": asked.model, "id": f"msg_01Scripted{next(MESSAGE_NUMBERS):06}", "type": "message", "role": "assistant",
        "content": content, "stop_reason": "tool_use" if calls else "end_turn",
        "stop_sequence": None, "usage": {**USAGE, "output_tokens": 33}, **more,
    }  # fmt: skip


def answer(asked: Asked, *blocks: Block, **more: Any) -> List[Step]:
    """The blocks as a message: a stream if that is what was asked for."""
    message = message_of(asked, blocks, **more)
    if not asked.streaming:
        return api_json(200, message)
    return stream(message_frames(message))


def say(asked: Asked, words: str) -> List[Step]:
    return answer(asked, text(words))


def run_command(asked: Asked, call_id: str, command: str) -> List[Step]:
    return answer(asked, tool_use(call_id, "Bash", command=command))


def stream(frames: Iterable[bytes], *ending: Step) -> List[Step]:
    """Frames as a stream; with `ending` it goes on with that in place of its proper end."""
    fields = ("content-type: text/event-stream; charset=utf-8", "transfer-encoding: chunked")
    head = "\r\n".join(("HTTP/1.1 200 OK", *fields, "cache-control: no-cache", *ANSWER_FIELDS))
    chunks = [http_chunk(one) for one in frames]
    return [head.encode() + b"\r\n\r\n", *chunks, *(ending or (LAST,))]


def api_json(status: int, data: Any, *fields: str) -> List[Step]:
    body = api_text(data).encode()
    named = {field.partition(":")[0] for field in fields}
    usual = [field for field in ANSWER_FIELDS if field.partition(":")[0] not in named]
    return http_answer(status, body, "content-type: application/json", *usual, *fields)


ERROR_TYPES = {
    400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error",
    429: "rate_limit_error",
    500: "api_error", 529: "overloaded_error",
}  # fmt: skip


def error_data(kind: str, message: str) -> Dict[str, Any]:
    told = {"details": None, "type": kind, "message": message}
    return {"type": "error", "error": told, "request_id": "req_011CScriptedRequest"}


def api_error(status: int, message: str, *fields: str) -> List[Step]:
    return api_json(status, error_data(ERROR_TYPES[status], message), *fields)


# --- taps ---------------------------------------------------------------------------------------


class Told(NamedTuple):
    """One request and its answer, as they were on one side. A body has no chunks any more."""

    request: Received
    status: int
    headers: Dict[str, str]
    body: bytes
    whole: bool

    @property
    def digests(self) -> Tuple[str, str, bool]:
        """SHA-256 of the request's body and of the answer's, and whether that came to its end."""
        digests = [hashlib.sha256(data).hexdigest() for data in (self.request.body, self.body)]
        return (digests[0], digests[1], self.whole)


class Tap:
    """Stands before a server, passes every byte on as it is, and keeps it."""

    def __init__(self, url: str) -> None:
        self._target = int(url.rpartition(":")[2])
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._kept: List[Tuple[bytearray, bytearray]] = []
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Tap:
        return self

    def __exit__(self, *exc: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                threading.Thread(target=self._join, args=(near,), daemon=True).start()

    def _join(self, near: socket.socket) -> None:
        with near, contextlib.suppress(OSError):
            with socket.create_connection(("127.0.0.1", self._target)) as far:
                kept = (bytearray(), bytearray())
                self._kept.append(kept)
                there = threading.Thread(target=pump, args=(near, far, kept[0]), daemon=True)
                there.start()
                pump(far, near, kept[1])
                there.join()

    @property
    def told(self) -> List[Told]:
        """All requests of Messages and their answers; those of one connection in their order."""
        kept = [(bytes(there), bytes(back)) for there, back in list(self._kept)]
        found = [one for there, back in kept for one in read_exchanges(there, back)]
        return [one for one in found if "/v1/messages" in one.request.line]


def pump(source: socket.socket, target: socket.socket, kept: bytearray) -> None:
    """Pass on until the end, and the end too."""
    with contextlib.suppress(OSError):
        while True:
            data = source.recv(65536)
            if not data:
                break
            kept += data
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def read_exchanges(there: bytes, back: bytes) -> List[Told]:
    """The requests and answers of one connection."""
    requests, answers, found = io.BytesIO(there), io.BytesIO(back), []
    while True:
        request = read_request(requests)
        told = request and read_answer(request, answers)
        if not told:
            return found
        found.append(told)


def read_answer(request: Received, answers: io.BytesIO) -> Optional[Told]:
    line = answers.readline()
    if not line:
        return None
    headers: Dict[str, str] = {}
    for field in iter(answers.readline, b"\r\n"):
        if not field:
            return None
        name, _, value = field.decode("latin-1").partition(":")
        headers[name.strip().lower()] = value.strip()
    body, whole = read_answer_body(request, headers, answers)
    return Told(request, int(line.split()[1]), headers, body, whole)


def read_answer_body(
    request: Received, headers: Dict[str, str], answers: io.BytesIO
) -> Tuple[bytes, bool]:
    """(the body, whether it is whole)"""
    if request.line.startswith("HEAD "):
        return b"", True
    if headers.get("transfer-encoding") != "chunked":
        length = int(headers["content-length"])
        body = answers.read(length)
        return body, len(body) == length
    parts: List[bytes] = []
    while True:
        size = answers.readline()
        if not size.endswith(b"\r\n"):
            return b"".join(parts), False
        data = answers.read(int(size, 16) + 2)
        if size.strip() == b"0":
            return b"".join(parts), True
        parts.append(data[:-2])
