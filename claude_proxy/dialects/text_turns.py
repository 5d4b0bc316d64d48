"""A turn with tools by an upstream that has none. Pure but for what `ask` does.

    request --text_tool_request--> ask --> events with text --CallSplitter--> events with tool_use

A call that cannot be used is not shown to the client: the upstream is asked once more, with its
answer and what is wrong with it. What it says then is taken if it calls; if it fails again, the
client gets the first answer's own words as text. Calls that the upstream makes natively pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Callable, Dict, List, Set

from claude_proxy.dialects.chat_tools import used_call_ids
from claude_proxy.dialects.text_calls import CallSplitter, TextCall, TextPart
from claude_proxy.dialects.text_tools import (
    RESULT_STOP,
    may_call_once,
    must_call,
    needs_text_tools,
    offered_names,
    text_tool_request,
)
from claude_proxy.errors import CLIENT_GONE_STATUS, ProxyError
from claude_proxy.events import Event, EventWriter, Ration, Request
from claude_proxy.sse import encode_json

Ask = Callable[[Request], Iterator[Event]]
Tell = Callable[[TextPart], Iterable[Event]]
BLOCK_EVENTS = ("content_block_start", "content_block_delta", "content_block_stop")

ENDED_STATUSES = (CLIENT_GONE_STATUS, 504)

# Characters of a call's input in one event.
INPUT_PIECE = 1024
NO_CALL = "this answer has to call a tool, and it did not"
CUT_OFF_NOTE = "[The answer was cut off at its length limit within a tool call; nothing was run.]"
REPAIR_PROMPT = (
    "That was not a valid tool call: {complaint}. {accepted} Answer with the corrected call, and"
    " any that should follow it, and nothing else: <tool_call>, one JSON object with name and"
    " input, </tool_call>."
)
NONE_ACCEPTED = "Nothing was run."
SOME_ACCEPTED = "Only the {count} call(s) before it were accepted; do not repeat them."


def text_tool_events(
    request: Request, ask: Ask, message_id: str, facts: Dict[str, Any]
) -> Iterator[Event]:
    """The events of a turn; `ask` answers a request without tools.

    `facts` is told of repairs: `tool_repairs`, `tool_repair_failed`, `tool_results_invented`.
    """
    if not needs_text_tools(request):
        return ask(request)
    names = offered_names(request)
    if not names:
        return ask(text_tool_request(request))
    return TextTurn(request, names, ask, message_id, facts).events()


class TextTurn:
    """One turn: an answer, and a second one where the first has a call that cannot be used."""

    def __init__(
        self, request: Request, names: Set[str], ask: Ask, message_id: str, facts: Dict[str, Any]
    ) -> None:
        self._request = request
        self._names = names
        self._plain = text_tool_request(request)
        self._ask = ask
        self._facts = facts
        self._write = EventWriter(message_id, "")
        self._used_ids = used_call_ids(request)
        self._usage: Dict[str, Any] = {}
        self._output = 0
        self._end: Dict[str, Any] = {}
        self._calls = 0
        self._native = False  # whether the last call is the upstream's own

    def events(self) -> Iterator[Event]:
        raw: List[str] = []
        first = self._splitter()
        yield from self._answer(self._plain, first, raw, self._tell)
        complaint = first.complaint or self._missing_call(first)
        if complaint:
            yield from self._repair(first, "".join(raw), complaint)
        elif first.truncated and not self._calls:
            gap = "\n\n" if self._write.open_block == "text" else ""
            yield from self._write.text(gap + CUT_OFF_NOTE)
        yield from self._finish(first.truncated)

    def _splitter(self) -> CallSplitter:
        return CallSplitter(self._names, may_call_once(self._request))

    def _missing_call(self, splitter: CallSplitter) -> str:
        missing = must_call(self._request) and not (self._calls or splitter.truncated)
        return NO_CALL if missing else ""

    def _repair(self, first: CallSplitter, answer: str, complaint: str) -> Iterator[Event]:
        """Ask once more. Of the new answer only calls count: its text was told, or is no use."""
        self._facts["tool_repairs"] = 1
        count, end = self._calls, self._end
        accepted = SOME_ACCEPTED.format(count=count) if count else NONE_ACCEPTED
        prompt = REPAIR_PROMPT.format(complaint=complaint, accepted=accepted)
        more = [
            {"role": "assistant", "content": answer.strip() or "(nothing)"},
            {"role": "user", "content": prompt},
        ]
        again = {**self._plain, "messages": [*self._plain["messages"], *more]}
        try:
            yield from self._answer(again, self._splitter(), [], self._tell_call)
        except ProxyError as error:
            # The first answer is still worth telling, unless nobody waits for it any more.
            if error.status in ENDED_STATUSES or self._write.open_block == "tool_use":
                raise
        if self._calls == count:
            self._facts["tool_repair_failed"] = True
            self._end = end
            told = len(answer[: first.begun].rstrip())
            unread = answer[told:] if first.complaint and not count else ""
            unread = unread if self._write.open_block == "text" else unread.lstrip()
            yield from self._write.text(unread) if unread else ()

    # --- one answer ---------------------------------------------------------------------------

    def _answer(
        self, request: Request, splitter: CallSplitter, raw: List[str], tell: Tell
    ) -> Iterator[Event]:
        """Retell an answer: its text by way of the splitter into `tell`, the rest as it is."""
        usage: Dict[str, Any] = {}
        kept = Ration()
        for event in self._ask(request):
            delta = event.get("delta") or {}
            if delta.get("type") == "text_delta":
                kept.take(len(delta["text"]))
                raw.append(delta["text"])
                for part in splitter.feed(delta["text"]):
                    yield from tell(part)
            elif event["type"] in BLOCK_EVENTS:
                if (event.get("content_block") or {}).get("type") == "tool_use":
                    splitter.drop_blanks()
                yield from self._block_event(event)
            else:
                yield from self._note(event, usage)
        self._add_usage(usage)
        for part in splitter.finish():
            yield from tell(part)
        if splitter.cut:
            self._facts["tool_results_invented"] = True

    def _tell(self, part: TextPart) -> Iterable[Event]:
        return self._write.text(part) if isinstance(part, str) else self._tell_call(part)

    def _tell_call(self, part: TextPart) -> Iterator[Event]:
        if not isinstance(part, TextCall):
            return
        self._native = False
        yield from self._write.tool_use(self._new_id(), part.name)
        text = encode_json(part.input)
        for start in range(0, len(text), INPUT_PIECE):
            yield from self._write.input_json(text[start : start + INPUT_PIECE])

    def _new_id(self) -> str:
        """Short, for the model reads it in every turn; unlike those of other answers."""
        self._calls += 1
        own = f"toolu_{self._write.message_id.rpartition('_')[2][-10:]}_{self._calls}"
        while own in self._used_ids:
            own += "x"
        return own

    def _block_event(self, event: Event) -> Iterable[Event]:
        """Thinking and native calls."""
        block, delta = event.get("content_block") or {}, event.get("delta") or {}
        kind = block.get("type")
        if kind == "tool_use":
            self._calls += 1
            self._native = True
            return self._write.tool_use(block["id"], block["name"])
        if kind and kind not in ("text", "thinking"):
            return self._write.block(block)
        if delta.get("type") == "thinking_delta":
            return self._write.thinking(delta["thinking"])
        if delta.get("type") == "signature_delta" and self._write.open_block == "thinking":
            return self._write.signature(delta["signature"])
        if delta.get("type") == "input_json_delta" and self._write.open_block == "tool_use":
            return self._write.input_json(delta["partial_json"])
        return ()

    # --- beginning and end --------------------------------------------------------------------

    def _note(self, event: Event, usage: Dict[str, Any]) -> Iterable[Event]:
        """The events around the blocks: of two answers they become those of one."""
        message = event.get("message") or {}
        told = event.get("usage") or message.get("usage") or {}
        usage.update((key, value) for key, value in told.items() if value is not None)
        if event["type"] == "message_start" and not self._write.started:
            self._write = EventWriter(message["id"], message["model"], dict(usage))
            return self._write.start()
        if event["type"] == "message_delta":
            self._end = event["delta"]
            if self._end.get("stop_sequence") == RESULT_STOP:
                self._facts["tool_results_invented"] = True
        return ()

    def _add_usage(self, usage: Dict[str, Any]) -> None:
        """Output adds up. Input is that of the last answer: clients take it for the context's size,
        and would compact too early if it were counted twice."""
        self._output += usage.get("output_tokens") or 0
        self._usage.update({**usage, "output_tokens": self._output})

    def _finish(self, truncated: bool) -> Iterator[Event]:
        more = {k: v for k, v in self._end.items() if k not in ("stop_reason", "stop_sequence")}
        reason, sequence = self._end.get("stop_reason"), self._end.get("stop_sequence")
        if self._calls and not (self._native and reason == "max_tokens"):
            reason, sequence = "tool_use", None
        elif truncated:
            reason, sequence = "max_tokens", None
        elif reason in ("stop_sequence", "tool_use") and sequence in (None, RESULT_STOP):
            reason, sequence = "end_turn", None
        yield from self._write.finish(reason, self._usage, stop_sequence=sequence, **more)
