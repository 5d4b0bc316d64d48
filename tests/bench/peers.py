"""The same beside proxies that others wrote and that convert as well. They are installed first.

    python3 tests/bench/peers.py [--folder FOLDER] [--with NAME] [--peer NAME=PORT[:PID]] [arguments of run.py]

Everything goes into a throw-away folder outside the repository, about 1.5 GB and five minutes the
first time; pip, npm and git are needed, and Python 3.10 or newer. A peer that cannot be installed or does not answer is told
of and left out. Each runs as its README says: one process, little logging, no database.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import shutil
import sys
import tempfile
from typing import Any, Callable, Dict, List, NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from tests.bench import run
from tests.bench.programs import NotPossible
from tests.bench.prompts import CLIENT_KEY
from tests.bench.targets import Recipe, Start
from tests.clients.install import InstallError, open_cache, run_installer

CCR = "@musistudio/claude-code-router"
CCR_VERSION = "2.0.0"
FUERGAOSI233 = "https://github.com/fuergaosi233/claude-code-proxy"
FUERGAOSI233_COMMIT = "9cc2e8ce778ff2ecd107f29af7b2e64bd31901f9"
RGS = "https://github.com/1rgs/claude-code-proxy"
RGS_COMMIT = "dd4a29aff3b470710187505daaeed20ea025e5bf"
RGS_PACKAGES = (
    "fastapi[standard]", "uvicorn", "httpx", "pydantic", "litellm", "python-dotenv", "google-auth", "google-cloud-aiplatform",
    "mcp",
)
ROUNDS = "3"


class Peer(NamedTuple):
    """What it is made with, how it is installed in a folder, and what starts it from there."""

    what: str
    install: Callable[[pathlib.Path], None]
    start: Callable[[pathlib.Path], Start]


# --- installing ------------------------------------------------------------------------------------


def venv(folder: pathlib.Path, packages: List[str]) -> None:
    run_installer([sys.executable, "-m", "venv", "--clear", str(folder / "venv")])
    pip = [str(folder / "venv/bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run_installer([*pip, *packages])


def checkout(folder: pathlib.Path, url: str, commit: str) -> None:
    """One commit of a repository, without what was before it."""
    source = str(folder / "source")
    run_installer(["git", "init", "--quiet", source])
    run_installer(["git", "-C", source, "fetch", "--quiet", "--depth", "1", url, commit])
    run_installer(["git", "-C", source, "checkout", "--quiet", "FETCH_HEAD"])


def install_litellm(folder: pathlib.Path) -> None:
    open_cache(folder).litellm()


def install_ccr(folder: pathlib.Path) -> None:
    if not shutil.which("npm"):
        raise InstallError("npm is not here: it needs Node.js 20 or newer")
    run_installer(["npm", "install", "--prefix", str(folder), "--no-audit", "--no-fund", f"{CCR}@{CCR_VERSION}"])


def install_fuergaosi233(folder: pathlib.Path) -> None:
    checkout(folder, FUERGAOSI233, FUERGAOSI233_COMMIT)
    venv(folder, ["-r", str(folder / "source/requirements.txt")])


def install_rgs(folder: pathlib.Path) -> None:
    checkout(folder, RGS, RGS_COMMIT)
    venv(folder, list(RGS_PACKAGES))


# --- starting --------------------------------------------------------------------------------------


def openai_environ(port: int, upstream: int) -> Dict[str, str]:
    """What those that read OpenAI's variables have in common."""
    return {
        "OPENAI_API_KEY": "sk-bench", "OPENAI_BASE_URL": f"http://127.0.0.1:{upstream}/v1", "LOG_LEVEL": "WARNING",
        "HOST": "127.0.0.1", "PORT": str(port), **dict.fromkeys(("BIG_MODEL", "MIDDLE_MODEL", "SMALL_MODEL"), "gpt-4o"),
    }


def start_litellm(installed: pathlib.Path) -> Start:
    def start(folder: pathlib.Path, port: int, upstream: int) -> Recipe:
        model = {"model": "openai/gpt-4o", "api_base": f"http://127.0.0.1:{upstream}/v1", "api_key": "sk-bench"}
        settings = {"drop_params": True, "telemetry": False, "use_chat_completions_url_for_anthropic_messages": True}
        config: Dict[str, Any] = {"model_list": [{"model_name": "*", "litellm_params": model}], "litellm_settings": settings}
        path = folder / "config.yaml"
        path.write_text(json.dumps(config))  # JSON is YAML
        program = open_cache(installed).litellm()
        command = [program, "--config", path, "--host", "127.0.0.1", "--port", port, "--telemetry", "False"]
        environ = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "DISABLE_ADMIN_UI": "True", "LITELLM_MASTER_KEY": CLIENT_KEY}
        return Recipe(command, environ)

    return start


