"""The benchmark's own arithmetic, and that all of its parts still fit the package."""

from __future__ import annotations

import json
import shutil
import sys
import xml.etree.ElementTree as ElementTree

import pytest

from tests.bench import bare, micro, peers, plot, prompts, report, run, targets
from tests.bench.programs import NotPossible, compiled
from tests.bench.scenarios import SCENARIOS, Bench, Scenario

can_compile = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not shutil.which("cc"), reason="needs Linux and a C compiler")


def round_of(turn: int, **measures):
    return {"round": turn, "bad": 0, **measures}


def times(p50: float, p99: float = 0.0):
    return {"p50": p50, "p99": p99}


RESULTS = {
    "paced1": {
        "direct": [round_of(t, latency=times(p, 90)) for t, p in enumerate((30, 40, 50))],
        "nginx": [round_of(t, latency=times(p, 200)) for t, p in enumerate((80, 100, 90))],
        "proxy": [round_of(t, latency=times(p, 300), events_per_read=1.03) for t, p in enumerate((130, 160, 140))],
        "slow & old": [round_of(t, latency=times(p, 900)) for t, p in enumerate((530, 540, 550))],
    },
    "flat1": {
        "proxy": [round_of(0, chunks_s=100_000.0, cpu_ms_per_1000=6.0)],
        "bare": [round_of(0, chunks_s=110_000.0, cpu_ms_per_1000=5.0)],
        "slow & old": [round_of(0, chunks_s=20_000.0)],
        "quick": [round_of(0, chunks_s=40_000.0)],
    },
    "c512": {"proxy": [round_of(0), round_of(1, bad=2)]},
}
FACTS = report.Facts(RESULTS, ("slow & old", "quick"))


@pytest.mark.parametrize("name, expected", [
    (("paced1", "nginx", "latency.p50"), 90),
    (("paced1", "nginx", "latency.p50+"), 50),  # of 50, 60 and 40: each round has its own base
    (("paced1", "proxy", "latency.p50+"), 100),
    (("paced1", "proxy", "memory_mb"), None),
    (("paced1", "nobody", "latency.p50"), None),
    (("flat1", "proxy", "latency.p50+"), None),
])
def test_a_figure_is_the_median_over_rounds(name, expected):
    assert report.figure(RESULTS, *name) == expected


@pytest.mark.parametrize("found, expected", [
    (FACTS.to("nginx", "paced1", "latency.p50+"), 2.0),
    (FACTS.to("direct", "flat1", "chunks_s"), None),
    (FACTS.to_best_peer("flat1", "chunks_s", max), 2.5),
    (FACTS.to_best_peer("large", "first_text.p50+", min), None),
    (FACTS.lost("c512", "c1000"), 2.0),
    (FACTS.lost("c1000"), None),
    (round(report.on_off("cpu_ms_per_1000", "flat1")(FACTS), 6), 20.0),
    (report.quotient(1.0, 0.0), None),
    (report.quotient(1.0, -3.0), None),
])
def test_ratios(found, expected):
    assert found == expected


AT_MOST = report.Goal("", "ms", lambda facts: None, 10, 4)
AT_LEAST = report.Goal("", "×", lambda facts: None, 4, 6, at_least=True)
BETWEEN = report.Goal("", "", lambda facts: None, 1.05, least=0.98)


@pytest.mark.parametrize("goal, value, verdict", [
    (AT_MOST, 4.0, "stretch met"), (AT_MOST, 4.1, "met"), (AT_MOST, 10.1, "**missed**"), (AT_MOST, None, "not measured"),
    (AT_LEAST, 6.0, "stretch met"), (AT_LEAST, 4.0, "met"), (AT_LEAST, 3.9, "**missed**"),
    (BETWEEN, 1.0, "met"), (BETWEEN, 0.97, "**missed**"), (BETWEEN, 1.06, "**missed**"),
])
def test_verdicts(goal, value, verdict):
    assert goal.verdict(value) == verdict


