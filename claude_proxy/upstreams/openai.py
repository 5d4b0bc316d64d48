"""Any OpenAI-compatible provider, and Azure OpenAI: Chat Completions, always streamed.

Messages request -> Chat Completions body -> HTTP -> chunks -> Messages events. A client that does
not stream gets the fold of the same events. What differs between providers is in
`chat_profiles`, in what they say of their models (`limits`) and in what their refusals teach.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from typing import Any, Dict, List, Optional, Tuple
from urllib.parse import quote, urlsplit

from claude_proxy.dialects.chat_members import stop_sequences
from claude_proxy.dialects.chat_options import ChatOptions
from claude_proxy.dialects.chat_profiles import profile_name, profile_options
from claude_proxy.dialects.chat_repairs import (
    LEAST_ROOM,
    learned_words,
    merged_lessons,
    repaired_options,
)
from claude_proxy.dialects.chat_request import chat_json, messages_to_chat
from claude_proxy.dialects.chat_stream import ChatAsked, chat_chunks, chunks_to_events
from claude_proxy.dialects.chat_thinking import hides_thinking
from claude_proxy.dialects.chat_tools import (
    chat_tool_names,
    only_tool_name,
    used_call_ids,
    wants_one_call,
)
from claude_proxy.dialects.text_tools import needs_text_tools
from claude_proxy.dialects.text_turns import text_tool_events
from claude_proxy.errors import (
    NO_RETRY,
    ProxyError,
    upstream_error,
    upstream_error_text,
)
from claude_proxy.events import Event, EventWriter, Request
from claude_proxy.exchange import Exchange
from claude_proxy.keys import KeyRing, ask_with_keys, parse_keys
from claude_proxy.limits import (
    LIMIT_PATHS,
    ModelCatalog,
    ModelLimits,
    decode_limits,
    limited_options,
)
from claude_proxy.overflow import overflow_message, overflow_words
from claude_proxy.pool import split_url
from claude_proxy.reasoning_memory import ReasoningMemory, with_recalled
from claude_proxy.settings import Config
from claude_proxy.tokens import count_input_tokens
from claude_proxy.transport import Call, Transport, UpstreamResponse
from claude_proxy.upstreams.upstream import call_headers

# So many refusals of one request teach something; then the client is told.
MOST_REPAIRS = 4

# Refusals that may be about the prompt's length.
COUNTED_STATUSES = (400, 413, 422, 429)
# Longest time for asking what models there are.
LIMITS_SECONDS = 15.0

# A request's JSON has about four bytes a token; this errs on the large side.
BYTES_PER_TOKEN = 3.6
# So much more than the truth may a counted prompt be.
MOST_OVERESTIMATE = 1.35


class ToolsRefused(Exception):
    """The model cannot call tools: they have to be told as text."""


class OpenAIUpstream:
    """One OpenAI-compatible base URL with its key."""

    name = "openai"
    native_tools = True

    def __init__(self, config: Config, transport: Transport) -> None:
        self._config = config
        self._transport = transport
        keys = parse_keys(config.openai_api_key)
        self._ring = KeyRing(keys, time.monotonic, config.key_cooldown)
        self._headers = {key: openai_headers(config, key) for key in (*keys, "")}
        # The key where there is only one, "" for none; None: they are taken in turn.
        self._lone_key = (self._ring.take() or "") if len(self._ring) < 2 else None
        self._profile = chat_profile(config)
        # Model -> what its provider has taught; written whole, so that readers need no lock.
        self._learned: Dict[str, ChatOptions] = {}
        self._learning = threading.Lock()
        self._memory = ReasoningMemory(time.monotonic)
        # What the base URL lacks, found out by a 404: "" or "/v1".
        self._missing_path = ""
        self.catalog = ModelCatalog(self._fetch_limits, time.monotonic)

    def describe(self) -> str:
        version = self._config.azure_api_version
        words = [self._profile, *([f"api-version {version}"] if version else [])]
        return f"{self._config.openai_base_url} ({', '.join(words)})"

    def probe(self, exchange: Exchange) -> Dict[str, Any]:
        return {}

    def stream(self, request: Request, exchange: Exchange) -> Iterator[Event]:
        request = limit_max_tokens(request, self._config)
        options = self._options(str(request.get("model", "")))
        try:
            if not options.tools and needs_text_tools(request):
                raise ToolsRefused
            yield from self._answer(request, exchange)
        except ToolsRefused:
            exchange.notes.append("tools=told")
            ask = partial(self._answer, exchange=exchange)
            yield from text_tool_events(request, ask, exchange.message_id, exchange.facts)

    def _answer(self, request: Request, exchange: Exchange) -> Iterator[Event]:
        if not self._memory.empty():
            request = with_recalled(request, partial(self._memory.recall, exchange.keys))
        response, options, input_tokens = self._ask(request, exchange)
        try:
            usage = {"input_tokens": input_tokens, "output_tokens": 1}
            yield from chunks_to_events(
                chat_chunks(response.pieces()),
                EventWriter(exchange.message_id, exchange.model, usage),
                self._asked(request, options, exchange),
            )
        finally:
            response.close()

    def _asked(self, request: Request, options: ChatOptions, exchange: Exchange) -> ChatAsked:
        carried = options.replay in ("reasoning_details", "extra_content")
        return ChatAsked(
            tool_names=chat_tool_names(request, options),
            used_ids=used_call_ids(request),
            only_tool=only_tool_name(request),
            stops=stop_sequences(request),
            input_estimate=partial(count_input_tokens, request),
            one_call=wants_one_call(request),
            hide_thinking=hides_thinking(request),
            carry=options.replay if carried else "",
            late=partial(self._memory.keep, exchange.keys),
            note=exchange.facts.__setitem__,
        )

    def _options(self, model: str) -> ChatOptions:
        """What is known of a model: by its profile, from its provider's list, by refusals."""
        options = self._learned.get(model) or profile_options(self._profile, model)
        if not self._config.model_limits:
            return options
        return limited_options(options, self.catalog.look_up(model))

    def _ask(
        self, request: Request, exchange: Exchange
    ) -> Tuple[UpstreamResponse, ChatOptions, int]:
        """(an answer that has begun, the options it was asked with, rough input tokens).

        After a refusal that teaches something it is asked anew.
        """
        model = str(request.get("model", ""))
        options = self._options(model)
        tried, path = [options], self._missing_path
        while True:
            notes: List[str] = []
            chat, body, tokens = chat_body(request, options, notes)
            response = self._request(exchange, chat_url(self._config, model, path), body)
            if response.status != 404:
                self._missing_path = path
            if response.status == 200:
                exchange.notes += notes
                self._learn(model, tried[0], options, exchange)
                return response, options, tokens
            with closing(response):
                refusal = response.read()
            if response.status == 404 and not path and self._may_lack_v1(refusal):
                path = "/v1"
                continue
            repaired = repair_of(options, response.status, refusal, chat)
            if repaired is None or repaired in tried or len(tried) > MOST_REPAIRS:
                raise self._failure(response, refusal, request, exchange)
            options = repaired
            tried.append(options)
            if not options.tools and chat.get("tools"):
                self._learn(model, tried[0], options, exchange)
                raise ToolsRefused

    def _learn(
        self, model: str, before: ChatOptions, after: ChatOptions, exchange: Exchange
    ) -> None:
        """Keep what a request has taught, beside what others have meanwhile."""
        if before is after or before == after:
            return
        with self._learning:
            known = self._learned.get(model) or profile_options(self._profile, model)
            learned = merged_lessons(known, before, after)
            if learned != known:
                self._learned[model] = learned
                exchange.facts["learned"] = learned_words(known, learned)

    def _may_lack_v1(self, refusal: bytes) -> bool:
        """Whether it is worth asking under /v1, which users leave out of a base URL."""
        lacks = "/v1" not in urlsplit(self._config.openai_base_url).path
        return lacks and self._profile != "azure" and not names_model(refusal)

    def _request(self, exchange: Exchange, url: str, body: bytes) -> UpstreamResponse:
        target, path = split_url(url)

        def send(key: str) -> UpstreamResponse:
            call = Call("POST", target, path, self._headers[key], body)
            return self._transport.request(exchange, call)

        if self._lone_key is None:
            return ask_with_keys(self._ring, send, exchange)
        return send(self._lone_key)

    def _failure(
        self, response: UpstreamResponse, body: bytes, request: Request, exchange: Exchange
    ) -> ProxyError:
        tokens = count_input_tokens(request) if response.status in COUNTED_STATUSES else 0
        wanted, window = request.get("max_tokens") or 0, self._options(request["model"]).window
        error = upstream_error(
            response.status, response.headers, body, tokens, time.time(), wanted, window
        )
        if error.status == 404:
            asked, model = self._config.openai_base_url, request.get("model", "")
            error.message += f" (asked {asked} for model {model}, by {exchange.facts.get('route')})"
        return error

    def _fetch_limits(self) -> Dict[str, ModelLimits]:
        """Ask for the models' limits; {} if they cannot be had. Ends within LIMITS_SECONDS."""
        found: Dict[str, ModelLimits] = {}
        exchange = Exchange()
        too_long = ProxyError(504, "timed out waiting for the list of models")
        timer = threading.Timer(LIMITS_SECONDS, exchange.cancel, [too_long])
        timer.daemon = True
        timer.start()
        try:
            base = self._config.openai_base_url + self._missing_path
            for url in limit_urls(base, self._profile):
                found.update(self._fetch_limits_from(url, exchange))
        except ProxyError:
            pass  # a provider need not tell
        finally:
            timer.cancel()
        return found

    def _fetch_limits_from(self, url: str, exchange: Exchange) -> Dict[str, ModelLimits]:
        target, path = split_url(url)
        call = Call("GET", target, path, self._headers[self._ring.take() or ""], b"", once=True)
        with closing(self._transport.request(exchange, call)) as response:
            return decode_limits(response.read()) if response.status == 200 else {}


