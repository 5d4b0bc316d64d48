"""The system prompt made shorter, for upstreams where tokens are dear or windows small.

A prompt is split into parts: what comes back byte for byte (KEPT_* below: environment facts,
project context, safety, identity, tools), headings, code, examples, plain text. COMPACT_RULES are
applied to the rest, the cheapest first, until the prompt fits or no rule is left; nothing is cut
in mid-sentence. Messages, tools and all other members are never touched. Pure, in linear time, and
the same prompt gives the same bytes in every turn.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Pattern, Tuple

from claude_proxy.errors import CLIENT_GONE_STATUS, ProxyError
from claude_proxy.events import Request
from claude_proxy.tokens import text_tokens

# (text, tokens that the summary may have) -> the summary, or None: then rules have to do.
Summarize = Callable[[str, int], Optional[str]]

# What is kept counts in such steps, so that a few words more in it seldom call for another rule.
KEPT_STEP = 256
# A rule may uncover work for one before it.
MOST_ROUNDS = 8
LEAST_SUMMARY_TOKENS = 256

# --- what stays untouched ----------------------------------------------------------------------

# Sections by the beginning of their title, in lower case, with all that is below them.
KEPT_HEADINGS = (
    ("environment", r"env(?:ironment)?\b|system info|(?:\w+ )?working director|platform\b"
                    r"|scratchpad|git ?status|(?:current|today's) ?(?:date|time)"),
    ("project context", r"project|repository|codebase|workspace|(?:\w+ )?memor(?:y|ies)\b"
                        r"|(?:users?|custom)\b.* (?:instructions|rules|preferences)"),
    ("the user's choice", r"language\b|output style|\w+ style active"),
    ("safety", r"(?:\w+ )?(?:security|safety|privacy|compliance|permissions?|guardrails)\b"
               r"|executing actions|actions with care"),
    ("tools", r"(?:\w+ )?(?:your )?tools?\b|(?:available )?(?:skills|agents|subagents)\b|mcp\b"
              r"|hooks\b|connectors\b|harness\b|system$|session-specific|task management"),
)  # fmt: skip
# Elements, whose tag begins a line.
KEPT_TAGS = frozenset(
    """env environment environment_context environment_details environment_info system_information
    claude_background_info git_status gitstatus workspace_info repository_context system-reminder
    project project_context project_instructions claude_md memory memories user_info user_rules
    user_instructions custom_instructions rules security safety tools functions tool_definitions
    available_tools tool_call available_skills mcp_servers documents files""".split()
)
# Lines from which on the whole block is kept: what follows may have headings of its own.
KEPT_REST = (
    r"gitStatus:|Instructions from:|Contents of [^\n]*\.md\b"
    r"|\#{1,6}[ \t]+(?i:claude\.?md|agents\.md)\b"
)
# Paragraphs and list items that hold one of these.
KEPT_ITEMS = (
    ("attribution", r"^x-[a-z-]+:"),
    ("identity", r"^You are\b"),
    ("marked", r"^[^\w\n]{0,9}(?:IMPORTANT|CRITICAL|WARNING|CAUTION|SECURITY|SAFETY)\b"),
    ("environment", r"^[^\w\n]{0,9}(?i:(?:(?:primary|current|default) )?(?:working directory|shell"
                    r"|home directory|platform|operating system|os version|timezone|today's date"
                    r"|date|git status|branch)\b|is (?:a |directory a )git repo"
                    r"|you are powered by|assistant knowledge cutoff)"),
    ("a path", r"(?<![\w:/.<])(?:~?/|[A-Z]:\\)[\w.-]+[/\\][\w.-]"),
    ("safety", r"(?i:\b(?:(?:in)?secur|safety|malicious|destructive|credential|password|secrets?\b"
               r"|vulnerab|injection|permission|confidential|privacy|patient|harmful|refus"
               r"|authoriz|approv|confirm))"),
)  # fmt: skip

# --- what may go -------------------------------------------------------------------------------

EXAMPLE_TAGS = frozenset(
    "example examples good-example bad-example good_example bad_example "
    "example_agent_descriptions".split()
)
# What a rule's pattern looks at: plain text; paragraphs and list items, by their beginning;
# sections, by the whole of their title in lower case; elements of EXAMPLE_TAGS, by their text.
TEXTS, ITEMS, SECTIONS, ELEMENTS = "texts", "items", "sections", "elements"


class CompactRule(NamedTuple):
    name: str
    scope: str
    pattern: Pattern[str]
    replacement: str = ""


# In the order of what is lost: nothing, examples, how to talk, how to work.
COMPACT_RULES = tuple(CompactRule(name, scope, re.compile(pattern), *replacement)
                      for name, scope, pattern, *replacement in (
    ("trailing_blanks", TEXTS, r"(?<![ \t])[ \t]+(?=\n)"),
    # A text begins behind the end of a line.
    ("blank_lines", TEXTS, r"(?:(?<=\n\n)|(?<=\A\n))\n+"),
    ("rulers", TEXTS, r"(?<=\n\n)(?:-{3,}|\*{3,}|_{3,}|[\u2500-\u257f]{3,})\n\n"),
    # Not at the beginning of a line, where it may stand for a heading; no globs, no code.
    ("bold", TEXTS, r"(?<=[\w,.;:)] )\*\*(?![\s*/])([^*`\n]+)(?<![\s/])\*\*(?![\w*/])", r"\1"),
    ("examples", ELEMENTS, r""),
    ("example_sections", SECTIONS, r"(?:more |usage )?examples?(?: (?:usage|interactions?))?"),
    ("help", ITEMS, r"[^\w/]*(?:If the user asks for help or|/help: Get help|To give feedback,)"),
    ("help_sections", SECTIONS, r"(?:getting )?(?:help|feedback)(?: (?:and|&) (?:help|feedback))?"),
    ("tone", SECTIONS, r"(?:tone|(?:communication|writing) style)\b.*|emojis?|verbosity|conciseness"),
    ("git_howto", SECTIONS, r"committing changes with git|creating pull requests"
                            r"|other common operations"),
    ("narration", SECTIONS, r"text output\b.*|communicating with the user|professional objectivity"
                            r"|no time estimates|planning without timelines|code references.*"),
    ("context", SECTIONS, r"context management"),
    ("habits", SECTIONS, r"doing tasks|following conventions|proactiveness"),
))  # fmt: skip
LOSSLESS_RULES = tuple(rule for rule in COMPACT_RULES if rule.scope == TEXTS)

# --- the parts of a prompt ---------------------------------------------------------------------

KEPT, HEADING, CODE, EXAMPLE, PLAIN = "kept", "heading", "code", "example", "plain"
LONGEST_FENCE = 8
LONGEST_TITLE = 80


class PromptSection(NamedTuple):
    start: int
    level: int
    title: str
    kept: bool


class PromptPart(NamedTuple):
    """Some whole lines of a block. All its parts, joined, are the block."""

    text: str
    kind: str
    sections: Tuple[PromptSection, ...]  # the outermost first


PromptParts = List[PromptPart]


def any_of(table: Sequence[Tuple[str, str]]) -> Pattern[str]:
    return re.compile("|".join(f"(?:{pattern})" for _, pattern in table), re.MULTILINE)


KEPT_HEADING, KEPT_ITEM = any_of(KEPT_HEADINGS), any_of(KEPT_ITEMS)
TAG = r"(?P<tag>[A-Za-z][\w-]*)(?=[\s/>])[^<>\n]*>"
ELEMENT_TAG = re.compile(rf"(?P<line>^[ \t]*)?<(?P<close>/?){TAG}", re.MULTILINE)
LONE_TAG = re.compile(rf"^[ \t]*<(?P<close>/?){TAG}[ \t]*$", re.MULTILINE)
# Each of these begins a line, so that a look at every line is all it takes to find them.
PROMPT_MARK = re.compile(
    rf"^(?:(?P<rest>[ \t]*(?:{KEPT_REST}))"
    r"|(?P<fence>[ \t]*(?P<ticks>`{3,}|~{3,})[^`\n]*(?:\n|\Z))"
    r"|(?P<heading>(?P<hashes>\#{1,6})[ \t]+(?P<title>[^\n]+)(?:\n|\Z))"
    rf"|(?P<element>[ \t]*<{TAG})"
    r"|(?P<underlined>(?P<over>[^\n]*)\n={3,}[ \t]*(?:\n|\Z)))",
    re.MULTILINE,
)
FENCE_END = {sign: re.compile(rf"^[ \t]*({sign}{{3,}})[ \t]*(?:\n|\Z)", re.MULTILINE)
             for sign in "`~"}  # fmt: skip
# A paragraph, or an item of a list, with the lines that go on with it.
PROMPT_ITEM = re.compile(
    r"^[^\n]*\S[^\n]*(?:\n|\Z)"
    r"(?:(?![ \t]*(?:(?:[-*+\u2022]|\d{1,9}[.)])[ \t]|[#<]|```|~~~))[^\n]*\S[^\n]*(?:\n|\Z))*",
    re.MULTILINE,
)


def parse_prompt(text: str) -> PromptParts:
    return PromptParser(text).parts()


class PromptParser:
    """Splits one block. Inside code, an example or what is kept, a mark means nothing."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._parts: PromptParts = []
        self._sections: Tuple[PromptSection, ...] = ()
        self._ends = element_ends(text)
        self._no_fence: Dict[str, int] = {}

    def parts(self) -> PromptParts:
        at, mark = 0, PROMPT_MARK.search(self._text)
        while mark:
            kind, end = self._marked(mark)
            if kind:
                self._put(PLAIN, at, mark.start())
                if kind == HEADING or mark["rest"]:
                    self._enter(mark)
                self._put(kind, mark.start(), end)
                at = end
            mark = PROMPT_MARK.search(self._text, end)
        self._put(PLAIN, at, len(self._text))
        return self._parts

    def _marked(self, mark: re.Match[str]) -> Tuple[str, int]:
        """What begins with a mark, and where it ends; no kind if it turns out to be no mark."""
        if mark["rest"]:
            return KEPT, len(self._text)
        if mark["fence"]:
            end = self._fence_end(mark["ticks"], mark.end())
            return (CODE, end) if end else ("", mark.end())
        return self._element(mark) if mark["element"] else (HEADING, mark.end())

    def _fence_end(self, ticks: str, start: int) -> int:
        """Where the code ends; 0 if it does not, which is so of longer fences further on, too."""
        sign, length = ticks[0], min(len(ticks), LONGEST_FENCE)
        if length < self._no_fence.get(sign, LONGEST_FENCE + 1):
            for end in FENCE_END[sign].finditer(self._text, start):
                if len(end[1]) >= length:
                    return end.end()
            self._no_fence[sign] = length
        return 0

    def _element(self, mark: re.Match[str]) -> Tuple[str, int]:
        name, end = mark["tag"].lower(), self._ends.get(mark.start())
        if name in KEPT_TAGS:
            return KEPT, line_end(self._text, end or len(self._text))
        if name not in EXAMPLE_TAGS or end is None:
            return "", mark.end()
        inside, rest = self._text[mark.start() : end], self._text[end : line_end(self._text, end)]
        if rest.strip():
            return "", mark.end()
        return KEPT if holds_kept(inside) else EXAMPLE, end + len(rest)

    def _enter(self, mark: re.Match[str]) -> None:
        if mark["rest"]:
            self._sections = ()
            return
        level, title = len(mark["hashes"] or "#"), plain_title(mark["title"] or mark["over"] or "")
        outer = tuple(section for section in self._sections if section.level < level)
        kept = bool(outer and outer[-1].kept or KEPT_HEADING.match(title))
        self._sections = (*outer, PromptSection(mark.start(), level, title, kept))

    def _put(self, kind: str, start: int, end: int) -> None:
        if start == end:
            return
        text, sections = self._text[start:end], self._sections
        if sections and sections[-1].kept:
            kind = KEPT
        pieces = kept_and_plain(text) if kind == PLAIN else [(kind, text)]
        self._parts += [PromptPart(text, kind, sections) for kind, text in pieces]


