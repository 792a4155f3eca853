"""A profiler's view of an engine in this process: steps and modules in ranges of their own."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, record_function

from harness.profilers.ranges import modules_marked, window


@contextmanager
def recording(engine: Any, profiler: str, folder: Path) -> Iterator[None]:
    """See harness.engine.Session. `engine`: the model_engine of the executor. For nsys its ranges are there already."""
    if profiler == "nsys":
        with window(profiler, ""):
            yield
        return
    activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * torch.cuda.is_available()]
    # the executor's loop runs in a thread of its own; by itself the profiler sees the operations of ours only
    every_thread = torch._C._profiler._ExperimentalConfig(profile_all_threads=True)
    with modules_marked(engine.model, record_function), _steps_marked(engine):
        with torch.profiler.profile(activities=activities, experimental_config=every_thread) as profile:
            yield
            if torch.cuda.is_available():
                torch.cuda.synchronize()
    profile.export_chrome_trace(str(folder / "rank0.json.gz"))


@contextmanager
def _steps_marked(engine: Any) -> Iterator[None]:
    """Each step, replayed or not, in a range of the name that the engine gives it in NVTX, which this profiler does not
    see."""
    forward, numbers = engine.forward, itertools.count()

    def marked(scheduled_requests: Any, *others: Any, **named: Any) -> Any:
        contexts, generations = scheduled_requests.context_requests, scheduled_requests.generation_requests
        requests = f"{len(contexts)} ctx reqs, {len(generations)} gen reqs"
        with record_function(f"[Executor] _forward_step {next(numbers)}: {requests}"):
            return forward(scheduled_requests, *others, **named)

    engine.forward = marked
    try:
        yield
    finally:
        engine.forward = forward
