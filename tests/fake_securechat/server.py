"""REDCap itself: the form, the token, the module's framework, and everything that can go wrong."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Collection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Callable, Deque, Dict, List, NamedTuple, Optional, Tuple, Union
from urllib.parse import parse_qsl, urlsplit

from tests.fake_securechat.module import Module, VendorAnswer
from tests.fake_securechat.text import PhpFatal

NO_RIGHTS = "You do not have permissions to use the API"
LOGIN = "<!DOCTYPE html>\n<html><head><title>REDCap</title></head><body>Log In</body></html>"
CRASH = "<html><body>REDCap crashed due to an unexpected PHP fatal error!</body></html>"
GATEWAY = "<html><head><title>{} Gateway</title></head><body></body></html>"
WAF = "<html><body>The requested URL was rejected. Your support ID is: 4711</body></html>"
BAN = "Your IP address has been banned due to suspected abuse."
WARNINGS = "<br />\n<b>Warning</b>:  foreach() argument must be of type array|object in <b>x.php</b><br />\n"
ACTIONS = {"callAI": "Ask a model", "messages": "Messages API"}
LOOK_SECONDS = 0.02


class Record:
    """One request as REDCap saw it. `upstream` is what the model was asked, one for each attempt."""

    def __init__(self, method: str, path: str, headers: Dict[str, str], fields: Dict[str, Any]) -> None:
        self.method = method
        self.path = path
        self.headers = headers
        self.fields = fields
        self.upstream: List[Dict[str, Any]] = []
        self.closed_by_peer = threading.Event()


Said = Union[str, Dict[str, Any], VendorAnswer]


class FakeVendor:
    """The models' provider: answers that were pushed, then those of `play`, then canned ones."""

    def __init__(self) -> None:
        self.play: Optional[Callable[[Dict[str, Any]], Said]] = None
        self._queue: Deque[VendorAnswer] = deque()

    def push(self, text: Optional[str] = None, **members: Any) -> None:
        self._queue.append(VendorAnswer(text=text, **members))

    def answer(self, body: Dict[str, Any]) -> VendorAnswer:
        with contextlib.suppress(IndexError):
            return self._queue.popleft()
        said = self.play(body) if self.play else VendorAnswer()
        if isinstance(said, VendorAnswer):
            return said
        return VendorAnswer(text=said) if isinstance(said, str) else VendorAnswer(**said)


class FakeFaults:
    """What goes wrong with the next requests, in order."""

    def __init__(self) -> None:
        self._queue: Deque[Tuple[str, Dict[str, Any]]] = deque()

    def push(self, kind: str, **args: Any) -> None:
        if kind not in FAULTS:
            raise ValueError(f"there is no fault {kind}")
        self._queue.append((kind, args))

    def next(self) -> Optional[Tuple[str, Dict[str, Any]]]:
        with contextlib.suppress(IndexError):
            return self._queue.popleft()
        return None


