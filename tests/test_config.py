"""Settings: where they come from, what is refused and how, what they mean together, printed texts."""

from __future__ import annotations

import re

import pytest

from claude_proxy.config import (
    CUSTOM_HEADER_PREFIX,
    DEFAULT_MODELS,
    LISTED_MODELS,
    MODEL_ALIASES,
    MODEL_FAMILIES,
    OPENAI_OWN_URL,
    OPENROUTER_URL,
    UPSTREAM_NAMES,
    ConfigError,
)
from claude_proxy.config_load import load_config, unknown_names
from claude_proxy.dotenv import parse_dotenv
from claude_proxy.settings import SETTINGS
from claude_proxy.settings_text import (
    format_config,
    format_env_example,
    format_settings_help,
    format_settings_markdown,
)

KEYED = {"OPENAI_API_KEY": "k", "OPENAI_BASE_URL": "http://127.0.0.1:1/v1"}
OPEN_PORT = {"LISTEN_HOST": "0.0.0.0"}
REDCAP = {"REDCAP_API_URL": "https://r.example/api/"}


def problems_of(environ, dotenv=None, **collaborators):
    with pytest.raises(ConfigError) as caught:
        load_config(environ, dotenv, **collaborators)
    return caught.value.problems


def source_of(config, name):
    return dict(config.sources)[name]


# --- values ------------------------------------------------------------------------------------

VALUES = [
    ("LISTEN_HOST", "localhost", "127.0.0.1"),
    ("LISTEN_HOST", "::1", "::1"),
    ("LISTEN_HOST", "[::1]", "::1"),
    ("HOST", "127.0.0.2", "127.0.0.2"),
    ("LISTEN_PORT", "0", 0),
    ("PORT", "8082", 8082),
    ("ALLOWED_HOSTS", "Proxy.ward, [::2],,b", ("proxy.ward", "::2", "b")),
    ("ALLOWED_HOSTS", "*", ("*",)),
    ("TRUST_PROXY", "Yes", True),
    ("ANTHROPIC_API_KEY", "'a b'", "a b"),
    ("ANTHROPIC_API_KEY", "a, ci:b", "a, ci:b"),
    ("AUTH_TOKEN", "laptop:b,", "laptop:b,"),
    ("AUTH_API_KEY_HEADER", "X-Team-Key", "X-Team-Key"),
    ("AUTH_ALLOW_LOCALHOST_BYPASS", "true", True),
    ("CORS_ALLOWED_ORIGINS", "https://A.example/, http://[::1]:3000",
     ("https://a.example", "http://[::1]:3000")),
    ("RATE_LIMIT_RPM", "60", 60),
    ("RATE_LIMIT_TPM", "100000", 100000),
    ("RATE_LIMIT_CONCURRENT", "4", 4),
    ("RATE_LIMIT_BY", "Both", "both"),
    ("HEADER_TIMEOUT", "0.05", 0.05),
    ("TOTAL_TIMEOUT", "0", 0.0),
    ("PING_INTERVAL", "15", 15.0),
    ("SSL_VERIFY", '"FALSE"', False),
    ("OPENAI_API_KEY", '"sk-x"', "sk-x"),
    ("OPENAI_API_KEY", " sk-x\n", "sk-x"),
    ("OPENAI_API_KEY", "'", "'"),
    ("OPENAI_BASE_URL", "http://h:11434/v1//", "http://h:11434/v1"),
    ("OPENAI_BASE_URL", "https://h/v1/chat/completions/", "https://h/v1"),
    ("OPENAI_BASE_URL", "http://[::1]:1", "http://[::1]:1"),
    ("MODEL_MAP", "a=b, c*=openai:d , e=f=g,", (("a", "b"), ("c*", "openai:d"), ("e", "f=g"))),
    ("LOG_LEVEL", "WARNING", "warning"),
    ("LOG_FORMAT", "json", "json"),
    ("UPSTREAM", "Demo", "demo"),
    ("BIG_MODEL", "llama3.1:70b", "llama3.1:70b"),
]
FIELDS = {alias: setting.name for setting in SETTINGS for alias in setting.aliases}


