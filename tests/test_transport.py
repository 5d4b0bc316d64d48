"""The transport: decisions as pure functions, and the pool, TLS and decoding against real sockets."""

from __future__ import annotations

import socket
import ssl
import zlib

import pytest

from claude_proxy.errors import ProxyError
from claude_proxy.exchange import Exchange, client_gone
from claude_proxy.http1 import ResponseHead
from claude_proxy.pool import (
    IDLE_CONNECTION_SECONDS,
    Pool,
    Target,
    UpstreamConnection,
    connect_socket,
    make_ssl_context,
    split_url,
)
from claude_proxy.transport import (
    LONGEST_RETRY_WAIT,
    Call,
    Timeouts,
    Transport,
    UpstreamResponse,
    backoff,
    inflate,
    should_retry,
)
from tests.support import HANG_UP, LAST, STREAM_HEAD, ScriptedUpstream, http_answer, http_chunk


@pytest.mark.parametrize("url,target,path", [
    ("http://h/v1/x", ("http", "h", 80), "/v1/x"),
    ("https://h:8443/v1?a=b", ("https", "h", 8443), "/v1?a=b"),
    ("https://[::1]/x", ("https", "::1", 443), "/x"),
    ("https://H.Example", ("https", "h.example", 443), "/"),
])
def test_split_url(url, target, path):
    assert split_url(url) == (target, path)


@pytest.mark.parametrize("status,headers,expected", [
    (429, {}, True), (529, {}, True), (500, {}, True), (503, {}, True), (408, {}, True),
    (400, {}, False), (401, {}, False), (404, {}, False), (200, {}, False), (501, {}, False),
    (500, {"x-should-retry": "false"}, False), (400, {"x-should-retry": "true"}, False),
])
def test_should_retry(status, headers, expected):
    assert should_retry(status, headers) is expected


@pytest.mark.parametrize("attempt,after,low,high", [
    (0, None, 0.375, 0.625), (1, None, 0.75, 1.25), (2, None, 1.5, 2.5), (20, None, 6.0, 10.0), (0, 3, 3, 3),
    (5, 0, 0, 0),
])
def test_backoff(attempt, after, low, high):
    for chance in (0.0, 0.5, 0.999):
        assert low <= backoff(attempt, after, chance) <= high


def make_transport(**changes):
    return Transport(Timeouts(5, 5, 5), **{"max_retries": 0, **changes})


def call_to(upstream, body=b"{}"):
    return Call("POST", Target("http", "127.0.0.1", upstream.port), "/x", (("content-type", "a/b"),), body)


BODIES = [
    ("length", http_answer(200, b"hello"), b"hello", 1),
    ("chunked", [STREAM_HEAD, http_chunk(b"hel"), http_chunk(b"lo"), LAST], b"hello", 1),
    ("until close", [b"HTTP/1.1 200 OK\r\n\r\nhello", HANG_UP], b"hello", 2),
    ("interim first", [b"HTTP/1.1 100 Continue\r\n\r\n", *http_answer(200, b"hello")], b"hello", 1),
    ("asked to close", http_answer(200, b"hello", "connection: close"), b"hello", 2),
    ("no content", [b"HTTP/1.1 204 X\r\n\r\n"], b"", 1),
]


@pytest.mark.parametrize("name,script,data,connections", BODIES, ids=[row[0] for row in BODIES])
def test_bodies_and_what_becomes_of_the_connection(name, script, data, connections):
    with ScriptedUpstream(script) as upstream:
        transport = make_transport()
        for _ in range(2):
            response = transport.request(Exchange(), call_to(upstream))
            assert b"".join(response.pieces()) == data
            response.close()
        assert upstream.connections == connections
        transport.close()


