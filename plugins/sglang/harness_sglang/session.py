"""A loaded SGLang: token ids in, a stream with every token's time out, log-probabilities of given tokens."""

from __future__ import annotations

import inspect
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sglang.srt.entrypoints.engine import Engine
from sglang.srt.server_args import ServerArgs

from harness import BadOutput, Generation, Load, LoadFailed, Logits, OutOfMemory, Response, Sampling, Unsupported
from harness.failures import is_out_of_memory
from harness.model.weights import config_of
from harness_sglang import facts, journal, outputs, scheduler
from harness_sglang.arguments import arguments, environment

FIRST_TOKEN = "first_token_latency"  # seconds, of answers with `enable_metrics`
PROFILE = {"activities": ["CPU", "GPU"], "with_stack": False, "record_shapes": True}
SCORED_TOGETHER = 16  # sequences; their log-probabilities come back in one answer
NO_MEMORY = ("Not enough memory", "Memory pool size is too small")
NOT_POSSIBLE = ("not supported", "Unsupported", "Unknown quantization", "quantization method", "is not compatible")


class _Engine(Engine):
    """`sglang.Engine`, whose schedulers say what they loaded."""

    run_scheduler_process_func = staticmethod(scheduler.run)


class SglangSession:
    """See harness.engine.Session."""

    def __init__(self, load: Load) -> None:
        chosen, self._left_out = arguments(load, inspect.signature(ServerArgs).parameters)
        os.environ.update(environment(load.setup))
        self._variables = {name: value for name, value in sorted(os.environ.items()) if name.startswith("SGLANG_")}
        journal.clear()
        try:
            self._engine = _Engine(**chosen)
        except Exception as error:
            raise _classified(journal.last_error() or f"{type(error).__name__}: {error}") from error
        self._looks = [info[scheduler.LOOK] for info in self._engine._scheduler_init_result.scheduler_infos]
        self._vocabulary = (config_of(load.setup.source) or {}).get("vocab_size", 0)
        self._cached_tokens: int | None = 0
        self._first_tokens_s: list[float] = []

    def facts(self) -> dict[str, Any]:
        mean_s = sum(self._first_tokens_s) / len(self._first_tokens_s) if self._first_tokens_s else None
        ttft_ms = None if mean_s is None else mean_s * 1e3
        return facts.facts(self._looks, self._cached_tokens, ttft_ms, self._left_out, self._environment())

    def generate(self, prompts: Sequence[Sequence[int]], output_len: int) -> Generation:
        """SGLang's stream: a chunk per request and step, timed when it is there. Of tokens that came in one chunk only
        the last has a time."""
        times: list[list[int | None]] = [[] for _ in prompts]
        last: list[Any] = [None] * len(prompts)
        started = time.perf_counter_ns()
        for chunk in self._engine.generate(
            input_ids=[list(prompt) for prompt in prompts], sampling_params=greedy(output_len), stream=True
        ):
            now, index = time.perf_counter_ns(), chunk["index"]
            new = chunk["meta_info"]["completion_tokens"] - len(times[index])
            if new > 0:
                times[index] += [None] * (new - 1) + [now]
            last[index] = chunk
        finished = time.perf_counter_ns()
        if None in last:
            raise BadOutput(f"SGLang ended its stream without an answer to request {last.index(None)}")
        self._check_cache(last)
        self._first_tokens_s = [seconds for answer in last if (seconds := answer["meta_info"].get(FIRST_TOKEN))]
        tokens = [outputs.tokens_of(answer, output_len) for answer in last]
        return Generation(started, finished, tuple(Response(t, tuple(w)) for t, w in zip(tokens, times)))

    def score(self, sequences: Sequence[Sequence[int]]) -> Iterator[list[float]]:
        for sequence, answer in self._prompts_scored(sequences):
            yield outputs.given(answer, sequence)

    def score_logits(self, sequences: Sequence[Sequence[int]], top: int) -> Iterator[Logits]:
        for sequence, answer in self._prompts_scored(sequences, top_logprobs_num=self._top(top)):
            yield outputs.prompt_rows(answer, sequence, self._vocabulary)

    def generate_logits(
        self, prompts: Sequence[Sequence[int]], output_len: int, top: int
    ) -> list[tuple[tuple[int, ...], Logits]]:
        answers = self._answers(prompts, greedy(output_len), return_logprob=True, top_logprobs_num=self._top(top))
        return [
            (outputs.tokens_of(answer, output_len), outputs.answer_rows(answer, self._vocabulary)) for answer in answers
        ]

    def sample(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[tuple[int, ...]]:
        parameters = {
            "temperature": sampling.temperature,
            "top_k": sampling.top_k or -1,
            "top_p": sampling.top_p,
            "max_new_tokens": sampling.max_tokens,
            "stop_token_ids": list(sampling.stop),
            "sampling_seed": sampling.seed,
        }
        return [outputs.until_stop(answer) for answer in self._answers(prompts, parameters)]

    @contextmanager
    def recording(self, profiler: str, folder: Path) -> Iterator[None]:
        """By SGLang's own profiler, in its schedulers, which name each step's phase: a file per rank."""
        self._engine.collective_rpc("harness_mark", profiler=profiler)
        self._engine.start_profile(output_dir=str(folder), **PROFILE)
        try:
            yield
        finally:
            self._engine.stop_profile()
            self._engine.collective_rpc("harness_unmark")

    def close(self) -> None:
        """Ends every child of this process: SGLang's shutdown knows no others."""
        if self._engine is not None:
            self._engine.shutdown()
        self._engine = None

    def _prompts_scored(
        self, sequences: Sequence[Sequence[int]], **more: Any
    ) -> Iterator[tuple[Sequence[int], Mapping[str, Any]]]:
        for start in range(0, len(sequences), SCORED_TOGETHER):
            together = sequences[start : start + SCORED_TOGETHER]
            answers = self._answers(together, greedy(1), return_logprob=True, logprob_start_len=0, **more)
            yield from zip(together, answers)

    def _answers(
        self, prompts: Sequence[Sequence[int]], parameters: Mapping[str, Any], **named: Any
    ) -> list[Mapping[str, Any]]:
        """In the order of the prompts."""
        answers = self._engine.generate(
            input_ids=[list(prompt) for prompt in prompts], sampling_params=dict(parameters), **named
        )
        if len(answers) != len(prompts):
            raise BadOutput(f"SGLang gave {len(answers)} answers to {len(prompts)} prompts")
        self._check_cache(answers)
        return answers

    def _check_cache(self, answers: Sequence[Mapping[str, Any]]) -> None:
        """A prompt that was computed before and not again would make latency and scores mean something else."""
        cached = [answer["meta_info"].get("cached_tokens") for answer in answers]
        if self._cached_tokens is not None:
            self._cached_tokens = None if None in cached else self._cached_tokens + sum(cached)
        if self._cached_tokens:
            raise BadOutput(f"SGLang took {self._cached_tokens} tokens from its prefix cache, which was to be off")

    def _top(self, top: int) -> int:
        return min(top, self._vocabulary) if self._vocabulary else top

    def _environment(self) -> dict[str, Any]:
        look = self._looks[0]
        own = {name: look[name] for name in ("torch", "cuda", "threads")}
        return {"python": platform.python_version(), **own, "variables": self._variables}


def greedy(output_len: int) -> dict[str, Any]:
    return {"temperature": 0.0, "max_new_tokens": output_len, "ignore_eos": True}


def _classified(words: str) -> Exception:
    """Of an error while loading."""
    if is_out_of_memory(words) or any(phrase in words for phrase in NO_MEMORY):
        return OutOfMemory(words)
    return Unsupported(words) if any(phrase in words for phrase in NOT_POSSIBLE) else LoadFailed(words)
