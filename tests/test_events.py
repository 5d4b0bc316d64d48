"""The stream grammar: what is made passes it, what is malformed does not, and folds invert."""

from __future__ import annotations

import copy
import json
import random

import pytest

from claude_proxy.errors import ProxyError
from claude_proxy.events import (
    EventWriter,
    check_grammar,
    events_to_message,
    message_to_events,
    parse_tool_input,
)
from claude_proxy.sse import encode_json


def named(rows):
    return {"ids": [row[0] for row in rows]}


def message(*blocks, **more):
    return {
        "id": "msg_1", "type": "message", "role": "assistant", "model": "m",
        "content": list(blocks),
        "stop_reason": "end_turn", "stop_sequence": None,
        "usage": {"input_tokens": 5, "output_tokens": 7}, **more,
    }


def tool(value, kind="tool_use"):
    return {"type": kind, "id": "toolu_1", "name": "Write", "input": value}


CITATION = {"type": "char_location", "cited_text": "x", "document_index": 0, "start_char_index": 1}
MESSAGES = [
    ("no blocks", message()),
    ("text", message({"type": "text", "text": "Hi \U0001f600 \u2028"})),
    ("empty text", message({"type": "text", "text": ""})),
    ("half an emoji", message({"type": "text", "text": "\ud83d"})),
    ("citations", message({"type": "text", "text": "x", "citations": [CITATION, CITATION]})),
    ("no citations", message({"type": "text", "text": "x", "citations": []})),
    ("null citations", message({"type": "text", "text": "x", "citations": None})),
    ("thinking", message({"type": "thinking", "thinking": "hm", "signature": "c2ln"})),
    ("thinking left out", message({"type": "thinking", "thinking": "", "signature": "c2ln"})),
    ("thinking unsigned", message({"type": "thinking", "thinking": "hm"})),
    ("redacted thinking", message({"type": "redacted_thinking", "data": "ZGF0YQ=="})),
    ("tool use", message(tool({"path": "/a", "text": "line\n\"quoted\" \\ \u00fc \ud83d"}))),
    ("empty input", message(tool({}))),
    ("nested input", message(tool({"a": [{"b": {"c": [1, None, True, -0.5, 1e300]}}], "": {}}))),
    ("huge integer", message(tool({"n": 10 ** 1000 + 7, "m": -(2 ** 64)}))),
    ("input that is a list", message(tool([1, {"a": 2}]))),
    ("tool use with more fields", message({**tool({"a": 1}), "caller": {"type": "direct"}})),
    ("large input", message(tool({"content": "0123456789abcde\n" * 4000}))),
    ("server tool use", message(tool({"query": "q"}, "server_tool_use"))),
    ("mcp tool use", message({**tool({"q": 1}, "mcp_tool_use"), "server_name": "s"})),
    ("web search result", message({"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1",
     "content": [{"type": "web_search_result", "url": "u", "encrypted_content": "x"}]})),
    ("web search error", message({"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1",
     "content": {"type": "web_search_tool_result_error", "error_code": "max_uses_exceeded"}})),
    ("unknown block", message({"type": "new", "text": "t", "thinking": "u", "input": {"a": 1},
     "signature": "s", "more": [1, {"deep": None}]})),
    ("unknown block, other citations", message({"type": "new", "citations": {"enabled": True}})),
    ("citations in words", message({"type": "new", "citations": "none"})),
    ("extra fields in known blocks", message({"type": "text", "text": "x", "new": {"a": [1]}})),
    ("many blocks", message(
        {"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "text", "text": "a"},
        tool({"a": 1}), tool({}), {"type": "text", "text": "b"}, {"type": "new"})),
    ("stop sequence", message(stop_reason="stop_sequence", stop_sequence="END")),
    ("no stop reason", message(stop_reason=None)),
    ("usage with all", message(usage={"input_tokens": 1, "output_tokens": 0, "service_tier": "s",
     "cache_creation": {"ephemeral_5m_input_tokens": 3}, "server_tool_use": None})),
    ("extra fields", message(container={"id": "c"}, context_management=None, new=[1])),
]
EACH = pytest.mark.parametrize(("name", "whole"), MESSAGES, **named(MESSAGES))


@EACH
def test_fold_inverts_telling(name, whole):
    before = copy.deepcopy(whole)
    assert events_to_message(message_to_events(whole)) == before
    assert whole == before, "the message itself was changed"


@EACH
def test_fold_inverts_telling_over_the_wire(name, whole):
    events = [json.loads(encode_json(event)) for event in message_to_events(whole)]
    assert events_to_message(events) == whole


@EACH
def test_told_messages_are_grammatical(name, whole):
    events = list(message_to_events(whole))
    assert list(check_grammar(events)) == events


@EACH
def test_blocks_start_empty(name, whole):
    """A client shows what deltas tell; what the start held already would be there twice."""
    events = list(message_to_events(whole))
    starts = [event["content_block"] for event in events if event["type"] == "content_block_start"]
    streamed = ("text", "thinking", "tool_use", "server_tool_use", "mcp_tool_use")
    members = ("text", "thinking", "signature", "input", "citations")
    told = [start for start in starts if start["type"] in streamed]
    assert not any(start.get(member) for start in told for member in members)


# --- the grammar ---------------------------------------------------------------------------------

START = {"type": "message_start", "message": message(stop_reason=None)}
PING = {"type": "ping"}
REPORT = {"type": "message_delta", "delta": {"stop_reason": None}, "usage": {"output_tokens": 1}}
END = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}}
STOP = {"type": "message_stop"}


