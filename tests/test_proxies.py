"""Web proxies: which one a target is reached by, what is said to them, and what they say no with."""

from __future__ import annotations

import base64
import io
import threading
import time

import pytest

from claude_proxy.cli import main, secret_values, trust_roots
from claude_proxy.config import ConfigError
from claude_proxy.config_load import load_config
from claude_proxy.errors import ProxyError
from claude_proxy.exchange import Exchange
from claude_proxy.pool import Target, split_url
from claude_proxy.proxies import ProxySettings, proxy_for, proxy_secrets, read_proxies
from claude_proxy.transport import Call, Timeouts, Transport
from tests.support import (
    HANG_UP,
    WAIT_FOR_CLOSE,
    Pause,
    ScriptedUpstream,
    Tunnel,
    ask,
    http_answer,
    load_form,
    message_body,
    running_proxy,
    text_answer,
    wait_until,
)

# --- NO_PROXY ------------------------------------------------------------------------------------

# (NO_PROXY, target, whether it goes through the proxy)
NO_PROXY = [
    ("", "https://example.com", True),
    ("*", "https://example.com", False),
    ("a.test, *", "https://10.0.0.1", False),
    ("example.com", "https://example.com", False),
    ("example.com", "https://a.example.com", False),
    ("example.com", "https://a.b.example.com", False),
    ("example.com", "https://badexample.com", True),
    ("example.com", "https://example.com.evil.test", True),
    ("example.com", "https://example.org", True),
    ("a.example.com", "https://example.com", True),
    (".example.com", "https://a.example.com", False),
    (".example.com", "https://example.com", False),
    (".example.com", "https://badexample.com", True),
    ("*.example.com", "https://a.example.com", False),
    ("*.example.com", "https://badexample.com", True),
    ("com", "https://example.com", False),
    ("EXAMPLE.com", "https://Example.COM", False),
    ("example.com.", "https://example.com", False),
    ("example.com", "https://example.com.", False),
    (".example.com.", "https://a.example.com.", False),
    ("x.test,example.com", "https://example.com", False),
    ("x.test , example.com ,", "https://example.com", False),
    ("x.test example.com", "https://example.com", False),
    (",,", "https://example.com", True),
    (".", "https://example.com", True),
    ("*.", "https://example.com", True),
    ("example.com:443", "https://example.com", False),
    ("example.com:443", "https://a.example.com", False),
    ("example.com:443", "https://example.com:8443", True),
    ("example.com:8443", "https://example.com", True),
    ("example.com:80", "http://example.com", False),
    ("example.com:", "https://example.com", True),
    ("example.com:x", "https://example.com", True),
    ("https://example.com", "https://example.com", True),
    ("10.1.2.3", "https://10.1.2.3", False),
    ("10.1.2.3", "https://10.1.2.30", True),
    ("10.1.2.3:8443", "https://10.1.2.3:8443", False),
    ("10.1.2.3:8443", "https://10.1.2.3", True),
    (".2.3", "https://10.1.2.3", True),
    ("2.3", "https://10.1.2.3", True),
    ("10.1.2.3", "https://a.10.1.2.3.test", True),
    ("10.0.0.0/8", "https://10.1.2.3", False),
    ("10.0.0.0/8", "https://11.1.2.3", True),
    ("10.9.9.9/8", "https://10.1.2.3", False),
    ("192.168.1.0/24", "https://192.168.1.255", False),
    ("192.168.1.0/24", "https://192.168.2.1", True),
    ("0.0.0.0/0", "https://192.0.2.1", False),
    ("0.0.0.0/0", "https://[fd00::1]", True),
    ("10.0.0.0/8", "https://example.com", True),
    ("10.0.0.0/99", "https://10.1.2.3", True),
    ("example.com/8", "https://example.com", True),
    ("fd00::1", "https://[fd00::1]", False),
    ("[fd00::1]", "https://[fd00::1]", False),
    ("FD00:0:0:0::1", "https://[fd00::1]", False),
    ("[fd00::1]:443", "https://[fd00::1]", False),
    ("[fd00::1]:444", "https://[fd00::1]", True),
    ("fd00::/8", "https://[fd12::1]", False),
    ("[fd00::]/8", "https://[fd12::1]", False),
    ("fd00::/8", "https://[fe80::1]", True),
    ("10.0.0.0/8", "https://[::ffff:10.1.2.3]", False),
    ("10.1.2.3", "https://[::ffff:10.1.2.3]", False),
    # This machine is never reached by way of another.
    ("", "https://localhost", False),
    ("", "https://LOCALHOST.:8443", False),
    ("", "https://api.localhost", False),
    ("", "http://127.0.0.1:8080", False),
    ("", "http://127.9.9.9", False),
    ("", "http://0.0.0.0:8080", False),
    ("", "http://[::1]:8080", False),
    ("", "http://[::ffff:127.0.0.1]", False),
    ("::1/128", "http://[::1]", False),
    ("", "https://localhost.example.com", True),
    ("", "https://notlocalhost", True),
    ("", "http://host.docker.internal:11434", True),
]


