"""Comparison of two records: what is refused and by which name, and what a difference means."""

from __future__ import annotations

import copy
import json
import math
import random
from dataclasses import replace

import pytest
from scripted import GPU, STEADY, record, scaled

from harness.cli import cli
from harness.judging.compare import METRICS, compare, ratio_interval
from harness.recording import conditions
from harness.recording.stats import CONFIDENCE

NLLS = (1.0, 1.2, 0.9, 1.1)
FAST, SURE = record("perf", STEADY), record("ppl", NLLS)


def other(base: dict, name: str, value: object = "another") -> dict:
    """The record with another value of a condition."""
    assert base["conditions"][name] is not None or name in ("batch_size", "output_len", "sampling", "ignore_eos")
    return {**base, "conditions": {**base["conditions"], name: value}}


@pytest.fixture
def said(tmp_path, capsys):
    """Exit code and output of `harness compare` for two records."""

    def run(a: dict, b: dict, *options: str) -> tuple[int, str]:
        for name, content in (("a", a), ("b", b)):
            (tmp_path / name).write_text(json.dumps(content))
        with pytest.raises(SystemExit) as caught:
            cli(["compare", str(tmp_path / "a"), str(tmp_path / "b"), *options])
        output = capsys.readouterr()
        assert output.err == ""
        return caught.value.code, output.out

    return run


def assert_refused(said, a: dict, b: dict, *names: str, options: tuple[str, ...] = ()) -> None:
    """In both directions, as text and as JSON, with these names and no others."""
    for pair in ((a, b), (b, a)):
        code, text = said(*pair, *options)
        assert code == 3 and "not comparable" in text and all(f"    {name}: " in text for name in names)
        code, data = said(*pair, "--json", *options)
        assert (code, json.loads(data)["comparable"], json.loads(data)["metrics"]) == (3, False, {})
        assert set(json.loads(data)["differing"]) == set(names)


# --- conditions ------------------------------------------------------------------------------------------------------


def test_a_measured_record_knows_every_condition():
    assert set(FAST["conditions"]) == set(conditions.CONDITIONS) and None not in FAST["conditions"].values()


@pytest.mark.parametrize("name", ["quantize", *conditions._FROM_FACTS])
def test_a_condition_is_what_the_engine_said_of_itself(name):
    assert record("perf", STEADY, **{name: "another"})["conditions"][name] == "another"


@pytest.mark.parametrize(
    ("change", "differing"),
    [
        ({"device": replace(GPU, name="another GPU")}, {"device"}),
        ({"device": replace(GPU, power_limit_w=500.0)}, {"power_limit_w"}),
        ({"device": replace(GPU, power_limit_w=None)}, {"power_limit_w"}),
        ({"device": replace(GPU, count=4)}, set()),  # one GPU of them works
        ({"tp": 2}, {"tp", "device_count"}),
        ({"batch_size": 4}, {"batch_size"}),
        ({"weights": "dummy"}, {"weights"}),
    ],
)
def test_a_condition_is_what_the_run_was_asked_for_and_found(change, differing):
    assert set(compare(FAST, record("perf", STEADY, **change)).differing) == differing


@pytest.mark.parametrize("name", conditions.SPEED)
def test_a_pair_that_differs_in_a_condition_is_refused_by_name_and_no_assumption_cures_it(said, name):
    for options in ((), ("--assume", name), ("--assume", "all")):
        assert_refused(said, FAST, other(FAST, name), name, options=options)


@pytest.mark.parametrize("name", conditions.SPEED)
@pytest.mark.parametrize("both", [False, True], ids=["one side", "both sides"])
def test_a_condition_nobody_knows_is_refused_by_name_until_it_is_assumed(said, name, both):
    unknown = other(FAST, name, None)
    known = unknown if both else FAST
    assert_refused(said, known, unknown, name)
    wrong = "kv_dtype" if name != "kv_dtype" else "tp"
    assert_refused(said, known, unknown, name, options=("--assume", f"{wrong},noise"))
    for assumed in (name, "all"):
        for pair in ((known, unknown), (unknown, known)):
            code, text = said(*pair, "--assume", assumed)
            assert (code, "not comparable" in text, "no difference" in text) == (0, False, True), text


@pytest.mark.parametrize("name", conditions.SAME_ENGINE)
@pytest.mark.parametrize("value", ["another", None], ids=["differs", "unknown"])
def test_limits_and_modes_of_one_engine_are_no_condition_between_two(said, name, value):
    assert_refused(said, FAST, other(FAST, name, value), name)
    code, text = said(FAST, other(scaled(1, engine="rival"), name, value))
    assert (code, "no difference" in text) == (0, True), text


@pytest.mark.parametrize("name", conditions.CONDITIONS)
def test_accuracy_needs_its_own_conditions_and_none_of_those_of_speed(said, name):
    if name in conditions.ACCURACY:
        assert_refused(said, SURE, other(SURE, name), name)
        assert_refused(said, SURE, other(SURE, name, None), name)
    else:
        code, text = said(SURE, other(SURE, name))
        assert (code, "no difference" in text) == (0, True), text


