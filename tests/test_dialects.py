"""The Messages dialect and the strict reading of JSON bodies."""

from __future__ import annotations

import json

import pytest

from claude_proxy.dialects.anthropic import MESSAGES_DIALECT
from claude_proxy.dialects.dialect import MOST_DIGITS, parse_json_object
from claude_proxy.errors import ProxyError
from claude_proxy.sse import FrameSplitter, frame_data

GOOD = [
    (b'{"a": 1}', {"a": 1}),
    (b'\xef\xbb\xbf{"a": "\\ud83d"}', {"a": "\ud83d"}),
    ('{"a": "\u00fc\u2603"}'.encode(), {"a": "\u00fc\u2603"}),
    (b' \n{"a": 1, "a": 2}\n', {"a": 2}),
    (b'{"a": 1} \t\r\n', {"a": 1}),
    (b'{}', {}),
    (b'{"a": ' + b"1" * MOST_DIGITS + b"}", {"a": int("1" * MOST_DIGITS)}),
    (b'{"a": 1.5e300, "b": -0.0}', {"a": 1.5e300, "b": -0.0}),
    (b'{"a": ' + b"[" * 90 + b"]" * 90 + b"}", None),
]


@pytest.mark.parametrize("body,expected", GOOD)
def test_json_that_is_read(body, expected):
    value = parse_json_object(body)
    assert expected is None or value == expected


BAD = [
    (b"", "not JSON"),
    (b"{", "line 1 column 2"),
    (b'{"a": 1}\n{', "Extra data at line 2 column 1"),
    (b'{"a": 1}\xc2\xa0', "Extra data at line 1 column 9"),
    (b'{"a": 1}\x0c', "Extra data at line 1 column 9"),
    (b'\xef\xbb\xbf\xef\xbb\xbf{}', "not JSON"),
    (b'\xef\xbb\xbf {"a": }', "Expecting value at line 1 column 8"),
    (b"[1]", "must be a JSON object"),
    (b'"x"', "must be a JSON object"),
    (b"{'a': 1}", "not JSON"),
    (b'{"a": NaN}', "NaN"),
    (b'{"a": -Infinity}', "Infinity"),
    (b'{"a": 1e999}', "too large"),
    (b'{"a": -1e999}', "too large"),
    (b'{"a": ' + b"1" * (MOST_DIGITS + 1) + b"}", "digits"),
    (b'{"a": 0.' + b"1" * (MOST_DIGITS + 1) + b"}", "too large"),
    (b'{"a": "\xff"}', "UTF-8"),
    (b'{"a": 1} x', "not JSON"),
    (b'{"a": "\n"}', "not JSON"),
    (b'{"a":' * 100_000, "nested too deeply"),
    (b"[" * 100_000, "nested too deeply"),
]


@pytest.mark.parametrize("body,words", BAD)
def test_json_that_is_refused(body, words):
    with pytest.raises(ProxyError) as caught:
        parse_json_object(body)
    assert caught.value.status == 400 and words in caught.value.message


def test_what_a_refusal_quotes():
    """Not the body: it may be a patient's."""
    with pytest.raises(ProxyError) as caught:
        parse_json_object(b'{"secret diagnosis": oops}')
    assert "diagnosis" not in caught.value.message


NO_REQUESTS = [
    ({}, "messages"), ({"messages": "hi"}, "messages"), ({"messages": []}, "messages"),
    ({"messages": [{}], "model": 5}, "model"), ({"messages": [{}], "max_tokens": 0}, "max_tokens"),
    ({"messages": [{}], "max_tokens": "5"}, "max_tokens"),
]


@pytest.mark.parametrize("data,name", NO_REQUESTS)
def test_requests_that_are_refused_name_the_field(data, name):
    with pytest.raises(ProxyError) as caught:
        MESSAGES_DIALECT.decode_request(data)
    assert caught.value.status == 400 and caught.value.message.startswith(name + ":")


def test_unknown_fields_stay():
    data = {"messages": [{"role": "wizard", "content": [{"type": "spell", "x": 1}]}], "new_field": {"a": 1}}
    assert MESSAGES_DIALECT.decode_request(data) == data


@pytest.mark.parametrize("index,block,expected", [
    (-1, "", {"type": "message_delta"}),
    (2, "text", {"type": "content_block_delta", "index": 2}),
    (0, "thinking", {"type": "content_block_delta", "index": 0}),
    (1, "tool_use", {"type": "content_block_delta", "index": 1}),
    (3, "unheard_of", {"type": "content_block_delta", "index": 3}),
])
def test_nudges_are_whole_frames_that_change_nothing(index, block, expected):
    [frame] = FrameSplitter().feed(MESSAGES_DIALECT.nudge(index, block))
    event = json.loads(frame_data(frame)[1])
    assert event.items() >= expected.items()
    if index >= 0:
        assert "" in event["delta"].values()
    else:
        assert event["delta"]["stop_reason"] is None


def test_errors_are_whole_frames():
    [frame] = FrameSplitter().feed(MESSAGES_DIALECT.error_frame(ProxyError(529, "busy"), "req_1"))
    name, data = frame_data(frame)
    assert name == "error"
    assert json.loads(data) == {"type": "error", "request_id": "req_1",
                                "error": {"type": "overloaded_error", "message": "busy"}}
