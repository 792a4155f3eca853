"""From options to work: cells, grouped into loads that share one loaded model. Nothing is started here.

A cell that cannot be measured is decided here, with its reason, before any process exists.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from harness import precision as modes
from harness.cells import Cell, Load, Setup
from harness.device import Device
from harness.engine import EngineSpec, support_of
from harness.precision import Support
from harness.preflight import broken_rule
from harness.workload import WorkloadSpec


def make_cells(
    setups: Iterable[Setup],
    workloads: Sequence[WorkloadSpec],
    given: Mapping[str, Sequence[Any]],
    model_defaults: Mapping[str, Mapping[str, Any]],
    engines: Mapping[str, EngineSpec],
    versions: Mapping[str, str | None],
    device: Device,
) -> list[Cell]:
    """Every setup x workload x parameter value. `given` holds the options the user typed, each as a list of values;
    a parameter not typed takes the model's default, then the workload's."""
    cells = []
    for setup, workload in itertools.product(setups, workloads):
        engine = engines[setup.engine]
        support = support_of(engine, setup.precision, device, versions[setup.engine])
        values = {**workload.parameters, **model_defaults.get(workload.name, {})}
        axes = [given.get(name, [value]) for name, value in values.items()]
        for combination in itertools.product(*axes):
            parameters = dict(zip(values, combination))
            skip = _skip_reason(setup, workload, parameters, engine, support, device)
            cells.append(Cell(setup, workload.name, parameters, support, skip))
    return cells


def make_loads(cells: Iterable[Cell]) -> list[Load]:
    """Cells to attempt, grouped by setup, in the order given."""
    groups: dict[Setup, list[Cell]] = {}
    for cell in cells:
        if cell.skip is None:
            groups.setdefault(cell.setup, []).append(cell)
    return [Load(setup, tuple(group), group[0].support.mode) for setup, group in groups.items()]


def _skip_reason(
    setup: Setup,
    workload: WorkloadSpec,
    parameters: Mapping[str, Any],
    engine: EngineSpec,
    support: Support,
    device: Device,
) -> str | None:
    if support.mode == modes.UNSUPPORTED:
        return support.reason
    if workload.needs not in engine.capabilities:
        return f"{engine.name} lacks the capability {workload.needs!r}, which {workload.name} needs"
    if workload.measures == "speed" and support.mode == modes.EMULATED:
        return f"emulated on {device.label}: its accuracy is that of {setup.precision}, its speed would mean nothing"
    if workload.measures == "accuracy" and setup.weights == "dummy":
        return "dummy weights have no accuracy"
    for option, value, default in (
        ("tp", setup.tp, 1),
        ("ep", setup.ep, 1),
        ("moe_backend", setup.moe_backend, "auto"),
        ("disable_fusion", setup.disable_fusion, False),
    ):
        if value != default and option not in engine.options:
            return f"{engine.name} has no --{option.replace('_', '-')} (asked for {value})"
    if max(setup.tp, setup.ep) > device.count and device.kind == "cuda":
        return f"needs {max(setup.tp, setup.ep)} GPUs, {device.count} here"
    return broken_rule(setup, parameters, support.mode)
