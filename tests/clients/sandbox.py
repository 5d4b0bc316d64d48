"""The single file under the restrictions that `deploy/` and the Dockerfile put it under.

Each check starts it in a root of its own, made with bubblewrap: read-only, another user (65532), no
capability, no new privileges, a temporary folder that has to stay empty. `unit` runs ExecStart of the
systemd unit, with its credentials and with one folder for the audit; `image` runs the Dockerfile's
RUN and ENTRYPOINT where there is nothing but Python and that file. No strace: trees are compared by SHA-256.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator
from typing import Any, Callable, Dict, List, NamedTuple, Tuple

from tests.clients.lab import (
    START_SECONDS,
    Lab,
    Skipped,
    banner_url,
    expect,
    expect_equal,
    read,
    started_group,
)
from tests.clients.redcap import TOKEN, call
from tests.clients.single_file import contents, find_python, python_version
from tests.clients.upstream import Call, ChatRequest, PlayingUpstream, calls_answer
from tests.fake_securechat.server import Fake
from tests.support import (
    ROOT,
    SINGLE_FILE,
    USAGE,
    Pause,
    RawClient,
    ask,
    chat_stream,
    delta,
    message_body,
    request_bytes,
    text_answer,
    wait_until,
)

USER = 65532
CLIENT_KEY = "a-key-for-the-sandbox"
SLOW_SECONDS = 1.0
BASH = {"name": "Bash", "description": "Runs a command", "input_schema": {"type": "object"}}
# What a program on a host finds there; each is taken if it is there.
HOST_PATHS = (
    "/usr", "/bin", "/lib", "/lib64", "/etc/ssl", "/etc/pki", "/etc/ld.so.cache", "/etc/hosts", "/etc/nsswitch.conf",
)
# Gives up every capability (PR_CAPBSET_DROP; capset, version 3), the user too, then becomes what it is told to.
LAUNCH = f"""
import ctypes, os, sys
libc = ctypes.CDLL(None)
for number in range(64):
    libc.prctl(24, number, 0, 0, 0)
os.setgroups([])
os.setresgid({USER}, {USER}, {USER})
os.setresuid({USER}, {USER}, {USER})
libc.capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)())
os.execvp(sys.argv[1], sys.argv[1:])
"""
# Prints the folders in which it could make a file.
PROBE = """
import os, sys
for folder in sys.argv[1:]:
    try:
        os.close(os.open(folder + "/probe", os.O_CREAT | os.O_WRONLY))
        os.unlink(folder + "/probe")
        print(folder)
    except OSError:
        pass
"""


# --- the box ------------------------------------------------------------------------------------


class Box(NamedTuple):
    """A sandbox: its mounts, the program in it, and the folders of ours that it sees."""

    mounts: List[str]
    program: List[str]
    python: str  # as it is called in there
    writable: List[str]
    folders: Dict[str, pathlib.Path]
    environ: Dict[str, str]

    def command(self, *words: Any) -> List[Any]:
        """The command line that runs `words` in there."""
        as_root = os.getuid() == 0
        rights = ["--cap-drop", "ALL"]
        rights += [word for cap in ("SETUID", "SETGID", "SETPCAP") for word in ("--cap-add", f"CAP_{cap}")] if as_root else [
            "--unshare-user", "--uid", str(USER), "--gid", str(USER)]
        launch = [self.python, "-I", "-S", "-c", LAUNCH] if as_root else []
        alone = ["--unshare-pid", "--unshare-ipc", "--unshare-uts", "--die-with-parent", "--new-session"]
        kernel = ["--proc", "/proc", "--dev", "/dev", "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/"]
        return [shutil.which("bwrap"), *open_parents(self.mounts[2::3]), *self.mounts, *kernel, *alone, *rights,
                "--", *launch, *words]

    def see(self) -> Dict[str, Dict[str, str]]:
        return {name: contents(path) for name, path in self.folders.items()}


def open_parents(places: Iterable[str]) -> List[str]:
    """The folders above the mounts, for all to enter: left to itself, bwrap makes them root's alone."""
    above = {parent for place in places for parent in pathlib.PurePosixPath(place).parents}
    return [word for path in sorted(map(str, above - {pathlib.PurePosixPath("/")})) for word in ("--dir", path)]


