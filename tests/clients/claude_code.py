"""The real Claude Code, the proxy, and an upstream that plays a part: a check for each."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator
from typing import Callable, Dict, List, Tuple

from tests.clients.claude_runner import claude, claude_succeeded
from tests.clients.lab import Lab, Started, expect, expect_equal
from tests.clients.upstream import (
    MODEL,
    Call,
    ChatRequest,
    Play,
    PlayingUpstream,
    calls_answer,
    error_answer,
    interleaved_answer,
)
from tests.support import HANG_UP, Step, chat_stream, delta, text_answer, usage_chunk

CHAIN = 12
WRITE_BYTES = 60 * 1024
WRITE_PIECES = 100
OVERFLOW = (
    "This model's maximum context length is 8192 tokens. However, your messages resulted in 9001"
    " tokens. Please reduce the length of the messages."
)


@contextlib.contextmanager
def playing(lab: Lab, play: Play, **settings: str) -> Iterator[Tuple[PlayingUpstream, Started]]:
    """An upstream with its play and a proxy before it; a mistake of the play fails the check."""
    with PlayingUpstream(play) as upstream:
        environ = {
            "OPENAI_API_KEY": "scripted-key", "OPENAI_BASE_URL": upstream.url,
            "BIG_MODEL": MODEL, "SMALL_MODEL": "scripted-small", "MAX_RETRIES": "0", **settings,
        }
        with lab.proxy(**environ) as proxy:
            yield upstream, proxy
        expect_equal(upstream.mistakes, [], "mistakes of the play")


def text(lab: Lab) -> str:
    with playing(lab, lambda chat: text_answer("Words ", "from ", "the play.")) as (upstream, proxy):
        run = claude(lab, proxy.url, "Hello")
    claude_succeeded(run)
    expect_equal(run.text, "Words from the play.", "the answer")
    expect_equal(len(upstream.requests), 1, "requests to the upstream")
    chat = upstream.asked[0]
    expect_equal(chat.model, MODEL, "the model asked")
    expect("Hello" in chat.user_text, "the prompt is not among the user messages")
    expect("Bash" in chat.tool_names, f"no Bash among the tools {chat.tool_names}")
    expect_equal(upstream.requests[0].headers["authorization"], "Bearer scripted-key", "the key")
    return f"{len(chat.tool_names)} tools, {len(upstream.requests[0].body):,} bytes"


# --- tools --------------------------------------------------------------------------------------


def file_text() -> str:
    """60 KB with all that JSON has to escape; the cuts fall inside escapes too."""
    lines = (f'{n:05d} "quoted" \\back\\ \ttab \u00fc\u20ac\U0001f600 {{"a": [1, 2]}} </end>\n' for n in itertools.count())
    text, size = [], 0
    for line in lines:
        room = WRITE_BYTES - size
        if len(line.encode()) >= room:
            return "".join([*text, "x" * (room - 1), "\n"])
        text.append(line)
        size += len(line.encode())
    return ""


def write_60k(lab: Lab) -> str:
    work = lab.new_folder("work")
    path, wanted = work / "written.txt", file_text()
    call = Call("call_write", "Write", {"file_path": str(path), "content": wanted}, WRITE_PIECES)

    def play(chat: ChatRequest) -> List[Step]:
        return text_answer("Written.") if chat.results else calls_answer(call)

    with playing(lab, play) as (upstream, proxy):
        run = claude(lab, proxy.url, "Write the file", cwd=work)
    claude_succeeded(run)
    expect(path.exists(), f"no file was written; the tool said {run.tool_results}")
    found = path.read_bytes()
    expect(found == wanted.encode(), f"the file differs: {first_difference(found, wanted.encode())}")
    sent_back = json.loads(upstream.asked[-1].calls[0]["function"]["arguments"])
    expect(sent_back == call.arguments, "the arguments that go back to the upstream differ")
    return f"{len(found):,} bytes in {WRITE_PIECES} pieces, the same bytes"


def first_difference(found: bytes, wanted: bytes) -> str:
    at = next((n for n, (a, b) in enumerate(zip(found, wanted)) if a != b), min(len(found), len(wanted)))
    return f"{len(found)} of {len(wanted)} bytes, from byte {at}: {found[at:at + 40]!r}, not {wanted[at:at + 40]!r}"


def parallel_calls(lab: Lab) -> str:
    work = lab.new_folder("work")
    (work / "read-me.txt").write_text("the-second-result\n")
    calls = (
        Call("call_a", "Bash", {"command": "sleep 0.5; echo the-first-result"}),
        Call("call_b", "Read", {"file_path": str(work / "read-me.txt")}),
        Call("call_c", "Bash", {"command": "echo the-third-result"}),
    )

    def play(chat: ChatRequest) -> List[Step]:
        return text_answer("All three.") if chat.results else interleaved_answer(*calls)

    with playing(lab, play) as (upstream, proxy):
        run = claude(lab, proxy.url, "Three at once", cwd=work)
    claude_succeeded(run)
    expect_equal(len(upstream.requests), 2, "requests to the upstream")
    last = upstream.asked[-1]
    expect_equal([call["id"] for call in last.calls], ["call_a", "call_b", "call_c"], "the calls")
    expect_equal([call_id for call_id, _ in last.results], ["call_a", "call_b", "call_c"], "results")
    for (_, found), word in zip(last.results, ("first", "second", "third")):
        expect(f"the-{word}-result" in found, f"the {word} result is {found!r}")
    roles = [message["role"] for message in last.messages]
    at = roles.index("tool")
    expect_equal(roles[at - 1 : at + 3], ["assistant", "tool", "tool", "tool"], "roles")
    return "three interleaved calls, three results in their order"


def chain(lab: Lab) -> str:
    upstream = run_chain(lab, lambda turn: f"call_{turn}")
    ids = [call_id for call_id, _ in upstream.asked[-1].results]
    expect_equal(ids, [f"call_{turn}" for turn in range(CHAIN)], "the ids")
    made = f"{upstream.connections} connection(s)"
    return f"{CHAIN} turns, every request begins with the one before, {made}"


def chain_same_ids(lab: Lab) -> str:
    """The same where every call of the conversation has one id: Claude Code wants them to differ."""
    upstream = run_chain(lab, lambda turn: "call_0")
    ids = [call["id"] for call in upstream.asked[-1].calls]
    expect_equal(len(set(ids)), CHAIN, "different ids")
    return f"{CHAIN} turns though every call came with the same id"


def run_chain(lab: Lab, id_of: Callable[[int], str]) -> PlayingUpstream:
    """CHAIN turns of one tool call each; `id_of` gives the id of a turn's call."""
    turns = itertools.count()

    def play(chat: ChatRequest) -> List[Step]:
        turn = next(turns)  # not the number of results: those may be lost, and it must end
        if turn == CHAIN:
            return text_answer("Twelve turns.")
        return calls_answer(Call(id_of(turn), "Bash", {"command": f"echo step-{turn}"}))

    with playing(lab, play) as (upstream, proxy):
        run = claude(lab, proxy.url, "Twelve steps")
    claude_succeeded(run)
    expect_equal(run.text, "Twelve turns.", "the answer")
    expect_chain(upstream.asked)
    return upstream