@pytest.mark.parametrize("rules,url,by_proxy", NO_PROXY, ids=[f"{row[0]} {row[1]}" for row in NO_PROXY])
def test_who_goes_through_the_proxy(rules, url, by_proxy):
    config = load_config({"https_proxy": "http://s.test:1", "http_proxy": "http://p.test:2", "no_proxy": rules})
    settings = read_proxies(config.https_proxy, config.http_proxy, config.no_proxy)
    proxy = proxy_for(split_url(url)[0], settings)
    wanted = "s.test:1" if url.startswith("https") else "p.test:2"
    assert (str(proxy) if proxy else None) == (wanted if by_proxy else None)


def test_each_scheme_has_its_own_proxy():
    only_https, only_http = read_proxies("http://p:1", "", ()), read_proxies("", "http://p:1", ())
    secure, plain = Target("https", "a.test", 443), Target("http", "a.test", 80)
    assert proxy_for(secure, only_https) and not proxy_for(plain, only_https)
    assert proxy_for(plain, only_http) and not proxy_for(secure, only_http)
    assert proxy_for(secure, ProxySettings()) is None


# --- the settings --------------------------------------------------------------------------------

def basic(text):
    return "Basic " + base64.b64encode(text.encode()).decode()


# (text, where it is, what it is shown)
URLS = [
    ("http://proxy.test:3128", ("http", "proxy.test", 3128), ""),
    ("http://proxy.test:3128/", ("http", "proxy.test", 3128), ""),
    ("proxy.test:3128", ("http", "proxy.test", 3128), ""),
    ("10.0.0.1:3128", ("http", "10.0.0.1", 3128), ""),
    ("HTTP://Proxy.test", ("http", "proxy.test", 80), ""),
    ("https://proxy.test", ("https", "proxy.test", 443), ""),
    ("http://[fd00::1]:8080", ("http", "fd00::1", 8080), ""),
    ("http://user:pass@proxy.test:3128", ("http", "proxy.test", 3128), basic("user:pass")),
    ("user:pass@proxy.test:3128", ("http", "proxy.test", 3128), basic("user:pass")),
    ("http://user@proxy.test", ("http", "proxy.test", 80), basic("user:")),
    ("http://u%40corp:p%3A%2F%25%23@proxy.test", ("http", "proxy.test", 80), basic("u@corp:p:/%#")),
    ("http://user:p@ss@proxy.test", ("http", "proxy.test", 80), basic("user:p@ss")),
    ("http://user:p/#?s@proxy.test", ("http", "proxy.test", 80), basic("user:p/#?s")),
    ("http://user:p%C3%BC@proxy.test", ("http", "proxy.test", 80), basic("user:p\u00fc")),
    ("http://user:100%@proxy.test", ("http", "proxy.test", 80), basic("user:100%")),
]


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"])
@pytest.mark.parametrize("text,target,shown", URLS, ids=[row[0] for row in URLS])
def test_urls_of_proxies(name, text, target, shown):
    config = load_config({name: text})
    settings = read_proxies(config.https_proxy, config.http_proxy, ())
    secure = name.upper() == "HTTPS_PROXY"
    proxy, other = (settings.https, settings.http) if secure else (settings.http, settings.https)
    assert other is None and (tuple(proxy.target), proxy.authorization) == (target, shown)
    assert proxy.setting == name.upper()