def chat_profile(config: Config) -> str:
    """The profile that settings name, or the one of the base URL."""
    azure = bool(config.azure_api_version)
    return config.openai_profile or profile_name(config.openai_base_url, azure)


def limit_urls(base_url: str, profile: str) -> Tuple[str, ...]:
    """Where the limits of models are told; none for Azure, which lists no deployments."""
    parts = urlsplit(base_url)
    root = f"{parts.scheme}://{parts.netloc}"
    listed = () if profile == "azure" else (f"{base_url}/models",)
    return (*listed, *(root + path for path in LIMIT_PATHS.get(profile, ())))


def chat_body(
    request: Request, options: ChatOptions, notes: List[str]
) -> Tuple[Dict[str, Any], bytes, int]:
    """(the Chat Completions request, its JSON, rough input tokens), within the model's window."""
    noted: List[str] = []
    chat = messages_to_chat(request, options, noted)
    body = chat_json(chat).encode("ascii")
    tokens = rough_input_tokens(request, body)
    wanted = chat.get(options.max_tokens_key) or 0
    if options.window and tokens + wanted > options.window:
        tokens = count_input_tokens(request)
        if options.cuts_silently and tokens > options.window:
            long = overflow_words(tokens, 0, options.window, "the upstream would cut it silently")
            raise ProxyError(400, long, headers=[NO_RETRY])
        room = answer_room(tokens, wanted, options)
        if room:
            noted = []
            chat = messages_to_chat(request, options._replace(room=room), noted)
            body = chat_json(chat).encode("ascii")
    notes += noted
    return chat, body, tokens


