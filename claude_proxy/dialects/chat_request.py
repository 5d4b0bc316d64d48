"""A Messages request -> a Chat Completions request. Pure, deterministic, prefix-stable.

Chat's grammar is stricter than Messages': after an assistant message with tool calls come their
tool messages, one a call, at once and in order, each with a string; everything else that stood
beside the results follows as one user message. What a tool message cannot hold (images, files) moves
there too, with a note in its place. What has no counterpart is named in `notes` if a user could
miss it; nothing is ever refused for being new.

What a message becomes depends on it and on those before it, so the same history always gives the
same bytes, and upstream prompt caches hit.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Set, Tuple

from claude_proxy.errors import ProxyError
from claude_proxy.events import Request
from claude_proxy.sse import encode_json

ATTRIBUTION = "x-anthropic-billing-header:"
LONGEST_TOOL_NAME = 64
GOOD_TOOL_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
MOST_STOPS = 4
INTERRUPTED = "[no result: the call was interrupted]"

ChatMessage = Dict[str, Any]
Block = Dict[str, Any]


class ChatOptions(NamedTuple):
    """What one provider and model want otherwise than most."""

    max_tokens_key: str = "max_tokens"
    drop: frozenset = frozenset()  # top-level keys that are refused
    top_k: bool = False  # top_k is understood
    files: bool = False  # PDF documents are taken as file parts
    reasoning_effort: bool = False  # output_config.effort is passed on


# Top-level members without counterpart whose loss a user may notice.
NOTED_MEMBERS = ("mcp_servers", "container", "inference_geo")


def messages_to_chat(
    request: Request, options: ChatOptions = ChatOptions(), notes: Optional[List[str]] = None
) -> Dict[str, Any]:
    """The Chat Completions body, streaming with usage. `request["model"]` is the upstream's name.

    `notes` receives a word for each thing that could not be carried. ProxyError(400) names the
    place of a value that has the wrong JSON type.
    """
    notes = notes if notes is not None else []
    chat: Dict[str, Any] = {"model": request.get("model", "")}
    chat["messages"] = chat_messages(request, options, notes)
    tools = chat_tools(request, notes)
    if tools:
        chat["tools"] = tools
        chat.update(chat_tool_choice(request))
    chat.update(chat_parameters(request, options, notes))
    chat["stream"] = True
    chat["stream_options"] = {"include_usage": True}
    notes += [f"{name}=dropped" for name in NOTED_MEMBERS if request.get(name)]
    dropped = [key for key in options.drop if key in chat]
    notes += [f"{key}=dropped" for key in sorted(dropped)]
    return {key: value for key, value in chat.items() if key not in options.drop}


def chat_parameters(request: Request, options: ChatOptions, notes: List[str]) -> Dict[str, Any]:
    """Limits, sampling, stops, format: only what the client sent."""
    found: Dict[str, Any] = {}
    if request.get("max_tokens"):
        found[options.max_tokens_key] = request["max_tokens"]
    for key in ("temperature", "top_p", *(("top_k",) if options.top_k else ())):
        if request.get(key) is not None:
            found[key] = request[key]
    if request.get("top_k") is not None and not options.top_k:
        notes.append("top_k=dropped")
    stops = [s for s in as_list(request.get("stop_sequences")) if isinstance(s, str) and s]
    if stops:
        found["stop"] = stops[:MOST_STOPS]
        notes += ["stop_sequences=shortened"] if len(stops) > MOST_STOPS else []
    found.update(chat_output(request, options))
    return found


def chat_output(request: Request, options: ChatOptions) -> Dict[str, Any]:
    """`output_config`: the answer's format, and the effort where it is understood."""
    output = request.get("output_config")
    output = output if isinstance(output, dict) else {}
    found: Dict[str, Any] = {}
    wanted = output.get("format") or request.get("output_format")
    if isinstance(wanted, dict) and wanted.get("type") == "json_schema":
        schema = {"name": "response", "schema": wanted.get("schema") or {}}
        found["response_format"] = {"type": "json_schema", "json_schema": schema}
    if options.reasoning_effort and isinstance(output.get("effort"), str):
        found["reasoning_effort"] = output["effort"]
    return found


def as_list(value: Any) -> List[Any]:
    return value if isinstance(value, list) else []


# --- messages ----------------------------------------------------------------------------------


def chat_messages(request: Request, options: ChatOptions, notes: List[str]) -> List[ChatMessage]:
    history = ChatHistory(options, notes)
    system = system_text(request.get("system"))
    if system:
        history.messages.append({"role": "system", "content": system})
    for index, message in enumerate(request["messages"]):
        place = f"messages.{index}"
        if not isinstance(message, dict):
            raise ProxyError(400, f"{place}: must be an object")
        blocks = content_blocks(message.get("content"), f"{place}.content")
        TURNS.get(str(message.get("role")), ChatHistory.user)(history, blocks)
    history.end_calls()
    return history.messages


