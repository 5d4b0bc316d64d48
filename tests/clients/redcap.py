"""The real Claude Code, the proxy, and a fake SecureChatAI whose model plays a part.

The model sees what SecureChatAI would send it: plain strings, no tools. It calls in text.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import socket
import time
from collections.abc import Iterator
from typing import Any, Callable, Dict, List, Tuple

from tests.clients.claude_runner import ClaudeRun, claude, claude_succeeded
from tests.clients.lab import Lab, Started, expect, expect_equal
from tests.fake_securechat.server import Fake
from tests.support import message_body, request_bytes

TOKEN = "0123456789ABCDEF" * 2
CHAIN = 10
LINES = 200
RESULT = re.compile(r'<tool_result id="([^"]*)"[^>]*>\n(.*?)\n</tool_result>', re.DOTALL)
Said = Any  # what a play answers: a text, or the members of a vendor's answer


class Asked:
    """What the model behind SecureChatAI is asked, as the plays read it."""

    def __init__(self, body: Dict[str, Any]) -> None:
        self.messages: List[Dict[str, Any]] = body["messages"]
        self.system: str = body.get("system") or ""

    @property
    def text(self) -> str:
        return "\n".join(str(message["content"]) for message in self.messages)

    @property
    def results(self) -> List[Tuple[str, str]]:
        return RESULT.findall(self.text)

    @property
    def has_tools(self) -> bool:
        return "</tool_call>" in self.system


Play = Callable[[Asked], Said]


def call(name: str, **arguments: Any) -> str:
    """A call as the prompt asks for it."""
    text = json.dumps({"name": name, "input": arguments}).replace("&", "\\u0026")
    return f"<tool_call>\n{text}\n</tool_call>"


@contextlib.contextmanager
def playing(lab: Lab, play: Play, **settings: str) -> Iterator[Tuple[Fake, Started]]:
    """A fake with its play and a proxy before it; a mistake of the play fails the check."""
    mistakes: List[str] = []

    def vendor(body: Dict[str, Any]) -> Said:
        try:
            return play(Asked(body))
        except Exception as error:
            mistakes.append(repr(error))
            return "The play has no answer to this."

    with Fake(token=TOKEN) as fake:
        fake.vendor.play = vendor
        with lab.proxy(REDCAP_API_URL=fake.url, **settings) as proxy:
            yield fake, proxy
            expect(TOKEN not in proxy.err.read_text(), "the token is in the log")
        expect_equal(mistakes, [], "mistakes of the play")


def ask(lab: Lab, proxy: Started, prompt: str, **options: Any) -> ClaudeRun:
    return claude(lab, proxy.url, prompt, ANTHROPIC_AUTH_TOKEN=TOKEN, **options)


def text(lab: Lab) -> str:
    with playing(lab, lambda asked: "Words by form and reply.") as (fake, proxy):
        run = ask(lab, proxy, "Hello")
    claude_succeeded(run)
    expect_equal(run.text, "Words by form and reply.", "the answer")
    (record,) = [r for r in fake.requests if r.fields.get("action") == "messages"]
    expect_equal(record.fields["model"], "claude-opus-4-7", "the alias")
    return f"{len(record.fields['system']):,} characters of system prompt with the tools"


# --- tools --------------------------------------------------------------------------------------


def hard_text() -> str:
    """What JSON escapes, what HTML escapes, and what only looks like it."""
    odd = ('"quoted" \\back\\\\slash', "a &lt; b &amp;&amp; c &gt; d", "p = &sum; q = &delta; f(&x);",
           "\u00fc\u20ac\U0001f600 \ttab", "</tool_call> <tool_call> {", "&quot;&#39;&apos; %26 +")
    return "".join(f"{n:03d} {line}\n" for n, line in zip(range(LINES), itertools.cycle(odd)))


def files(lab: Lab) -> str:
    work, wanted = lab.new_folder("work"), hard_text()
    path = str(work / "hard.html")
    turns = [
        call("Write", file_path=path, content=wanted),
        call("Read", file_path=path),
        call("Edit", file_path=path, old_string='000 "quoted"', new_string="000 &lt;edited&gt; &amp;"),
        "All three are done.",
    ]
    with playing(lab, lambda asked: turns[len(asked.results)]) as (fake, proxy):
        run = ask(lab, proxy, "Write, read, edit", cwd=work)
    claude_succeeded(run)
    expect_equal(run.text, "All three are done.", "the answer")
    expected = wanted.replace('000 "quoted"', "000 &lt;edited&gt; &amp;", 1)
    found = (work / "hard.html").read_bytes()
    expect(found == expected.encode(), f"the file differs; the tools said {run.tool_results}")
    seen = Asked(fake.requests[-1].upstream[-1]).results[1][1]
    expect("&sum; q = &delta;" in seen, "what was read did not reach the model as it is")
    return f"{len(found):,} bytes, {LINES} lines, the same bytes"


def command(lab: Lab) -> str:
    def play(asked: Asked) -> Said:
        if asked.results:
            return f"It printed: {asked.results[-1][1]}"
        return "I run it.\n\n" + call("Bash", command='echo "a && b" | tr a-z A-Z')

    with playing(lab, play) as (_, proxy):
        run = ask(lab, proxy, "Run it")
    claude_succeeded(run)
    expect_equal(run.text, "It printed: A && B", "the answer")
    return "its output is in the answer"


def parallel_calls(lab: Lab) -> str:
    calls = [call("Bash", command=f"echo result-{n}") for n in range(3)]

    def play(asked: Asked) -> Said:
        return "All three." if asked.results else "\n".join(["Three at once.", *calls])

    with playing(lab, play) as (fake, proxy):
        run = ask(lab, proxy, "Three at once")
    claude_succeeded(run)
    expect_equal(len(fake.requests), 2, "calls of SecureChatAI")
    found = [content for _, content in Asked(fake.requests[-1].upstream[-1]).results]
    expect_equal(found, ["result-0", "result-1", "result-2"], "the results")
    return "three calls in one answer, three results in their order"


def chain(lab: Lab) -> str:
    def play(asked: Asked) -> Said:
        turn = len(asked.results)
        return "Ten turns." if turn == CHAIN else call("Bash", command=f"echo step-{turn}")

    with playing(lab, play) as (fake, proxy):
        run = ask(lab, proxy, "Ten steps")
    claude_succeeded(run)
    expect_equal((run.text, len(fake.requests)), ("Ten turns.", CHAIN + 1), "the answer, the calls")
    results = Asked(fake.requests[-1].upstream[-1]).results
    expect_equal(len({call_id for call_id, _ in results}), CHAIN, "different ids")
    expect_equal([content for _, content in results], [f"step-{n}" for n in range(CHAIN)], "results")
    systems = {record.fields["system"] for record in fake.requests}
    expect_equal(len(systems), 1, "different system prompts in one conversation")
    return f"{CHAIN} turns, one system prompt"


def subagent(lab: Lab) -> str:
    def play(asked: Asked) -> Said:
        if "be the subagent" in str(asked.messages[0]["content"]):
            return f"It saw: {asked.results[-1][1]}" if asked.results else call("Bash", command="echo from-below")
        if asked.results:
            return f"Done. {asked.results[-1][1].splitlines()[0]}"
        name = "Agent" if "=== Agent ===" in asked.system else "Task"
        return call(name, description="a task", prompt="be the subagent", subagent_type="general-purpose")

    with playing(lab, play) as (fake, proxy):
        run = ask(lab, proxy, "Ask a subagent")
    claude_succeeded(run)
    expect("It saw: from-below" in run.text, f"the agent's result is not in {run.text!r}")
    expect_equal(len(fake.requests), 4, "calls of SecureChatAI")
    return "a subagent that ran a command"


def repair(lab: Lab) -> str:
    bad = 'I run it.\n<tool_call>\n{"name": "Bash", "input": {"command": "echo "hi""}}\n</tool_call>'

    def play(asked: Asked) -> Said:
        if asked.results:
            return f"It said {asked.results[-1][1]}."
        return call("Bash", command='echo "hi"') if "not a valid tool call" in asked.text else bad

    with playing(lab, play) as (fake, proxy):
        run = ask(lab, proxy, "Run it")
    claude_succeeded(run)
    expect_equal(run.text, "It said hi.", "the answer")
    expect_equal(len(fake.requests), 3, "calls of SecureChatAI")
    return "an unreadable call, corrected unseen"


# --- the truth ----------------------------------------------------------------------------------


def failure(lab: Lab) -> str:
    """The module's polite sentence must not be taken for an answer."""
    with playing(lab, lambda asked: {"status": 500}) as (fake, proxy):
        run = ask(lab, proxy, "Hello")
    expect_equal((run.status, run.result.get("is_error")), (1, True), "exit status and error")
    expect("SecureChatAI could not get an answer" in run.text, f"it said {run.text!r}")
    expect_equal(len(fake.requests), 1, "calls of SecureChatAI")
    return f"told in {run.seconds:.1f} s, asked once"


