"""Any OpenAI-compatible provider, and Azure OpenAI: Chat Completions, always streamed.

Messages request -> Chat Completions body -> HTTP -> chunks -> Messages events. A client that does
not stream gets the fold of the same events. What differs between providers is in the tables here.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any, Dict, List, Tuple
from urllib.parse import quote, urlsplit

from claude_proxy.config import Config
from claude_proxy.dialects.chat_blocks import as_list
from claude_proxy.dialects.chat_options import ChatOptions
from claude_proxy.dialects.chat_repairs import learned_words, repaired_options
from claude_proxy.dialects.chat_request import messages_to_chat
from claude_proxy.dialects.chat_stream import ChatAsked, chat_chunks, chunks_to_events
from claude_proxy.dialects.chat_tools import chat_tool_names, only_tool_name, used_call_ids
from claude_proxy.errors import ProxyError, upstream_error, upstream_error_text
from claude_proxy.events import Event, EventWriter, Request
from claude_proxy.exchange import Exchange
from claude_proxy.pool import split_url
from claude_proxy.sse import encode_json
from claude_proxy.tokens import count_input_tokens
from claude_proxy.transport import Call, Transport, UpstreamResponse
from claude_proxy.upstreams.upstream import call_headers

# OpenAI's reasoning models take `max_completion_tokens`, and neither sampling parameters nor stop.
OPENAI_HOSTS = ("api.openai.com", ".openai.azure.com", ".cognitiveservices.azure.com")
OPENAI_REASONING = re.compile(r"(?:o[1-9]|gpt-(?:[5-9]|\d\d))(?:[.-]|$)")
REASONING_OPTIONS = ChatOptions(
    max_tokens_key="max_completion_tokens", drop=frozenset(("temperature", "top_p", "stop"))
)
PLAIN_OPTIONS = ChatOptions()

# So many refusals of one request teach something; then the client is told.
MOST_REPAIRS = 4

# A request's JSON has about four bytes a token; this errs on the large side.
BYTES_PER_TOKEN = 3.6


class OpenAIUpstream:
    """One OpenAI-compatible base URL with its key."""

    name = "openai"
    native_tools = True

    def __init__(self, config: Config, transport: Transport) -> None:
        self._config = config
        self._transport = transport
        self._headers = openai_headers(config)
        # Model -> what its provider has taught; written whole, so that readers need no lock.
        self._learned: Dict[str, ChatOptions] = {}

    def describe(self) -> str:
        version = self._config.azure_api_version
        return self._config.openai_base_url + (
            f" (Azure, api-version {version})" if version else ""
        )

    def probe(self, exchange: Exchange) -> Dict[str, Any]:
        return {}

    def stream(self, request: Request, exchange: Exchange) -> Iterator[Event]:
        request = limit_max_tokens(request, self._config)
        response, input_tokens = self._ask(request, exchange)
        with closing(response):
            usage = {"input_tokens": input_tokens, "output_tokens": 1}
            yield from chunks_to_events(
                chat_chunks(response.pieces()),
                EventWriter(exchange.message_id, exchange.model, usage),
                chat_asked(request),
            )

    def _ask(self, request: Request, exchange: Exchange) -> Tuple[UpstreamResponse, int]:
        """(answer with status 200, rough input tokens); after a refusal that teaches, ask anew."""
        model = request.get("model", "")
        options = self._learned.get(model) or chat_options(self._config.openai_base_url, model)
        tried = [options]
        while True:
            notes: List[str] = []
            chat = messages_to_chat(request, options, notes)
            body = encode_json(chat).encode("ascii")
            response = self._transport.request(exchange, self._call(model, body))
            if response.status == 200:
                if len(tried) > 1:
                    self._learned[model] = options
                    exchange.facts["learned"] = learned_words(tried[0], options)
                exchange.warnings += notes
                return response, rough_input_tokens(request, body)
            with closing(response):
                refusal = response.read()
            text = upstream_error_text(refusal)
            repaired = repaired_options(options, response.status, text, chat)
            if repaired is None or repaired in tried or len(tried) > MOST_REPAIRS:
                raise self._failure(response, refusal, request, exchange)
            options = repaired
            tried.append(options)

    def _call(self, model: str, body: bytes) -> Call:
        target, path = split_url(chat_url(self._config, model))
        return Call("POST", target, path, self._headers, body)

    def _failure(
        self, response: UpstreamResponse, body: bytes, request: Request, exchange: Exchange
    ) -> ProxyError:
        tokens = count_input_tokens(request) if response.status in (400, 413, 422) else 0
        error = upstream_error(response.status, response.headers, body, tokens, time.time())
        if error.status == 404:
            asked, model = self._config.openai_base_url, request.get("model", "")
            error.message += f" (asked {asked} for model {model}, by {exchange.facts.get('route')})"
        return error


def chat_asked(request: Request) -> ChatAsked:
    return ChatAsked(
        chat_tool_names(request),
        used_call_ids(request),
        only_tool_name(request),
        as_list(request.get("stop_sequences")),
        lambda: count_input_tokens(request),
    )


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


def chat_options(base_url: str, model: str) -> ChatOptions:
    """What this provider and model want in a Chat Completions request."""
    host = urlsplit(base_url).hostname or ""
    own = any(host == known or known[0] == "." and host.endswith(known) for known in OPENAI_HOSTS)
    reasoning = OPENAI_REASONING.match(model.rpartition("/")[2])
    return REASONING_OPTIONS if own and reasoning else PLAIN_OPTIONS


def chat_url(config: Config, model: str) -> str:
    """The Chat Completions URL of the base URL as users write it; for Azure with the deployment.

    Azure's base is the resource, or a deployment, or its newer /openai/v1, which wants no version.
    """
    base, version = config.openai_base_url, config.azure_api_version
    if not version or base.endswith("/v1"):
        return f"{base}/chat/completions"
    if "/openai/deployments/" not in base:
        base = azure_deployment(base, model)
    return f"{base}/chat/completions?api-version={quote(version, safe='')}"


def azure_deployment(base: str, model: str) -> str:
    if model in ("", ".", ".."):
        raise ProxyError(400, "model: Azure needs the name of a deployment")
    root = base[: -len("/openai")] if base.endswith("/openai") else base
    return f"{root}/openai/deployments/{quote(model, safe='', errors='replace')}"


def openai_headers(config: Config) -> Tuple[Tuple[str, str], ...]:
    """The headers of every call, with the key as this provider wants it."""
    own = [("content-type", "application/json"), ("accept", "text/event-stream")]
    if config.openai_api_key and config.azure_api_version:
        own.append(("api-key", config.openai_api_key))
    elif config.openai_api_key:
        own.append(("authorization", f"Bearer {config.openai_api_key}"))
    return call_headers(config, own)
