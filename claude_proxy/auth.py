"""Who may come in: the guards that look at a request's head before anything else is done with it.

Each guard raises ProxyError or returns nothing. A local server is open to every web page that its
user visits, by DNS rebinding and cross-site requests, so Host and Origin are checked even where
no key is asked for. No CORS header is sent unless settings name the origins that may read answers.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import List, NamedTuple, Optional, Tuple
from urllib.parse import urlsplit

from claude_proxy.config import BOOL_WORDS, REDCAP_TOKEN
from claude_proxy.errors import ProxyError
from claude_proxy.http1 import HttpRequest
from claude_proxy.settings import Config

HeaderPairs = Tuple[Tuple[str, str], ...]

LOOPBACK_NAMES = ("localhost",)
OPEN_PATHS = ("/health", "/healthz", "/livez", "/readyz")


def host_name(authority: str) -> str:
    """The host of `host[:port]`, lower case, without brackets and without a final dot."""
    if authority.startswith("["):
        return authority[1:].partition("]")[0].lower()
    return authority.partition(":")[0].lower().rstrip(".")


@lru_cache(maxsize=256)
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
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site")
    if origin is None and site != "cross-site" or is_cors_origin(config, request):
        return
    if origin is None or site == "cross-site":
        raise ProxyError(403, "cross-site requests are refused")
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
    if not is_address(name):
        return False
    address = ipaddress.ip_address(name)
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def check_content_type(config: Config, request: HttpRequest) -> None:
    """A POST must be JSON: the types that a web form can send are never that."""
    if request.headers.get("content-type") == "application/json":
        return
    relayed = config.upstream == "anthropic" and request.path.startswith("/v1/")
    if request.method != "POST" or relayed and not request.path.startswith("/v1/messages"):
        return
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (
        kind.startswith("application/") and kind.endswith("+json")
    ):
        raise ProxyError(415, "content-type must be application/json")


class Client(NamedTuple):
    """Who asks: `label` for logs, never a key or a part of one; `identity` for limits of its own.

    Both are "" for a client of whom nothing but the address is known.
    """

    label: str = ""
    identity: str = ""


NOBODY_KNOWN = Client()


class WrongKey(ProxyError):
    """A key was shown that does not open this proxy: somebody may be guessing."""


def find_client(
    config: Config, request: HttpRequest, shown: Optional[Sequence[str]] = None
) -> Client:
    """Who asks, by the credentials that were `shown`. ProxyError(401) without one of the keys that
    the settings name, or, where the upstream is REDCap and they name none, without a REDCap token
    of the client's own."""
    if is_probe(request) or is_preflight(config, request):
        return NOBODY_KNOWN
    shown = shown_keys(request, config.auth_api_key_header) if shown is None else shown
    accepted = accepted_keys(config)
    label = matching_label(shown, accepted) if accepted else ""
    if label:
        return Client(label, label)
    if accepted and not may_bypass(config, request):
        raise (WrongKey if shown else ProxyError)(401, WANTS_KEY)
    if config.upstream == "redcap" and not accepted and not config.redcap_api_token:
        token = own_redcap_token(shown)
        return Client("", hashlib.sha256(token.encode()).hexdigest())
    return NOBODY_KNOWN


def is_probe(request: HttpRequest) -> bool:
    """What needs no key: health, and Claude Code's warm-up at start, which carries none."""
    return request.path in OPEN_PATHS or request.method == "HEAD" and request.path == "/"


def may_bypass(config: Config, request: HttpRequest) -> bool:
    """Whether a client on this machine is let in without a key. What a proxy on this machine
    passes on comes from somewhere else."""
    return (
        config.auth_allow_localhost_bypass
        and not config.trust_proxy
        and is_loopback(request.peer)
        and (host_name(request.host) in LOOPBACK_NAMES or is_loopback(host_name(request.host)))
        and not any(n in PASSED_ON or n.startswith("x-forwarded") for n in request.headers)
    )


PASSED_ON = frozenset((
    "forwarded", "via", "x-real-ip", "x-client-ip", "x-cluster-client-ip", "x-original-host",
    "true-client-ip", "cf-connecting-ip", "cf-ray", "fly-client-ip", "fastly-client-ip",
))  # fmt: skip
WANTS_KEY = "this proxy wants its key (ANTHROPIC_API_KEY) as x-api-key or Bearer token"
WANTS_TOKEN = (
    "this proxy wants your REDCap API token, 32 hexadecimal digits, as ANTHROPIC_AUTH_TOKEN"
)
SUPER_TOKEN = "that is a REDCap super token, too powerful for this: take a project's API token"


class AcceptedKey(NamedTuple):
    """A key as it is compared: digests are of one length, so that none tells its own."""

    label: str
    digest: bytes


def accepted_keys(config: Config) -> Tuple[AcceptedKey, ...]:
    """The keys that let a client in; none: see `find_client`."""
    texts = (config.anthropic_api_key, config.auth_token, shared_token(config))
    if not any(texts) or not BOOL_WORDS.get(config.auth_enabled, True):
        return ()
    return hashed_keys(*texts)


