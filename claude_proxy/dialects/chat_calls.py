"""Putting tool calls together from the deltas of a Chat Completions stream. Pure.

Deltas name their call by index, by id, by name, or not at all, and those of parallel calls may come
interleaved. Messages has one block open at a time, so the first call is told live, piece by piece,
and what comes for the others waits until it is complete.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Callable, Dict, List, Optional, Tuple

from claude_proxy.events import Event, EventWriter, Ration
from claude_proxy.sse import encode_json


class ToolCall:
    """One call being put together. `pending` is what has not been told.

    A custom tool's input is free text and not JSON: it becomes the member `input` of an object.
    """

    def __init__(self, call_id: str, name: str, index: Any = None, custom: bool = False) -> None:
        self.id = call_id
        self.name = name
        self.index = index
        self.custom = custom
        self.told_id = ""
        self.extra: Optional[Dict[str, Any]] = None
        self.pending: List[str] = []
        self.arguments: List[str] = []
        self.live = False
        self._null = False
        self._last_piece = ""  # that is not blank
        self._complete: Optional[bool] = None

    def add(self, text: str) -> None:
        """More of the arguments. A first piece `null` is nothing, unless it is a part of more."""
        if self.custom:
            self._append(("" if self.arguments else '{"input":"') + encode_json(text)[1:-1])
            return
        if text == "null" and not self.arguments:
            self._null = True
            return
        if self._null and text[:1] not in "{[":
            text = "null" + text
        self._null = False
        self._append(text)

    def _append(self, text: str) -> None:
        self.pending.append(text)
        self.add_told(text)

    def goes_on(self) -> bool:
        """Whether it is told up to here, and more of it can be told as it comes."""
        return self.live and bool(self.arguments) and not (self.pending or self.custom)

    def add_told(self, text: str) -> None:
        """More of the arguments, which need not wait."""
        self.arguments.append(text)
        if not text.isspace():
            self._last_piece = text
        self._complete = None

    def end(self) -> None:
        """There is no more of it."""
        if self.custom and not self.complete():
            if not self.arguments:
                self.add("")
            self._append('"}')

    def complete(self) -> bool:
        """Whether the arguments so far are one JSON object."""
        if self._complete is None:
            ended = self._last_piece.rstrip().endswith("}")
            self._complete = ended and is_json("".join(self.arguments))
        return self._complete


class CallBook:
    """The calls of one answer, in the order they began. One is live: its pieces flow at once.

    `most` calls are told and no more. `carry_extra` is given the `extra_content` of a call just
    before the call is told; what comes too late for that is in `late_extras`.
    """

    def __init__(
        self,
        write: EventWriter,
        names: Mapping[str, str],
        used_ids: Iterable[str],
        only_tool: str = "",
        most: Optional[int] = None,
        carry_extra: Optional[Callable[[Dict[str, Any]], None]] = None,
    ) -> None:
        self.any = False
        self.told = 0
        self.late_extras: List[Tuple[str, Dict[str, Any]]] = []
        self._write = write
        self._names = names
        self._nameless = only_tool or "unknown"
        self._most = most
        self._carry_extra = carry_extra
        self._calls: List[ToolCall] = []
        self._by_index: Dict[Any, ToolCall] = {}
        self._next = 0
        self._ids = set(used_ids)
        self._ration = Ration()

    # --- what there is --------------------------------------------------------------------------

    def _kept(self) -> List[ToolCall]:
        return self._calls if self._most is None else self._calls[: self._most]

    def busy(self) -> bool:
        """Whether a call has begun that is not complete."""
        return any(not call.complete() for call in self._kept()[self._next :])

    def idle(self) -> bool:
        """Whether every call that has begun is told to its end."""
        return self._next >= len(self._kept())

    def whole(self) -> bool:
        """Whether there are calls, and all of them are complete."""
        return self.any and all(call.complete() for call in self._kept())

    def dropped(self) -> int:
        return len(self._calls) - len(self._kept())

    def told_ids(self) -> List[str]:
        """The ids of the calls as the client knows them."""
        return [call.told_id for call in self._calls if call.live]

    # --- deltas ---------------------------------------------------------------------------------

    def add(self, delta: Dict[str, Any]) -> Iterable[Event]:
        """Take one element of `tool_calls`."""
        function = delta.get("function") or delta.get("custom") or {}
        function = function if isinstance(function, dict) else {}
        name = function.get("name") if isinstance(function.get("name"), str) else ""
        text = argument_text(function.get("arguments", function.get("input")))
        call_id = str(delta.get("id") or "")
        extra = delta.get("extra_content") if self._carry_extra else None
        if not (call_id or name or text or (extra and self._calls)):
            return ()
        self.any = True
        self._ration.take(len(text))
        call = self._call_of(delta.get("index"), call_id, name, text, is_custom(delta))
        if extra:
            self._take_extra(call, extra)
        if text:
            call.add(text)
        return self._tell()

    def flows(self, delta: Dict[str, Any]) -> bool:
        """Whether a delta is what nearly all are, the next piece of the last call, which is being
        told: then `more` takes its text, and that of all that differ from it in their text only."""
        function, index = delta.get("function"), delta.get("index")
        if type(function) is not dict or type(index) is not int or not self._calls:
            return False
        if delta.get("id") or delta.get("extra_content") or function.get("name"):
            return False
        call, text = self._calls[-1], function.get("arguments")
        last = self._next + 1 == len(self._calls) and self._by_index.get(index) is call
        return last and type(text) is str and text != "" and call.goes_on()

    def more(self, text: str) -> List[Event]:
        """The next piece of a call that flows."""
        size = len(text)
        self._ration.take(size)
        self._calls[-1].add_told(text)
        self.told += size
        return self._write.input_json(text)

    def _call_of(
        self, index: Any, call_id: str, name: str, text: str, custom: bool = False
    ) -> ToolCall:
        """The call that a delta continues, or a new one."""
        index = index if isinstance(index, (int, float, str)) else None
        call = self._by_index.get(index) if index is not None else None
        if call is None and (index is None or not (call_id or name)):
            call = self._without_index(call_id, name)
        elif call is None and call_id:
            call = self._named_without_index(call_id, index)
        if call is None or self._begins_another(call, call_id, name, text):
            call = ToolCall(call_id, name, index, custom)
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

    def _named_without_index(self, call_id: str, index: Any) -> Optional[ToolCall]:
        """A call that began without an index, and goes on with one."""
        found = next((c for c in self._calls if c.id == call_id and c.index is None), None)
        if found is not None:
            found.index = index
            self._by_index[index] = found
        return found

    @staticmethod
    def _begins_another(call: ToolCall, call_id: str, name: str, text: str) -> bool:
        """Gemini gives every parallel call the same index; its ids and names tell them apart."""
        if name and call.name and name != call.name:
            return True
        if call_id and call.id and call_id != call.id:
            return bool(name) or call.complete()
        return bool(name) and text.lstrip().startswith("{") and call.complete()

    def _take_extra(self, call: ToolCall, extra: Any) -> None:
        if call.live and isinstance(extra, dict):
            self.late_extras.append((call.told_id, extra))
        elif isinstance(extra, dict):
            call.extra = extra

    # --- telling --------------------------------------------------------------------------------

    def _tell(self, last: bool = False) -> Iterator[Event]:
        """Tell what can be told: the live call's pieces, and the next one if that is complete.

        An id may come late, so until there are arguments a call without one waits, unless this is
        the last that is heard of it.
        """
        while not self.idle():
            call = self._calls[self._next]
            if not call.live:
                if not call.name or not (call.id or call.arguments or last):
                    return
                yield from self._begin(call)
            for text in call.pending:
                self.told += len(text)
                yield from self._write.input_json(text)
            call.pending = []
            if self._next + 1 == len(self._calls) or not call.complete():
                return
            self._next += 1

    def _begin(self, call: ToolCall) -> Iterable[Event]:
        call.live = True
        call.told_id = self._unique_id(call)
        if self._carry_extra and call.extra:
            self._carry_extra(call.extra)
        return self._write.tool_use(call.told_id, self._names.get(call.name, call.name))

    def _unique_id(self, call: ToolCall) -> str:
        """The call's own id, or one like it: some servers count from 0 in every answer, and a
        client takes the result of one call for that of another with the same id."""
        ordinal = self._write.blocks_begun
        call_id = call.id or f"toolu_{self._write.message_id.rpartition('_')[2]}_{ordinal}"
        others = (f"{call_id}_{number}" for number in itertools.count(2))
        found = next(i for i in itertools.chain([call_id], others) if i not in self._ids)
        self._ids.add(found)
        return found

    def finish(self, cut: bool = False) -> Iterator[Event]:
        """Tell the calls that are left, as they are; `cut`: the answer ended amid them."""
        while not self.idle():
            call = self._calls[self._next]
            call.name = call.name or self._nameless
            if not cut:
                call.end()
            yield from self._tell(last=True)
            if not self.idle() and self._calls[self._next] is call:
                self._next += 1


def is_custom(delta: Mapping[str, Any]) -> bool:
    """Whether a call's input is free text."""
    named = delta.get("type") == "custom" or isinstance(delta.get("custom"), dict)
    return named and not delta.get("function")


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
