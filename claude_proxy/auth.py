"""Who may come in: the guards that look at a request's head before anything else is done with it.

Each guard raises ProxyError or returns nothing. A local server is open to every web page that its
user visits, by DNS rebinding and cross-site requests, so Host and Origin are checked even where
no key is asked for. No CORS header is ever sent.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
from collections.abc import Iterable
from typing import Tuple
from urllib.parse import urlsplit

from claude_proxy.config import REDCAP_TOKEN, Config
from claude_proxy.errors import ProxyError
from claude_proxy.http1 import HttpRequest

LOOPBACK_NAMES = ("localhost",)
OPEN_PATHS = ("/health", "/livez")


def host_name(authority: str) -> str:
    """The host of `host[:port]`, lower case, without brackets and without a final dot."""
    if authority.startswith("["):
        return authority[1:].partition("]")[0].lower()
    return authority.partition(":")[0].lower().rstrip(".")


def is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def host_allowed(name: str, config: Config) -> bool:
    """Whether a Host (or an Origin's host) is ours.

    Rebinding needs a name that an attacker's DNS answers for, so plain addresses are safe; names
    are ours only if they are loopback's or listed in ALLOWED_HOSTS.
    """
    if name in LOOPBACK_NAMES or name.endswith(".localhost") or is_address(name):
        return True
    own = (config.listen_host, *config.allowed_hosts)
    return any(allowed == "*" or name == allowed.lower() for allowed in own)


def check_host(config: Config, request: HttpRequest) -> None:
    if request.host and not host_allowed(host_name(request.host), config):
        raise ProxyError(
            403, "this Host is not served here; list it in ALLOWED_HOSTS if it should be"
        )


def check_origin(config: Config, request: HttpRequest) -> None:
    """Refuse what another site's page sends; a command-line client sends neither header."""
    if request.headers.get("sec-fetch-site") == "cross-site":
        raise ProxyError(403, "cross-site requests are refused")
    origin = request.headers.get("origin")
    if origin is None:
        return
    try:
        name = (urlsplit(origin).hostname or "").lower()
    except ValueError:
        name = ""
    if not name or not (
        name in LOOPBACK_NAMES
        or name == host_name(request.host)
        or name in config.allowed_hosts
        or is_loopback(name)
    ):
        raise ProxyError(403, "requests from this Origin are refused")


def is_loopback(name: str) -> bool:
    return is_address(name) and ipaddress.ip_address(name).is_loopback


def check_content_type(config: Config, request: HttpRequest) -> None:
    """A POST must be JSON: the types that a web form can send are never that."""
    relayed = config.upstream == "anthropic" and request.path.startswith("/v1/")
    if request.method != "POST" or relayed and not request.path.startswith("/v1/messages"):
        return
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (
        kind.startswith("application/") and kind.endswith("+json")
    ):
        raise ProxyError(415, "content-type must be application/json")


def check_client_key(config: Config, request: HttpRequest) -> None:
    """A client shows a key that the settings name, as `x-api-key` or as a Bearer token; or, where
    the upstream is REDCap and they name none, a REDCap token of its own."""
    if request.path in OPEN_PATHS:
        return
    if (request.method, request.path) == ("HEAD", "/"):
        return  # Claude Code's warm-up at start, which carries no credential
    shown, accepted = shown_keys(request), accepted_keys(config)
    if accepted and not any(same_secret(key, right) for key in shown for right in accepted):
        raise ProxyError(401, WANTS_KEY)
    if config.upstream == "redcap" and not accepted:
        own_redcap_token(shown)


WANTS_KEY = "this proxy wants its key (ANTHROPIC_API_KEY) as x-api-key or Bearer token"
WANTS_TOKEN = (
    "this proxy wants your REDCap API token, 32 hexadecimal digits, as ANTHROPIC_AUTH_TOKEN"
)
SUPER_TOKEN = "that is a REDCap super token, too powerful for this: take a project's API token"


def accepted_keys(config: Config) -> Tuple[str, ...]:
    """The keys that let a client in; none: see `check_client_key`."""
    shared = config.redcap_api_token if config.upstream == "redcap" else ""
    return tuple(key for key in (config.anthropic_api_key, shared) if key)


def own_redcap_token(shown: Iterable[str]) -> str:
    """The REDCap token among a client's credentials; ProxyError(401) if there is none."""
    found = next((key for key in shown if re.fullmatch(REDCAP_TOKEN, key)), None)
    if found is None:
        too_much = any(re.fullmatch("[0-9A-Fa-f]{64}", key) for key in shown)
        raise ProxyError(401, SUPER_TOKEN if too_much else WANTS_TOKEN)
    return found


def shown_keys(request: HttpRequest) -> Tuple[str, ...]:
    """The credentials in a request, in the headers that Claude and OpenAI clients use."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    bearer = token.strip() if scheme.lower() == "bearer" else ""
    return tuple(key for key in (request.headers.get("x-api-key", ""), bearer) if key)


def same_secret(shown: str, expected: str) -> bool:
    """Compare without telling, by the time it takes, how much was right."""
    return hmac.compare_digest(
        shown.encode("utf-8", "replace"), expected.encode("utf-8", "replace")
    )


GUARDS = (check_host, check_origin, check_client_key, check_content_type)


def run_guards(config: Config, request: HttpRequest, guards: Iterable = GUARDS) -> None:
    for guard in guards:
        guard(config, request)
