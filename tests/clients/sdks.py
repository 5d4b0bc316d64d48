"""The current anthropic and openai SDKs against the proxy; what they do is in sdk_client.py."""

from __future__ import annotations

import functools
import pathlib
from typing import Callable, Dict, List

from tests.clients.claude_code import playing
from tests.clients.install import installed_version
from tests.clients.lab import Lab, expect_equal
from tests.clients.upstream import Call, ChatRequest, PlayingUpstream, calls_answer, error_answer
from tests.support import HANG_UP, Step, chat_stream, delta, text_answer, usage_chunk

CLIENT = pathlib.Path(__file__).with_name("sdk_client.py")
THOUGHT = (delta(reasoning_content="Thinking "), delta(reasoning_content="first."))
USAGE = usage_chunk(
    prompt_tokens=50, completion_tokens=7, total_tokens=57, prompt_tokens_details={"cached_tokens": 20}
)
WEATHER = (
    Call("call_paris", "get_weather", {"city": "Paris"}),
    Call("call_rome", "get_weather", {"city": "R\u00f4me"}),
)


def play(chat: ChatRequest) -> List[Step]:
    """The model that a client names says what it wants to see."""
    word, _, rest = chat.model.partition("-")
    if word == "status":
        return error_answer(int(rest), f"scripted failure {rest}")
    if word == "cut":
        return chat_stream(delta(content="Half an ans"), HANG_UP)
    if word == "think":
        return chat_stream(*THOUGHT, delta(content="Then said."), delta("stop"))
    if word == "short":
        return chat_stream(delta(content="No room for m"), delta("length"))
    if word == "tools":
        results = ", ".join(f"{call_id}={text}" for call_id, text in chat.results)
        return text_answer("Results: ", results) if results else calls_answer(*WEATHER)
    return chat_stream(delta(content="Words "), delta(content="in pieces."), delta("stop"), USAGE)


def sdk_check(lab: Lab, name: str, package: str) -> str:
    """Run one function of sdk_client.py against a proxy before the scripted upstream."""
    with playing(lab, play, MODEL_MAP="alias-model=scripted-alias") as (_, proxy):
        return run_client(lab, name, package, proxy.url)


def demo_check(lab: Lab, name: str, package: str) -> str:
    with lab.proxy() as proxy:
        return run_client(lab, name, package, proxy.url)


def double_check(lab: Lab, name: str, package: str) -> str:
    """Whether the scripted upstream itself is as the openai SDK wants its server."""
    with PlayingUpstream(play) as upstream:
        return run_client(lab, name, package, upstream.url)


def run_client(lab: Lab, name: str, package: str, url: str) -> str:
    python = lab.cache.sdk_python()
    done = lab.run([python, "-I", CLIENT, name, url], lab.environ())
    expect_equal(done.status, 0, f"exit status ({done.err[-1500:]})")
    return f"{package} {installed_version(python, package)}: {done.out.strip()}"


WITH_SCRIPT = (
    "text", "stream", "stream_async", "think", "tools", "tools_whole", "errors", "errors_streaming",
    "cut", "stop_reasons", "count_tokens", "models",
)

SDK_CHECKS: Dict[str, Callable[[Lab], str]] = {
    **{
        f"anthropic-{name.replace('_', '-')}": functools.partial(
            sdk_check, name=name, package="anthropic"
        )
        for name in WITH_SCRIPT
    },
    "anthropic-demo": functools.partial(demo_check, name="demo", package="anthropic"),
    "openai-models": functools.partial(sdk_check, name="openai_models", package="openai"),
    "openai-reads-the-script": functools.partial(
        double_check, name="openai_script", package="openai"
    ),
}
