"""Refusals as providers word them, and what they teach."""

from __future__ import annotations

import pytest

from claude_proxy.dialects.chat_options import ChatOptions
from claude_proxy.dialects.chat_repairs import learned_words, repaired_options

PLAIN = ChatOptions()
SENT = {"max_tokens": 64000, "temperature": 1, "stop": ["a"], "parallel_tool_calls": False, "stream_options": {},
        "tool_choice": "required", "model": "m", "messages": []}
COMPLETION = ChatOptions(max_tokens_key="max_completion_tokens")

REFUSALS = [
    ("openai's new key", PLAIN, "Unsupported parameter: 'max_tokens' is not supported with this model."
     " Use 'max_completion_tokens' instead.", COMPLETION),
    ("the old key again", COMPLETION, "Unrecognized request argument supplied: max_completion_tokens", PLAIN),
    ("the old key, worded otherwise", COMPLETION, "max_completion_tokens: Extra inputs are not permitted", PLAIN),
    ("the new key, already used", COMPLETION, "'max_tokens' is not supported. Use 'max_completion_tokens'", None),
    ("gpt-4o's limit", PLAIN, "max_tokens is too large: 64000. This model supports at most 16384 completion"
     " tokens, whereas you provided 64000.", ChatOptions(max_output=16384)),
    ("deepseek's limit", PLAIN, "Invalid max_tokens value, the valid range of max_tokens is [1, 8192]",
     ChatOptions(max_output=8192)),
    ("groq's limit", PLAIN, "`max_tokens` must be less than or equal to `8192`, the maximum value for"
     " `max_tokens` is less than the `context_window` for this model", ChatOptions(max_output=8192)),
    ("a limit below nothing", PLAIN, "max_tokens: limit 0", None),
    ("a limit that was kept", PLAIN, "This model supports at most 99999 completion tokens", None),
    ("temperature", PLAIN, "Unsupported value: 'temperature' does not support 0.2 with this model. Only the"
     " default (1) value is supported.", ChatOptions(drop=frozenset(["temperature"]))),
    ("stop", PLAIN, "Unsupported parameter: 'stop' is not supported with this model.",
     ChatOptions(drop=frozenset(["stop"]))),
    ("parallel calls", PLAIN, "Unknown parameter: 'parallel_tool_calls'.",
     ChatOptions(drop=frozenset(["parallel_tool_calls"]))),
    ("stream options", PLAIN, "body -> stream_options: Extra inputs are not permitted",
     ChatOptions(drop=frozenset(["stream_options"]))),
    ("the new key in backticks", PLAIN, "Unsupported parameter: `max_tokens`. Use `max_completion_tokens` instead.",
     COMPLETION),
    ("no word of the new key", PLAIN, "Unsupported parameter: 'max_tokens' is not supported with this model.", COMPLETION),
    ("back to the old key", COMPLETION, "max_completion_tokens is not supported, use max_tokens", PLAIN),
    ("a tool's schema", PLAIN, "Invalid schema for function 'thermo': In context=('properties', 'temperature'), 'foo' is"
     " not permitted.", None),
    ("an answer's schema", PLAIN, "Invalid schema for response_format 'response': 'minLength' is not permitted.", None),
    ("a choice of tools", PLAIN, "deepseek-reasoner does not support this tool_choice", None),
    ("a limit that goes by the prompt", PLAIN, "max_tokens must be at most 500 with this prompt of 130572 tokens", None),
    ("a limit of requests", PLAIN, "max_tokens too high for your tier, limit: 60 requests", None),
    ("something not sent", PLAIN, "Unknown parameter: 'top_k'.", None),
    ("something that has to stay", PLAIN, "Unknown parameter: 'messages'.", None),
    ("a full context", PLAIN, "This model's maximum context length is 8192 tokens, max_tokens <= 5", None),
    ("anything else", PLAIN, "Invalid image", None),
    ("nothing", PLAIN, "", None),
]


@pytest.mark.parametrize("name,options,text,expected", REFUSALS, ids=[row[0] for row in REFUSALS])
def test_what_a_refusal_teaches(name, options, text, expected):
    sent = SENT if options is PLAIN else {"max_completion_tokens": 5}
    assert repaired_options(options, 400, text, sent) == expected


@pytest.mark.parametrize("status", [401, 403, 429, 500])
def test_only_refusals_of_the_request_teach(status):
    assert repaired_options(PLAIN, status, REFUSALS[0][2], SENT) is None


def test_nothing_is_learned_twice():
    learned = ChatOptions(drop=frozenset(["stop"]))
    assert repaired_options(learned, 400, "'stop' is not supported", SENT) is None


def test_long_refusals_take_no_time():
    assert repaired_options(PLAIN, 400, "max_tokens unknown " * 100_000, SENT) == COMPLETION
    assert repaired_options(PLAIN, 400, "max_tokens maximum " * 100_000, SENT) is None


@pytest.mark.parametrize("after,words", [
    (COMPLETION, "max_tokens_key=max_completion_tokens"), (ChatOptions(max_output=5), "max_output=5"),
    (ChatOptions(drop=frozenset(["b", "a"])), "drop=a+b"),
])
def test_the_words_for_the_log(after, words):
    assert learned_words(PLAIN, after) == words
