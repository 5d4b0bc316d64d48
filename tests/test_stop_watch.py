"""Stop sequences that the proxy itself watches for."""

from __future__ import annotations

import pytest

from claude_proxy.dialects.stop_watch import StopWatch

TEXTS = [
    ("nothing", ["STOP"], "abc", "abc", None),
    ("in the middle", ["STOP"], "abc STOP def", "abc ", "STOP"),
    ("at the start", ["STOP"], "STOP", "", "STOP"),
    ("only begun", ["STOP"], "abc STO", "abc STO", None),
    ("begun twice", ["aab"], "aaab", "a", "aab"),
    ("the first of two", ["x", "y"], "1y2x", "1", "y"),
    ("the first to be whole", ["</a", "</a>"], "t</a>u", "t", "</a"),
    ("line ends", ["\n\nHuman:"], "a\n\nHuman: b", "a", "\n\nHuman:"),
    ("marks of patterns", [".*", "(["], "a([", "a", "(["),
    ("not ASCII", ["\u20ac\U0001f600"], "1\u20ac\U0001f6002", "1", "\u20ac\U0001f600"),
]


def feed(watch, pieces):
    told = ""
    for piece in pieces:
        told += watch.feed(piece)
    return told + watch.end(), watch.matched or None


@pytest.mark.parametrize("name,stops,text,told,matched", TEXTS, ids=[row[0] for row in TEXTS])
def test_every_split(name, stops, text, told, matched):
    splits = [[text], list(text), *([text[:n], text[n:]] for n in range(len(text)))]
    for pieces in splits:
        assert feed(StopWatch(stops), pieces) == (told, matched)


def test_nothing_is_held_back_without_reason():
    watch = StopWatch(["STOP"])
    assert [watch.feed(piece) for piece in ("ab", "cS", "x", "ST", "OX")] == ["ab", "c", "Sx", "", "STOX"]
