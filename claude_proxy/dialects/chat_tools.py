"""Tools and tool choice of a Messages request as Chat Completions has them. Pure, deterministic."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from typing import Any, Dict, List, Optional, Set, Tuple

from claude_proxy.dialects.chat_blocks import as_list, note_word
from claude_proxy.dialects.chat_options import ChatOptions
from claude_proxy.dialects.chat_schemas import EMPTY_SCHEMA, fit_schema, meets_strict_rules
from claude_proxy.errors import ProxyError
from claude_proxy.events import Request
from claude_proxy.patterns import LazyPattern
from claude_proxy.sse import encode_json

LONGEST_TOOL_NAME = 64
GOOD_TOOL_NAME = LazyPattern(r"[A-Za-z0-9_-]{1,64}")
LETTER_FIRST = LazyPattern(r"[A-Za-z_]")
MOST_INPUT_EXAMPLES = 3
# Of the JSON of tools that are kept; they take some three times as much.
MOST_KEPT_TOOL_BYTES = 2 * 1024 * 1024
LARGEST_KEPT_TOOL = 64 * 1024

MISTRAL_ID = LazyPattern(r"[A-Za-z0-9]{9}")
BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
LONGEST_SHORT_ID = 40

NO_SEARCH = "There is no live web search in this session: answer from what you know, and say so."
MUST_CALL = "Answer with a tool call."
MUST_CALL_ONE = "Answer with a call of the tool {name}."

RANGE = {"type": "array", "items": {"type": "integer"}}
EDITS = ["view", "create", "str_replace", "insert"]
EDITOR: Dict[str, Any] = {
    "type": "object",
    "required": ["command", "path"],
    "properties": {
        "command": {"type": "string", "enum": EDITS},
        "path": {"type": "string"},
        "file_text": {"type": "string"},
        "old_str": {"type": "string"},
        "new_str": {"type": "string"},
        "insert_line": {"type": "integer"},
        "insert_text": {"type": "string"},
        "view_range": RANGE,
    },
}
# The older ones can take back what they did.
UNDOING: Dict[str, Any] = {
    **EDITOR,
    "properties": {
        **EDITOR["properties"],
        "command": {"type": "string", "enum": [*EDITS, "undo_edit"]},
    },
}
# Tools that Anthropic defines and the client runs: the wire has no schema for them.
CLIENT_TOOL_SCHEMAS: Tuple[Tuple[str, Dict[str, Any]], ...] = (
    (
        "bash_",
        {
            "type": "object",
            "properties": {"command": {"type": "string"}, "restart": {"type": "boolean"}},
        },
    ),
    ("text_editor_2024", UNDOING),
    ("text_editor_20250124", UNDOING),
    ("text_editor_", EDITOR),
    (
        "memory_",
        {
            "type": "object",
            "required": ["command"],
            "properties": {
                "command": {"type": "string", "enum": [*EDITS, "delete", "rename"]},
                "path": {"type": "string"},
                "view_range": RANGE,
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
    (
        "computer_",
        {
            "type": "object",
            "required": ["action"],
            "properties": {
                "action": {
                    "type": "string",
                    "enum": [
                        "key", "type", "mouse_move", "left_click", "left_click_drag",
                        "right_click", "middle_click", "double_click", "triple_click",
                        "left_mouse_down", "left_mouse_up", "scroll", "hold_key", "wait",
                        "screenshot", "cursor_position", "zoom",
                    ],
                },
                "coordinate": RANGE,
                "start_coordinate": RANGE,
                "text": {"type": "string"},
                "duration": {"type": "number"},
                "scroll_direction": {"type": "string", "enum": ["up", "down", "left", "right"]},
                "scroll_amount": {"type": "integer"},
                "region": RANGE,
            },
        },
    ),
)  # fmt: skip
# These begin like client tools and are sets of tools without any schema.
TOOLSETS = ("computer_toolset_", "browser_toolset_")


class ChatTool(dict):
    """A tool as Chat Completions has it, only to be read, and its JSON, which is sent often."""

    __slots__ = ("json",)

    def __init__(self, function: Dict[str, Any]) -> None:
        self.json = encode_json({"type": "function", "function": function})
        super().__init__(json.loads(self.json))  # nothing of the request's own


def chat_tools(
    request: Request, notes: List[str], options: ChatOptions = ChatOptions()
) -> List[ChatTool]:
    """The tools as functions; those that only Anthropic's servers could run are left out."""
    tools = []
    for index, tool in enumerate(available_tools(request)):
        if not isinstance(tool, dict):
            raise ProxyError(400, f"tools.{index}: must be an object")
        made = KEPT_TOOLS.take(tool, options)
        if made is None:
            notes.append(f"{note_word(tool.get('type'))}=dropped")
        else:
            tools.append(made)
    return tools


