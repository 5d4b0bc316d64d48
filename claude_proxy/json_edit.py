"""Change a value at the top level of a JSON object, and not one byte of anything else. Pure.

A body that is only passed on is never decoded and encoded again: floats, huge integers, duplicate
keys, escapes and blanks would not survive it. The values are skipped by the standard library's
scanner, so an edit costs about as much as reading the JSON once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from json.decoder import scanstring
from typing import Any, List, NamedTuple, Optional, Tuple

JSON_BLANKS = re.compile(r"[ \t\r\n]*")


def number_as_text(digits: str) -> str:
    return digits


# Values are only skipped: a number of any length must not be read, nor NaN be refused here.
SKIPPING_DECODER = json.JSONDecoder(
    parse_int=number_as_text, parse_float=number_as_text, parse_constant=number_as_text
)


class Member(NamedTuple):
    """A member of the object: its name, and where its value begins and ends."""

    name: str
    start: int
    end: int


def replace_members(body: bytes, values: Mapping[str, Any]) -> bytes:
    """The body with these values for these names; one that is missing is put in front.

    A name that is there several times is changed everywhere: readers differ in which one counts.
    ValueError if the body is no JSON object.
    """
    text = body.decode("utf-8")
    opening, members = object_members(text)
    texts = {name: json.dumps(value) for name, value in values.items()}
    parts: List[str] = []
    position = 0
    for member in members:
        if member.name in texts:
            parts += [text[position : member.start], texts[member.name]]
            position = member.end
    changed = "".join([*parts, text[position:]])
    found = {member.name for member in members}
    missing = [f"{json.dumps(n)}: {value}" for n, value in texts.items() if n not in found]
    if missing:
        comma = ", " if members else ""
        changed = changed[:opening] + ", ".join(missing) + comma + changed[opening:]
    return changed.encode("utf-8")


def object_members(text: str) -> Tuple[int, List[Member]]:
    """(position behind the opening brace, the object's members in order)."""
    opening = skip_mark(text, len(text) - len(text.lstrip("\ufeff")), "{")
    members = list(iter_members(text, opening))
    return opening, members


def iter_members(text: str, position: int) -> Iterator[Member]:
    at = skip_blanks(text, position)
    if text[at : at + 1] == "}":
        return
    while True:
        at = skip_mark(text, at, '"')
        name, at = scanstring(text, at, True)
        start = skip_blanks(text, skip_mark(text, at, ":"))
        _, end = SKIPPING_DECODER.raw_decode(text, start)
        yield Member(name, start, end)
        at = skip_blanks(text, end)
        if text[at : at + 1] == "}":
            return
        at = skip_mark(text, at, ",")


def skip_blanks(text: str, position: int) -> int:
    match = JSON_BLANKS.match(text, position)
    return match.end() if match else position


def skip_mark(text: str, position: int, mark: str) -> int:
    """The position behind a mark that has to come next."""
    at = skip_blanks(text, position)
    if text[at : at + 1] != mark:
        raise ValueError(f"no {mark} at {at}")
    return at + 1


def read_members(body: bytes) -> Optional[Any]:
    """What routing has to know of a body that may be odd; None if it is no JSON object.

    Numbers that are too long to be read are left as text.
    """
    try:
        value = ROUTING_DECODER.decode(body.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def short_int(digits: str) -> Any:
    return int(digits) if len(digits) < 100 else digits


ROUTING_DECODER = json.JSONDecoder(parse_int=short_int)
