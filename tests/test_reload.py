"""SIGHUP: new settings in one step, wrong ones change nothing, answers under way keep theirs."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from claude_proxy.cli import changed_settings
from claude_proxy.config_load import load_config
from tests.support import (
    Pause,
    RawClient,
    ScriptedUpstream,
    ask,
    chat_stream,
    delta,
    message_body,
    request_bytes,
    text_answer,
    wait_until,
)
from tests.test_cli import COMMANDS, Started


@pytest.fixture(params=list(COMMANDS))
def command(request):
    return COMMANDS[request.param]


class Reloadable(Started):
    """A proxy with a settings file that can be written anew; reads its log as it comes."""

    def __init__(self, command, folder, text):
        self.file = folder / "settings"
        self.file.write_text(text)
        super().__init__(command, folder, "--env-file", str(self.file), LOG_FORMAT="json", MODEL_LIMITS="false")
        self.log = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stderr:
            self.log.append(line)

    def reload(self, text, event):
        self.file.write_text(text)
        os.kill(self.process.pid, signal.SIGHUP)
        assert wait_until(lambda: any(event in line for line in self.log)), self.log
        return next(line for line in self.log if event in line)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(10) == 0
        self.process.stdout.close()


def settings(upstream, **more):
    rows = {"OPENAI_BASE_URL": upstream.url, "OPENAI_API_KEY": "test-key-1", "MAX_RETRIES": "0", **more}
    return "".join(f"{name}={value}\n" for name, value in rows.items())


def text_of(answer):
    return "".join(block["text"] for block in answer.json["content"])


def test_new_settings_and_secrets_are_in_force_and_wrong_ones_are_not(command, tmp_path):
    with ScriptedUpstream(text_answer("one")) as first, ScriptedUpstream(text_answer("two")) as second:
        proxy = Reloadable(command, tmp_path, settings(first))
        assert text_of(ask(proxy.port, message_body())) == "one"
        line = proxy.reload(settings(second, OPENAI_API_KEY="test-key-2", LISTEN_PORT="9"), '"reloaded"')
        assert "OPENAI_API_KEY" in line and "OPENAI_BASE_URL" in line and "test-key" not in line
        assert text_of(ask(proxy.port, message_body())) == "two"
        assert second.requests[0].headers["authorization"] == "Bearer test-key-2"
        line = proxy.reload(settings(first, MAX_RETRIES="many-CANARY"), "reload_refused")
        assert "MAX_RETRIES" in line and "CANARY" not in line
        assert text_of(ask(proxy.port, message_body())) == "two"
        proxy.stop()


def test_a_stream_under_way_keeps_its_settings(command, tmp_path):
    go = threading.Event()
    script = chat_stream(delta(content="be"), Pause(5, go), delta(content="fore"), delta("stop"))
    with ScriptedUpstream(script) as first, ScriptedUpstream(text_answer("after")) as second:
        proxy = Reloadable(command, tmp_path, settings(first))
        with RawClient(proxy.port) as client:
            client.send(request_bytes(message_body(stream=True)))
            client.read_until(b'"be"')
            proxy.reload(settings(second), '"reloaded"')
            assert text_of(ask(proxy.port, message_body())) == "after"
            go.set()
            assert b'"fore"' in client.read_until(b"message_stop")
            client.send(request_bytes(message_body()))
            client.read_until(b"after")
        proxy.stop()


def test_a_file_that_is_empty_while_it_is_written_brings_no_demo(tmp_path):
    with ScriptedUpstream(text_answer("one")) as upstream:
        proxy = Reloadable(COMMANDS["package"], tmp_path, settings(upstream))
        assert "name no upstream" in proxy.reload("", "reload_refused")
        assert text_of(ask(proxy.port, message_body())) == "one"
        proxy.stop()


def test_signals_in_a_burst_are_not_lost(tmp_path):
    """A handler may be interrupted by the next one, wherever it is."""
    proxy = Reloadable(COMMANDS["package"], tmp_path, "")
    for _ in range(300):
        os.kill(proxy.process.pid, signal.SIGHUP)
    proxy.stop()


@pytest.mark.parametrize("before,after,names", [
    ({}, {}, []),
    ({"BIG_MODEL": "a"}, {"BIG_MODEL": "b"}, ["BIG_MODEL", "MIDDLE_MODEL"]),
    ({}, {"CUSTOM_HEADER_X_A": "1"}, ["CUSTOM_HEADERS"]),
    ({"ANTHROPIC_API_KEY": "a"}, {"ANTHROPIC_API_KEY": "b"}, ["ANTHROPIC_API_KEY"]),
])
def test_what_changed_is_told_by_name(before, after, names):
    assert changed_settings(load_config(before), load_config(after)) == names


def test_what_waits_to_be_accepted_is_answered_before_the_end(command, tmp_path):
    """A balancer may have connected just before the proxy was stopped."""
    with ScriptedUpstream(text_answer("fine")) as upstream:
        proxy = Reloadable(command, tmp_path, settings(upstream, DRAIN_DELAY="0.3"))
        proxy.process.send_signal(signal.SIGTERM)
        assert wait_until(lambda: any('"draining"' in line for line in proxy.log))
        assert ask(proxy.port, path="/health", method="GET").status == 503
        answer = ask(proxy.port, message_body())
        assert text_of(answer) == "fine" and answer.headers["connection"] == "close"
        assert proxy.process.wait(10) == 0
        proxy.process.stdout.close()
