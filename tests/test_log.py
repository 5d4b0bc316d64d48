"""Lines stay lines whatever they carry, and no credential passes `redact`."""

from __future__ import annotations

import base64
import io
import json
import re
from urllib.parse import quote, quote_plus

import pytest

from claude_proxy.log import REDACTED, Log, redact, shortened
from tests.canary import Needles

HEX24 = "0123456789abcdef01234567"
KEYS = [
    ("openai", "sk-proj-Ab3dEf6hIj9kLm2nOp5qRs8t"),
    ("openai, masked", "sk-proj-********************Xy7Z"),
    ("openai, letters alone", "sk-" + "aBcDeFgHiJ" * 5),
    ("openrouter", "sk-or-v1-" + HEX24 * 2),
    ("anthropic", "sk-ant-api03-Ab3_dE-f6hIj9kLm2nOp5q"),
    ("short, as in tests", "sk-test123"),
    ("groq", "gsk_" + "a1B2c3D4e5" * 5),
    ("hugging face", "hf_" + "a1B2c3D4e5" * 3),
    ("google", "AIzaSyA1b2C3d4E5f6G7h8I9j0K1l2M3n4O5p6Q"),
    ("xai", "xai-" + "a1B2c3D4e5" * 8),
    ("perplexity", "pplx-" + HEX24 * 2),
    ("nvidia", "nvapi-Ab3_dE-f6hIj9kLm2nOp5qRs8tUv1w"),
    ("github", "ghp_" + "a1B2c3D4e5" * 3),
    ("aws", "AKIAIOSFODNN7EXAMPLE"),
    ("azure, old", "0123456789abcdef0123456789abcdef"),
    ("azure, new", "a1B2c3D4e5F6" * 7),
    ("entra", "eyJ0eXAiOiJKV1Qi.eyJhdWQiOiJodHRwcy.c2lnbmF0dXJl-_x"),
]
PLACES = [
    ("alone", "{}"),
    ("in a sentence", "Incorrect API key provided: {}. You can find yours on the website."),
    ("header", "Authorization: Bearer {}"),
    ("json", '{{"api_key": "{}", "model": "gpt-4o"}}'),
    ("json in json", '{{\\"authorization\\": \\"Bearer {}\\"}}'),
    ("environment", "OPENAI_API_KEY={}\n"),
    ("query", "GET https://host.example/v1?key={}&alt=sse"),
]


@pytest.mark.parametrize(("place", "frame"), PLACES, ids=[row[0] for row in PLACES])
@pytest.mark.parametrize(("name", "key"), KEYS, ids=[row[0] for row in KEYS])
def test_keys_disappear_wherever_they_stand(name, key, place, frame):
    clean = redact(frame.format(key))
    assert REDACTED in clean
    parts = [part for part in re.split(r"[^\w]+", key) if len(part) > 5]
    assert not [part for part in parts if part in clean]


LABELS = [
    ("key provided", "Incorrect API key provided: sk-proj-abc123def456.", "Incorrect API key provided: [redacted]"),
    ("member", '{"api_key": "a1b2c3d4e5", "model": "m"}', '{"api_key": "[redacted]", "model": "m"}'),
    ("header", "authorization: Bearer a1b2c3d4e5", "authorization: Bearer [redacted]"),
    ("bearer", "got Bearer a1b2c3d4e5", "got Bearer [redacted]"),
    ("basic", "got Basic dXNlcjpwYXNzd29yZDE=", "got Basic [redacted]"),
    ("password", "password = correcthorse, user", "password = [redacted], user"),
    ("query", "/v1?alt=sse&key=a1b2c3d4e5&x=1", "/v1?alt=sse&key=[redacted]&x=1"),
    ("user", "https://user:a1b2@host.example/", "https://[redacted]@host.example/"),
]


@pytest.mark.parametrize(("name", "text", "clean"), LABELS, ids=[row[0] for row in LABELS])
def test_what_it_was_is_still_said(name, text, clean):
    assert redact(text) == clean == redact(clean)


