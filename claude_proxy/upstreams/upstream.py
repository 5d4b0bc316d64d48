"""What every upstream can do. A new one is a class with these members and a row in `UPSTREAMS`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Dict, Protocol, Tuple

from claude_proxy.config import VERSION
from claude_proxy.events import Event, Request
from claude_proxy.exchange import Exchange
from claude_proxy.settings import Config


def call_headers(config: Config, own: Iterable[Tuple[str, str]]) -> Tuple[Tuple[str, str], ...]:
    """The headers of every call; CUSTOM_HEADER_ ones replace ours of the same name."""
    usual = (*own, ("user-agent", f"claude_proxy/{VERSION}"))
    custom = {name for name, _ in config.custom_headers}
    return (*((n, v) for n, v in usual if n not in custom), *config.custom_headers)


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
