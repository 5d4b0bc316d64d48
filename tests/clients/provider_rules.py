"""What each provider refuses in a request, and in which words: tables of rules.

A rule looks at a request and gives the provider's complaint, or None. Its broken rule is answered
with that complaint, so that a proxy that learns from refusals may. `COMMON_RULES` are another
matter: what they mind no provider answers for, and it must not happen at all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

from tests.clients.provider_shapes import (
    THOUGHTS,
    Refusal,
    Turn,
    details_of,
    thought_signature,
    walk,
)

Judgement = Optional[Refusal]


class Asked(NamedTuple):
    """A request as a rule sees it."""

    target: str
    headers: Dict[str, str]
    body: Dict[str, Any]

    @property
    def messages(self) -> List[Dict[str, Any]]:
        return self.body["messages"]

    @property
    def functions(self) -> List[Dict[str, Any]]:
        return [tool["function"] for tool in self.body.get("tools") or []]

    def numbered(self, role: str) -> List[Tuple[int, Dict[str, Any]]]:
        """(place, message) of every message with this role."""
        return [(n, m) for n, m in enumerate(self.messages) if m["role"] == role]

    def called(self) -> List[Tuple[int, Dict[str, Any]]]:
        """(place, message) of every message with tool calls."""
        return [(n, m) for n, m in self.numbered("assistant") if m.get("tool_calls")]


class Rule(NamedTuple):
    name: str
    judge: Callable[[Asked], Judgement]


def first(found: Iterable[Refusal]) -> Judgement:
    return next(iter(found), None)


def turn_of(message: Dict[str, Any]) -> int:
    """Which turn of the conversation a message with calls is: the first has one, the second more."""
    return 1 if len(message["tool_calls"]) == 1 else 2


# --- makers of rules ----------------------------------------------------------------------------

Wording = Callable[..., Refusal]


def refuse_keys(wording: Wording, *keys: str) -> Callable[[Asked], Judgement]:
    """None of these at the top level."""
    return lambda asked: first(wording(key) for key in keys if key in asked.body)


def only_keys(wording: Wording, *keys: str) -> Callable[[Asked], Judgement]:
    """Nothing but these at the top level."""
    return lambda asked: first(wording(key) for key in asked.body if key not in keys)


def only_message_keys(wording: Wording, *keys: str) -> Callable[[Asked], Judgement]:
    """Nothing but these in a message."""
    return lambda asked: first(
        wording(number, key)
        for number, message in enumerate(asked.messages)
        for key in message
        if key not in keys
    )


def only_values(wording: Wording, key: str, *values: Any) -> Callable[[Asked], Judgement]:
    """A top-level key is absent or has one of these values."""
    return lambda asked: (
        wording(asked.body[key]) if asked.body.get(key, values[0]) not in values else None
    )


def most_tokens(wording: Wording, most: int, *keys: str) -> Callable[[Asked], Judgement]:
    """None of these keys asks for more tokens."""
    return lambda asked: first(
        wording(key, asked.body[key]) for key in keys if (asked.body.get(key) or 0) > most
    )


def system_first(wording: Wording) -> Callable[[Asked], Judgement]:
    """A system message stands at the head or nowhere."""
    return lambda asked: wording() if any(n for n, _ in asked.numbered("system")) else None


def no_nulls(wording: Wording) -> Callable[[Asked], Judgement]:
    return lambda asked: first(wording(place) for place, value in walk(asked.body) if value is None)


# --- OpenAI and Azure ---------------------------------------------------------------------------

OPENAI_KEYS = (
    "model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens",
    "temperature", "top_p", "n", "stop", "tools", "tool_choice", "parallel_tool_calls",
    "response_format", "reasoning_effort", "verbosity", "seed", "user", "metadata", "store",
    "service_tier", "safety_identifier", "prompt_cache_key", "presence_penalty",
    "frequency_penalty", "logit_bias", "logprobs", "top_logprobs", "modalities", "prediction",
    "prompt_cache_retention", "web_search_options",
)  # fmt: skip
OPENAI_MESSAGE_KEYS = ("role", "content", "name", "tool_calls", "tool_call_id", "refusal", "audio")


def unknown_parameter(key: str) -> Refusal:
    return Refusal(f"Unknown parameter: '{key}'.", key, "unknown_parameter")


def unrecognized_argument(key: str) -> Refusal:
    return Refusal(f"Unrecognized request argument supplied: {key}")


def unknown_message_key(number: int, key: str) -> Refusal:
    return unknown_parameter(f"messages[{number}].{key}")


def unsupported_parameter(key: str) -> Refusal:
    instead = " Use 'max_completion_tokens' instead." if key == "max_tokens" else ""
    words = f"Unsupported parameter: '{key}' is not supported with this model.{instead}"
    return Refusal(words, key, "unsupported_parameter")


def only_the_default(key: str) -> Refusal:
    words = (
        f"Unsupported value: '{key}' does not support 0.5 with this model. "
        "Only the default (1) value is supported."
    )
    return Refusal(words, key, "unsupported_value")


def too_many_tokens(most: int) -> Wording:
    def words(key: str, asked: int) -> Refusal:
        text = (
            f"{key} is too large: {asked}. This model supports at most {most} completion "
            f"tokens, whereas you provided {asked}."
        )
        return Refusal(text, key, "invalid_value")

    return words


def unsupported_effort(*efforts: str) -> Wording:
    listed = ", ".join(f"'{effort}'" for effort in efforts[:-1]) + f", and '{efforts[-1]}'"

    def words(effort: str) -> Refusal:
        text = (
            f"Unsupported value: '{effort}' is not supported with this model. "
            f"Supported values are: {listed}."
        )
        return Refusal(text, "reasoning_effort", "unsupported_value")

    return words


def effort_with_tools(model: str, *taken: Any) -> Callable[[Asked], Judgement]:
    """Beside tools, only these efforts; None stands for none sent, which means a default one."""

    def judge(asked: Asked) -> Judgement:
        if asked.body.get("reasoning_effort") in taken or not asked.functions:
            return None
        words = (
            f"Function tools with reasoning_effort are not supported for {model} in /v1/chat/completions. "
            "To use function tools, use /v1/responses or set reasoning_effort to 'none'."
        )
        return Refusal(words, "reasoning_effort")

    return judge


def empty_tools(asked: Asked) -> Judgement:
    if asked.body.get("tools") == []:
        words = "Invalid 'tools': empty array. Expected an array with minimum length 1, but got an empty array instead."
        return Refusal(words, "tools", "empty_array")
    if "tools" not in asked.body and "tool_choice" in asked.body:
        words = "Invalid value for 'tool_choice': 'tool_choice' is only allowed when 'tools' are specified."
        return Refusal(words, "tool_choice")
    return None


def content_missing(asked: Asked) -> Judgement:
    return first(
        Refusal(
            f"Invalid value for 'content': expected a string, got null. messages[{number}]",
            f"messages.[{number}].content",
        )
        for number, message in enumerate(asked.messages)
        if message.get("content") is None and not message.get("tool_calls")
    )


def long_ids(asked: Asked) -> Judgement:
    return first(
        Refusal(
            f"Invalid 'messages[{number}].tool_calls[0].id': string too long. Expected a string with "
            f"maximum length 40, but got a string with length {len(call['id'])} instead.",
            f"messages[{number}].tool_calls[0].id",
            "string_above_max_length",
        )
        for number, message in asked.called()
        for call in message["tool_calls"]
        if len(call["id"]) > 40
    )


def openai_rules(most: int, *more: Rule) -> Tuple[Rule, ...]:
    return (
        *more,
        Rule(
            "max_tokens too large",
            most_tokens(too_many_tokens(most), most, "max_tokens", "max_completion_tokens"),
        ),
        Rule("unknown key", only_keys(unknown_parameter, *OPENAI_KEYS)),
        Rule("unknown message key", only_message_keys(unknown_message_key, *OPENAI_MESSAGE_KEYS)),
        Rule("empty tools", empty_tools),
        Rule("content missing", content_missing),
        Rule("id over 40 characters", long_ids),
    )


def openai_reasoning(*efforts: str) -> Tuple[Rule, ...]:
    return (
        Rule("max_tokens", refuse_keys(unsupported_parameter, "max_tokens")),
        Rule("sampling", refuse_keys(only_the_default, "temperature", "top_p")),
        Rule("stop", refuse_keys(unsupported_parameter, "stop")),
        Rule(
            "reasoning_effort",
            only_values(unsupported_effort(*efforts), "reasoning_effort", None, *efforts),
        ),
    )


GPT_4_1_RULES = openai_rules(
    32768, Rule("reasoning_effort", refuse_keys(unrecognized_argument, "reasoning_effort"))
)
GPT_5_EFFORTS = ("minimal", "low", "medium", "high")
GPT_5_RULES = openai_rules(128000, *openai_reasoning(*GPT_5_EFFORTS))
LATER_EFFORTS = ("none", *GPT_5_EFFORTS[1:], "xhigh")
GPT_5_4_RULES = openai_rules(
    128000,
    *openai_reasoning(*LATER_EFFORTS),
    Rule("effort with tools", effort_with_tools("gpt-5.4", None)),
)
GPT_5_6_RULES = openai_rules(
    128000,
    *openai_reasoning(*LATER_EFFORTS),
    Rule("effort with tools", effort_with_tools("gpt-5.6", "none")),
)
O4_MINI_RULES = openai_rules(
    100000,
    *openai_reasoning("low", "medium", "high"),
    Rule("parallel_tool_calls", refuse_keys(unsupported_parameter, "parallel_tool_calls")),
)
AZURE_RULES = (
    Rule("unknown key", only_keys(unrecognized_argument, *OPENAI_KEYS)),
    *GPT_5_RULES,
)

# --- OpenRouter, DeepSeek, xAI ------------------------------------------------------------------


def thinking_first(asked: Asked) -> Judgement:
    """The reasoning details of a message with calls come back as they were."""
    return first(
        Refusal(
            f"messages.{number}.content.0.type: Expected `thinking` or `redacted_thinking`, but found "
            "`tool_use`. When `thinking` is enabled, a final `assistant` message must start with a "
            "thinking block (preceeding the lastmost set of `tool_use` and `tool_result` blocks)."
        )
        for number, message in asked.called()
        if merged_details(message.get("reasoning_details"))
        != details_of(Turn(turn_of(message), THOUGHTS[turn_of(message)], ""))
    )


def merged_details(details: Any) -> List[Dict[str, Any]]:
    """The pieces of a part joined, for both forms are taken."""
    whole: List[Dict[str, Any]] = []
    for piece in details or []:
        last = whole[-1] if whole else {}
        if (last.get("type"), last.get("index")) != (piece.get("type"), piece.get("index")):
            whole.append(dict(piece))
            continue
        joined = {
            k: v + piece[k]
            for k, v in last.items()
            if k in ("text", "summary", "data") and k in piece
        }
        last.update({**piece, **joined})
    return whole


OPENROUTER_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")


def openrouter_effort(asked: Asked) -> Judgement:
    reasoning = asked.body.get("reasoning") or {}
    if reasoning.get("effort", "low") in OPENROUTER_EFFORTS:
        return None
    return Refusal('Invalid option: expected one of "xhigh"|"high"|"medium"|"low"|"minimal"|"none"')


OPENROUTER_RULES = (
    Rule("reasoning_details come back", thinking_first),
    Rule("reasoning.effort", openrouter_effort),
)


def deepseek_range(most: int) -> Wording:
    words = f"Invalid max_tokens value, the valid range of max_tokens is [1, {most}]"
    return lambda key, asked: Refusal(words, None, "invalid_request_error")


def deepseek_roles(asked: Asked) -> Judgement:
    known = ("system", "user", "assistant", "tool")
    return first(
        Refusal(
            f"Failed to deserialize the JSON body into the target type: messages[{number}].role: unknown "
            f"variant `{message['role']}`, expected one of `system`, `user`, `assistant`, `tool`",
            None,
            "invalid_request_error",
        )
        for number, message in enumerate(asked.messages)
        if message["role"] not in known
    )


def reasoning_comes_back(asked: Asked) -> Judgement:
    return first(
        Refusal(
            f"Missing `reasoning_content` field in the assistant message at message index {number}. For more "
            "information, please refer to https://api-docs.deepseek.com/guides/thinking_mode#tool-calls",
            None,
            "invalid_request_error",
        )
        for number, message in asked.called()
        if not message.get("reasoning_content")
    )


DEEPSEEK_RULES = (
    Rule("max_tokens range", most_tokens(deepseek_range(8192), 8192, "max_tokens")),
    Rule("known roles", deepseek_roles),
)
DEEPSEEK_THINKING_RULES = (
    Rule("reasoning_content comes back", reasoning_comes_back),
    Rule("max_tokens range", most_tokens(deepseek_range(65536), 65536, "max_tokens")),
    Rule("known roles", deepseek_roles),
)


def xai_unsupported(key: str) -> Refusal:
    words = re.sub(r"_(.)", lambda match: match.group(1).upper(), key)
    return Refusal(f"Model grok-code-fast-1 does not support parameter {words}.")


XAI_RULES = (
    Rule(
        "unsupported parameter",
        refuse_keys(
            xai_unsupported, "stop", "presence_penalty", "frequency_penalty", "reasoning_effort"
        ),
    ),
)

# --- Gemini -------------------------------------------------------------------------------------

# What its own Schema has; "const", "$schema" and all others are unknown names to it.
GEMINI_KEYWORDS = (
    "type", "format", "title", "description", "nullable", "enum", "maxItems", "minItems",
    "properties", "required", "minProperties", "maxProperties", "minLength", "maxLength", "pattern",
    "example", "anyOf", "propertyOrdering", "items", "minimum", "maximum",
)  # fmt: skip
GEMINI_FORMATS = ("enum", "date-time")  # of strings
GEMINI_KEYS = (
    "model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens",
    "temperature", "top_p", "n", "stop", "tools", "tool_choice", "parallel_tool_calls",
    "response_format", "reasoning_effort", "extra_body", "presence_penalty", "frequency_penalty",
    "seed", "user", "service_tier", "logprobs", "top_logprobs", "store", "metadata",
)  # fmt: skip


def schemas_in(schema: Any, place: str) -> Iterable[Tuple[str, Dict[str, Any]]]:
    """(place, schema) of a schema and all in it; a property's name is no keyword."""
    if not isinstance(schema, dict):
        return
    yield place, schema
    for name, inner in (schema.get("properties") or {}).items():
        yield from schemas_in(inner, f"{place}.properties[{name}]")
    for keyword in ("items", "additionalProperties", "propertyNames", "not"):
        yield from schemas_in(schema.get(keyword), f"{place}.{keyword}")
    for keyword in ("anyOf", "oneOf", "allOf"):
        for number, inner in enumerate(schema.get(keyword) or []):
            yield from schemas_in(inner, f"{place}.{keyword}[{number}]")


