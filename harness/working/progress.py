"""What is under way, on stderr: one line that rewrites itself on a terminal, plain lines now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO

from harness.cells import Load

PLAIN_EVERY_S = 5.0


class Progress:
    """Told of every event of every worker; says cell, iteration, the time its cell still takes, and that of the run."""

    def __init__(self, total: int, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._is_terminal = self._stream.isatty()
        self._total = total
        self._finished: set[int] = set()  # cells, by identity; in a later round one is not counted again
        self._under_way: dict[int, tuple[str, float]] = {}  # by load: its cell in words, and since when
        self._begun, self._printed = time.monotonic(), 0.0

    def on_event(self, load: Load, event: dict[str, Any]) -> None:
        now = time.monotonic()
        if event["event"] == "loading":
            self._under_way.pop(id(load), None)  # of a load that is gone, whose place this one has in memory
        what, since = self._under_way.get(
            id(load), (f"{load.setup.engine} {load.setup.model} {load.setup.precision}", now)
        )
        match event["event"]:
            case "loading":
                self._say(what, "loading")
            case "started":
                setup, cell = load.setup, load.cells[event["cell"]]
                what = f"{setup.engine} {setup.model} {setup.precision} {cell.workload}"
                self._under_way[id(load)] = (what, now)
                self._say(what, "started")
            case "progress":
                done, of = event["done"], event["of"]
                if self._is_terminal or now - self._printed >= PLAIN_EVERY_S:
                    self._say(what, f"{done}/{of}, {(now - since) / done * (of - done):.0f} s left")
            case "measured":
                self._finished.add(id(load.cells[event["cell"]]))
                self._say(what, f"done in {now - since:.1f} s{self._rest(now)}")
            case "failed":
                self._say(what, f"failed: {event['failure_class']}: {event['message'][:200]}")

    def close(self) -> None:
        if self._is_terminal:
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def _rest(self, now: float) -> str:
        """If what is left takes as long, cell by cell, as what is done did; a later round is not foreseen."""
        left = self._total - len(self._finished)
        seconds = (now - self._begun) / len(self._finished) * left
        return f"; about {_clock(seconds)} for the {left} cells left" if left > 1 else ""

    def _say(self, what: str, text: str) -> None:
        line = f"[{min(len(self._finished) + 1, self._total)}/{self._total}] {what}: {text}"
        self._stream.write(f"\r\x1b[K{line[:120]}" if self._is_terminal else line + "\n")
        self._stream.flush()
        self._printed = time.monotonic()


def _clock(seconds: float) -> str:
    minutes = round(seconds / 60)
    return (
        f"{seconds:.0f} s"
        if seconds < 100
        else f"{minutes // 60} h {minutes % 60:02} min"
        if minutes >= 100
        else f"{minutes} min"
    )
