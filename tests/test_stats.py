"""Rounds made one record, intervals that hold what they say, drift, and iterations that lie far out."""

from __future__ import annotations

import copy
import json
import math
import random
from functools import cache
from statistics import median

import pytest
from scripted import FACTS, STEADY, record

from harness.recording.metrics import speed
from harness.recording.stats import (
    CONFIDENCE,
    common_rounds,
    drift,
    estimate,
    is_narrow,
    median_interval,
    merged,
    problems,
    rounds_of,
    statistics,
    student,
)

TEN = [100 + step for step in (0, 1, -1, 2, -2, 3, -3, 1.5, -1.5, 0.5)]


measured = cache(lambda *values: record("perf", values))  # making one collects the garbage of all tests before


def cell(*rounds: list[float], sweep: str | None = "s") -> dict:
    """A cell of several rounds, of the given latencies in ms."""
    made = [copy.deepcopy(measured(*values)) for values in rounds]
    for index, one in enumerate(made):
        start = {"started_at": f"2026-11-21T00:0{index}:00Z", "sweep": sweep, "round": index, "telemetry": None}
        one["rounds"] = [{"iterations": len(rounds[index]), **start}]
        one["requested"]["num_iterations"] = one["num_iterations"] = 10
    return merged(made)


# --- one record of several -------------------------------------------------------------------------------------------


def test_merged_rounds_hold_all_times_and_metrics_as_if_they_were_one():
    a, b = record("perf", TEN), record("perf", [value * 1.1 for value in TEN])
    b["written_at"], b["load_seconds"] = "2027-01-01T00:00:00Z", 99.0
    both = merged([a, b])
    assert both["raw"]["latency_ns"] == a["raw"]["latency_ns"] + b["raw"]["latency_ns"]
    assert both["raw"]["token_ns"] == a["raw"]["token_ns"] + b["raw"]["token_ns"]
    assert both["mean_latency_ms"] == pytest.approx((a["mean_latency_ms"] + b["mean_latency_ms"]) / 2)
    assert {name: both[name] for name in speed(both["raw"], 2, 8, 4)} == speed(both["raw"], 2, 8, 4)
    assert [one["iterations"] for one in both["rounds"]] == [10, 10]
    assert (both["key"], both["written_at"], both["load_seconds"]) == (a["key"], b["written_at"], a["load_seconds"])
    assert set(both) == {*a, "rounds"} and json.loads(json.dumps(both)) == both


def test_rounds_keep_their_own_facts_in_order_and_can_be_added_to():
    three = cell(TEN, TEN, TEN)
    four = record("perf", TEN)
    four["rounds"] = [{"iterations": 10, "started_at": "x", "sweep": "s", "round": 3, "telemetry": {"host": 1}}]
    found = merged([three, four])["rounds"]
    assert [one["round"] for one in found] == [0, 1, 2, 3] and found[3] == four["rounds"][0]
    assert rounds_of(record("perf", TEN)) == [
        {"iterations": 10, "started_at": None, "sweep": None, "round": None, "telemetry": None}
    ]


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("conditions", "cuda_graphs"), True, "conditions.cuda_graphs: False -> True"),
        (("effective", "moe_backend"), "other", "effective.moe_backend: triton -> other"),
        (("environment", "device", "driver"), None, "environment.device.driver: 570.1 -> None"),
        (("status",), "mismatch", "status: ok -> mismatch"),
        (("key",), "0" * 16, "key: "),
    ],
)
def test_rounds_that_are_not_of_one_kind_stay_apart_with_the_names_of_what_changed(path, value, words):
    a, b = record("perf", TEN), record("perf", TEN)
    inner = b
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    with pytest.raises(ValueError, match="round 2 is not as the first") as caught:
        merged([a, b])
    assert words in str(caught.value)


def test_what_each_start_has_of_its_own_keeps_no_rounds_apart():
    a, b = (record("perf", TEN, kv_blocks=blocks) for blocks in (1000, 1001))
    a["roofline"], a["statistics"], a["noise"] = {"decode": 1}, {"latency_ms": 1}, ["hot"]
    both = merged([a, b])
    assert not {"roofline", "statistics", "noise"} & both.keys(), "they told of one round only"
    assert FACTS.items() <= both["effective"].items()


def test_rounds_without_times_are_refused():
    lost = {**record("perf", TEN), "raw": None, "status": "failed"}
    with pytest.raises(ValueError, match=r"round 2 has no times \(status failed\)"):
        merged([record("perf", TEN), lost])
    with pytest.raises(ValueError, match="round 1 has no times"):
        merged([record("ppl", [1.0, 2.0])])
    with pytest.raises(ValueError, match="no rounds"):
        merged([])


