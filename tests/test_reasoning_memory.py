"""Reasoning that came too late for its thinking block."""

from __future__ import annotations

import pytest

from claude_proxy.dialects.carriers import unpack_carrier
from claude_proxy.reasoning_memory import KEPT_SECONDS, ReasoningMemory, with_recalled


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def memory(most_bytes=10_000):
    clock = Clock()
    return ReasoningMemory(clock, most_bytes), clock


def data_of(carrier):
    return unpack_carrier(carrier, "reasoning_details")


def test_what_was_kept_is_told_to_the_same_credential_alone():
    kept, _ = memory()
    assert kept.empty()
    kept.keep(("key-a",), ["A", "B"], "reasoning_details", [1])
    assert data_of(kept.recall(("key-a",), "A")) == [1] and not kept.empty()
    assert kept.recall(("key-b",), "A") is None and kept.recall((), "A") is None
    assert kept.recall(("key-a",), "B") is None


def test_it_is_not_kept_for_ever():
    kept, clock = memory()
    kept.keep((), ["A"], "reasoning_details", [1])
    clock.now = KEPT_SECONDS
    assert kept.recall((), "A") is None


def test_it_is_bounded_and_the_oldest_goes_first():
    kept, _ = memory(most_bytes=3000)
    for number in range(50):
        kept.keep((), [f"call_{number}"], "reasoning_details", ["x" * 100])
    held = [number for number in range(50) if kept.recall((), f"call_{number}")]
    assert held == list(range(50 - len(held), 50)) and 2 < len(held) < 9
    kept.keep((), ["large"], "reasoning_details", ["x" * 5000])
    assert kept.empty()


def test_the_same_call_again_replaces():
    kept, _ = memory(most_bytes=800)
    for number in range(100):
        kept.keep((), ["A"], "reasoning_details", [number])
    assert data_of(kept.recall((), "A")) == [99]


def test_no_calls_nothing_kept():
    kept, _ = memory()
    kept.keep((), [], "reasoning_details", [1])
    assert kept.empty()


USE = {"type": "tool_use", "id": "A", "name": "Read", "input": {}}
TEXT = {"type": "text", "text": "t"}
CARRYING = {"type": "thinking", "thinking": "", "signature": "cp1.x"}


@pytest.mark.parametrize("content,expected", [
    ([TEXT, USE], [TEXT, CARRYING, USE]), ([USE, {**USE, "id": "B"}], [CARRYING, USE, {**USE, "id": "B"}]),
    ([{**USE, "id": "B"}, USE], [{**USE, "id": "B"}, USE]), ([TEXT], [TEXT]), ("text", "text"), (None, None)])
def test_it_stands_before_its_call_again(content, expected):
    request = {"messages": [{"role": "assistant", "content": content}, 5]}
    recalled = with_recalled(request, lambda call_id: "cp1.x" if call_id == "A" else None)
    assert recalled["messages"] == [{"role": "assistant", "content": expected}, 5]
    assert request["messages"][0]["content"] == content
