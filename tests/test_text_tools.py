"""Requests with tools as requests without: what the model is told, and what it reads of its calls."""

from __future__ import annotations

import copy
import json
import random

import pytest

from claude_proxy.dialects.text_calls import CallSplitter, TextCall
from claude_proxy.dialects.text_tools import (
    MOST_TEXT_STOPS,
    RESULT_STOP,
    SINGLE_SENTENCE,
    TOOL_SECTION,
    call_text,
    may_call_once,
    must_call,
    needs_text_tools,
    offered_names,
    text_tool_request,
    tool_section,
    tool_text,
)
from claude_proxy.errors import ProxyError
from tests.test_chat_request import IMAGE, PDF, assistant, odd_value, result, text, use, user

TOOL = {"name": "Read", "description": " Reads a file.\n", "cache_control": {"type": "ephemeral"}, "input_schema": {
    "type": "object", "required": ["path"], "properties": {"path": {"type": "string"}, "limit": {"type": "integer"}}}}
TOOL_TEXT = "=== Read ===\nReads a file.\nInput:\n  path: string\n  limit?: integer\n"
SEARCH = {"type": "web_search_20250305", "name": "web_search"}
CLIENT_BASH = {"type": "bash_20250124", "name": "bash"}
ASKED = [user("x")]
ANY, ONE = "This answer must call at least one tool.", "This answer must call the tool Read."


def convert(messages=ASKED, **members):
    request = {"model": "m", "messages": messages, **members}
    before = copy.deepcopy(request)
    plain = text_tool_request(request)
    assert request == before, "the request itself was changed"
    assert not {"tools", "tool_choice"} & set(plain)
    return plain


def section_of(*tools, **members):
    return convert(tools=list(tools), **members)["system"][-1]["text"]


# --- system, tools, choice -------------------------------------------------------------------------

CACHED = {**text("b"), "cache_control": {"type": "ephemeral"}}


@pytest.mark.parametrize("given,expected", [
    ({}, []), ({"system": None}, []), ({"system": []}, []), ({"system": "s"}, [text("s")]),
    ({"system": [text("a"), CACHED]}, [text("a"), CACHED]),
    ({"system": ""}, []),
])
def test_the_section_stands_behind_the_system_prompt(given, expected):
    assert convert(tools=[TOOL], **given)["system"] == [*expected, text(TOOL_SECTION + "\n" + TOOL_TEXT)]


@pytest.mark.parametrize("members", [
    {}, {"tools": []}, {"tools": [SEARCH]}, {"tools": [TOOL], "tool_choice": {"type": "none"}}, {"tools": [5, None]},
])
@pytest.mark.parametrize("system", [{}, {"system": "s"}, {"system": [text("a")]}])
def test_nothing_to_call_no_section(members, system):
    assert convert(**members, **system) == {"model": "m", "messages": [user("x")], **system}
    assert tool_section(members) == "" and not offered_names(members)


CHOICES = [
    (None, ""),
    ({"type": "auto"}, ""),
    ({"type": "later"}, ""),
    ("any", ""),
    ({"type": "any"}, "\n" + ANY),
    ({"type": "tool", "name": "Read"}, "\n" + ONE),
    ({"type": "auto", "disable_parallel_tool_use": True}, "\n" + SINGLE_SENTENCE),
    ({"type": "auto", "disable_parallel_tool_use": False}, ""),
    ({"type": "any", "disable_parallel_tool_use": True}, f"\n{ANY}\n{SINGLE_SENTENCE}"),
    ({"type": "tool", "name": "web_search"}, ""),
]


@pytest.mark.parametrize("choice,expected", CHOICES)
def test_tool_choice(choice, expected):
    request = {"tools": [TOOL, SEARCH], "tool_choice": choice}
    assert section_of(TOOL, SEARCH, tool_choice=choice) == TOOL_SECTION + "\n" + TOOL_TEXT + expected
    assert must_call(request) == ("must call" in expected)
    assert may_call_once(request) == (SINGLE_SENTENCE in expected)


def test_who_must_call_has_something_to_call():
    assert not must_call({"tool_choice": {"type": "any"}})
    assert not must_call({"tools": [SEARCH], "tool_choice": {"type": "any"}})


