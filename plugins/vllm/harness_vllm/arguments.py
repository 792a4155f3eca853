"""From a load to the arguments of `vllm.LLM`. Nothing vLLM would choose well itself is chosen here."""

from __future__ import annotations

import os
from typing import Any

from harness import Load, Setup, Unsupported
from harness.provenance import PLAIN
from harness_vllm import rungs

ONLINE = {"fp8": "fp8_per_tensor", "fp8_block": "fp8_per_block", "mxfp4": "mxfp4"}  # vLLM converts while it loads
LEAST_SEQS = 128  # vLLM's smallest default of max_num_seqs
NOT_PRODUCTS = ["lm_head", "re:.*mlp\\.gate$", "re:.*shared_expert_gate$"]  # head and routers stay as they are
TRACES = os.path.abspath("traces")  # in the worker's own folder; its processes share it
PROFILERS = {
    "torch": {
        "profiler_config": {
            "profiler": "torch",
            "torch_profiler_dir": TRACES,
            "torch_profiler_with_stack": False,  # it would slow every call
            "torch_profiler_dump_cuda_time_total": False,
        }
    },
    "nsys": {"profiler_config": {"profiler": "cuda"}, "enable_layerwise_nvtx_tracing": True},
}


def arguments(load: Load, is_cpu: bool) -> dict[str, Any]:
    """Keyword arguments of `vllm.LLM`. Raises Unsupported for what vLLM cannot be asked to do."""
    setup = load.setup
    if setup.ep not in (1, setup.tp):
        raise Unsupported(f"vLLM spreads experts over all of its {setup.tp} ranks or none (asked for ep {setup.ep})")
    chosen: dict[str, Any] = {
        "model": setup.source,
        "dtype": "float32" if setup.precision == "fp32" else "bfloat16",
        "seed": setup.seed,
        "skip_tokenizer_init": True,
        "trust_remote_code": setup.trust_remote_code,
        "max_model_len": load.max_sequence + 1,  # scoring, too, must generate a token
        "disable_log_stats": False,  # without it requests carry no times
        "max_logprobs": -1,  # as many as are asked for
        "tensor_parallel_size": setup.tp,
        "enable_expert_parallel": setup.ep > 1,
        "worker_extension_cls": "harness_vllm.inspector.Inspector",
        **rungs.arguments(setup.rung_names),
        **_weights(setup),
        **PROFILERS.get(load.profiler, {}),
    }
    if is_cpu:
        chosen["enforce_eager"] = True  # compiling takes minutes there and gains little
    if setup.moe_backend != "auto":
        chosen["moe_backend"] = setup.moe_backend
    batch = max(cell.parameters.get("batch_size", 1) for cell in load.cells)
    if batch > LEAST_SEQS:
        chosen["max_num_seqs"] = batch
    return chosen


def _weights(setup: Setup) -> dict[str, Any]:
    """Where the weights come from and how they become `setup.precision`: stored so, converted by vLLM while it loads,
    or random in the layout of a checkpoint that has that precision."""
    chosen: dict[str, Any] = {"load_format": "dummy"} if setup.weights == "dummy" else {}
    if setup.precision in PLAIN or setup.checkpoint:
        return chosen
    if setup.precision in LAYOUTS and setup.weights == "dummy":
        layout = LAYOUTS[setup.precision](setup.quantize)
        return {**chosen, "hf_overrides": {"quantization_config": layout}}
    return {**chosen, **_online(setup)}


def _modelopt_nvfp4(scope: str) -> dict[str, Any]:
    """What ModelOpt writes into config.json."""
    ignore = ["lm_head", "*mlp.gate", "*shared_expert_gate", *(["*self_attn*"] if scope == "experts" else [])]
    return {"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16, "ignore": ignore}


def _llm_compressor_mxfp4(scope: str) -> dict[str, Any]:
    """What llm-compressor writes into config.json."""
    weights = {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32, "symmetric": True}
    form = "mxfp4-pack-quantized"
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": {"targets": ["Linear"], "format": form, "weights": weights}},
        "ignore": [*NOT_PRODUCTS, *(["re:.*self_attn.*"] if scope == "experts" else [])],
    }


LAYOUTS = {"nvfp4": _modelopt_nvfp4, "mxfp4": _llm_compressor_mxfp4}


def _online(setup: Setup) -> dict[str, Any]:
    from vllm.config.quantization import ONLINE_QUANT_SHORTHAND_NAMES

    name = ONLINE.get(setup.precision)
    if name not in ONLINE_QUANT_SHORTHAND_NAMES:
        raise Unsupported(
            f"this vLLM cannot convert weights to {setup.precision}: give --checkpoint {setup.precision}=PATH"
        )
    scope = {"moe": name} if setup.quantize == "experts" else {"moe": name, "linear": name}
    return {"quantization": "online", "quantization_config": {**scope, "ignore": NOT_PRODUCTS}}
