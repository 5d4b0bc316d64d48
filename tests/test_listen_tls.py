"""TLS to clients: what works without it works with it, and what is no TLS is sent away without a fuss."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time

import pytest

from claude_proxy.cli import Loaded, main, reload_settings
from claude_proxy.config import ConfigError
from claude_proxy.config_load import load_config
from claude_proxy.listen_tls import TlsLink, listening_context
from tests.support import (
    WAIT_FOR_CLOSE,
    Pause,
    RawClient,
    ScriptedUpstream,
    chat_stream,
    delta,
    load_form,
    message_body,
    request_bytes,
    running_proxy,
    text_answer,
    upstream_environ,
    wait_until,
)
from tests.test_cli import COMMANDS, Started, environment
from tests.test_tls import PASSPHRASE, Certificates

pytestmark = [
    pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not here to make certificates"),
    pytest.mark.usefixtures("no_thread_left"),
]
PACKAGE = load_form("package")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def own(made):
    """The settings to listen with the certificate that clients trust."""
    return {"TLS_CERT_FILE": made.path("server.pem"), "TLS_KEY_FILE": made.path("server.key")}


class TlsClient(RawClient):
    """As `RawClient`, over TLS. An end without close_notify is an error here."""

    def __init__(self, port, made, shows="", version=None, timeout=5):
        super().__init__(port, timeout)
        context = ssl.create_default_context(cafile=made.path("ca.pem"))
        if version:
            context.minimum_version = context.maximum_version = version
        if shows:
            context.load_cert_chain(made.path(f"{shows}.pem"), made.path(f"{shows}.key"))
        plain = self.sock
        try:
            self.sock = context.wrap_socket(plain, server_hostname="localhost", suppress_ragged_eofs=False)
        except OSError:
            plain.close()
            raise

    def ask(self, data=None, **options):
        self.send(request_bytes(data, **options))
        return self.answer()


def text_of(answer):
    return "".join(block["text"] for block in answer.json["content"])


# --- what works ----------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [None, ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_requests_one_after_the_other(made, own, version):
    with ScriptedUpstream(text_answer("he", "llo")) as upstream:
        with running_proxy(PACKAGE, {**upstream_environ(upstream), **own}) as proxy:
            with TlsClient(proxy.port, made, version=version) as client:
                assert client.sock.version() in ("TLSv1.2", "TLSv1.3")
                assert text_of(client.ask(message_body())) == "hello"
                streamed = client.ask(message_body("x" * 300_000, stream=True))
                assert [e["delta"]["text"] for e in streamed.events if e["type"] == "content_block_delta"] == ["he", "llo"]
                assert client.ask(path="/health", method="GET").json["status"] == "ok"
                assert len(proxy.inflight._connections) == 1
    assert [len(r.json["messages"][-1]["content"]) for r in upstream.requests] == [2, 300_000]


def test_each_event_comes_at_once(made, own):
    go = threading.Event()
    with ScriptedUpstream(chat_stream(delta(content="first"), Pause(5, go), delta(content="last"), delta("stop"))) as upstream:
        with running_proxy(PACKAGE, {**upstream_environ(upstream), **own}) as proxy, TlsClient(proxy.port, made) as client:
            client.send(request_bytes(message_body(stream=True)))
            client.read_until(b'"first"')
            go.set()
            assert b'"last"' in client.read_until(b"message_stop")


def test_requests_in_one_record_are_all_answered(made, own):
    """What OpenSSL has read ahead shows on no descriptor."""
    with running_proxy(PACKAGE, own) as proxy, TlsClient(proxy.port, made) as client:
        client.send(request_bytes(path="/livez", method="GET") * 3 + request_bytes(message_body()))
        assert [client.answer().status for _ in range(4)] == [200] * 4


def test_a_body_in_pieces_and_the_answer_to_a_client_that_only_listens_then(made, own):
    data = request_bytes(message_body("demo: text fine"))
    with running_proxy(PACKAGE, own) as proxy, TlsClient(proxy.port, made) as client:
        for piece in (data[:7], data[7:-5], data[-5:]):
            client.send(piece)
            time.sleep(0.01)
        assert text_of(client.answer()) == "fine"


@pytest.mark.parametrize("request_line", [b"GET /livez HTTP/1.0\r\n\r\n", b"GET /livez HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"])
def test_the_end_is_told(made, own, request_line):
    """TlsClient raises at an end that could be somebody else's doing."""
    with running_proxy(PACKAGE, own) as proxy, TlsClient(proxy.port, made) as client:
        client.send(request_line)
        assert b'"in_flight": 0' in client.read_to_end().replace(b'":0', b'": 0')