def opened(index):
    block = {"type": "text", "text": ""}
    return {"type": "content_block_start", "index": index, "content_block": block}


def delta(index):
    told = {"type": "text_delta", "text": "x"}
    return {"type": "content_block_delta", "index": index, "delta": told}


def closed(index):
    return {"type": "content_block_stop", "index": index}


def block(index):
    return [opened(index), delta(index), closed(index)]


def without(event, member):
    return {key: value for key, value in event.items() if key != member}


GRAMMATICAL = [
    ("shortest", [START, END, STOP]),
    ("two blocks", [START, *block(0), *block(1), END, STOP]),
    ("a block without deltas", [START, opened(0), closed(0), END, STOP]),
    ("indexes with a gap", [START, *block(1), *block(4), END, STOP]),
    ("pings anywhere", [PING, START, PING, opened(0), PING, delta(0), closed(0), END, PING, STOP,
                        PING]),
    ("reports between", [START, REPORT, *block(0), REPORT, *block(1), END, STOP]),
    ("usage after the end", [START, *block(0), END, END, STOP]),
    ("no stop reason", [START, REPORT, STOP]),
    ("unknown types", [{"type": "new"}, START, opened(0), {"type": "new", "index": 9}, closed(0),
                       END, STOP, {"type": "new"}]),
    ("no type, or a strange one", [{}, {"type": None}, {"type": ["x"]}, START, END, STOP]),
    ("unknown deltas", [START, opened(0), {**delta(0), "delta": {"type": "new"}}, closed(0), END,
                        STOP]),
]


@pytest.mark.parametrize(("name", "events"), GRAMMATICAL, **named(GRAMMATICAL))
def test_grammatical(name, events):
    assert list(check_grammar(events)) == events


