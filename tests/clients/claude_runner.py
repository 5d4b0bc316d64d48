"""The real Claude Code in print mode, with a HOME of its own, against a proxy on this host."""

from __future__ import annotations

import json
import pathlib
from typing import Any, Dict, List, NamedTuple, Optional

from tests.clients.lab import Lab, expect_equal

ALLOWED_TOOLS = ("Bash", "Edit", "Read", "Task", "Write")

# Each of these turns off something that would go to another host.
QUIET = {
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "DISABLE_AUTOUPDATER": "1",
    "DISABLE_BUG_COMMAND": "1",
    "DISABLE_ERROR_REPORTING": "1",
    "DISABLE_TELEMETRY": "1",
}


class ClaudeRun(NamedTuple):
    """One run; `events` are the lines of its stream-json output."""

    status: int
    events: List[Dict[str, Any]]
    seconds: float
    err: str

    @property
    def result(self) -> Dict[str, Any]:
        return next((e for e in reversed(self.events) if e["type"] == "result"), {})

    @property
    def text(self) -> str:
        return self.result.get("result", "")

    @property
    def tool_results(self) -> List[Any]:
        """What the tools gave back, subagents' own tools left out."""
        return [
            block["content"]
            for event in self.events
            if event["type"] == "user" and not event.get("parent_tool_use_id")
            for block in event["message"]["content"]
            if isinstance(block, dict) and block["type"] == "tool_result"
        ]


def claude_environ(lab: Lab, url: str, **more: str) -> Dict[str, str]:
    own = {"ANTHROPIC_BASE_URL": url, "ANTHROPIC_AUTH_TOKEN": "any-text", **QUIET, **more}
    return lab.environ(**own)


def claude(
    lab: Lab,
    url: str,
    prompt: str,
    *options: str,
    cwd: Optional[pathlib.Path] = None,
    seconds: float = 60,
    **variables: str,
) -> ClaudeRun:
    """Ask Claude Code once; it may use ALLOWED_TOOLS in `cwd` without being asked back."""
    command = [
        lab.cache.claude(), "-p", prompt, "--output-format", "stream-json", "--verbose",
        "--permission-mode", "acceptEdits", "--allowedTools", ",".join(ALLOWED_TOOLS), *options,
    ]
    environ = claude_environ(lab, url, **variables)
    done = lab.run(command, environ, cwd=cwd or lab.new_folder("work"), seconds=seconds)
    return ClaudeRun(done.status, done.json_lines(), done.seconds, done.err)


def claude_succeeded(run: ClaudeRun) -> None:
    if run.status or run.result.get("is_error", True):
        said = json.dumps(run.result or run.events[-3:])[:1500]
        expect_equal(run.status, 0, f"exit status; it said {said} {run.err[-500:]}")
        raise AssertionError(f"an error in its result: {said}")
