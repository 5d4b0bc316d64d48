"""Passing an exchange on as it came: which headers travel, and what is seen on the way. Pure.

Nothing in a body is changed here and nothing is looked at twice. `RelayWatch` sees the pieces of a
stream go by and reads the few frames that tell usage; if it cannot, the stream goes on without it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Dict, List, Optional, Set, Tuple

from claude_proxy.agents import CallListener
from claude_proxy.errors import ProxyError
from claude_proxy.events import Event
from claude_proxy.exchange import Exchange
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

# Frames with these words tell of usage or of the end; all others pass unread.
TELLING_WORDS = (b'"usage"', b'"stop_reason"', b"error")


def connection_named(headers: Mapping[str, str]) -> Set[str]:
    """The headers that a Connection header says are for this hop alone."""
    return {name.strip().lower() for name in headers.get("connection", "").split(",")}


def relayed_request_headers(headers: Mapping[str, str]) -> HeaderList:
    """A client's headers without those of the hop, and without its credentials."""
    dropped = OWN_REQUEST_HEADERS | CREDENTIAL_HEADERS | connection_named(headers)
    return tuple((name, value) for name, value in headers.items() if name not in dropped)


def relayed_response_headers(headers: Mapping[str, str]) -> HeaderList:
    dropped = DROPPED_RESPONSE_HEADERS | connection_named(headers)
    return tuple((name, value) for name, value in headers.items() if name not in dropped)


def client_credentials(headers: Mapping[str, str], own_keys: Iterable[str]) -> HeaderList:
    """The client's credential headers that are meant for the upstream: none that is our own key."""
    kept = []
    for name in ("x-api-key", "authorization"):
        value = headers.get(name, "")
        bare = value.partition(" ")[2].strip() if name == "authorization" else value
        if value and bare not in own_keys and value not in own_keys:
            kept.append((name, value))
    return tuple(kept)


class RelayWatch:
    """Sees the pieces of a stream go by and tells the exchange what logs need."""

    def __init__(self, exchange: Exchange, listener: Optional[CallListener] = None) -> None:
        self._exchange = exchange
        self._listener = listener
        self._splitter: Optional[FrameSplitter] = FrameSplitter()
        self.failed: Optional[str] = None  # the type of an error event

    def see(self, piece: bytes) -> None:
        """Never raises: what cannot be read is nobody's business here."""
        if self._exchange.first_event is None:
            self._exchange.first_event = self._exchange.clock()
        if self._splitter is None:
            return
        try:
            frames = self._splitter.feed(piece)
        except ProxyError:
            self._splitter = None  # an event too large to be held
            return
        for frame in frames:
            if any(word in frame for word in TELLING_WORDS) or self._is_heard(frame):
                self._read(frame)

    def _is_heard(self, frame: bytes) -> bool:
        """Whether somebody listens for calls of agents, and this frame may be of one."""
        listener = self._listener
        return listener is not None and (listener.listening or b'"tool_use"' in frame)

    def _read(self, frame: bytes) -> None:
        try:
            event = json.loads(frame_data(frame)[1])
        except (ValueError, RecursionError):
            return
        if not isinstance(event, dict):
            return
        if event.get("type") == "error":
            error = event.get("error")
            self.failed = str(error.get("type")) if isinstance(error, dict) else "error"
        elif event.get("type") in ("message_start", "message_delta"):
            self._exchange.note_usage(event)
        elif self._listener is not None:
            self._listener.hear(event)


def note_whole_answer(
    exchange: Exchange, body: bytes, listener: Optional[CallListener] = None
) -> None:
    """Read usage, stop reason and calls of agents of a message that came whole."""
    try:
        message = json.loads(body)
    except (ValueError, RecursionError):
        return
    if isinstance(message, dict) and message.get("type") == "message":
        exchange.note_usage({"message": message, "delta": message})
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
    if not isinstance(event, dict):
        return []
    if event.get("type") == "error":
        raise event_error(event)
    return [event]


EVENT_ERROR_STATUSES: Dict[str, int] = {
    "overloaded_error": 529, "rate_limit_error": 429, "invalid_request_error": 400,
    "authentication_error": 401, "billing_error": 402, "permission_error": 403,
    "not_found_error": 404, "request_too_large": 413, "timeout_error": 504,
}  # fmt: skip


def event_error(event: Mapping[str, Any]) -> ProxyError:
    """An `error` event as the error that it would have been by status."""
    error = event.get("error")
    error = error if isinstance(error, dict) else {}
    kind = str(error.get("type") or "api_error")
    status = EVENT_ERROR_STATUSES.get(kind, 500)
    message = str(error.get("message") or "the upstream reported an error without a message")
    return ProxyError(status, message, kind, upstream_status=200)
