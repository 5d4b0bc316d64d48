"""What is served: the table of endpoints, and the way from a request to its answer.

Endpoints are plain functions (app, http request, exchange) -> HttpResponse; they run without a
socket. An App is a value that `assembly.build_app` makes: all that its endpoints need, nothing that
changes. The server calls `check` with a request's head, `answer` with the whole request, and
`finish` when all is said.
"""

from __future__ import annotations

import ssl
import time
from functools import partial
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple
from urllib.parse import parse_qs, unquote

from claude_proxy.answering import (
    LONGEST_LOGGED_NAME,
    NOTES_HEADER,
    answer_request,
    asked_events,
    note_route,
    relay_answer,
    relayed_answer,
    tools_are_text,
)
from claude_proxy.asking import Answerer, Asking, read_request
from claude_proxy.audit import Audit
from claude_proxy.auth import (
    accepted_keys,
    check_content_type,
    cors_headers,
    is_preflight,
    preflight_headers,
    run_guards,
    shown_keys,
)
from claude_proxy.circuit import Circuits
from claude_proxy.config import VERSION
from claude_proxy.dialects.anthropic import MESSAGES_DIALECT
from claude_proxy.dialects.dialect import parse_json_object
from claude_proxy.errors import ProxyError
from claude_proxy.events import events_to_message
from claude_proxy.exchange import Exchange
from claude_proxy.http1 import HttpRequest, HttpResponse
from claude_proxy.inflight import Inflight
from claude_proxy.json_edit import read_members
from claude_proxy.log import Log
from claude_proxy.metrics import Metrics, render_metrics
from claude_proxy.names import logged_method
from claude_proxy.observers import OBSERVERS
from claude_proxy.openapi import openapi_document
from claude_proxy.otlp_export import Telemetry
from claude_proxy.phi import guard_phi
from claude_proxy.rate_limits import Gate, drop_doubled
from claude_proxy.routing import choose_route, listed_models
from claude_proxy.settings import Config
from claude_proxy.tokens import count_input_tokens
from claude_proxy.transport import Transport
from claude_proxy.upstreams.anthropic import AnthropicUpstream
from claude_proxy.upstreams.upstream import Upstream
from claude_proxy.wire import json_response

METRICS_HEADERS = (("content-type", "text/plain; version=0.0.4; charset=utf-8"),)
MODEL_CREATED = "2025-01-01T00:00:00Z"
MODEL_CREATED_SECONDS = 1735689600
MOST_MODELS_LISTED = 1000
TEST_PROMPT = "Answer with the one word OK."
TEST_MAX_TOKENS = 64


class App(NamedTuple):
    """Everything that the endpoints need."""

    config: Config
    log: Log
    upstreams: Dict[str, Upstream]
    transport: Transport
    inflight: Inflight
    answerer: Answerer
    metrics: Metrics
    gate: Gate
    audit: Audit
    telemetry: Telemetry
    circuits: Circuits
    tls: Optional[ssl.SSLContext]  # to listen with

    def inherit(self, old: App) -> App:
        """This app, going on with what an old one has counted, and learned of agents, with its
        audit, and with its exporter, which sends by these settings now."""
        answerer = self.answerer._replace(
            agent_calls=old.answerer.agent_calls, summaries=old.answerer.summaries
        )
        telemetry = old.telemetry.follow(self.telemetry)
        return self._replace(
            answerer=answerer, metrics=old.metrics, audit=old.audit, telemetry=telemetry
        )

    def check(self, request: HttpRequest, exchange: Exchange) -> None:
        """Refuse a request for what its head says, before its body is read."""
        if self.config.cors_allowed_origins:
            exchange.answer_headers += cors_headers(self.config, request)
        self.audit.check(request)
        run_guards(self.config, request)
        self.gate.enter(request, exchange)
        check_content_type(self.config, request)
        self.endpoint(request)

    def endpoint(self, request: HttpRequest) -> Endpoint:
        """What answers a request; Claude's own API, where that is the upstream, has other paths."""
        asked = (request.method, request.path)
        if asked in OWN_ENDPOINTS:
            return ENDPOINTS[asked]  # what nearly all ask for
        if is_preflight(self.config, request):
            return answer_preflight
        relayed = self.config.upstream == "anthropic" and request.path.startswith("/v1/")
        if relayed and (request.method, request.path.rstrip("/")) not in OWN_ENDPOINTS:
            return relay_other
        return find_endpoint(request.method, request.path)

    def answer(self, request: HttpRequest, exchange: Exchange) -> HttpResponse:
        """The answer to a whole request; a stream's first event is known by then."""
        try:
            exchange.endpoint = endpoint_pattern(request.path)
            exchange.clean = partial(without_credentials, self.log, exchange)
            response = self.endpoint(request)(self, request, exchange)
        except RecursionError:
            raise ProxyError(400, "the request body is nested too deeply") from None
        if exchange.answer_headers:
            drop_doubled(exchange, response.headers)
        return response

    def finish(self, exchange: Exchange, request: Optional[HttpRequest], status: int) -> None:
        """Tell the observers of a finished exchange. None of them can break an answer any more."""
        for observer in OBSERVERS:
            try:
                observer(self, exchange, request, status)
            except Exception as error:
                self.log.error("observer_failed", id=exchange.id, error=type(error).__name__)


