"""Section 15 of the conversion's specification, a row a rule: a full context in any provider's
words, and what Claude Code is told, for it compacts on no other."""

from __future__ import annotations

import json
import time

import pytest

from claude_proxy.errors import upstream_error, upstream_error_object
from claude_proxy.overflow import overflow_message, unexplained_overflow

NO_RETRY = ("x-should-retry", "false")


def named(rows):
    return {"ids": [f"15.{row[0]}" for row in rows]}


def openai_error(message, **more):
    error = {"message": message, "type": "invalid_request_error", **more}
    return json.dumps({"error": error}).encode()


# --- (wording, text, N, M); N or M None where the wording does not tell it -----------------------

OVERFLOWS = [
    ("openai", "This model's maximum context length is 128000 tokens. However, your messages resulted in 130512"
     " tokens. Please reduce the length of the messages.", 130512, 128000),
    ("openai-functions", "This model's maximum context length is 128000 tokens. However, your messages resulted in"
     " 130512 tokens (120000 in the messages, 10512 in the functions). Please reduce the length of the messages or"
     " functions.", 130512, 128000),
    ("openai-configured-limit", "Input tokens exceed the configured limit of 272000 tokens. Your messages resulted in"
     " 300123 tokens. Please reduce the length of the messages.", 300123, 272000),
    ("openai-responses", "Your input exceeds the context window of this model. Please adjust your input and try again.",
     None, None),
    ("openai-completions", "This model's maximum context length is 4097 tokens, however you requested 5360 tokens (4360"
     " in your prompt; 1000 for the completion). Please reduce your prompt; or completion length.", 4360, 4097),
    ("vllm-requested", "This model's maximum context length is 32768 tokens. However, you requested 40000 tokens (36000"
     " in the messages, 4000 in the completion). Please reduce the length of the messages or completion.", 36000, 32768),
    ("vllm-requested-total", "This model's maximum context length is 32768 tokens. However, you requested 40000 tokens.",
     40000, 32768),
    ("vllm-decoder-prompt", "The decoder prompt (length 40000) is longer than the maximum model length of 32768. Make"
     " sure that `max_model_len` is no smaller than the number of text tokens.", 40000, 32768),
    ("vllm-total-length", "The prompt (total length 25938) is too long to fit into the model (context length 4096).",
     25938, 4096),
    ("vllm-max-tokens", "'max_tokens' or 'max_completion_tokens' is too large: 8192. This model's maximum context length"
     " is 32768 tokens and your request has 33000 input tokens (8192 > 32768 - 33000).", 33000, 32768),
    ("vllm-input-length", "Input length (40000) exceeds model's maximum context length (32768).", 40000, 32768),
    ("vllm-output-none", "This model's maximum context length is 32768 tokens. However, you requested 0 output tokens"
     " and your prompt contains at least 32769 input tokens, for a total of at least 32769 tokens.", 32769, 32768),
    ("vllm-passed", "You passed 131073 input tokens and requested 0 output tokens. However, the model's context length"
     " is only 131072 tokens, resulting in a maximum input length of 131072 tokens.", 131073, 131072),
    ("vllm-contains", "this model's maximum context length is 100 tokens, but the prompt contains 120 input tokens",
     120, 100),
    ("sglang-input", "The input (40000 tokens) is longer than the model's context length (32768 tokens).", 40000, 32768),
    ("sglang-total", "Requested token count exceeds the model's maximum context length of 32768 tokens. You requested a"
     " total of 44096 tokens: 40000 tokens from the input messages and 4096 tokens for the completion. Please reduce"
     " the number of tokens.", 40000, 32768),
    ("llama.cpp-words", "the request exceeds the available context size. try increasing the context size or enable"
     " context shift", None, None),
    ("llama.cpp-numbers", "request (40000 tokens) exceeds the available context size (32768 tokens), try increasing it",
     40000, 32768),
    ("lmstudio-keep-first", "Trying to keep the first 40000 tokens when context the overflows. However, the model is"
     " loaded with context length of only 32768 tokens, which is not enough.", 40000, 32768),
    ("lmstudio-limit-alone", "The model is loaded with context length of only 32768 tokens, which is not enough.", None,
     32768),
    ("lmstudio-greater", "The number of tokens to keep from the initial prompt is greater than the context length.",
     None, None),
    ("lmstudio-greater-numbers", "The number of tokens to keep from the initial prompt is greater than the context"
     " length (n_keep: 10136>= n_ctx: 7866).", 10136, 7866),
    ("openrouter", "This endpoint's maximum context length is 131072 tokens. However, you requested about 150000 tokens"
     " (120000 of text input, 22000 of tool input, 8000 in the output). Please reduce the length of either one.",
     142000, 131072),
    ("gemini", "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).",
     1200000, 1048576),
    ("gemini-vertex", "Unable to submit request because the input token count is 1200000 but model only supports up to"
     " 1048576. Reduce the input token count and try again.", 1200000, 1048576),
    ("xai", "This model's maximum prompt length is 131072 but the request contains 140000 tokens.", 140000, 131072),
    ("mistral", "Prompt contains 40000 tokens and 0 draft tokens, too large for model with 32768 maximum context length",
     40000, 32768),
    ("deepseek", "This model's maximum context length is 65536 tokens. However, you requested 80000 tokens (72000 in the"
     " messages, 8000 in the completion). Please reduce the length.", 72000, 65536),
    ("deepseek-prompt-only", "This model's maximum context length is 65536 tokens. However, you requested 80000 tokens"
     " (72000 in the messages). Please reduce the length.", 72000, 65536),
    ("groq", "Please reduce the length of the messages or completion.", None, None),
    ("moonshot", "Invalid request: Your request exceeded model token limit: 131072", None, 131072),
    ("moonshot-requested", "Your request exceeded model token limit: 131072 (requested: 140000)", 140000, 131072),
    ("together", "`inputs` tokens + `max_new_tokens` must be <= 32769. Given: 40000 `inputs` tokens and 4096"
     " `max_new_tokens`", 40000, 32769),
    ("together-inputs-alone", "`inputs` must have less than 32768 tokens. Given: 40000", 40000, 32768),
    ("fireworks", "The prompt is too long: 140000, model maximum context length: 131072", 140000, 131072),
    ("omlx", "Prompt too long: 40000 tokens exceeds max context window of 32768 tokens", 40000, 32768),
    ("bedrock", "prompt tokens (250000) exceed model maximum (200000)", 250000, 200000),
    ("bedrock-words", "Input is too long for requested model.", None, None),
    ("minimax", "invalid params, context window exceeds limit (2013)", None, None),
    ("zai", "Prompt exceeds max length", None, None),
    ("qwen", "Range of input length should be [1, 129024]", None, 129024),
    ("cohere-words", "too many tokens: size limit exceeded by 1200 tokens", None, None),
    ("cohere-numbers", "too many tokens: total number of tokens in the prompt cannot exceed 4081 - received 4292. Try"
     " using a shorter prompt", 4292, 4081),
    ("cerebras", "Please reduce the length of the messages or completion. Current length is 9000 while limit is 8192",
     9000, 8192),
    ("github-models", "prompt token count of 130000 exceeds the limit of 128000", 130000, 128000),
    ("anthropic", "prompt is too long: 210000 tokens > 200000 maximum", 210000, 200000),
    ("limit-alone", "The maximum context length is 4096", None, 4096),
    ("exceeds-the-models", "the input exceeds the model's maximum context"
     " length", None, None),
    ("litellm", "litellm.ContextWindowExceededError: BadRequestError", None, None),
    ("ollama-cloud", "prompt too long; exceeded max context length by 12 tokens", None, None),
    ("prompt_too_long", "400 prompt_too_long", None, None),
    ("thousands-commas", "This model's maximum context length is 131,072 tokens. However, your messages resulted in"
     " 1,140,000 tokens.", 1140000, 131072),
    ("thousands-narrow-spaces", "prompt tokens (250\u202f000) exceed model maximum (200\u00a0000)", 250000, 200000),
    ("digits-of-another-script", "The maximum context length is \u0664\u0660\u0669\u0666", None, 4096),
    ("letter-case", "PROMPT TOO LONG: 40000 TOKENS EXCEEDS MAX CONTEXT WINDOW OF 32768 TOKENS", 40000, 32768),
]  # fmt: skip


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


