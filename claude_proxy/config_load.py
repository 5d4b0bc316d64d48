"""Reading the settings: environment and .env -> Config, or every mistake at once. Pure.

The command line passes the environment in. No problem text repeats a value.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple
from urllib.parse import urlsplit

from claude_proxy.config import (
    ANTHROPIC_URL,
    BOOL_WORDS,
    CUSTOM_HEADER_PREFIX,
    DEFAULT_MODELS,
    FRAMING_HEADERS,
    HEADER_NAME,
    HEADER_TEXT,
    OPENAI_KEY_PREFIXES,
    OPENAI_OWN_URL,
    OPENROUTER_URL,
    ConfigError,
    Setting,
    parse_client_keys,
)
from claude_proxy.settings import SETTINGS, Config


class FoundSetting(NamedTuple):
    """Where a setting's text came from; `variable` is the name it was written under."""

    variable: str
    text: str
    source: str


SettingSources = Sequence[Tuple[str, Mapping[str, str]]]


# --- loading -----------------------------------------------------------------------------------


def load_config(
    environ: Mapping[str, str],
    dotenv: Optional[Mapping[str, str]] = None,
    read_file: Optional[Callable[[str], str]] = None,
    path_exists: Callable[[str], bool] = os.path.exists,
    settings_file: Optional[Mapping[str, str]] = None,
) -> Config:
    """The settings in force, or ConfigError with every mistake.

    The environment goes before the .env, whichever of its names a setting has there; in one source
    the setting's own name goes before NAME_FILE (secrets) and its aliases. Between the two are
    systemd's credentials. Empty means unset.
    """
    sources = (
        ("environment", environ), ("credentials", credential_files(environ, path_exists)),
        (".env", dotenv or {}), ("CONFIG_FILE", settings_file or {}),
    )  # fmt: skip
    values: Dict[str, Any] = {}
    found: Dict[str, FoundSetting] = {}
    headers, origins, problems = read_custom_headers(sources)
    for setting in SETTINGS:
        try:
            found[setting.name] = find_setting(setting, sources, read_file or read_text_file)
            values[setting.name] = parse_found(setting, found[setting.name])
        except ConfigError as error:
            problems += error.problems
    problems += cross_check(values)
    for name, paths in named_paths(values):
        if not all(map(path_exists, paths)):
            problems.append(f"{found[name].variable}: nothing is there under this path")
    folder = os.path.dirname(values.get("AUDIT_FILE", ""))
    if folder and not path_exists(folder):
        problems.append("AUDIT_FILE: the folder it is to be in is not there")
    if problems:
        raise ConfigError(problems)
    origins = [*((name, item.source) for name, item in found.items()), *origins]
    values["AUDIT"] = values["AUDIT"] or ("file" if values["AUDIT_FILE"] else "off")
    values.update(resolve_upstream(values))
    values.update(resolve_models(values))
    fields = {name.lower(): value for name, value in values.items()}
    return Config(**fields, custom_headers=tuple(headers), sources=tuple(origins))


def named_paths(values: Mapping[str, Any]) -> List[Tuple[str, Sequence[str]]]:
    """The settings that name files or folders, with what they name."""
    files = ("CA_FILE", "CA_DIR", "CLIENT_CERT_FILE", "CLIENT_KEY_FILE",
             "TLS_CERT_FILE", "TLS_KEY_FILE", "TLS_CLIENT_CA_FILE")
    own = [(name, [values[name]]) for name in files if values.get(name)]
    return [*own, ("SUBAGENT_FOLDERS", values.get("SUBAGENT_FOLDERS", ()))]


def read_text_file(path: str) -> str:
    with open(path, encoding="utf-8-sig") as file:
        return file.read(65536)


def credential_files(
    environ: Mapping[str, str], path_exists: Callable[[str], bool]
) -> Dict[str, str]:
    """NAME_FILE -> path of each secret that systemd hands over (LoadCredential=NAME:...)."""
    folder = environ.get("CREDENTIALS_DIRECTORY", "")
    secrets = [setting.name for setting in SETTINGS if setting.secret and folder]
    paths = ((name, os.path.join(folder, name)) for name in secrets)
    return {f"{name}_FILE": path for name, path in paths if path_exists(path)}


