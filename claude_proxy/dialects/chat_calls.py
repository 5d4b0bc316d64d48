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

    def complete(self) -> bool:
        """Whether the arguments so far are one JSON value."""
        if not self.arguments or not self.arguments[-1].rstrip().endswith("}"):
            return False
        try:
            json.loads("".join(self.arguments))
        except (ValueError, RecursionError):
            return False
        return True


class CallBook:
    """The calls of one answer, in the order they began. One is live: its pieces flow at once."""

    def __init__(
        self, write: EventWriter, names: Mapping[str, str], used_ids: Iterable[str]
    ) -> None:
        self.any = False
        self.told = 0
        self._write = write
        self._names = names
        self._calls: List[ToolCall] = []
        self._by_index: Dict[Any, ToolCall] = {}
        self._next = 0
        self._ids = set(used_ids)

    def busy(self) -> bool:
        """Whether a call has begun that is not complete."""
        return any(not call.complete() for call in self._calls[self._next :])

    def add(self, delta: Dict[str, Any]) -> Iterable[Event]:
        """Take one element of `tool_calls`."""
        self.any = True
        function = delta.get("function") or delta.get("custom") or {}
        function = function if isinstance(function, dict) else {}
        name = function.get("name") if isinstance(function.get("name"), str) else ""
        text = argument_text(function.get("arguments", function.get("input")))
        call = self._call_of(delta, str(delta.get("id") or ""), name, text)
        if text:
            call.arguments.append(text)
            call.pending.append(text)
        return self._tell()

    def _call_of(self, delta: Dict[str, Any], call_id: str, name: str, text: str) -> ToolCall:
        """The call that a delta continues, or a new one."""
        index = delta.get("index")
        call = (
            self._by_index.get(index) if index is not None else self._without_index(call_id, name)
        )
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
        if call_id and call.id:
            return call_id != call.id and (bool(name) or call.complete())
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

    def settle(self) -> Iterable[Event]:
        """Everything so far is complete: later deltas begin new calls."""
        self._next = len(self._calls)
        return ()

    def finish(self) -> Iterator[Event]:
        """Tell the calls that are left, as they are."""
        while self._next < len(self._calls):
            call = self._calls[self._next]
            call.name = call.name or "unknown"
            yield from self._tell()
            if self._calls[self._next] is call:
                self._next += 1


def argument_text(arguments: Any) -> str:
    """A piece of a call's arguments as text; some send the object itself."""
    if arguments is None or arguments == "null":
        return ""
    return arguments if isinstance(arguments, str) else encode_json(arguments)
