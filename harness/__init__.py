"""The names a plugin author imports. Each is fetched when it is first used, so that `harness --help` pays for none."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.cells import Cell, Load, Setup
    from harness.engine import EngineSpec, Generation, Logits, Response, Rung, Sampling, Session
    from harness.errors import BadOutput, HarnessError, LoadFailed, OutOfMemory, Unsupported, UsageError
    from harness.hookspecs import hookimpl
    from harness.precision import Support
    from harness.profiler import ProfilerSpec
    from harness.workload import Measurement, WorkloadSpec

__version__ = "0.1.0"

_HOME = {
    "cells": ("Cell", "Load", "Setup"),
    "engine": ("EngineSpec", "Generation", "Logits", "Response", "Rung", "Sampling", "Session"),
    "errors": ("BadOutput", "HarnessError", "LoadFailed", "OutOfMemory", "Unsupported", "UsageError"),
    "hookspecs": ("hookimpl",),
    "precision": ("Support",),
    "profiler": ("ProfilerSpec",),
    "workload": ("Measurement", "WorkloadSpec"),
}

__all__ = [name for names in _HOME.values() for name in names]


def __getattr__(name: str) -> Any:
    for module, names in _HOME.items():
        if name in names:
            return getattr(import_module(f"harness.{module}"), name)
    raise AttributeError(f"module 'harness' has no attribute {name!r}")
