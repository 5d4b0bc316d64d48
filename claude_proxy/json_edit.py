"""Change a value in a JSON object, or cut an item out, and not one byte of anything else. Pure.

A body that is only passed on is never decoded and encoded again: floats, huge integers, duplicate
keys, escapes and blanks would not survive it. The values are skipped by the standard library's
scanner, so an edit costs about as much as reading the JSON once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from json.decoder import scanstring
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

from claude_proxy.patterns import LazyPattern

JSON_BLANKS = LazyPattern(r"[ \t\r\n]*")


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


class Item(NamedTuple):
    """An item of an array: what it says, and where it begins and ends."""

    value: Any
    start: int
    end: int


class Edit(NamedTuple):
    """Another text for what stands between two positions."""

    start: int
    end: int
    text: str


def edited(text: str, edits: Iterable[Edit]) -> str:
    """The text with edits that do not overlap."""
    parts: List[str] = []
    position = 0
    for edit in sorted(edits):
        parts += [text[position : edit.start], edit.text]
        position = edit.end
    return "".join([*parts, text[position:]])


def member_edits(text: str, values: Mapping[str, Any]) -> List[Edit]:
    """What gives these names these values; one that is missing is put in front.

    A name that is there several times is changed everywhere: readers differ in which one counts.
    """
    opening, members = object_members(text)
    texts = {name: json.dumps(value) for name, value in values.items()}
    edits = [Edit(m.start, m.end, texts[m.name]) for m in members if m.name in texts]
    found = {member.name for member in members}
    missing = [f"{json.dumps(n)}: {value}" for n, value in texts.items() if n not in found]
    if missing:
        comma = ", " if members else ""
        edits.append(Edit(opening, opening, ", ".join(missing) + comma))
    return edits


def cut_items(text: str, start: int, unwanted: Callable[[Any], bool], stand_in: str) -> List[Edit]:
    """What takes the unwanted items out of the array at `start`; `stand_in` if none is left."""
    items = array_items(text, start)
    kept = [number for number, item in enumerate(items) if not unwanted(item.value)]
    if len(kept) == len(items):
        return []
    if not kept:
        return [Edit(items[0].start, items[-1].end, stand_in)]
    # With the comma behind it, but the last ones with the comma in front of them.
    cut = sorted(set(range(kept[-1])).difference(kept))
    last = [Edit(items[kept[-1]].end, items[-1].end, "")] if kept[-1] < len(items) - 1 else []
    return [*(Edit(items[n].start, items[n + 1].start, "") for n in cut), *last]


def array_items(text: str, start: int) -> List[Item]:
    """The items of the array at this position, in order; none where there is no array."""
    if text[start : start + 1] != "[":
        return []
    items: List[Item] = []
    at = skip_blanks(text, start + 1)
    while text[at : at + 1] != "]":
        at = skip_blanks(text, skip_mark(text, at, ",")) if items else at
        value, end = ROUTING_DECODER.raw_decode(text, at)
        items.append(Item(value, at, end))
        at = skip_blanks(text, end)
    return items


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


# A member that is no object and no array, and whose text has no escapes.
PLAIN_MEMBER = (
    rb'[ \t\r\n]*"[A-Za-z_]+"[ \t\r\n]*:[ \t\r\n]*'
    rb'(?:"[^"\\\x00-\x1f]*"|true|false|null|-?[0-9]{1,15})[ \t\r\n]*'
)
FIRST_MEMBERS = LazyPattern(rb"[ \t\r\n]*\{(?:" + PLAIN_MEMBER + rb",)*")
LAST_MEMBERS = LazyPattern(rb"(?:," + PLAIN_MEMBER + rb")+\}[ \t\r\n]*\Z")
OUTER_BYTES = 512


def outer_members(body: bytes) -> Dict[str, Any]:
    """The plain members at a JSON object's beginning and at its end, without reading the middle.

    Both are exact for a body that is a JSON object. From its beginning that is plain. At its end,
    a comma with a letter's name in quotes behind it is never within a text: there the first quote
    would be the text's end, and no letter can follow that; and as only plain values stand between
    it and the last brace, it is the outermost object's.
    """
    first = FIRST_MEMBERS.match(body, 0, OUTER_BYTES)
    begun = first.end() - 1 if first else 0
    last = LAST_MEMBERS.search(body, max(len(body) - OUTER_BYTES, begun))
    parts = [match.group().strip()[1:-1] for match in (first, last) if match]
    try:
        return json.loads(b"{%s}" % b",".join(filter(None, parts)))
    except ValueError:
        return {}


class UnreadMembers(Mapping[str, Any]):
    """The members of a JSON object of which some are known; it is read when others are asked for.

    What is no JSON object has none but these.
    """

    def __init__(self, known: Mapping[str, Any], body: bytes) -> None:
        self._known = known
        self._body = body
        self._all: Optional[Mapping[str, Any]] = None

    def _read(self) -> Mapping[str, Any]:
        if self._all is None:
            self._all = read_members(self._body) or self._known
        return self._all

    def __getitem__(self, name: str) -> Any:
        return self._known[name] if name in self._known else self._read()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())

    def __bool__(self) -> bool:
        return bool(self._known) or bool(self._read())


def short_int(digits: str) -> Any:
    return int(digits) if len(digits) < 100 else digits


ROUTING_DECODER = json.JSONDecoder(parse_int=short_int)
