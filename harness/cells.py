"""What is asked: a setup says how a model is loaded, a cell is one measurement, a load is what one worker gets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from harness.device import Device
from harness.precision import Support
from harness.serde import to_json

DEFAULT, NONE = "default", "none"  # rungs: what the engine does when it is asked for nothing; plain eager
AND = "+"  # between the names of rungs


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
    skip_compile: bool = False  # of an engine that compiles ahead of time: use what is there, and only that
    trust_remote_code: bool = False
    seed: int = 0
    rungs: str = DEFAULT  # or NONE, or names of the engine's rungs joined by AND, in its order

    @property
    def rung_names(self) -> tuple[str, ...] | None:
        """Those asked for; None: whatever the engine does by default."""
        return None if self.rungs == DEFAULT else () if self.rungs == NONE else tuple(self.rungs.split(AND))

    @property
    def source(self) -> str:
        return self.checkpoint or self.path

    @property
    def config(self) -> str:
        """The seeds' name of a parallel configuration, e.g. `TP1_EP1_auto`, and the rungs where they were chosen."""
        rungs = "" if self.rungs == DEFAULT else f"_{self.rungs}"
        return f"TP{self.tp}_EP{self.ep}_{self.moe_backend}{rungs}"


@cache
def _said(setup: Setup) -> dict[str, Any]:
    """What of a setup may change a result. Kept: thousands of cells share a few setups."""
    said = to_json(setup)
    del said["skip_compile"]  # changes how long a load takes
    if setup.rungs == DEFAULT:
        del said["rungs"]  # so that a cell keeps the key it had before there were rungs
    return said


@dataclass(frozen=True)
class Cell:
    """One measurement: a setup, a workload and that workload's parameters."""

    setup: Setup
    workload: str
    parameters: dict[str, Any]
    support: Support
    skip: str | None = None  # the reason why it is not attempted
    own_rungs: tuple[str, ...] = ()  # of the setup's: those that are its precision's own arithmetic

    def key(self, engine_version: str | None, device: Device) -> str:
        """Name of its record: the same question on the same engine version and device overwrites its old answer."""
        what = [
            _said(self.setup),
            self.workload,
            self.parameters,
            engine_version,
            device.kind,
            device.name,
            device.count,
        ]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class InputFile:
    """Where a cell's token ids are, or why there are none."""

    path: str | None
    problem: str | None = None
    longest: int = 0  # tokens of its longest sequence


@dataclass(frozen=True)
class Load:
    """Cells that share a loaded model: what one worker gets."""

    setup: Setup
    cells: tuple[Cell, ...]
    compute_mode: str  # what the engine said it would do with this precision here
    inputs: tuple[InputFile, ...] = ()  # one per cell
    profiler: str | None = None
    profiles: tuple[str, ...] = ()  # where `profiler` is given, the path of each cell's profile, without suffix

    def only(self, cells: Sequence[Cell]) -> Load:
        """The same load with some of its cells."""
        at = {id(cell): index for index, cell in enumerate(self.cells)}
        chosen = [at[id(cell)] for cell in cells]
        return replace(
            self,
            cells=tuple(cells),
            inputs=tuple(self.inputs[index] for index in chosen if self.inputs),
            profiles=tuple(self.profiles[index] for index in chosen if self.profiles),
        )

    @property
    def max_sequence(self) -> int:
        """Longest sequence of any cell, in tokens: what it was asked for, or what it got where texts decide."""
        longest = [file.longest for file in self.inputs] or [0] * len(self.cells)
        return max(
            max(cell.parameters.get("input_len", 0), length) + cell.parameters.get("output_len", 0)
            for cell, length in zip(self.cells, longest)
        )
