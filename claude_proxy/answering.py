"""From a client's request to its answer: routes are tried in order, the first to answer wins.

    plan_routes --> for each route: relay the bytes, or ask for events and encode them

The next route is tried only while nothing of an answer has been passed on, and only for failures
that another place may not have: rate limits, overload, server errors, no connection, no first byte
in time. What was tried is in the log and in `x-proxy-route`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import closing
from fnmatch import fnmatchcase
from functools import partial
from itertools import chain
from typing import Any, Dict, List, Optional, Tuple

from claude_proxy.agents import SESSION_HEADER, CallListener, find_agent, heard_events
from claude_proxy.asking import Answerer, Asking, read_request, request_of
from claude_proxy.compression import Summarize, compress_request
from claude_proxy.dialects.dialect import Dialect
from claude_proxy.dialects.text_turns import text_tool_events
from claude_proxy.errors import ProxyError
from claude_proxy.events import Event, Request, check_grammar, events_to_message, message_start
from claude_proxy.exchange import NEVER, AnswerForm, Exchange
from claude_proxy.fallback import PASSING_STATUSES, begun_answer, moves_on
from claude_proxy.forwards import ATTEMPT_FACTS, begin_forward, fail_forward
from claude_proxy.http1 import HttpRequest, HttpResponse
from claude_proxy.names import logged_model
from claude_proxy.phi import guard_phi
from claude_proxy.relay import (
    ERROR_MARK,
    EventError,
    RelayWatch,
    cleaned_headers,
    error_word,
    is_event_stream,
    may_quote,
    note_whole_answer,
    relayed_response_headers,
)
from claude_proxy.routes import RouteFacts
from claude_proxy.routing import Route, choose_route
from claude_proxy.settings import Config
from claude_proxy.sse import encode_json
from claude_proxy.summaries import summary_request
from claude_proxy.tokens import count_input_tokens
from claude_proxy.transport import UpstreamResponse
from claude_proxy.upstreams.anthropic import (
    MESSAGES_PATH,
    AnthropicUpstream,
    fold_stream,
    relayed_body,
)
from claude_proxy.upstreams.redcap_form import redcap_window
from claude_proxy.upstreams.upstream import Upstream
from claude_proxy.wire import JSON_HEADERS, json_response

STREAM_HEADERS = (
    ("content-type", "text/event-stream; charset=utf-8"),
    ("cache-control", "no-cache"),
    ("x-accel-buffering", "no"),
)
# A client that does not stream keeps its status line open longer: it loses the status by an early
# head, and is content as long as bytes come within 300 s (Claude Code 2.1.197).
WHOLE_ANSWER_PATIENCE = 60.0
LONGEST_NOTES = 1024
LONGEST_LOGGED_NAME = 200
NOTES_HEADER = "x-proxy-notes"
ROUTE_HEADER = "x-proxy-route"
# A relayed answer that is no stream is held until it is whole, but no more of it than this.
LARGEST_HELD = 8 * 1024 * 1024
# Of a stream's headers a message that is made of it has no use for these.
STREAM_HEADER_NAMES = ("content-type", "content-encoding", "cache-control", "x-accel-buffering")


# --- what routing may ask ------------------------------------------------------------------------


def route_facts(answerer: Answerer, request: Request, exchange: Exchange) -> RouteFacts:
    mapped = [name for name, _ in answerer.config.subagent_mappings]
    calls, prompts = answerer.agent_calls, answerer.agent_prompts
    agent = find_agent(request, exchange.headers, mapped, calls, prompts) if mapped else None
    windows = partial(upstream_window, answerer)
    return RouteFacts(request, agent, partial(count_input_tokens, request), windows)


def upstream_window(answerer: Answerer, route: Route) -> int:
    """The window that an upstream tells of for a model, 0 if it does not."""
    if route.upstream == "redcap":
        return redcap_window(route.model)
    if not answerer.config.model_limits:
        return 0
    catalog = getattr(answerer.upstreams.get(route.upstream), "catalog", None)
    return catalog.look_up(route.model).window if catalog else 0


# --- the answer ----------------------------------------------------------------------------------


def answer_request(
    answerer: Answerer, http: HttpRequest, exchange: Exchange, dialect: Dialect
) -> HttpResponse:
    """Answer in the client's dialect from the first route that can."""
    request = read_request(answerer, http, dialect)
    guard_phi(answerer.config, request, exchange)
    asking = Asking(http, request, exchange, dialect)
    routes = answerer.planner.plan(request, partial(route_facts, answerer, request, exchange))
    # The last one has an answer or raises.
    answers = (tried_answer(answerer, asking, r, r is not routes[-1]) for r in routes)
    return next(filter(None, answers))


