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

from collections.abc import Iterator
from typing import Any, Callable, Dict, List, Optional, Tuple

from claude_proxy.dialects.chat_blocks import (
    Block,
    answer_texts,
    assistant_text,
    block_text,
    content_blocks,
    is_block_list,
    joined_parts,
    text_part,
    text_parts,
    tool_result_content,
    user_parts,
)
from claude_proxy.dialects.chat_members import chat_members, format_words
from claude_proxy.dialects.chat_options import ChatOptions
from claude_proxy.dialects.chat_shapes import ChatMessage, apply_prefill, shaped_messages
from claude_proxy.dialects.chat_thinking import carried_by_call, replayed_reasoning
from claude_proxy.dialects.chat_tools import (
    apply_tool_choice,
    chat_call_id,
    chat_tool_name,
    chat_tools,
    search_note,
)
from claude_proxy.errors import ProxyError
from claude_proxy.events import Request
from claude_proxy.patterns import LazyPattern
from claude_proxy.sse import encode_json

ATTRIBUTION_START = "x-anthropic-billing-header:"
ATTRIBUTION = LazyPattern(rf"\A{ATTRIBUTION_START}[^\n]*\n*")
INTERRUPTED = "[no result: the call was interrupted]"
# Their loss changes no answer: the proxy itself sees to what they ask for.
SILENTLY_DROPPED = ("stop", "parallel_tool_calls", "stream_options")

def messages_to_chat(
    request: Request, options: ChatOptions = ChatOptions(), notes: Optional[List[str]] = None
) -> Dict[str, Any]:
    """The Chat Completions body, streaming with usage. `request["model"]` is the upstream's name.

    `notes` receives a word for each thing that could not be carried. ProxyError(400) names the
    place of a value that has the wrong JSON type.
    """
    notes = notes if notes is not None else []
    chat: Dict[str, Any] = {"model": request.get("model", ""), "messages": []}
    tools, said = chat_tools(request, notes, options), ""
    if tools:
        chat["tools"] = tools
        said = apply_tool_choice(request, chat, options, notes)
    said = said or search_note(request, chat)
    chat.update(chat_members(request, options, "tools" in chat, notes))
    words = format_words(request, options)
    said = f"{said}\n\n{words}" if said and words else said or words
    chat["messages"] = shaped_messages(chat_messages(request, options, notes, said), options)
    apply_prefill(chat, options)
    chat["stream"] = True
    chat["stream_options"] = {"include_usage": True}
    return without_dropped(chat, options, notes) if options.drop else chat


def without_dropped(
    chat: Dict[str, Any], options: ChatOptions, notes: List[str]
) -> Dict[str, Any]:
    """The body without the members that this provider refuses."""
    dropped = [key for key in options.drop if key in chat]
    notes += [f"{key}=dropped" for key in sorted(dropped) if key not in SILENTLY_DROPPED]
    return {key: value for key, value in chat.items() if key not in options.drop}


def chat_json(chat: Dict[str, Any]) -> str:
    """The JSON of a body. That of its tools, often the half of it, is there already."""
    tools = chat.get("tools")
    if not tools:
        return encode_json(chat)
    names = list(chat)
    at = names.index("tools")
    before = encode_json({name: chat[name] for name in names[:at]})
    behind = encode_json({name: chat[name] for name in names[at + 1 :]})
    listed = ",".join([tool.json for tool in tools])
    members = filter(None, (before[1:-1], f'"tools":[{listed}]', behind[1:-1]))
    return f"{{{','.join(members)}}}"


# --- messages ----------------------------------------------------------------------------------


def chat_messages(
    request: Request, options: ChatOptions, notes: List[str], said: str = ""
) -> List[ChatMessage]:
    """The messages; `said` is what the proxy itself has to say, at the end of the system prompt."""
    history = ChatHistory(options, notes)
    system = system_content(request.get("system"), options, said)
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
        if not isinstance(message, dict):
            raise ProxyError(400, f"messages.{index}: must be an object")
        role, blocks = str(message.get("role")), message.get("content")
        if not is_block_list(blocks):
            blocks = content_blocks(blocks, f"messages.{index}.content")
        if role == "user" and has_results(blocks):
            waiting = [*waiting, *blocks]
            continue
        if waiting:
            yield "user", waiting
            waiting = []
        yield role, blocks
    if waiting:
        yield "user", waiting


