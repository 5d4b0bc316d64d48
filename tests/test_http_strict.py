"""Strict HTTP on a raw socket: what is refused, and that none of it reaches the upstream."""

from __future__ import annotations

import json

import pytest

from tests.support import (
    RawClient,
    ScriptedUpstream,
    ask,
    message_body,
    request_bytes,
    running_proxy,
    text_answer,
    upstream_environ,
)

BODY = json.dumps(message_body()).encode()
POST = b"POST /v1/messages HTTP/1.1\r\n"
JSON = b"Content-Type: application/json\r\n"
HOST = b"Host: localhost\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
BODY_CHUNK = b"%x\r\n%b\r\n" % (len(BODY), BODY)


def with_length(*fields: bytes, line: bytes = POST, host: bytes = HOST, length: object = None) -> bytes:
    size = len(BODY) if length is None else length
    size = size if isinstance(size, bytes) else str(size).encode()
    return line + host + JSON + b"Content-Length: " + size + b"\r\n" + b"".join(fields) + b"\r\n" + BODY


def chunked(body: bytes, *fields: bytes, coding: bytes = CHUNKED, line: bytes = POST) -> bytes:
    return line + HOST + JSON + coding + b"".join(fields) + b"\r\n" + body


REFUSED = [
    ("content-length with plus", with_length(length=b"+%d" % len(BODY)), 400),
    ("content-length with minus", with_length(length=b"-1"), 400),
    ("content-length with underscore", with_length(length=b"1_0"), 400),
    ("content-length in hex", with_length(length=b"0x10"), 400),
    ("content-length with letters", with_length(length=b"12abc"), 400),
    ("content-length empty", with_length(length=b""), 400),
    ("content-length a list", with_length(length=b"%d, %d" % (len(BODY), len(BODY))), 400),
    ("content-length with 30 digits", with_length(length=b"1" * 30), 400),
    ("content-length with other digits", with_length(length=b"\xb2"), 400),
    ("two content-lengths alike", with_length(b"Content-Length: %d\r\n" % len(BODY)), 400),
    ("two content-lengths apart", with_length(b"Content-Length: 3\r\n"), 400),
    ("CL and TE", with_length(CHUNKED), 400),
    ("TE and CL", chunked(BODY_CHUNK + b"0\r\n\r\n", b"Content-Length: 4\r\n"), 400),
    ("TE twice", chunked(BODY_CHUNK + b"0\r\n\r\n", CHUNKED), 400),
    ("TE identity", chunked(BODY, coding=b"Transfer-Encoding: identity\r\n"), 400),
    ("TE unknown", chunked(BODY, coding=b"Transfer-Encoding: xchunked\r\n"), 400),
    ("TE chunked not last", chunked(BODY_CHUNK, coding=b"Transfer-Encoding: chunked, gzip\r\n"), 400),
    ("TE gzip, chunked", chunked(BODY_CHUNK, coding=b"Transfer-Encoding: gzip, chunked\r\n"), 400),
    ("TE with vertical tab", chunked(BODY_CHUNK, coding=b"Transfer-Encoding: \x0bchunked\r\n"), 400),
    ("TE quoted", chunked(BODY_CHUNK, coding=b'Transfer-Encoding: "chunked"\r\n'), 400),
    ("TE in HTTP/1.0", chunked(BODY_CHUNK + b"0\r\n\r\n", line=b"POST /v1/messages HTTP/1.0\r\n"), 400),
    ("space before colon", with_length(b"Transfer-Encoding : chunked\r\n"), 400),
    ("obs-fold", with_length(b"X-A: b\r\n c\r\n"), 400),
    ("obs-fold of transfer-encoding", with_length(b"X: y\r\n\tTransfer-Encoding: chunked\r\n"), 400),
    ("bare LF ends a field", with_length(b"X-A: b\nTransfer-Encoding: chunked\r\n"), 400),
    ("bare CR in a field", with_length(b"X-A: b\rTransfer-Encoding: chunked\r\n"), 400),
    ("bare LF everywhere", with_length().replace(b"\r\n", b"\n"), 400),
    ("NUL in a field", with_length(b"X-A: b\x00c\r\n"), 400),
    ("NUL in a name", with_length(b"X\x00A: b\r\n"), 400),
    ("field without colon", with_length(b"nonsense\r\n"), 400),
    ("field without name", with_length(b": b\r\n"), 400),
    ("name with parentheses", with_length(b"X(A): b\r\n"), 400),
    ("first field indented", POST + b" X: y\r\n" + with_length()[len(POST):], 400),
    ("chunk size with plus", chunked(b"+5\r\nhello\r\n0\r\n\r\n"), 400),
    ("chunk size with 0x", chunked(b"0x5\r\nhello\r\n0\r\n\r\n"), 400),
    ("chunk size with underscore", chunked(b"1_0\r\nhello\r\n0\r\n\r\n"), 400),
    ("chunk size negative", chunked(b"-5\r\nhello\r\n0\r\n\r\n"), 400),
    ("chunk size empty", chunked(b"\r\nhello\r\n0\r\n\r\n"), 400),
    ("chunk size of 17 digits", chunked(b"1" * 17 + b"\r\nhello\r\n0\r\n\r\n"), 400),
    ("chunk size with blank", chunked(b" 5\r\nhello\r\n0\r\n\r\n"), 400),
    ("chunk line ends in LF", chunked(b"5\nhello\r\n0\r\n\r\n"), 400),
    ("chunk line with bare CR", chunked(b"5;a\rb\r\nhello\r\n0\r\n\r\n"), 400),
    ("chunk data longer than said", chunked(b"4\r\nhello\r\n0\r\n\r\n"), 400),
    ("chunk data ends in LF", chunked(b"5\r\nhello\n0\r\n\r\n"), 400),
    ("chunk extension endless", chunked(b"5;" + b"a" * 400 + b"\r\nhello\r\n0\r\n\r\n"), 400),
    ("trailer with a bad name", chunked(BODY_CHUNK + b"0\r\nX Y: z\r\n\r\n"), 400),
    ("trailers too long", chunked(BODY_CHUNK + b"0\r\n" + b"X: %b\r\n" % (b"a" * 3000) * 4 + b"\r\n"), 431),
    ("no host", with_length(host=b""), 400),
    ("two hosts", with_length(HOST), 400),
    ("host empty", with_length(host=b"Host: \r\n"), 400),
    ("host with a path", with_length(host=b"Host: localhost/x\r\n"), 400),
    ("host with user", with_length(host=b"Host: a@localhost\r\n"), 400),
    ("host with blank", with_length(host=b"Host: local host\r\n"), 400),
    ("host foreign", with_length(host=b"Host: evil.example\r\n"), 403),
    ("host that only begins like ours", with_length(host=b"Host: localhost.evil.example\r\n"), 403),
    ("absolute target with foreign host", with_length(line=b"POST http://evil.example/v1/messages HTTP/1.1\r\n"), 403),
    ("absolute target with user", with_length(line=b"POST http://a@localhost/v1/messages HTTP/1.1\r\n"), 400),
    ("origin foreign", with_length(b"Origin: https://evil.example\r\n"), 403),
    ("origin null", with_length(b"Origin: null\r\n"), 403),
    ("origin rebinding", with_length(b"Origin: http://localhost.evil.example:8765\r\n"), 403),
    ("cross-site fetch", with_length(b"Sec-Fetch-Site: cross-site\r\n"), 403),
    ("two content types", with_length(JSON), 400),
    ("no content type", with_length().replace(JSON, b""), 415),
    ("form content type", with_length().replace(b"application/json", b"text/plain"), 415),
    ("unknown expectation", with_length(b"Expect: tea\r\n"), 417),
    ("version 2.0", with_length(line=b"POST /v1/messages HTTP/2.0\r\n"), 505),
    ("version 1.2", with_length(line=b"POST /v1/messages HTTP/1.2\r\n"), 505),
    ("version lower case", with_length(line=b"POST /v1/messages http/1.1\r\n"), 400),
    ("no version", with_length(line=b"POST /v1/messages\r\n"), 400),
    ("two blanks in the line", with_length(line=b"POST  /v1/messages HTTP/1.1\r\n"), 400),
    ("tab in the line", with_length(line=b"POST\t/v1/messages HTTP/1.1\r\n"), 400),
    ("target not ASCII", with_length(line=b"POST /v1/m\xc3\xa4 HTTP/1.1\r\n"), 400),
    ("target with fragment", with_length(line=b"POST /v1/messages#x HTTP/1.1\r\n"), 400),
    ("target without slash", with_length(line=b"POST v1/messages HTTP/1.1\r\n"), 400),
    ("method with colon", with_length(line=b"PO:ST /v1/messages HTTP/1.1\r\n"), 400),
    ("line too long", with_length(line=b"POST /v1/messages?" + b"a" * 9000 + b" HTTP/1.1\r\n"), 414),
    ("a field too long", with_length(b"X: " + b"a" * 40000 + b"\r\n"), 431),
    ("too many fields", with_length(b"X: y\r\n" * 101), 431),
    ("method CONNECT", b"CONNECT example.com:443 HTTP/1.1\r\n" + HOST + b"\r\n", 405),
    ("method PUT", with_length(line=b"PUT /v1/messages HTTP/1.1\r\n"), 405),
]


