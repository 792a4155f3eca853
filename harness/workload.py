"""The interface of workloads: what is done with a session, and which numbers come of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.engine import Session
    from harness.working.inputs import Inputs

Progress = Callable[[int, int], None]  # done, of


@dataclass(frozen=True)
class Measurement:
    """What a workload saw. `results` become top-level keys of the record; `conditions` join its conditions."""

    results: Mapping[str, Any]
    conditions: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class WorkloadSpec:
    """A row of `harness list workloads`.

    `parameters` are the options this workload reads, with their defaults; a cell holds those and no others.
    """

    name: str
    summary: str
    needs: str  # the engine capability: "generate" or "score"
    measures: str  # "speed" (skipped where the precision is emulated) or "accuracy" (skipped for dummy weights)
    inputs: str  # "prompts" (deterministic ids) or "windows" (of a dataset)
    parameters: Mapping[str, Any]
    measure: Callable[[Session, Inputs, Mapping[str, Any], Progress], Measurement]
    run_once: Callable[[Session, Inputs, Mapping[str, Any]], None] | None = None  # the extra pass of a profiler
