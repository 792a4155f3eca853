"""What the layers of the live model are, in the words of harness.provenance."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from harness.precision import EMULATED, NATIVE
from harness.provenance import joined, kind_of

SCALED = {
    "fp8": "a scale per tensor, activations' taken anew",
    "fp8_block": "a scale per 128 x 128, activations' per 1 x 128, taken anew",
}
EMULATION = "emulated: values pass through the format"
SHORT = {torch.bfloat16: "bf16", torch.float32: "fp32", torch.float16: "fp16"}


def described(model: PreTrainedModel) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every layer that multiplies by weights; a converted one says so (harness_hf.emulate)."""
    for name, module in model.named_modules():
        weights = [parameter for _, parameter in module.named_parameters(recurse=False) if parameter.ndim > 1]
        if not weights:
            continue
        kind, native = kind_of(name), getattr(module, "native_as", None)
        precision = native or getattr(module, "emulated_as", None)
        backend = model.config._experts_implementation if kind == "experts" else None
        yield (
            name,
            {
                "kind": kind,
                "module": type(module).__name__,
                "quant_method": SCALED[native] if native else precision and EMULATION,
                "backend": backend,
                "kernel": _function(module, backend),
                "format": precision or joined(SHORT.get(weight.dtype, str(weight.dtype)) for weight in weights),
                "activations": precision or "as weights",
                "weight_dtypes": joined(dtype_name(weight.dtype) for weight in weights),
                "compute_mode": EMULATED if precision and not native else NATIVE,
            },
        )


def _function(module: nn.Module, backend: str | None) -> str | None:
    if multiplied_by := getattr(module, "multiplied_by", None):
        return multiplied_by
    if backend in ALL_EXPERTS_FUNCTIONS.valid_keys():
        return ALL_EXPERTS_FUNCTIONS[backend].__name__
    if isinstance(module, nn.Embedding):
        return "torch.nn.functional.embedding"
    return "torch.nn.functional.linear" if isinstance(module, nn.Linear) else None


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
