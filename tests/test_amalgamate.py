"""The builder of the single file, on toy packages; and the single file itself is current."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

from claude_proxy.amalgamate import AmalgamateError, build, main
from tests.support import ROOT, SINGLE_FILE

FUTURE = "from __future__ import annotations\n"
CONFIG = FUTURE + '\nVERSION = "1.2.3"\nWORDS = ["a"]\n'
END = 'if __name__ == "__main__":\n    print(SAID)\n'
MAIN = FUTURE + "\nfrom toy.middle import SAID\n\n" + END
MIDDLE = '''\
"""Says it.

    An indented line of the docstring.
"""

# A comment above the imports.

from __future__ import annotations

import time
import os.path
from typing import List, Any

from toy.config import (
    WORDS,
)

# A comment above a name.
SAID = "said " + WORDS[0]  # and beside it


def middle_text() -> str:
    """Has blank lines in a string."""
    return """one

import two


three"""
'''


def make_toy(folder: pathlib.Path, **changes) -> pathlib.Path:
    """A package of config, middle and __main__; a change gives a module's text, None none."""
    package = folder / "toy"
    package.mkdir()
    texts = {"__init__": "", "config": CONFIG, "middle": MIDDLE, "__main__": MAIN, **changes}
    for name, text in texts.items():
        if text is not None:
            (package / f"{name}.py").write_text(text, encoding="utf-8")
    return package


NAMES = ("config", "middle", "__main__")


def refusals(folder: pathlib.Path, **changes) -> list:
    with pytest.raises(AmalgamateError) as caught:
        build(make_toy(folder, **changes), NAMES)
    return str(caught.value).split("\n")


def run(*arguments: object, cwd: pathlib.Path) -> subprocess.CompletedProcess:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=30, check=False)


# --- what is refused ----------------------------------------------------------------------------

# (name, lines of `middle` from the second on, where, a part of the refusal)
REFUSED = [
    ("import of the package", "import toy.config", 2, "only `from toy.x import name`"),
    ("import of a module", "from toy import config", 2, "toy does not come before"),
    ("package relative", "from .config import WORDS", 2, "only `from toy.x import name`"),
    ("package nested", "def f():\n    from toy.config import WORDS", 3, "at top level"),
    ("package plain nested", "def f():\n    import toy.config", 3, "at top level"),
    ("package as", "from toy.config import WORDS as W", 2, "`as` or `*`"),
    ("package star", "from toy.config import *", 2, "`as` or `*`"),
    ("package under if", "if CHECKING:\n    from toy.config import WORDS", 3, "at top level"),
    ("not defined there", "from toy.config import OTHER", 2, "toy.config does not define OTHER"),
    ("from further down", "from toy.__main__ import X", 2, "toy.__main__ does not come before"),
    ("from itself", "from toy.middle import X", 2, "toy.middle does not come before"),
    ("stdlib as", "import json as j", 2, "`as` or `*`"),
    ("stdlib star", "from json import *", 2, "`as` or `*`"),
    ("stdlib under try", "try:\n    import json\nfinally:\n    pass", 3, "neither at top level"),
    ("stdlib in a class", "class C:\n    import json", 3, "neither at top level"),
    ("stdlib from, nested", "def f():\n    from json import loads", 3, "neither at top level"),
    ("two meanings", "import time\nfrom time import time", 3, "time is also bound at toy/mid"),
    ("two origins", "from typing import Set\nfrom ast import Set", 3, "Set is also bound at"),
    ("defined elsewhere", "WORDS = 1", 2, "WORDS is also bound at toy/config.py:4"),
    ("named like an import", "import json\ndef json(): pass", 3, "json is also bound at"),
    ("named like a builtin", "def print(): pass", 2, "print is also bound at the builtins"),
    ("rebound", "A = 1\nA = 2", 3, "A is also bound at toy/middle.py:2"),
    ("added to", "A = 1\nA += 1", 3, "A is also bound"),
    ("deleted", "A = 1\ndel A", 3, "A is also bound"),
    ("either of two", "if 1:\n    A = 1\nelse:\n    A = 2", 5, "A is also bound at toy/mid"),
    ("function again", "def f(): pass\ndef f(): pass", 3, "f is also bound"),
    ("loop", "A = 1\nfor A in (): pass", 3, "A is also bound"),
    ("with", "A = 1\nwith B as A: pass", 3, "A is also bound"),
    ("except", "A = 1\ntry: pass\nexcept OSError as A: pass", 4, "A is also bound"),
    ("walrus within", "A = 1\nB = [(A := x) for x in ()]", 3, "A is also bound"),
    ("global", "A = 1\ndef f():\n    global A", 4, "global"),
    ("__file__", "A = __file__", 2, "__file__ means something else"),
    ("__name__", "def f():\n    return __name__", 3, "__name__ means something else"),
    ("__doc__", "A = __doc__", 2, "__doc__ means something else"),
    ("globals", "A = globals()", 2, "globals means something else"),
    ("two statements", "import json; A = 1", 2, "two statements on a line"),
    ("comment on an import", "import json  # why", 2, "would be lost"),
    ("another future", "from __future__ import generator_stop", 1, "and no other"),
    ("no Python", "def f(:", 2, ""),
]


