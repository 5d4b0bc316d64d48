"""The documents say what the program says: settings, endpoints, commands."""

from __future__ import annotations

import ast
import functools
import os
import re
import shutil
import subprocess
import sys

import pytest

from claude_proxy import amalgamate
from claude_proxy.app import ENDPOINTS
from claude_proxy.cli import argument_parser
from claude_proxy.config import VERSION
from claude_proxy.settings import SETTINGS
from claude_proxy.settings_text import format_env_example, format_settings_markdown
from tests.support import ROOT, SINGLE_FILE

README = (ROOT / "README.md").read_text(encoding="utf-8")
SECURITY = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
# `file` `name`: what is defined there.
NAMED_THING = r"`(claude_proxy/[\w/]+\.py)`\s+`(\w+)`(?:, `(\w+)`)?"
SETTINGS_BEGIN, SETTINGS_END = "<!-- settings: printed by --print-settings -->\n", "<!-- end of settings -->"


def test_env_example_is_printed_from_the_table():
    assert (ROOT / ".env.example").read_text(encoding="utf-8") == format_env_example()


def test_the_readmes_table_is_printed_from_the_table():
    printed = README.split(SETTINGS_BEGIN)[1].split(SETTINGS_END)[0]
    assert printed.strip() == format_settings_markdown().strip()


@pytest.mark.parametrize("text", [README, SECURITY], ids=["readme", "security"])
def test_every_variable_that_a_document_names_exists(text):
    known = {name for setting in SETTINGS for name in (setting.name, *setting.aliases)}
    of_clients = re.compile(r"(CLAUDE_CODE|ANTHROPIC|OLLAMA|NODE)_\w+|NO_PROXY|NAME|HOST|PORT|README")
    named = set(re.findall(r"`([A-Z][A-Z0-9]*_[A-Z0-9_]+)\b", re.sub(NAMED_THING, "", text)))
    unknown = {n for n in named - known if not of_clients.fullmatch(n) and not n.startswith("CUSTOM_HEADER_")
               and n.rpartition("_FILE")[0] not in known}
    assert not unknown


def test_every_endpoint_is_in_the_readme():
    for _, path in ENDPOINTS:
        assert f"`{path}`" in README or f" {path}`" in README, path


def test_every_option_that_the_readme_names_exists():
    options = {o for action in argument_parser()._actions for o in action.option_strings}
    lines = [line for text in (README, SECURITY) for line in text.splitlines() if "claude_api_proxy.py" in line]
    assert lines and set(re.findall(r" (--[a-z-]+)", "\n".join(lines))) <= options


@pytest.mark.parametrize("target", sorted(set(re.findall(r"^make ?([a-z-]*)$", README, re.M))))
def test_every_make_target_of_the_readme_exists(target):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert not target or re.search(rf"^{target}:", makefile, re.M)


def test_the_single_file_opens_with_what_it_is():
    head = SINGLE_FILE.read_text(encoding="utf-8")[:4000]
    assert "generated from claude_proxy/: change it there" in head and VERSION in head
    assert "MODEL_ALIASES" in head, "the model maps belong on the first screens"


@functools.lru_cache(maxsize=1)
def source_texts():
    """Every string in the program, with those that stand next to each other joined as Python does."""
    tree = ast.parse(SINGLE_FILE.read_text(encoding="utf-8"))
    return [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]


QUOTED = re.findall(r'^\| "([^"|]+)"', README, re.M)


@pytest.mark.parametrize("message", QUOTED)
def test_the_messages_in_the_troubleshooting_are_those_of_the_program(message):
    assert any(message in text for text in source_texts())


# --- SECURITY.md --------------------------------------------------------------------------------------


def test_the_files_that_it_names_exist():
    named = re.findall(r"`((?:claude_proxy|tests|deploy)/[\w./-]*|Dockerfile|docker-compose\.yml)`", SECURITY)
    assert len(set(named)) > 15 and {name for name in named if not (ROOT / name).exists()} == set()


def test_what_it_says_of_the_source_is_defined_there():
    named = [(file, name) for file, *names in re.findall(NAMED_THING, SECURITY) for name in names if name]
    text = {file: (ROOT / file).read_text(encoding="utf-8") for file, _ in named}
    defined = {(file, name) for file, name in named if re.search(rf"^(?:(?:def|class) {name}\b|{name}\b.* =)", text[file], re.M)}
    assert len(named) > 15 and set(named) - defined == set()


@pytest.mark.parametrize("word", ["ssl_verify_off", "audit_begins", "audit_ends"])
def test_the_events_that_it_names_are_logged(word):
    assert f"`{word}`" in SECURITY and word in source_texts()


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of what the commands need, with a current single file, and `python3` is the one that runs this."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("claude_proxy", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("LICENSE", "Makefile"):
        shutil.copy(ROOT / name, folder)
    assert amalgamate.main(["--output", str(folder / SINGLE_FILE.name)]) == 0
    program = folder / "bin" / "python3"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    program.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def said(checkout):
    """What the page's blocks of commands say when they are run as they stand, one after the other."""
    if not (shutil.which("make") and shutil.which("sha256sum")):
        pytest.skip("make or sha256sum is not here")
    environ, told = {"PATH": f"{checkout / 'bin'}:{os.environ['PATH']}"}, []
    for block in re.findall(r"^```sh\n(.*?)^```$", SECURITY, re.S | re.M):
        done = subprocess.run(["sh", "-ec", block], cwd=checkout, env=environ, capture_output=True, text=True, timeout=90)
        assert done.returncode == 0, (block, done.stdout[-800:], done.stderr[-800:])
        told.append(done.stdout + done.stderr)
    return told


def test_its_commands_run_and_say_what_it_says(said):
    first, second = said
    assert "sbom.cdx.json: OK" in first and "import http.client" in first and f"claude_proxy {VERSION}" in first
    assert "5 lines (3 request, 1 start, 1 stop)" in second and "audit.jsonl: line 2: its hash does not fit what it says" in second


def test_its_figures_of_the_guard_are_those_that_are_measured(said):
    told = re.findall(r"precision is\s(0\.\d+) and recall (0\.\d+) .*?are (0\.\d+) \(precision, phone\) and (0\.\d+) \(recall, ZIP", SECURITY, re.S)
    rows = re.findall(r"^(\w+) +precision (\S+) +recall (\S+)", said[1].partition("held out")[2], re.M)
    table = {name: figures for name, *figures in rows}
    assert [min(table, key=lambda name: table[name][place]) for place in (0, 1)] == ["phone", "zip"]
    assert told == [(*table["all"], table["phone"][0], table["zip"][1])]


def test_the_readme_leads_to_it():
    assert "](SECURITY.md)" in README and "](deploy/)" in README
