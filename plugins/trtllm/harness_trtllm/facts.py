"""What is said of a loaded engine: by its layers, its own arguments after loading, and its warnings."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness import Load, provenance
from harness_trtllm.arguments import fusion
from harness_trtllm.checkpoint import Quant
from harness_trtllm.journal import Journal
from harness_trtllm.look import live_model, look

REASONS = {
    "quant_algo": "nothing is quantised",
    "quantize": "nothing is quantised",
    "downgrades": "stdout and stderr are no files that could be read back",
    "moe_resolution": "this version has no resolver of MoE kernels",
    "compiled": "its arguments do not say",
}
VARIABLES = ("TLLM_", "TRTLLM_", "ENABLE_CONFIGURABLE_MOE", "OVERRIDE_QUANT_ALGO")


@dataclass(frozen=True)
class Live:
    """What was known when the engine had loaded."""

    load: Load
    chosen: Mapping[str, Any]  # arguments of the LLM
    lacking: Sequence[str]  # what its version does not offer
    config: Mapping[str, Any]  # config.json
    quant: Quant  # of the checkpoint
    journal: Journal
    probed: Mapping[str, Any] | str  # what the probe saw, or why it did not; "" where none was needed

    @property
    def tp(self) -> int:
        return self.load.setup.tp


def facts(llm: Any, version: str, live: Live, cached_tokens: int) -> dict[str, Any]:
    """The facts of harness.engine.Session."""
    model, setup = live_model(llm), live.load.setup
    seen = look(model) if model is not None else live.probed
    problem = seen if isinstance(seen, str) else None
    seen = {} if problem is not None else seen
    of_layers = provenance.summary(seen.get("layers", []))
    args = llm.args
    graphs, kv = _of(args, "cuda_graph_config"), _of(args, "kv_cache_config")
    found = {
        "engine_version": version,
        **of_layers,
        "layers_read_from": _source(model is not None, seen, live.config),
        "moe_backend_requested": setup.moe_backend,
        "moe_backend_given": live.chosen.get("moe_config", {}).get("backend", "the version's own choice"),
        "moe_resolution": seen.get("moe_resolution"),
        "downgrades": live.journal.downgrades(),
        "disable_finalize_fusion": _of(_of(args, "moe_config"), "disable_finalize_fusion"),
        "fusion": fusion(setup, next(iter(live.config.get("architectures") or []), None)),
        "checkpoint_quant": f"{live.quant.algorithm or 'none'}, from {live.quant.said_in}",
        "attention_backend": seen.get("attention_backend"),
        "kv_dtype": seen.get("kv_dtype"),
        "prefix_cache": _of(kv, "enable_block_reuse"),
        "prefix_cache_hits": cached_tokens,
        "cuda_graphs": graphs is not None,
        "cudagraph_mode": "none" if graphs is None else f"decode steps of {_of(graphs, 'batch_sizes')}, padded between",
        "compiled": None if not hasattr(args, "torch_compile_config") else args.torch_compile_config is not None,
        "compile_mode": "none" if _of(args, "torch_compile_config") is None else str(args.torch_compile_config),
        "chunked_prefill": _of(args, "enable_chunked_prefill"),
        "max_num_batched_tokens": _of(args, "max_num_tokens"),
        "max_num_seqs": _of(args, "max_batch_size"),
        "overlap_scheduler": not _of(args, "disable_overlap_scheduler"),
        "speculative_decoding": "off" if _of(args, "speculative_config") is None else str(args.speculative_config),
        "executor": type(llm._executor).__name__ if hasattr(llm, "_executor") else None,
        "model_in_this_process": model is not None,
        "clock": _clock(live, model is not None),
        "not_offered": list(live.lacking),
        "environment": {
            "python": platform.python_version(),
            **_torch(),
            "variables": {name: value for name, value in sorted(os.environ.items()) if name.startswith(VARIABLES)},
        },
    }
    unread = [name for name, value in found.items() if value is None]
    other = problem or f"not found in TensorRT-LLM {version}"
    return {**found, "unread": {name: REASONS.get(name, other) for name in unread}}


def _source(is_here: bool, seen: Mapping[str, Any], config: Mapping[str, Any]) -> str | None:
    if not seen:
        return None
    walked = f"{seen['layer_count']} of {config.get('num_hidden_layers', '?')} layers"
    if is_here:
        return f"the loaded model, {walked}"
    return f"a probe: the same checkpoint's layout with random weights in a process of its own, {walked}"


def _clock(live: Live, is_here: bool) -> str:
    where = "in this process" if is_here else "in processes of the engine's own"
    host = f"host clock of the caller, model {where}, no CUDA events"
    if not live.chosen.get("return_perf_metrics"):
        return f"{host}; this version gives requests no times of their own"
    return f"{host}; first and last token by request_perf_metrics since the request's arrival, added to its hand-over"


def _of(owner: Any, name: str) -> Any:
    return getattr(owner, name, None)


def _torch() -> dict[str, Any]:
    import torch  # already there: the engine needs it

    return {"torch": torch.__version__, "cuda": torch.version.cuda, "threads": torch.get_num_threads()}
