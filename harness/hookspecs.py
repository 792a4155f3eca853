"""The hooks: where many may answer. One that was chosen is a Protocol (`harness.engine.Session`), not a hook.

No hook runs inside a timed region. Hooks only ever gain arguments; an implementation may take fewer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from harness.cells import Load
    from harness.engine import EngineSpec
    from harness.evaluation.flops import KernelFlopProvider
    from harness.kernels.taxonomy import KernelRules
    from harness.launcher import LauncherSpec
    from harness.profiler import ProfilerSpec
    from harness.workload import WorkloadSpec

PROJECT = "harness"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def harness_register_engines() -> Iterable[EngineSpec]:
    """Engines this plugin adds."""


@hookspec
def harness_register_workloads() -> Iterable[WorkloadSpec]:
    """Workloads this plugin adds."""


@hookspec
def harness_register_profilers() -> Iterable[ProfilerSpec]:
    """Profilers this plugin adds."""


@hookspec
def harness_register_launchers() -> Iterable[LauncherSpec]:
    """Places to run workers that this plugin adds."""


@hookspec
def harness_register_kernel_rules() -> Iterable[KernelRules]:
    """Rules that tell what kernels of other names do; they are asked before the built-in ones."""


@hookspec
def harness_register_kernel_flop_providers() -> Iterable[KernelFlopProvider]:
    """Ways to measure the kernel FLOP ratio of a score that this plugin adds."""


@hookspec(firstresult=True)
def harness_resolve_checkpoint(model: str, precision: str) -> str | None:
    """Folder or hub id that holds `model` in `precision`, or None to leave it to others. The first answer wins."""


@hookspec
def harness_load_started(load: Load) -> None:
    """A worker is about to start for this load."""


@hookspec
def harness_cell_finished(record: Mapping[str, Any]) -> None:
    """A cell's record (the JSON object) has just been written."""