WRONG_URLS = [
    "socks5://canary:1080", "socks://canary", "socks5h://u:canary@p:1", "SOCKS4://canary:1", "ftp://canary:1",
    "http://", "http://canary:70000", "http://canary:x", "http://canary/path", "http://canary:1?x", "http://canary#x",
    "http://can ary:1", "http://[canary:1",
    "http://canary\r\nx:1", "http://user:canary\r\nx-a: b@p:1", "http://us\ner:canary@p:1",
    "http://user:canary%0d%0ax-a:b@p:1", "http://user:canary%00@p:1", "http://us%0Aer:canary@p:1", "http://canary%0d%0a:1",
    "http://user:canary\x7f@p:1", "http://canar\u00fc:1",
]


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "http_proxy"])
@pytest.mark.parametrize("text", WRONG_URLS)
def test_urls_that_are_refused(name, text):
    with pytest.raises(ConfigError) as caught:
        load_config({name: text})
    [problem] = caught.value.problems
    assert problem.startswith(f"{name}: must be an http or https proxy") and "SOCKS is not spoken" in problem
    assert "canar" not in problem and "\n" not in problem


def test_both_cases_of_the_names():
    config = load_config({"https_proxy": "lower:1", "HTTPS_PROXY": "upper:1", "no_proxy": "a", "HTTP_PROXY": ""})
    assert (config.https_proxy, config.http_proxy, config.no_proxy) == ("http://upper:1", "", ("a",))
    config = load_config({"https_proxy": "env:1"}, {"HTTPS_PROXY": "file:1"})
    assert config.https_proxy == "http://env:1"
    config = load_config({"HTTPS_PROXY_FILE": "f"}, read_file=lambda path: "http://user:word@p:1\n")
    assert config.https_proxy == "http://user:word@p:1"


# (HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, who is asked for https and for http)
FALLBACKS = [
    ("", "", "http://all.test:1", "ALL_PROXY all.test:1", "ALL_PROXY all.test:1"),
    ("s.test:1", "", "all.test:1", "HTTPS_PROXY s.test:1", "ALL_PROXY all.test:1"),
    ("", "p.test:1", "https://user:w@all.test", "ALL_PROXY all.test:443", "HTTP_PROXY p.test:1"),
    ("s.test:1", "p.test:2", "socks5://all.test:1", "HTTPS_PROXY s.test:1", "HTTP_PROXY p.test:2"),
]


@pytest.mark.parametrize("name", ["ALL_PROXY", "all_proxy"])
@pytest.mark.parametrize("secure,plain,both,https,http", FALLBACKS)
def test_one_for_all_goes_behind_the_others(name, secure, plain, both, https, http):
    config = load_config({name: both}, {"HTTPS_PROXY": secure, "HTTP_PROXY": plain})
    settings = read_proxies(config.https_proxy, config.http_proxy, ("near.test",), config.all_proxy)
    found = [proxy_for(Target(scheme, "a.test", 1), settings) for scheme in ("https", "http")]
    assert [f"{proxy.setting} {proxy}" for proxy in found] == [https, http]
    assert proxy_for(Target("https", "near.test", 1), settings) is None
    assert "all.test" not in trust_roots(config) or "; ALL_PROXY is all.test" in trust_roots(config)


def check_config(tmp_path, environ):
    (tmp_path / "empty").write_text("")
    out, err = io.StringIO(), io.StringIO()
    return main(["--check-config", "--env-file", str(tmp_path / "empty")], environ, out, err), out.getvalue(), err.getvalue()


HTTPS, PLAIN = "https://up.test/v1", "http://up.test/v1"
# (ALL_PROXY, upstream, more settings, the way out that is told of, "" where it does not matter)
SOCKS = [
    ("socks5://u:canary@p.test:1080", HTTPS, {}, "set HTTPS_PROXY to an http proxy"),
    ("SOCKS5H://p.test:1080", PLAIN, {}, "set HTTP_PROXY to an http proxy"),
    ("socks4a://p.test", HTTPS, {"HTTP_PROXY": "p:1"}, "set HTTPS_PROXY to an http proxy"),
    ("socks://p.test:1080", HTTPS, {"HTTPS_PROXY": "p:1"}, ""),
    ("socks5://p.test:1080", HTTPS, {"NO_PROXY": "up.test"}, ""),
    ("socks5://p.test:1080", "http://localhost:11434/v1", {}, ""),
    ("socks5://p.test:1080", "", {}, ""),
]


