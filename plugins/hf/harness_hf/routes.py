"""Which experts each token went to, read where the expert layers receive them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from harness.provenance import kind_of


class Routes:
    """Listens while the model runs: `with Routes(model) as routes: model(...)`, then `routes.of(...)`.

    transformers 5 hands every architecture's choice to its expert layer as one integer tensor [tokens, K], whatever
    the router did before (biases, groups, normalisation): there the true choice is read."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._layers = {
            name: module
            for name, module in model.named_modules()
            if kind_of(name) == "experts" and hasattr(module, "num_experts")
        }
        self._chosen: dict[str, torch.Tensor] = {}
        self._hooks: list[Any] = []

    def __enter__(self) -> Routes:
        for name, module in self._layers.items():
            self._hooks.append(module.register_forward_pre_hook(self._listener(name), with_kwargs=True))
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _listener(self, name: str) -> Any:
        def listen(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            for value in (*inputs, *named.values()):
                if isinstance(value, torch.Tensor) and value.ndim == 2 and not value.is_floating_point():
                    self._chosen[name] = value
                    return

        return listen

    def of(self, sequence: int, start: int, rows: int, shape: torch.Size) -> dict[str, Any]:
        """Fields of `harness.Logits` for rows of one sequence of a batch of `shape`; none where a layer did not say."""
        if not self._layers or self._chosen.keys() != self._layers.keys():
            return {}
        first = sequence * shape[1] + start
        chosen_LRK = torch.stack([self._chosen[name][first : first + rows] for name in self._layers])
        numbers = [next((int(part) for part in name.split(".") if part.isdigit()), -1) for name in self._layers]
        num_experts = {module.num_experts for module in self._layers.values()}
        if len(num_experts) != 1:
            return {}
        return {"chosen": chosen_LRK, "num_experts": num_experts.pop(), "layers": tuple(numbers)}
