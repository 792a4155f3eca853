"""Runs a ladder: a try of its top, the rounds, and for the ledger a profiled pass of each step in a folder of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from harness.cells import AND, NONE
from harness.engine import EngineSpec
from harness.ladder.steps import BASELINE, CUMULATIVE, KINDS, PRECISION, Step, steps, with_steps
from harness.planning.plan import Options, Plan, make_plan
from harness.planning.schedule import Policy
from harness.recording.records import MEASURED, Record
from harness.working.run import Result

PROFILES = "profiles"  # inside the output folder: another number of iterations, so other cells
TRIAL = "trial"  # inside the output folder: the first try of the top
FEW = {"num_iterations": (3,), "warmup_iterations": (1,)}  # of what a profiled step is held against
LOGITS = "logits"  # inside the output folder: those of plain eager

Perform = Callable[[Plan, Options], Result]


@dataclass(frozen=True)
class Asked:
    """What of a ladder to run."""

    kinds: tuple[str, ...] = KINDS
    without: Mapping[str, str] = field(default_factory=dict)  # rungs left out, and why
    profiler: str | None = None
    logits: Mapping[str, int] = field(default_factory=dict)  # sizes of what compares logits


@dataclass(frozen=True)
class Climbed:
    """The records of the steps, and those of their profiled passes."""

    result: Result
    profiled: Result = field(default_factory=lambda: Result([], []))

    @property
    def records(self) -> list[Record]:
        return self.result.records

    @property
    def problems(self) -> list[str]:
        return [*self.result.problems, *self.profiled.problems]

    @property
    def exit_code(self) -> int:
        return max(self.result.exit_code, self.profiled.exit_code)


def climb(options: Options, asked: Asked, perform: Perform, warn: Callable[[str], None]) -> Climbed:
    """One engine, one model, the first precision with its whole ladder and the others at its top. Raises UsageError.

    A rung that turns out not to be in force would make a mismatch of every step above it. So the top is tried first, for
    one iteration, and what is not in force there is left out, with the reason; where that had replaced others, they come
    back, and the new top is tried, too."""
    while True:
        plan, short = _trial(options, asked, warn)
        trial = perform(plan, short)
        if trial.was_interrupted:
            return Climbed(trial)
        off = _not_in_force(trial)
        asked = replace(asked, without={**off, **asked.without})
        if not any(rung.replaces for rung in _spec(plan, options).rungs if rung.name in off):
            break
    result = perform(*plan_of(options, asked, warn))
    if not asked.profiler or result.was_interrupted:
        return Climbed(result)
    parameters = {**options.parameters, **FEW}
    again = replace(
        options,
        **{"workloads": ("perf",), "parameters": parameters, "policy": Policy(), "profiler": asked.profiler},
        output_dir=options.output_dir / PROFILES,
    )
    plan, again = plan_of(again, asked, warn, (BASELINE, CUMULATIVE, PRECISION))
    plan.cells[:] = [cell for cell in plan.cells if cell.workload == "perf"]
    return Climbed(result, perform(plan, again) if plan.profiler else Result([], []))


def plan_of(
    options: Options, asked: Asked, warn: Callable[[str], None], only: Sequence[str] = ()
) -> tuple[Plan, Options]:
    """The plan of a ladder, nothing of it started, and the options it goes with. `only`: kinds of steps."""
    options = replace(options, rungs=(NONE,))
    base = make_plan(options, warn)
    spec, here = _spec(base, options), base.ground.device
    chosen = steps(spec, options.precisions, here, asked.kinds, asked.without, max(options.tp))
    chosen = [step for step in chosen if not only or step.kind in only]
    return with_steps(base, _distinct(chosen), Path(options.output_dir) / LOGITS, asked.logits), options


def _trial(options: Options, asked: Asked, warn: Callable[[str], None]) -> tuple[Plan, Options]:
    """The top alone, one iteration of the first batch size; and every lower step with a rung that the top lacks, as one
    above replaced it."""
    once = {"num_iterations": (1,), "warmup_iterations": (0,), "batch_size": options.parameters["batch_size"][:1]}
    short = replace(
        options,
        **{"workloads": ("perf",), "parameters": {**options.parameters, **once}, "policy": Policy()},
        precisions=options.precisions[:1],
        output_dir=options.output_dir / TRIAL,
    )
    plan, short = plan_of(short, replace(asked, kinds=(CUMULATIVE,)), warn, (CUMULATIVE,))
    cells = [cell for cell in plan.cells if cell.workload == "perf"]
    sets = [set(cell.setup.rung_names or ()) for cell in cells]
    plan.cells[:] = [cell for at, cell in enumerate(cells) if not any(sets[at] <= above for above in sets[at + 1 :])]
    return plan, short


def _spec(plan: Plan, options: Options) -> EngineSpec:
    (engine,) = options.engines
    return plan.ground.registry.engines[engine]


def _not_in_force(trial: Result) -> dict[str, str]:
    """Rungs that the top asked for and did not get, and why; none where it was not measured."""
    found: dict[str, str] = {}
    for record in (record for record in trial.records if record["status"] in MEASURED):
        on, off = record["effective"].get("rungs_in_force"), record["effective"].get("rungs_off") or {}
        if isinstance(on, dict):
            asked = record["requested"]["rungs"].split(AND)
            found |= {name: f"not in force here: {off.get(name)}" for name in asked if name not in on and name in off}
    return found


def _distinct(chosen: Sequence[Step]) -> list[Step]:
    return list({(step.precision, step.rungs): step for step in reversed(chosen)}.values())[::-1]
