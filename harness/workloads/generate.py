"""Text: a person's prompts, continued by sampling. Nothing is timed here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from harness.engine import Sampling
from harness.hookspecs import hookimpl
from harness.working.inputs import stop_tokens, tokenizer_of
from harness.workload import Measurement, Progress, WorkloadSpec

if TYPE_CHECKING:
    from harness.engine import Session
    from harness.working.inputs import Inputs


@hookimpl
def harness_register_workloads() -> list[WorkloadSpec]:
    return [
        WorkloadSpec(
            name="generate",
            summary="prompts continued by sampling, as text (harness generate)",
            needs="sample",
            measures="accuracy",
            inputs="texts",
            parameters={
                "texts": None,  # the prompts
                "model": None,  # whose tokenizer reads and writes them
                "output_len": 128,
                "temperature": 0.6,
                "top_k": 20,
                "top_p": 0.95,
                "seed": 0,
            },
            measure=measure,
        )
    ]


def measure(session: Session, inputs: Inputs, parameters: Mapping[str, Any], progress: Progress) -> Measurement:
    tokenizer, stop = tokenizer_of(parameters["model"]), stop_tokens(parameters["model"])
    sampling = Sampling(
        parameters["output_len"], *(parameters[name] for name in ("temperature", "top_k", "top_p", "seed")), stop=stop
    )
    texts = []
    for prompt, ids in zip(parameters["texts"], inputs.ids):
        (tokens,) = session.sample([ids], sampling)
        texts.append(
            {
                "prompt": prompt,
                "text": tokenizer.decode(list(tokens)),
                "prompt_tokens": len(ids),
                "token_ids": list(tokens),
                "ended": "stop token" if tokens and tokens[-1] in stop else "length",
            }
        )
        progress(len(texts), len(inputs.ids))
    return Measurement({"generated": texts, "stop_token_ids": list(stop)})