OTHER_SECRETS = [
    ("bearer of no shape", "Bearer opaque_123456", "opaque"),
    ("header with a token of no shape", "authorization: Bearer opaqueOPAQUEopaque", "opaque"),
    ("lower-case bearer", "got 'bearer  tok3n.tok3n'", "tok3n"),
    ("basic", "Authorization: Basic dXNlcjpwYXNzd29yZA==", "dXNl"),
    ("basic alone", "sent Basic dXNlcjpwYXNzd29yZDE=", "dXNl"),
    ("x-api-key", "x-api-key: 'a1b2c3d4'", "a1b2"),
    ("client_secret", "client_secret=abcdefgh", "abcdef"),
    ("password", '"password": "correcthorse"', "horse"),
    ("access_token", "access_token=abc123def456", "abc123"),
    ("masked key without a prefix", "API key provided: f3a9****b2c1", "f3a9"),
    ("user in a url", "proxy http://user:pa55@proxy.example:3128 refused", "pa55"),
    ("token in a url", "https://tokentoken@host.example/", "tokentoken"),
    ("signature", "https://blob.example/x?sv=2024&sig=abcdefghijk", "abcdefghijk"),
]


@pytest.mark.parametrize(("name", "text", "secret"), OTHER_SECRETS,
                         ids=[row[0] for row in OTHER_SECRETS])
def test_labelled_secrets_disappear(name, text, secret):
    assert secret not in redact(text)


HARMLESS = [
    "Bearer authentication is required; basic authorization is not supported.",
    "A key-value store; a key-handling routine; see the key-value.",
    "Unexpected token: identifier. Unexpected token '}' in JSON at position 120034",
    "max_tokens: 128000, prompt_tokens=131072, one token: 1000000",
    "This model's maximum context length is 128000 tokens. However, you requested 130000 tokens",
    "request req_" + HEX24 + " and message msg_" + HEX24,
    "toolu_" + HEX24 + " call_AbCdEfGhIjKlMnOpQrStUvWx chatcmpl-AbC123dEf456GhI789",
    "550e8400-e29b-41d4-a716-446655440000",
    "claude-sonnet-4-5-20250929 gpt-4o-mini-2024-07-18 openai:gpt-4o o3-mini llama3.1:70b",
    "basic gpt-4o-mini, meta-llama/Llama-3.3-70B-Instruct, xai/grok-4-fast-reasoning",
    "/home/user/task-2024/disk-report-2024.md C:\\Users\\me\\sk\\key-2024.txt src/tokenizer.py:12",
    "https://api.openai.com/v1/chat/completions https://medium.com/@someone/a http://[::1]:8080",
    "2026-11-21T06:53:15Z 10.0.0.1:443 status=502 duration_ms=1200345",
    "mail someone@example.org; Content-Type: text/event-stream; password policy applies",
]


@pytest.mark.parametrize("text", HARMLESS)
def test_ordinary_words_survive(text):
    assert redact(text) == text


SECRET_LISTS = [
    ("known", "x hunter2 y hunter2", ["hunter2"], "x [redacted] y [redacted]"),
    ("part of another", "abcd abcdefgh", ["abcd", "abcdefgh"], "[redacted] [redacted]"),
    ("too short to be told from words", "abc", ["abc"], "abc"),
    ("with signs of an expression", "a.c$ abc$", ["a.c$"], "[redacted] abc$"),
]


@pytest.mark.parametrize(("name", "text", "secrets", "expected"), SECRET_LISTS,
                         ids=[row[0] for row in SECRET_LISTS])
def test_given_secrets_disappear(name, text, secrets, expected):
    assert redact(text, secrets) == expected


WORD = "Zq/Ab+cd?Ef \"gh\"-7"
FORMS = [
    ("as it is", f"x{WORD}y"), ("in capitals", WORD.upper()), ("in JSON", json.dumps([WORD])), ("in a URL", quote(WORD, safe="")),
    ("in a form", quote_plus(WORD)), ("as hex", WORD.encode().hex()),
    *((f"in base64 at {n}", base64.b64encode(b"\xfe" * n + WORD.encode() + b"..").decode()) for n in range(4)),
    *((f"in urlsafe base64 at {n}", base64.urlsafe_b64encode(b"\xff" * n + WORD.encode()).decode()) for n in range(3)),
]


