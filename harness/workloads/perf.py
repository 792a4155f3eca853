"""Latency, TTFT and ITL of fixed-length greedy generation. Raw times are kept; metrics are computed from them."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from harness import device
from harness.errors import BadOutput
from harness.hookspecs import hookimpl
from harness.recording.metrics import raw_times, speed
from harness.workload import Measurement, Progress, WorkloadSpec

if TYPE_CHECKING:
    from harness.engine import Generation, Session
    from harness.working.inputs import Inputs

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
    with device.energy_counter() as energy_mj:
        gc.collect()
        gc.disable()  # a collection inside an iteration would be counted as the engine's time
        try:
            for iteration in range(warmups + timed):
                if iteration == warmups:
                    before = energy_mj()
                generation = session.generate(inputs.ids, output_len)
                _check(generation, len(inputs.ids), output_len)
                if iteration >= warmups:
                    generations.append(generation)
                progress(iteration + 1, warmups + timed)
            after = energy_mj()
        finally:
            gc.enable()
    raw = {**raw_times(generations), "energy_mj": None if None in (before, after) else after - before}
    return Measurement(
        results={**speed(raw, len(inputs.ids), parameters["input_len"], output_len), "raw": raw},
        conditions={"sampling": "greedy", "ignore_eos": True},
    )


def run_once(session: Session, inputs: Inputs, parameters: Mapping[str, Any]) -> None:
    """One prefill and a few decode steps: more would show the same kernels again."""
    session.generate(inputs.ids, min(parameters["output_len"], 1 + DECODE_STEPS))


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
