"""Every stream is fed whole, byte by byte, and cut in two at every place."""

from __future__ import annotations

import json

import pytest

from claude_proxy.errors import ProxyError
from claude_proxy.sse import (
    LARGEST_FRAME,
    TEXT_DELTAS,
    FrameSplitter,
    encode_any_event,
    encode_event,
    encode_json,
    frame_data,
)

A, B = b'data: {"a":1}', b"event: b\ndata: 2"
CR_B = B.replace(b"\n", b"\r")
CRLF_B = B.replace(b"\n", b"\r\n")

# (name, stream, frames, (event, data) of each)
BOTH = [("", b'{"a":1}'), ("b", b"2")]
STREAMS = [
    ("nothing", b"", [], []),
    ("LF", A + b"\n\n" + B + b"\n\n", [A, B], BOTH),
    ("CRLF", A + b"\r\n\r\n" + CRLF_B + b"\r\n\r\n", [A, CRLF_B], BOTH),
    ("CR", A + b"\r\r" + CR_B + b"\r\r", [A, CR_B], BOTH),
    ("LF then CRLF", A + b"\n\r\n" + B + b"\n\n", [A, B], BOTH),
    ("CRLF then LF", A + b"\r\n\n" + CRLF_B + b"\r\n\n", [A, CRLF_B], BOTH),
    ("CR then CRLF", A + b"\r\r\n" + CR_B + b"\r\r\n", [A, CR_B], BOTH),
    ("LF then CR", A + b"\n\r" + B + b"\n\r", [A, B], BOTH),
    ("another in each frame", A + b"\n\n" + CRLF_B + b"\r\n\r\n" + A + b"\r\r", [A, CRLF_B, A],
     [*BOTH, BOTH[0]]),
    ("BOM", b"\xef\xbb\xbf" + A + b"\n\n" + B + b"\n\n", [A, B], BOTH),
    ("BOM before CRLF", b"\xef\xbb\xbf" + A + b"\r\n\r\n", [A], BOTH[:1]),
    ("only the first BOM", A + b"\n\n\xef\xbb\xbf" + A + b"\n\n", [A, b"\xef\xbb\xbf" + A],
     [BOTH[0], ("", b"")]),
    ("empty frames", b"\n\n\n\n" + A + b"\n\n\n\n\n\n" + B + b"\n\n\n\n", [A, B], BOTH),
    ("odd numbers of line ends", b"\n" + A + b"\n\n\n" + B + b"\n\n\n", [A, B], BOTH),
    ("empty CRLF frames", b"\r\n" + A + b"\r\n\r\n\r\n" + CRLF_B + b"\r\n\r\n\r\n", [A, CRLF_B],
     BOTH),
    ("no last blank line", A + b"\n\n" + B, [A, B], BOTH),
    ("one last line end", A + b"\n\n" + B + b"\n", [A, B], BOTH),
    ("one last CRLF", A + b"\r\n\r\n" + CRLF_B + b"\r\n", [A, CRLF_B], BOTH),
    ("no last blank line, leading LF", A + b"\n\n\n" + B, [A, B], BOTH),
    ("comments", b": OPENROUTER PROCESSING\n\n:\n\n" + A + b"\n\n",
     [b": OPENROUTER PROCESSING", b":", A], [("", b""), ("", b""), BOTH[0]]),
    ("comment in a frame", b": life\n" + B + b"\n\n", [b": life\n" + B], [("b", b"2")]),
    ("no blank after the colon", b"data:1\nevent:x\n\n", [b"data:1\nevent:x"], [("x", b"1")]),
    ("one blank only is taken", b"data:  1 \n\n", [b"data:  1 "], [("", b" 1 ")]),
    ("several data lines", b"data: 1\ndata:\ndata: 3\n\n", [b"data: 1\ndata:\ndata: 3"],
     [("", b"1\n\n3")]),
    ("data without a colon", b"data\nevent: x\n\n", [b"data\nevent: x"], [("x", b"")]),
    ("other fields", b"id: 7\nretry: 5\ndata: 1\nDATA: 2\ndatax: 3\n\n",
     [b"id: 7\nretry: 5\ndata: 1\nDATA: 2\ndatax: 3"], [("", b"1")]),
    ("llama.cpp's error", b'error: {"code":500}\n\n', [b'error: {"code":500}'],
     [("error", b'{"code":500}')]),
    ("a colon and CR in the data", b"data: a: b\\r\\n\n\n", [b"data: a: b\\r\\n"],
     [("", b"a: b\\r\\n")]),
    ("characters of four bytes", "data: \U0001f600 ü\n\n".encode(), ["data: \U0001f600 ü".encode()],
     [("", "\U0001f600 ü".encode())]),
    ("done", A + b"\n\ndata: [DONE]\n\n", [A, b"data: [DONE]"], [BOTH[0], ("", b"[DONE]")]),
]
CASES = pytest.mark.parametrize(("name", "stream", "frames", "data"), STREAMS,
                                ids=[row[0] for row in STREAMS])


def fed(*pieces):
    splitter = FrameSplitter()
    frames = [frame for piece in pieces for frame in splitter.feed(piece)]
    return frames + splitter.finish()