def test_tools_stand_in_the_clients_order_and_servers_tools_are_left_out():
    tools = [{"name": "Zip"}, SEARCH, CLIENT_BASH, TOOL, {"type": "custom", "name": "Ask", "description": ""}]
    section = section_of(*tools)
    heads = [line for line in section[len(TOOL_SECTION):].splitlines() if line.startswith("=== ")]
    assert heads == ["=== Zip ===", "=== bash ===", "=== Read ===", "=== Ask ==="]
    assert "=== Zip ===\nInput: {}\n" in section and "=== Ask ===\nInput: {}\n" in section
    assert "=== bash ===\nInput:\n  command?: string\n  restart?: boolean\n" in section
    assert offered_names({"tools": tools}) == {"Zip", "bash", "Read", "Ask"}


STOPS = [(None, [RESULT_STOP]), ([], [RESULT_STOP]), (["a", "b"], ["a", "b", RESULT_STOP]),
         (list("abcde")[:MOST_TEXT_STOPS], list("abcd")), (list("abcde"), list("abcde"))]


@pytest.mark.parametrize("given,expected", STOPS)
def test_results_are_a_stop_sequence_where_there_is_room(given, expected):
    assert convert(tools=[TOOL], stop_sequences=given)["stop_sequences"] == expected


@pytest.mark.parametrize("expected,request_", [
    (False, {}), (False, {"tools": [], "messages": [user("x"), user([text("x")]), assistant(text("y"))]}),
    (False, {"messages": [5, user([5]), user(None)]}), (True, {"tools": [TOOL]}), (True, {"tools": [SEARCH]}),
    (True, {"messages": [assistant(text("a"), use("A"))]}), (True, {"messages": [user([result("A", "1")])]}),
])
def test_what_needs_text_tools(expected, request_):
    assert needs_text_tools(request_) is expected


def test_the_section_is_the_same_bytes_in_every_turn():
    """And so is all of the conversation that was there before: caches match on exact prefixes."""
    turns = [user("a"), assistant({"type": "thinking", "thinking": "t"}, use("A", path="x")), user([result("A", "1")]),
             assistant(text("b"), use("B"))]
    converted = [convert(turns[:end], tools=[TOOL], system="s") for end in range(1, len(turns) + 1)]
    for before, after in zip(converted, converted[1:]):
        assert json.dumps(after["system"]) == json.dumps(before["system"])
        assert after["messages"][:-1] == before["messages"]


# --- tools as text -----------------------------------------------------------------------------------

