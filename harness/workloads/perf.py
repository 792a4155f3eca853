"""Latency, TTFT and ITL of fixed-length greedy generation. Raw times are kept; metrics are computed from them."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from harness.errors import BadOutput
from harness.hookspecs import hookimpl
from harness.metrics import speed
from harness.workload import Measurement, Progress, WorkloadSpec

if TYPE_CHECKING:
    from harness.engine import Generation, Session
    from harness.inputs import Inputs

DECODE_STEPS = 8  # of a profiled pass
PARAMETERS = {"batch_size": 1, "input_len": 512, "output_len": 256, "num_iterations": 20, "warmup_iterations": 5}


@hookimpl
def harness_register_workloads() -> list[WorkloadSpec]:
    return [
        WorkloadSpec(
            name="perf",
            summary="latency, TTFT, ITL and tokens/s of fixed-length greedy generation",
            needs="generate",
            measures="speed",
            inputs="prompts",
            parameters=PARAMETERS,
            measure=measure,
            run_once=run_once,
        )
    ]


def measure(session: Session, inputs: Inputs, parameters: Mapping[str, Any], progress: Progress) -> Measurement:
    output_len, warmups, timed = (parameters[name] for name in ("output_len", "warmup_iterations", "num_iterations"))
    generations = []
    gc.collect()
    gc.disable()  # a collection inside an iteration would be counted as the engine's time
    try:
        for iteration in range(warmups + timed):
            generation = session.generate(inputs.ids, output_len)
            _check(generation, len(inputs.ids), output_len)
            if iteration >= warmups:
                generations.append(generation)
            progress(iteration + 1, warmups + timed)
    finally:
        gc.enable()
    return Measurement(
        results={
            **speed(generations, len(inputs.ids), parameters["input_len"], output_len),
            "raw": {
                "latency_ns": [g.finished_ns - g.started_ns for g in generations],
                "token_ns": [_timelines(generation) for generation in generations],
            },
        },
        conditions={"sampling": "greedy", "ignore_eos": True},
    )


def run_once(session: Session, inputs: Inputs, parameters: Mapping[str, Any]) -> None:
    """One prefill and a few decode steps: more would show the same kernels again."""
    session.generate(inputs.ids, min(parameters["output_len"], 1 + DECODE_STEPS))


def _timelines(generation: Generation) -> list[dict[str, Any]]:
    """Token times since the start, each timeline once with the requests that share it: an engine that steps a whole
    batch together has one, and a record of 64 requests is then no longer than that of one."""
    requests: dict[tuple[int | None, ...], list[int]] = {}
    for index, response in enumerate(generation.responses):
        requests.setdefault(tuple(response.token_ns), []).append(index)
    start = generation.started_ns
    return [
        {"requests": indices, "ns": [None if time is None else time - start for time in times]}
        for times, indices in requests.items()
    ]


def _check(generation: Generation, batch_size: int, output_len: int) -> None:
    if len(generation.responses) != batch_size:
        raise BadOutput(f"asked for {batch_size} responses, got {len(generation.responses)}")
    for index, response in enumerate(generation.responses):
        if len(response.token_ids) != output_len or len(response.token_ns) != output_len:
            raise BadOutput(f"request {index}: asked for {output_len} tokens, got {len(response.token_ids)}")
        times = [time for time in response.token_ns if time is not None]
        ordered = [generation.started_ns, *times, generation.finished_ns]
        if ordered != sorted(ordered):
            raise BadOutput(f"request {index}: its token times do not lie in order within the batch's own time")