def system_text(system: Any) -> str:
    """The system prompt as one text, without the attribution block, which defeats prompt caches."""
    blocks = content_blocks(system, "system")
    texts = [str(b.get("text") or "") for b in blocks if b.get("type", "text") == "text"]
    return "\n\n".join(t for t in texts if t.strip() and not t.startswith(ATTRIBUTION))


def content_blocks(content: Any, place: str) -> List[Block]:
    """Content as a list of blocks; a string is one text block."""
    if content is None:
        return []
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if isinstance(content, dict):
        return [content]
    if not isinstance(content, list):
        raise ProxyError(400, f"{place}: must be a string or a list of blocks")
    for index, block in enumerate(content):
        if not isinstance(block, (dict, str)):
            raise ProxyError(400, f"{place}.{index}: must be an object")
    return [b if isinstance(b, dict) else {"type": "text", "text": b} for b in content]


class ChatHistory:
    """The messages so far, and the calls whose results have not come."""

    def __init__(self, options: ChatOptions, notes: List[str]) -> None:
        self.messages: List[ChatMessage] = []
        self._options = options
        self._notes = notes
        self._open_calls: List[str] = []

    def user(self, blocks: List[Block]) -> None:
        """Results first, in the order of their calls; then everything else as one message."""
        results: Dict[str, Block] = {}
        for block in blocks:
            if block.get("type") == "tool_result":
                results[str(block.get("tool_use_id", ""))] = block
        parts = self._tool_messages(results)
        for block in blocks:
            if block.get("type") == "tool_result":
                parts += self._orphan(block, results)
            else:
                parts += user_parts(block, self._options, self._notes)
        content = joined_parts(parts)
        if content:
            self.messages.append({"role": "user", "content": content})
        elif not self.messages or self.messages[-1]["role"] == "system":
            self.messages.append({"role": "user", "content": "(no content)"})

    def assistant(self, blocks: List[Block]) -> None:
        self.end_calls()
        texts, calls = [], []
        for block in blocks:
            if block.get("type") == "tool_use":
                calls.append(self._call(block, calls))
            else:
                texts += [t for t in [assistant_text(block, self._notes)] if t]
        message: ChatMessage = {"role": "assistant"}
        if texts or not calls:
            message["content"] = "\n\n".join(texts)
        if calls:
            message["tool_calls"] = calls
            self._open_calls = [call["id"] for call in calls]
        if texts or calls:
            self.messages.append(message)

    def system(self, blocks: List[Block]) -> None:
        """A system message in mid-conversation: told in place, for it may hold the user's words.

        Behind tool results it joins the last of them: a user message there makes some models'
        templates forget the reasoning of the turn.
        """
        text = "\n\n".join(t for t in (assistant_text(b, self._notes) for b in blocks) if t)
        if not text:
            return
        reminder = f"<system-reminder>\n{text}\n</system-reminder>"
        last = self.messages[-1] if self.messages and not self._open_calls else None
        if last is None or last["role"] not in ("user", "tool"):
            self.user([{"type": "text", "text": reminder}])
        elif isinstance(last["content"], list):
            last["content"].append({"type": "text", "text": reminder})
        else:
            last["content"] = f"{last['content']}\n\n{reminder}"

    def end_calls(self) -> None:
        """Calls that nobody answered get a result that says so: Chat demands one for each."""
        for call_id in self._open_calls:
            self._notes.append("tool_result=missing")
            self.messages.append({"role": "tool", "tool_call_id": call_id, "content": INTERRUPTED})
        self._open_calls = []

    def _call(self, block: Block, calls: List[Dict[str, Any]]) -> Dict[str, Any]:
        call_id = str(block.get("id", ""))
        if any(call["id"] == call_id for call in calls):
            call_id = f"{call_id}_{len(calls) + 1}"
        function = {
            "name": chat_tool_name(str(block.get("name", ""))),
            "arguments": encode_json(block.get("input") or {}),
        }
        return {"id": call_id, "type": "function", "function": function}

    def _tool_messages(self, results: Dict[str, Block]) -> List[Dict[str, Any]]:
        """Answer the open calls; returns the parts that a tool message cannot hold.

        A user message without any result leaves them unanswered for good.
        """
        moved: List[Dict[str, Any]] = []
        for call_id in self._open_calls:
            block = results.pop(call_id, None)
            if block is None:
                self._notes.append("tool_result=missing")
            text, parts = tool_result_content(block, self._options, self._notes) if block else (INTERRUPTED, [])
            self.messages.append({"role": "tool", "tool_call_id": call_id, "content": text})
            moved += parts
        self._open_calls = []
        return moved

    def _orphan(self, block: Block, results: Dict[str, Block]) -> List[Dict[str, Any]]:
        """A result whose call is not in the history any more: told as text."""
        call_id = str(block.get("tool_use_id", ""))
        if results.pop(call_id, None) is None:
            return []
        self._notes.append("tool_result=orphan")
        text, parts = tool_result_content(block, self._options, self._notes)
        return [text_part(f"[result of an earlier tool call {call_id}]\n{text}"), *parts]


