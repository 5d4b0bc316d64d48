"""Starting clients and servers, and making sure that they end.

Everything runs in a folder, with a HOME and with a temporary folder of its own, in a process group
of its own, under a time limit, with an environment made from nothing. Whatever would go to another
host than this one is sent to a trap, which refuses it and remembers it.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, Callable, Dict, List, NamedTuple

from tests.clients.install import Cache
from tests.support import ROOT

START_SECONDS = 60.0
STOP_SECONDS = 5.0
MARK = "CLAUDE_PROXY_CLIENT_RUN"


class Skipped(Exception):
    """A check that cannot be made here; the text says why."""


def expect(true: Any, otherwise: str) -> None:
    if not true:
        raise AssertionError(otherwise)


def expect_equal(found: Any, wanted: Any, what: str) -> None:
    if found != wanted:
        raise AssertionError(f"{what}: expected {shortened(wanted)}, found {shortened(found)}")


def shortened(value: Any, most: int = 600) -> str:
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"


class Trap:
    """Stands where a web proxy would: whoever asks for another host is refused and written down."""

    def __init__(self) -> None:
        self.asked: List[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            sock, _ = self._listener.accept()
            with contextlib.suppress(OSError), sock:
                sock.settimeout(2)
                self.asked.append(sock.recv(300).split(b"\r\n")[0].decode("latin-1"))
                sock.sendall(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n")


class Finished(NamedTuple):
    """A command that ended."""

    status: int
    out: str
    err: str
    seconds: float

    def json_lines(self) -> List[Dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines() if line.startswith("{")]


class Started(NamedTuple):
    """A server that listens."""

    url: str
    out: pathlib.Path
    err: pathlib.Path

    def log_lines(self, event: str = "request") -> List[Dict[str, Any]]:
        """A proxy's log, as far as it is about `event`."""
        lines = [json.loads(line) for line in self.err.read_text().splitlines() if line[:1] == "{"]
        return [line for line in lines if line.get("event") == event]


class Lab:
    """What a check works with. `folder` is the check's own and empty at first."""

    def __init__(self, cache: Cache, folder: pathlib.Path, trap: Trap, mark: str) -> None:
        self.cache = cache
        self.folder = folder
        self.trap = trap
        self.mark = mark
        self._number = 0

    def new_folder(self, name: str) -> pathlib.Path:
        self._number += 1
        path = self.folder / f"{self._number}-{name}"
        path.mkdir()
        return path

    def environ(self, **more: str) -> Dict[str, str]:
        """An environment made from nothing: no setting and no key of the caller's is in it."""
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self.new_folder("home")),
            "TMPDIR": str(self.new_folder("tmp")),
            "LANG": "C.UTF-8",
            "PYTHONDONTWRITEBYTECODE": "1",
            **{name: self.trap.url for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")},
            "NO_PROXY": "127.0.0.1,localhost",
            MARK: self.mark,
            **more,
        }

    def run(
        self, command: Sequence[Any], environ: Dict[str, str], cwd: Any = None, seconds: float = 60
    ) -> Finished:
        """Run to the end, or for so many seconds; AssertionError if that is not enough."""
        begun = time.monotonic()
        folder = self.new_folder("run")
        # Files, not pipes: a grandchild that lives on would keep a pipe open.
        with started_group(command, environ, cwd, folder) as process:
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                tail = read(folder / "err")[-500:]
                raise AssertionError(f"still running after {seconds:.0f} s; it said: {tail}") from None
        spent = time.monotonic() - begun
        return Finished(process.returncode, read(folder / "out"), read(folder / "err"), spent)

    @contextlib.contextmanager
    def server(
        self,
        command: Sequence[Any],
        environ: Dict[str, str],
        url_of: Callable[[str], str],
        cwd: Any = None,
    ) -> Iterator[Started]:
        """Run while the block runs. `url_of(what it printed)` is "" until it is ready."""
        folder = self.new_folder("server")
        out, err = folder / "out", folder / "err"
        with started_group(command, environ, cwd, folder) as process:
            end = time.monotonic() + START_SECONDS
            while not url_of(read(out)):
                if process.poll() is not None or time.monotonic() > end:
                    raise AssertionError(f"did not start: {read(out)[-500:]}{read(err)[-1500:]}")
                time.sleep(0.05)
            yield Started(url_of(read(out)), out, err)

    def proxy(self, **settings: str) -> Any:
        """The proxy, from the package, as `make run` starts it."""
        settings = {"MODEL_LIMITS": "false", **settings}
        environ = self.environ(LISTEN_PORT="0", LOG_FORMAT="json", DRAIN_TIMEOUT="1", **settings)
        environ["PYTHONPATH"] = str(ROOT)
        command = [sys.executable, "-m", "claude_proxy"]
        return self.server(command, environ, banner_url, cwd=self.new_folder("cwd"))


def read(path: pathlib.Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def banner_url(printed: str) -> str:
    """The address in the first line that a proxy prints, once that is whole."""
    line, newline, _ = printed.partition("\n")
    return line.rpartition("listening on ")[2] if newline and "listening on " in line else ""


@contextlib.contextmanager
def started_group(
    command: Sequence[Any], environ: Dict[str, str], cwd: Any, folder: pathlib.Path
) -> Iterator[Any]:
    """A process with a group of its own, which is gone when the block ends."""
    with open(folder / "out", "wb") as out, open(folder / "err", "wb") as err:
        process = subprocess.Popen(
            [str(word) for word in command],
            env=environ, cwd=cwd or folder, stdin=subprocess.DEVNULL, stdout=out, stderr=err,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def end_leftovers(mark: str) -> List[str]:
    """End whatever still runs with this run's mark in its environment (Linux); names what did."""
    found = []
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:200])
                os.kill(int(folder.name), signal.SIGKILL)
    return found
