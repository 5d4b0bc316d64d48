"""Medians over rounds, ratios between targets, and how they stand to the goals, as Markdown.

Results are {scenario: {target: [one result a round]}}. A figure is named SCENARIO/TARGET/MEASURE,
such as "paced1/proxy/latency.p50"; MEASURE+ is what the target adds to "direct", round by round.
"""

from __future__ import annotations

from statistics import median
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

Results = Dict[str, Dict[str, List[Dict[str, Any]]]]
Value = Optional[float]


def member(result: Dict[str, Any], name: str) -> Value:
    value: Any = result
    for word in name.split("."):
        value = value.get(word) if isinstance(value, dict) else None
    return value


def of_rounds(results: Results, scenario: str, target: str, measure: str) -> List[float]:
    """The figure of each round that has it. Without "direct" nothing is known to be added."""
    rounds = results.get(scenario, {}).get(target, [])
    if not measure.endswith("+"):
        return [value for value in (member(r, measure) for r in rounds) if value is not None]
    base = {r.get("round"): member(r, measure[:-1]) for r in results.get(scenario, {}).get("direct", [])}
    pairs = [(member(r, measure[:-1]), base.get(r.get("round"))) for r in rounds]
    return [value - direct for value, direct in pairs if value is not None and direct is not None]


def figure(results: Results, scenario: str, target: str, measure: str) -> Value:
    """The median over rounds."""
    values = of_rounds(results, scenario, target, measure)
    return median(values) if values else None


def quotient(a: Value, b: Value) -> Value:
    """Nothing is known where noise has taken more than was added."""
    return a / b if a is not None and b is not None and b > 0 else None


# --- figures that goals are set for ----------------------------------------------------------------


class Facts(NamedTuple):
    """Results, and which of the targets are converting peers."""

    results: Results
    peers: Tuple[str, ...] = ()
    target: str = "proxy"

    def own(self, scenario: str, measure: str) -> Value:
        return figure(self.results, scenario, self.target, measure)

    def of(self, target: str, scenario: str, measure: str) -> Value:
        return figure(self.results, scenario, target, measure)

    def to(self, target: str, scenario: str, measure: str) -> Value:
        return quotient(self.own(scenario, measure), self.of(target, scenario, measure))

    def to_best_peer(self, scenario: str, measure: str, best: Callable[[List[float]], float]) -> Value:
        found = [self.of(peer, scenario, measure) for peer in self.peers]
        known = [value for value in found if value is not None]
        return quotient(self.own(scenario, measure), best(known) if known else None)

    def lost(self, *scenarios: str) -> Value:
        """Streams that were not whole and in order, in all rounds."""
        rounds = [r for s in scenarios for r in self.results.get(s, {}).get(self.target, [])]
        return float(sum(r["bad"] for r in rounds)) if rounds else None


class Goal(NamedTuple):
    """A figure, and what it should be: at most (or, with `least`, at least) so much."""

    says: str
    unit: str
    find: Callable[[Facts], Value]
    bound: float
    stretch: Optional[float] = None
    least: Optional[float] = None
    at_least: bool = False

    def met(self, value: float, bound: float) -> bool:
        if self.at_least:
            return value >= bound
        return value <= bound and (self.least is None or value >= self.least)

    def verdict(self, value: Value) -> str:
        if value is None:
            return "not measured"
        if self.stretch is not None and self.met(value, self.stretch):
            return "stretch met"
        return "met" if self.met(value, self.bound) else "**missed**"

    def shown(self, bound: Optional[float]) -> str:
        if bound is None:
            return ""
        if self.least is not None:
            return f"{self.least:g} to {bound:g} {self.unit}".strip()
        return f"{'≥' if self.at_least else '≤'} {bound:g} {self.unit}".strip()


def on_off(measure: str, scenario: str) -> Callable[[Facts], Value]:
    """Percent that the proxy costs more than the bare one."""

    def find(facts: Facts) -> Value:
        ratio = facts.to("bare", scenario, measure)
        return None if ratio is None else (ratio - 1) * 100

    return find


