"""Reads what Nsight Systems recorded: its SQLite export, schemas of 2022 to 2026, and .nsys-rep through nsys itself."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import polars

from harness.errors import UsageError
from harness.traces import marks
from harness.traces.nsys_ranges import Ranges, read_ranges
from harness.traces.ops import as_schema, in_order, without_bad_times
from harness.traces.sqlitefile import SqliteFile, open_sqlite
from harness.traces.trace import SCHEMA, NoAnswer, Trace

KERNEL = "CUPTI_ACTIVITY_KIND_KERNEL"
COPY = "CUPTI_ACTIVITY_KIND_MEMCPY"
SET = "CUPTI_ACTIVITY_KIND_MEMSET"
GRAPH = "CUPTI_ACTIVITY_KIND_GRAPH_TRACE"
DEVICES = "TARGET_INFO_CUDA_DEVICE"
GRAPH_SHARE = 0.05  # of GPU time hidden in whole graphs: beyond it the kernels that are seen say nothing of the rest
RECORD = "record again with nsys profile -t cuda,nvtx --cuda-graph-trace=node"
_FILL, _COPY, _NAMELESS = -100, -101, -102  # numbers of names that are not in StringIds, as are those of copies
_COPIES = {1: "Host-to-Device", 2: "Device-to-Host", 8: "Device-to-Device", 10: "Peer-to-Peer"}


def read_sqlite(path: Path) -> Trace:
    """The trace in an SQLite export. Raises UsageError for other files, NoAnswer where the kernels are not in it."""
    file = open_sqlite(path)
    version = _version(file)
    notes = _hidden_in_graphs(file)
    ranges = read_ranges(file, file.has(KERNEL, "globalPid")) if file.count("NVTX_EVENTS") else None
    parts, names = [], _Names(file)
    for table, kind in ((KERNEL, "kernel"), (COPY, "memcpy"), (SET, "memset")):
        if file.count(table):
            parts += [
                part.with_columns(kind=polars.lit(kind, SCHEMA["kind"]))
                for part in _operations(file, table, names, ranges)
            ]
    parts, left_out = without_bad_times(parts, str(path))
    if ranges:
        notes += ranges.notes(sum(map(len, parts)))
    ops, texts = names.dense(in_order(parts))
    scopes, steps = (ranges.scopes, ranges.steps) if ranges else ((), ())
    if steps:
        ops = marks.fill(ops)
    notes += left_out + names.notes
    return Trace(path.name, f"nsys sqlite {version}", as_schema(ops, str(path)), texts, scopes, steps, tuple(notes))


def read_report(path: Path) -> Trace:
    """The trace in a .nsys-rep, exported by nsys into a temporary file. Raises UsageError where nsys is missing."""
    program = shutil.which("nsys")
    by_hand = f"nsys export --type sqlite -o {path.stem}.sqlite {path.name}"
    if not program:
        raise UsageError(
            f"{path}: a report of Nsight Systems needs nsys to read it, and nsys is not on PATH; where it is: "
            f"{by_hand}, then give the .sqlite"
        )
    with tempfile.TemporaryDirectory(prefix="harness-nsys-") as folder:
        export = Path(folder) / "report.sqlite"
        command = [program, "export", "--type", "sqlite", "--output", str(export), str(path.resolve())]
        job = subprocess.run(command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
        if job.returncode or not export.exists():
            said = " ".join((job.stderr or job.stdout).split())[-300:] or f"exit code {job.returncode}"
            raise UsageError(f"{path}: nsys could not export it ({said}); a newer report needs a newer nsys: {by_hand}")
        try:
            return replace(read_sqlite(export), source=path.name)
        except (UsageError, NoAnswer) as error:
            raise type(error)(str(error).replace(str(export), str(path))) from None


def _version(file: SqliteFile) -> str:
    metadata = [table for table in ("META_DATA_EXPORT", "EXPORT_META_DATA") if file.has(table, "name", "value")]
    if "StringIds" not in file.tables or not (metadata or any(name.startswith("CUPTI_") for name in file.tables)):
        held = ", ".join(sorted(file.tables)[:5]) or "none"
        raise UsageError(f"{file.path}: an SQLite file, but no export of Nsight Systems (its tables: {held:.200})")
    for table in metadata:
        for (version,) in file.rows(f"SELECT value FROM {table} WHERE name = 'EXPORT_SCHEMA_VERSION'"):
            return str(version)
    return "of unknown version"


def _hidden_in_graphs(file: SqliteFile) -> list[str]:
    """A note on time spent in graphs that were traced as a whole. Raises NoAnswer where it is much, or all."""
    graphs, kernels = file.count(GRAPH), file.count(KERNEL)
    if not kernels and not graphs:
        held = [name for table, name in _ELSE.items() if file.count(table)]
        only = f"it has only {', '.join(held)}" if held else "nothing of a GPU was recorded"
        raise NoAnswer(f"{file.path}: no kernels: {only}; {RECORD}, with the model's work inside the capture")
    if not graphs:
        return []
    if not kernels:
        raise NoAnswer(
            f"{file.path}: no kernels: {graphs} CUDA graphs were traced as a whole, which hides their kernels; {RECORD}"
        )
    sums = [
        file.rows(f'SELECT coalesce(sum("end" - start), 0), min(start) FROM {table}')[0] for table in (GRAPH, KERNEL)
    ]
    (inside, first), (seen, _) = sums
    if not first or inside > GRAPH_SHARE * (inside + seen):
        share = f"{inside / (inside + seen):.1%} of the GPU's time" if first else "an unknown share of the GPU's time"
        raise NoAnswer(
            f"{file.path}: {share} is in {graphs} CUDA graphs traced as a whole, which hides their kernels; {RECORD}"
        )
    return [f"{inside / (inside + seen):.1%} of the GPU's time is hidden in {graphs} CUDA graphs traced as a whole"]


_ELSE = {
    "CUPTI_ACTIVITY_KIND_RUNTIME": "CUDA API calls",
    COPY: "copies of memory",
    SET: "fills of memory",
    "NVTX_EVENTS": "NVTX ranges",
    "GPU_METRICS": "GPU metrics",
    "OSRT_API": "calls of the operating system",
}


class _Names:
    """Names of operations: ids of StringIds, and below zero those of copies and fills, which have none."""

    def __init__(self, file: SqliteFile) -> None:
        self.texts = {key: value for key, value in file.rows("SELECT id, value FROM StringIds") if isinstance(key, int)}
        self.texts.update((-kind, f"[CUDA memcpy {words}]") for kind, words in _COPIES.items())
        self.texts |= {_FILL: "[CUDA memset]", _COPY: "[CUDA memcpy]"}
        self.notes: list[str] = []

    def of(self, file: SqliteFile, table: str) -> str:
        """SQL of the id of an operation's name."""
        if table == SET:
            return str(_FILL)
        if table == COPY:
            known = ", ".join(map(str, _COPIES))
            copy = f"CASE WHEN copyKind IN ({known}) THEN -copyKind ELSE {_COPY} END"
            return copy if file.has(table, "copyKind") else str(_COPY)
        columns = [name for name in ("demangledName", "shortName", "mangledName") if file.has(table, name)]
        if not columns:
            raise UsageError(f"{file.path}: {table} has no names of kernels: export it again")
        return f"coalesce({', '.join(columns)}, {_NAMELESS})"

    def dense(self, ops: polars.DataFrame) -> tuple[polars.DataFrame, tuple[str, ...]]:
        """`ops` with `name` counted from 0, and the texts. Ids of equal text become one."""
        numbers: dict[str, int] = {}
        found = ops["name"].unique().sort().to_list()
        missing = [key for key in found if not isinstance(self.texts.get(key), str)]
        if missing:
            count = int(ops["name"].is_in(missing).sum())
            self.notes.append(f"{count} of {len(ops)} operations have a name that the file does not hold")
        texts = [f"(name {key} is not in the file)" if key in missing else self.texts[key] for key in found]
        dense = [numbers.setdefault(text, len(numbers)) for text in texts]
        return (
            ops.with_columns(polars.col("name").replace_strict(found, dense, return_dtype=polars.UInt32)),
            tuple(numbers),
        )


