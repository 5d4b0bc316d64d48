"""What the SDKs do: run as `python sdk_client.py FUNCTION URL` where they are installed.

Exit status 0 if all was as expected, and then a word about what was seen.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any, Dict, List

PROMPT: List[Dict[str, Any]] = [{"role": "user", "content": "Hello"}]
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [{"name": "get_weather", "description": "The weather in a city", "input_schema": CITY}]
CALLED = [("call_paris", {"city": "Paris"}), ("call_rome", {"city": "R\u00f4me"})]

# What an upstream's status is for the SDK's user. Where a class is new, its base will do.
ERROR_CLASSES = {
    400: ("BadRequestError", "invalid_request_error"),
    401: ("AuthenticationError", "authentication_error"),
    403: ("PermissionDeniedError", "permission_error"),
    404: ("NotFoundError", "not_found_error"),
    413: ("RequestTooLargeError", "request_too_large"),
    429: ("RateLimitError", "rate_limit_error"),
    500: ("InternalServerError", "api_error"),
    503: ("ServiceUnavailableError", "overloaded_error"),
    529: ("OverloadedError", "overloaded_error"),
}


def client(url: str, **options: Any) -> Any:
    import anthropic

    settings = {"base_url": url, "api_key": "any-text", "max_retries": 0, "timeout": 30, **options}
    return anthropic.Anthropic(**settings)


def asked(model: str, **more: Any) -> Dict[str, Any]:
    return {"model": model, "max_tokens": 200, "messages": PROMPT, **more}


def equal(found: Any, wanted: Any) -> None:
    assert found == wanted, f"expected {wanted!r}, found {found!r}"


def expect_words(message: Any) -> None:
    equal([(block.type, block.text) for block in message.content], [("text", "Words in pieces.")])
    equal((message.type, message.role, message.stop_reason), ("message", "assistant", "end_turn"))
    usage = message.usage
    counted = (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens)
    equal(counted, (30, 20, 7))
    assert message.id.startswith("msg_"), message.id


def text(url: str) -> str:
    message = client(url).messages.create(**asked("claude-sonnet-5"))
    expect_words(message)
    equal(message.model, "claude-sonnet-5")
    assert message._request_id.startswith("req_"), message._request_id
    return "one message, with usage and request id"


def stream(url: str) -> str:
    pieces, kinds = [], []
    with client(url).messages.stream(**asked("claude-sonnet-5")) as events:
        for event in events:
            kinds.append(event.type)
            pieces += [event.text] if event.type == "text" else []
        message = events.get_final_message()
    equal(pieces, ["Words ", "in pieces."])
    equal((kinds[0], kinds[-1]), ("message_start", "message_stop"))
    expect_words(message)
    return f"{len(kinds)} events add up to the final message"


def stream_async(url: str) -> str:
    import anthropic

    async def go() -> Any:
        async with anthropic.AsyncAnthropic(base_url=url, api_key="x", max_retries=0) as api:
            raw = [e.type async for e in await api.messages.create(**asked("m", stream=True))]
            async with api.messages.stream(**asked("m")) as events:
                return raw, await events.get_final_message()

    raw, message = asyncio.run(go())
    equal((raw[0], raw[-1]), ("message_start", "message_stop"))
    expect_words(message)
    return "raw and helper streams"


def think(url: str) -> str:
    with client(url).messages.stream(**asked("think")) as events:
        blocks = events.get_final_message().content
    equal([block.type for block in blocks], ["thinking", "text"])
    equal((blocks[0].thinking, blocks[1].text), ("Thinking first.", "Then said."))
    return "a thinking block, then text"


def tools(url: str) -> str:
    """Two parallel calls, streamed; their results go back; an answer."""
    with client(url).messages.stream(**asked("tools", tools=TOOLS)) as events:
        message = events.get_final_message()
    return follow_calls(url, message)


def tools_whole(url: str) -> str:
    return follow_calls(url, client(url).messages.create(**asked("tools", tools=TOOLS)))


def follow_calls(url: str, message: Any) -> str:
    equal(message.stop_reason, "tool_use")
    calls = [block for block in message.content if block.type == "tool_use"]
    equal([(call.id, call.input) for call in calls], CALLED)
    results = [
        {"type": "tool_result", "tool_use_id": call.id, "content": f"sun in {call.input['city']}"}
        for call in calls
    ]
    history = [
        *PROMPT,
        {"role": "assistant", "content": message.content},
        {"role": "user", "content": results},
    ]
    answer = client(url).messages.create(**asked("tools", tools=TOOLS, messages=history))
    equal(answer.content[0].text, "Results: call_paris=sun in Paris, call_rome=sun in R\u00f4me")
    return "two calls, two results, an answer"


def errors(url: str) -> str:
    return every_error(lambda model: client(url).messages.create(**asked(model)))


def errors_streaming(url: str) -> str:
    def ask(model: str) -> None:
        with client(url).messages.stream(**asked(model)) as events:
            events.until_done()

    return every_error(ask)


def every_error(ask: Any) -> str:
    import anthropic

    for status, (name, kind) in ERROR_CLASSES.items():
        wanted = getattr(anthropic, name, anthropic.APIStatusError)
        try:
            ask(f"status-{status}")
        except anthropic.APIStatusError as error:
            equal((type(error).__name__, error.status_code), (wanted.__name__, status))
            equal(error.body["error"]["type"], kind)
            assert f"scripted failure {status}" in error.body["error"]["message"], error.body
            assert error.request_id.startswith("req_"), error.request_id
        else:
            raise AssertionError(f"no error for {status}")
    return f"{len(ERROR_CLASSES)} statuses, each its exception"


def cut(url: str) -> str:
    """An answer that breaks off is an error, streamed or not, never a short message."""
    import anthropic

    try:
        with client(url).messages.stream(**asked("cut")) as events:
            events.until_done()
    except anthropic.APIStatusError as error:
        equal(error.body["error"]["type"], "api_error")
    else:
        raise AssertionError("the stream's end was taken for a whole answer")
    try:
        client(url).messages.create(**asked("cut"))
    except anthropic.InternalServerError:
        return "an exception, streamed and not"
    raise AssertionError("half an answer was given as a whole one")


def stop_reasons(url: str) -> str:
    message = client(url).messages.create(**asked("short"))
    equal((message.stop_reason, message.content[0].text), ("max_tokens", "No room for m"))
    return "max_tokens"


def count_tokens(url: str) -> str:
    count = client(url).messages.count_tokens
    short = count(model="claude-sonnet-5", messages=PROMPT).input_tokens
    more = count(model="claude-sonnet-5", messages=PROMPT, tools=TOOLS, system="Be brief.")
    assert 1 <= short < more.input_tokens < 1000, (short, more)
    return f"{short} tokens, with tools {more.input_tokens}"


def models(url: str) -> str:
    import anthropic

    api = client(url)
    listed = list(api.models.list(limit=2))  # fetches page after page
    ids = [model.id for model in listed]
    assert "claude-sonnet-5" in ids and "alias-model" in ids, ids
    equal(len(ids), len(set(ids)))
    one = api.models.retrieve("claude-sonnet-5")
    equal((one.id, one.type), ("claude-sonnet-5", "model"))
    assert one.display_name and one.created_at.year > 2000, one
    try:
        api.models.retrieve("no-such-model")
    except anthropic.NotFoundError:
        return f"{len(ids)} models in pages of 2, one by name, 404 for another"
    raise AssertionError("a model that is not there was found")


def demo(url: str) -> str:
    """The built-in demo: text, a tool call, an error."""
    import anthropic

    def say(words: str) -> Dict[str, Any]:
        return asked("claude-opus-4-8", messages=[{"role": "user", "content": words}], tools=TOOLS)

    message = client(url).messages.create(**say("Hello"))
    assert "built-in demo" in message.content[0].text, message
    with client(url).messages.stream(**say('demo: tool get_weather {"city": "Oslo"}')) as events:
        call = events.get_final_message().content[-1]
    equal((call.type, call.name, call.input), ("tool_use", "get_weather", {"city": "Oslo"}))
    try:
        client(url).messages.create(**say("demo: error 429"))
    except anthropic.RateLimitError:
        return "text, a call, an error"
    raise AssertionError("no error")


def openai_models(url: str) -> str:
    import openai

    api = openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0, timeout=30)
    ids = [model.id for model in api.models.list()]
    one = api.models.retrieve("claude-sonnet-5")
    assert "claude-sonnet-5" in ids, ids
    equal((one.id, one.object), ("claude-sonnet-5", "model"))
    return f"{len(ids)} models"


def openai_script(url: str) -> str:
    """The scripted upstream's own stream, read by the SDK of those whose API it plays."""
    import openai

    api = openai.OpenAI(base_url=url, api_key="x", max_retries=0, timeout=30)
    wanted: Dict[str, Any] = {"messages": PROMPT, "stream_options": {"include_usage": True}}
    with api.chat.completions.stream(model="words", **wanted) as events:
        answer = events.get_final_completion()
    equal(answer.choices[0].message.content, "Words in pieces.")
    equal((answer.usage.prompt_tokens, answer.usage.completion_tokens), (50, 7))
    with api.chat.completions.stream(model="tools", **wanted) as events:
        calls = events.get_final_completion().choices[0].message.tool_calls
    equal([(call.id, json.loads(call.function.arguments)) for call in calls], CALLED)
    try:
        api.chat.completions.create(model="status-429", messages=PROMPT)
    except openai.RateLimitError:
        return "text, two calls, an error"
    raise AssertionError("no error")


FUNCTIONS = (
    text, stream, stream_async, think, tools, tools_whole, errors, errors_streaming, cut,
    stop_reasons, count_tokens, models, demo, openai_models, openai_script,
)

if __name__ == "__main__":
    chosen = {function.__name__: function for function in FUNCTIONS}[sys.argv[1]]
    print(chosen(sys.argv[2]))