def tried_answer(
    answerer: Answerer, asking: Asking, route: Route, may_move: bool
) -> Optional[HttpResponse]:
    """The answer by one route; None if it is another's turn. An error that is the client's tells,
    as an answer does, what was asked."""
    exchange, seconds = asking.exchange, answerer.config.fallback_timeout
    exchange.move_at = exchange.clock() + seconds if may_move and seconds else NEVER
    exchange.not_repeated = frozenset()
    try:
        return answer_by(answerer, asking, route, may_move)
    except ProxyError as error:
        early = may_move and exchange.first_event is None
        moving = early and moves_on(error) and exchange.renew()
        fail_forward(exchange, error, moving)
        if not moving:
            error.headers = (*error.headers, *own_headers(exchange))
            raise
        note_tried(exchange, route, error)
    return None


def note_tried(exchange: Exchange, route: Route, error: ProxyError) -> None:
    """Note the failure of a route, and forget what was so of it alone."""
    tried = f"{route.upstream}:{logged_model(route.model)} {error.status}"
    for name in ATTEMPT_FACTS:
        exchange.facts.pop(name, None)
    exchange.notes = []
    exchange.facts["tried"] = ", ".join(filter(None, [exchange.facts.get("tried"), tried]))


def answer_by(
    answerer: Answerer, asking: Asking, route: Route, may_move: bool
) -> HttpResponse:
    """The answer by one route. With `may_move` a failure is raised, to be tried elsewhere."""
    exchange = asking.exchange
    note_route(asking, route)
    upstream = answerer.upstreams.get(route.upstream)
    if upstream is None:
        raise ProxyError(404, f"the upstream {route.upstream} of this model is not configured")
    as_text = tools_are_text(answerer.config, upstream, route)
    # Once pings have gone out the answer has begun, in events.
    untouched = asking.dialect.name == "anthropic" and not exchange.facts.get("tried")
    if isinstance(upstream, AnthropicUpstream) and untouched and not as_text:
        begin_forward(exchange, asking.http, asking.request)
        answer = relay_answer(answerer, upstream, asking, route, may_move)
        return begun_answer(answer, exchange) if may_move else answer
    request = {**request_of(answerer, asking), "model": route.model}
    begin_forward(exchange, asking.http, request)
    exchange.form = answer_form(
        exchange, asking.dialect, asking.streaming, answerer.config.ping_interval
    )
    request = compressed_request(answerer, request, exchange)
    events = asked_events(upstream, request, exchange, as_text)
    first = next(events)  # until here an error is a status, and another route can be tried
    return encoded_answer(answerer, asking, first, events)


def compressed_request(answerer: Answerer, request: Request, exchange: Exchange) -> Request:
    """The request with a shorter system prompt, where settings want that and it is too long."""
    config = answerer.config
    if config.prompt_compression == "none":
        return request
    summarize: Optional[Summarize] = None
    if config.prompt_compression == "summarize":
        ask = partial(asked_summary, answerer, exchange)
        summarize = partial(answerer.summaries.summary, ask=ask)
    request, notes = compress_request(request, config.prompt_max_system_tokens, summarize)
    exchange.notes += notes
    return request


def asked_summary(answerer: Answerer, exchange: Exchange, text: str, tokens: int) -> str:
    """One call of the small model; ProxyError if it gives no whole answer."""
    route = choose_route(answerer.config, "haiku")
    upstream = answerer.upstreams.get(route.upstream)
    if upstream is None:
        raise ProxyError(404, f"the upstream {route.upstream} of the small model is not configured")
    request = {**summary_request(text, tokens), "model": route.model}
    message = events_to_message(check_grammar(upstream.stream(request, exchange)))
    if message.get("stop_reason") == "max_tokens":
        raise ProxyError(502, "the summary was cut off")
    return "".join(b["text"] for b in message["content"] if b.get("type") == "text")


def note_route(asking: Asking, route: Route) -> None:
    exchange, facts = asking.exchange, asking.exchange.facts
    exchange.model = str(asking.request.get("model") or "") or route.model
    facts["model"] = exchange.model[:LONGEST_LOGGED_NAME]
    facts["upstream"] = route.upstream
    facts["upstream_model"] = route.model[:LONGEST_LOGGED_NAME]
    facts["route"] = route.reason
    facts["stream"] = asking.streaming


