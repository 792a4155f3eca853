"""All experts of a layer as two grouped products, in few kernels when compiled.

T: tokens, K: experts of a token, S = T K rows (a token once per expert, sorted by expert), E: experts, H: hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from harness_hf.modules import every_experts

NAME = "grouped_mm_in_few_kernels"  # the experts implementation, in transformers' words
REPLACED = "grouped_mm"


@contextmanager
def in_few_kernels(model: PreTrainedModel) -> Iterator[None]:
    """Inside, experts run through `experts_forward`; those with biases or of another layout run as they did."""
    every = [experts for _, experts in every_experts(model)]
    configs = {id(experts.config): experts.config for experts in every if _is_plain(experts)}.values()
    configs = [config for config in configs if config._experts_implementation == REPLACED]
    ALL_EXPERTS_FUNCTIONS[NAME] = experts_forward
    for config in configs:
        config._experts_implementation = NAME
    try:
        yield
    finally:
        for config in configs:
            config._experts_implementation = REPLACED


def experts_forward(
    self: nn.Module, hidden_TH: torch.Tensor, chosen_TK: torch.Tensor, weight_TK: torch.Tensor
) -> torch.Tensor:
    """As transformers' grouped_mm_experts_forward."""
    order_S, ends_E = by_expert(chosen_TK, self.num_experts)
    rows_SH = hidden_TH[order_S // chosen_TK.shape[1]]
    up_SF = self._apply_gate(torch._grouped_mm(rows_SH, self.gate_up_proj.mT, offs=ends_E))
    return combined(torch._grouped_mm(up_SF, self.down_proj.mT, offs=ends_E), weight_TK, order_S)


def by_expert(chosen_TK: torch.Tensor, num_experts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Which pair of token and expert stands in each row, [S], and where each expert's rows end, [E] INT32."""
    expert_S, order_S = torch.sort(chosen_TK.reshape(-1))
    bins = expert_S.int() if expert_S.is_cuda else expert_S.float()  # all that histc takes there
    ends_E = torch.histc(bins, bins=num_experts, min=0, max=num_experts - 1).cumsum(0, dtype=torch.int32)
    return order_S, ends_E


def combined(down_SH: torch.Tensor, weight_TK: torch.Tensor, order_S: torch.Tensor) -> torch.Tensor:
    """Each token's rows times their weights, added up: [T, H]."""
    back_S = torch.empty_like(order_S)
    back_S[order_S] = torch.arange(len(order_S), device=order_S.device)
    back_TK = back_S.view(weight_TK.shape)
    if torch.compiler.is_compiling():  # one kernel of K whole-row reads; of a sum over K inductor makes a slow one
        rows = (down_SH[back_K].float() * weight_K[:, None].float() for back_K, weight_K in zip(back_TK.T, weight_TK.T))
        return sum(rows).to(down_SH.dtype)
    return (down_SH[back_TK] * weight_TK[..., None]).sum(1).to(down_SH.dtype)


def _is_plain(experts: nn.Module) -> bool:
    others = ("has_bias", "is_transposed", "has_post_expert_norm")
    return experts.has_gate and not any(getattr(experts, name, False) for name in others)
