"""One line per happening, as JSON or key=value; and the one gate where secrets are removed.

Callers pass facts (names, numbers, identifiers), never prompt or answer text: no level shows
content.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, Callable, TextIO

from claude_proxy.patterns import LazyPattern

LOG_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}

# What a credential looks like when somebody else's error text quotes it back to us. A digit (or a
# mask's star) tells it from prose such as "Bearer authentication"; only after a password's label
# does any word count. Identifiers (msg_, req_ and 24 hex, UUIDs) fit none of these. Look-aheads are
# bounded, so that a long text costs no more than its length.
REDACTED = "[redacted]"
SECRET_SHAPES = LazyPattern(
    r"(?i)\bbearer\s+(?=[\w.~+/=-]{0,99}[0-9]|[\w.~+/=-]{24})[\w.~+/=-]{6,}"
    r"|\bbasic\s+(?=[\w+/]{0,99}[0-9=])[\w+/]{10,}"
    r"|(?:password|passwd|secret|authorization)\\?[\"']?\s*[:=]\s*\\?[\"']?"
    r"(?:(?:bearer|basic)\s+)?[\w.~+/=*-]{6,}"
    r"|(?:api[-_ ]?key(?: provided)?|token)\\?[\"']?\s*[:=]\s*\\?[\"']?"
    r"(?=[\w.~+/=-]{0,99}[a-z])(?=[\w.~+/=-]{0,99}[0-9*]|[\w.~+/=-]{24})[\w.~+/=*-]{6,}"
    r"|(?<=[?&])(?:key|sig|code)=[^\s&\"']{6,}"
    r"|(?<=://)[^/\s?#@]{1,999}(?=@)"
    r"|\bsk-(?=[\w.-]{0,99}[0-9*]|[\w.-]{40})[\w*.-]{6,}"
    r"|\b(?:pk|rk|csk|xai|pplx|nvapi)-(?=[\w-]{0,99}[0-9])[\w-]{24,}|\bkey-[0-9a-z]{16,}"
    r"|\b(?:gsk|hf|fw|r8|gh[pousr]|tgp_v1|[sr]k_live|[sr]k_test)_(?=[a-z]{0,99}[0-9])[0-9a-z]{16,}"
    r"|\bgithub_pat_\w{20,}"
    r"|\b(?:AIza|AKIA|eyJ)[\w.-]{16,}"
    r"|\b(?:[0-9a-f]{32,}|[0-9a-z]{72,})\b"
)
SHORTEST_SECRET = 4
LONGEST_REMEMBERED = 100


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """Return `text` without the given secrets and without anything shaped like a credential."""
    # The longest first: another may be a part of it.
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= SHORTEST_SECRET:
            text = text.replace(secret, REDACTED)
    return SECRET_SHAPES.sub(REDACTED, text)


def format_text_line(moment: str, level: str, event: str, fields: Mapping[str, Any]) -> str:
    """One line for a person: time, level, event, then key=value pairs, quoted where needed."""
    pairs = [f"{key}={log_value(value)}" for key, value in fields.items() if value is not None]
    return " ".join([moment, level.upper().ljust(7), event, *pairs])


def log_value(value: Any) -> str:
    """A value as it stands behind key=; control characters and blanks never break the line."""
    text = str(value)
    plain = text.isprintable() and text.isascii() and not any(c in text for c in " \"'=")
    return text if plain and text else json.dumps(text)


def format_json_line(moment: str, level: str, event: str, fields: Mapping[str, Any]) -> str:
    """One JSON object, for a collector."""
    line = {"time": moment, "level": level, "event": event}
    line.update((key, value) for key, value in fields.items() if value is not None)
    return json.dumps(line, default=str)


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
        self._format = format_json_line if as_json else format_text_line
        self._secrets = tuple(secret for secret in secrets if secret)
        self._clock = clock
        self._lock = threading.Lock()
        # Models, paths and addresses are the same in line after line.
        self._known = lru_cache(maxsize=512)(self.redact)

    def debug(self, event: str, **fields: Any) -> None:
        self.write("debug", event, fields)

    def info(self, event: str, **fields: Any) -> None:
        self.write("info", event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        self.write("warning", event, fields)

    def error(self, event: str, **fields: Any) -> None:
        self.write("error", event, fields)

    def redact(self, text: str) -> str:
        """The text without the secrets that this process knows, and without the shape of any."""
        return redact(text, self._secrets)

    def _clean(self, value: Any) -> Any:
        """Numbers as they are; anything else, an exception for instance, as redacted text."""
        if value is None or isinstance(value, (int, float)):
            return value
        text = str(value)
        return self._known(text) if len(text) <= LONGEST_REMEMBERED else self.redact(text)

    def write(self, level: str, event: str, fields: Mapping[str, Any]) -> None:
        if LOG_LEVELS[level] < self._threshold:
            return
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._clock()))
        clean = {key: self._clean(value) for key, value in fields.items()}
        try:
            self.write_line(self._format(moment, level, event, clean))
        except (OSError, ValueError):
            pass  # a closed stderr must not end an answer

    def write_line(self, line: str) -> None:
        """One line as it is; OSError or ValueError if the stream does not take it."""
        with self._lock:
            self._stream.write(line + "\n")
            self._stream.flush()
