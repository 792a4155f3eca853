"""What a request gets, with the types of the real ones."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

EPOCH_S = 250_000.0  # its steady clock has a zero of its own, so that only differences mean anything
NAMES = ("arrival_time", "first_scheduled_time", "first_token_time", "last_token_time")


class RequestError(RuntimeError):
    """A request the engine could not serve."""


@dataclass(frozen=True)
class Logprob:
    logprob: float
    rank: int | None = None


@dataclass(frozen=True)
class TimingMetrics:
    """On a steady clock whose zero means nothing."""

    arrival_time: timedelta
    first_scheduled_time: timedelta
    first_token_time: timedelta
    last_token_time: timedelta
    kv_cache_transfer_start: timedelta = timedelta(0)
    kv_cache_transfer_end: timedelta = timedelta(0)


@dataclass(frozen=True)
class RequestPerfMetrics:
    timing_metrics: TimingMetrics


@dataclass
class CompletionOutput:
    index: int
    text: str = ""
    token_ids: list[int] | None = field(default_factory=list)
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] | None = field(default_factory=list)
    prompt_logprobs: list[dict[int, Logprob]] | None = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    generation_logits: torch.Tensor | None = None
    request_perf_metrics: RequestPerfMetrics | None = None

    @property
    def length(self) -> int:
        return len(self.token_ids)


class RequestOutput:
    """Of a request under way; what it got is there after result()."""

    def __init__(self, request_id: int, prompt_token_ids: list[int], cancel: Callable[[int], None]) -> None:
        self.request_id, self.prompt_token_ids, self.prompt = request_id, prompt_token_ids, None
        self.outputs = [CompletionOutput(0)]
        self.finished = False
        self.context_logits: torch.Tensor | None = None
        self.cached_tokens = 0
        self.decoding_iter = 0
        self.avg_decoded_tokens_per_iter: float | None = None
        self.metrics_dict: dict[str, float] = {}
        self._cancel, self._aborted, self._error = cancel, False, None
        self._answered = threading.Event()

    def result(self, timeout: float | None = None) -> RequestOutput:
        if not self._answered.wait(timeout):
            raise TimeoutError
        if self._error is not None:
            raise RequestError(self._error)
        return self

    def abort(self) -> None:
        self._aborted = True
        self._cancel(self.request_id)

    def aborted(self) -> bool:
        return self._aborted

    def answer(self, found: dict[str, Any]) -> None:
        """Called by the executor, once."""
        self._error = found.get("error")
        if self._error is None:
            self._fill(found)
        self.finished = True
        self._answered.set()

    def _fill(self, found: dict[str, Any]) -> None:
        completion = self.outputs[0]
        completion.token_ids = list(found["token_ids"])
        completion.finish_reason, completion.stop_reason = found["finish_reason"], found["stop_reason"]
        completion.generation_logits = _tensor(found["generation_logits"])
        rows = found["prompt_logprobs"]
        completion.prompt_logprobs = [{token: Logprob(*pair) for token, pair in row.items()} for row in rows]
        self.context_logits = _tensor(found["context_logits"])
        self.cached_tokens = found["cached_tokens"]
        self.decoding_iter = len(completion.token_ids)
        if found["times"] is not None:
            timing = TimingMetrics(**{name: timedelta(seconds=found["times"][name]) for name in NAMES})
            completion.request_perf_metrics = RequestPerfMetrics(timing)


def now() -> float:
    """Seconds on the engine's clock."""
    return EPOCH_S + time.monotonic()


def _tensor(array: Any) -> torch.Tensor | None:
    if array is None:
        return None
    import torch  # late: where the model is in another process, ranks and the asking process start without it

    return torch.from_numpy(array)
