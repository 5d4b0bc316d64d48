"""Passing an exchange on as it came: which headers travel, and what is seen on the way. Pure.

Nothing in a body is changed here and nothing is looked at twice. `RelayWatch` sees the pieces of a
stream go by and reads the few frames that tell usage; if it cannot, the stream goes on without it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Callable, Dict, List, Optional, Set, Tuple

from claude_proxy.agents import CallListener
from claude_proxy.errors import ProxyError
from claude_proxy.events import Event
from claude_proxy.exchange import Exchange
from claude_proxy.http1 import HTTP_UNSAFE
from claude_proxy.json_edit import read_members
from claude_proxy.names import plain_word
from claude_proxy.patterns import LazyPattern
from claude_proxy.sse import FrameSplitter, frame_data

HeaderList = Tuple[Tuple[str, str], ...]

# RFC 9110, 7.6.1, and what a connection's two ends settle between themselves.
HOP_HEADERS = frozenset((
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection",
    "te", "trailer", "transfer-encoding", "upgrade", "host", "content-length", "expect",
))  # fmt: skip
# Ours: the answer has to be readable on the way.
OWN_REQUEST_HEADERS = HOP_HEADERS | {"accept-encoding", "x-proxy-notes"}
CREDENTIAL_HEADERS = frozenset(("authorization", "x-api-key", "cookie"))
# Which pages may read an answer is for this proxy's settings to say.
CORS_HEADERS = frozenset(
    f"access-control-{what}" for what in (
        "allow-origin", "allow-credentials", "allow-methods", "allow-headers",
        "allow-private-network", "expose-headers", "max-age",
    )
)  # fmt: skip
DROPPED_RESPONSE_HEADERS = HOP_HEADERS | CORS_HEADERS | {"set-cookie"}

HEADER_TOKEN = LazyPattern(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")

# Frames with these words tell of usage or of the end; all others pass unread. Inside of a JSON text
# quotes have a backslash in front, so what a model says never looks like one of them.
ERROR_MARK = b'"error"'
TELLING_WORDS = (b'"usage"', b'"stop_reason"', ERROR_MARK)
PAGE_TYPES = ("text/html", "text/plain")
FRAME_ENDS = (b"\n\n", b"\n\r\n")
LONGEST_HELD = 65536


def connection_named(headers: Mapping[str, str]) -> Set[str]:
    """The headers that a Connection header says are for this hop alone."""
    return {name.strip().lower() for name in headers.get("connection", "").split(",")}


def relayed_request_headers(headers: Mapping[str, str]) -> HeaderList:
    """A client's headers without those of the hop, and without its credentials."""
    dropped = OWN_REQUEST_HEADERS | CREDENTIAL_HEADERS | connection_named(headers)
    return tuple((name, value) for name, value in headers.items() if name not in dropped)


def relayed_response_headers(headers: Mapping[str, str]) -> HeaderList:
    """An upstream's headers without those of the hop, and without what is no header."""
    dropped = DROPPED_RESPONSE_HEADERS | connection_named(headers)
    return tuple(
        (name, HTTP_UNSAFE.sub(" ", value))
        for name, value in headers.items()
        if name not in dropped and HEADER_TOKEN.fullmatch(name)
    )


def cleaned_headers(headers: HeaderList, clean: Callable[[bytes], bytes]) -> HeaderList:
    return tuple((n, clean(value.encode("latin-1")).decode("latin-1")) for n, value in headers)


def may_quote(body: bytes, headers: Mapping[str, str]) -> bool:
    """Whether an answer that is told as a success may quote a credential: it speaks of an error, or
    it is a page of something in between."""
    kind = headers.get("content-type", "").lower()
    return ERROR_MARK in body or not kind or kind.startswith(PAGE_TYPES)


def client_credentials(headers: Mapping[str, str], is_ours: Callable[[str], bool]) -> HeaderList:
    """The client's credential headers that are meant for the upstream: none that opens this
    proxy."""
    kept = []
    for name in ("x-api-key", "authorization"):
        value = headers.get(name, "")
        bare = value.partition(" ")[2].strip() if name == "authorization" else value
        if value and not is_ours(bare) and not is_ours(value):
            kept.append((name, value))
    return tuple(kept)


def is_event_stream(headers: Mapping[str, str]) -> bool:
    return "text/event-stream" in headers.get("content-type", "").lower()


def end_of_frames(piece: bytes) -> int:
    """Where the last whole frame of a piece ends; 0 if none does."""
    ends = [at + len(end) for at, end in ((piece.rfind(end), end) for end in FRAME_ENDS) if at >= 0]
    return max(ends, default=0)


