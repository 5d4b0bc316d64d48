"""The judges of the `provider-` checks: a fine request breaks no rule, each rule can be broken."""

from __future__ import annotations

import copy
from typing import Any, Callable, Dict

import pytest

from tests.clients import provider_rules as rules
from tests.clients.provider_rules import Asked
from tests.clients.provider_shapes import THOUGHTS, Turn, details_of, thought_signature
from tests.clients.providers import PROVIDERS, address_rules

Body = Dict[str, Any]


def fine_body(name: str) -> Body:
    """A request that this provider takes."""
    provider = PROVIDERS[name]
    call_id = "abcDEF123"
    call = {
        "id": call_id,
        "type": "function",
        "function": {"name": "Bash", "arguments": '{"command":"ls"}'},
    }
    said: Body = {"role": "assistant", "content": "I look.", "tool_calls": [call]}
    body: Body = {"model": provider.model, "stream": True}
    if name == "openrouter":
        said["reasoning_details"] = details_of(Turn(1, THOUGHTS[1], ""))
    if name == "deepseek-thinking":
        said["reasoning_content"] = THOUGHTS[1]
    if name == "gemini":
        call["extra_content"] = thought_signature(1)
    if name == "openai-gpt-5.6":
        body["reasoning_effort"] = "none"
    system, asked = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}
    body["messages"] = [
        system,
        asked,
        said,
        {"role": "tool", "tool_call_id": call_id, "content": "a b"},
    ]
    schema = {"type": "object", "properties": {"command": {"type": "string", "pattern": "^.*$"}}}
    body["tools"] = [
        {"type": "function", "function": {"name": "Bash", "description": "x", "parameters": schema}}
    ]
    reasoning = name.startswith(("openai-", "azure"))
    return {**body, "max_completion_tokens" if reasoning else "max_tokens": 4000}


def fine_headers(name: str) -> Dict[str, str]:
    return {"content-type": "application/json", **dict([PROVIDERS[name].key_header])}


def broken_rules(name: str, body: Body, headers: Dict[str, str], target: str = "") -> list:
    provider = PROVIDERS[name]
    asked = Asked(target or provider.target, headers, body)
    every = (*rules.COMMON_RULES, provider.cache_marks, *address_rules(provider), *provider.rules)
    return [rule.name for rule in every if rule.judge(asked)]


@pytest.mark.parametrize("name", PROVIDERS)
def test_a_fine_request_breaks_no_rule(name: str) -> None:
    assert broken_rules(name, fine_body(name), fine_headers(name)) == []


def at(*path: Any) -> Callable[[Any], Callable[[Body], None]]:
    """`at(place, ...)(value)` is a change that puts the value there."""

    def put(value: Any) -> Callable[[Body], None]:
        def change(body: Body) -> None:
            inner: Any = body
            for step in path[:-1]:
                inner = inner[step]
            inner[path[-1]] = value

        return change

    return put


def swap_limit(body: Body) -> None:
    body["max_tokens"] = body.pop("max_completion_tokens")


PARAMETERS = ("tools", 0, "function", "parameters")
COMMAND = (*PARAMETERS, "properties", "command")
CALL = ("messages", 2, "tool_calls", 0)
LINKED = [{"type": "image_url", "image_url": {"url": "https://host/a.png"}}]
LATE_SYSTEM = at("messages", 1, "role")("system")

