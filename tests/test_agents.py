"""Which agent of Claude Code a request is from: the means, their order, and who is never taken for one."""

from __future__ import annotations

import json
import threading

import pytest

from claude_proxy.agents import (
    AGENT_HEADER,
    LONGEST_NAME,
    MOST_CALLS_KEPT,
    SESSION_HEADER,
    AgentCalls,
    CallListener,
    agent_system_text,
    find_agent,
    first_prompt,
    heard_events,
    read_agent_file,
)
from claude_proxy.events import message_to_events

REVIEWER = "You review code and never change it. Say what is wrong."
REVIEWER_STRICT = REVIEWER + "\n\nBe strict about everything."
TESTER = "You write tests, and nothing but tests, for what you are given."
MAPPED = ("reviewer", "tester")
PROMPTS = {"reviewer": REVIEWER, "tester": TESTER}
SESSION = "11111111-2222-3333-4444-555555555555"


def headers(agent="a1", session=SESSION):
    return {name: value for name, value in ((AGENT_HEADER, agent), (SESSION_HEADER, session)) if value}


def request_of(prompt="Look at this.", system="", model="claude-sonnet-5", **more):
    blocks = [{"type": "text", "text": text} for text in ("x-anthropic-billing-header", "You are an agent.", system)]
    content = [{"type": "text", "text": "<system-reminder>today</system-reminder>"}, {"type": "text", "text": prompt}]
    return {"model": model, "system": blocks, "messages": [{"role": "user", "content": content}], **more}


def calls_of(*rows, session=SESSION):
    """What has been called so far: (prompt, name) each."""
    calls = AgentCalls()
    for prompt, name in rows:
        calls.keep(session, prompt, name)
    return calls


def found(request, head=None, calls=None, prompts=None, mapped=MAPPED):
    head = headers() if head is None else head
    return find_agent(request, head, mapped, calls or AgentCalls(), PROMPTS if prompts is None else prompts)


# --- the three means ------------------------------------------------------------------------------



class Forgetful(AgentCalls):
    """Knows the calls, and no agent by its id: so that no row of a table helps the next."""

    def recognise(self, session, agent_id, name):
        pass


CALLED = Forgetful()
CALLED.keep(SESSION, "Look at this.", "reviewer")
MEANS = [
    ("model", request_of(model="reviewer"), {}, ("reviewer", "model name")),
    ("model before call", request_of(model="tester"), {"calls": CALLED}, ("tester", "model name")),
    ("model before system", request_of(model="tester", system=REVIEWER), {}, ("tester", "model name")),
    ("call", request_of(), {"calls": CALLED}, ("reviewer", "agent call")),
    ("call before system", request_of(system=TESTER), {"calls": CALLED}, ("reviewer", "agent call")),
    ("system", request_of(system=REVIEWER), {}, ("reviewer", "system prompt")),
    ("system and notes", request_of(system=REVIEWER + "\n\nNotes: be brief."), {}, ("reviewer", "system prompt")),
    ("system and CRLF", request_of(system=REVIEWER + "\r\n\r\nNotes."), {}, ("reviewer", "system prompt")),
    ("system after a blank line", request_of(system="\n" + REVIEWER + "  \n\nNotes."), {}, ("reviewer", "system prompt")),
    ("nothing", request_of(), {}, None),
    ("another's call", request_of(), {"calls": calls_of(("Look at this.", "builder"))}, None),
    ("another's call, our text", request_of(system=REVIEWER), {"calls": calls_of(("Look at this.", "builder"))}, None),
    ("another prompt", request_of("Look at that."), {"calls": CALLED}, None),
    ("nobody is mapped", request_of(model="reviewer", system=REVIEWER), {"calls": CALLED, "mapped": ()}, None),
    ("not mapped", request_of(system=REVIEWER), {"mapped": ("tester",)}, None),
    ("a word more", request_of(system=REVIEWER + " Always."), {}, None),
    ("text in another block", {**request_of(), "system": [{"type": "text", "text": REVIEWER}]}, {}, None),
    ("system as a string", {**request_of(), "system": REVIEWER}, {}, None),
]


@pytest.mark.parametrize("name,request_,more,expected", MEANS, ids=[row[0] for row in MEANS])
def test_means_and_their_order(name, request_, more, expected):
    assert found(request_, **more) == expected


