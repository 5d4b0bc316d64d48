"""Messages requests as Chat Completions requests: every block in its place, nothing lost unsaid."""

from __future__ import annotations

import copy
import json
import random

import pytest

from claude_proxy.dialects.chat_options import ChatOptions
from claude_proxy.dialects.chat_request import INTERRUPTED, chat_json, messages_to_chat
from claude_proxy.dialects.chat_tools import chat_tool_name, chat_tool_names
from claude_proxy.errors import ProxyError
from claude_proxy.sse import encode_json

IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
IMAGE_PART = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
PDF = {"type": "document", "title": "T", "source": {
    "type": "base64", "media_type": "application/pdf", "data": "AAAA"}}
PDF_NOTE = '[document "T", 3 bytes: this model cannot read it]'


def text(words):
    return {"type": "text", "text": words}


def use(tool_id, name="Read", **arguments):
    return {"type": "tool_use", "id": tool_id, "name": name, "input": arguments}


def result(tool_id, content, **more):
    return {"type": "tool_result", "tool_use_id": tool_id, "content": content, **more}


def user(content):
    return {"role": "user", "content": content}


def assistant(*blocks):
    return {"role": "assistant", "content": list(blocks)}


def system(content):
    return {"role": "system", "content": content}


def call(tool_id, name="Read", arguments="{}"):
    return {"id": tool_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def tool(tool_id, content):
    return {"role": "tool", "tool_call_id": tool_id, "content": content}


def convert(messages, options=ChatOptions(), notes=None, **members):
    request = {"model": "m", "messages": messages, **members}
    before = copy.deepcopy(request)
    chat = messages_to_chat(request, options, notes if notes is not None else [])
    assert request == before, "the request itself was changed"
    assert chat_json(chat) == encode_json(chat) == json.dumps(chat, separators=(",", ":"))
    return chat


CALLED = [assistant(use("A"), use("B"))]
CALLS = {"role": "assistant", "tool_calls": [call("A"), call("B")]}

MESSAGES = [
    ("3.a string", [user("hi")], [user("hi")]),
    ("3.one block", [user([text("hi")])], [user("hi")]),
    ("3.two texts", [user([text("a"), text("b")])], [user("a\n\nb")]),
    ("3.blank text beside text", [user([text("a"), text("  ")])], [user("a")]),
    ("4.an image", [user([text("see"), IMAGE])], [user([text("see"), IMAGE_PART])]),
    ("4.an image by URL", [user([{"type": "image", "source": {"type": "url", "url": "https://x/y"}}])],
     [user([{"type": "image_url", "image_url": {"url": "https://x/y"}}])]),
    ("4.an image by file", [user([{"type": "image", "source": {"type": "file", "file_id": "f1"}}])],
     [user("[image f1 is not available here]")]),
    ("4.image/jpg", [user([{"type": "image", "source": {"media_type": "image/jpg", "data": "A"}}])],
     [user([{"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,A"}}])]),
    ("4.a PDF", [user([PDF])], [user(PDF_NOTE)]),
    ("4.a text document", [user([{"type": "document", "title": "T", "source": {"type": "text", "data": "d"}}])],
     [user('<document title="T">\nd\n</document>')]),
    ("4.a document of blocks", [user([{"type": "document", "source": {
        "type": "content", "content": [text("d"), IMAGE]}}])],
     [user([text('<document title="document">'), text("d"), IMAGE_PART, text("</document>")])]),
    ("4.a search result", [user([{"type": "search_result", "source": "s", "title": "t", "content": [text("x")]}])],
     [user('<search_result source="s" title="t">\nx\n</search_result>')]),
    ("3.no content", [user([])], [user("(no content)")]),
    ("3.an empty message between others", [user("a"), user([]), user("b")], [user("a"), user("b")]),
    ("3.an assistant's text", [user("a"), assistant(text("b"))], [user("a"), {"role": "assistant", "content": "b"}]),
    ("3.an assistant's string", [{"role": "assistant", "content": "b"}], [{"role": "assistant", "content": "b"}]),
    ("3.thinking only", [user("a"), assistant({"type": "thinking", "thinking": "t", "signature": "s"}), user("b")],
     [user("a"), user("b")]),
    ("4.thinking and text", [assistant({"type": "thinking", "thinking": "t"}, {"type": "redacted_thinking",
                                                                          "data": "x"}, text("b"))],
     [{"role": "assistant", "content": "b"}]),
    ("3.a call and its result", [assistant(text("look"), use("A", p=1)), user([result("A", "x = 1")])],
     [{"role": "assistant", "content": "look", "tool_calls": [call("A", arguments='{"p":1}')]}, tool("A", "x = 1")]),
    ("3.results in the order of their calls", [*CALLED, user([result("B", "2"), result("A", "1")])],
     [CALLS, tool("A", "1"), tool("B", "2")]),
    ("3.text before and behind results", [*CALLED, user([text("x"), result("A", "1"), result("B", "2"), text("y")])],
     [CALLS, tool("A", "1"), tool("B", "2"), user("x\n\ny")]),
    ("4.a result of blocks", [assistant(use("A")), user([result("A", [text("a"), text("b")])])],
     [{"role": "assistant", "tool_calls": [call("A")]}, tool("A", "a\nb")]),
    ("4.a result without content", [assistant(use("A")), user([{"type": "tool_result", "tool_use_id": "A"}])],
     [{"role": "assistant", "tool_calls": [call("A")]}, tool("A", "")]),
    ("4.an error", [assistant(use("A")), user([result("A", "no", is_error=True)])],
     [{"role": "assistant", "tool_calls": [call("A")]}, tool("A", "[tool error]\nno")]),
    ("4.an error that says so", [assistant(use("A")), user([result("A", "<tool_use_error>no", is_error=True)])],
     [{"role": "assistant", "tool_calls": [call("A")]}, tool("A", "<tool_use_error>no")]),
    ("4.an image in a result", [assistant(use("A")), user([result("A", [IMAGE])])],
     [{"role": "assistant", "tool_calls": [call("A")]},
      tool("A", "[1 attachment(s): see the next user message]"),
      user([text("[from tool result A]"), IMAGE_PART])]),
    ("4.a tool reference", [assistant(use("A")), user([result("A", [{"type": "tool_reference", "tool_name": "T"}])])],
     [{"role": "assistant", "tool_calls": [call("A")]}, tool("A", "[tool available: T]")]),
    ("3.a call without result", [*CALLED, user([result("A", "1")])], [CALLS, tool("A", "1"), tool("B", INTERRUPTED)]),
    ("3.calls that were interrupted", [*CALLED, user("stop")],
     [CALLS, tool("A", INTERRUPTED), tool("B", INTERRUPTED), user("stop")]),
    ("3.calls at the end", CALLED, [CALLS, tool("A", INTERRUPTED), tool("B", INTERRUPTED)]),
    ("3.calls and then an assistant", [*CALLED, assistant(text("x"))],
     [CALLS, tool("A", INTERRUPTED), tool("B", INTERRUPTED), {"role": "assistant", "content": "x"}]),
    ("3.a result without call", [user([result("Z", "old")])], [user("[result of an earlier tool call Z]\nold")]),
    ("3.two results for one call", [assistant(use("A")), user([result("A", "1"), result("A", "2")])],
     [{"role": "assistant", "tool_calls": [call("A")]}, tool("A", "1"),
      user("[result of an earlier tool call A]\n2")]),
    ("3.results in two messages", [assistant(use("A"), use("B")), user([result("B", "1")]), user([result("A", "2")])],
     [{"role": "assistant", "tool_calls": [call("A"), call("B")]}, tool("A", "2"), tool("B", "1")]),
    ("3.one id twice, two results", [assistant(use("A"), use("A")), user([result("A", "1"), result("A", "2")])],
     [{"role": "assistant", "tool_calls": [call("A"), call("A_2")]}, tool("A", "1"), tool("A_2", "2")]),
    ("3.one id twice in an answer", [assistant(use("A"), use("A", "Bash")), user([result("A", "1")])],
     [{"role": "assistant", "tool_calls": [call("A"), call("A_2", "Bash")]}, tool("A", "1"),
      tool("A_2", INTERRUPTED)]),
    ("3.a suffixed id that is taken", [assistant(use("A_3"), use("A"), use("A")),
                                       user([result("A", "1"), result("A_3", "2"), result("A", "3")])],
     [{"role": "assistant", "tool_calls": [call("A_3"), call("A"), call("A_4")]},
      tool("A_3", "2"), tool("A", "1"), tool("A_4", "3")]),
    ("4.unparsed input", [assistant(use("A", __unparsedToolInput={"raw": "{", "len": 1})), user([result("A", "1")])],
     [{"role": "assistant", "tool_calls": [
         call("A", arguments='{"__unparsedToolInput":{"raw":"{","len":1}}')]}, tool("A", "1")]),
    ("3.a system message behind a user's", [user("a"), system("note")],
     [user("a\n\n<system-reminder>\nnote\n</system-reminder>")]),
    ("3.a system message behind parts", [user([text("a"), IMAGE]), system([text("note")])],
     [user([text("a"), IMAGE_PART, text("<system-reminder>\nnote\n</system-reminder>")])]),
    ("3.a system message behind results", [assistant(use("A")), user([result("A", "1")]), system("note")],
     [{"role": "assistant", "tool_calls": [call("A")]},
      tool("A", "1\n\n<system-reminder>\nnote\n</system-reminder>")]),
    ("3.a system message behind an assistant's", [assistant(text("a")), system("note")],
     [{"role": "assistant", "content": "a"}, user("<system-reminder>\nnote\n</system-reminder>")]),
    ("3.a system message first", [system("note"), user("a")],
     [user("<system-reminder>\nnote\n</system-reminder>"), user("a")]),
    ("3.a role unheard of", [{"role": "wizard", "content": "abra"}], [user("abra")]),
    ("4.a block unheard of with text", [user([{"type": "scroll", "text": "old"}])], [user("old")]),
    ("4.a block unheard of with content", [user([{"type": "scroll", "content": [text("old"), text("er")]}])],
     [user("old\ner")]),
    ("4.a server tool's work", [assistant(
        {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {"query": "q"}},
        {"type": "web_search_tool_result", "tool_use_id": "s", "content": [
            {"type": "web_search_result", "title": "T", "url": "https://u", "encrypted_content": "x"}]},
        text("so"))],
     [{"role": "assistant", "content": '[web_search {"query":"q"}]\n\nT https://u\n\nso'}]),
    ("3.everything at once", [
        assistant(text("Let me look."), use("A", "Read"), use("B", "Screenshot")),
        user([text("hurry"), result("B", [IMAGE]), result("A", "x = 1", is_error=True), PDF]),
        system("todo list changed")],
     [{"role": "assistant", "content": "Let me look.", "tool_calls": [call("A"), call("B", "Screenshot")]},
      tool("A", "[tool error]\nx = 1"),
      tool("B", "[1 attachment(s): see the next user message]"),
      user([text("[from tool result B]"), IMAGE_PART, text("hurry"), text(PDF_NOTE),
            text("<system-reminder>\ntodo list changed\n</system-reminder>")])]),
    ("4.image magic bytes", [user([{"type": "image", "source": {"media_type": "image/png", "data": "/9j/4AAQ"}}])],
     [user([{"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,/9j/4AAQ"}}])]),
    ("4.image webp named jpeg", [user([{"type": "image", "source": {"media_type": "image/jpeg", "data": "UklGRiIA"}}])],
     [user([{"type": "image_url", "image_url": {"url": "data:image/webp;base64,UklGRiIA"}}])]),
    ("4.document context", [user([{"type": "document", "title": "T", "context": "C", "source": {
        "type": "text", "data": "d"}}])], [user('<document title="T">\n[C]\nd\n</document>')]),
    ("4.document url", [user([{"type": "document", "title": "T", "source": {"type": "url", "url": "https://x/y.pdf"}}])],
     [user('[document "T" at https://x/y.pdf: this model cannot read it]')]),
    ("4.document file", [user([{"type": "document", "source": {"type": "file", "file_id": "f9"}}])],
     [user('[document "f9": this model cannot read it]')]),
    ("4.document text in a result", [assistant(use("A")), user([result("A", [
        {"type": "document", "title": "T", "source": {"type": "text", "data": "d"}}])])],
     [{"role": "assistant", "tool_calls": [call("A")]}, tool("A", '<document title="T">\nd\n</document>')]),
    ("4.document PDF in a result", [assistant(use("A")), user([result("A", [PDF])])],
     [{"role": "assistant", "tool_calls": [call("A")]}, tool("A", PDF_NOTE)]),
    ("4.search result in a result", [assistant(use("A")), user([result("A", [
        {"type": "search_result", "source": "s", "title": "t", "content": [text("x")]}])])],
     [{"role": "assistant", "tool_calls": [call("A")]},
      tool("A", '<search_result source="s" title="t">\nx\n</search_result>')]),
    ("4.image url in a result", [assistant(use("A")), user([result("A", [text("see"), {
        "type": "image", "source": {"type": "url", "url": "https://x/y"}}])])],
     [{"role": "assistant", "tool_calls": [call("A")]},
      tool("A", "see\n[1 attachment(s): see the next user message]"),
      user([text("[from tool result A]"), {"type": "image_url", "image_url": {"url": "https://x/y"}}])]),
    ("4.browser state in a result", [assistant(use("A")), user([result("A", [
        {"type": "browser_state", "content": [text("page"), text("more")]}])])],
     [{"role": "assistant", "tool_calls": [call("A")]}, tool("A", "page\nmore")]),
    ("4.big numbers keep their digits", [assistant(use("A", n=12345678901234567890123, x=1e-7)), user([result("A", "1")])],
     [{"role": "assistant", "tool_calls": [call("A", arguments='{"n":12345678901234567890123,"x":1e-07}')]},
      tool("A", "1")]),
    ("4.cited texts are one", [assistant({"type": "text", "text": "It is ", "citations": [{"cited_text": "x"}]},
                                         text("so."), text("Next."))],
     [{"role": "assistant", "content": "It is so.\n\nNext."}]),
    ("4.web fetch", [assistant(
        {"type": "server_tool_use", "id": "s", "name": "web_fetch", "input": {"url": "https://u"}},
        {"type": "web_fetch_tool_result", "content": {"type": "web_fetch_result", "url": "https://u", "content": {
            "type": "document", "source": {"type": "text", "data": "words"}}}})],
     [{"role": "assistant", "content": '[web_fetch {"url":"https://u"}]\n\nhttps://u\nwords'}]),
    ("4.web search error", [assistant({"type": "web_search_tool_result", "content": {
        "type": "web_search_tool_result_error", "error_code": "max_uses_exceeded"}})],
     [{"role": "assistant", "content": "max_uses_exceeded"}]),
    ("4.code execution", [assistant({"type": "bash_code_execution_tool_result", "content": {
        "type": "bash_code_execution_result", "stdout": "o", "stderr": "e", "return_code": 2}})],
     [{"role": "assistant", "content": "o\ne\n[return code 2]"}]),
    ("4.mcp", [assistant(
        {"type": "mcp_tool_use", "id": "m", "server_name": "srv", "name": "find", "input": {"q": 1}},
        {"type": "mcp_tool_result", "tool_use_id": "m", "content": [text("found")]})],
     [{"role": "assistant", "content": '[mcp srv.find {"q":1}]\n\nfound'}]),
    ("4.container upload", [user([{"type": "container_upload", "file_id": "f1"}])],
     [user("[file f1 is not available here]")]),
    ("4.compaction", [assistant({"type": "compaction", "content": "sum"}), user("go")],
     [{"role": "assistant", "content": "[summary of the earlier conversation]\nsum"}, user("go")]),
    ("4.fallback block", [assistant({"type": "fallback", "from": "a", "to": "b"}, text("x"))],
     [{"role": "assistant", "content": "x"}]),
    ("4.tool changes say nothing", [user("a"), system([{"type": "tool_addition", "tool": {"name": "X"}}])], [user("a")]),
    ("4.call without input", [assistant({"type": "tool_use", "id": "A", "name": "Read", "caller": {"type": "direct"}}),
                              user([result("A", "1")])],
     [{"role": "assistant", "tool_calls": [call("A")]}, tool("A", "1")]),
]


