"""Metrics and spans as OTLP/JSON has them, the form that OpenTelemetry's collectors read. Pure.

Numbers of 64 bits are decimal strings there, identifiers are hexadecimal, enums are numbers. Names
are OpenTelemetry's where it has some. A span tells what the log tells: names, figures and types,
nothing that was said. What a client or an upstream could have put anything into is told if it looks
like a name, else as "other".
"""

from __future__ import annotations

import math
import re
import secrets
import string
from collections.abc import Iterable, Mapping
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from claude_proxy.audit import audit_outcome, audited_error
from claude_proxy.config import VERSION
from claude_proxy.exchange import Exchange
from claude_proxy.http1 import HttpRequest
from claude_proxy.metrics import (
    BUILD,
    CONNECTIONS,
    DRAINING,
    DURATION,
    FAILURES,
    FIRST_TOKEN,
    IN_FLIGHT,
    MOVED,
    OTHER_LABEL,
    REQUESTS,
    RETRIES,
    SPANS_LOST,
    STARTED,
    TOKEN_USAGE,
    UPSTREAM_DOWN,
    Labels,
    MetricRow,
    MetricSample,
)

SERVER_SPAN = 2
FAILED_STATUS = 2
CUMULATIVE = 2
# Sampled; and bits 8 and 9: it is known whether the parent is of another process, and it is.
ROOT_FLAGS, CHILD_FLAGS = 0x101, 0x301

LONGEST_TOLD_NAME = 128
NAME_CHARACTERS = frozenset(string.ascii_letters + string.digits + "._:/[]@+-")
MOST_TOKENS = 2**53
TOLD_METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS")
# What a request to one of our endpoints is to OpenTelemetry.
GEN_AI_OPERATIONS = {"/v1/messages": "chat"}
# What is counted -> (name, unit). A collector's way to Prometheus makes the names of /metrics of
# these again. What has no row is sent under the name that it has there.
OTLP_METRICS: Dict[MetricRow, Tuple[str, str]] = {
    REQUESTS: ("claude_proxy.requests", "{request}"),
    FAILURES: ("claude_proxy.upstream.failures", "{failure}"),
    RETRIES: ("claude_proxy.upstream.retries", "{retry}"),
    MOVED: ("claude_proxy.fallbacks", "{fallback}"),
    DURATION: ("gen_ai.server.request.duration", "s"),
    FIRST_TOKEN: ("gen_ai.server.time_to_first_token", "s"),
    TOKEN_USAGE: ("gen_ai.client.token.usage", "{token}"),
    SPANS_LOST: ("claude_proxy.spans.dropped", "{span}"),
    IN_FLIGHT: ("claude_proxy.requests.in_flight", "{request}"),
    CONNECTIONS: ("claude_proxy.client.connections", "{connection}"),
    DRAINING: ("claude_proxy.draining", "1"),
    UPSTREAM_DOWN: ("claude_proxy.circuit.open", "1"),
}
# Every point has its start, and the resource has the version.
NOT_EXPORTED = (STARTED, BUILD)
OTLP_LABELS = {
    "path": "http.route",
    "status": "http.response.status_code",
    "upstream": "gen_ai.provider.name",
    "model": "gen_ai.response.model",
    "gen_ai_token_type": "gen_ai.token.type",
}
# Counted apart in answers; to OpenTelemetry the first includes the others.
CACHED_USAGE = (
    ("gen_ai.usage.cache_read.input_tokens", "cache_read_input_tokens"),
    ("gen_ai.usage.cache_creation.input_tokens", "cache_creation_input_tokens"),
)

Attributes = Mapping[str, Any]


def told_name(value: Any) -> Optional[str]:
    """A name as it is; "other" if it does not look like one, None for none."""
    text = "" if value is None else str(value)
    plain = len(text) <= LONGEST_TOLD_NAME and set(text) <= NAME_CHARACTERS
    return (text if plain else OTHER_LABEL) or None


# --- values ------------------------------------------------------------------------------------


