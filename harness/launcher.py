"""The interface of launchers: where a load's worker runs, be it this machine or another. A hook registers specs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from harness.cells import Cell, Load
from harness.failures import Failure

if TYPE_CHECKING:
    from harness.device import Device


@dataclass(frozen=True)
class Job:
    """A load, and how its worker is started."""

    load: Load
    python: str  # the interpreter of its engine
    log: Path  # both streams of the worker are added to it
    timeout: float  # seconds the worker may go without any event, be it a load or an iteration


@dataclass
class Outcome:
    """What became of a cell: a failure, or what was measured; and what the engine said of itself, if it got that far."""

    failure: Failure | None = None
    log_tail: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    conditions: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None  # which they are; see harness.model.weights.identity
    load_seconds: float | None = None
    started_at: str | None = None  # ISO time, UTC
    telemetry: dict[str, Any] | None = None  # of its machine meanwhile; see harness.working.telemetry


class Stopped(Exception):
    """The user stops: raised by a launcher in the middle of a job, when nothing of it runs any more."""


@dataclass(frozen=True)
class Control:
    """What a launcher is given beside its job."""

    tell: Callable[[Load, dict[str, Any]], None]  # every event of a worker; may be called from any thread
    stop: threading.Event  # set: end what runs, and raise Stopped


class Launcher(Protocol):
    """Open for the length of a run. Its methods are called from `slots` threads at once, a job in each."""

    slots: int

    def run(self, job: Job, control: Control) -> Iterator[tuple[Cell, Outcome]]:
        """Every cell of the job with what became of it, as they come. A failure is an outcome, never an exception."""

    def profile(self, job: Job, control: Control) -> str | None:
        """The extra pass of a job of one cell, whose profiler starts its process itself. Returns what went wrong."""


@dataclass(frozen=True)
class LauncherSpec:
    """A row of `harness list launchers`."""

    name: str
    summary: str
    # Given the device a plan was made for, how many jobs may run at once, and what the user said with --launcher-option.
    # Raises UsageError.
    open: Callable[[Device, int, Mapping[str, str]], AbstractContextManager[Launcher]]
    # The device of the machines it reaches, as far as a plan can know it; None: that of this machine.
    device: Callable[[Mapping[str, str]], Device] | None = None
