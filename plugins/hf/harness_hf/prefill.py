"""Ways to bring prompts into a fixed cache: whole, in pieces, or only what follows a prefix that prompts share.

A: batch, T: tokens of a prompt, P: of a shared prefix.
"""

from __future__ import annotations

import torch
from transformers.cache_utils import Cache, StaticLayer

from harness_hf.caches import Caches, computed_in, shorten
from harness_hf.steps import Answer, Step

PIECE = 256  # tokens of each prompt at once
SHORTEST, KEPT = 16, 4  # tokens of a prefix worth keeping; prefixes kept
PARTS = ("keys", "values", "keys_scale", "values_scale")
Layer = tuple[torch.dtype, dict[str, torch.Tensor]]  # what attention computes in, and what is stored


class Pieces:
    """Each prompt PIECE tokens at a time."""

    def __init__(self, prefill: Step) -> None:
        self.prefill = prefill
        self.most = 0  # pieces that a prompt was cut into

    def __call__(self, ids_AT: torch.Tensor, cache: Cache) -> Answer:
        pieces = ids_AT.split(PIECE, dim=1)
        self.most = max(self.most, len(pieces))
        for piece_AT in pieces[:-1]:
            self.prefill(piece_AT, cache)
        return self.prefill(pieces[-1], cache)


class SharedPrefix:
    """Keys and values of what different prompts have in common. A prompt given again shares nothing with itself: timed
    iterations over one prompt stay what they were."""

    def __init__(self, prefill: Step, caches: Caches) -> None:
        self.prefill, self._caches = prefill, caches
        self._kept: dict[tuple[int, ...], list[Layer]] = {}
        self.hits = 0  # tokens of the latest batch that were not computed for it, over all prompts

    def __call__(self, ids_AT: torch.Tensor, cache: Cache) -> Answer:
        rows = ids_AT.tolist()
        fits = [
            prefix for prefix in self._kept if len(prefix) < len(rows[0]) and all(_starts(row, prefix) for row in rows)
        ]
        prefix, shared = max(fits, key=len, default=()), _shared(rows)
        if len(shared) > len(prefix) and len(shared) >= SHORTEST:
            self._keep(ids_AT[:1, : len(shared)], shared)
            prefix, self.hits = shared, (len(rows) - 1) * len(shared)
        else:
            self.hits = len(rows) * len(prefix)
        if prefix:
            _put(self._kept[prefix], cache, len(rows), len(prefix))
        return self.prefill(ids_AT[:, len(prefix) :], cache)

    def _keep(self, ids_1P: torch.Tensor, prefix: tuple[int, ...]) -> None:
        alone = self._caches(1)
        self.prefill(ids_1P, alone)
        self._kept[prefix] = [(computed_in(layer), _parts(layer, len(prefix))) for layer in alone.layers]
        while len(self._kept) > KEPT:
            del self._kept[next(iter(self._kept))]


def _parts(layer: StaticLayer, length: int) -> dict[str, torch.Tensor]:
    return {part: getattr(layer, part)[:, :, :length].clone() for part in PARTS if hasattr(layer, part)}


def _put(kept: list[Layer], cache: Cache, batch_size: int, length: int) -> None:
    for layer, (dtype, parts) in zip(cache.layers, kept):
        if not layer.is_initialized:
            empty = [parts[name][:, :, :0].to(dtype).expand(batch_size, -1, -1, -1) for name in ("keys", "values")]
            layer.lazy_initialization(*empty)
        for part, value_1GPD in parts.items():
            getattr(layer, part)[:, :, :length].copy_(value_1GPD.expand(batch_size, -1, -1, -1))
    shorten(cache, length)


def _starts(row: list[int], prefix: tuple[int, ...]) -> bool:
    return tuple(row[: len(prefix)]) == prefix


def _shared(rows: list[list[int]]) -> tuple[int, ...]:
    """What all of two or more different prompts start with."""
    columns = list(zip(*rows))
    length = next((place for place, column in enumerate(columns) if len(set(column)) > 1), 0)
    return tuple(rows[0][:length])
