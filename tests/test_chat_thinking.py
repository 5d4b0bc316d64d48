"""Thinking in each provider's words, and reasoning that comes back."""

from __future__ import annotations

import pytest

from claude_proxy.dialects.carriers import pack_carrier, pack_details
from claude_proxy.dialects.chat_options import ChatOptions
from claude_proxy.dialects.chat_profiles import profile_options
from claude_proxy.dialects.chat_request import messages_to_chat
from claude_proxy.dialects.chat_thinking import (
    SKIP_SIGNATURE,
    effort_word,
    thinking_members,
    wanted_effort,
)

ADAPTIVE = {"type": "adaptive"}


def effort(level, thinking=ADAPTIVE):
    return {"thinking": thinking, "output_config": {"effort": level}}


def budget(tokens, **more):
    return {"thinking": {"type": "enabled", "budget_tokens": tokens, **more}}


LEVELS = [
    ("6.1-disabled", {"thinking": {"type": "disabled"}}, "off"),
    ("6.1-disabled-and-effort", effort("high", {"type": "disabled"}), "off"),
    ("6.2-effort", effort("xhigh"), "xhigh"),
    ("6.2-effort-alone", {"output_config": {"effort": "low"}}, "low"),
    ("6.2-effort-unheard-of", effort("heroic"), None),
    ("6.2-effort-null", effort(None), None),
    ("6.2-between-tools", effort("max", {"type": "between_tools"}), "max"),
    ("6.3-budget-1024", budget(1024), "low"),
    ("6.3-budget-2048", budget(2048), "medium"),
    ("6.3-budget-8192", budget(8192), "high"),
    ("6.3-budget-24576", budget(24576), "xhigh"),
    ("6.3-budget-and-effort", {**budget(1024), "output_config": {"effort": "max"}}, "max"),
    ("6.3-budget-no-number", budget("much"), None),
    ("6.4-adaptive", {"thinking": ADAPTIVE}, None),
    ("6.5-nothing", {}, None),
    ("6.5-odd-shapes", {"thinking": 5, "output_config": []}, None),
]


@pytest.mark.parametrize("rule,request_,level", LEVELS, ids=[row[0] for row in LEVELS])
def test_levels(rule, request_, level):
    assert wanted_effort(request_) == level


WORDS = [
    ("high", ("low", "medium", "high"), "high"), ("max", ("low", "medium", "high"), "high"),
    ("minimal", ("low", "high"), "low"), ("medium", ("low", "high"), "low"), ("xhigh", ("high", "max"), "high"),
    ("off", ("none", "high"), "none"), ("off", ("minimal", "high"), "minimal"), ("off", ("low", "high"), None),
    ("high", ("none", "default"), "default"), ("low", ("none", "high"), "high"), ("low", (), None),
]


@pytest.mark.parametrize("level,words,word", WORDS)
def test_the_nearest_word(level, words, word):
    assert effort_word(level, words) == word


