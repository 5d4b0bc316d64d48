"""Server-sent events: pieces of bytes -> frames -> data, and events -> frames. No I/O.

Bytes are split before they are decoded, so a character or a line end that is cut between two
pieces is whole again before anybody looks at it. Lines may end LF, CRLF or CR, as the standard
(WHATWG HTML, 9.2.6) has it; a comment is a frame without data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from json.encoder import encode_basestring_ascii
from typing import Any, Callable, Dict, List, Tuple

from claude_proxy.errors import ProxyError
from claude_proxy.patterns import LazyPattern

LARGEST_FRAME = 8 * 1024 * 1024

# Two line ends in a row. A CR that an LF follows is one line end, never two.
SSE_BLANK_LINE = LazyPattern(rb"\r\n(?:\r\n|\n|\r)|\n(?:\r\n|\n|\r)|\r(?!\n)(?:\r\n|\r)")
SSE_LINE_END = LazyPattern(rb"\r\n|\n|\r")
SSE_BOM = b"\xef\xbb\xbf"

# One encoder for all: json.dumps with arguments builds a new one at each call. What is told has
# been read from JSON, so nothing holds itself, and nobody has to look. ASCII output keeps half an
# emoji in a delta legal, and is the C encoder's fast path.
encode_json = json.JSONEncoder(check_circular=False, separators=(",", ":")).encode


class FrameSplitter:
    """Cuts a stream of pieces into whole frames, whatever the pieces' borders are."""

    def __init__(self) -> None:
        self._rest = b""
        self._more: List[bytes] = []  # behind `_rest`, and without a blank line
        self._size = 0
        self._at_start = True

    def feed(self, piece: bytes) -> List[bytes]:
        """Return the frames that this piece completes, without the blank line behind them."""
        if self._rest and self._goes_on(piece):
            return []
        data = b"".join((self._rest, *self._more, piece)) if self._rest else piece
        if self._at_start:
            data = self._without_bom(data)
        if b"\r" in data:
            *frames, self._rest = SSE_BLANK_LINE.split(data)
        else:
            *frames, self._rest = data.split(b"\n\n")
        self._more, self._size = [], len(self._rest)
        # What stands in front of a frame is more blank lines, or an LF whose CR came with the last.
        return [frame for frame in (each.lstrip(b"\r\n") for each in frames) if frame]

    def _goes_on(self, piece: bytes) -> bool:
        """Whether a frame that has begun goes on beyond this piece: then it is put aside, so that a
        large frame in small pieces is not copied for each of them."""
        last = self._more[-1] if self._more else self._rest
        if self._at_start or len(last) < 4 or SSE_BLANK_LINE.search(last[-4:] + piece):
            return False
        self._more.append(piece)
        self._size += len(piece)
        if self._size > LARGEST_FRAME:
            raise ProxyError(502, f"the upstream sent an event of more than {LARGEST_FRAME} bytes")
        return True

    def finish(self) -> List[bytes]:
        """Return what stands after the last blank line: some servers leave the last one out."""
        rest, self._rest = b"".join((self._rest, *self._more)), b""
        self._more = []
        return [rest.strip(b"\r\n")] if rest.strip() else []

    def _without_bom(self, data: bytes) -> bytes:
        if len(data) < len(SSE_BOM) and SSE_BOM.startswith(data):
            return data
        self._at_start = False
        return data[len(SSE_BOM):] if data.startswith(SSE_BOM) else data


def frame_data(frame: bytes) -> Tuple[str, bytes]:
    """Return (event name or "", data) of a frame; several data lines are joined with LF."""
    if frame.startswith(b"data: ") and b"\n" not in frame and b"\r" not in frame:
        return "", frame[6:]
    event, data = "", []
    for line in SSE_LINE_END.split(frame):
        name, _, value = line.partition(b":")
        value = value[1:] if value.startswith(b" ") else value
        if name == b"data":
            data.append(value)
        elif name in (b"event", b"error"):
            # llama.cpp writes "error: {...}" as a field of its own.
            event = value.decode("utf-8", "replace") if name == b"event" else "error"
            data += [value] if name == b"error" else []
    return event, b"\n".join(data)


# What nearly all of a stream consists of: type of the delta -> its one other member, a text.
TEXT_DELTAS = {"text_delta": "text", "input_json_delta": "partial_json",
               "thinking_delta": "thinking"}  # fmt: skip
EMPTY_TEXT = {"type": "text", "text": ""}


def encode_event(event: Mapping[str, Any]) -> bytes:
    """One Messages event as a frame; Claude Code parses nothing without the `event:` line."""
    kind = event["type"]
    encode = QUICK_EVENTS.get(kind) if type(kind) is str else None
    return (encode and encode(event)) or encode_any_event(event)


def encode_text_delta(event: Mapping[str, Any]) -> bytes:
    """The same bytes in a third of the time for a delta that is one text; b"" for any other."""
    index, delta = event.get("index"), event.get("delta")
    if type(index) is not int or type(delta) is not dict or len(event) != 3 or len(delta) != 2:
        return b""
    kind = delta.get("type")
    member = TEXT_DELTAS.get(kind) if type(kind) is str else None
    text = delta.get(member)
    if type(text) is not str:
        return b""
    return (
        f'event: content_block_delta\ndata: {{"type":"content_block_delta","index":{index},'
        f'"delta":{{"type":"{kind}","{member}":{encode_basestring_ascii(text)}}}}}\n\n'
    ).encode()


def encode_text_start(event: Mapping[str, Any]) -> bytes:
    """The same for the beginning of a text."""
    index = event.get("index")
    if type(index) is not int or len(event) != 3 or event.get("content_block") != EMPTY_TEXT:
        return b""
    return (
        f'event: content_block_start\ndata: {{"type":"content_block_start","index":{index},'
        f'"content_block":{{"type":"text","text":""}}}}\n\n'
    ).encode()


def encode_block_stop(event: Mapping[str, Any]) -> bytes:
    index = event.get("index")
    if type(index) is not int or len(event) != 2:
        return b""
    text = f'event: content_block_stop\ndata: {{"type":"content_block_stop","index":{index}}}\n\n'
    return text.encode()


def encode_stop(event: Mapping[str, Any]) -> bytes:
    return b'event: message_stop\ndata: {"type":"message_stop"}\n\n' if len(event) == 1 else b""


def encode_any_event(event: Mapping[str, Any]) -> bytes:
    return f"event: {event['type']}\ndata: {encode_json(event)}\n\n".encode("ascii")


# Type of an event -> what writes it in a hurry if it is as most of them are.
QUICK_EVENTS: Dict[str, Callable[[Mapping[str, Any]], bytes]] = {
    "content_block_delta": encode_text_delta,
    "content_block_start": encode_text_start,
    "content_block_stop": encode_block_stop,
    "message_stop": encode_stop,
}
