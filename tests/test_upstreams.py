"""What every upstream keeps to: one contract, a row for each."""

from __future__ import annotations

import contextlib
import io

import pytest

from claude_proxy.assembly import UPSTREAMS, build_app
from claude_proxy.config import UPSTREAM_NAMES
from claude_proxy.config_load import load_config
from claude_proxy.errors import ProxyError
from claude_proxy.events import check_grammar, events_to_message
from claude_proxy.exchange import Exchange, client_gone
from claude_proxy.inflight import Inflight
from claude_proxy.log import Log
from tests.support import (
    WAIT_FOR_CLOSE,
    ScriptedUpstream,
    json_answer,
    messages_stream,
    text_answer,
    upstream_environ,
)

TOKEN = "0123456789abcdef0123456789ABCDEF"
TEXT = {"model": "m", "messages": [{"role": "user", "content": "demo: text fine"}]}
WAIT = {"model": "m", "messages": [{"role": "user", "content": "demo: slow 60"}]}
UNKNOWN = {"model": "m", "new_member": {"a": [1]}, "messages": [
    {"role": "sage", "content": [{"type": "rune", "text": "demo: text fine", "glow": 1}]},
    {"role": "user", "content": [{"type": "text", "text": "demo: text fine", "cache_control": {}}]}]}


SETTINGS_OF = {"redcap": {"UPSTREAM": "redcap", "REDCAP_API_TOKEN": TOKEN, "REDCAP_ALIASES": "m"},
               "anthropic": {"UPSTREAM": "anthropic", "ANTHROPIC_UPSTREAM_KEY": "test-key"}}
REDCAP_REPLY = {"type": "message", "content": [{"type": "text", "text": "fine"}],
                "usage": {"input_tokens": 3, "output_tokens": 1}}
# How each upstream's other side says "fine".
MESSAGES_REPLY = {"id": "msg_9", "type": "message", "role": "assistant", "model": "other", "stop_reason": "end_turn",
                  "content": [{"type": "text", "text": "fine"}], "usage": {"input_tokens": 3, "output_tokens": 1}}
FINE = {"openai": text_answer("fi", "ne"), "redcap": json_answer(200, REDCAP_REPLY), "demo": [],
        "anthropic": messages_stream(MESSAGES_REPLY)}


@pytest.fixture
def make():
    """make(name, script) -> the upstream of this name, answering by the script where one asks."""
    with contextlib.ExitStack() as stack:
        def build(name, script):
            fake = stack.enter_context(ScriptedUpstream(script))
            log = Log(io.StringIO())
            environ = {**upstream_environ(fake), **SETTINGS_OF.get(name, {})}
            environ["ANTHROPIC_FORWARD_URL"] = fake.url if name == "anthropic" else ""
            if name == "redcap":
                environ["REDCAP_API_URL"] = fake.url.replace("/v1", "/api/")
            app = build_app(load_config(environ), log, Inflight(log))
            stack.callback(app.transport.close)
            return app.upstreams[name], fake
        yield build


def exchange_for(model="claude-x"):
    exchange = Exchange()
    exchange.model = model
    return exchange


def test_every_upstream_is_in_the_table():
    assert set(UPSTREAMS) == set(UPSTREAM_NAMES)


@pytest.mark.parametrize("name", list(UPSTREAMS))
@pytest.mark.parametrize("request_", [TEXT, UNKNOWN], ids=["text", "unknown members"])
def test_answers_are_grammatical_and_under_the_clients_model_name(make, name, request_):
    upstream, _ = make(name, FINE[name])
    exchange = exchange_for()
    message = events_to_message(check_grammar(upstream.stream(request_, exchange)))
    assert message["content"] == [{"type": "text", "text": "fine"}]
    assert (message["model"], message["id"], message["stop_reason"]) == ("claude-x", exchange.message_id, "end_turn")
    assert {type(message["usage"][key]) for key in ("input_tokens", "output_tokens")} == {int}


@pytest.mark.parametrize("name", list(UPSTREAMS))
def test_nothing_happens_before_the_first_next(make, name):
    upstream, fake = make(name, FINE[name])
    stream = upstream.stream(TEXT, exchange_for())
    assert fake.connections == 0
    stream.close()


@pytest.mark.parametrize("name", list(UPSTREAMS))
def test_a_cancelled_exchange_raises_its_reason(make, name):
    upstream, fake = make(name, [WAIT_FOR_CLOSE])
    exchange = exchange_for()
    exchange.cancel(client_gone())
    with pytest.raises(ProxyError) as caught:
        list(upstream.stream(WAIT, exchange))
    assert caught.value.status == 499 and not fake.requests and not exchange.cancellable()


@pytest.mark.parametrize("name", list(UPSTREAMS))
def test_descriptions_have_no_secret(make, name):
    upstream, _ = make(name, [])
    assert upstream.describe() and not {"test-key", TOKEN} & set(upstream.describe().split())
    assert isinstance(upstream.native_tools, bool)
