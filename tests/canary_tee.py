"""With CANARY_TEE set, everything that the proxies of the whole suite say is kept in that folder.

What a test sees does not change, but for LOG_LEVEL=debug in processes that are told no level:

    in this process   every Log, also below its level; lines of audits; /metrics; what `main` prints
    other processes   their stdout and stderr, as the test reads them
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any, Callable, Set, Tuple

PROGRAMS = ("claude_proxy", "claude_api_proxy.py")
# Tests that hand a text to the log themselves, to see what it does with it; or that search by themselves.
NOT_KEPT = ("test_log.py", "test_canary.py", "test_names.py")
KEPT_LOCK = threading.Lock()


def keep(kind: str, data: Any) -> None:
    """Append to this process's file of a kind."""
    test = os.environ.get("PYTEST_CURRENT_TEST", "")
    if not data or any(name in test for name in NOT_KEPT):
        return
    data = data.encode("utf-8", "surrogateescape") if isinstance(data, str) else bytes(data)
    path = pathlib.Path(os.environ["CANARY_TEE"]) / f"{os.getpid()}.{kind}"
    with KEPT_LOCK, open(path, "ab") as file:
        file.write(data if data.endswith(b"\n") else data + b"\n")


def keep_everything() -> None:
    """Begin, before any test has been imported."""
    from claude_proxy import audit, audit_files, cli
    from tests import support

    keep_logs(sys.modules["claude_proxy.log"])
    keep_results(audit_files, "chain_line", lambda found: keep("audit", found[0]))
    audit.chain_line = audit_files.chain_line
    keep_printed(cli)
    keep_single(support)
    keep_metrics(support.RunningProxy)
    keep_conversations(support)
    subprocess.Popen = KeptPopen


def keep_logs(module: Any) -> None:
    log = module.Log
    write, write_line = log.write, log.write_line

    def kept_write(self: Any, level: str, event: str, fields: Any) -> None:
        if module.LOG_LEVELS[level] < self._threshold:
            told = [module.json_field(key, self._clean(value)) for key, value in fields.items()]
            keep("log", module.json_line("", level, event, told))
        write(self, level, event, fields)

    def kept_line(self: Any, line: str) -> None:
        keep("log", line)
        write_line(self, line)

    log.write, log.write_line = kept_write, kept_line


def keep_results(module: Any, name: str, keep_result: Callable[[Any], None]) -> None:
    function = getattr(module, name)

    def kept(*arguments: Any, **options: Any) -> Any:
        result = function(*arguments, **options)
        keep_result(result)
        return result

    setattr(module, name, kept)


def keep_printed(cli: Any) -> None:
    main = cli.main

    def kept_main(argv: Any = None, environ: Any = None, out: Any = None, err: Any = None) -> int:
        try:
            return main(argv, environ, out, err)
        finally:
            for stream in (out, err):
                keep("printed", getattr(stream, "getvalue", str)())

    cli.main = kept_main


def keep_single(support: Any) -> None:
    load = support.load_form

    def kept_load(form: str) -> Any:
        module = load(form)
        if form == "single":
            keep_logs(module)
            keep_results(module, "chain_line", lambda found: keep("audit", found[0]))
        return module

    support.load_form = kept_load


# Who sends these shows a credential.
CREDENTIAL_HEADERS = ("authorization", "x-api-key", "api-key", "cookie", "set-cookie", "proxy-authorization")
# Members whose values are names, figures or marks; of the rest a log has to know nothing.
NAME_MEMBERS = frozenset(
    "model type id role name object media_type finish_reason stop_reason tool_use_id tool_call_id request_id code param status "
    "owned_by created created_at provider_name file_id severity native_finish_reason display_name first_id last_id".split())


def said_words(data: bytes) -> Iterator[Tuple[str, str]]:
    """("key" or "said", word) of what a client or an upstream sends: see `canary_suite`."""
    head, mark, body = data.partition(b"\r\n\r\n")
    for line in head.decode("latin-1").split("\r\n") if mark else ():
        name, _, value = line.partition(":")
        if name.lower() in CREDENTIAL_HEADERS:
            yield from (("key", word) for word in value.split())
    for line in (body if mark and b" HTTP/1." in head[:9000] or head.startswith(b"HTTP/1.") else data).splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            yield from (("said", text) for text in said_texts(json.loads(line[6:] if line.startswith(b"data: ") else line)))


def said_texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield from (line.strip() for line in value.splitlines())
    for name, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        if name not in NAME_MEMBERS:
            yield from said_texts(inner)


# What has been kept, as tests say the same thing again and again; and what is there for its length alone.
SAID: Set[Tuple[str, str]] = set()
LONGEST_SAID, LONGEST_WORD = 65536, 200


def keep_said(data: bytes) -> None:
    if len(data) <= LONGEST_SAID:
        words = {(kind, word[:LONGEST_WORD]) for kind, word in said_words(data) if len(word) >= 8} - SAID
        SAID.update(words)
        keep("said", "".join(json.dumps(word) + "\n" for word in sorted(words)))


def keep_conversations(support: Any) -> None:
    """What tests' clients and upstreams say: the words to look for."""
    send, play = support.RawClient.send, support.ScriptedUpstream._play

    def kept_send(self: Any, data: bytes) -> None:
        keep_said(data)
        send(self, data)

    def kept_play(self: Any, sock: Any, step: Any) -> bool:
        if isinstance(step, bytes):
            keep_said(step)
        return play(self, sock, step)

    support.RawClient.send, support.ScriptedUpstream._play = kept_send, kept_play


def keep_metrics(proxy: Any) -> None:
    stop = proxy.stop

    def kept_stop(self: Any) -> None:
        from claude_proxy.metrics import render_metrics

        keep("metrics", render_metrics(self.app.metrics, 0, 0, False))
        stop(self)

    proxy.stop = kept_stop


class KeptStream:
    """A pipe whose reader is listened to."""

    def __init__(self, stream: Any, kind: str) -> None:
        self._stream, self._kind = stream, kind

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def read(self, *size: int) -> Any:
        return self._kept(self._stream.read(*size))

    def readline(self, *size: int) -> Any:
        return self._kept(self._stream.readline(*size))

    def __iter__(self) -> Any:
        return iter(self.readline, self._stream.read(0))

    def _kept(self, data: Any) -> Any:
        keep(self._kind, data)
        return data


class KeptPopen(subprocess.Popen):
    """A process of ours says what it does at every level, to whom it may concern."""

    def __init__(self, args: Any, *more: Any, **options: Any) -> None:
        words = [str(word) for word in args] if isinstance(args, (list, tuple)) else [str(args)]
        self._ours = any(program in word for program in PROGRAMS for word in words)
        if self._ours:
            environ = options.get("env")
            options["env"] = {"LOG_LEVEL": "debug", **(os.environ if environ is None else environ)}
        super().__init__(args, *more, **options)
        if self._ours:
            self.stdout = self.stdout and KeptStream(self.stdout, "stdout")
            self.stderr = self.stderr and KeptStream(self.stderr, "stderr")

    def communicate(self, *arguments: Any, **options: Any) -> Any:
        told = super().communicate(*arguments, **options)
        if self._ours:
            for kind, data in zip(("stdout", "stderr"), told):
                keep(kind, data)
        return told
