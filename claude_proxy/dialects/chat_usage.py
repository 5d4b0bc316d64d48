"""What a Chat Completions answer says of its tokens, as Messages has it. Pure.

Chat's prompt tokens include what a cache held, those of Messages do not: told both in full, a
client would count the cache twice. Every member is a number, whatever the provider sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Dict


def largest_counts(found: Dict[str, int], told: Mapping[str, Any], prefix: str = "") -> None:
    """Take each count into `found` if it is larger; those of an inner object as `outer.inner`.

    Usage may come in every chunk, in parts, or with zeros at the end.
    """
    for key, value in told.items():
        if isinstance(value, dict) and not prefix:
            largest_counts(found, value, key + ".")
            continue
        name, count = prefix + key, positive_count(value)
        if count > found.get(name, 0):
            found[name] = count


def chat_usage(counts: Mapping[str, int]) -> Dict[str, Any]:
    """Messages usage: `input_tokens` leaves out what was read from, or written to, a cache."""
    read = first_of(CACHE_READ, counts)
    written = first_of(CACHE_WRITTEN, counts)
    prompt = max(counts.get("prompt_tokens", 0), read + counts.get("prompt_n", 0))
    usage = {
        "input_tokens": max(0, prompt - read - written),
        "cache_read_input_tokens": read,
        "cache_creation_input_tokens": written,
        "output_tokens": output_tokens(counts),
    }
    reasoned, searched = counts.get(REASONED, 0), counts.get(SEARCHED, 0)
    if reasoned:
        usage["output_tokens_details"] = {"thinking_tokens": reasoned}
    if searched:
        usage["server_tool_use"] = {"web_search_requests": searched}
    return usage


# Names of one thing at several providers, the usual one first.
CACHE_READ = (
    "prompt_tokens_details.cached_tokens",
    "prompt_cache_hit_tokens",
    "cached_tokens",
    "cache_read_input_tokens",
    "cache_n",
)
CACHE_WRITTEN = ("prompt_tokens_details.cache_write_tokens", "cache_creation_input_tokens")
REASONED = "completion_tokens_details.reasoning_tokens"
SEARCHED = "server_tool_use.web_search_requests"
# Up to here a whole number is the same as a fraction.
LARGEST_EXACT = 2**53


def output_tokens(counts: Mapping[str, int]) -> int:
    """Completion tokens, and the reasoning where it was counted apart (xAI)."""
    prompt, completion = counts.get("prompt_tokens", 0), counts.get("completion_tokens", 0)
    apart = counts.get("total_tokens", 0) - prompt - completion
    return completion + apart if 0 < apart <= counts.get(REASONED, 0) else completion


def first_of(names: Iterable[str], counts: Mapping[str, int]) -> int:
    """The count under the first of these names that has one."""
    for name in names:
        if name in counts:
            return counts[name]
    return 0


def positive_count(value: Any) -> int:
    """A value above 0 as a number, else 0; providers send null, text and fractions."""
    if type(value) is int and value < LARGEST_EXACT:
        return value if value > 0 else 0
    try:
        return max(int(float(value)), 0)
    except (TypeError, ValueError, OverflowError):
        return 0