# (provider, change, the rule that minds it)
BROKEN = (
    ("openai", at("max_tokens")(64000), "max_tokens too large"),
    ("openai", at("top_k")(4), "unknown key"),
    ("openai", at("reasoning_effort")("high"), "reasoning_effort"),
    ("openai", at("messages", 2, "reasoning_content")("x"), "unknown message key"),
    ("openai", at("tools")([]), "empty tools"),
    ("openai", at("messages", 1, "content")(None), "content missing"),
    ("openai", at(*CALL, "id")("x" * 41), "id over 40 characters"),
    ("openai-gpt-5", swap_limit, "max_tokens"),
    ("openai-gpt-5", at("temperature")(0.5), "sampling"),
    ("openai-gpt-5", at("stop")(["a"]), "stop"),
    ("openai-gpt-5", at("reasoning_effort")("xhigh"), "reasoning_effort"),
    ("openai-gpt-5.4", at("reasoning_effort")("high"), "effort with tools"),
    ("openai-gpt-5.6", at("reasoning_effort")("high"), "effort with tools"),
    ("openai-o4-mini", at("parallel_tool_calls")(False), "parallel_tool_calls"),
    ("azure", at("top_k")(4), "unknown key"),
    ("openrouter", at("messages", 2, "reasoning_details")([]), "reasoning_details come back"),
    ("openrouter", at("reasoning")({"effort": "max"}), "reasoning.effort"),
    ("deepseek", at("max_tokens")(8193), "max_tokens range"),
    ("deepseek", at("messages", 0, "role")("developer"), "known roles"),
    ("deepseek-thinking", at("messages", 2, "reasoning_content")(None), "reasoning_content comes back"),
    ("xai", at("stop")(["a"]), "unsupported parameter"),
    ("gemini", at(*PARAMETERS, "$schema")("x"), "schema keywords"),
    ("gemini", at(*COMMAND, "const")("x"), "schema keywords"),
    ("gemini", at(*COMMAND, "type")(["string", "null"]), "schema values"),
    ("gemini", at(*COMMAND, "format")("uri"), "schema values"),
    ("gemini", at(*COMMAND, "enum")([1]), "schema values"),
    ("gemini", at(*PARAMETERS, "required")(["other"]), "schema values"),
    ("gemini", at(*COMMAND)({"type": "array"}), "schema values"),
    ("gemini", at(*CALL, "extra_content")({}), "thought_signature comes back"),
    ("gemini", at("messages", 3, "content")(""), "empty text"),
    ("gemini", at("messages", 1, "content")([{"type": "text", "text": ""}]), "empty text"),
    ("gemini", at("tools", 0, "function", "name")("9lives"), "function names"),
    ("gemini", at("top_k")(4), "unknown key"),
    ("gemini", at("max_tokens")(65537), "max_tokens too large"),
    ("gemini", at("reasoning_effort")("max"), "reasoning_effort"),
    ("mistral", at(*CALL, "id")("call_1"), "tool call ids"),
    ("mistral", at("top_k")(4), "unknown key"),
    ("mistral", at("messages", 2, "reasoning_content")("x"), "unknown message key"),
    ("mistral", at("tools", 0, "function", "strict")(False), "unknown function key"),
    ("mistral", at("tool_choice")("required"), "tool_choice required"),
    ("mistral", at("messages", 1)({"role": "assistant", "content": ""}), "empty assistant message"),
    ("mistral", at("reasoning_effort")("low"), "reasoning_effort"),
    ("groq", at(*PARAMETERS, "$schema")("x"), "$schema"),
    ("groq", at("messages", 2, "content")(None), "nulls"),
    ("groq", at("top_k")(4), "unknown key"),
    ("groq", at("messages", 2, "reasoning_content")("x"), "unknown message key"),
    ("groq", at("max_tokens")(40961), "max_tokens too large"),
    ("groq", at("reasoning_effort")("high"), "reasoning_effort"),
    ("together", at("messages", 1, "content")(None), "content missing"),
    ("vllm", LATE_SYSTEM, "system first"),
    ("vllm", at("tools")([]), "empty tools"),
    ("llamacpp", LATE_SYSTEM, "system first"),
    ("llamacpp", at("messages", 1, "content")(None), "content missing"),
    ("llamacpp", at(*COMMAND, "pattern")("a+"), "patterns"),
    ("ollama", at("messages", 1, "content")([{"type": "text", "text": "a"}]), "content is a string"),
    ("ollama", at("messages", 1, "content")(LINKED), "linked images"),
    ("ollama", at("reasoning_effort")("xhigh"), "reasoning_effort"),
    ("lmstudio", at("tool_choice")({"type": "function"}), "tool_choice is a word"),
    ("lmstudio", at("messages", 1, "content")(LINKED), "linked images"),
    ("lmstudio", at("messages", 1, "content")(None), "content missing"),
    ("openwebui", at("messages", 1, "content")(None), "content missing"),
    ("openai", at("messages", 0, "content")("x-anthropic-billing-header: cc"), "attribution"),
    ("openai", at("messages", 0, "cache_control")({}), "cache_control"),
    ("openrouter", at("tools", 0, "cache_control")({}), "cache_control"),
    ("openai", at("messages", 3, "tool_call_id")("other"), "chat grammar"),
    ("openai", at("messages", 3)({"role": "user", "content": "x"}), "chat grammar"),
    ("openai", at("messages", 3, "content")([]), "chat grammar"),
    ("openai", at(*CALL, "function", "arguments")("[]"), "whole calls"),
    ("openai", at("max_completion_tokens")(9), "one limit"),
)  # fmt: skip


@pytest.mark.parametrize(("name", "change", "rule"), BROKEN)
def test_each_rule_can_be_broken(name: str, change: Callable[[Body], None], rule: str) -> None:
    body = copy.deepcopy(fine_body(name))
    change(body)
    assert rule in broken_rules(name, body, fine_headers(name))


def test_every_rule_is_broken_here() -> None:
    kept = {rule.name for provider in PROVIDERS.values() for rule in provider.rules}
    assert kept <= {rule for _, _, rule in BROKEN}


@pytest.mark.parametrize(
    ("name", "headers", "target", "rule"),
    (
        ("openai", {"x-api-key": "k"}, "", "foreign headers"),
        ("openai", {"anthropic-version": "2023-06-01"}, "", "foreign headers"),
        ("openai", {"authorization": "Bearer other"}, "", "key"),
        ("azure", {"authorization": "Bearer scripted-key"}, "", "key"),
        ("azure", {}, "/openai/deployments/team-chat/chat/completions", "address"),
        ("openwebui", {}, "/api/v1/chat/completions", "address"),
    ),
)
def test_headers_and_address(name: str, headers: Dict[str, str], target: str, rule: str) -> None:
    assert rule in broken_rules(name, fine_body(name), {**fine_headers(name), **headers}, target)


def test_cache_marks_may_stand_on_openrouters_text_parts() -> None:
    body = fine_body("openrouter")
    body["messages"][1]["content"] = [
        {"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}
    ]
    assert broken_rules("openrouter", body, fine_headers("openrouter")) == []
