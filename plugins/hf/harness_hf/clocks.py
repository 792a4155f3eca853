"""When each token was there: a host clock on a CPU; on a GPU, where the host runs ahead, CUDA events on its stream. Of
tokens that come together only the last has a time: there was no gap between them to measure."""

from __future__ import annotations

import time

import torch


class HostClock:
    """Times in ns of time.perf_counter_ns."""

    name = "time.perf_counter_ns"

    def start(self, tokens: int) -> None:
        self._times: list[int | None] = []
        self._started = time.perf_counter_ns()

    def tick(self, tokens: int = 1) -> None:
        """`tokens` more are there."""
        self._times += [*[None] * (tokens - 1), time.perf_counter_ns()]

    def stop(self) -> tuple[list[int | None], int, int]:
        """When each token was there, start and finish."""
        return self._times, self._started, time.perf_counter_ns()


class CudaClock:
    name = "torch.cuda.Event on the model's stream"

    def start(self, tokens: int) -> None:
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(tokens + 1)]
        self._ends: list[torch.cuda.Event | None] = []
        torch.cuda.synchronize()
        self._started = time.perf_counter_ns()
        self._events[0].record()

    def tick(self, tokens: int = 1) -> None:
        event = self._events[len(self._ends) + 1]
        event.record()
        self._ends += [*[None] * (tokens - 1), event]

    def stop(self) -> tuple[list[int | None], int, int]:
        torch.cuda.synchronize()
        finished = time.perf_counter_ns()
        began, started = self._events[0], self._started
        times = [None if one is None else started + round(began.elapsed_time(one) * 1e6) for one in self._ends]
        return times, self._started, max(finished, times[-1])
