"""Where telemetry goes by the settings, and one request to a collector: OTLP/HTTP with JSON.

Connections are made as those to upstreams are: with CA_FILE and web proxies, no redirect followed.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

from claude_proxy.config import VERSION, parse_otlp_pairs
from claude_proxy.errors import ProxyError, retry_after_seconds
from claude_proxy.exchange import Exchange
from claude_proxy.log import Log
from claude_proxy.pool import split_url
from claude_proxy.settings import Config
from claude_proxy.transport import Call, Transport

LONGEST_TOLD_WAIT = 300.0
LONGEST_COLLECTOR_WORDS = 200
# These alone may be sent again (OTLP 1.x, "Retryable Response Codes").
REPEATED_EXPORTS = (429, 502, 503, 504)
EXPORT_AGENT = f"claude_proxy-OTLP-Exporter-Python/{VERSION}"


class ExportPlan(NamedTuple):
    """What goes where: URLs, "" for nowhere; times in seconds."""

    metrics_url: str = ""
    traces_url: str = ""
    headers: Tuple[Tuple[str, str], ...] = ()
    timeout: float = 10.0
    metrics_every: float = 60.0
    traces_every: float = 5.0
    service: str = ""
    attributes: Tuple[Tuple[str, str], ...] = ()
    protocol: str = ""

    def __repr__(self) -> str:
        """Without the headers, which have keys in them."""
        return f"ExportPlan({self.metrics_url!r}, {self.traces_url!r})"


def read_plan(config: Config) -> ExportPlan:
    base = config.otel_exporter_otlp_endpoint.rstrip("/")
    if config.otel_sdk_disabled:
        return ExportPlan()
    return ExportPlan(
        config.otel_exporter_otlp_metrics_endpoint or (base and f"{base}/v1/metrics"),
        config.otel_exporter_otlp_traces_endpoint or (base and f"{base}/v1/traces"),
        parse_otlp_pairs(config.otel_exporter_otlp_headers),
        config.otel_exporter_otlp_timeout / 1000,
        config.otel_metric_export_interval / 1000,
        config.otel_bsp_schedule_delay / 1000,
        config.otel_service_name,
        config.otel_resource_attributes,
        config.otel_exporter_otlp_protocol.lower(),
    )


def otlp_secrets(headers: str) -> List[str]:
    """Every form in which the headers' values could turn up in a text."""
    plain = [value for _, value in parse_otlp_pairs(headers)]
    written = [pair.partition("=")[2].strip() for pair in headers.split(",")]
    return [*plain, *written, *(value.rpartition(" ")[2] for value in plain)]


class ExportWay(NamedTuple):
    """A plan, and what carries it out; all of it changes at once."""

    plan: ExportPlan
    transport: Transport
    log: Log
    circuits: Callable[[], Mapping[str, str]] = dict  # the state of each upstream's


# --- one request to the collector --------------------------------------------------------------


class ExportResult(NamedTuple):
    """What became of a request: `problem` is "" if there is nothing to tell."""

    problem: str = ""
    again: bool = False
    wait: Optional[float] = None  # what the collector asks for
    lost: Optional[int] = None  # what was refused of it; None: all


ALL_TAKEN = ExportResult(lost=0)


def judge_export(status: int, headers: Mapping[str, str], body: bytes, now: float) -> ExportResult:
    """What an answer means."""
    if status // 100 == 2:
        return judge_partial(read_words(body).get("partialSuccess"))
    words = str(read_words(body).get("message") or "")[:LONGEST_COLLECTOR_WORDS]
    problem = f"status {status}" + (f": {words}" if words else "")
    if status not in REPEATED_EXPORTS:
        return ExportResult(problem)
    wait = retry_after_seconds(headers, now)
    return ExportResult(problem, True, None if wait is None else min(wait, LONGEST_TOLD_WAIT))


def read_words(body: bytes) -> Dict[str, Any]:
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def judge_partial(partial: Any) -> ExportResult:
    """A request that was taken, but for what was rejected of it; it may not be sent again."""
    if not isinstance(partial, dict):
        return ALL_TAKEN
    words = str(partial.get("errorMessage") or "")[:LONGEST_COLLECTOR_WORDS]
    counts = (str(partial.get(name, "")) for name in ("rejectedSpans", "rejectedDataPoints"))
    lost = sum(int(count) for count in counts if count.isdecimal() and len(count) < 10)
    return ExportResult(f"{lost} rejected: {words}" if lost or words else "", lost=lost)


def post_export(way: ExportWay, url: str, body: bytes, exchange: Exchange) -> ExportResult:
    """Send one request. `exchange` is there to be cancelled; a timer does it when time is up."""
    target, path = split_url(url)
    own = {"user-agent": EXPORT_AGENT}
    named = {name.lower(): value for name, value in way.plan.headers}
    fields = {**own, **named, "content-type": "application/json"}
    call = Call("POST", target, path, tuple(fields.items()), body, retries=0)
    late = ProxyError(504, f"no answer within {way.plan.timeout:g} s (OTEL_EXPORTER_OTLP_TIMEOUT)")
    timer = threading.Timer(way.plan.timeout, exchange.cancel, [late])
    timer.daemon = True
    timer.start()
    try:
        response = way.transport.request(exchange, call)
        try:
            answer = response.read()
        finally:
            response.close()
    except ProxyError as error:
        return ExportResult(error.message.replace("the upstream", "the collector"), True)
    finally:
        timer.cancel()
    return judge_export(response.status, response.headers, answer, time.time())
