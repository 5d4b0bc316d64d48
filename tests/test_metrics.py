"""Metrics as Prometheus reads them: valid text, right figures, and never more series than a bound."""

from __future__ import annotations

import re
import threading

import pytest

from claude_proxy.exchange import Exchange
from claude_proxy.http1 import HttpRequest
from claude_proxy.metrics import METRIC_ROWS, MOST_MODEL_LABELS, Metrics, render_metrics

REQUEST = HttpRequest("POST", "/v1/messages", "", {}, "HTTP/1.1")
SAMPLE = re.compile(r'([a-z_]+)(?:\{((?:[a-z_]+="(?:[^"\\\n]|\\["\\n])*",?)*)\})? ([0-9.e+-]+)')


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def finished(seconds=1.0, first=None, usage=None, **facts):
    clock = Clock()
    exchange = Exchange(clock)
    exchange.endpoint = "/v1/messages"
    exchange.facts.update(facts)
    exchange.usage.update(usage or {})
    clock.now += first if first is not None else 0
    exchange.first_event = clock.now if first is not None else None
    clock.now = 100.0 + seconds
    return exchange


def read(text):
    """The samples of a text that keeps to the format: {(name, labels): value}."""
    assert text.endswith("\n")
    samples, described, current = {}, set(), ""
    for line in text.splitlines():
        if line.startswith("# "):
            _, word, current, _ = line.split(" ", 3)
            assert word in ("HELP", "TYPE") and (word == "TYPE" or current not in described)
            described.add(current)
            continue
        match = SAMPLE.fullmatch(line)
        assert match, line
        name, labels, value = match.groups()
        assert name in (current, *(current + end for end in ("_bucket", "_sum", "_count"))), "out of its block"
        assert (name, labels) not in samples
        samples[name, labels] = float(value)
    return samples


def rendered(metrics, *gauges):
    return read(render_metrics(metrics, *(gauges or (0, 0, False))))


def test_gauges_are_there_before_anything_happened():
    samples = rendered(Metrics(1_700_000_000.5), 3, 7, True)
    assert samples["claude_proxy_requests_in_flight", None] == 3
    assert samples["claude_proxy_client_connections", None] == 7
    assert samples["claude_proxy_draining", None] == 1
    assert samples["process_start_time_seconds", None] == 1_700_000_000.5
    assert [name for name, _ in samples if name == "claude_proxy_build_info"]


def test_an_answer_is_counted():
    metrics = Metrics(0)
    usage = {"input_tokens": 100, "output_tokens": 3, "cache_read_input_tokens": 0}
    for _ in range(2):
        metrics.observe(finished(1.5, 0.3, usage, upstream="openai", upstream_model="gpt-4o", retries=2,
                                 tried="anthropic:x 529", upstream_status=503), REQUEST, 200)
    samples, place = rendered(metrics), 'upstream="openai",model="gpt-4o"'
    assert samples["claude_proxy_requests_total", 'path="/v1/messages",status="200",upstream="openai"'] == 2
    assert samples["claude_proxy_upstream_retries_total", 'upstream="openai"'] == 4
    assert samples["claude_proxy_fallbacks_total", 'upstream="openai"'] == 2
    assert samples["claude_proxy_upstream_failures_total", 'upstream="openai",status="503"'] == 2
    assert samples["gen_ai_server_request_duration_seconds_sum", place] == 3
    assert samples["gen_ai_server_request_duration_seconds_bucket", place + ',le="1.28"'] == 0
    assert samples["gen_ai_server_request_duration_seconds_bucket", place + ',le="2.56"'] == 2
    assert samples["gen_ai_server_request_duration_seconds_bucket", place + ',le="+Inf"'] == 2
    assert samples["gen_ai_server_time_to_first_token_seconds_bucket", place + ',le="0.32"'] == 2
    assert samples["gen_ai_client_token_usage_sum", place + ',gen_ai_token_type="input"'] == 200
    assert samples["gen_ai_client_token_usage_bucket", place + ',gen_ai_token_type="output",le="4"'] == 2
    assert ("gen_ai_client_token_usage_sum", place + ',gen_ai_token_type="cache_read"') not in samples


def test_what_is_above_all_buckets_is_counted_too():
    metrics = Metrics(0)
    for tokens in (1, 4, 5, 10**30):
        metrics.observe(finished(1e6, usage={"input_tokens": tokens}, upstream="openai", upstream_model="m"), REQUEST, 200)
    samples, place = rendered(metrics), 'upstream="openai",model="m"'
    seconds, tokens = "gen_ai_server_request_duration_seconds", "gen_ai_client_token_usage"
    assert samples[f"{seconds}_bucket", f'{place},le="655.36"'] == 0
    assert samples[f"{seconds}_bucket", f'{place},le="+Inf"'] == samples[f"{seconds}_count", place] == 4
    kind = f'{place},gen_ai_token_type="input"'
    assert [samples[f"{tokens}_bucket", f'{kind},le="{bound}"'] for bound in ("1", "4", "16", "+Inf")] == [1, 2, 3, 4]
    shown = {sample.row.name: sample for sample in metrics.snapshot()}
    assert (shown[seconds].count, sum(shown[seconds].counts)) == (4, 0)
    assert (shown[tokens].count, shown[tokens].counts[:3]) == (4, (1, 1, 1))
    assert all(len(sample.counts) == len(sample.row.buckets) for sample in shown.values())


def test_a_refused_request_is_counted_without_an_upstream():
    metrics, exchange = Metrics(0), finished()
    exchange.endpoint = ""
    metrics.observe(exchange, REQUEST, 401)
    metrics.observe(exchange, None, 400)
    samples = rendered(metrics)
    assert samples["claude_proxy_requests_total", 'path="other",status="401",upstream="none"'] == 1
    assert samples["claude_proxy_requests_total", 'path="none",status="400",upstream="none"'] == 1
    assert not [name for name, _ in samples if name.startswith("gen_ai")]


@pytest.mark.parametrize("model", ['a"b', "a\\b", "a\nb", "\u00fc", ""])
def test_odd_names_stay_one_valid_label(model):
    metrics = Metrics(0)
    metrics.observe(finished(upstream="openai", upstream_model=model), REQUEST, 200)
    assert len([1 for name, _ in rendered(metrics) if name == "gen_ai_server_request_duration_seconds_count"]) == 1


def test_ten_thousand_models_are_no_more_series_than_fifty():
    metrics = Metrics(0)
    for number in range(10_000):
        metrics.observe(finished(upstream="openai", upstream_model=f"m{number}"), REQUEST, 200)
    counts = {labels: value for (name, labels), value in rendered(metrics).items()
              if name == "gen_ai_server_request_duration_seconds_count"}
    assert len(counts) == MOST_MODEL_LABELS + 1
    assert counts['upstream="openai",model="other"'] == 10_000 - MOST_MODEL_LABELS


def test_threads_lose_nothing():
    metrics = Metrics(0)

    def work():
        for _ in range(500):
            metrics.observe(finished(upstream="openai", upstream_model="m"), REQUEST, 200)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert rendered(metrics)["gen_ai_server_request_duration_seconds_count", 'upstream="openai",model="m"'] == 2000


def test_the_table_is_sound():
    names = [row.name for row in METRIC_ROWS]
    assert len(set(names)) == len(names)
    for row in METRIC_ROWS:
        assert row.kind in ("counter", "gauge", "histogram") and bool(row.buckets) == (row.kind == "histogram")
        assert row.name.endswith("_total") == (row.kind == "counter")
        assert list(row.buckets) == sorted(set(row.buckets)) and "\n" not in row.help
