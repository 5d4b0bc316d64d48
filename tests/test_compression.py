"""The system prompt made shorter: each rule, what stays untouched, the budget, random prompts."""

from __future__ import annotations

import copy
import json
import random
import time

import pytest

from claude_proxy import compression
from claude_proxy.compression import (
    COMPACT_RULES,
    KEPT_STEP,
    apply_rule,
    compress_request,
    prompt_tokens,
    system_texts,
)
from claude_proxy.errors import ProxyError
from claude_proxy.exchange import client_gone
from claude_proxy.prompt_parts import (
    CODE,
    EXAMPLE,
    HEADING,
    KEPT,
    KEPT_TAGS,
    PLAIN,
    join_parts,
    parse_prompt,
)
from claude_proxy.tokens import text_tokens

RULES = {rule.name: rule for rule in COMPACT_RULES}
FILLER = "Tell the reader in a few plain words what was done, and then what comes next.\n"

# Of the shape of Claude Code's prompt, and about its size; the words are our own.
TONE = "# Tone and style\n" + " - Use no pictures, and as few words as will do.\n" * 12 + "\n"
NARRATION = "# Text output (does not apply to tool calls)\n" + FILLER * 20 + "\n"
HELP = (" - If the user asks for help or wants to complain, name these:\n"
        "  - /help: Get help with this program\n"
        "  - To give feedback, users write to https://example.org/a/b\n")  # fmt: skip
SAFE_HABIT = " - Write no code that has vulnerabilities; mend it at once where you did.\n"
HABITS = "# Doing tasks\n" + " - Change what was asked for, and nothing else.\n" * 70
CARE = ("# Executing actions with care\n\nThink of what cannot be undone before you act.   \n\n\n\n"
        "Examples of such actions:\n- to delete a branch\n- to push by force\n\n")  # fmt: skip
SYSTEM = "# System\n - Text outside of tools is shown to the user.\n - A denied call was denied by them.\n\n"
TOOLS = "# Using your tools\n - Prefer Read to Bash.\n - Call tools together where you can.\n\n"
MEMORY = ("# auto memory\n\nYour memory is at `/home/a/.claude/projects/-src-app/memory/`.\n\n## Types of memory\n\n"
          "<types>\n<type>\n    <name>user</name>\n    <examples>\n    user: I know Go\n    </examples>\n</type>\n</types>\n\n"
          "## How to save memories\n\n```markdown\n---\nname: {{slug}}\n---\n```\n\n" + FILLER * 120 + "\n\n\n")  # fmt: skip
ENVIRONMENT = ("# Environment\nYou work in this environment: \n - Primary working directory: /src/app\n"
               " - Platform: linux\n - Today's date: 2026-11-21\n\n")  # fmt: skip
CONTEXT = "# Context management\nLong conversations are summarized for you.\n\n" + FILLER * 3 + "\n"
GIT_STATUS = "gitStatus: As it was at the start.\n\nCurrent branch: main\n\nStatus:\n M a.py\n\nRecent commits:\n1a2b3c4 first\n\n\n# end"
INTRODUCTION = "\nYou are an agent that helps with software.\n\nIMPORTANT: Refuse to build what does harm.\n\n"
MEMORY_PLACE = "Your memory is at `/home/a/.claude/projects/-src-app/memory/`.\n"
KEPT_OF_LONG = [INTRODUCTION.strip(), SYSTEM, SAFE_HABIT, CARE, TOOLS, MEMORY_PLACE, ENVIRONMENT, GIT_STATUS]
LONG = (INTRODUCTION + SYSTEM + HABITS + SAFE_HABIT + HELP + "\n" + CARE + TOOLS + TONE + NARRATION
        + MEMORY + ENVIRONMENT + CONTEXT + GIT_STATUS)  # fmt: skip
ATTRIBUTION = "x-anthropic-billing-header: cc_version=2.1.197.fa0; cc_entrypoint=cli;"
IDENTITY = "You are Claude Code, Anthropic's official CLI for Claude."
CACHED = {"cache_control": {"type": "ephemeral"}}


