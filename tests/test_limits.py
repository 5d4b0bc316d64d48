"""What upstreams say of their models, and what it changes."""

from __future__ import annotations

import threading

import pytest

from claude_proxy.dialects.chat_options import ChatOptions
from claude_proxy.limits import (
    ModelCatalog,
    ModelLimits,
    decode_limits,
    limited_options,
    read_limits,
)

ANSWERS = [
    ("openrouter", {"data": [{
        "id": "x/y", "context_length": 200000, "supported_parameters": ["tools", "temperature"],
        "top_provider": {"context_length": 180000, "max_completion_tokens": 64000}}]},
     {"x/y": ModelLimits(180000, 64000, ("tools", "temperature"))}),
    ("vllm", {"object": "list", "data": [{"id": "qwen", "max_model_len": 32768}]}, {"qwen": ModelLimits(32768)}),
    ("groq", {"data": [{"id": "m", "context_window": 131072, "max_completion_tokens": 8192}]},
     {"m": ModelLimits(131072, 8192)}),
    ("mistral", {"data": [{"id": "m", "max_context_length": 131072}]}, {"m": ModelLimits(131072)}),
    ("together", [{"id": "m", "context_length": 8192}], {"m": ModelLimits(8192)}),
    ("lmstudio", {"data": [{"id": "m", "max_context_length": 131072, "loaded_context_length": 4096}]},
     {"m": ModelLimits(4096)}),
    ("ollama", {"models": [{"name": "qwen3:8b", "model": "qwen3:8b", "context_length": 4096}]},
     {"qwen3:8b": ModelLimits(4096)}),
    ("llama.cpp", {"default_generation_settings": {"n_ctx": 8192}, "total_slots": 1}, {"": ModelLimits(8192)}),
    ("litellm", {"data": [{"id": "m", "model_info": {"max_input_tokens": 128000, "max_output_tokens": 16384}}]},
     {"m": ModelLimits(128000, 16384)}),
    ("openai, which tells nothing", {"data": [{"id": "gpt-4o", "object": "model"}]}, {}),
    ("odd figures", {"data": [{"id": "m", "context_length": "8192", "max_model_len": -1, "context_window": None}]}, {}),
    ("odd shapes", {"data": [5, None, {"id": 7, "context_length": 8192}]}, {"": ModelLimits(8192)}),
    ("nothing", {}, {}), ("a list of nothing", [], {}), ("a number", 5, {}), ("null", None, {}),
]


@pytest.mark.parametrize("name,answer,limits", ANSWERS, ids=[row[0] for row in ANSWERS])
def test_what_is_read(name, answer, limits):
    assert read_limits(answer) == limits


@pytest.mark.parametrize("body", [b"", b"<html>", b"[" * 100_000, b"\xff"])
def test_what_cannot_be_read_tells_nothing(body):
    assert decode_limits(body) == {}


OPTIONS = [
    (ChatOptions(), ModelLimits(), {}),
    (ChatOptions(), ModelLimits(8192, 4096), {"window": 8192, "max_output": 4096}),
    (ChatOptions(max_output=1024), ModelLimits(0, 4096), {}),
    (ChatOptions(max_output=9999), ModelLimits(0, 4096), {"max_output": 4096}),
    (ChatOptions(thinking="openrouter", answer_format="json_schema"), ModelLimits(0, 0, ("temperature", "top_p", "stop")),
     {"tools": False, "thinking": "", "answer_format": "text", "drop": frozenset(["top_k"])}),
    (ChatOptions(thinking="x"), ModelLimits(0, 0, (
        "tools", "reasoning", "structured_outputs", "response_format", "temperature", "top_p", "top_k", "stop")), {}),
    (ChatOptions(thinking="x"), ModelLimits(0, 0, ()), {}),
    (ChatOptions(thinking="x", answer_format="text"), ModelLimits(0, 0, (
        "tools", "reasoning", "response_format", "temperature", "top_p", "top_k", "stop")), {}),
]


@pytest.mark.parametrize("options,limits,changes", OPTIONS)
def test_what_limits_change(options, limits, changes):
    assert limited_options(options, limits) == options._replace(**changes)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Upstream:
    """Answers when it is let; counts what it was asked."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = 0
        self.let = threading.Event()

    def __call__(self):
        self.asked += 1
        assert self.let.wait(5)
        return self.answers.pop(0)


KNOWN = {"m": ModelLimits(8192)}


def test_nobody_waits_and_it_is_asked_once():
    clock, upstream = Clock(), Upstream(KNOWN)
    catalog = ModelCatalog(upstream, clock)
    assert [catalog.look_up("m") for _ in range(5)] == [ModelLimits()] * 5
    upstream.let.set()
    catalog.wait(5)
    assert catalog.look_up("m") == ModelLimits(8192) and catalog.look_up("n") == ModelLimits()
    assert upstream.asked == 1


def test_what_failed_is_asked_again_later_and_what_is_known_is_refreshed():
    clock, upstream = Clock(), Upstream({}, KNOWN, {}, {"m": ModelLimits(4096)})
    upstream.let.set()
    catalog = ModelCatalog(upstream, clock)
    found = []
    for now in (0, 10, 400, 500, 5000, 5400):
        clock.now = now
        catalog.look_up("m")
        catalog.wait(5)
        found.append((upstream.asked, catalog.look_up("m").window))
    assert found == [(1, 0), (1, 0), (2, 8192), (2, 8192), (3, 8192), (4, 4096)]


def test_a_server_with_one_model_tells_of_all_names():
    catalog = ModelCatalog(lambda: {"": ModelLimits(8192)}, Clock())
    catalog.look_up("any")
    catalog.wait(5)
    assert catalog.look_up("any") == ModelLimits(8192)
