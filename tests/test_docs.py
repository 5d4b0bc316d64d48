"""The documents say what the program says: settings, endpoints, commands."""

from __future__ import annotations

import ast
import functools
import re

import pytest

from claude_proxy.app import ENDPOINTS
from claude_proxy.cli import argument_parser
from claude_proxy.config import VERSION
from claude_proxy.settings import SETTINGS
from claude_proxy.settings_text import format_env_example, format_settings_markdown
from tests.support import ROOT, SINGLE_FILE

README = (ROOT / "README.md").read_text(encoding="utf-8")
SETTINGS_BEGIN, SETTINGS_END = "<!-- settings: printed by --print-settings -->\n", "<!-- end of settings -->"


def test_env_example_is_printed_from_the_table():
    assert (ROOT / ".env.example").read_text(encoding="utf-8") == format_env_example()


def test_the_readmes_table_is_printed_from_the_table():
    printed = README.split(SETTINGS_BEGIN)[1].split(SETTINGS_END)[0]
    assert printed.strip() == format_settings_markdown().strip()


def test_every_variable_that_the_readme_names_exists():
    known = {name for setting in SETTINGS for name in (setting.name, *setting.aliases)}
    of_clients = re.compile(r"(CLAUDE_CODE|ANTHROPIC|OLLAMA|NODE)_\w+|NO_PROXY|NAME|HOST|PORT|README")
    named = set(re.findall(r"`([A-Z][A-Z0-9]*_[A-Z0-9_]+)\b", README))
    unknown = {n for n in named - known if not of_clients.fullmatch(n) and not n.startswith("CUSTOM_HEADER_")
               and n.rpartition("_FILE")[0] not in known}
    assert not unknown


def test_every_endpoint_is_in_the_readme():
    for _, path in ENDPOINTS:
        assert f"`{path}`" in README or f" {path}`" in README, path


def test_every_option_that_the_readme_names_exists():
    options = {o for action in argument_parser()._actions for o in action.option_strings}
    lines = [line for line in README.splitlines() if "claude_api_proxy.py" in line]
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
