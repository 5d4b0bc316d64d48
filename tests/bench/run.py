"""Measure the proxy beside nginx and beside nothing, on this machine, and print it as Markdown.

    python3 tests/bench/run.py [--quick] [--only NAME] [--rounds N] [--single] [--json FILE] [--url NAME=PORT[:PID]]

In each round every target does each scenario once, one after the other; what is printed is the
median over rounds. Needs Linux and a C compiler; without nginx its rows are missing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import platform
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, Dict, List, Tuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from tests.bench import report, targets
from tests.bench.programs import NotPossible
from tests.bench.scenarios import SCENARIOS, WARMING, Bench, Scenario, measure_start
from tests.bench.targets import Start, Target

PAUSE_SECONDS = 0.1
START = "start"
START_SAYS = "start, and doing nothing"
ROUNDS, QUICK_ROUNDS = 5, 2


class Session:
    """The targets that run, and what has been measured of them."""

    def __init__(self, folder: pathlib.Path, stack: contextlib.ExitStack, upstream_port: int = 0) -> None:
        self.folder = folder
        self.results: report.Results = {}
        self.notes: List[str] = []
        self.running: Dict[str, Target] = {}
        self.kinds: Dict[str, str] = {}
        self.starts: Dict[str, Start] = {}
        self._stack = stack
        self._bench = Bench(folder)
        self.upstream = targets.start_upstream(folder, upstream_port)
        stack.callback(self.upstream.process.stop)
        self.add(self.upstream, "direct")

    def add(self, target: Target, kind: str) -> None:
        self._bench.load(target, WARMING)
        self.running[target.name] = target
        self.kinds[target.name] = kind

    def fresh(self, name: str, start: Start) -> Tuple[Target, float]:
        """(the target, seconds to its first answer); NotPossible if it does not come to one."""
        target = targets.started(name, start, self.folder, self.upstream.port)
        try:
            return target, targets.wait_until_answering(target)
        except BaseException:
            target.process.stop()
            raise

    def start(self, name: str, kind: str, start: Start) -> None:
        try:
            target, _ = self.fresh(name, start)
        except NotPossible as reason:
            self.note(str(reason))
            return
        self._stack.callback(target.process.stop)
        self.starts[name] = start
        self.add(target, kind)

    def note(self, text: str) -> None:
        self.notes.append(text)
        print(f"note: {text}", file=sys.stderr, flush=True)

    def keep(self, scenario: str, name: str, turn: int, result: Dict[str, Any]) -> None:
        self.results.setdefault(scenario, {}).setdefault(name, []).append({"round": turn, **result})
        print(f"{turn} {scenario:10} {name:14} {brief(result)}", file=sys.stderr, flush=True)

    def measure_round(self, turn: int, names: List[str]) -> None:
        for name in names:
            if name == START:
                self._measure_starts(turn)
            else:
                self._measure_scenario(turn, name)

    def _measure_scenario(self, turn: int, name: str) -> None:
        scenario = SCENARIOS[name]
        for target in list(self.running.values()):
            if self.kinds[target.name] not in scenario.targets:
                continue
            if target.alive():
                self.keep(name, target.name, turn, self._measured(target, scenario))
            else:
                self.note(f"{target.name} has ended: {target.process.said()}")
                del self.running[target.name]
            time.sleep(PAUSE_SECONDS)

    def _measured(self, target: Target, scenario: Scenario) -> Dict[str, Any]:
        start = self.starts.get(target.name) if self.kinds[target.name] in ("nginx", "proxy") else None
        if start is None or not scenario.fresh:
            return self._bench.measure(target, scenario)
        other, _ = self.fresh(f"{target.name}-fresh", start)
        try:
            self._bench.load(other, WARMING)
            return self._bench.measure(other, scenario)
        finally:
            other.process.stop()

    def _measure_starts(self, turn: int) -> None:
        for name, start in self.starts.items():
            if self.kinds[name] in ("nginx", "proxy", "single", "peer"):
                self.keep(START, name, turn, measure_start(partial(self.fresh, f"{name}-fresh", start)))


def brief(result: Dict[str, Any]) -> str:
    """A line for whoever waits."""
    if START + "_ms" in result:
        return " ".join(f"{name} {value:.1f}" for name, value in result.items())
    first, half, most = (report.member(result, name) or 0 for name in ("first_text.p50", "latency.p50", "latency.p99"))
    return (
        f"good {result['good']:6} bad {result['bad']:3}  first {first:8.0f}  latency {half:7.0f} {most:8.0f}"
        f"  events/s {result['chunks_s']:8.0f}  requests/s {result['requests_s']:7.0f}  CPU/1000 {result.get('cpu_ms_per_1000', 0):6.1f}"
        f"  MB {result.get('memory_mb', 0):5.1f}  {result['noted']}"
    )


def start_own(session: Session, names: List[str], single: bool) -> None:
    """nginx and the proxy, in as many settings as the scenarios need."""
    needed = {kind for name in names if name in SCENARIOS for kind in SCENARIOS[name].targets}
    needed |= {"nginx", "proxy"} if START in names else set()
    words = targets.SINGLE_FILE if single else targets.PACKAGE
    starts = {"nginx": targets.nginx, **targets.own_targets(words)}
    for kind, start in starts.items():
        if kind in needed:
            session.start(kind, kind, start)
    if START in names and not single:
        other = targets.own_proxy(targets.SINGLE_FILE, targets.openai_settings)
        session.starts["single"], session.kinds["single"] = other, "single"


def add_running(session: Session, words: List[str]) -> None:
    """NAME=PORT or NAME=PORT:PID: what somebody else has started."""
    for word in words:
        name, _, place = word.partition("=")
        port, _, pid = place.partition(":")
        session.add(Target(name, int(port), int(pid) if pid else None), "peer")


def raise_file_limit() -> None:
    """A thousand streams are two thousand sockets in a proxy, which inherits this."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def machine() -> str:
    """What this is, and how much others use it: above 0.5 that shows in every figure."""
    names = [line for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    cpu = names[0].partition(": ")[2] if names else platform.machine()
    return f"{os.cpu_count()} × {cpu}, Linux {platform.release()}, Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}"


def parse(argv: List[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure the proxy beside nginx and beside nothing.")
    parser.add_argument("--quick", action="store_true", help=f"the main scenarios only, {QUICK_ROUNDS} rounds: two minutes")
    parser.add_argument("--full", dest="quick", action="store_false", help="all scenarios (default)")
    parser.add_argument("--rounds", type=int, metavar="N", help=f"default: {ROUNDS}")
    parser.add_argument("--only", action="append", metavar="NAME", help="only this scenario; may be repeated")
    parser.add_argument("--single", action="store_true", help="the single file in place of the package")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="also write every round's figures there")
    parser.add_argument("--url", action="append", default=[], metavar="NAME=PORT[:PID]",
                        help="measure this too, which runs already, with http://127.0.0.1:PORT/v1 of --upstream-port as its upstream")
    parser.add_argument("--upstream-port", type=int, default=0, metavar="PORT", help="where the scripted upstream listens; default: any")
    parser.add_argument("--list", action="store_true", help="show the scenarios")
    return parser.parse_args(argv)


def chosen(options: argparse.Namespace) -> List[str]:
    known = [*SCENARIOS, START]
    unknown = [name for name in options.only or [] if name not in known]
    if unknown:
        raise NotPossible(f"there is no scenario {unknown[0]}; --list shows them")
    quick = [name for name in SCENARIOS if SCENARIOS[name].quick] + [START]
    return options.only or (quick if options.quick else known)


def main(argv: List[str], peers: Mapping[str, Start] = MappingProxyType({})) -> int:
    options = parse(argv)
    if options.list:
        print("\n".join([*(f"{name:11} {s.says}" for name, s in SCENARIOS.items()), f"{START:11} {START_SAYS}"]))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is stopped
    raise_file_limit()
    names = chosen(options)
    place = machine()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="claude-proxy-bench-"))
        session = Session(pathlib.Path(folder), stack, options.upstream_port)
        start_own(session, names, options.single)
        for name, start in peers.items():
            session.start(name, "peer", start)
        add_running(session, options.url)
        for turn in range(options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)):
            session.measure_round(turn, names)
    show(session, options, place)
    return 0


def show(session: Session, options: argparse.Namespace, place: str) -> None:
    says = {**{name: s.says for name, s in SCENARIOS.items()}, START: START_SAYS}
    peers = tuple(name for name, kind in session.kinds.items() if kind == "peer")
    print(f"{place}\n\n{report.report(session.results, says, peers)}")
    for text in session.notes:
        print(f"\n{text}")
    if options.json:
        told = {"machine": place, "peers": peers, "notes": session.notes, "results": session.results}
        options.json.write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except NotPossible as reason:
        sys.exit(f"run.py: {reason}")
