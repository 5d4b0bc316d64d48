"""A guard that looks for identifiers of patients in what is asked, and changes nothing.

`audit` counts them for the log, `block` refuses the request. Only categories and counts are ever
told. Every text of a request is looked at: the system prompt, messages, what tools were given and
gave back, documents of text, unknown blocks. Not looked at: the definitions of tools, which are
the client's own; images and PDFs; what the API has signed or encrypted. Pure.

A conversation comes again with every turn, so the counts of a text are kept under its keyed hash.
"""

from __future__ import annotations

import functools
import hashlib
import re
import secrets
import threading
from collections import OrderedDict
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Set, Tuple

from claude_proxy.config import PHI_CATEGORY_NAMES, PHI_USUAL
from claude_proxy.errors import NO_RETRY, ProxyError
from claude_proxy.events import Request
from claude_proxy.exchange import Exchange
from claude_proxy.patterns import LazyPattern
from claude_proxy.phi_rules import (
    BEFORE_DELIMITER,
    COLUMN_NAMES,
    COLUMN_VALUES,
    EMAIL_AT,
    EMAIL_DOMAIN,
    EMAIL_LOCAL_REVERSED,
    FARTHEST_WORD,
    FHIR_NAME,
    FIVE_DIGITS,
    FREE_CODE,
    FREE_CODES,
    FREE_NUMBER,
    FREE_NUMBERS,
    IPV4,
    NEAR_RULES,
    NOBODYS_DOMAIN,
    NUMBER_START,
    PID_FIELDS,
    RECORD_WORDS,
    ROLE_NAMES,
    SEGMENT_END,
    STATE_ZIP,
    STATES,
    STREET,
    TABLE_WORDS,
    TELLING_COLUMNS,
    FreeShapes,
    NearRule,
)
from claude_proxy.settings import Config

# --- the texts of a request --------------------------------------------------------------------

# Members of a request that hold nobody's text, and members of a block that only machines read.
PHI_SKIPPED_MEMBERS = frozenset(("tools", "model", "metadata", "mcp_servers", "container"))
PHI_SKIPPED_KEYS = frozenset(("signature", "encrypted_content", "encrypted_index"))
PHI_UNREADABLE = frozenset(("base64", "redacted_thinking"))
# A short value is looked at with its name, for {"mrn": "..."} says what the number is.
PHI_UNNAMED = frozenset(("text", "content", "thinking", "data", "type", "role", "source"))
PHI_LONGEST_NAMED = 120
PHI_SMALLEST_NUMBER = 10_000


def phi_texts(request: Request) -> Iterator[str]:
    """Every text to look at. Without recursion: a client decides how deep its JSON is."""
    top = {key: value for key, value in request.items() if key not in PHI_SKIPPED_MEMBERS}
    stack: List[Tuple[str, Any]] = [("", top)]
    while stack:
        key, value = stack.pop()
        if isinstance(value, str):
            yield named_text(key, value)
        elif isinstance(value, dict):
            stack += readable_members(value)
        elif isinstance(value, list):
            stack += [(key, item) for item in value]
        elif isinstance(value, int) and value >= PHI_SMALLEST_NUMBER and key:
            yield f"{key}: {value}"


def named_text(key: str, text: str) -> str:
    """The text, behind its name where that may say what it is."""
    plain = key in PHI_UNNAMED or not key or len(text) > PHI_LONGEST_NAMED
    return text if plain else f"{key}: {text}"


def readable_members(block: Dict[str, Any]) -> Iterator[Tuple[str, Any]]:
    kind = block.get("type")
    sealed = isinstance(kind, str) and kind in PHI_UNREADABLE
    for key, value in block.items():
        if key not in PHI_SKIPPED_KEYS and not (sealed and key == "data"):
            yield key, value


# --- looking -----------------------------------------------------------------------------------

PhiFound = Dict[str, Set[int]]  # category -> where values end, so that none counts twice
PhiCounts = Dict[str, int]

# Letters of other alphabets stay; blanks and hyphens that word processors make become plain ones.
# A backslash and a letter, as JSON within a text has it, must not look like a part of a word.
PHI_PLAIN = (
    (b"\xc2\xa0", b" "), (b"\xe2\x80\xaf", b" "), (b"\xe2\x80\x90", b"-"), (b"\xe2\x80\x91", b"-"),
    (b"\xe2\x80\x92", b"-"), (b"\xe2\x80\x93", b"-"), (b"\xe2\x88\x92", b"-"),
    (b"\xe2\x80\x99", b"'"),
)  # fmt: skip
PHI_ESCAPES = ((b"\\n", b" \n"), (b"\\r", b" \r"), (b"\\t", b" \t"), (b'\\"', b' "'))


