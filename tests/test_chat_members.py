"""Top-level members of a request, one row a rule; tools, choice, names and ids; strict templates' shapes."""

from __future__ import annotations

import copy
import hashlib
import json

import pytest

from claude_proxy.dialects.chat_options import ChatOptions
from claude_proxy.dialects.chat_profiles import profile_options
from claude_proxy.dialects.chat_request import messages_to_chat
from claude_proxy.dialects.chat_tools import (
    LARGEST_KEPT_TOOL,
    MUST_CALL,
    NO_SEARCH,
    KeptTools,
    chat_call_id,
    chat_tool_name,
    chat_tool_names,
    tool_key,
)
from claude_proxy.errors import ProxyError

HELLO = [{"role": "user", "content": "x"}]
ALWAYS = {"model": "m", "messages": HELLO, "stream": True, "stream_options": {"include_usage": True}}
CLOSED = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"], "additionalProperties": False}
OPEN = {"type": "object", "properties": {"a": {"type": "string"}}}
ALICE = json.dumps({"device_id": "d" * 64, "account_uuid": "", "session_id": "s-1"})


def sha(text):
    return hashlib.sha256(text.encode()).hexdigest()


def told(**members):
    return ChatOptions(**members)


def response_format(schema, **more):
    return {"type": "json_schema", "json_schema": {"name": "response", "schema": schema, **more}}


def wants(schema):
    return {"output_config": {"format": {"type": "json_schema", "schema": schema}}}


PLAIN = ChatOptions()
OPENAI = profile_options("openai", "gpt-4o")
ROWS = [
    ("2.max-tokens", PLAIN, {"max_tokens": 1}, {"max_tokens": 1}, []),
    ("2.max-tokens-openai-reasoning", profile_options("openai", "o3"), {"max_tokens": 5}, {"max_completion_tokens": 5}, []),
    ("2.max-tokens-clamped", told(max_output=4096), {"max_tokens": 64000}, {"max_tokens": 4096},
     ["max_tokens=64000>4096"]),
    ("2.max-tokens-room", told(max_output=4096, room=2000), {"max_tokens": 64000}, {"max_tokens": 2000},
     ["max_tokens=64000>2000"]),
    ("2.max-tokens-missing", told(max_output=4096), {}, {}, []),
    ("2.stop-four", PLAIN, {"stop_sequences": list("abcde")}, {"stop": list("abcd")}, []),
    ("2.stop-deepseek", profile_options("deepseek", "x"), {"stop_sequences": list("abcde")}, {"stop": list("abcde")}, []),
    ("2.stop-refused", told(drop=frozenset(["stop"])), {"stop_sequences": ["a"]}, {}, []),
    ("2.temperature", PLAIN, {"temperature": 0.5, "top_p": 1}, {"temperature": 0.5, "top_p": 1}, []),
    ("2.temperature-refused", profile_options("openai", "gpt-5"), {"temperature": 0.5}, {}, ["temperature=dropped"]),
    ("2.top-k", PLAIN, {"top_k": 5}, {}, ["top_k=dropped"]),
    ("2.top-k-vllm", profile_options("vllm", "x"), {"top_k": 5}, {"top_k": 5}, []),
    ("2.tools-empty", PLAIN, {"tools": [], "tool_choice": {"type": "any", "disable_parallel_tool_use": True}}, {}, []),
    ("2.format", PLAIN, wants(OPEN), {"response_format": response_format(OPEN)}, []),
    ("2.format-strict", OPENAI, wants(CLOSED), {"response_format": response_format(CLOSED, strict=True)}, []),
    ("2.format-not-strict", OPENAI, wants(OPEN), {"response_format": response_format(OPEN)}, []),
    ("2.format-legacy", PLAIN, {"output_format": {"type": "json_schema", "schema": OPEN}},
     {"response_format": response_format(OPEN)}, []),
    ("2.task-budget", PLAIN, {"output_config": {"task_budget": {"tokens": 5}}}, {}, ["task_budget=dropped"]),
    ("2.user-openai", OPENAI, {"metadata": {"user_id": ALICE}},
     {"safety_identifier": sha("d" * 64), "prompt_cache_key": sha("s-1")}, []),
    ("2.user-openai-plain", OPENAI, {"metadata": {"user_id": "alice"}},
     {"safety_identifier": sha("alice"), "prompt_cache_key": sha("alice")}, []),
    ("2.user-others", PLAIN, {"metadata": {"user_id": ALICE}}, {}, []),
    ("2.service-tier-auto", OPENAI, {"metadata": {"user_id": "a"}, "service_tier": "auto"},
     {"safety_identifier": sha("a"), "prompt_cache_key": sha("a")}, []),
    ("2.speed-fast", PLAIN, {"speed": "fast"}, {}, ["speed=dropped"]),
    ("2.speed-standard", PLAIN, {"speed": "standard"}, {}, []),
    ("2.context-management", PLAIN, {"context_management": {"edits": [{"type": "clear_thinking_20251015"}]}}, {}, []),
    ("2.container-id", PLAIN, {"container": {"id": "c"}}, {}, []),
    ("2.container-skills", PLAIN, {"container": {"skills": [1]}}, {}, ["container=dropped"]),
    ("2.mcp-servers", PLAIN, {"mcp_servers": [{"url": "u"}]}, {}, ["mcp_servers=dropped"]),
    ("2.mcp-servers-none", PLAIN, {"mcp_servers": []}, {}, []),
    ("2.inference-geo", PLAIN, {"inference_geo": "eu"}, {}, ["inference_geo=dropped"]),
    ("2.quiet", PLAIN, {"diagnostics": 1, "fallbacks": [1], "billing_policy": 1, "betas": ["b"], "compaction": {},
                        "cache_control": {"type": "ephemeral"}, "thread": {"type": "new"}, "unheard_of": 1}, {}, []),
    ("2.openrouter-extra", profile_options("openrouter", "x/y"), {"metadata": {"user_id": ALICE}},
     {"transforms": [], "user": sha("s-1")}, []),
]


