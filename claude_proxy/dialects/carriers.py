"""Reasoning that its provider wants back, carried in the signature of a thinking block. Pure.

Clients send thinking blocks back with their signature as it was, so that is the one place where
something opaque survives between two requests of a conversation:

    signature = "cp1." + base64url(JSON {"k": kind, "d": data})

Kinds: `reasoning_details` (OpenRouter: the list of parts that came with this block's thinking) and
`extra_content` (Gemini: the member of the tool call that follows the block, with its thought
signature). The text of a part that is the block's own thinking is left out, not told twice.
"""

from __future__ import annotations

import base64
import json
from typing import Any, Dict, List

from claude_proxy.sse import encode_json

CARRIER_MARK = "cp1."


def pack_carrier(kind: str, data: Any) -> str:
    """The signature that carries `data`; the same one for the same data always."""
    text = encode_json({"k": kind, "d": data})
    return CARRIER_MARK + base64.urlsafe_b64encode(text.encode("ascii")).decode("ascii").rstrip("=")


def is_carrier(signature: Any) -> bool:
    """Whether a signature is one of ours: no other vendor would take it."""
    return isinstance(signature, str) and signature.startswith(CARRIER_MARK)


def unpack_carrier(signature: Any, kind: str) -> Any:
    """The data of a carrier of this kind; None for anything else, whoever wrote it."""
    if not is_carrier(signature):
        return None
    letters = signature[len(CARRIER_MARK) :]
    try:
        raw = base64.urlsafe_b64decode(letters + "=" * (-len(letters) % 4))
        carried = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return carried.get("d") if isinstance(carried, dict) and carried.get("k") == kind else None


def merge_details(details: List[Dict[str, Any]]) -> List[Dict[str, Any]]:
    """`reasoning_details` as they would have come whole: pieces of one part joined.

    Pieces of a part follow each other with the same `type` and `index`; text and summary are
    joined, of the other members the last one that is not null counts.
    """
    whole: List[Dict[str, Any]] = []
    for piece in details:
        last = whole[-1] if whole else {}
        same = last and "index" in piece and piece.get("type") == last.get("type")
        if not same or piece["index"] != last.get("index"):
            whole.append(dict(piece))
            continue
        for key, value in piece.items():
            joined = key in ("text", "summary", "data") and isinstance(last.get(key), str)
            if joined and isinstance(value, str):
                last[key] += value
            elif value is not None:
                last[key] = value
    return whole


def pack_details(details: List[Dict[str, Any]], thinking: str) -> str:
    """The carrier for the details that came with a block whose text is `thinking`."""
    whole = merge_details(details)
    texts = [part for part in whole if isinstance(part.get("text"), str)]
    if len(texts) == 1 and texts[0]["text"] == thinking:
        texts[0]["text"] = None
    return pack_carrier("reasoning_details", whole)


def unpack_details(block: Dict[str, Any]) -> List[Dict[str, Any]]:
    """The details that a thinking block carries, as its provider sent them; [] for none."""
    carried = unpack_carrier(block.get("signature"), "reasoning_details")
    parts = [part for part in carried if isinstance(part, dict)] if type(carried) is list else []
    thinking = block.get("thinking")
    return [
        {**part, "text": thinking} if "text" in part and part["text"] is None else part
        for part in parts
    ]
