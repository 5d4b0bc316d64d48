"""One line per happening, as JSON or key=value; and the one gate where secrets are removed.

Callers pass facts (names, numbers, identifiers), never prompt or answer text: no level shows
content.
"""

from __future__ import annotations

import base64
import json
import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, Callable, List, Set, TextIO, Tuple
from urllib.parse import quote, quote_plus

from claude_proxy.patterns import LazyPattern

LOG_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}

# What a credential looks like when somebody else's error text quotes it back to us. A digit (or a
# mask's star) tells it from prose such as "Bearer authentication"; only after a password's label
# does any word count. Identifiers (msg_, req_ and 24 hex, UUIDs) fit none of these. Look-aheads are
# bounded, so that a long text costs no more than its length. What is in a group, a label, stays.
REDACTED = "[redacted]"
SECRET_SHAPES = LazyPattern(
    r"(?i)\b(bearer\s+)(?=[\w.~+/=-]{0,99}[0-9]|[\w.~+/=-]{24})[\w.~+/=-]{6,}"
    r"|\b(basic\s+)(?=[\w+/]{0,99}[0-9=])[\w+/]{10,}=*"
    r"|((?:password|passwd|secret|authorization)\\?[\"']?\s*[:=]\s*\\?[\"']?"
    r"(?:(?:bearer|basic)\s+)?)(?!(?:bearer|basic)\s)[\w.~+/=*-]{6,}"
    r"|((?:api[-_ ]?key(?: provided)?|token)\\?[\"']?\s*[:=]\s*\\?[\"']?)"
    r"(?=[\w.~+/=-]{0,99}[a-z])(?=[\w.~+/=-]{0,99}[0-9*]|[\w.~+/=-]{24})[\w.~+/=*-]{6,}"
    r"|(?<=[?&])((?:key|sig|code)=)[^\s&\"']{6,}"
    r"|(?<=://)[^/\s?#@]{1,999}(?=@)"
    r"|\bsk-(?=[\w.-]{0,99}[0-9*]|[\w.-]{40})[\w*.-]{6,}"
    r"|\b(?:pk|rk|csk|xai|pplx|nvapi)-(?=[\w-]{0,99}[0-9])[\w-]{24,}|\bkey-[0-9a-z]{16,}"
    r"|\b(?:gsk|hf|fw|r8|gh[pousr]|tgp_v1|[sr]k_live|[sr]k_test)_(?=[a-z]{0,99}[0-9])[0-9a-z]{16,}"
    r"|\bgithub_pat_\w{20,}"
    r"|\b(?:AIza|AKIA|eyJ)[\w.-]{16,}"
    r"|\b(?:[0-9a-f]{32,}|[0-9a-z]{72,})\b"
)
# Printable ASCII without blanks, quotes and equals signs.
PLAIN_VALUE = LazyPattern(r"[!#-&(-<>-~]+")
SHORTEST_SECRET = 4
LONGEST_REMEMBERED = 100
# Identifiers that are made here.
OWN_FIELD = "id"
# Shorter ones could be a part of other words.
SHORTEST_ENCODED = 8
SHORTEST_CORE = 10
# What a credential may consist of.
CREDENTIAL_SIGNS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.~+/=*%-"


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """Return `text` without the given secrets and without anything shaped like a credential."""
    # The longest first: another may be a part of it.
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= SHORTEST_SECRET:
            text = text.replace(secret, REDACTED)
    return SECRET_SHAPES.sub(redacted_match, text)


def redacted_match(match: re.Match) -> str:
    return "".join(filter(None, match.groups())) + REDACTED


def shortened(text: str, limit: int) -> str:
    """The text, cut where no credential can be: half of one is known to nobody who looks for it."""
    return text if len(text) <= limit else text[:limit].rstrip(CREDENTIAL_SIGNS) or "..."


