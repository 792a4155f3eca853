"""What a ladder runs: for each step the rungs that are on, and the cells that measure it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness.accuracy.baseline import vocabulary_size
from harness.cells import AND, DEFAULT, NONE, Cell, Setup
from harness.device import Device
from harness.engine import EngineSpec, rung_problem, settled, with_needs
from harness.errors import UsageError
from harness.names import check_known
from harness.planning.plan import Plan, make_cell

BASELINE, CUMULATIVE, SINGLE, PRECISION, OFF = "baseline", "cumulative", "single", "precision", "off"
KINDS = (CUMULATIVE, SINGLE)  # that can be left out
LOGITS = "kl"  # the workload that compares a step's logits with the baseline's


@dataclass(frozen=True)
class Step:
    """One set of rungs at one precision."""

    kind: str
    added: str  # the rung or the precision that is new in it
    rungs: str  # as Setup.rungs
    precision: str
    why: str = ""  # of OFF


def steps(
    engine: EngineSpec,
    precisions: Sequence[str],
    device: Device,
    kinds: Iterable[str],
    without: Mapping[str, str],
    tp: int = 1,
) -> list[Step]:
    """Plain eager; every rung that can be on here, one on another; what the engine does by default; each rung alone with
    what it needs; the top at each further precision; and last, as OFF, what cannot be on. A rung that replaces others
    takes their place, and those of them that come after it are not put on top of it. `without`: rungs left out, with
    all that need them, and why; with the reason "" they are not mentioned. `tp`: ranks that the model is cut over.

    Raises UsageError for names nobody knows, and for an engine without rungs."""
    if not engine.rungs:
        raise UsageError(f"{engine.name} has no rungs; harness list rungs shows the engines that have")
    for name in without:
        check_known(f"rung of {engine.name}", name, [rung.name for rung in engine.rungs])
    first, *more = precisions
    off = {rung.name: _problem(engine, rung.name, first, device, without, tp) for rung in engine.rungs}
    names = [name for name, why in off.items() if why is None]
    found = [Step(BASELINE, NONE, NONE, first)]
    if CUMULATIVE in kinds:
        found += [Step(CUMULATIVE, on[-1], AND.join(on), first) for on in one_on_another(engine, names)]
    found.append(Step(DEFAULT, DEFAULT, DEFAULT, first))
    if SINGLE in kinds:
        found += [Step(SINGLE, name, AND.join(with_needs(engine, [name])), first) for name in names]
    for precision in more:
        can = [r.name for r in engine.rungs if _problem(engine, r.name, precision, device, without, tp) is None]
        found.append(Step(PRECISION, precision, AND.join(settled(engine, can)) or NONE, precision))
    return [
        *found,
        *(Step(OFF, name, AND.join(with_needs(engine, [name])), first, why) for name, why in off.items() if why),
    ]


def one_on_another(engine: EngineSpec, names: Sequence[str]) -> list[tuple[str, ...]]:
    """The sets of rungs that come of putting these on in turn, what is new in each at its end. `names`: in the ladder's
    order, with all they need."""
    found = [settled(engine, names[: at + 1]) for at in range(len(names))]
    return [on for on, name in zip(found, names) if name in on]


def with_steps(base: Plan, chosen: Sequence[Step], reference: Path, sizes: Mapping[str, int]) -> Plan:
    """The plan that measures the steps. `base`: its cells at plain eager, at every precision. `reference`: the folder of
    the logits of plain eager; `sizes`: parameters of the cells that compare with them."""
    return replace(base, cells=list(_cells(base, chosen, reference, sizes)))


def _cells(base: Plan, chosen: Sequence[Step], reference: Path, sizes: Mapping[str, int]) -> Iterator[Cell]:
    workloads = base.ground.registry.workloads
    seen: set[tuple[str, str]] = set()
    for step in chosen:
        if (step.precision, step.rungs) in seen:
            continue
        seen.add((step.precision, step.rungs))
        templates = [cell for cell in base.cells if cell.setup.precision == step.precision]
        for cell in templates[:1] if step.kind == OFF else templates:
            setup = replace(cell.setup, rungs=step.rungs)
            made = make_cell(base.ground, setup, workloads[cell.workload], cell.parameters, {})
            yield replace(made, setup=setup, skip=step.why) if step.kind == OFF else made  # with the rung it is about
        if step.kind != OFF and templates:
            yield from _logits_cells(base, replace(templates[0].setup, rungs=step.rungs), step, reference, sizes)


def _logits_cells(base: Plan, setup: Setup, step: Step, reference: Path, sizes: Mapping[str, int]) -> Iterator[Cell]:
    if "logits" not in base.ground.registry.engines[setup.engine].capabilities:
        return
    said = f"{setup.engine} {setup.path} {setup.weights} {setup.tp} {setup.ep} {base.ground.version(setup.engine)}"
    path = reference / f"eager_{hashlib.sha256(said.encode()).hexdigest()[:12]}.safetensors"
    about = {"engine": setup.engine, "precision": step.precision, "model": setup.model}
    given = {
        **sizes,
        "reference": str(path.resolve()),
        "is_reference": step.kind == BASELINE,
        "about": {**about, "vocab_size": vocabulary_size(setup.path)},
    }
    yield make_cell(base.ground, setup, base.ground.registry.workloads[LOGITS], given, {})


def _problem(
    engine: EngineSpec, name: str, precision: str, device: Device, without: Mapping[str, str], tp: int
) -> str | None:
    """Why a rung cannot be on here with all it needs; None: it can. Empty where it was not wanted."""
    wanted = with_needs(engine, [name])
    if name in without:
        return without[name] and f"rung {name}: {without[name]}"
    if missing := [other for other in wanted if other in without]:
        return f"rung {name}: needs {' and '.join(missing)}, left out"
    return rung_problem(engine, wanted, precision, device, tp)
