"""Errors as clients see them, and how other people's errors become ours.

Every failure is a `ProxyError`: a status, a Messages API error type and a message that says what to
do. Foreign exceptions and upstream answers become one where they enter (`transport`, an upstream),
so nothing further in ever handles another kind. Pure: no I/O.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any, Dict, Optional, Tuple

from claude_proxy.log import redact

# Status -> error type, as the Messages API pairs them.
ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}

# What an upstream's status becomes for the client, where it is not passed on as it is.
CLIENT_STATUS = {
    408: 504, 422: 400, 498: 529, 520: 502, 521: 502, 522: 502, 523: 502, 524: 504, 530: 502
}

CLIENT_GONE_STATUS = 499
LONGEST_UPSTREAM_MESSAGE = 2048
LONGEST_PAGE_HEAD = 8192
NO_RETRY = ("x-should-retry", "false")


def error_type_of(status: int) -> str:
    """The Messages API error type for a status; unknown 4xx count as a bad request."""
    unlisted = "invalid_request_error" if 400 <= status < 500 else "api_error"
    return ERROR_TYPES.get(status, unlisted)


class ProxyError(Exception):
    """A failure that a client is told of: HTTP status, type, message, extra response headers."""

    def __init__(
        self,
        status: int,
        message: str,
        error_type: str = "",
        headers: Iterable[Tuple[str, str]] = (),
        upstream_status: Optional[int] = None,
    ) -> None:
        super().__init__(message)
        # Whatever an upstream's status was, a failure is told as one.
        self.status = status if status >= 400 else 502
        self.message = message
        self.error_type = error_type or error_type_of(self.status)
        # Claude Code repeats a 401 for about three minutes unless told not to.
        never = status in (401, 402)
        kept = (pair for pair in headers if not (never and pair[0] == NO_RETRY[0]))
        self.headers = (*kept, NO_RETRY) if never else tuple(kept)
        self.upstream_status = upstream_status


def error_body(error: ProxyError, request_id: str) -> Dict[str, Any]:
    """The Messages API's error envelope."""
    inner = {"type": error.error_type, "message": error.message}
    return {"type": "error", "error": inner, "request_id": request_id}


# --- what an upstream said ---------------------------------------------------------------------


def upstream_error(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    prompt_tokens: int = 0,
    now: Optional[float] = None,
) -> ProxyError:
    """Turn an upstream's failed answer into the error that the client is told.

    `headers` have lower-case names. `prompt_tokens` is our own estimate, for overflow messages
    without the number; a `retry-after` date counts from `now` (seconds since the epoch).
    """
    text = upstream_error_text(body) or f"the upstream answered with status {status} and no message"
    raw = body.decode("utf-8", "replace")
    return classify_error(status, text, raw, kept_headers(headers, now), prompt_tokens)


def upstream_error_object(data: Any, prompt_tokens: int = 0) -> ProxyError:
    """The same for an `error` object that came inside a 200 or in mid-stream."""
    raw = json.dumps(data)
    text = error_text_in(data) or "the upstream reported an error without a message"
    return classify_error(status_in(data), text, raw, (), prompt_tokens)


def classify_error(
    status: int, text: str, raw: str, headers: Tuple[Tuple[str, str], ...], prompt_tokens: int
) -> ProxyError:
    """Apply the rules that need the text, then the table."""
    text = redact(text)[:LONGEST_UPSTREAM_MESSAGE]
    overflow = overflow_message(text, raw, prompt_tokens)
    if overflow and status not in (401, 403):
        return ProxyError(400, overflow, headers=[NO_RETRY], upstream_status=status)
    if status == 429 and "insufficient_quota" in raw:
        return ProxyError(402, text, upstream_status=status)
    if 300 <= status < 400:
        text = "the upstream answered with a redirect, which is never followed: check its base URL"
        return ProxyError(502, text, upstream_status=status)
    return ProxyError(
        CLIENT_STATUS.get(status, status), text, headers=headers, upstream_status=status
    )


def kept_headers(headers: Mapping[str, str], now: Optional[float]) -> Tuple[Tuple[str, str], ...]:
    """The upstream's response headers that steer a client's retries."""
    seconds = retry_after_seconds(headers, now)
    kept = [("retry-after", str(seconds))] if seconds is not None else []
    if headers.get("x-should-retry") in ("true", "false"):
        kept.append(("x-should-retry", headers["x-should-retry"]))
    return tuple(kept)