@pytest.mark.parametrize("rule,options,members,expected,noted", ROWS, ids=[row[0] for row in ROWS])
def test_members(rule, options, members, expected, noted):
    notes = []
    chat = messages_to_chat({"model": "m", "messages": HELLO, **members}, options, notes)
    assert chat == {**ALWAYS, **expected}
    assert notes == noted


def test_the_session_and_device_never_travel_as_they_are():
    for profile in ("openai", "openrouter", "other", "azure"):
        request = {"model": "m", "messages": HELLO, "metadata": {"user_id": ALICE}}
        sent = json.dumps(messages_to_chat(request, profile_options(profile, "m")))
        assert "s-1" not in sent and "d" * 64 not in sent


@pytest.mark.parametrize("thread", [{"type": "continue", "id": "t"}, {"continue": "t"}])
def test_a_conversation_kept_elsewhere_cannot_go_on_here(thread):
    with pytest.raises(ProxyError) as caught:
        messages_to_chat({"model": "m", "messages": HELLO, "thread": thread})
    assert caught.value.status == 400 and "thread" in caught.value.message


SCHEMA_WORDS = "Answer with one JSON object that fits this JSON schema, and with nothing else:\n"


@pytest.mark.parametrize("answer_format,expected", [
    ("json_object", {"response_format": {"type": "json_object"}}), ("text", {})])
def test_a_format_in_words(answer_format, expected):
    notes = []
    request = {"model": "m", "messages": HELLO, "system": "s", **wants(OPEN)}
    chat = messages_to_chat(request, told(answer_format=answer_format), notes)
    assert chat["messages"][0]["content"].startswith("s\n\n" + SCHEMA_WORDS)
    assert {k: v for k, v in chat.items() if k == "response_format"} == expected
    assert notes == ["format=told"]


# --- tools --------------------------------------------------------------------------------------


def tool(name="Read", **more):
    return {"name": name, "input_schema": OPEN, **more}


def functions(tools, options=PLAIN, messages=HELLO, notes=None):
    request = {"model": "m", "messages": messages, "tools": tools}
    return [t["function"] for t in messages_to_chat(request, options, notes).get("tools", ())]


def test_examples_of_input_are_told_in_the_description():
    shown = functions([tool(description="reads", input_examples=[{"a": "1"}, {"a": "2"}, {"a": "3"}, {"a": "4"}])])
    assert shown[0]["description"] == "\n".join(
        ["reads", *(f'Example input: {{"a":"{n}"}}' for n in (1, 2, 3))])


@pytest.mark.parametrize("schema,options,sent", [
    (CLOSED, OPENAI, True), (OPEN, OPENAI, None), (CLOSED, PLAIN, None)])
def test_strict_is_passed_on_where_it_can_be_met_and_never_added(schema, options, sent):
    shown = functions([{"name": "A", "input_schema": schema, "strict": True}, {"name": "B", "input_schema": CLOSED}], options)
    assert [f.get("strict") for f in shown] == [sent, None]


