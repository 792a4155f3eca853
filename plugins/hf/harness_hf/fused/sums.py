"""Outputs of one expert for a few rows, in BF16, FP32 or E4M3: what kernels of harness_hf.fused.experts have in common.

Scaling, as of harness_hf.fused.experts.Matrices: 0 none, 1 of a tensor, 2 of blocks.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def sums(
    x_ptr, row_T, is_row_T, weight_ptr, bias_ptr, scale_ptr, amax_ptr, expert, o,
    OUTS: tl.constexpr, WIDTH: tl.constexpr,
    STRIDE_E: tl.constexpr, STRIDE_O: tl.constexpr, STRIDE_I: tl.constexpr,
    HAS_BIAS: tl.constexpr, SCALING: tl.constexpr, TILE_T: tl.constexpr, TILE_O: tl.constexpr, TILE_I: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """[TILE_O, TILE_T] FP32: outputs `o` of one expert for rows `row_T` of x. One row is summed at the end only.

    `amax`: the largest absolute values of x, of all of it or of each 128 values of a row."""
    i = tl.arange(0, TILE_I)
    rows = weight_ptr + expert.to(tl.int64) * STRIDE_E + o[:, None] * STRIDE_O + i[None, :] * STRIDE_I
    if SCALING == 1:
        scale = _scale(tl.load(amax_ptr))
    if SCALING == 2:
        blocks = scale_ptr + (expert * (OUTS // 128) + o // 128) * (WIDTH // 128)
        amaxes = amax_ptr + row_T * (WIDTH // 128)
    if TILE_T == 1:
        columns = x_ptr + row_T[:, None] * WIDTH + i[None, :]
        sums_OI = tl.zeros((TILE_O, TILE_I), tl.float32)
        for start in tl.range(0, WIDTH, TILE_I, num_stages=3):
            if WIDTH % TILE_I == 0:
                weight_OI = tl.load(rows + start * STRIDE_I)
                x_TI = tl.load(columns + start).to(tl.float32)
            else:
                is_in_1I = (start + i < WIDTH)[None, :]
                weight_OI = tl.load(rows + start * STRIDE_I, mask=is_in_1I, other=0.0)
                x_TI = tl.load(columns + start, mask=is_in_1I, other=0.0).to(tl.float32)
            if SCALING == 1:
                x_TI = _e4m3(x_TI, scale).to(tl.float32)
            if SCALING == 2:
                scale_T1 = _scale(tl.load(amaxes + start // 128))[:, None]
                x_TI = _e4m3(x_TI, scale_T1).to(tl.float32) * (scale_T1 * tl.load(blocks + start // 128)[:, None])
            sums_OI += weight_OI.to(tl.float32) * x_TI
        sums_OT = tl.sum(sums_OI, axis=1)[:, None]
    else:
        columns = x_ptr + row_T[None, :] * WIDTH + i[:, None]
        sums_OT = tl.zeros((TILE_O, TILE_T), tl.float32)
        for start in tl.range(0, WIDTH, TILE_I, num_stages=3):
            weight_OI = tl.load(rows + start * STRIDE_I)
            x_IT = tl.load(columns + start, mask=is_row_T[None, :], other=0.0)
            if SCALING == 0:
                sums_OT = tl.dot(weight_OI, x_IT, sums_OT, input_precision="ieee")
            elif SCALING == 1:
                sums_OT += tl.dot(weight_OI, _e4m3(x_IT.to(tl.float32), scale))
            else:
                scale_1T = _scale(tl.load(amaxes + start // 128, mask=is_row_T, other=0.0))[None, :]
                part_OT = tl.dot(weight_OI, _e4m3(x_IT.to(tl.float32), scale_1T))
                sums_OT += part_OT * (tl.load(blocks + start // 128)[:, None] * scale_1T)
    if SCALING == 1:
        sums_OT *= tl.load(scale_ptr + expert) * scale
    if HAS_BIAS:
        sums_OT += tl.load(bias_ptr + expert * OUTS + o).to(tl.float32)[:, None]
    return sums_OT


@triton.jit
def _scale(amax) -> tl.tensor:
    """That brings amax to the largest value of E4M3; 1 where all are zero."""
    return tl.where(amax == 0.0, 1.0, amax / 448.0)


@triton.jit
def _e4m3(x, scale) -> tl.tensor:
    return tl.clamp(x / scale, -448.0, 448.0).to(tl.float8e4nv)
