"""Greedy decoding, one path per kind of device. Each returns the tokens and when each was there.

A: batch, T: tokens, V: vocabulary. Time is taken on a monotonic clock on a CPU and by CUDA events on the model's
stream on a GPU, where the host runs ahead of the kernels and its clock would lie.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from transformers import DynamicCache, PreTrainedModel, StaticCache

from harness import BadOutput

PREFILL, DECODE = "harness.prefill", "harness.decode"  # ranges of a profiled run
NOTHING = nullcontext()

OnLogits = Callable[[torch.Tensor], None]  # takes [A, V] of a step; the memory is the next step's again
Mark = Callable[[str], AbstractContextManager]


def unmarked(name: str) -> AbstractContextManager:
    """What a timed run puts around a step."""
    return NOTHING


def ignore(logits_AV: torch.Tensor) -> None:
    """What a timed run does with logits."""


class CpuDecoder:
    """Eager steps over a growing cache."""

    clock = "time.perf_counter_ns"
    cuda_graphs = compiled = False

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self.mark: Mark = unmarked

    @torch.inference_mode()
    def generate(
        self, ids_AT: torch.Tensor, output_len: int, on_logits: OnLogits = ignore
    ) -> tuple[torch.Tensor, list[int], int, int]:
        """Tokens [A, output_len], when each step ended, start and finish, in ns."""
        cache = DynamicCache(config=self._model.config)
        tokens, highest, times = [], [], []
        started = time.perf_counter_ns()
        step = ids_AT
        for index in range(output_len):
            with self.mark(DECODE if index else PREFILL):
                logits_AV = self._model(input_ids=step, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[
                    :, -1
                ]
                on_logits(logits_AV)
                value_A, token_A = logits_AV.max(-1)
                step = token_A[:, None]
                tokens.append(step)
                highest.append(value_A)
            times.append(time.perf_counter_ns())
        out = torch.cat(tokens, dim=1)
        _check(torch.stack(highest))
        self.kv_dtype = cache.layers[0].keys.dtype
        return out, times, started, time.perf_counter_ns()


class CudaDecoder:
    """Eager prefill into a static cache, then compiled steps replayed as CUDA graphs; in FP32, for which PyTorch has no
    grouped product that a graph could hold, eager steps."""

    clock = "torch.cuda.Event on the model's stream"

    def __init__(self, model: PreTrainedModel, max_sequence: int) -> None:
        self._model, self._max_sequence = model, max_sequence
        self.mark: Mark = unmarked
        self._caches: dict[int, StaticCache] = {}
        self.cuda_graphs = self.compiled = model.dtype != torch.float32
        self._step = torch.compile(self._forward, mode="reduce-overhead") if self.compiled else self._forward

    def _forward(self, step_AT: torch.Tensor, cache: StaticCache) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        logits_AV = self._model(input_ids=step_AT, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[
            :, -1
        ]
        return (*logits_AV.max(-1), logits_AV)

    @torch.inference_mode()
    def generate(
        self, ids_AT: torch.Tensor, output_len: int, on_logits: OnLogits = ignore
    ) -> tuple[torch.Tensor, list[int], int, int]:
        cache = self._cache_for(ids_AT.shape[0])
        tokens, highest, events = [], [], [torch.cuda.Event(enable_timing=True) for _ in range(output_len + 1)]
        torch.cuda.synchronize()
        started = time.perf_counter_ns()
        events[0].record()
        for index in range(output_len):
            with self.mark(DECODE if index else PREFILL):
                if index:
                    torch.compiler.cudagraph_mark_step_begin()
                    value_A, token_A, logits_AV = self._step(tokens[-1][:, None], cache)
                else:
                    value_A, token_A, logits_AV = self._forward(ids_AT, cache)
                # A graph writes its answer to the same place at every replay, so each is copied before the next.
                tokens.append(token_A.clone())
                highest.append(value_A.clone())
                on_logits(logits_AV)
            events[index + 1].record()
        torch.cuda.synchronize()
        finished = time.perf_counter_ns()
        _check(torch.stack(highest))
        self.kv_dtype = cache.layers[0].keys.dtype
        times = [started + round(events[0].elapsed_time(event) * 1e6) for event in events[1:]]
        return torch.stack(tokens, dim=1), times, started, max(finished, times[-1])

    def _cache_for(self, batch_size: int) -> StaticCache:
        """One cache per batch size, kept: a graph is bound to the addresses of its cache."""
        if batch_size not in self._caches:
            self._caches[batch_size] = StaticCache(config=self._model.config, max_cache_len=self._max_sequence)
        self._caches[batch_size].reset()
        return self._caches[batch_size]


def _check(highest: torch.Tensor) -> None:
    """The highest logit of every step: one NaN among the logits makes it NaN, at no cost of its own."""
    if not torch.isfinite(highest).all():
        step = int((~torch.isfinite(highest)).any(-1).nonzero()[0])
        raise BadOutput(f"logits of step {step} are not finite")