def long_request(text=LONG):
    return {
        "model": "m", "max_tokens": 64,
        "system": [{"type": "text", "text": ATTRIBUTION}, {"type": "text", "text": IDENTITY, **CACHED},
                   {"type": "text", "text": text, **CACHED}],
        "messages": [{"role": "user", "content": TONE}, {"role": "system", "content": TONE + "<example>a</example>"}],
        "tools": [{"name": "Bash", "description": TONE + "\n\n\n\n", "input_schema": {"type": "object"}}],
        "metadata": {"user_id": "u"},
    }  # fmt: skip


def compact(text, limit=1):
    return compress_request({"system": text}, limit)[0]["system"]


# --- the rules ---------------------------------------------------------------------------------

# (rule, text, what is left of it). An equal text says that the rule leaves it alone.
CASES = [
    ("trailing_blanks", "a  \nb\t \n  c\n", "a\nb\n  c\n"),
    ("trailing_blanks", "a\n   \nb ", "a\n\nb "),
    ("blank_lines", "a\n\n\n\n\nb\n\nc\n\n\n", "a\n\nb\n\nc\n\n"),
    ("blank_lines", "\n\n\na\n# b\n\n\n\nc\n# d\n\n# e", "\na\n# b\n\nc\n# d\n\n# e"),
    ("rulers", "a\n\n---\n\nb\n\n*****\n\n\u2500\u2500\u2500\u2500\n\nc", "a\n\nb\n\nc"),
    ("rulers", "---\nname: x\n---\n\na\n---\n\nb\n\n====\n\nc", "---\nname: x\n---\n\na\n---\n\nb\n\n====\n\nc"),
    ("bold", "Say **what** you did, (**why**), and **how it went**.", "Say what you did, (**why**), and how it went."),
    ("bold", "**Rule** 1\nall of **/*.py and **/*.js, 2**3**4, `f(**a, **b)`, x ** y ** z", "**Rule** 1\nall of **/*.py and **/*.js, 2**3**4, `f(**a, **b)`, x ** y ** z"),
    ("examples", "a\n<example>\nuser: 2 + 2\n\n# x\n</example>\nb\n  <good-example>c</good-example>\nd", "a\nb\nd"),
    ("examples", "a\n<example>\nb\n<example>c</example>\n</example>\nd", "a\nd"),
    ("examples", "Use <example> tags.\n<example>a</example> b\n<example>c", "Use <example> tags.\n<example>a</example> b\n<example>c"),
    ("examples", "IMPORTANT: a\n<example>b</example>\n====\nc", "IMPORTANT: a\n<example>b</example>\n====\nc"),
    ("examples", "```\n<example>a</example>\n```\n", "```\n<example>a</example>\n```\n"),
    ("examples", "a\n<example>\n<env>\nb\n</env>\n</example>\n", "a\n<example>\n<env>\nb\n</env>\n</example>\n"),
    ("example_sections", "a\n## Examples:\nb\n### c\nd\n## e\nf", "a\n## e\nf"),
    ("example_sections", "# Examples of our contracts\na\n# b", "# Examples of our contracts\na\n# b"),
    ("help", "# a\n" + HELP + " - b\n", "# a\n - b\n"),
    ("help", "- If the user asks for help,\n  give it.\n- /help lists the orders\n", "- If the user asks for help,\n  give it.\n- /help lists the orders\n"),
    ("help_sections", "# Getting help\na\n# Help and feedback\nb\n# Help desk\nc", "# Help desk\nc"),
    ("tone", "# **Tone and style**\na\n## b\nc\n# d\ne", "# d\ne"),
    ("tone", "a\n# 3. Tone and Style:\nb\n\nc\nOther\n=====\nd", "a\nOther\n=====\nd"),
    ("tone", "# Tones\na\n# Style guide of the project\nb\n# A tone\nc", "# Tones\na\n# Style guide of the project\nb\n# A tone\nc"),
    ("tone", "# a\n```\n# Tone\nb\n```\n", "# a\n```\n# Tone\nb\n```\n"),
    ("tone", "a\r\n```\r\n# Tone\r\n```\r\n# Tone\r\nb\r\n# c\r\n", "a\r\n```\r\n# Tone\r\n```\r\n# c\r\n"),
    ("tone", "a\n# Tone\nb\n```\n# c\n```\n\nd\n# e\n", "a\n# e\n"),
    ("tone", "<guide>\n# Tone\na\n</guide>\n# b", "<guide>\n# Tone\na\n</guide>\n# b"),
    ("tone", "# Tone\na\n<b>\nc\n</b>\n# d", "# d"),
    ("tone", "# Tone\nonly this\n", "# Tone\nonly this\n"),
    ("git_howto", "# Committing changes with git\na\n# Creating pull requests\nb\n# Git\nc", "# Git\nc"),
    ("narration", NARRATION + "# Professional objectivity\na\n# Output format\nb", "# Output format\nb"),
    ("context", "# Context management\na\n# Context\nb", "# Context\nb"),
    ("habits", "# Doing tasks\na\n - b\n# Doing the dishes\nc", "# Doing the dishes\nc"),
    ("memory_howto", "# Memory\na\n## Types of memory\nb\n## What not to save in memory\nc\n## Index\nd", "# Memory\na\n## Index\nd"),
]  # fmt: skip


