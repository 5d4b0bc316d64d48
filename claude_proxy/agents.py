"""Which named agent of Claude Code a request is from. The wire has no field for it.

What is known, most certain first (2.1.197): an agent's file may name any model, which arrives
unchanged; the parent's `Agent` call says the type and the prompt, and the agent's first message
ends with that prompt; its system prompt begins with the text of its file. Requests of agents carry
an id header, so a main conversation is never taken for one. The id is the same for all requests of
an agent, so one that was recognised once stays so: after compaction its first message is a summary.

The calls of parents are remembered as hashes, for each session apart, in memory and with a bound.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Dict, List, NamedTuple, Optional, Set, Tuple

from claude_proxy.events import PART_BYTES, Event, Request
from claude_proxy.patterns import LazyPattern

AGENT_HEADER = "x-claude-code-agent-id"
SESSION_HEADER = "x-claude-code-session-id"
AGENT_TOOLS = ("Agent", "Task")
MOST_CALLS_KEPT = 4096
LONGEST_NAME = 200
LONGEST_HEARD = 8 * 1024 * 1024
# An agent's own text shorter than this could begin many prompts.
SHORTEST_PROMPT = 20


class AgentFound(NamedTuple):
    """An agent's name, and by what it was recognised."""

    name: str
    means: str


class AgentCalls:
    """The agents that were called, by session and prompt."""

    def __init__(self) -> None:
        self._names: OrderedDict[bytes, Set[str]] = OrderedDict()
        self._recognised: OrderedDict[bytes, str] = OrderedDict()
        self._lock = threading.Lock()

    def keep(self, session: str, prompt: str, name: str) -> None:
        key = call_hash(session, prompt)
        with self._lock:
            names = self._names.setdefault(key, set())
            if len(names) < 2:  # two are ambiguous, and more are no more than that
                names.add(name[:LONGEST_NAME])
            self._names.move_to_end(key)
            while len(self._names) > MOST_CALLS_KEPT:
                self._names.popitem(last=False)

    def recognise(self, session: str, agent_id: str, name: str) -> None:
        """Remember who an agent is, by its id."""
        key = call_hash(session, agent_id)
        with self._lock:
            self._recognised[key] = name[:LONGEST_NAME]
            self._recognised.move_to_end(key)
            while len(self._recognised) > MOST_CALLS_KEPT:
                self._recognised.popitem(last=False)

    def recognised(self, session: str, agent_id: str) -> Optional[str]:
        with self._lock:
            return self._recognised.get(call_hash(session, agent_id))

    def name_of(self, session: str, prompt: str) -> Optional[str]:
        """The agent that was called with this prompt; None if nobody was, or two were."""
        with self._lock:
            names = self._names.get(call_hash(session, prompt), set())
            return next(iter(names)) if len(names) == 1 else None


def call_hash(session: str, prompt: str) -> bytes:
    return hashlib.sha256(f"{session}\0{prompt}".encode("utf-8", "surrogatepass")).digest()


def find_agent(
    request: Request,
    headers: Mapping[str, str],
    mapped: Iterable[str],
    calls: AgentCalls,
    prompts: Mapping[str, str],
) -> Optional[AgentFound]:
    """The named agent that a request is from, if it is one of those that are mapped."""
    names, model = tuple(mapped), str(request.get("model", ""))
    if model in names:
        return AgentFound(model, "model name")
    session, agent_id = headers.get(SESSION_HEADER, ""), headers.get(AGENT_HEADER)
    if not agent_id:
        return None
    found = agent_of_texts(request, session, calls, prompts)
    known = calls.recognised(session, agent_id)
    if found is None and known is not None:
        found = AgentFound(known, "agent id")
    if found is None or found.name not in names:
        return None
    calls.recognise(session, agent_id, found.name)
    return found


def agent_of_texts(
    request: Request, session: str, calls: AgentCalls, prompts: Mapping[str, str]
) -> Optional[AgentFound]:
    """The agent by what the request says: the prompt it was called with, or its file's text."""
    called = calls.name_of(session, first_prompt(request))
    if called is not None:
        return AgentFound(called, "agent call")
    written = agent_of_prompt(agent_system_text(request), prompts)
    return AgentFound(written, "system prompt") if written else None


