"""The model maps, and one table of every setting: name, default, parser, one line of help.

`load_config` turns an environment and a .env into a frozen Config, or reports every mistake at
once. It is pure: the command line passes the environment in. No problem text repeats a value.
"""

from __future__ import annotations

import os
import re
from collections import namedtuple
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple
from urllib.parse import urlsplit

VERSION = "0.1.0"

# --- model maps: edit here ---------------------------------------------------------------------
# For each upstream: the name a client asks for -> the model that answers. A name may be a glob
# ("claude-3*"); exact names go first, then globs from top to bottom. A target may name its
# upstream ("openai:gpt-4o"). MODEL_MAP does the same without editing, and goes before these.

MODEL_ALIASES: Dict[str, Dict[str, str]] = {
    "openai": {
        # "claude-3-5-haiku*": "gpt-4o-mini",
    },
    "demo": {"*": "demo"},
}

# A word in a Claude name -> the setting that holds its model; the first that fits.
MODEL_FAMILIES: Tuple[Tuple[str, str], ...] = (
    ("haiku", "SMALL_MODEL"),
    ("sonnet", "MIDDLE_MODEL"),
    ("opus", "BIG_MODEL"),
    ("claude", "BIG_MODEL"),
)

# Host of the base URL -> models where the settings name none.
DEFAULT_MODELS: Dict[str, Dict[str, str]] = {
    "openrouter.ai": {
        "BIG_MODEL": "openai/gpt-5.4",
        "MIDDLE_MODEL": "openai/gpt-5.4-mini",
        "SMALL_MODEL": "openai/gpt-5.4-nano",
    },
    "other": {"BIG_MODEL": "gpt-4o", "MIDDLE_MODEL": "gpt-4o", "SMALL_MODEL": "gpt-4o-mini"},
}

# What GET /v1/models offers.
LISTED_MODELS: Tuple[str, ...] = ("claude-opus-4-8", "claude-sonnet-5", "claude-haiku-4-5-20251001")

# --- end of the model maps ---------------------------------------------------------------------

UPSTREAM_NAMES = ("openai", "demo")

# Keys with these prefixes are OpenAI's own: without a base URL they must not travel to anyone else.
OPENAI_KEY_PREFIXES = ("sk-proj-", "sk-svcacct-", "sk-admin-")
OPENAI_OWN_URL = "https://api.openai.com/v1"
OPENROUTER_URL = "https://openrouter.ai/api/v1"

