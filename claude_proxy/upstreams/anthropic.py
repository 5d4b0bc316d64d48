"""The Anthropic API: relayed byte for byte to clients that speak Messages, else told as events.

    relay    client's bytes -> the API -> its bytes -> client     only watched (`relay`)
    stream   request -> the API -> events                         for folds and other dialects

Of a request only what routing decides is changed: the model's name, `stream` where a whole answer
is made of a streamed one, and thinking blocks that another upstream has signed, which the API would
refuse. The client's own credential travels with it unless settings have a key; a key that opens
this proxy does not.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from functools import partial
from typing import Any, Dict, List

from claude_proxy.auth import own_keys
from claude_proxy.config import REDCAP_TOKEN, VERSION
from claude_proxy.dialects.carriers import is_carrier
from claude_proxy.dialects.chat_blocks import as_list
from claude_proxy.errors import ProxyError, upstream_error
from claude_proxy.events import Event, Message, Request, check_grammar, events_to_message
from claude_proxy.exchange import Exchange
from claude_proxy.http1 import HttpRequest
from claude_proxy.json_edit import (
    Edit,
    array_items,
    cut_items,
    edited,
    iter_members,
    member_edits,
    object_members,
)
from claude_proxy.keys import KeyRing, ask_with_keys, parse_keys
from claude_proxy.patterns import LazyPattern
from claude_proxy.pool import split_url
from claude_proxy.relay import (
    HeaderList,
    client_credentials,
    frames_to_events,
    relayed_request_headers,
)
from claude_proxy.settings import Config
from claude_proxy.sse import encode_json
from claude_proxy.transport import Call, Transport, UpstreamResponse

MESSAGES_PATH = "/v1/messages"
ANTHROPIC_KEY_PREFIX = "sk-ant-"
NO_CREDENTIAL = (
    "the Anthropic API wants a credential: show your own beside this proxy's key, or set"
    " ANTHROPIC_UPSTREAM_KEY"
)


class AnthropicUpstream:
    """The Anthropic API, or whatever answers like it under ANTHROPIC_FORWARD_URL."""

    name = "anthropic"
    native_tools = True

    def __init__(self, config: Config, transport: Transport) -> None:
        self._config = config
        self._transport = transport
        self._ring = KeyRing(
            parse_keys(config.anthropic_upstream_key), time.monotonic, config.key_cooldown
        )

    def describe(self) -> str:
        whose = f"{len(self._ring)} key(s) of settings" if len(self._ring) else "clients' own keys"
        return f"{self._config.anthropic_forward_url} ({whose})"

    def probe(self, exchange: Exchange) -> Dict[str, Any]:
        """Ask for one model of the list: it costs nothing and tells whether the key is good."""
        request = HttpRequest("GET", "/v1/models", "", exchange.headers, "HTTP/1.1")
        request = request._replace(query="limit=1")
        with closing(self.ask(request, b"", exchange)) as response:
            body = response.read()
            if response.status != 200:
                raise upstream_error(response.status, response.headers, body, 0, time.time())
        return {"answered": "the list of models"}

    def stream(self, request: Request, exchange: Exchange) -> Iterator[Event]:
        body = encode_json({**without_foreign_thinking(request), "stream": True}).encode("ascii")
        http = HttpRequest("POST", MESSAGES_PATH, "", exchange.headers, "HTTP/1.1")
        with closing(self.ask(http, body, exchange)) as response:
            if response.status != 200:
                refusal = response.read()
                raise upstream_error(
                    response.status, response.headers, refusal, 0, time.time()
                )
            yield from shown_as(exchange, frames_to_events(response.pieces()))

    def ask(self, http: HttpRequest, body: bytes, exchange: Exchange) -> UpstreamResponse:
        """Send a client's request with this body; any status comes back, its body not yet read.

        Where there are several keys, one that is refused for its rate rests and the next is tried.
        """
        headers = self._headers(http, body)
        if not len(self._ring):
            return self._send(http, (*self._credentials(http), *headers), body, exchange)

        def send(key: str) -> UpstreamResponse:
            return self._send(http, (("x-api-key", key), *headers), body, exchange)

        return ask_with_keys(self._ring, send, exchange)

    def _send(
        self, http: HttpRequest, headers: HeaderList, body: bytes, exchange: Exchange
    ) -> UpstreamResponse:
        target, path = split_url(self._config.anthropic_forward_url + http.path)
        path += f"?{http.query}" if http.query else ""
        custom = {name for name, _ in self._config.custom_headers}
        kept = tuple((n, v) for n, v in headers if n not in custom) + self._config.custom_headers
        seconds = self._config.anthropic_response_header_timeout
        retries = self._config.anthropic_max_retries
        call = Call(http.method, target, path, kept, body, False, seconds, retries)
        return self._transport.request(exchange, call)

    def _headers(self, http: HttpRequest, body: bytes) -> HeaderList:
        """The client's headers, and what a client of another kind has left out."""
        own = self._config.auth_api_key_header.lower()  # holds a key of this proxy
        headers = tuple(h for h in relayed_request_headers(http.headers) if h[0] != own)
        usual = {
            "anthropic-version": self._config.anthropic_version,
            "user-agent": f"claude_proxy/{VERSION}",
            **({"content-type": "application/json"} if body else {}),
        }
        named = {name for name, _ in headers}
        return (*headers, *((n, v) for n, v in usual.items() if n not in named))

    def _credentials(self, http: HttpRequest) -> HeaderList:
        """The client's own, or none where a custom header is one; ProxyError(401) for neither."""
        if {name for name, _ in self._config.custom_headers} & {"authorization", "x-api-key"}:
            return ()
        own = client_credentials(http.headers, partial(opens_proxy, self._config))
        if not own:
            raise ProxyError(401, NO_CREDENTIAL)
        return own