def test_pings_while_the_upstream_is_silent(made, own):
    go = threading.Event()
    with ScriptedUpstream([Pause(5, go), *text_answer("at last")]) as upstream:
        with running_proxy(PACKAGE, {**upstream_environ(upstream), **own}, ping_interval=0.03) as proxy:
            with TlsClient(proxy.port, made) as client:
                client.send(request_bytes(message_body(stream=True)))
                for _ in range(3):
                    client.read_until(b"event: ping")
                go.set()
                assert b"at last" in client.read_until(b"message_stop")


def test_a_large_answer_to_a_slow_reader(made, own):
    text = "x" * 3_000_000
    with ScriptedUpstream(chat_stream(*(delta(content=text[:100_000]) for _ in range(30)), delta("stop"))) as upstream:
        with running_proxy(PACKAGE, {**upstream_environ(upstream), **own}) as proxy, TlsClient(proxy.port, made) as client:
            client.send(request_bytes(message_body()))
            time.sleep(0.1)
            assert text_of(client.answer()) == text


def test_many_clients_at_once(made, own):
    with running_proxy(PACKAGE, own) as proxy:
        found = []

        def talk(number):
            with TlsClient(proxy.port, made) as client:
                found.extend(text_of(client.ask(message_body(f"demo: text {number}-{turn}"))) for turn in range(3))

        threads = [threading.Thread(target=talk, args=(n,)) for n in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(found) == sorted(f"{n}-{turn}" for n in range(12) for turn in range(3))


# --- clients that go away, or are slow -----------------------------------------------------------


def hang_up(client):
    with contextlib.suppress(OSError):
        client.sock.settimeout(0)
        client.sock.unwrap()
    client.sock.close()


def cut_off(client):
    client.sock.close()


LEAVING = {"with close_notify": hang_up, "without": cut_off}
PHASES = {
    "before the first byte": [WAIT_FOR_CLOSE],
    "within the stream": [chat_stream()[0], chat_stream(delta(content="first"))[1], WAIT_FOR_CLOSE],
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("leave", list(LEAVING))
@pytest.mark.parametrize("phase", list(PHASES))
def test_a_client_that_leaves_ends_the_upstreams_work(made, own, phase, leave, stream):
    with ScriptedUpstream(PHASES[phase]) as upstream:
        with running_proxy(PACKAGE, {**upstream_environ(upstream), **own}) as proxy:
            client = TlsClient(proxy.port, made)
            client.send(request_bytes(message_body(stream=stream)))
            assert wait_until(lambda: upstream.requests)
            if stream and phase.startswith("within"):
                client.read_until(b'"first"')
            LEAVING[leave](client)
            assert upstream.closed_by_peer.wait(2)
            assert wait_until(lambda: any(line.get("status") == 499 for line in proxy.log_lines()))
            assert wait_until(lambda: not proxy.inflight.connections())


def test_a_pipelined_request_is_no_hang_up(made, own):
    go = threading.Event()
    with ScriptedUpstream([Pause(5, go), *text_answer("first")], text_answer("second")) as upstream:
        with running_proxy(PACKAGE, {**upstream_environ(upstream), **own}) as proxy, TlsClient(proxy.port, made) as client:
            client.send(request_bytes(message_body()))
            assert wait_until(lambda: upstream.requests)
            client.send(request_bytes(message_body()))
            time.sleep(0.08)
            go.set()
            assert [text_of(client.answer()) for _ in range(2)] == ["first", "second"]


def test_a_body_that_stops_is_told_so(made, own):
    """The wait is ended below TLS; the answer goes by TLS all the same."""
    with running_proxy(PACKAGE, own, read_timeout=0.05) as proxy, TlsClient(proxy.port, made) as client:
        client.send(request_bytes(message_body())[:-5])
        answer = client.answer()
        assert answer.status == 408 and answer.headers["connection"] == "close"
        assert client.read_to_end() == b""


def test_a_body_that_is_too_large_is_told_so_while_it_comes(made, own):
    with running_proxy(PACKAGE, {**own, "MAX_BODY_BYTES": "2048"}) as proxy, TlsClient(proxy.port, made) as client:
        client.send(request_bytes(b"x" * 1_000_000))
        assert client.answer().status == 413
        assert client.read_to_end() == b""


def test_a_client_that_does_not_read_is_given_up(made, own):
    with ScriptedUpstream(chat_stream(*(delta(content="x" * 100_000) for _ in range(200)))) as upstream:
        with running_proxy(PACKAGE, {**upstream_environ(upstream), **own}, write_timeout=0.1) as proxy:
            with TlsClient(proxy.port, made) as client:
                client.send(request_bytes(message_body(stream=True)))
                assert wait_until(lambda: not proxy.inflight.connections(), 5)


# --- what is no TLS ------------------------------------------------------------------------------


def test_plain_http_is_closed(made, own):
    with running_proxy(PACKAGE, own) as proxy:
        with RawClient(proxy.port) as plain:
            plain.send(request_bytes(message_body("canary" * 5000)))
            assert b"HTTP/" not in plain.sock.recv(1000)
            plain.sock.close()
        assert wait_until(lambda: not proxy.inflight.connections())
        lines = proxy.log_lines()
        with TlsClient(proxy.port, made) as client:
            assert client.ask(message_body()).status == 200
    assert [(line["level"], line["event"], line["client"]) for line in lines] == [("debug", "tls_not_begun", "127.0.0.1")]
    assert "http request" in lines[0]["reason"] and "canary" not in proxy.log_text.getvalue()


def test_who_says_nothing_holds_nobody_up_and_is_closed(made, own):
    with running_proxy(PACKAGE, own, header_timeout=0.6) as proxy, contextlib.ExitStack() as stack:
        silent = [stack.enter_context(RawClient(proxy.port)) for _ in range(20)]
        silent[0].send(b"\x16\x03\x01")
        with TlsClient(proxy.port, made) as client:
            assert client.ask(message_body()).status == 200
            assert proxy.inflight.connections() == 21  # they are still there
        for client in silent:
            assert b"HTTP" not in client.read_to_end()
        assert wait_until(lambda: not proxy.inflight.connections())


def test_handshakes_count_as_connections(made, own):
    """Or whoever only knocks could have a thread each time."""
    with running_proxy(PACKAGE, own, max_connections=2) as proxy, contextlib.ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(RawClient(proxy.port))
        assert wait_until(lambda: proxy.inflight.connections() == 2)
        with TlsClient(proxy.port, made) as client:
            assert client.ask(message_body()).status == 503


@pytest.mark.parametrize("begin", [b"", b"\x16\x03\x01\x02\x00", b"\x80" * 50, b"\0" * 70000])
def test_who_leaves_within_the_handshake(made, own, begin):
    with running_proxy(PACKAGE, own) as proxy:
        with RawClient(proxy.port) as client:
            with contextlib.suppress(OSError):
                client.send(begin)
        assert wait_until(lambda: not proxy.inflight.connections())
        assert all(line["level"] == "debug" for line in proxy.log_lines()) and len(proxy.log_lines()) <= 1


def test_old_tls_is_refused(made, own):
    context = listening_context(load_config(own))
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    with running_proxy(PACKAGE, own) as proxy:
        done = subprocess.run(["openssl", "s_client", "-tls1_1", "-cipher", "ALL:@SECLEVEL=0", "-connect", f"127.0.0.1:{proxy.port}"],
                              stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=10)
        assert done.returncode != 0 and "Cipher is (NONE)" in done.stdout


# --- client certificates -------------------------------------------------------------------------


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_client_certificates(made, own, version):
    environ = {**own, "TLS_CLIENT_CA_FILE": made.path("ca.pem")}
    with running_proxy(PACKAGE, environ) as proxy:
        with TlsClient(proxy.port, made, "client", version) as client:
            assert client.ask(message_body()).status == 200
        for shows in ("", "stranger"):
            with pytest.raises(ssl.SSLError, match="alert"), TlsClient(proxy.port, made, shows, version) as client:
                client.ask(message_body())
        assert wait_until(lambda: not proxy.inflight.connections())
    assert [line["event"] for line in proxy.log_lines()].count("tls_not_begun") == 2


def test_a_client_certificate_is_no_key(made, own):
    environ = {**own, "TLS_CLIENT_CA_FILE": made.path("ca.pem"), "ANTHROPIC_API_KEY": "the-key"}
    with running_proxy(PACKAGE, environ) as proxy:
        for fields, status in (((), 401), (("x-api-key: the-key",), 200)):
            with TlsClient(proxy.port, made, "client") as client:
                assert client.ask(message_body(), fields=fields).status == status


# --- settings ------------------------------------------------------------------------------------

WRONG = [
    ("no such file", {"TLS_CERT_FILE": "/nowhere.pem"}, "TLS_CERT_FILE: nothing is there under this path"),
    ("no such CA", {"TLS_CERT_FILE": "server.pem", "TLS_CLIENT_CA_FILE": "/nowhere.pem"}, "TLS_CLIENT_CA_FILE: nothing is there"),
    ("a key alone", {"TLS_KEY_FILE": "server.key"}, "TLS_KEY_FILE: needs TLS_CERT_FILE"),
    ("a passphrase alone", {"TLS_KEY_PASSPHRASE": "canary"}, "TLS_KEY_PASSPHRASE: needs TLS_CERT_FILE"),
    ("a CA alone", {"TLS_CLIENT_CA_FILE": "ca.pem"}, "TLS_CLIENT_CA_FILE: needs TLS_CERT_FILE"),
    ("no key", {"TLS_CERT_FILE": "server.pem"}, "TLS_CERT_FILE: cannot be used as a certificate and its key"),
    ("another's key", {"TLS_CERT_FILE": "server.pem", "TLS_KEY_FILE": "client.key"}, "TLS_KEY_FILE: this key does not belong"),
    ("no passphrase", {"TLS_CERT_FILE": "client.pem", "TLS_KEY_FILE": "locked.key"}, "TLS_KEY_PASSPHRASE: the key is encrypted"),
    ("wrong passphrase", {"TLS_CERT_FILE": "client.pem", "TLS_KEY_FILE": "locked.key", "TLS_KEY_PASSPHRASE": "canary"},
     "TLS_KEY_PASSPHRASE: does not open the key"),
    ("no CA in it", {"TLS_CERT_FILE": "server.pem", "TLS_KEY_FILE": "server.key", "TLS_CLIENT_CA_FILE": "openssl.cnf"},
     "TLS_CLIENT_CA_FILE: cannot be used as certificates"),
]


def with_paths(made, settings):
    return {name: made.path(text) if name.endswith("_FILE") else text for name, text in settings.items()}


@pytest.mark.parametrize("name,settings,problem", WRONG, ids=[row[0] for row in WRONG])
def test_wrong_settings_end_the_start(made, tmp_path, name, settings, problem):
    (tmp_path / "empty").write_text("")
    out, err = io.StringIO(), io.StringIO()
    assert main(["--env-file", str(tmp_path / "empty")], with_paths(made, settings), out, err) == 2
    assert problem in err.getvalue() and "canary" not in err.getvalue() and not out.getvalue()


@pytest.mark.parametrize("settings", [
    {"TLS_CERT_FILE": "both.pem"},
    {"TLS_CERT_FILE": "client.pem", "TLS_KEY_FILE": "locked.key", "TLS_KEY_PASSPHRASE": PASSPHRASE},
])
def test_right_settings(made, settings):
    assert listening_context(load_config(with_paths(made, settings))) is not None
    out = io.StringIO()
    assert main(["--check-config", "--env-file", os.devnull], with_paths(made, settings), out, out) == 0
    assert PASSPHRASE not in out.getvalue()


def test_tls_alone_opens_no_other_address(own):
    with pytest.raises(ConfigError, match="without a key"):
        load_config({**own, "LISTEN_HOST": "0.0.0.0"})
    load_config({**own, "LISTEN_HOST": "0.0.0.0", "ANTHROPIC_API_KEY": "the-key"})


def test_without_a_certificate_it_is_plain():
    assert listening_context(load_config({})) is None


# --- new certificates, and a whole process -------------------------------------------------------


def shown_name(port, made):
    with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
        context = ssl.create_default_context(cafile=made.path("ca.pem"))
        context.check_hostname = False
        with context.wrap_socket(sock) as secured:
            return dict(pair for (pair,) in secured.getpeercert()["subject"])["commonName"]


def copy(made, folder, name):
    for end in ("pem", "key"):
        (folder / f"own.{end}").write_text(made.text(f"{name}.{end}"))


def test_a_new_certificate_is_shown_after_a_reload_and_a_bad_one_is_not(made, tmp_path):
    copy(made, tmp_path, "server")
    environ = {"LISTEN_PORT": "0", "MODEL_LIMITS": "false", "TLS_CERT_FILE": str(tmp_path / "own.pem"), "TLS_KEY_FILE": str(tmp_path / "own.key")}
    with running_proxy(PACKAGE, environ) as proxy:
        def reload():
            reload_settings(proxy.server, lambda: Loaded(load_config(environ), "", ()), proxy.log_text)
            return proxy.log_lines()[-1]

        with TlsClient(proxy.port, made) as client:
            assert client.ask(message_body()).status == 200
            copy(made, tmp_path, "elsewhere")
            line = reload()
            assert (line["event"], line["changed"]) == ("reloaded", "nothing")
            assert shown_name(proxy.port, made) == "elsewhere"
            (tmp_path / "own.key").write_text(made.text("server.key"))
            line = reload()
            assert line["event"] == "reload_refused" and "TLS_KEY_FILE: this key does not belong" in line["problem"]
            assert shown_name(proxy.port, made) == "elsewhere"
            (tmp_path / "own.pem").unlink()
            with pytest.raises(ConfigError, match="TLS_CERT_FILE"):
                load_config(environ)
            assert client.ask(message_body()).status == 200  # on the connection of old
        proxy.server.app.transport.close()


class Https(Started):
    """A process that listens with TLS."""

    def __init__(self, folder, **settings):
        super().__init__(COMMANDS["package"], folder, LOG_FORMAT="json", **settings)
        self.settings, self.folder = environment(LOG_FORMAT="json", **settings), folder
        assert self.banner.startswith("listening on https://")

    def healthcheck(self):
        environ = {**self.settings, "LISTEN_PORT": str(self.port)}
        return subprocess.run([sys.executable, "-m", "claude_proxy", "--healthcheck"], cwd=self.folder, env=environ,
                              capture_output=True, text=True, timeout=20)


@pytest.mark.parametrize("asks", [False, True])
def test_a_process_with_health_reload_and_drain(made, own, tmp_path, asks):
    settings = {**own, "TLS_CLIENT_CA_FILE": made.path("ca.pem")} if asks else own
    with Https(tmp_path, **settings) as proxy, TlsClient(proxy.port, made, "client") as client:
        assert f"export ANTHROPIC_BASE_URL=https://127.0.0.1:{proxy.port}" in proxy.banner
        healthy = proxy.healthcheck()
        assert (healthy.returncode, healthy.stderr) == (0, "")
        client.send(request_bytes(message_body("demo: text first\ndemo: slow 0.2\ndemo: text last", stream=True)))
        client.read_until(b'"first"')
        proxy.process.send_signal(signal.SIGHUP)
        assert any('"reloaded"' in line for line in iter(proxy.process.stderr.readline, ""))
        proxy.process.send_signal(signal.SIGTERM)
        assert b'"last"' in client.read_until(b"message_stop")
        _, err = proxy.process.communicate(timeout=10)
        assert proxy.process.returncode == 0
        assert {"draining", "stopped"} <= {json.loads(line)["event"] for line in err.splitlines()}
        gone = proxy.healthcheck()
        assert gone.returncode == 1 and "no answer" in gone.stderr


# --- the link itself -----------------------------------------------------------------------------


def linked(made):
    """(a link that has shaken hands, its client's end)."""
    ours, theirs = socket.socketpair()
    context = ssl.create_default_context(cafile=made.path("ca.pem"))
    own = {"TLS_CERT_FILE": made.path("server.pem"), "TLS_KEY_FILE": made.path("server.key")}
    link = TlsLink(ours, listening_context(load_config(own)))
    thread = threading.Thread(target=link.handshake)
    thread.start()
    client = context.wrap_socket(theirs, server_hostname="localhost", suppress_ragged_eofs=False)
    thread.join()
    return link, client


def test_a_ping_never_waits_and_nothing_goes_out_in_plain_text(made):
    link, client = linked(made)
    with client:
        assert link.ready and link.send(b"ping", 1) == 4 and client.recv(9) == b"ping"
        while link.send(b"x" * 16000, 1):
            pass  # until nothing more fits
        link.shutdown(socket.SHUT_WR)
        with pytest.raises(OSError):
            link.send(b"plain?", 1)
        link.close()


def test_a_wait_is_ended_from_outside(made):
    link, client = linked(made)
    with client:
        found = []
        thread = threading.Thread(target=lambda: found.append(link.recv(100)))
        thread.start()
        time.sleep(0.02)
        link.shutdown(socket.SHUT_RD)
        thread.join(2)
        assert found == [b""] and link.write(b"too late") == 8 and client.recv(99) == b"too late"
        link.close()
        assert client.recv(9) == b""
