"""The requests that are sent: a small one, and a large one as Claude Code makes them.

The large one has what a session of a while has: two parts of system prompt, 20 tools with their
schemas, and 30 turns of text, calls and results; 141 kB. It is the same every time.
"""

from __future__ import annotations

import json
import random
from typing import Any, Dict, List

LARGE_BYTES = 141_000
TURNS = 30
MODEL = "claude-sonnet-4-5-20250929"
TOOL_NAMES = (
    "Task Bash Glob Grep Read Edit MultiEdit Write NotebookEdit WebFetch WebSearch TodoWrite ExitPlanMode"
    " BashOutput KillShell SlashCommand Skill AskUserQuestion mcp__ide__getDiagnostics mcp__ide__executeCode"
).split()
VOCABULARY = (
    "a about after all and answer are argument as be before branch but by caller change check code command commit"
    " config copy default do each error every file find first folder for from function give has if import in input"
    " is it its keep last line list make must name never new no not of on once one only or order output path read"
    " result return run same search set should so state step string test text that the then there this time to tool"
    " type until use user value wait when where which with without write"
).split()
# As Claude Code 2.1.197 sends them.
MEMBER_ORDER = ("model", "messages", "system", "tools", "metadata", "max_tokens", "stream")
CLIENT_KEY = "sk-bench-3f6b1c9a07e54d28"
HEADERS = (
    "Content-Type: application/json", "Accept: application/json", f"x-api-key: {CLIENT_KEY}", "anthropic-version: 2023-06-01",
    "anthropic-beta: claude-code-20250219,interleaved-thinking-2025-05-14", "User-Agent: claude-cli/2.1.0 (external, cli)",
    "x-app: cli", "X-Stainless-Lang: js", "X-Stainless-OS: Linux", "X-Stainless-Arch: x64", "X-Stainless-Runtime: node",
    "X-Stainless-Retry-Count: 0", "X-Stainless-Timeout: 600",
)


def small_request(plan: str, stream: bool = True) -> Dict[str, Any]:
    return {"model": MODEL, "max_tokens": 4096, "messages": [asking(plan)], **({"stream": True} if stream else {})}


def large_request(plan: str, stream: bool = True) -> Dict[str, Any]:
    chance = random.Random(20)
    request = small_request(plan, stream)
    request["system"] = [
        {"type": "text", "text": "You are Claude Code, Anthropic's official CLI for Claude."},
        {"type": "text", "text": sentences(chance, 14_000), "cache_control": {"type": "ephemeral"}},
    ]
    request["tools"] = [tool(chance, name) for name in TOOL_NAMES]
    request["metadata"] = {"user_id": "user_bench_account__session_bench"}
    turns = [turn for number in range(TURNS) for turn in exchange_of(chance, number)]
    request["messages"] = [asking(sentences(chance, 300)), *turns, said("Done."), asking(plan)]
    fill_up(chance, request)
    return request


def encoded(request: Dict[str, Any]) -> bytes:
    """As JavaScript writes it: no blanks, and no escapes but the needed ones."""
    ordered = {name: request[name] for name in MEMBER_ORDER if name in request}
    return json.dumps(ordered, ensure_ascii=False, separators=(",", ":")).encode()


def asking(text: str) -> Dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": text}]}


def said(text: str) -> Dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def sentences(chance: random.Random, size: int) -> str:
    text = ""
    while len(text) < size:
        words = chance.choices(VOCABULARY, k=chance.randint(5, 16))
        text += " ".join(words).capitalize() + chance.choice((". ", ". ", ".\n", ".\n\n- "))
    return text[:size]


def source_text(chance: random.Random, size: int) -> str:
    """As the Read tool shows a file: numbers, tabs, quotes, now and then something beyond ASCII."""
    lines: List[str] = []
    while sum(map(len, lines)) < size:
        name, called, word = chance.choices(VOCABULARY, k=3)
        indent, tail = "    " * chance.randint(0, 3), chance.choice(("", "", '  # "naïve" → fine'))
        lines.append(f'{len(lines) + 1:6}\t{indent}{name} = {called}("{word}", {chance.randint(0, 99)}){tail}\n')
    return "".join(lines)


def tool(chance: random.Random, name: str) -> Dict[str, Any]:
    def member(kind: str) -> Dict[str, Any]:
        return {"type": kind, "description": sentences(chance, chance.randint(40, 140))}

    kinds = chance.choices(("string", "string", "number", "boolean"), k=chance.randint(2, 5))
    members = {f"{chance.choice(VOCABULARY)}_{i}": member(kind) for i, kind in enumerate(kinds)}
    items = {"type": "object", "properties": {"content": member("string"), "done": member("boolean")}, "required": ["content"]}
    schema = {
        "$schema": "http://json-schema.org/draft-07/schema#", "type": "object", "required": list(members)[:1],
        "properties": {**members, "items": {"type": "array", "items": items}}, "additionalProperties": False,
    }
    return {"name": name, "description": sentences(chance, chance.randint(500, 2500)), "input_schema": schema}


def exchange_of(chance: random.Random, number: int) -> List[Dict[str, Any]]:
    """A call by the model, and its result."""
    call_id = f"toolu_bench{number:020}"
    called = {"type": "tool_use", "id": call_id, "name": "Read", "input": {"file_path": f"/home/user/src/module_{number}.py"}}
    result = {"type": "tool_result", "tool_use_id": call_id, "content": source_text(chance, 1550)}
    turn = said(sentences(chance, chance.randint(60, 400)))
    turn["content"].append(called)
    return [turn, {"role": "user", "content": [result]}]


def fill_up(chance: random.Random, request: Dict[str, Any]) -> None:
    """Lengthen the first question to what is missing, as reminders and project notes do."""
    missing = LARGE_BYTES - len(encoded(request))
    words = " ".join(chance.choices(VOCABULARY, k=max(missing, 1)))
    request["messages"][0]["content"][0]["text"] += words[: max(missing, 0)]