def secret_forms(secret: str) -> Iterator[str]:
    """A secret as others may quote it, in lower case: as it is, in a URL, in JSON, in base64 with
    something before it or not, in hexadecimal digits."""
    data = secret.encode("utf-8", "replace")
    yield from (secret, quote(data, safe=""), quote_plus(data), json.dumps(secret)[1:-1])
    yield data.hex()
    for before in range(3):
        shifted = b"." * before + data
        # Whole groups of three bytes; the first characters and others' bytes have no say in these.
        whole = base64.b64encode(shifted[: len(shifted) // 3 * 3]).decode("ascii")
        core = whole[(0, 2, 3)[before] :]
        if len(core) >= SHORTEST_CORE:
            yield from (core, core.translate({43: "-", 47: "_"}))


def all_forms(secrets: Iterable[str]) -> Tuple[str, ...]:
    """Every form of these secrets, the longest first."""
    found: Set[str] = set()
    for secret in secrets:
        if len(secret) >= SHORTEST_ENCODED:
            found.update(form.lower() for form in secret_forms(secret))
    return tuple(sorted(found, key=len, reverse=True))


def without_forms(text: str, forms: Iterable[str]) -> str:
    """The text without these, in any case; the same object if there are none."""
    lowered = text.lower()
    found = [form for form in forms if form in lowered]
    if not found:
        return text
    return re.sub("(?i)" + "|".join(map(re.escape, found)), REDACTED, text)


def text_field(key: str, value: Any) -> str:
    """key=value, quoted where needed: control characters and blanks never break a line."""
    text = str(value)
    return f"{key}={text if PLAIN_VALUE.fullmatch(text) else json.dumps(text)}"


def text_line(moment: str, level: str, event: str, fields: List[str]) -> str:
    """One line for a person: time, level, event, then the fields."""
    return " ".join([moment, level.upper().ljust(7), event, *fields])


def json_field(key: str, value: Any) -> str:
    """A member of an object; the keys are our own."""
    return f'"{key}": {json.dumps(value)}'


def json_line(moment: str, level: str, event: str, fields: List[str]) -> str:
    """One JSON object, for a collector; an event's name is a word of our own."""
    begin = f'{{"time": "{moment}", "level": "{level}", "event": "{event}"'
    return ", ".join([begin, *fields]) + "}"


@lru_cache(maxsize=2)
def utc_moment(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(second))


class Log:
    """Writes lines to one stream; safe to call from any thread."""

    def __init__(
        self,
        stream: TextIO,
        level: str = "info",
        as_json: bool = False,
        secrets: Iterable[str] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._stream = stream
        self._threshold = LOG_LEVELS[level]
        self._line = json_line if as_json else text_line
        self._form = json_field if as_json else text_field
        self._number = '"%s": %d' if as_json else "%s=%d"
        self._secrets = tuple(sorted(filter(None, secrets), key=len, reverse=True))
        self._forms: Tuple[str, ...] = ()
        self._clock = clock
        self._lock = threading.Lock()
        # Models, paths and addresses are the same in line after line.
        self._known = lru_cache(maxsize=512)(self._field)

    def debug(self, event: str, **fields: Any) -> None:
        self.write("debug", event, fields)

    def info(self, event: str, **fields: Any) -> None:
        self.write("info", event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        self.write("warning", event, fields)

    def error(self, event: str, **fields: Any) -> None:
        self.write("error", event, fields)

    def redact(self, text: str, shown: Iterable[str] = ()) -> str:
        """Somebody else's text without the secrets that this process knows, those that a client has
        shown among them, in any form; and without what is shaped like one."""
        return redact(self.without_secrets(text, shown), self._secrets)

    def without_secrets(self, text: str, shown: Iterable[str] = ()) -> str:
        """The same without a look at shapes."""
        if not self._forms:
            self._forms = all_forms(self._secrets)
        return without_forms(text, (*self._forms, *all_forms(shown)))

    def clean_bytes(self, data: bytes, shown: Iterable[str] = ()) -> bytes:
        """The same for bytes that are passed on: what has no secret in it stays as it is."""
        text = data.decode("utf-8", "surrogateescape")
        clean = self.without_secrets(text, shown)
        return data if clean is text else clean.encode("utf-8", "surrogateescape")

    def _clean(self, value: Any) -> Any:
        """Numbers as they are; anything else, an exception for instance, as redacted text."""
        return value if isinstance(value, (int, float)) else self.redact(str(value))

    def _field(self, key: str, value: Any) -> str:
        """A field as it stands in a line, without the secrets that it may have had."""
        return self._form(key, str(value) if key == OWN_FIELD else self._clean(value))

    def _fields(self, fields: Mapping[str, Any]) -> List[str]:
        told, known, number = [], self._known, self._number
        for key, value in fields.items():
            kind = type(value)
            if kind is int:
                told.append(number % (key, value))
            elif kind is str and key != OWN_FIELD and len(value) <= LONGEST_REMEMBERED:
                told.append(known(key, value))
            elif value is not None:
                told.append(known(key, value) if kind is bool else self._field(key, value))
        return told

    def write(self, level: str, event: str, fields: Mapping[str, Any]) -> None:
        if LOG_LEVELS[level] < self._threshold:
            return
        try:
            moment = utc_moment(int(self._clock()))
            self.write_line(self._line(moment, level, event, self._fields(fields)))
        except (OSError, ValueError):
            pass  # a closed stderr must not end an answer

    def write_line(self, line: str) -> None:
        """One line as it is; OSError or ValueError if the stream does not take it."""
        with self._lock:
            self._stream.write(line + "\n")
            self._stream.flush()
