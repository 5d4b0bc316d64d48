"""REDCap's SecureChatAI module: one form POST, one whole answer, told in small deltas.

Messages request without tools -> form -> HTTP -> reply (`redcap_reply`) -> Messages events. It
neither streams nor calls tools: `text_turns` stands before it, and the server keeps the client
company while it is silent. A call is never repeated once it was sent, for the module itself tries
three times; calls wait for one of REDCAP_MAX_CALLS slots, users in turn.

Versions of the module before `action=messages` know `callAI` alone. They are found out by what they
refuse, and by what `action=__info` then lists; that costs nothing.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any, Callable, Dict, List, Optional, Tuple

from claude_proxy.auth import own_keys, own_redcap_token
from claude_proxy.config import REDCAP_KNOWN_ALIASES
from claude_proxy.dialects.text_tools import RESULT_STOP, text_tool_request
from claude_proxy.errors import CLIENT_GONE_STATUS, NO_RETRY, ProxyError
from claude_proxy.events import Event, EventWriter, Request
from claude_proxy.exchange import Exchange
from claude_proxy.late import LateFailures
from claude_proxy.names import logged_model
from claude_proxy.pool import ConnectError, split_url
from claude_proxy.routing import split_upstream
from claude_proxy.settings import Config
from claude_proxy.slots import FairSlots
from claude_proxy.sse import encode_json
from claude_proxy.tokens import count_input_tokens
from claude_proxy.transport import Call, Transport
from claude_proxy.upstreams.redcap_form import (
    Fields,
    encode_form,
    envelope,
    fits_any,
    messages_fields,
    prompt_fields,
    redcap_output_cap,
    redcap_window,
    schema_fields,
    schema_text,
)
from claude_proxy.upstreams.redcap_reply import (
    BAN_WORDS,
    BANNED,
    NO_MESSAGES,
    RedcapReply,
    json_in,
    read_redcap_reply,
)
from claude_proxy.upstreams.upstream import call_headers

BAN_SECONDS = 300
# Characters of text in one event.
TEXT_PIECE = 80
LONGEST_REPLY = 64 * 1024 * 1024


class RedcapUpstream:
    """SecureChatAI behind one REDCap API."""

    name = "redcap"
    native_tools = False

    def __init__(
        self, config: Config, transport: Transport, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._config = config
        self._transport = transport
        self._clock = clock
        self._slots = FairSlots(config.redcap_max_calls)
        self._late = LateFailures(clock)
        self._banned_until = 0.0
        self._only_call_ai = False

    def describe(self) -> str:
        whose = "one shared token" if self._config.redcap_api_token else "each client's own token"
        return f"SecureChatAI at {self._config.redcap_api_url} with {whose}"

    def stream(self, request: Request, exchange: Exchange) -> Iterator[Event]:
        alias = str(request.get("model") or "")
        token = self._token(exchange)
        check_alias(alias, self._config)
        request = text_tool_request(request)  # what is left of tools and thoughts is not sent
        tokens = count_input_tokens(request)
        check_window(tokens, alias)
        reply = self._ask_once(request, alias, token, exchange)
        yield from reply_events(reply, request, alias, exchange, tokens)

    def _token(self, exchange: Exchange) -> str:
        """The shared token, or the client's own. ProxyError(401) if it shows none."""
        if self._config.redcap_api_token:
            return self._config.redcap_api_token
        ours = own_keys(self._config)
        return own_redcap_token(key for key in exchange.keys if key not in ours)

    # --- asking -------------------------------------------------------------------------------

    def _ask_once(
        self, request: Request, alias: str, token: str, exchange: Exchange
    ) -> RedcapReply:
        """The answer; a client's repeat of a stream that failed late is told of that failure."""
        key, streaming = conversation_key(token, request), request.get("stream") is True
        told = None if streaming else self._late.take(key)
        if told is not None:
            exchange.facts["repeat_of_failure"] = True
            raise ProxyError(told.status, told.message, headers=[NO_RETRY], upstream_status=200)
        try:
            return self._ask(request, alias, token, exchange)
        except ProxyError as error:
            begun = exchange.clock() - exchange.started >= self._config.ping_interval
            asked = not isinstance(error, ConnectError) and error.status != CLIENT_GONE_STATUS
            if streaming and begun and asked:
                self._late.remember(key, error)
            raise

    def _ask(self, request: Request, alias: str, token: str, exchange: Exchange) -> RedcapReply:
        """One call; a second one only if the module turns out not to know `messages`."""
        notes = exchange.notes
        if fits_any(self._config.redcap_schema_aliases, alias):
            fields = schema_fields(request, notes)
            reply = self._call("callAI", fields, alias, token, exchange)
            return reply._replace(text=schema_text(reply.text))
        if not self._only_call_ai:
            images = fits_any(self._config.redcap_image_aliases, alias)
            fields = messages_fields(request, images, notes)
            try:
                return self._call("messages", fields, alias, token, exchange)
            except ProxyError as error:
                if not self._is_old_module(error, token, exchange):
                    raise
        return self._call("callAI", prompt_fields(request, notes), alias, token, exchange)

    def _is_old_module(self, error: ProxyError, token: str, exchange: Exchange) -> bool:
        """Whether a refusal comes from a module without `messages`; remembered if so."""
        if error.upstream_status != 400 or NO_MESSAGES in error.message:
            return False
        actions = module_actions(self._info(token, exchange))
        self._only_call_ai = "callAI" in actions and "messages" not in actions
        return self._only_call_ai

    def _call(
        self, action: str, fields: Fields, alias: str, token: str, exchange: Exchange
    ) -> RedcapReply:
        body = encode_form([*envelope(token, action), *fields])
        if len(body) > self._config.redcap_max_bytes:
            limit = f"more than REDCAP_MAX_BYTES ({self._config.redcap_max_bytes})"
            raise ProxyError(413, f"the request has {len(body)} bytes as REDCap's form, {limit}")
        # The queue knows users apart without knowing their tokens.
        user = hashlib.sha256(token.encode()).digest()
        with self._slots.hold(exchange, user):
            status, answer = self._post(body, exchange)
        if BAN_WORDS.encode() in answer and json_in(answer) is None:
            self._banned_until = self._clock() + BAN_SECONDS
        return read_redcap_reply(status, answer, alias, BAN_SECONDS)

    def _post(self, body: bytes, exchange: Exchange) -> Tuple[int, bytes]:
        """(status, whole body) of one POST. ProxyError if no whole answer comes in time."""
        left = self._banned_until - self._clock()
        if left > 0:
            raise ProxyError(429, BANNED.format(seconds=int(left) + 1), headers=[NO_RETRY])
        target, path = split_url(self._config.redcap_api_url)
        call = Call("POST", target, path, redcap_headers(self._config), body, once=True)
        with closing(self._transport.request(exchange, call)) as response:
            return response.status, join_pieces(response.pieces())

    # --- looking without asking a model -------------------------------------------------------

    def probe(self, exchange: Exchange) -> Dict[str, Any]:
        """What `action=__info` says: free of cost, and the same rights as a call needs."""
        found = self._info(self._token(exchange), exchange)
        actions = module_actions(found)
        return {
            "redcap": found.get("redcap-version"),
            "module": f"{found.get('name')} {found.get('module-version')}",
            "actions": actions,
            "served_by": "messages" if "messages" in actions or not actions else "callAI",
        }

    def _info(self, token: str, exchange: Exchange) -> Dict[str, Any]:
        """The framework's description of the module; ProxyError as for any call."""
        status, answer = self._post(encode_form(envelope(token, "__info")), exchange)
        found = json_in(answer)
        if status == 200 and found is not None and "error" not in found:
            return found
        read_redcap_reply(status, answer, "")
        raise ProxyError(502, "REDCap did not describe the module", headers=[NO_RETRY])


