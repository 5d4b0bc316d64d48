"""Join the package into claude_api_proxy.py, the one file that is copied to a host and read there.

Text is joined, not trees, so that comments and layout survive and every Python writes the same
bytes. Imports are taken out of the modules and merged at the top. Whatever would mean one thing
joined and another apart is refused; all refusals are listed at once. Not part of the single file.
"""

from __future__ import annotations

import argparse
import ast
import builtins
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Set, Tuple

# In the order of dependence: a module imports only from those before it.
MODULES = (
    "config", "patterns", "settings", "config_load", "settings_file", "settings_text", "dotenv",
    "log", "names", "crashes", "audit_files",
    "overflow", "errors", "http1", "sse", "events", "tokens", "prompt_parts", "compression",
    "summaries",
    "dialects/dialect", "dialects/anthropic", "dialects/carriers", "dialects/chat_options",
    "dialects/chat_blocks", "dialects/chat_schemas", "dialects/chat_tools",
    "dialects/think_tags", "dialects/stop_watch",
    "dialects/chat_thinking", "dialects/chat_members", "dialects/chat_shapes",
    "dialects/chat_request", "dialects/chat_profiles", "dialects/chat_repairs",
    "dialects/chat_calls", "dialects/chat_usage", "dialects/thought_writer", "dialects/chat_frames",
    "dialects/chat_stream",
    "dialects/text_tools", "dialects/text_calls", "dialects/text_turns",
    "routing", "auth", "exchange", "rate_limits", "inflight", "slots", "late", "pool", "circuit",
    "listen_tls", "proxies", "transport",
    "limits", "reasoning_memory", "json_edit", "phi_rules", "phi", "agents", "relay", "routes",
    "keys",
    "forwards", "fallback",
    "upstreams/upstream", "upstreams/openai", "upstreams/redcap_form", "upstreams/redcap_reply",
    "upstreams/redcap", "upstreams/demo", "upstreams/anthropic",
    "wire", "asking", "answering", "metrics", "openapi", "audit",
    "otlp", "otlp_send", "otlp_export", "observers", "app", "assembly", "server",
    "explain", "checks", "serving", "redaction", "cli",
    "__main__",
)
NOT_JOINED = ("amalgamate.py", "release.py", "__init__.py")
# What these say about a module is not so of the single file.
UNSAFE = ("__file__", "__name__", "__doc__", "__package__", "__spec__", "__loader__", "globals")
MAIN_LINE = 'if __name__ == "__main__":'
IMPORTS = (ast.Import, ast.ImportFrom)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
WIDTH = 100
HEADER = '''\
#!/usr/bin/env python3
"""claude_proxy {version}: lets Claude Code and other Claude clients use other upstreams.

The whole program in one file: Python 3.9 or later, standard library only. Run it with
`python3 claude_api_proxy.py`; `--help` lists the settings. MIT licence.

This file is generated from claude_proxy/: change it there. On a host with this file alone, edit
it in place; the model maps are at the top of its first section. Sections, each under a banner:

{contents}
"""

from __future__ import annotations

import gc

gc.disable()  # as __main__ does, before anything else is imported

'''


class AmalgamateError(Exception):
    """The package cannot be joined; the message has a line for each reason: file, line, what."""


class Module(NamedTuple):
    dotted: str  # claude_proxy.dialects.dialect
    file: str  # claude_proxy/dialects/dialect.py
    lines: List[str]
    tree: ast.Module

    def at(self, node: Optional[ast.AST], text: str = "") -> str:
        return f"{self.file}:{getattr(node, 'lineno', 1)}: {text}"

    def imports(self) -> List[ast.stmt]:
        return [node for node in self.tree.body if isinstance(node, IMPORTS)]


