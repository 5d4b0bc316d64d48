"""Whatever stands in a setting, a header, a URL, a body or an upstream's answer: none of it leaks.

Every place has a word of its own, so that a hit names the place. Real processes run at
LOG_LEVEL=debug with audit, metrics and PHI guard, before an upstream that fails in every way and
quotes all that it was sent, as it is and encoded. Then every byte is searched:

    secrets   (settings', and the credentials that clients show)  nowhere, answers to clients too
    contents  (all else that was said)            not in stdout, stderr, the audit and /metrics

Names are no contents: the model's may be logged (words with blanks may not).
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
from typing import Any, Dict, List
from urllib.parse import quote, quote_plus

import pytest

from claude_proxy.cli import main
from claude_proxy.crashes import place_of, told_crashes
from claude_proxy.log import Log
from claude_proxy.settings import SETTINGS
from tests.canary import Canaries, Needles
from tests.support import (
    HANG_UP,
    LAST,
    ROOT,
    STREAM_HEAD,
    RawClient,
    ScriptedUpstream,
    ask,
    http_chunk,
    request_bytes,
    running_proxy,
    sse,
    wait_until,
)

SECRET_NAMES = [setting.name for setting in SETTINGS if setting.secret]


# --- the search itself ----------------------------------------------------------------------------

WORD = "Zq/Ab+cd?Ef \"gh\"-7"
HIDDEN = [
    ("as it is", f"x{WORD}y"),
    ("in lower case", WORD.lower()),
    ("in JSON", json.dumps({"a": WORD})),
    ("in a URL", quote(WORD)),
    ("in a form", quote_plus(WORD).lower()),
    ("as hex", WORD.encode().hex().upper()),
    *((f"in base64 at {at}", base64.b64encode(b"." * at + WORD.encode() + b"..").decode()) for at in range(4)),
    *((f"in urlsafe base64 at {at}", base64.urlsafe_b64encode(b"\xff" * at + WORD.encode()).decode()) for at in range(3)),
]


@pytest.mark.parametrize("form,text", HIDDEN, ids=[row[0] for row in HIDDEN])
def test_a_word_is_found_in_every_form(form, text):
    for others in (0, 100):
        needles = Needles([("here", WORD), *((f"other {n}", f"other word {n:05d}") for n in range(others))])
        assert [hit.place for hit in needles.hits(text.encode(), "text")] == ["here"]
        assert needles.hits(text[:len(text) // 2].encode(), "text") == []


# --- the settings ---------------------------------------------------------------------------------


def secret_value(canaries, name, place):
    """A value that the setting takes, with its word in it."""
    word = canaries.token(place)
    if name == "REDCAP_API_TOKEN":
        word = canaries.words[place] = word.encode().hex()[:32]
    if name == "OTEL_EXPORTER_OTLP_HEADERS":
        return f"x-api-key={word}"
    if name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"):
        return f"http://user:{word}@127.0.0.1:9"
    return word


# What a setting needs beside it.
COMPANIONS = {
    "REDCAP_API_TOKEN": {"REDCAP_API_URL": "http://127.0.0.1:9/api/"},
    "CLIENT_KEY_PASSPHRASE": {"CLIENT_CERT_FILE": "cert.pem"},
    "TLS_KEY_PASSPHRASE": {"TLS_CERT_FILE": "cert.pem"},
}
# What no setting takes: a control character; and what a certain one does not.
BAD_ENDS = ("\x01", "\x7fend")


def told_by(*arguments, **environ):
    """(status, all that the command says)."""
    out, err = io.StringIO(), io.StringIO()
    status = main(arguments, {"LOG_LEVEL": "debug", **environ}, out, err)
    return status, out.getvalue() + err.getvalue()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("way", ["variable", "file", ".env"])
@pytest.mark.parametrize("name", SECRET_NAMES)
def test_no_secret_setting_is_shown(folder, name, way):
    canaries = Canaries("shown")
    value, more = secret_value(canaries, name, name), dict(COMPANIONS.get(name, {}))
    (folder / "cert.pem").write_text(canaries.text("certificate file"))
    if way == "file":
        (folder / "secret").write_text(value)
        more[f"{name}_FILE"] = "secret"
    elif way == ".env":
        (folder / ".env").write_text(f"{name}='{value}'\n")
    else:
        more[name] = value
    (folder / "request.json").write_text(json.dumps({"model": "opus", "messages": canaries.text("messages")}))
    for arguments in (["--check-config"], ["--explain-route", "request.json"], ["--verify-audit", "request.json"],
                      ["--version"], ["--help"], ["--print-settings"], ["--healthcheck"]):
        if arguments == ["--help"]:
            continue  # it ends the process: among those that run in one of their own
        status, told = told_by(*arguments, LISTEN_PORT="9", **more)
        assert canaries.needles().hits(told.encode(), str(arguments)) == []
        if arguments == ["--check-config"]:
            assert f"{name}=set (" in told


@pytest.mark.parametrize("end", BAD_ENDS, ids=ascii)
@pytest.mark.parametrize("name", SECRET_NAMES)
def test_a_wrong_secret_is_told_by_its_name(folder, name, end):
    canaries = Canaries("wrong")
    value = secret_value(canaries, name, name) + end
    status, told = told_by("--check-config", **{name: value}, **COMPANIONS.get(name, {}))
    assert (status, name in told) == (2, True)
    assert canaries.needles().hits(told.encode(), name) == []


# Settings that are no secret, but may have one in them by mistake.
MISPLACED = [
    *(("a URL with a user", name, "https://user:{}@host.example/api/") for name in
      ("OPENAI_BASE_URL", "REDCAP_API_URL", "ANTHROPIC_FORWARD_URL", "CORS_ALLOWED_ORIGINS")),
    *(("a URL with a query", name, "https://host.example/api/?key={}") for name in
      ("OPENAI_BASE_URL", "REDCAP_API_URL", "ANTHROPIC_FORWARD_URL", "CORS_ALLOWED_ORIGINS")),
    *(("a wrong value", setting.name, "{}\x01") for setting in SETTINGS if not setting.secret),
    ("a wrong custom header", "CUSTOM_HEADER_X_KEY", "{}\x01"),
    ("another proxy", "HTTPS_PROXY", "socks5://user:{}@host.example:1"),
    ("a proxy with a path", "HTTP_PROXY", "http://user:{}@host.example:1/path"),
]


@pytest.mark.parametrize("name,frame", [row[1:] for row in MISPLACED], ids=[f"{row[1]}, {row[0]}" for row in MISPLACED])
def test_a_wrong_value_is_not_repeated(folder, name, frame):
    canaries = Canaries("misplaced")
    status, told = told_by("--check-config", **{name: frame.format(canaries.token(name))})
    assert (status, name in told) == (2, True), told
    assert canaries.needles().hits(told.encode(), name) == []


DOTENVS = [
    ("a key alone", "{}\n"),
    ("a name with blanks", "OPENAI API KEY={}\n"),
    ("an open quote", "OPENAI_API_KEY='{}\n"),
    ("text behind a quote", "OPENAI_API_KEY='a' {}\n"),
    ("a base64 key that goes on in the next line", "OPENAI_API_KEY=abc\n{}==\n"),
    ("a key with a colon", "{}: x\n"),
    ("a required variable", "OPENAI_API_KEY=${{NOT_SET:?{}}}\n"),
]


@pytest.mark.parametrize("frame", [row[1] for row in DOTENVS], ids=[row[0] for row in DOTENVS])
def test_a_broken_env_file_is_not_quoted(folder, frame):
    canaries = Canaries("dotenv")
    (folder / ".env").write_text(frame.format(canaries.token(".env")))
    status, told = told_by("--check-config")
    assert canaries.needles().hits(told.encode(), ".env") == []


SETTINGS_FILES = [
    ("no JSON", '{{"OPENAI_API_KEY": "{}"'),
    ("a text", '"{}"'),
    ("a list in a list", '{{"OPENAI_API_KEY": [["{}"]]}}'),
    ("a wrong value", '{{"OPENAI_API_KEY": "{}\\u0001"}}'),
    ("a wrong header", '{{"headers": {{"x-key": ["{}\\u0001"]}}}}'),
]


@pytest.mark.parametrize("frame", [row[1] for row in SETTINGS_FILES], ids=[row[0] for row in SETTINGS_FILES])
def test_a_broken_settings_file_is_not_quoted(folder, frame):
    canaries = Canaries("file")
    (folder / "settings.json").write_text(frame.format(canaries.token("settings.json")))
    status, told = told_by("--check-config", CONFIG_FILE="settings.json")
    assert status == 2 and canaries.needles().hits(told.encode(), "settings.json") == []


ARGUMENTS = [
    ("a word", ["{}"]),
    ("an option that is none", ["--openai-api-key={}"]),
    ("an option and a word", ["--openai-api-key", "{}"]),
    ("a value for an option without one", ["--version={}"]),
    ("a short option", ["-k{}"]),
    ("half an option", ["--check={}"]),
    ("no such file", ["--verify-audit"]),
]


@pytest.mark.parametrize("words", [row[1] for row in ARGUMENTS], ids=[row[0] for row in ARGUMENTS])
def test_wrong_arguments_are_not_repeated(folder, capsys, words):
    canaries = Canaries("arguments")
    with pytest.raises(SystemExit) as ended:
        told_by(*(word.format(canaries.token("argument")) for word in words))
    told = "".join(capsys.readouterr())
    assert ended.value.code == 2 and "usage: " in told
    assert canaries.needles().hits(told.encode(), "arguments") == []


# --- an upstream that quotes ----------------------------------------------------------------------


def quoted(request, said):
    """All that a request said, as it is and encoded: its credentials first, as an answer may be cut."""
    fields = [value for name, value in request.headers.items() if name not in ("host", "content-length")]
    # Credentials first, and without their scheme too.
    fields.sort(key=lambda value: (" " in value and value.split(" ")[0] not in ("Bearer", "Basic"), len(value)))
    form = re.findall(r"token=(\w+)", request.body[:300].decode("latin-1"))
    words = [*form, *(value.rpartition(" ")[2] for value in fields)]
    encoded = [encode(word) for word in words if 8 <= len(word) < 100 for encode in ENCODINGS]
    body = request.body.decode("utf-8", "replace")
    return " | ".join([said, *words, *fields, *encoded, request.line, body])


def in_base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


ENCODINGS = (
    str.lower, in_base64, lambda word: in_base64(f"x:{word}"), lambda word: in_base64(f"u:{word}="),
    lambda word: base64.urlsafe_b64encode(word.encode()).decode(), lambda word: quote(f"<{word}>", safe=""),
    lambda word: word.encode().hex(),
)


def answered(status, body, *fields, reason="X"):
    data = body if isinstance(body, bytes) else body.encode() if isinstance(body, str) else json.dumps(body).encode()
    kind = () if isinstance(body, (str, bytes)) else ("content-type: application/json",)
    lines = [f"HTTP/1.1 {status} {reason}", f"content-length: {len(data)}", *kind, *fields]
    return ["\r\n".join(lines).encode("utf-8", "replace") + b"\r\n\r\n" + data]


def one_line(text: str) -> str:
    return re.sub(r"[^ -~]", "?", text)


def streamed(*events, end=(LAST,)):
    return [STREAM_HEAD, *(http_chunk(sse(event)) for event in events), *end]


def chunk(**choice):
    return {"id": "c1", "choices": [{"index": 0, "delta": {}, **choice}]}


def started(**members):
    usage = {"input_tokens": 3, "output_tokens": 1}
    message = {"id": "msg_1", "type": "message", "role": "assistant", "content": [], "model": "m", "stop_reason": None,
               "stop_sequence": None, "usage": usage, **members}
    return {"type": "message_start", "message": message}


def block(index, delta, **content):
    kind = content.get("type", "text")
    return [{"type": "content_block_start", "index": index, "content_block": {"type": kind, **content}},
            {"type": "content_block_delta", "index": index, "delta": delta},
            {"type": "content_block_stop", "index": index}]


def ended(reason, **usage):
    return [{"type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": None}, "usage": usage},
            {"type": "message_stop"}]


TEXT = {"type": "text_delta", "text": "hello"}
WHOLE = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "stop_reason": "end_turn", "stop_sequence": None,
         "usage": {"input_tokens": 3, "output_tokens": 2}}

# How an upstream can fail, or answer, with a text in every place that an answer has: in an error `t`,
# all that it was sent; in an answer `s`, which no credential gets into.
FAILURES = [
    ("error object", lambda t, s: answered(400, {"error": {"message": t, "type": t, "code": t, "param": t}})),
    ("error text", lambda t, s: answered(401, {"error": t})),
    ("error beside a message", lambda t, s: answered(403, {"error": t, "message": t, "code": s[:60]})),
    ("detail", lambda t, s: answered(422, {"detail": [{"msg": t, "loc": ["body", t], "input": t, "ctx": {t: t}}]})),
    ("error in an error", lambda t, s: answered(400, {"error": {"message": "x", "metadata": {
        "raw": json.dumps({"error": {"message": t}}), "provider_name": t}}})),
    ("Anthropic's error", lambda t, s: answered(529, {"type": "error", "error": {"type": t, "message": t}, "request_id": t})),
    ("content filter", lambda t, s: answered(400, {"error": {"message": t, "innererror": {"content_filter_result": {
        t: {"filtered": True, "severity": t}}}}})),
    ("unknown members", lambda t, s: answered(409, {s[:80]: {"a": [t]}})),
    ("too long", lambda t, s: answered(400, {"error": {"message": f"prompt is too long: {t}"}})),
    ("cut within", lambda t, s: answered(400, "." * (2048 - 10 - len(t.partition(" | ")[0]) - 3) + t)),
    ("page", lambda t, s: answered(502, f"<html><head><title>{t}</title></head><body>{t}</body></html>")),
    ("plain text", lambda t, s: answered(500, t)),
    ("no model", lambda t, s: answered(404, {"error": {"message": f"model {t}"}})),
    ("XML", lambda t, s: answered(403, f"<?xml version='1.0'?><hash><error>{t}</error></hash>")),
    ("CSV", lambda t, s: answered(400, f"ERROR: {t}")),
    ("JSON in JSON", lambda t, s: answered(400, json.dumps(json.dumps({"error": t})))),
    ("gzip", lambda t, s: answered(429, gzip.compress(json.dumps({"error": {"message": t}}).encode()), "content-encoding: gzip")),
    ("headers", lambda t, s: answered(403, "", *(f"{name}: {one_line(t)[:3000]}" for name in (
        "x-echo", "set-cookie", "www-authenticate", "retry-after", "x-should-retry", "content-type", "request-id",
        "anthropic-ratelimit-requests-reset", "server")))),
    ("reason phrase", lambda t, s: answered(418, "", reason=one_line(t)[:2000])),
    ("redirect", lambda t, s: answered(302, t, f"location: https://host.example/{quote(t)[:2000]}")),
    ("wants credentials", lambda t, s: answered(407, t, "proxy-authenticate: Basic")),
    ("no HTTP", lambda t, s: [f"{one_line(t)}\r\n\r\n".encode(), HANG_UP]),
    ("broken header", lambda t, s: [f"HTTP/1.1 200 OK\r\n{one_line(t)[:500]}\r\n\r\n".encode(), HANG_UP]),
    ("no length", lambda t, s: [f"HTTP/1.1 400 X\r\ncontent-length: {one_line(t)[:500]}\r\n\r\n".encode(), HANG_UP]),
    ("bad chunk", lambda t, s: [STREAM_HEAD, one_line(t).encode() + b"\r\n", HANG_UP]),
    ("error in a 200", lambda t, s: answered(200, {"error": {"message": t, "type": t, "code": t}})),
    ("page in a 200", lambda t, s: answered(200, f"<html><title>{t}</title></html>")),
    ("text in a 200", lambda t, s: answered(200, t)),
    ("closed", lambda t, s: [HANG_UP]),
    ("cut short", lambda t, s: [f"HTTP/1.1 500 X\r\ncontent-length: 99999\r\n\r\n{t}".encode(), HANG_UP]),
]
CHAT = [
    ("stream with an error", lambda t, s: streamed(chunk(delta={"content": s}), {"error": {"message": t, "type": t, "code": t}})),
    ("stream of an error", lambda t, s: streamed({"error": {"message": t, "type": s[:90], "code": 429}})),
    ("stream of no JSON", lambda t, s: streamed(chunk(delta={"content": s}), "{" + one_line(s))),
    ("stream that is cut", lambda t, s: streamed(chunk(delta={"content": s}), end=(HANG_UP,))),
    ("stream with odd values", lambda t, s: streamed(
        {**chunk(delta={"role": s, "content": s, "reasoning_content": s, "refusal": s}), "id": s, "model": s, "service_tier": s},
        chunk(finish_reason=s, stop_reason=s), {"choices": [], "usage": {"prompt_tokens": s, "completion_tokens": s, s: s}}, "[DONE]")),
    ("answer", lambda t, s: streamed(
        chunk(delta={"reasoning_content": s}), chunk(delta={"content": s}),
        chunk(delta={"tool_calls": [{"index": 0, "id": "call_1", "function": {"name": s[:40], "arguments": json.dumps({s: s})}}]}),
        chunk(delta={"tool_calls": [{"index": 1, "id": s[:40], "function": {"name": "Bash", "arguments": "{" + s}}]}),
        chunk(finish_reason="tool_calls"), "[DONE]")),
]
MESSAGES = [
    ("stream with an error", lambda t, s: streamed(started(), *block(0, TEXT, text=""), {"type": "error", "error": {"type": t, "message": t}})),
    ("stream of an error", lambda t, s: streamed({"type": "error", "error": {"type": "overloaded_error", "message": t}, "request_id": t})),
    ("stream of no JSON", lambda t, s: streamed(started(), "{" + one_line(s))),
    ("stream that is cut", lambda t, s: streamed(started(), *block(0, {**TEXT, "text": s}, text=""), end=(HANG_UP,))),
    ("stream with odd indexes", lambda t, s: streamed(started(), {"type": "content_block_start", "index": s, "content_block": {"type": "text", "text": s}})),
    ("stream with odd deltas", lambda t, s: streamed(started(), {"type": "content_block_delta", "index": s, "delta": TEXT})),
    ("stream with odd values", lambda t, s: streamed(
        started(id=s, model=s, usage={"input_tokens": s, "output_tokens": s, s: s}), *block(0, {**TEXT, "text": s}, text=""),
        {"type": s[:50], s: s}, *ended(s, output_tokens=s))),
    ("answer", lambda t, s: streamed(
        started(), *block(0, {"type": "thinking_delta", "thinking": s}, type="thinking", thinking="", signature=s),
        *block(1, {"type": "input_json_delta", "partial_json": json.dumps({s: s})}, type="tool_use", id="toolu_1", name=s, input={}),
        *ended("tool_use", output_tokens=2))),
    ("whole answer", lambda t, s: answered(200, {**WHOLE, "content": [{"type": "text", "text": s}], "stop_reason": s,
                                              "usage": {"input_tokens": s, "output_tokens": s}})),
]
REPLIES = [
    ("answer", lambda t, s: answered(200, {**WHOLE, "content": [{"type": "text", "text": s}], "stop_reason": s})),
    ("answer with a call", lambda t, s: answered(200, {**WHOLE, "content": [{"type": "text", "text": f'<tool_call>\n{{"name": "{s[:20]}", "input": {{'}]})),
    ("answer of callAI", lambda t, s: answered(200, {"status": "success", "model": s, "content": s, "usage": {"prompt_tokens": 2, "completion_tokens": 1}})),
    ("apology", lambda t, s: answered(200, {**WHOLE, "content": [{"type": "text", "text": s}], "usage": {"input_tokens": 0, "output_tokens": 0}})),
    ("warnings of PHP", lambda t, s: answered(200, f"<br />Warning: {t}" + json.dumps({"error": t}))),
    ("description", lambda t, s: answered(200, {"name": s, "module-version": s, "redcap-version": s, "auth-actions": {s: s}})),
]


# --- what a client says ---------------------------------------------------------------------------


def full_body(words: Canaries, **more: Any) -> Dict[str, Any]:
    """A request with a word in every leaf, and in the names of members that are free."""
    text, token = words.text, words.token
    tool_id, picture = token("tool id"), base64.b64encode(text("image data").encode() * 3).decode()
    words.words["image data, decoded"] = words.words["image data"]
    content = [
        {"type": "text", "text": text("text"), "cache_control": {"type": token("cache control")}, token("key of a block"): 1},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": picture}},
        {"type": "image", "source": {"type": "url", "url": f"https://{token('image host')}.example/{token('image path')}"}},
        {"type": "image", "source": {"type": "file", "file_id": token("file id")}},
        {"type": "document", "title": text("title"), "context": text("context"),
         "source": {"type": "text", "media_type": "text/plain", "data": text("document")}},
        {"type": "document", "source": {"type": "base64", "media_type": token("media type"), "data": picture}},
        {"type": "search_result", "source": text("source"), "title": text("result title"),
         "content": [{"type": "text", "text": text("result")}]},
        {"type": token("type of a block"), "payload": text("unknown block")},
    ]
    answer = [
        {"type": "thinking", "thinking": text("thinking"), "signature": token("signature")},
        {"type": "redacted_thinking", "data": token("hidden thinking")},
        {"type": "text", "text": text("answer before"), "citations": [{"type": "x", "cited_text": text("citation")}]},
        {"type": "tool_use", "id": tool_id, "name": token("tool"), "input": {token("argument"): text("argument value")}},
    ]
    result = [{"type": "tool_result", "tool_use_id": tool_id, "is_error": True, "content": [
        {"type": "text", "text": text("tool result")}, {"type": token("type in a result"), "x": text("odd result")}]},
        {"type": "tool_result", "tool_use_id": token("id of no call"), "content": text("orphan result")}]
    schema = {"type": "object", "title": text("schema title"), "properties": {
        token("property"): {"type": "string", "description": text("property help"), "enum": [token("choice")]}}}
    return {
        "model": "claude-sonnet-5", "max_tokens": 50,
        "system": [{"type": "text", "text": text("system")}],
        "messages": [
            {"role": "user", "content": content, token("key of a message"): text("value in a message")},
            {"role": "assistant", "content": answer}, {"role": "user", "content": result},
            {"role": token("role"), "content": text("unknown role")}, {"role": "system", "content": text("late system")},
            {"role": "user", "content": text("plain text")},
        ],
        "tools": [{"name": token("tool"), "description": text("tool help"), "input_schema": schema},
                  {"type": token("type of a tool"), "name": token("server tool"), token("key of a tool"): text("in a tool")}],
        "tool_choice": {"type": "auto", token("key of a choice"): text("in a choice")},
        "metadata": {"user_id": token("user id"), token("key of metadata"): text("in metadata")},
        "stop_sequences": [text("stop sequence")], "service_tier": token("service tier"),
        "output_config": {"effort": token("effort"), token("key of output"): text("in output")},
        "context_management": {"edits": [{"type": token("edit")}]}, "container": token("container"),
        "mcp_servers": [{"type": "url", "url": f"https://{token('mcp host')}.example", "name": token("mcp")}],
        token("unknown key"): text("unknown value"), **more,
    }


def odd_bodies(words: Canaries) -> List[bytes]:
    """What is no sound request; each with its word."""
    def body(place: str, **more: Any) -> bytes:
        word = words.text(place)
        user = [{"role": "user", "content": word}]
        found = {"model": "claude-sonnet-5", "max_tokens": 5, "messages": user, **more}
        return json.dumps({key: word if value is ... else value for key, value in found.items()}).encode()

    word, text = words.token, words.text
    return [
        f'{{"model": "{text("JSON that ends")}'.encode(), text("no JSON").encode(), f'"{text("a string")}"'.encode(),
        f'[{{"{word("a list")}": 1}}]'.encode(), f'{{"a": NaN, "{word("NaN")}": 1}}'.encode(),
        f'{{"{word("bad escape")}": "\\x"}}'.encode(), f'{{"{word("control")}": "\n"}}'.encode(),
        b'{"a": "\xff' + word("bad UTF-8").encode() + b'"}', f'{{"{word("big number")}": 1e999}}'.encode(),
        b'{"a": ' + b"[" * 3000 + word("deep").encode(), f'{{"{word("twice")}": 1, "{word("twice")}": 2}}'.encode(),
        body("messages as text", messages=...), body("message as text", messages=[text("message in a list")]),
        body("content as object", messages=[{"role": "user", "content": {word("content key"): text("content value")}}]),
        body("block as text", messages=[{"role": "user", "content": [text("block")]}]),
        body("text as object", messages=[{"role": "user", "content": [{"type": "text", "text": {word("text key"): 1}}]}]),
        body("role as list", messages=[{"role": [word("role in a list")], "content": text("of that role")}]),
        body("max_tokens as text", max_tokens=...), body("stream as text", stream=...), body("system as text", system=...),
        body("system as object", system={word("system key"): text("system value")}), body("system as list", system=[text("system item")]),
        body("tools as text", tools=...), body("tool as text", tools=[text("tool item")]), body("tool without a name", tools=[{word("tool key"): 1}]),
        body("tool choice as text", tool_choice=...), body("choice of no tool", tool_choice={"type": "tool", "name": text("no tool")}),
        body("metadata as text", metadata=...), body("stops as text", stop_sequences=...), body("thinking as text", thinking=...),
        body("temperature as text", temperature=...), body("thread", thread={"type": "continue", "id": text("thread id")}),
        body("model as object", model={word("model key"): text("model value")}), body("model as list", model=[text("model item")]),
        body("model with blanks", model=...), body("model of an upstream", model=f"redcap:{text('model behind a colon')}"),
        body("very long model", model=text("long model") * 100),
        body("demo", model="demo:demo", messages=[{"role": "user", "content": f"demo: fail {word('demo')}"}]),
        body("PHI", messages=[{"role": "user", "content": f"{text('beside an SSN')} SSN 536-22-1187 mrn 12345678"}]),
    ]


def odd_heads(words: Canaries, fields: Any) -> List[bytes]:
    """Requests with a word in their line or in a header that is looked at."""
    word = words.token

    def post(*more: str, path: str = "/v1/messages", method: str = "POST", data: bytes = b"{}") -> bytes:
        return request_bytes(data, path=path, method=method, fields=(*fields, *more))

    def get(path: str, *more: str, method: str = "GET") -> bytes:
        return request_bytes(path=path, method=method, fields=(*fields, *more))

    small = json.dumps({"model": "claude-sonnet-5", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}).encode()
    return [
        post(path=f"/v1/messages?{word('query')}", data=small), post(path=f"/v1/messages?beta=true&key={word('query value')}", data=small),
        post(path=f"/v1/messages?{word('query name')}=1&a={quote(words.text('query text'))}", data=small),
        post(path=f"/v1/messages/{word('path behind')}"), post(path=f"/{word('path before')}/v1/messages"),
        get(f"/{word('path')}"), get(f"/v1/{quote(words.text('path text'))}"), get(f"/v1/models/{word('model in a path')}"),
        get(f"/v1/models/{quote(words.text('text for a model'))}"), get(f"/v1/models?after_id={word('after')}&limit={word('limit')}"),
        get(f"/health?{word('health query')}"), get(f"/metrics/{word('metrics path')}"), get(f"/v1/files/{word('file')}/content"),
        get("/v1/models", method=word("method")), post(method=word("method of a post")), get("*", method="OPTIONS"),
        get("/v1/messages", "origin: https://app.example", f"access-control-request-headers: {word('wanted header')}",
            f"access-control-request-method: {word('wanted method')}", method="OPTIONS"),
        get("/v1/models", f"origin: https://{word('origin')}.example"), get("/v1/models", f"sec-fetch-site: cross-site, {word('site')}"),
        post(f"content-type: {word('content type')}"), post(f"expect: {word('expect')}"), post(f"content-length: {word('length')}"),
        post(f"transfer-encoding: {word('transfer coding')}"), post(f"{word('no header')}"), post(f"{word('bad name')} x: 1"),
        f"GET / HTTP/1.1\r\nhost: {word('host')}.example\r\n\r\n".encode(), f"GET / HTTP/1.1\r\nhost: {word('bad host')} x\r\n\r\n".encode(),
        f"{word('request line')}\r\n\r\n".encode(), f"GET / {word('version')}\r\n\r\n".encode(), f"GET {word('target')} HTTP/1.1\r\n\r\n".encode(),
        f"GET http://user:{word('target user')}@localhost/ HTTP/1.1\r\nhost: localhost\r\n\r\n".encode(),
        f"GET /#{word('fragment')} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode(),
        f"CONNECT {word('connect')}:443 HTTP/1.1\r\nhost: localhost\r\n\r\n".encode(),
        f"POST /v1/messages HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n{word('chunk size')}\r\n".encode(),
        f"GET / HTTP/1.1\r\nx: {word('bare line end')}\n\r\n".encode(), b"GET /" + word("long line").encode() * 1500,
    ]


def usual_headers(words: Canaries) -> List[str]:
    """Headers that any request may have; the two that are credentials are among the secrets."""
    word = words.token
    return [
        f"anthropic-beta: {word('beta')},claude-code-20250219,{words.text('beta text')}", f"anthropic-version: {word('version header')}",
        f"user-agent: {word('user agent')}/1", f"x-unknown: {word('unknown header')}", f"{word('header name')}: 1",
        f"x-forwarded-for: {word('forwarded for')}", f"forwarded: for={word('forwarded')}", f"traceparent: 00-{word('traceparent')}-01",
        f"tracestate: {word('tracestate')}", f"referer: https://x.example/{word('referer')}", f"x-request-id: {word('request id')}",
        f"x-claude-code-session-id: {word('session')}", f"x-claude-code-agent-id: {word('agent')}", f"accept: {word('accept')}",
        f"accept-language: {word('language')}", f"if-none-match: {word('etag')}", "x-proxy-notes: 1",
    ]


# --- processes ------------------------------------------------------------------------------------


class Bench:
    """A proxy in a process of its own before an upstream that says what it is told to."""

    def __init__(self, folder, log_format, make_settings):
        self.folder, self.format = folder, log_format
        self.secrets, self.contents = Canaries(f"secrets {log_format}"), Canaries(f"contents {log_format}")
        self.outputs: Dict[str, bytes] = {}
        self.answers: List[bytes] = []
        self.script: Any = None
        self.upstream = ScriptedUpstream(lambda request: self.script(request))
        made = make_settings(self.secrets, self.upstream, folder)
        self.environ = {
            "LISTEN_PORT": "0", "LOG_LEVEL": "debug", "LOG_FORMAT": log_format, "MODEL_LIMITS": "false", "MAX_RETRIES": "0",
            "AUDIT_FILE": str(folder / "audit.jsonl"), "AUDIT_KEY": self.secrets.token("AUDIT_KEY"), "AUDIT_SYNC": "false",
            "PHI_GUARD": "audit", "KEY_COOLDOWN": "0.01", "CORS_ALLOWED_ORIGINS": "https://app.example", **made.pop("settings"),
        }
        self.shown: List[str] = made.pop("shown")
        self.frames: List[Any] = made.pop("frames", [])
        # Where nothing is there to quote, or another row is much the same, a part of the ways to fail will do.
        self.thorough: bool = make_settings in (keyed_openai, keyed_anthropic, open_anthropic, told_anthropic, keyed_redcap)
        self.err = open(folder / "stderr", "wb")
        system = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen([sys.executable, "-m", "claude_proxy"], cwd=folder, env={**system, **self.environ},
                                        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self.err)
        self.first_line = self.process.stdout.readline()
        match = re.fullmatch(rb"listening on http://127\.0\.0\.1:(\d+)\n", self.first_line)
        assert match, (self.first_line, (folder / "stderr").read_text())
        self.port = int(match.group(1))

    def close(self):
        self.process.kill()
        self.process.communicate()
        self.err.close()
        self.upstream.__exit__()

    def send(self, data: bytes, end: bool = True) -> bytes:
        with RawClient(self.port, timeout=20) as client:
            with contextlib.suppress(OSError):  # it may be answered before it has been read
                client.send(data)
            answer = bytearray()
            with contextlib.suppress(AssertionError):
                answer += client.read_until(b"\r\n\r\n")
                answer += body_behind(bytes(answer), client)
        self.answers.append(bytes(answer))
        return bytes(answer)

    def ask(self, body: Any, fields: Any = None, **more: Any) -> bytes:
        return self.send(request_bytes(body, fields=tuple(self.shown if fields is None else fields), **more))

    def err_text(self) -> str:
        return (self.folder / "stderr").read_text()

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        rest, _ = self.process.communicate(timeout=20)
        assert self.process.returncode == 0
        self.outputs["stdout"] = self.first_line + rest
        self.outputs["stderr"] = (self.folder / "stderr").read_bytes()
        self.outputs["audit"] = b"".join(path.read_bytes() for path in sorted(self.folder.glob("audit.jsonl*")))


def body_behind(head: bytes, client: RawClient) -> bytes:
    """What is behind an answer's head, up to its end or that of the connection."""
    length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
    if b"transfer-encoding: chunked" in head:
        parts = []
        with contextlib.suppress(AssertionError):
            parts.append(client.read_until(b"0\r\n\r\n"))
        return b"".join([*parts, client.buffer])
    with contextlib.suppress(AssertionError):
        return client.read_exactly(int(length.group(1))) if length else b""
    return client.buffer


