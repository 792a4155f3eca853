"""What a loaded NxD Inference model says of itself, and why something is not known."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

from harness import provenance
from harness.precision import NATIVE
from harness_neuron.compiled import Shape

SHORT = {"bfloat16": "bf16", "float32": "fp32", "float16": "fp16"}
COMPILED_IN = "compiled into the graph, which does not name its kernels; `switches` are those that were set"
REASONS = {
    "moe_backend": COMPILED_IN,
    "moe_kernel": COMPILED_IN,
    "attention_backend": COMPILED_IN,
    "kv_dtype": "the loaded model lists no key-value cache",
    "quant_algo": "nothing is quantised",
    "quantize": "nothing is quantised",
    "compile_seconds": "compiled before",
}
CLOCK = "time.perf_counter_ns of the caller, when each token is chosen on the host"


def facts(
    model: Any, shape: Shape, folder: Path, compile_seconds: float | None, versions: Mapping[str, str | None]
) -> dict[str, Any]:
    """The facts of harness.engine.Session, of the model that is loaded now."""
    ranks = [provenance.group(_described(weights)) for weights in model.traced_model.nxd_model.weights]
    config = model.config.neuron_config
    found = {
        "engine_version": versions["neuronx-distributed-inference"],
        **provenance.summary(ranks[0]),
        "attention_backend": None,
        "kv_dtype": _kv_dtype(model.traced_model.nxd_model.state[0]),
        "prefix_cache": bool(getattr(config, "is_prefix_caching", False)),
        "prefix_cache_hits": 0,  # of a static cache, which each prefill writes anew
        "cuda_graphs": False,
        "cudagraph_mode": "none",
        "compiled": True,
        "compile_mode": "neuronx-cc, ahead of time",
        "chunked_prefill": bool(getattr(config, "is_chunked_prefill", False)),
        "max_num_batched_tokens": config.batch_size * config.max_context_length,
        "max_num_seqs": config.batch_size,
        "speculative_decoding": "on" if config.speculation_length else "off",
        "compiled_for": {"batch": shape.batch, "context": shape.context, "total": shape.total},
        "compiled_folder": str(folder),
        "compile_work_folder": str(folder / "work"),
        "compile_seconds": compile_seconds,
        "switches": sorted(name for name, value in vars(config).items() if "kernel" in name and value is True),
        "ranks": len(ranks),
        "ranks_agree": all(rank == ranks[0] for rank in ranks),
        "sampled_on": "device" if config.on_device_sampling_config else "host",
        "scored_with": "the graphs of decoding, one given token a step",
        "clock": CLOCK,
        "environment": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "packages": dict(versions),
        },
    }
    return {**found, "unread": {name: REASONS.get(name, "") for name, value in found.items() if value is None}}


def _described(weights: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every matrix on the device, by harness.provenance's names of layers. Scripted modules write dots as arrows."""
    for name, weight in weights.items():
        name = name.replace("->", ".")
        if weight.ndim < 2 or not name.endswith(".weight") or not weight.is_floating_point():
            continue
        name = name.removesuffix(".weight").removesuffix(".linear_router").replace(".expert_mlps", ".experts")
        stored = str(weight.dtype).removeprefix("torch.")
        plain = SHORT.get(stored)
        yield (
            name,
            {
                "kind": provenance.kind_of(name),
                "module": name.rpartition(".")[2],
                "quant_method": None,
                "backend": None,
                "kernel": None,
                "format": plain or stored,
                "activations": "as weights" if plain else None,
                "weight_dtypes": stored,
                "compute_mode": NATIVE if plain else None,
            },
        )


def _kv_dtype(state: Mapping[str, torch.Tensor]) -> str | None:
    names = (name for name in state if "past_key_values" in name)
    return provenance.joined(str(state[name].dtype).removeprefix("torch.") for name in names)
