"""The top-level members of a Messages request as Chat Completions has them. Pure.

Only what the client sent is sent: a made-up `temperature: 1` breaks models and caches. Members that
have no counterpart and change no answer (metadata, cache_control, context_management, betas, ...)
are left out quietly; of the others `NOTED_MEMBERS` says who may miss them.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Callable, Dict, List, Tuple

from claude_proxy.dialects.chat_blocks import as_list
from claude_proxy.dialects.chat_options import ChatOptions
from claude_proxy.dialects.chat_schemas import meets_strict_rules
from claude_proxy.dialects.chat_thinking import as_dict, thinking_members
from claude_proxy.dialects.stop_watch import stop_strings
from claude_proxy.errors import ProxyError
from claude_proxy.events import Request
from claude_proxy.sse import encode_json

FORMAT_WORDS = (
    "Answer with one JSON object that fits this JSON schema, and with nothing else:\n{schema}"
)

# Member -> whether this value of it is one whose loss a user may notice.
NOTED_MEMBERS: Dict[str, Callable[[Any], bool]] = {
    "mcp_servers": bool,
    "container": lambda value: not isinstance(value, dict) or bool(value.get("skills")),
    "inference_geo": bool,
    "speed": lambda value: value == "fast",
}


def chat_members(
    request: Request, options: ChatOptions, with_tools: bool, notes: List[str]
) -> Dict[str, Any]:
    """Limits, sampling, stops, thinking, format, and what this provider wants of everybody."""
    if "thread" in request:
        refuse_thread(request["thread"])
    found = limit_members(request, options, notes)
    if "temperature" in request or "top_p" in request or "top_k" in request:
        found.update(sampling_members(request, options, notes))
    if "stop_sequences" in request:
        found.update(stop_members(request, options))
    effort_of_tools = with_tools and options.effort_with_tools != "any"
    if "thinking" in request or "output_config" in request or effort_of_tools:
        allowed = {**request, "max_tokens": found.get(options.max_tokens_key)}
        found.update(thinking_members(allowed, options, with_tools, notes))
    if "output_config" in request or "output_format" in request:
        found.update(format_members(request, options, notes))
    if options.identity:
        found.update(identity_members(request, options))
        found.update(tier_members(request, options))
    if options.extra:
        found.update({key: list(v) if v == () else v for key, v in options.extra})
    note_lost(request, notes)
    return found


def refuse_thread(thread: Any) -> None:
    thread = as_dict(thread)
    if thread.get("type") == "continue" or thread.get("continue"):
        raise ProxyError(400, "thread: this proxy keeps no conversations to continue")


def note_lost(request: Request, notes: List[str]) -> None:
    if not NOTED_MEMBERS.keys().isdisjoint(request):
        named = (name for name in NOTED_MEMBERS if name in request)
        notes += [f"{name}=dropped" for name in named if lost(name, request[name])]
    if "output_config" in request and as_dict(request["output_config"]).get("task_budget"):
        notes.append("task_budget=dropped")


def lost(name: str, value: Any) -> bool:
    return bool(value) and NOTED_MEMBERS[name](value)


def limit_members(request: Request, options: ChatOptions, notes: List[str]) -> Dict[str, Any]:
    """`max_tokens` as this provider names it, within what the model can write."""
    wanted = request.get("max_tokens")
    if not wanted:
        return {}
    allowed = wanted
    for limit in (options.max_output, options.room):
        if 0 < limit < allowed:
            allowed = limit
    if allowed < wanted:
        notes.append(f"max_tokens={wanted}>{allowed}")
    return {options.max_tokens_key: allowed}


def sampling_members(request: Request, options: ChatOptions, notes: List[str]) -> Dict[str, Any]:
    names = ("temperature", "top_p", "top_k") if options.top_k else ("temperature", "top_p")
    if request.get("top_k") is not None and not options.top_k:
        notes.append("top_k=dropped")
    return {name: request[name] for name in names if request.get(name) is not None}


def stop_sequences(request: Request) -> List[str]:
    """The sequences that count: texts that are not empty."""
    if "stop_sequences" not in request:
        return []
    return stop_strings(as_list(request.get("stop_sequences")))


def stop_members(request: Request, options: ChatOptions) -> Dict[str, Any]:
    """As many stop sequences as are taken; the proxy watches for all of them."""
    stops = stop_sequences(request)[: options.most_stops]
    return {"stop": stops} if stops else {}


# --- the answer's format -----------------------------------------------------------------------


def wanted_schema(request: Request) -> Any:
    """The JSON schema that the answer has to fit; None for any answer."""
    output = as_dict(request.get("output_config"))
    wanted = as_dict(output.get("format") or request.get("output_format"))
    return (wanted.get("schema") or {}) if wanted.get("type") == "json_schema" else None


def format_members(request: Request, options: ChatOptions, notes: List[str]) -> Dict[str, Any]:
    schema = wanted_schema(request)
    if schema is None:
        return {}
    if options.answer_format != "json_schema":
        notes.append("format=told")
    if options.answer_format == "text":
        return {}
    if options.answer_format == "json_object":
        return {"response_format": {"type": "json_object"}}
    named: Dict[str, Any] = {"name": "response", "schema": schema}
    if options.strict and meets_strict_rules(schema):
        named["strict"] = True
    return {"response_format": {"type": "json_schema", "json_schema": named}}


def format_words(request: Request, options: ChatOptions) -> str:
    """The schema in words, where it cannot be said otherwise."""
    schema = None if options.answer_format == "json_schema" else wanted_schema(request)
    return "" if schema is None else FORMAT_WORDS.format(schema=encode_json(schema))


# --- who asks ----------------------------------------------------------------------------------


def identity_members(request: Request, options: ChatOptions) -> Dict[str, Any]:
    """Who asks, as hashes: providers keep caches, and find misuse, by it.

    Claude Code (2.1.197) puts JSON with a device and a session into `metadata.user_id`.
    """
    user = as_dict(request.get("metadata")).get("user_id")
    if not options.identity or not isinstance(user, str) or not user:
        return {}
    device, session = user_parts_of(user)
    names = IDENTITY_NAMES[options.identity]
    values = {"device": device, "session": session or device}
    return {name: text_hash(values[part]) for name, part in names}


def tier_members(request: Request, options: ChatOptions) -> Dict[str, Any]:
    standard = options.identity == "openai" and request.get("service_tier") == "standard_only"
    return {"service_tier": "default"} if standard else {}


# ChatOptions.identity -> (member, what is hashed for it).
IDENTITY_NAMES: Dict[str, Tuple[Tuple[str, str], ...]] = {
    "openai": (("safety_identifier", "device"), ("prompt_cache_key", "session")),
    "user": (("user", "session"),),
}


def user_parts_of(user: str) -> Tuple[str, str]:
    """(who, which session) of a user id; both the whole of it where it is no JSON."""
    try:
        found = as_dict(json.loads(user))
    except (ValueError, RecursionError):
        found = {}
    return str(found.get("device_id") or user), str(found.get("session_id") or user)


def text_hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
