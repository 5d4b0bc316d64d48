"""The model maps, and one table of every setting: name, default, parser, one line of help.

`config_load` turns an environment and a .env into a frozen Config of these. No problem text
repeats a value.
"""

from __future__ import annotations

import re
from collections import namedtuple
from collections.abc import Sequence
from typing import Any, Callable, Dict, NamedTuple, Tuple
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
HOST_NAME = re.compile(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*")
HEADER_TEXT = r"[\x20-\x7e]*"
HEADER_NAME = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
PLAIN_URL = re.compile(r"[^\x00-\x20\x7f-\U0010ffff@?#\\]*")
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
    def parse_pattern(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(expected)
        return text

    return parse_pattern


parse_text = pattern_parser(r"[^\x00-\x1f\x7f-\x9f]*", "must be one line of text")
parse_header_text = pattern_parser(HEADER_TEXT, "must be one line of printable ASCII")
parse_api_version = pattern_parser(r"[A-Za-z0-9.-]*", "must be a version such as 2024-10-21")
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
            "redcap, openai, anthropic or demo; unset, the one that settings below name, else demo",
            "Upstream"),
    Setting("OPENAI_API_KEY", "", parse_header_text,
            "key for the upstream; several with commas between, used in turn",
            "Upstream", secret=True),
    Setting("OPENAI_BASE_URL", "", parse_base_url,
            "OpenAI-compatible API; unset, OpenAI for sk-proj- keys, else OpenRouter", "Upstream"),
    Setting("AZURE_API_VERSION", "", parse_api_version,
            "the upstream is Azure OpenAI, with this api-version", "Upstream"),
    Setting("OPENAI_PROFILE", "", choice_parser(*PROFILE_NAMES),
            "the kind of server, where its address does not tell: vllm, llamacpp, ollama, ...",
            "Upstream"),
    Setting("MODEL_LIMITS", "true", parse_bool,
            "false never asks the upstream which models it has, and their limits", "Upstream"),
    Setting("CONNECT_TIMEOUT", "10", seconds_parser(),
            "longest wait for a connection, in seconds", "Upstream"),
    Setting("REQUEST_TIMEOUT", "600", seconds_parser(),
            "longest wait for an answer's first byte (redcap: its last), in seconds", "Upstream"),
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
    Setting("REDCAP_API_URL", "", parse_redcap_url,
            "REDCap's API with SecureChatAI, such as https://redcap.example.edu/api/", "REDCap"),
    Setting("REDCAP_API_TOKEN", "", parse_redcap_token,
            "one token for all, which clients show too; unset, each shows a token of its own",
            "REDCap", secret=True),
    Setting("REDCAP_ALLOW_HTTP", "false", parse_bool,
            "true sends tokens over http to a host other than this one", "REDCap"),
    Setting("REDCAP_ERA", "2026-06", choice_parser(*REDCAP_KNOWN_ALIASES),
            "which model names the module has: 2026-06, or 2026-01 for an older one", "REDCap"),
    Setting("REDCAP_ALIASES", "", parse_names,
            "further model names that this REDCap has, with commas between", "REDCap"),
    Setting("REDCAP_IMAGE_ALIASES", "", parse_names,
            "model names, or globs, that take images", "REDCap"),
    Setting("REDCAP_SCHEMA_ALIASES", "", parse_names,
            "model names, or globs, asked by callAI with a JSON schema for tool calls", "REDCap"),
    Setting("REDCAP_MAX_CALLS", "8", number_parser(1, 1000),
            "calls at a time; others wait, each user in turn", "REDCap"),
    Setting("REDCAP_MAX_BYTES", "8388608", number_parser(1024, 1 << 31),
            "largest form that REDCap's PHP takes (post_max_size)", "REDCap"),
    Setting("ANTHROPIC_FORWARD_URL", "", parse_forward_url,
            "the Anthropic API; unset, https://api.anthropic.com with UPSTREAM=anthropic",
            "Anthropic"),
    Setting("ANTHROPIC_UPSTREAM_KEY", "", parse_header_text,
            "key in place of the client's own credential; several with commas between",
            "Anthropic", secret=True),
    Setting("ANTHROPIC_VERSION", "2023-06-01", parse_header_text,
            "anthropic-version of requests that come without one", "Anthropic"),
    Setting("ANTHROPIC_MAX_RETRIES", "0", number_parser(0, 10),
            "repeats of a request that failed before its answer began; clients repeat themselves",
            "Anthropic"),
    Setting("ANTHROPIC_RESPONSE_HEADER_TIMEOUT", "300", parse_duration,
            "longest wait for an answer's first byte: 300, 300s or 5m", "Anthropic"),
    Setting("ANTHROPIC_DEMOTE_NONSTREAMING", "false", parse_bool,
            "true streams requests that are not, and answers them whole", "Anthropic"),
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
    Setting("TEXT_TOOLS_MODELS", "", parse_names,
            "models, or globs, that cannot call tools: they are told and called in text",
            "Models"),
    Setting("PROMPT_COMPRESSION", "none", choice_parser("none", "compact", "summarize"),
            "how a long system prompt is shortened: none, compact (by rules) or summarize",
            "Models"),
    Setting("PROMPT_MAX_SYSTEM_TOKENS", "4096", number_parser(1, 10**9),
            "with PROMPT_COMPRESSION: tokens of a system prompt that stays as it is", "Models"),
    Setting("SUBAGENT_MAPPINGS", "", parse_agent_map,
            "comma list of agent:model; requests of these Claude Code agents go there", "Routing"),
    Setting("SUBAGENT_FOLDERS", "", parse_names,
            "folders of agents' files (.claude/agents), by whose text agents are known too",
            "Routing"),
    Setting("BACKGROUND_MODEL", "", parse_text,
            "model for Claude Code's titles, page summaries and counting calls", "Routing"),
    Setting("VISION_MODEL", "", parse_text,
            "model for requests with images, unless they go to the Anthropic API", "Routing"),
    Setting("LONG_CONTEXT_MODEL", "", parse_text,
            "model for requests that do not fit the window of the chosen one", "Routing"),
    Setting("MODEL_WINDOWS", "", parse_windows,
            "comma list of model=tokens, the windows; a model may be a glob", "Routing"),
    Setting("FALLBACK_MODELS", "", parse_names,
            "models, or upstream:model, tried in order when the chosen one fails", "Routing"),
    Setting("FALLBACK_TIMEOUT", "0", seconds_parser(low=0),
            "seconds for a first byte before the next is tried; 0 waits as long as ever",
            "Routing"),
    Setting("KEY_COOLDOWN", "60", seconds_parser(),
            "seconds that one of several keys rests after a 429 or 529 without retry-after",
            "Routing"),
    Setting("PHI_GUARD", "off", choice_parser("off", "audit", "block"),
            "identifiers of patients in requests: audit counts them in the log, block refuses",
            "PHI guard"),
    Setting("PHI_CATEGORIES", "", choices_parser(*PHI_CATEGORY_NAMES),
            "what is looked for (a wrong name lists all); unset, all but any_email and ip",
            "PHI guard"),
    Setting("PHI_ALLOWED_DOMAINS", "", parse_names,
            "domains, with those below them, whose e-mail addresses do not count", "PHI guard"),
    Setting("PHI_MRN_PATTERN", "", parse_plain_pattern,
            "record numbers of this hospital, counted anywhere: such as SH-\\d{8}", "PHI guard"),
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
