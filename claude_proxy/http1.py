"""HTTP/1.1 messages as bytes: strict request heads, body framing, and what we send. No I/O.

Requests are read strictly (RFC 9112, and no more than it): whatever two parsers could understand in
two ways is refused, so nothing can be smuggled past or through this proxy. Line ends are CRLF only,
a Content-Length is digits only and stands alone, and Transfer-Encoding is "chunked" or nothing.
Answers of upstreams are read with the same framing, but their heads may be sloppy.

`wire` and `transport` do the reading and writing; nothing here waits, and nothing is kept but
what a body decoder needs between two pieces.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import Dict, List, NamedTuple, Optional, Tuple, Union
from urllib.parse import urlsplit

from claude_proxy.errors import ProxyError
from claude_proxy.patterns import LazyPattern

LONGEST_REQUEST_LINE = 8 * 1024
LONGEST_HEAD = 32 * 1024
MOST_FIELDS = 100
LONGEST_CHUNK_LINE = 256
LONGEST_TRAILERS = 8 * 1024

HTTP_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
HTTP_REQUEST_LINE = re.compile(
    rf"({HTTP_TOKEN.decode('ascii')}) ([\x21-\x7e]+) (HTTP/[0-9]\.[0-9])"
)
HTTP_FIELD_LINES = re.compile(rb"(?:%b:[\t\x20-\x7e\x80-\xff]*\r\n)*" % HTTP_TOKEN)
HTTP_BARE_LINE_END = LazyPattern(rb"(?<!\r)\n|\r(?!\n|\Z)")
HTTP_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z._~%!$&'()*+,;=-]+)(?::[0-9]{0,5})?")
HTTP_DIGITS = re.compile(r"[0-9]{1,18}")
HTTP_CHUNK_SIZE = LazyPattern(rb"([0-9A-Fa-f]{1,16})(?:[\t ]*;[\t\x20-\x7e\x80-\xff]*)?")
HTTP_CHUNK_SIZE_BEGUN = LazyPattern(rb"[0-9A-Fa-f]{1,16}[\t ]*(?:;[\t\x20-\x7e\x80-\xff]*)?")
HTTP_STATUS_LINE = LazyPattern(r"(HTTP/1\.[01]) ([1-5][0-9]{2})(?: [^\r\n]*)?")
LAST_CHUNK = b"0\r\n\r\n"
HEX_DIGITS = b"0123456789abcdefABCDEF"
HTTP_UNSAFE = LazyPattern(r"[\r\n\x00]")
HTTP_REASONS = {status.value: status.phrase for status in HTTPStatus}


class HttpRequest(NamedTuple):
    """A request as the endpoints see it. `headers` has lower-case names; repeated ones are joined.

    `path` is as sent, without query; `peer` is the client's address.
    """

    method: str
    path: str
    query: str
    headers: Dict[str, str]
    version: str = "HTTP/1.1"
    host: str = ""
    body: bytes = b""
    peer: str = ""

    def with_body(self, body: bytes) -> HttpRequest:
        """As `_replace`, at a fifth of the price."""
        return HttpRequest(*self[:6], body, self.peer) if body else self


class HttpResponse(NamedTuple):
    """An answer: a whole body, or pieces that are sent as they come."""

    status: int
    headers: Tuple[Tuple[str, str], ...]
    body: Union[bytes, Iterable[bytes]]


class ResponseHead(NamedTuple):
    """An upstream's status line and header fields."""

    version: str
    status: int
    headers: Dict[str, str]


def bad_request(message: str, status: int = 400) -> ProxyError:
    return ProxyError(status, f"malformed HTTP request: {message}")


# --- request heads -----------------------------------------------------------------------------


