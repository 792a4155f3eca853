"""What a reference model gives at each position of some tokens, kept in a file for `harness validate`."""

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
            name="baseline",
            summary="logits of a reference, kept in a file (harness baseline)",
            needs="logits",
            measures="accuracy",
            inputs="windows",
            parameters={
                "dataset": "stdlib",
                "input_len": 512,
                "num_chunks": 16,
                "num_tokens": 32,  # greedy continuation of each prompt
                "texts": None,  # prompts instead of a dataset
                "output_len": 0,  # of texts: num_tokens; a window's beginning continues within the window's length
                "top_k": None,  # tokens kept of each row; None: all while there is room
                "output": None,  # the file
                "about": None,  # of the model, for the file
            },
            measure=measure,
        )
    ]


def measure(session: Session, inputs: Inputs, parameters: Mapping[str, Any], progress: Progress) -> Measurement:
    from harness.accuracy.scoring import make_baseline

    return Measurement(make_baseline(session, inputs, parameters, progress))
