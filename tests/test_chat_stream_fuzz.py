"""Chat Completions streams made by chance: valid ones, whose every byte has to arrive, and damaged ones.

Whatever comes, the answer is one whole message, or it ends in one ProxyError; and the pieces in
which it comes make no difference. FUZZ_STREAMS=100000 tries so many of each kind, as does

    python -m tests.test_chat_stream_fuzz 100000 [first seed]
"""

from __future__ import annotations

import copy
import json
import os
import random
import sys
import time
from collections import Counter

import pytest

from claude_proxy.dialects.chat_stream import ChatAsked, chat_chunks, chunks_to_events
from claude_proxy.errors import ProxyError
from claude_proxy.events import CUT_SHORT, EventWriter, check_grammar, events_to_message
from claude_proxy.sse import encode_event

STREAMS = int(os.environ.get("FUZZ_STREAMS", 0)) or 1500
BATCHES = 3

# --- what is sent ---------------------------------------------------------------------------------

LETTERS = ("a", "b", "zz", " ", "\n", "\n\n", "<", ">", "{", "}", '"', "\\", "\u00e9", "\U0001f600", "\ud83d", "\u2028", "data: ", "STOP")
ARGUMENTS = ("{}", '{"a":1}', '{"p": "x}y", "q": [1, {"b": null}]}', '{"text":"\\ud83d\\ude00 {\\"a\\":1}"}', '{"a":{"b":{"c":"}"}}}')
DETAIL_KINDS = ("reasoning.text", "reasoning.encrypted", "reasoning.summary")