def chat_tool(tool: Dict[str, Any], options: ChatOptions) -> Optional[ChatTool]:
    """A tool as a function; None for one that no client runs."""
    schema = tool_schema(tool)
    return None if schema is None else ChatTool(chat_function(tool, schema, options))


def chat_function(
    tool: Dict[str, Any], schema: Dict[str, Any], options: ChatOptions
) -> Dict[str, Any]:
    function: Dict[str, Any] = {"name": chat_tool_name(str(tool.get("name", "")), options)}
    description = cut_text(tool_description(tool), options.longest_description)
    if description:
        function["description"] = description
    function["parameters"] = fit_schema(schema, options.schema_level)
    strict = options.strict and tool.get("strict") is True
    if strict and meets_strict_rules(function["parameters"]):
        function["strict"] = True
    return function


class KeptTools:
    """`chat_tool`, made once: the same tools come with every request of a conversation.

    They are known again by all that they hold. The oldest goes first when there is too much.
    """

    def __init__(self, most_bytes: int = MOST_KEPT_TOOL_BYTES) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._kept: Dict[Tuple[Any, ...], ChatTool] = {}
        self._lock = threading.Lock()

    def take(self, tool: Dict[str, Any], options: ChatOptions) -> Optional[ChatTool]:
        """The tool as `chat_tool` makes it."""
        key = tool_key(tool, options)
        made = self._kept.get(key)
        if made is None:
            made = chat_tool(tool, options)
            if made is not None and len(made.json) <= LARGEST_KEPT_TOOL:
                self._keep(key, made)
        return made

    def _keep(self, key: Tuple[Any, ...], made: ChatTool) -> None:
        with self._lock:
            if key in self._kept:
                return
            self._kept[key] = made
            self._bytes += len(made.json)
            while self._bytes > self._most_bytes:
                oldest = self._kept.pop(next(iter(self._kept)))
                self._bytes -= len(oldest.json)


def tool_key(tool: Dict[str, Any], options: ChatOptions) -> Tuple[Any, ...]:
    """All that a tool holds, and the options that have a say, flat: equal for the same JSON only.

    Equal dicts are not enough for that: they may differ in order, and 1 is True and 1.0.
    """
    form = (options.tool_name, options.longest_description, options.schema_level, options.strict)
    key: List[Any] = [form]
    pending: List[Any] = [tool]
    for holder in pending:
        key.append(len(holder))
        if type(holder) is not list:
            key += holder
            holder = holder.values()
        for value in holder:
            kind = type(value)
            if kind is str:
                key.append(value)
                continue
            key.append(kind)
            if kind is dict or kind is list:
                pending.append(value)
            else:
                key.append(repr(value))
    return tuple(key)


KEPT_TOOLS = KeptTools()


def tool_description(tool: Dict[str, Any]) -> str:
    """The description with the examples of input, for which Chat has no place; "" for none."""
    own = tool["description"] if isinstance(tool.get("description"), str) else ""
    shown = as_list(tool.get("input_examples"))[:MOST_INPUT_EXAMPLES]
    examples = (f"Example input: {encode_json(example)}" for example in shown)
    return "\n".join(filter(None, [own, display_size(tool), *examples]))