def without_credentials(log: Log, exchange: Exchange, data: bytes) -> bytes:
    """What an upstream says, without what it or we have been shown."""
    return log.clean_bytes(data, exchange.credentials())


Endpoint = Callable[[App, HttpRequest, Exchange], HttpResponse]


# --- messages ----------------------------------------------------------------------------------


def create_message(app: App, http: HttpRequest, exchange: Exchange) -> HttpResponse:
    """POST /v1/messages"""
    meet_client(http, exchange)
    return answer_request(app.answerer, http, exchange, MESSAGES_DIALECT)


def count_tokens(app: App, http: HttpRequest, exchange: Exchange) -> HttpResponse:
    """POST /v1/messages/count_tokens: the API's own count where a model is there, else an estimate
    made here, never under."""
    meet_client(http, exchange)
    request = read_request(app.answerer, http, MESSAGES_DIALECT)
    route = choose_route(app.config, str(request.get("model") or ""))
    upstream = app.upstreams.get(route.upstream)
    exchange.facts.update(model=str(request.get("model") or "")[:LONGEST_LOGGED_NAME])
    if isinstance(upstream, AnthropicUpstream):
        asking = Asking(http, request, exchange, MESSAGES_DIALECT)
        note_route(asking, route)
        guard_phi(app.config, request, exchange)
        return relay_answer(app.answerer, upstream, asking, route, may_move=False)
    request = MESSAGES_DIALECT.decode_request(parse_json_object(http.body))
    return json_response(200, {"input_tokens": count_input_tokens(request)})


def meet_client(http: HttpRequest, exchange: Exchange) -> None:
    """Note what later steps have to know of the client."""
    exchange.keys = exchange.keys or shown_keys(http)
    exchange.headers = http.headers
    wanted = http.headers.get(NOTES_HEADER)
    exchange.wants_notes = wanted is not None and wanted.lower() not in ("0", "false", "")


def relay_other(app: App, http: HttpRequest, exchange: Exchange) -> HttpResponse:
    """Any other /v1/ path, for the Anthropic API to answer."""
    meet_client(http, exchange)
    exchange.facts.update(upstream="anthropic", upstream_model="", route="path")
    upstream = app.upstreams["anthropic"]
    if http.body:
        guard_phi(app.config, read_members(http.body) or {}, exchange)
    response = upstream.ask(http, http.body, exchange)
    return relayed_answer(response, exchange, head_only=http.method == "HEAD")


def answer_preflight(app: App, http: HttpRequest, exchange: Exchange) -> HttpResponse:
    """OPTIONS of any path, from a page of an origin that settings name."""
    return HttpResponse(200, preflight_headers(http), b"")


# --- models ------------------------------------------------------------------------------------


def model_row(model_id: str, name: str) -> Dict[str, Any]:
    """A model as both families of clients read it."""
    return {
        "type": "model",
        "id": model_id,
        "display_name": name,
        "created_at": MODEL_CREATED,
        "object": "model",
        "created": MODEL_CREATED_SECONDS,
        "owned_by": "claude_proxy",
    }


