"""Texts printed from the table of settings: .env.example, --help, README table, --check-config.

Pure. No text shows a secret, or any part of one.
"""

from __future__ import annotations

import re
from typing import Any, Dict, List

from claude_proxy.config import CUSTOM_HEADER_PREFIX, Setting
from claude_proxy.config_load import custom_header_variable
from claude_proxy.settings import SETTINGS, Config
from claude_proxy.settings_file import MAP_MARKS

ENV_EXAMPLE_HEAD = """\
# Settings of claude_proxy. Copy this file to .env and take the # away from what you change.
# The environment goes before .env; an empty value counts as unset. Values in single quotes are
# taken as they are; elsewhere a $ is written $$. Variables marked (secret) can be given as a file:
# OPENAI_API_KEY_FILE=/run/secrets/key. Keep .env to yourself (chmod 600) and out of git.
"""
CUSTOM_HEADER_HELP = (
    "a header for every upstream call: CUSTOM_HEADER_X_API_KEY sends x-api-key; replaces the "
    "proxy's own, authorization included"
)


def settings_by_section() -> Dict[str, List[Setting]]:
    sections: Dict[str, List[Setting]] = {}
    for setting in SETTINGS:
        sections.setdefault(setting.section, []).append(setting)
    return sections


def full_help(setting: Setting) -> str:
    """The help line with what holds for the variable's names."""
    aliases = f" (also {', '.join(setting.aliases)})" if setting.aliases else ""
    secret = f" (secret; also as a file: {setting.name}_FILE)" if setting.secret else ""
    return setting.help + aliases + secret


def format_env_example() -> str:
    """A .env with every setting commented out, for docker compose and for our own parser."""
    lines = [ENV_EXAMPLE_HEAD]
    for section, settings in settings_by_section().items():
        lines.append(f"# --- {section} ---\n")
        for setting in settings:
            lines += [*commented(full_help(setting)), f"#{setting.name}={setting.default}", ""]
    lines += ["# --- Headers ---\n", *commented(CUSTOM_HEADER_HELP)]
    lines.append(f"#{CUSTOM_HEADER_PREFIX}X_API_KEY=")
    return "\n".join(lines) + "\n"


def commented(text: str) -> List[str]:
    return wrapped(text, 96, "# ")


def format_settings_help() -> str:
    """The settings for --help, at most 80 columns wide."""
    lines = []
    for section, settings in settings_by_section().items():
        lines.append(f"{section}:")
        for setting in settings:
            lines += [f"  {setting.name}={setting.default}", *indented(full_help(setting))]
        lines.append("")
    lines += ["Headers:", f"  {CUSTOM_HEADER_PREFIX}<NAME>=", *indented(CUSTOM_HEADER_HELP)]
    return "\n".join(lines) + "\n"


def indented(text: str) -> List[str]:
    return wrapped(text, 80, " " * 6)


def wrapped(text: str, width: int, indent: str) -> List[str]:
    import textwrap  # when asked for help, and not at each start

    return textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent)


def format_settings_markdown() -> str:
    """The settings as a Markdown table for each section."""
    blocks = []
    for section, settings in settings_by_section().items():
        rows = [markdown_row(s.name, s.default, full_help(s)) for s in settings]
        blocks.append("\n".join([f"**{section}**", "", *MARKDOWN_HEAD, *rows]))
    row = markdown_row(f"{CUSTOM_HEADER_PREFIX}<NAME>", "", CUSTOM_HEADER_HELP)
    blocks.append("\n".join(["**Headers**", "", *MARKDOWN_HEAD, row]))
    return "\n\n".join(blocks) + "\n"


MARKDOWN_HEAD = ("| variable | default | meaning |", "| --- | --- | --- |")


def markdown_row(name: str, default: str, meaning: str) -> str:
    # A * in running text would start emphasis, and a | end the cell.
    plain = "".join("\\" + c if c in "*|<" else c for c in meaning)
    coded = re.sub(r"\b[A-Za-z]+(?:_[A-Za-z]+)+\b", r"`\g<0>`", plain)
    return f"| `{name}` | {f'`{default}`' if default else ''} | {coded} |"


def format_config(config: Config) -> str:
    """The settings in force, NAME=value and where from; secrets only as their length."""
    sources = dict(config.sources)
    rows = [
        (
            setting.name,
            setting_text(getattr(config, setting.name.lower()), setting.secret, setting.name),
        )
        for setting in SETTINGS
    ]
    rows += [
        (custom_header_variable(name), setting_text(value, True))
        for name, value in config.custom_headers
    ]
    return "".join(f"{f'{name}={text}':47} ({sources[name]})\n" for name, text in rows)


def setting_text(value: Any, secret: bool, name: str = "") -> str:
    """A parsed value as one would write it; a secret as its length."""
    if secret:
        return f"set ({len(value)} characters)" if value else ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):
        mark = MAP_MARKS.get(name, "=")
        return ",".join(item if isinstance(item, str) else mark.join(item) for item in value)
    return str(value)
