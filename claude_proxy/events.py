"""The stream grammar of the Messages API: made here, checked here, folded here. No I/O.

    stream = message_start, { ping | block }, message_delta, message_stop
    block  = content_block_start, { content_block_delta }, content_block_stop   one open at a time

`EventWriter` is the only maker of events. It holds which block is open, so no converter can forget
to close one, interleave two, or send a delta of the wrong kind. `check_grammar` is the reader's
side. `message_to_events` and `events_to_message` are inverses: a whole message is the fold of its
events, so streaming and not streaming are one path.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, Dict, List, Optional

from claude_proxy.errors import ProxyError
from claude_proxy.sse import encode_json

Event = Dict[str, Any]
Message = Dict[str, Any]
Request = Dict[str, Any]

PING: Event = {"type": "ping"}
CUT_SHORT = "the upstream closed the stream before the answer was complete"
TOO_LARGE = "the upstream's answer is larger than any model's"
# Of one answer no more than this is kept: some million pieces, or as many characters. What is only
# passed on is not counted.
LARGEST_KEPT = 64 * 1024 * 1024
PART_BYTES = 64


class Ration:
    """How much more of an answer may be kept. Each part costs its size and a little."""

    def __init__(self, most: int = LARGEST_KEPT) -> None:
        self._left = most

    def take(self, size: int) -> None:
        self._left -= size + PART_BYTES
        if self._left < 0:
            raise ProxyError(502, TOO_LARGE)


def message_start(message_id: str, model: str, usage: Dict[str, Any]) -> Event:
    """The first event of an answer. `usage` may be an estimate: `message_delta` has the truth."""
    message = {
        "id": message_id,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage,
    }
    return {"type": "message_start", "message": message}


class EventWriter:
    """Makes the events of one answer. Each method returns the events that its call leads to.

    `text`, `thinking` and `tool_use` open a block of their kind, closing what was open; text and
    thinking continue the open block if it is of their kind.
    """

    def __init__(self, message_id: str, model: str, usage: Optional[Dict[str, Any]] = None) -> None:
        usage = usage or {"input_tokens": 0, "output_tokens": 0}
        self._start = message_start(message_id, model, usage)
        self._open = ""
        self._index = -1
        self.started = False

    @property
    def open_block(self) -> str:
        """The type of the block that is open, or ""."""
        return self._open

    @property
    def message_id(self) -> str:
        return self._start["message"]["id"]

    @property
    def blocks_begun(self) -> int:
        """How many blocks have been opened so far."""
        return self._index + 1

    def start(self) -> List[Event]:
        """`message_start`, the first time; nothing after that."""
        if self.started:
            return []
        self.started = True
        return [self._start]

    def text(self, text: str) -> List[Event]:
        """More visible text."""
        opening = None if self._open == "text" else self._begin({"type": "text", "text": ""})
        delta = {"type": "text_delta", "text": text}
        event = {"type": "content_block_delta", "index": self._index, "delta": delta}
        return [*opening, event] if opening else [event]

    def thinking(self, text: str) -> List[Event]:
        """More reasoning text."""
        block = {"type": "thinking", "thinking": "", "signature": ""}
        opening = [] if self._open == "thinking" else self._begin(block)
        return [*opening, self._delta("thinking_delta", "thinking", text)]

    def signature(self, signature: str) -> List[Event]:
        """The signature of the open thinking block."""
        self._expect("thinking")
        return [self._delta("signature_delta", "signature", signature)]

    def tool_use(self, tool_id: str, name: str) -> List[Event]:
        """Open a tool call; its input follows by `input_json`."""
        return self._begin({"type": "tool_use", "id": tool_id, "name": name, "input": {}})

    def input_json(self, partial_json: str) -> List[Event]:
        """More of the open tool call's input, as JSON text."""
        if self._open != "tool_use":
            self._expect("tool_use")
        delta = {"type": "input_json_delta", "partial_json": partial_json}
        return [{"type": "content_block_delta", "index": self._index, "delta": delta}]

    def block(self, block: Dict[str, Any]) -> List[Event]:
        """A whole block of any type, opened, told and closed."""
        opening = self._begin(empty_block(block))
        deltas = [
            {"type": "content_block_delta", "index": self._index, "delta": delta}
            for delta in block_deltas(block)
        ]
        return [*opening, *deltas, *self.close()]

    def close(self) -> List[Event]:
        """Close the open block, if one is."""
        if not self._open:
            return []
        self._open = ""
        return [{"type": "content_block_stop", "index": self._index}]

    def finish(self, stop_reason: Optional[str], usage: Dict[str, Any], **more: Any) -> List[Event]:
        """The end of the answer; `more` goes beside the stop reason (`stop_sequence`, ...)."""
        delta = {"stop_reason": stop_reason, "stop_sequence": None, **more}
        last = {"type": "message_delta", "delta": delta, "usage": usage}
        return [*self.start(), *self.close(), last, {"type": "message_stop"}]

    def _begin(self, block: Dict[str, Any]) -> List[Event]:
        opening = [*self.start(), *self.close()]
        self._index += 1
        self._open = block["type"]
        start = {"type": "content_block_start", "index": self._index, "content_block": block}
        return [*opening, start]

    def _delta(self, kind: str, key: str, value: str) -> Event:
        delta = {"type": kind, key: value}
        return {"type": "content_block_delta", "index": self._index, "delta": delta}

    def _expect(self, kind: str) -> None:
        if self._open != kind:
            raise ValueError(f"no {kind} block is open")