def needs_bwrap() -> None:
    if not shutil.which("bwrap"):
        raise Skipped("bwrap (bubblewrap) is not here")
    tried = subprocess.run(["bwrap", "--ro-bind", "/", "/", "--unshare-pid", "--proc", "/proc", "true"],
                           capture_output=True, text=True, check=False)
    if tried.returncode:
        raise Skipped(f"no sandbox may be made here: {tried.stderr.strip()[-200:]}")


def folder(lab: Lab, name: str, mode: int = 0o755, owner: int = 0, **files: str) -> pathlib.Path:
    """A folder of files, given to the sandbox's user if it is to be its own."""
    path = lab.new_folder(name)
    for file, text in files.items():
        (path / file).write_text(text)
        (path / file).chmod(0o400 if owner else 0o444)
    path.chmod(mode)
    if owner and os.getuid() == 0:
        for own in (path, *path.iterdir()):
            os.chown(own, owner, owner)
    return path


def unit_line(name: str, drop_in: str = "") -> str:
    """The value of a line of the unit, or of one of its drop-ins."""
    path = ROOT / "deploy" / (f"claude-proxy.service.d/{drop_in}.conf" if drop_in else "claude-proxy.service")
    return re.search(rf"^{name}=(.*)$", path.read_text(), re.MULTILINE)[1]


def credential_names() -> List[str]:
    text = (ROOT / "deploy" / "claude-proxy.service.d" / "credentials.conf").read_text()
    return re.findall(r"^#? ?LoadCredential=([A-Z_]+):", text, re.MULTILINE)


def unit_box(lab: Lab, version: str, settings: str, secrets: Dict[str, str]) -> Box:
    """As systemd starts it. Without a version with the Python of the unit's own."""
    expect(set(secrets) <= set(credential_names()), "a secret that credentials.conf does not name")
    words, audit = shlex.split(unit_line("ExecStart")), unit_line("Environment", "audit").partition("=")
    file, settings_file = pathlib.Path(words[3]), pathlib.Path(words[-1])
    folders = {
        str(file.parent): folder(lab, "opt"), str(settings_file.parent): folder(lab, "etc", **{settings_file.name: settings}),
        "/run/credentials/claude-proxy.service": folder(lab, "credentials", 0o500, USER, **secrets),
        "/var/log/claude-proxy": folder(lab, "log", 0o700, USER), "/tmp": folder(lab, "private-tmp", 0o1777),
    }
    shutil.copy(SINGLE_FILE, folders[str(file.parent)])
    writable = ["/var/log/claude-proxy", "/tmp"]
    mounts = [word for path in HOST_PATHS for word in ("--ro-bind-try", path, path)]
    if version:
        prefix = base_prefix(find_python(version))
        mounts += ["--ro-bind", prefix, prefix]
        words[0] = f"{prefix}/bin/python3"
    elif tuple(map(int, python_version(words[0]).split(".")[:2] or [0])) < (3, 9):
        raise Skipped(f"{words[0]} is not 3.9 or later")
    for place, path in folders.items():
        mounts += ["--bind" if place in writable else "--ro-bind", str(path), place]
    environ = {audit[0]: audit[2], "CREDENTIALS_DIRECTORY": "/run/credentials/claude-proxy.service", "LISTEN_PORT": "0"}
    return Box(mounts, words, words[0], writable, folders, environ)