def has_results(blocks: List[Block]) -> bool:
    for block in blocks:
        if block.get("type") == "tool_result":
            return True
    return False


def system_text(system: Any) -> str:
    """The system prompt as one text, without the attribution line, which defeats prompt caches."""
    texts = [without_attribution(block_text(b)) for b in content_blocks(system, "system")]
    return "\n\n".join([text for text in texts if text and not text.isspace()])


def without_attribution(text: str) -> str:
    return ATTRIBUTION.sub("", text) if text.startswith(ATTRIBUTION_START) else text


def system_content(system: Any, options: ChatOptions, said: str) -> Any:
    """The system prompt: a string, or parts where a cache's breakpoints are kept."""
    if not options.cache_control:
        text = system_text(system) if system is not None else ""
        return f"{text}\n\n{said}" if text and said else text or said
    parts = []
    for block in content_blocks(system, "system"):
        text = without_attribution(block_text(block))
        parts += text_parts({**block, "text": text}, options, []) if text.strip() else []
    return joined_parts([*parts, *([text_part(said)] if said else [])]) if parts or said else ""


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
        parts = self._tool_messages(results) if self._open_calls else []
        orphans = bool(results) and any(results.values())
        for block in blocks:
            if block.get("type") != "tool_result":
                parts += user_parts(block, self._options, self._notes)
            elif orphans:
                parts += self._orphan(block, results)
        content = joined_parts(parts)
        if content:
            self.messages.append({"role": "user", "content": content})
        elif not self.messages or self.messages[-1]["role"] == "system":
            self.messages.append({"role": "user", "content": "(no content)"})

    def assistant(self, blocks: List[Block]) -> None:
        self.end_calls()
        calls, others = self._calls(blocks), blocks
        if calls:
            others = [block for block in blocks if block.get("type") != "tool_use"]
        text = answer_texts(others, self._notes)
        message: ChatMessage = {"role": "assistant"}
        if text or not calls:
            message["content"] = text
        if calls:
            message["tool_calls"] = calls
        if self._options.replay:
            in_tool_turn = bool(calls or self.messages and self.messages[-1]["role"] == "tool")
            message.update(replayed_reasoning(blocks, in_tool_turn, self._options))
        if text or calls:
            self.messages.append(message)

    def _calls(self, blocks: List[Block]) -> List[Dict[str, Any]]:
        """The calls of an assistant's message; they are open until their results come."""
        calls: List[Dict[str, Any]] = []
        for index, block in enumerate(blocks):
            if block.get("type") == "tool_use":
                own_id = str(block.get("id", ""))
                call = self._call(block, own_id, calls)
                if self._options.replay == "extra_content":
                    call.update(carried_by_call(blocks, index, not calls, self._options))
                calls.append(call)
                self._open_calls.append((call["id"], own_id))
        return calls

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

    def _call(self, block: Block, own_id: str, calls: List[Dict[str, Any]]) -> Dict[str, Any]:
        call_id = chat_call_id(own_id, self._options)
        taken, number = [call["id"] for call in calls], len(calls)
        while call_id in taken:
            number += 1
            call_id = chat_call_id(f"{own_id}_{number}", self._options)
        function = {
            "name": chat_tool_name(str(block.get("name", "")), self._options),
            "arguments": encode_json(block.get("input") or {}),
        }
        return {"id": call_id, "type": "function", "function": function}

    def _tool_messages(self, results: Dict[str, List[Block]]) -> List[Dict[str, Any]]:
        """Answer the open calls; returns the parts that a tool message cannot hold.

        A user message without any result leaves them unanswered for good.
        """
        moved: List[Dict[str, Any]] = []
        for call_id, own_id in self._open_calls:
            found, text = results.get(own_id), INTERRUPTED
            if found:
                text, parts = tool_result_content(found.pop(0), self._options, self._notes)
                moved += parts
            else:
                self._notes.append("tool_result=missing")
            self.messages.append({"role": "tool", "tool_call_id": call_id, "content": text})
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