def clean_text(text: str) -> str:
    """A value without blanks around it and without the quotes that `docker --env-file` leaves."""
    text = text.strip()
    quoted = len(text) >= 2 and text[0] == text[-1] and text[0] in "'\""
    return text[1:-1] if quoted else text


def find_setting(
    setting: Setting, sources: SettingSources, read_file: Callable[[str], str]
) -> FoundSetting:
    for source, written in sources:
        if not written:
            continue
        texts = {name: clean_text(written.get(name, "")) for name in setting_names(setting)}
        named = [name for name, text in texts.items() if text]
        file_name = f"{setting.name}_FILE"
        if setting.secret and {setting.name, file_name} <= set(named):
            raise ConfigError([f"{setting.name}: set either this or {file_name}, not both"])
        if named and setting.secret and named[0] == file_name:
            secret = read_secret(file_name, texts[file_name], read_file)
            if setting.parse is parse_client_keys:
                secret = ",".join(secret.splitlines())
            return FoundSetting(file_name, secret, "file")
        if named:
            return FoundSetting(named[0], texts[named[0]], source)
    return FoundSetting(setting.name, setting.default, "default")


def setting_names(setting: Setting) -> Tuple[str, ...]:
    """Every variable that can hold the setting, first to look at first."""
    return (setting.name, *((f"{setting.name}_FILE",) if setting.secret else ()), *setting.aliases)


def read_secret(variable: str, path: str, read_file: Callable[[str], str]) -> str:
    try:
        text = clean_text(read_file(path))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ConfigError([f"{variable}: the file cannot be read ({reason})"]) from None
    if not text:
        raise ConfigError([f"{variable}: the file is empty"])
    return text


def parse_found(setting: Setting, found: FoundSetting) -> Any:
    try:
        return setting.parse(found.text)
    except ValueError as error:
        raise ConfigError([f"{found.variable}: {error}"]) from None


def read_custom_headers(
    sources: SettingSources,
) -> Tuple[List[Tuple[str, str]], List[Tuple[str, str]], List[str]]:
    """(headers, (variable, source) pairs, problems) of the CUSTOM_HEADER_ variables."""
    headers: Dict[str, Tuple[str, str]] = {}
    problems = []
    for source, written in reversed(sources):
        for variable in sorted(name for name in written if name.startswith(CUSTOM_HEADER_PREFIX)):
            header = variable[len(CUSTOM_HEADER_PREFIX):].lower().replace("_", "-")
            text = clean_text(written[variable])
            problem = custom_header_problem(header, text)
            if text and problem:
                problems.append(f"{variable}: {problem}")
            elif text:
                headers[header] = (text, source)
    pairs = [(header, text) for header, (text, _) in sorted(headers.items())]
    origins = [(custom_header_variable(header), headers[header][1]) for header, _ in pairs]
    return pairs, origins, problems


def custom_header_variable(header: str) -> str:
    return CUSTOM_HEADER_PREFIX + header.upper().replace("-", "_")


def custom_header_problem(header: str, text: str) -> Optional[str]:
    if not re.fullmatch(HEADER_NAME, header):
        return f"must be {CUSTOM_HEADER_PREFIX} and a header name, with _ for each hyphen"
    if header in FRAMING_HEADERS:
        return "the proxy itself sets this header"
    return None if re.fullmatch(HEADER_TEXT, text) else "must be one line of printable ASCII"


def unknown_names(dotenv: Mapping[str, str]) -> List[str]:
    """The names in a .env that are no setting here: worth a warning, for a name may be misspelt."""
    known = {name for setting in SETTINGS for name in setting_names(setting)}
    return [n for n in dotenv if n not in known and not n.startswith(CUSTOM_HEADER_PREFIX)]


# --- what settings mean together ---------------------------------------------------------------