@pytest.mark.parametrize("name,messages,expected", MESSAGES, ids=[row[0] for row in MESSAGES])
def test_messages(name, messages, expected):
    assert convert(messages)["messages"] == expected


@pytest.mark.parametrize("name,messages,expected", MESSAGES, ids=[row[0] for row in MESSAGES])
def test_chats_grammar(name, messages, expected):
    """Behind an assistant's calls come their answers, one each, at once; nothing is null."""
    chat = convert(messages)["messages"]
    waiting = []
    for message in chat:
        if message["role"] == "tool":
            assert waiting.pop(0) == message["tool_call_id"] and isinstance(message["content"], str)
            continue
        assert not waiting and None not in message.values()
        waiting = [c["id"] for c in message.get("tool_calls", ())]
    assert not waiting


SYSTEMS = [
    (None, None), ("", None), ("s", "s"), ([text("a"), text("b")], "a\n\nb"), (["s", text("a")], "s\n\na"),
    ([text("x-anthropic-billing-header: cc_version=1;"), text("a")], "a"),
    ("x-anthropic-billing-header: cc_version=1;", None), ([text("  "), text("a")], "a"),
    ("x-anthropic-billing-header: cc_version=1;\n\nx-anthropic-billing-header: a", "x-anthropic-billing-header: a"),
    (" x-anthropic-billing-header: a", " x-anthropic-billing-header: a"),
]


