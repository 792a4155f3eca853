"""A worker process, seen from outside: starts it, and turns whatever happens to it into an outcome per cell.

Every worker has a supervisor, which kills it and all it started when it ends, hangs, or the user stops.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from harness import device, failures
from harness.cells import Cell
from harness.failures import Failure
from harness.launcher import Control, Job, Outcome, Stopped
from harness.serde import to_json
from harness.working.telemetry import sampling

TICK_S = 0.2
STOP_S = 10.0  # for the supervisor to kill what is left
CLOSE_S = 60.0  # for an engine to close, after the worker's last word
PROFILER_END_S = 600.0  # for a profiler to write down what it saw, after the worker's last word
MEMORY_BACK_S = 30.0
MEMORY_SLACK = 256 << 20  # bytes; another process may take a little meanwhile
OF_WORKERS = {"PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}

NOWHERE: Mapping[str, str] = {}


def run(job: Job, control: Control, env: Mapping[str, str] = NOWHERE) -> Iterator[tuple[Cell, Outcome]]:
    """Measures every cell of a load. A cell that ends its worker costs only itself: the rest get another worker.

    `env`: variables of the worker beside ours. Raises Stopped, with no process left, once `control.stop` is set."""
    left = list(job.load.cells)
    while left:
        worker = _Worker(replace(job, load=job.load.only(left)), control, env)
        try:
            for cell, outcome in worker.outcomes():
                left.remove(cell)
                yield cell, outcome
        finally:
            worker.stop()
        if worker.failure is None:
            return
        for cell in worker.lost():
            left.remove(cell)
            yield cell, Outcome(worker.failure, worker.log_tail(), worker.facts, load_seconds=worker.load_seconds)


def profile(job: Job, control: Control, env: Mapping[str, str] = NOWHERE) -> str | None:
    """The extra pass of one cell, in a worker that its profiler starts. Returns what went wrong, or None."""
    worker = _Worker(job, control, env, "profile")
    try:
        for _ in worker.outcomes():
            pass
    finally:
        worker.stop()
    return worker.failure and f"{worker.failure.failure_class}: {worker.failure.message}"


class _Worker:
    """One process and its events. `what`: arguments of harness.working.worker."""

    def __init__(self, job: Job, control: Control, env: Mapping[str, str], *what: str) -> None:
        self.load, self.timeout, self.log, self.control = job.load, job.timeout, job.log, control
        self._gpus = env.get("CUDA_VISIBLE_DEVICES")
        self._end_s = PROFILER_END_S if what else STOP_S / 2
        self._close_s = PROFILER_END_S if what else min(CLOSE_S, job.timeout)
        self.facts: dict[str, Any] = {}
        self.weights: str | None = None
        self.load_seconds: float | None = None
        self.failure: Failure | None = None
        self._loaded = self._done = False
        self._measured: list[Cell] = []
        self._sampling = ExitStack()  # while a cell is measured
        self._under_way: Cell | None = None
        self._memory_before = device.gpu_memory_used(self._gpus)
        self._oom_kills = failures.oom_kill_count()
        self._folder = tempfile.TemporaryDirectory(prefix="harness-", ignore_cleanup_errors=True)
        self._events, write_end = os.pipe()
        with self.log.open("ab") as output:
            self._log_start = output.tell()  # an earlier worker of this load wrote what is before
            self._process = subprocess.Popen(
                [job.python, "-m", "harness.working.worker", str(write_end), *what],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                pass_fds=(write_end,),
                cwd=self._folder.name,
                env={**os.environ, **OF_WORKERS, **env},
                start_new_session=True,
            )
        os.close(write_end)
        try:
            self._process.stdin.write(json.dumps(to_json(self.load)).encode() + b"\n")
            self._process.stdin.flush()  # and stays open: it is the worker's lifeline
        except BrokenPipeError:
            pass  # it died at once; its exit status says why

    def outcomes(self) -> Iterator[tuple[Cell, Outcome]]:
        """Measured cells, as they come. Afterwards `failure` says why the worker ended early, or is None."""
        for event in self._read_events():
            self.control.tell(self.load, event)
            match event["event"]:
                case "loaded":
                    self._loaded, self.facts, self.load_seconds = True, event["facts"], event["load_seconds"]
                    self.weights = event["weights"]
                case "started":
                    self._under_way = self.load.cells[event["cell"]]
                    started_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
                    sampler = self._sampling.enter_context(sampling(self._gpus and self._gpus.split(",")))
                case "measured":
                    cell, self._under_way = self._under_way, None
                    self._measured.append(cell)
                    self._sampling.close()
                    yield (
                        cell,
                        Outcome(
                            facts=event["facts"],
                            results=event["results"],
                            conditions=event["conditions"],
                            weights=self.weights,
                            load_seconds=self.load_seconds,
                            started_at=started_at,
                            telemetry=sampler.summary(),
                        ),
                    )
                case "failed":
                    self.failure = Failure(event["failure_class"], event["message"])
                    return
                case "done":
                    self._done = True
                    return

    def lost(self) -> list[Cell]:
        """Cells that this worker's failure took along: all when the engine never stood, else the one under way."""
        if not self._loaded:
            return list(self.load.cells)
        if self._under_way is None and not self._measured:  # it died between two events; do not try for ever
            return [self.load.cells[0]]
        return [self._under_way] if self._under_way else []

    def _read_events(self) -> Iterator[dict[str, Any]]:
        buffer, deadline = b"", time.monotonic() + self.timeout
        while True:
            if self.control.stop.is_set():
                raise Stopped
            has_ended = self._process.poll() is not None  # asked first: what it wrote before is then to be read
            ready, _, _ = select.select([self._events], [], [], TICK_S)
            chunk = os.read(self._events, 1 << 16) if ready else None
            if chunk:
                deadline = time.monotonic() + self.timeout
                *lines, buffer = (buffer + chunk).split(b"\n")
                for line in lines:
                    yield json.loads(line)
            elif chunk == b"" or has_ended and not ready:
                status = self._exit_status(self._end_s)
                kills = failures.oom_kill_count() - self._oom_kills
                self.failure = failures.of_exit(status, self.log_tail(), kills)
                return
            elif time.monotonic() > deadline:
                what = "measuring" if self._loaded else "loading"
                self.failure = Failure("timeout", f"nothing heard for {self.timeout:g} s while {what}")
                return

    def log_tail(self) -> str:
        return failures.tail(self.log, self._log_start)

    def _exit_status(self, seconds: float) -> int:
        """Of a worker that should end by itself now; one that does not, or that the user stops, is killed."""
        deadline = time.monotonic() + seconds
        while self._process.poll() is None and time.monotonic() < deadline and not self.control.stop.is_set():
            time.sleep(TICK_S / 10)
        if self._process.poll() is None:
            self._process.stdin.close()  # the supervisor's sign
        return self._process.wait()

    def stop(self) -> None:
        """Ends the worker and whatever it started, and waits until its GPU memory is back."""
        self._sampling.close()
        if self._done:
            # Engines close and write their last words; then whatever they left running is killed.
            self._exit_status(self._close_s)
        self._process.stdin.close()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            pass
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # the group is gone, as it should be
            pass
        self._process.wait()
        os.close(self._events)
        self._folder.cleanup()
        deadline = time.monotonic() + MEMORY_BACK_S
        while self._memory_before is not None and time.monotonic() < deadline:
            if device.gpu_memory_used(self._gpus) <= self._memory_before + MEMORY_SLACK:
                return
            time.sleep(TICK_S)
