"""Which ranges of a trace are steps of an engine, of which phase, and which step an operation belongs to."""

from __future__ import annotations

import re
from collections.abc import Sequence

import polars

from harness.traces.trace import Step

_CONTEXT = re.compile(
    r"execute_(?:\d+_)?context_(\d+)\(.*?\)_generation_(\d+)\("  # vLLM
    r"|\[Executor\] _forward_step \d+: (\d+) ctx reqs.*?, (\d+) gen reqs"  # TensorRT-LLM
)
_NAMED = re.compile(r"harness\.(prefill|decode)\b|step\[(\w+)")  # ours; SGLang's
_PHASES = {"prefill": "prefill", "extend": "prefill", "decode": "decode"}
_PROFILER = re.compile(r"ProfilerStep#?\d+$")  # PyTorch's own: the phase is not known

RANGES = {  # what is asked for: ranges of one label each
    "pid": polars.UInt32,
    "start": polars.Int64,
    "end": polars.Int64,
    "name": polars.UInt32,  # index into names
}


def step_of(label: str) -> Step | None:
    """The step that a range of this name is, or None."""
    if found := _CONTEXT.match(label):
        contexts, generations = (int(number) for number in found.groups() if number is not None)
        only = "prefill" if contexts and not generations else "decode" if generations and not contexts else None
        return Step(label, only)
    if found := _NAMED.match(label):
        return Step(label, _PHASES.get((found[1] or found[2]).lower()))
    return Step(label, None) if _PROFILER.match(label) else None


def find(ranges: polars.DataFrame, names: Sequence[str]) -> tuple[tuple[Step, ...], polars.DataFrame]:
    """The steps among RANGES in order of time, and a table pid, time (its start, sorted), step.

    Of steps within steps the inner ones count. PyTorch's own steps count only where no engine's are."""
    known = {name: step for name in ranges["name"].unique() if (step := step_of(names[name]))}
    if any(not _PROFILER.match(step.label) for step in known.values()):
        known = {name: step for name, step in known.items() if not _PROFILER.match(step.label)}
    steps: list[Step] = []
    rows: list[tuple[int, int]] = []
    found = ranges.filter(polars.col("name").is_in(list(known))).sort("start", "end", descending=[False, True])
    listed = list(found.select("pid", "start", "end", "name").iter_rows())
    following: dict[int, int] = {}  # of a process: the start of its next step, seen from behind
    inner = []
    for pid, start, end, name in reversed(listed):
        if not start <= following.get(pid, end) < end:
            inner.append((pid, start, name))
        following[pid] = start
    for pid, start, name in reversed(inner):
        steps.append(known[name])
        rows.append((pid, start))
    table = polars.DataFrame(rows, schema={"pid": polars.UInt32, "time": polars.Int64}, orient="row")
    return tuple(steps), table.with_row_index("step")


def assign(ops: polars.DataFrame, table: polars.DataFrame, key: str, time: str) -> polars.DataFrame:
    """`ops` with `step`: the last of `table` (key, time, step) that began before; what lies between two steps belongs
    to the earlier one, what lies before all of them to none. The rows come back sorted by `time`."""
    steps = table.select(key, polars.col("time").alias(time), "step").sort(time)
    known = polars.col(time).is_not_null()
    found = ops.filter(known).sort(time).join_asof(steps, on=time, by=key, strategy="backward", check_sortedness=False)
    return polars.concat([found, ops.filter(~known)], how="diagonal")


def fill(ops: polars.DataFrame) -> polars.DataFrame:
    """Operations, sorted by device and start, without a step get that of the one before them on their device."""
    return ops.with_columns(polars.col("step").forward_fill().over("device"))