def build(package: Path, names: Sequence[str] = MODULES) -> str:
    """The text of the single file, or AmalgamateError."""
    modules = read_modules(package, names)
    problems = [problem for module in modules for problem in module_problems(module, modules[-1])]
    problems += [*import_problems(modules, package.name), *binding_problems(modules, package.name)]
    version = re.search(r'^VERSION = "([\w.+-]+)"$', "\n".join(modules[0].lines), re.MULTILINE)
    if not version:
        problems.append(modules[0].at(None, 'no line VERSION = "..."'))
    if not version or problems:
        raise AmalgamateError("\n".join(problems))
    short = ", ".join(name.rpartition("/")[2] for name in names)
    contents = textwrap.indent(textwrap.fill(short, WIDTH - 2), "  ")
    head = HEADER.format(version=version[1], contents=contents)
    parts = [head + merged_imports(modules, package.name)]
    return "\n\n".join(parts + [section(*pair) for pair in zip(names, modules)])


def read_modules(package: Path, names: Sequence[str]) -> List[Module]:
    files = {f"{name}.py" for name in names}
    found = {path.relative_to(package).as_posix() for path in package.rglob("*.py")
             if path.name not in NOT_JOINED}
    problems = [f"{package.name}/{file}:1: is in MODULES, but not there" for file in files - found]
    problems += [f"{package.name}/{file}:1: is there, but not in MODULES" for file in found - files]
    if problems:
        raise AmalgamateError("\n".join(sorted(problems)))
    return [read_module(package, f"{package.name}/{name}") for name in names]


def read_module(package: Path, name: str) -> Module:
    text = (package.parent / f"{name}.py").read_text(encoding="utf-8")
    try:
        # Not splitlines: it also splits at form feeds, which ast does not count.
        return Module(name.replace("/", "."), f"{name}.py", text.split("\n"), ast.parse(text))
    except SyntaxError as error:
        raise AmalgamateError(f"{name}.py:{error.lineno}: {error.msg}") from None


