"""An audit's lines, the file they are appended to, and their verification.

    {"seq":7,"time":...,"prev":"<the hash of line 6>","hash":"<of all bytes before this comma>"}

Each line has the hash of the one before, so that nothing can be changed, taken out or put in
between without a trace: with AUDIT_KEY by nobody who lacks the key, without it by nobody who does
not write all later lines anew. What is cut off at the end leaves no trace in the file itself: the
log tells the last hash at each start and stop, for comparison.

A line is one write, under the file's lock, behind what is there by then. So several processes may
share a file, and whoever renames it (we at AUDIT_MAX_BYTES, or logrotate) makes no line go astray.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import json
import os
import re
import stat
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, BinaryIO, Callable, Dict, List, NamedTuple, Optional, Tuple

from claude_proxy.patterns import LazyPattern

NO_HASH = "0" * 64
LONGEST_AUDIT_LINE = 65536
AUDIT_LINE_START = b'{"seq":'
AUDIT_LINE = LazyPattern(rb'(\{"seq":[0-9]{1,15},.*),"hash":"([0-9a-f]{64})"\}')
# The last three are not everywhere.
AUDIT_OPEN_FLAGS = ("O_RDWR", "O_APPEND", "O_CREAT", "O_NOFOLLOW", "O_CLOEXEC", "O_BINARY")
MOST_AUDIT_NOTES = 20
MOST_RENAMED = 20
# Where nothing is left of a process's chain when it ends, each start begins another.
CHAIN_A_PROCESS = ("log", "syslog")


class AuditError(Exception):
    """The audit cannot be written there; the message says why."""


class ChainLink(NamedTuple):
    """A line as the next one has to know it."""

    seq: int = 0
    hash: str = NO_HASH
    key: str = ""


class ChainKey:
    """Makes hashes, keyed if there is a key. `name` tells keys apart, "" for none."""

    def __init__(self, secret: str = "") -> None:
        self._secret = secret.encode("utf-8", "surrogatepass")
        self.name = self.seal(b"name")[:8] if secret else ""

    def seal(self, data: bytes) -> str:
        if not self._secret:
            return hashlib.sha256(data).hexdigest()
        return hmac.new(self._secret, data, "sha256").hexdigest()


def audit_time(seconds: float) -> str:
    """RFC 3339, UTC, with milliseconds."""
    whole, part = divmod(int(seconds * 1000), 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{part:03d}Z"


def chain_line(
    link: ChainLink, fields: Mapping[str, Any], key: ChainKey, seconds: float
) -> Tuple[bytes, ChainLink]:
    """The line behind `link`, with its line end, and its own link."""
    line = {"seq": link.seq + 1, "time": audit_time(seconds), **fields}
    line.update(key=key.name, prev=link.hash)
    sealed = json.dumps(line, separators=(",", ":"))[:-1].encode("ascii")
    digest = key.seal(sealed)
    return b'%b,"hash":"%b"}\n' % (sealed, digest.encode()), ChainLink(
        link.seq + 1, digest, key.name
    )


class AuditLine(NamedTuple):
    """A line that has been read: the bytes that its hash is of, what it says, and its link."""

    sealed: bytes
    fields: Dict[str, Any]
    link: ChainLink


def parse_audit_line(line: bytes) -> Optional[AuditLine]:
    """None if it has not the form of one; whether its hash is right is not looked at."""
    match = AUDIT_LINE.fullmatch(line)
    try:
        fields = json.loads(line) if match else None
    except (ValueError, RecursionError):
        return None
    if match is None or not isinstance(fields, dict) or type(fields.get("seq")) is not int:
        return None
    link = ChainLink(fields["seq"], match[2].decode(), str(fields.get("key")))
    return AuditLine(match[1], fields, link)


# --- the file ----------------------------------------------------------------------------------


def lock_audit_file(number: int, lock: bool) -> None:
    """Other processes wait here. Where there is no such lock (Windows), only one may write."""
    try:
        import fcntl
    except ImportError:
        return
    fcntl.flock(number, fcntl.LOCK_EX if lock else fcntl.LOCK_UN)


def open_audit_file(path: str) -> int:
    """The file, made if need be for its owner alone; never through a symbolic link."""
    number = os.open(path, sum(getattr(os, flag, 0) for flag in AUDIT_OPEN_FLAGS), 0o600)
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise AuditError("it is no regular file")
    return number


def flush_audit_file(number: int) -> None:
    """Wait until what was written is on the disk."""
    getattr(os, "fdatasync", os.fsync)(number)


def flush_folder(path: str) -> None:
    """Wait until the disk knows the names in a file's folder; not every system can."""
    with suppress(OSError):
        number = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def read_chain_end(number: int, size: int) -> Tuple[Optional[ChainLink], bytes]:
    """(link of the last whole line, what stands behind it) of an open file; (None, ...) if it has
    none. AuditError if it is no audit's file."""
    start = max(0, size - LONGEST_AUDIT_LINE)
    os.lseek(number, start, os.SEEK_SET)
    data = b""
    while len(data) < size - start:
        piece = os.read(number, size - start - len(data))
        if not piece:
            break
        data += piece
    whole, line_end, torn = data.rpartition(b"\n")
    if not line_end:
        if start or not AUDIT_LINE_START.startswith(torn[: len(AUDIT_LINE_START)]):
            raise AuditError("it does not end like an audit: move it away")
        return None, torn
    last = parse_audit_line(whole.rpartition(b"\n")[2])
    if last is None:
        raise AuditError("its last line is none of an audit: move it away, or mend it")
    return last.link, torn


