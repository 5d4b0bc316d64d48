"""REDCap before the module: HTTP, the form, the token, the framework's actions, and all its faults.

    with Fake() as fake:
        fake.vendor.push("what the model says next")
        fake.fault.push("gateway_504", seconds=0.05)
        ...  # ask fake.url
        assert fake.requests[0].fields["model"] == fake.requests[0].upstream[0]["model"]

Like PHP, a request goes on to its end when the client has left. All waits end when the fake closes.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Collection, Iterable, Iterator
from html import escape
from http import HTTPStatus
from typing import Any, BinaryIO, Callable, Dict, List, NamedTuple, Optional, Tuple, Union
from urllib.parse import unquote_to_bytes

from tests.fake_securechat.module import ERAS, NO_MESSAGES, Installed, Reply, installed, run
from tests.fake_securechat.text import NETWORK_APOLOGY, php_array

# How often to look whether a client has left.
LOOK_SECONDS = 0.005
CANNED_TEXT = "A canned answer."
NO_RIGHTS = "You do not have permissions to use the API"
BAN = "Your IP address has been banned due to suspected abuse."
DATABASE = "Could not connect to the MySQL server. Please try again later."
OUT_OF_MEMORY = "ERROR: REDCap ran out of memory!"
LOGIN = "<!DOCTYPE html>\n<html><head><title>REDCap</title></head><body>Log In</body></html>"
CRASH_PAGE = "<html><body>REDCap crashed due to an unexpected PHP fatal error!</body></html>"
FIREWALL = "<html><body>The requested URL was rejected. Your support ID is: 4711</body></html>"
GATEWAY = "<html><head><title>{0}</title></head><body><center><h1>{0}</h1></center></body></html>"
WARNING = (
    "<br />\n<b>Warning</b>:  foreach() argument must be of type array|object, string given in"
    " <b>/var/www/html/modules/secure_chat_ai_v1.2.0/SecureChatAI.php</b> on line <b>994</b><br />\n"
)
HTML, XML = "text/html; charset=UTF-8", "text/xml; charset=UTF-8"


# --- what happened ------------------------------------------------------------------------------


class Record:
    """One request. `upstream` has what the module sent to the vendor, a body for each attempt."""

    def __init__(self, method: str, path: str, headers: Dict[str, str], fields: Dict[str, Any]):
        self.method = method
        self.path = path
        self.headers = headers
        self.fields = fields
        self.upstream: List[Any] = []
        self.status = 0
        # Before the whole answer was sent; what the client does afterwards is its own affair.
        self.closed_by_peer = threading.Event()
        self.answered = threading.Event()
        self.began = time.monotonic()
        self.ended: Optional[float] = None

    @property
    def lived(self) -> float:
        """Seconds from this request to its connection's end, or until now."""
        return (time.monotonic() if self.ended is None else self.ended) - self.began

    def end(self, by_peer: bool = False) -> None:
        self.ended = self.ended or time.monotonic()
        if by_peer:
            self.closed_by_peer.set()


class Answer(NamedTuple):
    status: int
    body: bytes
    content_type: str = HTML
    headers: Tuple[Tuple[str, str], ...] = ()


def page(status: int, text: str) -> Answer:
    return Answer(status, text.encode())


# --- the vendor ---------------------------------------------------------------------------------

Said = Union[str, Dict[str, Any], Reply]


class Vendor:
    """Who the module asks: replies that were pushed, else those of `play`, else a canned one.

    `play` gets the body that the module sent, and gives a text, a Reply or the members of one.
    """

    def __init__(self) -> None:
        self.play: Optional[Callable[[Any], Said]] = None
        self._queue: List[Reply] = []
        self._lock = threading.Lock()

    def push(self, *text: Optional[str], **members: Any) -> None:
        self._queue.append(reply_of(*text, **members))

    def reply_to(self, body: Any) -> Reply:
        with self._lock:
            if self._queue:
                return self._queue.pop(0)
        # A body that could not be written as JSON tells a model nothing.
        said = CANNED_TEXT if self.play is None or body is None else self.play(body)
        return said if isinstance(said, Reply) else as_reply(said)


def as_reply(said: Union[str, Dict[str, Any]]) -> Reply:
    return reply_of(said) if isinstance(said, str) else reply_of(**said)


