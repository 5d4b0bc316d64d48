"""Which upstream and model answer which name."""

from __future__ import annotations

import pytest

from claude_proxy.config import LISTED_MODELS
from claude_proxy.config_load import load_config
from claude_proxy.routing import choose_route, first_match, listed_models

OPENAI = {"OPENAI_API_KEY": "k", "OPENAI_BASE_URL": "http://127.0.0.1:1/v1",
          "BIG_MODEL": "big", "MIDDLE_MODEL": "mid", "SMALL_MODEL": "small"}
MAPPED = {**OPENAI, "MODEL_MAP": "claude-sonnet-4=exact,claude-opus-4-*=globbed,fast=demo:demo,local-*=llama3.1:70b"}
DEFAULTED = {**OPENAI, "DEFAULT_MODEL": "fallback"}

ROUTES = [
    (OPENAI, "claude-opus-4-8", "openai", "big", "family"),
    (OPENAI, "claude-opus-4-8[1m]", "openai", "big", "family"),
    (OPENAI, "claude-sonnet-5", "openai", "mid", "family"),
    (OPENAI, "claude-3-5-sonnet-20241022", "openai", "mid", "family"),
    (OPENAI, "claude-haiku-4-5-20251001", "openai", "small", "family"),
    (OPENAI, "Claude-Haiku-9", "openai", "small", "family"),
    (OPENAI, "claude-something-new", "openai", "big", "family"),
    (OPENAI, "opus", "openai", "big", "family"),
    (OPENAI, "haiku", "openai", "small", "family"),
    (OPENAI, "gpt-4.1", "openai", "gpt-4.1", "as named"),
    (OPENAI, "gpt-4.1[1m]", "openai", "gpt-4.1", "as named"),
    (OPENAI, "anthropic/claude-sonnet-4.5", "openai", "anthropic/claude-sonnet-4.5", "as named"),
    (OPENAI, "my-haiku-writer", "openai", "my-haiku-writer", "as named"),
    (OPENAI, "llama3.1:70b", "openai", "llama3.1:70b", "as named"),
    (OPENAI, "openai:gpt-4o", "openai", "gpt-4o", "named upstream"),
    (OPENAI, "openai:llama3.1:8b", "openai", "llama3.1:8b", "named upstream"),
    (OPENAI, "demo:x", "demo", "x", "named upstream"),
    (OPENAI, "", "openai", "big", "no model named"),
    (MAPPED, "claude-sonnet-4", "openai", "exact", "MODEL_MAP"),
    (MAPPED, "claude-sonnet-4-20250514", "openai", "exact", "MODEL_MAP"),
    (MAPPED, "claude-opus-4-1", "openai", "globbed", "MODEL_MAP"),
    (MAPPED, "claude-sonnet-5", "openai", "mid", "family"),
    (MAPPED, "fast", "demo", "demo", "MODEL_MAP"),
    (MAPPED, "local-big", "openai", "llama3.1:70b", "MODEL_MAP"),
    (DEFAULTED, "claude-sonnet-5", "openai", "mid", "family"),
    (DEFAULTED, "gpt-4.1", "openai", "fallback", "DEFAULT_MODEL"),
    (DEFAULTED, "", "openai", "fallback", "DEFAULT_MODEL"),
    ({}, "claude-opus-4-8", "demo", "demo", "alias"),
    ({}, "anything", "demo", "demo", "alias"),
]


@pytest.mark.parametrize("environ,name,upstream,model,reason", ROUTES)
def test_routes(environ, name, upstream, model, reason):
    assert choose_route(load_config(environ), name) == (upstream, model, reason)


@pytest.mark.parametrize("rules,name,expected", [
    ((), "a", None),
    ((("a", "1"), ("a", "2")), "a", "1"),
    ((("*", "glob"), ("a", "exact")), "a", "exact"),
    ((("a-*", "first"), ("*", "second")), "a-b", "first"),
    ((("a-b", "dated"),), "a-b-20250101", "dated"),
    ((("a-b-20250101", "itself"), ("a-b", "dated")), "a-b-20250101", "itself"),
])
def test_first_match(rules, name, expected):
    assert first_match(rules, name) == expected


def test_what_is_listed():
    names = dict(listed_models(load_config(MAPPED)))
    assert list(names)[:len(LISTED_MODELS)] == list(LISTED_MODELS)
    assert {"claude-sonnet-4", "fast", "big", "mid", "small"} <= set(names)
    assert not any("*" in name for name in names)
    assert names["claude-sonnet-5"] == "claude-sonnet-5 (mid)" and names["big"] == "big"


def test_the_demo_lists_no_model_that_it_has_not():
    assert [name for name, _ in listed_models(load_config({}))] == [*LISTED_MODELS, "demo"]
