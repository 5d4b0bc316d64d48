"""The real Claude Code, the proxy as a relay, and a scripted Anthropic API.

    Claude Code --> tap --> proxy --> tap --> the API's play

Every check compares what went by at the two taps: a relay changes no byte of a body, neither of a
request nor of an answer, and adds or drops no header but those of the connection.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
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
    error_data,
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
from tests.clients.claude_runner import ClaudeRun, claude, claude_succeeded
from tests.clients.lab import Lab, Started, expect, expect_equal
from tests.support import HANG_UP, Step

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


@contextlib.contextmanager
def relaying(lab: Lab, play: Play, moved: bool = False, **settings: str) -> Iterator[Relay]:
    """A relay with its play. When the block ends, all that passed is compared, unless the check
    has requests `moved` to other places; mistakes of the play fail the check."""
    with PlayingApi(play) as api, Tap(api.url) as far:
        environ = {"UPSTREAM": "anthropic", "ANTHROPIC_FORWARD_URL": far.url, **settings}
        with lab.proxy(**environ) as proxy, Tap(proxy.url) as near:
            relay = Relay(api, proxy, near, far)
            yield relay
            expect(CREDENTIAL not in proxy.err.read_text(), "the credential is in the log")
        expect_equal(api.mistakes, [], "mistakes of the play")
        expect_credential_kept(relay)
        if not moved:
            expect_relayed(near.told, far.told)


def expect_credential_kept(relay: Relay) -> None:
    shown = {one.headers.get("authorization") for one in relay.api.requests}
    expect(shown <= {f"Bearer {CREDENTIAL}"}, f"credentials at the API: {len(shown)} kinds")


def expect_relayed(near: List[Told], far: List[Told]) -> None:
    """The same requests, the same answers, the same headers on both sides."""
    expect_equal(sorted(t.digests for t in near), sorted(t.digests for t in far), "bodies")
    for told in near:
        other = next(t for t in far if t.digests == told.digests and t.status == told.status)
        expect_equal(other.request.line, told.request.line, "the request's line")
        sent, came = kept_fields(told.request.headers), kept_fields(other.request.headers)
        expect_equal(came, sent, "the request's headers at the API")
        sent, came = kept_fields(other.headers), kept_fields(told.headers)
        expect_equal(came, sent, "the answer's headers at the client")


def kept_fields(headers: Dict[str, str]) -> Dict[str, str]:
    return {n: v for n, v in headers.items() if n not in HOP_FIELDS + OWN_FIELDS}


def ask(lab: Lab, relay: Relay, prompt: str, *options: str, **more: Any) -> ClaudeRun:
    more = {"ANTHROPIC_AUTH_TOKEN": CREDENTIAL, **more}
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


def half_answer(asked: Asked, *ending: Step) -> List[Step]:
    """A stream that stops within its text."""
    frames = message_frames(message_of(asked, [text("Half an answer, and more of it.")]))
    return stream(frames[:5], *ending)


def broken(lab: Lab, first: Callable[[Asked], List[Step]], streamed: List[bool]) -> str:
    """The first answer breaks; the client asks again, and is answered."""
    scripts = iter([first])

    def play(asked: Asked) -> List[Step]:
        return next(scripts, lambda asked: say(asked, "The whole answer."))(asked)

    with relaying(lab, play) as relay:
        run = ask(lab, relay, "Hello")
    claude_succeeded(run)
    expect_equal(run.text, "The whole answer.", "the answer")
    expect_equal([asked.streaming for asked in relay.asked], streamed, "requests that were streamed")
    broken_off = [not told.whole for told in relay.near.told]
    return f"{sum(broken_off)} cut; {relayed_count(relay)}"


def overloaded_event(lab: Lab) -> str:
    error = frame("error", **{k: v for k, v in error_data("overloaded_error", "Overloaded").items() if k != "type"})

    def first(asked: Asked) -> List[Step]:
        frames = message_frames(message_of(asked, [text("Half an answer, and more of it.")]))
        return stream([*frames[:5], error])

    return broken(lab, first, [True, True])


def cut_stream(lab: Lab) -> str:
    return broken(lab, lambda asked: half_answer(asked, HANG_UP), [True, False])


def cut_before_events(lab: Lab) -> str:
    return broken(lab, lambda asked: stream([], HANG_UP), [True, True])


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
}
