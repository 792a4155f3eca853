"""Stands between the launcher and a worker, so that nothing the worker starts outlives it.

An engine's child may leave the process group (setsid), lose its parent, or overwrite its own environment. The
supervisor is where orphans come to (Linux: PR_SET_CHILD_SUBREAPER), so whatever a worker started is below it in the tree.
"""

from __future__ import annotations

import ctypes
import os
import resource
import select
import signal
import sys
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
TICK_S = 0.2  # where a process cannot be waited for as a descriptor


def supervise(lifeline: int) -> None:
    """Forks. Returns in the child, which goes on as the worker. The parent stays here until the worker has ended or
    the other end of `lifeline` is closed, kills all that is left, and ends as the worker did."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    worker = os.fork()
    if worker == 0:
        os.close(lifeline)
        return
    os.closerange(3, lifeline)  # among them the worker's channel, which must close when the worker ends
    os.closerange(lifeline + 1, 256)
    status = _wait(worker, lifeline)
    _kill_descendants()
    if status is None:
        os.killpg(0, signal.SIGKILL)  # where there is no /proc this is what reaches the others
    _end_as(status)


def _wait(worker: int, lifeline: int) -> int | None:
    """Status of the worker; None when the lifeline was closed first."""
    try:
        ended = [os.pidfd_open(worker)]
    except (AttributeError, OSError):  # no Linux, or an old one
        ended = []
    while True:
        ready, _, _ = select.select([lifeline, *ended], [], [], None if ended else TICK_S)
        if lifeline in ready:
            return None
        process, status = os.waitpid(worker, os.WNOHANG)
        if process:
            return status


def _kill_descendants() -> None:
    """Again and again until there are none: one may start another while it is killed."""
    while found := _descendants(os.getpid()):
        for process in found:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                pass
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            pass


def _descendants(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()  # after the name, which may hold anything
        except OSError:  # it has ended
            continue
        children.setdefault(int(fields[1]), []).append(int(path.parent.name))
    found, generation = [], children.get(root, [])
    while generation:
        found += generation
        generation = [child for process in generation for child in children.get(process, [])]
    return found


def _end_as(status: int) -> None:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number != signal.SIGKILL:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # one core file is enough
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status))
