"""The ledger adds up: exact sums against a second count over a bitmap, steps, phases, and what has no timeline."""

from __future__ import annotations

import random

import polars
import pytest
from byhand import LABELS, made

from harness.kernels.ledger import OUTSIDE, UNCLASSIFIED, WHOLE, Ledger, ledgers, one_step
from harness.kernels.sweep import sweep
from harness.traces.trace import HOST, NoAnswer, Step


def only(found: list[Ledger], phase: str = WHOLE, device: int = 0) -> Ledger:
    (ledger,) = [ledger for ledger in found if (ledger.phase, ledger.device) == (phase, device)]
    return ledger


def by_bitmap(rows: list[tuple[int, int, int]]) -> dict:
    """The same by looking at each nanosecond."""
    last = max(end for _, end, _ in rows)
    running = [set() for _ in range(last)]
    for start, end, category in rows:
        for time in range(start, end):
            running[time].add(category)
    categories = {category for start, end, category in rows if end > start}
    return {
        "busy": sum(map(bool, running)),
        "union": {c: sum(c in at for at in running) for c in categories},
        "exclusive": {c: sum(at == {c} for at in running) for c in categories},
        "charged": {c: sum(1 / len(at) for at in running if c in at) for c in categories},
    }


@pytest.mark.parametrize("seed", range(60))
def test_union_exclusive_and_charged_time_are_those_of_a_count_by_nanosecond(seed):
    rng = random.Random(seed)
    rows = []
    for _ in range(rng.randrange(1, 40)):
        start = rng.randrange(0, 200)
        rows.append((start, start + rng.choice([0, 1, 3, 10, 30, 150]), rng.randrange(rng.choice([1, 2, 5]))))
    rows.sort(key=lambda row: row[0])
    frame = polars.DataFrame(
        rows, schema={"start": polars.Int64, "end": polars.Int64, "category": polars.UInt8}, orient="row"
    )
    size = rng.choice([1, 2, 5, 1000])  # what is cut off between pieces is not lost
    found = sweep(frame.slice(first, size) for first in range(0, len(frame), size))
    naive = by_bitmap(rows)
    assert found.busy == naive["busy"]
    assert {c: times.union for c, times in found.times.items()} == naive["union"]
    assert {c: times.exclusive for c, times in found.times.items()} == naive["exclusive"]
    assert {c: times.charged for c, times in found.times.items()} == pytest.approx(naive["charged"], abs=1)
    assert sum(times.charged for times in found.times.values()) == found.busy


def test_one_operation_over_a_whole_trace_overlaps_all_others_in_every_piece():
    rows = [(0, 10**15, 0)] + [(10**9 * i, 10**9 * i + 10**8, 1) for i in range(1000)]
    frame = polars.DataFrame(
        rows, schema={"start": polars.Int64, "end": polars.Int64, "category": polars.UInt8}, orient="row"
    )
    found = sweep(frame.slice(first, 100) for first in range(0, len(frame), 100))
    assert found.busy == 10**15
    assert found.times[0].exclusive == 10**15 - 10**11
    assert found.times[1].union == 10**11 and found.times[1].exclusive == 0
    assert found.times[1].charged == 10**11 // 2