@pytest.mark.parametrize("name,text,expected", VALUES)
def test_values(name, text, expected):
    value = getattr(load_config({name: text}), FIELDS.get(name, name).lower())
    assert value == expected and type(value) is type(expected)


WRONG = [
    ("LISTEN_HOST", "canary host", "address"),
    ("LISTEN_PORT", "65536", "from 0 to 65535"),
    ("PORT", "canary", "whole number"),
    ("LISTEN_PORT", "-1", "whole number"),
    ("LISTEN_PORT", "+1", "whole number"),
    ("LISTEN_PORT", "1_0", "whole number"),
    ("LISTEN_PORT", "\u0661", "whole number"),
    ("LISTEN_PORT", "80.5", "whole number"),
    ("MAX_CONNECTIONS", "0", "from 1"),
    ("ALLOWED_HOSTS", "canary:80", "without port"),
    ("ALLOWED_HOSTS", "http://canary/", "host names"),
    ("TRUST_PROXY", "canary", "true or false"),
    ("ANTHROPIC_API_KEY", "canary\r\nx: y", "one line"),
    ("ANTHROPIC_API_KEY", " , ,", "one line"),
    ("ANTHROPIC_API_KEY", "a, canary:", "name:key"),
    ("AUTH_TOKEN", "canary: ,b", "name:key"),
    ("AUTH_ENABLED", "canary", "true"),
    ("AUTH_API_KEY_HEADER", "x canary", "header's name"),
    ("AUTH_ALLOW_LOCALHOST_BYPASS", "canary", "true or false"),
    ("CORS_ALLOWED_ORIGINS", "*", "origins such as"),
    ("CORS_ALLOWED_ORIGINS", "null", "origins such as"),
    ("CORS_ALLOWED_ORIGINS", "https://canary/path", "origins such as"),
    ("CORS_ALLOWED_ORIGINS", "https://*.canary.example", "origins such as"),
    ("CORS_ALLOWED_ORIGINS", "canary.example", "origins such as"),
    ("RATE_LIMIT_RPM", "-1", "from 0"),
    ("RATE_LIMIT_BY", "canary", "key, address, both"),
    ("OPENAI_API_KEY", "canarü", "ASCII"),
    ("HEADER_TIMEOUT", "0", "seconds"),
    ("HEADER_TIMEOUT", "nan", "seconds"),
    ("HEADER_TIMEOUT", "1e3", "seconds"),
    ("PING_INTERVAL", "16", "from 1 to 15"),
    ("PING_INTERVAL", "0.5", "from 1 to 15"),
    ("UPSTREAM", "canary", "openai, anthropic, demo"),
    ("OPENAI_BASE_URL", "ftp://canary", "http or https"),
    ("OPENAI_BASE_URL", "canary.example/v1", "http or https"),
    ("OPENAI_BASE_URL", "https://", "http or https"),
    ("OPENAI_BASE_URL", "https://u:canary@h/v1", "without user name"),
    ("OPENAI_BASE_URL", "https://h/v1?api-version=canary", "AZURE_API_VERSION"),
    ("OPENAI_BASE_URL", "https://h/v1#canary", "fragment"),
    ("OPENAI_BASE_URL", "https://h/can ary", "http or https"),
    ("OPENAI_BASE_URL", "https://h\t/canary", "http or https"),
    ("OPENAI_BASE_URL", "https://h:canary/v1", "http or https"),
    ("OPENAI_BASE_URL", "https://h:70000/canary", "http or https"),
    ("OPENAI_BASE_URL", "https://[canary/v1", "http or https"),
    ("OPENAI_BASE_URL", "https://canarü/v1", "http or https"),
    ("AZURE_API_VERSION", "canary&x=1", "version"),
    ("REDCAP_API_URL", "https://canary/redcap", "must be REDCap's API"),
    ("REDCAP_API_URL", "https://canary/api/?x=1", "must be REDCap's API"),
    ("REDCAP_API_TOKEN", "canary", "32 hexadecimal digits"),
    ("REDCAP_API_TOKEN", "c" * 64, "no super token"),
    ("REDCAP_ERA", "canary", "must be one of 2026-06, 2026-01"),
    ("MODEL_MAP", "canary", "name=model"),
    ("MODEL_MAP", "a=b,=canary", "name=model"),
    ("MODEL_MAP", "canary=", "name=model"),
    ("BIG_MODEL", "canary\nx", "one line"),
    ("PROMPT_COMPRESSION", "canary", "none, compact, summarize"),
    ("LOG_LEVEL", "canary", "debug, info, warning, error, critical"),
    ("LOG_FORMAT", "canary", "auto, text, json"),
    ("CUSTOM_HEADER_X_A", "canary\r\nx: y", "one line"),
    ("CUSTOM_HEADER_X_A", "canary\x00", "one line"),
    ("CUSTOM_HEADER_", "canary", "header name"),
    ("CUSTOM_HEADER_A:B", "canary", "header name"),
    ("CUSTOM_HEADER_CONTENT_LENGTH", "canary", "the proxy itself"),
    ("CUSTOM_HEADER_TRANSFER_ENCODING", "canary", "the proxy itself"),
]


