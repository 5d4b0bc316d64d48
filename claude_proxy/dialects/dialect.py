"""What a client dialect is, and reading a JSON body strictly.

A dialect is a row of pure functions. The endpoints know nothing else about a wire language.
"""

from __future__ import annotations

import json
from typing import Any, Callable, Dict, NamedTuple, NoReturn

from claude_proxy.errors import ProxyError
from claude_proxy.events import Event, Message, Request

MOST_DIGITS = 1000


class Dialect(NamedTuple):
    """One wire language, as functions from and to Messages.

    `encode_event` gives the bytes of one event, `opening` is the event that stands first,
    `nudge` an event without meaning for a stream whose open block is (index, type).
    """

    name: str
    decode_request: Callable[[Dict[str, Any]], Request]
    encode_message: Callable[[Message], Dict[str, Any]]
    encode_event: Callable[[Event], bytes]
    encode_error: Callable[[ProxyError, str], Dict[str, Any]]
    error_frame: Callable[[ProxyError, str], bytes]
    nudge: Callable[[int, str], bytes]
    ping: bytes


def parse_json_object(body: bytes) -> Dict[str, Any]:
    """The JSON object in a request's body; ProxyError(400) says what is wrong with any other.

    Refused beyond the standard library's own errors: NaN and infinities, which are no JSON, and
    numbers that take quadratic time to read. Of equal keys the last one counts.
    """
    try:
        value = decode_json(body.decode() if body[:1] == b"{" else body.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise ProxyError(400, "the request body is not UTF-8") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        raise ProxyError(400, f"the request body is not JSON: {error.msg} at {where}") from None
    except RecursionError:
        raise ProxyError(400, "the request body is nested too deeply") from None
    if not isinstance(value, dict):
        raise ProxyError(400, "the request body must be a JSON object")
    return value


def decode_json(text: str) -> Any:
    """What a JSON text says. Whatever does not begin with an object, or goes on behind it, takes
    the long way, which knows blanks and all errors."""
    if text[:1] == "{":
        value, end = JSON_DECODER.raw_decode(text)
        if not text[end:].strip(" \t\n\r"):
            return value
    return JSON_DECODER.decode(text)


def parse_json_int(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ProxyError(400, f"the request body has a number of more than {MOST_DIGITS} digits")
    return int(digits)


def parse_json_float(digits: str) -> float:
    value = float(digits) if len(digits) <= MOST_DIGITS else float("inf")
    if value in (float("inf"), float("-inf")):
        raise ProxyError(400, "the request body has a number that is too large")
    return value


def refuse_json_constant(name: str) -> NoReturn:
    raise ProxyError(400, f"the request body is not JSON: {name} is not a JSON value")


JSON_DECODER = json.JSONDecoder(
    parse_int=parse_json_int, parse_float=parse_json_float, parse_constant=refuse_json_constant
)