def retry_after_seconds(headers: Mapping[str, str], now: Optional[float] = None) -> Optional[int]:
    """Whole seconds from `retry-after-ms` or `retry-after` (seconds or HTTP date), or None.

    Claude Code reads whole seconds only, so dates and milliseconds are turned into them.
    """
    milliseconds = headers.get("retry-after-ms", "")
    if re.fullmatch(r"[0-9]{1,9}", milliseconds):
        return -(-int(milliseconds) // 1000)
    value = headers.get("retry-after", "").strip()
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]*)?", value):
        return int(float(value) + 0.999)
    return seconds_until(value, now) if value and now is not None else None


def seconds_until(date: str, now: float) -> Optional[int]:
    """Seconds from `now` to an HTTP date, at least 0; None if it is no date."""
    try:
        return max(0, int(parsedate_to_datetime(date).timestamp() - now + 0.999))
    except (TypeError, ValueError, IndexError, OverflowError):
        return None


def upstream_error_text(body: bytes) -> str:
    """The message in an error body of any shape: JSON, HTML (its title) or plain text."""
    text = body.decode("utf-8", "replace").strip()
    try:
        data = json.loads(text)
        return error_text_in(data) or (text if data else "")
    except (ValueError, RecursionError):
        pass
    if text[:1] == "<":
        title = re.search(r"(?is)<title[^<>]{0,200}>([^<]{1,300})", text[:LONGEST_PAGE_HEAD])
        return "the upstream answered with a web page: " + (
            html.unescape(title.group(1)).strip() if title else "(no title)"
        )
    return text


def error_text_in(data: Any) -> str:
    """Find the message in decoded JSON; the shapes are those that providers send.

    `{"error": {"message"}}`, `{"error": "..."}`, `[{"error": ...}]`, `{"message"}`, `{"detail"}`,
    `{"errors": [...]}`, and OpenRouter's `error.metadata.raw` (the provider's own words).
    """
    if isinstance(data, str):
        return data
    if isinstance(data, list):
        return error_text_in(data[0]) if data else ""
    if not isinstance(data, dict):
        return ""
    members = ("error", "message", "msg", "detail", "errors")
    own = next(filter(None, (error_text_in(data.get(member)) for member in members)), "")
    metadata = data.get("metadata")
    if isinstance(metadata, dict) and metadata.get("raw"):
        raw = metadata["raw"] if isinstance(metadata["raw"], str) else json.dumps(metadata["raw"])
        inner = upstream_error_text(raw.encode("utf-8", "replace"))
        return f"{own} ({metadata.get('provider_name', 'provider')}: {inner})"
    return own


# Words in an error inside a 200 that give its status away, first match wins.
STATUS_WORDS = (
    ("overloaded", 529),
    ("insufficient_system_resource", 529),
    ("rate_limit", 429),
    ("rate limit", 429),
    ("insufficient_quota", 402),
    ("authentication", 401),
    ("invalid_api_key", 401),
    ("not_found", 404),
    ("context_length_exceeded", 400),
    ("invalid_request", 400),
)


def status_in(data: Any) -> int:
    """The HTTP status that an error object stands for: its `code` if that is one, else by words."""
    error = data.get("error", data) if isinstance(data, dict) else data
    if isinstance(error, dict):
        for key in ("code", "status", "status_code"):
            code = str(error.get(key, ""))
            if re.fullmatch(r"[45][0-9]{2}", code):
                return int(code)
    words = json.dumps(error).lower()
    return next((status for word, status in STATUS_WORDS if word in words), 502)


# --- context overflow --------------------------------------------------------------------------

