"""The module itself: what an action's fields are sent to the vendor as, and what comes of the reply.

A table says what belongs to which era of the module; a family is a way to a vendor, with a body,
a vendor's answer and a picking of its own. `run` is the whole of it.
"""

from __future__ import annotations

import itertools
import json
import re
import time
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Tuple, Union

from tests.fake_securechat.text import (
    Crash,
    as_float,
    as_int,
    as_string,
    dig,
    members_of,
    php_array,
    php_decode,
    php_encode,
    php_trim,
    pick_chat,
    pick_claude,
    pick_gemini,
    pick_listed_chat,
    polished,
    truthy,
)

CRASH = "crash"
ATTEMPTS = 3
INTEGER = re.compile(r"(?:0|-?[1-9]\d*)\Z", re.ASCII)
Fields = Mapping[str, Any]
Json = Dict[str, Any]


class Reply(NamedTuple):
    """What the vendor answers to every attempt of one request; `status` 0 is no answer at all.

    Without text, blocks and tool_calls the model said nothing. `raw` is the body to the letter.
    """

    text: Optional[str] = None
    input: int = 10
    output: int = 5
    blocks: Optional[List[Json]] = None
    tool_calls: Optional[List[Json]] = None
    status: int = 200
    raw: Optional[str] = None
    error: Union[None, str, Json] = None
    delay: float = 0


class Outcome(NamedTuple):
    """`body` is CRASH if PHP died; `upstream` has a body for each attempt."""

    status: int
    body: Union[bytes, str]
    upstream: List[Any]


class Installed(NamedTuple):
    """A module with its settings. `aliases` maps a model's alias to the vendor's name for it."""

    era: str
    aliases: Mapping[str, str]
    reasoning_effort: Optional[str] = "medium"


class Failed(Exception):
    """A PHP Exception, which the module catches to try again."""


# --- eras ---------------------------------------------------------------------------------------


class Era(NamedTuple):
    actions: Tuple[str, ...]
    aliases: Tuple[str, ...]
    model_map: Mapping[str, str]
    schema_aliases: Tuple[str, ...]
    reasoning_aliases: Tuple[str, ...]
    version: str


CLAUDE_NAMES = ("claude-3-7-sonnet-20250219", "claude-3-5-sonnet-20241022")
# Only these were thought of when the API was written; other reasoning models came later.
FIRST_REASONING = ("o1", "o3-mini", "gpt-5")
NEWEST, EARLY, BEFORE_MESSAGES = "2026-06", "2026-01", "2025"
EARLY_ERA = Era(
    actions=("callAI", "messages"),
    aliases=("gpt-4o", "gpt-4.1", "o1", "o3-mini", "gpt-5", "claude", "gemini20flash",
             "gemini25pro", "llama3370b", "llama-Maverick", "deepseek"),
    model_map=dict.fromkeys((*CLAUDE_NAMES, "claude-sonnet-4"), "claude"),
    schema_aliases=("gpt-4.1", "o1", "o3-mini", "gpt-5", "llama3370b"),
    reasoning_aliases=FIRST_REASONING,
    version="v1.1.0",
)  # fmt: skip
ERAS = {
    NEWEST: Era(
        actions=("callAI", "messages"),
        aliases=("claude-sonnet-4.6", "claude-opus-4-7", "claude-haiku-4.5", "gpt-4-1",
                 "gpt-4-1-nano", "gpt-5-4", "gemini-2.5-pro", "gemini-2.5-flash", "deepseek-r1",
                 "o3", "o4-mini", "o3-mini"),
        model_map=dict.fromkeys(CLAUDE_NAMES, "claude"),
        schema_aliases=("gpt-4-1", "gpt-4-1-nano", "gpt-5", "gpt-5-4", "gpt-5-4-nano", "o1", "o3",
                        "o3-mini", "o4-mini"),
        reasoning_aliases=("o1", "o3-mini", "o3", "o4-mini", "gpt-5"),
        version="v1.2.0",
    ),
    EARLY: EARLY_ERA,
    BEFORE_MESSAGES: EARLY_ERA._replace(actions=("callAI",), version="v1.0.0"),
}  # fmt: skip


def installed(
    era: str, aliases: Any = None, reasoning_effort: Optional[str] = "medium"
) -> Installed:
    """`aliases` is a map, or names that are the vendor's too; without, those of the era."""
    found = ERAS[era].aliases if aliases is None else aliases
    names = found if isinstance(found, Mapping) else {alias: alias for alias in found}
    return Installed(era, names, reasoning_effort)


# --- parameters ---------------------------------------------------------------------------------