@pytest.mark.parametrize("proxy,upstream,more,words", SOCKS)
def test_socks_is_told_of_where_it_would_be_needed(tmp_path, proxy, upstream, more, words):
    code, out, err = check_config(tmp_path, {"ALL_PROXY": proxy, "OPENAI_BASE_URL": upstream, **more})
    assert code == (1 if words else 0) and words in err and "canary" not in out + err and "; ALL_PROXY is" not in out
    if words:
        assert err.startswith("ALL_PROXY: SOCKS is not spoken here, and up.test:")
        assert main(["--env-file", str(tmp_path / "empty")], {"ALL_PROXY": proxy, "OPENAI_BASE_URL": upstream, **more},
                    io.StringIO(), io.StringIO()) == 2


@pytest.mark.parametrize("text", ["socks5://", "socks9://canary:1", "socks5://canary:99999", "socks5://canary/x", "ftp://canary:1"])
def test_urls_that_are_refused_for_all(text):
    with pytest.raises(ConfigError) as caught:
        load_config({"ALL_PROXY": text})
    [problem] = caught.value.problems
    assert problem.startswith("ALL_PROXY: must be an http or https proxy") and "canary" not in problem


def test_credentials_of_one_for_all_are_secrets():
    config = load_config({"ALL_PROXY": "socks5://user:can%61ry@p.test:1"})
    assert {"can%61ry", "canary"} <= set(secret_values(config))


def test_credentials_are_shown_nowhere():
    environ = {"HTTPS_PROXY": "http://user:can%61ry-word@proxy.test:3128", "HTTP_PROXY": "http://other.test:81"}
    config = load_config(environ)
    settings = read_proxies(config.https_proxy, config.http_proxy, config.no_proxy)
    encoded = settings.https.authorization.split()[1]
    assert {"can%61ry-word", "canary-word", "user:canary-word", encoded} <= set(secret_values(config))
    assert trust_roots(config).endswith("; HTTPS_PROXY is proxy.test:3128; HTTP_PROXY is other.test:81")
    out, err = io.StringIO(), io.StringIO()
    assert main(["--check-config", "--env-file", "/dev/null"], environ, out, err) == 0
    for text in (out.getvalue() + err.getvalue(), repr(settings), trust_roots(config)):
        assert not [word for word in ("can%61ry", "canary", encoded) if word in text]
    assert "HTTPS_PROXY is proxy.test:3128" in out.getvalue()
    assert proxy_secrets("http://p:1") == proxy_secrets("") == []


# --- http upstreams: the whole URL in the request ------------------------------------------------

def transport_by(https_url="", http_url="", connect=5.0):
    return Transport(Timeouts(connect, 5, 5), 0, proxies=read_proxies(https_url, http_url, ()))


ABSOLUTE = [
    (Target("http", "upstream.test", 8080), "upstream.test:8080"),
    (Target("http", "upstream.test", 80), "upstream.test"),
    (Target("http", "fd00::1", 8080), "[fd00::1]:8080"),
]


@pytest.mark.parametrize("target,host", ABSOLUTE, ids=[row[1] for row in ABSOLUTE])
def test_an_http_upstream_is_asked_with_its_whole_url(target, host):
    with ScriptedUpstream(http_answer(200, b"hello")) as proxy:
        transport = transport_by(http_url=f"http://user:pass@127.0.0.1:{proxy.port}")
        for _ in range(2):
            response = transport.request(Exchange(), Call("POST", target, "/v1/x?y=1", (("a", "b"),), b"{}"))
            assert b"".join(response.pieces()) == b"hello"
            response.close()
        transport.close()
    assert proxy.connections == 1 and len(proxy.requests) == 2
    for sent in proxy.requests:
        assert sent.line == f"POST http://{host}/v1/x?y=1 HTTP/1.1" and sent.body == b"{}"
        assert sent.headers == {"host": host, "accept-encoding": "identity", "content-length": "2", "a": "b",
                                "proxy-authorization": basic("user:pass")}