def all_schemas(asked: Asked) -> Iterable[Tuple[str, Dict[str, Any]]]:
    for number, function in enumerate(asked.functions):
        place = f"tools[0].function_declarations[{number}].parameters"
        yield from schemas_in(function.get("parameters"), place)


def gemini_unknown(name: str, place: str = "") -> Refusal:
    at = f" at '{place}'" if place else ""
    return Refusal(f'Invalid JSON payload received. Unknown name "{name}"{at}: Cannot find field.')


def gemini_keywords(asked: Asked) -> Judgement:
    return first(
        gemini_unknown(keyword, place)
        for place, schema in all_schemas(asked)
        for keyword in schema
        if keyword not in GEMINI_KEYWORDS
    )


def gemini_values(asked: Asked) -> Judgement:
    return first(
        complaint
        for place, schema in all_schemas(asked)
        for complaint in schema_complaints(place, schema)
    )


def schema_complaints(place: str, schema: Dict[str, Any]) -> Iterable[Refusal]:
    if isinstance(schema.get("type"), list):
        yield Refusal(
            f"Invalid JSON payload received. Unknown name \"type\" at '{place}': Proto field is not "
            "repeating, cannot start list."
        )
    if schema.get("type") == "array" and "items" not in schema:
        yield Refusal(f"* GenerateContentRequest.{place}.items: missing field.")
    if not all(isinstance(value, str) for value in schema.get("enum", [])):
        yield Refusal(f"Invalid value at '{place}.enum[0]' (TYPE_STRING), 1")
    if schema.get("type") == "string" and schema.get("format", "enum") not in GEMINI_FORMATS:
        yield Refusal(
            f"* GenerateContentRequest.{place}.format: only 'enum' and 'date-time' are supported for "
            "STRING type"
        )
    missing = [
        name for name in schema.get("required", []) if name not in schema.get("properties", {})
    ]
    if missing:
        yield Refusal(f"* GenerateContentRequest.{place}.required[0]: property is not defined")