@pytest.mark.parametrize("given,expected", SYSTEMS)
def test_the_system_prompt(given, expected):
    messages = convert([user("x")], system=given)["messages"]
    assert messages == ([system(expected)] if expected else []) + [user("x")]


MEMBERS = [
    ({"max_tokens": 5}, {"max_tokens": 5}, []),
    ({"temperature": 0, "top_p": 0.5}, {"temperature": 0, "top_p": 0.5}, []),
    ({"top_k": 3}, {}, ["top_k=dropped"]),
    ({"stop_sequences": ["a", "", "b"]}, {"stop": ["a", "b"]}, []),
    ({"stop_sequences": list("abcde")}, {"stop": list("abcd")}, []),
    ({"stop_sequences": []}, {}, []),
    ({"metadata": {"user_id": "u"}, "service_tier": "auto", "thinking": {"type": "adaptive"},
      "context_management": {"edits": []}, "betas": ["x"], "unheard_of": 1, "stream": False}, {}, []),
    ({"container": "c", "mcp_servers": [{"url": "x"}]}, {}, ["mcp_servers=dropped", "container=dropped"]),
    ({"output_config": {"effort": "high", "format": {"type": "json_schema", "schema": {"type": "object"}}}},
     {"response_format": {"type": "json_schema", "json_schema": {"name": "response",
                                                                "schema": {"type": "object"}}}}, ["effort=dropped"]),
    ({"tools": [], "tool_choice": {"type": "any"}}, {}, []),
]


