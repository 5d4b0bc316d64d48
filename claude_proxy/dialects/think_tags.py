"""Reasoning that a model writes into its text, between think tags, taken out of it. Pure."""

from __future__ import annotations

from typing import Tuple

# So much may stand before a tag: all of it is looked at anew for each piece.
LONGEST_BLANK = 16384
THINK_OPENINGS = ("<think>", "<thinking>", "<thought>", "<seed:think>")
# What may come first if a tag comes, or may yet.
TAG_STARTS = ("<", "")


class ThinkSplitter:
    """Takes reasoning out of a text that begins with a think tag.

    Only the very start counts: later tags may be what the answer is about. A tag may be cut
    anywhere, so text that may become one is held back. `opened`: the prompt ends with the opening
    tag, so the answer begins with reasoning and need not bring more than the closing one.
    """

    def __init__(self, opened: bool = False) -> None:
        self.active = True
        self._held = ""
        self._step = ThinkSplitter._opening
        self._closing = ""
        self._opened = opened

    def feed(self, text: str) -> Tuple[str, str]:
        """(reasoning, visible text) that are certain now."""
        self._held += text
        return self._step(self)

    def _opening(self) -> Tuple[str, str]:
        start = self._held.lstrip()
        if start[:1] not in TAG_STARTS and not self._opened:
            return self._release()
        opening = next((tag for tag in THINK_OPENINGS if start.startswith(tag)), "")
        if opening:
            self._held = start[len(opening) :]
        elif len(self._held) <= LONGEST_BLANK and (
            not start or any(tag.startswith(start) for tag in THINK_OPENINGS)
        ):
            return "", ""
        elif not self._opened:
            return self._release()
        self._closing = "</" + (opening or "<think>")[1:]
        self._step = ThinkSplitter._thinking
        return self._thinking()

    def _thinking(self) -> Tuple[str, str]:
        thought, closed, rest = self._held.partition(self._closing)
        if closed:
            self._held, self._step, self._closing = rest, ThinkSplitter._behind, ""
            return thought, self._behind()[1]
        cut = len(self._held) - longest_overlap(self._held, self._closing)
        thought, self._held = self._held[:cut], self._held[cut:]
        return thought, ""

    def _behind(self) -> Tuple[str, str]:
        # The empty lines between reasoning and answer belong to neither.
        self._held = self._held.lstrip("\n")
        return self._release() if self._held else ("", "")

    def _release(self) -> Tuple[str, str]:
        self.active = False
        text, self._held = self._held, ""
        return "", text

    def end(self) -> Tuple[str, str]:
        """What is held at the end: reasoning if its tag was never closed."""
        self.active = False
        held, self._held = self._held, ""
        return (held, "") if self._closing else ("", held)


def longest_overlap(text: str, mark: str) -> int:
    """How much of the end of `text` is a beginning of `mark`."""
    return next(
        (n for n in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:n])), 0
    )