def cut_text(text: str, longest: int) -> str:
    """The text, no longer than that; 0: as long as it is."""
    return text if not longest or len(text) <= longest else text[: longest - 3] + "..."


def display_size(tool: Dict[str, Any]) -> str:
    """What a computer tool says of its display."""
    width, height = tool.get("display_width_px"), tool.get("display_height_px")
    return f"The display has {width} x {height} pixels." if width and height else ""


def tool_schema(tool: Dict[str, Any]) -> Optional[Dict[str, Any]]:
    """The JSON schema of a tool's input; None for a tool that no client runs."""
    schema = tool.get("input_schema")
    if isinstance(schema, dict):
        return {**EMPTY_SCHEMA, **schema}
    kind = tool.get("type")
    if kind in (None, "custom"):
        return EMPTY_SCHEMA
    if str(kind).startswith(TOOLSETS):
        return None
    return next((s for prefix, s in CLIENT_TOOL_SCHEMAS if str(kind).startswith(prefix)), None)


# --- which tools -------------------------------------------------------------------------------


def available_tools(request: Request) -> List[Any]:
    """The tools that the model may know of at the end of the conversation.

    System messages may add tools and take them away. A deferred one counts at once: nobody here
    could search for it.
    """
    tools, told = as_list(request.get("tools")), history_blocks(request, "system")
    if not told:
        return tools
    hidden: Set[str] = set()
    for kind, name, definition in tool_changes(told):
        hidden.discard(name) if kind == "tool_addition" else hidden.add(name)
        tools = [*tools, definition] if definition else tools
    if not hidden:
        return tools
    return [t for t in tools if not isinstance(t, dict) or str(t.get("name")) not in hidden]


def tool_kind(tool: Any) -> Any:
    return tool.get("type") if isinstance(tool, dict) else None


def history_blocks(request: Request, role: str) -> List[Dict[str, Any]]:
    """The blocks of the messages of a role."""
    blocks: List[Any] = []
    for message in as_list(request.get("messages")):
        if isinstance(message, dict) and message.get("role") == role:
            blocks += as_list(message.get("content"))
    return [block for block in blocks if isinstance(block, dict)]


def tool_changes(
    blocks: List[Dict[str, Any]],
) -> Iterator[Tuple[str, str, Optional[Dict[str, Any]]]]:
    """(kind, name, the definition of a new tool) of each change in blocks of system messages."""
    for block in blocks:
        if block.get("type") in ("tool_addition", "tool_removal"):
            tool = block.get("tool")
            tool = tool if isinstance(tool, dict) else {}
            defined = tool.get("definition")
            defined = defined if isinstance(defined, dict) else None
            name = (defined or {}).get("name") or tool.get("name") or tool.get("tool_name")
            yield block["type"], str(name), defined


# --- choice ------------------------------------------------------------------------------------


def apply_tool_choice(
    request: Request, chat: Dict[str, Any], options: ChatOptions, notes: List[str]
) -> str:
    """Put the choice into a body that has tools; returns what the prompt has to say of it."""
    choice = request.get("tool_choice")
    choice = choice if isinstance(choice, dict) else {}
    if choice.get("disable_parallel_tool_use") is True:
        chat["parallel_tool_calls"] = False
    kind, name = choice.get("type"), chat_tool_name(str(choice.get("name", "")), options)
    if kind == "none" and not options.obeys_none:
        chat.pop("tools")
        chat.pop("parallel_tool_calls", None)
    elif kind == "none":
        chat["tool_choice"] = "none"
    elif kind == "any":
        return demand_call(chat, MUST_CALL, options, notes)
    elif kind == "tool":
        return demand_tool(chat, name, options, notes)
    return ""


