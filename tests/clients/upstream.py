"""An OpenAI-compatible upstream whose answers are decided by what it is asked."""

from __future__ import annotations

import json
from typing import Any, Callable, Dict, List, NamedTuple, Tuple

from tests.support import (
    USAGE,
    ScriptedUpstream,
    Step,
    chat_stream,
    delta,
    json_answer,
    read_request,
)

MODEL = "scripted-big"


class ChatRequest:
    """A Chat Completions request, as the plays read it."""

    def __init__(self, body: Dict[str, Any]) -> None:
        self.body = body
        self.messages: List[Dict[str, Any]] = body["messages"]
        self.model: str = body["model"]

    @property
    def tool_names(self) -> List[str]:
        return [tool["function"]["name"] for tool in self.body.get("tools", [])]

    @property
    def calls(self) -> List[Dict[str, Any]]:
        """Every tool call of the conversation so far."""
        return [call for message in self.messages for call in message.get("tool_calls") or []]

    @property
    def results(self) -> List[Tuple[str, str]]:
        """(call's id, content) of every tool message, in order."""
        tools = [message for message in self.messages if message["role"] == "tool"]
        return [(message["tool_call_id"], message["content"]) for message in tools]

    @property
    def user_text(self) -> str:
        """What the user messages say."""
        users = [message["content"] for message in self.messages if message["role"] == "user"]
        return "\n".join(content if isinstance(content, str) else json.dumps(content) for content in users)


Play = Callable[[ChatRequest], List[Step]]


class PlayingUpstream(ScriptedUpstream):
    """Answers each request as its play decides; keeps requests, and the mistakes of the play."""

    def __init__(self, play: Play) -> None:
        super().__init__()
        self._decide = play
        self.mistakes: List[str] = []

    @property
    def asked(self) -> List[ChatRequest]:
        return [ChatRequest(received.json) for received in self.requests]

    def _answer_one(self, sock: Any, reader: Any) -> bool:
        received = read_request(reader)
        if received is None:
            return False
        with self._lock:
            self.requests.append(received)
        return all(self._play(sock, step) for step in self._script(received))

    def _script(self, received: Any) -> List[Step]:
        try:
            return self._decide(ChatRequest(received.json))
        except Exception as error:
            self.mistakes.append(f"{received.line}: {error!r}")
            return json_answer(500, {"error": {"message": "the play has no answer to this"}})


# --- what plays say -----------------------------------------------------------------------------


class Call(NamedTuple):
    """A tool call; `pieces` is the number of deltas that its arguments come in."""

    id: str
    name: str
    arguments: Dict[str, Any]
    pieces: int = 3


def call_deltas(index: int, call: Call) -> List[Dict[str, Any]]:
    """A call as a stream tells it: its id and name, then its arguments cut into equal pieces."""
    head = {"index": index, "id": call.id, "type": "function"}
    first = delta(tool_calls=[{**head, "function": {"name": call.name, "arguments": ""}}])
    return [first, *(piece_delta(index, piece) for piece in cut(json.dumps(call.arguments), call.pieces))]


def piece_delta(index: int, text: str) -> Dict[str, Any]:
    return delta(tool_calls=[{"index": index, "function": {"arguments": text}}])


def cut(text: str, pieces: int) -> List[str]:
    """The text in exactly so many pieces."""
    edges = [len(text) * number // pieces for number in range(pieces + 1)]
    return [text[start:end] for start, end in zip(edges, edges[1:])]


def calls_answer(*calls: Call) -> List[Step]:
    """An answer that calls tools, one after the other."""
    deltas = [step for index, call in enumerate(calls) for step in call_deltas(index, call)]
    return chat_stream(*deltas, delta("tool_calls"), USAGE)


def interleaved_answer(*calls: Call) -> List[Step]:
    """The same with the calls' deltas mixed: the first of each, the second of each, and so on."""
    told = [call_deltas(index, call) for index, call in enumerate(calls)]
    mixed = [step for row in zip(*told) for step in row]
    return chat_stream(*mixed, delta("tool_calls"), USAGE)


def error_answer(status: int, message: str, **more: Any) -> List[Step]:
    """An error as OpenAI words it."""
    return json_answer(status, {"error": {"message": message, "type": "error", **more}})