class PhiText(NamedTuple):
    """A text as the rules see it: as it is, and in lower case, of the same length."""

    data: bytes
    low: bytes


def phi_text(text: str) -> PhiText:
    data = text.encode("utf-8", "surrogatepass")
    if not text.isascii():
        for mark, plain in PHI_PLAIN:
            data = data.replace(mark, plain)
    if b"\\" in data:
        for mark, plain in PHI_ESCAPES:
            data = data.replace(mark, plain)
    return PhiText(data, data.lower())


def find_numbers(text: PhiText, found: PhiFound) -> None:
    end = 0
    for start in NUMBER_START.finditer(text.data):
        match = FREE_NUMBER.match(text.data, start.start()) if start.start() >= end else None
        if match and note_shape(match, FREE_NUMBERS, found):
            end = match.end()


def find_codes(text: PhiText, found: PhiFound) -> None:
    for match in FREE_CODE.finditer(text.data):
        note_shape(match, FREE_CODES, found)


def note_shape(match: Any, shapes: FreeShapes, found: PhiFound) -> bool:
    """Note the first category that the match can be."""
    for category, check in shapes[match.lastgroup]:
        if check(match.group()):
            found.setdefault(category, set()).add(match.end())
            return True
    return False


def find_near(text: PhiText, found: PhiFound, rules: Tuple[NearRule, ...]) -> None:
    """Numbers behind their words; all but dates are looked for only around digits."""
    spans, whole = digit_spans(text.data), [(0, len(text.data))]
    for rule in rules:
        for start, end in whole if rule.category in ("name", "dob") else spans:
            note_near(text, found, rule, start, end)


def digit_spans(data: bytes) -> List[Tuple[int, int]]:
    """Where words with a number behind them can be, apart from each other."""
    spans: List[Tuple[int, int]] = []
    for match in FIVE_DIGITS.finditer(data):
        start, end = max(0, match.start() - FARTHEST_WORD), match.end()
        if spans and start <= spans[-1][1]:
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((start, end))
    return spans


# Compiled at the first use: without a guard nobody needs it.
near_pattern = functools.lru_cache(maxsize=1024)(re.compile)


def note_near(text: PhiText, found: PhiFound, rule: NearRule, start: int, end: int) -> None:
    find, stem = text.low.find, rule.stem
    at = find(stem, start, end)
    while at >= 0:
        match = near_pattern(rule.pattern).match(text.data, at)
        if match and rule.check(match.group("value")):
            found.setdefault(rule.category, set()).add(match.end("value"))
        at = find(stem, at + len(stem), end)


def find_fhir_names(text: PhiText, found: PhiFound) -> None:
    if b'"family"' in text.low and b'"given"' in text.low:
        starts = {match.start() for match in FHIR_NAME.finditer(text.data)}
        if starts:
            found.setdefault("name", set()).update(starts)


def find_addresses(text: PhiText, found: PhiFound) -> None:
    """A street, with a state and its ZIP close behind; or a ZIP+4 behind a state."""
    data, done = text.data, 0
    for match in STATE_ZIP.finditer(data):
        if match.group()[:2] not in STATES:
            continue
        street = STREET.search(data, max(done, match.start() - 90), match.start())
        done = match.end()
        category = "address" if street else "zip"
        if street or match.group()[-5:-4] == b"-":
            found.setdefault(category, set()).add(done)


def find_pid_segments(text: PhiText, found: PhiFound) -> None:
    """The fields of HL7's segment that says who the patient is."""
    data, at = text.data, text.data.find(b"PID|")
    while at >= 0:
        end = segment_end(data, at)
        fields = data[at:end].split(b"|", 31)
        for number, category, pattern in PID_FIELDS if len(fields) > 3 else ():
            if number < len(fields) and pattern.match(fields[number]):
                stop = at + sum(map(len, fields[: number + 1])) + number
                found.setdefault(category, set()).add(stop)
        at = data.find(b"PID|", end)


def segment_end(data: bytes, start: int) -> int:
    """Segments end with a carriage return; where they are printed, with any line end."""
    match = SEGMENT_END.search(data, start)
    return match.end() if match else len(data)


