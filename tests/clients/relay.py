"""The real Claude Code, the proxy as a relay, and a scripted Anthropic API.

    Claude Code --> tap --> proxy --> tap --> the API's play

Every check compares what went by at the two taps: a relay changes no byte of a body, neither of a
request nor of an answer, and adds or drops no header but those of the connection.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import pathlib
import re
import socket
import struct
import zlib
from collections.abc import Iterator
from typing import Any, Callable, Dict, List, NamedTuple, Tuple

from tests.clients.anthropic_upstream import (
    Asked,
    Play,
    PlayingApi,
    Tap,
    Told,
    answer,
    api_error,
    frame,
    message_frames,
    message_of,
    run_command,
    say,
    stream,
    text,
    thinking,
    tool_use,
)
from tests.clients.claude_code import OVERFLOW
from tests.clients.claude_runner import ClaudeRun, claude, claude_succeeded
from tests.clients.lab import Lab, Started, expect, expect_equal
from tests.clients.upstream import (
    Call,
    ChatRequest,
    PlayingUpstream,
    call_deltas,
    calls_answer,
    error_answer,
)
from tests.clients.upstream import Play as ChatPlay
from tests.support import (
    HANG_UP,
    LAST,
    WAIT_FOR_CLOSE,
    Step,
    chat_stream,
    delta,
    http_chunk,
    json_answer,
    text_answer,
)
from tests.support import USAGE as CHAT_USAGE

CREDENTIAL = "the-clients-own-credential-0123456789"
CHAIN = 12
# Base64 with all of its odd characters, as long as real ones are.
SIGNATURE = base64.b64encode(bytes(range(256)) * 4).decode() + "+/=="
# Of the connection, and what stands for the client's addresses.
HOP_FIELDS = ("host", "connection", "accept-encoding", "content-length", "transfer-encoding")
OWN_FIELDS = ("date", "x-proxy-route")


class Relay(NamedTuple):
    """A proxy between two taps, and what it relays to."""

    api: PlayingApi
    proxy: Started
    near: Tap
    far: Tap

    @property
    def asked(self) -> List[Asked]:
        return self.api.asked

    @property
    def statuses(self) -> List[int]:
        """What the client was answered."""
        return [told.status for told in self.near.told]


Compare = Callable[[List[Told], List[Told]], None]


def expect_relayed(near: List[Told], far: List[Told]) -> None:
    """The same requests, the same answers, the same headers on both sides."""
    expect_equal(sorted(t.digests for t in far), sorted(t.digests for t in near), "bodies")
    expect_rest_relayed(near, far)


def expect_rest_relayed(near: List[Told], far: List[Told]) -> None:
    """The same for all that the API was asked; what it was not asked has gone elsewhere."""
    for came in far:
        sent = [told for told in near if told.digests == came.digests]
        expect(sent, f"a request at the API is none of the client's: {came.request.body[:200]!r}")
        alike = (told for told in sent if agent_id(told) == agent_id(came))
        expect_same_heads(next(alike, sent[0]), came)


def agent_id(told: Told) -> str:
    return told.request.headers.get("x-claude-code-agent-id", "")


def expect_same_heads(near: Told, far: Told) -> None:
    expect_equal((near.request.line, near.status), (far.request.line, far.status), "line, status")
    expect_equal(kept_fields(far.request.headers), kept_fields(near.request.headers), "headers at the API")
    expect_equal(kept_fields(near.headers), kept_fields(far.headers), "headers at the client")


def compare_nothing(near: List[Told], far: List[Told]) -> None:
    """Where an answer of the API is replaced."""


@contextlib.contextmanager
def relaying(
    lab: Lab, play: Play, compare: Compare = expect_relayed, **settings: str
) -> Iterator[Relay]:
    """A relay with its play. When the block ends, all that passed is compared; mistakes of the
    play fail the check."""
    with PlayingApi(play) as api, Tap(api.url) as far:
        environ = {"UPSTREAM": "anthropic", "ANTHROPIC_FORWARD_URL": far.url, **settings}
        with lab.proxy(**environ) as proxy, Tap(proxy.url) as near:
            relay = Relay(api, proxy, near, far)
            yield relay
            expect(CREDENTIAL not in proxy.err.read_text(), "the credential is in the log")
        expect_equal(api.mistakes, [], "mistakes of the play")
        shown = {one.headers.get("authorization") for one in api.requests}
        expect(shown <= {f"Bearer {CREDENTIAL}"}, "the API was shown another credential")
        compare(near.told, far.told)


def kept_fields(headers: Dict[str, str]) -> Dict[str, str]:
    return {n: v for n, v in headers.items() if n not in HOP_FIELDS + OWN_FIELDS}


def ask(lab: Lab, relay: Relay, prompt: str, *options: str, **more: Any) -> ClaudeRun:
    # A play that has no answer must not be asked for minutes.
    more = {"ANTHROPIC_AUTH_TOKEN": CREDENTIAL, "CLAUDE_CODE_MAX_RETRIES": "2", **more}
    return claude(lab, relay.near.url, prompt, *options, **more)


def relayed_count(relay: Relay) -> str:
    size = sum(len(told.request.body) for told in relay.near.told)
    return f"{len(relay.near.told)} request(s), {size:,} bytes, the same on both sides"


# --- what an answer may hold --------------------------------------------------------------------


def signatures(lab: Lab) -> str:
    """Thinking goes back as it came, with its signature and with what was redacted."""
    thought = thinking("I have to run it. \u00e9 \u2028 \\u0041", SIGNATURE)
    redacted = {"type": "redacted_thinking", "data": SIGNATURE[::-1]}

    def play(asked: Asked) -> List[Step]:
        if asked.results:
            return answer(asked, thinking("Done, then.", SIGNATURE + "second"), text("It ran."))
        call = tool_use("toolu_01Relay", "Bash", command="echo ran")
        return answer(asked, thought, redacted, text("I run it."), call)

    with relaying(lab, play) as relay:
        run = ask(lab, relay, "Run it")
    claude_succeeded(run)
    expect_equal((run.text, len(relay.asked)), ("It ran.", 2), "the answer, the requests")
    expect_equal(relay.asked[-1].blocks("thinking"), [thought], "thinking that came back")
    expect_equal(relay.asked[-1].blocks("redacted_thinking"), [redacted], "what was redacted")
    return f"a signature of {len(SIGNATURE):,} characters came back; {relayed_count(relay)}"


def web_search(lab: Lab) -> str:
    """The sub-call of WebSearch: the API searches, and says so in blocks of its own."""
    found = {
        "type": "web_search_result", "title": "A scripted page", "url": "https://example.com/page",
        "encrypted_content": SIGNATURE, "page_age": None,
    }  # fmt: skip
    cited = {
        "type": "web_search_result_location", "url": found["url"], "title": found["title"],
        "encrypted_index": SIGNATURE, "cited_text": "what it says",
    }  # fmt: skip
    searched = (
        tool_use("srvtoolu_01Relay", "web_search", kind="server_tool_use", query="scripted pages"),
        {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_01Relay", "content": [found]},
        text("The page says what it says.", citations=[cited]),
    )

    def play(asked: Asked) -> List[Step]:
        if asked.tool_names == ["web_search"]:
            return answer(asked, *searched, usage={"input_tokens": 5, "output_tokens": 5,
                                                   "server_tool_use": {"web_search_requests": 1}})
        if asked.results:
            return say(asked, "Searched.")
        return answer(asked, tool_use("toolu_01Search", "WebSearch", query="scripted pages"))

    with relaying(lab, play) as relay:
        run = ask(lab, relay, "Search for it", "--allowedTools", "WebSearch")
    claude_succeeded(run)
    expect_equal((run.text, len(relay.asked)), ("Searched.", 3), "the answer, the requests")
    (tool,) = relay.asked[1].body["tools"]
    expect(tool["type"].startswith("web_search_"), f"the tool of the sub-call is {tool}")
    result = relay.asked[-1].results[-1]
    expect("https://example.com/page" in result, f"the page is not in the result {result!r}")
    return f"its page in the tool's result; {relayed_count(relay)}"


def png_bytes(size: int = 24) -> bytes:
    """A small picture: a field of grey steps."""
    rows = b"".join(b"\0" + bytes((x * y) % 256 for x in range(size)) for y in range(size))

    def part(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", size, size, 8, 0, 0, 0, 0)
    parts = (part(b"IHDR", head), part(b"IDAT", zlib.compress(rows)), part(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def pdf_bytes() -> bytes:
    """One empty page, with a table of references that is right."""
    objects = (
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 72 72] >>",
    )
    made, places = b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(made))
        made += b"%d 0 obj\n%b\nendobj\n" % (number, body)
    rows = b"".join(b"%010d 00000 n \n" % place for place in places)
    count = len(objects) + 1
    table = b"xref\n0 %d\n0000000000 65535 f \n%b" % (count, rows)
    return made + table + b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (count, len(made))


def sent_base64(content: Any, kind: str) -> List[bytes]:
    """The files in blocks of this type, those in tool results too."""
    pending, found = [content], []
    while pending:
        item = pending.pop()
        if isinstance(item, list):
            pending.extend(item)
        elif isinstance(item, dict):
            pending.append(item.get("content"))
            if item.get("type") == kind:
                found.append(base64.b64decode(item["source"]["data"]))
    return found


def read_files(lab: Lab) -> str:
    work, files = lab.new_folder("work"), {"seen.png": png_bytes(), "read.pdf": pdf_bytes()}
    for name, data in files.items():
        (work / name).write_bytes(data)

    def play(asked: Asked) -> List[Step]:
        if asked.results:
            return say(asked, "Seen and read.")
        paths = (str(work / name) for name in files)
        return answer(asked, *(tool_use(f"toolu_{n}", "Read", file_path=p) for n, p in enumerate(paths)))

    with relaying(lab, play) as relay:
        run = ask(lab, relay, "Look at both", cwd=work)
    claude_succeeded(run)
    expect_equal(run.text, "Seen and read.", "the answer")
    last = relay.asked[-1].messages
    expect_equal(sent_base64(last, "image"), [files["seen.png"]], "the picture at the API")
    expect_equal(sent_base64(last, "document"), [files["read.pdf"]], "the document at the API")
    return f"a picture and a document; {relayed_count(relay)}"


# --- wordings that Claude Code recovers from ----------------------------------------------------


def compaction(lab: Lab) -> str:
    summaries: List[bool] = []

    def play(asked: Asked) -> List[Step]:
        if "THE-SUMMARY" in asked.user_text:
            return say(asked, "Went on after compaction.")
        if "detailed summary" in str(asked.messages[-2:]):
            summaries.append(True)
            return say(asked, "<summary>THE-SUMMARY: three steps were made.</summary>")
        turn = len(asked.results)
        if turn == 3:
            return api_error(400, "prompt is too long: 1000123 tokens > 1000000 maximum")
        return run_command(asked, f"toolu_{turn}", f"echo step-{turn}")

    with relaying(lab, play) as relay:
        run = ask(lab, relay, "Three steps")
    claude_succeeded(run)
    expect(summaries, f"no summary was asked for; it said {run.text!r}")
    expect_equal(run.text, "Went on after compaction.", "the answer")
    expect(any(e.get("subtype") == "compact_boundary" for e in run.events), "no mark of compaction")
    expect(400 in relay.statuses, f"the client was answered {relay.statuses}")
    return f"it compacted by itself and went on; {relayed_count(relay)}"


def rejected_signature(lab: Lab) -> str:
    def play(asked: Asked) -> List[Step]:
        if asked.results and asked.blocks("thinking"):
            return api_error(400, "messages.1.content.0: Invalid `signature` in `thinking` block")
        if asked.results:
            return say(asked, "Went on without it.")
        call = tool_use("toolu_01Signed", "Bash", command="echo ran")
        return answer(asked, thinking("A thought.", SIGNATURE), call)

    with relaying(lab, play) as relay:
        run = ask(lab, relay, "Run it")
    claude_succeeded(run)
    expect_equal(run.text, "Went on without it.", "the answer")
    expect_equal(relay.statuses, [200, 400, 200], "what the client was answered")
    return f"the thinking was left out by the client; {relayed_count(relay)}"


def rejected_system_role(lab: Lab) -> str:
    def play(asked: Asked) -> List[Step]:
        if "system" in asked.roles:
            return api_error(400, "messages.1: role 'system' is not supported on this model")
        return say(asked, "Done.") if asked.results else run_command(asked, "toolu_1", "echo ran")

    with relaying(lab, play) as relay:
        run = ask(lab, relay, "Run it")
    claude_succeeded(run)
    expect_equal(run.text, "Done.", "the answer")
    expect_equal(relay.statuses, [400, 200, 200], "what the client was answered")
    return f"refused once, then without such messages; {relayed_count(relay)}"


# --- a long conversation ------------------------------------------------------------------------


def chain(lab: Lab) -> str:
    turns = itertools.count()

    def play(asked: Asked) -> List[Step]:
        turn = next(turns)
        thought = thinking(f"Step {turn} \u2028\u00e9\U0001f600", f"{SIGNATURE}{turn}")
        if turn == CHAIN:
            return answer(asked, thought, text("Twelve turns."))
        return answer(asked, thought, tool_use(f"toolu_{turn}", "Bash", command=f"echo step-{turn} \u00e9"))

    with relaying(lab, play) as relay:
        run = ask(lab, relay, "Twelve steps")
    claude_succeeded(run)
    expect_equal((run.text, len(relay.asked)), ("Twelve turns.", CHAIN + 1), "the answer, the requests")
    sent, came = ([t.digests for t in tap.told] for tap in (relay.near, relay.far))
    expect_equal(sorted(came), sorted(sent), "SHA-256 of all bodies")
    expect_equal(len(sent), CHAIN + 1, "requests at the taps")
    found = [result.split("\n")[0] for result in relay.asked[-1].results]
    expect_equal(found, [f"step-{turn} \u00e9" for turn in range(CHAIN)], "the results")
    signed = [block["signature"] for block in relay.asked[-1].blocks("thinking")]
    expect_equal(signed, [f"{SIGNATURE}{turn}" for turn in range(CHAIN)], "the signatures")
    return relayed_count(relay)


# --- what goes wrong ----------------------------------------------------------------------------


def half_answer(asked: Asked, frames: int, *ending: Step) -> List[Step]:
    """A stream that stops behind so many frames; the fifth is the first of its text."""
    message = message_of(asked, [text("Half an answer, and more of it.")])
    return stream(message_frames(message)[:frames], *ending)


def broken(lab: Lab, first: Play, streamed: List[bool], **options: Any) -> str:
    """The first answer breaks; the client asks again, and is answered."""
    scripts = iter([first])

    def play(asked: Asked) -> List[Step]:
        return next(scripts, lambda asked: say(asked, "The whole answer."))(asked)

    with relaying(lab, play, **options) as relay:
        run = ask(lab, relay, "Hello")
    claude_succeeded(run)
    expect_equal(run.text, "The whole answer.", "the answer")
    expect_equal([asked.streaming for asked in relay.asked], streamed, "requests that were streamed")
    ends = ["whole" if told.whole else "cut" for told in relay.near.told]
    found = zip(relay.statuses, ends)
    return "the client saw " + ", ".join(f"{status} {end}" for status, end in found)


def overloaded_event(lab: Lab) -> str:
    """Before any block Claude Code repeats the stream, within one it asks without a stream."""
    error = http_chunk(frame("error", error={"type": "overloaded_error", "message": "Overloaded"}))
    early = broken(lab, lambda asked: half_answer(asked, 1, error, LAST), [True, True])
    late = broken(lab, lambda asked: half_answer(asked, 5, error, LAST), [True, False])
    return f"before a block {early}; within one {late}"


def cut_stream(lab: Lab) -> str:
    return broken(lab, lambda asked: half_answer(asked, 5, HANG_UP), [True, False])


def cut_before_events(lab: Lab) -> str:
    """A head alone is no answer yet: it is told as a status, for another place may be tried."""
    return broken(lab, lambda asked: half_answer(asked, 0, HANG_UP), [True, True], compare=compare_nothing)


def cut_call(lab: Lab) -> str:
    """Half a call, cut where it happens to be whole JSON, must run nothing."""
    work = lab.new_folder("work")
    call = tool_use("toolu_01Cut", "Bash", command="echo run >> runs.txt")
    scripts = iter([True])

    def play(asked: Asked) -> List[Step]:
        if asked.results:
            return say(asked, "Ran once.")
        frames = message_frames(message_of(asked, [call]))
        closed = next(n for n, one in enumerate(frames) if b"content_block_stop" in one)
        return stream(frames[:closed], HANG_UP) if next(scripts, False) else answer(asked, call)

    with relaying(lab, play) as relay:
        run = ask(lab, relay, "Run it", cwd=work)
    claude_succeeded(run)
    expect_equal((work / "runs.txt").read_text(), "run\n", "what the tool wrote")
    expect_equal(len(relay.asked), 3, "requests to the API")
    return f"the tool ran once; {relayed_count(relay)}"


STATUSES: Tuple[Tuple[int, str, Tuple[str, ...]], ...] = (
    (401, "Invalid bearer token", ()),
    (429, "This request would exceed your account's rate limit.", (
        "retry-after: 1", "anthropic-ratelimit-unified-status: rejected",
        "anthropic-ratelimit-unified-reset: 1999999999", "anthropic-ratelimit-requests-remaining: 0",
        "x-should-retry: true",
    )),
    (529, "Overloaded", ("x-should-retry: true",)),
    (500, "Internal server error", ("x-should-retry: false",)),
)  # fmt: skip


def statuses(lab: Lab) -> str:
    """Each status with its headers and its words, as often as the client asks."""
    counts = []
    for status, words, fields in STATUSES:
        refusal = api_error(status, words, *fields)
        with relaying(lab, lambda asked, refusal=refusal: refusal) as relay:
            run = ask(lab, relay, "Hello", CLAUDE_CODE_MAX_RETRIES="1")
        expect_equal((run.status, run.result.get("is_error")), (1, True), f"exit status at {status}")
        expect(words in run.text or status == 529, f"at {status} it said {run.text!r}")
        told = relay.near.told
        expect_equal({one.status for one in told}, {status}, "what the client was answered")
        wanted = dict(field.split(": ") for field in fields).get("x-should-retry")
        expect_equal({one.headers.get("x-should-retry") for one in told}, {wanted}, f"x-should-retry of {status}")
        counts.append(f"{status} x {len(told)}")
    return ", ".join(counts)


# --- agents that are sent elsewhere -------------------------------------------------------------

ELSEWHERE_KEY = "the-key-of-elsewhere"
AGENT_FILE = """---
name: {name}
description: Does what it is told.
{more}---
You are {name}, made by a file in the working folder. Be brief.
"""


@contextlib.contextmanager
def elsewhere(play: ChatPlay) -> Iterator[Tuple[PlayingUpstream, Dict[str, str]]]:
    """(an OpenAI-compatible upstream, the settings that lead to it); it sees nothing of Anthropic's."""
    with PlayingUpstream(play) as chat:
        yield chat, {"OPENAI_API_KEY": ELSEWHERE_KEY, "OPENAI_BASE_URL": chat.url, "MAX_RETRIES": "0"}
        expect_equal(chat.mistakes, [], "mistakes of the play elsewhere")
        for one in chat.requests:
            expect_equal(one.headers.get("authorization"), f"Bearer {ELSEWHERE_KEY}", "the key")
            expect(CREDENTIAL.encode() not in one.body, "the credential is in a body elsewhere")
            expect(CREDENTIAL not in str(one.headers), "the credential is in a header elsewhere")
            names = [n for n in one.headers if n.startswith(("anthropic-", "x-claude-", "x-api-key"))]
            expect_equal(names, [], "the client's headers elsewhere")


