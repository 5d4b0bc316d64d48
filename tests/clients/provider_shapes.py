"""How each provider tells an answer, an error and its usage: their wire shapes, as data.

A `Shape` says one `Turn` in one provider's manner: what stands in every chunk, where reasoning,
text and calls are, how it ends, what usage is called, how a full context is worded. The figures
and ids are made up; the members, their order and their oddities are the providers' own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

from tests.clients.upstream import Call, cut
from tests.support import LAST, STREAM_HEAD, Step, chat_stream, http_chunk, json_answer

Members = Dict[str, Any]
Deltas = List[Members]


class Turn(NamedTuple):
    """What the model says in one answer. `number` counts the turns with calls from 1."""

    number: int
    thought: str
    text: str
    calls: Tuple[Call, ...] = ()


class Usage(NamedTuple):
    """A provider's usage members, and what they mean: new input, cache read, cache written, output."""

    told: Members
    counted: Tuple[int, int, int, int]


class Refusal(NamedTuple):
    """A complaint in a provider's words; the rest only as far as its errors have such members."""

    words: str
    param: Optional[str] = None
    code: Optional[str] = None
    status: int = 400


# --- reasoning ----------------------------------------------------------------------------------


def no_thought(turn: Turn) -> Deltas:
    return []


def thought_as(key: str, content: Any = None) -> Callable[[Turn], Deltas]:
    """Reasoning as a member of its own beside `content`."""

    def thought(turn: Turn) -> Deltas:
        pieces = cut(turn.thought, 3) if turn.thought else []
        return [{"content": content, key: piece} for piece in pieces]

    return thought


def thought_in_tags(turn: Turn) -> Deltas:
    """Reasoning at the head of the text, its tags cut over chunks."""
    if not turn.thought:
        return []
    return [
        {"content": piece} for piece in ("<thi", "nk>\n", turn.thought, "\n</th", "ink>", "\n\n")
    ]


