"""What the source may not contain, found by walking its trees. Each rule is shown to work."""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
import subprocess
import sys
import sysconfig

import pytest

from tests.support import ROOT

MAX_FUNCTION, MAX_MODULE = 45, 500
PACKAGE = ROOT / "claude_proxy"
SOURCES = {path.relative_to(PACKAGE).as_posix(): path.read_text(encoding="utf-8")
           for path in sorted(PACKAGE.rglob("*.py"))}
PRINTING = ("cli.py", "checks.py", "amalgamate.py", "__main__.py")
ENVIRONMENT = ("cli.py", "config.py")
# What SECURITY.md says of files and processes rests on these two: change them together.
WRITING = ("audit_files.py", "amalgamate.py", "release.py")
STARTING = ()
FORBIDDEN_MODULES = {"random", "pickle", "marshal", "shelve", "ctypes", "importlib", "imp", "runpy"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_MEMBERS = {"os.system", "os.popen", "hashlib.md5", "hashlib.sha1", "subprocess.getoutput"}


def is_standard(module: str) -> bool:
    names = getattr(sys, "stdlib_module_names", None)  # new in Python 3.10
    if names is not None:
        return module in names
    spec = importlib.util.find_spec(module)
    origin = spec.origin or "" if spec else ""
    library = sysconfig.get_paths()["stdlib"]
    return origin in ("built-in", "frozen") or (
        origin.startswith(library) and "site-packages" not in origin)


def imported(node: ast.AST) -> list:
    """Dotted names that an import statement brings in: modules, and members with their module."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def dotted(node: ast.AST) -> str:
    """`os.environ` for the expression os.environ, else nothing."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return f"{node.value.id}.{node.attr}"
    return ""


def not_standard(node: ast.AST, file: str) -> bool:
    tops = {name.split(".")[0] for name in imported(node)}
    return any(top != "claude_proxy" and not is_standard(top) for top in tops)


def forbidden_module(node: ast.AST, file: str) -> bool:
    return any(name.split(".")[0] in FORBIDDEN_MODULES for name in imported(node))


def forbidden_member(node: ast.AST, file: str) -> bool:
    return bool(FORBIDDEN_MEMBERS & {dotted(node), *imported(node)})


def runs_text(node: ast.AST, file: str) -> bool:
    return isinstance(node, ast.Name) and node.id in FORBIDDEN_CALLS


def weak_hash_by_name(node: ast.AST, file: str) -> bool:
    return (isinstance(node, ast.Call) and dotted(node.func) == "hashlib.new"
            and getattr(node.args[0], "value", "") not in ("sha256", "sha512"))


def shell(node: ast.AST, file: str) -> bool:
    return isinstance(node, ast.keyword) and node.arg == "shell" and (
        getattr(node.value, "value", True) is not False)


def prints(node: ast.AST, file: str) -> bool:
    return file not in PRINTING and isinstance(node, ast.Name) and node.id == "print"


def reads_environment(node: ast.AST, file: str) -> bool:
    names = {dotted(node), *imported(node)}
    return file not in ENVIRONMENT and bool(names & {"os.environ", "os.getenv", "os.environb"})


def writes_files(node: ast.AST, file: str) -> bool:
    """Whatever makes, opens for writing, renames or removes a file."""
    members = {"os.open", "os.rename", "os.replace", "os.remove", "os.unlink", "os.mkdir", "os.makedirs", "os.truncate"}
    methods = {"write_text", "write_bytes", "mkdir", "touch", "rename", "unlink", "symlink_to"}
    if not isinstance(node, ast.Call) or file in WRITING:
        return False
    name = getattr(node.func, "id", "") or getattr(node.func, "attr", "")
    # `open(path, mode)`, and `path.open(mode)`.
    modes = node.args[:1] if isinstance(node.func, ast.Attribute) else node.args[1:2]
    modes = [*modes, *(keyword.value for keyword in node.keywords if keyword.arg == "mode")]
    changing = any(not isinstance(mode, ast.Constant) or set("wax+") & set(str(mode.value)) for mode in modes)
    return dotted(node.func) in members or name in methods or name == "open" and changing


def starts_processes(node: ast.AST, file: str) -> bool:
    names = {dotted(node), *imported(node)} - {""} if file not in STARTING else set()
    return any(re.match(r"(subprocess|multiprocessing|pty)\b|os\.(fork|exec|spawn|posix_spawn|startfile)", name) for name in names)


def swallows(node: ast.AST, file: str) -> bool:
    """`except:` at all, and a broad one that only passes."""
    if not isinstance(node, ast.ExceptHandler):
        return False
    broad = isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException")
    return node.type is None or broad and all(isinstance(line, ast.Pass) for line in node.body)


def long_function(node: ast.AST, file: str) -> bool:
    is_function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    return is_function and node.end_lineno - node.lineno + 1 > MAX_FUNCTION


LONG = "def f():\n" + "    x = 1\n" * MAX_FUNCTION

# (rule, code that it must find, code that it must not find)
RULES = [
    (not_standard, ["import requests", "from yaml import load", "def f():\n    import numpy.x"],
     ["import json, http.client", "from os import path", "from claude_proxy.log import Log"]),
    (forbidden_module, ["import random", "from pickle import loads", "import ctypes.util"],
     ["import secrets", "from x.random import y"]),
    (forbidden_member,
     ["os.system('x')", "from os import popen", "hashlib.md5()", "f = hashlib.sha1"],
     ["os.path.join()", "hashlib.sha256()", "from hashlib import sha256"]),
    (runs_text, ["eval('1')", "exec(x)", "f = compile", "__import__('x')"], ["re.compile('x')"]),
    (weak_hash_by_name, ["hashlib.new('md5')", "hashlib.new(name)"], ["hashlib.new('sha256')"]),
    (shell, ["run(x, shell=True)", "run(x, shell=y)"], ["run(x)", "run(x, shell=False)"]),
    (prints, ["print('x')", "f = print"], ["log.info('print')", "x.print()"]),
    (reads_environment, ["os.environ['A']", "os.getenv('A')", "from os import environ"],
     ["environ['A']", "os.path"]),
    (writes_files,
     ["open(p, 'w')", "p.open('ab')", "open(p, mode='r+')", "open(p, m)", "os.open(p, 1)", "p.write_text(t)", "os.replace(a, b)"],
     ["open(p)", "open(p, 'rb')", "open(p, encoding='utf-8')", "p.read_text()", "os.path.join(a, b)"]),
    (starts_processes, ["import subprocess", "os.fork()", "os.execv(a, b)", "from multiprocessing import Pool"],
     ["import os", "os.getpid()", "process.exec_it()"]),
    (swallows, ["try: f()\nexcept: log()", "try: f()\nexcept Exception: pass"],
     ["try: f()\nexcept Exception: log()", "try: f()\nexcept OSError: pass"]),
    (long_function, [LONG, "async " + LONG], ["def f():\n    x = 1"]),
]
RULE_NAMES = [rule.__name__ for rule, _, _ in RULES]


@functools.cache
def nodes_of(text: str) -> list:
    return list(ast.walk(ast.parse(text)))


def findings(rule, file: str, text: str) -> list:
    nodes = [node for node in nodes_of(text) if rule(node, file)]
    return [f"{file}:{getattr(node, 'lineno', 0)} {getattr(node, 'name', '')}" for node in nodes]


@pytest.mark.parametrize("rule, sins, fine", RULES, ids=RULE_NAMES)
def test_the_rule_finds(rule, sins, fine):
    assert [text for text in sins if not findings(rule, "x.py", text)] == []
    assert [text for text in fine if findings(rule, "x.py", text)] == []


@pytest.mark.parametrize("rule", [rule for rule, _, _ in RULES], ids=RULE_NAMES)
def test_the_package_keeps_the_rule(rule):
    assert [found for file, text in SOURCES.items() for found in findings(rule, file, text)] == []


def test_no_module_is_too_long():
    sizes = {file: text.count("\n") for file, text in SOURCES.items()}
    assert {file: size for file, size in sizes.items() if size > MAX_MODULE} == {}


def test_files_speak_of_the_project_alone():
    """No path or word of the place where it was written. The pattern does not match itself."""
    pattern = re.compile(r"/w[o]rk/|\bf[a]rm\b|\bi[s]sue #", re.IGNORECASE)
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    files = [ROOT / name for name in listed.decode().split("\0") if name]
    texts = {path: path.read_bytes().decode("utf-8", "replace") for path in files if path.is_file()}
    assert texts and [str(path) for path, text in texts.items() if pattern.search(text)] == []
