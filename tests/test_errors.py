"""Other people's errors, as they send them, and what Claude Code is told."""

from __future__ import annotations

import json

import pytest

from claude_proxy.errors import (
    LONGEST_UPSTREAM_MESSAGE,
    ProxyError,
    error_body,
    overflow_message,
    retry_after_seconds,
    upstream_error,
    upstream_error_object,
    upstream_error_text,
)

NO_RETRY = ("x-should-retry", "false")


def named(rows):
    return {"ids": [row[0] for row in rows]}


def openai_error(message, **more):
    error = {"message": message, "type": "invalid_request_error", **more}
    return json.dumps({"error": error}).encode()


# --- overflow: (upstream, wording, N, M); N or M None where the wording does not tell it ---------

OVERFLOWS = [
    ("OpenAI", "This model's maximum context length is 128000 tokens. However, your messages"
     " resulted in 130512 tokens. Please reduce the length of the messages.", 130512, 128000),
    ("OpenAI with functions", "This model's maximum context length is 128000 tokens. However, your"
     " messages resulted in 130512 tokens (120000 in the messages, 10512 in the functions). Please"
     " reduce the length of the messages or functions.", 130512, 128000),
    ("OpenAI, configured limit", "Input tokens exceed the configured limit of 272000 tokens. Your"
     " messages resulted in 300123 tokens. Please reduce the length of the messages.",
     300123, 272000),
    ("Responses", "Your input exceeds the context window of this model. Please adjust your input"
     " and try again.", None, None),
    ("vLLM", "This model's maximum context length is 32768 tokens. However, you requested 40000"
     " tokens (36000 in the messages, 4000 in the completion). Please reduce the length of the"
     " messages or completion.", 36000, 32768),
    ("vLLM, decoder", "The decoder prompt (length 40000) is longer than the maximum model length of"
     " 32768. Make sure that `max_model_len` is no smaller than the number of text tokens.",
     40000, 32768),
    ("vLLM, max_tokens", "'max_tokens' or 'max_completion_tokens' is too large: 8192. This model's"
     " maximum context length is 32768 tokens and your request has 33000 input tokens"
     " (8192 > 32768 - 33000).", 33000, 32768),
    ("vLLM, input", "Input length (40000) exceeds model's maximum context length (32768).", 40000,
     32768),
    ("SGLang", "The input (40000 tokens) is longer than the model's context length (32768 tokens).",
     40000, 32768),
    ("SGLang, total", "Requested token count exceeds the model's maximum context length of 32768"
     " tokens. You requested a total of 44096 tokens: 40000 tokens from the input messages and 4096"
     " tokens for the completion. Please reduce the number of tokens.", 40000, 32768),
    ("llama.cpp, words", "the request exceeds the available context size. try increasing the"
     " context size or enable context shift", None, None),
    ("llama.cpp, numbers", "request (40000 tokens) exceeds the available context size (32768"
     " tokens), try increasing it", 40000, 32768),
    ("LM Studio", "Trying to keep the first 40000 tokens when context the overflows. However, the"
     " model is loaded with context length of only 32768 tokens, which is not enough.",
     40000, 32768),
    ("LM Studio, words", "The number of tokens to keep from the initial prompt is greater than the"
     " context length.", None, None),
    ("OpenRouter", "This endpoint's maximum context length is 131072 tokens. However, you requested"
     " about 150000 tokens (120000 of text input, 22000 of tool input, 8000 in the output). Please"
     " reduce the length of either one.", 142000, 131072),
    ("Gemini", "The input token count (1200000) exceeds the maximum number of tokens allowed"
     " (1048576).", 1200000, 1048576),
    ("xAI", "This model's maximum prompt length is 131072 but the request contains 140000 tokens.",
     140000, 131072),
    ("Mistral", "Prompt contains 40000 tokens and 0 draft tokens, too large for model with 32768"
     " maximum context length", 40000, 32768),
    ("DeepSeek", "This model's maximum context length is 65536 tokens. However, you requested 80000"
     " tokens (72000 in the messages, 8000 in the completion). Please reduce the length.",
     72000, 65536),
    ("Groq", "Please reduce the length of the messages or completion.", None, None),
    ("Moonshot", "Invalid request: Your request exceeded model token limit: 131072", None, 131072),
    ("Moonshot with N", "Your request exceeded model token limit: 131072 (requested: 140000)",
     140000, 131072),
    ("Together", "`inputs` tokens + `max_new_tokens` must be <= 32769. Given: 40000 `inputs`"
     " tokens and 4096 `max_new_tokens`", 40000, 32769),
    ("Fireworks", "The prompt is too long: 140000, model maximum context length: 131072",
     140000, 131072),
    ("oMLX", "Prompt too long: 40000 tokens exceeds max context window of 32768 tokens", 40000,
     32768),
    ("Bedrock", "prompt tokens (250000) exceed model maximum (200000)", 250000, 200000),
    ("Bedrock, words", "Input is too long for requested model.", None, None),
    ("MiniMax", "invalid params, context window exceeds limit (2013)", None, None),
    ("Z.ai", "Prompt exceeds max length", None, None),
    ("Qwen", "Range of input length should be [1, 129024]", None, 129024),
    ("Cohere", "too many tokens: size limit exceeded by 1200 tokens", None, None),
    ("Cerebras", "Please reduce the length of the messages or completion. Current length is 9000"
     " while limit is 8192", 9000, 8192),
    ("Anthropic", "prompt is too long: 210000 tokens > 200000 maximum", 210000, 200000),
    ("another server", "The maximum context length is 4096", None, 4096),
]


