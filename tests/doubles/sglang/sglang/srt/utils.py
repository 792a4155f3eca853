"""What is asked of the double, and how SGLang ends processes: all of them, its own included."""

from __future__ import annotations

import os
import signal
from pathlib import Path

SINS = os.environ.get("SGLANG_DOUBLE", "").split(",")


def kill_process_tree(parent: int, include_parent: bool = True) -> None:
    """Kills every descendant, whoever started it, waits for the children, and then the process itself."""
    for process in (found := _descendants(parent)):
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            pass
    for process in found:
        try:
            os.waitpid(process, 0)
        except ChildProcessError:
            pass
    if include_parent:
        os.kill(parent, signal.SIGKILL)


def _descendants(parent: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(path.parent.name))
    found, generation = [], children.get(parent, [])
    while generation:
        found += generation
        generation = [child for process in generation for child in children.get(process, [])]
    return found
