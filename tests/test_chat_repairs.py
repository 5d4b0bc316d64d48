"""Refusals as providers word them, and what they teach."""

from __future__ import annotations

import time

import pytest

from claude_proxy.dialects.chat_options import ChatOptions
from claude_proxy.dialects.chat_repairs import (
    learned_words,
    merged_lessons,
    repaired_options,
)
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
    ("7.flat-none-sent", PLAIN, {"messages": [{"role": "user", "content": "a"}]}, "messages.0.content must be a string", None),
    ("7.flat-beside-calls", PLAIN, {"messages": CALLS}, "messages.0.content must be a string", {"null_content": "empty"}),
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
    assert merged_lessons(PLAIN, PLAIN, repaired or PLAIN) == PLAIN


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


# --- wordings -----------------------------------------------------------------------------------

KNOWN = ChatOptions(thinking="reasoning_effort", replay="reasoning_content", cache_control=True, strict=True, files=True,
                    identity="user")
EVERYTHING = {
    "max_tokens": 64000, "temperature": 1, "top_p": 0.5, "stop": ["a"], "stream": True, "stream_options": {}, "model": "m",
    "tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False, "reasoning_effort": "high", "reasoning": {},
    "thinking": {}, "chat_template_kwargs": {}, "response_format": {"type": "json_schema"}, "user": "u",
    "messages": [{"role": "system", "content": "s"}, *IMAGES, *CALLS],
}
# (what is learned, status, the refusal): wordings of OpenAI, Azure, Anthropic and Gemini behind gateways, Mistral, Groq,
# xAI, DeepSeek, Moonshot, OpenRouter, LiteLLM, vLLM, llama.cpp, Ollama, LM Studio.
WORDINGS = [
    ('max_tokens_key=max_completion_tokens', 400, "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."),
    ('max_output=8192', 400, 'max_tokens: 64000 > 8192, which is the maximum allowed number of output tokens for claude-3-5-sonnet'),
    ('max_output=8192', 400, 'Unable to submit request because it has a maxOutputTokens value of 64000 but the supported range is from 1 (inclusive) to 8193 (exclusive). Update the value and try again.'),
    ('max_output=4096', 400, 'The maximum tokens you requested exceeds the model limit of 4096. Try again with a maximum tokens value that is lower than 4096.'),
    ('max_output=8192', 400, 'max_tokens: Input should be less than or equal to 8192'),
    ('max_output=8192', 400, 'Client specified an invalid argument: max_tokens must be less than or equal to 8192'),
    ('max_output=8192', 400, 'Range of max_tokens should be [1, 8192]'),
    ('max_output=8192', 400, 'max_tokens 参数非法。取值范围 [1,8192]'),
    ('max_output=16384', 400, "integer_above_max_value max_tokens: Invalid 'max_tokens': integer above maximum value. Expected a value <= 16384, but got 64000 instead."),
    ('max_output=8192', 400, 'max_completion_tokens must be less than or equal to 8192'),
    ('max_output=32768', 400, '`max_tokens` must be less than or equal to `32768`, the maximum value for `max_tokens` is less than the `context_window` for this model'),
    ('max_output=16384', 400, "max_tokens (64000) exceeds model's maximum output tokens (16384)"),
    ('drop=temperature', 400, 'invalid temperature: only 1 is allowed for this model'),
    ('drop=temperature', 400, '`temperature` may only be set to 1 when thinking is enabled. Please consult our documentation'),
    ('drop=temperature', 400, '`temperature` and `top_p` cannot both be specified for this model. Please use only one.'),
    ('drop=temperature', 400, "Unsupported value: 'temperature' does not support 0.2 with this model. Only the default (1) value is supported."),
    ('drop=stop', 400, 'Model grok-4-0709 does not support parameter stop.'),
    ('drop=stop', 400, 'Argument not supported on this model: stop'),
    ('thinking=', 400, 'Model grok-4-0709 does not support parameter reasoningEffort.'),
    ('drop=stop', 400, "Invalid 'stop': array too long. Expected an array with maximum length 1, but got an array with length 4 instead."),
    ("efforts=('none', 'low', 'medium', 'high')", 400, 'invalid reasoning value: \'xhigh\' (must be "high", "medium", "low", or "none")'),
    ('thinking=', 400, 'think value "xhigh" is not supported for this model'),
    ('thinking=', 400, '"gemma3:4b" does not support thinking'),
    ("efforts=('high', 'max')", 400, 'reasoning_effort: unknown variant `xhigh`, expected one of `high`, `max`'),
    ("efforts=('none', 'default')", 400, '`reasoning_effort` must be one of `none` or `default`'),
    ('always_thinks=True', 400, 'Reasoning is mandatory for this endpoint and cannot be disabled.'),
    ('always_thinks=True', 400, 'Budget 0 is invalid. This model only works in thinking mode.'),
    ('thinking=', 400, 'Unrecognized request arguments supplied: max_completion_tokens, reasoning_effort'),
    ('drop=stream_options', 400, '[{"type":"extra_forbidden","loc":["body","stream_options"],"msg":"Extra inputs are not permitted"}]'),
    ('drop=stream_options', 400, 'Invalid JSON payload received. Unknown name "stream_options": Cannot find field.'),
    ('drop=parallel_tool_calls', 400, 'Invalid JSON payload received. Unknown name "parallel_tool_calls": Cannot find field.'),
    ('drop=user', 400, 'Invalid JSON payload received. Unknown name "user": Cannot find field.'),
    ('drop=parallel_tool_calls', 400, "litellm.UnsupportedParamsError: bedrock does not support parameters: ['parallel_tool_calls'], for model=x"),
    ('thinking=', 400, "property 'reasoning_effort' is unsupported"),
    ('any_word=', 400, "No endpoints found that support the provided 'tool_choice' value."),
    ('any_word=', 400, "Invalid tool_choice type: 'object'. Supported string values: none, auto, required"),
    ('any_word=', 400, "tool_choice 'required' is incompatible with thinking enabled"),
    ('any_word=', 400, 'deepseek-reasoner does not support this tool_choice'),
    ('any_word=', 400, "tool_choice: Input should be 'auto' or 'none'"),
    ('tools=False', 400, 'deepseek-reasoner does not support Function Calling'),
    ('tools=False', 404, 'No endpoints found that support tool use. Try disabling "Read".'),
    ('tools=False', 400, 'This model does not support function calling'),
    ('tools=False', 400, 'Function calling is not enabled for this model'),
    ('tools=False', 400, '`tool calling` is not supported with this model'),
    ('tools=False', 400, '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'),
    ('tools=False', 500, 'tools param requires --jinja flag'),
    ('replay_blank=True', 400, 'thinking is enabled but reasoning_content is missing in assistant tool call message at index 2'),
    ('replay_blank=True', 400, 'Missing `reasoning_content` field in the assistant message at message index 3.'),
    ('replay_blank=True', 400, 'The `reasoning_content` in the thinking mode must be passed back to the API.'),
    ('replay=', 400, "property 'reasoning_content' is unsupported"),
    ('replay=', 400, 'messages.1.assistant.reasoning_content: Extra inputs are not permitted'),
    ('replay=extra_content, replay_blank=True', 400, 'Function call is missing a thought_signature in functionCall parts.'),
    ('tool_name=letter', 400, 'Invalid request: function name is invalid, must start with a letter and can contain letters, numbers, underscores, and dashes'),
    ('tool_name=letter', 400, 'Invalid function name. Must start with a letter or an underscore.'),
    ('tool_ids=short', 400, "Invalid 'messages[1].tool_calls[0].id': string too long. Expected a string with maximum length 40, but got a string with length 60 instead."),
    ('tool_ids=mistral', 400, 'Tool call id was call_1 but must be a-z, A-Z, 0-9, with a length of 9.'),
    ('bridge=True', 400, "Unexpected role 'user' after role 'tool'"),
    ('alternate=True', 500, 'Conversation roles must alternate user/assistant/user/assistant/...'),
    ('alternate=True', 500, 'After the optional system message, conversation roles must alternate user and assistant roles except for tool calls and results.'),
    ('system_role=', 500, 'System role not supported'),
    ('system_role=', 500, 'Only user and assistant roles are supported!'),
    ('system_role=', 500, 'System message must be at the beginning.'),
    ('alternate=True', 400, 'Error rendering prompt with jinja template: "Conversation roles must alternate user/assistant"'),
    ('images=False', 404, 'No endpoints found that support image input'),
    ('images=False', 400, 'messages[0]: unknown variant `image_url`, expected `text` at line 1 column 300'),
    ('images=False', 400, 'Invalid content type. image_url is only supported by certain models.'),
    ('images=False', 400, 'At most 0 image(s) may be provided in one prompt.'),
    ('images=False', 500, 'image input is not supported - hint: if this is unexpected, you may need to provide the mmproj'),
    ('images=False', 500, 'Failed to create new sequence: failed to process inputs: this model is missing data required for image input'),
    ('images=False', 400, 'Qwen3-8B is not a multimodal model'),
    ('images=False', 400, 'Model does not support images. Please use a model that does.'),
    ('images=False', 400, 'Image input not supported for model kimi-k2'),
    ('images=False', 400, 'Invalid request: unsupported content type: image_url'),
    ('flat=True', 400, 'messages[0].content: invalid type: sequence, expected a string'),
    ('flat=True', 400, "'messages.1' : for 'role:user' the following must be satisfied[('messages.1.content' : value must be a string)]"),
    ('flat=True', 400, 'Input should be a valid string: body.messages.1.content'),
    ('null_content=empty', 400, "Invalid value for 'content': expected a string, got null."),
    ('null_content=empty', 400, "Invalid type for 'messages[2].content': expected one of a string or array of objects, but got null instead."),
    ('null_content=empty', 400, "'messages.2' : for 'role:assistant' the following must be satisfied[('messages.2.content' : property 'content' is missing)]"),
    ('null_content=empty', 400, "'messages' array must only contain objects with a 'content' field that is not empty"),
    ('schema_level=1', 400, "Invalid schema for function 'mcp__x': In context=(), 'oneOf' is not permitted."),
    ('schema_level=1', 500, 'failed to parse grammar'),
    ('schema_level=1', 400, 'error parsing grammar: unknown rule'),
    ('schema_level=1', 500, 'JSON schema conversion failed:\\nUnrecognized schema: {"type":"x"}'),
    ('schema_level=1', 400, 'The provided JSON schema contains features not supported by xgrammar.'),
    ('schema_level=1', 400, 'Invalid JSON payload received. Unknown name "exclusiveMinimum" at \'tools.function_declarations[0].parameters.properties[0].value\': Cannot find field.'),
    ('schema_level=1', 400, '* GenerateContentRequest.tools[0].function_declarations[0].parameters.properties[x].items: missing field.'),
    ('longest_description=1024', 400, "Invalid 'tools[0].function.description': string too long. Expected a string with maximum length 1024, but got a string with length 2000 instead."),
    ('answer_format=json_object', 400, "Invalid parameter: 'response_format' of type 'json_schema' is not supported with this model."),
    ('answer_format=json_object', 400, 'This response_format type is unavailable now'),
    ('answer_format=json_object', 400, 'json mode cannot be combined with tool/function calling'),
    ('answer_format=json_object', 400, 'Cannot use custom grammar constraints with tools.'),
    ('answer_format=json_object', 400, 'This model does not support response format `json_schema`.'),
    ('prefill=unthinking', 400, 'Assistant response prefill is incompatible with enable_thinking.'),
    ('prefill=prefix', 400, 'Expected last role User or Tool (or Assistant with prefix True) for serving but got assistant'),
    ('cache_control=False', 400, 'cache_control: Extra inputs are not permitted'),
    ('strict=False', 400, 'tools.0.function.strict: Extra inputs are not permitted'),
    ('thinking=', 400, "'reasoning' is not a valid parameter"),
]


