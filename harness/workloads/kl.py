"""Logits of prefill and of decode beside those of a reference run of the same weights, which may be random."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from harness.hookspecs import hookimpl
from harness.workload import Measurement, Progress, WorkloadSpec

if TYPE_CHECKING:
    from harness.engine import Session
    from harness.working.inputs import Inputs


@hookimpl
def harness_register_workloads() -> list[WorkloadSpec]:
    return [
        WorkloadSpec(
            name="kl",
            summary="KL of prefill and decode logits beside plain eager's (harness ladder)",
            needs="logits",
            measures="likeness",  # neither speed nor accuracy: an emulated precision and random weights have one, too
            inputs="prompts",
            parameters={
                "batch_size": 4,  # prompts
                "input_len": 128,
                "output_len": 32,  # greedy continuation of each prompt's first half
                "top_k": None,  # tokens kept of each row; None: all while there is room
                "reference": None,  # the file
                "is_reference": False,  # whether this run makes the file
                "about": None,  # of the model, for the file
            },
            measure=measure,
        )
    ]


def measure(session: Session, inputs: Inputs, parameters: Mapping[str, Any], progress: Progress) -> Measurement:
    from harness.accuracy.beside import beside

    return Measurement(beside(session, inputs, parameters, progress))
