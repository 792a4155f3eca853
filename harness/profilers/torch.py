"""PyTorch's profiler, through the engine: Kineto JSON of one batch, each step in a range of its own."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from harness.hookspecs import hookimpl
from harness.profiler import ProfilerSpec

if TYPE_CHECKING:
    from harness.engine import Session


@hookimpl
def harness_register_profilers() -> list[ProfilerSpec]:
    return [
        ProfilerSpec(
            name="torch",
            summary="PyTorch's profiler in the engine's own process: operations of a CPU, kernels of a GPU",
            session=session,
            needs="torch_profiler",
        )
    ]


def session(engine: Session, folder: Path) -> AbstractContextManager[None]:
    return engine.recording("torch", folder)