def image_box(lab: Lab, version: str, settings: str, secrets: Dict[str, str]) -> Box:
    """As the image has it: Python, the libraries that it is linked with, and the file."""
    own = {f"/run/secrets/{name}": text for name, text in secrets.items()}
    folders = {"/": folder(lab, "root"), "/run/secrets": folder(lab, "secrets", 0o500, USER, **secrets)}
    shutil.copy(SINGLE_FILE, folders["/"])
    prefix = base_prefix(find_python(version))
    paths = [(path, path) for path in (prefix, *libraries(prefix))]
    compile_file(lab, [*paths, (f"{folders['/']}/{SINGLE_FILE.name}", f"/{SINGLE_FILE.name}")], prefix, folders["/"])
    paths += [(str(path), f"/{path.name}") for path in folders["/"].iterdir()]
    paths.append((str(folders["/run/secrets"]), "/run/secrets"))
    mounts = [word for path, place in paths for word in ("--ro-bind", path, place)]
    lines = [line.split("=", 1) for line in settings.splitlines()]
    environ = {**dict(lines), **dockerfile_environ(), "LISTEN_PORT": "0", "PATH": f"{prefix}/bin"}
    environ.update({f"{name.rpartition('/')[2]}_FILE": name for name in own})
    return Box(mounts, dockerfile_words("ENTRYPOINT"), "python3", [], folders, environ)


def compile_file(lab: Lab, paths: Iterable[Tuple[str, str]], prefix: str, out: pathlib.Path) -> None:
    """The Dockerfile's RUN, in a root like the image's; what it made goes into `out`."""
    mounts = [word for path, place in paths for word in ("--ro-bind", path, place)]
    work = "import subprocess, shutil, sys; subprocess.run(sys.argv[1:], check=True); shutil.copy(sys.argv[-1] + 'c', '/out')"
    command = ["/usr/bin/env", "bwrap", *mounts, "--bind", str(out), "/out", "--proc", "/proc", "--dev", "/dev", "--", "python3"]
    environ = {**lab.environ(), "PATH": f"{prefix}/bin:{os.environ.get('PATH', os.defpath)}"}
    done = lab.run([*command, "-I", "-S", "-c", work, *dockerfile_words("RUN")], environ)
    expect_equal((done.status, done.err), (0, ""), "exit status and errors of RUN")
    for path in out.iterdir():
        path.chmod(0o444)


def base_prefix(python: str) -> str:
    return subprocess.check_output([python, "-c", "import sys; print(sys.base_prefix)"], text=True).strip()


def libraries(prefix: str) -> List[str]:
    """The shared libraries outside of Python's own folder that it and its modules are linked with."""
    if not shutil.which("ldd"):
        raise Skipped("ldd is not here")
    modules = [*pathlib.Path(prefix).glob("bin/python3"), *pathlib.Path(prefix).glob("lib/python3*/lib-dynload/*.so")]
    told = subprocess.run(["ldd", *map(str, modules)], capture_output=True, text=True, check=False).stdout
    found = set(re.findall(r"(?:=> |^\s+)(/\S+) \(0x", told, re.MULTILINE))
    return sorted(path for path in found if not path.startswith(f"{prefix}/"))


def dockerfile_words(instruction: str) -> List[str]:
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", "")
    return json.loads(re.search(rf"^{instruction} .*?(\[.*\])$", text, re.MULTILINE)[1])


