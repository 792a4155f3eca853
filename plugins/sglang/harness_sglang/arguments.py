"""From a load to the arguments of `sglang.Engine`."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from harness import Load, Setup, Unsupported
from harness.model.weights import config_of
from harness.provenance import PLAIN
from harness_sglang import journal

ROOM = 8  # tokens: SGLang refuses prompts, and shortens answers, that come within 7 of its context length
# What is measured would mean something else without these. Other arguments are left out where a version lacks them.
NEEDED = {"model_path", "skip_tokenizer_init", "disable_radix_cache", "context_length", "dtype", "load_format"}


def arguments(load: Load, known: Collection[str]) -> tuple[dict[str, Any], list[str]]:
    """Keyword arguments of `sglang.Engine`, none but the `known`, which are the installed version's; and what was left
    out for that. Raises Unsupported for what SGLang cannot be asked to do."""
    setup = load.setup
    fp32 = setup.precision == "fp32"
    chosen: dict[str, Any] = {
        "model_path": setup.source,
        "dtype": "float32" if fp32 else "bfloat16",
        "load_format": "dummy" if setup.weights == "dummy" else "safetensors",  # never a pickle
        "random_seed": setup.seed,
        "skip_tokenizer_init": True,
        "trust_remote_code": setup.trust_remote_code,
        "context_length": load.max_sequence + ROOM,
        "disable_radix_cache": True,
        "enable_metrics": True,  # without it answers carry no time of the first token
        "stream_interval": 1,  # every token is handed over at once
        "tp_size": setup.tp,
        "ep_size": setup.ep,
        "log_level": "warning",
        "custom_sigquit_handler": journal.ended,  # SGLang's own would kill this process without a word
        **({"attention_backend": "triton"} if fp32 else {}),  # FlashAttention takes 16 bits only
        **({} if setup.moe_backend == "auto" else {"moe_runner_backend": setup.moe_backend}),
        **_weights(setup),
    }
    left_out = sorted(chosen.keys() - set(known))
    if lacking := [name for name in left_out if name in NEEDED | _asked_for(setup)]:
        raise Unsupported(f"this SGLang has no {', '.join(lacking)}: versions 0.5.13 to 0.5.23 have")
    return {name: value for name, value in chosen.items() if name in known}, left_out


def environment(setup: Setup) -> dict[str, str]:
    """Variables SGLang reads for what no argument says."""
    chosen = {"SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN": "1"}  # ROOM may exceed the model's; positions never do
    if setup.precision == "fp8" and setup.quantize == "experts" and not setup.checkpoint:
        chosen["SGLANG_FP8_IGNORED_LAYERS"] = "self_attn"
    return chosen


def _asked_for(setup: Setup) -> set[str]:
    """Arguments that carry what the user asked for: leaving one out would run something else."""
    asked = {"tp_size": setup.tp > 1, "ep_size": setup.ep > 1}  # the others are passed only where they were asked for
    always = {"quantization", "json_model_override_args", "moe_runner_backend", "attention_backend"}
    return always | {name for name, is_asked in asked.items() if is_asked}


def _weights(setup: Setup) -> dict[str, Any]:
    """How weights become `setup.precision`: stored so, converted by SGLang while it loads, or random in the layout of
    a checkpoint that has that precision."""
    if setup.precision in PLAIN or setup.checkpoint or (config_of(setup.source) or {}).get("quantization_config"):
        return {}
    if setup.precision == "fp8":
        return {"quantization": "fp8"}  # SGLang converts while it loads: experts per tensor
    if setup.weights == "dummy" and setup.precision in LAYOUTS:
        layout = LAYOUTS[setup.precision](setup.quantize)
        return {"json_model_override_args": json.dumps({"quantization_config": layout})}
    raise Unsupported(f"SGLang cannot convert weights to {setup.precision}: give --checkpoint {setup.precision}=PATH")


def _fp8_block(scope: str) -> dict[str, Any]:
    """What the makers of FP8 models write into config.json."""
    kept = ["lm_head", "mlp.gate", *(["self_attn"] if scope == "experts" else [])]
    dynamic = {"quant_method": "fp8", "activation_scheme": "dynamic"}
    return {**dynamic, "weight_block_size": [128, 128], "modules_to_not_convert": kept}


def _modelopt_nvfp4(scope: str) -> dict[str, Any]:
    """What ModelOpt writes into config.json."""
    ignore = ["lm_head", "*mlp.gate", *(["*self_attn*"] if scope == "experts" else [])]
    return {"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16, "ignore": ignore}


LAYOUTS = {"fp8_block": _fp8_block, "nvfp4": _modelopt_nvfp4}
