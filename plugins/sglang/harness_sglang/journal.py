"""What SGLang's scheduler says before it dies, in a file of the worker's own folder.

A scheduler that fails sends SIGQUIT to its parent, whose handler, SGLang's own, kills every process and itself. While
the engine starts `ended` takes the handler's place, so that there is an exception with the scheduler's own words.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

FILE = Path("sglang.log")  # the processes share the folder they were started in


def clear() -> None:
    """What an earlier engine of this folder said must not be taken for this one's."""
    FILE.unlink(missing_ok=True)


def attach() -> None:
    """From now on what this process logs as an error is written there, too."""
    handler = logging.FileHandler(FILE.absolute(), delay=True)
    handler.setLevel(logging.ERROR)
    logging.getLogger("sglang").addHandler(handler)


def last_error() -> str | None:
    """The exception the scheduler ended with, as `Type: words`; None when there is none."""
    try:
        lines = FILE.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    errors = [line for line in lines if re.match(r"(?:[\w.]+\.)?\w*(?:Error|Exception)(?::|$)", line)]
    return errors[-1] if errors else None


def ended(number: int, frame: object) -> None:
    """Handler of SIGQUIT. Raises RuntimeError."""
    raise RuntimeError(f"SGLang's scheduler ended: {last_error() or 'without a word'}")