def demand_tool(chat: Dict[str, Any], name: str, options: ChatOptions, notes: List[str]) -> str:
    """Demand one tool; where that cannot be said, offer it alone and demand some call."""
    only = [tool for tool in chat["tools"] if tool["function"]["name"] == name]
    if only and options.named_choice and options.any_word:
        chat["tool_choice"] = {"type": "function", "function": {"name": name}}
    elif only:
        chat["tools"] = only
        return demand_call(chat, MUST_CALL_ONE.format(name=name), options, notes)
    return ""


def demand_call(chat: Dict[str, Any], words: str, options: ChatOptions, notes: List[str]) -> str:
    if options.any_word:
        chat["tool_choice"] = options.any_word
        return ""
    notes.append("tool_choice=told")
    return words


def wants_one_call(request: Request) -> bool:
    choice = request.get("tool_choice")
    return isinstance(choice, dict) and choice.get("disable_parallel_tool_use") is True


def search_note(request: Request, chat: Dict[str, Any]) -> str:
    """What the model is told where the client asked for a web search and nothing else."""
    if chat.get("tools") or not request.get("tools"):
        return ""
    choice = request.get("tool_choice")
    wanted = choice.get("name") if isinstance(choice, dict) else None
    kinds = [str(tool_kind(tool)) for tool in as_list(request.get("tools"))]
    only = bool(kinds) and all(kind.startswith("web_search_") for kind in kinds)
    return NO_SEARCH if only and wanted in (None, "web_search") else ""


# --- names and ids -----------------------------------------------------------------------------


def chat_tool_name(name: str, options: ChatOptions = ChatOptions()) -> str:
    """The name within Chat's rules (64 of [A-Za-z0-9_-]); the same one for the same name always."""
    if name.isidentifier() and name.isascii() and len(name) <= LONGEST_TOOL_NAME:
        return name  # most are as all rules want them
    letter = options.tool_name != "letter" or LETTER_FIRST.match(name)
    if letter and GOOD_TOOL_NAME.fullmatch(name):
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    clean = ("" if letter else "_") + re.sub(r"[^A-Za-z0-9_-]", "_", name)
    return clean[: LONGEST_TOOL_NAME - 9] + "_" + digest


def chat_tool_names(request: Request, options: ChatOptions = ChatOptions()) -> Dict[str, str]:
    """Upstream's name -> client's own, for the tools whose name had to change."""
    changed = {}
    for tool in available_tools(request):
        if isinstance(tool, dict):
            own = str(tool.get("name", ""))
            name = chat_tool_name(own, options)
            if name != own:
                changed[name] = own
    return changed


def chat_call_id(call_id: str, options: ChatOptions) -> str:
    """A call's id in the form that this provider takes; calls and results are named alike."""
    if options.tool_ids == "mistral" and not MISTRAL_ID.fullmatch(call_id):
        return hashed_id(call_id, 9)
    if options.tool_ids == "short" and len(call_id) > LONGEST_SHORT_ID:
        return hashed_id(call_id, LONGEST_SHORT_ID)
    return call_id


def hashed_id(call_id: str, length: int) -> str:
    """Letters and digits from a hash of the id."""
    digest = hashlib.sha256(call_id.encode("utf-8", "surrogatepass")).digest()
    number, letters = int.from_bytes(digest, "big"), []
    for _ in range(length):
        number, digit = divmod(number, len(BASE62))
        letters.append(BASE62[digit])
    return "".join(letters)


def only_tool_name(request: Request) -> str:
    """The tool's name if only one is offered."""
    tools = as_list(request.get("tools"))
    return str(tools[0].get("name", "")) if len(tools) == 1 and isinstance(tools[0], dict) else ""


def used_call_ids(request: Request) -> Set[str]:
    """The ids of the calls in the conversation so far."""
    blocks = history_blocks(request, "assistant")
    return {str(block.get("id")) for block in blocks if block.get("type") == "tool_use"}
