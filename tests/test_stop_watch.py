"""Stop sequences that the proxy itself watches for."""

from __future__ import annotations

import itertools

import pytest

from claude_proxy.dialects.stop_watch import StopWatch, watch_stops
from claude_proxy.events import EventWriter, check_grammar, events_to_message

TEXTS = [
    ("nothing", ["STOP"], "abc", "abc", None),
    ("in the middle", ["STOP"], "abc STOP def", "abc ", "STOP"),
    ("at the start", ["STOP"], "STOP", "", "STOP"),
    ("only begun", ["STOP"], "abc STO", "abc STO", None),
    ("begun twice", ["aab"], "aaab", "a", "aab"),
    ("the first of two", ["x", "y"], "1y2x", "1", "y"),
    ("the longer of two", ["</a", "</a>"], "t</a>u", "t", "</a>"),
    ("line ends", ["\n\nHuman:"], "a\n\nHuman: b", "a", "\n\nHuman:"),
    ("marks of patterns", [".*", "(["], "a([", "a", "(["),
    ("not ASCII", ["\u20ac\U0001f600"], "1\u20ac\U0001f6002", "1", "\u20ac\U0001f600"),
]


def feed(watch, pieces):
    told = ""
    for piece in pieces:
        text, matched = watch.feed(piece)
        told += text
        if matched:
            return told, matched
    return told + watch.end(), None


@pytest.mark.parametrize("name,stops,text,told,matched", TEXTS, ids=[row[0] for row in TEXTS])
def test_every_split(name, stops, text, told, matched):
    splits = [[text], list(text), *([text[:n], text[n:]] for n in range(len(text)))]
    for pieces in splits:
        found = feed(StopWatch(stops), pieces)
        # Of two that begin together, the shorter may be whole before the longer can be known.
        assert found[0] == told and (found[1] == matched or found[1] and matched.startswith(found[1]))


def test_nothing_is_held_back_without_reason():
    watch = StopWatch(["STOP"])
    assert [watch.feed(piece)[0] for piece in ("ab", "cS", "x", "ST", "OX")] == ["ab", "c", "Sx", "", "STOX"]


def answer(*deltas):
    """An answer of (kind, text) pieces, as events."""
    write = EventWriter("msg_1", "m", {"input_tokens": 5, "output_tokens": 1})
    for kind, text in deltas:
        if kind == "call":
            yield from write.tool_use("t1", "Bash")
            yield from write.input_json(text)
        else:
            yield from getattr(write, kind)(text)
    yield from write.finish("end_turn", {"input_tokens": 7, "output_tokens": 9})


ANSWERS = [
    ("no match", [("text", "ab"), ("text", "c")], [("text", "abc")], "end_turn", None),
    ("a match", [("text", "ab S"), ("text", "TOP c"), ("call", "{}")], [("text", "ab ")], "stop_sequence", "STOP"),
    ("held at the end", [("text", "abST")], [("text", "abST")], "end_turn", None),
    ("thinking is not watched", [("thinking", "STOP"), ("text", "a")], [("thinking", "STOP"), ("text", "a")], "end_turn",
     None),
    ("nor is a call", [("text", "aS"), ("call", '{"a":"STOP"}')], [("text", "aS"), ("tool_use", None)], "end_turn", None),
    ("across blocks it is none", [("text", "ST"), ("call", "{}"), ("text", "OP")],
     [("text", "ST"), ("tool_use", None), ("text", "OP")], "end_turn", None),
]


@pytest.mark.parametrize("name,deltas,blocks,reason,sequence", ANSWERS, ids=[row[0] for row in ANSWERS])
def test_answers(name, deltas, blocks, reason, sequence):
    events = list(check_grammar(watch_stops(answer(*deltas), ["STOP"], lambda: 7)))
    message = events_to_message(events)
    told = [(block["type"], block.get("text", block.get("thinking"))) for block in message["content"]]
    assert told == blocks
    assert (message["stop_reason"], message["stop_sequence"]) == (reason, sequence)
    assert message["usage"]["input_tokens"] == 7 and message["usage"]["output_tokens"] > 0


def test_behind_a_match_nothing_is_read():
    def endless():
        yield from itertools.islice(answer(("text", "a STOP")), 3)
        raise AssertionError("read on")

    assert list(watch_stops(endless(), ["STOP"], lambda: 1))[-1] == {"type": "message_stop"}