@pytest.mark.parametrize("name, text, line, expected", REFUSED, ids=[row[0] for row in REFUSED])
def test_refused(tmp_path, name, text, line, expected):
    found = refusals(tmp_path, middle=FUTURE + text + "\n", __main__=FUTURE + "\n" + END)
    assert len(found) == 1
    assert found[0].startswith(f"toy/middle.py:{line}: ") and expected in found[0]


@pytest.mark.parametrize("name, changes, expected", [
    ("no future import", {"middle": "SAID = 1\n"}, "toy/middle.py:1: wants `from __future__"),
    ("no version", {"config": FUTURE + "WORDS = 1\n"}, "toy/config.py:1: no line VERSION"),
    ("no main line", {"__main__": FUTURE + "X = 1\n"}, "toy/__main__.py:2: the last statement"),
    ("empty main", {"__main__": FUTURE}, "toy/__main__.py:1: the last statement"),
    ("early __name__", {"__main__": FUTURE + "X = __name__\n" + END}, "toy/__main__.py:2: __na"),
    ("listed, not there", {"middle": None}, "toy/middle.py:1: is in MODULES, but not there"),
    ("not listed", {"other": FUTURE}, "toy/other.py:1: is there, but not in MODULES"),
])
def test_refused_package(tmp_path, name, changes, expected):
    found = refusals(tmp_path, **changes)
    assert len(found) == 1 and found[0].startswith(expected)


def test_all_refusals_are_listed_at_once(tmp_path, capsys):
    middle = FUTURE + "A = 1\nB = __name__\n"
    make_toy(tmp_path, config=FUTURE + "A = __file__\n", middle=middle)
    arguments = ["--package", str(tmp_path / "toy"), "--output", str(tmp_path / "out.py")]
    assert main(arguments, NAMES) == 1
    places = {line.split(": ")[0] for line in capsys.readouterr().err.splitlines()}
    assert places == {f"toy/{where}" for where in (
        "config.py:1", "config.py:2", "middle.py:2", "middle.py:3", "__main__.py:3")}
    assert not (tmp_path / "out.py").exists()


@pytest.mark.parametrize("name, text", [
    ("lazy import", "def f():\n    import resource\n    return resource"),
    ("lazy import in a method", "class C:\n    def f(self):\n        import sqlite3"),
    ("name of a class", "def f(x):\n    return type(x).__name__"),
    ("declared, then bound", "A: int\nA = 1"),
    ("variable of a comprehension", "A = [x for x in ()]\nB = [x for x in ()]"),
    ("local variables", "def f():\n    VERSION = 1\ndef g():\n    VERSION = 2"),
    ("members of classes", "class C:\n    WORDS = 1"),
    ("same import as elsewhere", "import json\nimport json.decoder\nfrom json import loads"),
    ("package after code", "A = 1\nfrom toy.config import WORDS"),
])
def test_taken(tmp_path, name, text):
    package = make_toy(tmp_path, middle=FUTURE + text + "\n", __main__=FUTURE + END)
    assert build(package, NAMES).endswith(END)