def of_package(node: ast.AST, package: str) -> bool:
    names = [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        names = [package if node.level else node.module]
    return any(name.split(".")[0] == package for name in names)


def module_problems(module: Module, last: Module) -> Iterator[str]:
    """What cannot be taken out by whole lines, and what a module may not say."""
    body, futures = module.tree.body, []
    for node, following in zip(body, body[1:]):
        if node.end_lineno >= following.lineno:
            yield module.at(following, "two statements on a line")
    for node in module.imports():
        if any("#" in line for line in module.lines[node.lineno - 1:node.end_lineno]):
            yield module.at(node, "a comment within an import would be lost: put it above")
        if getattr(node, "module", "") == "__future__":
            futures += [alias.name for alias in node.names]
    if futures != ["annotations"]:
        yield module.at(None, "wants `from __future__ import annotations`, and no other")
    end = body[-1].lineno if module is last and body else 0
    if module is last and module.lines[end - 1] != MAIN_LINE:
        yield f"{module.file}:{end}: the last statement is not `{MAIN_LINE}`"
    for node in ast.walk(module.tree):
        if getattr(node, "id", "") in UNSAFE and node.lineno != end:
            yield module.at(node, f"{node.id} means something else in the single file")
        if isinstance(node, ast.Global):
            yield module.at(node, "global: module-level names are bound once")


def import_problems(modules: List[Module], package: str) -> Iterator[str]:
    earlier: Dict[str, Set[str]] = {}
    for module in modules:
        functions = [node for node in ast.walk(module.tree) if isinstance(node, FUNCTIONS)]
        lazy = [node for function in functions for node in ast.walk(function)]
        for node in (node for node in ast.walk(module.tree) if isinstance(node, IMPORTS)):
            top, plain = node in module.tree.body, isinstance(node, ast.Import)
            if any(alias.asname or alias.name == "*" for alias in node.names):
                yield module.at(node, "an import with `as` or `*`")
            elif not of_package(node, package):
                if not top and not (plain and node in lazy):
                    yield module.at(node, "an import that is neither at top level nor `import x`"
                                          " in a function")
            elif not top or plain or node.level:
                yield module.at(node, f"only `from {package}.x import name` at top level is joined")
            elif node.module not in earlier:
                yield module.at(node, f"{node.module} does not come before this module")
            else:
                for name in sorted({alias.name for alias in node.names} - earlier[node.module]):
                    yield module.at(node, f"{node.module} does not define {name}")
        earlier[module.dotted] = {name for name, _ in bindings(module.tree)}


def binding_problems(modules: List[Module], package: str) -> Iterator[str]:
    """Names that would meet in one namespace: each is bound once, or imported as one thing."""
    owners = {name: ("builtins", "the builtins") for name in vars(builtins)}
    for module in modules:
        bound = [(node, name, module.at(node)) for name, node in bindings(module.tree)]
        for node in module.imports():
            if not of_package(node, package):
                origin = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
                names = [alias.name if origin else alias.name.split(".")[0] for alias in node.names]
                bound += [(node, name, origin + name) for name in names]
        for node, name, origin in sorted(bound, key=lambda item: item[0].lineno):
            owner, where = owners.setdefault(name, (origin, module.at(node)))
            if owner != origin:
                yield module.at(node, f"{name} is also bound at {where.rstrip(': ')}")


def bindings(node: ast.AST) -> Iterator[Tuple[str, ast.AST]]:
    """Each name that a module binds at top level other than by an import, and where."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (*FUNCTIONS, ast.ClassDef)):
            yield child.name, child
        elif isinstance(child, ast.Name) and not isinstance(child.ctx, ast.Load):
            yield child.id, child
        elif isinstance(child, COMPREHENSIONS):
            yield from ((n.target.id, n) for n in ast.walk(child) if isinstance(n, ast.NamedExpr))
        # `name: type` without a value binds nothing.
        elif not isinstance(child, ast.Lambda) and getattr(child, "value", child) is not None:
            if isinstance(child, ast.ExceptHandler) and child.name:
                yield child.name, child
            yield from bindings(child)


def merged_imports(modules: List[Module], package: str) -> str:
    members: Dict[str, Set[str]] = {}  # of each module; "" has what is imported whole
    for node in (node for module in modules for node in module.imports()):
        if not of_package(node, package):
            origin = getattr(node, "module", "")
            members.setdefault(origin, set()).update(alias.name for alias in node.names)
    members.pop("__future__")
    lines = [f"import {name}" for name in sorted(members.pop("", ()))]
    for origin in sorted(members):
        names = ", ".join(sorted(members[origin]))
        line = f"from {origin} import {names}"
        if len(line) > WIDTH:
            names = textwrap.indent(textwrap.fill(names + ",", WIDTH - 4), "    ")
            line = f"from {origin} import (\n{names}\n)"
        lines.append(line)
    return "\n".join(lines) + "\n"


def section(name: str, module: Module) -> str:
    """A module under its banner: its docstring as a comment, then its lines less the imports."""
    docstring = (ast.get_docstring(module.tree, clean=False) or "").strip()
    body, taken = list(module.lines), module.imports()
    rule = "# " + "=" * (WIDTH - 2)
    head = [rule, f"# {name}", rule]
    if docstring:
        head += [f"# {line}".rstrip() for line in docstring.split("\n")]
        taken.insert(0, module.tree.body[0])
    for node in reversed(taken):
        end = node.end_lineno
        while end < len(body) and not body[end].strip():
            end += 1
        del body[node.lineno - 1:end]
    return "\n".join(head) + "\n\n" + "\n".join(body).strip("\n") + "\n"


def main(argv: Optional[Sequence[str]] = None, names: Sequence[str] = MODULES) -> int:
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description="Join the package into one file.")
    parser.add_argument("--check", action="store_true", help="only say whether the file is current")
    parser.add_argument("--package", type=Path, default=here)
    parser.add_argument("--output", type=Path, default=here.parent / "claude_api_proxy.py")
    options = parser.parse_args(argv)
    try:
        data = build(options.package, names).encode()
    except AmalgamateError as error:
        print(error, file=sys.stderr)
        return 1
    if not options.check:
        options.output.write_bytes(data)
        options.output.chmod(0o755)
    elif not options.output.is_file() or options.output.read_bytes() != data:
        print(f"{options.output.name} is stale: run `make single`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