# Claude Code compacts the conversation when a message contains "prompt is too long", and repeats
# with a smaller max_tokens on "input length and `max_tokens` exceed context limit". It knows no
# other wording, so every provider's must become one of these.
# Groups: n prompt tokens, m the model's limit, b tokens asked for the answer, t both (where the
# prompt is told in parts).
OVERFLOW_NUMBERS = tuple(
    re.compile(pattern, re.IGNORECASE | re.DOTALL)
    for pattern in (
        r"maximum context length is (?P<m>\d+).{0,40}your messages resulted in (?P<n>\d+)",
        r"limit of (?P<m>\d+) tokens.{0,20}your messages resulted in (?P<n>\d+)",
        r"maximum context length is (?P<m>\d+) tokens.{0,60}?requested (?:about )?(?P<t>\d+) tokens"
        r" \(\d+ (?:in the messages|of text input).{0,60}?(?P<b>\d+) in the (?:completion|output)",
        r"decoder prompt \(length (?P<n>\d+)\).{0,60}?maximum model length of (?P<m>\d+)",
        r"too large: (?P<b>\d+).{0,120}?maximum context length is (?P<m>\d+) tokens"
        r" and your request has (?P<n>\d+) input tokens",
        r"input length \((?P<n>\d+)\) exceeds.{0,60}?context length \((?P<m>\d+)\)",
        r"input \((?P<n>\d+) tokens\) is longer than.{0,60}?context length \((?P<m>\d+)",
        r"maximum context length of (?P<m>\d+) tokens.{0,80}?: (?P<n>\d+) tokens from the input"
        r" messages and (?P<b>\d+)",
        r"request \((?P<n>\d+) tokens\) exceeds the available context size \((?P<m>\d+)",
        r"\A(?=.*\"n_prompt_tokens\":\s*(?P<n>\d+)).*\"n_ctx\":\s*(?P<m>\d+)",
        r"input token count \((?P<n>\d+)\) exceeds the maximum number of tokens allowed"
        r" \((?P<m>\d+)\)",
        r"maximum prompt length is (?P<m>\d+) but the request contains (?P<n>\d+) tokens",
        r"prompt contains (?P<n>\d+) tokens.{0,80}?with (?P<m>\d+) maximum context length",
        r"must be <= (?P<m>\d+)\. Given: (?P<n>\d+) `?inputs`? tokens and (?P<b>\d+)",
        r"prompt is too long: (?P<n>\d+)(?: tokens)?(?:,| >).{0,40}?(?P<m>\d+)",
        r"prompt too long: (?P<n>\d+) tokens exceeds max context window of (?P<m>\d+)",
        r"prompt tokens \((?P<n>\d+)\) exceed model maximum \((?P<m>\d+)\)",
        r"keep the first (?P<n>\d+) tokens.{0,120}?context length of only (?P<m>\d+)",
        r"context length of only (?P<m>\d+) tokens",
        r"current length is (?P<n>\d+) while limit is (?P<m>\d+)",
        r"exceeded model token limit: (?P<m>\d+)(?: \(requested: (?P<n>\d+))?",
        r"range of input length should be \[\d+, (?P<m>\d+)\]",
        r"maximum context length is (?P<m>\d+)",
    )
)
OVERFLOW_WORDS = re.compile(
    r"context_length_exceeded|exceed_context_size|prompt is too long|prompt too long"
    r"|exceeds? the (?:available )?context (?:window|size)|context window exceeds limit"
    r"|greater than the context length|input is too long for requested model"
    r"|prompt exceeds max length|too many tokens: size limit|reduce the length of the messages",
    re.IGNORECASE,
)
NOT_OVERFLOW = re.compile(
    r"per minute|\bTPM\b|\bTPD\b|quota|string_above_max_length", re.IGNORECASE
)


def overflow_message(text: str, raw: str = "", prompt_tokens: int = 0) -> Optional[str]:
    """Claude Code's wording for a context overflow told in any provider's words, or None.

    `raw` is the whole body, for numbers that stand outside the message.
    """
    whole = f"{text}\n{raw[:8192]}"
    if NOT_OVERFLOW.search(whole):
        return None
    match = next((m for m in (p.search(whole) for p in OVERFLOW_NUMBERS) if m), None)
    if match is None:
        return f"prompt is too long: {text}" if OVERFLOW_WORDS.search(whole) else None
    # Cut, for Python refuses to read a number of some thousand digits.
    found = {group: int(digits[:15]) for group, digits in match.groupdict().items() if digits}
    limit, answer = found["m"], found.get("b", 0)
    told = found["t"] - answer if "t" in found else found.get("n", 0)
    prompt = told or max(prompt_tokens, limit + 1)
    if answer and prompt < limit:
        return (
            f"input length and `max_tokens` exceed context limit:"
            f" {prompt} + {answer} > {limit} \u2014 {text}"
        )
    return f"prompt is too long: {max(prompt, limit + 1)} tokens > {limit} maximum \u2014 {text}"
