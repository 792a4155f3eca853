"""What each rung did to the kernel ledger: a step's time by kind of work, and the waterfall from one rung to the next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from harness.columns import columns
from harness.errors import HarnessError
from harness.jsonfile import Node
from harness.judging.breakdown import MIXED
from harness.kernels.waterfall import IDLE, conclusion, explain
from harness.ladder.rows import Row, ladders
from harness.ladder.show import title
from harness.ladder.steps import BASELINE, CUMULATIVE, PRECISION
from harness.recording.profiling import analysis_of
from harness.recording.records import Record

PHASES = ("prefill", "decode")


def text(records: Sequence[Record], root: Path) -> str:
    """Tables and sentences of profiled records whose analyses lie in the output folder `root`; empty where none is."""
    return "\n".join(line for rows in ladders(records) for line in _lines(climbed(rows), root))


def climbed(rows: Sequence[Row]) -> list[Row]:
    """Those of a ladder that come one after another and have a profile."""
    kinds = (BASELINE, CUMULATIVE, PRECISION)
    return [row for row in rows if row.kind in kinds and (row.perf.get("profile") or {}).get("phases")]


def ledger(row: Row, phase: str) -> dict[str, float]:
    """ms of one step by kind of work; `idle` is what nothing ran in, where the profiler knows. Empty: no such phase."""
    phases = (row.perf.get("profile") or {}).get("phases") or {}
    found = phases.get(phase)
    if not found or (phase == "prefill" and MIXED in phases):
        return {}
    times = {name: share["ms_per_step"] for name, share in found["categories"].items() if share["ms_per_step"]}
    return {**times, **({IDLE: found["idle_ms"]} if found.get("idle_ms") is not None else {})}


def _lines(rows: Sequence[Row], root: Path) -> Iterator[str]:
    for phase in PHASES:
        if not (found := {title(row): shares for row in rows if (shares := ledger(row, phase))}):
            continue
        names = sorted({name for shares in found.values() for name in shares}, key=lambda n: -max(_of(found, n)))
        work = rows[0].perf
        yield f"{phase}, batch {work['batch_size']}: ms of a step by kind of work"
        yield columns([{"rung": what, "ms": f"{sum(s.values()):.3f}", **_cells(s, names)} for what, s in found.items()])
        yield ""
    for a, b in zip(rows, rows[1:]):
        yield from _explained(a, b, root)
    for row in rows:
        yield from (f"{title(row)} is not to be believed: {why}" for why in row.perf["profile"].get("problems") or ())


def _of(found: dict[str, dict[str, float]], name: str) -> list[float]:
    return [shares.get(name, 0.0) for shares in found.values()]


def _cells(shares: dict[str, float], names: Sequence[str]) -> dict[str, Any]:
    return {name: f"{shares[name]:.3f}" if name in shares else None for name in names}


def _explained(a: Row, b: Row, root: Path) -> Iterator[str]:
    try:
        sides = [analysis_of(Node(row.perf, row.perf["key"]), root / "records" / row.perf["key"])[1] for row in (a, b)]
        yield from conclusion(explain(*sides, (title(a), title(b))))
    except (HarnessError, OSError) as error:
        yield f"{title(a)} to {title(b)}: {error}"