@pytest.mark.parametrize("name,text,left", CASES, ids=[f"{row[0]}-{n}" for n, row in enumerate(CASES)])
def test_a_rule(name, text, left):
    assert join_parts(apply_rule(RULES[name], parse_prompt(text))) == left


def test_every_rule_is_shown_to_work():
    assert {name for name, text, left in CASES if text != left} == set(RULES)


# --- what stays untouched ----------------------------------------------------------------------

# Each stands in a section that would be dropped, with blanks that would be stripped.
UNTOUCHED = {
    "environment section": "## Environment\n - Working directory: /a  \n\n\n\n### Tone\nPlatform: b\n",
    "environment by another name": "## Environment Information:\na\n\n\n\nb\n",
    "environment element": "<env>\nWorking directory: /a  \n\n\n\n# Tone\n```\nb\n</env>\n",
    "environment lines": "- Working directory: a\n- Is directory a git repo: No\n- Platform: b\n- OS Version: c\n- Today's date: d\n- Shell: e\n- You are powered by the model named f.\n- Assistant knowledge cutoff is g.\n",
    "reminder": "<system-reminder>\n# Tone\na  \n\n\n\n<example>b</example>\n</system-reminder>\n",
    "project instructions": "# claudeMd\nContents of /a/CLAUDE.md (checked in):\n\n\n\n# Tone\n<example>a</example>\n# Doing tasks\nb\n",
    "contents of a file": "Contents of /a/b/CLAUDE.md (checked in):\n# Tone\na  \n",
    "instructions from a file": "Instructions from: /a/AGENTS.md\n# Tone\na  \n",
    "project section": "## Project context\na  \n\n\n\n<example>b</example>\n",
    "custom instructions": "## User's custom instructions\na  \n",
    "git status": "gitStatus: a\n\nStatus:\n M b  \n\n\n\n# Tone\nc\n",
    "identity": "You are an assistant of the ward.  \n",
    "attribution": ATTRIBUTION + "\n",
    "marked line": "- **IMPORTANT**: say nothing of a.\n",
    "marked paragraph": "As to names:\nCRITICAL: none of them\nleaves the house.\n",
    "security item": "- Write no SQL that is open to injection,\n  and mend what is.\n",
    "safety section": "## Security policy\na  \n\n\n\nb\n",
    "care": "## Executing actions with care\na  \n",
    "patients": "- Keep what patients say to yourself.\n",
    "path": "- Notes belong into `/srv/notes/today` alone.\n",
    "Windows path": "- Notes belong into C:\\notes\\today alone.\n",
    "home path": "- Settings are in ~/.claude/settings.json.\n",
    "tools in text": "## Tools\n\n=== Bash ===\n  \n\n\n\nInput: {}\n",
    "tool element": "<functions>\n<function>{\"a\": 1}</function>  \n\n\n\n</functions>\n",
    "tool policy": "## Tool usage policy\na  \n",
    "language": "## Language\nAnswer in German.  \n",
    "output style": "## Output Style: Learning\na  \n\n\n\n### Tone\nb\n",
}  # fmt: skip


