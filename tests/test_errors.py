"""Section 14 of the conversion's specification, a row a rule: other people's errors, as they send
them, and what a client of the Messages API is told. Full contexts are in test_overflow."""

from __future__ import annotations

import json
import random
import socket
import ssl

import pytest

from claude_proxy.dialects.anthropic import messages_error_frame
from claude_proxy.dialects.chat_stream import chat_chunks, chunks_to_events
from claude_proxy.errors import (
    LONGEST_UPSTREAM_MESSAGE,
    ProxyError,
    error_body,
    retry_after_seconds,
    upstream_error,
    upstream_error_object,
    upstream_error_text,
)
from claude_proxy.events import EventWriter
from claude_proxy.exchange import Exchange
from claude_proxy.log import shortened
from claude_proxy.pool import Target, connect_error

NO_RETRY = ("x-should-retry", "false")
NOW = 1445412480.0  # Wed, 21 Oct 2015 07:28:00 GMT


def named(rows):
    return {"ids": [row[0] for row in rows]}


def says(error, words):
    return error.message == words or len(words) > 1 and words in error.message


def openai_error(message, **more):
    error = {"message": message, "type": "invalid_request_error", **more}
    return json.dumps({"error": error}).encode()


# --- the table: (rule, upstream's status, body, client's status, type, words, no retry) -----------

INVALID, KEY, BILLING, PERMISSION = "invalid_request_error", "authentication_error", "billing_error", "permission_error"
MISSING, TIMEOUT, RATE, OVERLOADED, API = "not_found_error", "timeout_error", "rate_limit_error", "overloaded_error", "api_error"
GEMINI_KEY = [{"error": {"code": 400, "message": "API key not valid. Please pass a valid API key.", "status":
               "INVALID_ARGUMENT", "details": [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}]}}]
GEMINI_QUOTA = [{"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "You exceeded your current quota, please"
                 " check your plan and billing details. Please retry in 37.236874823s.", "details": [
                     {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [{"quotaValue": "50"}]},
                     {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "13s"}]}}]
AZURE_FILTER = {"error": {"message": "The response was filtered due to the prompt triggering the policy.", "param": "prompt",
                "code": "content_filter", "status": 400, "innererror": {"code": "ResponsibleAIPolicyViolation",
                "content_filter_result": {"hate": {"filtered": False, "severity": "safe"}, "violence": {"filtered": True,
                "severity": "medium"}, "jailbreak": {"filtered": True, "detected": True}}}}}
XAI_CREDITS = {"code": "The caller does not have permission to execute the specified operation", "error": "Your newly"
               " created team doesn't have any credits or licenses yet."}
GROQ = ("Request too large for model `llama-3.3-70b-versatile` in organization `org_x` service tier `on_demand` on tokens per"
        " minute (TPM): Limit 12000, Requested {}, please reduce your message size and try again.")
OPENAI_TPM = "Request too large for gpt-4o on tokens per min (TPM): Limit 30000, Requested 342389. The input or output tokens"
USED = "Rate limit reached for model `x` on tokens per minute (TPM): Limit 6000, Used 5034, Requested 1443."
FREE = {"error": {"message": "Rate limit exceeded: free-models-per-day. Add 10 credits to unlock 1000 free model requests"
        " per day", "code": 429, "metadata": {"headers": {"X-RateLimit-Limit": "50", "X-RateLimit-Remaining": "0",
                                                          "X-RateLimit-Reset": "1445412523000"}}}}