DEFAULT_MAX_TOKENS = 16384
# alias -> context, output cap, what is kept free of the context
CLAUDE_CAPS = {
    "claude": (200000, 8192, 2000),
    "claude-sonnet-3.5": (200000, 8192, 2000),
    "claude-sonnet-3.7": (200000, 8192, 2000),
    "claude-haiku-4.5": (200000, 8192, 2000),
    "claude-opus-4": (200000, 32000, 2000),
    "claude-sonnet-4": (200000, 16000, 2000),
}
LEAST_OUTPUT = 1024
CHARACTERS_A_TOKEN = 4


def default_params(module: Installed) -> Json:
    return {
        "temperature": 0.7,
        "top_p": 0.9,
        "frequency_penalty": 0.5,
        "presence_penalty": 0,
        "max_tokens": DEFAULT_MAX_TOKENS,
        "reasoning_effort": module.reasoning_effort,
        "stop": None,
        "model": "gpt-4o",
    }


def filtered_params(module: Installed, alias: str, params: Json) -> Json:
    """The parameters with the defaults, without what the alias is not known to take."""
    era = ERAS[module.era]
    merged = {**default_params(module), **params}
    if alias not in FIRST_REASONING:
        merged.pop("reasoning_effort")
    if alias not in era.schema_aliases:
        merged.pop("json_schema", None)
    if alias in era.reasoning_aliases:
        return strict_params(alias, merged)
    merged.pop("max_tokens")
    return merged


def strict_params(alias: str, merged: Json) -> Json:
    cap = dig(merged, "max_completion_tokens", default=merged["max_tokens"])
    kept = {"model": alias, "messages": merged["messages"], "max_completion_tokens": cap}
    optional = ("reasoning_effort", "json_schema")
    return {**kept, **{key: merged[key] for key in optional if merged.get(key) is not None}}


def output_cap(module: Installed, alias: str, messages: Any) -> int:
    """The cap that Claude gets. The first content must be a string, whatever the model is."""
    first = as_string(dig(messages, 0, "content", default=""))
    if module.era != NEWEST:
        return 8192 if alias == "gemini20flash" else DEFAULT_MAX_TOKENS
    context, cap, kept = CLAUDE_CAPS.get(alias, (0, 0, 0))
    free = context - len(first) // CHARACTERS_A_TOKEN - kept
    return max(LEAST_OUTPUT, min(free, cap)) if cap else DEFAULT_MAX_TOKENS


# --- bodies: (module, alias, params as they came) -> what the vendor is sent --------------------

TOOL_BLOCKS = ("tool_use", "tool_result")


def claude_body(module: Installed, alias: str, params: Json) -> Json:
    """Bedrock's body: the system messages joined, of the others role and content, no more."""
    system, messages = "", []
    for message in members_of(params["messages"]):
        if isinstance(message, str):
            raise Crash("TypeError: Cannot access offset of type string on string")
        role, content = dig(message, "role"), dig(message, "content")
        if role == "system":
            system += ("\n\n" if truthy(system) else "") + php_trim(content)
        else:
            messages.append({"role": role, "content": content})
    body = {
        "anthropic_version": "bedrock-2023-05-31",
        "messages": messages,
        "max_tokens": output_cap(module, alias, params["messages"]),
        **({"system": system} if truthy(system) else {}),
    }
    if "opus" not in module.aliases[alias]:
        body["temperature"] = params.get("temperature", default_params(module)["temperature"])
    return body


def chat_body(module: Installed, alias: str, params: Json) -> Json:
    """Chat Completions, with the messages as they came."""
    body = {**filtered_params(module, alias, params), "model": module.aliases[alias]}
    return wrapped_schema(body)


def deepseek_body(module: Installed, alias: str, params: Json) -> Json:
    """The older module's way to DeepSeek, which put back the defaults that were taken out."""
    cap = output_cap(module, alias, params["messages"])
    merged = {**default_params(module), **filtered_params(module, alias, params)}
    return wrapped_schema({**merged, "max_tokens": cap, "model": module.aliases[alias]})


def gpt_body(module: Installed, alias: str, params: Json) -> Json:
    """The older module's way to GPT-4o: the default model's name, and a cap."""
    cap = output_cap(module, alias, params["messages"])
    return {**filtered_params(module, alias, params), "max_tokens": cap}


def prompt_text_body(module: Installed, alias: str, params: Json) -> Json:
    """The older module's way to Claude: a gateway that takes one text."""
    turns = [prompt_turn(message) for message in members_of(params["messages"])]
    cap = output_cap(module, alias, params["messages"])
    tuning = {**default_params(module), **params, "max_tokens": cap}
    return {
        "model_id": module.aliases[alias],
        "prompt_text": "\n\n".join(turns),
        "parameters": {key: tuning[key] for key in ("temperature", "top_p", "max_tokens")},
    }


