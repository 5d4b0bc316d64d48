"""Judging what REDCap's SecureChatAI answers: a text with its usage, or an error. Pure.

Neither status nor content type can be trusted: most failures are a 200 with a polite sentence. So a
reply is judged by what it holds (susom/secureChatAI at 6992d40; REDCap's own errors as its API
clients have reported them):

- a failure that the module has turned into a sentence has usage 0/0, whatever the sentence says;
- an error of REDCap's or the module's may be JSON, JSON in JSON, XML or plain text;
- HTML is a login page (wrong URL), a page of a firewall or a gateway, or PHP warnings before JSON.

No text of a reply gets into an error but the messages of errors, short and redacted.
"""

from __future__ import annotations

import json
import re
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

from claude_proxy.errors import NO_RETRY, ProxyError, error_text_in
from claude_proxy.log import redact, shortened
from claude_proxy.patterns import LazyPattern
from claude_proxy.sse import encode_json

LONGEST_REASON = 500
# Where the JSON begins behind PHP's warnings.
JSON_START = LazyPattern(rb'\{\s*"(?:id|type|status|error)"\s*:')
XML_ERROR = LazyPattern(r"<error>(.*?)</error>", re.DOTALL)
BAN_WORDS = "has been banned due to suspected abuse"
NO_MESSAGES = "Missing or invalid 'messages' field"
UNUSABLE_TEXT = (
    "I apologize, but I wasn't able to complete that request properly. Could you try rephrasing?"
)

LOCKED_OUT = (
    "REDCap refused the API token: {reason}. It must be a token of a project with SecureChatAI, and"
    " its user needs the rights API and External Modules API; a regenerated token ends the old one"
)
FIREWALL = (
    "blocked before REDCap (403 with a web page): likely a firewall that objects to something in"
    " the request, such as code. Its log has a support id for REDCap's administrator"
)
WRONG_URL = (
    "REDCAP_API_URL does not point at REDCap's API: {what}. It must end in /api/, as on the API"
    " page of a REDCap project"
)
CRASHED = "REDCap failed without an answer ({what}); its server's error log has more"
BANNED = "REDCap has banned this address for too many requests; calls pause for {seconds} s"
NO_TOKENS = (
    "SecureChatAI could not get an answer from the model {alias}: it replied with an apology and no"
    " tokens, as it does when it has no such model, the conversation outgrew the model's window,"
    " the provider failed or is busy, or the answer took over 500 s. It has tried three times"
)
NOTHING_USABLE = "the model {alias} answered with nothing that SecureChatAI could pass on"
NOT_REDCAP = "the answer is no SecureChatAI reply ({what})"


class RedcapReply(NamedTuple):
    """What the model said. `blocks` are those that are no text, if a module passes them on."""

    text: str
    input_tokens: int
    output_tokens: int
    blocks: Tuple[Dict[str, Any], ...] = ()


def read_redcap_reply(status: int, body: bytes, alias: str, ban_seconds: int = 0) -> RedcapReply:
    """The reply, or ProxyError with what a user can do about it."""
    data = json_in(body) if status == 200 else None
    if data is not None and (data.get("type") == "message" or "content" in data):
        return message_reply(data, alias)
    if 300 <= status < 400:
        raise redcap_error(502, WRONG_URL.format(what=f"it redirects (status {status})"), status)
    if BAN_WORDS.encode() in body:
        raise redcap_error(429, BANNED.format(seconds=ban_seconds), status)
    raise page_error(body) if status == 200 else status_error(status, body)


def redcap_error(status: int, message: str, upstream_status: int) -> ProxyError:
    """Asking again would cost the same and change nothing, so clients are told not to."""
    return ProxyError(status, message, headers=[NO_RETRY], upstream_status=upstream_status)


# --- other statuses ----------------------------------------------------------------------------


def status_error(status: int, body: bytes) -> ProxyError:
    reason = reason_in(body)
    make = STATUS_ERRORS.get(status)
    if make is None:
        return redcap_error(502, CRASHED.format(what=f"status {status}"), status)
    client_status, message = make(reason)
    return redcap_error(client_status, message, status)


def refused_token(reason: str) -> Tuple[int, str]:
    return (401, LOCKED_OUT.format(reason=reason)) if reason else (403, FIREWALL)


def wrong_url(reason: str) -> Tuple[int, str]:
    return 502, WRONG_URL.format(what=reason or "it does not take the request")


