"""Does a comparison call what is the same "no difference", and find what is five percent slower? Asked on tinymoe.

    python benchmarks/noise.py                     # 100 pairs of each kind on the hf engine, here and now
    python benchmarks/noise.py --simulated 2000    # the same question to a machine that is made up, in many kinds

Each pair is measured in rounds in turn, merged, repeated until its intervals are narrow, and compared by the functions
that `harness sweep` and `harness compare` use. All rounds come from one loaded model; on a shared machine most of the
noise is of the hour, and that is real.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import math
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median

from harness import Generation, device, plugins
from harness.cells import Cell, Load, Setup
from harness.judging.compare import METRICS, SAME, compare
from harness.launcher import Outcome
from harness.model import models
from harness.planning.schedule import Policy
from harness.recording import records
from harness.recording.rounds import wants_more
from harness.recording.stats import LEAST_ROUNDS, PERCENT, common_rounds, interval_of_gap, merged, statistics, student
from harness.working.inputs import Inputs
from harness.workloads import perf

SLOWER = 0.05
BATCH, INPUT_LEN, OUTPUT_LEN = 1, 8, 2


@dataclass(frozen=True)
class Slowed:
    """A session whose every time since a pass's start is longer by a share. By arithmetic, so that it is this share and
    no more: after a wait of 5 % the prefill of the next pass takes 1 to 2 % longer, too."""

    session: object
    share: float

    def generate(self, prompts: Sequence[Sequence[int]], output_len: int) -> Generation:
        found = self.session.generate(prompts, output_len)

        def later(ns: int) -> int:
            return found.started_ns + round((1 + self.share) * (ns - found.started_ns))

        responses = tuple(replace(each, token_ns=tuple(map(later, each.token_ns))) for each in found.responses)
        return Generation(found.started_ns, later(found.finished_ns), responses)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=50, help="at least, what a sweep calls --repeats")
    parser.add_argument("--max-rounds", type=int, default=280, help="at most; equal to --rounds: so many of each")
    parser.add_argument("--ci-width", type=float, default=0.03, help="a cell whose interval is so narrow is done")
    parser.add_argument("--iterations", type=int, default=1, help="of one round")
    parser.add_argument("--simulated", type=int, metavar="PAIRS", help="of each kind of noise; nothing is measured")
    asked = parser.parse_args()
    if asked.simulated:
        simulate(asked.simulated)
    else:
        measure(asked.pairs, Policy(asked.rounds, asked.max_rounds, asked.ci_width), asked.iterations)


def measure(pairs: int, policy: Policy, iterations: int) -> None:
    started, load_before = time.perf_counter(), os.getloadavg()
    session, cell, make = _session(iterations)
    slowed = Slowed(session, SLOWER)
    verdicts = {"the same": Counter(), f"{SLOWER:.0%} slower": Counter()}
    differing, widths, rounds = Counter(), [], []
    for pair in range(pairs):
        makes = [partial(make, each, f"pair {pair}") for each in (session, session, slowed)]
        same, a, slower = _in_turn(makes, partial(wants_more, policy, cell))
        found = {name: one.verdict for name, one in compare(a, same).metrics.items()}
        differing.update(name for name, verdict in found.items() if verdict != SAME)
        verdicts["the same"][SAME if set(found.values()) == {SAME} else "a difference in some metric"] += 1
        verdicts[f"{SLOWER:.0%} slower"][compare(a, slower).metrics["latency_ms"].verdict] += 1
        widths.append(statistics(a)["latency_ms"]["width"])
        rounds.append(len(common_rounds(a, slower)))
        seen = ", ".join(f"{name}: {dict(counts)}" for name, counts in verdicts.items())
        print(f"{pair + 1} of {pairs} pairs; {rounds[-1]} rounds; {seen}", file=sys.stderr)
    session.close()
    print(f"{pairs} pairs of each kind, {policy.rounds} to {policy.max_rounds} rounds of so many passes: {iterations}")
    print(f"a cell is done when the {PERCENT} interval of its median latency is {policy.ci_width:.1%} wide")
    print(f"load average {load_before[0]:.1f} before, {os.getloadavg()[0]:.1f} after, {os.cpu_count()} cores")
    print(f"width in the end: {median(widths):.1%} (median), {max(widths):.1%} (most)")
    print(f"rounds compared of a cell and a slower one: {median(rounds):g} (median), {max(rounds)} (most)")
    for name, counts in verdicts.items():
        print(f"{name}: " + ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common()))
    for name in METRICS:
        if differing[name]:
            print(f"  identical cells that differ in {name}: {differing[name]}")
    print(f"{time.perf_counter() - started:.0f} s")


def _in_turn(makes: Sequence[Callable[[int], dict]], is_to_repeat: Callable[[dict], bool]) -> list[dict]:
    """A record of each cell, of as many rounds as it needs; each round goes backwards through the cells of the one
    before, as in a sweep, so that a drift of the machine favours none of them."""
    found: list[dict] = [{}] * len(makes)
    turns = list(range(len(makes)))
    for index in itertools.count():
        makes[turns[0]](index)  # not kept: after the merging, the first pass of a round takes longer than the next
        made = [(place, makes[place](index)) for place in turns]
        for place, record in made:
            found[place] = merged([found[place], record]) if found[place] else record
        turns = [place for place in reversed(turns) if is_to_repeat(found[place])]
        if not turns:
            return found


def _session(iterations: int) -> tuple[object, Cell, Callable[[object, str, int], dict]]:
    """A loaded model, the cell that is measured, and what measures one round of it and makes the record."""
    engine, model, here = plugins.discover().engines["hf"], models.resolve(models.DEFAULT), device.detect()
    parameters = {"batch_size": BATCH, "input_len": INPUT_LEN, "output_len": OUTPUT_LEN, "warmup_iterations": 0}
    parameters["num_iterations"] = iterations
    setup = Setup(engine.name, model.name, model.path, "bf16")
    cell = Cell(setup, "perf", parameters, engine.support("bf16", here, None))
    session = engine.load(Load(setup, (cell,), cell.support.mode))
    draw = random.Random(0)
    ids = tuple(tuple(draw.randrange(3, 200) for _ in range(INPUT_LEN)) for _ in range(BATCH))
    session.generate(ids, OUTPUT_LEN)
    gc.collect()
    gc.freeze()  # or the collection before each round would take longer than the round
    facts = session.facts()  # after a pass, for only then is all of it known
    inputs = Inputs(ids, "random ids", "ab" * 32, "cd" * 32)

    def make(measured: object, sweep: str, index: int) -> dict:
        began = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        found = perf.measure(measured, inputs, parameters, lambda done, of: None)
        conditions = {"token_ids_sha256": inputs.sha256, **found.conditions}
        outcome = Outcome(facts=facts, results=found.results, conditions=conditions, weights="real")
        start = {"iterations": iterations, "started_at": began, "sweep": sweep, "round": index, "telemetry": None}
        return {**records.make(cell, outcome, facts["engine_version"], here), "rounds": [start]}

    return session, cell, make


# --- a machine that is made up ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Machine:
    """Noise of the logarithm of a round's median, one round after another."""

    name: str
    own: float = 0.01  # each start's own luck
    shared: float = 0.0  # luck that stays from start to start
    stays: float = 0.0  # how much of it
    drift: float = 0.0  # per start
    spikes: float = 0.0  # share of starts that meet a neighbour: then 5 % longer, and up

    def starts(self, draw: random.Random, count: int) -> list[float]:
        level, found = draw.gauss(0, self.shared), []
        for index in range(count):
            level = self.stays * level + draw.gauss(0, self.shared * (1 - self.stays**2) ** 0.5)
            spike = draw.expovariate(1 / 0.05) if draw.random() < self.spikes else 0.0
            found.append(level + self.drift * index + draw.gauss(0, self.own) + spike)
        return found


