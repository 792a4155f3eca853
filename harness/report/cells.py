"""The ledger: every cell with what became of it, the failures with their logs, and the provenance of each row.

Provenance repeats itself from row to row, so words and sections are kept once and rows hold their places.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from harness.recording.records import Record
from harness.report.read import STATUSES, Entry
from harness.report.rows import DASH, by, device, number, setup_words, work_words
from harness.report.tables import Table, table

ELSEWHERE = frozenset("raw per_chunk_ppls profile roofline failure".split())  # shown in other parts, or raw data
SECTIONS = ("conditions", "requested", "effective", "environment")
LONGEST = 2000  # characters of one value


def counts(entries: Sequence[Entry]) -> list[tuple[str, int]]:
    found = by(entries, lambda entry: entry.record["status"])
    return [(status, len(found.get(status, ()))) for status in STATUSES]


def failures(entries: Iterable[Entry]) -> list[dict[str, Any]]:
    """Newest first; also those whose cell was measured later: a success does not make a failure unseen."""
    failed = [entry for entry in entries if entry.record["status"] == "failed"]
    failed.sort(key=lambda entry: str(entry.record.get("written_at") or ""), reverse=True)
    return [
        {
            "what": cell_words(entry.record),
            "class": str(entry.record["failure"].get("class")),
            "message": str(entry.record["failure"].get("message") or ""),
            "log": str(entry.record["failure"].get("log_tail") or ""),
            "where": f"{entry.folder}/records/{entry.file}",
            "when": str(entry.record.get("written_at") or ""),
            "is_old": not entry.is_current,
        }
        for entry in failed
    ]


def reasons(entries: Iterable[Entry], status: str) -> list[tuple[str, list[str]]]:
    """Reasons of skipped or mismatched cells, each with its cells."""
    found = by((e.record for e in entries if e.record["status"] == status), lambda record: str(record["reason"]))
    words = ("engine", "model", "precision", "workload")
    return [
        (reason, list(dict.fromkeys(" ".join(str(record[name]) for name in words) for record in records)))
        for reason, records in found.items()
    ]


def cell_words(record: Record) -> str:
    words = [setup_words(record), str(record["model"]), str(record["config"]), str(record["workload"])]
    return " ".join(words) + (f", {work_words(record)}" if record["workload"] == "perf" else "")


def ledger(entries: Sequence[Entry]) -> Table:
    """A row per record, current or not; `details` has the provenance of each, in the order of the rows."""
    found = table("cells", [_row(entry) for entry in entries])
    return {**found, "details": provenance([entry.record for entry in entries])}


def _row(entry: Entry) -> dict[str, Any]:
    record = entry.record
    failure = record.get("failure") or {}
    why = record["reason"] or (f"{failure.get('class')}: {failure.get('message')}" if failure else "")
    return {
        "status": record["status"] + ("" if entry.is_current else ", older"),
        "engine": str(record["engine"]),
        "version": str(record["engine_version"] or DASH),
        "precision": str(record["precision"]),
        "model": str(record["model"]),
        "weights": str(record["weights"]),
        "device": device(record),
        "config": str(record["config"]),
        "workload": str(record["workload"]),
        "batch": number(record.get("batch_size"), "d", "not a perf cell"),
        "in": number(record.get("input_len"), "d", "unknown"),
        "out": number(record.get("output_len"), "d", "not a perf cell"),
        "reason": why if len(why) <= 160 else why[:159] + "…",
        "written": str(record.get("written_at") or DASH),
        "folder": entry.folder,
        "key": record["key"],
    }


def provenance(records: Sequence[Record]) -> dict[str, Any]:
    """`words` and `sections` once each. A section is [title, name, value, name, value, ...] as places among the words;
    a row of `rows` is the sections of a record, as places among those."""
    words: dict[str, int] = {}
    sections: dict[tuple[int, ...], int] = {}
    rows = []
    for record in records:
        unread = (record["effective"].get("unread")) or {}
        row = []
        for title, content in _sections(record).items():
            said = [title]
            for name, value in content.items():
                said += name, _said(value, unread.get(name))
            flat = tuple(words.setdefault(word, len(words)) for word in said)
            row.append(sections.setdefault(flat, len(sections)))
        rows.append(row)
    return {"words": list(words), "sections": list(sections), "rows": rows}


def _sections(record: Record) -> dict[str, dict[str, Any]]:
    """Everything a record says that is not shown elsewhere; what this version does not know, too."""
    known = {name: record[name] for name in SECTIONS if isinstance(record.get(name), dict)}
    effective = {k: v for k, v in known.get("effective", {}).items() if k not in ("unread", "environment")}
    rest = {k: v for k, v in record.items() if k not in ELSEWHERE and k not in known}
    more = {name: value for name, value in rest.items() if isinstance(value, dict) and not _is_summary(value)}
    plain = {name: value for name, value in rest.items() if name not in more}
    return {"record": plain, **{**known, "effective": effective}, **more}


def _is_summary(value: dict[str, Any]) -> bool:
    return "p50" in value


def _said(value: Any, why: Any) -> str:
    if value is None:
        return f"null: {why}" if why else "null"
    if isinstance(value, dict) and _is_summary(value):
        return ", ".join(f"{name} {one:.6g}" for name, one in value.items() if one is not None)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, allow_nan=False)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}… ({len(text)} characters)"


def environments(entries: Iterable[Entry]) -> list[dict[str, Any]]:
    """The different environments that cells were measured in, with how many cells and which engines."""
    groups = by(
        (entry.record for entry in entries),
        lambda r: json.dumps([r["environment"], r["engine_version"]], sort_keys=True),
    )
    found = []
    for group in groups.values():
        environment = dict(group[0]["environment"])
        machine = environment.pop("device", None) or {}
        about = {f"device {name}": value for name, value in machine.items()}
        engines = sorted({f"{r['engine']} {r['engine_version'] or ''}".strip() for r in group})
        content = {**about, **environment}
        items = [(name, _said(value, None)) for name, value in content.items() if value not in (None, [], {})]
        found.append({"engines": ", ".join(engines), "cells": len(group), "items": items})
    return sorted(found, key=lambda one: -one["cells"])
