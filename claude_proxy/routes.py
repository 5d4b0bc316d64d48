"""The routes to try for a request, first things first. Pure: settings and facts in, routes out.

`routing.choose_route` says where a model's name leads. Here the request has its say: which agent it
is from, whether it is a small call in the background, whether it has images, whether it is too long
for the model. What is dear to find out is found out only when a setting asks for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

from claude_proxy.agents import AgentFound
from claude_proxy.dialects.chat_blocks import as_list
from claude_proxy.names import logged_model
from claude_proxy.routing import Route, choose_route, target_route
from claude_proxy.settings import Config

# The settings by which a request itself has a say.
REQUEST_SETTINGS = (
    "subagent_mappings", "background_model", "vision_model", "long_context_model",
)  # fmt: skip
MOST_NAMES_KEPT, LONGEST_NAME_KEPT = 128, 200
# The prompt for a session's title has the conversation in an element of this name.
TITLE_MARK = "<session>"


class RouteFacts(NamedTuple):
    """What routing may ask of a request. `window` gives a route's window in tokens, 0: unknown;
    `named` is where its model's name leads, if that is known already."""

    request: Mapping[str, Any]
    agent: Optional[AgentFound] = None
    tokens: Callable[[], int] = lambda: 0
    window: Callable[[Route], int] = lambda route: 0
    named: Optional[Route] = None


class Planner:
    """Plans by one set of settings; what follows from the names used last is kept."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._kept = lru_cache(maxsize=MOST_NAMES_KEPT)(self._plan_of_name)
        self._name_decides = not any(getattr(config, name) for name in REQUEST_SETTINGS)

    def plan(
        self, request: Mapping[str, Any], facts: Callable[[], RouteFacts]
    ) -> Sequence[Route]:
        """The routes for a request; `facts` are asked for only if settings let them matter."""
        name = str(request.get("model") or "")
        find = self._kept if len(name) <= LONGEST_NAME_KEPT else self._plan_of_name
        routes = find(name)
        if self._name_decides:
            return routes
        return plan_routes(self._config, facts()._replace(named=routes[0]))

    def _plan_of_name(self, name: str) -> Tuple[Route, ...]:
        return tuple(with_fallbacks(self._config, choose_route(self._config, name)))


def plan_routes(config: Config, facts: RouteFacts) -> List[Route]:
    """The routes for a request in order: the chosen one, then FALLBACK_MODELS."""
    return with_fallbacks(config, first_route(config, facts))


def with_fallbacks(config: Config, first: Route) -> List[Route]:
    others = [target_route(config, model, "FALLBACK_MODELS") for model in config.fallback_models]
    routes: Dict[Tuple[str, str], Route] = {}
    for route in (first, *others):
        routes.setdefault((route.upstream, route.model), route)  # the same place is tried once
    return list(routes.values())


def first_route(config: Config, facts: RouteFacts) -> Route:
    """Where the request goes if all is well; `reason` names every rule that had a say."""
    named = facts.named or choose_route(config, str(facts.request.get("model") or ""))
    if named.reason == "named upstream":
        return named  # the client has chosen
    mapped = agent_route(config, facts.agent) or background_route(config, facts.request)
    route = mapped or named
    for rule in REQUEST_RULES:
        moved = rule(config, facts, route)
        route = moved._replace(reason=f"{route.reason}, {moved.reason}") if moved else route
    return route


def agent_route(config: Config, agent: Optional[AgentFound]) -> Optional[Route]:
    target = dict(config.subagent_mappings).get(agent.name) if agent else None
    if agent is None or target is None:
        return None
    return target_route(config, target, f"agent {agent.name} by {agent.means}")


def background_route(config: Config, request: Mapping[str, Any]) -> Optional[Route]:
    kind = background_kind(request) if config.background_model else ""
    return target_route(config, config.background_model, f"background {kind}") if kind else None


def background_kind(request: Mapping[str, Any]) -> str:
    """What a small call of Claude Code (2.1.197) beside the conversation is for; "" for none."""
    output = request.get("output_config")
    output = output if isinstance(output, dict) else {}
    without_tools = request.get("tools") == []
    if without_tools and output.get("format") and TITLE_MARK in last_text(request):
        return "title"
    if without_tools and len(as_list(request.get("system"))) == 2:
        return "page summary"
    counting = request.get("max_tokens") == 1 and request.get("stream") is not True
    return "counting" if counting and not request.get("system") else ""


def last_text(request: Mapping[str, Any]) -> str:
    """The texts of the last message in one."""
    messages = as_list(request.get("messages"))
    content = messages[-1].get("content") if messages and isinstance(messages[-1], dict) else None
    if isinstance(content, str):
        return content
    texts = [block.get("text") for block in as_list(content) if isinstance(block, dict)]
    return " ".join(text for text in texts if isinstance(text, str))


def image_rule(config: Config, facts: RouteFacts, route: Route) -> Optional[Route]:
    """Requests with images go to VISION_MODEL; the Anthropic API's own models see."""
    if not config.vision_model or route.upstream == "anthropic":
        return None
    seen = has_image(facts.request.get("messages"))
    return target_route(config, config.vision_model, "images") if seen else None


def has_image(content: Any) -> bool:
    """Whether there is an image anywhere inside, tool results included."""
    pending = [content]
    while pending:
        item = pending.pop()
        if isinstance(item, list):
            pending.extend(item)
        elif isinstance(item, dict):
            if item.get("type") == "image":
                return True
            pending.extend((item.get("content"), item.get("source")))
    return False


def size_rule(config: Config, facts: RouteFacts, route: Route) -> Optional[Route]:
    """What does not fit the model's window goes to LONG_CONTEXT_MODEL."""
    window = model_window(config, facts, route) if config.long_context_model else 0
    wanted = facts.request.get("max_tokens")
    answer = wanted if type(wanted) is int else 0
    if not window or facts.tokens() + answer <= window:
        return None
    larger = target_route(config, config.long_context_model, f"over {window} tokens")
    known = model_window(config, facts, larger)
    return None if 0 < known <= window else larger


def model_window(config: Config, facts: RouteFacts, route: Route) -> int:
    """The window that settings name for a model, else the one that its upstream tells of."""
    names = (route.model, f"{route.upstream}:{route.model}")
    named = (
        int(tokens)
        for pattern, tokens in config.model_windows
        if any(fnmatchcase(name, pattern) for name in names)
    )
    return next(named, 0) or facts.window(route)


REQUEST_RULES: Tuple[Callable[[Config, RouteFacts, Route], Optional[Route]], ...] = (
    image_rule, size_rule,
)  # fmt: skip


def explained_routes(config: Config, facts: RouteFacts) -> Iterator[str]:
    """What would happen to a request and why, in lines for a person."""
    requested = str(facts.request.get("model") or "")
    yield f"model asked for: {logged_model(requested) or '(none)'}"
    if facts.agent:
        yield f"agent: {facts.agent.name}, recognised by its {facts.agent.means}"
    kind = background_kind(facts.request)
    if kind:
        yield f"background call: {kind}"
    yield f"images: {'yes' if has_image(facts.request.get('messages')) else 'no'}"
    yield f"input tokens, estimated: {facts.tokens()}"
    for number, route in enumerate(plan_routes(config, facts)):
        word = "goes to" if number == 0 else "then to"
        model = logged_model(route.model) or "(as asked)"
        yield f"{word} {route.upstream}:{model} ({route.reason})"