def agent_of_prompt(system: str, prompts: Mapping[str, str]) -> Optional[str]:
    """The agent whose file's text a system prompt begins with: of several that fit the longest, for
    a shorter one may be how another begins. None if two have the same text."""
    fits = [name for name, text in prompts.items() if begins_with(system, text)]
    longest = max((len(prompts[name]) for name in fits), default=0)
    named = [name for name in fits if len(prompts[name]) == longest]
    return named[0] if len(named) == 1 else None


def begins_with(system: str, text: str) -> bool:
    """Whether a text stands at the beginning, to the end of a line."""
    system = system.lstrip()
    return system.startswith(text) and system[len(text) :].lstrip(" \t")[:1] in ("", "\r", "\n")


def first_prompt(request: Request) -> str:
    """The last text of the first user message: what the agent was called with."""
    messages = request.get("messages")
    listed = messages if isinstance(messages, list) else []
    users = (m for m in listed if isinstance(m, dict) and m.get("role") == "user")
    content = next(users, {}).get("content")
    if isinstance(content, str):
        return content
    blocks = content if isinstance(content, list) else []
    texts = [b.get("text") for b in blocks if isinstance(b, dict) and b.get("type") == "text"]
    return str(texts[-1] or "") if texts else ""


def agent_system_text(request: Request) -> str:
    """The part of the system prompt that an agent's file has written."""
    system = request.get("system")
    block = system[2] if isinstance(system, list) and len(system) > 2 else None
    return str(block.get("text") or "") if isinstance(block, dict) else ""


# --- calls in answers ----------------------------------------------------------------------------


class CallListener:
    """Listens to the events of an answer for calls of agents, and remembers them."""

    def __init__(self, calls: AgentCalls, session: str) -> None:
        self._calls = calls
        self._session = session
        self._open: Dict[int, List[str]] = {}
        self._heard = 0

    @property
    def listening(self) -> bool:
        """Whether a call of an agent is just being told."""
        return bool(self._open)

    def hear(self, event: Event) -> None:
        kind, index = event.get("type"), event.get("index")
        if not isinstance(index, int):
            return
        block, delta = event.get("content_block"), event.get("delta")
        if kind == "content_block_start" and is_agent_call(block):
            self._open[index] = []
        elif kind == "content_block_delta" and index in self._open and isinstance(delta, dict):
            self._open[index].append(str(delta.get("partial_json") or ""))
            self._heard += len(self._open[index][-1]) + PART_BYTES
            if self._heard > LONGEST_HEARD:
                self._open.clear()  # no call of an agent is so long
        elif kind == "content_block_stop" and index in self._open:
            self.hear_input("".join(self._open.pop(index)))

    def hear_input(self, text: str) -> None:
        try:
            arguments = json.loads(text)
        except (ValueError, RecursionError):
            return
        if isinstance(arguments, dict):
            self.hear_arguments(arguments)

    def hear_arguments(self, arguments: Mapping[str, Any]) -> None:
        name, prompt = arguments.get("subagent_type"), arguments.get("prompt")
        if isinstance(name, str) and isinstance(prompt, str):
            self._calls.keep(self._session, prompt, name)

    def hear_message(self, message: Mapping[str, Any]) -> None:
        """The same for an answer that came whole."""
        content = message.get("content")
        for block in content if isinstance(content, list) else ():
            if is_agent_call(block) and isinstance(block.get("input"), dict):
                self.hear_arguments(block["input"])


def is_agent_call(block: Any) -> bool:
    return (
        isinstance(block, dict)
        and block.get("type") == "tool_use"
        and block.get("name") in AGENT_TOOLS
    )


def heard_events(events: Iterable[Event], listener: CallListener) -> Iterator[Event]:
    for event in events:
        listener.hear(event)
        yield event


# --- agents' files -------------------------------------------------------------------------------

FRONT_MATTER = LazyPattern(r"\A\ufeff?---[ \t]*\r?\n(.*?)\r?\n---[ \t]*\r?\n(.*)\Z", re.DOTALL)
FRONT_NAME = LazyPattern(r"^name:[ \t]*[\"']?([^\"'\r\n]+?)[\"']?[ \t]*\r?$", re.MULTILINE)


def read_agent_file(text: str) -> Optional[Tuple[str, str]]:
    """(name, prompt) of a Claude Code agent's Markdown file; None if it is none."""
    match = FRONT_MATTER.match(text)
    named = FRONT_NAME.search(match.group(1)) if match else None
    if match is None or named is None:
        return None
    prompt = match.group(2).replace("\r\n", "\n").strip()
    return (named.group(1), prompt) if len(prompt) >= SHORTEST_PROMPT else None