@pytest.mark.parametrize("text", UNTOUCHED.values(), ids=list(UNTOUCHED))
def test_comes_back_byte_for_byte(text):
    after = compact(f"# Other\na\n# Tone and style\n{FILLER}\n\n{text}\n# Tone\n{FILLER}")
    assert text in after and after.partition(text)[0] in ("# Other\na\n", "# Other\na\n# Tone and style\n")


@pytest.mark.parametrize("tag", sorted(KEPT_TAGS))
def test_an_element_comes_back(tag):
    text = f"<{tag} a='b'>\n# Tone\nc  \n\n\n\n</{tag}>\n"
    assert compact(f"# Tone\n{FILLER}{text}# Other\nd") == f"# Tone\n{text}# Other\nd"


def test_an_element_that_does_not_end_is_kept_to_the_end():
    text = "<env>\na  \n\n\n\n# Tone\nb  \n"
    assert compact(f"# Tone\n{FILLER}{text}") == f"# Tone\n{text}"


def test_an_element_without_contents_is_kept_alone():
    assert compact(f"# Tone\n{FILLER}<project name='a'/>  \n{FILLER}# Other\nb") == "# Tone\n<project name='a'/>  \n# Other\nb"


def test_code_that_does_not_end_hides_nothing():
    kept = "# Environment\na  \n"
    assert compact(f"# Tone\n{FILLER}```\nb\n{kept}# Other\nc") == f"{kept}# Other\nc"


def test_an_unknown_prompt_loses_blanks_alone():
    text = "# Menu\n\n\n\n- **Soup**: `x  y`  \n\n## Wine\n```\na  \n\n\n\nb\n```\n| a |  b |\n<dish>\nc\n</dish>\nd"
    assert compact(text) == text.replace("# Menu\n\n\n\n", "# Menu\n\n").replace("`  \n", "`\n")


def test_nothing_but_the_system_prompt_changes_and_nothing_in_place():
    request = long_request()
    before = copy.deepcopy(request)
    after, _ = compress_request(request, 1)
    assert request == before and after["system"] != before["system"]
    assert {**after, "system": 0} == {**before, "system": 0}
    assert all(after[key] is request[key] for key in request if key != "system")
    texts = [block.pop("text") for block in after["system"]]
    assert after["system"] == [{"type": "text"}, {"type": "text", **CACHED}, {"type": "text", **CACHED}]
    assert texts[:2] == [ATTRIBUTION, IDENTITY]


@pytest.mark.parametrize("system", [
    None, "", [], {}, 7, ["a"], [None], [{"type": "text"}], [{"type": "text", "text": None}],
    [{"type": "image", "text": "# Tone\na\n# b"}], [{"text": "# Tone\na\n# b"}], " \n \n", [{"type": "text", "text": ""}],
], ids=str)  # fmt: skip
def test_an_odd_system_prompt_passes(system):
    for request in ({"system": system}, {} if system is None else {"system": system, "x": 1}):
        assert compress_request(request, 0)[0] is request


def test_blocks_of_other_kinds_keep_their_places():
    other = {"type": "new", "text": TONE}
    text = {"type": "text", "text": f"a\n{TONE}", "citations": 1}
    after, _ = compress_request({"system": [other, text, other]}, 1)
    assert after["system"] == [other, {"type": "text", "text": "a\n", "citations": 1}, other]


def test_a_block_is_never_emptied():
    blocks = [{"type": "text", "text": text} for text in (TONE, "  \n", TONE + NARRATION, f"a\n{TONE}")]
    after, _ = compress_request({"system": blocks}, 1)
    assert [block["text"] for block in after["system"]] == [TONE, "  \n", NARRATION, "a\n"]


# --- the parts ---------------------------------------------------------------------------------


def test_the_parts_of_a_prompt():
    text = f"a\n{SAFE_HABIT}# T\nb\n~~~x\n# c\n~~~\n<example>d</example>\n{ENVIRONMENT}gitStatus: e"
    parts = [(part.kind, part.text, [section.title for section in part.sections]) for part in parse_prompt(text)]
    heading, _, facts = ENVIRONMENT.partition("\n")
    assert parts == [
        (PLAIN, "a\n", []), (KEPT, SAFE_HABIT, []), (HEADING, "# T\n", ["t"]), (PLAIN, "b\n", ["t"]),
        (CODE, "~~~x\n# c\n~~~\n", ["t"]), (EXAMPLE, "<example>d</example>\n", ["t"]),
        (KEPT, heading + "\n", ["environment"]), (KEPT, facts, ["environment"]), (KEPT, "gitStatus: e", []),
    ]  # fmt: skip


