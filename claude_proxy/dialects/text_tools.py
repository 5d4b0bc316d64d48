"""Tools for models that cannot call them: told in the system prompt, called in text. Pure.

    request with tools  --text_tool_request-->  request without
    answer's text       --CallSplitter-->       text and calls          (text_calls)

A section at the end of the system prompt says how to call and what tools there are; calls and
results of the conversation so far become text in the same syntax, so that the model reads its own
habit. The section is the same bytes in every turn, which is what an upstream's cache wants.

Inside a call every & is written as \\u0026, for upstreams that decode HTML entities in answers
(REDCap's SecureChatAI does): `&lt;` in a file would silently become `<`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Dict, List, Set

from claude_proxy.dialects.chat_blocks import as_list, content_blocks
from claude_proxy.dialects.chat_tools import tool_schema
from claude_proxy.events import Request
from claude_proxy.sse import encode_json

CALL_OPEN = "<tool_call>"
CALL_CLOSE = "</tool_call>"
RESULT_OPEN = "<tool_result"
# Ends a model that goes on to invent results, where the upstream takes stop sequences.
RESULT_STOP = "\n" + RESULT_OPEN
MOST_TEXT_STOPS = 4

TOOL_SECTION = """\
# Tools

You act by calling the tools below; the host runs each call and sends you its result. \
To call a tool, write this, beginning on a new line:

<tool_call>
{"name": "TOOL", "input": {"ARGUMENT": "VALUE"}}
</tool_call>

- Between the tags stands one JSON object and nothing else: no code fence, no comment. In strings, \
escape quotes as \\", backslashes as \\\\ and line breaks as \\n.
- Inside that JSON write every & as \\u0026: `a && b` is "a \\u0026\\u0026 b", `&lt;` is \
"\\u0026lt;".
- To make several calls at once, write one block after the other.
- Stop after the last </tool_call>. Results come in the next message, as \
<tool_result id="...">...</tool_result> in the order of your calls; never write one yourself.
- Nothing happens unless you call: do not describe a call instead of making it. When no tool is \
needed, answer in plain text.

Example, two calls after a sentence:

I will look at both files.

<tool_call>
{"name": "ReadFile", "input": {"path": "src/a.html", "lines": [1, 20]}}
</tool_call>
<tool_call>
{"name": "Search", "input": {"text": "<b>R\\u0026D</b> \\"x\\""}}
</tool_call>

