"""Nsight Systems: a worker of its own under `nsys profile`, with one batch between cudaProfilerStart and Stop."""

from __future__ import annotations

import glob
import shlex
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from harness.hookspecs import hookimpl
from harness.profiler import ProfilerSpec, around

if TYPE_CHECKING:
    from harness.device import Device
    from harness.engine import Session

PLACES = (
    "/opt/nvidia/nsight-systems/*/bin/nsys",
    "/usr/local/cuda*/bin/nsys",
    "/opt/nvidia/nsight-compute/*/host/target-linux-x64/nsys",  # comes with Nsight Compute
)
OPTIONS = (
    "--trace=cuda,nvtx",
    "--sample=none",  # samples of the CPU would make the report a hundred times as large
    "--cpuctxsw=none",
    "--capture-range=cudaProfilerApi",
    "--capture-range-end=stop",
    "--cuda-graph-trace=node",  # as a whole, a graph hides every kernel in it
    "--trace-fork-before-exec=true",
    "--export=sqlite",
    "--force-overwrite=true",
)


@hookimpl
def harness_register_profilers() -> list[ProfilerSpec]:
    return [
        ProfilerSpec(
            name="nsys",
            summary="Nsight Systems around a worker of its own: kernels of a GPU, inside CUDA graphs too",
            session=session,
            needs="nsys",
            problem=problem,
            # started by nsys already: its capture range is opened, and no other nsys started
            command=None if around() else command,
        )
    ]


def session(engine: Session, folder: Path) -> AbstractContextManager[None]:
    return engine.recording("nsys", folder)


def problem(device: Device) -> str | None:
    if device.kind != "cuda":
        return "nsys sees what runs on an NVIDIA GPU, and there is none here; --profile torch works on a CPU"
    if not around() and find() is None:
        return "there is no nsys on PATH: install Nsight Systems, or use --profile torch"
    return None


def find() -> str | None:
    """The nsys program: that on PATH, else the newest where NVIDIA's installers put it."""
    return shutil.which("nsys") or max((path for place in PLACES for path in glob.glob(place)), default=None)


def command(path: Path) -> Sequence[str]:
    """Of `path` nsys makes `path.nsys-rep` and, exported, `path.sqlite`."""
    return [find() or "nsys", "profile", *OPTIONS, f"--output={path}"]


def by_hand(path: Path, words: Sequence[str]) -> str:
    """The line that profiles a `harness run` of these words in one process tree, for a shell."""
    return shlex.join([*command(path), "harness", *words])
