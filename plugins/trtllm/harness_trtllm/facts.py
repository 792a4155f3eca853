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
    problem, seen = (seen, {}) if isinstance(seen, str) else (None, seen)
    args = vars(llm.args)
    graphs = args.get("cuda_graph_config")
    found = {
        "engine_version": version,
        **provenance.summary(seen.get("layers", [])),
        "layers_read_from": _source(model is not None, seen, live.config),
        "moe_backend_requested": setup.moe_backend,
        "moe_backend_given": live.chosen.get("moe_config", {}).get("backend", "the version's own choice"),
        "moe_resolution": seen.get("moe_resolution"),
        "downgrades": live.journal.downgrades(),
        "disable_finalize_fusion": getattr(args.get("moe_config"), "disable_finalize_fusion", None),
        "fusion": fusion(setup, next(iter(live.config.get("architectures") or []), None)),
        "checkpoint_quant": f"{live.quant.algorithm or 'none'}, from {live.quant.said_in}",
        "attention_backend": seen.get("attention_backend"),
        "kv_dtype": seen.get("kv_dtype"),
        "prefix_cache": getattr(args.get("kv_cache_config"), "enable_block_reuse", None),
        "prefix_cache_hits": cached_tokens,
        "cuda_graphs": _is_on(args, "cuda_graph_config"),
        "cudagraph_mode": "none" if graphs is None else f"decode steps of {graphs.batch_sizes}, padded between",
        "compiled": _is_on(args, "torch_compile_config"),
        "compile_mode": _words(args, "torch_compile_config", "none"),
        "chunked_prefill": args.get("enable_chunked_prefill"),
        "max_num_batched_tokens": args.get("max_num_tokens"),
        "max_num_seqs": args.get("max_batch_size"),
        "overlap_scheduler": None if "disable_overlap_scheduler" not in args else not args["disable_overlap_scheduler"],
        "speculative_decoding": _words(args, "speculative_config", "off"),
        "executor": type(llm._executor).__name__ if hasattr(llm, "_executor") else None,
        "model_in_this_process": model is not None,
        "clock": _clock(live, model is not None),
        "not_offered": list(live.lacking),
        "environment": _environment(),
    }
    other = problem or f"not found in TensorRT-LLM {version}"
    return {**found, "unread": {name: REASONS.get(name, other) for name, value in found.items() if value is None}}


def _is_on(args: Mapping[str, Any], name: str) -> bool | None:
    return args[name] is not None if name in args else None


def _words(args: Mapping[str, Any], name: str, off: str) -> str | None:
    return (off if args[name] is None else str(args[name])) if name in args else None


def _source(is_here: bool, seen: Mapping[str, Any], config: Mapping[str, Any]) -> str | None:
    if not seen:
        return None
    walked = f"{seen['layer_count']} of {config.get('num_hidden_layers', '?')} layers"
    probed = "a probe: the same checkpoint's layout with random weights in a process of its own"
    return f"{'the loaded model' if is_here else probed}, {walked}"


def _clock(live: Live, is_here: bool) -> str:
    where = "in this process" if is_here else "in processes of the engine's own"
    host = f"host clock of the caller, model {where}, no CUDA events"
    if not live.chosen.get("return_perf_metrics"):
        return f"{host}; this version gives requests no times of their own"
    return f"{host}; first and last token by request_perf_metrics since the request's arrival, added to its hand-over"


def _environment() -> dict[str, Any]:
    import torch  # already there: the engine needs it

    own = {"torch": torch.__version__, "cuda": torch.version.cuda, "threads": torch.get_num_threads()}
    variables = {name: value for name, value in sorted(os.environ.items()) if name.startswith(VARIABLES)}
    return {"python": platform.python_version(), **own, "variables": variables}