def test_a_deferred_tool_is_offered_for_nobody_here_could_search_for_it():
    search = {"type": "tool_search_tool_regex_20251119", "name": "search"}
    notes = []
    shown = functions([search, tool("Later", defer_loading=True)], notes=notes)
    assert [f["name"] for f in shown] == ["Later"] and notes == ["tool_search_tool_regex_20251119=dropped"]


def described(default):
    return tool(description="d", input_schema={"type": "object", "properties": {"a": {"default": default}}})


# What may not be taken for each other: most of these are equal to Python.
ALIKE = [
    (described(1), described(True)), (described(1), described(1.0)), (described(0), described(False)),
    (described(0.0), described(-0.0)), (described(None), described("None")), (described([]), described({})),
    (described({"a": 1, "b": 2}), described({"b": 2, "a": 1})), (described(["a", ["b"]]), described([["a"], "b"])),
    (described({"a": 1, "b": 1}), described({"b": 1, "a": 1})),
    (described({"a": "b"}), described(["a", "b"])), (described([{}, ["a"]]), described([["a"], {}])),
    (described({"a": {"b": "c"}}), described({"a": "c", "b": {}})), (described([[], []]), described([[[]]])),
    (described({"a": {}, "b": {"c": "d"}}), described({"a": {"c": "d"}, "b": {}})), (described("a"), described(["a"])),
    ({**tool(), "description": "d"}, {"description": "d", **tool()}), (tool(), tool("B")),
    (tool(description="a"), tool(description="b")), (tool(strict=True), tool(strict=1)),
    ({"name": "A", "input_schema": CLOSED}, {"name": "A", "input_schema": CLOSED, "strict": True}),
]


@pytest.mark.parametrize("options", [PLAIN, OPENAI])
@pytest.mark.parametrize("first,second", ALIKE)
def test_a_tool_is_never_taken_for_another(first, second, options):
    kept = KeptTools()
    for one in (first, second, first, json.loads(json.dumps(second))):
        assert kept.take(one, options).json == KeptTools().take(one, options).json
    assert tool_key(first, options) != tool_key(second, options)


FORMS = [PLAIN, ChatOptions(schema_level=1), ChatOptions(longest_description=20), ChatOptions(tool_name="letter"),
         ChatOptions(strict=True)]


def test_a_tool_is_made_once_for_each_form():
    words = ["x"]
    schema = {**CLOSED, "properties": {"a": {"enum": words}}, "$comment": "c"}
    one = {"name": "1", "description": "d" * 30, "strict": True, "input_schema": schema}
    kept = KeptTools()
    made = [kept.take(one, options) for options in FORMS]
    assert len({tool.json for tool in made}) == len(FORMS)
    assert all(kept.take(copy.deepcopy(one), options) is tool for options, tool in zip(FORMS, made))
    words.append("later")
    assert all("later" not in tool.json and tool == json.loads(tool.json) for tool in made)


def test_tools_are_kept_within_bounds():
    names, each = [f"T{n:02}" for n in range(50)], len(KeptTools().take(tool("T00"), PLAIN).json)
    kept = KeptTools(most_bytes=10 * each)
    made = [kept.take(tool(name), PLAIN) for name in names]
    assert [kept.take(tool(name), PLAIN) is one for name, one in zip(names[-10:], made[-10:])] == [True] * 10
    assert kept.take(tool("T00"), PLAIN) is not made[0]
    large, kept = tool("Large", description="d" * LARGEST_KEPT_TOOL), KeptTools()
    assert kept.take(large, PLAIN) is not kept.take(large, PLAIN)
    assert kept.take({"type": "web_search_20250305", "name": "x"}, PLAIN) is None


def changes(*blocks):
    return [*HELLO, {"role": "system", "content": list(blocks)}]


@pytest.mark.parametrize("blocks,names", [
    ([{"type": "tool_removal", "tool": {"type": "tool_reference", "name": "B"}}], ["A"]),
    ([{"type": "tool_removal", "tool": {"name": "B"}}, {"type": "tool_addition", "tool": {"name": "B"}}], ["A", "B"]),
    ([{"type": "tool_addition", "tool": {"type": "tool_definition", "definition": tool("C")}}], ["A", "B", "C"]),
    ([{"type": "tool_addition", "tool": 5}], ["A", "B"]),
])
def test_system_messages_add_tools_and_take_them_away(blocks, names):
    assert [f["name"] for f in functions([tool("A"), tool("B")], messages=changes(*blocks))] == names