def quoting(make, said):
    return lambda request: make(quoted(request, said), f"{said} | {without_token(request)}")


def without_token(request):
    return re.sub(r"token=\w+", "", request.body.decode("utf-8", "replace"))


def bearer(word):
    return f"authorization: Bearer {word}"


def keyed_openai(words, upstream, folder):
    (folder / "key").write_text(words.token("OPENAI_API_KEY") + "\n")
    settings = {
        "OPENAI_BASE_URL": upstream.url, "OPENAI_API_KEY_FILE": "key", "ANTHROPIC_API_KEY": f"ann:{words.token('ANTHROPIC_API_KEY')}",
        "AUTH_TOKEN": words.token("AUTH_TOKEN"), "CUSTOM_HEADER_X_GATE": words.token("custom header"),
        "CUSTOM_HEADER_X_BEARER": f"Bearer {words.token('custom bearer')}", "CUSTOM_HEADER_X_CRUMB": f"a={words.token('custom cookie')}; b=1",
    }
    return {"settings": settings, "shown": [bearer(words.token("ANTHROPIC_API_KEY"))], "frames": CHAT}


def open_openai(words, upstream, folder):
    keys = f"{words.token('first key')},{words.token('second key')}"
    settings = {"OPENAI_BASE_URL": upstream.url, "OPENAI_API_KEY": keys, "AZURE_API_VERSION": "2024-10-21",
                "FALLBACK_MODELS": "gpt-other"}
    return {"settings": settings, "shown": [f"x-api-key: {words.token('shown as x-api-key')}"], "frames": CHAT}


