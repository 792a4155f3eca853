"""Example plugin: an engine, a workload and a profiler, in one file that no part of the harness knows.

It is found by one line of its setup.cfg:

    [options.entry_points]
    harness =
        echo = harness_echo

The module is the plugin. Each `harness_register_*` function returns what it adds. The parent process imports this
file too, for `harness list` as for a run, so what is heavy is imported in `load`, which only the worker calls.

The engine `echo` holds no model. It answers a prompt with the prompt, over and over, and finds every token equally
likely, so its perplexity is e. Try it: `harness run --engine echo --workload perf,ppl,count --profile tally`.
"""

from __future__ import annotations

import itertools
import json
import platform
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import EngineSpec, Generation, Measurement, ProfilerSpec, Response, Support, WorkloadSpec, hookimpl
from harness.engine import Rung

if TYPE_CHECKING:
    from harness import Load, Session
    from harness.device import Device
    from harness.working.inputs import Inputs
    from harness.workload import Progress


@hookimpl
def harness_register_engines() -> list[EngineSpec]:
    return [
        EngineSpec(
            name="echo",
            summary="repeats its prompt; holds no model",
            requires=(),  # distributions its interpreter must have; a real engine names itself last
            capabilities=frozenset({"generate", "score"}),
            support=support,
            load=load,
            rungs=RUNGS,
        )
    ]


# Optimisations that --rungs and `harness ladder` can turn on or off, each after those it needs.
RUNGS = (
    Rung("brisk", "takes a shorter breath before each token"),
    Rung("swift", "takes no breath at all", changes_output=True, needs=("brisk",)),
    Rung("grace", "sings", problem=lambda precision, device: f"no parrot sings in {precision}"),
)
BREATH_S = {(): 0.002, ("brisk",): 0.001}  # before each token, by the rungs that are on


def support(precision: str, device: Device, version: str | None, rungs: str = "default") -> Support:
    """What the engine would do with a precision, said without loading anything."""
    return Support("native", "repeating a token takes no arithmetic")


def load(load: Load) -> Session:
    from harness_echo.sins import tempted  # misbehaviour for the harness's own tests; leave it out of yours

    return tempted(EchoSession(load), load.setup.precision)


class EchoSession:
    """See harness.engine.Session."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._rungs = load.setup.rung_names  # None: nothing was asked for

    def facts(self) -> dict[str, Any]:
        """`precision` and `compute_mode` are what was really used; where they are not what was asked, the record's
        status becomes `mismatch`. A real engine reads them from the live model, never from the request."""
        return {
            "engine_version": "1.0",
            "precision": self._load.setup.precision,
            "compute_mode": self._load.compute_mode,
            "moe_backend": "parrot",
            "attention_backend": None,  # there is none; None, not a guess
            "kv_dtype": None,
            "clock": "perf_counter_ns",
            # What is in force, each with the proof; a rung that was asked for and is not makes the record a mismatch.
            "rungs_in_force": {name: f"breath of {self.breath} s" for name in self._rungs or ()},
            "rungs_off": {},
            "environment": {"python": platform.python_version()},  # of this process, which may not be the parent's
        }

    def generate(self, prompts: Sequence[Sequence[int]], output_len: int) -> Generation:
        started = time.perf_counter_ns()
        responses = tuple(_repeat(prompt, output_len, self.breath) for prompt in prompts)
        return Generation(started, time.perf_counter_ns(), responses)

    def score(self, sequences: Sequence[Sequence[int]]) -> Iterator[list[float]]:
        """-1.0 for every token but the first, which has nothing before it to be predicted from."""
        for sequence in sequences:
            yield [-1.0] * (len(sequence) - 1)

    def close(self) -> None:
        pass

    @property
    def breath(self) -> float:
        return BREATH_S.get(self._rungs, 0.0)


def _repeat(prompt: Sequence[int], length: int, breath: float) -> Response:
    timed = []
    for token in itertools.islice(itertools.cycle(prompt), length):
        time.sleep(breath) if breath else None
        timed.append((token, time.perf_counter_ns()))
    ids, times = zip(*timed)
    return Response(ids, times)


@hookimpl
def harness_register_workloads() -> list[WorkloadSpec]:
    return [
        WorkloadSpec(
            name="count",
            summary="tokens and distinct tokens in one batch of generated text",
            needs="generate",
            measures="accuracy",
            inputs="prompts",
            parameters={"batch_size": 2, "input_len": 8, "output_len": 16},
            measure=count,
            run_once=lambda session, inputs, parameters: session.generate(inputs.ids, parameters["output_len"]),
        )
    ]


def count(session: Session, inputs: Inputs, parameters: Mapping[str, Any], progress: Progress) -> Measurement:
    """`parameters` holds what the spec names, with the values of this cell. `results` become keys of the record."""
    generation = session.generate(inputs.ids, parameters["output_len"])
    tokens = [token for response in generation.responses for token in response.token_ids]
    progress(1, 1)
    return Measurement(results={"tokens": len(tokens), "distinct_tokens": len(set(tokens))})


@hookimpl
def harness_register_profilers() -> list[ProfilerSpec]:
    return [ProfilerSpec("tally", "counts the Python calls of one pass, by function", tally)]


@contextmanager
def tally(session: Session, folder: Path) -> Iterator[None]:
    """A context around one extra pass; what it leaves in `folder` is the profile."""
    calls: Counter[str] = Counter()
    sys.setprofile(lambda frame, event, _: calls.update([frame.f_code.co_name] if event == "call" else []))
    try:
        yield
    finally:
        sys.setprofile(None)
        Path(folder, "tally.json").write_text(json.dumps(dict(calls.most_common())))
