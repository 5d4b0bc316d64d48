"""Doubles and helpers: an upstream that plays a script, a proxy in this process, a raw client."""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.util
import io
import json
import pathlib
import select
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, Dict, List, NamedTuple, Optional, Tuple, Union

ROOT = pathlib.Path(__file__).resolve().parent.parent
SINGLE_FILE = ROOT / "claude_api_proxy.py"

# --- an upstream that plays a script ------------------------------------------------------------


class Pause(NamedTuple):
    """Be silent, until `go` is set or the seconds are over."""

    seconds: float
    go: Optional[threading.Event] = None


class Tunnel(NamedTuple):
    """Agree to CONNECT, and carry bytes to and from this port of the machine."""

    port: int


HANG_UP = "hang up"
RESET = "reset"
WAIT_FOR_CLOSE = "wait until the other side closes"
Step = Union[bytes, str, Pause, Tunnel]


class Received(NamedTuple):
    """One request as the scripted upstream saw it."""

    line: str
    headers: Dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class ScriptedUpstream:
    """Answers request number N with script number N (the last one again and again)."""

    def __init__(self, *scripts: List[Step], context: Optional[ssl.SSLContext] = None) -> None:
        self.scripts = scripts
        self.context = context
        self.requests: List[Received] = []
        self.connections = 0
        self.closed_by_peer = threading.Event()
        self.closed_at = 0.0
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port: int = self._listener.getsockname()[1]
        self._sockets: List[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}/v1" if self.context else f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> ScriptedUpstream:
        return self

    def __exit__(self, *exc: object) -> None:
        # Closing alone wakes neither an accept nor a read that another thread is in.
        for sock in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self.connections += 1
                self._sockets.append(sock)
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError), self._secured(sock) as sock:
            reader = sock.makefile("rb")
            while self._answer_one(sock, reader):
                pass

    def _secured(self, sock: socket.socket) -> socket.socket:
        if self.context is None:
            return sock
        secured = self.context.wrap_socket(sock, server_side=True)
        with self._lock:
            self._sockets.append(secured)
        return secured

    def _answer_one(self, sock: socket.socket, reader: Any) -> bool:
        request = read_request(reader)
        if request is None:
            return False
        with self._lock:
            script = self.scripts[min(len(self.requests), len(self.scripts) - 1)]
            self.requests.append(request)
        script = script(request) if callable(script) else script
        return all(self._play(sock, step) for step in script)

    def _play(self, sock: socket.socket, step: Step) -> bool:
        if isinstance(step, bytes):
            sock.sendall(step)
        elif isinstance(step, Pause):
            (step.go or threading.Event()).wait(step.seconds)
        elif isinstance(step, Tunnel):
            carry(sock, step.port)
            return False
        elif step == WAIT_FOR_CLOSE:
            with contextlib.suppress(OSError):
                while sock.recv(65536):
                    pass
            self.closed_at = time.monotonic()
            self.closed_by_peer.set()
            return False
        else:
            if step == RESET:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            # A reader made from the socket keeps it open: end the connection itself.
            else:
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
            return False
        return True


def carry(sock: socket.socket, port: int) -> None:
    """What a proxy does after CONNECT, until either side closes."""
    with socket.create_connection(("127.0.0.1", port)) as other:
        sock.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        peers = {sock: other, other: sock}
        while True:
            # What TLS has decoded already, no descriptor tells of.
            pending = isinstance(sock, ssl.SSLSocket) and sock.pending()
            for ready in [sock] if pending else select.select(list(peers), [], [])[0]:
                data = ready.recv(65536)
                if not data:
                    return
                with contextlib.suppress(OSError):  # who hears no more may have said something
                    peers[ready].sendall(data)


def read_request(reader: Any) -> Optional[Received]:
    line = reader.readline()
    if not line:
        return None
    headers: Dict[str, str] = {}
    while True:
        field = reader.readline()
        if field in (b"\r\n", b""):
            break
        name, _, value = field.decode("latin-1").partition(":")
        headers[name.strip().lower()] = value.strip()
    return Received(line.decode("latin-1").strip(), headers, reader.read(int(headers.get("content-length", 0))))