@pytest.mark.parametrize("kind,name,parameter", [
    ("bash_20241022", "bash", "restart"), ("text_editor_20250728", "str_replace_based_edit_tool", "view_range"),
    ("memory_20250818", "memory", "new_path"), ("computer_20250124", "computer", "coordinate")])
def test_tools_that_the_client_runs_have_a_schema(kind, name, parameter):
    (shown,) = functions([{"type": kind, "name": name, "display_width_px": 800, "display_height_px": 600}])
    assert shown["name"] == name and parameter in shown["parameters"]["properties"]
    assert "800 x 600" in shown["description"]


@pytest.mark.parametrize("kind", [
    "web_search_20250305", "web_fetch_20250910", "code_execution_20250825", "advisor_20260301", "mcp_toolset",
    "computer_toolset_20260801", "browser_toolset_20260801", "new_kind_20270101"])
def test_tools_that_nobody_here_runs_are_left_out_and_noted(kind):
    notes = []
    assert functions([{"type": kind, "name": "t"}], notes=notes) == [] and notes == [f"{kind}=dropped"]


CHOICES = [
    ("5.any", PLAIN, {"type": "any"}, {"tool_choice": "required"}, ""),
    ("5.any-mistral", profile_options("mistral", "x"), {"type": "any"}, {"tool_choice": "any"}, ""),
    ("5.any-moonshot", profile_options("moonshot", "x"), {"type": "any"}, {}, MUST_CALL),
    ("5.tool-refused", told(named_choice=False), {"type": "tool", "name": "B"}, {"tool_choice": "required"}, ""),
    ("5.tool-told", told(any_word=""), {"type": "tool", "name": "B"}, {}, "Answer with a call of the tool B."),
    ("5.none", PLAIN, {"type": "none"}, {"tool_choice": "none"}, ""),
    ("5.none-ollama", profile_options("ollama", "x"), {"type": "none", "disable_parallel_tool_use": True}, {}, ""),
    ("5.not-parallel", PLAIN, {"type": "auto", "disable_parallel_tool_use": True}, {"parallel_tool_calls": False}, ""),
    ("5.not-parallel-o-series", profile_options("openai", "o3"), {"type": "auto", "disable_parallel_tool_use": True},
     {}, ""),
]


@pytest.mark.parametrize("rule,options,choice,expected,said", CHOICES, ids=[row[0] for row in CHOICES])
def test_tool_choice(rule, options, choice, expected, said):
    request = {"model": "m", "messages": HELLO, "tools": [tool("A"), tool("B")], "tool_choice": choice}
    chat = messages_to_chat(request, options, [])
    assert {k: v for k, v in chat.items() if k in ("tool_choice", "parallel_tool_calls")} == expected
    prompts = [m["content"] for m in chat["messages"] if m["role"] == "system"]
    assert prompts == ([said] if said else [])
    offered = [t["function"]["name"] for t in chat.get("tools", ())]
    only_b = choice.get("name") == "B" and options != PLAIN
    assert offered == ([] if rule == "5.none-ollama" else ["B"] if only_b else ["A", "B"])


def test_a_search_that_cannot_be_made_is_said_so():
    """Claude Code's WebSearch is a request with this tool alone, and a demand to call it."""
    search = {"type": "web_search_20250305", "name": "web_search"}
    request = {"model": "m", "messages": HELLO, "tools": [search], "tool_choice": {"type": "tool", "name": "web_search"}}
    chat = messages_to_chat(request)
    assert chat["messages"][0] == {"role": "system", "content": NO_SEARCH}
    assert not {"tools", "tool_choice"} & set(chat)
    both = messages_to_chat({**request, "tools": [search, tool()]})
    assert both["messages"] == HELLO and "tool_choice" not in both


@pytest.mark.parametrize("name,sent", [("9lives", None), ("-x", None), ("_x", "_x"), ("x9", "x9")])
def test_names_that_have_to_begin_with_a_letter(name, sent):
    gemini = told(tool_name="letter")
    short = chat_tool_name(name, gemini)
    assert short == (sent or short) and (short[0].isalpha() or short[0] == "_")
    assert chat_tool_names({"tools": [{"name": name}]}, gemini).get(short, short) == name