TABLE = [
    ("14.400", 400, {"error": {"message": "m"}}, 400, INVALID, "m", False),
    ("14.422", 422, {"detail": "m"}, 400, INVALID, "m", False),
    ("14.400-overflow", 400, {"error": {"message": "Input is too long for requested model."}}, 400, INVALID,
     "prompt is too long: Input", True),
    ("14.400-azure-content-filter", 400, AZURE_FILTER, 400, INVALID,
     "triggering the policy. (filtered: violence medium, jailbreak)", False),
    ("14.400-azure-policy-without-categories", 400, {"error": {"message": "m", "innererror": {"code":
     "ResponsibleAIPolicyViolation"}}}, 400, INVALID, "m", False),
    ("14.400-openai-content-policy", 400, {"error": {"message": "m", "code": "content_policy_violation"}}, 400, INVALID, "m", False),
    ("14.401", 401, {"error": {"message": "m"}}, 401, KEY, "m", True),
    ("14.401-azure-access-denied", 401, {"error": {"code": "401", "message": "Access denied due to invalid subscription key"}},
     401, KEY, "Access denied", True),
    ("14.401-gemini-400", 400, GEMINI_KEY, 401, KEY, "API key not valid. Please pass a valid API key.", True),
    ("14.401-gemini-400-expired", 400, [{"error": {"message": "API key expired. Please renew the API key."}}], 401, KEY, "expired", True),
    ("14.401-xai-400", 400, {"code": "Client specified an invalid argument", "error": "Incorrect API key provided: xa***9."},
     401, KEY, "Incorrect ", True),
    ("14.402", 402, {"error": {"message": "m"}}, 402, BILLING, "m", True),
    ("14.402-openai-429-insufficient-quota", 429, {"error": {"message": "You exceeded your current quota", "code":
     "insufficient_quota"}}, 402, BILLING, "You exceeded your current quota", True),
    ("14.402-deepseek", 402, {"error": {"message": "Insufficient Balance", "type": "unknown_error"}}, 402, BILLING, "Insufficient Balance", True),
    ("14.402-openrouter-credits", 402, {"error": {"message": "This request requires more credits, or fewer max_tokens.", "code": 402}},
     402, BILLING, "requires more credits", True),
    ("14.402-xai-403-credits", 403, XAI_CREDITS, 402, BILLING, "doesn't have any credits", True),
    ("14.402-xai-429-credits", 429, {"code": "c", "error": "Your team has either used all available credits or reached its monthly"
     " spending limit."}, 402, BILLING, "used all available credits", True),
    ("14.402-moonshot-429", 429, {"error": {"message": "m", "type": "exceeded_current_quota_error"}}, 402, BILLING, "m", True),
    ("14.402-openai-429-not-active", 429, {"error": {"message": "m", "code": "billing_not_active"}}, 402, BILLING, "m", True),
    ("14.402-anthropic-400", 400, {"error": {"message": "Your credit balance is too low to access the API."}}, 402, BILLING, "too low", True),
    ("14.402-zai-429-in-chinese", 429, {"error": {"code": "1113", "message": "\u4f59\u989d\u4e0d\u8db3\u6216\u65e0\u53ef\u7528\u8d44\u6e90\u5305"}},
     402, BILLING, "\u4f59\u989d\u4e0d\u8db3", True),
    ("14.403", 403, {"error": {"message": "m"}}, 403, PERMISSION, "m", False),
    ("14.404", 404, {"error": {"message": "m"}}, 404, MISSING, "m", False),
    ("14.404-azure-deployment", 404, {"error": {"code": "DeploymentNotFound", "message": "The API deployment does not exist."}},
     404, MISSING, "deployment does not exist", False),
    ("14.404-403-model-not-found", 403, {"error": {"message": "no access", "code": "model_not_found"}}, 404, MISSING, "no access", False),
    ("14.404-400-deepseek", 400, {"error": {"message": "Model Not Exist", "type": INVALID}}, 404, MISSING, "Model Not Exist", False),
    ("14.404-400-openrouter", 400, {"error": {"message": "x/y is not a valid model ID", "code": 400}}, 404, MISSING, "x/y", False),
    ("14.408", 408, {"error": {"message": "m"}}, 504, TIMEOUT, "m", False),
    ("14.504", 504, {"error": {"message": "m"}}, 504, TIMEOUT, "m", False),
    ("14.524", 524, {"error": {"message": "m"}}, 504, TIMEOUT, "m", False),
    ("14.409", 409, {"error": {"message": "m"}}, 409, "conflict_error", "m", False),
    ("14.413", 413, {"error": {"message": "m"}}, 413, "request_too_large", "m", False),
    ("14.413-groq-above-the-limit", 413, {"error": {"message": GROQ.format(14137), "type": "tokens", "code": "rate_limit_exceeded"}},
     400, INVALID, "prompt is too long: 14137 tokens > 12000 maximum \u2014 Request too large", True),
    ("14.413-groq-below-the-limit", 413, {"error": {"message": GROQ.format(9000), "type": "tokens", "code": "rate_limit_exceeded"}},
     413, "request_too_large", "Requested 9000", False),
    ("14.429-groq-above-the-limit", 429, {"error": {"message": GROQ.format(14137), "code": "rate_limit_exceeded"}}, 400, INVALID,
     "prompt is too long: 14137 tokens > 12000 maximum", True),
    ("14.429-openai-above-the-limit", 429, {"error": {"message": OPENAI_TPM, "code": "rate_limit_exceeded"}}, 400, INVALID,
     "prompt is too long: 342389 tokens > 30000 maximum", True),
    ("14.429-groq-below-the-limit", 429, {"error": {"message": USED, "type": "tokens", "code": "rate_limit_exceeded"}}, 429, RATE, USED, False),
    ("14.429-per-minute", 429, {"error": {"message": "Rate limit reached on requests per minute (RPM): Limit 3, Used 3, Requested 1."}},
     429, RATE, "Limit 3", False),
    ("14.429", 429, {"error": {"message": "m"}}, 429, RATE, "m", False),
    ("14.429-gemini-quota-is-no-billing", 429, GEMINI_QUOTA, 429, RATE, "You exceeded your current quota", False),
    ("14.429-openrouter-free-is-no-billing", 429, FREE, 429, RATE, "free-models-per-day", False),
    ("14.429-overloaded-stays", 429, {"error": {"message": "The engine is currently overloaded"}}, 429, RATE, "overloaded", False),
    ("14.498", 498, {"error": {"message": "m"}}, 529, OVERLOADED, "m", False),
    ("14.503", 503, {"error": {"message": "m"}}, 503, OVERLOADED, "m", False),
    ("14.503-gemini-unavailable", 503, [{"error": {"code": 503, "message": "The model is overloaded.", "status": "UNAVAILABLE"}}],
     503, OVERLOADED, "The model is overloaded.", False),
    ("14.503-model-is-loading", 503, {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}, 503, OVERLOADED,
     "Loading model", False),
    ("14.529", 529, {"error": {"message": "m"}}, 529, OVERLOADED, "m", False),
    ("14.500-overloaded", 500, {"error": {"message": "m", "type": "overloaded_error"}}, 529, OVERLOADED, "m", False),
    ("14.500-server-is-overloaded", 500, {"error": {"message": "m", "code": "server_is_overloaded"}}, 529, OVERLOADED, "m", False),
    ("14.500-capacity", 500, {"error": {"message": "We are at capacity"}}, 529, OVERLOADED, "We are at capacity", False),
    ("14.500-model-is-loading", 500, {"error": "model is loading"}, 529, OVERLOADED, "model is loading", False),
    ("14.500-warming-up", 500, {"error": "The model is still warming up"}, 529, OVERLOADED, "warming up", False),
    ("14.500-deepseek-resource", 500, {"error": {"message": "m", "code": "insufficient_system_resource"}}, 529, OVERLOADED, "m", False),
    ("14.500", 500, {"error": {"message": "m"}}, 500, API, "m", False),
    ("14.502", 502, {"error": {"message": "m"}}, 502, API, "m", False),
    ("14.520", 520, {"error": {"message": "m"}}, 502, API, "m", False),
    ("14.521", 521, {"error": {"message": "m"}}, 502, API, "m", False),
    ("14.522", 522, {"error": {"message": "m"}}, 502, API, "m", False),
    ("14.523", 523, {"error": {"message": "m"}}, 502, API, "m", False),
    ("14.525", 525, {"error": {"message": "m"}}, 502, API, "m", False),
    ("14.526", 526, {"error": {"message": "m"}}, 502, API, "m", False),
    ("14.527", 527, {"error": {"message": "m"}}, 502, API, "m", False),
    ("14.598", 598, {"error": {"message": "m"}}, 504, TIMEOUT, "m", False),
    ("14.599", 599, {"error": {"message": "m"}}, 504, TIMEOUT, "m", False),
    ("14.530", 530, {"error": {"message": "m"}}, 502, API, "m", False),
    ("14.3xx", 301, {"error": {"message": "m"}}, 502, API, "redirect, which is never followed", False),
    ("14.other-4xx", 418, {"error": {"message": "m"}}, 418, INVALID, "m", False),
    ("14.499-is-not-our-client-gone", 499, {"error": {"message": "m"}}, 502, API, "m", False),
    ("14.no-status-of-a-failure", 204, {"error": {"message": "m"}}, 502, API, "m", False),
    ("14.status-of-no-standard", 777, {"error": {"message": "m"}}, 502, API, "m", False),
]  # fmt: skip