def chat_agent(chat: ChatRequest) -> List[Step]:
    """An agent elsewhere: it runs one command, and tells its model and what came."""
    if not chat.results:
        return calls_answer(Call(f"call_{chat.model}", "Bash", {"command": f"echo ran-by-{chat.model}"}))
    return text_answer(f"{chat.model} saw ", chat.results[-1][1])


def api_agent(asked: Asked) -> List[Step]:
    """The same for one that stays."""
    if not asked.results:
        return run_command(asked, "toolu_stays", "echo ran-by-the-api")
    return say(asked, f"The API saw {asked.results[-1]}")


def agent_call(asked: Asked, call_id: str, name: str, prompt: str) -> Dict[str, Any]:
    arguments = {"description": "a task", "prompt": prompt, "subagent_type": name}
    return tool_use(call_id, asked.agent_tool, **arguments)


def parent(*calls: Tuple[str, str], own: Play = api_agent) -> Play:
    """A conversation that calls agents, (name, prompt), all at once and then tells their results."""

    def play(asked: Asked) -> List[Step]:
        if asked.from_agent:
            return own(asked)
        if asked.results:
            return say(asked, "All told: " + " ".join(asked.results))
        return answer(asked, *(agent_call(asked, f"toolu_{n}", *c) for n, c in enumerate(calls)))

    return play


