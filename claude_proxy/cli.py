"""The command line: arguments, start, banner, signals, and the checks that need no server.

Exit statuses: 0 done, 1 failed while running or checking, 2 wrong arguments or settings, 3 the
address cannot be listened on, 128 + N ended at once by a second signal N.
"""

from __future__ import annotations

import hashlib
import os
import re
import ssl
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Callable, Dict, List, NamedTuple, NoReturn, Optional, TextIO, Tuple

from claude_proxy.app import App
from claude_proxy.assembly import build_app
from claude_proxy.audit_files import AuditError
from claude_proxy.auth import accepted_keys
from claude_proxy.checks import (
    EXIT_CONFIG,
    EXIT_FAILED,
    EXIT_LISTEN,
    EXIT_OK,
    ask_in_time,
    healthcheck,
    trust_roots,
    verify,
)
from claude_proxy.config import VERSION, ConfigError
from claude_proxy.config_load import load_config, unknown_names
from claude_proxy.crashes import place_of, told_crashes
from claude_proxy.dotenv import DotenvError, parse_dotenv
from claude_proxy.errors import ProxyError
from claude_proxy.explain import explain_request
from claude_proxy.inflight import Inflight
from claude_proxy.log import Log
from claude_proxy.names import told_variable
from claude_proxy.otlp_send import read_plan
from claude_proxy.redaction import secret_values
from claude_proxy.routing import choose_route
from claude_proxy.server import Server
from claude_proxy.serving import serve_until_stopped
from claude_proxy.settings import SETTINGS, Config
from claude_proxy.settings_file import read_settings_file
from claude_proxy.settings_text import (
    format_config,
    format_env_example,
    format_settings_help,
    format_settings_markdown,
)

WANTED_FILES = 65536


class UsageError(Exception):
    """Settings cannot be read; the message has a line for each mistake."""


class Loaded(NamedTuple):
    config: Config
    env_file: str
    unknown: Tuple[str, ...]


class Options:
    """What the command line asks for; without arguments it is this, and the proxy is started."""

    version = check_config = check_upstream = healthcheck = False
    print_env_example = print_settings = False
    env_file: Optional[str] = None
    explain_route: Optional[str] = None
    verify_audit: Optional[List[str]] = None


def read_options(arguments: Sequence[str]) -> Options:
    # Most starts have none, and argparse with its table takes longer than reading the settings.
    return argument_parser().parse_args(arguments, Options()) if arguments else Options()


