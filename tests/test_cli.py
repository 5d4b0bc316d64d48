"""The command as a user runs it: real processes, both forms, exit statuses, signals."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys

import pytest

from claude_proxy.cli import main
from claude_proxy.config import VERSION
from claude_proxy.settings import SETTINGS
from tests.support import (
    ROOT,
    SINGLE_FILE,
    RawClient,
    ScriptedUpstream,
    ask,
    json_answer,
    message_body,
    request_bytes,
)

COMMANDS = {
    "package": [sys.executable, "-m", "claude_proxy"],
    "single": [sys.executable, "-I", "-S", str(SINGLE_FILE)],
}


@pytest.fixture(params=list(COMMANDS))
def command(request):
    return COMMANDS[request.param]


def environment(**settings):
    """Nothing of the tester's own settings, nor of a .env that lies about."""
    return {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **settings}


def run_to_end(command, folder, *arguments, **settings):
    return subprocess.run([*command, *arguments], cwd=folder, env=environment(**settings),
                          capture_output=True, text=True, timeout=20)


class Started:
    """A proxy process that has said where it listens."""

    def __init__(self, command, folder, *arguments, **settings):
        self.process = subprocess.Popen(
            [*command, *arguments], cwd=folder, env=environment(**{"LISTEN_PORT": "0", **settings}), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.banner = self.process.stdout.readline()
        match = re.fullmatch(r"listening on https?://127\.0\.0\.1:(\d+)\n", self.banner)
        assert match, self.banner + self.process.stderr.read()
        self.port = int(match.group(1))
        while "ANTHROPIC_AUTH_TOKEN" not in self.banner:
            self.banner += self.process.stdout.readline()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.process.kill()
        self.process.communicate()

    def end(self, number):
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=10)
        return self.process.returncode, self.banner + out, err


def test_one_file_in_an_empty_folder_answers_and_writes_nothing(command, tmp_path):
    if "-m" not in command:
        (tmp_path / "claude_api_proxy.py").write_bytes(SINGLE_FILE.read_bytes())
        command = [sys.executable, "-I", "-S", "claude_api_proxy.py"]
    before = sorted(tmp_path.rglob("*"))
    with Started(command, tmp_path) as proxy:
        answer = ask(proxy.port, message_body("Hello", stream=True))
        assert answer.status == 200 and b"built-in" in answer.body
        code, out, err = proxy.end(signal.SIGTERM)
    assert code == 0 and sorted(tmp_path.rglob("*")) == before
    assert f"export ANTHROPIC_BASE_URL=http://127.0.0.1:{proxy.port}" in out
    assert "No upstream is configured" in out and "Traceback" not in err


def test_the_banner_says_what_is_configured(command, tmp_path):
    (tmp_path / ".env").write_text('OPENAI_API_KEY="sk-test-123456"\r\nOPENAI_BASE_URL=http://127.0.0.1:9/v1\n'
                                   "BIG_MODEL=huge\nANTHROPIC_API_KEY=client\nUNHEARD_OF=1\n")
    with Started(command, tmp_path) as proxy:
        _, out, _ = proxy.end(signal.SIGINT)
    for words in ("openai: http://127.0.0.1:9/v1", "opus -> huge", "haiku -> gpt-4o-mini", "system (",
                  "the-key-in-ANTHROPIC_API_KEY", "UNHEARD_OF", ".env"):
        assert words in out
    assert "sk-test" not in out


def test_version_tells_its_own_hash(command, tmp_path):
    done = run_to_end(command, tmp_path, "--version")
    assert done.returncode == 0 and f"claude_proxy {VERSION}\n" in done.stdout
    assert "Python 3." in done.stdout and "OpenSSL" in done.stdout
    if "-m" not in command:
        assert f"sha256 {hashlib.sha256(SINGLE_FILE.read_bytes()).hexdigest()}\n" in done.stdout


def test_help_names_every_setting(command, tmp_path):
    text = run_to_end(command, tmp_path, "--help").stdout
    assert all(setting.name in text for setting in SETTINGS)


def test_every_mistake_is_reported_at_once_without_its_value(command, tmp_path):
    done = run_to_end(command, tmp_path, LISTEN_PORT="oops-port", LOG_LEVEL="oops-level",
                      OPENAI_BASE_URL="oops-url", OPENAI_API_KEY="k")
    assert done.returncode == 2 and "oops" not in done.stderr
    assert all(name in done.stderr for name in ("LISTEN_PORT", "LOG_LEVEL", "OPENAI_BASE_URL"))


