"""The record of a cell: one JSON file, written whole or not at all. Records are the truth; all else is a view of them.

Schema history:
  1  first version
  2  conditions are complete, unknown ones null; raw.token_ns holds each timeline once, with its requests
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import harness
from harness import conditions
from harness.cells import Cell
from harness.device import Device
from harness.errors import UsageError
from harness.failures import Failure
from harness.launcher import Outcome
from harness.names import safe_name
from harness.serde import to_json

SCHEMA_VERSION = 2
IDENTITY = frozenset(
    "key status workload engine engine_version model weights precision compute_mode config environment".split()
)
FREE_BYTES = 16 << 20  # less room than this is said before a model is loaded

Record = dict[str, Any]


def make(cell: Cell, outcome: Outcome | None, version: str | None, device: Device) -> Record:
    """The record of one cell. `outcome` is None for a cell that was not attempted."""
    setup, facts = cell.setup, outcome.facts if outcome else {}
    status, reason = _status(cell, outcome)
    record: Record = {
        "schema_version": SCHEMA_VERSION,
        "key": cell.key(version, device),
        "status": status,
        "reason": reason,
        "failure": _failure(outcome) if status == "failed" else None,
        "workload": cell.workload,
        "engine": setup.engine,
        "engine_version": facts.get("engine_version", version),
        "model": setup.model,
        "weights": setup.weights,
        "precision": setup.precision,
        "quant_algo": facts.get("quant_algo"),
        "compute_mode": facts.get("compute_mode", cell.support.mode),
        "config": setup.config,
        "sm_version": device.sm,
        "gpu_name": device.name if device.kind == "cuda" else None,
        "moe_backend": facts.get("moe_backend"),
        "fusion_disabled": setup.disable_fusion,
        "requested": {**to_json(setup), **cell.parameters, "compute_mode": cell.support.mode},
        "effective": facts,
        "conditions": conditions.of(cell, device, facts, outcome.conditions, outcome.weights) if outcome else {},
        "environment": _environment(device, facts),
        "load_seconds": outcome.load_seconds if outcome else None,
        "written_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    results = outcome.results if outcome else {}
    if taken := sorted(record.keys() & results.keys()):
        failure = Failure("internal", f"workload {cell.workload} may not set {', '.join(taken)}")
        return make(cell, replace(outcome, failure=failure, results={}), version, device)
    return {**record, **cell.parameters, **results, **record}  # no parameter's name can hide a name of ours


def interrupted(cell: Cell, version: str | None, device: Device) -> Record:
    return make(cell, Outcome(Failure("interrupted", "stopped by the user before it was measured")), version, device)


def _status(cell: Cell, outcome: Outcome | None) -> tuple[str, str | None]:
    if outcome is None:
        return "skipped", cell.skip
    if outcome.failure:
        return "failed", None
    asked = {"precision": cell.setup.precision, "compute_mode": cell.support.mode}
    wrong = [
        f"{name} is {outcome.facts[name]}, not {value}" for name, value in asked.items() if outcome.facts[name] != value
    ]
    return ("mismatch", "; ".join(wrong)) if wrong else ("ok", None)


def _failure(outcome: Outcome) -> dict[str, str]:
    return {"class": outcome.failure.failure_class, "message": outcome.failure.message, "log_tail": outcome.log_tail}


def _environment(device: Device, facts: dict[str, Any]) -> dict[str, Any]:
    return {
        "harness_version": harness.__version__,
        "platform": platform.platform(),
        "device": to_json(device),
        **facts.get("environment", {}),
    }


class OutputFolder:
    """Where a run writes. Everything it writes lies inside, whatever a model or an engine is called."""

    def __init__(self, root: Path) -> None:
        """Makes the folder. Raises UsageError when it cannot be written, or when hardly any room is left."""
        self.root = root
        try:
            for name in ("records", "inputs", "logs", "traces"):
                (root / name).mkdir(parents=True, exist_ok=True)
                if not (root / name).resolve().is_relative_to(root.resolve()):
                    raise UsageError(f"output folder {str(root)!r}: {name} leads out of it")
            probe = root / f".probe-{os.getpid()}"
            probe.write_bytes(b"x")
            probe.unlink()
            space = os.statvfs(root)
        except OSError as error:
            raise UsageError(f"output folder {str(root)!r} cannot be written: {error.strerror or error}") from error
        if space.f_bavail * space.f_frsize < FREE_BYTES:
            raise UsageError(
                f"output folder {str(root)!r}: {space.f_bavail * space.f_frsize >> 20} MiB free, need {FREE_BYTES >> 20}"
            )

    def log(self, name: str) -> Path:
        return self.root / "logs" / f"{safe_name(name)}.log"

    def write(self, record: Record) -> Path:
        """Writes the record and its view under the seeds' name. Raises OSError (disk full); no torn file remains."""
        path = self.root / "records" / f"{record['key']}.json"
        if record["status"] == "failed" and record["failure"]["class"] == "interrupted" and path.exists():
            return path  # an answer is not lost to an impatient second try
        write_json(path, record)
        write_json(self._view(record), record)
        return path

    def _view(self, record: Record) -> Path:
        device = f"sm{record['sm_version']}" if record["sm_version"] else "cpu"
        parts = [
            record["engine"],
            record["model"],
            record["config"],
            f"{record['workload']}_{record['precision']}_{device}",
        ]
        path = self.root.joinpath(*map(safe_name, parts)).with_name(safe_name(parts[-1]) + ".json")
        if not path.resolve().is_relative_to(self.root.resolve()):  # a link planted inside could still lead out
            raise OSError(f"{path} leads out of the output folder")
        return path


def read_folder(root: Path) -> Iterator[Record]:
    """Every readable record of an output folder, by file name. A file that is no record is passed over."""
    for path in sorted((root / "records").glob("*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if is_record(record):
            yield record


def is_record(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.get("schema_version") == SCHEMA_VERSION
        and IDENTITY <= value.keys()
        and isinstance(value.get("conditions"), dict)
    )


def write_json(path: Path, value: Any) -> None:
    """All of it or none of it: a temporary file in the same folder, flushed to disk, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(value, file, indent=1, allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