def prompt_turn(message: Any) -> str:
    if isinstance(message, str):
        raise Crash("TypeError: Cannot access offset of type string on string")
    role = as_string(dig(message, "role"))
    return f"{role[:1].upper()}{role[1:]}: {php_trim(dig(message, 'content'))}"


def gemini_body(module: Installed, alias: str, params: Json) -> Json:
    """The older module's way to Gemini, its native body."""
    cap = output_cap(module, alias, params["messages"])
    tuning = {**default_params(module), **params, "max_tokens": cap}
    return {
        "contents": gemini_contents(members_of(params["messages"])),
        "generation_config": {
            "temperature": tuning["temperature"],
            "topP": tuning["top_p"],
            "topK": 40,
            "maxOutputTokens": cap,
            "frequencyPenalty": tuning["frequency_penalty"],
            "presencePenalty": tuning["presence_penalty"],
        },
        "safety_settings": [
            {"category": "HARM_CATEGORY_SEXUALLY_EXPLICIT", "threshold": "BLOCK_LOW_AND_ABOVE"}
        ],
    }


def gemini_contents(messages: List[Any]) -> List[Json]:
    """The turns; what the system says stands before the first turn of the user."""
    system, contents = "", []
    for message in messages:
        if isinstance(message, str):
            raise Crash("TypeError: Cannot access offset of type string on string")
        role, content = dig(message, "role"), dig(message, "content")
        if role == "system":
            system += php_trim(content) + "\n\n"
        else:
            text = "Array" if isinstance(content, (list, dict)) else php_trim(content)
            contents.append({"role": role, "parts": [{"text": text}]})
    if system and not (contents and contents[0]["role"] == "user"):
        contents.insert(0, {"role": "user", "parts": [{"text": ""}]})
    if system:
        contents[0]["parts"][0]["text"] = system + contents[0]["parts"][0]["text"]
    return contents


def wrapped_schema(body: Json) -> Json:
    """A bare schema gets the wrapping that vendors want; one that has it is left alone."""
    schema = body.get("json_schema")
    if schema is not None:
        named = dig(schema, "name") is not None and dig(schema, "schema") is not None
        bare = {"name": "response", "strict": True, "schema": schema}
        del body["json_schema"]
        body["response_format"] = {"type": "json_schema", "json_schema": schema if named else bare}
    return mended(body, "")


def mended(value: Any, key: Any) -> Any:
    """PHP made {} a list; where it is a schema's `properties` it becomes an object again."""
    if not isinstance(value, (list, dict)) or key in ("required", "enum"):
        return value
    if not value:
        return {} if key == "properties" else []
    if isinstance(value, list):
        return [mended(item, None) for item in value]
    return {name: mended(item, name) for name, item in value.items()}


# --- vendors: (reply, the vendor's name of the model) -> the body of the answer -----------------


def claude_answer(reply: Reply, model: str) -> Json:
    if reply.error is not None:
        return {"type": "error", "error": error_object(reply.error)}
    text = [] if reply.text is None else [{"type": "text", "text": reply.text}]
    called = [{"type": "tool_use", **call} for call in reply.tool_calls or []]
    return {
        "id": "msg_bdrk_01",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [*text, *called] if reply.blocks is None else reply.blocks,
        "stop_reason": "tool_use" if called else "end_turn",
        "usage": {"input_tokens": reply.input, "output_tokens": reply.output},
    }


def chat_answer(reply: Reply, model: str) -> Json:
    if reply.error is not None:
        return {"error": error_object(reply.error)}
    message: Json = {"role": "assistant", "content": text_of(reply)}
    if reply.tool_calls:
        message["tool_calls"] = reply.tool_calls
    total = reply.input + reply.output
    finish = "tool_calls" if reply.tool_calls else "stop"
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": {
            "prompt_tokens": reply.input,
            "completion_tokens": reply.output,
            "total_tokens": total,
        },
    }


def gemini_answer(reply: Reply, model: str) -> Any:
    if reply.error is not None:
        return [{"error": error_object(reply.error)}]
    usage = {
        "promptTokenCount": reply.input,
        "candidatesTokenCount": reply.output,
        "totalTokenCount": reply.input + reply.output,
    }
    parts = reply.blocks or [{"text": reply.text or ""}]
    content = {"role": "model", "parts": parts}
    return [{"candidates": [{"content": content}], "usageMetadata": usage, "modelVersion": model}]