RAW = {
    "error": {
        "message": "Too big.",
        "type": "exceed_context_size_error",
        "n_prompt_tokens": 40000,
        "n_ctx": 32768,
    }
}
TOLD_RAW = "prompt is too long: 40000 tokens > 32768 maximum \u2014 Too big."
CODES = [
    ("code-alone", {"error": {"message": "Bad.", "code": "context_length_exceeded"}}, "prompt is too long: Bad."),
    ("groq-code", {"error": {"message": "Bad.", "type": "invalid_request_error", "code": "context_length_exceeded"}},
     "prompt is too long: Bad."),
    ("mistral-code-3051", {"object": "error", "message": "Bad.", "type": "invalid_request_error", "code": 3051},
     "prompt is too long: Bad."),
    ("mistral-code-3051-as-text", {"message": "Bad.", "code": "3051"}, "prompt is too long: Bad."),
    ("github-models-code", {"error": {"message": "Bad.", "code": "model_max_prompt_tokens_exceeded"}},
     "prompt is too long: Bad."),
    ("llama.cpp-members", RAW, TOLD_RAW),
    ("llama.cpp-members-in-another-order", {"error": {"n_ctx": 32768, "n_prompt_tokens": 40000, "message": "Too big."}},
     TOLD_RAW),
    ("llama.cpp-type-alone", {"error": {"message": "Too big.", "type": "exceed_context_size_error"}},
     "prompt is too long: Too big."),
    ("llama.cpp-members-through-openrouter",
     {"error": {"message": "p", "code": 400, "metadata": {"raw": json.dumps(RAW), "provider_name": "X"}}},
     "prompt is too long: 40000 tokens > 32768 maximum \u2014 p (X: Too big.)"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "body", "expected"), CODES, **named(CODES))