@pytest.mark.parametrize("request_", [request_of(), request_of(system=REVIEWER)], ids=["call", "system"])
def test_the_main_conversation_is_never_taken_for_an_agent(request_):
    """Its user may well paste the very prompt; only agents carry the header."""
    assert found(request_, headers(agent=None), CALLED) is None


def test_another_session_has_called_another():
    assert found(request_of(), headers(session="other"), CALLED) is None


def test_equal_prompts_of_two_agents_are_ambiguous():
    calls = calls_of(("Go.", "reviewer"), ("Go.", "tester"), ("Look at this.", "reviewer"))
    assert found(request_of("Go."), calls=calls) is None
    assert found(request_of("Go.", system=TESTER), calls=calls) == ("tester", "system prompt")
    assert found(request_of(), calls=calls) == ("reviewer", "agent call")


def test_the_same_agent_twice_with_one_prompt_is_not_ambiguous():
    calls = calls_of(("Go.", "reviewer"), ("Go.", "reviewer"))
    assert found(request_of("Go."), calls=calls) == ("reviewer", "agent call")


@pytest.mark.parametrize("mapped,expected", [
    (("reviewer", "strict"), "strict"), (("reviewer",), None), (("strict",), "strict"),
])
def test_a_text_that_begins_like_another(mapped, expected):
    """The longest that fits is the agent, whether it is mapped or not."""
    prompts = {"reviewer": REVIEWER, "strict": REVIEWER_STRICT}
    agent = found(request_of(system=REVIEWER_STRICT + "\n\nNotes."), prompts=prompts, mapped=mapped)
    assert (agent.name if agent else None) == expected


def test_two_agents_of_one_text_are_ambiguous():
    assert found(request_of(system=REVIEWER), prompts={"reviewer": REVIEWER, "tester": REVIEWER}) is None


def test_later_turns_are_of_the_same_agent():
    request = request_of()
    request["messages"] += [{"role": "assistant", "content": "..."}, {"role": "user", "content": "go on"}]
    assert found(request, calls=CALLED) == ("reviewer", "agent call")


ODD = [
    {}, {"messages": None}, {"messages": 5}, {"messages": []}, {"messages": ["x", None]},
    {"messages": [{"role": "user"}]}, {"messages": [{"role": "user", "content": None}]},
    {"messages": [{"role": "user", "content": [None, 5, {"type": "text"}]}]},
    {"messages": {"role": "user"}, "system": [1, 2, 3], "model": 5},
    {"system": [None, None, {"text": None}], "model": None},
]


@pytest.mark.parametrize("request_", ODD, ids=range(len(ODD)))
def test_odd_requests_are_from_nobody(request_):
    """A relayed request is not checked before it is routed."""
    assert found(request_, calls=CALLED) is None
    assert first_prompt(request_) == "" and agent_system_text(request_) == ""


@pytest.mark.parametrize("content,prompt", [
    ("whole", "whole"),
    ([{"type": "text", "text": "a"}], "a"),
    ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "b"),
    ([{"type": "text", "text": "a"}, {"type": "image", "source": {}}], "a"),
    ([], ""),
])
def test_the_prompt_of_a_first_message(content, prompt):
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": content}]
    assert first_prompt({"messages": messages}) == prompt


# --- calls in answers -----------------------------------------------------------------------------


def call(name="reviewer", prompt="Look at this.", tool="Agent", **more):
    return {"type": "tool_use", "id": f"toolu_{name}", "name": tool,
            "input": {"description": "d", "prompt": prompt, "subagent_type": name, **more}}


def answer(*blocks):
    return {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": list(blocks),
            "stop_reason": "tool_use", "stop_sequence": None, "usage": {"input_tokens": 1, "output_tokens": 1}}


def in_pieces(events, size):
    """The events with tool inputs cut into deltas of so many characters."""
    for event in events:
        text = (event.get("delta") or {}).get("partial_json")
        for start in range(0, len(text or " "), size) if text else (None,):
            yield event if start is None else {
                **event, "delta": {"type": "input_json_delta", "partial_json": text[start:start + size]}}


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize("tool", ["Agent", "Task"])
def test_a_streamed_call_in_pieces(size, tool):
    calls = AgentCalls()
    events = list(in_pieces(message_to_events(answer(call(tool=tool, prompt="Z\u00fcrich \u2603"))), size))
    assert list(heard_events(events, CallListener(calls, SESSION))) == events
    assert calls.name_of(SESSION, "Z\u00fcrich \u2603") == "reviewer"


