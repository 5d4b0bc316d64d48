"""Every secret that the settings hold, in the forms in which it may turn up in a text."""

from __future__ import annotations

from typing import List

from claude_proxy.auth import own_keys
from claude_proxy.keys import parse_keys
from claude_proxy.otlp_send import otlp_secrets
from claude_proxy.proxies import proxy_secrets
from claude_proxy.settings import Config

SHORTEST_COOKIE = 8
CREDENTIAL_SCHEMES = ("bearer", "basic", "token", "apikey")


def secret_values(config: Config) -> List[str]:
    """Every secret that this process knows, for the redaction of logs."""
    custom = [part for _, value in config.custom_headers for part in header_secrets(value)]
    keys = [*own_keys(config), config.redcap_api_token, config.client_key_passphrase]
    keys += [config.audit_key, config.tls_key_passphrase]
    keys += otlp_secrets(config.otel_exporter_otlp_headers)
    proxies = (config.https_proxy, config.http_proxy, config.all_proxy)
    keys += [secret for url in proxies for secret in proxy_secrets(url)]
    several = (config.openai_api_key, config.anthropic_upstream_key)
    return [*keys, *(key for text in several for key in parse_keys(text)), *custom]


def header_secrets(value: str) -> List[str]:
    """A header's value, and what of it is a credential: behind its scheme, or of a cookie."""
    scheme, _, rest = value.partition(" ")
    cookies = [part.partition("=")[2] for part in value.split("; ") if "=" in part]
    own = [rest.strip()] if scheme.lower() in CREDENTIAL_SCHEMES else []
    return [value, *own, *(text for text in cookies if len(text) >= SHORTEST_COOKIE)]
