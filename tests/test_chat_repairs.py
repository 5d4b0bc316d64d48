"""Refusals as providers word them, and what they teach."""

from __future__ import annotations

import pytest

from claude_proxy.dialects.chat_options import ChatOptions
from claude_proxy.dialects.chat_repairs import learned_options, learned_words, repaired_options
from claude_proxy.errors import overflow_message

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
    ("a choice of tools", PLAIN, "deepseek-reasoner does not support this tool_choice", ChatOptions(any_word="")),
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


NAMED_CHOICE = {"type": "function", "function": {"name": "Read"}}
CALLS = [{"role": "assistant", "tool_calls": [{"id": "A"}]}, {"role": "tool", "tool_call_id": "A", "content": "1"}]
IMAGES = [{"role": "user", "content": [{"type": "text", "text": "t"}, {"type": "image_url", "image_url": {}}]}]
FILES = [{"role": "user", "content": [{"type": "file", "file": {}}]}]
TOOLS = [{"type": "function", "function": {"name": "Read"}}]


def told(**members):
    return ChatOptions(**members)


# (rule, options, what was sent, the refusal, the members that change)
RULES = [
    ("7.tool-choice-named", PLAIN, {"tools": TOOLS, "tool_choice": NAMED_CHOICE},
     "tool_choice: only 'auto', 'none' and 'required' are supported", {"named_choice": False}),
    ("7.tool-choice-required", PLAIN, {"tools": TOOLS, "tool_choice": "required"},
     "tool_choice 'required' is incompatible with thinking enabled", {"any_word": ""}),
    ("7.tool-choice-none", PLAIN, {"tools": TOOLS, "tool_choice": "none"}, "tool_choice none is not supported",
     {"obeys_none": False}),
    ("7.tool-choice-not-sent", PLAIN, {}, "tool_choice is not supported", None),
    ("7.effort-beside-tools", told(thinking="reasoning_effort"), {"tools": TOOLS, "reasoning_effort": "high"},
     "Function tools with reasoning_effort are not supported for gpt-5.4 in /v1/chat/completions. Please use"
     " /v1/responses instead.", {"effort_with_tools": "omit"}),
    ("7.effort-has-to-be-none", told(thinking="reasoning_effort"), {"tools": TOOLS},
     "Function tools with reasoning_effort are not supported for gpt-5.6; set reasoning_effort to 'none'.",
     {"effort_with_tools": "none"}),
    ("7.effort-omitted-is-refused-too", told(thinking="reasoning_effort", effort_with_tools="omit"), {"tools": TOOLS},
     "Function tools with reasoning_effort are not supported", {"effort_with_tools": "none"}),
    ("7.effort-values", told(thinking="reasoning_effort"), {"reasoning_effort": "xhigh"},
     "unsupported_value reasoning_effort: Unsupported value: 'xhigh' is not supported with the 'gpt-5' model."
     " Supported values are: 'minimal', 'low', 'medium', and 'high'.", {"efforts": ("minimal", "low", "medium", "high")}),
    ("7.effort-values-first", told(thinking="reasoning_effort"), {"reasoning_effort": "low"},
     "invalid reasoning_effort: must be one of 'none' or 'high'", {"efforts": ("none", "high")}),
    ("7.effort-refused", told(thinking="reasoning_effort"), {"reasoning_effort": "low"},
     "Unrecognized request argument supplied: reasoning_effort", {"thinking": ""}),
    ("7.effort-not-sent", PLAIN, {}, "reasoning_effort is not supported", None),
    ("7.no-thinking", told(thinking="reasoning_effort"), {"reasoning_effort": "low"},
     '"gemma3" does not support thinking', {"thinking": ""}),
    ("7.template-switch", told(thinking="template"), {"chat_template_kwargs": {}},
     "chat_template_kwargs: Extra inputs are not permitted", {"thinking": ""}),
    ("7.response-format", PLAIN, {"response_format": {}}, "This response_format type is unavailable now",
     {"answer_format": "json_object"}),
    ("7.response-format-again", told(answer_format="json_object"), {"response_format": {}},
     "'response_format' is not supported", {"answer_format": "text"}),
    ("7.response-format-with-tools", PLAIN, {"response_format": {}},
     "json mode cannot be combined with tool/function calling", {"answer_format": "json_object"}),
    ("7.system-role", PLAIN, {}, "Unexpected role 'system'", {"system_role": ""}),
    ("7.system-first", PLAIN, {}, "System message must be at the beginning.", {"system_role": ""}),
    ("7.system-unsupported", PLAIN, {}, "Unsupported value: 'messages[0].role' does not support 'system' with this model.",
     {"system_role": ""}),
    ("7.alternate", PLAIN, {}, "Conversation roles must alternate user/assistant/user/assistant/...", {"alternate": True}),
    ("7.bridge", PLAIN, {}, "Unexpected role 'user' after role 'tool'", {"bridge": True}),
    ("7.schema-openai", PLAIN, {"tools": TOOLS}, "Invalid schema for function 'mcp__x': In context=(), 'oneOf' is not"
     " permitted.", {"schema_level": 1}),
    ("7.schema-regex", PLAIN, {"tools": TOOLS}, "Invalid schema for function 'A': '\\p{Cc}' is not a 'regex'.",
     {"schema_level": 1}),
    ("7.schema-gemini", told(schema_level=1), {"tools": TOOLS}, 'Invalid JSON payload received. Unknown name "const" at'
     " 'tools.function_declarations[0].parameters': Cannot find field.", {"schema_level": 2}),
    ("7.schema-llama.cpp", told(schema_level=2), {"tools": TOOLS}, "failed to parse grammar", {"schema_level": 3}),
    ("7.schema-highest", told(schema_level=3), {"tools": TOOLS}, "failed to parse grammar", None),
    ("7.schema-no-tools", PLAIN, {}, "failed to parse grammar", None),
    ("7.id-long", PLAIN, {"messages": CALLS}, "Invalid 'messages[1].tool_calls[0].id': string too long. Expected a string"
     " with maximum length 40, but got a string with length 60 instead.", {"tool_ids": "short"}),
    ("7.id-mistral", PLAIN, {"messages": CALLS}, "Tool call id was call_1 but must be a-z, A-Z, 0-9, with a length of 9.",
     {"tool_ids": "mistral"}),
    ("7.thought-signature", PLAIN, {}, "Function call is missing a thought_signature in functionCall parts.",
     {"replay": "extra_content", "replay_blank": True}),
    ("7.reasoning-missing", PLAIN, {}, "Missing `reasoning_content` field in the assistant message at message index 3.",
     {"replay": "reasoning_content", "replay_blank": True}),
    ("7.reasoning-passed-back", PLAIN, {}, "The reasoning_content in the thinking mode must be passed back to the API.",
     {"replay": "reasoning_content", "replay_blank": True}),
    ("7.reasoning-refused", told(replay="reasoning_content"), {}, "messages.1.reasoning_content: Extra inputs are not"
     " permitted", {"replay": ""}),
    ("7.images-openrouter", PLAIN, {"messages": IMAGES}, "No endpoints found that support image input", {"images": False}),
    ("7.images-variant", PLAIN, {"messages": IMAGES}, "messages[0]: unknown variant `image_url`, expected `text`",
     {"images": False}),
    ("7.images-none-sent", PLAIN, {"messages": CALLS}, "No endpoints found that support image input", None),
    ("7.images-format-is-no-lesson", PLAIN, {"messages": IMAGES}, "Invalid image: this image format is not supported",
     None),
    ("7.files", told(files=True), {"messages": FILES}, "unknown variant `file`, expected `text` or `image_url`", {"files": False}),
    ("7.flat", PLAIN, {"messages": IMAGES}, "messages.0.content must be a string", {"flat": True}),
    ("7.flat-none-sent", PLAIN, {"messages": CALLS}, "messages.0.content must be a string", None),
    ("7.null-content", PLAIN, {"messages": CALLS}, "Invalid value for 'content': expected a value, got null.",
     {"null_content": "empty"}),
    ("7.no-tools", PLAIN, {"tools": TOOLS}, "No endpoints found that support tool use", {"tools": False}),
    ("7.no-tools-ollama", PLAIN, {"tools": TOOLS}, "registry.ollama.ai/library/gemma:2b does not support tools",
     {"tools": False}),
    ("7.no-tools-vllm", PLAIN, {"tools": TOOLS}, '"auto" tool choice requires --enable-auto-tool-choice and'
     " --tool-call-parser to be set", {"tools": False}),
    ("7.no-tools-llama.cpp", PLAIN, {"tools": TOOLS}, "tools param requires --jinja flag", {"tools": False}),
    ("7.no-tools-none-sent", PLAIN, {}, "this model does not support tools", None),
    ("7.key-extra", told(identity="openai"), {"prompt_cache_key": "x"},
     "Unrecognized request argument supplied: prompt_cache_key", {"drop": frozenset(["prompt_cache_key"])}),
    ("7.key-pydantic", told(identity="openai"), {"safety_identifier": "x"},
     "safety_identifier: Extra inputs are not permitted", {"drop": frozenset(["safety_identifier"])}),
    ("7.key-groq", PLAIN, {"top_k": 5}, "property 'top_k' is unsupported", {"drop": frozenset(["top_k"])}),
    ("7.key-strict", told(strict=True), {"tools": TOOLS}, "tools.0.function.strict: unknown field", {"strict": False}),
    ("7.key-cache-control", told(cache_control=True), {}, "cache_control is not supported", {"cache_control": False}),
    ("7.stop-param", PLAIN, {"stop": ["a"]}, "unsupported_parameter stop: Unsupported parameter",
     {"drop": frozenset(["stop"])}),
]