def start_of(target: str) -> Callable[[Facts], Value]:
    return lambda facts: facts.of(target, "start", "start_ms")


GOALS: Tuple[Goal, ...] = (
    Goal("one paced stream: added latency per event, p50, ÷ nginx's", "×", lambda f: f.to("nginx", "paced1", "latency.p50+"), 1.6, 1.0),
    Goal("one paced stream: latency per event, p99", "µs", lambda f: f.own("paced1", "latency.p99"), 400, 250),
    Goal("one paced stream: events per read", "", lambda f: f.own("paced1", "events_per_read"), 1.05, least=0.98),
    Goal("one paced stream: reads per event", "", lambda f: f.own("paced1", "reads_per_event"), 1.05, least=0.98),
    Goal("128 paced streams: latency per event, p50, ÷ nginx's", "×", lambda f: f.to("nginx", "c128", "latency.p50"), 2.5, 2.0),
    Goal("128 paced streams: latency per event, p99", "µs", lambda f: f.own("c128", "latency.p99"), 1500, 500),
    Goal("128 paced streams: CPU for 1,000 events", "ms", lambda f: f.own("c128", "cpu_ms_per_1000"), 75, 50),
    Goal("small request: first event, added, ÷ nginx's", "×", lambda f: f.to("nginx", "small", "first_event.p50+"), 3, 2),
    Goal("small request: first text, added, ÷ best peer's", "×", lambda f: f.to_best_peer("small", "first_text.p50+", min), 0.333),
    Goal("141 kB request, converted: first text, added, ÷ best peer's", "×", lambda f: f.to_best_peer("large", "first_text.p50+", min), 0.7),
    Goal("141 kB request, converted: first event, added", "µs", lambda f: f.own("large", "first_event.p50+"), 2000, 1200),
    Goal("141 kB request, relayed: first event, added, ÷ nginx's", "×",
         lambda f: quotient(f.of("relay", "large", "first_event.p50+"), f.of("nginx", "large", "first_event.p50+")), 2, 1.5),
    Goal("flat out, text: events/s ÷ best peer's", "×", lambda f: f.to_best_peer("flat1", "chunks_s", max), 2.5, 5, at_least=True),
    Goal("flat out, tool arguments: events/s ÷ best peer's", "×", lambda f: f.to_best_peer("tool1", "chunks_s", max), 2.5, 5, at_least=True),
    Goal("flat out, text: CPU for 1,000 events", "ms", lambda f: f.own("flat1", "cpu_ms_per_1000"), 10, 4),
    Goal("flat out, tool arguments: CPU for 1,000 events", "ms", lambda f: f.own("tool1", "cpu_ms_per_1000"), 10, 4),
    Goal("not streamed, 16 kept alive: requests/s ÷ best peer's", "×", lambda f: f.to_best_peer("ns16", "requests_s", max), 4, 6, at_least=True),
    Goal("512 and 1,000 paced streams: lost or reordered", "", lambda f: f.lost("c512", "c1000"), 0),
    Goal("512 paced streams: latency per event, p50", "µs", lambda f: f.own("c512", "latency.p50"), 500, 200),
    Goal("1,000 paced streams: latency per event, p50", "µs", lambda f: f.own("c1000", "latency.p50"), 10_000, 1000),
    Goal("idle: memory", "MB", lambda f: f.own("start", "idle_memory_mb"), 28, 25),
    Goal("512 paced streams: memory", "MB", lambda f: f.own("c512", "memory_mb"), 80, 60),
    Goal("512 waiting streams: memory", "MB", lambda f: f.own("waiting512", "memory_mb"), 80, 60),
    Goal("idle: CPU", "%", lambda f: f.own("start", "idle_cpu_percent"), 0.2),
    Goal("start to first answer, package", "ms", start_of("proxy"), 120, 80),
    Goal("start to first answer, single file", "ms", start_of("single"), 120, 80),
    Goal("grammar check, metrics and log: CPU flat out, more than without", "%", on_off("cpu_ms_per_1000", "flat1"), 15, 5),
    Goal("grammar check, metrics and log: CPU of 128 streams, more than without", "%", on_off("cpu_ms_per_1000", "c128"), 15, 5),
    Goal("grammar check, metrics and log: added latency per event, more than without", "%", on_off("latency.p50+", "paced1"), 15, 5),
)


