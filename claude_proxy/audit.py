"""The audit: one line a request, refused and cancelled ones too, of who asked what of whom.

It has names, figures and keyed hashes: nothing that was said, no credential, no text of an error.
What a client could have put anything into (a model's name, a path) stands there only if it looks
like a name, else as a hash. The line is written when all has been said, so no answer waits for it.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any, Callable, Dict, List, Optional, Protocol, Set

from claude_proxy.agents import AGENT_HEADER, SESSION_HEADER
from claude_proxy.audit_files import AuditError, AuditFile, ChainKey, ChainLink, chain_line
from claude_proxy.auth import OPEN_PATHS, shown_keys
from claude_proxy.config import VERSION
from claude_proxy.errors import CLIENT_GONE_STATUS, ProxyError, error_type_of
from claude_proxy.exchange import Exchange
from claude_proxy.http1 import HttpRequest
from claude_proxy.log import Log
from claude_proxy.names import HTTP_METHODS, PATH_STEP, PLAIN_WORD
from claude_proxy.patterns import LazyPattern
from claude_proxy.settings import Config

LONGEST_AUDITED = 200
AUDITED_NAME = LazyPattern(r"[A-Za-z0-9._:/\[\]@+-]*")
AUDITED_TRIED = LazyPattern(r"(?:(?:^|, )[A-Za-z0-9._:/\[\]@+-]+ [0-9]{3})*")
AUDITED_ROUTE = LazyPattern(r"[ -~]*")  # the words are our own and the settings'
AUDITED_UUID = LazyPattern(r"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")
# Claude Code's are a letter and 16 digits, or made of a member's name.
AUDITED_ID = LazyPattern(rf"[0-9a-f-]{{1,20}}|{PLAIN_WORD}")
AUDITED_STEP = LazyPattern(PATH_STEP)
AUDITED_METHOD = LazyPattern("|".join(sorted(HTTP_METHODS)))
AUDITED_USAGE = (
    "input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens",
)  # fmt: skip
# Facility auth, severity informational (RFC 5424, 6.2.1).
SYSLOG_PRIORITY = 4 * 8 + 6
SYSLOG_SECONDS = 1.0
AUDIT_END_SECONDS = 2.0


class AuditSink(Protocol):
    """Where lines go: all of them, in the chain, or OSError, ValueError or AuditError."""

    link: Optional[ChainLink]

    def append(self, *lines: Mapping[str, Any]) -> None: ...


class AuditStream:
    """Hands lines to something that cannot be read again: the chain is this process's own."""

    def __init__(self, send: Callable[[str], None], key: ChainKey) -> None:
        self.link: Optional[ChainLink] = ChainLink()
        self._send = send
        self._key = key
        self._lock = threading.Lock()

    def append(self, *lines: Mapping[str, Any]) -> None:
        with self._lock:
            for fields in lines:
                line, link = chain_line(self.link or ChainLink(), fields, self._key, time.time())
                self._send(line.decode("ascii").rstrip("\n"))
                self.link = link