PROPERTIES = [
    ("string", {"type": "string"}, ["x?: string"]),
    ("no schema", {}, ["x?: any"]),
    ("true", True, ["x?: any"]),
    ("description", {"type": "string", "description": " The path.\nAbsolute. "},
     ["x?: string - The path.", "  Absolute."]),
    ("two types", {"type": ["string", "null"]}, ["x?: string|null"]),
    ("enum", {"type": "string", "enum": ["a", "b c"]}, ['x?: "a"|"b c"']),
    ("enum of anything", {"enum": [1, None, "a"]}, ['x?: 1|null|"a"']),
    ("const", {"const": "c"}, ['x?: any {"const":"c"}']),
    ("default", {"type": "integer", "default": 0}, ['x?: integer {"default":0}']),
    ("limits", {"type": "integer", "minimum": 1, "maximum": 9}, ['x?: integer {"minimum":1,"maximum":9}']),
    ("pattern", {"type": "string", "pattern": "^a&b$", "format": "uri"},
     ['x?: string {"pattern":"^a&b$","format":"uri"}']),
    ("array", {"type": "array", "items": {"type": "string"}}, ["x?: string[]"]),
    ("array of anything", {"type": "array"}, ["x?: any[]"]),
    ("array of enums", {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 1},
     ['x?: "a"|"b"[] {"minItems":1}']),
    ("array of arrays", {"type": "array", "items": {"type": "array", "items": {"type": "number", "minimum": 0}}},
     ['x?: number {"minimum":0}[][]']),
    ("tuple", {"type": "array", "prefixItems": [{"type": "string"}]},
     ['x?: any[] {"prefixItems":[{"type":"string"}]}']),
    ("object", {"type": "object", "required": ["a"], "description": "D", "properties": {
        "a": {"type": "string", "description": "A"}, "b": {"type": "object", "properties": {"c": {"enum": [1]}}}}},
     ["x?: object - D", "  a: string - A", "  b?: object", "    c?: 1"]),
    ("array of objects", {"type": "array", "maxItems": 4, "items": {
        "type": "object", "required": ["a"], "minProperties": 1, "properties": {
            "a": {"type": "string"}, "b": {"type": "array", "items": {
                "type": "object", "properties": {"c": {"type": "boolean", "default": True}}}}}}},
     ['x?: object {"minProperties":1}[] {"maxItems":4}', "  a: string", "  b?: object[]",
      '    c?: boolean {"default":true}']),
    ("object or null", {"type": ["object", "null"], "properties": {"a": {"type": "string"}}},
     ["x?: object|null", "  a?: string"]),
    ("map", {"type": "object", "additionalProperties": {"type": "string"}},
     ['x?: object {"additionalProperties":{"type":"string"}}']),
    ("closed object", {"type": "object", "additionalProperties": False, "properties": {"a": {}}},
     ["x?: object", "  a?: any"]),
    ("open object", {"type": "object", "additionalProperties": True}, ['x?: object {"additionalProperties":true}']),
    ("anyOf", {"anyOf": [{"type": "string"}, {"type": "object", "properties": {"a": {"type": "null"}}}]},
     ['x?: any {"anyOf":[{"type":"string"},{"type":"object","properties":{"a":{"type":"null"}}}]}']),
    ("$ref", {"$ref": "#/$defs/n"}, ['x?: any {"$ref":"#/$defs/n"}']),
    ("array or null", {"type": ["array", "null"], "items": {"type": "string", "minLength": 3}},
     ['x?: array|null {"items":{"type":"string","minLength":3}}']),
    ("items without type", {"items": {"type": "string", "minLength": 3}},
     ['x?: any {"items":{"type":"string","minLength":3}}']),
    ("array of arrays of objects", {"type": "array", "items": {"type": "array", "items": {
        "type": "object", "properties": {"a": {"type": "string"}}}}},
     ['x?: array {"items":{"type":"array","items":{"type":"object","properties":{"a":{"type":"string"}}}}}']),
    ("description of items", {"type": "array", "items": {"type": "string", "description": "One path."}},
     ['x?: array {"items":{"type":"string","description":"One path."}}']),
    ("items of a tuple", {"type": "array", "items": [{"type": "string"}, {"type": "number"}]},
     ['x?: array {"items":[{"type":"string"},{"type":"number"}]}']),
    ("required without properties", {"type": "object", "required": ["a"]}, ['x?: object {"required":["a"]}']),
]


def leaves(schema):
    """The words and figures of a schema, but for what is said in another way or of no use."""
    if isinstance(schema, dict):
        for key, value in schema.items():
            if key == "type":
                yield from () if "enum" in schema or "array" in value else leaves(value)
            elif (key, value) != ("additionalProperties", False):
                yield from leaves(value)
                yield from leaves(sorted(value)) if key == "properties" else ()
    elif isinstance(schema, list):
        for value in schema:
            yield from leaves(value)
    elif isinstance(schema, str):
        yield from (line.strip() for line in schema.strip().split("\n"))
    else:
        yield json.dumps(schema)


@pytest.mark.parametrize("name,schema,expected", PROPERTIES)
def test_every_keyword_of_a_schema_is_told(name, schema, expected):
    told = tool_text({"name": "T", "input_schema": {"type": "object", "properties": {"x": schema}}})
    if expected is not None:
        assert told == "\n".join(["=== T ===", "Input:", *("  " + line for line in expected), ""])
    if schema is not True:
        assert [leaf for leaf in leaves(schema) if leaf not in told] == []


ROOTS = [
    ("$defs", {"$defs": {"n": {"type": "string", "minLength": 3}}},
     'also: {"$defs":{"n":{"type":"string","minLength":3}}}'),
    ("anyOf", {"anyOf": [{"required": ["x"]}, {"required": ["y"]}]},
     'also: {"anyOf":[{"required":["x"]},{"required":["y"]}]}'),
    ("map", {"additionalProperties": {"type": "integer"}}, 'also: {"additionalProperties":{"type":"integer"}}'),
    ("closed", {"additionalProperties": False, "$schema": "s", "title": "t"}, None),
    ("description", {"description": "What it is for."}, "What it is for."),
]