def test_a_call_in_a_whole_message():
    calls = AgentCalls()
    CallListener(calls, SESSION).hear_message(answer({"type": "text", "text": "Now."}, call()))
    assert found(request_of(), calls=calls) == ("reviewer", "agent call")


def test_parallel_agents_of_one_answer():
    calls = AgentCalls()
    message = answer(*(call(name, f"Part {n}") for n, name in enumerate(("reviewer", "tester", "builder", "reviewer"))))
    for event in message_to_events(message):
        CallListener(AgentCalls(), SESSION).hear(event)
    listener = CallListener(calls, SESSION)
    for event in message_to_events(message):
        listener.hear(event)
    names = [found(request_of(f"Part {n}"), calls=calls) for n in range(4)]
    assert names == [("reviewer", "agent call"), ("tester", "agent call"), None, ("reviewer", "agent call")]
    assert not listener.listening


def test_interleaved_blocks_are_told_apart():
    """The API does not do it, but the relay passes on whatever comes."""
    calls = AgentCalls()
    listener = CallListener(calls, SESSION)
    texts = {n: json.dumps({"prompt": f"P{n}", "subagent_type": name}) for n, name in enumerate(MAPPED)}
    for n in texts:
        listener.hear({"type": "content_block_start", "index": n, "content_block": call()})
    for at in range(max(map(len, texts.values()))):
        for n, text in texts.items():
            listener.hear({"type": "content_block_delta", "index": n,
                           "delta": {"type": "input_json_delta", "partial_json": text[at:at + 1]}})
    for n in texts:
        listener.hear({"type": "content_block_stop", "index": n})
    assert [calls.name_of(SESSION, f"P{n}") for n in texts] == list(MAPPED)


def test_a_nested_agent_is_known_by_its_parents_answer():
    """The parent is an agent itself: its answers are listened to like any other."""
    calls = AgentCalls()
    CallListener(calls, SESSION).hear_message(answer(call("builder", "Build it.")))
    CallListener(calls, SESSION).hear_message(answer(call("tester", "Test what was built.")))
    assert found(request_of("Build it."), calls=calls) is None
    assert found(request_of("Test what was built.", headers("a2")), calls=calls) == ("tester", "agent call")


NO_CALLS = [
    {"type": "tool_use", "name": "Bash", "input": {"prompt": "P", "subagent_type": "reviewer"}},
    {"type": "server_tool_use", "name": "Agent", "input": {"prompt": "P", "subagent_type": "reviewer"}},
    {"type": "text", "text": "Agent"}, None, "Agent",
    {"type": "tool_use", "name": "Agent", "input": {"prompt": "P"}},
    {"type": "tool_use", "name": "Agent", "input": {"subagent_type": "reviewer"}},
    {"type": "tool_use", "name": "Agent", "input": {"prompt": ["P"], "subagent_type": {"a": 1}}},
    {"type": "tool_use", "name": "Agent", "input": None},
    {"type": "tool_use", "name": ["Agent"]},
]


@pytest.mark.parametrize("block", NO_CALLS, ids=range(len(NO_CALLS)))
def test_what_is_no_call(block):
    calls = AgentCalls()
    CallListener(calls, SESSION).hear_message({"content": [block]})
    CallListener(calls, SESSION).hear_message({"content": block})
    assert calls.name_of(SESSION, "P") is None


def test_odd_events_are_passed_over():
    listener = CallListener(AgentCalls(), SESSION)
    for kind in ("content_block_start", "content_block_delta", "content_block_stop", "ping", None):
        for index in (None, [], {}, "0", 0, True):
            for inner in (None, [], {}, {"partial_json": None}, call()):
                listener.hear({"type": kind, "index": index, "content_block": inner, "delta": inner})
    for text in ("", "[", "5", "[]", '{"prompt": 5, "subagent_type": "x"}', "[" * 100_000):
        listener.hear_input(text)


# --- what is kept ---------------------------------------------------------------------------------