def renamed_files(path: str) -> List[str]:
    """The files that once had this path, the newest first; none where that cannot be seen."""
    folder, name = os.path.split(path)
    renamed = re.compile(re.escape(name) + r"[.-][0-9-]+")
    try:
        others = [os.path.join(folder, n) for n in os.listdir(folder or ".")]
        found = [other for other in others if renamed.fullmatch(os.path.basename(other))]
        return sorted(found, key=lambda p: (os.stat(p).st_mtime_ns, p), reverse=True)
    except OSError:
        return []


def link_before(path: str) -> ChainLink:
    """Where a new file goes on: behind the newest of those that were renamed, `path` and a number
    each, if there is one."""
    for other in renamed_files(path):
        with suppress(OSError, AuditError), open(other, "rb") as file:
            link, _ = read_chain_end(file.fileno(), os.fstat(file.fileno()).st_size)
            if link is not None:
                return link
    return ChainLink()


class AuditFile:
    """Appends lines to a file; safe to call from any thread."""

    def __init__(
        self,
        path: str,
        key: ChainKey,
        max_bytes: int = 0,
        sync: bool = True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.path = path
        self.link: Optional[ChainLink] = None
        self._key = key
        self._max_bytes = max_bytes
        self._sync = sync
        self._clock = clock
        self._number = -1  # the open file's
        self._end = -1  # where it ended when we last looked
        self._torn = b""  # what is there behind its last whole line
        self._wrote_once = False
        self._written = self._synced = 0
        self._lock = threading.Lock()
        self._sync_lock = threading.Lock()

    def append(self, *lines: Mapping[str, Any]) -> None:
        """Write the lines behind the last; OSError or AuditError if that cannot be done."""
        with self._lock:
            try:
                self._enter()
                self._write(lines)
                lock_audit_file(self._number, False)
            except BaseException:
                with suppress(OSError):
                    self._close()
                raise
            self._written += 1
            mine = self._written
        if self._sync:
            self._sync_to(mine)

    def close(self) -> None:
        with self._lock:
            self._close()

    def _enter(self) -> None:
        """Lock the file that now has the name, and look how it ends."""
        if self._number < 0:
            self._open()
        lock_audit_file(self._number, True)
        tries = 0
        while not self._has_name():
            tries += 1
            if tries > MOST_RENAMED:
                raise AuditError("it has another name each time it is opened")
            self._look_at_end()  # another process may have written just before it was renamed
            self._close()
            self._open()
            lock_audit_file(self._number, True)
        self._look_at_end()

    def _has_name(self) -> bool:
        try:
            named = os.stat(self.path, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(named, os.fstat(self._number))

    def _look_at_end(self) -> None:
        size = os.fstat(self._number).st_size
        if size > self._end:
            link, self._torn = read_chain_end(self._number, size)
            link = link or link_before(self.path)
            if self.link is None or link.seq > self.link.seq:
                self.link = link  # another process's
        # Where lines are gone, for the file was cut or replaced, our own link stays, and
        # verification finds the place.
        self._end = size

    def _write(self, lines: Iterable[Mapping[str, Any]]) -> None:
        data = b""
        if self._torn:
            # A line end closes what was cut off, and a line of the chain vouches for it.
            lines, data = (torn_line(self._torn), *lines), b"\n"
        elif self._is_over():
            self._rename()
        link = self.link or ChainLink()
        for fields in lines:
            line, link = chain_line(link, fields, self._key, self._clock())
            data += line
        written = os.write(self._number, data)
        if written < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._end += written
        self.link, self._torn, self._wrote_once = link, b"", True

    def _is_over(self) -> bool:
        """Whether a new file is due: it is full, or has lines of another key."""
        other_key = not self._wrote_once and self.link and self.link.key != self._key.name
        return self._end > 0 and bool(other_key or 0 < self._max_bytes <= self._end)

    def _rename(self) -> None:
        """Give the file the number of its last line, and begin another. Nothing is overwritten."""
        other = f"{self.path}.{self.link.seq if self.link else 0:012d}"
        if not os.path.lexists(other):
            os.rename(self.path, other)
            self._enter()

    def _open(self) -> None:
        self._number, self._end, self._torn = open_audit_file(self.path), -1, b""
        if self._sync and not os.fstat(self._number).st_size:
            flush_folder(self.path)

    def _close(self) -> None:
        with self._sync_lock:
            number, self._number = self._number, -1
            if number < 0:
                return
            try:
                if self._sync:
                    flush_audit_file(number)
            finally:
                os.close(number)

    def _sync_to(self, mine: int) -> None:
        """Wait until line `mine` is on the disk; one wait is for all that were written before."""
        with self._sync_lock:
            if self._synced >= mine:
                return
            written = self._written
            if self._number >= 0:  # else it was closed, and flushed before
                flush_audit_file(self._number)
            self._synced = written


def torn_line(torn: bytes) -> Dict[str, Any]:
    """What follows a line that a crash or a full disk has cut off."""
    digest = hashlib.sha256(torn).hexdigest()
    return {"event": "recovered", "torn_bytes": len(torn), "torn": digest}


# --- verification ------------------------------------------------------------------------------


class ChainVerifier:
    """Reads an audit's files in order, a line at a time, up to the first that is not right."""

    def __init__(self, key: ChainKey) -> None:
        self.lines = 0
        self.unchecked = 0  # lines with keyed hashes where we have no key
        self.events: Dict[str, int] = {}
        self.times: List[str] = []  # the first and the last
        self.notes: List[str] = []
        self.link: Optional[ChainLink] = None
        self._key = key

    def read_file(self, path: str) -> str:
        """What is wrong first, with file and line; "" if all is well."""
        with open(path, "rb") as file:
            return self._read_lines(path, file)

    def _read_lines(self, path: str, file: BinaryIO) -> str:
        number, problem, previous, before = 0, "", b"", self.link
        for raw in iter(lambda: file.readline(LONGEST_AUDIT_LINE), b""):
            number += 1
            line = raw.rstrip(b"\n")
            found = parse_audit_line(line)
            if number > 1 and found and vouches_for(found, previous):
                # The line before was cut off when it was written, and counts for nothing.
                self._note(f"{path}: line {number - 1} was cut off, and the audit went on")
                self.link, problem = before, ""
            if problem:
                return problem
            if raw == line and len(raw) < LONGEST_AUDIT_LINE:
                self._note(f"{path}: line {number}, the last, is cut off")
                return ""
            wrong = self._wrong(found)
            problem = f"{path}: line {number}: {wrong}" if wrong else ""
            before, previous = self.link, line
            if found and not wrong:
                self._take(path, number, found)
        return problem

    def _wrong(self, found: Optional[AuditLine]) -> str:
        if found is None:
            return "this is no line of an audit"
        name = self._key.name
        if name and found.link.key != name:
            return "its hash was not made with this AUDIT_KEY"
        if found.link.key == name and self._key.seal(found.sealed) != found.link.hash:
            return "its hash does not fit what it says"
        return self._misplaced(found)

    def _misplaced(self, found: AuditLine) -> str:
        """What is wrong with its place; each chain begins with line 1, and a file may go on."""
        seq, prev, last = found.link.seq, found.fields.get("prev"), self.link
        if seq == 1 and prev == NO_HASH and (last is None or begins_anew(found)):
            return ""
        if last is None:
            return "its seq and its prev do not fit each other" if seq <= 1 else ""
        if seq > last.seq + 1:
            return f"lines are missing: seq {seq} follows {last.seq}"
        if seq <= last.seq:
            return f"it is not in its place: seq {seq} follows {last.seq}"
        return "" if prev == last.hash else "its prev is not the hash of the line before"

    def _take(self, path: str, number: int, found: AuditLine) -> None:
        if self.link is None and found.link.seq > 1:
            self._note(f"{path}: begins with seq {found.link.seq}; name earlier files before it")
        elif self.link is not None and found.link.seq == 1:
            self._note(f"{path}: line {number}: another process begins its own chain")
        self.link = found.link
        self.lines += 1
        self.unchecked += found.link.key != self._key.name
        event = str(found.fields.get("event") or "request")
        self.events[event] = self.events.get(event, 0) + 1
        self.times = [*self.times[:1], str(found.fields.get("time"))]

    def _note(self, text: str) -> None:
        if len(self.notes) < MOST_AUDIT_NOTES:
            self.notes.append(text)


def vouches_for(found: AuditLine, torn: bytes) -> bool:
    wanted = torn_line(torn)
    return all(found.fields.get(name) == value for name, value in wanted.items())


def begins_anew(found: AuditLine) -> bool:
    return found.fields.get("event") == "start" and found.fields.get("to") in CHAIN_A_PROCESS


def verify_audit(paths: Iterable[str], key: ChainKey) -> Tuple[str, ChainVerifier]:
    """(the first thing that is wrong or "", what was read up to there). OSError if a file cannot be
    read."""
    verifier = ChainVerifier(key)
    problem = next(filter(None, map(verifier.read_file, paths)), "")
    return problem, verifier


def audit_summary(verifier: ChainVerifier) -> str:
    """What sound files have, in a line or two for a person."""
    if verifier.link is None:
        return "no lines"
    events = ", ".join(f"{count} {name}" for name, count in sorted(verifier.events.items()))
    first, last = verifier.times[0], verifier.times[-1]
    where = f"last: seq {verifier.link.seq}, hash {verifier.link.hash}"
    return f"{verifier.lines} lines ({events}) from {first} to {last}\n{where}"
