"""What the command line can find out: the upstream, a running proxy, an audit, the trust roots."""

from __future__ import annotations

import http.client
import ssl
import threading
from collections.abc import Sequence
from typing import Any, Dict, TextIO

from claude_proxy.app import App, ask_upstream
from claude_proxy.audit_files import ChainKey, audit_summary, verify_audit
from claude_proxy.errors import ProxyError
from claude_proxy.exchange import Exchange
from claude_proxy.proxies import is_socks, read_proxies
from claude_proxy.settings import Config

EXIT_OK, EXIT_FAILED, EXIT_CONFIG, EXIT_LISTEN = 0, 1, 2, 3
HEALTHCHECK_SECONDS = 5.0
CHECK_SECONDS = 60.0


def ask_in_time(app: App, shown: str) -> Dict[str, Any]:
    """Ask as a client would; here no sweeper looks after deadlines, so a timer does."""
    exchange = Exchange()
    exchange.keys = (shown,) if shown else ()
    seconds = min(app.config.request_timeout, CHECK_SECONDS)
    late = ProxyError(504, f"no answer within {seconds:g} s")
    timer = threading.Timer(seconds, exchange.cancel, [late])
    timer.daemon = True
    timer.start()
    try:
        return ask_upstream(app, exchange)
    finally:
        timer.cancel()


def healthcheck(config: Config, err: TextIO) -> int:
    """Ask the proxy that these settings describe for its health, for containers without curl."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.listen_host, config.listen_host)
    connection = health_connection(config, host)
    try:
        connection.request("GET", "/health", headers={"Host": "localhost"})
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        if config.tls_client_ca_file and isinstance(error, ssl.SSLError) and "alert" in str(error):
            return EXIT_OK  # it listens and asks who is there: without a certificate that is all
        reason = getattr(error, "strerror", None) or type(error).__name__
        print(f"no answer from {host}:{config.listen_port}: {reason}", file=err)
        return EXIT_FAILED
    finally:
        connection.close()
    return EXIT_OK if status == 200 else EXIT_FAILED


def health_connection(config: Config, host: str) -> http.client.HTTPConnection:
    """Whose certificate it is does not matter to who asks itself, by an address that no certificate
    has, and shows no key."""
    port, seconds = config.listen_port, HEALTHCHECK_SECONDS
    if not config.tls_cert_file:
        return http.client.HTTPConnection(host, port, timeout=seconds)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return http.client.HTTPSConnection(host, port, timeout=seconds, context=context)


def verify(paths: Sequence[str], secret: str, out: TextIO, err: TextIO) -> int:
    """--verify-audit: the first line that is not right, or that there is none."""
    try:
        problem, verifier = verify_audit(paths, ChainKey(secret))
    except OSError as error:
        print(f"cannot read {error.filename}: {error.strerror}", file=err)
        return EXIT_CONFIG
    for note in verifier.notes:
        print(f"note: {note}", file=out)
    if problem:
        print(problem, file=err)
        return EXIT_FAILED
    print(audit_summary(verifier), file=out)
    if verifier.unchecked:
        print(
            f"NOT VERIFIED: {verifier.unchecked} lines have keyed hashes, and AUDIT_KEY is not set;"
            " only their order was checked",
            file=err,
        )
    return EXIT_CONFIG if verifier.unchecked else EXIT_OK


def trust_roots(config: Config) -> str:
    """Which certificates an upstream's certificate is checked against, and how it is reached."""
    shown = f"; shows {config.client_cert_file}" if config.client_cert_file else ""
    return certificate_roots(config) + shown + ways_out(config)


def ways_out(config: Config) -> str:
    """The web proxies, without their credentials."""
    proxies = read_proxies(
        config.https_proxy, config.http_proxy, config.no_proxy, config.all_proxy
    )
    used = [p for p in (proxies.https, proxies.http) if p and not is_socks(p)]
    return "".join(f"; {proxy.setting} is {proxy}" for proxy in dict.fromkeys(used))


def certificate_roots(config: Config) -> str:
    if not config.ssl_verify:
        return "NONE: SSL_VERIFY=false, any certificate is accepted"
    paths = ssl.get_default_verify_paths()
    system = paths.cafile or paths.capath or "none found"
    # SSL_CERT_FILE and SSL_CERT_DIR are the system's own names for the system's roots.
    own = (paths.cafile, paths.capath)
    added = [path for path in (config.ca_file, config.ca_dir) if path and path not in own]
    return f"system ({system})" + "".join(f" and {path}" for path in added)
