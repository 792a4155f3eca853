"""The decode step of a MoE model in a few Triton kernels a layer, held by one CUDA graph. No Triton until asked."""

from __future__ import annotations

import importlib.util
from typing import Any

MODELS = ("qwen3_moe", "mixtral", "gpt_oss")
PRECISIONS = ("fp32", "bf16", "fp8", "fp8_block")


def supports(config: Any, precision: str) -> str | None:
    """Why a model of `config` cannot be decoded by the fused step at `precision`, or None."""
    config = config.get_text_config()
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if config.model_type not in MODELS:
        return f"no fused step for {config.model_type}; there is one for {', '.join(MODELS)}"
    if precision not in PRECISIONS:
        return f"no fused kernels for {precision}; there are for {', '.join(PRECISIONS)}"
    hidden, inner = config.hidden_size, _inner(config)
    head = getattr(config, "head_dim", None) or hidden // config.num_attention_heads
    step = 128 if precision == "fp8_block" else 32
    if hidden % step or inner % step:
        return f"hidden width {hidden} and expert width {inner} are not both multiples of {step}"
    if head < 32 or head & (head - 1):
        return f"head width {head} is no power of two from 32 on"
    if getattr(config, "mlp_only_layers", None) or getattr(config, "decoder_sparse_step", 1) != 1:
        return "some layers have no experts"
    if getattr(config, "hidden_act", "silu") != "silu":
        return f"the experts' activation is {config.hidden_act}, the kernel has silu"
    return None


def _inner(config: Any) -> int:
    return getattr(config, "moe_intermediate_size", None) or config.intermediate_size
