"""Which upstream and model answer a request. Pure: a function of configuration and name.

In this order: a name that carries an upstream (`openai:gpt-4o`); MODEL_MAP; the alias map of the
upstream; the Claude families; DEFAULT_MODEL; else the name itself, unchanged. A `[1m]` suffix and
a date suffix are not part of what is looked up.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import List, NamedTuple, Optional, Tuple

from claude_proxy.config import (
    LISTED_MODELS,
    MODEL_ALIASES,
    MODEL_FAMILIES,
    REDCAP_KNOWN_ALIASES,
    UPSTREAM_NAMES,
)
from claude_proxy.patterns import LazyPattern
from claude_proxy.settings import Config

ROUTE_CONTEXT_SUFFIX = LazyPattern(r"\[\d+[km]\]$", re.IGNORECASE)
ROUTE_DATE_SUFFIX = LazyPattern(r"-20\d{6}$")


class Route(NamedTuple):
    """Where a request goes. `reason` names the rule that decided, for logs."""

    upstream: str
    model: str
    reason: str


def choose_route(config: Config, requested: str) -> Route:
    """The route for the model name that a client asked for; "" means it named none."""
    name = ROUTE_CONTEXT_SUFFIX.sub("", requested.strip())
    upstream, bare = split_upstream(name, config.upstream)
    if bare != name:
        return Route(upstream, bare, "named upstream")
    for reason, target in matching_targets(config, upstream, name):
        if target:
            return target_route(config, target, reason)
    if not name:
        return target_route(config, config.big_model, "no model named")
    return Route(usual_upstream(config, name), name, "as named")


def matching_targets(
    config: Config, upstream: str, name: str
) -> Iterable[Tuple[str, Optional[str]]]:
    """(reason, target or None) of each rule, in order."""
    yield "MODEL_MAP", first_match(config.model_map, name)
    yield "alias", first_match(alias_rules(config, upstream), name)
    yield "family", family_model(config, name)
    yield "DEFAULT_MODEL", config.default_model


def alias_rules(config: Config, upstream: str) -> Tuple[Tuple[str, str], ...]:
    """The alias map of an upstream; REDCap's own names come first and stand for themselves."""
    if upstream != "redcap":
        return tuple(MODEL_ALIASES.get(upstream, {}).items())
    own = (*REDCAP_KNOWN_ALIASES[config.redcap_era], *config.redcap_aliases)
    mapped = MODEL_ALIASES.get(f"redcap {config.redcap_era}", {})
    return (*((alias, alias) for alias in own), *mapped.items())


def split_upstream(name: str, default: str) -> Tuple[str, str]:
    """(upstream, model): the part before a colon counts only if it is an upstream's name."""
    prefix, colon, rest = name.partition(":")
    return (prefix, rest) if colon and prefix in UPSTREAM_NAMES else (default, name)


def target_route(config: Config, target: str, reason: str) -> Route:
    upstream, model = split_upstream(target, config.upstream)
    if model == target:
        upstream = usual_upstream(config, model)
    return Route(upstream, model, reason)


def usual_upstream(config: Config, model: str) -> str:
    """The upstream of a model that names none: the Anthropic API has Claude's models alone."""
    elsewhere = config.upstream == "anthropic" and config.openai_base_url
    return "openai" if elsewhere and "claude" not in model.lower() else config.upstream


def first_match(rules: Iterable[Tuple[str, str]], name: str) -> Optional[str]:
    """The target of the name itself, with or without its date, else of the first glob it fits."""
    names = (name, ROUTE_DATE_SUFFIX.sub("", name))
    rules = tuple((plain_rule(pattern), target) for pattern, target in rules)
    exact = dict(reversed(rules))
    return next(
        (exact[n] for n in names if n in exact),
        next((t for pattern, t in rules if any(fnmatchcase(n, pattern) for n in names)), None),
    )


def plain_rule(pattern: str) -> str:
    """A rule's name without a context suffix, as names are looked up; a glob's stays a glob's."""
    plain = ROUTE_CONTEXT_SUFFIX.sub("", pattern)
    return pattern if any(mark in plain for mark in "*?[") else plain


def family_model(config: Config, name: str) -> Optional[str]:
    """The model that stands in for a Claude family.

    A name with a vendor in front (`anthropic/claude-sonnet-4.5`) is meant as it is.
    """
    if "/" in name or "claude" not in name.lower() and name.lower() not in bare_families():
        return None
    setting = next((s for word, s in MODEL_FAMILIES if word in name.lower()), None)
    return getattr(config, setting.lower()) if setting else None


def bare_families() -> Tuple[str, ...]:
    return tuple(word for word, _ in MODEL_FAMILIES)


def listed_models(config: Config) -> List[Tuple[str, str]]:
    """(id, display name) of the models that clients may choose from, without asking anybody."""
    exact = [
        name
        for rules in (config.model_map, alias_rules(config, config.upstream))
        for name, _ in rules
        if not any(c in name for c in "*?[")
    ]
    own = [choose_route(config, word).model for word, _ in MODEL_FAMILIES]
    names = list(dict.fromkeys([*LISTED_MODELS, *exact, *own]))
    return [(name, display_name(config, name)) for name in names]


def display_name(config: Config, name: str) -> str:
    route = choose_route(config, name)
    return name if route.model == name else f"{name} ({route.model})"
