"""Which rungs are in force, read from the live model and from what ran; never from what was asked."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from transformers import PreTrainedModel

from harness_hf.caches import E4M3
from harness_hf.prefill import PIECE, Pieces, SharedPrefix
from harness_hf.projections import fused_count
from harness_hf.regional import ByLayer, CompiledLayers
from harness_hf.rungs import LADDER, Asked
from harness_hf.scoring import CompiledBody, Eager
from harness_hf.speculative import Ngram
from harness_hf.steps import Captured, Compiled

PROFILED = 32  # tokens
ATTENTION = ("scaled_dot_product", "flash", "fmha", "cudnn_generated")
IDLE = "set up; no token was generated, so nothing depends on it"


@dataclass(frozen=True)
class Live:
    """What there is to read."""

    model: PreTrainedModel
    decoder: Any  # a harness_hf.decode.Decoder or the fused one
    scorer: Eager | CompiledBody
    cores: frozenset[int] | None  # of the GPU's NUMA node, where the process was bound to them
    unequal: str | None  # where speculative decoding was not greedy
    seen: frozenset[str] | None  # operators and kernels of a profiled pass; None: none was profiled


Proof = tuple[bool, str]  # in force or not, and how that is known


def proven(live: Live, asked: Asked) -> tuple[dict[str, str], dict[str, str]]:
    """Rungs in force with how it was proven, in the same words in every round of a cell, so no counts; and the others
    with why they are off. A rung whose reading needs no asking (attention, experts) is read in any case."""
    in_force, off = {}, {}
    for rung in LADDER:
        if rung.name in asked.on or rung.name in ("sdpa", "grouped_experts"):
            holds, words = READ[rung.name](live)
            why = words if rung.name in asked.on else asked.off[rung.name]
            (in_force if holds else off)[rung.name] = words if holds else why
        else:
            off[rung.name] = asked.off[rung.name]
    return in_force, off


@torch.inference_mode()
def seen_in_a_pass(model: PreTrainedModel) -> frozenset[str]:
    """Operators and kernels of one short pass, by the torch profiler."""
    on_gpu = model.device.type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CPU, *[torch.profiler.ProfilerActivity.CUDA] * on_gpu]
    ids_1T = torch.arange(1, PROFILED + 1, device=model.device)[None]
    model.get_decoder()(input_ids=ids_1T, use_cache=False)  # what is loaded lazily is loaded now
    with torch.profiler.profile(activities=activities) as profile:
        model.get_decoder()(input_ids=ids_1T, use_cache=False)
        if on_gpu:
            torch.cuda.synchronize()
    # profile.key_averages() of 48 layers takes two seconds, for sums that nobody asks for
    return frozenset(event.name() for event in profile.profiler.kineto_results.events())


def prefill_of(decoder: Any, kind: type) -> Any:
    """The prefill of this kind, which may be inside another."""
    found = getattr(decoder, "prefill", None)
    while found is not None and not isinstance(found, kind):
        found = getattr(found, "prefill", None)
    return found


def _tf32(live: Live) -> Proof:
    flags = torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32
    return flags, "torch.backends.cuda.matmul and cudnn read back" if flags else "PyTorch's flags are off"


def _numa(live: Live) -> Proof:
    if live.cores is None:
        return False, "the system does not say which cores are beside the GPU"
    holds = os.sched_getaffinity(0) <= live.cores
    return holds, "the process's cores are all beside the GPU" if holds else "the process left the GPU's cores"


def _sdpa(live: Live) -> Proof:
    found = live.model.config._attn_implementation
    if found != "sdpa":
        return False, f"{type(live.model).__name__} runs {found} attention"
    if live.seen is None:
        return True, "config._attn_implementation of the live model"
    kernels = sorted(name for name in live.seen if any(word in name.lower() for word in ATTENTION))
    return bool(kernels), "seen: " + ", ".join(kernels) if kernels else "no such operator was seen in a pass"


def _grouped_experts(live: Live) -> Proof:
    found = getattr(live.model.config, "_experts_implementation", None)
    if "grouped" not in (found or ""):
        return False, f"{type(live.model).__name__} runs {found} experts"
    if live.seen is None:
        return True, "config._experts_implementation of the live model"
    kernels = sorted(name for name in live.seen if "grouped_mm" in name)
    return bool(kernels), "seen: " + ", ".join(kernels) if kernels else "no such operator was seen in a pass"


def _static_cache(live: Live) -> Proof:
    kept = getattr(live.decoder, "addresses", None)
    if kept is None:
        return True, f"{type(live.decoder).__name__} keeps keys and values in one place"
    if not kept:
        return True, IDLE
    holds = "Dynamic" not in live.decoder.cache_type and all(len(places) == 1 for places in kept.values())
    return holds, "keys lay at one address in every generation" if holds else "keys moved between generations"


def _compile(live: Live) -> Proof:
    step = _step(live)
    step = step.step if isinstance(step, Captured) else step
    if not isinstance(step, (Compiled, ByLayer)):
        return False, "the step is not compiled"
    if not step.calls:
        return True, IDLE
    return step.compiled() > 0, "dynamo made graphs of it" if step.compiled() else "dynamo made no graph"


def _cuda_graphs(live: Live) -> Proof:
    step = _step(live) or live.decoder  # the fused decoder holds its graphs itself
    if not live.decoder.cuda_graphs:
        return False, "no step is a graph"
    if not (step.calls if isinstance(step, Compiled) else step.replays):
        return True, IDLE
    if not isinstance(step, Compiled):
        return True, "torch.cuda.CUDAGraph, replayed"
    holds = step.recorded() > 0
    return holds, "graphs in inductor's pool" if holds else "inductor recorded no graph, or skipped one"


def _by_layer(live: Live) -> Proof:
    forwards = [layer.__dict__.get("forward") for layer in live.model.get_decoder().layers]
    holds = all(isinstance(getattr(run, "func", None), MethodType) for run in forwards)
    holds = holds and all(isinstance(run.func.__self__, CompiledLayers) for run in forwards)
    return holds, "every layer calls one compiled function" if holds else "layers run as they are"


def _fused_projections(live: Live) -> Proof:
    found = fused_count(live.model) > 0
    return (
        found,
        "weights are views of one matrix per group" if found else "no linear layers of the model share an input",
    )


def _compiled_prefill(live: Live) -> Proof:
    prefill = prefill_of(live.decoder, ByLayer)
    if prefill is None:
        return False, "prefill runs as it is"
    if not prefill.calls:
        return True, IDLE
    return prefill.compiled() > 0, "dynamo made graphs of it" if prefill.compiled() else "dynamo made no graph"


def _compiled_scoring(live: Live) -> Proof:
    if not isinstance(live.scorer, CompiledBody):
        return False, "the body is not compiled"
    if not live.scorer.calls:
        return True, "set up; nothing was scored, so nothing depends on it"
    holds = live.scorer.compiled() > 0
    return holds, "dynamo made graphs of it" if holds else "dynamo made no graph"


def _fused_step(live: Live) -> Proof:
    replays = getattr(live.decoder, "replays", None)
    if replays is None or type(live.decoder).__name__ != "FusedDecoder":
        return False, f"steps are taken by {type(live.decoder).__name__}"
    return True, "the step's graph was replayed" if replays else IDLE


def _fp8(live: Live) -> Proof:
    weights = [parameter for parameter in live.model.parameters() if parameter.dtype == E4M3]
    return bool(weights), "weights of the products are in E4M3" if weights else "no weight is in E4M3"


def _fp8_kv(live: Live) -> Proof:
    if not (dtype := getattr(live.decoder, "kv_dtype", None)):
        return True, IDLE
    return dtype == E4M3, f"the cache's keys are {dtype}"


def _ngram(live: Live) -> Proof:
    ran = live.decoder.continued
    if not isinstance(ran, Ngram):
        return False, "steps are taken one by one"
    if not ran.steps:
        return True, IDLE
    return (
        live.unequal is None,
        live.unequal or "drafts were tried; tokens are those of plain greedy decoding, or tie with them",
    )


def _chunked_prefill(live: Live) -> Proof:
    pieces = prefill_of(live.decoder, Pieces)
    if pieces is None:
        return False, "prompts are taken whole"
    if not pieces.most:
        return True, IDLE
    return pieces.most > 1, f"in pieces of {PIECE} tokens" if pieces.most > 1 else f"no prompt is longer than {PIECE}"


def _prefix_cache(live: Live) -> Proof:
    shared = prefill_of(live.decoder, SharedPrefix)
    if shared is None:
        return False, "every prompt is computed"
    return True, "tokens came from it" if shared.hits else "looked up; no prompts shared a prefix"


def _step(live: Live) -> Any:
    return getattr(getattr(live.decoder, "continued", None), "step", None)


READ: dict[str, Callable[[Live], Proof]] = {
    "tf32": _tf32,
    "numa": _numa,
    "sdpa": _sdpa,
    "grouped_experts": _grouped_experts,
    "static_cache": _static_cache,
    "compile": _compile,
    "cuda_graphs": _cuda_graphs,
    "by_layer": _by_layer,
    "fused_projections": _fused_projections,
    "compiled_prefill": _compiled_prefill,
    "compiled_scoring": _compiled_scoring,
    "fused_step": _fused_step,
    "fp8": _fp8,
    "fp8_kv": _fp8_kv,
    "ngram": _ngram,
    "chunked_prefill": _chunked_prefill,
    "prefix_cache": _prefix_cache,
}