def check_grammar(events: Iterable[Event]) -> Iterator[Event]:
    """Pass events on, and raise ProxyError(502) at the first that the grammar does not allow.

    A stream that ends before `message_stop` is an upstream's failure, never a short answer. Event
    types that we do not know pass.
    """
    state = GrammarState()
    for event in events:
        kind = event.get("type")
        if kind == "content_block_delta" and type(event.get("delta")) is dict:  # nearly all are
            if event.get("index") == state.open_index is not None:
                yield event
                continue
        kind = str(kind)
        step = GRAMMAR_STEPS.get(kind)
        problem = step and (state.misfit(kind, event) or step(state, event))
        if problem:
            raise ProxyError(502, f"the upstream's answer is malformed: {problem}")
        yield event
    if not state.stopped:
        raise ProxyError(502, CUT_SHORT)


class GrammarState:
    """Where a checked stream is."""

    def __init__(self) -> None:
        self.started = False
        self.open_index: Optional[int] = None
        self.last_index = -1
        self.reported = False
        self.ended = False
        self.stopped = False

    def misfit(self, kind: str, event: Event) -> Optional[str]:
        """What is wrong wherever in the answer it stands."""
        member = EVENT_MEMBERS.get(kind)
        if member and not isinstance(event.get(member), dict):
            return f"{kind} without {member}"
        return f"{kind} after message_stop" if self.stopped else None

    def message_start(self, event: Event) -> Optional[str]:
        if self.started:
            return "a second message_start"
        self.started = True
        return None

    def block_start(self, event: Event) -> Optional[str]:
        if not self.started or self.ended:
            return "a block outside the message"
        if self.open_index is not None:
            return f"block {shown_index(event)} starts inside block {self.open_index}"
        index = event.get("index")
        # A number that comes again would replace the block that had it.
        if not isinstance(index, int) or index <= self.last_index:
            return f"block {shown_index(event)} after block {self.last_index}"
        self.open_index = self.last_index = index
        return None

    def block_delta(self, event: Event) -> Optional[str]:
        if self.open_index is None or event.get("index") != self.open_index:
            return f"a delta for block {shown_index(event)}, which is not open"
        return None

    def block_stop(self, event: Event) -> Optional[str]:
        problem = self.block_delta(event)
        self.open_index = None
        return problem and f"a stop for block {shown_index(event)}, which is not open"

    def message_delta(self, event: Event) -> Optional[str]:
        if not self.started or self.open_index is not None:
            return "message_delta before the message's blocks are closed"
        # One without a stop reason only reports on the way; the last one has it.
        self.reported = True
        self.ended = self.ended or event["delta"].get("stop_reason") is not None
        return None

    def message_stop(self, event: Event) -> Optional[str]:
        if not self.reported or self.open_index is not None:
            return "message_stop out of place"
        self.stopped = True
        return None


def shown_index(event: Event) -> str:
    """For the log; what is no number might be anything."""
    index = event.get("index")
    return str(index) if isinstance(index, int) else "without a number"


# Members that nobody can do without.
EVENT_MEMBERS = {
    "message_start": "message",
    "content_block_start": "content_block",
    "content_block_delta": "delta",
    "message_delta": "delta",
}
GRAMMAR_STEPS = {
    "message_start": GrammarState.message_start,
    "content_block_start": GrammarState.block_start,
    "content_block_delta": GrammarState.block_delta,
    "content_block_stop": GrammarState.block_stop,
    "message_delta": GrammarState.message_delta,
    "message_stop": GrammarState.message_stop,
}


# --- message <-> events ------------------------------------------------------------------------

# Block type -> the members that are told in deltas: (member, delta type, the delta's member).
STREAMED_MEMBERS = {
    "text": (("text", "text_delta", "text"),),
    "thinking": (
        ("thinking", "thinking_delta", "thinking"),
        ("signature", "signature_delta", "signature"),
    ),
}
INPUT_BLOCKS = ("tool_use", "server_tool_use", "mcp_tool_use")


def empty_block(block: Dict[str, Any]) -> Dict[str, Any]:
    """The block as `content_block_start` shows it: everything that deltas will tell is empty."""
    start = dict(block)
    for member, _, _ in STREAMED_MEMBERS.get(block["type"], ()):
        if member in start:
            start[member] = ""
    if isinstance(start.get("citations"), list):
        start["citations"] = []
    if block["type"] in INPUT_BLOCKS:
        start["input"] = {}
    return start


