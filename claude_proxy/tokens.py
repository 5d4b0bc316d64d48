"""An estimate of a request's input tokens, without a tokenizer: never under, at most 1.35 over.

UTF-8 bytes are mapped to classes (letter, digit, lead byte of a Chinese character, ...); the bytes
and the runs of each class are counted and weighted. The weights were fitted to five vocabularies
over code, logs, JSON, prose and 33 languages (tests/calibration has the script and what it found),
so nearly all mixtures of 70 KB or more keep the promise for each of them; a short text, or one of a
rare kind, may stray further. All text of a request is joined and counted once, in 30 to 40 ms per
MB. Never raises on odd shapes: they count as JSON text. No I/O.
"""

from __future__ import annotations

import binascii
import json
import math
import re
import string
import struct
import zlib
from itertools import islice
from typing import Any, Dict, List, Optional, Tuple

from claude_proxy.patterns import LazyPattern

MESSAGE_TOKENS = 4
TOOL_CALL_TOKENS = 8
TOOL_TOKENS = 12
ANSWER_START_TOKENS = 3
# Every upstream has its own price for an image: the dearest usual one, and where the last of them
# (Qwen-VL) begins to scale images down.
IMAGE_LEAST_TOKENS = 1600
IMAGE_MOST_TOKENS = 16384
IMAGE_PIXELS_PER_TOKEN = 750
PDF_PAGE_TOKENS = 2000
PDF_BYTES_PER_PAGE = 40_000

LOWER_BYTES = string.ascii_lowercase.encode()
UPPER_BYTES = string.ascii_uppercase.encode()
LETTER_BYTES = LOWER_BYTES + UPPER_BYTES
DIGIT_BYTES = string.digits.encode()
PUNCTUATION_BYTES = string.punctuation.encode()
CONTROL_BYTES = bytes(sorted({*range(0x20), 0x7F} - {*b"\t\n\r"}))
CONTINUATION_BYTES = bytes(range(0x80, 0xC0))
NO_LEADS = bytes(range(0xC0))
MIDDLE_LEADS = bytes(range(0xCC, 0xE0))  # Greek, Cyrillic, Hebrew, Arabic

# (weight of a byte of the class, its mark, members)
ASCII_WEIGHTS = (
    (0.13, b"A", UPPER_BYTES),
    (0.80, b"0", DIGIT_BYTES),
    (0.19, b",", PUNCTUATION_BYTES),
    (0.72, b"t", b"\t"),
    (1.52, b"c", CONTROL_BYTES),
)
# (weight, marks): lower to upper, capitals in pairs, and what a compound has beyond the first
# letters, which the run's weight stands for.
PATTERN_WEIGHTS = ((0.99, b"aA"), (0.11, b"AA"), (4.15, b"a" * 12))
# (weight of a run, its first mark). One bit a class, so that all are looked at together; a blank's
# mark before a 0 is a run of two or more.
RUN_WEIGHTS = (
    (0.98, b"\x01"), (0.83, b"\x02"), (0.72, b"\x04"), (1.24, b"\x08"), (1.06, b"\x10\0")
)
RUN_CLASSES = (LETTER_BYTES, DIGIT_BYTES, PUNCTUATION_BYTES, b"\r\n", b" ")
# Letters that are rare in English: names, abbreviations and other languages have them.
RARE_LETTERS = b"jkqvwxyz"
RARE_LETTER_WEIGHT = 0.49
# How few English words end, and many in other languages: "a " and "i ", and "en ".
VOWEL_ENDING_WEIGHT = 1.06
VOWEL_ENDING = b"a "
EN_ENDING_WEIGHT = 2.02
EN_ENDING = b"en "
# Letters and digits that nothing breaks, as in base64.
UNBROKEN = b"a" * 24
UNBROKEN_WEIGHT = 3.20

