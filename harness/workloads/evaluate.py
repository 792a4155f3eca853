"""The contest's evaluation: along each prompt of a baseline, are the logits right, and how long does it take?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.accuracy.baseline import open_baseline
from harness.accuracy.tolerances import DEFAULT
from harness.hookspecs import hookimpl
from harness.working.inputs import Inputs
from harness.workload import Measurement, Progress, WorkloadSpec
from harness.workloads import perf

if TYPE_CHECKING:
    from harness.engine import Session


@hookimpl
def harness_register_workloads() -> list[WorkloadSpec]:
    return [
        WorkloadSpec(
            name="evaluate",
            summary="logit matching and latency of a baseline's prompts (harness evaluate)",
            needs="logits",
            measures="speed",
            inputs="baseline",
            parameters={
                "baseline": None,  # the file
                "output_lens": [],  # of each of its prompts
                "num_iterations": 20,
                "warmup_iterations": 1,
                "tol_map": DEFAULT,
                "divergence_difference_tol": 0.001,
                "num_tokens_to_check": None,
                "input_len": 0,  # the longest prompt with its output
            },
            measure=measure,
        )
    ]


def measure(session: Session, inputs: Inputs, parameters: Mapping[str, Any], progress: Progress) -> Measurement:
    """`evaluations`: of each prompt, `logit_matching` and the results of the workload perf at batch 1."""
    from harness.accuracy.scoring import match_one

    baseline = open_baseline(Path(parameters["baseline"]))
    pairs = list(zip(baseline.ids("greedy"), baseline.first("greedy")))
    each = parameters["num_iterations"] + parameters["warmup_iterations"]
    found = []
    for number, ((sequence, begin), output_len) in enumerate(zip(pairs, parameters["output_lens"])):
        prompt = sequence[:begin]
        matching = match_one(session, baseline, number, parameters)
        sizes = {"batch_size": 1, "input_len": len(prompt), "output_len": output_len}
        done = number * each
        measured = perf.measure(
            session,
            Inputs((prompt,), inputs.source, inputs.sha256),
            {**parameters, **sizes},
            lambda iteration, _, done=done: progress(done + iteration, each * len(pairs)),
        )
        found.append({**sizes, "logit_matching": matching, **measured.results})
    return Measurement({"evaluations": found}, {"sampling": "greedy", "ignore_eos": True})