def shared_token(config: Config) -> str:
    return config.redcap_api_token if config.upstream == "redcap" else ""


@lru_cache(maxsize=16)
def hashed_keys(*texts: str) -> Tuple[AcceptedKey, ...]:
    named = [pair for text in texts for pair in split_keys(text)]
    return tuple(
        AcceptedKey(label or f"key-{place}", hashlib.sha256(key.encode()).digest())
        for place, (label, key) in enumerate(named, 1)
    )


def split_keys(text: str) -> List[Tuple[str, str]]:
    """(label or "", key) of each key in a setting."""
    matches = (re.fullmatch(r" *(?:([\w.-]+): *)?(.*?) *", part) for part in text.split(","))
    return [(match[1] or "", match[2]) for match in matches if match and match[2]]


def own_keys(config: Config) -> Tuple[str, ...]:
    """Every key that opens this proxy, asked for or not: they are nobody else's business."""
    named = [*split_keys(config.anthropic_api_key), *split_keys(config.auth_token)]
    return tuple(key for key in (*(key for _, key in named), config.redcap_api_token) if key)


def matching_label(shown: Iterable[str], accepted: Sequence[AcceptedKey]) -> str:
    """The label of a key that was shown, or "". Every key is compared whole, whatever the ones
    before it were, so that the time it takes tells nothing."""
    found = ""
    for text in shown:
        digest = hashlib.sha256(text.encode("utf-8", "replace")).digest()
        for key in accepted:
            found = key.label if hmac.compare_digest(digest, key.digest) else found
    return found


def own_redcap_token(shown: Iterable[str]) -> str:
    """The REDCap token among a client's credentials; ProxyError(401) if there is none."""
    found = next((key for key in shown if re.fullmatch(REDCAP_TOKEN, key)), None)
    if found is None:
        too_much = any(re.fullmatch("[0-9A-Fa-f]{64}", key) for key in shown)
        raise ProxyError(401, SUPER_TOKEN if too_much else WANTS_TOKEN)
    return found


def shown_keys(request: HttpRequest, header: str = "x-api-key") -> Tuple[str, ...]:
    """The credentials in a request, in the headers that Claude and OpenAI clients use, and in
    another one that settings name."""
    fields, bearer, own = request.headers, "", ""
    if "authorization" in fields:
        scheme, _, token = fields["authorization"].partition(" ")
        bearer = token.strip() if scheme.lower() == "bearer" else ""
    if header != "x-api-key":
        own = fields.get(header.lower(), "") if header.lower() != "x-api-key" else ""
    return tuple(filter(None, (fields.get("x-api-key"), own, bearer)))


# --- pages of other origins --------------------------------------------------------------------

EXPOSED_HEADERS = "request-id, retry-after, x-should-retry, x-proxy-route, x-proxy-notes, " + (
    ", ".join(
        f"anthropic-ratelimit-{what}-{figure}"
        for what in ("requests", "tokens")
        for figure in ("limit", "remaining", "reset")
    )
)
PREFLIGHT_SECONDS = "600"


def is_cors_origin(config: Config, request: HttpRequest) -> bool:
    """Whether a page of an origin that settings name asks."""
    allowed = config.cors_allowed_origins
    return bool(allowed) and request.headers.get("origin", "").lower() in allowed


def is_preflight(config: Config, request: HttpRequest) -> bool:
    return (
        request.method == "OPTIONS"
        and "access-control-request-method" in request.headers
        and is_cors_origin(config, request)
    )


def cors_headers(config: Config, request: HttpRequest) -> HeaderPairs:
    """What an answer, or an error, tells the browser; nothing unless settings name origins."""
    if not config.cors_allowed_origins:
        return ()
    if not is_cors_origin(config, request):
        return (("vary", "Origin"),)
    allowed = ("access-control-allow-origin", request.headers["origin"])
    return (("vary", "Origin"), allowed, ("access-control-expose-headers", EXPOSED_HEADERS))


def preflight_headers(request: HttpRequest) -> HeaderPairs:
    """The answer to a browser that asks whether a page may send this: any header, as it has to
    show a key anyhow."""
    wanted = request.headers.get("access-control-request-headers", "")
    names = [name.strip().lower() for name in wanted.split(",")]
    allowed = ", ".join(name for name in names if re.fullmatch(r"[\w!#$%&'*+.^`|~-]+", name))
    headers = [
        ("access-control-allow-methods", "GET, HEAD, POST, PUT, PATCH, DELETE"),
        ("access-control-max-age", PREFLIGHT_SECONDS),
    ]
    headers += [("access-control-allow-headers", allowed)] if allowed else []
    if request.headers.get("access-control-request-private-network") == "true":
        headers.append(("access-control-allow-private-network", "true"))
    return tuple(headers)


def run_guards(config: Config, request: HttpRequest) -> None:
    check_host(config, request)
    check_origin(config, request)