def answer_room(tokens: int, wanted: int, options: ChatOptions) -> int:
    """`max_tokens` that fit beside a prompt; 0 where what is wanted may fit, or too little would.

    The prompt is estimated, rather too long than too short. Who refuses knows its true length, and
    mostly tells it; so what may fit is asked for, unless the upstream would cut without a word.
    """
    least = tokens if options.cuts_silently else int(tokens / MOST_OVERESTIMATE)
    room = options.window - tokens
    return room if least + wanted > options.window and LEAST_ROOM <= room < wanted else 0


def names_model(refusal: bytes) -> bool:
    """Whether a 404 is about a model; else it is about the path."""
    return b"model" in refusal.lower()


def repair_of(
    options: ChatOptions, status: int, refusal: bytes, chat: Dict[str, Any]
) -> Optional[ChatOptions]:
    """Options that a refused body's answer asks for."""
    text = upstream_error_text(refusal)
    wanted = chat.get(options.max_tokens_key) or 0
    overflow = overflow_message(text, refusal.decode("utf-8", "replace"), 0, wanted) or ""
    return repaired_options(options, status, named_parameter(refusal) + text, chat, overflow)


def named_parameter(refusal: bytes) -> str:
    """What an error names beside its message, as words in front of it (OpenAI's code and param)."""
    try:
        error = json.loads(refusal)["error"]
        code, param = error.get("code"), error.get("param")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return ""
    return f"{code} {param}: " if isinstance(code, str) and isinstance(param, str) else ""


def rough_input_tokens(request: Request, body: bytes) -> int:
    """An estimate for `message_start` that costs nothing; the last event has the provider's figure.

    Images are in the body as base64, which says nothing about their tokens: then count properly.
    """
    if b";base64," in body:
        return count_input_tokens(request)
    return int(len(body) / BYTES_PER_TOKEN)


def limit_max_tokens(request: Request, config: Config) -> Request:
    """Keep `max_tokens` under MAX_TOKENS_LIMIT; MIN_TOKENS_LIMIT stands in for one not sent."""
    asked, limit = request.get("max_tokens"), config.max_tokens_limit
    allowed = asked or config.min_tokens_limit or None
    if allowed and limit:
        allowed = min(allowed, limit)
    return {**request, "max_tokens": allowed} if allowed != asked else request


def chat_url(config: Config, model: str, missing: str = "") -> str:
    """The Chat Completions URL of the base URL as users write it; for Azure with the deployment.

    Azure's base is the resource, or a deployment, or its newer /openai/v1, which wants no version.
    """
    base, version = config.openai_base_url, config.azure_api_version
    if not version or base.endswith("/v1"):
        return f"{base}{missing}/chat/completions"
    if "/openai/deployments/" not in base:
        base = azure_deployment(base, model)
    return f"{base}/chat/completions?api-version={quote(version, safe='')}"


def azure_deployment(base: str, model: str) -> str:
    if model in ("", ".", ".."):
        raise ProxyError(400, "model: Azure needs the name of a deployment")
    root = base[: -len("/openai")] if base.endswith("/openai") else base
    return f"{root}/openai/deployments/{quote(model, safe='', errors='replace')}"


def openai_headers(config: Config, key: str) -> Tuple[Tuple[str, str], ...]:
    """The headers of every call, with the key as this provider wants it."""
    own = [("content-type", "application/json"), ("accept", "text/event-stream")]
    if key and config.azure_api_version:
        own.append(("api-key", key))
    elif key:
        own.append(("authorization", f"Bearer {key}"))
    return call_headers(config, own)
