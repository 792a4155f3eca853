"""Which load comes when: in rounds, so that what is compared is measured in turns, and again after some failures."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.cells import Cell, Load

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Policy:
    """When a cell is measured again."""

    rounds: int = 1  # of every cell that measures speed, at least
    max_rounds: int = 1  # at most
    ci_width: float | None = None  # after the least number of rounds: go on until the median's interval is this narrow
    retry: frozenset[str] = frozenset()  # classes of failures that may pass
    retries: int = 1  # of one cell, at most
    fail_fast: bool = False  # the first failure ends the run


@dataclass(frozen=True)
class Turn:
    """A load, or some cells of it, in one worker."""

    load: Load
    round: int = 0
    attempt: int = 0


def following(
    turn: Turn, policy: Policy, found: Iterable[tuple[Cell, Record]], wants_more: Callable[[Cell, Record], bool]
) -> Iterator[Turn]:
    """What comes of a finished turn: its cells once more in the next round, and those to try again in this one.

    `found`: its cells, each with its record. `wants_more`: whether one should be measured once more."""
    found = list(found)
    again = [cell for cell, record in found if wants_more(cell, record)]
    failed = [
        cell
        for cell, record in found
        if record["status"] == "failed" and record["failure"]["class"] in policy.retry and turn.attempt < policy.retries
    ]
    if again:
        yield replace(turn, load=turn.load.only(again), round=turn.round + 1, attempt=0)
    if failed:
        yield replace(turn, load=turn.load.only(failed), attempt=turn.attempt + 1)


class Claims:
    """Cells that this process measures, so that a second one on the same folder takes others. Locks of ranges of one
    file: the kernel lets go of them when their holder dies."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)

    def take(self, keys: Iterable[str]) -> bool:
        """All of them, or none."""
        taken: list[str] = []
        for key in keys:
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, int(key[:15], 16))
            except (BlockingIOError, PermissionError):
                self.release(taken)
                return False
            taken.append(key)
        return True

    def release(self, keys: Iterable[str]) -> None:
        for key in keys:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, int(key[:15], 16))

    def close(self) -> None:
        os.close(self._file)