@pytest.mark.parametrize("name,members,expected", ROOTS)
def test_keywords_beside_the_properties_are_told(name, members, expected):
    told = tool_text({"name": "T", "input_schema": {"type": "object", "properties": {"x": {}}, **members}})
    assert told.startswith("=== T ===\n") and "\n  x?: any\n" in told
    assert expected in told if expected else told == "=== T ===\nInput:\n  x?: any\n"


# --- the conversation ----------------------------------------------------------------------------------

REFERENCE = {"type": "tool_reference", "tool_name": "T"}
CALL_A = '<tool_call>\n{"name":"Read","input":{"path":"a"},"id":"A"}\n</tool_call>'


def told_result(content, head='id="A"'):
    return text(f"<tool_result {head}>\n{content}</tool_result>")


MESSAGES = [
    ("a string", user("hi <tool_call>"), "hi <tool_call>"),
    ("texts and an image", user([text("a"), CACHED, IMAGE]), [text("a"), CACHED, IMAGE]),
    ("a call", assistant(use("A", path="a")), [text(CALL_A)]),
    ("text, thinking, calls", assistant({"type": "thinking", "thinking": "t", "signature": "s"}, text("look"),
                                        {"type": "redacted_thinking", "data": "x"}, use("A", path="a"), use("B", "Ls")),
     [text("look"), text(CALL_A), text('<tool_call>\n{"name":"Ls","input":{},"id":"B"}\n</tool_call>')]),
    ("& in a call", assistant(use("A", path="a && &lt; \\&")),
     [text(CALL_A.replace('"a"', '"a \\u0026\\u0026 \\u0026lt; \\\\\\u0026"'))]),
    ("& in a key and a name", assistant(use("&", "R&D", **{"&": 1})),
     [text('<tool_call>\n{"name":"R\\u0026D","input":{"\\u0026":1},"id":"\\u0026"}\n</tool_call>')]),
    ("a call without input", assistant({"type": "tool_use", "id": "A", "name": "Ls", "input": None}),
     [text('<tool_call>\n{"name":"Ls","input":{},"id":"A"}\n</tool_call>')]),
    ("a result", user([result("A", "x & y\n</tool_result>")]), [told_result("x & y\n</tool_result>\n")]),
    ("a result and text", user([result("A", "1"), result("B", "2"), text("go on")]),
     [told_result("1\n"), told_result("2\n", 'id="B"'), text("go on")]),
    ("an error", user([result("A", "no", is_error=True)]), [told_result("no\n", 'id="A" error="true"')]),
    ("no error", user([result("A", "yes", is_error=False)]), [told_result("yes\n")]),
    ("an odd error", user([result("A", "yes", is_error="false")]), [told_result("yes\n")]),
    ("an empty result", user([result("A", "")]), [told_result("\n")]),
    ("no result", user([{"type": "tool_result", "tool_use_id": "A"}]), [told_result("")]),
    ("a result of blocks", user([result("A", [text("a"), text("b")])]), [told_result("a\nb\n")]),
    ("images in a result", user([result("A", [text("see"), IMAGE, text("and"), PDF])]),
     [told_result("see\n[image below]\nand\n[document below]\n"), IMAGE, PDF]),
    ("a result unheard of", user([result("A", [REFERENCE])]),
     [told_result('{"type":"tool_reference","tool_name":"T"}\n')]),
    ("a block unheard of", user([{"type": "scroll", "x": [1]}, "word", 5]), [{"type": "scroll", "x": [1]}, "word", 5]),
]


@pytest.mark.parametrize("tools", [{}, {"tools": [TOOL]}, {"tools": [TOOL], "tool_choice": {"type": "none"}}])
@pytest.mark.parametrize("name,message,expected", MESSAGES, ids=[row[0] for row in MESSAGES])
def test_messages(name, message, expected, tools):
    assert convert([user("a"), message, user("b")], **tools)["messages"] == [
        user("a"), {**message, "content": expected}, user("b")]


def test_the_rest_of_a_request_stays():
    members = {"max_tokens": 5, "stream": True, "metadata": {"user_id": "u"}, "thinking": {"type": "adaptive"}}
    assert convert(**members) == {"model": "m", "messages": [user("x")], **members}