def block_deltas(block: Dict[str, Any]) -> Iterator[Dict[str, Any]]:
    """The deltas that fill `empty_block(block)` again."""
    if isinstance(block.get("citations"), list):
        for citation in block["citations"]:
            yield {"type": "citations_delta", "citation": citation}
    for member, kind, key in STREAMED_MEMBERS.get(block["type"], ()):
        if block.get(member):
            yield {"type": kind, key: block[member]}
    if block["type"] in INPUT_BLOCKS and block.get("input"):
        yield {"type": "input_json_delta", "partial_json": encode_json(block["input"])}


def message_to_events(message: Message) -> Iterator[Event]:
    """Tell a whole message as events."""
    first = {**message, "content": [], "stop_reason": None, "stop_sequence": None}
    yield {"type": "message_start", "message": first}
    for index, block in enumerate(message["content"]):
        yield {"type": "content_block_start", "index": index, "content_block": empty_block(block)}
        for delta in block_deltas(block):
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    delta = {key: message.get(key) for key in ("stop_reason", "stop_sequence")}
    yield {"type": "message_delta", "delta": delta, "usage": message.get("usage", {})}
    yield {"type": "message_stop"}


def events_to_message(events: Iterable[Event]) -> Message:
    """Fold a complete stream into the message that it tells."""
    message: Message = {}
    blocks: Dict[int, BlockFold] = {}
    kept = Ration()
    for event in events:
        kind = event.get("type")
        if kind == "message_start":
            message = {**event["message"], "usage": dict(event["message"].get("usage") or {})}
        elif kind == "content_block_start":
            blocks[event["index"]] = BlockFold(event["content_block"], kept)
        elif kind == "content_block_delta":
            blocks[event["index"]].add(event["delta"])
        elif kind == "message_delta":
            told = {k: v for k, v in event.items() if k not in FOLDED_APART}
            merge_told(message, {**told, **(event.get("delta") or {})})
            merge_told(message["usage"], event.get("usage") or {})
    message["content"] = [blocks[index].block() for index in sorted(blocks)]
    return message


def merge_told(members: Dict[str, Any], told: Dict[str, Any]) -> None:
    """What is told later counts, unless it is null."""
    for name, value in told.items():
        if value is not None or name not in members:
            members[name] = value


FOLDED_APART = ("type", "delta", "usage")
# Delta type -> the member in which it brings more of the block's text.
DELTA_MEMBERS = {
    "text_delta": "text",
    "thinking_delta": "thinking",
    "signature_delta": "signature",
    "input_json_delta": "partial_json",
}


def kept_size(value: Any) -> int:
    """About so much is kept with a value."""
    if isinstance(value, str):
        return len(value)
    return len(encode_json(value)) if value else 0


class BlockFold:
    """One block being put together. Parts are joined once, at the end.

    A delta of a type that we do not know is taken for what all the others are: text is added to the
    block's member of that name, a list goes on, anything else replaces what was there.
    """

    def __init__(self, start: Dict[str, Any], kept: Ration) -> None:
        size = 0
        for name, value in start.items():
            size += len(name) + kept_size(value)
        kept.take(size)
        self._start = start
        self._kept = kept
        self._parts: Dict[str, List[str]] = {}
        self._lists: Dict[str, List[Any]] = {}
        self._others: Dict[str, Any] = {}

    def add(self, delta: Dict[str, Any]) -> None:
        kind = delta.get("type")
        known = DELTA_MEMBERS.get(kind) if isinstance(kind, str) else None
        if known:
            self._add_member(known, delta.get(known))
        elif kind == "citations_delta":
            self._add_member("citations", [delta.get("citation")])
        else:
            for key in [key for key in delta if key != "type"]:
                self._add_member(key, delta[key])

    def _add_member(self, key: str, value: Any) -> None:
        self._kept.take(kept_size(value))
        if isinstance(value, str):
            if key in self._parts:
                self._parts[key].append(value)
            else:
                self._parts[key] = [value]
        elif isinstance(value, list):
            self._lists.setdefault(key, []).extend(value)
        elif value is not None:
            self._others[key] = value

    def block(self) -> Dict[str, Any]:
        block = {**self._start, **self._others}
        if "partial_json" in self._parts:
            arguments = "".join(self._parts.pop("partial_json"))
            # A call whose input stood in its start may be followed by an empty delta.
            if arguments.strip() or "input" not in block:
                block["input"] = parse_tool_input(arguments)
        for key, parts in self._parts.items():
            told = block.get(key)
            block[key] = (told if isinstance(told, str) else "") + "".join(parts)
        for key, items in self._lists.items():
            block[key] = [*(block[key] if isinstance(block.get(key), list) else ()), *items]
        return block


def input_float(digits: str) -> float:
    """A number that JSON can be made of again: `1e999` would become Infinity."""
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise ValueError(digits[:20])
    return value


def parse_tool_input(text: str) -> Any:
    """The input of a tool call from its JSON text.

    Text that is not JSON stays readable in the shape that Claude Code itself uses for it, so that
    the model is told of its mistake rather than the client of ours.
    """
    if text.strip() in ("", "null"):
        return {}
    try:
        # `int` refuses NaN and Infinity, which no client could read again.
        return json.loads(text, parse_float=input_float, parse_constant=int)
    except (ValueError, RecursionError):
        return {"__unparsedToolInput": {"raw": text, "len": len(text)}}