@pytest.mark.parametrize(("name", "words", "n", "m"), OVERFLOWS, **named(OVERFLOWS))
def test_overflow_in_any_words(name, words, n, m):
    told = overflow_message(words)
    if m is None:
        assert told == f"prompt is too long: {words}"
    else:
        assert told == f"prompt is too long: {n or m + 1} tokens > {m} maximum \u2014 {words}"


@pytest.mark.parametrize(("name", "words", "n", "m"), OVERFLOWS, **named(OVERFLOWS))
@pytest.mark.parametrize("status", [400, 413, 422, 429, 500])
def test_overflow_of_any_status_is_one_400(name, words, n, m, status):
    error = upstream_error(status, {"retry-after": "9"}, openai_error(words))
    assert error.message == overflow_message(words)
    assert (error.status, error.error_type) == (400, "invalid_request_error")
    assert error.headers == (NO_RETRY,) and error.upstream_status == status
    in_stream = upstream_error_object(json.loads(openai_error(words)))
    assert (in_stream.status, in_stream.message) == (400, error.message)


CODES = [
    ("code alone", {"error": {"message": "Bad.", "code": "context_length_exceeded"}},
     "prompt is too long: Bad."),
    ("llama.cpp's members", {"error": {"message": "Too big.", "type": "exceed_context_size_error",
                                       "n_prompt_tokens": 40000, "n_ctx": 32768}},
     "prompt is too long: 40000 tokens > 32768 maximum \u2014 Too big."),
    ("members in another order", {"error": {"n_ctx": 32768, "n_prompt_tokens": 40000,
                                            "message": "Too big."}},
     "prompt is too long: 40000 tokens > 32768 maximum \u2014 Too big."),
]


@pytest.mark.parametrize(("name", "body", "expected"), CODES, **named(CODES))
def test_overflow_told_outside_the_message(name, body, expected):
    assert upstream_error(400, {}, json.dumps(body, indent=1).encode()).message == expected


ESTIMATES = [("larger", 9000, 9000), ("smaller", 10, 4097), ("none", 0, 4097)]


@pytest.mark.parametrize(("name", "estimate", "n"), ESTIMATES, **named(ESTIMATES))
def test_an_estimate_stands_in_for_the_number(name, estimate, n):
    words = "The maximum context length is 4096"
    error = upstream_error(400, {}, openai_error(words), prompt_tokens=estimate)
    assert error.message.startswith(f"prompt is too long: {n} tokens > 4096 maximum \u2014 ")


