"""Errors as clients see them, and how other people's errors become ours.

Every failure is a `ProxyError`: a status, a Messages API error type and a message that says what to
do. Foreign exceptions and upstream answers become one where they enter (`transport`, an upstream),
so nothing further in ever handles another kind. Pure: no I/O.
"""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import timezone
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from itertools import islice
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from claude_proxy.log import redact, shortened
from claude_proxy.overflow import overflow_message, overflow_words, unexplained_overflow
from claude_proxy.patterns import LazyPattern

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
CLIENT_GONE_STATUS = 499
CLIENT_STATUS = {
    408: 504, 422: 400, 498: 529, CLIENT_GONE_STATUS: 502, 520: 502, 521: 502, 522: 502, 523: 502,
    524: 504, 525: 502, 526: 502, 527: 502, 530: 502, 598: 504, 599: 504
}

LONGEST_UPSTREAM_MESSAGE = 2048
# Cut before secrets are looked for, which takes its time; what is then cut again is far shorter.
LONGEST_LOOKED_THROUGH = 65536
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
        logged: str = "",
    ) -> None:
        super().__init__(message)
        # Whatever an upstream's status was, a failure is told as one.
        self.status = status if 400 <= status < 600 else 502
        self.message = message
        self.error_type = error_type or error_type_of(self.status)
        # Claude Code repeats a 401 for about three minutes unless told not to.
        never = status in (401, 402)
        kept = (pair for pair in headers if not (never and pair[0] == NO_RETRY[0]))
        self.headers = (*kept, NO_RETRY) if never else tuple(kept)
        self.upstream_status = upstream_status
        self._logged = logged  # where the message quotes what the client has sent

    @property
    def logged(self) -> str:
        """What a log says of it: of an upstream's own words, which may quote the prompt, none."""
        if self.upstream_status is not None:
            return self.error_type
        return self._logged or self.message


def error_body(error: ProxyError, request_id: str) -> Dict[str, Any]:
    """The Messages API's error envelope."""
    inner = {"type": error.error_type, "message": error.message}
    return {"type": "error", "error": inner, "request_id": request_id}


# --- what an upstream said ---------------------------------------------------------------------


class RefusedRequest(NamedTuple):
    """What is known of the request that was refused, 0 for unknown: an estimate of its prompt, its
    `max_tokens`, and the model's window."""

    prompt_tokens: int = 0
    max_tokens: int = 0
    window: int = 0


class ToldError(NamedTuple):
    """An upstream's error: the message, and what stands beside it, a "name: value" in each line."""

    text: str
    codes: str = ""
    filtered: str = ""  # the categories that a content filter found


def upstream_error(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    prompt_tokens: int = 0,
    now: Optional[float] = None,
    max_tokens: int = 0,
    window: int = 0,
) -> ProxyError:
    """Turn an upstream's failed answer into the error that the client is told.

    `headers` have lower-case names. `prompt_tokens` is our own estimate, for overflow messages
    without the number, and so are `max_tokens`, what was asked for the answer, and the model's
    `window`, if known. A `retry-after` date counts from `now` (seconds since the epoch).
    """
    text = upstream_error_text(body)
    told = told_beside(text, json_or_not(body.decode("utf-8", "replace")))
    asked = RefusedRequest(prompt_tokens, max_tokens, window)
    if not text:
        told = told._replace(text=words_for_nothing(status))
        if unexplained_overflow(status, prompt_tokens, window):
            return overflow_error(status, overflow_words(prompt_tokens, 0, window, told.text))
    return classify_error(status, told, headers, now, asked)


def upstream_error_object(
    data: Any, prompt_tokens: int = 0, now: Optional[float] = None, max_tokens: int = 0
) -> ProxyError:
    """The same for an `error` object that came inside a 200 or in mid-stream."""
    data = data[0] if isinstance(data, list) and data else data
    error = data.get("error", data) if isinstance(data, dict) else data
    text = error_text_in(data).strip()
    if not text and error and error is not True:
        text = error_as_json(error)
    told = told_beside(text or "the upstream reported an error without a message", data)
    asked = RefusedRequest(prompt_tokens, max_tokens)
    return classify_error(status_in(data, told), told, {}, now, asked)