@pytest.mark.parametrize("form,call_id,length", [
    ("mistral", "toolu_01", 9), ("mistral", "AbC123xyZ", None), ("mistral", "", 9), ("short", "call_1", None),
    ("short", "x" * 40, None), ("short", "x" * 41, 40), ("", "functions.Read:0", None)])
def test_ids_in_the_form_that_is_taken(form, call_id, length):
    short = chat_call_id(call_id, told(tool_ids=form))
    assert short == call_id if length is None else len(short) == length and short.isalnum()


def test_ids_of_calls_and_results_are_alike():
    use = {"type": "tool_use", "id": "toolu_0123456789", "name": "Read", "input": {}}
    messages = [{"role": "assistant", "content": [use, {**use}]}, {"role": "user", "content": [
        {"type": "tool_result", "tool_use_id": use["id"], "content": "1"}]}]
    chat = messages_to_chat({"model": "m", "messages": messages}, told(tool_ids="mistral"))["messages"]
    called = [call["id"] for call in chat[0]["tool_calls"]]
    assert called == [m["tool_call_id"] for m in chat[1:]] and len(set(called)) == 2


# --- shapes -------------------------------------------------------------------------------------

IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
USE = {"type": "tool_use", "id": "A", "name": "Read", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "A", "content": ""}
CALL = {"id": "A", "type": "function", "function": {"name": "Read", "arguments": "{}"}}


def said(role, content):
    return {"role": role, "content": content}


SHAPES = [
    ("2.system-none", told(system_role=""), {"system": "s"}, HELLO, [said("user", "s\n\nx")]),
    ("2.system-none-assistant-first", told(system_role=""), {"system": "s"}, [said("assistant", "a")],
     [said("user", "s"), said("assistant", "a")]),
    ("2.system-cache", profile_options("openrouter", "anthropic/x"),
     {"system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "t"}]},
     HELLO, [said("system", [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}},
                             {"type": "text", "text": "t"}]), *HELLO]),
    ("2.system-cache-attribution", profile_options("openrouter", "anthropic/x"),
     {"system": [{"type": "text", "text": "x-anthropic-billing-header: v"}, {"type": "text", "text": "t"}]},
     HELLO, [said("system", "t"), *HELLO]),
    ("2.no-cache-elsewhere", PLAIN, {"system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}]},
     HELLO, [said("system", "s"), *HELLO]),
    ("3.alternate", told(alternate=True), {}, [said("user", "a"), said("user", "b"), said("assistant", "c"),
                                               said("assistant", "d")],
     [said("user", "a\n\nb"), said("assistant", "c\n\nd")]),
    ("3.alternate-parts", told(alternate=True), {}, [said("user", "a"), said("user", [IMAGE])],
     [said("user", [{"type": "text", "text": "a"},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}])]),
    ("3.bridge", told(bridge=True), {}, [said("assistant", [USE]), said("user", [RESULT, {"type": "text", "text": "b"}])],
     [{"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "tool_call_id": "A", "content": ""},
      said("assistant", "OK."), said("user", "b")]),
    ("3.null-content", told(null_content="empty"), {}, [said("assistant", [USE]), said("user", [RESULT])],
     [{"role": "assistant", "tool_calls": [CALL], "content": ""},
      {"role": "tool", "tool_call_id": "A", "content": ""}]),
    ("3.prefill", PLAIN, {}, [*HELLO, said("assistant", "{ ")], [*HELLO, said("assistant", "{")]),
    ("3.prefill-mistral", told(prefill="prefix"), {}, [*HELLO, said("assistant", "{")],
     [*HELLO, {**said("assistant", "{"), "prefix": True}]),
    ("4.flat", told(flat=True), {}, [said("user", [{"type": "text", "text": "a"}, IMAGE])],
     [said("user", "a\n\n[an image, which this model cannot see]")]),
    ("4.flat-cached", told(flat=True, cache_control=True), {},
     [said("user", [{"type": "text", "text": "a", "cache_control": {}}, {"type": "text", "text": "b"}])],
     [said("user", "a\n\nb")]),
    ("3.alternate-blank", told(alternate=True), {}, [said("user", "  "), said("user", [IMAGE])],
     [said("user", [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}])]),
    ("4.images-none", told(images=False), {}, [said("user", [{"type": "text", "text": "a"}, IMAGE])],
     [said("user", "a\n\n[an image, which this model cannot see]")]),
    ("4.image-urls-none", told(image_urls=False), {},
     [said("user", [{"type": "image", "source": {"type": "url", "url": "https://x/y"}}])],
     [said("user", "[image https://x/y is not available here]")]),
    ("4.empty-result", told(empty_result="(no output)"), {}, [said("assistant", [USE]), said("user", [RESULT])],
     [{"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "tool_call_id": "A", "content": "(no output)"}]),
    ("4.cache-control-user", told(cache_control=True), {},
     [said("user", [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}])],
     [said("user", [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}])]),
]


