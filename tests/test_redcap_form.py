"""What goes to SecureChatAI, field by field."""

from __future__ import annotations

import json
from urllib.parse import parse_qsl

import pytest

from claude_proxy.config import REDCAP_KNOWN_ALIASES
from claude_proxy.errors import ProxyError
from claude_proxy.upstreams.redcap_form import (
    CALLS_SCHEMA,
    FIRST_MESSAGE,
    IMAGE_NOTE,
    encode_form,
    envelope,
    flat_prompt,
    messages_fields,
    plain_messages,
    redcap_output_cap,
    redcap_window,
    schema_fields,
    schema_text,
)

PNG = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBO"}}
URL_IMAGE = {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}}


def text(words):
    return {"type": "text", "text": words}


def user(content):
    return {"role": "user", "content": content}


def model(content):
    return {"role": "assistant", "content": content}


CONVERSATIONS = [
    ("strings", [user("a"), model("b"), user("c")], [user("a"), model("b"), user("c")]),
    ("blocks", [user([text("a"), text("b")])], [user("a\n\nb")]),
    ("neighbours", [user("a"), user([text("b")]), model("c"), model("d")], [user("a\n\nb"), model("c\n\nd")]),
    ("empty ones", [user("a"), model(""), model([]), user([text(" \n")]), user("b")], [user("a\n\nb")]),
    ("thoughts alone", [user("a"), model([{"type": "thinking", "thinking": "t", "signature": "s"}]), user("b")],
     [user("a\n\nb")]),
    ("begins with the model", [model("a"), user("b")], [user(FIRST_MESSAGE), model("a"), user("b")]),
    ("nothing", [user("")], [user(FIRST_MESSAGE)]),
    ("system in the middle", [user("a"), {"role": "system", "content": [text("typed meanwhile")]}],
     [user("a\n\n<system-message>\ntyped meanwhile\n</system-message>")]),
    ("an unknown role", [{"role": "sage", "content": "a"}], [user("a")]),
    ("an unknown block", [user([{"type": "rune", "text": "a"}])], [user("a")]),
    ("an image, not allowed", [user([text("see"), PNG])], [user(f"see\n\n{IMAGE_NOTE}")]),
    ("half a surrogate", [user("a\ud800b"), model([text("\udc00")])], [user("a\ufffdb"), model("\ufffd")]),
    ("an emoji", [user("\U0001f600")], [user("\U0001f600")]),
    ("0", [user("0")], [user("0")]),
]


@pytest.mark.parametrize("name,messages,expected", CONVERSATIONS, ids=[row[0] for row in CONVERSATIONS])
def test_conversations_become_plain_strings(name, messages, expected):
    before = json.dumps(messages)
    assert plain_messages({"model": "claude-x", "messages": messages}, False, []) == expected
    assert json.dumps(messages) == before