The names above are only an example. These are your tools, with their input (? marks what may be \
left out):
"""
CHOICE_SENTENCES = {
    "any": "This answer must call at least one tool.",
    "tool": "This answer must call the tool {name}.",
}
SINGLE_SENTENCE = "Make at most one call in an answer."


# --- the request -------------------------------------------------------------------------------


def needs_text_tools(request: Request) -> bool:
    """Whether there is anything about tools in a request."""
    return bool(as_list(request.get("tools"))) or any(
        block.get("type") in ("tool_use", "tool_result")
        for message in as_list(request.get("messages"))
        if isinstance(message, dict)
        for block in as_list(message.get("content"))
        if isinstance(block, dict)
    )


def text_tool_request(request: Request) -> Request:
    """The request without `tools` and tool blocks; what they say is in `system` and in texts."""
    plain = {k: v for k, v in request.items() if k not in ("tools", "tool_choice")}
    plain["messages"] = text_messages(as_list(request.get("messages")))
    section = tool_section(request)
    if not section:
        return plain
    system = request.get("system")
    own = [{"type": "text", "text": system}] if isinstance(system, str) else as_list(system)
    plain["system"] = [*(own if system else []), {"type": "text", "text": section}]
    stops = as_list(request.get("stop_sequences"))
    if len(stops) < MOST_TEXT_STOPS:
        plain["stop_sequences"] = [*stops, RESULT_STOP]
    return plain


def offered_tools(request: Request) -> List[Dict[str, Any]]:
    """The tools that a client can run; none if it forbids calls."""
    if choice_of(request).get("type") == "none":
        return []
    tools = as_list(request.get("tools"))
    return [tool for tool in tools if isinstance(tool, dict) and tool_schema(tool) is not None]


def offered_names(request: Request) -> Set[str]:
    return {str(tool.get("name", "")) for tool in offered_tools(request)}


def choice_of(request: Request) -> Dict[str, Any]:
    choice = request.get("tool_choice")
    return choice if isinstance(choice, dict) else {}


def must_call(request: Request) -> bool:
    return bool(choice_sentence(request))


def choice_sentence(request: Request) -> str:
    """What a forced choice says in words; "" where there is none, or of no tool that is offered."""
    choice, names = choice_of(request), offered_names(request)
    name = choice.get("name")
    sentence = CHOICE_SENTENCES.get(str(choice.get("type")), "")
    possible = name in names if "{name}" in sentence and isinstance(name, str) else bool(names)
    return sentence.format(name=name) if possible else ""


def may_call_once(request: Request) -> bool:
    return choice_of(request).get("disable_parallel_tool_use") is True


def tool_section(request: Request) -> str:
    """The end of the system prompt; "" where there is nothing to call."""
    tools = offered_tools(request)
    if not tools:
        return ""
    parts = [TOOL_SECTION, *map(tool_text, tools)]
    extra = [choice_sentence(request)] if must_call(request) else []
    extra += [SINGLE_SENTENCE] if may_call_once(request) else []
    return "\n".join([*parts, *extra])


# --- tools as text -----------------------------------------------------------------------------


def tool_text(tool: Dict[str, Any]) -> str:
    """One tool: its name, what it does, a line for each member of its input."""
    schema = tool_schema(tool) or {}
    # Descriptions have headings of their own.
    lines = [f"=== {tool.get('name', '')} ==="]
    description = tool.get("description")
    lines += [description.strip()] if isinstance(description, str) and description else []
    members = list(member_lines(schema, "  "))
    about = f" {schema['description']}" if isinstance(schema.get("description"), str) else ""
    return "\n".join([*lines, f"Input:{about if members else about or ' {}'}", *members, ""])


def member_lines(schema: Dict[str, Any], indent: str) -> Iterator[str]:
    """A line for each property, and deeper ones for the properties of objects inside."""
    required = as_list(schema.get("required"))
    properties = schema.get("properties")
    for name, member in (properties if isinstance(properties, dict) else {}).items():
        member = member if isinstance(member, dict) else {}
        mark = "" if name in required else "?"
        about = str(member.get("description") or "").strip().replace("\n", "\n" + indent + "  ")
        yield f"{indent}{name}{mark}: {type_text(member)}{' - ' + about if about else ''}"
        yield from member_lines(inner_object(member), indent + "  ")
    rest = {k: v for k, v in schema.items() if k not in TOLD_KEYWORDS and not plain_default(k, v)}
    if rest and indent == "  ":
        yield f"{indent}also: {compact_json(rest)}"


def inner_object(schema: Dict[str, Any]) -> Dict[str, Any]:
    """The schema whose properties stand below a member's line: its own, or its items'."""
    found = schema.get("items") or {} if plain_array(schema) else schema
    return found if isinstance(found.get("properties"), dict) else {}


def plain_array(schema: Dict[str, Any]) -> bool:
    """Whether `object[]` and the lines below say all of an array's items."""
    items = schema.get("items", {})
    if schema.get("type") != "array" or not isinstance(items, dict):
        return False
    inner_told = not (items.get("type") == "array" and inner_object(items))
    return "description" not in items and inner_told


# Said by a member's line, or of no use to a model.
TOLD_KEYWORDS = ("type", "properties", "required", "description", "items", "enum", "$schema",
                 "title")  # fmt: skip


def plain_default(keyword: str, value: Any) -> bool:
    return keyword == "additionalProperties" and value in (False, {})


