"""One session of the engine in a process of its own, whose main module it is: what it says of itself, or its error.

    python one_session.py facts|scores SETUP ANSWER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from harness import models
from harness.cells import Cell, Load, Setup
from harness.errors import CellError
from harness.plugins import discover
from harness.precision import NATIVE, Support
from harness.serde import to_json

PROMPT = [(step * 11) % 200 + 3 for step in range(80)]


def main(what: str, asked: str, answer: str) -> None:
    named = json.loads(asked)
    workload = named.pop("workload", "perf")
    profiler = named.pop("profiler", None)
    model = models.resolve("tinymoe")
    setup = Setup(**{"engine": "trtllm", "model": model.name, "path": model.path, "precision": "bf16", **named})
    cell = Cell(setup, workload, {"batch_size": 2, "input_len": 80, "output_len": 4}, Support(NATIVE))
    try:
        session = discover().engines["trtllm"].load(Load(setup, (cell,), NATIVE, profiler=profiler))
        found = session.facts() if what == "facts" else {"scores": list(session.score([PROMPT, PROMPT]))}
        session.close()
    except CellError as error:
        found = {"failure_class": error.failure_class, "message": str(error)}
    Path(answer).write_text(json.dumps(to_json(found)))


if __name__ == "__main__":
    main(*sys.argv[1:])
