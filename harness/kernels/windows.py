"""Steps on the timeline of one device: how long each took, and the spans of time a phase covers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import polars as pl

from harness.traces.trace import Trace

END = (pl.col("start") + pl.col("duration")).alias("end")
Span = tuple[int, int]  # ns, from and until


@dataclass(frozen=True)
class StepTime:
    """One step on one device."""

    index: int  # in Trace.steps
    label: str
    phase: str | None
    start: int | None  # ns, of its first operation; None without a timeline
    time: (
        int  # ns until the next step of its run starts, for the last of a run until the run ends; else summed durations
    )

    @property
    def span(self) -> Span:
        return self.start, self.start + self.time


@dataclass(frozen=True)
class Steps:
    """What the step column says of one device."""

    times: tuple[StepTime, ...]  # by first start, or as numbered where there is no timeline
    outside: tuple[Span, ...]  # from first start to last end of what lies in no step, cut where a step starts


def steps_of(trace: Trace, ops: pl.DataFrame, timeline: bool) -> Steps:
    """`ops`: of one device, by start. A run is of steps of one phase with nothing else started between them; it ends
    when the last of its operations does."""
    known = ops.lazy().filter(pl.col("step").is_not_null()).group_by("step")
    rows = known.agg(pl.col("start").min(), END.max(), pl.col("duration").sum()).sort("start", "step").collect()
    said = trace.steps
    if not timeline or rows.is_empty():
        times = [StepTime(i, said[i].label, said[i].phase, None, total) for i, _, _, total in sorted(rows.rows())]
        return Steps(tuple(times), ())
    outside = _outside(ops, rows)
    apart = set(outside.filter("apart")["after"])
    times: list[StepTime] = []
    run: list[tuple[int, int]] = []  # step and start
    run_end = 0
    for position, (index, start, end, _) in enumerate(rows.rows()):
        if run and (said[run[-1][0]].phase != said[index].phase or position - 1 in apart):
            times += _run(trace, run, run_end)
            run, run_end = [], 0
        run.append((index, start))
        run_end = max(run_end, end)
    return Steps(tuple(times + _run(trace, run, run_end)), tuple(outside.select("start", "end").rows()))


def length(spans: Iterable[Span]) -> int:
    """Ns that the spans cover together."""
    total, reach = 0, None
    for start, end in sorted(spans):
        start = start if reach is None else max(start, reach)
        total += max(0, end - start)
        reach = end if reach is None else max(end, reach)
    return total


def _run(trace: Trace, run: list[tuple[int, int]], end: int) -> list[StepTime]:
    ends = [start for _, start in run[1:]] + [end]
    said = [trace.steps[index] for index, _ in run]
    return [
        StepTime(index, step.label, step.phase, start, until - start)
        for (index, start), until, step in zip(run, ends, said)
    ]


def _outside(ops: pl.DataFrame, steps: pl.DataFrame) -> pl.DataFrame:
    """`after` (position of the step begun last, null before the first), `start`, `end` of what lies in no step, and
    whether it stands `apart`: some of it starts when all steps begun before have ended."""
    loose = ops.lazy().filter(pl.col("step").is_null()).select("start", END)
    marks = steps.lazy().select("start", pl.col("end").cum_max().alias("reach")).with_row_index("after")
    joined = loose.join_asof(marks, on="start", strategy="backward")
    apart = (pl.col("start") >= pl.col("reach")).any().alias("apart")
    return joined.group_by("after").agg(pl.col("start").min(), pl.col("end").max(), apart).collect()