@pytest.mark.parametrize("words,status,text", WORDINGS, ids=[row[2][:60] for row in WORDINGS])
def test_wordings(words, status, text):
    assert learned_words(KNOWN, repaired_options(KNOWN, status, text, EVERYTHING)) == words


# About this one request, or nothing that another form of it would cure.
NO_LESSONS = [
    (400, 'Invalid image.'),
    (400, "You uploaded an unsupported image. Please make sure your image is valid. We support ['png', 'jpeg', 'gif', 'webp']"),
    (400, 'Invalid MIME type. Only image types are supported.'),
    (400, 'Error while downloading https://x/y.png: not supported'),
    (400, 'Failed to download image from https://x/y. Invalid image_url'),
    (400, 'This model does not support image format image/bmp'),
    (400, 'Too many images provided. This model supports up to 5 images'),
    (400, 'At most 1 image(s) may be provided in one prompt.'),
    (400, 'The image data you provided does not represent a valid image. Please check your input and try again.'),
    (400, 'image exceeds 5 MB maximum: image too large is not supported'),
    (400, "This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens."),
    (400, "content_filter prompt: The response was filtered due to the prompt triggering Azure OpenAI's content management policy. Please modify your prompt and retry. To learn more about our content filtering policies"),
    (400, "Invalid schema for response_format 'response': In context=(), 'additionalProperties' is required to be supplied and to be false."),
    (400, "Invalid schema for response_format 'response': 'minLength' is not permitted."),
    (400, 'The model `gpt-9` does not exist or you do not have access to it.'),
    (404, 'This model is only supported in v1/responses and not in v1/chat/completions.'),
    (404, 'This is not a chat model and thus not supported in the v1/chat/completions endpoint. Did you mean to use v1/completions?'),
    (400, "model 'qwen' not found, try pulling it first"),
    (400, 'Incorrect API key provided: sk-x. You can find your API key at https://platform.openai.com.'),
    (400, 'API key not valid. Please pass a valid API key.'),
    (400, 'You exceeded your current quota, please check your plan and billing details.'),
    (400, 'Your credit balance is too low'),
    (400, 'This user is not allowed to use the model'),
    (400, 'Country, region, or territory not supported'),
    (400, 'User location is not supported for the API use.'),
    (400, 'Your organization must be verified to stream this model.'),
    (400, "tool call validation failed: parameters for tool Read did not match schema: errors: [additionalProperties 'foo' not allowed]"),
    (400, "tool call validation failed: attempted to call tool 'x' which was not in request.tools"),
    (400, 'Tool choice is required, but model did not call a tool'),
    (400, "Failed to call a function. Please adjust your prompt. See 'failed_generation' for more details."),
    (500, 'Failed to parse input at pos 25: <tool_call> content must be a string, reasoning_effort is not supported'),
    (500, 'Internal error'),
    (400, 'Request contains an invalid argument.'),
    (400, 'Provider returned error'),
    (400, "1 validation error for ChatCompletionRequest: messages.0.foo Extra thing [type=x, input_value={'role': 'user', 'content': 'reasoning_effort is not supported'}, input_type=dict]"),
    (400, "Invalid 'messages[0].content[1].image_url': expected a base64-encoded data URL with an image MIME type, but got unsupported MIME type 'image/bmp'."),
    (400, 'max_tokens must be at most 500 with this prompt of 130572 tokens'),
    (400, 'Could not finish the message because max_tokens or model output limit was reached. Please try again with higher max_tokens.'),
    (400, 'max_tokens must be at least 1024'),
    (400, '`max_tokens` must be greater than `thinking.budget_tokens`.'),
    (400, "Invalid 'messages[3].name': string does not match pattern"),
    (400, "Missing required parameter: 'messages[0].content'."),
    (400, "Invalid parameter: messages with role 'tool' must be a response to a preceeding message with 'tool_calls'."),
    (400, "An assistant message with 'tool_calls' must be followed by tool messages responding to each 'tool_call_id'. The following tool_call_ids did not have response messages: A"),
    (400, 'Invalid prompt: your prompt was flagged as potentially violating our usage policy'),
    (400, 'The file type you uploaded is not supported. Please try again with a pdf'),
    (400, 'The file could not be parsed: this file format is not supported'),
    (400, 'Unsupported file type: docx'),
]