def element_ends(text: str) -> Dict[int, int]:
    """Start of a line with an opening tag -> end of the closing one, for each outermost element."""
    ends: Dict[int, int] = {}
    opened: Dict[str, int] = {}
    depths: Dict[str, int] = {}
    for tag in ELEMENT_TAG.finditer(text):
        name = tag["tag"].lower()
        depth = depths.get(name, 0)
        if tag["close"] and depth == 1:
            ends[opened[name]] = tag.end()
        elif not tag["close"] and not depth and tag["line"] is not None:
            opened[name] = tag.start()
        elif not depth:
            continue
        if not tag[0].endswith("/>"):
            depths[name] = depth + (-1 if tag["close"] else 1)
    return ends


def holds_kept(text: str) -> bool:
    tags = ELEMENT_TAG.finditer(text)
    return any(tag["line"] is not None and tag["tag"].lower() in KEPT_TAGS for tag in tags)


def line_end(text: str, at: int) -> int:
    return text.find("\n", at) + 1 or len(text)


def plain_title(title: str) -> str:
    """Without emphasis, a number or a picture in front, and what closes it."""
    words = title[:LONGEST_TITLE].lower().rstrip(string.punctuation + string.whitespace)
    return re.sub(r"\A[\W\d_]+", "", words)


def kept_and_plain(text: str) -> List[Tuple[str, str]]:
    """The items that are kept, and the text between them."""
    pieces, at = [], 0
    for item in PROMPT_ITEM.finditer(text):
        if KEPT_ITEM.search(item[0]):
            pieces += [(PLAIN, text[at : item.start()]), (KEPT, item[0])]
            at = item.end()
    return [piece for piece in (*pieces, (PLAIN, text[at:])) if piece[1]]


