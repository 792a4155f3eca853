"""A loaded vLLM: token ids in, every token's time out, log-probabilities of given tokens."""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from harness import Generation, Load, LoadFailed, Logits, OutOfMemory, Response, Sampling, Unsupported, device, failures

ENVIRONMENT = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
# In its own process the engine core would import vLLM a second time; on a CPU that is half of the start.
CPU_ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}
for name, value in {**ENVIRONMENT, **(CPU_ENVIRONMENT if device.detect().kind == "cpu" else {})}.items():
    os.environ.setdefault(name, value)  # before vLLM reads them
VARIABLES = {name: value for name, value in sorted(os.environ.items()) if name.startswith("VLLM_")}  # vLLM adds its own

import vllm  # noqa: E402
from vllm.sampling_params import RequestOutputKind, SamplingParams  # noqa: E402

from harness_vllm import facts, journal  # noqa: E402
from harness_vllm.arguments import TRACES, arguments  # noqa: E402
from harness_vllm.core_process import CoreProcesses  # noqa: E402
from harness_vllm.logits import rows  # noqa: E402

NS = 1e9
NO_MEMORY = ("No available memory for the cache blocks", "larger than the available KV cache memory", "is less than")
NOT_POSSIBLE = (
    "Failed to find a kernel",
    "quantization method",
    "Unknown quantization",
    "not supported",
    "Unsupported",
)