@pytest.mark.parametrize("rule,options,members,messages,expected", SHAPES, ids=[row[0] for row in SHAPES])
def test_shapes(rule, options, members, messages, expected):
    request = {"model": "m", "messages": messages, **members}
    assert messages_to_chat(request, options, [])["messages"] == expected


def test_an_answer_that_has_begun_is_continued():
    request = {"model": "m", "messages": [*HELLO, said("assistant", "{")]}
    chat = messages_to_chat(request, profile_options("vllm", "x"))
    assert (chat["add_generation_prompt"], chat["continue_final_message"]) == (False, True)
    assert "continue_final_message" not in messages_to_chat({"model": "m", "messages": HELLO}, profile_options("vllm", "x"))


def test_a_begun_answer_where_thinking_forbids_it():
    request = {"model": "m", "messages": [*HELLO, said("assistant", "{")], "output_config": {"effort": "high"}}
    options = told(prefill="unthinking", thinking="template")
    assert messages_to_chat(request, options)["chat_template_kwargs"] == {"enable_thinking": False}
    assert messages_to_chat({**request, "messages": HELLO}, options)["chat_template_kwargs"] == {"enable_thinking": True}


@pytest.mark.parametrize("options,length", [(PLAIN, 5000), (told(longest_description=1024), 1024)])
def test_descriptions_are_cut_where_they_have_to_be(options, length):
    request = {"model": "m", "messages": HELLO, "tools": [{"name": "Read", "description": "d" * 5000}]}
    assert len(messages_to_chat(request, options)["tools"][0]["function"]["description"]) == length


def test_strict_is_for_the_schema_that_is_sent():
    """Alternatives at the top become one object, which demands less than each of them."""
    either = {"type": "object", "additionalProperties": False, "anyOf": [
        CLOSED, {**CLOSED, "properties": {"b": {}}, "required": ["b"]}]}
    request = {"model": "m", "messages": HELLO, "tools": [{"name": "Read", "strict": True, "input_schema": either}]}
    assert "strict" not in messages_to_chat(request, told(strict=True))["tools"][0]["function"]


@pytest.mark.parametrize("max_tokens,options,reasoning", [
    (32000, PLAIN, {"max_tokens": 16000}), (32000, told(max_output=8000), {"effort": "high"}),
    (32000, told(room=16000), {"effort": "high"}), (None, PLAIN, {"max_tokens": 16000}),
])
def test_a_budget_has_to_leave_room_for_the_answer(max_tokens, options, reasoning):
    options = options._replace(thinking="openrouter")
    thinking = {"type": "enabled", "budget_tokens": 16000}
    request = {"model": "m", "messages": HELLO, "max_tokens": max_tokens, "thinking": thinking}
    assert messages_to_chat(request, options)["reasoning"] == reasoning


@pytest.mark.parametrize("kind,member,expected", [
    ("text_editor_20241022", "command", ["view", "create", "str_replace", "insert", "undo_edit"]),
    ("text_editor_20250124", "command", ["view", "create", "str_replace", "insert", "undo_edit"]),
    ("text_editor_20250728", "command", ["view", "create", "str_replace", "insert"]),
    ("memory_20250818", "command", ["view", "create", "str_replace", "insert", "delete", "rename"]),
    ("memory_20250818", "view_range", None),
])
def test_what_the_clients_own_tools_take(kind, member, expected):
    request = {"model": "m", "messages": HELLO, "tools": [{"type": kind, "name": "edit"}]}
    properties = messages_to_chat(request, PLAIN)["tools"][0]["function"]["parameters"]["properties"]
    assert properties[member].get("enum") == expected


@pytest.mark.parametrize("identity,tier,sent", [
    ("openai", "standard_only", "default"), ("openai", "auto", None), ("user", "standard_only", None), ("", "standard_only", None),
])
def test_the_standard_tier_needs_no_user(identity, tier, sent):
    request = {"model": "m", "messages": HELLO, "service_tier": tier}
    assert messages_to_chat(request, told(identity=identity)).get("service_tier") == sent
