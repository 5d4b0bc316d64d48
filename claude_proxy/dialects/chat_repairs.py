"""What a provider's refusal teaches about its Chat Completions: options that will be taken. Pure.

"OpenAI-compatible" differs by host, model and deployment, and an Azure deployment's name tells
nothing. So requests go out in the form that most take, and a refusal that names what it minds
changes the options for that model, once for each thing. Everything else is the client's to see.

Each row of `CHAT_REPAIRS` is the words of a refusal and what to change; the first row that fits and
changes something decides. Rows are ordered from the particular to the general.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Callable, Dict, Optional, Tuple

from claude_proxy.dialects.chat_options import ChatOptions
from claude_proxy.dialects.chat_schemas import HIGHEST_SCHEMA_LEVEL
from claude_proxy.dialects.chat_thinking import EFFORT_LEVELS

SentMembers = Mapping[str, Any]
Repair = Callable[[ChatOptions, re.Match, SentMembers], ChatOptions]

# What no request can do without; any other member may be left out.
NEEDED_MEMBERS = ("model", "messages", "tools", "tool_choice", "stream")
REFUSED = (
    r"(?:unsupported|not supported|does not support|unrecognized|unknown|unexpected|not permitted"
    r"|not allowed|only the default|extra inputs?|invalid (?:parameter|argument))"
)
LIMIT_KEYS = r"(max_tokens|max_completion_tokens)"
# A limit below this is no model's, and one that depends on the prompt is this prompt's.
LEAST_LIMIT = 256
# Less room than this beside a prompt is not worth an answer: the client had better compact.
LEAST_ROOM = 1024
ROOM_LEFT_FREE = 64
LONGEST_REFUSAL_READ = 4096


# --- limits and members ------------------------------------------------------------------------


def use_other_key(options: ChatOptions, match: re.Match, sent: SentMembers) -> ChatOptions:
    """The refused one of the two names of the limit gives way to the other."""
    refused = next(group for group in match.groups() if group)
    other = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}[refused]
    return options._replace(max_tokens_key=other) if options.max_tokens_key == refused else options


def use_completion_key(options: ChatOptions, match: re.Match, sent: SentMembers) -> ChatOptions:
    return options._replace(max_tokens_key="max_completion_tokens")


def use_limit(options: ChatOptions, match: re.Match, sent: SentMembers) -> ChatOptions:
    limit, asked = int(match.group(1)), sent.get(options.max_tokens_key) or 0
    return options._replace(max_output=limit) if LEAST_LIMIT <= limit < asked else options


def drop_member(options: ChatOptions, match: re.Match, sent: SentMembers) -> ChatOptions:
    """Leave out a member that the refusal names, if it was sent and is no part of the question."""
    for name in re.findall(r"[a-z_]{4,40}", match.group().lower()):
        if name in sent and name not in (*NEEDED_MEMBERS, options.max_tokens_key):
            return options._replace(drop=options.drop | {name})
    return options


def drop_named(options: ChatOptions, match: re.Match, sent: SentMembers) -> ChatOptions:
    name = next(group for group in match.groups() if group)
    return options._replace(drop=options.drop | {name}) if name in sent else options


# --- tools -------------------------------------------------------------------------------------


def lower_choice(options: ChatOptions, match: re.Match, sent: SentMembers) -> ChatOptions:
    """A demand that is refused is made in a weaker form; one that forbids calls is never lost."""
    choice = sent.get("tool_choice")
    if isinstance(choice, dict):
        return options._replace(named_choice=False)
    if choice == "none":
        return options._replace(obeys_none=False)
    return options._replace(any_word="") if choice else options


def raise_schema_level(options: ChatOptions, match: re.Match, sent: SentMembers) -> ChatOptions:
    level = options.schema_level + 1
    fits = "tools" in sent and level <= HIGHEST_SCHEMA_LEVEL
    return options._replace(schema_level=level) if fits else options


def without_tools(options: ChatOptions, match: re.Match, sent: SentMembers) -> ChatOptions:
    return options._replace(tools=False) if "tools" in sent else options


# --- reasoning ---------------------------------------------------------------------------------


def effort_beside_tools(options: ChatOptions, match: re.Match, sent: SentMembers) -> ChatOptions:
    """Some models do not think beside tools; some of these want to hear so."""
    if "tools" not in sent:
        return options
    demanded = re.search(r"(?:to|use|be|=) ?['\"`]none", match.string, re.IGNORECASE)
    silent = options.effort_with_tools == "omit" or "reasoning_effort" not in sent
    return options._replace(effort_with_tools="none" if demanded or silent else "omit")


def accepted_efforts(options: ChatOptions, match: re.Match, sent: SentMembers) -> ChatOptions:
    """The levels that a refusal lists; a provider that lists none is told none."""
    if "reasoning_effort" not in sent:
        return options
    listed = re.split(r"(?i)supported values|one of|accepted|must be|expected", match.string)[1:]
    words = set(re.findall(r"['\"`]([a-z]+)['\"`]", " ".join(listed)))
    known = tuple(w for w in ("none", *EFFORT_LEVELS[1:], "default") if w in words)
    if known and known != options.efforts:
        return options._replace(efforts=known)
    return options._replace(thinking="", effort_with_tools="any")


def no_thinking(options: ChatOptions, match: re.Match, sent: SentMembers) -> ChatOptions:
    return options._replace(thinking="", effort_with_tools="any")


def lower_format(options: ChatOptions, match: re.Match, sent: SentMembers) -> ChatOptions:
    """json_schema gives way to json_object, and that to words."""
    if "response_format" not in sent:
        return options
    weaker = "json_object" if options.answer_format == "json_schema" else "text"
    return options._replace(answer_format=weaker)


def set_options(**members: Any) -> Repair:
    """A repair that sets options, whatever was said in particular."""

    def set_these(options: ChatOptions, match: re.Match, sent: SentMembers) -> ChatOptions:
        return options._replace(**members)

    return set_these


def where_sent(word: str, **members: Any) -> Repair:
    """The same, if the messages of the request have such a part at all."""

    def set_where_sent(options: ChatOptions, match: re.Match, sent: SentMembers) -> ChatOptions:
        found = any(word in part_kinds(m) for m in sent.get("messages", ()))
        return options._replace(**members) if found else options

    return set_where_sent


def part_kinds(message: Dict[str, Any]) -> Tuple[str, ...]:
    """The members of a message, and the types of its parts if it has any."""
    content = message.get("content")
    parts = content if isinstance(content, list) else ()
    return (*message, *(part["type"] for part in parts), *(("parts",) if parts else ()))


# --- the table ---------------------------------------------------------------------------------

PARTICULAR_REPAIRS: Tuple[Tuple[str, Repair], ...] = (
    (r"reasoning_effort.{0,200}\btools?\b|\btools?\b.{0,200}reasoning_effort", effort_beside_tools),
    (r"reasoning_effort.{0,400}(?:invalid|must be|expected)|invalid.{0,60}reasoning_effort"
     rf"|reasoning_effort.{{0,200}}{REFUSED}|{REFUSED}.{{0,80}}reasoning_effort",
     accepted_efforts),
    (r"does not support thinking|thinking is not supported", no_thinking),
    (rf"\b(?:chat_template_kwargs|enable_thinking|thinking_budget|thinking|extra_body|reasoning)"
     rf"\b['\"`:]{{0,3}}[^.,]{{0,40}}?{REFUSED}"
     rf"|{REFUSED}[^.,]{{0,60}}?\b(?:chat_template_kwargs|enable_thinking|thinking_budget|thinking"
     r"|extra_body|reasoning)\b(?!_)", no_thinking),
    (r"no endpoints found that support tool use|does not support (?:tools|tool use|function call)"
     r"|tools? (?:use )?(?:is|are) not supported|tool choice requires --enable-auto-tool-choice"
     r"|tools param requires --jinja", without_tools),
    (r"tool_choice|tool choice", lower_choice),
    (r"thought_signature", set_options(replay="extra_content", replay_blank=True)),
    (r"reasoning_content.{0,120}(?:must be|missing|required|passed back|pass back)"
     r"|missing.{0,40}reasoning_content",
     set_options(replay="reasoning_content", replay_blank=True)),
    (rf"reasoning_(?:content|details).{{0,120}}{REFUSED}|{REFUSED}.{{0,80}}reasoning_(?:content|d)",
     set_options(replay="", replay_blank=False)),
    (r"tool call id.{0,80}length of 9|must be a-z, A-Z, 0-9", set_options(tool_ids="mistral")),
    (r"tool_calls.{0,80}id.{0,120}(?:too long|maximum length)|(?:too long|maximum length).{0,120}"
     r"tool_call.{0,40}id", set_options(tool_ids="short")),
    (r"unexpected role .?user.? after role .?tool", set_options(bridge=True)),
    (r"roles? must alternate|alternate user/assistant", set_options(alternate=True)),
    (r"unexpected role .?system|system role (?:is )?not supported|does not support .{0,20}'?system"
     r"|system message must be at the beginning|developer.{0,20}(?:role|instruction)s?.{0,40}not",
     set_options(system_role="")),
    (r"no endpoints found that support image|unknown variant .?image_url"
     r"|(?:model|endpoint|server)[^.]{0,60}not support[^.]{0,20}(?:image|vision|multimodal)"
     r"|image[_ ](?:input|content|part|url)s?\b[^.]{0,30}(?:not supported|only supported)"
     r"|does not support (?:image|vision)|not a multimodal model",
     where_sent("image_url", images=False)),
    (r"unknown variant .?file\b|file.{0,30}not supported|not support.{0,20}\bfiles?\b",
     where_sent("file", files=False)),
    (r"content.{0,60}must be a string|expected a string|invalid message format"
     r"|content.{0,40}should be a valid string", where_sent("parts", flat=True)),
    (r"content.{0,60}(?:null|none|required|missing|empty)|missing.{0,20}content",
     where_sent("tool_calls", null_content="empty")),
    (r"invalid schema for function|is not a 'regex'|unknown name .{0,60}\btools\b"
     r"|unsupported keyword|(?:parse|compile|convert|invalid|build)[^.]{0,30}grammar"
     r"|additionalproperties"
     r"|property '?\$schema|tools\[?\.?\d.{0,80}parameters|function_declarations",
     raise_schema_level),
    (r"\bstrict\b.{0,60}(?:not|unsupported|unknown)|(?:unsupported|unknown|extra).{0,60}\bstrict\b",
     set_options(strict=False)),
    (r"cache_control", set_options(cache_control=False)),
    (rf"response_format.{{0,120}}(?:{REFUSED}|unavailable)|{REFUSED}.{{0,80}}response_format"
     r"|json_schema.{0,60}not|does not support.{0,30}structured|json mode cannot", lower_format),
)  # fmt: skip
GENERAL_REPAIRS: Tuple[Tuple[str, Repair], ...] = (
    (rf"\b{LIMIT_KEYS}\b['\"`:]{{0,3}}[^.,]{{0,30}}?{REFUSED}"
     rf"|{REFUSED}[^.,]{{0,40}}?\b{LIMIT_KEYS}\b", use_other_key),
    (r"max_tokens.{0,80}use ['\"`]?max_completion_tokens", use_completion_key),
    (r"at most (\d{1,9}) completion tokens", use_limit),
    (r"max_(?:completion_|output_)?tokens.{0,160}?\[\d+, ?(\d{1,9})\]", use_limit),
    (r"max_(?:completion_|output_)?tokens.{0,160}?(?:less than or equal to|at most|<=|maximum"
     r"(?: value| allowed)?(?: is| of|:)?|limit(?: is| of|:)?) ?`?(\d{1,9})", use_limit),
    (rf"\b(stop|temperature|top_p|top_k|parallel_tool_calls|stream_options)\b.{{0,80}}{REFUSED}"
     rf"|{REFUSED}.{{0,80}}?\b(stop|temperature|top_p|top_k|parallel_tool_calls|stream_options)\b",
     drop_named),
    (rf"[a-z_]{{4,40}}['\"`]?[^.,]{{0,30}}{REFUSED}|{REFUSED}[^.]{{0,60}}", drop_member),
)  # fmt: skip


def compiled(rows: Tuple[Tuple[str, Repair], ...]) -> Tuple[Tuple[re.Pattern, Repair], ...]:
    return tuple((re.compile(words, re.IGNORECASE | re.DOTALL), repair) for words, repair in rows)


CHAT_REPAIRS = (compiled(PARTICULAR_REPAIRS), compiled(GENERAL_REPAIRS))
# A template's complaint may come as the server's own failure.
REPAIRED_STATUSES = (400, 404, 422, 500)
# Refusals of this one request: a full context, a prompt's own limit, an answer's schema.
NOT_LEARNED = re.compile(
    r"context (?:length|window|size)|\bprompt\b|\binput\b|remaining|\brequests\b|invalid schema"
    r"|in context=",
    re.IGNORECASE,
)
# Our own wording of an overflow that a smaller answer would avoid (`overflow_message`).
TOO_LONG_TOGETHER = re.compile(r"exceed context limit: (\d{1,12}) \+ \d+ > (\d{1,12})")


def repaired_options(
    options: ChatOptions, status: int, text: str, sent: SentMembers, overflow: str = ""
) -> Optional[ChatOptions]:
    """Options that this refusal of the body `sent` asks for, or None if there is nothing to change.

    `overflow` is the refusal in Claude Code's words, if it is about a full context. The options
    are worth remembering once a request has been taken with them, `room` excepted.
    """
    if status not in REPAIRED_STATUSES:
        return None
    if overflow:
        return options_with_room(options, overflow)
    text = text[:LONGEST_REFUSAL_READ]
    particular, general = CHAT_REPAIRS
    only_particular = status == 500 or NOT_LEARNED.search(text)
    tables = (particular,) if only_particular else (particular, general)
    for pattern, repair in (row for table in tables for row in table):
        match = pattern.search(text)
        repaired = repair(options, match, sent) if match else options
        if repaired != options:
            return repaired
    return None


def options_with_room(options: ChatOptions, overflow: str) -> Optional[ChatOptions]:
    """Prompt and answer are too long together: ask for a shorter answer, this once."""
    match = TOO_LONG_TOGETHER.search(overflow)
    if match is None:
        return None
    prompt, limit = (int(digits) for digits in match.groups())
    room = limit - prompt - ROOM_LEFT_FREE
    return options._replace(room=room) if room >= LEAST_ROOM and not options.room else None


def learned_options(options: ChatOptions) -> ChatOptions:
    """What is worth remembering of options that were taken."""
    return options._replace(room=0)


def learned_words(before: ChatOptions, after: ChatOptions) -> str:
    """What has been learned, for one line of the log."""
    rows = zip(ChatOptions._fields, before, after)
    changed = [(name, old, new) for name, old, new in rows if old != new]
    return ", ".join(
        f"{name}={'+'.join(sorted(new - old)) if isinstance(new, frozenset) else new}"
        for name, old, new in changed
    )