def gemini_signatures(asked: Asked) -> Judgement:
    """In the turn under way, the first call of each step has the signature that it came with."""
    begun = max((n for n, _ in asked.numbered("user")), default=0)
    return first(
        Refusal(
            "Function call is missing a thought_signature in functionCall parts. This is required for tools to "
            "work correctly, and missing thought_signature may lead to degraded model performance. Additional "
            f"data, function call `default_api:{message['tool_calls'][0]['function']['name']}` , position "
            f"{number}. Please refer to https://ai.google.dev/gemini-api/docs/thought-signatures for more details."
        )
        for number, message in asked.called()
        if number > begun
        and message["tool_calls"][0].get("extra_content") != thought_signature(turn_of(message))
    )


def gemini_empty_text(asked: Asked) -> Judgement:
    words = (
        "* GenerateContentRequest.contents[{}].parts[0].data: required oneof field 'data' must have one "
        "initialized field"
    )
    return first(
        Refusal(words.format(number))
        for number, message in enumerate(asked.messages)
        if message.get("content") == "" or has_empty_part(message.get("content"))
    )


def has_empty_part(content: Any) -> bool:
    parts = content if isinstance(content, list) else []
    return any(part.get("type") == "text" and not part.get("text") for part in parts)


def gemini_names(asked: Asked) -> Judgement:
    return first(
        Refusal(
            f"* GenerateContentRequest.tools[0].function_declarations[{number}].name: Invalid function name. "
            "Must start with a letter or an underscore."
        )
        for number, function in enumerate(asked.functions)
        if not re.match(r"[A-Za-z_]", function["name"])
    )


