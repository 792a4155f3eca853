"""Attention of one new token a row over a static cache: norm and rotation of query and key, the write, the split sum.

A: batch, H: key heads, G: query heads of a key head, D: head width, S: room for tokens. Split flash-decoding after Dao
et al. 2023, https://crfm.stanford.edu/2023/10/12/flashdecoding.html. A sink is one more logit without a value.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from harness_hf.fused.dense import PROGRAMS


def splits_of(rows_and_heads: int) -> int:
    """How many programs share the tokens of one row and key head: as many as the device has room for, up to 32."""
    return min(32, triton.next_power_of_2(max(1, PROGRAMS // (2 * rows_and_heads))))


def attend(
    qkv_AX: torch.Tensor,
    norms: tuple[torch.Tensor, torch.Tensor] | None,
    rotation: tuple[torch.Tensor, torch.Tensor],
    cache: tuple[torch.Tensor, torch.Tensor],
    sinks_H: torch.Tensor | None,
    position_1: torch.Tensor,
    partial: tuple[torch.Tensor, torch.Tensor],
    out_AX: torch.Tensor,
    scale: float,
    eps: float,
    window: int | None,
) -> torch.Tensor:
    """[A, query heads x D]. qkv: queries, keys, values of the new token at `position`, side by side; norms: of queries
    and keys, [D]; rotation: cosine and sine, [S, D / 2]; cache: keys and values [A, H, S, D], written at `position`;
    partial: [A, query heads, splits, D] and [2, A, query heads, splits] FP32, room to work in."""
    keys_AHSD, values_AHSD = cache
    rows, heads, room, width = keys_AHSD.shape
    group = out_AX.shape[1] // width // heads
    sums, (highest, weight) = partial
    splits = sums.shape[2]
    q_norm, k_norm = norms or (None, None)
    _attention_split[(rows * heads, splits)](
        qkv_AX, q_norm, k_norm, *rotation, keys_AHSD, values_AHSD, sums, highest, weight, position_1, scale, eps, room,
        heads, group, max(16, triton.next_power_of_2(group)), width // 2, splits, window or 0, norms is not None,
        32 if splits > 8 else 64, num_warps=4, num_stages=2,
    )  # fmt: skip
    _attention_combine[(rows * heads * group,)](
        sums, highest, weight, sinks_H, out_AX, heads * group, width, splits, sinks_H is not None, num_warps=2
    )
    return out_AX


@triton.jit
def _rotated(lo, hi, lo_norm, hi_norm, cos, sin, eps, HALF: tl.constexpr, HAS_NORM: tl.constexpr, DTYPE: tl.constexpr):
    """Rows [R, D / 2] twice, normalised and turned; rounded where the model rounds."""
    lo = lo.to(tl.float32)
    hi = hi.to(tl.float32)
    if HAS_NORM:
        factor = tl.rsqrt((tl.sum(lo * lo, axis=1) + tl.sum(hi * hi, axis=1)) / (2 * HALF) + eps)[:, None]
        lo = ((lo * factor).to(DTYPE).to(tl.float32) * lo_norm).to(DTYPE).to(tl.float32)
        hi = ((hi * factor).to(DTYPE).to(tl.float32) * hi_norm).to(DTYPE).to(tl.float32)
    return (lo * cos - hi * sin).to(DTYPE), (hi * cos + lo * sin).to(DTYPE)


@triton.jit
def _attention_split(
    qkv_ptr, q_norm_ptr, k_norm_ptr, cos_ptr, sin_ptr, keys_ptr, values_ptr, sums_ptr, highest_ptr, weight_ptr,
    position_ptr, scale, eps, room,
    HEADS: tl.constexpr, GROUP: tl.constexpr, TILE_G: tl.constexpr, HALF: tl.constexpr, SPLITS: tl.constexpr,
    WINDOW: tl.constexpr, HAS_NORM: tl.constexpr, TILE_S: tl.constexpr,
):  # fmt: skip
    WIDTH: tl.constexpr = 2 * HALF
    DTYPE: tl.constexpr = keys_ptr.dtype.element_ty
    row = tl.program_id(0) // HEADS
    head = tl.program_id(0) % HEADS
    split = tl.program_id(1)
    position = tl.load(position_ptr)
    g = tl.arange(0, TILE_G)
    d = tl.arange(0, HALF)
    d_all = tl.arange(0, WIDTH)
    is_query = (g < GROUP)[:, None]
    cos = tl.load(cos_ptr + position * HALF + d).to(tl.float32)[None, :]
    sin = tl.load(sin_ptr + position * HALF + d).to(tl.float32)[None, :]
    lo_norm = cos
    hi_norm = sin
    if HAS_NORM:
        lo_norm = tl.load(q_norm_ptr + d).to(tl.float32)[None, :]
        hi_norm = tl.load(q_norm_ptr + HALF + d).to(tl.float32)[None, :]
    qkv_row = qkv_ptr + row * (GROUP + 2) * HEADS * WIDTH
    query_ptr = qkv_row + (head * GROUP + g[:, None]) * WIDTH + d[None, :]
    lo_GD = tl.load(query_ptr, mask=is_query, other=0.0)
    hi_GD = tl.load(query_ptr + HALF, mask=is_query, other=0.0)
    lo_GD, hi_GD = _rotated(lo_GD, hi_GD, lo_norm, hi_norm, cos, sin, eps, HALF, HAS_NORM, DTYPE)

    base = (row * HEADS + head).to(tl.int64) * room * WIDTH
    if split == 0:  # holds the new token, too: straight from the projection, for no other program sees the write yet
        key_ptr = qkv_row + (GROUP + 0) * HEADS * WIDTH + head * WIDTH + d[None, :]
        if HAS_NORM:
            lo_norm = tl.load(k_norm_ptr + d).to(tl.float32)[None, :]
            hi_norm = tl.load(k_norm_ptr + HALF + d).to(tl.float32)[None, :]
        lo_1D, hi_1D = _rotated(
            tl.load(key_ptr), tl.load(key_ptr + HALF), lo_norm, hi_norm, cos, sin, eps, HALF, HAS_NORM, DTYPE
        )
        value_D = tl.load(qkv_row + (GROUP + 1) * HEADS * WIDTH + head * WIDTH + d_all)
        tl.store(keys_ptr + base + position * WIDTH + d[None, :], lo_1D)
        tl.store(keys_ptr + base + position * WIDTH + HALF + d[None, :], hi_1D)
        tl.store(values_ptr + base + position * WIDTH + d_all, value_D)
        highest_G = tl.sum(lo_GD.to(tl.float32) * lo_1D.to(tl.float32), axis=1)
        highest_G = (highest_G + tl.sum(hi_GD.to(tl.float32) * hi_1D.to(tl.float32), axis=1)) * scale
        weight_G = tl.full((TILE_G,), 1.0, tl.float32)
        sums_GD = tl.zeros((TILE_G, WIDTH), tl.float32) + value_D.to(tl.float32)[None, :]
    else:
        highest_G = tl.full((TILE_G,), -float("inf"), tl.float32)
        weight_G = tl.zeros((TILE_G,), tl.float32)
        sums_GD = tl.zeros((TILE_G, WIDTH), tl.float32)

    oldest = 0
    if WINDOW > 0:
        oldest = tl.maximum(position + 1 - WINDOW, 0)
    share = tl.cdiv(tl.cdiv(position - oldest, SPLITS), TILE_S) * TILE_S
    first = oldest + split * share
    last = tl.minimum(first + share, position)
    s = tl.arange(0, TILE_S)
    for start in tl.range(first, last, TILE_S):
        is_there = start + s < last
        key_ptrs = keys_ptr + base + (start + s)[None, :] * WIDTH + d[:, None]
        keys_lo_DS = tl.load(key_ptrs, mask=is_there[None, :], other=0.0)
        keys_hi_DS = tl.load(key_ptrs + HALF, mask=is_there[None, :], other=0.0)
        logits_GS = tl.dot(lo_GD, keys_lo_DS, input_precision="ieee")
        logits_GS = tl.dot(hi_GD, keys_hi_DS, logits_GS, input_precision="ieee") * scale
        logits_GS = tl.where(is_there[None, :], logits_GS, -float("inf"))
        higher_G = tl.maximum(highest_G, tl.max(logits_GS, axis=1))
        kept_G = tl.exp(highest_G - higher_G)
        shares_GS = tl.exp(logits_GS - higher_G[:, None])
        weight_G = weight_G * kept_G + tl.sum(shares_GS, axis=1)
        values_SD = tl.load(
            values_ptr + base + (start + s)[:, None] * WIDTH + d_all[None, :], mask=is_there[:, None], other=0.0
        )
        sums_GD = tl.dot(shares_GS.to(DTYPE), values_SD, sums_GD * kept_G[:, None], input_precision="ieee")
        highest_G = higher_G

    place_G = (row * HEADS * GROUP + head * GROUP + g) * SPLITS + split
    tl.store(highest_ptr + place_G, highest_G, mask=g < GROUP)
    tl.store(weight_ptr + place_G, weight_G, mask=g < GROUP)
    tl.store(sums_ptr + place_G[:, None] * WIDTH + d_all[None, :], sums_GD, mask=is_query)


@triton.jit
def _attention_combine(
    sums_ptr, highest_ptr, weight_ptr, sinks_ptr, out_ptr,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, SPLITS: tl.constexpr, HAS_SINKS: tl.constexpr,
):  # fmt: skip
    """Program: one row and query head."""
    one = tl.program_id(0)
    p = tl.arange(0, SPLITS)
    d = tl.arange(0, WIDTH)
    highest_P = tl.load(highest_ptr + one * SPLITS + p)
    highest = tl.max(highest_P, axis=0)
    if HAS_SINKS:
        sink = tl.load(sinks_ptr + one % HEADS).to(tl.float32)
        highest = tl.maximum(highest, sink)
    factor_P = tl.exp(highest_P - highest)
    weight = tl.sum(tl.load(weight_ptr + one * SPLITS + p) * factor_P, axis=0)
    if HAS_SINKS:
        weight += tl.exp(sink - highest)
    sums_PD = tl.load(sums_ptr + (one * SPLITS + p)[:, None] * WIDTH + d[None, :])
    out_D = tl.sum(sums_PD * factor_P[:, None], axis=0) / weight
    tl.store(out_ptr + one * WIDTH + d, out_D.to(out_ptr.dtype.element_ty))