def _operations(file: SqliteFile, table: str, names: _Names, ranges: Ranges | None) -> list[polars.DataFrame]:
    """start, duration, device, stream, name and, where there are `ranges`, scope and step of all in a table."""
    lacking = [column for column in ("start", "end", "deviceId", "streamId") if not file.has(table, column)]
    if lacking:
        raise UsageError(f"{file.path}: {table} has no column {' or '.join(lacking)}: export it again with nsys")
    columns = {"start": "start", "end": '"end"', "device": "deviceId", "stream": "streamId"}
    columns["name"] = names.of(file, table)
    gpus = _gpus(file)
    if (ranges or gpus) and file.has(table, "globalPid"):
        columns["pid"] = "(globalPid >> 24) & 0xFFFFFF"
    if ranges and file.has(table, "correlationId"):
        columns["correlation"] = "correlationId"
    if ranges and file.has(table, "graphNodeId"):
        columns["node"] = "graphNodeId"
    return file.parts(table, columns, _narrowed(file, gpus, ranges))


def _narrowed(
    file: SqliteFile, gpus: dict[tuple[int, int], int], ranges: Ranges | None
) -> Callable[[polars.DataFrame], polars.DataFrame]:
    def narrow(part: polars.DataFrame) -> polars.DataFrame:
        if part["device"].null_count() or part["stream"].null_count():
            raise UsageError(f"{file.path}: an operation has no device or no stream: export it again")
        stream = polars.col("stream")
        part = part.with_columns(
            polars.col("device").cast(polars.Int16),
            # an unsigned number of 32 bits; what is on no stream has the largest
            polars.when(stream >= 2**31).then(stream - 2**32).otherwise(stream).cast(polars.Int32).alias("stream"),
            polars.col("name").cast(polars.Int32),
            duration=polars.col("end") - polars.col("start"),
        ).drop("end")
        if "pid" in part.columns:
            part = part.with_columns(polars.col("pid").cast(polars.UInt32))
            for (pid, device), gpu in gpus.items():
                of_process = (polars.col("pid") == pid) & (polars.col("device") == device)
                part = part.with_columns(
                    device=polars.when(of_process).then(gpu).otherwise("device").cast(polars.Int16)
                )
        return ranges.attribute(part) if ranges else part.drop("pid", strict=False)

    return narrow


def _gpus(file: SqliteFile) -> dict[tuple[int, int], int]:
    """(process, its number of a device): the device, where processes see different ones under one number."""
    if not file.has(DEVICES, "gpuId", "cudaId", "pid"):
        return {}
    rows = file.rows(f"SELECT DISTINCT pid, cudaId, gpuId FROM {DEVICES}")
    known: dict[int, set[int]] = {}
    for _, number, gpu in rows:
        known.setdefault(number, set()).add(gpu)
    if all(len(gpus) == 1 for gpus in known.values()):
        return {}
    return {(pid, number): gpu for pid, number, gpu in rows}