@pytest.mark.parametrize("text,words", [
    (b"A='unfinished", "line 1"), (b"\xff\xfe", "UTF-8"), (b"OK=1\nLISTEN_PORT=x\n", "LISTEN_PORT")])
def test_mistakes_in_the_env_file(tmp_path, text, words):
    (tmp_path / "my.env").write_bytes(text)
    done = run_to_end(COMMANDS["package"], tmp_path, "--env-file", "my.env")
    assert done.returncode == 2 and words in done.stderr


@pytest.mark.parametrize("arguments,code", [(["--env-file", "missing.env"], 2), (["--no-such-option"], 2)])
def test_wrong_arguments(tmp_path, arguments, code):
    done = run_to_end(COMMANDS["package"], tmp_path, *arguments)
    assert done.returncode == code and "Traceback" not in done.stderr


def test_a_port_in_use_is_one_line(command, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = run_to_end(command, tmp_path, LISTEN_PORT=str(taken.getsockname()[1]))
    assert done.returncode == 3
    assert len(done.stderr.splitlines()) == 1 and "LISTEN_PORT" in done.stderr


@pytest.mark.parametrize("content", [None, b"no certificate"])
def test_a_bad_certificate_file_is_one_line(command, tmp_path, content):
    path = tmp_path / "roots.pem"
    if content is not None:
        path.write_bytes(content)
    done = run_to_end(command, tmp_path, CA_FILE=str(path), LISTEN_PORT="0")
    assert done.returncode == 2 and "CA_FILE" in done.stderr and "Traceback" not in done.stderr


def test_check_config_shows_settings_and_no_secret(command, tmp_path):
    done = run_to_end(command, tmp_path, "--check-config", OPENAI_API_KEY="sk-proj-abcdefgh", BIG_MODEL="huge")
    assert done.returncode == 0
    assert "huge" in done.stdout and "abcdefgh" not in done.stdout and "trust roots" in done.stdout


@pytest.mark.parametrize("settings,code,words", [
    ({}, 0, "upstream answered"),
    ({"OPENAI_API_KEY": "k", "OPENAI_BASE_URL": "http://127.0.0.1:9", "MAX_RETRIES": "0"}, 1, "nothing listens"),
])
def test_check_upstream(tmp_path, settings, code, words):
    done = run_to_end(COMMANDS["package"], tmp_path, "--check-upstream", **settings)
    assert done.returncode == code and words in done.stdout + done.stderr


REDCAP_TOKEN = "0123456789abcdef" * 2
REDCAP_INFO = {"name": "SecureChatAI", "module-version": "v1", "auth-actions": {"callAI": "a", "messages": "m"}}


@pytest.mark.parametrize("settings,code,words", [
    ({"ANTHROPIC_AUTH_TOKEN": REDCAP_TOKEN}, 0, "'served_by': 'messages'"),
    ({"REDCAP_API_TOKEN": REDCAP_TOKEN}, 0, "SecureChatAI v1"),
    ({}, 1, "wants your REDCap API token"),
])
def test_check_upstream_asks_redcap_what_it_offers(tmp_path, settings, code, words):
    with ScriptedUpstream(json_answer(200, REDCAP_INFO)) as redcap:
        url = f"http://127.0.0.1:{redcap.port}/api/"
        done = run_to_end(COMMANDS["package"], tmp_path, "--check-upstream", REDCAP_API_URL=url, **settings)
    assert done.returncode == code and words in done.stdout + done.stderr
    assert REDCAP_TOKEN not in done.stdout + done.stderr


def test_healthcheck(command, tmp_path):
    with Started(command, tmp_path) as proxy:
        fine = run_to_end(command, tmp_path, "--healthcheck", LISTEN_PORT=str(proxy.port))
        proxy.end(signal.SIGTERM)
    gone = run_to_end(command, tmp_path, "--healthcheck", LISTEN_PORT=str(proxy.port))
    assert (fine.returncode, gone.returncode) == (0, 1)


def test_a_first_signal_lets_the_stream_finish(command, tmp_path):
    with Started(command, tmp_path) as proxy, RawClient(proxy.port) as client:
        client.send(request_bytes(message_body("demo: text first\ndemo: slow 0.3\ndemo: text last", stream=True)))
        client.read_until(b'"first"')
        code, _, err = proxy.end(signal.SIGTERM)
        assert b'"last"' in client.read_to_end()
    assert code == 0 and "draining" in err


def test_a_second_signal_ends_at_once(command, tmp_path):
    with Started(command, tmp_path) as proxy, RawClient(proxy.port) as client:
        client.send(request_bytes(message_body("demo: text first\ndemo: slow 60", stream=True)))
        client.read_until(b'"first"')
        proxy.process.send_signal(signal.SIGINT)
        assert "draining" in proxy.process.stderr.readline()
        assert proxy.end(signal.SIGINT)[0] == 128 + signal.SIGINT


def test_the_drain_has_a_ceiling(tmp_path):
    with Started(COMMANDS["package"], tmp_path, DRAIN_TIMEOUT="0.2") as proxy, RawClient(proxy.port) as client:
        client.send(request_bytes(message_body("demo: text first\ndemo: slow 60", stream=True)))
        client.read_until(b'"first"')
        code, _, _ = proxy.end(signal.SIGTERM)
        assert b"shutting down" in client.read_to_end()
    assert code == 0


@pytest.mark.parametrize("option", ["--print-env-example", "--print-settings"])
def test_printed_texts(option):
    out = io.StringIO()
    assert main([option], environ={}, out=out) == 0
    assert "OPENAI_BASE_URL" in out.getvalue()


@pytest.mark.skipif(not hasattr(socket, "SO_REUSEPORT"), reason="no SO_REUSEPORT here")
def test_two_processes_on_one_port(command, tmp_path):
    settings = {"LISTEN_REUSE_PORT": "true"}
    with Started(command, tmp_path, **settings) as first, \
            Started(command, tmp_path, **settings, LISTEN_PORT=str(first.port)) as second:
        assert second.port == first.port
        assert all(ask(first.port, path="/health", method="GET").status == 200 for _ in range(10))
        assert first.end(signal.SIGTERM)[0] == 0
        assert ask(second.port, path="/health", method="GET").status == 200
        second.end(signal.SIGTERM)


AUDIT_KEY = "an audit's key, of the tests"


def verified(command, folder, *files, key=AUDIT_KEY):
    done = run_to_end(command, folder, "--verify-audit", *files, AUDIT_KEY=key)
    return done.returncode, done.stdout + done.stderr


def test_an_audit_is_written_and_verified(command, tmp_path):
    path = tmp_path / "audit.jsonl"
    settings = {"AUDIT_FILE": "audit.jsonl", "AUDIT_KEY": AUDIT_KEY}
    assert run_to_end(command, tmp_path, "--check-config", **settings).returncode == 0
    assert not path.exists()
    for _ in range(2):
        with Started(command, tmp_path, **settings) as proxy:
            assert ask(proxy.port, message_body("Hello", stream=True)).status == 200
            _, _, err = proxy.end(signal.SIGTERM)
    lines = path.read_bytes().splitlines(keepends=True)
    told = [json.loads(line).get("event", "request") for line in lines]
    assert told == ["start", "request", "stop"] * 2
    assert json.loads(lines[-1])["hash"][:16] in err and AUDIT_KEY not in err
    code, text = verified(command, tmp_path, "audit.jsonl")
    assert code == 0 and "6 lines (2 request, 2 start, 2 stop)" in text
    code, text = verified(command, tmp_path, "audit.jsonl", key="")
    assert code == 2 and "AUDIT_KEY is not set" in text
    path.write_bytes(b"".join(lines).replace(b'"status":200', b'"status":201', 1))
    code, text = verified(command, tmp_path, "audit.jsonl")
    assert code == 1 and "audit.jsonl: line 2: its hash does not fit" in text
    code, text = verified(command, tmp_path, "none.jsonl")
    assert code == 2 and "none.jsonl" in text


@pytest.mark.parametrize("content,words", [(None, "folder"), (b"no audit\n", "move it away")])
def test_an_audit_that_cannot_be_written_is_one_line(command, tmp_path, content, words):
    path = tmp_path / "folder" / "audit.jsonl"
    if content is not None:
        path.parent.mkdir()
        path.write_bytes(content)
    done = run_to_end(command, tmp_path, AUDIT_FILE=str(path), LISTEN_PORT="0")
    assert done.returncode == 2 and "AUDIT_FILE" in done.stderr and words in done.stderr
    assert "listening" not in done.stdout and "Traceback" not in done.stderr


# --- where a request would go ---------------------------------------------------------------------

ROUTED = {"UPSTREAM": "anthropic", "OPENAI_BASE_URL": "http://127.0.0.1:9/v1", "SUBAGENT_MAPPINGS": "reviewer:gpt-r",
          "FALLBACK_MODELS": "gpt-other"}


@pytest.mark.parametrize("piped", [False, True])
@pytest.mark.parametrize("headers", [False, True])
def test_explain_route(command, tmp_path, headers, piped):
    body = message_body("SECRETWORDS", model="reviewer")
    text = json.dumps({"headers": {"X-Claude-Code-Agent-Id": "a"}, "body": body} if headers else body)
    (tmp_path / "request.json").write_text(text)
    done = subprocess.run([*command, "--explain-route", "-" if piped else "request.json"], cwd=tmp_path, timeout=20,
                          env=environment(**ROUTED), input=text, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "model asked for: reviewer"
    assert lines[-2:] == ["goes to openai:gpt-r (agent reviewer by model name)", "then to openai:gpt-other (FALLBACK_MODELS)"]
    assert "SECRETWORDS" not in done.stdout


@pytest.mark.parametrize("text,words", [("{not json", "not JSON"), ("[1]", "must be a JSON object"), (None, "cannot read")])
def test_explain_route_of_no_request(tmp_path, text, words):
    path = tmp_path / "request.json"
    if text is not None:
        path.write_text(text)
    out, err = io.StringIO(), io.StringIO()
    assert main(["--explain-route", str(path)], {"PATH": ""}, out, err) == 1
    assert words in err.getvalue() and "Traceback" not in err.getvalue() and out.getvalue() == ""


def explained(tmp_path, body, **settings):
    path, out, err = tmp_path / "request.json", io.StringIO(), io.StringIO()
    path.write_text(json.dumps(body))
    assert main(["--explain-route", str(path)], settings, out, err) == 0, err.getvalue()
    return out.getvalue().splitlines()


def test_explain_route_knows_agents_by_their_files_and_what_is_not_there(tmp_path):
    folder = tmp_path / "agents"
    folder.mkdir()
    (folder / "reviewer.md").write_text("---\nname: reviewer\n---\nYou review code and change nothing.\n")
    system = [{"type": "text", "text": text} for text in ("a", "b", "You review code and change nothing.\n\nNotes.")]
    request = {"headers": {"x-claude-code-agent-id": "a"}, "body": message_body(system=system)}
    lines = explained(tmp_path, request, **ROUTED, SUBAGENT_FOLDERS=str(folder))
    assert "agent: reviewer, recognised by its system prompt" in lines
    assert explained(tmp_path, message_body(model="redcap:x"), **ROUTED)[-1] == "note: the upstream redcap is not configured"


def test_explain_route_waits_for_the_windows_that_decide(tmp_path):
    with ScriptedUpstream(json_answer(200, {"data": [{"id": "small-one", "context_length": 300}]})) as upstream:
        settings = {"OPENAI_BASE_URL": upstream.url, "OPENAI_API_KEY": "k", "MIDDLE_MODEL": "small-one"}
        lines = explained(tmp_path, message_body(max_tokens=400), **settings, LONG_CONTEXT_MODEL="long-one")
        assert lines[-1] == "goes to openai:long-one (family, over 300 tokens)"
        assert [request.line.split()[0] for request in upstream.requests] == ["GET"]


def test_help_tells_of_explain_route(command, tmp_path):
    text = run_to_end(command, tmp_path, "--help").stdout
    assert "--explain-route FILE" in text and "stdin" in text


def test_a_folder_of_agents_that_cannot_be_read_is_named(tmp_path):
    file = tmp_path / "agents"
    file.write_text("a file, not a folder")
    err = io.StringIO()
    assert main([], {"SUBAGENT_FOLDERS": str(file), "LISTEN_PORT": "0"}, io.StringIO(), err) == 2
    assert "SUBAGENT_FOLDERS" in err.getvalue() and "CA_FILE" not in err.getvalue()
