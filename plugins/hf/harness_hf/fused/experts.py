"""The chosen experts of a few tokens: gate and up with their activation, down with the weighted sum.

A: tokens, K: experts of a token, P = A K pairs of both, H: hidden width, I: expert width, E: experts. With one token a
program belongs to one of its experts; with more to one of all experts, whose pairs it finds among the ids itself, so
that nothing is sorted, nothing goes through the host and each active expert's weights are read once. FP8: weights are
E4M3 with FP32 scales, inputs of a product become E4M3 in the kernel, with the scales of harness_hf.formats.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from harness_hf.fused.dense import row_tile, sum_tile
from harness_hf.fused.sums import sums

PLAIN, TENSOR, BLOCK = 0, 1, 2  # how weights and inputs are scaled
BLOCK_SIZE = 128


@dataclass(frozen=True)
class Matrices:
    """One product of all experts of a layer."""

    weight_EOI: torch.Tensor  # rows contiguous; for FP8 torch.float8_e4m3fn
    bias_EO: torch.Tensor | None = None
    scale: torch.Tensor | None = None  # FP32: [E] of a tensor, [E, O / 128, I / 128] of blocks

    @property
    def scaling(self) -> int:
        return PLAIN if self.scale is None else TENSOR if self.scale.ndim == 1 else BLOCK


@dataclass(frozen=True)
class Gate:
    """What joins gate and up: SiLU(gate) up, or, with a limit, gpt-oss's clamped (up + 1) gate sigmoid(alpha gate)."""

    is_interleaved: bool = False
    alpha: float = 1.0
    limit: float | None = None