def agent_folder(work: pathlib.Path, *names: str, more: str = "") -> pathlib.Path:
    """Files of these agents in the working folder."""
    folder = work / ".claude" / "agents"
    folder.mkdir(parents=True)
    for name in names:
        (folder / f"{name}.md").write_text(AGENT_FILE.format(name=name, more=more))
    return folder


def agent_json(name: str) -> str:
    prompt = f"You are {name}, made by JSON on the command line. Be brief."
    return json.dumps({name: {"description": "Does what it is told.", "prompt": prompt}})


def expect_moved(run: ClaudeRun, relay: Relay, chat: PlayingUpstream, *models: str) -> None:
    """Each of these models was asked twice, its agent's result is told, and nothing else moved."""
    claude_succeeded(run)
    asked = [one.model for one in chat.asked]
    expect_equal(sorted(asked), sorted([*models, *models]), "models asked elsewhere")
    for model in models:
        expect(f"{model} saw ran-by-{model}" in run.text, f"{model} is not in {run.text!r}")
    total = len(relay.asked) + len(asked)
    expect_equal(len(relay.near.told), total, "requests of the client, and where they went")


def routes(relay: Relay, upstream: str) -> List[str]:
    """By which rule requests went there, each once."""
    return sorted({line["route"] for line in relay.proxy.log_lines() if line.get("upstream") == upstream})