class Plan:
    """A valid answer: its chunks, and what the client has to get of it."""

    def __init__(self, pick):
        self.pick = pick
        self.chunks, self.text, self.thought, self.calls = [], "", "", []
        self.open = []  # calls whose arguments are not all sent: [index, what is left]

    def delta(self, delta, **choice):
        self.chunks.append({"id": "c", "object": "chat.completion.chunk", **self.pick.choice(({}, {"model": "m", "created": 1})),
                            "choices": [{"index": 0, "delta": delta, "finish_reason": None, **choice}]})

    def pieces(self):
        words = [self.pick.choice(LETTERS) for _ in range(self.pick.randrange(1, 5))]
        words.insert(self.pick.randrange(len(words) + 1), self.pick.choice("ab"))
        return words

    def say(self):
        for piece in self.pieces():
            self.text += piece
            self.delta(self.pick.choice(({"content": piece}, {"content": piece}, {"role": "assistant", "content": piece, "refusal": None})))

    def think(self):
        key = self.pick.choice(("reasoning", "reasoning_content"))
        for piece in self.pieces():
            self.thought += piece
            details = {"reasoning_details": [{"type": "reasoning.text", "index": 0, "text": piece}]}
            self.delta({key: piece, **self.pick.choice(({}, details))})

    def call(self):
        index, name, arguments = len(self.calls), self.pick.choice(("Read", "Bash", "X")), self.pick.choice(ARGUMENTS)
        call_id = f"call_{index}"
        self.calls.append((call_id, name, arguments))
        self.open.append([index, arguments])
        self.delta({"tool_calls": [{"index": index, "id": call_id, "type": "function", "function": {"name": name, "arguments": ""}}]})
        if self.pick.random() < 0.6:
            self.argue(whole=True)

    def argue(self, whole=False):
        while self.open:
            place = len(self.open) - 1 if whole else self.pick.randrange(len(self.open))
            index, left = self.open[place]
            size = self.pick.choice((1, 3, len(left)))
            self.open[place][1] = left[size:]
            if not left[size:]:
                del self.open[place]
            self.delta({"tool_calls": [{"index": index, "function": {"arguments": left[:size]}}]})
            if not whole or place == len(self.open):
                return

    def finish(self):
        while self.open:
            self.argue()
        self.delta({}, finish_reason="tool_calls" if self.calls else "stop")
        self.chunks.append({"id": "c", "choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 4}})


def make_plan(pick):
    plan = Plan(pick)
    acts = pick.choices((plan.say, plan.think, plan.call, plan.argue), (3, 2, 2, 2), k=pick.randrange(1, 8))
    for act in acts:
        act()
    plan.finish()
    return plan


def encode_chunks(chunks, pick, done=True):
    """Bytes of an event stream, in one of the ways that servers write one."""
    end = pick.choice((b"\n", b"\n", b"\r\n", b"\r"))
    parts = [pick.choice((b"", b"", b"\xef\xbb\xbf", b": hello" + end + end))]
    for chunk in chunks:
        parts += [b": alive", end, end] if pick.random() < 0.05 else []
        parts += [pick.choice((b"data: ", b"data:")), json.dumps(chunk).encode(), end, end]
    return b"".join([*parts, *([b"data: [DONE]", end, end] if done else [])])


# --- damage ---------------------------------------------------------------------------------------

DEEP = {b'"@deep@"': b"[" * 900 + b"]" * 900, b'"@far too deep@"': b'{"error":' * 20_000}
ODD = ("@deep@", "@far too deep@", None, True, False, 0, 1, -1, 2.5, float("nan"), float("inf"), 10**40, "", "x", "0", "null", "<think>", "STOP", "\n", [], {}, [[]], [None], {"a": {}},
       "{}", "{", "}", '{"a":1}', "error", "length", "content_filter", [{"text": "t"}], {"message": "m"}, "A", "reasoning", [0, "y", {"index": 0}])
EXTRA_KEYS = ("reasoning", "reasoning_content", "reasoning_details", "content", "refusal", "tool_calls", "function_call", "finish_reason", "index", "delta", "message",
              "usage", "error", "object", "choices", "id", "name", "arguments", "function", "custom", "type", "extra_content", "stop_reason", "x_groq", "timings", "service_tier")
WHOLE_DELTAS = (
    {"reasoning_details": [{"type": "reasoning.encrypted", "data": "zz", "index": 1}]},
    {"tool_calls": [{"id": "A", "function": {"name": "X", "arguments": "{}"}, "extra_content": {"google": {"thought_signature": "s"}}}]},
    {"tool_calls": [{"index": 0, "extra_content": {"google": {}}}]},
    {"tool_calls": [{"index": 5, "function": {"arguments": "{"}}]},
    {"tool_calls": [{"index": 0, "type": "custom", "custom": {"name": "C", "input": "free"}}]},
    {"function_call": {"name": "F", "arguments": "{}"}}, {"refusal": "no"}, {"content": " "}, {"content": "<think>hm"}, {"content": "</think>"}, {"content": "ST"}, {"content": "OP"},
    {"content": [{"type": "thinking", "thinking": [{"text": "a"}]}, {"type": "text", "text": "b"}]},
)
ENDS = ("stop", "length", "tool_calls", "content_filter", "", "error", None, "whatever")


def places(value, found):
    """Every (container, key) within a value."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        found.append((value, key))
        if isinstance(inner, (dict, list)):
            places(inner, found)
    return found


def damage_chunk(chunks, pick):
    chunk = pick.choice(chunks)
    container, key = pick.choice(places(chunk, []) or [({}, "a")])
    how = pick.randrange(4)
    if how == 0 and isinstance(container, dict):
        del container[key]
    elif how == 1 and isinstance(container, dict):
        container[pick.choice(EXTRA_KEYS)] = copy.deepcopy(pick.choice(ODD))
    elif how == 2 and isinstance(container[key], dict):
        container[key][pick.choice(EXTRA_KEYS)] = copy.deepcopy(pick.choice(ODD))
    else:
        container[key] = copy.deepcopy(pick.choice(ODD))


def damage_order(chunks, pick):
    place, other = pick.randrange(len(chunks)), pick.randrange(len(chunks))
    how = pick.randrange(5)
    if how == 0:
        chunks.insert(place, copy.deepcopy(chunks[other]))
    elif how == 1:
        chunks[place], chunks[other] = chunks[other], chunks[place]
    elif how == 2 and len(chunks) > 1:
        del chunks[place]
    elif how == 3:
        chunks.insert(place, {"choices": [{"index": 0, "delta": copy.deepcopy(pick.choice(WHOLE_DELTAS)), "finish_reason": None}]})
    else:
        chunks.insert(place, {"choices": [{"delta": {}, "finish_reason": pick.choice(ENDS)}]})


def damage_bytes(raw, pick):
    place = pick.randrange(len(raw))
    how = pick.randrange(5)
    if how == 0:
        return raw[:place]
    if how == 1:
        return raw[:place] + bytes([pick.randrange(256)]) + raw[place + 1:]
    if how == 2:
        return raw[:place] + raw[place + pick.randrange(40):]
    if how == 3:
        return raw[:place] + pick.choice((b"\n\n", b"\r", b"\n", b"data: {}\n\n", b"event: error\n", b"\x00")) + raw[place:]
    return raw[place:]


def damaged(pick):
    chunks = make_plan(pick).chunks
    for _ in range(pick.randrange(1, 4)):
        pick.choice((damage_chunk, damage_chunk, damage_order))(chunks, pick)
    if pick.random() < 0.1:
        return json.dumps(pick.choice(chunks)).encode()
    raw = encode_chunks(chunks, pick, done=pick.random() < 0.8)
    for mark, deep in DEEP.items():
        raw = raw.replace(mark, deep, 1)
    return damage_bytes(raw, pick) if pick.random() < 0.3 else raw


def any_request(pick, late):
    chance = pick.random
    return ChatAsked(
        used_ids=("call_0",) if chance() < 0.1 else (), only_tool=pick.choice(("", "Read")), stops=pick.choice(((), (), ("STOP",), ("b", "ab"), [5, ""])),
        one_call=chance() < 0.2, hide_thinking=chance() < 0.2, think_opened=chance() < 0.1, carry=pick.choice(("", "", "reasoning_details", "extra_content")),
        late=lambda *told: late.append(told), note=lambda key, value: json.dumps([key, value]),
    )


# --- what has to hold -----------------------------------------------------------------------------


def retell(pieces, asked):
    """(events, the error that ended them or None)."""
    events = []
    try:
        for event in chunks_to_events(chat_chunks(iter(pieces)), EventWriter("msg_f", "m"), asked):
            events.append(event)
    except ProxyError as error:
        return events, error
    return events, None


def told(outcome):
    events, error = outcome
    return json.dumps(events), error and (error.status, error.error_type, error.message)


def check_outcome(events, error, late):
    """One whole message, or an error and no end."""
    try:
        for event in check_grammar(events):
            encode_event(event)
        whole = True
    except ProxyError as problem:
        assert problem.message == CUT_SHORT, problem.message
        whole = False
    assert whole is (error is None)
    if whole:
        events_to_message(events)
    else:
        assert not late and all(event["type"] not in ("message_delta", "message_stop") for event in events)


def cuts(raw, pick, byte_by_byte):
    if byte_by_byte and len(raw) < 20_000:
        return [raw[i:i + 1] for i in range(len(raw))]
    borders = sorted({0, len(raw), *(pick.randrange(len(raw) + 1) for _ in range(pick.randrange(1, 12)))})
    return [raw[start:end] for start, end in zip(borders, borders[1:])]


def try_damaged(seed):
    """A damaged stream; what became of it."""
    pick, late, again = random.Random(seed), [], []
    raw = damaged(pick)
    asked = any_request(pick, late)
    outcome = retell([raw], asked)
    check_outcome(*outcome, late)
    pieces = cuts(raw, pick, byte_by_byte=seed % 16 == 0)
    assert told(retell(pieces, asked._replace(late=lambda *told: again.append(told)))) == told(outcome)
    assert again == late
    return "error" if outcome[1] else "whole"


def try_valid(seed):
    """A valid stream, whose every byte has to arrive in its order."""
    pick, late = random.Random(seed), []
    plan = make_plan(pick)
    raw = encode_chunks(plan.chunks, pick)
    asked = ChatAsked(carry=pick.choice(("", "reasoning_details")), late=lambda *told: late.append(told))
    events, error = retell(cuts(raw, pick, byte_by_byte=seed % 16 == 0), asked)
    assert error is None
    check_outcome(events, error, late)
    said = Counter()
    calls = []
    for event in events:
        if event["type"] == "content_block_start" and event["content_block"]["type"] == "tool_use":
            calls.append([event["content_block"]["id"], event["content_block"]["name"], ""])
        for key, value in event.get("delta", {}).items():
            if key in ("text", "thinking"):
                said[key] = (said[key] or "") + value
            elif key == "partial_json":
                calls[-1][2] += value
    assert (said["text"] or "") == plan.text and (said["thinking"] or "") == plan.thought
    assert [tuple(call) for call in calls] == plan.calls
    [reason] = [event["delta"]["stop_reason"] for event in events if event["type"] == "message_delta"]
    assert reason == ("tool_use" if plan.calls else "end_turn")
    return "whole"


def fuzz(attempt, count, first=0):
    """Try so many streams; how many came to which end. The seed of a failure is told."""
    ends = Counter()
    for seed in range(first, first + count):
        try:
            ends[attempt(seed)] += 1
        except Exception as problem:
            raise AssertionError(f"{attempt.__name__}({seed}): {type(problem).__name__} {problem}") from problem
    return ends


@pytest.mark.parametrize("batch", range(BATCHES))
def test_damaged_streams_end_whole_or_in_one_error(batch):
    ends = fuzz(try_damaged, STREAMS // BATCHES, batch * STREAMS)
    assert ends["whole"] and ends["error"]


@pytest.mark.parametrize("batch", range(BATCHES))
def test_valid_streams_arrive_byte_for_byte(batch):
    fuzz(try_valid, STREAMS // BATCHES, batch * STREAMS)


if __name__ == "__main__":
    many, start = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    for one in (try_damaged, try_valid):
        began = time.perf_counter()
        print(one.__name__, dict(fuzz(one, many, start)), f"{time.perf_counter() - began:.1f} s")