MACHINES = (
    Machine("quiet"),
    Machine("each start has 2 % luck", own=0.02),
    Machine("5 % luck that stays (0.9)", shared=0.05, stays=0.9),
    Machine("5 % luck that stays (0.5)", shared=0.05, stays=0.5),
    Machine("drift of 0.5 % a start", drift=0.005),
    Machine("a neighbour at every tenth start", spikes=0.1),
    Machine("all of it", shared=0.03, stays=0.8, drift=0.003, spikes=0.05),
)
WIDTHS = (0.02, 0.03, 0.05, 0.1)


@dataclass(frozen=True)
class Stopped:
    """A machine whose cells are measured until their intervals are narrow."""

    luck: float  # each start's own
    shared: float  # from round to round, of both cells
    least: int = LEAST_ROUNDS  # rounds
    most: int = 20


# The last two are as wide as what `measure` met on a quiet and on a busy host, with its least and most rounds.
STOPPED = (Stopped(0.003, 0.01), Stopped(0.01, 0.01), Stopped(0.02, 0.01))
STOPPED += (Stopped(0.05, 0.08, 50, 280), Stopped(0.09, 0.2, 50, 280))


def simulate(pairs: int) -> None:
    """Identical cells called different in latency, and 5 % found, in percent, for three orders of the rounds."""
    print(f"{pairs} pairs of cells each, one metric, {PERCENT} intervals; in percent: wrong alarms / 5 % slower found")
    columns = [(rounds, order) for rounds in (3, 5, 10) for order in ("ABAB", "ABBA", "AABB")]
    print(" " * 34 + "".join(f"{rounds:>6} x {order:<5}" for rounds, order in columns))
    for machine in MACHINES:
        shown = [f"{_rates(machine, pairs, rounds, order):>14}" for rounds, order in columns]
        print(f"{machine.name:<34}" + "".join(shown))
    print("in turn, stopped when narrow; in percent alarms / found, mean rounds compared")
    print(" " * 62 + "".join(f"{f'--ci-width {width}':>20}" for width in WIDTHS))
    for machine, stop in itertools.product(STOPPED, (max, min)):
        name = f"{machine.luck:.1%} luck, {machine.shared:.0%} shared, {machine.least} to {machine.most} rounds, "
        name += "both stop together" if stop is max else "each stops alone"
        print(f"{name:<62}" + "".join(f"{_stopped(machine, width, stop, pairs):>20}" for width in WIDTHS))