STRINGS = ["&", "&lt;", "&quot;", '"', "\\", "\\u0026", "\n", "\r\n", "\t", "\0", "{", "}", "[", "]", "```",
           "```json\n", "<tool_call>", "</tool_call>", "\n</tool_call>\n", "<tool_result", "\u00fc", "\u2028",
           "\U0001f600", "\ud83d", "a", " ", "input", "name"]


def any_json(dice, depth=0):
    kind = dice.randrange(9 if depth < 5 else 6)
    if kind >= 7:
        return {any_text(dice): any_json(dice, depth + 1) for _ in range(dice.randrange(4))}
    if kind == 6:
        return [any_json(dice, depth + 1) for _ in range(dice.randrange(4))]
    scalars = [None, dice.random() < 0.5, dice.randrange(-9, 10 ** dice.randrange(1, 40)),
               dice.uniform(-1, 1) * 10.0 ** dice.randrange(-300, 300)]
    return any_text(dice) if kind > 3 else scalars[kind]


def any_text(dice):
    return "".join(dice.choice(STRINGS) for _ in range(dice.randrange(6)))


@pytest.mark.parametrize("seed", range(10))
def test_the_splitter_reads_what_the_model_is_shown(seed):
    """A model that writes exactly what it reads of its earlier calls makes the same calls."""
    dice = random.Random(seed)
    for _ in range(100):
        given = {any_text(dice): any_json(dice) for _ in range(dice.randrange(5))}
        block = {**use("toolu_1", any_text(dice)), "input": given}
        told = call_text(block)
        assert "&" not in told and told.isascii()
        reply, cut = f"I look.\n{told}\n{told}", dice.randrange(len(told))
        splitter = CallSplitter({block["name"]})
        parts = [*splitter.feed(reply[:cut]), *splitter.feed(reply[cut:]), *splitter.finish()]
        assert "".join(part for part in parts if isinstance(part, str)) == "I look."
        calls = [part for part in parts if isinstance(part, TextCall)]
        assert len(calls) == 2 and {name for name, _ in calls} == {block["name"]}
        # As text: 1, 1.0 and True are equal.
        assert [json.dumps(found) for _, found in calls] == [json.dumps(given)] * 2


def odd_schema(dice):
    """A schema of which these keywords, and its property's, may be anything."""
    inner = {key: odd_value(dice) for key in ("type", "enum", "items", "description") if dice.random() < 0.5}
    return {"properties": {"x": inner}, **{key: odd_value(dice) for key in ("type", "required") if dice.random() < 0.3}}


@pytest.mark.parametrize("seed", range(20))
def test_any_json_gives_a_request_or_a_clear_error(seed):
    dice = random.Random(seed)
    for _ in range(50):
        request = {"model": "m", "messages": [
            {"role": dice.choice(["user", "assistant", 5]), "content": odd_value(dice)} for _ in range(3)]}
        for member in ("system", "tools", "stop_sequences", "messages"):
            if dice.random() < 0.3:
                request[member] = odd_value(dice)
        if dice.random() < 0.5:
            request["tools"] = [{"name": "T", "input_schema": odd_schema(dice)}]
        assert needs_text_tools(request) in (True, False)
        try:
            json.dumps(convert(**request))
        except ProxyError as error:
            assert error.status == 400


def test_an_odd_choice():
    assert not must_call({"tools": [TOOL], "tool_choice": {"type": ["any"]}})


@pytest.mark.parametrize("keywords", [{"required": [{}]}, {"required": ["a"], "properties": 5}])
def test_odd_keywords_of_a_member(keywords):
    assert "x?: any" in tool_text({"name": "T", "input_schema": {"properties": {"x": keywords}}})


def test_results_stand_in_the_order_of_their_calls():
    """A client tells them as they end; the model knows them by their place too."""
    calls = [{"type": "tool_use", "id": name, "name": "Read", "input": {}} for name in "ab"]
    results = [{"type": "tool_result", "tool_use_id": name, "content": name} for name in "bxa"]
    messages = [{"role": "assistant", "content": calls}, {"role": "user", "content": [text("t"), *results]}]
    told = text_tool_request({"messages": messages})["messages"][1]["content"]
    assert [block["text"].partition('"')[2][:1] for block in told] == ["a", "b", "x", ""]