@pytest.mark.parametrize("rule,options,sent,text,changes", RULES, ids=[row[0] for row in RULES])
def test_the_rules(rule, options, sent, text, changes):
    expected = options._replace(**changes) if changes else None
    assert repaired_options(options, 400, text, {"messages": [], **sent}) == expected


ROOMS = [
    ("7.context-arithmetic", "This model's maximum context length is 8192 tokens. However, you requested 36000 tokens"
     " (4000 in the messages, 32000 in the completion).", 8192 - 4000 - 64),
    ("7.context-vllm", "'max_tokens' or 'max_completion_tokens' is too large: 32000. This model's maximum context length"
     " is 32768 tokens and your request has 20000 input tokens (32000 > 32768 - 20000).", 32768 - 20000 - 64),
    ("7.context-too-little-left", "This model's maximum context length is 8192 tokens. However, you requested 40000 tokens"
     " (8000 in the messages, 32000 in the completion).", None),
    ("7.context-prompt-alone", "This model's maximum context length is 8192 tokens. However, you requested 40000 tokens"
     " (9000 in the messages, 31000 in the completion).", None),
]


@pytest.mark.parametrize("rule,text,room", ROOMS, ids=[row[0] for row in ROOMS])
def test_room_for_an_answer(rule, text, room):
    """The room beside this prompt is no lesson for the next."""
    repaired = repaired_options(PLAIN, 400, text, SENT, overflow_message(text))
    assert repaired == (PLAIN._replace(room=room) if room else None)
    assert learned_options(repaired or PLAIN) == PLAIN


@pytest.mark.parametrize("status", [401, 403, 429, 500])
def test_only_refusals_of_the_request_teach(status):
    assert repaired_options(PLAIN, status, REFUSALS[0][2], SENT) is None


def test_nothing_is_learned_twice():
    learned = ChatOptions(drop=frozenset(["stop"]))
    assert repaired_options(learned, 400, "'stop' is not supported", SENT) is None


def test_long_refusals_take_no_time():
    assert repaired_options(PLAIN, 400, "max_tokens unknown " * 100_000, SENT) == COMPLETION
    for words in ("reasoning_effort tool ", "content ", "image not support ", "_a" * 50 + " ", "tools invalid "):
        repaired_options(PLAIN, 400, words * 100_000, SENT)
    assert repaired_options(PLAIN, 400, "max_tokens maximum " * 100_000, SENT) is None


@pytest.mark.parametrize("after,words", [
    (COMPLETION, "max_tokens_key=max_completion_tokens"), (ChatOptions(max_output=5), "max_output=5"),
    (ChatOptions(drop=frozenset(["b", "a"])), "drop=a+b"),
])
def test_the_words_for_the_log(after, words):
    assert learned_words(PLAIN, after) == words
