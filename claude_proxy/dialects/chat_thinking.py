"""Thinking, both ways of a request: how much is wanted, in each provider's words; and what was
thought before, for the providers that want it back. Pure.

    thinking, output_config.effort --wanted_effort--> level --THINKING_MEMBERS--> members

The level is one of `EFFORT_LEVELS`, or None where the client leaves it open: then nothing is sent,
for "no word" and "off" are different things to most models.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Optional

from claude_proxy.dialects.carriers import is_carrier, unpack_carrier, unpack_details
from claude_proxy.dialects.chat_options import ChatOptions
from claude_proxy.events import Request

EFFORT_LEVELS = ("off", "minimal", "low", "medium", "high", "xhigh", "max")
# budget_tokens below this -> level.
BUDGET_LEVELS = ((2048, "low"), (8192, "medium"), (24_576, "high"), (float("inf"), "xhigh"))
# Words for "off" and for "whatever is usual" among a provider's levels.
OFF_WORDS = ("none", "minimal")
USUAL_WORD = "default"

Members = Dict[str, Any]


def as_dict(value: Any) -> Dict[str, Any]:
    return value if isinstance(value, dict) else {}


def wanted_effort(request: Request) -> Optional[str]:
    """The level that a request asks for; None if it leaves that open.

    `thinking.type: disabled` goes before an effort, and an effort before a budget.
    """
    thinking, output = as_dict(request.get("thinking")), as_dict(request.get("output_config"))
    if thinking.get("type") == "disabled":
        return "off"
    effort = output.get("effort")
    if effort in EFFORT_LEVELS:
        return effort
    budget = thinking_budget(request)
    return next((level for most, level in BUDGET_LEVELS if budget < most), None) if budget else None


def thinking_budget(request: Request) -> int:
    """`budget_tokens` where thinking is enabled by a budget; else 0."""
    thinking = as_dict(request.get("thinking"))
    budget = thinking.get("budget_tokens")
    enabled = thinking.get("type") == "enabled" and type(budget) is int
    return max(budget, 0) if enabled else 0


def hides_thinking(request: Request) -> bool:
    """Whether the client wants no text in its thinking blocks."""
    return as_dict(request.get("thinking")).get("display") == "omitted"


def effort_word(level: str, words: Any) -> Optional[str]:
    """The provider's word for a level: the same one, else the nearest; None if it has none.

    Off is only off: no weak level stands for it but `minimal`.
    """
    if level == "off":
        return next((word for word in OFF_WORDS if word in words), None)
    known = [word for word in words if word in EFFORT_LEVELS]
    if not known:
        return USUAL_WORD if USUAL_WORD in words else next(iter(words[-1:]), None)
    wanted = EFFORT_LEVELS.index(level)
    below = [word for word in known if EFFORT_LEVELS.index(word) <= wanted]
    return below[-1] if below else known[0]


# --- what is sent ------------------------------------------------------------------------------


def reasoning_effort(level: str, request: Request, options: ChatOptions) -> Members:
    word = effort_word(level, options.efforts)
    return {"reasoning_effort": word} if word else {}


def openrouter_reasoning(level: str, request: Request, options: ChatOptions) -> Members:
    """A budget where the client gave one; OpenRouter turns it into an effort where it has to.

    One that does not leave room for an answer is refused.
    """
    if level == "off":
        return {"reasoning": {"enabled": False}}
    budget = thinking_budget(request)
    stated = as_dict(request.get("output_config")).get("effort")
    if budget and not stated and budget < (request.get("max_tokens") or float("inf")):
        return {"reasoning": {"max_tokens": budget}}
    return {"reasoning": {"effort": effort_word(level, options.efforts)}}


def thinking_type(level: str, request: Request, options: ChatOptions) -> Members:
    return {"thinking": {"type": "disabled" if level == "off" else "enabled"}}


def deepseek_thinking(level: str, request: Request, options: ChatOptions) -> Members:
    members = thinking_type(level, request, options)
    return members if level == "off" else {**members, **reasoning_effort(level, request, options)}


def template_switch(level: str, request: Request, options: ChatOptions) -> Members:
    return {"chat_template_kwargs": {"enable_thinking": level != "off"}}


def template_thinking_switch(level: str, request: Request, options: ChatOptions) -> Members:
    """The same for the templates of DeepSeek and Kimi."""
    return {"chat_template_kwargs": {"thinking": level != "off"}}


def enable_thinking(level: str, request: Request, options: ChatOptions) -> Members:
    budget = thinking_budget(request)
    members: Members = {"enable_thinking": level != "off"}
    return {**members, "thinking_budget": budget} if budget else members


def gemini_thinking(level: str, request: Request, options: ChatOptions) -> Members:
    """Gemini keeps its thoughts to itself unless asked for them."""
    members = reasoning_effort(level, request, options)
    if level == "off" or hides_thinking(request):
        return members
    return {**members, "extra_body": {"google": {"thinking_config": {"include_thoughts": True}}}}


ThinkingMembers = Callable[[str, Request, ChatOptions], Members]

# ChatOptions.thinking -> the members that say a level.
THINKING_MEMBERS: Dict[str, ThinkingMembers] = {
    "reasoning_effort": reasoning_effort,
    "openrouter": openrouter_reasoning,
    "thinking_type": thinking_type,
    "deepseek": deepseek_thinking,
    "template": template_switch,
    "template_thinking": template_thinking_switch,
    "enable_thinking": enable_thinking,
    "gemini": gemini_thinking,
}


def thinking_members(
    request: Request, options: ChatOptions, with_tools: bool, notes: List[str]
) -> Members:
    """The members that tell this provider how much to think; {} if the client leaves it open."""
    level = wanted_effort(request)
    if with_tools and options.effort_with_tools != "any" and options.thinking:
        return tools_effort(level, options, notes)
    if level is None:
        if as_dict(request.get("output_config")).get("effort"):
            notes.append("effort=unknown")
        return {}
    if level == "off" and options.always_thinks:
        notes.append("thinking=always")
        return {}
    tell = THINKING_MEMBERS.get(options.thinking)
    members = tell(level, request, options) if tell else {}
    word = members.get("reasoning_effort", level if members else None)
    if word is None and level != "off":
        notes.append("effort=dropped")
    elif word not in (None, level) and level != "off":
        notes.append(f"effort={level}>{word}")
    return members


def tools_effort(level: Optional[str], options: ChatOptions, notes: List[str]) -> Members:
    """Models that cannot think and call tools in one request call tools."""
    if level not in (None, "off"):
        notes.append("effort=dropped")
    word = options.effort_with_tools
    return {} if word == "omit" else {"reasoning_effort": word}


# --- what comes back ---------------------------------------------------------------------------

# What stands for reasoning that is not known, where its provider insists on some.
REASONING_FILLER = " "
SKIP_SIGNATURE = {"google": {"thought_signature": "skip_thought_signature_validator"}}


def replayed_reasoning(
    blocks: List[Dict[str, Any]], in_tool_turn: bool, options: ChatOptions
) -> Members:
    """The member of an assistant message that brings its reasoning back to its provider.

    Plain reasoning belongs to messages with calls, and to the one that answers their results; a
    signature of another vendor says that the text is none of this provider's.
    """
    thoughts = [b for b in blocks if b.get("type") == "thinking"]
    if options.replay == "reasoning_details":
        details = [part for block in thoughts for part in unpack_details(block)]
        return {"reasoning_details": details} if details else {}
    if options.replay not in ("reasoning", "reasoning_content") or not in_tool_turn:
        return {}
    own = (b for b in thoughts if not b.get("signature") or is_carrier(b["signature"]))
    text = "".join(b["thinking"] for b in own if isinstance(b.get("thinking"), str))
    text = text or (REASONING_FILLER if options.replay_blank else "")
    return {options.replay: text} if text else {}


def carried_by_call(
    blocks: List[Dict[str, Any]], index: int, first: bool, options: ChatOptions
) -> Members:
    """The member of the call in `blocks[index]` that the thinking block before it carries."""
    if options.replay != "extra_content":
        return {}
    before = blocks[index - 1] if index else {}
    thinking = before.get("type") == "thinking"
    carried = unpack_carrier(before.get("signature"), "extra_content") if thinking else None
    if carried is None and first and options.replay_blank:
        carried = SKIP_SIGNATURE
    return {"extra_content": carried} if carried else {}
