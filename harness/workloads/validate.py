"""An engine beside a baseline: KL, agreement, routing drift, and the logit-matching test."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from harness.accuracy.tolerances import DEFAULT
from harness.hookspecs import hookimpl
from harness.workload import Measurement, Progress, WorkloadSpec

if TYPE_CHECKING:
    from harness.engine import Session
    from harness.working.inputs import Inputs


@hookimpl
def harness_register_workloads() -> list[WorkloadSpec]:
    return [
        WorkloadSpec(
            name="validate",
            summary="KL, agreement, routing and logit matching beside a baseline (harness validate)",
            needs="logits",
            measures="accuracy",
            inputs="baseline",
            parameters={
                "baseline": None,  # the file
                "also": [],  # other baselines over the same tokens
                "store": None,  # where to keep this engine's own rows, for later ones
                "tol_map": DEFAULT,
                "divergence_difference_tol": 0.001,
                "num_tokens_to_check": None,  # of each continuation; None: all
                "input_len": 0,  # of the baseline's longest sequence
                "about": None,  # of the model, for `store`
            },
            measure=measure,
        )
    ]


def measure(session: Session, inputs: Inputs, parameters: Mapping[str, Any], progress: Progress) -> Measurement:
    from harness.accuracy.scoring import validate

    return Measurement(validate(session, inputs, parameters, progress))