def take_head(buffer: bytes, scanned: int = 0) -> Optional[Tuple[bytes, bytes]]:
    """Cut (head, rest) off a buffer, or return None when the head is not whole yet.

    A buffer that can never become a head within the limits raises ProxyError at once. Its first
    `scanned` bytes were seen before, so that a head that drips in is not read anew for each byte.
    """
    begin = max(0, scanned - 3)
    end = buffer.find(b"\r\n\r\n", begin)
    head = buffer if end < 0 else buffer[: end + 2]
    # Looking at each byte for what is around it takes long: first, whether there is any at all.
    others = head[begin:].replace(b"\r\n", b"")
    if (b"\n" in others or b"\r" in others) and HTTP_BARE_LINE_END.search(head, begin):
        raise bad_request("a line does not end in CRLF")
    line_end = head.find(b"\r\n")
    if (len(head) if line_end < 0 else line_end) > LONGEST_REQUEST_LINE:
        raise bad_request(f"the request line has more than {LONGEST_REQUEST_LINE} bytes", 414)
    if len(head) > LONGEST_HEAD:
        raise bad_request(f"the header fields have more than {LONGEST_HEAD} bytes", 431)
    return None if end < 0 else (head, buffer[end + 4 :])


def parse_head(head: bytes, peer: str = "") -> HttpRequest:
    """Parse a head as `take_head` cut it: request line and fields, each with its CRLF."""
    line, _, fields = head.partition(b"\r\n")
    match = HTTP_REQUEST_LINE.fullmatch(line.decode("latin-1"))
    if match is None:
        raise bad_request("the request line is not METHOD TARGET HTTP/1.1")
    method, target, version = match.groups()
    if version not in ("HTTP/1.1", "HTTP/1.0"):
        raise bad_request("only HTTP/1.1 and HTTP/1.0 are spoken here", 505)
    headers = parse_fields(fields)
    path, query, authority = parse_target(method, target)
    host = checked_host(headers, version)
    return HttpRequest(method, path, query, headers, version, authority or host, b"", peer)


def parse_fields(fields: bytes) -> Dict[str, str]:
    """Header fields by lower-case name. Framing fields and Host may not be repeated."""
    if HTTP_FIELD_LINES.fullmatch(fields) is None:
        raise bad_request("a header field is not NAME: VALUE")
    lines = fields.decode("latin-1").split("\r\n")[:-1]
    if len(lines) > MOST_FIELDS:
        raise bad_request(f"more than {MOST_FIELDS} header fields", 431)
    headers: Dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        name, value = name.lower(), value.strip(" \t")
        if name in headers:
            if name in ("host", "content-length", "transfer-encoding", "content-type"):
                raise bad_request(f"{name} is repeated")
            value = f"{headers[name]}, {value}"
        headers[name] = value
    return headers


def parse_target(method: str, target: str) -> Tuple[str, str, str]:
    """(path, query, authority) of a request target in any of RFC 9112's four forms."""
    if "#" in target:
        raise bad_request("the request target has a fragment")
    if target.startswith("/"):
        path, _, query = target.partition("?")
        return path, query, ""
    if method == "OPTIONS" and target == "*":
        return "*", "", ""
    if method == "CONNECT":
        return "", "", ""
    if re.match(r"(?i)https?://[^/?@]", target):
        return absolute_target(target)
    raise bad_request("the request target is neither a path nor an absolute URL")


def absolute_target(target: str) -> Tuple[str, str, str]:
    try:
        parts = urlsplit(target)
    except ValueError:
        raise bad_request("the request target is not a URL") from None
    if HTTP_HOST.fullmatch(parts.netloc) is None:
        raise bad_request("the request target's host is not valid")
    return parts.path or "/", parts.query, parts.netloc


def checked_host(headers: Dict[str, str], version: str) -> str:
    host = headers.get("host")
    if host is None:
        if version == "HTTP/1.1":
            raise bad_request("Host is missing")
        return ""
    if HTTP_HOST.fullmatch(host) is None:
        raise bad_request("Host is not valid")
    return host


def keeps_alive(version: str, headers: Dict[str, str]) -> bool:
    """Whether the sender of this message leaves its connection open behind it."""
    if "connection" not in headers:
        return version == "HTTP/1.1"
    tokens = {token.strip().lower() for token in headers["connection"].split(",")}
    return "close" not in tokens and (version == "HTTP/1.1" or "keep-alive" in tokens)


# --- bodies ------------------------------------------------------------------------------------


