"""What is seen of each step of the adapter's generate, through the two openings that transformers gives to callers.

A: batch, V: vocabulary. A logits processor sees the logits before the token is chosen, and may choose it; a stopping
criterion is asked when the token is there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from transformers import LogitsProcessor, StoppingCriteria

OnLogits = Callable[[int, torch.Tensor], None]  # takes the step and its logits [A, V]


class Watch(LogitsProcessor):
    """Hands logits on. With `forced`, token ids [A, T], those are what is generated."""

    def __init__(self, on_logits: OnLogits | None = None, forced: torch.Tensor | None = None) -> None:
        self.latest_AV: torch.Tensor | None = None
        self._on_logits, self._forced, self._step = on_logits, forced, 0

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        self.latest_AV, step = scores, self._step
        self._step += 1
        if self._on_logits:
            self._on_logits(step, scores.float())
        if self._forced is None:
            return scores
        return torch.full_like(scores, -torch.inf).scatter_(1, self._forced[:, step : step + 1], 0)


class Clock(StoppingCriteria):
    """Never stops. Keeps the host's time of each token, and the token's logit: the largest, or NaN if one is NaN."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self.times_ns: list[int] = []
        self._chosen: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.LongTensor, scores: Sequence | None, **named: object) -> torch.BoolTensor:
        self.times_ns.append(time.perf_counter_ns())
        self._chosen.append(self._watch.latest_AV.gather(1, input_ids[:, -1:]))
        return torch.zeros(len(input_ids), dtype=torch.bool)

    def is_finite(self) -> bool:
        return bool(torch.isfinite(torch.cat(self._chosen)).all())