def test_energy_of_rounds_adds_up_where_all_have_it():
    a, b = record("perf", [500] * 2), record("perf", [500] * 2)
    a["raw"]["energy_mj"], b["raw"]["energy_mj"] = 200_000, 400_000
    both = merged([a, b])
    assert both["energy_joules"] == 600 and both["joules_per_output_token"] == 600 / (4 * 2 * 4)
    b["raw"]["energy_mj"] = None
    assert merged([a, b])["energy_joules"] is None


def test_rounds_were_measured_side_by_side_where_they_are_the_same_ones_of_one_sweep():
    three = cell(TEN, TEN, TEN)
    assert common_rounds(three, cell(TEN, TEN, TEN)) == [(0, 0), (1, 1), (2, 2)]
    late = copy.deepcopy(three)
    late["rounds"] = late["rounds"][1:]
    assert common_rounds(three, late) == [(1, 0), (2, 1)]
    assert common_rounds(cell(TEN, TEN, sweep="t"), three) == []
    assert common_rounds(record("perf", TEN), record("perf", TEN)) == [], "of no sweep"


# --- intervals -------------------------------------------------------------------------------------------------------


def test_three_rounds_are_three_samples():
    found = estimate(cell(TEN, [v * 1.1 for v in TEN], [v * 1.21 for v in TEN]), "latency_ms")
    middle = median(TEN) * 1.1
    assert found["median"] == pytest.approx(middle)
    assert math.log(found["interval"][1] / middle) == pytest.approx(9.925 * math.log(1.1) / math.sqrt(3), rel=1e-3)
    assert found["width"] == pytest.approx((found["interval"][1] - found["interval"][0]) / middle)
    assert (found["rounds"], found["iterations"]) == (3, 30) and "medians" in found["method"]


@pytest.mark.parametrize("rounds", [1, 2])
def test_of_fewer_rounds_the_iterations_are_the_samples_and_the_words_say_what_that_covers(rounds):
    found = estimate(cell(*[TEN] * rounds), "latency_ms")
    assert found["median"] == pytest.approx(median(TEN)) and found["interval"][0] < 100 < found["interval"][1]
    assert "only the noise inside a start" in found["method"] and "99 %" in found["method"]


def test_few_iterations_have_a_median_and_no_interval():
    found = statistics(record("perf", STEADY))
    assert (
        found["latency_ms"]["median"] == 100 and found["latency_ms"]["interval"] is found["latency_ms"]["width"] is None
    )
    assert "fewer than 8" in found["latency_ms"]["method"]


def test_every_speed_metric_has_its_own_and_what_was_not_measured_is_null():
    one = cell(TEN, TEN, TEN)
    found = statistics(one)
    assert list(found) == ["latency_ms", "ttft_ms", "itl_ms", "tpot_ms", "drift", "steady", "steady_reason", "outliers"]
    assert found["ttft_ms"]["median"] == pytest.approx(median(TEN) / 4) == found["tpot_ms"]["median"]
    for batch in one["raw"]["token_ns"]:
        batch[0]["ns"] = [None] * 4
    assert statistics(one)["ttft_ms"] is None and statistics(one)["latency_ms"]["rounds"] == 3
    assert statistics(record("ppl", [1.0, 2.0])) == {} == statistics({"raw": None})
    assert json.loads(json.dumps(found, allow_nan=False)) == found


@pytest.mark.parametrize("n", [8, 20, 51])
def test_the_interval_of_a_median_holds_it_as_often_as_it_says_whatever_the_distribution(n):
    draw, missed = random.Random(n), 0
    for _ in range(3000):
        low, high = median_interval([draw.lognormvariate(0, 1) ** 3 for _ in range(n)])
        missed += not low <= 1 <= high
    assert missed / 3000 <= 1 - CONFIDENCE + 0.004
    assert median_interval([1.0] * 7) is None


def test_a_long_run_has_the_interval_of_a_normal_distribution():
    values = list(range(4001))
    low, high = median_interval(values)
    assert low + high == 4000 and (high - low) / 2 == pytest.approx(2.576 * math.sqrt(4001) / 2, abs=1)


@pytest.mark.parametrize(
    ("freedom", "point"),
    [(1, 63.657), (2, 9.925), (3, 5.841), (4, 4.604), (5, 4.032), (10, 3.169), (30, 2.750), (200, 2.601), (1e9, 2.576)],
)
def test_students_points_are_those_of_the_tables(freedom, point):
    assert student(freedom) == pytest.approx(point, abs=6e-4)