@pytest.mark.parametrize("status,text", NO_LESSONS, ids=[row[1][:60] for row in NO_LESSONS])
def test_what_is_only_about_this_request(status, text):
    assert repaired_options(KNOWN, status, text, EVERYTHING) is None


REMOTE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x/y.png"}}]}]


@pytest.mark.parametrize("text", [
    "image URLs are not currently supported, please use base64 encoded data instead",
    "Invalid url. 'url' field must be a base64 encoded image.",
])
def test_images_by_url_are_given_up_where_there_are_any(text):
    assert repaired_options(PLAIN, 400, text, {"messages": REMOTE}) == PLAIN._replace(image_urls=False)
    assert repaired_options(PLAIN, 400, text, {"messages": IMAGES}) is None


def test_strictness_goes_before_what_schemas_say():
    strict = [{"type": "function", "function": {"name": "Read", "strict": True}}]
    text = "Invalid schema for function 'Read': In context=(), 'default' is not permitted."
    assert repaired_options(KNOWN, 400, text, {"tools": strict}) == KNOWN._replace(strict=False)


def test_a_level_that_is_refused_leaves_the_others():
    text = "Unsupported value: 'high' is not supported with this model (reasoning_effort)."
    assert repaired_options(KNOWN, 400, text, EVERYTHING) == KNOWN._replace(efforts=("low", "medium"))


@pytest.mark.parametrize("text", [row[2] for row in WORDINGS if "tool_choice" in row[2]])
def test_a_choice_of_no_tool_is_never_given_up(text):
    """Where "none" is refused the tools themselves go."""
    repaired = repaired_options(KNOWN, 400, text, {**EVERYTHING, "tool_choice": "none"})
    assert repaired == KNOWN._replace(obeys_none=False)


def test_what_two_requests_learn_is_kept_together():
    one = PLAIN._replace(drop=frozenset(["stop"]), room=9)
    two = PLAIN._replace(drop=frozenset(["user"]), images=False)
    known = merged_lessons(merged_lessons(PLAIN, PLAIN, one), PLAIN, two)
    assert known == PLAIN._replace(drop=frozenset(["stop", "user"]), images=False)


PIECES = ["max_tokens ", "max_tokens: 1 > ", "reasoning_effort ", "_a", "content ", "unsupported ", "tools invalid ", "\n"]


@pytest.mark.parametrize("piece", PIECES)
def test_no_refusal_takes_long_to_read(piece):
    begun = time.perf_counter()
    for other in PIECES:
        repaired_options(KNOWN, 400, (piece + other) * 4096, {"messages": []})
    assert time.perf_counter() - begun < 1
