"""Perplexity over non-overlapping windows of a dataset, the same token ids for every engine and precision."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from harness.errors import BadOutput
from harness.hookspecs import hookimpl
from harness.recording.metrics import perplexities
from harness.workload import Measurement, Progress, WorkloadSpec

if TYPE_CHECKING:
    from harness.engine import Session
    from harness.working.inputs import Inputs


@hookimpl
def harness_register_workloads() -> list[WorkloadSpec]:
    return [
        WorkloadSpec(
            name="ppl",
            summary="perplexity over windows of a dataset: per chunk, token, word and byte",
            needs="score",
            measures="accuracy",
            inputs="windows",
            parameters={"dataset": "stdlib", "input_len": 512, "num_chunks": 100},
            measure=measure,
            run_once=run_once,
        )
    ]


def measure(session: Session, inputs: Inputs, parameters: Mapping[str, Any], progress: Progress) -> Measurement:
    chunk_nlls = []
    started = time.perf_counter()
    for index, logprobs in enumerate(session.score(inputs.ids)):
        expected = len(inputs.ids[index]) - 1
        if len(logprobs) != expected:
            raise BadOutput(f"window {index}: {expected} tokens to score, got {len(logprobs)} values")
        if not all(math.isfinite(value) for value in logprobs):
            raise BadOutput(f"window {index}: log-probabilities are not finite (NaN or infinite logits)")
        chunk_nlls.append([-value for value in logprobs])
        progress(index + 1, len(inputs.ids))
    seconds = time.perf_counter() - started
    if len(chunk_nlls) != len(inputs.ids):
        raise BadOutput(f"{len(inputs.ids)} windows to score, got {len(chunk_nlls)}")
    return Measurement(
        results={
            **perplexities(chunk_nlls, inputs.words, inputs.bytes),
            "num_chunks": len(chunk_nlls),  # what was scored; the dataset may hold fewer windows than asked
            "scoring_seconds": seconds,
        },
        conditions={"dataset_sha256": inputs.text_sha256},
    )


def run_once(session: Session, inputs: Inputs, parameters: Mapping[str, Any]) -> None:
    for _ in session.score(inputs.ids[:1]):
        pass
