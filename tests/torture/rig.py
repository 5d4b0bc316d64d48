"""A proxy and an upstream in processes of their own, and what can be seen of them from outside."""

from __future__ import annotations

import collections
import contextlib
import os
import pathlib
import subprocess
import sys
import threading
import time
from typing import Any, Callable, Dict, List, NamedTuple, Tuple

from tests.support import RawClient, ask, message_body, request_bytes
from tests.torture.upstream import PIECES

ROOT = pathlib.Path(__file__).resolve().parents[2]
KEY = "torture-key"
MEGABYTE = 1 << 20
SAMPLE_SECONDS = 0.02


class Seen(NamedTuple):
    """What a process has, seen in /proc."""

    rss: float
    peak: float
    threads: int
    files: int


def see(pid: int) -> Seen:
    rows = dict(row.split(":", 1) for row in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines())
    rss, peak = (int(rows[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM"))
    return Seen(rss, peak, int(rows["Threads"]), len(os.listdir(f"/proc/{pid}/fd")))


def forget_peak(pid: int) -> None:
    """Count the peak from now on (proc(5), clear_refs)."""
    with contextlib.suppress(OSError):
        pathlib.Path(f"/proc/{pid}/clear_refs").write_text("5")


def begin(command: List[Any], err: Any, **more: Any) -> subprocess.Popen:
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=err, text=True, **more)


class Rig:
    """One proxy before one upstream; `files` is the folder with the proxy's single file."""

    def __init__(self, single: pathlib.Path, folder: pathlib.Path, settings: Dict[str, str]) -> None:
        self.folder, self.settings = folder, settings
        self.log_file = folder / "log"
        self._err = open(self.log_file, "ab")
        self.upstream_port = 0
        self.start_upstream()
        self.write_settings()
        self.proxy = begin([sys.executable, "-I", "-S", str(single), "--env-file", str(folder / "settings")], self._err,
                           cwd=folder, env={"PATH": os.environ["PATH"]})
        line = self.proxy.stdout.readline()
        assert line.startswith("listening on "), f"{line}{self.log_text()}"
        self.port = int(line.rsplit(":", 1)[1])
        threading.Thread(target=self.proxy.stdout.read, daemon=True).start()

    # --- the two processes ------------------------------------------------------------------------

    def start_upstream(self) -> None:
        """A new one, on the port of the last."""
        self.upstream = begin([sys.executable, "-m", "tests.torture.upstream", str(self.upstream_port)], self._err, cwd=ROOT)
        self.upstream_port = int(self.upstream.stdout.readline())

    def write_settings(self, **more: str) -> None:
        here, upstream = f"http://127.0.0.1:{self.upstream_port}", self.settings.get("UPSTREAM", "")
        usual = {"LISTEN_PORT": "0", "MODEL_LIMITS": "false", "MAX_RETRIES": "0", "LOG_FORMAT": "json"}
        if upstream:
            usual.update(ANTHROPIC_FORWARD_URL=here, ANTHROPIC_UPSTREAM_KEY=KEY)
        if upstream != "anthropic":
            usual.update(OPENAI_BASE_URL=here + "/v1", OPENAI_API_KEY=KEY)
        rows = {**usual, **self.settings, **more}
        written = self.folder / "settings.new"
        written.write_text("".join(f"{name}={value}\n" for name, value in rows.items()))
        written.replace(self.folder / "settings")  # in one step: it may just be read

    def stop(self) -> None:
        for process in (self.proxy, self.upstream):
            process.kill()
            process.wait()
            process.stdout.close()
        self._err.close()

    def log_text(self) -> str:
        return self.log_file.read_text(errors="replace")

    def stats(self) -> Dict[str, Any]:
        return ask(self.upstream_port, method="GET", path="/stats").json

    def see(self) -> Seen:
        return see(self.proxy.pid)

    # --- clients ----------------------------------------------------------------------------------

    def clients(self, count: int, timeout: float = 60) -> List[RawClient]:
        return [RawClient(self.port, timeout) for _ in range(count)]

    def asking(self, count: int, model: str, **more: Any) -> List[RawClient]:
        """So many clients that have asked, and not read anything yet."""
        clients = self.clients(count)
        for client in clients:
            client.send(message_request(model, **more))
        return clients

    def fine(self) -> bool:
        """Whether a normal request works now, streamed and not, within a few seconds."""
        with RawClient(self.port, 5) as client:
            client.send(message_request("fine", stream=True) + message_request("fine"))
            told, whole = client.answer(), client.answer()
        texts = [e["delta"]["text"] for e in told.events if e["type"] == "content_block_delta"]
        text = "fine " * PIECES
        return "".join(texts) == text and whole.status == 200 and whole.json["content"][0]["text"] == text


def message_request(model: str, stream: bool = False, **more: Any) -> bytes:
    return request_bytes({**message_body(**more), "model": model, "stream": stream})


def told(client: RawClient) -> str:
    """One answer in a word: its status, or how a stream ended."""
    try:
        answer = client.answer()
    except (OSError, AssertionError, ValueError) as error:
        return type(error).__name__
    if answer.headers.get("content-type", "").startswith("text/event-stream"):
        last = answer.frames[-1][0] if answer.frames else "nothing"
        return f"{answer.status} ... {last}"
    return str(answer.status)


def counted(words: List[str]) -> str:
    """The words with how often each was said."""
    return ", ".join(f"{count} x {word}" for word, count in sorted(collections.Counter(words).items()))


def all_told(clients: List[RawClient], expected: str) -> str:
    """Read an answer of each; all have to be as expected."""
    words = [told(client) for client in clients]
    close_all(clients)
    assert set(words) == {expected}, counted(words)
    return counted(words)


def close_all(clients: List[Any]) -> None:
    for client in clients:
        getattr(client, "sock", client).close()


def swallow(client: RawClient) -> Tuple[int, bytes]:
    """(bytes that came, the last of them): read to the end of a chunked answer, or of the connection."""
    buffer = bytearray(MEGABYTE)
    size, tail = len(client.buffer), client.buffer[-200:]
    while not tail.endswith(b"\r\n0\r\n\r\n"):
        try:
            count = client.sock.recv_into(buffer)
        except ConnectionResetError:
            count = 0
        if not count:
            break
        size += count
        tail = (tail + buffer[max(0, count - 200):count])[-200:]
    return size, tail


def wait_for(true: Callable[[], Any], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if true():
            return True
        time.sleep(0.05)
    return bool(true())


def send_all(client: RawClient, data: bytes, times: int = 1) -> None:
    """Send, and let the other side hang up."""
    with contextlib.suppress(OSError):
        for _ in range(times):
            client.sock.sendall(data)


class Sampler:
    """The most threads and files that a process was seen with."""

    def __init__(self, look: Callable[[], Seen]) -> None:
        self.threads = self.files = 0
        self._look = look
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._done.wait(SAMPLE_SECONDS):
            with contextlib.suppress(OSError, KeyError, ValueError):  # it has ended
                seen = self._look()
                self.threads, self.files = max(self.threads, seen.threads), max(self.files, seen.files)

    def end(self) -> None:
        self._done.set()
        self._thread.join()


def log_trouble(text: str) -> List[str]:
    """Lines of a log that no case may lead to."""
    bad = ('"defect"', "Traceback", '"observer_failed"', '"sweep_failed"', '"connection_failed"')
    return [line for line in text.splitlines() if any(word in line for word in bad)]