def late_failure(lab: Lab) -> str:
    """After the stream has begun Claude Code asks again without one; SecureChatAI must not be."""
    with playing(lab, lambda asked: {"status": 500, "delay": 4}) as (fake, proxy):
        run = ask(lab, proxy, "Hello")
    expect("SecureChatAI could not get an answer" in run.text, f"it said {run.text!r}")
    expect_equal(len(fake.requests), 1, "calls of SecureChatAI")
    return f"told after {run.seconds:.0f} s, asked once"


def wrong_token(lab: Lab) -> str:
    with playing(lab, lambda asked: "no") as (fake, proxy):
        run = claude(lab, proxy.url, "Hello", ANTHROPIC_AUTH_TOKEN="F" * 32)
    expect("REDCap refused the API token" in run.text, f"it said {run.text!r}")
    expect_equal(len(fake.requests), 1, "calls of SecureChatAI")
    return f"told in {run.seconds:.1f} s, asked once"


# --- long waits ---------------------------------------------------------------------------------


def gaps(url: str, seconds: float) -> List[float]:
    """The silences on the wire of one streamed answer, in seconds."""
    port = int(url.rpartition(":")[2])
    found, last = [], time.monotonic()
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as sock:
        body = message_body(stream=True)
        sock.sendall(request_bytes(body, fields=(f"authorization: Bearer {TOKEN}", "connection: close")))
        while sock.recv(65536):
            found.append(time.monotonic() - last)
            last = time.monotonic()
    return found