class LengthBody:
    """A body of a known length. `rest` is what came behind it."""

    def __init__(self, length: int) -> None:
        self._left = length
        self.done = length == 0
        self.rest = b""

    def feed(self, piece: bytes) -> bytes:
        if len(piece) > self._left:
            piece, self.rest = piece[: self._left], piece[self._left :]
        self._left -= len(piece)
        self.done = self._left == 0
        return piece

    def end_of_input(self) -> bool:
        """Whether the body may end here."""
        return self.done


class UntilCloseBody:
    """A body that ends with the connection: only answers have those."""

    def __init__(self) -> None:
        self.done = False
        self.rest = b""

    def feed(self, piece: bytes) -> bytes:
        return piece

    def end_of_input(self) -> bool:
        self.done = True
        return True


def chunk_size(line: bytes) -> int:
    """The size that a line says, which nearly always is nothing but that."""
    if len(line) <= 16 and not line.strip(HEX_DIGITS) and line:
        return int(line, 16)
    match = HTTP_CHUNK_SIZE.fullmatch(line)
    if match is None:
        raise bad_request("a chunk size is not a hexadecimal number")
    return int(match.group(1), 16)


class ChunkedBody:
    """A chunked body: takes pieces however they are cut, gives the data in them."""

    def __init__(self) -> None:
        self.done = False
        self.rest = b""
        self._pending = b""
        self._left = 0
        # No method of its own: that would be a ring, which only the garbage collector breaks.
        self._step = ChunkedBody._size_line
        self._trailer_bytes = 0

    def feed(self, piece: bytes) -> bytes:
        """The data that this piece brings; raises ProxyError(400) at the first wrong byte."""
        self._pending = self._pending + piece if self._pending else piece
        parts: List[bytes] = []
        while self._pending and not self.done and self._step(self, parts):
            pass
        if self.done:
            self.rest, self._pending = self._pending, b""
        return b"".join(parts)

    def end_of_input(self) -> bool:
        return self.done

    # Each step takes what it can from `_pending`, and says whether to go on.

    def _size_line(self, parts: List[bytes]) -> bool:
        data, position = self._pending, 0
        while position < len(data):
            end = data.find(b"\r\n", position, position + LONGEST_CHUNK_LINE)
            if end < 0:
                self._pending = data[position:]
                return self._short_size_line()
            size = chunk_size(data[position:end])
            stop = end + 2 + size
            if size == 0 and data.startswith(LAST_CHUNK, position):
                self.done, self._pending = True, data[stop + 2 :]
                return False
            if size == 0 or len(data) < stop + 2:
                return self._enter_chunk(data[end + 2 :], size)
            if data[stop : stop + 2] != b"\r\n":
                raise bad_request("a chunk does not end in CRLF")
            parts.append(data[end + 2 : stop])
            position = stop + 2
        self._pending = b""
        return False

    def _short_size_line(self) -> bool:
        # Refused as soon as it cannot become a size line, not when the line ends.
        line = self._pending[:-1] if self._pending.endswith(b"\r") else self._pending
        if len(line) >= LONGEST_CHUNK_LINE or (
            line and HTTP_CHUNK_SIZE_BEGUN.fullmatch(line) is None
        ):
            raise bad_request("a chunk size is not a hexadecimal number")
        return False

    def _enter_chunk(self, data: bytes, size: int) -> bool:
        self._pending, self._left = data, size
        self._step = ChunkedBody._chunk_data if size else ChunkedBody._trailer_line
        return True

    def _chunk_data(self, parts: List[bytes]) -> bool:
        data = self._pending[: self._left]
        parts.append(data)
        self._left -= len(data)
        self._pending = self._pending[len(data) :]
        if not self._left:
            self._step = ChunkedBody._chunk_end
        return True

    def _chunk_end(self, parts: List[bytes]) -> bool:
        if not b"\r\n".startswith(self._pending[:2]):
            raise bad_request("a chunk does not end in CRLF")
        if len(self._pending) < 2:
            return False
        self._pending = self._pending[2:]
        self._step = ChunkedBody._size_line
        return True

    def _trailer_line(self, parts: List[bytes]) -> bool:
        # Trailers are read, checked and dropped: nobody here has a use for them.
        end = self._pending.find(b"\r\n")
        length = len(self._pending) if end < 0 else end
        if self._trailer_bytes + length > LONGEST_TRAILERS:
            raise bad_request("the trailers are too long", 431)
        if end < 0:
            return False
        line, self._pending = self._pending[:end], self._pending[end + 2 :]
        if line and HTTP_FIELD_LINES.fullmatch(line + b"\r\n") is None:
            raise bad_request("a trailer is not NAME: VALUE")
        self._trailer_bytes += length
        self.done = not line
        return True