def test_overflow_told_outside_the_message(name, body, expected):
    assert upstream_error(400, {}, json.dumps(body, indent=1).encode()).message == expected
    assert upstream_error_object(body).message == expected


ESTIMATES = [
    ("estimate-larger", 9000, 9000),
    ("estimate-smaller", 10, 4097),
    ("estimate-none", 0, 4097),
]


@pytest.mark.parametrize(("name", "estimate", "n"), ESTIMATES, **named(ESTIMATES))
def test_an_estimate_stands_in_for_the_number(name, estimate, n):
    words = "The maximum context length is 4096"
    error = upstream_error(400, {}, openai_error(words), prompt_tokens=estimate)
    assert error.message.startswith(f"prompt is too long: {n} tokens > 4096 maximum \u2014 ")
    assert upstream_error_object({"error": words}, estimate).message == error.message


# --- only the answer asked for is too long: (wording, text, prompt, answer, limit) ----------------

ANSWERS = [
    ("answer-vllm", "This model's maximum context length is 32768 tokens. However, you requested 33000 tokens (1000 in"
     " the messages, 32000 in the completion).", 1000, 32000, 32768),
    ("answer-openai-functions", "This model's maximum context length is 8192 tokens. However, you requested 9200 tokens"
     " (5000 in the messages, 200 in the functions, and 4000 in the completion).", 5200, 4000, 8192),
    ("answer-openai-completions", "This model's maximum context length is 4097 tokens, however you requested 5360 tokens"
     " (1360 in your prompt; 4000 for the completion).", 1360, 4000, 4097),
    ("answer-openrouter", "This endpoint's maximum context length is 131072 tokens. However, you requested about 142000"
     " tokens (100000 of text input, 10000 of tool input, 32000 in the output).", 110000, 32000, 131072),
    ("answer-vllm-max-tokens", "'max_tokens' or 'max_completion_tokens' is too large: 32000. This model's maximum context"
     " length is 32768 tokens and your request has 1000 input tokens (32000 > 32768 - 1000).", 1000, 32000, 32768),
    ("answer-vllm-output", "This model's maximum context length is 32768 tokens. However, you requested 32000 output"
     " tokens and your prompt contains at least 769 input tokens, for a total of at least 32769 tokens. Please reduce"
     " the length of the input prompt or the number of requested output tokens.", 769, 32000, 32768),
    ("answer-vllm-passed", "You passed 98305 input tokens and requested 32768 output tokens. However, the model's context"
     " length is only 131072 tokens, resulting in a maximum input length of 98304 tokens. Please reduce the length of"
     " the input prompt.", 98305, 32768, 131072),
    ("answer-sglang", "Requested token count exceeds the model's maximum context length of 32768 tokens. You requested a"
     " total of 33000 tokens: 1000 tokens from the input messages and 32000 tokens for the completion.",
     1000, 32000, 32768),
    ("answer-together", "`inputs` tokens + `max_new_tokens` must be <= 32769. Given: 1000 `inputs` tokens and 32000"
     " `max_new_tokens`", 1000, 32000, 32769),
    ("answer-anthropic", "input length and `max_tokens` exceed context limit: 188240 + 21333 > 200000, decrease input"
     " length or `max_tokens` and try again", 188240, 21333, 200000),
]  # fmt: skip


