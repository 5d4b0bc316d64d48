"""Chat Completions answers -> Messages events. Pure: no I/O, no clock.

    bytes --chat_chunks--> chunks --chunks_to_events--> events

Providers agree on little more than the names of the fields, so every chunk is taken for what it
holds: text, reasoning, refusal, pieces of tool calls, a finish reason, usage, an error; anything
else is passed over. Blocks are opened and closed by the event writer alone. Of parallel calls that
arrive interleaved the first is told live, and the others wait their turn (`CallBook`).

Nothing is yielded before the first chunk that means something, so that an error until then can
still be a status. A stream that ends before its finish reason is an error and leaves its block
open: the client would take a closed one for whole.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

from claude_proxy.dialects.carriers import merge_details
from claude_proxy.dialects.chat_calls import CallBook
from claude_proxy.dialects.chat_frames import (
    CHAT_DONE,
    TextChunk,
    body_start,
    decode_chunk,
    event_chunks,
    whole_body,
)
from claude_proxy.dialects.chat_usage import chat_usage, largest_counts
from claude_proxy.dialects.stop_watch import StopWatch, stop_strings
from claude_proxy.dialects.think_tags import ThinkSplitter
from claude_proxy.dialects.thought_writer import ThoughtWriter
from claude_proxy.errors import ProxyError, upstream_error, upstream_error_object
from claude_proxy.events import CUT_SHORT, Event, EventWriter, Ration
from claude_proxy.names import plain_word
from claude_proxy.patterns import LazyPattern
from claude_proxy.sse import encode_json

# finish_reason, in lower case -> stop_reason; a tool call in the answer turns "end_turn" into
# "tool_use".
CHAT_STOP_REASONS = {
    **dict.fromkeys(("length", "max_tokens", "model_length"), "max_tokens"),
    **dict.fromkeys(("content_filter", "safety", "recitation", "prohibited_content"), "refusal"),
}
CHAT_FAILURES = ("error", "abort", "malformed_function_call", "insufficient_system_resource")
# Those that mean what they say, besides the ones above.
PLAIN_FINISHES = "stop tool_calls function_call eos end_turn complete tool_use".split()
KNOWN_FINISHES = frozenset((*PLAIN_FINISHES, *CHAT_STOP_REASONS, ""))
# Members of a chunk that are looked at wherever they are.
TELLING_MEMBERS = frozenset(("error", "usage", "x_groq"))
# Members of a delta that are told, besides `content`.
OTHER_PARTS = frozenset(
    "reasoning_content reasoning reasoning_details refusal function_call tool_calls".split()
)
# What may stand in a log, of an upstream's id or finish reason.
LOGGED_WORD = LazyPattern(r"[A-Za-z0-9_.:-]{1,100}")


def chat_chunks(pieces: Iterable[bytes]) -> Iterator[Dict[str, Any]]:
    """Decode an answer's body: JSON chunks in events, or one JSON object although a stream was
    asked for. `[DONE]` becomes CHAT_DONE and ends it."""
    rest = iter(pieces)
    kind, start = body_start(rest)
    if kind == "events":
        yield from event_chunks(itertools.chain([start], rest))
        return
    whole = whole_body(itertools.chain([start], rest))
    if kind == "page":
        raise upstream_error(502, {}, whole)
    chunk = decode_chunk(whole)
    if chunk is None or "choices" not in chunk:
        raise upstream_error_object(chunk)
    yield chunk
    yield CHAT_DONE


class ChatAsked(NamedTuple):
    """What has to be known of the request to retell its answer.

    `tool_names` maps names as the upstream knows them to the client's own, `used_ids` are those of
    calls earlier in the conversation, `only_tool` is the name where one tool is offered; the
    `input_estimate` is asked for input tokens if the upstream reports none.

    `one_call` drops every call but the first, `hide_thinking` the text of the reasoning; with
    `think_opened` the prompt ends within a think tag. `carry` is what has to come back with the
    next request ("reasoning_details" or "extra_content"): it goes into signatures, and what comes
    too late for that to `late`, with the ids of the calls that it belongs to and its kind. `note`
    is told facts for the log.
    """

    tool_names: Mapping[str, str] = {}
    used_ids: Iterable[str] = ()
    only_tool: str = ""
    stops: Sequence[str] = ()
    input_estimate: Callable[[], int] = lambda: 0
    one_call: bool = False
    hide_thinking: bool = False
    think_opened: bool = False
    carry: str = ""
    late: Callable[[List[str], str, Any], None] = lambda ids, kind, data: None
    note: Callable[[str, Any], None] = lambda key, value: None


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
            if answer.stopped:
                break
    except ProxyError as error:
        # Behind the finish reason there is nothing that a broken connection could take away.
        if error.message != CUT_SHORT or not answer.finished:
            raise
    except RecursionError:
        raise ProxyError(502, "the upstream sent an event that is nested too deeply") from None
    yield from answer.finish()


class ChatAnswer:
    """One answer being retold."""

    def __init__(self, write: EventWriter, asked: ChatAsked) -> None:
        self.done = False
        self.stopped = False
        self._asked = asked
        plain = not (asked.carry or asked.hide_thinking)
        self._write: Any = write if plain else ThoughtWriter(write, asked.hide_thinking)
        self._calls = CallBook(
            self._write,
            asked.tool_names,
            asked.used_ids,
            asked.only_tool,
            1 if asked.one_call else None,
            self._write.carry_extra if asked.carry == "extra_content" else None,
        )
        self._think = ThinkSplitter(asked.think_opened)
        stops = stop_strings(asked.stops) if asked.stops else ()
        self._watch = StopWatch(stops) if stops else None
        self._upstream_id = ""
        self._counts: Dict[str, int] = {}
        self._tier = ""
        self._finish: Optional[str] = None
        self._matched_stop: Optional[str] = None
        self._refusal: List[str] = []
        self._late_details: List[Dict[str, Any]] = []
        self._tell = {"text": self._write.text, "thinking": self._write.thinking}
        # A chunk that may come again with another text, and what tells that.
        self._known: Optional[TextChunk] = None
        self._tell_more = ChatAnswer._text
        self._held: List[Tuple[str, str]] = []  # (key of _tell, text)
        self._told = self._thought_told = 0
        self._ration = Ration()

    @property
    def finished(self) -> bool:
        """Whether the finish reason has come."""
        return bool(self._finish)

    # --- a chunk --------------------------------------------------------------------------------

    def chunk(self, chunk: Dict[str, Any]) -> Iterable[Event]:
        """The events that a chunk leads to."""
        if chunk is self._known:
            text = chunk.place[chunk.member]
            return self._tell_more(self, text) if text else ()
        if not self._upstream_id:
            self._note_id(chunk.get("id"))
        self._known = None
        if chunk.get("object") == "error" or not TELLING_MEMBERS.isdisjoint(chunk):
            self._note_chunk(chunk)
        choices = chunk.get("choices")
        choice = choices[0] if type(choices) is list and choices else None
        if type(choice) is not dict or choice.get("index"):
            choice = first_choice(choices) if choices else None
            if choice is None:
                return ()
        delta = choice.get("delta")
        delta = choice.get("message") if delta is None else delta
        events = self._delta(delta) if delta and type(delta) is dict else ()
        finish = choice.get("finish_reason")
        if not finish:
            if type(chunk) is TextChunk:
                self._know(chunk, delta)
            return events
        events = [*events]
        self._note_finish(str(finish), choice)
        self._note_tier(chunk)
        return events

    def _note_chunk(self, chunk: Dict[str, Any]) -> None:
        """What is told beside the choices: an error, or what it costs."""
        if chunk.get("error") or chunk.get("object") == "error":
            raise upstream_error_object(chunk, self._asked.input_estimate())
        if chunk.get("usage") or chunk.get("x_groq"):
            self._note_usage(chunk)

    def _note_id(self, upstream_id: Any) -> None:
        if isinstance(upstream_id, str) and LOGGED_WORD.fullmatch(upstream_id):
            self._upstream_id = upstream_id
            self._asked.note("upstream_id", upstream_id)

    def _note_usage(self, chunk: Dict[str, Any]) -> None:
        """Token counts, wherever in the chunk they are; those of llama.cpp's timings too."""
        aside = chunk.get("x_groq")
        usage = chunk.get("usage") or (aside.get("usage") if isinstance(aside, dict) else None)
        for counts in (usage, chunk.get("timings")):
            if isinstance(counts, dict):
                largest_counts(self._counts, counts)
        self._note_tier(chunk)

    def _note_tier(self, chunk: Dict[str, Any]) -> None:
        if chunk.get("service_tier") == "priority":
            self._tier = "priority"

    def _note_finish(self, finish: str, choice: Dict[str, Any]) -> None:
        if finish.lower() in CHAT_FAILURES:
            raise upstream_error_object(
                choice.get("error") or {"message": f"the model failed: {finish}"}
            )
        self._finish = finish
        matched = choice.get("stop_reason") or choice.get("matched_stop")
        self._matched_stop = matched if isinstance(matched, str) else None

    def _know(self, chunk: TextChunk, delta: Dict[str, Any]) -> None:
        """Remember a chunk whose text is all that is new in it, until another comes: the next piece
        of a call may be told as it comes only while nothing else does."""
        others = [name for name in delta if delta[name] and name not in ("role", chunk.member)]
        if chunk.place is delta and not others:
            self._known = chunk
            self._tell_more = ChatAnswer._text if chunk.member == "content" else ChatAnswer._thought
        elif others == ["tool_calls"] and self._flows(delta["tool_calls"]):
            self._known, self._tell_more = chunk, ChatAnswer._arguments

    def _delta(self, delta: Dict[str, Any]) -> Iterable[Event]:
        content = delta.get("content")
        if type(content) is str and OTHER_PARTS.isdisjoint(delta):  # the common cases
            return self._text(content)
        calls = delta.get("tool_calls")
        if calls and len(delta) == 1 and self._flows(calls):
            return self._arguments(calls[0]["function"]["arguments"])
        return list(self._parts(delta, content))

    def _flows(self, calls: Any) -> bool:
        """Whether there is nothing but the next piece of a call, and nothing to be told first."""
        one = type(calls) is list and len(calls) == 1 and type(calls[0]) is dict
        return one and not self._has_waiting() and self._calls.flows(calls[0])

    def _arguments(self, text: str) -> Iterable[Event]:
        return self._calls.more(text)

    def _has_waiting(self) -> bool:
        """Whether something may have to be told before a piece of a call."""
        return bool(self._held) or self._watch is not None or self._think.active

    def _parts(self, delta: Dict[str, Any], content: Any) -> Iterator[Event]:
        yield from self._thought(reasoning_text(delta))
        if self._asked.carry == "reasoning_details":
            self._take_details(delta.get("reasoning_details"))
        if isinstance(content, str):
            yield from self._text(content)
        elif isinstance(content, (list, dict)):
            yield from self._content_list(content if isinstance(content, list) else [content])
        refusal = delta.get("refusal")
        if isinstance(refusal, str) and refusal:
            self._ration.take(len(refusal))
            self._refusal.append(refusal)
            yield from self._text(refusal)
        legacy = delta.get("function_call")
        calls = delta.get("tool_calls") or ([{"index": 0, "function": legacy}] if legacy else [])
        for call in calls if isinstance(calls, list) else [calls]:
            if isinstance(call, dict) and not self.stopped:
                yield from self._before_call()
                yield from self._calls.add(call)

    def _content_list(self, parts: List[Any]) -> Iterator[Event]:
        """Content in parts: thinking (Mistral's, or reasoning summaries) and text."""
        for part in parts:
            if not isinstance(part, dict):
                continue
            if part.get("type") in ("thinking", "reasoning"):
                inner = part.get("thinking") or part.get("summary") or part.get("text")
                yield from self._thought(thinking_part_text(inner))
            elif isinstance(part.get("text"), str):
                yield from self._text(part["text"])

    def _take_details(self, details: Any) -> None:
        """Reasoning parts for the block that is open or comes; too late once a call has begun."""
        parts = [d for d in details if isinstance(d, dict)] if isinstance(details, list) else []
        if not parts:
            return
        self._ration.take(len(encode_json(parts)))
        if self._calls.any:
            self._late_details += parts
        else:
            self._write.carry_details(parts)

    # --- text and thought -----------------------------------------------------------------------

    def _thought(self, text: str) -> Iterable[Event]:
        if not text:
            return ()
        self._thought_told += len(text)
        if self._asked.carry:
            self._ration.take(len(text))
        before = self._unwatched()
        return [*before, *self._in_turn("thinking", text)]

    def _text(self, text: str) -> Iterable[Event]:
        if not text:
            return ()
        if self._think.active:
            thought, text = self._think.feed(text)
            return [*self._thought(thought), *self._plain_text(text)]
        return self._plain_text(text)

    def _plain_text(self, text: str) -> Iterable[Event]:
        if self._watch is not None:
            text = self._watch.feed(text)
            # A call that has begun is not given up amid its arguments.
            self.stopped = bool(self._watch.matched) and not self._calls.busy()
        return self._in_turn("text", text) if text else ()

    def _unwatched(self) -> Iterable[Event]:
        """The text held back for a stop sequence that something else has cut off."""
        text = self._watch.end() if self._watch is not None else ""
        return self._in_turn("text", text) if text else ()

    def _in_turn(self, kind: str, text: str) -> Iterable[Event]:
        """Tell text or thought, behind what waits; amid a call that is not complete it waits."""
        if not self._calls.any or (kind == self._write.open_block and self._calls.idle()):
            self._told += len(text)
            return self._tell[kind](text)
        self._ration.take(len(text))
        self._held.append((kind, text))
        return () if self._calls.busy() else self._release()

    def _release(self) -> Iterable[Event]:
        """What was said amid calls, once they are complete; blank text alone is no block, but it
        may be the beginning of one."""
        runs = joined_runs(self._held)
        if not any(text.strip() for _, text in runs):
            return ()
        self._held = [] if runs[-1][1].strip() else [runs.pop()]
        said = joined_runs([(kind, text) for kind, text in runs if text.strip()])
        self._told += sum(len(text) for _, text in said)
        calls = list(self._calls.finish())
        return [*calls, *(event for kind, text in said for event in self._tell[kind](text))]

    def _before_call(self) -> Iterable[Event]:
        """What has to be told before a piece of a call; blank text is dropped there."""
        events: List[Event] = []
        if self._think.active:
            thought, text = self._think.end()
            text = text if text.strip() else ""
            events = [*self._thought(thought), *self._plain_text(text)]
        if self._watch is not None:
            events += self._unwatched()
        if self._held and not self._calls.busy():
            events += self._release()
            self._held = []
        return events

    # --- the end --------------------------------------------------------------------------------

    def finish(self) -> Iterator[Event]:
        """The end: what was held back, the stop reason, the usage."""
        thought, text = self._think.end() if self._think.active else ("", "")
        something = self._write.started or self._calls.any or thought or text
        if not (self._finish or self.stopped or (self.done and something)):
            raise ProxyError(502, CUT_SHORT)
        if thought or text or self._watch is not None:
            yield from self._thought(thought)
            yield from self._plain_text(text)
            yield from self._unwatched()
        if self._calls.any:
            yield from self._calls.finish(cut=self._mapped_finish() != "end_turn")
            yield from self._release()
        self._hand_over()
        self._note_oddities()
        reason, more = self._stop_reason()
        yield from self._write.finish(reason, self._final_usage(), **more)

    def _hand_over(self) -> None:
        """What has to come back, and came too late for a signature."""
        if self._late_details:
            details = merge_details(self._late_details)
            self._asked.late(self._calls.told_ids(), "reasoning_details", details)
        for call_id, extra in self._calls.late_extras:
            self._asked.late([call_id], "extra_content", extra)

    def _note_oddities(self) -> None:
        finish, note = (self._finish or "").lower(), self._asked.note
        if finish not in KNOWN_FINISHES:
            note("finish_reason", plain_word(finish) or "unknown")
        if self._told == self._thought_told and not self._calls.any:
            note("empty_answer", True)
        if self._calls.dropped():
            note("calls_dropped", self._calls.dropped())

    def _mapped_finish(self) -> str:
        return CHAT_STOP_REASONS.get((self._finish or "").lower(), "end_turn")

    def _stop_reason(self) -> Tuple[str, Dict[str, Any]]:
        if self._refusal:
            explanation = "".join(self._refusal)
            return "refusal", {"stop_details": refusal_details(explanation)}
        reason = self._mapped_finish()
        if reason == "refusal" and not self._calls.whole():
            return "refusal", {"stop_details": refusal_details(None)}
        if reason != "max_tokens" and self._calls.any:
            return "tool_use", {}
        if self._watch is not None and self._watch.matched:
            return "stop_sequence", {"stop_sequence": self._watch.matched}
        if reason == "end_turn" and self._matched_stop in self._asked.stops:
            return "stop_sequence", {"stop_sequence": self._matched_stop}
        return reason, {}

    def _final_usage(self) -> Dict[str, Any]:
        usage: Dict[str, Any] = chat_usage(self._counts)
        if not self._counts:
            told = max(1, (self._told + self._calls.told) // 4)
            usage = {"input_tokens": 0, "output_tokens": told}
            self._asked.note("usage", "estimated")
        if not any(map(usage.get, INPUT_COUNTS)):
            usage["input_tokens"] = self._asked.input_estimate()
        return {**usage, "service_tier": self._tier} if self._tier else usage


INPUT_COUNTS = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")


def joined_runs(held: List[Tuple[str, str]]) -> List[Tuple[str, str]]:
    """(kind, text) with neighbours of one kind joined."""
    runs = itertools.groupby(held, lambda one: one[0])
    return [(kind, "".join(text for _, text in run)) for kind, run in runs]


def refusal_details(explanation: Optional[str]) -> Dict[str, Any]:
    return {"type": "refusal", "category": None, "explanation": explanation}


def first_choice(choices: Any) -> Optional[Dict[str, Any]]:
    """The choice with index 0; of others there is nothing to tell."""
    found = [c for c in choices if isinstance(c, dict)] if isinstance(choices, list) else []
    return next((c for c in found if c.get("index") in (None, 0, "0")), None)


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