def agent_of_file(lab: Lab) -> str:
    work = lab.new_folder("work")
    folder = agent_folder(work, "reviewer")
    return one_agent(lab, "reviewer", work, SUBAGENT_FOLDERS=str(folder))


def agent_of_json(lab: Lab) -> str:
    return one_agent(lab, "helper", lab.new_folder("work"), "--agents", agent_json("helper"))


def one_agent(lab: Lab, name: str, work: pathlib.Path, *options: str, **settings: str) -> str:
    """The agent is sent elsewhere by its name, the conversation stays."""
    with elsewhere(chat_agent) as (chat, place):
        own = {"SUBAGENT_MAPPINGS": f"{name}:openai:model-a", **place, **settings}
        play = parent((name, "Do the one thing."))
        with relaying(lab, play, expect_rest_relayed, **own) as relay:
            run = ask(lab, relay, "Ask it", *options, cwd=work)
        expect_moved(run, relay, chat, "model-a")
    expect(not any(asked.from_agent for asked in relay.asked), "the agent was at the API too")
    expect_equal(len(relay.asked), 2, "requests to the API")
    expect_equal(routes(relay, "openai"), [f"agent {name} by agent call"], "the rules")
    return "two requests elsewhere, two at the API"


def agent_by_model(lab: Lab) -> str:
    """A file's `model` comes as it is: a name that is mapped, or one that names its upstream."""
    told = []
    for model, mapped in (("team/reviewer", "team/reviewer:openai:model-a"), ("openai:model-a", "")):
        work = lab.new_folder("work")
        agent_folder(work, "reviewer", more=f"model: {model}\n")
        with elsewhere(chat_agent) as (chat, place):
            own = {"SUBAGENT_MAPPINGS": mapped, **place}
            play = parent(("reviewer", "Do the one thing."))
            with relaying(lab, play, expect_rest_relayed, **own) as relay:
                run = ask(lab, relay, "Ask it", cwd=work)
            expect_moved(run, relay, chat, "model-a")
        told += routes(relay, "openai")
    return "; ".join(told)


