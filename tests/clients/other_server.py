"""Claude Code through the proxy to LiteLLM's proxy: an upstream that nobody here wrote."""

from __future__ import annotations

import contextlib
import pathlib
import shutil
import socket
import urllib.request
from collections.abc import Iterator
from typing import Callable, Dict

from tests.clients.claude_runner import claude, claude_succeeded
from tests.clients.install import installed_version
from tests.clients.lab import Lab, Started, expect_equal

KEY = "sk-local-only"
SAID = "Words that LiteLLM said."
HANDLER = pathlib.Path(__file__).with_name("litellm_handler.py")
CONFIG = f"""\
model_list:
  - model_name: mock-text
    litellm_params: {{model: openai/mock-text, api_key: none, mock_response: "{SAID}"}}
  - model_name: one-call
    litellm_params: {{model: local/one-call}}
litellm_settings:
  custom_provider_map: [{{provider: local, custom_handler: litellm_handler.one_call}}]
general_settings: {{master_key: {KEY}}}
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def answers(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with contextlib.suppress(OSError), opener.open(f"{url}/health/liveliness", timeout=2) as answer:
        return answer.status == 200
    return False


@contextlib.contextmanager
def litellm(lab: Lab) -> Iterator[Started]:
    """LiteLLM's proxy with one model that it mocks itself and one that calls a tool."""
    program, folder, port = lab.cache.litellm(), lab.new_folder("litellm"), free_port()
    (folder / "config.yaml").write_text(CONFIG)
    shutil.copy(HANDLER, folder)
    command = [program, "--config", "config.yaml", "--host", "127.0.0.1", "--port", port]
    environ = lab.environ(LITELLM_LOCAL_MODEL_COST_MAP="True", DO_NOT_TRACK="1")
    url = f"http://127.0.0.1:{port}"
    with lab.server(command, environ, lambda out: url if answers(url) else "", cwd=folder) as server:
        yield server


@contextlib.contextmanager
def proxy_to_litellm(lab: Lab, model: str) -> Iterator[Started]:
    with litellm(lab) as upstream:
        settings = {"OPENAI_BASE_URL": f"{upstream.url}/v1", "OPENAI_API_KEY": KEY}
        with lab.proxy(BIG_MODEL=model, MAX_RETRIES="0", **settings) as proxy:
            yield proxy


def text(lab: Lab) -> str:
    with proxy_to_litellm(lab, "mock-text") as proxy:
        run = claude(lab, proxy.url, "Hello")
    claude_succeeded(run)
    expect_equal(run.text, SAID, "the answer")
    return litellm_version(lab)


def tool(lab: Lab) -> str:
    with proxy_to_litellm(lab, "one-call") as proxy:
        run = claude(lab, proxy.url, "Call the tool")
    claude_succeeded(run)
    expect_equal(run.tool_results, ["from-litellm"], "the tool's result")
    expect_equal(run.text, "The tool said from-litellm.", "the answer")
    expect_equal(run.result["usage"]["output_tokens"], 6, "output tokens of two turns")
    return litellm_version(lab)


def litellm_version(lab: Lab) -> str:
    return f"litellm {installed_version(lab.cache.litellm().with_name('python'), 'litellm')}"


OTHER_SERVER_CHECKS: Dict[str, Callable[[Lab], str]] = {
    "litellm-text": text,
    "litellm-tool": tool,
}
