"""What a ladder's records come to: rows in order, ratios to plain eager and to the step before, and where memory ends."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
import scripted
from scripted import in_rounds, scaled, with_rungs

from harness.engine import Rung
from harness.ladder.batches import groups, sweep
from harness.ladder.climb import Asked, climb
from harness.ladder.rows import ladders
from harness.ladder.show import notes, print_ladder
from harness.planning.plan import Options, Plan
from harness.plugins import discover
from harness.recording.records import read_folder
from harness.report import markdown
from harness.working.run import Result

TIMES = {"none": 1.0, "a": 0.5, "a+b": 0.25, "b": 0.6, "default": 0.4}


def record(rungs: str, factor: float, **more) -> dict:
    found = scaled(factor, **more)
    for part in ("requested", "conditions"):
        found[part]["rungs"] = rungs
    return found


@pytest.fixture
def records() -> list[dict]:
    return [record(rungs, factor) for rungs, factor in TIMES.items()]


def told(rows) -> list[tuple[str, str]]:
    return [(row.kind, row.added) for row in rows]


def test_the_rows_come_in_the_order_of_the_ladder_however_the_records_come(records):
    for given in (records, records[::-1]):
        ((rows),) = ladders(given)
        assert told(rows) == [
            ("baseline", "none"),
            *[("cumulative", "a"), ("cumulative", "b")],
            ("default", "default"),
            *[("single", "a"), ("single", "b")],
        ]


def test_each_step_is_compared_with_plain_eager_and_with_the_step_before(records):
    (rows,) = ladders(records)
    found = {(row.kind, row.added): row.to_json() for row in rows}
    top = found["cumulative", "b"]
    assert top["speedup"]["latency_ms"]["times"] == pytest.approx(4)
    assert top["step_speedup"]["latency_ms"]["times"] == pytest.approx(2)
    low, high = top["speedup"]["latency_ms"]["interval"]
    assert low < 4 < high
    assert top["speedup"]["latency_ms"]["verdict"] == top["step_speedup"]["latency_ms"]["verdict"] == "better"
    assert found["single", "b"]["speedup"]["latency_ms"]["times"] == pytest.approx(1 / 0.6)
    assert found["baseline", "none"]["speedup"] == {}


def test_rungs_one_by_one_alone_are_no_ladder(records):
    (rows,) = ladders([r for r in records if r["requested"]["rungs"] != "a+b"])
    assert told(rows) == [("baseline", "none"), ("default", "default"), ("single", "a"), ("single", "b")]


def test_a_step_that_is_not_what_it_says_has_no_ratio_and_the_next_is_compared_with_the_last_that_was(records):
    broken = {**record("a+b", 0.3), "status": "mismatch", "reason": "rung b is not in force: too long"}
    (rows,) = ladders([*[r for r in records if r["requested"]["rungs"] != "a+b"], broken, record("a+b+c", 0.1)])
    found = {(row.kind, row.added): row.to_json() for row in rows}
    assert found["cumulative", "b"]["speedup"] == {} and "not in force" in found["cumulative", "b"]["reason"]
    assert found["cumulative", "c"]["step_speedup"]["latency_ms"]["times"] == pytest.approx(5)


def test_a_further_precision_is_compared_with_the_top_and_changes_the_output(records):
    (rows,) = ladders([*[{**r, "precision": "bf16"} for r in records], record("a+b", 0.2, precision="fp8_block")])
    last = next(row for row in rows if row.kind == "precision")
    assert last.changes_output
    assert last.to_json()["step_speedup"]["latency_ms"]["times"] == pytest.approx(1.25)


def test_a_precision_without_a_speed_shows_its_accuracy_once_in_each_work():
    why = {"status": "skipped", "latency_ms": None, "reason": "emulated on cpu"}
    records = [record(rungs, 1.0, precision="bf16", batch_size=size) for rungs in ("none", "a") for size in (2, 16)]
    records += [{**record("a", 1.0, batch_size=size), **why} for size in (2, 16)]
    page = io.StringIO()
    print_ladder(records, page)
    assert page.getvalue().count("off: emulated on cpu") == 1 and "in fp8" not in page.getvalue()
    records.append(with_rungs(scripted.record("ppl", [3.0, 3.1]), "a"))
    for rows in ladders(records):
        (low,) = (row for row in rows if row.perf["precision"] == "fp8")
        assert low.kind == "precision" and low.ppl["perplexity"] > 1 and low.to_json()["latency_ms"] is None
        assert "no speed of top, in fp8*: emulated on cpu" in notes(rows)


def test_what_could_not_be_on_is_listed_with_its_reason_and_cached_prompts_are_said(records):
    off = {**record("c", 1.0), "status": "skipped", "reason": "rung c: needs SM 89"}
    cached = record("a+b+d", 0.2, prefix_cache=True, prefix_cache_hits=64)
    missed = record("d", 0.2, prefix_cache=True)
    together = record("a+b+d+e", 0.2, speculative_decoding="ngram") | {"itl_ms": None}
    page = io.StringIO()
    print_ladder([*records, off, cached, missed, together], page)
    assert "no ITL of + e: tokens that come together have one time" in page.getvalue()
    assert "off: c: needs SM 89" in page.getvalue()
    lines = page.getvalue().splitlines()
    assert "TTFT of prompts that were cached, as every iteration repeats them: + d" in lines
    assert "prefix cache on, and no prompt's beginning was in it: only d" in lines


def test_a_step_that_lacks_a_round_is_said_to_cover_less_noise():
    starts = {"b": 2}
    records = [
        in_rounds([record(rungs, factor) for _ in range(starts.get(rungs, 3))], "s") for rungs, factor in TIMES.items()
    ]
    (rows,) = ladders(records)
    said = [line for line in notes(rows) if line.startswith("noise in")]
    assert len(said) == 2 and "that of 3 rounds" in said[0]
    assert said[1].startswith("noise in those of only b: that of iterations inside a start")


def test_noise_is_said_of_the_step_that_had_it(records):
    noisy = {**record("a+b+d", 0.2), "noise": ["iteration 2 took 2.4 times as long", "and more"]}
    page = io.StringIO()
    print_ladder([*records, noisy], page)
    assert [line for line in page.getvalue().splitlines() if line.startswith("noise of")] == [
        "noise of + d: iteration 2 took 2.4 times as long"
    ]


def test_a_perplexity_says_of_how_many_windows_it_is_and_of_what_it_says_nothing():
    hf = {"engine": "hf", "precision": "bf16"}
    records = [record(rungs, 1.0, **hf) for rungs in ("none", "static_cache", "static_cache+fp8_kv")]
    nlls = {"none": [3.0, 3.1], "static_cache": [3.0, 3.2], "static_cache+fp8_kv": [3.0, 3.2]}
    records += [with_rungs(scripted.record("ppl", means, **hf), rungs) for rungs, means in nlls.items()]
    page = io.StringIO()
    print_ladder(records, page)
    assert "perplexity: 2 windows of stdlib" in page.getvalue()
    said = [line for line in page.getvalue().splitlines() if line.startswith("scoring does not go through")]
    assert said == ["scoring does not go through + fp8_kv*, so its perplexity says nothing of it; KL decode does"]


def test_no_number_of_a_long_ladder_is_cut_short():
    folder = Path(__file__).parents[2] / "docs/h200/ladder"
    page = io.StringIO()
    print_ladder(list(read_folder(folder)), page)
    assert "…" not in page.getvalue() and "71.7 x (21.5-239.0)" in page.getvalue()
    (row,) = [line for line in markdown([folder]).splitlines() if "+ fused_step" in line and "| 16 |" in line]
    assert "| 107.8 × (59.0–197.1) | 3.05 × (3.00–3.10) |" in row


def test_records_without_plain_eager_are_no_ladder(records):
    assert ladders(records[1:]) == [] and ladders(records[:1]) == []


def test_two_works_are_two_ladders(records):
    more = [record(rungs, factor, batch_size=16) for rungs, factor in TIMES.items()]
    assert [rows[0].perf["batch_size"] for rows in ladders([*records, *more])] == [2, 16]


def test_batch_sizes_share_loads_at_first_and_are_few_later():
    assert list(groups(256)) == [(1, 2, 4, 8, 16), (32, 64), (128, 256)]
    assert list(groups(3)) == [(1, 2)]


def test_batches_stop_where_memory_ends_and_the_best_points_are_told():
    asked = []

    def perform(options: Options) -> Result:
        asked.append(options.parameters["batch_size"])
        full = {"status": "failed", "failure": {"class": "out_of_memory", "message": "81 GiB", "log_tail": ""}}
        found = [scaled(1 + size / 32, batch_size=size) for size in asked[-1]]
        return Result([{**one, **full} if one["batch_size"] > 32 else one for one in found], [])

    found = sweep(Options(), 256, perform)
    assert asked == [(1, 2, 4, 8, 16), (32, 64)] and found.exit_code == 0
    best_latency, best_throughput, end = found.lines()
    assert best_latency.startswith("best latency: batch 1:")
    assert best_throughput.startswith("best throughput: batch 32:")
    assert end == "out of memory at batch 64: 81 GiB"
    asked.clear()
    known = scaled(0.5, batch_size=1)
    assert sweep(Options(), 4, perform, [known, {**known, "status": "skipped", "batch_size": 2}]).records[0] is known
    assert asked == [(2, 4)]


def test_a_rung_that_replaces_others_is_a_step_up_though_its_set_is_smaller(monkeypatch):
    rungs = (Rung("a", ""), Rung("b", "", needs=("a",)), Rung("c", "", replaces=("b", "d")), Rung("d", ""))
    engine = record("none", 1.0)["engine"]
    monkeypatch.setitem(discover().engines, engine, replace(discover().engines["hf"], rungs=rungs))
    times = {"none": 1.0, "a": 0.5, "a+b": 0.25, "a+c": 0.2, "c": 0.4, "d": 0.7, "default": 0.4}
    (rows,) = ladders([record(name, factor) for name, factor in times.items()][::-1])
    assert told(rows) == [
        ("baseline", "none"),
        *[("cumulative", "a"), ("cumulative", "b"), ("cumulative", "c")],
        ("default", "default"),
        *[("single", "a"), ("single", "c"), ("single", "d")],
    ]
    assert rows[3].to_json()["step_speedup"]["latency_ms"]["times"] == pytest.approx(1.25)
    assert "c replaces b, d: off from there on up" in notes(rows)


def test_a_rung_that_replaces_others_and_is_not_in_force_lets_them_be_tried_again(tmp_path, monkeypatch):
    """What the engine says is made up; plans, records and the climb are real."""
    rungs = (Rung("a", ""), Rung("b", ""), Rung("c", "", replaces=("b", "d")), Rung("d", ""))
    monkeypatch.setitem(discover().engines, "hf", replace(discover().engines["hf"], rungs=rungs))
    asked = []

    def perform(plan: Plan, options: Options) -> Result:
        sets = [cell.setup.rungs for cell in plan.cells if cell.workload == "perf"]
        asked.append(sets)
        on = [{name: "seen" for name in one.split("+") if name not in ("c", "d")} for one in sets]
        off = {"c": "another architecture", "d": "too short"}
        return Result(
            [{**record(s, 1.0), "effective": {"rungs_in_force": f, "rungs_off": off}} for s, f in zip(sets, on)], []
        )

    options = Options(output_dir=tmp_path, precisions=("bf16",), workloads=("perf",), parameters={"batch_size": (1,)})
    climb(options, Asked(kinds=("cumulative",)), perform, print)
    assert asked[:2] == [["a+b", "a+c"], ["a+b+d"]]
    assert asked[2] == ["none", "a", "a+b", "default", "c", "d"]