def words_for_nothing(status: int) -> str:
    phrases = [f" ({known.phrase})" for known in HTTPStatus if known == status]
    return f"the upstream answered with status {status}{''.join(phrases)} and no message"


def overflow_error(status: int, message: str) -> ProxyError:
    return ProxyError(400, message, headers=[NO_RETRY], upstream_status=status)


def classify_error(
    status: int,
    told: ToldError,
    headers: Mapping[str, str],
    now: Optional[float],
    asked: RefusedRequest,
) -> ProxyError:
    """Apply the rules that need the words, then the table."""
    if 300 <= status < 400:
        text = "the upstream answered with a redirect, which is never followed: check its base URL"
        return ProxyError(502, text, upstream_status=status)
    text = shortened(
        redact(shortened(told.text, LONGEST_LOOKED_THROUGH)), LONGEST_UPSTREAM_MESSAGE
    )
    if status not in (401, 402, 403):
        overflow = overflow_message(text, told.codes, asked.prompt_tokens, asked.max_tokens)
        if overflow:
            return overflow_error(status, overflow)
    client_status = ruled_status(status, told)
    kept = () if client_status in (401, 402) else kept_headers(client_status, headers, told, now)
    return ProxyError(
        client_status, text + redact(told.filtered), headers=kept, upstream_status=status
    )


# --- status ------------------------------------------------------------------------------------

# (words, the status that they stand for, statuses of an answer that give way to it). The first
# that match decide. An error inside a 200 has no status of its own and gives way to any.
ERROR_RULES: Tuple[Tuple[re.Pattern, int, Tuple[int, ...]], ...] = tuple(
    (LazyPattern(words, re.IGNORECASE), status, instead_of)
    for words, status, instead_of in (
        (r"model_not_found|DeploymentNotFound|model not exist|is not a valid model id",
         404, (400, 403, 422)),
        (r"API[ _]key[ _](?:is )?(?:not[ _]valid|invalid|expired)"
         r"|(?:invalid|incorrect)[ _]API[ _-]?key|missing or invalid authorization",
         401, (400, 422)),
        (r"insufficient[_ ](?:quota|balance|credits?|funds)|credit balance is too low"
         r"|\b(?:no|any|enough|out of|available) credits\b|\bspending (?:limit|cap)\b"
         r"|billing_hard_limit|billing_not_active|exceeded_current_quota|\barrearage\b"
         r"|\u4f59\u989d\u4e0d\u8db3|\u6b20\u8d39", 402, (400, 403, 429)),
        (r"overloaded|capacity|model is (?:currently )?(?:loading|warming)|loading model|warming up"
         r"|\bstatus: UNAVAILABLE\b|unavailable_error|service (?:temporarily )?unavailable"
         r"|insufficient_system_resource", 529, (500,)),
        (r"rate[ _-]?limit|too[ _]many[ _]requests|resource[_ ](?:has been )?exhausted|\bquota\b"
         r"|throttl", 429, ()),
        (r"\bcredits?\b", 402, (403,)),
        (r"authentication|unauthenticated|unauthori[sz]ed", 401, ()),
        (r"permission|forbidden", 403, ()),
        (r"not_found|NotFoundError", 404, ()),
        (r"timed?[ _-]?out|deadline_exceeded", 504, ()),
        (r"request_too_large|payload too large", 413, ()),
        (r"invalid[_ ]request|invalid_argument|bad_?request|content_filter"
         r"|content_policy", 400, ()),
    )
)  # fmt: skip
STATUS_OF_NO_WORDS = 502


