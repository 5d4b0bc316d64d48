"""Of what somebody else has named, a log tells what looks like a program's word; the rest it marks."""

from __future__ import annotations

import pytest

from claude_proxy.exchange import Exchange
from claude_proxy.names import (
    logged_betas,
    logged_method,
    logged_model,
    logged_path,
    logged_query,
    plain_word,
    told_variable,
)
from claude_proxy.relay import error_word

HEX32 = "0123456789abcdef" * 2
UUID = "550e8400-e29b-41d4-a716-446655440000"

# (function, what is given, what is told)
TOLD = [
    (plain_word, "end_turn", "end_turn"), (plain_word, "web_search_20250305", "web_search_20250305"),
    (plain_word, "model_context_window_exceeded", "model_context_window_exceeded"), (plain_word, "overloaded_error", "overloaded_error"),
    (plain_word, "two words", ""), (plain_word, "a1b2c3", ""), (plain_word, "KEY", ""), (plain_word, "a" * 25, ""),
    (plain_word, "_".join(["word"] * 7), ""), (plain_word, "end_turn\n", ""), (plain_word, "", ""), (plain_word, None, ""),
    (plain_word, ["end_turn"], ""), (plain_word, {}, ""), (plain_word, 5, ""),
    (logged_method, "POST", "POST"), (logged_method, "post", "*"), (logged_method, "SECRET", "*"),
    (logged_path, "/v1/messages", "/v1/messages"), (logged_path, "/v1/messages/count_tokens", "/v1/messages/count_tokens"),
    (logged_path, "/", "/"), (logged_path, "", ""), (logged_path, "*", "*"), (logged_path, "/openapi.json", "/openapi.json"),
    (logged_path, "/v1/chat/completions/", "/v1/chat/completions/"), (logged_path, "/test-connection", "/test-connection"),
    (logged_path, f"/v1/messages/batches/msgbatch_01{HEX32}/results", "/v1/messages/batches/*/results"),
    (logged_path, f"/{HEX32}/v1/messages", "/*/v1/messages"), (logged_path, "/v1/models/claude-sonnet-5", "/v1/models/*"),
    (logged_path, "/a%20b/c", "/*/c"), (logged_path, "/..;/x\u00e9", "/*/*"), (logged_path, f"/v1/{'x' * 500}", "/v1/*"),
    (logged_model, "claude-sonnet-4-5-20250929[1m]", "claude-sonnet-4-5-20250929[1m]"), (logged_model, "hf.co/a/b:Q4_K_M", "hf.co/a/b:Q4_K_M"),
    (logged_model, "@cf/meta/llama", "@cf/meta/llama"), (logged_model, "tell me of my patient", "*"), (logged_model, "m\n", "*"),
    (logged_model, "x" * 300, "x" * 200), (logged_model, "", ""),
    (logged_betas, "claude-code-20250219, context-1m-2025-08-07", "claude-code-20250219,context-1m-2025-08-07"),
    (logged_betas, "interleaved-thinking-2025-05-14,oauth-2025-04-20", "interleaved-thinking-2025-05-14,oauth-2025-04-20"),
    (logged_betas, f"sk-ant-{HEX32},effort-2025-11-24", "*,effort-2025-11-24"), (logged_betas, "a patient", "*"), (logged_betas, UUID, "*"),
    (logged_query, "beta=true", "beta=true"), (logged_query, "limit=20&after_id=msg_01", "limit=20&*"), (logged_query, "secret=Ab12", "*"),
    (logged_query, "Ab12", "*"), (logged_query, "beta", "beta"), (logged_query, "a=the%20patient", "*"), (logged_query, "x=12345", "*"),
    (told_variable, "OPENAI_API_KEY", "OPENAI_API_KEY"), (told_variable, "openai_api_key", "openai_api_key"), (told_variable, "UNHEARD_OF", "UNHEARD_OF"),
    (told_variable, "ZGF0YQabc", "a name of 9 characters"), (told_variable, HEX32, "a name of 32 characters"),
    (told_variable, "A" * 17, "a name of 17 characters"), (told_variable, "_".join(["ABCD"] * 20), "a name of 99 characters"),
]


@pytest.mark.parametrize("function,given,told", TOLD, ids=[f"{f.__name__} {str(given)[:40]!a}" for f, given, _ in TOLD])
def test_what_is_told(function, given, told):
    assert function(given) == told


EVENTS = [
    ({"usage": {"input_tokens": 5, "output_tokens": "a text"}}, {"input_tokens": 5}, None),
    ({"usage": {"input_tokens": [1], "cache": {"a": "b"}, "on": True, "part": 0.5}}, {}, None),
    ({"usage": "a text"}, {}, None), ({"delta": {"stop_reason": "pause_turn"}}, {}, "pause_turn"),
    ({"delta": {"stop_reason": "what the patient said"}}, {}, "*"), ({"delta": {"stop_reason": {"a": "b"}}}, {}, "*"),
    ({"delta": {"stop_reason": None}}, {}, None), ({"message": {"usage": {"output_tokens": 3}}}, {"output_tokens": 3}, None),
]


@pytest.mark.parametrize("event,usage,stop_reason", EVENTS)
def test_an_upstreams_figures_are_figures(event, usage, stop_reason):
    exchange = Exchange()
    exchange.note_usage(event)
    assert exchange.usage == usage and exchange.facts.get("stop_reason") == stop_reason


@pytest.mark.parametrize("kind,word", [("overloaded_error", "overloaded_error"), ("Zq7 said so", "error"), (None, "error"), ([], "error")])
def test_an_upstreams_error_is_a_word(kind, word):
    assert error_word({"error": {"type": kind}}) == word
