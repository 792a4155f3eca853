"""The last step of every reader: operations with times that can be, in the order and the types of Trace."""

from __future__ import annotations

from collections.abc import Callable

import polars

from harness.errors import UsageError
from harness.traces.trace import SCHEMA

MAX_START_NS = 4 * 10**18  # 126 years: nothing later can be a time, and a sum with it would overflow
MAX_DURATION_NS = 86_400 * 10**9  # a day
BAD_SHARE = 0.01  # operations with impossible times: up to here left out and said, beyond it the file is refused


def without_bad_times(parts: list[polars.DataFrame], where: str) -> tuple[list[polars.DataFrame], list[str]]:
    """The operations whose `start` and `duration` (ns; null: unreadable) can be, and a note on those left out.

    Raises UsageError when more than BAD_SHARE of them are impossible."""
    start, duration = polars.col("start"), polars.col("duration")
    bad = {
        "start": start.is_null() | (start < 0) | (start > MAX_START_NS),
        "duration": duration.is_null() | (duration < 0) | (duration > MAX_DURATION_NS),
    }
    either = bad["start"] | bad["duration"]
    counts = polars.concat(part.select(**bad, either=either).sum() for part in parts).sum().row(0, named=True)
    wrong, total = counts.pop("either"), sum(len(part) for part in parts)
    if not wrong:
        return parts, []
    fields = " and ".join(f"{count} an impossible {field}" for field, count in counts.items() if count)
    said = f"{wrong} of {total} operations have times that cannot be ({fields}: absent, negative or too large)"
    if wrong > BAD_SHARE * total:
        raise UsageError(f"{where}: {said}; record or export it again")
    return [part.filter(~either) for part in parts], [f"{said}; they are left out, {wrong / total:.2%} of all"]


def in_order(parts: list[polars.DataFrame]) -> polars.DataFrame:
    """All parts together, sorted by device and start. Takes the parts out of the list: both would be too much."""
    by_device: dict[int, list[polars.DataFrame]] = {}
    while parts:
        for (device,), frame in parts.pop(0).partition_by("device", as_dict=True).items():
            by_device.setdefault(device, []).append(frame)
    ordered = polars.concat([_sorted(by_device.pop(device)) for device in sorted(by_device)]).get_columns()
    return _column_by_column(ordered, polars.Series.rechunk)  # else whoever comes next does it, to all at once


def _sorted(frames: list[polars.DataFrame]) -> polars.DataFrame:
    frame = polars.concat(frames)
    frames.clear()
    if frame["start"].is_sorted():
        return frame
    order = frame["start"].arg_sort()
    columns = frame.get_columns()
    del frame
    return _column_by_column(columns, lambda column: column.gather(order))


def _column_by_column(
    columns: list[polars.Series], change: Callable[[polars.Series], polars.Series]
) -> polars.DataFrame:
    """Takes the columns out of the list: old and new ones of all together would double the memory."""
    changed = []
    while columns:
        changed.append(change(columns.pop(0)))
    return polars.DataFrame(changed)


def as_schema(ops: polars.DataFrame, where: str) -> polars.DataFrame:
    """`ops` with the columns of SCHEMA, in its types; one that is absent is null, `count` is then 1.

    Raises UsageError for a device or a stream whose number cannot be one."""
    absent = [
        polars.lit(1 if name == "count" else None, dtype=kind).alias(name)
        for name, kind in SCHEMA.items()
        if name not in ops.columns
    ]
    try:
        return ops.with_columns(absent).select(polars.col(name).cast(kind) for name, kind in SCHEMA.items())
    except polars.exceptions.PolarsError as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"{where}: a device or stream number is impossible: {reason}") from error
