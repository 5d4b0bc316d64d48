"""Chat Completions answers -> Messages events. Pure: no I/O, no clock.

    bytes --chat_chunks--> chunks --chunks_to_events--> events

Providers agree on little more than the names of the fields, so every chunk is taken for what it
holds: text, reasoning, refusal, pieces of tool calls, a finish reason, usage, an error; anything
else is passed over (`ChatAnswer`).

Nothing is yielded before the first chunk that means something, so that an error until then can
still be a status. A stream that ends before its finish reason is an error and leaves its block
open: the client would take a closed one for whole.
"""

from __future__ import annotations

import itertools
import json
import string
from collections.abc import Iterable, Iterator
from typing import Any, Dict, Optional, Tuple

from claude_proxy.dialects.chat_answer import ChatAnswer, ChatAsked
from claude_proxy.errors import ProxyError, upstream_error, upstream_error_object
from claude_proxy.events import CUT_SHORT, Event, EventWriter
from claude_proxy.sse import SSE_BOM, FrameSplitter, frame_data

CHAT_DONE: Dict[str, Any] = {"done": True}

# json.loads would guess the encoding of each chunk anew.
CHUNK_DECODER = json.JSONDecoder()
NOT_JSON = "the upstream sent an event that is not JSON"
LARGEST_JSON_BODY = 64 * 1024 * 1024
# First byte of a body -> what it is, whatever its content type says. No field of an event stream
# begins with a capital or a digit: that is a sentence.
BODY_KINDS = {
    **{letter.encode(): "page" for letter in string.ascii_uppercase + string.digits},
    **{b"{": "json", b"[": "json", b"<": "page", b'"': "page"},
}


# --- bytes -> chunks ---------------------------------------------------------------------------


def chat_chunks(pieces: Iterable[bytes]) -> Iterator[Dict[str, Any]]:
    """Decode an answer's body: JSON chunks in events, or one JSON object although a stream was
    asked for. `[DONE]` becomes CHAT_DONE and ends it."""
    rest = iter(pieces)
    kind, start = body_start(rest)
    if kind == "events":
        yield from event_chunks(itertools.chain([start], rest))
        return
    whole = whole_body(itertools.chain([start], rest))
    if kind == "page":
        raise upstream_error(502, {}, whole)
    chunk = decode_chunk(whole)
    if chunk is None or "choices" not in chunk:
        raise upstream_error_object(chunk)
    yield chunk
    yield CHAT_DONE


def body_start(pieces: Iterator[bytes]) -> Tuple[str, bytes]:
    """(what the body is, its beginning without blanks and byte order mark)."""
    start = b""
    for piece in pieces:
        start = (start + piece).lstrip()
        if start.startswith(SSE_BOM):
            start = start[len(SSE_BOM) :].lstrip()
        if start and not SSE_BOM.startswith(start):
            return BODY_KINDS.get(start[:1], "events"), start
    return "events", start


def whole_body(pieces: Iterable[bytes]) -> bytes:
    whole = bytearray()
    for piece in pieces:
        whole += piece
        if len(whole) > LARGEST_JSON_BODY:
            raise ProxyError(502, "the upstream's answer is larger than any model's")
    return bytes(whole)


def event_chunks(pieces: Iterable[bytes]) -> Iterator[Dict[str, Any]]:
    """The chunks of an event stream, up to its `[DONE]`."""
    splitter = FrameSplitter()
    for piece in pieces:
        for frame in splitter.feed(piece):
            chunk = frame_to_chunk(frame)
            if chunk is not None:
                yield chunk
                if chunk is CHAT_DONE:
                    return
    for frame in splitter.finish():
        chunk = last_chunk(frame)
        if chunk is not None:
            yield chunk


def frame_to_chunk(frame: bytes) -> Optional[Dict[str, Any]]:
    """The chunk in a frame; None for comments and for JSON that is no object."""
    event, data = frame_data(frame)
    if data[:1] == b"{" and not event:  # the common case
        return decode_chunk(data)
    if not data.strip():
        return None
    if data.strip() == b"[DONE]":
        return CHAT_DONE
    if event == "error":
        raise upstream_error_object(loads_or_text(data))
    if event in ("", "message") or data[:1] in b"{[":
        return decode_chunk(data)
    return None  # of another name and not JSON: a sign of life


def last_chunk(frame: bytes) -> Optional[Dict[str, Any]]:
    """The chunk in what stands behind the last blank line: if that is not JSON, it was cut."""
    try:
        return frame_to_chunk(frame)
    except ProxyError as error:
        raise ProxyError(502, CUT_SHORT) if error.message == NOT_JSON else error from None


def loads_or_text(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return {"error": data.decode("utf-8", "replace")}


def decode_chunk(data: bytes) -> Optional[Dict[str, Any]]:
    try:
        chunk = CHUNK_DECODER.decode(str(data, "utf-8"))
    except (ValueError, RecursionError):
        raise ProxyError(502, NOT_JSON) from None
    if type(chunk) is dict:
        return chunk
    if isinstance(chunk, list) and chunk and isinstance(chunk[0], dict):
        chunk = chunk[0]  # Gemini wraps its errors in a list
    return chunk if isinstance(chunk, dict) else None


# --- chunks -> events --------------------------------------------------------------------------


def chunks_to_events(
    chunks: Iterable[Dict[str, Any]],
    write: EventWriter,
    asked: ChatAsked = ChatAsked(),
) -> Iterator[Event]:
    """Retell Chat Completions chunks as Messages events.

    ProxyError at an error chunk, and if the chunks end before a finish reason or CHAT_DONE.
    """
    answer = ChatAnswer(write, asked)
    try:
        for chunk in chunks:
            if chunk is CHAT_DONE:
                answer.done = True
                break
            yield from answer.chunk(chunk)
            if answer.stopped:
                break
    except ProxyError as error:
        # Behind the finish reason there is nothing that a broken connection could take away.
        if error.message != CUT_SHORT or not answer.finished:
            raise
    except RecursionError:
        raise ProxyError(502, "the upstream sent an event that is nested too deeply") from None
    yield from answer.finish()