MEMBERS = [
    ("6.openai-o3", "openai", "o3", effort("max"), False, {"reasoning_effort": "high"}, ["effort=max>high"]),
    ("6.openai-gpt-5-off", "openai", "gpt-5", effort("low", {"type": "disabled"}), False,
     {"reasoning_effort": "minimal"}, []),
    ("6.openai-5.2-xhigh", "openai", "gpt-5.2", effort("xhigh"), True, {"reasoning_effort": "xhigh"}, []),
    ("6.openai-5.4-tools", "openai", "gpt-5.4", effort("high"), True, {}, ["effort=dropped"]),
    ("6.openai-5.4-alone", "openai", "gpt-5.4", effort("high"), False, {"reasoning_effort": "high"}, []),
    ("6.openai-5.6-tools", "openai", "gpt-5.6", effort("high"), True, {"reasoning_effort": "none"}, ["effort=dropped"]),
    ("6.openai-5.6-tools-unset", "openai", "gpt-5.6", {}, True, {"reasoning_effort": "none"}, []),
    ("6.openai-plain", "openai", "gpt-4o", effort("high"), True, {}, ["effort=dropped"]),
    ("6.openai-plain-off", "openai", "gpt-4o", {"thinking": {"type": "disabled"}}, True, {}, []),
    ("6.openrouter-effort", "openrouter", "x/y", effort("max"), True, {"reasoning": {"effort": "xhigh"}}, []),
    ("6.openrouter-budget", "openrouter", "anthropic/x", budget(5000), True, {"reasoning": {"max_tokens": 5000}}, []),
    ("6.openrouter-off", "openrouter", "x/y", {"thinking": {"type": "disabled"}}, True,
     {"reasoning": {"enabled": False}}, []),
    ("6.deepseek", "deepseek", "deepseek-chat", effort("max"), True,
     {"thinking": {"type": "enabled"}, "reasoning_effort": "max"}, []),
    ("6.deepseek-low", "deepseek", "deepseek-chat", effort("low"), True,
     {"thinking": {"type": "enabled"}, "reasoning_effort": "high"}, ["effort=low>high"]),
    ("6.deepseek-off", "deepseek", "deepseek-chat", {"thinking": {"type": "disabled"}}, True,
     {"thinking": {"type": "disabled"}}, []),
    ("6.ollama-xhigh", "ollama", "qwen3", effort("xhigh"), True, {"reasoning_effort": "high"}, ["effort=xhigh>high"]),
    ("6.ollama-off", "ollama", "qwen3", {"thinking": {"type": "disabled"}}, True, {"reasoning_effort": "none"}, []),
    ("6.vllm", "vllm", "qwen3", effort("low"), True, {"chat_template_kwargs": {"enable_thinking": True}}, []),
    ("6.vllm-kimi-off", "vllm", "kimi-k2", {"thinking": {"type": "disabled"}}, True,
     {"chat_template_kwargs": {"thinking": False}}, []),
    ("6.llamacpp", "llamacpp", "qwen3", effort("low"), True, {"chat_template_kwargs": {"enable_thinking": True}}, []),
    ("6.gemini", "gemini", "gemini-3-pro", effort("max"), True, {
        "reasoning_effort": "high",
        "extra_body": {"google": {"thinking_config": {"include_thoughts": True}}}}, ["effort=max>high"]),
    ("6.gemini-omitted", "gemini", "gemini-3-pro", {**effort("low", {**ADAPTIVE, "display": "omitted"})}, True,
     {"reasoning_effort": "low"}, []),
    ("6.gemini-off", "gemini", "gemini-2.5-flash", {"thinking": {"type": "disabled"}}, True,
     {"reasoning_effort": "none"}, []),
    ("6.xai-few", "xai", "grok-4", effort("high"), True, {}, ["effort=dropped"]),
    ("6.xai-mini", "xai", "grok-3-mini", effort("medium"), True, {"reasoning_effort": "low"}, ["effort=medium>low"]),
    ("6.mistral", "mistral", "magistral-small", effort("low"), True, {"reasoning_effort": "high"},
     ["effort=low>high"]),
    ("6.groq-qwen", "groq", "qwen/qwen3-32b", effort("high"), True, {"reasoning_effort": "default"},
     ["effort=high>default"]),
    ("6.moonshot", "moonshot", "kimi-k2-thinking", effort("low"), True, {"thinking": {"type": "enabled"}}, []),
    ("6.zai-off", "zai", "glm-4.6", {"thinking": {"type": "disabled"}}, True, {"thinking": {"type": "disabled"}}, []),
    ("6.dashscope", "dashscope", "qwen-plus", budget(4000), True, {"enable_thinking": True, "thinking_budget": 4000}, []),
    ("6.other", "other", "some-model", effort("high"), True, {}, ["effort=dropped"]),
    ("6.other-reasoning", "other", "gpt-5", effort("high"), True, {"reasoning_effort": "high"}, []),
    ("6.unheard-of", "openai", "gpt-5", effort("heroic"), False, {}, ["effort=unknown"]),
    ("6.openrouter-budget-no-limit", "openrouter", "x/y", budget(4000), True, {"reasoning": {"max_tokens": 4000}}, []),
    ("6.unset", "openrouter", "x/y", {"thinking": ADAPTIVE}, True, {}, []),
]


@pytest.mark.parametrize("rule,profile,model,request_,tools,members,noted", MEMBERS, ids=[row[0] for row in MEMBERS])
def test_members(rule, profile, model, request_, tools, members, noted):
    notes = []
    assert thinking_members(request_, profile_options(profile, model), tools, notes) == members
    assert notes == noted


DETAILS = [{"type": "reasoning.encrypted", "data": "x", "index": 0}]
SIGNATURE = {"google": {"thought_signature": "abc"}}