@pytest.mark.parametrize("seed", range(10))
def test_categories_add_up_to_the_sum_and_charged_times_with_idle_to_the_window(seed):
    rng = random.Random(seed)
    steps = [Step(f"s{i}", rng.choice(["prefill", "decode", None])) for i in range(4)]
    ops = []
    for _ in range(60):
        start = rng.randrange(1000)
        step = rng.choice([None, start // 250])
        ops.append((rng.choice(list(LABELS)), start, rng.randrange(60), step, rng.randrange(2), rng.randrange(3)))
    trace, labelled = made(*ops, steps=steps)
    found = ledgers(trace, labelled)
    for ledger in found:
        assert sum(share.sum for share in ledger.categories.values()) == ledger.sum
        assert sum(ledger.found_by.values()) == ledger.sum
        assert sum(share.charged for share in ledger.categories.values()) + ledger.idle == ledger.window
        exclusive = sum(share.exclusive for share in ledger.categories.values())
        assert exclusive + ledger.overlap + ledger.idle == ledger.window
        assert 0 <= ledger.idle
        for share in ledger.categories.values():
            assert share.exclusive <= share.charged <= share.union <= share.sum
    for device in (0, 1):
        own = [ledger for ledger in found if ledger.device == device]
        assert sum(ledger.sum for ledger in own if ledger.phase != WHOLE) == only(found, device=device).sum
        assert sum(ledger.count for ledger in own if ledger.phase != WHOLE) == only(found, device=device).count


def test_devices_are_never_added():
    found = ledgers(*made(("gemm", 0, 10), ("gemm", 5, 10, None, 1), ("attn", 20, 10, None, 1)))
    assert [(ledger.device, ledger.window, ledger.busy, ledger.sum) for ledger in found] == [
        (0, 10, 10, 10),
        (1, 25, 20, 20),
    ]


def test_what_no_rule_knows_is_not_the_known_other():
    ledger = only(ledgers(*made(("who", 0, 10), ("fill", 10, 5), ("gemm", 20, 20))))
    assert {name: share.sum for name, share in ledger.categories.items()} == {
        "expert_gemm": 20,
        UNCLASSIFIED: 10,
        "other": 5,
    }
    assert ledger.found_by == {"name": 25, "none": 10}


def test_idle_time_between_steps_of_one_phase_counts_and_around_it_does_not():
    steps = [Step("p", "prefill"), Step("d", "decode"), Step("d", "decode"), Step("d", "decode")]
    found = ledgers(
        *made(
            ("gemm", 0, 100, 0),
            ("gemm", 200, 10, 1),
            ("attn", 215, 5, 1),
            ("gemm", 230, 10, 2),
            ("gemm", 300, 10, 3),
            ("fill", 400, 50),
            steps=steps,
        )
    )
    prefill, decode, outside = (only(found, phase) for phase in ("prefill", "decode", OUTSIDE))
    assert (prefill.window, prefill.idle, len(prefill.steps)) == (100, 0, 1)
    assert (decode.window, decode.busy, decode.idle) == (110, 35, 75)
    assert [step.time for step in decode.steps] == [30, 70, 10]
    assert decode.gaps == 5  # 210 to 215; what lies between two steps is not the step's
    assert (outside.window, outside.idle) == (50, 0)
    assert only(found).window == 450 and only(found).gaps == 5


def test_steps_apart_are_runs_of_their_own():
    steps = [Step("d", "decode"), Step("d", "decode")]
    found = ledgers(*made(("gemm", 0, 10, 0), ("fill", 20, 5), ("gemm", 100, 10, 1), steps=steps))
    decode = only(found, "decode")
    assert (decode.window, decode.idle, [step.time for step in decode.steps]) == (20, 0, [10, 10])


def test_without_steps_waiting_for_launches_is_unknown_and_says_why():
    ledger = only(ledgers(*made(("gemm", 0, 10), ("gemm", 20, 10))))
    assert ledger.idle == 10 and ledger.gaps is None and "marks no steps" in ledger.gaps_reason


@pytest.mark.parametrize("kind", ["summary", "host"])
def test_without_a_timeline_there_are_sums_and_a_reason(kind):
    device, start = (0, None) if kind == "summary" else (HOST, 5)
    ledger = only(ledgers(*made(("gemm", start, 30, None, device), ("attn", start, 10, None, device))), device=device)
    assert {name: share.sum for name, share in ledger.categories.items()} == {"expert_gemm": 30, "attention": 10}
    assert ledger.window is ledger.busy is ledger.idle is ledger.overlap is ledger.gaps is None
    assert ledger.categories["attention"].union is None
    assert ("totals by name" if kind == "summary" else "self times") in ledger.reason


def test_operations_that_take_no_time_count_as_calls():
    ledger = only(ledgers(*made(("gemm", 0, 0), ("attn", 0, 10))))
    assert ledger.categories["expert_gemm"].count == 1
    assert ledger.categories["expert_gemm"].union == ledger.categories["expert_gemm"].charged == 0


def test_sample_names_come_most_time_first():
    LABELS["small"] = LABELS["large"] = LABELS["gemm"]
    ledger = only(ledgers(*made(("small", 0, 1), ("large", 5, 50))))
    assert ledger.categories["expert_gemm"].samples == ("large", "small")


def test_an_empty_trace_has_no_ledger_and_says_so():
    with pytest.raises(NoAnswer, match="holds no operation"):
        ledgers(*made())


def test_one_step_is_the_median_one_in_order_with_its_gaps():
    steps = [Step("d", "decode")] * 3
    trace, labelled = made(
        ("gemm", 0, 900, 0),
        ("gemm", 1000, 2000, 1),
        ("attn", 2500, 1000, 1, 0, 9),
        ("who", 4500, 500, 1),
        ("gemm", 6000, 9000, 2),
        steps=steps,
    )
    step, rows = one_step(trace, labelled, 0, "decode")
    assert (step.index, step.time) == (1, 5000)
    assert rows.rows() == [
        (0.0, 2.0, 0.0, 7, "expert_gemm", "name", "gemm"),
        (1.5, 1.0, 0.0, 9, "attention", "module", "attn"),
        (3.5, 0.5, 1.0, 7, UNCLASSIFIED, "none", "who"),
    ]
    with pytest.raises(NoAnswer, match="no prefill step"):
        one_step(trace, labelled, 0, "prefill")
