"""The image, compose, project and make files fit together. Read as text: nothing is built."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys

import pytest

from claude_proxy.settings import SETTINGS
from tests.support import ROOT, SINGLE_FILE


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def instructions(name: str = "Dockerfile") -> list:
    """(instruction, arguments) pairs, continuation lines joined, comments left out."""
    lines = [line for line in read(name).split("\n") if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [tuple(line.split(None, 1)) for line in joined.split("\n") if line.strip()]


RUN_IT = '["python3", "-I", "-S", "/claude_api_proxy.pyc"]'


@pytest.mark.parametrize("instruction, expected", [
    ("FROM", "python:3.13-alpine"),
    ("ENTRYPOINT", RUN_IT),
    ("USER", "65532:65532"),
    ("STOPSIGNAL", "SIGTERM"),
    ("ENV", "LISTEN_HOST=0.0.0.0"),
    ("EXPOSE", "8765"),
    ("COPY", "--chmod=0444 claude_api_proxy.py /claude_api_proxy.py"),
    ("RUN", '["python3", "-I", "-S", "-m", "compileall", "-q", "-b", "--invalidation-mode", "unchecked-hash", '
            '"/claude_api_proxy.py"]'),
])
def test_the_image(instruction, expected):
    assert [rest for word, rest in instructions() if word == instruction] == [expected]


def test_the_image_asks_itself_for_its_health():
    check = dict(instructions())["HEALTHCHECK"]
    assert check.endswith("CMD " + RUN_IT.replace("]", ', "--healthcheck"]'))


def test_nothing_else_enters_the_image():
    assert read(".dockerignore").split() == ["*", f"!{SINGLE_FILE.name}"] and SINGLE_FILE.is_file()
    assert {word for word, _ in instructions()}.isdisjoint({"ADD", "VOLUME"})


def test_the_image_runs_the_file_that_lies_beside_it(tmp_path):
    """Compiled as the image has it: the same program, which tells the SHA-256 of the file as it was copied."""
    file = tmp_path / SINGLE_FILE.name
    file.write_bytes(SINGLE_FILE.read_bytes())
    compiling = json.loads(dict(instructions())["RUN"])
    subprocess.run([sys.executable, *compiling[1:-1], str(file)], cwd=tmp_path, check=True)
    told = subprocess.run([sys.executable, "-I", "-S", f"{file}c", "--version"], capture_output=True, text=True, check=True).stdout
    assert f"sha256 {hashlib.sha256(file.read_bytes()).hexdigest()}\n" in told
    assert sorted(path.name for path in tmp_path.iterdir()) == [file.name, f"{file.name}c"]


def compose_settings() -> dict:
    return dict(re.findall(r'^      ([A-Z_]+): "(.*)"$', read("docker-compose.yml"), re.MULTILINE))


def test_compose_sets_what_the_program_knows():
    settings = compose_settings()
    assert settings["TRUST_PROXY"] == "true" and settings["LISTEN_HOST"] == "0.0.0.0"
    assert set(settings) <= {setting.name for setting in SETTINGS}


def test_compose_publishes_on_loopback_only():
    ports = re.findall(r'^      - "(.*:\d+)"$', read("docker-compose.yml"), re.MULTILINE)
    port = compose_settings()["LISTEN_PORT"]
    assert ports == [f"127.0.0.1:{port}:{port}"] and ("EXPOSE", port) in instructions()


def test_compose_waits_longer_than_a_drain():
    grace = re.search(r"stop_grace_period: (\d+)s", read("docker-compose.yml"))
    assert int(compose_settings()["DRAIN_TIMEOUT"]) < int(grace[1])


@pytest.mark.parametrize("text", [
    "read_only: true", "cap_drop:\n      - ALL", "no-new-privileges:true", "required: false",
])
def test_compose_is_hardened(text):
    assert text in read("docker-compose.yml")


def test_the_project_needs_nothing():
    project = read("pyproject.toml")
    assert "\ndependencies = []\n" in project and '\nrequires-python = ">=3.9"\n' in project


@pytest.mark.parametrize("target", [
    "run", "test", "canary", "test-clients", "torture", "bench", "bench-peers", "single", "release", "lint", "image",
    "env", "clean",
])
def test_make_lists_its_targets(target):
    makefile = read("Makefile")
    assert re.search(rf"^{target}:.* ## \w", makefile, re.MULTILINE)
    assert target in re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[1].split()


def test_ci_runs_what_the_readme_says():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    for step in ("make test", "make lint", "claude_proxy.amalgamate --check"):
        assert f"\nstep {step}" in read(".ci/run") or f" -m {step}\n" in read(".ci/run")
