"""The anthropic SDK and the tiny model: run as `python llama_client.py FUNCTION URL`.

Exit status 0 if all was as expected, and then a word about what was seen.
"""

import pathlib
import re
import sys
from collections.abc import Iterator
from typing import Any, Dict, List

# Run alone, and where only the SDK is installed.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import anthropic
import llama_model
from sdk_client import client, equal

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"name": "get_weather", "description": "The weather in a city", "input_schema": CITY}
# A schema that leaves no choice: the server's grammar makes any model say this.
PICKED = {"colour": "blue", "size": 7}
PICK = {
    "name": "pick",
    "description": "Picks",
    "input_schema": {
        "type": "object",
        "properties": {"colour": {"enum": ["blue"]}, "size": {"enum": [7]}},
        "required": ["colour", "size"],
        "additionalProperties": False,
    },
}


def user(content: Any) -> Dict[str, Any]:
    return {"role": "user", "content": content}


def answers(url: str, *messages: Any, **more: Any) -> Iterator[Any]:
    """The answer in one piece, then the same streamed."""
    asked = {"model": "claude-sonnet-5", "max_tokens": 400, "messages": list(messages), **more}
    yield client(url).messages.create(**asked)
    with client(url).messages.stream(**asked) as events:
        yield events.get_final_message()


def expect_counts(message: Any, output_tokens: int) -> None:
    usage = message.usage
    counted = usage.input_tokens + (usage.cache_read_input_tokens or 0)
    assert counted > 10, usage
    equal(usage.output_tokens, output_tokens)


def texts(message: Any) -> List[str]:
    return [block.text for block in message.content if block.type == "text"]


def calls(message: Any) -> List[Any]:
    return [block for block in message.content if block.type == "tool_use"]


def text(url: str) -> str:
    pieces = llama_model.CHAINS[llama_model.TEXT]
    for message in answers(url, user("Hello")):
        equal((message.stop_reason, texts(message)), ("end_turn", ["".join(pieces)]))
        expect_counts(message, len(pieces) + 1)
    for message in answers(url, user("Hello"), max_tokens=3):
        equal((message.stop_reason, texts(message)), ("max_tokens", ["".join(pieces[:3])]))
        expect_counts(message, 3)
    return "whole and streamed; cut at max_tokens"


def think(url: str) -> str:
    for message in answers(url, user(llama_model.THINK_WORDS)):
        equal([block.type for block in message.content], ["thinking", "text"])
        thought, said = message.content
        equal((thought.thinking.strip(), said.text), ("Two and two", "Four it is."))
        equal(message.stop_reason, "end_turn")
        expect_counts(message, 7)
    return "a thinking block, then text, whole and streamed"


def tools(url: str) -> str:
    """The model calls twice by itself; the results go back; it answers."""
    asked = user(llama_model.TWO_WORDS)
    for message in answers(url, asked, tools=[WEATHER]):
        equal([call.input for call in calls(message)], [{"city": "Paris"}, {"city": "R\u00f4me"}])
        equal({call.name for call in calls(message)}, {"get_weather"})
        equal(message.stop_reason, "tool_use")
        expect_counts(message, len(llama_model.CHAINS[llama_model.TWO]) + 1)
        follow(url, asked, message, WEATHER)
    return "two calls, two results, an answer, whole and streamed"


def forced_tool(url: str) -> str:
    """The model would rather talk: the server's grammar makes it call."""
    asked = user("Hello")
    for message in answers(url, asked, tools=[PICK], tool_choice={"type": "any"}):
        equal([(call.name, call.input) for call in calls(message)], [("pick", PICKED)])
        equal(message.stop_reason, "tool_use")
        follow(url, asked, message, PICK)
    for message in answers(url, asked, tools=[PICK], tool_choice={"type": "none"}):
        equal((message.stop_reason, calls(message)), ("end_turn", []))
    return "a call that the grammar wrote, its result, an answer, whole and streamed"


def follow(url: str, asked: Any, message: Any, tool: Any) -> None:
    ids = [call.id for call in calls(message)]
    equal(len(set(ids)), len(ids))
    results = [
        {"type": "tool_result", "tool_use_id": i, "content": f"{llama_model.RESULT_WORDS}: sun"}
        for i in ids
    ]
    history = [asked, {"role": "assistant", "content": message.content}, user(results)]
    for answer in answers(url, *history, tools=[tool]):
        equal(texts(answer), [llama_model.SAID[llama_model.RESULT]])
        equal(answer.stop_reason, "end_turn")
        expect_counts(answer, len(llama_model.CHAINS[llama_model.RESULT]) + 1)


def refusals(url: str, *messages: Any, **more: Any) -> Iterator[str]:
    """What the SDK's exception says, asked for a whole answer and for a stream."""
    asked = {"model": "claude-sonnet-5", "max_tokens": 9, "messages": list(messages), **more}
    for stream in (False, True):
        try:
            client(url).messages.create(**asked, stream=stream)
        except anthropic.BadRequestError as error:
            equal(error.body["error"]["type"], "invalid_request_error")
            yield error.body["error"]["message"]
        else:
            raise AssertionError("no error")


def overflow(url: str) -> str:
    """The server's context is of 512 tokens."""
    said = list(refusals(url, user("Hello " * 200)))
    for words in said:
        assert re.match(r"prompt is too long: [5-9]\d\d tokens > 512 maximum", words), words
    return said[0]


def errors(url: str) -> str:
    """What the server cannot read is told in its own words."""
    odd = {**WEATHER, "input_schema": {"type": "object", "properties": {"a": {"type": "bogus"}}}}
    said = list(refusals(url, user("Hello"), tools=[odd]))
    for words in said:
        assert "unrecognized type bogus" in words, words
    return said[0]


FUNCTIONS = (text, think, tools, forced_tool, overflow, errors)

if __name__ == "__main__":
    chosen = {function.__name__: function for function in FUNCTIONS}[sys.argv[1]]
    print(chosen(sys.argv[2]))
