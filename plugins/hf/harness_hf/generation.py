"""What decoders share: what a generation gives, who may look on, and when its logits are refused.

A: batch, S: steps, V: vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

from harness import BadOutput
from harness_hf.clocks import CudaClock, HostClock

PREFILL, DECODE = "harness.prefill", "harness.decode"  # ranges of a profiled run
NOTHING = nullcontext()

# Tokens [A, S], when each was there, start and finish, in ns
Generated = tuple[torch.Tensor, list[int | None], int, int]
OnLogits = Callable[[torch.Tensor], None]  # takes [A, V] of a step; the memory is the next step's again
Mark = Callable[[str], AbstractContextManager]


def unmarked(name: str) -> AbstractContextManager:
    """What a timed run puts around a step."""
    return NOTHING


def ignore(logits_AV: torch.Tensor) -> None:
    """What a timed run does with logits."""


def check(highest_AS: torch.Tensor) -> None:
    """The highest logit of every step: one NaN among the logits makes it NaN, at no cost of its own. Raises BadOutput."""
    if not (finite_S := torch.isfinite(highest_AS).all(0)).all():
        raise BadOutput(f"logits of step {int((~finite_S).nonzero()[0])} are not finite")


class Run:
    """What one generation has given so far."""

    def __init__(self, timer: HostClock | CudaClock, mark: Mark, on_logits: OnLogits) -> None:
        self.tokens: list[torch.Tensor] = []  # [A] each
        self.highest: list[torch.Tensor] = []
        self.tick, self._mark, self._on_logits = timer.tick, mark, on_logits

    def step(self) -> AbstractContextManager:
        return self._mark(DECODE)

    def took(self, value_A: torch.Tensor, token_A: torch.Tensor, logits_AV: torch.Tensor) -> None:
        self.tokens.append(token_A)
        self.highest.append(value_A)
        self._on_logits(logits_AV)
