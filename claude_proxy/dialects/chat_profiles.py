"""What is known of OpenAI-compatible providers, as data. Pure.

A profile is found by OPENAI_PROFILE, else by the base URL. Its options hold for all of its models;
each row whose pattern fits the model, with or without its vendor's name, adds to them. Nothing here
has to be complete: what is missing costs one refusal, from which `chat_repairs` learns.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any, Dict, NamedTuple, Tuple
from urllib.parse import urlsplit

from claude_proxy.dialects.chat_options import ChatOptions

ModelRow = Tuple[str, Dict[str, Any]]


class Profile(NamedTuple):
    """`hosts` are names, or ends of names that begin with a dot, or ports (":11434"), or paths."""

    hosts: Tuple[str, ...] = ()
    options: Dict[str, Any] = {}
    models: Tuple[ModelRow, ...] = ()


# OpenAI's reasoning models take no sampling parameters; without `stop` the proxy watches for it.
REASONING: Dict[str, Any] = {
    "max_tokens_key": "max_completion_tokens",
    "drop": frozenset(("temperature", "top_p", "stop")),
    "thinking": "reasoning_effort",
}
# Chat Completions lets the newest of them reason or call tools, not both.
OPENAI_MODELS: Tuple[ModelRow, ...] = (
    ("gpt-3.5*", {"max_output": 4096}),
    ("gpt-4", {"max_output": 8192, "window": 8192}),
    ("gpt-4-turbo*", {"max_output": 4096, "window": 128_000}),
    ("gpt-4o*", {"max_output": 16_384, "window": 128_000}),
    ("gpt-4.1*", {"max_output": 32_768, "window": 1_047_576}),
    ("o[1-9]*", {**REASONING, "max_output": 100_000, "window": 200_000}),
    ("o[1-9]*", {"drop": frozenset(("parallel_tool_calls",))}),
    ("o1-mini*", {"system_role": "", "tools": False, "thinking": "", "max_output": 65_536}),
    ("o1-preview*", {"system_role": "", "tools": False, "thinking": "", "max_output": 32_768}),
    ("gpt-[5-9]*", {**REASONING, "max_output": 128_000}),
    ("gpt-[5-9]*", {"efforts": ("none", "low", "medium", "high")}),
    ("gpt-5", {"efforts": ("minimal", "low", "medium", "high")}),
    ("gpt-5-*", {"efforts": ("minimal", "low", "medium", "high")}),
    ("gpt-5.[2-9]*", {"efforts": ("none", "low", "medium", "high", "xhigh")}),
    ("gpt-[6-9]*", {"efforts": ("none", "low", "medium", "high", "xhigh")}),
    ("gpt-5.[45]*", {"effort_with_tools": "omit"}),
    ("gpt-5.[6-9]*", {"effort_with_tools": "none"}),
    ("gpt-[6-9]*", {"effort_with_tools": "none"}),
    ("gpt-*-chat*", {"thinking": ""}),
)
LOCAL: Dict[str, Any] = {"top_k": True, "thinking": "template"}
LOCAL_MODELS: Tuple[ModelRow, ...] = (
    ("*deepseek*", {"thinking": "template_thinking"}),
    ("*kimi*", {"thinking": "template_thinking"}),
    ("*gpt-oss*", {"thinking": "reasoning_effort"}),
)
CACHED = {"cache_control": True}
BINARY_THINKING: Dict[str, Any] = {"thinking": "thinking_type", "replay": "reasoning_content"}

PROFILES: Dict[str, Profile] = {
    "other": Profile(
        models=(
            ("o[1-9]*", {"thinking": "reasoning_effort"}),
            ("gpt-[5-9]*", {"thinking": "reasoning_effort"}),
        ),
    ),
    "openai": Profile(
        ("api.openai.com",),
        {"files": True, "strict": True, "identity": "openai"},
        OPENAI_MODELS,
    ),
    "azure": Profile(
        (".openai.azure.com", ".cognitiveservices.azure.com", ".services.ai.azure.com"),
        {"files": True, "strict": True},
        OPENAI_MODELS,
    ),
    "openrouter": Profile(
        ("openrouter.ai",),
        {
            "top_k": True, "files": True, "strict": True, "identity": "user",
            "thinking": "openrouter", "efforts": ("minimal", "low", "medium", "high", "xhigh"),
            "replay": "reasoning_details",
            # Its default for small windows leaves messages out without a word.
            "extra": (("transforms", ()),),
        },
        (
            ("anthropic/*", CACHED), ("google/*", CACHED), ("minimax/*", CACHED),
            ("z-ai/*", CACHED),
        ),
    ),
    "deepseek": Profile(
        ("api.deepseek.com",),
        {
            "most_stops": 16, "thinking": "deepseek", "efforts": ("high", "max"),
            "replay": "reasoning_content", "replay_blank": True,
        },
        (("deepseek-chat*", {"max_output": 8192}), ("deepseek-reasoner*", {"max_output": 65_536})),
    ),
    "xai": Profile(
        ("api.x.ai",),
        {},
        (
            ("grok-3-mini*", {"thinking": "reasoning_effort", "efforts": ("low", "high")}),
            ("grok-3-mini*", {"drop": frozenset(("stop",))}),
            ("grok-4*", {"drop": frozenset(("stop",))}),
            ("grok-code*", {"drop": frozenset(("stop",))}),
            ("grok-4.3*", {"thinking": "reasoning_effort"}),
            ("grok-4.20-multi-agent*", {"thinking": "reasoning_effort"}),
        ),
    ),
    "gemini": Profile(
        ("generativelanguage.googleapis.com", "aiplatform.googleapis.com"),
        {
            "files": True, "schema_level": 2, "tool_name": "letter", "empty_result": "(no output)",
            "thinking": "gemini", "efforts": ("minimal", "low", "medium", "high"),
            "replay": "extra_content",
        },
        (
            ("gemini-[2-9]*", {"max_output": 65_536, "window": 1_048_576}),
            ("gemini-2.0*", {"max_output": 8192, "thinking": ""}),
            ("gemini-2.5-flash*", {"efforts": ("none", "low", "medium", "high")}),
            # Only 3 and later demand the signatures that they give.
            ("gemini-[3-9]*", {"replay_blank": True}),
        ),
    ),
    "mistral": Profile(
        ("api.mistral.ai", "codestral.mistral.ai"),
        {
            "any_word": "any", "tool_ids": "mistral", "schema_level": 1, "prefill": "prefix",
            "empty_result": "(no output)",
        },
        (
            ("magistral*", {"thinking": "reasoning_effort", "efforts": ("none", "high")}),
            ("mistral-medium-3.5*", {"thinking": "reasoning_effort", "efforts": ("none", "high")}),
        ),
    ),
    "groq": Profile(
        ("api.groq.com",),
        {"schema_level": 1, "answer_format": "text"},
        (
            ("llama-3.3-70b*", {"max_output": 32_768}),
            ("gpt-oss*", {"max_output": 65_536, "thinking": "reasoning_effort"}),
            ("gpt-oss*", {"extra": (("reasoning_format", "parsed"),)}),
            ("qwen3-32b*", {"max_output": 40_960}),
            ("qwen3*", {"thinking": "reasoning_effort", "efforts": ("none", "default")}),
            ("qwen3*", {"extra": (("reasoning_format", "parsed"),)}),
        ),
    ),
    "together": Profile(("api.together.xyz", "api.together.ai"), {"top_k": True}),
    "fireworks": Profile(("api.fireworks.ai",), {"top_k": True}),
    "cerebras": Profile(("api.cerebras.ai",), {"schema_level": 1}),
    "moonshot": Profile(
        ("api.moonshot.ai", "api.moonshot.cn"),
        {**BINARY_THINKING, "replay_blank": True, "any_word": ""},
    ),
    "zai": Profile(("api.z.ai", "open.bigmodel.cn"), BINARY_THINKING),
    "dashscope": Profile(
        (".aliyuncs.com",), {"thinking": "enable_thinking", "replay": "reasoning_content"}
    ),
    "vllm": Profile((), {**LOCAL, "replay": "reasoning", "prefill": "continue"}, LOCAL_MODELS),
    "llamacpp": Profile(
        # A choice that names a tool is passed over without a word.
        (),
        {
            **LOCAL, "replay": "reasoning_content", "schema_level": 1, "named_choice": False,
            "prefill": "unthinking",
        },
        LOCAL_MODELS,
    ),
    "ollama": Profile(
        (":11434",),
        {
            # A choice of tools is passed over without a word.
            "cuts_silently": True, "image_urls": False, "obeys_none": False, "any_word": "",
            "drop": frozenset(("parallel_tool_calls",)),
            "thinking": "reasoning_effort", "efforts": ("none", "low", "medium", "high", "max"),
            "replay": "reasoning",
        },
    ),
    "lmstudio": Profile((":1234",), {"top_k": True, "image_urls": False}),
    "openwebui": Profile(("/api",)),
}


def profile_name(base_url: str, azure: bool = False) -> str:
    """The profile of a base URL: by its host's name, its port, or its whole path."""
    if azure:
        return "azure"
    parts = urlsplit(base_url)
    host, port, path = parts.hostname or "", f":{parts.port}", parts.path.rstrip("/")
    for name, profile in PROFILES.items():
        if any(is_host_of(mark, host) or mark in (port, path) for mark in profile.hosts):
            return name
    return "other"


def is_host_of(mark: str, host: str) -> bool:
    return host == mark or mark[0] == "." and host.endswith(mark)


@functools.lru_cache(maxsize=256)
def profile_options(name: str, model: str) -> ChatOptions:
    """The options of a profile for one of its models."""
    profile, members = PROFILES[name], dict(PROFILES[name].options)
    for row in fitting_rows(profile, model):
        drop = members.get("drop", frozenset()) | row.get("drop", frozenset())
        members = {**members, **row, "drop": drop}
    return ChatOptions(**members)


def fitting_rows(profile: Profile, model: str) -> Iterator[Dict[str, Any]]:
    whole = model.lower()
    names = (whole, whole.rpartition("/")[2])
    for pattern, row in profile.models:
        if any(fnmatchcase(name, pattern) for name in names):
            yield row