@pytest.mark.parametrize(("name", "status", "body", "told", "kind", "words", "stays"), TABLE, **named(TABLE))
def test_the_table(name, status, body, told, kind, words, stays):
    error = upstream_error(status, {}, json.dumps(body).encode(), now=NOW)
    assert (error.status, error.error_type, error.upstream_status) == (told, kind, status)
    assert says(error, words) and (NO_RETRY in error.headers) is stays


# (status, words that are no number's, what they stand for)
WORDS_DECIDE = [
    (422, "API key expired", 401), (400, "Missing or invalid Authorization header", 401), (400, "Invalid API key", 401),
    (422, "model_not_found", 404), (400, "DeploymentNotFound", 404),
    (403, "Insufficient balance", 402), (403, "add credits", 402), (429, "no credits left", 402), (429, "out of credits", 402),
    (429, "spending cap reached", 402), (400, "billing_hard_limit_reached", 402), (400, "Arrearage", 402), (429, "\u6b20\u8d39", 402),
    (429, "Buy credits for more requests", 429), (400, "credits", 400), (404, "Invalid API key", 404), (502, "at capacity", 502),
    (500, "Loading model", 529), (500, "unavailable_error", 529), (500, "Service temporarily unavailable", 529),
    (500, "rate limit", 500), (400, "timed out", 400),
    (200, "Too many requests", 429), (200, "quota", 429), (200, "throttled", 429), (200, "authentication_error", 401),
    (200, "UNAUTHENTICATED", 401), (200, "Unauthorized", 401), (200, "Forbidden", 403), (200, "NotFoundError", 404),
    (200, "payload too large", 413), (200, "invalid_request_error", 400), (200, "content_filter", 400), (200, "content_policy_violation", 400),
]  # fmt: skip


@pytest.mark.parametrize(("status", "words", "told"), WORDS_DECIDE, ids=[f"14.{row[0]}-{row[1].replace(' ', '-')}" for row in WORDS_DECIDE])
def test_words_that_decide(status, words, told):
    for body in ({"error": {"message": words}}, {"error": {"message": "m", "code": words}}, {"message": "m", "type": words}):
        error = upstream_error(status, {}, json.dumps(body).encode()) if status != 200 else upstream_error_object(body)
        assert error.status == told and error.message in (words, "m")


def test_the_upstreams_retry_after_is_not_kept_where_waiting_is_vain():
    for status, body in ((429, openai_error("m", code="insufficient_quota")), (401, openai_error("m"))):
        assert upstream_error(status, {"retry-after": "5"}, body).headers == (NO_RETRY,)


def test_the_answers_tokens_count_towards_a_rate():
    """Groq adds `max_tokens` to what is requested: the prompt alone may well fit."""
    body = openai_error(GROQ.format(14137))
    fits = upstream_error(413, {}, body, max_tokens=8000).message
    assert fits.startswith("input length and `max_tokens` exceed context limit: 6137 + 8000 > 12000 \u2014 Request")
    assert upstream_error(413, {}, body, max_tokens=1000).message.startswith("prompt is too long: 13137 tokens > 12000")


# --- inside a 200, and in mid-stream --------------------------------------------------------------