def wait_90(lab: Lab) -> str:
    with playing(lab, lambda asked: {"text": "At last.", "delay": 90}) as (_, proxy):
        found = gaps(proxy.url, 120)
    expect(max(found) <= 15 and sum(found) > 89, f"the longest silence was {max(found):.1f} s")
    return f"{sum(found):.0f} s, the longest silence {max(found):.1f} s"


def wait_400(lab: Lab) -> str:
    with playing(lab, lambda asked: {"text": "At last.", "delay": 400}) as (fake, proxy):
        run = ask(lab, proxy, "Hello", seconds=500)
    claude_succeeded(run)
    expect_equal((run.text, len(fake.requests)), ("At last.", 1), "the answer, the calls")
    return f"{run.seconds:.0f} s, asked once"


REDCAP_CHECKS: Dict[str, Callable[[Lab], str]] = {
    "redcap-text": text,
    "redcap-write-read-edit": files,
    "redcap-command": command,
    "redcap-three-parallel-calls": parallel_calls,
    "redcap-chain-of-10": chain,
    "redcap-subagent": subagent,
    "redcap-repair": repair,
    "redcap-failure": failure,
    "redcap-late-failure": late_failure,
    "redcap-wrong-token": wrong_token,
}
# Made only if asked for by name.
SLOW_REDCAP_CHECKS: Dict[str, Callable[[Lab], str]] = {
    "slow-redcap-90-seconds": wait_90,
    "slow-redcap-400-seconds": wait_400,
}