def ruled_status(status: int, told: ToldError) -> int:
    """The client's status for an upstream's, by the words where they say more than the number."""
    whole = f"{told.text[:LONGEST_UPSTREAM_MESSAGE]}\n{told.codes}"
    for words, meant, instead_of in ERROR_RULES:
        if status in instead_of and words.search(whole):
            return meant
    return CLIENT_STATUS.get(status, status)


def status_in(data: Any, told: ToldError) -> int:
    """The HTTP status that an error object stands for: its `code` if that is one, else by words;
    names and types before the message, which may speak of anything."""
    error = data.get("error", data) if isinstance(data, dict) else data
    for place in (error, data):
        for key in ("code", "status", "status_code") if isinstance(place, dict) else ():
            code = place.get(key)
            if isinstance(code, (str, int)) and re.fullmatch(r"[45][0-9]{2}", str(code)[:4]):
                return int(code)
    for said in (told.codes, told.text[:LONGEST_UPSTREAM_MESSAGE]):
        for words, meant, _ in ERROR_RULES:
            if words.search(said):
                return meant
    return STATUS_OF_NO_WORDS


# --- headers that steer a client's retries -------------------------------------------------------

WAIT_NUMBER = r"[0-9]{1,9}(?:\.[0-9]{0,12})?"
WAIT_UNIT = r"(?:ms|milliseconds?|s|sec(?:ond)?s?|m|min(?:ute)?s?|h|hours?|d|days?)(?![a-z])"
WAIT_DURATION = rf"(?:{WAIT_NUMBER} ?{WAIT_UNIT}[, ]{{0,2}}){{1,4}}"
DURATION_PART = LazyPattern(rf"({WAIT_NUMBER}) ?({WAIT_UNIT})", re.IGNORECASE)
WHOLE_DURATION = LazyPattern(WAIT_DURATION, re.IGNORECASE)
UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
# "Please try again in 7.66s", "Please retry after 10 seconds"
WAIT_WORDS = LazyPattern(
    rf"(?:try again|retry|wait) (?:in |after |for )?(?:about |at least )?({WAIT_DURATION})",
    re.IGNORECASE,
)
# Gemini's RetryInfo, and headers that OpenRouter tells of in the body
WAIT_MEMBER = LazyPattern(
    r"^(?:retryDelay|retry[_-]?after(?:_seconds)?|x-ratelimit-reset): (.{1,40})$",
    re.IGNORECASE | re.MULTILINE,
)
METER_RESET = LazyPattern(r"(?:x-)?ratelimit-reset(?:-.+)?")
# Numbers from here on are moments since 1970, in seconds or in milliseconds.
FIRST_MOMENT, FIRST_MOMENT_MS = 1e9, 1e12


def kept_headers(
    status: int, headers: Mapping[str, str], told: ToldError, now: Optional[float]
) -> Tuple[Tuple[str, str], ...]:
    """The response headers for a client's retries; nothing is made up that the upstream has not
    said, and what it has said passes whatever its length: a client that gives up is right then."""
    seconds = retry_after_seconds(headers, now)
    if seconds is None and status in (429, 503, 529):
        seconds = told_seconds(told, now)
    if seconds is None and status == 429:
        seconds = meter_seconds(headers, now)
    kept = [("retry-after", str(seconds))] if seconds is not None else []
    if headers.get("x-should-retry") in ("true", "false"):
        kept.append(("x-should-retry", headers["x-should-retry"]))
    return tuple(kept)


def retry_after_seconds(headers: Mapping[str, str], now: Optional[float] = None) -> Optional[int]:
    """Whole seconds from `retry-after-ms` or `retry-after` (seconds or HTTP date), or None.

    Claude Code reads whole seconds only, so dates and milliseconds are turned into them.
    """
    milliseconds = headers.get("retry-after-ms", "").strip()
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]*)?", milliseconds):
        return whole_seconds(float(milliseconds) / 1000)
    value = headers.get("retry-after", "").strip()
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]*)?", value):
        return whole_seconds(float(value))
    return seconds_until(value, now) if value and now is not None else None