def _rates(machine: Machine, pairs: int, rounds: int, order: str) -> str:
    draw, alarms, found = random.Random(f"{machine.name} {rounds} {order}"), 0, 0
    for _ in range(pairs):
        starts = machine.starts(draw, 2 * rounds)
        if order == "AABB":  # two runs, one after the other: not paired
            a, b = starts[:rounds], starts[rounds:]
        else:
            a, b = starts[::2], starts[1::2]
        if order == "ABBA":
            a, b = zip(*(pair[:: -1 if index % 2 else 1] for index, pair in enumerate(zip(a, b))))
        low, high = interval_of_gap(a, b, order != "AABB")
        alarms += not low <= 0 <= high
        found += low + math.log(1 + SLOWER) > 0
    return f"{100 * alarms / pairs:.1f} / {100 * found / pairs:.0f}"


def _stopped(machine: Stopped, width: float, stop: Callable[[int, int], int], pairs: int) -> str:
    """Compared are the rounds that both cells have."""
    draw, alarms, found, rounds = random.Random(f"{machine.luck} {width}"), 0, 0, 0
    for _ in range(pairs):
        shared = [draw.gauss(0, machine.shared) for _ in range(machine.most)]
        sides = [[level + draw.gauss(0, machine.luck) for level in shared] for _ in range(2)]
        common = stop(*(_narrow_from(side, machine.least, width) for side in sides))
        low, high = interval_of_gap(*(side[:common] for side in sides), is_paired=True)
        alarms += not low <= 0 <= high
        found += low + math.log(1 + SLOWER) > 0
        rounds += common
    return f"{100 * alarms / pairs:.1f} / {100 * found / pairs:.0f} / {rounds / pairs:.1f}"


def _narrow_from(logs: Sequence[float], least: int, width: float) -> int:
    """As `harness.recording.stats.is_narrow`, but without a record of every round."""
    total = squares = 0.0
    for n, value in enumerate(logs, start=1):
        total, squares = total + value, squares + value**2
        if n >= least and 2 * student(n - 1) * math.sqrt(max(0.0, squares - total**2 / n) / (n - 1) / n) <= width:
            return n
    return len(logs)


if __name__ == "__main__":
    main()