def thought(text, signature=""):
    return {"type": "thinking", "thinking": text, "signature": signature}


USE = {"type": "tool_use", "id": "A", "name": "Read", "input": {}}
OTHER = {"type": "tool_use", "id": "B", "name": "Read", "input": {}}
TEXT = {"type": "text", "text": "t"}
FOREIGN = "EqQBCkYIBRgCKkAS"

REPLAYS = [
    ("13.deepseek", "reasoning_content", False, [thought("why"), USE], {"reasoning_content": "why"}, {}),
    ("13.deepseek-two-blocks", "reasoning_content", False, [thought("a"), TEXT, thought("b"), USE],
     {"reasoning_content": "ab"}, {}),
    ("13.deepseek-placeholder", "reasoning_content", True, [USE], {"reasoning_content": " "}, {}),
    ("13.deepseek-no-call", "reasoning_content", True, [thought("why"), TEXT], {}, {}),
    ("13.nothing-known", "reasoning_content", False, [USE], {}, {}),
    ("13.vllm", "reasoning", False, [thought("why"), USE], {"reasoning": "why"}, {}),
    ("13.foreign-signature", "reasoning_content", True, [thought("secret", FOREIGN), USE],
     {"reasoning_content": " "}, {}),
    ("13.redacted", "reasoning_content", False, [{"type": "redacted_thinking", "data": "x"}, USE], {}, {}),
    ("13.openrouter", "reasoning_details", False, [thought("why", pack_details(DETAILS, "why")), USE],
     {"reasoning_details": DETAILS}, {}),
    ("13.openrouter-two", "reasoning_details", False,
     [thought("", pack_details(DETAILS, "")), TEXT, thought("", pack_details(DETAILS, ""))],
     {"reasoning_details": DETAILS + DETAILS}, {}),
    ("13.openrouter-unsigned", "reasoning_details", False, [thought("why"), USE], {}, {}),
    ("13.openrouter-foreign", "reasoning_details", False, [thought("why", FOREIGN), USE], {}, {}),
    ("13.gemini", "extra_content", True, [thought("", pack_carrier("extra_content", SIGNATURE)), USE, OTHER], {},
     {"A": SIGNATURE}),
    ("13.gemini-unknown", "extra_content", True, [TEXT, USE, OTHER], {}, {"A": SKIP_SIGNATURE}),
    ("13.gemini-2", "extra_content", False, [USE], {}, {}),
    ("13.openai", "", False, [thought("why"), USE], {}, {}),
]


@pytest.mark.parametrize("rule,replay,blank,blocks,members,extra", REPLAYS, ids=[row[0] for row in REPLAYS])
def test_reasoning_that_comes_back(rule, replay, blank, blocks, members, extra):
    options = ChatOptions(replay=replay, replay_blank=blank)
    request = {"model": "m", "messages": [{"role": "assistant", "content": blocks}]}
    message = messages_to_chat(request, options)["messages"][0]
    assert {k: v for k, v in message.items() if k.startswith("reasoning")} == members
    carried = {call["id"]: call["extra_content"] for call in message.get("tool_calls", ()) if "extra_content" in call}
    assert carried == extra
    assert "secret" not in str(message)


def test_who_cannot_be_quiet_is_not_asked_to():
    notes, off = [], {"thinking": {"type": "disabled"}}
    options = ChatOptions(thinking="openrouter", always_thinks=True)
    assert thinking_members(off, options, True, notes) == {} and notes == ["thinking=always"]
    assert thinking_members(effort("low"), options, True, []) == {"reasoning": {"effort": "low"}}


def test_the_answer_to_results_belongs_to_their_turn():
    """Its reasoning comes back as well; that of a turn without calls does not."""
    options = ChatOptions(replay="reasoning_content", replay_blank=True)
    said = [{"role": "user", "content": "go"}, {"role": "assistant", "content": [thought("one"), USE]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "A", "content": "r"}]},
            {"role": "assistant", "content": [thought("two"), TEXT]}, {"role": "user", "content": "more"},
            {"role": "assistant", "content": [thought("three"), TEXT]}]
    messages = messages_to_chat({"model": "m", "messages": said}, options)["messages"]
    assert [m.get("reasoning_content") for m in messages if m["role"] == "assistant"] == ["one", "two", None]
