"""What is asked of each target, and how it is measured.

A result is what `load` told, in µs and per second, with the target's CPU milliseconds and its most
memory beside it. In "direct" the client asks the upstream itself, so that what a target adds is
known from the same minute of the same machine.
"""

from __future__ import annotations

import json
import pathlib
import subprocess
import time
from typing import Any, Callable, Dict, List, NamedTuple, Tuple

from tests.bench.processes import PeakMemory, family, usage
from tests.bench.programs import NotPossible, compiled
from tests.bench.prompts import HEADERS, encoded, large_request, small_request
from tests.bench.targets import Target

Result = Dict[str, Any]
PLAIN = ("direct", "nginx", "proxy", "peer")
CHECKED = (*PLAIN, "bare")
ALL = (*PLAIN, "bare", "audit")
ONE_SECOND = {"requests": 100_000, "for_ms": 1000}
TWO_SECONDS = {"requests": 100_000, "for_ms": 2000}


class Scenario(NamedTuple):
    """One question, asked of some kinds of targets. `load` are arguments of that program.

    Memory that a process once had it mostly keeps: where that is the question, it is a `fresh` one.
    """

    says: str
    plan: str
    targets: Tuple[str, ...] = PLAIN
    load: Dict[str, int] = {}
    large: bool = False
    whole: bool = False
    quick: bool = False
    fresh: bool = False

    @property
    def chunks(self) -> int:
        return 0 if self.whole else int(self.plan.split("-")[1].split("x")[0])


def paced(streams: int, ramp_ms: int, targets: Tuple[str, ...] = PLAIN, quick: bool = False) -> Scenario:
    says = f"{streams} streams, 100 chunks 50 ms apart"
    return Scenario(says, "bench-100x50", targets, {"connections": streams, "ramp_ms": ramp_ms}, quick=quick)


SCENARIOS: Dict[str, Scenario] = {
    "small": Scenario("first event, small request", "bench-1x0", ALL, {"requests": 500, "for_ms": 500}, quick=True),
    "large": Scenario("first event, 141 kB request", "bench-1x0", (*PLAIN, "relay"), {"requests": 100, "for_ms": 600}, large=True, quick=True),
    "paced1": Scenario("one stream, 200 chunks 10 ms apart", "bench-200x10", (*CHECKED, "relay"), quick=True),
    "flat1": Scenario("one stream flat out, text", "bench-2000x0", (*CHECKED, "relay"), ONE_SECOND, quick=True),
    "tool1": Scenario("one stream flat out, tool arguments", "bench-2000x0-tool", PLAIN, ONE_SECOND, quick=True),
    "flat8": Scenario("8 streams flat out", "bench-2000x0", PLAIN, {"connections": 8, **ONE_SECOND}),
    "c32": paced(32, 1000),
    "c128": paced(128, 1000, CHECKED, quick=True),
    "c512": paced(512, 2000)._replace(fresh=True),
    "c1000": paced(1000, 4000),
    "ns16": Scenario("16 connections kept alive, not streamed", "bench-1x0", ALL, {"connections": 16, **TWO_SECONDS},
                     whole=True, quick=True),
    "ns16close": Scenario("16 connections, a new one each time, not streamed", "bench-1x0", PLAIN,
                          {"connections": 16, "close": 1, **TWO_SECONDS}, whole=True),
    "waiting512": Scenario("512 streams that wait for their first byte", "bench-2x10-after3000", PLAIN,
                           {"connections": 512, "ramp_ms": 1000}, fresh=True),
}


class Bench:
    """Measures. Its folder is for what the load client reads."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder
        self._program = compiled("load")
        self._fields = folder / "fields"
        self._fields.write_text("".join(f"{line}\r\n" for line in HEADERS))

    def _body(self, scenario: Scenario) -> pathlib.Path:
        make = large_request if scenario.large else small_request
        path = self._folder / f"{scenario.plan}{'-large' * scenario.large}{'-whole' * scenario.whole}.json"
        if not path.exists():
            path.write_bytes(encoded(make(scenario.plan, stream=not scenario.whole)))
        return path

    def _command(self, target: Target, scenario: Scenario) -> List[str]:
        words: Dict[str, Any] = {
            "port": target.port, "path": target.path, "body": self._body(scenario), "fields": self._fields,
            "chunks": scenario.chunks, **scenario.load,
        }
        return [str(self._program), *(f"{name}={value}" for name, value in words.items())]

    def load(self, target: Target, scenario: Scenario) -> Result:
        """What the load client told; it ends by itself, after a minute at the latest."""
        done = subprocess.run(self._command(target, scenario), capture_output=True, text=True, timeout=120, check=False)
        if done.returncode:
            raise NotPossible(f"load: {done.stderr.strip()}")
        return json.loads(done.stdout)

    def measure(self, target: Target, scenario: Scenario) -> Result:
        pids = family(target.pid)
        cpu, memory = usage(pids)
        with PeakMemory(pids) as watch:
            result = self.load(target, scenario)
        if pids:
            result["cpu_ms"] = (usage(pids)[0] - cpu) * 1000
            result["memory_mb"] = watch.peak
            result["stream_kb"] = (watch.peak - memory) * 1000 / scenario.load.get("connections", 1)
        if pids and result["chunks"]:
            result["cpu_ms_per_1000"] = result["cpu_ms"] / result["chunks"] * 1000
        return result


WARMING = Scenario("to have everything loaded", "bench-1x0", load={"requests": 20})


# --- without load ----------------------------------------------------------------------------------

SETTLE_SECONDS = 0.5
IDLE_SECONDS = 2.0


def measure_start(start: Callable[[], Tuple[Target, float]]) -> Result:
    """A fresh process: until its first answer, and then doing nothing."""
    target, seconds = start()
    try:
        pids = family(target.pid)
        before = usage(pids)[0]
        result = {"start_ms": seconds * 1000, "start_cpu_ms": before * 1000}
        time.sleep(SETTLE_SECONDS)  # what the first answer has left to do is not idleness
        before = usage(pids)[0]
        time.sleep(IDLE_SECONDS)
        after, memory = usage(pids)
    finally:
        if target.process is not None:
            target.process.stop()
    return {**result, "idle_memory_mb": memory, "idle_cpu_percent": (after - before) / IDLE_SECONDS * 100}
