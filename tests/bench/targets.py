"""What is measured: nothing in between, nginx, and this proxy in several settings."""

from __future__ import annotations

import http.client
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Mapping
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

from tests.bench.processes import Process, free_port
from tests.bench.programs import NotPossible, compiled
from tests.bench.prompts import HEADERS, encoded, small_request

ROOT = pathlib.Path(__file__).resolve().parents[2]
START_SECONDS = 90.0
ASK_SECONDS = 10.0


class Recipe(NamedTuple):
    """How a target is started. Some find their settings in files, which are written before."""

    command: List[Any]
    environ: Mapping[str, str] = {}
    folder: Optional[pathlib.Path] = None


class Target(NamedTuple):
    """Something that answers on a port. Without a `pid` its CPU and memory are not known."""

    name: str
    port: int
    pid: Optional[int] = None
    process: Optional[Process] = None
    path: str = "/v1/messages"

    def alive(self) -> bool:
        return self.process is None or not self.process.ended()


Start = Callable[[pathlib.Path, int, int], Recipe]  # of a folder, its own port and the upstream's


def base_environ(folder: pathlib.Path) -> Dict[str, str]:
    """An environment made from nothing: no key, no setting and no web proxy of the caller's."""
    return {
        "PATH": os.environ.get("PATH", os.defpath) + ":/usr/sbin", "HOME": str(folder), "TMPDIR": str(folder),
        "LANG": "C.UTF-8", "NO_PROXY": "*",
    }


def started(name: str, start: Start, folder: pathlib.Path, upstream: int) -> Target:
    """Start a target in a folder of its own. It need not answer yet."""
    own = folder / name
    own.mkdir(exist_ok=True)
    port = free_port()
    recipe = start(own, port, upstream)
    environ = {**base_environ(own), **recipe.environ}
    process = Process(recipe.command, environ, recipe.folder or own, str(own / "log"))
    return Target(name, port, process.pid, process)


def wait_until_answering(target: Target) -> float:
    """Seconds from its start to the end of its first answer; NotPossible if none comes."""
    process = target.process
    assert process is not None
    status, end = 0, process.begun + START_SECONDS
    while status != 200:
        if process.ended() or time.monotonic() > end:
            raise NotPossible(f"{target.name} does not answer (status {status}); it said: {process.said()}")
        status = ask(target)
        if status != 200:
            time.sleep(0.002)
    return time.monotonic() - process.begun


def ask(target: Target) -> int:
    """The status of a small question, not streamed; 0 if there is none."""
    connection = http.client.HTTPConnection("127.0.0.1", target.port, timeout=ASK_SECONDS)
    headers = dict(line.split(": ", 1) for line in HEADERS)
    try:
        connection.request("POST", target.path, encoded(small_request("bench-1x0", stream=False)), headers)
        response = connection.getresponse()
        response.read()
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()
    return response.status


# --- the upstream ----------------------------------------------------------------------------------


def start_upstream(folder: pathlib.Path, port: int = 0) -> Target:
    log = folder / "upstream.log"
    process = Process([compiled("upstream"), port], base_environ(folder), folder, log.name)
    end = time.monotonic() + ASK_SECONDS
    while not log.read_text().endswith("\n"):
        if process.ended() or time.monotonic() > end:
            raise NotPossible(f"the scripted upstream does not start: {process.said()}")
        time.sleep(0.01)
    return Target("direct", int(log.read_text()), process=process)


# --- nginx -----------------------------------------------------------------------------------------

NGINX = """\
daemon off; worker_processes 2; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 8192; }}
http {{
  access_log off; tcp_nodelay on; keepalive_requests 10000000; client_max_body_size 32m; client_body_buffer_size 1m;
  client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  upstream model {{ server 127.0.0.1:{upstream}; keepalive 1024; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://model; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
      proxy_read_timeout 600s;
    }}
  }}
}}
"""


def nginx(folder: pathlib.Path, port: int, upstream: int) -> Recipe:
    """It relays what it gets: the upstream speaks both dialects."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if not program:
        raise NotPossible("nginx is not here, so nothing is compared with it; on Debian: apt-get install nginx-light")
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(folder=folder, port=port, upstream=upstream))
    return Recipe([program, "-p", folder, "-c", config])


# --- this proxy ------------------------------------------------------------------------------------

PACKAGE = ("-m", "claude_proxy")
SINGLE_FILE = (str(ROOT / "claude_api_proxy.py"),)
BARE = (str(pathlib.Path(__file__).with_name("bare.py")),)


def openai_settings(upstream: int) -> Dict[str, str]:
    return {"OPENAI_BASE_URL": f"http://127.0.0.1:{upstream}/v1", "OPENAI_API_KEY": "bench-key"}


def anthropic_settings(upstream: int) -> Dict[str, str]:
    return {"UPSTREAM": "anthropic", "ANTHROPIC_FORWARD_URL": f"http://127.0.0.1:{upstream}"}


def own_proxy(
    words: Tuple[str, ...], settings: Callable[[int], Dict[str, str]], python: str = sys.executable, **more: str
) -> Start:
    """The proxy with its usual settings, and room for as many streams as are measured."""

    def start(folder: pathlib.Path, port: int, upstream: int) -> Recipe:
        environ = {"LISTEN_PORT": str(port), "MAX_CONNECTIONS": "4000", "PYTHONPATH": str(ROOT), **settings(upstream), **more}
        return Recipe([python, *words], environ)

    return start


def own_targets(words: Tuple[str, ...], python: str = sys.executable) -> Dict[str, Start]:
    return {
        "proxy": own_proxy(words, openai_settings, python),
        "relay": own_proxy(words, anthropic_settings, python),
        "bare": own_proxy(BARE, openai_settings, python, LOG_LEVEL="error"),
        "audit": own_proxy(words, openai_settings, python, AUDIT="file", AUDIT_FILE="audit.jsonl"),
    }