def list_models(app: App, http: HttpRequest, exchange: Exchange) -> HttpResponse:
    """GET /v1/models, from configuration alone: Claude Code waits three seconds for it."""
    query = {key: values[-1] for key, values in parse_qs(http.query).items()}
    rows = [model_row(*named) for named in listed_models(app.config)]
    page, more = model_page(rows, query)
    ids = [row["id"] for row in page]
    return json_response(
        200,
        {
            "object": "list",
            "data": page,
            "has_more": more,
            "first_id": ids[0] if ids else None,
            "last_id": ids[-1] if ids else None,
        },
    )


def model_page(
    rows: List[Dict[str, Any]], query: Dict[str, str]
) -> Tuple[List[Dict[str, Any]], bool]:
    """(rows, whether there are more) for `limit`, `after_id` and `before_id`."""
    ids = [row["id"] for row in rows]
    try:
        limit = int(query.get("limit", MOST_MODELS_LISTED))
    except ValueError:
        limit = 0
    if not 1 <= limit <= MOST_MODELS_LISTED:
        raise ProxyError(400, f"limit: must be a number from 1 to {MOST_MODELS_LISTED}")
    start = ids.index(query["after_id"]) + 1 if query.get("after_id") in ids else 0
    end = ids.index(query["before_id"]) if query.get("before_id") in ids else len(ids)
    if "before_id" in query:
        start = max(start, end - limit)
    return rows[start : min(end, start + limit)], min(end, start + limit) < end


def show_model(app: App, http: HttpRequest, exchange: Exchange) -> HttpResponse:
    """GET /v1/models/{id}"""
    wanted = unquote(http.path[len(MODELS_PREFIX) :])
    for model_id, name in listed_models(app.config):
        if model_id == wanted:
            return json_response(200, model_row(model_id, name))
    raise ProxyError(
        404, f"model: {wanted[:200]} is not listed here", logged="model: it is not listed here"
    )


# --- the proxy itself --------------------------------------------------------------------------


def show_health(app: App, http: HttpRequest, exchange: Exchange) -> HttpResponse:
    """GET /health, /healthz: 200, or 503 while draining. Asks no upstream."""
    status, word = (503, "draining") if app.inflight.draining else (200, "ok")
    facts = {"status": word, "version": VERSION, "upstream": app.config.upstream}
    return json_response(status, {**facts, "circuit": app.circuits.states()})


def show_readiness(app: App, http: HttpRequest, exchange: Exchange) -> HttpResponse:
    """GET /readyz: 503 while draining, or while every upstream is down and none may be tried."""
    status, word = (503, "draining") if app.inflight.draining else (200, "ready")
    if status == 200 and app.circuits.all_refuse():
        status, word = 503, "upstreams_down"
    return json_response(status, {"status": word, "circuit": app.circuits.states()})


def show_livez(app: App, http: HttpRequest, exchange: Exchange) -> HttpResponse:
    """GET /livez: what is in flight, this request not counted."""
    in_flight = sum(1 for other in app.inflight.exchanges() if other is not exchange)
    return json_response(
        200,
        {
            "status": "ok",
            "in_flight": in_flight,
            "draining": app.inflight.draining,
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        },
    )


def show_metrics(app: App, http: HttpRequest, exchange: Exchange) -> HttpResponse:
    """GET /metrics: counters and histograms for Prometheus."""
    in_flight = sum(1 for other in app.inflight.exchanges() if other is not exchange)
    text = render_metrics(
        app.metrics,
        in_flight,
        app.inflight.connections(),
        app.inflight.draining,
        app.circuits.states(),
    )
    return HttpResponse(200, METRICS_HEADERS, text.encode())


def show_openapi(app: App, http: HttpRequest, exchange: Exchange) -> HttpResponse:
    """GET /openapi.json: this description."""
    return json_response(200, openapi_document(ENDPOINTS))


def show_facts(app: App, http: HttpRequest, exchange: Exchange) -> HttpResponse:
    """GET /: what this is and how it is set, without secrets."""
    config = app.config
    return json_response(
        200,
        {
            "name": "claude_proxy",
            "version": VERSION,
            "upstream": config.upstream,
            "upstream_is": app.upstreams[config.upstream].describe(),
            "models": {
                "big": config.big_model,
                "middle": config.middle_model,
                "small": config.small_model,
            },
            "client_key_required": bool(accepted_keys(config)),
            "endpoints": [f"{method} {path}" for method, path in sorted(ENDPOINTS)],
        },
    )