@pytest.mark.parametrize("members,expected,noted", MEMBERS)
def test_members(members, expected, noted):
    notes = []
    chat = convert([user("x")], notes=notes, **members)
    always = {"model": "m", "messages": [user("x")], "stream": True, "stream_options": {"include_usage": True}}
    assert chat == {**always, **expected} and notes == noted


def test_options():
    options = ChatOptions("max_completion_tokens", drop=frozenset(("temperature", "stop")), top_k=True, files=True,
                          thinking="reasoning_effort")
    notes = []
    chat = convert([user([PDF])], options, notes, max_tokens=5, temperature=1, stop_sequences=["a"], top_k=3,
                   output_config={"effort": "low"})
    assert chat["messages"] == [user([{"type": "file", "file": {
        "filename": "T.pdf", "file_data": "data:application/pdf;base64,AAAA"}}])]
    assert (chat["max_completion_tokens"], chat["top_k"], chat["reasoning_effort"]) == (5, 3, "low")
    assert not {"temperature", "stop", "max_tokens"} & set(chat)
    assert notes == ["temperature=dropped"]


SCHEMA = {"type": "object", "properties": {"p": {"type": "string"}}, "$schema": "x"}
TOOL = {"name": "Read", "description": "reads", "input_schema": SCHEMA, "cache_control": {"type": "ephemeral"}}


