"""Greedy decoding: a prefill, then steps, over a cache, on a clock. Which of each is what the rungs say.

A: batch, T: tokens, V: vocabulary.
"""

from __future__ import annotations

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from harness_hf import steps
from harness_hf.caches import Caches, Fp8Layer, address_of, dtype_of, fixed, growing
from harness_hf.clocks import CudaClock, HostClock
from harness_hf.generation import PREFILL, Generated, Mark, OnLogits, Run, check, ignore, unmarked
from harness_hf.grouped import in_few_kernels
from harness_hf.prefill import Pieces, SharedPrefix
from harness_hf.regional import ByLayer, CompiledLayers
from harness_hf.speculative import DRAFT, Ngram
from harness_hf.steps import Answer, Captured, Compiled, Step


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
    def generate(self, ids_AT: torch.Tensor, output_len: int, on_logits: OnLogits = ignore) -> Generated:
        """Raises BadOutput."""
        cache = self.caches(ids_AT.shape[0])
        run = Run(self.timer, self.mark, on_logits)
        self.timer.start(output_len)
        with self.mark(PREFILL):
            run.took(*(value[:, -1] for value in self.prefill(ids_AT, cache)))
        run.tick(1)
        self.continued(run, ids_AT, cache, output_len - 1)
        times, started, finished = self.timer.stop()
        check(torch.stack(run.highest, dim=1))
        self.kv_dtype, self.cache_type = dtype_of(cache), type(cache.layers[0]).__name__
        self.addresses.setdefault(len(ids_AT), set()).add(address_of(cache))
        return torch.stack(run.tokens, dim=1), times, started, finished


class Plain:
    """Continues a run one token at a time."""

    def __init__(self, step: Step) -> None:
        self.step = step

    def __call__(self, run: Run, ids_AT: torch.Tensor, cache: Cache, count: int) -> None:
        for _ in range(count):
            with run.step():
                run.took(*(value[:, -1] for value in self.step(run.tokens[-1][:, None], cache)))
            run.tick()
