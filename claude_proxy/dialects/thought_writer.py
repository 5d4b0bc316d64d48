"""An event writer whose thinking blocks carry what has to come back, or hide what they say. Pure.

What is opaque belongs to the thinking block that stands before a text or a call, as its signature.
A block is sealed when something else begins; where something is to be carried and no thinking block
is open, an empty one is put in. An answer should not end in one, so at the end there is none.
"""

from __future__ import annotations

from typing import Any, Dict, List, Optional

from claude_proxy.dialects.carriers import pack_carrier, pack_details
from claude_proxy.events import Event, EventWriter


class ThoughtWriter:
    """Stands before an EventWriter and has its methods; `hide` leaves the thinking text out."""

    def __init__(self, write: EventWriter, hide: bool = False) -> None:
        self._write = write
        self._hide = hide
        self._details: List[Dict[str, Any]] = []
        self._extra: Optional[Dict[str, Any]] = None
        self._shown: List[str] = []

    @property
    def started(self) -> bool:
        return self._write.started

    @property
    def open_block(self) -> str:
        return self._write.open_block

    @property
    def message_id(self) -> str:
        return self._write.message_id

    @property
    def blocks_begun(self) -> int:
        return self._write.blocks_begun

    def carry_details(self, details: List[Dict[str, Any]]) -> None:
        """Reasoning parts for the thinking block that is open, or the next one."""
        self._details += details

    def carry_extra(self, extra: Dict[str, Any]) -> None:
        """The extra content of the call that begins now."""
        self._extra = extra

    def thinking(self, text: str) -> List[Event]:
        if not self._hide:
            self._shown.append(text)
            return self._write.thinking(text)
        return [e for e in self._write.thinking("") if e["type"] != "content_block_delta"]

    def text(self, text: str) -> List[Event]:
        sealed = self._seal() if self.open_block != "text" else []
        return [*sealed, *self._write.text(text)]

    def tool_use(self, tool_id: str, name: str) -> List[Event]:
        return [*self._seal(), *self._write.tool_use(tool_id, name)]

    def input_json(self, partial_json: str) -> List[Event]:
        return self._write.input_json(partial_json)

    def finish(self, stop_reason: Optional[str], usage: Dict[str, Any], **more: Any) -> List[Event]:
        sealed = self._seal() if self.open_block == "thinking" else []
        return [*sealed, *self._write.finish(stop_reason, usage, **more)]

    def _seal(self) -> List[Event]:
        """The end of a thinking block, with what it carries."""
        carrier, thinking = self._carrier(), self.open_block == "thinking"
        self._details, self._extra, self._shown = [], None, []
        if not carrier:
            return []
        if thinking:
            return self._write.signature(carrier)
        return self._write.block({"type": "thinking", "thinking": "", "signature": carrier})

    def _carrier(self) -> str:
        if self._extra is not None:
            return pack_carrier("extra_content", self._extra)
        return pack_details(self._details, "".join(self._shown)) if self._details else ""