def run_experts(
    hidden_AH: torch.Tensor,
    x_AH: torch.Tensor,
    ids_AK: torch.Tensor,
    weights_AK: torch.Tensor,
    up: Matrices,
    down: Matrices,
    gate: Gate,
    act_PI: torch.Tensor,
    parts_PH: torch.Tensor,
    out_AH: torch.Tensor,
    amaxes: tuple[torch.Tensor, torch.Tensor] | None,
) -> torch.Tensor:
    """out = x + sum over the chosen of weight down(gate(up hidden)). `act`, `parts` (FP32): room to work in; `amaxes`:
    of hidden and, raised here from zero, of act; see `amax_shape`."""
    (tokens, width), top = hidden_AH.shape, ids_AK.shape[1]
    experts, inner = up.weight_EOI.shape[0], up.weight_EOI.shape[1] // 2
    is_one = tokens == 1
    tile_t, tile_p, programs = 1 if is_one else 16, triton.next_power_of_2(tokens * top), top if is_one else experts
    hidden_amax, act_amax = amaxes or (None, None)
    rows = _rows(up, inner, tile_t)
    _experts_gate_up[(programs, inner // rows)](
        hidden_AH, ids_AK, up.weight_EOI, up.bias_EO, up.scale, act_PI, hidden_amax, act_amax, tokens * top,
        gate.alpha, gate.limit or 0.0, width, inner, top, *_strides(up), gate.is_interleaved, gate.limit is not None,
        up.bias_EO is not None, up.scaling, is_one, tile_p, tile_t, rows, _sum_tile(up, width, tile_t),
        num_warps=_warps(up, tile_t), num_stages=3,
    )  # fmt: skip
    if is_one and down.scaling == PLAIN:  # in one kernel; FP8 is faster in two, for its programs read too little
        rows = 8 if width % 8 == 0 else 1
        _experts_down_of_one_token[(width // rows,)](
            act_PI, ids_AK, weights_AK, down.weight_EOI, down.bias_EO, x_AH, out_AH, inner, width, top,
            *_strides(down), down.bias_EO is not None, rows, _sum_tile(down, inner, 1), num_warps=4,
        )  # fmt: skip
        return out_AH
    rows = 2 * _rows(down, width // 2, tile_t)
    _experts_down[(programs, width // rows)](
        act_PI, ids_AK, weights_AK, down.weight_EOI, down.bias_EO, down.scale, parts_PH, act_amax, tokens * top,
        inner, width, *_strides(down), down.bias_EO is not None, down.scaling, is_one, tile_p, tile_t, rows,
        _sum_tile(down, inner, tile_t), num_warps=_warps(down, tile_t), num_stages=3,
    )  # fmt: skip
    _experts_sum[(tokens, triton.cdiv(width, 512))](parts_PH, x_AH, out_AH, width, top, 512, num_warps=4)
    return out_AH


def amax_shape(scaling: int, rows: int, width: int) -> tuple[int, ...]:
    """Of the largest absolute values of [rows, width]: of a tensor one, of blocks one for each 128 values of a row."""
    return {PLAIN: (0,), TENSOR: (1,), BLOCK: (rows, width // BLOCK_SIZE)}[scaling]


def _rows(matrices: Matrices, inner: int, tile_t: int) -> int:
    """Rows of gate, and as many of up: 32 in all stream well with one token, 64 fill a product with more. E4M3 has half
    the bytes; its sizes, here and below, are those measured fastest on an H200."""
    plain, small = (16, 8) if tile_t == 1 else (32, 64)
    return min(inner & -inner, plain if matrices.scaling == PLAIN else small)


def _sum_tile(matrices: Matrices, width: int, tile_t: int) -> int:
    if matrices.scaling == BLOCK:
        return BLOCK_SIZE
    return row_tile(width, 256) if tile_t == 1 else sum_tile(width, 128)


def _warps(matrices: Matrices, tile_t: int) -> int:
    return 2 if tile_t == 1 and matrices.scaling != PLAIN else 4


def _strides(matrices: Matrices) -> tuple[int, int, int]:
    return tuple(matrices.weight_EOI.stride())


@triton.jit
def _mine(ids_ptr, base, pairs, IS_ONE: tl.constexpr, TILE_P: tl.constexpr, TILE_T: tl.constexpr):
    """The program's expert, of its pairs the indices of number base, base + 1, ..., and how many it has: one of the
    only token's experts with its one pair, or, with more tokens, one of all experts."""
    t = base + tl.arange(0, TILE_T)
    if IS_ONE:
        return tl.load(ids_ptr + tl.program_id(0)), tl.program_id(0) + t, 1
    p = tl.arange(0, TILE_P)
    is_mine_P = tl.load(ids_ptr + p, mask=p < pairs, other=-1) == tl.program_id(0)
    order_P = tl.cumsum(is_mine_P.to(tl.int32), axis=0) - 1
    is_it_TP = is_mine_P[None, :] & (order_P[None, :] == t[:, None])
    pair_T = tl.sum(tl.where(is_it_TP, p[None, :], 0), axis=1)
    return tl.program_id(0), pair_T, tl.sum(is_mine_P.to(tl.int32), axis=0)


@triton.jit
def _experts_gate_up(
    hidden_ptr, ids_ptr, weight_ptr, bias_ptr, scale_ptr, act_ptr, amax_ptr, act_amax_ptr, pairs, alpha, limit,
    WIDTH: tl.constexpr, INNER: tl.constexpr, TOP: tl.constexpr,
    STRIDE_E: tl.constexpr, STRIDE_O: tl.constexpr, STRIDE_I: tl.constexpr,
    INTERLEAVED: tl.constexpr, CLAMPED: tl.constexpr, HAS_BIAS: tl.constexpr, SCALING: tl.constexpr,
    IS_ONE: tl.constexpr, TILE_P: tl.constexpr, TILE_T: tl.constexpr, TILE_O: tl.constexpr, TILE_I: tl.constexpr,
):  # fmt: skip
    """Program: a tile of rows of gate and up, taken in turn, of one expert, for all pairs that meet it."""
    r = tl.arange(0, 2 * TILE_O)
    n = tl.program_id(1) * TILE_O + tl.arange(0, TILE_O)
    if INTERLEAVED:
        o = tl.program_id(1) * 2 * TILE_O + r
    else:
        o = tl.program_id(1) * TILE_O + r // 2 + (r % 2) * INNER
    DTYPE: tl.constexpr = act_ptr.dtype.element_ty
    _, _, count = _mine(ids_ptr, 0, pairs, IS_ONE, TILE_P, TILE_T)
    for base in range(0, count, TILE_T):
        expert, pair_T, count = _mine(ids_ptr, base, pairs, IS_ONE, TILE_P, TILE_T)
        is_pair_T = base + tl.arange(0, TILE_T) < count
        sums_OT = sums(
            hidden_ptr, pair_T // TOP, is_pair_T, weight_ptr, bias_ptr, scale_ptr, amax_ptr, expert, o, 2 * INNER,
            WIDTH, STRIDE_E, STRIDE_O, STRIDE_I, HAS_BIAS, SCALING, TILE_T, 2 * TILE_O, TILE_I,
        )  # fmt: skip
        sums_OT = sums_OT.to(DTYPE).to(tl.float32)  # as the model rounds between its products
        gate_OT, up_OT = tl.split(tl.permute(tl.reshape(sums_OT, (TILE_O, 2, TILE_T)), (0, 2, 1)))
        if CLAMPED:
            gate_OT = tl.minimum(gate_OT, limit)
            up_OT = tl.clamp(up_OT, -limit, limit) + 1.0
        act_OT = (gate_OT / (1.0 + tl.exp(-alpha * gate_OT)) * up_OT).to(DTYPE)
        tl.store(act_ptr + pair_T[None, :] * INNER + n[:, None], act_OT, mask=is_pair_T[None, :])
        if SCALING > 0:
            amax_T = tl.max(tl.where(is_pair_T[None, :], tl.abs(act_OT.to(tl.float32)), 0.0), axis=0)
            if SCALING == 1:
                tl.atomic_max(act_amax_ptr, tl.max(amax_T, axis=0))
            else:
                block = tl.program_id(1) * TILE_O // 128
                tl.atomic_max(act_amax_ptr + pair_T * (INNER // 128) + block, amax_T, mask=is_pair_T)


@triton.jit
def _experts_down(
    act_ptr, ids_ptr, weights_ptr, weight_ptr, bias_ptr, scale_ptr, parts_ptr, amax_ptr, pairs,
    INNER: tl.constexpr, WIDTH: tl.constexpr,
    STRIDE_E: tl.constexpr, STRIDE_O: tl.constexpr, STRIDE_I: tl.constexpr,
    HAS_BIAS: tl.constexpr, SCALING: tl.constexpr,
    IS_ONE: tl.constexpr, TILE_P: tl.constexpr, TILE_T: tl.constexpr, TILE_O: tl.constexpr, TILE_I: tl.constexpr,
):  # fmt: skip
    """Program: a tile of outputs of one expert, for all pairs that meet it, each times its weight."""
    o = tl.program_id(1) * TILE_O + tl.arange(0, TILE_O)
    _, _, count = _mine(ids_ptr, 0, pairs, IS_ONE, TILE_P, TILE_T)
    for base in range(0, count, TILE_T):
        expert, pair_T, count = _mine(ids_ptr, base, pairs, IS_ONE, TILE_P, TILE_T)
        is_pair_T = base + tl.arange(0, TILE_T) < count
        sums_OT = sums(
            act_ptr, pair_T, is_pair_T, weight_ptr, bias_ptr, scale_ptr, amax_ptr, expert, o, WIDTH, INNER,
            STRIDE_E, STRIDE_O, STRIDE_I, HAS_BIAS, SCALING, TILE_T, TILE_O, TILE_I,
        )  # fmt: skip
        sums_OT *= tl.load(weights_ptr + pair_T, mask=is_pair_T, other=0.0)[None, :]
        tl.store(parts_ptr + pair_T[None, :] * WIDTH + o[:, None], sums_OT, mask=is_pair_T[None, :])


@triton.jit
def _experts_down_of_one_token(
    act_ptr, ids_ptr, weights_ptr, weight_ptr, bias_ptr, x_ptr, out_ptr,
    INNER: tl.constexpr, WIDTH: tl.constexpr, TOP: tl.constexpr,
    STRIDE_E: tl.constexpr, STRIDE_O: tl.constexpr, STRIDE_I: tl.constexpr,
    HAS_BIAS: tl.constexpr, TILE_O: tl.constexpr, TILE_I: tl.constexpr,
):  # fmt: skip
    """Program: a tile of outputs of one token, over all its experts."""
    o = tl.program_id(0) * TILE_O + tl.arange(0, TILE_O)
    i = tl.arange(0, TILE_I)
    PARTS: tl.constexpr = (INNER + TILE_I - 1) // TILE_I
    sums_OI = tl.zeros((TILE_O, TILE_I), tl.float32)
    for part in tl.range(0, TOP * PARTS, num_stages=6):  # one loop, so that loads do not wait where an expert ends
        slot = part // PARTS
        start = part % PARTS * TILE_I
        expert = tl.load(ids_ptr + slot).to(tl.int64)
        share = tl.load(weights_ptr + slot)
        weights = weight_ptr + expert * STRIDE_E + o[:, None] * STRIDE_O + (start + i)[None, :] * STRIDE_I
        if INNER % TILE_I == 0:
            weight_OI = tl.load(weights)
            act_1I = tl.load(act_ptr + slot * INNER + start + i).to(tl.float32)[None, :]
        else:
            is_in = start + i < INNER
            weight_OI = tl.load(weights, mask=is_in[None, :], other=0.0)
            act_1I = tl.load(act_ptr + slot * INNER + start + i, mask=is_in, other=0.0).to(tl.float32)[None, :]
        sums_OI += weight_OI.to(tl.float32) * (act_1I * share)
    total_O = tl.load(x_ptr + o).to(tl.float32) + tl.sum(sums_OI, axis=1)
    if HAS_BIAS:
        for slot in tl.static_range(TOP):
            bias_O = tl.load(bias_ptr + tl.load(ids_ptr + slot) * WIDTH + o).to(tl.float32)
            total_O += bias_O * tl.load(weights_ptr + slot)
    tl.store(out_ptr + o, total_O.to(out_ptr.dtype.element_ty))


@triton.jit
def _experts_sum(parts_ptr, x_ptr, out_ptr, WIDTH: tl.constexpr, TOP: tl.constexpr, TILE: tl.constexpr):
    """Program: a part of one token, over its experts in their order."""
    row = tl.program_id(0)
    h = tl.program_id(1) * TILE + tl.arange(0, TILE)
    total = tl.load(x_ptr + row * WIDTH + h, mask=h < WIDTH, other=0.0).to(tl.float32)
    for slot in tl.static_range(TOP):
        total += tl.load(parts_ptr + (row * TOP + slot) * WIDTH + h, mask=h < WIDTH, other=0.0)
    tl.store(out_ptr + row * WIDTH + h, total.to(out_ptr.dtype.element_ty), mask=h < WIDTH)
