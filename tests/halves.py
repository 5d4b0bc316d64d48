"""Run the suite in two halves at once, one for each of two cores; fails if one of them does."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time


def begin(half: int, out: object) -> subprocess.Popen:
    # A cache of its own: pytest writes there what failed last.
    command = [sys.executable, "-m", "pytest", "-o", f"cache_dir=.pytest_cache/half-{half}"]
    return subprocess.Popen(command, env={**os.environ, "TEST_HALF": str(half)}, stdout=out, stderr=subprocess.STDOUT)


def main() -> int:
    begun = time.monotonic()
    with tempfile.TemporaryFile("w+") as aside:
        second = begin(1, aside)
        first = begin(0, None)
        statuses = [first.wait(), second.wait()]
        aside.seek(0)
        text = aside.read()
    print(text, end="")
    print(f"both halves: {time.monotonic() - begun:.0f} s")
    told = re.findall(r"^\d+ passed.*$", text, re.M)
    return 0 if statuses == [0, 0] and told else 1


if __name__ == "__main__":
    sys.exit(main())
