"""Sends metrics and spans to an OpenTelemetry collector, if settings name one.

One thread does all of it; who answers a request only puts a small record into a bounded queue. A
collector that is away costs records, which are counted, and one line in the log until it is back.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from typing import Any, Callable, Deque, Dict, List, Optional

from claude_proxy.errors import ProxyError
from claude_proxy.exchange import NEVER, Exchange
from claude_proxy.http1 import HttpRequest
from claude_proxy.inflight import Inflight
from claude_proxy.metrics import SPANS_LOST, Metrics, gauge_samples
from claude_proxy.otlp import (
    FinishedSpan,
    finished_span,
    otlp_envelope,
    otlp_metrics,
    otlp_resource,
    otlp_span,
)
from claude_proxy.otlp_send import ALL_TAKEN, ExportPlan, ExportResult, ExportWay, post_export
from claude_proxy.transport import backoff, random_chance

MOST_SPANS_QUEUED = 2048
MOST_SPANS_SENT = 512
MOST_TRIES = 10
LAST_EXPORT_SECONDS = 3.0
CANCEL_SECONDS = 0.5


class ExportLane:
    """The way of one kind of telemetry: when it is due, what is on its way, and how it goes."""

    def __init__(self, signal: str) -> None:
        self.signal = signal
        self.due = NEVER
        self.body = b""  # what is to be sent again
        self.spans = 0  # in there
        self.tries = 0
        self.trouble = False

    def url(self, plan: ExportPlan) -> str:
        return plan.traces_url if self.signal == "traces" else plan.metrics_url

    def every(self, plan: ExportPlan) -> float:
        return plan.traces_every if self.signal == "traces" else plan.metrics_every


class Telemetry:
    """The exporter of this process. Does nothing until it has begun, and without a collector."""

    def __init__(
        self,
        way: ExportWay,
        metrics: Metrics,
        inflight: Inflight,
        pause: Callable[[int, Optional[float], float], float] = backoff,
    ) -> None:
        self._way = way
        self._metrics = metrics
        self._inflight = inflight
        self._pause = pause
        self._spans: Deque[FinishedSpan] = deque()
        self._lanes = (ExportLane("traces"), ExportLane("metrics"))
        self._instance = ""
        self._wake = threading.Event()
        self._begun = self._ending = self._over = False
        self._thread: Optional[threading.Thread] = None
        self._exchange: Optional[Exchange] = None

    # --- for other threads ----------------------------------------------------------------------

    def note(self, exchange: Exchange, request: Optional[HttpRequest], status: int) -> None:
        """Keep the span of a finished exchange, if there is room."""
        if not self._way.plan.traces_url:
            return
        if len(self._spans) >= MOST_SPANS_QUEUED:
            self._metrics.count(SPANS_LOST, 1)
            return
        self._spans.append(finished_span(exchange, request, status, time.time_ns()))
        if len(self._spans) == MOST_SPANS_SENT:
            self._wake.set()

    def begin(self) -> None:
        """From now on there is a thread, if there is a collector."""
        self._begun = True
        plan, log = self._way.plan, self._way.log
        if not (plan.metrics_url or plan.traces_url):
            return
        log.info("otlp_export", metrics=plan.metrics_url or None, traces=plan.traces_url or None)
        if plan.protocol not in ("", "http/json"):
            log.warning(
                "otlp_protocol",
                asked=plan.protocol,
                meaning="only http/json is spoken here, and that is what the collector gets; "
                "its port for it is 4318 as a rule",
            )
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="otlp", daemon=True)
            self._thread.start()

    def follow(self, newer: Telemetry) -> Telemetry:
        """Go on with the settings of another that has not begun."""
        old, self._way = self._way, newer._way
        old.transport.close()
        if self._begun and old.plan != self._way.plan:
            self.begin()
        self._wake.set()
        return self

    def end(self, seconds: float = LAST_EXPORT_SECONDS) -> None:
        """Send what is there, once, and no longer than so many seconds."""
        self._ending = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(seconds)
            self._over = True
            exchange = self._exchange
            if exchange is not None:
                exchange.cancel(ProxyError(503, "the proxy is stopped"))
            self._thread.join(CANCEL_SECONDS)
        lost = len(self._spans) + sum(lane.spans for lane in self._lanes)
        if lost:
            self._way.log.warning("otlp_spans_lost", spans=lost)
        self._way.transport.close()

    # --- the thread -----------------------------------------------------------------------------

    def _run(self) -> None:
        way: Optional[ExportWay] = None
        while not self._ending:
            if way is not self._way:
                way = self._way
                self._schedule(way.plan)
            for lane in self._lanes:
                if lane.due <= time.monotonic() or self._crowded(lane):
                    self._export(lane, way)
            if not any(self._crowded(lane) for lane in self._lanes):
                due = min(lane.due for lane in self._lanes) - time.monotonic()
                self._wake.wait(min(max(due, 0), 3600))
            self._wake.clear()
        self._export_last(self._way)

    def _schedule(self, plan: ExportPlan) -> None:
        for lane in self._lanes:
            lane.tries = 0
            lane.due = time.monotonic() + lane.every(plan) if lane.url(plan) else NEVER

    def _crowded(self, lane: ExportLane) -> bool:
        """Whether a batch is full, and none is waiting for its next try."""
        full = len(self._spans) >= MOST_SPANS_SENT
        return full and lane.signal == "traces" and lane.due < NEVER and not lane.tries

    def _export(self, lane: ExportLane, way: ExportWay) -> bool:
        """Send what there is of a kind; whether the collector is there."""
        try:
            lane.body = lane.body or self._make_body(lane, way.plan)
            result = self._post(way, lane) if lane.body else ALL_TAKEN
        except Exception as error:  # a defect of ours may cost a batch, but never the thread
            result = ExportResult(f"defect: {type(error).__name__}")
        if lane.body or result.problem:
            self._tell(lane, way, result.problem)
        lane.tries += 1
        wait = lane.every(way.plan)
        if result.again and lane.tries < MOST_TRIES:
            wait = self._pause(lane.tries - 1, result.wait, random_chance())
            lane.body = lane.body if lane.spans else b""  # newer metrics are there by then
        else:
            self._settle(lane, result)
        lane.due = time.monotonic() + wait
        return not result.again

    def _make_body(self, lane: ExportLane, plan: ExportPlan) -> bytes:
        """The next request, b"" if there is nothing to say."""
        if lane.signal == "metrics":
            items, kind = self._counted(), "Metrics"
        else:
            lane.spans = min(len(self._spans), MOST_SPANS_SENT)
            items, kind = [otlp_span(self._spans.popleft()) for _ in range(lane.spans)], "Spans"
        resource = otlp_resource(plan.attributes, plan.service, self._own_instance())
        return json.dumps(otlp_envelope(kind, resource, items)).encode() if items else b""

    def _counted(self) -> List[Dict[str, Any]]:
        metrics, inflight = self._metrics, self._inflight
        now = len(inflight.exchanges()), inflight.connections(), inflight.draining
        samples = [*metrics.snapshot(), *gauge_samples(metrics, *now, self._way.circuits())]
        return otlp_metrics(samples, metrics.started, time.time())

    def _own_instance(self) -> str:
        if not self._instance:
            import uuid  # only who has a collector needs it

            self._instance = str(uuid.uuid4())
        return self._instance

    def _post(self, way: ExportWay, lane: ExportLane) -> ExportResult:
        exchange = self._exchange = Exchange()
        try:
            if self._over:  # only now: `end` cancels what it finds
                return ExportResult("the proxy is stopped", True)
            return post_export(way, lane.url(way.plan), lane.body, exchange)
        finally:
            self._exchange = None

    def _settle(self, lane: ExportLane, result: ExportResult) -> None:
        """Nothing more is done about what was sent."""
        lost = lane.spans if result.lost is None else result.lost
        if lost and lane.signal == "traces":
            self._metrics.count(SPANS_LOST, lost)
        lane.body, lane.spans, lane.tries = b"", 0, 0

    def _tell(self, lane: ExportLane, way: ExportWay, problem: str) -> None:
        """One line when trouble begins, and one when it is over."""
        if problem and not lane.trouble:
            way.log.warning(
                "otlp_export_failed",
                signal=lane.signal,
                to=lane.url(way.plan),
                reason=problem,
                meaning="answers are not affected; not told again until it works",
            )
        elif lane.trouble and not problem:
            way.log.info("otlp_export_works", signal=lane.signal)
        lane.trouble = bool(problem)

    def _export_last(self, way: ExportWay) -> None:
        for lane in self._lanes:
            going = bool(lane.url(way.plan))
            while going and not self._over:
                going = self._export(lane, way) and lane.signal == "traces" and bool(self._spans)