@pytest.mark.parametrize("name,text,expected", WRONG)
@pytest.mark.parametrize("place", ["environment", ".env"])
def test_a_wrong_value_is_one_line_with_name_and_no_value(place, name, text, expected):
    sources = ({name: text}, {}) if place == "environment" else ({}, {name: text})
    (problem,) = problems_of(*sources)
    assert problem.startswith(f"{name}: ") and expected in problem and "\n" not in problem
    assert "canar" not in problem


def test_every_mistake_is_reported_at_once():
    wrong = {"LISTEN_PORT": "x", "OPENAI_BASE_URL": "x", "CUSTOM_HEADER_HÜ": "x", **OPEN_PORT}
    named = [problem.split(":")[0] for problem in problems_of(wrong, {"LOG_LEVEL": "x"})]
    assert sorted(named) == sorted([*wrong, "LOG_LEVEL"])


# --- where values come from --------------------------------------------------------------------

PRECEDENCE = [
    ("default", {}, {}, 8765, "default"),
    ("file", {}, {"LISTEN_PORT": "1"}, 1, ".env"),
    ("environment before file", {"LISTEN_PORT": "2"}, {"LISTEN_PORT": "1"}, 2, "environment"),
    ("own name before alias", {"PORT": "1", "LISTEN_PORT": "2"}, {}, 2, "environment"),
    ("environment's alias before file", {"PORT": "1"}, {"LISTEN_PORT": "2"}, 1, "environment"),
    ("empty is unset", {"LISTEN_PORT": ""}, {"LISTEN_PORT": "1"}, 1, ".env"),
    ("blank is unset", {"LISTEN_PORT": "  "}, {"PORT": "1"}, 1, ".env"),
    ("empty quotes are unset", {"LISTEN_PORT": '""'}, {}, 8765, "default"),
]


@pytest.mark.parametrize("name,environ,dotenv,port,source", PRECEDENCE, ids=[r[0] for r in PRECEDENCE])
def test_precedence(name, environ, dotenv, port, source):
    config = load_config(environ, dotenv)
    assert (config.listen_port, source_of(config, "LISTEN_PORT")) == (port, source)


def test_a_secret_from_a_file():
    files = {"/run/secrets/key": "sk-file\n"}
    config = load_config({"OPENAI_API_KEY_FILE": "/run/secrets/key"}, {"OPENAI_API_KEY": "sk-env"},
                         read_file=files.__getitem__)
    assert (config.openai_api_key, source_of(config, "OPENAI_API_KEY")) == ("sk-file", "file")
    config = load_config({"OPENAI_API_KEY": "own"}, {"OPENAI_API_KEY_FILE": "unread"})
    assert config.openai_api_key == "own"


def test_a_secret_from_a_real_file(tmp_path):
    path = tmp_path / "key"
    path.write_bytes(b"\xef\xbb\xbfsk-file\r\n")
    assert load_config({"ANTHROPIC_API_KEY_FILE": str(path)}).anthropic_api_key == "sk-file"
    path.write_bytes(b"\xff\xfe")
    (problem,) = problems_of({"ANTHROPIC_API_KEY_FILE": str(path)})
    assert problem == "ANTHROPIC_API_KEY_FILE: the file cannot be read (not UTF-8 text)"