@pytest.mark.parametrize(("name", "words", "n", "b", "m"), ANSWERS, **named(ANSWERS))
def test_too_long_an_answer(name, words, n, b, m):
    wanted = f"input length and `max_tokens` exceed context limit: {n} + {b} > {m} \u2014 {words}"
    assert overflow_message(words) == wanted
    error = upstream_error(400, {}, openai_error(words))
    assert (error.message, error.status, error.headers) == (wanted, 400, (NO_RETRY,))


AT_LEAST = ANSWERS[5][1]
COUNTED = [
    ("counted-so-far-and-estimate-fits", 20000, "exceed context limit: 20000 + 32000 > 32768"),
    (
        "counted-so-far-and-estimate-is-too-long",
        50000,
        "prompt is too long: 50000 tokens > 32768 maximum",
    ),
    ("counted-so-far-and-estimate-below", 5, "exceed context limit: 769 + 32000 > 32768"),
]


@pytest.mark.parametrize(("name", "estimate", "told"), COUNTED, **named(COUNTED))
def test_where_the_counting_stopped_the_estimate_goes_on(name, estimate, told):
    """vLLM counts no further than the limit: "at least 769" says nothing of the prompt."""
    assert told in overflow_message(AT_LEAST, "", estimate)


TOTALS = [
    ("total-and-answer-unknown", 0, "prompt is too long: 40000 tokens > 32768 maximum"),
    ("total-less-the-answer-fits", 32000, "exceed context limit: 8000 + 32000 > 32768"),
    ("total-less-the-answer-is-too-long", 4000, "prompt is too long: 36000 tokens > 32768 maximum"),
]


@pytest.mark.parametrize(("name", "max_tokens", "told"), TOTALS, **named(TOTALS))
def test_a_total_without_its_parts(name, max_tokens, told):
    words = (
        "This model's maximum context length is 32768 tokens. However, you requested 40000 tokens."
    )
    assert told in upstream_error(400, {}, openai_error(words), max_tokens=max_tokens).message
    assert told in upstream_error_object({"error": words}, max_tokens=max_tokens).message


# --- nothing of the kind --------------------------------------------------------------------------

NO_OVERFLOWS = [
    ("not-per-minute", "Request on tokens per minute (TPM): Limit 8000, Used 5000, Requested 7000, please reduce the"
     " length of the messages"),
    ("not-per-hour", "4000 tokens per hour are allowed, please reduce the length of the messages"),
    ("not-tpm", "TPM reached, please reduce the length of the messages"),
    ("not-tpd", "TPD reached, please reduce the length of the messages"),
    ("not-per-day", "Rate limit reached on tokens per day (TPD): Limit 100000, Used 99999"),
    ("not-quota", "You exceeded your current quota, please check your plan; prompt is too long"),
    ("not-string", "Invalid 'input': string too long; code string_above_max_length, prompt is too long"),
    ("not-image-size", "Image size 9000x9000 exceeds the maximum allowed size of 8000 pixels"),
    ("not-image-bytes", "image exceeds 5 MB maximum: 6000000 bytes > 5242880 bytes"),
    ("not-range-of-max-tokens", "Range of max_tokens should be [1, 8192]"),
    ("not-range-of-max-tokens-and-a-window", "Range of max_tokens should be [1, 8192], maximum context length is 8192"),
    ("not-max-tokens-of-the-model", "max_tokens is too large: 100000. This model supports at most 16384 completion"
     " tokens, whereas you provided 100000."),
    ("not-max-tokens-above-maximum", "Invalid 'max_tokens': integer above maximum value. Expected <= 16384"),
    ("not-max-tokens-above-the-window", "max_tokens (200000) exceeds the model's context length"),
    ("not-max-tokens-and-a-window", "max_tokens must be smaller than the window: the maximum context length is 8192"),
    ("not-tools", "'tools' is too long: maximum length is 128, got 140"),
    ("not-name", "messages[1].name is too long: 70 characters > 64 maximum"),
    ("not-other", "model not found"),
    ("not-empty", ""),
]  # fmt: skip