def test_an_upstream_on_this_machine_is_asked_straight():
    with ScriptedUpstream(http_answer(200, b"")) as upstream, ScriptedUpstream(http_answer(200, b"")) as proxy:
        transport = transport_by(http_url=f"http://user:pass@127.0.0.1:{proxy.port}")
        target = Target("http", "127.0.0.1", upstream.port)
        transport.request(Exchange(), Call("POST", target, "/x", (), b"")).close()
        [sent] = upstream.requests
    assert sent.line == "POST /x HTTP/1.1" and "proxy-authorization" not in sent.headers and not proxy.requests


def test_a_whole_proxy_by_way_of_another():
    with ScriptedUpstream(text_answer("hi")) as proxy:
        environ = {"OPENAI_BASE_URL": "http://upstream.test/v1", "http_proxy": f"127.0.0.1:{proxy.port}"}
        with running_proxy(load_form("package"), environ) as running:
            assert ask(running.port, message_body()).json["content"][0]["text"] == "hi"
    assert proxy.requests[0].line == "POST http://upstream.test/v1/chat/completions HTTP/1.1"


@pytest.mark.parametrize("user,words", [("", "wants credentials (http://user"), ("user:word@", "wants other credentials")])
def test_an_http_upstreams_proxy_that_wants_credentials(user, words):
    with ScriptedUpstream(http_answer(407, b"x")) as proxy:
        place = f"127.0.0.1:{proxy.port}"
        message = failure(transport_by(http_url=f"http://{user}{place}"), Target("http", "upstream.test", 80))
    assert f"the proxy {place} {words}" in message and "(HTTP_PROXY)" in message and "word@127" not in message


# --- https upstreams: CONNECT --------------------------------------------------------------------

def failure(transport, target=Target("https", "upstream.test", 443)):
    with pytest.raises(ProxyError) as caught:
        transport.request(Exchange(), Call("POST", target, "/x", (), b""))
    assert caught.value.status == 502
    return caught.value.message


CONNECTED = b"HTTP/1.1 200 Connection established\r\n\r\n"
DRIP = [step for letter in b"HTTP/1.1 200 Connection established" for step in (bytes([letter]), Pause(0.02))]
# (what the proxy does, its script, how the message begins, what is in it; PROXY is host:port)
REFUSALS = [
    ("403", http_answer(403, b"no"), "the proxy PROXY refused to connect to upstream.test:443 (status 403)", "NO_PROXY"),
    ("502", http_answer(502, b"no"), "the proxy PROXY refused to connect to upstream.test:443 (status 502)", "HTTPS_PROXY"),
    ("302", http_answer(302, b"", "location: http://x/"), "the proxy PROXY refused to connect", "(status 302)"),
    ("407", http_answer(407, b""), "the proxy PROXY wants other credentials (HTTPS_PROXY)", "Basic"),
    ("no HTTP", [b"\x15\x03\x01\r\n\r\n"], "the proxy PROXY does not speak HTTP/1.1", "check HTTPS_PROXY"),
    ("HTTP/2", [b"HTTP/2 200\r\n\r\n"], "the proxy PROXY does not speak HTTP/1.1", "check HTTPS_PROXY"),
    ("a head without end", [b"HTTP/1.1 200 OK\r\nx: " + b"x" * 70000], "the proxy PROXY does not speak HTTP/1.1", "HTTPS"),
    ("hanging up", [HANG_UP], "cannot reach the proxy PROXY of HTTPS_PROXY: ", "closed the connection"),
    ("half a head", [b"HTTP/1.1 200 O", HANG_UP], "cannot reach the proxy PROXY of HTTPS_PROXY: ", "closed the connection"),
    ("interim for ever", [b"HTTP/1.1 100 X\r\n\r\n" * 20], "cannot reach the proxy PROXY of HTTPS_PROXY: ", "interim"),
    ("data of its own", [CONNECTED + b"hello"], "the proxy PROXY sent data of its own", "connection"),
    ("silence", [WAIT_FOR_CLOSE], "cannot reach the proxy PROXY of HTTPS_PROXY: ", "no answer within CONNECT_TIMEOUT"),
    ("a drip", DRIP, "cannot reach the proxy PROXY of HTTPS_PROXY: ", "no answer within CONNECT_TIMEOUT"),
    ("a tunnel to nobody", [CONNECTED, HANG_UP], "cannot reach the upstream upstream.test:443: ", "TLS"),
    ("a tunnel to silence", [CONNECTED, WAIT_FOR_CLOSE], "cannot reach the upstream upstream.test:443: ", "CONNECT_TIMEOUT"),
]


