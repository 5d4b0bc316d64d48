"""Settings as a JSON file, for what is awkward in variables: maps, lists, nested sections. Pure.

    {"server": {"port": 9000}, "models": {"claude-haiku-*": "gpt-4o-mini"}, "MAX_RETRIES": 2}

Any setting may stand under its own name, in either case; sections are named in `SECTION_NAMES`.
What comes out is what the variables would be, so that one set of parsers judges both.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Callable, Dict, List, Tuple

from claude_proxy.config import CUSTOM_HEADER_PREFIX, ConfigError
from claude_proxy.settings import SETTINGS

# Path in the file -> setting.
SECTION_NAMES: Dict[str, str] = {
    "server.host": "LISTEN_HOST",
    "server.port": "LISTEN_PORT",
    "server.max_connections": "MAX_CONNECTIONS",
    "default_model": "DEFAULT_MODEL",
    "max_tokens": "MAX_TOKENS_LIMIT",
    "timeout": "REQUEST_TIMEOUT",
    "logging.level": "LOG_LEVEL",
    "logging.format": "LOG_FORMAT",
    "models": "MODEL_MAP",
    "windows": "MODEL_WINDOWS",
    "agents": "SUBAGENT_MAPPINGS",
    "fallback": "FALLBACK_MODELS",
}
# Settings whose value is a map -> what stands between a name and its value.
MAP_MARKS = {"MODEL_MAP": "=", "MODEL_WINDOWS": "=", "SUBAGENT_MAPPINGS": ":"}
HEADERS_SECTION = "headers"


def read_settings_file(text: str) -> Dict[str, str]:
    """The settings in a JSON text, each as its variable would have it; ConfigError with every
    problem, naming places and never values."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        where = f" at line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise ConfigError([f"CONFIG_FILE: not JSON{where}"]) from None
    if not isinstance(data, dict):
        raise ConfigError(["CONFIG_FILE: must hold a JSON object"])
    found: Dict[str, str] = {}
    problems: List[str] = []
    for place, name, value in file_settings(data, ""):
        try:
            found[name or setting_at(place)] = value_text(name or setting_at(place), value)
        except ValueError as error:
            problems.append(f"CONFIG_FILE: {place}: {error}")
    if problems:
        raise ConfigError(problems)
    return found


def file_settings(data: Mapping[str, Any], prefix: str) -> Iterator[Tuple[str, str, Any]]:
    """(place, name or "", value) of each value; a section is one that no setting is named like."""
    for key, value in data.items():
        place = f"{prefix}{key}"
        if place == HEADERS_SECTION and isinstance(value, dict):
            for header, text in value.items():
                name = CUSTOM_HEADER_PREFIX + str(header).upper().replace("-", "_")
                yield f"{place}.{header}", name, text
        elif isinstance(value, dict) and not is_setting(place):
            yield from file_settings(value, f"{place}.")
        else:
            yield place, "", value


def is_setting(place: str) -> bool:
    try:
        setting_at(place)
    except ValueError:
        return False
    return True


def setting_at(place: str) -> str:
    """The setting that a place in the file means."""
    own = {name: s.name for s in SETTINGS for name in (s.name, *s.aliases)}
    name = SECTION_NAMES.get(place) or own.get(place.upper())
    if name is None:
        raise ValueError("is no setting of this version")
    return name


def value_text(name: str, value: Any) -> str:
    """A JSON value as the variable would have it."""
    if isinstance(value, dict) and name in MAP_MARKS:
        return ",".join(f"{key}{MAP_MARKS[name]}{scalar_text(one)}" for key, one in value.items())
    if isinstance(value, list):
        return ",".join(scalar_text(one) for one in value)
    return scalar_text(value)


SCALARS: Tuple[Tuple[type, Callable[[Any], str]], ...] = (
    (bool, lambda value: "true" if value else "false"), (int, str), (float, str), (str, str),
)  # fmt: skip


def scalar_text(value: Any) -> str:
    if value is None:
        return ""
    text = next((make(value) for kind, make in SCALARS if isinstance(value, kind)), None)
    if text is None:
        raise ValueError("must be a text, a number, true, false, or a list of these")
    return text
