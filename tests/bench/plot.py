"""Draws a picture of what `run.py --json` wrote: a bar for each proxy.

    python3 tests/bench/plot.py RESULT.json [PICTURE.svg]
"""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any, Dict, List, NamedTuple, Tuple
from xml.sax.saxutils import escape

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from tests.bench.report import Results, figure, number

PICTURE = pathlib.Path(__file__).with_name("result.svg")
OWN = "proxy"
SHOWN_NAMES = {"proxy": "claude_proxy", "nginx": "nginx (relays only)"}
NOT_SHOWN = ("direct", "bare", "audit", "relay", "single")

WIDTH, NAME_WIDTH, NUMBER_WIDTH = 760, 170, 90
BAR, STEP, TITLE, GAP, MARGIN = 16, 24, 34, 16, 12
STYLE = (
    "text { font: 13px system-ui, sans-serif; fill: #1f2328 } .title { font-weight: 600 } .name { text-anchor: end }"
    " .bar { fill: #8c959f } .own { fill: #0969da }"
    " @media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .bar { fill: #6e7681 } .own { fill: #4493f8 } }"
)


class Panel(NamedTuple):
    """One figure of all proxies. `scale` turns what was measured into the unit."""

    title: str
    unit: str
    scenario: str
    measure: str
    scale: float = 1.0


PANELS = (
    Panel("Added to each event of a stream (median)", "µs", "paced1", "latency.p50+"),
    Panel("Added until the first token of a 141 kB request (median)", "ms", "large", "first_text.p50+", 1e-3),
    Panel("Events a second, as fast as they come", "/s", "flat1", "chunks_s"),
    Panel("Memory, doing nothing", "MB", "start", "idle_memory_mb"),
)

Bar = Tuple[str, float]


def bars(results: Results, panel: Panel) -> List[Bar]:
    """(name, value) of those that were measured, the best first."""
    names = [name for name in results.get(panel.scenario, {}) if name not in NOT_SHOWN]
    found = [(name, figure(results, panel.scenario, name, panel.measure)) for name in names]
    known = [(name, max(value, 0.0) * panel.scale) for name, value in found if value is not None]
    more_is_better = panel.unit == "/s"
    return sorted(known, key=lambda bar: -bar[1] if more_is_better else bar[1])


def drawn_bar(bar: Bar, most: float, top: float, unit: str) -> List[str]:
    name, value = bar
    room = WIDTH - NAME_WIDTH - NUMBER_WIDTH - 2 * MARGIN
    width = max(value / most * room, 1) if most else 1
    left, line = NAME_WIDTH + MARGIN, top + BAR - 3
    kind = "own" if name == OWN else "bar"
    return [
        f'<text class="name" x="{left - 8}" y="{line}">{escape(SHOWN_NAMES.get(name, name))}</text>',
        f'<rect class="{kind}" x="{left}" y="{top}" width="{width:.1f}" height="{BAR}" rx="2"/>',
        f'<text x="{left + width + 6:.1f}" y="{line}">{number(value)} {escape(unit)}</text>',
    ]


def drawn_panel(results: Results, panel: Panel, top: float) -> Tuple[List[str], float]:
    """(its parts, where the next one begins)."""
    rows = bars(results, panel)
    if not rows:
        return [], top
    most = max(value for _, value in rows)
    parts = [f'<text class="title" x="{MARGIN}" y="{top + TITLE - 16}">{escape(panel.title)}</text>']
    for place, bar in enumerate(rows):
        parts += drawn_bar(bar, most, top + TITLE + place * STEP - 6, panel.unit)
    return parts, top + TITLE + len(rows) * STEP + GAP


def picture(results: Results) -> str:
    parts, top = [], float(MARGIN)
    for panel in PANELS:
        more, top = drawn_panel(results, panel, top)
        parts += more
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top:g}" width="{WIDTH}" height="{top:g}" role="img">'
    return "\n".join([head, f"<style>{STYLE}</style>", *parts, "</svg>", ""])


def main(argv: List[str]) -> int:
    if not argv:
        print(__doc__, file=sys.stderr)
        return 2
    told: Dict[str, Any] = json.loads(pathlib.Path(argv[0]).read_text(encoding="utf-8"))
    out = pathlib.Path(argv[1]) if argv[1:] else PICTURE
    out.write_text(picture(told["results"]), encoding="utf-8")
    print(f"{out} is drawn")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