def parallel_agents(lab: Lab) -> str:
    """Three at once: one of a file and one of JSON, each to its own model, and one that stays."""
    work = lab.new_folder("work")
    agent_folder(work, "reviewer")
    calls = (
        ("reviewer", "Review \u00fcber \"all\" of\nit."), ("helper", "Help with it."),
        ("general-purpose", "Look at it."),
    )  # fmt: skip
    mapped = "reviewer:openai:model-a,helper:openai:model-b"
    with elsewhere(chat_agent) as (chat, place):
        own = {"SUBAGENT_MAPPINGS": mapped, **place}
        with relaying(lab, parent(*calls), expect_rest_relayed, **own) as relay:
            run = ask(lab, relay, "Ask three", "--agents", agent_json("helper"), cwd=work)
        expect_moved(run, relay, chat, "model-a", "model-b")
        for prompt, model in ((calls[0][1], "model-a"), (calls[1][1], "model-b")):
            models = {one.model for one in chat.asked if prompt in said_text(one)}
            expect_equal(models, {model}, f"who was asked {prompt!r}")
    expect("The API saw ran-by-the-api" in run.text, f"the third is not in {run.text!r}")
    return "two models elsewhere, the third agent at the API"


def said_text(chat: ChatRequest) -> str:
    """The user messages as they are read, without JSON's escapes."""
    contents = [m["content"] for m in chat.messages if m["role"] == "user"]
    parts = [[c] if isinstance(c, str) else [p.get("text", "") for p in c] for c in contents]
    return "\n".join(part for some in parts for part in some)


def compacting_agent(lab: Lab) -> str:
    """An agent elsewhere that runs out of room stays there with its summary, though the prompt that
    it was called with is gone."""
    work = lab.new_folder("work")
    agent_folder(work, "reviewer")
    summaries: List[str] = []

    def at_chat(chat: ChatRequest) -> List[Step]:
        if "THE-SUMMARY" in chat.user_text:
            return text_answer(f"{chat.model} went on with its summary.")
        if "detailed summary" in json.dumps(chat.messages[-2:]):
            summaries.append(chat.model)
            return text_answer("<summary>THE-SUMMARY: three steps were made.</summary>")
        turn = len(chat.results)
        if turn == 3:
            return error_answer(400, OVERFLOW, code="context_length_exceeded")
        return calls_answer(Call(f"call_{turn}", "Bash", {"command": f"echo step-{turn}"}))

    def at_api(asked: Asked) -> List[Step]:
        expect("THE-SUMMARY" not in asked.user_text, "the agent's summary came to the API")
        return say(asked, "The API went on with it.")

    with elsewhere(at_chat) as (chat, place):
        own = {"SUBAGENT_MAPPINGS": "reviewer:openai:model-a", **place}
        play = parent(("reviewer", "Three steps."), own=at_api)
        with relaying(lab, play, expect_rest_relayed, **own) as relay:
            run = ask(lab, relay, "Ask it", cwd=work)
            expect_equal(summaries, ["model-a"], "who was asked for a summary")
            expect_equal([one.from_agent for one in relay.asked], [False, False], "of agents, at the API")
    claude_succeeded(run)
    expect("model-a went on with its summary." in run.text, f"it said {run.text!r}")
    return f"{len(chat.requests)} requests elsewhere, two at the API"