@pytest.mark.parametrize(("name", "words"), NO_OVERFLOWS, **named(NO_OVERFLOWS))
def test_no_overflow(name, words):
    assert overflow_message(words) is None


QUOTED = [
    ("quoted-by-fastapi", {"detail": [{"type": "missing", "loc": ["body", "x"], "msg": "Field required",
                                       "input": "prompt is too long"}]}),
    ("quoted-in-a-chunk", {"error": {"message": "m", "code": 400},
                           "choices": [{"delta": {"content": "prompt is too long"}}]}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "body"), QUOTED, **named(QUOTED))
def test_words_of_the_conversation_are_not_the_error(name, body):
    assert "prompt is too long" not in upstream_error(422, {}, json.dumps(body).encode()).message
    assert "prompt is too long" not in upstream_error_object(body).message


@pytest.mark.parametrize("status", [401, 402, 403])
def test_refusals_of_a_key_stay_what_they_are(status):
    assert upstream_error(status, {}, openai_error("prompt is too long")).status == status


# --- a refusal without a word ---------------------------------------------------------------------

SILENT = [
    ("silent-400-near-the-window", 400, b"", 90000, 100000, "prompt is too long: 100001 tokens > 100000 maximum"),
    ("silent-413-near-the-window", 413, b"", 90000, 100000, "prompt is too long: 100001 tokens > 100000 maximum"),
    ("silent-above-the-window", 413, b"{}", 120000, 100000, "prompt is too long: 120000 tokens > 100000 maximum"),
    ("silent-at-80-percent", 400, b"", 80000, 100000, "the upstream answered with status 400 (Bad Request)"),
    ("silent-and-window-unknown", 413, b"", 90000, 0, "the upstream answered with status 413"),
    ("silent-and-estimate-unknown", 413, b"", 0, 100000, "the upstream answered with status 413"),
    ("silent-500", 500, b"", 90000, 100000, "the upstream answered with status 500 (Internal Server Error)"),
    ("not-silent", 413, b"too many bytes", 90000, 100000, "too many bytes"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "status", "body", "estimate", "window", "told"), SILENT, **named(SILENT)
)
def test_a_refusal_without_a_word(name, status, body, estimate, window, told):
    error = upstream_error(status, {}, body, prompt_tokens=estimate, window=window)
    assert error.message.startswith(told)
    overflow = told.startswith("prompt is")
    assert error.status == (400 if overflow else status)
    assert error.headers == ((NO_RETRY,) if overflow else ())
    assert unexplained_overflow(status, estimate, window) is (overflow or name == "not-silent")


# --- texts that mean harm -------------------------------------------------------------------------


@pytest.mark.parametrize("digits", [16, 5000])
def test_a_number_of_any_length_is_read(digits):
    raw = '{"n_prompt_tokens": ' + "9" * digits + ', "n_ctx": 4096}'
    assert overflow_message("x", raw).startswith("prompt is too long: 999999999999999 tokens > ")


HARMFUL = [
    ("digits", "1"),
    ("grouped-digits", "1,000"),
    ("limits", "maximum context length is 1 "),
    ("limits-and-digits", "maximum context length is " + "1" * 3000),
    ("requested", "maximum context length is 1 tokens. requested 2 tokens (3 in the messages "),
    ("too-large", "too large: 1 "),
    ("rates", "tokens per minute: limit 1, requested "),
    ("members", '"n_prompt_tokens": 1 "n_ctx": '),
    ("keep-first", "keep the first 1 tokens "),
    ("max-tokens", "max_tokens parameter "),
    ("exceeds", "exceeds the model's maximum "),
    ("wait", "try again in 1 "),
    ("durations", "try again in 1h1m1s1ms"),
    ("prompt", "prompt is too long: 1 > "),
]  # fmt: skip


@pytest.mark.parametrize(("name", "piece"), HARMFUL, ids=[row[0] for row in HARMFUL])
def test_a_long_text_costs_no_more_than_its_length(name, piece):
    text = piece * (100_000 // len(piece))
    begun = time.thread_time()  # others' work on a busy machine is not counted
    overflow_message(text, text)
    error = upstream_error(429, {}, openai_error(text))
    upstream_error(429, {"x-ratelimit-reset-tokens": text}, text.encode())
    assert time.thread_time() - begun < 1
    assert len(error.message) < 2300