TOLD = {
    "engine": scaled(1, engine="rival"),
    "engine_version": scaled(1, engine_version="2.0"),
    "precision": scaled(1, precision="bf16", quantize=None, quant_algo=None),
    "compute_mode": scaled(1, mode="weight_only"),
    "moe_backend": scaled(1, moe_backend="cutlass"),
    "attention_backend": scaled(1, attention_backend="eager"),
    "driver": scaled(1, device=replace(GPU, driver="580.2")),
}


@pytest.mark.parametrize("name", TOLD)
def test_what_may_differ_is_printed_and_refuses_nothing(said, name):
    code, text = said(FAST, TOLD[name])
    assert (code, "not comparable" in text) == (0, False), text
    (line,) = (line for line in text.splitlines() if "differ, as they may" in line)
    assert f" {name} " in line and line.count("->") == 1
    assert list(compare(FAST, TOLD[name]).told) == [name]


@pytest.mark.parametrize("scope", ["experts", "linear"])
def test_nothing_quantised_agrees_with_every_scope(said, scope):
    plain = record("perf", STEADY, precision="bf16", quantize=None, quant_algo=None)
    assert plain["conditions"]["quantize"] == "nothing"
    for pair in ((plain, other(FAST, "quantize", scope)), (other(FAST, "quantize", scope), plain)):
        assert said(*pair)[0] == 0


@pytest.mark.parametrize("status", ["mismatch", "failed", "skipped"])
def test_only_cells_that_did_what_was_asked_are_compared(said, status):
    assert_refused(said, FAST, {**FAST, "status": status}, "status", options=("--assume", "all"))


def test_emulation_has_an_accuracy_and_no_speed(said):
    assert_refused(said, FAST, scaled(1, mode="emulated"), "compute_mode", options=("--assume", "all"))
    both = scaled(1, mode="emulated")
    assert_refused(said, both, both, "compute_mode", options=("--assume", "all"))
    assert said(SURE, record("ppl", NLLS, mode="emulated"))[0] == 0


def test_dummy_weights_have_a_speed_and_no_accuracy(said):
    dummy = record("ppl", NLLS, weights="dummy")
    assert_refused(said, SURE, dummy, "weights", options=("--assume", "all"))
    assert_refused(said, dummy, dummy, "weights", options=("--assume", "all"))
    assert said(scaled(1, weights="dummy"), scaled(1, weights="dummy"))[0] == 0


def test_two_workloads_have_nothing_to_compare(said):
    assert_refused(said, FAST, SURE, "workload", options=("--assume", "all"))


# --- differences -----------------------------------------------------------------------------------------------------


def metrics(said, a: dict, b: dict, *options: str) -> tuple[int, dict[str, dict]]:
    code, data = said(a, b, "--json", *options)
    assert list(json.loads(data)) == ["comparable", "differing", "metrics"]
    assert json.loads(data)["comparable"] and json.loads(data)["differing"] == {}
    return code, json.loads(data)["metrics"]


def test_json_holds_every_metric_with_its_values_ratio_interval_and_verdict(said):
    _, found = metrics(said, FAST, scaled(2))
    assert set(found) == set(METRICS) - {"perplexity"}
    assert all(list(metric) == ["a", "b", "ratio", "interval", "verdict"] for metric in found.values())
    latency, tokens = found["latency_ms"], found["output_tokens_per_sec"]
    assert [latency[key] for key in ("a", "b", "ratio")] == pytest.approx([100, 200, 2])
    assert [tokens[key] for key in ("a", "b", "ratio")] == pytest.approx([80, 40, 0.5])
    low, high = latency["interval"]
    assert low < 2 < high and tokens["interval"] == pytest.approx([1 / high, 1 / low])
    assert set(metrics(said, SURE, SURE)[1]) == {"perplexity"}


@pytest.mark.parametrize(("factor", "verdict", "code"), [(1.2, "worse", 1), (0.8, "better", 0)])
def test_less_time_and_more_tokens_per_second_are_better(said, factor, verdict, code):
    status, found = metrics(said, FAST, scaled(factor))
    assert (status, {metric["verdict"] for metric in found.values()}) == (code, {verdict})
    assert ("(regression)" in said(FAST, scaled(factor))[1]) == bool(code)


def test_less_perplexity_is_better(said):
    higher = record("ppl", (1.1, 1.31, 1.0, 1.2))
    assert metrics(said, SURE, higher)[1]["perplexity"]["verdict"] == "worse" and said(SURE, higher)[0] == 1
    assert metrics(said, higher, SURE)[1]["perplexity"]["verdict"] == "better" and said(higher, SURE)[0] == 0