def check_connection(app: App, http: HttpRequest, exchange: Exchange) -> HttpResponse:
    """GET /test-connection: what the upstream says of itself, or one small request to it."""
    exchange.keys = exchange.keys or shown_keys(http)
    return json_response(200, ask_upstream(app, exchange))


def ask_upstream(app: App, exchange: Exchange) -> Dict[str, Any]:
    """What costs nothing, else one word of the small model, without anybody's secrets; ProxyError
    if it cannot be had."""
    redact = partial(app.log.redact, shown=exchange.credentials())
    return without_secrets(asked_upstream(app, exchange), redact)


def without_secrets(value: Any, redact: Callable[[str], str]) -> Any:
    """Decoded JSON with every text in it redacted."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, list):
        return [without_secrets(item, redact) for item in value]
    if isinstance(value, dict):
        return {redact(str(key)): without_secrets(item, redact) for key, item in value.items()}
    return value


def asked_upstream(app: App, exchange: Exchange) -> Dict[str, Any]:
    found = app.upstreams[app.config.upstream].probe(exchange)
    if found:
        return {"status": "ok", "upstream": app.config.upstream, **found}
    request = {
        "model": app.config.small_model or "",
        "max_tokens": TEST_MAX_TOKENS,
        "messages": [{"role": "user", "content": TEST_PROMPT}],
    }
    route = choose_route(app.config, request["model"])
    http = HttpRequest("POST", "", "", {}, "")
    note_route(Asking(http, request, exchange, MESSAGES_DIALECT), route)
    upstream = app.upstreams[route.upstream]
    as_text = tools_are_text(app.config, upstream, route)
    request["model"] = route.model
    message = events_to_message(asked_events(upstream, request, exchange, as_text))
    return {
        "status": "ok",
        "upstream": exchange.facts["upstream"],
        "model": exchange.facts["upstream_model"],
        "milliseconds": round((exchange.clock() - exchange.started) * 1000),
        "stop_reason": message.get("stop_reason"),
        "usage": message.get("usage"),
    }


# --- the table ---------------------------------------------------------------------------------

MODELS_PREFIX = "/v1/models/"

ENDPOINTS: Dict[Tuple[str, str], Endpoint] = {
    ("POST", "/v1/messages"): create_message,
    ("POST", "/v1/messages/count_tokens"): count_tokens,
    ("GET", "/v1/models"): list_models,
    ("GET", MODELS_PREFIX + "{id}"): show_model,
    ("GET", "/health"): show_health,
    ("GET", "/healthz"): show_health,
    ("GET", "/livez"): show_livez,
    ("GET", "/readyz"): show_readiness,
    ("GET", "/metrics"): show_metrics,
    ("GET", "/openapi.json"): show_openapi,
    ("GET", "/test-connection"): check_connection,
    ("GET", "/"): show_facts,
}


ENDPOINT_PATTERNS = frozenset(path for _, path in ENDPOINTS)
# With the Anthropic API as the upstream these are answered here too.
OWN_ENDPOINTS = (("POST", "/v1/messages"), ("POST", "/v1/messages/count_tokens"))


def endpoint_pattern(path: str) -> str:
    """The path as the table has it; "" for one that is not there."""
    pattern = path.rstrip("/") or "/"
    if pattern.startswith(MODELS_PREFIX):
        pattern = MODELS_PREFIX + "{id}"
    return pattern if pattern in ENDPOINT_PATTERNS else ""


def find_endpoint(method: str, path: str) -> Endpoint:
    """The endpoint of a method and path; ProxyError 404, or 405 with the methods allowed."""
    pattern = endpoint_pattern(path)
    wanted = "GET" if method == "HEAD" else method
    endpoint = ENDPOINTS.get((wanted, pattern))
    if endpoint is not None:
        return endpoint
    allowed = [m for m, p in ENDPOINTS if p == pattern]
    if not allowed:
        raise ProxyError(
            404,
            f"there is no {path[:200]} here; the endpoints are listed at /",
            logged="there is no such path here",
        )
    allowed += ["HEAD"] if "GET" in allowed else []
    takes = f"{path[:200]} takes {' or '.join(allowed)}, not"
    headers, logged = [("allow", ", ".join(allowed))], f"{takes} {logged_method(method)}"
    raise ProxyError(
        405, f"{takes} {method[:20]}", "invalid_request_error", headers, logged=logged
    )
