"""A Messages request -> a Chat Completions request. Pure, deterministic, prefix-stable.

Chat's grammar is stricter than Messages': after an assistant message with tool calls come their
tool messages, one a call, at once and in order, each with a string; everything else that stood
beside the results follows as one user message. What a tool message cannot hold (images, files)
moves there too, with a note in its place. What has no counterpart is named in `notes` if a user
could miss it; nothing is ever refused for being new.

What a message becomes depends on it and on those before it, so the same history always gives the
same bytes, and upstream prompt caches hit.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Callable, Dict, List, Optional, Tuple

from claude_proxy.dialects.chat_blocks import (
    Block,
    answer_texts,
    as_list,
    assistant_text,
    block_text,
    content_blocks,
    joined_parts,
    text_part,
    tool_result_content,
    user_parts,
)
from claude_proxy.dialects.chat_options import ChatOptions
from claude_proxy.dialects.chat_tools import chat_tool_choice, chat_tool_name, chat_tools
from claude_proxy.errors import ProxyError
from claude_proxy.events import Request
from claude_proxy.sse import encode_json

ATTRIBUTION = re.compile(r"\Ax-anthropic-billing-header:[^\n]*\n*")
MOST_STOPS = 4
INTERRUPTED = "[no result: the call was interrupted]"

ChatMessage = Dict[str, Any]


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
    wanted, most = request.get("max_tokens"), options.max_output
    if wanted:
        found[options.max_tokens_key] = min(wanted, most) if most else wanted
        notes += [f"max_tokens={wanted}>{most}"] if most and wanted > most else []
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


# --- messages ----------------------------------------------------------------------------------


def chat_messages(request: Request, options: ChatOptions, notes: List[str]) -> List[ChatMessage]:
    history = ChatHistory(options, notes)
    system = system_text(request.get("system"))
    if system:
        history.messages.append({"role": "system", "content": system})
    for role, blocks in whole_turns(request["messages"]):
        TURNS.get(role, ChatHistory.user)(history, blocks)
    history.end_calls()
    return history.messages


def whole_turns(messages: List[Any]) -> Iterator[Tuple[str, List[Block]]]:
    """(role, blocks) of each message; results that come in several user messages are one turn."""
    waiting: List[Block] = []
    for index, message in enumerate(messages):
        place = f"messages.{index}"
        if not isinstance(message, dict):
            raise ProxyError(400, f"{place}: must be an object")
        role = str(message.get("role"))
        blocks = content_blocks(message.get("content"), f"{place}.content")
        results = role == "user" and any(block.get("type") == "tool_result" for block in blocks)
        if waiting and not results:
            yield "user", waiting
            waiting = []
        if results:
            waiting = [*waiting, *blocks]
        else:
            yield role, blocks
    if waiting:
        yield "user", waiting


def system_text(system: Any) -> str:
    """The system prompt as one text, without the attribution line, which defeats prompt caches."""
    texts = [ATTRIBUTION.sub("", block_text(b)) for b in content_blocks(system, "system")]
    return "\n\n".join(text for text in texts if text.strip())


class ChatHistory:
    """The messages so far, and the calls whose results have not come."""

    def __init__(self, options: ChatOptions, notes: List[str]) -> None:
        self.messages: List[ChatMessage] = []
        self._options = options
        self._notes = notes
        self._open_calls: List[Tuple[str, str]] = []  # (id here, the client's id)

    def user(self, blocks: List[Block]) -> None:
        """Results first, in the order of their calls; then everything else as one message."""
        results: Dict[str, List[Block]] = {}
        for block in blocks:
            if block.get("type") == "tool_result":
                results.setdefault(str(block.get("tool_use_id", "")), []).append(block)
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
        calls: List[Dict[str, Any]] = []
        for block in blocks:
            if block.get("type") == "tool_use":
                calls.append(self._call(block, calls))
        others = [block for block in blocks if block.get("type") != "tool_use"]
        text = answer_texts(others, self._notes)
        message: ChatMessage = {"role": "assistant"}
        if text or not calls:
            message["content"] = text
        if calls:
            message["tool_calls"] = calls
            own = [str(b.get("id", "")) for b in blocks if b.get("type") == "tool_use"]
            self._open_calls = list(zip((call["id"] for call in calls), own))
        if text or calls:
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
        for call_id, _ in self._open_calls:
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

    def _tool_messages(self, results: Dict[str, List[Block]]) -> List[Dict[str, Any]]:
        """Answer the open calls; returns the parts that a tool message cannot hold.

        A user message without any result leaves them unanswered for good.
        """
        moved: List[Dict[str, Any]] = []
        for call_id, own_id in self._open_calls:
            found = results.get(own_id)
            block = found.pop(0) if found else None
            if block is None:
                self._notes.append("tool_result=missing")
            text, parts = (
                tool_result_content(block, self._options, self._notes)
                if block
                else (INTERRUPTED, [])
            )
            self.messages.append({"role": "tool", "tool_call_id": call_id, "content": text})
            moved += parts
        self._open_calls = []
        return moved

    def _orphan(self, block: Block, results: Dict[str, List[Block]]) -> List[Dict[str, Any]]:
        """A result whose call is not in the history any more: told as text."""
        call_id = str(block.get("tool_use_id", ""))
        if not any(block is left for left in results[call_id]):
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