def test_the_report_is_markdown_with_what_was_measured_and_nothing_else():
    text = report.report(RESULTS, {"paced1": "one stream"}, ("slow & old", "quick"))
    assert "### one stream (`paced1`)" in text
    assert "| nginx | 90 | 200 | 50 | 110 |" in text
    assert "| one paced stream: added latency per event, p50, ÷ nginx's | 2 × | ≤ 1.6 × | ≤ 1 × | **missed** |" in text
    assert "| flat out, text: events/s ÷ best peer's | 2.5 × | ≥ 2.5 × | ≥ 5 × | met |" in text
    assert "idle" not in text  # was not measured
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(row.endswith("|") for row in rows)


def test_each_goal_reads_a_scenario_and_a_measure_that_exist():
    """With a full set of results none is left without a figure."""
    full = {name: dict.fromkeys(("direct", "nginx", "proxy", "relay", "bare", "peer"), [everything()]) for name in SCENARIOS}
    full["start"] = {name: [everything()] for name in ("proxy", "single")}
    for measures in full["large"], full["small"], full["paced1"]:
        measures["direct"] = [everything(0.5)]
    assert [g.says for g in report.GOALS if g.find(report.Facts(full, ("peer",))) is None] == []


def everything(value: float = 2.0):
    plain = ("events_per_read", "reads_per_event", "cpu_ms_per_1000", "memory_mb", "chunks_s", "requests_s", "start_ms",
             "idle_memory_mb", "idle_cpu_percent", "bad")
    spread = ("latency", "first_event", "first_text", "total")
    return {"round": 0, **dict.fromkeys(plain, value), **dict.fromkeys(spread, times(value, value))}


# --- the picture -----------------------------------------------------------------------------------


