"""The upstream that is there when none is configured: deterministic, and nothing leaves the host.

It answers with what arrived and how to configure a real upstream. Lines of the last user text that
begin with `demo:` are carried out in order, so that a user can try tools, thinking, waiting and
failing before any credential exists:

    demo: text WORDS            say them
    demo: think                 reason first
    demo: tool NAME {json}      call a tool; several lines make parallel calls
    demo: slow SECONDS          be silent for a while
    demo: error STATUS          fail with this HTTP status
    demo: cut                   break off in mid-answer
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Callable, Dict, List, Tuple

from claude_proxy.errors import ProxyError
from claude_proxy.events import CUT_SHORT, Event, EventWriter, Request
from claude_proxy.exchange import Exchange
from claude_proxy.patterns import LazyPattern
from claude_proxy.tokens import count_input_tokens

DEMO_LINE = LazyPattern(r"(?m)^[ \t]*demo:[ \t]*(\w+)[ \t]*(.*?)[ \t]*$")
LONGEST_DEMO_WAIT = 3600.0
DEMO_THOUGHT = "The user would like to see what thinking looks like. This is what it looks like."
DEMO_HELP = """\
This is claude_proxy's built-in demo; no model is connected yet, and nothing left this machine.

What arrived: model {model}, {messages} message(s), {tools} tool(s), about {tokens} input tokens.

To connect a real model, set these where the proxy starts (or in .env beside it) and restart it:
  OPENAI_API_KEY=...        any OpenAI-compatible provider
  OPENAI_BASE_URL=...       for example https://api.openai.com/v1 or http://localhost:11434/v1
  BIG_MODEL=... SMALL_MODEL=...
or, for REDCap SecureChatAI:
  REDCAP_API_URL=...        for example https://redcap.example.edu/api/

To try tools now, send a line like:  demo: tool Bash {{"command": "date"}}
Others: demo: think, demo: slow 20, demo: error 429, demo: cut"""


class DemoUpstream:
    """Answers without a model."""

    name = "demo"
    native_tools = True

    def describe(self) -> str:
        return "built-in demo, no network"

    def probe(self, exchange: Exchange) -> Dict[str, Any]:
        return {}

    def stream(self, request: Request, exchange: Exchange) -> Iterator[Event]:
        tokens = count_input_tokens(request)
        write = EventWriter(exchange.message_id, exchange.model, demo_usage(tokens, 1))
        told: List[str] = []
        calls = False
        for step, argument in demo_script(request):
            for event in step(write, argument, exchange):
                told.append(delta_text(event))
                calls = calls or (event.get("content_block") or {}).get("type") == "tool_use"
                yield event
        spoken = len("".join(told))
        if not write.started or not spoken:
            text = demo_answer(request, exchange.model, tokens)
            spoken = len(text)
            for piece in demo_words(text):
                yield from write.text(piece)
        yield from write.finish(
            "tool_use" if calls else "end_turn", demo_usage(tokens, spoken // 4 + 1)
        )


def demo_usage(input_tokens: int, output_tokens: int) -> Dict[str, Any]:
    return {"input_tokens": input_tokens, "output_tokens": output_tokens}


def delta_text(event: Event) -> str:
    """What an event adds to the answer, for counting it; thoughts alone are no answer."""
    delta = event.get("delta") or {}
    block = event.get("content_block") or {}
    return delta.get("text") or delta.get("partial_json") or block.get("name") or ""


def demo_words(text: str) -> List[str]:
    """The text in pieces of a word each, as a model would tell it."""
    return re.findall(r"\S+\s*|\s+", text)


def last_user_blocks(request: Request) -> List[Dict[str, Any]]:
    """The blocks of the last user message; messages of other roles may stand behind it."""
    users = [m for m in request["messages"] if isinstance(m, dict) and m.get("role") == "user"]
    content = users[-1].get("content") if users else None
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [b for b in content if isinstance(b, dict)] if isinstance(content, list) else []


def demo_script(request: Request) -> List[Tuple[DemoStep, str]]:
    """The (step, argument) pairs that the last user text asks for; unknown words are text."""
    texts = [str(b.get("text") or "") for b in last_user_blocks(request) if b.get("type") == "text"]
    lines = DEMO_LINE.findall("\n".join(texts))
    # A client's side calls (titles, summaries) quote the user's text but offer no tools.
    usable = DEMO_STEPS if request.get("tools") else {**DEMO_STEPS, "tool": demo_text}
    return [(usable[word], argument) for word, argument in lines if word in usable]


def demo_answer(request: Request, model: str, tokens: int) -> str:
    """After a tool has answered, say what came back; else introduce the proxy."""
    results = [b for b in last_user_blocks(request) if b.get("type") == "tool_result"]
    if results:
        sizes = ", ".join(str(len(json.dumps(block.get("content", "")))) for block in results)
        return f"The demo received {len(results)} tool result(s) of {sizes} bytes. All done."
    tools = request.get("tools")
    return DEMO_HELP.format(
        model=model or "(none)",
        messages=len(request["messages"]),
        tools=len(tools) if isinstance(tools, list) else 0,
        tokens=tokens,
    )


# --- the steps ----------------------------------------------------------------------------------


def demo_text(write: EventWriter, argument: str, exchange: Exchange) -> Iterator[Event]:
    for piece in demo_words(argument):
        yield from write.text(piece)


def demo_think(write: EventWriter, argument: str, exchange: Exchange) -> Iterator[Event]:
    for piece in demo_words(argument or DEMO_THOUGHT):
        yield from write.thinking(piece)


def demo_tool(write: EventWriter, argument: str, exchange: Exchange) -> Iterator[Event]:
    """Call the named tool with the JSON object behind the name, in a few pieces."""
    name, _, arguments = argument.partition(" ")
    if not name:
        raise ProxyError(400, "demo: tool NAME {json} wants the name of a tool")
    yield from write.tool_use(f"toolu_demo_{exchange.id[4:]}_{write.blocks_begun}", name)
    text = arguments.strip() or "{}"
    for start in range(0, len(text), 16):
        yield from write.input_json(text[start : start + 16])


def demo_slow(write: EventWriter, argument: str, exchange: Exchange) -> Iterator[Event]:
    """Be silent, as a slow upstream is; the client is kept waiting by pings."""
    try:
        seconds = float(argument or "1")
    except ValueError:
        raise ProxyError(400, "demo: slow SECONDS wants a number") from None
    exchange.sleep(min(max(seconds, 0.0), LONGEST_DEMO_WAIT))
    return iter(())


def demo_error(write: EventWriter, argument: str, exchange: Exchange) -> Iterator[Event]:
    status = int(argument) if re.fullmatch("[45][0-9]{2}", argument) else 500
    raise ProxyError(status, f"the demo was asked to fail with status {status}")


def demo_cut(write: EventWriter, argument: str, exchange: Exchange) -> Iterator[Event]:
    yield from write.text("This answer breaks off in the mid")
    raise ProxyError(502, CUT_SHORT)


DemoStep = Callable[[EventWriter, str, Exchange], Iterator[Event]]

DEMO_STEPS: Dict[str, DemoStep] = {
    "text": demo_text,
    "think": demo_think,
    "tool": demo_tool,
    "slow": demo_slow,
    "error": demo_error,
    "cut": demo_cut,
}
