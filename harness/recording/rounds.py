"""Rounds of a cell, each a start of its own, made one record; and whether there should be one more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.cells import Cell
from harness.launcher import Outcome
from harness.planning.schedule import Policy
from harness.recording import stats
from harness.recording.records import MEASURED, OutputFolder, Record
from harness.working import telemetry


def added(
    record: Record, before: Mapping[str, Any] | None, outcome: Outcome, sweep: str, number: int
) -> dict[str, Any]:
    """The record of one round with those `before` it, if any, and what all of them say. `sweep`: rounds of one sweep were
    measured in turns.

    Raises ValueError when a later round failed, or was not of the same thing."""
    if not is_repeated(record) or record["status"] not in MEASURED:
        if before is not None:
            raise ValueError(record["failure"]["message"] if record["failure"] else f"it is {record['status']}")
        return record
    one = {
        "iterations": len(record["raw"]["latency_ns"]),
        "started_at": outcome.started_at,
        "sweep": sweep,
        "round": number,
        "telemetry": outcome.telemetry,
    }
    record = {**record, "rounds": [one]}
    if before is not None:
        record = stats.merged([before, record])
    found = stats.statistics(record)
    noise = [line for each in record["rounds"] if each["telemetry"] for line in telemetry.problems(each["telemetry"])]
    return {**record, "statistics": found, "noise": [*stats.problems(found), *dict.fromkeys(noise)]}


def wants_more(policy: Policy, cell: Cell, record: Mapping[str, Any]) -> bool:
    """Whether it was measured, and should have one more round."""
    done = len(record.get("rounds") or ())
    if record["status"] not in MEASURED or not is_repeated(record) or done >= policy.max_rounds:
        return False
    return done < policy.rounds or bool(policy.ci_width) and not stats.is_narrow(record, policy.ci_width)


def is_done(cell: Cell, key: str, folder: OutputFolder, policy: Policy) -> bool:
    """Whether an earlier run, or one beside this, measured it with as many rounds as are asked for now."""
    if folder.status(key) not in MEASURED:
        return False
    if policy.rounds == 1 or cell.workload != "perf":
        return True
    record = folder.read(key)
    return record is not None and not wants_more(policy, cell, record)


def is_repeated(record: Mapping[str, Any]) -> bool:
    """Speed is; an accuracy is the same each time."""
    return record["workload"] == "perf"