def start_ccr(installed: pathlib.Path) -> Start:
    def start(folder: pathlib.Path, port: int, upstream: int) -> Recipe:
        url = f"http://127.0.0.1:{upstream}/v1/chat/completions"
        provider = {"name": "up", "api_base_url": url, "api_key": "sk-bench", "models": ["gpt-4o"]}
        routes = dict.fromkeys(("default", "background", "think", "longContext", "webSearch"), "up,gpt-4o")
        config = {
            "HOST": "127.0.0.1", "PORT": port, "LOG": False, "NON_INTERACTIVE_MODE": True, "API_TIMEOUT_MS": 600_000,
            "Providers": [provider], "Router": routes,
        }
        path = folder / ".claude-code-router" / "config.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(config))
        program = installed / "node_modules" / CCR / "dist/cli.js"
        return Recipe(["node", program, "start"], {"SERVICE_PORT": str(port)})

    return start


def start_fuergaosi233(installed: pathlib.Path) -> Start:
    def start(folder: pathlib.Path, port: int, upstream: int) -> Recipe:
        command = [installed / "venv/bin/python", "start_proxy.py"]
        return Recipe(command, openai_environ(port, upstream), installed / "source")

    return start


def start_rgs(installed: pathlib.Path) -> Start:
    def start(folder: pathlib.Path, port: int, upstream: int) -> Recipe:
        uvicorn = [installed / "venv/bin/python", "-m", "uvicorn", "server:app", "--host", "127.0.0.1", "--port", port]
        environ = {"ANTHROPIC_API_KEY": "bench", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
        command = [*uvicorn, "--log-level", "warning"]
        return Recipe(command, {**openai_environ(port, upstream), **environ}, installed / "source")

    return start


PEERS: Dict[str, Peer] = {
    "LiteLLM": Peer("Python: FastAPI, aiohttp", install_litellm, start_litellm),
    "claude-code-router": Peer("Node: Fastify, undici", install_ccr, start_ccr),
    "fuergaosi233": Peer("Python: FastAPI, openai", install_fuergaosi233, start_fuergaosi233),
    "1rgs": Peer("Python: FastAPI, LiteLLM's library", install_rgs, start_rgs),
}


# --- both ------------------------------------------------------------------------------------------


def default_folder() -> pathlib.Path:
    return pathlib.Path(tempfile.gettempdir()) / f"claude-proxy-peers-{os.getuid()}"


def installed_start(name: str, cache: pathlib.Path) -> Start:
    """What starts a peer, which is installed if it is not. InstallError."""
    folder = open_cache(cache / name).folder
    stamp = folder / "made"
    if not stamp.exists():
        for left in folder.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        PEERS[name].install(folder)
        stamp.touch()
    return PEERS[name].start(folder)


def installed(names: List[str], cache: pathlib.Path) -> Dict[str, Start]:
    starts: Dict[str, Start] = {}
    for name in names:
        try:
            starts[name] = installed_start(name, cache)
        except (InstallError, OSError) as reason:
            print(f"note: {name} is left out: {reason}", file=sys.stderr, flush=True)
    return starts


def main(argv: List[str]) -> int:
    parser = argparse.ArgumentParser(description="Measure the proxy beside others.", epilog="Other arguments are those of run.py.")
    parser.add_argument("--folder", type=pathlib.Path, default=default_folder(), help="where they are installed (default: %(default)s)")
    parser.add_argument("--with", dest="names", action="append", choices=list(PEERS), help="only this peer; may be repeated")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PORT[:PID]", help="one that runs already: as run.py's --url")
    options, rest = parser.parse_known_args(argv)
    starts = installed(options.names or list(PEERS), options.folder)
    others = [word for peer in options.peer for word in ("--url", peer)]
    return run.main(["--quick", "--rounds", ROUNDS, *others, *rest], starts)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except NotPossible as reason:
        sys.exit(f"peers.py: {reason}")