def text_of(reply: Reply) -> Optional[str]:
    """A chat completion has one text; of blocks, those that are text."""
    texts = [block["text"] for block in reply.blocks or [] if block.get("type") == "text"]
    return "".join(texts) if texts else reply.text


def error_object(error: Union[str, Json]) -> Json:
    return {"type": "server_error", "message": error} if isinstance(error, str) else error


# --- families -----------------------------------------------------------------------------------


class Family(NamedTuple):
    """A way to a vendor. `not_json` is what the PHP does about an answer that is no JSON."""

    body: Callable[[Installed, str, Json], Json]
    answer: Callable[[Reply, str], Any]
    pick: Callable[[Any, str], Json]
    not_json: Exception


NO_ARRAY = Crash("TypeError: Return value must be of type array, null returned")
NOT_JSON = Failed("JSON decode error")
CLAUDE = Family(claude_body, claude_answer, pick_claude, NO_ARRAY)
CHAT = Family(chat_body, chat_answer, pick_chat, NO_ARRAY)
EARLY_CHAT = Family(chat_body, chat_answer, pick_listed_chat, NO_ARRAY)
EARLY_GEMINI = Family(gemini_body, gemini_answer, pick_gemini, NOT_JSON)
EARLY_FAMILIES = {
    "gpt-4o": Family(gpt_body, chat_answer, pick_listed_chat, NOT_JSON),
    "deepseek": EARLY_CHAT._replace(body=deepseek_body),
    "claude": CLAUDE._replace(body=prompt_text_body),
    "gemini20flash": EARLY_GEMINI,
    "gemini25pro": EARLY_GEMINI,
    **dict.fromkeys(("gpt-4.1", *FIRST_REASONING, "llama3370b", "llama-Maverick"), EARLY_CHAT),
}


def family_of(module: Installed, alias: str) -> Family:
    """By the alias's name; the older module has a fixed list."""
    if module.era == NEWEST:
        return CLAUDE if alias.startswith("claude") or "anthropic" in alias else CHAT
    if alias not in EARLY_FAMILIES:
        raise Failed(f"Unsupported model configuration for: {alias}")
    return EARLY_FAMILIES[alias]


# --- the call -----------------------------------------------------------------------------------


class Call(NamedTuple):
    """One request on its way. `ask` is the vendor: a body in, a reply out, after a while."""

    module: Installed
    ask: Callable[[Any], Reply]
    upstream: List[Any]


def call_model(call: Call, alias: Any, params: Json) -> Json:
    """Three times without a pause, then words of regret; a polite sentence is no exception."""
    for _ in range(ATTEMPTS):
        try:
            return polished(call_once(call, as_string(alias), params))
        except Failed:
            pass
    return polished({"error": True, "type": "NETWORK_ERROR"})


def call_once(call: Call, alias: str, params: Json) -> Json:
    module = call.module
    if alias not in module.aliases:
        raise Failed(f"Unsupported model: {alias}")
    output_cap(module, alias, params["messages"])
    family = family_of(module, alias)
    text = php_encode(family.body(module, alias, params))
    body = None if text is None else json.loads(text)
    call.upstream.append(body)
    reply = call.ask(body)
    if not 200 <= reply.status < 300 or refused(family, body):
        raise Failed(f"HTTP error: {reply.status}")
    return family.pick(vendor_answer(family, reply, module.aliases[alias]), alias)


def refused(family: Family, body: Any) -> bool:
    """A vendor refuses a body that could not be encoded, and tool blocks without tools."""
    if body is None or family is not CLAUDE:
        return body is None
    contents = [message["content"] for message in body["messages"]]
    blocks = [block for content in contents if isinstance(content, list) for block in content]
    return any(dig(block, "type") in TOOL_BLOCKS for block in blocks)


def vendor_answer(family: Family, reply: Reply, model: str) -> Any:
    raw = json.dumps(family.answer(reply, model)) if reply.raw is None else reply.raw
    try:
        answer = php_decode(raw)
    except ValueError:
        raise family.not_json from None
    if not isinstance(answer, (list, dict)):
        raise NO_ARRAY
    return answer


# --- actions ------------------------------------------------------------------------------------

NO_MESSAGES = {
    "type": "error",
    "error": {"type": "invalid_request_error", "message": "Missing or invalid 'messages' field"},
}
NO_USAGE = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


def run(
    module: Installed,
    action: str,
    fields: Fields,
    ask: Callable[[Any], Reply],
    upstream: Optional[List[Any]] = None,
) -> Outcome:
    """One request as the module's hook gets it: the fields that REDCap does not keep."""
    call = Call(module, ask, [] if upstream is None else upstream)
    try:
        status, body = ACTIONS[action](call, php_array(dict(fields)))
    except Crash:
        return Outcome(500, CRASH, call.upstream)
    return Outcome(status, (php_encode(body) or "").encode("ascii"), call.upstream)


