"""Stop sequences, watched for in an answer whose upstream does not know or heed them. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import List

from claude_proxy.dialects.think_tags import longest_overlap


class StopWatch:
    """Ends a text at the first stop sequence in it.

    One may be cut anywhere, so text that may become one is held back. What counts is which is
    complete first: then the pieces that the text comes in make no difference.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        self.matched = ""
        self._stops = tuple(stops)
        self._held = ""

    def feed(self, text: str) -> str:
        """The text that is certain now; none behind a stop sequence."""
        if self.matched:
            return ""
        text, self._held = self._held + text, ""
        places = [(text.find(stop), stop) for stop in self._stops]
        found = [(place + len(stop), place, stop) for place, stop in places if place >= 0]
        if found:
            _, place, self.matched = min(found)
            return text[:place]
        cut = len(text) - max(longest_overlap(text, stop) for stop in self._stops)
        text, self._held = text[:cut], text[cut:]
        return text

    def end(self) -> str:
        """What was held back: no stop sequence, as it turns out."""
        held, self._held = self._held, ""
        return held


def stop_strings(stops: Iterable[object]) -> List[str]:
    """The stop sequences that can be watched for."""
    return [stop for stop in stops if isinstance(stop, str) and stop]
