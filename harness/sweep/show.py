"""A plan, before anything runs: a line per load with its cells, its memory and the preflight's verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from harness.cells import Cell, Setup
from harness.columns import columns
from harness.engine import backend_of
from harness.planning.plan import Options, Plan
from harness.planning.preflight import duplicates, memory, tight
from harness.recording.records import OutputFolder
from harness.recording.rounds import is_done


def verdicts(plan: Plan, options: Options) -> list[dict[str, Any]]:
    """Of every cell, in order: what it is, and `run`, `done` (measured before) or `skip` with the reason."""
    folder = OutputFolder(options.output_dir) if options.output_dir.is_dir() else None
    found = []
    for cell in plan.cells:
        setup, key = cell.setup, plan.key(cell)
        is_asked = folder is not None and options.resume and not cell.skip
        was_done = is_asked and is_done(cell, key, folder, options.policy)
        found.append(
            {
                "key": key,
                "engine": setup.engine,
                "model": setup.model,
                "precision": setup.precision,
                "config": setup.config,
                "workload": cell.workload,
                **cell.parameters,
                "verdict": "skip" if cell.skip else "done" if was_done else "run",
                "reason": cell.skip,
            }
        )
    return found


def text(plan: Plan, options: Options) -> str:
    told = verdicts(plan, options)
    loads: dict[Any, list[tuple[Cell, dict[str, Any]]]] = {}
    for cell, one in zip(plan.cells, told):
        loads.setdefault(cell.setup, []).append((cell, one))
    rows = [row for number, cells in enumerate(loads.values(), 1) for row in _rows(plan, number, cells)]
    counts = Counter(one["verdict"] for one in told)
    states = (("run", "to run"), ("done", "done"), ("skip", "skipped"))
    words = ", ".join(f"{counts[name]} {word}" for name, word in states)
    lines = [columns(rows), "", *_twice(plan), f"{len(told)} cells in {len(loads)} loads: {words}"]
    return "\n".join(lines)


def summary(records: Sequence[Mapping[str, Any]]) -> str:
    """How many of each status, and every failure in a line."""
    counts = Counter(record["status"] for record in records)
    lines = [", ".join(f"{count} {status}" for status, count in sorted(counts.items())) or "nothing was measured"]
    for record in records:
        if record["status"] == "failed":
            failure = record["failure"]
            what = " ".join(str(record[name]) for name in ("engine", "model", "precision", "config", "workload"))
            lines.append(f"failed {what}: {failure['class']}: {failure['message'].splitlines()[0][:200]}")
    return "\n".join(lines)


def _rows(plan: Plan, number: int, cells: Sequence[tuple[Cell, dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """One line per load and verdict. Its memory is that of the cell that needs most."""
    groups: dict[tuple[str, str | None], list[tuple[Cell, dict[str, Any]]]] = {}
    for cell, one in cells:
        reason = one["reason"] or tight(cell.setup, cell.parameters, cell.support.mode, plan.ground.device)
        groups.setdefault((one["verdict"], reason), []).append((cell, one))
    for (verdict, reason), group in groups.items():
        first = group[0][1]
        rooms = [memory(cell.setup, cell.parameters, cell.support.mode) for cell, _ in group]
        most = max((room.weights + room.cache + room.activations for room in rooms if room), default=None)
        yield {
            "load": number,
            "engine": first["engine"],
            "model": first["model"],
            "precision": first["precision"],
            "config": first["config"],
            "cells": _words([one for _, one in group]),
            "GiB each": "" if most is None else f"{most / (1 << 30):.3g}",
            "verdict": f"{verdict}: {reason}" if reason else verdict,
        }


def _twice(plan: Plan) -> Iterator[str]:
    """Cells that would measure the same thing under two names."""
    ground = plan.ground

    def runs(setup: Setup) -> str | None:
        return backend_of(ground.registry.engines[setup.engine], setup, ground.device, ground.version(setup.engine))

    for a, _, why in duplicates(plan.cells, runs):
        what = f"{a.setup.engine} {a.setup.model} {a.setup.precision} TP{a.setup.tp} EP{a.setup.ep} {a.workload}"
        yield f"twice the same: {what}, {why}"


def _words(group: list[dict[str, Any]]) -> str:
    sizes: dict[str, list[Any]] = {}
    for one in group:
        sizes.setdefault(one["workload"], []).append(one.get("batch_size"))
    parts = []
    for workload, batches in sizes.items():
        known = [str(batch) for batch in batches if batch is not None]
        parts.append(f"{workload} at batch {','.join(dict.fromkeys(known))}" if known else workload)
    return "; ".join(parts)
