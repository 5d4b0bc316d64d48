r"""Reads .env text by the rules of docker compose.

    entry  = [ "export" ] NAME ( "=" | ":" ) value [ comment ]
    value  = 'literal, over lines, \' for a quote' | "escapes and references, over lines"
           | text with references up to the end of the line or a blank and #
    reference = $NAME | ${NAME} | ${NAME op word}     op = :- - :+ + :? ?     $$ is a dollar

A reference looks into the environment first, then at the lines above; a word may hold references.
A dollar before anything else stands for itself. Errors carry a line number and never the text.
Used by the command line; touches no file. Time grows with the length of the text.
"""

from __future__ import annotations

import re
from collections import ChainMap
from collections.abc import Mapping
from re import Match
from typing import Dict, List, Optional, Tuple

from claude_proxy.patterns import LazyPattern

DOTENV_BLANK = LazyPattern(r"[ \t\r]*(?:#[^\n]*)?(?:\n|\Z)")
DOTENV_HEAD = LazyPattern(r"[ \t]*(?:export[ \t]+)?([A-Za-z_][A-Za-z0-9_.]*)[ \t]*[=:][ \t]*")
DOTENV_SINGLE = LazyPattern(r"'((?:[^'\\]|\\.)*)'", re.DOTALL)
DOTENV_DOUBLE = LazyPattern(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
DOTENV_COMMENT = LazyPattern(r"[ \t]#")
# Each alternative begins with its own characters, so nothing is tried twice for long.
DOTENV_REFERENCE = LazyPattern(
    r"(?P<dollar>\$\$)|\$(?P<name>[A-Za-z_][A-Za-z0-9_]*)"
    r"|\$\{(?P<braced>[A-Za-z_][A-Za-z0-9_]*)(?P<operator>\}|:?[-+?])|(?P<open>\$\{)|(?P<close>\})"
)
DOTENV_ESCAPED = LazyPattern(r"\\(?P<escape>.)|" + DOTENV_REFERENCE.pattern, re.DOTALL)
DOTENV_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", '"': '"', "$": "$"}


class DotenvError(Exception):
    """Text that is no .env; says the line and what was expected, never what stands there."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(f"line {line}: {reason}")
        self.line = line


def parse_dotenv(text: str, environ: Mapping[str, str]) -> Dict[str, str]:
    """The variables that `text` sets; `environ` serves its references only. Raises DotenvError."""
    text = text.lstrip("\ufeff").replace("\r\n", "\n")
    values: Dict[str, str] = {}
    known = ChainMap(dict(environ), values)
    at, line = 0, 1
    while at < len(text):
        name, value, end = take_entry(text, at, line, known)
        if name:
            values[name] = value
        line += text.count("\n", at, end)
        at = end
    return values


def take_entry(text: str, at: int, line: int, known: Mapping[str, str]) -> Tuple[str, str, int]:
    """(name, value, position after the line) of the entry at `at`; name "" if there is none."""
    blank = DOTENV_BLANK.match(text, at)
    if blank:
        return "", "", blank.end()
    head = DOTENV_HEAD.match(text, at)
    if not head:
        raise DotenvError(line, "expected NAME=value, or # before a comment")
    value, end = take_value(text, head.end(), line, known)
    rest = DOTENV_BLANK.match(text, end)
    if not rest:
        line += text.count("\n", at, end)
        raise DotenvError(line, "unexpected text after the closing quote")
    return head.group(1), value, rest.end()


def take_value(text: str, at: int, line: int, known: Mapping[str, str]) -> Tuple[str, int]:
    """(value, position after it)."""
    quote = text[at:at + 1]
    if quote not in ("'", '"'):
        end = text.find("\n", at)
        end = len(text) if end < 0 else end
        # One character more, so that a blank right after the = can begin a comment.
        raw = DOTENV_COMMENT.split(text[at - 1:end], maxsplit=1)[0][1:]
        return expand_dotenv(raw.strip(), DOTENV_REFERENCE, line, known), end
    quoted = (DOTENV_SINGLE if quote == "'" else DOTENV_DOUBLE).match(text, at)
    if not quoted:
        raise DotenvError(line, "the quote that opens here is not closed")
    if quote == "'":
        return quoted.group(1).replace("\\'", "'"), quoted.end()
    return expand_dotenv(quoted.group(1), DOTENV_ESCAPED, line, known), quoted.end()


class OpenReference:
    """A ${NAME op whose word is being read. `lacking`: the word needs a variable that is unset."""

    def __init__(self, name: str, operator: str) -> None:
        self.name = name
        self.operator = operator
        self.pieces: List[str] = []
        self.lacking = False


def expand_dotenv(text: str, pattern: re.Pattern, line: int, known: Mapping[str, str]) -> str:
    """`text` with escapes and references replaced; open references are kept on a stack."""
    stack = [OpenReference("", "")]
    at = 0
    for match in pattern.finditer(text):
        stack[-1].pieces.append(text[at:match.start()])
        at = match.end()
        if match.group("open"):
            raise DotenvError(line, "expected ${NAME} or ${NAME:-word}; a $ as such is written $$")
        if match.group("braced") and match.group("operator") != "}":
            stack.append(OpenReference(match.group("braced"), match.group("operator")))
        elif match.group("close") and len(stack) > 1:
            close_reference(stack.pop(), stack[-1], known)
        else:
            stack[-1].pieces.append(plain_replacement(match, known))
    if len(stack) > 1:
        raise DotenvError(line, "a ${ is not closed")
    if stack[0].lacking:
        raise DotenvError(line, "a variable that is required here is not set")
    return "".join([*stack[0].pieces, text[at:]])


def plain_replacement(match: Match[str], known: Mapping[str, str]) -> str:
    found = match.groupdict()
    if found["dollar"]:
        return "$"
    if found.get("escape"):
        return DOTENV_ESCAPES.get(found["escape"], match.group())
    name = found["name"] or found["braced"]
    return known.get(name, "") if name else match.group()


def close_reference(done: OpenReference, outer: OpenReference, known: Mapping[str, str]) -> None:
    """Append what a ${NAME op word} stands for to the reference around it."""
    value: Optional[str] = known.get(done.name)
    if done.operator.startswith(":"):
        value = value or None
    kind = done.operator[-1]
    if kind == "?":
        outer.lacking = outer.lacking or value is None
        outer.pieces.append(value or "")
    elif (kind == "+") == (value is not None):
        outer.lacking = outer.lacking or done.lacking
        outer.pieces.append("".join(done.pieces))
    else:
        outer.pieces.append(value or "")