def otlp_value(value: Any) -> Dict[str, Any]:
    """Texts, numbers and tuples of them."""
    if isinstance(value, tuple):
        return {"arrayValue": {"values": [otlp_value(one) for one in value]}}
    if isinstance(value, float):
        return {"doubleValue": value}
    return {"intValue": str(value)} if isinstance(value, int) else {"stringValue": str(value)}


def otlp_attributes(attributes: Attributes) -> List[Dict[str, Any]]:
    return [{"key": key, "value": otlp_value(value)} for key, value in attributes.items()]


def otlp_nanoseconds(seconds: float) -> str:
    return str(int(seconds * 10**9))


def otlp_resource(given: Iterable[Tuple[str, str]], service: str, instance: str) -> Attributes:
    """Who sends; the administrator's own attributes go before ours."""
    return {
        "service.name": service or "claude_proxy",
        "service.version": VERSION,
        "service.instance.id": instance,
        "telemetry.sdk.name": "claude_proxy",
        "telemetry.sdk.language": "python",
        "telemetry.sdk.version": VERSION,
        **dict(given),
        **({"service.name": service} if service else {}),
    }


def otlp_envelope(kind: str, resource: Attributes, items: List[Dict[str, Any]]) -> Dict[str, Any]:
    """The body of a request; `kind` is Metrics or Spans."""
    scope = {"name": "claude_proxy", "version": VERSION}
    scoped = {"scope": scope, kind.lower(): items}
    whole = {"resource": {"attributes": otlp_attributes(resource)}, f"scope{kind}": [scoped]}
    return {f"resource{kind}": [whole]}


# --- metrics -----------------------------------------------------------------------------------


def otlp_metrics(
    samples: Iterable[MetricSample], started: float, now: float
) -> List[Dict[str, Any]]:
    """What was counted between two moments, in seconds since the epoch; each name and each set of
    attributes once."""
    found: Dict[MetricRow, Dict[Labels, MetricSample]] = {}
    for sample in samples:
        if sample.row not in NOT_EXPORTED:
            labels = told_labels(sample.labels)
            same = found.setdefault(sample.row, {})
            same[labels] = merged_sample(same.get(labels), sample._replace(labels=labels))
    span = {
        "startTimeUnixNano": otlp_nanoseconds(started),
        "timeUnixNano": otlp_nanoseconds(now),
    }
    return [
        otlp_metric(row, [{**otlp_point(sample), **span} for sample in same.values()])
        for row, same in found.items()
    ]


def told_labels(labels: Labels) -> Labels:
    named = ((OTLP_LABELS.get(name, name), told_name(text)) for name, text in labels)
    return tuple((name, text) for name, text in named if text and text != "none")


def merged_sample(one: Optional[MetricSample], other: MetricSample) -> MetricSample:
    """Two models whose names are not told are one here."""
    if one is None:
        return other
    counts = tuple(a + b for a, b in zip(one.counts, other.counts))
    return other._replace(
        total=one.total + other.total, count=one.count + other.count, counts=counts
    )


def otlp_point(sample: MetricSample) -> Dict[str, Any]:
    attributes = {
        name: int(text) if name == OTLP_LABELS["status"] and text.isdigit() else text
        for name, text in sample.labels
    }
    point: Dict[str, Any] = {"attributes": otlp_attributes(attributes)}
    if not sample.row.buckets:
        return {**point, "asInt": str(int(sample.total))}
    counts = (*sample.counts, sample.count - sum(sample.counts))
    # Figures that upstreams make up may add up to no number, which JSON does not have.
    total = {"sum": sample.total} if math.isfinite(sample.total) else {}
    return {
        **point,
        **total,
        "count": str(sample.count),
        "bucketCounts": [str(count) for count in counts],
        "explicitBounds": list(sample.row.buckets),
    }


# Kind of metric -> (the member that holds its points, what else is in there).
OTLP_KINDS: Dict[str, Tuple[str, Dict[str, Any]]] = {
    "counter": ("sum", {"aggregationTemporality": CUMULATIVE, "isMonotonic": True}),
    "gauge": ("gauge", {}),
    "histogram": ("histogram", {"aggregationTemporality": CUMULATIVE}),
}


