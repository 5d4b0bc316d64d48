"""Profiles: which one a base URL means, and what its models want."""

from __future__ import annotations

import pytest

from claude_proxy.config import PROFILE_NAMES
from claude_proxy.dialects.chat_options import ChatOptions
from claude_proxy.dialects.chat_profiles import PROFILES, profile_name, profile_options
from claude_proxy.dialects.chat_thinking import THINKING_MEMBERS

ADDRESSES = [
    ("https://api.openai.com/v1", "openai"),
    ("https://ward.openai.azure.com", "azure"),
    ("https://ward.cognitiveservices.azure.com/openai/v1", "azure"),
    ("https://openrouter.ai/api/v1", "openrouter"),
    ("https://api.deepseek.com", "deepseek"),
    ("https://api.deepseek.com/v1", "deepseek"),
    ("https://api.x.ai/v1", "xai"),
    ("https://generativelanguage.googleapis.com/v1beta/openai", "gemini"),
    ("https://api.mistral.ai/v1", "mistral"),
    ("https://api.groq.com/openai/v1", "groq"),
    ("https://api.together.xyz/v1", "together"),
    ("https://api.fireworks.ai/inference/v1", "fireworks"),
    ("https://api.cerebras.ai/v1", "cerebras"),
    ("https://api.moonshot.ai/v1", "moonshot"),
    ("https://api.z.ai/api/paas/v4", "zai"),
    ("https://dashscope-intl.aliyuncs.com/compatible-mode/v1", "dashscope"),
    ("http://localhost:11434/v1", "ollama"),
    ("http://127.0.0.1:1234/v1", "lmstudio"),
    ("https://chat.example/api", "openwebui"),
    ("https://notapi.openai.com.evil.example/v1", "other"),
    ("https://evil.example/openrouter.ai", "other"),
    ("https://openai.azure.com.example", "other"),
    ("http://10.0.0.5:8000/v1", "other"),
    ("", "other"),
]


@pytest.mark.parametrize("address,name", ADDRESSES, ids=[row[0] for row in ADDRESSES])
def test_which_profile(address, name):
    assert profile_name(address) == name


def test_an_azure_version_means_azure():
    assert profile_name("https://gateway.example", azure=True) == "azure"


MODELS = [
    ("openai", "gpt-4o", {"max_output": 16384, "thinking": ""}),
    ("openai", "gpt-4.1-mini", {"max_output": 32768, "max_tokens_key": "max_tokens"}),
    ("openai", "gpt-7o-unheard-of", {"max_tokens_key": "max_completion_tokens"}),
    ("openai", "omni-moderation", {"max_output": 0, "max_tokens_key": "max_tokens"}),
    ("openai", "o3", {"max_tokens_key": "max_completion_tokens", "thinking": "reasoning_effort",
                      "drop": frozenset(["temperature", "top_p", "stop", "parallel_tool_calls"])}),
    ("openai", "o1-mini", {"system_role": "", "tools": False}),
    ("openai", "gpt-5", {"efforts": ("minimal", "low", "medium", "high"), "effort_with_tools": "any",
                         "drop": frozenset(["temperature", "top_p", "stop"])}),
    ("openai", "gpt-5-mini-2025-08-07", {"efforts": ("minimal", "low", "medium", "high")}),
    ("openai", "gpt-5.1", {"efforts": ("none", "low", "medium", "high")}),
    ("openai", "gpt-5.2", {"efforts": ("none", "low", "medium", "high", "xhigh")}),
    ("openai", "gpt-5.4-mini", {"effort_with_tools": "omit"}),
    ("openai", "gpt-5.6", {"effort_with_tools": "none"}),
    ("openai", "gpt-5-chat-latest", {"thinking": ""}),
    ("azure", "gpt-5", {"max_tokens_key": "max_completion_tokens", "identity": ""}),
    ("azure", "my-deployment", {"max_tokens_key": "max_tokens", "files": True}),
    ("openrouter", "anthropic/claude-sonnet-4.6", {"cache_control": True, "replay": "reasoning_details"}),
    ("openrouter", "openai/gpt-5.4", {"cache_control": False, "max_tokens_key": "max_tokens"}),
    ("deepseek", "deepseek-chat", {"max_output": 8192, "replay_blank": True}),
    ("xai", "grok-4-fast", {"drop": frozenset(["stop"]), "thinking": ""}),
    ("xai", "grok-3-mini", {"drop": frozenset(["stop"]), "efforts": ("low", "high")}),
    ("gemini", "gemini-3-pro-preview", {"schema_level": 2, "replay": "extra_content", "replay_blank": True}),
    ("gemini", "gemini-2.5-flash", {"efforts": ("none", "low", "medium", "high"), "replay_blank": False}),
    ("mistral", "mistral-large-latest", {"any_word": "any", "tool_ids": "mistral", "thinking": ""}),
    ("mistral", "magistral-medium-latest", {"efforts": ("none", "high")}),
    ("groq", "openai/gpt-oss-120b", {"extra": (("reasoning_format", "parsed"),), "schema_level": 1}),
    ("groq", "qwen/qwen3-32b", {"efforts": ("none", "default")}),
    ("together", "meta-llama/Llama-4", {"top_k": True}),
    ("vllm", "Qwen/Qwen3-32B", {"thinking": "template", "prefill": "continue"}),
    ("vllm", "deepseek-ai/DeepSeek-V3.2", {"thinking": "template_thinking"}),
    ("llamacpp", "gpt-oss-20b", {"thinking": "reasoning_effort", "replay": "reasoning_content"}),
    ("ollama", "qwen3:32b", {"image_urls": False, "obeys_none": False, "cuts_silently": True}),
    ("lmstudio", "any", {"image_urls": False}),
    ("other", "gpt-5", {"thinking": "reasoning_effort", "max_tokens_key": "max_tokens"}),
    ("other", "mistral-large", {"thinking": ""}),
]


@pytest.mark.parametrize("name,model,members", MODELS, ids=[f"16.{row[0]}-{row[1]}" for row in MODELS])
def test_what_a_model_wants(name, model, members):
    options = profile_options(name, model)
    assert {key: getattr(options, key) for key in members} == members


def test_the_settings_name_every_profile():
    assert set(PROFILE_NAMES) == set(PROFILES)


@pytest.mark.parametrize("name", PROFILES)
def test_profiles_are_sound(name):
    """Every member exists, and every word for thinking is one that something knows how to tell."""
    profile = PROFILES[name]
    rows = [profile.options, *(row for _, row in profile.models)]
    assert all(set(row) <= set(ChatOptions._fields) for row in rows)
    assert all(row.get("thinking", "") in ("", *THINKING_MEMBERS) for row in rows)
    assert all(pattern == pattern.lower() for pattern, _ in profile.models)
