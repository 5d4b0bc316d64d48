"""Every way in which REDCap and SecureChatAI fail, and what a client is told: status, words, time."""

from __future__ import annotations

import json
import time

import pytest

from tests.fake_securechat.server import Fake
from tests.support import RawClient, ask, message_body, request_bytes, running_proxy, wait_until

pytestmark = pytest.mark.usefixtures("no_thread_left")

TOKEN = "0123456789abcdef" * 2
FIELDS = (f"authorization: Bearer {TOKEN}",)
APOLOGY = "I apologize, but I'm experiencing network difficulties. Please wait a moment and try again."
QUICK = 1.0

# (name, what goes wrong, the client's status, words it is told, seconds it may take)
FAULTS = [
    ("bad token, JSON", ("bad_token", {}), 401, "refused the API token", QUICK),
    ("bad token, XML", ("bad_token", {"form": "xml"}), 401, "You do not have permissions", QUICK),
    ("bad token, CSV", ("bad_token", {"form": "csv"}), 401, "You do not have permissions", QUICK),
    ("login page", ("html_login", {}), 502, "does not point at REDCap's API", QUICK),
    ("redirect", ("redirect", {"to": "http://127.0.0.1:9/"}), 502, "it redirects", QUICK),
    ("GET only", ("get_only", {}), 502, "not implemented", QUICK),
    ("firewall", ("waf", {}), 403, "likely a firewall", QUICK),
    ("banned", ("banned", {}), 429, "banned this address", QUICK),
    ("empty 200", ("empty_200", {}), 502, "an empty answer", QUICK),
    ("empty 500", ("empty_500", {}), 502, "status 500", QUICK),
    ("out of memory", ("oom", {}), 502, "status 500", QUICK),
    ("PHP's fatal error", ("php_fatal", {}), 502, "error log", QUICK),
    ("crash page", ("crash_page", {}), 502, "fatal error", QUICK),
    ("no database", ("mysql", {}), 502, "plain text", QUICK),
    ("error in a 200", ("error_in_200", {}), 502, "not enabled", QUICK),
    ("gateway", ("gateway", {"seconds": 0.1}), 529, "gave up waiting", QUICK),
    ("proxy down", ("gateway", {"status": 502}), 529, "gave up waiting", QUICK),
    ("reset before a byte", ("reset", {"where": "before"}), 502, "closed the connection", QUICK),
    ("reset in the head", ("reset", {"where": "head"}), 502, "closed the connection", QUICK),
    ("reset in the body", ("reset", {"where": "body"}), 502, "before the answer was complete", QUICK),
    ("short of its length", ("reset", {"where": "length"}), 502, "before the answer was complete", QUICK),
    ("slow error", ("slow_error", {"seconds": 0.2}), 401, "refused the API token", QUICK),
    ("never", ("never", {}), 504, "timed out", 2.0),
]
# The same by what the model's provider answers: (name, its answers, status, words)
VENDORS = [
    ("vendor error", [{"status": 500}] * 3, 502, "no tokens"),
    ("vendor busy", [{"status": 429}] * 3, 502, "no tokens"),
    ("error in the vendor's 200", [{"error": "no"}], 502, "no tokens"),
    ("empty text", [{"text": ""}], 502, "could pass on"),
    ("a sentence without tokens", [{"text": "Welcome!", "input": 0, "output": 0}], 502, "no tokens"),
    ("native calls", [{"text": None, "tool_calls": [{}]}], 502, "could pass on"),
    ("no JSON", [{"raw": "<"}], 502, "status 500"),
]


@pytest.fixture
def fake():
    with Fake(token=TOKEN) as started:
        yield started


def settings(fake, **more):
    return {"REDCAP_API_URL": fake.url, "REQUEST_TIMEOUT": "0.8", "MAX_RETRIES": "3", **more}


@pytest.mark.parametrize("name,fault,status,words,seconds", FAULTS, ids=[row[0] for row in FAULTS])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_faults_of_redcap(form, fake, name, fault, status, words, seconds, stream):
    fake.fault.push(fault[0], **fault[1])
    with running_proxy(form, settings(fake)) as proxy:
        begun = time.monotonic()
        answer = ask(proxy.port, message_body(stream=stream), fields=FIELDS)
        spent = time.monotonic() - begun
        wait_until(lambda: any(line["event"] == "request" for line in proxy.log_lines()))
        log = proxy.log_text.getvalue()
    assert (answer.status, words in answer.json["error"]["message"]) == (status, True), answer.body
    assert spent < seconds and len(fake.requests) == 1
    assert TOKEN not in answer.body.decode() + str(answer.headers) + log


