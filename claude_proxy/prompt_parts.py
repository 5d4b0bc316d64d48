"""A system prompt split into parts: what has to stay as it is, headings, code, examples, others.

What is kept is found by the tables below: sections by their headings, elements by their tags,
paragraphs and list items by their words. In doubt it is kept. Pure, and in linear time.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from typing import Dict, List, NamedTuple, Tuple

from claude_proxy.patterns import LazyPattern

# --- what stays untouched ----------------------------------------------------------------------

# Sections by the beginning of their title, in lower case, with all that is below them.
KEPT_HEADINGS = (
    ("environment", r"env(?:ironment)?\b|system info|(?:\w+ )?working director|platform\b"
                    r"|scratchpad|git ?status|(?:current|today's) ?(?:date|time)"),
    ("project context", r"project|repository|codebase|workspace"
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
# What a prompt can do without first of all.
EXAMPLE_TAGS = frozenset(
    "example examples good-example bad-example good_example bad_example "
    "example_agent_descriptions".split()
)

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


def any_of(table: Sequence[Tuple[str, str]]) -> LazyPattern:
    return LazyPattern("|".join(f"(?:{pattern})" for _, pattern in table), re.MULTILINE)


KEPT_HEADING, KEPT_ITEM = any_of(KEPT_HEADINGS), any_of(KEPT_ITEMS)
TAG_NAME = r"(?P<tag>[A-Za-z][\w-]*)(?=[\s/>])[^<>\n]*>"
ELEMENT_TAG = LazyPattern(rf"(?P<line>^[ \t]*)?<(?P<close>/?){TAG_NAME}", re.MULTILINE)
# Each of these begins a line, so that a look at every line is all it takes to find them.
PROMPT_MARK = LazyPattern(
    rf"^(?:(?P<rest>[ \t]*(?:{KEPT_REST}))"
    r"|(?P<fence>[ \t]*(?P<ticks>`{3,}|~{3,})[^`\n]*(?:\n|\Z))"
    r"|(?P<heading>(?P<hashes>\#{1,6})[ \t]+(?P<title>[^\n]+)(?:\n|\Z))"
    rf"|(?P<element>[ \t]*<{TAG_NAME})"
    r"|(?P<underlined>(?P<over>[^\n]*)\n={3,}[ \t\r]*(?:\n|\Z)))",
    re.MULTILINE,
)
FENCE_END = {sign: LazyPattern(rf"^[ \t]*({sign}{{3,}})[ \t\r]*(?:\n|\Z)", re.MULTILINE)
             for sign in "`~"}  # fmt: skip
# A paragraph, or an item of a list, with the lines that go on with it.
PROMPT_ITEM = LazyPattern(
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
            alone = mark.end() if mark[0].endswith("/>") else len(self._text)
            return KEPT, line_end(self._text, end or alone)
        if name not in EXAMPLE_TAGS or end is None:
            return "", mark.end()
        inside, rest = self._text[mark.start() : end], self._text[end : line_end(self._text, end)]
        # An underline behind it would make a heading of what stands before it, once it is gone.
        if rest.strip() or self._text.startswith("=", end + len(rest)):
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


def join_parts(parts: PromptParts) -> str:
    return "".join(part.text for part in parts)
