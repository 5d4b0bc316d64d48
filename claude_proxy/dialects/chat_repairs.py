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
from claude_proxy.patterns import LazyPattern

SentMembers = Mapping[str, Any]
Repair = Callable[[ChatOptions, re.Match, SentMembers], ChatOptions]

# What no request can do without; any other member may be left out.
NEEDED_MEMBERS = ("model", "messages", "tools", "tool_choice", "stream")
REFUSED = (
    r"(?:unsupported|not supported|does not support|unrecognized|unknown|unexpected|not permitted"
    r"|not allowed|only the default|extra inputs?|(?:in|not a )valid (?:parameter|argument))"
)
# A single word may be English, or a member: then it is quoted, or stands at a colon or in a path.
MEMBER_NAME = LazyPattern(
    r"\b([a-z]+_[a-z_]+)\b|['\"`(.:]\s?([a-z]{4,40})\b|\b([a-z]{4,40})(?=['\"`:])"
)
SENTENCE_END = LazyPattern(r"[.,]\s")
EFFORT = r"reasoning_?effort|(?:invalid reasoning|think) value"
LIMIT = r"\bmax_(?:completion_|output_)?tokens\b"
GRAMMAR = (
    r"(?:pars(?:e|ing)|compil(?:e|ing)|convert|invalid|build)[^.]{0,30}grammar|unrecognized schema"
    r"|json schema conversion failed|schema contains features"
)
LIMIT_KEYS = r"(max_tokens|max_completion_tokens)"
# A limit below this is no model's, and one that depends on the prompt is this prompt's.
LEAST_LIMIT = 256
# Less room than this beside a prompt is not worth an answer: the client had better compact.
LEAST_ROOM = 1024
ROOM_LEFT_FREE = 64
LONGEST_REFUSAL_READ = 4096
THINKING_KEYS = (
    "reasoning_effort", "reasoning", "thinking", "chat_template_kwargs", "enable_thinking",
    "thinking_budget",
)  # fmt: skip


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


def use_exclusive_limit(
    options: ChatOptions, match: re.Match, sent: SentMembers
) -> ChatOptions:
    limit, asked = int(match.group(1)) - 1, sent.get(options.max_tokens_key) or 0
    return options._replace(max_output=limit) if LEAST_LIMIT <= limit < asked else options


def drop_member(options: ChatOptions, match: re.Match, sent: SentMembers) -> ChatOptions:
    """Leave out a member that the refusal names, if it was sent and is no part of the question."""
    before = match.string[max(0, match.start() - 70) : match.start()].lower()
    after = match.string[match.start() : match.end() + 60].lower()
    words = SENTENCE_END.split(before)[-1] + SENTENCE_END.split(after)[0]
    for found in MEMBER_NAME.findall(words):
        name = "".join(found)
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
    """Strictness goes first: it is what most schemas are refused for where it is asked."""
    tools = sent.get("tools") or ()
    if options.strict and any("strict" in tool.get("function", ()) for tool in tools):
        return options._replace(strict=False)
    level = options.schema_level + 1
    fits = "tools" in sent and level <= HIGHEST_SCHEMA_LEVEL
    return options._replace(schema_level=level) if fits else options


def cut_descriptions(options: ChatOptions, match: re.Match, sent: SentMembers) -> ChatOptions:
    longest = int(match.group(1))
    fits = longest >= LEAST_LIMIT and not 0 < options.longest_description <= longest
    return options._replace(longest_description=longest) if fits else options


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
    asked = sent.get("reasoning_effort")
    if asked is None:
        return options
    listed = re.split(r"(?i)supported values|one of|accepted|must be|expected", match.string)[1:]
    words = set(re.findall(r"['\"`]([a-z]+)['\"`]", " ".join(listed)))
    known = tuple(w for w in ("none", *EFFORT_LEVELS[1:], "default") if w in words)
    if known and known != options.efforts:
        return options._replace(efforts=known)
    others = tuple(word for word in options.efforts if word != asked)
    if others and len(others) < len(options.efforts) and is_quoted(str(asked), match.string):
        return options._replace(efforts=others)
    return options._replace(thinking="", effort_with_tools="any")


