"""The guards, one by one."""

from __future__ import annotations

import pytest

from claude_proxy.auth import (
    Client,
    WrongKey,
    accepted_keys,
    check_content_type,
    check_host,
    check_origin,
    cors_headers,
    find_client,
    host_name,
    is_preflight,
    own_keys,
    preflight_headers,
    shown_keys,
    split_keys,
)
from claude_proxy.cli import secret_values
from claude_proxy.config_load import load_config
from claude_proxy.errors import ProxyError
from claude_proxy.exchange import Exchange
from claude_proxy.http1 import HttpRequest
from claude_proxy.upstreams.redcap import RedcapUpstream

CONFIG = load_config({"ALLOWED_HOSTS": "proxy.ward.example, other.example", "ANTHROPIC_API_KEY": "right"})
OPEN = load_config({})


def request(host="localhost", method="POST", path="/v1/messages", peer="127.0.0.1", **headers):
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return HttpRequest(method, path, "", fields, host=host, peer=peer)


def status_of(guard, config, http):
    try:
        guard(config, http)
    except ProxyError as error:
        return error.status
    return None


@pytest.mark.parametrize("authority,name", [
    ("LOCALHOST:8765", "localhost"), ("127.0.0.1", "127.0.0.1"), ("[::1]:80", "::1"), ("a.b.", "a.b"), ("", "")])
def test_host_name(authority, name):
    assert host_name(authority) == name


@pytest.mark.parametrize("host,status", [
    ("localhost:1", None), ("api.localhost", None), ("127.0.0.1:1", None), ("[::1]", None),
    ("192.168.1.20:8765", None), ("proxy.ward.example:8765", None), ("PROXY.ward.example", None),
    ("evil.example", 403), ("localhost.evil.example", 403), ("127.0.0.1.evil.example", 403),
    ("xproxy.ward.example", 403), ("127.1.evil", 403), ("", None),
])
def test_host(host, status):
    assert status_of(check_host, CONFIG, request(host)) == status


def test_any_host_may_be_allowed():
    assert status_of(check_host, load_config({"ALLOWED_HOSTS": "*"}), request("evil.example")) is None


@pytest.mark.parametrize("headers,status", [
    ({}, None),
    ({"origin": "http://localhost:3000"}, None),
    ({"origin": "http://127.0.0.1:8765"}, None),
    ({"origin": "http://[::1]:8765"}, None),
    ({"origin": "https://proxy.ward.example"}, None),
    ({"origin": "https://evil.example"}, 403),
    ({"origin": "http://192.168.1.66"}, 403),
    ({"origin": "http://localhost.evil.example"}, 403),
    ({"origin": "null"}, 403),
    ({"origin": ""}, 403),
    ({"origin": "", "sec_fetch_site": "cross-site"}, 403),
    ({"origin": "https://evil.example", "sec_fetch_site": "same-origin"}, 403),
    ({"origin": "http://[oops"}, 403),
    ({"sec_fetch_site": "cross-site"}, 403),
    ({"sec_fetch_site": "cross-site", "origin": "http://localhost"}, 403),
    ({"sec_fetch_site": "none"}, None),
])
def test_origin(headers, status):
    assert status_of(check_origin, CONFIG, request(**headers)) == status


def test_an_origin_may_be_the_host_itself():
    assert status_of(check_origin, CONFIG, request("192.168.1.20:1", origin="http://192.168.1.20:1")) is None


@pytest.mark.parametrize("method,kind,status", [
    ("POST", "application/json", None), ("POST", "Application/JSON; charset=utf-8", None),
    ("POST", "application/vnd.x+json", None), ("POST", "text/plain", 415), ("POST", "", 415),
    ("POST", "application/x-www-form-urlencoded", 415), ("POST", "text/json", 415), ("GET", "", None),
    ("POST", "application/json", None), ("GET", "application/json", None), ("POST", "application/json, text/plain", 415),
])
def test_content_type(method, kind, status):
    assert status_of(check_content_type, CONFIG, request(method=method, content_type=kind)) == status


