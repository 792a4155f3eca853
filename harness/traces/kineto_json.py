"""The JSON of torch.profiler, decoded: only the events and the fields that are needed, with their types checked."""

from __future__ import annotations

import re
from collections import defaultdict
from operator import attrgetter

import msgspec
import polars

from harness.errors import UsageError

_MENDED = "the JSON held what JSON does not allow (NaN, control characters or broken UTF-8): mended"
KERNEL, COPY, SET, LAUNCH, RANGE, GPU_RANGE, OPERATION, PYTHON = range(8)
_ROLES = {
    "kernel": KERNEL,
    "gpu_memcpy": COPY,
    "gpu_memset": SET,
    "cuda_runtime": LAUNCH,
    "cuda_driver": LAUNCH,
    "user_annotation": RANGE,
    "gpu_user_annotation": GPU_RANGE,
    "cpu_op": OPERATION,
    "python_function": PYTHON,
    # until 2022
    "Kernel": KERNEL,
    "Memcpy": COPY,
    "Memset": SET,
    "Runtime": LAUNCH,
    "Operator": OPERATION,
}
MODULE = "nn.Module: "  # the profiler's prefix of a module's own range
_EXACT_US = 2.0**43  # a larger float of microseconds is no longer exact to a nanosecond
_MAX_US = 4e15
_SAMPLE = 100  # events of a kind that tell how a trace writes its times


_Any = int | float | bool | str | list | dict | None  # where it matters, it is looked at later


class Args(msgspec.Struct, gc=False):
    """What an event says of itself, of any type: not every kind of event means the same by a name."""

    device: _Any = None
    stream: _Any = None
    correlation: _Any = None
    external: _Any = msgspec.field(name="External id", default=None)


class Event(msgspec.Struct, gc=False):
    """One event; times in us."""

    ph: str | None = None
    cat: str | None = None
    name: str = ""
    pid: int | str | None = None
    tid: int | str | None = None
    ts: float | None = None
    dur: float | None = None
    args: Args | None = None


class _ExactEvent(Event, gc=False):
    ts: msgspec.Raw = msgspec.Raw(b"null")


def events_of(data: bytes | bytearray, where: str) -> tuple[list[list[Event]], tuple[str, ...]]:
    """The events of a whole JSON file by role, and what had to be mended. Raises UsageError for what is no trace."""
    notes: tuple[str, ...] = ()
    try:
        events = _decode(data, Event, where)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        data, notes = _mended(data), (_MENDED,)
        events = _decode_mended(data, where)
    if events and not any(event.ph or event.cat for event in events):
        raise UsageError(f"{where}: JSON, but nothing in it is an event: no trace of torch.profiler")
    groups = _grouped(events)
    if any(event.ts and event.ts > _EXACT_US for group in groups for event in group[:_SAMPLE]):
        groups = _grouped(_decode(data, _ExactEvent, where))
    return groups, notes


def nanoseconds(values: list[object]) -> polars.Series:
    """Microseconds, as floats or as JSON text, to integers of ns; null for what cannot be one."""
    if values and isinstance(values[0], msgspec.Raw):
        text = polars.Series([b"\n".join(values).decode()]).str.split("\n").explode()
        exact = text.cast(polars.Decimal(38, 6), strict=False)
        return (exact * 1000).round(0).cast(polars.Int64, strict=False)
    times = polars.Series(values, dtype=polars.Float64)
    times = polars.select(polars.when(times.abs() < _MAX_US).then(times)).to_series()
    whole = times.floor()  # first the whole microseconds: times 1000, a float of a date would lose its last digits
    return whole.cast(polars.Int64) * 1000 + ((times - whole) * 1000).round().cast(polars.Int64)


def integers(events: list[Event], field: str, where: str) -> polars.Series:
    """A field of the events' args, null where it is absent. Raises UsageError for another type."""
    get = attrgetter(field)
    values = [None if event.args is None else get(event.args) for event in events]
    try:
        return polars.Series(values, dtype=polars.Int64, strict=True)
    except (TypeError, OverflowError, polars.exceptions.PolarsError):
        raise UsageError(
            f"{where}: not as torch.profiler writes it: args.{field} of a {events[0].cat} is no integer"
        ) from None


def _decode(data: bytes | bytearray, event: type, where: str) -> list[Event]:
    listed = bytes(data[:4096]).lstrip()[:1] == b"["
    kind = list[event] if listed else msgspec.defstruct("_File", [("traceEvents", list[event])], gc=False)
    try:
        found = msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        if "`traceEvents`" in str(error):
            raise UsageError(f"{where}: JSON, but no trace: it has no traceEvents") from None
        raise UsageError(f"{where}: no trace as torch.profiler writes it: {error}") from None
    return found if listed else found.traceEvents


def _mended(data: bytes | bytearray) -> bytes:
    """The data without what profilers are known to write and JSON does not allow."""
    text = re.sub(r"[\x00-\x1f]", " ", data.decode("utf-8", "replace"))
    return re.sub(r"(?<=[:,\[])\s*-?(?:NaN|nan|Infinity|inf)(?=\s*[,}\]])", "null", text).encode()


def _decode_mended(data: bytes, where: str) -> list[Event]:
    try:
        return _decode(data, Event, where)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if "truncated" in str(error):
            raise UsageError(f"{where}: ends in the middle of its JSON: cut off, or still being written") from None
        raise UsageError(f"{where}: not readable as JSON: {error}") from None


def _grouped(events: list[Event]) -> list[list[Event]]:
    by_category: dict[str | None, list[Event]] = defaultdict(list)
    for event in events:
        by_category[event.cat].append(event)
    groups: list[list[Event]] = [[] for _ in range(8)]
    for category, role in _ROLES.items():
        groups[role] += by_category.get(category, ())
    groups[PYTHON] = [event for event in groups[PYTHON] if event.name.startswith(MODULE)]
    return groups
