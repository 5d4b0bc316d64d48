"""Profiles: which one a base URL means, and what its models want."""

from __future__ import annotations

import copy
import json
import random

import pytest

from claude_proxy.config import PROFILE_NAMES
from claude_proxy.dialects.carriers import pack_carrier
from claude_proxy.dialects.chat_options import ChatOptions
from claude_proxy.dialects.chat_profiles import PROFILES, profile_name, profile_options
from claude_proxy.dialects.chat_request import messages_to_chat
from claude_proxy.dialects.chat_thinking import THINKING_MEMBERS
from claude_proxy.errors import ProxyError
from tests.test_chat_request import IMAGE, PDF, odd_value, result, text, use

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


# --- every profile, with whatever is said -------------------------------------------------------

NAMED_MODELS = {
    "openai": ("gpt-4o", "gpt-5.2", "gpt-5.6", "o1-mini"), "openrouter": ("anthropic/claude", "openai/gpt"),
    "gemini": ("gemini-3-pro", "gemini-2.0-flash"), "groq": ("qwen3-32b", "gpt-oss-20b"), "vllm": ("m", "deepseek"),
}
FORMS = {f"{name}-{model}": profile_options(name, model) for name in PROFILES for model in NAMED_MODELS.get(name, ("m",))}
# What refusals teach, alone and together.
FORMS.update({
    "flat": ChatOptions(flat=True, cache_control=True), "alternate": ChatOptions(alternate=True),
    "bridge": ChatOptions(bridge=True), "short-ids": ChatOptions(tool_ids="short"),
    "strictest": ChatOptions(system_role="", alternate=True, bridge=True, null_content="empty", cache_control=True),
})
SIGNATURES = ["", "a-vendor's-own", pack_carrier("reasoning_details", [{"type": "reasoning.text", "text": "x"}]),
              pack_carrier("extra_content", {"google": {"thought_signature": "S"}})]
RESULTS = ["r", "", [], [text("t")], [IMAGE], [PDF], [{"type": "tool_reference", "tool_name": "Q"}]]
SAID = ["hi", "", "  ", [], [text("q")], [{**text("a"), "cache_control": {"type": "ephemeral"}}, IMAGE], [PDF]]
NOTED = ["note", "", [text("n")], [{"type": "tool_removal", "tool": {"name": "x"}}]]


def random_answer(dice, number):
    """An assistant's blocks, with calls whose ids may be long, odd, or used before."""
    blocks = []
    if dice.random() < 0.5:
        blocks.append({"type": "thinking", "thinking": dice.choice(["t", ""]), "signature": dice.choice(SIGNATURES)})
    if dice.random() < 0.5:
        blocks.append(text(dice.choice(["said", " ", "ends blank "])))
    ids = [f"toolu_{number}_{index}" for index in range(dice.choice([0, 0, 1, 1, 2, 3]))]
    odd = ["x" * 50 + str(number), "toolu_1_0", "A", "A_2", "A_3", ""]
    return [*blocks, *(use(dice.choice(odd) if dice.random() < 0.4 else own, dice.choice(["Read", "a.b"])) for own in ids)]


def random_history(dice):
    messages, waiting = [], []
    for number in range(dice.randrange(1, 9)):
        kind = dice.random()
        if waiting and kind < 0.85:
            dice.shuffle(waiting)
            blocks = [result(own, dice.choice(RESULTS), is_error=dice.random() < 0.2) for own in waiting]
            extra = [[], [], [text("hey")], [result("gone", "orphan")]]
            messages.append({"role": "user", "content": [*blocks[dice.random() < 0.1:], *dice.choice(extra)]})
            waiting = []
        elif kind < 0.5:
            role, said = ("user", SAID) if kind < 0.35 else ("system", NOTED)
            messages.append({"role": role, "content": dice.choice(said)})
        else:
            blocks = random_answer(dice, number)
            waiting = [block["id"] for block in blocks if block["type"] == "tool_use"]
            messages.append({"role": "assistant", "content": blocks})
    return [*messages, {"role": "user", "content": "and now"}]


def has_null(value):
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return value is None or any(map(has_null, inner))


def is_settled(messages):
    """Whether the end of a conversation stays as it is; calls may still be answered."""
    return not any("interrupted" in str(message.get("content")) for message in messages[-4:])


def check_grammar(messages, options):
    """Answers right behind their calls, one each; nothing empty; the shapes that the options promise."""
    waiting, last = [], ""
    for message in messages:
        role, content = message["role"], message.get("content")
        if role == "tool":
            assert waiting.pop(0) == message["tool_call_id"] and isinstance(content, str)
            assert content or not options.empty_result
        else:
            assert not waiting and (content or "tool_calls" in message)
            waiting = [call["id"] for call in message.get("tool_calls", ())]
            assert len(set(waiting)) == len(waiting)
            assert options.tool_ids != "mistral" or all(len(own) == 9 and own.isalnum() for own in waiting)
            assert options.tool_ids != "short" or all(len(own) <= 40 for own in waiting)
        parts = content if isinstance(content, list) else []
        assert not (parts and options.flat) and all(p["type"] != "text" or p["text"].strip() for p in parts)
        assert not (role == last == "user" and options.alternate)
        assert not (role == "user" and last == "tool" and options.bridge)
        assert role != "system" or options.system_role
        last = role
    assert not waiting


@pytest.mark.parametrize("form", FORMS)
def test_any_history_keeps_to_the_grammar_and_to_its_beginning(form):
    """The same bytes for the same history, a longer one begins with them, and the request is left alone."""
    options = FORMS[form]
    for seed in range(60):
        messages = random_history(random.Random(seed))
        request = {"model": "m", "system": [None, "s", [text("s")]][seed % 3], "messages": messages, "max_tokens": 9,
                   "thinking": {"type": "enabled", "budget_tokens": 4000}}
        kept, before = copy.deepcopy(request), []
        for end in range(1, len(messages) + 1):
            chat = messages_to_chat({**request, "messages": messages[:end]}, options, [])["messages"]
            assert not is_settled(before) or json.dumps(chat).startswith(json.dumps(before[:-1])[:-1])
            before = chat
        check_grammar(chat, options)
        whole = messages_to_chat(request, options, [])
        assert request == kept and json.dumps(whole) == json.dumps(messages_to_chat(kept, options, []))
        assert not has_null(whole)


ODD_MEMBERS = ("system", "tools", "tool_choice", "stop_sequences", "output_config", "container", "thinking", "metadata",
               "temperature", "top_k", "speed", "thread", "mcp_servers", "output_format", "service_tier")


@pytest.mark.parametrize("form", FORMS)
def test_any_json_is_a_request_or_a_clear_error(form):
    for seed in range(60):
        dice = random.Random(seed)
        roles = ["user", "assistant", "system", "x", 5]
        messages = [odd_value(dice) if dice.random() < 0.1 else {"role": dice.choice(roles), "content": odd_value(dice)}
                    for _ in range(dice.randrange(1, 5))]
        request = {"model": "m", "messages": messages, "max_tokens": 9}
        request.update({name: odd_value(dice) for name in ODD_MEMBERS if dice.random() < 0.3})
        try:
            chat = messages_to_chat(request, FORMS[form]._replace(max_output=seed % 2 * 5), [])
        except ProxyError as error:
            assert error.status == 400
        else:
            check_grammar(json.loads(json.dumps(chat))["messages"], FORMS[form])
