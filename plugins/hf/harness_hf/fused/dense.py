"""Products of a few tokens with one matrix, each weight read once: norm in front, bias and residual behind, best token.

With one token a row of weights meets the token in FP32 sums; with more, tiles go through the tensor cores, the weights
as their tall operand. Then no tile is masked along the summed dimension: its width divides it.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl

H200_SHARED = 232448
PROGRAMS = 264  # at least two for each of an H200's 132 processors, so that loads of one hide the waits of another


def linear(
    x_AI: torch.Tensor,
    weight_OI: torch.Tensor,
    out_AO: torch.Tensor,
    norm_I: torch.Tensor | None = None,
    eps: float = 0.0,
    bias_O: torch.Tensor | None = None,
    residual_AO: torch.Tensor | None = None,
    best: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """out = rmsnorm(x) weight^T + bias + residual; `best`: for [A, tiles] the highest output of a tile and its index.

    A NaN counts as infinity in `best`, so that it cannot get lost among other tiles."""
    tokens, width = x_AI.shape
    if norm_I is not None and tokens > 1:  # or every program would do it again for all of them
        x_AI, norm_I = _normed(x_AI, norm_I, eps), None
    outs = weight_OI.shape[0]
    tile_t = token_tile(tokens)
    tile_o = out_tile(outs, tile_t)
    tile_i = row_tile(width, 512) if tile_t == 1 else sum_tile(width, 256 if tile_o == 16 else 128)
    size = (tile_o + tile_t) * tile_i * weight_OI.element_size()
    stages = stages_of(size, triton.cdiv(outs, tile_o), shared_memory(weight_OI.device))
    values_AB, indices_AB = best or (None, None)
    _dense_linear[(triton.cdiv(outs, tile_o),)](
        x_AI, norm_I, weight_OI, bias_O, residual_AO, out_AO, values_AB, indices_AB, tokens, outs, eps,
        width, norm_I is not None, bias_O is not None, residual_AO is not None, best is not None,
        tile_t, tile_o, tile_i, stages, num_warps=4, num_stages=stages,
    )  # fmt: skip
    return out_AO


def _normed(x_AI: torch.Tensor, norm_I: torch.Tensor, eps: float) -> torch.Tensor:
    tokens, width = x_AI.shape
    out_AI = torch.empty_like(x_AI)
    _rms_norm[(tokens,)](x_AI, norm_I, out_AI, eps, width, triton.next_power_of_2(width), num_warps=4)
    return out_AI


def token_tile(tokens: int) -> int:
    """Tokens of a program: the smallest tile of tensor cores, or one, for which sums are faster."""
    return 1 if tokens == 1 else max(16, triton.next_power_of_2(tokens))


def out_tile(outs: int, tile_t: int) -> int:
    """With one token the largest tile that gives a processor two programs, with more what fills a tensor core's
    instruction, unless half the processors had nothing to do: measured, of 2048 and 5120 outputs on an H200."""
    if tile_t == 1:
        return 16 if outs >= 16 * PROGRAMS else 8  # sums of more rows would not fit into registers
    return 64 if tile_t == 16 or outs >= 16 * PROGRAMS else 16


def sum_tile(width: int, most: int) -> int:
    """The largest power of two up to `most` that divides `width`."""
    return min(width & -width, most)


def row_tile(width: int, most: int) -> int:
    """Of one token's sums: as `sum_tile`, but where that is less than half of `most` (64 of gpt-oss's 2880) a row's last
    tile goes beyond it, for loads of few bytes are slow."""
    whole = sum_tile(width, most)
    return whole if 2 * whole >= most else min(triton.next_power_of_2(width), most)


def stages_of(size: int, programs: int, shared: int) -> int:
    """How many tiles of `size` bytes are on their way: three, and more where they fit 48 KiB, so that four programs fit
    a processor, or where it has no four; never more than a program may hold."""
    room = 196608 if programs <= PROGRAMS else 49152
    return max(1, min(6, max(3, room // size), shared // size))


@cache
def shared_memory(device: torch.device) -> int:
    """Bytes that a program may hold; of a GPU that does not say those of the smallest from SM 86 on."""
    if device.type != "cuda":
        return H200_SHARED
    return getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", 101376)


@triton.jit
def _dense_linear(
    x_ptr, norm_ptr, weight_ptr, bias_ptr, residual_ptr, out_ptr, values_ptr, indices_ptr, tokens, outs, eps,
    WIDTH: tl.constexpr, HAS_NORM: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    PICKS: tl.constexpr, TILE_T: tl.constexpr, TILE_O: tl.constexpr, TILE_I: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    o = tile * TILE_O + tl.arange(0, TILE_O)
    t = tl.arange(0, TILE_T)
    is_out = o < outs
    is_token = t < tokens
    rows = weight_ptr + o.to(tl.int64)[:, None] * WIDTH
    i = tl.arange(0, TILE_I)
    if TILE_T == 1:
        sums_OI = tl.zeros((TILE_O, TILE_I), tl.float32)
        squares_I = tl.zeros((TILE_I,), tl.float32)
        for start in tl.range(0, WIDTH, TILE_I, num_stages=STAGES):
            if WIDTH % TILE_I == 0:
                x_I = tl.load(x_ptr + start + i).to(tl.float32)
                weight_OI = tl.load(rows + start + i[None, :], mask=is_out[:, None], other=0.0)
                norm_I = tl.load(norm_ptr + start + i) if HAS_NORM else x_I
            else:
                is_in = start + i < WIDTH
                x_I = tl.load(x_ptr + start + i, mask=is_in, other=0.0).to(tl.float32)
                weight_OI = tl.load(rows + start + i[None, :], mask=is_out[:, None] & is_in[None, :], other=0.0)
                norm_I = tl.load(norm_ptr + start + i, mask=is_in, other=0.0) if HAS_NORM else x_I
            if HAS_NORM:
                squares_I += x_I * x_I
                x_I = x_I * norm_I.to(tl.float32)
            sums_OI += weight_OI.to(tl.float32) * x_I[None, :]
        out_OT = tl.sum(sums_OI, axis=1)[:, None]
        if HAS_NORM:  # its factor is one number, so it may come after the product
            out_OT *= tl.rsqrt(tl.sum(squares_I, axis=0) / WIDTH + eps)
    else:
        out_OT = tl.zeros((TILE_O, TILE_T), tl.float32)
        for start in tl.range(0, WIDTH, TILE_I):
            x_IT = tl.load(x_ptr + t[None, :] * WIDTH + start + i[:, None], mask=is_token[None, :], other=0.0)
            weight_OI = tl.load(rows + start + i[None, :], mask=is_out[:, None], other=0.0)
            out_OT = tl.dot(weight_OI, x_IT, out_OT, input_precision="ieee")
    if HAS_BIAS:
        out_OT += tl.load(bias_ptr + o, mask=is_out, other=0.0).to(tl.float32)[:, None]
    place_OT = t[None, :] * outs + o[:, None]
    is_inside = is_out[:, None] & is_token[None, :]
    if HAS_RESIDUAL:
        out_OT += tl.load(residual_ptr + place_OT, mask=is_inside, other=0.0).to(tl.float32)
    rounded_OT = out_OT.to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + place_OT, rounded_OT, mask=is_inside)
    if PICKS:
        seen_OT = rounded_OT.to(tl.float32)
        seen_OT = tl.where(seen_OT == seen_OT, seen_OT, float("inf"))
        seen_OT = tl.where(is_inside, seen_OT, -float("inf"))
        highest_T = tl.max(seen_OT, axis=0)
        first_T = tl.min(tl.where(seen_OT == highest_T[None, :], o[:, None], outs), axis=0)
        tiles = tl.num_programs(0)
        tl.store(values_ptr + t * tiles + tile, highest_T, mask=is_token)
        tl.store(indices_ptr + t * tiles + tile, first_T, mask=is_token)


@triton.jit
def _rms_norm(x_ptr, norm_ptr, out_ptr, eps, WIDTH: tl.constexpr, TILE: tl.constexpr):
    """Program: one token."""
    i = tl.arange(0, TILE)
    place_I = tl.program_id(0) * WIDTH + i
    x_I = tl.load(x_ptr + place_I, mask=i < WIDTH, other=0.0).to(tl.float32)
    x_I *= tl.rsqrt(tl.sum(x_I * x_I, axis=0) / WIDTH + eps)
    norm_I = tl.load(norm_ptr + i, mask=i < WIDTH, other=0.0).to(tl.float32)
    tl.store(out_ptr + place_I, (x_I * norm_I).to(out_ptr.dtype.element_ty), mask=i < WIDTH)


@triton.jit
def embed(
    token_ptr, table_ptr, out_ptr, amax_ptr, next_ptr, position_ptr, amaxes,
    WIDTH: tl.constexpr, TILE: tl.constexpr,
) -> None:  # fmt: skip
    """Program a: the row of token a; the first one also takes the step's position. Together they forget the highest
    activations of the step before."""
    row = tl.program_id(0)
    token = tl.load(token_ptr + row)
    i = tl.arange(0, TILE)
    tl.store(out_ptr + row * WIDTH + i, tl.load(table_ptr + token * WIDTH + i, mask=i < WIDTH), mask=i < WIDTH)
    if row == 0:
        tl.store(position_ptr, tl.load(next_ptr))
    for start in range(row * TILE, amaxes, tl.num_programs(0) * TILE):
        tl.store(amax_ptr + start + i, 0.0, mask=start + i < amaxes)


@triton.jit
def pick_argmax(
    values_ptr, indices_ptr, token_ptr, history_ptr, highest_ptr, position_ptr, next_ptr, room,
    TILES: tl.constexpr, TILE: tl.constexpr,
) -> None:  # fmt: skip
    """Program a: the likeliest token of row a, written where the next step reads it and into the history.

    The position is read from one place and written to another, for the programs run in any order."""
    row = tl.program_id(0)
    b = tl.arange(0, TILE)
    values_B = tl.full((TILE,), -float("inf"), tl.float32)
    indices_B = tl.full((TILE,), 2147483647, tl.int32)
    for start in range(0, TILES, TILE):
        more_B = tl.load(values_ptr + row * TILES + start + b, mask=start + b < TILES, other=-float("inf"))
        where_B = tl.load(indices_ptr + row * TILES + start + b, mask=start + b < TILES, other=2147483647)
        indices_B = tl.where(more_B > values_B, where_B, indices_B)  # of equals the first stays
        values_B = tl.maximum(values_B, more_B)
    highest = tl.max(values_B, axis=0)
    token = tl.min(tl.where(values_B == highest, indices_B, 2147483647), axis=0)
    place = tl.load(position_ptr) + 1
    tl.store(token_ptr + row, token.to(tl.int64))
    tl.store(history_ptr + row * room + place, token.to(tl.int64))
    tl.store(highest_ptr + row * room + place, highest)
    tl.store(next_ptr, place)
