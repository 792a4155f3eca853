"""Comparison of cells measured in rounds: what is paired, what is not, and how seldom a difference is made up."""

from __future__ import annotations

import copy
import random
from functools import cache

import pytest
from scripted import in_rounds, record, scaled

from harness.judging.compare import compare
from harness.recording.stats import interval_of_gap

level_of = cache(scaled)  # making one collects the garbage of all tests before


def cell(levels: list[float], sweep: str | None = None) -> dict:
    """A cell measured in as many rounds as there are levels: latencies of five iterations around each."""
    return in_rounds([copy.deepcopy(level_of(level)) for level in levels], sweep)


# The machine becomes slower and faster again, by much more than what is looked for.
DRIFTING = [1.0, 1.4, 0.8, 1.2, 1.1]


def test_rounds_of_one_sweep_are_compared_pair_by_pair_so_that_a_drift_of_the_machine_cancels():
    a = cell(DRIFTING, "s")
    b = cell([level * 1.05 * wobble for level, wobble in zip(DRIFTING, (1.002, 0.999, 1, 1.001, 0.998))], "s")
    found = compare(a, b)
    assert found.noise == "that of 5 rounds, each a start of its own, measured in turn and compared pair by pair"
    latency = found.metrics["latency_ms"]
    assert latency.ratio == pytest.approx(1.05, rel=1e-4) and latency.verdict == "worse"
    assert 1.04 < latency.interval[0] < 1.05 < latency.interval[1] < 1.06
    tokens = found.metrics["output_tokens_per_sec"]
    assert tokens.ratio == pytest.approx(1 / 1.05, rel=1e-4) and tokens.verdict == "worse"
    assert tokens.a * latency.a == pytest.approx(2 * 4 * 1000), "tokens of a batch over the time they took, in ms"


@pytest.mark.parametrize("sweeps", [("s", "t"), (None, None)], ids=["two sweeps", "no sweep"])
def test_rounds_that_were_not_measured_side_by_side_are_two_heaps(sweeps):
    a, b = cell(DRIFTING, sweeps[0]), cell([level * 1.05 for level in DRIFTING], sweeps[1])
    found = compare(a, b)
    assert found.noise == "that of 5 and 5 rounds, each a start of its own, not paired"
    latency = found.metrics["latency_ms"]
    assert latency.verdict == "no difference" and latency.ratio == pytest.approx(1.05)
    assert latency.interval[0] < 0.8 and latency.interval[1] > 1.3, "as wide as starts lie apart"


def test_of_two_cells_that_stopped_at_different_rounds_only_the_common_ones_are_compared():
    long, short = cell([*DRIFTING, 3.0, 3.0], "s"), cell([level * 1.05 for level in DRIFTING[:4]], "s")
    for a, b, ratio in ((long, short, 1.05), (short, long, 1 / 1.05)):
        found = compare(a, b)
        assert "that of 4 rounds" in found.noise and "pair by pair" in found.noise
        assert found.metrics["latency_ms"].ratio == pytest.approx(ratio, rel=1e-4)
    assert "5 and 2 rounds" not in compare(cell(DRIFTING, "s"), cell(DRIFTING[:2], "s")).noise


def test_with_fewer_than_three_rounds_iterations_are_the_samples():
    few, many = cell([1.0, 1.0], "s"), cell([1.05, 1.05, 1.05], "s")
    found = compare(few, many)
    assert found.noise.startswith("that of iterations inside a start, whose means are compared; not that between")
    assert found.metrics["latency_ms"].a == pytest.approx(few["mean_latency_ms"])
    assert found.metrics["latency_ms"].verdict == "worse", "ten and fifteen iterations, 1.6 % apart"


def test_an_iteration_far_out_moves_no_median():
    wild = cell(DRIFTING, "s")
    wild["raw"]["latency_ns"][7] *= 40
    latency = compare(cell(DRIFTING, "s"), wild).metrics["latency_ms"]
    assert latency.verdict == "no difference" and latency.ratio == pytest.approx(1, abs=0.01)


def test_accuracy_knows_no_rounds():
    assert compare(record("ppl", (1.0, 1.2)), record("ppl", (1.0, 1.2))).noise == ""


def machine(draw: random.Random, slots: int) -> list[float]:
    """How slow a shared machine is at each of `slots` starts one after another, as logarithms: it drifts, each start
    has luck that partly stays to the next, and every twentieth meets a neighbour."""
    level, slope, found = 0.0, draw.gauss(0, 0.003), []
    for slot in range(slots):
        level = 0.7 * level + draw.gauss(0, 0.01)
        found.append(level + slope * slot + draw.gauss(0, 0.005) + (draw.random() < 0.05) * draw.expovariate(1 / 0.05))
    return found


@pytest.mark.parametrize("rounds", [5, 10])
def test_of_a_hundred_identical_pairs_at_least_ninety_five_show_no_difference(rounds):
    """And rarely one in any of three metrics that share the machine's luck and have noise of their own."""
    draw, differing, pairs = random.Random(rounds), 0, 1000
    for _ in range(pairs):
        slots = machine(draw, 2 * rounds)
        sides = []
        for side in (0, 1):
            noise = [[draw.gauss(0, 0.01) for _ in range(rounds)] for _ in range(3)]
            sides.append([[slot + own for slot, own in zip(slots[side::2], one)] for one in noise])
        differing += any(not low <= 0 <= high for low, high in (interval_of_gap(*p, True) for p in zip(*sides)))
    assert differing / pairs < 0.025, "then 95 of 100 come out in 98 of 100 tries"
