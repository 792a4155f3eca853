"""Two loaded engines take turns, one iteration each, so that a drifting machine drifts under both alike.

A plugin of the harness (workload `perf_in_turns`) where this folder is on PYTHONPATH, and `each` for anyone else.
TURNS names two pipes: the one this process waits on before an iteration, and the one it wakes the other with.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from harness.hookspecs import hookimpl
from harness.workload import Measurement, WorkloadSpec
from harness.workloads import perf


@hookimpl
def harness_register_workloads() -> list[WorkloadSpec]:
    (spec,) = perf.harness_register_workloads()
    return [replace(spec, name="perf_in_turns", measure=_measure)]


def each(iterations: Iterable[Any], **_: Any) -> Iterator[Any]:
    """The same iterations, each in its turn. Takes tqdm's keywords, to stand in its place."""
    mine, other = (os.open(path, os.O_RDWR) for path in os.environ["TURNS"].split(os.pathsep))
    for iteration in iterations:
        os.read(mine, 1)
        yield iteration
        os.write(other, b"!")


class _InTurn:
    def __init__(self, session: Any, turns: int) -> None:
        self._session, self._turns = session, each(range(turns))

    def generate(self, *given: Any) -> Any:
        next(self._turns)
        return self._session.generate(*given)


def _measure(session: Any, inputs: Any, parameters: Any, progress: Any) -> Measurement:
    turns = parameters["warmup_iterations"] + parameters["num_iterations"]
    in_turn = _InTurn(session, turns)
    measured = perf.measure(in_turn, inputs, parameters, progress)
    next(in_turn._turns, None)  # hands over after the last
    return measured