def keyed_anthropic(words, upstream, folder):
    settings = {"ANTHROPIC_FORWARD_URL": upstream.url, "ANTHROPIC_UPSTREAM_KEY": words.token("ANTHROPIC_UPSTREAM_KEY"),
                "ANTHROPIC_API_KEY": words.token("ANTHROPIC_API_KEY"), "CUSTOM_HEADER_X_GATE": words.token("custom header")}
    return {"settings": settings, "shown": [f"x-api-key: {words.token('ANTHROPIC_API_KEY')}"], "frames": MESSAGES}


def open_anthropic(words, upstream, folder):
    settings = {"ANTHROPIC_FORWARD_URL": upstream.url, "ANTHROPIC_DEMOTE_NONSTREAMING": "true"}
    shown = [bearer(words.token("shown as bearer")), f"x-api-key: {words.token('shown as x-api-key')}"]
    return {"settings": settings, "shown": shown, "frames": MESSAGES}


def told_anthropic(words, upstream, folder):
    """The API behind another one, for answers that are converted."""
    settings = {"ANTHROPIC_FORWARD_URL": upstream.url, "ANTHROPIC_UPSTREAM_KEY": words.token("ANTHROPIC_UPSTREAM_KEY"),
                "TEXT_TOOLS_MODELS": "*"}
    return {"settings": settings, "shown": [bearer(words.token("shown as bearer"))], "frames": MESSAGES}


