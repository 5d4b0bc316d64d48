"""Who is told of a finished exchange: log, metrics, limits, audit, telemetry. None can break an
answer."""

from __future__ import annotations

from typing import Any, Callable, Dict, Optional, Protocol, Tuple

from claude_proxy.answering import joined_notes
from claude_proxy.audit import Audit
from claude_proxy.auth import OPEN_PATHS
from claude_proxy.exchange import Exchange
from claude_proxy.forwards import forward_failures
from claude_proxy.http1 import HttpRequest
from claude_proxy.log import Log
from claude_proxy.metrics import Metrics
from claude_proxy.names import logged_method, logged_models, logged_path
from claude_proxy.otlp_export import Telemetry
from claude_proxy.rate_limits import Gate

LOGGED_USAGE = (
    "input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens",
)  # fmt: skip
QUIET_PATHS = frozenset((*OPEN_PATHS, "/metrics", "/openapi.json", "/"))


class Watchers(Protocol):
    """What an app has for its observers."""

    @property
    def log(self) -> Log: ...

    @property
    def metrics(self) -> Metrics: ...

    @property
    def gate(self) -> Gate: ...

    @property
    def audit(self) -> Audit: ...

    @property
    def telemetry(self) -> Telemetry: ...


Observer = Callable[[Watchers, Exchange, Optional[HttpRequest], int], None]


def is_quiet(request: Optional[HttpRequest], status: int) -> bool:
    """Whether it was a probe, as they come all day."""
    return request is not None and request.path in QUIET_PATHS and status < 400


def log_exchange(
    app: Watchers, exchange: Exchange, request: Optional[HttpRequest], status: int
) -> None:
    """One line a request: facts and figures, nothing of what was said."""
    facts, usage, first = exchange.facts, exchange.usage, exchange.first_event
    fields: Dict[str, Any] = {"id": exchange.id}
    if request is not None:
        fields["client"] = request.peer
        fields["method"] = logged_method(request.method)
        fields["path"] = logged_path(request.path)
    fields["status"] = status
    fields.update(facts)
    fields.update(logged_models(facts))
    error = fields.pop("error", None)
    for name in LOGGED_USAGE:
        fields[name] = usage.get(name)
    fields["first_ms"] = round((first - exchange.started) * 1000) if first else None
    fields["ms"] = round((exchange.clock() - exchange.started) * 1000)
    fields["notes"] = joined_notes(exchange) or None
    fields["error"] = error  # the last one, to be found
    level = "warning" if status >= 400 or error else "info"
    app.log.write("debug" if is_quiet(request, status) else level, "request", fields)


def log_failed_forwards(
    app: Watchers, exchange: Exchange, request: Optional[HttpRequest], status: int
) -> None:
    """One line for each request to an upstream that failed, also where another has answered."""
    for fields in forward_failures(exchange, status):
        app.log.write("warning", "forward_failed", fields)


def count_exchange(
    app: Watchers, exchange: Exchange, request: Optional[HttpRequest], status: int
) -> None:
    app.metrics.observe(exchange, request, status)


def leave_gate(
    app: Watchers, exchange: Exchange, request: Optional[HttpRequest], status: int
) -> None:
    app.gate.leave(exchange)


def audit_exchange(
    app: Watchers, exchange: Exchange, request: Optional[HttpRequest], status: int
) -> None:
    app.audit.note(exchange, request, status)


def trace_exchange(
    app: Watchers, exchange: Exchange, request: Optional[HttpRequest], status: int
) -> None:
    if not is_quiet(request, status):
        app.telemetry.note(exchange, request, status)


# Told of every finished exchange, in this order.
OBSERVERS: Tuple[Observer, ...] = (
    leave_gate, log_failed_forwards, log_exchange, count_exchange, audit_exchange,
    trace_exchange,
)  # fmt: skip
