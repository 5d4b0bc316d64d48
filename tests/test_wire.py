"""Transcripts: bytes as providers send them, and the events that they become.

`NAME.sse` holds the bytes, `NAME.txt` the events in short: `+` opens a block, `-` closes it, `end`
is message_delta, `error` what is raised. Each is read whole, byte by byte and cut in two everywhere.
"""

from __future__ import annotations

import pytest

from claude_proxy.dialects.chat_stream import ChatAsked, chat_chunks, chunks_to_events
from claude_proxy.errors import ProxyError
from claude_proxy.events import EventWriter, check_grammar, events_to_message
from tests.support import ROOT

TRANSCRIPTS = sorted((ROOT / "tests/wire/chat").glob("*.sse"))


def in_short(event):
    """One event as a line of a .txt file."""
    kind = event["type"]
    if kind == "content_block_start":
        block = event["content_block"]
        return " ".join(filter(None, ["+" + block["type"], block.get("id"), block.get("name")]))
    if kind == "content_block_delta":
        name, value = next((k, v) for k, v in event["delta"].items() if k != "type")
        return f"{'json' if name == 'partial_json' else name} {value}"
    if kind == "message_delta":
        usage = event["usage"]
        figures = f"in={usage['input_tokens']} read={usage.get('cache_read_input_tokens')} out={usage['output_tokens']}"
        return f"end {event['delta']['stop_reason']} {figures}"
    return {"message_start": "start", "content_block_stop": "-", "message_stop": "stop"}[kind]


def retell(pieces):
    """The lines that pieces of a body become; an error is the last one."""
    lines, write = [], EventWriter("msg_test", "claude-test")
    try:
        for event in check_grammar(chunks_to_events(chat_chunks(pieces), write, ChatAsked(input_estimate=lambda: 77))):
            lines.append(in_short(event))
    except ProxyError as error:
        lines.append(f"error {error.status} {error.error_type} {error.message}")
    return "\n".join(lines) + "\n"


def cuts(raw):
    yield [raw]
    yield [raw[i:i + 1] for i in range(len(raw))]
    for cut in range(1, len(raw)):
        yield [raw[:cut], raw[cut:]]


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=[path.stem for path in TRANSCRIPTS])
def test_transcripts_at_every_split(path):
    raw, expected = path.read_bytes(), path.with_suffix(".txt").read_text(encoding="utf-8")
    for pieces in cuts(raw):
        assert retell(iter(pieces)) == expected


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=[path.stem for path in TRANSCRIPTS])
def test_no_prefix_of_a_stream_looks_whole(path):
    """Cut before its finish reason, a stream is an error, whatever has been told."""
    raw = path.read_bytes()
    finish = raw.find(b'"finish_reason":"')
    if finish < 0 or b"error" in path.stem.encode() or raw[:1] == b"{":
        return
    for end in range(0, finish, 7):
        assert retell(iter([raw[:end]])).splitlines()[-1].startswith("error "), end


def test_the_fold_of_a_transcript_is_the_message():
    raw = (ROOT / "tests/wire/chat/openai_text_and_tool.sse").read_bytes()
    events = chunks_to_events(chat_chunks([raw]), EventWriter("msg_test", "claude-test"))
    message = events_to_message(check_grammar(events))
    assert message["content"] == [{"type": "text", "text": "I look"},
                                  {"type": "tool_use", "id": "call_A", "name": "Read", "input": {"p": 1}}]
    assert (message["stop_reason"], message["model"]) == ("tool_use", "claude-test")


@pytest.mark.parametrize("used,found", [
    ((), "call_A"), (("call_B",), "call_A"), (("call_A",), "call_A_2"), (("call_A", "call_A_2"), "call_A_3"),
])
def test_a_call_gets_an_id_that_the_conversation_has_not_had(used, found):
    raw = (ROOT / "tests/wire/chat/openai_text_and_tool.sse").read_bytes()
    events = chunks_to_events(chat_chunks([raw]), EventWriter("msg_test", "claude-test"), ChatAsked(used_ids=used))
    assert events_to_message(events)["content"][1]["id"] == found