def quiet_parser() -> Any:
    import argparse  # see `read_options`

    class QuietParser(argparse.ArgumentParser):
        """Does not repeat what was typed: it may be a key. Writes the settings' help when asked."""

        def error(self, message: str) -> NoReturn:
            known = r"argument [-\w/, ]+: (?:expected [\w ]+|ignored explicit argument)"
            told = re.match(rf"{known}|unrecognized arguments|ambiguous option", message)
            super().error(told.group() if told else "wrong arguments")

        def format_help(self) -> str:
            self.epilog = "Settings (environment or .env):\n\n" + format_settings_help()
            return super().format_help()

    return QuietParser(
        prog="claude_api_proxy.py",
        description="Lets Claude Code and other Claude clients work with the model you may use.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def argument_parser() -> Any:
    parser = quiet_parser()
    parser.add_argument(
        "--version", action="store_true", help="version, own SHA-256, Python, OpenSSL"
    )
    parser.add_argument(
        "--env-file", metavar="FILE", help="read settings from FILE instead of .env"
    )
    parser.add_argument(
        "--check-config", action="store_true", help="show the settings in force and exit"
    )
    parser.add_argument(
        "--check-upstream", action="store_true", help="also ask the upstream for one word"
    )
    parser.add_argument(
        "--explain-route",
        metavar="FILE",
        help="say where the request in a JSON file (- for stdin) would go, and why; the file is its"
        ' body, or {"headers": {...}, "body": {...}}',
    )
    parser.add_argument(
        "--healthcheck", action="store_true", help="ask a running proxy for /health"
    )
    parser.add_argument(
        "--verify-audit", metavar="FILE", nargs="+",
        help="check an audit's files, oldest first, with AUDIT_KEY if one is set",
    )  # fmt: skip
    parser.add_argument("--print-env-example", action="store_true", help="print .env.example")
    parser.add_argument(
        "--print-settings", action="store_true", help="print the settings as Markdown"
    )
    return parser


def main(
    argv: Optional[Sequence[str]] = None,
    environ: Optional[Mapping[str, str]] = None,
    out: Optional[TextIO] = None,
    err: Optional[TextIO] = None,
) -> int:
    """Run the command; returns the exit status."""
    out, err = out or sys.stdout, err or sys.stderr
    environ = os.environ if environ is None else environ
    options = read_options(sys.argv[1:] if argv is None else argv)
    try:
        return run_command(options, environ, out, err)
    except Exception as error:  # a defect of ours
        print(f"claude_proxy failed: {type(error).__name__} at {place_of(error)}", file=err)
        return EXIT_FAILED


def run_command(
    options: Options, environ: Mapping[str, str], out: TextIO, err: TextIO
) -> int:
    for chosen, text in (
        (options.version, version_text),
        (options.print_env_example, format_env_example),
        (options.print_settings, format_settings_markdown),
    ):
        if chosen:
            print(text().rstrip("\n"), file=out)
            return EXIT_OK
    try:
        loaded = load_settings(options.env_file, environ)
    except UsageError as error:
        print(error, file=err)
        return EXIT_CONFIG
    if options.verify_audit:
        return verify(options.verify_audit, loaded.config.audit_key, out, err)
    if options.healthcheck:
        return healthcheck(loaded.config, err)
    if options.check_config or options.check_upstream:
        shown = environ.get("ANTHROPIC_AUTH_TOKEN", "")
        return check(loaded, options.check_upstream, shown, out, err)
    if options.explain_route:
        return explain_route(loaded.config, options.explain_route, out, err)
    return run(loaded, out, err, partial(load_settings, options.env_file, environ))


# --- settings ----------------------------------------------------------------------------------


def source_file() -> str:
    """The file that this function was read from: the single file, or this module."""
    return source_file.__code__.co_filename


def find_env_file(named: Optional[str]) -> Optional[str]:
    """The settings file: the one named, else .env here or beside the program."""
    places = (".env", os.path.join(os.path.dirname(source_file()), ".env"))
    return named or next((place for place in places if os.path.isfile(place)), None)


def file_bytes(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def load_settings(named: Optional[str], environ: Mapping[str, str]) -> Loaded:
    """Read the settings, or raise UsageError with every mistake at once."""
    path = find_env_file(named)
    try:
        text = file_bytes(path).decode("utf-8-sig") if path else ""
        values = parse_dotenv(text, environ)
        settings = read_settings(environ.get("CONFIG_FILE") or values.get("CONFIG_FILE", ""))
        config = load_config(environ, values, settings_file=settings)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text") from None
    except DotenvError as error:
        raise UsageError(f"{path}: {error}") from None
    except ConfigError as error:
        problems = "".join(f"\n  {problem}" for problem in error.problems)
        raise UsageError(f"{len(error.problems)} setting(s) need attention:{problems}") from None
    return Loaded(config, path or "", tuple(unknown_names(values)))


def read_settings(path: str) -> Dict[str, str]:
    """The settings in the JSON file of this name; none without a name."""
    if not path:
        return {}
    try:
        text = file_bytes(path).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ConfigError([f"CONFIG_FILE: cannot be read ({reason})"]) from None
    return read_settings_file(text)


def make_log(config: Config, stream: TextIO) -> Log:
    as_json = config.log_format == "json" or (config.log_format == "auto" and not stream.isatty())
    return Log(stream, config.log_level, as_json, secret_values(config))


# --- the checks --------------------------------------------------------------------------------


def version_text() -> str:
    import platform  # for this answer alone

    return "\n".join(
        (
            f"claude_proxy {VERSION}",
            f"sha256 {own_sha256()}",
            f"Python {platform.python_version()} ({sys.executable})",
            ssl.OPENSSL_VERSION,
        )
    )


def own_sha256() -> str:
    """SHA-256 of the single file; run from the package, of its modules in order of their names."""
    folder, name = os.path.split(source_file())
    files = [source_file()]
    if name == "cli.py" and os.path.exists(os.path.join(folder, "config.py")):
        places = ((place, name) for place, _, names in os.walk(folder) for name in names)
        files = sorted(os.path.join(*place) for place in places if place[1].endswith(".py"))
    digest = hashlib.sha256()
    for path in files:
        digest.update(file_bytes(path))
    return digest.hexdigest() + ("" if len(files) == 1 else f" (of {len(files)} modules)")


def check(loaded: Loaded, live: bool, shown: str, out: TextIO, err: TextIO) -> int:
    """--check-config: what is in force; with --check-upstream one question to the upstream.

    `shown` is the credential to ask with where each client has its own.
    """
    print(f"settings from the environment and {loaded.env_file or 'no .env file'}", file=out)
    print(format_config(loaded.config).rstrip("\n"), file=out)
    for name in loaded.unknown:
        told = told_variable(name)
        print(f"note: {told} in {loaded.env_file} is no setting of this version", file=out)
    try:
        app = make_app(loaded.config, err)
        name = loaded.config.upstream
        print(f"upstream {name}: {app.upstreams[name].describe()}", file=out)
        print(f"trust roots: {trust_roots(loaded.config)}", file=out)
        if live:
            print(f"upstream answered: {ask_in_time(app, shown)}", file=out)
    except (ProxyError, UsageError) as error:
        print(make_log(loaded.config, err).redact(str(error), [shown]), file=err)
        return EXIT_FAILED
    return EXIT_OK


def explain_route(config: Config, path: str, out: TextIO, err: TextIO) -> int:
    """--explain-route: what would happen to the request in a file; nothing of it is sent."""
    try:
        data = sys.stdin.buffer.read() if path == "-" else file_bytes(path)
        for line in explain_request(make_app(config, err), data):
            print(line, file=out)
    except OSError as error:
        print(f"cannot read {path}: {error.strerror}", file=err)
    except (ProxyError, UsageError) as error:
        print(error, file=err)
    else:
        return EXIT_OK
    return EXIT_FAILED


# --- running -----------------------------------------------------------------------------------


def make_app(config: Config, err: TextIO, inflight: Optional[Inflight] = None) -> App:
    log = make_log(config, err)
    try:
        return build_app(config, log, inflight or Inflight(log))
    except ConfigError as error:
        raise UsageError(str(error)) from None
    except (OSError, ssl.SSLError) as error:
        named = (error.filename or "").startswith(config.subagent_folders or ("\0",))
        what = (
            "SUBAGENT_FOLDERS: cannot be read"
            if named
            else "CA_FILE or CA_DIR: cannot be used as certificates"
        )
        raise UsageError(f"{what}: {error}") from None


def run(loaded: Loaded, out: TextIO, err: TextIO, reread: Callable[[], Loaded]) -> int:
    """Serve until a signal says stop; then drain. `reread` gives the settings anew."""
    config = loaded.config
    raise_file_limit()
    inflight = Inflight(make_log(config, err))
    try:
        app = make_app(config, err, inflight)
        server = Server(app, inflight)
        begin_audit(app, server)
    except UsageError as error:
        print(error, file=err)
        return EXIT_CONFIG
    except (OSError, OverflowError) as error:
        print(listen_problem(config, error), file=err)
        return EXIT_LISTEN

    def begun() -> None:
        print(banner(app, server.port, loaded), file=out, flush=True)
        if not config.ssl_verify:
            fields = {"meaning": "any certificate is accepted from the upstream"}
            app.log.write("critical", "ssl_verify_off", fields)  # shown at every level

    app.telemetry.begin()
    with told_crashes(app.log):
        return serve_until_stopped(server, partial(reload_settings, server, reread, err), begun)


def begin_audit(app: App, server: Server) -> None:
    try:
        app.audit.begin()
    except (OSError, AuditError) as error:
        server.server_close()
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"AUDIT_FILE or AUDIT_SYSLOG: cannot be written: {reason}") from None


def listen_problem(config: Config, error: Exception) -> str:
    where = f"{config.listen_host}:{config.listen_port}"
    reason = getattr(error, "strerror", None) or error
    return (
        f"cannot listen on {where}: {reason}. Is another copy running?"
        " LISTEN_HOST and LISTEN_PORT choose another address; port 0 takes any free one."
    )


def raise_file_limit() -> None:
    """Two descriptors a stream: the usual limit of 1024 is too few for 1,000 connections."""
    try:
        import resource
    except ImportError:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED_FILES if hard == resource.RLIM_INFINITY else min(hard, WANTED_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):
            pass  # fewer connections then; the accept loop says so when it happens


def banner(app: App, port: int, loaded: Loaded) -> str:
    """Where it listens, what answers, what to tell Claude Code. The first line is for scripts."""
    config = app.config
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(config.listen_host, config.listen_host)
    scheme = "https" if app.tls else "http"
    url = f"{scheme}://{f'[{host}]' if ':' in host and host[0] != '[' else host}:{port}"
    own = "your-REDCap-API-token" if config.upstream == "redcap" else "any-text"
    named = "ANTHROPIC_API_KEY" if config.anthropic_api_key else "AUTH_TOKEN"
    asked = accepted_keys(config) and (config.anthropic_api_key or config.auth_token)
    token = f"the-key-in-{named}" if asked else own
    models = [(word, choose_route(config, word)) for word in ("opus", "sonnet", "haiku")]
    as_asked = "as asked for" if all(word == route.model for word, route in models) else ""
    passes = config.upstream == "anthropic" and not (config.anthropic_upstream_key or asked)
    lines = [
        f"listening on {url}",
        f"  claude_proxy {VERSION}, settings from {loaded.env_file or 'the environment (no .env)'}",
        f"  upstream  {config.upstream}: {app.upstreams[config.upstream].describe()}",
        "  models    " + (as_asked or ", ".join(f"{word} -> {r.model}" for word, r in models)),
        f"  trusts    {trust_roots(config)}",
    ]
    if config.upstream == "demo":
        plan = read_plan(config)
        leaves = "no prompt" if plan.metrics_url or plan.traces_url else "no data"
        lines.append(
            "  No upstream is configured: answers come from the demo,"
            f" and {leaves} leaves this host."
        )
    if loaded.unknown:
        unknown = ", ".join(map(told_variable, loaded.unknown))
        lines.append(f"  note      no setting of this version: {unknown}")
    lines += [
        "  For Claude Code:",
        f"    export ANTHROPIC_BASE_URL={url}",
        "    and its own key, as ever" if passes else f"    export ANTHROPIC_AUTH_TOKEN={token}",
    ]
    return "\n".join(lines)


# What a listening socket, or an audit that goes on, has been made with.
NEED_RESTART = (
    "LISTEN_HOST", "LISTEN_PORT", "LISTEN_REUSE_PORT", "AUDIT", "AUDIT_FILE", "AUDIT_KEY",
)  # fmt: skip


def reload_settings(server: Server, reread: Callable[[], Loaded], err: TextIO) -> None:
    """Put new settings in force in one assignment; requests in flight keep the old ones.

    Settings that are wrong change nothing, and the log says why.
    """
    old = server.app
    try:
        loaded = reread()
        check_still_asked(old.config, loaded.config)
        app = make_app(loaded.config, err, server.inflight)
    except UsageError as error:
        old.log.error("reload_refused", problem=str(error))
        return
    server.app = app.inherit(old)
    old.transport.close()
    names = changed_settings(old.config, loaded.config)
    fixed = [name for name in names if name in NEED_RESTART]
    app.log.info(
        "reloaded", changed=", ".join(names) or "nothing", need_restart=", ".join(fixed) or None
    )


def check_still_asked(old: Config, new: Config) -> None:
    """A file that is being written looks empty, and patients' questions are not for the demo."""
    if new.upstream == "demo" != old.upstream:
        raise UsageError("the new settings name no upstream; to answer from the demo, restart")


def changed_settings(old: Config, new: Config) -> List[str]:
    """The names of the settings that differ; no values."""
    fields = [setting.name for setting in SETTINGS] + ["CUSTOM_HEADERS"]
    return [name for name in fields if getattr(old, name.lower()) != getattr(new, name.lower())]