def test_students_point_falls_without_a_step():
    points = [student(2 + step / 10) for step in range(40)] + [student(199.9), student(200.1), student(math.inf)]
    assert all(later < earlier for earlier, later in zip(points, points[1:]))
    assert student(2.5) == pytest.approx(7.2, rel=0.04)


def test_repeats_stop_where_the_interval_is_narrow_and_never_before_the_third():
    near = [1, 1.0005, 0.9995, 1.0002, 0.9998]
    levels = [[value * level for value in TEN] for level in near]
    assert not is_narrow(cell(*levels[:2]), 10.0)
    assert is_narrow(cell(*levels), 0.02) and not is_narrow(cell(*levels), 0.0001)
    assert is_narrow(cell(*levels), 0.02, "itl_ms")
    far = [[value * level for value in TEN] for level in (1, 1.1, 0.9, 1.05, 0.95)]
    assert not is_narrow(cell(*far), 0.02)


# --- within a round --------------------------------------------------------------------------------------------------


def test_a_drift_is_found_in_percent_over_the_round():
    draw = random.Random(1)
    found = drift([100 + 0.5 * step + draw.gauss(0, 0.5) for step in range(20)])
    assert found["percent"] == pytest.approx(100 * 9.5 / 104.75, rel=0.1) and found["p"] < 1e-6
    assert drift([103.0, 101.0] * 6)["p"] > 0.05 and drift([5.0] * 9) == {"percent": 0, "p": 1}
    assert drift(list(range(7))) is None


def test_kendalls_test_is_that_of_the_tables():
    assert drift([1.0, 2, 3, 4, 5, 6, 7, 8])["p"] == pytest.approx(math.erfc(27 / math.sqrt(8 * 7 * 21 / 18 * 2)))
    straight = drift([float(step) for step in range(1000)])
    assert straight["percent"] == pytest.approx(200, rel=0.01), "a round of any length, in bounded time"


def test_one_iteration_far_out_is_no_drift_and_is_kept_and_counted():
    wild = [*TEN[:9], 4000.0]
    one = statistics(cell(TEN, wild, TEN))
    assert one["steady"] is True and one["outliers"]["indices"] == [19] and one["outliers"]["count"] == 1
    assert one["latency_ms"]["iterations"] == 30 and "kept" in one["outliers"]["method"]
    assert cell(TEN, wild, TEN)["latency_ms"]["max"] == 4000
    (line,) = problems(one)
    assert line.startswith("iteration 20 took 39.8 times as long as the median of its round") and "means" in line


def test_three_iterations_are_enough_to_see_the_one_that_compiled():
    assert "iteration 2 took 2.4 times" in problems(statistics(cell([782.0, 1893.0, 733.0], [740.0, 741.0, 739.0])))[0]
    assert problems(statistics(cell([782.0, 1393.0, 733.0]))) == []


def test_each_round_is_judged_by_its_own_level():
    found = statistics(cell(TEN, [value * 3 for value in TEN], TEN))
    assert found["outliers"]["count"] == 0 and found["steady"] is True


def test_a_run_that_grows_slower_is_not_steady_and_said_so():
    slower = [value * (1 + step / 60) for step, value in enumerate(sorted(TEN))]
    found = statistics(cell(TEN, slower, TEN))
    assert found["steady"] is False and "1 of 3 rounds" in found["steady_reason"]
    (line,) = problems(found)
    assert "drifts within a round, by up to +19.5 %:" in line and "--warmup-iterations" in line
    assert problems(statistics(cell(TEN, TEN, TEN))) == [] == problems({})


def test_too_few_iterations_are_neither_steady_nor_not():
    found = statistics(record("perf", STEADY))
    assert found["steady"] is None and "8 iterations" in found["steady_reason"] and found["drift"] == [None]


def test_a_drift_too_small_to_matter_is_steady_however_sure():
    assert statistics(cell([100 + step / 100 for step in range(20)] * 1))["steady"] is True


def test_noise_alone_is_called_drift_in_one_of_a_hundred():
    draw = random.Random(5)
    seen = sum(drift([draw.gauss(100, 10) for _ in range(12)])["p"] < 0.01 for _ in range(2000))
    assert seen / 2000 < 0.017


def test_counts_that_do_not_add_up_make_one_round():
    broken = copy.deepcopy(cell(TEN, TEN, TEN))
    broken["rounds"][0]["iterations"] = 11
    assert estimate(broken, "latency_ms")["unit"] == "iteration" and not is_narrow(broken, 10.0)
