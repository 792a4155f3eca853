"""Loads that vLLM cannot do, one after the other in a process of their own: the class and the words of each failure.

    python failing_loads.py LOADS ANSWERS

LOADS is a JSON list of folders of models; where one is null, tinymoe is loaded with room for no keys and values.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from harness import failures
from harness.cells import Cell, Load, Setup
from harness.model import models
from harness.plugins import discover
from harness.precision import NATIVE, Support


def main(loads: str, answers: str) -> None:
    Path(answers).write_text(json.dumps([asdict(_failure(folder)) for folder in json.loads(loads)]))


def _failure(folder: str | None) -> failures.Failure:
    """As the worker tells it."""
    if folder is None:
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = "100000"  # GiB
    setup = Setup("vllm", "m", folder or models.resolve("tinymoe").path, "bf16")
    cell = Cell(setup, "perf", {"input_len": 16, "output_len": 4}, Support(NATIVE))
    try:
        discover().engines["vllm"].load(Load(setup, (cell,), NATIVE))
    except Exception as error:
        return failures.of_exception(error, while_loading=True)
    raise AssertionError(f"{setup.path} was loaded")


if __name__ == "__main__":
    main(*sys.argv[1:])
