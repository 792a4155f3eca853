"""A loaded TensorRT-LLM: token ids in, tokens and times out, log-probabilities of given tokens."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

from harness import (
    BadOutput,
    Generation,
    Load,
    LoadFailed,
    Logits,
    OutOfMemory,
    Response,
    Sampling,
    Unsupported,
    device,
    failures,
)
from harness_trtllm import arguments, checkpoint, facts
from harness_trtllm.journal import Journal
from harness_trtllm.probe import probe

IN_FLIGHT = 8  # requests whose logits, [tokens, vocabulary] each, may exist at once
NOT_POSSIBLE = ("not supported", "unsupported", "only supports", "can_implement", "does not support")


class TrtllmSession:
    """See harness.engine.Session."""

    def __init__(self, load: Load) -> None:
        setup, sm = load.setup, device.detect().sm
        arguments.refuse_launchers()
        os.environ.update(arguments.variables(load))
        journal = Journal()
        self._api, fields = _imported()
        folder = checkpoint.local(setup)
        quant = checkpoint.read(folder, sm, arguments.is_main(fields))
        config = checkpoint.config_of(folder)
        self._folder = tempfile.TemporaryDirectory(prefix="trtllm-", dir=Path.cwd(), ignore_cleanup_errors=True)
        own = Path(self._folder.name)
        path, quant = checkpoint.prepared(setup, folder, quant, sm, own / "checkpoint")
        checkpoint.check(setup, quant)
        chosen, lacking = arguments.arguments(load, str(path), fields, sm)
        self._has_logits = "gather_generation_logits" in chosen
        is_asked_here = self._has_logits or os.environ.get("TLLM_WORKER_USE_SINGLE_PROCESS") == "1"
        looked = "" if setup.tp == 1 and is_asked_here else probe(chosen, fields, config, own)
        try:
            self._llm = self._api.LLM(**chosen)
        except Exception as error:
            raise _classified(error) from error
        self._live = facts.Live(load, chosen, lacking, config, quant, journal, looked)
        self._end_id = _end_id(config)
        self._cached_tokens = 0

    def facts(self) -> dict[str, Any]:
        return facts.facts(self._llm, self._api.__version__, self._live, self._cached_tokens)

    def generate(self, prompts: Sequence[Sequence[int]], output_len: int) -> Generation:
        """Latency is the caller's. A request's first and last token are as much later than it was handed over as the
        engine saw between its arrival and them; between these two the engine keeps no times."""
        sampling = self._sampling(max_tokens=output_len, return_perf_metrics=True)
        given, handed, requests = [_given(prompt) for prompt in prompts], [], []
        started = time.perf_counter_ns()
        for prompt in given:
            handed.append(time.perf_counter_ns())
            requests.append(self._llm.generate_async(prompt, sampling_params=sampling))
        outputs = [request.result() for request in requests]
        finished = time.perf_counter_ns()
        responses = []
        for output, when in zip(outputs, handed):
            self._check_cached(output)
            completion = output.outputs[0]
            responses.append(Response(tuple(completion.token_ids), _times(completion, when, output_len)))
        return Generation(started, finished, tuple(responses))

    def score(self, sequences: Sequence[Sequence[int]]) -> Iterator[list[float]]:
        import torch

        with closing(self._context_logits(sequences)) as scored:
            for sequence, logits_RV in scored:
                following_R = torch.tensor(sequence[1:], device=logits_RV.device)
                given_R = logits_RV.gather(-1, following_R[:, None])[:, 0] - logits_RV.logsumexp(-1)
                yield given_R.tolist()

    def score_logits(self, sequences: Sequence[Sequence[int]], top: int) -> Iterator[Logits]:
        with closing(self._context_logits(sequences)) as scored:
            for _, logits_RV in scored:
                yield Logits(logits_RV)

    def generate_logits(
        self, prompts: Sequence[Sequence[int]], output_len: int, top: int
    ) -> list[tuple[tuple[int, ...], Logits]]:
        if not self._has_logits:
            raise Unsupported("logits of generated tokens are gathered only in loads whose workloads all need logits")
        sampling = self._sampling(max_tokens=output_len, return_generation_logits=True)
        found = []
        with closing(self._in_order(prompts, sampling)) as outputs:
            for completion in (output.outputs[0] for output in outputs):
                _check_rows("generation_logits", completion.generation_logits, output_len)
                found.append((tuple(completion.token_ids), Logits(completion.generation_logits.float())))
        return found

    def sample(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[tuple[int, ...]]:
        named = {name: getattr(sampling, name) for name in ("max_tokens", "temperature", "top_k", "top_p", "seed")}
        stop = {"stop_token_ids": list(sampling.stop), "include_stop_str_in_output": True}  # else it is cut off
        drawn = self._sampling(**named, **stop)
        with closing(self._in_order(prompts, drawn)) as outputs:
            return [tuple(output.outputs[0].token_ids) for output in outputs]

    def recording(self, profiler: str, folder: Path) -> AbstractContextManager[None]:
        """On one GPU the model is in this process (arguments.variables), and so is the recording. With several the
        engine's ranks open nsys's range themselves, at the turns of TLLM_PROFILE_START_STOP."""
        if self._live.tp == 1:
            from harness_trtllm.recording import recording

            return recording(self._llm._executor.engine.model_engine, profiler, folder)
        if profiler == "torch":
            raise Unsupported("PyTorch's profiler sees TensorRT-LLM on one GPU; with several take --profile nsys")
        return nullcontext()

    def close(self) -> None:
        """The engine's shutdown sometimes hangs: it gets SHUTDOWN_S, and what is left then ends with the worker, whose
        supervisor kills all that it started."""
        llm, self._llm = self._llm, None
        if llm is None:
            return
        ending = threading.Thread(target=llm.shutdown, daemon=True)
        ending.start()
        ending.join(arguments.SHUTDOWN_S)
        self._folder.cleanup()
        if ending.is_alive():
            print(f"harness: TensorRT-LLM did not end within {arguments.SHUTDOWN_S:g} s; it is killed", file=sys.stderr)

    def _context_logits(self, sequences: Sequence[Sequence[int]]) -> Iterator[tuple[Sequence[int], Any]]:
        """Each sequence with the rows, [R, V] in FP32, that predict its tokens 1..n-1."""
        sampling = self._sampling(max_tokens=1, return_context_logits=True)
        with closing(self._in_order(sequences, sampling)) as outputs:
            for sequence, output in zip(sequences, outputs):
                _check_rows("context_logits", output.context_logits, len(sequence))
                yield sequence, output.context_logits[:-1].float()

    def _in_order(self, sequences: Sequence[Sequence[int]], sampling: Any) -> Iterator[Any]:
        """Outputs in the order of the sequences, few at a time. Closed early, it aborts what it handed over."""
        waiting: deque[Any] = deque()
        try:
            for sequence in sequences:
                waiting.append(self._llm.generate_async(_given(sequence), sampling_params=sampling))
                if len(waiting) == IN_FLIGHT:
                    yield self._finished(waiting.popleft())
            while waiting:
                yield self._finished(waiting.popleft())
        finally:
            for request in waiting:
                request.abort()

    def _finished(self, request: Any) -> Any:
        output = request.result()
        self._check_cached(output)
        return output

    def _sampling(self, **named: Any) -> Any:
        """Greedy where temperature, top_k and top_p are left alone."""
        return self._api.SamplingParams(end_id=self._end_id, ignore_eos=True, detokenize=False, **named)

    def _check_cached(self, output: Any) -> None:
        if cached := output.cached_tokens:
            self._cached_tokens += cached
            raise BadOutput(
                f"{cached} prompt tokens came from the KV cache though block reuse is off: prefill would look too fast"
            )


def _imported() -> tuple[Any, Any]:
    """The package, and the fields of its LLM's arguments. Raises LoadFailed."""
    try:
        import tensorrt_llm
        from tensorrt_llm.llmapi.llm_args import TorchLlmArgs
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise LoadFailed(f"tensorrt_llm with its PyTorch backend (1.0 and later) cannot be imported: {what}") from error
    return tensorrt_llm, TorchLlmArgs.model_fields