LEAD_WEIGHTS = (
    (0.25, b"L", b"\xc2\xc3"),  # Latin with the marks of western languages
    (0.98, b"M", bytes(range(0xC4, 0xCC))),  # Latin with others
    (0.49, b"G", b"\xcc\xcd\xce\xcf\xd6\xd7"),  # Greek, Hebrew
    (0.37, b"Y", bytes(range(0xD0, 0xD6)) + bytes(range(0xD8, 0xE0))),  # Cyrillic, Arabic
    (0.58, b"I", b"\xe0"),  # Indic, Thai
    (0.81, b"V", b"\xe1"),  # Georgian, Khmer
    (1.40, b"S", b"\xe2"),  # symbols, box drawing
    (1.01, b"F", b"\xee\xef"),  # wide punctuation
    (0.61, b"J", b"\xe3"),  # kana
    (1.04, b"K", bytes(range(0xE4, 0xEA))),  # Chinese
    (0.89, b"H", bytes(range(0xEA, 0xEE))),  # Hangul
    (2.63, b"E", bytes(range(0xF0, 0xF5))),  # emoji
)
# What some scripts have beyond their lead byte's weight, or less than it.
PAIR_WEIGHTS = (
    (0.66, b"\xe0\xa5"),  # Devanagari
    (0.28, b"\xe0\xb0"), (0.50, b"\xe0\xb1"),  # Telugu
    (-0.61, b"\xe1\xba"), (-0.61, b"\xe1\xbb"),  # Vietnamese
)
MIDDLE_RUN_WEIGHT = 0.45
# A Latin letter with a mark tells the language of about eight words, whose ASCII letters cost more
# than English ones.
WORDS_PER_MARK = 8
FOREIGN_WORD_WEIGHT = 0.16


def byte_marks(other: bytes, classes: Dict[bytes, bytes]) -> bytes:
    """A table for `bytes.translate`, from mark -> members; `other` marks the rest."""
    table = bytearray(other * 256)
    for mark, members in reversed(tuple(classes.items())):  # the first one counts
        for member in members:
            table[member] = mark[0]
    return bytes(table)


BYTE_MARKS = byte_marks(
    b".", {b"a": LOWER_BYTES, **{row[1]: row[2] for row in ASCII_WEIGHTS + LEAD_WEIGHTS}}
)
RUN_MARKS = byte_marks(b"\x80", {bytes([1 << i]): members for i, members in enumerate(RUN_CLASSES)})
ENDING_MARKS = byte_marks(b".", {b"a": b"ai", b" ": b" "})
WORD_MARKS = byte_marks(b".", {b"a": LETTER_BYTES + DIGIT_BYTES})
MIDDLE_MARKS = byte_marks(b".", {b"G": MIDDLE_LEADS})
# In the order of `text_counts`: what ASCII text has, then the rest.
ASCII_COUNT_WEIGHTS = (
    *(row[0] for row in ASCII_WEIGHTS + PATTERN_WEIGHTS + RUN_WEIGHTS),
    VOWEL_ENDING_WEIGHT,
    EN_ENDING_WEIGHT,
    RARE_LETTER_WEIGHT,
    UNBROKEN_WEIGHT,
)
COUNT_WEIGHTS = (
    *ASCII_COUNT_WEIGHTS,
    *(row[0] for row in LEAD_WEIGHTS + PAIR_WEIGHTS),
    MIDDLE_RUN_WEIGHT,
    FOREIGN_WORD_WEIGHT,
)


def text_tokens(text: str) -> float:
    """The estimate for one text, in tokens."""
    return sum(weight * count for weight, count in zip(COUNT_WEIGHTS, text_counts(text)))


def text_counts(text: str) -> List[int]:
    """What is weighted; ASCII text has the first of them only."""
    data = text.encode("utf-8", "surrogatepass")
    marks, starts = data.translate(BYTE_MARKS), run_starts(data.translate(RUN_MARKS))
    counts = [marks.count(mark) for _, mark, _ in ASCII_WEIGHTS]
    counts += [marks.count(pattern) for _, pattern in PATTERN_WEIGHTS]
    counts += [starts.count(start) for _, start in RUN_WEIGHTS]
    counts += [data.translate(ENDING_MARKS).count(VOWEL_ENDING), data.count(EN_ENDING)]
    counts.append(len(data) - len(data.translate(None, RARE_LETTERS)))
    counts.append(data.translate(WORD_MARKS).count(UNBROKEN))
    if not data.isascii():
        counts += lead_counts(data, starts.count(RUN_WEIGHTS[0][1]))
    return counts


