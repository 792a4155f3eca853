"""From options to work: cells, grouped into loads that share one loaded model. Nothing is started here.

A cell that cannot be measured is decided here, with its reason, before any process exists.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from harness import precision as modes
from harness.device import Device
from harness.engine import EngineSpec, Support
from harness.serde import to_json
from harness.workload import WorkloadSpec


@dataclass(frozen=True)
class Setup:
    """How a model is loaded: everything that would need another worker if it changed."""

    engine: str
    model: str  # the name in records and tables
    path: str  # a folder or a hub id: what the engine opens
    precision: str
    weights: str = "real"  # or "dummy": random, from `seed`
    checkpoint: str | None = None  # given for this precision; else `path`
    quantize: str = "experts"  # or "linear": which products a quantised precision reaches
    tp: int = 1
    ep: int = 1
    moe_backend: str = "auto"
    disable_fusion: bool = False
    trust_remote_code: bool = False
    seed: int = 0

    @property
    def source(self) -> str:
        return self.checkpoint or self.path

    @property
    def config(self) -> str:
        """The seeds' name of a parallel configuration, e.g. `TP1_EP1_auto`."""
        return f"TP{self.tp}_EP{self.ep}_{self.moe_backend}"


@dataclass(frozen=True)
class Cell:
    """One measurement: a setup, a workload and that workload's parameters."""

    setup: Setup
    workload: str
    parameters: dict[str, Any]
    support: Support
    skip: str | None = None  # the reason why it is not attempted

    def key(self, engine_version: str | None, device: Device) -> str:
        """Name of its record: the same question on the same engine version and device overwrites its old answer."""
        what = [to_json(self.setup), self.workload, self.parameters, engine_version, device.kind, device.name, device.count]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class InputFile:
    """Where a cell's token ids are, or why there are none."""

    path: str | None
    problem: str | None = None


@dataclass(frozen=True)
class Load:
    """Cells that share a loaded model: what one worker gets."""

    setup: Setup
    cells: tuple[Cell, ...]
    compute_mode: str  # what the engine said it would do with this precision here
    inputs: tuple[InputFile, ...] = ()  # one per cell
    profiler: str | None = None
    profile_folder: str | None = None

    def only(self, cells: Sequence[Cell]) -> Load:
        """The same load with some of its cells."""
        files = {id(cell): file for cell, file in zip(self.cells, self.inputs)}
        return replace(self, cells=tuple(cells), inputs=tuple(files[id(cell)] for cell in cells))

    @property
    def max_sequence(self) -> int:
        """Longest sequence of any cell, in tokens."""
        return max(sum(cell.parameters.get(name, 0) for name in ("input_len", "output_len")) for cell in self.cells)

    @property
    def max_batch(self) -> int:
        return max(cell.parameters.get("batch_size", 1) for cell in self.cells)


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
        support = engine.support(setup.precision, device, versions[setup.engine])
        values = {**workload.parameters, **model_defaults.get(workload.name, {})}
        axes = [given.get(name, [value]) for name, value in values.items()]
        for combination in itertools.product(*axes):
            parameters = dict(zip(values, combination))
            cells.append(Cell(setup, workload.name, parameters, support, _skip_reason(setup, workload, engine, support, device)))
    return cells


def make_loads(cells: Iterable[Cell]) -> list[Load]:
    """Cells to attempt, grouped by setup, in the order given."""
    groups: dict[Setup, list[Cell]] = {}
    for cell in cells:
        if cell.skip is None:
            groups.setdefault(cell.setup, []).append(cell)
    return [Load(setup, tuple(group), group[0].support.mode) for setup, group in groups.items()]


def _skip_reason(setup: Setup, workload: WorkloadSpec, engine: EngineSpec, support: Support, device: Device) -> str | None:
    if support.mode == modes.UNSUPPORTED:
        return support.reason
    if workload.needs not in engine.capabilities:
        return f"{engine.name} cannot {workload.needs}, which {workload.name} needs"
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
    return None
