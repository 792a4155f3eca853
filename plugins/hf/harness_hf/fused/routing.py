"""Which experts a token goes to: norm, router product, and the choice of the highest, by counting those above.

A: tokens, H: hidden width, E: experts, K: experts of a token. Logits are rounded as the model rounds them, for ties
decide who is chosen; of equals the lower index is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

EXPERTS_A_PROGRAM = 4


@dataclass(frozen=True)
class Router:
    norm_H: torch.Tensor
    weight_EH: torch.Tensor
    bias_E: torch.Tensor | None
    eps: float
    top: int
    is_rounded_first: (
        bool  # whether the norm rounds before it multiplies by its weight (Qwen, Mixtral) or after (gpt-oss)
    )
    is_of_chosen: bool  # whether the weights of the chosen sum to one
    is_exact: bool = False  # whether the weights of the chosen stay FP32 (Mixtral)


def route(
    x_AH: torch.Tensor,
    router: Router,
    hidden_AH: torch.Tensor,
    logits_AE: torch.Tensor,
    ids_AK: torch.Tensor,
    weights_AK: torch.Tensor,
    amax: torch.Tensor | None,
) -> None:
    """Fills hidden (what the experts read), logits and weights (FP32), ids (INT32), and amax of hidden, which is raised
    from zero where it is one: see harness_hf.fused.experts.amax_shape."""
    tokens, width = x_AH.shape
    experts = router.weight_EH.shape[0]
    part = min(EXPERTS_A_PROGRAM, experts)
    _router_linear[(tokens, triton.cdiv(experts, part))](
        x_AH, router.norm_H, router.weight_EH, router.bias_E, hidden_AH, logits_AE, amax, experts, router.eps, width,
        triton.next_power_of_2(width), part, router.bias_E is not None, router.is_rounded_first,
        0 if amax is None else amax.ndim, num_warps=4,
    )  # fmt: skip
    _router_topk[(tokens,)](
        logits_AE, ids_AK, weights_AK, hidden_AH, experts, router.top, triton.next_power_of_2(experts),
        router.is_of_chosen, not router.is_exact, num_warps=4,
    )  # fmt: skip


@triton.jit
def _router_linear(
    x_ptr, norm_ptr, weight_ptr, bias_ptr, hidden_ptr, logits_ptr, amax_ptr, experts, eps,
    WIDTH: tl.constexpr, TILE_H: tl.constexpr, TILE_E: tl.constexpr,
    HAS_BIAS: tl.constexpr, ROUNDS_FIRST: tl.constexpr, SCALING: tl.constexpr,
):  # fmt: skip
    DTYPE: tl.constexpr = hidden_ptr.dtype.element_ty
    row = tl.program_id(0)
    part = tl.program_id(1)
    h = tl.arange(0, TILE_H)
    e = part * TILE_E + tl.arange(0, TILE_E)
    is_inside = h < WIDTH
    weight_EH = tl.load(
        weight_ptr + e[:, None] * WIDTH + h[None, :], mask=(e < experts)[:, None] & is_inside[None, :], other=0.0
    )
    x_H = tl.load(x_ptr + row * WIDTH + h, mask=is_inside, other=0.0).to(tl.float32)
    norm_H = tl.load(norm_ptr + h, mask=is_inside, other=0.0).to(tl.float32)
    hidden_H = x_H * tl.rsqrt(tl.sum(x_H * x_H, axis=0) / WIDTH + eps)
    if ROUNDS_FIRST:
        hidden_H = hidden_H.to(DTYPE).to(tl.float32)
    hidden_H = (hidden_H * norm_H).to(DTYPE)
    logits_E = tl.sum(weight_EH.to(tl.float32) * hidden_H.to(tl.float32)[None, :], axis=1)
    if HAS_BIAS:
        logits_E += tl.load(bias_ptr + e, mask=e < experts, other=0.0).to(tl.float32)
    tl.store(logits_ptr + row * experts + e, logits_E.to(DTYPE).to(tl.float32), mask=e < experts)
    if part == 0:
        tl.store(hidden_ptr + row * WIDTH + h, hidden_H, mask=is_inside)
        exact_H = tl.abs(hidden_H.to(tl.float32))
        if SCALING == 1:
            tl.atomic_max(amax_ptr, tl.max(exact_H, axis=0))
        if SCALING == 2:
            b = tl.arange(0, TILE_H // 128)
            amax_B = tl.max(tl.reshape(exact_H, (TILE_H // 128, 128)), axis=1)
            tl.store(amax_ptr + row * (WIDTH // 128) + b, amax_B, mask=b < WIDTH // 128)


@triton.jit
def _router_topk(
    logits_ptr, ids_ptr, weights_ptr, hidden_ptr, experts,
    TOP: tl.constexpr, TILE_E: tl.constexpr, OF_CHOSEN: tl.constexpr, ROUNDS: tl.constexpr,
):  # fmt: skip
    """Program: one token. An expert's place is the number of those above it."""
    row = tl.program_id(0)
    e = tl.arange(0, TILE_E)
    logits_E = tl.load(logits_ptr + row * experts + e, mask=e < experts, other=-float("inf"))
    others_E = tl.load(logits_ptr + row * experts + e, mask=e < experts, other=-float("inf"))
    is_above_OE = others_E[:, None] > logits_E[None, :]
    is_before_OE = (others_E[:, None] == logits_E[None, :]) & (e[:, None] < e[None, :])
    place_E = tl.sum((is_above_OE | is_before_OE).to(tl.int32), axis=0)
    is_chosen_E = place_E < TOP
    odds_E = tl.exp(logits_E - tl.max(logits_E, axis=0))
    whole = tl.sum(odds_E, axis=0)
    if OF_CHOSEN:
        whole = tl.sum(tl.where(is_chosen_E, odds_E, 0.0), axis=0)
    share_E = odds_E / whole
    if ROUNDS:
        share_E = share_E.to(hidden_ptr.dtype.element_ty).to(tl.float32)
    tl.store(ids_ptr + row * TOP + place_E, e, mask=is_chosen_E)
    tl.store(weights_ptr + row * TOP + place_E, share_E, mask=is_chosen_E)
