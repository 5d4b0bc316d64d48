"""A stand-in for a host in FIPS mode: the single file with MD5 and SHA-1 taken away, as a process of its own."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys

import pytest

from tests.support import SINGLE_FILE, ask, message_body
from tests.test_cli import environment

# Like OpenSSL's own refusal, and by every way to a digest that the standard library has.
POISON = """\
import _hashlib, hashlib, hmac, runpy, sys

WEAK = ("md5", "sha1", "md5-sha1", "ripemd160")

def poisoned(name):
    def refuse(*arguments, **options):
        raise ValueError(f"[digital envelope routines] {name} is disabled for FIPS")
    return refuse

def guarded(make):
    def chosen(name, *arguments, **options):
        if str(name).lower() in WEAK:
            poisoned(name)()
        return make(name, *arguments, **options)
    return chosen

for name in ("md5", "sha1"):
    setattr(hashlib, name, poisoned(name))
    setattr(_hashlib, f"openssl_{name}", poisoned(name))
hashlib.new, _hashlib.new = guarded(hashlib.new), guarded(_hashlib.new)
for module in ("_md5", "_sha1"):
    sys.modules[module] = None
keyed = hmac.new

def guarded_hmac(key, msg=None, digestmod=""):
    name = getattr(digestmod, "__name__", str(digestmod)).replace("openssl_", "")
    return poisoned(name)() if name.lower() in (*WEAK, "refuse") else keyed(key, msg, digestmod)

hmac.new = guarded_hmac
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def run(tmp_path):
    """Starts a program of the folder, or the single file, under the poison; -I as on a host."""
    (tmp_path / "poison.py").write_text(POISON)
    started = []

    def start(program, *arguments, **settings):
        command = [sys.executable, "-I", "-S", "poison.py", str(program), *arguments]
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env=environment(**settings),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


TRY = """
import hashlib, hmac, json, sys, uuid
found = []
for line in json.loads(sys.argv[1]):
    try:
        eval(line)
        found.append("works")
    except ValueError as error:
        found.append(str(error)[-17:])
print(json.dumps(found))
"""
WEAK = [
    "hashlib.md5(b'')",
    "hashlib.sha1()",
    "hashlib.new('md5')",
    "hashlib.new('SHA1', b'')",
    "hmac.new(b'k', b'', 'sha1')",
    "hmac.new(b'k', b'', hashlib.md5)",
    "uuid.uuid3(uuid.NAMESPACE_DNS, 'x')",
]
STRONG = [
    "hashlib.sha256()",
    "hashlib.new('sha512')",
    "hmac.new(b'k', b'', hashlib.sha256)",
    "hmac.new(b'k', b'', 'sha256')",
]


def test_the_poison_works_and_on_the_weak_alone(run, tmp_path):
    (tmp_path / "try.py").write_text(TRY)
    out, err = run("try.py", json.dumps(WEAK + STRONG)).communicate(timeout=20)
    assert err == "" and json.loads(out) == ["disabled for FIPS"] * len(WEAK) + ["works"] * len(
        STRONG
    )


def test_a_day_of_the_single_file_without_weak_digests(run, tmp_path):
    audit = {"AUDIT_FILE": "audit.jsonl", "AUDIT_KEY": "a key of the tests, long enough"}
    process = run(SINGLE_FILE, LISTEN_PORT="0", ANTHROPIC_API_KEY="ward-7:the-client-key", **audit)
    port = int(
        re.fullmatch(r"listening on http://127\.0\.0\.1:(\d+)\n", process.stdout.readline())[1]
    )
    shown = ("x-api-key: the-client-key",)
    tools = [{"name": "Bash", "description": "run it", "input_schema": {"type": "object"}}]
    said = "demo: think\ndemo: tool Bash {}\ndemo: text done"
    whole = ask(port, message_body(said, tools=tools), fields=shown)
    kinds = [block["type"] for block in whole.json["content"]]
    assert whole.status == 200 and kinds == ["thinking", "tool_use", "text"]
    streamed = ask(port, message_body("Hello", stream=True), fields=shown)
    assert streamed.status == 200 and streamed.events[-1]["type"] == "message_stop"
    counted = ask(port, message_body("Hello"), path="/v1/messages/count_tokens", fields=shown)
    assert counted.status == 200 and counted.json["input_tokens"] > 0
    assert ask(port, message_body(), fields=("x-api-key: another",)).status == 401
    assert ask(port, path="/metrics", method="GET", fields=shown).status == 200
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=20)
    assert process.returncode == 0
    assert not re.search("disabled for FIPS|defect|observer_failed", log)
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [lines[0]["event"], lines[-1]["event"]] == ["start", "stop"]
    assert sorted(line["status"] for line in lines[1:-1]) == [200, 200, 200, 200, 401]
    for key, code in ((audit["AUDIT_KEY"], 0), ("another key, also long enough", 1)):
        checking = run(SINGLE_FILE, "--verify-audit", "audit.jsonl", AUDIT_KEY=key)
        out, err = checking.communicate(timeout=20)
        assert checking.returncode == code and "FIPS" not in err, out + err
    asked = run(SINGLE_FILE, "--version")
    out, err = asked.communicate(timeout=20)
    assert (asked.returncode, err) == (0, "") and "sha256" in out