@pytest.mark.parametrize("name,raw,status", REFUSED, ids=[row[0] for row in REFUSED])
def test_what_is_refused(strict_proxy, name, raw, status):
    proxy, upstream = strict_proxy
    with RawClient(proxy.port) as client:
        client.send(raw + b"GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = client.answer()
        rest = client.read_to_end() if answer.headers.get("connection") == "close" else b""
    assert (answer.status, answer.json["type"]) == (status, "error")
    assert answer.headers["request-id"] == answer.json["request_id"]
    assert b"/smuggled" not in rest, "bytes behind a refused request were taken for another"
    assert upstream.requests == []


ACCEPTED = [
    ("plain", with_length()),
    ("any query", with_length(line=b"POST /v1/messages?beta=true&x=%20 HTTP/1.1\r\n")),
    ("trailing slash", with_length(line=b"POST /v1/messages/ HTTP/1.1\r\n")),
    ("absolute target", with_length(line=b"POST http://localhost:1/v1/messages HTTP/1.1\r\n")),
    ("empty line first", b"\r\n" + with_length()),
    ("chunked", chunked(BODY_CHUNK + b"0\r\n\r\n")),
    ("chunked, upper case", chunked(BODY_CHUNK + b"0\r\n\r\n", coding=b"Transfer-Encoding: Chunked\r\n")),
    ("chunk extension and trailer", chunked(
        b"%x;a=b\r\n%b\r\n0\r\nX: y\r\n\r\n" % (len(BODY), BODY))),
    ("leading zeros", chunked(b"000%x\r\n%b\r\n000\r\n\r\n" % (len(BODY), BODY))),
    ("content type with charset", with_length().replace(b"json", b"json; charset=utf-8")),
    ("no blank behind the colon", with_length(b"X:y\r\n")),
    ("address as host", with_length(host=b"Host: 127.0.0.1:8765\r\n")),
    ("IPv6 address as host", with_length(host=b"Host: [::1]:8765\r\n")),
    ("host with final dot", with_length(host=b"Host: localhost.\r\n")),
    ("own origin", with_length(b"Origin: http://localhost:3000\r\n")),
    ("same-origin fetch", with_length(b"Sec-Fetch-Site: same-origin\r\n")),
    ("value with bytes above ASCII", with_length(b"X: \xc3\xa4\r\n")),
    ("100 fields", with_length(b"X: y\r\n" * 97)),
]


@pytest.mark.parametrize("name,raw", ACCEPTED, ids=[row[0] for row in ACCEPTED])
@pytest.mark.parametrize("cut", ["whole", "byte by byte"])
def test_what_is_accepted(form, name, raw, cut):
    with ScriptedUpstream(text_answer("fine")) as upstream, running_proxy(
            form, upstream_environ(upstream)) as proxy, RawClient(proxy.port) as client:
        for piece in [raw] if cut == "whole" else [raw[i:i + 1] for i in range(len(raw))]:
            client.send(piece)
        answer = client.answer()
        assert answer.status == 200, answer.body
        assert answer.json["content"] == [{"type": "text", "text": "fine"}]
        assert len(upstream.requests) == 1


def test_pipelined_requests_are_answered_in_order(form):
    with running_proxy(form) as proxy, RawClient(proxy.port) as client:
        client.send(request_bytes(path="/livez", method="GET") * 3 + request_bytes(path="/x", method="GET"))
        assert [client.answer().status for _ in range(4)] == [200, 200, 200, 404]


def test_expect_100_continue(form):
    raw = request_bytes(message_body(), fields=("expect: 100-continue",))
    head, _, body = raw.partition(b"\r\n\r\n")
    with running_proxy(form) as proxy, RawClient(proxy.port) as client:
        client.send(head + b"\r\n\r\n")
        assert client.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 100 ")
        client.send(body)
        assert client.answer().status == 200


def test_expect_is_answered_with_the_refusal_itself(form):
    with running_proxy(form) as proxy, RawClient(proxy.port) as client:
        client.send(POST + HOST + b"Content-Type: text/plain\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
        assert client.read_until(b"\r\n").startswith(b"HTTP/1.1 415 ")


@pytest.mark.parametrize("length,chunks,status", [
    (b"1000", [], 413),
    (None, [b"x" * 300, b"x" * 300], 413),
    (None, [b"x" * 100], 400),
])
def test_body_limit(form, length, chunks, status):
    framing = b"Content-Length: " + length if length else CHUNKED.strip()
    body = b"".join(b"%x\r\n%b\r\n" % (len(c), c) for c in chunks) + (b"0\r\n\r\n" if chunks else b"")
    with running_proxy(form, max_body_bytes=500) as proxy, RawClient(proxy.port) as client:
        client.send(POST + HOST + JSON + framing + b"\r\n\r\n" + body)
        answer = client.answer()
        assert answer.status == status
        assert answer.headers.get("connection") == ("close" if status == 413 else None)


def test_a_refusal_reaches_a_client_that_is_still_sending(form):
    """A reset would take the answer away from it."""
    with running_proxy(form, max_body_bytes=500) as proxy, RawClient(proxy.port) as client:
        client.send(POST + HOST + JSON + b"Content-Length: 3000000\r\n\r\n")
        for _ in range(30):
            client.send(b"x" * 100_000)
        assert client.answer().status == 413


@pytest.mark.parametrize("sent,timeout,status", [
    (b"POST /v1/mess", "header_timeout", 408),
    (POST + HOST + JSON, "header_timeout", 408),
    (POST + HOST + JSON + b"Content-Length: 10\r\n\r\n{", "read_timeout", 408),
])
def test_slow_senders_are_told_and_dropped(form, sent, timeout, status):
    with running_proxy(form, **{timeout: 0.1}) as proxy, RawClient(proxy.port) as client:
        client.send(sent)
        assert client.answer().status == status
        assert client.read_to_end() == b""


def test_a_sender_that_drips_does_not_push_the_deadline(form):
    with running_proxy(form, header_timeout=0.15) as proxy, RawClient(proxy.port) as client:
        for byte in (POST + HOST)[:6]:
            client.send(bytes([byte]))
            client.sock.settimeout(0.05)
            try:
                assert client.sock.recv(1, 2) != b""
                break
            except OSError:
                continue
        client.sock.settimeout(5)
        assert client.answer().status == 408


def test_idle_connections_are_closed_without_a_word(form):
    with running_proxy(form, idle_timeout=0.1) as proxy, RawClient(proxy.port) as client:
        assert client.read_to_end() == b""


@pytest.mark.parametrize("fields,version,stays", [
    ((), "HTTP/1.1", True),
    (("connection: close",), "HTTP/1.1", False),
    (("connection: x, Close",), "HTTP/1.1", False),
    ((), "HTTP/1.0", False),
    (("connection: keep-alive",), "HTTP/1.0", True),
])
def test_keep_alive(form, fields, version, stays):
    raw = request_bytes(path="/livez", method="GET", fields=fields).replace(b"HTTP/1.1", version.encode())
    with running_proxy(form) as proxy, RawClient(proxy.port) as client:
        client.send(raw)
        assert client.answer().status == 200
        client.send(raw) if stays else None
        assert client.answer().status == 200 if stays else client.read_to_end() == b""


def test_http_10_streams_end_with_the_connection(form):
    raw = request_bytes(message_body(stream=True)).replace(b"HTTP/1.1", b"HTTP/1.0")
    with running_proxy(form) as proxy, RawClient(proxy.port) as client:
        client.send(raw)
        head = client.read_until(b"\r\n\r\n").lower()
        assert b"transfer-encoding" not in head and b"connection: close" in head
        assert client.read_to_end().rstrip().endswith(b'{"type":"message_stop"}')


def test_connections_beyond_the_cap_are_told(form):
    with running_proxy(form, max_connections=1) as proxy, RawClient(proxy.port) as first:
        first.send(request_bytes(path="/livez", method="GET") + POST)
        assert first.answer().status == 200
        refused = ask(proxy.port, message_body())
        assert (refused.status, refused.json["error"]["type"]) == (503, "overloaded_error")
        assert int(refused.headers["retry-after"]) > 0
        assert ask(proxy.port, path="/health", method="GET").status == 200


@pytest.fixture(scope="module")
def strict_proxy(form):
    with ScriptedUpstream(text_answer("never")) as upstream:
        with running_proxy(form, upstream_environ(upstream)) as proxy:
            yield proxy, upstream
