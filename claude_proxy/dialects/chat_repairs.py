"""What a provider's refusal teaches about its Chat Completions: options that will be taken. Pure.

"OpenAI-compatible" differs by host, model and deployment, and an Azure deployment's name tells
nothing. So requests go out in the form that most take, and a refusal that names the parameter it
minds changes the options for that model, once for each thing. Everything else is the client's to
see.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Callable, Optional, Tuple

from claude_proxy.dialects.chat_options import ChatOptions

Members = Mapping[str, Any]

# Members that an answer is still an answer without. `tool_choice` is none of them: one that
# forbids calls must not get lost with one that demands them.
SPARE_MEMBERS = (
    "temperature", "top_p", "top_k", "stop", "parallel_tool_calls", "stream_options",
    "response_format", "reasoning_effort",
)  # fmt: skip
REFUSED = (
    r"(?:unsupported|not supported|does not support|unrecognized|unknown|unexpected|not permitted"
    r"|not allowed|only the default)"
)
LIMIT_KEYS = r"(max_tokens|max_completion_tokens)"
SPARE = rf"({'|'.join(SPARE_MEMBERS)})"
# A limit below this is no model's, and one that depends on the prompt is this prompt's.
LEAST_LIMIT = 256


def use_other_key(options: ChatOptions, match: re.Match, sent: Members) -> ChatOptions:
    """The refused one of the two names of the limit gives way to the other."""
    refused = next(group for group in match.groups() if group)
    other = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}[refused]
    return options._replace(max_tokens_key=other) if options.max_tokens_key == refused else options


def use_completion_key(options: ChatOptions, match: re.Match, sent: Members) -> ChatOptions:
    return options._replace(max_tokens_key="max_completion_tokens")


def use_limit(options: ChatOptions, match: re.Match, sent: Members) -> ChatOptions:
    limit, asked = int(match.group(1)), sent.get(options.max_tokens_key) or 0
    return options._replace(max_output=limit) if LEAST_LIMIT <= limit < asked else options


def drop_member(options: ChatOptions, match: re.Match, sent: Members) -> ChatOptions:
    name = next(group for group in match.groups() if group)
    return options._replace(drop=options.drop | {name}) if name in sent else options


Repair = Callable[[ChatOptions, re.Match, Members], ChatOptions]

# Words of a refusal -> what to change; the first that match decide.
CHAT_REPAIRS: Tuple[Tuple[re.Pattern, Repair], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE | re.DOTALL), repair)
    for pattern, repair in (
        (rf"\b{LIMIT_KEYS}\b['\"`:]{{0,3}}[^.,]{{0,30}}?{REFUSED}"
         rf"|{REFUSED}[^.,]{{0,40}}?\b{LIMIT_KEYS}\b", use_other_key),
        (r"max_tokens.{0,80}use ['\"`]?max_completion_tokens", use_completion_key),
        (r"at most (\d{1,9}) completion tokens", use_limit),
        (r"max_(?:completion_|output_)?tokens.{0,160}?\[\d+, ?(\d{1,9})\]", use_limit),
        (r"max_(?:completion_|output_)?tokens.{0,160}?(?:less than or equal to|at most|<=|maximum"
         r"(?: value| allowed)?(?: is| of|:)?|limit(?: is| of|:)?) ?`?(\d{1,9})", use_limit),
        (rf"\b{SPARE}\b.{{0,80}}{REFUSED}|{REFUSED}.{{0,80}}?\b{SPARE}\b", drop_member),
    )
)  # fmt: skip
REPAIRED_STATUSES = (400, 404, 422)
# Refusals of this one request: a full context, a prompt's own limit, a tool's or answer's schema.
NOT_LEARNED = re.compile(
    r"context (?:length|window|size)|\bprompt\b|\binput\b|remaining|\brequests\b|invalid schema"
    r"|in context=",
    re.IGNORECASE,
)


def repaired_options(
    options: ChatOptions, status: int, text: str, sent: Members
) -> Optional[ChatOptions]:
    """Options that this refusal of the body `sent` asks for, or None if there is nothing to change.

    They are worth remembering once a request has been taken with them.
    """
    if status not in REPAIRED_STATUSES or NOT_LEARNED.search(text):
        return None
    for pattern, repair in CHAT_REPAIRS:
        match = pattern.search(text[:4096])
        if match:
            repaired = repair(options, match, sent)
            return None if repaired == options else repaired
    return None


def learned_words(before: ChatOptions, after: ChatOptions) -> str:
    """What has been learned, for one line of the log."""
    rows = zip(ChatOptions._fields, before, after)
    changed = [(name, old, new) for name, old, new in rows if old != new]
    return ", ".join(
        f"{name}={'+'.join(sorted(new - old)) if isinstance(new, frozenset) else new}"
        for name, old, new in changed
    )
