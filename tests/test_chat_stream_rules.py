"""The rules for Chat Completions answers, one row a rule; the ids name the rule's section.

Events in short: `text(a|b)` is a text block and its deltas, `thinking(a)`, `call(id name a|b)`, with
`~kind data` behind a thinking block that carries something; the stop reason stands last. What is
not closed has no `)`. An error is `!status type message`.
"""

from __future__ import annotations

import json

import pytest

from claude_proxy.dialects.carriers import is_carrier, unpack_carrier, unpack_details
from claude_proxy.dialects.chat_stream import ChatAsked, chat_chunks, chunks_to_events
from claude_proxy.errors import ProxyError
from claude_proxy.events import EventWriter, check_grammar, events_to_message
from claude_proxy.sse import FrameSplitter, encode_event

DONE, EOF = "[DONE]", b""
CUT = "!502 api_error the upstream closed the stream before the answer was complete"
LEFT = {"text": "text", "thinking": "thinking", "partial_json": ""}


def chunk(delta, finish=None, **more):
    return {"id": "c1", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more}


def fin(reason="stop", delta=None, **choice):
    """The chunk with the finish reason."""
    return {"choices": [{"index": 0, "delta": delta or {}, "finish_reason": reason, **choice}]}


def tc(index=None, id=None, name=None, args=None, **more):
    """A delta with a piece of one call; what is None is absent."""
    function = {k: v for k, v in (("name", name), ("arguments", args)) if v is not None}
    call = {k: v for k, v in (("index", index), ("id", id), ("function", function)) if v not in (None, {})}
    return {"tool_calls": [{**call, **more}]}


def frames(items):
    """Bytes of a body: a string is content, a dict a delta or a chunk, bytes are themselves.

    The end is a finish reason and [DONE] if the row does not end in one of its own, or in EOF.
    """
    for item in items:
        if isinstance(item, bytes):
            yield item
            continue
        if isinstance(item, str) and item != DONE:
            item = chunk({"content": item})
        elif isinstance(item, dict) and not item.keys() & {"choices", "usage", "error", "object", "x_groq", "sources"}:
            item = chunk(item)
        yield b"data: %b\n\n" % (item.encode() if item == DONE else json.dumps(item).encode())
    if items[-1:] != [EOF] and items[-1:] != [DONE]:
        yield b"data: [DONE]\n\n"


def carried(signature):
    """What a signature carries, as text."""
    kinds = ("reasoning_details", "extra_content")
    kind, data = next((k, unpack_carrier(signature, k)) for k in kinds if unpack_carrier(signature, k) is not None)
    return f"~{kind} {json.dumps(data)}"


def retell(body, asked=ChatAsked()):
    """The events of a body in short, checked by the grammar."""
    told, seal, told_deltas = [], "", []
    try:
        write = EventWriter("msg_t", "m")
        for event in check_grammar(chunks_to_events(chat_chunks(iter(body)), write, asked)):
            kind = event["type"]
            if kind == "content_block_start":
                block, told_deltas, seal = event["content_block"], [], ""
                name = {"tool_use": "call"}.get(block["type"], block["type"])
                told.append([name, " ".join(filter(None, (block.get("id"), block.get("name")))), told_deltas, "", ""])
            elif kind == "content_block_delta":
                delta = event["delta"]
                if delta["type"] == "signature_delta":
                    seal = carried(delta["signature"]) if delta["signature"] else "~"
                else:
                    told_deltas.append(delta.get("text", delta.get("thinking", delta.get("partial_json"))))
            elif kind == "content_block_stop":
                told[-1][3:] = [")", seal]
            elif kind == "message_delta":
                told.append(event["delta"]["stop_reason"])
                details = event["delta"].get("stop_details")
                told += [f"[{details['explanation']}]"] if details else []
                told += [f"<{event['delta']['stop_sequence']}>"] if event["delta"]["stop_sequence"] else []
    except ProxyError as error:
        told.append(f"!{error.status} {error.error_type} {error.message}")
    return " ".join(in_short(part) for part in told)


def in_short(part):
    if isinstance(part, str):
        return part
    name, head, deltas, closed, seal = part
    return f"{name}({' '.join(filter(None, [head, '|'.join(deltas)]))}{closed}{seal}"


