"""The module: form fields -> what its model is asked -> the reply. No I/O; the model is a function."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

from tests.fake_securechat.text import PhpFatal, passed_text, php_value

NETWORK = "I apologize, but I'm experiencing network difficulties. Please wait a moment and try again."
TECHNICAL = "I apologize, but I'm experiencing technical difficulties. Please wait a moment and try again."
NO_MESSAGES = {
    "type": "error",
    "error": {"type": "invalid_request_error", "message": "Missing or invalid 'messages' field"},
}
NO_PROMPT = {"error": "Missing prompt"}
ATTEMPTS = 3
ALIASES = {
    "2026-06": (
        "claude-sonnet-4.6", "claude-opus-4-7", "claude-haiku-4.5", "gpt-4-1", "gpt-4-1-nano", "gpt-5-4",
        "gemini-2.5-pro", "gemini-2.5-flash", "deepseek-r1", "o3", "o4-mini", "o3-mini",
    ),
    "2026-01": (
        "gpt-4o", "gpt-4.1", "o1", "o3-mini", "gpt-5", "claude", "gemini20flash", "gemini25pro", "llama3370b",
        "llama-Maverick", "deepseek",
    ),
}
RENAMED = {"claude-3-7-sonnet-20250219": "claude", "claude-3-5-sonnet-20241022": "claude"}
RENAMED_OLD = {**RENAMED, "claude-sonnet-4": "claude"}
REASONING = ("o1", "o3", "o3-mini", "o4-mini", "gpt-5")
WITH_EFFORT = ("o1", "o3-mini", "gpt-5")
WITH_SCHEMA = (*REASONING, "gpt-4-1", "gpt-4-1-nano", "gpt-5-4", "gpt-5-4-nano", "gpt-4.1", "llama3370b")
CAPS = {"claude": 8192, "claude-haiku-4.5": 8192, "claude-sonnet-4": 16000, "claude-opus-4": 32000}
USUAL_CAP = 16384
NUMBERS = itertools.count(1)


class VendorAnswer(NamedTuple):
    """What the model's provider answers; `blocks` and `tool_calls` are what it says beside text."""

    text: Optional[str] = "A canned answer."
    input: int = 10
    output: int = 5
    blocks: Optional[List[Dict[str, Any]]] = None
    tool_calls: Optional[List[Dict[str, Any]]] = None
    status: int = 200
    raw: Optional[str] = None
    error: Optional[str] = None
    delay: float = 0


Vendor = Callable[[Dict[str, Any]], VendorAnswer]


class ModuleReply(NamedTuple):
    status: int
    body: str


class Module:
    """SecureChatAI of one era; `vendor` is asked once an attempt."""

    def __init__(self, era: str, vendor: Vendor) -> None:
        self._era = era
        self._vendor = vendor

    def answer(self, action: str, fields: Dict[str, Any]) -> ModuleReply:
        """The reply to one call; PhpFatal if the module dies of it."""
        return self._messages(fields) if action == "messages" else self._call_ai(fields)

    def _messages(self, fields: Dict[str, Any]) -> ModuleReply:
        messages = php_array(fields.get("messages"))
        if not messages:
            return php_reply(400, NO_MESSAGES)
        if not is_falsy(fields.get("system")):
            messages = [{"role": "system", "content": fields["system"]}, *messages]
        wanted = fields.get("model", "o3-mini")
        renamed = RENAMED if self._era == "2026-06" else RENAMED_OLD
        cap = php_int(fields.get("max_tokens", "4096"))
        temperature = php_float(fields.get("temperature", "0.7"))
        asked = {"max_tokens": cap, "temperature": temperature, "stop": fields.get("stop")}
        text, given, told = self._ask(renamed.get(wanted, wanted), messages, asked)
        full = told >= cap > 0 and wanted not in REASONING
        return php_reply(200, {
            "id": f"msg_{next(NUMBERS):013x}", "type": "message", "role": "assistant",
            "content": [{"type": "text", "text": text}], "model": wanted,
            "stop_reason": "max_tokens" if full else "end_turn", "stop_sequence": None,
            "usage": {"input_tokens": given, "output_tokens": told},
        })  # fmt: skip

    def _call_ai(self, fields: Dict[str, Any]) -> ModuleReply:
        if is_falsy(fields.get("prompt")):
            return php_reply(400, NO_PROMPT)
        alias = fields.get("model", "deepseek")
        temperature = php_float(fields.get("temperature", "0.2"))
        asked = {"max_tokens": php_int(fields.get("max_tokens", "8000")), "stop": None, "temperature": temperature}
        schema = php_array(fields.get("json_schema"))
        if schema and alias in WITH_SCHEMA:
            named = isinstance(schema, dict) and {"name", "schema"} <= set(schema)
            asked["json_schema"] = schema if named else {"name": "response", "strict": True, "schema": schema}
        text, given, told = self._ask(alias, [{"role": "user", "content": fields["prompt"]}], asked)
        object_ = php_array(text) if not is_claude(alias) and str(text).startswith(("{", "[]")) else None
        usage = {"prompt_tokens": given, "completion_tokens": told, "total_tokens": given + told}
        content = text if object_ is None else php_value(object_)
        return php_reply(200, {"status": "success", "model": alias, "content": content, "usage": usage})

    # --- asking the model -------------------------------------------------------------------------

    def _ask(self, alias: str, messages: List[Dict[str, Any]], asked: Dict[str, Any]) -> Tuple[Any, int, int]:
        """(text, input tokens, output tokens); an apology and 0, 0 for most failures."""
        if alias not in ALIASES[self._era]:
            return NETWORK, 0, 0
        if not isinstance(messages[0].get("content"), str):
            raise PhpFatal("the first message is no string")
        body = self._body(alias, messages, asked)
        for _ in range(ATTEMPTS):
            answer = self._vendor(body)
            if 200 <= answer.status < 300 and not has_tool_blocks(alias, messages):
                return said_text(alias, answer)
        return NETWORK, 0, 0

    def _body(self, alias: str, messages: List[Dict[str, Any]], asked: Dict[str, Any]) -> Dict[str, Any]:
        if is_claude(alias):
            return claude_body(alias, messages, asked) if self._era == "2026-06" else old_body(messages)
        if alias in REASONING:
            body = {"model": alias, "messages": messages, "max_completion_tokens": asked["max_tokens"]}
            body.update({"reasoning_effort": "medium"} if alias in WITH_EFFORT else {})
        else:
            body = {"temperature": asked["temperature"], "top_p": 0.9, "frequency_penalty": 0.5, "presence_penalty": 0,
                    "stop": asked["stop"], "model": alias, "messages": messages}
        if asked.get("json_schema"):
            body["response_format"] = {"type": "json_schema", "json_schema": asked["json_schema"]}
        return body


