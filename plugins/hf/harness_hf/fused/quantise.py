"""Expert weights as E4M3 with FP32 scales, as harness_hf.formats has them: of a matrix, or of 128 x 128 blocks."""

from __future__ import annotations

import torch

from harness_hf.fp8 import quantised_matrices
from harness_hf.fused.experts import Matrices


@torch.no_grad()
def quantised(weight_EOI: torch.Tensor, bias_EO: torch.Tensor | None, precision: str) -> Matrices:
    """The weights as they are, or a copy in `precision`, "fp8" or "fp8_block", one expert at a time."""
    if precision not in ("fp8", "fp8_block"):
        return Matrices(weight_EOI, bias_EO)
    small_EOI, scale = quantised_matrices(weight_EOI, precision)
    return Matrices(small_EOI, bias_EO, scale)
