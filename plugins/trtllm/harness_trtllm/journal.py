"""What the engine says while it loads, read back from the log its processes write to: it says nowhere else that it put
another MoE kernel in place of the one asked for."""

from __future__ import annotations

import os
import re
import stat

DOWNGRADE = re.compile(r"Using \w+ instead|MoE backend \S+ cannot serve this layer")
KEPT, LONGEST, READ = 20, 400, 16 << 20  # lines, characters, bytes


class Journal:
    """From now on, where stdout or stderr is a file; elsewhere there is nothing to read."""

    def __init__(self) -> None:
        self._starts = {number: os.fstat(number).st_size for number in _files()}

    def downgrades(self) -> list[str] | None:
        """Lines that say so, each once; None where nothing can be read."""
        if not self._starts:
            return None
        lines = [line[:LONGEST] for text in map(self._text, self._starts) for line in text.splitlines()]
        return list(dict.fromkeys(line for line in lines if DOWNGRADE.search(line)))[:KEPT]

    def _text(self, number: int) -> str:
        try:
            with open(f"/proc/self/fd/{number}", "rb") as file:  # a reader of its own: the writers' place stays
                file.seek(self._starts[number])
                return file.read(READ).decode("utf-8", "replace")
        except OSError:
            return ""


def _files() -> dict[int, None]:
    """Of stdout and stderr those that are files, one of two that are the same."""
    found: dict[tuple[int, int], int] = {}
    for number in (1, 2):
        try:
            status = os.fstat(number)
        except OSError:
            continue
        if stat.S_ISREG(status.st_mode):
            found.setdefault((status.st_dev, status.st_ino), number)
    return dict.fromkeys(found.values())