@pytest.mark.parametrize("shown", [False, True], ids=["of settings", "of a client"])
@pytest.mark.parametrize(("name", "text"), FORMS, ids=[row[0] for row in FORMS])
def test_a_secret_disappears_however_it_is_quoted(name, text, shown):
    log = Log(io.StringIO(), secrets=() if shown else [WORD, "hunter2"])
    clean = log.redact(f"before {text} behind", [WORD] if shown else [])
    assert REDACTED in clean and clean.startswith("before ") and clean.endswith(" behind")
    assert not Needles([("word", WORD)]).hits(clean.encode(), "")
    assert log.clean_bytes(text.encode() + b"\xff", [WORD]).endswith(b"\xff")


def test_what_has_no_secret_in_it_stays_as_it_is():
    log = Log(io.StringIO(), secrets=["prompt", "a-known-secret", "x"])
    for data in (b"a prompt in \xff no UTF-8 \r\n", b"", "\u0130 \U0001f600".encode()):
        assert log.clean_bytes(data) is data
    assert log.redact("the length of words", ["length", "of"]) == "the length of words"


SHORTENED = [
    ("short enough", "abc def", 7, "abc def"), ("within a word", "abc def", 6, "abc "), ("behind a word", "abc def", 3, "..."),
    ("within a key", "key: sk-a/b+c=", 12, "key: "), ("one word", "a" * 9, 8, "..."), ("at a blank", "abc def", 4, "abc "),
]


@pytest.mark.parametrize(("name", "text", "limit", "short"), SHORTENED, ids=[row[0] for row in SHORTENED])
def test_half_a_word_is_not_told(name, text, limit, short):
    assert shortened(text, limit) == short


# --- lines ----------------------------------------------------------------------------------------


def written(as_json, level="info", secrets=(), **fields):
    stream = io.StringIO()
    Log(stream, "debug", as_json, secrets, clock=lambda: 86400.5).write(level, "it_was", fields)
    return stream.getvalue()


VALUES = [
    ("line ends", "a\nb\r\nc\rd"),
    ("other line ends", "a\x0bb\x0cc\x1cd\x85e\u2028f\u2029g"),
    ("escape sequence", "\x1b[31mred\x1b[0m"),
    ("NUL and DEL", "\0\x7f"),
    ("half an emoji", "\ud83d"),
    ("quotes", 'say "hi" = \'there\''),
    ("empty", ""),
    ("exception", ValueError("first\nsecond")),
    ("list", ["a\nb", {"c": "\u2028"}]),
    ("bytes", b"a\nb"),
    ("infinity", float("inf")),
]


@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
@pytest.mark.parametrize(("name", "value"), VALUES, ids=[row[0] for row in VALUES])
def test_one_line_whatever_the_value(name, value, as_json):
    line = written(as_json, before=1, value=value, after=2)
    assert line.endswith("\n") and len(line.splitlines()) == 1
    assert line[:-1].isprintable() and line.isascii()
    if as_json:
        same = isinstance(value, (str, float))
        assert json.loads(line)["value"] == (value if same else str(value))
    else:
        assert re.fullmatch(r"\S+ INFO    it_was before=1 value=(\S+|\".*\") after=2\n", line)


@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
@pytest.mark.parametrize("wrap", [str, ValueError, lambda t: [t], lambda t: {"k": t}, str.encode],
                         ids=["text", "exception", "list", "dict", "bytes"])
def test_no_secret_in_a_value_of_any_type(wrap, as_json):
    line = written(as_json, secrets=["hunter2"], error=wrap("hunter2 and sk-proj-abc123def456"))
    assert "hunter2" not in line and "abc123" not in line and REDACTED in line


LINES = [
    ("text", False, "1970-01-02T00:00:00Z WARNING it_was n=1 ok=True s=\"a b\" path=/x\n"),
    ("json", True, '{"time": "1970-01-02T00:00:00Z", "level": "warning", "event": "it_was",'
                   ' "n": 1, "ok": true, "s": "a b", "path": "/x"}\n'),
]


