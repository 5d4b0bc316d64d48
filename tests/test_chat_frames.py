"""What the frames of a Chat Completions stream hold; and that a learned pattern finds the same."""

from __future__ import annotations

import itertools
import json

import pytest

from claude_proxy.dialects.chat_frames import (
    CHAT_DONE,
    FIRST_FRAMES,
    MOST_TEMPLATES,
    ChunkTemplate,
    event_chunks,
    frame_to_chunk,
)
from claude_proxy.dialects.chat_stream import ChatAnswer, ChatAsked, chunks_to_events
from claude_proxy.errors import ProxyError
from claude_proxy.events import EventWriter


def framed(delta, **more):
    return b"data: " + json.dumps({"id": "c", "choices": [{"index": 0, "delta": delta, "finish_reason": None}], **more}).encode()


def called(arguments):
    return {"tool_calls": [{"index": 0, "function": {"arguments": arguments}}]}


TEXTS = ["a", "", " b\n", 'say "hi"', "back\\slash", "\u00e9\u4e2d\U0001f600", '"}]}', "~", "\u2028", "data: {", '{"content": "x"}']
FIT = [
    ("content", [framed({"content": t}) for t in TEXTS]),
    ("content beside a role", [framed({"role": "assistant", "content": t}) for t in TEXTS]),
    ("content as it is in UTF-8", [b"data: " + json.dumps({"choices": [{"delta": {"content": t}}]}, ensure_ascii=False).encode() for t in TEXTS]),
    ("reasoning", [framed({"reasoning_content": t}) for t in TEXTS]),
    ("arguments", [framed(called(t)) for t in TEXTS]),
    ("one after the other", [framed(d) for t in TEXTS for d in ({"content": t}, called(t))]),
    ("a new time each second", [framed({"content": t}, created=n // 3) for n, t in enumerate(TEXTS * 3)]),
    ("something new in each", [framed({"content": t}, obfuscation="x" * n) for n, t in enumerate(TEXTS * 3)]),
    ("another's content first", [framed({"content": t}, note={"content": "x"}) for t in TEXTS]),
    ("a member twice", [f'data: {{"choices": [{{"delta": {{"content": "x", "content": {json.dumps(t)}}}}}]}}'.encode() for t in TEXTS]),
    ("the first of two", [f'data: {{"choices": [{{"delta": {{"content": {json.dumps(t)}, "content": "x"}}}}]}}'.encode() for t in TEXTS]),
    ("several lines", [framed({"content": t}).replace(b', "choices"', b',\ndata: "choices"') for t in TEXTS]),
    ("an event's name behind it", [framed({"content": t}) + b"\nevent: message" for t in TEXTS]),
    ("a comment that is no UTF-8", [framed({"content": t}) + b"\n: \xad" for t in TEXTS]),
    ("nothing between the quotes", [framed({"content": "a"})] * 4 + [framed({"content": "a"}).replace(b'"a"', b'"'), framed({"content": "b"})]),
    ("cut short behind the text", [framed({"content": "a"})] * 4 + [framed({"content": "b"})[:-1], framed({"content": "c"})]),
    ("another end", [framed({"content": "a"})] * 4 + [framed({"content": "b"}, x=1), framed({"content": "c"})]),
    ("line ends", [framed({"content": "a"})] * 4 + [framed({"content": "b"}) + b"\r", framed({"content": "b"}) + b"\nevent: error", framed({"content": "c"})]),
    ("done amid them", [framed({"content": "a"})] * 4 + [b"data: [DONE]", b"data:[DONE]", b"data:  [DONE] ", framed({"content": "c"})]),
    ("a number in place of a text", [framed({"content": t}) for t in ("a", "b", "c", "d", 5, None, "e")]),
    ("usage, and a finish reason", [framed({"content": "a"}), framed({"content": "b"}, usage={"x": 1}), framed({}, usage={"prompt_tokens": 1})]),
    ("not JSON", [framed({"content": "a"}), framed({"content": "b"}), framed({"content": "c"})[:-1] + b",", framed({"content": "d"})]),
    ("a control character", [framed({"content": "a"}), framed({"content": "b"}).replace(b"b", b"\x01"), framed({"content": "d"})]),
    ("no UTF-8", [framed({"content": "a"}), framed({"content": "b"}).replace(b"b", b"\xff"), framed({"content": "d"})]),
    ("a quote too many", [framed({"content": "a"}), framed({"content": "b"}).replace(b"b", b'b"'), framed({"content": "d"})]),
    ("a quote too few", [framed({"content": "a"}), framed({"content": "b"}).replace(b"b", b"b\\"), framed({"content": "d"})]),
]  # fmt: skip


def told(frames, chunk_of):
    """Each frame's chunk as JSON, up to the first that is none."""
    found = []
    for frame in frames:
        try:
            found.append(json.dumps(chunk_of(frame)))
        except ProxyError as error:
            return [*found, error.message]
    return found


def by_template():
    template = ChunkTemplate()

    def chunk_of(frame):
        chunk = template.read(frame)
        if chunk is None:
            chunk = frame_to_chunk(frame)
            template.learn(frame, chunk)
        return chunk

    return chunk_of


@pytest.mark.parametrize("frames", [row[1] for row in FIT], ids=[row[0] for row in FIT])
def test_a_learned_pattern_finds_what_decoding_finds(frames):
    assert told(frames, by_template()) == told(frames, frame_to_chunk)


@pytest.mark.parametrize("name,most", [("content", 0), ("arguments", 0), ("a new time each second", 24)])
def test_what_fits_is_not_decoded(name, most):
    """After the first of a kind, and the first of an answer; a new time makes a new kind."""
    template, decoded = ChunkTemplate(), -FIRST_FRAMES
    for frame in dict(FIT)[name]:
        if template.read(frame) is None:
            decoded += 1
            template.learn(frame, frame_to_chunk(frame))
    assert decoded <= 2 + most


def test_where_nothing_is_to_be_learned_it_is_given_up():
    template = ChunkTemplate()
    for number in range(FIRST_FRAMES + MOST_TEMPLATES + 5):
        frame = framed({"content": "x"}, obfuscation=str(number))
        assert template.read(frame) is None
        template.learn(frame, frame_to_chunk(frame))
    last = framed({"content": "y"}, obfuscation=str(number))
    assert template.read(last) is None


def test_the_chunks_of_a_stream_are_those_of_its_frames():
    frames = [frame for _, rows in FIT[:9] for frame in rows]
    chunks = [json.dumps(chunk) for chunk in event_chunks([b"\n\n".join(frames) + b"\n\n"])]
    assert chunks == [json.dumps(frame_to_chunk(frame)) for frame in frames]


# --- what is told of chunks that come again ----------------------------------------------------------


def run(make, texts):
    return [framed(make(text)) for text in texts]


def call_piece(index, **more):
    return lambda text: {**more, "tool_calls": [{"index": index, "function": {"arguments": text}}]}


def call_begun(index, **call):
    call = call or {"type": "function", "function": {"name": "X", "arguments": ""}}
    return [framed({"tool_calls": [{"index": index, "id": f"call_{index}", **call}]})]


WORDS, OBJECT = ("a", "", " ", "ST", "OP", "b\n"), ("{", '"a"', "", ":1", "}", " ")
RUNS = {
    "text": run(lambda text: {"content": text}, WORDS),
    "text beside others": run(lambda text: {"role": "assistant", "content": text, "reasoning_content": None, "tool_calls": []}, WORDS),
    "text that is thought": run(lambda text: {"content": text}, ("<thi", "nk>", "a", "b", "c", "d", "</think>", "e", "f")),
    "thought": run(lambda text: {"reasoning_content": text}, WORDS),
    "thought beside a text": run(lambda text: {"content": "T", "reasoning": text}, WORDS),
    "text and details": run(lambda text: {"content": text, "reasoning_details": [{"type": "reasoning.text", "text": "D"}]}, WORDS),
    "details, which are none": run(lambda text: {"reasoning": text, "reasoning_details": []}, WORDS),
    "refusal": run(lambda text: {"content": text, "refusal": "R"}, WORDS[:4]),
    "a call": call_begun(0) + run(call_piece(0), OBJECT),
    "another call": call_begun(1) + run(call_piece(1), OBJECT),
    "more of the call": run(call_piece(0), OBJECT[1:]),
    "more of the other": run(call_piece(1, content="T"), OBJECT[1:]),
    "a call with all members": run(lambda text: {"tool_calls": [{"index": 0, "id": None, "type": "function", "function": {"name": None, "arguments": text}}]}, OBJECT),
    "a call named each time": run(lambda text: {"tool_calls": [{"index": 0, "id": "call_0", "function": {"name": "X", "arguments": text}}]}, OBJECT),
    "a call named and no more": run(lambda text: {"tool_calls": [{"index": 0, "function": {"name": "X", "arguments": text}}]}, OBJECT),
    "two calls at once": [framed({"tool_calls": [{"index": n, "id": f"two_{n}", "function": {"name": "Y"}} for n in (1, 2)]})],
    "a call without arguments": call_begun(3, function={"name": "Z"}),
    "text in parts": [framed({"content": [{"type": "text", "text": "P"}]})],
    "a call without an index": run(lambda text: {"tool_calls": [{"function": {"arguments": text}}]}, OBJECT),
    "a call with something extra": run(lambda text: {"tool_calls": [{"index": 0, "function": {"arguments": text}, "extra_content": {"a": 1}}]}, OBJECT),
    "a call of long ago": run(lambda text: {"function_call": {"name": "F", "arguments": text}}, OBJECT),
    "usage each time": [framed({"content": text}, usage={"prompt_tokens": 1, "completion_tokens": n}) for n, text in enumerate(WORDS)],
    "of another choice": [framed({"content": text}).replace(b'"index": 0', b'"index": 1') for text in WORDS],
    "finished each time": [framed({"content": text}).replace(b'"finish_reason": null', b'"finish_reason": "stop"') for text in WORDS],
}  # fmt: skip
END = [framed({}).replace(b'"finish_reason": null', b'"finish_reason": "stop"'), b"data: [DONE]"]
BEGUN = {"": [], "call": call_begun(0), "free": call_begun(0, type="custom", custom={"name": "C", "input": "i"})}
ASKED = [ChatAsked(), ChatAsked(stops=["STOP"]), ChatAsked(hide_thinking=True), ChatAsked(one_call=True), ChatAsked(carry="reasoning_details"), ChatAsked(carry="extra_content")]


def events_of(chunks, asked):
    """The events as JSON, or the error that ends them."""
    events = []
    try:
        for event in chunks_to_events(chunks, EventWriter("msg_r", "m"), asked):
            events.append(json.dumps(event))
    except ProxyError as error:
        events.append(error.message)
    return events


def by_themselves(frames):
    return (CHAT_DONE if frame == END[1] else frame_to_chunk(frame) for frame in frames)


def joined(frames):
    return b"\n\n".join(frames) + b"\n\n"


def orders():
    """Each kind of run behind, and before, each other; those of calls with their beginning too."""
    for one, other in itertools.product(RUNS, repeat=2):
        for begun in BEGUN if "call" in one else [""]:
            yield begun, one, other, one


@pytest.mark.parametrize("number", range(len(ASKED)), ids=["plain", "stops", "hidden", "one call", "details", "extra"])
def test_runs_are_told_as_chunks_by_themselves(number):
    asked = ASKED[number]
    for begun, *names in itertools.islice(orders(), number % 2, None, 2):
        frames = [*BEGUN[begun], *(frame for name in names for frame in RUNS[name]), *END]
        assert events_of(event_chunks([joined(frames)]), asked) == events_of(by_themselves(frames), asked), (begun, names)


@pytest.mark.parametrize("names", [("text", "a call", "more of the call"), ("thought", "text that is thought"), ("a call with all members", "another call")], ids=" / ".join)
def test_runs_may_be_cut_anywhere(names):
    frames = [frame for name in names for frame in RUNS[name][:6]] + END
    whole, expected = joined(frames), events_of(by_themselves(frames), ChatAsked())
    assert events_of(event_chunks(whole[i : i + 1] for i in range(len(whole))), ChatAsked()) == expected
    for cut in range(0, len(whole)):
        assert events_of(event_chunks([whole[:cut], whole[cut:]]), ChatAsked()) == expected, cut


@pytest.mark.parametrize("name,before", [
    ("text", []), ("text beside others", []), ("thought", []), ("details, which are none", []),
    ("more of the call", call_begun(0)), ("a call with all members", call_begun(0)),
])  # fmt: skip
def test_runs_are_looked_through_once(name, before):
    """Otherwise the rows above would show nothing."""
    answer, looked = ChatAnswer(EventWriter("msg_r", "m"), ChatAsked()), []
    answer._delta = lambda delta, told=answer._delta: looked.append(1) or told(delta)
    for chunk in event_chunks([joined(before + RUNS[name] * 3)]):
        list(answer.chunk(chunk))
    assert len(looked) <= len(before) + 5
