"""TLS to upstreams, with certificates made on the spot: who is trusted, who is not, and what is said then."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import ssl
import subprocess
import threading
import time
import warnings

import pytest

from claude_proxy.assembly import build_app
from claude_proxy.cli import Loaded, main, reload_settings, trust_roots
from claude_proxy.config import ConfigError
from claude_proxy.config_load import load_config
from claude_proxy.errors import ProxyError
from claude_proxy.exchange import Exchange
from claude_proxy.pool import ClientCertificate, Target, connect_socket, make_ssl_context
from claude_proxy.proxies import ProxySettings, read_proxies
from claude_proxy.transport import Call, Timeouts, Transport
from tests.support import (
    WAIT_FOR_CLOSE,
    Pause,
    RawClient,
    ScriptedUpstream,
    Tunnel,
    ask,
    chat_stream,
    delta,
    http_answer,
    load_form,
    message_body,
    request_bytes,
    running_proxy,
    text_answer,
    wait_until,
)

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not here to make certificates")
PASSPHRASE = "open-sesame"
EXTENSIONS = """
[req]
distinguished_name = name
prompt = no
[name]
CN = unnamed
[ca]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[local]
subjectAltName = DNS:localhost, DNS:upstream.test, DNS:proxy.test
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
[alone]
subjectAltName = DNS:localhost
subjectKeyIdentifier = hash
[elsewhere]
subjectAltName = DNS:elsewhere.test
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
"""


class Certificates:
    """Certificates in a folder: each NAME.pem has its key in NAME.key."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "openssl.cnf").write_text(EXTENSIONS)
        self.self_signed("ca", "ca")
        self.self_signed("other-ca", "ca")
        self.self_signed("alone", "alone")
        self.issue("server", "local")
        self.issue("elsewhere", "elsewhere")
        self.issue("expired", "local", days=-1)
        self.issue("client", "elsewhere")
        self.issue("stranger", "elsewhere", issuer="other-ca")
        self.openssl("pkey", "-aes256", "-in", "client.key", "-passout", f"pass:{PASSPHRASE}", "-out", "locked.key")
        (folder / "both.pem").write_text(self.text("client.key") + self.text("client.pem"))

    def openssl(self, *arguments):
        done = subprocess.run(["openssl", *arguments], cwd=self.folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def new(self, name, *more):
        self.openssl("req", "-config", "openssl.cnf", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
                     "-nodes", "-keyout", f"{name}.key", "-subj", f"/CN={name}", *more)

    def self_signed(self, name, section):
        self.new(name, "-x509", "-days", "1", "-extensions", section, "-out", f"{name}.pem")

    def issue(self, name, section, issuer="ca", days=1):
        self.new(name, "-out", f"{name}.csr")
        self.openssl("x509", "-req", "-in", f"{name}.csr", "-CA", f"{issuer}.pem", "-CAkey", f"{issuer}.key",
                     "-CAcreateserial", "-days", str(days), "-extfile", "openssl.cnf", "-extensions", section,
                     "-out", f"{name}.pem")

    def path(self, name):
        return str(self.folder / name)

    def text(self, name):
        return (self.folder / name).read_text()

    def server(self, name="server", asks_client=False, **members):
        """What a server has of TLS; with `asks_client` it wants a certificate of this CA."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.path(f"{name}.pem"), self.path(f"{name}.key"))
        if asks_client:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self.path("ca.pem"))
        for member, value in members.items():
            setattr(context, member, value)
        return context

    def client(self, *arguments):
        return make_ssl_context(True, self.path("ca.pem"), "", *arguments)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return Certificates(tmp_path_factory.mktemp("certificates"))


def answer_of(made, environ, context):
    """(status, text or message) of one question through a whole proxy."""
    environ = {name: made.path(value) if name.endswith(("_FILE", "_DIR")) else value for name, value in environ.items()}
    with ScriptedUpstream(text_answer("hi"), context=context) as upstream:
        base = environ.pop("BASE", upstream.url).replace("PORT", str(upstream.port))
        environ = {"OPENAI_API_KEY": "k", "OPENAI_BASE_URL": base, "MAX_RETRIES": "0", **environ}
        with running_proxy(load_form("package"), environ) as proxy:
            answer = ask(proxy.port, message_body()).json
            assert PASSPHRASE not in proxy.log_text.getvalue()
    return answer["error"]["message"] if "error" in answer else answer["content"][0]["text"]


TRUSTED = {"CA_FILE": "ca.pem"}
SHOWN = {**TRUSTED, "CLIENT_CERT_FILE": "client.pem", "CLIENT_KEY_FILE": "client.key"}
LOCKED = {**SHOWN, "CLIENT_KEY_FILE": "locked.key", "CLIENT_KEY_PASSPHRASE": PASSPHRASE}
BY_ADDRESS = {**TRUSTED, "BASE": "https://127.0.0.1:PORT/v1"}
OLD = {"maximum_version": ssl.TLSVersion.TLSv1_2}
# (what is special, server, settings, words of the answer)
OUTCOMES = [
    ("private CA, not named", {}, {}, ["its certificate is not trusted", "CA_FILE"]),
    ("private CA in CA_FILE", {}, TRUSTED, ["hi"]),
    ("private CA in SSL_CERT_FILE", {}, {"SSL_CERT_FILE": "ca.pem"}, ["hi"]),
    ("private CA, not checked", {}, {"SSL_VERIFY": "false"}, ["hi"]),
    ("another CA", {}, {"CA_FILE": "other-ca.pem"}, ["its certificate is not trusted", "CA_FILE"]),
    ("self-signed", {"name": "alone"}, {}, ["its certificate is not trusted", "self", "CA_FILE"]),
    ("self-signed, named itself", {"name": "alone"}, {"CA_FILE": "alone.pem"}, ["hi"]),
    ("expired", {"name": "expired"}, TRUSTED, ["not valid at this time", "expired", "clock"]),
    ("wrong host", {"name": "elsewhere"}, TRUSTED, ["for another name", "localhost", "check the base URL"]),
    ("wrong address", {}, BY_ADDRESS, ["for another name", "127.0.0.1", "check the base URL"]),
    ("TLS 1.2", OLD, TRUSTED, ["hi"]),
    ("no client certificate", {"asks_client": True}, TRUSTED, ["wants a client certificate (tlsv13 alert certificate required)", "CLIENT_CERT_FILE"]),
    ("no client certificate, TLS 1.2", {"asks_client": True, **OLD}, TRUSTED, ["client certificate", "CLIENT_CERT_FILE"]),
    ("a stranger's certificate", {"asks_client": True},
     {**TRUSTED, "CLIENT_CERT_FILE": "stranger.pem", "CLIENT_KEY_FILE": "stranger.key"},
     ["does not accept the client certificate", "CLIENT_CERT_FILE"]),
    ("client certificate", {"asks_client": True}, SHOWN, ["hi"]),
    ("client certificate, TLS 1.2", {"asks_client": True, **OLD}, SHOWN, ["hi"]),
    ("certificate and key in one file", {"asks_client": True}, {**TRUSTED, "CLIENT_CERT_FILE": "both.pem"}, ["hi"]),
    ("key with a passphrase", {"asks_client": True}, LOCKED, ["hi"]),
    ("a certificate nobody asks for", {}, SHOWN, ["hi"]),
]


@pytest.mark.parametrize("name,server,environ,words", OUTCOMES, ids=[row[0] for row in OUTCOMES])
def test_outcomes(made, name, server, environ, words):
    said = answer_of(made, environ, made.server(**server))
    assert all(word in said for word in words), said
    assert said == "hi" or said.startswith("cannot reach the upstream "), said


def old_server(made):
    """A server that speaks TLS 1.1 at most, if this OpenSSL still can."""
    context = made.server()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    return context


def speaks_old_tls(made):
    """Whether two ends of this OpenSSL come together with TLS 1.1."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    client.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        client.minimum_version = ssl.TLSVersion.TLSv1_1
    try:
        with ScriptedUpstream([b""], context=old_server(made)) as upstream:
            sock = connect_socket(Target("https", "localhost", upstream.port), 2, client)
            version = sock.version()
            sock.close()
    except (ProxyError, ssl.SSLError):
        return False
    return version == "TLSv1.1"


def test_tls_1_1_is_not_spoken(made):
    if not speaks_old_tls(made):
        pytest.skip("this OpenSSL has no TLS 1.1")
    said = answer_of(made, TRUSTED, old_server(made))
    assert "no TLS of version 1.2 or later" in said and said.startswith("cannot reach the upstream localhost:")


# --- client certificates that cannot be used -----------------------------------------------------

UNUSABLE = [
    ("wrong passphrase", ("client.pem", "locked.key", "canary-phrase"), "CLIENT_KEY_PASSPHRASE: does not open the key"),
    ("no passphrase", ("client.pem", "locked.key", ""), "CLIENT_KEY_PASSPHRASE: the key is encrypted"),
    ("another's key", ("client.pem", "stranger.key", ""), "CLIENT_KEY_FILE: this key does not belong"),
    ("no key", ("client.pem", "", ""), "CLIENT_CERT_FILE: cannot be used as a certificate and its key"),
    ("no certificate", ("openssl.cnf", "", ""), "CLIENT_CERT_FILE: cannot be used"),
    ("a folder", ("", "", ""), "CLIENT_CERT_FILE: cannot be used"),
]


@pytest.mark.parametrize("name,files,problem", UNUSABLE, ids=[row[0] for row in UNUSABLE])
def test_a_client_certificate_that_cannot_be_used_ends_the_start(made, tmp_path, name, files, problem):
    certificate, key, passphrase = files
    environ = {"OPENAI_BASE_URL": "https://localhost:9/v1", "CLIENT_CERT_FILE": made.path(certificate),
               "CLIENT_KEY_FILE": key and made.path(key), "CLIENT_KEY_PASSPHRASE": passphrase}
    (tmp_path / "empty").write_text("")
    out, err = io.StringIO(), io.StringIO()
    assert main(["--env-file", str(tmp_path / "empty")], environ, out, err) == 2
    assert err.getvalue().startswith(problem) and "canary" not in err.getvalue() and not out.getvalue()


def test_a_bad_certificate_is_found_without_an_https_upstream_too(made):
    environ = {"CLIENT_CERT_FILE": made.path("client.pem"), "CLIENT_KEY_FILE": made.path("stranger.key")}
    with pytest.raises(ConfigError):
        build_app(load_config(environ), None, None)


@pytest.mark.parametrize("environ,name", [
    ({"CLIENT_KEY_FILE": "/x"}, "CLIENT_KEY_FILE"),
    ({"CLIENT_KEY_PASSPHRASE": "canary"}, "CLIENT_KEY_PASSPHRASE"),
])
def test_a_key_needs_its_certificate(environ, name):
    with pytest.raises(ConfigError) as caught:
        load_config(environ, path_exists=lambda path: True)
    [problem] = caught.value.problems
    assert problem.startswith(f"{name}: needs CLIENT_CERT_FILE") and "canary" not in problem


@pytest.mark.parametrize("name", ["CLIENT_CERT_FILE", "CLIENT_KEY_FILE"])
def test_its_files_have_to_exist(name):
    environ = {"CLIENT_CERT_FILE": "/there", "CLIENT_KEY_FILE": "/there", name: "/canary"}
    with pytest.raises(ConfigError) as caught:
        load_config(environ, path_exists=lambda path: path == "/there")
    assert caught.value.problems == [f"{name}: nothing is there under this path"]


def test_a_passphrase_is_shown_nowhere(made):
    client = ClientCertificate(made.path("client.pem"), made.path("locked.key"), PASSPHRASE)
    assert PASSPHRASE not in repr(client)
    environ = {"CLIENT_CERT_FILE": made.path("client.pem"), "CLIENT_KEY_FILE": made.path("locked.key"),
               "CLIENT_KEY_PASSPHRASE": PASSPHRASE}
    assert trust_roots(load_config(environ)).endswith(f"; shows {made.path('client.pem')}")
    out, err = io.StringIO(), io.StringIO()
    assert main(["--check-config", "--env-file", "/dev/null"], environ, out, err) == 0
    assert PASSPHRASE not in out.getvalue() + err.getvalue()
    assert "CLIENT_KEY_PASSPHRASE=set (11 characters)" in out.getvalue()


# --- through a web proxy -------------------------------------------------------------------------

BASIC = "Basic dXNlcjpwQHNz"  # user:p@ss


def doorkeeper(port):
    """A proxy's script: who shows these credentials is let through to the port."""
    def script(request):
        shown = request.headers.get("proxy-authorization") == BASIC
        return [Tunnel(port)] if shown else http_answer(407, b"", "proxy-authenticate: Basic")
    return script


def transport_by(made, proxy_url, **changes):
    proxies = read_proxies(proxy_url, "", ())
    return Transport(Timeouts(5, 5, 5), 0, made.client(), proxies=proxies, **changes)


def call_to(port, body=b"{}"):
    return Call("POST", Target("https", "upstream.test", port), "/v1/x", (), body)


def read_all(response):
    data = b"".join(response.pieces())
    response.close()
    return data


@pytest.mark.parametrize("kind", ["http", "https"])
def test_a_tunnel_with_credentials_and_its_reuse(made, kind):
    """No name is looked up here, for the proxy is the one to know upstream.test."""
    context = made.server() if kind == "https" else None
    large = b"x" * 300_000
    with ScriptedUpstream(http_answer(200, large), context=made.server()) as upstream:
        with ScriptedUpstream(doorkeeper(upstream.port), context=context) as proxy:
            address = f"{kind}://user:p%40ss@{'localhost' if context else '127.0.0.1'}:{proxy.port}"
            transport = transport_by(made, address)
            for _ in range(2):
                assert read_all(transport.request(Exchange(), call_to(upstream.port, large))) == large
            transport.close()
    assert [(r.line, r.headers) for r in proxy.requests] == [
        (f"CONNECT upstream.test:{upstream.port} HTTP/1.1",
         {"host": f"upstream.test:{upstream.port}", "proxy-authorization": BASIC})]
    assert [r.line for r in upstream.requests] == ["POST /v1/x HTTP/1.1"] * 2
    assert upstream.requests[0].body == large and "proxy-authorization" not in upstream.requests[0].headers
    assert (proxy.connections, upstream.connections) == (1, 1)


def failure(transport, call):
    with pytest.raises(ProxyError) as caught:
        transport.request(Exchange(), call)
    assert caught.value.status == 502
    return caught.value.message


@pytest.mark.parametrize("kind", ["http", "https"])
def test_the_certificate_behind_a_tunnel_is_checked(made, kind):
    context = made.server() if kind == "https" else None
    with ScriptedUpstream([b""], context=made.server("elsewhere")) as upstream:
        with ScriptedUpstream([Tunnel(upstream.port)], context=context) as proxy:
            message = failure(transport_by(made, f"{kind}://localhost:{proxy.port}"), call_to(upstream.port))
    assert message.startswith(f"cannot reach the upstream upstream.test:{upstream.port}: its certificate is for another")


@pytest.mark.parametrize("kind", ["http", "https"])
def test_a_client_certificate_goes_through_a_tunnel(made, kind):
    client = ClientCertificate(made.path("client.pem"), made.path("locked.key"), PASSPHRASE)
    context = made.server() if kind == "https" else None
    with ScriptedUpstream(http_answer(200, b"hello"), context=made.server(asks_client=True)) as upstream:
        with ScriptedUpstream([Tunnel(upstream.port)], context=context) as proxy:
            proxies = read_proxies(f"{kind}://localhost:{proxy.port}", "", ())
            shown = Transport(Timeouts(5, 5, 5), 0, made.client(client), proxies=proxies)
            assert read_all(shown.request(Exchange(), call_to(upstream.port))) == b"hello"
            shown.close()
            hidden = Transport(Timeouts(5, 5, 5), 0, made.client(), proxies=proxies)
            assert "wants a client certificate" in failure(hidden, call_to(upstream.port))


def test_a_proxys_own_certificate_is_checked(made):
    with ScriptedUpstream([b""], context=made.server("elsewhere")) as proxy:
        message = failure(transport_by(made, f"https://localhost:{proxy.port}"), call_to(1))
    assert message.startswith(f"cannot reach the proxy localhost:{proxy.port} of HTTPS_PROXY: its certificate is for")
    assert "check HTTPS_PROXY" in message


@pytest.mark.parametrize("kind", ["http", "https"])
def test_a_body_through_a_tunnel_that_is_cut_short_is_an_error(made, kind):
    script = [b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello", "hang up"]
    context = made.server() if kind == "https" else None
    with ScriptedUpstream(script, context=made.server()) as upstream:
        with ScriptedUpstream([Tunnel(upstream.port)], context=context) as proxy:
            transport = transport_by(made, f"{kind}://localhost:{proxy.port}")
            pieces = transport.request(Exchange(), call_to(upstream.port)).pieces()
            assert next(pieces) == b"hello"
            with pytest.raises(ProxyError) as caught:
                next(pieces)
    assert caught.value.status == 502


@pytest.mark.parametrize("kind", ["http", "https"])
def test_cancelling_ends_the_wait_for_an_answer_through_a_tunnel(made, kind):
    context = made.server() if kind == "https" else None
    with ScriptedUpstream([WAIT_FOR_CLOSE], context=made.server()) as upstream:
        with ScriptedUpstream([Tunnel(upstream.port)], context=context) as proxy:
            exchange, begun = Exchange(), time.monotonic()
            stop = threading.Thread(target=lambda: wait_until(lambda: upstream.requests)
                                    and exchange.cancel(ProxyError(504, "enough")))
            stop.start()
            with pytest.raises(ProxyError) as caught:
                transport_by(made, f"{kind}://localhost:{proxy.port}").request(exchange, call_to(upstream.port))
            stop.join()
    assert caught.value.message == "enough" and time.monotonic() - begun < 3


def test_a_whole_proxy_through_a_tunnel_says_no_credentials(made):
    """Answers, refusals and logs of the program with a web proxy in its settings."""
    with ScriptedUpstream(text_answer("hi"), context=made.server()) as upstream:
        with ScriptedUpstream(doorkeeper(upstream.port)) as proxy:
            environ = {"OPENAI_API_KEY": "k", "OPENAI_BASE_URL": f"https://upstream.test:{upstream.port}/v1",
                       "MAX_RETRIES": "0", "CA_FILE": made.path("ca.pem")}
            said = []
            for user in ("user:p%40ss", "user:canary-word"):
                with running_proxy(load_form("package"), {
                        **environ, "https_proxy": f"http://{user}@127.0.0.1:{proxy.port}"}) as running:
                    said.append(ask(running.port, message_body()).body.decode())
                    said.append(running.log_text.getvalue())
    assert '"text": "hi"' in json.dumps(json.loads(said[0]))
    assert f"the proxy 127.0.0.1:{proxy.port} wants other credentials (HTTPS_PROXY)" in said[2]
    assert not [text for text in said if "canary" in text or "p%40ss" in text or "p@ss" in text or BASIC[6:] in text]


def test_straight_if_no_proxy_is_named(made):
    with ScriptedUpstream(http_answer(200, b"hello"), context=made.server()) as upstream:
        transport = Transport(Timeouts(5, 5, 5), 0, made.client(), proxies=ProxySettings())
        call = Call("GET", Target("https", "localhost", upstream.port), "/", (), b"")
        assert read_all(transport.request(Exchange(), call)) == b"hello"
        transport.close()


# --- files that were changed ---------------------------------------------------------------------


class Rewritable:
    """A proxy whose certificates are in files that are written anew; its settings stay as they are."""

    def __init__(self, proxy, made, folder, environ):
        self.proxy, self.made, self.folder, self.environ = proxy, made, folder, environ

    def write(self, **names):
        for name, source in names.items():
            for end in ("pem", "key"):
                (self.folder / f"{name}.{end}").write_text(self.made.text(f"{source}.{end}"))

    def reload(self):
        reload_settings(self.proxy.server, lambda: Loaded(load_config(self.environ), "", ()), self.proxy.log_text)
        return self.proxy.log_lines()[-1]

    def said(self):
        answer = ask(self.proxy.port, message_body()).json
        return answer["error"]["message"] if "error" in answer else answer["content"][0]["text"]


@contextlib.contextmanager
def rewritable(made, folder, upstream, **files):
    environ = {"LISTEN_PORT": "0", "MODEL_LIMITS": "false", "OPENAI_API_KEY": "k", "OPENAI_BASE_URL": upstream.url,
               "MAX_RETRIES": "0", "CA_FILE": str(folder / "trusted.pem"), "CLIENT_CERT_FILE": str(folder / "shown.pem"),
               "CLIENT_KEY_FILE": str(folder / "shown.key")}
    bench = Rewritable(None, made, folder, environ)
    bench.write(**files)
    with running_proxy(load_form("package"), environ) as bench.proxy:
        yield bench
        bench.proxy.server.app.transport.close()


def test_a_changed_ca_file_is_read_anew_and_old_connections_are_dropped(made, tmp_path):
    with ScriptedUpstream(text_answer("hi"), context=made.server()) as upstream:
        with rewritable(made, tmp_path, upstream, trusted="ca", shown="client") as bench:
            assert (bench.said(), bench.said(), upstream.connections) == ("hi", "hi", 1)
            bench.write(trusted="other-ca")
            assert bench.said() == "hi", "nobody has said that the file is a new one"
            line = bench.reload()
            assert (line["event"], line["changed"]) == ("reloaded", "nothing")
            assert "its certificate is not trusted" in bench.said()
            bench.write(trusted="ca")
            bench.reload()
            assert bench.said() == "hi"


def test_a_changed_client_certificate_is_shown_next(made, tmp_path):
    with ScriptedUpstream(text_answer("hi"), context=made.server(asks_client=True)) as upstream:
        with rewritable(made, tmp_path, upstream, trusted="ca", shown="stranger") as bench:
            assert "does not accept the client certificate" in bench.said()
            bench.write(shown="client")
            bench.reload()
            assert (bench.said(), bench.said()) == ("hi", "hi")
            bench.write(shown="stranger")
            bench.reload()
            assert "does not accept the client certificate" in bench.said()


@pytest.mark.parametrize("name,problem", [("trusted", "CA_FILE or CA_DIR: cannot be used"), ("shown", "CLIENT_CERT_FILE: cannot be used")])
def test_a_file_that_is_bad_now_changes_nothing(made, tmp_path, name, problem):
    with ScriptedUpstream(text_answer("hi"), context=made.server(asks_client=True)) as upstream:
        with rewritable(made, tmp_path, upstream, trusted="ca", shown="client") as bench:
            assert bench.said() == "hi"
            (tmp_path / f"{name}.pem").write_text("nothing of use")
            line = bench.reload()
            assert line["event"] == "reload_refused" and problem in line["problem"]
            assert bench.said() == "hi" and upstream.connections == 1


def test_an_answer_under_way_keeps_its_connection(made, tmp_path):
    go = threading.Event()
    begun = chat_stream(delta(content="be"), Pause(5, go), delta(content="gun"), delta("stop"))
    with ScriptedUpstream(begun, text_answer("hi"), context=made.server()) as upstream:
        with rewritable(made, tmp_path, upstream, trusted="ca", shown="client") as bench, RawClient(bench.proxy.port) as client:
            client.send(request_bytes(message_body(stream=True)))
            client.read_until(b'"be"')
            bench.reload()
            assert bench.said() == "hi"
            go.set()
            assert b'"gun"' in client.read_until(b"message_stop")
            assert bench.said() == "hi" and upstream.connections == 2