OBJECTS = [
    ("14.200-code-number", {"error": {"code": 429, "message": "m"}}, 429, "m"),
    ("14.200-code-digits", {"error": {"code": "503", "message": "m"}}, 503, "m"),
    ("14.200-code-no-status", {"error": {"code": 42, "message": "m"}}, 502, "m"),
    ("14.200-code-below-400", {"error": {"code": 200, "message": "m"}}, 502, "m"),
    ("14.200-code-too-long", {"error": {"code": 4290, "message": "m"}}, 502, "m"),
    ("14.200-code-beside-a-string", {"error": "m", "code": 429}, 429, "m"),
    ("14.200-code-408", {"error": {"code": 408, "message": "m"}}, 504, "m"),
    ("14.200-code-524", {"error": {"code": 524, "message": "m"}}, 504, "m"),
    ("14.200-code-400-and-key", {"error": {"code": 400, "message": "API key not valid"}}, 401, "API key not valid"),
    ("14.200-list", [{"error": {"code": 429, "message": "m"}}], 429, "m"),
    ("14.200-type", {"type": "error", "error": {"type": "overloaded_error", "message": "m"}}, 529, "m"),
    ("14.200-code-words", {"error": {"code": "rate_limit_exceeded", "message": "m"}}, 429, "m"),
    ("14.200-code-before-message", {"error": {"code": "rate_limit_exceeded", "message": "at capacity"}}, 429, "at capacity"),
    ("14.200-key", {"error": {"code": "invalid_api_key", "message": "m"}}, 401, "m"),
    ("14.200-billing", {"error": {"code": "insufficient_quota", "message": "m"}}, 402, "m"),
    ("14.200-billing-text", {"error": "Insufficient Balance"}, 402, "Insufficient Balance"),
    ("14.200-credits", {"error": "You need credits"}, 402, "You need credits"),
    ("14.200-permission", {"error": {"type": "permission_error", "message": "m"}}, 403, "m"),
    ("14.200-model", {"error": {"code": "model_not_found", "type": "invalid_request_error", "message": "m"}}, 404, "m"),
    ("14.200-not-found", {"error": {"type": "not_found_error", "message": "m"}}, 404, "m"),
    ("14.200-timeout", {"error": {"message": "upstream timed out"}}, 504, "upstream timed out"),
    ("14.200-deadline", {"error": {"status": "DEADLINE_EXCEEDED", "message": "m"}}, 504, "m"),
    ("14.200-gemini-unavailable", {"error": {"status": "UNAVAILABLE", "message": "m"}}, 529, "m"),
    ("14.200-gemini-exhausted", {"error": {"status": "RESOURCE_EXHAUSTED", "message": "m"}}, 429, "m"),
    ("14.200-gemini-argument", {"error": {"status": "INVALID_ARGUMENT", "message": "m"}}, 400, "m"),
    ("14.200-deepseek-resource", {"message": "the model failed: insufficient_system_resource"}, 529, "the model failed"),
    ("14.200-content-filter", AZURE_FILTER, 400, "(filtered: violence medium, jailbreak)"),
    ("14.200-bad-request", {"object": "error", "type": "BadRequestError", "message": "m"}, 400, "m"),
    ("14.200-too-large", {"error": {"type": "request_too_large", "message": "m"}}, 413, "m"),
    ("14.200-string", {"error": "Rate limit reached"}, 429, "Rate limit reached"),
    ("14.200-inner-object", {"message": "m", "code": 500}, 500, "m"),
    ("14.200-overflow", {"error": {"code": 502, "message": "Prompt exceeds max length"}}, 400, "prompt is too long: Prompt"),
    ("14.200-text", "m", 502, "m"),
    ("14.200-no-message", {"error": {"code": 500, "kind": "k"}, "choices": ["secret"]}, 500, '{"code": 500, "kind": "k"}'),
    ("14.200-flag", {"error": True}, 502, "the upstream reported an error without a message"),
    ("14.200-nothing", {}, 502, "the upstream reported an error without a message"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "data", "status", "text"), OBJECTS, **named(OBJECTS))
def test_errors_inside_a_200(name, data, status, text):
    error = upstream_error_object(data)
    assert error.status == status and says(error, text) and "secret" not in error.message


MIDSTREAM = [row for row in TABLE if isinstance(row[2], dict) and "error" in row[2]
             if 400 <= row[1] < 600]


@pytest.mark.parametrize(("name", "status", "body", "told", "kind", "words", "stays"), MIDSTREAM,
                         ids=[row[0].replace("14.", "14.midstream-") for row in MIDSTREAM])
def test_in_mid_stream_type_and_message_are_the_same(name, status, body, told, kind, words, stays):
    error = body["error"] if isinstance(body["error"], dict) else {"message": body["error"]}
    chunk = {"error": {**error, "code": status, "reason": str(error.get("code"))}}
    stream = (b'data: {"choices": [{"delta": {"content": "so far"}}]}\n\n', f"data: {json.dumps(chunk)}\n\n".encode())
    events = chunks_to_events(chat_chunks(stream), EventWriter("msg_1", "m", {}))
    with pytest.raises(ProxyError) as raised:
        list(events)
    at_once = upstream_error(status, {}, json.dumps(chunk).encode())
    assert (raised.value.error_type, raised.value.message) == (at_once.error_type, at_once.message)
    frame = messages_error_frame(raised.value, "req_1")
    assert frame.startswith(b"event: error\n")
    told_there = json.loads(frame.split(b"data: ")[1])
    assert told_there["error"] == {"type": kind, "message": at_once.message} and told_there["request_id"] == "req_1"