# Only the answer asked for is too long: (name, wording, prompt, answer, limit)
ANSWERS = [
    ("vLLM", "This model's maximum context length is 32768 tokens. However, you requested 33000"
     " tokens (1000 in the messages, 32000 in the completion).", 1000, 32000, 32768),
    ("OpenAI with functions", "This model's maximum context length is 8192 tokens. However, you"
     " requested 9200 tokens (5000 in the messages, 200 in the functions, and 4000 in the"
     " completion).", 5200, 4000, 8192),
    ("OpenRouter", "This endpoint's maximum context length is 131072 tokens. However, you requested"
     " about 142000 tokens (100000 of text input, 10000 of tool input, 32000 in the output).",
     110000, 32000, 131072),
    ("vLLM, max_tokens", "'max_tokens' or 'max_completion_tokens' is too large: 32000. This model's"
     " maximum context length is 32768 tokens and your request has 1000 input tokens"
     " (32000 > 32768 - 1000).", 1000, 32000, 32768),
    ("SGLang", "Requested token count exceeds the model's maximum context length of 32768 tokens."
     " You requested a total of 33000 tokens: 1000 tokens from the input messages and 32000 tokens"
     " for the completion.", 1000, 32000, 32768),
    ("Together", "`inputs` tokens + `max_new_tokens` must be <= 32769. Given: 1000 `inputs` tokens"
     " and 32000 `max_new_tokens`", 1000, 32000, 32769),
]


@pytest.mark.parametrize(("name", "words", "n", "b", "m"), ANSWERS, **named(ANSWERS))
def test_too_long_an_answer(name, words, n, b, m):
    wanted = f"input length and `max_tokens` exceed context limit: {n} + {b} > {m} \u2014 {words}"
    assert overflow_message(words) == wanted


NO_OVERFLOWS = [
    ("Groq, per minute", "Request too large for model `llama` on tokens per minute (TPM): Limit"
     " 6000, Requested 7000, please reduce the length of the messages"),
    ("per day", "Rate limit reached on tokens per day (TPD): Limit 100000, Used 99999"),
    ("quota", "You exceeded your current quota, please check your plan; prompt is too long"),
    ("string", "Invalid 'input': string too long; code string_above_max_length, prompt is too"
     " long"),
    ("image size", "Image size 9000x9000 exceeds the maximum allowed size of 8000 pixels"),
    ("range of max_tokens", "Range of max_tokens should be [1, 8192]"),
    ("max_tokens of the model", "max_tokens is too large: 100000. This model supports at most 16384"
     " completion tokens, whereas you provided 100000."),
    ("max_tokens above maximum", "Invalid 'max_tokens': integer above maximum value. Expected <="
     " 16384"),
    ("tools", "'tools' is too long: maximum length is 128, got 140"),
    ("name", "messages[1].name is too long: 70 characters > 64 maximum"),
    ("other", "model not found"),
    ("nothing", ""),
]


@pytest.mark.parametrize(("name", "words"), NO_OVERFLOWS, **named(NO_OVERFLOWS))
def test_no_overflow(name, words):
    assert overflow_message(words) is None


@pytest.mark.parametrize("digits", [16, 5000])
def test_a_number_of_any_length_is_read(digits):
    raw = '{"n_prompt_tokens": ' + "9" * digits + ', "n_ctx": 4096}'
    assert overflow_message("x", raw).startswith("prompt is too long: 999999999999999 tokens > ")


@pytest.mark.parametrize("status", [401, 403])
def test_refusals_of_a_key_stay_what_they_are(status):
    assert upstream_error(status, {}, openai_error("prompt is too long")).status == status


# --- where the message is ------------------------------------------------------------------------

