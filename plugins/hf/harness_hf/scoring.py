"""Log-probabilities of given tokens: the body over all tokens at once, the head over a few rows at a time.

A: batch, T: tokens, H: hidden size, N: rows, V: vocabulary.
"""

from __future__ import annotations

import torch
from torch import nn

from harness_hf.grouped import in_few_kernels
from harness_hf.regional import CompiledLayers

LOGIT_ROWS = 1024  # tokens whose full-vocabulary FP32 logits exist at once
COMPILED_ROWS = 4096  # with the reduction fused no FP32 logits exist: BF16 ones of these rows do


def reduced(head: nn.Module, rows_NH: torch.Tensor, target_N: torch.Tensor) -> torch.Tensor:
    """log p of each row's target, [N]: log-softmax in FP32 of the head's logits."""
    logits_NV = head(rows_NH).float()
    return logits_NV.gather(-1, target_N[:, None])[:, 0] - logits_NV.logsumexp(-1)


class Eager:
    """As the model is."""

    def body(self, model: nn.Module, ids_AT: torch.Tensor) -> torch.Tensor:
        """[A, T, H], what the output head reads."""
        return model(input_ids=ids_AT, use_cache=False).last_hidden_state

    def logprobs(self, head: nn.Module, hidden_NH: torch.Tensor, target_N: torch.Tensor, rows: int) -> torch.Tensor:
        """[N]; logits of `rows` rows exist at once."""
        pieces = zip(hidden_NH.split(rows), target_N.split(rows))
        return torch.cat([reduced(head, rows_NH, target) for rows_NH, target in pieces])


class CompiledBody:
    """Layers compiled as one, and the head, each for the shapes it meets: a smaller last batch is filled up, not
    compiled anew. The mask is made outside: made inside, a causal one is a tensor, with which attention takes 3.5 times
    as long as by its rule (H200, 2048 tokens)."""

    def __init__(self, layers: CompiledLayers, backend: str = "inductor") -> None:
        self._layers = layers
        self._reduced = torch.compile(reduced, dynamic=False, backend=backend)
        self.calls = 0
        self._batch: dict[int, int] = {}  # length -> sequences that it was compiled for

    def body(self, model: nn.Module, ids_AT: torch.Tensor) -> torch.Tensor:
        count, length = ids_AT.shape
        self.calls += 1
        full = self._batch.setdefault(length, count)
        if count < full:
            ids_AT = torch.cat([ids_AT, ids_AT[:1].expand(full - count, -1)])
        with self._layers.in_use(), in_few_kernels(model):
            return Eager().body(model, ids_AT)[:count]

    def logprobs(self, head: nn.Module, hidden_NH: torch.Tensor, target_N: torch.Tensor, rows: int) -> torch.Tensor:
        rows = min(COMPILED_ROWS, max(rows, len(target_N)))
        pad = -len(target_N) % rows
        hidden_NH = nn.functional.pad(hidden_NH, (0, 0, 0, pad))
        target_filled = nn.functional.pad(target_N, (0, pad))
        pieces = zip(hidden_NH.split(rows), target_filled.split(rows))
        return torch.cat([self._reduced(head, *piece) for piece in pieces])[: len(target_N)]

    def compiled(self) -> int:
        """Graphs that dynamo has made since."""
        return self._layers.compiled()
