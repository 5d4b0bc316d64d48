"""Ends an answer at a stop sequence, whoever was asked to. Pure.

Providers take few sequences or none, and most do not say which one matched. So the proxy watches
the text itself: what might be the beginning of a sequence is held back until it is clear. Thinking
and tool input are not watched.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Callable, Dict, Optional, Tuple

from claude_proxy.events import Event


class StopWatch:
    """Looks for the first of some sequences in a text that comes in pieces."""

    def __init__(self, sequences: Sequence[str]) -> None:
        # The longest first: of two that begin together it is the one that was meant.
        ordered = sorted(sequences, key=len, reverse=True)
        self._found = re.compile("|".join(map(re.escape, ordered)))
        self._beginnings = {s[:size] for s in sequences for size in range(1, len(s))}
        self._longest = max(map(len, sequences)) - 1
        self._held = ""

    def feed(self, text: str) -> Tuple[str, Optional[str]]:
        """(text that is certain, the sequence that ends it or None)."""
        text = self._held + text
        match = self._found.search(text)
        if match:
            self._held = ""
            return text[: match.start()], match.group()
        cut = next(
            (n for n in range(min(self._longest, len(text)), 0, -1)
             if text[-n:] in self._beginnings), 0,
        )  # fmt: skip
        self._held = text[len(text) - cut :]
        return text[: len(text) - cut], None

    def end(self) -> str:
        """What was held back, if nothing more comes."""
        held, self._held = self._held, ""
        return held


def watch_stops(
    events: Iterable[Event], sequences: Sequence[str], input_tokens: Callable[[], int]
) -> Iterator[Event]:
    """The events up to the first stop sequence in a text; then the end that the API tells.

    After a match nothing more is read, so usage is estimated: `input_tokens` for the prompt.
    """
    watch, told = StopWatch(sequences), 0
    for event in events:
        delta = event.get("delta") if event["type"] == "content_block_delta" else None
        if delta is not None and delta["type"] == "text_delta":
            text, matched = watch.feed(delta["text"])
            told += len(text)
            if text:
                yield {**event, "delta": {**delta, "text": text}}
            if matched:
                usage = {"input_tokens": input_tokens(), "output_tokens": max(1, told // 4)}
                yield from stopped_events(event["index"], matched, usage)
                return
            continue
        if event["type"] == "content_block_stop":
            yield from held_text(event["index"], watch.end())
        yield event


def held_text(index: int, text: str) -> Iterator[Event]:
    if text:
        delta = {"type": "text_delta", "text": text}
        yield {"type": "content_block_delta", "index": index, "delta": delta}


def stopped_events(index: int, sequence: str, usage: Dict[str, Any]) -> Iterator[Event]:
    yield {"type": "content_block_stop", "index": index}
    delta = {"stop_reason": "stop_sequence", "stop_sequence": sequence}
    yield {"type": "message_delta", "delta": delta, "usage": usage}
    yield {"type": "message_stop"}