def seconds_until(date: str, now: float) -> Optional[int]:
    """Seconds from `now` to an HTTP date, at least 0; None if it is no date."""
    try:
        moment = parsedate_to_datetime(date)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=timezone.utc)
        return whole_seconds(moment.timestamp() - now)
    except (TypeError, ValueError, IndexError, OverflowError):
        return None


def told_seconds(told: ToldError, now: Optional[float]) -> Optional[int]:
    """The wait that an error's members or words ask for."""
    member = WAIT_MEMBER.search(told.codes)
    seconds = reset_seconds(member.group(1), now) if member else None
    words = WAIT_WORDS.search(told.text[:LONGEST_UPSTREAM_MESSAGE])
    return reset_seconds(words.group(1), now) if seconds is None and words else seconds


def meter_seconds(headers: Mapping[str, str], now: Optional[float]) -> Optional[int]:
    """The wait for the meters that are used up; the shortest, if none of them says so."""
    waits: Dict[bool, List[int]] = {True: [], False: []}
    for name, value in headers.items():
        seconds = reset_seconds(value, now) if METER_RESET.fullmatch(name) else None
        if seconds is not None:
            remaining = headers.get(name.replace("-reset", "-remaining"), "")
            waits[remaining.strip() == "0"].append(seconds)
    return max(waits[True]) if waits[True] else min(waits[False], default=None)


def reset_seconds(value: str, now: Optional[float]) -> Optional[int]:
    """Whole seconds from "1m30s", "850ms", "12.5" or a moment since 1970, or None."""
    value = value.strip()
    if re.fullmatch(r"[0-9]{1,16}(\.[0-9]*)?", value):
        number = float(value)
        if number < FIRST_MOMENT:
            return whole_seconds(number)
        moment = number / 1000 if number >= FIRST_MOMENT_MS else number
        return None if now is None else whole_seconds(moment - now)
    if not WHOLE_DURATION.fullmatch(value):
        return None
    parts = DURATION_PART.findall(value.lower())
    return whole_seconds(sum(float(number) * unit_seconds(unit) for number, unit in parts))


def unit_seconds(unit: str) -> float:
    return 0.001 if unit.startswith(("ms", "mil")) else UNIT_SECONDS[unit[0]]


def whole_seconds(seconds: float) -> int:
    """Rounded up, for a try too early is one more refusal; never below 0."""
    return max(0, math.ceil(round(seconds, 3)))


# --- where the message is ------------------------------------------------------------------------

NO_JSON = object()
MOST_LEVELS = 12
MOST_CODES = 100
LONGEST_CODE = 200
LARGEST_CODE = 1e16
MESSAGE_MEMBERS = ("error", "message", "msg", "detail", "errors")
# Beside an `error` that is but a name, the reason.
REASON_MEMBERS = ("message", "detail", "details", "error_description", "reason")
# Words for people are no codes; and these quote the request or the answer, which may hold any.
QUOTING_MEMBERS = frozenset(("input", "choices", "messages", "prompt", "content", "ctx"))
NO_CODES = frozenset((*MESSAGE_MEMBERS, *REASON_MEMBERS)) - {"reason"}


def upstream_error_text(body: bytes) -> str:
    """The message in an error body of any shape: JSON, HTML (its title) or plain text."""
    text = body.decode("utf-8", "replace").strip()
    data = json_or_not(text)
    if data is not NO_JSON:
        return error_text_in(data).strip() or (text if data else "")
    if text[:1] == "<":
        title = re.search(r"(?is)<title[^<>]{0,200}>([^<]{1,3000})", text[:LONGEST_PAGE_HEAD])
        return "the upstream answered with a web page: " + (
            shortened(html.unescape(title.group(1)).strip(), 300) if title else "(no title)"
        )
    return text