def asked_events(
    upstream: Upstream, request: Request, exchange: Exchange, as_text: bool
) -> Iterator[Event]:
    """The checked and observed events of an upstream."""
    ask = partial(upstream.stream, exchange=exchange)
    if as_text:
        events = text_tool_events(request, ask, exchange.message_id, exchange.facts)
    else:
        events = ask(request)
    return exchange.observe(check_grammar(events))


def encoded_answer(
    answerer: Answerer, asking: Asking, first: Event, more: Iterator[Event]
) -> HttpResponse:
    """The answer in the client's dialect; `more` are the events behind the first."""
    exchange, dialect = asking.exchange, asking.dialect
    listener = call_listener(answerer, exchange)
    events: Iterable[Event] = chain([first], more)
    events = heard_events(events, listener) if listener else events
    if not asking.streaming:
        message = dialect.encode_message(events_to_message(events))
        return json_response(200, message, own_headers(exchange))
    pieces = encoded_pieces(events, more, dialect)
    return HttpResponse(200, STREAM_HEADERS + own_headers(exchange), pieces)


def encoded_pieces(
    events: Iterable[Event], source: Iterator[Event], dialect: Dialect
) -> Iterator[bytes]:
    """The events as bytes; whatever ends them ends their source too."""
    encode = dialect.encode_event
    try:
        for event in events:
            yield encode(event)
    finally:
        getattr(source, "close", bool)()


def tools_are_text(config: Config, upstream: Upstream, route: Route) -> bool:
    """Whether the model cannot call tools: its upstream never can, or TEXT_TOOLS_MODELS says so."""
    if not config.text_tools_models:
        return not upstream.native_tools
    names = (route.model, f"{route.upstream}:{route.model}")
    return not upstream.native_tools or any(
        fnmatchcase(name, pattern) for name in names for pattern in config.text_tools_models
    )


def call_listener(answerer: Answerer, exchange: Exchange) -> Optional[CallListener]:
    """Who listens for calls of agents; nobody where none is mapped."""
    if not answerer.config.subagent_mappings:
        return None
    return CallListener(answerer.agent_calls, exchange.headers.get(SESSION_HEADER, ""))


# --- relayed -------------------------------------------------------------------------------------


def relay_answer(
    answerer: Answerer,
    upstream: AnthropicUpstream,
    asking: Asking,
    route: Route,
    may_move: bool,
) -> HttpResponse:
    """The API's own answer, whatever it is; with `may_move` a passing failure is raised instead."""
    exchange = asking.exchange
    values = changed_values(answerer.config, asking, route)
    body = relayed_body(asking.http.body, values)
    exchange.form = None  # nothing but the API's own bytes is sent
    response = upstream.ask(asking.http, body, exchange)
    if may_move and response.status in PASSING_STATUSES:
        with closing(response):
            raise ProxyError(response.status, "tried elsewhere", upstream_status=response.status)
    listener = call_listener(answerer, exchange)
    if "stream" in values and response.status == 200 and is_event_stream(response.headers):
        return demoted_answer(response, exchange, listener, may_move)
    return relayed_answer(response, exchange, listener)


def changed_values(config: Config, asking: Asking, route: Route) -> Dict[str, Any]:
    """What is to be changed in a relayed body: nothing, the model, `stream`, or both."""
    request, values = asking.request, {}
    if not request:
        return {}  # it could not be read: the API says so
    if route.model and route.model != str(request.get("model") or ""):
        values["model"] = route.model
    whole = request.get("stream") is None or request.get("stream") is False
    counted = asking.http.path.rstrip("/") != MESSAGES_PATH
    if config.anthropic_demote_nonstreaming and whole and not counted:
        values["stream"] = True
    return values


def relayed_answer(
    response: UpstreamResponse,
    exchange: Exchange,
    listener: Optional[CallListener] = None,
    head_only: bool = False,
) -> HttpResponse:
    """An upstream's answer as it came: a stream, and what is large, piece by piece."""
    headers = relayed_response_headers(response.headers)
    note_failed_forward(response, exchange)
    if response.status >= 300:
        headers = cleaned_headers(headers, exchange.clean)
    headers += own_headers(exchange)
    if head_only:
        response.close()
        length = response.headers.get("content-length", "")
        told = (("content-length", length),) if length.isdecimal() else ()
        return HttpResponse(response.status, headers + told, b"")
    streamed = is_event_stream(response.headers)
    pieces = response.raw_pieces()
    try:
        begun, whole = gather(pieces, 1 if streamed else LARGEST_HELD)
    except BaseException:
        response.close()
        raise
    if whole:
        response.close()
        note_whole_answer(exchange, begun, listener)
        doubtful = response.status >= 300 or may_quote(begun, response.headers)
        return HttpResponse(response.status, headers, exchange.clean(begun) if doubtful else begun)
    readable = streamed and not response.headers.get("content-encoding")
    watch = RelayWatch(exchange, listener) if readable else None
    return HttpResponse(
        response.status, headers, relayed_pieces(response, chain([begun], pieces), watch, exchange)
    )