def otlp_metric(row: MetricRow, points: List[Dict[str, Any]]) -> Dict[str, Any]:
    name, unit = OTLP_METRICS.get(row, (row.name, ""))
    member, more = OTLP_KINDS[row.kind]
    data = {"dataPoints": points, **more}
    return {"name": name, "description": row.help, "unit": unit, member: data}


# --- spans -------------------------------------------------------------------------------------


class FinishedSpan(NamedTuple):
    """What is kept of an exchange until its span is sent. Times are nanoseconds of the epoch."""

    name: str
    traceparent: str  # as the client sent it
    started: int
    ended: int
    attributes: Dict[str, Any]
    failed: bool


def finished_span(
    exchange: Exchange, request: Optional[HttpRequest], status: int, now: int
) -> FinishedSpan:
    """The span of an exchange that has just ended."""
    outcome = audit_outcome(exchange, status)
    failed = outcome == "failed" and not 400 <= status < 500
    method = told_method(request)
    name = f"{'HTTP' if method == '_OTHER' else method} {exchange.endpoint}".rstrip()
    parent = request.headers.get("traceparent", "") if request else ""
    began = now - int((exchange.clock() - exchange.started) * 10**9)
    attributes = {
        "http.request.method": method,
        "http.response.status_code": status or None,
        "claude_proxy.outcome": outcome,
        **span_attributes(exchange),
        "error.type": told_name(audited_error(exchange, status)),
    }
    told = {key: value for key, value in attributes.items() if value is not None}
    return FinishedSpan(name, parent, began, now, told, failed or status >= 500)


def told_method(request: Optional[HttpRequest]) -> str:
    method = request.method if request else ""
    return method if method in TOLD_METHODS else "_OTHER"


def span_attributes(exchange: Exchange) -> Dict[str, Any]:
    facts, route = exchange.facts, exchange.endpoint or None
    reason = told_name(facts.get("stop_reason"))
    return {
        "http.route": route,
        "url.path": route,
        "claude_proxy.request.id": exchange.id,
        "claude_proxy.upstream.retries": facts.get("retries"),
        "gen_ai.operation.name": GEN_AI_OPERATIONS.get(exchange.endpoint),
        "gen_ai.provider.name": facts.get("upstream"),
        "gen_ai.request.model": told_name(facts.get("model")),
        "gen_ai.response.model": told_name(facts.get("upstream_model")),
        "gen_ai.response.finish_reasons": (reason,) if reason else None,
        **span_usage(exchange.usage),
    }


def span_usage(usage: Mapping[str, Any]) -> Dict[str, int]:
    """The figures that an answer had; none are made up."""
    figures = {
        name: count
        for name, count in usage.items()
        if type(count) is int and 0 <= count <= MOST_TOKENS
    }
    told = {name: figures[own] for name, own in CACHED_USAGE if own in figures}
    if "input_tokens" in figures:
        told["gen_ai.usage.input_tokens"] = figures["input_tokens"] + sum(told.values())
    if "output_tokens" in figures:
        told["gen_ai.usage.output_tokens"] = figures["output_tokens"]
    return told


def trace_parent(text: str) -> Tuple[str, str]:
    """(trace, span) of a W3C traceparent; ("", "") where it is none, or not valid."""
    match = re.fullmatch(
        r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]{2}(-.*)?",
        text,
    )
    if match is None or (match[1] == "00" and match[4]):
        return "", ""
    return match[2], match[3]


def otlp_span(span: FinishedSpan) -> Dict[str, Any]:
    """A span with identifiers of its own. It is sent whether or not the client samples its own."""
    trace, parent = trace_parent(span.traceparent)
    return {
        "traceId": trace or secrets.token_hex(16),
        "spanId": secrets.token_hex(8),
        **({"parentSpanId": parent} if parent else {}),
        "flags": CHILD_FLAGS if parent else ROOT_FLAGS,
        "name": span.name,
        "kind": SERVER_SPAN,
        "startTimeUnixNano": str(span.started),
        "endTimeUnixNano": str(span.ended),
        "attributes": otlp_attributes(span.attributes),
        "status": {"code": FAILED_STATUS} if span.failed else {},
    }
