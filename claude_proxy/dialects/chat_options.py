"""What one provider and model want otherwise than most, in a Chat Completions request."""

from __future__ import annotations

from typing import Any, NamedTuple, Tuple


class ChatOptions(NamedTuple):
    """The form of a request. The defaults are the plain form that most providers take.

    A profile says what is known of a provider and its models, a refusal teaches the rest.
    """

    # Limits, sampling, and members that are refused.
    max_tokens_key: str = "max_tokens"
    max_output: int = 0  # more max_tokens than this are refused; 0: not known
    window: int = 0  # tokens of prompt and answer together; 0: not known
    room: int = 0  # max_tokens that are left beside this one prompt
    cuts_silently: bool = False  # a prompt over the window loses its beginning without a word
    drop: frozenset = frozenset()  # top-level members
    top_k: bool = False  # is understood
    most_stops: int = 4
    extra: Tuple[Tuple[str, Any], ...] = ()  # members that every request has
    identity: str = ""  # who asks, as a hash: "openai" or "user" says under which names
    # Messages and what they hold.
    system_role: str = "system"  # "": the system prompt stands before the first user text
    alternate: bool = False  # no two messages of one role in a row
    bridge: bool = False  # no user message behind a tool's
    flat: bool = False  # content is a string, never a list
    null_content: str = "omit"  # calls without text: no content, or "empty" text
    empty_result: str = ""  # the content of a result without any
    cache_control: bool = False  # stays on text parts
    images: bool = True
    image_urls: bool = True  # images by http(s) URL
    files: bool = False  # PDF documents are taken as file parts
    # How an answer that has begun is told: "prefix", "continue", "unthinking", or not.
    prefill: str = ""
    # Tools.
    tools: bool = True  # can be called
    schema_level: int = 0  # how much of JSON schema is understood (chat_schemas)
    longest_description: int = 0  # of a tool; 0: any
    strict: bool = False  # a tool's `strict` may be passed on
    tool_name: str = ""  # "letter": has to begin with one
    tool_ids: str = ""  # the form of call ids: "mistral", "short", or any
    any_word: str = "required"  # tool_choice for "some tool"; "": cannot be demanded
    named_choice: bool = True  # one tool can be demanded
    obeys_none: bool = True  # tool_choice "none" is heeded
    # Reasoning.
    thinking: str = ""  # how the effort is told (chat_thinking); "": not at all
    efforts: Tuple[str, ...] = ("low", "medium", "high")  # the levels there are, weakest first
    always_thinks: bool = False  # cannot be told not to
    effort_with_tools: str = "any"  # "omit", or the one word that goes with tools
    replay: str = ""  # the member in which earlier reasoning comes back
    replay_blank: bool = False  # a call whose reasoning is not known gets a filler
    answer_format: str = "json_schema"  # or "json_object", or "text": the prompt says it
