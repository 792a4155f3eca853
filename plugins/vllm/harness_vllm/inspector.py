"""Looks at the loaded model from inside vLLM's worker, where the layers are, and reports what they really are.

vLLM mixes `Inspector` into its worker class (`worker_extension_cls`) and calls it by name, so no function is pickled.
Names of attributes differ between versions (0.24 to 0.33), so they are looked for, and None is said when not found.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import Enum
from typing import Any

import torch

from harness.precision import EMULATED, NATIVE, WEIGHT_ONLY
from harness.profilers.ranges import MARKS, modules_marked
from harness.provenance import group, joined, kind_of
from harness_vllm import journal

journal.attach()  # imported before the model is loaded, in the process that loads it

SHORT = {"bfloat16": "bf16", "float32": "fp32", "float16": "fp16"}
UNQUANTISED = "as weights"
# Kernels that take 16-bit activations whatever the quantisation config says. CPUExpertsFp8 is W8A16 by its own words.
WEIGHT_ONLY_KERNELS = re.compile(r"marlin|w\d+a16|wna16|^CPUExpertsFp8$", re.IGNORECASE)
EMULATIONS = re.compile(r"emulation", re.IGNORECASE)


class Inspector:
    """Methods of vLLM's worker; the prefix keeps them apart from its own."""

    def harness_look(self) -> dict[str, Any]:
        """Plain data: `layers` (see harness.provenance), `attention`, `config` and the process's own torch."""
        model = self.get_model()
        return {
            "layers": group(_described(model)),
            "attention": _attention(model),
            "config": _config(self.vllm_config),
            "threads": torch.get_num_threads(),
            "torch": str(torch.__version__),
            "cuda": torch.version.cuda,
        }

    def harness_mark(self, profiler: str) -> None:
        """Modules run in ranges of their names, where the engine runs them eagerly."""
        self._harness_marks = modules_marked(self.get_model(), MARKS[profiler])
        self._harness_marks.__enter__()

    def harness_unmark(self) -> None:
        self._harness_marks.__exit__(None, None, None)


def _described(model: torch.nn.Module) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, module in model.named_modules():
        method = getattr(module, "quant_method", None)
        stored = [parameter for word, parameter in module.named_parameters(recurse=False) if "weight" in word]
        if method is None or not stored:
            continue
        format, activations = _formats(module, method)
        backend, kernel = _backend(method), _kernel(module, method)
        yield (
            name,
            {
                "kind": kind_of(name),
                "module": type(module).__name__,
                "quant_method": type(method).__name__,
                "backend": backend,
                "kernel": kernel,
                "format": format,
                "activations": activations,
                "weight_dtypes": joined(_name(parameter.dtype) for parameter in stored),
                "compute_mode": _mode(activations, backend or "", kernel or "", type(method).__name__),
            },
        )


def _mode(activations: str | None, *names: str) -> str:
    if any(EMULATIONS.search(name) for name in names):
        return EMULATED
    if (
        activations == "16 bit"
        or activations != UNQUANTISED
        and any(WEIGHT_ONLY_KERNELS.search(name) for name in names)
    ):
        return WEIGHT_ONLY
    return NATIVE


def _backend(method: Any) -> str | None:
    """`TRITON`, `MARLIN`...: vLLM keeps it beside the quantisation method as `<format>_backend`."""
    values = (value for name, value in vars(method).items() if name.endswith("_backend") and isinstance(value, Enum))
    return next((value.name for value in values), None)


def _kernel(module: torch.nn.Module, method: Any) -> str | None:
    """Class that multiplies: of experts the one inside the MoE kernel, of a linear layer its kernel or GEMM."""
    experts = getattr(getattr(method, "moe_kernel", None), "fused_experts", None)
    if experts is not None:
        return type(experts).__name__
    for owner in (method, getattr(module, "scheme", None)):
        for name in ("kernel", "fp8_linear"):
            if (kernel := getattr(owner, name, None)) is not None:
                return type(kernel).__name__
    return getattr(getattr(method, "_gemm_impl", None), "__name__", None)


