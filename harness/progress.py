"""What is under way, on stderr: one line that rewrites itself on a terminal, plain lines now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO

from harness.cells import Load

PLAIN_EVERY_S = 5.0


class Progress:
    """Told of every event; says cell, iteration and the time its cell still takes."""

    def __init__(self, total: int, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._is_terminal = self._stream.isatty()
        self._total, self._finished = total, 0
        self._what = ""
        self._started = self._printed = 0.0

    def on_event(self, load: Load, event: dict[str, Any]) -> None:
        now = time.monotonic()
        setup = load.setup
        match event["event"]:
            case "loading":
                self._what, self._started = f"{setup.engine} {setup.model} {setup.precision}", now
                self._say("loading")
            case "started":
                cell = load.cells[event["cell"]]
                self._what, self._started = f"{setup.engine} {setup.model} {setup.precision} {cell.workload}", now
                self._say("started")
            case "progress":
                done, of = event["done"], event["of"]
                if self._is_terminal or now - self._printed >= PLAIN_EVERY_S:
                    self._say(f"{done}/{of}, {(now - self._started) / done * (of - done):.0f} s left")
            case "measured":
                self._say(f"done in {now - self._started:.1f} s")
                self._finished += 1
            case "failed":
                self._say(f"failed: {event['failure_class']}: {event['message'][:200]}")

    def close(self) -> None:
        if self._is_terminal:
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def _say(self, text: str) -> None:
        line = f"[{min(self._finished + 1, self._total)}/{self._total}] {self._what}: {text}"
        self._stream.write(f"\r\x1b[K{line[:120]}" if self._is_terminal else line + "\n")
        self._stream.flush()
        self._printed = time.monotonic()
