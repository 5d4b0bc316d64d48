"""Turns with tools in text: what the client gets, and what the upstream is asked a second time."""

from __future__ import annotations

import json
from typing import Any, Dict, List, NamedTuple

import pytest

from claude_proxy.dialects.text_tools import RESULT_STOP, text_tool_request
from claude_proxy.dialects.text_turns import (
    CUT_OFF_NOTE,
    INPUT_PIECE,
    NO_CALL,
    NONE_ACCEPTED,
    REPAIR_PROMPT,
    SOME_ACCEPTED,
    text_tool_events,
)
from claude_proxy.errors import ProxyError
from claude_proxy.events import EventWriter, check_grammar, events_to_message, message_to_events
from tests.test_chat_request import assistant, result, text, user
from tests.test_text_calls import READ, RESULT, call, tagged

TOOLS = {"tools": [{"name": "Read"}, {"name": "Bash"}]}
ANY = {**TOOLS, "tool_choice": {"type": "any"}}
SINGLE = {**TOOLS, "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}}
BASH, BAD = call("Bash", command="ls"), call("Raed", path="secret")
BAD_WORDS = 'there is no tool "Raed"; the tools are Bash, Read'
CUT = '<tool_call>\n{"name": "Read", "input": {"path": "sec'
THOUGHT = {"type": "thinking", "thinking": "hm", "signature": "s"}
NATIVE = {"type": "tool_use", "id": "toolu_n", "name": "Bash", "input": {"command": "ls"}}
REPAIRED = {"tool_repairs": 1}
FAILED = {"tool_repairs": 1, "tool_repair_failed": True}
INVENTED = {"tool_results_invented": True}


class Answer(NamedTuple):
    """One answer of the upstream; a string in `blocks` is text."""

    blocks: List[Any]
    reason: str = "end_turn"
    sequence: Any = None
    usage: Any = None
    more: Any = None
    message_id: str = "msg_01abcdefghijkl"

    def message(self):
        blocks = [text(block) if isinstance(block, str) else block for block in self.blocks]
        return {"id": self.message_id, "type": "message", "role": "assistant", "model": "up", "content": blocks,
                "stop_reason": self.reason, "stop_sequence": self.sequence,
                "usage": self.usage or {"input_tokens": 1, "output_tokens": 1}}

    def whole(self):
        return message_to_events(self.message())

    def streamed(self):
        """Text by character, with pings, as an upstream streams."""
        message = self.message()
        write = EventWriter(self.message_id, "up", message["usage"])
        yield from write.start()
        for block in message["content"]:
            for character in block["text"] if block["type"] == "text" else ():
                yield from write.text(character)
                yield {"type": "ping"}
            if block["type"] != "text":
                yield from write.block(block)
        yield from write.finish(self.reason, message["usage"], stop_sequence=self.sequence, **(self.more or {}))


class Turn(NamedTuple):
    message: Dict[str, Any]
    events: List[Dict[str, Any]]
    asked: List[Dict[str, Any]]
    facts: Dict[str, Any]


def play(streams, **members):
    """A turn of an upstream that plays these streams of events; it is asked once for each."""
    asked, left, facts = [], list(streams), {}

    def ask(request):
        asked.append(request)
        return left.pop(0)

    request = {"model": "m", "messages": [user("x")], **members}
    events = list(check_grammar(text_tool_events(request, ask, "msg_proxy", facts)))
    assert not left
    return Turn(events_to_message(events), events, asked, facts)


def play_answers(*answers, **members):
    """The same, whether the answers come whole or by character."""
    turn = play((answer.whole() for answer in answers), **members)
    streamed = play((answer.streamed() for answer in answers), **members)
    assert (streamed.message["content"], streamed.asked, streamed.facts) == (turn.message["content"], turn.asked,
                                                                             turn.facts)
    return streamed


def used(number, name="Read", **given):
    return {"type": "tool_use", "id": f"toolu_cdefghijkl_{number}", "name": name, "input": given or {"path": "a"}}


def used_bash(number):
    return used(number, "Bash", command="ls")


# --- one answer ------------------------------------------------------------------------------------

ONE_ANSWER = [
    ("text", TOOLS, Answer(["It is < done.\n"]), [text("It is < done.\n")], "end_turn", {}),
    ("nothing", TOOLS, Answer([]), [], "end_turn", {}),
    ("a call", TOOLS, Answer([READ]), [used(1)], "tool_use", {}),
    ("text and a call", TOOLS, Answer([f"I look.\n\n{READ}\n"]), [text("I look."), used(1)], "tool_use", {}),
    ("text, calls, text", TOOLS, Answer([f"A\n{READ}\nB\n{BASH}{READ}\nC"]),
     [text("A"), used(1), text("B"), used_bash(2), used(3)], "tool_use", {}),
    ("a call in two text blocks", TOOLS, Answer(["I look.\n", READ[:20], READ[20:]]), [text("I look."), used(1)],
     "tool_use", {}),
    ("one at most", SINGLE, Answer([READ + BASH]), [used(1)], "tool_use", {}),
    ("invented results", TOOLS, Answer([f"{READ}\n{RESULT}\n{BASH}"]), [used(1)], "tool_use", INVENTED),
    ("invented results, no call", TOOLS, Answer([f"So:\n{RESULT}"]), [text("So:")], "end_turn", INVENTED),
    ("cut off", TOOLS, Answer([CUT], "max_tokens"), [text(CUT_OFF_NOTE)], "max_tokens", {}),
    ("cut off, the upstream does not say so", TOOLS, Answer([CUT]), [text(CUT_OFF_NOTE)], "max_tokens", {}),
    ("cut off where a call is a must", ANY, Answer([CUT], "max_tokens"), [text(CUT_OFF_NOTE)], "max_tokens", {}),
    ("cut off behind a call", TOOLS, Answer([READ + CUT], "max_tokens"), [used(1)], "tool_use", {}),
    ("cut off in text", TOOLS, Answer(["It is"], "max_tokens"), [text("It is")], "max_tokens", {}),
    ("thinking", TOOLS, Answer([THOUGHT, f"I look.\n{READ}"]), [THOUGHT, text("I look."), used(1)], "tool_use", {}),
    ("thinking alone", TOOLS, Answer([THOUGHT, "Done."]), [THOUGHT, text("Done.")], "end_turn", {}),
    ("hidden thinking", TOOLS, Answer([{"type": "redacted_thinking", "data": "d"}, READ]),
     [{"type": "redacted_thinking", "data": "d"}, used(1)], "tool_use", {}),
    ("a native call", TOOLS, Answer(["I look.", NATIVE], "tool_use"), [text("I look."), NATIVE], "tool_use", {}),
    ("a native call where one is a must", ANY, Answer([NATIVE], "tool_use"), [NATIVE], "tool_use", {}),
    ("native calls, their reason forgotten", TOOLS, Answer([NATIVE]), [NATIVE], "tool_use", {}),
    ("native and text", TOOLS, Answer([READ, NATIVE, BASH], "tool_use"),
     [used(1), NATIVE, used_bash(3)], "tool_use", {}),
    ("the client's stop sequence", TOOLS, Answer(["so"], "stop_sequence", "END"), [text("so")], "stop_sequence", {}),
    ("the client's, behind a call", TOOLS, Answer([READ], "stop_sequence", "END"), [used(1)], "tool_use", {}),
    ("our stop sequence", TOOLS, Answer(["so"], "stop_sequence", RESULT_STOP), [text("so")], "end_turn", INVENTED),
    ("ours, behind a call", TOOLS, Answer([READ], "stop_sequence", RESULT_STOP), [used(1)], "tool_use", INVENTED),
    ("a stop sequence without name", TOOLS, Answer(["so"], "stop_sequence"), [text("so")], "end_turn", {}),
    ("tool_use without calls", TOOLS, Answer(["so"], "tool_use"), [text("so")], "end_turn", {}),
    ("a refusal", TOOLS, Answer(["No."], "refusal"), [text("No.")], "refusal", {}),
    ("text and cut off", TOOLS, Answer([f"I look.\n\n{CUT}"], "max_tokens"), [text("I look.\n\n" + CUT_OFF_NOTE)],
     "max_tokens", {}),
    ("blanks before a native call", TOOLS, Answer(["I look.\n\n", NATIVE], "tool_use"), [text("I look."), NATIVE],
     "tool_use", {}),
]


@pytest.mark.parametrize("name,members,answer,content,reason,facts", ONE_ANSWER)
def test_one_answer(name, members, answer, content, reason, facts):
    turn = play_answers(answer, **members)
    assert turn.message["content"] == content
    assert (turn.message["stop_reason"], turn.facts) == (reason, facts)
    assert turn.message["stop_sequence"] == (answer.sequence if reason == "stop_sequence" else None)
    assert turn.asked == [text_tool_request({"model": "m", "messages": [user("x")], **members})]
    assert (turn.message["id"], turn.message["model"]) == (answer.message_id, "up")


def test_what_stands_beside_the_stop_reason_stays():
    turn = play([Answer([READ], more={"container": {"id": "c"}}).streamed()], **TOOLS)
    assert (turn.message["container"], turn.message["stop_reason"]) == ({"id": "c"}, "tool_use")


def test_text_flows_and_is_out_before_the_answer_is_over():
    """But for blanks, which wait: behind each character of the answer stands how much was told."""
    told, lag = "", []

    def ask(request):
        for event in Answer(["I look.\n" + READ]).streamed():
            lag.append(told)
            yield event

    for event in text_tool_events({**TOOLS, "messages": []}, ask, "msg_proxy", {}):
        told += (event.get("delta") or {}).get("text", "")
    assert list(dict.fromkeys(lag)) == ["", "I", "I l", "I lo", "I loo", "I look", "I look."]


def test_a_long_input_comes_in_pieces():
    given = {"command": "\U0001f600 \ud83d \"\\\n</tool_call>" * 500}
    turn = play_answers(Answer([call("Bash", **given)]), **TOOLS)
    pieces = [e["delta"]["partial_json"] for e in turn.events if "partial_json" in (e.get("delta") or {})]
    assert turn.message["content"] == [used(1, "Bash", **given)]
    assert {len(piece) for piece in pieces[:-1]} == {INPUT_PIECE} and len(pieces) > 5


def test_calls_have_ids_of_their_own():
    turns = [play_answers(Answer([READ * 3], message_id=f"msg_01abcdefghij{number}"), **TOOLS) for number in range(3)]
    ids = [block["id"] for turn in turns for block in turn.message["content"]]
    assert len(set(ids)) == len(ids) == 9 and all(found.startswith("toolu_") for found in ids)


def test_an_id_that_the_conversation_has_had_is_not_used_again():
    assert play_answers(Answer([READ]), messages=HISTORY, **TOOLS).message["content"][0]["id"] != used(1)["id"]


def test_an_answer_without_a_start_has_the_proxys_id():
    write = EventWriter("", "")
    events = [e for e in (*write.text(READ), *write.finish("end_turn", {})) if e["type"] != "message_start"]
    message = play([iter(events)], **TOOLS).message
    assert (message["id"], message["content"][0]["id"]) == ("msg_proxy", "toolu_proxy_1")


# --- two answers -----------------------------------------------------------------------------------

CORRECTED = Answer([f"I am sorry.\n{READ}"])
QUOTES = tagged('{"name":"Bash","input":{"command":"echo "x""}}')

TWO_ANSWERS = [
    ("a repair", TOOLS, Answer([BAD]), CORRECTED, [used(1)], "tool_use", REPAIRED),
    ("text stays, a correction's does not", TOOLS, Answer([f"I look.\n{BAD}\nand then"]), CORRECTED,
     [text("I look."), used(1)], "tool_use", REPAIRED),
    ("bad JSON", TOOLS, Answer([f"I look.\n{QUOTES}"]), CORRECTED, [text("I look."), used(1)], "tool_use", REPAIRED),
    ("two calls for one", TOOLS, Answer([BAD]), Answer([READ + BASH]), [used(1), used_bash(2)], "tool_use", REPAIRED),
    ("one at most", SINGLE, Answer([BAD]), Answer([READ + BASH]), [used(1)], "tool_use", REPAIRED),
    ("the second call is bad", TOOLS, Answer([f"A\n{READ}\nB\n{BAD}"]), Answer([BASH]),
     [text("A"), used(1), used_bash(2)], "tool_use", REPAIRED),
    ("the second call is bad again", TOOLS, Answer([f"{READ}\n{BAD}"]), Answer([BAD]), [used(1)], "tool_use", FAILED),
    ("a correction and a bad call", TOOLS, Answer([BAD]), Answer([READ + BAD]), [used(1)], "tool_use", REPAIRED),
    ("a correction that is cut off later", TOOLS, Answer([BAD]), Answer([READ + CUT], "max_tokens"), [used(1)],
     "tool_use", REPAIRED),
    ("a correction with invented results", TOOLS, Answer([BAD]), Answer([READ + "\n" + RESULT]), [used(1)],
     "tool_use", {**REPAIRED, **INVENTED}),
    ("a native correction", TOOLS, Answer([BAD]), Answer([NATIVE], "tool_use"), [NATIVE], "tool_use", REPAIRED),
    ("bad behind a native call", TOOLS, Answer([NATIVE, BAD]), Answer([READ]), [NATIVE, used(2)], "tool_use", REPAIRED),
    ("bad again", TOOLS, Answer([BAD]), Answer([BAD]), [text(BAD)], "end_turn", FAILED),
    ("bad, and what stands behind", TOOLS, Answer([f"\n{BAD}\n{READ}\n{RESULT}"]), Answer([BAD]),
     [text(f"{BAD}\n{READ}\n{RESULT}")], "end_turn", FAILED),
    ("bad, then only text", TOOLS, Answer([BAD]), Answer(["I cannot."]), [text(BAD)], "end_turn", FAILED),
    ("bad, then nothing", TOOLS, Answer([BAD]), Answer([]), [text(BAD)], "end_turn", FAILED),
    ("must call and does", ANY, Answer(["Done."]), Answer([READ]), [text("Done."), used(1)], "tool_use", REPAIRED),
    ("must call, says nothing, and does", ANY, Answer([]), Answer([READ]), [used(1)], "tool_use", REPAIRED),
    ("must call and does not", ANY, Answer(["Done."]), Answer(["I did."]), [text("Done.")], "end_turn", FAILED),
    ("must call, bad, does not", ANY, Answer([BAD]), Answer(["I did."]), [text(BAD)], "end_turn", FAILED),
    ("must call, two are asked for at most", ANY, Answer([BAD]), Answer([BAD]), [text(BAD)], "end_turn", FAILED),
    ("text and bad again", TOOLS, Answer([f"I look.\n\n{BAD}"]), Answer([BAD]), [text(f"I look.\n\n{BAD}")],
     "end_turn", FAILED),
    ("bad, then cut off", TOOLS, Answer([BAD]), Answer([CUT], "max_tokens"), [text(BAD)], "end_turn", FAILED),
]


@pytest.mark.parametrize("name,members,first,second,content,reason,facts", TWO_ANSWERS)
def test_two_answers(name, members, first, second, content, reason, facts):
    turn = play_answers(first, second, **members)
    assert (turn.message["content"], turn.message["stop_reason"], turn.facts) == (content, reason, facts)
    assert turn.message["id"] == first.message_id


HISTORY = [user("x"), assistant(used(1)), user([result(used(1)["id"], "1")])]
SECOND_REQUESTS = [
    (TOOLS, Answer([f"I look.\n{BAD}\n\n"]), f"I look.\n{BAD}", BAD_WORDS, 0),
    (TOOLS, Answer([THOUGHT, "I look.\n", BAD]), f"I look.\n{BAD}", BAD_WORDS, 0),
    (TOOLS, Answer([f"{READ}{BASH}{BAD}{RESULT}"]), f"{READ}{BASH}{BAD}{RESULT}", BAD_WORDS, 2),
    (ANY, Answer(["Done."]), "Done.", NO_CALL, 0),
    (ANY, Answer([" \n"]), "(nothing)", NO_CALL, 0),
]


@pytest.mark.parametrize("members,first,answer,complaint,count", SECOND_REQUESTS)
def test_the_second_request_has_the_answer_and_what_is_wrong_with_it(members, first, answer, complaint, count):
    members = {**members, "messages": HISTORY, "system": "s", "max_tokens": 5}
    asked, again = play_answers(first, Answer([READ]), **members).asked
    accepted = SOME_ACCEPTED.format(count=count) if count else NONE_ACCEPTED
    prompt = REPAIR_PROMPT.format(complaint=complaint, accepted=accepted)
    assert again["messages"] == [*asked["messages"], {"role": "assistant", "content": answer}, user(prompt)]
    assert {**again, "messages": 0} == {**asked, "messages": 0}


@pytest.mark.parametrize("before", ["", "I look.\n\n", READ])
def test_nothing_of_a_bad_call_reaches_the_client(before):
    for stream in (Answer.whole, Answer.streamed):
        turn = play(map(stream, (Answer([before + BAD + "\nsecret"]), CORRECTED)), **TOOLS)
        told = json.dumps(turn.events)
        assert not any(words in told for words in ("tool_call", "Raed", "secret", "sorry"))


def test_braces_in_a_complaint_are_no_format():
    turn = play_answers(Answer([call("{0}{x}")]), Answer([READ]), **TOOLS)
    assert 'there is no tool "{0}{x}"' in turn.asked[1]["messages"][-1]["content"]


def failing(status):
    raise ProxyError(status, "overloaded")
    yield


def test_an_upstream_that_fails_the_second_time_leaves_the_first_answers_words():
    turn = play([Answer([f"I look.\n{BAD}"]).whole(), failing(529)], **TOOLS)
    assert turn.message["content"] == [text(f"I look.\n{BAD}")]
    assert (turn.message["stop_reason"], turn.facts) == ("end_turn", FAILED)


@pytest.mark.parametrize("status", [499, 504])
def test_a_turn_that_is_over_stays_so(status):
    with pytest.raises(ProxyError) as caught:
        play([Answer([BAD]).whole(), failing(status)], **TOOLS)
    assert caught.value.status == status


def test_a_native_call_that_was_cut_off_is_told_so():
    turn = play_answers(Answer([READ, NATIVE], "max_tokens"), **TOOLS)
    assert turn.message["stop_reason"] == "max_tokens"


# --- usage -----------------------------------------------------------------------------------------


def figures(given, out, **more):
    return {"input_tokens": given, "output_tokens": out, **more}


@pytest.mark.parametrize("usages,expected", [
    ([figures(10, 5)], figures(10, 5)),
    ([figures(10, 5), figures(30, 7)], figures(30, 12)),
    ([figures(10, 5, cache_read_input_tokens=4), figures(3, 7, cache_read_input_tokens=14)],
     figures(3, 12, cache_read_input_tokens=14)),
    ([figures(10, 5, cache_read_input_tokens=4), figures(3, None)], figures(3, 5, cache_read_input_tokens=4)),
])
def test_the_usage_of_two_answers_is_one(usages, expected):
    """Output adds up, input is that of the last one."""
    answers = [Answer([part], usage=usage) for part, usage in zip((BAD, READ) if len(usages) > 1 else (READ,), usages)]
    turn = play_answers(*answers, **TOOLS)
    assert turn.message["usage"] == expected
    assert turn.events[0]["message"]["usage"] == usages[0]


def test_figures_on_the_way_are_no_other_answer():
    write = EventWriter("msg_a", "up")
    told = {"type": "message_delta", "delta": {"stop_reason": None}, "usage": figures(10, 3)}
    events = [*write.text(READ), *write.close(), told, *write.finish("end_turn", figures(10, 5))]
    assert play([iter(events)], **TOOLS).message["usage"] == figures(10, 5)


def test_the_input_may_stand_in_message_start_alone():
    def stream(part, usage):
        write = EventWriter("msg_a", "up", usage)
        return iter([*write.text(part), *write.finish("end_turn", {"output_tokens": 5})])

    turn = play([stream(BAD, figures(10, 1)), stream(READ, figures(30, 1))], **TOOLS)
    assert turn.message["usage"] == figures(30, 10)


# --- turns without tools -----------------------------------------------------------------------------

@pytest.mark.parametrize("members", [{}, {"tools": []}, {"messages": [user([text("x")]), assistant(text("y"))]}])
def test_without_tools_nothing_is_touched(members):
    request, events, facts = {"model": "m", "messages": [user("x")], **members}, iter([{"type": "ping"}]), {}
    asked = []
    assert text_tool_events(request, lambda r: asked.append(r) or events, "msg_proxy", facts) is events
    assert asked == [request] and asked[0] is request and facts == {}


@pytest.mark.parametrize("members", [
    {"tools": TOOLS["tools"], "tool_choice": {"type": "none"}},
    {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, {},
])
def test_with_nothing_to_call_the_conversation_is_text_and_the_answer_stays(members):
    request, events = {"model": "m", "messages": HISTORY, **members}, iter([])
    asked = []
    assert text_tool_events(request, lambda r: asked.append(r) or events, "msg_proxy", {}) is events
    assert asked == [text_tool_request(request)] and "tools" not in asked[0] and "system" not in asked[0]
    kinds = [block["type"] for message in asked[0]["messages"][1:] for block in message["content"]]
    assert kinds == ["text", "text"]