class RelayWatch:
    """Sees the pieces of a stream go by and tells the exchange what logs need."""

    def __init__(self, exchange: Exchange, listener: Optional[CallListener] = None) -> None:
        self._exchange = exchange
        self._listener = listener
        self._splitter: Optional[FrameSplitter] = FrameSplitter()
        self._held: List[bytes] = []  # the beginning of a frame
        self._held_bytes = 0
        self._long_frames = False

    def see(self, piece: bytes) -> None:
        """Never raises: what cannot be read is nobody's business here.

        Frames are taken apart only where something may be told in them; one that is cut between
        two pieces is looked at when it is whole.
        """
        if self._exchange.first_event is None:
            self._exchange.first_event = self._exchange.clock()
        end = len(piece) if piece.endswith(FRAME_ENDS) else end_of_frames(piece)
        if self._long_frames or not end:
            self._hold(piece)
            return
        frames = piece[:end]
        if self._held:
            frames = b"".join((*self._held, frames))
        self._held = [piece[end:]] if end < len(piece) else []
        self._held_bytes = 0
        if self._concerns(frames):
            self._take_apart(frames)

    def end(self) -> None:
        """Read what stands behind the last blank line."""
        self._take_apart(b"".join((*self._held, b"\n\n")))

    def _hold(self, piece: bytes) -> None:
        """Wait for a frame's end. Where none is found for long, the splitter looks for it alone."""
        self._held.append(piece)
        self._held_bytes += len(piece)
        if self._long_frames or self._held_bytes > LONGEST_HELD:
            self._long_frames = True
            self._take_apart(b"".join(self._held))
            self._held = []

    def _take_apart(self, data: bytes) -> None:
        if self._splitter is None:
            return
        try:
            frames = self._splitter.feed(data)
        except ProxyError:
            self._splitter = None  # an event too large to be held
            return
        for frame in frames:
            if self._concerns(frame):
                self._read(frame)

    def _concerns(self, data: bytes) -> bool:
        """Whether there may be something here that somebody wants to know."""
        usage, stop_reason, error = TELLING_WORDS
        if usage in data or stop_reason in data or error in data:
            return True
        # Somebody listens for calls of agents, and this may be one.
        listener = self._listener
        return listener is not None and (listener.listening or b'"tool_use"' in data)

    def _read(self, frame: bytes) -> None:
        event = read_members(frame_data(frame)[1])
        if event is None:
            return
        if event.get("type") == "error":
            self._exchange.facts["error"] = error_word(event)
        elif event.get("type") in ("message_start", "message_delta"):
            self._exchange.note_usage(told_event(event))
        elif self._listener is not None and isinstance(event.get("index"), int):
            self._listener.hear(event)


def as_members(value: Any) -> Dict[str, Any]:
    return value if isinstance(value, dict) else {}


def told_event(event: Mapping[str, Any]) -> Event:
    """What an event tells of usage and of the end, whatever else its members are."""
    message = as_members(event.get("message"))
    usage = as_members(event.get("usage")) or as_members(message.get("usage"))
    return {"usage": usage, "delta": as_members(event.get("delta"))}


def error_word(event: Mapping[str, Any]) -> str:
    return plain_word(as_members(event.get("error")).get("type")) or "error"


def note_whole_answer(
    exchange: Exchange, body: bytes, listener: Optional[CallListener] = None
) -> None:
    """Read usage, stop reason and calls of agents of a message that came whole."""
    message = read_members(body)
    if message is not None and message.get("type") == "message":
        exchange.note_usage(told_event({"message": message, "delta": message}))
        if listener is not None:
            listener.hear_message(message)


# --- frames -> events ----------------------------------------------------------------------------


def frames_to_events(pieces: Iterable[bytes]) -> Iterator[Event]:
    """The events of an Anthropic stream; ProxyError at an error event.

    Frames without data, and data that is no JSON object, are passed over.
    """
    splitter = FrameSplitter()
    for piece in pieces:
        for frame in splitter.feed(piece):
            yield from frame_events(frame)
    for frame in splitter.finish():
        yield from frame_events(frame)


def frame_events(frame: bytes) -> List[Event]:
    data = frame_data(frame)[1]
    if not data.strip():
        return []
    try:
        event = json.loads(data)
    except (ValueError, RecursionError):
        raise ProxyError(502, "the upstream sent an event that is not JSON") from None
    if not isinstance(event, dict) or not isinstance(event.get("type"), str):
        return []
    if event["type"] == "error":
        raise EventError(event)
    return [event] if is_sound(event) else []


def is_sound(event: Event) -> bool:
    """Whether the members that are read here are objects, where they are there at all."""
    message = as_members(event.get("message"))
    members = (*map(event.get, ("message", "delta", "usage")), message.get("usage"))
    return all(member is None or isinstance(member, dict) for member in members)


EVENT_ERROR_STATUSES: Dict[str, int] = {
    "overloaded_error": 529, "rate_limit_error": 429, "invalid_request_error": 400,
    "authentication_error": 401, "billing_error": 402, "permission_error": 403,
    "not_found_error": 404, "request_too_large": 413, "timeout_error": 504,
}  # fmt: skip


class EventError(ProxyError):
    """An `error` event as the error that it would have been by status."""

    def __init__(self, event: Event) -> None:
        error = as_members(event.get("error"))
        kind = plain_word(error.get("type")) or "api_error"
        status = EVENT_ERROR_STATUSES.get(kind, 500)
        message = str(error.get("message") or "the upstream reported an error without a message")
        super().__init__(status, message, kind, upstream_status=200)
        self.event = event