# --- no answer at all -----------------------------------------------------------------------------

HOST = Target("https", "api.example.org", 443)
UNREACHED = [
    ("14.refused", ConnectionRefusedError(111, "Connection refused"), "nothing listens there"),
    ("14.reset", ConnectionResetError(104, "Connection reset by peer"), "Connection reset"),
    ("14.dns", socket.gaierror(-2, "Name or service not known"), "its name is not known"),
    ("14.tls", ssl.SSLError(1, "WRONG_VERSION_NUMBER"), "TLS handshake failed"),
    ("14.tls-certificate", ssl.SSLCertVerificationError(1, "self-signed certificate"), "certificate is not trusted"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "cause", "words"), UNREACHED, **named(UNREACHED))
def test_no_connection(name, cause, words):
    error = connect_error(HOST, cause)
    assert (error.status, error.error_type) == (502, "api_error")
    assert "api.example.org:443" in error.message and words in error.message


def test_no_bytes_in_time():
    exchange = Exchange(clock=lambda: 0.0)
    exchange.arm(300, f"the first byte from {HOST}")
    assert exchange.overdue(299) is None
    error = exchange.overdue(301)
    assert (error.status, error.error_type) == (504, "timeout_error")
    assert error.message == "timed out waiting for the first byte from api.example.org:443"


# --- where the message is -------------------------------------------------------------------------

TEXTS = [
    ("14.message", b'{"error":{"message":"m","type":"t","code":null}}', "m"),
    ("14.message-string-with-code", b'{"error":"m","code":"c"}', "m"),
    ("14.message-gemini-list", b'[{"error":{"code":400,"message":"m","status":"INVALID_ARGUMENT"}}]', "m"),
    ("14.message-vllm-object", b'{"object":"error","message":"m","type":"BadRequestError","code":400}', "m"),
    ("14.message-alone", b'{"message":"m"}', "m"),
    ("14.message-detail", b'{"detail":"m"}', "m"),
    ("14.message-detail-list", b'{"detail":[{"loc":["body","tools",0,"x"],"msg":"m","type":"missing"}]}', "m (body.tools.0.x)"),
    ("14.message-detail-list-without-place", b'{"detail":[{"loc":[],"msg":"m"}]}', "m"),
    ("14.message-mistral-list", b'{"object":"error","message":{"detail":[{"msg":"m"}]}}', "m"),
    ("14.message-errors", b'{"errors":[{"message":"m"},{"message":"n"}]}', "m"),
    ("14.message-anthropic", b'{"type":"error","error":{"type":"api_error","message":"m"}}', "m"),
    ("14.message-beside-a-flag", b'{"error":true,"message":"m"}', "m"),
    ("14.message-beside-an-object", b'{"error":{"code":5},"message":"m"}', "m"),
    ("14.message-beside-a-name", b'{"statusCode":400,"error":"Bad Request","message":"m"}', "Bad Request: m"),
    ("14.message-entra", b'{"error":"invalid_client","error_description":"m"}', "invalid_client: m"),
    ("14.message-twice", b'{"error":"m","message":"m"}', "m"),
    ("14.message-openrouter-raw", b'{"error":{"message":"Provider returned error","code":400,"metadata":'
     b'{"raw":"{\\"error\\":{\\"message\\":\\"m\\"}}","provider_name":"Azure"}}}', "Provider returned error (Azure: m)"),
    ("14.message-openrouter-raw-no-json", b'{"error":{"message":"p","metadata":{"raw":"m"}}}', "p (provider: m)"),
    ("14.message-openrouter-raw-object", b'{"error":{"message":"p","metadata":{"raw":{"message":"m"}}}}', "p (provider: m)"),
    ("14.message-openrouter-odd-name", b'{"error":{"message":"p","metadata":{"raw":"m","provider_name":[1]}}}', "p (provider: m)"),
    ("14.message-unknown-members", b'{"title":"m","status":400}', '{"title":"m","status":400}'),
    ("14.message-blank", b'{"error":{"message":"  "}}', '{"error":{"message":"  "}}'),
    ("14.message-html-title", b"<!DOCTYPE html><html><head><title>\n 502 Bad &amp; Gateway </title></head>",
     "the upstream answered with a web page: 502 Bad & Gateway"),
    ("14.message-html-without-title", b"<html>x", "the upstream answered with a web page: (no title)"),
    ("14.message-text", b"  Bad Gateway\n", "Bad Gateway"),
    ("14.message-json-string", b'"m"', "m"),
    ("14.message-not-utf-8", b"m\xff", "m\ufffd"),
    ("14.message-too-deep-for-json", b"[" * 100000, "[" * 100000),
    ("14.message-deep", b'{"error":' * 400 + b'"m"' + b"}" * 400, (b'{"error":' * 400 + b'"m"' + b"}" * 400).decode()),
    ("14.message-none", b"", ""),
    ("14.message-empty-object", b"{}", ""),
    ("14.message-null", b"null", ""),
]  # fmt: skip


@pytest.mark.parametrize(("name", "body", "text"), TEXTS, **named(TEXTS))
def test_message_in_any_shape(name, body, text):
    assert upstream_error_text(body) == text
    error = upstream_error(400, {}, body)
    assert error.message == (shortened(text, LONGEST_UPSTREAM_MESSAGE)
                             or "the upstream answered with status 400 (Bad Request) and no message")


