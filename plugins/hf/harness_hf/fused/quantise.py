"""Expert weights as E4M3 with FP32 scales, as harness_hf.formats has them: of a matrix, or of 128 x 128 blocks."""

from __future__ import annotations

import torch

from harness_hf.fused.experts import BLOCK_SIZE, Matrices

HIGHEST = 448.0  # of E4M3


@torch.no_grad()
def quantised(weight_EOI: torch.Tensor, bias_EO: torch.Tensor | None, precision: str) -> Matrices:
    """The weights as they are, or a copy in `precision`, "fp8" or "fp8_block", one expert at a time."""
    if precision not in ("fp8", "fp8_block"):
        return Matrices(weight_EOI, bias_EO)
    size = BLOCK_SIZE if precision == "fp8_block" else None
    made = [_quantised(weight_OI, size) for weight_OI in weight_EOI]
    return Matrices(torch.stack([values for values, _ in made]), bias_EO, torch.stack([scale for _, scale in made]))


def _quantised(weight_OI: torch.Tensor, size: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    rows, columns = (size, size) if size else weight_OI.shape
    blocks = weight_OI.float().unflatten(1, (-1, columns)).unflatten(0, (-1, rows))  # [blocks, rows, blocks, columns]
    scale = blocks.abs().amax((1, 3)) / HIGHEST
    scale = torch.where(scale == 0, 1.0, scale)
    values = (blocks / scale[:, None, :, None]).clamp(-HIGHEST, HIGHEST).to(torch.float8_e4m3fn)
    return values.flatten(2, 3).flatten(0, 1), scale if size else scale[0, 0]