@pytest.mark.parametrize("options", [ChatOptions(), ChatOptions(drop=frozenset(("stream", "stream_options"))),
                                     ChatOptions(drop=frozenset(("model", "messages"))), ChatOptions(drop=frozenset(("tools",)))])
@pytest.mark.parametrize("tools", [[], [TOOL], [TOOL, {"name": "B", "description": '"tools":[\u00fc]'}]])
def test_the_json_of_tools_stands_where_they_stand(options, tools):
    chat = convert([user("x")], options, tools=tools, temperature=1)
    assert list(json.loads(chat_json(chat))) == list(chat)


def test_tools():
    tools = [TOOL, {"name": "No", "input_schema": {}}, {"type": "custom", "name": "Custom"},
             {"type": "bash_20250124", "name": "bash"}, {"type": "web_search_20250305", "name": "web_search"}]
    notes = []
    functions = [t["function"] for t in convert([user("x")], notes=notes, tools=tools)["tools"]]
    empty = {"type": "object", "properties": {}}
    assert functions[0] == {"name": "Read", "description": "reads", "parameters": SCHEMA}
    assert functions[1:3] == [{"name": "No", "parameters": empty}, {"name": "Custom", "parameters": empty}]
    assert functions[3]["name"] == "bash" and "command" in functions[3]["parameters"]["properties"]
    assert len(functions) == 4 and notes == ["web_search_20250305=dropped"]


