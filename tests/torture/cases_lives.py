"""Signals amid work, and a long life."""

from __future__ import annotations

import signal
import threading
import time
from typing import Callable, Dict, List, Tuple

from tests.support import RawClient
from tests.torture.rig import Rig, close_all, counted, message_request, wait_for
from tests.torture.upstream import PIECES, SLOW_PIECES

CLIENTS = 32
FINE_END = b"\r\n0\r\n\r\n"


def whole_slow(client: RawClient, model: str) -> str:
    """Whether a slow stream is all there, and all of it of this model."""
    answer = client.answer()
    texts = [e["delta"]["text"] for e in answer.events if e["type"] == "content_block_delta"]
    whole = texts == [f"{model}.{number} " for number in range(SLOW_PIECES)]
    return "whole" if whole and answer.events[-1]["type"] == "message_stop" else f"cut at {len(texts)}"


def slow_streams(rig: Rig, count: int, asked: str, model: str) -> List[RawClient]:
    """Streams that have begun."""
    clients = rig.asking(count, asked, stream=True)
    for client in clients:
        begun = client.read_until(f"{model}.1 ".encode())
        client.buffer = begun + client.buffer
    return clients


def ended(rig: Rig) -> str:
    """SIGTERM: what is under way comes to its end, and then the proxy does, with status 0."""
    clients = slow_streams(rig, 200, "slow-a", "slow-a")
    begun = time.monotonic()
    rig.proxy.send_signal(signal.SIGTERM)
    words = [whole_slow(client, "slow-a") for client in clients]
    close_all(clients)
    assert set(words) == {"whole"}, counted(words)
    status = rig.proxy.wait(20)
    assert status == 0, status
    return f"{counted(words)}, exit status 0, {time.monotonic() - begun:.1f} s"


def hung_up(rig: Rig) -> str:
    """SIGHUP: streams under way keep their settings, new ones have the new, wrong ones change nothing."""
    rig.write_settings(MODEL_MAP="x=slow-a")
    reload(rig, '"reloaded"')
    clients = slow_streams(rig, 200, "x", "slow-a")
    rig.write_settings(MODEL_MAP="x=slow-b")
    reload(rig, '"reloaded"')
    clients_b = slow_streams(rig, 20, "x", "slow-b")
    rig.write_settings(MODEL_MAP="x=slow-c", MAX_RETRIES="many")
    reload(rig, '"reload_refused"')
    rig.write_settings(MODEL_MAP="no equals sign", LISTEN_PORT="none")
    reload(rig, '"reload_refused"')
    clients_c = slow_streams(rig, 20, "x", "slow-b")
    words = [f"a {whole_slow(client, 'slow-a')}" for client in clients]
    words += [f"b {whole_slow(client, 'slow-b')}" for client in (*clients_b, *clients_c)]
    close_all([*clients, *clients_b, *clients_c])
    assert set(words) == {"a whole", "b whole"}, counted(words)
    return f"{counted(words)}, 2 bad files refused"


def reload(rig: Rig, word: str) -> None:
    """SIGHUP, and wait for what the log says of it."""
    before = rig.log_text().count(word)
    rig.proxy.send_signal(signal.SIGHUP)
    assert wait_for(lambda: rig.log_text().count(word) > before, 5), rig.log_text()[-500:]


def many_hangups(rig: Rig) -> str:
    """Settings read anew a hundred times under load."""
    load = Load(rig, "fine", True, 2000)
    count = 0
    while load.going():
        rig.write_settings(MODEL_MAP=f"x=y{count}")
        rig.proxy.send_signal(signal.SIGHUP)
        count += 1
        time.sleep(0.03)
    load.end()
    return f"{load.answered} streams whole, {count} times SIGHUP"


class Load:
    """So many answers, by several clients that each ask one after the other."""

    def __init__(self, rig: Rig, model: str, stream: bool, count: int) -> None:
        self.answered, self.failures = 0, []  # type: int, List[str]
        self._rig, self._left, self._stream = rig, count, stream
        self._raw = message_request(model, stream=stream)
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def _take(self) -> bool:
        with self._lock:
            self._left -= 1
            return self._left >= 0

    def _run(self) -> None:
        while self._take():
            with RawClient(self._rig.port, 30) as client:
                problem = self._ask(client)
                while not problem and self._take():
                    problem = self._ask(client)
            if problem:
                self.failures.append(problem)

    def _ask(self, client: RawClient) -> str:
        """The problem, if there is one. Read cheaply: the proxy is what is to be busy."""
        client.send(self._raw)
        if not self._stream:
            answer = client.answer()
            whole = answer.status == 200 and answer.json["content"][0]["text"] == "fine " * PIECES
            text = b""
        else:
            text = client.read_until(FINE_END)
            whole = text.count(b'"fine "') == PIECES and b"message_stop" in text
        with self._lock:
            self.answered += whole
        return "" if whole else text[-200:].decode()

    def going(self) -> bool:
        return any(thread.is_alive() for thread in self._threads)

    def end(self) -> None:
        for thread in self._threads:
            thread.join(120)
        assert not self.failures, self.failures[:3]


def soak(rig: Rig) -> str:
    """Many streams in turn: nothing may grow, and nothing may stay."""
    begun, sizes = time.monotonic(), []
    before = rig.see()
    open_before = rig.stats()["open"]
    rows = [("fine", True, 1000), ("fine", True, 9000), ("anthropic:fine", True, 2000), ("fine", False, 2000)]
    for model, stream, count in rows:
        Load(rig, model, stream, count).end()
        sizes.append(rig.see().rss)
    assert wait_for(lambda: rig.see().threads <= before.threads, 10), rig.see()
    growth = sizes[-1] - sizes[0]
    assert growth < 8, sizes
    files = rig.see().files - rig.stats()["open"] - (before.files - open_before)
    assert files <= 0, f"{files} files more, beside idle connections to the upstream"
    shown = ", ".join(f"{size:.1f}" for size in sizes)
    seconds = time.monotonic() - begun
    return (f"14000 whole in {seconds:.0f} s; RSS after 1,000, 10,000, 12,000, 14,000: {shown} MB;"
            f" files beside the pool {files:+d}")


BOTH = {"UPSTREAM": "openai"}  # and the Anthropic API beside it
LIFE_CASES: Dict[str, Tuple[Callable[[Rig], str], Dict[str, str], int]] = {
    "SIGTERM amid 200 streams": (ended, {}, 60),
    "SIGTERM amid 200 streams, relayed": (ended, {"UPSTREAM": "anthropic"}, 60),
    "SIGHUP amid 240 streams": (hung_up, {}, 60),
    "SIGHUP again and again under load": (many_hangups, {}, 60),
    "soak": (soak, BOTH, 60),
}