# An unknown role is somebody who speaks to the model: a user.
TURNS: Dict[str, Callable[[ChatHistory, List[Block]], None]] = {
    "user": ChatHistory.user,
    "assistant": ChatHistory.assistant,
    "system": ChatHistory.system,
    "developer": ChatHistory.system,
}


# --- blocks ------------------------------------------------------------------------------------


def text_part(text: str) -> Dict[str, Any]:
    return {"type": "text", "text": text}


def joined_parts(parts: List[Dict[str, Any]]) -> Any:
    """A string if there is only text: many models and servers take nothing else."""
    full = [p for p in parts if p["type"] != "text" or p["text"].strip()] or parts[:1]
    if all(part["type"] == "text" for part in full):
        return "\n\n".join(part["text"] for part in full)
    return full


def user_parts(block: Block, options: ChatOptions, notes: List[str]) -> List[Dict[str, Any]]:
    """A block of a user message as parts."""
    handler = PART_MAKERS.get(str(block.get("type")), other_parts)
    return handler(block, options, notes)


def text_parts(block: Block, options: ChatOptions, notes: List[str]) -> List[Dict[str, Any]]:
    return [text_part(str(block.get("text") or ""))] if block.get("text") else []


def image_parts(block: Block, options: ChatOptions, notes: List[str]) -> List[Dict[str, Any]]:
    source = block.get("source")
    source = source if isinstance(source, dict) else {}
    if isinstance(source.get("data"), str):
        kind = str(source.get("media_type") or "image/png").replace("image/jpg", "image/jpeg")
        url = f"data:{kind};base64,{source['data']}"
    elif isinstance(source.get("url"), str):
        url = source["url"]
    else:
        notes.append("image=unavailable")
        return [text_part(f"[image {source.get('file_id', '')} is not available here]")]
    return [{"type": "image_url", "image_url": {"url": url}}]


def document_parts(block: Block, options: ChatOptions, notes: List[str]) -> List[Dict[str, Any]]:
    """A document as text where it is text, as a file where files are taken, else as a note."""
    source = block.get("source")
    source = source if isinstance(source, dict) else {}
    title = str(block.get("title") or "document")
    kind, data = source.get("type"), source.get("data")
    if kind == "text":
        return [text_part(f'<document title="{title}">\n{data or ""}\n</document>')]
    if kind == "content":
        inner = content_blocks(source.get("content"), "document")
        parts = [p for b in inner for p in user_parts(b, options, notes)]
        return [text_part(f'<document title="{title}">'), *parts, text_part("</document>")]
    if kind == "base64" and options.files and isinstance(data, str):
        url = f"data:{source.get('media_type') or 'application/pdf'};base64,{data}"
        return [{"type": "file", "file": {"filename": f"{title}.pdf", "file_data": url}}]
    notes.append("document=unreadable")
    size = f", {len(data) * 3 // 4} bytes" if isinstance(data, str) else ""
    where = f" at {source['url']}" if isinstance(source.get("url"), str) else ""
    return [text_part(f'[document "{title}"{where}{size}: this model cannot read it]')]


def search_result_parts(block: Block, options: ChatOptions, notes: List[str]) -> List[Dict[str, Any]]:
    inner = content_blocks(block.get("content"), "search_result")
    text = "\n".join(str(b.get("text") or "") for b in inner)
    head = f'<search_result source="{block.get("source", "")}" title="{block.get("title", "")}">'
    return [text_part(f"{head}\n{text}\n</search_result>")]


def silent_parts(block: Block, options: ChatOptions, notes: List[str]) -> List[Dict[str, Any]]:
    return []


def other_parts(block: Block, options: ChatOptions, notes: List[str]) -> List[Dict[str, Any]]:
    """A block that we do not know: the text in it, if there is one; else a note."""
    text = block_text(block)
    if not text:
        notes.append(f"{str(block.get('type'))[:40]}=dropped")
    return [text_part(text)] if text else []


PartMaker = Callable[[Block, ChatOptions, List[str]], List[Dict[str, Any]]]

PART_MAKERS: Dict[str, PartMaker] = {
    "text": text_parts,
    "image": image_parts,
    "document": document_parts,
    "search_result": search_result_parts,
    "thinking": silent_parts,
    "redacted_thinking": silent_parts,
}