@pytest.mark.parametrize(("status", "phrase"), [(418, "418 (I'm a Teapot)"), (520, "520 and no"), (503, "(Service Unavailable)")])
def test_an_answer_without_a_word_tells_its_status(status, phrase):
    assert phrase.lower() in upstream_error(status, {}, b" \n").message.lower()


UNKNOWN = [
    ("14.unknown-words", "Quux 7 is misaligned; call ext. 12"),
    ("14.unknown-thinking", "Invalid `signature` in `thinking` block"),
    ("14.unknown-role", "messages.1: role 'system' is not supported"),
    ("14.unknown-script", "\u4e0d\u77e5\u9053 \U0001f937"),
]


@pytest.mark.parametrize(("name", "words"), UNKNOWN, **named(UNKNOWN))
def test_an_unknown_error_keeps_the_upstreams_words(name, words):
    error = upstream_error(400, {}, openai_error(words))
    assert (error.message, error.status, error.headers) == (words, 400, ())
    assert upstream_error_object({"error": {"message": words, "code": 400}}).message == words


def test_a_long_message_is_cut():
    # Before the last word that may be half a key.
    assert upstream_error(400, {}, b"no " * 30000).message == ("no " * 1000)[:LONGEST_UPSTREAM_MESSAGE].rstrip("no")


