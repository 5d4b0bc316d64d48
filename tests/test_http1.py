"""Heads and bodies as bytes: every split of every body, and the edges of every limit."""

from __future__ import annotations

import itertools

import pytest

from claude_proxy.errors import ProxyError
from claude_proxy.http1 import (
    LONGEST_HEAD,
    LONGEST_REQUEST_LINE,
    MOST_FIELDS,
    ChunkedBody,
    LengthBody,
    UntilCloseBody,
    encode_chunk,
    encode_request_head,
    encode_response_head,
    keeps_alive,
    parse_head,
    request_body,
    response_body,
    take_head,
    take_response_head,
)

HEAD = b"POST /v1/messages?beta=true HTTP/1.1\r\nHost: localhost:8765\r\nX-A:  b \t\r\nx-a: c\r\n\r\n"


def test_a_head_is_taken_when_it_is_whole():
    for cut in range(len(HEAD)):
        assert take_head(HEAD[:cut]) is None
    assert take_head(HEAD + b"rest") == (HEAD[:-2], b"rest")


def test_a_head_is_parsed():
    request = parse_head(HEAD[:-2], "10.0.0.1")
    assert (request.method, request.path, request.query) == ("POST", "/v1/messages", "beta=true")
    assert request.headers == {"host": "localhost:8765", "x-a": "b, c"}
    assert (request.host, request.peer, request.version) == ("localhost:8765", "10.0.0.1", "HTTP/1.1")


TARGETS = [
    (b"GET /", ("/", "")),
    (b"GET /a?b?c", ("/a", "b?c")),
    (b"GET //evil", ("//evil", "")),
    (b"OPTIONS *", ("*", "")),
    (b"GET http://localhost", ("/", "")),
    (b"GET http://localhost/a?b", ("/a", "b")),
    (b"GET HTTPS://LOCALHOST:1/a", ("/a", "")),
]


@pytest.mark.parametrize("line,expected", TARGETS)
def test_targets(line, expected):
    request = parse_head(line + b" HTTP/1.1\r\nHost: localhost\r\n")
    assert (request.path, request.query) == expected


@pytest.mark.parametrize("line", [b"GET *", b"GET a", b"GET http://", b"GET ftp://x/", b"GET http://[::1/", b"GET /a#b"])
def test_targets_that_are_none(line):
    with pytest.raises(ProxyError) as caught:
        parse_head(line + b" HTTP/1.1\r\nHost: localhost\r\n")
    assert caught.value.status == 400


def test_the_host_of_an_absolute_target_counts():
    request = parse_head(b"GET http://one.example/ HTTP/1.1\r\nHost: localhost\r\n")
    assert request.host == "one.example"


def line_of(length: int) -> bytes:
    frame = len(b"GET / HTTP/1.1")
    return b"GET /" + b"a" * (length - frame) + b" HTTP/1.1\r\nHost: h\r\n\r\n"


def head_of(length: int) -> bytes:
    start = b"GET / HTTP/1.1\r\nHost: h\r\nX: "
    return start + b"a" * (length - len(start) - 2) + b"\r\n\r\n"


@pytest.mark.parametrize("raw,status", [
    (line_of(LONGEST_REQUEST_LINE), None),
    (line_of(LONGEST_REQUEST_LINE + 1), 414),
    (b"a" * (LONGEST_REQUEST_LINE + 1), 414),
    (head_of(LONGEST_HEAD), None),
    (head_of(LONGEST_HEAD + 1), 431),
    (b"GET / HTTP/1.1\r\nX: " + b"a" * LONGEST_HEAD, 431),
])
def test_limits(raw, status):
    if status is None:
        assert take_head(raw) is not None
        return
    with pytest.raises(ProxyError) as caught:
        take_head(raw)
    assert caught.value.status == status


@pytest.mark.parametrize("count,fine", [(MOST_FIELDS, True), (MOST_FIELDS + 1, False)])
def test_number_of_fields(count, fine):
    head = b"GET / HTTP/1.1\r\nHost: h\r\n" + b"A: b\r\n" * (count - 1)
    if fine:
        assert parse_head(head).headers["host"] == "h"
        return
    with pytest.raises(ProxyError) as caught:
        parse_head(head)
    assert caught.value.status == 431