# (name, events, how many pass before the first that is refused)
MALFORMED = [
    ("nothing", [], 0),
    ("only a ping", [PING], 1),
    ("only a start", [START], 1),
    ("cut in a block", [START, opened(0), delta(0)], 3),
    ("cut between blocks", [START, *block(0)], 4),
    ("cut before message_stop", [START, *block(0), END], 5),
    ("no message_delta", [START, *block(0), STOP], 4),
    ("two starts", [START, START, END, STOP], 1),
    ("block before the start", [opened(0), START], 0),
    ("delta before the start", [delta(0)], 0),
    ("end before the start", [END, START, STOP], 0),
    ("stop before the start", [STOP], 0),
    ("block in a block", [START, opened(0), opened(1)], 2),
    ("the same block twice open", [START, opened(0), opened(0)], 2),
    ("delta without a block", [START, delta(0)], 1),
    ("delta after the block", [START, *block(0), delta(0)], 4),
    ("delta for another block", [START, opened(0), delta(1)], 2),
    ("delta without an index", [START, opened(0), without(delta(0), "index")], 2),
    ("stop of no block", [START, closed(0)], 1),
    ("stop of another block", [START, opened(1), closed(0)], 2),
    ("a block stopped twice", [START, *block(0), closed(0)], 4),
    ("an index again", [START, *block(0), *block(0)], 4),
    ("indexes backwards", [START, *block(1), *block(0)], 4),
    ("no index", [START, without(opened(0), "index")], 1),
    ("null index", [START, opened(None)], 1),
    ("an index in words", [START, opened("0")], 1),
    ("negative index", [START, opened(-1)], 1),
    ("end in a block", [START, opened(0), END], 2),
    ("report in a block", [START, opened(0), REPORT], 2),
    ("stop in a block", [START, REPORT, opened(0), STOP], 3),
    ("block after the end", [START, END, *block(0)], 2),
    ("two stops", [START, END, STOP, STOP], 3),
    ("end after the stop", [START, END, STOP, END], 3),
    ("block after the stop", [START, REPORT, STOP, *block(0)], 3),
    ("start after the stop", [START, END, STOP, START], 3),
    ("start without its message", [{"type": "message_start"}], 0),
    ("start without its block", [START, without(opened(0), "content_block")], 1),
    ("delta without its delta", [START, opened(0), without(delta(0), "delta")], 2),
    ("delta that is text", [START, opened(0), {**delta(0), "delta": "x"}], 2),
    ("end that is a list", [START, {**END, "delta": []}], 1),
]


@pytest.mark.parametrize(("name", "events", "passed"), MALFORMED, **named(MALFORMED))
def test_malformed(name, events, passed):
    got = []
    with pytest.raises(ProxyError) as caught:
        for event in check_grammar(events):
            got.append(event)
    assert caught.value.status == 502 and got == events[:passed]


# --- the writer ----------------------------------------------------------------------------------

WHOLE_BLOCKS = [whole["content"][0] for _, whole in MESSAGES if whole["content"]]
CALLS = [
    ("text", lambda pick: ("more text",)),
    ("text", lambda pick: ("",)),
    ("thinking", lambda pick: ("hm",)),
    ("signature", lambda pick: ("c2ln",)),
    ("tool_use", lambda pick: ("toolu_1", "Write")),
    ("input_json", lambda pick: ('{"a": 1}',)),
    ("block", lambda pick: (pick.choice(WHOLE_BLOCKS),)),
    ("close", lambda pick: ()),
    ("start", lambda pick: ()),
]


def scripted(seed):
    """Events of a sequence of calls, those included that the writer refuses."""
    pick, write, events, refused = random.Random(seed), EventWriter("msg_1", "m"), [], 0
    for _ in range(pick.randrange(60)):
        method, arguments = pick.choice(CALLS)
        try:
            events += getattr(write, method)(*arguments(pick))
        except ValueError:
            refused += 1
    events += write.finish(pick.choice(["end_turn", "tool_use", None]), {"output_tokens": 3})
    return write, events, refused


@pytest.mark.parametrize("seed", range(60))
def test_any_sequence_of_calls_is_grammatical(seed):
    write, events, _ = scripted(seed)
    assert list(check_grammar(events)) == events
    starts = [event for event in events if event["type"] == "content_block_start"]
    assert [event["index"] for event in starts] == list(range(write.blocks_begun))
    assert write.open_block == "" and len(events_to_message(events)["content"]) == len(starts)


def test_the_sequences_include_refused_calls():
    assert sum(scripted(seed)[2] for seed in range(60)) > 60


