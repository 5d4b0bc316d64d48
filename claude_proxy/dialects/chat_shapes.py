"""Message lists as the stricter chat templates want them. Pure; most providers need none of it.

Each shape is a function of messages and options that changes nothing unless an option asks for it.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Tuple

from claude_proxy.dialects.chat_options import ChatOptions

ChatMessage = Dict[str, Any]

BRIDGE = "OK."


def content_parts(content: Any) -> List[Dict[str, Any]]:
    if isinstance(content, list):
        return content
    return [{"type": "text", "text": content}] if content and content.strip() else []


def joined_content(first: Any, second: Any) -> Any:
    """Two contents as one: a string if both are."""
    if isinstance(first, str) and isinstance(second, str):
        return "\n\n".join(text for text in (first, second) if text)
    return [*content_parts(first), *content_parts(second)]


def flat_content(messages: List[ChatMessage], options: ChatOptions) -> List[ChatMessage]:
    """Strings in place of lists, for servers that take nothing else."""
    if not options.flat:
        return messages
    return [
        {**message, "content": flat_text(message["content"])}
        if isinstance(message.get("content"), list)
        else message
        for message in messages
    ]


def flat_text(parts: List[Dict[str, Any]]) -> str:
    """Only texts are left: of the rest the converter has made notes."""
    return "\n\n".join(part["text"] for part in parts)


def system_in_user(messages: List[ChatMessage], options: ChatOptions) -> List[ChatMessage]:
    """The system prompt before the first user text, for models without such a role."""
    if options.system_role or not messages or messages[0]["role"] != "system":
        return messages
    system, rest = messages[0]["content"], messages[1:]
    if not rest or rest[0]["role"] != "user":
        return [{"role": "user", "content": system}, *rest]
    return [{**rest[0], "content": joined_content(system, rest[0]["content"])}, *rest[1:]]


def alternating_roles(messages: List[ChatMessage], options: ChatOptions) -> List[ChatMessage]:
    """Neighbours of one role as one message; of assistants, only those without calls."""
    if not options.alternate:
        return messages
    merged: List[ChatMessage] = []
    for message in messages:
        last = merged[-1] if merged else {"role": ""}
        same = last["role"] == message["role"] in ("user", "assistant")
        if same and "tool_calls" not in last and "tool_calls" not in message:
            content = joined_content(last.get("content"), message.get("content"))
            merged[-1] = {**last, "content": content}
        else:
            merged.append(message)
    return merged


def bridged_results(messages: List[ChatMessage], options: ChatOptions) -> List[ChatMessage]:
    """An assistant's word between results and a user, for templates that want one there."""
    if not options.bridge:
        return messages
    bridged: List[ChatMessage] = []
    for message in messages:
        if message["role"] == "user" and bridged and bridged[-1]["role"] == "tool":
            bridged.append({"role": "assistant", "content": BRIDGE})
        bridged.append(message)
    return bridged


def filled_content(messages: List[ChatMessage], options: ChatOptions) -> List[ChatMessage]:
    """An empty text beside calls that come without any."""
    if options.null_content != "empty":
        return messages
    return [
        {**m, "content": ""} if m["role"] == "assistant" and "content" not in m else m
        for m in messages
    ]


Shape = Callable[[List[ChatMessage], ChatOptions], List[ChatMessage]]
SHAPES: Tuple[Shape, ...] = (
    flat_content, system_in_user, alternating_roles, bridged_results, filled_content,
)  # fmt: skip


def shaped_messages(messages: List[ChatMessage], options: ChatOptions) -> List[ChatMessage]:
    strict = options.flat or options.alternate or options.bridge
    if not strict and options.system_role and options.null_content != "empty":
        return messages  # as most take them
    for shape in SHAPES:
        messages = shape(messages, options)
    return messages


# --- an answer that has begun ------------------------------------------------------------------

PREFILL_MEMBERS: Dict[str, Dict[str, Any]] = {
    "continue": {"add_generation_prompt": False, "continue_final_message": True},
    "unthinking": {"chat_template_kwargs": {"enable_thinking": False}},
}


def apply_prefill(chat: Dict[str, Any], options: ChatOptions) -> None:
    """A last message of the assistant is the beginning of the answer, where that can be said."""
    last = chat["messages"][-1] if chat["messages"] else {}
    if last.get("role") != "assistant" or not isinstance(last.get("content"), str):
        return
    if "tool_calls" in last:
        return
    begun = {**last, "content": last["content"].rstrip()}
    if options.prefill == "prefix":
        begun["prefix"] = True
    chat["messages"] = [*chat["messages"][:-1], begun]
    chat.update(PREFILL_MEMBERS.get(options.prefill, {}))