CUSTOM_HEADER_PREFIX = "CUSTOM_HEADER_"
FRAMING_HEADERS = ("connection", "content-length", "transfer-encoding", "upgrade")
HOST_NAME = re.compile(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*")
HEADER_TEXT = r"[\x20-\x7e]*"
HEADER_NAME = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
PLAIN_URL = re.compile(r"[^\x00-\x20\x7f-\U0010ffff@?#\\]*")
CHAT_PATH = "/chat/completions"
BOOL_WORDS = {"true": True, "1": True, "yes": True, "on": True,
              "false": False, "0": False, "no": False, "off": False}


class ConfigError(Exception):
    """Settings that cannot be used. `problems` has a line for each: the variable, what to do."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)


class Setting(NamedTuple):
    """One row of the table. `default` is as written in the environment; "" means unset."""

    name: str
    default: str
    parse: Callable[[str], Any]
    help: str
    section: str
    secret: bool = False
    aliases: Tuple[str, ...] = ()


# --- parsers: text -> value, or ValueError saying what is expected and never the text ----------


def pattern_parser(pattern: str, expected: str) -> Callable[[str], str]:
    def parse_pattern(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(expected)
        return text

    return parse_pattern


parse_text = pattern_parser(r"[^\x00-\x1f\x7f-\x9f]*", "must be one line of text")
parse_header_text = pattern_parser(HEADER_TEXT, "must be one line of printable ASCII")
parse_api_version = pattern_parser(r"[A-Za-z0-9.-]*", "must be a version such as 2024-10-21")
parse_compression = pattern_parser("none", "only none is accepted in this version")
parse_later_upstream = pattern_parser("", "the redcap upstream is not in this version")


def choice_parser(*words: str) -> Callable[[str], str]:
    def parse_choice(text: str) -> str:
        if text and text.lower() not in words:
            raise ValueError(f"must be one of {', '.join(words)}")
        return text.lower()

    return parse_choice


def number_parser(low: int, high: int) -> Callable[[str], int]:
    def parse_number(text: str) -> int:
        number = int(text) if re.fullmatch(r"[0-9]{1,12}", text) else -1
        if not low <= number <= high:
            raise ValueError(f"must be a whole number from {low} to {high}")
        return number

    return parse_number


def seconds_parser(low: float = 0.01, high: float = 86400.0) -> Callable[[str], float]:
    def parse_seconds(text: str) -> float:
        number = float(text) if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text) else -1.0
        if not low <= number <= high:
            raise ValueError(f"must be a number of seconds from {low:g} to {high:g}")
        return number

    return parse_seconds


def parse_bool(text: str) -> bool:
    if text.lower() not in BOOL_WORDS:
        raise ValueError("must be true or false")
    return BOOL_WORDS[text.lower()]


def parse_listen_host(text: str) -> str:
    """An address to listen on. localhost becomes 127.0.0.1, so that no name lookup decides."""
    host = text.strip("[]").lower()
    if not HOST_NAME.fullmatch(host):
        raise ValueError("must be an address or a host name, such as 127.0.0.1")
    return "127.0.0.1" if host == "localhost" else host


def parse_hosts(text: str) -> Tuple[str, ...]:
    """Names as the guard compares them: lower case, no port, no brackets; "*" for any."""
    names = tuple(name.strip().lower().strip("[]") for name in text.split(",") if name.strip())
    if not all(name == "*" or HOST_NAME.fullmatch(name) for name in names):
        raise ValueError("must be host names without port, separated by commas")
    return names


def parse_model_map(text: str) -> Tuple[Tuple[str, str], ...]:
    pairs = [pair.partition("=") for pair in parse_text(text).split(",") if pair.strip()]
    rows = tuple((name.strip(), target.strip()) for name, _, target in pairs)
    if not all(name and target for name, target in rows):
        raise ValueError("must be name=model pairs separated by commas")
    return rows


def parse_base_url(text: str) -> str:
    """A base URL without a slash or /chat/completions at its end; "" for none."""
    if text and not is_plain_url(text):
        raise ValueError(
            "must be an http or https URL such as https://api.openai.com/v1, without user name, "
            "query or fragment (for Azure, set AZURE_API_VERSION instead of ?api-version=)"
        )
    base = text.rstrip("/")
    return base[: -len(CHAT_PATH)].rstrip("/") if base.endswith(CHAT_PATH) else base


def is_plain_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        usable = bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    return usable and parts.scheme in ("http", "https") and bool(PLAIN_URL.fullmatch(text))


# --- the table ---------------------------------------------------------------------------------

SETTINGS: Tuple[Setting, ...] = (
    Setting("LISTEN_HOST", "127.0.0.1", parse_listen_host,
            "address to listen on", "Listening", aliases=("HOST",)),
    Setting("LISTEN_PORT", "8765", number_parser(0, 65535),
            "port to listen on; 0 takes any free one", "Listening", aliases=("PORT",)),
    Setting("ALLOWED_HOSTS", "", parse_hosts,
            "further host names clients may use, with commas between; * for any", "Listening"),
    Setting("TRUST_PROXY", "false", parse_bool,
            "true if something in front authenticates: no key is needed then", "Listening"),
    Setting("ANTHROPIC_API_KEY", "", parse_header_text,
            "the key clients must show; unset, any or none is accepted", "Listening", secret=True),
    Setting("MAX_CONNECTIONS", "1000", number_parser(1, 100000),
            "client connections at a time; more are told to come back (503)", "Listening"),
    Setting("MAX_BODY_BYTES", "33554432", number_parser(1024, 1 << 31),
            "largest request body", "Listening"),
    Setting("HEADER_TIMEOUT", "10", seconds_parser(),
            "seconds within which a request's head must arrive", "Listening"),
    Setting("READ_TIMEOUT", "30", seconds_parser(),
            "longest pause inside a request body, in seconds", "Listening"),
    Setting("WRITE_TIMEOUT", "60", seconds_parser(),
            "longest wait for a client that does not read, in seconds", "Listening"),
    Setting("IDLE_TIMEOUT", "120", seconds_parser(),
            "seconds that a client connection is kept without a request", "Listening"),
    Setting("DRAIN_TIMEOUT", "600", seconds_parser(low=0),
            "seconds that answers under way may take when the proxy is stopped", "Listening"),
    Setting("UPSTREAM", "", choice_parser(*UPSTREAM_NAMES),
            "openai or demo; unset, openai if a setting below names one, else demo", "Upstream"),
    Setting("OPENAI_API_KEY", "", parse_header_text,
            "key for the upstream", "Upstream", secret=True),
    Setting("OPENAI_BASE_URL", "", parse_base_url,
            "OpenAI-compatible API; unset, OpenAI for sk-proj- keys, else OpenRouter", "Upstream"),
    Setting("AZURE_API_VERSION", "", parse_api_version,
            "the upstream is Azure OpenAI, with this api-version", "Upstream"),
    Setting("CONNECT_TIMEOUT", "10", seconds_parser(),
            "longest wait for a connection, in seconds", "Upstream"),
    Setting("REQUEST_TIMEOUT", "600", seconds_parser(),
            "longest wait for the first byte of an answer, in seconds", "Upstream"),
    Setting("STREAM_IDLE_TIMEOUT", "300", seconds_parser(),
            "longest silence within an answer, in seconds", "Upstream"),
    Setting("TOTAL_TIMEOUT", "0", seconds_parser(low=0),
            "seconds for a whole exchange; 0 sets no limit", "Upstream"),
    Setting("PING_INTERVAL", "10", seconds_parser(1, 15),
            "seconds of silence after which a waiting client is sent a ping", "Upstream"),
    Setting("MAX_RETRIES", "1", number_parser(0, 10),
            "repeats of a request that failed before its answer began", "Upstream"),
    Setting("SSL_VERIFY", "true", parse_bool,
            "false accepts any certificate of the upstream: for tests only", "Upstream"),
    Setting("CA_FILE", "", parse_text,
            "file of certificates to trust besides the system's", "Upstream",
            aliases=("SSL_CERT_FILE",)),
    Setting("CA_DIR", "", parse_text,
            "folder of certificates to trust besides the system's", "Upstream",
            aliases=("SSL_CERT_DIR",)),
    Setting("REDCAP_API_URL", "", parse_later_upstream,
            "not in this version: must stay unset", "Upstream"),
    Setting("REDCAP_API_TOKEN", "", parse_later_upstream,
            "not in this version: must stay unset", "Upstream", secret=True),
    Setting("BIG_MODEL", "", parse_text,
            "model for opus; unset, one that suits the base URL", "Models"),
    Setting("MIDDLE_MODEL", "", parse_text,
            "model for sonnet; unset, BIG_MODEL, or one that suits the base URL", "Models"),
    Setting("SMALL_MODEL", "", parse_text,
            "model for haiku; unset, one that suits the base URL", "Models"),
    Setting("DEFAULT_MODEL", "", parse_text,
            "model for names that nothing else catches; unset, they pass unchanged", "Models"),
    Setting("MODEL_MAP", "", parse_model_map,
            "comma list of name=model; a name may be a glob, a model upstream:model", "Models"),
    Setting("MAX_TOKENS_LIMIT", "0", number_parser(0, 10**9),
            "ceiling for max_tokens; 0 sets none", "Models"),
    Setting("MIN_TOKENS_LIMIT", "0", number_parser(0, 10**9),
            "floor for max_tokens where the proxy itself has to choose it", "Models"),
    Setting("PROMPT_COMPRESSION", "none", parse_compression,
            "only none is accepted in this version", "Models"),
    Setting("PROMPT_MAX_SYSTEM_TOKENS", "4096", number_parser(1, 10**9),
            "used with PROMPT_COMPRESSION", "Models"),
    Setting("LOG_LEVEL", "info", choice_parser("debug", "info", "warning", "error", "critical"),
            "debug, info, warning, error or critical", "Logging"),
    Setting("LOG_FORMAT", "auto", choice_parser("auto", "text", "json"),
            "text, json, or auto: text on a terminal, else json", "Logging"),
)


CONFIG_FIELDS = (*(setting.name.lower() for setting in SETTINGS), "custom_headers", "sources")


class Config(namedtuple("Config", CONFIG_FIELDS)):
    """The settings in force: a parsed field for each, in lower case. Seconds are floats.

    `upstream`, `openai_base_url` ("" if that upstream is not configured) and the three models are
    resolved. `custom_headers` is ((name, value), ...), `sources` ((variable, "environment" |
    ".env" | "file" | "default"), ...).
    """

    __slots__ = ()

    def __repr__(self) -> str:
        """No values: a Config in a traceback or a log must not show a key."""
        return "Config(...)"


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
) -> Config:
    """The settings in force, or ConfigError with every mistake.

    The environment goes before the .env, whichever of its names a setting has there; in one source
    the setting's own name goes before NAME_FILE (secrets) and its aliases. Empty means unset.
    """
    sources = (("environment", environ), (".env", dotenv or {}))
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
    for name in ("CA_FILE", "CA_DIR"):
        if values.get(name) and not path_exists(values[name]):
            problems.append(f"{found[name].variable}: nothing is there under this path")
    if problems:
        raise ConfigError(problems)
    origins = [*((name, item.source) for name, item in found.items()), *origins]
    values.update(resolve_upstream(values))
    values.update(resolve_models(values))
    fields = {name.lower(): value for name, value in values.items()}
    return Config(**fields, custom_headers=tuple(headers), sources=tuple(origins))


def read_text_file(path: str) -> str:
    with open(path, encoding="utf-8-sig") as file:
        return file.read(65536)


def clean_text(text: str) -> str:
    """A value without blanks around it and without the quotes that `docker --env-file` leaves."""
    text = text.strip()
    quoted = len(text) >= 2 and text[0] == text[-1] and text[0] in "'\""
    return text[1:-1] if quoted else text


def find_setting(
    setting: Setting, sources: SettingSources, read_file: Callable[[str], str]
) -> FoundSetting:
    for source, written in sources:
        texts = {name: clean_text(written.get(name, "")) for name in setting_names(setting)}
        named = [name for name, text in texts.items() if text]
        file_name = f"{setting.name}_FILE"
        if setting.secret and {setting.name, file_name} <= set(named):
            raise ConfigError([f"{setting.name}: set either this or {file_name}, not both"])
        if named and setting.secret and named[0] == file_name:
            secret = read_secret(file_name, texts[file_name], read_file)
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
    if not HEADER_NAME.fullmatch(header):
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


CROSS_CHECKS: Tuple[Tuple[Tuple[str, ...], Callable[..., bool], str], ...] = (
    (("LISTEN_HOST", "ANTHROPIC_API_KEY", "TRUST_PROXY"),
     lambda host, key, trusted: is_loopback_host(host) or bool(key) or trusted,
     "other machines could use this proxy without a key; set ANTHROPIC_API_KEY to the key that "
     "clients must show, or TRUST_PROXY=true if something in front authenticates, or "
     "LISTEN_HOST=127.0.0.1"),
    (("UPSTREAM", "OPENAI_API_KEY", "OPENAI_BASE_URL"),
     lambda upstream, key, base: upstream != "openai" or bool(key or base),
     "openai needs OPENAI_API_KEY or OPENAI_BASE_URL, or both"),
    (("AZURE_API_VERSION", "OPENAI_BASE_URL"),
     lambda version, base: not version or bool(base),
     "needs OPENAI_BASE_URL, such as https://NAME.openai.azure.com"),
    (("MIN_TOKENS_LIMIT", "MAX_TOKENS_LIMIT"),
     lambda low, high: not high or low <= high,
     "must not be above MAX_TOKENS_LIMIT"),
)


def cross_check(values: Mapping[str, Any]) -> List[str]:
    """Problems between settings; a check is left out where one of its values is itself wrong."""
    return [
        f"{names[0]}: {problem}"
        for names, holds, problem in CROSS_CHECKS
        if all(name in values for name in names) and not holds(*(values[name] for name in names))
    ]


def resolve_upstream(values: Mapping[str, Any]) -> Dict[str, str]:
    key, base = values["OPENAI_API_KEY"], values["OPENAI_BASE_URL"]
    named = "openai" if key or base or values["AZURE_API_VERSION"] else "demo"
    if key and not base:
        base = OPENAI_OWN_URL if key.startswith(OPENAI_KEY_PREFIXES) else OPENROUTER_URL
    return {"UPSTREAM": values["UPSTREAM"] or named, "OPENAI_BASE_URL": base}


def resolve_models(values: Mapping[str, Any]) -> Dict[str, str]:
    host = urlsplit(values["OPENAI_BASE_URL"]).hostname or ""
    models = dict(DEFAULT_MODELS.get(host, DEFAULT_MODELS["other"]))
    if values["BIG_MODEL"]:
        models["MIDDLE_MODEL"] = values["BIG_MODEL"]
    return {name: values[name] or model for name, model in models.items()}
