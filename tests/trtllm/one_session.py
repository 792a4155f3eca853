"""Sessions of the engine, one after the other in a process of their own, whose main module it is: what each says of
itself, what it scored, or its error.

    python one_session.py SESSIONS ANSWERS

SESSIONS is a JSON list of objects: of a Setup's fields, `workload`, `profiler`, `what` (facts, scores or passes) and
`fault` (of the double).
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from harness import Session, Unsupported
from harness.cells import Cell, Load, Setup
from harness.errors import CellError
from harness.model import models
from harness.plugins import discover
from harness.precision import NATIVE, Support
from harness.serde import to_json

PROMPT = [(step * 11) % 200 + 3 for step in range(80)]
OUTPUT_LEN = 4


def main(sessions: str, answers: str) -> None:
    Path(answers).write_text(json.dumps([to_json(_session(**asked)) for asked in json.loads(sessions)]))


def _session(
    what: str = "facts", workload: str = "perf", profiler: str | None = None, fault: str = "", **named: object
) -> dict:
    os.environ["TRTLLM_DOUBLE_FAULT"] = fault
    model = models.resolve("tinymoe")
    setup = Setup(**{"engine": "trtllm", "model": model.name, "path": model.path, "precision": "bf16", **named})
    parameters = {"batch_size": 1, "input_len": len(PROMPT), "output_len": OUTPUT_LEN}
    cell = Cell(setup, workload, parameters, Support(NATIVE))
    try:
        session = discover().engines["trtllm"].load(Load(setup, (cell,), NATIVE, profiler=profiler))
        if what == "scores":
            list(session.score([PROMPT, PROMPT]))
        refused = _passes(session, profiler) if what == "passes" else None
        found = {**session.facts(), "refused": refused}
        session.close()
    except CellError as error:
        return {"failure_class": error.failure_class, "message": str(error)}
    return found


def _passes(session: Session, profiler: str) -> str | None:
    """As the worker makes them: two, and the one that is recorded. And what is said of the other profiler."""
    for _ in range(2):
        session.generate([PROMPT], OUTPUT_LEN)
    with session.recording(profiler, Path.cwd()):
        session.generate([PROMPT], OUTPUT_LEN)
    try:
        session.recording("torch", Path.cwd())
    except Unsupported as error:
        return str(error)


if __name__ == "__main__":
    main(*sys.argv[1:])