def redcap_url(upstream):
    return f"http://127.0.0.1:{upstream.port}/api/"


def redcap_token(words, place):
    token = words.token(place).encode().hex()[:32]
    words.words[place] = token
    return token


def keyed_redcap(words, upstream, folder):
    token = redcap_token(words, "REDCAP_API_TOKEN")
    settings = {"REDCAP_API_URL": redcap_url(upstream), "REDCAP_API_TOKEN": token, "CUSTOM_HEADER_X_GATE": words.token("custom header")}
    return {"settings": settings, "shown": [bearer(token)], "frames": REPLIES}


def open_redcap(words, upstream, folder):
    token = redcap_token(words, "a client's token")
    return {"settings": {"REDCAP_API_URL": redcap_url(upstream)}, "shown": [bearer(token)], "frames": REPLIES}


def keyed_demo(words, upstream, folder):
    settings = {"AUTH_TOKEN": words.token("AUTH_TOKEN"), "AUTH_API_KEY_HEADER": "x-own-key"}
    return {"settings": settings, "shown": [f"x-own-key: {words.token('AUTH_TOKEN')}"]}


def open_demo(words, upstream, folder):
    return {"settings": {}, "shown": [bearer(words.token("shown as bearer"))]}


def plain_proxy(words, upstream, folder):
    user = f"user:{words.token('HTTP_PROXY')}"
    settings = {"OPENAI_BASE_URL": "http://upstream.example:81/v1", "OPENAI_API_KEY": words.token("OPENAI_API_KEY"),
                "HTTP_PROXY": f"http://{user}%2B@127.0.0.1:{upstream.port}"}
    return {"settings": settings, "shown": [bearer(words.token("shown as bearer"))], "frames": CHAT}