def said_text(alias: str, answer: VendorAnswer) -> Tuple[Any, int, int]:
    if answer.raw is not None:
        raise PhpFatal("the provider's answer is no JSON")
    if answer.error is not None:
        return ("" if is_claude(alias) else TECHNICAL), 0, 0
    text = answer.text or ""
    if answer.blocks is not None:  # only the first block counts, and only its text
        text = answer.blocks[0].get("text", "") if answer.blocks else ""
    return passed_text("" if answer.tool_calls else text, is_claude(alias)), answer.input, answer.output


def is_claude(alias: str) -> bool:
    return alias.startswith("claude") or "anthropic" in alias


def has_tool_blocks(alias: str, messages: List[Dict[str, Any]]) -> bool:
    """Claude's provider refuses tool blocks where there are no tools."""
    lists = [message["content"] for message in messages if isinstance(message.get("content"), list)]
    kinds = {block.get("type") for content in lists for block in content}
    return is_claude(alias) and bool(kinds & {"tool_use", "tool_result"})


def claude_body(alias: str, messages: List[Dict[str, Any]], asked: Dict[str, Any]) -> Dict[str, Any]:
    systems = [message["content"] for message in messages if message.get("role") == "system"]
    if not all(isinstance(system, str) for system in systems):
        raise PhpFatal("a system message that is no string")
    rest = [{"role": m.get("role"), "content": m.get("content")} for m in messages if m.get("role") != "system"]
    body = {"anthropic_version": "bedrock-2023-05-31", "messages": rest, "max_tokens": CAPS.get(alias, USUAL_CAP)}
    body.update({"system": "\n\n".join(systems)} if systems else {})
    body.update({} if "opus" in alias else {"temperature": asked["temperature"]})
    return body


def old_body(messages: List[Dict[str, Any]]) -> Dict[str, Any]:
    """The older module has one flattened prompt for Claude."""
    if not all(isinstance(message.get("content"), str) for message in messages):
        raise PhpFatal("content that is no string")
    return {"prompt_text": "\n\n".join(f"{m['role'].capitalize()}: {m['content']}" for m in messages)}


# --- PHP's ways -----------------------------------------------------------------------------------


def php_reply(status: int, data: Dict[str, Any]) -> ModuleReply:
    return ModuleReply(status, json.dumps(data).replace("/", "\\/"))


def php_array(value: Any) -> Any:
    """A field that holds a JSON array or object, or one made of nested names."""
    if isinstance(value, (list, dict)):
        return value
    try:
        decoded = json.loads(value) if isinstance(value, str) else None
        json.dumps(decoded, ensure_ascii=False).encode()  # PHP refuses half surrogates
    except (ValueError, RecursionError):
        return None
    return decoded if isinstance(decoded, (list, dict)) else None


def is_falsy(value: Any) -> bool:
    return value is None or value in ("", "0", [], {})


def php_int(text: Any) -> int:
    match = re.match(r"\s*[+-]?\d+", str(text))
    return int(match.group()) if match else 0


def php_float(text: Any) -> Any:
    match = re.match(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", str(text))
    number = float(match.group()) if match else 0.0
    return int(number) if number.is_integer() else number
