"""The interface of profilers: a context around one extra pass of a workload, in the worker."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ProfilerSpec:
    """A row of `harness list profilers`. A profiled pass is always an extra one: no timed number comes from it.

    `session` is given a folder that exists; what it writes there is the profile.
    """

    name: str
    summary: str
    session: Callable[[Path], AbstractContextManager]
