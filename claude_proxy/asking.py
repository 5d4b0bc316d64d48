"""A client's request as it is being answered: what is known of it, and how its body is read.

A body that is converted is read whole, once. One that may only be passed on is read leniently, and
only if routing has a question that its beginning and its end do not answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Dict, NamedTuple

from claude_proxy.agents import AgentCalls
from claude_proxy.dialects.dialect import Dialect, parse_json_object
from claude_proxy.events import Request
from claude_proxy.exchange import Exchange
from claude_proxy.http1 import HttpRequest
from claude_proxy.json_edit import UnreadMembers, outer_members, read_members
from claude_proxy.routes import Planner
from claude_proxy.settings import Config
from claude_proxy.summaries import Summaries
from claude_proxy.upstreams.upstream import Upstream

# A body of no more is read whole as fast as it is looked at from both ends.
SOON_READ = 4096


class Answerer(NamedTuple):
    """All that is needed to answer: settings, upstreams, and what is known of agents."""

    config: Config
    upstreams: Dict[str, Upstream]
    agent_calls: AgentCalls
    agent_prompts: Mapping[str, str]
    summaries: Summaries
    planner: Planner


class Asking(NamedTuple):
    """One request on its way: its bytes, what they say, and how its client talks."""

    http: HttpRequest
    request: Mapping[str, Any]
    exchange: Exchange
    dialect: Dialect

    @property
    def streaming(self) -> bool:
        return self.request.get("stream") is True


def read_request(answerer: Answerer, http: HttpRequest, dialect: Dialect) -> Mapping[str, Any]:
    """What a body says; read leniently where it may only be passed on, and then only if need be.

    ProxyError(400) for what cannot be understood; `request_of` decides again where it is converted.
    """
    if "anthropic" not in answerer.upstreams:
        return dialect.decode_request(parse_json_object(http.body))
    large = len(http.body) > SOON_READ and passes_unread(answerer.config)
    known = outer_members(http.body) if large else {}
    if "model" in known and "stream" in known:
        return UnreadMembers(known, http.body)
    members = read_members(http.body)
    if members is None and answerer.config.upstream == "anthropic":
        return {}  # the API itself says what is wrong with it
    return members if members is not None else parse_json_object(http.body)


def passes_unread(config: Config) -> bool:
    """Whether the API gets bodies as they are, whatever model they name.

    Where names decide, all of a body is read: a name may be there twice, and the last one counts.
    """
    named = config.model_map or config.big_model or config.middle_model or config.small_model
    decided = named or config.default_model or config.anthropic_demote_nonstreaming
    return config.upstream == "anthropic" and not decided


def request_of(answerer: Answerer, asking: Asking) -> Request:
    """The request where it is converted: then it has to be sound."""
    if "anthropic" not in answerer.upstreams or not asking.http.body:
        return asking.request
    return asking.dialect.decode_request(parse_json_object(asking.http.body))
