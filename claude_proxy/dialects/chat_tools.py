"""Tools and tool choice of a Messages request as Chat Completions has them. Pure, deterministic."""

from __future__ import annotations

import hashlib
import re
from typing import Any, Dict, List, Optional, Set, Tuple

from claude_proxy.dialects.chat_blocks import as_list, note_word
from claude_proxy.errors import ProxyError
from claude_proxy.events import Request

LONGEST_TOOL_NAME = 64
GOOD_TOOL_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
EMPTY_SCHEMA = {"type": "object", "properties": {}}

# Tools that Anthropic defines and the client runs: the wire has no schema for them.
CLIENT_TOOL_SCHEMAS: Tuple[Tuple[str, Dict[str, Any]], ...] = (
    (
        "bash_",
        {
            "type": "object",
            "properties": {"command": {"type": "string"}, "restart": {"type": "boolean"}},
        },
    ),
    (
        "text_editor_",
        {
            "type": "object",
            "required": ["command", "path"],
            "properties": {
                "command": {"type": "string", "enum": ["view", "create", "str_replace", "insert"]},
                "path": {"type": "string"},
                "file_text": {"type": "string"},
                "old_str": {"type": "string"},
                "new_str": {"type": "string"},
                "insert_line": {"type": "integer"},
                "insert_text": {"type": "string"},
                "view_range": {"type": "array", "items": {"type": "integer"}},
            },
        },
    ),
    (
        "memory_",
        {
            "type": "object",
            "required": ["command"],
            "properties": {
                "command": {
                    "type": "string",
                    "enum": ["view", "create", "str_replace", "insert", "delete", "rename"],
                },
                "path": {"type": "string"},
                "file_text": {"type": "string"},
                "old_str": {"type": "string"},
                "new_str": {"type": "string"},
                "insert_line": {"type": "integer"},
                "insert_text": {"type": "string"},
                "old_path": {"type": "string"},
                "new_path": {"type": "string"},
            },
        },
    ),
)


def chat_tools(request: Request, notes: List[str]) -> List[Dict[str, Any]]:
    """The tools as functions; those that only Anthropic's servers could run are left out."""
    tools = []
    for index, tool in enumerate(as_list(request.get("tools"))):
        if not isinstance(tool, dict):
            raise ProxyError(400, f"tools.{index}: must be an object")
        schema = tool_schema(tool)
        if schema is None:
            notes.append(f"{note_word(tool.get('type'))}=dropped")
            continue
        function = {"name": chat_tool_name(str(tool.get("name", "")))}
        if isinstance(tool.get("description"), str):
            function["description"] = tool["description"]
        tools.append({"type": "function", "function": {**function, "parameters": schema}})
    return tools


def tool_schema(tool: Dict[str, Any]) -> Optional[Dict[str, Any]]:
    """The JSON schema of a tool's input; None for a tool that no client runs."""
    schema = tool.get("input_schema")
    if isinstance(schema, dict):
        return {**EMPTY_SCHEMA, **schema}
    kind = tool.get("type")
    if kind in (None, "custom"):
        return EMPTY_SCHEMA
    return next((s for prefix, s in CLIENT_TOOL_SCHEMAS if str(kind).startswith(prefix)), None)


def chat_tool_choice(request: Request) -> Dict[str, Any]:
    choice = request.get("tool_choice")
    choice = choice if isinstance(choice, dict) else {}
    found: Dict[str, Any] = {}
    if choice.get("type") == "tool":
        name = chat_tool_name(str(choice.get("name", "")))
        if name in {t["function"]["name"] for t in chat_tools(request, [])}:
            found["tool_choice"] = {"type": "function", "function": {"name": name}}
    elif choice.get("type") in ("any", "none"):
        found["tool_choice"] = {"any": "required", "none": "none"}[choice["type"]]
    if choice.get("disable_parallel_tool_use") is True:
        found["parallel_tool_calls"] = False
    return found


def chat_tool_name(name: str) -> str:
    """The name within Chat's rules (64 of [A-Za-z0-9_-]); the same one for the same name always."""
    if GOOD_TOOL_NAME.fullmatch(name):
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)[: LONGEST_TOOL_NAME - 9] + "_" + digest


def only_tool_name(request: Request) -> str:
    """The tool's name if only one is offered."""
    tools = as_list(request.get("tools"))
    return str(tools[0].get("name", "")) if len(tools) == 1 and isinstance(tools[0], dict) else ""


def used_call_ids(request: Request) -> Set[str]:
    """The ids of the calls in the conversation so far."""
    messages = [m for m in as_list(request.get("messages")) if isinstance(m, dict)]
    blocks = (block for message in messages for block in as_list(message.get("content")))
    calls = (b for b in blocks if isinstance(b, dict) and b.get("type") == "tool_use")
    return {str(call.get("id")) for call in calls}


def chat_tool_names(request: Request) -> Dict[str, str]:
    """Upstream's name -> client's own, for the tools whose name had to change."""
    names: Set[str] = {
        str(t.get("name", "")) for t in as_list(request.get("tools")) if isinstance(t, dict)
    }
    return {
        chat_tool_name(name): name for name in sorted(names) if not GOOD_TOOL_NAME.fullmatch(name)
    }