class Fake:
    """A REDCap on loopback, while the block runs. `era` "2025" has no action `messages`."""

    def __init__(
        self,
        token: str = "A" * 32,
        era: str = "2026-06",
        tokens: Collection[str] = (),
        api_path: str = "/api/",
        error_wrap: str = "verbatim",
        content_type: str = "application/json",
        size_limit: int = 8 << 20,
        missing_token_status: int = 403,
        port: int = 0,
    ) -> None:
        self.tokens = {token, *tokens}
        self.era = era
        self.api_path = api_path
        self.error_wrap = error_wrap
        self.content_type = content_type
        self.size_limit = size_limit
        self.missing_token_status = missing_token_status
        self.vendor = FakeVendor()
        self.fault = FakeFaults()
        self.requests: List[Record] = []
        self.closing = threading.Event()
        self._server = FakeServer(("127.0.0.1", port), FakeHandler)
        self._server.fake = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}{self.api_path}"

    def close(self) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Fake:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class FakeServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256
    fake: Fake

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that leave are a part of the tests."""


class Response(NamedTuple):
    status: int
    body: str
    content_type: str = "text/html"
    headers: Tuple[Tuple[str, str], ...] = ()


class FakeHandler(BaseHTTPRequestHandler):
    """Serves one request a connection, as REDCap's web server often does."""

    server: FakeServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.serve()

    def do_POST(self) -> None:
        self.serve()

    def serve(self) -> None:
        self.close_connection = True
        fake = self.server.fake
        record = Record(self.command, self.path, dict(self.headers.items()), self.form())
        fake.requests.append(record)
        fault = fake.fault.next()
        response: Optional[Response] = None
        with contextlib.suppress(OSError):
            if fault is not None:
                response = FAULTS[fault[0]](self, record, **fault[1])
            else:
                response = self.normal(record)
            if response is not None:
                self.reply(response)

    def form(self) -> Dict[str, Any]:
        """The fields of the body, as PHP has them; none if the type or the size does not suit."""
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        kind = self.headers.get("content-type", "").partition(";")[0]
        if kind != "application/x-www-form-urlencoded" or len(body) > self.server.fake.size_limit:
            return {}
        return php_fields(parse_qsl(body.decode("latin-1"), keep_blank_values=True, encoding="utf-8"))

    def normal(self, record: Record) -> Optional[Response]:
        """REDCap's checks in their order, then the module."""
        fake, fields = self.server.fake, record.fields
        path = urlsplit(self.path).path
        if path == fake.api_path.rstrip("/"):
            return Response(301, "", headers=(("Location", fake.api_path),))
        if path != fake.api_path:
            return Response(200, LOGIN)
        if self.command != "POST":
            return Response(501, "<hash><error>The requested method is not implemented.</error></hash>", "text/xml")
        if not fields.get("token"):
            return self.error(record, fake.missing_token_status, NO_RIGHTS)
        if fields["token"] not in fake.tokens:
            return self.error(record, 403, NO_RIGHTS)
        if fields.get("content") != "externalModule" or fields.get("prefix") != "secure_chat_ai":
            return self.error(record, 400, "The module or the content is not known")
        if fields.get("returnFormat", "xml") not in ("json", "xml", "csv"):
            return self.error(record, 406, "The format is not known")
        return self.module(record, str(fields.get("action", "")))

    def module(self, record: Record, action: str) -> Optional[Response]:
        fake = self.server.fake
        actions = {k: v for k, v in ACTIONS.items() if fake.era != "2025" or k == "callAI"}
        if action in ("__info", "__version", "__actions"):
            about = {"redcap-version": "15.5.0", "framework-version": 16, "module-version": "v1.0.0",
                     "name": "SecureChatAI", "auth-actions": actions, "no-auth-actions": []}
            return self.json(200, json.dumps(about))
        if action not in actions:
            return self.error(record, 400, "The requested action is not allowed")
        module = Module("2026-01" if fake.era == "2025" else fake.era, lambda body: self.vendor(record, body))
        try:
            reply = module.answer(action, record.fields)
        except PhpFatal:
            return Response(500, "")
        if record.closed_by_peer.is_set() or fake.closing.is_set():
            return None
        wrapped = reply.status != 200 and fake.error_wrap == "wrapped"
        return self.json(reply.status, json.dumps({"error": reply.body}) if wrapped else reply.body)

    def vendor(self, record: Record, body: Dict[str, Any]) -> VendorAnswer:
        record.upstream.append(body)
        answer = self.server.fake.vendor.answer(body)
        self.wait(answer.delay, record)
        return answer

    def wait(self, seconds: float, record: Record) -> None:
        """Work for so long, unless the client leaves or the fake closes."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.server.fake.closing.wait(LOOK_SECONDS):
            try:
                if self.connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b"":
                    record.closed_by_peer.set()
                    return
            except BlockingIOError:
                continue
            except OSError:
                record.closed_by_peer.set()
                return

    # --- answers ------------------------------------------------------------------------------------

    def json(self, status: int, body: str) -> Response:
        return Response(status, body, self.server.fake.content_type)

    def error(self, record: Record, status: int, message: str) -> Response:
        kind = record.fields.get("returnFormat", "xml")
        return Response(status, error_text(kind, message), f"text/{'xml' if kind == 'xml' else 'html'}")

    def reply(self, response: Response) -> None:
        body = response.body.encode()
        self.send_response(response.status)
        for name, value in (*response.headers, ("Content-Type", response.content_type)):
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)


def error_text(kind: str, message: str) -> str:
    xml = f'<?xml version="1.0" encoding="UTF-8" ?><hash><error>{message}</error></hash>'
    return {"json": json.dumps({"error": message}), "csv": f"ERROR: {message}"}.get(kind, xml)


def php_fields(pairs: List[Tuple[str, str]]) -> Dict[str, Any]:
    """Fields as PHP has them: the last of a name counts, `a[]` and `a[k]` make arrays."""
    fields: Dict[str, Any] = {}
    for name, value in pairs:
        match = re.fullmatch(r"([^\[]+)\[([^\]]*)\]", name)
        if match is None:
            fields[re.sub(r"[. ]", "_", name)] = value
            continue
        inner = fields.setdefault(match.group(1), {})
        inner[match.group(2) or str(len(inner))] = value
    return {k: list(v.values()) if isinstance(v, dict) and all(map(str.isdigit, v)) else v for k, v in fields.items()}


# --- faults -------------------------------------------------------------------------------------

Fault = Callable[..., Optional[Response]]


def plain(status: int, body: str, *headers: Tuple[str, str]) -> Fault:
    return lambda handler, record: Response(status, body, headers=headers)


def bad_token(handler: FakeHandler, record: Record, form: str = "json") -> Response:
    return Response(403, error_text(form, NO_RIGHTS))


def redirect(handler: FakeHandler, record: Record, to: str, status: int = 302) -> Response:
    return Response(status, "", headers=(("Location", to),))


def after(handler: FakeHandler, record: Record, seconds: float) -> None:
    handler.wait(seconds, record)


def slow(handler: FakeHandler, record: Record, seconds: float) -> Optional[Response]:
    after(handler, record, seconds)
    return handler.normal(record)


def slow_error(handler: FakeHandler, record: Record, seconds: float) -> Response:
    after(handler, record, seconds)
    return bad_token(handler, record)


def never(handler: FakeHandler, record: Record) -> None:
    handler.wait(3600, record)


def gateway(handler: FakeHandler, record: Record, seconds: float = 0, status: int = 504) -> Response:
    after(handler, record, seconds)
    return Response(status, GATEWAY.format(status))


def warning_prefix(handler: FakeHandler, record: Record) -> Optional[Response]:
    response = handler.normal(record)
    return response and response._replace(body=WARNINGS + response.body)


def reset(handler: FakeHandler, record: Record, where: str = "head") -> None:
    """Break off in the head, in the body, before any byte, or hang up short of the length."""
    parts = {
        "before": b"",
        "head": b"HTTP/1.1 200 OK\r\nContent-Le",
        "body": b'HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{"id":"msg_1","type":',
        "length": b'HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{"id":"msg_1","type":"message"}',
    }
    handler.wfile.write(parts[where])
    if where != "length":
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


FAULTS: Dict[str, Fault] = {
    "bad_token": bad_token,
    "html_login": plain(200, LOGIN),
    "redirect": redirect,
    "get_only": plain(501, "<hash><error>The requested method is not implemented.</error></hash>"),
    "waf": plain(403, WAF),
    "banned": plain(200, BAN),
    "empty_200": plain(200, ""),
    "empty_500": plain(500, ""),
    "oom": plain(500, "ERROR: REDCap ran out of memory!"),
    "php_fatal": plain(500, ""),
    "crash_page": plain(200, CRASH),
    "mysql": plain(200, "Could not connect to the MySQL server"),
    "error_in_200": plain(200, '{"error":"The module is not enabled in this project"}'),
    "warning_prefix": warning_prefix,
    "gateway": gateway,
    "slow": slow,
    "slow_error": slow_error,
    "never": never,
    "reset": reset,
}