def _given(prompt: Sequence[int]) -> dict[str, list[int]]:
    return {"prompt_token_ids": list(prompt)}


def _times(completion: Any, handed_ns: int, output_len: int) -> tuple[int | None, ...]:
    """Of a request's tokens: the first, the last, None between; all None where the engine gave no times."""
    times: list[int | None] = [None] * output_len
    timing = getattr(getattr(completion, "request_perf_metrics", None), "timing_metrics", None)
    if timing is not None and timing.last_token_time >= timing.first_token_time > timing.arrival_time:
        for index, when in ((-1, timing.last_token_time), (0, timing.first_token_time)):
            times[index] = handed_ns + (when - timing.arrival_time) // timedelta(microseconds=1) * 1000
    return tuple(times)


def _check_rows(what: str, logits_RV: Any, expected: int) -> None:
    if logits_RV is None:
        raise BadOutput(f"TensorRT-LLM gave no {what}")
    if len(logits_RV) != expected:
        raise BadOutput(
            f"{what} has {len(logits_RV)} rows for {expected} tokens: rows of cached blocks are missing, so none can be"
            " matched to its token"
        )


def _end_id(config: dict[str, Any]) -> int:
    """Must be given where no tokenizer is loaded; it ends nothing, as end-of-text is ignored."""
    found = config.get("eos_token_id")
    found = found[0] if isinstance(found, list) and found else found
    return found if isinstance(found, int) else 0


def _classified(error: Exception) -> Exception:
    """Of an error while loading."""
    words = f"{type(error).__name__}: {error}"
    if error.__cause__ is not None:  # of the engine's own process; the error around it says nothing
        words = f"{error.__cause__} ({words})"
    if failures.is_out_of_memory(words):
        return OutOfMemory(words)
    return Unsupported(words) if any(phrase in words.lower() for phrase in NOT_POSSIBLE) else LoadFailed(words)