def test_calls_are_kept_with_a_bound_the_oldest_goes():
    calls = AgentCalls()
    for number in range(MOST_CALLS_KEPT + 10):
        calls.keep(SESSION, f"P{number}", "reviewer")
        calls.keep(SESSION, "P0", "reviewer")  # used again and again
    assert len(calls._names) == MOST_CALLS_KEPT
    assert calls.name_of(SESSION, "P1") is None and calls.name_of(SESSION, "P0") == "reviewer"


def test_no_prompt_is_kept_and_one_prompt_has_two_names_at_most():
    calls = AgentCalls()
    for number in range(100):
        calls.keep(SESSION, "PATIENT CANARY", f"agent {number}" + "x" * 1000)
    assert "CANARY" not in repr(vars(calls))
    kept = [name for names in calls._names.values() for name in names]
    assert len(kept) == 2 and max(map(len, kept)) == LONGEST_NAME


def test_lone_surrogates_in_a_prompt():
    calls = calls_of(("\ud800", "reviewer"))
    assert calls.name_of(SESSION, "\ud800") == "reviewer"


def test_many_threads_keep_and_ask():
    calls, wrong = AgentCalls(), []

    def work(number):
        for n in range(300):
            calls.keep(f"s{number}", f"P{n}", f"agent{number}")
            if calls.name_of(f"s{number}", f"P{n}") != f"agent{number}":
                wrong.append((number, n))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# --- agents' files --------------------------------------------------------------------------------

FILES = [
    ("plain", f"---\nname: reviewer\ndescription: reviews\n---\n{REVIEWER}\n", ("reviewer", REVIEWER)),
    ("name last", f"---\ndescription: reviews\nname: reviewer\n---\n\n{REVIEWER}\n\n", ("reviewer", REVIEWER)),
    ("CRLF", f"---\r\nname: reviewer\r\ndescription: x\r\n---\r\n{REVIEWER}\r\nMore.\r\n", ("reviewer", f"{REVIEWER}\nMore.")),
    ("quoted", f"---\nname: \"reviewer\"\nmodel: haiku\n---\n{REVIEWER}", ("reviewer", REVIEWER)),
    ("single quotes", f"---\nname: 'reviewer'\n---\n{REVIEWER}", ("reviewer", REVIEWER)),
    ("byte order mark", f"\ufeff---\nname: reviewer\n---\n{REVIEWER}", ("reviewer", REVIEWER)),
    ("blanks", f"--- \nname:   code reviewer  \n---\t\n{REVIEWER}", ("code reviewer", REVIEWER)),
    ("rule in the text", f"---\nname: reviewer\n---\n{REVIEWER}\n---\nMore.", ("reviewer", f"{REVIEWER}\n---\nMore.")),
    ("name within another", f"---\ndescription: |\n  name: other\nname: reviewer\n---\n{REVIEWER}", ("reviewer", REVIEWER)),
    ("no front matter", REVIEWER, None),
    ("front matter without end", f"---\nname: reviewer\n{REVIEWER}", None),
    ("no name", f"---\ndescription: x\n---\n{REVIEWER}", None),
    ("empty name", f"---\nname:\ndescription: x\n---\n{REVIEWER}", None),
    ("too short a text", "---\nname: reviewer\n---\nReview.", None),
    ("empty", "", None),
]


@pytest.mark.parametrize("name,text,expected", FILES, ids=[row[0] for row in FILES])
def test_agents_files(name, text, expected):
    assert read_agent_file(text) == expected


def test_an_agent_that_was_recognised_stays_so_after_its_conversation_was_compacted():
    calls = AgentCalls()
    calls.keep("s", "Three steps.", "reviewer")
    headers = {AGENT_HEADER: "a1", SESSION_HEADER: "s"}

    def find(prompt, **more):
        request = {"messages": [{"role": "user", "content": prompt}]}
        return find_agent(request, {**headers, **more}, ["reviewer"], calls, {})

    assert find("A summary.") is None
    assert find("Three steps.").means == "agent call"
    assert find("A summary.") == ("reviewer", "agent id")
    assert find("A summary.", **{AGENT_HEADER: "a2"}) is None
    assert find("A summary.", **{SESSION_HEADER: "t"}) is None
