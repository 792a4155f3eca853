"""What a rung is: a name that is settled, part of a cell's key and conditions, and in force or a mismatch."""

import json
from dataclasses import replace

import pytest
from scripted import FACTS, GPU, scaled, with_rungs

from harness.cells import Cell, Setup
from harness.device import Device
from harness.engine import EngineSpec, Rung, rung_problem, settled, with_needs
from harness.errors import UsageError
from harness.judging.compare import compare
from harness.ladder.climb import Asked, plan_of
from harness.ladder.rows import across_rungs
from harness.ladder.steps import steps
from harness.launcher import Outcome
from harness.planning.plan import Options, make_plan, settled_rungs
from harness.precision import Support
from harness.recording.records import make

CPU = Device("cpu", "a CPU", 2, 4 << 30)
RUNGS = (
    Rung("cache", "static KV cache"),
    Rung(
        "graphs",
        "replayed",
        needs=("cache",),
        problem=lambda precision, device: "no GPU" if device.sm is None else None,
    ),
    Rung(
        "fp8",
        "in FP8",
        changes_output=True,
        problem=lambda precision, device: None if precision == "fp8" else precision,
    ),
    Rung("odd", "cannot say", problem=lambda precision, device: 1 / 0),
)
ENGINE = EngineSpec(
    "one", "", (), frozenset({"generate"}), lambda *_: Support("native"), lambda load: None, rungs=RUNGS
)


REPLACING = replace(
    ENGINE,
    rungs=(
        Rung("cache", "static KV cache"),
        Rung("graphs", "replayed", needs=("cache",)),
        Rung("own", "a step of its own", replaces=("graphs", "late")),
        Rung("later", "on graphs", needs=("graphs",)),
        Rung("late", "a cache of its own"),
    ),
)


def made(rungs: str, **facts) -> dict:
    cell = Cell(Setup("one", "m", "m", "bf16", rungs=rungs), "ppl", {"input_len": 8}, Support("native"))
    return make(cell, Outcome(facts={**FACTS, "precision": "bf16", "compute_mode": "native", **facts}), "1.0", GPU)


def test_a_set_of_rungs_has_one_name_whatever_was_said():
    assert settled_rungs(ENGINE, "graphs", "bf16") == settled_rungs(ENGINE, "graphs+cache", "bf16") == "cache+graphs"
    assert (settled_rungs(ENGINE, "none", "bf16"), settled_rungs(ENGINE, "default", "bf16")) == ("none", "default")
    assert with_needs(ENGINE, ["graphs"]) == ("cache", "graphs")


def test_what_another_rung_replaces_is_not_asked_for_and_takes_with_it_what_needs_it_and_what_only_it_needs():
    assert settled(REPLACING, ["later", "own"]) == settled(REPLACING, ["own", "graphs"]) == ("own",)
    assert settled(REPLACING, ["cache", "graphs", "own"]) == ("cache", "own")
    assert settled(REPLACING, ["graphs", "later"]) == ("cache", "graphs", "later")
    assert settled_rungs(REPLACING, "own+late+graphs+cache", "bf16") == "cache+own"


OWN = replace(
    ENGINE,
    rungs=(
        Rung("cache", "static KV cache"),
        Rung("low", "FP8 products", needs=("cache",), precisions=("fp8",)),
        Rung("after", "on them", needs=("low",)),
    ),
)


def test_a_rung_that_is_a_precisions_own_arithmetic_is_left_out_of_other_precisions_with_what_needs_it():
    assert settled_rungs(OWN, "after", "fp8") == "cache+low+after"
    assert settled_rungs(OWN, "after+low", "bf16") == "cache"
    assert settled_rungs(replace(OWN, rungs=(Rung("low", "", precisions=("fp8",)),)), "low", "bf16") == "none"
    found = {step.added: (step.kind, step.why) for step in steps(OWN, ("bf16", "fp8"), GPU, ("cumulative",), {})}
    assert found["low"] == ("off", "rung low: it is the arithmetic of fp8, not of bf16")
    assert found["after"][0] == "off" and found["cache"][0] == "cumulative" and found["fp8"][0] == "precision"


def test_what_is_off_in_a_ladder_is_named_also_where_no_cell_of_this_precision_may_have_it(tmp_path):
    options = Options(("hf",), ("tinymoe",), ("bf16",), ("perf",), {"batch_size": (1,)}, output_dir=tmp_path)
    plan, _ = plan_of(options, Asked(), print)
    (fp8,) = (cell for cell in plan.cells if cell.skip and cell.skip.startswith("rung fp8:"))
    assert fp8.setup.rungs == "grouped_experts+fp8"


def test_rungs_that_do_not_hold_on_a_cut_model_are_off_in_its_ladder_with_the_reason(tmp_path):
    two = Device("cuda", "NVIDIA H200", 2, 150 << 30, sm=90)
    options = Options(("hf",), ("tinymoe",), ("bf16",), ("perf",), tp=(2,), output_dir=tmp_path, device=two)
    plan, _ = plan_of(options, Asked(kinds=("cumulative",)), print)
    last = [cell.setup.rungs for cell in plan.cells if not cell.skip and cell.workload == "perf"][-2:]
    assert last == ["sdpa+grouped_experts+static_cache+cuda_graphs", "default"]
    assert "rung compile: does not hold with --tp 2" in [cell.skip for cell in plan.cells]


