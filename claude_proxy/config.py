"""The model maps, and how a setting's text is read. No problem text repeats a value.

The table of settings is in `settings`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Callable, Dict, NamedTuple, Tuple
from urllib.parse import unquote, unquote_to_bytes, urlsplit

VERSION = "0.1.0"

# --- model maps: edit here ---------------------------------------------------------------------
# For each upstream: the name a client asks for -> the model that answers. A name may be a glob
# ("claude-3*"); exact names go first, then globs from top to bottom. A target may name its
# upstream ("openai:gpt-4o"). MODEL_MAP does the same without editing, and goes before these.

MODEL_ALIASES: Dict[str, Dict[str, str]] = {
    "openai": {
        # "claude-3-5-haiku*": "gpt-4o-mini",
    },
    "redcap 2026-06": {
        "claude-3*": "claude-sonnet-4.6",
        "gpt-4.1": "gpt-4-1",
        "gpt-4o": "gpt-4-1",
        "gpt-4.1-nano": "gpt-4-1-nano",
        "gpt-4o-mini": "gpt-4-1-nano",
        "gpt-5.4": "gpt-5-4",
        "gpt-5.4-nano": "gpt-5-4-nano",
        "deepseek": "deepseek-r1",
    },
    "redcap 2026-01": {
        "claude-haiku-4-5-20251001": "gpt-4o",
        "claude-3-7-sonnet-20250219": "claude",
        "claude-sonnet-4": "claude",
        "gpt-4-1": "gpt-4.1",
    },
    "anthropic": {
        # "claude-opus*": "claude-sonnet-5",
    },
    "demo": {"*": "demo"},
}

# REDCap SecureChatAI's own names (model aliases) in its newer and its older installations, chosen
# by REDCAP_ERA. No list is certain, for they are settings there: REDCAP_ALIASES adds others.
REDCAP_KNOWN_ALIASES: Dict[str, Tuple[str, ...]] = {
    "2026-06": (
        "claude-opus-4-7", "claude-opus-4-6", "claude-opus-4-1", "claude-sonnet-4.6",
        "claude-sonnet-4-5", "claude-haiku-4.5", "gpt-4-1", "gpt-4-1-nano", "gpt-5-4",
        "gpt-5-4-nano", "gpt-5-nano", "o3", "o4-mini", "chat", "gemini-2.5-pro", "gemini-2.5-flash",
        "deepseek-r1", "grok-3", "grok-3-mini", "llama-4-scout",
    ),
    "2026-01": (
        "claude", "gpt-4o", "gpt-4.1", "o1", "o3-mini", "gpt-5", "gemini20flash", "gemini25pro",
        "llama3370b", "llama-Maverick", "deepseek",
    ),
}
# What fits an alias: (pattern, window in tokens), the first that fits.
REDCAP_WINDOWS: Tuple[Tuple[str, int], ...] = (
    ("claude*", 200_000), ("o[134]*", 200_000), ("gpt-5*", 400_000), ("gpt-4[-.]1*", 1_000_000),
    ("gemini*", 1_000_000), ("*", 128_000),
)
# The longest answer in tokens, whatever `max_tokens` says; 0: the vendor's own limit.
REDCAP_OUTPUT_CAPS: Tuple[Tuple[str, int], ...] = (
    ("claude", 8192), ("claude-haiku-4.5", 8192), ("claude-sonnet-3.[57]", 8192),
    ("claude-sonnet-4", 16000), ("claude-opus-4", 32000), ("claude*", 16384), ("*", 0),
)

# A word in a Claude name -> the setting that holds its model; the first that fits.
MODEL_FAMILIES: Tuple[Tuple[str, str], ...] = (
    ("haiku", "SMALL_MODEL"),
    ("sonnet", "MIDDLE_MODEL"),
    ("opus", "BIG_MODEL"),
    ("claude", "BIG_MODEL"),
)

# Host of the base URL, or redcap and its era -> models where the settings name none.
DEFAULT_MODELS: Dict[str, Dict[str, str]] = {
    "openrouter.ai": {
        "BIG_MODEL": "openai/gpt-5.4",
        "MIDDLE_MODEL": "openai/gpt-5.4-mini",
        "SMALL_MODEL": "openai/gpt-5.4-nano",
    },
    "redcap 2026-06": {
        "BIG_MODEL": "claude-opus-4-7",
        "MIDDLE_MODEL": "claude-sonnet-4.6",
        "SMALL_MODEL": "claude-haiku-4.5",
    },
    "redcap 2026-01": {"BIG_MODEL": "claude", "MIDDLE_MODEL": "claude", "SMALL_MODEL": "gpt-4o"},
    # Claude's names are its own there.
    "anthropic": {"BIG_MODEL": "", "MIDDLE_MODEL": "", "SMALL_MODEL": ""},
    "other": {"BIG_MODEL": "gpt-4o", "MIDDLE_MODEL": "gpt-4o", "SMALL_MODEL": "gpt-4o-mini"},
}

# What GET /v1/models offers.
LISTED_MODELS: Tuple[str, ...] = ("claude-opus-4-8", "claude-sonnet-5", "claude-haiku-4-5-20251001")

# --- end of the model maps ---------------------------------------------------------------------

UPSTREAM_NAMES = ("redcap", "openai", "anthropic", "demo")
# What `chat_profiles` knows of.
PROFILE_NAMES = (
    "openai", "azure", "openrouter", "deepseek", "xai", "gemini", "mistral", "groq", "together",
    "fireworks", "cerebras", "moonshot", "zai", "dashscope", "vllm", "llamacpp", "ollama",
    "lmstudio", "openwebui", "other",
)
# What `phi_rules` can find. The last two are in every repository, so they have to be asked for.
PHI_CATEGORY_NAMES = (
    "ssn", "itin", "phone", "email", "dob", "mrn", "mbi", "health_plan", "account", "license",
    "dea", "npi", "card", "iban", "vin", "device", "name", "address", "zip", "any_email", "ip",
)
PHI_USUAL = PHI_CATEGORY_NAMES[:-2]

# Keys with these prefixes are OpenAI's own: without a base URL they must not travel to anyone else.
OPENAI_KEY_PREFIXES = ("sk-proj-", "sk-svcacct-", "sk-admin-")
OPENAI_OWN_URL = "https://api.openai.com/v1"
OPENROUTER_URL = "https://openrouter.ai/api/v1"
ANTHROPIC_URL = "https://api.anthropic.com"

CUSTOM_HEADER_PREFIX = "CUSTOM_HEADER_"
FRAMING_HEADERS = ("connection", "content-length", "transfer-encoding", "upgrade")
HOST_NAME = r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*"
HEADER_TEXT = r"[\x20-\x7e]*"
HEADER_NAME = r"[a-z0-9]+(?:-[a-z0-9]+)*"
# All printable ASCII but #, ?, @ and the backslash. (Written as what it is not, it takes a range of
# a million characters, and 6 ms to compile.)
PLAIN_URL = r"[!\"$->A-\[\]-~]*"
CHAT_PATH = "/chat/completions"
REDCAP_TOKEN = r"[0-9A-Fa-f]{32}"
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
    """A parser of text that matches; no text is unset, and needs no pattern."""

    def parse_pattern(text: str) -> str:
        if text and not re.fullmatch(pattern, text):
            raise ValueError(expected)
        return text

    return parse_pattern


parse_text = pattern_parser(r"[^\x00-\x1f\x7f-\x9f]*", "must be one line of text")
parse_header_text = pattern_parser(HEADER_TEXT, "must be one line of printable ASCII")
parse_header_name = pattern_parser(r"[A-Za-z0-9]+(?:-[A-Za-z0-9]+)*", "must be a header's name")
# Nothing but commas would open the door, and a name without a key would be the key.
parse_client_keys = pattern_parser(
    r"(?! *,[ ,]*$)(?!(?:.*,)? *[\w.-]+: *(?:,|$))" + HEADER_TEXT,
    "must be one line of printable ASCII: keys, or name:key, with commas between"
)
parse_api_version = pattern_parser(r"[A-Za-z0-9.-]*", "must be a version such as 2024-10-21")
parse_audit_key = pattern_parser(
    r"[\x20-\x7e]{16,}|", "must be 16 printable characters or more, such as openssl rand -hex 32"
)
parse_redcap_token = pattern_parser(
    REDCAP_TOKEN + "|", "must be a REDCap API token: 32 hexadecimal digits, and no super token"
)


# Fixed in length but for "?", and without groups: it runs over every text of every request.
PATTERN_ATOM = r"(?:\\[dw.-]|\[(?:A-Z|a-z|0-9|[A-Za-z0-9_])+\]|[A-Za-z0-9_ #:/-])"
parse_plain_pattern = pattern_parser(
    rf"(?:\\b|{PATTERN_ATOM}(?:\{{[1-9]\}}|\?)?){{0,60}}",
    r"must be characters and classes such as [A-Z] or \d, of which {n} are wanted",
)


def choice_parser(*words: str) -> Callable[[str], str]:
    def parse_choice(text: str) -> str:
        if text and text.lower() not in words:
            raise ValueError(f"must be one of {', '.join(words)}")
        return text.lower()

    return parse_choice


def choices_parser(*words: str) -> Callable[[str], Tuple[str, ...]]:
    def parse_choices(text: str) -> Tuple[str, ...]:
        chosen = parse_names(text.lower())
        if not set(chosen) <= set(words):
            raise ValueError(f"must be some of {', '.join(words)}, with commas between")
        return chosen

    return parse_choices


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


DURATION_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}


def parse_duration(text: str) -> float:
    """Seconds, also written 300s, 5m or 1h."""
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)([smh]?)", text)
    seconds = float(match.group(1)) * DURATION_UNITS[match.group(2)] if match else 0.0
    if not 0.01 <= seconds <= 86400:
        raise ValueError("must be a duration such as 300, 300s or 5m")
    return seconds


def parse_bool(text: str) -> bool:
    if text.lower() not in BOOL_WORDS:
        raise ValueError("must be true or false")
    return BOOL_WORDS[text.lower()]


def parse_listen_host(text: str) -> str:
    """An address to listen on. localhost becomes 127.0.0.1, so that no name lookup decides."""
    host = text.strip("[]").lower()
    if not re.fullmatch(HOST_NAME, host):
        raise ValueError("must be an address or a host name, such as 127.0.0.1")
    return "127.0.0.1" if host == "localhost" else host


def parse_hosts(text: str) -> Tuple[str, ...]:
    """Names as the guard compares them: lower case, no port, no brackets; "*" for any."""
    names = tuple(name.strip().lower().strip("[]") for name in text.split(",") if name.strip())
    if not all(name == "*" or re.fullmatch(HOST_NAME, name) for name in names):
        raise ValueError("must be host names without port, separated by commas")
    return names


def parse_model_map(text: str) -> Tuple[Tuple[str, str], ...]:
    pairs = [pair.partition("=") for pair in parse_text(text).split(",") if pair.strip()]
    rows = tuple((name.strip(), target.strip()) for name, _, target in pairs)
    if not all(name and target for name, target in rows):
        raise ValueError("must be name=model pairs separated by commas")
    return rows


def parse_otlp_pairs(text: str) -> Tuple[Tuple[str, str], ...]:
    """Pairs as OpenTelemetry writes them: name=value, with %XX for what would be misread."""
    pairs = [pair.partition("=") for pair in parse_text(text).split(",") if pair.strip()]
    if not all(name.strip() and mark for name, mark, _ in pairs):
        raise ValueError("must be name=value pairs with commas between, %2C for one in a value")
    return tuple((unquote(name.strip()), unquote(value.strip())) for name, _, value in pairs)


def parse_otlp_headers(text: str) -> str:
    """Stays as written, for it is a secret as a whole; `parse_otlp_pairs` reads it."""
    for name, value in parse_otlp_pairs(text):
        named = re.fullmatch(r"[A-Za-z0-9_.-]+", name) and name.lower() not in FRAMING_HEADERS
        if not (named and re.fullmatch(HEADER_TEXT, value)):
            raise ValueError("must be header=value pairs, with commas between")
    return text


def parse_otlp_url(text: str) -> str:
    if text and not is_plain_url(text):
        raise ValueError(
            "must be an http or https URL such as http://localhost:4318, without user name or query"
        )
    return text


def parse_agent_map(text: str) -> Tuple[Tuple[str, str], ...]:
    """Pairs agent:model; a model may carry its upstream's name (agent:openai:gpt-4o)."""
    pairs = [pair.partition(":") for pair in parse_text(text).split(",") if pair.strip()]
    rows = tuple((name.strip(), target.strip()) for name, _, target in pairs)
    if not all(name and target for name, target in rows):
        raise ValueError("must be agent:model pairs separated by commas")
    return rows