@pytest.mark.parametrize("buffer", [b"GET / HTTP/1.1\n", b"GET /\rx", b"GET / HTTP/1.1\r\nA: b\nC: d", b"\n\n"])
def test_a_wrong_line_end_is_refused_before_the_head_is_whole(buffer):
    with pytest.raises(ProxyError):
        take_head(buffer)


@pytest.mark.parametrize("version,connection,expected", [
    ("HTTP/1.1", None, True), ("HTTP/1.1", "close", False), ("HTTP/1.1", "Upgrade, CLOSE", False),
    ("HTTP/1.0", None, False), ("HTTP/1.0", "Keep-Alive", True), ("HTTP/1.0", "keep-alive, close", False),
])
def test_keeps_alive(version, connection, expected):
    assert keeps_alive(version, {"connection": connection} if connection else {}) is expected


def has_bare_line_end(head: bytes) -> bool:
    crlf_starts = {i for i in range(len(head)) if head[i:i + 2] == b"\r\n"}
    bare_lf = any(head[i:i + 1] == b"\n" and i - 1 not in crlf_starts for i in range(len(head)))
    return bare_lf or any(head[i:i + 1] == b"\r" and i not in crlf_starts for i in range(len(head) - 1))


def test_every_short_buffer_with_a_bare_line_end_is_refused_and_no_other():
    for parts in itertools.product((b"\r", b"\n", b"\r\n", b"a"), repeat=5):
        buffer = b"".join(parts)
        end = buffer.find(b"\r\n\r\n")
        wrong = has_bare_line_end(buffer if end < 0 else buffer[:end + 2])
        for scanned in range(end + 3 if end >= 0 else len(buffer)):
            # What was seen before was without fault, or it had been refused.
            if has_bare_line_end(buffer[:scanned]):
                break
            try:
                take_head(buffer, scanned)
                refused = False
            except ProxyError:
                refused = True
            assert refused == wrong, (buffer, scanned)


# --- bodies ---------------------------------------------------------------------------------------

BODIES = [
    ("length", lambda: LengthBody(11), b"hello world", b"hello world"),
    ("one chunk", ChunkedBody, b"b\r\nhello world\r\n0\r\n\r\n", b"hello world"),
    ("chunks", ChunkedBody, b"5\r\nhello\r\n1\r\n \r\n5\r\nworld\r\n0\r\n\r\n", b"hello world"),
    ("extensions and trailers", ChunkedBody,
     b'5;a\r\nhello\r\n06 ;b="c"\r\n world\r\n00\r\nX: y\r\nZ:\r\n\r\n', b"hello world"),
    ("line ends inside", ChunkedBody, b"4\r\n\r\n\r\n\r\n0\r\n\r\n", b"\r\n\r\n"),
    ("empty", ChunkedBody, b"0\r\n\r\n", b""),
    ("large", ChunkedBody, b"12C\r\n" + b"x" * 300 + b"\r\n0\r\n\r\n", b"x" * 300),
]


@pytest.mark.parametrize("name,make,raw,data", BODIES, ids=[row[0] for row in BODIES])
def test_bodies_at_every_split(name, make, raw, data):
    for cut in range(len(raw)):
        body = make()
        told = body.feed(raw[:cut])
        assert not body.done and not body.end_of_input()
        told += body.feed(raw[cut:] + b"NEXT")
        assert (told, body.done, body.rest) == (data, True, b"NEXT")


@pytest.mark.parametrize("name,make,raw,data", BODIES, ids=[row[0] for row in BODIES])
def test_bodies_byte_by_byte(name, make, raw, data):
    body = make()
    assert b"".join(body.feed(raw[i:i + 1]) for i in range(len(raw))) == data
    assert body.done and body.rest == b""


WRONG_CHUNKS = [b"x\r\n", b"5\nhello", b"5\r\nhello!", b"5\r\nhello\n", b"-1\r\n", b"\r\n", b"5\r\nhello\rx",
                b"1" * 17 + b"\r\n", b"5;" + b"a" * 300, b"0\r\nA B: c\r\n", b"0x5\r\n", b"5 6\r\n",
                b"5_0\r\n", b"+5\r\n", b" 5\r\n", b"5\r\nhello0\r\n\r\n"]


