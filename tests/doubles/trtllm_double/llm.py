"""The LLM class of the double."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from typing import Any

from pydantic import BaseModel

from trtllm_double import Era, fault
from trtllm_double.executor import GenerationExecutorProxy, GenerationExecutorWorker
from trtllm_double.outputs import RequestOutput
from trtllm_double.sampling import SamplingParams


@cache
def use_single_process() -> bool:
    """Read once: what is set after the first LLM changes nothing."""
    return os.environ.get("TLLM_WORKER_USE_SINGLE_PROCESS", "0") == "1"


def llm_class(era: Era, arguments: type[BaseModel]) -> type:
    """LLM of a version."""
    return type("LLM", (_LLM,), {"_era": era, "_arguments": arguments})


class _LLM:
    _era: Era
    _arguments: type[BaseModel]

    def __init__(self, model: str, tokenizer: Any = None, **named: Any) -> None:
        self.args = self._arguments(model=model, tokenizer=tokenizer, **named)
        for name, value in (self.args.env_overrides or {}).items():
            os.environ[name] = value
        if not self.args.skip_tokenizer_init:
            raise NotImplementedError("the double has no tokenizer: skip_tokenizer_init=True")
        self._numbers = itertools.count(1)
        is_here = self.args.gather_generation_logits or use_single_process()
        is_alone = self.args.tensor_parallel_size == 1 and self.args.orchestrator_type is None
        kind = GenerationExecutorWorker if is_alone and is_here else GenerationExecutorProxy
        self._executor = kind(self.args, self._era)

    def __enter__(self) -> _LLM:
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()

    def generate(self, inputs: Sequence[Any], sampling_params: SamplingParams | None = None) -> list[RequestOutput]:
        return [output.result() for output in [self.generate_async(each, sampling_params) for each in inputs]]

    def generate_async(
        self,
        inputs: Mapping[str, Any] | list[int],
        sampling_params: SamplingParams | None = None,
        streaming: bool = False,
    ) -> RequestOutput:
        if streaming:
            raise NotImplementedError("the double does not stream")
        sampling = sampling_params or SamplingParams()
        if not isinstance(sampling, SamplingParams):
            raise TypeError(f"sampling_params must be SamplingParams, got {type(sampling).__name__}")
        prompt = inputs if isinstance(inputs, list) else inputs["prompt_token_ids"]
        self._check(prompt, sampling)
        output = RequestOutput(next(self._numbers), prompt, self._executor.cancel)
        request = {
            "id": output.request_id,
            "prompt": prompt,
            "sampling": {**asdict(sampling), "is_greedy": sampling.is_greedy},
        }
        self._executor.submit(output, request)
        return output

    def _check(self, prompt: list[int], sampling: SamplingParams) -> None:
        if sampling.end_id is None:
            raise ValueError("end_id must be given when no tokenizer is loaded")
        limit = self.args.max_num_tokens
        if limit and len(prompt) > limit and not self.args.enable_chunked_prefill:
            raise ValueError(f"the prompt has {len(prompt)} tokens, max_num_tokens is {limit}")
        longest = self.args.max_seq_len
        if longest and len(prompt) + sampling.max_tokens > longest:
            raise ValueError(f"{len(prompt)} + {sampling.max_tokens} tokens exceed max_seq_len {longest}")

    def shutdown(self) -> None:
        if fault("hang_on_shutdown"):
            time.sleep(3600)
        if self._executor is not None:
            self._executor.shutdown()
            self._executor = None