THINK = {"reasoning_content": "a"}
A, B = tc(0, "A", "X", ""), tc(1, "B", "Y", "")
ROWS = [
    # 8: the body and its frames
    ("8.frame-crlf", [b'data:{"choices":[{"delta":{"content":"x"}}]}\r\n\r\n', fin()], "text(x) end_turn"),
    ("8.frame-cr", [b'data: {"choices":[{"delta":{"content":"x"}}]}\r\r', fin()], "text(x) end_turn"),
    ("8.frame-comment", [b": OPENROUTER PROCESSING\n\n", "x", b": keep-alive\n\n", fin()], "text(x) end_turn"),
    ("8.frame-blank-lines", [b"\n\n\n", "x", b"\n\n", fin()], "text(x) end_turn"),
    ("8.frame-data-lines-cr", [b'data: {"choices":[{"delta":\rdata: {"content":"x"}}]}\n\n', fin()], "text(x) end_turn"),
    ("8.frame-data-lines", [b'data: {"choices":[{"delta":\ndata: {"content":"x"}}]}\n\n', fin()], "text(x) end_turn"),
    ("8.frame-other-fields", [b"id: 7\nretry: 5\nfoo: bar\n\n", "x", fin()], "text(x) end_turn"),
    ("8.frame-event-names", [b'event: message\ndata: {"choices":[{"delta":{"content":"x"}}]}\n\n', fin()], "text(x) end_turn"),
    ("8.frame-event-chunk", [b'event: completion.chunk\ndata: {"choices":[{"delta":{"content":"x"}}]}\n\n', fin()], "text(x) end_turn"),
    ("8.frame-event-ping", [b"event: ping\ndata: \n\n", b"event: ping\ndata: alive\n\n", "x", fin()], "text(x) end_turn"),
    ("8.frame-event-error", ["x", b'event: error\ndata: {"error":{"message":"no","type":"overloaded"}}\n\n'], "text(x !529 overloaded_error no"),
    ("8.frame-error-field", ["x", b'error: {"code":500,"message":"slot failed"}\n\n'], "text(x !500 api_error slot failed"),
    ("8.frame-error-text", [b"event: error\ndata: it broke\n\n"], "!502 api_error it broke"),
    ("8.frame-bom", [b"\xef\xbb\xbf", "x", fin()], "text(x) end_turn"),
    ("8.frame-not-json", ["x", b"data: {oops\n\n", "y", fin()], "text(x !502 api_error the upstream sent an event that is not JSON"),
    ("8.frame-not-utf8", [b'data: {"choices":[{"delta":{"content":"\xff"}}]}\n\n'], "!502 api_error the upstream sent an event that is not JSON"),
    ("8.frame-nothing-behind-done", ["x", fin(), DONE, b"data: {oops\n\n", EOF], "text(x) end_turn"),
    ("8.frame-last-without-blank-line", ["x", b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}', EOF], "text(x) end_turn"),
    ("8.frame-last-is-cut", ["x", b'data: {"choices":[{"del', EOF], "text(x " + CUT),
    ("8.frame-usage-is-cut", ["x", fin(), b'data: {"choices":[],"usa', EOF], "text(x) end_turn"),
    ("8.frame-deep", [b'data: {"choices":[{"delta":{"content":' + b"[" * 5_000 + b"\n\n"], "!502 api_error the upstream sent an event that is not JSON"),
    ("8.body-json", [b'{"choices":[{"index":0,"message":{"role":"assistant","content":"x"},"finish_reason":"stop"}]}', EOF], "text(x) end_turn"),
    ("8.body-json-bom", [b'\xef\xbb\xbf {"choices":[{"message":{"content":"x"},"finish_reason":"stop"}]}', EOF], "text(x) end_turn"),
    ("8.body-json-reasoning-and-calls", [b'{"choices":[{"message":{"content":"x","reasoning":"r","tool_calls":[{"id":"A","type":"function","function":{"name":"X","arguments":"{}"}}]},"finish_reason":"tool_calls"}]}', EOF],
     "thinking(r) text(x) call(A X {}) tool_use"),
    ("8.body-json-no-finish", [b'{"choices":[{"message":{"content":"x"},"finish_reason":null}]}', EOF], "text(x) end_turn"),
    ("8.body-json-error", [b'{"error":{"message":"no","code":429}}', EOF], "!429 rate_limit_error no"),
    ("8.body-json-list", [b'[{"error":{"message":"no","code":400}}]', EOF], "!400 invalid_request_error no"),
    ("8.body-json-detail", [b'{"detail":"Not authenticated"}', EOF], "!502 api_error Not authenticated"),
    ("8.body-json-message", [b'{"status":"failed","message":"no such deployment"}', EOF], "!502 api_error no such deployment"),
    ("8.body-json-no-choices", [b'{"choices":[]}', EOF], CUT),
    ("8.body-json-cut", [b'{"choices":[{"mess', EOF], "!502 api_error the upstream sent an event that is not JSON"),
    ("8.body-json-string", [b'"overloaded"', EOF], "!502 api_error overloaded"),
    ("8.body-page", [b"<html><title>Sign in</title>", EOF], "!502 api_error the upstream answered with a web page: Sign in"),
    ("8.body-sentence", [b"Internal Server Error", EOF], "!502 api_error Internal Server Error"),
    ("8.body-nothing", [EOF], CUT),
    # 8: chunks
    ("8.choices-empty", [{"choices": [], "prompt_filter_results": [{}]}, "x", {"choices": []}, fin()], "text(x) end_turn"),
    ("8.choices-absent", [{"sources": [{"x": 1}]}, {"object": "x"}, "x", fin()], "text(x) end_turn"),
    ("8.choices-null", [{"choices": None}, {"choices": [None]}, {"choices": "x"}, "x", fin()], "text(x) end_turn"),
    ("8.choice-no-delta", [{"choices": [{"index": 0, "content_filter_results": {}, "content_filter_offsets": {}}]}, "x", fin()], "text(x) end_turn"),
    ("8.choice-delta-null", [{"choices": [{"index": 0, "delta": None}]}, {"choices": [{"delta": "x"}]}, "x", fin()], "text(x) end_turn"),
    ("8.choice-index-other", ["x", {"choices": [{"index": 1, "delta": {"content": "y"}, "finish_reason": "length"}]}, fin()], "text(x) end_turn"),
    ("8.choice-index-order", [{"choices": [{"index": 1, "delta": {"content": "y"}}, {"index": 0, "delta": {"content": "x"}}]}, fin()], "text(x) end_turn"),
    ("8.choice-index-text", [{"choices": [{"index": "0", "delta": {"content": "x"}}]}, fin()], "text(x) end_turn"),
    ("8.choice-index-absent", [{"choices": [{"delta": {"content": "x"}}]}, fin()], "text(x) end_turn"),
    ("8.delta-life", [{"role": "assistant"}, {"content": None}, {"content": ""}, {}, "x", fin()], "text(x) end_turn"),
    ("8.delta-list", [{"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "a"}]}, {"type": "text", "text": "x"}, {"type": "other"}, 5]}, fin()], "thinking(a) text(x) end_turn"),
    ("8.delta-list-summary", [{"content": [{"type": "reasoning", "summary": [{"type": "summary_text", "text": "a"}]}]}, "x", fin()], "thinking(a) text(x) end_turn"),
    ("8.delta-part", [{"content": {"type": "text", "text": "x"}}, fin()], "text(x) end_turn"),
    ("8.delta-content-number", [{"content": 5}, {"content": True}, "x", fin()], "text(x) end_turn"),
    ("8.reasoning-content", [{"reasoning_content": "a"}, {"reasoning_content": "b", "content": None}, "x", fin()], "thinking(a|b) text(x) end_turn"),
    ("8.reasoning", [{"reasoning": "a"}, {"reasoning": "b"}, "x", fin()], "thinking(a|b) text(x) end_turn"),
    ("8.reasoning-equal", [{"reasoning": "a", "reasoning_content": "a"}, "x", fin()], "thinking(a) text(x) end_turn"),
    ("8.reasoning-differ", [{"reasoning": "b", "reasoning_content": "a"}, "x", fin()], "thinking(a) text(x) end_turn"),
    ("8.reasoning-one-is-null", [{"reasoning": "b", "reasoning_content": None}, {"reasoning_content": "", "reasoning": "c"}, "x", fin()], "thinking(b|c) text(x) end_turn"),
    ("8.reasoning-with-content", [{"reasoning_content": "a", "content": "x"}, fin()], "thinking(a) text(x) end_turn"),
    ("8.reasoning-not-text", [{"reasoning": {"effort": 5}}, {"reasoning_content": 5}, "x", fin()], "text(x) end_turn"),
    ("8.details-text", [{"reasoning_details": [{"type": "reasoning.text", "text": "a"}, {"type": "reasoning.encrypted", "data": "z"}]}, "x", fin()], "thinking(a) text(x) end_turn"),
    ("8.details-summary", [{"reasoning_details": [{"type": "reasoning.summary", "summary": "a"}]}, "x", fin()], "thinking(a) text(x) end_turn"),
    ("8.details-beside-plain", [{"reasoning": "a", "reasoning_details": [{"type": "reasoning.text", "text": "a"}]}, "x", fin()], "thinking(a) text(x) end_turn"),
    ("8.details-odd", [{"reasoning_details": "a"}, {"reasoning_details": [5, None, {"text": 7}]}, "x", fin()], "text(x) end_turn"),
    ("8.function-call", [{"function_call": {"name": "X", "arguments": ""}}, {"function_call": {"arguments": '{"a":1}'}}, fin("function_call")], 'call(toolu_t_0 X {"a":1}) tool_use'),
    ("8.ignored", [{"content": "x", "audio": {"id": "a"}, "obfuscation": "zz", "annotations": [{"type": "url_citation"}]}, fin(logprobs={"content": []})], "text(x) end_turn"),
    ("8.message-for-delta", [{"choices": [{"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}]}], "text(x) end_turn"),
    ("8.finish-then-more", [A, fin("tool_calls"), tc(0, args="{}"), {"choices": [], "usage": {"prompt_tokens": 1}}], "call(A X {}) tool_use"),
    ("8.finish-with-text", [fin("stop", {"content": "x"})], "text(x) end_turn"),
    ("8.error-object", ["x", {"error": {"code": 502, "message": "gone"}}], "text(x !502 api_error gone"),
    ("8.error-string", [{"error": "no", "code": "x"}], "!502 api_error no"),
    ("8.error-object-vllm", [{"object": "error", "message": "bad", "code": 400}], "!400 invalid_request_error bad"),
    ("8.error-null", [chunk({"content": "x"}, error=None), fin()], "text(x) end_turn"),
    ("8.error-behind-text", [chunk({"content": "x"}, error={"message": "no"})], "!502 api_error no"),
    ("8.error-deep", [b'data: {"error":' + b'{"error":' * 800 + b"1" + b"}" * 801 + b"\n\n"], "!502 api_error " + ('{"error": ' * 300)[:2048].rstrip()),
    # 8: think tags
    ("8.think", ["<think>a</think>\n\nx", fin()], "thinking(a) text(x) end_turn"),
    ("8.think-cut-anywhere", [*"<think>a</think>\nx", fin()], "thinking(a) text(x) end_turn"),
    ("8.think-behind-blank", ["\n", " <thinking>a</thinking>x", fin()], "thinking(a) text(x) end_turn"),
    ("8.think-seed", ["<seed:think>a</seed:think>x", fin()], "thinking(a) text(x) end_turn"),
    ("8.think-thought", ["<thought>a", "</thought>x", fin()], "thinking(a) text(x) end_turn"),
    ("8.think-later-is-text", ["x <think>a</think>", fin()], "text(x <think>a</think>) end_turn"),
    ("8.think-almost", ["<thi", "s>", fin()], "text(<this>) end_turn"),
    ("8.think-not-closed", ["<think>a", "b</thi", fin()], "thinking(a|b|</thi) end_turn"),
    ("8.think-closing-alone-is-text", ["a</think>x", fin()], "text(a</think>x) end_turn"),
    ("8.think-then-call", ["<think>a</think>\n\n", A, tc(0, args="{}"), fin("tool_calls")], "thinking(a) call(A X {}) tool_use"),
    ("8.think-empty", ["<think>\n\n</think>\n\nx", fin()], "thinking(\n\n) text(x) end_turn"),
    # 8: the end
    ("8.end-finish-no-done", ["x", fin(), EOF], "text(x) end_turn"),
    ("8.end-done-no-finish", ["x"], "text(x) end_turn"),
    ("8.end-done-no-finish-call", [A, tc(0, args="{}")], "call(A X {}) tool_use"),
    ("8.end-done-no-finish-nameless", [tc(0, args="{}")], "call(toolu_t_0 unknown {}) tool_use"),
    ("8.end-done-only", [DONE], CUT),
    ("8.end-done-behind-role", [{"role": "assistant"}], CUT),
    ("8.end-cut", ["x", EOF], "text(x " + CUT),
    ("8.end-cut-in-call", [A, tc(0, args='{"a'), EOF], 'call(A X {"a ' + CUT),
    ("8.end-cut-in-tag", ["<thi", EOF], CUT),
    ("8.end-empty-finish-is-none", ["x", fin(""), EOF], "text(x " + CUT),
    # 9: which call a delta belongs to
    ("9.1a", [A, tc(0, args="{}"), B, tc(1, args="{}"), fin("tool_calls")], "call(A X {}) call(B Y {}) tool_use"),
    ("9.1a-index-text", [tc("0", "A", "X", '{"a"'), tc("0", args=":1}"), fin()], 'call(A X {"a"|:1}) tool_use'),
    ("9.1a-index-fraction", [tc(0.0, "A", "X", "{}"), tc(1.0, "B", "Y", '{"a"'), tc(1.0, args=":1}"), fin()], 'call(A X {}) call(B Y {"a"|:1}) tool_use'),
    ("9.1a-index-not-one", [tc([0], "A", "X", '{"a"'), tc({}, args=":1}"), fin()], 'call(A X {"a"|:1}) tool_use'),
    ("9.1b", [tc(0, "A", "X", '{"a":1}'), tc(0, "B", "X", '{"a":2}'), fin()], 'call(A X {"a":1}) call(B X {"a":2}) tool_use'),
    ("9.1b-no-name-complete", [tc(0, "A", "X", "{}"), tc(0, "B", args='{"a"'), tc(0, args=":1}"), fin()], 'call(A X {}) call(B unknown {"a"|:1}) tool_use'),
    ("9.1b-not-complete", [tc(0, "A", "X", '{"a"'), tc(0, "B", args=":1}"), fin()], 'call(A X {"a"|:1}) tool_use'),
    ("9.1c-same-id", [tc(None, "A", "X", '{"a"'), tc(None, "A", "X", ":1}"), fin()], 'call(A X {"a"|:1}) tool_use'),
    ("9.1c-new-id", [tc(None, "A", "X", "{}"), tc(None, "B", "X", "{}"), fin()], "call(A X {}) call(B X {}) tool_use"),
    ("9.1c-name", [tc(None, None, "X", "{}"), tc(None, None, "Y", "{}"), fin()], "call(toolu_t_0 X {}) call(toolu_t_1 Y {}) tool_use"),
    ("9.1c-neither", [tc(None, "A", "X", '{"a"'), tc(args=":1}"), fin()], 'call(A X {"a"|:1}) tool_use'),
    ("9.1c-index-later", [tc(None, "A", "X", '{"a"'), tc(0, args=":1}"), fin()], 'call(A X {"a"|:1}) tool_use'),
    ("9.1c-index-later-same-id", [tc(None, "A", "X", '{"a"'), tc(0, "A", args=":1"), tc(0, args="}"), fin()], 'call(A X {"a"|:1|}) tool_use'),
    ("9.1d", [tc(0, None, "X", '{"a":1}'), tc(0, None, "X", '{"a":2}'), fin()], 'call(toolu_t_0 X {"a":1}) call(toolu_t_1 X {"a":2}) tool_use'),
    ("9.1d-same-id", [tc(0, "A", "X", '{"a":1}'), tc(0, "A", "X", '{"a":2}'), fin()], 'call(A X {"a":1}) call(A_2 X {"a":2}) tool_use'),
    ("9.2-repeated", [tc(0, "A", "X", '{"a"'), tc(0, "A", "X", ":1"), tc(0, "A", "X", "}"), tc(0, "A", "X", ""), fin()], 'call(A X {"a"|:1|}) tool_use'),
    ("9.2-other-ids", [tc(0, "A", "X", '{"a"'), tc(0, "B", args=":1"), tc(0, "C", args="}"), fin()], 'call(A X {"a"|:1|}) tool_use'),
    ("9.3-id-missing", ["x", tc(0, None, "X", "{}"), fin()], "text(x) call(toolu_t_1 X {}) tool_use"),
    ("9.3-id-is-null", [{"tool_calls": [{"index": 0, "id": None, "type": None, "function": {"name": "X", "arguments": "{}"}}]}, fin()], "call(toolu_t_0 X {}) tool_use"),
    ("9.3-id-late", [tc(0, None, "X", ""), tc(0, "A", args="{}"), fin()], "call(A X {}) tool_use"),
    ("9.3-id-later-than-arguments", [tc(0, None, "X", '{"a"'), tc(0, "A", args=":1}"), fin()], 'call(toolu_t_0 X {"a"|:1}) tool_use'),
    ("9.3-name-late", [tc(0, "A", args='{"a"'), tc(0, None, "X", ":1}"), fin()], 'call(A X {"a"|:1}) tool_use'),
    ("9.3-nothing-but-a-name", [tc(0, None, "X"), fin()], "call(toolu_t_0 X) tool_use"),
    ("9.3-duplicate-id", [tc(0, "A", "X", "{}"), tc(1, "A", "Y", "{}"), fin()], "call(A X {}) call(A_2 Y {}) tool_use"),
    ("9.3-id-number", [tc(0, 7, "X", "{}"), fin()], "call(7 X {}) tool_use"),
    ("9.4-name-missing", [tc(0, "A", args="{}"), fin()], "call(A unknown {}) tool_use"),
    ("9.5-fragments", [A, tc(0, args='{"a'), tc(0, args='":"'), tc(0, args='b"}'), fin()], 'call(A X {"a|":"|b"}) tool_use'),
    ("9.5-object", [tc(0, "A", "X", {"a": 1}), fin()], 'call(A X {"a":1}) tool_use'),
    ("9.5-empty", [A, tc(0, args=""), fin()], "call(A X) tool_use"),
    ("9.5-absent", [tc(0, "A", "X"), fin()], "call(A X) tool_use"),
    ("9.5-null-text", [tc(0, "A", "X", "null"), fin()], "call(A X) tool_use"),
    ("9.5-null", [{"tool_calls": [{"index": 0, "id": "A", "function": {"name": "X", "arguments": None}}]}, fin()], "call(A X) tool_use"),
    ("9.5-whole", [tc(0, "A", "X", '{"a":1}'), fin("tool_calls")], 'call(A X {"a":1}) tool_use'),
    ("9.6", [A, B, tc(0, args='{"x":'), tc(1, args='{"y":'), tc(0, args="1}"), tc(1, args="2}"), fin()], 'call(A X {"x":|1}) call(B Y {"y":|2}) tool_use'),
    ("9.6-three", [A, B, tc(2, "C", "Z", "{}"), tc(1, args="{}"), tc(0, args="{}"), fin()], "call(A X {}) call(B Y {}) call(C Z {}) tool_use"),
    ("9.6-in-one-delta", [{"tool_calls": [*A["tool_calls"], *B["tool_calls"]]}, tc(1, args="{}"), tc(0, args="{}"), fin()], "call(A X {}) call(B Y {}) tool_use"),
    ("9.6-first-never-complete", [A, B, tc(1, args="{}"), tc(0, args='{"a'), fin()], 'call(A X {"a) call(B Y {}) tool_use'),
    ("9.6-ends-like-an-object", [A, tc(0, args='{"a":{}'), "x", tc(0, args="}"), fin()], 'call(A X {"a":{}|}) text(x) tool_use'),
    ("9.7-amid", [A, tc(0, args='{"a"'), "by ", "the way", tc(0, args=":1}"), fin()], 'call(A X {"a"|:1}) text(by the way) tool_use'),
    ("9.7-after", [tc(0, "A", "X", "{}"), "x", "y", fin()], "call(A X {}) text(x|y) tool_use"),
    ("9.7-after-blank-lines-stay", [tc(0, "A", "X", "{}"), "x", "\n\n", "y", " ", "z", "\n", fin()], "call(A X {}) text(x|\n\n|y| |z|\n) tool_use"),
    ("9.7-after-blank-first", [tc(0, "A", "X", "{}"), "\n", "\n", "x", fin()], "call(A X {}) text(\n\nx) tool_use"),
    ("9.7-between-blank", [tc(0, "A", "X", "{}"), "\n", " ", tc(1, "B", "Y", "{}"), "\n", fin()], "call(A X {}) call(B Y {}) tool_use"),
    ("9.7-between", [tc(0, "A", "X", "{}"), "x", tc(1, "B", "Y", "{}"), fin()], "call(A X {}) text(x) call(B Y {}) tool_use"),
    ("9.7-before-blank", ["\n\n", tc(0, "A", "X", "{}"), fin()], "call(A X {}) tool_use"),
    ("9.7-before-blank-reasoning", [THINK, "\n\n", tc(0, "A", "X", "{}"), fin()], "thinking(a) call(A X {}) tool_use"),
    ("9.7-blank-between-thought", [tc(0, "A", "X", "{}"), "\n", THINK, fin()], "call(A X {}) thinking(a) tool_use"),
    ("9.7-blank-behind-thought-begins-text", [A, THINK, tc(0, args="{}"), "\n", "x", fin()], "call(A X {}) thinking(a) text(\nx) tool_use"),
    ("9.7-blank-between-thoughts", [A, THINK, "\n", {"reasoning": "b"}, "\n", tc(0, args="{}"), fin()], "call(A X {}) thinking(ab) tool_use"),
    ("9.7-thought-amid", [A, tc(0, args='{"a"'), THINK, tc(0, args=":1}"), fin()], 'call(A X {"a"|:1}) thinking(a) tool_use'),
    ("9.8-malformed", [A, tc(0, args='{"a": oops'), fin("tool_calls")], 'call(A X {"a": oops) tool_use'),
    ("9.8-not-an-object", [tc(0, "A", "X", "[1]"), fin()], "call(A X [1]) tool_use"),
    ("9.9-type-null", [tc(0, "A", "X", "{}", type=None), fin()], "call(A X {}) tool_use"),
    ("9.9-custom", [{"tool_calls": [{"index": 0, "id": "A", "type": "custom", "custom": {"name": "X", "input": 'a "b"\n'}}]}, fin()], 'call(A X {"input":"a \\"b\\"\\n|"}) tool_use'),
    ("9.9-custom-pieces", [{"tool_calls": [{"index": 0, "id": "A", "type": "custom", "custom": {"name": "X", "input": ""}}]},
                           {"tool_calls": [{"index": 0, "custom": {"input": "p}"}}]}, {"tool_calls": [{"index": 0, "custom": {"input": "q"}}]}, B, tc(1, args="{}"), fin()],
     'call(A X {"input":"p}|q|"}) call(B Y {}) tool_use'),
    ("9.9-custom-empty", [{"tool_calls": [{"index": 0, "id": "A", "type": "custom", "custom": {"name": "X"}}]}, fin()], 'call(A X {"input":"|"}) tool_use'),
    ("9.9-custom-cut-short", [{"tool_calls": [{"index": 0, "id": "A", "type": "custom", "custom": {"name": "X", "input": "p"}}]}, fin("length")], 'call(A X {"input":"p) max_tokens'),
    *((f"9.10-{finish!r}", [tc(0, "A", "X", "{}"), fin(finish)], "call(A X {}) tool_use")
      for finish in ("stop", "", None, "eos", "function_call", "tool_calls", "content_filter", "whatever")),
    ("9.10-length", [tc(0, "A", "X", "{}"), fin("length")], "call(A X {}) max_tokens"),
    ("9.10-filter-incomplete", [A, tc(0, args='{"a'), fin("content_filter")], 'call(A X {"a) refusal [None]'),
    ("9.10-filter-one-incomplete", [tc(0, "A", "X", "{}"), tc(1, "B", "Y", "{"), fin("content_filter")], "call(A X {}) call(B Y {) refusal [None]"),
    ("9.11-not-offered", [tc(0, "A", "never heard of", "{}"), fin()], "call(A never heard of {}) tool_use"),
    ("9.12-calls-as-text-stay-text", ['<tool_call>{"name":"X"}</tool_call>', fin()], 'text(<tool_call>{"name":"X"}</tool_call>) end_turn'),
    ("9.odd-elements", [{"tool_calls": [None, 5, {}, {"index": 0}, {"function": "x"}]}, {"tool_calls": "x"}, {"function_call": "x"}, "x", fin()], "text(x) end_turn"),
    ("9.odd-one-object", [{"tool_calls": {"index": 0, "id": "A", "function": {"name": "X", "arguments": "{}"}}}, fin()], "call(A X {}) tool_use"),
    ("9.odd-half-an-emoji", [A, tc(0, args='{"a":"\ud83d'), tc(0, args='\ude00"}'), fin()], 'call(A X {"a":"\ud83d|\ude00"}) tool_use'),
    # 10: worked streams that have no row above
    ("10.tool-only", [{"role": "assistant", "content": None}, A, tc(0, args='{"p":'), tc(0, args="1}"), fin("tool_calls")], 'call(A X {"p":|1}) tool_use'),
    ("10.text-and-tool", ["I look", A, tc(0, args="{}"), fin("tool_calls")], "text(I look) call(A X {}) tool_use"),
    ("10.reasoning-then-text", [{"reasoning": "a"}, {"reasoning": "b"}, "c", fin()], "thinking(a|b) text(c) end_turn"),
    ("10.reasoning-text-reasoning-tool", [{"reasoning": "a"}, "b", {"reasoning": "c"}, A, tc(0, args="{}"), fin()], "thinking(a) text(b) thinking(c) call(A X {}) tool_use"),
    ("10.reasoning-only", [{"reasoning": "a"}, fin()], "thinking(a) end_turn"),
    ("10.refusal", [{"refusal": "I can"}, {"refusal": "not"}, fin()], "text(I can|not) refusal [I cannot]"),
    ("10.content-filter", ["bad", fin("content_filter")], "text(bad) refusal [None]"),
    ("10.filter-before-text", [fin("content_filter")], "refusal [None]"),
    ("10.length", ["abc", fin("length")], "text(abc) max_tokens"),
    ("10.length-in-a-call", [tc(0, "A", "X", '{"p":"ab'), fin("length")], 'call(A X {"p":"ab) max_tokens'),
    ("10.empty", [{"role": "assistant"}, fin()], "end_turn"),
    ("10.error-first", [{"error": {"message": "slow down", "code": 429}}], "!429 rate_limit_error slow down"),
    # 11
    *((f"11.{finish}", ["x", fin(finish)], "text(x) end_turn") for finish in ("stop", "eos", "end_turn", "complete", "STOP", "tool_calls", "function_call", "what is this")),
    ("11.none", ["x"], "text(x) end_turn"),
    ("11.empty", ["x", fin("")], "text(x) end_turn"),
    *((f"11.{finish}", ["x", fin(finish)], "text(x) max_tokens") for finish in ("length", "max_tokens", "model_length", "MAX_TOKENS")),
    *((f"11.{finish}", ["x", fin(finish)], "text(x) refusal [None]") for finish in ("content_filter", "safety", "SAFETY", "RECITATION", "PROHIBITED_CONTENT")),
    *((f"11.{finish}", ["x", fin(finish)], f"text(x !502 api_error the model failed: {finish}") for finish in ("error", "abort", "MALFORMED_FUNCTION_CALL")),
    ("11.insufficient_system_resource", ["x", fin("insufficient_system_resource")], "text(x !529 overloaded_error the model failed: insufficient_system_resource"),
    ("11.error-with-object", ["x", fin("error", error={"code": 429, "message": "slow down"})], "text(x !429 rate_limit_error slow down"),
    ("11.refusal-before-calls", [{"refusal": "no", "tool_calls": tc(0, "A", "X", "{}")["tool_calls"]}, fin()], "text(no) call(A X {}) refusal [no]"),
    ("11.refusal-null", [{"content": "x", "refusal": None}, fin()], "text(x) end_turn"),
    ("11.stop-reason-not-asked-for", ["x", fin(stop_reason="END")], "text(x) end_turn"),
    ("11.stop-reason-token", ["x", fin(stop_reason=151645)], "text(x) end_turn"),
]


@pytest.mark.parametrize("items,expected", [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_rules(items, expected):
    body = list(frames(items))
    assert retell(body) == expected
    whole = b"".join(body)
    assert retell([whole]) == retell(whole[i:i + 1] for i in range(len(whole))) == expected


def slowed(item):
    """A delta as it is, with members that tell nothing: no shortcut may be taken for it."""
    if not isinstance(item, dict):
        return chunk({"content": item, "x": 1, "refusal": ""}) if isinstance(item, str) and item not in (DONE, EOF) else item
    if isinstance(item.get("choices"), list):
        choices = [{**c, "delta": slowed(c["delta"])} if isinstance(c, dict) and isinstance(c.get("delta"), dict) else c
                   for c in item["choices"]]
        return {**item, "choices": choices}
    return item if item.keys() & {"choices", "usage", "error", "object", "x_groq", "sources"} else {"x": 1, "refusal": "", **item}


@pytest.mark.parametrize("items", [row[1] for row in ROWS], ids=[row[0] for row in ROWS])
def test_shortcuts_lead_to_the_same(items):
    assert retell(frames([slowed(item) for item in items])) == retell(frames(items))


def test_every_rule_has_a_name_of_its_own():
    assert len({row[0] for row in ROWS}) == len(ROWS)


STOPS = ChatAsked(stops=["STOP", "END"])
ONE = ChatAsked(one_call=True)
HIDE = ChatAsked(hide_thinking=True)
ASKED = [
    ("9.4-only-tool", ChatAsked(only_tool="Read"), [tc(0, "A", args="{}"), fin()], "call(A Read {}) tool_use"),
    ("9.3-used-before", ChatAsked(used_ids=["A"]), [tc(0, "A", "X", "{}"), fin()], "call(A_2 X {}) tool_use"),
    ("9-names", ChatAsked(tool_names={"X_1": "X!"}), [tc(0, "A", "X_1", "{}"), fin()], "call(A X! {}) tool_use"),
    ("5.one-call", ONE, [tc(0, "A", "X", "{}"), tc(1, "B", "Y", "{}"), fin()], "call(A X {}) tool_use"),
    ("5.one-call-interleaved", ONE, [A, B, tc(1, args='{"b"'), tc(0, args='{"a"'), tc(1, args=":1}"), tc(0, args=":1}"), fin()], 'call(A X {"a"|:1}) tool_use'),
    ("5.one-call-no-index", ONE, [tc(None, "A", "X", "{}"), tc(None, "B", "Y", '{"b"'), tc(args=":1}"), fin()], "call(A X {}) tool_use"),
    ("5.one-call-text-behind", ONE, [tc(0, "A", "X", "{}"), tc(1, "B", "Y", "{"), "x", "y", fin()], "call(A X {}) text(x|y) tool_use"),
    ("5.one-call-filter", ONE, [tc(0, "A", "X", "{}"), tc(1, "B", "Y", "{"), fin("content_filter")], "call(A X {}) tool_use"),
    ("6.hide", HIDE, [{"reasoning": "a"}, {"reasoning": "b"}, "x", fin()], "thinking() text(x) end_turn"),
    ("6.hide-tags", HIDE, ["<think>a</think>x", fin()], "thinking() text(x) end_turn"),
    ("6.hide-before-call", HIDE, [THINK, tc(0, "A", "X", "{}"), THINK, fin()], "thinking() call(A X {}) thinking() tool_use"),
    ("6.hide-only", HIDE, [THINK, fin()], "thinking() end_turn"),
    ("8.think-opened", ChatAsked(think_opened=True), ["\na", "b</thi", "nk>\nx", fin()], "thinking(\na|b) text(x) end_turn"),
    ("8.think-opened-twice", ChatAsked(think_opened=True), ["<think>a</think>x", fin()], "thinking(a) text(x) end_turn"),
    ("10.stop-emulated", STOPS, ["abc STOP def", "ghi", fin("length")], "text(abc ) stop_sequence <STOP>"),
    ("10.stop-cut-anywhere", STOPS, [*"abc STOP def", EOF], "text(a|b|c| ) stop_sequence <STOP>"),
    ("10.stop-almost", STOPS, ["ab ST", "OMP", fin()], "text(ab |STOMP) end_turn"),
    ("10.stop-held-at-the-end", STOPS, ["ab EN", fin()], "text(ab |EN) end_turn"),
    ("10.stop-at-once", STOPS, ["STOP"], "stop_sequence <STOP>"),
    ("10.stop-first-one-counts", ChatAsked(stops=["bcde", "bc", "", 5]), ["abcdef"], "text(a) stop_sequence <bc>"),
    ("10.stop-not-in-thought", STOPS, [{"reasoning": "a STOP b"}, "x", fin()], "thinking(a STOP b) text(x) end_turn"),
    ("10.stop-not-in-arguments", STOPS, [tc(0, "A", "X", '{"a":"STOP"}'), fin()], 'call(A X {"a":"STOP"}) tool_use'),
    ("10.stop-cut-by-a-call", STOPS, ["x ST", tc(0, "A", "X", "{}"), "OP", fin()], "text(x |ST) call(A X {}) text(OP) tool_use"),
    ("10.stop-cut-by-a-thought", STOPS, ["x ST", THINK, "OP", fin()], "text(x |ST) thinking(a) text(OP) end_turn"),
    ("10.stop-before-a-call-in-one-delta", STOPS, [{"content": "x STOP", **tc(0, "A", "X", "{}")}, EOF], "text(x ) stop_sequence <STOP>"),
    ("10.stop-amid-a-call", STOPS, [A, tc(0, args='{"a"'), "x STOP y", tc(0, args=":1}"), fin()], 'call(A X {"a"|:1}) text(x ) tool_use'),
    ("10.stop-cut-amid-a-call", STOPS, [A, tc(0, args='{"a"'), "x ST", tc(0, args=":1}"), "OP y", fin()], 'call(A X {"a"|:1}) text(x STOP y) tool_use'),
    ("9.custom-goes-on-as-function", ChatAsked(), [tc(0, "A", type="custom", custom={"name": "X", "input": "i"}), tc(0, args='"'), tc(0, args="b"), fin()], 'call(A X {"input":"i|\\"|b|"}) tool_use'),
    ("10.blank-amid-a-call", ChatAsked(), [A, tc(0, args="{}"), " ", tc(0, args=" "), "x", fin()], "call(A X {}| ) text(x) tool_use"),
    ("10.stop-behind-a-call", STOPS, [tc(0, "A", "X", "{}"), "x STOP y", EOF], "call(A X {}) text(x ) tool_use"),
    ("10.stop-in-a-tag", STOPS, ["<think>STOP</think>x", fin()], "thinking(STOP) text(x) end_turn"),
    ("11.stop-reason", STOPS, ["x", fin(stop_reason="END")], "text(x) stop_sequence <END>"),
    ("11.matched-stop", STOPS, ["x", fin(matched_stop="END")], "text(x) stop_sequence <END>"),
    ("11.matched-token", STOPS, ["x", fin(matched_stop=2)], "text(x) end_turn"),
    ("11.matched-other", STOPS, ["x", fin(stop_reason="</s>")], "text(x) end_turn"),
    ("11.matched-with-call", STOPS, [tc(0, "A", "X", "{}"), fin(stop_reason="END")], "call(A X {}) tool_use"),
]


@pytest.mark.parametrize("asked,items,expected", [row[1:] for row in ASKED], ids=[row[0] for row in ASKED])
def test_rules_that_depend_on_the_request(asked, items, expected):
    assert retell(frames(items), asked) == expected


# --- 12: usage ------------------------------------------------------------------------------------


def told_usage(*chunks, asked=ChatAsked(input_estimate=lambda: 77)):
    body = frames(["12345678", fin(), *chunks])
    message = events_to_message(check_grammar(chunks_to_events(chat_chunks(body), EventWriter("msg_t", "m"), asked)))
    return message["usage"]


def used(*figures, **more):
    """Usage as Messages has it: input, read, written, output."""
    names = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens", "output_tokens")
    return {**dict(zip(names, figures)), **more}


def usage(prompt=20, completion=5, **more):
    return {"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": completion, **more}}


USAGE = [
    ("12.plain", [usage()], used(20, 0, 0, 5)),
    ("12.cached", [usage(1000, prompt_tokens_details={"cached_tokens": 980})], used(20, 980, 0, 5)),
    ("12.deepseek", [usage(20, prompt_cache_hit_tokens=16, prompt_cache_miss_tokens=4)], used(4, 16, 0, 5)),
    ("12.moonshot", [usage(20, cached_tokens=16)], used(4, 16, 0, 5)),
    ("12.read-and-written", [usage(100, cache_read_input_tokens=60, cache_creation_input_tokens=30)], used(10, 60, 30, 5)),
    ("12.written-in-details", [usage(100, prompt_tokens_details={"cached_tokens": 60, "cache_write_tokens": 30})], used(10, 60, 30, 5)),
    ("12.never-negative", [usage(10, cached_tokens=16)], used(0, 16, 0, 5)),
    ("12.negative", [usage(20, -3)], used(20, 0, 0, 0)),
    ("12.text-and-fractions", [usage("20", 5.9, prompt_tokens_details={"cached_tokens": "8"})], used(12, 8, 0, 5)),
    ("12.null", [usage(20, 5, prompt_tokens_details=None, completion_tokens_details=None, total_tokens=None)], used(20, 0, 0, 5)),
    ("12.odd", [usage(20, 5, prompt_tokens_details=[1], completion_tokens_details="x", total_tokens={"a": 1})], used(20, 0, 0, 5)),
    ("12.reasoning", [usage(20, 50, completion_tokens_details={"reasoning_tokens": 40}, total_tokens=70)], used(20, 0, 0, 50, output_tokens_details={"thinking_tokens": 40})),
    ("12.xai-arithmetic", [usage(20, 5, completion_tokens_details={"reasoning_tokens": 100}, total_tokens=125)], used(20, 0, 0, 105, output_tokens_details={"thinking_tokens": 100})),
    ("12.gap-not-explained", [usage(20, 5, completion_tokens_details={"reasoning_tokens": 3}, total_tokens=125)], used(20, 0, 0, 5, output_tokens_details={"thinking_tokens": 3})),
    ("12.web-search", [usage(server_tool_use={"web_search_requests": 2})], used(20, 0, 0, 5, server_tool_use={"web_search_requests": 2})),
    ("12.llama-cpp", [{**usage(237), "timings": {"cache_n": 236, "prompt_n": 1}}], used(1, 236, 0, 5)),
    ("12.priority", [{**usage(), "service_tier": "priority"}], used(20, 0, 0, 5, service_tier="priority")),
    ("12.other-tier", [{**usage(), "service_tier": "default"}], used(20, 0, 0, 5)),
    ("12.groq", [{"choices": [], "x_groq": {"id": "r", "usage": {"prompt_tokens": 20, "completion_tokens": 5}}}], used(20, 0, 0, 5)),
    ("8.usage-repeated", [usage(20, 1), usage(20, 2), usage(20, 5)], used(20, 0, 0, 5)),
    ("8.usage-largest-of-each", [usage(20, 5), usage(18, 0), usage(0, 4, cached_tokens=8)], used(12, 8, 0, 5)),
    ("8.usage-details-largest", [usage(20, 5, prompt_tokens_details={"cached_tokens": 8}), usage(20, 5, prompt_tokens_details={"cached_tokens": 0})], used(12, 8, 0, 5)),
    ("8.usage-in-parts", [{"choices": [], "usage": {"prompt_tokens": 20}}, {"choices": [], "usage": {"completion_tokens": 5}}], used(20, 0, 0, 5)),
    ("10.usage-missing", [], {"input_tokens": 77, "output_tokens": 2}),
    ("10.usage-null", [{"choices": [], "usage": None}, {"choices": [], "usage": "x"}], {"input_tokens": 77, "output_tokens": 2}),
    ("10.usage-zeros", [usage(0, 0)], {"input_tokens": 77, "output_tokens": 2}),
    ("10.usage-no-prompt", [usage(0, 7)], used(77, 0, 0, 7)),
]


@pytest.mark.parametrize("chunks,expected", [row[1:] for row in USAGE], ids=[row[0] for row in USAGE])
def test_usage(chunks, expected):
    assert told_usage(*chunks) == expected


def test_usage_in_the_chunk_with_the_finish_reason():
    final = {**fin("length"), "usage": {"prompt_tokens": 20, "completion_tokens": 5}, "service_tier": "priority"}
    assert told_usage(final) == used(20, 0, 0, 5, service_tier="priority")


# --- what is noted --------------------------------------------------------------------------------

NOTES = [
    ("8.id", ["x", fin(), usage()], {"upstream_id": "c1"}),
    ("8.id-odd", [{"choices": [], "id": "no id at all"}, {"choices": [], "id": 5}, "x", fin(), usage()], {"upstream_id": "c1"}),
    ("10.usage-missing", ["x", fin()], {"upstream_id": "c1", "usage": "estimated"}),
    ("10.reasoning-only", [THINK, fin(), usage()], {"upstream_id": "c1", "empty_answer": True}),
    ("10.empty", [fin(), usage()], {"empty_answer": True}),
    ("11.unknown", ["x", fin("tired"), usage()], {"upstream_id": "c1", "finish_reason": "tired"}),
    ("11.unknown-words", ["x", fin("what they said"), usage()], {"upstream_id": "c1", "finish_reason": "unknown"}),
    ("9.call-is-no-empty-answer", [THINK, tc(0, "A", "X", "{}"), fin(), usage()], {"upstream_id": "c1"}),
]


@pytest.mark.parametrize("items,expected", [row[1:] for row in NOTES], ids=[row[0] for row in NOTES])
def test_notes(items, expected):
    notes = {}
    retell(frames(items), ChatAsked(note=notes.__setitem__))
    assert notes == expected


def test_calls_that_were_dropped_are_noted():
    notes = {}
    asked = ChatAsked(one_call=True, note=notes.__setitem__)
    retell(frames([A, B, tc(2, "C", "Z", "{}"), fin(), usage()]), asked)
    assert notes["calls_dropped"] == 2


# --- 13: what has to come back --------------------------------------------------------------------


def detail(kind, index=0, **members):
    return {"type": f"reasoning.{kind}", "index": index, **members}


def details(*parts, **delta):
    return {"reasoning_details": list(parts), **delta}


TEXT, SIG = detail("text", text="a"), detail("text", signature="s")
ENC = detail("encrypted", 1, data="zz")
JSON_TEXT = '{"type": "reasoning.text", "index": 0, "text": null}'
JSON_SIGNED = '{"type": "reasoning.text", "index": 0, "text": null, "signature": "s"}'
JSON_ENC = '{"type": "reasoning.encrypted", "index": 1, "data": "zz"}'
CALL = tc(0, "A", "X", "{}")
GOOGLE = {"google": {"thought_signature": "ts"}}
JSON_GOOGLE = '~extra_content {"google": {"thought_signature": "ts"}}'
SIGNED_CALL = tc(0, "A", "X", "{}", extra_content=GOOGLE)

DETAILS = [
    ("13.text", [details(TEXT, reasoning="a"), details(SIG, content=""), "x", fin()], f"thinking(a)~reasoning_details [{JSON_SIGNED}] text(x) end_turn"),
    ("13.two-pieces", [details(TEXT, reasoning="a"), details(detail("text", text="b"), reasoning="b"), CALL, fin()], f"thinking(a|b)~reasoning_details [{JSON_TEXT}] call(A X {{}}) tool_use"),
    ("13.no-plain-field", [details(TEXT), "x", fin()], f"thinking(a)~reasoning_details [{JSON_TEXT}] text(x) end_turn"),
    ("13.text-and-encrypted", [details(TEXT, ENC, reasoning="a"), CALL, fin()], f"thinking(a)~reasoning_details [{JSON_TEXT}, {JSON_ENC}] call(A X {{}}) tool_use"),
    ("13.encrypted-only-call", [details(ENC), CALL, fin()], f"thinking()~reasoning_details [{JSON_ENC}] call(A X {{}}) tool_use"),
    ("13.encrypted-only-text", [details(ENC), "x", fin()], f"thinking()~reasoning_details [{JSON_ENC}] text(x) end_turn"),
    ("13.encrypted-amid-text", ["x", details(ENC), "y", CALL, fin()], f"text(x|y) thinking()~reasoning_details [{JSON_ENC}] call(A X {{}}) tool_use"),
    ("13.in-the-call's-delta", ["x", details(ENC, **CALL), fin()], f"text(x) thinking()~reasoning_details [{JSON_ENC}] call(A X {{}}) tool_use"),
    ("13.two-blocks", [details(TEXT, reasoning="a"), "x", details(detail("text", text="c"), reasoning="c"), CALL, fin()],
     f"thinking(a)~reasoning_details [{JSON_TEXT}] text(x) thinking(c)~reasoning_details [{JSON_TEXT}] call(A X {{}}) tool_use"),
    ("13.reasoning-only", [details(TEXT, reasoning="a"), fin()], f"thinking(a)~reasoning_details [{JSON_TEXT}] end_turn"),
    ("13.encrypted-before-thought", [details(ENC), details(TEXT), "x", fin()], f"thinking(a)~reasoning_details [{JSON_ENC}, {JSON_TEXT}] text(x) end_turn"),
    ("13.late-in-a-text-answer-is-dropped", ["x", details(ENC), fin()], "text(x) end_turn"),
    ("13.none", [{"reasoning": "a"}, "x", fin()], "thinking(a) text(x) end_turn"),
    ("13.odd", [details(5, None), {"reasoning_details": "x"}, "x", fin()], "text(x) end_turn"),
    ("13.extra-content-is-not-for-this-one", [SIGNED_CALL, fin()], "call(A X {}) tool_use"),
    ("13.message", [b'{"choices":[{"message":{"content":"x","reasoning":"a","reasoning_details":[{"type":"reasoning.text","index":0,"text":"a"}]},"finish_reason":"stop"}]}', EOF],
     f"thinking(a)~reasoning_details [{JSON_TEXT}] text(x) end_turn"),
]
EXTRAS = [
    ("13.extra-empty-block", [SIGNED_CALL, fin()], f"thinking(){JSON_GOOGLE} call(A X {{}}) tool_use"),
    ("13.extra-on-the-thought", [THINK, SIGNED_CALL, fin()], f"thinking(a){JSON_GOOGLE} call(A X {{}}) tool_use"),
    ("13.extra-behind-text", [THINK, "x", SIGNED_CALL, fin()], f"thinking(a) text(x) thinking(){JSON_GOOGLE} call(A X {{}}) tool_use"),
    ("13.extra-first-of-two", [SIGNED_CALL, tc(1, "B", "Y", "{}"), fin()], f"thinking(){JSON_GOOGLE} call(A X {{}}) call(B Y {{}}) tool_use"),
    ("13.extra-second-of-two", [CALL, tc(1, "B", "Y", "{}", extra_content=GOOGLE), fin()], f"call(A X {{}}) thinking(){JSON_GOOGLE} call(B Y {{}}) tool_use"),
    ("13.extra-before-the-name", [tc(0, "A", extra_content=GOOGLE), tc(0, None, "X", "{}"), fin()], f"thinking(){JSON_GOOGLE} call(A X {{}}) tool_use"),
    ("13.extra-odd", [tc(0, "A", "X", "{}", extra_content="x"), {"tool_calls": [{"extra_content": GOOGLE}]}, fin()], "call(A X {}) tool_use"),
    ("13.extra-alone-is-no-call", [{"tool_calls": [{"index": 0, "extra_content": GOOGLE}]}, "x", fin()], "text(x) end_turn"),
    ("13.details-are-not-for-this-one", [details(ENC), CALL, fin()], "call(A X {}) tool_use"),
]
CARRIED = [(*row, "reasoning_details") for row in DETAILS] + [(*row, "extra_content") for row in EXTRAS]


@pytest.mark.parametrize("items,expected,carry", [row[1:] for row in CARRIED], ids=[row[0] for row in CARRIED])
def test_what_has_to_come_back_is_in_a_signature(items, expected, carry):
    assert retell(frames(items), ChatAsked(carry=carry)) == expected


@pytest.mark.parametrize("items", [row[1] for row in CARRIED], ids=[row[0] for row in CARRIED])
def test_without_carry_there_is_no_signature(items):
    assert "~" not in retell(frames(items)) and retell(frames(items), ChatAsked(carry="")) == retell(frames(items))


LATE = [
    ("13.late-details", "reasoning_details", [CALL, details(ENC), fin()], [(["A"], "reasoning_details", [ENC])]),
    ("13.late-in-the-last-chunk", "reasoning_details", [CALL, tc(1, "A", "Y", "{}"), fin("tool_calls", details(ENC))], [(["A", "A_2"], "reasoning_details", [ENC])]),
    ("13.late-pieces-are-joined", "reasoning_details", [CALL, details(TEXT), details(SIG), fin()], [(["A"], "reasoning_details", [{**TEXT, "signature": "s"}])]),
    ("13.early-and-late", "reasoning_details", [details(TEXT), CALL, details(ENC), fin()], [(["A"], "reasoning_details", [ENC])]),
    ("13.late-extra", "extra_content", [CALL, tc(0, extra_content=GOOGLE), fin()], [(["A"], "extra_content", GOOGLE)]),
    ("13.late-extra-second", "extra_content", [SIGNED_CALL, tc(1, "B", "Y", "{}"), tc(1, extra_content=GOOGLE), fin()], [(["B"], "extra_content", GOOGLE)]),
    ("13.late-between-calls", "reasoning_details", [CALL, details(ENC), tc(1, "B", "Y", "{}"), fin()], [(["A", "B"], "reasoning_details", [ENC])]),
    ("13.text-only", "reasoning_details", ["x", details(ENC), fin()], []),
    ("13.nothing", "reasoning_details", [CALL, fin()], []),
    ("13.not-of-a-stream-that-failed", "reasoning_details", [CALL, details(ENC), EOF], []),
    ("13.not-carried", "", [CALL, details(ENC), tc(0, extra_content=GOOGLE), fin()], []),
]


@pytest.mark.parametrize("carry,items,expected", [row[1:] for row in LATE], ids=[row[0] for row in LATE])
def test_what_comes_too_late_for_a_signature_is_handed_over(carry, items, expected):
    told = []
    answer = retell(frames(items), ChatAsked(carry=carry, late=lambda *late: told.append(late)))
    assert told == expected
    assert answer.count("~") <= 1 and "~" not in answer.partition("call(")[2]


def folded(items, asked):
    events = list(check_grammar(chunks_to_events(chat_chunks(frames(items)), EventWriter("msg_t", "m"), asked)))
    return events, events_to_message(events)["content"]


@pytest.mark.parametrize("hide", [False, True])
def test_carried_details_come_back_from_the_folded_block(hide):
    """Also where the thinking text is hidden: then the carrier holds it."""
    asked = ChatAsked(carry="reasoning_details", hide_thinking=hide)
    _, [thinking, _] = folded([details(TEXT, reasoning="a"), details(SIG), "x", fin()], asked)
    assert thinking["thinking"] == ("" if hide else "a") and is_carrier(thinking["signature"])
    assert unpack_details(thinking) == [{**TEXT, "signature": "s"}]


def test_an_answer_does_not_change_what_it_is_told():
    """The same parts again make the same signature: the prefix of a conversation stays the same."""
    asked = ChatAsked(carry="reasoning_details")
    items = [details(TEXT, reasoning="a"), details(SIG), CALL, fin()]
    assert folded(items, asked) == folded(items, asked)


def test_events_have_their_names():
    events, _ = folded(["x", fin()], ChatAsked())
    for event in events:
        [frame] = FrameSplitter().feed(encode_event(event))
        assert frame.startswith(b"event: %b\ndata: " % event["type"].encode())


def test_a_late_callback_runs_before_the_client_knows_the_answer_is_whole():
    order = []
    asked = ChatAsked(carry="reasoning_details", late=lambda *late: order.append("late"))
    for event in chunks_to_events(chat_chunks(frames([CALL, details(ENC), fin()])), EventWriter("msg_t", "m"), asked):
        order.append(event["type"])
    assert order.index("late") < order.index("message_delta")