IMAGES = [
    ("claude", "claude-opus-4-7", PNG, {"type": "image", "source": PNG["source"]}),
    ("others", "gpt-4-1", PNG, {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBO"}}),
    ("a URL", "gpt-4-1", URL_IMAGE, {"type": "image_url", "image_url": {"url": "https://x/y.png"}}),
]


@pytest.mark.parametrize("name,alias,image,part", IMAGES, ids=[row[0] for row in IMAGES])
def test_images_where_they_are_allowed(name, alias, image, part):
    messages = [user("a"), model("b"), user([text("see"), image])]
    turns = plain_messages({"model": alias, "messages": messages}, True, [])
    assert turns == [user("a"), model("b"), user([text("see"), part])]


def test_the_first_message_is_a_string_even_if_it_has_an_image():
    """The module dies of any other."""
    turns = plain_messages({"model": "claude-x", "messages": [user([text("see"), PNG])]}, True, [])
    assert turns == [user(FIRST_MESSAGE), user([text("see"), PNG])]


@pytest.mark.parametrize("messages", [["a"], [user(5)], [user(["a", 5])]])
def test_what_is_no_message_is_refused_by_place(messages):
    with pytest.raises(ProxyError) as caught:
        plain_messages({"model": "m", "messages": messages}, False, [])
    assert caught.value.status == 400 and caught.value.message.startswith("messages.0")


FULL = {"model": "gpt-4-1", "messages": [user("a")], "system": [text("S1"), text("S2")], "max_tokens": 100,
        "temperature": 0.5, "top_p": 1, "stop_sequences": ["END", "X"], "stream": True, "metadata": {"user_id": "u"}}


@pytest.mark.parametrize("request_,fields", [
    (FULL, {"model": "gpt-4-1", "system": "S1\n\nS2", "messages": '[{"role":"user","content":"a"}]', "max_tokens": "100",
            "temperature": "0.5", "top_p": "1", "stop[0]": "END", "stop[1]": "X"}),
    ({"model": "o3", "messages": [user("a")], "system": "", "temperature": None},
     {"model": "o3", "messages": '[{"role":"user","content":"a"}]'}),
    ({"model": "o3", "messages": [user("a")], "system": [text("x-anthropic-billing-header: cc_version=1"), text("S")]},
     {"model": "o3", "system": "S", "messages": '[{"role":"user","content":"a"}]'}),
], ids=["everything", "nothing blank", "the attribution is left out"])
def test_fields(request_, fields):
    assert dict(messages_fields(request_, False, [])) == fields


def test_the_form_keeps_every_character():
    words = 'a&b=c+d%20 "x" \\ \n \u00fc\u20ac\U0001f600'
    sent = encode_form([*envelope("T" * 32, "messages"), *messages_fields(
        {"model": "m", "messages": [user(words)], "system": words}, False, [])])
    fields = dict(parse_qsl(sent.decode("ascii"), strict_parsing=True))
    assert fields["system"] == words and json.loads(fields["messages"]) == [user(words)]
    assert list(fields)[:6] == ["token", "content", "prefix", "action", "format", "returnFormat"]


def test_the_flat_prompt_says_whose_turn_it_is():
    request = {"model": "claude", "system": "S", "messages": [user("a"), model("b"), user("c")]}
    assert flat_prompt(request, []) == "System: S\n\nUser: a\n\nAssistant: b\n\nUser: c\n\nAssistant:"


def test_schema_mode_asks_for_text_and_calls():
    fields = dict(schema_fields({"model": "gpt-4-1", "messages": [user("a")]}, []))
    assert json.loads(fields["json_schema"]) == CALLS_SCHEMA
    assert fields["prompt"].startswith("User: a\n\nSystem: Write this answer as one JSON object")
    assert fields["prompt"].endswith("\n\nAssistant:")


@pytest.mark.parametrize("answer,expected", [
    ('{"text":"Look.","calls":[{"name":"Read","arguments":"{\\"p\\":1}"}]}',
     'Look.\n\n<tool_call>\n{"name":"Read","input":"{\\"p\\":1}"}\n</tool_call>'),
    ('{"text":"Done.","calls":[]}', "Done."),
    ("no JSON", "no JSON"),
    ('{"text":"x"}', '{"text":"x"}'),
    ('{"calls":[7]}', '{"calls":[7]}'),
])
def test_schema_answers_become_text(answer, expected):
    assert schema_text(answer) == expected


@pytest.mark.parametrize("alias,window,cap", [
    ("claude-opus-4-7", 200_000 - 16384, 16384), ("claude-haiku-4.5", 200_000 - 8192, 8192),
    ("claude-haiku-4-5", 200_000 - 16384, 16384), ("claude-sonnet-4", 184_000, 16000), ("gpt-4-1", 1_000_000, 0),
    ("gpt-4.1", 1_000_000, 0), ("gpt-5-4", 400_000, 0), ("o3-mini", 200_000, 0), ("gemini-2.5-pro", 1_000_000, 0),
    ("deepseek-r1", 128_000, 0), ("whatever", 128_000, 0),
])
def test_windows(alias, window, cap):
    assert (redcap_window(alias), redcap_output_cap(alias)) == (window, cap)


def test_every_alias_has_a_window():
    assert all(redcap_window(alias) > 100_000 for era in REDCAP_KNOWN_ALIASES.values() for alias in era)