@pytest.mark.parametrize("name,answers,status,words", VENDORS, ids=[row[0] for row in VENDORS])
def test_faults_of_the_models_provider(form, fake, name, answers, status, words):
    for each in answers:
        fake.vendor.push(**each)
    with running_proxy(form, settings(fake)) as proxy:
        answer = ask(proxy.port, message_body(), fields=FIELDS)
    assert (answer.status, words in answer.json["error"]["message"]) == (status, True), answer.body
    assert answer.headers["x-should-retry"] == "false" and len(fake.requests) == 1


def test_an_alias_that_the_settings_name_wrongly_is_told_by_its_name(form, fake):
    with running_proxy(form, settings(fake, BIG_MODEL="claude-opus-4.7")) as proxy:
        answer = ask(proxy.port, {**message_body(), "model": "claude-opus-4-8"}, fields=FIELDS)
    assert answer.status == 502 and "the model claude-opus-4.7" in answer.json["error"]["message"]


def test_a_fault_after_the_wait_began_is_an_error_event(form, fake):
    fake.fault.push("slow_error", seconds=0.3)
    with running_proxy(form, settings(fake), ping_interval=0.05) as proxy, RawClient(proxy.port) as client:
        client.send(request_bytes(message_body(stream=True), fields=FIELDS))
        told = client.read_until(b"\r\n0\r\n\r\n")
    assert b"HTTP/1.1 200" in told and told.count(b"event: ping") >= 2
    assert b"event: error" in told and b"refused the API token" in told and b"message_stop" not in told


# What arrives as an answer although it looks odd: (name, what the model said, what the client gets)
ANSWERS = [
    ("a real apology", APOLOGY, APOLOGY),
    ("entities in prose", "a &amp;lt; b &sum;", "a &lt; b \u2211"),
    ("a message object", '{"message":"MM","x":2}', "MM"),
    ("a fence", '```json\n{"content":"z"}\n```', "z"),
    ("a final answer", 'see {"final_answer": "in"} end', 'in"} end'),
]


@pytest.mark.parametrize("name,said,told", ANSWERS, ids=[row[0] for row in ANSWERS])
def test_whatever_arrives_is_told(form, fake, name, said, told):
    fake.vendor.push(text=said)
    with running_proxy(form, settings(fake)) as proxy:
        answer = ask(proxy.port, message_body(), fields=FIELDS)
    assert answer.json["content"] == [{"type": "text", "text": told}]


def test_entities_within_a_call_survive(form, fake):
    tool = {"name": "Write", "input_schema": {"type": "object", "properties": {"text": {"type": "string"}}}}
    text = 'if a &lt; b &amp;&amp; c: "&sum;" \\n'
    given = json.dumps({"name": "Write", "input": {"text": text}}).replace("&", "\\u0026")
    fake.vendor.push(text=f"<tool_call>\n{given}\n</tool_call>")
    with running_proxy(form, settings(fake)) as proxy:
        answer = ask(proxy.port, message_body(tools=[tool]), fields=FIELDS)
    assert answer.json["content"][0]["input"] == {"text": text}


def test_warnings_before_the_json_do_not_matter(form, fake):
    fake.fault.push("warning_prefix")
    with running_proxy(form, settings(fake)) as proxy:
        assert ask(proxy.port, message_body(), fields=FIELDS).json["content"][0]["text"] == "A canned answer."


def test_a_module_without_messages_is_asked_by_call_ai(form):
    with Fake(token=TOKEN, era="2025") as fake:
        with running_proxy(form, settings(fake, REDCAP_ERA="2026-01")) as proxy:
            answer = ask(proxy.port, message_body(), fields=FIELDS)
    assert answer.json["content"][0]["text"] == "A canned answer."
    assert [record.fields["action"] for record in fake.requests] == ["messages", "__info", "callAI"]


def test_a_body_that_php_drops_is_refused_here_first(form):
    with Fake(token=TOKEN, size_limit=3000) as fake:
        with running_proxy(form, settings(fake, REDCAP_MAX_BYTES="3000")) as proxy:
            answer = ask(proxy.port, message_body("x" * 4000), fields=FIELDS)
    assert (answer.status, answer.json["error"]["type"], fake.requests) == (413, "request_too_large", [])


def test_a_client_that_leaves_ends_the_call(form, fake):
    fake.fault.push("never")
    with running_proxy(form, settings(fake, REQUEST_TIMEOUT="60")) as proxy:
        with RawClient(proxy.port) as client:
            client.send(request_bytes(message_body(stream=True), fields=FIELDS))
            wait_until(lambda: fake.requests)
        assert fake.requests[0].closed_by_peer.wait(2)
    assert len(fake.requests) == 1
