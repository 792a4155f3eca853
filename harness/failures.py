"""From what went wrong to one of the failure classes. The engine's own words are always kept beside the class."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass
from pathlib import Path

from harness.errors import CellError

CLASSES = ("out_of_memory", "timeout", "crashed", "load_failed", "bad_output", "unsupported", "interrupted", "internal")
TAIL_LINES = 20

# Words of libraries, each seen in the wild: PyTorch CUDA and CPU allocators, the C++ runtime, NumPy, the kernel.
_OUT_OF_MEMORY = re.compile(
    r"CUDA out of memory|OutOfMemoryError|CUDA_ERROR_OUT_OF_MEMORY|can't allocate memory|not enough memory"
    r"|std::bad_alloc|Unable to allocate|Cannot allocate memory|\bMemoryError\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Failure:
    failure_class: str  # one of CLASSES
    message: str


def of_exception(error: BaseException, while_loading: bool) -> Failure:
    """Class of an exception raised in a worker, while the engine loaded or while a cell was measured."""
    words = " ".join(f"{type(error).__name__}: {error}".split())[:2000]
    if isinstance(error, CellError):
        return Failure(error.failure_class, " ".join(str(error).split())[:2000])
    if isinstance(error, MemoryError) or is_out_of_memory(words):
        return Failure("out_of_memory", words)
    return Failure("load_failed" if while_loading else "crashed", words)


def is_out_of_memory(words: str) -> bool:
    return _OUT_OF_MEMORY.search(words) is not None


def of_exit(status: int, log_tail: str, oom_kills: int) -> Failure:
    """Class of a worker that ended without saying why. `oom_kills`: how many the kernel counted meanwhile."""
    if status == -signal.SIGKILL and oom_kills > 0:
        return Failure("out_of_memory", "killed by the kernel's out-of-memory killer")
    if status < 0:
        try:
            how = f"killed by {signal.Signals(-status).name}"
        except ValueError:
            how = f"killed by signal {-status}"
    else:
        how = f"ended with exit status {status} before it was done"
    if is_out_of_memory(log_tail):
        return Failure("out_of_memory", f"the worker {how} after running out of memory")
    return Failure("crashed", f"the worker was {how}" if status < 0 else f"the worker {how}")


def oom_kill_count() -> int:
    """Processes the kernel has killed for memory since boot, on this host (Linux; 0 elsewhere)."""
    try:
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    except OSError:
        pass
    return 0


def tail(path: Path, start: int = 0) -> str:
    """Last lines of a log, without reading all of a long one."""
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(start, file.tell() - 16384))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-TAIL_LINES:])
