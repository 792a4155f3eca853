"""From one trace to another: bars add up to the difference in whole ns, and the sentence says what they say."""

from __future__ import annotations

import json
import random

import pytest
from byhand import LABELS, decode_steps, made

from harness.errors import UsageError
from harness.jsonfile import Node
from harness.kernels.analysis import answer
from harness.kernels.ledger import ledgers
from harness.kernels.validity import Given
from harness.kernels.waterfall import IDLE, conclusion, explain
from harness.traces.trace import NoAnswer, Step


def side(*ops, **about) -> Node:
    """What the analysis of a trace says, through JSON and back."""
    trace, labelled = made(*ops, **about)
    found = answer(trace, labelled, ledgers(trace, labelled), Given(), None)
    return Node(json.loads(json.dumps(found.to_json())), "made")


@pytest.mark.parametrize("seed", range(10))
def test_bars_add_up_to_the_wall_time_of_either_side_and_to_the_difference(seed):
    rng = random.Random(seed)

    def random_side():
        count = rng.randrange(1, 5)
        ops = [
            (
                rng.choice(list(LABELS)),
                rng.randrange(1000) + 1000 * step,
                rng.randrange(1, 300),
                step,
                0,
                rng.randrange(3),
            )
            for step in range(count)
            for _ in range(8)
        ]
        return side(*ops, steps=decode_steps(count)), count

    (a, a_steps), (b, b_steps) = random_side(), random_side()
    (fall,) = explain(a, b, ("a", "b")).waterfalls
    windows = [node.at("ledgers").items()[1].at("window_ns").value for node in (a, b)]
    assert fall.phase == "decode" and fall.steps == (a_steps, b_steps)
    assert sum(bar.a for bar in fall.bars) == fall.a == round(windows[0] / a_steps)
    assert sum(bar.b for bar in fall.bars) == fall.b == round(windows[1] / b_steps)
    assert sum(bar.difference for bar in fall.bars) == fall.b - fall.a
    assert IDLE in {bar.category for bar in fall.bars}


A = [("gemm", 0, 3_000_000, 0), ("attn", 3_000_000, 1_000_000, 0)]
B = [("quant", 0, 200_000, 0), ("gemm", 200_000, 1_000_000, 0), ("attn", 1_300_000, 1_000_000, 0)]


def test_the_sentence_names_what_gained_and_lost_and_whether_a_precision_can_be_the_cause():
    found = explain(side(*A, steps=decode_steps(1)), side(*B, steps=decode_steps(1)), ("bf16", "fp8"))
    (said,) = conclusion(found)
    assert said.startswith("From bf16 to fp8 a decode step is 1.70 ms shorter (4.00 -> 2.30 ms of wall time): ")
    assert "expert_gemm -2.00, quant_dequant +0.20, idle +0.10" in said
    assert said.endswith("It comes from GEMMs and quantisation (-1.80), where a precision counts.")


def test_a_gain_that_is_idle_time_is_not_the_precisions():
    slow = [("gemm", 0, 1_000_000, 0), ("attn", 9_000_000, 1_000_000, 0)]
    fast = [("gemm", 0, 900_000, 0), ("attn", 1_000_000, 1_000_000, 0)]
    found = explain(side(*slow, steps=decode_steps(1)), side(*fast, steps=decode_steps(1)), ("a", "b"))
    (said,) = conclusion(found)
    assert "idle -7.90" in said and "It comes mostly from elsewhere" in said


def test_equal_steps_are_called_equal():
    found = explain(side(*A, steps=decode_steps(1)), side(*A, steps=decode_steps(1)), ("a", "b"))
    assert conclusion(found) == ["From a to b a decode step takes as long, within 1 % (4.00 -> 4.00 ms of wall time)."]


def test_a_phase_that_only_one_side_has_is_said():
    both = [*A, ("gemm", 9_000_000, 10, 1)]
    found = explain(
        side(*both, steps=[Step("d", "decode"), Step("p", "prefill")]), side(*B, steps=decode_steps(1)), ("a", "b")
    )
    assert [fall.phase for fall in found.waterfalls] == ["decode"]
    assert "only a has a prefill phase: it is not explained" in found.notes


def test_without_steps_whole_windows_are_compared_and_that_is_said():
    found = explain(side(*(op[:3] for op in A)), side(*(op[:3] for op in B)), ("a", "b"))
    assert [(fall.phase, fall.steps) for fall in found.waterfalls] == [("whole", None)]
    assert any("must hold the same work" in note for note in found.notes)


def test_without_a_timeline_summed_time_is_compared_and_not_called_wall_time():
    found = explain(side(("gemm", None, 300), ("attn", None, 100)), side(("gemm", 0, 100)), ("a", "b"))
    (fall,) = found.waterfalls
    assert fall.measure == "summed kernel time" and (fall.a, fall.b) == (400, 100)
    assert IDLE not in {bar.category for bar in fall.bars}
    assert any("a has no timeline" in note for note in found.notes)


def test_step_counts_and_marks_that_differ_are_said():
    a = side(("gemm", 0, 10, 0), ("gemm", 20, 10, 1), steps=[Step("bs=1", "decode")] * 2)
    b = side(("gemm", 0, 10, 0), steps=[Step("bs=64", "decode")])
    notes = explain(a, b, ("a", "b")).notes
    assert any("2 steps in a, 1 in b" in note for note in notes)
    assert any("'bs=1' and 'bs=64'" in note for note in notes)


def test_what_is_not_valid_is_explained_and_marked():
    found = explain(
        side(*(op for op in A if op[0] == "attn"), steps=decode_steps(1)), side(*B, steps=decode_steps(1)), ("a", "b")
    )
    assert found.to_json()["valid"] is False and found.waterfalls
    assert any(problem.startswith("a: expert GEMM present") for problem in found.problems)


def test_a_file_that_was_changed_does_not_add_up_and_is_refused():
    changed = side(*A, steps=decode_steps(1))
    changed.value["ledgers"][1]["categories"]["attention"]["charged_ns"] += 1
    with pytest.raises(UsageError, match="add up to 4000001"):
        explain(changed, side(*B, steps=decode_steps(1)), ("a", "b"))


@pytest.mark.parametrize("value", [None, [], {}, {"valid": True}, 7, "text"])
def test_other_json_is_refused(value):
    with pytest.raises(UsageError, match="neither a trace"):
        explain(Node(value, "x.json: $"), side(*B, steps=decode_steps(1)), ("a", "b"))


def test_an_analysis_without_an_answer_explains_nothing():
    empty = {
        "valid": False,
        "problems": ["no kernels"],
        "source": "x",
        "categories": None,
        "device": None,
        "ledgers": [],
    }
    with pytest.raises(NoAnswer, match="no kernels"):
        explain(Node(empty, "x"), side(*B, steps=decode_steps(1)), ("a", "b"))