def _formats(module: torch.nn.Module, method: Any) -> tuple[str | None, str | None]:
    """Number format of weights and of activations as they are multiplied, e.g. ("nvfp4", "16 bit")."""
    if type(method).__name__.startswith("Unquantized"):
        dtypes = {parameter.dtype for word, parameter in module.named_parameters(recurse=False) if "weight" in word}
        return joined(SHORT.get(_name(dtype), _name(dtype)) for dtype in dtypes), UNQUANTISED
    config = getattr(method, "moe_quant_config", None)
    weight = getattr(config, "_w1", None)
    if weight is not None and weight.dtype is not None:
        activations = config.quant_dtype
        return _quantised(weight.dtype, weight.shape), "16 bit" if activations is None else _quantised(
            activations, None
        )
    return _linear_format(module, method), None


def _linear_format(module: torch.nn.Module, method: Any) -> str | None:
    """By the name of the method: a linear layer keeps no description of its format."""
    name = type(getattr(module, "scheme", None) or method).__name__.lower()
    for word in ("nvfp4", "mxfp4"):
        if word in name:
            return word
    if "fp8" in name:
        return "fp8_block" if "block" in name or getattr(method, "block_quant", False) else "fp8"
    return None


def _quantised(dtype: Any, shape: Any) -> str:
    if not isinstance(dtype, torch.dtype):
        return str(dtype)  # vLLM's own words: nvfp4, mxfp4, int4
    if not _name(dtype).startswith("float8_e4m3"):
        return _name(dtype)
    row, column = getattr(shape, "row", -1), getattr(shape, "col", -1)
    if row > 1 and column > 1:
        return "fp8_block" if (row, column) == (128, 128) else f"fp8 {row} x {column}"
    return "fp8" if (row, column) == (-1, -1) else "fp8 per channel"


def _attention(model: torch.nn.Module) -> dict[str, Any]:
    found = [module for module in model.modules() if hasattr(module, "attn_backend") and hasattr(module, "impl")]
    return {
        "backend": joined(module.attn_backend.get_name() for module in found),
        "kernel": joined(type(module.impl).__name__ for module in found),
        "kv_dtype": joined(_name(cache.dtype) for module in found if (cache := _cache(module)) is not None),
    }


def _cache(module: torch.nn.Module) -> torch.Tensor | None:
    cache = getattr(module, "kv_cache", None)
    cache = cache[0] if isinstance(cache, (list, tuple)) and cache else cache
    return cache if isinstance(cache, torch.Tensor) and cache.numel() else None


def _config(config: Any) -> dict[str, Any]:
    """The configuration as the running engine has it: vLLM changes what it was given until the model runs."""
    compilation, scheduler, cache = config.compilation_config, config.scheduler_config, config.cache_config
    speculative = config.speculative_config
    return {
        "quantization": getattr(config.model_config, "quantization", None),
        "prefix_cache": getattr(cache, "enable_prefix_caching", None),
        "compile_mode": _word(getattr(compilation, "mode", None)),
        "cudagraph_mode": _word(getattr(compilation, "cudagraph_mode", None)),
        "chunked_prefill": getattr(scheduler, "enable_chunked_prefill", None),
        "max_num_batched_tokens": getattr(scheduler, "max_num_batched_tokens", None),
        "max_num_seqs": getattr(scheduler, "max_num_seqs", None),
        "async_scheduling": getattr(scheduler, "async_scheduling", None),
        "kv_blocks": getattr(cache, "num_gpu_blocks", None),
        "kv_block_size": getattr(cache, "block_size", None),
        "speculative_decoding": "off" if speculative is None else str(getattr(speculative, "method", "on")),
    }


def _word(value: Any) -> str | None:
    return value.name if isinstance(value, Enum) else None if value is None else str(value)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
