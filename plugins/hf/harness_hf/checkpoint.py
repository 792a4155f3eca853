"""Opens a model: safetensors only, nothing missing, no code from its repository unless asked; or random weights."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from harness import LoadFailed, Setup
from harness.provenance import PLAIN
from harness_hf.rungs import Asked

EXPERTS = "grouped_mm"  # one product per layer; the fastest of transformers' on a CPU and for prefill on a GPU


def open_model(setup: Setup, device: torch.device, rungs: Asked) -> PreTrainedModel:
    """The model on `device`, in FP32 if that is the precision, else in BF16, ready for inference.

    Raises LoadFailed, or what transformers raises."""
    config = AutoConfig.from_pretrained(setup.source, trust_remote_code=setup.trust_remote_code)
    if quantised := getattr(config, "quantization_config", None):
        method = (
            quantised.get("quant_method") if isinstance(quantised, dict) else getattr(quantised, "quant_method", "?")
        )
        raise LoadFailed(
            f"{setup.source} is quantised already ({method}); the hf engine takes BF16 checkpoints and quantises them itself"
        )
    config._experts_implementation = _experts_implementation(setup, rungs)
    make = _random if setup.weights == "dummy" else _stored
    if "sdpa" not in rungs.on:
        return make(config, setup, device, attn_implementation="eager").eval()
    return make(config, setup, device).eval()  # transformers' choice: SDPA where the model has it


def _dtype(setup: Setup) -> torch.dtype:
    return torch.float32 if setup.precision == "fp32" else torch.bfloat16


def _experts_implementation(setup: Setup, rungs: Asked) -> str:
    if setup.moe_backend == "auto":  # an emulated product needs an implementation that shows both inputs
        return EXPERTS if "grouped_experts" in rungs.on or setup.precision not in PLAIN else "eager"
    known = ("eager", *ALL_EXPERTS_FUNCTIONS.valid_keys())
    if setup.moe_backend not in known:
        raise LoadFailed(f"transformers has no experts implementation {setup.moe_backend!r}; it has {', '.join(known)}")
    if setup.moe_backend == "eager" and setup.precision not in PLAIN:
        raise LoadFailed("the eager experts hide the input of their second product, so it cannot be converted")
    return setup.moe_backend


def _stored(config: Any, setup: Setup, device: torch.device, **attention: str) -> PreTrainedModel:
    model, info = AutoModelForCausalLM.from_pretrained(
        setup.source,
        config=config,
        dtype=_dtype(setup),
        use_safetensors=True,  # never a pickle
        trust_remote_code=setup.trust_remote_code,
        output_loading_info=True,
        **attention,
    )
    for problem in ("missing_keys", "mismatched_keys", "error_msgs"):  # transformers fills holes with random numbers
        if found := info.get(problem):
            words = ", ".join(map(str, sorted(found, key=str)[:3]))
            raise LoadFailed(
                f"{setup.source} is no whole checkpoint: {len(found)} {problem.replace('_', ' ')}, such as {words}"
            )
    return model.to(device)


def _random(config: Any, setup: Setup, device: torch.device, **attention: str) -> PreTrainedModel:
    """Weights as the model's own initialiser draws them, on the device itself, from the seed."""
    torch.manual_seed(setup.seed)
    with device:
        return AutoModelForCausalLM.from_config(
            config, dtype=_dtype(setup), trust_remote_code=setup.trust_remote_code, **attention
        )