# --- what is written ----------------------------------------------------------------------------


def test_the_text(tmp_path):
    text = build(make_toy(tmp_path), NAMES)
    rule = "# " + 98 * "="
    head, config, middle, end = text.split(f"\n\n\n{rule}\n")
    assert head.startswith('#!/usr/bin/env python3\n"""claude_proxy 1.2.3: ')
    assert "generated from claude_proxy/: change it there" in head
    assert "  config, middle, __main__\n" in head
    assert head.split('"""')[2] == (
        "\n\nfrom __future__ import annotations\n\n"
        "import gc\n\ngc.disable()  # as __main__ does, before anything else is imported\n\n"
        "import os.path\nimport time\nfrom typing import Any, List"
    )
    assert config == f'# config\n{rule}\n\nVERSION = "1.2.3"\nWORDS = ["a"]'
    assert middle == (
        f"# middle\n{rule}\n# Says it.\n#\n#     An indented line of the docstring.\n\n"
        "# A comment above the imports.\n\n" + MIDDLE[MIDDLE.index("# A comment above a name"):-1]
    )
    assert end == f"# __main__\n{rule}\n\n{END}"


def test_long_imports_are_wrapped(tmp_path):
    names = sorted(f"name_{number}" for number in range(30))
    text = FUTURE + "".join(f"from typing import {name}\n" for name in reversed(names))
    built = build(make_toy(tmp_path, middle=text, __main__=FUTURE + END), NAMES)
    wrapped = built[built.index("from typing import ("):].split(")")[0]
    assert wrapped.replace(",", " ").split()[4:] == names
    assert max(map(len, wrapped.split("\n"))) <= 100


def test_crlf_makes_no_difference(tmp_path):
    (tmp_path / "crlf").mkdir()
    plain = build(make_toy(tmp_path), NAMES)
    package = make_toy(tmp_path / "crlf")
    for path in package.glob("*.py"):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert build(package, NAMES) == plain


def test_joined_and_apart_say_the_same(tmp_path):
    package = make_toy(tmp_path)
    (tmp_path / "alone").mkdir()
    output = tmp_path / "alone" / "out.py"
    assert main(["--package", str(package), "--output", str(output)], NAMES) == 0
    joined = run("-I", "-S", output.name, cwd=output.parent)
    assert (joined.returncode, joined.stdout, joined.stderr) == (0, "said a\n", "")
    assert run("-m", "toy", cwd=tmp_path).stdout == joined.stdout


@pytest.mark.parametrize("name, spoil, status", [
    ("current", lambda text: text, 0),
    ("edited", lambda text: text + "#\n", 1),
    ("missing", lambda text: None, 1),
])
def test_check(tmp_path, capsys, name, spoil, status):
    package, output = make_toy(tmp_path), tmp_path / "out.py"
    text = spoil(build(package, NAMES))
    if text is not None:
        output.write_text(text, encoding="utf-8")
    arguments = ["--check", "--package", str(package), "--output", str(output)]
    assert main(arguments, NAMES) == status
    said = capsys.readouterr().err
    assert said == ("out.py is stale: run `make single`\n" if status else "")
    assert (output.read_text(encoding="utf-8") if output.exists() else None) == text


# --- the single file of this repository ---------------------------------------------------------


def test_the_single_file_is_current():
    stale = "run `make single`"
    assert SINGLE_FILE.read_bytes() == build(ROOT / "claude_proxy").encode(), stale


def test_the_single_file_runs_alone(tmp_path):
    (tmp_path / SINGLE_FILE.name).write_bytes(SINGLE_FILE.read_bytes())
    answer = run("-I", "-S", SINGLE_FILE.name, "--version", cwd=tmp_path)
    assert answer.returncode == 0 and answer.stdout.startswith("claude_proxy "), answer.stderr
    assert [path.name for path in tmp_path.iterdir()] == [SINGLE_FILE.name]
