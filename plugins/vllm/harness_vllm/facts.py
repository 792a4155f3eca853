"""What a look at the live model comes to, and why something is not known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import vllm

from harness import provenance
from harness_vllm import journal, rungs

REASONS = {
    "moe_backends_passed_over": "vLLM logged no choice; its log level may be above INFO",
    "prefix_cache_hits": "requests carried no count of cached tokens",
    "quantization": "nothing is quantised",
    "quantize": "nothing is quantised",
    "quant_algo": "no quantised format that has such a name",
}


def facts(
    looks: Sequence[Mapping[str, Any]], cached_tokens: int | None, environment: Mapping[str, Any]
) -> dict[str, Any]:
    """The facts of harness.engine.Session. `looks`: one per rank, from harness_vllm.inspector."""
    layers, attention, config = (looks[0][name] for name in ("layers", "attention", "config"))
    of_layers = provenance.summary(layers)
    found = {
        "engine_version": vllm.__version__,
        **of_layers,
        "moe_backends_passed_over": _passed_over(of_layers["moe_backend"]),
        "attention_backend": attention["backend"],
        "attention_kernel": attention["kernel"],
        "kv_dtype": attention["kv_dtype"],
        **config,
        "prefix_cache_hits": cached_tokens,
        "cuda_graphs": _is_on(config["cudagraph_mode"]),
        "compiled": _is_on(config["compile_mode"]),
        "ranks": len(looks),
        "ranks_agree": all(other["layers"] == layers for other in looks),
        "clock": "time.monotonic of the engine core, at every step",
        "remarks": journal.remarks(),
        "environment": dict(environment),
    }
    found |= rungs.state(found)
    unread = [name for name, value in found.items() if value is None]
    return {**found, "unread": {name: REASONS.get(name, f"not found in vLLM {vllm.__version__}") for name in unread}}


def _passed_over(chosen: str | None) -> list[str] | None:
    names = journal.potential_backends()
    return None if names is None else [name for name in names if name.upper() != (chosen or "").upper()]


def _is_on(mode: str | None) -> bool | None:
    return None if mode is None else mode != "NONE"
