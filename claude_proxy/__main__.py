"""Run the proxy: python3 -m claude_proxy."""

from __future__ import annotations

import sys

from claude_proxy.cli import main

if __name__ == "__main__":
    sys.exit(main())