def expect_chain(asked: List[ChatRequest]) -> None:
    """Nothing lost, nothing reordered, and each request goes on where the one before ended."""
    expect_equal(len(asked), CHAIN + 1, "requests to the upstream")
    last = asked[-1]
    # Claude Code's own reminders may stand behind a result.
    found = [content.split("\n")[0] for _, content in last.results]
    expect_equal(found, [f"step-{turn}" for turn in range(CHAIN)], "the results")
    ids = [call["id"] for call in last.calls]
    expect_equal([call_id for call_id, _ in last.results], ids, "ids of results and calls")
    for earlier, later in zip(asked, asked[1:]):
        same = later.messages[: len(earlier.messages)] == earlier.messages
        expect(same, f"a request of {len(later.messages)} messages does not begin with the last one")


def subagent(lab: Lab) -> str:
    def play(chat: ChatRequest) -> List[Step]:
        if "be the subagent" in chat.user_text:
            return subagent_turn(chat)
        if chat.results:
            return text_answer("The subagent is done.")
        name = next(name for name in ("Agent", "Task") if name in chat.tool_names)
        task = {"description": "a task", "prompt": "be the subagent", "subagent_type": "general-purpose"}
        return calls_answer(Call("call_agent", name, task))

    def subagent_turn(chat: ChatRequest) -> List[Step]:
        if chat.results:
            return text_answer("The subagent saw: ", chat.results[-1][1])
        return calls_answer(Call("call_inner", "Bash", {"command": "echo from-below"}))

    with playing(lab, play) as (upstream, proxy):
        run = claude(lab, proxy.url, "Ask a subagent")
    claude_succeeded(run)
    expect_equal(run.text, "The subagent is done.", "the answer")
    expect_equal(len(upstream.requests), 4, "requests to the upstream")
    result = dict(upstream.asked[-1].results).get("call_agent", "")
    expect("The subagent saw: from-below" in result, f"the agent's result is {result!r}")
    return "two requests of its own, its result in its parent's next"


# --- usage --------------------------------------------------------------------------------------


def usage(lab: Lab) -> str:
    counted = usage_chunk(
        prompt_tokens=5000, completion_tokens=77, total_tokens=5077,
        prompt_tokens_details={"cached_tokens": 4100},
    )
    answer = chat_stream(delta(content="Counted."), delta("stop"), counted)
    with playing(lab, lambda chat: answer) as (_, proxy):
        run = claude(lab, proxy.url, "Count")
    claude_succeeded(run)
    names = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens", "output_tokens")
    expect_equal([run.result["usage"][name] for name in names], [900, 4100, 0, 77], "usage")
    (model,) = run.result["modelUsage"].values()
    found = [model[name] for name in ("inputTokens", "cacheReadInputTokens", "outputTokens")]
    expect_equal(found, [900, 4100, 77], "usage of the model")
    return "900 new, 4,100 cached, 77 out, as reported"


