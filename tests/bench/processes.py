"""Processes that are measured: started, looked at in /proc, and ended by their own id."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, List, Optional, Tuple

STOP_SECONDS = 4.0
SAMPLE_SECONDS = 0.1
TICKS = os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Process:
    """A program in a process group of its own, which ends with `stop`."""

    def __init__(self, command: Sequence[Any], environ: Mapping[str, str], folder: pathlib.Path, log: str) -> None:
        self.log = folder / log
        self.begun = time.monotonic()
        with open(self.log, "ab") as out:
            self._child = subprocess.Popen(
                [str(word) for word in command], env=dict(environ), cwd=folder, stdin=subprocess.DEVNULL,
                stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
        self.pid = self._child.pid

    def ended(self) -> bool:
        return self._child.poll() is not None

    def said(self, most: int = 600) -> str:
        return self.log.read_text(errors="replace")[-most:].strip()

    def stop(self) -> None:
        if not self.ended():
            self._child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(STOP_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._child.wait()


def family(pid: Optional[int]) -> List[int]:
    """The process and all below it. With a thousand threads this takes a while: not under load."""
    found = [pid] if pid else []
    for one in found:  # grows while it is gone through
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{one}/task"):
                text = pathlib.Path(f"/proc/{one}/task/{task}/children").read_text()
                found += [int(word) for word in text.split()]
    return found


def cpu_seconds(pid: int) -> float:
    """Time of a process on the CPUs, in user and system, of all its threads."""
    try:
        # Linux's clock of another process (clock_getcpuclockid): as utime + stime, but finer.
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return ticks_of(pid) / TICKS


def ticks_of(pid: int) -> int:
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return int(fields[11]) + int(fields[12])


def resident_bytes(pid: int) -> int:
    try:
        pages = pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def usage(pids: Sequence[int]) -> Tuple[float, float]:
    """(CPU seconds, resident MB) of some processes."""
    return sum(map(cpu_seconds, pids)), sum(map(resident_bytes, pids)) / 1e6


class PeakMemory(threading.Thread):
    """Looks at processes' memory ten times a second, and keeps the most it has seen, in MB."""

    def __init__(self, pids: Sequence[int]) -> None:
        super().__init__(daemon=True)
        self.peak = 0.0
        self._pids, self._over = pids, threading.Event()

    def run(self) -> None:
        while not self._over.is_set():
            self.peak = max(self.peak, usage(self._pids)[1])
            self._over.wait(SAMPLE_SECONDS)

    def __enter__(self) -> PeakMemory:
        self.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._over.set()
        self.join()
