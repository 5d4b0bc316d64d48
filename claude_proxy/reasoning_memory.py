"""Reasoning that came too late to be carried by a thinking block, kept for the next request.

Some providers send what they want back only when their tool calls are told already. It is kept here
by the ids of those calls, for each credential apart, in memory alone, and not without bound.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any, Callable, Dict, List, Optional, Tuple

from claude_proxy.dialects.carriers import pack_carrier
from claude_proxy.dialects.chat_blocks import as_list
from claude_proxy.events import Request

MOST_KEPT_BYTES = 16 * 1024 * 1024
# What an entry takes besides its carrier.
ENTRY_BYTES = 400
KEPT_SECONDS = 24 * 3600.0


class ReasoningMemory:
    """(credential, call id) -> carrier. The oldest goes first when there is too much."""

    def __init__(self, clock: Callable[[], float], most_bytes: int = MOST_KEPT_BYTES) -> None:
        self._clock = clock
        self._most_bytes = most_bytes
        self._bytes = 0
        self._kept: OrderedDict[Tuple[bytes, str], Tuple[float, str]] = OrderedDict()
        self._lock = threading.Lock()

    def keep(self, keys: Iterable[str], call_ids: Sequence[str], kind: str, data: Any) -> None:
        """Remember what belongs to an answer with these calls, under the first of them."""
        if not call_ids:
            return
        carrier, name = pack_carrier(kind, data), (credential_hash(keys), call_ids[0])
        with self._lock:
            self._forget(name)
            self._kept[name] = (self._clock() + KEPT_SECONDS, carrier)
            self._bytes += len(carrier) + ENTRY_BYTES
            while self._kept and self._bytes > self._most_bytes:
                self._forget(next(iter(self._kept)))

    def _forget(self, name: Tuple[bytes, str]) -> None:
        _, carrier = self._kept.pop(name, (0.0, ""))
        self._bytes -= len(carrier) + ENTRY_BYTES if carrier else 0

    def recall(self, keys: Iterable[str], call_id: str) -> Optional[str]:
        with self._lock:
            until, carrier = self._kept.get((credential_hash(keys), call_id), (0.0, ""))
        return carrier if self._clock() < until else None

    def empty(self) -> bool:
        return not self._kept


def credential_hash(keys: Iterable[str]) -> bytes:
    """Credentials are compared, never kept."""
    digest = hashlib.sha256()
    for key in sorted(keys):
        digest.update(key.encode("utf-8", "surrogatepass") + b"\0")
    return digest.digest()


def with_recalled(request: Request, recall: Callable[[str], Optional[str]]) -> Request:
    """The request with an empty thinking block, that carries what was kept, before such calls."""
    messages = [with_carrier(m, recall) for m in as_list(request.get("messages"))]
    return {**request, "messages": messages}


def with_carrier(message: Any, recall: Callable[[str], Optional[str]]) -> Any:
    blocks = as_list(message.get("content")) if isinstance(message, dict) else []
    for index, block in enumerate(blocks):
        if isinstance(block, dict) and block.get("type") == "tool_use":
            carrier = recall(str(block.get("id")))
            carried: List[Dict[str, Any]] = [
                {"type": "thinking", "thinking": "", "signature": carrier}
            ]
            return {**message, "content": [*blocks[:index], *(carried if carrier else ()),
                                           *blocks[index:]]}  # fmt: skip
    return message