@pytest.mark.parametrize("environ,expected", [
    ({"OPENAI_API_KEY_FILE": "/nonexistent/canary"},
     "OPENAI_API_KEY_FILE: the file cannot be read (No such file or directory)"),
    ({"OPENAI_API_KEY_FILE": "/dev/null"}, "OPENAI_API_KEY_FILE: the file is empty"),
    ({"OPENAI_API_KEY_FILE": "x", "OPENAI_API_KEY": "canary"},
     "OPENAI_API_KEY: set either this or OPENAI_API_KEY_FILE, not both"),
])
def test_a_secret_file_that_cannot_be_used(environ, expected):
    assert problems_of(environ) == [expected]


def test_a_wrong_secret_in_a_file_is_blamed_on_the_file():
    (problem,) = problems_of({"OPENAI_API_KEY_FILE": "f"}, read_file=lambda path: "a\nb")
    assert problem.startswith("OPENAI_API_KEY_FILE: ")


def test_only_secrets_are_read_from_files():
    config = load_config({"BIG_MODEL_FILE": "/nonexistent"}, read_file=lambda path: 1 / 0)
    assert config.big_model == "gpt-4o"


CREDENTIALS = {"/run/credentials/u/OPENAI_API_KEY": "sk-credential\n", "/run/credentials/u/AUDIT_KEY": "0123456789abcdef" * 2}


def load_with_credentials(environ, dotenv=None):
    """As systemd starts it: a folder of files, each named as the secret that it holds."""
    return load_config({"CREDENTIALS_DIRECTORY": "/run/credentials/u", **environ}, dotenv,
                       read_file=CREDENTIALS.__getitem__, path_exists=CREDENTIALS.__contains__)


@pytest.mark.parametrize("environ,dotenv,key,source", [
    ({}, {}, "sk-credential", "file"),
    ({}, {"OPENAI_API_KEY": "sk-dotenv"}, "sk-credential", "file"),
    ({"OPENAI_API_KEY": "sk-own"}, {}, "sk-own", "environment"),
    ({"CREDENTIALS_DIRECTORY": ""}, {"OPENAI_API_KEY": "sk-dotenv"}, "sk-dotenv", ".env"),
    ({"CREDENTIALS_DIRECTORY": "/elsewhere"}, {}, "", "default"),
])
def test_a_secret_that_systemd_hands_over(environ, dotenv, key, source):
    config = load_with_credentials(environ, dotenv)
    assert (config.openai_api_key, source_of(config, "OPENAI_API_KEY")) == (key, source)


def test_other_secrets_keep_their_own_place_beside_credentials():
    config = load_with_credentials({}, {"ANTHROPIC_API_KEY": "for-clients"})
    assert (config.audit_key, config.anthropic_api_key) == ("0123456789abcdef" * 2, "for-clients")


