"""The body of a Chat Completions answer -> its chunks. Pure: no I/O.

The content type says little: an error, a whole completion or a web page may come where a stream was
asked for, so the first byte decides.
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterable, Iterator
from typing import Any, Dict, Optional, Tuple

from claude_proxy.errors import ProxyError, upstream_error_object
from claude_proxy.events import CUT_SHORT, LARGEST_KEPT, TOO_LARGE
from claude_proxy.sse import SSE_BOM, FrameSplitter, frame_data

CHAT_DONE: Dict[str, Any] = {"done": True}

# json.loads would guess the encoding of each chunk anew.
CHUNK_DECODER = json.JSONDecoder()
NOT_JSON = "the upstream sent an event that is not JSON"
# First byte of a body -> what it is, whatever its content type says. No field of an event stream
# begins with a capital or a digit: that is a sentence.
BODY_KINDS = {
    **{letter.encode(): "page" for letter in string.ascii_uppercase + string.digits},
    **{b"{": "json", b"[": "json", b"<": "page", b'"': "page"},
}


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
        if len(whole) > LARGEST_KEPT:
            raise ProxyError(502, TOO_LARGE)
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
        # `decode` looks for blanks on both sides with patterns, which takes longer.
        text = str(data, "utf-8").strip()
        chunk, end = CHUNK_DECODER.raw_decode(text)
        if end != len(text):
            raise ValueError(end)
    except (ValueError, RecursionError):
        raise ProxyError(502, NOT_JSON) from None
    if type(chunk) is dict:
        return chunk
    if isinstance(chunk, list) and chunk and isinstance(chunk[0], dict):
        chunk = chunk[0]  # Gemini wraps its errors in a list
    return chunk if isinstance(chunk, dict) else None