GEMINI_RULES = (
    Rule("schema keywords", gemini_keywords),
    Rule("schema values", gemini_values),
    Rule("thought_signature comes back", gemini_signatures),
    Rule("empty text", gemini_empty_text),
    Rule("function names", gemini_names),
    Rule("unknown key", only_keys(gemini_unknown, *GEMINI_KEYS)),
    Rule(
        "max_tokens too large",
        most_tokens(
            lambda key, asked: Refusal(
                f"Unable to submit request because it has a max_tokens value of {asked} but the "
                "supported range is from 1 (inclusive) to 65537 (exclusive)."
            ),
            65536,
            "max_tokens",
            "max_completion_tokens",
        ),
    ),
    Rule(
        "reasoning_effort",
        only_values(
            lambda effort: Refusal(f"Invalid reasoning_effort: {effort}"),
            "reasoning_effort",
            None,
            "none",
            "minimal",
            "low",
            "medium",
            "high",
        ),
    ),
)

# --- Mistral, Groq ------------------------------------------------------------------------------

MISTRAL_KEYS = (
    "model", "messages", "stream", "stream_options", "max_tokens", "temperature", "top_p", "stop",
    "random_seed", "n", "tools", "tool_choice", "parallel_tool_calls", "response_format",
    "presence_penalty", "frequency_penalty", "prediction", "prompt_mode", "reasoning_effort",
    "safe_prompt", "metadata", "guardrails", "prompt_cache_key",
)  # fmt: skip
MISTRAL_MESSAGE_KEYS = ("role", "content", "tool_calls", "tool_call_id", "name", "prefix")


