"""Linear layers that read one input as one product: query, key and value; gate and up of a dense layer.

transformers 5 keeps gate and up of experts in one matrix already. I: input width, O: output widths summed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional

GROUPS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # in the order in which a model calls them


@dataclass
class Together:
    """One product, and what of its result is not fetched yet."""

    weight_OI: torch.Tensor
    bias_O: torch.Tensor | None
    sizes: tuple[int, ...]
    read: torch.Tensor | None = None
    left: list[torch.Tensor] = field(default_factory=list)


class FusedLinear(nn.Linear):
    """A part of a product. The first of a group multiplies for all, the others fetch; each's weight is a view."""

    together: Together
    place: int

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        group = self.together
        if self.place == 0:
            outputs = functional.linear(input, group.weight_OI, group.bias_O).split(group.sizes, dim=-1)
            group.read, group.left = input, list(outputs[1:])
            return outputs[0]
        if group.read is not input:
            raise RuntimeError("layers that were fused for one input were called with two")
        output = group.left.pop(0)
        if not group.left:
            group.read = None
        return output


def fuse(model: nn.Module) -> int:
    """Fuses what fits, in place: one new matrix, the old ones are views of it. Returns how many products were saved."""
    saved = 0
    for module in list(model.modules()):
        for names in GROUPS:
            linears = [getattr(module, name, None) for name in names]
            if all(type(linear) is nn.Linear for linear in linears) and _fit(linears):
                _fuse(linears)
                saved += len(linears) - 1
    return saved


def fused_count(model: nn.Module) -> int:
    """Products saved in the live model: parts whose weights lie in the memory of their group's one matrix."""
    return sum(
        isinstance(module, FusedLinear)
        and module.place > 0
        and module.weight.untyped_storage().data_ptr() == module.together.weight_OI.untyped_storage().data_ptr()
        for module in model.modules()
    )


def _fit(linears: list[nn.Linear]) -> bool:
    same_input = len({linear.in_features for linear in linears}) == 1
    return same_input and len({linear.bias is None for linear in linears}) == 1


def _fuse(linears: list[nn.Linear]) -> None:
    sizes = tuple(linear.out_features for linear in linears)
    weight_OI = torch.cat([linear.weight.data for linear in linears])
    bias_O = None if linears[0].bias is None else torch.cat([linear.bias.data for linear in linears])
    together = Together(weight_OI, bias_O, sizes)
    for place, (linear, part) in enumerate(zip(linears, weight_OI.split(sizes))):
        linear.__class__ = FusedLinear
        linear.weight.data = part
        if bias_O is not None:
            linear.bias.data = bias_O.split(sizes)[place]
        linear.together, linear.place = together, place