def tunnel(words, upstream, folder):
    settings = {"OPENAI_BASE_URL": "https://upstream.example/v1", "OPENAI_API_KEY": words.token("OPENAI_API_KEY"),
                "HTTPS_PROXY": f"http://{words.token('HTTPS_PROXY')}@127.0.0.1:{upstream.port}"}
    frames = [("no TLS", lambda t, s: [b"HTTP/1.1 200 OK\r\n\r\n" + one_line(t).encode(), HANG_UP]),
              ("no TLS behind", lambda t, s: [b"HTTP/1.1 200 OK\r\n\r\n", one_line(t).encode(), HANG_UP])]
    return {"settings": settings, "shown": [bearer(words.token("shown as bearer"))], "frames": frames}


def unreachable(words, upstream, folder):
    """A name that cannot be looked up, for the usual upstream; a port at which no TLS is spoken, and one where nothing listens."""
    settings = {"OPENAI_BASE_URL": f"http://{'a' * 70}.example/v1", "OPENAI_API_KEY": words.token("OPENAI_API_KEY"),
                "ANTHROPIC_FORWARD_URL": f"https://127.0.0.1:{upstream.port}", "UPSTREAM": "openai", "CONNECT_TIMEOUT": "0.05",
                "ANTHROPIC_UPSTREAM_KEY": words.token("ANTHROPIC_UPSTREAM_KEY"), "REDCAP_API_URL": "http://127.0.0.1:9/api/",
                "REDCAP_API_TOKEN": redcap_token(words, "REDCAP_API_TOKEN")}
    return {"settings": settings, "shown": [bearer(words.token("shown as bearer"))]}