def opens_proxy(config: Config, key: str) -> bool:
    """Whether a key is for this proxy, or for REDCap behind it: then it is nobody else's.

    One of Anthropic's own is meant for the API, even if it opens this proxy too: whoever starts
    both in one shell has it in ANTHROPIC_API_KEY.
    """
    if key in own_keys(config):
        return not key.startswith(ANTHROPIC_KEY_PREFIX)
    return config.upstream == "redcap" and bool(re.fullmatch(REDCAP_TOKEN, key))


def shown_as(exchange: Exchange, events: Iterator[Event]) -> Iterator[Event]:
    """The events with the model's name that the client asked for, and the exchange's own id."""
    for event in events:
        if event.get("type") == "message_start" and isinstance(event.get("message"), dict):
            own = {"model": exchange.model, "id": exchange.message_id}
            event = {**event, "message": {**event["message"], **own}}
        yield event


# --- what is changed in a body -------------------------------------------------------------------


def relayed_body(body: bytes, values: Mapping[str, Any]) -> bytes:
    """The client's bytes with nothing changed but these values, and foreign thinking left out.

    ProxyError(400) if a value has to be changed in what cannot be read.
    """
    foreign = SIGNATURE in body and has_foreign_mark(body)
    if not values and not foreign:
        return body
    try:
        text = body.decode("utf-8")
        edits = [*member_edits(text, values), *(foreign_thinking(text) if foreign else ())]
        return edited(text, edits).encode("utf-8")
    except (ValueError, RecursionError):
        if not values:
            return body  # the API itself says what is wrong with it
    raise ProxyError(400, "the request body is not a JSON object that can be routed")


def has_foreign_mark(body: bytes) -> bool:
    """Where none is found, there is no signature but the API's own."""
    return b'"cp1.' in body or UNSIGNED_MARK.search(body) is not None


SIGNATURE = b'"signature"'
UNSIGNED_MARK = LazyPattern(rb'"signature"[ \t\r\n]*:[ \t\r\n]*(?:""|null)')
STAND_IN = {"type": "text", "text": "(no content)"}


def foreign_thinking(text: str) -> Iterator[Edit]:
    """What takes thinking that the API has not signed out of a request's messages."""
    for member in object_members(text)[1]:
        messages = array_items(text, member.start) if member.name == "messages" else ()
        for message in messages:
            if thinks_foreign(message.value):
                yield from cut_thinking(text, message.start)


def cut_thinking(text: str, start: int) -> Iterator[Edit]:
    for member in iter_members(text, start + 1):
        if member.name == "content":
            yield from cut_items(text, member.start, is_foreign, encode_json(STAND_IN))


def without_foreign_thinking(request: Request) -> Request:
    """The request without thinking blocks that another upstream has signed, or nobody."""
    messages = as_list(request.get("messages"))
    if not any(map(thinks_foreign, messages)):
        return request
    return {**request, "messages": [own_thinking(m) if thinks_foreign(m) else m for m in messages]}


def is_foreign(block: Any) -> bool:
    if not isinstance(block, dict) or block.get("type") != "thinking":
        return False
    signature = block.get("signature")
    return not signature or is_carrier(signature)


def thinks_foreign(message: Any) -> bool:
    return isinstance(message, dict) and any(map(is_foreign, as_list(message.get("content"))))


def own_thinking(message: Dict[str, Any]) -> Dict[str, Any]:
    """A message without foreign thinking; it may not be left empty."""
    kept: List[Any] = [block for block in message["content"] if not is_foreign(block)]
    return {**message, "content": kept or [STAND_IN]}


# --- a whole answer of a streamed one ------------------------------------------------------------


def fold_stream(response: UpstreamResponse, exchange: Exchange) -> Message:
    """The message that a stream tells; ProxyError for what is no whole answer."""
    with closing(response):
        events = frames_to_events(response.pieces())
        message = events_to_message(exchange.observe(check_grammar(events)))
    for block in message["content"]:
        if isinstance(block.get("input"), dict) and "__unparsedToolInput" in block["input"]:
            raise ProxyError(502, "the upstream's answer has a tool call that is not JSON")
    return message

