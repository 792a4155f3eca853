"""Reads CSV of `nsys stats`: cuda_gpu_trace, one row for each operation, and cuda_gpu_kern_sum, totals by name."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

import polars

from harness.errors import UsageError
from harness.traces.ops import MAX_START_NS, as_schema, in_order, without_bad_times
from harness.traces.trace import NoAnswer, Trace

_UNITS = {"ns": 1, "nsec": 1, "us": 10**3, "usec": 10**3, "µs": 10**3, "μs": 10**3, "ms": 10**6, "msec": 10**6}
_UNITS |= {"s": 10**9, "sec": 10**9}
_HEADER = re.compile(r"\s*([^()]*?)\s*(?:\(([^()]*)\))?\s*$")
_CELL = re.compile(r"\s*([-+]?[\d.,]*\d\.?(?:[eE][-+]?\d+)?)\s*([^\s\d]*)\s*$")
_MEMORY = re.compile(r"\[CUDA (memcpy|memset)")
_REPORTS = "cuda_gpu_trace or cuda_gpu_kern_sum"
RECORD = f"nsys stats --report cuda_gpu_trace --format csv --output . FILE (reports: {_REPORTS})"


@dataclass(frozen=True)
class _Table:
    """The rows under one header, by column; `units` are those that the header names."""

    columns: tuple[str, ...]
    units: tuple[str | None, ...]
    rows: list[list[str]]

    def find(self, *names: str) -> int | None:
        return next((self.columns.index(name) for name in names if name in self.columns), None)


def read_stats(text: str, source: str, where: str) -> Trace:
    """The operations in the output of `nsys stats`, whatever it printed around the table.

    `source` becomes the trace's name, `where` begins each error. Raises UsageError for other text, NoAnswer where nsys
    says that there are no kernels. Totals by name become a summary: `start` is null."""
    tables = list(_tables(text))
    if not tables:
        if said := re.search(r"SKIPPED: .*?(does not contain [^\n.]*)", text):
            raise NoAnswer(
                f"{where}: nsys says that its report {said[1].strip()}: record with nsys profile -t cuda,nvtx "
                "--cuda-graph-trace=node"
            )
        raise UsageError(f"{where}: text, but no table of {_REPORTS}; make one: {RECORD}")
    for kind, parse in (("trace", _timeline), ("sum", _summary)):
        chosen = [table for table in tables if _kind(table) == kind]
        if any(table.rows for table in chosen):
            return parse(next(table for table in chosen if table.rows), source, where)
    raise NoAnswer(f"{where}: a table of {_REPORTS} without rows: no kernels; record with nsys profile -t cuda,nvtx")


def _kind(table: _Table) -> str | None:
    """What a table is: `trace`, `sum`, or None for one of another report."""
    if table.find("name") is None:
        return None
    if table.find("start") is not None and table.find("duration") is not None and table.find("device") is not None:
        return "trace"
    kernels = table.find("total time") is not None and table.find("instances") is not None
    return "sum" if kernels else None


def _tables(text: str) -> Iterator[_Table]:
    """Tables of operations among all lines. A header is known by its columns; other lines are what nsys tells."""
    table: _Table | None = None
    for cells in _rows(text):
        headers = [_HEADER.match(cell) for cell in cells]
        names = [found[1].lower() if found else cell.lower() for found, cell in zip(headers, cells)]
        if "name" in names and len(cells) >= 3:
            if table and _kind(table):
                yield table
            units = tuple(found[2].strip().lower() if found and found[2] else None for found in headers)
            table = _Table(tuple(names), units, [])
        elif table and len(cells) == len(table.columns):
            table.rows.append(cells)
        elif table and len(cells) > 1:
            table.rows.append(cells)  # of the wrong length: counted and said later
    if table and _kind(table):
        yield table


def _rows(text: str) -> Iterator[list[str]]:
    csv.field_size_limit(2**24)
    reader = csv.reader(io.StringIO(text.replace("\0", ""), newline=""), skipinitialspace=True)
    while True:
        try:
            yield next(reader)
        except StopIteration:
            return
        except csv.Error:
            continue


def _timeline(table: _Table, source: str, where: str) -> Trace:
    start, duration, device = table.find("start"), table.find("duration"), table.find("device")
    stream, name = table.find("strm", "stream"), table.find("name")
    rows, notes = _whole(table, where)
    names: dict[str, int] = {}
    devices: dict[str, int] = {}
    columns = {
        "start": polars.Series(_times(rows, start, table, where), dtype=polars.Int64),
        "duration": polars.Series(_times(rows, duration, table, where), dtype=polars.Int64),
        "device": polars.Series([_device(row[device], devices) for row in rows], dtype=polars.Int64),
        "stream": polars.Series(
            [_integer(row[stream]) if stream is not None else 0 for row in rows], dtype=polars.Int64
        ),
        "kind": polars.Series([_operation(row[name]) for row in rows], dtype=polars.String),
        "name": polars.Series([names.setdefault(row[name], len(names)) for row in rows], dtype=polars.UInt32),
    }
    parts, left_out = without_bad_times([polars.DataFrame(columns)], where)
    if "kernel" not in columns["kind"]:
        raise NoAnswer(f"{where}: copies and fills of memory, but no kernels: record with nsys profile -t cuda,nvtx")
    ops = as_schema(in_order(parts), where)
    return Trace(source, "nsys stats cuda_gpu_trace", ops, tuple(names), notes=(*notes, *left_out, *_base(names)))


def _summary(table: _Table, source: str, where: str) -> Trace:
    total, count, name = table.find("total time"), table.find("instances"), table.find("name")
    rows, notes = _whole(table, where)
    texts = [row[name] for row in rows]
    names: dict[str, int] = {}
    columns = {
        "start": polars.Series([0] * len(rows), dtype=polars.Int64),
        "duration": polars.Series(_times(rows, total, table, where), dtype=polars.Int64),
        "count": polars.Series([_count(row[count]) for row in rows], dtype=polars.Int64),
        "device": polars.Series([0] * len(rows), dtype=polars.Int64),
        "stream": polars.Series([0] * len(rows), dtype=polars.Int64),
        "kind": polars.Series(["kernel"] * len(rows), dtype=polars.String),
        "name": polars.Series([names.setdefault(text, len(names)) for text in texts], dtype=polars.UInt32),
    }
    frame = polars.DataFrame(columns)
    if frame["count"].null_count() or (frame["count"] < 0).any() or (frame["count"] >= 2**32).any():
        raise UsageError(f"{where}: a number of instances is none: {RECORD}")
    (ops,), left_out = without_bad_times([frame], where)
    ops = as_schema(ops.with_columns(start=polars.lit(None, polars.Int64)), where)
    devices = "totals over all devices: they are not told apart"
    return Trace(
        source, "nsys stats cuda_gpu_kern_sum", ops, tuple(names), notes=(*notes, *left_out, *_base(names), devices)
    )


def _whole(table: _Table, where: str) -> tuple[list[list[str]], list[str]]:
    """The rows that have all cells, and a note on the others. Raises UsageError where they are many."""
    rows = [row for row in table.rows if len(row) == len(table.columns)]
    broken = len(table.rows) - len(rows)
    if broken > 0.01 * len(table.rows):
        raise UsageError(f"{where}: {broken} of {len(table.rows)} rows have not as many cells as the header: {RECORD}")
    return rows, [
        f"{broken} of {len(table.rows)} rows have not as many cells as the header: left out"
    ] if broken else []


def _times(rows: list[list[str]], column: int, table: _Table, where: str) -> list[int | None]:
    """A column in integers of ns: the unit is in the cell, or in the header. None for what is no time."""
    scale = _UNITS.get(table.units[column] or "")
    if scale is None and table.units[column]:
        raise UsageError(f"{where}: unknown unit of time in the header: {table.units[column]!r}")
    found = [_nanoseconds(row[column], scale) for row in rows]
    if rows and all(value is None for value in found):
        raise UsageError(
            f"{where}: the column {table.columns[column]!r} names no unit of time, neither above nor within"
        )
    return found


def _nanoseconds(cell: str, scale: int | None) -> int | None:
    found = _CELL.match(cell)
    scale = _UNITS.get(found[2].lower()) if found and found[2] else scale
    if not found or scale is None:
        return None
    try:
        value = Decimal(found[1].replace(",", "")) * scale
        return int(value.to_integral_value()) if abs(value) <= MAX_START_NS else None
    except (InvalidOperation, ValueError, OverflowError):
        return None


def _count(cell: str) -> int | None:
    digits = cell.strip().replace(",", "")
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 19 else None


def _integer(cell: str) -> int:
    value = _count(cell)
    return -1 if value is None or value >= 2**31 else value


def _device(cell: str, known: dict[str, int]) -> int:
    """The number of `NVIDIA H200 (0)`; a device that has none is numbered by its name."""
    found = re.search(r"\((\d{1,4})\)\s*$", cell) or re.match(r"\s*(\d{1,4})\s*$", cell)
    return int(found[1]) if found else known.setdefault(cell.strip(), len(known))


def _operation(name: str) -> str:
    found = _MEMORY.match(name)
    return found[1] if found else "kernel"


def _base(names: dict[str, int]) -> list[str]:
    if any("<" in name or "(" in name for name in names):
        return []
    return ["no name has template arguments: made with :base? What they say of a kernel is lost"]