def lead_counts(data: bytes, words: int) -> List[int]:
    """The counts of what is not ASCII, in a text with so many runs of ASCII letters."""
    marks = data.translate(BYTE_MARKS, NO_LEADS)  # a third of the bytes, or less
    counts = [marks.count(mark) for _, mark, _ in LEAD_WEIGHTS]
    latin = sum(counts[:2])
    counts += [data.count(pair) if pair[:1] in data else 0 for _, pair in PAIR_WEIGHTS]
    counts.append((b"." + data.translate(MIDDLE_MARKS, CONTINUATION_BYTES)).count(b".G"))
    counts.append(min(latin * WORDS_PER_MARK, words))
    return counts


def run_starts(marks: bytes) -> bytes:
    """The same marks, with 0 for each that equals its predecessor.

    As one long number, because that takes half the time of counting pairs class by class.
    """
    here = int.from_bytes(marks, "big")
    return (here ^ (here & (here >> 8))).to_bytes(len(marks), "big")


# Block type -> the members that a model sees. Signatures and encrypted members are no text to it.
# A document's source ("text", "content", "url", ...) is told like a block.
BLOCK_CONTENT = {
    "text": ("text", "data"),
    "content": ("content",),
    "thinking": ("thinking",),
    "redacted_thinking": (),
    "tool_use": ("name",),
    "server_tool_use": ("name",),
    "mcp_tool_use": ("name",),
    "tool_result": ("content",),
    "mcp_tool_result": ("content",),
    "web_search_tool_result": ("content",),
    "web_search_result": ("title", "url", "page_age"),
    "web_fetch_tool_result": ("content",),
    "web_fetch_result": ("url", "content"),
    "search_result": ("title", "source", "content"),
    "document": ("title", "context", "source"),
    "image": ("source",),
    "tool_reference": ("tool_name",),
    "compaction": ("content",),
    "fallback": (),
}
# What no block's text is, nor an unknown one's: it may be long, and no model reads it.
UNREAD_MEMBERS = ("signature", "encrypted_")


def count_input_tokens(request: Any) -> int:
    """The estimate for a Messages request: system, messages, tools, and what frames them."""
    if not isinstance(request, dict):
        request = {"messages": request}
    texts: List[str] = []
    system, messages, tools = (
        list_to_count(request.get(key)) for key in ("system", "messages", "tools")
    )
    tokens = ANSWER_START_TOKENS + TOOL_TOKENS * len(tools)
    tokens += MESSAGE_TOKENS * (len(messages) + bool(system))
    for content in (system, *map(content_to_count, messages)):
        tokens += content_tokens(content, texts)
    schemas = [request[key] for key in ("output_config", "output_format") if key in request]
    texts += map(tokens_json, tools + schemas)
    return math.ceil(tokens + text_tokens(" ".join(texts)))


def list_to_count(value: Any) -> List[Any]:
    """A list as it is, nothing as an empty one, and anything else alone in one."""
    return value if isinstance(value, list) else [] if value is None else [value]


def content_to_count(message: Any) -> Any:
    content = message.get("content") if isinstance(message, dict) else None
    return message if content is None else content


def content_tokens(content: Any, texts: List[str]) -> int:
    """Put all text inside into `texts`, however deep; return the tokens of what is no text."""
    tokens, pending = 0, [content]
    while pending:
        item = pending.pop()
        if isinstance(item, list):
            pending.extend(item)
        elif isinstance(item, dict):
            tokens += block_tokens(item, texts, pending)
        elif item is not None:
            texts.append(item if isinstance(item, str) else tokens_json(item))
    return tokens


def block_tokens(block: Dict[str, Any], texts: List[str], pending: List[Any]) -> int:
    """The same for one block; the contents that it has go to `pending`."""
    kind = str(block.get("type"))
    if kind in ("base64", "url", "file"):
        return media_tokens(block.get("data"))
    if kind in BLOCK_CONTENT:
        pending.extend(block.get(member) for member in BLOCK_CONTENT[kind])
        own = block.get("input")
    else:
        own = unknown_block(block, pending)
    if own is not None:
        texts.append(tokens_json(own))
    return TOOL_CALL_TOKENS if kind.endswith(("tool_use", "tool_result")) else 0