@pytest.mark.parametrize("seed", range(60))
def test_deltas_fit_their_block(seed):
    kinds = {"text_delta": "text", "thinking_delta": "thinking", "signature_delta": "thinking",
             "input_json_delta": "tool_use"}
    blocks = {}
    for event in scripted(seed)[1]:
        if event["type"] == "content_block_start":
            blocks[event["index"]] = event["content_block"]["type"]
        elif event["type"] == "content_block_delta" and event["delta"]["type"] in kinds:
            kind = blocks[event["index"]]
            assert kind == kinds[event["delta"]["type"]] or kind.endswith("_tool_use")


def types(events):
    return [event["type"].replace("content_block_", "") for event in events]


def test_text_continues_its_block_and_closes_others():
    write = EventWriter("msg_1", "m")
    assert types(write.text("a")) == ["message_start", "start", "delta"]
    assert types(write.text("b")) == ["delta"]
    assert types(write.thinking("c")) == ["stop", "start", "delta"]
    assert types(write.thinking("d")) == ["delta"]
    assert types(write.tool_use("t", "n")) == ["stop", "start"]
    assert types(write.tool_use("u", "n")) == ["stop", "start"]
    assert write.open_block == "tool_use" and write.blocks_begun == 4
    assert types(write.finish("tool_use", {})) == ["stop", "message_delta", "message_stop"]


def test_an_answer_without_blocks_is_whole():
    write = EventWriter("msg_1", "m", {"input_tokens": 9})
    events = write.finish("stop_sequence", {"output_tokens": 1}, stop_sequence="END")
    whole = events_to_message(check_grammar(events))
    assert whole == message(stop_reason="stop_sequence", stop_sequence="END",
                            usage={"input_tokens": 9, "output_tokens": 1})


def test_the_written_folds_to_what_was_meant():
    write = EventWriter("msg_1", "m")
    events = [*write.thinking("h"), *write.thinking("m"), *write.signature("s"),
              *write.text("\ud83d"), *write.text("\ude00"),
              *write.tool_use("toolu_1", "Write"), *write.input_json('{"a":'),
              *write.input_json(" 1}"), *write.tool_use("toolu_2", "Ls"),
              *write.finish("tool_use", {"input_tokens": 5, "output_tokens": 7})]
    whole = json.loads(encode_json(events_to_message(check_grammar(events))))
    assert whole == message(
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        {"type": "text", "text": "\U0001f600"}, tool({"a": 1}),
        {"type": "tool_use", "id": "toolu_2", "name": "Ls", "input": {}}, stop_reason="tool_use")


@pytest.mark.parametrize("method", ["signature", "input_json"])
def test_deltas_without_their_block_are_refused(method):
    write = EventWriter("msg_1", "m")
    write.text("x")
    with pytest.raises(ValueError):
        getattr(write, method)("y")


# --- folding -------------------------------------------------------------------------------------

INPUTS = [
    ("object", '{"a": [1]}', {"a": [1]}),
    ("nothing", "", {}),
    ("blanks", " \n", {}),
    ("null", "null", {}),
    ("cut", '{"a": 1', {"__unparsedToolInput": {"raw": '{"a": 1', "len": 7}}),
    ("words", "ls -l", {"__unparsedToolInput": {"raw": "ls -l", "len": 5}}),
    ("no JSON number", '{"a": NaN}', {"__unparsedToolInput": {"raw": '{"a": NaN}', "len": 10}}),
    ("infinity", "-Infinity", {"__unparsedToolInput": {"raw": "-Infinity", "len": 9}}),
    ("too deep", "[" * 200000, {"__unparsedToolInput": {"raw": "[" * 200000, "len": 200000}}),
]


@pytest.mark.parametrize(("name", "text", "expected"), INPUTS, **named(INPUTS))
def test_parse_tool_input(name, text, expected):
    assert parse_tool_input(text) == expected


def test_later_usage_replaces_earlier_but_for_nulls():
    last = {**END, "usage": {"input_tokens": None, "output_tokens": 99, "new": 1}}
    whole = events_to_message([START, REPORT, *block(0), last, STOP])
    assert whole["usage"] == {"input_tokens": 5, "output_tokens": 99, "new": 1}
    assert START["message"]["usage"] == {"input_tokens": 5, "output_tokens": 7}