def extra_forbidden(*place: Any) -> Refusal:
    where = ".".join(("body", *(str(word) for word in place)))
    return Refusal("Extra inputs are not permitted", where, None, 422)


def mistral_ids(asked: Asked) -> Judgement:
    ids = [call["id"] for _, message in asked.called() for call in message["tool_calls"]]
    ids += [message["tool_call_id"] for _, message in asked.numbered("tool")]
    return first(
        Refusal(
            f"Tool call id was {call_id} but must be a-z, A-Z, 0-9, with a length of 9.",
            None,
            "3280",
        )
        for call_id in ids
        if not re.fullmatch(r"[A-Za-z0-9]{9}", call_id)
    )


def mistral_function_keys(asked: Asked) -> Judgement:
    return first(
        extra_forbidden("tools", number, "function", key)
        for number, function in enumerate(asked.functions)
        for key in function
        if key not in ("name", "description", "parameters")
    )


def mistral_empty(asked: Asked) -> Judgement:
    empty = [
        m
        for _, m in asked.numbered("assistant")
        if not m.get("content") and not m.get("tool_calls")
    ]
    words = "Assistant message must have either content or tool_calls, but not none."
    return Refusal(words, None, "3240") if empty else None


MISTRAL_RULES = (
    Rule("tool call ids", mistral_ids),
    Rule("unknown key", only_keys(extra_forbidden, *MISTRAL_KEYS)),
    Rule(
        "unknown message key",
        only_message_keys(
            lambda number, key: extra_forbidden("messages", number, key), *MISTRAL_MESSAGE_KEYS
        ),
    ),
    Rule("unknown function key", mistral_function_keys),
    Rule(
        "tool_choice required",
        lambda asked: (
            Refusal("Input should be 'auto', 'none' or 'any'", "body.tool_choice", None, 422)
            if asked.body.get("tool_choice") == "required"
            else None
        ),
    ),
    Rule("empty assistant message", mistral_empty),
    Rule(
        "reasoning_effort",
        only_values(
            lambda effort: Refusal(
                "Input should be 'none' or 'high'", "body.reasoning_effort", None, 422
            ),
            "reasoning_effort",
            None,
            "none",
            "high",
        ),
    ),
)

