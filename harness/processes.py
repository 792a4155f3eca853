"""Ends every process a worker started, whatever session or parent it is in by now.

A process group is left by whoever calls setsid; an environment is inherited by all. So a worker's environment carries
a mark, and what carries it is its own.
"""

from __future__ import annotations

import os
import signal
import uuid
from pathlib import Path

NAME = "HARNESS_WORKER"


def new_mark() -> str:
    return uuid.uuid4().hex


def kill_marked(mark: str, spare: int | None = None) -> None:
    """Kills all that carry the mark but `spare`, until none is found: one may start another while it is killed."""
    wanted = f"{NAME}={mark}".encode()
    for _ in range(10):
        found = [process for process in _processes() if process != spare and wanted in _environment(process)]
        for process in found:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                pass
        if not found:
            return


def _processes() -> list[int]:
    """Empty where there is no /proc; there the process group has to do."""
    return [int(path.name) for path in Path("/proc").glob("[0-9]*")]


def _environment(process: int) -> list[bytes]:
    try:
        return Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    except OSError:  # it ended, or is another user's
        return []