def continued_agent(lab: Lab) -> str:
    """A message to an agent that had ended goes where the agent was."""
    work = lab.new_folder("work")
    agent_folder(work, "reviewer")

    def at_chat(chat: ChatRequest) -> List[Step]:
        again = "And once more." in chat.user_text
        return text_answer(f"{chat.model} again." if again else f"{chat.model} once.")

    def at_api(asked: Asked) -> List[Step]:
        if asked.from_agent:
            return say(asked, "The API took it.")
        turn = len(asked.results)
        if "again." in asked.user_text or turn == 4:
            return say(asked, f"All told: {asked.user_text[-600:]}")
        if turn == 0:
            return answer(asked, agent_call(asked, "toolu_0", "reviewer", "Do the one thing."))
        if turn == 2:
            agent = re.search(r"agentId: (\w+)", asked.results[0]).group(1)
            told = {"to": agent, "summary": "once more", "message": "And once more."}
            return answer(asked, tool_use("toolu_2", "SendMessage", **told))
        # Its transcript is written a little later, and so is what it says when it is continued.
        return run_command(asked, f"toolu_{turn}", "sleep 1")

    with elsewhere(at_chat) as (chat, place):
        own = {"SUBAGENT_MAPPINGS": "reviewer:openai:model-a", **place}
        with relaying(lab, at_api, expect_rest_relayed, **own) as relay:
            run = ask(lab, relay, "Ask it twice", "--allowedTools", "SendMessage", cwd=work)
        expect("And once more." in chat.asked[-1].user_text, f"the message is not there: {run.tool_results}")
        expect_equal({one.model for one in chat.asked}, {"model-a"}, "models asked elsewhere")
    claude_succeeded(run)
    expect(not any(asked.from_agent for asked in relay.asked), "the agent was at the API too")
    return f"{len(chat.requests)} requests elsewhere, {len(relay.asked)} at the API"


def agents_of_one_prompt(lab: Lab) -> str:
    """Two agents with equal prompts: only the text of their files tells them apart."""
    work, names = lab.new_folder("work"), ("reviewer", "tester")
    folder = agent_folder(work, *names)
    settings = {"SUBAGENT_FOLDERS": str(folder), "SUBAGENT_MAPPINGS": "reviewer:openai:model-a"}
    with elsewhere(chat_agent) as (chat, place):
        play = parent(*((name, "Do the same.") for name in names))
        with relaying(lab, play, expect_rest_relayed, **settings, **place) as relay:
            run = ask(lab, relay, "Ask both", cwd=work)
        expect_moved(run, relay, chat, "model-a")
        expect("You are reviewer" in json.dumps(chat.asked[0].messages), "another agent was sent")
    expect("The API saw ran-by-the-api" in run.text, f"the other is not in {run.text!r}")
    return "; ".join(routes(relay, "openai"))


def nested_agents(lab: Lab) -> str:
    """An agent that stays calls one that is sent elsewhere, which calls one that stays."""
    work = lab.new_folder("work")
    agent_folder(work, "reviewer")

    def at_api(asked: Asked) -> List[Step]:
        if "Begin below." not in asked.user_text:
            return api_agent(asked)
        if asked.results:
            return say(asked, f"Outer: {asked.results[-1]}")
        return answer(asked, agent_call(asked, "toolu_outer", "reviewer", "Review below."))

    def at_chat(chat: ChatRequest) -> List[Step]:
        if chat.results:
            return text_answer("Middle: ", chat.results[-1][1])
        task = {"description": "a task", "prompt": "Look below.", "subagent_type": "general-purpose"}
        tool = next(name for name in ("Agent", "Task") if name in chat.tool_names)
        return calls_answer(Call("call_middle", tool, task))

    with elsewhere(at_chat) as (chat, place):
        own = {"SUBAGENT_MAPPINGS": "reviewer:openai:model-a", **place}
        play = parent(("general-purpose", "Begin below."), own=at_api)
        with relaying(lab, play, expect_rest_relayed, **own) as relay:
            run = ask(lab, relay, "Ask it", cwd=work)
        expect_equal([one.model for one in chat.asked], ["model-a"] * 2, "models asked elsewhere")
    claude_succeeded(run)
    for word in ("Outer: ", "Middle: ", "The API saw ran-by-the-api"):
        expect(word in run.text, f"{word!r} is not in {run.text!r}")
    expect_equal(len(relay.asked), 6, "requests to the API")
    parents = {one.headers.get("x-claude-code-parent-agent-id", "") for one in relay.asked}
    expect(len(parents) > 1, "no request names its parent")
    return "three deep: at the API, elsewhere, at the API"


def nested_elsewhere(lab: Lab) -> str:
    """An agent elsewhere calls an agent that is sent to a third model."""
    work = lab.new_folder("work")
    agent_folder(work, "reviewer", "tester")

    def at_chat(chat: ChatRequest) -> List[Step]:
        if chat.model == "model-b":
            return chat_agent(chat)
        if chat.results:
            return text_answer("Middle: ", chat.results[-1][1])
        tool = next(name for name in ("Agent", "Task") if name in chat.tool_names)
        task = {"description": "a task", "prompt": "Test below.", "subagent_type": "tester"}
        return calls_answer(Call("call_middle", tool, task, pieces=9))

    mapped = "reviewer:openai:model-a,tester:openai:model-b"
    with elsewhere(at_chat) as (chat, place):
        own = {"SUBAGENT_MAPPINGS": mapped, **place}
        with relaying(lab, parent(("reviewer", "Review it.")), expect_rest_relayed, **own) as relay:
            run = ask(lab, relay, "Ask it", cwd=work)
        models = [one.model for one in chat.asked]
        expect_equal(models, ["model-a", "model-b", "model-b", "model-a"], "models asked elsewhere")
    claude_succeeded(run)
    expect("model-b saw ran-by-model-b" in run.text, f"the inner result is not in {run.text!r}")
    expect_equal(len(relay.asked), 2, "requests to the API")
    return "called in a converted answer, and sent on"