GROQ_MESSAGE_KEYS = (
    "role",
    "content",
    "name",
    "tool_calls",
    "tool_call_id",
    "reasoning",
    "refusal",
)


def groq_message_key(number: int, key: str) -> Refusal:
    return Refusal(
        f"'messages.{number}' : for 'role:assistant' the following must be satisfied"
        f"[('messages.{number}' : property '{key}' is unsupported)]"
    )


def groq_schema(asked: Asked) -> Judgement:
    return first(
        Refusal(
            f"invalid JSON schema for tool {function['name']}, tools[{number}].function.parameters: "
            "'$schema' is not supported",
            f"tool {function['name']}, tools[{number}].function.parameters",
        )
        for number, function in enumerate(asked.functions)
        if "$schema" in (function.get("parameters") or {})
    )


def groq_tokens(key: str, asked: int) -> Refusal:
    return Refusal(
        f"`{key}` must be less than or equal to `40960`, the maximum value for `{key}` is less than "
        "the `context_window` for this model",
        key,
    )


GROQ_RULES = (
    Rule("$schema", groq_schema),
    Rule("nulls", no_nulls(lambda place: Refusal(f"'{place}' : value must not be null"))),
    Rule(
        "unknown key",
        only_keys(
            lambda key: Refusal(f"property '{key}' is unsupported"),
            *OPENAI_KEYS,
            "reasoning_format",
            "include_reasoning",
            "disable_tool_validation",
            "citation_options",
            "search_settings",
        ),
    ),
    Rule("unknown message key", only_message_keys(groq_message_key, *GROQ_MESSAGE_KEYS)),
    Rule(
        "max_tokens too large",
        most_tokens(groq_tokens, 40960, "max_tokens", "max_completion_tokens"),
    ),
    Rule(
        "reasoning_effort",
        only_values(
            lambda effort: Refusal(
                "`reasoning_effort` must be one of `none` or `default`", "reasoning_effort"
            ),
            "reasoning_effort",
            None,
            "none",
            "default",
        ),
    ),
)

# --- servers ------------------------------------------------------------------------------------


def bare_null_content(asked: Asked) -> Judgement:
    """A message has content, or calls."""
    empty = [
        n
        for n, m in enumerate(asked.messages)
        if m.get("content") is None and not m.get("tool_calls")
    ]
    return Refusal("All non-assistant messages must contain 'content'") if empty else None


def anchored_patterns(asked: Asked) -> Judgement:
    """llama.cpp makes a grammar of each schema."""
    return first(
        Refusal("JSON schema conversion failed:\nPattern must start with '^' and end with '$'")
        for _, schema in all_schemas(asked)
        if "pattern" in schema and not re.fullmatch(r"\^.*\$", schema["pattern"], re.DOTALL)
    )


def ollama_content(asked: Asked) -> Judgement:
    return first(
        Refusal("invalid message format")
        for message in asked.messages
        if not isinstance(message.get("content", ""), str)
    )


def image_urls(asked: Asked) -> Iterable[str]:
    return [
        value["url"]
        for place, value in walk(asked.messages)
        if place.endswith("image_url") and isinstance(value, dict)
    ]


def no_linked_images(words: str) -> Callable[[Asked], Judgement]:
    return lambda asked: (
        Refusal(words) if any(u.startswith("http") for u in image_urls(asked)) else None
    )


def ollama_effort(effort: Any) -> Refusal:
    return Refusal(
        f'invalid reasoning value: \'{effort}\' (must be "high", "medium", "low", "max", or "none")'
    )


def choice_is_word(asked: Asked) -> Judgement:
    if isinstance(asked.body.get("tool_choice", ""), str):
        return None
    return Refusal(
        "Invalid tool_choice type: 'object'. Supported string values: none, auto, required"
    )