def reply_of(*text: Optional[str], **members: Any) -> Reply:
    """A reply that says something, if it is not said what."""
    silent = text or {"text", "blocks", "tool_calls"} & members.keys()
    return Reply(*text, **members) if silent else Reply(CANNED_TEXT, **members)


# --- faults -------------------------------------------------------------------------------------


class Fault(NamedTuple):
    """What is different about one request; a fault without an answer changes the real one."""

    answer: Optional[Answer] = None
    # The status of a refusal in the format that was asked for, or in `form`.
    refusal: int = 0
    form: Optional[str] = None
    delay: float = 0
    before: bytes = b""
    cut: str = ""
    reply: Optional[Reply] = None
    no_models: bool = False
    never: bool = False


def gateway(seconds: float = 0, status: int = 504) -> Fault:
    title = f"{status} {HTTPStatus(status).phrase}"
    return Fault(page(status, GATEWAY.format(title)), delay=seconds)


def moved(to: str = "/", status: int = 302) -> Fault:
    return Fault(Answer(status, b"", headers=(("Location", to),)))


def refused_400(wrap: str = "wrapped", message: Any = NO_MESSAGES) -> Fault:
    """The module's own error, as it is or as a text in REDCap's."""
    body = json.dumps(message)
    wrapped = body if wrap == "verbatim" else json.dumps({"error": body})
    return Fault(Answer(400, wrapped.encode(), "application/json"))


def in_json(status: int, message: str) -> Fault:
    body = json.dumps({"error": message}).encode()
    return Fault(Answer(status, body, "application/json"))


def vendor_fault(**usual: Any) -> Callable[..., Fault]:
    """A fault of the model or behind it; any member of Reply can be given."""
    return lambda **members: Fault(reply=reply_of(**{**usual, **members}))


def fixed(answer: Answer) -> Callable[..., Fault]:
    return lambda seconds=0: Fault(answer, delay=seconds)


def get_only_answer() -> Answer:
    return Answer(501, xml_error("The requested method is not implemented."), XML)


def xml_error(message: str) -> bytes:
    head = '<?xml version="1.0" encoding="UTF-8" ?>'
    return f"{head}<hash><error>{escape(message, quote=False)}</error></hash>".encode()


FAULTS: Dict[str, Callable[..., Fault]] = {
    "bad_token": lambda form=None, status=403: Fault(refusal=status, form=form),
    "html_login": fixed(page(200, LOGIN)),
    "redirect": moved,
    "get_only": fixed(get_only_answer()),
    "waf": fixed(page(403, FIREWALL)),
    "banned": fixed(page(200, BAN)),
    "mysql": fixed(page(200, DATABASE)),
    "empty_200": fixed(page(200, "")),
    "empty_500": fixed(page(500, "")),
    "oom": fixed(page(500, OUT_OF_MEMORY)),
    "php_fatal": lambda html=False: Fault(page(200, CRASH_PAGE) if html else page(500, "")),
    "crash_page": fixed(page(200, CRASH_PAGE)),
    "warning_prefix": lambda lines=1: Fault(before=WARNING.encode() * lines),
    "error_in_200": lambda message="The module is not enabled in this project": in_json(200, message),
    "wrapped_400": refused_400,
    "gateway": gateway,
    "gateway_502": lambda seconds=0: gateway(seconds, 502),
    "gateway_503": lambda seconds=0: gateway(seconds, 503),
    "gateway_504": gateway,
    "slow": lambda seconds=60: Fault(delay=seconds),
    "slow_error": lambda seconds=20, status=403: Fault(refusal=status, delay=seconds),
    "never": lambda: Fault(never=True),
    "reset": lambda where="head", seconds=0: Fault(cut=checked_cut(where), delay=seconds),
    "answer": lambda status=200, body=b"", **more: Fault(Answer(status, body, **more)),
    "unknown_model": lambda: Fault(no_models=True),
    "vendor_error": vendor_fault(status=500),
    "vendor_timeout": vendor_fault(status=0),
    "empty_text": vendor_fault(text=""),
    "zero_usage_text": vendor_fault(text="Welcome to the chat.", input=0, output=0),
    "real_apology": vendor_fault(text=NETWORK_APOLOGY),
    # Becomes false only by the way that is not Claude's.
    "text_false": vendor_fault(text='{"number":1e400}'),
    "entities": vendor_fault(text="a &amp;lt; b &lt;i&gt; &sum;"),
    "rewritten": vendor_fault(text='{"message":"taken out","more":1}'),
}