def conversation_key(token: str, request: Request) -> bytes:
    """Equal for a request and its repeat, which may differ in limits."""
    said = [token, request.get("model"), request.get("system"), request.get("messages")]
    return hashlib.sha256(encode_json(said).encode("ascii")).digest()


def redcap_headers(config: Config) -> Tuple[Tuple[str, str], ...]:
    kind = ("content-type", "application/x-www-form-urlencoded")
    return call_headers(config, (kind, ("accept", "application/json")))


def join_pieces(pieces: Iterator[bytes]) -> bytes:
    parts: List[bytes] = []
    size = 0
    for piece in pieces:
        parts.append(piece)
        size += len(piece)
        if size > LONGEST_REPLY:
            raise ProxyError(502, "REDCap's answer is larger than any model's", headers=[NO_RETRY])
    return b"".join(parts)


def module_actions(info: Dict[str, Any]) -> List[str]:
    """The actions that a token may ask for."""
    actions = info.get("auth-actions")
    return sorted(actions) if isinstance(actions, (dict, list)) else []


# --- what can be foreseen ----------------------------------------------------------------------


def known_aliases(config: Config) -> List[str]:
    """The module's model names: those of its era, and those that the settings name."""
    named = [config.big_model, config.middle_model, config.small_model, config.default_model]
    named += [target for _, target in config.model_map]
    routed = [split_upstream(name, config.upstream) for name in named if name]
    own = [name for upstream, name in routed if upstream == "redcap"]
    known = (*REDCAP_KNOWN_ALIASES[config.redcap_era], *config.redcap_aliases, *own)
    return list(dict.fromkeys(known))


