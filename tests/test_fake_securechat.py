"""The fake itself: golden vectors of the module it imitates, and REDCap's checks before it."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from urllib.parse import urlencode, urlsplit

import pytest

from tests.fake_securechat.__main__ import answer
from tests.fake_securechat.module import NETWORK, NO_MESSAGES, NO_PROMPT, TECHNICAL
from tests.fake_securechat.server import FAULTS, NO_RIGHTS, Fake
from tests.fake_securechat.text import REWRITTEN, PhpFatal, passed_text
from tests.support import wait_until

pytestmark = pytest.mark.usefixtures("no_thread_left")

TOKEN = "A" * 32
HI = json.dumps([{"role": "user", "content": "hi"}])
CALL = '<tool_call>\n{"x":"a \\u0026lt; b"}\n</tool_call>'

# What the model said -> what a client gets from a Claude alias, and from another if that differs.
VECTORS = [
    ("a &amp; b &lt;div&gt; &#39;s&#39; &apos;t&apos; &amp;amp;", "a & b <div> 's' &apos;t&apos; &amp;", None),
    ("p = &sum; q = &delta; f(&x); a && b", "p = \u2211 q = \u03b4 f(&x); a && b", None),
    ("&#8; &#x80; &#xD800; &#x41;", "&#8; &#x80; &#xD800; A", None),
    (" \n lead \n", "lead", None),
    ('{"a":1,"input":{}}', '{"a":1,"input":{}}', '{"a":1,"input":[]}'),
    ('{"e":"&lt;b&gt;"}', '{"e":"<b>"}', '{"e":"&lt;b&gt;"}'),
    ('{"a":"&quot;x&quot;"}', '{"a":""x""}', None),
    ('{"a":"\\u0026quot;x\\u0026quot;"}', '{"a":"\\u0026quot;x\\u0026quot;"}', '{"a":"&quot;x&quot;"}'),
    ('{"message":"MM","x":2}', "MM", '{"message":"MM","x":2}'),
    ('{"content":"CC"}', "CC", '{"content":"CC"}'),
    ('{"content":[{"type":"text","text":"z"}]}', PhpFatal, '{"content":[{"type":"text","text":"z"}]}'),
    ('{"tool_call":{"name":"x"}}', REWRITTEN, '{"tool_call":{"name":"x"}}'),
    ('```json\n{"content":"z"}\n```', "z", None),
    ('```json\n{"t":"x"}\n```\ntail', '{"t":"x"}\n```\ntail', None),
    ('see {"final_answer": "in"} end', 'in"} end', None),
    ('{"final_answer":"a\\nb"}', "a\nb", '{"final_answer":"a\\nb"}'),
    ('[{"a":{}}]', '[{"a":{}}]', None),
    ("{}", "{}", "[]"),
    ('{"0":1,"1":2.0,"u":"\u00fc/"}', '{"0":1,"1":2.0,"u":"\u00fc/"}', '{"0":1,"1":2,"u":"\\u00fc\\/"}'),
    ('{"n":1e400}', '{"n":1e400}', False),
    (CALL, CALL, None),
]


@pytest.mark.parametrize("said,claude,others", VECTORS)
@pytest.mark.parametrize("is_claude", [True, False])
def test_what_becomes_of_a_text(said, claude, others, is_claude):
    expected = claude if is_claude or others is None else others
    if expected is PhpFatal:
        with pytest.raises(PhpFatal):
            passed_text(said, is_claude)
    else:
        assert passed_text(said, is_claude) == expected


# --- asking it --------------------------------------------------------------------------------------


@pytest.fixture
def fake():
    with Fake(token=TOKEN) as started:
        yield started


def post(fake, path=None, method="POST", raw=None, **fields):
    """(status, body) of one request; the envelope is complete unless a field says otherwise."""
    envelope = {"token": TOKEN, "content": "externalModule", "prefix": "secure_chat_ai", "action": "messages",
                "format": "json", "returnFormat": "json"}
    given = {k: v for k, v in {**envelope, **fields}.items() if v is not None}
    parts = urlsplit(fake.url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=5)
    with contextlib.closing(connection):
        body = urlencode(given) if raw is None else raw
        connection.request(method, path or parts.path, body, {"Content-Type": "application/x-www-form-urlencoded"})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def ask(fake, **fields):
    status, body = post(fake, **{"messages": HI, **fields})
    assert status == 200
    return json.loads(body)


ENVELOPE = [
    ({"token": "B" * 32}, 403, NO_RIGHTS), ({"token": None}, 403, NO_RIGHTS), ({"token": ""}, 403, NO_RIGHTS),
    ({"content": "record"}, 400, "not known"), ({"prefix": "other"}, 400, "not known"),
    ({"returnFormat": "yaml"}, 406, ""), ({"action": "getSession"}, 400, "not allowed"),
    ({"action": "__info"}, 200, '"messages"'), ({"method": "GET"}, 501, "not implemented"),
    ({"path": "/api"}, 301, ""), ({"path": "/"}, 200, "Log In"), ({"raw": "x" * 100}, 403, NO_RIGHTS),
    ({"token": "B" * 32, "returnFormat": None}, 403, "<hash><error>"),
    ({"token": "B" * 32, "returnFormat": "csv"}, 403, "ERROR: "),
]


@pytest.mark.parametrize("fields,status,words", ENVELOPE)
def test_the_checks_before_the_module(fake, fields, status, words):
    found = post(fake, **fields)
    assert found[0] == status and words in found[1]
    assert not fake.requests[-1].upstream


CLAUDE = {"anthropic_version": "bedrock-2023-05-31", "messages": [{"role": "user", "content": "hi"}]}
FULL = {"max_tokens": "100", "temperature": "1", "system": "S1", "top_p": ".5", "stop": "END", "tools": "[]",
        "stream": "true"}
USER = [{"role": "user", "content": "hi"}]
# (fields, what the model's provider is sent)
BODIES = [
    ({"model": "claude-sonnet-4.6", **FULL}, {**CLAUDE, "max_tokens": 16384, "system": "S1", "temperature": 1}),
    ({"model": "claude-opus-4-7", **FULL}, {**CLAUDE, "max_tokens": 16384, "system": "S1"}),
    ({"model": "claude-haiku-4.5"}, {**CLAUDE, "max_tokens": 8192, "temperature": 0.7}),
    ({"model": "gpt-4-1", "system": "S1", "stop": "END", "max_tokens": "100"},
     {"temperature": 0.7, "top_p": 0.9, "frequency_penalty": 0.5, "presence_penalty": 0, "stop": "END",
      "model": "gpt-4-1", "messages": [{"role": "system", "content": "S1"}, *USER]}),
    ({"model": "o3", "max_tokens": "100"}, {"model": "o3", "messages": USER, "max_completion_tokens": 100}),
    ({"model": None}, {"model": "o3-mini", "messages": USER, "max_completion_tokens": 4096,
                       "reasoning_effort": "medium"}),
]


@pytest.mark.parametrize("fields,sent", BODIES)
def test_what_the_provider_is_sent(fake, fields, sent):
    assert ask(fake, **fields)["usage"] == {"input_tokens": 10, "output_tokens": 5}
    assert fake.requests[-1].upstream == [sent]


@pytest.mark.parametrize("messages", [None, "", "[]", '[{"role":', '[{"role":"user","content":"\\ud800"}]'])
def test_messages_that_are_none(fake, messages):
    status, body = post(fake, messages=messages, model="gpt-4-1")
    assert (status, json.loads(body)) == (400, NO_MESSAGES)


@pytest.mark.parametrize("model,vendor,text,usage,attempts", [
    ("no-such-alias", {}, NETWORK, (0, 0), 0), ("", {}, NETWORK, (0, 0), 0),
    ("claude-opus-4-7", {"status": 429}, NETWORK, (0, 0), 3), ("gpt-4-1", {"status": 500}, NETWORK, (0, 0), 3),
    ("gpt-4-1", {"error": "no"}, TECHNICAL, (0, 0), 1), ("claude-opus-4-7", {"error": "no"}, "", (0, 0), 1),
    ("gpt-4-1", {"text": None, "tool_calls": [{}]}, "", (10, 5), 1),
    ("claude-opus-4-7", {"text": "", "blocks": [{"type": "thinking"}, {"type": "text", "text": "x"}]}, "", (10, 5), 1),
])
def test_failures_are_polite_answers(fake, model, vendor, text, usage, attempts):
    for _ in range(3):
        fake.vendor.push(**vendor)
    reply = ask(fake, model=model)
    assert reply["content"] == [{"type": "text", "text": text}]
    assert tuple(reply["usage"].values()) == usage and len(fake.requests[-1].upstream) == attempts


@pytest.mark.parametrize("model,cap,output,reason", [
    ("claude-opus-4-7", "32000", 16384, "end_turn"), ("claude-opus-4-7", "5", 6, "max_tokens"),
    ("o3-mini", "3", 9, "end_turn"),
])
def test_the_stop_reason_is_noise(fake, model, cap, output, reason):
    fake.vendor.push(text="x", output=output)
    assert ask(fake, model=model, max_tokens=cap)["stop_reason"] == reason


def test_the_module_dies_of_a_first_message_that_is_no_string(fake):
    blocks = json.dumps([{"role": "user", "content": [{"type": "text", "text": "hi"}]}])
    assert post(fake, messages=blocks, model="claude-opus-4-7") == (500, "")
    assert ask(fake, messages=blocks, model="claude-opus-4-7", system="shields")["content"]


SCHEMA = {"type": "object"}


@pytest.mark.parametrize("fields,said,content", [
    ({"model": "gpt-4-1"}, "plain", "plain"), ({"model": "gpt-4-1"}, '{"a":{}}', {"a": []}),
    ({"model": "gpt-4-1"}, "{}", "[]"), ({"model": "gpt-4-1"}, "[1,{}]", "[1,{}]"),
    ({"model": "claude-opus-4-7"}, '{"a":1}', '{"a":1}'), ({}, "x", NETWORK),
])
def test_call_ai(fake, fields, said, content):
    fake.vendor.push(text=said)
    reply = ask(fake, action="callAI", messages=None, prompt="p", **fields)
    assert reply["status"] == "success"
    assert reply["content"] == content or (content == "[]" and reply["content"] in ([], "[]"))


def test_call_ai_schemas_and_missing_prompts(fake):
    ask(fake, action="callAI", prompt="p", model="gpt-4-1", json_schema=json.dumps(SCHEMA))
    wanted = {"name": "response", "strict": True, "schema": SCHEMA}
    assert fake.requests[-1].upstream[0]["response_format"]["json_schema"] == wanted
    for alias in ("claude-opus-4-7", "gemini-2.5-pro"):
        ask(fake, action="callAI", prompt="p", model=alias, json_schema=json.dumps(SCHEMA))
        assert "response_format" not in fake.requests[-1].upstream[0]
    status, body = post(fake, action="callAI", prompt="0")
    assert (status, json.loads(body)) == (400, NO_PROMPT)


def test_older_eras():
    with Fake(token=TOKEN, era="2026-01") as fake:
        assert ask(fake, model="claude-3-7-sonnet-20250219", system="S")["usage"]["input_tokens"] == 10
        assert fake.requests[-1].upstream == [{"prompt_text": "System: S\n\nUser: hi"}]
        assert ask(fake, model="claude-opus-4-7")["usage"]["input_tokens"] == 0
    with Fake(token=TOKEN, era="2025") as fake:
        assert post(fake, messages=HI)[0] == 400
        assert "messages" not in json.loads(post(fake, action="__info")[1])["auth-actions"]


@pytest.mark.parametrize("kind", sorted(FAULTS))
def test_every_fault_is_one_answer_or_none(fake, kind):
    args = {"redirect": {"to": "http://127.0.0.1:9/"}, "slow": {"seconds": 0.05}, "slow_error": {"seconds": 0.05}}
    fake.fault.push(kind, **args.get(kind, {}))
    if kind == "never":
        with socket.create_connection(("127.0.0.1", urlsplit(fake.url).port)) as client:
            client.sendall(b"POST /api/ HTTP/1.1\r\nhost: x\r\n\r\n")
            wait_until(lambda: fake.requests)
        assert fake.requests[0].closed_by_peer.wait(3)
        return
    with contextlib.suppress(http.client.HTTPException, OSError):
        assert post(fake, messages=HI, model="o3")[0] in (200, 302, 403, 500, 501, 504)
    assert len(fake.requests) == 1 and ask(fake, model="o3")["content"]


def test_the_play_decides_by_what_is_asked(fake):
    fake.vendor.play = lambda body: {"text": body["messages"][-1]["content"].upper(), "input": 3}
    assert ask(fake, model="o3")["content"][0]["text"] == "HI"


@pytest.mark.parametrize("last,words", [
    ("hello", "This is the fake SecureChatAI"), ('call: Bash {"command": "a && b"}', 'Bash", "input": {"command": "a \\u0026'),
    ("<tool_result id=1>", "That is all I wanted"),
])
def test_the_fake_run_by_hand_calls_what_it_is_told(last, words):
    body = {"system": "</tool_call>", "messages": [{"role": "user", "content": last}]}
    assert words in answer(body)
