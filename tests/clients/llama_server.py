"""Claude Code and the anthropic SDK through the proxy to llama.cpp's server, with a tiny model.

Nobody here wrote that server; the model is made on the spot (llama_model.py).
"""

from __future__ import annotations

import contextlib
import functools
import pathlib
from collections.abc import Iterator
from typing import Callable, Dict

from tests.clients import llama_model
from tests.clients.claude_runner import ClaudeRun, claude, claude_succeeded
from tests.clients.install import installed_version
from tests.clients.lab import Lab, Started, banner_url, expect, expect_equal

START = pathlib.Path(__file__).with_name("llama_start.py")
CLIENT = pathlib.Path(__file__).with_name("llama_client.py")
ROOMY, SMALL = 200_000, 512  # contexts, in tokens; two bytes of a prompt or so are one


@contextlib.contextmanager
def proxy_to_llama(lab: Lab, context: int = ROOMY) -> Iterator[Started]:
    python, folder = lab.cache.llama_python(), lab.new_folder("llama")
    llama_model.write_model(folder / "tiny.gguf")
    command = [python, "-I", START, folder / "tiny.gguf", context]
    with lab.server(command, lab.environ(), banner_url, cwd=folder) as upstream:
        settings = {"OPENAI_BASE_URL": f"{upstream.url}/v1", "OPENAI_API_KEY": "none"}
        with lab.proxy(BIG_MODEL="tiny", MAX_RETRIES="0", **settings) as proxy:
            yield proxy


def ask_claude(lab: Lab, prompt: str, context: int = ROOMY) -> ClaudeRun:
    with proxy_to_llama(lab, context) as proxy:
        return claude(lab, proxy.url, prompt)


def text(lab: Lab) -> str:
    run = ask_claude(lab, "Hello")
    claude_succeeded(run)
    expect_equal(run.text, llama_model.SAID[llama_model.TEXT], "the answer")
    return f"{server_version(lab)}, {prompt_tokens(run)} tokens of prompt"


def tool(lab: Lab) -> str:
    run = ask_claude(lab, llama_model.CALL_WORDS)
    claude_succeeded(run)
    expect_equal(run.tool_results, ["from-llama"], "the tool's result")
    expect_equal(run.text, llama_model.SAID[llama_model.RESULT], "the answer")
    return f"{server_version(lab)}, {prompt_tokens(run)} tokens of prompt"


def overflow(lab: Lab) -> str:
    """Claude Code must see that it is the prompt's length: only so it shortens a conversation."""
    run = ask_claude(lab, "Hello", SMALL)
    expect(run.result.get("is_error"), f"no error: {run.result}")
    expect("prompt is too long" in run.text.lower(), f"it said: {run.text[:300]}")
    return f"{server_version(lab)}: {run.text[:60]}"


def prompt_tokens(run: ClaudeRun) -> int:
    usage = run.result["usage"]
    return usage["input_tokens"] + usage["cache_read_input_tokens"]


def sdk(lab: Lab, name: str, context: int = ROOMY) -> str:
    """Run one function of llama_client.py."""
    python = lab.cache.sdk_python()
    with proxy_to_llama(lab, context) as proxy:
        done = lab.run([python, "-I", CLIENT, name, proxy.url], lab.environ())
    expect_equal(done.status, 0, f"exit status ({done.err[-1500:]})")
    return f"{server_version(lab)}: {done.out.strip()}"


def server_version(lab: Lab) -> str:
    return f"xllamacpp {installed_version(lab.cache.llama_python(), 'xllamacpp')}"


LLAMA_CHECKS: Dict[str, Callable[[Lab], str]] = {
    "llama-text": text,
    "llama-tool": tool,
    "llama-overflow": overflow,
    "llama-sdk-text": functools.partial(sdk, name="text"),
    "llama-sdk-think": functools.partial(sdk, name="think"),
    "llama-sdk-tools": functools.partial(sdk, name="tools"),
    "llama-sdk-forced-tool": functools.partial(sdk, name="forced_tool"),
    "llama-sdk-overflow": functools.partial(sdk, name="overflow", context=SMALL),
    "llama-sdk-errors": functools.partial(sdk, name="errors"),
}
