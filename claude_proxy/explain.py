"""Where a request would go, and why: for a person who asks before it is sent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Dict, Tuple

from claude_proxy.answering import route_facts
from claude_proxy.app import App
from claude_proxy.dialects.dialect import parse_json_object
from claude_proxy.exchange import Exchange
from claude_proxy.routes import explained_routes, plan_routes

# As long as an upstream's list of models may take.
EXPLAIN_SECONDS = 15.0


def explain_request(app: App, data: bytes) -> Iterator[str]:
    """Lines for a request's JSON. ProxyError if it is none. Nothing of it is sent."""
    exchange = Exchange()
    exchange.headers, request = explained_request(data)
    wait_for_limits(app)
    facts = route_facts(app.answerer, request, exchange)
    yield from explained_routes(app.config, facts)
    for route in plan_routes(app.config, facts):
        if route.upstream not in app.upstreams:
            yield f"note: the upstream {route.upstream} is not configured"


def explained_request(data: bytes) -> Tuple[Dict[str, str], Dict[str, Any]]:
    """(headers, body): the body alone, or both as members of these names."""
    found = parse_json_object(data)
    body, headers = found.get("body"), found.get("headers", {})
    if not isinstance(body, dict) or not isinstance(headers, dict):
        return {}, found
    return {str(name).lower(): str(value) for name, value in headers.items()}, body


def wait_for_limits(app: App) -> None:
    """Have the windows of models where they decide; else only those of settings are known."""
    if not (app.config.long_context_model and app.config.model_limits):
        return
    for upstream in app.upstreams.values():
        catalog = getattr(upstream, "catalog", None)
        if catalog is not None:
            catalog.look_up("")
            catalog.wait(EXPLAIN_SECONDS)
