"""success_results.json and failure_results.json: what works and what does not, by `model::config`. Views of the
records, rebuilt whole each time, so they can be deleted and never disagree with the records for long."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from harness.recording.records import (
    MEASURED,
    OutputFolder,
    Record,
    is_newer,
    is_record,
    locked,
    read_files,
    write_json,
)

SUMMARY = (
    "key",
    "status",
    "engine",
    "engine_version",
    "workload",
    "precision",
    "compute_mode",
    "moe_backend",
    "batch_size",
    "input_len",
    "output_len",
    "written_at",
)
NUMBERS = ("mean_latency_ms", "output_tokens_per_sec", "perplexity")
NAMES = ("success_results.json", "failure_results.json")


def rebuild(folder: OutputFolder) -> list[str]:
    """Returns what a person should know of what lay there, a line each. Raises OSError when a view cannot be written.

    A cell that was measured and failed in a later try is in both views.
    """
    success: dict[str, list[dict[str, Any]]] = {}
    failure: dict[str, list[dict[str, Any]]] = {}
    newer: list[str] = []
    with locked(folder.root / ".ledger.lock"):
        for path, record in read_files(folder.root):
            if is_newer(record):
                newer.append(path.name)
            elif is_record(record):
                key = f"{record['model']}::{record['config']}"
                if record["status"] in MEASURED:
                    success.setdefault(key, []).append(_entry(record, NUMBERS))
                elif record["status"] == "failed":
                    failure.setdefault(key, []).append(_entry(record, ("failure",)))
        lines = [told for name in NAMES if (told := _kept_aside(folder.root / name))]
        for name, view in zip(NAMES, (success, failure)):
            write_json(folder.root / name, view)
    return [*lines, *about_newer(folder.root, newer)]


def about_newer(root: Path, names: list[str]) -> list[str]:
    """A line on records that a newer harness wrote, if there are any."""
    if not names:
        return []
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return [f"{root}: {len(names)} of a newer schema, left alone: {shown}; a newer harness reads them"]


def _entry(record: Record, more: tuple[str, ...]) -> dict[str, Any]:
    return {name: record[name] for name in SUMMARY + more if name in record}


def _kept_aside(path: Path) -> str | None:
    """Renames a view that is none, and says so. The views are written whole: something else has torn this one."""
    try:
        view = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        view = None
    if isinstance(view, dict) and all(isinstance(entries, list) for entries in view.values()):
        return None
    aside = path.with_name(f"{path.name}.corrupt-{datetime.now(timezone.utc):%Y%m%dT%H%M%S.%fZ}")
    path.rename(aside)
    return f"{path} was corrupt: rebuilt from the records, the old file is kept as {aside.name}"