def bad_request_there(reason: str) -> Tuple[int, str]:
    return 400, f"SecureChatAI refused the request: {reason or 'without a reason'}"


def too_large_there(reason: str) -> Tuple[int, str]:
    return 413, "the request is too large for REDCap's server; REDCAP_MAX_BYTES can tell so earlier"


def busy_there(reason: str) -> Tuple[int, str]:
    return 529, "a gateway before REDCap gave up waiting, or REDCap is down"


def too_many_there(reason: str) -> Tuple[int, str]:
    return 429, f"REDCap takes no more requests for now: {reason or 'too many'}"


STATUS_ERRORS: Dict[int, Callable[[str], Tuple[int, str]]] = {
    400: bad_request_there,
    401: refused_token,
    403: refused_token,
    404: wrong_url,
    405: wrong_url,
    406: bad_request_there,
    413: too_large_there,
    429: too_many_there,
    501: wrong_url,
    502: busy_there,
    503: busy_there,
    504: busy_there,
}


def reason_in(body: bytes) -> str:
    """The message of an error in JSON (once or twice encoded), XML or CSV; "" for a web page."""
    text = body.decode("utf-8", "replace").strip()
    data = json_in(body)
    if data is not None:
        found = error_text_in(data)
        inner = json_in(found.encode("utf-8", "replace"))
        found = (error_text_in(inner) or found) if inner is not None else found
    elif XML_ERROR.search(text):
        found = XML_ERROR.search(text).group(1)
    else:
        found = text if text.startswith("ERROR:") else ""
    return shortened(redact(found.strip()), LONGEST_REASON)


def json_in(body: bytes) -> Optional[Dict[str, Any]]:
    """The JSON object in a body, PHP's warnings before it or not; None if there is none."""
    start = JSON_START.search(body)
    for candidate in (body, body[start.start() :] if start else b""):
        try:
            data, _ = json.JSONDecoder().raw_decode(candidate.decode("utf-8", "replace").lstrip())
        except (ValueError, RecursionError):
            continue
        if isinstance(data, dict):
            return data
    return None


def page_error(body: bytes) -> ProxyError:
    """What a 200 without JSON is."""
    text = body.decode("utf-8", "replace").strip()
    if not text:
        return redcap_error(502, CRASHED.format(what="an empty answer"), 200)
    reason = reason_in(body)
    if reason:
        return redcap_error(502, f"REDCap reported an error: {reason}", 200)
    if json_in(body) is not None:
        return redcap_error(502, NOT_REDCAP.format(what="JSON of another kind"), 200)
    if "fatal error" in text.lower():
        return redcap_error(502, CRASHED.format(what="a page about a fatal error"), 200)
    if text.startswith("<"):
        return redcap_error(502, WRONG_URL.format(what="a web page came back"), 200)
    return redcap_error(502, NOT_REDCAP.format(what="plain text"), 200)


# --- a reply -----------------------------------------------------------------------------------


def message_reply(data: Dict[str, Any], alias: str) -> RedcapReply:
    """The reply of `messages` (Messages API's shape) or `callAI` (`content` beside `status`)."""
    content = data.get("content")
    if isinstance(content, list) and data.get("type") == "message":
        blocks = [block for block in content if isinstance(block, dict)]
        text = "".join(told_text(b.get("text")) for b in blocks if b.get("type") == "text")
        others = tuple(block for block in blocks if block.get("type") == "tool_use")
    else:
        text, others = told_text(content), ()
    tokens = reply_usage(data.get("usage"))
    if not any(tokens):
        raise redcap_error(502, NO_TOKENS.format(alias=alias), 200)
    if not others and (not text.strip() or text.strip() == UNUSABLE_TEXT):
        raise redcap_error(502, NOTHING_USABLE.format(alias=alias), 200)
    return RedcapReply(text, *tokens, others)


def told_text(value: Any) -> str:
    """Text as it is; a JSON value, which the module may have made of the text, as JSON again."""
    if isinstance(value, str):
        return value
    return "" if value is None or value is False else encode_json(value)


def reply_usage(usage: Any) -> Tuple[int, int]:
    usage = usage if isinstance(usage, dict) else {}
    names: List[Tuple[str, str]] = [
        ("input_tokens", "prompt_tokens"),
        ("output_tokens", "completion_tokens"),
    ]
    counts = [usage.get(new, usage.get(old)) for new, old in names]
    first, second = (count if isinstance(count, int) and count > 0 else 0 for count in counts)
    return first, second