# --- what goes wrong ----------------------------------------------------------------------------


def overflow_first_turn(lab: Lab) -> str:
    answer = error_answer(400, OVERFLOW, code="context_length_exceeded")
    with playing(lab, lambda chat: answer) as (upstream, proxy):
        run = claude(lab, proxy.url, "Too long")
    expect_equal((run.status, run.result.get("is_error")), (1, True), "exit status and error")
    expect("too long" in run.text.lower(), f"not Claude Code's words for it: {run.text!r}")
    return f"{run.text[:60]!r} after {len(upstream.requests)} request(s)"


def overflow_compaction(lab: Lab) -> str:
    """Three turns, then no more room: Claude Code asks for a summary and goes on with that."""
    asked_for_summary: List[bool] = []

    def play(chat: ChatRequest) -> List[Step]:
        if "THE-SUMMARY" in chat.user_text:
            return text_answer("Went on after compaction.")
        if "detailed summary" in json.dumps(chat.messages[-2:]):
            asked_for_summary.append(True)
            return text_answer("<summary>THE-SUMMARY: three steps were made.</summary>")
        if len(chat.results) == 3:
            return error_answer(400, OVERFLOW, code="context_length_exceeded")
        turn = len(chat.results)
        return calls_answer(Call(f"call_{turn}", "Bash", {"command": f"echo step-{turn}"}))

    with playing(lab, play) as (_, proxy):
        run = claude(lab, proxy.url, "Three steps")
    claude_succeeded(run)
    expect(asked_for_summary, f"no summary was asked for; it said {run.text!r}")
    expect_equal(run.text, "Went on after compaction.", "the answer")
    expect(any(e.get("subtype") == "compact_boundary" for e in run.events), "no mark of compaction")
    return "it compacted by itself and went on"


def unauthorised(lab: Lab) -> str:
    answer = error_answer(401, "Incorrect API key provided.", code="invalid_api_key")
    with playing(lab, lambda chat: answer) as (upstream, proxy):
        run = claude(lab, proxy.url, "Hello", seconds=40)
    expect_equal((run.status, run.result.get("is_error")), (1, True), "exit status and error")
    expect("Incorrect API key" in run.text, f"the upstream's words are not in {run.text!r}")
    expect_equal(len(upstream.requests), 1, "requests to the upstream")
    expect(run.seconds < 15, f"took {run.seconds:.0f} s")
    return f"one request, {run.seconds:.1f} s"


def cut_text(lab: Lab) -> str:
    half = chat_stream(delta(content="Half an ans"), HANG_UP)
    scripts = iter([half, text_answer("The whole answer.")])
    with playing(lab, lambda chat: next(scripts)) as (upstream, proxy):
        run = claude(lab, proxy.url, "Hello")
        streamed = [line["stream"] for line in proxy.log_lines()]
    claude_succeeded(run)
    expect_equal(run.text, "The whole answer.", "the answer")
    expect_equal(streamed, [True, False], "whether the client's requests were streamed")
    return "a cut stream, then the whole answer without one"


def cut_call(lab: Lab) -> str:
    """Half a call must not be taken for a whole one, even where it happens to be valid JSON."""
    work = lab.new_folder("work")
    head = {"index": 0, "id": "call_cut", "type": "function"}
    half = chat_stream(
        delta(tool_calls=[{**head, "function": {"name": "Bash", "arguments": ""}}]),
        delta(tool_calls=[{"index": 0, "function": {"arguments": '{"command": "echo run >> runs.txt"}'}}]),
        HANG_UP,
    )
    scripts = iter([half])

    def play(chat: ChatRequest) -> List[Step]:
        if chat.results:
            return text_answer("Ran once.")
        whole = calls_answer(Call("call_whole", "Bash", {"command": "echo run >> runs.txt"}))
        return next(scripts, whole)

    with playing(lab, play) as (upstream, proxy):
        run = claude(lab, proxy.url, "Run it", cwd=work)
    claude_succeeded(run)
    expect_equal((work / "runs.txt").read_text(), "run\n", "what the tool wrote")
    expect_equal(len(upstream.requests), 3, "requests to the upstream")
    return "the tool ran once, for the whole call"


CLAUDE_CODE_CHECKS: Dict[str, Callable[[Lab], str]] = {
    "claude-text": text,
    "claude-write-60k": write_60k,
    "claude-three-parallel-calls": parallel_calls,
    "claude-chain-of-12": chain,
    "claude-chain-same-ids": chain_same_ids,
    "claude-subagent": subagent,
    "claude-usage": usage,
    "claude-overflow-first-turn": overflow_first_turn,
    "claude-overflow-compaction": overflow_compaction,
    "claude-401": unauthorised,
    "claude-cut-in-text": cut_text,
    "claude-cut-in-call": cut_call,
}
