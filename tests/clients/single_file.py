"""The single file, copied alone into an empty folder and started with nothing set."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Callable, Dict

from tests.clients.claude_runner import claude, claude_environ, claude_succeeded
from tests.clients.lab import Lab, Skipped, Started, banner_url, expect, expect_equal
from tests.support import SINGLE_FILE

PYTHON_VERSIONS = ("3.9", "3.13")


def find_python(version: str) -> str:
    """An interpreter of this version: from PATH, from pyenv, or the one that runs this."""
    installed = sorted(pathlib.Path.home().glob(f".pyenv/versions/{version}.*/bin/python3"))
    for program in (shutil.which(f"python{version}"), *map(str, reversed(installed))):
        if program and python_version(program).startswith(f"{version}."):
            return program
    return sys.executable


def python_version(program: str) -> str:
    command = [program, "-c", "import platform; print(platform.python_version())"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.check_output(
            command, text=True, timeout=10, stderr=subprocess.DEVNULL
        ).strip()
    return ""


def contents(folder: pathlib.Path) -> Dict[str, str]:
    """Every path below a folder, with its SHA-256 if it is a file."""
    return {
        str(path.relative_to(folder)): (
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        )
        for path in sorted(folder.rglob("*"))
    }


@contextlib.contextmanager
def single_file(lab: Lab, python: str) -> Iterator[Started]:
    """The file, running; afterwards nothing may have been written in its folder, HOME or TMPDIR."""
    if not SINGLE_FILE.exists():
        raise Skipped(f"{SINGLE_FILE.name} has not been made")
    folder = lab.new_folder("alone")
    shutil.copy(SINGLE_FILE, folder)
    environ = lab.environ(LISTEN_PORT="0")
    own = [folder, pathlib.Path(environ["HOME"]), pathlib.Path(environ["TMPDIR"])]
    before = [contents(path) for path in own]
    command = [python, "-I", "-S", SINGLE_FILE.name]
    with lab.server(command, environ, banner_url, cwd=folder) as started:
        yield started
        expect_equal([contents(path) for path in own], before, "files while it ran")
    expect_equal([contents(path) for path in own], before, "files afterwards")


def text(lab: Lab, version: str) -> str:
    python = find_python(version)
    with single_file(lab, python) as proxy:
        command = [lab.cache.claude(), "-p", "Hello", "--output-format", "json"]
        done = lab.run(command, claude_environ(lab, proxy.url), cwd=lab.new_folder("work"))
    expect_equal(done.status, 0, f"exit status ({done.out[-500:]} {done.err[-500:]})")
    result = done.json_lines()[-1]
    expect("built-in demo" in result["result"], f"no demo text in {result['result']!r}")
    tokens = re.search(r"about (\d+) input tokens", result["result"])
    expect_equal(result["usage"]["input_tokens"], int(tokens.group(1)), "input tokens")
    return f"Python {python_version(python)}"


def tool(lab: Lab, version: str) -> str:
    python = find_python(version)
    prompt = 'Please.\ndemo: tool Bash {"command": "echo from-the-demo"}'
    with single_file(lab, python) as proxy:
        run = claude(lab, proxy.url, prompt)
    claude_succeeded(run)
    expect_equal(run.tool_results, ["from-the-demo"], "tool results")
    expect("1 tool result(s)" in run.text, f"no end of the conversation in {run.text!r}")
    return f"Python {python_version(python)}"


SINGLE_FILE_CHECKS: Dict[str, Callable[[Lab], str]] = {
    f"single-{version}-{name}": functools.partial(check, version=version)
    for version in PYTHON_VERSIONS
    for name, check in (("text", text), ("tool", tool))
}