def find_emails(text: PhiText, found: PhiFound, allowed: Tuple[bytes, ...], every: bool) -> None:
    low = text.low
    for mark in EMAIL_AT.finditer(low) if b"@" in low else ():
        domain = EMAIL_DOMAIN.match(low, mark.end())
        at = mark.start()
        local = EMAIL_LOCAL_REVERSED.match(low[max(0, at - 64) : at][::-1]) if domain else None
        if domain and local and is_persons(local.group()[::-1], domain.group(), allowed):
            if every:
                found.setdefault("any_email", set()).add(domain.end())
            if in_record(low, at - local.end(), domain.end()):
                found.setdefault("email", set()).add(domain.end())


def is_persons(local: bytes, domain: bytes, allowed: Tuple[bytes, ...]) -> bool:
    known = any(domain == name or domain.endswith(b"." + name) for name in allowed)
    return not known and local not in ROLE_NAMES and not NOBODYS_DOMAIN.fullmatch(domain)


def in_record(low: bytes, start: int, end: int) -> bool:
    """Whether words of a patient's record stand around."""
    return bool(RECORD_WORDS.search(low, max(0, start - 160), end + 80))


def find_hosts(text: PhiText, found: PhiFound) -> None:
    for match in IPV4.finditer(text.data):
        if all(int(part) < 256 for part in match.group().split(b".")):
            found.setdefault("ip", set()).add(match.end())


# --- tables with a head ------------------------------------------------------------------------

LINE_NUMBER = LazyPattern(rb" *[0-9]{1,7}(?:\t|\xe2\x86\x92)")
LONGEST_TABLE_LINE = 4000
DELIMITERS_BEFORE = (b",", b"\t", b"|", b";", b'"', b" ")


class TableHead(NamedTuple):
    delimiter: bytes
    numbered: bool  # each line begins with its number, as a tool shows a file
    columns: Tuple[Tuple[int, str], ...]


def find_columns(text: PhiText, found: PhiFound) -> None:
    """Values below a head that names them. Each line is read once, as a head or as a row."""
    low, done = text.low, 0
    for at in sorted(at for word in TABLE_WORDS for at in head_places(low, word)):
        if at < done:
            continue
        start, done = low.rfind(b"\n", 0, at) + 1, row_end(low, at)
        head = table_head(low[start:done]) if done - start <= LONGEST_TABLE_LINE else None
        while head and done < len(low):
            start, done = done + 1, row_end(low, done + 1)
            if not note_row(text.data[start:done], start, head, found):
                break


def head_places(low: bytes, word: bytes) -> Iterator[int]:
    """Where the word stands beside a delimiter."""
    at = low.find(word)
    while at >= 0:
        if low[at - 1 : at] in DELIMITERS_BEFORE or BEFORE_DELIMITER.match(low, at):
            yield at
        at = low.find(word, at + len(word))


def row_end(data: bytes, start: int) -> int:
    end = data.find(b"\n", start)
    return end if end >= 0 else len(data)


def table_head(line: bytes) -> Optional[TableHead]:
    """The columns that hold identifiers, if there are two, or one that needs no other."""
    number = LINE_NUMBER.match(line)
    line = line[number.end() :] if number else line
    for delimiter in (b",", b"\t", b"|", b";"):
        if delimiter not in line:
            continue
        names = [re.sub(rb"[^a-z]", b"", cell) for cell in line.split(delimiter)]
        columns = tuple((at, COLUMN_NAMES[n]) for at, n in enumerate(names) if n in COLUMN_NAMES)
        if len(columns) > 1 or any(category in TELLING_COLUMNS for _, category in columns):
            return TableHead(delimiter, number is not None, columns)
    return None


def note_row(line: bytes, start: int, head: TableHead, found: PhiFound) -> bool:
    """Whether the line is a row of the table; its identifiers are noted."""
    number = LINE_NUMBER.match(line) if head.numbered else None
    at = number.end() if number else 0
    cells = table_cells(line[at:], head.delimiter)
    if len(line) > LONGEST_TABLE_LINE or len(cells) <= head.columns[-1][0]:
        return False
    for column, category in head.columns:
        cell = cells[column].strip()
        pattern, check = COLUMN_VALUES[category]
        if pattern.fullmatch(cell) and check(cell):
            at = max(line.find(cell, at), 0) + len(cell)
            found.setdefault(category, set()).add(start + at)
    return True