def test_credentials_in_a_real_folder(tmp_path):
    (tmp_path / "ANTHROPIC_API_KEY").write_text("ward:one-key\nlab:another\n")
    (tmp_path / "BIG_MODEL").write_text("no secret, so not read")
    config = load_config({"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert (config.anthropic_api_key, config.big_model) == ("ward:one-key,lab:another", "gpt-4o")
    (tmp_path / "OPENAI_API_KEY").write_text("")
    assert problems_of({"CREDENTIALS_DIRECTORY": str(tmp_path)}) == ["OPENAI_API_KEY_FILE: the file is empty"]


def test_custom_headers():
    environ = {"CUSTOM_HEADER_X_API_KEY": "'new'", "CUSTOM_HEADER_EMPTY": "", "PATH": "x"}
    config = load_config(environ, {"CUSTOM_HEADER_X_API_KEY": "old", "CUSTOM_HEADER_ACCEPT": "a/b"})
    assert config.custom_headers == (("accept", "a/b"), ("x-api-key", "new"))
    assert source_of(config, "CUSTOM_HEADER_X_API_KEY") == "environment"
    assert source_of(config, "CUSTOM_HEADER_ACCEPT") == ".env"


def test_unknown_names():
    known = {**{s.name: "" for s in SETTINGS}, "HOST": "", "SSL_CERT_DIR": "",
             "OPENAI_API_KEY_FILE": "", "CUSTOM_HEADER_X": ""}
    assert unknown_names({**known, "OPENAI_KEY": "x", "BIG_MODEL_FILE": "x"}) == ["OPENAI_KEY", "BIG_MODEL_FILE"]


# --- what settings mean together ---------------------------------------------------------------

UPSTREAMS = [
    ("nothing", {}, "demo", ""),
    ("OpenAI's project key", {"OPENAI_API_KEY": "sk-proj-x"}, "openai", OPENAI_OWN_URL),
    ("OpenAI's service key", {"OPENAI_API_KEY": "sk-svcacct-x"}, "openai", OPENAI_OWN_URL),
    ("OpenAI's admin key, quoted", {"OPENAI_API_KEY": '"sk-admin-x"'}, "openai", OPENAI_OWN_URL),
    ("another key", {"OPENAI_API_KEY": "sk-or-v1-x"}, "openai", OPENROUTER_URL),
    ("base URL alone", {"OPENAI_BASE_URL": "http://h/v1"}, "openai", "http://h/v1"),
    ("both", {**KEYED, "OPENAI_API_KEY": "sk-proj-x"}, "openai", KEYED["OPENAI_BASE_URL"]),
    ("Azure", {**KEYED, "AZURE_API_VERSION": "2024-10-21"}, "openai", KEYED["OPENAI_BASE_URL"]),
    ("demo although keyed", {**KEYED, "UPSTREAM": "demo"}, "demo", KEYED["OPENAI_BASE_URL"]),
]


@pytest.mark.parametrize("name,environ,upstream,base", UPSTREAMS, ids=[row[0] for row in UPSTREAMS])
def test_upstream(name, environ, upstream, base):
    config = load_config(environ)
    assert (config.upstream, config.openai_base_url) == (upstream, base)


OPENROUTER = {"OPENAI_API_KEY": "sk-or-x"}
MODELS = [
    ("OpenRouter", OPENROUTER, "openai/gpt-5.4", "openai/gpt-5.4-mini", "openai/gpt-5.4-nano"),
    ("elsewhere", KEYED, "gpt-4o", "gpt-4o", "gpt-4o-mini"),
    ("big named", {**KEYED, "BIG_MODEL": "b"}, "b", "b", "gpt-4o-mini"),
    ("big named at OpenRouter", {**OPENROUTER, "BIG_MODEL": "b"}, "b", "b", "openai/gpt-5.4-nano"),
    ("small named", {**OPENROUTER, "SMALL_MODEL": "s"}, "openai/gpt-5.4", "openai/gpt-5.4-mini", "s"),
    ("all named", {**KEYED, "BIG_MODEL": "b", "MIDDLE_MODEL": "m", "SMALL_MODEL": "s"}, "b", "m", "s"),
    ("no OpenRouter", {**KEYED, "OPENAI_BASE_URL": "http://openrouter.ai.example"},
     "gpt-4o", "gpt-4o", "gpt-4o-mini"),
]


@pytest.mark.parametrize("name,environ,big,middle,small", MODELS, ids=[row[0] for row in MODELS])
def test_models(name, environ, big, middle, small):
    config = load_config(environ)
    assert (config.big_model, config.middle_model, config.small_model) == (big, middle, small)


@pytest.mark.parametrize("environ,names", [
    ({"UPSTREAM": "openai"}, ["UPSTREAM", "OPENAI_API_KEY", "OPENAI_BASE_URL"]),
    ({"AZURE_API_VERSION": "1", "OPENAI_API_KEY": "k"}, ["AZURE_API_VERSION", "OPENAI_BASE_URL"]),
    ({"MIN_TOKENS_LIMIT": "2", "MAX_TOKENS_LIMIT": "1"}, ["MIN_TOKENS_LIMIT", "MAX_TOKENS_LIMIT"]),
    ({"AUTH_ENABLED": "true"}, ["AUTH_ENABLED", "ANTHROPIC_API_KEY", "AUTH_TOKEN"]),
    ({"AUTH_ENABLED": "1", **KEYED, **REDCAP, "UPSTREAM": "openai"}, ["AUTH_ENABLED", "AUTH_TOKEN"]),
    ({"RATE_LIMIT_BURST": "5"}, ["RATE_LIMIT_BURST", "RATE_LIMIT_RPM"]),
    ({**OPEN_PORT, "AUTH_TOKEN": "k", "AUTH_ENABLED": "false"}, ["LISTEN_HOST"]),
    ({**OPEN_PORT, **REDCAP, "REDCAP_API_TOKEN": "a" * 32, "AUTH_ENABLED": "false"}, ["LISTEN_HOST"]),
    ({**OPEN_PORT, **REDCAP, "ANTHROPIC_FORWARD_URL": "https://a.example"}, ["LISTEN_HOST"]),
    ({**OPEN_PORT, **REDCAP, **KEYED, "UPSTREAM": "redcap"}, ["LISTEN_HOST", "REDCAP_API_TOKEN"]),
    ({**OPEN_PORT, **REDCAP, "ANTHROPIC_UPSTREAM_KEY": "k"}, ["LISTEN_HOST", "REDCAP_API_TOKEN"]),
    (OPEN_PORT, ["LISTEN_HOST", "ANTHROPIC_API_KEY", "TRUST_PROXY=true", "LISTEN_HOST=127.0.0.1"]),
    ({"LISTEN_HOST": "::"}, ["LISTEN_HOST", "ANTHROPIC_API_KEY"]),
    ({"LISTEN_HOST": "proxy.example"}, ["LISTEN_HOST", "ANTHROPIC_API_KEY"]),
])
def test_settings_that_do_not_go_together(environ, names):
    (problem,) = problems_of(environ)
    assert problem.startswith(names[0] + ": ") and all(name in problem for name in names)


@pytest.mark.parametrize("environ", [
    {**OPEN_PORT, "ANTHROPIC_API_KEY": "k"},
    {**OPEN_PORT, "TRUST_PROXY": "true"},
    {**OPEN_PORT, "TRUST_PROXY": "true", "ANTHROPIC_API_KEY": "k", "AUTH_ENABLED": "false"},
    {**OPEN_PORT, "AUTH_TOKEN": "k", "AUTH_ENABLED": "true"},
    {**OPEN_PORT, **REDCAP},
    {**OPEN_PORT, **REDCAP, "AUTH_ENABLED": "false"},
    {**OPEN_PORT, **REDCAP, "REDCAP_API_TOKEN": "a" * 32},
    {**OPEN_PORT, **REDCAP, **KEYED, "UPSTREAM": "redcap", "AUTH_TOKEN": "k"},
    {**REDCAP, "AUTH_ENABLED": "true"},
    {"RATE_LIMIT_BURST": "5", "RATE_LIMIT_RPM": "1"},
    {"LISTEN_HOST": "127.1.2.3"},
    {"LISTEN_HOST": "::1"},
    {"MIN_TOKENS_LIMIT": "2", "MAX_TOKENS_LIMIT": "0"},
])
def test_settings_that_go_together(environ):
    load_config(environ)


@pytest.mark.parametrize("name", ["CA_FILE", "CA_DIR", "SSL_CERT_FILE", "SSL_CERT_DIR"])
def test_a_certificate_path_has_to_exist(name):
    asked = []
    (problem,) = problems_of({name: "/canary"}, path_exists=lambda path: bool(asked.append(path)))
    assert asked == ["/canary"] and problem.startswith(f"{name}: ") and "canary" not in problem
    config = load_config({name: "/x"}, path_exists=lambda path: True)
    assert "/x" in (config.ca_file, config.ca_dir)


# --- the tables --------------------------------------------------------------------------------

def test_the_model_maps_fit_each_other():
    settings = {setting.name for setting in SETTINGS}
    assert {name.split()[0] for name in MODEL_ALIASES} == set(UPSTREAM_NAMES)
    assert {setting for _, setting in MODEL_FAMILIES} <= settings
    for models in DEFAULT_MODELS.values():
        assert set(models) == {"BIG_MODEL", "MIDDLE_MODEL", "SMALL_MODEL"}
    assert all(name.startswith("claude-") for name in LISTED_MODELS)


def test_names_are_unique_and_help_is_one_plain_line():
    names = [name for setting in SETTINGS for name in (setting.name, *setting.aliases)]
    assert len(set(names)) == len(names)
    for setting in SETTINGS:
        assert re.fullmatch(r"[A-Z_]+", setting.name)
        assert setting.help.isprintable() and len(setting.help) < 100 and "%" not in setting.help
        assert not (setting.secret and setting.default)


def test_a_config_can_be_varied_but_not_changed_and_shows_nothing():
    config = load_config({**KEYED, "OPENAI_API_KEY": "canary"})
    varied = config._replace(listen_port=1)
    assert (varied.listen_port, config.listen_port, type(varied)) == (1, 8765, type(config))
    assert "canary" not in f"{config} {config!r} {varied}"
    with pytest.raises(AttributeError):
        config.listen_port = 1


# --- printed texts -----------------------------------------------------------------------------

def test_env_example_uncommented_is_the_default():
    text = format_env_example()
    assert parse_dotenv(text, {}) == {}
    written = parse_dotenv(re.sub(r"^#(?=[A-Z_]+=)", "", text, flags=re.MULTILINE), {})
    assert list(written) == [*(s.name for s in SETTINGS), CUSTOM_HEADER_PREFIX + "X_API_KEY"]
    assert load_config({}, written)._replace(sources=()) == load_config({})._replace(sources=())
    assert unknown_names(written) == []


@pytest.mark.parametrize("make_text", [format_env_example, format_settings_help, format_settings_markdown])
def test_every_setting_is_in_every_text(make_text):
    text = make_text()
    for setting in SETTINGS:
        for name in (setting.name, *setting.aliases, *([setting.name + "_FILE"] * setting.secret)):
            assert re.search(rf"\b{name}\b", text), name
    assert CUSTOM_HEADER_PREFIX in text and text.endswith("\n") and not text.endswith("\n\n")


def test_texts_keep_their_width():
    assert max(map(len, format_settings_help().splitlines())) <= 80
    assert max(map(len, format_env_example().splitlines())) <= 100


def test_markdown_rows_have_three_cells():
    rows = [line for line in format_settings_markdown().splitlines() if line.startswith("| `")]
    assert len(rows) == len(SETTINGS) + 1
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 4 for row in rows)
    assert any(row.startswith("| `LISTEN_PORT` | `8765` | ") for row in rows)


def test_check_config_shows_values_and_sources_but_no_secret():
    environ = {"OPENAI_API_KEY": "sk-proj-canary", "MODEL_MAP": "a=b,c=d", "SSL_VERIFY": "no",
               "ALLOWED_HOSTS": "x,y", "CUSTOM_HEADER_X_API_KEY": "canary", "ANTHROPIC_API_KEY_FILE": "f"}
    text = format_config(load_config(environ, {"PORT": "1"}, read_file=lambda path: "canary"))
    lines = dict(line.split("=", 1) for line in text.splitlines())
    shown = {name: re.sub(r"  +", " ", line) for name, line in lines.items()}
    assert shown["OPENAI_API_KEY"] == "set (14 characters) (environment)"
    assert shown["ANTHROPIC_API_KEY"] == "set (6 characters) (file)"
    assert shown["CUSTOM_HEADER_X_API_KEY"] == "set (6 characters) (environment)"
    assert shown["LISTEN_PORT"] == "1 (.env)"
    assert shown["MODEL_MAP"] == "a=b,c=d (environment)"
    assert shown["ALLOWED_HOSTS"] == "x,y (environment)"
    assert shown["SSL_VERIFY"] == "false (environment)"
    assert shown["READ_TIMEOUT"] == "30 (default)"
    assert shown["OPENAI_BASE_URL"] == f"{OPENAI_OWN_URL} (default)"
    assert "canary" not in text and "sk-" not in text