def parse_windows(text: str) -> Tuple[Tuple[str, str], ...]:
    rows = parse_model_map(text)
    if not all(re.fullmatch(r"[0-9]{3,9}", size) for _, size in rows):
        raise ValueError("must be model=tokens pairs separated by commas")
    return rows


def parse_forward_url(text: str) -> str:
    """A base URL without a slash or /v1 at its end; "" for none."""
    base = parse_base_url(text)
    return base[: -len("/v1")] if base.endswith("/v1") else base


def parse_base_url(text: str) -> str:
    """A base URL without a slash or /chat/completions at its end; "" for none."""
    if text and not is_plain_url(text):
        raise ValueError(
            "must be an http or https URL such as https://api.openai.com/v1, without user name, "
            "query or fragment (for Azure, set AZURE_API_VERSION instead of ?api-version=)"
        )
    base = text.rstrip("/")
    return base[: -len(CHAT_PATH)].rstrip("/") if base.endswith(CHAT_PATH) else base


def parse_redcap_url(text: str) -> str:
    """The URL of REDCap's API, with the slash at its end; "" for none."""
    url = text + "/" if text.endswith("/api") else text
    if text and not (is_plain_url(text) and url.endswith("/api/")):
        raise ValueError("must be REDCap's API, such as https://redcap.example.edu/api/")
    return url


