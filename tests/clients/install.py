"""The clients, and a server nobody here wrote, in a throw-away folder outside the repository.

Each is made once and found again at the next run. Delete the folder to have everything made anew.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from typing import Callable, List, NamedTuple, Sequence

CLAUDE_CODE = "@anthropic-ai/claude-code"
CLAUDE_CODE_VERSION = "2.1.197"
SDKS = ("anthropic", "openai")
OTHER_SERVER = "litellm[proxy]"
LLAMA_SERVER = "xllamacpp==2026.10.11549"  # llama.cpp's server in a wheel, for Python 3.10 and newer
INSTALL_SECONDS = 600


class InstallError(Exception):
    """Something could not be installed; the text is the end of what the installer said."""


class Cache(NamedTuple):
    """Where the clients are. Nothing is installed before it is asked for."""

    folder: pathlib.Path

    def claude(self) -> pathlib.Path:
        """The real Claude Code."""
        packages = self.folder / "node_modules"
        return self._made(packages / ".bin" / "claude", self._install_claude)

    def sdk_python(self) -> pathlib.Path:
        """A Python that has the SDKs."""
        return self._made(self.folder / "venv" / "bin" / "python", lambda: self._venv("venv", SDKS))

    def litellm(self) -> pathlib.Path:
        """LiteLLM's proxy."""
        program = self.folder / "litellm-venv" / "bin" / "litellm"
        return self._made(program, lambda: self._venv("litellm-venv", [OTHER_SERVER]))

    def llama_python(self) -> pathlib.Path:
        """A Python that has llama.cpp's server."""
        program = self.folder / "llama-venv" / "bin" / "python"
        return self._made(program, lambda: self._venv("llama-venv", [LLAMA_SERVER]))

    def _made(self, program: pathlib.Path, make: Callable[[], None]) -> pathlib.Path:
        # The stamp is written last: a half-made folder is made again.
        stamp = self.folder / f"{program.relative_to(self.folder).parts[0]}-made"
        if not (stamp.exists() and program.exists()):
            make()
            stamp.touch()
        return program

    def _install_claude(self) -> None:
        if not shutil.which("npm"):
            raise InstallError("npm is not here: Claude Code needs Node.js 18 or newer")
        command = ["npm", "install", "--prefix", str(self.folder), "--ignore-scripts", "--no-audit"]
        run_installer([*command, "--no-fund", f"{CLAUDE_CODE}@{CLAUDE_CODE_VERSION}"])
        # npm runs no install scripts of packages that nobody allowed; this one unpacks the program.
        script = self.folder / "node_modules" / CLAUDE_CODE / "install.cjs"
        run_installer(["node", str(script)])

    def _venv(self, name: str, packages: Sequence[str]) -> None:
        folder = self.folder / name
        run_installer([sys.executable, "-m", "venv", "--clear", str(folder)])
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        run_installer([*pip, "--disable-pip-version-check", *packages])


def default_folder() -> pathlib.Path:
    return pathlib.Path(tempfile.gettempdir()) / f"claude-proxy-clients-{os.getuid()}"


def open_cache(folder: pathlib.Path) -> Cache:
    """The cache in a folder that is ours alone: what lies there is run."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise InstallError(f"{folder} belongs to somebody else")
    return Cache(folder.resolve())


def run_installer(command: List[str]) -> None:
    print(f"      installing: {' '.join(command)}", flush=True)
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            timeout=INSTALL_SECONDS, check=False,
        )
    except subprocess.TimeoutExpired:
        raise InstallError(f"{command[0]} took more than {INSTALL_SECONDS} s") from None
    if done.returncode:
        raise InstallError(f"{command[0]}: {done.stdout.decode(errors='replace').strip()[-300:]}")


def installed_version(python: pathlib.Path, package: str) -> str:
    """The version of a package in a venv; "?" if it cannot be told."""
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.check_output([str(python), "-c", code], timeout=30, text=True).strip()
    return "?"