class VllmSession:
    """See harness.engine.Session."""

    def __init__(self, load: Load) -> None:
        journal.attach()
        chosen = arguments(load, device.detect().kind == "cpu")
        try:
            self._llm = vllm.LLM(**chosen)
        except Exception as error:
            raise _classified(error) from error
        self._engine = self._llm.llm_engine
        self._vocabulary = self._llm.model_config.get_vocab_size()
        self._core = CoreProcesses()
        self._looks = self._llm.collective_rpc("harness_look")  # one per rank
        self._requests = 0
        self._cached_tokens: int | None = 0

    def facts(self) -> dict[str, Any]:
        return facts.facts(self._looks, self._cached_tokens, self._environment())

    def generate(self, prompts: Sequence[Sequence[int]], output_len: int) -> Generation:
        """Every engine step hands over what it made (vLLM's streaming path), with the engine core's own time for it."""
        parameters = SamplingParams(
            temperature=0.0,
            max_tokens=output_len,
            min_tokens=output_len,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        tokens: list[list[int]] = [[] for _ in prompts]
        times: list[list[int | None]] = [[] for _ in prompts]
        steps = []
        started = time.perf_counter_ns()  # CLOCK_MONOTONIC, as the engine core's time.monotonic()
        first = self._submit(prompts, parameters)
        while self._engine.has_unfinished_requests():
            for output in self._step():
                index, new = int(output.request_id) - first, output.outputs[0].token_ids
                steps.append((index, new, output.metrics.last_token_ts))
                if output.finished:
                    self._count_cached(output)
        finished = time.perf_counter_ns()
        for index, new, when in steps:
            tokens[index] += new
            times[index] += [None] * (len(new) - 1)  # of tokens that came together only the last has a time
            times[index] += [round(when * NS)]
        return Generation(started, finished, tuple(Response(tuple(t), tuple(w)) for t, w in zip(tokens, times)))

    def score(self, sequences: Sequence[Sequence[int]]) -> Iterator[list[float]]:
        parameters = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        with closing(self._finished_in_order(sequences, parameters)) as outputs:
            for output in outputs:
                pairs = zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:])  # the first has no probability
                yield [position[token].logprob for token, position in pairs]

    def score_logits(self, sequences: Sequence[Sequence[int]], top: int) -> Iterator[Logits]:
        parameters = SamplingParams(
            temperature=0.0, max_tokens=1, prompt_logprobs=self._top(top), flat_logprobs=True, detokenize=False
        )
        with closing(self._finished_in_order(sequences, parameters)) as outputs:
            for output in outputs:
                yield rows(output.prompt_logprobs, 1, self._vocabulary)  # the first token has no probability

    def generate_logits(
        self, prompts: Sequence[Sequence[int]], output_len: int, top: int
    ) -> list[tuple[tuple[int, ...], Logits]]:
        parameters = SamplingParams(
            temperature=0.0,
            max_tokens=output_len,
            min_tokens=output_len,
            ignore_eos=True,
            logprobs=self._top(top),
            flat_logprobs=True,
            detokenize=False,
        )
        outputs = [output.outputs[0] for output in self._finished_in_order(prompts, parameters)]
        return [(tuple(output.token_ids), rows(output.logprobs, 0, self._vocabulary)) for output in outputs]

    def sample(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[tuple[int, ...]]:
        parameters = SamplingParams(
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            seed=sampling.seed,
            max_tokens=sampling.max_tokens,
            stop_token_ids=list(sampling.stop),
            detokenize=False,
        )
        outputs = [output.outputs[0] for output in self._finished_in_order(prompts, parameters)]
        return [(*output.token_ids, *_stop_left_out(output)) for output in outputs]

    @contextmanager
    def recording(self, profiler: str, folder: Path) -> Iterator[None]:
        """By vLLM's own profiler, in its workers, which marks each step with the requests in it."""
        self._llm.collective_rpc("harness_mark", args=(profiler,))
        self._llm.start_profile()
        try:
            yield
        finally:
            self._llm.stop_profile()
            self._llm.collective_rpc("harness_unmark")
        for path in sorted(Path(TRACES).glob("*.json*")):
            shutil.move(path, folder / path.name)

    def _top(self, top: int) -> int:
        return -1 if top >= self._vocabulary else top

    def _finished_in_order(self, sequences: Sequence[Sequence[int]], parameters: SamplingParams) -> Iterator[Any]:
        """Outputs in the order of the sequences. Who may stop early closes it, or the rest runs into what comes next."""
        first = self._submit(sequences, parameters)
        done: dict[int, Any] = {}
        wanted = 0
        try:
            while self._engine.has_unfinished_requests():
                for output in self._step():
                    if output.finished:
                        self._count_cached(output)
                        done[int(output.request_id) - first] = output
                while wanted in done:
                    yield done.pop(wanted)
                    wanted += 1
        except GeneratorExit:  # what a caller does not wait for must not run into the next measurement
            self._engine.abort_request([str(number) for number in range(first, self._requests)])
            raise

    def _step(self) -> list[Any]:
        try:
            return self._engine.step()
        except Exception as error:
            if type(error).__name__ != "EngineDeadError":
                raise
            raise RuntimeError(_words(error)) from error

    def _submit(self, sequences: Sequence[Sequence[int]], parameters: SamplingParams) -> int:
        """Hands all over; returns the number of the first, the others follow it."""
        first = self._requests
        for sequence in sequences:
            self._engine.add_request(
                str(self._requests), {"type": "token", "prompt_token_ids": list(sequence)}, parameters
            )
            self._requests += 1
        return first

    def _count_cached(self, output: Any) -> None:
        if self._cached_tokens is not None:
            cached = output.num_cached_tokens
            self._cached_tokens = None if cached is None else self._cached_tokens + cached

    def _environment(self) -> dict[str, Any]:
        look = self._looks[0]
        return {
            "python": platform.python_version(),
            "torch": look["torch"],
            "cuda": look["cuda"],
            "threads": look["threads"],
            "variables": VARIABLES,
        }

    def close(self) -> None:
        if self._engine is not None:
            self._core.expect_end()
            self._engine.engine_core.shutdown()
        self._llm = self._engine = None


def _stop_left_out(output: Any) -> list[int]:
    """The stop token, where vLLM ends a text without handing it over."""
    stop = output.stop_reason
    return [stop] if type(stop) is int and (not output.token_ids or output.token_ids[-1] != stop) else []


def _words(error: Exception) -> str:
    """Of the process it happened in: an engine core that died leaves its own only in the log."""
    words = f"{type(error).__name__}: {error}"
    is_elsewhere = "Engine core initialization failed" in words or type(error).__name__ == "EngineDeadError"
    return journal.last_error() or words if is_elsewhere else words


def _classified(error: Exception) -> Exception:
    """Of an error while loading."""
    words = _words(error)
    if failures.is_out_of_memory(words) or any(phrase in words for phrase in NO_MEMORY):
        return OutOfMemory(words)
    return Unsupported(words) if any(phrase in words for phrase in NOT_POSSIBLE) else LoadFailed(words)
