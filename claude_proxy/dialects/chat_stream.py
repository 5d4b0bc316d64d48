"""Chat Completions answers -> Messages events. Pure: no I/O, no clock.

    bytes --chat_chunks--> chunks --chunks_to_events--> events

Providers agree on little more than the names of the fields, so every chunk is taken for what it
holds: text, reasoning, refusal, pieces of tool calls, a finish reason, usage, an error; anything
else is passed over. Blocks are opened and closed by `EventWriter` alone. Of parallel calls that
arrive interleaved the first is told live, and the others wait their turn (`CallBook`).

Nothing is yielded before the first chunk that means something, so that an error until then can
still be a status. A stream that ends before its finish reason is an error and leaves its block
open: the client would take a closed one for whole.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

from claude_proxy.dialects.chat_calls import CallBook
from claude_proxy.dialects.think_tags import ThinkSplitter
from claude_proxy.errors import ProxyError, upstream_error, upstream_error_object
from claude_proxy.events import CUT_SHORT, Event, EventWriter
from claude_proxy.sse import FrameSplitter, frame_data

CHAT_DONE: Dict[str, Any] = {"done": True}

# finish_reason -> stop_reason; a tool call in the answer turns "end_turn" into "tool_use".
CHAT_STOP_REASONS = {
    "length": "max_tokens",
    "max_tokens": "max_tokens",
    "model_length": "max_tokens",
    "content_filter": "refusal",
    "safety": "refusal",
    "SAFETY": "refusal",
    "RECITATION": "refusal",
    "PROHIBITED_CONTENT": "refusal",
}
CHAT_FAILURES = ("error", "abort", "MALFORMED_FUNCTION_CALL", "insufficient_system_resource")
# json.loads would guess the encoding of each chunk anew.
CHUNK_DECODER = json.JSONDecoder()

LARGEST_JSON_BODY = 64 * 1024 * 1024
# First byte of a body -> what it is, whatever its content type says.
BODY_KINDS = {b"{": "json", b"[": "json", b"<": "page"}


# --- bytes -> chunks ---------------------------------------------------------------------------


def chat_chunks(pieces: Iterable[bytes]) -> Iterator[Dict[str, Any]]:
    """Decode an answer's body: JSON chunks in events, or one JSON object although a stream was
    asked for. `[DONE]` becomes CHAT_DONE and ends it."""
    splitter, whole, kind = FrameSplitter(), bytearray(), ""
    for piece in pieces:
        if not kind:
            piece = piece.lstrip()
            if not piece:
                continue
            kind = BODY_KINDS.get(piece[:1], "events")
            whole += piece
        elif kind != "events":
            whole += piece
            if len(whole) > LARGEST_JSON_BODY:
                raise ProxyError(502, "the upstream's answer is larger than any model's")
        if kind == "events":
            for frame in splitter.feed(piece):
                chunk = frame_to_chunk(frame)
                if chunk is not None:
                    yield chunk
                    if chunk is CHAT_DONE:
                        return
    if kind == "json":
        yield decode_chunk(bytes(whole)) or {}
        yield CHAT_DONE
        return
    if kind == "page":
        raise upstream_error(502, {}, bytes(whole))
    for frame in splitter.finish():
        chunk = frame_to_chunk(frame)
        if chunk is not None:
            yield chunk


def frame_to_chunk(frame: bytes) -> Optional[Dict[str, Any]]:
    """The chunk in a frame; None for comments and for JSON that is no object."""
    event, data = frame_data(frame)
    if data[:1] == b"{" and not event:  # the common case
        return decode_chunk(data)
    if not data.strip():
        return None
    if data.strip() == b"[DONE]":
        return CHAT_DONE
    if event == "error":
        raise upstream_error_object(loads_or_text(data))
    return decode_chunk(data)


def loads_or_text(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return {"error": data.decode("utf-8", "replace")}


def decode_chunk(data: bytes) -> Optional[Dict[str, Any]]:
    try:
        chunk = CHUNK_DECODER.decode(str(data, "utf-8"))
    except (ValueError, RecursionError):
        raise ProxyError(502, "the upstream sent an event that is not JSON") from None
    if type(chunk) is dict:
        return chunk
    if isinstance(chunk, list) and chunk and isinstance(chunk[0], dict):
        chunk = chunk[0]  # Gemini wraps its errors in a list
    return chunk if isinstance(chunk, dict) else None


# --- chunks -> events --------------------------------------------------------------------------


class ChatAsked(NamedTuple):
    """What has to be known of the request to retell its answer.

    `tool_names` maps names as the upstream knows them to the client's own, `used_ids` are those of
    calls earlier in the conversation, `only_tool` is the name where one tool is offered; the
    `input_estimate` is asked for input tokens if the upstream reports none.
    """

    tool_names: Mapping[str, str] = {}
    used_ids: Iterable[str] = ()
    only_tool: str = ""
    stops: Sequence[str] = ()
    input_estimate: Callable[[], int] = lambda: 0


def chunks_to_events(
    chunks: Iterable[Dict[str, Any]],
    write: EventWriter,
    asked: ChatAsked = ChatAsked(),
) -> Iterator[Event]:
    """Retell Chat Completions chunks as Messages events.

    ProxyError at an error chunk, and if the chunks end before a finish reason or CHAT_DONE.
    """
    answer = ChatAnswer(write, asked)
    try:
        for chunk in chunks:
            if chunk is CHAT_DONE:
                answer.done = True
                break
            yield from answer.chunk(chunk)
    except ProxyError as error:
        # Behind the finish reason there is nothing that a broken connection could take away.
        if error.message != CUT_SHORT or not answer.finished():
            raise
    yield from answer.finish()


class ChatAnswer:
    """One answer being retold."""

    def __init__(self, write: EventWriter, asked: ChatAsked) -> None:
        self.done = False
        self._write = write
        self._asked = asked
        self._calls = CallBook(write, asked.tool_names, asked.used_ids, asked.only_tool)
        self._think = ThinkSplitter()
        self._usage: Dict[str, Any] = {}
        self._finish: Optional[str] = None
        self._matched_stop: Optional[str] = None
        self._refusal: List[str] = []
        self._held: List[Tuple[Callable[[str], Iterable[Event]], str]] = []
        self._told = 0

    def finished(self) -> bool:
        return bool(self._finish)

    def chunk(self, chunk: Dict[str, Any]) -> Iterable[Event]:
        """The events that a chunk leads to."""
        if chunk.get("error") or chunk.get("object") == "error":
            raise upstream_error_object(chunk)
        aside = chunk.get("x_groq")
        usage = chunk.get("usage") or (aside.get("usage") if isinstance(aside, dict) else None)
        if isinstance(usage, dict):
            # A last chunk of zeros takes nothing back.
            self._usage.update((k, v) for k, v in usage.items() if v or k not in self._usage)
        choices = chunk.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict) or choice.get("index"):
            return ()
        delta = choice["delta"] if choice.get("delta") is not None else choice.get("message")
        events = self._delta(delta) if isinstance(delta, dict) else ()
        finish = choice.get("finish_reason")
        if not finish:
            return events
        events = [*events]
        self._note_finish(str(finish), choice)
        return events

    def _note_finish(self, finish: str, choice: Dict[str, Any]) -> None:
        if finish in CHAT_FAILURES:
            raise upstream_error_object(
                choice.get("error") or {"message": f"the model failed: {finish}"}
            )
        self._finish = finish
        matched = choice.get("stop_reason") or choice.get("matched_stop")
        self._matched_stop = matched if isinstance(matched, str) else None

    def _delta(self, delta: Dict[str, Any]) -> Iterable[Event]:
        content = delta.get("content")
        if len(delta) == 1 and type(content) is str:  # the common case
            return self._text(content)
        return list(self._parts(delta, content))

    def _parts(self, delta: Dict[str, Any], content: Any) -> Iterator[Event]:
        yield from self._thought(reasoning_text(delta))
        if isinstance(content, str):
            yield from self._text(content)
        elif isinstance(content, list):
            yield from self._content_list(content)
        refusal = delta.get("refusal")
        if isinstance(refusal, str) and refusal:
            self._refusal.append(refusal)
            yield from self._text(refusal)
        legacy = delta.get("function_call")
        calls = delta.get("tool_calls") or ([{"index": 0, "function": legacy}] if legacy else [])
        for call in calls if isinstance(calls, list) else [calls]:
            if isinstance(call, dict):
                yield from self._release_text_before(call)
                yield from self._calls.add(call)

    def _content_list(self, parts: List[Any]) -> Iterator[Event]:
        """Mistral's list content: thinking parts and text parts."""
        for part in parts:
            if not isinstance(part, dict):
                continue
            if part.get("type") == "thinking":
                yield from self._thought(thinking_part_text(part.get("thinking")))
            elif isinstance(part.get("text"), str):
                yield from self._text(part["text"])

    def _thought(self, text: str) -> Iterable[Event]:
        return self._in_turn(self._write.thinking, text) if text else ()

    def _text(self, text: str) -> Iterable[Event]:
        if not text:
            return ()
        if self._think.active:
            thought, text = self._think.feed(text)
            return [*self._thought(thought), *self._plain_text(text)]
        return self._plain_text(text)

    def _plain_text(self, text: str) -> Iterable[Event]:
        return self._in_turn(self._write.text, text) if text else ()

    def _in_turn(self, tell: Callable[[str], Iterable[Event]], text: str) -> Iterable[Event]:
        """Tell text or thought, behind what waits; amid a call that is not complete it waits."""
        if not self._calls.any:
            self._told += len(text)
            return tell(text)
        self._held.append((tell, text))
        return () if self._calls.busy() else self._release()

    def _release(self) -> Iterable[Event]:
        """What was said amid calls, once they are complete; blank text is dropped there."""
        held, self._held = self._held, []
        if not any(text.strip() for _, text in held):
            return ()
        self._told += sum(len(text) for _, text in held)
        runs = itertools.groupby(held, lambda one: one[0])
        joined = [(tell, "".join(text for _, text in run)) for tell, run in runs]
        calls = list(self._calls.finish())
        return [*calls, *(event for tell, text in joined for event in tell(text))]

    def _release_text_before(self, call: Dict[str, Any]) -> Iterable[Event]:
        thought, text = self._think.end()
        events = [*self._thought(thought), *self._plain_text(text)]
        return events if self._calls.busy() else [*events, *self._release()]

    def finish(self) -> Iterator[Event]:
        """The end: what was held back, the stop reason, the usage."""
        thought, text = self._think.end()
        if not self._finish and not (self.done and (self._write.started or thought or text)):
            raise ProxyError(502, CUT_SHORT)
        yield from self._thought(thought)
        yield from self._plain_text(text)
        yield from self._calls.finish()
        yield from self._release()
        reason, more = self._stop_reason()
        yield from self._write.finish(reason, self._final_usage(), **more)

    def _stop_reason(self) -> Tuple[str, Dict[str, Any]]:
        if self._refusal:
            explanation = "".join(self._refusal)
            return "refusal", {"stop_details": refusal_details(explanation)}
        reason = CHAT_STOP_REASONS.get(self._finish or "", "end_turn")
        if reason == "refusal":
            return "refusal", {"stop_details": refusal_details(None)}
        if reason == "end_turn" and self._calls.any:
            return "tool_use", {}
        if reason == "end_turn" and self._matched_stop in self._asked.stops:
            return "stop_sequence", {"stop_sequence": self._matched_stop}
        return reason, {}

    def _final_usage(self) -> Dict[str, Any]:
        if not self._usage:
            told = max(1, (self._told + self._calls.told) // 4)
            return {"input_tokens": self._asked.input_estimate(), "output_tokens": told}
        usage = chat_usage(self._usage)
        if not any(usage[key] for key in usage if key != "output_tokens"):
            usage["input_tokens"] = self._asked.input_estimate()
        return usage


def refusal_details(explanation: Optional[str]) -> Dict[str, Any]:
    return {"type": "refusal", "category": None, "explanation": explanation}


def reasoning_text(delta: Dict[str, Any]) -> str:
    """The reasoning in a delta, under the name that this provider gives it."""
    for key in ("reasoning_content", "reasoning"):
        if isinstance(delta.get(key), str) and delta[key]:
            return delta[key]
    details = delta.get("reasoning_details")
    parts = [d for d in details if isinstance(d, dict)] if isinstance(details, list) else []
    return "".join(thinking_part_text(d.get("text") or d.get("summary")) for d in parts)


def thinking_part_text(inner: Any) -> str:
    """The text of a thinking part: itself, or that of the parts in it."""
    if isinstance(inner, list):
        return "".join(thinking_part_text(p.get("text")) for p in inner if isinstance(p, dict))
    return inner if isinstance(inner, str) else ""


def chat_usage(usage: Mapping[str, Any]) -> Dict[str, Any]:
    """Messages usage: `input_tokens` leaves out what was read from, or written to, a cache."""
    details = usage.get("prompt_tokens_details")
    details = details if isinstance(details, dict) else {}
    read = first_count(
        details.get("cached_tokens"),
        usage.get("prompt_cache_hit_tokens"),
        usage.get("cached_tokens"),
        usage.get("cache_read_input_tokens"),
    )
    written = first_count(
        details.get("cache_write_tokens"), usage.get("cache_creation_input_tokens")
    )
    prompt, completion = (
        first_count(usage.get("prompt_tokens")),
        first_count(usage.get("completion_tokens")),
    )
    total = first_count(usage.get("total_tokens"))
    reasons = usage.get("completion_tokens_details")
    reasoned = first_count(reasons.get("reasoning_tokens")) if isinstance(reasons, dict) else 0
    if reasoned and total == prompt + completion + reasoned:
        completion = total - prompt  # xAI counts reasoning apart
    return {
        "input_tokens": max(0, prompt - read - written),
        "cache_read_input_tokens": read,
        "cache_creation_input_tokens": written,
        "output_tokens": completion,
    }


def first_count(*values: Any) -> int:
    """The first value above 0 as a number; providers send null, text and fractions."""
    for value in values:
        try:
            number = int(float(value))
        except (TypeError, ValueError, OverflowError):
            continue
        if number > 0:
            return number
    return 0
