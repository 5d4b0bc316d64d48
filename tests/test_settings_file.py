"""Settings from a JSON file are what the variables would be; mistakes are named by their place."""

from __future__ import annotations

import io
import json

import pytest

from claude_proxy.cli import main
from claude_proxy.config import ConfigError
from claude_proxy.config_load import load_config
from claude_proxy.settings import SETTINGS
from claude_proxy.settings_file import SECTION_NAMES, read_settings_file

FILES = [
    ("nothing", {}, {}),
    ("a setting by its name", {"MAX_RETRIES": 2}, {"MAX_RETRIES": "2"}),
    ("in lower case", {"max_retries": 2, "ssl_verify": False}, {"MAX_RETRIES": "2", "SSL_VERIFY": "false"}),
    ("by an alias", {"port": 9000}, {"LISTEN_PORT": "9000"}),
    ("the server", {"server": {"host": "127.0.0.1", "port": 9000}}, {"LISTEN_HOST": "127.0.0.1", "LISTEN_PORT": "9000"}),
    ("logging", {"logging": {"level": "debug", "format": "json"}}, {"LOG_LEVEL": "debug", "LOG_FORMAT": "json"}),
    ("a map", {"models": {"a*": "b", "c": "openai:d"}}, {"MODEL_MAP": "a*=b,c=openai:d"}),
    ("a map under its own name", {"MODEL_MAP": {"a": "b"}}, {"MODEL_MAP": "a=b"}),
    ("agents", {"agents": {"reviewer": "gpt-4o"}}, {"SUBAGENT_MAPPINGS": "reviewer:gpt-4o"}),
    ("windows", {"windows": {"gpt-4o*": 128000}}, {"MODEL_WINDOWS": "gpt-4o*=128000"}),
    ("a list", {"fallback": ["a", "b"]}, {"FALLBACK_MODELS": "a,b"}),
    ("headers", {"headers": {"X-Client-Id": "ward"}}, {"CUSTOM_HEADER_X_CLIENT_ID": "ward"}),
    ("the rest", {"default_model": "m", "max_tokens": 4096, "timeout": 2.5},
     {"DEFAULT_MODEL": "m", "MAX_TOKENS_LIMIT": "4096", "REQUEST_TIMEOUT": "2.5"}),
    ("null is unset", {"BIG_MODEL": None}, {"BIG_MODEL": ""}),
]


@pytest.mark.parametrize("name,data,expected", FILES, ids=[row[0] for row in FILES])
def test_files(name, data, expected):
    found = read_settings_file(json.dumps(data))
    assert found == expected
    load_config({}, {}, settings_file=found)


WRONG = [
    ("{", "not JSON at line 1"), ("[]", "must hold a JSON object"), ("[" * 100_000, "not JSON"),
    ('{"CANARY_SETTING": 1}', "CANARY_SETTING: is no setting"), ('{"server": {"hots": 1}}', "server.hots: is no setting"),
    ('{"BIG_MODEL": {"a": 1}}', "BIG_MODEL: must be a text"), ('{"models": {"a": ["b"]}}', "models: must be a text"),
]


@pytest.mark.parametrize("text,problem", WRONG, ids=[row[1] for row in WRONG])
def test_mistakes(text, problem):
    with pytest.raises(ConfigError) as caught:
        read_settings_file(text)
    assert problem in str(caught.value)


def test_every_section_means_a_setting():
    assert set(SECTION_NAMES.values()) <= {setting.name for setting in SETTINGS}


def test_variables_and_dotenv_go_first():
    file = {"BIG_MODEL": "file", "SMALL_MODEL": "file", "MAX_RETRIES": "3"}
    config = load_config({"BIG_MODEL": "environ"}, {"SMALL_MODEL": ".env"}, settings_file=file)
    assert (config.big_model, config.small_model, config.max_retries) == ("environ", ".env", 3)
    assert dict(config.sources)["MAX_RETRIES"] == "CONFIG_FILE"


def check(tmp_path, text):
    path = tmp_path / "settings.json"
    path.write_text(text)
    out, err = io.StringIO(), io.StringIO()
    status = main(["--check-config", "--env-file", "/dev/null"], {"CONFIG_FILE": str(path)}, out, err)
    return status, out.getvalue(), err.getvalue()


def test_the_command_reads_it(tmp_path):
    status, out, _ = check(tmp_path, '{"server": {"port": 9123}, "OPENAI_API_KEY": "sk-proj-CANARY123456"}')
    assert status == 0 and "9123" in out and "CANARY" not in out


@pytest.mark.parametrize("text,word", [("{", "not JSON"), ('{"timeout": "CANARY"}', "REQUEST_TIMEOUT")])
def test_the_command_names_what_is_wrong(tmp_path, text, word):
    status, out, err = check(tmp_path, text)
    assert status == 2 and word in err and "CANARY" not in err + out


def test_a_file_that_is_not_there_is_named():
    err = io.StringIO()
    assert main(["--check-config"], {"CONFIG_FILE": "/nowhere/x.json"}, io.StringIO(), err) == 2
    assert "CONFIG_FILE: cannot be read" in err.getvalue()
