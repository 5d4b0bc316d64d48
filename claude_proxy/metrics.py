"""Counters and histograms of what was answered, as Prometheus reads them (text format 0.0.4).

`observe` is told of every finished exchange; `render_metrics` writes what it has counted. The names
of GenAI metrics are OpenTelemetry's, in Prometheus' spelling. No label holds anything that a client
can invent without bound: model names beyond the first `MOST_MODEL_LABELS` are counted as "other".
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Dict, List, NamedTuple, Optional, Set, Tuple

from claude_proxy.circuit import CIRCUIT_CLOSED
from claude_proxy.config import VERSION
from claude_proxy.exchange import Exchange
from claude_proxy.http1 import HttpRequest
from claude_proxy.names import logged_model

MOST_MODEL_LABELS = 50
OTHER_LABEL = "other"
SECONDS_BUCKETS = (
    0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 163.84,
    327.68, 655.36,
)  # fmt: skip
TOKEN_BUCKETS = tuple(float(4**power) for power in range(14))

Labels = Tuple[Tuple[str, str], ...]


class MetricRow(NamedTuple):
    """One metric: name, type, help, names of its labels, and for a histogram its buckets."""

    name: str
    kind: str
    help: str
    labels: Tuple[str, ...] = ()
    buckets: Tuple[float, ...] = ()


REQUESTS = MetricRow(
    "claude_proxy_requests_total", "counter", "Requests answered.", ("path", "status", "upstream")
)
FAILURES = MetricRow(
    "claude_proxy_upstream_failures_total", "counter", "Answers of upstreams that were failures.",
    ("upstream", "status"),
)  # fmt: skip
RETRIES = MetricRow(
    "claude_proxy_upstream_retries_total", "counter", "Repeats of requests.", ("upstream",)
)
MOVED = MetricRow(
    "claude_proxy_fallbacks_total", "counter", "Answers by another route.", ("upstream",)
)
DURATION = MetricRow(
    "gen_ai_server_request_duration_seconds", "histogram", "Whole requests.",
    ("upstream", "model"), SECONDS_BUCKETS,
)  # fmt: skip
FIRST_TOKEN = MetricRow(
    "gen_ai_server_time_to_first_token_seconds", "histogram", "Until the first event.",
    ("upstream", "model"), SECONDS_BUCKETS,
)  # fmt: skip
TOKEN_USAGE = MetricRow(
    "gen_ai_client_token_usage", "histogram", "Tokens of a request, by type.",
    ("upstream", "model", "gen_ai_token_type"), TOKEN_BUCKETS,
)  # fmt: skip
SPANS_LOST = MetricRow(
    "claude_proxy_spans_dropped_total", "counter", "Spans that did not reach the collector."
)
IN_FLIGHT = MetricRow("claude_proxy_requests_in_flight", "gauge", "Requests being answered.")
CONNECTIONS = MetricRow("claude_proxy_client_connections", "gauge", "Open client connections.")
DRAINING = MetricRow("claude_proxy_draining", "gauge", "1 while the proxy is being stopped.")
UPSTREAM_DOWN = MetricRow(
    "claude_proxy_circuit_open", "gauge", "1 while an upstream is left alone, or being tried."
)
STARTED = MetricRow("process_start_time_seconds", "gauge", "Start, in seconds since the epoch.")
BUILD = MetricRow("claude_proxy_build_info", "gauge", "The version, as a label.")
METRIC_ROWS = (
    REQUESTS, FAILURES, RETRIES, MOVED, DURATION, FIRST_TOKEN, TOKEN_USAGE, SPANS_LOST, IN_FLIGHT,
    CONNECTIONS, DRAINING, UPSTREAM_DOWN, STARTED, BUILD,
)  # fmt: skip
TOKEN_TYPES = (
    ("input", "input_tokens"), ("output", "output_tokens"),
    ("cache_read", "cache_read_input_tokens"), ("cache_write", "cache_creation_input_tokens"),
)  # fmt: skip


class MetricSample(NamedTuple):
    """A metric's number at one moment. A histogram's are its sum, count and buckets."""

    row: MetricRow
    labels: Labels
    total: float
    count: int = 0
    counts: Tuple[int, ...] = ()


class Series:
    """The numbers behind one metric and one set of labels; the last count is of what is above all
    buckets."""

    __slots__ = ("counts", "labels", "row", "total")

    def __init__(self, row: MetricRow, texts: Tuple[str, ...]) -> None:
        self.row = row
        self.labels: Labels = tuple(zip(row.labels, texts))
        self.total = 0.0
        self.counts = [0] * (len(row.buckets) + 1)

    def sample(self) -> MetricSample:
        *within, _ = self.counts
        return MetricSample(self.row, self.labels, self.total, sum(self.counts), tuple(within))


class Metrics:
    """What has been counted since the start. Any thread may use it."""

    def __init__(self, started: float) -> None:
        self.started = started
        self._series: Dict[Tuple[str, Tuple[str, ...]], Series] = {}  # by names and labels' texts
        self._models: Set[str] = set()
        self._lock = threading.Lock()

    def observe(self, exchange: Exchange, request: Optional[HttpRequest], status: int) -> None:
        """Count a finished exchange."""
        path = exchange.endpoint or (OTHER_LABEL if request else "none")
        upstream = str(exchange.facts.get("upstream") or "")
        with self._lock:
            self._add(REQUESTS, (path, str(status), upstream or "none"))
            if upstream:
                self._observe_answer(exchange, upstream)

    def _observe_answer(self, exchange: Exchange, upstream: str) -> None:
        facts, usage, now = exchange.facts, exchange.usage, exchange.clock()
        model = self._model_label(facts)
        if facts.get("upstream_status"):
            self._add(FAILURES, (upstream, str(facts["upstream_status"])[:3]))
        if facts.get("retries"):
            self._add(RETRIES, (upstream,), facts["retries"])
        if facts.get("tried"):
            self._add(MOVED, (upstream,))
        self._add(DURATION, (upstream, model), now - exchange.started)
        if exchange.first_event is not None:
            self._add(FIRST_TOKEN, (upstream, model), exchange.first_event - exchange.started)
        for word, name in TOKEN_TYPES:
            tokens = usage.get(name)
            if tokens:
                self._add(TOKEN_USAGE, (upstream, model, word), tokens)

    def _model_label(self, facts: Dict[str, Any]) -> str:
        model = logged_model(str(facts.get("upstream_model") or facts.get("model") or "none"))
        if model not in self._models and len(self._models) >= MOST_MODEL_LABELS:
            return OTHER_LABEL
        self._models.add(model)
        return model

    def count(self, row: MetricRow, value: float) -> None:
        """Count what belongs to no exchange."""
        with self._lock:
            self._add(row, (), value)

    def _add(self, row: MetricRow, texts: Tuple[str, ...], value: float = 1) -> None:
        key = (row.name, texts)  # a row's own hash is one of all its buckets
        series = self._series.get(key)
        if series is None:
            series = self._series[key] = Series(row, texts)
        series.total += value
        series.counts[bisect_left(row.buckets, value)] += 1

    def snapshot(self) -> List[MetricSample]:
        """All that was counted, as it is now."""
        with self._lock:
            return [series.sample() for series in self._series.values()]

    def lines(self) -> List[Tuple[MetricRow, str]]:
        """The sample lines of all that was counted, each with its metric."""
        with self._lock:
            return [
                (series.row, line)
                for series in self._series.values()
                for line in series_lines(series)
            ]


def series_lines(series: Series) -> Iterator[str]:
    row, labels = series.row, series.labels
    if not row.buckets:
        yield sample_line(row.name, labels, series.total)
        return
    below, whole = 0, sum(series.counts)
    for bound, count in zip(row.buckets, series.counts):
        below += count
        yield sample_line(f"{row.name}_bucket", (*labels, ("le", f"{bound:g}")), below)
    yield sample_line(f"{row.name}_bucket", (*labels, ("le", "+Inf")), whole)
    yield sample_line(f"{row.name}_sum", labels, series.total)
    yield sample_line(f"{row.name}_count", labels, whole)


def sample_line(name: str, labels: Labels, value: float) -> str:
    shown = ",".join(f'{key}="{label_text(text)}"' for key, text in labels)
    return f"{name}{{{shown}}} {value:.15g}" if shown else f"{name} {value:.15g}"


def label_text(text: str) -> str:
    """A label's value in the text format: three characters are escaped."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def gauge_samples(
    metrics: Metrics,
    in_flight: int,
    connections: int,
    draining: bool,
    circuits: Mapping[str, str] = {},
) -> Tuple[MetricSample, ...]:
    """What is so now; `circuits` has each upstream's state."""
    return (
        MetricSample(IN_FLIGHT, (), in_flight),
        MetricSample(CONNECTIONS, (), connections),
        MetricSample(DRAINING, (), int(draining)),
        *(down_sample(*circuit) for circuit in circuits.items()),
        MetricSample(STARTED, (), metrics.started),
        MetricSample(BUILD, (("version", VERSION),), 1),
    )


def render_metrics(
    metrics: Metrics,
    in_flight: int,
    connections: int,
    draining: bool,
    circuits: Mapping[str, str] = {},
) -> str:
    """The text of /metrics."""
    gauges = gauge_samples(metrics, in_flight, connections, draining, circuits)
    shown = [(gauge.row, sample_line(gauge.row.name, *gauge[1:3])) for gauge in gauges]
    return "\n".join(metric_blocks([*metrics.lines(), *shown])) + "\n"


def down_sample(upstream: str, state: str) -> MetricSample:
    return MetricSample(UPSTREAM_DOWN, (("upstream", upstream),), int(state != CIRCUIT_CLOSED))


def metric_blocks(lines: Iterable[Tuple[MetricRow, str]]) -> Iterator[str]:
    """Each metric's help, type and samples together, in the order of the table."""
    by_row: Dict[MetricRow, List[str]] = {}
    for row, line in lines:
        by_row.setdefault(row, []).append(line)
    for row in METRIC_ROWS:
        if row in by_row:
            yield f"# HELP {row.name} {row.help}"
            yield f"# TYPE {row.name} {row.kind}"
            yield from by_row[row]