TEXTS = [
    ("OpenAI", b'{"error":{"message":"m","type":"t","code":null}}', "m"),
    ("string", b'{"error":"m","code":"c"}', "m"),
    ("Gemini's list", b'[{"error":{"code":400,"message":"m","status":"INVALID_ARGUMENT"}}]', "m"),
    ("vLLM, older", b'{"object":"error","message":"m","type":"BadRequestError","code":400}', "m"),
    ("message", b'{"message":"m"}', "m"),
    ("detail", b'{"detail":"m"}', "m"),
    ("FastAPI's list", b'{"detail":[{"loc":["body","x"],"msg":"m","type":"missing"}]}', "m"),
    ("Mistral's list in message", b'{"object":"error","message":{"detail":[{"msg":"m"}]}}', "m"),
    ("errors", b'{"errors":[{"message":"m"},{"message":"n"}]}', "m"),
    ("Anthropic", b'{"type":"error","error":{"type":"api_error","message":"m"}}', "m"),
    ("a flag beside the message", b'{"error":true,"message":"m"}', "m"),
    ("an object without words beside it", b'{"error":{"code":5},"message":"m"}', "m"),
    ("OpenRouter", b'{"error":{"message":"Provider returned error","code":400,"metadata":'
     b'{"raw":"{\\"error\\":{\\"message\\":\\"m\\"}}","provider_name":"Azure"}}}',
     "Provider returned error (Azure: m)"),
    ("OpenRouter, no JSON", b'{"error":{"message":"p","metadata":{"raw":"m"}}}', "p (provider: m)"),
    ("OpenRouter, an object", b'{"error":{"message":"p","metadata":{"raw":{"message":"m"}}}}',
     "p (provider: m)"),
    ("members of no known name", b'{"title":"m","status":400}', '{"title":"m","status":400}'),
    ("HTML", b"<!DOCTYPE html><html><head><title>\n 502 Bad &amp; Gateway </title></head>",
     "the upstream answered with a web page: 502 Bad & Gateway"),
    ("HTML without a title", b"<html>x", "the upstream answered with a web page: (no title)"),
    ("text", b"  Bad Gateway\n", "Bad Gateway"),
    ("JSON string", b'"m"', "m"),
    ("not UTF-8", b"m\xff", "m\ufffd"),
    ("deep", b"[" * 100000, "[" * 100000),
    ("nothing", b"", ""),
    ("empty object", b"{}", ""),
    ("null", b"null", ""),
]


@pytest.mark.parametrize(("name", "body", "text"), TEXTS, **named(TEXTS))
def test_message_in_any_shape(name, body, text):
    assert upstream_error_text(body) == text
    error = upstream_error(400, {}, body)
    assert error.message == (text[:LONGEST_UPSTREAM_MESSAGE]
                             or "the upstream answered with status 400 and no message")