@pytest.mark.parametrize("raw", WRONG_CHUNKS)
def test_wrong_chunks_are_refused_however_they_are_cut(raw):
    for cut in range(len(raw) + 1):
        body = ChunkedBody()
        with pytest.raises(ProxyError):
            body.feed(raw[:cut])
            body.feed(raw[cut:])
    body = ChunkedBody()
    with pytest.raises(ProxyError):
        for i in range(len(raw)):
            body.feed(raw[i:i + 1])


def test_a_body_until_close():
    body = UntilCloseBody()
    assert body.feed(b"a") == b"a" and not body.done
    assert body.end_of_input() and body.done


def request(**headers):
    return parse_head(b"POST / HTTP/1.1\r\nHost: h\r\n")._replace(headers=headers)


def test_which_body_a_request_has():
    assert request_body(request()).done
    assert isinstance(request_body(request(**{"content-length": "3"})), LengthBody)
    assert isinstance(request_body(request(**{"transfer-encoding": "chunked"})), ChunkedBody)


# --- answers of upstreams -------------------------------------------------------------------------

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nTransfer-Encoding: chunked\r\n\r\n"


def test_a_response_head_at_every_split():
    for cut in range(len(ANSWER)):
        assert take_response_head(ANSWER[:cut]) is None
    head, rest = take_response_head(ANSWER + b"5\r\n")
    assert (head.status, head.headers["content-type"], rest) == (200, "a/b", b"5\r\n")
    assert isinstance(response_body(head), ChunkedBody)


@pytest.mark.parametrize("line,status", [
    (b"HTTP/1.1 200", 200), (b"HTTP/1.0 404 Not Found", 404), (b"HTTP/1.1 599 \xe4", 599)])
def test_status_lines(line, status):
    assert take_response_head(line + b"\r\n\r\n")[0].status == status


@pytest.mark.parametrize("line", [b"HTTP/2 200", b"ICY 200 OK", b"HTTP/1.1 20", b"HTTP/1.1 2000", b"<html>"])
def test_status_lines_that_are_none(line):
    with pytest.raises(ProxyError) as caught:
        take_response_head(line + b"\r\n\r\n")
    assert caught.value.status == 502


@pytest.mark.parametrize("head,kind", [
    (b"HTTP/1.1 204 X\r\nContent-Length: 5", LengthBody),
    (b"HTTP/1.1 200 X\r\nContent-Length: 5", LengthBody),
    (b"HTTP/1.1 200 X", UntilCloseBody),
    (b"HTTP/1.1 200 X\r\nContent-Length: +5", UntilCloseBody),
    (b"HTTP/1.1 200 X\r\nTransfer-Encoding: gzip, Chunked\r\nContent-Length: 5", ChunkedBody),
])
def test_which_body_an_answer_has(head, kind):
    assert isinstance(response_body(take_response_head(head + b"\r\n\r\n")[0]), kind)


# --- what we send ---------------------------------------------------------------------------------


def test_encoding():
    assert encode_chunk(b"x" * 300) == b"12c\r\n" + b"x" * 300 + b"\r\n"
    assert encode_response_head(404, [("a", "b")]) == b"HTTP/1.1 404 Not Found\r\na: b\r\n\r\n"
    assert encode_response_head(529, []).startswith(b"HTTP/1.1 529 ")
    assert encode_request_head("POST", "/a?b", [("a", "b")]) == b"POST /a?b HTTP/1.1\r\na: b\r\n\r\n"


@pytest.mark.parametrize("fields", [[("a", "b\r\nc: d")], [("a\n", "b")], [("a", "\x00")], [("a", "b\rc")],
                                    [("a", "b\nc")], [("a", "b"), ("c", "d\r")]])
def test_no_line_end_gets_into_a_field(fields):
    with pytest.raises(ValueError):
        encode_response_head(200, fields)


@pytest.mark.parametrize("target", ["/a b", "/a\r\nX: y", "/\u00fc", ""])
def test_no_blank_gets_into_a_target(target):
    with pytest.raises(ValueError):
        encode_request_head("GET", target, [])