def json_or_not(text: str) -> Any:
    """The decoded JSON, or NO_JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return NO_JSON


def error_as_json(data: Any) -> str:
    try:
        return json.dumps(data)
    except (ValueError, TypeError, RecursionError):
        return ""


def error_text_in(data: Any, level: int = 0) -> str:
    """Find the message in decoded JSON; the shapes are those that providers send.

    `{"error": {"message"}}`, `{"error": "..."}`, `[{"error": ...}]`, `{"message"}`, `{"detail"}`,
    `{"errors": [...]}`, and OpenRouter's `error.metadata.raw` (the provider's own words).
    """
    if isinstance(data, str):
        return data
    if isinstance(data, list) and data and level < MOST_LEVELS:
        return error_text_in(data[0], level + 1)
    if not isinstance(data, dict) or level >= MOST_LEVELS:
        return ""
    texts = (error_text_in(data.get(member), level + 1) for member in MESSAGE_MEMBERS)
    own = next(filter(None, texts), "")
    if isinstance(data.get("error"), str):
        own = with_reason(own, data)
    if isinstance(data.get("loc"), list):
        own = with_place(own, data["loc"])
    metadata = data.get("metadata")
    if isinstance(metadata, dict) and metadata.get("raw"):
        name = metadata.get("provider_name")
        inner = own_words(metadata["raw"], level + 1)
        return f"{own} ({name if isinstance(name, str) else 'provider'}: {inner})"
    return own


def with_reason(error: str, data: Mapping[str, Any]) -> str:
    """`{"error": "Bad Request", "message": "..."}`: both, for the first alone tells little."""
    reasons = (data.get(member) for member in REASON_MEMBERS)
    reason = next((each for each in reasons if each and isinstance(each, str)), error)
    return error if reason == error else f"{error}: {reason}"


def with_place(message: str, place: List[Any]) -> str:
    """FastAPI tells apart what is wrong and where."""
    steps = [shortened(str(step), 100) for step in place[:16] if isinstance(step, (str, int))]
    return f"{message} ({'.'.join(steps)})" if message and steps else message


def own_words(raw: Any, level: int) -> str:
    """OpenRouter's own message says only that a provider failed; the provider's is in `raw`."""
    data = json_or_not(raw) if isinstance(raw, str) else raw
    if data is NO_JSON:
        return upstream_error_text(raw.encode("utf-8", "replace"))
    return error_text_in(data, level) or (raw if isinstance(raw, str) else error_as_json(raw))


def told_beside(text: str, data: Any) -> ToldError:
    """The message with the names and numbers beside it, from decoded JSON or NO_JSON."""
    pairs = list(islice(error_members(data), 1000))
    codes = [f"{name}: {v}" for name, v in pairs if name not in NO_CODES and is_code(v)]
    return ToldError(text, "\n".join(codes[:MOST_CODES]), filter_words(pairs))


def is_code(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= LONGEST_CODE
    return isinstance(value, (int, float)) and abs(value) <= LARGEST_CODE


def error_members(data: Any, level: int = 0) -> Iterator[Tuple[str, Any]]:
    """Names and values at every level of decoded JSON; OpenRouter's JSON in a string is opened."""
    if level > MOST_LEVELS:
        return
    if isinstance(data, list):
        for item in data:
            yield from error_members(item, level + 1)
    elif isinstance(data, dict):
        for name, value in data.items():
            if name not in QUOTING_MEMBERS:
                yield name, value
                opened = name == "raw" and isinstance(value, str)
                yield from error_members(json_or_not(value) if opened else value, level + 1)


def filter_words(pairs: Iterable[Tuple[str, Any]]) -> str:
    """The categories that made a content filter refuse (Azure), as words to add to the message."""
    names = ("content_filter_result", "content_filter_results")
    verdicts = next((v for name, v in pairs if name in names and isinstance(v, dict)), {})
    found = [
        f"{shortened(category, 40)} {shortened(str(verdict.get('severity') or ''), 20)}".strip()
        for category, verdict in islice(verdicts.items(), 20)
        if isinstance(verdict, dict) and verdict.get("filtered") is True
    ]
    return f" (filtered: {', '.join(found[:8])})" if found else ""