CUT = [
    ("length", [b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello", HANG_UP]),
    ("chunked", [STREAM_HEAD, http_chunk(b"hello"), HANG_UP]),
    ("in a chunk", [STREAM_HEAD, b"a\r\nhello", HANG_UP]),
]


@pytest.mark.parametrize("name,script", CUT, ids=[row[0] for row in CUT])
def test_a_body_that_is_cut_short_is_an_error(name, script):
    with ScriptedUpstream(script) as upstream:
        response = make_transport().request(Exchange(), call_to(upstream))
        pieces = response.pieces()
        assert next(pieces) == b"hello"
        with pytest.raises(ProxyError) as caught:
            next(pieces)
        assert caught.value.status == 502
        response.close()


def test_a_body_left_unread_closes_its_connection():
    with ScriptedUpstream([STREAM_HEAD, http_chunk(b"x" * 10), http_chunk(b"y" * 10)]) as upstream:
        transport = make_transport()
        for _ in range(2):
            response = transport.request(Exchange(), call_to(upstream))
            next(response.pieces())
            response.close()
        assert upstream.connections == 2


def test_the_sent_request_is_exact():
    with ScriptedUpstream(http_answer(200, b"")) as upstream:
        make_transport().request(Exchange(), call_to(upstream, b'{"a":1}')).close()
        [sent], port = upstream.requests, upstream.port
    assert sent.line == "POST /x HTTP/1.1" and sent.body == b'{"a":1}'
    assert sent.headers == {"host": f"127.0.0.1:{port}", "accept-encoding": "identity",
                            "content-length": "7", "content-type": "a/b"}


def test_the_pool_takes_the_last_one_and_forgets_the_old_and_the_dead():
    now = [0.0]
    pool, target = Pool(lambda: now[0]), Target("http", "h", 1)
    pairs = [socket.socketpair() for _ in range(3)]
    connections = [UpstreamConnection(target, ours) for ours, _ in pairs]
    for connection in connections:
        pool.give(connection)
    pairs[2][1].close()
    assert pool.take(target) is connections[1] and connections[1].reused
    assert pool.take(Target("https", "h", 1)) is None
    now[0] += IDLE_CONNECTION_SECONDS + 1
    assert pool.take(target) is None
    for ours, theirs in pairs:
        ours.close()
        theirs.close()


@pytest.mark.parametrize("make,words", [
    (lambda: Target("http", "127.0.0.1", free_port()), "nothing listens there"),
    (lambda: Target("http", "no-such-host.invalid", 80), "name is not known"),
])
def test_connecting_in_vain_says_why(make, words):
    target = make()
    with pytest.raises(ProxyError) as caught:
        connect_socket(target, 5, None)
    assert caught.value.status == 502
    assert words in caught.value.message and target.host in caught.value.message


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_https_to_a_server_without_tls_says_so():
    with ScriptedUpstream([b"x"]) as upstream, pytest.raises(ProxyError) as caught:
        context = make_ssl_context(True)
        sock = connect_socket(Target("https", "127.0.0.1", upstream.port), 0.3, context)
        sock.close()
    assert "TLS handshake" in caught.value.message or "CONNECT_TIMEOUT" in caught.value.message


def test_the_tls_context():
    strict, loose = make_ssl_context(True), make_ssl_context(False)
    assert strict.minimum_version == ssl.TLSVersion.TLSv1_2
    assert (strict.verify_mode, strict.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert (loose.verify_mode, loose.check_hostname) == (ssl.CERT_NONE, False)


@pytest.mark.parametrize("window", [31, 15], ids=["gzip", "deflate"])
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_inflating_in_any_pieces(window, size):
    data = bytes(range(256)) * 40
    packer = zlib.compressobj(wbits=window)
    packed = packer.compress(data) + packer.flush()
    pieces = [packed[i:i + size] for i in range(0, len(packed), size)]
    assert b"".join(inflate(iter(pieces))) == data


def test_a_bomb_comes_in_bounded_parts():
    bomb = zlib.compress(b"\0" * 50_000_000)
    parts = inflate(iter([bomb]))
    assert max(len(next(parts)) for _ in range(5)) <= 1 << 20


def test_damaged_gzip_is_an_error():
    with pytest.raises(ProxyError):
        list(inflate(iter([b"\x1f\x8b\x08nonsense"])))


def test_long_waits_are_the_clients():
    """A 429 with a long retry-after is passed on, not slept through."""
    script = http_answer(429, b"", f"retry-after: {int(LONGEST_RETRY_WAIT) + 1}")
    with ScriptedUpstream(script) as upstream:
        response = make_transport(max_retries=3).request(Exchange(), call_to(upstream))
        assert response.status == 429 and len(upstream.requests) == 1
        response.close()


class EndlessSocket:
    """Has more to read, always; also when it has been shut down, as sockets do while data is there."""

    def recv(self, size):
        return b"4\r\nmore\r\n"

    def shutdown(self, how):
        pass

    def close(self):
        pass


def test_who_learns_while_waiting_that_the_client_has_gone_reads_no_more():
    exchange, connection = Exchange(), UpstreamConnection(Target("http", "127.0.0.1", 9), EndlessSocket())
    head = ResponseHead("HTTP/1.1", 200, {"transfer-encoding": "chunked"})
    pieces = UpstreamResponse(exchange, connection, head, 5.0, Pool()).pieces()
    assert next(pieces) == b"more"
    exchange.before_wait = lambda: exchange.cancel(client_gone())
    with pytest.raises(ProxyError) as gone:
        for _ in range(10):
            next(pieces)
    assert gone.value.status == 499