@pytest.mark.parametrize("config,path,headers,status", [
    (OPEN, "/v1/messages", {}, None),
    (CONFIG, "/v1/messages", {}, 401),
    (CONFIG, "/", {}, 401),
    (CONFIG, "/test-connection", {}, 401),
    (CONFIG, "/health", {}, None),
    (CONFIG, "/livez", {}, None),
    (CONFIG, "/v1/messages", {"x_api_key": "right"}, None),
    (CONFIG, "/v1/messages", {"authorization": "Bearer right"}, None),
    (CONFIG, "/v1/messages", {"authorization": "Bearer  right "}, None),
    (CONFIG, "/v1/messages", {"authorization": "right"}, 401),
    (CONFIG, "/v1/messages", {"x_api_key": "Right"}, 401),
    (CONFIG, "/v1/messages", {"x_api_key": "righ"}, 401),
    (CONFIG, "/v1/messages", {"x_api_key": "\u00fc"}, 401),
])
def test_client_key(config, path, headers, status):
    assert status_of(find_client, config, request(path=path, **headers)) == status


def test_a_refusal_does_not_quote_the_key():
    with pytest.raises(ProxyError) as caught:
        find_client(CONFIG, request(x_api_key="wrong-key-value"))
    assert "wrong-key-value" not in caught.value.message and "right" not in caught.value.message.split()
    assert ("x-should-retry", "false") in caught.value.headers


# --- several keys, and where they are shown -----------------------------------------------------

SEVERAL = {"ANTHROPIC_API_KEY": "plain-1, ci:robot-2 ,Dr. Who's,", "AUTH_TOKEN": "laptop:third-3"}


@pytest.mark.parametrize("text,pairs", [
    ("", []), ("k", [("", "k")]), ("a,b", [("", "a"), ("", "b")]), (" ci : k ", [("", "ci : k")]),
    ("ci:k,x-1.y_z: q", [("ci", "k"), ("x-1.y_z", "q")]), ("a b:c", [("", "a b:c")]), ("a:b:c", [("a", "b:c")]),
    (",,k,", [("", "k")]),
])
def test_split_keys(text, pairs):
    assert split_keys(text) == pairs


@pytest.mark.parametrize("headers,label", [
    ({"x_api_key": "plain-1"}, "key-1"),
    ({"x_api_key": "robot-2"}, "ci"),
    ({"x_api_key": "Dr. Who's"}, "key-3"),
    ({"x_api_key": "third-3"}, "laptop"),
    ({"authorization": "Bearer robot-2"}, "ci"),
    ({"authorization": "bearer robot-2"}, "ci"),
    ({"x_team_key": "robot-2"}, "ci"),
    ({"x_team_key": "wrong", "x_api_key": "wrong", "authorization": "Bearer robot-2"}, "ci"),
    ({"x_api_key": "ci:robot-2"}, None),
    ({"x_api_key": "plain-1, ci:robot-2"}, None),
    ({"x_api_key": "Plain-1"}, None),
    ({"authorization": "Basic robot-2"}, None),
    ({"x_other_key": "robot-2"}, None),
    ({}, None),
])
def test_every_key_in_every_header(headers, label):
    config = load_config({**SEVERAL, "AUTH_API_KEY_HEADER": "X-Team-Key"})
    if label is None:
        with pytest.raises(ProxyError) as caught:
            find_client(config, request(**headers))
        wrong = bool(set(headers) - {"x_other_key"}) and not headers.get("authorization", "").startswith("Basic")
        assert caught.value.status == 401 and isinstance(caught.value, WrongKey) is wrong
    else:
        assert find_client(config, request(**headers)) == Client(label, label)


@pytest.mark.parametrize("header,shown", [
    ("x-api-key", ("a", "b")), ("X-API-Key", ("a", "b")), ("X-Team-Key", ("a", "c", "b")), ("authorization", ("a", "Bearer  b ", "b"))])
def test_what_is_shown(header, shown):
    http = request(x_api_key="a", authorization="Bearer  b ", x_team_key="c")
    assert shown_keys(http, header) == shown
    assert shown_keys(request(x_api_key="", authorization=""), header) == ()