@pytest.mark.parametrize("choice,expected", [
    (None, {}),
    ({"type": "auto"}, {}),
    ({"type": "any"}, {"tool_choice": "required"}),
    ({"type": "none"}, {"tool_choice": "none"}),
    ({"type": "tool", "name": "Read"}, {"tool_choice": {"type": "function", "function": {"name": "Read"}}}),
    ({"type": "tool", "name": "web_search"}, {}),
    ({"type": "auto", "disable_parallel_tool_use": True}, {"parallel_tool_calls": False}),
    ({"type": "later"}, {}),
])
def test_tool_choice(choice, expected):
    chat = convert([user("x")], tools=[TOOL], tool_choice=choice)
    assert {k: chat[k] for k in ("tool_choice", "parallel_tool_calls") if k in chat} == expected


def test_a_choice_of_a_tool_that_was_dropped_goes_too():
    search = {"type": "web_search_20250305", "name": "web_search"}
    chat = convert([user("x")], tools=[search], tool_choice={"type": "tool", "name": "web_search"})
    assert not {"tools", "tool_choice"} & set(chat)


@pytest.mark.parametrize("name", ["Read", "a" * 64, "a" * 65, "a" * 128, "a.b", "a b", "\u00fc", ""])
def test_tool_names_fit_and_come_back(name):
    short = chat_tool_name(name)
    assert len(short) <= 64 and short.replace("_", "").replace("-", "").isalnum() and short.isascii()
    assert short == chat_tool_name(name)
    assert chat_tool_names({"tools": [{"name": name}]}).get(short, short) == name


