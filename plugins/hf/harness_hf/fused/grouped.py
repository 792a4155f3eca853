"""Rows in E4M3, each times the matrix of its group, or all times one: Triton kernels, from SM 89 on.

S: rows, sorted by group, I: input width, O: output width, E: groups (experts). Scales are FP32: of a tensor, or of
blocks, rows by 1 x 128 and weights by 128 x 128. Products are summed in FP32 every 128 inputs or sooner, for the tensor
cores of SM 90 add up FP8 products with fewer bits (DeepSeek-V3, 2024, section 3.3.2, https://arxiv.org/abs/2412.19437).
Weights and their scales are contiguous; I is a multiple of 32, of blocks I and O of 128.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from harness_hf.fused.dense import sum_tile
from harness_hf.fused.experts import BLOCK_SIZE


@torch.library.custom_op("harness_hf::fp8_grouped_mm", mutates_args=())  # compiled code calls it as it is
def grouped(
    rows_SI: torch.Tensor,
    scale: torch.Tensor,
    weights_EOI: torch.Tensor,
    weight_scale: torch.Tensor,
    ends_E: torch.Tensor,
) -> torch.Tensor:
    """[S, O] BF16. Scales: [] and [E], or of blocks [S, I / 128] and [E, O / 128, I / 128]; `ends`: where each group's
    rows end, INT32. Nothing goes through the host: programs find their rows themselves, and a few find none."""
    (rows, width), (groups, outs, _) = rows_SI.shape, weights_EOI.shape
    is_block = weight_scale.ndim == 3
    tile_s, tile_o = _tiles(triton.cdiv(rows, groups))
    most = rows // tile_s + min(groups, rows)  # tiles of rows, however they are spread over groups
    out_SO = rows_SI.new_empty(rows, outs, dtype=torch.bfloat16)
    _fp8_grouped_mm[(triton.cdiv(outs, tile_o) * most,)](
        rows_SI.contiguous(), scale.contiguous(), weights_EOI, weight_scale, ends_E, out_SO, groups, width, outs,
        is_block, triton.next_power_of_2(groups), tile_s, tile_o, sum_tile(width, BLOCK_SIZE),
        num_warps=4, num_stages=4,
    )  # fmt: skip
    return out_SO


@torch.library.custom_op("harness_hf::fp8_scaled_mm", mutates_args=())
def single(
    rows_SI: torch.Tensor,
    scale: torch.Tensor,
    weight_OI: torch.Tensor,
    weight_scale: torch.Tensor,
    bias_O: torch.Tensor | None,
) -> torch.Tensor:
    """[S, O] BF16, of one matrix. Scales: none with a dimension, or of blocks [S, I / 128] and [O / 128, I / 128]."""
    rows, (outs, width) = len(rows_SI), weight_OI.shape
    is_block = weight_scale.ndim == 2
    tile_s, tile_o = _tiles(rows)
    out_SO = rows_SI.new_empty(rows, outs, dtype=torch.bfloat16)
    _fp8_scaled_mm[(triton.cdiv(outs, tile_o) * triton.cdiv(rows, tile_s),)](
        rows_SI.contiguous(), scale.contiguous(), weight_OI, weight_scale, bias_O, out_SO, rows, width, outs,
        is_block, bias_O is not None, tile_s, tile_o, sum_tile(width, BLOCK_SIZE),
        num_warps=4, num_stages=4,
    )  # fmt: skip
    return out_SO


@grouped.register_fake
@single.register_fake
def _like(
    rows_SI: torch.Tensor, scale: torch.Tensor, weights: torch.Tensor, weight_scale: torch.Tensor, last: object
) -> torch.Tensor:
    return rows_SI.new_empty(rows_SI.shape[0], weights.shape[-2], dtype=torch.bfloat16)


def _tiles(rows: int) -> tuple[int, int]:
    """Rows and outputs of a program: of few rows few outputs, for more programs. No more than 64 rows: in blocks two
    tiles of sums would not fit into registers, and per tensor more were no faster on an H200."""
    tile_s = min(64, max(16, triton.next_power_of_2(rows)))
    return (tile_s, 128) if tile_s > 32 else (tile_s, 64)


@triton.jit
def _fp8_grouped_mm(
    rows_ptr, scale_ptr, weights_ptr, weight_scale_ptr, ends_ptr, out_ptr, groups,
    WIDTH: tl.constexpr, OUTS: tl.constexpr, IS_BLOCK: tl.constexpr, TILE_E: tl.constexpr,
    TILE_S: tl.constexpr, TILE_O: tl.constexpr, TILE_I: tl.constexpr,
):  # fmt: skip
    """Program: a tile of rows of one group, a tile of outputs; these first, so that rows and weights stay in L2."""
    TILES_O: tl.constexpr = (OUTS + TILE_O - 1) // TILE_O
    tile, out_tile = tl.program_id(0) // TILES_O, tl.program_id(0) % TILES_O
    e = tl.arange(0, TILE_E)
    ends_E = tl.load(ends_ptr + e, mask=e < groups, other=0)
    starts_E = tl.load(ends_ptr + e - 1, mask=(e > 0) & (e < groups), other=0)
    tiles_E = (ends_E - starts_E + TILE_S - 1) // TILE_S
    until_E = tl.cumsum(tiles_E, axis=0)
    group = tl.sum((until_E <= tile).to(tl.int32), axis=0)  # TILE_E where there is no such tile
    if group < groups:
        is_it_E = e == group
        before = tl.sum(tl.where(is_it_E, until_E - tiles_E, 0), axis=0)
        first = tl.sum(tl.where(is_it_E, starts_E, 0), axis=0) + (tile - before) * TILE_S
        last = tl.sum(tl.where(is_it_E, ends_E, 0), axis=0)
        matrix = group.to(tl.int64)
        blocks = weight_scale_ptr + matrix
        if IS_BLOCK:
            blocks = weight_scale_ptr + matrix * (OUTS // 128) * (WIDTH // 128)
        _tile(
            rows_ptr, scale_ptr, weights_ptr + matrix * OUTS * WIDTH, blocks, None, out_ptr, first, last, out_tile,
            WIDTH, OUTS, IS_BLOCK, False, TILE_S, TILE_O, TILE_I,
        )  # fmt: skip


@triton.jit
def _fp8_scaled_mm(
    rows_ptr, scale_ptr, weight_ptr, weight_scale_ptr, bias_ptr, out_ptr, rows,
    WIDTH: tl.constexpr, OUTS: tl.constexpr, IS_BLOCK: tl.constexpr, HAS_BIAS: tl.constexpr,
    TILE_S: tl.constexpr, TILE_O: tl.constexpr, TILE_I: tl.constexpr,
):  # fmt: skip
    """Program: a tile of rows, a tile of outputs; these first."""
    TILES_O: tl.constexpr = (OUTS + TILE_O - 1) // TILE_O
    tile, out_tile = tl.program_id(0) // TILES_O, tl.program_id(0) % TILES_O
    _tile(
        rows_ptr, scale_ptr, weight_ptr, weight_scale_ptr, bias_ptr, out_ptr, tile * TILE_S, rows, out_tile,
        WIDTH, OUTS, IS_BLOCK, HAS_BIAS, TILE_S, TILE_O, TILE_I,
    )  # fmt: skip


@triton.jit
def _tile(
    rows_ptr, scale_ptr, weight_ptr, weight_scale_ptr, bias_ptr, out_ptr, first, last, out_tile,
    WIDTH: tl.constexpr, OUTS: tl.constexpr, IS_BLOCK: tl.constexpr, HAS_BIAS: tl.constexpr,
    TILE_S: tl.constexpr, TILE_O: tl.constexpr, TILE_I: tl.constexpr,
):  # fmt: skip
    """Outputs of the rows from `first` on, up to `last`. Weights are the tall operand, as wgmma wants it."""
    s = first + tl.arange(0, TILE_S)
    o = out_tile * TILE_O + tl.arange(0, TILE_O)
    i = tl.arange(0, TILE_I)
    row_S = tl.minimum(s, last - 1).to(tl.int64)  # there is something to read; it is not written
    out_O = tl.minimum(o, OUTS - 1)
    columns = rows_ptr + row_S[None, :] * WIDTH + i[:, None]
    weights = weight_ptr + out_O[:, None].to(tl.int64) * WIDTH + i[None, :]
    blocks = weight_scale_ptr + out_tile * TILE_O // 128 * (WIDTH // 128)
    sums_OS = tl.zeros((TILE_O, TILE_S), tl.float32)
    for start in tl.range(0, WIDTH, TILE_I):
        part_OS = tl.dot(tl.load(weights + start), tl.load(columns + start))
        if IS_BLOCK:
            scale_S = tl.load(scale_ptr + row_S * (WIDTH // 128) + start // 128)
            part_OS *= (scale_S * tl.load(blocks + start // 128))[None, :]
        sums_OS += part_OS
    if not IS_BLOCK:
        sums_OS *= tl.load(scale_ptr) * tl.load(weight_scale_ptr)
    if HAS_BIAS:
        sums_OS += tl.load(bias_ptr + out_O).to(tl.float32)[:, None]
    out_SO = tl.trans(sums_OS).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + row_S[:, None] * OUTS + o[None, :], out_SO, mask=(s < last)[:, None] & (o < OUTS)[None, :])
