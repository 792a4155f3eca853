"""Ranges of steps and modules that a profiler can read. Needs torch: for engines, in their workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

Mark = Callable[[str], AbstractContextManager]
MARKS: dict[str, Mark] = {"torch": torch.profiler.record_function, "nsys": torch.cuda.nvtx.range}


@contextmanager
def modules_marked(model: torch.nn.Module, mark: Mark) -> Iterator[None]:
    """Every module's forward runs in a range of its name. Code that was compiled before does not see it."""
    open_ranges: list[AbstractContextManager] = []

    def enter(name: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, inputs: Any) -> None:
            open_ranges.append(mark(name))
            open_ranges[-1].__enter__()

        return hook

    def leave(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        open_ranges.pop().__exit__(None, None, None)

    handles = []
    for name, module in model.named_modules():
        if name:
            handles.append(module.register_forward_pre_hook(enter(name)))
            handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def window(profiler: str, path: str) -> Iterator[None]:
    """What this process does meanwhile is recorded: "torch" writes Kineto JSON to `path`, "nsys" reads it from outside."""
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.synchronize()
    if profiler == "nsys":
        torch.cuda.profiler.start()
        try:
            yield
            torch.cuda.synchronize()
        finally:
            torch.cuda.profiler.stop()
        return
    activities = [torch.profiler.ProfilerActivity.CPU, *[torch.profiler.ProfilerActivity.CUDA] * on_gpu]
    with torch.profiler.profile(activities=activities) as profile:
        yield
        if on_gpu:
            torch.cuda.synchronize()
    profile.export_chrome_trace(path)
