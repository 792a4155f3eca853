"""The interface of profilers: a context around one extra pass of a workload, in the process that is looked into."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.device import Device
    from harness.engine import Session


def around() -> str | None:
    """The profiler that this very process was started by, if any: "nsys" tells its children so."""
    return "nsys" if "NSYS_PROFILING_SESSION_ID" in os.environ else None


def _nothing(device: Device) -> str | None:
    return None


@dataclass(frozen=True)
class ProfilerSpec:
    """A row of `harness list profilers`. A profiled pass is always an extra one: no timed number comes from it.

    `session` is given the engine's session and a folder that exists; what is written there is the profile.
    """

    name: str
    summary: str
    session: Callable[[Session, Path], AbstractContextManager]
    needs: str | None = None  # the engine capability; see EngineSpec
    problem: Callable[[Device], str | None] = _nothing  # why it cannot work on this machine, and what to do
    # Words before the command of a worker that does nothing but the extra pass, for a profiler that must start its
    # process itself; given the file to write, without suffix. None: the pass follows the timed ones in their worker.
    command: Callable[[Path], Sequence[str]] | None = None