# --- Markdown --------------------------------------------------------------------------------------

Column = Tuple[str, str]  # its title, and its measure
STREAMED: Tuple[Column, ...] = (
    ("p50 µs", "latency.p50"), ("p99 µs", "latency.p99"), ("added p50", "latency.p50+"), ("added p99", "latency.p99+"),
    ("events/read", "events_per_read"), ("reads/event", "reads_per_event"), ("first text p99", "first_text.p99"),
    ("CPU ms/1,000", "cpu_ms_per_1000"), ("MB", "memory_mb"), ("bad", "bad"),
)
FIRST: Tuple[Column, ...] = (
    ("first event µs", "first_event.p50"), ("first text µs", "first_text.p50"), ("first text p99", "first_text.p99"),
    ("added, event", "first_event.p50+"), ("added, text", "first_text.p50+"), ("bad", "bad"),
)
FLAT: Tuple[Column, ...] = (
    ("events/s", "chunks_s"), ("CPU ms/1,000", "cpu_ms_per_1000"), ("events/read", "events_per_read"), ("glued", "merged"), ("bad", "bad"),
)
WHOLE: Tuple[Column, ...] = (
    ("requests/s", "requests_s"), ("p50 µs", "total.p50"), ("p99 µs", "total.p99"), ("CPU ms/1,000", "cpu_ms_per_1000"),
    ("MB", "memory_mb"), ("bad", "bad"),
)
START: Tuple[Column, ...] = (
    ("first answer ms", "start_ms"), ("CPU ms", "start_cpu_ms"), ("idle MB", "idle_memory_mb"), ("idle CPU %", "idle_cpu_percent"),
)
COLUMNS: Dict[str, Tuple[Column, ...]] = {
    "small": FIRST, "large": FIRST, "flat1": FLAT, "tool1": FLAT, "flat8": FLAT, "ns16": WHOLE, "ns16close": WHOLE,
    "waiting512": (("MB", "memory_mb"), ("kB a stream", "stream_kb"), ("first text p99", "first_text.p99"), ("bad", "bad")),
    "start": START,
}


def number(value: Value) -> str:
    """Three digits that mean something."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table(head: List[str], rows: List[List[str]]) -> str:
    marks = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, marks, *rows))


def scenario_table(results: Results, scenario: str) -> str:
    columns = COLUMNS.get(scenario, STREAMED)
    targets = results[scenario]
    rows = [[name, *(number(figure(results, scenario, name, measure)) for _, measure in columns)] for name in targets]
    used = [i for i in range(len(columns)) if any(row[i + 1] for row in rows)]
    head = ["", *(columns[i][0] for i in used)]
    return table(head, [[row[0], *(row[i + 1] for i in used)] for row in rows])


def goals_table(facts: Facts, known_only: bool = True) -> str:
    rows = []
    for goal in GOALS:
        value = goal.find(facts)
        if value is not None or not known_only:
            shown = f"{number(value)} {goal.unit}".strip() if value is not None else ""
            rows.append([goal.says, shown, goal.shown(goal.bound), goal.shown(goal.stretch), goal.verdict(value)])
    return table(["", "measured", "goal", "stretch", ""], rows)


def report(results: Results, says: Dict[str, str], peers: Tuple[str, ...] = ()) -> str:
    parts = [f"### {says.get(name, name)} (`{name}`)\n\n{scenario_table(results, name)}" for name in results]
    goals = f"### Goals (`proxy`)\n\n{goals_table(Facts(results, peers))}"
    return "\n\n".join([*parts, goals])