KINDS = [
    ("openai with a key", "json", keyed_openai), ("openai without", "text", open_openai),
    ("anthropic with a key", "text", keyed_anthropic), ("anthropic without", "json", open_anthropic),
    ("anthropic converted", "json", told_anthropic),
    ("redcap with a shared token", "json", keyed_redcap), ("redcap without", "text", open_redcap),
    ("demo with a key", "text", keyed_demo), ("demo without", "json", open_demo),
    ("a proxy", "json", plain_proxy), ("a tunnel", "text", tunnel), ("nothing there", "json", unreachable),
]


OWN_PAGES = ("/health", "/livez", "/openapi.json", "/", "/metrics")


def say_everything(bench: Bench) -> None:
    """Each request and each answer of the tables."""
    words, secrets = bench.contents, bench.secrets
    usual = usual_headers(words)
    credentials = [f"cookie: session={secrets.token('cookie')}", f"proxy-authorization: Basic {in_base64('u:' + secrets.token('client proxy'))}"]
    fields = (*bench.shown, *credentials, *usual)
    failures = FAILURES if bench.thorough else FAILURES[::4]
    for number, (name, make) in enumerate((*failures, *bench.frames)):
        bench.script = quoting(make, words.text(f"upstream: {name}"))
        bench.ask(full_body(words, stream=number % 2 == 0), fields)
        if bench.thorough:
            bench.ask(full_body(words, stream=number % 2 == 1), fields, path="/v1/messages?beta=true")
    bench.script = quoting(FAILURES[0][1], words.text("upstream: usual"))
    for body in odd_bodies(words):
        bench.ask(body, fields)
        if bench.thorough:
            bench.ask(body, fields, path="/v1/messages/count_tokens")
    for data in odd_heads(words, bench.shown):
        bench.send(data)
    for name in ("redcap", "anthropic", "openai", "demo"):
        bench.ask(full_body(words, model=f"{name}:claude-sonnet-4.6"), fields)
    wrong = [[bearer(secrets.token("wrong bearer"))], [f"x-api-key: {secrets.token('wrong key')}"],
             [f"authorization: Basic {in_base64('u:' + secrets.token('wrong password'))}"], [f"authorization: {secrets.token('no scheme')}"], []]
    for shown in wrong:
        bench.ask(full_body(words), shown)
    for path in ("/health", "/livez", "/openapi.json", "/", "/v1/models", "/test-connection", "/metrics"):
        for name, make in (FAILURES[0], *bench.frames) if path == "/test-connection" else FAILURES[:1]:
            bench.script = quoting(make, words.text(f"upstream: {name}, tested"))
            answer = bench.ask(None, path=path, method="GET")
            if path in OWN_PAGES:  # the others may be an upstream's
                bench.outputs[path] = answer


