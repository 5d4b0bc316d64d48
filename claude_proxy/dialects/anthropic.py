"""The Messages dialect: mostly identity, for Messages is what requests and answers are inside."""

from __future__ import annotations

from typing import Any, Dict

from claude_proxy.dialects.dialect import Dialect
from claude_proxy.errors import ProxyError, error_body
from claude_proxy.events import PING, Message, Request
from claude_proxy.sse import encode_event

LONGEST_MODEL_NAME = 256

# An empty delta that fits each block that can be open.
EMPTY_DELTAS = {
    "text": {"type": "text_delta", "text": ""},
    "thinking": {"type": "thinking_delta", "thinking": ""},
    "tool_use": {"type": "input_json_delta", "partial_json": ""},
}


def decode_messages_request(data: Dict[str, Any]) -> Request:
    """Check what no upstream could do without; everything else, known or not, passes.

    `max_tokens` may be missing: the upstream's own maximum then counts.
    """
    messages, model = data.get("messages"), data.get("model", "")
    if not isinstance(messages, list):
        raise ProxyError(400, "messages: a list of messages is required")
    if not messages:
        raise ProxyError(400, "messages: at least one message is required")
    if not isinstance(model, str):
        raise ProxyError(400, "model: must be a string")
    if len(model) > LONGEST_MODEL_NAME:
        raise ProxyError(400, f"model: must have at most {LONGEST_MODEL_NAME} characters")
    max_tokens = data.get("max_tokens")
    if max_tokens is not None and (not isinstance(max_tokens, int) or max_tokens < 1):
        raise ProxyError(400, "max_tokens: must be a positive integer")
    return data


def encode_messages_message(message: Message) -> Dict[str, Any]:
    return message


def messages_error_frame(error: ProxyError, request_id: str) -> bytes:
    return encode_event(error_body(error, request_id))


def messages_nudge(index: int, block_type: str) -> bytes:
    """An event that Claude Code counts as life, unlike a ping, and that changes nothing.

    Inside a block an empty delta of its kind, so that no empty block is left behind; between
    blocks a message_delta without a stop reason.
    """
    if index < 0:
        delta = {"stop_reason": None, "stop_sequence": None}
        return encode_event(
            {"type": "message_delta", "delta": delta, "usage": {"output_tokens": 0}}
        )
    empty = EMPTY_DELTAS.get(block_type, EMPTY_DELTAS["text"])
    return encode_event({"type": "content_block_delta", "index": index, "delta": empty})


MESSAGES_DIALECT = Dialect(
    name="anthropic",
    decode_request=decode_messages_request,
    encode_message=encode_messages_message,
    encode_event=encode_event,
    encode_error=error_body,
    error_frame=messages_error_frame,
    nudge=messages_nudge,
    ping=encode_event(PING),
)