# --- rules applied -----------------------------------------------------------------------------


def edit_texts(parts: PromptParts, rule: CompactRule) -> PromptParts:
    return edit_plain(parts, lambda text: rule.pattern.sub(rule.replacement, text))


def drop_items(parts: PromptParts, rule: CompactRule) -> PromptParts:
    def left(item: re.Match[str]) -> str:
        return "" if rule.pattern.match(item[0]) else item[0]

    return edit_plain(parts, lambda text: PROMPT_ITEM.sub(left, text))


def edit_plain(parts: PromptParts, edit: Callable[[str], str]) -> PromptParts:
    edits = {n: edit(part.text) for n, part in enumerate(parts) if part.kind == PLAIN}
    if all(parts[n].text == text for n, text in edits.items()):
        return parts
    return [p._replace(text=edits[n]) if n in edits else p for n, p in enumerate(parts)]


def drop_elements(parts: PromptParts, rule: CompactRule) -> PromptParts:
    return [p for p in parts if not (p.kind == EXAMPLE and rule.pattern.match(p.text))]


def drop_sections(parts: PromptParts, rule: CompactRule) -> PromptParts:
    titles = {section.title for part in parts for section in part.sections}
    titles = {title for title in titles if rule.pattern.fullmatch(title)}

    def section_of(part: PromptPart) -> Optional[PromptSection]:
        return next((section for section in part.sections if section.title in titles), None)

    left: PromptParts = []
    for section, group in groupby(parts, section_of) if titles else [(None, parts)]:
        lines = list(group)
        left += lines if section is None or tears_an_element(lines) else kept_lines(lines)
    return left