@CASES
def test_frames_of_a_whole_stream(name, stream, frames, data):
    assert fed(stream) == frames
    assert [frame_data(frame) for frame in frames] == data


@CASES
def test_byte_by_byte(name, stream, frames, data):
    assert fed(*(stream[i:i + 1] for i in range(len(stream)))) == frames


@CASES
def test_cut_in_two_at_every_place(name, stream, frames, data):
    for cut in range(len(stream) + 1):
        assert fed(stream[:cut], stream[cut:]) == frames, f"cut at {cut}"
        assert fed(stream[:cut], b"", stream[cut:]) == frames, f"empty piece at {cut}"


@CASES
def test_a_frame_is_given_out_as_soon_as_it_is_whole(name, stream, frames, data):
    splitter = FrameSplitter()
    got = splitter.feed(stream + b"\n\n")
    assert got == frames and splitter.finish() == []


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r", b"\r\n\r"])
def test_the_last_frame_does_not_wait(end):
    assert FrameSplitter().feed(A + end) == [A]


def test_blanks_alone_are_no_last_frame():
    assert fed(A + b"\n\n \t\n") == [A]


def test_an_endless_frame_is_refused():
    splitter = FrameSplitter()
    splitter.feed(b"data: " + b"x" * (LARGEST_FRAME - 6))
    with pytest.raises(ProxyError) as caught:
        splitter.feed(b"x")
    assert caught.value.status == 502


EVENTS = [
    ("ping", {"type": "ping"}, b'event: ping\ndata: {"type":"ping"}\n\n'),
    ("half an emoji", {"type": "x", "t": "\ud83d"},
     b'event: x\ndata: {"type":"x","t":"\\ud83d"}\n\n'),
    ("line ends", {"type": "x", "t": "a\r\n\n\u2028"},
     b'event: x\ndata: {"type":"x","t":"a\\r\\n\\n\\u2028"}\n\n'),
]


@pytest.mark.parametrize(("name", "event", "expected"), EVENTS, ids=[row[0] for row in EVENTS])
def test_encode_event(name, event, expected):
    assert encode_event(event) == expected
    [frame] = fed(expected)
    kind, data = frame_data(frame)
    assert (kind, json.loads(data)) == (event["type"], event)


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r"])
def test_a_large_frame_in_small_pieces_is_read_once(end):
    """Copied for each piece, this would take minutes."""
    frame = b"data: " + b"x" * 4_000_000
    splitter = FrameSplitter()
    frames = [f for start in range(0, len(frame), 200) for f in splitter.feed(frame[start : start + 200])]
    for byte in end + b"data: y" + end:
        frames += splitter.feed(bytes([byte]))
    assert frames == [frame, b"data: y"] and splitter.finish() == []


ODD = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "x"}}
ENCODED = [
    *(
        {"type": "content_block_delta", "index": 7, "delta": {"type": kind, member: text}}
        for kind, member in TEXT_DELTAS.items()
        for text in ("", "plain", 'a "quote" \\ \n\t\x00\x7f', "\u00e9\u4e2d\U0001f600", "\ud83d", "%s {x}")
    ),
    *(
        {**ODD, **odd}
        for odd in (
            {"type": "another"}, {"index": None}, {"index": True}, {"index": 1.5}, {"index": "0"}, {"more": 1},
            {"delta": {"type": "text_delta", "text": None}}, {"delta": {"type": "text_delta", "other": "x"}},
            {"delta": {"type": ["text_delta"], "text": "x"}}, {"delta": {"type": "signature_delta", "signature": "s"}},
            {"delta": {"type": "text_delta", "text": "x", "more": 1}}, {"delta": {}}, {"delta": None},
        )
    ),
    {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "x"}},
    {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "x"}, "usage": {}},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": {}},
]  # fmt: skip


@pytest.mark.parametrize("event", ENCODED, ids=range(len(ENCODED)))
def test_the_quick_way_of_writing_a_delta_gives_the_same_bytes(event):
    assert encode_event(event) == encode_any_event(event)


ONCE = ["held twice"]
VALUES = [
    None, True, 0, -1, 2**70, 1.5, -0.0, 1e22, "", "plain", 'a "quote" \\ \n\x00\x7f', "\u00e9\u4e2d\U0001f600", "\ud83d", [], {},
    [ONCE, ONCE, {"a": ONCE}], {"a": [1, {"b": None}], "\u00fc": "x"}, {"b": 1, "a": 2}, ("a", 1), {1: 2, None: 3, False: 4},
]


@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
def test_json_is_written_without_blanks_in_ascii(value):
    assert encode_json(value) == json.dumps(value, separators=(",", ":"))


@pytest.mark.parametrize("value", [{1, 2}, b"bytes", [object()]])
def test_what_is_no_json_is_not_written(value):
    with pytest.raises(TypeError, match="not JSON serializable"):
        encode_json(value)


def test_what_has_no_end_ends():
    endless = []
    endless.append(endless)
    with pytest.raises(RecursionError):
        encode_json(endless)