def test_every_key_is_compared_and_at_one_length(monkeypatch):
    compared = []

    def compare(left, right):
        compared.append((len(left), len(right)))
        return left == right

    monkeypatch.setattr("claude_proxy.auth.hmac.compare_digest", compare)
    find_client(load_config(SEVERAL), request(x_api_key="plain-1"))
    assert compared == [(32, 32)] * 4


def test_keys_from_a_file_with_one_a_line():
    files = {"f": "plain-1\n\nci:robot-2\r\nlast\n"}
    config = load_config({"ANTHROPIC_API_KEY_FILE": "f"}, read_file=files.__getitem__)
    assert own_keys(config) == ("plain-1", "robot-2", "last")
    assert [key.label for key in accepted_keys(config)] == ["key-1", "ci", "key-3"]


def test_all_keys_are_secrets_and_none_is_passed_on():
    config = load_config({**SEVERAL, "REDCAP_API_URL": "https://r/api/", "REDCAP_API_TOKEN": "A" * 32})
    keys = {"plain-1", "robot-2", "Dr. Who's", "third-3", "A" * 32}
    assert set(own_keys(config)) == keys <= set(secret_values(config))


REDCAP = {"REDCAP_API_URL": "https://r/api/"}
TOKEN = "0123456789abcdefABCDEF0123456789"


@pytest.mark.parametrize("environ,shown,status", [
    ({"ANTHROPIC_API_KEY": "k", "AUTH_ENABLED": "false"}, {}, None),
    ({"ANTHROPIC_API_KEY": "k", "AUTH_ENABLED": "true"}, {}, 401),
    ({"AUTH_TOKEN": "k"}, {}, 401),
    ({"AUTH_TOKEN": "k", "TRUST_PROXY": "true"}, {}, 401),
    (REDCAP, {}, 401),
    (REDCAP, {"x_api_key": "no-token"}, 401),
    (REDCAP, {"x_api_key": TOKEN}, None),
    ({**REDCAP, "AUTH_ENABLED": "true"}, {"x_api_key": TOKEN}, None),
    ({**REDCAP, "AUTH_ENABLED": "false"}, {}, 401),
    ({**REDCAP, "REDCAP_API_TOKEN": TOKEN}, {}, 401),
    ({**REDCAP, "REDCAP_API_TOKEN": TOKEN}, {"x_api_key": TOKEN}, None),
    ({**REDCAP, "REDCAP_API_TOKEN": TOKEN, "AUTH_ENABLED": "false"}, {}, None),
])
def test_when_a_key_is_asked_for(environ, shown, status):
    assert status_of(find_client, load_config(environ), request(**shown)) == status


def test_a_redcap_token_has_limits_of_its_own_and_no_label():
    client = find_client(load_config(REDCAP), request(x_api_key=TOKEN))
    assert client.label == "" and client.identity and TOKEN not in client.identity


def test_no_key_of_this_proxy_is_taken_for_a_redcap_token():
    ours = ["a" * 32, "b" * 32, "c" * 32]
    config = load_config({**REDCAP, "ANTHROPIC_API_KEY": f"{ours[0]},ci:{ours[1]}", "AUTH_TOKEN": ours[2]})
    upstream, exchange = RedcapUpstream(config, None), Exchange()
    exchange.keys = (*ours, TOKEN)
    assert upstream._token(exchange) == TOKEN
    exchange.keys = tuple(ours)
    with pytest.raises(ProxyError):
        upstream._token(exchange)


BYPASS = {"ANTHROPIC_API_KEY": "k", "AUTH_ALLOW_LOCALHOST_BYPASS": "true"}


