"""Context overflows: told in any provider's words, retold in those that clients act on. Pure.

Claude Code compacts the conversation when a message contains "prompt is too long", and repeats with
a smaller max_tokens on "input length and `max_tokens` exceed context limit". It knows no other
wording, so every provider's must become one of these.
"""

from __future__ import annotations

import functools
import re
from typing import Dict, Optional, Tuple

from claude_proxy.patterns import LazyPattern

# So much of a text is looked at. What tells of an overflow stands at its beginning.
LONGEST_OVERFLOW_TEXT = 8192
# A number of more digits is nobody's token count, and Python refuses to read some thousand.
MOST_TOKEN_DIGITS = 15


@functools.lru_cache(maxsize=256)
def overflow_pattern(wording: str) -> LazyPattern:
    """A wording with <n>, <m> and so on where it tells a number, as a pattern for a text of any
    letter case. A number is taken whole or not at all, which also keeps long ones cheap."""
    return LazyPattern(
        re.sub(r"<([nambt])>", r"(?P<\1>\\d+)(?!\\d)", wording), re.IGNORECASE | re.DOTALL
    )


TOLD_LIMIT = r"maximum context length is <m> tokens.{0,60}?requested (?:about )?"
TOLD_PROMPT = r"(?:in the messages|of text input|in your prompt)"
TOLD_ANSWER = r"(?:completion|output)"
# n: prompt tokens; a: at least so many prompt tokens, for the counting stopped there; m: the
# model's limit; b: tokens asked for the answer; t: prompt and answer together.
# The first that matches decides, so that the one with more numbers stands before its beginning.
OVERFLOW_NUMBERS: Tuple[str, ...] = (
    # OpenAI, Azure; DeepSeek and vLLM with the parts; OpenRouter
    r"maximum context length is <m>.{0,40}your messages resulted in <n>",
    r"limit of <m> tokens.{0,20}your messages resulted in <n>",
    rf"{TOLD_LIMIT}<t> tokens \(\d+ {TOLD_PROMPT}.{{0,80}}?<b> (?:in|for) the {TOLD_ANSWER}",
    rf"{TOLD_LIMIT}\d+ tokens \(<n> {TOLD_PROMPT}",
    rf"{TOLD_LIMIT}<t> tokens",
    # vLLM: both of its newer wordings tell how far it counted, not how long the prompt is
    rf"{TOLD_LIMIT}<b> output tokens.{{0,40}}?contains (?:at least )?<a> input tokens",
    r"passed <a> input tokens and requested <b> output tokens.{0,60}?length is only <m>",
    r"maximum context length is <m> tokens,? but the prompt contains <n>",
    r"prompt \((?:total )?length <n>\).{0,60}?(?:maximum model length of|context length) <m>",
    r"too large: <b>.{0,120}?context length is <m> tokens and your request has <n> input",
    r"input length \(<n>\) exceeds.{0,60}?context length \(<m>\)",
    # SGLang
    r"input \(<n> tokens\) is longer than.{0,60}?context length \(<m>",
    r"maximum context length of <m> tokens.{0,80}?: <n> tokens from the input messages and <b>",
    # llama.cpp: words, and members beside them; LM Studio
    r"request \(<n> tokens\) exceeds the available context size \(<m>",
    r"\A(?=.*\bn_prompt_tokens\W{1,9}<n>).*\bn_ctx\W{1,9}<m>",
    r"keep the first <n> tokens.{0,120}?context length of only <m>",
    r"n_keep: <n> ?>= n_ctx: <m>",
    # Gemini, by both of its doors; xAI; Mistral; Moonshot
    r"input token count \(?<n>\)? exceeds the maximum number of tokens allowed \(?<m>",
    r"input token count is <n> but.{0,40}?supports up to <m>",
    r"maximum prompt length is <m> but the request contains <n> tokens",
    r"prompt contains <n> tokens.{0,80}?with <m> maximum context length",
    r"exceeded model token limit: <m> \(requested: <t>",
    # Together and Hugging Face; Fireworks; Anthropic's own, from a gateway; oMLX; Bedrock
    r"must be <= <m>\. Given: <n> `?inputs`? tokens and <b>",
    r"must have less than <m> tokens\. Given: <n>",
    r"prompt is too long: <n>(?: tokens)?(?:,| >).{0,40}?<m>",
    r"exceed context limit: <n> \+ <b> > <m>",
    r"prompt too long: <n> tokens exceeds max context window of <m>",
    r"prompt tokens \(<n>\) exceed model maximum \(<m>\)",
    # Cerebras; Cohere; GitHub's models
    r"current length is <n> while limit is <m>",
    r"prompt cannot exceed <m>.{0,20}?received <n>",
    r"prompt token count of <n> exceeds the limit of <m>",
)
# The same where the prompt's length is not told.
OVERFLOW_LIMITS: Tuple[str, ...] = (
    r"context length of only <m> tokens",
    r"exceeded model token limit: <m>",
    r"range of input length should be \[\d+, ?<m>\]",
    r"maximum context length is <m>",
)
OVERFLOW_WORDS = LazyPattern(
    r"context[_ ](?:length|window)[_ ]exceeded|contextwindowexceeded|exceed_context_size"
    r"|prompt (?:is )?too long|prompt_too_long|model_max_prompt_tokens_exceeded"
    r"|exceeds? (?:the |this )?(?:model(?:.?s)? )?(?:available |maximum )?context"
    r" (?:window|size|length|limit)|context window exceeds limit|prompt exceeds max length"
    r"|greater than the context length|input is too long for requested model"
    r"|too many tokens: size limit|\bcode\W{1,5}3051\b|reduce the length of the messages",
    re.IGNORECASE,
)
# A limit on tokens a minute or a day that this request is larger than all by itself.
LARGER_THAN_A_RATE = (
    r"tokens per (?:minute|min|hour|day)\b.{0,20}?: limit:? <m>,(?: used:? \d+,)? requested:? <t>"
)
NOT_OVERFLOW = LazyPattern(
    r"\bper (?:minute|min|hour|day)\b|\bTPM\b|\bTPD\b|\bquota|string_above_max_length",
    re.IGNORECASE,
)
# That the answer's limit is out of its own range says nothing of the prompt.
ANSWER_OUT_OF_RANGE = LazyPattern(
    r"\bmax_(?:completion_|output_|new_)?tokens\b['\"`]? ?(?:value |parameter )?(?:\(\d{1,15}\) )?"
    r"(?:exceeds?|is too large|is greater|must be|should be|cannot)\b",
    re.IGNORECASE,
)
# 131,072 as well as 131072
DIGIT_GROUP = LazyPattern("(?<=\\d)[,_'\u2019\u00a0\u2009\u202f](?=\\d{3}(?!\\d))")