def is_quoted(word: str, text: str) -> bool:
    return re.search(rf"['\"`]{re.escape(word)}['\"`]", text) is not None


def no_thinking(options: ChatOptions, match: re.Match, sent: SentMembers) -> ChatOptions:
    if not any(member in sent for member in THINKING_KEYS):
        return options
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


def without_urls(options: ChatOptions, match: re.Match, sent: SentMembers) -> ChatOptions:
    """Images by URL are not taken; those whose data are sent stay."""
    parts = (
        part
        for message in sent.get("messages", ())
        if isinstance(message.get("content"), list)
        for part in message["content"]
    )
    urls = (part["image_url"].get("url", "") for part in parts if part["type"] == "image_url")
    remote = any(url.startswith("http") for url in urls)
    return options._replace(image_urls=False) if remote else options


def part_kinds(message: Dict[str, Any]) -> Tuple[str, ...]:
    """The members of a message, the types of its parts, and what can be said of its content."""
    content = message.get("content")
    parts = content if isinstance(content, list) else ()
    kind = "parts" if parts else "content" if "content" in message else "no content"
    return (*message, *(part["type"] for part in parts), kind)


# --- the table ---------------------------------------------------------------------------------

PARTICULAR_REPAIRS: Tuple[Tuple[str, Repair], ...] = (
    # Reasoning.
    (r"reasoning_effort.{0,200}\btools?\b|\btools?\b.{0,200}reasoning_effort", effort_beside_tools),
    (rf"(?:{EFFORT}).{{0,400}}(?:invalid|must be|expected)|invalid.{{0,60}}(?:{EFFORT})"
     rf"|(?:{EFFORT}).{{0,200}}{REFUSED}|{REFUSED}.{{0,80}}(?:{EFFORT})",
     accepted_efforts),
    (r"does not support thinking|thinking is not supported", no_thinking),
    (r"reasoning is mandatory|only works in thinking mode"
     r"|(?:thinking|reasoning)[^.]{0,30}(?:cannot|can't|must not) be (?:disabled|turned off)",
     set_options(always_thinks=True)),
    # The last message.
    (r"prefill is incompatible", set_options(prefill="unthinking")),
    (r"last role.{0,80}assistant with prefix", set_options(prefill="prefix")),
    # Tools.
    (r"response_format.{0,40}\btools?\b|\btools?\b.{0,40}response_format"
     r"|json mode cannot|grammar constraints with tools", lower_format),
    (r"no endpoints found that support tool use|does not support (?:tools|tool use|function call)"
     r"|tools? (?:use )?(?:is|are) not supported|tool choice requires --enable-auto-tool-choice"
     r"|(?:function|(?<!parallel )tool) (?:calling|use)\W{1,2}is not (?:enabled|supported)"
     r"|tools param requires --jinja", without_tools),
    (r"tool_choice|tool choice", lower_choice),
    (r"function[ _.]?name.{0,60}start with a letter", set_options(tool_name="letter")),
    (r"description.{0,40}too long.{0,60}maximum length (\d{1,6})", cut_descriptions),
    # Reasoning that comes back.
    (r"thought_signature", set_options(replay="extra_content", replay_blank=True)),
    (r"reasoning_content.{0,120}(?:must be|missing|required|passed back|pass back)"
     r"|missing.{0,40}reasoning_content",
     set_options(replay="reasoning_content", replay_blank=True)),
    (rf"reasoning_(?:content|details).{{0,120}}{REFUSED}|{REFUSED}.{{0,80}}reasoning_(?:content|d)",
     set_options(replay="", replay_blank=False)),
    (rf"\bmessages?\b.{{0,60}}\breasoning\b.{{0,60}}{REFUSED}"
     rf"|{REFUSED}.{{0,80}}\bmessages?\b.{{0,40}}\breasoning\b",
     where_sent("reasoning", replay="", replay_blank=False)),
    # What is said of sampling beside thinking is said of sampling.
    (rf"\A(?!.*\b(?:temperature|top_p|top_k)\b).*?(?:"
     rf"\b(?:chat_template_kwargs|enable_thinking|thinking_budget|thinking|reasoning)"
     rf"\b['\"`:]{{0,3}}[^.,]{{0,40}}?{REFUSED}"
     rf"|{REFUSED}[^.,]{{0,60}}?\b(?:chat_template_kwargs|enable_thinking|thinking_budget|thinking"
     r"|reasoning)\b)", no_thinking),
    # Ids and roles.
    (r"tool call id.{0,80}length of 9|must be a-z, A-Z, 0-9", set_options(tool_ids="mistral")),
    (r"tool_calls.{0,80}id.{0,120}(?:too long|maximum length)|(?:too long|maximum length).{0,120}"
     r"tool_call.{0,40}id", set_options(tool_ids="short")),
    (r"unexpected role .?user.? after role .?tool", set_options(bridge=True)),
    (r"roles? must alternate|alternate user/assistant", set_options(alternate=True)),
    (r"unexpected role .?system|system role (?:is )?not supported|does not support .{0,20}'?system"
     r"|system message must be at the beginning|developer.{0,20}(?:role|instruction)s?.{0,40}not"
     r"|only user and assistant roles are supported(?!,)",
     set_options(system_role="")),
    (r"only user and assistant roles are supported(?!,)", without_tools),
    # Parts of messages.
    (r"image urls? (?:are|is) not|must be a base64 encoded image", without_urls),
    (r"no endpoints found that support image|unknown (?:variant|part type).{0,3}image_url"
     r"|unsupported (?:content|part|message)[^.]{0,30}image_url|at most 0 image"
     r"|(?:model|endpoint|server)[^.]{0,60}not support[^.]{0,20}(?:image|vision|multimodal)"
     r"|image[_ ](?:input|content|part|url)s?\b[^.]{0,30}(?:not supported|only supported)"
     r"|does not support (?:image|vision)|not a multimodal model|data required for image input",
     where_sent("image_url", images=False)),
    (r"unknown (?:variant|part type).{0,3}file\b|unsupported (?:content|part)[^.]{0,30}\bfile\b"
     r"|\bfile (?:input|content|part)s?\b[^.]{0,30}not supported|files are not supported"
     r"|not support[^.]{0,20}\bfiles?\b", where_sent("file", files=False)),
    (r"content.{0,60}(?:must be a string|should be a valid string)"
     r"|should be a valid string.{0,60}content|(?:content|sequence).{0,40}expected a string"
     r"(?!.{0,20}(?:null|none))|invalid message format", where_sent("parts", flat=True)),
    (r"content.{0,60}(?:null|none|required|missing|empty|a string)|missing.{0,20}content",
     where_sent("no content", null_content="empty")),
    # Schemas.
    (r"invalid schema for function|is not a 'regex'|unknown name .{0,60}\btools\b"
     rf"|unsupported keyword|{GRAMMAR}|additionalproperties"
     r"|property '?\$schema|tools\[?\.?\d.{0,80}parameters|function_declarations",
     raise_schema_level),
    (r"\bstrict\b.{0,60}(?:not|unsupported|unknown)|(?:unsupported|unknown|extra).{0,60}\bstrict\b",
     set_options(strict=False)),
    (r"cache_control", set_options(cache_control=False)),
    (rf"response[_ ]format.{{0,120}}(?:{REFUSED}|unavailable)|{REFUSED}.{{0,80}}response[_ ]format"
     rf"|json_schema.{{0,60}}not|does not support.{{0,30}}structured|{GRAMMAR}", lower_format),
)  # fmt: skip
GENERAL_REPAIRS: Tuple[Tuple[str, Repair], ...] = (
    # Limits go before names: a number says more.
    (r"at most (\d{1,9}) completion tokens", use_limit),
    (r"maximum tokens you requested exceeds the model limit of (\d{1,9})", use_limit),
    (r"maxOutputTokens.{0,80}\(inclusive\) to (\d{1,9}) \(exclusive\)", use_exclusive_limit),
    (rf"{LIMIT}: \d{{1,9}} > (\d{{1,9}})", use_limit),
    (rf"{LIMIT}.{{0,160}}?\[\d+, ?(\d{{1,9}})\]", use_limit),
    (rf"{LIMIT}.{{0,60}}exceeds.{{0,40}}maximum output tokens \(?(\d{{1,9}})", use_limit),
    (rf"{LIMIT}.{{0,160}}?(?:less than or equal to|at most|<=|maximum"
     r"(?: value| allowed)?(?: is| of|:)?|limit(?: is| of|:)?) ?`?(\d{1,9})", use_limit),
    (rf"(?:less than or equal to|at most|<=) (\d{{1,9}})\b.{{0,20}}{LIMIT}", use_limit),
    (rf"\b{LIMIT_KEYS}\b['\"`:]{{0,3}}[^.,]{{0,30}}?{REFUSED}"
     rf"|{REFUSED}[^.,]{{0,40}}?\b{LIMIT_KEYS}\b", use_other_key),
    (r"max_tokens.{0,80}use ['\"`]?max_completion_tokens", use_completion_key),
    (rf"\b(stop|temperature|top_p|top_k|parallel_tool_calls|stream_options)\b.{{0,80}}{REFUSED}"
     rf"|{REFUSED}.{{0,80}}?\b(stop|temperature|top_p|top_k|parallel_tool_calls|stream_options)\b",
     drop_named),
    (r"\b(temperature|top_p)\b.{0,40}(?:only \S{1,8} is allowed|may only be set|cannot both be)",
     drop_named),
    (r"\b(stop)\b.{0,40}(?:too long|too many|at most \d)", drop_named),
    (REFUSED, drop_member),
)  # fmt: skip


