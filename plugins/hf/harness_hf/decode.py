"""Greedy decoding: a prefill, then steps, over a cache, on a clock. Which of each is what the rungs say.

A: batch, T: tokens, V: vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from harness import BadOutput
from harness_hf import steps
from harness_hf.caches import Caches, Fp8Layer, address_of, dtype_of, fixed, growing
from harness_hf.clocks import CudaClock, HostClock
from harness_hf.grouped import in_few_kernels
from harness_hf.prefill import Pieces, SharedPrefix
from harness_hf.regional import ByLayer, CompiledLayers
from harness_hf.speculative import DRAFT, Ngram
from harness_hf.steps import Answer, Captured, Compiled, Step

PREFILL, DECODE = "harness.prefill", "harness.decode"  # ranges of a profiled run
NOTHING = nullcontext()

OnLogits = Callable[[torch.Tensor], None]  # takes [A, V] of a step; the memory is the next step's again
Mark = Callable[[str], AbstractContextManager]


def unmarked(name: str) -> AbstractContextManager:
    """What a timed run puts around a step."""
    return NOTHING


def ignore(logits_AV: torch.Tensor) -> None:
    """What a timed run does with logits."""


def decoder_of(
    model: PreTrainedModel, max_sequence: int, rungs: frozenset[str], layers: CompiledLayers | None = None
) -> Decoder:
    """A decoder with these rungs; a decoder of its own for "fused_step", which has the same interface. `layers` with
    the rungs "by_layer" and "compiled_prefill"."""
    prefill = _compiled_prefill(model, layers) if "compiled_prefill" in rungs else steps.last(model)
    if "fused_step" in rungs:
        from harness_hf.fused.decoder import FusedDecoder

        return FusedDecoder(model, max_sequence, prefill=prefill)
    is_ngram = "ngram" in rungs
    layer = {"layer": Fp8Layer} if "fp8_kv" in rungs else {}
    room = max_sequence + (DRAFT if is_ngram else 0)  # a draft is stored before it is refused
    caches = fixed(model, room, **layer) if "static_cache" in rungs else growing(model)
    prefill = Pieces(prefill) if "chunked_prefill" in rungs else prefill
    prefill = SharedPrefix(prefill, caches) if "prefix_cache" in rungs else prefill
    step = _way_to_run(steps.every(model) if is_ngram else steps.last(model), rungs, layers)
    clock = CudaClock() if model.device.type == "cuda" else HostClock()
    decoder = Decoder(caches, prefill, Ngram(step) if is_ngram else Plain(step), clock)
    decoder.compiled, decoder.cuda_graphs = "compile" in rungs, "cuda_graphs" in rungs
    return decoder


def plain_beside(decoder: Decoder, model: PreTrainedModel) -> Decoder:
    """One token at a time over the same cache and prefill: what speculative decoding must equal."""
    return Decoder(decoder.caches, decoder.prefill, Plain(steps.last(model)), type(decoder.timer)())


def _compiled_prefill(model: PreTrainedModel, layers: CompiledLayers) -> ByLayer:
    step = steps.last(model)

    def in_few(ids_AT: torch.Tensor, cache: Cache) -> Answer:
        with in_few_kernels(model):
            return step(ids_AT, cache)

    return ByLayer(in_few, layers)


def _way_to_run(step: Step, rungs: frozenset[str], layers: CompiledLayers | None) -> Step:
    if "compile" in rungs and "by_layer" not in rungs:
        return Compiled(step, graphs="cuda_graphs" in rungs)
    step = ByLayer(step, layers) if "compile" in rungs else step
    return Captured(step) if "cuda_graphs" in rungs else step


class Decoder:
    """Made of a cache per batch size, a prefill, what continues it and a clock. Whether its steps are compiled or
    graphs is for the record; the step itself knows."""

    def __init__(self, caches: Caches, prefill: Step, continued: Plain | Ngram, timer: HostClock | CudaClock) -> None:
        self.caches, self.prefill, self.continued, self.timer = caches, prefill, continued, timer
        self.mark: Mark = unmarked
        self.clock = timer.name
        self.compiled = self.cuda_graphs = False
        self.cache_type: str | None = None  # of the first layer, once there is one
        self.addresses: dict[int, set[int]] = {}  # batch size -> where its keys lay

    @torch.inference_mode()
    def generate(
        self, ids_AT: torch.Tensor, output_len: int, on_logits: OnLogits = ignore
    ) -> tuple[torch.Tensor, list[int | None], int, int]:
        """Tokens [A, output_len], when each was there, start and finish, in ns. Raises BadOutput."""
        cache = self.caches(ids_AT.shape[0])
        run = Run(self.timer, self.mark, on_logits)
        self.timer.start(output_len)
        with self.mark(PREFILL):
            run.took(*(value[:, -1] for value in self.prefill(ids_AT, cache)))
        run.tick(1)
        self.continued(run, ids_AT, cache, output_len - 1)
        times, started, finished = self.timer.stop()
        _check(torch.stack(run.highest))
        self.kv_dtype, self.cache_type = dtype_of(cache), type(cache.layers[0]).__name__
        self.addresses.setdefault(len(ids_AT), set()).add(address_of(cache))
        return torch.stack(run.tokens, dim=1), times, started, finished


class Run:
    """What one generation has given so far."""

    def __init__(self, timer: HostClock | CudaClock, mark: Mark, on_logits: OnLogits) -> None:
        self.tokens: list[torch.Tensor] = []  # [A] each
        self.highest: list[torch.Tensor] = []
        self.tick, self._mark, self._on_logits = timer.tick, mark, on_logits

    def step(self) -> AbstractContextManager:
        return self._mark(DECODE)

    def took(self, value_A: torch.Tensor, token_A: torch.Tensor, logits_AV: torch.Tensor) -> None:
        self.tokens.append(token_A)
        self.highest.append(value_A)
        self._on_logits(logits_AV)


class Plain:
    """Continues a run one token at a time."""

    def __init__(self, step: Step) -> None:
        self.step = step

    def __call__(self, run: Run, ids_AT: torch.Tensor, cache: Cache, count: int) -> None:
        for _ in range(count):
            with run.step():
                run.took(*(value[:, -1] for value in self.step(run.tokens[-1][:, None], cache)))
            run.tick()


def _check(highest: torch.Tensor) -> None:
    """The highest logit of every step: one NaN among the logits makes it NaN, at no cost of its own."""
    if not torch.isfinite(highest).all():
        step = int((~torch.isfinite(highest)).any(-1).nonzero()[0])
        raise BadOutput(f"logits of step {step} are not finite")
