"""A Messages request without tools as the form that SecureChatAI takes. Pure.

The module reads seven fields; `messages` is a JSON text in one of them. It dies if the first
message's content is no string, and its older versions if any is, so all content becomes plain
strings; only where images are allowed, messages that have some stay lists, and never the first.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterable
from typing import Any, Dict, List, Tuple
from urllib.parse import urlencode

from claude_proxy.config import REDCAP_OUTPUT_CAPS, REDCAP_WINDOWS
from claude_proxy.dialects.chat_blocks import (
    Block,
    answer_texts,
    as_list,
    content_blocks,
    joined_parts,
    text_part,
    user_parts,
)
from claude_proxy.dialects.chat_options import ChatOptions
from claude_proxy.dialects.chat_request import system_text
from claude_proxy.errors import ProxyError
from claude_proxy.events import Request
from claude_proxy.sse import encode_json

Fields = List[Tuple[str, str]]

REDCAP_PREFIX = "secure_chat_ai"
FIRST_MESSAGE = "(The conversation follows.)"
SYSTEM_MESSAGE = "<system-message>\n{text}\n</system-message>"
IMAGE_NOTE = "[an image, which this model cannot be shown]"
PASSED_NUMBERS = ("max_tokens", "temperature", "top_p")


def first_fit(rows: Iterable[Tuple[str, Any]], alias: str) -> Any:
    return next(value for pattern, value in rows if fnmatch.fnmatchcase(alias, pattern))


def redcap_window(alias: str) -> int:
    """The largest prompt in tokens: the model's window less the answer that the module asks for."""
    return first_fit(REDCAP_WINDOWS, alias) - redcap_output_cap(alias)


def redcap_output_cap(alias: str) -> int:
    return first_fit(REDCAP_OUTPUT_CAPS, alias)


def fits_any(patterns: Iterable[str], alias: str) -> bool:
    return any(fnmatch.fnmatchcase(alias, pattern) for pattern in patterns)


def encode_form(fields: Fields) -> bytes:
    return urlencode([(name, whole_characters(value)) for name, value in fields]).encode("ascii")


def envelope(token: str, action: str) -> Fields:
    """REDCap's own fields. The token stands in the body, never in a URL."""
    return [
        ("token", token),
        ("content", "externalModule"),
        ("prefix", REDCAP_PREFIX),
        ("action", action),
        ("format", "json"),
        ("returnFormat", "json"),
    ]


def messages_fields(request: Request, images: bool, notes: List[str]) -> Fields:
    """The fields of `action=messages`. Nothing is sent blank: PHP would read it as 0."""
    fields = [("model", request["model"])]
    system = system_text(request.get("system"))
    fields += [("system", system)] if system else []
    fields.append(("messages", encode_json(plain_messages(request, images, notes))))
    fields += passed_numbers(request)
    stops = [str(stop) for stop in as_list(request.get("stop_sequences")) if stop]
    return fields + [(f"stop[{index}]", stop) for index, stop in enumerate(stops)]


def passed_numbers(request: Request) -> Fields:
    return [(key, str(request[key])) for key in PASSED_NUMBERS if request.get(key) is not None]


def prompt_fields(request: Request, notes: List[str]) -> Fields:
    """The fields of `action=callAI`, which knows one prompt: the conversation in one text."""
    return [
        ("model", request["model"]),
        ("prompt", flat_prompt(request, notes)),
        *(pair for pair in passed_numbers(request) if pair[0] != "top_p"),
    ]


def flat_prompt(request: Request, notes: List[str]) -> str:
    """System, turns and whose turn it is, in the form that the module itself once used."""
    system = system_text(request.get("system"))
    turns = [f"System: {system}"] if system else []
    for message in plain_messages(request, False, notes):
        turns.append(f"{message['role'].capitalize()}: {message['content']}")
    return "\n\n".join([*turns, "Assistant:"])


# --- messages ----------------------------------------------------------------------------------