class SyslogSocket:
    """The system's log, one datagram a line."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._socket: Optional[socket.socket] = None

    def send(self, line: str) -> None:
        data = f"<{SYSLOG_PRIORITY}>claude_proxy[{os.getpid()}]: {line}".encode("ascii")
        try:
            self._connected().send(data)
        except OSError:
            self._close()  # it may have been started anew
            self._connected().send(data)

    def _connected(self) -> socket.socket:
        if self._socket is None:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket = sock
            sock.settimeout(SYSLOG_SECONDS)
            sock.connect(self._path)
        return self._socket

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None


# --- what a line says --------------------------------------------------------------------------


class AuditNames:
    """Makes values fit for a line: plain names as they are, all else as a keyed hash."""

    def __init__(self, secret: str) -> None:
        # Without a key of the settings' own, hashes can be compared until the process ends.
        self._key = ChainKey(secret or secrets.token_hex(32))

    def hashed(self, kind: str, text: str) -> str:
        """16 digits; the same text gives others as another kind of thing."""
        return self._key.seal(f"{kind}\0{text}".encode("utf-8", "surrogatepass"))[:16]

    def name(self, value: Any, pattern: Any = AUDITED_NAME) -> Optional[str]:
        text = "" if value is None else str(value)
        if not text:
            return None
        return (
            text[:LONGEST_AUDITED] if pattern.fullmatch(text) else f"#{self.hashed('name', text)}"
        )

    def path(self, path: str) -> Optional[str]:
        """The path, with a hash for each step that may be an identifier or anything else."""
        steps = (self.name(step, AUDITED_STEP) or "" for step in path[:LONGEST_AUDITED].split("/"))
        return "/".join(steps) or None

    def credentials(self, request: HttpRequest) -> str:
        """A hash for each credential that was shown, with commas between."""
        shown = dict.fromkeys(shown_keys(request))
        return ",".join(self.hashed("credential", key) for key in shown)


def audit_outcome(exchange: Exchange, status: int) -> str:
    """ok; refused, by us before any upstream was asked; failed; or cancelled by the client."""
    facts = exchange.facts
    if status == CLIENT_GONE_STATUS:
        return "cancelled"
    if 0 < status < 400 and not facts.get("error"):
        return "ok"
    return "failed" if facts.get("upstream") or status in (0, 500) else "refused"


def audited_error(exchange: Exchange, status: int) -> Optional[str]:
    """The type of the error, which is all that is said of it."""
    if exchange.cancelled is not None:
        return exchange.cancelled.error_type
    if exchange.facts.get("upstream_status") and exchange.facts.get("error"):
        return str(exchange.facts["error"])  # of an upstream's errors that is the type
    if status >= 400:
        return error_type_of(status)
    return "api_error" if exchange.facts.get("error") else None


def who_asked(names: AuditNames, request: HttpRequest) -> Dict[str, Any]:
    length = request.headers.get("content-length", "")
    return {
        "session": names.name(request.headers.get(SESSION_HEADER), AUDITED_UUID),
        "agent": names.name(request.headers.get(AGENT_HEADER), AUDITED_ID),
        "client": request.peer,
        "credential": names.credentials(request),
        "method": names.name(request.method, AUDITED_METHOD),
        "path": names.path(request.path),
        "bytes_in": int(length) if re.fullmatch("[0-9]{1,15}", length) else None,
    }


def what_became(names: AuditNames, exchange: Exchange, status: int) -> Dict[str, Any]:
    facts, usage = exchange.facts, exchange.usage
    figures = ((name, usage.get(name)) for name in AUDITED_USAGE)
    return {
        "model": names.name(facts.get("model")),
        "upstream": names.name(facts.get("upstream")),
        "upstream_model": names.name(facts.get("upstream_model")),
        "route": names.name(facts.get("route"), AUDITED_ROUTE),
        "tried": names.name(facts.get("tried"), AUDITED_TRIED),
        "status": status,
        "outcome": audit_outcome(exchange, status),
        "stop_reason": names.name(facts.get("stop_reason")),
        "error_type": names.name(audited_error(exchange, status)),
        **{name: value if type(value) is int else None for name, value in figures},
        "bytes_out": exchange.bytes_out,
        "ms": round((exchange.clock() - exchange.started) * 1000),
    }


NOBODY = HttpRequest("", "", "", {})  # where the head of a request could not be read


# --- the audit ---------------------------------------------------------------------------------


class Audit:
    """Writes what became of each request; does nothing without a sink.

    A failure to write never breaks an answer. It is told in the log and, when lines can be written
    again, by a line that says how many are missing. Where an audit is required, nothing more is
    answered until then.
    """

    def __init__(
        self,
        sink: Optional[AuditSink],
        names: AuditNames,
        log: Log,
        start: Mapping[str, Any],
        required: bool = False,
    ) -> None:
        self.failing = False
        self._sink = sink
        self._names = names
        self._log = log
        self._start = start
        self._required = required
        self._begun = False
        self._lost = 0
        self._pending: Set[int] = set()  # requests that are being answered
        self._lock = threading.Lock()

    def begin(self) -> None:
        """Write the line of a start; OSError or AuditError if that cannot be done."""
        if self._sink is not None:
            self._sink.append(self._start)
            self._begun = True
            self._tell_place("audit_begins")

    def check(self, request: HttpRequest) -> None:
        """Take note of a request that begins; refuse it where it must not go unseen, but would."""
        if self._sink is None or request.path in OPEN_PATHS:
            return
        self._pending.add(id(request))
        if self._required and self.failing:
            raise ProxyError(503, "the audit cannot be written, so nothing is answered")

    def note(self, exchange: Exchange, request: Optional[HttpRequest], status: int) -> None:
        """Write the line of a finished request; probes have none."""
        if self._sink is None or request is not None and request.path in OPEN_PATHS:
            return
        try:
            asked = who_asked(self._names, request or NOBODY)
            became = what_became(self._names, exchange, status)
            self._write(self._sink, {"id": exchange.id, **asked, **became})
        finally:
            self._pending.discard(id(request))

    def end(self) -> None:
        """Wait a little for lines on their way, then write the line of the end."""
        if self._sink is None or not self._begun:
            return
        end = time.monotonic() + AUDIT_END_SECONDS
        while self._pending and time.monotonic() < end:
            time.sleep(0.01)
        self._write(self._sink, {"event": "stop", "pid": os.getpid()})
        self._tell_place("audit_ends")

    def _write(self, sink: AuditSink, fields: Mapping[str, Any]) -> None:
        with self._lock:
            lost, self._lost = self._lost, 0
            begun, self._begun = self._begun, True
        lines: List[Mapping[str, Any]] = [] if begun else [self._start]
        lines += [{"event": "gap", "lost": lost}] if lost else []
        try:
            sink.append(*lines, fields)
        except (OSError, ValueError, AuditError) as error:
            self._fail(error, lost + 1, begun)
            return
        if lost:
            self.failing = False
            self._log.warning("audit_goes_on", lost=lost)

    def _fail(self, error: Exception, lost: int, begun: bool) -> None:
        with self._lock:
            self._lost += lost
            self._begun = self._begun and begun
        self.failing = True
        reason = getattr(error, "strerror", None) or error
        self._log.error("audit_failed", reason=reason, lost=self._lost, refusing=self._required)

    def _tell_place(self, event: str) -> None:
        """What is cut off at a file's end is found by comparing this."""
        link = self._sink.link if self._sink else None
        if link is not None:
            self._log.info(event, to=self._start.get("to"), seq=link.seq, hash=link.hash[:16])


def make_audit(config: Config, log: Log) -> Audit:
    """The audit that the settings want. Nothing is opened before the first line."""
    key, names = ChainKey(config.audit_key), AuditNames(config.audit_key)
    secret = names.hashed("settings", repr(tuple(config))) if config.audit_key else None
    start = {
        "event": "start", "to": config.audit, "version": VERSION, "pid": os.getpid(),
        "settings": secret,
    }  # fmt: skip
    sink = AUDIT_SINKS[config.audit](config, key, log)
    return Audit(sink, names, log, start, config.audit_required)


def file_sink(config: Config, key: ChainKey, log: Log) -> AuditSink:
    return AuditFile(config.audit_file, key, config.audit_max_bytes, config.audit_sync)


def syslog_sink(config: Config, key: ChainKey, log: Log) -> AuditSink:
    return AuditStream(SyslogSocket(config.audit_syslog).send, key)


def log_sink(config: Config, key: ChainKey, log: Log) -> AuditSink:
    return AuditStream(log.write_line, key)


AUDIT_SINKS: Dict[str, Callable[[Config, ChainKey, Log], Optional[AuditSink]]] = {
    "off": lambda config, key, log: None,
    "file": file_sink,
    "syslog": syslog_sink,
    "log": log_sink,
}