# --- what upstreams say -------------------------------------------------------------------------


def http_answer(status: int, body: bytes, *fields: str) -> List[Step]:
    """A whole answer with a length."""
    lines = [f"HTTP/1.1 {status} X", f"content-length: {len(body)}", *fields]
    return ["\r\n".join(lines).encode() + b"\r\n\r\n" + body]


def json_answer(status: int, data: Any, *fields: str) -> List[Step]:
    return http_answer(status, json.dumps(data).encode(), "content-type: application/json", *fields)


def http_chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
LAST = b"0\r\n\r\n"


def sse(data: Union[str, Dict[str, Any]]) -> bytes:
    text = data if isinstance(data, str) else json.dumps(data)
    return f"data: {text}\n\n".encode()


def delta(finish: Optional[str] = None, **members: Any) -> Dict[str, Any]:
    """One Chat Completions chunk."""
    choice = {"index": 0, "delta": members, "finish_reason": finish}
    return {"id": "c1", "object": "chat.completion.chunk", "choices": [choice]}


def usage_chunk(**usage: Any) -> Dict[str, Any]:
    """The chunk behind the last choice, that only tells usage."""
    return {"id": "c1", "object": "chat.completion.chunk", "choices": [], "usage": usage}


USAGE = usage_chunk(prompt_tokens=11, completion_tokens=3)


def chat_stream(*chunks: Union[Dict[str, Any], Step]) -> List[Step]:
    """Chunks as a streamed answer; pauses and hang-ups may stand between them."""
    steps: List[Step] = [STREAM_HEAD]
    for item in chunks:
        steps.append(http_chunk(sse(item)) if isinstance(item, dict) else item)
    return [*steps, http_chunk(sse("[DONE]")), LAST]


def text_answer(*words: str) -> List[Step]:
    return chat_stream(*(delta(content=word) for word in words), delta("stop"), USAGE)


def messages_stream(message: Dict[str, Any], *more: Step) -> List[Step]:
    """A whole message as the Anthropic API streams it."""
    from claude_proxy.events import message_to_events
    from claude_proxy.sse import encode_event

    frames = [http_chunk(encode_event(event)) for event in message_to_events(message)]
    return [STREAM_HEAD, *frames, *more, LAST]


# --- the proxy ----------------------------------------------------------------------------------

PACKAGE_MODULES = ("config", "config_load", "log", "app", "server", "inflight", "cli", "exchange", "errors")


def load_form(form: str) -> Any:
    """The proxy's names, from the package or from the single file."""
    if form == "single":
        spec = importlib.util.spec_from_file_location("claude_api_proxy", SINGLE_FILE)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        gc.enable()  # which the program does when it serves
        return module
    names: Dict[str, Any] = {}
    for name in PACKAGE_MODULES:
        names.update(vars(importlib.import_module(f"claude_proxy.{name}")))
    return SimpleNamespace(**names)


class RunningProxy:
    """A proxy that listens in this process; `form` is what `load_form` gave."""

    def __init__(self, form: Any, environ: Dict[str, str], **changes: Any) -> None:
        self.log_text = io.StringIO()
        config = form.load_config({"LISTEN_PORT": "0", "MODEL_LIMITS": "false", **environ})._replace(**changes)
        self.log = form.Log(self.log_text, "debug", True, form.secret_values(config))
        self.inflight = form.Inflight(self.log, interval=0.02)
        self.app = form.build_app(config, self.log, self.inflight)
        self.server = form.Server(self.app, self.inflight)
        self.inflight.start()
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.002,), daemon=True)
        self._thread.start()
        self.port = self.server.port

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.inflight.drain(1)
        self.inflight.stop()
        self.app.transport.close()

    def log_lines(self) -> List[Dict[str, Any]]:
        return [json.loads(line) for line in self.log_text.getvalue().splitlines()]