# --- only as far as needed ---------------------------------------------------------------------


def test_a_prompt_that_fits_is_the_same_object():
    request = long_request()
    tokens = prompt_tokens(system_texts(request["system"]))
    assert tokens == -(-text_tokens("\n".join([ATTRIBUTION, IDENTITY, LONG])) // 1)
    after, notes = compress_request(request, tokens)
    assert after is request and notes == []


def test_rules_are_applied_one_after_the_other_until_it_fits():
    example = f"<example>\n{FILLER * 30}</example>\n"
    text = f"{'a   ' * 20}{chr(10)}{'a   ' + chr(10)}" * 5 + f"{example}{TONE}{NARRATION}# Other\nb"
    wanted = [text, text.replace("   \n", "\n")]
    for old in (example, TONE, NARRATION):
        wanted.append(wanted[-1].replace(old, ""))
    limits = [prompt_tokens([left]) for left in wanted]
    assert [compact(text, limit) for limit in limits] == wanted
    assert [compact(text, limit - 1) for limit in limits] == [*wanted[1:], wanted[-1]]


def test_the_long_prompt():
    request = long_request()
    after, notes = compress_request(request, 4096)
    text = after["system"][2]["text"]
    before, left = (prompt_tokens(system_texts(r["system"])) for r in (request, after))
    assert notes == [f"system=compact:{before}>{left}"] and before > 4300 and left <= 4096
    assert all(kept in text for kept in KEPT_OF_LONG)
    tight, notes = compress_request(request, 200)
    text = tight["system"][2]["text"]
    assert notes[1:] == ["system=over_limit"] and all(kept in text for kept in KEPT_OF_LONG)
    assert not any(gone in text for gone in (HABITS, HELP, TONE, NARRATION, CONTEXT, "Types of memory"))


def test_what_cannot_be_shortened_is_said_to_be_too_long():
    request = {"system": CARE}
    assert compress_request(request, 5) == (request, ["system=over_limit"])
    assert compress_request(request, 5)[0] is request


def test_notes_are_short_words_without_any_text():
    for limit in (1, 3500, 4000):
        for note in compress_request(long_request(), limit)[1]:
            assert note.isascii() and len(note) < 40 and not set(note) & set(" \n") and note.startswith("system=")


# --- the same from turn to turn ----------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 2900, 3500, 4000])
def test_the_same_prompt_gives_the_same_bytes(limit):
    first, second = (json.dumps(compress_request(long_request(), limit)) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("old,new", [
    ("2026-11-21", "2026-11-22"),
    (" M a.py", " M a.py\n M b.py\n?? # Tone"),
    ("1a2b3c4 first", "5d6e7f8 <example>second</example>\n1a2b3c4 first"),
    ("/src/app\n", "/src/another/app\n"),
    ("Prefer Read to Bash.", "Prefer Read to Bash; never use cat."),
], ids=["date", "status", "commit", "directory", "policy"])  # fmt: skip
def test_a_change_in_what_is_kept_changes_nothing_else(old, new):
    text = LONG + "\n" + " M z.py\n" * fill_to_middle_of_step()
    changed = text.replace(old, new)
    assert changed != text and text.count(old) == 1
    # Limits that it just fits after one rule or another, and a longer one does not.
    parts, limits = parse_prompt(text), [1, 3500, 4000]
    for rule in COMPACT_RULES:
        parts = apply_rule(rule, parts)
        limits.append(prompt_tokens([join_parts(parts)]))
    limits = {limit for limit in limits if limit < prompt_tokens([text])}  # else it stays as it is
    assert len(limits) > 7
    for limit in limits:
        assert compact(changed, limit) == compact(text, limit).replace(old, new)


def fill_to_middle_of_step():
    """How many lines more it takes, so that the changes below do not fall on the edge of a step."""
    for lines in range(100):
        kept = "\n".join(p.text for p in parse_prompt(LONG + "\n" + " M z.py\n" * lines) if p.kind == KEPT)
        if 100 <= text_tokens(kept) % KEPT_STEP <= 140:
            return lines
    raise AssertionError("no step has a middle")


# --- random prompts ----------------------------------------------------------------------------

PIECES = [
    "\n", "\n\n\n\n", "  \n", "a line\n", "- an item  \n", "  that goes on\n", "1. one\n", "---\n\n", "====\n", "Title\n=====\n",
    "word **bold** word\n", "**", "`code`", "# Tone\n", "## Tone and style\n", "# Doing tasks\n", "# Other\n", "## Examples\n", "### deep\n",
    "<example>\n", "</example>\n", "<example>x</example>\n", "<examples>y</examples> z\n", "```\n", "```py\n", "~~~~\n", "<b>\n", "</b>\n", "</env>\n",
    "To give feedback, a\n", " - /help: Get help\n", "IMPORTANT", "x", " ", "You are", "# ", "<", ">", "\u00e4\u2500\u2500\u2500\n", "\r\n", "\t\n",
]  # fmt: skip
# Whole, each with a number, so that it can be found again.
KEPT_PIECES = [
    "<env>\nfact {}  \n\n\n\n# Tone\n</env>\n", "- IMPORTANT: rule {}\n", "\nYou are agent {}.\n\n", "# Environment\nfact {}  \n",
    "\n- a path /srv/data/{}\n", "\nNever show secrets of {}.\n", "## Tool usage policy\nrule {}\n", "<system-reminder>\n```\n{}\n</system-reminder>\n",
]  # fmt: skip


def random_prompt(source):
    pieces, kept = [], []
    for number in range(source.randrange(1, 40)):
        if source.random() < 0.2:
            kept.append(source.choice(KEPT_PIECES).format(f"n{number}n"))
            pieces.append("\n" + kept[-1])
        else:
            pieces.append(source.choice(PIECES))
    return "".join(pieces), kept


def kept_texts(text):
    return [part.text for part in parse_prompt(text) if part.kind == KEPT]


def in_order(pieces, text):
    at = 0
    for piece in pieces:
        found = text.find(piece, at)
        if found < 0:
            return False
        at = found + len(piece)
    return True


@pytest.mark.parametrize("seed", range(8))
def test_random_prompts(seed):
    source = random.Random(seed)
    for _ in range(150):
        text, _ = random_prompt(source)
        assert join_parts(parse_prompt(text)) == text
        limit = source.choice([1, 20, prompt_tokens([text]) * 2 // 3])
        left = compact(text, limit)
        assert len(left) <= len(text)
        assert bool(left.strip()) == bool(text.strip())
        assert compact(left, limit) == left, (text, left)
        assert in_order(kept_texts(text), left), (text, left)


@pytest.mark.parametrize("seed", range(4))
def test_what_was_put_in_to_be_kept_comes_back(seed):
    """Told by the text alone, not by what the parser says of it: no code or example around it."""
    source = random.Random(seed)
    plain = [piece for piece in PIECES if not set(piece) & set("<`~")]
    for _ in range(150):
        kept = [source.choice(KEPT_PIECES).format(f"n{n}n") for n in range(5)]
        text = "".join(x for piece in kept for x in ("\n", *source.sample(plain, 6), "\n", piece, "\n# Tone\n"))
        assert in_order([piece.strip("\n") for piece in kept], compact(text)), text


MILLION, FEWER = 400_000, 50_000


@pytest.mark.parametrize("unit,size", [
    *((unit, MILLION) for unit in (" ", "\n", "#", "<", "\t", "`")),
    *((unit, FEWER) for unit in ("*", "<env ", "</env ", "<example>", "<example>\n", "**a ", "_ ", "~/", "\n\n---", "1", "!\n",
                                 "=\n", "# a\n", "# Tone\n", "x \n", "- a\n", "```\n", "```x\n", "<a>\n", "secure\n\n")),
], ids=repr)  # fmt: skip
def test_a_long_prompt_takes_linear_time(unit, size):
    """Whatever goes back over what it has seen would take minutes."""
    text = "# Tone\n" + unit * (size // len(unit)) + "\n# Other\na"
    start = time.thread_time()
    compact(text)
    assert time.thread_time() - start < 3


# --- summaries ---------------------------------------------------------------------------------


class Model:
    """Answers with what it is given to say, and remembers what it was asked."""

    def __init__(self, answer):
        self.answer, self.asked = answer, []

    def __call__(self, text, tokens):
        self.asked.append((text, tokens))
        if isinstance(self.answer, ProxyError):
            raise self.answer
        return self.answer


def test_a_summary_stands_where_the_text_stood():
    model = Model("  # In short\nBe brief.\n")
    request = long_request()
    after, notes = compress_request(request, 3600, model)
    text = after["system"][2]["text"]
    before, left = (prompt_tokens(system_texts(r["system"])) for r in (request, after))
    assert notes == [f"system=summarize:{before}>{left}"] and left <= 3600
    assert in_order([INTRODUCTION.rstrip("\n"), SYSTEM, "\n# In short\nBe brief.\n\n", SAFE_HABIT, CARE, TOOLS,
                     MEMORY_PLACE, ENVIRONMENT, GIT_STATUS], text)  # fmt: skip
    (asked, tokens), = model.asked
    assert TONE in asked and NARRATION in asked and HABITS in asked
    assert not any(kept in asked for kept in KEPT_OF_LONG)
    assert tokens == 2048
    assert after["messages"] is request["messages"] and after["tools"] is request["tools"]


@pytest.mark.parametrize("answer", [
    None, "", " \n", FILLER * 200, ProxyError(503, "no"), ProxyError(400, "too long"),
], ids=["none", "empty", "blank", "longer", "down", "refused"])  # fmt: skip
def test_without_a_usable_summary_the_rules_do(answer):
    model = Model(answer)
    assert compress_request(long_request(), 3600, model) == compress_request(long_request(), 3600)
    assert len(model.asked) == 1


def test_a_client_that_has_gone_is_no_failure_of_the_summary():
    with pytest.raises(ProxyError) as caught:
        compress_request(long_request(), 3600, Model(client_gone()))
    assert caught.value.status == 499


@pytest.mark.parametrize("text,limit", [
    (LONG, 10_000),  # it fits
    ("a \n" + " " * 400 + "\n" + "b " * 40, 60),  # blanks are enough
    (CARE * 9, 20),  # all of it is kept
    ("# Other\n" + FILLER * 3, 30),  # too little to win
])  # fmt: skip
def test_no_model_is_asked_for_nothing(text, limit):
    model = Model("short")
    compress_request(long_request(text) if text is LONG else {"system": text}, limit, model)
    assert model.asked == []


def test_the_shorter_way_is_taken_where_the_summary_does_not_fit():
    text = f"a\n{'# Other' + chr(10) + 'b' + chr(10)}{TONE * 9}"
    limit = prompt_tokens(["a\n# Other\nb\n"]) + 10
    after, notes = compress_request({"system": text}, limit, Model(FILLER * 4))
    assert after["system"] == "a\n# Other\nb\n" and notes[0].startswith("system=compact:")
    text = f"a\n# Other\n{FILLER * 90}"
    after, notes = compress_request({"system": text}, 40, Model(FILLER * 4))
    assert FILLER * 4 in after["system"] + "\n" and notes[0].startswith("system=summarize:") and notes[1:] == ["system=over_limit"]


def test_a_change_in_what_is_kept_asks_for_the_same_summary():
    first, second = Model("x"), Model("x")
    compress_request(long_request(), 3500, first)
    compress_request(long_request(LONG.replace(" M a.py", " M a.py\n M b.py")), 3500, second)
    assert first.asked == second.asked != []


def test_the_tables_are_data():
    """A pattern that matches nothing, or everything, would make its rule useless or dangerous."""
    for rule in COMPACT_RULES:
        assert rule.scope in compression.RULE_STEPS
        if rule.scope == compression.SECTIONS:
            assert not rule.pattern.fullmatch("") and not rule.pattern.fullmatch("anything else")
    assert len(RULES) == len(COMPACT_RULES)
