"""What every upstream can do. A new one is a class with these members and a row in `UPSTREAMS`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Dict, Protocol

from claude_proxy.events import Event, Request
from claude_proxy.exchange import Exchange


class Upstream(Protocol):
    """Answers Messages requests.

    `stream` is a generator: nothing is sent before its first `next`, and nothing comes from it
    before the upstream's answer is known to have begun, so that an error until then can still be
    an HTTP status. `request["model"]` is the upstream's own name, `exchange.model` the one that
    the client used and sees. `describe` says in a few words what the upstream is, without secrets.
    `probe` says what can be found out without asking a model; {} if that is nothing. Without
    `native_tools` an upstream gets requests whose tools are text (`text_turns`).
    """

    name: str
    native_tools: bool

    def stream(self, request: Request, exchange: Exchange) -> Iterator[Event]: ...

    def describe(self) -> str: ...

    def probe(self, exchange: Exchange) -> Dict[str, Any]: ...
