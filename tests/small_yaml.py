"""As much YAML as the project's own files are written in: maps, lists, plain and quoted scalars, [].

Whatever else a document has is refused, so that a test never reads it as something that it is not.
"""

from __future__ import annotations

import re
from typing import Any, List, NamedTuple

ENTRY = re.compile(r"([A-Za-z0-9_./-]+):(?: (.*))?")
SCALARS = {"true": True, "false": False, "[]": []}


class Line(NamedTuple):
    indent: int
    text: str


def read_yaml(text: str) -> List[Any]:
    """The documents of a file; ValueError for what is not written in this way."""
    return [read_document(part) for part in re.split(r"^---$", text, flags=re.MULTILINE)]


def read_document(text: str) -> Any:
    lines: List[Line] = []
    for raw in text.split("\n"):
        row = re.sub(r"(^| +)#.*", "", raw).rstrip()
        # The first key of a list's item stands behind its dash: as a line of its own it is deeper by two.
        while row.lstrip().startswith("- "):
            indent = len(row) - len(row.lstrip())
            lines.append(Line(indent, "-"))
            row = " " * (indent + 2) + row.lstrip()[2:]
        if row:
            lines.append(Line(len(row) - len(row.lstrip()), row.lstrip()))
    value = take_block(lines)
    if lines:
        raise ValueError(f"not read: {lines[0].text}")
    return value


def take_block(lines: List[Line]) -> Any:
    """The value that begins at the first line, which is taken away with all that belongs to it."""
    first = lines[0]
    if first.text == "-":
        items = []
        while lines and lines[0] == Line(first.indent, "-"):
            lines.pop(0)
            items.append(take_block(lines))
        return items
    if not ENTRY.fullmatch(first.text):
        return scalar(lines.pop(0).text)
    found = {}
    while lines and lines[0].indent == first.indent and lines[0].text != "-":
        match = ENTRY.fullmatch(lines.pop(0).text)
        if not match or match[1] in found:
            raise ValueError(f"no entry, or one twice: {match and match[1]}")
        deeper = lines and lines[0].indent > first.indent
        found[match[1]] = scalar(match[2]) if match[2] else take_block(lines) if deeper else None
    return found


def scalar(text: str) -> Any:
    if text in SCALARS:
        return SCALARS[text]
    if re.fullmatch(r'"[^"\\]*"', text):
        return text[1:-1]
    if re.fullmatch("0[0-7]+", text):
        return int(text, 8)
    if re.fullmatch("[0-9]+", text):
        return int(text)
    # What other readers take for a number, a truth or nothing has to stand in quotes.
    odd = re.fullmatch(r"[0-9.:_-]*[0-9][0-9.:_-]*|[0-9.]+e[0-9]+|(?i:y|n|yes|no|on|off|true|false|null)", text)
    if re.fullmatch(r"[A-Za-z0-9./][A-Za-z0-9 ./:_-]*", text) and ": " not in text and not odd:
        return text
    raise ValueError(f"a scalar of another kind: {text}")