@pytest.mark.parametrize(("tolerance", "code"), [("0", 1), ("0.19", 1), ("0.21", 0)])
def test_what_is_worse_within_the_tolerance_is_said_and_no_regression(said, tolerance, code):
    status, found = metrics(said, FAST, scaled(1.2), "--tolerance", tolerance)
    assert (status, found["latency_ms"]["verdict"]) == (code, "worse")


def test_a_difference_below_the_noise_is_no_difference(said):
    for factor in (1.005, 0.995):
        code, found = metrics(said, FAST, scaled(factor))
        assert (code, {metric["verdict"] for metric in found.values()}) == (0, {"no difference"})
        assert all(metric["interval"][0] < 1 < metric["interval"][1] for metric in found.values())


def test_one_sample_has_no_interval_and_no_verdict_until_noise_is_assumed_away(said):
    single = record("perf", [120.0])
    code, found = metrics(said, FAST, single)
    assert (code, {metric["verdict"] for metric in found.values()}) == (0, {"noise unknown"})
    assert {metric["interval"] for metric in found.values()} == {None}
    for assumed in ("noise", "all"):
        code, found = metrics(said, FAST, single, "--assume", assumed)
        assert (code, {metric["verdict"] for metric in found.values()}) == (1, {"worse"})


def test_tokens_that_came_all_at_once_have_no_gaps_to_compare(said):
    bundled = copy.deepcopy(FAST)
    for name in ("itl_ms", "tpot_ms"):
        bundled[name] = {key: 0 for key in bundled[name]}
    for (timeline,) in bundled["raw"]["token_ns"]:
        timeline["ns"] = timeline["ns"][-1:] * 4
    for pair in ((FAST, bundled), (bundled, FAST), (bundled, bundled)):
        assert metrics(said, *pair)[1]["latency_ms"]["verdict"] == "no difference"


def test_a_metric_that_one_side_did_not_measure_is_left_out(said):
    assert set(metrics(said, FAST, {**FAST, "ttft_ms": None, "itl_ms": None})[1]) == {
        *("latency_ms", "tpot_ms", "output_tokens_per_sec")
    }
    assert_refused(said, FAST, {**FAST, **dict.fromkeys(METRICS)}, "metrics", options=("--assume", "all"))


# --- the interval ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_paired", [False, True], ids=["unpaired", "paired"])
@pytest.mark.parametrize(("sizes", "deviations"), [((10, 10), (5, 6)), ((5, 20), (3, 12)), ((3, 3), (5, 5))])
def test_ninety_nine_of_a_hundred_intervals_hold_the_true_ratio(is_paired, sizes, deviations):
    draw, hits = random.Random(7), 0
    for _ in range(2000):
        a = [draw.gauss(100, deviations[0]) for _ in range(sizes[0])]
        b = [draw.gauss(130, deviations[1]) for _ in range(sizes[1])]
        if is_paired:  # logarithms, each pair with a part in common
            a = [draw.gauss(0, 1) for _ in a]
            b = [value + math.log(1.3) + draw.gauss(0, 0.1) for value in a]
        low, high = ratio_interval(a, b, is_paired)
        hits += low <= 1.3 <= high
    assert CONFIDENCE - 0.01 <= hits / 2000 <= CONFIDENCE + 0.009


def test_swapping_the_sides_inverts_the_interval():
    a, b = [9.0, 10.0, 11.0], [12.0, 15.0, 13.0, 14.0]
    for left, right, is_paired in ((a, b, False), (a, b[:3], True)):
        low, high = ratio_interval(left, right, is_paired)
        assert ratio_interval(right, left, is_paired) == pytest.approx((1 / high, 1 / low))


def test_pairs_of_like_inputs_tell_a_difference_that_two_heaps_cannot():
    draw = random.Random(3)
    a = [draw.gauss(2, 0.5) for _ in range(20)]
    b = [value + 0.05 + draw.gauss(0, 0.01) for value in a]
    paired = ratio_interval(a, b, is_paired=True)
    unpaired = ratio_interval([math.exp(value) for value in a], [math.exp(value) for value in b])
    assert 1 < paired[0] and unpaired[0] < 1 < unpaired[1]
    assert math.log(paired[1] / paired[0]) < math.log(unpaired[1] / unpaired[0]) / 10


@pytest.mark.parametrize(("a", "b"), [(None, [1.0, 2.0]), ([], [1.0, 2.0]), ([1.0], [1.0, 2.0]), ([1.0], [2.0])])
def test_fewer_than_two_samples_or_unequal_pairs_give_no_interval(a, b):
    for is_paired in (False, True):
        assert ratio_interval(a, b, is_paired) is ratio_interval(b, a, is_paired) is None
    assert ratio_interval([1.0, 2.0], [1.0, 2.0, 3.0], is_paired=True) is None


def test_samples_without_any_spread_give_an_interval_without_width():
    assert ratio_interval([2.0, 2.0], [3.0, 3.0]) == pytest.approx((1.5, 1.5))