def block_text(block: Any) -> str:
    """The readable text anywhere in a block: its `text`, or that of its `content`."""
    if isinstance(block, str):
        return block
    if isinstance(block, list):
        return "\n".join(t for t in map(block_text, block) if t)
    if not isinstance(block, dict):
        return ""
    hit = [str(block[k]) for k in ("title", "url") if isinstance(block.get(k), str)]
    if isinstance(block.get("text"), str):
        return block["text"]
    inner = block_text(block.get("content"))
    own = [str(block[k]) for k in ("stdout", "stderr", "error_code", "tool_name")
           if isinstance(block.get(k), str) and block[k]]
    return "\n".join(filter(None, [" ".join(hit), inner, *own]))


# What an assistant's block that is neither text nor call says to the next model.
SILENT_IN_ANSWERS = ("thinking", "redacted_thinking", "fallback")


def assistant_text(block: Block, notes: List[str]) -> str:
    """A block of an assistant (or system) message as text; server tools' work is told in words."""
    kind = str(block.get("type"))
    if kind in SILENT_IN_ANSWERS:
        return ""
    if kind in ("server_tool_use", "mcp_tool_use"):
        return f"[{block.get('name', 'tool')} {encode_json(block.get('input') or {})}]"
    text = block_text(block)
    if not text and kind != "text":
        notes.append(f"{kind[:40]}=dropped")
    return text if text.strip() else ""


def tool_result_content(
    block: Block, options: ChatOptions, notes: List[str]
) -> Tuple[str, List[Dict[str, Any]]]:
    """(text for the tool message, parts that it cannot hold) of a tool_result block."""
    call_id = block.get("tool_use_id", "")
    texts: List[str] = []
    moved: List[Dict[str, Any]] = []
    for inner in content_blocks(block.get("content"), f"tool_result {call_id}.content"):
        if inner.get("type") == "tool_reference":
            texts.append(f"[tool available: {inner.get('tool_name', '')}]")
            continue
        parts = user_parts(inner, options, notes)
        texts += [p["text"] for p in parts if p["type"] == "text"]
        moved += [p for p in parts if p["type"] != "text"]
    if moved:
        texts.append(f"[{len(moved)} attachment(s): see the next user message]")
        moved.insert(0, text_part(f"[from tool result {call_id}]"))
    text = "\n".join(texts)
    if block.get("is_error") and not text.startswith(("<tool_use_error>", "Error")):
        text = f"[tool error]\n{text}"
    return text, moved


# --- tools -------------------------------------------------------------------------------------

EMPTY_SCHEMA = {"type": "object", "properties": {}}

# Tools that Anthropic defines and the client runs: the wire has no schema for them.
CLIENT_TOOL_SCHEMAS: Tuple[Tuple[str, Dict[str, Any]], ...] = (
    ("bash_", {"type": "object", "properties": {
        "command": {"type": "string"}, "restart": {"type": "boolean"}}}),
    ("text_editor_", {"type": "object", "required": ["command", "path"], "properties": {
        "command": {"type": "string", "enum": ["view", "create", "str_replace", "insert"]},
        "path": {"type": "string"}, "file_text": {"type": "string"}, "old_str": {"type": "string"},
        "new_str": {"type": "string"}, "insert_line": {"type": "integer"},
        "insert_text": {"type": "string"},
        "view_range": {"type": "array", "items": {"type": "integer"}}}}),
    ("memory_", {"type": "object", "required": ["command"], "properties": {
        "command": {"type": "string",
                    "enum": ["view", "create", "str_replace", "insert", "delete", "rename"]},
        "path": {"type": "string"}, "file_text": {"type": "string"}, "old_str": {"type": "string"},
        "new_str": {"type": "string"}, "insert_line": {"type": "integer"},
        "insert_text": {"type": "string"}, "old_path": {"type": "string"},
        "new_path": {"type": "string"}}}),
)


def chat_tools(request: Request, notes: List[str]) -> List[Dict[str, Any]]:
    """The tools as functions; those that only Anthropic's servers could run are left out."""
    tools = []
    for index, tool in enumerate(as_list(request.get("tools"))):
        if not isinstance(tool, dict):
            raise ProxyError(400, f"tools.{index}: must be an object")
        schema = tool_schema(tool)
        if schema is None:
            notes.append(f"{str(tool.get('type') or tool.get('name'))[:40]}=dropped")
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


def chat_tool_names(request: Request) -> Dict[str, str]:
    """Upstream's name -> client's own, for the tools whose name had to change."""
    names: Set[str] = {str(t.get("name", "")) for t in as_list(request.get("tools")) if isinstance(t, dict)}
    return {chat_tool_name(name): name for name in sorted(names) if not GOOD_TOOL_NAME.fullmatch(name)}