@pytest.mark.parametrize("name,script,begin,words", REFUSALS, ids=[row[0] for row in REFUSALS])
def test_refusals(name, script, begin, words):
    started = time.monotonic()
    with ScriptedUpstream(script) as proxy:
        place = f"127.0.0.1:{proxy.port}"
        message = failure(transport_by(f"http://user:canary@{place}", connect=0.2))
    assert message.startswith(begin.replace("PROXY of", f"{place} of").replace("proxy PROXY", f"proxy {place}"))
    assert words in message and "canary" not in message and time.monotonic() - started < 2
    assert [sent.line for sent in proxy.requests] == ["CONNECT upstream.test:443 HTTP/1.1"]


@pytest.mark.parametrize("url,words", [
    ("http://user:canary@127.0.0.1:9", "nothing listens there"),
    ("http://user:canary@no-such-proxy.invalid:3128", "its name is not known here; check HTTPS_PROXY"),
])
def test_a_proxy_that_cannot_be_reached(url, words):
    message = failure(transport_by(url))
    assert message.startswith("cannot reach the proxy ") and words in message and "canary" not in message


def test_an_address_of_ipv6_and_no_credentials():
    with ScriptedUpstream(http_answer(407, b"")) as proxy:
        message = failure(transport_by(f"http://127.0.0.1:{proxy.port}"), Target("https", "fd00::1", 8443))
    assert "wants credentials (http://user:password@...) (HTTPS_PROXY)" in message
    [sent] = proxy.requests
    assert (sent.line, sent.headers) == ("CONNECT [fd00::1]:8443 HTTP/1.1", {"host": "[fd00::1]:8443"})


def test_an_interim_answer_before_the_tunnel():
    with ScriptedUpstream([b"HTTP/1.1 100 Continue\r\n\r\n", *http_answer(403, b"")]) as proxy:
        assert "(status 403)" in failure(transport_by(f"http://127.0.0.1:{proxy.port}"))


# (where it waits, scheme of the proxy, script, whether the proxy has seen a request by then)
WAITS = [
    ("the proxy's TLS", "https", [WAIT_FOR_CLOSE], False),
    ("the answer to CONNECT", "http", [WAIT_FOR_CLOSE], True),
    ("TLS in the tunnel", "http", [CONNECTED, WAIT_FOR_CLOSE], True),
    ("TLS in the tunnel, carried", "http", None, True),
]


@pytest.mark.parametrize("name,scheme,script,asked", WAITS, ids=[row[0] for row in WAITS])
def test_cancelling_ends_every_wait(name, scheme, script, asked):
    with ScriptedUpstream([WAIT_FOR_CLOSE]) as silent, ScriptedUpstream(script or [Tunnel(silent.port)]) as proxy:
        exchange, begun = Exchange(), time.monotonic()

        def stop():
            wait_until(lambda: proxy.requests if asked else proxy.connections)
            time.sleep(0.03)  # so that the wait has begun
            exchange.cancel(ProxyError(504, "enough"))

        stopper = threading.Thread(target=stop)
        stopper.start()
        with pytest.raises(ProxyError) as caught:
            call = Call("POST", Target("https", "upstream.test", 443), "/x", (), b"")
            transport_by(f"{scheme}://127.0.0.1:{proxy.port}").request(exchange, call)
        stopper.join()
    assert caught.value.message == "enough" and time.monotonic() - begun < 2
    assert not exchange.cancellable()