@pytest.mark.parametrize(("name", "as_json", "expected"), LINES, ids=[row[0] for row in LINES])
def test_the_whole_line(name, as_json, expected):
    fields = {"n": 1, "ok": True, "s": "a b", "none": None, "path": "/x"}
    assert written(as_json, "warning", **fields) == expected


LONG = "hunter2 " * 50
IN_ORDER = [
    # (name, the fields of one line after the other, what each line has of them as text, and in JSON)
    ("what is equal is not the same", [{"v": 1}, {"v": True}, {"v": 1.0}, {"v": "1"}, {"v": "True"}, {"v": 1}],
     ["v=1", "v=True", "v=1.0", "v=1", "v=True", "v=1"],
     ['"v": 1', '"v": true', '"v": 1.0', '"v": "1"', '"v": "True"', '"v": 1']),
    ("a value under another name", [{"a": "x y", "b": "x y"}, {"b": "x y"}],
     ['a="x y" b="x y"', 'b="x y"'], ['"a": "x y", "b": "x y"', '"b": "x y"']),
    ("an identifier, and the same of others", [{"id": HEX24 * 2, "it": HEX24 * 2}] * 2,
     [f"id={HEX24 * 2} it={REDACTED}"] * 2, [f'"id": "{HEX24 * 2}", "it": "{REDACTED}"'] * 2),
    ("a secret again and again", [{"e": "hunter2"}, {"f": "a hunter2"}, {"e": "hunter2"}],
     [f"e={REDACTED}", f'f="a {REDACTED}"', f"e={REDACTED}"],
     [f'"e": "{REDACTED}"', f'"f": "a {REDACTED}"', f'"e": "{REDACTED}"']),
    ("a secret in a long value", [{"e": LONG}], [f'e="{REDACTED} ' + f"{REDACTED} " * 49 + '"'],
     [f'"e": "{REDACTED} ' + f"{REDACTED} " * 49 + '"']),
    ("large and negative", [{"n": 10**40, "m": -1}], [f"n={10**40} m=-1"], [f'"n": {10**40}, "m": -1']),
]


@pytest.mark.parametrize(("name", "lines", "as_text", "as_json"), IN_ORDER, ids=[row[0] for row in IN_ORDER])
def test_what_is_remembered_of_a_line_makes_no_other_one_wrong(name, lines, as_text, as_json):
    for json_wanted, expected in ((False, as_text), (True, as_json)):
        stream = io.StringIO()
        log = Log(stream, "debug", json_wanted, ["hunter2"])
        for fields in lines:
            log.write("info", "it", fields)
        begin = '"event": "it", ' if json_wanted else " it "
        ends = [line.partition(begin)[2] for line in stream.getvalue().splitlines()]
        assert ends == [text + "}" if json_wanted else text for text in expected]


def test_each_line_has_the_second_in_which_it_was_written():
    stream, times = io.StringIO(), iter((59.9, 60.0, 60.999, 61.0, 59.0))
    log = Log(stream, "info", clock=lambda: next(times))
    for _ in range(5):
        log.info("it")
    seconds = [line.split()[0][-6:] for line in stream.getvalue().splitlines()]
    assert seconds == ["00:59Z", "01:00Z", "01:00Z", "01:01Z", "00:59Z"]


def test_a_number_that_cannot_be_written_ends_nothing():
    stream = io.StringIO()
    log = Log(stream)
    log.info("it", n=10**5000)
    log.info("and_on")
    assert stream.getvalue().splitlines()[-1].endswith("and_on")


def test_levels_below_the_threshold_are_not_written():
    stream = io.StringIO()
    log = Log(stream, "warning")
    for write in (log.debug, log.info, log.warning, log.error):
        write("event")
    assert [line.split()[1] for line in stream.getvalue().splitlines()] == ["WARNING", "ERROR"]


def test_a_closed_stream_ends_nothing():
    stream = io.StringIO()
    stream.close()
    Log(stream).error("event")
