"""Web proxies on the way to upstreams: which one, if any, and who goes without (NO_PROXY). Pure."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import List, NamedTuple, Optional, Tuple, Union
from urllib.parse import unquote_to_bytes

from claude_proxy.config import ConfigError
from claude_proxy.pool import Target, WebProxy, split_url

Address = Union[IPv4Address, IPv6Address]


class ProxySettings(NamedTuple):
    """The proxies for https and for http upstreams, and the rules of those that need none."""

    https: Optional[WebProxy] = None
    http: Optional[WebProxy] = None
    no_proxy: Tuple[str, ...] = ()


def read_proxies(
    https_url: str, http_url: str, no_proxy: Sequence[str], all_url: str = ""
) -> ProxySettings:
    """From the settings, as `config` has checked them."""
    either = read_web_proxy(all_url, "ALL_PROXY")
    return ProxySettings(
        read_web_proxy(https_url, "HTTPS_PROXY") or either,
        read_web_proxy(http_url, "HTTP_PROXY") or either,
        tuple(rule for text in no_proxy for rule in text.split()),
    )


def read_web_proxy(url: str, setting: str) -> Optional[WebProxy]:
    if not url:
        return None
    user, place = split_userinfo(url)
    target, _ = split_url(place)
    basic = "Basic " + base64.b64encode(plain_userinfo(user)).decode("ascii")
    return WebProxy(target, basic if user else "", setting)


def is_socks(proxy: WebProxy) -> bool:
    return proxy.target.scheme.startswith("socks")


def check_no_socks(targets: Iterable[Target], settings: ProxySettings) -> None:
    """ConfigError if one of these upstreams would have to be reached by a SOCKS proxy: to go
    straight would be to pass over what the setting says."""
    for target in targets:
        proxy = proxy_for(target, settings)
        if proxy is not None and is_socks(proxy):
            raise ConfigError([SOCKS_PROXY.format(target=target, scheme=target.scheme.upper())])


SOCKS_PROXY = (
    "ALL_PROXY: SOCKS is not spoken here, and {target} would be reached by it; set {scheme}_PROXY"
    " to an http proxy, or name the host in NO_PROXY to reach it without one"
)


def split_userinfo(url: str) -> Tuple[str, str]:
    """(user:password as written, the URL without it)."""
    scheme, _, rest = url.partition("://")
    user, _, place = rest.rpartition("@")
    return user, f"{scheme}://{place}"


def plain_userinfo(user: str) -> bytes:
    """user:password without percent signs; the colon is there without a password too."""
    return unquote_to_bytes(user if ":" in user else user + ":")


def proxy_secrets(url: str) -> List[str]:
    """Every form in which a proxy URL's credentials could turn up in a text."""
    user, _ = split_userinfo(url)
    if not user:
        return []
    plain = plain_userinfo(user)
    password = plain.partition(b":")[2].decode("utf-8", "replace")
    encoded = base64.b64encode(plain).decode("ascii")
    return [user, user.partition(":")[2], plain.decode("utf-8", "replace"), password, encoded]


# --- who goes without --------------------------------------------------------------------------


def proxy_for(target: Target, settings: ProxySettings) -> Optional[WebProxy]:
    """The proxy by which to reach a target, None if straight. This machine is never asked for
    elsewhere: `localhost` there would be the proxy itself."""
    proxy = settings.https if target.scheme == "https" else settings.http
    if proxy is None or is_this_machine(target.host):
        return None
    exempt = any(rule_fits(rule, target.host, target.port) for rule in settings.no_proxy)
    return None if exempt else proxy


def is_this_machine(host: str) -> bool:
    name, address = plain_host(host), address_of(host)
    if address is not None:
        return address.is_loopback or address.is_unspecified
    return name == "localhost" or name.endswith(".localhost")


def rule_fits(rule: str, host: str, port: int) -> bool:
    """Whether an entry of NO_PROXY names this target; one that makes no sense names none."""
    if rule == "*":
        return True
    if "/" in rule:
        return in_network(rule, host)
    name, rule_port = split_rule(rule)
    if rule_port and rule_port != str(port):
        return False
    wanted, address = address_of(name), address_of(host)
    if wanted is not None or address is not None:
        return wanted == address
    suffix = plain_host(re.sub(r"^\*?\.+", "", name))
    return bool(suffix) and f".{plain_host(host)}".endswith(f".{suffix}")


def split_rule(rule: str) -> Tuple[str, str]:
    """(host, port or "") of an entry. Of an address of IPv6 with a port, brackets are the mark."""
    match = re.fullmatch(r"(\[[^]]*\]|[^:]*)(?::([0-9]+))?", rule)
    return (match.group(1), match.group(2) or "") if match else (rule, "")


def in_network(rule: str, host: str) -> bool:
    address = address_of(host)
    try:
        network = ip_network(re.sub(r"[][]", "", rule), strict=False)
    except ValueError:
        return False
    return address is not None and address in network


def plain_host(host: str) -> str:
    """A host name or address as they are compared: lower case, no final dot, no brackets."""
    return host.strip("[]").lower().rstrip(".")


def address_of(host: str) -> Optional[Address]:
    """The address that a host is, None for a name. An IPv4 address within IPv6 counts as such."""
    try:
        address = ip_address(plain_host(host).partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
