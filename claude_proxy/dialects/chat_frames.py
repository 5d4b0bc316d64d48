"""The body of a Chat Completions answer -> its chunks. Pure: no I/O.

The content type says little: an error, a whole completion or a web page may come where a stream was
asked for, so the first byte decides.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Iterable, Iterator
from json.decoder import scanstring
from typing import Any, Dict, Optional, Tuple

from claude_proxy.errors import ProxyError, upstream_error_object
from claude_proxy.events import CUT_SHORT, LARGEST_KEPT, TOO_LARGE
from claude_proxy.sse import SSE_BOM, FrameSplitter, frame_data

CHAT_DONE: Dict[str, Any] = {"done": True}

# json.loads would guess the encoding of each chunk anew, and `decode` look for blanks around it
# with patterns, which takes longer.
scan_json = json.JSONDecoder().scan_once
NOT_JSON = "the upstream sent an event that is not JSON"
DONE_FRAME = b"data: [DONE]"
# A number is looked for in bytes in a fifth of the time of another bytes.
LF, CR = b"\n\r"
# So many patterns are learned from one answer at most, and none of its first frames: the answer may
# be over before that pays.
MOST_TEMPLATES = 16
FIRST_FRAMES = 2
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
    splitter, template = FrameSplitter(), ChunkTemplate()
    for piece in pieces:
        for frame in splitter.feed(piece):
            chunk = template.read(frame)
            if chunk is None:
                chunk = frame_to_chunk(frame)
                template.learn(frame, chunk)
            if chunk is not None:
                yield chunk
                if chunk is CHAT_DONE:
                    return
    for frame in splitter.finish():
        chunk = last_chunk(frame)
        if chunk is not None:
            yield chunk


# What is before a text never is.
NEVER_BEFORE = b"never"


class TextChunk(Dict[str, Any]):
    """A chunk that comes again and again, each time with another text in `place[member]`."""

    __slots__ = ("member", "place")

    place: Dict[str, Any]
    member: str


class ChunkTemplate:
    """Chunks that differ in one text alone, as nearly all of a stream do.

    From one of them what stands before and behind the text is learned; of the next ones only the
    text is read. Equal bytes around a JSON string are equal JSON around it, so that nothing is
    guessed, and what does not fit is decoded as ever. What `read` gives is the same object each
    time, with another text in it.
    """

    def __init__(self) -> None:
        self._before = NEVER_BEFORE
        self._after = ""
        self._start = 0
        self._chunk = TextChunk()
        self._tries = MOST_TEMPLATES
        self._skips = FIRST_FRAMES

    def read(self, frame: bytes) -> Optional[TextChunk]:
        """The chunk of a frame that fits; None of any other."""
        start = self._start
        if frame[:start] != self._before:
            return None
        try:
            rest = frame[start:].decode()
            text, stop = scanstring(rest, 0, True)
        except ValueError:
            return None
        if rest[stop:] != self._after:
            return None
        chunk = self._chunk
        chunk.place[chunk.member] = text
        self._tries = MOST_TEMPLATES
        return chunk

    def learn(self, frame: bytes, chunk: Optional[Dict[str, Any]]) -> None:
        """From now on this frame's is the pattern. Some providers put something new into each
        chunk, so that there is nothing to learn: then it is given up."""
        if self._skips:
            self._skips -= 1
            return
        place, member = text_place(chunk) if chunk and self._tries else (None, "")
        if place is None or not is_one_line(frame):
            return
        self._tries -= 1
        before, after = around_text(frame, member, place[member])
        if not before:
            return
        try:
            again = decode_chunk(before[len(b"data: ") :] + b'~"' + after)
        except ProxyError:
            return
        found, _ = text_place(again or {})
        if again is None or found is None or found[member] != "~":
            return
        found[member] = place[member]
        if again == chunk:
            self._before, self._start, self._after = before, len(before), after.decode()
            self._chunk = TextChunk(again)
            self._chunk.place, self._chunk.member = found, member


def text_place(chunk: Dict[str, Any]) -> Tuple[Optional[Dict[str, Any]], str]:
    """(the object in which a chunk has its text, its name there); (None, "") if it has none."""
    choices = chunk.get("choices")
    choice = choices[0] if isinstance(choices, list) and len(choices) == 1 else None
    delta = choice.get("delta") if isinstance(choice, dict) else None
    if not delta or not isinstance(delta, dict):
        return None, ""
    calls = delta.get("tool_calls")
    call = calls[0] if isinstance(calls, list) and len(calls) == 1 else None
    function = call.get("function") if isinstance(call, dict) else None
    if isinstance(function, dict) and isinstance(function.get("arguments"), str):
        return function, "arguments"
    named = ("content", "reasoning_content", "reasoning")
    member = next((name for name in named if isinstance(delta.get(name), str) and delta[name]), "")
    return (delta, member) if member else (None, "")


def around_text(frame: bytes, member: str, text: str) -> Tuple[bytes, bytes]:
    """What stands before this member's text, up to its quote, and what behind the second quote;
    b"" if it is not found."""
    whole = str(frame, "utf-8")
    match = re.search(rf'"{member}"\s*:\s*"', whole)
    found, stop = scanstring(whole, match.end(), True) if match else ("", 0)
    if match is None or found != text:
        return b"", b""
    return whole[: match.end()].encode(), whole[stop:].encode()


def is_one_line(frame: bytes) -> bool:
    """Whether a frame is one line of JSON and nothing else, as nearly all are."""
    return frame.startswith(b"data: {") and LF not in frame and CR not in frame


def frame_to_chunk(frame: bytes) -> Optional[Dict[str, Any]]:
    """The chunk in a frame; None for comments and for JSON that is no object."""
    if is_one_line(frame):
        return decode_chunk(frame[len(b"data: ") :])
    if frame == DONE_FRAME:
        return CHAT_DONE
    event, data = frame_data(frame)
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
        text = data.decode().strip()
        chunk, end = scan_json(text, 0)
        if end != len(text):
            raise ValueError(end)
    except (ValueError, RecursionError, StopIteration):
        raise ProxyError(502, NOT_JSON) from None
    if type(chunk) is dict:
        return chunk
    if isinstance(chunk, list) and chunk and isinstance(chunk[0], dict):
        chunk = chunk[0]  # Gemini wraps its errors in a list
    return chunk if isinstance(chunk, dict) else None
