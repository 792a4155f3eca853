"""The record of a cell: one JSON file, written whole or not at all. Records are the truth; all else is a view of them.

Schema history:
  1  first version
  2  conditions are complete, unknown ones null; raw.token_ns holds each timeline once, with its requests
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import harness
from harness.cells import Cell
from harness.device import Device
from harness.errors import UsageError
from harness.failures import Failure
from harness.launcher import Outcome
from harness.names import safe_name
from harness.recording import conditions
from harness.serde import to_json

SCHEMA_VERSION = 2
IDENTITY = frozenset(
    "key status workload engine engine_version model weights precision compute_mode config environment".split()
)
QUESTION = ("workload", "model", "weights", "batch_size", "input_len", "output_len", "dataset")
MEASURED = ("ok", "mismatch")  # statuses of records that hold numbers
# How the file of a record starts.
HEAD = re.compile(rb'\{\s*"schema_version": (?P<schema>\d+),\s*"key": "\w+",\s*"status": "(?P<status>\w+)"')
BESIDE = ".failed.json"  # after the key: the last failed try of a cell that was measured before
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


def question(record: Record) -> tuple[Any, ...]:
    """What was asked, whatever the engine and the precision: records of one question are held against each other."""
    return *map(record.get, QUESTION), shared_config(record)


def shared_config(record: Record) -> str:
    """Its configuration without the rungs that are its precision's own arithmetic: what other precisions have, too."""
    config = str(record["config"])
    asked, shared = ((record.get(name) or {}).get("rungs") for name in ("requested", "conditions"))
    return config.removesuffix(asked) + shared if asked and shared and config.endswith(asked) else config


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
    wrong += _wrong_rungs(cell.setup.rung_names, outcome.facts)
    return ("mismatch", "; ".join(wrong)) if wrong else ("ok", None)


def _wrong_rungs(asked: tuple[str, ...] | None, facts: dict[str, Any]) -> list[str]:
    """What was asked for and is not in force, or is and was not. None: nothing was asked."""
    if asked is None:
        return []
    found, off = facts.get("rungs_in_force"), facts.get("rungs_off") or {}
    if not isinstance(found, dict):
        return ["which rungs are in force the engine did not say"]
    missing = [name for name in asked if name not in found]
    return [
        *(f"rung {name} is not in force: {off.get(name) or 'the engine did not say why'}" for name in missing),
        *(f"rung {name} is in force and was not asked for" for name in found if name not in asked),
    ]


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

    def read(self, key: str) -> Record | None:
        """The record of a cell; None where there is none."""
        found = _parsed(self.root / "records" / f"{key}.json")
        return found if is_record(found) else None

    def status(self, key: str) -> str | None:
        """That of a cell's record, from its first lines: a resume asks for thousands. None where there is no record."""
        try:
            with (self.root / "records" / f"{key}.json").open("rb") as file:
                found = HEAD.match(file.read(200))
        except OSError:
            return None
        return found["status"].decode() if found and int(found["schema"]) == SCHEMA_VERSION else None

    def write(self, record: Record) -> Path:
        """Writes the record and its view under the seeds' name. What was measured is not lost to a later failure, which
        goes beside it, nor what a newer harness wrote. Raises OSError (disk full); no torn file remains."""
        folder, stem = self.root / "records", record["key"]
        is_interrupted = record["status"] == "failed" and record["failure"]["class"] == "interrupted"
        with locked(self.root / ".records.lock"):
            if is_newer(_parsed(folder / f"{stem}.json")):
                stem += f".schema{SCHEMA_VERSION}"
            path = folder / f"{stem}.json"
            old = _parsed(path)
            if is_record(old) and old["status"] in MEASURED and record["status"] not in MEASURED:
                if record["status"] == "failed" and not is_interrupted:
                    path = folder / (stem + BESIDE)
                    write_json(path, record)
            elif not (is_interrupted and path.exists()):  # an answer is not lost to an impatient second try
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
    """The record of every cell of an output folder, by file name; of a cell that was measured and failed in a later
    try, what was measured. A file that is no record is passed over."""
    for path, value in read_files(root):
        is_beside = path.name.endswith(BESIDE) and path.with_name(path.name.removesuffix(BESIDE) + ".json").exists()
        if is_record(value) and not is_beside:
            yield value


def read_files(root: Path) -> Iterator[tuple[Path, Any]]:
    """Every file of an output folder that is to hold a record, and what it holds: None where that is no JSON."""
    for path in sorted((root / "records").glob("*.json")):
        yield path, _parsed(path)


def _parsed(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def is_newer(value: Any) -> bool:
    """A record of a schema that this version does not know."""
    version = value.get("schema_version") if isinstance(value, dict) else None
    return isinstance(version, int) and version > SCHEMA_VERSION


def is_record(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.get("schema_version") == SCHEMA_VERSION
        and IDENTITY <= value.keys()
        and isinstance(value.get("conditions"), dict)
    )


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Two runs may share a folder; the kernel lets go of the lock if one of them dies. Raises OSError, for a link too."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o666), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write_json(path: Path, value: Any) -> None:
    """All of it or none of it: a temporary file in the same folder, flushed to disk, then renamed."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """As `write_json`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
