"""Reads traces of torch.profiler (Kineto's JSON): a GPU's operations with who launched them, or a CPU's own."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter

import polars

from harness.errors import UsageError
from harness.traces import marks
from harness.traces.kineto_json import (
    COPY,
    GPU_RANGE,
    KERNEL,
    LAUNCH,
    MODULE,
    OPERATION,
    PYTHON,
    RANGE,
    SET,
    Event,
    events_of,
    integers,
    nanoseconds,
)
from harness.traces.ops import as_schema, in_order, without_bad_times
from harness.traces.spans import BOTH, INNER, OUTER, Chains, at, flatten, holding
from harness.traces.trace import HOST, SCHEMA, NoAnswer, Step, Trace

FORMAT = "torch.profiler JSON"
_GPU = {KERNEL: "kernel", COPY: "memcpy", SET: "memset"}
# says nothing of the part of the model
_GENERIC = re.compile(r"aten::(?!_\w*grouped_mm$)|(?:autograd|prim|profiler)::|(?!.*::)")


def read_kineto(data: bytes | bytearray, source: str, where: str) -> Trace:
    """The trace in `data`, the text of a whole JSON file. `source` becomes its name, `where` begins each error.

    Raises UsageError for what is no trace, NoAnswer for a trace without operations."""
    with _without_collector():
        return _trace(data, source, where)


@contextmanager
def _without_collector() -> Iterator[None]:
    """Millions of events are millions of objects, none in a cycle: looking for cycles takes as long as all the rest."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _trace(data: bytes | bytearray, source: str, where: str) -> Trace:
    groups, notes = events_of(data, where)
    if any(groups[role] for role in _GPU):
        return _of_gpu(groups, source, where, notes)
    if groups[LAUNCH] and any("aunch" in event.name for event in groups[LAUNCH]):
        raise NoAnswer(
            f"{where}: kernels were launched, but the GPU's side is missing: CUPTI was not there or in use by another "
            "profiler; record again with ProfilerActivity.CUDA and no other profiler"
        )
    if groups[OPERATION]:
        return _of_host(groups, source, where, notes)
    raise NoAnswer(
        f"{where}: a trace without kernels and without operations of PyTorch: nothing to break down; record with "
        "torch.profiler.profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA])"
    )


class _Numbers(dict):
    """Numbers things in the order they are first asked for."""

    def __missing__(self, key: object) -> int:
        self[key] = len(self)
        return self[key]


def _of_gpu(groups: list[list[Event]], source: str, where: str, notes: tuple[str, ...]) -> Trace:
    names, pids = _Numbers(), _Numbers()
    parts = [_gpu_ops(groups[role], kind, names, where) for role, kind in _GPU.items() if groups[role]]
    (ops,), left_out = without_bad_times([polars.concat(parts)], where)
    if not (ops["kind"] == "kernel").any():
        raise NoAnswer(
            f"{where}: {len(ops)} copies and fills of memory, but no kernel: kernels were not recorded or ran outside "
            "of the window; record again with the model's steps inside the profiler"
        )
    words: list[str] = []
    launches = _launches(groups[LAUNCH], ops["correlation"], pids, where)
    spans = _spans(groups, pids, words).drop_nulls()
    chains = Chains(words)
    launches = at(launches, flatten(holding(spans, launches), chains)).select(
        "correlation", "pid", "scope", launched="time"
    )
    ops = ops.join(launches, on="correlation", how="left")
    lost = int(ops["launched"].is_null().sum())
    if lost:
        notes = (*notes, f"{lost} of {len(ops)} operations ({lost / len(ops):.1%}) have no launch in the trace")
    steps, ops = _with_steps(ops, spans, _gpu_ranges(groups[GPU_RANGE], where), words)
    ops = in_order([ops.drop("correlation", "pid", "launched")])
    return Trace(source, FORMAT, as_schema(ops, where), tuple(names), tuple(chains.texts), steps, (*notes, *left_out))


def _of_host(groups: list[list[Event]], source: str, where: str, notes: tuple[str, ...]) -> Trace:
    """Each operation's own time: its pieces in which none of another operation runs. The first piece counts the call,
    so sums, unions and counts all hold."""
    pids, words = _Numbers(), []
    (spans,), left_out = without_bad_times([_spans(groups, pids, words)], where)
    chains = Chains(words)
    pieces = flatten(spans, chains).with_columns(
        duration=polars.col("time").shift(-1).over("thread") - polars.col("time"),
    )
    threads = {number: key[1] for key, number in pids.items() if isinstance(key, tuple)}
    streams = {number: tid if isinstance(tid, int) and abs(tid) < 2**31 else number for number, tid in threads.items()}
    pieces = pieces.filter((polars.col("op") >= 0) & (polars.col("duration") > 0))
    if pieces.is_empty():
        raise NoAnswer(f"{where}: its {len(spans)} operations took no time at all: record again")
    ops = pieces.select(
        "duration",
        polars.col("op").is_first_distinct().cast(polars.UInt32).alias("count"),
        polars.lit(HOST, polars.Int64).alias("device"),
        polars.col("thread").replace_strict(streams, return_dtype=polars.Int64).alias("stream"),
        polars.lit("op").alias("kind"),
        spans["name"].gather(pieces["op"]).alias("name"),
        polars.when(polars.col("path") > 0).then("path").alias("scope"),
        "thread",
        pid=spans["pid"].gather(pieces["op"]),
        start="time",
    )
    steps, table = marks.find(spans.filter("annotation").select(list(marks.RANGES)), words)
    if steps:
        ops = marks.assign(ops, table, "pid", "start")
    ops = as_schema(in_order([ops]), where)
    return Trace(source, FORMAT, ops, tuple(words), tuple(chains.texts), steps, (*notes, *left_out))


