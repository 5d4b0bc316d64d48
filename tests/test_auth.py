"""The guards, one by one."""

from __future__ import annotations

import pytest

from claude_proxy.auth import (
    check_content_type,
    check_host,
    check_origin,
    find_client,
    host_name,
)
from claude_proxy.config_load import load_config
from claude_proxy.errors import ProxyError
from claude_proxy.http1 import HttpRequest

CONFIG = load_config({"ALLOWED_HOSTS": "proxy.ward.example, other.example", "ANTHROPIC_API_KEY": "right"})
OPEN = load_config({})


def request(host="localhost", method="POST", path="/v1/messages", **headers):
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return HttpRequest(method, path, "", fields, host=host)


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