def reload_twice(bench: Bench) -> None:
    """Settings that are wrong, then others that are not."""
    env = bench.folder / ".env"
    for text, event in ((f"CUSTOM_HEADER_X_NEW='{bench.secrets.token('reloaded')}\x01'", "reload_refused"), ("BIG_MODEL=x", "reloaded")):
        env.write_text(text)
        count = bench.err_text().count(event)
        bench.process.send_signal(signal.SIGHUP)
        assert wait_until(lambda e=event, c=count: bench.err_text().count(e) > c, 5)


def commands(bench: Bench) -> None:
    """What the command line tells of the same settings and of the audit."""
    quoted_words = bench.contents.text("upstream: asked by a command")
    bench.script = quoting(FAILURES[0][1], quoted_words)
    environ = {**bench.environ, "ANTHROPIC_AUTH_TOKEN": bench.secrets.token("ANTHROPIC_AUTH_TOKEN")}
    (bench.folder / "request.json").write_text(json.dumps(full_body(bench.contents)))
    for arguments in (["--check-config"], ["--check-upstream"], ["--explain-route", "request.json"],
                      ["--verify-audit", str(bench.folder / "audit.jsonl")]):
        out, err = io.StringIO(), io.StringIO()
        main(arguments, environ, out, err)
        told = out.getvalue() + err.getvalue()
        # What an upstream says to --check-upstream is shown to who asks; but no secrets in it.
        place = "told" if arguments == ["--check-upstream"] else f"told by {arguments[0]}"
        (bench.answers.append(told.encode()) if place == "told" else bench.outputs.__setitem__(place, told.encode()))