def run_messages(call: Call, fields: Any) -> Tuple[int, Json]:
    model = dig(fields, "model", default="o3-mini")
    messages = decoded_messages(dig(fields, "messages"))
    if not messages:
        return 400, NO_MESSAGES
    alias = ERAS[call.module.era].model_map.get(as_string(model), model)
    cap = as_int(dig(fields, "max_tokens", default="4096"))
    params = {
        "messages": with_system(messages, dig(fields, "system")),
        **passed_params(fields),
        "max_completion_tokens" if alias in FIRST_REASONING else "max_tokens": cap,
    }
    result = call_model(call, alias, params)
    if truthy(result.get("error")):
        return 500, hook_error(result)
    return 200, message_object(model, result, params.get("max_tokens"))


def decoded_messages(messages: Any) -> Any:
    """A list of messages, or nothing. An object is let through, as the PHP does."""
    if isinstance(messages, str):
        try:
            messages = php_decode(messages)
        except ValueError:
            return []
    return messages if isinstance(messages, (list, dict)) else []


def with_system(messages: Any, system: Any) -> Any:
    first = {"role": "system", "content": system}
    return unshifted(first, messages) if truthy(system) else messages


def unshifted(first: Any, members: Any) -> Any:
    """`array_unshift`: numbers are counted anew, names stay; so an object is still one."""
    if isinstance(members, list):
        return [first, *members]
    numbers = itertools.count(1)
    named = {str(next(numbers)) if INTEGER.match(key) else key: members[key] for key in members}
    return php_array({"0": first, **named})


def passed_params(fields: Any) -> Json:
    casts = (("temperature", as_float), ("top_p", as_float), ("stop", lambda value: value))
    found = ((key, cast, dig(fields, key)) for key, cast in casts)
    return {key: cast(value) for key, cast, value in found if value is not None}


def message_object(model: Any, result: Json, cap: Optional[int]) -> Json:
    """The reply, in Claude's form. `cap` is unknown where it was given as another parameter."""
    content, usage = response_text(result), dig(result, "usage", default=NO_USAGE)
    completion = dig(result, "usage", "completion_tokens")
    capped = completion is not None and cap is not None and completion >= cap
    text = content if isinstance(content, str) else php_encode(content)
    return {
        "id": unique_id(),
        "type": "message",
        "role": "assistant",
        # What cannot be written as JSON is false to PHP.
        "content": [{"type": "text", "text": False if text is None else text}],
        "model": model,
        "stop_reason": "max_tokens" if capped else "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": dig(usage, "prompt_tokens", default=0),
            "output_tokens": dig(usage, "completion_tokens", default=0),
        },
    }


def hook_error(result: Json) -> Json:
    kind, message = dig(result, "type", default="api_error"), dig(result, "message")
    return {"type": "error", "error": {"type": kind, "message": message or "Internal error"}}


def unique_id() -> str:
    """PHP's `uniqid()`: the clock, in microseconds."""
    seconds, micro = divmod(time.time_ns() // 1000, 1000000)
    return f"msg_{seconds:08x}{micro:05x}"


def response_text(result: Json) -> Any:
    """Not always a text: a structure is given as it is."""
    found = dig(result, "structured_output", default=result.get("content"))
    return php_encode(result) if found is None else found


def run_call_ai(call: Call, fields: Any) -> Tuple[int, Json]:
    prompt = dig(fields, "prompt")
    if not truthy(prompt):
        return 400, {"error": "Missing prompt"}
    params = {
        "messages": [{"role": "user", "content": prompt}],
        "temperature": as_float(dig(fields, "temperature", default="0.2")),
        "max_tokens": as_int(dig(fields, "max_tokens", default="8000")),
        **schema_param(dig(fields, "json_schema")),
    }
    model = dig(fields, "model", default="deepseek")
    result = call_model(call, model, params)
    return 200, {
        "status": "success",
        "model": model,
        "content": response_text(result),
        "usage": dig(result, "usage", default=NO_USAGE),
    }


def schema_param(schema: Any) -> Json:
    """A schema that cannot be read is none, and nobody is told."""
    try:
        return {} if schema is None else {"json_schema": php_decode(as_string(schema))}
    except ValueError:
        return {}


ACTIONS: Dict[str, Callable[[Call, Any], Tuple[int, Json]]] = {
    "messages": run_messages,
    "callAI": run_call_ai,
}
