"""Three instances behind HAProxy, or nginx, as `deploy/` has them: a rolling restart under load loses nothing."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, Callable, Dict, List

from tests.clients.lab import ROOT, Lab, Skipped, banner_url, expect, expect_equal
from tests.support import (
    Pause,
    RawClient,
    ScriptedUpstream,
    chat_stream,
    delta,
    message_body,
    request_bytes,
)

CLIENTS = 16
PIECES = 8
KEY = "a-key-for-all"


def free_ports(count: int) -> List[int]:
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [listener.getsockname()[1] for listener in listeners]


class Instance:
    """One proxy on a port of its own, that can be stopped gently and started again."""

    def __init__(self, lab: Lab, port: int, upstream: ScriptedUpstream) -> None:
        self._environ = lab.environ(
            LISTEN_PORT=str(port), OPENAI_BASE_URL=upstream.url, OPENAI_API_KEY="scripted-key", MODEL_LIMITS="false",
            ANTHROPIC_API_KEY=KEY, DRAIN_TIMEOUT="30", DRAIN_DELAY="1.5", LOG_FORMAT="json", PYTHONPATH=str(ROOT))
        self._log = lab.new_folder("instance") / "err"
        self.start()

    def start(self) -> None:
        with open(self._log, "ab") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "claude_proxy"], env=self._environ, stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=err, text=True)
        printed = ""
        while not banner_url(printed):
            line = self.process.stdout.readline()
            expect(bool(line), f"an instance did not start: {self._log.read_text()[-500:]}")
            printed += line

    def restart(self) -> None:
        self.process.terminate()
        expect_equal(self.process.wait(40), 0, "exit status of an instance that was stopped")
        self.process.stdout.close()
        self.start()

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


class Load:
    """Clients that ask one streamed question after the other, and look at every byte of the answers."""

    def __init__(self, port: int) -> None:
        self.port, self.answered, self.failures = port, 0, []
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask_on, daemon=True) for _ in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def _ask_on(self) -> None:
        while not self._stop.is_set():
            problem = self._ask()
            with self._lock:
                self.answered += not problem
                self.failures += [problem] if problem else []

    def _ask(self) -> str:
        try:
            with RawClient(self.port, 20) as client:
                client.send(request_bytes(message_body(stream=True), fields=(f"x-api-key: {KEY}",)))
                answer = client.answer()
        except (OSError, AssertionError, ValueError) as error:
            return f"{type(error).__name__}: {error}"[:200]
        if answer.status != 200:
            return f"status {answer.status}"
        told = [e["delta"].get("text") for e in answer.events if e["type"] == "content_block_delta"]
        whole = told == [f"piece {n} " for n in range(PIECES)] and answer.events[-1]["type"] == "message_stop"
        return "" if whole else f"not whole: {told}"

    def end(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)


def paced_answer() -> List[Any]:
    steps: List[Any] = []
    for number in range(PIECES):
        steps += [delta(content=f"piece {number} "), Pause(0.03)]
    return chat_stream(*steps, delta("stop"))


def haproxy_command(lab: Lab, front: int, ports: List[int]) -> List[Any]:
    text = (ROOT / "deploy" / "haproxy.cfg").read_text()
    return [program("haproxy"), "-db", "-f", written(lab, "haproxy.cfg", on_ports(text, front, ports))]


def nginx_command(lab: Lab, front: int, ports: List[int]) -> List[Any]:
    part = on_ports((ROOT / "deploy" / "nginx.conf").read_text(), front, ports)
    folder = lab.new_folder("nginx")
    paths = "".join(f"{kind}_temp_path {folder}/{kind}; " for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    whole = f"daemon off; pid {folder}/pid; error_log stderr; events {{}} http {{ access_log off; {paths} {part} }}"
    return [program("nginx"), "-p", folder, "-c", written(lab, "nginx.conf", whole)]


def program(name: str) -> str:
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin")
    if path is None:
        raise Skipped(f"{name} is not here")
    return path


def on_ports(text: str, front: int, ports: List[int]) -> str:
    """A configuration of `deploy/` with ports that are free here."""
    for number, port in enumerate(ports):
        text = text.replace(f"127.0.0.1:{8765 + number}", f"127.0.0.1:{port}")
    return text.replace("127.0.0.1:8700", f"127.0.0.1:{front}")


def written(lab: Lab, name: str, text: str) -> Any:
    path = lab.new_folder("balancer") / name
    path.write_text(text)
    return path


@contextlib.contextmanager
def balanced(lab: Lab, make: Callable[..., List[Any]]) -> Iterator[Any]:
    front, *ports = free_ports(4)
    with contextlib.ExitStack() as stack:
        upstream = stack.enter_context(ScriptedUpstream(paced_answer()))
        instances = []
        for port in ports:
            instances.append(Instance(lab, port, upstream))
            stack.callback(instances[-1].stop)
        command = make(lab, front, ports)
        ready = lambda out: f"http://127.0.0.1:{front}" if accepts(front) else ""  # noqa: E731
        stack.enter_context(lab.server(command, lab.environ(), ready))
        time.sleep(1)  # the balancer's first look at everybody's health
        yield front, instances


def accepts(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def rolling_restart(lab: Lab, make: Callable[..., List[Any]], seconds: float) -> str:
    with balanced(lab, make) as (front, instances):
        load, end, restarts = Load(front), time.monotonic() + seconds, 0
        while time.monotonic() < end:
            time.sleep(1.0)
            instances[restarts % len(instances)].restart()
            time.sleep(1.5)
            restarts += 1
        load.end()
    expect_equal(load.failures[:3], [], f"failures of {load.answered + len(load.failures)} requests")
    expect(restarts >= 3, "too few restarts")
    return f"{load.answered} streams, {restarts} restarts, 0 failed"


def version_of(name: str) -> str:
    done = subprocess.run([program(name), "-v"], capture_output=True, text=True, check=False)
    found = re.search(r"\d+\.\d+\.\d+", done.stdout + done.stderr)
    return found.group() if found else "?"


def haproxy(lab: Lab) -> str:
    return f"haproxy {version_of('haproxy')}: {rolling_restart(lab, haproxy_command, 12)}"


def nginx(lab: Lab) -> str:
    return f"nginx {version_of('nginx')}: {rolling_restart(lab, nginx_command, 12)}"


def haproxy_slow(lab: Lab) -> str:
    return f"haproxy {version_of('haproxy')}: {rolling_restart(lab, haproxy_command, 120)}"


BALANCER_CHECKS: Dict[str, Callable[[Lab], str]] = {
    "balancer-haproxy-restart": haproxy,
    "balancer-nginx-restart": nginx,
    "balancer-slow-haproxy-restart": haproxy_slow,
}
