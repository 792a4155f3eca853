"""Which modules of a loaded model multiply by weights that a lower precision may take."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

EXPERT_WEIGHTS = ("gate_up_proj", "up_proj", "down_proj")


def every_experts(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules that hold all experts of a layer as 3D weights, as transformers 5 keeps them."""
    for name, module in model.named_modules():
        if getattr(module, "down_proj", None) is not None and getattr(module.down_proj, "ndim", 0) == 3:
            yield name, module


def every_linear(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Linear layers besides the output head and routers."""
    head, router_width = model.get_output_embeddings(), _num_experts(model)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module is not head and module.out_features != router_width:
            yield name, module


def _num_experts(model: nn.Module) -> int | None:
    return next((experts.num_experts for _, experts in every_experts(model)), None)