CHAT_REPAIRS = tuple(
    tuple((LazyPattern(words, re.IGNORECASE | re.DOTALL), repair) for words, repair in rows)
    for rows in (PARTICULAR_REPAIRS, GENERAL_REPAIRS)
)
# A template's complaint may come as the server's own failure.
REPAIRED_STATUSES = (400, 404, 422, 500)
# Refusals of this one request: a full context, a prompt's own limit, a tool's schema.
NOT_GENERAL = LazyPattern(
    r"context (?:length|window|size)|\bprompt\b|\binput\b(?! should)|remaining|\brequests\b"
    r"|invalid schema|in context=",
    re.IGNORECASE,
)
# These teach nothing at all: what was written or shown, who asks, what the model made of it.
NO_LESSON = LazyPattern(
    r"content[_ ](?:filter|management|policy)|usage policy|flagged as|\bapi[ _]key\b|\bquota\b"
    r"|\bbilling\b|\bcredit|(?:image|file|mime|media) (?:format|type|size|data)s?\b"
    r"|tool_use_failed|failed_generation|tool call validation failed|did not call a tool"
    r"|failed to parse input at pos|invalid schema for response_format",
    re.IGNORECASE,
)
# Where a validator quotes what it was given.
QUOTED_INPUT = LazyPattern(r"\binput_value=.{0,400}?(?:, input_type=|\Z)", re.DOTALL)
# Our own wording of an overflow that a smaller answer would avoid (`overflow_message`).
TOO_LONG_TOGETHER = LazyPattern(r"exceed context limit: (\d{1,12}) \+ \d+ > (\d{1,12})")


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
    text = QUOTED_INPUT.sub("", text[:LONGEST_REFUSAL_READ])
    if NO_LESSON.search(text):
        return None
    particular, general = CHAT_REPAIRS
    only_particular = status == 500 or NOT_GENERAL.search(text)
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


def merged_lessons(
    known: ChatOptions, before: ChatOptions, after: ChatOptions
) -> ChatOptions:
    """What is known, and what one request has learned from its options `before` to `after`.

    Its `room` was beside its own prompt.
    """
    changed = {
        name: getattr(known, name) | (new - old) if isinstance(new, frozenset) else new
        for name, old, new in zip(ChatOptions._fields, before, after)
        if old != new and name != "room"
    }
    return known._replace(**changed)


def learned_words(before: ChatOptions, after: ChatOptions) -> str:
    """What has been learned, for one line of the log."""
    rows = zip(ChatOptions._fields, before, after)
    changed = [(name, old, new) for name, old, new in rows if old != new]
    return ", ".join(
        f"{name}={'+'.join(sorted(new - old)) if isinstance(new, frozenset) else new}"
        for name, old, new in changed
    )