def kept_lines(parts: PromptParts) -> PromptParts:
    """What is kept of a section, under the headings that it stands under."""
    used = {section for part in parts if part.kind == KEPT for section in part.sections}
    return [p for p in parts if p.kind == KEPT or p.kind == HEADING and p.sections[-1] in used]


def tears_an_element(parts: PromptParts) -> bool:
    """Whether an element begins in these lines and ends elsewhere, or the other way round."""
    open_tags: Counter[str] = Counter()
    for part in parts:
        if part.kind not in (CODE, KEPT):
            for tag in LONE_TAG.finditer(part.text):
                open_tags[tag["tag"]] += -1 if tag["close"] else 1
                if open_tags[tag["tag"]] < 0:
                    return True
    return any(open_tags.values())


RULE_STEPS = {TEXTS: edit_texts, ITEMS: drop_items, ELEMENTS: drop_elements,
              SECTIONS: drop_sections}  # fmt: skip


def apply_rule(rule: CompactRule, parts: PromptParts) -> PromptParts:
    """The parts that a rule leaves of a block, the same list if all; it may not leave nothing."""
    left = RULE_STEPS[rule.scope](parts, rule)
    return left if left != parts and join_parts(left).strip() else parts


def join_parts(parts: PromptParts) -> str:
    return "".join(part.text for part in parts)


# --- the budget --------------------------------------------------------------------------------


def prompt_tokens(texts: Sequence[str]) -> int:
    return math.ceil(text_tokens("\n".join(texts)))


class PromptBudget:
    """Whether a prompt is short enough.

    What is kept has a say in steps only: a change in it changes nothing else, as a rule.
    """

    def __init__(self, limit: int, blocks: Sequence[PromptParts]) -> None:
        self._limit = limit
        kept = prompt_tokens([part.text for parts in blocks for part in parts if part.kind == KEPT])
        self.room = limit - math.ceil(kept / KEPT_STEP) * KEPT_STEP

    def holds(self, blocks: Sequence[PromptParts]) -> bool:
        others = [part.text for parts in blocks for part in parts if part.kind != KEPT]
        texts = [join_parts(parts) for parts in blocks]
        return text_tokens("".join(others)) <= self.room and prompt_tokens(texts) <= self._limit


def compact_blocks(
    blocks: List[PromptParts], budget: PromptBudget, rules: Sequence[CompactRule] = COMPACT_RULES
) -> List[PromptParts]:
    """The blocks after as many rules as it takes; what one uncovers for another is done, too."""
    for _ in range(MOST_ROUNDS):
        left = apply_rules(blocks, budget, rules)
        if left is blocks:
            break
        blocks = [parse_prompt(join_parts(parts)) for parts in left]
    return blocks


