"""Drive the single file through abuse, and print a table. Needs Linux (/proc) and a few minutes.

Each case has a proxy and an upstream of its own, in processes of their own, and is itself a process:
what is measured is the proxy alone. A case fails for another answer than the expected one, for more
memory than it may take, for threads that stay, for a line in the log that tells of a defect, or if a
normal request does not work afterwards. Exit status 0 only if none does.

    python3 tests/torture/run.py            # all of them
    python3 tests/torture/run.py gzip soak  # those with a word in their name
"""

from __future__ import annotations

import argparse
import json
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, Dict, List, Tuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from tests.torture.cases_clients import CLIENT_CASES
from tests.torture.cases_lives import LIFE_CASES
from tests.torture.cases_upstream import UPSTREAM_CASES
from tests.torture.rig import ROOT, Rig, Sampler, forget_peak, log_trouble, wait_for

CASES = {**CLIENT_CASES, **UPSTREAM_CASES, **LIFE_CASES}
LONGEST_CASE = 240
AT_ONCE = 2
WARM_REQUESTS = 5
ROW = "{outcome:4}  {case:38}  {memory:>12}  {threads:>12}  {after:5}  {answer}"


def raise_file_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard if hard != resource.RLIM_INFINITY else max(soft, 16384), hard))


# --- one case ------------------------------------------------------------------------------------


def measured(name: str, single: pathlib.Path, folder: pathlib.Path) -> Dict[str, Any]:
    """Do a case in this process; what came of it."""
    action, settings, most = CASES[name]
    rig = Rig(single, folder, settings)
    try:
        for _ in range(WARM_REQUESTS):
            assert rig.fine(), "not even a first request works"
        wait_for(lambda: rig.see().threads <= 3, 2)
        forget_peak(rig.proxy.pid)
        before = rig.see()
        sampler = Sampler(rig.see)
        answer, problem = answer_of(action, rig)
        row = {"case": name, "answer": answer, "problems": [problem] if problem else []}
        look_after(row, rig, before, sampler, most)
    finally:
        rig.stop()
    row["problems"] += [f"log: {line}" for line in log_trouble(rig.log_text())[:2]]
    return row


def answer_of(action: Any, rig: Rig) -> Tuple[str, str]:
    """(what was answered, what is wrong with it)."""
    try:
        return action(rig), ""
    except (AssertionError, OSError, ValueError, LookupError) as error:
        return "", f"{type(error).__name__}: {error}"[:400]


def look_after(row: Dict[str, Any], rig: Rig, before: Any, sampler: Sampler, most: int) -> None:
    """Memory, threads and a normal request, if the proxy still runs (one case ends it)."""
    problems = row["problems"]
    if rig.proxy.poll() is not None:
        sampler.end()
        problems += [] if rig.proxy.returncode == 0 else [f"it ended with {rig.proxy.returncode}"]
        row.update(memory="", threads=f"{before.threads}/{sampler.threads}/-", after="ended")
        return
    peak = rig.see().peak - before.rss
    back = wait_for(lambda: rig.see().threads <= before.threads, 10)
    left = rig.see()
    row["threads"] = f"{before.threads}/{max(sampler.threads, before.threads)}/{left.threads}"
    fine = rig.fine()
    sampler.end()
    row.update(memory=f"{peak:.1f}/{left.rss - before.rss:.1f}", after="ok" if fine else "no")
    problems += [] if back else ["threads stay"]
    problems += [] if fine else ["a normal request does not work afterwards"]
    problems += [] if peak <= most else [f"more than {most} MB over idle"]


# --- all of them ---------------------------------------------------------------------------------


def make_single(folder: pathlib.Path) -> pathlib.Path:
    single = folder / "claude_api_proxy.py"
    subprocess.run([sys.executable, "-m", "claude_proxy.amalgamate", "--output", single], cwd=ROOT, check=True)
    return single


def in_process(name: str, single: pathlib.Path) -> Dict[str, Any]:
    """A case in a process of its own."""
    command = [sys.executable, __file__, "--case", name, "--single", str(single)]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LONGEST_CASE, check=False)
        return json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        problem = f"took more than {LONGEST_CASE} s"
    except (ValueError, IndexError):
        problem = done.stderr[-400:]
    return {"case": name, "answer": "", "memory": "", "threads": "", "after": "", "problems": [problem]}


def show(row: Dict[str, Any]) -> None:
    outcome = "FAIL" if row["problems"] else "ok"
    print(ROW.format(outcome=outcome, **{k: v for k, v in row.items() if k != "problems"}), flush=True)
    for problem in row["problems"]:
        print(f"      {problem}", flush=True)


def run_all(names: List[str], at_once: int) -> int:
    begun = time.monotonic()
    print(ROW.format(outcome="", case="case", answer="answer", memory="peak/left MB", threads="threads b/p/a", after="after"))
    with tempfile.TemporaryDirectory(prefix="claude-proxy-torture-") as folder:
        single = make_single(pathlib.Path(folder))
        with ThreadPoolExecutor(at_once) as workers:
            jobs = [workers.submit(in_process, name, single) for name in names]
            rows = []
            for job in as_completed(jobs):
                rows.append(job.result())
                show(rows[-1])
    failed = sum(bool(row["problems"]) for row in rows)
    print(f"{len(rows) - failed} passed, {failed} failed; {time.monotonic() - begun:.0f} s")
    return 1 if failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Drive the proxy through abuse.")
    parser.add_argument("--list", action="store_true", help="show the names of the cases")
    parser.add_argument("--at-once", type=int, default=AT_ONCE, help="cases at a time (default: %(default)s)")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--single", type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("words", nargs="*", help="only cases with this in their name")
    options = parser.parse_args()
    raise_file_limit()
    if options.case:
        with tempfile.TemporaryDirectory(prefix="claude-proxy-torture-") as folder:
            print(json.dumps(measured(options.case, options.single, pathlib.Path(folder).resolve())))
        return 0
    names = [name for name in CASES if any(word in name for word in options.words or [""])]
    if options.list:
        print("\n".join(names))
        return 0
    return run_all(names, options.at_once)


if __name__ == "__main__":
    sys.exit(main())