def parse_names(text: str) -> Tuple[str, ...]:
    return tuple(name.strip() for name in parse_text(text).split(",") if name.strip())


def parse_origins(text: str) -> Tuple[str, ...]:
    """Origins as browsers write them: lower case, no slash at the end."""
    origins = tuple(name.rstrip("/").lower() for name in parse_names(text))
    if "*" in text or not all(is_plain_url(o) and o.count("/") == 2 for o in origins):
        raise ValueError("must be origins such as https://app.example, with commas between")
    return origins


def parse_proxy_url(text: str) -> str:
    """A web proxy's URL, with credentials or without; http where no scheme is written."""
    scheme, _, rest = (text if "://" in text else f"http://{text}").partition("://")
    user, at, place = rest.rstrip("/").rpartition("@")
    plain = is_plain_url(f"{scheme.lower()}://{place}") and "/" not in place
    if text and not (plain and re.fullmatch(rb"[^\x00-\x1f\x7f]*", unquote_to_bytes(rest))):
        raise ValueError(
            "must be an http or https proxy such as http://user:password@proxy.example:3128, with "
            "%XX for special characters of the password; SOCKS is not spoken here"
        )
    return f"{scheme.lower()}://{user}{at}{place}" if text else ""


def parse_all_proxy_url(text: str) -> str:
    """As `parse_proxy_url`. One of SOCKS is kept: it matters only if an upstream needs it."""
    scheme, mark, rest = text.partition("://")
    if not re.fullmatch(r"socks(4a?|5h?)?", scheme.lower()):
        return parse_proxy_url(text)
    return scheme.lower() + parse_proxy_url("http" + mark + rest)[len("http"):]


def is_plain_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        usable = bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    return usable and parts.scheme in ("http", "https") and bool(re.fullmatch(PLAIN_URL, text))
