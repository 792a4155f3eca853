"""Workers on this machine. No GPU is ever shared by two loads, be they of one run or of two; CPU workers share the cores
out among themselves."""

from __future__ import annotations

import fcntl
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from harness.cells import Cell
from harness.device import Device, identities, visible_gpus
from harness.errors import UsageError
from harness.hookspecs import hookimpl
from harness.launcher import Control, Job, LauncherSpec, Outcome, Stopped
from harness.working import process

POLL_S = 0.2


@hookimpl
def harness_register_launchers() -> list[LauncherSpec]:
    return [
        LauncherSpec(
            name="local",
            summary="this machine: each load gets GPUs, or cores, of its own",
            open=open_local,
        )
    ]


@contextmanager
def open_local(device: Device, workers: int, options: Mapping[str, str]) -> Iterator[Local]:
    """Raises UsageError for options, of which it has none, and for more workers than cores."""
    if options:
        raise UsageError(f"the launcher 'local' has no option {', '.join(options)}")
    if device.kind == "cuda":
        gpus = visible_gpus() or [str(index) for index in range(device.count)]
        yield Local(workers, [{"CUDA_VISIBLE_DEVICES": name} for name in gpus], is_gpu=True)
        return
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if workers > max(len(cores), 1):
        raise UsageError(f"--workers {workers}: there are {len(cores)} cores; workers that share cores slow each other")
    share = len(cores) // workers
    shares = [",".join(map(str, cores[index * share : (index + 1) * share])) for index in range(workers)]
    yield Local(workers, [{"HARNESS_CORES": text} for text in shares] if workers > 1 else [{}], is_gpu=False)


@dataclass
class Local:
    """See harness.launcher.Launcher. A place is a GPU, or a share of the cores."""

    slots: int
    places: list[Mapping[str, str]]  # free ones, as variables of a worker
    is_gpu: bool
    changed: threading.Condition = field(default_factory=threading.Condition)

    def run(self, job: Job, control: Control) -> Iterator[tuple[Cell, Outcome]]:
        with self._held(job, control) as env:
            yield from process.run(job, control, env)

    def profile(self, job: Job, control: Control) -> str | None:
        with self._held(job, control) as env:
            return process.profile(job, control, env)

    @contextmanager
    def _held(self, job: Job, control: Control) -> Iterator[Mapping[str, str]]:
        """Waits for as many places as the load needs. Raises Stopped."""
        setup = job.load.setup
        count = max(setup.tp, setup.ep) if self.is_gpu else 1
        with self.changed:
            while len(self.places) < count:
                self.changed.wait(POLL_S)
                _check(control)
            taken, self.places = self.places[:count], self.places[count:]
        try:
            env = {name: ",".join(place[name] for place in taken) for name in taken[0]} if taken else {}
            with _locked(env.get("CUDA_VISIBLE_DEVICES", ""), control):
                yield env
        finally:
            with self.changed:
                self.places = taken + self.places
                self.changed.notify_all()


@contextmanager
def _locked(gpus: str, control: Control) -> Iterator[None]:
    """These GPUs, for this machine: another run waits. The kernel lets go of a lock when its holder dies."""
    files: list[IO] = []
    try:
        for gpu in sorted(identities(gpus)):  # in one order everywhere, so that none waits for the other
            path = Path(tempfile.gettempdir()) / f"harness-gpu-{gpu}.lock"
            file = path.open("a")
            files.append(file)
            with suppress(OSError):
                path.chmod(0o666)  # of several users
            while not _try_lock(file):
                _check(control)
                time.sleep(POLL_S)
        yield
    finally:
        for file in files:
            file.close()


def _try_lock(file: IO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _check(control: Control) -> None:
    if control.stop.is_set():
        raise Stopped
