"""Looks at a loaded model where it lives in this process, and reports what its layers really are.

Of private places of TensorRT-LLM only those named here are read; None is said where one is not found.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from harness.precision import NATIVE, WEIGHT_ONLY
from harness.provenance import group, joined, kind_of
from harness_trtllm.checkpoint import FORMATS

BACKENDS = {  # class that multiplies -> its name as an argument
    **{"CutlassFusedMoE": "CUTLASS", "TRTLLMGenFusedMoE": "TRTLLM", "DeepGemmFusedMoE": "DEEPGEMM"},
    **{"CuteDslFusedMoE": "CUTEDSL", "CuteDslB12xFusedMoE": "CUTEDSL", "WideEPMoE": "WIDEEP"},
    **{"TritonFusedMoE": "TRITON", "VanillaMoE": "VANILLA", "DenseGEMMFusedMoE": "DENSEGEMM"},
    **{"MarlinFusedMoE": "MARLIN", "MegaMoEDeepGemm": "MEGAMOE_DEEPGEMM", "MegaMoECuteDsl": "MEGAMOE_CUTEDSL"},
}
KV_DTYPES = {"FP8": "float8_e4m3fn", "INT8": "int8", "NVFP4": "nvfp4"}
SHORT = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


def live_model(llm: Any) -> torch.nn.Module | None:
    """The model of an LLM that runs in this process; None where it lives in another."""
    found = llm
    for name in ("_executor", "engine", "model_engine", "model"):
        if (found := getattr(found, name, None)) is None:
            return None
    return found


def look(model: torch.nn.Module) -> dict[str, Any]:
    """Plain data: `layers` (see harness.provenance), `layer_count`, `kv_dtype`, `attention_backend` and
    `moe_resolution`."""
    described = list(_described(model))
    numbers = {part for name, _ in described for part in name.split(".") if part.isdigit()}
    config = getattr(model, "model_config", None)
    return {
        "layers": group(described),
        "layer_count": len(numbers),
        "kv_dtype": _kv_dtype(config),
        "attention_backend": joined(
            type(module.attn).__name__ for name, module in model.named_modules() if hasattr(module, "attn")
        ),
        "moe_resolution": _resolution(config),
    }


def _described(model: torch.nn.Module) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, module in _layers(model):
        # what was wrapped, where experts are wrapped: the wrapper's own name tells nothing
        concrete = getattr(module, "backend", module) if kind_of(name) == "experts" else module
        named = {word: each for word, each in module.named_parameters() if "weight" in word and "scale" not in word}
        stored = [each for each in named.values() if each.ndim > 1]
        if not stored:
            continue
        kind, kernel = kind_of(name), type(concrete).__name__
        algorithm = _algorithm(concrete) or _algorithm(module)
        is_weight_only = "A16" in (algorithm or "") or kernel == "MarlinFusedMoE"
        is_plain = all(each.dtype in SHORT for each in stored)
        plain = joined(SHORT[each.dtype] for each in stored) if is_plain else None
        description = {
            "kind": kind,
            "module": type(module).__name__,
            "quant_method": None if plain else algorithm,
            "backend": BACKENDS.get(kernel) if kind == "experts" else None,
            "kernel": kernel,
            "format": plain or (FORMATS.get(algorithm, algorithm.lower()) if algorithm else None),
            "activations": "as weights" if plain else "16 bit" if is_weight_only else algorithm,
            "weight_dtypes": joined(str(each.dtype).removeprefix("torch.") for each in stored),
            "compute_mode": WEIGHT_ONLY if not plain and is_weight_only else NATIVE,
        }
        yield name, description


def _layers(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    """Modules with weights of their own, and each layer's experts as one module."""
    for name, module in model.named_modules():
        has_own = any(True for _ in module.parameters(recurse=False))
        if name.endswith(".experts") or has_own and ".experts." not in name:
            yield name, module


def _algorithm(module: Any) -> str | None:
    found = getattr(getattr(module, "quant_config", None), "quant_algo", None)
    return None if found is None or str(found) == "NO_QUANT" else str(found)


def _kv_dtype(config: Any) -> str | None:
    """Of keys and values: their own algorithm, else the type that attention computes in."""
    quant = getattr(config, "quant_config", None)
    if quant is None or not hasattr(quant, "kv_cache_quant_algo"):
        return None
    if (algorithm := quant.kv_cache_quant_algo) is not None:
        return KV_DTYPES.get(str(algorithm), str(algorithm))
    dtype = getattr(getattr(config, "pretrained_config", None), "torch_dtype", None)
    return None if dtype is None else str(dtype).removeprefix("torch.")


def _resolution(config: Any) -> dict[str, Any] | None:
    """What the engine's own resolver of MoE kernels says, in versions that have one."""
    try:
        from tensorrt_llm._torch.modules.fused_moe.moe_resolution import resolve_moe_impl
    except ImportError:
        return None
    try:
        report = resolve_moe_impl(config)
    except Exception as error:  # it is asked beside the layers; they have spoken already
        return {"error": f"{type(error).__name__}: {error}"}
    words = {name: getattr(report, name, None) for name in ("winner", "selected_by", "requested", "degraded_from")}
    return {name: getattr(value, "__name__", None) or value and str(value) for name, value in words.items()}