def type_text(schema: Dict[str, Any]) -> str:
    """A schema in few words: `string`, `"a"|"b"`, `object[]`, with the keywords that limit it."""
    kind, enum, items = schema.get("type"), schema.get("enum"), schema.get("items")
    if isinstance(enum, list):
        text = "|".join(map(compact_json, enum))
    elif plain_array(schema):
        text = type_text(items or {}) + "[]"
    else:
        text = "|".join(map(str, kind)) if isinstance(kind, list) else str(kind or "any")
    rest = {k: v for k, v in schema.items() if k not in TOLD_KEYWORDS and not plain_default(k, v)}
    if items is not None and not plain_array(schema):
        rest["items"] = items
    properties = schema.get("properties")
    listed = properties if isinstance(properties, dict) else {}
    unlisted = [name for name in as_list(schema.get("required")) if str(name) not in listed]
    if unlisted:
        rest["required"] = unlisted
    return f"{text} {compact_json(rest)}" if rest else text


def compact_json(value: Any) -> str:
    return encode_json(value)


# --- the conversation --------------------------------------------------------------------------


def text_messages(messages: List[Any]) -> List[Any]:
    """Messages whose calls and results are text; everything else stays as it is. Results are in
    the order of their calls, whichever ended first."""
    told, calls = [], {}
    for message in messages:
        if isinstance(message, dict) and isinstance(message.get("content"), list):
            blocks = in_order_of_calls(message["content"], calls)
            calls = call_order(blocks) or calls
            content = [text for block in blocks for text in text_blocks(block)]
            message = {**message, "content": content}
        told.append(message)
    return told


def call_order(blocks: List[Any]) -> Dict[str, int]:
    return {str(b.get("id")): n for n, b in enumerate(blocks) if is_block(b, "tool_use")}


def in_order_of_calls(blocks: List[Any], calls: Dict[str, int]) -> List[Any]:
    """The blocks with the results first, in the order of their calls."""
    results = [block for block in blocks if is_block(block, "tool_result")]
    results.sort(key=lambda block: calls.get(str(block.get("tool_use_id")), len(calls)))
    return [*results, *(block for block in blocks if not is_block(block, "tool_result"))]


def is_block(block: Any, kind: str) -> bool:
    return isinstance(block, dict) and block.get("type") == kind


def text_blocks(block: Any) -> List[Any]:
    kind = block.get("type") if isinstance(block, dict) else None
    if kind == "tool_use":
        return [{"type": "text", "text": call_text(block)}]
    if kind == "tool_result":
        return result_blocks(block)
    # A model that reads its thoughts as text would begin to write them as text.
    return [] if kind in ("thinking", "redacted_thinking") else [block]


def call_text(block: Dict[str, Any]) -> str:
    """A call as the model has to write it, and its id, by which the result refers to it."""
    call = {"name": block.get("name"), "input": block.get("input") or {}, "id": block.get("id")}
    return f"{CALL_OPEN}\n{call_json(call)}\n{CALL_CLOSE}"


def call_json(call: Dict[str, Any]) -> str:
    return compact_json(call).replace("&", "\\u0026")


def result_blocks(block: Dict[str, Any]) -> List[Any]:
    """A result as text; images and documents in it follow as blocks of their own."""
    parts = content_blocks(block.get("content"), f"tool_result {block.get('tool_use_id')}.content")
    texts = [str(p.get("text") or "") if p.get("type") == "text" else result_note(p) for p in parts]
    error = ' error="true"' if block.get("is_error") is True else ""
    head = f'{RESULT_OPEN} id="{block.get("tool_use_id")}"{error}>'
    text = {"type": "text", "text": "\n".join([head, *texts, "</tool_result>"])}
    return [text, *(part for part in parts if part.get("type") in ("image", "document"))]


def result_note(part: Dict[str, Any]) -> str:
    kind = part.get("type")
    return f"[{kind} below]" if kind in ("image", "document") else compact_json(part)
