"""The ledger: per device and phase, what each category of operations had of the time, and what nobody had."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import polars as pl

from harness.kernels.sweep import Times, sweep
from harness.kernels.windows import END, Span, StepTime, length, steps_of
from harness.traces.trace import HOST, PHASES, NoAnswer, Trace

if TYPE_CHECKING:
    from harness.kernels.labelling import Labelled

WHOLE = "whole"  # phase of a ledger over everything on a device
OUTSIDE = "outside"  # phase of a ledger over what lies in no step of a known phase
UNCLASSIFIED = "unclassified"  # no rule knows these; "other" is what rules know to be none of the rest
PROFILED, UNPROFILED = "profiled", "unprofiled"  # whose wall time a window is
SAMPLES = 5  # names kept of a category
PIECE = 1_000_000  # operations held at a time

NO_TIMELINE = "a summary has totals by name and no timeline: what overlapped and what idled is unknown"
SELF_TIMES = "durations of a CPU's operations are self times, which have no place on the timeline"
ONLY_LENGTH = "of a step without profiler only the length is known"
NO_STEPS = "the trace marks no steps: idle time in a step cannot be told from idle time between steps"


@dataclass(frozen=True)
class Share:
    """What one category had. Times in ns; the last three are None where the ledger has no timeline."""

    sum: int  # of durations: time in which two ran counts twice
    count: int  # calls
    samples: tuple[str, ...]  # names, most time first
    union: int | None = None  # it ran, whatever else did
    exclusive: int | None = None  # it ran, and nothing of another category did
    charged: int | None = None  # exclusive, and an even share of the time it ran with others


@dataclass(frozen=True)
class Kernel:
    """All calls of one name under one label."""

    name: str
    category: str
    found_by: str
    sum: int  # ns
    count: int


@dataclass(frozen=True)
class Ledger:
    """Times in ns. Sums of categories add up to `sum`; charged times and `idle` add up to `window`.

    The window of a whole device lasts from its first start to its last end. That of a phase is what its runs last: a
    run is of steps that follow one another with nothing else started in between, from its first start to its last end.
    So idle time between steps of one run counts, and idle time around the run does not.
    """

    device: int
    phase: str  # WHOLE, one of PHASES, or OUTSIDE
    categories: dict[str, Share]  # those that occur, largest sum first
    found_by: dict[str, int]  # ns of `sum` by how the label was found
    kernels: tuple[Kernel, ...]  # largest sum first
    sum: int
    count: int
    steps: tuple[StepTime, ...]  # in order; empty where the trace marks none
    window: int | None = None
    busy: int | None = None  # anything ran, on any stream
    gaps: int | None = None  # idle between two operations of one step: the device waits for its next launch
    reason: str | None = None  # why there is no timeline
    gaps_reason: str | None = None
    wall: str = PROFILED

    @property
    def idle(self) -> int | None:
        return None if self.window is None else self.window - self.busy

    @property
    def overlap(self) -> int | None:
        """Time in which more than one category ran."""
        return None if self.busy is None else self.busy - sum(share.exclusive for share in self.categories.values())


def ledgers(trace: Trace, labelled: Labelled) -> list[Ledger]:
    """For each device one over everything and, where there are steps, one per phase. Raises NoAnswer without any."""
    if labelled.ops.is_empty():
        raise NoAnswer(f"{trace.source}: holds no operation of a device")
    return [ledger for device, ops in _devices(labelled.ops) for ledger in _of_device(trace, labelled, device, ops)]


def without_profiler(ledger: Ledger, step_ms: float) -> Ledger:
    """With the wall time its steps take when nobody looks: kernels take as long, and the host, which profilers slow,
    waits less. As it is where it has no steps or timeline, or its kernels alone take longer than `step_ms` each."""
    window = round(step_ms * 1e6 * len(ledger.steps))
    if not ledger.steps or ledger.window is None or window < ledger.busy:
        return ledger
    return replace(ledger, window=window, gaps=None, gaps_reason=ONLY_LENGTH, wall=UNPROFILED)


def category_of(label: object) -> str:
    return UNCLASSIFIED if label.found_by == "none" else label.category


def one_step(trace: Trace, labelled: Labelled, device: int, phase: str | None) -> tuple[StepTime, pl.DataFrame]:
    """A step whose time is the median of its phase (None: of all steps), and its operations in order.

    Columns: `offset_us` since the step's first start, `duration_us`, `gap_us` in which nothing of the step ran before
    (null on a CPU), `stream`, `category`, `found_by`, `name`. Raises NoAnswer where the trace marks no such step.
    """
    ops = next((ops for number, ops in _devices(labelled.ops) if number == device), labelled.ops.clear())
    timeline = not trace.is_summary and device != HOST
    steps = [step for step in steps_of(trace, ops, timeline).times if phase in (None, step.phase)]
    if not steps:
        word = f"{phase} step" if phase else "step"
        raise NoAnswer(f"{trace.source}: marks no {word} of device {device}: record it with steps marked")
    step = sorted(steps, key=lambda step: step.time)[(len(steps) - 1) // 2]
    own = ops.filter(pl.col("step") == step.index)
    reach = END.cum_max().shift(1).fill_null(pl.col("start"))
    first = own["start"][0]
    gap = (pl.col("start") - reach).clip(lower_bound=0) / 1000 if timeline else pl.lit(None, pl.Float64)
    return step, own.select(
        ((pl.col("start") - first) / 1000).alias("offset_us"),
        (pl.col("duration") / 1000).alias("duration_us"),
        gap.alias("gap_us"),
        "stream",
        _named([category_of(label) for label in labelled.labels], own["label"]).alias("category"),
        _named([label.found_by for label in labelled.labels], own["label"]).alias("found_by"),
        _named(trace.names, own["name"]).alias("name"),
    )


def _named(words: list[str] | tuple[str, ...], index: pl.Series) -> pl.Series:
    return pl.Series(words, dtype=pl.String).gather(index)


def _devices(ops: pl.DataFrame) -> Iterator[tuple[int, pl.DataFrame]]:
    """Slices of each device, which share memory with `ops`."""
    start = 0
    for count, device in ops["device"].rle().struct.unnest().rows():
        yield device, ops.slice(start, count)
        start += count


def _of_device(trace: Trace, labelled: Labelled, device: int, ops: pl.DataFrame) -> Iterator[Ledger]:
    reason = NO_TIMELINE if trace.is_summary else SELF_TIMES if device == HOST else None
    steps = steps_of(trace, ops, timeline=reason is None)
    phases = pl.Series([step.phase or OUTSIDE for step in trace.steps], dtype=pl.String)
    view = _View(trace, labelled, ops, phases, reason)
    span = None if reason else (ops["start"][0], ops.select(END.max()).item())
    yield _ledger(view, device, WHOLE, steps.times, [span])
    for phase in (*PHASES, OUTSIDE) if steps.times else ():
        own = tuple(step for step in steps.times if (step.phase or OUTSIDE) == phase)
        if own or phase == OUTSIDE and ops["step"].null_count():
            spans = [] if reason else [step.span for step in own]
            yield _ledger(view, device, phase, own, spans + list(steps.outside if phase == OUTSIDE else ()))


@dataclass(frozen=True)
class _View:
    """A device's operations, and how to cut those of a phase out of them."""

    trace: Trace
    labelled: Labelled
    ops: pl.DataFrame
    phases: pl.Series  # String, per step of the trace
    reason: str | None

    def pieces(self, phase: str) -> Iterator[pl.DataFrame]:
        for first in range(0, len(self.ops), PIECE):
            piece = self.ops.slice(first, PIECE)
            if phase != WHOLE:
                piece = piece.filter(self.phases.gather(piece["step"]).fill_null(OUTSIDE) == phase)
            if len(piece):
                yield piece


