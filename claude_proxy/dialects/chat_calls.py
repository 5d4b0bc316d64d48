"""Putting tool calls together from the deltas of a Chat Completions stream. Pure.

Deltas name their call by index, by id, by name, or not at all, and those of parallel calls may come
interleaved. Messages has one block open at a time, so the first call is told live, piece by piece,
and what comes for the others waits until it is complete.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Dict, List, Optional

from claude_proxy.events import Event, EventWriter
from claude_proxy.sse import encode_json


class ToolCall:
    """One call being put together. `pending` is what has not been told."""

    def __init__(self, call_id: str = "", name: str = "") -> None:
        self.id = call_id
        self.name = name
        self.pending: List[str] = []
        self.arguments: List[str] = []
        self.live = False
        self._null = False
        self._last = ""
        self._complete: Optional[bool] = None

    def add(self, text: str) -> None:
        """More of the arguments. A first piece `null` is nothing, unless it is a part of more."""
        if text == "null" and not self.arguments:
            self._null = True
            return
        if self._null and text[:1] not in "{[":
            text = "null" + text
        self._null = False
        self.arguments.append(text)
        self.pending.append(text)
        self._last = text.rstrip()[-1:] or self._last
        self._complete = None

    def complete(self) -> bool:
        """Whether the arguments so far are one JSON object."""
        if self._complete is None:
            self._complete = self._last == "}" and is_json("".join(self.arguments))
        return self._complete


class CallBook:
    """The calls of one answer, in the order they began. One is live: its pieces flow at once."""

    def __init__(
        self,
        write: EventWriter,
        names: Mapping[str, str],
        used_ids: Iterable[str],
        only_tool: str = "",
    ) -> None:
        self.any = False
        self.told = 0
        self._write = write
        self._names = names
        self._nameless = only_tool or "unknown"
        self._calls: List[ToolCall] = []
        self._by_index: Dict[Any, ToolCall] = {}
        self._next = 0
        self._ids = set(used_ids)

    def busy(self) -> bool:
        """Whether a call has begun that is not complete."""
        return any(not call.complete() for call in self._calls[self._next :])

    def add(self, delta: Dict[str, Any]) -> Iterable[Event]:
        """Take one element of `tool_calls`."""
        function = delta.get("function") or delta.get("custom") or {}
        function = function if isinstance(function, dict) else {}
        name = function.get("name") if isinstance(function.get("name"), str) else ""
        text = argument_text(function.get("arguments", function.get("input")))
        call_id = str(delta.get("id") or "")
        if not (call_id or name or text):
            return ()
        self.any = True
        call = self._call_of(delta.get("index"), call_id, name, text)
        if text:
            call.add(text)
        return self._tell()

    def _call_of(self, index: Any, call_id: str, name: str, text: str) -> ToolCall:
        """The call that a delta continues, or a new one."""
        index = index if isinstance(index, (int, str)) else None
        call = self._by_index.get(index) if index is not None else None
        if call is None and (index is None or not (call_id or name)):
            call = self._without_index(call_id, name)
        if call is None or self._begins_another(call, call_id, name, text):
            call = ToolCall(call_id, name)
            self._calls.append(call)
            self._by_index[index] = call
            return call
        call.id = call.id or call_id
        call.name = call.name or name
        return call

    def _without_index(self, call_id: str, name: str) -> Optional[ToolCall]:
        if call_id:
            return next((c for c in self._calls if c.id == call_id), None)
        return None if name or not self._calls else self._calls[-1]

    @staticmethod
    def _begins_another(call: ToolCall, call_id: str, name: str, text: str) -> bool:
        """Gemini gives every parallel call the same index; its ids and names tell them apart."""
        if name and call.name and name != call.name:
            return True
        if call_id and call.id and call_id != call.id:
            return bool(name) or call.complete()
        return bool(name) and text.lstrip().startswith("{") and call.complete()

    def _tell(self) -> Iterator[Event]:
        """Tell what can be told: the live call's pieces, and the next one if that is complete."""
        while self._next < len(self._calls):
            call = self._calls[self._next]
            if not call.live:
                if not call.name:
                    return
                call.live = True
                yield from self._write.tool_use(
                    self._unique_id(call), self._names.get(call.name, call.name)
                )
            for text in call.pending:
                self.told += len(text)
                yield from self._write.input_json(text)
            call.pending = []
            if self._next + 1 == len(self._calls) or not call.complete():
                return
            self._next += 1

    def _unique_id(self, call: ToolCall) -> str:
        """The call's own id, or one like it: some servers count from 0 in every answer, and a
        client takes the result of one call for that of another with the same id."""
        ordinal = self._write.blocks_begun
        call_id = call.id or f"toolu_{self._write.message_id.rpartition('_')[2]}_{ordinal}"
        others = (f"{call_id}_{number}" for number in itertools.count(2))
        found = next(i for i in itertools.chain([call_id], others) if i not in self._ids)
        self._ids.add(found)
        return found

    def finish(self) -> Iterator[Event]:
        """Tell the calls that are left, as they are; later deltas begin new ones."""
        while self._next < len(self._calls):
            call = self._calls[self._next]
            call.name = call.name or self._nameless
            yield from self._tell()
            if self._calls[self._next] is call:
                self._next += 1


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def argument_text(arguments: Any) -> str:
    """A piece of a call's arguments as text; some send the object itself."""
    if arguments is None:
        return ""
    return arguments if isinstance(arguments, str) else encode_json(arguments)
