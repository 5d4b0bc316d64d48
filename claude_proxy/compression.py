"""The system prompt made shorter, for upstreams where tokens are dear or windows small.

What has to stay as it is (`prompt_parts`: environment facts, project context, safety, identity,
tools) comes back byte for byte. COMPACT_RULES are applied to the rest, the cheapest first, until
the prompt fits or no rule is left; or one summary takes its place. Nothing is cut in mid-sentence.
Messages, tools and all other members are never touched. Pure, in linear time, and the same prompt
gives the same bytes in every turn.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import Any, Callable, List, NamedTuple, Optional, Pattern, Tuple

from claude_proxy.errors import CLIENT_GONE_STATUS, ProxyError
from claude_proxy.events import Request
from claude_proxy.patterns import LazyPattern
from claude_proxy.prompt_parts import (
    CODE,
    EXAMPLE,
    HEADING,
    KEPT,
    PLAIN,
    PROMPT_ITEM,
    TAG_NAME,
    PromptPart,
    PromptParts,
    PromptSection,
    join_parts,
    parse_prompt,
)
from claude_proxy.tokens import text_tokens

# (text, tokens that the summary may have) -> the summary, or None: then rules have to do.
Summarize = Callable[[str, int], Optional[str]]

# What is kept counts in such steps, so that a few words more in it seldom call for another rule.
KEPT_STEP = 256
# A rule may uncover work for one before it.
MOST_ROUNDS = 8
LEAST_SUMMARY_TOKENS = 256

# --- the rules ---------------------------------------------------------------------------------

# What a rule's pattern looks at: plain text; paragraphs and list items, by their beginning;
# sections, by the whole of their title in lower case; elements of EXAMPLE_TAGS, by their text.
TEXTS, ITEMS, SECTIONS, ELEMENTS = "texts", "items", "sections", "elements"


class CompactRule(NamedTuple):
    name: str
    scope: str
    pattern: Pattern[str]
    replacement: str = ""


# In the order of what is lost: nothing, examples, how to talk, how to work.
COMPACT_RULES = tuple(CompactRule(name, scope, LazyPattern(pattern), *replacement)
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
    ("help_sections", SECTIONS, r"(?:getting )?(?:help|feedback)(?: and (?:help|feedback))?"),
    ("tone", SECTIONS, r"(?:tone|(?:communication|writing) style)\b.*|emojis?|verbosity"),
    ("git_howto", SECTIONS, r"committing changes with git|creating pull requests"
                            r"|other common operations"),
    ("narration", SECTIONS, r"text output\b.*|communicating with the user|professional objectivity"
                            r"|no time estimates|planning without timelines|code references.*"),
    ("context", SECTIONS, r"context management"),
    ("habits", SECTIONS, r"doing tasks|following conventions|proactiveness"),
    # How to keep a memory; what is in it comes under its file's name, and stays.
    ("memory_howto", SECTIONS, r"types of memory|what not to save.*|when to access.*"
                               r"|before recommending.*|memory and other.*"),
))  # fmt: skip
LOSSLESS_RULES = tuple(rule for rule in COMPACT_RULES if rule.scope == TEXTS)

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


LONE_TAG = LazyPattern(rf"^[ \t]*<(?P<close>/?){TAG_NAME}[ \t]*$", re.MULTILINE)


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


# --- the budget --------------------------------------------------------------------------------


def prompt_tokens(texts: Sequence[str]) -> int:
    return math.ceil(text_tokens("\n".join(texts)))


class PromptBudget:
    """Whether a prompt is short enough.

    What is kept has a say in steps only: a change in it changes nothing else, as a rule.
    """

    def __init__(self, limit: int, blocks: Sequence[PromptParts]) -> None:
        kept = prompt_tokens([part.text for parts in blocks for part in parts if part.kind == KEPT])
        self.room = limit - math.ceil(kept / KEPT_STEP) * KEPT_STEP

    def holds(self, blocks: Sequence[PromptParts]) -> bool:
        # Parts end with lines, so that together they come to no more than one by one.
        others = [part.text for parts in blocks for part in parts if part.kind != KEPT]
        return prompt_tokens(others) <= self.room


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
    blocks = system if isinstance(system, list) else []
    return [block["text"] for block in blocks if is_system_text(block)]


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
    texts = {**dict.fromkeys(places, ""), places[0]: f"\n{summary}\n\n"}
    return [p._replace(text=texts[n]) if n in texts else p for n, p in enumerate(parts)]
