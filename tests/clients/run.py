"""Drive real clients through the proxy: one line a check, exit status 0 only if all pass.

    python3 tests/clients/run.py [--list] [--cache FOLDER] [WORD ...]

With words, only the checks with one of them in their name are made; those that take minutes have
"slow" in it, and are made only for that word.
"""

from __future__ import annotations

import argparse
import pathlib
import secrets
import sys
import tempfile
import time
import traceback
from typing import Callable, Dict, List, Tuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from tests.clients.balancers import BALANCER_CHECKS
from tests.clients.claude_code import CLAUDE_CODE_CHECKS
from tests.clients.install import InstallError, default_folder, open_cache
from tests.clients.lab import Lab, Skipped, Trap, end_leftovers
from tests.clients.llama_server import LLAMA_CHECKS
from tests.clients.other_server import OTHER_SERVER_CHECKS
from tests.clients.providers import PROVIDER_CHECKS
from tests.clients.redcap import REDCAP_CHECKS, SLOW_REDCAP_CHECKS
from tests.clients.relay import RELAY_CHECKS
from tests.clients.sandbox import SANDBOX_CHECKS
from tests.clients.sdks import SDK_CHECKS
from tests.clients.single_file import SINGLE_FILE_CHECKS

Check = Callable[[Lab], str]

CHECKS: Dict[str, Check] = {
    **SINGLE_FILE_CHECKS,
    **SANDBOX_CHECKS,
    **CLAUDE_CODE_CHECKS,
    **PROVIDER_CHECKS,
    **REDCAP_CHECKS,
    **SLOW_REDCAP_CHECKS,
    **RELAY_CHECKS,
    **SDK_CHECKS,
    **OTHER_SERVER_CHECKS,
    **BALANCER_CHECKS,
    **LLAMA_CHECKS,
}


def make_check(check: Check, lab: Lab) -> Tuple[str, str]:
    """(outcome, what there is to say)."""
    before = len(lab.trap.asked)
    try:
        detail = check(lab)
    except (Skipped, InstallError) as reason:
        return "skip", str(reason)
    except AssertionError as error:
        return "FAIL", str(error)
    except Exception:
        return "FAIL", traceback.format_exc()
    finally:
        left = end_leftovers(lab.mark)
    if left:
        return "FAIL", f"left running: {left}"
    if lab.trap.asked[before:]:
        return "FAIL", f"asked other hosts: {lab.trap.asked[before:]}"
    return "ok", detail


def make_checks(names: List[str], cache_folder: pathlib.Path) -> int:
    cache, trap, mark = open_cache(cache_folder), Trap(), secrets.token_hex(8)
    outcomes = []
    for name in names:
        begun = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="claude-proxy-check-") as folder:
            lab = Lab(cache, pathlib.Path(folder).resolve(), trap, mark)
            outcome, detail = make_check(CHECKS[name], lab)
        outcomes.append(outcome)
        print(f"{outcome:4}  {time.monotonic() - begun:5.1f} s  {name:32}  {detail}", flush=True)
    failed, skipped = outcomes.count("FAIL"), outcomes.count("skip")
    tail = f", {skipped} skipped" if skipped else ""
    print(f"{outcomes.count('ok')} passed, {failed} failed{tail}")
    return 1 if failed or skipped else 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Drive real clients through the proxy.")
    parser.add_argument("--list", action="store_true", help="show the names of the checks")
    parser.add_argument("--cache", type=pathlib.Path, default=default_folder(),
                        help="where the clients are installed (default: %(default)s)")
    parser.add_argument("words", nargs="*", help="make only checks with this in their name")
    options = parser.parse_args()
    words = options.words or [""]
    slow = any("slow" in word for word in words)
    names = [n for n in CHECKS if any(w in n for w in words) and (slow or "slow" not in n)]
    if options.list:
        print("\n".join(names))
        return 0
    if not names:
        parser.error("no check has such a name; --list shows them")
    return make_checks(names, options.cache)


if __name__ == "__main__":
    sys.exit(main())
