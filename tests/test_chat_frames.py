"""What the frames of a Chat Completions stream hold; and that a learned pattern finds the same."""

from __future__ import annotations

import json

import pytest

from claude_proxy.dialects.chat_frames import (
    MOST_TEMPLATES,
    ChunkTemplate,
    event_chunks,
    frame_to_chunk,
)
from claude_proxy.errors import ProxyError


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
    """After the first of a kind; a new time makes a new kind."""
    template, decoded = ChunkTemplate(), 0
    for frame in dict(FIT)[name]:
        if template.read(frame) is None:
            decoded += 1
            template.learn(frame, frame_to_chunk(frame))
    assert decoded <= 2 + most


def test_where_nothing_is_to_be_learned_it_is_given_up():
    template = ChunkTemplate()
    for number in range(MOST_TEMPLATES + 5):
        frame = framed({"content": "x"}, obfuscation=str(number))
        assert template.read(frame) is None
        template.learn(frame, frame_to_chunk(frame))
    last = framed({"content": "y"}, obfuscation=str(number))
    assert template.read(last) is None


def test_the_chunks_of_a_stream_are_those_of_its_frames():
    frames = [frame for _, rows in FIT[:9] for frame in rows]
    chunks = [json.dumps(chunk) for chunk in event_chunks([b"\n\n".join(frames) + b"\n\n"])]
    assert chunks == [json.dumps(frame_to_chunk(frame)) for frame in frames]
