"""The fake SecureChatAI does what the PHP does. Every expected value was seen from the PHP itself,
susom/secureChatAI at commit 6992d40 (and, for the older module, 1478c6a), or is REDCap's own word."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
import time
from urllib.parse import urlencode

import pytest

from tests.fake_securechat.__main__ import GREETING, call_text, played
from tests.fake_securechat.module import CRASH, ERAS, NO_MESSAGES, Reply, installed, run
from tests.fake_securechat.server import (
    BAN,
    CANNED_TEXT,
    CRASH_PAGE,
    CUTS,
    DATABASE,
    FAULTS,
    FIREWALL,
    LOGIN,
    NO_RIGHTS,
    OUT_OF_MEMORY,
    WARNING,
    Fake,
    form_fields,
)
from tests.fake_securechat.text import (
    NETWORK_APOLOGY,
    REPHRASE_APOLOGY,
    TECHNICAL_APOLOGY,
    as_float,
    as_int,
    html_decode,
    php_decode,
    php_encode,
)
from tests.support import RawClient, wait_until

pytestmark = pytest.mark.usefixtures("no_thread_left")

TOKEN = "A" * 32
HI = [{"role": "user", "content": "hi"}]
CLAUDE, CHAT, EARLY = "claude-sonnet-4.6", "gpt-4-1", "2026-01"
A8, A9 = NETWORK_APOLOGY, TECHNICAL_APOLOGY
SCHEMA = {"type": "object", "properties": {}, "required": []}


def em(action="messages", reply=Reply("hello"), era="2026-06", aliases=None, **fields):
    """One request to the module, without REDCap: what is no text becomes JSON."""
    texts = {k: v if isinstance(v, (str, list)) else json.dumps(v) for k, v in fields.items()}
    return run(installed(era, aliases), action, texts, lambda body: reply)


def ask_messages(model=CLAUDE, messages=HI, reply=Reply("hello"), era="2026-06", **fields):
    """`messages` as a client sends it: a JSON text."""
    return em("messages", reply, era, model=model, messages=json.dumps(messages), **fields)


def told(outcome):
    return json.loads(outcome.body)


def text_of(outcome):
    return CRASH if outcome.body == CRASH else told(outcome)["content"][0]["text"]


def rows(table):
    """Rows whose first item names them."""
    return pytest.mark.parametrize("row", [row[1:] for row in table], ids=[row[0] for row in table])


# --- PHP ------------------------------------------------------------------------------------------

# (a form field, (int), (float))
CASTS = [
    ("12x", 12, 12), ("abc", 0, 0), ("", 0, 0), (" 7", 7, 7), ("1e3", 1000, 1000), ("1.9", 1, 1.9),
    (".5", 0, 0.5), ("0x1A", 0, 0), ("-", 0, 0), ("\u00a07", 0, 0), ("-3", -3, -3), ("1e30", 2**63 - 1, 1e30),
    ("99999999999999999999", 2**63 - 1, 1e20), ("9007199254740993", 9007199254740993, 9007199254740992.0),
    (["1"], 1, 1), ([], 0, 0),
]


@pytest.mark.parametrize("value,whole,real", CASTS)
def test_casts(value, whole, real):
    assert (as_int(value), as_float(value)) == (whole, real)


# (JSON, what PHP writes after it has read it; None: it cannot read it, False: not write it)
JSON = [
    ("{}", "[]"), ('{"a":{}}', '{"a":[]}'), ('{"0":1,"1":2}', "[1,2]"), ('{"1":2,"0":1}', '{"1":2,"0":1}'),
    ('{"00":1}', '{"00":1}'), ('{"a":1,"b":2,"a":3}', '{"a":3,"b":2}'), ("[1.0,-0,-0.0]", "[1,0,-0]"),
    ("[9223372036854775807,9223372036854775808]", "[9223372036854775807,9.223372036854776e+18]"),
    ("[1e16,1e17,1e18,0.0001,0.00001,1.5e300]", "[10000000000000000,1.0e+17,1.0e+18,0.0001,1.0e-5,1.5e+300]"),
    ('["a/b \u00e9 \U0001f600 \x7f \\u0001"]', '["a\\/b \\u00e9 \\ud83d\\ude00 \x7f \\u0001"]'),
    ("[1e400]", False), ('["\\ud800"]', None), ("[NaN]", None), ("[True]", None), ('["\n"]', None), ("\ufeff[]", None),
    ("[" * 511 + "]" * 511, 0), ("[" * 512 + "]" * 512, None),
]


@pytest.mark.parametrize("text,written", JSON, ids=[row[0][:30] for row in JSON])
def test_json(text, written):
    if written is None:
        with pytest.raises(ValueError):
            php_decode(text)
    elif written == 0 and written is not False:
        assert php_decode(text)
    else:
        assert (php_encode(php_decode(text)) or False) == written


ENTITIES = [
    ("&#39;&#039;&#x27;&#X27;", "''''"), ("&apos; &lt &alpha", "&apos; &lt &alpha"), ("&lang;&Alpha;", "\u2329\u0391"),
    ("&#8; &#127; &#128; &#159; &#xD800; &#1114112;", "&#8; &#127; &#128; &#159; &#xD800; &#1114112;"),
    ("&#9;&#10;&#13;&#126;&#160;&#xD7FF;", "\t\n\r~\u00a0\ud7ff"), ("&amp;lt; &&lt; &#&lt; &x;", "&lt; &< &#< &x;"),
    ("&#" + "9" * 30 + ";", "&#" + "9" * 30 + ";"),
]


@pytest.mark.parametrize("text,decoded", ENTITIES)
def test_entities(text, decoded):
    assert html_decode(text) == decoded


# (a form, its fields)
FORMS = [
    ("a=1&a=2", {"a": "2"}), ("a.b c=1&noval&=5", {"a_b_c": "1", "noval": ""}), ("a[]=1&a[]=2", {"a": ["1", "2"]}),
    ("stop[0]=x&stop[1]=y", {"stop": ["x", "y"]}), ("a[0][k]=v&a[1]=w", {"a": [{"k": "v"}, "w"]}),
    ("a[k]=1&a[l]=2", {"a": {"k": "1", "l": "2"}}), ("a[1]=x", {"a": {"1": "x"}}), ("a[b=2", {"a_b": "2"}),
    ("a=1&a[b]=2", {"a": {"b": "2"}}), ("a[b]=1&a=2", {"a": "2"}), ("a%5B0%5D=%C3%A9+%26%zz", {"a": ["\u00e9 &%zz"]}),
    ("[x]=1&a[ ]=y", {"a": ["y"]}), ("a=%FF", {"a": "\udcff"}), ("a[b]c[d]=1", {"a": {"b": "1"}}),
]


@pytest.mark.parametrize("body,fields", FORMS)
def test_forms(body, fields):
    headers = {"content-type": "application/x-www-form-urlencoded; charset=UTF-8"}
    assert form_fields(headers, body.encode(), 1000) == fields


def test_forms_in_parts():
    parts = [("token", "t"), ("a[]", "x\r\n--y"), ('f"; filename="n', "file"), ("a[]", "")]
    body = "".join(f'--XX\r\nContent-Disposition: form-data; name="{n}"\r\n\r\n{v}\r\n' for n, v in parts) + "--XX--\r\n"
    headers = {"content-type": 'multipart/form-data; boundary="XX"'}
    assert form_fields(headers, body.encode(), 1000) == {"token": "t", "a": ["x\r\n--y", ""]}


@pytest.mark.parametrize("kind,body", [("application/json", b'{"token":"x"}'), ("", b"a=1"),
                                       ("application/x-www-form-urlencoded", b"a=" + b"x" * 1000)])
def test_what_has_no_fields(kind, body):
    assert form_fields({"content-type": kind}, body, 1000) == {}


# --- the text -------------------------------------------------------------------------------------

CALL = '<tool_call>\n{"x":"a \\u0026lt; b"}\n</tool_call>'
# What the model said -> what a client gets from Claude's alias, and from another if that differs.
VECTORS = [
    ("a &amp; b &lt;div&gt; &#39;s&#39; &apos;t&apos; &amp;amp;", "a & b <div> 's' &apos;t&apos; &amp;"),
    ("p = &sum; q = &delta; f(&x); a && b", "p = \u2211 q = \u03b4 f(&x); a && b"),
    (" \n lead \n", "lead"),
    ('{"a":1,"input":{}}', '{"a":1,"input":{}}', '{"a":1,"input":[]}'),
    ('{"e":"&lt;b&gt;"}', '{"e":"<b>"}', '{"e":"&lt;b&gt;"}'),
    ('{"a":"&quot;x&quot;"}', '{"a":""x""}'),
    ('{"a":"\\u0026quot;x\\u0026quot;"}', '{"a":"\\u0026quot;x\\u0026quot;"}', '{"a":"&quot;x&quot;"}'),
    ('{"message":"MM","x":2}', "MM", '{"message":"MM","x":2}'),
    ('{"content":"CC"}', "CC", '{"content":"CC"}'),
    ('{"content":[{"type":"text","text":"z"}]}', CRASH, '{"content":[{"type":"text","text":"z"}]}'),
    ('{"tool_call":{"name":"x"}}', REPHRASE_APOLOGY, '{"tool_call":{"name":"x"}}'),
    ('```json\n{"content":"z"}\n```', "z"),
    ('```json\n{"t":"x"}\n```\ntail', '{"t":"x"}\n```\ntail'),
    ('see {"final_answer": "in"} end', 'in"} end'),
    ('[{"a":{}}]', '[{"a":{}}]'),
    ("{}", "{}", "[]"),
    (CALL, CALL),
    # Beyond the plain cases.
    ('{"final_answer":"a\\nb","content":"c"}', "a\nb", '{"final_answer":"a\\nb","content":"c"}'),
    ('{"final_answer":null,"content":5}', "5", '{"final_answer":null,"content":5}'),
    ('{"content":[]}', "[]", '{"content":[]}'),
    ('{"content":false,"n":1e25}', "false", '{"content":false,"n":1.0e+25}'),
    ('{"final_answer":"cut off in the mid', "cut off in the mid"),
    ('{"a":"x/\u00e9"}', '{"a":"x/\u00e9"}', '{"a":"x\\/\\u00e9"}'),
    ('{"n":1e400}', '{"n":1e400}', False),
    ('{"a":"raw\nbreak"}', '{"a":"raw\nbreak"}'),
    ("```json", ""),
    ("0", "0"),
    ("", ""),
]


@pytest.mark.parametrize("model", [CLAUDE, CHAT, "o3", "gemini-2.5-pro"])
@pytest.mark.parametrize("vector", VECTORS, ids=[repr(row[0][:30]) for row in VECTORS])
def test_what_becomes_of_a_text(vector, model):
    expected = vector[1] if model == CLAUDE else vector[-1]
    assert text_of(ask_messages(model, reply=Reply(vector[0]))) == expected


@pytest.mark.parametrize("model", ["claude", "gpt-4o", "gpt-4.1", "deepseek"])
@pytest.mark.parametrize("vector", VECTORS, ids=[repr(row[0][:30]) for row in VECTORS])
def test_the_older_module_did_the_same_to_texts(vector, model):
    expected = vector[1] if model == "claude" else vector[-1]
    assert text_of(ask_messages(model, reply=Reply(vector[0]), era=EARLY)) == expected


# --- action messages ------------------------------------------------------------------------------

NOT_MESSAGES = ["", "0", "x", "[]", "{}", "5", '"x"', "null", '[{"role":', '[{"role":"user","content":"\\ud800"}]', []]


@pytest.mark.parametrize("messages", [None, *NOT_MESSAGES])
def test_no_messages(messages):
    outcome = em(model=CHAT, **({} if messages is None else {"messages": messages}))
    assert (outcome.status, outcome.body, outcome.upstream) == (400, json.dumps(NO_MESSAGES, separators=(",", ":")).encode(), [])


def test_a_reply():
    outcome = ask_messages(CHAT)
    assert re.fullmatch(
        rb'\{"id":"msg_[0-9a-f]{13}","type":"message","role":"assistant","content":\[\{"type":"text","text":"hello"\}\],'
        rb'"model":"gpt-4-1","stop_reason":"end_turn","stop_sequence":null,"usage":\{"input_tokens":10,"output_tokens":5\}\}',
        outcome.body)


MANY = {"system": "S1", "max_tokens": "100", "temperature": "1", "top_p": ".5", "stop": "END", "tools": "[{}]", "stream": "true"}
SYSTEM = {"role": "system", "content": "S1"}
BEDROCK = {"anthropic_version": "bedrock-2023-05-31", "messages": HI, "max_tokens": 16384, "temperature": 0.7}
OPEN = {"temperature": 0.7, "top_p": 0.9, "frequency_penalty": 0.5, "presence_penalty": 0, "stop": None, "messages": HI}
IMAGE = {"type": "image", "source": {"data": "x"}, "cache_control": {"type": "ephemeral"}}
PICTURE = [*HI, {"role": "user", "content": [IMAGE], "name": "n"}]

# (name, fields, what goes to the vendor)
UPSTREAM = [
    ("no model", {"model": None}, {"model": "o3-mini", "messages": HI, "max_completion_tokens": 4096, "reasoning_effort": "medium"}),
    ("claude, everything", {**MANY}, {**BEDROCK, "system": "S1", "temperature": 1}),
    ("opus", {**MANY, "model": "claude-opus-4-7"}, {k: v for k, v in {**BEDROCK, "system": "S1"}.items() if k != "temperature"}),
    ("haiku", {"model": "claude-haiku-4.5"}, {**BEDROCK, "max_tokens": 8192}),
    ("haiku, a long first message", {"model": "claude-haiku-4.5", "messages": [{"role": "user", "content": "x" * 780000}]},
     {**BEDROCK, "max_tokens": 3000, "messages": [{"role": "user", "content": "x" * 780000}]}),
    ("gpt-4-1, everything", {**MANY, "model": CHAT},
     {**OPEN, "temperature": 1, "top_p": 0.5, "stop": "END", "model": CHAT, "messages": [SYSTEM, *HI]}),
    ("o3", {"model": "o3", "max_tokens": "100"}, {"model": "o3", "messages": HI, "max_completion_tokens": 100}),
    ("o3-mini", {"model": "o3-mini", "max_tokens": "100", "temperature": "1"},
     {"model": "o3-mini", "messages": HI, "max_completion_tokens": 100, "reasoning_effort": "medium"}),
    ("blank numbers are 0", {"temperature": "", "max_tokens": "abc"}, {**BEDROCK, "temperature": 0}),
    ("system of blocks is a text", {"system": '[{"type":"text"}]'}, {**BEDROCK, "system": '[{"type":"text"}]'}),
    ("no system", {"system": "0"}, BEDROCK),
    ("two systems", {"system": " S1 ", "messages": [{"role": "system", "content": "S2"}, *HI]}, {**BEDROCK, "system": "S1\n\nS2"}),
    ("a picture for Claude", {"messages": PICTURE}, {**BEDROCK, "messages": [*HI, {"role": "user", "content": [IMAGE]}]}),
    ("a picture for others", {"model": CHAT, "messages": PICTURE}, {**OPEN, "model": CHAT, "messages": PICTURE}),
    ("empty objects", {"model": CHAT, "messages": [{"role": "user", "content": "x", "a": {}, "properties": {}}]},
     {**OPEN, "model": CHAT, "messages": [{"role": "user", "content": "x", "a": [], "properties": {}}]}),
    ("stops", {"model": CHAT, "stop": ["A", "B"]}, {**OPEN, "model": CHAT, "stop": ["A", "B"]}),
    ("no list", {"model": CHAT, "messages": HI[0], "system": "S1"},
     {**OPEN, "model": CHAT, "messages": {"0": SYSTEM, **HI[0]}}),
]


@rows(UPSTREAM)
def test_what_the_vendor_is_sent(row):
    fields, expected = row
    given = {"model": CLAUDE, "messages": HI, **fields}
    outcome = em(**{k: json.dumps(v) if k == "messages" else v for k, v in given.items() if v is not None})
    assert (outcome.status, outcome.upstream) == (200, [expected])


def test_the_names_of_the_vendor():
    """The vendor's model is the table's, and whether it is an Opus is seen from that."""
    aliases = {"best": "us.opus", "claude": "opus-9", "claude-x": "sonnet"}
    bodies = [em(aliases=aliases, model=model, messages=json.dumps(HI)).upstream[0]
              for model in ("best", "claude-3-5-sonnet-20241022", "claude-x")]
    assert [body.get("model") for body in bodies] == ["us.opus", None, None]
    assert ["temperature" in body for body in bodies] == [True, False, True]


BLOCKS = [{"role": "user", "content": [{"type": "text", "text": "x"}]}]
CALLED = [*HI, {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "n", "input": {}}]}]
TOOL_CALL = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
THINKING = [{"type": "thinking", "thinking": "x"}, {"type": "text", "text": "y"}]

# (name, model, other arguments, text, usage, stop reason, calls of the vendor)
REPLIES = [
    ("unknown model", "claude-sonnet-4-6", {}, A8, (0, 0), "end_turn", 0),
    ("empty model", "", {}, A8, (0, 0), "end_turn", 0),
    ("blocks first", CLAUDE, {"messages": BLOCKS}, CRASH, None, None, 0),
    ("blocks first, others", "o3", {"messages": BLOCKS}, CRASH, None, None, 0),
    ("blocks behind a system", CLAUDE, {"messages": BLOCKS, "system": "S"}, "hello", (10, 5), "end_turn", 1),
    ("a system of blocks", CLAUDE, {"messages": [*HI, {"role": "system", "content": []}]}, CRASH, None, None, 0),
    ("tool blocks", CLAUDE, {"messages": CALLED}, A8, (0, 0), "end_turn", 3),
    ("429", CLAUDE, {"reply": Reply(status=429)}, A8, (0, 0), "end_turn", 3),
    ("no answer", CHAT, {"reply": Reply(status=0)}, A8, (0, 0), "end_turn", 3),
    ("not to be written", CHAT, {"system": "\udcff"}, A8, (0, 0), "end_turn", 3),
    ("an error in a 200", CHAT, {"reply": Reply(error="boom")}, A9, (0, 0), "end_turn", 1),
    ("an error in a 200, Claude", CLAUDE, {"reply": Reply(error="boom")}, "", (0, 0), "end_turn", 1),
    ("no JSON", CLAUDE, {"reply": Reply(raw="<html>")}, CRASH, None, None, 1),
    ("no JSON, others", CHAT, {"reply": Reply(raw="")}, CRASH, None, None, 1),
    ("nothing said", CLAUDE, {"reply": Reply("")}, "", (10, 5), "end_turn", 1),
    ("a tool call", CHAT, {"reply": Reply(tool_calls=TOOL_CALL)}, "", (10, 5), "end_turn", 1),
    ("a tool call, Claude", CLAUDE, {"reply": Reply(tool_calls=[{"id": "c"}])}, "", (10, 5), "end_turn", 1),
    ("thoughts first", CLAUDE, {"reply": Reply(blocks=THINKING)}, "", (10, 5), "end_turn", 1),
    ("a long answer", CLAUDE, {"reply": Reply("x", output=16384), "max_tokens": "32000"}, "x", (10, 16384), "end_turn", 1),
    ("a short one", CLAUDE, {"reply": Reply("x", output=6), "max_tokens": "5"}, "x", (10, 6), "max_tokens", 1),
    ("o3-mini", "o3-mini", {"reply": Reply("x", output=9), "max_tokens": "3"}, "x", (10, 9), "end_turn", 1),
    ("o3", "o3", {"reply": Reply("x", output=9), "max_tokens": "3"}, "x", (10, 9), "max_tokens", 1),
]


@rows(REPLIES)
def test_what_comes_back(row):
    model, more, text, usage, stop, calls = row
    outcome = ask_messages(model, **more)
    assert (text_of(outcome), len(outcome.upstream)) == (text, calls)
    if text != CRASH:
        answer = told(outcome)
        assert (*answer["usage"].values(),) == usage
        assert (outcome.status, answer["stop_reason"], answer["model"]) == (200, stop, model)


# --- action callAI --------------------------------------------------------------------------------

WRAPPED = {"name": "response", "strict": True, "schema": SCHEMA}
OWN = {"name": "n", "strict": False, "schema": SCHEMA}

# (name, fields, the schema that the vendor gets)
SCHEMAS = [
    ("bare", {"model": CHAT, "json_schema": SCHEMA}, WRAPPED),
    ("wrapped", {"model": "o3", "json_schema": OWN}, OWN),
    ("unreadable", {"model": CHAT, "json_schema": "{"}, None),
    ("claude", {"model": CLAUDE, "json_schema": SCHEMA}, None),
    ("gemini", {"model": "gemini-2.5-flash", "json_schema": SCHEMA}, None),
    ("deepseek", {"model": "deepseek-r1", "json_schema": SCHEMA}, None),
]


@rows(SCHEMAS)
def test_schemas(row):
    fields, schema = row
    outcome = em("callAI", Reply('{"a":{}}'), prompt="p", **fields)
    (body,) = outcome.upstream
    assert body.get("response_format") == (schema and {"type": "json_schema", "json_schema": schema})
    assert told(outcome)["content"] == ('{"a":{}}' if fields["model"] == CLAUDE else {"a": []})


# (name, fields, reply, the whole answer)
CALL_AI = [
    ("no prompt", {}, Reply("x"), {"error": "Missing prompt"}),
    ("prompt 0", {"prompt": "0"}, Reply("x"), {"error": "Missing prompt"}),
    ("no model", {"prompt": "p"}, Reply("x"), ("deepseek", A8, (0, 0, 0))),
    ("text", {"prompt": "p", "model": CHAT}, Reply("x"), (CHAT, "x", (10, 5, 15))),
    ("claude", {"prompt": "p", "model": CLAUDE}, Reply("x"), (CLAUDE, "x", (10, 5, 15))),
    ("empty object", {"prompt": "p", "model": CHAT}, Reply("{}"), (CHAT, [], (10, 5, 15))),
    ("array", {"prompt": "p", "model": CHAT}, Reply("[1,{}]"), (CHAT, "[1,{}]", (10, 5, 15))),
    ("names are not mapped", {"prompt": "p", "model": "claude-3-5-sonnet-20241022"}, Reply("x"),
     ("claude-3-5-sonnet-20241022", A8, (0, 0, 0))),
]


@rows(CALL_AI)
def test_call_ai(row):
    fields, reply, expected = row
    outcome = em("callAI", reply, **fields)
    if isinstance(expected, dict):
        assert (outcome.status, told(outcome)) == (400, expected)
        return
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    model, content, usage = expected
    assert outcome.status == 200 and told(outcome) == {
        "status": "success", "model": model, "content": content, "usage": dict(zip(names, usage))}


def test_call_ai_sends_the_prompt_alone():
    (body,) = em("callAI", prompt="p", model="o3", max_completion_tokens="5", system="S").upstream
    assert body == {"model": "o3", "messages": [{"role": "user", "content": "p"}], "max_completion_tokens": 8000}
    (body,) = em("callAI", prompt="p", model=CLAUDE).upstream
    assert body["temperature"] == 0.2
    assert em("callAI", prompt=["p"], model=CHAT).body == CRASH


# --- the older module -----------------------------------------------------------------------------

SMALL_OPEN = {k: v for k, v in OPEN.items() if k != "stop"}
TUNING = {"temperature": 0.7, "topP": 0.9, "topK": 40, "maxOutputTokens": 8192, "frequencyPenalty": 0.5, "presencePenalty": 0}

# (model, members of what the vendor is sent, members it is not sent)
EARLY_UPSTREAM = [
    ("claude", {"model_id": "claude", "prompt_text": "System: S1\n\nUser: hi",
                "parameters": {"temperature": 0.7, "top_p": 0.9, "max_tokens": 16384}}, ("messages",)),
    ("claude-sonnet-4", {"model_id": "claude"}, ()),
    ("gpt-4o", {**SMALL_OPEN, "model": "gpt-4o", "max_tokens": 16384, "messages": [SYSTEM, *HI]}, ("reasoning_effort",)),
    ("gpt-4.1", {"model": "gpt-4.1", "messages": [SYSTEM, *HI]}, ("max_tokens",)),
    ("deepseek", {"max_tokens": 16384, "reasoning_effort": "medium"}, ()),
    ("gpt-5", {"max_completion_tokens": 7, "reasoning_effort": "medium"}, ("temperature",)),
    ("gemini20flash", {"contents": [{"role": "user", "parts": [{"text": "S1\n\nhi"}]}], "generation_config": TUNING}, ("messages",)),
]


@pytest.mark.parametrize("model,sent,not_sent", EARLY_UPSTREAM, ids=[row[0] for row in EARLY_UPSTREAM])
def test_what_the_older_module_sent(model, sent, not_sent):
    outcome = ask_messages(model, era=EARLY, system="S1", max_tokens="7")
    (body,) = outcome.upstream
    assert {key: body[key] for key in sent} == sent and not set(not_sent) & body.keys()
    assert told(outcome)["content"][0]["text"] == "hello" and told(outcome)["model"] == model


# (name, model, arguments, text, calls of the vendor)
EARLY_REPLIES = [
    ("any blocks kill Claude", "claude", {"messages": [*HI, *BLOCKS]}, CRASH, 0),
    ("an alias of the settings alone", "gpt-4-1", {}, A8, 0),
    ("gpt-4o without JSON", "gpt-4o", {"reply": Reply(raw="<html>")}, A8, 3),
    ("gpt-4.1 without JSON", "gpt-4.1", {"reply": Reply(raw="<html>")}, CRASH, 1),
    ("an error in a 200", "gpt-4.1", {"reply": Reply(error="boom")}, "", 1),
    ("Gemini's parts", "gemini25pro", {"reply": Reply(blocks=[{"text": "a"}, {"text": "b"}])}, "a b", 1),
]


@rows(EARLY_REPLIES)
def test_what_the_older_module_gave(row):
    model, more, text, calls = row
    outcome = ask_messages(model, era=EARLY, **more)
    assert (text_of(outcome), len(outcome.upstream)) == (text, calls)


# --- REDCap ---------------------------------------------------------------------------------------


def form(**fields):
    envelope = {"token": TOKEN, "content": "externalModule", "prefix": "secure_chat_ai", "action": "messages",
                "format": "json", "returnFormat": "json", "model": CLAUDE, "messages": json.dumps(HI)}
    return {k: v for k, v in {**envelope, **fields}.items() if v is not None}


def request(body, method="POST", path="/api/", kind="application/x-www-form-urlencoded", more=()):
    lines = [f"{method} {path} HTTP/1.1", "Host: x", f"Content-Type: {kind}", f"Content-Length: {len(body)}", *more]
    return "\r\n".join([*lines, "", ""]).encode() + body


def ask(fake, method="POST", path="/api/", kind="application/x-www-form-urlencoded", **fields):
    with RawClient(fake.port) as client:
        client.send(request(urlencode(form(**fields)).encode(), method, path, kind))
        return client.answer(head_only=method == "HEAD")


def answer_text(answer):
    return answer.json["content"][0]["text"]


XML = '<?xml version="1.0" encoding="UTF-8" ?><hash><error>{}</error></hash>'
GET_ONLY = XML.format("The requested method is not implemented.")
JSON_403, CSV_403 = json.dumps({"error": NO_RIGHTS}), f"ERROR: {NO_RIGHTS}"

# (name, what is asked, status, body or None)
ENVELOPE = [
    ("get", {"method": "GET"}, 501, GET_ONLY),
    ("put", {"method": "PUT"}, 501, GET_ONLY),
    ("head", {"method": "HEAD"}, 501, ""),
    ("no slash", {"path": "/api"}, 301, ""),
    ("root", {"path": "/"}, 200, LOGIN),
    ("elsewhere", {"path": "/redcap/api/"}, 200, LOGIN),
    ("a query", {"path": "/api/?x=1"}, 200, None),
    ("json body", {"kind": "application/json"}, 403, XML.format(NO_RIGHTS)),
    ("no token", {"token": None}, 403, JSON_403),
    ("unknown token", {"token": "B" * 32}, 403, JSON_403),
    ("xml", {"token": "B" * 32, "returnFormat": None}, 403, XML.format(NO_RIGHTS)),
    ("csv", {"token": "B" * 32, "returnFormat": "csv"}, 403, CSV_403),
    ("content", {"content": "record"}, 400, None),
    ("prefix", {"prefix": "secureChatAI"}, 400, None),
    ("format", {"returnFormat": "odm"}, 406, None),
    ("undeclared action", {"action": "getSession"}, 400, None),
    ("no action", {"action": None}, 400, None),
    ("too large", {"system": "x" * 5000}, 403, XML.format(NO_RIGHTS)),
    ("good", {}, 200, None),
]


@pytest.fixture(scope="module")
def redcap():
    with Fake(size_limit=5000) as fake:
        yield fake


@rows(ENVELOPE)
def test_redcap_checks(redcap, row):
    asked, status, body = row
    answer = ask(redcap, **asked)
    assert answer.status == status
    assert body is None or answer.body.decode() == body
    assert answer.headers.get("location") == ("/api/" if status == 301 else None)
    assert redcap.requests[-1].upstream == [] or status == 200


@pytest.mark.parametrize("settings,asked,status", [
    ({"statuses": {"no_token": 401}}, {"token": None}, 401),
    ({"has_right": False}, {}, 403),
    ({"era": "2025"}, {}, 400),
    ({"era": "2025"}, {"action": "callAI", "prompt": "p", "model": "claude"}, 200),
    ({"tokens": {"B" * 32}}, {"token": "B" * 32}, 200),
    ({"tokens": lambda token: token.startswith("C")}, {"token": "C" * 32}, 200),
    ({"tokens": lambda token: token.startswith("C")}, {"token": "D" * 32}, 403),
    ({"api_path": "/redcap/api/"}, {"path": "/redcap/api/"}, 200),
    ({"aliases": {"m": "opus-x"}}, {"model": "m"}, 200),
    ({"crash_page": True}, {"messages": json.dumps(BLOCKS)}, 200),
    ({}, {"messages": json.dumps(BLOCKS)}, 500),
])
def test_settings(settings, asked, status):
    with Fake(**settings) as fake:
        assert ask(fake, **asked).status == status


@pytest.mark.parametrize("kind", ["application/json", "text/html", "text/xml"])
@pytest.mark.parametrize("wrap", ["verbatim", "wrapped"])
def test_types_and_wrapping(kind, wrap):
    with Fake(content_type=kind, error_wrap=wrap) as fake:
        good, bad = ask(fake), ask(fake, messages="x")
    assert (good.headers["content-type"], answer_text(good)) == (kind, CANNED_TEXT)
    found = json.loads(bad.json["error"]) if wrap == "wrapped" else bad.json
    assert (bad.status, found) == (400, NO_MESSAGES)


@pytest.mark.parametrize("era", sorted(ERAS))
def test_what_the_framework_tells(era):
    with Fake(era=era) as fake:
        info, version, actions = (ask(fake, action=name).json for name in ("__info", "__version", "__actions"))
        assert ask(fake, action="__info", token="B").status == 403
    assert (info["name"], sorted(info["auth-actions"])) == ("SecureChatAI", sorted(ERAS[era].actions))
    assert set(version) | set(actions) | {"name", "description"} == set(info)
    assert [record.upstream for record in fake.requests] == [[]] * 4


# --- the tests' own interface -----------------------------------------------------------------------


def test_the_vendor_says_what_is_pushed_then_what_it_plays():
    with Fake() as fake:
        fake.vendor.push("first", input=3, output=4)
        fake.vendor.push(text="second")
        fake.vendor.push(status=500)
        fake.vendor.play = lambda body: {"text": body["messages"][0]["content"] + "!", "output": 9}
        answers = [ask(fake).json for _ in range(4)]
    assert [answer["content"][0]["text"] for answer in answers] == ["first", "second", A8, "hi!"]
    assert answers[0]["usage"] == {"input_tokens": 3, "output_tokens": 4} and answers[3]["usage"]["output_tokens"] == 9
    assert [len(record.upstream) for record in fake.requests] == [1, 1, 3, 1]


def test_a_record():
    with Fake() as fake:
        ask(fake, **{"stop[0]": "A", "stop[1]": "B"})
        (record,) = fake.requests
        assert wait_until(lambda: record.ended)
    assert (record.method, record.path, record.status) == ("POST", "/api/", 200)
    assert record.headers["content-type"] == "application/x-www-form-urlencoded"
    assert list(record.fields) == [*form(), "stop"] and record.fields["stop"] == ["A", "B"]
    assert record.upstream == [BEDROCK]
    assert record.answered.is_set() and not record.closed_by_peer.is_set() and 0 < record.lived < 5


def test_connections_are_kept():
    body = urlencode(form()).encode()
    with Fake() as fake, RawClient(fake.port) as client:
        for _ in range(2):
            client.send(request(body))
            assert answer_text(client.answer()) == CANNED_TEXT
        client.send(request(body, more=("Connection: close",)))
        assert client.answer().headers["connection"] == "close" and client.read_to_end() == b""
    assert len(fake.requests) == 3


def test_bodies_in_chunks_and_after_permission():
    body = urlencode(form()).encode()
    head = "POST /api/ HTTP/1.1\r\nContent-Type: application/x-www-form-urlencoded\r\n"
    with Fake() as fake, RawClient(fake.port) as client:
        client.send((head + "Transfer-Encoding: chunked\r\n\r\n").encode())
        client.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
        assert answer_text(client.answer()) == CANNED_TEXT
        client.send((head + f"Expect: 100-continue\r\nContent-Length: {len(body)}\r\n\r\n").encode())
        assert client.read_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.send(body)
        assert answer_text(client.answer()) == CANNED_TEXT


def test_fifty_at_once():
    tokens = [f"{number:032X}" for number in range(50)]
    answers = {}
    with Fake(tokens=set(tokens)) as fake:
        fake.vendor.play = lambda body: {"text": body["messages"][0]["content"], "delay": 0.05}
        def one(token):
            answers[token] = answer_text(ask(fake, token=token, messages=json.dumps([{"role": "user", "content": token}])))
        threads = [threading.Thread(target=one, args=(token,)) for token in tokens]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == {token: token for token in tokens} and len(fake.requests) == 50


# --- faults ---------------------------------------------------------------------------------------

# (kind, arguments, status, a piece of the body)
FAULT_ANSWERS = [
    ("bad_token", {}, 403, JSON_403),
    ("bad_token", {"form": "xml"}, 403, XML.format(NO_RIGHTS)),
    ("bad_token", {"form": "csv"}, 403, CSV_403),
    ("html_login", {}, 200, LOGIN),
    ("redirect", {"to": "http://127.0.0.1:1/api/"}, 302, ""),
    ("redirect", {"status": 301}, 301, ""),
    ("get_only", {}, 501, GET_ONLY),
    ("waf", {}, 403, FIREWALL),
    ("banned", {}, 200, BAN),
    ("mysql", {}, 200, DATABASE),
    ("empty_200", {}, 200, ""),
    ("empty_500", {}, 500, ""),
    ("oom", {}, 500, OUT_OF_MEMORY),
    ("php_fatal", {}, 500, ""),
    ("php_fatal", {"html": True}, 200, CRASH_PAGE),
    ("crash_page", {}, 200, CRASH_PAGE),
    ("error_in_200", {"message": "off"}, 200, '{"error": "off"}'),
    ("wrapped_400", {"wrap": "verbatim"}, 400, json.dumps(NO_MESSAGES)),
    ("wrapped_400", {}, 400, json.dumps({"error": json.dumps(NO_MESSAGES)})),
    ("gateway", {"status": 503}, 503, "503 Service Unavailable"),
    ("gateway_502", {}, 502, "502 Bad Gateway"),
    ("gateway_503", {}, 503, "503 Service Unavailable"),
    ("gateway_504", {"seconds": 0.02}, 504, "504 Gateway Timeout"),
    ("slow_error", {"seconds": 0.02}, 403, JSON_403),
    ("answer", {"status": 418, "body": b"tea"}, 418, "tea"),
]


@pytest.mark.parametrize("kind,args,status,body", FAULT_ANSWERS)
def test_faults_instead_of_an_answer(redcap, kind, args, status, body):
    redcap.fault.push(kind, **args)
    answer = ask(redcap)
    assert answer.status == status
    assert answer.body.decode() == body or (len(body) < 30 and body in answer.body.decode())
    assert answer.headers.get("location") == (args.get("to", "/") if kind == "redirect" else None)
    assert redcap.requests[-1].upstream == []
    assert ask(redcap).status == 200


# (kind, arguments, model, text, usage, calls of the vendor)
VENDOR_FAULTS = [
    ("unknown_model", {}, CLAUDE, A8, (0, 0), 0),
    ("vendor_error", {"status": 429}, CLAUDE, A8, (0, 0), 3),
    ("vendor_timeout", {"delay": 0.01}, CHAT, A8, (0, 0), 3),
    ("empty_text", {}, CLAUDE, "", (10, 5), 1),
    ("zero_usage_text", {}, CLAUDE, "Welcome to the chat.", (0, 0), 1),
    ("real_apology", {}, CHAT, A8, (10, 5), 1),
    ("text_false", {}, CHAT, False, (10, 5), 1),
    ("entities", {}, CLAUDE, "a &lt; b <i> \u2211", (10, 5), 1),
    ("rewritten", {}, CLAUDE, "taken out", (10, 5), 1),
    ("slow", {"seconds": 0.02}, CLAUDE, CANNED_TEXT, (10, 5), 1),
]


@pytest.mark.parametrize("kind,args,model,text,usage,calls", VENDOR_FAULTS)
def test_faults_behind_the_module(redcap, kind, args, model, text, usage, calls):
    redcap.fault.push(kind, **args)
    began = time.monotonic()
    answer = ask(redcap, model=model)
    assert (answer_text(answer), (*answer.json["usage"].values(),)) == (text, usage)
    assert len(redcap.requests[-1].upstream) == calls
    assert time.monotonic() - began >= args.get("seconds", 3 * args.get("delay", 0))


def test_a_warning_before_the_answer(redcap):
    redcap.fault.push("warning_prefix", lines=2)
    body = ask(redcap).body.decode()
    assert body.startswith(WARNING * 2 + '{"id":"msg_')


def test_a_fault_can_wait_for_an_action(redcap):
    redcap.fault.push("empty_500", action="messages")
    assert [ask(redcap, action=action).status for action in ("__info", "messages", "messages")] == [200, 500, 200]


@pytest.mark.parametrize("kind,args,error", [("none", {}, KeyError), ("slow", {"minutes": 1}, TypeError),
                                             ("reset", {"where": "tail"}, ValueError)])
def test_faults_that_are_none(redcap, kind, args, error):
    with pytest.raises(error):
        redcap.fault.push(kind, **args)


# where -> (what is sent begins so, whether the connection is reset)
PIECES = {"before": (b"", True), "head": (b"HTTP/1.1 200", True), "body": (b"HTTP/1.1 200", True),
          "length": (b"HTTP/1.1 200", False)}


@pytest.mark.parametrize("where", sorted(CUTS))
def test_answers_that_break_off(redcap, where):
    begins, reset = PIECES[where]
    redcap.fault.push("reset", where=where)
    with RawClient(redcap.port) as client:
        client.send(request(urlencode(form()).encode()))
        received, was_reset = bytearray(), False
        with contextlib.suppress(ConnectionResetError):
            was_reset = True
            while True:
                piece = client.sock.recv(65536)
                if not piece:
                    was_reset = False
                    break
                received += piece
    # A reset may overtake what was sent before it.
    assert was_reset == reset and (bytes(received).startswith(begins) or (reset and not received))
    if where == "length":
        head, _, body = bytes(received).partition(b"\r\n\r\n")
        assert 0 < len(body) < int(re.search(rb"Content-Length: (\d+)", head).group(1))
    assert not redcap.requests[-1].answered.is_set() and not redcap.requests[-1].closed_by_peer.is_set()


@pytest.mark.parametrize("kind,args", [("never", {}), ("slow", {"seconds": 30}), ("vendor_error", {"delay": 30})])
def test_a_client_that_leaves(kind, args):
    with Fake() as fake:
        fake.fault.push(kind, **args)
        with RawClient(fake.port) as client:
            client.send(request(urlencode(form()).encode()))
            assert wait_until(lambda: fake.requests)
            (record,) = fake.requests
            assert not record.closed_by_peer.is_set()
        assert record.closed_by_peer.wait(3)
        lived = record.lived
        assert lived < 3 and not record.answered.is_set()
    assert record.lived == lived


@pytest.mark.parametrize("kind,args", [("never", {}), ("slow", {"seconds": 30}), ("vendor_timeout", {"delay": 30})])
def test_closing_ends_all_waits(kind, args):
    fake = Fake()
    fake.fault.push(kind, **args)
    with RawClient(fake.port) as client, RawClient(fake.port) as idle:
        client.send(request(urlencode(form()).encode()))
        assert wait_until(lambda: fake.requests)
        began = time.monotonic()
        fake.close()
        assert client.read_to_end() == idle.read_to_end() == b""
    assert time.monotonic() - began < 1 and not fake.requests[0].closed_by_peer.is_set()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", fake.port), timeout=1)


def test_every_fault_was_had():
    tested = {row[0] for row in FAULT_ANSWERS + VENDOR_FAULTS} | {"warning_prefix", "reset", "never"}
    assert tested == set(FAULTS)


# --- by hand --------------------------------------------------------------------------------------

TOOLS = "You have tools.\n<tool_call>\n{}\n</tool_call>\n<tool_result id=...>"
LINE = 'Do this.\ncall: Bash {"command": "a && b"}'
WANTED = 'I call what you name.\n\n<tool_call>\n{"name": "Bash", "input": {"command": "a \\u0026\\u0026 b"}}\n</tool_call>'
RESULT = '<tool_result id="t">\nyes\n</tool_result>'


def turn(text):
    return {"role": "user", "content": text}


PLAYED = [
    ("a call", {"system": TOOLS, "messages": [turn(LINE)]}, WANTED),
    ("a call among reminders", {"system": TOOLS, "messages": [turn(f"<a>\n</a>\n{LINE}\n<b>\n</b>")]}, WANTED),
    ("no tools", {"system": "x", "messages": [turn(LINE)]}, GREETING),
    ("no call", {"system": TOOLS, "messages": [turn("hello")]}, GREETING),
    ("a result", {"system": TOOLS, "messages": [turn(LINE), turn(RESULT)]}, "The result has"),
    ("chat", {"messages": [{"role": "system", "content": TOOLS}, turn(LINE)]}, WANTED),
    ("older Claude", {"prompt_text": f"System: {TOOLS}\n\nUser: {LINE}"}, WANTED),
    ("older Claude, a result", {"prompt_text": f"System: {TOOLS}\n\nUser: {LINE}\n\nAssistant: x\n\nUser: {RESULT}"}, "The result has"),
    ("one prompt", {"messages": [turn(f"System: {TOOLS}\n\nUser: {LINE}\n\nAssistant:")]}, WANTED),
    ("older Gemini", {"contents": [{"role": "user", "parts": [{"text": f"{TOOLS}\n\n{LINE}"}]}]}, WANTED),
]


@rows(PLAYED)
def test_the_model_for_hands(row):
    body, expected = row
    assert played(body).startswith(expected)


def test_calls_that_cannot_be_read():
    assert call_text("Bash", None) == '<tool_call>\n{"name": "Bash", "input": {}}\n</tool_call>'
    assert call_text("Bash", "{a}").startswith("I cannot read the input of Bash: ")