@contextlib.contextmanager
def running_proxy(form: Any, environ: Optional[Dict[str, str]] = None, **changes: Any) -> Iterator[RunningProxy]:
    proxy = RunningProxy(form, environ or {}, **changes)
    try:
        yield proxy
    finally:
        proxy.stop()


def upstream_environ(upstream: ScriptedUpstream) -> Dict[str, str]:
    return {
        "OPENAI_API_KEY": "test-key-123456", "OPENAI_BASE_URL": upstream.url, "MAX_RETRIES": "0", "MODEL_LIMITS": "false",
    }


# --- the client ---------------------------------------------------------------------------------


class Answer(NamedTuple):
    status: int
    headers: Dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> List[Dict[str, Any]]:
        return [json.loads(data) for _, data in self.frames]

    @property
    def frames(self) -> List[Tuple[str, str]]:
        found = []
        for frame in self.body.decode().split("\n\n"):
            fields = dict(line.split(": ", 1) for line in frame.splitlines() if ": " in line)
            if "data" in fields:
                found.append((fields.get("event", ""), fields["data"]))
        return found


def message_body(text: str = "hi", **more: Any) -> Dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"model": "claude-sonnet-5", "max_tokens": 100, "messages": messages, **more}


def request_bytes(
    data: Any = None,
    path: str = "/v1/messages",
    method: str = "POST",
    fields: Tuple[str, ...] = (),
) -> bytes:
    body = b"" if data is None else data if isinstance(data, bytes) else json.dumps(data).encode()
    lines = [f"{method} {path} HTTP/1.1", "host: localhost", *fields]
    if data is not None:
        lines += ["content-type: application/json", f"content-length: {len(body)}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class RawClient:
    """A connection whose every byte the test decides."""

    def __init__(self, port: int, timeout: float = 5) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=timeout)
        self.buffer = b""

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *exc: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def _more(self) -> bool:
        try:
            piece = self.sock.recv(65536)
        except ConnectionResetError:
            piece = b""
        self.buffer += piece
        return bool(piece)

    def read_until(self, mark: bytes) -> bytes:
        """Everything up to and with the mark."""
        while mark not in self.buffer:
            if not self._more():
                raise AssertionError(f"closed before {mark!r}: {self.buffer[-300:]!r}")
        found, _, self.buffer = self.buffer.partition(mark)
        return found + mark

    def read_exactly(self, count: int) -> bytes:
        while len(self.buffer) < count:
            if not self._more():
                raise AssertionError("closed within a body")
        found, self.buffer = self.buffer[:count], self.buffer[count:]
        return found

    def read_to_end(self) -> bytes:
        while self._more():
            pass
        found, self.buffer = self.buffer, b""
        return found

    def answer(self, head_only: bool = False) -> Answer:
        """One whole answer; interim ones are passed over."""
        head = self.read_until(b"\r\n\r\n").decode("latin-1")
        status = int(head.split(" ", 2)[1])
        if status == 100:
            return self.answer(head_only)
        headers = {}
        for line in head.split("\r\n")[1:-2]:
            name, _, value = line.partition(": ")
            headers[name.lower()] = value
        if head_only:
            return Answer(status, headers, b"")
        if headers.get("transfer-encoding") == "chunked":
            return Answer(status, headers, self._chunked())
        return Answer(status, headers, self.read_exactly(int(headers.get("content-length", 0))))

    def _chunked(self) -> bytes:
        parts = []
        while True:
            size = int(self.read_until(b"\r\n"), 16)
            data = self.read_exactly(size + 2)
            if not size:
                return b"".join(parts)
            parts.append(data[:-2])


def ask(port: int, data: Any = None, **options: Any) -> Answer:
    """Send one request, read one answer."""
    with RawClient(port) as client:
        client.send(request_bytes(data, **options))
        return client.answer(head_only=options.get("method") == "HEAD")


def wait_until(true: Any, seconds: float = 3.0) -> bool:
    """Poll until `true()` is; for effects on other threads."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if true():
            return True
        time.sleep(0.005)
    return bool(true())