def test_the_picture(tmp_path, capsys):
    source, out = tmp_path / "result.json", tmp_path / "result.svg"
    source.write_text(json.dumps({"results": RESULTS}))
    assert plot.main([str(source), str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    tree = ElementTree.fromstring(out.read_text(encoding="utf-8"))
    space = "{http://www.w3.org/2000/svg}"
    bars = [(bar.get("class"), float(bar.get("width"))) for bar in tree.iter(f"{space}rect")]
    # nginx 50, ours 100, slow 500; then events: ours 100,000, quick 40,000, slow 20,000.
    longest = plot.WIDTH - plot.NAME_WIDTH - plot.NUMBER_WIDTH - 2 * plot.MARGIN
    shares = [0.1, 0.2, 1, 1, 0.4, 0.2]
    assert bars == [(kind, pytest.approx(longest * share, abs=0.1)) for kind, share in zip(["bar", "own", "bar", "own", "bar", "bar"], shares)]
    texts = [text.text for text in tree.iter(f"{space}text")]
    assert "slow & old" in texts and "100 µs" in texts and "claude_proxy" in texts
    assert float(tree.get("height")) > max(float(bar.get("y")) + plot.BAR for bar in tree.iter(f"{space}rect"))


def test_without_a_file_the_picture_says_how(capsys):
    assert plot.main([]) == 2
    assert "RESULT.json" in capsys.readouterr().err


# --- the pieces ------------------------------------------------------------------------------------


@pytest.mark.parametrize("piece", micro.PIECES, ids=[piece.name for piece in micro.PIECES])
def test_each_piece_of_the_hot_path_runs(piece):
    assert 0 < micro.microseconds(piece.make(), piece.units, runs=1, seconds=0) < 1e6


def test_the_whole_chain_tells_every_chunk():
    app = micro.canned_app(micro.tool_chunks(), micro.blocks)
    body = prompts.encoded({**prompts.small_request("hello"), "tools": [micro.WRITE]})
    told = b"".join(app.answer(micro.messages_request(body), micro.Exchange()).body)
    assert told.count(b"input_json_delta") >= micro.CHUNKS and told.count(b"event: message_stop") == 1


def test_what_is_switched_off_is_there_to_be():
    for module, name, _ in bare.REPLACED:
        assert hasattr(module, name)


# --- what is sent ----------------------------------------------------------------------------------


def test_the_large_request_is_as_large_as_it_says_and_the_same_each_time():
    request = prompts.large_request("bench-1x0")
    body = prompts.encoded(request)
    assert len(body) == prompts.LARGE_BYTES and body == prompts.encoded(prompts.large_request("bench-1x0"))
    assert len(request["tools"]) == 20 and len(request["messages"]) == 2 * prompts.TURNS + 3
    assert request["messages"][-1] == prompts.asking("bench-1x0")
    assert body.count(b"bench-") == 1  # the upstream takes the first that it finds


@pytest.mark.parametrize("words, names", [
    ([], [*SCENARIOS, "start"]),
    (["--quick"], ["small", "large", "paced1", "flat1", "tool1", "c128", "ns16", "start"]),
    (["--quick", "--only", "c512"], ["c512"]),
])
def test_which_scenarios_are_chosen(words, names):
    assert run.chosen(run.parse(words)) == names


def test_an_unknown_scenario_is_told():
    with pytest.raises(NotPossible, match="no scenario c9"):
        run.chosen(run.parse(["--only", "c9"]))


@pytest.mark.parametrize("name", peers.PEERS)
def test_each_peer_is_given_its_port_and_the_upstream(name, tmp_path):
    (tmp_path / "litellm-venv" / "bin").mkdir(parents=True)
    (tmp_path / "litellm-venv" / "bin" / "litellm").touch()
    (tmp_path / "litellm-venv-made").touch()
    folder = tmp_path / "run"
    folder.mkdir()
    recipe = peers.PEERS[name].start(tmp_path)(folder, 4321, 9876)
    files = [path.read_text() for path in folder.rglob("*.*") if path.is_file()]
    told = " ".join([*map(str, recipe.command), *recipe.environ.values(), *files])
    assert "4321" in told and "127.0.0.1:9876/v1" in told


# --- the C programs --------------------------------------------------------------------------------


def test_a_missing_compiler_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(NotPossible, match="no C compiler"):
        compiled("load")


@pytest.fixture(scope="module")
def measuring(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    upstream = targets.start_upstream(folder)
    try:
        yield Bench(folder), upstream
    finally:
        upstream.process.stop()


@can_compile
@pytest.mark.parametrize("path", ["/v1/messages", "/v1/chat/completions"])
@pytest.mark.parametrize("kind", ["", "-tool"])
def test_client_and_upstream_understand_each_other(measuring, path, kind):
    """Chat Completions has no message_stop: each stream counts as lost, with all its chunks there."""
    bench, upstream = measuring
    scenario = Scenario("", f"bench-300x0{kind}", load={"connections": 3, "requests": 2})
    result = bench.measure(upstream._replace(path=path), scenario)
    assert result["chunks"] == 1800 and result["merged"] == 0 and result["problems"]["reordered"] == 0
    whole = path == "/v1/messages"
    assert (result["good"], result["problems"]["lost"]) == ((6, 0) if whole else (0, 6))
    assert 0 < result["latency"]["p50"] <= result["latency"]["p99"] and result["events"] > 1800


@can_compile
@pytest.mark.parametrize("load", [{"requests": 40}, {"requests": 5, "close": 1, "connections": 4}])
def test_whole_answers(measuring, load):
    bench, upstream = measuring
    result = bench.measure(upstream, Scenario("", "bench-1x0", load=load, whole=True))
    assert result["good"] == load["requests"] * load.get("connections", 1) and result["bad"] == 0


@can_compile
def test_a_paced_stream_takes_its_time(measuring):
    bench, upstream = measuring
    result = bench.load(upstream, Scenario("", "bench-5x10-after20", load={}))
    assert result["good"] == 1 and result["seconds"] >= 0.06 and result["first_text"]["p50"] >= 20_000


@can_compile
def test_a_process_is_measured(measuring):
    bench, upstream = measuring
    result = bench.measure(upstream._replace(pid=upstream.process.pid), Scenario("", "bench-2000x0", load={"requests": 5}))
    assert 0 < result["cpu_ms"] < 5000 and result["cpu_ms_per_1000"] == pytest.approx(result["cpu_ms"] / 10)
    assert 0 < result["memory_mb"] < 100


@can_compile
def test_nobody_there_is_told(measuring):
    bench, upstream = measuring
    result = bench.load(upstream._replace(port=targets.free_port()), Scenario("", "bench-1x0", load={"requests": 3}))
    assert result["good"] == 0 and result["problems"]["refused"] == 1