Body = Union[LengthBody, ChunkedBody, UntilCloseBody]


def request_body(request: HttpRequest) -> Body:
    """The decoder for a request's body (RFC 9112, 6.3); every ambiguity is refused."""
    length = request.headers.get("content-length")
    coding = request.headers.get("transfer-encoding")
    if coding is not None:
        if length is not None:
            raise bad_request("both Content-Length and Transfer-Encoding")
        if request.version == "HTTP/1.0":
            raise bad_request("Transfer-Encoding in HTTP/1.0")
        if coding.lower() != "chunked":
            raise bad_request("the only Transfer-Encoding understood is chunked")
        return ChunkedBody()
    if length is None:
        return LengthBody(0)
    if HTTP_DIGITS.fullmatch(length) is None:
        raise bad_request("Content-Length is not a number")
    return LengthBody(int(length))


# --- what we send ------------------------------------------------------------------------------


def encode_head(start: str, headers: Iterable[Tuple[str, str]]) -> bytes:
    """A head that begins with this line; ValueError if a field holds an end of one."""
    lines = [start, *[f"{name}: {value}" for name, value in headers]]
    text = "".join(lines)
    if "\n" in text or "\r" in text or "\0" in text:
        unsafe = next(line for line in lines if HTTP_UNSAFE.search(line))
        raise ValueError(f"header {unsafe.partition(':')[0]!r} holds a line end")
    lines += ("", "")
    return "\r\n".join(lines).encode("latin-1", "replace")


def encode_response_head(status: int, headers: Iterable[Tuple[str, str]]) -> bytes:
    return encode_head(f"HTTP/1.1 {status} {HTTP_REASONS.get(status, 'Unknown')}", headers)


def encode_request_head(method: str, target: str, headers: Iterable[Tuple[str, str]]) -> bytes:
    line = f"{method} {target} HTTP/1.1"
    if HTTP_REQUEST_LINE.fullmatch(line) is None:
        raise ValueError("the request target holds blanks or control characters")
    return encode_head(line, headers)


def encode_chunk(piece: bytes) -> bytes:
    """One chunk, size line and all, so that it leaves in one send and one packet."""
    return b"%x\r\n%b\r\n" % (len(piece), piece)


# --- answers of upstreams ----------------------------------------------------------------------


# Of these the last one counts, if a sloppy server sends several.
UNJOINED_HEADERS = ("content-length", "transfer-encoding", "content-type", "location")


def take_response_head(buffer: bytes) -> Optional[Tuple[ResponseHead, bytes]]:
    """Cut (head, rest) off an upstream's bytes, or return None when the head is not whole yet."""
    end = buffer.find(b"\r\n\r\n")
    if end < 0:
        if len(buffer) > LONGEST_HEAD:
            raise ProxyError(502, "the upstream's header fields are too long")
        return None
    line, *fields = buffer[:end].decode("latin-1").split("\r\n")
    match = HTTP_STATUS_LINE.fullmatch(line)
    if match is None:
        raise ProxyError(502, "the upstream does not speak HTTP/1.1: check its base URL")
    headers: Dict[str, str] = {}
    for field in fields:
        name, _, value = field.partition(":")
        name, value = name.strip().lower(), value.strip(" \t")
        if name in headers and name not in UNJOINED_HEADERS:
            value = f"{headers[name]}, {value}"
        headers[name] = value
    version, status = match.groups()
    return ResponseHead(version, int(status), headers), buffer[end + 4 :]


def response_body(head: ResponseHead) -> Body:
    """The decoder for an answer's body."""
    if head.status in (204, 304):
        return LengthBody(0)
    if "chunked" in head.headers.get("transfer-encoding", "").lower():
        return ChunkedBody()
    length = head.headers.get("content-length", "")
    return LengthBody(int(length)) if HTTP_DIGITS.fullmatch(length) else UntilCloseBody()
