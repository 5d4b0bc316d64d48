"""The proxy without grammar check, request log and metrics: what do they cost?

None of them can be switched off by a setting, so this does it from outside. For measuring only.
"""

from __future__ import annotations

import sys

from claude_proxy import answering, app, cli, observers

# (module, name in it, what stands there instead)
REPLACED = (
    (answering, "check_grammar", iter),
    (app, "OBSERVERS", (observers.leave_gate,)),
)


def replace_all() -> None:
    for module, name, instead in REPLACED:
        getattr(module, name)  # whoever moves it shall notice
        setattr(module, name, instead)


if __name__ == "__main__":
    replace_all()
    sys.exit(cli.main())