def table_cells(line: bytes, delimiter: bytes) -> List[bytes]:
    if b'"' not in line:
        return line.split(delimiter)
    import csv  # for tables with quotes alone

    try:
        text = [line.decode("latin-1")]
        row = next(csv.reader(text, delimiter=delimiter.decode(), skipinitialspace=True), [])
    except csv.Error:
        row = []
    return [cell.encode("latin-1") for cell in row]


# --- the guard ---------------------------------------------------------------------------------

KEPT_LEAVES = 8192
SHORTEST_KEPT_LEAF = 64


class PhiScanner:
    """Counts what one choice of settings looks for; safe to call from any thread."""

    def __init__(
        self, categories: Tuple[str, ...], domains: Tuple[str, ...] = (), mrn_pattern: str = ""
    ) -> None:
        self._wanted = frozenset(categories)
        self._domains = tuple(name.lower().lstrip("@.").encode() for name in domains)
        self._mrn = re.compile(mrn_pattern.encode()) if mrn_pattern else None
        self._rules = tuple(rule for rule in NEAR_RULES if rule.category in self._wanted)
        self._key = secrets.token_bytes(16)
        self._kept: OrderedDict[bytes, PhiCounts] = OrderedDict()
        self._lock = threading.Lock()

    def request_counts(self, request: Request) -> PhiCounts:
        total: PhiCounts = {}
        for text in phi_texts(request):
            for category, count in self.text_counts(text).items():
                total[category] = total.get(category, 0) + count
        return {name: total[name] for name in PHI_CATEGORY_NAMES if name in total}

    def text_counts(self, text: str) -> PhiCounts:
        if len(text) < SHORTEST_KEPT_LEAF:
            return self.scan(text)
        data = text.encode("utf-8", "surrogatepass")
        name = hashlib.sha256(self._key + data).digest()
        with self._lock:
            kept = self._kept.get(name)
            if kept is not None:
                self._kept.move_to_end(name)
                return kept
        counts = self.scan(text)
        with self._lock:
            self._kept[name] = counts
            while len(self._kept) > KEPT_LEAVES:
                self._kept.popitem(last=False)
        return counts

    def scan(self, text: str) -> PhiCounts:
        """What one text holds, looked at anew."""
        seen, found = phi_text(text), {}
        for find in PHI_FINDERS:
            find(seen, found)
        find_near(seen, found, self._rules)
        if self._wanted & {"email", "any_email"}:
            find_emails(seen, found, self._domains, "any_email" in self._wanted)
        if "ip" in self._wanted:
            find_hosts(seen, found)
        if self._mrn:
            ends = {match.end() for match in self._mrn.finditer(seen.data) if match.group()}
            found.setdefault("mrn", set()).update(ends)
        return {name: len(at) for name, at in found.items() if at and name in self._wanted}


PHI_FINDERS: Tuple[Callable[[PhiText, PhiFound], None], ...] = (
    find_numbers, find_codes, find_fhir_names, find_addresses, find_pid_segments, find_columns,
)  # fmt: skip


@lru_cache(maxsize=4)
def phi_scanner(
    categories: Tuple[str, ...], domains: Tuple[str, ...], mrn_pattern: str
) -> PhiScanner:
    """One scanner for each choice, so that what it has counted stays."""
    return PhiScanner(categories, domains, mrn_pattern)


def guard_phi(config: Config, request: Request, exchange: Exchange) -> None:
    """Note identifiers of patients for the log; with PHI_GUARD=block, ProxyError(400) for any."""
    if config.phi_guard == "off":
        return
    if not request and config.phi_guard == "block":
        raise phi_refusal("the body is no JSON object, so it cannot be looked through")
    categories = config.phi_categories or PHI_USUAL
    scanner = phi_scanner(categories, config.phi_allowed_domains, config.phi_mrn_pattern)
    counts = scanner.request_counts(request)
    if not counts:
        return
    exchange.facts["phi"] = ",".join(f"{name}={count}" for name, count in counts.items())
    if config.phi_guard == "block":
        told = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise phi_refusal(
            f"the request seems to hold identifiers of patients ({told}). Nothing was sent. Take "
            "them out, also from earlier turns (rewind, or begin anew), or have PHI_CATEGORIES "
            "changed"
        )


def phi_refusal(reason: str) -> ProxyError:
    return ProxyError(400, f"refused by PHI_GUARD=block: {reason}", headers=[NO_RETRY])
