"""Run the proxy: python3 -m claude_proxy."""

from __future__ import annotations

import gc
import sys

gc.disable()  # nothing that importing makes is garbage; `start_serving` lets it begin

from claude_proxy.cli import main

if __name__ == "__main__":
    sys.exit(main())