def test_keys_are_redacted_before_the_message_is_cut():
    key = "sk-proj-Ab3dEf6hIj9kLm2nOp5qRs8t"
    words = "no " * (LONGEST_UPSTREAM_MESSAGE // 3 - 3)
    error = upstream_error(400, {}, openai_error(words + key + " " + words))
    assert "sk-p" not in error.message and len(error.message) == LONGEST_UPSTREAM_MESSAGE


SECRET = "sk-proj-Ab3dEf6hIj9kLm2nOp5qRs8t"
LEAKS = [
    ("14.redacted-message", {"error": {"message": f"Incorrect API key provided: {SECRET}"}}),
    ("14.redacted-raw", {"error": {"message": "p", "metadata": {"raw": json.dumps({"error": {"message": SECRET}}), "provider_name": SECRET}}}),
    ("14.redacted-place", {"detail": [{"msg": "m", "loc": ["body", SECRET]}]}),
    ("14.redacted-category", {"error": {"message": "m", "content_filter_result": {SECRET: {"filtered": True, "severity": "x"}}}}),
    ("14.redacted-unknown-members", {"title": SECRET}),
    ("14.redacted-overflow", {"error": {"message": f"prompt is too long: {SECRET}"}}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "body"), LEAKS, **named(LEAKS))
def test_no_key_is_passed_on(name, body):
    for error in (upstream_error(400, {}, json.dumps(body).encode()), upstream_error_object(body)):
        assert "Ab3dEf6h" not in error.message and "[redacted]" in error.message


# --- retry-after ----------------------------------------------------------------------------------

RETRIES = [
    ("14.retry-after-seconds", {"retry-after": "7"}, 7),
    ("14.retry-after-zero", {"retry-after": "0"}, 0),
    ("14.retry-after-blanks", {"retry-after": " 7 "}, 7),
    ("14.retry-after-fraction-rounded-up", {"retry-after": "1.2"}, 2),
    ("14.retry-after-above-a-minute", {"retry-after": "3600"}, 3600),
    ("14.retry-after-ms-rounded-up", {"retry-after-ms": "1001"}, 2),
    ("14.retry-after-ms-fraction", {"retry-after-ms": "850.5"}, 1),
    ("14.retry-after-ms-before-seconds", {"retry-after-ms": "500", "retry-after": "60"}, 1),
    ("14.retry-after-ms-odd", {"retry-after-ms": "soon", "retry-after": "6"}, 6),
    ("14.retry-after-date", {"retry-after": "Wed, 21 Oct 2015 07:28:30 GMT"}, 30),
    ("14.retry-after-date-another-zone", {"retry-after": "Wed, 21 Oct 2015 09:28:30 +0200"}, 30),
    ("14.retry-after-date-unknown-zone", {"retry-after": "Wed, 21 Oct 2015 07:28:30 -0000"}, 30),
    ("14.retry-after-date-older-form", {"retry-after": "Wednesday, 21-Oct-15 07:28:30 GMT"}, 30),
    ("14.retry-after-date-past", {"retry-after": "Wed, 21 Oct 2015 07:00:00 GMT"}, 0),
    ("14.retry-after-no-date", {"retry-after": "Wed, 99 Foo 2015"}, None),
    ("14.retry-after-words", {"retry-after": "soon"}, None),
    ("14.retry-after-negative", {"retry-after": "-5"}, None),
    ("14.retry-after-far-too-long", {"retry-after": "9" * 400}, None),
    ("14.retry-after-infinite", {"retry-after": "inf"}, None),
    ("14.retry-after-empty", {"retry-after": ""}, None),
    ("14.retry-after-none", {}, None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "headers", "seconds"), RETRIES, **named(RETRIES))
def test_retry_after(name, headers, seconds):
    assert retry_after_seconds(headers, NOW) == seconds
    error = upstream_error(429, headers, openai_error("m"), now=NOW)
    assert dict(error.headers).get("retry-after") == (None if seconds is None else str(seconds))


def test_a_date_means_nothing_without_a_clock():
    assert retry_after_seconds({"retry-after": "Wed, 21 Oct 2015 07:28:30 GMT"}) is None


METERS = [
    ("14.429-reset-minutes", {"x-ratelimit-reset-requests": "1m30s"}, 90),
    ("14.429-reset-milliseconds", {"x-ratelimit-reset-tokens": "850ms"}, 1),
    ("14.429-reset-fraction", {"x-ratelimit-reset-tokens": "7.66s"}, 8),
    ("14.429-reset-hours", {"x-ratelimit-reset-requests": "1h2m3.5s"}, 3724),
    ("14.429-reset-plain-seconds", {"x-ratelimit-reset-tokens-minute": "11.38"}, 12),
    ("14.429-reset-moment", {"x-ratelimit-reset": "1445412500"}, 20),
    ("14.429-reset-moment-ms", {"x-ratelimit-reset": "1445412500500"}, 21),
    ("14.429-reset-past-moment", {"x-ratelimit-reset": "1445412000"}, 0),
    ("14.429-reset-draft-standard", {"ratelimit-reset": "9"}, 9),
    ("14.429-reset-of-the-meter-used-up", {"x-ratelimit-reset-requests": "1s", "x-ratelimit-remaining-requests": "99",
     "x-ratelimit-reset-tokens": "6m0s", "x-ratelimit-remaining-tokens": "0"}, 360),
    ("14.429-reset-both-used-up", {"x-ratelimit-reset-requests": "1s", "x-ratelimit-remaining-requests": "0",
     "x-ratelimit-reset-tokens": "6s", "x-ratelimit-remaining-tokens": "0"}, 6),
    ("14.429-reset-none-used-up", {"x-ratelimit-reset-requests": "24h", "x-ratelimit-reset-tokens": "6s"}, 6),
    ("14.429-reset-after-retry-after", {"x-ratelimit-reset-tokens": "6s", "retry-after": "3"}, 3),
    ("14.429-reset-odd", {"x-ratelimit-reset-tokens": "soon"}, None),
    ("14.429-reset-odd-unit", {"x-ratelimit-reset-tokens": "5 moons"}, None),
    ("14.429-limit-is-no-reset", {"x-ratelimit-limit-tokens": "5", "x-ratelimit-remaining-tokens": "0"}, None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "headers", "seconds"), METERS, **named(METERS))
def test_meters_of_a_rate_limit(name, headers, seconds):
    error = upstream_error(429, headers, openai_error("m"), now=NOW)
    assert dict(error.headers).get("retry-after") == (None if seconds is None else str(seconds))
    # Every answer of such an upstream has these; only a rate limit is about them.
    other = upstream_error(500, headers, openai_error("m"), now=NOW)
    assert dict(other.headers).get("retry-after") == headers.get("retry-after")


BODIES = [
    ("14.429-retry-after-body", {"error": {"message": "Rate limit reached. Please try again in 7.66s. Visit"}}, 8),
    ("14.429-retry-after-body-minutes", {"error": {"message": "Please try again in 4m32.5s."}}, 273),
    ("14.429-retry-after-body-milliseconds", {"error": {"message": "Please try again in 850ms."}}, 1),
    ("14.429-retry-after-body-azure", {"error": {"message": "Please retry after 10 seconds."}}, 10),
    ("14.429-retry-after-body-words", {"error": {"message": "try again in about 1 minute, 5 seconds"}}, 65),
    ("14.429-retry-after-body-wait", {"error": {"message": "Please wait 20 sec"}}, 20),
    ("14.429-retry-after-body-above-60", {"error": {"message": "Please try again in 2h"}}, 7200),
    ("14.429-retry-after-body-no-time", {"error": {"message": "Please try again in a while"}}, None),
    ("14.429-retry-after-body-no-unit", {"error": {"message": "Please try again in 5"}}, None),
    ("14.429-retry-info", [{"error": {"code": 429, "message": "m", "details": [{"@type": "x.RetryInfo", "retryDelay": "13s"}]}}], 13),
    ("14.429-retry-info-fraction", {"error": {"message": "m", "details": [{"retryDelay": "13.2s"}]}}, 14),
    ("14.429-retry-info-before-words", GEMINI_QUOTA, 13),
    ("14.429-openrouter-reset", FREE, 43),
    ("14.429-openrouter-raw", {"error": {"message": "p", "metadata": {"raw": json.dumps({"error": {"details": [{"retryDelay": "5s"}]}})}}}, 5),
    ("14.429-retry-after-member", {"error": {"message": "m", "retry_after": 4.2}}, 5),
    ("14.429-retry-after-none-made-up", {"error": {"message": "m"}}, None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "body", "seconds"), BODIES, **named(BODIES))
@pytest.mark.parametrize("status", [429, 503, 529])
def test_a_wait_told_in_the_body(name, body, seconds, status):
    raw = json.dumps(body).encode()
    error = upstream_error(status, {}, raw, now=NOW)
    assert (error.status, error.headers) == (status, () if seconds is None else (("retry-after", str(seconds)),))
    assert dict(upstream_error(status, {"retry-after": "3"}, raw, now=NOW).headers) == {"retry-after": "3"}
    assert upstream_error(500, {}, raw, now=NOW).headers == ()


def test_a_wait_told_inside_a_200():
    assert upstream_error_object(FREE, now=NOW).headers == (("retry-after", "43"),)
    assert upstream_error_object(FREE).headers == ()  # a moment, and no clock


STEERING = [
    ("14.should-retry-kept", 500, {"x-should-retry": "true"}, (("x-should-retry", "true"),)),
    ("14.should-retry-false-kept", 429, {"x-should-retry": "false", "retry-after": "2"}, (("retry-after", "2"), NO_RETRY)),
    ("14.should-retry-other-words", 500, {"x-should-retry": "perhaps"}, ()),
    ("14.should-retry-never-for-a-key", 401, {"x-should-retry": "true"}, (NO_RETRY,)),
    ("14.should-retry-never-for-money", 402, {"x-should-retry": "true"}, (NO_RETRY,)),
    ("14.should-retry-once", 401, {"x-should-retry": "false"}, (NO_RETRY,)),
    ("14.retry-after-503", 503, {"retry-after": "2"}, (("retry-after", "2"),)),
    ("14.retry-after-529", 529, {"retry-after": "2"}, (("retry-after", "2"),)),
    ("14.nothing-else-passes", 500, {"set-cookie": "a=b", "content-length": "3"}, ()),
]  # fmt: skip


@pytest.mark.parametrize(("name", "status", "headers", "kept"), STEERING, **named(STEERING))
def test_headers_that_steer_retries(name, status, headers, kept):
    assert upstream_error(status, headers, b"m").headers == kept


def test_error_body():
    error = ProxyError(404, "no such model")
    inner = {"type": "not_found_error", "message": "no such model"}
    assert error_body(error, "req_1") == {"type": "error", "error": inner, "request_id": "req_1"}
    assert ProxyError(400, "m", "other_error").error_type == "other_error"


# --- anything at all ------------------------------------------------------------------------------

WORDS = ("error", "message", "code", "detail", "errors", "metadata", "raw", "headers", "retryDelay", "status", "n_ctx", "n_prompt_tokens",
         "provider_name", "loc", "msg", "content_filter_result", "filtered", "X-RateLimit-Reset", "type", "prompt is too long: 9 > 8",
         "maximum context length is 5", "try again in 5s", "insufficient_quota", "credits", "per minute", "\ud800", "\u0664", "{", "[", "")
HEADERS = ("retry-after", "retry-after-ms", "x-ratelimit-reset", "x-ratelimit-reset-tokens", "x-ratelimit-remaining-tokens", "x-should-retry")


def any_json(dice, depth=0):
    kind = dice.randrange(10 if depth < 5 else 6)
    if kind >= 8:
        return [any_json(dice, depth + 1) for _ in range(dice.randrange(4))]
    if kind >= 6:
        return {dice.choice(WORDS): any_json(dice, depth + 1) for _ in range(dice.randrange(6))}
    return (None, True, dice.choice((0, -1, 429, 4.5, 1e308, float("inf"), float("nan"), 10**30)), dice.choice(WORDS),
            json.dumps(dice.choice(WORDS)), " ".join(dice.choices(WORDS, k=8)))[kind]


def any_body(dice):
    data = json.dumps(any_json(dice)).encode()
    kind = dice.randrange(6)
    if kind == 0:
        return data[:dice.randrange(len(data) + 1)]
    if kind == 1:
        return bytes(dice.randrange(256) for _ in range(dice.randrange(60)))
    return (b"<html><title>" + data, data * 300, data, data)[kind - 2]


@pytest.mark.parametrize("seed", range(8))
def test_any_failure_becomes_an_error_of_ours(seed):
    dice = random.Random(seed)
    for _ in range(60):
        status = dice.choice((0, 100, 200, 204, 301, 399, 429, dice.randrange(400, 600), 600, 999))
        headers = {dice.choice(HEADERS): dice.choice((*WORDS, "1m30s", "5", "-1", "9" * 30, "1445412500500")) for _ in range(3)}
        data = any_json(dice)
        for error in (upstream_error(status, headers, any_body(dice), dice.randrange(3), NOW, dice.randrange(3), dice.randrange(3)),
                      upstream_error_object(data, dice.randrange(3), NOW, dice.randrange(3))):
            assert type(error) is ProxyError and 400 <= error.status < 600 and error.error_type
            assert error.message.strip() and len(error.message) <= 2300
            assert all(name in ("retry-after", "x-should-retry") and str(value).isascii() for name, value in error.headers)
            json.dumps(error_body(error, "req_1")).encode("ascii")


DEEP = [
    ("errors", lambda data: {"error": data}),
    ("lists", lambda data: [data]),
    ("raw objects", lambda data: {"metadata": {"raw": data}}),
    ("codes", lambda data: {"code": data}),
    ("names of providers", lambda data: {"metadata": {"raw": "m", "provider_name": data}}),
    ("places", lambda data: {"msg": "m", "loc": [data]}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "wrap"), DEEP, ids=[row[0] for row in DEEP])
@pytest.mark.parametrize("levels", [3, 30, 300, 5000])
def test_depth_does_no_harm(name, wrap, levels):
    data = "m"
    for _ in range(levels):
        data = wrap(data)
    for error in (upstream_error_object(data), upstream_error_object({"error": data})):
        assert error.status == 502 and error.message
    assert upstream_error(500, {}, json.dumps(data).encode() if levels < 100 else b"").status == 500


def test_json_in_json_in_json_does_no_harm():
    data = {"error": {"message": "m"}}
    for _ in range(9):
        data = {"error": {"message": "p", "metadata": {"raw": json.dumps(data)}}}
    error = upstream_error(502, {}, json.dumps(data).encode())
    assert error.status == 502 and error.message.startswith("p (provider: p (provider: p")