def apply_rules(
    blocks: List[PromptParts], budget: PromptBudget, rules: Sequence[CompactRule]
) -> List[PromptParts]:
    """One round; the same list if there was nothing to do."""
    fits = budget.holds(blocks)
    for rule in rules:
        if fits:
            break
        left = [apply_rule(rule, parts) for parts in blocks]
        if any(new is not old for new, old in zip(left, blocks)):
            blocks, fits = left, budget.holds(left)
    return blocks


def compress_request(
    request: Request, limit: int, summarize: Optional[Summarize] = None
) -> Tuple[Request, List[str]]:
    """The request with a system prompt of no more than `limit` tokens, if that can be had, and
    words for the log. A request that fits comes back as it is; none is changed in place."""
    system = request.get("system")
    texts = system_texts(system)
    before = prompt_tokens(texts)
    if before <= limit:
        return request, []
    how, blocks = shorten_blocks([parse_prompt(text) for text in texts], limit, summarize)
    shorter = list(map(join_parts, blocks))
    after = prompt_tokens(shorter)
    notes = ["system=over_limit"] if after > limit else []
    if shorter == texts:
        return request, notes
    request = {**request, "system": with_system_texts(system, shorter)}
    return request, [f"system={how}:{before}>{after}", *notes]


def system_texts(system: Any) -> List[str]:
    if isinstance(system, str):
        return [system]
    return [block["text"] for block in system if is_system_text(block)] if isinstance(
        system, list) else []  # fmt: skip


def is_system_text(block: Any) -> bool:
    return (isinstance(block, dict) and block.get("type") == "text"
            and isinstance(block.get("text"), str))  # fmt: skip


def with_system_texts(system: Any, texts: Sequence[str]) -> Any:
    """The same system prompt with other texts; its blocks keep their other members."""
    if isinstance(system, str):
        return texts[0]
    left = iter(texts)
    return [{**block, "text": next(left)} if is_system_text(block) else block for block in system]


def shorten_blocks(
    blocks: List[PromptParts], limit: int, summarize: Optional[Summarize]
) -> Tuple[str, List[PromptParts]]:
    """How it was done, and the result. Where a summary is too long still, rules may do better."""
    budget = PromptBudget(limit, blocks)
    if summarize is None:
        return "compact", compact_blocks(blocks, budget)
    blocks = compact_blocks(blocks, budget, LOSSLESS_RULES)
    summarized = None if budget.holds(blocks) else summarize_blocks(blocks, budget, summarize)
    if summarized and budget.holds(summarized):
        return "summarize", summarized
    compacted = compact_blocks(blocks, budget)
    if summarized and not budget.holds(compacted):
        return "summarize", summarized
    return "compact", compacted


# --- summaries ---------------------------------------------------------------------------------


def summarize_blocks(
    blocks: List[PromptParts], budget: PromptBudget, summarize: Summarize
) -> Optional[List[PromptParts]]:
    """The blocks with one summary, in the block that has the most to shorten; None without one.

    Its size is a power of two, so that a small change in what is kept does not ask for another.
    """
    index = max(range(len(blocks)), key=lambda n: len(open_text(blocks[n])))
    text, tokens = open_text(blocks[index]), LEAST_SUMMARY_TOKENS
    while tokens * 2 <= budget.room:
        tokens *= 2
    summary = usable_summary(text, tokens, summarize)
    if summary is None:
        return None
    return [*blocks[:index], put_summary(blocks[index], summary), *blocks[index + 1 :]]


def open_text(parts: PromptParts) -> str:
    return "".join(part.text for part in parts if part.kind != KEPT)


def usable_summary(text: str, tokens: int, summarize: Summarize) -> Optional[str]:
    """The summary, unless there is little to win, it failed, or it is no shorter."""
    if text_tokens(text) <= tokens:
        return None
    try:
        summary = (summarize(text, tokens) or "").strip()
    except ProxyError as error:
        if error.status == CLIENT_GONE_STATUS:
            raise  # nobody waits for the answer any more
        return None
    return summary if summary and text_tokens(summary) < text_tokens(text) else None


def put_summary(parts: PromptParts, summary: str) -> PromptParts:
    """The summary where the first of the texts stood that it stands for; what is kept stays."""
    places = [n for n, part in enumerate(parts) if part.kind != KEPT and part.text.strip()]
    texts = {places[0]: f"\n{summary}\n\n"}
    return [part._replace(text=texts.get(n, "")) if n in places else part
            for n, part in enumerate(parts)]  # fmt: skip