def unknown_block(block: Dict[str, Any], pending: List[Any]) -> Dict[str, Any]:
    """What of an unknown block counts as JSON; what it holds may be blocks: that is `pending`."""
    own = {}
    for name, value in block.items():
        if not str(name).startswith(UNREAD_MEMBERS):
            own[name] = None if isinstance(value, (dict, list)) else value
            if own[name] is None:
                pending.append(value)
    return own


def tokens_json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)
    except (TypeError, ValueError, RecursionError):
        return ""  # no JSON that could have been sent: nested too deeply, or a number too long


PDF_PAGE = LazyPattern(rb"/Type\s*/Page(?![A-Za-z])")
# Most PDFs keep their pages in compressed streams of objects. How much of them is looked at:
PDF_OBJECTS = LazyPattern(rb"/ObjStm\b.{0,300}?stream\r?\n", re.DOTALL)
PDF_OBJECTS_BYTES = 1_000_000
PDF_OBJECTS_MOST = 100
# A JPEG's size may stand behind a thumbnail and a colour profile, the others' in the first bytes.
IMAGE_HEAD = 64
JPEG_HEAD = 256 * 1024


def media_tokens(data: Any) -> int:
    """What a base64 image or PDF costs: by its size or pages, never by the length of its text."""
    data = data if isinstance(data, str) else ""
    head = decode_base64(data[:IMAGE_HEAD])
    if head.startswith(b"%PDF"):
        content = decode_base64(data)
        pages = pdf_pages(content) or math.ceil(len(content) / PDF_BYTES_PER_PAGE)
        return pages * PDF_PAGE_TOKENS
    if head.startswith(b"\xff\xd8"):
        head = decode_base64(data[:JPEG_HEAD])
    width, height = image_size(head) or (0, 0)
    tokens = math.ceil(width * height / IMAGE_PIXELS_PER_TOKEN)
    return min(max(tokens, IMAGE_LEAST_TOKENS), IMAGE_MOST_TOKENS)


def pdf_pages(content: bytes) -> int:
    """The pages that can be seen; 0 for a PDF that is encrypted or broken."""
    pages = len(PDF_PAGE.findall(content))
    for stream in islice(PDF_OBJECTS.finditer(content), PDF_OBJECTS_MOST):
        packed = memoryview(content)[stream.end() : stream.end() + PDF_OBJECTS_BYTES]
        try:
            objects = zlib.decompressobj().decompress(packed, PDF_OBJECTS_BYTES)
        except zlib.error:
            continue
        pages += len(PDF_PAGE.findall(objects))
    return pages


def decode_base64(text: str) -> bytes:
    """What can be decoded of a text that may be cut anywhere."""
    letters = "".join(text.split()).rstrip("=")
    try:
        return binascii.a2b_base64(letters[: len(letters) // 4 * 4])
    except ValueError:
        return b""


def image_size(head: bytes) -> Optional[Tuple[int, int]]:
    """(width, height) from the first bytes of a PNG, GIF, WebP or JPEG; None if there is none."""
    try:
        if head.startswith(b"\x89PNG\r\n"):
            return struct.unpack_from(">II", head, 16)
        if head.startswith(b"GIF8"):
            return struct.unpack_from("<HH", head, 6)
        return webp_size(head) if head.startswith(b"RIFF") else jpeg_size(head)
    except struct.error:
        return None


def webp_size(head: bytes) -> Tuple[int, int]:
    """From the chunk of each of WebP's three kinds: lossy, lossless, extended."""
    if head[12:16] == b"VP8 ":
        width, height = struct.unpack_from("<HH", head, 26)
        return width & 0x3FFF, height & 0x3FFF
    if head[12:16] == b"VP8L":
        bits = struct.unpack_from("<I", head, 21)[0]
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, low, high = struct.unpack_from("<I", head, 24)[0], *struct.unpack_from("<HB", head, 27)
    return (width & 0xFFFFFF) + 1, (high << 16 | low) + 1


def jpeg_size(head: bytes) -> Optional[Tuple[int, int]]:
    """From the start of frame: the first segment C0 to CF that is no table."""
    at = 2
    while head[at : at + 1] == b"\xff":
        kind, length = struct.unpack_from(">BH", head, at + 1)
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", head, at + 5)
            return width, height
        at += 1 if kind == 0xFF else 2 + length  # FF may be repeated as filling
    return None
