"""What vLLM says while it works, of all its processes, in one file of the worker's own folder.

Two things are only said, never kept: which MoE backends were passed over, and why an engine core did not start.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

FILE = Path("vllm.log")  # the processes share the folder they were started in
WORTH_KEEPING = re.compile(
    r"^Using .*(backend|MoE config)|does not have native support|JIT compilation during inference"
)
KEPT, LONGEST = 40, 400  # lines, characters


def attach() -> None:
    """From now on this process writes there too. Safe to call twice."""
    logger = logging.getLogger("vllm")
    if not any(isinstance(handler, _Journal) for handler in logger.handlers):
        logger.addHandler(_Journal(FILE, delay=True))


class _Journal(logging.FileHandler):
    """A file handler of a class of its own, so that it is known again."""


def lines() -> list[str]:
    try:
        return FILE.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def remarks() -> list[str]:
    """Lines about the choice of kernels, each once, in order."""
    return list(dict.fromkeys(line[:LONGEST] for line in lines() if WORTH_KEEPING.search(line)))[:KEPT]


def potential_backends() -> list[str] | None:
    """MoE backends vLLM chose among; None when it did not say."""
    for line in lines():
        if found := re.search(r"MoE backend out of potential backends: \[(.*?)\]", line):
            return re.findall(r"'([^']+)'", found[1])
    return None


def last_error() -> str | None:
    """The exception an engine core ended with, as `Type: words`; None when there is none."""
    errors = [line for line in lines() if re.match(r"(?:[\w.]+\.)?\w*(?:Error|Exception|Interrupt)(?::|$)", line)]
    return errors[-1] if errors else None
