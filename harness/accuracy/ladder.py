"""The ladder of causes: what the engine changed first, what the precision changed after that.

For each engine its own BF16 is run beside the reference (engine error), and every other precision beside that same
engine's BF16 (quantisation error), over the same tokens: a bad kernel is never blamed on a format.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.accuracy.baseline import Baseline
from harness.accuracy.subject import about
from harness.model import models
from harness.planning.plan import Options
from harness.recording.records import Record
from harness.working.run import Result

PLAIN = "bf16"
ENGINE, QUANTISATION, BOTH = "engine", "quantisation", "engine and quantisation"
REPEAT, CHECKPOINT = "repeat of the reference", "checkpoint"


@dataclass(frozen=True)
class Rung:
    """One comparison, and what it can be blamed on."""

    cause: str
    what: str  # e.g. "vllm fp8"
    beside: str  # e.g. "vllm bf16"
    compute_mode: str  # of `what`
    divergence: dict[str, Any]


def climb(
    baseline: Baseline, options: Options, parameters: dict[str, Any], perform: Callable[[Options], Result]
) -> Result:
    """Validates every engine at every precision asked for; BF16 first, as the others are compared with it."""
    records: list[Record] = []
    problems: list[str] = []
    for engine in options.engines:
        own = _own_file(options, engine, baseline) if PLAIN in options.precisions else None
        later = tuple(precision for precision in options.precisions if precision != PLAIN)
        steps = []
        if own is not None:
            own.unlink(missing_ok=True)  # of an earlier run
            own.parent.mkdir(parents=True, exist_ok=True)
            steps.append(((PLAIN,), {"store": str(own) if later else None}))
        steps += [((precision,), {"also": [str(own)] if own else []}) for precision in later]
        for precisions, more in steps:
            if more.get("also") and not own.exists():  # it failed or was skipped, and says why
                more = {}
            wanted = {
                **parameters,
                **more,
                "about": about(models.resolve(options.models[0]), engine, precisions[0]),
            }
            result = perform(
                replace(
                    options,
                    engines=(engine,),
                    precisions=precisions,
                    workloads=("validate",),
                    parameters={name: (value,) for name, value in wanted.items()},
                )
            )
            records += result.records
            problems += result.problems
            if result.was_interrupted:
                return Result(records, problems, was_interrupted=True)
    return Result(records, problems)


def rungs(baseline: Baseline, records: Sequence[Record]) -> list[Rung]:
    """The comparisons in the order of blame, engine by engine."""
    found = []
    for record in (record for record in records if record["status"] in ("ok", "mismatch")):
        what = f"{record['engine']} {record['precision']}"
        cause = _cause(baseline, record)
        mode = record["compute_mode"]
        found += [Rung(QUANTISATION, what, other["reference"], mode, other) for other in record["against"]]
        if not (record["against"] and cause == QUANTISATION):  # the same comparison twice says nothing more
            found.append(Rung(cause, what, baseline.reference, mode, record["divergence"]))
    return found


def _cause(baseline: Baseline, record: Record) -> str:
    """What stands between a record and the reference."""
    is_same_engine = record["engine"] == baseline.about["engine"]
    if is_same_engine and record["precision"] == baseline.about["precision"]:
        return REPEAT if record["conditions"]["weights"] == baseline.about["weights"] else CHECKPOINT
    if is_same_engine:
        return QUANTISATION
    return ENGINE if record["precision"] in (PLAIN, baseline.about["precision"]) else BOTH


def _own_file(options: Options, engine: str, baseline: Baseline) -> Path:
    digest = hashlib.sha256(f"{baseline.path.resolve()} {options.models}".encode()).hexdigest()[:12]
    return (options.output_dir / "baselines" / f"{engine}_{PLAIN}_{digest}.safetensors").resolve()
