"""Routing drift: do tokens still go to the same experts? Imports torch.

L: expert layers, R: positions, K: experts per token, E: experts of a layer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass
class Drift:
    """Collects what two runs chose for the same tokens; `summary` says what became of it."""

    num_experts: int
    layers: tuple[int, ...]  # the model's number of each expert layer
    reference: list[torch.Tensor] = field(default_factory=list)  # [L, R, K]
    actual: list[torch.Tensor] = field(default_factory=list)

    def add(self, reference: torch.Tensor, actual: torch.Tensor) -> None:
        """Takes [L, R, K] of either side, for the same tokens."""
        self.reference.append(reference.to("cpu", torch.int16))
        self.actual.append(actual.to("cpu", torch.int16))

    def sets(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Which experts each token went to, [L, R, E] of booleans, of the reference and of the other."""
        return _sets(self.reference, self.num_experts), _sets(self.actual, self.num_experts)

    def summary(self) -> dict[str, Any]:
        """Plain data for a record: per layer, the share of a token's experts that stayed (`agreement`), the share of
        tokens whose set changed, tokens per expert, and imbalance (max over mean of those) of either side."""
        before, after = self.sets()
        per_token = before.sum(-1).double()
        stayed = (before & after).sum(-1).double() / per_token
        changed = (before != after).any(-1).double().mean(-1)
        loads = [sets.sum(1) for sets in (before, after)]
        return {
            "tokens": before.shape[1],
            "experts": self.num_experts,
            "experts_per_token": int(per_token.max()),
            "agreement": float(stayed.mean()),
            "changed": float((before != after).any(-1).any(0).double().mean()),
            "layers": [
                {
                    "layer": number,
                    "agreement": float(stayed[index].mean()),
                    "changed": float(changed[index]),
                    "load_reference": loads[0][index].tolist(),
                    "load": loads[1][index].tolist(),
                    "imbalance_reference": _imbalance(loads[0][index]),
                    "imbalance": _imbalance(loads[1][index]),
                }
                for index, number in enumerate(self.layers)
            ],
        }


def _sets(parts: list[torch.Tensor], num_experts: int) -> torch.Tensor:
    chosen = torch.cat(parts, dim=1).long()
    sets = torch.zeros((*chosen.shape[:2], num_experts), dtype=torch.bool)
    return sets.scatter_(-1, chosen, True)


def _imbalance(load: torch.Tensor) -> float:
    return float(load.max() / load.double().mean())
