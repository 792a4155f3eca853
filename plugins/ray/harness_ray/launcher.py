"""The driver's side of a load on the cluster: an actor for it, what it says turned into outcomes, files brought home.

A node that is lost costs the cell under way, or the load that had not loaded; the cells left go to another node.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RuntimeEnvSetupError

import harness
from harness import failures
from harness.cells import Cell, Load
from harness.device import Device
from harness.failures import Failure
from harness.launcher import Control, Job, Outcome, Stopped
from harness.serde import from_json, to_json
from harness_ray import choices, cluster, incoming
from harness_ray.choices import Choices
from harness_ray.seat import Seat

TICK_S = 0.2
STOP_S = 30.0  # for a host to end its worker and send its log


@contextmanager
def opened(device: Device, workers: int, options: Mapping[str, str]) -> Iterator[Cluster]:
    """Raises UsageError."""
    chosen = choices.parse(options)
    cluster.connect(chosen)
    try:
        yield Cluster(workers, device, chosen)
    finally:
        ray.shutdown()


@dataclass
class Cluster:
    """See harness.launcher.Launcher."""

    slots: int
    device: Device
    choices: Choices

    def run(self, job: Job, control: Control) -> Iterator[tuple[Cell, Outcome]]:
        left = list(job.load.cells)
        while left:
            sitting = Sitting(job.load.only(left), job, control)
            for frame in self._frames(sitting, apart=False):
                if "outcome" in frame:
                    cell = sitting.load.cells[frame["cell"]]
                    left.remove(cell)
                    yield cell, from_json(Outcome, frame["outcome"])
            if sitting.failure is None:
                return
            sitting.tell_failure()
            for cell in sitting.lost():
                left.remove(cell)
                yield cell, Outcome(sitting.failure, failures.tail(job.log), sitting.facts)

    def profile(self, job: Job, control: Control) -> str | None:
        sitting, problem = Sitting(job.load, job, control), None
        for frame in self._frames(sitting, apart=True):
            problem = frame.get("problem", problem)
        return f"{sitting.failure.failure_class}: {sitting.failure.message}" if sitting.failure else problem

    def _frames(self, sitting: Sitting, apart: bool) -> Iterator[dict[str, Any]]:
        """What the host says, up to its end or that of its node. Raises Stopped, when nothing of it runs any more."""
        actor = self._seat(sitting.load)
        try:
            stream = actor.run.remote(self._order(sitting, apart), self._drop(sitting.load))
            for frame in incoming.frames(self._answers(actor, stream, sitting), sitting.load, sitting.job.log):
                sitting.hear(frame)
                yield frame
        finally:
            ray.kill(actor)

    def _answers(self, actor: Any, stream: Any, sitting: Sitting) -> Iterator[str | bytes]:
        stop_by = None
        patience = cluster.Patience(self.choices, **self._need(sitting.load))
        while True:
            if sitting.control.stop.is_set() and stop_by is None:
                stop_by = time.monotonic() + (STOP_S if sitting.node else 0)
                actor.stop.remote()
            ready, _ = ray.wait([stream], timeout=TICK_S)
            if ready:
                try:
                    answer = ray.get(next(stream))
                except StopIteration:
                    break
                except RayError as error:
                    sitting.failure = self._lost(error, sitting)
                    break
                yield answer
            elif stop_by is not None and time.monotonic() > stop_by:
                break
            elif sitting.node is None and (problem := patience.problem()):
                sitting.failure = Failure("crashed", problem)
                break
        if stop_by is not None:
            raise Stopped

    def _seat(self, load: Load) -> Any:
        engine = load.setup.engine
        kind = ray.remote(max_restarts=0, max_task_retries=0, max_concurrency=2)(Seat)  # retries are the plan's affair
        return kind.options(
            **self._need(load),
            **({"accelerator_type": self.choices.gpu} if self.choices.gpu else {}),
            **({"runtime_env": dict(env)} if (env := self.choices.runtime_envs.get(engine)) else {}),
        ).remote()

    def _need(self, load: Load) -> dict[str, int]:
        if self.device.kind == "cuda":
            return {"num_gpus": max(load.setup.tp, load.setup.ep), "num_cpus": self.choices.cpus or 1}
        return {"num_gpus": 0, "num_cpus": self.device.count}

    def _order(self, sitting: Sitting, apart: bool) -> str:
        """All that a host needs, as text."""
        load, job = sitting.load, sitting.job
        python = self.choices.pythons.get(load.setup.engine, job.python)
        is_ours = python == sys.executable or load.setup.engine in self.choices.runtime_envs
        return json.dumps(
            {
                "version": harness.__version__,
                "package": str(Path(harness.__file__).parent),
                "device": {"kind": self.device.kind, "name": self.device.name},
                "cores": None if self.device.kind == "cuda" else self.device.count,
                "python": None if is_ours else python,
                "timeout": job.timeout,
                "apart": apart,
                "load": to_json(load),
                "inputs": [Path(file.path).read_text("utf-8") if file.path else None for file in load.inputs],
            }
        )

    def _drop(self, load: Load) -> str:
        """Ray sets the number of OpenMP's threads to that of the cores asked for; engines choose it themselves."""
        chosen = self.choices.runtime_envs.get(load.setup.engine, {}).get("env_vars", {})
        return "" if "OMP_NUM_THREADS" in chosen else "OMP_NUM_THREADS"

    def _lost(self, error: RayError, sitting: Sitting) -> Failure:
        words = " ".join(str(error).split())
        where = f"the node {sitting.node}" if sitting.node else "the node"
        if isinstance(error, RuntimeEnvSetupError):
            return Failure("load_failed", f"Ray could not make the runtime environment: {words[:500]}")
        if "node has died" in words or "node was terminated" in words:
            return Failure("crashed", f"the node was lost: {sitting.node or 'before its worker stood'}")
        kind = "out_of_memory" if failures.is_out_of_memory(words) else "crashed"
        return Failure(kind, f"Ray's process on {where} was lost: {str(error).strip().splitlines()[-1][:500]}")