@pytest.mark.parametrize("environ,options,status", [
    (BYPASS, {}, None),
    (BYPASS, {"peer": "::1", "host": "[::1]:8765"}, None),
    (BYPASS, {"peer": "::ffff:127.0.0.1"}, None),
    (BYPASS, {"peer": "127.9.9.9", "host": "127.0.0.1"}, None),
    (BYPASS, {"x_api_key": "wrong"}, None),
    (BYPASS, {"peer": "192.168.1.2"}, 401),
    (BYPASS, {"peer": "::ffff:192.168.1.2"}, 401),
    (BYPASS, {"peer": "2001:db8::1"}, 401),
    (BYPASS, {"host": "proxy.example"}, 401),
    (BYPASS, {"x_forwarded_for": "1.2.3.4"}, 401),
    (BYPASS, {"x_forwarded_proto": "https"}, 401),
    (BYPASS, {"forwarded": "for=1.2.3.4"}, 401),
    (BYPASS, {"via": "1.1 x"}, 401),
    (BYPASS, {"x_real_ip": "127.0.0.1"}, 401),
    ({**BYPASS, "TRUST_PROXY": "true"}, {}, 401),
    ({"ANTHROPIC_API_KEY": "k"}, {}, 401),
])
def test_the_bypass_for_this_machine(environ, options, status):
    assert status_of(find_client, load_config(environ), request(**options)) == status


def test_the_bypass_still_knows_a_right_key():
    assert find_client(load_config(BYPASS), request(x_api_key="k")).label == "key-1"


# --- pages of other origins ---------------------------------------------------------------------

CORS = load_config({"CORS_ALLOWED_ORIGINS": "https://App.example/, http://localhost:3000", "ANTHROPIC_API_KEY": "k"})


@pytest.mark.parametrize("config,origin,guarded,allowed,varies", [
    (CORS, "https://app.example", None, True, True),
    (CORS, "https://APP.example", None, True, True),
    (CORS, "http://localhost:3000", None, True, True),
    (CORS, "http://localhost:3001", None, False, True),  # this machine's, but may not read
    (CORS, "http://app.example", 403, False, True),
    (CORS, "https://app.example:8443", 403, False, True),
    (CORS, "https://app.example.evil.example", 403, False, True),
    (CORS, "https://evil.example", 403, False, True),
    (CORS, "null", 403, False, True),
    (CORS, "", 403, False, True),
    (CORS, None, None, False, True),
    (OPEN, "http://localhost:3000", None, False, False),
    (OPEN, None, None, False, False),
    (OPEN, "https://app.example", 403, False, False),
])
def test_cors(config, origin, guarded, allowed, varies):
    http = request(**({} if origin is None else {"origin": origin}))
    assert status_of(check_origin, config, http) == guarded
    headers = dict(cors_headers(config, http))
    assert headers.get("access-control-allow-origin") == (origin if allowed else None)
    assert headers.get("vary") == ("Origin" if varies else None)
    assert "access-control-allow-credentials" not in headers


@pytest.mark.parametrize("origin,status", [("https://app.example", None), ("https://evil.example", 403), (None, 403)])
def test_cross_site_is_for_named_origins_alone(origin, status):
    fields = {"sec_fetch_site": "cross-site", **({"origin": origin} if origin else {})}
    assert status_of(check_origin, CORS, request(**fields)) == status


@pytest.mark.parametrize("config,method,fields,found", [
    (CORS, "OPTIONS", {"origin": "https://app.example", "access_control_request_method": "POST"}, True),
    (CORS, "OPTIONS", {"origin": "https://app.example"}, False),
    (CORS, "OPTIONS", {"origin": "https://evil.example", "access_control_request_method": "POST"}, False),
    (CORS, "POST", {"origin": "https://app.example", "access_control_request_method": "POST"}, False),
    (OPEN, "OPTIONS", {"origin": "https://app.example", "access_control_request_method": "POST"}, False),
])
def test_preflight(config, method, fields, found):
    http = request(method=method, **fields)
    assert is_preflight(config, http) is found
    if config is CORS:
        assert status_of(find_client, config, http) == (None if found else 401)


def test_a_preflight_is_told_the_headers_that_it_asks_for():
    fields = {"access_control_request_headers": "X-Api-Key, anthropic-version,, bad name",
              "access_control_request_private_network": "true"}
    headers = dict(preflight_headers(request(method="OPTIONS", **fields)))
    assert headers["access-control-allow-headers"] == "x-api-key, anthropic-version"
    assert headers["access-control-allow-private-network"] == "true"
    assert "POST" in headers["access-control-allow-methods"]
    assert "access-control-allow-headers" not in dict(preflight_headers(request(method="OPTIONS")))