def is_loopback_host(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def asks_for_key(enabled: str, *keys: str) -> bool:
    """Whether clients have to show one of the keys."""
    return BOOL_WORDS.get(enabled, True) and any(keys)


def wants_redcap_token(upstream: str, redcap: str, forward: str) -> bool:
    """Whether requests go to REDCap: there every client shows a token, and REDCap judges it."""
    return bool(redcap) and (upstream == "redcap" or not upstream and not forward)


# Settings that may name an upstream -> the models in their values.
ROUTING_TARGETS: Tuple[Tuple[str, Callable[[Any], Sequence[str]]], ...] = (
    ("SUBAGENT_MAPPINGS", lambda rows: [target for _, target in rows]),
    ("BACKGROUND_MODEL", lambda model: [model]),
    ("VISION_MODEL", lambda model: [model]),
    ("LONG_CONTEXT_MODEL", lambda model: [model]),
    ("FALLBACK_MODELS", list),
)
# Upstream -> the settings of which one configures it.
CONFIGURING: Dict[str, Tuple[str, ...]] = {
    "openai": ("OPENAI_API_KEY", "OPENAI_BASE_URL"),
    "redcap": ("REDCAP_API_URL",),
    "anthropic": ("ANTHROPIC_FORWARD_URL", "ANTHROPIC_UPSTREAM_KEY"),
}


def missing_upstreams(values: Mapping[str, Any]) -> List[str]:
    """Problems with routes to upstreams that are not there."""
    return [
        f"{name}: names the upstream {upstream}, which needs {' or '.join(settings)}"
        for name, models in ROUTING_TARGETS
        for upstream, settings in CONFIGURING.items()
        if upstream != values.get("UPSTREAM")
        and any(model.startswith(f"{upstream}:") for model in models(values.get(name, "")))
        and all(setting in values and not values[setting] for setting in settings)
    ]


CROSS_CHECKS: Tuple[Tuple[Tuple[str, ...], Callable[..., bool], str], ...] = (
    (("LISTEN_HOST", "TRUST_PROXY", "AUTH_ENABLED", "ANTHROPIC_API_KEY", "AUTH_TOKEN",
      "REDCAP_API_TOKEN", "UPSTREAM", "REDCAP_API_URL", "ANTHROPIC_FORWARD_URL"),
     lambda host, trusted, enabled, key, token, shared, *redcap: is_loopback_host(host) or trusted
     or asks_for_key(enabled, key, token) or wants_redcap_token(*redcap)
     and (not shared or asks_for_key(enabled, shared)),
     "other machines could use this proxy without a key; set ANTHROPIC_API_KEY to the key that "
     "clients must show, or TRUST_PROXY=true if something in front authenticates, or "
     "LISTEN_HOST=127.0.0.1"),
    (("LISTEN_HOST", "TRUST_PROXY", "AUTH_ENABLED", "ANTHROPIC_API_KEY", "AUTH_TOKEN",
      "REDCAP_API_TOKEN", "REDCAP_API_URL", "OPENAI_API_KEY", "OPENAI_BASE_URL",
      "ANTHROPIC_UPSTREAM_KEY"),
     lambda host, trusted, enabled, key, token, shared, redcap, *others: is_loopback_host(host)
     or trusted or asks_for_key(enabled, key, token, shared) or not redcap or not any(others),
     "anything shaped like a REDCap token would open the other upstream to other machines: set "
     "ANTHROPIC_API_KEY or REDCAP_API_TOKEN"),
    (("AUTH_ENABLED", "ANTHROPIC_API_KEY", "AUTH_TOKEN", "UPSTREAM", "REDCAP_API_URL",
      "ANTHROPIC_FORWARD_URL"),
     lambda enabled, key, token, *redcap: not BOOL_WORDS.get(enabled) or bool(key or token)
     or wants_redcap_token(*redcap),
     "there is no key to ask for: set ANTHROPIC_API_KEY or AUTH_TOKEN"),
    (("RATE_LIMIT_BURST", "RATE_LIMIT_RPM"),
     lambda burst, rpm: not burst or bool(rpm),
     "needs RATE_LIMIT_RPM"),
    (("UPSTREAM", "REDCAP_API_URL", "OPENAI_API_KEY", "OPENAI_BASE_URL"),
     lambda upstream, redcap, key, base: bool(upstream) or not (redcap and (key or base)),
     "settings name both redcap and openai: set UPSTREAM to the one that answers"),
    (("UPSTREAM", "REDCAP_API_URL"),
     lambda upstream, redcap: upstream != "redcap" or bool(redcap),
     "redcap needs REDCAP_API_URL"),
    (("REDCAP_API_URL", "REDCAP_ALLOW_HTTP"),
     lambda url, allowed: url.startswith("https:") or not url or allowed
         or is_loopback_host(urlsplit(url).hostname or "")
         or urlsplit(url).hostname == "localhost",
     "must be https, for the token is in every request; REDCAP_ALLOW_HTTP=true if it cannot be"),
    (("REDCAP_API_TOKEN", "REDCAP_API_URL"),
     lambda token, url: not token or bool(url),
     "needs REDCAP_API_URL"),
    (("UPSTREAM", "OPENAI_API_KEY", "OPENAI_BASE_URL"),
     lambda upstream, key, base: upstream != "openai" or bool(key or base),
     "openai needs OPENAI_API_KEY or OPENAI_BASE_URL, or both"),
    (("AZURE_API_VERSION", "OPENAI_BASE_URL"),
     lambda version, base: not version or bool(base),
     "needs OPENAI_BASE_URL, such as https://NAME.openai.azure.com"),
    (("MIN_TOKENS_LIMIT", "MAX_TOKENS_LIMIT"),
     lambda low, high: not high or low <= high,
     "must not be above MAX_TOKENS_LIMIT"),
    (("CLIENT_KEY_FILE", "CLIENT_CERT_FILE"),
     lambda key, certificate: not key or bool(certificate),
     "needs CLIENT_CERT_FILE, the certificate that the key belongs to"),
    (("CLIENT_KEY_PASSPHRASE", "CLIENT_CERT_FILE"),
     lambda passphrase, certificate: not passphrase or bool(certificate),
     "needs CLIENT_CERT_FILE, and the key there or in CLIENT_KEY_FILE"),
    (("TLS_KEY_FILE", "TLS_CERT_FILE"),
     lambda key, certificate: not key or bool(certificate),
     "needs TLS_CERT_FILE, the certificate that the key belongs to"),
    (("TLS_KEY_PASSPHRASE", "TLS_CERT_FILE"),
     lambda passphrase, certificate: not passphrase or bool(certificate),
     "needs TLS_CERT_FILE, and the key there or in TLS_KEY_FILE"),
    (("TLS_CLIENT_CA_FILE", "TLS_CERT_FILE"),
     lambda roots, certificate: not roots or bool(certificate),
     "needs TLS_CERT_FILE: without TLS no client shows a certificate"),
    (("AUDIT", "AUDIT_FILE"),
     lambda audit, file: audit != "file" or bool(file),
     "file needs AUDIT_FILE"),
    (("AUDIT_REQUIRED", "AUDIT", "AUDIT_FILE"),
     lambda required, audit, file: not required or (audit or file or "off") != "off",
     "needs an audit: set AUDIT_FILE, or AUDIT=syslog or log"),
)


def cross_check(values: Mapping[str, Any]) -> List[str]:
    """Problems between settings; a check is left out where one of its values is itself wrong."""
    problems = [
        f"{names[0]}: {problem}"
        for names, holds, problem in CROSS_CHECKS
        if all(name in values for name in names) and not holds(*(values[name] for name in names))
    ]
    return problems + missing_upstreams(values)


def resolve_upstream(values: Mapping[str, Any]) -> Dict[str, str]:
    key, base = values["OPENAI_API_KEY"], values["OPENAI_BASE_URL"]
    named = "openai" if key or base or values["AZURE_API_VERSION"] else "demo"
    named = "redcap" if values["REDCAP_API_URL"] else named
    forward = values["ANTHROPIC_FORWARD_URL"]
    named = values["UPSTREAM"] or ("anthropic" if forward else named)
    if named == "anthropic" or values["ANTHROPIC_UPSTREAM_KEY"]:
        forward = forward or ANTHROPIC_URL
    if key and not base:
        base = OPENAI_OWN_URL if key.startswith(OPENAI_KEY_PREFIXES) else OPENROUTER_URL
    return {"UPSTREAM": named, "OPENAI_BASE_URL": base, "ANTHROPIC_FORWARD_URL": forward}


def resolve_models(values: Mapping[str, Any]) -> Dict[str, str]:
    host = urlsplit(values["OPENAI_BASE_URL"]).hostname or ""
    if values["UPSTREAM"] == "redcap":
        host = f"redcap {values['REDCAP_ERA']}"
    if values["UPSTREAM"] == "anthropic":
        host = "anthropic"
    models = dict(DEFAULT_MODELS.get(host, DEFAULT_MODELS["other"]))
    if values["BIG_MODEL"]:
        models["MIDDLE_MODEL"] = values["BIG_MODEL"]
    return {name: values[name] or model for name, model in models.items()}
