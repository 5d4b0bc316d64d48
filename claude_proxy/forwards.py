"""Requests to upstreams that failed, as facts for one log line each. No content, no credential.

    begin_forward --> the attempt is made --> fail_forward, if it is known at once
                                          \\-> last_failure, if it shows in the answer itself
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Dict, Optional

from claude_proxy.errors import CLIENT_GONE_STATUS, ProxyError
from claude_proxy.exchange import Exchange
from claude_proxy.http1 import HttpRequest
from claude_proxy.names import logged_betas, logged_models, logged_query

# What an attempt leaves in an exchange's facts that is not so of the next one.
ATTEMPT_FACTS = (
    "key", "retries", "error", "upstream_status", "failed_forward", "repeat_of_failure",
)  # fmt: skip
FORWARD_FACTS = ("upstream", "upstream_model", "route", "key", "retries", "model", "stream")


def begin_forward(
    exchange: Exchange, http: HttpRequest, request: Mapping[str, Any]
) -> None:
    """Note what is about to be sent; the request is looked at only if that fails."""
    betas = http.headers.get("anthropic-beta", "")
    exchange.forward = {
        "attempt": len(exchange.failures) + 1,
        "begun": exchange.clock(),
        "body_bytes": len(http.body),
        "thinking": partial(wants_thinking, request),
        "beta": logged_betas(betas) if betas else None,
        "query": f"?{logged_query(http.query)}" if http.query else None,
    }


def wants_thinking(request: Mapping[str, Any]) -> bool:
    thinking = request.get("thinking")
    kind = thinking.get("type") if isinstance(thinking, dict) else None
    return kind not in (None, "disabled")


def fail_forward(exchange: Exchange, error: ProxyError, moving: bool) -> None:
    """Note that the attempt has failed, and whether another is made."""
    if not exchange.forward:
        return
    failure = forward_facts(exchange, error.status, error.upstream_status)
    told = "nothing: another is tried" if moving else None
    exchange.failures.append({**failure, "error": error.logged, "told": told})
    exchange.forward = {}


def forward_facts(
    exchange: Exchange, status: int, upstream_status: Optional[int]
) -> Dict[str, Any]:
    forward = dict(exchange.forward)
    begun = forward.pop("begun")
    return {
        "id": exchange.id,
        "attempt": forward.pop("attempt"),
        **{name: exchange.facts.get(name) for name in FORWARD_FACTS},
        **logged_models(exchange.facts),
        **forward,
        "thinking": forward["thinking"](),
        "ms": round((exchange.clock() - begun) * 1000),
        "status": status,
        "upstream_status": upstream_status,
        "fault": fault_of(status, upstream_status is None),
    }


def fault_of(status: int, own: bool) -> str:
    """Whose a failure is; `own` where no upstream has said anything."""
    if status == CLIENT_GONE_STATUS:
        return "client"
    if status in (401, 402, 403):
        return "credential"
    if 400 <= status < 500 and status not in (408, 429):
        return "request"
    return "proxy" if own and status in (500, 503) else "upstream"


def forward_failures(exchange: Exchange, status: int) -> Iterator[Dict[str, Any]]:
    """A line's fields for each failed attempt of an exchange that was answered with `status`."""
    facts, failures = exchange.facts, exchange.failures
    failed = status >= 400 or facts.get("error") or facts.get("failed_forward")
    if exchange.forward and failed:
        failures = [*failures, last_failure(exchange, status)]
    for failure in failures:
        yield {**failure, "told": failure["told"] or what_was_told(status)}


def what_was_told(status: int) -> str:
    if status == CLIENT_GONE_STATUS:
        return "nothing: it has gone"
    return str(status) if status >= 400 else f"{status}, then an error"


def last_failure(exchange: Exchange, status: int) -> Dict[str, Any]:
    """An attempt that failed in its answer: relayed with its status, or broken off within."""
    said = exchange.facts.get("upstream_status")
    why = exchange.cancelled.status if exchange.cancelled else 502
    failed = status if status >= 400 else said if said and said >= 400 else why
    error = exchange.facts.get("error")
    return {**forward_facts(exchange, failed, said), "error": error, "told": None}
