"""Describes the loaded model and its scheduler as plain data, inside SGLang's scheduler process.

Names of attributes differ between versions (0.5.13 to 0.5.23), so they are looked for, and None is said when not found.
The MoE runner is read layer by layer: the argument may stay "auto", the layers cannot.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch

from harness.precision import NATIVE, WEIGHT_ONLY
from harness.provenance import group, joined, kind_of

SHORT = {"bfloat16": "bf16", "float32": "fp32", "float16": "fp16"}
UNQUANTISED = "as weights"
# Kernels that take 16-bit activations whatever the checkpoint is called.
WEIGHT_ONLY_KERNELS = re.compile(r"marlin|w\d+a16|wna16", re.IGNORECASE)
MARLIN_ALONE = "workspace"  # of a layer: what makes it ready for Marlin leaves this, of methods of any name
TAKES_BF16 = {("mxfp4", "triton_kernel"), ("mxfp4", "triton")}  # format of the weights and runner


def look(scheduler: Any) -> dict[str, Any]:
    """`layers` (see harness.provenance), `attention`, `config` and the process's own torch."""
    runner = scheduler.tp_worker.model_runner
    return {
        "layers": group(_described(runner.model)),
        "attention": {
            "backend": _resolved(scheduler).get("attention_backend"),
            "kernel": type(runner.attn_backend).__name__ if hasattr(runner, "attn_backend") else None,
            "kv_dtype": _name(runner.kv_cache_dtype) if hasattr(runner, "kv_cache_dtype") else None,
        },
        "config": _config(scheduler, runner),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
    }


def _described(model: torch.nn.Module) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, module in model.named_modules():
        method = getattr(module, "quant_method", None)
        stored = {word: value for word, value in module.named_parameters(recurse=False) if "weight" in word}
        weights = [value for word, value in stored.items() if "scale" not in word]
        if method is None or not weights:
            continue
        scheme = getattr(module, "scheme", None)
        names = [type(owner).__name__ for owner in (method, scheme) if owner is not None]
        backend, kernel = _runner(method, scheme)
        format = _format(names, method, stored)
        mode = _mode(format, backend, names, module)
        yield (
            name,
            {
                "kind": kind_of(name),
                "module": type(module).__name__,
                "quant_method": " ".join(names),
                "backend": backend,
                "kernel": kernel,
                "format": format,
                "activations": UNQUANTISED if _is_plain(method) else "16 bit" if mode == WEIGHT_ONLY else None,
                "weight_dtypes": joined(_name(value.dtype) for value in weights),
                "compute_mode": mode,
            },
        )


def _runner(*owners: Any) -> tuple[str | None, str | None]:
    """The MoE runner of a layer (`triton`, `marlin`, ...) and what multiplies: its fused function, or else its core.
    "auto" is no answer."""
    for owner in owners:
        runner = getattr(owner, "runner", None)
        backend = getattr(runner, "runner_backend", None) or getattr(owner, "_moe_runner_backend", None)
        word = getattr(backend, "value", None)
        if word and word != "auto":
            fused, core = getattr(runner, "fused_func", None), getattr(runner, "runner_core", None)
            return word, getattr(fused, "__name__", None) or (None if core is None else type(core).__name__)
    return None, None


def _mode(format: str | None, backend: str | None, names: list[str], module: torch.nn.Module) -> str:
    is_marlin = any(WEIGHT_ONLY_KERNELS.search(word) for word in (*names, backend or ""))
    if is_marlin or hasattr(module, MARLIN_ALONE) or (format, backend) in TAKES_BF16:
        return WEIGHT_ONLY
    return NATIVE


def _is_plain(method: Any) -> bool:
    return type(method).__name__.startswith("Unquantized")


def _format(names: list[str], method: Any, stored: dict[str, torch.Tensor]) -> str | None:
    """Number format of the weights as they are multiplied, by the method's name, its blocks and its scales."""
    if _is_plain(method):
        return joined(SHORT.get(_name(value.dtype), _name(value.dtype)) for value in stored.values())
    words = " ".join(names).lower()
    if "mxfp4" in words:
        return "mxfp4"
    if "nvfp4" in words or "modeloptfp4" in words:
        return "nvfp4"
    if "mxfp8" in words or getattr(method, "use_mxfp8", False):
        return "mxfp8"
    return _fp8(method, stored) if "fp8" in words else None


def _fp8(method: Any, stored: dict[str, torch.Tensor]) -> str | None:
    if block := getattr(getattr(method, "quant_config", None), "weight_block_size", None):
        return "fp8_block" if list(block) == [128, 128] else f"fp8 {block[0]} x {block[1]}"
    for word, scale in stored.items():
        if word.endswith("weight_scale"):
            weight = stored[word.removesuffix("_scale")]
            matrices = weight.shape[0] if weight.ndim == 3 else 1
            return "fp8" if scale.numel() <= 3 * matrices else "fp8 per channel"  # q, k and v may have one each
    return None


def _config(scheduler: Any, runner: Any) -> dict[str, Any]:
    """The configuration as the running engine has it."""
    resolved = _resolved(scheduler)
    chunk, limit = resolved.get("chunked_prefill_size"), resolved.get("max_prefill_tokens")
    speculative = resolved.get("speculative_algorithm", "")
    has_no_cache = resolved.get("disable_radix_cache")
    compiles = resolved.get("enable_torch_compile")
    return {
        "quantization": resolved.get("quantization"),
        "moe_backend_argument": resolved.get("moe_runner_backend"),
        "prefix_cache": None if has_no_cache is None else not has_no_cache,
        "prefix_cache_kind": type(scheduler.tree_cache).__name__ if hasattr(scheduler, "tree_cache") else None,
        "compile_mode": None if compiles is None else "torch.compile" if compiles else "none",
        **_graphs(runner),
        "chunked_prefill": None if chunk is None else chunk > 0,
        "max_num_batched_tokens": chunk if chunk and chunk > 0 else limit,
        "max_num_seqs": getattr(scheduler, "max_running_requests", None),
        "kv_tokens": getattr(scheduler, "max_total_num_tokens", None),
        "overlap_scheduling": getattr(scheduler, "enable_overlap", None),
        "speculative_decoding": None if speculative == "" else "off" if speculative is None else str(speculative),
    }


def _graphs(runner: Any) -> dict[str, Any]:
    """Which steps replay CUDA graphs: a runner that captured batch sizes holds graphs, an eager one has none."""
    decode = next((name for name in ("decode_cuda_graph_runner", "graph_runner") if hasattr(runner, name)), None)
    if decode is None:
        return {"cudagraph_mode": None, "cudagraph_largest_batch": None}
    captured = {"decode": getattr(getattr(runner, decode), "capture_bs", None)}
    for name in ("prefill_cuda_graph_runner", "piecewise_cuda_graph_runner"):
        prefill = getattr(runner, name, None)
        captured["prefill"] = captured.get("prefill") or getattr(prefill, "capture_num_tokens", None)
    steps = [step for step, sizes in captured.items() if sizes]
    largest = max(captured["decode"]) if captured["decode"] else 0
    return {"cudagraph_mode": ", ".join(steps) or "none", "cudagraph_largest_batch": largest}


def _resolved(scheduler: Any) -> dict[str, Any]:
    """The server arguments after SGLang resolved them: later versions keep the resolution beside what was given."""
    given = scheduler.server_args
    return given.resolved_dict() if hasattr(given, "resolved_dict") else vars(given)


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
