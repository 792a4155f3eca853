"""success_results.json and failure_results.json: what works and what does not, by `model::config`. Views of the
records, rebuilt whole each time, so they can be deleted and never disagree with the records for long."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.records import OutputFolder, Record, read_folder, write_json

SUMMARY = (
    "key",
    "status",
    "engine",
    "engine_version",
    "workload",
    "precision",
    "compute_mode",
    "moe_backend",
    "written_at",
)
NUMBERS = ("mean_latency_ms", "output_tokens_per_sec", "perplexity")


def rebuild(folder: OutputFolder) -> None:
    success: dict[str, list[dict[str, Any]]] = {}
    failure: dict[str, list[dict[str, Any]]] = {}
    with _locked(folder.root / ".ledger.lock"):
        for record in read_folder(folder.root):
            key = f"{record['model']}::{record['config']}"
            if record["status"] in ("ok", "mismatch"):
                success.setdefault(key, []).append(_entry(record, NUMBERS))
            elif record["status"] == "failed":
                failure.setdefault(key, []).append(_entry(record, ("failure",)))
        write_json(folder.root / "success_results.json", success)
        write_json(folder.root / "failure_results.json", failure)


def _entry(record: Record, more: tuple[str, ...]) -> dict[str, Any]:
    return {name: record[name] for name in SUMMARY + more if name in record}


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Two runs may share a folder; the kernel lets go of the lock if one of them dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