def _ledger(view: _View, device: int, phase: str, steps: tuple[StepTime, ...], window: list[Span]) -> Ledger:
    labels = view.labelled.labels
    categories = sorted({category_of(label) for label in labels})
    codes = pl.Series([categories.index(category_of(label)) for label in labels], dtype=pl.UInt8)
    kernels = tuple(
        Kernel(view.trace.names[name], category_of(labels[label]), labels[label].found_by, total, count)
        for label, name, total, count in _sums(view.pieces(phase)).rows()
    )
    times: dict[int, Times] = {}
    busy = gaps = None
    if view.reason is None:
        found = sweep(p.select("start", END, codes.gather(p["label"]).alias("category")) for p in view.pieces(phase))
        busy, times = found.busy, found.times
        gaps = _gaps(view.pieces(phase)) if steps else None
    rows: dict[str, list[Kernel]] = {}
    found_by: dict[str, int] = {}
    for kernel in kernels:
        rows.setdefault(kernel.category, []).append(kernel)
        found_by[kernel.found_by] = found_by.get(kernel.found_by, 0) + kernel.sum
    nothing = None if view.reason else Times(0, 0, 0)  # of operations that took no time
    shares = {name: _share(own, times.get(categories.index(name), nothing)) for name, own in rows.items()}
    return Ledger(
        device,
        phase,
        dict(sorted(shares.items(), key=lambda item: -item[1].sum)),
        found_by,
        kernels,
        sum(share.sum for share in shares.values()),
        sum(share.count for share in shares.values()),
        steps,
        None if view.reason else length(window),
        busy,
        gaps,
        view.reason,
        None if gaps is not None else view.reason or NO_STEPS,
    )


def _share(kernels: list[Kernel], had: Times | None) -> Share:
    samples = tuple(dict.fromkeys(kernel.name for kernel in kernels))[:SAMPLES]
    times = (had.union, had.exclusive, had.charged) if had else ()
    return Share(sum(kernel.sum for kernel in kernels), sum(kernel.count for kernel in kernels), samples, *times)


def _sums(pieces: Iterator[pl.DataFrame]) -> pl.DataFrame:
    """Label, name, summed duration and calls: one row per pair that occurs, most time first."""
    sums = [pl.col("duration").sum(), pl.col("count").cast(pl.Int64).sum()]
    parts = [piece.lazy().group_by("label", "name").agg(sums).collect() for piece in pieces]
    return (
        pl.concat(parts)
        .group_by("label", "name")
        .agg(pl.col("duration", "count").sum())
        .sort("duration", "label", "name", descending=[True, False, False])
    )


def _gaps(pieces: Iterator[pl.DataFrame]) -> int:
    """Ns in which nothing ran between an operation and the next one that starts, when both are of one step."""
    total, reach, step = 0, None, None
    for piece in pieces:
        ends = END.cum_max()
        before = pl.max_horizontal(ends.shift(1), pl.lit(reach, pl.Int64))
        same = pl.col("step") == pl.col("step").shift(1, fill_value=pl.lit(step, pl.UInt32))
        gap = (pl.col("start") - before).clip(lower_bound=0).filter(same)
        found, last, step = piece.select(gap.sum().alias("gap"), ends.last(), pl.col("step").last().alias("s")).row(0)
        total, reach = total + (found or 0), last if reach is None else max(last, reach)
    return total