def test_long_names_that_begin_alike_stay_apart():
    assert chat_tool_name("a" * 70 + "1") != chat_tool_name("a" * 70 + "2")


def test_a_mapped_name_is_the_same_in_tools_choice_and_history():
    name = "mcp__a_very_long_server_name__" + "tool" * 20
    chat = convert([user("x"), assistant(use("A", name)), user([result("A", "1")])],
                   tools=[{"name": name}], tool_choice={"type": "tool", "name": name})
    names = {chat["tools"][0]["function"]["name"], chat["tool_choice"]["function"]["name"],
             chat["messages"][1]["tool_calls"][0]["function"]["name"]}
    assert names == {chat_tool_name(name)}


@pytest.mark.parametrize("name,messages,expected", MESSAGES, ids=[row[0] for row in MESSAGES])
def test_a_longer_history_begins_like_a_shorter_one(name, messages, expected):
    """Upstream caches match on exact prefixes: what is settled stays as it was."""
    longer = [*messages, user("and more"), assistant(text("yes")), user("again")]
    before, after = convert(messages)["messages"], convert(longer)["messages"]
    assert json.dumps(after).startswith(json.dumps(before[:-1])[:-1])


WRONG = [
    ([5], "messages.0"), ([user(5)], "messages.0.content"), ([user([5])], "messages.0.content.0"),
    ([user("a"), user([None])], "messages.1.content.0"),
]


@pytest.mark.parametrize("messages,place", WRONG)
def test_wrong_types_name_their_place(messages, place):
    with pytest.raises(ProxyError) as caught:
        convert(messages)
    assert caught.value.status == 400 and caught.value.message.startswith(place + ":")


def odd_value(dice, depth=0):
    """Any JSON value, often with the members that matter."""
    kinds = [None, True, 0, -1.5, "", "text", "\ud83d"]
    if depth < 4 and dice.random() < 0.7:
        if dice.random() < 0.4:
            return [odd_value(dice, depth + 1) for _ in range(dice.randrange(4))]
        keys = ["type", "role", "content", "text", "source", "data", "url", "id", "name", "input", "tool_use_id",
                "input_schema", "format", "title", "thinking", "effort", "media_type", "citations", "is_error"]
        types = ["text", "image", "document", "tool_use", "tool_result", "thinking", "search_result", "tool",
                 "server_tool_use", "base64", "content", "user", "assistant", "system", "json_schema", "any"]
        return {dice.choice(keys): dice.choice(types) if dice.random() < 0.4 else odd_value(dice, depth + 1)
                for _ in range(dice.randrange(6))}
    return dice.choice(kinds)


@pytest.mark.parametrize("seed", range(40))
def test_any_json_gives_a_request_or_a_clear_error(seed):
    dice = random.Random(seed)
    for _ in range(50):
        request = {"model": "m", "messages": [odd_value(dice) if dice.random() < 0.2 else {
            "role": dice.choice(["user", "assistant", "system", "x", 5]), "content": odd_value(dice)}
            for _ in range(dice.randrange(1, 5))]}
        for member in ("system", "tools", "tool_choice", "stop_sequences", "output_config", "container"):
            if dice.random() < 0.3:
                request[member] = odd_value(dice)
        try:
            chat = messages_to_chat(request, ChatOptions(), [])
            assert chat_json(chat) == encode_json(chat)
        except ProxyError as error:
            assert error.status == 400