def _with_steps(
    ops: polars.DataFrame, spans: polars.DataFrame, gpu: polars.DataFrame, words: list[str]
) -> tuple[tuple[Step, ...], polars.DataFrame]:
    """The steps, and `ops` with `step`: by the moment of the launch, else by the step's range on the GPU."""
    ranges = spans.filter("annotation").select(list(marks.RANGES))
    steps, table = marks.find(ranges, words)
    if not steps:  # only the GPU's ranges say it
        labels = list(gpu["label"].unique(maintain_order=True))
        numbers = gpu["label"].replace_strict(labels, range(len(labels)), return_dtype=polars.UInt32)
        steps, table = marks.find(gpu.with_columns(name=numbers).select(list(marks.RANGES)), labels)
        table = table.rename({"pid": "device"}).with_columns(polars.col("device").cast(polars.Int64))
        return steps, marks.assign(ops, table, "device", "start") if steps else ops
    return steps, marks.fill(marks.assign(ops, table, "pid", "launched").sort("device", "start"))


def _gpu_ops(events: list[Event], kind: str, names: _Numbers, where: str) -> polars.DataFrame:
    """Columns of Trace.ops, and `correlation`, null where the profiler gave none."""
    device, stream, correlation = (integers(events, field, where) for field in ("device", "stream", "correlation"))
    if device.null_count() or stream.null_count():  # then the process is the device, the thread the stream
        device, stream = _integers_or(device, "pid", events), _integers_or(stream, "tid", events)
    if device.null_count() or stream.null_count():
        raise UsageError(f"{where}: a {kind} of the trace has no number of a device or stream")
    return polars.DataFrame(
        {
            "start": nanoseconds([event.ts for event in events]),
            "duration": nanoseconds([event.dur for event in events]),
            "device": device,
            "stream": stream,
            "name": polars.Series([names[event.name] for event in events], dtype=polars.UInt32),
            "correlation": correlation,
        }
    ).with_columns(
        polars.lit(kind, SCHEMA["kind"]).alias("kind"),
        correlation=polars.when(polars.col("correlation") != 0).then("correlation"),
    )


def _integers_or(numbers: polars.Series, field: str, events: list[Event]) -> polars.Series:
    get = attrgetter(field)
    others = [number if isinstance(number := get(event), int) else None for event in events]
    return polars.select(polars.coalesce(numbers, polars.Series(others, dtype=polars.Int64))).to_series()


def _launches(events: list[Event], wanted: polars.Series, pids: _Numbers, where: str) -> polars.DataFrame:
    """correlation (each once), thread, pid, time of the calls that launched one of `wanted`."""
    frame = polars.DataFrame(
        {
            "correlation": integers(events, "correlation", where),
            "thread": polars.Series([pids[event.pid, event.tid] for event in events], dtype=polars.UInt32),
            "pid": polars.Series([pids[event.pid] for event in events], dtype=polars.UInt32),
            "time": nanoseconds([event.ts for event in events]),
        }
    )
    frame = frame.drop_nulls().join(wanted.unique().drop_nulls().to_frame("correlation"), on="correlation", how="semi")
    return frame.sort("time").unique("correlation", keep="first", maintain_order=True)


def _spans(groups: list[list[Event]], pids: _Numbers, words: list[str]) -> polars.DataFrame:
    """SPANS of annotations, modules and operations, with `duration`, `pid` and `annotation`; their names go to `words`.
    Times that cannot be read are null."""
    numbers = _Numbers()
    frames = [
        polars.DataFrame(
            {
                "thread": polars.Series([pids[event.pid, event.tid] for event in events], dtype=polars.UInt32),
                "start": nanoseconds([event.ts for event in events]),
                "duration": nanoseconds([event.dur for event in events]),
                "name": polars.Series([numbers[event.name] for event in events], dtype=polars.UInt32),
                "pid": polars.Series([pids[event.pid] for event in events], dtype=polars.UInt32),
            }
        ).with_columns(annotation=polars.lit(role == RANGE), operation=polars.lit(role == OPERATION))
        for role in (RANGE, PYTHON, OPERATION)
        if (events := groups[role]) or role == RANGE
    ]
    words.extend(name.removeprefix(MODULE) for name in numbers)
    kinds = [INNER if _GENERIC.match(word) else BOTH for word in words]
    kind = polars.col("name").replace_strict(range(len(kinds)), kinds, return_dtype=polars.UInt8)
    return polars.concat(frames).with_columns(
        end=polars.col("start") + polars.col("duration"),
        role=polars.when("operation").then(kind).otherwise(polars.lit(OUTER, polars.UInt8)),
    )


def _gpu_ranges(events: list[Event], where: str) -> polars.DataFrame:
    """label, pid (the device), start, end. Each range once: the trace has it once per stream."""
    frame = polars.DataFrame(
        {
            "label": polars.Series([event.name for event in events], dtype=polars.String),
            "pid": polars.Series(
                [event.pid if isinstance(event.pid, int) else None for event in events], dtype=polars.Int64
            ),
            "start": nanoseconds([event.ts for event in events]),
            "duration": nanoseconds([event.dur for event in events]),
            "id": integers(events, "external", where),
        }
    )
    frame = frame.with_row_index("row").with_columns(
        id=polars.coalesce("id", -polars.col("row").cast(polars.Int64) - 1)
    )
    frame = frame.with_columns(
        polars.col("pid").cast(polars.UInt32, strict=False), end=polars.col("start") + polars.col("duration")
    )
    return frame.drop_nulls().group_by("label", "pid", "id").agg(polars.col("start").min(), polars.col("end").max())
