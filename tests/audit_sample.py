"""`python3 -m tests.audit_sample FILE` writes an audit: a proxy with the demo behind it is asked three times."""

from __future__ import annotations

import sys

from tests.support import ask, load_form, message_body, running_proxy


def main() -> None:
    with running_proxy(load_form("package"), {"AUDIT_FILE": sys.argv[1], "UPSTREAM": "demo"}) as proxy:
        proxy.app.audit.begin()
        for text in ("first", "second", "third"):
            assert ask(proxy.port, message_body(text)).status == 200
        proxy.app.audit.end()


if __name__ == "__main__":
    main()