def check_alias(alias: str, config: Config) -> None:
    """The module would answer an unknown name with an apology, so it is refused here."""
    known = known_aliases(config)
    if alias not in known:
        raise ProxyError(
            404,
            f"model: SecureChatAI is not known to have {alias[:100]!r}; it has {', '.join(known)}."
            " REDCAP_ALIASES adds names, REDCAP_ERA chooses the list",
            logged=f"model: SecureChatAI is not known to have {logged_model(alias)!r}",
        )


def check_window(tokens: int, alias: str) -> None:
    """The same for a prompt that is too long, in the words that make Claude Code compact."""
    window = redcap_window(alias)
    if tokens > window:
        message = f"prompt is too long: {tokens} tokens > {window} maximum"
        raise ProxyError(400, message, headers=[NO_RETRY])


# --- the answer --------------------------------------------------------------------------------


def reply_events(
    reply: RedcapReply, request: Request, alias: str, exchange: Exchange, tokens: int
) -> Iterator[Event]:
    """A reply as a stream; the upstream's own stop reason is noise, so it is made here."""
    text, sequence = cut_at_stop(reply.text, request.get("stop_sequences"))
    write = EventWriter(
        exchange.message_id, exchange.model, {"input_tokens": tokens, "output_tokens": 1}
    )
    yield from write.start()
    for start in range(0, len(text), TEXT_PIECE):
        yield from write.text(text[start : start + TEXT_PIECE])
    for block in reply.blocks:
        yield from write.block(block)
    cap = redcap_output_cap(alias)
    reason = "max_tokens" if cap and reply.output_tokens >= cap else "end_turn"
    reason = "tool_use" if reply.blocks else "stop_sequence" if sequence else reason
    usage = {"input_tokens": reply.input_tokens, "output_tokens": reply.output_tokens}
    yield from write.finish(reason, usage, stop_sequence=sequence)


def cut_at_stop(text: str, stops: Any) -> Tuple[str, Optional[str]]:
    """(text up to the first stop sequence in it, that sequence): few models get to see them."""
    stops = stops if isinstance(stops, list) else []
    # An invented result is cut off where calls are found: here it might stand within one.
    stops = [s for s in stops if isinstance(s, str) and s and s != RESULT_STOP]
    found = [(text.find(stop), stop) for stop in stops if stop in text]
    if not found:
        return text, None
    at, stop = min(found)
    return text[:at], stop