def checked_cut(where: str) -> str:
    if where not in CUTS:
        raise ValueError(f"no place to break off: {where}")
    return where


# Where an answer breaks off -> what is sent of head and body. All but `length` end in a reset.
CUTS: Dict[str, Callable[[bytes, bytes], bytes]] = {
    "before": lambda head, body: b"",
    "head": lambda head, body: head[: len(head) // 2],
    "body": lambda head, body: head + body[: len(body) // 2],
    "length": lambda head, body: head + body[: len(body) // 2],
}


class Faults:
    """What goes wrong with the next requests, in order; with `action` set, of that action."""

    def __init__(self) -> None:
        self._queue: List[Tuple[Optional[str], Fault]] = []
        self._lock = threading.Lock()

    def push(self, kind: str, action: Optional[str] = None, **args: Any) -> None:
        self._queue.append((action, FAULTS[kind](**args)))

    def take(self, record: Record) -> Fault:
        asked = (None, record.fields.get("action"))
        with self._lock:
            row = next((row for row in self._queue if row[0] in asked), None)
            if row is None:
                return Fault()
            self._queue.remove(row)
            return row[1]


# --- the form, as PHP reads it ------------------------------------------------------------------

NUMBER = re.compile(r"0|[1-9]\d*", re.ASCII)
Pairs = Iterable[Tuple[str, str]]


def form_fields(headers: Dict[str, str], body: bytes, size_limit: int) -> Dict[str, Any]:
    """Other types have no fields, and a body that is too large loses them all."""
    kind, _, rest = headers.get("content-type", "").partition(";")
    reader = FORM_READERS.get(kind.strip().lower())
    if reader is None or len(body) > size_limit:
        return {}
    return php_fields(reader(body, rest))


def url_pairs(body: bytes, _: str) -> Pairs:
    for part in body.split(b"&"):
        name, _, value = part.partition(b"=")
        yield php_text(unquote_to_bytes(name.replace(b"+", b" "))), php_text(
            unquote_to_bytes(value.replace(b"+", b" "))
        )


def multipart_pairs(body: bytes, parameters: str) -> Pairs:
    """Fields only; files are no fields."""
    match = re.search(r'boundary="?([^";]+)', parameters)
    mark = b"\r\n--" + (match.group(1) if match else "").encode("latin-1")
    for part in (b"\r\n" + body).split(mark)[1:]:
        head, _, value = part.partition(b"\r\n\r\n")
        name = re.search(rb'[; ]name="([^"]*)"', head)
        if name and b"filename=" not in head:
            yield php_text(name.group(1)), php_text(value)


def php_text(data: bytes) -> str:
    # What is no UTF-8 stays apart, for PHP's JSON functions refuse it.
    return data.decode("utf-8", "surrogateescape")


FORM_READERS = {
    "application/x-www-form-urlencoded": url_pairs,
    "multipart/form-data": multipart_pairs,
}


def php_fields(pairs: Pairs) -> Dict[str, Any]:
    """The last of a name counts, `a[]` and `a[k]` make arrays, odd characters become `_`."""
    fields: Dict[str, Any] = {}
    for name, value in pairs:
        keys = php_keys(name)
        if keys[0]:
            put(fields, keys, value)
    return {name: as_lists(value) for name, value in fields.items()}


def php_keys(name: str) -> List[str]:
    """`a[b][]` -> a, b, and "" for the next number."""
    base, bracket, rest = name.lstrip(" ").partition("[")
    keys, rest = [re.sub("[ .]", "_", base)], bracket + rest
    while rest.startswith("["):
        key, closing, behind = rest[1:].partition("]")
        if not closing:
            # A first bracket that does not close is an odd character; a later one is nothing.
            only = len(keys) == 1 and keys[0]
            return [re.sub(r"[ .\[]", "_", keys[0] + rest)] if only else keys
        keys.append("" if key == " " else key)
        rest = behind
    return keys


def put(fields: Dict[str, Any], keys: List[str], value: str) -> None:
    for key in keys[:-1]:
        key = key or next_number(fields)
        if not isinstance(fields.get(key), dict):
            fields[key] = {}
        fields = fields[key]
    fields[keys[-1] or next_number(fields)] = value


def next_number(fields: Dict[str, Any]) -> str:
    return str(max((int(key) for key in fields if NUMBER.fullmatch(key)), default=-1) + 1)


def as_lists(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return php_array({key: as_lists(item) for key, item in value.items()})


# --- REDCap -------------------------------------------------------------------------------------

DESCRIPTION = (
    "SecureChatAI is an External Module (EM) designed as a service to access Stanford's Instance of"
    " OpenAI Models, specifically Secure Chat AI"
)
ABOUT_ACTIONS = {
    "callAI": "Proxy AI calls (DeepSeek, GPT, etc.) for external pipelines",
    "messages": "Claude Messages API compatibility endpoint for Claude Code and Ollama-compatible tools",
}
VERSIONS = ("redcap-version", "framework-version", "module-version")
# The framework's own actions -> what they tell of the module; None is all.
ABOUT: Dict[str, Optional[Tuple[str, ...]]] = {
    "__version": VERSIONS,
    "__actions": ("auth-actions", "no-auth-actions"),
    "__info": None,
}
ENVELOPE = ("token", "content", "prefix", "action", "format", "returnFormat")
ERROR_FORMS: Dict[str, Tuple[Callable[[str], bytes], str]] = {
    "json": (lambda message: json.dumps({"error": message}).encode(), "application/json"),
    "xml": (xml_error, XML),
    "csv": (lambda message: f"ERROR: {message}".encode(), HTML),
}
# None of these is documented but the two of the token; settings can tell others.
STATUSES = {
    "no_token": 403,
    "bad_token": 403,
    "content": 400,
    "prefix": 400,
    "right": 403,
    "format": 406,
    "action": 400,
}


class Site(NamedTuple):
    """An installation."""

    accepts: Callable[[str], bool]
    module: Installed
    api_path: str
    error_wrap: str
    content_type: str
    size_limit: int
    statuses: Dict[str, int]
    has_right: bool
    crash: Answer


def redcap_error(record: Record, status: int, message: str, form: Optional[str] = None) -> Answer:
    """An error in the format that was asked for; without one, or with a wrong one, XML."""
    asked = form or record.fields.get("returnFormat")
    render, kind = ERROR_FORMS.get(asked if isinstance(asked, str) else "", ERROR_FORMS["xml"])
    return Answer(status, render(message), kind)


def wrong_path(site: Site, record: Record) -> Optional[Answer]:
    path = record.path.partition("?")[0]
    if path == site.api_path:
        return None
    if path + "/" == site.api_path:
        return Answer(301, b"", headers=(("Location", site.api_path),))
    return page(200, LOGIN)


def wrong_method(site: Site, record: Record) -> Optional[Answer]:
    return None if record.method == "POST" else get_only_answer()


def wrong_field(site: Site, record: Record) -> Optional[Answer]:
    """The checks of the envelope, in their order."""
    fields = record.fields
    token = fields.get("token") or ""
    checks = (
        ("no_token", bool(token), NO_RIGHTS),
        ("bad_token", isinstance(token, str) and site.accepts(token), NO_RIGHTS),
        ("content", fields.get("content") == "externalModule", "The content is not valid"),
        ("prefix", fields.get("prefix") == "secure_chat_ai", "There is no such module"),
        ("right", site.has_right, "You do not have the right to use the modules' API"),
        ("format", fields.get("returnFormat", "xml") in ERROR_FORMS, "The format is not supported"),
    )
    failed = next((row for row in checks if not row[1]), None)
    return failed and redcap_error(record, site.statuses[failed[0]], failed[2])


def about_module(site: Site, record: Record) -> Optional[Answer]:
    action = record.fields.get("action")
    if not isinstance(action, str) or action not in ABOUT:
        return None
    era = ERAS[site.module.era]
    told = {
        **dict(zip(VERSIONS, ("15.5.0", 14, era.version))),
        "name": "SecureChatAI",
        "description": DESCRIPTION,
        "auth-actions": {name: ABOUT_ACTIONS[name] for name in era.actions},
        "no-auth-actions": {},
    }
    kept = {name: told[name] for name in ABOUT[action] or told}
    return Answer(200, json.dumps(kept).encode(), site.content_type)


def wrong_action(site: Site, record: Record) -> Optional[Answer]:
    if record.fields.get("action") in ERAS[site.module.era].actions:
        return None
    message = "The requested action is not allowed"
    return redcap_error(record, site.statuses["action"], message)


CHECKS = (wrong_path, wrong_method, wrong_field, about_module, wrong_action)


def redcap_answer(site: Site, record: Record, ask: Callable[[Any], Reply]) -> Answer:
    """What REDCap itself has to say, or else the module's answer."""
    for check in CHECKS:
        answer = check(site, record)
        if answer is not None:
            return answer
    fields = {name: value for name, value in record.fields.items() if name not in ENVELOPE}
    outcome = run(site.module, record.fields["action"], fields, ask, record.upstream)
    if isinstance(outcome.body, str):
        return site.crash
    if outcome.status != 200 and site.error_wrap == "wrapped":
        return redcap_error(record, outcome.status, outcome.body.decode())
    return Answer(outcome.status, outcome.body, site.content_type)


# --- HTTP ---------------------------------------------------------------------------------------


class Closed(ConnectionError):
    """The fake closes, so nobody gets an answer any more."""


class Received(NamedTuple):
    method: str
    path: str
    headers: Dict[str, str]
    body: bytes
    keep: bool


def read_request(reader: BinaryIO, writer: BinaryIO) -> Optional[Received]:
    """The next request of a connection; None for its end, and for what is no request."""
    with contextlib.suppress(OSError, ValueError, http.client.HTTPException):
        line = reader.readline(65537).decode("latin-1").split()
        return received(reader, writer, line) if len(line) == 3 else None
    return None


def received(reader: BinaryIO, writer: BinaryIO, line: List[str]) -> Optional[Received]:
    headers = {name.lower(): value for name, value in http.client.parse_headers(reader).items()}
    if headers.get("expect", "").lower() == "100-continue":
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    body = read_body(reader, headers)
    keep = line[2] == "HTTP/1.1" and headers.get("connection", "").lower() != "close"
    return None if body is None else Received(line[0], line[1], headers, body, keep)


def read_body(reader: BinaryIO, headers: Dict[str, str]) -> Optional[bytes]:
    if headers.get("transfer-encoding", "").lower() == "chunked":
        return b"".join(chunks(reader))
    length = int(headers.get("content-length") or 0)
    body = reader.read(length)
    return body if len(body) == length else None


def chunks(reader: BinaryIO) -> Iterator[bytes]:
    while True:
        size = int(reader.readline().partition(b";")[0] or b"0", 16)
        data = reader.read(size)
        reader.readline()
        if not size:
            return
        yield data


def head_of(answer: Answer, keep: bool) -> bytes:
    reason = HTTPStatus(answer.status).phrase
    fields = [
        ("Server", "Apache"),
        ("Content-Type", answer.content_type),
        ("Content-Length", str(len(answer.body))),
        ("Connection", "Keep-Alive" if keep else "close"),
        *answer.headers,
    ]
    lines = [f"HTTP/1.1 {answer.status} {reason}", *(f"{name}: {value}" for name, value in fields)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


class Connection(socketserver.StreamRequestHandler):
    """A client's connection, and the requests on it one after the other."""

    disable_nagle_algorithm = True
    server: Server

    def setup(self) -> None:
        super().setup()
        self.fake = self.server.fake
        self.records: List[Record] = []
        self.fake.opened(self.connection)

    def handle(self) -> None:
        with contextlib.suppress(Closed):
            while self._serve_one():
                pass

    def finish(self) -> None:
        self.fake.closed(self.connection)
        for record in self.records:
            record.end()
        super().finish()

    def _serve_one(self) -> bool:
        request = read_request(self.rfile, self.wfile)
        if request is None:
            return False
        record = self.fake.recorded(request)
        self.records.append(record)
        with self.fake.watched(record, self.connection):
            fault = self.fake.fault.take(record)
            if fault.never:
                self.fake.wait_for_end(record)
                return False
            answer = self._answer(record, fault)
        try:
            return self._send(record, answer, fault.cut, request.keep)
        except OSError:
            record.end(by_peer=not self.fake.closing.is_set())
            return False

    def _answer(self, record: Record, fault: Fault) -> Answer:
        self.fake.pause(fault.delay)
        if fault.answer is not None:
            return fault.answer
        if fault.refusal:
            return redcap_error(record, fault.refusal, NO_RIGHTS, fault.form)
        site, replies = self.fake.site, [fault.reply] if fault.reply else []
        if fault.no_models:
            site = site._replace(module=site.module._replace(aliases={}))

        def ask(body: Any) -> Reply:
            # The module's later attempts meet the same reply.
            if not replies:
                replies.append(self.fake.vendor.reply_to(body))
            self.fake.pause(replies[0].delay)
            return replies[0]

        answer = redcap_answer(site, record, ask)
        return answer._replace(body=fault.before + answer.body)

    def _send(self, record: Record, answer: Answer, cut: str, keep: bool) -> bool:
        record.status = answer.status
        keep = keep and not cut
        head, body = head_of(answer, keep), b"" if record.method == "HEAD" else answer.body
        self.wfile.write(CUTS[cut](head, body) if cut else head + body)
        if cut and cut != "length":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if not cut:
            record.answered.set()
        return keep


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    request_queue_size = 256
    fake: Fake

    def shutdown_request(self, request: Any) -> None:
        """A connection that is to be reset must not be ended politely first."""
        if request.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER):
            self.close_request(request)
        else:
            super().shutdown_request(request)


class Fake:
    """A REDCap with SecureChatAI on loopback, until `close`.

    `tokens` are more tokens than the one, a collection or what decides about one. `aliases` maps
    the module's names of models to the vendors', or is a collection of names. Era "2025" is before
    the action `messages`. `statuses` replaces some of STATUSES.
    """

    def __init__(
        self,
        token: str = "A" * 32,
        aliases: Any = None,
        era: str = "2026-06",
        api_path: str = "/api/",
        error_wrap: str = "verbatim",
        content_type: str = "application/json",
        size_limit: int = 8 << 20,
        *,
        tokens: Union[Collection[str], Callable[[str], bool]] = (),
        statuses: Optional[Dict[str, int]] = None,
        has_right: bool = True,
        crash_page: bool = False,
        reasoning_effort: Optional[str] = "medium",
        port: int = 0,
    ) -> None:
        more = tokens if callable(tokens) else tokens.__contains__
        self.site = Site(
            accepts=lambda given: given == token or more(given),
            module=installed(era, aliases, reasoning_effort),
            api_path=api_path,
            error_wrap=error_wrap,
            content_type=content_type,
            size_limit=size_limit,
            statuses={**STATUSES, **(statuses or {})},
            has_right=has_right,
            crash=page(200, CRASH_PAGE) if crash_page else page(500, ""),
        )
        self.vendor = Vendor()
        self.fault = Faults()
        self.requests: List[Record] = []
        self.closing = threading.Event()
        self._lock = threading.Lock()
        self._sockets: List[socket.socket] = []
        self._at_work: List[Tuple[Record, socket.socket]] = []
        self._server = Server(("127.0.0.1", port), Connection)
        self._server.fake = self
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}{api_path}"
        self._threads = [
            threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True),
            threading.Thread(target=self._watch, daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Fake:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End all connections and waits, and then all threads."""
        self.closing.set()
        self._server.shutdown()
        with self._lock:
            for sock in self._sockets:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
        self._server.server_close()
        for thread in self._threads:
            thread.join()

    # --- what connections use -----------------------------------------------------------------

    def opened(self, sock: socket.socket) -> None:
        with self._lock:
            self._sockets.append(sock)
            # Accepted in the last moment, and not seen by `close`.
            if self.closing.is_set():
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def closed(self, sock: socket.socket) -> None:
        with self._lock:
            self._sockets.remove(sock)

    def recorded(self, request: Received) -> Record:
        fields = form_fields(request.headers, request.body, self.site.size_limit)
        record = Record(request.method, request.path, request.headers, fields)
        with self._lock:
            self.requests.append(record)
        return record

    def pause(self, seconds: float) -> None:
        if seconds and self.closing.wait(seconds):
            raise Closed("the fake closes")

    def wait_for_end(self, record: Record) -> None:
        while not record.closed_by_peer.is_set():
            self.pause(LOOK_SECONDS)

    @contextlib.contextmanager
    def watched(self, record: Record, sock: socket.socket) -> Iterator[None]:
        """Notice in the block if the client leaves."""
        row = (record, sock)
        with self._lock:
            self._at_work.append(row)
        try:
            yield
        finally:
            with self._lock:
                self._at_work.remove(row)
                self._look(row)

    def _watch(self) -> None:
        while not self.closing.wait(LOOK_SECONDS):
            with self._lock:
                for row in self._at_work:
                    self._look(row)

    def _look(self, row: Tuple[Record, socket.socket]) -> None:
        record, sock = row
        if not self.closing.is_set() and has_left(sock):
            record.end(by_peer=True)


def has_left(sock: socket.socket) -> bool:
    try:
        return sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