def agent_with_picture(lab: Lab) -> str:
    """VISION_MODEL is for what has left the API: the conversation itself stays with its picture."""
    work = lab.new_folder("work")
    agent_folder(work, "reviewer")
    (work / "seen.png").write_bytes(png_bytes())
    path = str(work / "seen.png")

    def at_api(asked: Asked) -> List[Step]:
        calls = (tool_use("toolu_see", "Read", file_path=path),
                 agent_call(asked, "toolu_agent", "reviewer", "Look at it."))
        return say(asked, "Told: " + asked.results[-1]) if asked.results else answer(asked, *calls)

    def at_chat(chat: ChatRequest) -> List[Step]:
        if not chat.results:
            return calls_answer(Call("call_see", "Read", {"file_path": path}))
        expect("image_url" in json.dumps(chat.messages), "there is no picture")
        return text_answer(f"{chat.model} has seen it.")

    with elsewhere(at_chat) as (chat, place):
        own = {"SUBAGENT_MAPPINGS": "reviewer:openai:model-a", "VISION_MODEL": "openai:model-sees"}
        with relaying(lab, at_api, expect_rest_relayed, **own, **place) as relay:
            run = ask(lab, relay, "Look", cwd=work)
        expect_equal([one.model for one in chat.asked], ["model-a", "model-sees"], "models elsewhere")
    claude_succeeded(run)
    expect("model-sees has seen it." in run.text, f"it said {run.text!r}")
    expect_equal(sent_base64(relay.asked[-1].messages, "image"), [png_bytes()], "the picture at the API")
    return "; ".join(routes(relay, "openai"))


# --- another place, where the API fails ---------------------------------------------------------


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def refused_url() -> Dict[str, str]:
    return {"ANTHROPIC_FORWARD_URL": f"http://127.0.0.1:{free_port()}"}


# What happens at the API -> (its answer, settings).
FAILURES: Dict[str, Tuple[Play, Callable[[], Dict[str, str]]]] = {
    "529": (lambda asked: api_error(529, "Overloaded", "x-should-retry: true"), dict),
    "429": (lambda asked: api_error(429, "Too many.", "retry-after: 30"), dict),
    "500": (lambda asked: api_error(500, "Internal server error"), dict),
    "refused connection": (lambda asked: [], refused_url),
    "closed connection": (lambda asked: [HANG_UP], dict),
    "cut before events": (lambda asked: half_answer(asked, 0, HANG_UP), dict),
    "silence": (lambda asked: [WAIT_FOR_CLOSE], lambda: {"FALLBACK_TIMEOUT": "1"}),
}


def fallback(lab: Lab) -> str:
    """Whatever the API's failure, the client sees one ordinary answer."""
    for what, (play, settings) in FAILURES.items():
        with elsewhere(lambda chat: text_answer("From ", "elsewhere.")) as (chat, place):
            own = {"FALLBACK_MODELS": "openai:model-a", **place, **settings()}
            with relaying(lab, play, compare_nothing, **own) as relay:
                run = ask(lab, relay, "Hello")
            claude_succeeded(run)
            expect_equal((what, run.text), (what, "From elsewhere."), "the answer")
            expect_equal([one.model for one in chat.asked], ["model-a"], f"asked elsewhere at {what}")
        expect_equal(relay.statuses, [200], f"what the client was answered at {what}")
        expect(relay.near.told[0].whole, f"a cut answer at {what}")
        expect(not any(e.get("subtype") == "api_retry" for e in run.events), f"a retry at {what}")
    return ", ".join(FAILURES)


def fallback_and_back(lab: Lab) -> str:
    """Answers of the API, of elsewhere and of the API again: each gets back only its own thinking."""
    own_thought = thinking("A thought of the API.", SIGNATURE)

    def at_api(asked: Asked) -> List[Step]:
        turn = len(asked.results)
        if turn == 1:
            return api_error(529, "Overloaded")
        call = tool_use(f"toolu_{turn}", "Bash", command=f"echo step-{turn}")
        return answer(asked, own_thought, call) if turn == 0 else say(asked, "Back at the API.")

    def at_chat(chat: ChatRequest) -> List[Step]:
        call = call_deltas(0, Call("call_1", "Bash", {"command": "echo step-1"}))
        return chat_stream(delta(reasoning_content="A foreign thought."), *call, delta("tool_calls"), CHAT_USAGE)

    with elsewhere(at_chat) as (chat, place):
        own = {"FALLBACK_MODELS": "openai:model-a", **place}
        with relaying(lab, at_api, compare_nothing, **own) as relay:
            run = ask(lab, relay, "Three steps")
        expect_equal(len(chat.requests), 1, "requests elsewhere")
        expect(SIGNATURE.encode() not in chat.requests[0].body, "the API's signature went elsewhere")
    claude_succeeded(run)
    expect_equal((run.text, relay.statuses), ("Back at the API.", [200] * 3), "the answer, the statuses")
    sent = json.loads(relay.near.told[-1].request.body)["messages"]
    expect("A foreign thought." in json.dumps(sent), "the client did not keep the foreign thought")
    last = relay.asked[-1]
    expect_equal(last.blocks("thinking"), [own_thought], "the thinking that the API got back")
    expect_equal(last.results, ["step-0", "step-1"], "the results")
    expect_equal([block["name"] for block in last.blocks("tool_use")], ["Bash", "Bash"], "the calls")
    return "its own thinking came back to the API, the foreign one did not"


