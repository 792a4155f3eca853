"""Where a difference comes from, when it has one place: an expert, two exchanged experts, a token's logit. Imports torch.

A format's rounding touches every expert and token alike; damage does not. Each test asks for an effect that is large
beside the others' and far beyond chance; what passes none is not named.

L: expert layers, R: positions, E: experts, V: vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch

from harness.accuracy.rows import Aligned

FLOOR = 1e-8  # nats; below it KL is rounding
TIMES = 3.0  # an expert's tokens differ this many times as much as the others'
SIGMAS = 8.0  # and that is this many standard errors away from none
FEWEST = 20  # positions on either side
EXCHANGED = 0.5  # share of a layer's changed tokens that one pair of experts explains
LEAST_CHANGED = 0.01  # share of tokens whose set changed, to look at a layer at all
LEAST_OFFSET = 0.05  # nats


class Residuals:
    """Mean and spread over positions of (actual - expected) of each token of the vocabulary, row means taken away."""

    def __init__(self, vocabulary: int) -> None:
        self._count, self._sum, self._squares = (torch.zeros(vocabulary, dtype=torch.float64) for _ in range(3))

    def add(self, both: Aligned) -> None:
        """Takes positions of both sides."""
        ids, difference = both.ids, both.found - both.expected
        usable = torch.isfinite(difference)
        difference = difference.nan_to_num(0, 0, 0)
        middle = difference.sum(-1, keepdim=True) / usable.sum(-1, keepdim=True).clamp_min(1)
        difference = (difference - middle) * usable
        for total, part in ((self._count, usable), (self._sum, difference), (self._squares, difference.square())):
            if ids is None:
                total += part.sum(0, dtype=torch.float64).cpu()
            else:
                total.scatter_add_(0, ids.flatten().cpu(), part.double().flatten().cpu())

    def named(self) -> list[dict[str, Any]]:
        """Tokens whose logit is off by a constant."""
        seen = self._count >= FEWEST
        count = self._count.clamp_min(2)
        mean = self._sum / count
        spread = ((self._squares / count - mean**2).clamp_min(0) * count / (count - 1)).sqrt()
        usual = mean[seen].abs().median() if seen.any() else torch.tensor(0.0)
        error = (spread / count.sqrt()).clamp_min(1e-9)
        is_off = seen & (mean.abs() > LEAST_OFFSET) & (mean.abs() > 10 * usual) & (mean.abs() > SIGMAS * error)
        is_off &= mean.abs() > 2 * spread  # a constant, not a token that is merely hard
        return [
            {"what": "logit", "token": token, "offset": float(mean[token]), "spread": float(spread[token])}
            for token in is_off.nonzero()[:, 0].tolist()
        ]


def suspects(
    kl: torch.Tensor,
    sets: tuple[torch.Tensor, torch.Tensor] | None,
    layers: tuple[int, ...] | None,
    residuals: Residuals,
) -> list[dict[str, Any]]:
    """What stands out, the surest first. `kl` [R]; `sets`: experts of each position, [L, R, E], of either side."""
    found = residuals.named()
    if sets is not None:
        exchanged = _exchanged(*sets, layers)
        found = exchanged + (found or ([] if exchanged else _damaged(kl, sets[0], layers)))
    return found


def _exchanged(before: torch.Tensor, after: torch.Tensor, layers: tuple[int, ...]) -> list[dict[str, Any]]:
    """The first layer where tokens go elsewhere, if they do so by one pair of experts changing places."""
    for index, layer in enumerate(layers):
        lost, gained = before[index] & ~after[index], after[index] & ~before[index]
        changed = lost.any(-1)
        if changed.double().mean() < LEAST_CHANGED:
            continue
        moved = lost.double().T @ gained.double()  # [E, E]: tokens that left one expert and came to another
        both_ways = torch.minimum(moved, moved.T) * 2
        flat = int(both_ways.argmax())
        a, b = sorted((flat // moved.shape[1], flat % moved.shape[1]))
        share = float((moved[a, b] + moved[b, a]) / moved.sum())
        if changed.sum() >= FEWEST and both_ways[a, b] > 0 and share > EXCHANGED and moved.shape[0] > 2:
            return [{"what": "routing", "layer": layer, "experts": [a, b], "share": share}]
        return []
    return []


def _damaged(kl: torch.Tensor, before: torch.Tensor, layers: tuple[int, ...]) -> list[dict[str, Any]]:
    """The expert whose tokens differ most beyond all others'."""
    logs = kl.double().clamp(FLOOR, 1e6).log()
    best = None
    for index, layer in enumerate(layers):
        for expert in range(before.shape[-1]):
            mine, others = logs[before[index, :, expert]], logs[~before[index, :, expert]]
            if min(len(mine), len(others)) < FEWEST:
                continue
            difference = mine.mean() - others.mean()
            sigma = (mine.var() / len(mine) + others.var() / len(others)).sqrt().clamp_min(1e-9)
            candidate = (float(difference / sigma), layer, expert, float(difference.exp()))
            best = max(best or candidate, candidate)
    if best is None or best[0] < SIGMAS or best[3] < TIMES:
        return []
    return [{"what": "expert", "layer": best[1], "expert": best[2], "times": best[3], "sigmas": best[0]}]
