"""What a look at the live model comes to, and why something is not known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sglang

from harness import provenance

REASONS = {
    "moe_backend": "no layer said which MoE runner it has",
    "moe_kernel": "the runner names no fused function and no class",
    "quantization": "nothing is quantised by an argument",
    "quantize": "nothing is quantised",
    "quant_algo": "no quantised format that has such a name",
    "engine_ttft_ms": "nothing was generated yet, or answers carried no time of the first token",
}
CLOCK = "time.perf_counter_ns of the caller, at every chunk of the stream"


def facts(
    looks: Sequence[Mapping[str, Any]],
    cached_tokens: int | None,
    engine_ttft_ms: float | None,
    left_out: Sequence[str],
    environment: Mapping[str, Any],
) -> dict[str, Any]:
    """The facts of harness.engine.Session. `looks`: one per rank, from harness_sglang.look."""
    layers, attention, config = (looks[0][name] for name in ("layers", "attention", "config"))
    found = {
        "engine_version": sglang.__version__,
        **provenance.summary(layers),
        "moe_backend": provenance.joined(layer["backend"] for layer in layers if layer["kind"] == "experts"),
        "moe_backend_learned": "MoE runner of every expert layer, read in the scheduler process",
        "attention_backend": attention["backend"],
        "attention_kernel": attention["kernel"],
        "kv_dtype": attention["kv_dtype"],
        **config,
        "prefix_cache_hits": cached_tokens,
        "cuda_graphs": None if config["cudagraph_mode"] is None else config["cudagraph_mode"] != "none",
        "compiled": None if config["compile_mode"] is None else config["compile_mode"] != "none",
        "ranks": len(looks),
        "ranks_agree": all(other["layers"] == layers for other in looks),
        "clock": CLOCK,
        "engine_ttft_ms": engine_ttft_ms,
        "arguments_left_out": list(left_out),
        "remarks": list(looks[0]["remarks"]),
        "environment": dict(environment),
    }
    unknown = f"not found in SGLang {sglang.__version__}"
    return {**found, "unread": {name: REASONS.get(name, unknown) for name, value in found.items() if value is None}}
