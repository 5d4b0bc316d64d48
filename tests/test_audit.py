"""The audit: what its lines say, and that nothing can be changed in them without a trace."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
from contextlib import suppress

import pytest

from claude_proxy.audit import (
    Audit,
    AuditNames,
    AuditStream,
    SyslogSocket,
    audit_outcome,
    audited_error,
)
from claude_proxy.audit_files import (
    NO_HASH,
    AuditError,
    AuditFile,
    ChainKey,
    audit_summary,
    audit_time,
    parse_audit_line,
    verify_audit,
)
from claude_proxy.config import ConfigError
from claude_proxy.config_load import load_config
from claude_proxy.errors import ProxyError, error_type_of
from claude_proxy.exchange import Exchange
from claude_proxy.http1 import HttpRequest
from claude_proxy.log import Log
from tests.support import (
    HANG_UP,
    ROOT,
    Pause,
    RawClient,
    ScriptedUpstream,
    ask,
    json_answer,
    load_form,
    message_body,
    request_bytes,
    running_proxy,
    upstream_environ,
    wait_until,
)

KEY = "a key of the tests, long enough"
CANARY = "canary-Jane-Doe"
UUID = "550e8400-e29b-41d4-a716-446655440000"


def lines_of(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def written(path, count=6, key=KEY, **options):
    """A file with so many lines, and its lines as bytes."""
    file = AuditFile(str(path), ChainKey(key), sync=False, **options)
    for number in range(count):
        file.append({"id": f"req_{number}", "status": 200, "model": "m", "text": None})
    file.close()
    return path.read_bytes().splitlines(keepends=True)


def verdict(*paths, key=KEY):
    return verify_audit([str(path) for path in paths], ChainKey(key))


def problem_of(*paths, key=KEY):
    """(line number, words) of what is wrong first, or None."""
    problem, _ = verdict(*paths, key=key)
    match = re.fullmatch(r".*: line ([0-9]+): (.*)", problem)
    return (int(match[1]), match[2]) if match else problem or None


@pytest.fixture
def path(tmp_path):
    return tmp_path / "audit.jsonl"


# --- the chain ---------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["", KEY], ids=["plain", "keyed"])
def test_each_line_has_the_hash_of_the_one_before(path, key):
    raw = written(path, key=key)
    lines = lines_of(path)
    assert [line["seq"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["prev"] for line in lines] == [NO_HASH, *(line["hash"] for line in lines[:-1])]
    if not key:  # as anybody can check with sha256sum
        assert lines[2]["hash"] == hashlib.sha256(raw[2].split(b',"hash"')[0]).hexdigest()
    problem, verifier = verdict(path, key=key)
    assert problem == "" and verifier.lines == 6 and verifier.notes == []
    assert lines[-1]["hash"] in audit_summary(verifier)


def test_any_flipped_byte_is_found_at_its_line(path):
    raw = written(path, 3)
    before = len(raw[0])
    for place in range(len(raw[1])):
        changed = bytearray(b"".join(raw))
        changed[before + place] ^= 1
        path.write_bytes(changed)
        found = problem_of(path)
        assert found is not None and found[0] == 2, (place, found)


def remade(line):
    """A line that says something else, with a hash that fits: by one who has not the key."""
    sealed = line.replace(b'"status":200', b'"status":401').split(b',"hash"')[0]
    return sealed + b',"hash":"' + ChainKey("").seal(sealed).encode() + b'"}\n'


TAMPERINGS = [
    ("a value", lambda raw: [*raw[:2], raw[2].replace(b"req_2", b"req_9"), *raw[3:]], 3, "does not fit"),
    ("a blank", lambda raw: [*raw[:2], raw[2].replace(b":200", b": 200"), *raw[3:]], 3, "does not fit"),
    ("a hash", lambda raw: [*raw[:2], raw[2][:-67] + b"0" * 64 + raw[2][-3:], *raw[3:]], 3, "does not fit"),
    ("hash made anew without the key", lambda raw: [*raw[:2], remade(raw[2]), *raw[3:]], 3, "does not fit"),
    ("deleted", lambda raw: raw[:2] + raw[3:], 3, "lines are missing: seq 4 follows 2"),
    ("the first deleted", lambda raw: raw[1:3] + raw[4:], 3, "lines are missing"),
    ("swapped", lambda raw: [raw[0], raw[2], raw[1], *raw[3:]], 2, "lines are missing"),
    ("repeated", lambda raw: [*raw[:2], raw[1], *raw[2:]], 3, "not in its place"),
    ("put in", lambda raw: [*raw[:2], b'{"seq":3,"time":"x"}\n', *raw[2:]], 3, "no line"),
    ("an empty line", lambda raw: [*raw[:2], b"\n", *raw[2:]], 3, "no line"),
    ("cut within", lambda raw: [*raw[:2], raw[2][:50] + b"\n", *raw[3:]], 3, "no line"),
    ("joined", lambda raw: [*raw[:2], raw[2][:-1], *raw[3:]], 3, "no line"),
    ("too long", lambda raw: [*raw[:2], b"x" * 200000, *raw[2:]], 3, "no line"),
    ("not text", lambda raw: [*raw[:2], b"\0\xff\n", *raw[2:]], 3, "no line"),
    ("nested", lambda raw: [*raw[:2], b'{"seq":3,"a":' + b"[" * 30000 + b',"hash":"' + b"0" * 64 + b'"}\n'], 3, "no line"),
]


@pytest.mark.parametrize("name,tamper,line,words", TAMPERINGS, ids=[row[0] for row in TAMPERINGS])
def test_tampering_is_found(path, name, tamper, line, words):
    path.write_bytes(b"".join(tamper(written(path))))
    found = problem_of(path)
    assert found is not None and found[0] == line and words in found[1]


def test_a_chain_made_anew_fits_only_where_there_is_no_key(path, tmp_path):
    other = tmp_path / "other"
    written(other, key="")
    assert problem_of(other, key="") is None
    assert problem_of(other) == (1, "its hash was not made with this AUDIT_KEY")
    written(path)
    assert problem_of(path, key=KEY + "x") == (1, "its hash was not made with this AUDIT_KEY")


def test_lines_of_another_chain_with_the_same_key_do_not_fit(path, tmp_path):
    other = tmp_path / "other"
    AuditFile(str(other), ChainKey(KEY), sync=False).append({"event": "start"})
    path.write_bytes(b"".join([other.read_bytes(), *written(path)[1:]]))
    assert problem_of(path) == (2, "its prev is not the hash of the line before")


def test_without_the_key_the_order_alone_is_checked(path):
    raw = written(path)
    problem, verifier = verdict(path, key="")
    assert problem == "" and verifier.unchecked == 6
    path.write_bytes(b"".join(raw[:2] + raw[3:]))
    assert problem_of(path, key="")[0] == 3


def test_lines_cut_off_at_the_end_leave_the_last_hash_to_compare(path):
    raw = written(path)
    path.write_bytes(b"".join(raw[:4]))
    problem, verifier = verdict(path)
    assert problem == "" and f"seq 4, hash {json.loads(raw[3])['hash']}" in audit_summary(verifier)


@pytest.mark.parametrize("line", [b"", b"{}", b"null", b'{"seq":1}', b'{"seq":1,"hash":"' + b"0" * 64 + b'"}',
                                  b'{"seq":1,,"hash":"' + b"0" * 64 + b'"}'])
def test_what_is_no_line(line):
    assert parse_audit_line(line) is None


def test_time_is_utc_with_milliseconds():
    assert audit_time(86400.5) == "1970-01-02T00:00:00.500Z"


def test_threads_and_files_share_one_chain(path):
    """Two files on one path are two processes: each line goes behind the other's last."""
    files = [AuditFile(str(path), ChainKey(KEY), max_bytes=4000, sync=sync) for sync in (True, False)]
    threads = [threading.Thread(target=lambda f=f: [f.append({"n": n}) for n in range(25)]) for f in files * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    paths = [*sorted(path.parent.glob("audit.jsonl.*")), path]
    problem, verifier = verdict(*paths)
    assert problem == "" and verifier.lines == 150 and len(paths) > 3


# --- recovery ----------------------------------------------------------------------------------


TORN = [b"{", b'{"seq":7,"time":"20', b"\0\0\0\0"]


@pytest.mark.parametrize("torn", TORN)
def test_a_torn_line_is_told_and_passed_over(path, torn):
    raw = written(path)
    path.write_bytes(b"".join(raw) + torn)
    assert problem_of(path) is None and "line 7, the last, is cut off" in verdict(path)[1].notes[0]
    written(path, 2)
    assert lines_of_events(path, 7) == ["recovered", None, None]
    problem, verifier = verdict(path)
    assert problem == "" and verifier.notes == [f"{path}: line 7 was cut off, and the audit went on"]
    path.write_bytes(path.read_bytes().replace(torn + b"\n", torn + b"x\n"))
    assert problem_of(path)[0] == 7


def lines_of_events(path, start):
    return [json.loads(line).get("event") for line in path.read_bytes().split(b"\n")[start:] if line]


def test_a_whole_line_without_its_end_counts_as_torn(path):
    raw = written(path)
    path.write_bytes(b"".join(raw)[:-1])
    written(path, 1)
    problem, verifier = verdict(path)
    assert problem == "" and "line 6 was cut off" in verifier.notes[0]


def test_the_very_first_line_may_be_torn(path):
    path.write_bytes(b'{"se')
    written(path, 2)
    assert problem_of(path) is None and lines_of_events(path, 1) == ["recovered", None, None]


@pytest.mark.parametrize("content", [b"somebody's notes\n", b"notes", b"x" * 100000, b'{"seq":1}\n'])
def test_no_other_file_is_written_to(path, content):
    path.write_bytes(content)
    with pytest.raises(AuditError):
        written(path, 1)
    assert path.read_bytes() == content


def test_what_is_cut_while_it_is_written_is_found(path):
    file = AuditFile(str(path), ChainKey(KEY), sync=False)
    for number in range(4):
        file.append({"n": number})
    raw = path.read_bytes().splitlines(keepends=True)
    os.truncate(path, len(b"".join(raw[:2])))
    file.append({"n": 5})
    assert problem_of(path) == (3, "lines are missing: seq 5 follows 2")


def test_a_file_that_is_replaced_by_a_shorter_one_is_found(path, tmp_path):
    file = AuditFile(str(path), ChainKey(KEY), sync=False)
    for number in range(4):
        file.append({"n": number})
    shorter = tmp_path / "shorter"
    shorter.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    os.replace(shorter, path)
    file.append({"n": 5})
    assert problem_of(path) == (3, "lines are missing: seq 5 follows 2")


# --- files -------------------------------------------------------------------------------------


def test_the_file_is_its_owners_alone_and_no_link_is_followed(path, tmp_path):
    old = os.umask(0)
    try:
        written(path, 1)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    link = tmp_path / "link"
    link.symlink_to(path)
    for bad in (link, tmp_path, tmp_path / "none" / "x"):
        with pytest.raises(OSError):
            written(bad, 1)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(AuditError):
        written(tmp_path / "pipe", 1)


def test_a_full_file_is_renamed_and_the_chain_goes_on(path):
    written(path, 12, max_bytes=700)
    paths = [*sorted(path.parent.glob("audit.jsonl.*")), path]
    assert len(paths) > 3 and all(re.search(r"\.[0-9]{12}$", str(p)) for p in paths[:-1])
    problem, verifier = verdict(*paths)
    assert problem == "" and verifier.lines == 12 and verifier.notes == []
    assert "begins with seq" in verdict(path)[1].notes[0]
    assert "lines are missing" in verdict(paths[0], *paths[2:])[0]
    first = paths[0].read_bytes()
    paths[0].write_bytes(first.replace(b"req_0", b"req_1"))
    assert verdict(*paths)[0].startswith(f"{paths[0]}: line 1: ")


def test_nothing_is_overwritten_by_a_rename(path):
    others = [path.with_name(f"audit.jsonl.{number:012d}") for number in range(1, 7)]
    for other in others:
        other.write_bytes(b"kept")
    written(path, 6, max_bytes=300)
    assert [other.read_bytes() for other in others] == [b"kept"] * 6 and len(lines_of(path)) == 6
    written(path, 6, max_bytes=300)  # there are names again
    assert len(lines_of(path)) == 1


@pytest.mark.parametrize("count", [1, 3])
def test_a_file_renamed_by_others_is_followed(path, count):
    """As logrotate does: each process goes on in the new file, behind the old one's last line."""
    files = [AuditFile(str(path), ChainKey(KEY), sync=False) for _ in range(count)]
    for file in files * 2:
        file.append({"n": 1})
    os.rename(path, path.with_name("audit.jsonl.1"))
    for file in files * 2:
        file.append({"n": 2})
    problem, verifier = verdict(path.with_name("audit.jsonl.1"), path)
    assert problem == "" and verifier.lines == 4 * count


def test_a_process_that_was_silent_while_the_file_was_renamed_twice(path):
    silent, other = (AuditFile(str(path), ChainKey(KEY), sync=False) for _ in range(2))
    paths = [path.with_name(f"audit.jsonl.{number}") for number in (1, 2)]
    silent.append({"n": 1})
    for renamed in paths:
        other.append({"n": 2})
        os.rename(path, renamed)
    silent.append({"n": 3})
    assert problem_of(*paths, path) is None


def test_a_copied_and_emptied_file_is_followed(path):
    file = AuditFile(str(path), ChainKey(KEY), sync=False)
    file.append({"n": 1})
    shutil.copy(path, path.with_name("audit.jsonl.1"))
    os.truncate(path, 0)
    file.append({"n": 2})
    assert problem_of(path.with_name("audit.jsonl.1"), path) is None


def test_a_new_process_goes_on_behind_a_renamed_file(path):
    written(path, 3)
    os.rename(path, path.with_name("audit.jsonl-20261121"))
    written(path, 2)
    assert lines_of(path)[0]["seq"] == 4
    assert problem_of(path.with_name("audit.jsonl-20261121"), path) is None


def test_another_key_begins_another_file(path):
    written(path, 3)
    other = "another key of the tests"
    written(path, 2, key=other)
    kept = path.with_name("audit.jsonl.000000000003")
    assert problem_of(kept) is None and problem_of(path, key=other) is None
    assert lines_of(path)[0]["prev"] == lines_of(kept)[-1]["hash"]


# --- what a line says --------------------------------------------------------------------------

NAMES = AuditNames(KEY)
NAMED = [
    ("claude-sonnet-5", "claude-sonnet-5"), ("openai/gpt-5.4:free@x", "openai/gpt-5.4:free@x"), ("x[1m]", "x[1m]"),
    ("", None), (None, None), ("m" * 300, "m" * 200), (CANARY + " has", "#"), ("\ud83d", "#"), ("a\nb", "#"), ({"a": 1}, "#"),
]


@pytest.mark.parametrize("value,expected", NAMED)
def test_names_are_kept_and_all_else_is_hashed(value, expected):
    told = NAMES.name(value)
    assert told == expected or expected == "#" and re.fullmatch("#[0-9a-f]{16}", told)


def test_credentials_are_keyed_hashes():
    request = HttpRequest("POST", "/", "", {"x-api-key": CANARY, "authorization": f"Bearer {CANARY}"})
    both = request._replace(headers={"x-api-key": CANARY, "authorization": "Bearer other"})
    told = NAMES.credentials(request)
    assert re.fullmatch("[0-9a-f]{16}", told)
    assert told == AuditNames(KEY).credentials(request) != AuditNames(KEY + "x").credentials(request)
    assert NAMES.credentials(both).split(",")[0] == told and len(NAMES.credentials(both)) == 33
    assert NAMES.credentials(request._replace(headers={})) == ""
    assert told != AuditNames("").credentials(request) != AuditNames("").credentials(request)


OUTCOMES = [
    (200, {}, None, "ok", None),
    (304, {}, None, "ok", None),
    (401, {"error": "no key"}, None, "refused", "authentication_error"),
    (503, {"error": "too many"}, None, "refused", error_type_of(503)),
    (500, {"error": "a defect"}, None, "failed", "api_error"),
    (0, {}, None, "failed", None),
    (429, {"upstream": "openai", "error": "rate_limit_error", "upstream_status": 429}, None, "failed", "rate_limit_error"),
    (400, {"upstream": "anthropic", "upstream_status": 400}, None, "failed", "invalid_request_error"),
    (200, {"upstream": "openai", "error": CANARY}, None, "failed", "api_error"),
    (200, {"upstream": "openai", "error": CANARY}, ProxyError(504, CANARY), "failed", "timeout_error"),
    (499, {"upstream": "openai"}, ProxyError(499, "x", "client_gone"), "cancelled", "client_gone"),
]


@pytest.mark.parametrize("status,facts,cancelled,outcome,kind", OUTCOMES)
def test_outcomes(status, facts, cancelled, outcome, kind):
    exchange = Exchange()
    exchange.facts.update(facts)
    exchange.cancelled = cancelled
    assert audit_outcome(exchange, status) == outcome
    assert audited_error(exchange, status) == kind


FIELDS = {
    "seq", "time", "id", "session", "agent", "client", "credential", "method", "path", "bytes_in", "model", "upstream",
    "upstream_model", "route", "tried", "status", "outcome", "stop_reason", "error_type", "input_tokens",
    "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens", "bytes_out", "ms", "key", "prev", "hash",
}


def audited(proxy, path, count):
    """The lines of requests, once there are so many."""
    def found():
        return [line for line in lines_of(path) if "event" not in line] if path.exists() else []
    assert wait_until(lambda: len(found()) >= count), found()
    return found()


def test_a_line_for_each_request(form, path):
    headers = ("authorization: Bearer client-secret-1", f"x-claude-code-session-id: {UUID}", "x-claude-code-agent-id: a1-b2")
    with running_proxy(form, {"AUDIT_FILE": str(path), "AUDIT_KEY": KEY, "ANTHROPIC_API_KEY": "client-secret-1"}) as proxy:
        assert ask(proxy.port, message_body(CANARY, stream=True), fields=headers).status == 200
        audited(proxy, path, 1)  # a line is written when the client has its answer already
        assert ask(proxy.port, path="/health", method="GET").status == 200
        assert ask(proxy.port, message_body(CANARY), fields=(f"x-api-key: {CANARY}", f"x-claude-code-session-id: {CANARY} x")).status == 401
        audited(proxy, path, 2)
        assert ask(proxy.port, method="GET", path=f"/v1/{CANARY}%20x?q={CANARY}", fields=headers).status == 404
        lines = audited(proxy, path, 3)
    assert [set(line) for line in lines] == [FIELDS] * 3
    first, second, third = lines
    told = {"session": UUID, "agent": "a1-b2", "client": "127.0.0.1", "method": "POST", "path": "/v1/messages",
            "model": "claude-sonnet-5", "upstream": "demo", "upstream_model": "demo", "status": 200, "outcome": "ok",
            "stop_reason": "end_turn", "error_type": None, "credential": AuditNames(KEY).hashed("credential", "client-secret-1")}
    assert {name: first[name] for name in told} == told
    assert first["bytes_in"] > 50 and first["output_tokens"] > 0 and first["id"].startswith("req_")
    assert (second["status"], second["outcome"], second["error_type"]) == (401, "refused", "authentication_error")
    assert second["session"].startswith("#") and second["credential"] != first["credential"]
    assert third["status"] == 404 and re.fullmatch("/v1/#[0-9a-f]{16}", third["path"])
    text = path.read_text()
    assert CANARY not in text and "client-secret" not in text and KEY not in text
    assert problem_of(path) is None


PATHS_AND_METHODS = [
    ("whole", "POST", "/v1/messages", {}), ("streamed", "POST", "/v1/messages", {"stream": True}),
    ("refused", "POST", "/v1/nothing", {}), ("listed", "GET", "/v1/models", None), ("the head alone", "HEAD", "/v1/models", None),
]


def test_the_bytes_of_each_body_are_counted(path):
    """What a client read of a body, and no more: neither head nor framing."""
    with running_proxy(load_form("package"), {"AUDIT_FILE": str(path)}) as proxy:
        read = []
        for _, method, where, more in PATHS_AND_METHODS:
            with RawClient(proxy.port) as client:
                client.send(request_bytes(None if more is None else message_body(**more), where, method))
                read.append(len(client.answer(head_only=method == "HEAD").body))
        counted = [line["bytes_out"] for line in audited(proxy, path, len(PATHS_AND_METHODS))]
    # A connection each: whose line is first is not said.
    assert sorted(counted) == sorted(read) and read[-1] == 0 and min(read[:-1]) > 50


def test_pings_and_a_late_error_are_counted(path):
    with ScriptedUpstream([Pause(0.1), HANG_UP]) as upstream:
        environ = {**upstream_environ(upstream), "AUDIT_FILE": str(path)}
        with running_proxy(load_form("package"), environ, ping_interval=0.03) as proxy:
            answer = ask(proxy.port, message_body(stream=True))
            [line] = audited(proxy, path, 1)
    assert b"event: ping" in answer.body and b"event: error" in answer.body
    assert line["bytes_out"] == len(answer.body)


REFUSED = [
    ("no HTTP", b"NONSENSE\r\n\r\n", 400, None),
    ("bad framing", b"POST /v1/messages HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", 400, None),
    ("a coding of its own", b"POST /v1/messages HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: gzip\r\n\r\n", 400, "POST"),
    ("too large", b"POST /v1/messages HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 99999\r\n\r\n", 413, "POST"),
    ("another host", b"GET /v1/models HTTP/1.1\r\nhost: evil.example\r\n\r\n", 403, "GET"),
    ("no JSON", request_bytes(b"{"), 400, "POST"),
    ("no such method", request_bytes(method="DELETE"), 405, "DELETE"),
]


def test_refused_requests_are_there(form, path):
    with running_proxy(form, {"AUDIT_FILE": str(path), "MAX_BODY_BYTES": "2048"}) as proxy:
        for count, (_, data, status, _) in enumerate(REFUSED, 1):
            with RawClient(proxy.port) as client:
                client.send(data)
                assert client.answer().status == status
            audited(proxy, path, count)
        lines = audited(proxy, path, len(REFUSED))
    assert [(line["status"], line["method"], line["outcome"]) for line in lines] == [
        (status, method, "refused") for _, _, status, method in REFUSED]
    assert problem_of(path, key="") is None


def test_cancelled_and_failed_requests_are_there(form, path):
    with ScriptedUpstream(json_answer(429, {"error": {"message": CANARY}})) as upstream:
        environ = {**upstream_environ(upstream), "AUDIT_FILE": str(path), "DEFAULT_MODEL": "gpt-x"}
        with running_proxy(form, environ) as proxy:
            assert ask(proxy.port, message_body(CANARY)).status == 429
            audited(proxy, path, 1)
            with RawClient(proxy.port) as client:
                client.send(request_bytes(message_body("demo: text first\ndemo: slow 60", stream=True, model="demo:demo")))
                client.read_until(b"first")
            lines = audited(proxy, path, 2)
    assert [(line["outcome"], line["status"]) for line in lines] == [("failed", 429), ("cancelled", 499)]
    assert lines[0]["error_type"] == "rate_limit_error" and lines[0]["upstream"] == "openai"
    assert CANARY not in path.read_text() and problem_of(path, key="") is None


def test_the_log_can_carry_it(form):
    with running_proxy(form, {"AUDIT": "log", "AUDIT_KEY": KEY}) as proxy:
        ask(proxy.port, message_body(CANARY))
        assert wait_until(lambda: '"credential"' in proxy.log_text.getvalue())
        text = proxy.log_text.getvalue()
    lines = [line.encode() for line in text.splitlines() if line.startswith('{"seq":')]
    assert len(lines) == 2 and all(ChainKey(KEY).seal(found.sealed) == found.link.hash
                                   for found in map(parse_audit_line, lines))


def test_chains_of_several_processes_in_one_log(path):
    text = io.StringIO()
    for to in ("log", "log"):
        stream = AuditStream(lambda line: text.write(line + "\n"), ChainKey(KEY))
        stream.append({"event": "start", "to": to})
        stream.append({"n": 1})
    path.write_text(text.getvalue())
    problem, verifier = verdict(path)
    assert problem == "" and "line 3: another process begins" in verifier.notes[0]
    path.write_text(text.getvalue().splitlines()[0].replace('"log"', '"file"') + "\n" + text.getvalue())
    assert problem_of(path)[0] == 1


def test_the_syslog_can_carry_it(form, tmp_path):
    address = str(tmp_path / "log")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(address)
        server.settimeout(3)
        with running_proxy(form, {"AUDIT": "syslog", "AUDIT_SYSLOG": address}) as proxy:
            ask(proxy.port, message_body(CANARY))
            told = [server.recv(65536).decode() for _ in range(2)]
    heads = {line.partition(": ")[0] for line in told}
    assert heads == {f"<38>claude_proxy[{os.getpid()}]"}
    lines = [parse_audit_line(line.partition(": ")[2].encode()) for line in told]
    assert [found.fields.get("event") for found in lines] == ["start", None]
    assert lines[1].fields["prev"] == lines[0].link.hash and CANARY not in "".join(told)


def test_a_syslog_that_is_started_anew(tmp_path):
    address = str(tmp_path / "log")
    sender = SyslogSocket(address)
    for _ in range(2):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
            server.bind(address)
            sender.send("x")
            assert server.recv(100).endswith(b": x")
        os.unlink(address)
    with pytest.raises(OSError):
        sender.send("x")


# --- when it cannot be written -----------------------------------------------------------------


class Failing:
    """A sink that fails as long as it is told to."""

    def __init__(self):
        self.link, self.broken, self.lines = None, False, []

    def append(self, *lines):
        if self.broken:
            raise OSError(28, "No space left on device")
        self.lines += lines


def failing_audit(required=False):
    sink, text = Failing(), io.StringIO()
    return sink, Audit(sink, NAMES, Log(text, "debug"), {"event": "start"}, required), text


def events_of(sink):
    return [(line.get("event"), line.get("lost")) for line in sink.lines]


def test_missing_lines_are_counted_and_told():
    sink, audit, text = failing_audit()
    request = HttpRequest("POST", "/v1/messages", "", {})
    for broken in (False, True, True, False, False):
        sink.broken = broken
        audit.check(request)
        audit.note(Exchange(), request, 200)
    assert events_of(sink) == [("start", None), (None, None), ("gap", 2), (None, None), (None, None)]
    assert text.getvalue().count("audit_failed") == 2 and "No space left" in text.getvalue()
    assert "audit_goes_on" in text.getvalue()


def test_a_first_line_that_fails_still_gets_its_start():
    sink, audit, _ = failing_audit()
    for sink.broken in (True, False):
        audit.note(Exchange(), None, 400)
    assert events_of(sink) == [("start", None), ("gap", 1), (None, None)]


def test_a_required_audit_refuses_until_it_can_be_written():
    sink, audit, _ = failing_audit(required=True)
    request = HttpRequest("POST", "/v1/messages", "", {})
    probe = request._replace(path="/health")
    audit.check(request)
    sink.broken = True
    audit.note(Exchange(), request, 200)
    with pytest.raises(ProxyError) as caught:
        audit.check(request)
    assert caught.value.status == 503
    audit.check(probe)
    sink.broken = False
    audit.note(Exchange(), request, 503)  # the refused request's own line is the first that goes
    audit.check(request)
    assert ("gap", 1) in events_of(sink)


@pytest.mark.parametrize("required,statuses", [("true", [200, 503, 503, 503, 200]), ("false", [200] * 5)])
def test_a_file_that_cannot_be_written(form, tmp_path, required, statuses):
    folder, away = tmp_path / "there", tmp_path / "away"
    folder.mkdir()
    path = folder / "audit.jsonl"
    with running_proxy(form, {"AUDIT_FILE": str(path), "AUDIT_REQUIRED": required}) as proxy:
        def said(word, count):
            return wait_until(lambda: proxy.log_text.getvalue().count(f'"{word}"') == count)

        def asked(failures):
            status = ask(proxy.port, message_body()).status
            assert said("audit_failed", failures)
            return status

        asked(0)
        audited(proxy, path, 1)
        folder.rename(away)
        told = [asked(failures) for failures in (1, 2, 3)]
        away.rename(folder)
        told.append(asked(3))
        assert said("audit_goes_on", 1)
        told.append(asked(3))
        lines = audited(proxy, path, 3)
    assert told == statuses and [line["status"] for line in lines] == [200, *statuses[3:]]
    assert problem_of(path, key="") is None and '"event":"gap","lost":3' in path.read_text()


def test_a_disk_that_takes_half_a_line(path):
    """What a full disk leaves is closed by a line that tells of it."""
    resource = pytest.importorskip("resource")
    code = f"""
import resource, signal, sys
sys.path.insert(0, {str(ROOT)!r})
from claude_proxy.audit_files import AuditFile, ChainKey
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
file = AuditFile({str(path)!r}, ChainKey({KEY!r}), sync=False)
file.append({{"n": 1}})
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (400, hard))
for n in range(2):
    try:
        file.append({{"n": 2}})
        sys.exit("it fitted")
    except OSError:
        pass
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
file.append({{"n": 3}})
"""
    assert resource
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr
    problem, verifier = verdict(path)
    assert problem == "" and "line 2 was cut off" in verifier.notes[0]
    assert lines_of_events(path, 2) == ["recovered", None]


# --- settings ----------------------------------------------------------------------------------


SETTINGS_FOR_IT = [
    ({}, "off"), ({"AUDIT_FILE": "a.jsonl"}, "file"), ({"AUDIT_FILE": "a.jsonl", "AUDIT": "off"}, "off"),
    ({"AUDIT": "log", "AUDIT_REQUIRED": "true"}, "log"), ({"AUDIT_FILE": "/there/a", "AUDIT_REQUIRED": "true"}, "file"),
]
WRONG_SETTINGS = [
    ({"AUDIT": "file"}, "AUDIT: file needs AUDIT_FILE"),
    ({"AUDIT": "paper"}, "AUDIT: must be one of"),
    ({"AUDIT_REQUIRED": "true"}, "AUDIT_REQUIRED: needs an audit"),
    ({"AUDIT_REQUIRED": "true", "AUDIT": "off", "AUDIT_FILE": "x"}, "AUDIT_REQUIRED: needs an audit"),
    ({"AUDIT_FILE": "/not/there/x"}, "AUDIT_FILE: the folder"),
    ({"AUDIT_KEY": "short"}, "AUDIT_KEY: must be 16"),
]


@pytest.mark.parametrize("environ,audit", SETTINGS_FOR_IT)
def test_where_the_settings_send_it(environ, audit):
    assert load_config(environ, path_exists=lambda path: path == "/there").audit == audit


@pytest.mark.parametrize("environ,words", WRONG_SETTINGS)
def test_settings_that_cannot_be(environ, words):
    with pytest.raises(ConfigError) as caught:
        load_config(environ, path_exists=lambda path: False)
    assert len(caught.value.problems) == 1 and caught.value.problems[0].startswith(words)


# --- kill -9 -----------------------------------------------------------------------------------


def hammer(port, stop):
    while not stop.is_set():
        with suppress(OSError, AssertionError, ValueError):
            ask(port, message_body(stream=True))


def test_what_a_kill_leaves_is_sound_and_is_gone_on_from(path):
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "LISTEN_PORT": "0",
               "AUDIT_FILE": str(path), "AUDIT_KEY": KEY}
    for run in (1, 2):
        process = subprocess.Popen([sys.executable, "-m", "claude_proxy"], cwd=path.parent, env=environ,
                                   stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        port, stop = int(process.stdout.readline().rsplit(":", 1)[1]), threading.Event()
        threads = [threading.Thread(target=hammer, args=(port, stop)) for _ in range(4)]
        for thread in threads:
            thread.start()
        wanted = len(path.read_bytes().splitlines()) + 40
        assert wait_until(lambda: path.read_bytes().count(b"\n") >= wanted)  # noqa: B023
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        stop.set()
        for thread in threads:
            thread.join()
        problem, verifier = verdict(path)
        assert problem == "" and verifier.lines >= wanted - 1 and verifier.events["start"] == run
