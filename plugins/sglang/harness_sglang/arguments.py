"""From a load to the arguments of `sglang.Engine`. What SGLang would refuse late, or do silently, is refused here."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from harness import Load, LoadFailed, Setup, Unsupported
from harness.provenance import PLAIN
from harness.weights import config_of
from harness_sglang import journal

ONLINE = {"fp8": "fp8"}  # SGLang converts while it loads: experts per tensor
ROOM = 8  # tokens: SGLang refuses prompts, and shortens answers, that come within 7 of its context length
FP8_BLOCK = 128
# What is measured would mean something else without these. Other arguments are left out where a version lacks them.
NEEDED = {"model_path", "skip_tokenizer_init", "disable_radix_cache", "context_length", "dtype", "load_format"}


def arguments(load: Load, known: Collection[str]) -> dict[str, Any]:
    """Keyword arguments of `sglang.Engine`, none but the `known`, which are the installed version's.

    Raises Unsupported for what SGLang cannot be asked to do, LoadFailed for sequences the model does not hold."""
    setup = load.setup
    config = config_of(setup.source) or {}
    _check(setup, config)
    room = config.get("max_position_embeddings")
    if room and load.max_sequence > room:
        raise LoadFailed(f"a cell needs sequences of {load.max_sequence} tokens, {setup.model} holds {room}")
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
        **_weights(setup, config),
    }
    lacking = sorted((NEEDED | _asked_for(setup)) & (chosen.keys() - set(known)))
    if lacking:
        raise Unsupported(f"this SGLang has no {', '.join(lacking)}: versions 0.5.13 to 0.5.23 have")
    return {name: value for name, value in chosen.items() if name in known}


def environment(setup: Setup) -> dict[str, str]:
    """Variables SGLang reads for what no argument says."""
    chosen = {"SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN": "1"}  # ROOM may exceed the model's; positions never do
    if setup.precision == "fp8" and setup.quantize == "experts" and not setup.checkpoint:
        chosen["SGLANG_FP8_IGNORED_LAYERS"] = "self_attn"
    return chosen


def _asked_for(setup: Setup) -> set[str]:
    """Arguments that carry what the user asked for: leaving one out would run something else."""
    asked = {"tp_size": setup.tp > 1, "ep_size": setup.ep > 1, "moe_runner_backend": setup.moe_backend != "auto"}
    return {"quantization", "json_model_override_args"} | {name for name, is_asked in asked.items() if is_asked}


def _check(setup: Setup, config: Mapping[str, Any]) -> None:
    """SGLang's own rules of division, which it states only after the weights are read, or not at all."""
    if setup.tp % setup.ep:
        raise Unsupported(f"expert parallelism {setup.ep} must divide tensor parallelism {setup.tp}")
    heads, experts = config.get("num_attention_heads"), config.get("num_experts") or config.get("num_local_experts")
    width, slices = config.get("moe_intermediate_size"), setup.tp // setup.ep
    if heads and heads % setup.tp:
        raise Unsupported(f"{heads} attention heads cannot be split over {setup.tp} ranks (--tp)")
    if experts and experts % setup.ep:
        raise Unsupported(f"{experts} experts cannot be split over {setup.ep} ranks (--ep)")
    if width and width % slices:
        raise Unsupported(f"experts of width {width} cannot be split over {slices} ranks (--tp / --ep)")
    if width and setup.precision == "fp8_block" and width // slices % FP8_BLOCK:
        raise Unsupported(
            f"experts of width {width} over {slices} ranks (--tp / --ep) leave {width // slices} columns, "
            f"which FP8 blocks of {FP8_BLOCK} do not divide; a larger --ep may"
        )


def _weights(setup: Setup, config: Mapping[str, Any]) -> dict[str, Any]:
    """How weights become `setup.precision`: stored so, converted by SGLang while it loads, or random in the layout of
    a checkpoint that has that precision."""
    if setup.precision in PLAIN or setup.checkpoint or config.get("quantization_config"):
        return {}
    if setup.precision in ONLINE:
        return {"quantization": ONLINE[setup.precision]}
    if setup.weights == "dummy" and setup.precision in LAYOUTS:
        layout = LAYOUTS[setup.precision](setup.quantize)
        return {"json_model_override_args": json.dumps({"quantization_config": layout})}
    raise Unsupported(f"SGLang cannot convert weights to {setup.precision}: give --checkpoint {setup.precision}=PATH")


def _fp8_block(scope: str) -> dict[str, Any]:
    """What the makers of FP8 models write into config.json."""
    kept = ["lm_head", "mlp.gate", *(["self_attn"] if scope == "experts" else [])]
    block = [FP8_BLOCK, FP8_BLOCK]
    dynamic = {"quant_method": "fp8", "activation_scheme": "dynamic"}
    return {**dynamic, "weight_block_size": block, "modules_to_not_convert": kept}


def _modelopt_nvfp4(scope: str) -> dict[str, Any]:
    """What ModelOpt writes into config.json."""
    ignore = ["lm_head", "*mlp.gate", *(["*self_attn*"] if scope == "experts" else [])]
    return {"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16, "ignore": ignore}


LAYOUTS = {"fp8_block": _fp8_block, "nvfp4": _modelopt_nvfp4}
