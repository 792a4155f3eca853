"""A report says what `harness compare` and the table say, shows what each number is of, and hides nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pages import PLAIN, content, failed, named, row, said, sentences
from scripted import in_rounds, record, scaled, with_rungs

from harness.errors import UsageError
from harness.judging.compare import compare
from harness.judging.table import ranking
from harness.recording.metrics import percentile
from harness.report import distributions, scaling
from harness.report.read import read

H200 = Path(__file__).parents[2] / "docs/h200"
FAST, SLOW = scaled(1), scaled(1.5, **PLAIN)
GOOD, WORSE = (record("ppl", [3.0 + shift, 3.1 + shift, 3.2 + shift]) for shift in (0.0, 0.02))
PPL = record("ppl", [3.0, 3.1, 3.2], **PLAIN)


def test_the_verdict_has_the_ratio_and_the_interval_of_compare_and_the_ranking_of_the_table(keep):
    found = sentences(content(keep(FAST, SLOW)))
    low, high = compare(SLOW, FAST).metrics["latency_ms"].interval
    assert found["Speed"].startswith("swift fp8 pays most: 1.50 times as fast as bf16 at batch 2, 8+4 (")
    assert f"{1 / high:.2f} to {1 / low:.2f})" in found["Speed"]
    (line,) = ranking([FAST, SLOW])
    assert found["Fastest"] == line[0].upper() + line[1:] + "."


def test_fp8_by_a_rung_of_its_own_is_held_against_bf16_without_it(keep):
    found = content(keep(with_rungs(FAST, "cache+fp8", "cache"), with_rungs(SLOW, "cache")))
    assert sentences(found)["Speed"].startswith(
        "swift fp8 TP1_EP1_auto_cache+fp8 pays most: 1.50 times as fast as bf16"
    )
    assert row(found["tables"]["precisions"], precision="fp8")["× bf16"][0] == pytest.approx(1.5)


def test_a_difference_inside_the_noise_is_no_gain(keep):
    found = sentences(content(keep(scaled(0.995), scaled(1, **PLAIN))))
    assert found["Speed"].startswith("No lower precision pays") and "no difference" in found["Speed"]


def test_what_a_precision_costs_is_said_with_its_interval(keep):
    found = content(keep(FAST, SLOW, WORSE, PPL))
    change = compare(PPL, WORSE).metrics["perplexity"]
    said_change = f"fp8 {(change.ratio - 1) * 100:+.2f} % ("
    assert sentences(found)["Accuracy"].startswith(f"Perplexity against bf16: {said_change}")
    assert row(found["tables"]["precisions"], precision="fp8")["perplexity"][0] == WORSE["perplexity"]


def test_of_random_weights_nothing_is_said_of_accuracy(keep):
    dummy = {"weights": "dummy"}
    found = content(keep(scaled(1, **dummy), scaled(2, **PLAIN, **dummy), record("ppl", [3.0, 3.1], **dummy)))
    assert sentences(found)["Accuracy"] == "Nothing can be said of accuracy: the weights are random."


def test_an_emulated_row_has_accuracy_and_no_speed_anywhere(keep):
    slow, good = scaled(0.1, mode="emulated"), {**GOOD, "compute_mode": "emulated"}
    found = content(keep(slow, SLOW, good, PPL))
    fp8 = row(found["tables"]["precisions"], precision="fp8")
    assert fp8["latency ms"][0] is None and "emulated" in fp8["latency ms"][2]
    assert fp8["perplexity"][0] == good["perplexity"]
    assert "emulated" in sentences(found)["Limits"]
    drawn = json.dumps([found["charts"]["distributions"], found["tables"]["engines"]])
    assert f"{slow['mean_latency_ms']:.1f}" not in drawn and "fp8" not in drawn


def test_a_mismatch_is_marked_and_neither_ranked_nor_compared(keep):
    wrong = {**FAST, "status": "mismatch", "reason": "precision is bf16, not fp8"}
    found = content(keep(wrong, SLOW))
    fp8 = row(found["tables"]["precisions"], precision="fp8")
    assert fp8["precision"] == "fp8 (!)" and said(fp8["latency ms"]) == "100.0" and fp8["× bf16"][0] is None
    assert "Fastest" not in sentences(found) and "swift fp8: what ran is not what the label says" in str(
        sentences(found)
    )
    assert found["mismatched"] == [("precision is bf16, not fp8", ["swift tinymoe fp8 perf"])]


def test_what_is_not_comparable_is_not_compared_and_the_condition_is_named(keep):
    found = content(keep(scaled(1, kv_dtype="fp8"), SLOW, scaled(2, engine="calm", **PLAIN, kv_dtype="fp8")))
    assert "kv_dtype" in row(found["tables"]["precisions"], precision="fp8")["× bf16"][2]
    assert "not comparable: kv_dtype" in row(found["tables"]["engines"], engine="calm")["times as long"][2]
    assert "No ranking at batch 2" in sentences(content(keep(scaled(1, kv_dtype="fp8"), SLOW)))["Limits"]


def test_engines_are_compared_at_one_precision_with_the_fastest(keep):
    calm = scaled(2, engine="calm")
    found = row(content(keep(FAST, calm))["tables"]["engines"], engine="calm")
    assert found["times as long"][0] == pytest.approx(compare(FAST, calm).metrics["latency_ms"].ratio)
    assert found["verdict"] == "worse" and found["compared with"] == "swift"


def test_the_pareto_front_has_what_nothing_comparable_beats(keep):
    beaten = [scaled(2, engine="calm"), record("ppl", [3.3, 3.4, 3.5], engine="calm")]
    apart = [scaled(3, engine="odd", kv_dtype="fp8"), record("ppl", [3.6, 3.7, 3.8], engine="odd", kv_dtype="fp8")]
    (choice,) = content(keep(FAST, WORSE, SLOW, PPL, *beaten, *apart))["charts"]["pareto"]["choices"]
    standing = {value["name"]: value["standing"] for value in choice["views"][0]["values"]}
    assert standing == {"swift fp8": "best", "swift bf16": "best", "calm fp8": "beaten", "odd fp8": "alone"}
    assert any("odd fp8" in note for note in choice["notes"])


def test_distributions_are_those_of_the_raw_times(keep):
    (choice,) = content(H200)["charts"]["distributions"]["choices"][:1]
    values = {value["name"]: value for value in choice["views"][2]["values"]}
    known = [
        r for r in (json.loads(p.read_text()) for p in sorted((H200 / "records").iterdir())) if r["status"] == "ok"
    ]
    for one in (r for r in known if r["batch_size"] == 1 and f"{r['engine']} {r['precision']}" in values):
        drawn = values[f"{one['engine']} {one['precision']}"]
        for name in ("min", "p50", "p90", "p99", "max"):
            assert drawn[name] == pytest.approx(one["itl_ms"][name], abs=1e-4)
        assert drawn["n"] == one["itl_ms"]["n"]


@pytest.mark.parametrize("weights", [[1], [3], [1, 1], [2, 5, 1], [64, 64, 7]])
def test_quantiles_of_weighted_times_are_those_of_the_times_one_by_one(weights):
    found = distributions.quantiles([(float(index), weight) for index, weight in enumerate(weights)])
    ordered = [float(index) for index, weight in enumerate(weights) for _ in range(weight)]
    assert found["n"] == len(ordered) and (found["p99"] is None) == (len(ordered) < 100)
    for percent in (10, 25, 50, 75, 90):
        assert found[f"p{percent}"] == pytest.approx(percentile(ordered, percent))


def test_a_line_of_scaling_joins_cells_that_differ_in_their_ranks_only(keep):
    line = [scaled(1 / tp, tp=tp) for tp in (1, 2, 4)]
    (choice,) = content(keep(*line, scaled(1 / 8, tp=8, kv_dtype="fp8")))["charts"]["scaling"]["choices"]
    values = choice["views"][0]["values"]
    assert [(value["tp"], value["efficiency"][:5]) for value in values] == [(tp, "100 %") for tp in (1, 2, 4)]
    assert choice["notes"] == ["1 cells are on no line: they differ in more than their ranks"]


def test_lines_of_scaling_with_other_rungs_are_other_lines_and_say_which():
    eager, graphs = ([scaled(1 / tp / speed, tp=tp) for tp in (1, 2)] for speed in (1, 4))
    found = scaling.rows([*eager, *(with_rungs(one, "sdpa+cuda_graphs") for one in graphs)])
    assert [(one["name"], one["tp"], one["efficiency"][:5]) for one in found] == [
        *[("swift fp8", tp, "100 %") for tp in "12"],
        *[("swift fp8 sdpa+cuda_graphs", tp, "100 %") for tp in "12"],
    ]
    assert {one["name"] for one in scaling.rows(eager)} == {"swift fp8"}


def test_the_kernel_ledger_adds_up_to_the_step_and_the_waterfall_to_the_difference():
    found = content(H200 / "profiles/torch")["charts"]
    profile = json.loads((H200 / "profiles/torch/records/f0577cf109ed0504.json").read_text())["profile"]["phases"][
        "decode"
    ]
    sixteen = next(one for one in found["kernels"]["choices"] if one["label"] == "batch 16, 512+64")
    (decode,) = (view for view in sixteen["views"] if view["title"].startswith("Decode"))
    bars = [v for v in decode["values"] if v["row"].startswith("vllm bf16")]
    assert sum(bar["ms"] for bar in bars) == pytest.approx(profile["ms_per_step"], abs=1e-4)
    assert any("prefill shared 1 steps with decode" in note for note in sixteen["notes"])
    fall = next(
        one for one in found["waterfall"]["choices"] if one["label"] == "vllm bf16 → vllm fp8, batch 16, 512+64"
    )
    first, *bars, last = fall["views"][-1]["values"]
    assert first["to"] + sum(bar["to"] - bar["from"] for bar in bars) == pytest.approx(last["to"], abs=0.01)


def test_a_profile_outlives_a_later_measurement_without_one_and_an_emulated_one_is_drawn_nowhere(keep):
    share = {"ms_per_step": 2.0, "percent": 100.0, "percent_of_window": 100.0}
    decode = {"steps": 8, "ms_per_step": 2.0, "idle_ms": None, "categories": {"expert_gemm": share}, "max_speedup": 2.0}
    profile = {"profiler": "torch", "analysis": "traces/a.analysis.json", "phases": {"decode": decode}}
    bf16, fp8 = ({**one, "profile": profile} for one in (SLOW, scaled(1, mode="emulated")))
    later = {**SLOW, "written_at": "2099-01-01T00:00:00Z"}
    charts = content(keep(bf16, fp8, later))["charts"]
    ((view,),) = (choice["views"] for choice in charts["kernels"]["choices"])
    assert {bar["row"] for bar in view["values"]} == {"swift bf16, 2.00 ms"}
    assert charts["waterfall"]["choices"] == []


def test_each_profiled_step_of_a_ladder_has_a_waterfall_from_the_one_before(keep):
    decode = {"steps": 8, "ms_per_step": 2.0, "idle_ms": None, "categories": {}, "max_speedup": 2.0}
    profile = {"profiler": "torch", "analysis": "traces/a.analysis.json", "phases": {"decode": decode}}
    sets = ("none", "a", "a+b")
    found = content(
        keep(*(named(SLOW, profile=profile, config=one, requested={**SLOW["requested"], "rungs": one}) for one in sets))
    )
    choices = found["charts"]["waterfall"]["choices"]
    assert [choice["label"].split(",")[0] for choice in choices] == ["none → + a", "+ a → + b"]
    assert "a.analysis.json is in no folder" in choices[0]["views"][0]["title"]


def test_the_steps_of_a_ladder_and_what_is_off_have_their_own_table_and_are_no_rows_of_precisions(keep):
    def asked(rungs: str, **more) -> dict:
        found = named(SLOW, requested={**SLOW["requested"], "rungs": rungs}, config=rungs, **more)
        return {**found, "conditions": {**found["conditions"], "rungs": rungs}}

    off = {"status": "skipped", "latency_ms": None, "raw": None}
    alone = named(asked("c"), batch_size=4)  # at a work without plain eager
    low = named(FAST, reason="emulated", **off)  # no rung: the default at a precision that is not measured here
    thrice = in_rounds([asked("none") for _ in range(3)], "s")
    records = thrice, asked("a"), asked("b", reason="rung b: needs a GPU", **off), low, alone
    accuracy = (
        named(PPL, config=rungs, requested={**PPL["requested"], "rungs": rungs}) for rungs in ("none", "a", "c")
    )
    found = content(keep(*records, *accuracy))
    (choice,) = found["charts"]["pareto"]["choices"]
    assert [point["name"] for point in choice["views"][0]["values"]] == ["swift bf16"]
    assert sentences(found)["Accuracy"] == "Accuracy was measured in bf16 only."
    tables = found["tables"]
    told = {said(cell) for line in tables["precisions"]["rows"] for cell in line}
    assert {"fp8", "c"} <= told and not {"none", "a", "b"} & told
    starts, rung = ([column["name"] for column in tables["ladder"]["columns"]].index(one) for one in ("starts", "rung"))
    assert [(line[rung], line[starts][0]) for line in tables["ladder"]["rows"]] == [
        ("none", 3),
        ("+ a", 1),
        ("off: b", None),
    ]


def test_the_roofline_draws_the_points_and_the_table_their_share():
    found = content(H200 / "profiles/torch")
    (choice,) = found["charts"]["roofline"]["choices"]
    known = json.loads((H200 / "profiles/torch/records/f0577cf109ed0504.json").read_text())["roofline"]["decode"]
    points = choice["views"][0]["values"]
    assert any(point["y"] == pytest.approx(known["flops_per_s"] / 1e12) for point in points)
    shares = {cells[0] for row in found["tables"]["limits"]["rows"] for cells in row if isinstance(cells, list)}
    assert any(share == pytest.approx(100 * known["share_of_limit"]) for share in shares)


def test_a_failure_stays_visible_when_its_cell_was_measured_and_the_other_way_round(keep):
    late = {**failed(FAST, "later failure"), "written_at": "2099-01-01T00:00:00Z"}
    for records in ((FAST, late), (late, FAST)):
        found = content(keep(*records))
        assert said(row(found["tables"]["precisions"], precision="fp8")["latency ms"]) == "100.0"
        (failure,) = found["failures"]
        assert failure["message"] == "later failure" and failure["is_old"] and failure["log"] == "a log"
        assert len(found["tables"]["cells"]["rows"]) == 2


def test_files_that_cannot_be_shown_are_named_with_the_reason(keep):
    newer, odd = {**FAST, "schema_version": 99}, {**FAST, "raw": {"latency_ns": ["soon"]}}
    bad = {
        "a.json": json.dumps(newer),
        "b.json": json.dumps(odd),
        "c.json": json.dumps(FAST)[:200],
        "d.json": "[" * 10**6,
    }
    found = dict(read([keep(SLOW, text=bad)]).passed_over)
    reasons = [found[name] for name in sorted(found)]
    assert "its schema is 99" in reasons[0] and reasons[1] == "raw.latency_ns is 'soon'"
    assert "not JSON" in reasons[2] and "nested" in reasons[3]


ODD = "latency_ms effective environment requested profile roofline batch_size failure status rounds raw".split()


@pytest.mark.parametrize("name", ODD)
def test_a_record_of_the_wrong_shape_is_refused_and_breaks_nothing(keep, name):
    folder = keep(SLOW, {**(failed(FAST) if name == "failure" else FAST), name: [1]})
    assert len(read([folder]).passed_over) == 1 and len(content(folder)["tables"]["cells"]["rows"]) == 1


def test_a_record_of_the_least_a_record_has_is_shown(keep):
    names = "schema_version key status workload engine engine_version model weights precision compute_mode config"
    least = {name: SLOW[name] for name in (*names.split(), "environment", "conditions")}
    found = content(keep(least, {**least, "key": "k", "status": "skipped"}, {**least, "key": "o", "model": None}))
    assert len(found["tables"]["cells"]["rows"]) == 3


def test_a_folder_without_records_and_one_without_any_that_can_be_shown_are_refused(keep, tmp_path):
    for folder, reason in ((tmp_path, "no records in it"), (keep(text={"a.json": "{}"}), "none of its 1 files")):
        with pytest.raises(UsageError, match=reason):
            read([folder])


def test_provenance_holds_all_conditions_and_what_this_version_does_not_know(keep):
    extra = {**FAST, "telemetry": {"power_w": [300, 310]}, "statistics": {"median_ms": 1.0}, "new_number": 12.5}
    found = content(keep(extra))["tables"]["cells"]["details"]
    said = {}
    for section in (found["sections"][place] for place in found["rows"][0]):
        title, *flat = (found["words"][place] for place in section)
        said[title] = dict(zip(flat[::2], flat[1::2]))
    assert said["conditions"].keys() == extra["conditions"].keys()
    assert said["telemetry"] == {"power_w": "[300, 310]"}
    assert said["record"]["new_number"] == "12.5" and said["statistics"] == {"median_ms": "1.0"}


def test_a_number_that_is_none_has_its_reason(keep):
    single = record("perf", [100.0] * 3, **PLAIN)
    single = {**single, "ttft_ms": None, "effective": {**single["effective"], "unread": {"ttft_ms": "not streamed"}}}
    assert ["not streamed", ["TTFT ms"]] in content(keep(single))["tables"]["precisions"]["absent"]
    found = content(keep(single, FAST))["tables"]["precisions"]
    assert row(found, precision="bf16")["TTFT ms"] == [None, "–", "not streamed"]


def test_an_infinite_number_in_a_record_is_no_number(keep):
    folder = keep(SLOW)
    path = next((folder / "records").iterdir())
    path.write_text(path.read_text().replace('"load_seconds": 1.0', '"load_seconds": 1e999, "x": NaN'))
    assert read([folder]).entries[0].record["load_seconds"] is None


def test_cells_of_several_subjects_have_a_verdict_each(keep):
    found = content(keep(FAST, SLOW, named(FAST, model="other"), named(SLOW, model="other")))
    assert [verdict.model for verdict in found["verdicts"]] == ["other", "tinymoe"]