def dockerfile_environ() -> Dict[str, str]:
    return dict(re.findall(r"^ENV (\w+)=(\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE))


# --- a proxy in it ------------------------------------------------------------------------------


class Boxed:
    """A proxy that runs in a box. `pid` is its number out here."""

    def __init__(self, process: Any, pid: int, url: str, out: pathlib.Path) -> None:
        self.process = process
        self.pid = pid
        self.port = int(url.rpartition(":")[2])
        self.log = out.parent / "err"

    def logged(self, event: str) -> bool:
        return f'"{event}"' in read(self.log)

    def ask(self, text: str, **more: Any) -> RawClient:
        client = RawClient(self.port, 20)
        body = message_body(text, stream=True, **{"model": "claude-opus-4-8", "tools": [BASH], **more})
        client.send(request_bytes(body, fields=(f"x-api-key: {CLIENT_KEY}",)))
        return client

    def events(self, text: str) -> List[Dict[str, Any]]:
        with self.ask(text) as client:
            return whole(client)


def whole(client: RawClient) -> List[Dict[str, Any]]:
    answer = client.answer()
    expect_equal(answer.status, 200, f"status ({answer.body[:300]!r})")
    expect_equal(answer.events[-1]["type"], "message_stop", "the last event")
    return answer.events


@contextlib.contextmanager
def boxed(lab: Lab, box: Box) -> Iterator[Boxed]:
    here = lab.new_folder("boxed")
    words = box.command(*box.program)
    command = ["/bin/sh", "-c", 'exec "$@" 3>"$0"', here / "info", words[0], "--info-fd", "3", *words[1:]]
    environ = {**lab.environ(LOG_FORMAT="json", MODEL_LIMITS="false"), **box.environ}
    with started_group(command, environ, None, here) as process:
        ready = wait_until(lambda: banner_url(read(here / "out")) or process.poll() is not None, START_SECONDS)
        url = banner_url(read(here / "out"))
        expect(ready and url, f"did not start: {read(here / 'err')[-1500:]}")
        first = json.loads(read(here / "info"))["child-pid"]
        (pid,) = map(int, read(pathlib.Path(f"/proc/{first}/task/{first}/children")).split())
        yield Boxed(process, pid, url, here / "out")


def restrictions(box: Box, proxy: Boxed) -> None:
    """What the kernel says of the process: nothing else is worth a claim."""
    status = dict(re.findall(r"^(\w+):\t(.*)$", read(pathlib.Path(f"/proc/{proxy.pid}/status")), re.MULTILINE))
    expect_equal({status[f"Cap{kind}"].strip("0") for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")}, {""}, "capabilities")
    expect_equal(status["NoNewPrivs"], "1", "no new privileges")
    inner = [USER] * 4 if os.getuid() == 0 else [os.getuid()] * 4
    expect_equal([*map(int, status["Uid"].split())], inner, "users")
    rows = [row.split() for row in read(pathlib.Path(f"/proc/{proxy.pid}/mountinfo")).splitlines()]
    open_ones = [row[4] for row in rows if "ro" not in row[5].split(",") and not re.match("/(proc|dev)(/|$)", row[4])]
    expect_equal(sorted(open_ones), sorted(box.writable), "file systems that can be written to")


def probe(lab: Lab, box: Box) -> None:
    places = ["/", "/usr", "/usr/local", "/etc", "/run", "/dev", "/dev/shm", "/var", *box.folders]
    done = lab.run(box.command(box.python, "-I", "-S", "-c", PROBE, *dict.fromkeys(places)), {**lab.environ(), **box.environ})
    expect_equal((done.status, sorted(done.out.split())), (0, sorted(box.writable)), f"places to write ({done.err[-500:]})")


def healthcheck(lab: Lab, box: Box, proxy: Boxed) -> None:
    words = dockerfile_words("HEALTHCHECK") if not box.writable else [*box.program, "--healthcheck"]
    environ = {**lab.environ(), **box.environ, "LISTEN_PORT": str(proxy.port)}
    done = lab.run(box.command(*words), environ)
    expect_equal(done.status, 0, f"exit status of the health check ({done.err[-500:]})")


# --- the upstreams ------------------------------------------------------------------------------


class Part(NamedTuple):
    """What an upstream wants to be told, and what a box with it is given."""

    settings: Dict[str, str]
    secrets: Dict[str, str]
    prompts: Dict[str, str]
    models: List[str]  # before the reload, and after


PROMPTS = {"text": "say words", "tool": "call a tool", "slow": "be slow"}


@contextlib.contextmanager
def demo() -> Iterator[Part]:
    prompts = {"text": "demo: text words from upstream", "tool": 'demo: tool Bash {"command": "date"}',
               "slow": f"demo: slow {SLOW_SECONDS:g}"}
    yield Part({"UPSTREAM": "demo"}, {}, prompts, ["demo", "demo"])


@contextlib.contextmanager
def openai() -> Iterator[Part]:
    def play(asked: ChatRequest) -> List[Any]:
        if "tool" in asked.user_text:
            return calls_answer(Call("call_1", "Bash", {"command": "date"}))
        if "slow" in asked.user_text:
            return chat_stream(delta(content="words "), Pause(SLOW_SECONDS), delta(content="at last"), delta("stop"), USAGE)
        return text_answer("words ", "from ", "upstream")

    with PlayingUpstream(play) as upstream:
        yield Part({"OPENAI_BASE_URL": upstream.url}, {"OPENAI_API_KEY": "key-of-the-upstream"}, PROMPTS, ["one", "two"])
        expect_equal(upstream.mistakes, [], "mistakes of the play")


@contextlib.contextmanager
def redcap() -> Iterator[Part]:
    def vendor(body: Dict[str, Any]) -> Any:
        text = str(body["messages"])
        if "call a tool" in text:
            return call("Bash", command="date")
        return {"text": "words at last", "delay": SLOW_SECONDS} if "be slow" in text else "words from upstream"

    with Fake(token=TOKEN) as fake:
        fake.vendor.play = vendor
        models = ["claude-opus-4-7", "claude-sonnet-4.6"]
        yield Part({"REDCAP_API_URL": fake.url}, {"REDCAP_API_TOKEN": TOKEN}, PROMPTS, models)


UPSTREAMS = {"demo": demo, "openai": openai, "redcap": redcap}
BOXES = {"unit": unit_box, "image": image_box}


# --- the checks ---------------------------------------------------------------------------------


def settings_text(part: Part, turn: int) -> str:
    """The settings for the first or the second time that they are read."""
    rows = {**part.settings, "BIG_MODEL": part.models[turn], "RATE_LIMIT_RPM": str(1000 + turn), "DRAIN_TIMEOUT": "20",
            "AUDIT_REQUIRED": "true"}
    return "".join(f"{name}={text}\n" for name, text in rows.items())


def answers(proxy: Boxed, part: Part) -> None:
    deltas = [event["delta"] for event in proxy.events(part.prompts["text"]) if event["type"] == "content_block_delta"]
    expect_equal("".join(piece["text"] for piece in deltas), "words from upstream", "the text")
    events = proxy.events(part.prompts["tool"])
    blocks = [event["content_block"] for event in events if event["type"] == "content_block_start"]
    expect_equal([block.get("name") for block in blocks if block["type"] == "tool_use"], ["Bash"], "the calls")
    pieces = [event["delta"].get("partial_json", "") for event in events if event["type"] == "content_block_delta"]
    expect_equal(json.loads("".join(pieces)), {"command": "date"}, "the arguments")


def reload(box: Box, proxy: Boxed, part: Part) -> None:
    """New settings in the file, and SIGHUP."""
    (path,) = [path / "settings" for path in box.folders.values() if (path / "settings").is_file()]
    path.chmod(0o644)
    path.write_text(settings_text(part, 1))
    os.kill(proxy.pid, signal.SIGHUP)
    expect(wait_until(lambda: proxy.logged("reloaded")), f"not reloaded: {read(proxy.log)[-500:]}")


def drain(proxy: Boxed, part: Part) -> float:
    """SIGTERM in the middle of an answer: it is finished, then the process ends with 0."""
    with proxy.ask(part.prompts["slow"]) as client:
        alive = functools.partial(ask, proxy.port, path="/livez", method="GET")
        expect(wait_until(lambda: alive().json["in_flight"] == 1), "nothing is in flight")
        begun = time.monotonic()
        os.kill(proxy.pid, signal.SIGTERM)
        expect(wait_until(lambda: proxy.logged("draining")) and not proxy.logged("stopped"), "it does not drain")
        whole(client)
    expect_equal(proxy.process.wait(10), 0, "exit status")
    expect(proxy.logged("stopped"), "the log does not say that it stopped")
    return time.monotonic() - begun


def audited(lab: Lab, box: Box, part: Part) -> int:
    """The audit is whole, and says what was asked of which model."""
    environ = {**lab.environ(), **box.environ}
    done = lab.run(box.command(*box.program, "--verify-audit", box.environ["AUDIT_FILE"]), environ)
    expect_equal(done.status, 0, f"exit status of --verify-audit ({done.out}{done.err})")
    (path,) = box.folders["/var/log/claude-proxy"].iterdir()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    asked = [line for line in lines if line.get("path") == "/v1/messages"]
    expect_equal([line["outcome"] for line in asked], ["ok"] * 3, "outcomes")
    expect_equal([line["upstream_model"] for line in asked], [part.models[0]] * 2 + [part.models[1]], "models")
    expect_equal(path.stat().st_mode & 0o777, 0o600, "the mode of the audit")
    return len(lines)


def untouched(box: Box, before: Dict[str, Dict[str, str]], new: Dict[str, List[str]]) -> int:
    """No file is new or changed but those in `new`; how many there are in all."""
    after = box.see()
    for place, found in after.items():
        changed = [name for name in {**before[place], **found} if before[place].get(name) != found.get(name)]
        expect_equal(sorted(changed), new.get(place, []), f"new or changed files in {place}")
    return sum(map(len, after.values()))


def unit(lab: Lab, upstream: str, version: str = "") -> str:
    needs_bwrap()
    lab.folder.chmod(0o755)
    with UPSTREAMS[upstream]() as part:
        secrets = {"ANTHROPIC_API_KEY": CLIENT_KEY, "AUDIT_KEY": "0123456789abcdef" * 2, **part.secrets}
        box = unit_box(lab, version, settings_text(part, 0), secrets)
        before = box.see()
        with boxed(lab, box) as proxy:
            restrictions(box, proxy)
            answers(proxy, part)
            healthcheck(lab, box, proxy)
            reload(box, proxy, part)
            seconds = drain(proxy, part)
            leaks = [text for text in (CLIENT_KEY, *part.secrets.values()) if text in read(proxy.log)]
        lines = audited(lab, box, part)
        probe(lab, box)
    count = untouched(box, before, {"/var/log/claude-proxy": ["audit.jsonl"], "/etc/claude-proxy": ["settings"]})
    expect_equal(leaks, [], "secrets in the log")
    told = f"Python {python_version(find_python(version) if version else box.python)}"
    return f"{told}, drained in {seconds:.1f} s, {lines} audit lines, {count} paths, none new but the audit"


def image(lab: Lab, upstream: str, version: str) -> str:
    needs_bwrap()
    lab.folder.chmod(0o755)
    with UPSTREAMS[upstream]() as part:
        settings = "".join(f"{name}={text}\n" for name, text in {**part.settings, "BIG_MODEL": part.models[0]}.items())
        box = image_box(lab, version, settings, {"ANTHROPIC_API_KEY": CLIENT_KEY, **part.secrets})
        before = box.see()
        with boxed(lab, box) as proxy:
            restrictions(box, proxy)
            answers(proxy, part)
            healthcheck(lab, box, proxy)
            seconds = drain(proxy, part)
        probe(lab, box)
    untouched(box, before, {})
    return f"Python {python_version(find_python(version))}, drained in {seconds:.1f} s, nothing to write to"


SANDBOX_CHECKS: Dict[str, Callable[[Lab], str]] = {
    **{f"sandbox-unit-{name}": functools.partial(unit, upstream=name) for name in UPSTREAMS},
    "sandbox-unit-python-3.9": functools.partial(unit, upstream="openai", version="3.9"),
    **{f"sandbox-image-{name}": functools.partial(image, upstream=name, version="3.13") for name in UPSTREAMS},
}