def whole_characters(text: str) -> str:
    """Half surrogates are no text, and PHP refuses them: they become U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def plain_messages(request: Request, images: bool, notes: List[str]) -> List[Dict[str, Any]]:
    """Turns of user and assistant, strings or (with images) lists; the first is a user's string.

    Messages with the role system stay where they are, as the user's: what somebody typed while the
    model worked comes so. Neighbours of one role are joined; empty ones are left out.
    """
    turns: List[Dict[str, Any]] = []
    for index, message in enumerate(request["messages"]):
        if not isinstance(message, dict):
            raise ProxyError(400, f"messages.{index}: must be an object")
        blocks = content_blocks(message.get("content"), f"messages.{index}.content")
        role = "assistant" if message.get("role") == "assistant" else "user"
        content = turn_content(blocks, message.get("role"), request["model"], images, notes)
        if content:
            add_turn(turns, role, content)
    first = turns[0] if turns else {"role": "", "content": ""}
    if first["role"] != "user" or not isinstance(first["content"], str):
        turns.insert(0, {"role": "user", "content": FIRST_MESSAGE})
    return turns


def add_turn(turns: List[Dict[str, Any]], role: str, content: Any) -> None:
    last = turns[-1] if turns else {}
    strings = isinstance(content, str) and isinstance(last.get("content"), str)
    if strings and last["role"] == role:
        last["content"] += "\n\n" + content
    else:
        turns.append({"role": role, "content": content})


def turn_content(blocks: List[Block], role: Any, alias: str, images: bool, notes: List[str]) -> Any:
    """What a message says: a string, or the parts of one with images; "" for nothing."""
    if role == "assistant":
        parts = [text_part(answer_texts(blocks, notes))]
    else:
        parts = [part for block in blocks for part in redcap_parts(block, alias, images, notes)]
    kept = [part for part in parts if part["type"] != "text" or part["text"].strip()]
    for part in kept:
        if part["type"] == "text":
            part["text"] = whole_characters(part["text"])
    content = joined_parts(kept) if kept else ""
    if role == "system" and isinstance(content, str) and content:
        return SYSTEM_MESSAGE.format(text=content)
    return content


def redcap_parts(block: Block, alias: str, images: bool, notes: List[str]) -> List[Dict[str, Any]]:
    """A user's block as parts. Claude takes an image as it is, others as Chat Completions do."""
    if block.get("type") == "image" and not images:
        notes.append("image=dropped")
        return [text_part(IMAGE_NOTE)]
    if block.get("type") == "image" and alias.startswith("claude"):
        return [{"type": "image", "source": block.get("source")}]
    return user_parts(block, ChatOptions(), notes)


# --- schema mode -------------------------------------------------------------------------------

SCHEMA_PROMPT = (
    "Write this answer as one JSON object: `text` is what you would write outside of calls, `calls`"
    " are the tool calls in order, in place of <tool_call> blocks, each with `name` and with"
    " `arguments`, the input object as a JSON text. Both may be empty."
)
CALLS_SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["text", "calls"],
    "properties": {
        "text": {"type": "string"},
        "calls": {
            "type": "array",
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["name", "arguments"],
                "properties": {"name": {"type": "string"}, "arguments": {"type": "string"}},
            },
        },
    },
}


def schema_fields(request: Request, notes: List[str]) -> Fields:
    """The fields of `callAI` with a schema that holds text and calls."""
    fields = dict(prompt_fields(request, notes))
    prompt = fields.pop("prompt")
    asked = prompt[: -len("Assistant:")] + f"System: {SCHEMA_PROMPT}\n\nAssistant:"
    return [*fields.items(), ("prompt", asked), ("json_schema", encode_json(CALLS_SCHEMA))]


def schema_text(text: str) -> str:
    """The answer in schema mode as the text that it stands for; another text as it is."""
    try:
        answer = json.loads(text)
        calls = [(call["name"], call["arguments"]) for call in answer["calls"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        return text
    told = [str(answer.get("text") or "")]
    told += [
        f"<tool_call>\n{encode_json({'name': name, 'input': arguments})}\n</tool_call>"
        for name, arguments in calls
    ]
    return "\n\n".join(filter(None, told))