@pytest.mark.parametrize("log_format,make", [row[1:] for row in KINDS], ids=[row[0] for row in KINDS])
def test_nothing_leaks(folder, log_format, make):
    bench = Bench(folder, log_format, make)
    try:
        say_everything(bench)
        reload_twice(bench)
        bench.stop()
        commands(bench)
    finally:
        bench.close()
    assert b"Traceback" not in bench.outputs["stderr"]
    assert bench.outputs["stderr"].count(b"\n") > 90 and bench.outputs["audit"].count(b"\n") > 90
    secrets, contents = bench.secrets.needles(), bench.contents.needles()
    hits = [hit for where, data in bench.outputs.items() for needles in (secrets, contents) for hit in needles.hits(data, where)]
    for answer in bench.answers:
        hits += secrets.hits(answer, "an answer")
    size = sum(map(len, bench.outputs.values())) + sum(map(len, bench.answers))
    print(f"{secrets.count} secrets and {contents.count} contents in {secrets.forms + contents.forms} forms, {size} bytes")
    assert not hits, "\n".join(sorted({f"{hit.where}: {hit.place} ({hit.kind})": str(hit) for hit in hits}.values()))


# --- defects --------------------------------------------------------------------------------------


class Defective:
    """An upstream with a defect in it, whose exception quotes what it had in hand."""

    name, native_tools = "demo", True

    def __init__(self, words):
        self.words = words

    def describe(self):
        return "defective"

    def probe(self, exchange):
        raise KeyError(self.words.text("probe"))

    def stream(self, request, exchange):
        if request.get("stream"):
            yield started()
        raise ValueError(self.words.text("stream"), {self.words.token("key of an exception"): request})


def test_a_defect_is_told_without_its_words(form):
    words = Canaries("defects")
    with running_proxy(form) as proxy:
        upstreams = {"demo": Defective(words)}
        answerer = proxy.app.answerer._replace(upstreams=upstreams)
        proxy.server.app = proxy.app._replace(upstreams=upstreams, answerer=answerer)
        answers = [ask(proxy.port, full_body(words, stream=stream)) for stream in (False, True)]
        answers.append(ask(proxy.port, path="/test-connection", method="GET"))
        assert wait_until(lambda: len([line for line in proxy.log_lines() if line["event"] == "defect"]) == 3)
        lines = [line for line in proxy.log_lines() if line["event"] == "defect"]
        told = proxy.log_text.getvalue()
    assert [line["error"] for line in lines] == ["ValueError", "ValueError", "KeyError"]
    assert all(re.search(r"(?:^| > )(?:stream|probe):\d+$", line["at"]) for line in lines)
    assert [answer.status for answer in answers] == [500, 200, 500]
    for text in (told.encode(), *(answer.body for answer in answers)):
        assert words.needles().hits(text, "a defect") == []


class Unheard:
    """Fails when nobody can be told."""

    def __init__(self, text):
        self.text = text

    def __del__(self):
        raise RuntimeError(self.text)


def fail_with(text):
    raise LookupError(text)


def test_what_ends_a_thread_is_told_without_its_words(capfd):
    words, text = Canaries("threads"), io.StringIO()
    before = threading.excepthook, sys.unraisablehook
    with told_crashes(Log(text, "debug", True)):
        thread = threading.Thread(target=fail_with, args=(words.text("thread"),), name=words.token("thread's name"))
        thread.start()
        thread.join()
        Unheard(words.text("unheard"))
    assert (threading.excepthook, sys.unraisablehook) == before
    lines = [json.loads(line) for line in text.getvalue().splitlines()]
    assert [(line["event"], line["error"]) for line in lines] == [("thread_failed", "LookupError"), ("failed_unheard", "RuntimeError")]
    assert re.search(r" > fail_with:\d+$", lines[0]["at"]) and "__del__:" in lines[1]["at"]
    told = text.getvalue() + "".join(capfd.readouterr())
    assert words.needles().hits(told.encode(), "threads") == []


class BrokenMapping(dict):
    def get(self, name, default=None):
        raise KeyError(self["text"])


def test_what_ends_the_command_is_told_without_its_words(folder):
    words, out, err = Canaries("command"), io.StringIO(), io.StringIO()
    status = main(["--check-config"], BrokenMapping(text=words.text("environment")), out, err)
    assert status == 1 and re.fullmatch(r"claude_proxy failed: KeyError at .* > get:\d+\n", err.getvalue())
    assert words.needles().hits((out.getvalue() + err.getvalue()).encode(), "command") == []


def test_place_of_what_was_never_raised():
    assert place_of(None) == place_of(ValueError("x")) == "unknown"