def test_keys_are_redacted_before_the_message_is_cut():
    key = "sk-proj-Ab3dEf6hIj9kLm2nOp5qRs8t"
    words = "no " * (LONGEST_UPSTREAM_MESSAGE // 3 - 3)
    error = upstream_error(400, {}, openai_error(words + key + " " + words))
    assert "sk-p" not in error.message and len(error.message) == LONGEST_UPSTREAM_MESSAGE


# --- status and type -----------------------------------------------------------------------------

STATUSES = [
    (301, 502, "api_error"), (400, 400, "invalid_request_error"), (401, 401,
     "authentication_error"),
    (402, 402, "billing_error"), (403, 403, "permission_error"), (404, 404, "not_found_error"),
    (408, 504, "timeout_error"), (409, 409, "conflict_error"), (413, 413, "request_too_large"),
    (418, 418, "invalid_request_error"), (422, 400, "invalid_request_error"),
    (429, 429, "rate_limit_error"), (498, 529, "overloaded_error"), (500, 500, "api_error"),
    (502, 502, "api_error"), (503, 503, "overloaded_error"), (504, 504, "timeout_error"),
    (520, 502, "api_error"), (523, 502, "api_error"), (524, 504, "timeout_error"),
    (529, 529, "overloaded_error"), (530, 502, "api_error"),
]


@pytest.mark.parametrize(("status", "told", "kind"), STATUSES)
def test_status_for_the_client(status, told, kind):
    error = upstream_error(status, {}, openai_error("m"))
    assert (error.status, error.error_type, error.upstream_status) == (told, kind, status)
    assert error.headers == ((NO_RETRY,) if status in (401, 402) else ())
    assert error.message == "m" or status == 301 and "redirect" in error.message


def test_no_money_is_no_rate_limit():
    error = upstream_error(429, {"retry-after": "5"}, openai_error("m", code="insufficient_quota"))
    assert (error.status, error.error_type, error.headers) == (402, "billing_error", (NO_RETRY,))


OBJECTS = [
    ("number", {"error": {"code": 429, "message": "m"}}, 429, "m"),
    ("digits", {"error": {"code": "503", "message": "m"}}, 503, "m"),
    ("no status", {"error": {"code": 42, "message": "m"}}, 502, "m"),
    ("type", {"type": "error", "error": {"type": "overloaded_error", "message": "m"}}, 529, "m"),
    ("code in words", {"error": {"code": "rate_limit_exceeded", "message": "m"}}, 429, "m"),
    ("key", {"error": {"code": "invalid_api_key", "message": "m"}}, 401, "m"),
    ("string", {"error": "Rate limit reached"}, 429, "Rate limit reached"),
    ("inner object", {"message": "m", "code": 500}, 500, "m"),
    ("text", "m", 502, "m"),
    ("nothing", {}, 502, "the upstream reported an error without a message"),
]


@pytest.mark.parametrize(("name", "data", "status", "text"), OBJECTS, **named(OBJECTS))
def test_errors_inside_a_200(name, data, status, text):
    error = upstream_error_object(data)
    assert (error.status, error.message) == (status, text)


# --- retry-after ---------------------------------------------------------------------------------

NOW = 1445412480.0  # Wed, 21 Oct 2015 07:28:00 GMT
RETRIES = [
    ("seconds", {"retry-after": "7"}, 7),
    ("zero", {"retry-after": "0"}, 0),
    ("blanks", {"retry-after": " 7 "}, 7),
    ("a fraction is rounded up", {"retry-after": "1.2"}, 2),
    ("above a minute", {"retry-after": "3600"}, 3600),
    ("milliseconds are rounded up", {"retry-after-ms": "1001"}, 2),
    ("milliseconds before seconds", {"retry-after-ms": "500", "retry-after": "60"}, 1),
    ("odd milliseconds", {"retry-after-ms": "soon", "retry-after": "6"}, 6),
    ("date", {"retry-after": "Wed, 21 Oct 2015 07:28:30 GMT"}, 30),
    ("date in another zone", {"retry-after": "Wed, 21 Oct 2015 09:28:30 +0200"}, 30),
    ("older form of a date", {"retry-after": "Wednesday, 21-Oct-15 07:28:30 GMT"}, 30),
    ("past date", {"retry-after": "Wed, 21 Oct 2015 07:00:00 GMT"}, 0),
    ("no date", {"retry-after": "Wed, 99 Foo 2015"}, None),
    ("words", {"retry-after": "soon"}, None),
    ("negative", {"retry-after": "-5"}, None),
    ("far too long", {"retry-after": "9" * 400}, None),
    ("infinite", {"retry-after": "inf"}, None),
    ("empty", {"retry-after": ""}, None),
    ("none", {}, None),
]


@pytest.mark.parametrize(("name", "headers", "seconds"), RETRIES, **named(RETRIES))
def test_retry_after(name, headers, seconds):
    assert retry_after_seconds(headers, NOW) == seconds
    error = upstream_error(429, headers, openai_error("m"), now=NOW)
    assert dict(error.headers).get("retry-after") == (None if seconds is None else str(seconds))


def test_a_date_means_nothing_without_a_clock():
    assert retry_after_seconds({"retry-after": "Wed, 21 Oct 2015 07:28:30 GMT"}) is None


STEERING = [
    ("kept", 500, {"x-should-retry": "true"}, (("x-should-retry", "true"),)),
    ("other words are not", 500, {"x-should-retry": "perhaps"}, ()),
    ("never for a bad key", 401, {"x-should-retry": "true"}, (NO_RETRY,)),
    ("once", 401, {"x-should-retry": "false"}, (NO_RETRY,)),
    ("nothing else passes", 500, {"set-cookie": "a=b", "content-length": "3"}, ()),
]


@pytest.mark.parametrize(("name", "status", "headers", "kept"), STEERING, **named(STEERING))
def test_headers_that_steer_retries(name, status, headers, kept):
    assert upstream_error(status, headers, b"m").headers == kept


def test_error_body():
    error = ProxyError(404, "no such model")
    inner = {"type": "not_found_error", "message": "no such model"}
    assert error_body(error, "req_1") == {"type": "error", "error": inner, "request_id": "req_1"}
    assert ProxyError(400, "m", "other_error").error_type == "other_error"
