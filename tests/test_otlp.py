"""OTLP/JSON: its form by the protocol's own field names and types, what a span tells and what never,
and an exporter that repeats what it may, drops what it must, and never holds up an answer or an end."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time

import pytest

from claude_proxy.cli import secret_values
from claude_proxy.config import ConfigError
from claude_proxy.config_load import load_config
from claude_proxy.errors import ProxyError
from claude_proxy.exchange import Exchange, client_gone
from claude_proxy.http1 import HttpRequest
from claude_proxy.inflight import Inflight
from claude_proxy.log import Log
from claude_proxy.metrics import (
    BUILD,
    METRIC_ROWS,
    SPANS_LOST,
    STARTED,
    Metrics,
    MetricSample,
    gauge_samples,
)
from claude_proxy.otlp import (
    LONGEST_TOLD_NAME,
    OTLP_METRICS,
    finished_span,
    otlp_envelope,
    otlp_metrics,
    otlp_resource,
    otlp_span,
    told_name,
    trace_parent,
)
from claude_proxy.otlp_export import MOST_SPANS_QUEUED, MOST_SPANS_SENT, MOST_TRIES, Telemetry
from claude_proxy.otlp_send import (
    ALL_TAKEN,
    ExportPlan,
    ExportResult,
    ExportWay,
    judge_export,
    read_plan,
)
from claude_proxy.proxies import read_proxies
from claude_proxy.settings_text import format_config
from claude_proxy.transport import Timeouts, Transport
from tests.support import (
    HANG_UP,
    WAIT_FOR_CLOSE,
    Pause,
    RawClient,
    ScriptedUpstream,
    ask,
    delta,
    http_answer,
    http_chunk,
    json_answer,
    message_body,
    request_bytes,
    running_proxy,
    sse,
    text_answer,
    upstream_environ,
    wait_until,
)
from tests.support import STREAM_HEAD as CHAT_HEAD
from tests.test_cli import COMMANDS
from tests.test_metrics import finished
from tests.test_reload import Reloadable, settings

POST = HttpRequest("POST", "/v1/messages", "", {})
CANARY = "canary-Jane-Doe"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
NOW = 1_700_000_000_000_000_000

# --- the form ----------------------------------------------------------------------------------
# The messages of opentelemetry-proto as OTLP/JSON writes them. A pattern stands for a text, a type
# for itself, a list for a repeated field; "?" for a field that may be left out. No others may be there.

INT64, UINT64 = re.compile(r"-?[0-9]{1,19}"), re.compile(r"[0-9]{1,20}")
SOME_TEXT, ANY_TEXT = re.compile(r".+", re.DOTALL), re.compile(r".*", re.DOTALL)
SCHEMA = {
    "ExportMetricsServiceRequest": {"resourceMetrics": ["ResourceMetrics"]},
    "ExportTraceServiceRequest": {"resourceSpans": ["ResourceSpans"]},
    "ResourceMetrics": {"resource": "Resource", "scopeMetrics": ["ScopeMetrics"]},
    "ResourceSpans": {"resource": "Resource", "scopeSpans": ["ScopeSpans"]},
    "Resource": {"attributes": ["KeyValue"]},
    "ScopeMetrics": {"scope": "InstrumentationScope", "metrics": ["Metric"]},
    "ScopeSpans": {"scope": "InstrumentationScope", "spans": ["Span"]},
    "InstrumentationScope": {"name": SOME_TEXT, "version": SOME_TEXT},
    "KeyValue": {"key": SOME_TEXT, "value": "AnyValue"},
    "AnyValue": {"stringValue?": ANY_TEXT, "intValue?": INT64, "doubleValue?": float, "arrayValue?": "ArrayValue"},
    "ArrayValue": {"values": ["AnyValue"]},
    "Metric": {"name": re.compile(r"[a-z][a-z0-9_./-]{0,254}"), "description": SOME_TEXT, "unit": re.compile(r"s|1|\{[a-z]+\}"),
               "sum?": "Sum", "gauge?": "Gauge", "histogram?": "Histogram"},
    "Sum": {"dataPoints": ["NumberDataPoint"], "aggregationTemporality": {2}, "isMonotonic": bool},
    "Gauge": {"dataPoints": ["NumberDataPoint"]},
    "Histogram": {"dataPoints": ["HistogramDataPoint"], "aggregationTemporality": {2}},
    "NumberDataPoint": {"attributes": ["KeyValue"], "startTimeUnixNano": UINT64, "timeUnixNano": UINT64, "asInt": INT64},
    "HistogramDataPoint": {"attributes": ["KeyValue"], "startTimeUnixNano": UINT64, "timeUnixNano": UINT64, "count": UINT64,
                           "sum?": float, "bucketCounts": [UINT64], "explicitBounds": [float]},
    "Span": {"traceId": re.compile("[0-9a-f]{32}"), "spanId": re.compile("[0-9a-f]{16}"), "parentSpanId?": re.compile("[0-9a-f]{16}"),
             "flags": int, "name": SOME_TEXT, "kind": {2}, "startTimeUnixNano": UINT64, "endTimeUnixNano": UINT64,
             "attributes": ["KeyValue"], "status": "Status"},
    "Status": {"code?": {2}},
}
ONE_OF = {"AnyValue": 1, "Metric": 1}


def flaws(wanted, value, place=""):
    """Where a value is not what the schema wants."""
    if isinstance(wanted, list):
        items = value if isinstance(value, list) else [None]
        return [flaw for number, item in enumerate(items) for flaw in flaws(wanted[0], item, f"{place}[{number}]")]
    if isinstance(wanted, str):
        return message_flaws(wanted, value, place)
    if isinstance(wanted, set):
        right = type(value) is int and value in wanted
    elif isinstance(wanted, type):
        right = type(value) is wanted
    else:
        right = isinstance(value, str) and wanted.fullmatch(value)
    return [] if right else [f"{place}: {value!r}"]


def message_flaws(name, value, place):
    fields = {field.rstrip("?"): wanted for field, wanted in SCHEMA[name].items()}
    needed = [field for field in SCHEMA[name] if not field.endswith("?")]
    if not isinstance(value, dict) or not set(needed) <= set(value) <= set(fields):
        return [f"{place}: is no {name}: {value!r}"]
    optional = len(set(value) - set(needed))
    found = [f"{place}: {optional} of a oneof"] if name in ONE_OF and optional != 1 else []
    if "attributes" in value:
        keys = [pair["key"] for pair in value["attributes"]]
        found += [f"{place}: a key is there twice"] if len(set(keys)) < len(keys) else []
    return found + [flaw for key, one in value.items() for flaw in flaws(fields[key], one, f"{place}.{key}")]


def plain(value):
    """What an AnyValue holds."""
    (kind, held), = value.items()
    if kind == "arrayValue":
        return [plain(one) for one in held["values"]]
    return int(held) if kind == "intValue" else held


def attributes_of(message):
    return {pair["key"]: plain(pair["value"]) for pair in message["attributes"]}


def spans_in(body):
    """The spans of a request that keeps to the schema."""
    assert flaws("ExportTraceServiceRequest", body) == []
    return [span for whole in body["resourceSpans"] for scope in whole["scopeSpans"] for span in scope["spans"]]


def metrics_in(body):
    """{name: [(attributes, point)]} of a request that keeps to the schema."""
    assert flaws("ExportMetricsServiceRequest", body) == []
    metrics = body["resourceMetrics"][0]["scopeMetrics"][0]["metrics"]
    assert len({metric["name"] for metric in metrics}) == len(metrics)
    points = {metric["name"]: (metric.get("sum") or metric.get("gauge") or metric["histogram"])["dataPoints"] for metric in metrics}
    return {name: [(attributes_of(point), point) for point in of_one] for name, of_one in points.items()}


SPAN = otlp_span(finished_span(finished(), POST, 200, NOW))


@pytest.mark.parametrize("change", [
    {"traceId": "AA=="}, {"startTimeUnixNano": 1}, {"kind": "SPAN_KIND_SERVER"}, {"trace_id": "0"}, {"status": {"code": "2"}},
    {"attributes": [{"key": "a", "value": {"intValue": 1}}]}, {"attributes": [{"key": "a", "value": {}}]},
])
def test_the_schema_finds(change):
    assert flaws("Span", SPAN) == [] and flaws("Span", {**SPAN, **change}) != []


# --- spans -------------------------------------------------------------------------------------


@pytest.mark.parametrize("text, found", [
    (f"00-{TRACE}-{PARENT}-01", (TRACE, PARENT)),
    (f"00-{TRACE}-{PARENT}-00", (TRACE, PARENT)),
    (f"cc-{TRACE}-{PARENT}-01-what-comes-later", (TRACE, PARENT)),
    (f"00-{TRACE}-{PARENT}-01-more", ("", "")),
    (f"ff-{TRACE}-{PARENT}-01", ("", "")),
    (f"00-{TRACE.upper()}-{PARENT}-01", ("", "")),
    (f"00-{'0' * 32}-{PARENT}-01", ("", "")),
    (f"00-{TRACE}-{'0' * 16}-01", ("", "")),
    (f"00-{TRACE}-{PARENT}", ("", "")),
    (f"00-{TRACE}-{PARENT}-01, 00-{TRACE}-{PARENT}-01", ("", "")),
    (CANARY, ("", "")), ("", ("", "")),
])
def test_a_traceparent_is_continued_if_it_is_valid(text, found):
    assert trace_parent(text) == found
    span = otlp_span(finished_span(finished(), POST._replace(headers={"traceparent": text}), 200, NOW))
    assert flaws("Span", span) == [] and CANARY not in json.dumps(span)
    assert span.get("parentSpanId", "") == found[1] and span["spanId"] != found[1]
    assert (span["traceId"] == TRACE) == bool(found[0]) and span["flags"] == (0x301 if found[0] else 0x101)


@pytest.mark.parametrize("text, told", [
    ("gpt-4o", "gpt-4o"), ("accounts/x/models/y:z@1[1m]+", "accounts/x/models/y:z@1[1m]+"), ("", None), (None, None),
    ("a" * LONGEST_TOLD_NAME, "a" * LONGEST_TOLD_NAME), ("a" * (LONGEST_TOLD_NAME + 1), "other"),
    ("Jane Doe", "other"), ("\u00fc", "other"), ("\ud83d", "other"), ("a\nb", "other"), ({"a": 1}, "other"),
])
def test_only_what_looks_like_a_name_is_told(text, told):
    assert told_name(text) == told


ANSWERED = {"upstream": "openai", "model": "claude-sonnet-5", "upstream_model": "gpt-4o", "stop_reason": "end_turn"}
GONE, LATE = client_gone(), ProxyError(504, "late")


@pytest.mark.parametrize("facts, cancelled, status, failed, outcome, error", [
    (ANSWERED, None, 200, False, "ok", None),
    ({**ANSWERED, "error": "overloaded_error", "upstream_status": 200}, None, 200, True, "failed", "overloaded_error"),
    ({**ANSWERED, "error": f"{CANARY} said", "upstream_status": 200}, None, 200, True, "failed", "other"),
    ({**ANSWERED, "error": f"{CANARY} said"}, None, 200, True, "failed", "api_error"),
    ({**ANSWERED, "error": "api_error", "upstream_status": 500}, None, 500, True, "failed", "api_error"),
    ({**ANSWERED, "error": "rate_limit_error", "upstream_status": 429}, None, 429, False, "failed", "rate_limit_error"),
    ({**ANSWERED, "error": "late"}, LATE, 200, True, "failed", "timeout_error"),
    (ANSWERED, GONE, 499, False, "cancelled", "client_gone"),
    ({"error": "x"}, None, 401, False, "refused", "authentication_error"),
    ({"error": "x"}, None, 503, True, "refused", "overloaded_error"),
    ({}, None, 0, True, "failed", None),
])
def test_what_became_of_a_request_is_told(facts, cancelled, status, failed, outcome, error):
    exchange = finished(**facts)
    exchange.cancelled = cancelled
    span = otlp_span(finished_span(exchange, POST, status, NOW))
    told = attributes_of(span)
    assert flaws("Span", span) == [] and CANARY not in json.dumps(span)
    assert (span["status"], told["claude_proxy.outcome"]) == ({"code": 2} if failed else {}, outcome)
    assert (told.get("error.type"), told.get("http.response.status_code")) == (error, status or None)


def test_a_span_has_times_models_and_figures():
    usage = {"input_tokens": 10, "output_tokens": 3, "cache_read_input_tokens": 100, "cache_creation_input_tokens": 7,
             "service_tier": CANARY, "huge": 10**30}
    span = otlp_span(finished_span(finished(1.5, 0.3, usage, retries=2, **ANSWERED), POST, 200, NOW))
    assert (span["name"], span["endTimeUnixNano"], span["startTimeUnixNano"]) == ("POST /v1/messages", str(NOW), str(NOW - 1_500_000_000))
    told = attributes_of(span)
    assert re.fullmatch("req_[0-9a-f]{24}", told.pop("claude_proxy.request.id"))
    assert told == {
        "http.request.method": "POST", "http.response.status_code": 200, "http.route": "/v1/messages", "url.path": "/v1/messages",
        "claude_proxy.outcome": "ok", "claude_proxy.upstream.retries": 2,
        "gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": "claude-sonnet-5",
        "gen_ai.response.model": "gpt-4o", "gen_ai.response.finish_reasons": ["end_turn"],
        "gen_ai.usage.input_tokens": 117, "gen_ai.usage.output_tokens": 3,
        "gen_ai.usage.cache_read.input_tokens": 100, "gen_ai.usage.cache_creation.input_tokens": 7,
    }


@pytest.mark.parametrize("usage", [{}, {"input_tokens": None, "output_tokens": "3"}, {"input_tokens": 10**30, "output_tokens": -1},
                                   {"input_tokens": 1.5, "output_tokens": True}])
def test_figures_that_are_none_are_left_out(usage):
    told = attributes_of(otlp_span(finished_span(finished(1, None, usage, **ANSWERED), POST, 200, NOW)))
    assert not [name for name in told if "usage" in name]


@pytest.mark.parametrize("request_, endpoint, name, method", [
    (POST, "/v1/messages", "POST /v1/messages", "POST"),
    (POST._replace(method=CANARY), "", "HTTP", "_OTHER"),
    (POST._replace(method="GET", path=f"/{CANARY}", query=CANARY), "", "GET", "GET"),
    (POST._replace(method="GET", path=f"/v1/models/{CANARY}"), "/v1/models/{id}", "GET /v1/models/{id}", "GET"),
    (None, "", "HTTP", "_OTHER"),
])
def test_a_span_is_named_by_its_route(request_, endpoint, name, method):
    exchange = finished()
    exchange.endpoint = endpoint
    span = otlp_span(finished_span(exchange, request_, 404, NOW))
    told = attributes_of(span)
    assert flaws("Span", span) == [] and CANARY not in json.dumps(span)
    assert (span["name"], told["http.request.method"], told.get("url.path", "")) == (name, method, endpoint)


# --- metrics -----------------------------------------------------------------------------------


def exported(metrics, *gauges):
    samples = [*metrics.snapshot(), *gauge_samples(metrics, *(gauges or (0, 0, False)))]
    items = otlp_metrics(samples, 1_700_000_000.5, 1_700_000_060)
    return metrics_in(otlp_envelope("Metrics", otlp_resource((), "", "i"), items))


def test_metrics_are_those_of_the_text():
    metrics = Metrics(0)
    usage = {"input_tokens": 100, "output_tokens": 3}
    for _ in range(2):
        metrics.observe(finished(1.5, 0.3, usage, **ANSWERED, retries=2, tried="x 529", upstream_status=503), POST, 200)
    metrics.observe(finished(5000.0, **ANSWERED), POST, 200)
    metrics.observe(finished(), POST, 401)
    metrics.count(SPANS_LOST, 9)
    found, place = exported(metrics, 3, 7, True), {"gen_ai.provider.name": "openai", "gen_ai.response.model": "gpt-4o"}
    assert {name: int(points[0][1]["asInt"]) for name, points in found.items() if "asInt" in points[0][1]} == {
        "claude_proxy.requests": 3, "claude_proxy.upstream.failures": 2, "claude_proxy.upstream.retries": 4,
        "claude_proxy.fallbacks": 2, "claude_proxy.spans.dropped": 9, "claude_proxy.requests.in_flight": 3,
        "claude_proxy.client.connections": 7, "claude_proxy.draining": 1,
    }
    assert [attributes for attributes, _ in found["claude_proxy.requests"]] == [
        {"http.route": "/v1/messages", "http.response.status_code": 200, "gen_ai.provider.name": "openai"},
        {"http.route": "/v1/messages", "http.response.status_code": 401},
    ]
    (attributes, point), = found["gen_ai.server.request.duration"]
    assert attributes == place and point["count"] == "3" and point["sum"] == 5003.0
    assert len(point["bucketCounts"]) == len(point["explicitBounds"]) + 1
    assert point["bucketCounts"][point["explicitBounds"].index(2.56)] == "2" and point["bucketCounts"][-1] == "1"
    assert sum(map(int, point["bucketCounts"])) == 3
    assert (point["startTimeUnixNano"], point["timeUnixNano"]) == ("1700000000500000000", "1700000060000000000")
    kinds = {attributes["gen_ai.token.type"]: point["sum"] for attributes, point in found["gen_ai.client.token.usage"]}
    assert kinds == {"input": 200.0, "output": 6.0}


def test_models_that_are_not_told_are_one_point():
    metrics = Metrics(0)
    for model in (f"{CANARY} one", f"{CANARY} two", "gpt-4o"):
        metrics.observe(finished(0.3, upstream="openai", upstream_model=model), POST, 200)
    points = exported(metrics)["gen_ai.server.request.duration"]
    assert {attributes["gen_ai.response.model"]: point["count"] for attributes, point in points} == {"other": "2", "gpt-4o": "1"}
    assert max(map(int, points[0][1]["bucketCounts"])) == 2


def test_a_sum_that_is_no_number_is_left_out():
    metrics = Metrics(0)
    metrics.observe(finished(usage={"input_tokens": float("inf")}, **ANSWERED), POST, 200)
    (_, point), = exported(metrics)["gen_ai.client.token.usage"]
    assert "sum" not in point


@pytest.mark.parametrize("row", METRIC_ROWS, ids=lambda row: row.name)
def test_every_metric_has_a_name_that_becomes_the_same_in_prometheus(row):
    if row in (STARTED, BUILD):
        return
    name, unit = OTLP_METRICS[row]
    ends = {"counter": "_total", "histogram": "_seconds" if unit == "s" else "", "gauge": ""}
    assert name.replace(".", "_") + ends[row.kind] == row.name
    sample = MetricSample(row, (), 1.0, 1, (0,) * len(row.buckets))
    assert flaws("Metric", otlp_metrics([sample], 0, 1)[0]) == []


# --- settings ----------------------------------------------------------------------------------

BASE = "http://127.0.0.1:4318"


@pytest.mark.parametrize("environ, metrics, traces", [
    ({}, "", ""),
    ({"OTEL_EXPORTER_OTLP_ENDPOINT": BASE}, f"{BASE}/v1/metrics", f"{BASE}/v1/traces"),
    ({"OTEL_EXPORTER_OTLP_ENDPOINT": f"{BASE}/otlp/"}, f"{BASE}/otlp/v1/metrics", f"{BASE}/otlp/v1/traces"),
    ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{BASE}/t"}, "", f"{BASE}/t"),
    ({"OTEL_EXPORTER_OTLP_ENDPOINT": BASE, "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "https://h/m/"}, "https://h/m/", f"{BASE}/v1/traces"),
    ({"OTEL_EXPORTER_OTLP_ENDPOINT": BASE, "OTEL_SDK_DISABLED": "TRUE"}, "", ""),
])
def test_where_telemetry_goes(environ, metrics, traces):
    plan = read_plan(load_config(environ))
    assert (plan.metrics_url, plan.traces_url) == (metrics, traces)


def test_what_the_standard_variables_say():
    plan = read_plan(load_config({
        "OTEL_EXPORTER_OTLP_ENDPOINT": BASE, "OTEL_EXPORTER_OTLP_HEADERS": "Authorization=Bearer%20a%2Cb=, x-team = t",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "2500", "OTEL_METRIC_EXPORT_INTERVAL": "1000", "OTEL_BSP_SCHEDULE_DELAY": "500",
        "OTEL_SERVICE_NAME": "claude gate", "OTEL_RESOURCE_ATTRIBUTES": "service.name=x,deployment.environment=a%20b,empty=",
    }))
    assert plan.headers == (("Authorization", "Bearer a,b="), ("x-team", "t"))
    assert (plan.timeout, plan.metrics_every, plan.traces_every) == (2.5, 1.0, 0.5)
    resource = otlp_resource(plan.attributes, plan.service, "i")
    assert (resource["service.name"], resource["deployment.environment"], resource["empty"]) == ("claude gate", "a b", "")
    assert "Bearer" not in repr(plan)


@pytest.mark.parametrize("given, service, name", [
    ((), "", "claude_proxy"), ((("service.name", "x"),), "", "x"), ((("service.name", "x"),), "y", "y"),
])
def test_the_name_of_the_service(given, service, name):
    assert otlp_resource(given, service, "i")["service.name"] == name


@pytest.mark.parametrize("name, text", [
    ("OTEL_EXPORTER_OTLP_ENDPOINT", f"{CANARY}:4318"), ("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://u:{CANARY}@h"),
    ("OTEL_EXPORTER_OTLP_HEADERS", CANARY), ("OTEL_EXPORTER_OTLP_HEADERS", f"a={CANARY}%0d%0ab: c"),
    ("OTEL_EXPORTER_OTLP_HEADERS", f"content-length={CANARY}"), ("OTEL_EXPORTER_OTLP_HEADERS", f"a b={CANARY}"),
    ("OTEL_RESOURCE_ATTRIBUTES", CANARY), ("OTEL_RESOURCE_ATTRIBUTES", f"={CANARY}"),
    ("OTEL_METRIC_EXPORT_INTERVAL", "0"), ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
])
def test_wrong_settings_are_named_without_their_text(name, text):
    with pytest.raises(ConfigError) as caught:
        load_config({name: text})
    assert name in str(caught.value) and CANARY not in str(caught.value)


def test_the_headers_are_a_secret_that_can_be_a_file():
    written = "authorization=Bearer%20hush-hush-token,x-key=plain-secret"
    config = load_config({"OTEL_EXPORTER_OTLP_HEADERS_FILE": "f"}, read_file=lambda path: written + "\n")
    assert read_plan(config).headers == (("authorization", "Bearer hush-hush-token"), ("x-key", "plain-secret"))
    assert "hush" not in format_config(config) and "plain-secret" not in format_config(config)
    text = io.StringIO()
    log = Log(text, secrets=secret_values(config))
    log.info("x", a=written, b="Bearer hush-hush-token", c="got hush-hush-token", d="plain-secret!")
    assert "hush" not in text.getvalue() and "plain-secret" not in text.getvalue()


# --- answers of collectors -----------------------------------------------------------------------

FULL = b'{"partialSuccess": {}}'


@pytest.mark.parametrize("status, headers, body, result", [
    (200, {}, b"{}", ALL_TAKEN), (200, {}, b"", ALL_TAKEN), (202, {}, b"<html>", ALL_TAKEN), (200, {}, FULL, ALL_TAKEN),
    (200, {}, b'{"partialSuccess": null}', ALL_TAKEN), (200, {}, b"[" * 100_000, ALL_TAKEN),
    (200, {}, b'{"partialSuccess": {"rejectedSpans": "3", "errorMessage": "no"}}', ExportResult("3 rejected: no", lost=3)),
    (200, {}, b'{"partialSuccess": {"rejectedDataPoints": 2}}', ExportResult("2 rejected: ", lost=2)),
    (200, {}, b'{"partialSuccess": {"errorMessage": "soon"}}', ExportResult("0 rejected: soon", lost=0)),
    (400, {}, b'{"code": 3, "message": "bad span"}', ExportResult("status 400: bad span")),
    (400, {"retry-after": "1"}, b"", ExportResult("status 400")),
    (400, {}, json.dumps({"message": "x" * 999}).encode(), ExportResult("status 400: " + "x" * 200)),
    *((status, {}, b"", ExportResult(f"status {status}")) for status in (302, 307, 401, 404, 408, 413, 500, 501)),
    *((status, {}, b"", ExportResult(f"status {status}", True)) for status in (429, 502, 503, 504)),
    (503, {"retry-after": "7"}, b"", ExportResult("status 503", True, 7)),
    (429, {"retry-after": "Tue, 14 Nov 2023 22:13:30 GMT"}, b"", ExportResult("status 429", True, 10)),
    (503, {"retry-after": "86400"}, b"", ExportResult("status 503", True, 300)),
    (503, {"retry-after": "soon"}, b"", ExportResult("status 503", True)),
])
def test_what_an_answer_means(status, headers, body, result):
    assert judge_export(status, headers, body, 1_700_000_000) == result


# --- the exporter --------------------------------------------------------------------------------

OK = json_answer(200, {})
NEVER_DUE = 3600.0


class Exporter:
    """An exporter with a log of its own; without a plan for metrics there are spans alone."""

    def __init__(self, collector, path="/v1/traces", metrics=False, pause=lambda tries, asked, chance: asked or 0.01, **plan):
        base = collector if isinstance(collector, str) else collector.url[: -len("/v1")]
        self.text = io.StringIO()
        self.log = Log(self.text, "debug", True)
        self.metrics = Metrics(time.time())
        urls = (base + "/v1/metrics" if metrics else "", base + path if path else "")
        self.plan = ExportPlan(*urls, **{"traces_every": 0.02, "metrics_every": NEVER_DUE, **plan})
        self.telemetry = self.another(self.plan, pause)

    def another(self, plan, *more, proxies=None):
        transport = Transport(Timeouts(2, 0, 0), 0, proxies=proxies or read_proxies("", "", ()))
        return Telemetry(ExportWay(plan, transport, self.log), self.metrics, Inflight(self.log), *more)

    def note(self, count=1, **facts):
        for _ in range(count):
            self.telemetry.note(finished(**(facts or ANSWERED)), POST, 200)

    def events(self, name):
        return [line for line in map(json.loads, self.text.getvalue().splitlines()) if line["event"] == name]

    def lost(self):
        return sum(sample.total for sample in self.metrics.snapshot() if sample.row is SPANS_LOST)


@contextlib.contextmanager
def exporting(collector, **more):
    exporter = Exporter(collector, **more)
    exporter.telemetry.begin()
    try:
        yield exporter
    finally:
        exporter.telemetry.end(3)


def sent(collector):
    """What has come, without what is only on its way."""
    return [(request.line.split()[1], request.json) for request in list(collector.requests)]


def test_spans_go_out_with_the_headers_and_by_one_connection(no_thread_left):
    with ScriptedUpstream(OK) as collector, exporting(collector, headers=(("X-Team", "t"), ("User-Agent", "mine"))) as exporter:
        exporter.note()
        assert wait_until(lambda: len(collector.requests) == 1)
        exporter.note(2)
        assert wait_until(lambda: len(collector.requests) >= 2)
        first = collector.requests[0]
        assert first.line == "POST /v1/traces HTTP/1.1" and len(spans_in(first.json)) == 1
        told = {name: first.headers[name] for name in ("content-type", "x-team", "user-agent")}
        assert told == {"content-type": "application/json", "x-team": "t", "user-agent": "mine"}
        assert wait_until(lambda: sum(len(spans_in(body)) for _, body in sent(collector)) == 3)
        assert collector.connections == 1
    assert exporter.lost() == 0 and not exporter.events("otlp_export_failed")


def test_resources_have_one_identity_for_the_process(no_thread_left):
    with ScriptedUpstream(OK) as collector, exporting(collector, metrics=True, attributes=(("a", "b"),)) as exporter:
        exporter.note()
        assert wait_until(lambda: collector.requests)
    (_, traces), (path, metrics) = sent(collector)[0], sent(collector)[-1]
    assert path == "/v1/metrics" and metrics_in(metrics)["claude_proxy.draining"]
    one = attributes_of(traces["resourceSpans"][0]["resource"])
    assert one == attributes_of(metrics["resourceMetrics"][0]["resource"])
    assert re.fullmatch("[0-9a-f-]{36}", one["service.instance.id"]) and (one["a"], one["service.name"]) == ("b", "claude_proxy")
    assert re.fullmatch(r"claude_proxy-OTLP-Exporter-Python/[0-9.]+", collector.requests[0].headers["user-agent"])


@pytest.mark.parametrize("first, tries, lost, problem", [
    (json_answer(503, {}, "retry-after: 0"), 2, 0, "status 503"),
    (json_answer(429, {}), 2, 0, "status 429"),
    ([HANG_UP], 2, 0, "closed the connection"),
    (json_answer(400, {"message": "bad"}), 1, 3, "status 400: bad"),
    (json_answer(500, {}), 1, 3, "status 500"),
    (http_answer(307, b"", "location: /elsewhere"), 1, 3, "status 307"),
    (json_answer(200, {"partialSuccess": {"rejectedSpans": "2", "errorMessage": "too old"}}), 1, 2, "2 rejected: too old"),
    (json_answer(200, {"partialSuccess": {"errorMessage": "slow down"}}), 1, 0, "0 rejected: slow down"),
])
def test_what_is_sent_again_and_what_is_not(first, tries, lost, problem, no_thread_left):
    with ScriptedUpstream(first, OK) as collector, exporting(collector) as exporter:
        exporter.note(3)
        assert wait_until(lambda: exporter.events("otlp_export_failed"))
        if tries == 1:
            exporter.note()  # the next batch, of one
        assert wait_until(lambda: exporter.events("otlp_export_works"))
        bodies = [body for _, body in sent(collector)]
        assert [len(spans_in(body)) for body in bodies] == ([3, 3] if tries == 2 else [3, 1])
        assert (bodies[0] == bodies[1]) == (tries == 2)
        line, = exporter.events("otlp_export_failed")
        assert problem in line["reason"] and line["signal"] == "traces" and line["to"].endswith("/v1/traces")
    assert exporter.lost() == lost


def test_a_collector_asks_for_time(no_thread_left):
    asked = []
    with ScriptedUpstream(json_answer(503, {}, "retry-after: 7"), json_answer(503, {}), OK) as collector:
        with exporting(collector, pause=lambda tries, wait, chance: asked.append((tries, wait)) or 0.01) as exporter:
            exporter.note()
            assert wait_until(lambda: exporter.events("otlp_export_works"))
    assert asked == [(0, 7), (1, None)]


def closed_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_a_collector_that_is_away_is_told_of_once(no_thread_left):
    tries = []
    with exporting(closed_port(), metrics=True, metrics_every=0.02, pause=lambda number, *_: tries.append(number) or 0.001) as exporter:
        exporter.note(5)
        assert wait_until(lambda: exporter.lost() == 5)
        exporter.note(2)
        assert wait_until(lambda: exporter.lost() == 7)
        assert tries.count(MOST_TRIES - 2) >= 2  # two batches, each as often as may be
        lines = exporter.events("otlp_export_failed")
        assert sorted(line["signal"] for line in lines) == ["metrics", "traces"]
        assert "cannot reach the collector" in lines[0]["reason"]


def test_the_queue_has_an_end_and_what_is_too_much_is_counted():
    exporter = Exporter(BASE)  # not begun: nothing is taken out
    exporter.note(MOST_SPANS_QUEUED + 5)
    assert exporter.lost() == 5
    exporter.telemetry.end()
    assert exporter.events("otlp_spans_lost")[0]["spans"] == MOST_SPANS_QUEUED


def test_a_full_batch_does_not_wait(no_thread_left):
    with ScriptedUpstream(OK) as collector, exporting(collector, traces_every=NEVER_DUE) as exporter:
        exporter.note(MOST_SPANS_SENT - 1)
        time.sleep(0.02)
        assert not collector.requests
        exporter.note()
        assert wait_until(lambda: [len(spans_in(body)) for _, body in sent(collector)] == [MOST_SPANS_SENT])


def test_the_end_sends_what_is_there(no_thread_left):
    with ScriptedUpstream(OK) as collector, exporting(collector, metrics=True, traces_every=NEVER_DUE) as exporter:
        exporter.note(MOST_SPANS_SENT - 1)
        exporter.telemetry.end(3)
        paths = [(path, len(spans_in(body)) if path.endswith("traces") else 0) for path, body in sent(collector)]
        assert paths == [("/v1/traces", MOST_SPANS_SENT - 1), ("/v1/metrics", 0)]
    assert exporter.lost() == 0 and not exporter.events("otlp_spans_lost")


@pytest.mark.parametrize("script", [[WAIT_FOR_CLOSE], [b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{", WAIT_FOR_CLOSE]])
@pytest.mark.parametrize("waiting", [True, False], ids=["on its way", "not yet sent"])
def test_a_collector_that_hangs_does_not_hold_up_the_end(script, waiting, no_thread_left):
    with ScriptedUpstream(script) as collector, exporting(collector, metrics=True, traces_every=0.01 if waiting else NEVER_DUE) as exporter:
        exporter.note(2)
        assert not waiting or wait_until(lambda: collector.requests)
        begun = time.monotonic()
        exporter.telemetry.end(0.1)
        assert time.monotonic() - begun < 1 and not [t for t in threading.enumerate() if t.name == "otlp"]
        assert len(collector.requests) == 1
        assert [line["spans"] for line in exporter.events("otlp_spans_lost")] == [2]


def test_a_collector_has_only_so_much_time(no_thread_left):
    with ScriptedUpstream([WAIT_FOR_CLOSE], OK) as collector, exporting(collector, timeout=0.05) as exporter:
        exporter.note()
        assert wait_until(lambda: exporter.events("otlp_export_works"))
        assert "no answer within 0.05 s (OTEL_EXPORTER_OTLP_TIMEOUT)" in exporter.events("otlp_export_failed")[0]["reason"]


def test_a_defect_costs_a_batch_and_not_the_thread(no_thread_left):
    with ScriptedUpstream(OK) as collector, exporting(collector) as exporter:
        exporter.telemetry._spans.append(None)
        assert wait_until(lambda: exporter.lost() == 1)
        exporter.note()
        assert wait_until(lambda: collector.requests)
        assert exporter.events("otlp_export_failed")[0]["reason"] == "defect: AttributeError"


def test_a_web_proxy_is_asked(no_thread_left):
    with ScriptedUpstream(OK) as proxy:
        exporter = Exporter("http://collector.example:4318")
        telemetry = exporter.another(exporter.plan, proxies=read_proxies("", f"http://u:p@127.0.0.1:{proxy.port}", ()))
        telemetry.begin()
        telemetry.note(finished(), POST, 200)
        assert wait_until(lambda: proxy.requests)
        telemetry.end()
        assert proxy.requests[0].line == "POST http://collector.example:4318/v1/traces HTTP/1.1"
        assert proxy.requests[0].headers["proxy-authorization"].startswith("Basic ")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not here to make a certificate")
def test_ca_file_holds_for_the_collector_too(form, tmp_path):
    certificate, key = str(tmp_path / "c.pem"), str(tmp_path / "c.key")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj",
                    "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate],
                   check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    for trusted, arrived in ((certificate, True), ("", False)):
        with ScriptedUpstream(OK, context=context) as collector:
            environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"https://localhost:{collector.port}", "CA_FILE": trusted}
            with running_proxy(form, environ) as proxy:
                proxy.app.telemetry.begin()
                assert ask(proxy.port, message_body()).status == 200
                proxy.app.telemetry.end()
                assert bool(collector.requests) == arrived
                assert ("not trusted" in proxy.log_text.getvalue()) == (not arrived)


def test_without_a_collector_there_is_no_thread():
    before = threading.active_count()
    with exporting("", path="") as exporter:
        exporter.note(3)
        assert threading.active_count() == before and not exporter.telemetry._spans
        assert exporter.text.getvalue() == ""


@pytest.mark.parametrize("protocol, warned", [("", 0), ("http/json", 0), ("grpc", 1), ("http/protobuf", 1)])
def test_another_protocol_brings_one_warning_and_no_refusal(protocol, warned, no_thread_left):
    with ScriptedUpstream(OK) as collector, exporting(collector, protocol=protocol) as exporter:
        exporter.note()
        assert wait_until(lambda: collector.requests)
        assert len(exporter.events("otlp_protocol")) == warned and len(exporter.events("otlp_export")) == 1


def test_a_changed_collector_is_taken_over_with_what_waits_for_it(no_thread_left):
    with ScriptedUpstream(json_answer(503, {})) as old, ScriptedUpstream(OK) as new:
        with exporting(old, pause=lambda *_: NEVER_DUE) as exporter:
            exporter.note(2)
            assert wait_until(lambda: exporter.events("otlp_export_failed"))
            exporter.note()
            plan = exporter.plan._replace(traces_url=new.url[: -len("/v1")] + "/other")
            assert exporter.telemetry.follow(exporter.another(plan)) is exporter.telemetry
            assert wait_until(lambda: [(path, len(spans_in(body))) for path, body in sent(new)] == [("/other", 2), ("/other", 1)])
            exporter.telemetry.follow(exporter.another(ExportPlan()))
            exporter.note()
            time.sleep(0.05)
            assert len(new.requests) == 2 and len(old.requests) == 1
    assert exporter.lost() == 0 and len(exporter.events("otlp_export")) == 2


def test_a_reload_may_turn_it_on(no_thread_left):
    with ScriptedUpstream(OK) as collector, exporting("", path="") as exporter:
        exporter.telemetry.follow(Exporter(collector).telemetry)
        exporter.note()
        assert wait_until(lambda: len(spans_in(sent(collector)[0][1])) == 1 if collector.requests else False)


# --- the proxy -----------------------------------------------------------------------------------


def collector_environ(collector, **more):
    return {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url[: -len("/v1")], "OTEL_EXPORTER_OTLP_HEADERS": "x-key=collector-secret", **more}


def test_nothing_that_was_said_is_exported(form):
    def fail(request):
        return json_answer(500, {"error": {"message": f"{CANARY} is what you said", "type": f"{CANARY} type"}})

    broken = [CHAT_HEAD, http_chunk(sse(delta(content=CANARY))), http_chunk(sse({"error": {"message": f"{CANARY} broke"}})), HANG_UP]
    with ScriptedUpstream(text_answer(CANARY), fail, broken, text_answer(CANARY)) as upstream, ScriptedUpstream(OK) as collector:
        environ = {**upstream_environ(upstream), **collector_environ(collector), "MODEL_MAP": "m=x"}
        fields = (f"traceparent: 00-{TRACE}-{PARENT}-01", f"tracestate: a={CANARY}", f"user-agent: {CANARY}", f"x-api-key: {CANARY}")
        with running_proxy(form, environ) as proxy:
            proxy.app.telemetry.begin()
            tools = [{"name": CANARY, "description": CANARY, "input_schema": {"type": "object"}}]
            streamed = message_body(CANARY, system=CANARY, tools=tools, stream=True)
            odd = {**message_body(CANARY), "model": f"{CANARY} is what I have"}
            asked = [*[request_bytes(streamed, f"/v1/messages?q={CANARY}", fields=fields)] * 3, request_bytes(odd, fields=fields),
                     *(request_bytes(None, f"/v1/{path}{CANARY}", "GET", fields) for path in ("", "models/")),
                     f"{CANARY} / HTTP/9\r\n\r\n".encode()]
            ask(proxy.port, None, method="GET", path="/health")
            for number, data in enumerate(asked):  # a span is noted a little after the answer
                with RawClient(proxy.port) as client:
                    client.send(data)
                    client.answer()
                    assert wait_until(lambda: len(proxy.app.telemetry._spans) == number + 1)  # noqa: B023
            proxy.app.telemetry.end()
            log = proxy.log_text.getvalue()
    spans = spans_in(sent(collector)[0][1])
    assert len(spans) == 7 and sum(span["traceId"] == TRACE for span in spans) == 6
    assert [span["status"] for span in spans[:4]] == [{}, {"code": 2}, {"code": 2}, {}]
    assert attributes_of(spans[0])["gen_ai.usage.input_tokens"] == 11
    assert attributes_of(spans[3])["gen_ai.request.model"] == "other"
    metrics_in(sent(collector)[-1][1])
    assert collector.requests[0].headers["x-key"] == "collector-secret" and "collector-secret" not in log
    assert all(CANARY.encode() not in request.body for request in collector.requests)
    assert upstream.requests[0].headers.get("traceparent") is None


def test_a_client_that_goes_is_told_as_cancelled(form):
    go = threading.Event()
    slow = [CHAT_HEAD, http_chunk(sse(delta(content="a"))), Pause(5, go)]
    with ScriptedUpstream(slow) as upstream, ScriptedUpstream(OK) as collector:
        with running_proxy(form, {**upstream_environ(upstream), **collector_environ(collector)}) as proxy:
            proxy.app.telemetry.begin()
            with RawClient(proxy.port) as client:
                client.send(request_bytes(message_body(stream=True)))
                client.read_until(b"content_block_delta")
            assert wait_until(lambda: len(proxy.app.telemetry._spans) == 1)
            go.set()
            proxy.app.telemetry.end()
    span, = spans_in(sent(collector)[0][1])
    told = attributes_of(span)
    assert (span["status"], told["claude_proxy.outcome"], told["error.type"]) == ({}, "cancelled", "client_gone")


def test_answers_do_not_wait_for_a_collector_that_hangs(form):
    with ScriptedUpstream([WAIT_FOR_CLOSE]) as collector:
        with running_proxy(form, collector_environ(collector, OTEL_BSP_SCHEDULE_DELAY="100", OTEL_METRIC_EXPORT_INTERVAL="100")) as proxy:
            proxy.app.telemetry.begin()
            assert ask(proxy.port, message_body()).status == 200
            assert wait_until(lambda: collector.requests)
            begun = time.monotonic()
            assert [ask(proxy.port, message_body()).status for _ in range(5)] == [200] * 5
            assert time.monotonic() - begun < 1
            proxy.app.telemetry.end(0.05)


@pytest.fixture(params=list(COMMANDS))
def command(request):
    return COMMANDS[request.param]


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="there is no such signal here")
def test_a_process_exports_follows_its_settings_and_sends_the_rest_at_its_end(command, tmp_path):
    with ScriptedUpstream(text_answer("one")) as upstream, ScriptedUpstream(OK) as first, ScriptedUpstream(OK) as second:
        proxy = Reloadable(command, tmp_path, settings(upstream, **collector_environ(first, OTEL_BSP_SCHEDULE_DELAY="100")))
        assert ask(proxy.port, message_body()).status == 200
        assert wait_until(lambda: first.requests)
        line = proxy.reload(settings(upstream, **collector_environ(second, OTEL_SERVICE_NAME="later")), '"reloaded"')
        assert "OTEL_EXPORTER_OTLP_ENDPOINT" in line
        assert ask(proxy.port, message_body()).status == 200
        proxy.stop()
        assert [(path, len(spans_in(body))) for path, body in sent(first)] == [("/v1/traces", 1)]
        assert [path for path, _ in sent(second)] == ["/v1/traces", "/v1/metrics"]
        resource = attributes_of(sent(second)[0][1]["resourceSpans"][0]["resource"])
        counts = metrics_in(sent(second)[1][1])["claude_proxy.requests"]
        assert resource["service.name"] == "later" and counts[0][1]["asInt"] == "2"
        assert "collector-secret" not in "".join(proxy.log)


def test_an_exchange_of_the_real_clock_ends_after_it_began():
    span = finished_span(Exchange(), POST, 200, time.time_ns())
    assert 0 <= span.ended - span.started < 10**9