def thought_as_parts(turn: Turn) -> Deltas:
    """Mistral: while it thinks, the content is a list of parts."""
    pieces = cut(turn.thought, 2) if turn.thought else []
    return [
        {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": piece}]}]}
        for piece in pieces
    ]


def thought_with_details(turn: Turn) -> Deltas:
    """OpenRouter: the reasoning, and the same in parts with whatever has to come back."""
    if turn.number == 2:
        return [{"content": "", "reasoning_details": [HIDDEN_DETAIL]}]
    if not turn.thought:
        return []
    told = [
        {"content": "", "reasoning": piece, "reasoning_details": [{**TEXT_DETAIL, "text": piece}]}
        for piece in cut(turn.thought, 3)
    ]
    signed = {**TEXT_DETAIL, "signature": SIGNATURE}
    return [*told, {"content": "", "reasoning": None, "reasoning_details": [signed]}]


TEXT_DETAIL = {"type": "reasoning.text", "format": "anthropic-claude-v1", "index": 0}
SIGNATURE = "EqQBCgYIARgCKkDoNotTouch+/=="
HIDDEN_DETAIL = {
    "type": "reasoning.encrypted",
    "data": "EroBRedactedThinking+/==",
    "id": "rs_2",
    "format": "anthropic-claude-v1",
    "index": 0,
}


def details_of(turn: Turn) -> List[Members]:
    """The reasoning details of a turn as they would have come without a stream."""
    if turn.number == 2:
        return [HIDDEN_DETAIL]
    return [{**TEXT_DETAIL, "text": turn.thought, "signature": SIGNATURE}]


# --- calls --------------------------------------------------------------------------------------


def head_of(call: Call, index: Optional[int], arguments: Optional[str], **more: Any) -> Members:
    """The part of a call that has its id and name."""
    function = {"name": call.name, **({} if arguments is None else {"arguments": arguments})}
    place = {} if index is None else {"index": index}
    return {**place, "id": call.id, "type": "function", "function": function, **more}


def arguments_of(call: Call) -> str:
    return json.dumps(call.arguments)


def rest_of(index: int, text: str, pieces: int = 3) -> Deltas:
    """Pieces of a call's arguments."""
    return [
        {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}
        for piece in cut(text, pieces)
    ]


def calls_in_turn(turn: Turn) -> Deltas:
    """OpenAI: head, pieces; the next call's head, its pieces."""
    return [delta for index, call in enumerate(turn.calls) for delta in call_in_pieces(index, call)]


def call_in_pieces(index: int, call: Call) -> Deltas:
    return [{"tool_calls": [head_of(call, index, "")]}, *rest_of(index, arguments_of(call))]


def calls_mixed(turn: Turn) -> Deltas:
    """The first delta of each call, the second of each, and so on."""
    told = [call_in_pieces(index, call) for index, call in enumerate(turn.calls)]
    return [delta for row in zip(*told) for delta in row]


def calls_headed(turn: Turn) -> Deltas:
    """vLLM: the head has no arguments at all, then they come."""
    return [
        delta
        for index, call in enumerate(turn.calls)
        for delta in (
            {"tool_calls": [head_of(call, index, None)]},
            *rest_of(index, arguments_of(call)),
        )
    ]


def calls_begun(turn: Turn) -> Deltas:
    """llama.cpp: the head brings the first characters of the arguments already."""
    return [
        delta
        for index, call in enumerate(turn.calls)
        for delta in (
            {"tool_calls": [head_of(call, index, arguments_of(call)[:2])]},
            *rest_of(index, arguments_of(call)[2:]),
        )
    ]


def calls_whole(turn: Turn) -> Deltas:
    """A whole call a chunk, with its number."""
    return [
        {"content": "", "tool_calls": [head_of(call, index, arguments_of(call))]}
        for index, call in enumerate(turn.calls)
    ]


def calls_at_once(turn: Turn) -> Deltas:
    """All calls, whole, in one chunk."""
    heads = [head_of(call, index, arguments_of(call)) for index, call in enumerate(turn.calls)]
    return [{"tool_calls": heads}] if heads else []


def calls_of_mistral(turn: Turn) -> Deltas:
    """The same, without a type."""
    heads = [
        {
            "id": call.id,
            "function": {"name": call.name, "arguments": arguments_of(call)},
            "index": n,
        }
        for n, call in enumerate(turn.calls)
    ]
    return [{"content": "", "tool_calls": heads}] if heads else []


def calls_of_gemini(turn: Turn) -> Deltas:
    """Whole calls, a chunk each: at first without a number, later all with number 0; signed."""
    index = None if turn.number == 1 else 0
    more = [{"extra_content": thought_signature(turn.number)}, *({} for _ in turn.calls[1:])]
    return [
        {"role": "assistant", "tool_calls": [head_of(call, index, arguments_of(call), **extra)]}
        for call, extra in zip(turn.calls, more)
    ]


def thought_signature(number: int) -> Members:
    """What Gemini puts on the first call of a turn."""
    return {"google": {"thought_signature": f"EjQKMgEMOdbTurn{number}+/=="}}


# --- a shape ------------------------------------------------------------------------------------


def text_deltas(turn: Turn) -> Deltas:
    return [{"content": piece} for piece in cut(turn.text, 3)] if turn.text else []


def comment(words: str) -> Step:
    """A comment between events, which keeps a connection alive."""
    return http_chunk(f": {words}\n\n".encode())


class Shape(NamedTuple):
    """How a provider tells an answer.

    `chunk` and `choice` are the members of every chunk and of its choice; `before`, `amid`
    and `after` are what else stands around and between the answer's own chunks. `usage_in` says where usage is: a chunk of its own ("chunk",
    "choice" if that has an empty choice), the chunk with the finish reason ("finish"), every one
    ("all"), or Groq's own member ("x_groq").
    """

    chunk: Members
    usage: Usage
    choice: Members = {"finish_reason": None}
    opening: Tuple[Members, ...] = ({"role": "assistant", "content": ""},)
    thought: Callable[[Turn], Deltas] = no_thought
    calls: Callable[[Turn], Deltas] = calls_in_turn
    closing: Members = {}
    finish: Tuple[str, str] = ("stop", "tool_calls")
    finish_more: Members = {}
    usage_in: str = "chunk"
    usage_more: Members = {}
    before: Tuple[Any, ...] = ()
    amid: Tuple[Any, ...] = ()
    after: Tuple[Any, ...] = ()


def told_answer(shape: Shape, turn: Turn) -> List[Step]:
    """One turn as this provider streams it."""
    deltas = [*shape.opening, *shape.thought(turn), *text_deltas(turn), *shape.calls(turn)]
    chunks = [chunk_with(shape, delta) for delta in deltas]
    chunks[2:2] = shape.amid
    chunks.append(finish_chunk(shape, shape.finish[bool(turn.calls)]))
    chunks += usage_chunks(shape)
    return chat_stream(*shape.before, *chunks, *shape.after)


def chunk_with(shape: Shape, delta: Members, **more: Any) -> Members:
    everywhere = {"usage": shape.usage.told} if shape.usage_in == "all" else {}
    choice = {"index": 0, "delta": delta, **shape.choice, **more}
    return {**shape.chunk, "choices": [choice], **everywhere}


def finish_chunk(shape: Shape, reason: str) -> Members:
    chunk = chunk_with(shape, shape.closing, finish_reason=reason, **shape.finish_more)
    if shape.usage_in == "finish":
        return {**chunk, "usage": shape.usage.told}
    if shape.usage_in == "x_groq":
        return {**chunk, "x_groq": {"id": "req_01jbd6", "usage": shape.usage.told}}
    return chunk


def usage_chunks(shape: Shape) -> List[Members]:
    if shape.usage_in == "choice":
        last = chunk_with(shape, {"role": "assistant", "content": ""})
        return [{**last, "usage": shape.usage.told, **shape.usage_more}]
    if shape.usage_in == "chunk":
        return [{**shape.chunk, "choices": [], "usage": shape.usage.told, **shape.usage_more}]
    return []


# --- usage: 20,000 tokens asked, 12,000 of them from a cache where there is one; 75 answered --------

OPENAI_USAGE = Usage(
    {
        "prompt_tokens": 20000,
        "completion_tokens": 75,
        "total_tokens": 20075,
        "prompt_tokens_details": {"cached_tokens": 12000, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 50,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    },
    (8000, 12000, 0, 75),
)
OPENROUTER_USAGE = Usage(
    {
        "prompt_tokens": 20000,
        "completion_tokens": 75,
        "total_tokens": 20075,
        "cost": 0.0123,
        "is_byok": False,
        "prompt_tokens_details": {
            "cached_tokens": 12000,
            "cache_write_tokens": 3000,
            "audio_tokens": 0,
        },
        "cost_details": {"upstream_inference_cost": None},
        "completion_tokens_details": {"reasoning_tokens": 50, "image_tokens": 0},
    },
    (5000, 12000, 3000, 75),
)
DEEPSEEK_USAGE = Usage(
    {
        "prompt_tokens": 20000,
        "completion_tokens": 75,
        "total_tokens": 20075,
        "completion_tokens_details": {"reasoning_tokens": 50},
        "prompt_cache_hit_tokens": 12032,
        "prompt_cache_miss_tokens": 7968,
    },
    (7968, 12032, 0, 75),
)
XAI_USAGE = Usage(  # its completion tokens leave the reasoning out, its total does not
    {
        "prompt_tokens": 20000,
        "completion_tokens": 25,
        "total_tokens": 20075,
        "prompt_tokens_details": {
            "text_tokens": 20000,
            "audio_tokens": 0,
            "image_tokens": 0,
            "cached_tokens": 12000,
        },
        "completion_tokens_details": {"reasoning_tokens": 50, "audio_tokens": 0},
        "num_sources_used": 0,
    },
    (8000, 12000, 0, 75),
)
GEMINI_USAGE = Usage(
    {"completion_tokens": 75, "prompt_tokens": 20000, "total_tokens": 20075}, (20000, 0, 0, 75)
)
PLAIN_USAGE = Usage(
    {"prompt_tokens": 20000, "total_tokens": 20075, "completion_tokens": 75}, (20000, 0, 0, 75)
)
GROQ_USAGE = Usage(
    {
        "queue_time": 0.04,
        "prompt_tokens": 20000,
        "prompt_time": 0.9,
        "completion_tokens": 75,
        "completion_time": 0.1,
        "total_tokens": 20075,
        "total_time": 1.0,
        "prompt_tokens_details": {"cached_tokens": 12000},
        "completion_tokens_details": {"reasoning_tokens": 50},
    },
    (8000, 12000, 0, 75),
)
VLLM_USAGE = Usage(
    {
        "prompt_tokens": 20000,
        "total_tokens": 20075,
        "completion_tokens": 75,
        "prompt_tokens_details": None,
    },
    (20000, 0, 0, 75),
)
WEBUI_USAGE = Usage(
    {
        "response_token/s": 41.5,
        "prompt_token/s": 912.3,
        "total_duration": 5043500667,
        "load_duration": 5025959,
        "prompt_eval_count": 20000,
        "prompt_tokens": 20000,
        "prompt_eval_duration": 325953000,
        "eval_count": 75,
        "completion_tokens": 75,
        "eval_duration": 4709213000,
        "approximate_total": "0h0m5s",
        "total_tokens": 20075,
        "completion_tokens_details": {"reasoning_tokens": 0, "accepted_prediction_tokens": 0},
    },
    (20000, 0, 0, 75),
)

# --- the shapes ---------------------------------------------------------------------------------


def chunk_of(identity: str, model: str, **more: Any) -> Members:
    made = {
        "id": identity,
        "object": "chat.completion.chunk",
        "created": 1760000000,
        "model": model,
    }
    return {**made, **more}


OPENAI = Shape(
    chunk_of(
        "chatcmpl-CaBcD",
        "gpt-4.1-2025-04-14",
        service_tier="default",
        system_fingerprint="fp_3502f4eb73",
        usage=None,
        obfuscation="q7",
    ),
    OPENAI_USAGE,
    choice={"logprobs": None, "finish_reason": None},
    opening=({"role": "assistant", "content": None, "refusal": None},),
    calls=calls_in_turn,
)
FILTERED = {
    name: {"filtered": False, "severity": "safe"}
    for name in ("hate", "self_harm", "sexual", "violence")
}
FILTER_HEAD = {
    "choices": [],
    "created": 0,
    "id": "",
    "model": "",
    "object": "",
    "prompt_filter_results": [{"prompt_index": 0, "content_filter_results": FILTERED}],
}
FILTER_NOTE = {
    **{name: FILTER_HEAD[name] for name in ("created", "id", "model", "object")},
    "choices": [
        {
            "index": 0,
            "finish_reason": None,
            "content_filter_results": FILTERED,
            "content_filter_offsets": {"check_offset": 44, "start_offset": 44, "end_offset": 198},
        }
    ],
}
AZURE = OPENAI._replace(
    chunk=chunk_of("chatcmpl-CaBcD", "gpt-5-mini-2025-08-07", system_fingerprint=None),
    choice={"logprobs": None, "finish_reason": None, "content_filter_results": {}},
    calls=calls_mixed,
    before=(FILTER_HEAD,),
    amid=(FILTER_NOTE,),
    after=(FILTER_NOTE,),
)
OPENROUTER = Shape(
    chunk_of("gen-1760000000-Xy", "anthropic/claude-sonnet-4.5", provider="Anthropic"),
    OPENROUTER_USAGE,
    choice={"finish_reason": None, "native_finish_reason": None, "logprobs": None},
    thought=thought_with_details,
    closing={"role": "assistant", "content": ""},
    finish_more={"native_finish_reason": "end_turn"},
    usage_in="choice",
    before=(comment("OPENROUTER PROCESSING"), comment("OPENROUTER PROCESSING")),
)
DEEPSEEK = Shape(
    chunk_of("930c60df-bf64", "deepseek-chat", system_fingerprint="fp_ffc7281d48"),
    DEEPSEEK_USAGE,
    choice={"logprobs": None, "finish_reason": None},
    closing={"content": ""},
    usage_in="finish",
    before=(http_chunk(b"\n"), comment("keep-alive")),
)
DEEPSEEK_THINKING = DEEPSEEK._replace(
    chunk=chunk_of("930c60df-bf64", "deepseek-reasoner", system_fingerprint="fp_ffc7281d48"),
    opening=({"role": "assistant", "content": None, "reasoning_content": ""},),
    thought=thought_as("reasoning_content"),
)
XAI = Shape(
    chunk_of("3d4d6b1c-8a1f", "grok-code-fast-1-0825", system_fingerprint="fp_10f00c862d"),
    XAI_USAGE,
    choice={"finish_reason": ""},
    thought=thought_as("reasoning_content", ""),
    calls=calls_at_once,
)
GEMINI = Shape(
    {
        "created": 1760000000,
        "id": "9Qv4aP",
        "model": "gemini-3-pro-preview",
        "object": "chat.completion.chunk",
    },
    GEMINI_USAGE,
    choice={},
    opening=(),
    calls=calls_of_gemini,
    closing={"role": "assistant"},
    finish=("stop", "stop"),
    usage_in="all",
)
MISTRAL = Shape(
    chunk_of("cmpl-e5cc70bb", "magistral-medium-2509"),
    PLAIN_USAGE,
    thought=thought_as_parts,
    calls=calls_of_mistral,
    closing={"content": ""},
    usage_in="finish",
)
GROQ = Shape(
    chunk_of("chatcmpl-f51b2cd2", "qwen/qwen3-32b", system_fingerprint="fp_5cf921caa2"),
    GROQ_USAGE,
    choice={"logprobs": None, "finish_reason": None},
    thought=thought_as("reasoning"),
    calls=calls_at_once,
    usage_in="x_groq",
)
TOGETHER = Shape(
    chunk_of("nz7Zg4-3NKUce", "Qwen/Qwen3-235B-A22B-Thinking-2507", usage=None),
    PLAIN_USAGE,
    choice={"text": "", "logprobs": None, "finish_reason": None, "seed": None},
    opening=({"token_id": 785, "role": "assistant", "content": "", "tool_calls": None},),
    thought=thought_in_tags,
    finish=("eos", "tool_calls"),
    usage_in="finish",
)
VLLM = Shape(
    chunk_of("chatcmpl-8d1e", "Qwen/Qwen3-Coder-30B-A3B-Instruct"),
    VLLM_USAGE,
    choice={"logprobs": None, "finish_reason": None, "token_ids": None},
    thought=thought_as("reasoning"),
    calls=calls_headed,
    closing={"content": ""},
    finish_more={"stop_reason": None},
)
LLAMACPP = Shape(
    chunk_of("chatcmpl-Zt3aQ", "gpt-oss-20b-mxfp4.gguf", system_fingerprint="b6500-2572f32a"),
    PLAIN_USAGE._replace(counted=(8000, 12000, 0, 75)),
    opening=({"role": "assistant", "content": None},),
    thought=thought_as("reasoning_content"),
    calls=calls_begun,
    usage_more={
        "timings": {"cache_n": 12000, "prompt_n": 8000, "prompt_ms": 923.1, "predicted_n": 75}
    },
)
OLLAMA = Shape(
    chunk_of("chatcmpl-423", "qwen3:14b", system_fingerprint="fp_ollama"),
    PLAIN_USAGE,
    opening=(),
    thought=thought_as("reasoning", ""),
    calls=calls_whole,
    closing={"role": "assistant", "content": ""},
)
LMSTUDIO = Shape(
    chunk_of("chatcmpl-s9x1", "qwen3-30b-a3b", system_fingerprint="qwen3-30b-a3b"),
    PLAIN_USAGE,
    choice={"logprobs": None, "finish_reason": None},
    opening=(),
    thought=thought_as("reasoning_content", ""),
)
OPENWEBUI = Shape(
    chunk_of("qwen3:14b-b0a6d3f2", "qwen3:14b"),
    WEBUI_USAGE,
    choice={"logprobs": None, "finish_reason": None},
    opening=(),
    thought=thought_as("reasoning_content", ""),
    calls=calls_at_once,
    usage_in="finish",
    before=(
        {"selected_model_id": "qwen3:14b"},
        {"sources": [{"source": {"name": "notes"}, "document": ["a"]}]},
    ),
)

# --- errors -------------------------------------------------------------------------------------


def openai_error(refusal: Refusal) -> List[Step]:
    inner = {
        "message": refusal.words,
        "type": "invalid_request_error",
        "param": refusal.param,
        "code": refusal.code,
    }
    return json_answer(refusal.status, {"error": inner})


def openrouter_error(refusal: Refusal) -> List[Step]:
    """What the model's provider says, as a string in OpenRouter's own error."""
    inner = {"type": "invalid_request_error", "message": refusal.words}
    raw = json.dumps({"type": "error", "error": inner})
    metadata = {"raw": raw, "provider_name": "Anthropic"}
    error = {"message": "Provider returned error", "code": refusal.status, "metadata": metadata}
    return json_answer(refusal.status, {"error": error, "user_id": "user_2abc"})


def openrouter_own_error(refusal: Refusal) -> List[Step]:
    error = {"message": refusal.words, "code": refusal.status, "metadata": {"provider_name": None}}
    return json_answer(refusal.status, {"error": error, "user_id": "user_2abc"})


def xai_error(refusal: Refusal) -> List[Step]:
    code = "Client specified an invalid argument"
    return json_answer(refusal.status, {"code": code, "error": refusal.words})


def gemini_error(refusal: Refusal) -> List[Step]:
    error = {"code": refusal.status, "message": refusal.words, "status": "INVALID_ARGUMENT"}
    return json_answer(refusal.status, [{"error": error}])


def mistral_error(refusal: Refusal) -> List[Step]:
    """A broken schema has FastAPI's shape and status, a broken rule Mistral's own."""
    if refusal.status == 422:
        place = [*(refusal.param or "").split(".")]
        detail = [{"type": "extra_forbidden", "loc": place, "msg": refusal.words, "input": None}]
        return json_answer(
            422,
            {
                "object": "error",
                "message": {"detail": detail},
                "type": "invalid_request_error",
                "param": None,
                "code": None,
            },
        )
    kind = "invalid_function_call" if refusal.code == "3280" else "invalid_request_error"
    return json_answer(
        refusal.status,
        {
            "object": "error",
            "message": refusal.words,
            "type": kind,
            "param": None,
            "code": refusal.code,
        },
    )


def groq_error(refusal: Refusal) -> List[Step]:
    more = {
        name: value
        for name, value in refusal._asdict().items()
        if name in ("param", "code") and value is not None
    }
    error = {"message": refusal.words, "type": "invalid_request_error", **more}
    return json_answer(refusal.status, {"error": error})


def together_error(refusal: Refusal) -> List[Step]:
    error = {"message": refusal.words, "type": "invalid_request_error", "param": None, "code": None}
    return json_answer(refusal.status, {"id": "nz7Zg4-3NKUce", "error": error})


def vllm_error(refusal: Refusal) -> List[Step]:
    error = {
        "message": refusal.words,
        "type": "BadRequestError",
        "param": refusal.param,
        "code": refusal.status,
    }
    return json_answer(refusal.status, {"error": error})


def llamacpp_error(refusal: Refusal) -> List[Step]:
    error = {"code": refusal.status, "message": refusal.words, "type": "invalid_request_error"}
    return json_answer(refusal.status, {"error": error})


def llamacpp_overflow(refusal: Refusal) -> List[Step]:
    error = {
        "code": 400,
        "message": refusal.words,
        "type": "exceed_context_size_error",
        "n_prompt_tokens": 41500,
        "n_ctx": 40960,
    }
    return json_answer(400, {"error": error})


def lmstudio_error(refusal: Refusal) -> List[Step]:
    return json_answer(refusal.status, {"error": refusal.words})


def lmstudio_late_error(refusal: Refusal) -> List[Step]:
    """Where a stream was asked for, it has begun, with status 200, when the error comes."""
    error = json.dumps({"error": {"message": refusal.words}, "message": refusal.words})
    return [STREAM_HEAD, http_chunk(f"event: error\ndata: {error}\n\n".encode()), LAST]


def webui_error(refusal: Refusal) -> List[Step]:
    return json_answer(refusal.status, {"detail": refusal.words})


def walk(value: Any, place: str = "") -> Iterable[Tuple[str, Any]]:
    """(place, value) of everything in some JSON, the outermost first."""
    yield place, value
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, member in inner:
        yield from walk(member, f"{place}.{key}" if place else str(key))


THOUGHTS = {1: "First I look around, step by step.", 2: "Now three things at once."}
