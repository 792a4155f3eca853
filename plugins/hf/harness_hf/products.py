"""BF16 products on a CPU that has no BF16 instructions: there FP32 ones are three times as fast and no less exact.

Every value stays BF16: operands are widened, which loses nothing, and each result is rounded once. Only the order of
the sums differs, as between any two kernels.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from harness import device
from harness_hf import BF16_INSTRUCTIONS

ROWS = 16  # of a product; with fewer, widening the weights costs more than it saves


def widened() -> AbstractContextManager:
    """A context in which products of BF16 tensors are taken in FP32, where that pays; else one that does nothing."""
    here = device.detect()
    is_slow = here.kind == "cpu" and not BF16_INSTRUCTIONS.intersection(here.flags)
    return Widened() if is_slow else nullcontext()


class Widened(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is functional.linear and _pays(args[0]):
            return _linear(*args, **kwargs)
        if function is torch._grouped_mm and _pays(args[0]) and kwargs.get("bias") is None:
            return _grouped(*args, kwargs["offs"])
        return function(*args, **kwargs)


def _pays(operand: torch.Tensor) -> bool:
    return operand.dtype == torch.bfloat16 and operand.numel() >= ROWS * operand.shape[-1]


def _linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    return functional.linear(input.float(), weight.float(), None if bias is None else bias.float()).bfloat16()


def _grouped(rows_SI: torch.Tensor, weights_EIO: torch.Tensor, offs: torch.Tensor) -> torch.Tensor:
    """Rows up to offs[e] meet the weights of expert e."""
    out_SO = rows_SI.new_empty(rows_SI.shape[0], weights_EIO.shape[-1])
    start = 0
    for expert, end in enumerate(offs.tolist()):
        out_SO[start:end] = (rows_SI[start:end].float() @ weights_EIO[expert].float()).bfloat16()
        start = end
    return out_SO