def gather(pieces: Iterator[bytes], size: int) -> Tuple[bytes, bool]:
    """(the first pieces until they have this size, whether these were all)."""
    parts: List[bytes] = []
    for piece in pieces:
        parts.append(piece)
        size -= len(piece)
        if size <= 0:
            return b"".join(parts), False
    return b"".join(parts), True


def relayed_pieces(
    response: UpstreamResponse,
    pieces: Iterable[bytes],
    watch: Optional[RelayWatch],
    exchange: Exchange,
) -> Iterator[bytes]:
    with closing(response):
        for piece in pieces:
            if watch is not None:
                watch.see(piece)
            yield exchange.clean(piece) if ERROR_MARK in piece else piece
        if watch is not None:
            watch.end()


def demoted_answer(
    response: UpstreamResponse,
    exchange: Exchange,
    listener: Optional[CallListener],
    may_move: bool,
) -> HttpResponse:
    """A whole message made of a streamed one, with the API's own headers."""
    kept = relayed_response_headers(response.headers)
    headers = tuple((n, v) for n, v in kept if n not in STREAM_HEADER_NAMES)
    exchange.facts["demoted"] = True
    status = 200
    try:
        told = fold_stream(response, exchange)
    except EventError as error:
        if may_move and exchange.first_event is None and moves_on(error):
            raise
        word = error_word(error.event)
        exchange.facts.update(upstream_status=200, failed_forward=True, error=word)
        status, told = error.status, error.event
    if listener is not None:
        listener.hear_message(told)
    body = encode_json(told).encode("ascii")
    body = body if status == 200 else exchange.clean(body)
    return HttpResponse(status, JSON_HEADERS + headers + own_headers(exchange), body)


def note_failed_forward(response: UpstreamResponse, exchange: Exchange) -> None:
    if response.status >= 400:
        exchange.facts["upstream_status"] = response.status
        exchange.facts["failed_forward"] = True


# --- headers and forms ---------------------------------------------------------------------------


def own_headers(exchange: Exchange) -> Tuple[Tuple[str, str], ...]:
    """Where the answer comes from, and for a client that asks what was changed on the way."""
    facts = exchange.facts
    tried = f"; tried {facts['tried']}" if facts.get("tried") else ""
    told = f"{facts.get('upstream')}:{facts.get('upstream_model')}; {facts.get('route')}{tried}"
    route = (ROUTE_HEADER, header_text(told))
    if not exchange.wants_notes:
        return (route,)
    return (route, (NOTES_HEADER, header_text(joined_notes(exchange)) or "none"))


def header_text(text: str) -> str:
    plain = text.isascii() and text.isprintable()
    return (text if plain else re.sub(r"[^ -~]", "?", text))[:LONGEST_NOTES]


def joined_notes(exchange: Exchange) -> str:
    return ", ".join(dict.fromkeys(exchange.notes)) if exchange.notes else ""


def answer_form(
    exchange: Exchange, dialect: Dialect, streaming: bool, interval: float
) -> AnswerForm:
    """How this answer looks if it has to begin, or to fail, before it is known."""
    if streaming:

        def opening() -> bytes:
            usage = {"input_tokens": 0, "output_tokens": 0}
            return dialect.encode_event(message_start(exchange.message_id, exchange.model, usage))

        return AnswerForm(
            STREAM_HEADERS,
            interval,
            interval,
            opening,
            dialect.ping,
            lambda: dialect.nudge(*exchange.open_block),
            lambda error: dialect.error_frame(error, exchange.id),
        )
    # Blanks before a JSON text mean nothing.
    return AnswerForm(
        JSON_HEADERS,
        WHOLE_ANSWER_PATIENCE,
        interval,
        lambda: b" ",
        b" ",
        lambda: b" ",
        lambda error: encode_json(dialect.encode_error(error, exchange.id)).encode("ascii"),
    )