def overflow_message(
    text: str, raw: str = "", prompt_tokens: int = 0, max_tokens: int = 0
) -> Optional[str]:
    """Claude Code's wording for a context overflow told in any provider's words, or None.

    `raw` is what stands beside the message, numbers and names. `prompt_tokens` is an estimate,
    for where the number is not told; `max_tokens` is what was asked for the answer.
    """
    whole = f"{text[:LONGEST_OVERFLOW_TEXT]}\n{raw[:LONGEST_OVERFLOW_TEXT]}"
    whole = DIGIT_GROUP.sub("", whole)
    match = larger_than_a_rate(whole)
    if match is None:
        if NOT_OVERFLOW.search(whole):
            return None
        match = first_overflow(OVERFLOW_NUMBERS, whole)
    if match is None:
        if ANSWER_OUT_OF_RANGE.search(whole):
            return None
        match = first_overflow(OVERFLOW_LIMITS, whole)
    if match is None:
        return f"prompt is too long: {text}" if OVERFLOW_WORDS.search(whole) else None
    found = overflow_numbers(match)
    return overflow_words(
        prompt_told(found, prompt_tokens, max_tokens),
        found.get("b") or (max_tokens if "t" in found else 0),
        found["m"],
        text,
    )


def overflow_words(prompt: int, answer: int, limit: int, text: str) -> str:
    """The wording for these numbers: if the prompt fits, the answer asked for is what does not."""
    if answer and 0 < prompt < limit:
        return (
            f"input length and `max_tokens` exceed context limit:"
            f" {prompt} + {answer} > {limit} \u2014 {text}"
        )
    return f"prompt is too long: {max(prompt, limit + 1)} tokens > {limit} maximum \u2014 {text}"


def prompt_told(found: Dict[str, int], prompt_tokens: int, max_tokens: int) -> int:
    """The prompt's tokens as told, or else as estimated; 0 if nobody knows."""
    if "t" in found:
        return max(0, found["t"] - found.get("b", max_tokens)) or prompt_tokens
    if "a" in found:
        return max(found["a"], prompt_tokens)
    return found.get("n") or prompt_tokens


def unexplained_overflow(status: int, prompt_tokens: int, window: int) -> bool:
    """Whether a refusal without a word is most likely one: the estimate is near a known window."""
    return status in (400, 413) and 0 < window * 0.8 < prompt_tokens


def larger_than_a_rate(whole: str) -> Optional[re.Match]:
    """The limit on a rate of tokens that no waiting brings this request under, or None."""
    match = overflow_pattern(LARGER_THAN_A_RATE).search(whole)
    if match is None:
        return None
    found = overflow_numbers(match)
    return match if found["t"] > found["m"] else None


def first_overflow(wordings: Tuple[str, ...], whole: str) -> Optional[re.Match]:
    found = (overflow_pattern(wording).search(whole) for wording in wordings)
    return next((match for match in found if match), None)


def overflow_numbers(match: re.Match) -> Dict[str, int]:
    found = match.groupdict().items()
    return {group: int(digits[:MOST_TOKEN_DIGITS]) for group, digits in found if digits}