@dataclass
class Sitting:
    """One try of a load, on one node: how far it came."""

    load: Load
    job: Job
    control: Control
    node: str | None = None
    failure: Failure | None = None  # why it ended early
    facts: dict[str, Any] = field(default_factory=dict)
    is_loaded: bool = False
    under_way: int | None = None
    answered: set[int] = field(default_factory=set)
    profiled: set[int] = field(default_factory=set)  # there; the files have not come home

    def hear(self, frame: Mapping[str, Any]) -> None:
        """Passes events on, and keeps what is needed should this be the last."""
        self.node = frame.get("seated", self.node)
        if "refused" in frame:
            self.failure = Failure("load_failed", frame["refused"])
        if frame.get("ended"):
            self.failure = Failure("internal", f"its host on {self.node} ended with {frame['ended']}; see Ray's logs")
        if "outcome" in frame:
            self.under_way = None
            self.answered.add(frame["cell"])
        if "profiled" in frame:
            self.profiled.add(frame["profiled"])
        if "event" in frame:
            self._heard(frame["event"])
            self.control.tell(self.load, frame["event"])

    def _heard(self, event: Mapping[str, Any]) -> None:
        match event["event"]:
            case "loading":
                self.is_loaded = False
            case "loaded":
                self.is_loaded, self.facts = True, event["facts"]
            case "started":
                self.under_way = event["cell"]
            case "profiled" | "profile_failed":
                self.profiled.discard(event["cell"])

    def tell_failure(self) -> None:
        for number in self.profiled:
            message = "it did not come home from its node"
            self.control.tell(self.load, {"event": "profile_failed", "cell": number, "message": message})
        words = {"failure_class": self.failure.failure_class, "message": self.failure.message}
        self.control.tell(self.load, {"event": "failed", **words})

    def lost(self) -> list[Cell]:
        """Cells that go with the node: those of a load that never stood, else the one under way."""
        left = [number for number in range(len(self.load.cells)) if number not in self.answered]
        if self.is_loaded and self.failure.failure_class != "internal":
            under_way = [number for number in left if number == self.under_way]
            left = under_way or ([] if self.answered else left[:1])  # each try has its price, or they might not end
        return [self.load.cells[number] for number in left]