def test_bf16_and_fp8_in_its_own_arithmetic_are_planned_by_one_command_and_compared():
    h200 = Device("cuda", "NVIDIA H200", 1, 150 << 30, sm=90)
    rungs = ("grouped_experts+fp8+sdpa", "sdpa+grouped_experts")
    options = Options(("hf",), ("tinymoe",), ("bf16", "fp8"), ("perf",), rungs=rungs, device=h200)
    cells = make_plan(options, pytest.fail).cells
    assert [(cell.setup.precision, cell.setup.rungs, cell.own_rungs) for cell in cells] == [
        ("bf16", "sdpa+grouped_experts", ()),  # once
        ("fp8", "sdpa+grouped_experts+fp8", ("fp8",)),
        ("fp8", "sdpa+grouped_experts", ()),
    ]
    with pytest.raises(UsageError, match="rung fp8 of hf is not for bf16; harness list rungs --engine hf"):
        make_plan(replace(options, precisions=("bf16",)), pytest.fail)
    facts = {name: value for name, value in FACTS.items() if name not in ("precision", "compute_mode")}
    low, wide = (
        make(cell, Outcome(facts={**facts, "precision": cell.setup.precision, "compute_mode": "native"}), "1.0", GPU)
        for cell in (cells[1], cells[0])
    )
    assert low["requested"]["rungs"] == "sdpa+grouped_experts+fp8"
    assert low["conditions"]["rungs"] == wide["conditions"]["rungs"] == "sdpa+grouped_experts"


def test_a_ladder_drops_what_a_rung_replaces_and_puts_nothing_of_it_on_top():
    found = steps(REPLACING, ("bf16", "fp8"), GPU, ("cumulative", "single"), {})
    assert [step.rungs for step in found if step.kind == "cumulative"] == ["cache", "cache+graphs", "cache+own"]
    assert [step.added for step in found if step.kind == "cumulative"] == ["cache", "graphs", "own"]
    assert [step.rungs for step in found if step.kind == "single"][-2:] == ["cache+graphs+later", "late"]
    assert [step.rungs for step in found if step.kind == "precision"] == ["cache+own"]
    without = steps(REPLACING, ("bf16",), GPU, ("cumulative",), {"own": ""})
    assert [step.rungs for step in without if step.kind == "cumulative"][-1] == "cache+graphs+later+late"


def test_a_rung_nobody_knows_is_refused_with_the_nearest_name():
    with pytest.raises(UsageError, match="unknown rung of one 'graph': did you mean graphs"):
        settled_rungs(ENGINE, "graph", "bf16")


def test_why_a_rung_cannot_be_on_is_told_by_its_first_that_cannot():
    assert rung_problem(ENGINE, ["cache", "graphs"], "bf16", CPU) == "rung graphs: no GPU"
    assert rung_problem(ENGINE, ["cache", "graphs"], "bf16", GPU) is None
    cut = replace(ENGINE, rungs_with_tp=("cache",))
    assert rung_problem(cut, ["cache", "graphs"], "bf16", GPU, 2) == "rung graphs: does not hold with --tp 2"
    assert rung_problem(cut, ["cache", "graphs"], "bf16", GPU) is rung_problem(cut, ["cache"], "bf16", GPU, 2) is None
    assert "could not say: ZeroDivisionError" in rung_problem(ENGINE, ["odd"], "bf16", GPU)


def test_the_default_has_the_key_and_configuration_it_had_before_there_were_rungs():
    cell = Cell(Setup("one", "m", "m", "bf16"), "perf", {}, Support("native"))
    assert cell.key("1.0", GPU) == "e940ab9c5ed98dfe"
    assert cell.setup.config == "TP1_EP1_auto"
    eager = replace(cell, setup=replace(cell.setup, rungs="none"))
    assert eager.key("1.0", GPU) != cell.key("1.0", GPU) and eager.setup.config == "TP1_EP1_auto_none"


@pytest.mark.parametrize(
    ("rungs", "facts", "reason"),
    [
        ("cache", {"rungs_in_force": {"cache": "its class"}}, None),
        ("default", {"rungs_in_force": {"cache": "its class"}}, None),
        ("default", {}, None),
        ("none", {}, "which rungs are in force the engine did not say"),
        ("none", {"rungs_in_force": {"cache": "its class"}}, "rung cache is in force and was not asked for"),
        ("cache", {"rungs_in_force": {}, "rungs_off": {"cache": "too long"}}, "rung cache is not in force: too long"),
        ("cache", {"rungs_in_force": {}}, "rung cache is not in force: the engine did not say why"),
        (
            "cache",
            {"rungs_in_force": {}, "rungs_off": {"cache": "replaced by another"}},
            "rung cache is not in force: replaced by another",
        ),
    ],
)
def test_what_was_asked_for_and_is_not_in_force_makes_a_mismatch(rungs, facts, reason):
    record = made(rungs, **facts)
    assert (record["status"], record["reason"]) == ("mismatch" if reason else "ok", reason)
    assert record["conditions"]["rungs"] == rungs


def test_two_sets_of_rungs_are_compared_in_a_ladder_only():
    eager, fast = with_rungs(scaled(1.0), "none"), with_rungs(scaled(0.5, cuda_graphs=True), "graphs")
    assert compare(eager, fast).differing.keys() == {"rungs", "cuda_graphs"}
    found = across_rungs(eager, fast)
    assert found.comparable and found.metrics["latency_ms"].ratio == pytest.approx(0.5)
    assert not across_rungs(eager, with_rungs(scaled(0.5, batch_size=4), "graphs")).comparable


def test_a_record_of_before_there_were_rungs_is_one_of_the_default():
    old = json.loads(json.dumps(scaled(1.0)))
    del old["conditions"]["rungs"]
    assert compare(old, scaled(1.1)).comparable
    assert compare(old, with_rungs(scaled(1.1), "none")).differing == {"rungs": ("default", "none")}
