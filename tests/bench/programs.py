"""The two C programs, compiled when they are needed, in a folder outside the repository."""

from __future__ import annotations

import hashlib
import os
import pathlib
import shutil
import subprocess
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
COMPILE_SECONDS = 60


class NotPossible(Exception):
    """What is asked for cannot be done here; the text says why, and what would help."""


def cache_folder() -> pathlib.Path:
    """A folder that is ours alone: what lies there is run."""
    base = os.environ.get("XDG_CACHE_HOME") or tempfile.gettempdir()
    folder = pathlib.Path(base) / f"claude-proxy-bench-{os.getuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise NotPossible(f"{folder} belongs to somebody else")
    return folder.resolve()


def compiler() -> str:
    found = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not found:
        raise NotPossible("there is no C compiler (cc); on Debian: apt-get install gcc libc6-dev")
    return found


def compiled(name: str) -> pathlib.Path:
    """The program made of NAME.c, which is compiled again when its source has changed."""
    source = HERE / f"{name}.c"
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:16]
    program = cache_folder() / f"{name}-{digest}"
    if not program.exists():
        unfinished = program.with_name(f"new-{name}-{os.getpid()}")
        command = [compiler(), "-O2", "-o", str(unfinished), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_SECONDS, check=False)
        if done.returncode:
            raise NotPossible(f"{source.name} cannot be compiled (it needs Linux): {done.stderr.strip()[-500:]}")
        for old in program.parent.glob(f"{name}-*"):
            old.unlink()
        unfinished.replace(program)
    return program
