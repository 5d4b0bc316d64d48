"""What of a name that somebody else has chosen may stand in a log. Pure.

A path, a method, a model, an error's type: whoever sends them can put anything there, a key or what
a patient said. So they are told as they are only if they look like what programs call things; the
rest becomes a mark. Of a model any name is told, but no sentence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Dict

HTTP_METHODS = frozenset(
    ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE")
)
UNTOLD = "*"
# Keys have digits or capitals, people's words have blanks.
PLAIN_WORD = r"[a-z]{1,24}(?:[_.-][a-z]{1,24}){0,5}(?:_20[0-9]{6})?"
PATH_STEP = rf"{PLAIN_WORD}|v[0-9]{{1,2}}|"
MODEL_NAME = r"[A-Za-z0-9._:/\[\]@+-]*"
BETA_NAME = r"(?:[a-z0-9]{1,20}-){1,8}20[0-9]{2}(?:-?[0-9]{2}-?[0-9]{2})?|[a-z]-20[0-9]{2}"
QUERY_PAIR = rf"(?:{PLAIN_WORD})(?:=(?:{PLAIN_WORD}|[0-9]{{1,4}}))?"
LONGEST_MODEL_TOLD = 200
LONGEST_BETAS = 500
LONGEST_QUERY = 200


def plain_word(value: Any) -> str:
    """The value if it is such a word as programs have for things (end_turn), else ""."""
    return value if isinstance(value, str) and re.fullmatch(PLAIN_WORD, value) else ""


def logged_method(method: str) -> str:
    return method if method in HTTP_METHODS else UNTOLD


@lru_cache(maxsize=64)
def logged_path(path: str, untold: str = UNTOLD) -> str:
    """The path with a mark for each step that may be an identifier, a key or a text."""
    steps = path[:LONGEST_QUERY].split("/")
    return "/".join(step if re.fullmatch(PATH_STEP, step) else untold for step in steps)


@lru_cache(maxsize=64)
def logged_model(name: str) -> str:
    name = name[:LONGEST_MODEL_TOLD]
    return name if re.fullmatch(MODEL_NAME, name) else UNTOLD


def logged_models(facts: Mapping[str, Any]) -> Dict[str, str]:
    """The models among an exchange's facts, as they may be told."""
    told = {}
    for name in ("model", "upstream_model"):
        if facts.get(name):
            told[name] = logged_model(str(facts[name]))
    return told


@lru_cache(maxsize=64)
def logged_betas(value: str) -> str:
    """The names in an anthropic-beta header; all of them end with a date."""
    return logged_parts(value, ",", BETA_NAME)[:LONGEST_BETAS]


def logged_query(query: str) -> str:
    return logged_parts(query, "&", QUERY_PAIR)[:LONGEST_QUERY]


def logged_parts(text: str, mark: str, pattern: str) -> str:
    parts = [part.strip() for part in text[:4096].split(mark)]
    return mark.join(part if re.fullmatch(pattern, part) else UNTOLD for part in parts)


def told_variable(name: str) -> str:
    """The name of a variable in a .env; a key's second line may look like one."""
    cased = name in (name.upper(), name.lower())
    plain = cased and all(len(part) <= 16 for part in name.split("_")) and len(name) <= 64
    return name if plain else f"a name of {len(name)} characters"