def fallback_to_the_api(lab: Lab) -> str:
    """The other way round: an agent's place elsewhere fails, and the API answers its own client."""
    work = lab.new_folder("work")
    agent_folder(work, "reviewer")
    thought = thinking("A thought of the API.", SIGNATURE)

    def at_api(asked: Asked) -> List[Step]:
        if asked.results:
            return say(asked, f"The API saw {asked.results[-1]}")
        return answer(asked, thought, tool_use("toolu_own", "Bash", command="echo ran-by-the-api"))

    with elsewhere(lambda chat: error_answer(503, "Away for now.")) as (chat, place):
        own = {"SUBAGENT_MAPPINGS": "reviewer:openai:model-a", "FALLBACK_MODELS": "anthropic:claude-sonnet-5"}
        play = parent(("reviewer", "Do the one thing."), own=at_api)
        with relaying(lab, play, compare_nothing, **own, **place) as relay:
            run = ask(lab, relay, "Ask it", cwd=work)
        expect_equal({one.model for one in chat.asked}, {"model-a"}, "models asked elsewhere")
    claude_succeeded(run)
    expect("The API saw ran-by-the-api" in run.text, f"it said {run.text!r}")
    own_requests = [asked for asked in relay.asked if asked.from_agent]
    expect_equal([asked.model for asked in own_requests], ["claude-sonnet-5"] * 2, "the agent's model at the API")
    expect_equal(own_requests[-1].blocks("thinking"), [thought], "the thinking that the API got back")
    sent = [t.request for t in relay.near.told if "x-claude-code-agent-id" in t.request.headers]
    for one, asked in zip(sent, own_requests):
        expect_equal(kept_fields(asked.headers), kept_fields(one.headers), "the headers at the API")
        same = {**json.loads(one.body), "model": "claude-sonnet-5"}
        expect(asked.body == same, "another member than the model's name was changed")
    return f"two requests tried elsewhere, then {relay.statuses.count(200)} answers"


def fallback_not_taken(lab: Lab) -> str:
    """What another place would not answer better stays what it is: a 400 is shown as it came."""
    def at_chat(chat: ChatRequest) -> List[Step]:
        return text_answer("From elsewhere.")

    with elsewhere(at_chat) as (chat, place):
        own = {"FALLBACK_MODELS": "openai:model-a", **place}
        refusal = "messages.1.content.0: this is refused"
        with relaying(lab, lambda asked: api_error(400, refusal), **own) as relay:
            run = ask(lab, relay, "Hello")
        expect_equal(len(chat.requests), 0, "requests elsewhere")
    expect(refusal in run.text, f"the API's words are not in {run.text!r}")
    return f"told as it came; {relayed_count(relay)}"


# --- counting -----------------------------------------------------------------------------------


COUNTED = {
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "1"}, "finish_reason": "length"}],
    "usage": {"prompt_tokens": 345, "completion_tokens": 1, "total_tokens": 346},
}  # fmt: skip


def counting_in_background(lab: Lab) -> str:
    """An API that cannot count: Claude Code counts by tiny answers, which BACKGROUND_MODEL gives."""
    with elsewhere(lambda chat: json_answer(200, COUNTED)) as (chat, place):
        own = {"BACKGROUND_MODEL": "openai:model-small", **place}
        with relaying(lab, lambda asked: say(asked, "1"), expect_rest_relayed, **own) as relay:
            relay.api.counts = False
            run = ask(lab, relay, "/context")
        expect_equal({one.model for one in chat.asked}, {"model-small"}, "models asked elsewhere")
    claude_succeeded(run)
    expect_equal(len(relay.asked), 0, "answers of the API")
    return f"{len(chat.requests)} counted elsewhere, {len(relay.near.told)} requests of the client"


def counting(lab: Lab) -> str:
    """`/context` counts many times at once; every count is the API's own."""
    with relaying(lab, lambda asked: say(asked, "1")) as relay:
        run = ask(lab, relay, "/context")
    claude_succeeded(run)
    counts = [told for told in relay.near.told if "/count_tokens" in told.request.line]
    expect(len(counts) > 1, f"counted {len(counts)} times")
    expect_equal(len(relay.asked), 0, "other requests to the API")
    return relayed_count(relay)


RELAY_CHECKS: Dict[str, Callable[[Lab], str]] = {
    "relay-signatures": signatures,
    "relay-web-search": web_search,
    "relay-picture-and-document": read_files,
    "relay-compaction": compaction,
    "relay-rejected-signature": rejected_signature,
    "relay-rejected-system-role": rejected_system_role,
    "relay-chain-of-12": chain,
    "relay-overloaded-event": overloaded_event,
    "relay-cut-stream": cut_stream,
    "relay-cut-before-events": cut_before_events,
    "relay-cut-in-call": cut_call,
    "relay-statuses": statuses,
    "relay-counting": counting,
    "relay-counting-in-background": counting_in_background,
    "relay-agent-of-file": agent_of_file,
    "relay-agent-of-json": agent_of_json,
    "relay-agent-by-model": agent_by_model,
    "relay-agent-with-picture": agent_with_picture,
    "relay-parallel-agents": parallel_agents,
    "relay-agents-of-one-prompt": agents_of_one_prompt,
    "relay-agent-compacts": compacting_agent,
    "relay-agent-continued": continued_agent,
    "relay-nested-agents": nested_agents,
    "relay-nested-elsewhere": nested_elsewhere,
    "relay-fallback": fallback,
    "relay-fallback-and-back": fallback_and_back,
    "relay-fallback-to-the-api": fallback_to_the_api,
    "relay-fallback-not-taken": fallback_not_taken,
}
