"""Records of the folders a report is about, each with the place it came from; what cannot be shown is said, not shown.

A record may come from another hand, so the parts that the report reads are checked here, once; the rest of the package
can rely on them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import UsageError
from harness.failures import CLASSES
from harness.judging import pairs
from harness.judging.compare import compare
from harness.recording.records import SCHEMA_VERSION, Record, is_record

OBJECTS = ("environment", "effective", "requested")
ABSENT: Record = {
    **dict.fromkeys("reason failure moe_backend written_at batch_size input_len output_len".split()),
    **{name: {} for name in OBJECTS},
}
MEASURED = ("ok", "mismatch")
STATUSES = (*MEASURED, "skipped", "failed")
LARGEST = 64 << 20  # bytes of a file; a record with the raw times of 64 requests has 50 KB


@dataclass(frozen=True)
class Entry:
    """A record and where it lies. Of entries with one key, the same question on the same engine and device, the newest
    that was measured is current; the others are kept in the ledger."""

    record: Record
    folder: str  # as the user named it
    file: str
    root: Path | None  # of an output folder
    is_current: bool = True


@dataclass(frozen=True)
class Found:
    entries: tuple[Entry, ...]
    passed_over: tuple[tuple[str, str], ...]  # file and reason


def read(paths: Sequence[Path]) -> Found:
    """Raises UsageError for a path that holds no records, when no file of a folder can be shown, and for none."""
    entries: list[Entry] = []
    passed_over: list[tuple[str, str]] = []
    for path in dict.fromkeys(paths):
        if path.is_dir():
            good, bad = _folder(path)
            if not good and not bad:
                raise UsageError(
                    f"{str(path)!r}: no records in it; give an output folder of `harness run`, or a record"
                )
            if not good:
                raise UsageError(f"{str(path)!r}: none of its {len(bad)} files can be shown: {bad[0][0]}: {bad[0][1]}")
        else:
            good, bad = _file(path), []
        entries += good
        passed_over += bad
    if not entries:
        raise UsageError("no records: give an output folder of `harness run`")
    return Found(tuple(_newest(entries)), tuple(passed_over))


def _folder(path: Path) -> tuple[list[Entry], list[tuple[str, str]]]:
    entries, bad = [], []
    for file in sorted((path / "records").glob("*.json")):
        try:
            if file.stat().st_size > LARGEST:
                raise ValueError(f"larger than {LARGEST >> 20} MiB")
            value = _parsed(file)
            if problem := _problem(value):
                raise ValueError(problem)
        except (OSError, ValueError, RecursionError) as error:
            bad.append((f"{path.name or path}/records/{file.name}", _reason(error)))
        else:
            entries.append(Entry({**ABSENT, **value}, str(path), file.name, path))
    return entries, bad


def _file(path: Path) -> list[Entry]:
    """A record, or what other tools write. The root of a record is the folder above `records`."""
    try:
        value = _parsed(path)
    except (OSError, ValueError, RecursionError):
        value = None
    found = [value] if is_record(value) else pairs.read(path)
    for record in found:
        if problem := _problem(record):
            raise UsageError(f"{str(path)!r}: {problem}")
    root = path.resolve().parent.parent if path.resolve().parent.name == "records" else None
    return [Entry({**ABSENT, **record}, str(path.parent), path.name, root) for record in found]


def _parsed(path: Path) -> Any:
    """Python reads NaN, Infinity and 1e999, though JSON has none of them: they are no numbers here."""
    return json.loads(path.read_bytes(), parse_constant=lambda _: None, parse_float=_finite)


def _newest(entries: Iterable[Entry]) -> list[Entry]:
    found = list(entries)
    best: dict[str, Entry] = {}
    for entry in found:
        other = best.get(entry.record["key"])
        if other is None or _rank(entry) > _rank(other):
            best[entry.record["key"]] = entry
    return [entry if best[entry.record["key"]] is entry else _old(entry) for entry in found]


def _rank(entry: Entry) -> tuple[bool, str]:
    return entry.record["status"] in MEASURED, str(entry.record.get("written_at") or "")


def _old(entry: Entry) -> Entry:
    return Entry(entry.record, entry.folder, entry.file, entry.root, is_current=False)


def _finite(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
        return "not JSON: cut short, or not written by the harness"
    return str(getattr(error, "strerror", None) or error)


def _problem(value: Any) -> str | None:
    if isinstance(value, dict) and isinstance(value.get("schema_version"), int):
        if value["schema_version"] > SCHEMA_VERSION:
            return f"its schema is {value['schema_version']}, this harness reads {SCHEMA_VERSION}: use a newer one"
        if value["schema_version"] < SCHEMA_VERSION:
            return f"its schema is {value['schema_version']}, this harness reads {SCHEMA_VERSION}: measure again"
    if not is_record(value):
        return "no record"
    if value["status"] not in STATUSES:
        return f"its status is {str(value['status'])[:40]!r}; known: {', '.join(STATUSES)}"
    if value["status"] == "failed" and not isinstance(value.get("failure"), dict):
        return "it failed, and has no failure"
    if missing := [name for name in OBJECTS if not isinstance(value.get(name, {}), dict)]:
        return f"{missing[0]} is no object"
    return _misfit(value, SHAPE, "") or _incomparable(value)


def _incomparable(record: Record) -> str | None:
    """Rounds are read by `compare` only, so that is asked."""
    try:
        compare(record, record) if record.get("rounds") else None
    except Exception as error:  # whatever their shape does to it
        return f"its rounds cannot be read: {type(error).__name__}: {error}"
    return None


def _misfit(value: Any, shape: Any, place: str) -> str | None:
    """The first place where a value is not of its shape: a check, a mapping of names (any may be missing or null), or
    a list with the shape of its items."""
    if isinstance(shape, Mapping):
        if not isinstance(value, dict):
            return f"{place or 'it'} is no object"
        for name, inner in shape.items():
            names = value if name == "*" else [name] if value.get(name) is not None else []
            for key in names:
                if problem := _misfit(value[key], inner, f"{place}.{key}".lstrip(".")):
                    return problem
        return None
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{place} is no list"
        return next((problem for item in value if (problem := _misfit(item, shape[0], place))), None)
    return None if shape(value) else f"{place} is {str(value)[:40]!r}"


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _number(value: Any) -> bool:
    return type(value) in (int, float)  # True must not pass for 1


def _positive(value: Any) -> bool:
    return _number(value) and value > 0


def _maybe(value: Any) -> bool:
    return value is None or _number(value)


def _times(value: Any) -> bool:
    """Nanoseconds of one timeline; a time that was not taken is null."""
    return isinstance(value, list) and bool(value) and all(one is None or type(one) is int for one in value)


_SUMMARY = {name: _number for name in ("mean", "std", "min", "max", "p50", "p90", "p99", "n")}
_SHARE = {"ms_per_step": _number, "percent": _number, "percent_of_window": _number}
_LIMIT = {name: _number for name in "bytes flops bytes_per_s flops_per_s hbm_share tensor_share share_of_limit".split()}
SHAPE = {
    **dict.fromkeys(
        "key workload engine engine_version model weights precision compute_mode config reason gpu_name moe_backend "
        "written_at dataset".split(),
        _text,
    ),
    **dict.fromkeys(
        "batch_size input_len output_len mean_latency_ms output_tokens_per_sec perplexity".split(), _positive
    ),
    **dict.fromkeys(("conditions", "requested"), {}),
    **dict.fromkeys(("latency_ms", "ttft_ms", "itl_ms", "tpot_ms"), _SUMMARY),
    "effective": {"unread": {}, "environment": {}},
    "environment": {"device": {"kind": _text, "name": _text, "count": _number}},
    "failure": {"class": lambda value: value in CLASSES, "message": _text, "log_tail": _text},
    "per_chunk_ppls": [_positive],
    "raw": {"latency_ns": [_positive], "token_ns": [[{"requests": [_number], "ns": _times}]]},
    "roofline": {"*": {**_LIMIT, "bound": _text, "reason": _text, "problem": _text, "time": _text, "peaks": _text}},
    "profile": {
        "profiler": _text,
        "analysis": _text,
        "problem": _text,
        "problems": [_text],
        "warnings": [_text],
        "phases": {
            "*": {
                "steps": _number,
                "ms_per_step": _number,
                "idle_ms": _maybe,
                "wall": _text,
                "max_speedup": _maybe,
                "amdahl": {"lower": _number, "upper": _number},
                "categories": {"*": _SHARE},
            }
        },
    },
}