NOT_AT_THE_BEGINNING = "System message must be at the beginning."

TOGETHER_RULES = (Rule("content missing", content_missing),)
VLLM_RULES = (
    Rule("system first", system_first(lambda: Refusal(NOT_AT_THE_BEGINNING))),
    Rule(
        "empty tools",
        lambda asked: (
            Refusal("tools: List should have at least 1 item")
            if asked.body.get("tools") == []
            else None
        ),
    ),
)
LLAMACPP_RULES = (
    Rule("system first", system_first(lambda: Refusal(NOT_AT_THE_BEGINNING, status=500))),
    Rule("content missing", bare_null_content),
    Rule("patterns", anchored_patterns),
)
OLLAMA_RULES = (
    Rule("content is a string", ollama_content),
    Rule("linked images", no_linked_images("invalid image input")),
    Rule(
        "reasoning_effort",
        only_values(
            ollama_effort, "reasoning_effort", None, "none", "low", "medium", "high", "max"
        ),
    ),
)
LMSTUDIO_RULES = (
    Rule("tool_choice is a word", choice_is_word),
    Rule("linked images", no_linked_images("'url' field must be a base64 encoded image.")),
    Rule("content missing", bare_null_content),
)
OPENWEBUI_RULES = (Rule("content missing", bare_null_content),)

# --- what must never be -------------------------------------------------------------------------

FOREIGN_HEADERS = re.compile(r"x-api-key|cookie|(?:anthropic|x-claude|x-stainless)-.*")
ATTRIBUTION = "x-anthropic-billing-header"


def foreign_headers(asked: Asked) -> Judgement:
    return first(Refusal(name) for name in asked.headers if FOREIGN_HEADERS.fullmatch(name))


def attribution(asked: Asked) -> Judgement:
    return Refusal("in a prompt") if ATTRIBUTION in json.dumps(asked.messages) else None


def cache_marks(asked: Asked) -> Judgement:
    return first(Refusal(place) for place, _ in walk(asked.body) if place.endswith("cache_control"))


def cache_marks_beside_text(asked: Asked) -> Judgement:
    """OpenRouter takes them on a text part."""
    part = re.compile(r"messages\.\d+\.content\.\d+\.cache_control(?:\..*)?")
    marks = [place for place, _ in walk(asked.body) if "cache_control" in place.split(".")]
    return first(Refusal(place) for place in marks if not part.fullmatch(place))


def chat_grammar(asked: Asked) -> Judgement:
    """Behind calls come their results at once, one each, in order, as strings; and no others."""
    open_ids: List[str] = []
    for number, message in enumerate(asked.messages):
        if message["role"] == "tool":
            if not open_ids or message["tool_call_id"] != open_ids.pop(0):
                return Refusal(f"messages.{number} answers no open call")
            if not isinstance(message["content"], str):
                return Refusal(f"messages.{number}: a result that is no string")
            continue
        if open_ids:
            return Refusal(f"messages.{number}: calls without results: {open_ids}")
        open_ids = [call["id"] for call in message.get("tool_calls") or []]
    return Refusal("calls without results at the end") if open_ids else None


def whole_calls(asked: Asked) -> Judgement:
    """Arguments are JSON objects, names fit, ids differ."""
    calls = [call for _, message in asked.called() for call in message["tool_calls"]]
    for call in calls:
        if call.get("type") != "function" or not re.fullmatch(
            r"[\w-]{1,64}", call["function"]["name"]
        ):
            return Refusal(f"no function call: {call}")
        if not isinstance(json.loads(call["function"]["arguments"]), dict):
            return Refusal(f"arguments that are no object: {call}")
    return (
        None
        if len({call["id"] for call in calls}) == len(calls)
        else Refusal("two calls with one id")
    )


def one_limit(asked: Asked) -> Judgement:
    return Refusal("both") if {"max_tokens", "max_completion_tokens"} <= asked.body.keys() else None


COMMON_RULES = (
    Rule("foreign headers", foreign_headers),
    Rule("attribution", attribution),
    Rule("chat grammar", chat_grammar),
    Rule("whole calls", whole_calls),
    Rule("one limit", one_limit),
)
NO_CACHE_MARKS = Rule("cache_control", cache_marks)
CACHE_MARKS_ON_PARTS = Rule("cache_control", cache_marks_beside_text)
